"""What composing a life comes to, with the leaks of its questions. Loads no numpy, so that a page can be drawn again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from equipoise.core.job import Page, table_html
from equipoise.core.options import check_fields
from equipoise.core.serialize import LIVE
from equipoise.core.shares import Share
from equipoise.data.histories import History

LeakKind = Literal["future option", "future evidence", "dated question", "answer in question"]
MANY_LEFT = 0.2  # share of flagged records after the repairs from which a reader is warned


@dataclass(frozen=True, slots=True)
class Gate:
    """What a gate came to. flagged: records with a problem at their first writing, of which some are inconsistent, repeated
    or unusable (a record may be several). left: still flagged after the repairs, and mended by rule.
    """

    step: str
    records: int
    flagged: int
    inconsistent: int
    repeated: int
    unusable: int
    left: int


@dataclass(frozen=True, slots=True)
class Leak:
    """One question that gives something away. text: what, with its place."""

    question: str
    kind: LeakKind
    text: str

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class LeakReport:
    """questions: that were looked through. longest, shortest: how often the only longest, or only shortest, option is the
    right one, of the questions that have one such; `chance` is one of the number of options. Intervals are clustered by the
    groups of questions.
    """

    questions: int
    leaks: tuple[Leak, ...]
    chance: float
    longest: Share
    shortest: Share

    @property
    def guessable(self) -> bool:
        """Whether length tells the right option more often than chance: the whole interval lies above it."""
        return self.longest.lower > self.chance or self.shortest.lower > self.chance

    def warnings(self, whose: str) -> tuple[str, ...]:
        """What gives answers away. whose: the questions, in words."""
        found = []
        by_kind: dict[str, int] = {}
        for leak in self.leaks:
            by_kind[leak.kind] = by_kind.get(leak.kind, 0) + 1
        if by_kind:
            counts = ", ".join(f"{count} {kind}" for kind, count in by_kind.items())
            found.append(f"Of {self.questions} {whose} some give their answer away: {counts}; see leaks.jsonl.")
        if self.guessable:
            found.append(
                f"Of the {whose} length tells the right option: the longest is right in {shown(self.longest)}, the "
                f"shortest in {shown(self.shortest)}, by chance {self.chance:.2f}."
            )
        return tuple(found)


@dataclass(frozen=True)
class ComposedHistory:
    """A life with questions, in lifelog.json of the folder; plan.jsonl has its periods and events. folder: None without one.

    kinds: questions by kind. gates: of every step. dropped: what could not be used, by reason. made, looked: what was found
    in the questions that were made, and in those of the file that was given. history: the life itself, where it was just
    made. sessions is 0 where nothing was composed.
    """

    names: Mapping[str, str]
    source: str
    days: int
    sessions: int
    turns: int
    words: int
    kinds: Mapping[str, int]
    gates: tuple[Gate, ...]
    dropped: Mapping[str, int]
    made: LeakReport | None
    looked: LeakReport | None
    calls: int
    tokens: int
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    history: History | None = field(default=None, metadata=LIVE, compare=False, repr=False)

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know first: leaks, no questions, gates that much did not pass."""
        found = []
        if self.made is not None:
            found += self.made.warnings("made questions")
            if not self.made.questions:
                found.append(
                    "No question was made: the days are too few for three distractors out of the past, or none was left."
                )
        if self.looked is not None:
            found += self.looked.warnings("given questions")
        for gate in self.gates:
            if gate.records and gate.left > MANY_LEFT * gate.records:
                found.append(
                    f"{gate.step}: {gate.left} of {gate.records} records did not pass their gate, also when written anew."
                )
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        told = []
        if self.made is not None:
            told.append(
                f"{self.days:,} days in {self.sessions:,} conversations, with {self.made.questions:,} questions, by "
                f"{self.source}."
            )
        if self.looked is not None:
            told.append(f"{self.looked.questions:,} given questions were looked through for leaks.")
        return " ".join((*self.warnings(), *told))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: warnings, a line a gate, the headline."""
        lines = [*self.warnings()]
        for gate in self.gates:
            lines.append(f"{gate.step}: {gate.records:,} records, {gate.flagged:,} flagged, {gate.left:,} left")
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.agents.compose_page import compose_page

        return compose_page(self, folder)

    def _repr_html_(self) -> str:
        rows = [(gate.step, gate.records, gate.flagged, gate.left) for gate in self.gates]
        return table_html(("step", "records", "flagged", "left"), rows, self.headline())


@dataclass(frozen=True)
class ComposePlan:
    """What composing would do. calls: about so many, and more where something is written anew."""

    source: str
    name: str
    span: str
    periods: Mapping[str, int]
    calls: int
    given: int

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        lines = []
        if self.name:
            lines += [
                f"{self.name}, {self.span}, by {self.source}",
                "periods: " + ", ".join(f"{level} {count:,}" for level, count in self.periods.items()),
            ]
        if self.calls:
            lines.append(f"about {self.calls:,} calls of models, and more for what is written anew")
        if self.given:
            lines.append(f"{self.given:,} given questions are looked through for leaks")
        return lines


def shown(share: Share) -> str:
    """A share with its interval, where there is one."""
    if not share.of:
        return "undefined"
    interval = "" if math.isnan(share.lower) else f" [{share.lower:.2f}, {share.upper:.2f}]"
    return f"{share.rate:.2f}{interval} of {share.of:,}"


def columns(report: LeakReport) -> list[tuple[str, Any]]:
    """What a report says in numbers."""
    kinds = ("future option", "future evidence", "dated question", "answer in question")
    counts = [(kind, sum(leak.kind == kind for leak in report.leaks)) for kind in kinds]
    return [
        ("questions", report.questions),
        *counts,
        ("longest option right", shown(report.longest)),
        ("shortest option right", shown(report.shortest)),
        ("by chance", f"{report.chance:.2f}" if math.isfinite(report.chance) else "undefined"),
    ]
