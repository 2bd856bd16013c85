"""The work of `prm label`: solutions are written, gone on with from each step, judged, and corrected.

Killed at any moment, the same call goes on: solutions.jsonl and completions.jsonl have a row for each solution that is done,
calls.jsonl each answer of a chat model. Rules judge anew; what a chat judge said is in calls.jsonl.

The last step. A solution that comes to an answer has its own outcome, K equal values: nothing is left to complete, and what
a model would add to a finished solution says nothing of the step. One without (it was cut, or no answer is found in it) is
gone on with from its last step like from any other.

A completion counts by the final answer of the whole response, beginning and completion together. One that was cut at
max_new_tokens has none: the last number of half a calculation is no answer.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import torch

from equipoise.chat.account import OWN, Account, Planned, estimate
from equipoise.chat.client import Chat, resolve
from equipoise.chat.roles import Players, Role, Roles
from equipoise.core.columns import duration
from equipoise.core.errors import BadInput, WorkFailed, did_you_mean
from equipoise.core.files import sha256_file, write_atomic
from equipoise.core.job import Alone, Request
from equipoise.core.options import closed
from equipoise.core.rows import Rows
from equipoise.data.text import after_thinking
from equipoise.data.verify import Verifier, open_verifier
from equipoise.language import catalog
from equipoise.language.features import objects_digests
from equipoise.language.model import LanguageModel, wrap
from equipoise.language.taught import TAUGHT, opened
from equipoise.language.templates import DATE
from equipoise.reinforcement.measures import tokens_per_second
from equipoise.reinforcement.prm import PLACEHOLDER
from equipoise.reinforcement.prm_label_drawing import Completed, Solution, complete, nothing, silence, write, written
from equipoise.reinforcement.prm_label_measures import Verdicts, labeled, measured
from equipoise.reinforcement.prm_label_policy import (
    CHAT_NAMES,
    COMPLETE,
    SOLVE,
    Beginning,
    ChatPolicy,
    LocalPolicy,
    Policy,
)
from equipoise.reinforcement.prm_label_result import COMPLETIONS, LABELS, NONE, RULES, LabelPlan, StepLabels
from equipoise.reinforcement.prm_label_solutions import LabelProblem, cut, read, stated
from equipoise.reinforcement.reflection import NO_REFLECTION, ContinuedSolution, reflections, rule_judge
from equipoise.reinforcement.reflection_chat import PHASE, ChatJudge
from equipoise.reinforcement.reinforcing import tiny_model

if TYPE_CHECKING:
    from equipoise.reinforcement.prm_label_job import LabelSettings

SOLUTIONS = "solutions.jsonl"
UNFINISHED, TWICE, MARKED = "without a finished step", "written twice", f"with {PLACEHOLDER} in them"
USUAL_STEPS = 6  # of a solution that is still to be written, for an estimate
USUAL_PROMPT = 3000  # characters of a question to a judge, for an estimate
TIMED = (8, 16)  # completions and tokens that a plan is made from


@dataclass(frozen=True, eq=False)
class Labeling(Request):
    """A request to label, read and found right. chat: whether the model is asked so; by_turn: as of `ChatPolicy`."""

    model: str | Path | LanguageModel
    problems: tuple[LabelProblem, ...]
    settings: "LabelSettings"
    separator: str | None
    opened: Callable[[], Verifier]
    roles: Roles
    chat: bool
    by_turn: bool | None
    loading: Mapping[str, Any]
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    @closed
    def read(
        cls,
        model: Any,
        tokenizer: Any,
        problems: Any,
        *,
        limit: int | None,
        fields: Mapping[str, str] | None,
        verifier: Any,
        unsafe: bool,
        roles: SimpleNamespace,
        engine: Literal["auto", "transformers", "chat"],
        go_on: Literal["auto", "prefill", "turn"],
        loading: dict[str, Any],
        settings: "LabelSettings",
    ) -> "Labeling":
        """Raises BadInput for a wrong request; loads no model."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise BadInput("`prm label` works in one process: start it without torchrun or accelerate launch.")
        by_chat = _by_chat(model, engine, roles.model_url)
        _check_meaning(by_chat, tokenizer, go_on, roles, loading)
        resolved = settings.model_dump()
        if not by_chat:
            date = loading["date"] = resolved["date"] = loading["date"] or DATE
            if tokenizer is not None or not isinstance(model, str | Path | LanguageModel):
                model = wrap(model, tokenizer, chat_template=loading["chat_template"], date=date)
        cast = _roles(str(model) if by_chat else None, roles, loading)
        separator = None if settings.separator is None else _separator(settings.separator)
        found, source, digest = read(problems, limit=limit, fields=fields, separator=separator)
        inputs = {"problems": digest} | {
            f"the {role.name}": resolve(role.model)[0] for role in cast.roles if role.model
        }
        inputs |= {} if roles.replay is None else {"the record": sha256_file(roles.replay)}

        def opened() -> Verifier:
            return open_verifier(verifier, unsafe=unsafe)

        with opened() as checking:
            checking.check([each.problem for each in found])
        names = {"problems": source, "judge": roles.judge, "verifier": str(verifier)}
        names["model"] = model.name if isinstance(model, LanguageModel) else str(model)
        return cls(
            model=model,
            problems=tuple(found),
            settings=settings,
            separator=separator,
            opened=opened,
            roles=cast,
            chat=by_chat,
            by_turn={"auto": None, "prefill": False, "turn": True}[go_on],
            loading=loading,
            names=names,
            inputs=inputs | objects_digests({"model": model}),
            resolved=resolved,
        )

    def plan(self) -> LabelPlan:
        """Of a model here from one timed rollout of a few tokens.

        Only a solution that comes to an answer needs no completions of its last step, which is known of none before.
        """
        settings, first = self.settings, self.problems[0]
        given = [len(each.given.spans) for each in self.problems if each.given is not None]
        to_write = (len(self.problems) - len(given)) * settings.solutions
        completions = settings.samples * (sum(given) + to_write * (USUAL_STEPS - 1))
        with self._taking_part(None, taught=False) as (policy, players):
            begun = Beginning(first.problem, "" if first.given is None else first.given.beginning(1), 0)
            return LabelPlan(
                model=policy.source,
                judge=self.names["judge"],
                verifier=self.names["verifier"],
                problems=len(self.problems),
                solutions=len(given) + to_write,
                given=len(given),
                settings=settings.model_dump(),
                first=tuple(_told(each) for each in self.problems[:3]),
                shown=policy.shown(begun),
                estimate=self._estimate(policy, players, to_write, completions),
                judge_estimate=self._judge_estimate(players, completions),
            )

    def work(self, folder: Path | None) -> StepLabels:
        settings = self.settings
        stored = {name: Rows(None if folder is None else folder / name) for name in (SOLUTIONS, COMPLETIONS)}
        with self._taking_part(folder) as (policy, players), self.opened() as verifier:
            solutions, left_out, tokens = self._solutions(policy, stored[SOLUTIONS])
            if not solutions:
                raise WorkFailed(f"There is nothing to label. {_nothing_written(left_out, policy.source)}")
            completed = complete(policy, solutions, verifier, settings, stored[COMPLETIONS])
            if told := silence([{"completions": each.completions} for each in completed]):
                raise WorkFailed(f"There is nothing to label steps by. {told}")
            verdicts, judged = self._judged(completed, players)
        kind, samples = self.names["verifier"], settings.samples
        labels = [labeled(each, its, samples, kind) for each, its in zip(completed, verdicts, strict=True)]
        if folder is not None:
            write_atomic(folder / LABELS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in labels))
        tokens += sum(each.tokens for each in completed)
        return StepLabels(
            names=self.names,
            source=policy.source,
            settings=settings.model_dump(exclude={"rollout_batch_size"}),
            problems=len({each.solution.place for each in completed}),
            solutions=len(completed),
            steps=sum(len(row["steps"]) for row in labels),
            left_out=left_out,
            judged=judged,
            cost=_cost(players.account, completed, tokens),
            notes=(*(line for rows in stored.values() for line in rows.damaged), *_notes(policy, completed)),
            rows=labels,
            **measured(completed, labels, self.separator),
        )

    def scratch(self) -> tuple[str, ...]:
        return (TAUGHT,)

    @contextlib.contextmanager
    def _taking_part(self, folder: Path | None, *, taught: bool = True) -> Iterator[tuple[Policy, Players]]:
        """Who goes on with solutions, found to have room for all that is known by then, and the chat models."""
        settings = self.settings
        with self.roles.open(folder) as players:
            if self.chat:
                plain = self.loading["chat_template"] == "none"
                policy = ChatPolicy(players.chat("model"), settings, by_turn=self.by_turn, plain=plain)
            else:
                tiny = partial(tiny_model, folder, settings.seed, Alone(), taught=taught)
                policy = LocalPolicy(opened(self.model, self.loading, tiny), settings)
            whole = [
                Beginning(each.problem, each.given.beginning(len(each.given.spans)), 0)
                for each in self.problems
                if each.given is not None
            ]
            unsolved = [nothing(each.problem, 0) for each in self.problems if each.given is None]
            policy.check(whole, settings.max_new_tokens)
            policy.check(unsolved, 2 * settings.max_new_tokens)  # a solution, and what completes it
            yield policy, players

    def _solutions(self, policy: Policy, stored: Rows) -> tuple[list[Solution], dict[str, int], int]:
        """Solutions in the order of their problems, why others of the model are left out, and tokens it wrote."""
        unsolved = [(place, each.problem) for place, each in enumerate(self.problems) if each.given is None]
        drawn = write(policy, unsolved, self.settings, stored) if unsolved else {}
        found: list[Solution] = []
        left_out: Counter[str] = Counter()
        for place, each in enumerate(self.problems):
            if each.given is not None:
                found.append(Solution(each.problem, place, 0, each.given, whole=True))
                continue
            texts = set[str]()
            for number, one in enumerate(drawn[place]):
                stepped = written(one, self.separator)
                if stepped is None or PLACEHOLDER in stepped.text or stepped.text in texts:
                    left_out[UNFINISHED if stepped is None else TWICE if stepped.text in texts else MARKED] += 1
                else:
                    texts.add(stepped.text)
                    found.append(Solution(each.problem, place, number, stepped, one.ended))
        return found, dict(left_out), sum(one.tokens for its in drawn.values() for one in its)

    def _judged(self, completed: Sequence[Completed], players: Players) -> tuple[list[Verdicts], dict[str, int]]:
        """Verdicts on the completions of each solution, and what came of a chat judge's answers."""
        asked, outcomes = [], []
        for each in completed:
            steps = each.solution.stepped.steps
            for count, row in enumerate(each.completions, start=1):
                for one in row:
                    added = cut(after_thinking(one["text"]) or "", self.separator).steps
                    asked.append(ContinuedSolution(stated(each.solution.problem), steps[:count], added))
                    outcomes.append(one["outcome"] or 0)
        judged: dict[str, int] = {}
        if self.names["judge"] == NONE:
            found = [NO_REFLECTION] * len(asked)
        elif self.names["judge"] == RULES:
            found = reflections(rule_judge, asked, torch.tensor(outcomes))
        else:
            judge = ChatJudge(players.chat("judge"), max_tokens=self.settings.judge_tokens)
            found = reflections(judge, asked, torch.tensor(outcomes))
            judged = judge.counts()
        verdicts = iter(found)
        return [[[next(verdicts) for _ in row] for row in each.completions] for each in completed], judged

    def _estimate(self, policy: Policy, players: Players, to_write: int, completions: int) -> str:
        settings = self.settings
        tokens = (to_write + completions) * settings.max_new_tokens
        count = f"{completions:,} completions" + (
            f" (of {USUAL_STEPS} steps in a solution that is still to be written)" if to_write else ""
        )
        beginnings = [
            Beginning(each.problem, "" if each.given is None else each.given.text, 0) for each in self.problems
        ]
        if isinstance(policy, ChatPolicy):
            characters = sum(len(policy.shown(each)) for each in beginnings) / len(beginnings)
            planned = [
                Planned(phase, calls, characters, settings.max_new_tokens)
                for phase, calls in ((SOLVE, to_write), (COMPLETE, completions))
            ]
            return f"{count}; {_priced(planned, policy.chat)}"
        assert isinstance(policy, LocalPolicy)
        asked, few = policy.prompts(beginnings[: TIMED[0]]), min(TIMED[1], settings.max_new_tokens)
        rate = tokens_per_second(policy.language_model, asked, few, settings.temperature)
        return f"{count}, {tokens:,} generated tokens, {duration(tokens / rate)}"

    def _judge_estimate(self, players: Players, completions: int) -> str:
        if self.names["judge"] in (RULES, NONE):
            return ""
        planned = Planned(PHASE, completions, USUAL_PROMPT, self.settings.judge_tokens)
        return f"{_priced([planned], players.chat('judge'))}, were every completion right"


def _by_chat(model: Any, engine: Literal["auto", "transformers", "chat"], url: str | None) -> bool:
    """Whether a model is asked by chat. Raises BadInput for what cannot be."""
    named = isinstance(model, str | Path)
    if named and "://" in str(model):
        raise BadInput(
            f"{model} is the address of a server: give it as --model-url, and as --model the model by its name there, such "
            "as openai-api/local/NAME."
        )
    if engine == "chat" and not named:
        raise BadInput("A model that is an object is rolled out here: leave out engine chat, or give a model's name.")
    if engine != "auto" or not named:
        return engine == "chat"
    name = str(model)
    return (
        url is not None or name.lower().endswith(".gguf") or (name.startswith(CHAT_NAMES) and not Path(name).exists())
    )


def _check_meaning(
    by_chat: bool, tokenizer: Any, go_on: str, roles: SimpleNamespace, loading: Mapping[str, Any]
) -> None:
    """Raises BadInput for an option that would be ignored."""
    if by_chat:
        usual = {"device": "auto", "dtype": "auto", "date": None, "trust_remote_code": False}
        ignored = [name for name, value in usual.items() if loading[name] != value]
        if tokenizer is not None or ignored:
            name = ignored[0] if ignored else "tokenizer"
            raise BadInput(f"{name} is for a model that is rolled out here: leave it out, or give it among model_args.")
        return
    if go_on == "turn":
        raise BadInput(
            "A model that is rolled out here goes on within its own turn: leave go_on turn out, or ask by chat."
        )
    for name in ("model_args", "model_url"):
        if getattr(roles, name):
            raise BadInput(f"{name} is for a model that is asked by chat: leave it out, or say engine chat.")


def _roles(model: str | None, asked: SimpleNamespace, loading: Mapping[str, Any]) -> Roles:
    """The chat models that take part. Raises BadInput for what cannot be meant."""
    template, arguments = loading["chat_template"], asked.model_args
    if model is not None and template != "auto":
        if resolve(model)[0].startswith(OWN):
            arguments = {**(arguments or {}), "chat_template": template}
        elif template != "none":
            raise BadInput(f"chat_template is {template!r}, and a server has its own: leave it out, or say none.")
    if asked.judge not in (RULES, NONE):
        try:
            resolve(asked.judge)
        except BadInput:
            near = did_you_mean(asked.judge, (RULES, NONE, *catalog.CATALOG))
            raise BadInput(
                f"judge is {asked.judge!r}. {near} A provider's model is named with the provider, such as openai/gpt-4o."
            ) from None
    played = SimpleNamespace(**{**vars(asked), "model": model, "model_args": arguments})
    return Roles.read(played, Role("model", optional=True), Role("judge", own=(RULES, NONE)))


def _separator(typed: str) -> str:
    """With line ends and tabs as they can be typed. Raises BadInput for one that parts nothing."""
    separator = typed.replace("\\n", "\n").replace("\\t", "\t")
    if not separator.strip(" "):
        raise BadInput(f"separator is {typed!r}, which is in every text: give what parts steps, such as ';' or '\\n'.")
    return separator


def _told(problem: LabelProblem) -> dict[str, Any]:
    told: dict[str, Any] = {"prompt": stated(problem.problem), "gold": list(problem.problem.gold)}
    return told if problem.given is None else {**told, "steps": list(problem.given.steps)}


def _nothing_written(left_out: Mapping[str, int], source: str) -> str:
    why = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    return (
        f"Of {sum(left_out.values()):,} solutions of {source.rstrip('.')} there are {why}: raise max_new_tokens, use "
        "another model, or give solutions."
    )


def _cost(account: Account, completed: Sequence[Completed], tokens: int) -> dict[str, float]:
    """What it took: tokens are those of a model here; of chat models the account has them."""
    drawn = {"completions": float(sum(len(row) for each in completed for row in each.completions))}
    by = {phase: account.total(phase=phase) for phase in (SOLVE, COMPLETE, PHASE)}
    model_calls, judge = by[SOLVE].calls + by[COMPLETE].calls, by[PHASE]
    tokens += by[SOLVE].usage.generated + by[COMPLETE].usage.generated
    found = {**drawn, "generated tokens": float(tokens)}
    found |= {"calls of the model": float(model_calls)} if model_calls else {}
    if judge.calls:
        found |= {"calls of the judge": float(judge.calls), "tokens read by the judge": float(judge.usage.prompt)}
        found |= {"tokens written by the judge": float(judge.usage.generated)}
    usd = account.usd()
    return found | ({"usd": usd} if usd else {})


def _notes(policy: Policy, completed: Sequence[Completed]) -> list[str]:
    notes = []
    if own := sum(each.answer is not None for each in completed):
        notes.append(
            f"The last step of {own:,} of {len(completed):,} solutions has the outcome of the solution's own answer: "
            "nothing was drawn there. Shares of labels count it like any other step."
        )
    if isinstance(policy, ChatPolicy) and policy.by_turn:
        notes.append(
            "The model was asked in a user's turn to go on, since servers begin a new turn behind an assistant's: its "
            "completions are those of a model that reads its solution, not quite of one that is writing it."
        )
    return notes


def _priced(planned: Sequence[Planned], chat: Chat) -> str:
    return str(estimate(planned, model=chat.name, prices=chat.account.prices))
