"""A memory behind three calls: take a session in, answer a question, say what state it is in.

    system.ingest(session, session.time)
    before = system.snapshot()
    answer = system.answer(question, now)          answer.text, answer.items, answer.read_tokens
    assert system.snapshot() == before             reading does not write

What a system holds are items, each with the moment of its last change and with the turns that it was made of, so that a
search as of an earlier moment finds nothing younger, and recall is measured by turns and not by words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from equipoise.core.errors import BadInput
from equipoise.data.histories import MemoryQuestion, Session, Turn

TokenCount = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """A text that is held. time: of its last change. sources: the turns its words were made of, not those of words that were
    replaced; one that was made of a whole session names all of its turns. session: the one that it was last made from.
    """

    id: str
    text: str
    time: datetime
    sources: tuple[str, ...] = ()
    session: str = ""


@dataclass(frozen=True, slots=True)
class MemoryAnswer:
    """An answer and what it was read from.

    items: as they were printed, in that order, repetitions too. context: the print. read_tokens: of the context. choice: the
    place of the option that was chosen; None for none. amounts: further costs by name, such as embedded_tokens and calls.
    trace: decisions that led to the items, for a page.
    """

    text: str
    items: tuple[MemoryItem, ...] = ()
    context: str = ""
    read_tokens: int = 0
    choice: int | None = None
    amounts: Mapping[str, float] = field(default_factory=dict)
    trace: Sequence[Mapping[str, object]] = ()

    @property
    def sources(self) -> frozenset[str]:
        """The turns that were printed, each once."""
        return frozenset(source for item in self.items for source in item.sources)


class MemorySystem(Protocol):
    """Whatever remembers. Times never go backwards from one `ingest` to the next."""

    name: str

    def ingest(self, session: Session, time: datetime) -> Mapping[str, float]:
        """Take a session in, and finish all work that it asks for. Returns amounts by name: written_tokens, calls, ..."""
        ...

    def answer(self, question: MemoryQuestion, now: datetime, *, until: datetime | None = None) -> MemoryAnswer:
        """Answer at the moment `now`, without writing. until: only from items whose last change is not later."""
        ...

    def snapshot(self) -> str:
        """A digest of all that later answers depend on: equal states, equal digests."""
        ...


class Reader(Protocol):
    """Whoever answers from a context."""

    name: str

    def read(
        self, question: MemoryQuestion, items: Sequence[MemoryItem], context: str, now: datetime
    ) -> tuple[str, int | None]:
        """The words of an answer ("" for none), and the place of the option that is chosen, where there are options."""
        ...


class Unread:
    """No reader: evidence is looked for, and nothing is answered."""

    name = "no reader"

    def read(
        self, question: MemoryQuestion, items: Sequence[MemoryItem], context: str, now: datetime
    ) -> tuple[str, int | None]:
        """Nothing."""
        return "", None


def turn_text(turn: Turn, time: datetime) -> str:
    """How a turn is printed and embedded: its moment, who spoke, the words."""
    return f"[{(turn.time or time):%Y-%m-%d %H:%M}] {turn.speaker}: {turn.text}"


def session_text(session: Session) -> str:
    """The turns of a session, a line each."""
    return "\n".join(turn_text(turn, session.time) for turn in session.turns)


def within(items: Iterable[MemoryItem], budget: int | None, count: TokenCount) -> list[MemoryItem]:
    """The first items whose texts have at most `budget` tokens together; the first that does not fit ends it.

    Raises BadInput for a budget below 1.
    """
    if budget is not None and budget < 1:
        raise BadInput(f"The budget is {budget} tokens: use at least 1.")
    kept: list[MemoryItem] = []
    spent = 0
    for item in items:
        spent += count(item.text)
        if budget is not None and spent > budget:
            break
        kept.append(item)
    return kept


def words(text: str) -> int:
    """The count of tokens where no tokenizer is named: runs without blanks."""
    return len(text.split())


def state_digest(items: Iterable[MemoryItem], *more: object) -> str:
    """A digest of items in their order, and of JSON values beside them."""
    rows = [[item.id, item.text, item.time.isoformat(), list(item.sources), item.session] for item in items]
    return hashlib.sha256(json.dumps([rows, *more], sort_keys=True).encode(errors="surrogatepass")).hexdigest()
