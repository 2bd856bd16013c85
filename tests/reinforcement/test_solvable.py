"""What is said of a prediction of solve rates: against scikit-like definitions written out, scipy, and exact enumeration."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import expit

from equipoise.core.calibration import Calibration
from equipoise.core.errors import BadInput
from equipoise.core.scores import auroc, brier, ece
from equipoise.reinforcement import solvable

GENERATOR = np.random.default_rng(0)
P = GENERATOR.uniform(size=80).round(1)  # with ties
REWARDS = (GENERATOR.uniform(size=(80, 3)) < P[:, None]).astype(float)
RATES = REWARDS.mean(axis=1)
ALONE = np.arange(80)


def test_groups_stay_together_and_parts_have_their_shares():
    groups = [f"g{i // 2}" for i in range(200)]
    parts = solvable.divide(groups, 0)
    assert [parts.count(part) for part in solvable.SHARES] == [80, 20, 40, 60]
    assert parts[::2] == parts[1::2]
    back = solvable.divide(groups[::-1], 0)[::-1]
    assert back == parts and solvable.divide(groups, 1) != parts
    with pytest.raises(BadInput, match=r"^49 problems \(or groups of them\) are too few .* give at least 50\.$"):
        solvable.divide([f"g{i % 49}" for i in range(490)], 0)


def test_the_calibration_is_the_one_of_least_log_loss():
    x = GENERATOR.normal(3, 2, size=60)
    y = GENERATOR.integers(0, 5, size=60) / 4 * (x > 2)
    hits, misses = y.sum(), (1 - y).sum()
    target = y * (hits + 1) / (hits + 2) + (1 - y) / (misses + 2)

    def loss(w):
        return np.logaddexp(0, w[0] * x + w[1]).sum() - (target * (w[0] * x + w[1])).sum()

    best = optimize.minimize(loss, [0.1, 0.0], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-12})
    found = Calibration.of(x, y)
    assert (found.slope, found.intercept) == pytest.approx(tuple(best.x), rel=1e-5)
    for unit in (1e9, 1e-9):
        other = Calibration.of(x * unit, y)
        assert (other.slope * unit, other.intercept) == pytest.approx((found.slope, found.intercept), rel=1e-7)
    true = Calibration.of(x, expit(0.7 * x - 2))
    assert (true.slope, true.intercept) == pytest.approx((0.7, -2), rel=0.15)


def test_it_never_turns_the_order_around_and_stays_finite():
    x = np.linspace(-1, 1, 20)
    separated = Calibration.of(x, (x > 0).astype(float))
    assert 0 < separated.slope < 1e3
    turned = Calibration.of(x, (x < 0).astype(float))
    assert turned.slope == 0 and turned(x) == pytest.approx(0.5)
    falling = Calibration.of(x, (x < 0).astype(float), rising=False)
    assert falling.slope == pytest.approx(-separated.slope)
    flat = Calibration.of(np.full(4, 7.0), [0.0, 1.0, 1.0, 1.0])
    assert flat.slope == 0 and 0.5 < flat(7.0) < 0.75


def test_measures_are_those_of_single_responses():
    """The same as of one row a response, with the label 0 or 1, by the house's scores of labels."""
    found = solvable.measures(P, REWARDS, ALONE, 0)
    p, labels = np.repeat(P, 3), REWARDS.ravel()
    assert found["Brier"].value == pytest.approx(brier(p, labels))
    assert found["ECE"].value == pytest.approx(ece(p, labels, bins=10))
    assert found["AUROC"].value == pytest.approx(auroc(p, labels))
    likely = np.clip(p, 1e-12, 1 - 1e-12)
    assert found["log loss"].value == pytest.approx(-np.log(np.where(labels == 1, likely, 1 - likely)).mean())
    assert found["Spearman"].value == pytest.approx(stats.spearmanr(P, RATES).statistic)
    assert all(each.lower < each.value < each.upper for each in found.values())


def test_intervals_end_where_the_measures_do():
    """All but right, all but wrong, and hardly any solved: each interval would reach beyond what its measure can be."""
    rewards = np.repeat([[1.0, 1.0], [0.0, 0.0]], 30, axis=0)
    p = rewards[:, 0].copy()
    p[30] = 1.0  # one that is not solved
    right, wrong = (solvable.measures(each, rewards, np.arange(60), 0) for each in (p, 1 - p))
    lost = solvable.measures(np.linspace(0, 1, 60), np.eye(60)[:, :2], np.arange(60), 0)
    assert {name: right[name].lower for name in ("Brier", "log loss", "ECE")} == {"Brier": 0, "log loss": 0, "ECE": 0}
    assert right["AUROC"].upper == right["Spearman"].upper == wrong["Brier"].upper == wrong["ECE"].upper == 1
    assert wrong["log loss"].upper > -math.log(1e-12)
    assert wrong["AUROC"].lower == 0 and wrong["Spearman"].lower == -1
    assert lost["AURC"].upper == 1
    solved = solvable.measures(np.linspace(0, 1, 60), 1 - np.eye(60)[:, :2], np.arange(60), 0)
    assert solved["AURC"].lower == 0


def test_few_problems_have_no_interval_where_a_score_is_no_mean():
    found = solvable.measures(P[:49], REWARDS[:49], ALONE[:49], 0)
    assert math.isnan(found["AUROC"].lower) and not math.isnan(found["Brier"].lower)
    flat = solvable.measures(np.full(80, 0.5), REWARDS, ALONE, 0)
    assert flat["AUROC"].value == 0.5 and math.isnan(flat["Spearman"].value)


def test_the_floor_is_the_brier_score_of_the_true_rates():
    """In expectation over all outcomes of three responses."""
    p = 0.3
    rows = np.array(list(product((0.0, 1.0), repeat=3)))
    chances = np.prod(np.where(rows == 1, p, 1 - p), axis=1)
    expected = sum(chance * solvable.floor(row[None]) for chance, row in zip(chances, rows, strict=True))
    assert expected == pytest.approx(p * (1 - p))
    assert math.isnan(solvable.floor(rows[:, :1]))


def test_gains_are_paired():
    control = np.full(80, RATES.mean())
    found = solvable.gains(P, control, REWARDS, ALONE)["Brier"]
    test = stats.ttest_rel(((control[:, None] - REWARDS) ** 2).mean(1), ((P[:, None] - REWARDS) ** 2).mean(1))
    low, high = test.confidence_interval()
    assert found.value > 0 and (found.lower, found.upper) == pytest.approx((low, high))
    clustered = solvable.gains(np.tile(P, 2), np.tile(control, 2), np.tile(REWARDS, (2, 1)), np.tile(ALONE, 2))["Brier"]
    assert clustered.upper - clustered.lower == pytest.approx(high - low, rel=0.02)
    mild = np.clip(P, 0.05, 0.95)
    found = solvable.gains(mild, control, REWARDS, ALONE)["log loss"]
    losses = [-(RATES * np.log(p) + (1 - RATES) * np.log(1 - p)) for p in (control, mild)]
    low, high = stats.ttest_rel(*losses).confidence_interval()
    assert (found.value, found.lower, found.upper) == pytest.approx(((low + high) / 2, low, high))


def test_what_is_kept_is_the_surest():
    p = np.array([0.9, 0.2, 0.8, 0.8, 0.1, 0.5, 0.4, 0.3, 0.6, 0.7])
    rates = np.array([1.0, 0.0, 0.5, 1.0, 0.5, 0.0, 0.0, 0.0, 1.0, 0.0])
    found = solvable.selective(p, rates, np.arange(10))
    assert [each.coverage for each in found] == pytest.approx([0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert [each.rate.value for each in found[:3]] == pytest.approx([1, 2.5 / 3, 2.5 / 4])
    assert [each.oracle for each in found[:5]] == pytest.approx([1, 1, 3.5 / 4, 4 / 5, 4 / 6])
    assert found[-1].rate.value == found[-1].oracle == pytest.approx(0.4)
    assert found[0].rate.lower < 0.7  # one of one right is not sure
    # No two alike: each coverage is the least number of problems that reaches it, 0.2 of 25 exactly.
    p = np.random.default_rng(1).permutation(25) / 25
    found = solvable.selective(p, p, np.arange(25))
    assert [round(each.coverage * 25) for each in found] == [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]
    assert [each.rate.value for each in found] == pytest.approx([each.oracle for each in found])


def test_thresholds_are_chosen_on_other_problems():
    """The lowest that reaches a target; equal predictions are kept together."""
    chosen_p = np.array([0.9, 0.8, 0.8, 0.6, 0.5, 0.2])
    chosen = np.array([1.0, 1.0, 0.5, 1.0, 0.0, 0.0])
    p, rates = np.array([0.95, 0.7, 0.6, 0.55, 0.1]), np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    found = {each.target: each for each in solvable.thresholds(chosen_p, chosen, p, rates, np.arange(5))}
    assert list(found) == [0.6, 0.7, 0.8, 0.9, 0.95, 0.99]  # all above the mean rate
    # Means of what is kept: 1 of 1, 2.5 of 3, 3.5 of 4, 3.5 of 5.
    assert [found[t].threshold for t in (0.6, 0.7, 0.8, 0.9)] == [0.5, 0.5, 0.6, 0.9]
    assert found[0.8].coverage.value == 0.6 and found[0.8].rate.value == pytest.approx(2 / 3)
    none = solvable.thresholds(chosen_p, np.full(6, 0.55), p, rates, np.arange(5))[-1]
    assert math.isnan(none.threshold) and none.coverage.value == 0 and math.isnan(none.rate.value)


def test_bins_hold_every_problem_once():
    found = solvable.reliability(P, RATES, ALONE)
    assert sum(each.count for each in found) == 80
    for each in found:
        inside = (each.lower < P) & (each.upper >= P) | ((P == 0) & (each.lower == 0))
        assert each.count == inside.sum() and each.came.value == pytest.approx(RATES[inside].mean())
        assert each.predicted == pytest.approx(P[inside].mean())
