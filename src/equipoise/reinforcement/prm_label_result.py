"""What labelling steps comes to. Loads no torch and no numpy, so that a page can be drawn from a stored folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.core.files import read_regular
from equipoise.core.job import Page, table_html
from equipoise.core.serialize import LIVE
from equipoise.core.shares import Bounded
from equipoise.reinforcement.result import shown, signed

LABELS, COMPLETIONS = "labels.jsonl", "completions.jsonl"
RULES, NONE = "rules", "none"
HARD, SOFT = "hard", "soft"
MUCH = 0.2  # share of completions without an outcome, or of a judge's answers that cannot be used


@dataclass(frozen=True, slots=True)
class LabelPlace:
    """The steps of one place in their solutions: how many, and the shares of positive and means of soft labels.

    place: from 1; the last stands for all from there on where `more`.
    """

    place: int
    more: bool
    steps: int
    hard: float
    corrected_hard: float
    soft: float
    corrected_soft: float


@dataclass(frozen=True, slots=True)
class RemovedSuccess:
    """A success that a judge removed. step: its number from 1; added: the step of the completion that is quoted."""

    solution: str
    step: int
    text: str
    completion: int
    added: str
    quote: str


@dataclass(frozen=True, slots=True)
class LabeledStep:
    """A step with its labels. successes: of `samples` completions, before and after correction."""

    solution: str
    step: int
    text: str
    successes: int
    corrected: int


@dataclass(frozen=True)
class StepLabels:
    """The labels of all steps, which are in labels.jsonl of the folder; folder is None without one.

    before, after: hard -> share of positive labels, soft -> mean label, with intervals over problems. lowered: by how much
    correction lowered each. correct: the share of solutions with the right answer. successes: completions that reached the
    gold answer; removed: those of them that the judge took out. unjudged: why completions have no outcome -> how many;
    they count as failures. left_out: why solutions of the model were not labelled -> how many. rises: steps with a positive
    hard label right behind one with a negative one, of `pairs`, before and after. judged: what came of the judge's answers.
    cost: what it took, in numbers with units.
    """

    names: Mapping[str, str]
    source: str
    settings: Mapping[str, Any]
    problems: int
    solutions: int
    steps: int
    correct: Bounded
    before: Mapping[str, Bounded]
    after: Mapping[str, Bounded]
    lowered: Mapping[str, Bounded]
    rises: tuple[int, int]
    pairs: int
    completions: int
    successes: int
    removed: int
    unjudged: Mapping[str, int]
    left_out: Mapping[str, int]
    judged: Mapping[str, int]
    places: tuple[LabelPlace, ...]
    examples: tuple[RemovedSuccess, ...]
    solution_shown: tuple[LabeledStep, ...]
    cost: Mapping[str, float]
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    rows: Any = field(default=None, compare=False, repr=False, metadata=LIVE)

    def labels(self) -> list[dict[str, Any]]:
        """The rows of labels.jsonl: of this call, or read from the folder."""
        if self.rows is not None or self.folder is None:
            return list(self.rows or ())
        return [json.loads(line) for line in read_regular(self.folder / LABELS).splitlines()]

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: the labels say nothing, outcomes are missing, the judge is no use."""
        found = []
        if self.completions and not self.successes:
            found.append(
                "Not one completion reached the gold answer, so that a step is labelled right only where it ends a right "
                "solution: use easier problems, a stronger model, more samples, or look whether the verifier understands "
                "the answers."
            )
        elif self.completions and self.successes == self.completions:
            found.append(
                "Every completion reached the gold answer, so that every step is labelled right: use harder problems."
            )
        unjudged = sum(self.unjudged.values())
        if unjudged > MUCH * self.completions:
            why = ", ".join(f"{count:,} {reason}" for reason, count in self.unjudged.items())
            found.append(
                f"{unjudged:,} of {self.completions:,} completions have no outcome and count as failures ({why}): raise "
                "max_new_tokens where they were cut, or use another verifier where no answer was found."
            )
        unusable = sum(count for what, count in self.judged.items() if what != "asked")
        if unusable > MUCH * self.judged.get("asked", 0):
            found.append(
                f"{unusable:,} of {self.judged['asked']:,} answers of the judge could not be used, which leaves successes "
                "by repair among the labels: use a stronger judge, or rules."
            )
        if self.left_out:
            why = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
            found.append(f"Solutions of the model that were not labelled: {why}.")
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        positive = f"{self.before[HARD].value:.1%} of {self.steps:,} steps are labelled right by completions"
        if self.names["judge"] == NONE:
            done = f"{positive}; no judge corrected them."
        else:
            done = (
                f"{positive}, {self.after[HARD].value:.1%} after correction: the judge removed {self.removed:,} of "
                f"{self.successes:,} successes."
            )
        return " ".join((*self.warnings(), done))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: warnings, both labels before and after, what it cost, the headline."""
        lines = [*self.warnings()]
        lines.append(f"{self.solutions:,} solutions of {self.problems:,} problems, {shown(self.correct)} right")
        for name, what in ((HARD, "labelled right"), (SOFT, "mean soft label")):
            lines.append(
                f"{what:<15}  {shown(self.before[name])} -> {shown(self.after[name])}  "
                f"lowered by {signed(self.lowered[name])}"
            )
        lines.append("cost: " + ", ".join(f"{value:,.10g} {what}" for what, value in self.cost.items()))
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.reinforcement.prm_label_page import label_page

        return label_page(self, folder)

    def _repr_html_(self) -> str:
        rows = [(name, shown(self.before[name]), shown(self.after[name])) for name in (HARD, SOFT)]
        return table_html(("labels", "before correction", "after"), rows, caption=self.headline())


@dataclass(frozen=True)
class LabelPlan:
    """What a labelling would do: what was read, one beginning as the model reads it, and estimates."""

    model: str
    judge: str
    verifier: str
    problems: int
    solutions: int
    given: int
    settings: Mapping[str, Any]
    first: tuple[Mapping[str, Any], ...]
    shown: str
    estimate: str
    judge_estimate: str

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        lines = [f"model: {self.model}", f"judge: {self.judge}", f"verifier: {self.verifier}"]
        lines.append(
            f"{self.problems:,} problems; {self.solutions:,} solutions, of which {self.given:,} are given and the model "
            "writes the others"
        )
        lines += ["the first:", *(f"  {json.dumps(problem, ensure_ascii=False)}" for problem in self.first)]
        lines.append(f"  as the model reads it: {self.shown!r}")
        lines.append("settings: " + ", ".join(f"{name}={value!r}" for name, value in self.settings.items()))
        bound = "at most" if self.given == self.solutions else "about"  # how long those will be that the model writes
        lines.append(f"estimate, {bound}: {self.estimate}")
        return (*lines, f"the judge, {bound}: {self.judge_estimate}") if self.judge_estimate else lines
