"""What memory systems share: the directions of their texts, and the way from what was found to what is printed.

An `Embedder` gives texts their vectors: MiniLM in a job, counts of words in a world. Texts are embedded when they come in,
and the question when it is asked; both are counted in the tokens of one counter. Vectors are made of texts and of nothing
else, so that no digest of a state holds them.
"""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.agents.memory import MemoryAnswer, MemoryItem, Reader, TokenCount, state_digest, within
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.options import closed
from equipoise.data.answers import contains
from equipoise.data.histories import MemoryQuestion, Session
from equipoise.data.retrieve import directions

Embedder = Callable[[Sequence[str]], ArrayLike]  # texts -> [n, width]
Order = Literal["time", "rank"]  # of the print


class Directions:
    """Vectors of length 1 of texts, in one array that grows: [n, width], float32. Amounts are of `count`."""

    def __init__(self, embedder: Embedder, count: TokenCount) -> None:
        self.embedder, self._count = embedder, count
        self._array = np.empty((0, 0), np.float32)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def array(self) -> NDArray[np.float32]:
        """[n, width], not a copy."""
        return self._array[: self._size]

    def of(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], dict[str, float]]:
        """The directions of texts that are not kept, and what they cost. Raises WorkFailed for vectors that are none."""
        if not texts:
            return np.empty((0, self._array.shape[1]), np.float32), {"embedded_tokens": 0, "embedding_calls": 0}
        try:
            rows = directions(self.embedder(texts), len(texts))
        except BadInput as error:
            raise WorkFailed(
                f"The embedder failed on texts of which the first is {texts[0][:60]!r}. {error}"
            ) from error
        if self._size and rows.shape[1] != self._array.shape[1]:
            raise WorkFailed(f"The embedder gave {rows.shape[1]} numbers a text, and {self._array.shape[1]} before.")
        return rows.astype(np.float32), {"embedded_tokens": sum(map(self._count, texts)), "embedding_calls": 1}

    def add(self, texts: Sequence[str]) -> dict[str, float]:
        """Keep the directions of texts behind the others; what they cost."""
        rows, amounts = self.of(texts)
        self.keep(rows)
        return amounts

    def keep(self, rows: NDArray[np.float32]) -> None:
        """Keep directions that `of` gave, behind the others."""
        needed = self._size + len(rows)
        if needed > len(self._array):
            grown = np.empty((max(needed, 2 * self._size), rows.shape[1]), np.float32)
            if self._size:
                grown[: self._size] = self.array
            self._array = grown
        self._array[self._size : needed] = rows
        self._size = needed

    def change(self, place: int, text: str) -> dict[str, float]:
        """Put the direction of another text in its place; what it cost."""
        rows, amounts = self.of([text])
        self.array[place] = rows[0]
        return amounts

    def remove(self, place: int) -> None:
        """Those behind it move up."""
        self._array[place : self._size - 1] = self._array[place + 1 : self._size]
        self._size -= 1

    def cosines(self, direction: NDArray[np.float32]) -> NDArray[np.float64]:
        """[n], to six digits, which are those of float32: what agrees in them is equal."""
        if not self._size:
            return np.empty(0)
        # einsum: a cosine depends on its own row alone, to the last bit, so that a store that grew scores the old as before
        return np.round(np.einsum("nd,d->n", self.array, direction).astype(np.float64), 6)


@dataclass(frozen=True)
class Shown:
    """What an answer is read from. items: in the order of the print. For the rest see `MemoryAnswer`."""

    items: Sequence[MemoryItem]
    context: str
    amounts: Mapping[str, float] = field(default_factory=dict)
    trace: Sequence[Mapping[str, object]] = ()


class Remembering(ABC):
    """A memory system but for what it keeps of a session and what it finds for a question.

    items: what is held; an item's time is that of the ingestion which changed it last. order: the print goes by time, or by
    rank, the best first. A print with its line breaks never has more than `budget` tokens of `count`: the least of what
    was found goes first. Raises BadInput for a budget or a k below 1.
    """

    @closed
    def __init__(
        self,
        name: str,
        *,
        reader: Reader,
        k: int = 20,
        budget: int | None = None,
        count: TokenCount,
        order: Order = "time",
    ) -> None:
        for what, value in (("budget", budget), ("k", k)):
            if value is not None and not isinstance(value, numbers.Integral):
                raise BadInput(f"{what} is {value!r}: use a whole number of at least 1.")
        if budget is not None and budget < 1:
            raise BadInput(f"The budget is {budget} tokens: use at least 1.")
        if k < 1:
            raise BadInput(f"k is {k}: let at least 1 item be found.")
        self.name, self.items = name, list[MemoryItem]()
        self._reader, self._k, self._budget, self._count, self._order = reader, k, budget, count, order
        self._taken: set[str] = set()
        self._now: datetime | None = None

    def ingest(self, session: Session, time: datetime) -> Mapping[str, float]:
        """Take a session in; amounts by name. Raises BadInput for one that was taken in, or is older than another."""
        if session.id in self._taken:
            raise BadInput(f"{self.name}: session {session.id!r} was taken in before; each comes once.")
        if self._now is not None and time < self._now:
            raise BadInput(f"{self.name}: session {session.id!r} is of {time}, and {self._now} has been: sort by time.")
        amounts = self.take(session, time)
        self._taken.add(session.id)
        self._now = time
        return amounts

    def answer(self, question: MemoryQuestion, now: datetime, *, until: datetime | None = None) -> MemoryAnswer:
        """Answer at the moment `now`. until: only from items whose last change is not later."""
        shown = self.show(question, now, until)
        text, choice = self._reader.read(question, shown.items, shown.context, now)
        return MemoryAnswer(
            text, tuple(shown.items), shown.context, self._count(shown.context), choice, shown.amounts, shown.trace
        )

    def snapshot(self) -> str:
        """A digest of all that later answers depend on."""
        return state_digest(self.items, self.state())

    def state(self) -> Any:
        """What answers depend on besides the items, as JSON values."""
        return None

    @abstractmethod
    def take(self, session: Session, time: datetime) -> Mapping[str, float]:
        """Keep what is kept of a session; amounts by name."""

    @abstractmethod
    def show(self, question: MemoryQuestion, now: datetime, until: datetime | None) -> Shown:
        """Find what is read for a question, without writing."""

    def printed(
        self, places: Sequence[int], amounts: Mapping[str, float], trace: Sequence[Mapping[str, object]]
    ) -> Shown:
        """The items of these places, best first, as far as the budget goes; `left_out` is the number of the others."""
        kept = list(places[: len(within([self.items[place] for place in places], self._budget, self._count))])

        def print_out() -> tuple[list[MemoryItem], str]:
            ordered = kept if self._order == "rank" else sorted(kept, key=lambda place: (self.items[place].time, place))
            items = [self.items[place] for place in ordered]
            return items, "\n".join(item.text for item in items)

        items, context = print_out()
        while kept and self._budget is not None and self._count(context) > self._budget:
            kept.pop()
            items, context = print_out()
        return Shown(items, context, {**amounts, "left_out": len(places) - len(kept)}, trace)

    def nearest(self, rows: Directions, query: str, until: datetime | None) -> Shown:
        """The k items nearest to a query, by cosine. rows: of the items."""
        found, amounts = rows.of([query])
        cosines = rows.cosines(found[0])
        places = best(cosines, self.older(until), self._k)
        return self.printed(places, amounts, ranks(self.items, places, cosine=cosines[places].tolist()))

    def older(self, until: datetime | None) -> list[int]:
        """Places of the items whose last change is not later than `until`."""
        return [place for place, item in enumerate(self.items) if until is None or item.time <= until]


def query_text(question: MemoryQuestion, now: datetime, dated: bool) -> str:
    """What is searched for; dated: with the moment before it, as texts of memories have theirs."""
    return f"{stamp(now)} {question.text}" if dated else question.text


def by(*parts: tuple[str, Any]) -> str:
    """The names of those who write a memory, each once. parts: (the method that is wanted, who has it).

    Raises BadInput for one who does not have it.
    """
    for method, part in parts:
        if not callable(getattr(part, method, None)) or not isinstance(getattr(part, "name", None), str):
            raise BadInput(
                f"{type(part).__name__} does not write this memory: an object with a name and {method}() does."
            )
    return " and ".join(dict.fromkeys(part.name for _, part in parts))


def stamp(time: datetime) -> str:
    """How a moment is printed before a text, as `turn_text` does."""
    return f"[{time:%Y-%m-%d %H:%M}]"


def kept_sources(old: MemoryItem, text: str) -> tuple[str, ...]:
    """The turns of an item that a text in its place is made of as well: all, where it holds the item's words in their order.

    What was replaced is no longer there to be read, and recall that credited it would hide what a store overwrites. Of words
    that were merged into others it is not known, and they get no credit.
    """
    return old.sources if contains(text, old.text.removeprefix(stamp(old.time))) else ()


def added(*amounts: Mapping[str, float]) -> dict[str, float]:
    """Amounts by name, summed."""
    total: dict[str, float] = {}
    for each in amounts:
        for name, amount in each.items():
            total[name] = total.get(name, 0) + amount
    return total


def ranks(items: Sequence[MemoryItem], places: Sequence[int], **scores: Sequence[float]) -> list[dict[str, object]]:
    """A row of a trace for each place, best first, with its scores by name."""
    rows = zip(places, *scores.values(), strict=True)
    return [
        {"rank": rank, "item": items[place].id, **dict(zip(scores, values, strict=True))}
        for rank, (place, *values) in enumerate(rows, start=1)
    ]


def best(scores: NDArray[Any], places: Sequence[int], k: int) -> list[int]:
    """The k of these places with the highest scores, equal ones in order. scores: [n], of all places."""
    among = np.asarray(places, np.intp)
    return [int(place) for place in among[np.argsort(-scores[among], kind="stable")[:k]]]
