"""Answers of memory systems, a few at a time, each part on the disk before the next: a kill costs one part, and no call.

A system finds and prints; the reader then reads what was printed for several questions at once, and each of its answers is
in the record of calls as soon as it is there. Which questions are read together changes no answer.
"""

from __future__ import annotations

import contextlib
import math
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from equipoise.agents.lifedialbench import AskedQuestion, MemoryAnswers, Protocol, run
from equipoise.agents.memory_adapters import UserMemory
from equipoise.core.errors import EquipoiseError, WorkFailed
from equipoise.core.options import closed
from equipoise.core.serialize import serialize
from equipoise.data.text import encodable

if TYPE_CHECKING:
    from equipoise.agents.memory import MemoryAnswer, MemorySystem
    from equipoise.core.rows import Rows
    from equipoise.data.histories import History, MemoryQuestion, Session

AT_ONCE = 32  # questions that are read together
LARGEST = 4_000_000  # characters of contexts that wait to be read
LISTED = 100  # printed items that a row names

Read = Callable[[Sequence[tuple["MemoryQuestion", "MemoryAnswer", datetime]]], Sequence[tuple[str, int | None]]]


class SystemFailed(Exception):
    """A system that gives no scores; the others are finished."""


@dataclass(frozen=True)
class KeptAnswer:
    """An answer with its seconds, and the ids of the first items that were printed for it."""

    row: AskedQuestion
    items: tuple[str, ...]
    seconds: float


class KeptAnswers:
    """Answers by system, protocol and history, over the rows of a file."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.damaged = tuple(rows.damaged)
        self._answers: dict[tuple[str, str, str], dict[str, KeptAnswer]] = {}
        self._ends: dict[tuple[str, str, str], Mapping[str, Any]] = {}
        for row in rows:
            key = (row["system"], row["protocol"], row["history"])
            if "end" in row:
                self._ends[key] = row["end"]
            else:
                some = [
                    KeptAnswer(_asked(each["row"]), tuple(each["items"]), each["seconds"]) for each in row["answers"]
                ]
                self._answers.setdefault(key, {}).update({each.row.question: each for each in some})

    def of(self, system: str, protocol: str, history: str) -> dict[str, KeptAnswer]:
        """By the ids of questions."""
        return self._answers.setdefault((system, protocol, history), {})

    def add(self, system: str, protocol: str, history: str, some: Sequence[KeptAnswer]) -> None:
        """Store answers that were read together, as one row."""
        self._rows.add({"system": system, "protocol": protocol, "history": history, "answers": serialize(some)})
        self.of(system, protocol, history).update({each.row.question: each for each in some})

    def finish(self, system: str, protocol: str, history: str, done: MemoryAnswers, seconds: float) -> None:
        """Store that all questions are answered, and what the memory came to."""
        end = {
            "built": done.build,
            "state": done.state,
            "streams": list(done.streams),
            "running": list(done.running),
            "seconds": seconds,
        }
        self._rows.add({"system": system, "protocol": protocol, "history": history, "end": end})
        self._ends[system, protocol, history] = end

    @closed
    def whole(self, system: str, protocol: Protocol, history: History) -> MemoryAnswers | None:
        """All answers to a history's questions, in their order; None while they are not all there."""
        end = self._ends.get((system, protocol, history.name))
        if end is None:
            return None
        kept = self.of(system, protocol, history.name)
        if any(question.id not in kept for question in history.questions):  # a row of them was damaged
            return None
        rows = [kept[question.id] for question in history.questions]
        return MemoryAnswers(
            system=system,
            protocol=protocol,
            questions=history.questions,
            rows=tuple(each.row for each in rows),
            built=(end["built"],),
            state=end["state"],
            streams=tuple(end["streams"]),
            running=tuple(end["running"]),
            seconds={"build": end["seconds"], "read": sum(each.seconds for each in rows)},
        )


@dataclass
class _Watched:
    """A system that is timed, and of whose errors it is known that they are its own. name: as it was asked for.

    build, answered: seconds of all sessions, and of the last answer; digests, which nobody pays for, are in neither.
    """

    system: MemorySystem
    name: str
    raised: BaseException | None = None
    build: float = 0.0
    answered: float = 0.0

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.raised = error
            raise

    def ingest(self, session: Session, time: datetime) -> Mapping[str, float]:
        start = clock.perf_counter()
        with self._watching():
            amounts = self.system.ingest(session, time)
        self.build += clock.perf_counter() - start
        return amounts

    def answer(self, question: MemoryQuestion, now: datetime, *, until: datetime | None = None) -> MemoryAnswer:
        start = clock.perf_counter()
        with self._watching():
            answer = self.system.answer(question, now, until=until)
        self.answered = clock.perf_counter() - start
        return answer

    def snapshot(self) -> str:
        with self._watching():
            return self.system.snapshot()


@dataclass
class _Waiting:
    """Answers that wait for the reader. end: the moment at which a question without a time is asked."""

    name: str
    protocol: Protocol
    kept: KeptAnswers
    read: Read | None
    questions: Mapping[str, MemoryQuestion]
    end: datetime
    system: _Watched
    some: list[tuple[AskedQuestion, MemoryAnswer, float]] = field(default_factory=list)
    raised: BaseException | None = None

    def store(self, row: AskedQuestion, answer: MemoryAnswer) -> None:
        """Called for each new answer, in the order of the stream."""
        self.some.append((row, answer, self.system.answered))
        if len(self.some) == AT_ONCE or sum(len(each.context) for _, each, _ in self.some) > LARGEST:
            self.flush()

    def flush(self) -> None:
        """Read what waits, and store it."""
        if not self.some:
            return
        start = clock.perf_counter()
        asked = [(self.questions[row.question], answer) for row, answer, _ in self.some]
        # what answers by itself is not asked again
        silent = [place for place, (_, each) in enumerate(asked) if not each.text and each.choice is None]
        said: dict[int, tuple[str, int | None]] = {}
        if self.read is not None and silent:
            try:
                found = self.read([(*asked[place], asked[place][0].time or self.end) for place in silent])
            except BaseException as error:
                self.raised = error
                raise
            said = dict(zip(silent, found, strict=True))
        each_took = (clock.perf_counter() - start) / len(self.some)
        kept = []
        for place, (row, answer, seconds) in enumerate(self.some):
            text, choice = said.get(place, (row.text, row.choice))
            row = replace(row, text=encodable(text), choice=choice)
            kept.append(KeptAnswer(row, tuple(item.id for item in answer.items[:LISTED]), seconds + each_took))
        self.kept.add(self.name, self.protocol, self.some[0][0].history, kept)
        self.some.clear()


@closed
def answered(
    name: str,
    build: Callable[[], MemorySystem],
    history: History,
    protocols: Sequence[Protocol],
    kept: KeptAnswers,
    read: Read | None,
    begins: list[str] | None = None,
) -> dict[Protocol, MemoryAnswers]:
    """The answers of a system to all questions of a history, under each protocol; what is kept is not asked again.

    protocols: in the order of `Protocol`, so that one memory serves them all. begins: digests of the system's new memories
    for other histories, to which that of this one is added; they are alike where nothing is carried over. Raises
    SystemFailed for what is the system's own doing: it writes while it is read, its building is not the same twice, it does
    not begin anew, it cannot be made a second time, or it raises an error. One that cannot be asked as of a moment has no
    answers under that protocol.
    """
    found: dict[Protocol, MemoryAnswers | None] = {
        protocol: kept.whole(name, protocol, history) for protocol in protocols
    }
    if all(each is not None for each in found.values()):
        return {protocol: each for protocol, each in found.items() if each is not None}
    try:
        made = build()
    except EquipoiseError as error:  # every system was made once before the first was asked, so that its file was right
        raise SystemFailed(encodable(str(error))) from error
    system = _Watched(made, name)
    able: list[Protocol] = [each for each in protocols if each != "asof" or getattr(made, "as_of", True)]
    if not able:
        raise SystemFailed(f"{name} takes no until=, and cannot be asked as of a moment: ask it online or offline.")
    begins = [] if begins is None else begins
    with _blaming(system):
        begins.append(system.snapshot())
    if begins[-1] != begins[0]:
        raise SystemFailed(
            f"{name} does not begin anew: its new memory for {history.name} is in another state than its first one. What it "
            "returns has to hold nothing of other histories, and snapshot() has to depend on what is held alone."
        )
    before: MemoryAnswers | None = None
    for protocol in able:
        waiting = _Waiting(
            name, protocol, kept, read, {each.id: each for each in history.questions}, _end(history), system
        )
        known = [each.row for each in kept.of(name, protocol, history.name).values()]
        with _blaming(system, waiting):
            before = run(system, history, protocol=protocol, after=before, known=known, store=waiting.store)
        waiting.flush()
        if found[protocol] is None:
            kept.finish(name, protocol, history.name, before, system.build)
            found[protocol] = kept.whole(name, protocol, history)
    return {protocol: each for protocol, each in found.items() if each is not None}


@contextlib.contextmanager
def _blaming(system: _Watched, waiting: _Waiting | None = None) -> Iterator[None]:
    """Raise SystemFailed for what is the system's own doing; what the reader raised is not."""
    try:
        yield
    except EquipoiseError as error:
        own = system.raised is error
        caught = isinstance(error, WorkFailed) and not own and (waiting is None or waiting.raised is not error)
        users = own and isinstance(system.system, UserMemory)
        # what a model that cannot be reached, or a budget, does to a system is for the user to mend, and ends the run
        if not (caught or users):
            raise
        raise SystemFailed(encodable(str(error))) from error


def _end(history: History) -> datetime:
    """When the last word was said."""
    last = [session.time for session in history.sessions]
    return max([*last, *(turn.time for session in history.sessions for turn in session.turns if turn.time is not None)])


def _asked(plain: Mapping[str, Any]) -> AskedQuestion:
    age = math.nan if plain["age"] is None else plain["age"]
    return AskedQuestion(**{**plain, "found": tuple(plain["found"]), "age": age})
