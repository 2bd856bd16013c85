"""The calls of an audit before it starts: when nothing is found, and when everything is found and holds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from equipoise.chat.account import Planned, estimate
from equipoise.chat.client import resolve
from equipoise.judging.biasscope import Settings
from equipoise.judging.casting import RULES, Casting
from equipoise.judging.pairs import Pair
from equipoise.judging.result import AuditPlan


def planned(
    parts: Sequence[Sequence[Pair]],
    left_out: Sequence[str],
    library: int,
    settings: Settings,
    casting: Casting,
    cut: bool,
) -> AuditPlan:
    """What an audit of these parts would ask, with a library of so many biases. cut: whether it measures cut rewrites, too.

    Not in it: repairs of invalid JSON.
    """
    sample = [pair for part in parts for pair in part][:200]
    pair = float(np.mean([len(p.question) + len(p.chosen) + len(p.rejected) for p in sample]))
    # Characters of a prompt and of its answer; a prompt's own words are about a thousand.
    sizes = {
        "judge": (pair + 1000, 600),
        "judge, explaining": (pair + 1500, 1000),
        "teacher, rewriting": (pair / 2 + 1500, pair / 2),
        "teacher, naming": (pair + 3000, 300),
        "teacher, comparing names": (800, 40),
    }
    calls = _calls([len(part) for part in parts], library, settings, casting, cut)
    tokens, usd, known = [0, 0], [0.0, 0.0], True
    for role, ends in calls.items():
        if not any(ends):
            continue
        model = casting.judge if role.startswith("judge") else casting.teacher
        model = role.removeprefix("filter ") if role.startswith("filter ") else model
        prompt, answer = sizes.get(role, sizes["judge"])
        name = resolve(model)[0] if isinstance(model, str) else ""  # of an object nobody knows the price
        for end, count in enumerate(ends):
            cost = estimate([Planned(role, count, prompt, round(answer / 4))], model=name, prices=casting.prices)
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


def _calls(
    sizes: Sequence[int], library: int, settings: Settings, casting: Casting, cut: bool
) -> Mapping[str, tuple[int, int]]:
    """Role -> (when nothing is found, when everything is)."""
    found, chosen, told = sizes
    if settings.rule == "published":
        chosen, told = chosen + told, 0
    rounds, last = settings.rounds, told or chosen  # last: where what holds is measured once more
    first = min(rounds, 1)
    biases = library + rounds * (found if settings.candidates is None else min(settings.candidates, found))
    # A pair as it is is two calls. A rewrite is two more; of a judge that rates each answer by itself, one.
    each = 1 if casting.judge_kind == "pointwise" else 2
    again = (found if each == 1 else 0) * first  # the better answers of the discovery part, which are rated once
    judged = (
        2 * chosen + each * (library * chosen + first * found) + again,
        2 * (chosen + told) + each * (biases * (chosen + told) + rounds * found + last * (1 + biases * cut)) + again,
    )
    rewritten = library * chosen + first * found, biases * (chosen + told) + (rounds + 1) * found + last
    nothing = (0, 0)
    roles = {
        "judge": nothing if casting.scores else judged,
        "judge, explaining": (0, rounds * found if settings.explain else 0),
        "teacher, rewriting": rewritten,
        "teacher, naming": (0, rounds * found),
        "teacher, comparing names": (0, rounds * found * biases),
    }
    if casting.teacher == RULES:
        roles |= {role: nothing for role in roles if role.startswith("teacher")}
    return roles | {f"filter {name}": (0, 2 * biases * (chosen + told)) for name in casting.filters}
