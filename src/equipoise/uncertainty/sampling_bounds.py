"""What can be said of sampling fidelity where only the likeliest tokens of a slot are known, as servers tell them.

Of a slot there are the probabilities of some tokens, and what all others have together: the rest, of which none has more
than the least of the likeliest that are told. A symbol's share of all symbols' probability then lies between two numbers,
and so does every measure. The bounds hold the measure; they need not be the closest ones, except where nothing is left open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from equipoise.uncertainty.sampling_fidelity import Fidelity, checked_target, measures
from equipoise.uncertainty.sampling_task import bared

Array = NDArray[np.float64]


class SlotBounds(NamedTuple):
    """lower, upper: [k], of the symbols' shares of all symbols' probability; leak: least and most, of what is no symbol."""

    lower: Array
    upper: Array
    leak: tuple[float, float]


def slot_bounds(told: Mapping[str, float], symbols: Sequence[str], drawn: str | None = None) -> SlotBounds:
    """What the told tokens of one slot leave possible. told: text of a token -> its log-probability; blanks do not count.

    drawn: of the told ones that which was written: it need not be among the likeliest, so that it bounds no other token.

    A token that is a symbol counts for it, unless it also begins another; one that begins a symbol may lead to it or not.
    """
    names = [bared(symbol) for symbol in symbols]
    known, more, other = np.zeros(len(names)), np.zeros(len(names)), 0.0
    open_mass = 0.0
    for text, log_prob in told.items():
        piece, p = bared(text), math.exp(log_prob)
        begun = [index for index, name in enumerate(names) if piece and name.startswith(piece)]
        if len(begun) == 1 and names[begun[0]] == piece:
            known[begun[0]] += p
        elif begun:
            more[begun] += p
            open_mass += p
        else:
            other += p
    rest = max(1 - sum(map(math.exp, told.values())), 0.0)
    least = min((math.exp(log_prob) for text, log_prob in told.items() if text != drawn), default=1.0)
    # An untold token of the symbol's own, or one that begins it, may stand beside the told ones, so none is surely complete,
    # but each has at most the least that is told. Allowed for: each beginning of a symbol, with and without a blank before.
    unseen = np.minimum(2 * least * np.array([len(name) for name in names]), rest)
    highest = known + more + unseen
    total_least, total_most = known.sum(), known.sum() + open_mass + rest
    if not total_most:
        return SlotBounds(np.zeros(len(names)), np.ones(len(names)), (1.0, 1.0))
    lower = known / total_most
    beside = known.sum() - known
    upper = highest / np.maximum(highest + beside, 1e-300)
    return SlotBounds(lower, upper, (min(other, 1.0), max(1 - total_least, 0.0)))


def bounded_measures(
    lower: ArrayLike, upper: ArrayLike, leak: ArrayLike, target: ArrayLike, draws: ArrayLike | None = None
) -> tuple[Fidelity, Fidelity]:
    """The least and the most that each measure of a sequence can be. lower, upper: [T, k]; leak: [T, 2]; target: [k].

    Both are `measures` where nothing is open.
    """
    q = checked_target(target)
    low, high = (np.asarray(each, dtype=float).reshape(-1, len(q)) for each in (lower, upper))
    a_result = measures([], q, draws).a_result
    if not len(low):
        empty = measures([], q, draws)
        return empty, empty
    least_a, most_a = _distances(low, high, q)
    least_mean, most_mean = _distances(low.mean(axis=0)[None], high.mean(axis=0)[None], q)
    near, far = _apart(low, high, q, q)
    mean_near, mean_far = _apart(low.mean(axis=0), high.mean(axis=0), q, q)
    squares = (near**2).sum(axis=1).mean(), (far**2).sum(axis=1).mean()
    bias = (mean_near**2).sum(), (mean_far**2).sum()
    steps = _apart(low[1:], high[1:], low[:-1], high[:-1])
    step = [float(np.minimum(each.sum(axis=1) / 2, 1).mean()) if len(each) else math.nan for each in steps]
    entropy, spread = special.entr(q).sum(), 1 - (q**2).sum()
    ends = np.minimum(special.entr(low), special.entr(high)).sum(axis=1).mean()
    peak = np.where(
        (low <= 1 / math.e) & (high >= 1 / math.e), 1 / math.e, np.maximum(special.entr(low), special.entr(high))
    )
    tops = np.minimum(peak.sum(axis=1), math.log(len(q))).mean()
    leaks = np.asarray(leak, dtype=float).reshape(-1, 2).mean(axis=0)
    a = float(least_a.mean()), float(most_a.mean())
    made = [
        {
            "a_token": a[end],
            "a_mean": float((least_mean, most_mean)[end][0]),
            "a_result": a_result,
            "step": step[end],
            "entropy_ratio": float((ends, tops)[end] / entropy),
            "leak": float(leaks[end]),
            "bias": float(bias[end]),
            "dispersion": float(max(squares[end] - bias[1 - end], 0)),
            "e_score": 1 - a[1 - end] / spread,
        }
        for end in (0, 1)
    ]
    return Fidelity(**made[0]), Fidelity(**made[1])


def _distances(low: Array, high: Array, q: Array) -> tuple[Array, Array]:
    """Least and most of TV(p, q) for p between low and high, [T] each: p and q have one sum, so either half tells all."""
    short, over = np.maximum(q - high, 0).sum(axis=1), np.maximum(low - q, 0).sum(axis=1)
    most_short, most_over = np.maximum(q - low, 0).sum(axis=1), np.maximum(high - q, 0).sum(axis=1)
    return np.maximum(short, over), np.minimum(most_short, most_over)


def _apart(low: Array, high: Array, other_low: Array, other_high: Array) -> tuple[Array, Array]:
    """Least and most of |a - b| for a and b between their bounds."""
    near = np.maximum(np.maximum(low - other_high, other_low - high), 0)
    return near, np.maximum(high - other_low, other_high - low)
