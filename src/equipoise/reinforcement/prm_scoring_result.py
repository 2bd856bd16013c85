"""What scoring steps comes to. Loads no torch, so that a page can be drawn again from a stored folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.core.job import Page, table_html
from equipoise.core.serialize import LIVE
from equipoise.core.terminal import one_line

ALIKE = 1e-3  # scores that all lie within say nothing


@dataclass(frozen=True, slots=True)
class ScoredStep:
    """A step with the probability that it is right. at: which of its solution, from 0."""

    id: str
    problem: str
    at: int
    step: str
    probability: float


@dataclass(frozen=True)
class StepScores:
    """What a process reward model says of steps, all of which is in the folder; folder is None without one.

    steps: of all solutions; unread: for which the model had no room. mean, spread (highest minus lowest): of the scores.
    shares: probability -> share of the steps that are scored at least as high. by_place: mean score of the first steps, the
    second, ...; nan where there are none. flagged: solutions with a step below the threshold. lowest: steps with the lowest
    scores. scores: id -> a score for each step, of the call itself alone.
    """

    names: Mapping[str, str]
    source: str
    format: str
    solutions: int
    steps: int
    unread: int
    mean: float
    spread: float
    shares: Mapping[str, float]
    by_place: tuple[float, ...]
    threshold: float | None
    flagged: int | None
    lowest: tuple[ScoredStep, ...]
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    scores: Any = field(default=None, compare=False, metadata=LIVE)

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: all scores are alike, or steps were not read."""
        found = []
        if self.spread < ALIKE:
            found.append(
                f"All scores are alike ({self.mean:.3f}): the model tells no step from another. Was it trained by prm train?"
            )
        if self.unread:
            found.append(
                f"{self.unread:,} of {self.steps:,} steps do not fit into the model's context and have no score; "
                + ("they are left out of stepwise.jsonl." if self.format == "trl" else "their score is null.")
            )
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        done = (
            f"{self.steps:,} steps of {self.solutions:,} solutions: by {self.names['model']} a step is right with a "
            f"probability of {self.mean:.3f} in the mean."
        )
        if self.threshold is not None:
            done += f" {self.flagged:,} solutions have a step below {self.threshold:g}."
        if self.format == "trl":
            done += f" In stepwise.jsonl a step is labelled right from {self.threshold:g} on."
        return " ".join((*self.warnings(), done))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: how scores are spread, the lowest, the headline."""
        lines = ["scored at least: " + ", ".join(f"{r}: {_percent(share)}" for r, share in self.shares.items())]
        for each in self.lowest[:3]:
            lines.append(f"{each.probability:.3f}  {each.id}, step {each.at}: {one_line(each.step, 80)}")
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.reinforcement.prm_scoring_page import score_page

        return score_page(self)

    def _repr_html_(self) -> str:
        rows = [(r, _percent(share)) for r, share in self.shares.items()]
        return table_html(("scored at least", "share of the steps"), rows, caption=self.headline())


@dataclass(frozen=True)
class StepScoresPlan:
    """What a scoring would do: solutions as read, and the first as the model reads it."""

    model: str
    solutions: int
    steps: int
    unread: int
    tokens: int
    shown: str

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        lines = [self.model, f"{self.solutions:,} solutions, {self.steps:,} steps, {self.tokens:,} tokens"]
        if self.unread:
            lines.append(f"{self.unread:,} of the steps do not fit into the model's context and would have no score")
        return (*lines, "the first as the model reads it:", f"  {self.shown!r}")


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.0%}"
