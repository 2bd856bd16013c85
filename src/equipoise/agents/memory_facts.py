"""Facts in place of text, by Mem0's recipe: what a session says is drawn out, and merged with what was known before.

    for each fact of the session:   the nearest facts that are held (10) are shown to a decider, which answers
        add       it is kept as a new one
        update    one of those that were shown is written anew; its time becomes that of this session, and its turns those
                  of the new fact, with its own where their words stay
        delete    one of those that were shown goes, since it no longer holds
        none      nothing changes

What was said is dropped. Source: Mem0, as arXiv:2604.11182 runs it. Differs from the library: facts are decided on one after
the other, each beside what the one before it left; a print has the moment of a fact's last change before it.

Who draws out and decides is given: chat models (`memory_chat`), or in studies the exact parser of a made world.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, Protocol

from equipoise.agents.memory import MemoryItem
from equipoise.agents.memory_store import (
    Directions,
    Embedder,
    Order,
    Remembering,
    Shown,
    added,
    best,
    by,
    kept_sources,
    query_text,
    stamp,
)
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.options import check_fields, closed
from equipoise.data.histories import MemoryQuestion, Session

Action = Literal["add", "update", "delete", "none"]


@dataclass(frozen=True, slots=True)
class Fact:
    """A short statement. turns: ids of those it was said in; () for the whole session."""

    text: str
    turns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What a session says. amounts: what it took to find out, such as calls."""

    facts: tuple[Fact, ...]
    amounts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FactDecision:
    """What becomes of a fact. place: of an updated or deleted one among those that were shown. text: from now on."""

    action: Action
    place: int | None = None
    text: str = ""
    amounts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


class FactExtractor(Protocol):
    """Whoever draws facts out of a session."""

    name: str

    def facts(self, session: Session) -> SessionFacts:
        """In the order in which they were said."""
        ...


class FactDecider(Protocol):
    """Whoever merges a fact with those that are held."""

    name: str

    def decide(self, fact: Fact, held: Sequence[MemoryItem]) -> FactDecision:
        """held: the nearest, best first; each text begins with the moment of its last change."""
        ...


class FactMemory(Remembering):
    """Facts that are added, updated and deleted. neighbours: facts that are shown to the decider."""

    @closed
    def __init__(
        self,
        *,
        embedder: Embedder,
        extractor: FactExtractor,
        decider: FactDecider,
        neighbours: int = 10,
        order: Order = "time",
        dated: bool = False,
        **shared: Any,
    ) -> None:
        """Raises BadInput for no neighbours, and for an extractor or a decider that is none."""
        names = by(("facts", extractor), ("decide", decider))
        super().__init__(f"facts by {names}", order=order, **shared)
        if neighbours < 1:
            raise BadInput(f"{neighbours} facts are shown to the decider: let it see at least 1.")
        self._extractor, self._decider, self._neighbours, self._dated = extractor, decider, neighbours, dated
        self._directions = Directions(embedder, self._count)
        self._made = 0

    def take(self, session: Session, time: datetime) -> Mapping[str, float]:
        """Draw facts out and merge each; the numbers of those that were added, updated, deleted and left as they were."""
        found = self._extractor.facts(session)
        rows, embedded = self._directions.of([fact.text for fact in found.facts])
        counts = {"facts": len(found.facts), "add": 0, "update": 0, "delete": 0, "none": 0, "written_tokens": 0}
        spent = [found.amounts, embedded]
        every = tuple(turn.id for turn in session.turns)
        for row, fact in zip(rows, found.facts, strict=True):
            near = best(self._directions.cosines(row), range(len(self.items)), self._neighbours)
            held = [self.items[place] for place in near]
            decision = self._decider.decide(fact, held) if held else FactDecision("add")
            spent.append(decision.amounts)
            counts[decision.action] += 1
            if decision.action == "add":
                self._made += 1
                text = f"{stamp(time)} {fact.text}"
                self.items.append(MemoryItem(f"fact {self._made}", text, time, fact.turns or every, session.id))
                self._directions.keep(row[None])
                counts["written_tokens"] += self._count(text)
            elif decision.action != "none":
                place = near[self._place(decision, len(near))]
                if decision.action == "delete":
                    del self.items[place]
                    self._directions.remove(place)
                    continue
                text = f"{stamp(time)} {decision.text}"
                kept = kept_sources(self.items[place], decision.text)
                sources = tuple(dict.fromkeys((*kept, *(fact.turns or every))))
                self.items[place] = replace(
                    self.items[place], text=text, time=time, sources=sources, session=session.id
                )
                spent.append(self._directions.change(place, decision.text))
                counts["written_tokens"] += self._count(text)
        return added(counts, *spent)

    def show(self, question: MemoryQuestion, now: datetime, until: datetime | None) -> Shown:
        """The facts nearest to the question."""
        return self.nearest(self._directions, query_text(question, now, self._dated), until)

    def state(self) -> Any:
        """How many facts were made, which the next one is called by."""
        return self._made

    def _place(self, decision: FactDecision, shown: int) -> int:
        if decision.place is None or not 0 <= decision.place < shown:
            raise WorkFailed(
                f"{self._decider.name} would {decision.action} the fact at {decision.place}, and {shown} were shown to it."
            )
        if decision.action == "update" and not decision.text.strip():
            raise WorkFailed(f"{self._decider.name} would update a fact to nothing: a text is wanted, or delete.")
        return decision.place
