"""A threshold for a router: for a budget of calls, or for a quality, held with a stated confidence on prompts like these.

score [n]: high keeps local; below the threshold a prompt goes to strong. Chosen on prompts that were not fitted on.

Budget c. With the scores in ascending order and the k-th as threshold, the share of calls of new prompts is at most a draw
of Beta(k, n - k + 1), whatever the distribution of scores (order statistics of a uniform sample; ties only lower it). The
largest k with P(Beta <= c) >= confidence is taken. The bounds of the share are quantiles of that distribution.

Quality q. Rates of calls 1.00, 0.99 ... 0 are tested in this order, each H: quality < q at level 1 - confidence, until one
is not rejected; the last rejected is taken. In a fixed order no correction is due for the number of tests (fixed-sequence
testing, as in Learn then Test, arXiv:2110.01052). A p-value is that of a binomial where qualities are 0 and 1, of
Hoeffding and Bentkus where they lie in [0, 1], and of Student's t over clusters where prompts come in clusters, or where
qualities are on another scale; only this last one is approximate, and it is never below what K clusters that are all at the
upper end can show, ((q - lower end) / (upper end - lower end))^K.

A score that was taken as the best of m on the same prompts looks better there than it is. With candidates = m each test is
at level (1 - confidence) / m, so that the promise holds for all m at once (Bonferroni), and so for whichever was taken.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from equipoise.core.errors import BadInput
from equipoise.core.shares import Bounded
from equipoise.core.statistics import item_interval, wilson
from equipoise.routing.measured import HeldOut as HeldOut
from equipoise.routing.measured import Threshold as Threshold
from equipoise.routing.routerxbench import STEPS, bounded, checked, grouped

Array = NDArray[np.float64]


def threshold(
    score: ArrayLike,
    *,
    calls: float | None = None,
    quality: float | None = None,
    weak: ArrayLike | None = None,
    strong: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
    candidates: int = 1,
) -> Threshold:
    """The threshold that calls strong for as many prompts as the budget allows, or as rarely as the quality allows.

    calls: the largest share of calls, in [0, 1]. quality: the least mean quality, in the unit of weak and strong [n], which
    it needs. confidence: of holding this on new prompts from the same source. candidates: from how many scores this one was
    taken by what it does on these same prompts. With too few prompts for a budget nothing is sent; `note` says so. Raises
    BadInput for both or none of the aims, for a quality that strong alone is not shown to reach, for values out of range.
    """
    if (calls is None) == (quality is None):
        raise BadInput("give one aim: calls=0.3, a share of prompts, or quality=0.8, a mean quality.")
    if not 0.5 <= confidence < 1:
        raise BadInput(f"confidence is {confidence:g}: use a number from 0.5, below 1.")
    if candidates < 1:
        raise BadInput(f"candidates is {candidates}: the score itself is one, so give at least 1.")
    s, w, g = _given(score, weak, strong)
    if not len(s):
        raise BadInput("there is no score to choose a threshold on: give those of prompts that were not fitted on.")
    clusters = grouped(clusters, len(s))
    error = (1 - confidence) / candidates
    if calls is not None:
        if not 0 <= calls <= 1:
            raise BadInput(f"calls is {calls:g}: the budget is a share of the prompts, in [0, 1].")
        return _for_calls(s, w, g, calls, confidence, error, clusters)
    if w is None or g is None or quality is None:
        raise BadInput("a threshold for a quality needs the quality of both models' answers: give weak= and strong=.")
    if not math.isfinite(quality):
        raise BadInput(f"quality is {quality:g}: give a finite number, in the unit of the labels.")
    return _for_quality(s, w, g, quality, confidence, error, clusters)


def held_out(
    chosen: Threshold,
    score: ArrayLike,
    weak: ArrayLike | None = None,
    strong: ArrayLike | None = None,
    *,
    clusters: ArrayLike | None = None,
) -> HeldOut:
    """What the threshold comes to on other prompts, and whether these speak against it.

    Drifted is a share of calls whose interval lies outside the bounds that it had where the threshold was chosen: below them
    a budget is kept, by prompts or a model of another kind.
    """
    score, weak, strong = _given(score, weak, strong)
    clusters = grouped(clusters, len(score))
    sent = score < chosen.value
    calls = _share(sent, clusters)
    quality = Bounded(math.nan, math.nan, math.nan)
    if weak is not None and strong is not None:
        quality = bounded(item_interval(np.where(sent, strong, weak), clusters))
    missed = calls.lower > chosen.target if chosen.aim == "calls" else quality.upper < chosen.target
    met = calls.value <= chosen.target if chosen.aim == "calls" else quality.value >= chosen.target
    drifted = calls.upper < chosen.calls.lower or calls.lower > chosen.calls.upper
    verdict = "refuted" if missed else "drifted" if drifted else "met" if met else "not refuted"
    return HeldOut(len(score), calls, quality, verdict)


def _for_calls(
    s: Array,
    w: Array | None,
    g: Array | None,
    calls: float,
    confidence: float,
    error: float,
    clusters: ArrayLike | None,
) -> Threshold:
    n = len(s)
    note = ""
    if calls == 1:
        k, value = n + 1, math.inf
    else:
        k = int((stats.beta.cdf(calls, np.arange(1, n + 1), n - np.arange(n)) >= 1 - error).sum())
        value = float(np.sort(s)[k - 1]) if k else -math.inf
        if not k and calls > 0:
            note = (
                f"{n} prompts cannot show with a confidence of {confidence:g} that a share of {calls:g} is kept, so that "
                "nothing is sent: give more prompts, or a lower confidence."
            )
    sent = s < value
    share = float(sent.mean())
    if clusters is not None and len(np.unique(np.asarray(clusters))) < n:
        note += " " * bool(note) + "The bound holds for prompts that are drawn one by one, and these come in clusters."
    low, high = stats.beta.ppf([error / 2, 1 - error / 2], k, n - k + 1) if 0 < k <= n else (share,) * 2
    below = int(sent.sum())
    if below < k - 1:  # ties at the threshold: no more than what lies below them is known to be sent
        low = stats.beta.ppf(error / 2, below, n - below + 1) if below else share
    bounds = Bounded(share, min(float(low), share), float(high))
    return Threshold(value, "calls", calls, confidence, n, bounds, _quality(w, g, sent, clusters), note)


def _share(sent: NDArray[np.bool_], clusters: ArrayLike | None) -> Bounded:
    """The share sent; where prompts all agree Wilson's interval over their clusters: others might not."""
    interval = item_interval(sent.astype(float), clusters)
    if interval.estimate not in (0, 1):
        return bounded(interval, True, 0, 1)
    own = len(sent) if clusters is None else len(np.unique(np.asarray(clusters)))
    share = float(interval.estimate)
    lower, upper = wilson(share * own, own)
    return Bounded(share, min(lower, share), max(upper, share))  # its own end may be off by rounding


def _for_quality(
    s: Array, w: Array, g: Array, quality: float, confidence: float, error: float, clusters: ArrayLike | None
) -> Threshold:
    n = len(s)
    ends = float(min(w.min(), g.min())), float(max(w.max(), g.max()))
    ascending = np.sort(s)
    chosen: float | None = None
    tested: set[float] = set()
    for step in range(STEPS, -1, -1):
        sent = step * n // STEPS
        value = math.inf if sent >= n else float(ascending[sent]) if sent else -math.inf
        if value in tested:
            continue
        tested.add(value)
        if _p_value(np.where(s < value, g, w), quality, clusters, ends) > error:
            break
        chosen = value
    if chosen is None:
        raise BadInput(
            f"A quality of {quality:g} is not shown even when every prompt goes to strong, whose mean is {g.mean():.3g} "
            f"over {n} prompts: ask for less, or give more prompts."
        )
    sent = s < chosen
    share = float(sent.mean())
    calls = bounded(item_interval(sent.astype(float), clusters, level=1 - error), True, 0, 1)
    return Threshold(
        chosen,
        "quality",
        quality,
        confidence,
        n,
        Bounded(share, calls.lower, calls.upper),
        _quality(w, g, sent, clusters),
    )


def _p_value(
    values: Array, quality: float, clusters: ArrayLike | None, ends: tuple[float, float] | None = None
) -> float:
    """Of the hypothesis that the mean is below `quality`, from values that speak against it.

    ends: between which all qualities lie, those of other rates of calls too, so that the test is not chosen by the rate.
    """
    n, mean = len(values), float(values.mean())
    groups = n if clusters is None else len(np.unique(np.asarray(clusters)))
    lower, upper = ends or (float(values.min()), float(values.max()))
    if lower >= 0 and upper <= 1 and 0 < quality <= 1:
        if groups < n:
            return max(_t_p_value(values, quality, clusters), quality**groups)
    else:
        share = 1.0 if upper == lower else min(max((quality - lower) / (upper - lower), 0.0), 1.0)
        return max(_t_p_value(values, quality, clusters), share**groups)
    if np.isin(values, (0.0, 1.0)).all():
        return float(stats.binom.sf(values.sum() - 1, n, quality))
    if mean <= quality:
        return 1.0
    divergence = mean * math.log(mean / quality)
    if mean < 1:
        divergence += (1 - mean) * math.log((1 - mean) / (1 - quality))
    bentkus = math.e * stats.binom.cdf(math.ceil(n * (1 - mean) - 1e-9), n, 1 - quality)
    return float(min(math.exp(-n * divergence), bentkus))


def _t_p_value(values: Array, quality: float, clusters: ArrayLike | None) -> float:
    interval = item_interval(values, clusters)
    error = math.sqrt(interval.item_variance) if interval.item_variance >= 0 else math.nan
    if not error > 0:
        return 1.0 if math.isnan(error) or interval.estimate < quality else 0.0
    return float(stats.t.sf((interval.estimate - quality) / error, interval.df))


def _quality(w: Array | None, g: Array | None, sent: NDArray[np.bool_], clusters: ArrayLike | None) -> Bounded:
    if w is None or g is None:
        return Bounded(math.nan, math.nan, math.nan)
    return bounded(item_interval(np.where(sent, g, w), clusters))


def _given(
    score: ArrayLike, weak: ArrayLike | None, strong: ArrayLike | None
) -> tuple[Array, Array | None, Array | None]:
    if (weak is None) != (strong is None):
        raise BadInput("quality is of both models' answers: give weak and strong, or neither.")
    if weak is None or strong is None:
        return checked(score)[0], None, None
    s, w, g = checked(score, weak, strong)
    return s, w, g
