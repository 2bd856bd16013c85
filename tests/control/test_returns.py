"""Aggregates of returns by hand and by redoing each draw."""

import math

import numpy as np
import pytest

from equipoise.control.returns import iqm, iqm_interval, probability_of_improvement, unpaired_interval


def test_the_middle_half_has_a_quarter_cut_at_either_end():
    squares = [100, 0, 49, 1, 4, 36, 9, 25, 16]
    assert iqm(squares) == 18  # of nine, two are cut at either end: 4, 9, 16, 25, 36
    assert iqm([7, 1, 2]) == pytest.approx(10 / 3) and iqm([[8, 0], [1, 3]]) == 2
    assert math.isnan(iqm([]))


@pytest.mark.parametrize("level", [0.5, 0.8])
def test_the_interval_is_of_policies_drawn_anew_for_each_start(level):
    scores = np.array([[1.0, 20.0, 300.0], [2.0, 50.0, 900.0]])  # two policies are enough
    low, high = iqm_interval(scores, np.random.default_rng(5), draws=60, level=level)
    generator, found = np.random.default_rng(5), []
    for _ in range(60):
        rows = generator.integers(2, size=(2, 3))
        drawn = sorted(scores[rows[seed, start], start] for seed in range(2) for start in range(3))
        found.append(np.mean(drawn[1:5]))
    assert (low, high) == pytest.approx(tuple(np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])))
    assert low < high
    assert all(map(math.isnan, iqm_interval([[1.0, 2.0]], np.random.default_rng(5))))


def test_the_variance_of_a_difference_has_three_parts():
    one, other = (
        np.array([[1.0, 2.0, 6.0], [3.0, 5.0, 10.0]]),
        np.array([[0.0, 1.0, 1.0], [2.0, 2.0, 3.0], [9.0, 0, 2]]),
    )
    value, low, high = unpaired_interval(one, other, level=0.8)
    means = np.array([3.0, 6.0]), np.array([2 / 3, 7 / 3, 11 / 3])
    starts = np.array([2 - 11 / 3, 3.5 - 1, 8 - 2])
    parts = [np.var(each, ddof=1) / len(each) for each in (*means, starts)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 1 + parts[1] ** 2 / 2 + parts[2] ** 2 / 2)
    from scipy import stats

    half = stats.t(freedom).interval(0.8)[1] * math.sqrt(sum(parts))
    assert (value, low, high) == pytest.approx((starts.mean(), starts.mean() - half, starts.mean() + half))
    alone = unpaired_interval([[1.0]], [[3.0]])
    assert alone[0] == -2 and math.isnan(alone[1]) and math.isnan(alone[2])


def test_who_is_ahead_from_the_same_start():
    assert probability_of_improvement([[1, 2], [3, 3]], [[2, 2], [0, 3]]) == pytest.approx(
        (0 + 0.5 + 1 + 0 + 1 + 1 + 1 + 0.5) / 8
    )
