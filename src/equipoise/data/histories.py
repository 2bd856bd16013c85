"""Histories of conversations with questions about them: what memory systems read, and are asked.

Times are without a zone: those of the clock on the wall where the words were said. Readers of published files:
`data.lifelogs`, `data.locomo`, `data.longmemeval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from string import ascii_uppercase

from equipoise.core.errors import BadInput


@dataclass(frozen=True, slots=True)
class Turn:
    """What one person said. id: unique in its history. time: when, where it is known better than by the session."""

    id: str
    speaker: str
    text: str
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """Turns said together, which a memory takes in at once. id: unique in its history. time: of its first word."""

    id: str
    time: datetime
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class MemoryQuestion:
    """A question about a history.

    time: it is asked then, and may be answered from what was said until then; None for after the end. gold: right answers,
    any of which will do; () for one that should be declined. options, right: of a multiple choice, and the place of the
    right one, which options have to have. evidence: ids of the turns or sessions that hold the answer; () where they are not
    known. kind: a published type. group: questions of one group are one cluster in intervals, where their conversation is
    not; "" for one of its own.
    """

    id: str
    text: str
    time: datetime | None = None
    gold: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    right: int | None = None
    evidence: tuple[str, ...] = ()
    kind: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """One stream of sessions, in order of time, and its questions.

    Raises BadInput for ids that are not unique, sessions out of order, evidence that nobody said or that is both a turn and
    a session, a right option that is none, options without a right one, a single option or more than letters, a question
    before the first session or without any, and a time with a zone.
    """

    name: str
    sessions: tuple[Session, ...]
    questions: tuple[MemoryQuestion, ...] = ()

    def __post_init__(self) -> None:
        turns = [turn.id for session in self.sessions for turn in session.turns]
        sessions = [session.id for session in self.sessions]
        for kind, ids in (
            ("turns", turns),
            ("sessions", sessions),
            ("questions", [question.id for question in self.questions]),
        ):
            if (twice := _twice(ids)) is not None:
                raise BadInput(f"{self.name}: two {kind} have the id {twice!r}; ids are unique in a history.")
        for session in self.sessions:
            if any(_zoned(time) for time in (session.time, *(turn.time for turn in session.turns))):
                raise BadInput(f"{self.name}: session {session.id!r} has a time with a zone. {_WALL}")
        for before, after in zip(self.sessions, self.sessions[1:], strict=False):
            if after.time < before.time:
                raise BadInput(
                    f"{self.name}: session {after.id!r} ({after.time}) stands behind {before.id!r} ({before.time}), "
                    "which is later; sort sessions by time."
                )
        self.check(self.questions)

    def check(self, questions: Sequence[MemoryQuestion]) -> None:
        """Raises BadInput for a question that cannot be asked about this history, as the making of one does."""
        sessions = {session.id for session in self.sessions}
        turns = {turn.id for session in self.sessions for turn in session.turns}
        for question in questions:
            self._check(question, turns, sessions)

    def _check(self, question: MemoryQuestion, turns: set[str], sessions: set[str]) -> None:
        where = f"{self.name}: question {question.id!r}"
        if missing := [name for name in question.evidence if name not in turns and name not in sessions]:
            raise BadInput(f"{where} has {missing[0]!r} as evidence, which is no turn or session of its history.")
        if both := [name for name in question.evidence if name in turns and name in sessions]:
            raise BadInput(
                f"{where} has {both[0]!r} as evidence, which is a turn and also a session: give them ids that differ."
            )
        if _zoned(question.time):
            raise BadInput(f"{where} has a time with a zone. {_WALL}")
        if question.right is not None and not 0 <= question.right < len(question.options):
            raise BadInput(f"{where} has option {question.right} as the right one, of {len(question.options)}.")
        if question.options and question.right is None:
            raise BadInput(f"{where} has options and no right one: name its place, from 0, or leave the options out.")
        if question.options and not 2 <= len(question.options) <= len(ascii_uppercase):
            raise BadInput(f"{where} has {len(question.options)} options: give 2 to 26, each has a letter.")
        if not self.sessions:
            raise BadInput(f"{where} is about a history without sessions, before anything was said: add some.")
        if question.time is not None and question.time < self.sessions[0].time:
            raise BadInput(f"{where} is asked at {question.time}, before anything was said.")


_WALL = "Times are those of the clock on the wall: leave the zone out (time.replace(tzinfo=None))."


def _zoned(time: datetime | None) -> bool:
    return time is not None and time.tzinfo is not None


def _twice(ids: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for identifier in ids:
        if identifier in seen:
            return identifier
        seen.add(identifier)
    return None
