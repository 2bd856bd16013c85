"""How well scores tell right answers from wrong ones: AUROC, the same among answers of like length, and a safe threshold.

N answers; confidence [N], higher is surer; right [N], 0 or 1. What is undefined is nan.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from equipoise.core.errors import BadInput
from equipoise.core.scores import auprc, auroc, risk_coverage
from equipoise.core.shares import Bounded
from equipoise.core.statistics import item_interval, score_interval
from equipoise.uncertainty.token_result import Acceptance, Detection

Array = NDArray[np.float64]
BINS = 5
LEVELS = 20  # thresholds that are tried


def length_bins(lengths: ArrayLike, bins: int = BINS) -> NDArray[np.intp]:
    """The bin of each answer, by quantiles of length; equal lengths share a bin."""
    tokens = np.asarray(lengths, float)
    return np.searchsorted(np.unique(np.quantile(tokens, np.arange(1, bins) / bins)), tokens, side="left")


def auroc_within(confidence: ArrayLike, right: ArrayLike, strata: ArrayLike) -> float:
    """`auroc` over the pairs of a right and a wrong answer of one stratum: what a score knows beyond the stratum.

    With length bins as strata: what a score knows beyond length. nan where no stratum has both.
    """
    s, y, bins = np.asarray(confidence, float), np.asarray(right, float), np.asarray(strata)
    pairs = won = 0.0
    for each in np.unique(bins):
        inside = bins == each
        here = y[inside].sum() * (1 - y[inside]).sum()
        if here:
            pairs += here
            won += here * auroc(s[inside], y[inside])
    return float(won / pairs) if pairs else math.nan


def detection(confidence: Array, right: Array, lengths: Array, clusters: ArrayLike, seed: int) -> Detection:
    """How well a score ranks, with intervals over the clusters (nan where these are too few)."""
    ranked, precise = (
        Bounded.of(score_interval(measure, confidence, right, clusters, generator=np.random.default_rng(seed)))
        for measure in (auroc, auprc)
    )
    coverage, risk = risk_coverage(confidence, 1 - right)
    surest = 1 - float(risk[int(np.searchsorted(coverage, 0.5))])
    return Detection(ranked, precise, auroc_within(confidence, right, length_bins(lengths)), surest)


def accept(confidence: ArrayLike, right: ArrayLike, *, risk: float, certainty: float = 0.95) -> Acceptance:
    """The lowest threshold above which the share of wrong answers is at most `risk`, with this certainty on new answers.

    Tried are the thresholds that accept 1/20, 2/20 ... of these answers. Each is safe where the upper Clopper-Pearson bound
    of its share of wrong answers, at level 1 - (1 - certainty) / 20, is at most `risk`: all twenty bounds hold together, so
    the choice among them costs nothing more. Without a safe one nothing is accepted (an infinite threshold).
    Raises BadInput for shares out of range and without answers.
    """
    s, y = np.asarray(confidence, float), np.asarray(right, float)
    if not 0 < risk < 1 or not 0.5 <= certainty < 1:
        raise BadInput(
            f"risk is {risk:g} and certainty {certainty:g}: use a risk between 0 and 1, a certainty from 0.5."
        )
    if not len(s) or s.shape != y.shape or np.isnan(s).any() or not np.isin(y, (0, 1)).all():
        raise BadInput("A threshold needs answers with a score and a label of 0 or 1 each, at least one.")
    ordered = np.sort(s)[::-1]
    level = 1 - (1 - certainty) / LEVELS
    best = Acceptance(math.inf, risk, certainty, len(s), 0, 0, math.nan)
    for step in range(1, LEVELS + 1):
        value = float(ordered[math.ceil(step * len(s) / LEVELS) - 1])
        taken = s >= value
        accepted, wrong = int(taken.sum()), int((1 - y)[taken].sum())
        upper = 1.0 if wrong == accepted else float(stats.beta.ppf(level, wrong + 1, accepted - wrong))
        if upper <= risk:  # each step accepts no fewer than the last
            best = Acceptance(value, risk, certainty, len(s), accepted, wrong, upper)
    return best


def share_right(right: Array, clusters: ArrayLike) -> Bounded:
    """The share of right answers, with a 95 % interval."""
    return Bounded.of(item_interval(right, clusters), 0.0, 1.0)
