"""Aggregates of returns that a single lucky run does not move: interquartile mean, stratified bootstrap, improvement.

As rliable computes them (arXiv:2108.13264), with starts in the place of its tasks: scores [S, I], S policies from seeds of
their own, I starts.
"""

import math

import numpy as np
from numpy.typing import ArrayLike


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


def probability_of_improvement(scores: ArrayLike, others: ArrayLike) -> float:
    """Chance that a policy of the first gets more than one of the second from the same start, ties half. [S, I], [R, I]."""
    one, other = np.asarray(scores, float)[:, None], np.asarray(others, float)[None]
    return float(((one > other) + 0.5 * (one == other)).mean())
