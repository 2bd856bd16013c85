"""Intervals for a few runs of many items, matched paths, power. Pure functions of numpy arrays; knows no study.

Legend: S seeds (runs), I items, C clusters of items (sources), K evaluations along a path. d[s, i] is what is averaged,
mostly a difference of two arms for the same seed and item. Leading dimensions are batches. What is undefined is nan,
never 0: one seed has no seed variance, one cluster no item variance. Levels are two-sided.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import isotonic_regression

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.core.scores import (
    auprc,
    aurc,
    auroc,
    brier,
    ece,
    pass_at_k,
    risk_coverage,
    squared_errors,
)

__all__ = [
    "Interval",
    "attainable",
    "auprc",
    "aurc",
    "auroc",
    "bonferroni_level",
    "brier",
    "chord_corrections",
    "crossing",
    "ece",
    "half_width",
    "interval_of",
    "item_interval",
    "mcnemar",
    "mcnemar_interval",
    "mean_interval",
    "monotone_fit",
    "pass_at_k",
    "pigeonhole_interval",
    "read_at",
    "risk_coverage",
    "score_interval",
    "seed_interval",
    "seeds_to_decide",
    "shared_grid",
    "squared_errors",
    "two_sample_interval",
    "weakest_level",
    "wilson",
]

Array = NDArray[np.float64]
Units = tuple[Literal["seed", "item"], ...]
FEWEST_SEEDS, FEWEST_CLUSTERS = 10, 50  # one of the two is needed where a statistic is no mean
DRAWN_AT_ONCE = 2**22  # items, over all draws and seeds: some 30 MB an array


@dataclass(frozen=True, slots=True)
class Interval:
    """estimate ± t(df) * sqrt(seed_variance + item_variance); floats, or arrays of the batch's shape.

    The two variances are of the estimate, not of one seed or item; a unit that was not asked for has 0 (and infinite
    df). `staying_variance` is the share of item_variance that more seeds would not shrink. `clusters` counts what the
    item part was made from: sources, or items where each is its own.
    """

    estimate: Any
    lower: Any
    upper: Any
    level: float
    df: Any
    seed_variance: Any
    item_variance: Any
    item_df: Any
    staying_variance: Any
    seeds: int
    items: int
    clusters: int


# --- intervals of means ---------------------------------------------------------------------------------------------


def seed_interval(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Student's t over seeds: V = var(values) / S, df = S - 1. values: [..., S]; any nan makes the result nan."""
    return mean_interval(np.asarray(values, float)[..., None], units=("seed",), level=level)


def item_interval(values: ArrayLike, clusters: ArrayLike | None = None, *, level: float = 0.95) -> Interval:
    """Mean over items, V = var(items) / I, or clustered by source. values: [..., I]; nan items take no part."""
    return mean_interval(np.asarray(values, float)[..., None, :], clusters, units=("item",), level=level)


@closed
def mean_interval(
    values: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    units: Units = ("seed", "item"),
    level: float = 0.95,
) -> Interval:
    """Interval of the mean of d[s, i] when seeds, items or both would be others next time. values: [..., S, I].

    The estimate is the mean over seeds of each seed's mean over its items; nan cells are items that a seed did not see,
    and a seed without any item makes the result nan. With u[s, i] = (d[s, i] - estimate) / (S * items of seed s):

        V_seed = S / (S - 1) * sum over s of (sum over i of u)^2             = var(seed means) / S
        V_item = C / (C - 1) * sum over c of (sum over s, and i in c, of u)^2  = var(item means) / I
        V = V_seed + V_item,  df = V^2 / (V_seed^2 / (S - 1) + V_item^2 / df_item)     (Satterthwaite)

    (the equalities: complete tables, no clusters). df_item = (sum of n_c^2)^2 / sum of n_c^4 - 1 with n_c the cells of
    a cluster: C - 1 for equal clusters, less when a few sources hold most items. The residual (seed by item) is in both
    parts. Taking it out once narrows the interval by up to 16 % with 10 seeds, but widens it with 3 (a smaller V lowers
    df) and can leave a negative variance; it stays, on the safe side. Clusters seen by one seed only (each seed with
    its own items) are left out of V_item: they vary from seed to seed already, so V_seed holds them.
    """
    d = np.asarray(values, float)
    estimate, contributions, present = _contributions(d)
    within = _within_seeds(contributions, present)
    return _two_way(estimate, contributions, within, present, clusters, units, level)


@closed
def two_sample_interval(
    first: ArrayLike,
    second: ArrayLike,
    clusters: ArrayLike,
    second_clusters: ArrayLike,
    *,
    units: Units = ("seed", "item"),
    level: float = 0.95,
) -> Interval:
    """mean(first) - mean(second) for the same seeds and items that may differ; as `mean_interval`.

    first: [S, I], second: [S, J]. What has the same cluster in both is paired (its two contributions are added before
    they are squared), what has not counts as drawn apart; both are special cases of one formula.
    """
    mean_a, contributions_a, present_a = _contributions(np.asarray(first, float))
    mean_b, contributions_b, present_b = _contributions(np.asarray(second, float))
    contributions = np.concatenate([contributions_a, -contributions_b], axis=-1)
    within_a, within_b = _within_seeds(contributions_a, present_a), _within_seeds(contributions_b, present_b)
    within = np.concatenate([within_a, -within_b], axis=-1)
    present = np.concatenate([present_a, present_b], axis=-1)
    both = np.concatenate([np.asarray(clusters), np.asarray(second_clusters)])
    return _two_way(mean_a - mean_b, contributions, within, present, both, units, level)


def _contributions(d: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """The mean of seed means, each cell's contribution to its error, and which cells exist."""
    present = ~np.isnan(d)
    counts = present.sum(-1, keepdims=True)
    # From the smallest value on, so that equal values have a variance of 0 and not of the rounding of their mean.
    least = np.fmin.reduce(d, axis=(-2, -1), keepdims=True, initial=np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = present / (counts * d.shape[-2])
        above = np.where(present, d - least, 0.0)
        mean = np.where((counts > 0).all((-2, -1)), (weights * above).sum((-2, -1)), np.nan)
        return least[..., 0, 0] + mean, weights * (above - mean[..., None, None]), present


def _within_seeds(contributions: Array, present: NDArray[np.bool_]) -> Array:
    """The contributions without what all cells of a seed have in common."""
    with np.errstate(invalid="ignore", divide="ignore"):
        common = contributions.sum(-1, keepdims=True) / present.sum(-1, keepdims=True)
        return np.where(present, contributions - common, 0.0)


def _two_way(
    estimate: Array,
    contributions: Array,
    within: Array,
    present: NDArray[np.bool_],
    clusters: ArrayLike | None,
    units: Units,
    level: float,
) -> Interval:
    seeds = contributions.shape[-2]
    _check_units(units)
    zero = np.zeros_like(estimate)
    seed_variance, seed_df = zero, math.inf
    if "seed" in units:
        seed_variance, seed_df = (
            _scaled_squares(contributions.sum(-1), np.ones(contributions.shape[:-1], bool)),
            seeds - 1,
        )
    item_variance, staying, item_df, count = zero, zero, np.full_like(zero, math.inf), 0
    if "item" in units:
        sums, own, cells = contributions, within, present.astype(float)
        if clusters is not None:
            codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
            order = np.argsort(codes, kind="stable")
            starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
            sums, own, cells = (np.add.reduceat(each[..., order], starts, axis=-1) for each in (sums, own, cells))
        counted = (cells > 0).sum(-2) >= (2 if "seed" in units and seeds > 1 else 1)
        item_variance = staying = _scaled_squares(sums.sum(-2), counted)
        if "seed" in units and seeds > 1:
            # Products of two seeds, which only what their items share makes: all products without those of one seed.
            alone = _scaled_squares(own, np.broadcast_to(counted[..., None, :], own.shape)).sum(-1)
            staying = np.maximum(item_variance - alone, 0.0) * seeds / (seeds - 1)
        item_df = _effective_df(np.where(counted, cells.sum(-2), 0.0))
        nested = ~counted.any(-1)
        item_variance, staying = np.where(nested, 0.0, item_variance), np.where(nested, 0.0, staying)
        item_df = np.where(nested, math.inf, item_df)
        count = int(counted.sum(-1).max())
    counts = (seeds, int(present.any(-2).sum(-1).max()), count)
    return interval_of(estimate, seed_variance, seed_df, item_variance, item_df, level, counts, staying)


def _check_units(units: Units) -> None:
    if not units or len(set(units)) != len(units):
        raise BadInput(f"units is {units!r}: an interval is over ('seed',), ('item',) or ('seed', 'item').")


def _scaled_squares(sums: Array, counted: NDArray[np.bool_]) -> Array:
    """n / (n - 1) * sum of squares over what is counted; nan for n = 1, whose variance nobody knows."""
    n = counted.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(n > 1, n / (n - 1.0), np.nan) * (np.where(counted, sums, 0.0) ** 2).sum(-1)


def _effective_df(sizes: NDArray[Any]) -> Any:
    """(sum of n^2)^2 / sum of n^4 - 1 over clusters of n items; [..., C] -> [...]."""
    n = sizes / sizes.max(-1, keepdims=True, initial=1)  # in this unit nothing is too large
    with np.errstate(invalid="ignore"):
        return (n**2).sum(-1) ** 2 / (n**4).sum(-1) - 1


def interval_of(
    estimate: ArrayLike,
    seed_variance: ArrayLike,
    seed_df: ArrayLike,
    item_variance: ArrayLike,
    item_df: ArrayLike,
    level: float,
    counts: tuple[int, int, int],
    staying: ArrayLike | None = None,
) -> Interval:
    """The t interval of an estimate whose variance has a seed part and an item part; counts: seeds, items, clusters."""
    given = (seed_variance, seed_df, item_variance, item_df)
    seed_variance, seed_df, item_variance, item_df = (np.asarray(part, float) for part in given)
    df, half = _reach(seed_variance, seed_df, item_variance, item_df, level)
    estimate = np.asarray(estimate, float)
    staying = np.asarray(item_variance if staying is None else staying, float)
    values = (estimate, estimate - half, estimate + half, df, seed_variance, item_variance, item_df, staying)
    middle, lower, upper, *parts = (float(part) if part.ndim == 0 else part for part in values)
    return Interval(middle, lower, upper, level, *parts, *counts)  # pyright: ignore[reportCallIssue]


def _reach(
    seed_variance: Array, seed_df: Any, item_variance: Array, item_df: Any, level: float, power: float = 0.5
) -> tuple[Array, Array]:
    """Satterthwaite's df, and how far from a bound a true value must lie for the interval to leave it out.

    With `power` 0.5 that is half the interval's width. What is promised before a run and what is said after it both
    come from here. By shares of the variance, so that no unit is too large or too small to be squared.
    """
    variance = np.asarray(seed_variance + item_variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = seed_variance / variance
        df = 1 / (share**2 / seed_df + (1 - share) ** 2 / item_df)
        quantiles = stats.t.ppf((1 + level) / 2, df) + (0.0 if power == 0.5 else stats.t.ppf(power, df))
        return df, np.where(variance == 0, 0.0, quantiles * np.sqrt(variance))


def bonferroni_level(claims: int) -> float:
    """The level of each of `claims` intervals that makes all of them hold together at 95 %: 1 - 0.05 / m."""
    return 1 - 0.05 / max(claims, 1)


# --- counts ---------------------------------------------------------------------------------------------------------


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p that wins and losses among discordant pairs are a fair coin (McNemar); 1 without any."""
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def mcnemar_interval(wins: int, losses: int, of: int, *, level: float = 0.95) -> Interval:
    """(wins - losses) / of, given how many pairs differ at all (Clopper-Pearson).

    Excludes 0 exactly when mcnemar() < 1 - level, and answers no other margin: the count of differing pairs is held
    fixed. nan bounds when no pair differs.
    """
    discordant = wins + losses
    estimate = (wins - losses) / of if of else math.nan
    lower = upper = math.nan
    if discordant:
        share = stats.binomtest(wins, discordant).proportion_ci(level, method="exact")
        lower, upper = ((2 * bound - 1) * discordant / of for bound in (share.low, share.high))
    undefined = (math.nan, 0.0, math.nan, math.nan, math.nan)
    return Interval(estimate, lower, upper, level, *undefined, 1, of, of)


def wilson(successes: float, of: float, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, inside [0, 1]; nan for of = 0."""
    if not of > 0:
        return math.nan, math.nan
    if not 0 <= successes <= of * (1 + 1e-12):
        raise BadInput(f"{successes:g} of {of:g} is no proportion.")
    z = stats.norm.ppf((1 + level) / 2)
    share = min(successes / of, 1.0)
    centre = (share + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z * math.sqrt(share * (1 - share) / of + z**2 / (4 * of**2)) / (1 + z**2 / of)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def attainable(rate: float, of: int, *, digits: int) -> bool:
    """Whether some k of `of` rounds to `rate` at that many digits: 0.335 of 10 does not exist. nan: only for of = 0."""
    if math.isnan(rate) or of == 0:
        return math.isnan(rate) and of == 0
    nearest = round(rate * of)
    return 0 <= nearest <= of and abs(round(nearest / of, digits) - rate) < 10.0 ** -(digits + 3)


# --- statistics that are no means -----------------------------------------------------------------------------------


@closed
def pigeonhole_interval(
    statistic: Callable[[NDArray[np.intp]], ArrayLike],
    clusters: ArrayLike,
    *,
    generator: np.random.Generator,
    draws: int = 400,
    units: Units = ("seed", "item"),
    level: float = 0.95,
) -> Interval:
    """Interval of a statistic averaged over seeds, by redrawing clusters of items, the same draw for all seeds.

    statistic(items) -> [S]: its value per seed on these item indices (with repetitions). clusters: [I]. The seeds' own
    redraw is not simulated: the mean over seeds of a per-seed number has V = var / S in closed form. The item part is
    C / (C - 1) times the variance of the redrawn means; t with Satterthwaite df as in `mean_interval`, to which this
    reduces when the statistic is a mean. (Percentiles of 3 to 10 redrawn seeds would be far too narrow.)
    nan when the statistic is undefined for a seed or in more than 5 % of the draws.
    """
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    per_seed = np.atleast_1d(np.asarray(statistic(np.arange(codes.size)), float))
    redrawn = np.full(draws, np.nan)
    if "item" in units:
        for draw, drawn in enumerate(generator.integers(len(members), size=(draws, len(members)))):
            with np.errstate(invalid="ignore"):
                redrawn[draw] = np.mean(np.asarray(statistic(np.concatenate([members[c] for c in drawn])), float))
    return _redrawn_interval(per_seed, redrawn, np.bincount(codes), units, level)


@closed
def score_interval(
    score: Callable[..., Any],
    confidence: ArrayLike,
    labels: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    generator: np.random.Generator,
    draws: int = 400,
    units: Units = ("seed", "item"),
    level: float = 0.95,
    **settings: Any,
) -> Interval:
    """The interval of `auroc`, `auprc`, `brier`, `ece` or `aurc`, averaged over seeds.

    confidence, labels: [S, N], or [N] of one run, whose items alone then count. settings: of the score (`bins`).
    `brier` is a mean and has the interval of `mean_interval`; the others that of `pigeonhole_interval`, whose bounds are
    nan under 10 seeds and 50 clusters.
    """
    confidence, labels = np.broadcast_arrays(np.asarray(confidence, float), np.asarray(labels, float))
    if confidence.ndim == 1:
        confidence, labels, units = confidence[None], labels[None], ("item",)
    if score is brier:
        return mean_interval(squared_errors(confidence, labels), clusters, units=units, level=level)
    seeds, n = confidence.shape
    codes = np.arange(n) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    sizes = np.bincount(codes)
    redrawn = []
    if "item" in units and sizes.size:
        drawn = generator.integers(sizes.size, size=(draws, sizes.size))
        for part in np.array_split(drawn, math.ceil(max(draws, 1) * seeds * n / DRAWN_AT_ONCE)):
            often = (part + sizes.size * np.arange(len(part))[:, None]).ravel()
            counts = np.bincount(often, minlength=part.size).reshape(part.shape)[:, None, codes]
            redrawn.append(np.mean(score(confidence, labels, counts, **settings), axis=-1))
    per_seed = np.asarray(score(confidence, labels, **settings))
    interval = _redrawn_interval(per_seed, np.concatenate([[], *redrawn]), sizes, units, level)
    enough = ("seed" in units and seeds >= FEWEST_SEEDS) or ("item" in units and sizes.size >= FEWEST_CLUSTERS)
    return interval if enough else replace(interval, lower=math.nan, upper=math.nan)


def _redrawn_interval(per_seed: Array, redrawn: Array, sizes: NDArray[np.intp], units: Units, level: float) -> Interval:
    """The interval of a mean of per-seed values whose item part is known from redrawn means; sizes: of the clusters."""
    _check_units(units)
    seeds, count = per_seed.size, sizes.size
    seed_variance = item_variance = 0.0
    seed_df = item_df = math.inf
    with np.errstate(invalid="ignore"):
        estimate = per_seed.mean()
        if "seed" in units:
            seed_variance, seed_df = (per_seed.var(ddof=1) / seeds if seeds > 1 else math.nan), seeds - 1
    if "item" in units:
        defined = redrawn[np.isfinite(redrawn)]
        item_variance = math.nan
        if count > 1 and defined.size >= max(0.95 * redrawn.size, 2):
            item_variance = count / (count - 1) * defined.var(ddof=1)
        item_df = _effective_df(sizes)
    counts = (seeds, int(sizes.sum()), count if "item" in units else 0)
    return interval_of(estimate, seed_variance, seed_df, item_variance, item_df, level, counts)


# --- matched paths --------------------------------------------------------------------------------------------------


def shared_grid(one: ArrayLike, other: ArrayLike) -> tuple[Array, Array]:
    """The places where two arms' paths may be read so that neither profits from being evaluated more often.

    Between the ends of what both have: only places common to both. Beyond (an arm that trained longer): its own places,
    no denser than the common ones. Fewer than two common places: both empty.
    """
    grids = np.unique(np.asarray(one, float)), np.unique(np.asarray(other, float))
    common = np.intersect1d(*grids)
    if common.size < 2:
        return common[:0], common[:0]
    spacing = np.median(np.diff(common)) * (1 - 1e-9)
    kept = []
    for grid in grids:
        before, after = [], []
        last = common[0]
        for place in grid[::-1]:
            if last - place >= spacing:
                before.append(place)
                last = place
        last = common[-1]
        for place in grid:
            if place - last >= spacing:
                after.append(place)
                last = place
        kept.append(np.concatenate([before[::-1], common, after]))
    return kept[0], kept[1]


def monotone_fit(path: ArrayLike, *, increasing: bool) -> Array:
    """The monotone path nearest to the measured one (least squares, isotonic). path: [K]; a nan makes all nan."""
    path = np.asarray(path, float)
    if np.isnan(path).any() or not path.size:
        return np.full(path.shape, np.nan)
    return isotonic_regression(path, increasing=increasing).x


def crossing(fit: ArrayLike, level: float, *, increasing: bool) -> float:
    """Where a monotone fit [K] passes `level`, as a fractional index; nan when the level is not between its ends.

    Linear between the last value before the level and the first behind it. A stretch at the level is met in its middle:
    its start would favour a slow path, which has long stretches. (The first crossing of the raw path is not used: noise
    makes it early, the more so the more evaluations lie near the level, which favours a slow arm by 1 to 2 points.)
    """
    climb = np.asarray(fit, float) if increasing else -np.asarray(fit, float)
    target = level if increasing else -level
    if not climb.size or not climb[0] <= target <= climb[-1]:
        return math.nan
    first, behind = int(np.searchsorted(climb, target, "left")), int(np.searchsorted(climb, target, "right"))
    if first < behind:
        return (first + behind - 1) / 2
    return first - 1 + float((target - climb[first - 1]) / (climb[first] - climb[first - 1]))


def weakest_level(fits: Sequence[ArrayLike], *, increasing: bool, spare: float = 0.0) -> float:
    """The strongest level that every monotone path reaches, with a share of its own range to spare.

    nan if a path is undefined. The end of a fit follows the noise of the last evaluations: comparing arms at the bare
    weakest end favours a slow one by 0.3 points over 10 seeds and 0.7 over 3, with spare=0.05 by 0.1 to 0.2.
    """
    ends = []
    for fit in fits:
        path = np.asarray(fit, float)
        ends.append(path[-1] + spare * (path[0] - path[-1]) if path.size else math.nan)
    return float(np.min(ends) if increasing else np.max(ends)) if ends else math.nan


def read_at(path: ArrayLike, position: float) -> Any:
    """path [..., K] at a fractional index, linear between neighbours; nan for a nan position."""
    path = np.asarray(path, float)
    if math.isnan(position):
        return np.full(path.shape[:-1], np.nan)[()]
    low = int(position)
    share = position - low
    return path[..., low] if share == 0 else (1 - share) * path[..., low] + share * path[..., low + 1]


def chord_corrections(
    fits: Sequence[ArrayLike], judged: Sequence[ArrayLike], positions: Sequence[float], level: float
) -> Array:
    """What to add to each run's judged value at its crossing, because it was read on a chord of a curved frontier.

    A fast path steps over the level in a wide gap, a slow one in a narrow gap, so the chord costs the fast arm more.
    One curvature for all runs of both arms, c in judged = run + b (f - level) + c (f - level)^2 over the two
    evaluations on each side of the crossing, gives the correction c (f_low - level)(f_high - level), which vanishes as
    the gap does.
    fits and judged: [K] per run. 0 where the evaluations around the crossings do not determine c.
    """
    runs = len(fits)
    corrections, rows, gaps = np.zeros(runs), [], np.zeros(runs)
    size = max((float(np.ptp(fit)) for fit in map(np.asarray, fits) if fit.size), default=0.0) or 1.0
    for run, (path, own, position) in enumerate(zip(fits, judged, positions, strict=True)):
        fit, values = np.asarray(path, float), np.asarray(own, float)
        if math.isnan(position) or fit.size < 3:
            continue
        low = min(int(position), fit.size - 2)
        window = slice(max(low - 1, 0), low + 3)
        distance = (fit[window] - level) / size  # whatever the unit, for the rank of the fit
        rows.append(np.stack([each - each.mean() for each in (distance, distance**2, values[window])]))
        gaps[run] = (fit[low] - level) * (fit[low + 1] - level) / size**2
    if runs > 1 and rows:
        slope, curve, response = np.concatenate(rows, axis=1)
        coefficients, _, rank, _ = np.linalg.lstsq(np.stack([slope, curve], axis=1), response, rcond=None)
        if rank == 2:
            corrections = coefficients[1] * gaps
    return corrections


# --- power ----------------------------------------------------------------------------------------------------------


def half_width(interval: Interval, *, seeds: int) -> float:
    """Half the width that the interval would have with another number of seeds and the same items."""
    if seeds == interval.seeds:
        return (interval.upper - interval.lower) / 2
    seed_part, item_part = _parts_with(interval, np.array(float(seeds)))
    return float(_reach(seed_part, seeds - 1, item_part, interval.item_df, interval.level)[1])


def seeds_to_decide(
    interval: Interval, distance: float, *, power: float = 0.8, most: int = 1000
) -> tuple[int, int] | None:
    """Seeds of a new run that would decide with `power`, if the estimate is true and `distance` from the bound.

    A range, because the spread between seeds is known from a few only: taken at the quartiles of its chi-square
    distribution. The upper end stops at `most`; None when even the lower end needs more (what stays of the item
    variance can make that so), or when the interval has no spread to go by.
    """
    counts = np.arange(3.0, most + 1)
    seed_part, item_part = _parts_with(interval, counts)
    ends = []  # what is unknown is nan, and no nan is near enough
    for quartile in (0.75, 0.25):
        spread = (interval.seeds - 1) / stats.chi2.ppf(quartile, interval.seeds - 1)
        _, reach = _reach(seed_part * spread, counts - 1, item_part, interval.item_df, interval.level, power)
        enough = np.flatnonzero((reach <= distance) & (reach > 0))
        ends.append(int(counts[enough[0]]) if enough.size else None)
    low, high = ends
    return None if low is None else (low, most if high is None else high)


def _parts_with(interval: Interval, seeds: Array) -> tuple[Array, Array]:
    """The seed and the item variance that other numbers of seeds would leave."""
    fewer = interval.seeds / seeds
    return interval.seed_variance * fewer, (
        interval.staying_variance + (interval.item_variance - interval.staying_variance) * fewer
    )
