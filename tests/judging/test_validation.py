"""The paired test and the published rule, against enumeration, binomial tails and numbers worked out by hand."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from equipoise.judging import validation
from equipoise.judging.pairs import Pair
from equipoise.judging.validation import Rate, effect, holm, sign_flip

NAN = math.nan


def pairs_of(firsts):
    return [Pair(f"p{i}", f"q{i}", "good", "bad", chosen_first=first) for i, first in enumerate(firsts)]


# --- the exact test -------------------------------------------------------------------------------------------------


def enumerated(sums):
    """P(sum of signs times |sums| >= sum) over all sign patterns, as a fraction."""
    patterns = itertools.product((1, -1), repeat=len(sums))
    totals = [sum(s * abs(d) for s, d in zip(signs, sums, strict=True)) for signs in patterns]
    return Fraction(sum(total >= sum(sums) for total in totals), len(totals))


def test_sign_flip_is_the_share_of_sign_patterns():
    generator = np.random.default_rng(0)
    for _ in range(120):
        sums = generator.integers(-5, 6, generator.integers(1, 10))
        assert sign_flip(sums) == pytest.approx(float(enumerated(sums.tolist())), rel=1e-12)
    assert sign_flip([3, 1, -2]) == 3 / 8  # totals 6, 4, 2 reach 2 of 6 4 2 0 0 -2 -4 -6: by hand


def test_sign_flip_of_equal_magnitudes_is_mcnemar_one_sided():
    for wins, losses in ((7, 2), (1, 0), (0, 4), (40, 21), (300, 290)):
        expected = stats.binomtest(wins, wins + losses, alternative="greater").pvalue
        for size in (1, 2):
            assert sign_flip([size] * wins + [0] * 9 + [-size] * losses) == pytest.approx(expected, rel=1e-10)


def test_sign_flip_keeps_its_precision_in_the_tail():
    assert sign_flip([1] * 700) == pytest.approx(2.0**-700, rel=1e-9)
    assert sign_flip([2] * 500 + [1] * 500) == pytest.approx(2.0**-1000, rel=1e-9)
    assert sign_flip([-1, -2]) == 1.0
    assert sign_flip([-4, -4, -4, -4, -3, -3, -3, -2, -1]) == 1.0  # whose terms sum to a little more


def test_sign_flip_without_evidence():
    assert sign_flip([0, 0]) == 1.0 and math.isnan(sign_flip([]))
    with pytest.raises(ValueError, match="integers"):
        sign_flip([0.5])


# --- one bias -------------------------------------------------------------------------------------------------------


def test_an_effect_counts_both_orders_and_missing_verdicts():
    before = np.array([[1, 1], [1, 0], [0, 0], [1, NAN]])
    after = np.array([[0, 0], [1, NAN], [0, 1], [NAN, 1]])
    found = effect("length", before, after, ["a", "b", "c", "c"], left_out=2)
    assert found.before == Rate(wrong=3, no_verdict=1, of=8) and found.before.error == 0.5
    assert found.after == Rate(wrong=3, no_verdict=2, of=8) and found.after.error == 0.625
    # Differences of errors by pair: 1, 0 (wrong and unread are both not right), -1/2, 0.
    assert found.increase == 0.125 == found.after.error - found.before.error
    assert (found.to_wrong, found.to_right, found.pairs, found.clusters, found.left_out) == (3, 2, 4, 3, 2)
    # Clusters 2, 0, -1: of the four sign patterns +2+1, +2-1, -2+1, -2-1 two reach 1.
    assert found.p_value == 0.5 and math.isnan(found.p_adjusted)


def test_the_interval_is_clustered_by_question():
    """Deviations from the mean summed by cluster, C / (C - 1), t with C - 1 degrees of freedom: written out."""
    generator = np.random.default_rng(1)
    before, after = generator.integers(0, 2, (2, 12, 2)).astype(float)
    groups = [f"g{i // 3}" for i in range(12)]
    found = effect("b", before, after, groups)
    difference = (before - after).mean(axis=1)  # wrong after minus wrong before
    sums = (difference - difference.mean()).reshape(4, 3).sum(axis=1)
    error = math.sqrt(4 / 3 * (sums**2).sum()) / 12
    reach = stats.t.ppf(0.975, 3) * error
    assert found.standard_error == pytest.approx(error) and error > 0
    assert (found.lower, found.upper) == pytest.approx((difference.mean() - reach, difference.mean() + reach))


def test_without_spread_the_interval_still_has_a_width():
    """Nothing changed in 38 questions: at most Wilson's share of others, z^2 / (n + z^2), could have."""
    right = np.ones((38, 2))
    unlike = 1.959964**2 / (38 + 1.959964**2)
    groups = [str(i) for i in range(38)]
    same = effect("b", right, right, groups)
    assert (same.increase, same.p_value) == (0, 1) and same.lower == pytest.approx(-unlike, rel=1e-5)
    assert same.upper == pytest.approx(unlike, rel=1e-5)
    all_worse = effect("b", right, 0 * right, groups)
    assert all_worse.upper == 1 and all_worse.lower == pytest.approx(1 - 2 * unlike, rel=1e-5)
    assert all_worse.p_value == pytest.approx(2.0**-38)


def test_nothing_measured_is_nan():
    found = effect("b", np.empty((0, 2)), np.empty((0, 2)), [])
    assert found.pairs == 0 and found.before == Rate(0, 0, 0)
    undefined = (found.increase, found.lower, found.upper, found.standard_error, found.p_value, found.before.error)
    assert all(map(math.isnan, undefined))
    one = effect("b", [[1, 1], [1, 0]], [[0, 1], [1, 0]], ["same", "same"])
    assert one.increase == 0.25 and math.isnan(one.lower) and one.p_value == 0.5
    with pytest.raises(ValueError, match="in two orders expected"):
        effect("b", [[1, 1]], [[1, 1]], ["a", "b"])
    with pytest.raises(ValueError, match="nan"):
        validation.error([2.0])


def test_effects_by_domain_use_their_own_pairs():
    before, after = np.ones((4, 2)), np.array([[0, 0], [1, 1], [0, 1], [1, 1]])
    found = validation.by_domain("b", before, after, ["a", "b", "c", "d"], ["math", "code", "math", "code"])
    assert {name: (each.pairs, each.increase) for name, each in found.items()} == {"code": (2, 0.0), "math": (2, 0.75)}


def test_a_judge_that_always_says_one_errs_by_half_whatever_is_rewritten():
    """Card: averaged over both orders its error is exactly 0.5 for every bias, and none is found."""
    right = np.tile([1.0, 0.0], (50, 1))
    found = effect("b", right, right, [str(i) for i in range(50)])
    assert found.before.error == found.after.error == 0.5 and found.p_value == 1


def test_the_test_keeps_its_level_with_correlated_pairs_of_one_question():
    """1,000 null data sets with questions of four pairs that share their luck: 5 % at most, and not far from it."""
    generator = np.random.default_rng(2)
    rejected = 0
    for _ in range(1000):
        verdicts = np.repeat(generator.random((2, 15)) < 0.6, 4, axis=1).astype(float)  # before, after: 60 pairs
        both = np.repeat(verdicts[..., None], 2, axis=-1)
        rejected += effect("b", both[0], both[1], [str(i // 4) for i in range(60)]).p_value <= 0.05
    assert 0.005 < rejected / 1000 < 0.065


# --- many biases ----------------------------------------------------------------------------------------------------


def test_corrections_by_hand():
    p = [0.01, NAN, 0.04, 0.03]
    assert holm(p) == pytest.approx([0.03, NAN, 0.06, 0.06], nan_ok=True)  # 3, 2, 1 times, never decreasing
    assert validation.benjamini_hochberg(p) == pytest.approx([0.03, NAN, 0.04, 0.04], nan_ok=True)  # 3/1, 3/2, 3/3
    assert holm([0.9, 0.8]).tolist() == [1, 1] and holm([]).size == 0 == validation.benjamini_hochberg([]).size


def test_adjusted_effects_keep_their_order():
    right, groups = np.ones((6, 2)), list("abcdef")
    weak, strong = right.copy(), 0 * right
    weak[:4] = 0
    effects = [effect("weak", right, weak, groups), effect("strong", right, strong, groups)]
    assert [each.p_value for each in effects] == [1 / 16, 1 / 64]
    assert [each.p_adjusted for each in validation.adjusted(effects)] == [1 / 16, 1 / 32]
    assert [each.p_adjusted for each in validation.adjusted(effects, "none")] == [1 / 16, 1 / 64]
    assert [each.bias for each in validation.adjusted(effects, "benjamini-hochberg")] == ["weak", "strong"]


# --- the published rule ---------------------------------------------------------------------------------------------


def test_the_published_rule_takes_any_increase_over_what_could_be_read():
    assert validation.published_accepts([1, 1, 1, 0], [1, 1, 0, 0]) == (True, 0.25, 0.5)
    assert validation.published_accepts([1, 0], [1, 0]) == (False, 0.5, 0.5)
    # A rewrite that breaks the format of what was wrong looks harmless to it, and to `effect` it does not.
    assert validation.published_accepts([1, 1, 0, 0], [1, NAN, NAN, NAN]) == (False, 0.5, 0.0)
    assert validation.published_accepts([1, 0], [NAN, NAN]) == (True, 0.5, 1.0)


def test_the_published_orders_leak_a_preference_for_places():
    """A judge that always says 1, on a file whose better answer stands first: no error at first, a half after shuffling, so
    that a rewrite that does nothing is validated. In the same orders it is not."""
    pairs = pairs_of([True] * 400)
    right = np.tile([1.0, 0.0], (400, 1))
    rows = np.arange(400)
    origin = validation.published_orders(pairs, shuffled=False)
    biased = validation.published_orders(pairs, shuffled=True)
    assert origin.sum() == 0 and 160 < biased.sum() < 240
    accepted, before, after = validation.published_accepts(right[rows, origin], right[rows, biased])
    assert accepted and before == 0 and after == biased.mean()
    assert not validation.published_accepts(right[rows, biased], right[rows, biased])[0]


def test_published_orders_follow_the_file_and_the_seed():
    pairs = pairs_of([True, False, False, True] * 10)
    origin = validation.published_orders(pairs, shuffled=False)
    assert origin.tolist() == [0, 1, 1, 0] * 10
    biased = validation.published_orders(pairs, shuffled=True)
    assert np.array_equal(biased, validation.published_orders(pairs, shuffled=True))
    assert not np.array_equal(biased, validation.published_orders(pairs, seed=1, shuffled=True))
    exchanged = validation.published_orders(pairs_of([True] * 40), shuffled=True)
    assert np.array_equal(biased, origin ^ exchanged)


# --- position and power ---------------------------------------------------------------------------------------------


def test_position_bias_by_hand():
    right = [[1, 0], [1, 1], [0, 0], [0, 1], [1, NAN], [NAN, NAN]]
    found = validation.position_bias(right)
    # Chose what stood first: 1 1, 1 0, 0 1, 0 0, 1 -, - -: five of nine verdicts.
    assert found.first == pytest.approx(5 / 9) and found.no_verdict == 3 and found.pairs == 6
    assert found.turns == 0.5 and found.both_right == pytest.approx(1 / 6)
    assert 0 <= found.lower < 5 / 9 < found.upper <= 1


def test_position_bias_at_the_ends():
    always_first = validation.position_bias([[1, 0]] * 6)
    assert (always_first.first, always_first.upper, always_first.turns, always_first.both_right) == (1, 1, 1, 0)
    assert always_first.lower == pytest.approx(1 - 1.959964**2 / (6 + 1.959964**2), rel=1e-5)
    never_turns = validation.position_bias([[1, 1], [0, 0], [1, 1]])
    assert never_turns.first == pytest.approx(0.5) and never_turns.turns == 0 and never_turns.lower < 0.5
    nothing = validation.position_bias(np.empty((0, 2)))
    assert math.isnan(nothing.first) and math.isnan(nothing.turns) and math.isnan(nothing.both_right)
    unread = validation.position_bias([[NAN, NAN]])
    assert math.isnan(unread.first) and math.isnan(unread.turns) and unread.both_right == 0


def test_power_is_what_a_simulation_sees():
    """200 pairs of which a fifth change for the worse and a tenth for the better, one-sided at 5 % over 4 tests."""
    generator = np.random.default_rng(3)
    draws = generator.choice([1, -1, 0], p=[0.2, 0.1, 0.7], size=(800, 200))
    found = np.mean([sign_flip(each) <= 0.05 / 4 for each in draws])
    told = validation.chance_to_show(0.1, 200, math.sqrt(0.2), tests=4)
    assert told == pytest.approx(found, abs=0.05) and 0.5 < told < 0.7


@pytest.mark.parametrize(
    ("increase", "spread", "alpha"), [(0.3, 0.5, 0.2), (0.0, 0.7, 0.3), (0.7, 0.9, 0.05), (1.0, 0.0, 0.05)]
)
def test_power_is_that_of_the_test_over_all_outcomes(increase, spread, alpha):
    """Every way in which six pairs can turn, with its probability, through the very test."""
    by_chance = min(spread**2, 1 - increase)
    share = {1: by_chance / 2 + increase, -1: by_chance / 2, 0: 1 - by_chance - increase}
    brute = 0.0
    for ways in itertools.product(share, repeat=6):
        brute += math.prod(share[way] for way in ways) * (sign_flip(ways) <= alpha)
    assert validation.chance_to_show(increase, 6, spread, alpha=alpha) == pytest.approx(brute, abs=1e-12)


def test_what_would_have_been_found_is_the_smallest_that_shows():
    """One pair in ten turns by chance: of 150 pairs an increase of 7.5 points, which forgets its own variance, shows in two
    of three audits and not in the eight of nine that two stages need."""
    spread, each_stage = math.sqrt(0.1), math.sqrt(0.8)
    found = validation.detectable_increase(150, spread, power=each_stage)
    assert found == pytest.approx(0.110, abs=1e-3)
    assert (
        validation.chance_to_show(found, 150, spread)
        >= each_stage
        > validation.chance_to_show(found - 1e-4, 150, spread)
    )
    assert validation.chance_to_show(0.075, 150, spread) < 0.7
    assert math.isnan(validation.detectable_increase(4, 0.1))  # four of four are p = 1/16
    assert math.isnan(validation.detectable_increase(0, 1.0)) and math.isnan(validation.detectable_increase(9, NAN))


def test_the_level_is_95_percent_and_nothing_left_out_unless_told_otherwise():
    generator = np.random.default_rng(7)
    before, after = generator.integers(0, 2, (2, 30, 2)).astype(float)
    groups = [str(n // 2) for n in range(30)]
    plain = effect("b", before, after, groups)
    assert plain == effect("b", before, after, groups, level=0.95, left_out=0) and plain.left_out == 0
    wide = effect("b", before, after, groups, level=0.99)
    assert wide.lower < plain.lower < plain.increase < plain.upper < wide.upper
    domains = [str(n % 2) for n in range(30)]
    assert validation.by_domain("b", before, after, groups, domains) == validation.by_domain(
        "b", before, after, groups, domains, level=0.95
    )
    rows = list(range(1, 30, 2))
    one = effect("b", before[rows], after[rows], [groups[row] for row in rows], level=0.8)
    assert validation.by_domain("b", before, after, groups, domains, level=0.8)["1"] == one
    assert validation.position_bias(before, groups) == validation.position_bias(before, groups, level=0.95)
    assert validation.position_bias(before) == validation.position_bias(before, [f"g{n}" for n in range(30)])
    assert validation.position_bias(before, groups) != validation.position_bias(before)
    assert validation.position_bias(before, level=0.5).upper < validation.position_bias(before).upper


def test_the_interval_ends_at_what_can_be():
    before, after = np.ones((5, 2)), np.zeros((5, 2))
    after[0] = (1, 1)
    found = effect("b", before, after, list("abcde"))
    assert found.increase == 0.8 and found.upper == 1 and found.lower < 0.8
    found = effect("b", after, before, list("abcde"))
    assert found.increase == -0.8 and found.lower == -1 and found.upper > -0.8
    first = validation.position_bias([[1, 0]] * 5 + [[1, 1]])
    assert first.upper == 1 and first.first == 11 / 12
    assert validation.position_bias([[0, 1]] * 5 + [[1, 1]]).lower == 0


def test_what_would_be_found_unless_told_otherwise():
    spread = 0.5
    assert validation.chance_to_show(0.2, 40, spread) == validation.chance_to_show(0.2, 40, spread, tests=1, alpha=0.05)
    assert validation.chance_to_show(0.2, 40, spread, tests=4, alpha=0.2) == validation.chance_to_show(0.2, 40, spread)
    plain = validation.detectable_increase(40, spread)
    assert plain == validation.detectable_increase(40, spread, tests=1, alpha=0.05, power=0.8)
    for power, increase in ((0.8, plain), (0.5, validation.detectable_increase(40, spread, power=0.5))):
        assert validation.chance_to_show(increase, 40, spread) >= power
        assert validation.chance_to_show(increase - 1e-4, 40, spread) < power
    assert (
        validation.detectable_increase(40, spread, tests=3)
        > plain
        > validation.detectable_increase(40, spread, alpha=0.1)
    )
    assert validation.detectable_increase(1, 0.0, alpha=0.5, power=0.5) == 0.5  # the one pair has to turn
    assert math.isnan(validation.detectable_increase(1, 0.0, alpha=0.4, power=0.5))
    assert validation.detectable_increase(5, 0.0, power=1.0) == 1.0  # five of five, every time
    for pairs, its in ((-1, 0.5), (5, math.inf)):
        assert math.isnan(validation.detectable_increase(pairs, its))


@pytest.mark.parametrize(
    ("p", "adjusted_p", "discovery"),
    [
        ([0.01, 0.01, 0.01], [0.03, 0.03, 0.03], [0.01, 0.01, 0.01]),
        ([0.5, 0.01], [0.5, 0.02], [0.5, 0.02]),
        ([0.04, 0.03, 0.02, 0.01], [0.06, 0.06, 0.06, 0.04], [0.04, 0.04, 0.04, 0.04]),
        ([0.04, 0.001, NAN, 0.9], [0.08, 0.003, NAN, 0.9], [0.06, 0.003, NAN, 0.9]),
        ([NAN, NAN], [NAN, NAN], [NAN, NAN]),
        ([0.7], [0.7], [0.7]),
    ],
)
def test_more_corrections_by_hand(p, adjusted_p, discovery):
    assert holm(p) == pytest.approx(adjusted_p, nan_ok=True)
    assert validation.benjamini_hochberg(p) == pytest.approx(discovery, nan_ok=True)
    effects = [replace(effect("b", [[1, 1]], [[1, 1]], ["a"]), p_value=each) for each in p]
    told = [each.p_adjusted for each in validation.adjusted(effects, "benjamini-hochberg")]
    assert told == pytest.approx(discovery, nan_ok=True)


def test_the_published_orders_are_those_of_seed_42_unless_told_otherwise():
    pairs = pairs_of([True, False] * 20)
    plain, same, other = (
        validation.published_orders(pairs, shuffled=True, **how) for how in ({}, {"seed": 42}, {"seed": 43})
    )
    assert plain.tolist() == same.tolist() != other.tolist()
    exchanged = np.random.default_rng(42).random(40) < 0.5
    assert plain.tolist() == [(n % 2) ^ bool(turned) for n, turned in enumerate(exchanged)]


@pytest.mark.parametrize("values", [[[0.5, 1]], [[-1, 0]], [[2, 1]], [[math.inf, 1]]])
def test_other_numbers_are_no_verdicts(values):
    with pytest.raises(ValueError, match=r"^verdicts must be 1 \(right\), 0 \(wrong\) or nan \(none\)\.$"):
        validation.error(values)
    with pytest.raises(ValueError, match=r"^verdicts of 1 pairs in two orders expected, found shape \(1, 3\)\.$"):
        validation.position_bias([[1, 0, 1]])


def test_no_increase_at_all_is_none_that_is_found():
    """Even where chance alone shows often enough, the least that can be meant by an increase is one step."""
    assert validation.chance_to_show(0.0, 50, 0.5, alpha=0.3) > 0.01
    assert validation.detectable_increase(50, 0.5, alpha=0.3, power=0.01) == 1e-4
