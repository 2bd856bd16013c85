"""What a Bayesian teacher and its student come to. Loads no torch and no numpy, so that a page can be drawn again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.core.job import Page, table_html
from equipoise.core.serialize import LIVE
from equipoise.core.shares import Bounded, shown

MLE, TEMPERATURE, TEACHER, STUDENT = "adapter", "adapter + temperature", "teacher", "student"
MEASURES = ("accuracy", "nll", "brier", "ece")
SURE = 0.999  # mean confidence on the training inputs, above which targets are hardly softer than labels
RANGE = 0.01, 100.0  # of temperatures
SAME = 1e-6  # difference of mean confidences, below which two predictions count as one


@dataclass(frozen=True, slots=True)
class Bin:
    """Items whose confidence falls into one of the equal bins: how many, their mean confidence, the share that is right."""

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class CalibrationCard:
    """One way to predict, on n tested inputs. passes: of the model for each input. confidence: the mean largest probability.

    brier: the mean over inputs of the sum over classes of squared errors. ece: over the bins of `bins`. gains: measure ->
    how much lower (of accuracy: higher) it is than the adapter's, on the same inputs. to_teacher: mean KL(teacher || this).
    """

    n: int
    passes: int
    confidence: float
    accuracy: Bounded
    nll: Bounded
    brier: Bounded
    ece: Bounded
    gains: Mapping[str, Bounded]
    to_teacher: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Tested:
    """cards: way to predict -> its calibration. temperature: fitted on `fitted_on` labelled inputs, not tested on."""

    cards: Mapping[str, CalibrationCard]
    temperature: float
    fitted_on: int

    def lines(self) -> list[str]:
        """A line for each way to predict."""
        width = max(map(len, self.cards), default=0)
        return [
            f"{name:<{width}}  {card.passes} passes  "
            + "  ".join(f"{measure} {shown(getattr(card, measure))}" for measure in MEASURES)
            for name, card in self.cards.items()
        ]

    def html(self) -> str:
        """A table of the cards, as results show themselves in a notebook."""
        rows = [
            (name, card.passes, *(shown(getattr(card, measure)) for measure in MEASURES))
            for name, card in self.cards.items()
        ]
        return table_html(("prediction", "passes", *MEASURES), rows)


@dataclass(frozen=True)
class Bayesianized:
    """A teacher; folder is None without one. confidence: mean largest probability on the inputs, before and under the draws.

    sigma: of TFB's noise, else nan; tried: sigma -> relative change of the NLL; edge: of the range at which it is, or "".
    precision: lambda of Laplace, else nan. tested: None where no labelled inputs to test on were given.
    """

    kind: str
    names: Mapping[str, str]
    source: str
    settings: Mapping[str, Any]
    classes: tuple[str, ...]
    inputs: int
    passes: int
    confidence: Mapping[str, float]
    sigma: float = math.nan
    tried: tuple[tuple[float, float], ...] = ()
    edge: str = ""
    precision: float = math.nan
    tested: Tested | None = None
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: no noise, noise at the edge of the range, targets hard as labels."""
        found = []
        if self.kind == "tfb" and self.sigma == 0:
            found.append(
                "Even the least noise changes the NLL by more than the tolerance: sigma is 0, and the teacher is the "
                "adapter itself. Give a smaller sigma_low."
            )
        elif self.kind == "tfb" and self.edge:
            found.append(
                f"sigma is at the {self.edge} edge of its range, {self.sigma:g}: the rule would go on. Widen the range."
            )
        elif abs(self.confidence[TEACHER] - self.confidence[MLE]) < SAME:
            found.append("The draws change nothing: the teacher is as sure as the adapter, and so a student would be.")
        if self.confidence[TEACHER] > SURE:
            found.append(
                f"On the inputs the teacher's mean confidence is {self.confidence[TEACHER]:.4f}: a student would learn what "
                "hard labels teach."
            )
        return (*found, *_worse(self.tested, TEACHER))

    def headline(self) -> str:
        """One sentence, warnings first."""
        how = {"tfb": f"TFB with sigma {self.sigma:.4g}", "laplace": f"Laplace with lambda {self.precision:.4g}"}
        done = (
            f"A teacher ({how.get(self.kind, self.kind)}) of {self.inputs:,} inputs: mean confidence on them "
            f"{self.confidence[MLE]:.3f} before, {self.confidence[TEACHER]:.3f} averaged over its draws."
        )
        return " ".join((*self.warnings(), done))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: warnings, a line for each way to predict, the headline."""
        return (*self.warnings(), *(self.tested.lines() if self.tested else ()), self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.uncertainty.bayes_page import teacher_page

        return teacher_page(self)

    def _repr_html_(self) -> str:
        return self.tested.html() if self.tested else f"<p>{self.headline()}</p>"


@dataclass(frozen=True)
class Distilled:
    """A student, an ordinary adapter in the folder; folder is None without one, and `student` the model that carries it:
    of one that was given as an object the same, with the adapter on it.

    divergence: its mean to the targets of the inputs, before and after training. gap: the largest difference of a class
    logit between the student and what was written, merged into its base; nan where nothing was written. confidence: mean
    largest probability on the inputs. moved: the share of its weights that training changed.
    """

    names: Mapping[str, str]
    source: str
    settings: Mapping[str, Any]
    classes: tuple[str, ...]
    inputs: int
    teacher: str
    teacher_passes: int
    steps: int
    divergence: Mapping[str, float]
    confidence: Mapping[str, float]
    moved: float
    gap: float = math.nan
    tested: Tested | None = None
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    student: Any = field(default=None, repr=False, compare=False, metadata=LIVE)

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: nothing learnt, or a student that is worse than the adapter."""
        found = []
        if not self.moved or not self.divergence["after"] < self.divergence["before"]:
            found.append("The student is no nearer to its teacher than it was: more steps, or another learning rate.")
        if self.confidence[TEACHER] > SURE:
            found.append(
                f"On the inputs the teacher's mean confidence is {self.confidence[TEACHER]:.4f}: its targets are hardly "
                "softer than labels."
            )
        return (*found, *_worse(self.tested, STUDENT))

    def headline(self) -> str:
        """One sentence, warnings first."""
        done = (
            f"One pass in place of {self.teacher_passes}: the student's divergence from its teacher went from "
            f"{self.divergence['before']:.4f} to {self.divergence['after']:.4f} nats on {self.inputs:,} inputs."
        )
        if self.tested:
            own, before = self.tested.cards[STUDENT], self.tested.cards[MLE]
            done += (
                f" On {own.n:,} tested inputs NLL {before.nll.value:.3f} -> {own.nll.value:.3f}, Brier "
                f"{before.brier.value:.3f} -> {own.brier.value:.3f}, ECE {before.ece.value:.3f} -> {own.ece.value:.3f}, "
                f"accuracy {before.accuracy.value:.3f} -> {own.accuracy.value:.3f}."
            )
        return " ".join((*self.warnings(), done))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: warnings, a line for each way to predict, the headline."""
        return (*self.warnings(), *(self.tested.lines() if self.tested else ()), self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.uncertainty.bayes_page import student_page

        return student_page(self)

    def _repr_html_(self) -> str:
        return self.tested.html() if self.tested else f"<p>{self.headline()}</p>"


def _worse(tested: Tested | None, name: str) -> list[str]:
    """Sentences for accuracy lost, NLL not lowered, and confidence below accuracy."""
    if tested is None:
        return []
    card, found = tested.cards[name], []
    if not RANGE[0] * 1.01 < tested.temperature < RANGE[1] / 1.01:
        found.append(
            f"The temperature is at the end of its range, {tested.temperature:.3g}, since {tested.fitted_on:,} labelled "
            "inputs do not decide it: it is no fair rival here."
        )
    if card.gains["accuracy"].upper < 0:
        found.append(f"The {name} is right less often than the adapter: {shown(card.gains['accuracy'])}.")
    if card.gains["nll"].upper < 0:
        found.append(f"The {name}'s NLL is higher than the adapter's, by {shown(_negated(card.gains['nll']))}.")
    if card.confidence < card.accuracy.lower:
        found.append(
            f"The {name} is under-confident: mean confidence {card.confidence:.3f}, accuracy {shown(card.accuracy)}. A "
            "lower ECE can come of that; look at NLL and Brier."
        )
    return found


def _negated(value: Bounded) -> Bounded:
    return Bounded(-value.value, -value.upper, -value.lower)


@dataclass(frozen=True)
class BayesPlan:
    """What a job would do. passes: of the model, forward, over all inputs; steps: of training."""

    source: str
    adapter: str
    what: str
    inputs: int
    tested: int
    classes: tuple[str, ...]
    shown: str
    passes: int
    steps: int

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        return (
            f"{self.source} Adapter: {self.adapter}",
            self.what,
            f"{self.inputs:,} inputs, {self.tested:,} to test on; classes {', '.join(map(repr, self.classes))}",
            f"the first, as it is read: {self.shown!r}",
            f"at most {self.passes:,} forward passes of one input, {self.steps:,} optimizer steps",
        )
