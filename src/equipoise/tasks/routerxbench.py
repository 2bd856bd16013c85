"""RouterXBench as an Inspect task: any model as a router that says, before an answer, how surely it would be right.

    inspect eval equipoise/routerxbench --model openai/gpt-4o-mini -T path=labels.jsonl
    inspect eval equipoise/routerxbench --model mockllm/model -T path=router/scores.jsonl -T score=dirichlet

Rows are what `equipoise route label` writes: prompts with the quality of a weak and of a strong model's answer. Asked is the
model that is evaluated, mostly the weak one itself; a solver of your own may route in its place, by ending on a confidence.
With `score` nothing is asked: the rows' stored score of that name is measured.
"""

import math
from pathlib import Path

import numpy as np
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, metric, scorer
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver

from equipoise.core.errors import BadInput
from equipoise.routing import routerxbench as bench
from equipoise.routing.labels import VERBALISED, Labels, read_labels, scores_of, solved_of, tested

UNREAD = 0.5


@task
def routerxbench(
    path: str,
    score: str | None = None,
    domain: str | None = None,
    budget_low: float = bench.BUDGET[0],
    budget_high: float = bench.BUDGET[1],
    quality_low: float = bench.QUALITY[0],
    quality_high: float = bench.QUALITY[1],
) -> Task:
    """RouterXBench (arXiv:2602.11877) on labels of yours: AUROC, LPM, MPM and HCR, over all prompts and by domain.

    path: labels, or the scores.jsonl of `route fit` (of which the rows that were tested are taken). score: measure this
    stored score instead of asking. domain: only this one. budget_low ... quality_high: the bands of LPM, MPM and HCR.
    """
    labels = tested(read_labels(Path(path)))
    bands = bench.Bands((budget_low, budget_high), (quality_low, quality_high))
    stored = scores_of(labels) if score is not None else {}
    if score is not None and score not in stored:
        raise BadInput(f"{path}: no score {score!r} is stored; known: {', '.join(stored) or 'none'}.")
    solved = solved_of(labels)
    samples = [
        _sample(labels, place, float(solved[place]), None if score is None else float(stored[score][place]))
        for place in range(len(labels.problems))
        if domain in (None, labels.domains[place])
    ]
    if not samples:
        raise BadInput(
            f"{path}: no prompt is of the domain {domain!r}; known: {', '.join(sorted(set(labels.domains)))}."
        )
    return Task(
        dataset=MemoryDataset(samples, name="routerxbench"),
        solver=generate() if score is None else unasked(),
        scorer=confidence(),
        metrics=[axes(bands.budget, bands.quality)],
        config=GenerateConfig(temperature=0.0),
    )


def _sample(labels: Labels, place: int, solved: float, score: float | None) -> Sample:
    problem = labels.problems[place]
    known = {
        "weak": labels.weak[place],
        "strong": labels.strong[place],
        "solved": solved,
        "domain": labels.domains[place],
        "group": labels.groups[place],
    }
    return Sample(
        id=problem.id,
        input=VERBALISED.format(question=problem.prompt),
        target="",
        metadata=known if score is None else {**known, "score": score},
    )


@solver
def unasked() -> Solver:
    """Asks nothing."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        return state

    return solve


@metric(scores="unreduced")
def axes(budget: tuple[float, float] = bench.BUDGET, quality: tuple[float, float] = bench.QUALITY) -> Metric:
    """AUROC, LPM, MPM, HCR, the means of weak and strong, and the share of replies without a number; then each by domain.

    What is undefined is nan. By domain only where there are several.
    """

    def compute(scores: list[SampleScore]) -> Value:
        rows = [(sample.score.as_float(), sample.sample_metadata or {}) for sample in scores]
        unread = sum(bool((sample.score.metadata or {}).get("unread")) for sample in scores)
        found = _measured(rows, budget, quality) | {"no number": unread / len(rows) if rows else math.nan}
        domains = list(dict.fromkeys(known["domain"] for _, known in rows))
        for name in domains if len(domains) > 1 else ():
            inside = [(score, known) for score, known in rows if known["domain"] == name]
            found |= {f"{measure} in {name}": value for measure, value in _measured(inside, budget, quality).items()}
        return found

    return compute


def _measured(
    rows: list[tuple[float, dict[str, object]]], budget: tuple[float, float], quality: tuple[float, float]
) -> dict[str, float]:
    score, *known = (
        np.array([score for score, _ in rows], float),
        *(np.array([row[name] for _, row in rows], float) for name in ("weak", "strong", "solved")),
    )
    weak, strong, solved = known
    return {
        "AUROC": bench.auroc(score, solved),
        "LPM": bench.lpm(score, weak, strong, band=budget),
        "MPM": bench.mpm(score, weak, strong, band=quality, budget=budget),
        "HCR": bench.hcr(score, weak, strong, band=quality),
        "weak": float(weak.mean()) if len(weak) else math.nan,
        "strong": float(strong.mean()) if len(strong) else math.nan,
    }


@scorer(metrics=[axes()])
def confidence() -> Scorer:
    """The stored score, or the confidence in [0, 1] that the reply states; 0.5 where it states none, and that is counted."""

    async def score(state: TaskState, target: Target) -> Score:
        from equipoise.language.confidence import verbalized

        if "score" in state.metadata:
            return Score(value=float(state.metadata["score"]))
        stated = verbalized(state.output.completion)
        unread = math.isnan(stated)
        return Score(value=UNREAD if unread else stated, answer=state.output.completion, metadata={"unread": unread})

    return score
