"""The work of `memory ask`: take in what was said until then, ask, show what the answer rests on."""

from __future__ import annotations

import time as clock
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from equipoise.agents.asked_systems import NONE, VECTORS, AskedSystems, histories_of
from equipoise.agents.memory_result import Evidence, MemoryReply, ReplyPlan
from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.job import Request
from equipoise.core.progress import progress
from equipoise.core.serialize import serialize
from equipoise.data.histories import History, MemoryQuestion, Session
from equipoise.data.history_rows import Row
from equipoise.data.text import encodable


@dataclass(frozen=True, eq=False)
class Asking(Request):
    """A question to ask, found right. heard: what had been said by then; turns without times of their own have that
    of their session.
    """

    history: History
    heard: tuple[Session, ...]
    question: MemoryQuestion
    now: datetime
    asked: AskedSystems
    name: str
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(cls, source: Any, question: str, asked: SimpleNamespace) -> Asking:
        """asked: the further options of the job. Raises BadInput for a wrong request; asks nobody."""
        if not question.strip():
            raise BadInput("The question is empty: ask something, --question '...'.")
        histories, name, digest = histories_of(source)
        history = _chosen(histories, asked.conversation, name)
        last = [each.time for each in history.sessions]
        last += [turn.time for each in history.sessions for turn in each.turns if turn.time is not None]
        if not last:
            raise BadInput(f"{history.name} has no sessions: nothing was said that could be remembered.")
        now = max(last)
        if asked.now is not None:
            now = Row({"now": asked.now}, "The question").moment("now", whole=time.max)
        heard = tuple(
            replace(each, turns=tuple(turn for turn in each.turns if (turn.time or each.time) <= now))
            for each in history.sessions
            if each.time <= now
        )
        if not heard:
            raise BadInput(
                f"Nothing was said until {_shown(now)}: {history.name} begins at {_shown(history.sessions[0].time)}."
            )
        found = AskedSystems.read([asked.system], asked)
        return cls(
            history=history,
            heard=heard,
            question=MemoryQuestion("asked", question, None if asked.now is None else now),
            now=now,
            asked=found,
            name=name,
            inputs={"the history": digest, **found.inputs},
            resolved={} if isinstance(source, str | Path) else {"history": name},
        )

    def plan(self) -> ReplyPlan:
        with self.asked.open(None):
            return ReplyPlan(
                system=self.asked.names[0],
                question=self.question.text,
                now=_shown(self.now),
                sessions=len(self.heard),
                of=len(self.history.sessions),
                turns=sum(len(each.turns) for each in self.heard),
                reader=self.asked.reads,
                calls=None if self.asked.by_model or self.asked.own else int(bool(self.asked.reads)),
            )

    def work(self, folder: Path | None) -> MemoryReply:
        with self.asked.open(folder) as opened:
            memory = opened.build(self.asked.names[0])
            start = clock.perf_counter()
            build = self._taken_in(memory)
            built = clock.perf_counter()
            state = memory.snapshot()
            asked = clock.perf_counter()
            answer = memory.answer(self.question, self.now)
            text, choice = answer.text, answer.choice
            if opened.reader is not None and not text and choice is None:
                ((text, _),) = opened.reader.read_all([(self.question, answer, self.now)])
            read = clock.perf_counter()
            wrote = memory.snapshot() != state
            notes = [] if opened.vectors is None else opened.vectors.notes()
        if wrote:
            notes.append(f"{self.asked.names[0]} writes while it is read: asked again, it may answer in another way.")
        return MemoryReply(
            names={
                "history": f"{self.history.name}, in {self.name}",
                "system": self.asked.names[0],
                "reader": self.asked.reads,
                "embedder": self.asked.embedder if self.asked.embedder != NONE else "",
            },
            question=self.question.text,
            now=_shown(self.now),
            answer=encodable(text),
            evidence=tuple(
                Evidence(item.id, item.session, _shown(item.time), encodable(item.text), item.sources)
                for item in answer.items
            ),
            trace=tuple(serialize(step) for step in answer.trace),
            read_tokens=answer.read_tokens,
            sessions=len(self.heard),
            of=len(self.history.sessions),
            build=build,
            query=dict(answer.amounts),
            seconds={"build": built - start, "read": read - asked},
            notes=tuple(notes),
        )

    def scratch(self) -> tuple[str, ...]:
        return (VECTORS,)

    def _taken_in(self, memory: Any) -> dict[str, float]:
        """Amounts by name, over all sessions."""
        total: dict[str, float] = {}
        with progress("Taking in", total=len(self.heard), unit="sessions") as bar:
            for session in self.heard:
                for name, amount in memory.ingest(session, session.time).items():
                    total[name] = total.get(name, 0) + amount
                bar.advance()
        return total


def _chosen(histories: tuple[History, ...], wanted: str | None, name: str) -> History:
    names = [each.name for each in histories]
    if wanted is None and len(histories) > 1:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise BadInput(f"{name} holds {len(names)} histories ({shown}): name one, --conversation {names[0]}.")
    if wanted is not None and wanted not in names:
        raise BadInput(f"{name} has no history {wanted!r}. {did_you_mean(wanted, names)}")
    return histories[0 if wanted is None else names.index(wanted)]


def _shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}, at its end" if moment.time() == time.max else f"{moment:%Y-%m-%d %H:%M}"
