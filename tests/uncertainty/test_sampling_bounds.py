"""Bounds from the likeliest tokens hold the measures of the whole distribution, and are these where all is told."""

import math
from dataclasses import asdict

import numpy as np
import pytest

from equipoise.uncertainty.sampling_bounds import bounded_measures, slot_bounds
from equipoise.uncertainty.sampling_fidelity import measures

SYMBOLS = ("1", "2", "3", "4")
TARGET = (0.1, 0.7, 0.1, 0.1)
TOKENS = ("1", " 1", "2", "3", " 3", "4", "5", "x", ",", "\n")
OWNER = (0, 0, 1, 2, 2, 3, -1, -1, -1, -1)


def distributions(seed, slots):
    return np.random.default_rng(seed).dirichlet([0.3] * len(TOKENS), size=slots)


def told(p, top):
    order = np.argsort(-p)[:top]
    return {TOKENS[i]: math.log(p[i]) for i in order}


@pytest.mark.parametrize("top", [2, 4, 7, 10])
@pytest.mark.parametrize("seed", range(5))
def test_the_measures_lie_inside(seed, top):
    every = distributions(seed, 12)
    raw = np.array([[sum(p[i] for i in range(10) if OWNER[i] == x) for x in range(4)] for p in every])
    found = [slot_bounds(told(p, top), SYMBOLS) for p in every]
    draws = np.random.default_rng(seed).integers(0, 4, 12)
    least, most = bounded_measures(*map(np.array, zip(*found, strict=True)), TARGET, draws)
    for name, value in asdict(measures(raw, TARGET, draws)).items():
        assert getattr(least, name) - 1e-9 <= value <= getattr(most, name) + 1e-9, name
        if top == 10:
            assert getattr(most, name) - getattr(least, name) < 1e-6, name
    if top == 2:
        assert most.a_token - least.a_token > 0.05


def test_a_token_that_only_begins_a_symbol_is_left_open():
    found = slot_bounds({"re": math.log(0.5), "blue": math.log(0.5)}, ("red", "rest", "blue"))
    assert found.lower.tolist() == pytest.approx([0, 0, 0.5]) and found.upper.tolist() == pytest.approx([0.5, 0.5, 1])
    assert found.leak == pytest.approx((0, 0.5))
    both = slot_bounds({"1": math.log(0.4), "2": math.log(0.6)}, ("1", "10", "2"))  # "1" may go on to "10"
    assert both.lower.tolist() == pytest.approx([0, 0, 0.6]) and both.upper.tolist() == pytest.approx([0.4, 0.4, 1])


def test_a_slot_without_a_told_symbol_is_open():
    found = slot_bounds({"x": math.log(0.9)}, ("1", "2"))
    assert found.lower.tolist() == [0, 0] and found.upper.tolist() == [1, 1] and found.leak == pytest.approx((0.9, 1))
    assert all(math.isnan(each) for each in asdict(bounded_measures([], [], [], (0.5, 0.5))[0]).values())


def test_a_drawn_token_that_is_not_among_the_likeliest_bounds_no_other():
    p = {"1": 0.4, "2": 0.3, "3": 0.29, "x": 0.01}
    told = {text: math.log(p[text]) for text in ("1", "2", "x")}  # the two likeliest, and what was drawn
    found = slot_bounds(told, ("1", "2", "3"), "x")
    share = 0.29 / 0.99
    assert found.lower[2] <= share <= found.upper[2]
    assert found.leak[0] == pytest.approx(0.01) and found.leak[1] == pytest.approx(0.3)


def test_untold_tokens_that_begin_a_symbol_are_allowed_for():
    every = {"blue": 0.4, "x": 0.12, "r": 0.115, " r": 0.115, "re": 0.115, "red": 0.11}
    found = slot_bounds({text: math.log(every[text]) for text in ("blue", "x")}, ("red", "blue"))
    assert found.upper[0] >= (0.115 * 3 + 0.11) / (0.4 + 0.115 * 3 + 0.11)


def test_a_slot_of_which_all_is_told_and_nothing_is_a_symbol_is_open():
    found = slot_bounds({"x": math.log(0.75), "y": math.log(0.25)}, ("1", "2", "3"))
    assert found.lower.tolist() == [0, 0, 0] and found.upper.tolist() == [1, 1, 1] and found.leak == (1, 1)
    more = slot_bounds({"x": math.log(0.75), "y": math.log(0.5)}, ("1", "2"))  # logarithms of a server that rounds
    assert more.lower.tolist() == [0, 0] and more.upper.tolist() == [1, 1] and more.leak == (1, 1)
