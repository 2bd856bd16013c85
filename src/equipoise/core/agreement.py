"""How far grades and raters can be trusted: shares, agreement, correlation, and shares corrected for a grader's errors.

Legend: N graded answers, clusters[N] their sources. Intervals are of 95 %. Where no answer differs from another, what
cannot be told from few answers has nan as its bounds, not a width of 0.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from equipoise.core.shares import Bounded, Share
from equipoise.core.statistics import item_interval, wilson

Array = NDArray[np.float64]
Z = float(stats.norm.ppf(0.975))
NO_VARIANCE = 1e-24  # of influences, which have no unit: rounding
UNDEFINED = Bounded(math.nan, math.nan, math.nan)


# --- shares ---------------------------------------------------------------------------------------------------------


def share(credits: ArrayLike, clusters: ArrayLike, *, missing: int = 0) -> Share:
    """The mean of credits in [0, 1], with Wilson's interval on `effective_size` answers; nan for none."""
    values = np.asarray(credits, float)
    total, size = float(values.sum()), float(effective_size(values, clusters))
    lower, upper = wilson(total / values.size * size, size) if size > 0 else (math.nan, math.nan)
    return Share(total, values.size, missing, size, lower, upper)


def effective_size(credits: ArrayLike, clusters: ArrayLike) -> float:
    """How many independent answers, right or wrong, would tell the mean of the credits as well as these do; at most N.

    p (1 - p) / V with V the variance of the mean over clusters, times (z / t)^2 for the few clusters that V is known from
    (Korn and Graubard 1998). Of clusters that do not differ, their number; 0 for a single one.
    """
    values = np.asarray(credits, float)
    if np.unique(np.asarray(clusters)).size == values.size and np.isin(values, (0, 1)).all():
        return values.size
    interval = item_interval(values, clusters)
    if not interval.item_df > 0:
        return 0
    if interval.item_variance == 0:
        return interval.clusters
    size = interval.estimate * (1 - interval.estimate) / interval.item_variance
    return min(values.size, size * (Z / stats.t.ppf(0.975, interval.item_df)) ** 2)


def corrected(accepted: Share, false_reject: Share, false_accept: Share) -> Bounded:
    """The share of right answers behind a share that was accepted (Rogan and Gladen 1978), errors known from planted ones.

    (accepted - false accepts) / (1 - false rejects - false accepts), within [0, 1]; the interval is that of Lang and
    Reiczigel (2014), which counts that the errors are known from a few answers and holds for errors of 0, too. nan where
    the grader accepts wrong answers as often as right ones, or plants of one sort are missing.
    """
    sensitivity, specificity = 1 - false_reject.rate, 1 - false_accept.rate
    if not (sensitivity + specificity > 1 and accepted.size):
        return UNDEFINED
    value = (accepted.rate + specificity - 1) / (sensitivity + specificity - 1)
    n, n_right, n_wrong = accepted.size + Z**2, false_reject.size + 2, false_accept.size + 2
    q = (accepted.size * accepted.rate + Z**2 / 2) / n
    se, sp = (false_reject.size * sensitivity + 1) / n_right, (false_accept.size * specificity + 1) / n_wrong
    if not se + sp > 1:
        return Bounded(float(np.clip(value, 0, 1)), 0.0, 1.0)
    p = (q + sp - 1) / (se + sp - 1)
    of_right, of_wrong = se * (1 - se) / n_right, sp * (1 - sp) / n_wrong
    middle = p + 2 * Z**2 * (p * of_right - (1 - p) * of_wrong)
    variance = q * (1 - q) / n + p**2 * of_right + (1 - p) ** 2 * of_wrong
    half = Z * math.sqrt(variance) / (se + sp - 1)
    return Bounded(*(float(np.clip(bound, 0, 1)) for bound in (value, middle - half, middle + half)))


# --- two raters -----------------------------------------------------------------------------------------------------


def cohen_kappa(first: ArrayLike, second: ArrayLike, clusters: ArrayLike, categories: int, *, ordered: bool) -> Bounded:
    """Cohen's kappa of categories 0 .. K - 1; ordered: with quadratic weights (1968), else all disagreements alike.

    kappa = (o - e) / (1 - e), o the mean of w[a, b], e its expectation were both independent with the same shares. The
    interval is Student's t over clusters of its influence function, which without clusters is the large-sample variance of
    Fleiss, Cohen and Everitt (1969). nan where e = 1: both always give the same one.
    """
    a, b = np.asarray(first, int), np.asarray(second, int)
    if not a.size:
        return UNDEFINED
    steps = np.subtract.outer(np.arange(categories), np.arange(categories))
    weights = 1.0 - steps**2 if ordered else (steps == 0).astype(float)  # the unit of a distance cancels
    p, q = (np.bincount(ratings, minlength=categories) / a.size for ratings in (a, b))
    agreed = weights[a, b]
    observed, expected = agreed.mean(), p @ weights @ q
    if expected >= 1 - 1e-12:
        return UNDEFINED
    value = (observed - expected) / (1 - expected)
    chance = (weights @ q)[a] + (p @ weights)[b]
    influence = agreed / (1 - expected) - (1 - observed) / (1 - expected) ** 2 * chance
    return _bounded(value, influence, clusters)


def correlation(first: ArrayLike, second: ArrayLike, clusters: ArrayLike) -> Bounded:
    """Pearson's, with an interval by its influence function over clusters; nan where one of both does not vary."""
    x, y = np.asarray(first, float), np.asarray(second, float)
    if x.size < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return UNDEFINED
    x, y = ((values - values.mean()) / values.std() for values in (x, y))
    value = float(np.mean(x * y))
    return _bounded(value, x * y - value / 2 * (x**2 + y**2), clusters)


def _bounded(value: float, influence: Array, clusters: ArrayLike) -> Bounded:
    """A statistic in [-1, 1] with the t interval of the mean of its influence function, known but for a constant."""
    interval = item_interval(influence, clusters)
    half = math.nan if interval.item_variance < NO_VARIANCE else (interval.upper - interval.lower) / 2
    lower, upper = np.clip([value - half, value + half], -1, 1)
    return Bounded(float(value), float(lower), float(upper))


# --- many raters ----------------------------------------------------------------------------------------------------


def fleiss_kappa(ratings: ArrayLike) -> float:
    """Fleiss' kappa (1971) of categories given by the same number of raters. ratings: [items, raters].

    Items with a missing rating (nan) are left out. nan for no items, for one rater, and when only one category was given,
    where agreement by chance is certain.
    """
    values = np.asarray(ratings, float)
    counts = _category_counts(values[~np.isnan(values).any(axis=1)])
    raters = values.shape[1]
    if raters < 2 or not counts.size:
        return math.nan
    observed = ((counts**2).sum() / len(counts) - raters) / (raters * (raters - 1))
    by_chance = ((counts.sum(axis=0) / counts.sum()) ** 2).sum()
    return float((observed - by_chance) / (1 - by_chance)) if by_chance < 1 else math.nan


def krippendorff_alpha(ratings: ArrayLike) -> float:
    """Krippendorff's alpha for nominal categories, ratings: [items, raters], missing ones nan.

    Items with fewer than two ratings cannot agree or disagree and take no part. nan when nothing is left, or only one
    category.
    """
    values = np.asarray(ratings, float)
    counts = _category_counts(values[(~np.isnan(values)).sum(axis=1) >= 2])
    if not counts.size:
        return math.nan
    given = counts.sum(axis=1, keepdims=True)
    disagreed = ((given * counts - counts**2) / (given - 1)).sum()
    totals = counts.sum(axis=0)
    by_chance = (totals.sum() ** 2 - (totals**2).sum()) / (totals.sum() - 1)
    return float(1 - disagreed / by_chance) if by_chance else math.nan


def _category_counts(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """How often each category was given to each item: [items, categories]."""
    categories = np.unique(values[~np.isnan(values)])
    return (values[:, :, None] == categories).sum(axis=1).astype(float)
