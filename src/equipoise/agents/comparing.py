"""The work of `memory compare`: every system is asked every question under each protocol, and what they say is judged.

Killed at any moment, the same call goes on: kept.jsonl has a row for each answer, calls.jsonl each answer of a model, and
vectors those that were made. A system that took sessions in before takes them in again, and has to come to the same state.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from equipoise.agents.asked_systems import NAMES, NONE, THINNED, VECTORS, AskedSystems, OpenSystems, histories_of
from equipoise.agents.comparing_scores import PROTOCOLS, Score, recalled, system_scores
from equipoise.agents.judged_answers import is_open, judge, planted
from equipoise.agents.kept_answers import KeptAnswers, SystemFailed, answered
from equipoise.agents.lifedialbench import (
    AskedQuestion,
    Clusters,
    MemoryAnswers,
    Protocol,
    clustered_by,
    clusters,
    joined,
)
from equipoise.agents.memory_result import UNKNOWN, ComparisonPlan, MemoryComparison, SystemScores
from equipoise.chat.client import resolve
from equipoise.chat.roles import Role
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import write_atomic
from equipoise.core.job import Request
from equipoise.core.options import check_fields, closed
from equipoise.core.progress import progress
from equipoise.core.rows import Rows

if TYPE_CHECKING:
    from equipoise.chat.grade import Planted
    from equipoise.data.histories import History, MemoryQuestion

KEPT, ANSWERS = "kept.jsonl", "answers.jsonl"
FULL, PLAIN = "full", ("bm25", "rag-turns", "rag-sessions")  # the compulsory rivals: all the text, and plain retrieval
_LOCOMO_TURN = re.compile(r"D\d+:\d+", re.ASCII)
LOCOMO = (
    "The data are LoCoMo's (CC BY-NC 4.0): not for commercial use, and answers.jsonl may quote them: share ids alone."
)


@dataclass(frozen=True, eq=False)
class Comparing(Request):
    """A request to compare, read and found right. asked: who is compared, the compulsory rivals that were added among them.

    groups: (history, question) -> its cluster; by: what clusters are made by. known: planted answers.
    """

    histories: tuple[History, ...]
    asked: AskedSystems
    added: tuple[str, ...]
    by: Clusters
    protocols: tuple[Protocol, ...]
    graders: tuple[str, ...]
    measure: str
    groups: Mapping[tuple[str, str], str]
    known: Sequence[Planted]
    seed: int
    name: str
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    @closed
    def read(
        cls, data: Any, systems: Sequence[str], protocols: Sequence[Protocol], asked: SimpleNamespace
    ) -> Comparing:
        """asked: the further options of the job. Raises BadInput for a wrong request; asks nobody."""
        histories, name, digest = histories_of(data, asked.limit)
        histories = tuple(each for each in histories if each.questions)
        if not histories:
            raise BadInput(f"{name} has no questions to ask: add some, with evidence or right answers.")
        if not systems:
            raise BadInput(f"No system is named. Known: {', '.join(NAMES)}, or FILE:FUNCTION for one of your own.")
        if not protocols:
            raise BadInput(f"No protocol is named: use some of {', '.join(PROTOCOLS)}.")
        added = () if FULL in systems else (FULL,)
        added += () if set(PLAIN) & set(systems) else PLAIN[:1]
        found = AskedSystems.read([*systems, *added], asked, Role("grader", optional=True))
        questions = [question for each in histories for question in each.questions]
        measure = "recall" if asked.reader is None else "accuracy"
        if asked.reader is None and not any(question.evidence for question in questions):
            raise BadInput(
                f"{name}: no question names its evidence, so that without a reader nothing can be measured: name who "
                "answers, --reader, or the turns that hold each answer."
            )
        graders = tuple(asked.grader or ())
        if graders and asked.reader is None and not found.own:
            raise BadInput("A grader is for answers, and nobody answers here: name a reader, or leave the grader out.")
        groups, by = _groups(histories, measure)
        known = planted(histories, groups, seed=asked.seed) if graders else []
        inputs = {"the data": digest, **found.inputs}
        inputs |= {f"the grader {each}": full for each in graders if (full := resolve(each)[0]) != each}
        return cls(
            histories=histories,
            asked=found,
            added=added,
            by=by,
            protocols=tuple(each for each in PROTOCOLS if each in protocols),
            graders=graders,
            measure=measure,
            groups=groups,
            known=known,
            seed=asked.seed,
            name=name,
            inputs=inputs,
            resolved={} if isinstance(data, str | Path) else {"data": name},
        )

    def plan(self) -> ComparisonPlan:
        with self.asked.open(None):
            return self._plan()

    def _plan(self) -> ComparisonPlan:
        questions = [question for each in self.histories for question in each.questions]
        times = len(self.asked.names) * len(self.protocols)
        graded = times * sum(map(is_open, questions)) + len(self.known)
        calls = {f"the reader {self.asked.reads}": times * len(questions)} if self.asked.reads else {}
        calls |= {f"the grader {each}": graded for each in self.graders}
        first = questions[0]
        return ComparisonPlan(
            **self._sizes(),
            with_evidence=sum(bool(question.evidence) for question in questions),
            systems=self.asked.names,
            added=self.added,
            protocols=self.protocols,
            reader=self.asked.reads or NONE,
            embedder=self.asked.embedder,
            answers=times * len(questions),
            calls=calls,
            further=self.asked.by_model,
            planted=len(self.known),
            first={
                "question": first.text,
                "time": "after the end" if first.time is None else first.time.isoformat(" "),
                "evidence": list(first.evidence),
            },
            licence=self._licence,
        )

    def work(self, folder: Path | None) -> MemoryComparison:
        kept = KeptAnswers(Rows(None if folder is None else folder / KEPT))
        with self.asked.open(folder) as opened:
            found, failed = self._answers(opened, kept)
            if not found:
                raise WorkFailed(f"No system has scores: {'; '.join(f'{name}: {why}' for name, why in failed.items())}")
            every = [each for by_protocol in found.values() for each in by_protocol.values()]
            judged = judge(every, opened.players.chats("grader"), self.known, self.groups, seed=self.seed)
            account = opened.players.account
            usage, calls = account.rows(), account.total().calls
            notes = [] if opened.vectors is None else opened.vectors.notes()
        measured: Score = judged.right if self.measure == "accuracy" else recalled
        right: dict[str, Score | None] = {
            name: judged.right if self.asked.reads or _answers(by_protocol.values()) else None
            for name, by_protocol in found.items()
        }
        first = {name: next(iter(by_protocol.values())) for name, by_protocol in found.items()}
        rivals = [name for name in (FULL, *PLAIN) if name in found][:2]
        scores: dict[str, SystemScores] = {}
        for name in self.asked.names:
            if name in failed:
                scores[name] = _without(name in self.added, failed[name])
                continue
            scores[name] = system_scores(
                found[name],
                measured,
                right[name],
                {rival: first[rival] for rival in rivals if rival != name},
                added=name in self.added,
                by=self.by,
                seed=self.seed,
            )
        if folder is not None:
            self._write(folder, found, kept, right)
        questions = [question for each in self.histories for question in each.questions]
        return MemoryComparison(
            names={
                "data": self.name,
                "reader": self.asked.reads,
                "extractor": self.asked.extracts if self.asked.by_model else "",
                "embedder": self.asked.embedder,
                "graders": ", ".join(self.graders),
            },
            **self._sizes(),
            with_evidence=sum(bool(question.evidence) for question in questions),
            measure=self.measure,
            k=self.asked.k,
            context_tokens=self.asked.budget,
            systems=scores,
            graders=judged.reports,
            agreement=judged.agreement,
            usage=tuple(usage),
            calls=calls,
            licence=self._licence,
            notes=(*notes, *self._notes(every), *kept.damaged),
        )

    def scratch(self) -> tuple[str, ...]:
        return KEPT, VECTORS

    def _answers(
        self, opened: OpenSystems, kept: KeptAnswers
    ) -> tuple[dict[str, dict[Protocol, MemoryAnswers]], dict[str, str]]:
        """By system and protocol, and why a system has none."""
        reader = opened.reader
        found, failed = dict[str, dict[Protocol, MemoryAnswers]](), dict[str, str]()
        with progress("Asking", total=len(self.asked.names) * len(self.histories), unit="histories") as bar:
            for name in self.asked.names:
                parts: list[dict[Protocol, MemoryAnswers]] = []
                begins: list[str] = []
                try:
                    for history in self.histories:
                        parts.append(self._unit(opened, name, history, kept, reader, begins))
                        bar.advance(1, system=name)
                    if self.protocols[0] not in parts[0]:
                        raise SystemFailed(
                            f"{name} takes no until=, and cannot be asked as of a moment, by which systems are compared "
                            "where online is not asked for: ask online, or offline alone."
                        )
                except SystemFailed as error:
                    failed[name] = str(error)
                    continue
                found[name] = {
                    each: joined([part[each] for part in parts]) for each in self.protocols if each in parts[0]
                }
        return found, failed

    def _unit(
        self,
        opened: OpenSystems,
        name: str,
        history: History,
        kept: KeptAnswers,
        reader: Any,
        begins: list[str],
    ) -> dict[Protocol, MemoryAnswers]:
        """One system and one history. begins: digests of its new memories so far."""
        read = None if reader is None else reader.read_all
        return answered(name, lambda: opened.build(name), history, self.protocols, kept, read, begins)

    def _write(
        self,
        folder: Path,
        found: Mapping[str, Mapping[Protocol, MemoryAnswers]],
        kept: KeptAnswers,
        right: Mapping[str, Score | None],
    ) -> None:
        """answers.jsonl: a line for each answer, without seconds, so that it is the same after a kill."""
        lines = []
        for name, by_protocol in found.items():
            score = right[name]
            for protocol, answers in by_protocol.items():
                for question, row in zip(answers.questions, answers.rows, strict=True):
                    credit = math.nan if score is None else score(question, row)
                    line = {
                        "system": name,
                        "protocol": protocol,
                        "history": row.history,
                        "question": row.question,
                        "answer": row.text,
                        "choice": row.choice,
                        "right": None if math.isnan(credit) else credit,
                        "evidence": list(question.evidence),
                        "found": list(row.found),
                        "items": list(kept.of(name, protocol, row.history)[row.question].items),
                        "printed": row.printed,
                        "later": row.later,
                        "read_tokens": row.read_tokens,
                        "amounts": dict(row.amounts),
                    }
                    lines.append(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        write_atomic(folder / ANSWERS, "".join(lines))

    def _sizes(self) -> dict[str, Any]:
        """How much there is, for the plan and for the result. clusters: of the questions that have what is compared."""
        measured = {(history.name, question.id) for history, question in _measured(self.histories, self.measure)}
        return {
            "histories": len(self.histories),
            "sessions": sum(len(each.sessions) for each in self.histories),
            "turns": sum(len(session.turns) for each in self.histories for session in each.sessions),
            "questions": sum(len(each.questions) for each in self.histories),
            "clusters": len({self.groups[key] for key in measured}),
            "clustered": _CLUSTERED[self.by],
        }

    @property
    def _licence(self) -> str:
        turns = [turn.id for each in self.histories for session in each.sessions for turn in session.turns]
        return LOCOMO if turns and all(map(_LOCOMO_TURN.fullmatch, turns)) else ""

    def _notes(self, every: Sequence[MemoryAnswers]) -> list[str]:
        found = []
        if self.added:
            found.append(
                f"{' and '.join(self.added)} came in as compulsory rivals: no memory is worth more than it is worth beside "
                "all the text and beside plain retrieval."
            )
        if THINNED in self.asked.names:
            by = "words (BM25)" if self.asked.embedder == NONE else f"vectors of {self.asked.embedder}"
            found.append(f"{THINNED} finds sessions by {by}, whoever stands beside it.")
        if self.asked.reads and not self.graders:
            found.append(
                "No grader was named: words count as right when they hold those of a right answer next to each other, "
                "which long answers do more easily, and right answers in other words do not."
            )
        if self.graders and not self.known:
            found.append("No wrong answer could be planted, since no two questions have different right answers.")
        if running := max(
            len(each.running) for each in every
        ):  # all are asked the same; ids are unique in a history alone
            found.append(f"{running} questions are asked while a session is going on, which was taken in as a whole.")
        if self.by == "question":
            found.append(
                "All questions that are compared are of one conversation, and of one day or group: intervals take them as "
                "independent."
            )
        return found


_CLUSTERED = {"conversation": "conversations", "day": "days", "question": "questions", "group": "groups"}


def _measured(histories: Sequence[History], measure: str) -> list[tuple[History, MemoryQuestion]]:
    """The questions that have what is compared: of recall those whose evidence is known."""
    every = [(history, question) for history in histories for question in history.questions]
    return [(history, question) for history, question in every if measure == "accuracy" or question.evidence]


def _groups(histories: Sequence[History], measure: str) -> tuple[dict[tuple[str, str], str], Clusters]:
    """The cluster of each question, and by what; each its own where all that are compared would be in one."""
    blank = {
        "text": "",
        "choice": None,
        "printed": 0,
        "later": 0,
        "found": (),
        "sessions": 0,
        "turns": 0,
        "age": math.nan,
    }
    asked = [(history, question) for history in histories for question in history.questions]
    rows = tuple(
        AskedQuestion(history.name, question.id, **blank, read_tokens=0, amounts={}, state="")
        for history, question in asked
    )
    answers = MemoryAnswers("", "online", tuple(question for _, question in asked), rows)
    by = clustered_by([history.name for history in histories], answers.questions)
    named = dict(zip(((history.name, question.id) for history, question in asked), clusters(answers, by), strict=True))
    if len({named[history.name, question.id] for history, question in _measured(histories, measure)}) == 1:
        by = "question"
        named = dict(zip(named, clusters(answers, by), strict=True))
    return named, by


def _answers(several: Iterable[MemoryAnswers]) -> bool:
    """Whether a system answered anything by itself; of one that only prints, nothing is right or wrong."""
    return any(row.text or row.choice is not None for each in several for row in each.rows)


def _without(added: bool, failed: str) -> SystemScores:
    return SystemScores(added, {}, UNKNOWN, UNKNOWN, None, {}, {}, {}, {}, (), (), failed)
