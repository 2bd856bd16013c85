"""Platt's two numbers against a minimum of his written loss that another method found, and where there is no slope."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from equipoise.core.calibration import Calibration


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def log_loss(logits, rates, at):
    hits = sum(rates)
    right, wrong = (hits + 1) / (hits + 2), 1 / (len(rates) - hits + 2)
    total = 0.0
    for logit, rate in zip(logits, rates, strict=True):
        target, z = rate * right + (1 - rate) * wrong, at[0] * logit + at[1]
        total += target * np.logaddexp(0, -z) + (1 - target) * np.logaddexp(0, z)
    return total


@pytest.mark.parametrize(
    ("logits", "rates"),
    [
        ([-2, -1, 0.5, 1, 3, 4.5], [0, 0.25, 0, 1, 0.5, 1]),
        ([7, 7.5, 8, 9], [0, 0, 1, 1]),  # apart
        ([*range(-7, 8), -300], [0] * 15 + [1]),  # Newton's first step leads too far
    ],
)
def test_the_two_numbers_are_those_of_least_log_loss(logits, rates):
    found = Calibration.of(logits, rates, rising=False)
    best = minimize(
        lambda at: log_loss(logits, rates, at), (found.slope * 0.9, found.intercept + 0.1), method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000},
    )  # fmt: skip
    assert (found.slope, found.intercept) == pytest.approx(tuple(best.x), rel=1e-5, abs=1e-5)
    # At a minimum a step to any side costs as much as to the other, and both cost.
    here = log_loss(logits, rates, (found.slope, found.intercept))
    for step in ((1e-3, 0), (0, 1e-3)):
        up, down = (
            log_loss(logits, rates, (found.slope + sign * step[0], found.intercept + sign * step[1])) - here
            for sign in (1, -1)
        )
        assert up > 0 and up == pytest.approx(down, rel=0.2)
    assert found([0.0, 2.0]).tolist() == pytest.approx(
        [sigmoid(found.intercept), sigmoid(2 * found.slope + found.intercept)]
    )


def test_another_unit_or_origin_of_the_logits_gives_the_same_probabilities():
    logits, rates = np.array([-2, -1, 0.5, 1, 3, 4.5]), [0, 0, 1, 1, 0, 1]
    one, other = Calibration.of(logits, rates), Calibration.of(1e6 * logits + 5e6, rates)
    assert other(1e6 * logits + 5e6).tolist() == pytest.approx(one(logits).tolist(), abs=1e-9)


def test_a_slope_that_would_turn_the_order_around_is_none():
    falling = Calibration.of([0, 1, 2, 3], [1, 1, 0, 0])
    # Two of each count 3 / 4 and 1 / 4: a half on average.
    assert (falling.slope, falling.intercept) == (0, pytest.approx(0, abs=1e-12))
    turned = Calibration.of([0, 1, 2, 3], [1, 1, 0, 0], rising=False)
    straight = Calibration.of([0, 1, 2, 3], [0, 0, 1, 1])
    assert turned.slope == pytest.approx(-straight.slope) and turned.slope < 0
    assert Calibration.of([0, 1, 2, 3], [0, 0, 1, 1], rising=False) == straight
    slow = Calibration.of([0, 100, 200, 300], [0, 0, 1, 1])
    assert 0 < slow.slope < 0.1 and slow.slope == pytest.approx(straight.slope / 100)


def test_equal_logits_have_the_mean_of_what_they_count():
    # One of five: 1 counts 2 / 3, each 0 counts 1 / 6.
    same = Calibration.of([2.0] * 5, [1, 0, 0, 0, 0])
    mean = (2 / 3 + 4 / 6) / 5
    assert same.slope == 0 and same([9.0])[0] == pytest.approx(mean)
    assert Calibration.of([2.0], [1])([0.0])[0] == pytest.approx(2 / 3)


def test_newtons_steps_end_where_the_next_would_do_nothing(monkeypatch):
    solved, solve = [], np.linalg.solve
    monkeypatch.setattr(np.linalg, "solve", lambda *given: solved.append(1) or solve(*given))
    Calibration.of([-2, -1, 0.5, 1, 3, 4.5], [0, 0.25, 0, 1, 0.5, 1])
    assert 3 <= len(solved) <= 8
