"""What fitting and using a scorer come to. Loads no torch and no numpy, so that a page can be drawn from a stored folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.core.job import Page, table_html
from equipoise.core.serialize import LIVE
from equipoise.core.shares import Bounded
from equipoise.reinforcement.result import shown, signed

CRITIC, RAW, CONSTANT, LENGTH = "critic", "critic, not calibrated", "mean rate", "prompt length"
MUCH_OUTSIDE = 0.1  # share of new prompts


@dataclass(frozen=True, slots=True)
class Bin:
    """Problems whose prediction lies in (lower, upper]: how many, the mean prediction, and the mean rate that came."""

    lower: float
    upper: float
    count: int
    predicted: float
    came: Bounded


@dataclass(frozen=True, slots=True)
class Coverage:
    """The mean solve rate of the surest problems where so many (a share) are kept, and of an oracle that knows the rates."""

    coverage: float
    rate: Bounded
    oracle: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold that was chosen for a target, and the share and the rate of the test problems above it; nan: none."""

    target: float
    threshold: float
    coverage: Bounded
    rate: Bounded


@dataclass(frozen=True, slots=True)
class Scored:
    """A problem with what was predicted and what came, and one of its responses."""

    id: str
    prompt: str
    gold: str
    response: str
    predicted: float
    rate: float


@dataclass(frozen=True)
class Solvable:
    """A scorer of prompts that was fitted, calibrated and tested; folder is None without one.

    measures: predictor -> measure -> its value on the test problems. gains: control -> measure -> how much lower the
    critic's is. solved: the mean rate of the test problems. floor: the Brier score of the true rates, estimated.
    path: the loss on the problems for stopping, at each look. kept_step: whose weights were kept. slope, intercept: of the
    calibration. spread: lowest and highest prediction for the test problems. tokens: generated. calls: of a server.
    """

    names: Mapping[str, str]
    source: str
    settings: Mapping[str, Any]
    problems: Mapping[str, int]
    solved: Bounded
    floor: float
    measures: Mapping[str, Mapping[str, Bounded]]
    gains: Mapping[str, Mapping[str, Bounded]]
    slope: float
    intercept: float
    spread: tuple[float, float]
    bins: tuple[Bin, ...]
    coverages: tuple[Coverage, ...]
    thresholds: tuple[Threshold, ...]
    surprises: tuple[Scored, ...]
    path: tuple[Mapping[str, float], ...]
    steps: int
    kept_step: int
    critic_parameters: int
    tokens: int
    calls: int
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: it predicts nothing, or nothing but length."""
        found = []
        constant, length = self.gains[CONSTANT]["Brier"], self.gains[LENGTH]["Brier"]
        if not constant.lower > 0:
            found.append(
                f"The critic {_less(constant)} than the mean solve rate alone: its Brier score is lower by "
                f"{signed(constant)}. {self._remedy()}"
            )
        elif not length.lower > 0:
            found.append(
                f"The critic {_less(length)} than the length of the prompt alone: its Brier score is lower by "
                f"{signed(length)}. A threshold on the length may do the same, without a model."
            )
        return tuple(found)

    def _remedy(self) -> str:
        constant = self.measures[CONSTANT]["Brier"].value
        if constant - self.floor <= 0.02 * constant:
            return (
                "As far as these samples tell, the prompts hardly differ in how often they are solved, so that there is "
                "little to predict: use prompts of more kinds, or more and less difficult ones."
            )
        return (
            "Use more prompts, more samples a prompt, more epochs, a larger critic, or prompts that differ more in how "
            "difficult they are."
        )

    def headline(self) -> str:
        """One sentence, warnings first."""
        own, constant = self.measures[CRITIC], self.measures[CONSTANT]
        done = (
            f"Whether {Path(self.names['model']).name} solves one of {self.problems['test']:,} new problems at one try: "
            f"Brier score {own['Brier'].value:.3f} against {constant['Brier'].value:.3f} of the mean rate alone, lower by "
            f"{signed(self.gains[CONSTANT]['Brier'])}; AUROC {_known(own['AUROC'])}."
        )
        return " ".join((*self.warnings(), done))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: warnings, each predictor's measures, the thresholds, the headline."""
        width = max(map(len, self.measures))
        lines = [*self.warnings()]
        lines.append(f"solved at one try: {shown(self.solved)} of the test problems")
        for name, found in self.measures.items():
            values = "  ".join(f"{measure} {value.value:.3f}" for measure, value in found.items())
            lines.append(f"{name:<{width}}  {values}")
        for each in self.thresholds:
            lines.append(f"to solve {each.target:.0%} of what is kept: {kept_by(each)}")
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.reinforcement.solvable_page import fit_page

        return fit_page(self, folder)

    def _repr_html_(self) -> str:
        measures = tuple(self.measures[CRITIC])
        rows = [(name, *(shown(found[measure]) for measure in measures)) for name, found in self.measures.items()]
        return table_html(("", *measures), rows)


@dataclass(frozen=True)
class SolvablePlan:
    """What a fit would do: the problems as read, one as the critic reads it, and estimates.

    estimate: calls, tokens and dollars of a server, or tokens and seconds of a model here, at most.
    """

    model: str
    critic: str
    verifier: str
    problems: Mapping[str, int]
    settings: Mapping[str, Any]
    first: tuple[Mapping[str, Any], ...]
    shown: str
    critic_parameters: int
    estimate: str

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        import json

        lines = [f"asked: {self.model}", f"critic: {self.critic} ({self.critic_parameters:,} parameters)"]
        lines.append("problems: " + ", ".join(f"{count:,} {part}" for part, count in self.problems.items()))
        lines += ["the first:", *(f"  {json.dumps(problem, ensure_ascii=False)}" for problem in self.first)]
        lines.append(f"  as the critic reads it: {self.shown!r}")
        lines.append(f"verifier: {self.verifier}")
        lines.append("settings: " + ", ".join(f"{name}={value}" for name, value in self.settings.items()))
        return (*lines, f"estimate, at most: {self.estimate}")


@dataclass(frozen=True, slots=True)
class Target:
    """A threshold that reached a target on other problems (nan: none did), and the share of the new prompts above it."""

    target: float
    threshold: float
    share: float


@dataclass(frozen=True, slots=True)
class Predicted:
    """A prompt with the chance that the model solves it at one try."""

    id: str
    prompt: str
    probability: float


@dataclass(frozen=True)
class SolvableScores:
    """What a scorer says of new prompts, all of which is in scores.jsonl of the folder; folder is None without one.

    expected: the mean of the predictions, the share that the model should solve at one try. shares: probability -> share of
    the prompts that are predicted at least as high. outside: the share whose predictions lie beyond all those that the
    scorer was tested with. kept: how many prompts --keep left; None when it was not asked. extremes: the surest prompts and
    the least sure. doubts: what the scorer's own report warns of. scores: id -> probability, of the call itself alone.
    """

    names: Mapping[str, str]
    model: str
    prompts: int
    expected: float
    shares: Mapping[str, float]
    outside: float
    targets: tuple[Target, ...]
    kept: int | None
    keep: str | None
    extremes: tuple[Predicted, ...]
    doubts: tuple[str, ...]
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    scores: Any = field(default=None, compare=False, metadata=LIVE)

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: the scorer is none, these prompts are others, nothing is left."""
        found = [f"Of the scorer itself: {doubt}" for doubt in self.doubts]
        if self.outside > MUCH_OUTSIDE:
            found.append(
                f"{self.outside:.0%} of the prompts have predictions beyond all that the scorer was tested with: how "
                "right it is there is not known."
            )
        if self.kept == 0:
            found.append(f"No prompt has a prediction within {self.keep}: kept.jsonl is empty.")
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        kept = "" if self.kept is None else f" {self.kept:,} of them lie within {self.keep} and are in kept.jsonl."
        done = (
            f"Of {self.prompts:,} prompts {self.model} should solve {self.expected:.1%} at one try, by the scorer "
            f"{self.names['scorer']}.{kept}"
        )
        return " ".join((*self.warnings(), done))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: warnings, how predictions are spread, the scorer's thresholds, the headline."""
        lines = [*self.warnings()]
        lines.append("predicted at least: " + ", ".join(f"{p}: {share:.0%}" for p, share in self.shares.items()))
        for each in self.targets:
            lines.append(f"to solve {each.target:.0%} of what is kept: {_target(each)}")
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.reinforcement.solvable_page import score_page

        return score_page(self, folder)

    def _repr_html_(self) -> str:
        rows = [(p, f"{share:.0%}") for p, share in self.shares.items()]
        return table_html(("predicted at least", "share of the prompts"), rows, caption=self.headline())


@dataclass(frozen=True)
class ScoresPlan:
    """What a scoring would do: the prompts as read, and the first as the scorer reads it."""

    scorer: str
    model: str
    prompts: int
    tokens: int
    shown: str
    doubts: tuple[str, ...]

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        lines = [*self.doubts, f"scorer: {self.scorer}, of {self.model}"]
        lines.append(f"{self.prompts:,} prompts, {self.tokens:,} tokens; the first as the scorer reads it:")
        return (*lines, f"  {self.shown!r}")


def _known(value: Bounded) -> str:
    return f"{value.value:.3f}" if math.isnan(value.lower) else shown(value)


def _less(gain: Bounded) -> str:
    """What may be said of a gain whose interval is not above 0."""
    return "predicts worse" if gain.upper < 0 else "is not shown to predict better"


def kept_by(each: Threshold) -> str:
    """What a threshold does, in words."""
    if math.isnan(each.threshold):
        return "no threshold reached it"
    return f"p >= {each.threshold:.3f} keeps {shown(each.coverage)}, of which {shown(each.rate)} are solved"


def _target(each: Target) -> str:
    if math.isnan(each.threshold):
        return "no threshold reached it"
    return f"p >= {each.threshold:.3f} keeps {each.share:.0%} of these prompts"
