"""What scoring and selecting come to. Loads no torch and no numpy, so that a page can be drawn again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from equipoise.core.job import Page, table_html
from equipoise.core.shares import Bounded, shown

LENGTH = "length"
SEMANTIC = "semantic_entropy"
ENOUGH = 50  # labelled answers of which an interval is given


@dataclass(frozen=True, slots=True)
class Detection:
    """How well a score tells right from wrong. within: AUROC among answers of like length. half: of the surest, right."""

    auroc: Bounded
    auprc: Bounded
    within: float
    half: float


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Answers with a confidence of at least `value` are accepted: `accepted` of `of` here, `wrong` of them wrong.

    upper: bound of the share of wrong ones among new accepted answers. value is infinite where nothing is safe.
    """

    value: float
    risk: float
    certainty: float
    of: int
    accepted: int
    wrong: int
    upper: float


@dataclass(frozen=True)
class TokenScores:
    """Every token of some answers with its uncertainty, in scores.jsonl of the folder; folder is None without one.

    labelled: answers known to be right or wrong, to so many `questions`. left_out: answers that could not be scored, by id,
    with the reason. share: mean EU by mean TU. agreement: share of likeliest tokens that noise left as they were. chosen:
    whether sigma was chosen on these answers; reached: whether it then came to the share that was aimed at. curve: coverage
    and risk of the score `by`, and of length.
    """

    model: str
    source: str
    answers: int
    tokens: int
    labelled: int
    left_out: Mapping[str, str]
    by: str
    members: int
    sigma: float
    chosen: bool
    reached: bool
    share: float
    agreement: float
    end: bool
    right: Bounded
    detection: Mapping[str, Detection]
    acceptance: Acceptance | None
    curve: Mapping[str, tuple[tuple[float, float], ...]]
    questions: int = 0
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        found = []
        if self.labelled and not self.detection:
            found.append(
                f"All {self.labelled:,} labelled answers are {'right' if self.right.value else 'wrong'}, so no score can "
                "be seen to tell right from wrong."
            )
        if self.acceptance is not None and self.acceptance.accepted and self.questions < self.labelled:
            found.append(
                f"The threshold counts {self.labelled:,} answers as independent, but they answer {self.questions:,} "
                "questions: it is less certain than it says. Give one answer to each question."
            )
        if self.left_out:
            name, reason = next(iter(self.left_out.items()))
            found.append(f"{len(self.left_out)} answers were not scored, the first of them {name}: {reason}")
        if self.chosen and not self.reached:
            found.append(
                "No sigma reached the share of epistemic uncertainty that is aimed at without changing what is said: at "
                f"{self.sigma:g} it is {self.share:.1%}, and {self.agreement:.1%} of the likeliest tokens stay."
            )
        if not self.share > 0:
            found.append("The noise changed nothing: EU is 0 everywhere. Use a larger sigma, and at least 2 members.")
        if self.detection and self.by != LENGTH:
            own, length = self.detection[self.by].auroc, self.detection[LENGTH].auroc
            if own.value <= length.value:
                found.append(f"{self.by} ranks no better than the length of the answer alone.")
        if self.acceptance is not None and not self.acceptance.accepted:
            found.append(
                f"With {self.acceptance.of} labelled answers no threshold is shown to keep errors to "
                f"{self.acceptance.risk:g}: give more answers, or allow a higher risk."
            )
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        done = f"{self.tokens:,} tokens of {self.answers:,} answers are scored."
        if self.detection:
            done += (
                f" AUROC of {self.by} {shown(self.detection[self.by].auroc)}, among answers of like length "
                f"{number(self.detection[self.by].within)}; of length alone {shown(self.detection[LENGTH].auroc)}."
            )
        return " ".join((*self.warnings(), done))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: warnings, a line a score, the threshold, the headline."""
        lines = [*self.warnings()]
        for name, each in self.detection.items():
            lines.append(f"{name}: AUROC {shown(each.auroc)}, among answers of like length {number(each.within)}")
        if self.acceptance is not None and self.acceptance.accepted:
            lines.append(f"threshold: {told(self.acceptance, self.by)}")
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.uncertainty.token_page import scores_page

        return scores_page(self, folder)

    def _repr_html_(self) -> str:
        rows = [(name, shown(each.auroc), number(each.within)) for name, each in self.detection.items()]
        return table_html(("score", "AUROC", "among like lengths"), rows, self.headline())


@dataclass(frozen=True)
class ScorePlan:
    """What scoring would do. passes: forward passes, the first over prompt and answer, the others over the answer alone."""

    model: str
    answers: int
    labelled: int
    tokens: int
    left_out: Mapping[str, str]
    maps: int
    passes: int

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        lines = [f"{name} would not be scored: {reason}" for name, reason in list(self.left_out.items())[:3]]
        return (
            *lines,
            f"{self.model} would read {self.answers:,} answers ({self.labelled:,} labelled, {self.tokens:,} tokens) in "
            f"{self.passes} passes, with noise on {self.maps} linear maps.",
        )


@dataclass(frozen=True)
class Selection:
    """One answer to each question, in selected.jsonl of the folder, and what choosing came to where answers are labelled.

    chosen: the share of right answers of the selection; consistency: of a vote of all; surest: of the surest alone;
    average: of an answer drawn at random; best: of questions with at least one right answer. gain: chosen - consistency.
    """

    by: str
    keep: float
    vote: str
    questions: int
    answers: int
    labelled: int
    chosen: Bounded
    consistency: Bounded
    surest: Bounded
    average: Bounded
    best: Bounded
    gain: Bounded
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        found = []
        if self.answers == self.questions:
            found.append("Every question has a single answer, so there was nothing to choose.")
        if self.labelled and not self.gain.lower > 0:
            found.append(f"A plain vote of all answers is not shown to be worse than the selection by {self.by}.")
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        done = f"One of {self.answers:,} answers is chosen for each of {self.questions:,} questions."
        if self.labelled:
            of = "" if self.labelled == self.questions else f" of the {self.labelled:,} whose answers are all labelled"
            done += f" Right{of}: {shown(self.chosen)}; by a vote of all {shown(self.consistency)}."
        return " ".join((*self.warnings(), done))

    def rows(self) -> list[tuple[str, Bounded]]:
        """What each way of choosing comes to."""
        return [
            (f"selection by {self.by}", self.chosen),
            ("vote of all answers", self.consistency),
            ("the surest answer", self.surest),
            ("an answer at random", self.average),
            ("a right one, where there is one", self.best),
        ]

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        lines = [f"{name}: {shown(value)} right" for name, value in self.rows()] if self.labelled else []
        return (*self.warnings(), *lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.uncertainty.token_page import selection_page

        return selection_page(self)

    def _repr_html_(self) -> str:
        return table_html(("answers", "right"), [(name, shown(value)) for name, value in self.rows()], self.headline())


@dataclass(frozen=True)
class SelectPlan:
    """What selecting would do."""

    questions: int
    answers: int
    by: str

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        return (
            f"Of {self.answers:,} answers one would be chosen for each of {self.questions:,} questions, by {self.by}.",
        )


def number(value: float) -> str:
    """Three digits, or "undefined"."""
    return "undefined" if math.isnan(value) else f"{value:.3f}"


def told(acceptance: Acceptance, by: str) -> str:
    """A threshold in words."""
    if not acceptance.accepted:
        return "none is safe"
    return (
        f"accept where {by} is at least {acceptance.value:.5g}: {acceptance.accepted:,} of {acceptance.of:,} answers here, "
        f"{acceptance.wrong:,} of them wrong; of new ones at most {acceptance.upper:.3f} are, with certainty "
        f"{acceptance.certainty:g}"
    )
