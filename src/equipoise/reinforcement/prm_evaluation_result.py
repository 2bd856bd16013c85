"""What weighing a process reward model comes to. Loads no torch, so that a page can be drawn from a stored folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.core.job import Page, table_html
from equipoise.core.serialize import LIVE
from equipoise.core.shares import Bounded
from equipoise.reinforcement.result import shown, signed

MODEL, ALWAYS, POSITION = "the model", "always right", "step position"
RANDOM, FIRST, ORACLE = "one at random", "the first", "any right one (oracle)"
OTHER_HALF = "best of the other half"
ALL, MEAN = "all", "mean"
UNCHOSEN = 0.5  # the threshold where the other half has nothing to choose one by


@dataclass(frozen=True, slots=True)
class FirstErrors:
    """How well the first wrong step is found, of a split or in the mean of the splits; each share in [0, 1], nan of none.

    predictor: the model or a control. rule: how the threshold was chosen, "" as given. thresholds: the given one, or that of
    each half, nan where the other half could not choose one (it is judged at 0.5). error_accuracy: of `errors` solutions how
    many have just the right step named; correct_accuracy: of `corrects` without an error how many have none named (of the
    mean both are over all solutions of its splits). data: the format that the solutions came in. left_out: of the mean,
    splits without wrong or without right solutions, which have no F1.
    """

    split: str
    predictor: str
    rule: str
    thresholds: tuple[float, ...]
    error_accuracy: float
    correct_accuracy: float
    f1: Bounded
    errors: int
    corrects: int
    data: str = ""
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ErrorClass:
    """How well the steps of a class of errors are told apart, as PRMBench counts it; nan where there is nothing to count.

    f1: of right steps; negative_f1: of wrong ones; score: the mean of both, of solutions without wrong steps f1 alone.
    right, wrong: how many steps are. Otherwise as `FirstErrors`.
    """

    name: str
    predictor: str
    rule: str
    thresholds: tuple[float, ...]
    f1: float
    negative_f1: float
    score: Bounded
    right: int
    wrong: int


@dataclass(frozen=True, slots=True)
class Discrimination:
    """AUROC of steps: the chance that a right one is scored above a wrong one. data: the format that the solutions came in.

    position: of the control that knows only which step it is, on the same steps; gain: the model's minus that. unread: steps
    with a label for which the model had no room.
    """

    data: str
    split: str
    model: Bounded
    position: Bounded
    gain: Bounded
    right: int
    wrong: int
    unread: int


@dataclass(frozen=True, slots=True)
class BestOf:
    """The share of problems whose chosen solution is right. how: the aggregate of its steps' scores, or a control."""

    how: str
    solved: Bounded


@dataclass(frozen=True, slots=True)
class Misjudged:
    """A step whose score is far from its label. at: which of its solution, from 0."""

    id: str
    problem: str
    at: int
    step: str
    right: bool
    probability: float


@dataclass(frozen=True)
class PrmEvaluation:
    """A process reward model weighed on solutions whose steps are labelled; folder is None without one.

    trained: whether the model came with the tokens of steps; if not, they were added in memory, and it is a floor. spread:
    highest score minus lowest. first_errors, classes, discrimination, best_of: see there; empty where the data has nothing
    for them. chosen_from: problems and solutions behind best_of. beyond: wrong steps that the data names and no solution
    has. scores: id -> a score for each step, of the call itself alone.
    """

    names: Mapping[str, str]
    source: str
    trained: bool
    threshold: float
    solutions: Mapping[str, int]
    steps: int
    unread: int
    beyond: int
    spread: float
    first_errors: tuple[FirstErrors, ...]
    classes: tuple[ErrorClass, ...]
    discrimination: tuple[Discrimination, ...]
    best_of: tuple[BestOf, ...]
    chosen_from: Mapping[str, int]
    misjudged: tuple[Misjudged, ...]
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    scores: Any = field(default=None, compare=False, metadata=LIVE)

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: nothing was learnt, or no more than where a step stands."""
        found = []
        if not self.trained:
            found.append(
                f"{self.names['model']} is no process reward model: [PRM], [POS] and [NEG] were added in memory, nothing "
                "was learnt, and every score is 0.5 whatever it reads. What follows is a floor, not a result."
            )
        elif self.spread == 0:
            found.append("All scores are alike: the model tells no step from another.")
        else:
            for each in self.discrimination:
                if each.split == ALL and not at_least(each.gain) > 0 and not math.isnan(each.model.value):
                    found.append(
                        f"On {each.data} the model is not shown to tell right steps from wrong ones better than their "
                        f"position alone does: AUROC {shown(each.model)}, higher by {difference(each.gain)}."
                    )
        if self.unread:
            found.append(
                f"{self.unread:,} of {self.steps:,} steps do not fit into the model's context: they count as missed."
            )
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        said = [
            f"first-error F1 {shown(each.f1)} at {self.threshold:g} ({each.data}{_without(each)})"
            for each in self._of_all_splits()
            if (each.predictor, each.rule) == (MODEL, "")
        ]
        said += [
            f"PRMScore {shown(each.score)} at {self.threshold:g}"
            for each in self.classes
            if (each.predictor, each.rule, each.name) == (MODEL, "", ALL)
        ]
        said += [f"AUROC {shown(each.model)} ({each.data})" for each in self.discrimination if each.split == ALL]
        count = sum(self.solutions.values())
        measured = "; ".join(said) or "best of N alone"
        done = f"{self.names['model']} on {count:,} solutions of {self.names['data']}: {measured}."
        return " ".join((*self.warnings(), done))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: first errors, classes, AUROC, best of N, the headline."""
        whole = self._of_all_splits()
        lines = [
            f"{each.data} {of_split(each)}: first-error F1 {shown(each.f1)}  {each.predictor}, "
            f"{rule(each, self.threshold)}"
            for each in self.first_errors
            if each in whole or (each.predictor, each.rule) == (MODEL, "")
        ]
        lines += [
            f"{each.name}: PRMScore {shown(each.score)}  {each.predictor}, {rule(each, self.threshold)}"
            for each in self.classes
            if each.name == ALL
        ]
        lines += [
            f"{each.data} {each.split}: AUROC {shown(each.model)}, of the position {shown(each.position)}"
            for each in self.discrimination
        ]
        lines += [f"best of N, {each.how}: {shown(each.solved)} solved" for each in self.best_of]
        return (*lines, self.headline())

    def _of_all_splits(self) -> list[FirstErrors]:
        """The rows of the mean, of a data set with one split those of it: the last of each predictor."""
        last = {each.data: each.split for each in self.first_errors}
        return [each for each in self.first_errors if each.split == last[each.data]]

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.reinforcement.prm_evaluation_page import evaluation_page

        return evaluation_page(self)

    def _repr_html_(self) -> str:
        rows = [(f"{each.data} {each.split}", shown(each.model), shown(each.position)) for each in self.discrimination]
        return table_html(("AUROC of steps", MODEL, POSITION), rows, caption=self.headline())


@dataclass(frozen=True)
class PrmEvaluationPlan:
    """What an evaluation would do: solutions as read, and the first as the model reads it."""

    model: str
    trained: bool
    solutions: Mapping[str, int]
    steps: int
    unread: int
    tokens: int
    shown: str

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        lines = [self.model]
        if not self.trained:
            lines.append("no process reward model: the tokens would be added in memory, and every score be 0.5")
        lines += [f"{name}: {count:,} solutions" for name, count in self.solutions.items()]
        lines.append(f"{self.steps:,} steps, {self.tokens:,} tokens; {self.unread:,} steps do not fit into the context")
        return (*lines, "the first as the model reads it:", f"  {self.shown!r}")


def rule(row: FirstErrors | ErrorClass, threshold: float) -> str:
    """How steps were called right or wrong, in words."""
    if row.predictor == ALWAYS:
        return "at any threshold"
    if not row.rule:
        return f"at {threshold:g}"
    chosen = (f"{UNCHOSEN:.3f}, none could be chosen" if math.isnan(at) else f"{at:.3f}" for at in row.thresholds)
    return f"{row.rule} ({' and '.join(chosen)})"


def of_split(row: FirstErrors) -> str:
    """Which solutions a row is of."""
    return f"{row.split or ALL}{_without(row)}"


def _without(row: FirstErrors) -> str:
    return f" without {', '.join(row.left_out)}" if row.left_out else ""


def difference(value: Bounded) -> str:
    """A difference, with its interval where there is one."""
    return f"{value.value:+.3f}" if math.isnan(value.lower) else signed(value)


def at_least(value: Bounded) -> float:
    """The lower end of its interval, or the value itself where there are too few problems for one."""
    return value.value if math.isnan(value.lower) else value.lower
