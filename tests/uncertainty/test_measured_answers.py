"""Bins of length, shares of right answers, safe thresholds: by hand, on inputs where each place counts."""

import math

import numpy as np
import pytest

from equipoise.core.errors import BadInput
from equipoise.core.scores import auprc, auroc
from equipoise.core.statistics import item_interval, score_interval
from equipoise.uncertainty.measured_answers import accept, auroc_within, detection, length_bins, share_right
from equipoise.uncertainty.token_result import Acceptance


def test_lengths_fall_into_five_bins_of_like_size():
    assert length_bins(range(1, 11)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert length_bins([0, 1, 2, 3, 4, 5]).tolist() == [0, 0, 1, 2, 3, 4]  # an edge belongs to the bin below it
    assert length_bins([7, 7, 7]).tolist() == [0, 0, 0]
    assert length_bins([3, 1, 2, 4], 2).tolist() == [1, 0, 0, 1]


def test_ranking_within_strata_weighs_them_by_their_pairs():
    """The first stratum ranks both of its pairs rightly, the second one of two, the third has no wrong answer."""
    s, y, bins = [3, 2, 1, 6, 5, 4, 9], [1, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 2]
    assert auroc_within(s, y, bins) == pytest.approx(0.5)
    s[4] = 7
    assert auroc_within(s, y, bins) == pytest.approx(0.75)


@pytest.mark.parametrize(("right", "surest"), [([1, 1, 0, 0], 1.0), ([1, 0, 1, 0], 0.5), ([1, 1, 0, 0, 0], 2 / 3)])
def test_the_surest_half_is_rounded_up(right, surest):
    confidence = np.arange(len(right), 0.0, -1)
    found = detection(confidence, np.array(right, float), np.full(len(right), 5.0), np.arange(len(right)), 0)
    assert found.half == pytest.approx(surest) and found.within == found.auroc.value


def test_detection_has_intervals_over_clusters_by_its_seed():
    rng = np.random.default_rng(3)
    s, y, clusters = rng.normal(size=120), rng.integers(0, 2, 120).astype(float), np.arange(120) // 2
    found = detection(s, y, rng.integers(1, 9, 120).astype(float), clusters, 7)
    for measure, own in ((auroc, found.auroc), (auprc, found.auprc)):
        due = score_interval(measure, s, y, clusters, generator=np.random.default_rng(7))
        assert (own.value, own.lower, own.upper) == (due.estimate, due.lower, due.upper) and own.lower < own.value
    due = item_interval(y, clusters)
    share = share_right(y, clusters)
    assert (share.value, share.lower, share.upper) == (due.estimate, due.lower, due.upper)
    assert share_right(np.array([1.0, 1, 1, 0]), [0, 1, 2, 3]).upper == 1.0
    assert share_right(np.array([0.0, 0, 0, 1]), [0, 1, 2, 3]).lower == 0.0


def test_thresholds_at_the_first_and_the_last_twentieth():
    """Of n answers none wrong, the upper bound at 1 - 0.05 / 20 is 1 - 0.0025^(1 / n)."""
    s = np.arange(400.0)
    found = accept(s, s >= 380, risk=0.3)
    assert found == Acceptance(380.0, 0.3, 0.95, 400, 20, 0, found.upper)
    assert found.upper == pytest.approx(1 - 0.0025 ** (1 / 20))
    every = accept(s, np.ones(400), risk=0.3, certainty=0.5)
    assert every == Acceptance(0.0, 0.3, 0.5, 400, 400, 0, every.upper)
    assert every.upper == pytest.approx(1 - 0.025 ** (1 / 400))
    none = accept(s, np.zeros(400), risk=0.3)
    assert none.value == math.inf and math.isnan(none.upper)
    assert (none.risk, none.certainty, none.of, none.accepted, none.wrong) == (0.3, 0.95, 400, 0, 0)
    three = accept([0.1, 0.2, 0.3], [1, 1, 1], risk=0.95, certainty=0.6)  # fewer answers than steps
    assert three.value == 0.1 and three.upper == pytest.approx(1 - 0.02 ** (1 / 3))
    tied = accept([1.0] * 30 + [0.0] * 10, [1] * 40, risk=0.3, certainty=0.9)
    assert (tied.value, tied.accepted) == (0.0, 40)


@pytest.mark.parametrize(
    "wrong",
    [{"risk": 0.0}, {"risk": 1.0}, {"certainty": 0.49}, {"certainty": 1.0}, {"risk": -0.1}, {"certainty": 1.5}],
)
def test_shares_out_of_range_are_refused(wrong):
    with pytest.raises(BadInput, match="a risk between 0 and 1"):
        accept([1.0, 2.0], [1, 0], **{"risk": 0.1, **wrong})


@pytest.mark.parametrize(
    ("scores", "right"), [([], []), ([1.0, 2.0], [1]), ([1.0, math.nan], [1, 0]), ([1.0, 2.0], [1, 0.5])]
)
def test_a_threshold_needs_a_score_and_a_label_each(scores, right):
    with pytest.raises(BadInput, match="at least one"):
        accept(scores, right, risk=0.1)
