"""Aggregates of returns that a single lucky run does not move: interquartile mean, stratified bootstrap, improvement.

As rliable computes them (arXiv:2108.13264), with starts in the place of its tasks: scores [S, I], S policies from seeds of
their own, I starts.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def iqm(scores: ArrayLike) -> float:
    """Mean of the middle half of all scores, a quarter cut at either end (rounded down); nan of none."""
    ordered = np.sort(np.asarray(scores, float).ravel())
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean()) if len(ordered) else math.nan


def iqm_interval(
    scores: ArrayLike, generator: np.random.Generator, *, draws: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the IQM: of each start S policies are drawn anew, with replacement. scores: [S, I].

    nan for fewer than two policies, of which there is nothing to draw. With few policies such intervals are too narrow: read
    those of the means first.
    """
    table = np.asarray(scores, float)
    seeds, starts = table.shape
    if seeds < 2:
        return math.nan, math.nan
    found = [iqm(table[generator.integers(seeds, size=(seeds, starts)), np.arange(starts)]) for _ in range(draws)]
    lower, upper = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(lower), float(upper)


def unpaired_interval(scores: ArrayLike, others: ArrayLike, *, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of the first less that of the second, and its ends; policies are others each, starts the same. [S, I], [R, I].

    V = var(policy means) / S + var(policy means) / R + var(differences of start means) / I, degrees of freedom by
    Satterthwaite; a single policy, or start, has no part in V.
    """
    one, other = np.asarray(scores, float), np.asarray(others, float)
    difference = one.mean(0) - other.mean(0)
    parts = [
        (each.var(ddof=1) / len(each), len(each) - 1)
        for each in (one.mean(1), other.mean(1), difference)
        if len(each) > 1
    ]
    value, whole = float(difference.mean()), sum(part for part, _ in parts)
    if not parts:
        return value, math.nan, math.nan
    if whole == 0:
        return value, value, value
    half = float(stats.t.ppf((1 + level) / 2, whole**2 / sum(part**2 / df for part, df in parts))) * math.sqrt(whole)
    return value, value - half, value + half


def probability_of_improvement(scores: ArrayLike, others: ArrayLike) -> float:
    """Chance that a policy of the first gets more than one of the second from the same start, ties half. [S, I], [R, I]."""
    one, other = np.asarray(scores, float)[:, None], np.asarray(others, float)[None]
    return float(((one > other) + 0.5 * (one == other)).mean())
