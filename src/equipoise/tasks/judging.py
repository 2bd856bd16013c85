"""Judge benchmarks as Inspect tasks: which of two answers is better, asked in both orders.

    inspect eval equipoise/judgebench --model openai/gpt-4o -T domain=math --limit 40

Each pair makes two samples that follow each other (an even --limit keeps pairs whole). A reply without a verdict counts as
wrong and is reported; standard errors are clustered by question.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import (
    CORRECT,
    INCORRECT,
    NOANSWER,
    Metric,
    SampleScore,
    Score,
    Scorer,
    Target,
    Value,
    accuracy,
    grouped,
    metric,
    scorer,
    stderr,
)
from inspect_ai.solver import TaskState, generate

from equipoise.chat.client import inspect_messages
from equipoise.chat.templates import Template
from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.options import choice, closed
from equipoise.data.public import folder
from equipoise.data.records import EXTENSIONS
from equipoise.judging.judges import pairwise_template
from equipoise.judging.pairs import Pair, iterate_pairs
from equipoise.judging.validation import position_bias
from equipoise.judging.verdicts import parse_decision

Orders = Literal["both", "file"]
VERDICTS = {CORRECT: 1.0, INCORRECT: 0.0, NOANSWER: np.nan}


@task
@closed
def judgebench(
    path: str | None = None,
    domain: str | None = None,
    orders: Orders = "both",
    rubric: str | None = None,
) -> Task:
    """JudgeBench (Tan et al. 2024, arXiv:2410.12784): pairs of which exactly one answer is right.

    path: file or folder, by default EQUIPOISE_DATA/judgebench (a copy of the Hub's repository will do). domain: knowledge,
    reason, math or code. orders: "file" asks once, in the order of the file. rubric: a prompt file of your own.
    """
    files = _files("judgebench", path, ("judgebench", "judge_bench", "gpt", "claude"))
    return _task("judgebench", _chosen(files, domain=domain), orders, rubric)


@task
@closed
def rewardbench(
    path: str | None = None,
    domain: str | None = None,
    subset: str | None = None,
    orders: Orders = "both",
    rubric: str | None = None,
) -> Task:
    """RewardBench (Lambert et al. 2024, arXiv:2403.13787). subset: such as "llmbar-natural"; else as `judgebench`.

    In its files the better answer always stands first, so that orders="file" mixes the judge's position bias in.
    """
    files = _files("rewardbench", path, ("rewardbench", "filtered"))
    return _task("rewardbench", _chosen(files, domain=domain, subset=subset), orders, rubric)


@task
@closed
def judgebench_pro(
    path: str | None = None,
    domain: str | None = None,
    bias: str | None = None,
    orders: Orders = "both",
    rubric: str | None = None,
) -> Task:
    """Pairs whose worse answer was rewritten to show a bias: JudgeBench-Pro, or what `equipoise audit judge` made.

    path: by default EQUIPOISE_DATA/judgebench-pro. bias: only this one; else as `judgebench`. Accuracy also by bias.
    """
    files = _files("judgebench-pro", path, ("judgebench", "hardened", "train", "test"))
    by_bias = grouped(accuracy(), "bias", all=False, name_template="accuracy on {group_name}")
    return _task("judgebench-pro", _chosen(files, domain=domain, bias=bias), orders, rubric, by_bias)


# --- data -----------------------------------------------------------------------------------------------------------


def _files(name: str, path: str | None, words: tuple[str, ...]) -> list[Path]:
    """The file that was named, or all files of a folder (and of its data/, as on the Hub) that one of the words is in."""
    root = folder(name) if path is None else Path(path)
    if not root.is_dir():
        return [root]
    matches = [
        file
        for directory in (root, root / "data")
        if directory.is_dir()
        for file in sorted(directory.iterdir())
        if file.name.endswith(EXTENSIONS) and any(word in file.name.lower() for word in words)
    ]
    if not matches:
        raise BadInput(
            f"{root} has no file of {name}: expected {' or '.join(words)} in a name; or name the file itself."
        )
    return matches


def _chosen(files: list[Path], **wanted: str | None) -> list[Pair]:
    """The pairs whose fields are what is wanted (None: anything). Raises BadInput when none is, naming what there is."""
    pairs: dict[str, Pair] = {}
    known: dict[str, set[str]] = {field: set() for field in wanted}
    for pair, row in _pairs(files):
        # A hub file without `domain` has its subset for one.
        fields = {**row, "domain": pair.domain}
        for field in wanted:
            known[field].add(str(fields.get(field, "")))
        if all(value is None or fields.get(field) == value for field, value in wanted.items()):
            if pair.id in pairs:
                raise BadInput(f"id {pair.id!r} stands twice in {', '.join(map(str, files))}; make ids unique.")
            pairs[pair.id] = pair
    if not pairs:
        asked = {field: value for field, value in wanted.items() if value is not None}
        if not asked:
            raise BadInput(f"{', '.join(map(str, files))}: no pairs; expected at least one.")
        hints = " ".join(f"{field}: {did_you_mean(value, known[field])}" for field, value in asked.items())
        raise BadInput(f"no pair has {' and '.join(f'{field} {value!r}' for field, value in asked.items())}. {hints}")
    return list(pairs.values())


def _pairs(files: list[Path]) -> Iterator[tuple[Pair, dict[str, Any]]]:
    for file in files:
        for _, pair, row in iterate_pairs(file):
            yield pair, row


# --- task -----------------------------------------------------------------------------------------------------------


def _task(name: str, pairs: list[Pair], orders: Orders, rubric: str | None, *metrics: Metric) -> Task:
    choice("orders", orders, Orders)
    template = pairwise_template(Path(rubric) if rubric else None)
    samples = [
        _sample(pair, position, template)
        for pair in pairs
        for position in ((1, 2) if orders == "both" else (1 if pair.chosen_first else 2,))
    ]
    return Task(
        dataset=MemoryDataset(samples, name=name),
        solver=generate(),
        scorer=decision(),
        metrics=[*common_metrics(), *metrics],
        config=GenerateConfig(temperature=0.0),
    )


def _sample(pair: Pair, position: int, template: Template) -> Sample:
    """One order of a pair; place: where the better answer stands, 1 or 2."""
    answers = (pair.chosen, pair.rejected) if position == 1 else (pair.rejected, pair.chosen)
    messages = template.render(question=pair.question, answer_1=answers[0], answer_2=answers[1])
    return Sample(
        id=f"{pair.id}/{position}",
        input=inspect_messages(messages),
        target=str(position),
        metadata={
            "pair": pair.id,
            "order": position,
            "domain": pair.domain or "no domain",
            "group": pair.group,
            "bias": pair.bias or "no bias",
        },
    )


@metric(scores="unreduced")
def both_orders() -> Metric:
    """What only the two orders of a pair together show; with epochs, the first asking of both, then the second, and so on.

    both right: share of pairs right in both orders; turns: share that names the same place in both, of those with two
    verdicts; first shown: share of verdicts for the first answer, 0.5 without preference; no verdict: share of replies.
    Shares of nothing are nan.
    """

    def compute(scores: list[SampleScore]) -> Value:
        asked: dict[tuple[str, int], list[float]] = {}
        for sample in scores:
            known = sample.sample_metadata or {}
            asked.setdefault((known["pair"], known["order"]), []).append(VERDICTS[str(sample.score.value)])
        right = [
            values
            for pair in {pair: None for pair, _ in asked}
            for values in zip(asked.get((pair, 1), []), asked.get((pair, 2), []), strict=False)
        ]
        position = position_bias(np.array(right).reshape(-1, 2))
        unread = sum(str(sample.score.value) == NOANSWER for sample in scores)
        return {
            "both right": position.both_right,
            "turns": position.turns,
            "first shown": position.first,
            "no verdict": unread / len(scores) if scores else np.nan,
        }

    return compute


def common_metrics() -> list[Metric]:
    """Accuracy with its clustered standard error, by domain, and what both orders show."""
    return [
        accuracy(),
        stderr(cluster="group"),
        both_orders(),
        grouped(accuracy(), "domain", all=False, name_template="accuracy in {group_name}"),
    ]


@scorer(metrics=common_metrics())
def decision() -> Scorer:
    """C where the reply decides for the better answer, I for the other, N where it holds no decision."""

    async def score(state: TaskState, target: Target) -> Score:
        choice = parse_decision(state.output.completion)
        value = NOANSWER if choice is None else CORRECT if str(choice) == target.text else INCORRECT
        return Score(value=value, answer=None if choice is None else str(choice))

    return score
