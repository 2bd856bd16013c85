"""The calls of an audit before it starts: when nothing is found, and when everything is found and holds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from equipoise.chat.account import Planned, estimate
from equipoise.chat.client import resolve
from equipoise.judging.casting import RULES, Casting
from equipoise.judging.pairs import Pair
from equipoise.judging.result import AuditPlan


def planned(parts: Sequence[Sequence[Pair]], left_out: Sequence[str], casting: Casting) -> AuditPlan:
    """What an audit of these parts would ask; repairs of invalid JSON are not in it."""
    sample = [pair for part in parts for pair in part][:200]
    pair = float(np.mean([len(p.question) + len(p.chosen) + len(p.rejected) for p in sample]))
    # Characters of a prompt and of its answer; a prompt's own words are about a thousand.
    sizes = {
        "judge, explaining": (pair + 1500, 1000),
        "teacher, rewriting": (pair / 2 + 1500, pair / 2),
        "teacher, naming": (pair + 3000, 300),
        "teacher, comparing names": (800, 40),
    }
    calls = _calls([len(part) for part in parts], casting)
    tokens, usd, known = [0, 0], [0.0, 0.0], True
    for role, ends in calls.items():
        if any(ends):
            prompt, answer = sizes.get(role, (pair + 1000, 600))
            model = casting.asked.judge if role.startswith("judge") else casting.asked.teacher
            model = role.removeprefix("filter ") if role.startswith("filter ") else model
            name = resolve(model)[0] if isinstance(model, str) else ""  # of an object nobody knows the price
            for end, count in enumerate(ends):
                cost = estimate(
                    [Planned(role, count, prompt, round(answer / 4))], model=name, prices=casting.roles.prices
                )
                tokens[end] += cost.prompt_tokens + cost.generated_tokens
                known = known and cost.usd is not None
                usd[end] += cost.usd or 0.0
    return AuditPlan(
        sizes=(len(parts[0]), len(parts[1]), len(parts[2])),
        left_out=tuple(left_out),
        calls=calls,
        tokens=(tokens[0], tokens[1]),
        usd=(usd[0], usd[1]) if known else None,
        first=tuple(asdict(pair) for pair in sample[:3]),
    )


def _calls(sizes: Sequence[int], casting: Casting) -> Mapping[str, tuple[int, int]]:
    """Role -> (when nothing is found, when everything is)."""
    settings, library = casting.settings, len(casting.library)
    discovery, selection, report = sizes
    rounds, last = settings.rounds, report or selection  # last: where what holds is measured once more
    first, tested = min(rounds, 1), selection + report
    if settings.rule == "published":
        selection, last = tested, tested
    biases = library + rounds * (discovery if settings.candidates is None else min(settings.candidates, discovery))
    # A pair as it is takes two calls. A rewrite takes two more; of a judge that rates each answer by itself one, and one
    # for the better answer of every pair of the discovery part.
    per_rewrite, alone = (1, first * discovery) if casting.asked.judge_kind == "pointwise" else (2, 0)
    again = last * (1 + (biases if casting.asked.length_control else 0))
    judged = (
        2 * selection + per_rewrite * (library * selection + first * discovery) + alone,
        2 * tested + per_rewrite * (biases * tested + rounds * discovery + again) + alone,
    )
    calls = {
        "judge": (0, 0) if casting.scores else judged,
        "judge, explaining": (0, rounds * discovery if settings.explain else 0),
        "teacher, rewriting": (
            library * selection + first * discovery,
            biases * tested + (rounds + 1) * discovery + last,
        ),
        "teacher, naming": (0, rounds * discovery),
        "teacher, comparing names": (0, rounds * discovery * biases),
    }
    if casting.asked.teacher == RULES:
        calls |= dict.fromkeys([role for role in calls if role.startswith("teacher")], (0, 0))
    return calls | {f"filter {name}": (0, 2 * biases * tested) for name in casting.filters}
