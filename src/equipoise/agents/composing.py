"""The work of `memory compose`: a life from the top down, questions about it, and a look for what gives answers away.

Killed at any moment, the same call goes on: calls.jsonl has each answer of a model; templates write the same again at once.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from equipoise.agents.compose import Persona, check_span, compose, lines_of, plain, read_persona, slots
from equipoise.agents.compose_chat import ChatWriter
from equipoise.agents.compose_questions import history_of, make_questions
from equipoise.agents.compose_result import ComposedHistory, ComposePlan, LeakReport
from equipoise.agents.compose_templates import TemplateWriter
from equipoise.agents.leaks import lint
from equipoise.agents.memory import words
from equipoise.chat.roles import Players, Role, Roles
from equipoise.core.errors import BadInput
from equipoise.core.files import write_atomic
from equipoise.core.job import Request
from equipoise.data.histories import History
from equipoise.data.history_rows import objects_digest
from equipoise.data.lifelogs import KINDS, lifedial_record, read_histories

LIFELOG, PLAN, LEAKS = "lifelog.json", "plan.jsonl", "leaks.jsonl"
TEMPLATED = "Templates wrote this: it shows what a memory finds, not how people talk."
FROM_THE_TOP = (
    "It was written from the top down, as LifeMem; from the bottom up out of videos, as EgoMem, is untested here."
)


@dataclass(frozen=True, eq=False)
class Composing(Request):
    """A request to compose, read and found right. persona: None where only given questions are looked through."""

    persona: Persona | None
    start: date
    days: int
    roles: Roles
    given: tuple[History, ...]
    limits: SimpleNamespace
    seed: int
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        persona: Path | None,
        *,
        start: date,
        days: int,
        lint: Path | None,
        server: SimpleNamespace,
        limits: SimpleNamespace,
        seed: int,
    ) -> Composing:
        """Raises BadInput for a wrong request; asks nothing."""
        if persona is None and lint is None:
            raise BadInput(
                "there is nothing to do: give a persona to compose a life of, or questions to lint, or both."
            )
        roles = Roles.read(server, Role("model", optional=True), Role("critic", like="model"))
        if server.model is None and server.critic is not None:
            raise BadInput("a critic checks what a model writes, and templates write here: give a model, or no critic.")
        if persona is None and server.model is not None:
            raise BadInput("a model writes a persona's life, and there is no persona: give one, or no model.")
        files = {"persona": persona, "lint": lint}
        found = None if persona is None else read_persona(persona)
        if found is not None:
            check_span(found, start, days)
            if server.model is None:
                TemplateWriter(found, events_per_day=limits.events_per_day, seed=seed)
        return cls(
            persona=found,
            start=start,
            days=days,
            roles=roles,
            given=() if lint is None else tuple(read_histories(lint)),
            limits=limits,
            seed=seed,
            inputs={name: objects_digest(path) for name, path in files.items() if path is not None},
            resolved={},
        )

    @property
    def _source(self) -> str:
        if self.persona is None:
            return "nobody"
        return self.roles.models[0] if self.roles.models else "templates"

    def plan(self) -> ComposePlan:
        with self._players(None):
            pass
        periods: dict[str, int] = {}
        calls = 0
        if self.persona is not None:
            spans = [(self.start, self.start + timedelta(days=self.days - 1))]
            for level in ("month", "week", "day"):
                above, spans = spans, [part for first, last in spans for part in slots(level, first, last)]
                periods[level] = len(spans)
                calls += len(above) + 2 * len(spans)  # allocated, enriched and checked
            events = self.days * self.limits.events_per_day
            questions = self.days * self.limits.questions_per_day
            calls += 2 * self.days + events + (self.days if questions else 0) + questions
        return ComposePlan(
            source=self._source,
            name="" if self.persona is None else self.persona.name,
            span=f"{self.days} days from {self.start}",
            periods=periods,
            calls=calls if self.roles.models else 0,
            given=sum(len(history.questions) for history in self.given),
        )

    def work(self, folder: Path | None) -> ComposedHistory:
        with self._players(folder) as players:
            history, told = self._composed(players, folder)
            total = players.account.total()
        made = None if history is None else lint(history)
        looked = lint(*self.given) if self.given else None
        self._write_leaks(folder, made, looked)
        sessions = () if history is None else history.sessions
        turns = [turn.text for session in sessions for turn in session.turns]
        counted = Counter(question.kind for question in (() if history is None else history.questions))
        notes = (FROM_THE_TOP, *(() if self.roles.models else (TEMPLATED,)))
        return ComposedHistory(
            names={} if self.persona is None else {"persona": self.persona.name},
            source=self._source,
            days=0 if history is None else self.days,
            sessions=len(sessions),
            turns=len(turns),
            words=sum(map(words, turns)),
            kinds={} if history is None else {kind: counted[kind] for kind in KINDS},
            gates=told.get("gates", ()),
            dropped=told.get("dropped", {}),
            made=made,
            looked=looked,
            calls=total.calls,
            tokens=total.usage.prompt + total.usage.generated,
            notes=notes if history is not None else (),
            history=history,
        )

    @contextlib.contextmanager
    def _players(self, folder: Path | None) -> Iterator[Players]:
        with self.roles.open(folder) as players:
            yield players

    def _composed(self, players: Players, folder: Path | None) -> tuple[History | None, dict[str, Any]]:
        """The life, stored; None without a persona. And what its gates came to, and what was dropped."""
        persona = self.persona
        if persona is None:
            return None, {}
        most = self.limits.events_per_day
        if self.roles.models:
            writer = ChatWriter(
                persona,
                players.chat("model"),
                players.chat("critic"),
                events_per_day=most,
                temperature=self.limits.temperature,
                max_tokens=self.limits.max_tokens,
            )
        else:
            writer = TemplateWriter(persona, events_per_day=most, seed=self.seed)
        composed = compose(persona, self.start, self.days, writer, repairs=self.limits.repairs)
        per_day = self.limits.questions_per_day
        if isinstance(writer, ChatWriter):
            drafts, missed = writer.questions(composed.spoken, per_day) if per_day else ([], {})
        else:
            drafts, missed = make_questions(persona.name, composed.spoken, per_day=per_day, seed=self.seed)
        history = history_of(persona.name, composed.spoken, drafts, seed=self.seed)
        if folder is not None:
            record = json.dumps([lifedial_record(history)], ensure_ascii=False, indent=1)
            write_atomic(folder / LIFELOG, record + "\n")
            write_atomic(folder / PLAN, lines_of(plain(composed)))
        return history, {"gates": composed.gates, "dropped": {**composed.dropped, **missed}}

    def _write_leaks(self, folder: Path | None, made: LeakReport | None, looked: LeakReport | None) -> None:
        if folder is None:
            return
        rows = [
            {"questions": whose, "id": leak.question, "leak": leak.kind, "what": leak.text}
            for whose, report in (("made", made), ("given", looked))
            for leak in (report.leaks if report is not None else ())
        ]
        write_atomic(folder / LEAKS, lines_of(rows))
