"""Memory systems by name, behind the three calls of `agents.memory`.

    system = build("rag-turns", reader=Unread(), embedder=vectors, k=20, budget=1500)

full             all turns; of more than the budget, the newest
recency          the last k sessions
bm25             turns by their words (Lucene's BM25)
rag-turns        turns by cosine
rag-sessions     sessions by cosine (LifeDialBench's RAG, arXiv:2604.11182)
rag-rerank       turns by cosine, the first `pool` of them ranked anew by a reranker
chain-of-memory  turns by cosine, arranged in chains (arXiv:2601.14287)
facts            short facts that are added, updated and deleted (Mem0's recipe: `memory_facts`)
notes            sessions with keywords, tags and context, and links between them (A-Mem's: `memory_notes`)
session-notes    a structured note of each session (MemOS's: `memory_notes`)
empty            nothing
oracle           the sessions that hold the evidence: an upper bound, for questions whose evidence is known
thinned          rag-sessions, or by words without an embedder, over text of which a share of the words is kept

All but facts and notes only append: what they answer as of a moment is what they answered at it. Nothing is drawn, or
depends on the clock.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.agents.chain_of_memory import organize
from equipoise.agents.memory import MemoryItem, MemorySystem, Reader, TokenCount, session_text, turn_text, words
from equipoise.agents.memory_facts import FactMemory
from equipoise.agents.memory_notes import NoteMemory, SessionNotes
from equipoise.agents.memory_store import (
    Directions,
    Embedder,
    Order,
    Remembering,
    Shown,
    added,
    best,
    query_text,
    ranks,
)
from equipoise.core.errors import BadInput, WorkFailed, did_you_mean
from equipoise.core.options import closed
from equipoise.data.histories import MemoryQuestion, Session
from equipoise.data.retrieve import TextIndex

Unit = Literal["turn", "session"]
Reranker = Callable[[str, Sequence[str]], Sequence[float]]  # a question and texts -> a score of each, higher is better
MemoryName = Literal[
    "full", "recency", "bm25", "rag-turns", "rag-sessions", "rag-rerank", "chain-of-memory", "facts", "notes",
    "session-notes", "empty", "oracle", "thinned",
]  # fmt: skip


class _RawText(Remembering):
    """Turns or sessions as they were said. share: of the words of a turn that is kept, by `thinned`."""

    @closed
    def __init__(self, name: str, unit: Unit, *, share: float = 1.0, **shared: Any) -> None:
        super().__init__(name, **shared)
        if not 0 < share <= 1:
            raise BadInput(f"The share of words that is kept is {share}: use more than 0 and at most 1.")
        self._unit, self._share = unit, share

    def take(self, session: Session, time: datetime) -> Mapping[str, float]:
        turns = session.turns
        if self._share < 1:
            turns = tuple(replace(turn, text=thinned(turn.text, self._share, turn.id)) for turn in turns)
        if self._unit == "turn":
            new = [MemoryItem(turn.id, turn_text(turn, session.time), time, (turn.id,), session.id) for turn in turns]
        else:
            ids = tuple(turn.id for turn in turns)
            text = session_text(replace(session, turns=turns))
            new = [MemoryItem(session.id, text, time, ids, session.id)] if turns else []
        amounts = self.index(new)
        self.items += new
        return {"written_tokens": sum(self._count(item.text) for item in new), **amounts}

    def index(self, new: Sequence[MemoryItem]) -> Mapping[str, float]:
        """Make what is about to be kept ready for a search; amounts by name."""
        return {}


class _Newest(_RawText):
    """The newest items: all of them, or the last k."""

    def __init__(self, name: str, unit: Unit, *, last: bool, **shared: Any) -> None:
        super().__init__(name, unit, **shared)
        self._last = last

    def show(self, question: MemoryQuestion, now: datetime, until: datetime | None) -> Shown:
        places = self.older(until)[::-1]
        return self.printed(places[: self._k] if self._last else places, {}, ())


class _Evidence(_RawText):
    """The sessions that hold a question's evidence, the newest first."""

    def show(self, question: MemoryQuestion, now: datetime, until: datetime | None) -> Shown:
        asked = set(question.evidence)
        return self.printed(
            [place for place in self.older(until)[::-1] if asked & {self.items[place].id, *self.items[place].sources}],
            {},
            (),
        )


class _Nothing(Remembering):
    """No memory: what a reader knows by itself, and guesses."""

    def take(self, session: Session, time: datetime) -> Mapping[str, float]:
        return {"written_tokens": 0}

    def show(self, question: MemoryQuestion, now: datetime, until: datetime | None) -> Shown:
        return self.printed((), {}, ())


class _Words(_RawText):
    """By BM25. dated: the moment stands before the question."""

    def __init__(self, name: str, unit: Unit, *, dated: bool = False, **shared: Any) -> None:
        super().__init__(name, unit, **shared)
        self._dated = dated
        self._index = TextIndex([], times=[])
        TextIndex(["word"]).search("word", 1)  # bm25s is missing now, not at the first question

    def index(self, new: Sequence[MemoryItem]) -> Mapping[str, float]:
        self._index.add([item.text for item in new], times=[item.time for item in new])
        return {}

    def show(self, question: MemoryQuestion, now: datetime, until: datetime | None) -> Shown:
        hits = self._index.search(query_text(question, now, self._dated), self._k, until=until)
        places = hits.places.tolist()
        return self.printed(places, {}, ranks(self.items, places, score=hits.scores.tolist()))


class _Embedded(_RawText):
    """Texts with directions. dated: the moment stands before the question."""

    def __init__(self, name: str, unit: Unit, *, embedder: Embedder, dated: bool = False, **shared: Any) -> None:
        super().__init__(name, unit, **shared)
        self._directions = Directions(embedder, self._count)
        self._dated = dated

    def index(self, new: Sequence[MemoryItem]) -> Mapping[str, float]:
        return self._directions.add([item.text for item in new])


class _Cosines(_Embedded):
    """By cosine, and by a reranker among the first `pool` where there is one."""

    def __init__(
        self, name: str, unit: Unit, *, reranker: Reranker | None = None, pool: int = 0, **shared: Any
    ) -> None:
        super().__init__(name, unit, **shared)
        if reranker is not None and pool < self._k:
            raise BadInput(f"{name}: {pool} items are ranked anew, and {self._k} of them are read: use a larger pool=.")
        self._reranker, self._pool = reranker, pool

    def show(self, question: MemoryQuestion, now: datetime, until: datetime | None) -> Shown:
        query = query_text(question, now, self._dated)
        if self._reranker is None:
            return self.nearest(self._directions, query, until)
        found, amounts = self._directions.of([query])
        cosines = self._directions.cosines(found[0])
        pool = best(cosines, self.older(until), self._pool)
        texts = [self.items[place].text for place in pool]
        again = [float(score) for score in self._reranker(question.text, texts)] if texts else []
        if len(again) != len(pool) or not all(map(math.isfinite, again)):
            raise WorkFailed(
                f"{self.name}: the reranker gave {len(again)} scores, expected {len(pool)} finite numbers."
            )
        order = sorted(range(len(pool)), key=lambda rank: -again[rank])[: self._k]
        places = [pool[rank] for rank in order]
        amounts["reranked_tokens"] = sum(map(self._count, texts)) + len(texts) * self._count(question.text)
        scores = {"score": [again[rank] for rank in order], "cosine": cosines[places].tolist()}
        return self.printed(places, amounts, ranks(self.items, places, **scores))


class _Chains(_Embedded):
    """By cosine, arranged by `chain_of_memory.organize`. organizing: its options."""

    def __init__(self, name: str, unit: Unit, *, organizing: Mapping[str, Any], **shared: Any) -> None:
        super().__init__(name, unit, **shared)
        self._organizing = dict(organizing)
        self._sessions: dict[str, NDArray[np.float32]] = {}  # where sessions are chosen before turns

    def take(self, session: Session, time: datetime) -> Mapping[str, float]:
        amounts = dict(super().take(session, time))
        if self._organizing.get("sessions") is not None and session.turns:
            rows, further = self._directions.of([session_text(session)])
            self._sessions[session.id] = rows[0]
            amounts = added(amounts, further)
        return amounts

    def show(self, question: MemoryQuestion, now: datetime, until: datetime | None) -> Shown:
        found, amounts = self._directions.of([query_text(question, now, self._dated)])
        places = self.older(until)
        made = organize(
            [self.items[place] for place in places],
            self._directions.array[places],
            found[0],
            k=self._k,
            budget=self._budget,
            count=self._count,
            embedder=self._directions.embedder if self._organizing.get("context") == JOINED else None,
            session_vectors=self._sessions or None,
            **self._organizing,
        )
        return Shown(made.items, made.context, added(amounts, made.amounts), made.trace)


def thinned(text: str, share: float, key: str) -> str:
    """The words of a text of which a hash of key and place lies below `share`, so that a smaller share keeps some of them.

    key: what the text is called; the same words are not lost in every text.
    """
    kept = [word for place, word in enumerate(text.split()) if uniform(f"{key} {place}") < share]
    return " ".join(kept)


def uniform(key: str) -> float:
    """A number in [0, 1) from the hash of a text: what a share of such texts is chosen by."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:7], "big") / 2**56


# --- by name --------------------------------------------------------------------------------------------------------


def _full(*, unit: Unit = "turn", **shared: Any) -> MemorySystem:
    return _Newest("full", unit, last=False, **shared)


def _recency(**shared: Any) -> MemorySystem:
    return _Newest("recency", "session", last=True, **shared)


def _bm25(*, unit: Unit = "turn", order: Order = "time", dated: bool = False, **shared: Any) -> MemorySystem:
    return _Words("bm25", unit, order=order, dated=dated, **shared)


def _rag_turns(*, embedder: Embedder, order: Order = "time", dated: bool = False, **shared: Any) -> MemorySystem:
    return _Cosines("rag-turns", "turn", embedder=embedder, order=order, dated=dated, **shared)


def _rag_sessions(*, embedder: Embedder, order: Order = "time", dated: bool = False, **shared: Any) -> MemorySystem:
    return _Cosines("rag-sessions", "session", embedder=embedder, order=order, dated=dated, **shared)


def _rag_rerank(
    *,
    embedder: Embedder,
    reranker: Reranker,
    pool: int = 50,
    unit: Unit = "turn",
    order: Order = "time",
    dated: bool = False,
    **shared: Any,
) -> MemorySystem:
    more = {"reranker": reranker, "pool": pool, "embedder": embedder, "order": order, "dated": dated}
    return _Cosines("rag-rerank", unit, **more, **shared)


def _chain_of_memory(
    *, embedder: Embedder, unit: Unit = "turn", dated: bool = False, organizing: Mapping[str, Any], **shared: Any
) -> MemorySystem:
    return _Chains("chain-of-memory", unit, embedder=embedder, dated=dated, organizing=organizing, **shared)


def _empty(**shared: Any) -> MemorySystem:
    return _Nothing("empty", **shared)


def _oracle(**shared: Any) -> MemorySystem:
    return _Evidence("oracle", "session", **shared)


def _thinned(
    *,
    embedder: Embedder | None = None,
    share: float = 0.62,
    unit: Unit = "session",
    order: Order = "time",
    dated: bool = False,
    **shared: Any,
) -> MemorySystem:
    if embedder is None:
        return _Words("thinned", unit, share=share, order=order, dated=dated, **shared)
    return _Cosines("thinned", unit, share=share, embedder=embedder, order=order, dated=dated, **shared)


_ARMS: Mapping[MemoryName, Callable[..., MemorySystem]] = {
    "full": _full,
    "recency": _recency,
    "bm25": _bm25,
    "rag-turns": _rag_turns,
    "rag-sessions": _rag_sessions,
    "rag-rerank": _rag_rerank,
    "chain-of-memory": _chain_of_memory,
    "facts": FactMemory,
    "notes": NoteMemory,
    "session-notes": SessionNotes,
    "empty": _empty,
    "oracle": _oracle,
    "thinned": _thinned,
}
JOINED = "concatenated"  # the context of chains that has to be embedded anew
_GIVEN = ("embedder", "reranker", "extractor", "decider")  # by build, to those that use them
_OURS = ("items", "vectors", "query_vector", "k", "budget", "count", "embedder", "session_vectors")  # of organize


@closed
def build(
    name: MemoryName,
    *,
    reader: Reader,
    embedder: Embedder | None = None,
    k: int = 20,
    budget: int | None = None,
    count: TokenCount = words,
    reranker: Reranker | None = None,
    extractor: Any = None,
    decider: Any = None,
    **options: Any,
) -> MemorySystem:
    """A memory system by its name, with nothing in it.

    k: items that are found (sessions by recency; full, oracle and empty do without). budget: most tokens of a print, of any
    system. count: the one counter of all tokens. embedder: for those that compare vectors; others leave it alone. reranker:
    of rag-rerank. extractor: of facts, notes and session-notes; decider: of facts and notes (their protocols are in
    `memory_facts` and `memory_notes`, chat models in `memory_chat`). options: unit ("turn", "session") of full, bm25,
    rag-rerank, chain-of-memory, notes and thinned; order ("time", "rank") of the print and dated (the moment stands before
    the question that is searched for) of all that search; pool of rag-rerank, neighbours of facts and notes, share of
    thinned; what `chain_of_memory.organize` takes, of chain-of-memory.

    Raises BadInput for another name, an option that the system does not have, one it cannot do without, and a value out of
    its range; MissingExtra where bm25s is not installed.
    """
    make = _ARMS[name]
    takes = {each.name: each for each in inspect.signature(make).parameters.values() if each.kind is each.KEYWORD_ONLY}
    made, further = dict[str, Any](), set[str]()
    if takes.pop("organizing", None):
        further = inspect.signature(organize).parameters.keys() - set(_OURS)
        made["organizing"] = {option: options.pop(option) for option in further & options.keys()}
        _checked(made["organizing"])
    given = {"embedder": embedder, "reranker": reranker, "extractor": extractor, "decider": decider}
    if strange := options.keys() - takes.keys():
        known = (takes.keys() | further) - set(_GIVEN)
        option = min(strange)
        raise BadInput(f"The memory {name} has no option {option!r}. {did_you_mean(option, known)}")
    if strange := [part for part in _GIVEN[1:] if given[part] is not None and part not in takes]:
        raise BadInput(f"The memory {name} has no use for the {strange[0]} that was given: leave it out.")
    for part in takes.keys() & given.keys():
        if given[part] is None and takes[part].default is inspect.Parameter.empty:
            raise BadInput(f"The memory {name} needs {part}=: give it, or choose another memory.")
        made[part] = given[part]
    return make(reader=reader, k=k, budget=budget, count=count, **made, **options)


def _checked(organizing: Mapping[str, Any]) -> None:
    """Raises BadInput for an option that no question could be answered with."""
    item, embedder = MemoryItem("", "", datetime.min), lambda texts: [[1.0]] * len(texts)
    how = {"embedder": embedder if organizing.get("context") == JOINED else None, "session_vectors": {"": [1.0]}}
    organize([item], [[1.0]], [1.0], **how, **organizing)
