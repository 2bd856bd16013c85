"""The rows of labels.jsonl, and what is known of all labels together."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from equipoise.data import final_answer
from equipoise.data.text import after_thinking
from equipoise.reinforcement import nait
from equipoise.reinforcement.measures import bounded, clusters, mean_share
from equipoise.reinforcement.prm_label_drawing import Completed
from equipoise.reinforcement.prm_label_result import HARD, SOFT, LabeledStep, LabelPlace, RemovedSuccess
from equipoise.reinforcement.prm_label_solutions import cut, stated
from equipoise.reinforcement.reflection import Reflection

MOST_PLACES = 12  # of a page; steps behind stand together
SHOWN = 8  # successes that the judge removed
Verdicts = Sequence[Sequence[Reflection]]


def labeled(completed: Completed, verdicts: Verdicts, samples: int, kind: str) -> dict[str, Any]:
    """A row of labels.jsonl. verdicts: on each completion, [t][k]. kind: of the verifier.

    A step that was not gone on with has no completion in which it could be corrected: R = 0.
    """
    solution, outcomes = completed.solution, completed.outcomes(samples)
    reflected = [[int(each.reflects) for each in row] for row in verdicts]
    reflected += [[0] * samples] * (len(outcomes) - len(reflected))
    z = torch.tensor([[each or 0 for each in row] for row in outcomes], dtype=torch.float64)
    soft, hard = nait.monte_carlo(z)
    corrected_soft, corrected_hard = nait.monte_carlo(nait.correct(z, torch.tensor(reflected)))
    return {
        "id": solution.id,
        "problem": stated(solution.problem),
        "answer": " | ".join(solution.problem.gold),
        "steps": list(solution.stepped.steps),
        "final_answer": _final_answer(kind, solution.stepped.text) if solution.whole else None,
        "correct": None if completed.answer is None else bool(completed.answer),
        "outcomes": outcomes,
        "reflected": reflected,
        "quotes": [
            [
                {"completion": number, "at_step": each.at_step, "quote": each.quote}
                for number, each in enumerate(row)
                if each.reflects
            ]
            for row in [*verdicts, *[()] * (len(outcomes) - len(verdicts))]
        ],
        "soft": soft.tolist(),
        "hard": hard.int().tolist(),
        "corrected_soft": corrected_soft.tolist(),
        "corrected_hard": corrected_hard.int().tolist(),
    }


def measured(completed: Sequence[Completed], labels: Sequence[dict[str, Any]], separator: str | None) -> dict[str, Any]:
    """The fields of `StepLabels` that are made from all rows."""
    problems = [each.solution.problem for each, row in zip(completed, labels, strict=True) for _ in row["steps"]]
    of = clusters(problems)
    values = {
        name: np.array([value for row in labels for value in row[name]], dtype=float)
        for name in ("hard", "corrected_hard", "soft", "corrected_soft")
    }
    answered = [each for each in completed if each.answer is not None]
    drawn = [one for each in completed for row in each.completions for one in row]
    hard = [(row["hard"], row["corrected_hard"]) for row in labels]
    return {
        "correct": mean_share(
            [float(each.answer or 0) for each in answered], clusters([each.solution.problem for each in answered])
        ),
        "before": {name: mean_share(values[name], of) for name in (HARD, SOFT)},
        "after": {name: mean_share(values[f"corrected_{name}"], of) for name in (HARD, SOFT)},
        "lowered": {name: bounded(values[name] - values[f"corrected_{name}"], of) for name in (HARD, SOFT)},
        "rises": (sum(_rises(before) for before, _ in hard), sum(_rises(after) for _, after in hard)),
        "pairs": sum(len(before) - 1 for before, _ in hard),
        "completions": len(drawn),
        "successes": sum(one["outcome"] == 1 for one in drawn),
        "removed": sum(map(sum, (step for row in labels for step in row["reflected"]))),
        "unjudged": dict(Counter(one["why"] for one in drawn if one["outcome"] is None)),
        "places": _places(labels),
        "examples": _removed(completed, labels, separator),
        "solution_shown": _shown(labels),
    }


def _final_answer(kind: str, text: str) -> str | None:
    """The answer that a solution comes to, where the verifier reads one."""
    said = after_thinking(text)
    if said is None:
        return None
    if kind == "number":
        found = final_answer.number(said)
        return None if found is None else str(found)
    return {"choice": final_answer.choice, "math": final_answer.last_boxed}.get(kind, lambda _: None)(said)


def _rises(labels: Sequence[int]) -> int:
    return sum(before < after for before, after in pairwise(labels))


def _places(labels: Sequence[dict[str, Any]]) -> tuple[LabelPlace, ...]:
    longest = max(len(row["steps"]) for row in labels)
    found = []
    for place in range(min(longest, MOST_PLACES)):
        more = place + 1 == MOST_PLACES < longest
        places = slice(place, None if more else place + 1)
        means = {
            name: np.array([value for row in labels for value in row[name][places]], dtype=float)
            for name in ("hard", "corrected_hard", "soft", "corrected_soft")
        }
        steps = len(means["hard"])
        found.append(LabelPlace(place + 1, more, steps, **{name: float(each.mean()) for name, each in means.items()}))
    return tuple(found)


def _removed(
    completed: Sequence[Completed], labels: Sequence[dict[str, Any]], separator: str | None
) -> tuple[RemovedSuccess, ...]:
    """Of as many solutions as can be shown, so that one does not fill the table."""
    of_each = [
        [
            RemovedSuccess(
                row["id"],
                step + 1,
                row["steps"][step],
                quote["completion"],
                _added(each, step, quote, separator),
                quote["quote"],
            )
            for step, quotes in enumerate(row["quotes"])
            for quote in quotes
        ]
        for each, row in zip(completed, labels, strict=True)
    ]
    rounds = max(map(len, of_each))
    return tuple([found[number] for number in range(rounds) for found in of_each if number < len(found)][:SHOWN])


def _added(completed: Completed, step: int, quote: dict[str, Any], separator: str | None) -> str:
    """The step of a completion that is quoted."""
    text = completed.completions[step][quote["completion"]]["text"]
    return cut(after_thinking(text) or "", separator).steps[quote["at_step"]]


def _shown(labels: Sequence[dict[str, Any]]) -> tuple[LabeledStep, ...]:
    """Every step of one solution: the first whose labels were corrected, else the first whose labels differ."""

    def worth(row: dict[str, Any]) -> tuple[bool, bool]:
        return row["soft"] != row["corrected_soft"], len(set(row["soft"])) > 1

    row = max(labels, key=worth)
    return tuple(
        LabeledStep(
            row["id"], number, text, sum(outcome or 0 for outcome in outcomes), round(corrected * len(outcomes))
        )
        for number, (text, outcomes, corrected) in enumerate(
            zip(row["steps"], row["outcomes"], row["corrected_soft"], strict=True), start=1
        )
    )
