"""Memories of others behind the three calls: the user's own, from a file, and mem0 where it is installed.

    system = user_memory("mine.py:memory", reader=reader, k=20)       what the function returns has ingest, answer, snapshot
    system.as_of                                                      whether it can be asked as of a moment

A function may take reader, embedder, k, budget and count, those that it names. `answer` may return a `MemoryAnswer` or the
words alone. One whose `answer` has no `until` runs under the online and offline protocols; as-of is refused by name.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from equipoise.agents.memory import MemoryAnswer, MemorySystem, Reader, TokenCount, words
from equipoise.agents.memory_store import Embedder
from equipoise.agents.readers import letter
from equipoise.core.errors import BadInput, EquipoiseError, WorkFailed
from equipoise.core.user_file import named_in_file
from equipoise.data.histories import MemoryQuestion, Session
from equipoise.data.text import printable

CALLS = ("ingest", "answer", "snapshot")


class UserMemory:
    """An object of the user's own with the three calls; what they give is checked. as_of: whether `answer` takes `until`.

    name: it is called by. Raises BadInput for an object without one of the calls.
    """

    def __init__(self, system: Any, name: str) -> None:
        missing = [call for call in CALLS if not callable(getattr(system, call, None))]
        if missing or inspect.isclass(system):
            raise BadInput(
                f"{name} gave {'the class' if inspect.isclass(system) else 'a'} {_type(system)}, expected an object with "
                f"ingest(session, time), answer(question, now) and snapshot()"
                + (f"; {', '.join(missing)} is missing." if missing else ".")
            )
        self.name, self._system = name, system
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
            real = isinstance(value, numbers.Real) and math.isfinite(value)
            if not isinstance(amount, str) or not real or value < 0:
                raise WorkFailed(
                    f"{self.name}: ingest gave {amount!r}: {value!r}, expected names and numbers from 0 on."
                )
        return {name: float(value) for name, value in amounts.items()}

    def answer(self, question: MemoryQuestion, now: datetime, *, until: datetime | None = None) -> MemoryAnswer:
        """Its answer; words alone are one without items, and of a choice the option whose letter they give.

        Raises BadInput for `until` where it takes none; WorkFailed where it fails, gives something else, or prints an item
        that changed after `until`.
        """
        if until is not None and not self.as_of:
            raise BadInput(f"{self.name} takes no until=: it can be run online and offline, and not as of a moment.")
        found = self._called("answer", question, now, **({} if until is None else {"until": until}))
        if isinstance(found, str):
            found = MemoryAnswer(found)
        if not isinstance(found, MemoryAnswer):
            raise WorkFailed(f"{self.name}: answer gave a {_type(found)}, expected words or a MemoryAnswer.")
        if until is not None and (late := [item for item in found.items if item.time > until]):
            raise WorkFailed(
                f"{self.name}: asked until {until}, it printed {late[0].id!r}, which changed at {late[0].time}."
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
        except Exception as error:
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
        name = name or getattr(source, "__name__", _type(source))
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
    except Exception as error:
        raise BadInput(f"{name}() gives no memory system: {type(error).__name__}: {error}") from error
    return UserMemory(system, name)


def _type(value: Any) -> str:
    return value.__name__ if inspect.isclass(value) else type(value).__name__
