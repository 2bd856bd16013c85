"""The measures of sampling fidelity against closed forms, brute force and simulation."""

import itertools
import math
from dataclasses import astuple

import numpy as np
import pytest
from scipy import optimize, special

from equipoise.core.errors import BadInput
from equipoise.uncertainty import sampling_fidelity as sf

EXTREME = np.array([0.1, 0.7, 0.1, 0.1])
FLAT = np.array([0.1, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1])


def stream(seed, slots=40, k=4, sharp=1.0):
    return np.random.default_rng(seed).dirichlet([sharp] * k, size=slots)


@pytest.mark.parametrize("target", [EXTREME, FLAT])
def test_the_ideal_of_either_kind(target):
    flat = sf.measures(np.tile(target, (30, 1)), target)
    assert astuple(flat) == pytest.approx((0, 0, math.nan, 0, 1, 0, 0, 0, 1), abs=1e-12, nan_ok=True)
    draws = np.random.default_rng(0).choice(len(target), p=target, size=20000)
    peaky = sf.measures(np.eye(len(target))[draws], target, draws)
    spread = 1 - (target**2).sum()
    assert (peaky.a_token, peaky.step) == pytest.approx((spread, spread), abs=0.01)
    assert peaky.e_score == pytest.approx(0, abs=0.02) and peaky.entropy_ratio == 0
    assert sf.kind(flat) == "E" and sf.kind(peaky) == "D"


def test_a_hand_made_sequence():
    """Two slots with a leak of a fifth, whose order of draws and mean are known."""
    found = sf.measures([[0.8, 0.0], [0.2, 0.6]], [0.5, 0.5], [0, 1, 1, -1])
    # P = (1, 0), (.25, .75); gaps of .5 and .25 in half L1; the mean is (.625, .375).
    assert found.a_token == pytest.approx(0.375) and found.a_mean == pytest.approx(0.125)
    assert found.a_result == pytest.approx(2 / 3 - 1 / 2) and found.step == pytest.approx(0.75)
    assert found.leak == pytest.approx(0.2) and found.bias == pytest.approx(2 * 0.125**2)
    assert found.dispersion == pytest.approx(2 * 0.375**2) and found.e_score == pytest.approx(0.25)
    assert found.entropy_ratio == pytest.approx((0.25 * math.log(4) + 0.75 * math.log(4 / 3)) / 2 / math.log(2))


@pytest.mark.parametrize("conditional", [False, True])
def test_bias_and_dispersion_are_all_of_the_squared_distance(conditional):
    p, q = stream(1), stream(2) if conditional else EXTREME
    found = sf.measures(p, q)
    assert found.bias + found.dispersion == pytest.approx(((p - q) ** 2).sum(axis=1).mean(), abs=1e-12)


def test_a_conditional_target_that_is_met_has_neither_bias_nor_dispersion():
    p = stream(3)
    assert astuple(sf.measures(p, p)) == pytest.approx((0, 0, math.nan, 0, 1, 0, 0, 0, 1), abs=1e-12, nan_ok=True)
    assert sf.measures(p, EXTREME).dispersion > 0.1


def test_symbols_in_another_order_and_a_common_factor_change_nothing_but_the_leak():
    p, draws, order = stream(4), np.random.default_rng(4).integers(0, 4, 40), [2, 0, 3, 1]
    one = sf.measures(p, EXTREME, draws)
    other = sf.measures(0.25 * p[:, order], EXTREME[order], np.argsort(order)[draws])
    assert other.leak == pytest.approx(0.75)
    assert astuple(one)[:5] + astuple(one)[6:] == pytest.approx(astuple(other)[:5] + astuple(other)[6:], abs=1e-12)


def test_frequencies_less_mean_probabilities_are_a_martingale():
    p, generator = stream(5, slots=200), np.random.default_rng(5)
    draws = np.array([(generator.random((200, 1)) > p.cumsum(axis=1)).sum(axis=1) for _ in range(2000)])
    gaps = (draws[:, :, None] == np.arange(4)).mean(axis=1) - p.mean(axis=0)
    sd = np.sqrt((p * (1 - p)).mean(axis=0) / 200)
    assert np.abs(gaps.mean(axis=0)).max() < 4 * sd.max() / math.sqrt(2000)
    assert gaps.std(axis=0) == pytest.approx(sd, rel=0.06)


def test_what_is_not_there_is_undefined():
    assert all(math.isnan(each) for each in astuple(sf.measures(np.zeros((0, 4)), EXTREME, [])))
    assert all(math.isnan(each) for each in astuple(sf.measures([], np.zeros((0, 2)))))
    one = sf.measures([EXTREME], EXTREME, [-1])
    assert math.isnan(one.step) and math.isnan(one.a_result) and one.a_token == 0
    assert sf.kind(one) == "undefined" and math.isnan(sf.measures([[0.5, 0.5]], [1.0, 0.0]).e_score)


@pytest.mark.parametrize(
    ("probabilities", "target", "draws", "words"),
    [
        ([[0.5, 0.5]], [0.5, 0.4], None, "sums to 0.9"),
        ([[0.5, 0.5]], [1.5, -0.5], None, "from 0 to 1"),
        ([[0.5, 0.5]], [0.2, 0.3, 0.5], None, "do not fit"),
        ([[0.5, 0.5], [0.0, 0.0]], [0.5, 0.5], None, "Slot 1"),
        ([[0.9, 0.5]], [0.5, 0.5], None, "at most 1"),
        ([[0.5, 0.5]], [0.5, 0.5], [2], "A draw is 2"),
    ],
)
def test_bad_input_is_named(probabilities, target, draws, words):
    with pytest.raises(BadInput, match=words):
        sf.measures(probabilities, target, draws)


def made(**changes):
    return sf.Fidelity(**{"a_token": 0.1, "a_mean": 0.1, "a_result": 0.1, "step": 0.1, "entropy_ratio": 1.0, "leak": 0.1,
                          "bias": 0.01, "dispersion": 0.1, "e_score": 0.8} | changes)  # fmt: skip


def test_the_rule_of_kinds_at_its_edges():
    assert sf.kind(made(e_score=0.75, step=0.15)) == "E" and sf.kind(made(e_score=0.74)) == "mixed"
    assert sf.kind(made(e_score=0.6, step=0.25)) == "D" and sf.kind(made(e_score=0.6, step=0.24)) == "mixed"
    assert sf.kind(made(bias=0.1)) == sf.FOLLOWS_NOT == sf.kind(made(leak=0.21)) and sf.kind(made(leak=0.2)) == "E"


def test_the_best_temperature_is_the_least_divergence():
    p, q = np.random.default_rng(6).dirichlet(6 * EXTREME, size=40), EXTREME

    def divergence(temperature):
        return special.rel_entr(q, special.softmax(np.log(p) / temperature, axis=1)).sum(axis=1).mean()

    best = optimize.minimize_scalar(divergence, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x
    assert sf.best_temperature(p, q) == pytest.approx(best, rel=1e-4) and best > 1.2
    # What was sharpened threefold is mended by a temperature of 3, whatever leaked.
    sharp = 0.5 * sf.tempered(np.tile(FLAT, (5, 1)), 1 / 3)
    assert sf.best_temperature(sharp, FLAT) == pytest.approx(3, rel=1e-6)
    assert sf.tempered(sharp, 3) == pytest.approx(np.tile(FLAT, (5, 1)), abs=1e-12)
    assert math.isnan(sf.best_temperature(np.eye(4), q))
    assert math.isnan(sf.best_temperature([[0.25] * 4], q))  # all alike at any temperature


def test_history_slope_is_a_regression_with_dummies():
    rng = np.random.default_rng(7)
    p, draws = [stream(seed) for seed in (8, 9)], [rng.integers(-1, 4, 40) for _ in range(2)]
    rows, values = [], []
    for each, drawn in zip(p, draws, strict=True):
        for t in range(40):
            past = [d for d in drawn[:t] if d >= 0]
            for x in range(4) if past else ():
                rows.append([past.count(x) / len(past) - EXTREME[x], *np.eye(4)[x]])
                values.append(each[t, x])
    expected = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0][0]
    found = sf.history_slope([sf.surplus(a, EXTREME, b) for a, b in zip(p, draws, strict=True)])
    assert found == pytest.approx(expected, abs=1e-12)
    assert math.isnan(sf.history_slope([]))


def quota(target, slots, rng):
    """Always the symbol that is furthest behind; ties at random."""
    counts, chosen = np.zeros(len(target)), []
    for t in range(1, slots + 1):
        behind = t * target - counts
        chosen.append(int(rng.choice(np.flatnonzero(behind > behind.max() - 1e-9))))
        counts[chosen[-1]] += 1
    return np.array(chosen)


def test_quota_keepers_compensate_and_copiers_copy():
    rng = np.random.default_rng(10)
    kept = [quota(FLAT, 60, rng) for _ in range(8)]
    assert sf.history_slope([sf.surplus(np.eye(9)[d], FLAT, d) for d in kept]) < -1
    order = sf.serial([quota(np.full(4, 0.25), 60, rng) for _ in range(8)])
    assert order.autocorrelation < -0.15 and order.z > 3 and order.p < 0.01
    copied = []
    for _ in range(8):
        drawn = [int(rng.integers(9))]
        while len(drawn) < 60:
            drawn.append(drawn[-1] if rng.random() < 0.8 else int(rng.integers(9)))
        copied.append(np.array(drawn))
    # A copier's probabilities follow its last symbol, of which it has had too many.
    p = [0.8 * np.eye(9)[np.r_[d[0], d[:-1]]] + 0.2 / 9 for d in copied]
    assert sf.history_slope([sf.surplus(a, FLAT, d) for a, d in zip(p, copied, strict=True)]) > 0.2
    assert sf.serial(copied).autocorrelation > 0.5 and sf.serial(copied).z < -10
    # Too good to be independent: the quota's result is below the middle 95 % of its floor.
    result = np.mean([sf.measures(np.eye(9)[d], FLAT, d).a_result for d in kept])
    assert result < sf.independent_floor(FLAT, [60] * 8, rng).lower


def test_runs_against_all_orders():
    draws = [0, 0, 1, 2, 2, 1, 0]
    runs = [1 + sum(a != b for a, b in itertools.pairwise(order)) for order in itertools.permutations(draws)]
    expected = (1 + 4 - np.mean(runs)) / np.std(runs)
    assert sf.serial([[-1, *draws, -1]]).z == pytest.approx(expected, abs=1e-12)
    assert math.isnan(sf.serial([[1, 1, 1]]).p) and math.isnan(sf.serial([[]]).autocorrelation)


def test_floors_are_what_chance_gives():
    rng = np.random.default_rng(11)
    for target, expected in ((EXTREME, 0.054), (FLAT, 0.112)):  # closed forms for 100 draws
        assert sf.independent_floor(target, [100] * 16, rng).value == pytest.approx(expected, rel=0.03)
        own = sf.own_floor([np.tile(target, (100, 1))] * 4, target, rng, repeats=400)
        assert own.value == pytest.approx(expected, rel=0.05) and own.lower < own.value < own.upper
    assert sf.own_floor([np.eye(4)], np.full(4, 0.25), rng).value == 0  # each slot can only draw its own symbol
    assert math.isnan(sf.independent_floor(EXTREME, [0], rng).value)


def test_the_multinomial_test_is_exact():
    rng, q, n = np.random.default_rng(12), np.array([0.2, 0.3, 0.5]), 6
    tables = [(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)]

    def g(counts):
        return sum(c * math.log(c / (n * p)) for c, p in zip(counts, q, strict=True) if c)

    def chance(counts):
        return math.factorial(n) * math.prod(p**c / math.factorial(c) for c, p in zip(counts, q, strict=True))

    for seen in ((2, 2, 2), (4, 1, 1)):
        exact = sum(chance(each) for each in tables if g(each) >= g(seen) - 1e-9)
        assert sf.multinomial_test(seen, q, rng) == pytest.approx(exact, abs=0.02)
    assert sf.multinomial_test([1, 99, 0], [0.5, 0.0, 0.5], rng) == pytest.approx(1 / 10000)  # what cannot be drawn was
    assert math.isnan(sf.multinomial_test([0, 0], [0.5, 0.5], rng))


def test_the_place_alone():
    swinging = np.tile([[0.9, 0.1], [0.1, 0.9]], (5, 1))
    assert sf.position_effect([swinging, swinging[:8]]) == pytest.approx(2 * 0.16)
    assert sf.position_effect([swinging[:8], swinging[1:9]]) == pytest.approx(0)
    assert math.isnan(sf.position_effect([]))


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "E"),
        ({"e_score": 0.9, "step": 0.05}, "E"),
        ({"e_score": 0.8, "step": 0.16}, "mixed"),
        ({"e_score": 0.7, "step": 0.4}, "mixed"),
        ({"e_score": 0.3, "step": 0.4}, "D"),
        ({"e_score": -0.5, "step": 0.9}, "D"),
        ({"e_score": 0.61, "step": 0.4}, "mixed"),
        ({"bias": 0.0999}, "E"),
        ({"bias": 0.5}, sf.FOLLOWS_NOT),
        ({"leak": 0.9}, sf.FOLLOWS_NOT),
        ({"leak": math.nan}, "undefined"),
        ({"bias": math.nan}, "undefined"),
        ({"e_score": math.nan}, "undefined"),
        ({"step": math.nan}, "undefined"),
        ({"step": math.nan, "leak": 0.9}, sf.FOLLOWS_NOT),
    ],
)
def test_kinds_beside_the_edges(changes, kind):
    assert sf.kind(made(**changes)) == kind


def test_a_sum_above_one_by_rounding_leaks_nothing():
    assert sf.measures([[0.5, 0.5 + 5e-7]], [0.5, 0.5]).leak == 0
    assert math.isnan(sf.measures([[0.5, 0.5]], [1.0, 0.0]).entropy_ratio)


def test_a_temperature_is_above_nought_and_finite():
    for wrong in (0.0, -1.0, math.inf):
        with pytest.raises(BadInput, match="above 0"):
            sf.tempered([[0.5, 0.5]], wrong)


def test_best_temperatures_of_two_symbols():
    """Odds 9 : 1 become 4 : 1 at the temperature log 9 / log 4; a symbol that neither has changes nothing."""
    expected = math.log(9) / math.log(4)
    assert sf.best_temperature([[0.9, 0.1]], [0.8, 0.2]) == pytest.approx(expected, rel=1e-9)
    assert sf.best_temperature([[0.9, 0.1, 0.0]] * 2, [0.8, 0.2, 0.0]) == pytest.approx(expected, rel=1e-9)
    each = [[0.8, 0.2, 0.0], [0.5, 0.5, 0.0]]  # a target for each slot: the second's is met at any temperature
    assert sf.best_temperature([[0.9, 0.1, 0.0], [0.4, 0.4, 0.2]], each) > expected / 2
    assert sf.best_temperature([[0.9, 0.1]], [0.5, 0.5]) == 50 and sf.best_temperature([[0.6, 0.4]], [1, 0]) == 0.02
    assert math.isnan(sf.best_temperature([[1.0, 0.0]], [0.5, 0.5]))  # what is asked for never comes
    assert math.isnan(sf.best_temperature(np.zeros((0, 2)), [0.5, 0.5]))
    raw, asked = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]]), np.array([0.5, 0.5, 0.0])

    def divergence(temperature):
        return special.rel_entr(asked, special.softmax(np.log(raw) / temperature, axis=1)).sum(axis=1).mean()

    best = optimize.minimize_scalar(divergence, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-10}).x
    assert sf.best_temperature(raw, asked) == pytest.approx(best, rel=1e-4)


def test_order_of_several_sequences_against_all_orders_of_each():
    sequences = [[3], [0, 0, 1, 2, 2, 1, 0], [1, -1, 0], [2, 2, 1, 1, -1], [1, 1, 1]]
    gap, variance, lags = 0.0, 0.0, []
    for sequence in ([0, 0, 1, 2, 2, 1, 0], [1, 0], [2, 2, 1, 1], [1, 1, 1]):
        orders = [[a != b for a, b in itertools.pairwise(order)] for order in itertools.permutations(sequence)]
        changes = sum(a != b for a, b in itertools.pairwise(sequence))
        of_chance = [sum(each) for each in orders]
        gap += changes - np.mean(of_chance)
        variance += np.var(of_chance)
        pairs = len(sequence) - 1
        alike, by_chance = 1 - changes / pairs, 1 - np.mean(of_chance) / pairs
        if len(set(sequence)) > 1:
            lags.append((alike - by_chance) / (1 - by_chance))
    found = sf.serial(sequences)
    assert found.autocorrelation == pytest.approx(np.mean(lags)) and len(lags) == 3
    assert found.z == pytest.approx(gap / math.sqrt(variance))
    assert found.p == pytest.approx(math.erfc(abs(found.z) / math.sqrt(2)))


def test_a_floor_has_the_mean_and_the_middle_of_chance():
    """One draw from (0.25, 0.75) is 0.75 off, or three times in four 0.25; sequences without draws are left out."""
    rng = np.random.default_rng(20)
    one = sf.independent_floor([0.25, 0.75], [0, 1], rng, repeats=4000)
    own = sf.own_floor([np.zeros((0, 2)), [[0.1, 0.3]]], [0.25, 0.75], rng, repeats=4000)
    for found in (one, own):
        assert (found.lower, found.upper) == (0.25, 0.75) and found.value == pytest.approx(0.375, abs=0.02)
    two = sf.own_floor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5]]], [0.5, 0.5], rng, repeats=10)
    assert tuple(two) == pytest.approx((0.25, 0.25, 0.25))  # the mean over sequences of none and a half


class Least:
    """A generator whose uniform draws are all 0, the least that comes."""

    def random(self, shape):
        return np.zeros(shape)


def test_a_symbol_without_probability_is_never_drawn():
    found = sf.own_floor([[[0.0, 1.0], [0.0, 0.5]]], [0.2, 0.8], Least(), repeats=3)
    assert tuple(found) == pytest.approx((0.2, 0.2, 0.2))


def test_what_is_no_distribution_and_what_is_nearly_one():
    for wrong in ([1.0], 1.0, [[[0.5, 0.5]]], [0.5, math.inf], [-0.1, 1.1]):
        with pytest.raises(BadInput, match="The target must be at least two numbers"):
            sf.checked_target(wrong)
    assert sf.checked_target([0.5, 0.5 + 8e-7]).sum() == 1.0
    with pytest.raises(BadInput, match=r"The shares sums to 1\.00001"):
        sf.checked_target([0.5, 0.50001], name="The shares")
    with pytest.raises(BadInput, match=r"sums to 1\.5"):
        sf.checked_target([[0.5, 0.5], [0.5, 1.0], [0.5, 0.4]])
    for raw in ([[0.5, -0.1]], [[0.5, math.nan]], [[0.6, 0.4 + 2e-6]]):
        with pytest.raises(BadInput, match="at most 1"):
            sf.measures(raw, [0.5, 0.5])
    for raw, target in (([0.5, 0.5], [0.5, 0.5]), ([[0.5, 0.5]], [[0.5, 0.5]] * 2)):
        with pytest.raises(BadInput, match="do not fit"):
            sf.measures(raw, target)
    with pytest.raises(BadInput, match="3 slots and 2 draws"):
        sf.surplus([[0.5, 0.5]] * 3, [0.5, 0.5], [0, 1])
    with pytest.raises(BadInput, match="one target"):
        sf.surplus([[0.5, 0.5]] * 2, [[0.5, 0.5]] * 2, [0, 1])


def test_a_surplus_by_hand():
    """Drawn were 0 and 1: before the third slot each half of the draws, before the second the first symbol alone."""
    found = sf.surplus([[0.5, 0.5], [0.1, 0.4], [0.3, 0.3]], [0.25, 0.75], [0, 1, 1])
    over, p = np.array([[0.75, -0.75], [0.25, -0.25]]), np.array([[0.2, 0.8], [0.5, 0.5]])
    assert found == pytest.approx(np.stack([[2, 2], over.sum(0), p.sum(0), (over**2).sum(0), (over * p).sum(0)]))
    assert math.isnan(sf.history_slope([sf.surplus([[0.5, 0.5]] * 2, [0.5, 0.5], [0, 1])]))  # one slot each
