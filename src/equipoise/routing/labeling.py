"""The work of `route label`: both models answer, a verifier or a judge says how good each answer is.

Killed at any moment, the same call goes on: answers.jsonl has a row for each few prompts that the weak model answered,
calls.jsonl each answer of a server.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.chat.calls import Call
from equipoise.chat.client import answers
from equipoise.chat.grade import UNASKED, ChatGrader, Submission, blinded
from equipoise.chat.grades import BINARY, Grades
from equipoise.chat.roles import Players, Role, Roles
from equipoise.chat.templates import Template
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import sha256_file, write_atomic
from equipoise.core.job import Request
from equipoise.core.shares import Bounded
from equipoise.core.statistics import item_interval
from equipoise.data.problems import Problem, read_problems, ready_problems
from equipoise.data.records import Message
from equipoise.data.text import encodable
from equipoise.data.verify import Verifier, open_verifier
from equipoise.language.encode import encode_prompts
from equipoise.language.features import objects_digests
from equipoise.language.generate import check_room, generate
from equipoise.language.model import LanguageModel, load
from equipoise.language.templates import DATE
from equipoise.routing.kept import AT_ONCE, Kept
from equipoise.routing.labels import as_row, domain_of, groups_of
from equipoise.routing.measured import RIGHT
from equipoise.routing.result import DomainLabels, LabelPlan, RouteLabels
from equipoise.routing.routerxbench import bounded, quality_outcomes

if TYPE_CHECKING:
    from equipoise.chat.client import Chat

LABELS, ANSWERS = "labels.jsonl", "answers.jsonl"
WEAK, STRONG = "weak", "strong"
SCALE = Grades.scale(1, 10, accept=6)
JUDGE = files("equipoise.routing") / "prompts" / "judge.md"


@dataclass(frozen=True, eq=False)
class Labeling(Request):
    """A request to label, read and found right. model: None where answers are fields. opened: a verifier, None: a judge."""

    model: str | Path | LanguageModel | None
    problems: tuple[Problem, ...]
    roles: Roles
    served: frozenset[str]
    opened: Callable[[], Verifier] | None
    max_new_tokens: int
    batch_size: int
    loading: Mapping[str, Any]
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        model: Any,
        prompts: Any,
        *,
        server: SimpleNamespace,
        verifier: Any,
        reward: Any,
        unsafe: bool,
        max_new_tokens: int,
        limit: int | None,
        fields: Mapping[str, str] | None,
        batch_size: int,
        loading: dict[str, Any],
    ) -> Labeling:
        """Raises BadInput for a wrong request; loads no model."""
        date = loading["date"] = loading["date"] or DATE
        roles = Roles.read(server, Role("strong", optional=True), Role("judge", optional=True))
        judged = server.judge is not None
        if judged and (verifier is not None or reward is not None):
            raise BadInput("answers are judged by a model or by a verifier: give judge, or verifier (or reward).")
        if not judged and verifier is None and reward is None:
            raise BadInput(
                "nothing says how good an answer is: give a verifier such as number or math, a reward, or a judge."
            )
        source = prompts if isinstance(prompts, str | Path) else list(prompts)
        needed = not judged and reward is None
        problems = _problems(source, limit, fields, needed)
        names = {"prompts": str(source) if isinstance(source, str | Path) else f"{len(problems)} problems"}
        inputs = {"prompts": sha256_file(Path(source))} if isinstance(source, str | Path) else {}
        for who, player in ((WEAK, model), (STRONG, server.strong)):
            names[who] = player.name if isinstance(player, LanguageModel) else str(player or f"the field {who}_answer")
            if player is None:
                _check_answers(problems, who)

        def verifying() -> Verifier:
            return open_verifier(verifier, reward=reward, unsafe=unsafe)

        if judged:
            names["judged by"] = f"{server.judge}, {'against gold answers' if _all_gold(problems) else 'from 1 to 10'}"
        else:
            with verifying() as found:
                if needed:
                    found.check(problems)
                inputs |= {"reward": found.digest} if found.digest else {}
                names["judged by"] = found.name
        return cls(
            model=model,
            problems=tuple(problems),
            roles=roles,
            served=frozenset(_served(server)),
            opened=None if judged else verifying,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            loading=loading,
            names=names,
            inputs=inputs | objects_digests({"model": model}),
            resolved={"date": date},
        )

    def plan(self) -> LabelPlan:
        with self._players(None) as (language_model, _):
            return LabelPlan(
                weak=self.names[WEAK] if language_model is None else language_model.source,
                strong=self.names[STRONG],
                judged_by=self.names["judged by"],
                prompts=len(self.problems),
                domains=dict(Counter(map(domain_of, self.problems))),
                first=tuple({"prompt": p.prompt, "gold": list(p.gold)} for p in self.problems[:3]),
                calls=len(self.problems) * (("strong" in self.served) + 2 * ("judge" in self.served)),
                tokens=0 if language_model is None else len(self.problems) * self.max_new_tokens,
            )

    def work(self, folder: Path | None) -> RouteLabels:
        with self._players(folder) as (language_model, players):
            kept = (
                None if language_model is None else Kept(None if folder is None else folder / ANSWERS, language_model)
            )
            said = {WEAK: self._weak(language_model, kept), STRONG: self._strong(players)}
            quality, unread = self._judged(said, players)
            calls = players.account.total().calls
        self._write(folder, said, quality)
        there = ~np.isnan(quality[WEAK] + quality[STRONG])
        if not there.any():
            raise WorkFailed("No prompt has two answers that were judged: look at the judge, or at the answers.")
        return RouteLabels(
            names=self.names,
            source=self.names[WEAK] if language_model is None else language_model.source,
            prompts=len(self.problems),
            domains=self._domains(quality, there),
            unread=unread,
            unjudged=int((~there).sum()),
            right=RIGHT,
            tokens=0 if language_model is None else _tokens(language_model, said[WEAK]),
            calls=calls,
            notes=() if kept is None else kept.damaged,
        )

    def scratch(self) -> tuple[str, ...]:
        return (ANSWERS,)

    @contextlib.contextmanager
    def _players(self, folder: Path | None) -> Iterator[tuple[LanguageModel | None, Players]]:
        """Who answers and judges; a prompt that the weak model has no room for is refused here."""
        language_model = None
        if self.model is not None:
            language_model = self.model if isinstance(self.model, LanguageModel) else load(self.model, **self.loading)
            encoded, _ = encode_prompts(language_model, [problem.asked for problem in self.problems])
            check_room(language_model, encoded, self.max_new_tokens, [repr(problem.id) for problem in self.problems])
        with self.roles.open(folder) as players:
            if "judge" in self.served:
                self._grader(players.chat("judge")).check(self._submissions({WEAK: [""] * len(self.problems)}))
            yield language_model, players

    def _weak(self, language_model: LanguageModel | None, kept: Kept | None) -> list[str]:
        if language_model is None or kept is None:
            return _answers(self.problems, WEAK)

        def answered(_: int, some: Sequence[Problem]) -> dict[str, list[str]]:
            written = answer(language_model, some, self.max_new_tokens, self.batch_size)
            return {"texts": list(map(encodable, written))}

        parts = kept.parts("Answering", self.problems, answered, at_once=AT_ONCE)
        return [text for part in parts for text in part["texts"]]

    def _strong(self, players: Players) -> list[str | None]:
        """None: the provider did not take the prompt."""
        if "strong" not in self.served:
            return list(_answers(self.problems, STRONG))
        calls = [Call(_turns(problem), "answer", max_tokens=self.max_new_tokens) for problem in self.problems]
        replies = answers(players.chat("strong"), calls, f"{self.names[STRONG]} answers")
        return [None if reply.status in UNASKED else encodable(reply.text) for reply in replies]

    def _judged(
        self, said: Mapping[str, Sequence[str | None]], players: Players
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """The quality of each answer, nan for none; and how many answers held nothing to compare."""
        if self.opened is None:
            return self._graded(said, players)
        quality, unread = {}, {}
        with self.opened() as verifier:
            for who, texts in said.items():
                there = [
                    (problem, text) for problem, text in zip(self.problems, texts, strict=True) if text is not None
                ]
                scores = iter(verifier([problem for problem, _ in there], [text for _, text in there]))
                found = [None if text is None else next(scores) for text in texts]
                quality[who] = np.array([math.nan if s is None or s.crashed else s.value for s in found], float)
                unread[who] = sum(score is not None and score.missing for score in found)
                outside = np.flatnonzero((quality[who] < 0) | (quality[who] > 1))
                if len(outside):
                    raise BadInput(
                        f"the reward of the {who} answer to {self.problems[outside[0]].id!r} is "
                        f"{quality[who][outside[0]]:g}, expected a number in [0, 1]. Rescale it."
                    )
        return quality, unread

    def _graded(
        self, said: Mapping[str, Sequence[str | None]], players: Players
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Both models' answers under names that tell neither the model nor its neighbour."""
        submissions = self._submissions(said)
        shown = blinded(submissions, seed=0)
        grades = self._grader(players.chat("judge")).grade([submission for _, submission in shown])
        credit = {own: grade.credit for (own, _), grade in zip(shown, grades, strict=True)}
        quality = {
            who: np.array([credit.get(f"{problem.id}/{who}", math.nan) for problem in self.problems], float)
            for who in said
        }
        return quality, dict.fromkeys(said, 0)

    def _grader(self, chat: Chat) -> ChatGrader:
        if _all_gold(self.problems):
            return ChatGrader(chat, BINARY)
        return ChatGrader(chat, SCALE, prompt=Template.read(JUDGE))

    def _submissions(self, said: Mapping[str, Sequence[str | None]]) -> list[Submission]:
        return [
            Submission(f"{problem.id}/{who}", problem.prompt, text, gold=problem.gold)
            for who, texts in said.items()
            for problem, text in zip(self.problems, texts, strict=True)
            if text is not None
        ]

    def _write(
        self, folder: Path | None, said: Mapping[str, Sequence[str | None]], quality: Mapping[str, np.ndarray]
    ) -> None:
        if folder is None:
            return
        lines = []
        for place, problem in enumerate(self.problems):
            row: dict[str, Any] = {"id": problem.id, "prompt": as_row(problem), "gold": list(problem.gold)}
            row |= {"domain": domain_of(problem), "group": problem.group}
            for who in (WEAK, STRONG):
                value = float(quality[who][place])
                row |= {who: None if math.isnan(value) else value, f"{who}_answer": said[who][place]}
            lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        write_atomic(folder / LABELS, "".join(lines))

    def _domains(self, quality: Mapping[str, np.ndarray], there: np.ndarray) -> dict[str, DomainLabels]:
        found = {}
        names = np.array([domain_of(problem) for problem in self.problems])
        groups = np.array(groups_of(self.problems))
        for name in dict.fromkeys(names.tolist()):
            chosen = (names == name) & there
            if not chosen.any():
                continue
            weak, strong = quality[WEAK][chosen], quality[STRONG][chosen]
            table = quality_outcomes(weak, strong, clusters=groups[chosen])
            found[name] = DomainLabels(
                int(chosen.sum()), _mean(weak, groups[chosen]), _mean(strong, groups[chosen]), table
            )
        return found


def answer(
    language_model: LanguageModel, problems: Sequence[Problem], max_new_tokens: int, batch_size: int
) -> list[str]:
    """The likeliest answer of a model here to each problem."""
    prompts = [problem.asked for problem in problems]
    return generate(language_model, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)


def _problems(source: Any, limit: int | None, fields: Mapping[str, str] | None, gold_needed: bool) -> list[Problem]:
    if not isinstance(source, str | Path) and source and all(isinstance(each, Problem) for each in source):
        return ready_problems(source, limit=limit, gold_needed=gold_needed)
    return read_problems(source, limit=limit, fields=fields, gold_needed=gold_needed)


def _check_answers(problems: Sequence[Problem], who: str) -> None:
    without = next((p for p in problems if not isinstance(p.columns.get(f"{who}_answer"), str)), None)
    if without is not None:
        raise BadInput(
            f"prompt {without.id!r} has no text {who}_answer: name the model that answers, "
            f"{'--model' if who == WEAK else '--strong'}, or give all answers in this field."
        )


def _answers(problems: Sequence[Problem], who: str) -> list[str]:
    """The stored ones, as text that can be written."""
    return [encodable(str(problem.columns[f"{who}_answer"])) for problem in problems]


def _served(given: SimpleNamespace) -> set[str]:
    return {name for name in ("strong", "judge") if getattr(given, name) is not None}


def _all_gold(problems: Sequence[Problem]) -> bool:
    return all(problem.gold for problem in problems)


def _turns(problem: Problem) -> tuple[Message, ...]:
    return problem.messages or (Message("user", problem.prompt),)


def _mean(values: np.ndarray, groups: np.ndarray) -> Bounded:
    return bounded(item_interval(values, groups))


def _tokens(language_model: LanguageModel, texts: Sequence[str | None]) -> int:
    tokenizer: Any = language_model.tokenizer
    return sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts if text)
