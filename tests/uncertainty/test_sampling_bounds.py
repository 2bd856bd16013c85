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


def logs(p):
    return {text: math.log(each) for text, each in p.items()}


def test_what_is_told_of_a_slot_by_hand():
    """ "1" may be itself or go on to "10"; 0.15 are untold, of which no token has more than the least that is told."""
    told = logs({"1": 0.3, "22": 0.25, " 2": 0.1, "x": 0.15, " ": 0.05})
    found = slot_bounds(told, ("1", "10", "22"))
    assert found.lower == pytest.approx([0, 0, 0.25 / 0.8])
    assert found.upper == pytest.approx([0.4 / 0.65, 0.45 / 0.7, 1])  # 0.1 for one letter, for two all that is untold
    assert found.leak == pytest.approx((0.2, 0.75))
    assert slot_bounds(told, ("1", "10", "22"), " ").upper == pytest.approx([0.45 / 0.7, 0.45 / 0.7, 1])
    alone = slot_bounds(logs({"1": 0.5}), ("1", "2"), "1")  # what was drawn is all that is told
    assert alone.lower == pytest.approx([0.5, 0]) and alone.upper == pytest.approx([1, 0.5])
    rounded = slot_bounds(logs({"1": 0.75, "2": 0.5}), ("1", "2", "3"))
    assert rounded.lower == pytest.approx([0.6, 0.4, 0]) == rounded.upper and rounded.leak == (0, 0)


def test_bounds_of_measures_by_hand():
    """Two symbols, the first between 0.2 and 0.5 and then between 0.6 and 0.9, of which 0.4 are asked for."""
    least, most = bounded_measures(
        [[0.2, 0.5], [0.6, 0.1]], [[0.5, 0.8], [0.9, 0.4]], [[0.1, 0.2], [0.3, 0.6]], (0.4, 0.6), [0, 0, 1]
    )

    def entropy(*p):
        return sum(-each * math.log(each) for each in p)

    whole = entropy(0.4, 0.6)
    expected = {
        "a_token": (0.1, 0.4),  # of the first slot 0.3: too little of either, as far as each bound tells by itself
        "a_mean": (0, 0.3),
        "a_result": (2 / 3 - 0.4, 2 / 3 - 0.4),
        "step": (0.1, 0.7),
        "entropy_ratio": (
            (entropy(0.2, 0.8) + entropy(0.1, 0.9)) / 2 / whole,
            (math.log(2) + entropy(0.6) + 1 / math.e) / 2 / whole,
        ),
        "leak": (0.2, 0.4),
        "bias": (0, 2 * 0.3**2),
        "dispersion": (0, (2 * 0.2**2 + 2 * 0.5**2) / 2),
        "e_score": (1 - 0.4 / 0.48, 1 - 0.1 / 0.48),
    }
    for name, ends in expected.items():
        assert (getattr(least, name), getattr(most, name)) == pytest.approx(ends, abs=1e-12), name
    middle = bounded_measures(
        [[0.3, 0.3]], [[0.5, 0.5]], [[0, 0]], (0.9, 0.1)
    )  # too little of one, too much of another
    assert (middle[0].a_token, middle[1].a_token) == pytest.approx((0.4, 0.4)) and math.isnan(middle[1].step)
    over = bounded_measures([[0.1, 0.1, 0.5]], [[0.2, 0.3, 0.7]], [[0, 0]], (0.4, 0.5, 0.1))
    assert over[0].a_token == pytest.approx(0.4) and over[1].a_token == pytest.approx(0.6)


def test_nothing_told_bounds_nothing():
    least, most = bounded_measures(np.zeros((2, 3)), np.ones((2, 3)), [[0, 1]] * 2, (0.5, 0.25, 0.25))
    entropy = 1.5 * math.log(2)
    for name, ends in {"a_token": (0, 1), "step": (0, 1), "leak": (0, 1), "dispersion": (0, 1.375)}.items():
        assert (getattr(least, name), getattr(most, name)) == pytest.approx(ends), name
    assert most.entropy_ratio == pytest.approx(math.log(3) / entropy) and least.entropy_ratio == 0
