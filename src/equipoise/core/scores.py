"""Scores of confidences and of sampled answers: AUROC, AUPRC, Brier, ECE, risk at a coverage, Pass@k. numpy only.

Legend: N items. confidence [..., N], the higher the surer; labels [..., N], 0 or 1 (right, positive); leading dimensions
(seeds) are batches and a score is [...]. counts [..., N]: how often an item stands, whole numbers, 1 when not given: what a
bootstrap draws, without copying an item. Equal confidences are never ordered by the place in the list: they count as half
above each other (AUROC), as one threshold (AUPRC), as in random order (risk). What is undefined is nan: no item, a value
that is nan, and for AUROC and AUPRC a class that does not occur.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.core.errors import BadInput

Array = NDArray[np.float64]


def auroc(confidence: ArrayLike, labels: ArrayLike, counts: ArrayLike | None = None) -> Any:
    """The share of pairs of a positive and a negative in which the positive has the higher confidence, ties half."""
    ranked = _Ranked(confidence, labels, counts)
    negative = ranked.counts - ranked.positive
    before, behind = ranked.around(negative)
    pairs = (ranked.positive * (behind[..., -1:] - (before + behind) / 2)).sum(-1)
    return ranked.defined(pairs, ranked.positive.sum(-1) * negative.sum(-1))


def auprc(confidence: ArrayLike, labels: ArrayLike, counts: ArrayLike | None = None) -> Any:
    """Average precision: the precision at each threshold, weighted by the recall gained there (no interpolation)."""
    ranked = _Ranked(confidence, labels, counts)
    _, hits = ranked.around(ranked.positive)
    _, shown = ranked.around(ranked.counts)
    precision = hits / np.maximum(shown, 1)
    return ranked.defined((ranked.positive * precision).sum(-1), ranked.positive.sum(-1))


def brier(confidence: ArrayLike, labels: ArrayLike, counts: ArrayLike | None = None) -> Any:
    """The mean squared difference of confidence, a probability, and label. Raises BadInput as `squared_errors`."""
    return _mean(squared_errors(confidence, labels), counts)


def squared_errors(confidence: ArrayLike, labels: ArrayLike) -> Array:
    """What `brier` is the mean of, [..., N]. Raises BadInput for a confidence outside [0, 1], naming its index."""
    p, y = _checked(confidence, labels)
    _check_probabilities(p)
    return (p - y) ** 2


def ece(confidence: ArrayLike, labels: ArrayLike, counts: ArrayLike | None = None, *, bins: int = 15) -> Any:
    """Mean gap of confidence and accuracy over equal-width bins ((m - 1) / M, m / M], weighted by what is in them.

    arXiv:1706.04599, eq. 3; a confidence of 0 is in the first bin. In [0, 1]. Of few items it is far above 0 even when
    the confidences are right. Raises BadInput for a confidence outside [0, 1], naming its index.
    """
    if bins < 1:
        raise BadInput(f"bins is {bins}: calibration needs at least one.")
    p, y = _checked(confidence, labels)
    _check_probabilities(p)
    weight = _counts(counts, p)
    bin_of = np.searchsorted(np.arange(1, bins) / bins, p, side="left")
    gaps = sum(np.abs(np.where(bin_of == m, weight * (y - p), 0.0).sum(-1)) for m in range(bins))
    return _divided(gaps, weight.sum(-1))


def risk_coverage(confidence: ArrayLike, losses: ArrayLike) -> tuple[Array, Array]:
    """Coverage [N] and risk [..., N]: the mean loss of the k surest items for k = 1 .. N.

    losses: [..., N], any numbers (1 - label for errors). Items of equal confidence come in random order; the risk is the
    mean over these orders.
    """
    ranked = _Ranked(confidence, losses, None, only_labels=False)
    n0, loss0, mean = ranked.ties()
    k = np.arange(1.0, ranked.counts.shape[-1] + 1)
    risk = (loss0 + (k - n0) * mean) / k
    return k / max(k.size, 1), np.where(ranked.undefined[..., None], np.nan, risk)


def aurc(confidence: ArrayLike, losses: ArrayLike, counts: ArrayLike | None = None) -> Any:
    """The area under `risk_coverage`: the mean of its risks (arXiv:1805.08206). 0 for no loss, the mean loss for luck."""
    ranked = _Ranked(confidence, losses, counts, only_labels=False)
    n0, loss0, mean = ranked.ties()
    _, n1 = ranked.around(ranked.counts)
    # Over j = 1 .. w items of a tie the risk is (loss0 + j mean) / (n0 + j): harmonic numbers sum it.
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1.0, ranked.counts.sum(-1).max(initial=0) + 1))])
    waited = harmonic[n1.astype(int)] - harmonic[n0.astype(int)]
    risks = (n1 - n0) * mean + (loss0 - n0 * mean) * waited
    return ranked.defined(np.where(ranked.last, risks, 0.0).sum(-1), ranked.counts.sum(-1))


def pass_at_k(correct: ArrayLike, samples: ArrayLike, k: int) -> Array:
    """The chance that one of k samples is right, for each problem: 1 - C(n - c, k) / C(n, k) (arXiv:2107.03374, eq. 1).

    correct: c, samples: n, of each problem, [...]. Unbiased, and by logarithms exact for any n; nan where n < k. The
    interval is that of a mean over problems: `statistics.item_interval(pass_at_k(c, n, k), clusters)`.
    Raises BadInput for counts that are not whole, for c outside 0 .. n, and for k < 1.
    """
    c, n = np.broadcast_arrays(np.asarray(correct, float), np.asarray(samples, float))
    if k < 1:
        raise BadInput(f"k is {k}: Pass@k needs at least one sample.")
    wrong = ~((c == np.round(c)) & (n == np.round(n)) & (c >= 0) & (c <= n))
    if wrong.any():
        index = _first(wrong)
        raise BadInput(f"Problem {_shown(index)} has {c[index]:g} right of {n[index]:g} samples: that is no count.")
    left = n[..., None] - np.arange(k)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log1p(-np.minimum(c[..., None] / np.maximum(left, 1.0), 1.0))
        return np.where(n < k, np.nan, 0.0 - np.expm1(logs.sum(-1)))


class _Ranked:
    """Items from the surest to the least sure, and the sums before and behind the ties they are in."""

    def __init__(self, confidence: Any, values: Any, counts: Any, *, only_labels: bool = True) -> None:
        c, values = _checked(confidence, values, only_labels=only_labels)
        known = np.isfinite(values)
        self.undefined, values = (np.isnan(c) | ~known).any(-1), np.where(known, values, 0.0)
        order = np.argsort(-c, axis=-1, kind="stable")
        c, values = (np.take_along_axis(each, order, -1) for each in (c, values))
        counts = _counts(counts, c)
        order = np.broadcast_to(order, np.broadcast_shapes(order.shape, counts.shape))
        self.counts = np.take_along_axis(np.broadcast_to(counts, order.shape), order, -1)
        self.positive = self.counts * values
        positions, edge = np.arange(c.shape[-1]), np.ones((*c.shape[:-1], min(c.shape[-1], 1)), bool)
        differs = c[..., 1:] != c[..., :-1]
        first, self.last = np.concatenate([edge, differs], -1), np.concatenate([differs, edge], -1)
        self._start = np.maximum.accumulate(np.where(first, positions, 0), axis=-1)
        ends = np.where(self.last, positions + 1, positions.size)
        self._stop = np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]

    def around(self, amounts: Array) -> tuple[Array, Array]:
        """For each item the sum of `amounts` over what is surer, and over that and the item's tie."""
        sums = np.concatenate([np.zeros((*amounts.shape[:-1], 1)), np.cumsum(amounts, axis=-1)], -1)
        start, stop = (np.broadcast_to(each, amounts.shape) for each in (self._start, self._stop))
        return np.take_along_axis(sums, start, -1), np.take_along_axis(sums, stop, -1)

    def ties(self) -> tuple[Array, Array, Array]:
        """For each item: how many items and how much loss lie before its tie, and the mean loss within it."""
        n0, n1 = self.around(self.counts)
        loss0, loss1 = self.around(self.positive)
        return n0, loss0, (loss1 - loss0) / np.maximum(n1 - n0, 1)

    def defined(self, total: Array, of: Array) -> Any:
        return _divided(np.where(self.undefined, np.nan, total), of)


def _checked(confidence: Any, values: Any, *, only_labels: bool = True) -> tuple[Array, Array]:
    c, values = np.asarray(confidence, float), np.asarray(values, float)
    try:
        c, values = np.broadcast_arrays(c, values)
    except ValueError:
        raise BadInput(
            f"Confidences {list(c.shape)} and labels {list(values.shape)} are not of the same items."
        ) from None
    if not c.ndim:
        raise BadInput("A score needs a list of confidences and one of labels; got single numbers.")
    wrong = ~np.isin(values, (0.0, 1.0)) & ~np.isnan(values)
    if only_labels and wrong.any():
        index = _first(wrong)
        raise BadInput(f"Label {_shown(index)} is {values[index]:g}: a label is 0 or 1.")
    return c, values


def _check_probabilities(p: Array) -> None:
    wrong = (p < 0) | (p > 1)
    if wrong.any():
        index = _first(wrong)
        raise BadInput(f"Confidence {_shown(index)} is {p[index]:g}: here it is a probability, from 0 to 1.")


def _counts(counts: Any, like: Array) -> Array:
    if counts is None:
        return np.ones(like.shape)
    given = np.asarray(counts, float)
    if not ((given >= 0) & (given == np.round(given))).all():
        raise BadInput("counts say how often each item stands: whole numbers from 0.")
    return given


def _mean(values: Array, counts: Any) -> Any:
    weight = _counts(counts, values)
    return _divided((weight * values).sum(-1), weight.sum(-1))


def _divided(total: Any, of: Any) -> Any:
    """total / of, nan for 0 of it; a float where there is no batch."""
    total, of = np.broadcast_arrays(total, of)
    quotient = np.divide(total, of, out=np.full(total.shape, math.nan), where=of > 0)
    return quotient if quotient.ndim else float(quotient)


def _first(wrong: NDArray[np.bool_]) -> tuple[Any, ...]:
    return np.unravel_index(int(np.argmax(wrong)), wrong.shape)


def _shown(index: tuple[Any, ...]) -> str:
    return ", ".join(str(int(i)) for i in index)
