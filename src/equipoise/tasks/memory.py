"""Benchmarks of memory as Inspect tasks: a model answers from what a memory prints, the whole text or what was found.

    inspect eval equipoise/lifedialbench --model openai/gpt-4o-mini -T path=lifelog.json -T memory=bm25
    inspect eval equipoise/locomo --model openai/gpt-4o-mini -T memory=bm25 -T categories=1,2,4 -T without=ids.txt
    inspect eval equipoise/longmemeval --model openai/gpt-4o-mini -T path=longmemeval_s.json -T judge=openai/gpt-4o

Memories without a model of their own are named (full, recency, bm25, thinned; empty and oracle as floor and ceiling); yours
is file.py:function, as `equipoise memory compare` takes it. A memory is fed and asked by LifeDialBench's protocol, so that
with the default, online, nothing that is printed was said after the question. All are read with the same prompt, one
`--solver` of your own may replace. What a judge does not clearly say counts as wrong and is reported.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal, cast, get_args

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, accuracy, metric, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, chain, generate, solver

from equipoise.agents import lifedialbench as protocols
from equipoise.agents.lifedialbench import clock_time, guess_corrected
from equipoise.agents.memory import Unread
from equipoise.agents.memory_adapters import user_memory
from equipoise.agents.memory_systems import MemoryName, build
from equipoise.agents.readers import asking, letter
from equipoise.chat.client import inspect_messages
from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.options import closed
from equipoise.data import locomo as conversations
from equipoise.data import longmemeval as haystacks
from equipoise.data.answers import contains, matches
from equipoise.data.histories import History, MemoryQuestion
from equipoise.data.lifelogs import read_histories
from equipoise.data.public import folder
from equipoise.data.text import after_thinking

Protocol = Literal["online", "asof", "offline"]
Kind = Literal["single_event", "event_detail", "multi_event", "time_query"]
NAMED = ("full", "recency", "bm25", "thinned", "empty", "oracle")
JUDGED = GenerateConfig(temperature=0.0, max_tokens=512)  # of a judge, which may think first

Known = Mapping[str, Any]  # of a sample


@task
@closed
def lifedialbench(
    path: str,
    memory: str = "full",
    protocol: Protocol = "online",
    kind: Kind | None = None,
    open_ended: bool = False,
    judge: str | None = None,
    k: int = 20,
    budget: int | None = None,
) -> Task:
    """LifeDialBench (arXiv:2604.11182): questions about a life, by choice or open; what is right, with luck taken out.

    path: histories in its schema, such as what `equipoise memory compose` writes. kind: only these questions. open_ended:
    without the options; right is then what the judge says, without one what has the gold answer's words, and a time of the
    day is also judged strictly. k: items that a memory finds. budget: most words that it prints.
    """
    histories = read_histories(path)
    chosen = _chosen(histories, lambda question: kind in (None, question.kind), f"of kind {kind!r}")
    if not open_ended and (without := next((each for _, each in chosen if each.right is None), None)):
        raise BadInput(f"{path}: {without.id!r} has no options; set open_ended, or leave it out.")
    return _task("lifedialbench", path, chosen, (memory, protocol, k, budget), answered(judge), open_ended)


@task
def locomo(
    path: str | None = None,
    memory: str = "full",
    categories: str | int | list[int] = "1,2,3,4",
    without: str | None = None,
    judge: str | None = None,
    k: int = 20,
    budget: int | None = None,
) -> Task:
    """LoCoMo (Maharana et al. 2024, arXiv:2402.17753): F1 by category, BLEU-1 and, with a judge, what it calls correct.

    path: by default EQUIPOISE_DATA/locomo; for non-commercial use. categories: 5 is answered by declining.
    without: a file of ids to leave out, such as questions whose gold is known to be wrong (`data.locomo.read_without`).
    """
    source = str(_locomo_file() if path is None else Path(path))
    wanted = _categories(categories)
    left_out = frozenset[str]() if without is None else conversations.read_without(without)
    histories = list(conversations.read_locomo(source).histories)
    strange = left_out - {question.id for history in histories for question in history.questions}
    if strange:
        raise BadInput(f"{without}: {min(strange)!r} is no question of {source}; known are ids such as conv-26/23.")

    def keep(question: MemoryQuestion) -> bool:
        return conversations.category_of(question) in wanted and question.id not in left_out

    chosen = _chosen(histories, keep, f"in categories {', '.join(map(str, wanted))}")
    return _task("locomo", source, chosen, (memory, "online", k, budget), conversed(judge), True)


@task
def longmemeval(
    path: str,
    memory: str = "full",
    kind: str | None = None,
    judge: str | None = None,
    official: bool = False,
    k: int = 20,
    budget: int | None = None,
) -> Task:
    """LongMemEval (Wu et al. 2024, arXiv:2410.10813): the share that a judge, asked by the question's type, calls right.

    path: a file of records. kind: one of its types, or abstention. judge: without one, right is what has the gold answer's
    words, which the benchmark does not measure; abstentions and preferences are then not scored. official: a judge's reply
    counts as the released script counts it, where any "yes" is one; by default it has to begin with its verdict.
    """
    items = haystacks.read_longmemeval(path)
    known = (*haystacks.TYPES, haystacks.ABSTENTION)
    if kind is not None and kind not in known:
        raise BadInput(f"LongMemEval has no kind {kind!r}. {did_you_mean(kind, known)}")

    def keep(item: haystacks.LongMemEvalItem) -> bool:
        judged = judge is not None or not (item.abstention or item.question.kind == "single-session-preference")
        return judged and kind in (None, haystacks.ABSTENTION if item.abstention else item.question.kind)

    kept = [item for item in items if keep(item)]
    why = "" if judge else ", that are scored without a judge"
    chosen = _chosen([item.history for item in kept], lambda question: True, f"of kind {kind!r}{why}")
    explained = {item.question.id: {"answer": item.answer, "abstention": item.abstention} for item in kept}
    return _task("longmemeval", path, chosen, (memory, "online", k, budget), recalled(judge, official), True, explained)


# --- samples and solver ----------------------------------------------------------------------------------------------


def _locomo_file() -> Path:
    root = folder("locomo")
    for name in ("locomo10.json", "locomo10.json.gz"):
        if (root / name).exists():
            return root / name
    raise BadInput(f"{root} has no locomo10.json: copy it there, or name your file with path.")


def _categories(given: str | int | Sequence[int]) -> tuple[int, ...]:
    """Inspect reads 1,2 as text or as a list, and 1 as a number."""
    named = given.split(",") if isinstance(given, str) else [given] if isinstance(given, int) else given
    try:
        wanted = tuple(dict.fromkeys(int(each) for each in named))
    except ValueError:
        wanted = ()
    if not wanted or not set(wanted) <= conversations.CATEGORIES.keys():
        raise BadInput(f"categories is {given!r}: give numbers from 1 to 5, such as 1,2,3,4.")
    return wanted


def _chosen(
    histories: Sequence[History], keep: Callable[[MemoryQuestion], bool], what: str
) -> list[tuple[History, MemoryQuestion]]:
    names = Counter(history.name for history in histories)
    if twice := [name for name, count in names.items() if count > 1]:
        raise BadInput(f"Two histories are named {twice[0]!r}: names are unique in a file.")
    chosen = [(history, question) for history in histories for question in history.questions if keep(question)]
    if not chosen:
        raise BadInput(f"There is no question {what}.")
    ids = Counter(question.id for _, question in chosen)
    if twice := [name for name, count in ids.items() if count > 1]:
        raise BadInput(f"Two questions have the id {twice[0]!r}: ids are unique in a task.")
    return chosen


def _task(
    name: str,
    path: str,
    chosen: Sequence[tuple[History, MemoryQuestion]],
    asked: tuple[str, Protocol, int, int | None],
    scoring: Scorer,
    open_ended: bool,
    explained: Mapping[str, Known] | None = None,
) -> Task:
    _check(asked[0])
    samples = [
        Sample(
            id=question.id,
            input=question.text,
            target=list(question.gold) if open_ended or question.right is None else ascii_uppercase[question.right],
            choices=None if open_ended or not question.options else list(question.options),
            metadata={
                "history": history.name,
                "kind": question.kind or "no kind",
                "group": question.group or question.id,
                "evidence": list(question.evidence),
                "time": None if question.time is None else question.time.isoformat(),
                **(explained or {}).get(question.id, {}),
            },
        )
        for history, question in chosen
    ]
    memory, protocol, k, budget = asked
    return Task(
        dataset=MemoryDataset(samples, name=name),
        solver=chain(remembered(path, memory, protocol, k, budget, open_ended), generate()),
        scorer=scoring,
        config=GenerateConfig(temperature=0.0),
    )


def _check(memory: str) -> None:
    """Raises BadInput for a memory that is neither named nor a function of a file."""
    if memory not in NAMED and ":" not in memory:
        known = get_args(MemoryName)
        further = " It needs a model, which `equipoise memory compare` gives it." if memory in known else ""
        raise BadInput(
            f"No memory {memory!r} is known to this task.{further} {did_you_mean(memory, NAMED)} Yours: file.py:function."
        )


@solver
@closed
def remembered(path: str, memory: str, protocol: Protocol, k: int, budget: int | None, open_ended: bool) -> Solver:
    """Put what the memory prints before the question, in the prompt that all memories share."""
    prints = _Prints(path, memory, protocol, k, budget)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        question, context, found = prints.of(state.metadata["history"], str(state.sample_id))
        now = question.time or prints.end(state.metadata["history"])
        shown = MemoryQuestion(question.id, question.text) if open_ended else question
        state.messages = inspect_messages(asking(shown, context, now))
        state.metadata |= {"printed words": len(context.split()), "found": list(found)}
        return state

    return solve


class _Prints:
    """What a memory prints for each question of a file: made for a history when its first question comes."""

    def __init__(self, path: str, memory: str, protocol: Protocol, k: int, budget: int | None) -> None:
        self._path, self._asked = path, (memory, k, budget)
        self._protocol: Protocol = protocol
        self._of = functools.cache(self._made)

    @functools.cached_property
    def _histories(self) -> dict[str, History]:
        return {history.name: history for history in read_histories(self._path)}

    def end(self, history: str) -> Any:
        """When its last session began."""
        return self._histories[history].sessions[-1].time

    def of(self, history: str, question: str) -> tuple[MemoryQuestion, str, tuple[str, ...]]:
        """A question, what is printed for it, and its evidence that this holds."""
        return self._of(history)[question]

    def _made(self, name: str) -> dict[str, tuple[MemoryQuestion, str, tuple[str, ...]]]:
        memory, k, budget = self._asked
        reader = Unread()
        if ":" in memory:
            system = user_memory(memory, reader=reader, k=k, budget=budget)
        else:
            system = build(cast(MemoryName, memory), reader=reader, k=k, budget=budget)
        history = self._histories[name]
        asked = {question.id: question for question in history.questions}
        same: dict[str, str] = {}  # the whole text is printed for many questions
        made = {}

        def store(row: protocols.AskedQuestion, answer: Any) -> None:
            context = same.setdefault(answer.context, answer.context)
            made[row.question] = asked[row.question], context, row.found

        protocols.run(system, history, protocol=self._protocol, store=store)
        return made


# --- scores ----------------------------------------------------------------------------------------------------------


@metric(scores="unreduced")
def measures() -> Metric:
    """The mean of each measure over the samples that have it, of the value by kind, and the share that nobody could read."""

    def compute(scores: list[SampleScore]) -> Value:
        rows = [((each.score.metadata or {}), each.score.as_float(), each.sample_metadata or {}) for each in scores]
        names = list(dict.fromkeys(name for row, _, _ in rows for name in row.get("measures", {})))
        found = {
            name: _mean([row["measures"][name] for row, _, _ in rows if name in row.get("measures", {})])
            for name in names
        }
        kinds = list(dict.fromkeys(known.get("kind", "no kind") for _, _, known in rows))
        for kind in kinds if len(kinds) > 1 else ():
            found[f"in {kind}"] = _mean([value for _, value, known in rows if known.get("kind", "no kind") == kind])
        return found | {"unread": _mean([float(bool(row.get("unread"))) for row, _, _ in rows])}

    return compute


def _mean(values: Sequence[float]) -> float:
    there = [value for value in values if not math.isnan(value)]
    return sum(there) / len(there) if there else math.nan


def _metrics() -> list[Metric]:
    return [accuracy(), stderr(cluster="group"), measures()]


def _said(state: TaskState) -> str:
    return (after_thinking(state.output.completion) or "").strip()


def _read(state: TaskState) -> dict[str, float]:
    """What was printed: words, and the share of the evidence, where it is known."""
    known = state.metadata
    wanted = set(known["evidence"])
    share = len(set(known["found"])) / len(wanted) if wanted and "found" in known else math.nan
    return {"printed words": float(known.get("printed words", math.nan)), "evidence": share}


async def _judged(judge: str, prompt: str, read: Callable[[str], bool | None]) -> tuple[bool | None, str]:
    output = await get_model(judge).generate(prompt, config=JUDGED)
    reply = (after_thinking(output.completion) or "").strip()
    return read(reply), reply


def _score(value: float, said: str, measured: Known, *, unread: bool = False, why: str = "") -> Score:
    return Score(
        value=value, answer=said, explanation=why or None, metadata={"measures": dict(measured), "unread": unread}
    )


@scorer(metrics=_metrics())
def answered(judge: str | None = None) -> Scorer:
    """LifeDialBench: the letter of the right option; of open answers a judge's verdict, or the gold answer's words."""

    async def score(state: TaskState, target: Target) -> Score:
        said = _said(state)
        measured = _read(state)
        if options := [choice.value for choice in state.choices]:
            place = letter(said, len(options))
            right = float(place is not None and ascii_uppercase[place] == target.text)
            corrected = guess_corrected(right, len(options))
            return _score(right, said, {**measured, "luck taken out": corrected}, unread=place is None)
        golds = list(target)
        times = [minutes for minutes in map(clock_time, golds) if minutes is not None]
        if times and state.metadata["kind"] == "time_query":
            measured["strict time"] = float(clock_time(said) in times)
        if judge is None:
            return _score(float(contains(said, golds)), said, measured, unread=not said)
        verdict, why = await _judged(judge, lenient(state.input_text, golds, said), haystacks.says_yes)
        return _score(float(verdict is True), said, measured, unread=verdict is None, why=why)

    return score


def lenient(question: str, golds: Sequence[str], said: str) -> str:
    """What LifeDialBench's judge is asked; the reply is read by `data.longmemeval.says_yes`."""
    return (
        "A question about a life in conversations was answered. Be lenient: an answer that means the same as the gold "
        "answer is right, also one that has only its key information, or is off in a small fact.\n\n"
        f"Question: {question}\nGold answer: {', or '.join(golds)}\nAnswer: {said}\n\n"
        "Reply with yes if the answer is right, or no, and nothing else."
    )


@scorer(metrics=_metrics())
def conversed(judge: str | None = None) -> Scorer:
    """LoCoMo: F1 by category (declining, in 5); BLEU-1, and a judge's verdict, beside it."""

    async def score(state: TaskState, target: Target) -> Score:
        said, kind = _said(state), state.metadata["kind"]
        category = next(number for number, name in conversations.CATEGORIES.items() if name == kind)
        measured = _read(state)
        if category == 5:
            return _score(float(conversations.abstains(said)), said, measured, unread=not said)
        gold = target.text
        value = conversations.f1(said, gold, category)
        measured["BLEU-1"] = conversations.bleu_1(said, gold)
        if judge is None:
            return _score(value, said, measured, unread=not said)
        question = MemoryQuestion(str(state.sample_id), state.input_text, gold=(gold,))
        verdict, why = await _judged(judge, conversations.judge_prompt(question, said), conversations.correct)
        measured["judge"] = float(verdict is True)
        return _score(value, said, measured, unread=verdict is None, why=why)

    return score


@scorer(metrics=_metrics())
def recalled(judge: str | None = None, official: bool = False) -> Scorer:
    """LongMemEval: what the judge says, asked by the question's type; without one, whether the gold words are there."""

    async def score(state: TaskState, target: Target) -> Score:
        said, known = _said(state), state.metadata
        measured = _read(state)
        if judge is None:
            return _score(float(contains(said, known["answer"]) or matches(said, known["answer"])), said, measured)
        question = MemoryQuestion(str(state.sample_id), state.input_text, kind=known["kind"])
        prompt = haystacks.judge_prompt(question, known["answer"], said, abstention=known["abstention"])
        rule = "official" if official else "strict"
        verdict, why = await _judged(judge, prompt, lambda reply: haystacks.says_yes(reply, rule=rule))
        return _score(float(verdict is True), said, measured, unread=verdict is None, why=why)

    return score
