"""What collecting, training and evaluating come to. Loads no torch and no numpy, so that a page can be drawn again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from equipoise.core.job import Page, table_html
from equipoise.core.numbers import number
from equipoise.core.shares import Bounded

POINT = 0.1  # spread of a nominal model below which its ball holds little more than its center
WIDE = 3.0
FEW = 0.2  # share of pairs whose worst mean rests on fewer than five samples
NARROW = 0.1  # share of the range of an action that logs should cover at least


@dataclass(frozen=True)
class ControlLogs:
    """Logs in data.npz of the folder; folder is None without one. covered: the least share of an action's range.

    cut: 1 where the logs end within an episode, which is no time limit.
    """

    environment: str
    transitions: int
    episodes: int
    terminated: int
    truncated: int
    mean_return: float
    covered: float
    cut: int = 0
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        found = []
        if self.covered < NARROW:
            found.append(f"Some action covers only {self.covered:.1%} of its range: raise epsilon.")
        if not self.episodes:
            found.append("No episode ended: the mean return is unknown. Take more steps.")
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        ended = f", mean return {number(self.mean_return)}" if self.episodes else ""
        done = f"{self.transitions:,} transitions of {self.environment}, {self.episodes:,} whole episodes{ended}."
        return " ".join((*self.warnings(), done))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        return (self.headline(),)

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.control.page import logs_page

        return logs_page(self)

    def _repr_html_(self) -> str:
        return table_html(
            ("transitions", "episodes", "mean return"), [(self.transitions, self.episodes, self.mean_return)]
        )


@dataclass(frozen=True)
class CollectPlan:
    """What collecting would do."""

    environment: str
    policy: str
    steps: int

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        return (f"environment: {self.environment}", f"policy: {self.policy}", f"{self.steps:,} transitions")


@dataclass(frozen=True)
class TrainedPolicy:
    """One policy. value: mean target of the critics in the last step. spread: of the nominal model over its error.

    few: share of pairs, of every eighth step, whose worst mean rested on fewer than five samples. curve: (step, value). nan
    where there is none.
    """

    file: str
    seed: int
    value: float
    alpha: float
    spread: float
    few: float
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class ControlTraining:
    """Trained policies; folder is None without one. most: what no value can exceed, of the largest reward and of entropy.

    covered: the least share of an action's range in the logs. delta: nan for sac.
    """

    method: str
    data: str
    transitions: int
    episodes: int
    terminated: int
    covered: float
    most: float
    delta: float
    policies: tuple[TrainedPolicy, ...]
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: values that diverge, a ball around a point, narrow logs."""
        found = []
        room = 0.05 * abs(self.most)
        if high := [each.file for each in self.policies if each.value > self.most + room]:
            found.append(
                f"The values of {', '.join(high)} exceed what any rewards in the logs and entropy can sum to "
                f"({number(self.most)}): they diverge. Give logs that cover more, or a behavior_weight."
            )
        if not math.isnan(self.delta) and any(math.isnan(each.spread) for each in self.policies):
            found.append(
                "The nominal model's samples neither spread nor err: a ball around a point holds nothing else."
            )
        if points := [each for each in self.policies if each.spread < POINT]:
            found.append(
                f"The nominal model's samples spread {points[0].spread:.2f} times as much as it errs: a ball around a point "
                "holds nothing else, and these policies are nearly SAC's. Try --vae-loss sum, or --nominal gaussian."
            )
        if any(each.spread > WIDE for each in self.policies):
            found.append(
                "The nominal model's samples spread more than three times as much as it errs: it has learnt too little, and "
                "the worst mean is of its noise. Raise nominal_steps."
            )
        if any(each.few > FEW for each in self.policies):
            found.append(
                "Many worst means rest on fewer than five samples: what is feared is the worst draw. Raise samples, or "
                "lower delta."
            )
        if self.covered < NARROW:
            found.append(
                f"Some action covers only {self.covered:.1%} of its range in the logs: values elsewhere are extrapolated."
            )
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        values = ", ".join(number(each.value) for each in self.policies)
        ball = "" if math.isnan(self.delta) else f" with delta {self.delta:g}"
        count = f"{len(self.policies)} {'policy' if len(self.policies) == 1 else 'policies'}"
        done = f"{count} of {self.method}{ball} on {self.transitions:,} logged steps; "
        return " ".join((*self.warnings(), done + f"mean value in the logs {values}."))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        lines = [
            f"{each.file}: value {number(each.value)}, temperature {number(each.alpha)}, spread {number(each.spread)}"
            for each in self.policies
        ]
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.control.page import training_page

        return training_page(self)

    def _repr_html_(self) -> str:
        rows = [(each.file, each.value, each.alpha, each.spread) for each in self.policies]
        return table_html(("policy", "value", "temperature", "spread"), rows)


@dataclass(frozen=True)
class TrainPlan:
    """What training would do."""

    method: str
    data: str
    transitions: int
    episodes: int
    terminated: int
    observations: int
    actions: int
    steps: int
    nominal_steps: int
    seeds: int

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        return (
            f"data: {self.data}, {self.transitions:,} transitions of {self.observations} observations and {self.actions} "
            f"actions; {self.episodes:,} ends of episodes, {self.terminated:,} of them terminal",
            f"{self.method}: {self.seeds} times {self.steps:,} steps, after {self.nominal_steps:,} of the nominal model",
        )


@dataclass(frozen=True)
class Level:
    """Returns at one level of a perturbation. mean: over policies and starts. iqm: the middle half's mean.

    lowest, highest: the quantiles at 0.1 and 0.9 of all episodes.
    """

    name: str
    level: float
    mean: Bounded
    iqm: Bounded
    lowest: float
    highest: float


@dataclass(frozen=True)
class ControlEvaluation:
    """Returns by folder and level; folder is None without one. gains: of the first folder over each other, at each level.

    validated: mean return under the validation perturbations; chosen: the folder that is best there, "" for none.
    trajectories: the first component of what was seen in one episode. unmoved: changes under which no return was another.
    """

    environment: str
    episodes: int
    policies: Mapping[str, int]
    levels: Mapping[str, tuple[Level, ...]]
    gains: Mapping[str, tuple[tuple[str, float, Bounded], ...]]
    validated: Mapping[str, float]
    validation: tuple[str, ...]
    chosen: str
    trajectories: Mapping[str, tuple[float, ...]]
    unmoved: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        found, fewest = [], min(self.policies.values())
        if fewest < 3:
            found.append(
                f"Of some folder there {'is' if fewest == 1 else 'are'} only {fewest} "
                f"{'policy' if fewest == 1 else 'policies'}: intervals say little about another training. "
                "Train more seeds."
            )
        if self.unmoved:
            found.append(
                f"Under {', '.join(self.unmoved)} every return is what it is without: the environment may not read that "
                "parameter, and nothing was tested by it."
            )
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        run = self.chosen or next(iter(self.levels))
        found = min(self.levels[run], key=lambda each: each.mean.value)
        best = max(self.levels[run], key=lambda each: each.mean.value)
        picked = f"{self.chosen} is chosen by {', '.join(self.validation)}. " if self.chosen else ""
        return " ".join(
            (
                *self.warnings(),
                f"{picked}{run}: mean return {number(best.mean.value)} at best ({best.name}={best.level:g}) and "
                f"{number(found.mean.value)} at worst ({found.name}={found.level:g}), of {self.episodes} starts a level.",
            )
        )

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: a line a level, the headline."""
        lines = []
        for run, levels in self.levels.items():
            lines.append(f"{run}:")
            lines += [f"  {each.name}={each.level:g}: {shown(each.mean)}" for each in levels]
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.control.page import evaluation_page

        return evaluation_page(self)

    def _repr_html_(self) -> str:
        rows = [(run, each.name, each.level, shown(each.mean)) for run, all in self.levels.items() for each in all]
        return table_html(("policies", "perturbation", "level", "mean return"), rows)


@dataclass(frozen=True)
class EvaluatePlan:
    """What an evaluation would do."""

    environment: str
    policies: Mapping[str, int]
    levels: tuple[str, ...]
    episodes: int

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        found = ", ".join(f"{count} of {name}" for name, count in self.policies.items())
        return (
            f"environment: {self.environment}",
            f"policies: {found}",
            f"levels: {', '.join(self.levels)}",
            f"{self.episodes:,} episodes",
        )


def shown(value: Bounded) -> str:
    """A number with its interval, where there is one."""
    if math.isnan(value.lower):
        return number(value.value)
    return f"{number(value.value)} [{number(value.lower)}, {number(value.upper)}]"
