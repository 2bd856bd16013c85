"""Notes in place of, or beside, text: linked ones by A-Mem's recipe, and one structured note a session by MemOS's.

A-Mem   a note is the text with keywords, tags and a line of context, all of it embedded. The nearest notes (5) are shown to
        a linker, which says to which of them the new one is linked, and may write the tags and context of theirs anew, and
        the new one's tags. What is found at reading brings the notes that it is linked to, each behind the one it came by
MemOS   a session becomes a title, a summary and tags; what was said is dropped

Sources: A-Mem (arXiv:2502.12110), and both as arXiv:2604.11182 runs them.
Differs from A-Mem's code: a note that was rewritten is embedded anew at once, not at every hundredth change, and its time is
that of the rewriting, since its text knows what came later. Who writes is given: chat models (`memory_chat`), or in studies
the exact parser of a made world.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, Protocol

from equipoise.agents.memory import MemoryItem, session_text, turn_text
from equipoise.agents.memory_store import (
    Directions,
    Embedder,
    Order,
    Remembering,
    Shown,
    added,
    best,
    by,
    query_text,
    ranks,
    stamp,
)
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.options import closed
from equipoise.data.histories import MemoryQuestion, Session


@dataclass(frozen=True, slots=True)
class Note:
    """A text and what was written to it. amounts: what writing took, such as calls."""

    text: str
    keywords: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    context: str = ""
    amounts: Mapping[str, float] = field(default_factory=dict, compare=False)

    def printed(self) -> str:
        """The text, and a line for each of the others that is there."""
        lines = {"Context": self.context, "Keywords": ", ".join(self.keywords), "Tags": ", ".join(self.tags)}
        return "\n".join([self.text, *(f"{name}: {line}" for name, line in lines.items() if line)])


@dataclass(frozen=True, slots=True)
class NoteLinks:
    """What a new note changes. linked: places among the notes that were shown. tags: the new note's from now on; () as they
    are. rewritten: place -> (context, tags) of a note that was shown, from now on.
    """

    linked: tuple[int, ...] = ()
    tags: tuple[str, ...] = ()
    rewritten: Mapping[int, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    amounts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionNote:
    """What is kept of a session. Without a summary nothing is."""

    title: str
    summary: str
    tags: tuple[str, ...] = ()
    amounts: Mapping[str, float] = field(default_factory=dict)


class NoteExtractor(Protocol):
    """Whoever writes keywords, tags and context to a text."""

    name: str

    def note(self, text: str) -> Note:
        """text: turns with their moments, a line each."""
        ...


class NoteLinker(Protocol):
    """Whoever links a note to the nearest, and may write these anew."""

    name: str

    def link(self, note: Note, held: Sequence[Note]) -> NoteLinks:
        """held: the nearest, best first."""
        ...


class SessionExtractor(Protocol):
    """Whoever sums a session up."""

    name: str

    def session_note(self, session: Session) -> SessionNote:
        """Its title, summary and tags."""
        ...


class NoteMemory(Remembering):
    """Notes with links. unit: what becomes a note. neighbours: notes that are shown to the linker."""

    @closed
    def __init__(
        self,
        *,
        embedder: Embedder,
        extractor: NoteExtractor,
        decider: NoteLinker,
        unit: Literal["turn", "session"] = "session",
        neighbours: int = 5,
        order: Order = "time",
        dated: bool = False,
        **shared: Any,
    ) -> None:
        """Raises BadInput for no neighbours, and for an extractor or a linker that is none."""
        names = by(("note", extractor), ("link", decider))
        super().__init__(f"notes by {names}", order=order, **shared)
        if neighbours < 1:
            raise BadInput(f"{neighbours} notes are shown to the linker: let it see at least 1.")
        self._extractor, self._linker, self._unit = extractor, decider, unit
        self._neighbours, self._dated = neighbours, dated
        self._directions = Directions(embedder, self._count)
        self._notes: list[Note] = []
        self._links: list[tuple[str, ...]] = []  # ids, in the order of the notes

    def take(self, session: Session, time: datetime) -> Mapping[str, float]:
        """A note of each turn or of the session; the numbers of notes, links and rewritten notes."""
        if self._unit == "turn":
            texts = [(turn.id, turn_text(turn, session.time), (turn.id,)) for turn in session.turns]
        else:
            texts = [(session.id, session_text(session), tuple(turn.id for turn in session.turns))]
        amounts = {"notes": 0, "links": 0, "rewritten": 0, "written_tokens": 0}
        for name, text, sources in texts:
            if sources:
                amounts = added(amounts, self._add(MemoryItem(name, text, time, sources, session.id), time))
        return amounts

    def show(self, question: MemoryQuestion, now: datetime, until: datetime | None) -> Shown:
        """The k nearest notes, and behind each those that it is linked to."""
        found, amounts = self._directions.of([query_text(question, now, self._dated)])
        cosines = self._directions.cosines(found[0])
        older = self.older(until)
        nearest = best(cosines, older, self._k)
        trace = ranks(self.items, nearest, cosine=cosines[nearest].tolist())
        known = {self.items[place].id: place for place in older}
        places: dict[int, None] = {}
        for place in nearest:
            places[place] = None
            for name in self._links[place]:
                if name in known and known[name] not in nearest:
                    places[known[name]] = None
                    trace.append({"linked": name, "from": self.items[place].id})
        return self.printed([*places], amounts, trace)

    def state(self) -> Any:
        """Notes by their parts, and links."""
        parts = [(note.text, note.keywords, note.tags, note.context) for note in self._notes]
        return [parts, self._links]

    def _add(self, item: MemoryItem, time: datetime) -> dict[str, float]:
        note = self._extractor.note(item.text)
        spent = [note.amounts]
        rows, amounts = self._directions.of([note.printed()])
        spent.append(amounts)
        near = best(self._directions.cosines(rows[0]), range(len(self.items)), self._neighbours)
        links = self._linker.link(note, [self._notes[place] for place in near]) if near else NoteLinks()
        spent.append(links.amounts)
        if strange := [place for place in (*links.linked, *links.rewritten) if not 0 <= place < len(near)]:
            raise WorkFailed(f"{self._linker.name} chose the note at {strange[0]}, and {len(near)} were shown to it.")
        if links.tags and links.tags != note.tags:
            note = replace(note, tags=links.tags)
            rows, amounts = self._directions.of([note.printed()])
            spent.append(amounts)
        written = self._count(note.printed())
        for place, (context, tags) in links.rewritten.items():
            spent.append(self._rewrite(near[place], context, tags, time))
            written += self._count(self.items[near[place]].text)
        self.items.append(replace(item, text=note.printed()))
        self._directions.keep(rows)
        self._notes.append(note)
        linked = tuple(dict.fromkeys(self.items[near[place]].id for place in links.linked))
        self._links.append(linked)
        counts = {"notes": 1, "links": len(linked), "rewritten": len(links.rewritten), "written_tokens": written}
        return added(counts, *spent)

    def _rewrite(self, place: int, context: str, tags: tuple[str, ...], time: datetime) -> dict[str, float]:
        self._notes[place] = replace(self._notes[place], context=context, tags=tags)
        text = self._notes[place].printed()
        # sources stay: the words of what was said are its own, and recall is measured by these
        self.items[place] = replace(self.items[place], text=text, time=time)
        return self._directions.change(place, text)


class SessionNotes(Remembering):
    """One structured note a session."""

    @closed
    def __init__(
        self,
        *,
        embedder: Embedder,
        extractor: SessionExtractor,
        order: Order = "time",
        dated: bool = False,
        **shared: Any,
    ) -> None:
        """Raises BadInput for an extractor that is none."""
        super().__init__(f"session notes by {by(('session_note', extractor))}", order=order, **shared)
        self._extractor, self._dated = extractor, dated
        self._directions = Directions(embedder, self._count)

    def take(self, session: Session, time: datetime) -> Mapping[str, float]:
        """Sum the session up."""
        made = self._extractor.session_note(session)
        if not made.summary.strip():
            return added({"notes": 0, "written_tokens": 0}, made.amounts)
        tags = [f"Tags: {', '.join(made.tags)}"] if made.tags else []
        text = "\n".join([f"{stamp(time)} {made.title}".rstrip(), made.summary, *tags])
        embedded = self._directions.add([text])
        self.items.append(MemoryItem(session.id, text, time, tuple(turn.id for turn in session.turns), session.id))
        return added({"notes": 1, "written_tokens": self._count(text)}, embedded, made.amounts)

    def show(self, question: MemoryQuestion, now: datetime, until: datetime | None) -> Shown:
        """The notes nearest to the question."""
        return self.nearest(self._directions, query_text(question, now, self._dated), until)
