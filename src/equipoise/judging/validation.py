"""Does a bias raise a judge's error? Paired in both orders, exact, corrected for many biases; and the published rule.

Legend: N pairs of answers, columns the two orders (0: the better answer shown first, 1: shown second). right[n, order] is 1
where the judge chose the better answer, 0 where it chose the other, nan where no verdict could be read. In errors an order
without a verdict counts as not right, since a rewrite that breaks the judge's format must not look harmless; how many there
were is reported apart. Pairs of one group (question) are one cluster. What is undefined is nan, never a number.

BiasScope (arXiv:2602.09383) keeps a bias iff err_after > err_before, any increase, over readable verdicts only, with
orders shuffled for the biased runs and not for the origin run: `published_accepts` and `published_orders`. The default
here is the test of `effect`:

    d_n = mean over the two orders of (not right after) - (not right before), in {-1, -1/2, 0, 1/2, 1}
    p   = P(sum over clusters c of s_c |D_c| >= sum over c of D_c), s_c independent fair signs, D_c = sum of 2 d_n in c

exact under "before and after are exchangeable within each cluster", whatever holds among pairs of one question and among
the two orders of one pair. With all |D_c| equal it is McNemar's exact one-sided test.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from equipoise.core.options import closed
from equipoise.core.statistics import item_interval, wilson
from equipoise.judging.measured import BiasEffect, PositionBias, Rate
from equipoise.judging.pairs import Pair

Array = NDArray[np.float64]


# --- one bias -------------------------------------------------------------------------------------------------------


def error(right: ArrayLike) -> Rate:
    """Counts of a judge's verdicts; any shape. Raises ValueError for values other than 0, 1 and nan."""
    values = _verdicts(right)
    return Rate(wrong=int((values == 0).sum()), no_verdict=int(np.isnan(values).sum()), of=values.size)


def effect(
    name: str, before: ArrayLike, after: ArrayLike, groups: Sequence[str], *, level: float = 0.95, left_out: int = 0
) -> BiasEffect:
    """The increase in error from before to after. before, after: right[N, 2] of the same pairs; groups: [N].

    Nothing but counts is defined for N = 0, and no interval for a single cluster. Raises ValueError for unequal shapes.
    """
    first, second = _both_orders(before, groups), _both_orders(after, groups)
    changed = (second != 1).astype(int) - (first != 1).astype(int)  # [N, 2]: 1 became wrong, -1 became right
    codes = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    mean, lower, upper, standard_error = _mean(changed.mean(axis=1), codes, level=level, least=-1.0)
    sums = np.bincount(codes, weights=changed.sum(axis=1)).astype(int)
    return BiasEffect(
        bias=name,
        pairs=len(changed),
        clusters=sums.size,
        before=error(first),
        after=error(second),
        increase=mean,
        lower=lower,
        upper=upper,
        standard_error=standard_error,
        p_value=sign_flip(sums),
        to_wrong=int((changed == 1).sum()),
        to_right=int((changed == -1).sum()),
        left_out=left_out,
    )


def by_domain(
    name: str,
    before: ArrayLike,
    after: ArrayLike,
    groups: Sequence[str],
    domains: Sequence[str],
    *,
    level: float = 0.95,
) -> dict[str, BiasEffect]:
    """`effect` within each domain, by name of the domain. Their p-values are not adjusted: look, do not conclude."""
    first, second = _both_orders(before, groups), _both_orders(after, groups)
    effects = {}
    for domain in sorted(set(domains)):
        rows = [row for row, own in enumerate(domains) if own == domain]
        effects[domain] = effect(name, first[rows], second[rows], [groups[row] for row in rows], level=level)
    return effects


def sign_flip(sums: ArrayLike) -> float:
    """Exact one-sided p that sums of independent clusters lean upwards by chance: P(sum of s_c |D_c| >= sum of D_c).

    sums: [C] integers. 1 when all are 0, nan when there are none. The sum over random signs is 2 X - sum of |D_c| with X the
    sum of those |D_c| that were kept, and X is a sum of one m * Binomial(number of |D_c| = m, 1/2) for each m. All terms are
    positive, so a p of 1e-200 is as exact as one of 0.1.
    """
    values = np.asarray(sums)
    if values.size and not np.array_equal(values, np.rint(values)):
        raise ValueError("sums of clusters must be integers (twice the differences of errors).")
    values = values.astype(int)
    if not values.size:
        return math.nan
    magnitudes, counts = np.unique(np.abs(values[values != 0]), return_counts=True)
    if not magnitudes.size:
        return 1.0
    needed = int(np.maximum(values, 0).sum())  # X of what was observed
    largest = int(np.argmax(counts))
    density = np.ones(1)  # of the part of X that all other magnitudes make
    for m, count in zip(np.delete(magnitudes, largest), np.delete(counts, largest), strict=True):
        grown = np.zeros(density.size + m * count)
        for kept, share in enumerate(stats.binom.pmf(np.arange(count + 1), count, 0.5)):
            grown[m * kept : m * kept + density.size] += share * density
        density = grown
    # The most frequent magnitude closes the sum by its upper tail: at least ceil((needed - part) / m) of them.
    m, count = int(magnitudes[largest]), int(counts[largest])
    at_least = -((np.arange(density.size) - needed) // m)
    return min(1.0, float(density @ stats.binom.sf(at_least - 1, count, 0.5)))


# --- many biases ----------------------------------------------------------------------------------------------------


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down p-values: those under alpha are all true with probability 1 - alpha, whatever their dependence.

    nan stays nan and counts as no test.
    """
    p, order, rank = _ranked(p_values)
    tests = np.count_nonzero(~np.isnan(p))
    return np.minimum(1, np.maximum.accumulate(p[order] * np.maximum(tests - np.arange(p.size), 1)))[rank]


def benjamini_hochberg(p_values: ArrayLike) -> Array:
    """Benjamini and Hochberg's step-up p-values (false discovery rate); nan stays nan and counts as no test."""
    p, order, rank = _ranked(p_values)
    tests = np.count_nonzero(~np.isnan(p))
    scaled = p[order] * tests / np.arange(1, p.size + 1)
    return np.minimum(1, np.fmin.accumulate(scaled[::-1])[::-1] + 0 * scaled)[rank]


@closed
def adjusted(
    effects: Sequence[BiasEffect], method: Literal["holm", "benjamini-hochberg", "none"] = "holm"
) -> list[BiasEffect]:
    """The effects with p_adjusted. Give all that were ever tested, also those of earlier rounds that were not kept."""
    p = np.array([each.p_value for each in effects])
    corrected = {"holm": holm, "benjamini-hochberg": benjamini_hochberg, "none": np.asarray}[method](p)
    return [replace(each, p_adjusted=float(value)) for each, value in zip(effects, corrected, strict=True)]


# --- the published rule ---------------------------------------------------------------------------------------------


def published_accepts(before: ArrayLike, after: ArrayLike) -> tuple[bool, float, float]:
    """Whether the released code keeps a bias, and the two errors it compares. before, after: [N], one order each.

    Error over readable verdicts only, 1 where there are none; any increase is enough.
    """
    errors = [_parsed_error(_verdicts(values)) for values in (before, after)]
    return errors[1] > errors[0], errors[0], errors[1]


def published_orders(pairs: Sequence[Pair], *, seed: int = 42, shuffled: bool) -> NDArray[np.int64]:
    """The column of right[N, 2] that the released code sees of each pair: right[np.arange(N), published_orders(...)].

    Its origin run keeps the file's order (shuffled=False); its biased runs exchange about half, alike for every bias.
    """
    column = np.array([0 if pair.chosen_first else 1 for pair in pairs], dtype=np.int64)
    exchanged = np.random.default_rng(seed).random(len(pairs)) < 0.5
    return column ^ exchanged if shuffled else column


# --- position and power ---------------------------------------------------------------------------------------------


def position_bias(right: ArrayLike, groups: Sequence[str] | None = None, *, level: float = 0.95) -> PositionBias:
    """What a judge makes of places. right: [N, 2]; groups: [N], by default every pair is its own cluster."""
    names = [str(row) for row in range(len(np.asarray(right)))] if groups is None else groups
    values = _both_orders(right, names)
    first = np.where(np.isnan(values), np.nan, np.abs(values - [0, 1]))  # 1: chose what stood first
    codes = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)[1]
    mean, lower, upper, _ = _mean(first.ravel(), np.repeat(codes, 2), level=level, least=0.0)
    complete = ~np.isnan(values).any(axis=1)
    return PositionBias(
        pairs=len(values),
        no_verdict=int(np.isnan(values).sum()),
        first=mean,
        lower=lower,
        upper=upper,
        turns=_share(values[complete, 0] != values[complete, 1]),
        both_right=_share((values == 1).all(axis=1)),
    )


def chance_to_show(increase: float, pairs: int, spread: float, *, tests: int = 1, alpha: float = 0.05) -> float:
    """How probably N pairs show a true increase: that `sign_flip` is at most alpha / tests (Bonferroni in place of Holm).

    Exact for independent pairs of which a share spread^2 turns by chance, half of them each way, and a share `increase`
    turns to wrong besides. spread: standard deviation of d_n without the effect; with the clusters counted in,
    standard_error * sqrt(pairs) of a bias that does little.
    """
    by_chance = min(spread**2, 1 - increase)
    turned = np.arange(1, pairs + 1)
    needed = stats.binom.isf(alpha / tests, turned, 0.5) + 1  # of those that turn, to wrong
    shown = stats.binom.sf(needed - 1, turned, (by_chance / 2 + increase) / (by_chance + increase))
    return float(stats.binom.pmf(turned, pairs, by_chance + increase) @ shown)


def detectable_increase(pairs: int, spread: float, *, tests: int = 1, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true increase, to 1e-4, that N pairs show with `power`, see `chance_to_show`; nan where none does."""
    if pairs < 1 or not math.isfinite(spread):
        return math.nan
    steps = range(10_001)
    least = bisect.bisect_left(
        steps, power, lo=1, key=lambda step: chance_to_show(step / 10_000, pairs, spread, tests=tests, alpha=alpha)
    )
    return least / 10_000 if least in steps else math.nan


# --- parts ----------------------------------------------------------------------------------------------------------


def _verdicts(right: ArrayLike) -> Array:
    values = np.asarray(right, float)
    if not np.isin(values[~np.isnan(values)], (0, 1)).all():
        raise ValueError("verdicts must be 1 (right), 0 (wrong) or nan (none).")
    return values


def _both_orders(right: ArrayLike, groups: Sequence[str]) -> Array:
    values = _verdicts(right).reshape(-1, 2) if np.size(right) == 0 else _verdicts(right)
    if values.shape != (len(groups), 2):
        raise ValueError(f"verdicts of {len(groups)} pairs in two orders expected, found shape {values.shape}.")
    return values


def _mean(values: Array, codes: NDArray[np.int64], *, level: float, least: float) -> tuple[float, float, float, float]:
    """Mean of values in [least, 1], its clustered interval inside that range, and its standard error.

    Without any spread a t interval has no width. Then the share of clusters unlike those seen is below Wilson's bound u
    for 0 of C, and each of them lies within the range: mean - u (mean - least) to mean + u (1 - mean).
    """
    seen = ~np.isnan(values)
    if not seen.any():
        return math.nan, math.nan, math.nan, math.nan
    interval = item_interval(values[seen], codes[seen], level=level)
    mean = float(values[seen].mean())  # of halves exact, unlike a weighted sum
    if interval.item_variance < 1e-20:  # rounding; one verdict of a million that differs makes 1e-12
        unlike = wilson(0, interval.clusters, level=level)[1]
        return mean, mean - unlike * (mean - least), mean + unlike * (1 - mean), 0.0
    lower, upper = (float(np.clip(bound, least, 1.0)) for bound in (interval.lower, interval.upper))
    return mean, lower, upper, math.sqrt(interval.item_variance)


def _ranked(p_values: ArrayLike) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    """p-values, their ascending order with nan last, and the way back."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    return p, order, np.argsort(order, kind="stable")


def _parsed_error(values: Array) -> float:
    seen = values[~np.isnan(values)]
    return float((seen == 0).mean()) if seen.size else 1.0


def _share(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if values.size else math.nan
