"""What both jobs of memory are asked for: histories, systems by name or of the user's own, who embeds and who reads."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from equipoise.agents.lifedialbench import stream_digest
from equipoise.agents.memory import MemorySystem, Unread, words
from equipoise.agents.memory_adapters import user_memory
from equipoise.agents.memory_chat import ChatDecider, ChatExtractor
from equipoise.agents.memory_systems import MemoryName, build
from equipoise.agents.readers import ChatReader
from equipoise.chat.client import resolve
from equipoise.chat.roles import Players, Role, Roles
from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.files import sha256_file
from equipoise.core.rows import Rows
from equipoise.core.user_file import named_in_file
from equipoise.data.histories import History
from equipoise.data.history_rows import objects_digest
from equipoise.data.lifelogs import read_histories
from equipoise.language.embed import MINILM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from equipoise.language.embed import Embedder

NAMES: tuple[str, ...] = get_args(MemoryName)
NONE = "none"
VECTORS = "vectors"  # the folder of those that were made, in the folder of the job
CUT = "cut.jsonl"  # in it: the texts that were longer than the window
COMPARE_VECTORS = frozenset(
    {"rag-turns", "rag-sessions", "rag-rerank", "chain-of-memory", "facts", "notes", "session-notes"}
)
THINNED = "thinned"  # by vectors, as the text that it is a control of; by words where the embedder is none
WRITE_BY_MODEL = frozenset({"facts", "notes", "session-notes"})
DECIDE_BY_MODEL = frozenset({"facts", "notes"})


@dataclass(frozen=True, eq=False)
class AskedSystems:
    """Systems that were found to be there; nothing is opened yet. own: name -> who makes a new one, by the user's file.

    inputs: digests of the files and models that they stand for. by_vectors: names of those that are given the embedder,
    whoever stands beside them.
    """

    names: tuple[str, ...]
    own: Mapping[str, Callable[..., Any]]
    roles: Roles
    reads: str
    extracts: str
    embedder: str
    by_vectors: frozenset[str]
    k: int
    budget: int | None
    inputs: Mapping[str, str]

    @classmethod
    def read(cls, names: Sequence[str], asked: SimpleNamespace, *further: Role) -> AskedSystems:
        """Raises BadInput for a system that is not there, stands twice, or cannot do without what is not given."""
        inputs: dict[str, str] = {}
        own: dict[str, Callable[..., Any]] = {}
        if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
            raise BadInput(f"The system {twice} is named twice: name it once.")
        roles = Roles.read(asked, Role("reader", optional=True), Role("extractor", like="reader"), *further)
        for name in names:
            if name in NAMES:
                _check(name, asked)
            elif ":" in name:
                own[name], digest = _own(name)
                inputs[f"the system {name}"] = digest
            else:
                raise BadInput(f"There is no memory system {name!r}. {did_you_mean(name, NAMES)}")
        for role in ("reader", "extractor"):
            model = getattr(asked, role)
            if model is not None and (full := resolve(model)[0]) != model:
                inputs[f"the {role}"] = full
        if asked.replay is not None:
            inputs["the record"] = sha256_file(Path(asked.replay))
        by_vectors = frozenset(
            name for name in names if asked.embedder is not None or _compares_vectors(name, own.get(name))
        )
        return cls(
            names=tuple(names),
            own=own,
            roles=roles,
            reads=asked.reader or "",
            extracts=asked.extractor or asked.reader or "",
            embedder=(MINILM if by_vectors else NONE) if asked.embedder is None else str(asked.embedder),
            by_vectors=by_vectors,
            k=asked.k,
            budget=asked.context_tokens,
            inputs=inputs,
        )

    @contextlib.contextmanager
    def open(self, folder: Path | None) -> Iterator[OpenSystems]:
        """Who reads, extracts and embeds, ready. Raises BadInput, MissingExtra among them, before anything is paid for."""
        with self.roles.open(folder) as players:
            opened = OpenSystems(self, players, _Vectors.opened(self.embedder, folder))
            for name in self.names:
                opened.build(name)
            yield opened

    @property
    def by_model(self) -> tuple[str, ...]:
        """The systems that ask a model about every session."""
        return tuple(name for name in self.names if name in WRITE_BY_MODEL)


@dataclass(frozen=True, eq=False)
class OpenSystems:
    """See `AskedSystems.open`. vectors: None where nobody embeds."""

    asked: AskedSystems
    players: Players
    vectors: _Vectors | None

    def build(self, name: str) -> MemorySystem:
        """A new memory that holds nothing. It prints and does not read: `reader` reads what it printed."""
        asked = self.asked
        how: dict[str, Any] = {"reader": Unread(), "k": asked.k, "budget": asked.budget, "count": words}
        how["embedder"] = self.vectors if name in asked.by_vectors else None
        if name in asked.own:
            return user_memory(asked.own[name], **how, name=name)
        if name in WRITE_BY_MODEL:
            chat = self.players.chat("extractor")
            how["extractor"] = ChatExtractor(chat)
            how |= {"decider": ChatDecider(chat)} if name in DECIDE_BY_MODEL else {}
        return build(cast(MemoryName, name), **how)

    @property
    def reader(self) -> ChatReader | None:
        """Who reads; None for nobody."""
        return ChatReader(self.players.chat("reader")) if self.asked.reads else None


def _own(source: str) -> tuple[Callable[..., Any], str]:
    """What FILE:FUNCTION stands for, and the digest of the file."""
    make, path, name = named_in_file(source, kind="memory", what="a memory system", example="mine.py:memory")
    if not callable(make):
        raise BadInput(f"{name} of {path} is no function: give one that returns a new memory system.")
    return cast("Callable[..., Any]", make), sha256_file(path)


class _Vectors:
    """texts -> [n, width], of which none is made twice. cut: digests of texts that were longer than the window.

    These are stored as they are found: a call that goes on where another was killed embeds only what is left.
    """

    def __init__(self, embedder: Embedder, cut: Rows) -> None:
        self._embedder, self._rows = embedder, cut
        self.cut = {digest for row in cut for digest in row["cut"]}

    @classmethod
    def opened(cls, name: str, folder: Path | None) -> _Vectors | None:
        from equipoise.language.embed import Embedder

        if name == NONE:
            return None
        cache = None if folder is None else folder / VECTORS
        return cls(Embedder(name, overflow="cut", cache=cache), Rows(None if cache is None else cache / CUT))

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        found = self._embedder(texts)
        texts_cut = (texts[place].encode(errors="surrogatepass") for place in found.cut)
        if new := {hashlib.sha256(text).hexdigest() for text in texts_cut} - self.cut:
            if self._rows.path is not None:
                self._rows.path.parent.mkdir(parents=True, exist_ok=True)
            self._rows.add({"cut": sorted(new)})
            self.cut |= new
        return found.vectors

    def notes(self) -> list[str]:
        """What a reader must know of texts that were cut."""
        if not self.cut:
            return [*self._rows.damaged]
        return [
            *self._rows.damaged,
            f"{len(self.cut)} texts are longer than the {self._embedder.window} tokens that {self._embedder.name} reads: "
            "their vectors are of their beginnings.",
        ]


def histories_of(source: Any, limit: int | None = None) -> tuple[tuple[History, ...], str, str]:
    """The histories of a file, or those given; their name and digest. limit: questions of each, the first ones."""
    if isinstance(source, str | Path):
        found, name, digest = read_histories(source), str(source), objects_digest(source)
    else:
        found = list(source)
        if not found or not all(isinstance(each, History) for each in found):
            raise BadInput("Expected a file with histories, or History objects.")
        name = f"{len(found)} histories"
        digest = hashlib.sha256(" ".join(map(stream_digest, found)).encode()).hexdigest()
    names = [each.name for each in found]
    if twice := next((each for place, each in enumerate(names) if each in names[:place]), None):
        raise BadInput(f"{name}: two histories are named {twice!r}; give each a name of its own.")
    return (
        tuple(each if limit is None else replace(each, questions=each.questions[:limit]) for each in found),
        name,
        digest,
    )


def _check(name: str, asked: SimpleNamespace) -> None:
    if name == "rag-rerank":
        raise BadInput(
            "rag-rerank needs a reranker, which is Python: build it in a file of your own, --system mine.py:build."
        )
    if name in WRITE_BY_MODEL and asked.extractor is None and asked.reader is None:
        raise BadInput(
            f"{name} has a model write what it keeps: name it, --extractor openai/gpt-4o-mini, or leave {name} out."
        )
    if name in COMPARE_VECTORS and asked.embedder == NONE:
        raise BadInput(
            f"{name} compares vectors, and the embedder is none: use --embedder {MINILM}, or leave {name} out."
        )


def _compares_vectors(name: str, own: Callable[..., Any] | None) -> bool:
    """Whether a system needs an embedder: a function of the user's own where it names one; **others asks for nothing."""
    if own is not None:
        return "embedder" in inspect.signature(own).parameters
    return name in COMPARE_VECTORS or name == THINNED
