"""Memories of others behind the three calls: the user's own, from a file, and mem0 where it is installed.

    system = user_memory("mine.py:memory", reader=reader, k=20)       what the function returns has ingest, answer, snapshot
    system.as_of                                                      whether it can be asked as of a moment

A function may take reader, embedder, k, budget and count, those that it names; in a job an embedder is made for one that
names it, and for all where --embedder says which. `answer` may return a `MemoryAnswer` or the
words alone. One whose `answer` has no `until` runs under the online and offline protocols; as-of is refused by name.

    def memory(reader, embedder, k, budget, count):                   in a file of yours; pip install mem0ai
        store = local_mem0(tempfile.mkdtemp(), embedder, count=count)
        return Mem0Memory(store, reader=reader, k=k, budget=budget, count=count, infer=False)

mem0 sends telemetry unless MEM0_TELEMETRY is False, which `local_mem0` sets where nobody has set it.
"""

from __future__ import annotations

import importlib
import inspect
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from equipoise.agents.memory import MemoryAnswer, MemoryItem, MemorySystem, Reader, TokenCount, turn_text, words
from equipoise.agents.memory_store import Embedder, Remembering, Shown, kept_sources, ranks, stamp
from equipoise.agents.readers import letter
from equipoise.core.errors import BadInput, EquipoiseError, MissingExtra, WorkFailed
from equipoise.core.serialize import serialize
from equipoise.core.user_file import named_in_file
from equipoise.data.histories import MemoryQuestion, Session
from equipoise.data.retrieve import directions
from equipoise.data.text import printable

CALLS = ("ingest", "answer", "snapshot")


class UserMemory:
    """An object of the user's own with the three calls; what they give is checked. as_of: whether `answer` takes `until`.

    name: it is called by. budget: most tokens of a context; count: of the tokens that were read, whatever the system says of
    them, where it gives its context. Raises BadInput for an object without one of the calls.
    """

    def __init__(self, system: Any, name: str, *, budget: int | None = None, count: TokenCount = words) -> None:
        missing = [call for call in CALLS if not callable(getattr(system, call, None))]
        if missing or inspect.isclass(system):
            raise BadInput(
                f"{name} gave {'the class' if inspect.isclass(system) else 'a'} {_type(system)}, expected an object with "
                f"ingest(session, time), answer(question, now) and snapshot()"
                + (f"; {', '.join(missing)} is missing." if missing else ".")
            )
        self.name, self._system, self._budget, self._count = name, system, budget, count
        takes = inspect.signature(system.answer).parameters.values()
        self.as_of = any(each.name == "until" or each.kind is each.VAR_KEYWORD for each in takes)

    def ingest(self, session: Session, time: datetime) -> Mapping[str, float]:
        """Its amounts by name; {} for None. Raises WorkFailed where it fails, or gives something else."""
        amounts = self._called("ingest", session, time)
        if amounts is None:
            return {}
        if not isinstance(amounts, Mapping):
            raise WorkFailed(f"{self.name}: ingest gave a {_type(amounts)}, expected amounts by name, or None.")
        for amount, value in amounts.items():
            if not isinstance(amount, str) or not _amount(value):
                raise WorkFailed(
                    f"{self.name}: ingest gave {amount!r}: {value!r}, expected names and numbers from 0 on."
                )
        return {name: float(value) for name, value in amounts.items()}

    def answer(self, question: MemoryQuestion, now: datetime, *, until: datetime | None = None) -> MemoryAnswer:
        """Its answer; words alone are one without items, and of a choice the option whose letter they give.

        Raises BadInput for `until` where it takes none; WorkFailed where it fails, gives something else, prints an item that
        changed after `until`, or more than the budget.
        """
        if until is not None and not self.as_of:
            raise BadInput(f"{self.name} takes no until=: it can be run online and offline, and not as of a moment.")
        found = self._called("answer", question, now, **({} if until is None else {"until": until}))
        if isinstance(found, str):
            found = MemoryAnswer(found)
        if not isinstance(found, MemoryAnswer):
            raise WorkFailed(f"{self.name}: answer gave a {_type(found)}, expected words or a MemoryAnswer.")
        if wrong := _unfit(found):
            raise WorkFailed(f"{self.name}: answer gave a MemoryAnswer whose {wrong}.")
        found = replace(
            found,
            items=tuple(replace(item, sources=tuple(item.sources)) for item in found.items),
            read_tokens=int(found.read_tokens),
            choice=None if found.choice is None else int(found.choice),
            amounts={name: float(value) for name, value in found.amounts.items()},
        )
        if until is not None and (late := [item for item in found.items if item.time > until]):
            raise WorkFailed(
                f"{self.name}: asked until {until}, it printed {late[0].id!r}, which changed at {late[0].time}."
            )
        if found.context:
            found = replace(found, read_tokens=self._count(found.context))
            if self._budget is not None and found.read_tokens > self._budget:
                raise WorkFailed(
                    f"{self.name}: answer printed {found.read_tokens} tokens and the budget is {self._budget}: it would be "
                    "compared with systems that read less."
                )
        if question.options and found.choice is None:
            found = replace(found, choice=letter(found.text, len(question.options)))
        if found.choice is not None and not 0 <= found.choice < len(question.options):
            raise WorkFailed(
                f"{self.name}: answer chose option {found.choice} of {len(question.options)}, counted from 0."
            )
        return found

    def snapshot(self) -> str:
        """Its digest. Raises WorkFailed where it is no text."""
        digest = self._called("snapshot")
        if not isinstance(digest, str):
            raise WorkFailed(
                f"{self.name}: snapshot gave a {_type(digest)}, expected a text that tells its states apart."
            )
        return digest

    def _called(self, call: str, *given: Any, **named: Any) -> Any:
        try:
            return getattr(self._system, call)(*given, **named)
        except EquipoiseError:
            raise
        except (Exception, SystemExit) as error:
            raise WorkFailed(
                f"{self.name}: {call} failed with {type(error).__name__}: {printable(str(error))[:200]}"
            ) from error


def user_memory(
    source: str | Callable[..., Any],
    *,
    reader: Reader,
    embedder: Embedder | None = None,
    k: int = 20,
    budget: int | None = None,
    count: TokenCount = words,
    name: str | None = None,
) -> MemorySystem:
    """What a function of the user's own returns, as FILE:FUNCTION or itself. name: it is called by; else as `source` says.

    The file is run as Python would run it: it is the user's own, and has to be typed. Raises BadInput for a function that
    is none, that asks for what there is not, or that fails, and for what it returns without the three calls.
    """
    if isinstance(source, str):
        make, _, _ = named_in_file(source, kind="memory", what="a memory system", example="mine.py:memory")
        name = name or source
    else:
        make = source
        name = name or str(getattr(source, "__name__", _type(source)))
    if not callable(make):
        raise BadInput(f"{name} is a {_type(make)}, expected a function that returns a memory system.")
    given = {"reader": reader, "embedder": embedder, "k": k, "budget": budget, "count": count}
    parameters = inspect.signature(make).parameters.values()
    every = any(each.kind is each.VAR_KEYWORD for each in parameters)
    strange = [
        each.name
        for each in parameters
        if each.name not in given and each.default is each.empty and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    ]  # fmt: skip
    if strange:
        raise BadInput(f"{name} asks for {', '.join(strange)}; it may ask for {', '.join(given)}.")
    try:
        named = {each.name for each in parameters}
        system = make(**{part: value for part, value in given.items() if every or part in named})
    except EquipoiseError:
        raise
    except (Exception, SystemExit) as error:
        raise BadInput(f"{name}() gives no memory system: {type(error).__name__}: {error}") from error
    return UserMemory(system, name, budget=budget, count=count)


def _amount(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value) and float(value) >= 0


def _unfit(answer: MemoryAnswer) -> str:
    """Which part of an answer is not what its type says, and what it should be; "" where all are."""
    for part in ("text", "context"):
        if not isinstance(getattr(answer, part), str):
            return f"{part} is a {_type(getattr(answer, part))}, expected words"
    if not _whole(answer.read_tokens) or answer.read_tokens < 0:
        return f"read_tokens is {answer.read_tokens!r}, expected a whole number from 0 on"
    if answer.choice is not None and not _whole(answer.choice):
        return f"choice is {answer.choice!r}, expected the place of an option, counted from 0, or None"
    if not isinstance(answer.items, tuple | list):
        return f"items is a {_type(answer.items)}, expected a tuple of MemoryItem"
    for item in answer.items:
        if not isinstance(item, MemoryItem):
            return f"items hold a {_type(item)}, expected MemoryItem"
        if not all(isinstance(each, str) for each in (item.id, item.text, item.session)):
            return f"item {item.id!r} has an id, a text or a session that is no text"
        if not isinstance(item.time, datetime) or item.time.tzinfo is not None:
            return f"item {item.id!r} has the time {item.time!r}, expected a datetime without a time zone, as sessions have"
        if not isinstance(item.sources, tuple | list) or not all(isinstance(each, str) for each in item.sources):
            return f"item {item.id!r} has the sources {item.sources!r}, expected a tuple with the ids of its turns"
    if not isinstance(answer.amounts, Mapping):
        return f"amounts is a {_type(answer.amounts)}, expected numbers by name"
    for name, value in answer.amounts.items():
        if not isinstance(name, str) or not _amount(value):
            return f"amounts hold {name!r}: {value!r}, expected names and numbers from 0 on"
    try:
        serialize(list(answer.trace))
    except (EquipoiseError, TypeError) as error:
        return f"trace cannot be stored: {error}"
    if not all(isinstance(step, Mapping) for step in answer.trace):
        return "trace holds what is no mapping, expected a mapping for each decision"
    return ""


def _whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _type(value: Any) -> str:
    return value.__name__ if inspect.isclass(value) else type(value).__name__


class Mem0Memory(Remembering):
    """mem0 (seen with mem0ai 2.2.1) as a memory system; what is held is read from its store.

    memory: a `mem0.Memory`, such as `local_mem0` makes, of which only what it holds for `user` counts. infer: its model
    draws out what is kept; else turns are kept as they are. Its search knows no past, so that as-of is refused.
    """

    as_of = False

    def __init__(
        self,
        memory: Any,
        *,
        reader: Reader,
        k: int = 20,
        budget: int | None = None,
        count: TokenCount = words,
        infer: bool = True,
        user: str = "equipoise",
    ) -> None:
        """Raises BadInput for what is no mem0.Memory, and for one that holds something of this user already."""
        super().__init__("mem0", reader=reader, k=k, budget=budget, count=count)
        if missing := [call for call in ("add", "search", "get_all") if not callable(getattr(memory, call, None))]:
            raise BadInput(f"A {_type(memory)} is no mem0.Memory: it has no {', '.join(missing)}.")
        self._memory, self._infer, self._filters = memory, infer, {"user_id": user}
        self._known: list[str] = []  # mem0's ids, which are drawn, of our items
        self._made = 0
        if self._held():
            raise BadInput(
                f"This mem0 holds memories of the user {user!r} already: give an empty one, or another user=."
            )

    def take(self, session: Session, time: datetime) -> Mapping[str, float]:
        """Add the turns of a session; memories that were added, updated and deleted."""
        counts = {"add": 0, "update": 0, "delete": 0, "written_tokens": 0}
        before = self._embedded()
        said = [
            {"role": "user", "name": turn.speaker, "content": turn_text(turn, session.time)} for turn in session.turns
        ]
        every = tuple(turn.id for turn in session.turns)
        events = []
        if said:
            meta = {"session": session.id, "said": time.isoformat()}
            added_ones = self._memory.add(said, metadata=meta, infer=self._infer, **self._filters)
            events = added_ones["results"]
        for number, event in enumerate(events):
            kind, name = event["event"].lower(), event["id"]
            if kind not in ("add", "update", "delete"):
                continue
            counts[kind] += 1
            if kind == "delete":
                place = self._known.index(name)
                del self._known[place], self.items[place]
                continue
            text = event["memory"] if not self._infer else f"{stamp(time)} {event['memory']}"
            counts["written_tokens"] += self._count(text)
            sources = every if self._infer else (every[number],)
            if kind == "update":
                place = self._known.index(name)
                old = self.items[place]
                sources = tuple(dict.fromkeys((*kept_sources(old, event["memory"]), *sources)))
                self.items[place] = replace(old, text=text, time=time, sources=sources, session=session.id)
            else:
                self._made += 1
                self._known.append(name)
                self.items.append(MemoryItem(f"memory {self._made}", text, time, sources, session.id))
        return {**counts, "embedded_tokens": self._embedded() - before}

    def show(self, question: MemoryQuestion, now: datetime, until: datetime | None) -> Shown:
        """What its search gives. Raises BadInput for `until`."""
        if until is not None:
            raise BadInput("mem0 takes no until=: it can be run online and offline, and not as of a moment.")
        before = self._embedded()
        found = self._memory.search(question.text, top_k=self._k, filters=self._filters, threshold=0.0)["results"]
        places = [self._known.index(each["id"]) for each in found]
        scores = ranks(self.items, places, score=[float(each["score"]) for each in found])
        return self.printed(places, {"embedded_tokens": self._embedded() - before}, scores)

    def state(self) -> Any:
        """What its store holds, by our names."""
        held = [(self._known.index(each["id"]), each["memory"], each.get("metadata")) for each in self._held()]
        return [self._made, sorted(held, key=lambda row: row[0])]

    def _held(self) -> list[Mapping[str, Any]]:
        return self._memory.get_all(filters=self._filters, top_k=max(1, len(self._known) + 1))["results"]

    def _embedded(self) -> int:
        return getattr(getattr(self._memory, "embedding_model", None), "tokens", 0)


class _Mem0Embedder:
    """An embedder as mem0 calls it. tokens: of all texts so far."""

    def __init__(self, embedder: Embedder, count: TokenCount) -> None:
        self._embedder, self._count, self.tokens = embedder, count, 0

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        return self.embed_batch([text])[0]

    def embed_batch(self, texts: Sequence[str], memory_action: str | None = None) -> list[list[float]]:
        self.tokens += sum(map(self._count, texts))
        return directions(self._embedder(texts), len(texts)).tolist()


def local_mem0(
    folder: str | Path, embedder: Embedder, *, llm: Mapping[str, Any] | None = None, count: TokenCount = words
) -> Any:
    """A `mem0.Memory` in a folder of its own: qdrant and its history there, vectors by `embedder`, no telemetry.

    llm: mem0's configuration of the model that draws memories out; without one nothing can be inferred (infer=False). count:
    of embedded tokens. Raises MissingExtra without mem0, and BadInput where the folder is not empty.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise BadInput(f"{folder} is not empty: a memory begins with a folder of its own.")
    os.environ.setdefault("MEM0_TELEMETRY", "False")
    os.environ.setdefault("MEM0_DIR", str(folder / "mem0"))  # which its import makes, else in the user's home
    try:
        mem0 = importlib.import_module("mem0")
        importlib.import_module("qdrant_client")
        sends = importlib.import_module("mem0.memory.telemetry").MEM0_TELEMETRY
    except ImportError as error:
        raise MissingExtra("mem0 is not installed: pip install mem0ai.") from error
    if sends and os.environ["MEM0_TELEMETRY"] == "False":
        raise BadInput(
            "mem0 was imported before, and sends telemetry: set MEM0_TELEMETRY=False before its first import."
        )
    width = directions(embedder(["width"]), 1).shape[1]
    unasked = {"provider": "openai", "config": {"api_key": "none"}}
    memory = mem0.Memory.from_config(
        {
            "vector_store": {
                "provider": "qdrant",
                "config": {"path": str(folder / "qdrant"), "embedding_model_dims": width, "on_disk": True},
            },
            "embedder": unasked,
            "llm": dict(llm or unasked),
            "history_db_path": str(folder / "history.db"),
        }
    )
    memory.embedding_model = _Mem0Embedder(embedder, count)
    return memory
