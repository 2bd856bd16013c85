"""Thresholds against the binomial distribution and by simulation: the budget or the quality holds as often as stated."""

import itertools
import math
from contextlib import suppress

import numpy as np
import pytest
from scipy import stats

from equipoise.core.errors import BadInput
from equipoise.core.scores import auroc
from equipoise.core.shares import Bounded
from equipoise.core.statistics import item_interval, wilson
from equipoise.routing import threshold
from equipoise.routing.measured import Threshold
from equipoise.routing.thresholds import _p_value


@pytest.mark.parametrize(("n", "calls", "confidence"), [(100, 0.3, 0.95), (57, 0.1, 0.9), (400, 0.5, 0.99)])
def test_a_budget_takes_the_last_order_statistic_that_holds_it(n, calls, confidence):
    """P(the k-th of n uniform numbers <= c) is P(at least k of n numbers are <= c), a binomial tail."""
    score = np.random.default_rng(n).permutation(n) / n
    found = threshold(score, calls=calls, confidence=confidence)
    k = max(k for k in range(1, n + 1) if stats.binom.sf(k - 1, n, calls) >= confidence)
    assert found.value == np.sort(score)[k - 1]
    assert found.calls.value == pytest.approx((k - 1) / n)
    assert found.calls.value < calls and found.calls.lower < found.calls.value < found.calls.upper
    assert math.isnan(found.quality.value)


def test_a_budget_is_kept_as_often_as_stated():
    generator = np.random.default_rng(0)
    kept, inside = [], []
    for _ in range(1500):
        found = threshold(generator.random(200), calls=0.3)
        kept.append(found.value <= 0.3)  # of uniform scores the share of calls is the threshold
        inside.append(found.calls.lower <= found.value <= found.calls.upper)
    assert 0.94 < np.mean(kept) < 0.985
    assert np.mean(inside) > 0.93


def test_equal_scores_go_together_and_never_over_the_budget():
    score = np.repeat([0.1, 0.5, 0.9], 100)
    found = threshold(score, calls=0.3, confidence=0.5)
    assert found.value == 0.1 and found.calls.value == 0
    half = threshold(score, calls=0.5)
    assert half.value == 0.5 and half.calls.value == pytest.approx(1 / 3)


def test_ends_of_the_budget():
    score = np.arange(20.0)
    everything = threshold(score, calls=1)
    assert everything.value == math.inf and everything.calls.value == 1
    nothing = threshold(score, calls=0)
    assert nothing.value == -math.inf and nothing.calls.value == 0 and not nothing.note
    few = threshold(score, calls=0.05)
    assert few.value == -math.inf and "20 prompts cannot show" in few.note


def quality_of(t):
    """Scores uniform, weak right with the probability of its score, strong with 0.9: A at the threshold t."""
    return 0.9 * t + (1 - t**2) / 2


def drawn(generator, n):
    score = generator.random(n)
    return score, (generator.random(n) < score).astype(float), (generator.random(n) < 0.9).astype(float)


@pytest.mark.slow
def test_a_quality_is_reached_as_often_as_stated():
    generator = np.random.default_rng(1)
    reached, rates = [], []
    for _ in range(120):
        score, weak, strong = drawn(generator, 300)
        found = threshold(score, quality=0.7, weak=weak, strong=strong)
        reached.append(quality_of(min(found.value, 1.0)) >= 0.7)
        rates.append(found.calls.value)
    assert np.mean(reached) > 0.9
    exact = 0.9 - math.sqrt(0.81 - 2 * 0.2)  # quality_of(exact) is 0.7
    assert exact < np.mean(rates) < exact + 0.25


def test_p_values_are_valid_for_each_kind_of_quality():
    generator = np.random.default_rng(2)
    makers = {
        "right or wrong": lambda: (generator.random(80) < 0.7).astype(float),
        "in between": lambda: np.clip(generator.normal(0.7, 0.15, 80), 0.4, 1.0),
        "ten points": lambda: generator.normal(7, 1.5, 80),
    }
    for name, make in makers.items():
        target = 7.0 if name == "ten points" else 0.7
        p = np.array([_p_value(make(), target, None) for _ in range(1000)])
        assert (p <= 0.05).mean() < 0.07, name
        assert _p_value(make() + (0.2 * target if name != "right or wrong" else 0), 0.6 * target, None) < 0.01
    clustered = np.repeat(generator.random(20) < 0.7, 10).astype(float)
    assert _p_value(clustered, 0.5, np.repeat(range(20), 10)) > 5 * _p_value(clustered, 0.5, None)
    assert _p_value(np.ones(50), 0.9, None) == pytest.approx(0.9**50)
    assert _p_value(np.zeros(50), 0.9, None) == 1.0


def test_held_out_prompts_speak_for_or_against():
    generator = np.random.default_rng(3)
    score, weak, strong = drawn(generator, 500)
    found = threshold(score, calls=0.3, weak=weak, strong=strong)
    assert found.quality.lower < found.quality.value < found.quality.upper
    other = drawn(generator, 2000)
    held = found.check(*other)
    assert held.verdict == "met" and held.n == 2000
    assert held.quality.value == pytest.approx(np.where(other[0] < found.value, other[2], other[1]).mean())
    assert found.check(other[0] - 0.3).verdict == "refuted"  # the scores have drifted
    barely = found.check(np.r_[np.zeros(4), np.ones(8)])
    assert barely.verdict == "not refuted"
    aimed = threshold(score, quality=0.7, weak=weak, strong=strong)
    assert aimed.check(*drawn(generator, 2000)).verdict == "met"
    assert aimed.check(other[0], np.zeros(2000), np.zeros(2000)).verdict == "refuted"


def test_fewer_calls_than_where_it_was_chosen_are_a_drift():
    generator = np.random.default_rng(0)
    found = threshold(generator.random(400), calls=0.3)
    assert found.check(generator.random(400)).verdict in ("met", "not refuted")
    for score in (generator.random(400) + 0.5, generator.random(400) * 0.8 + 0.2):  # few or none are sent
        held = found.check(score)
        assert held.verdict == "drifted" and held.calls.upper < found.calls.lower
    assert found.check(generator.random(400) - 0.5).verdict == "refuted"
    assert found.check(np.ones(3)).verdict == "met"  # 0.7 ** 3 is no rarity
    assert found.check(np.ones(400), clusters=np.arange(400) // 200).verdict == "met"
    nothing, everything = threshold(generator.random(5), calls=0.01), threshold(generator.random(5), calls=1)
    assert nothing.check(np.ones(50)).verdict == everything.check(np.ones(50)).verdict == "met"
    weak, strong = (generator.random(400) < 0.6).astype(float), np.ones(400)
    aimed = threshold(generator.random(400), quality=0.7, weak=weak, strong=strong)
    assert aimed.check(np.zeros(400), weak, strong).verdict == "drifted"  # the quality is met, by all calls
    assert aimed.check(np.ones(400), strong, strong).verdict == "drifted"


@pytest.mark.parametrize("values", [None, 2, 5])
def test_prompts_of_the_same_kind_seldom_count_as_drifted(values):
    """Continuous scores, and scores of few values, whose ties all stay on one side of the threshold."""
    generator = np.random.default_rng(7)

    def drawn_scores(n):
        score = generator.random(n)
        return score if values is None else np.floor(score * values) / values

    verdicts = []
    for _ in range(300):
        found = threshold(drawn_scores(200), calls=0.65)
        verdicts.append(found.check(drawn_scores(400)).verdict)
    assert verdicts.count("drifted") <= 0.025 * 300


def test_what_cannot_be_chosen_is_refused():
    score, weak, strong = drawn(np.random.default_rng(4), 50)
    with pytest.raises(BadInput, match="one aim"):
        threshold(score)
    with pytest.raises(BadInput, match="one aim"):
        threshold(score, calls=0.1, quality=0.5)
    with pytest.raises(BadInput, match="give weak= and strong="):
        threshold(score, quality=0.5)
    with pytest.raises(BadInput, match="not shown even when every prompt goes to strong"):
        threshold(score, quality=0.99, weak=weak, strong=strong)
    with pytest.raises(BadInput, match="a share of the prompts"):
        threshold(score, calls=30)
    with pytest.raises(BadInput, match="confidence"):
        threshold(score, calls=0.3, confidence=95)
    with pytest.raises(BadInput, match="no score"):
        threshold([], calls=0.3)
    with pytest.raises(BadInput, match="or neither"):
        threshold(score, calls=0.3, weak=weak)
    for wrong in (math.nan, math.inf, -math.inf):
        with pytest.raises(BadInput, match="a finite number"):
            threshold(score, quality=wrong, weak=weak, strong=strong)
    with pytest.raises(BadInput, match=r"clusters are \[2\], for 50 prompts"):
        threshold(score, quality=0.5, weak=weak, strong=strong, clusters=[1, 2])
    with pytest.raises(BadInput, match="candidates"):
        threshold(score, calls=0.3, candidates=0)
    chosen = threshold(score, calls=0.5)
    with pytest.raises(BadInput, match="for 50 prompts"):
        chosen.check(score, weak, strong, clusters=[1, 2])


def test_bounds_of_clusters_are_said_to_be_of_single_prompts():
    score = np.arange(40.0)
    pairs = threshold(score, calls=0.5, clusters=np.arange(40) // 2)
    assert pairs.note.startswith("The bound holds for prompts that are drawn one by one")
    assert not threshold(score, calls=0.5, clusters=np.arange(40)[::-1]).note  # each its own
    assert pairs.value == threshold(score, calls=0.5).value
    few = threshold(score, calls=0.01, clusters=np.arange(40) // 2).note
    assert few.startswith("40 prompts cannot show") and "a lower confidence. The bound holds" in few


def test_equal_scores_and_few_prompts_are_searched_to_the_end():
    """Of 30 prompts in three steps of score, a hundred rates come to four thresholds: none is left out for a repetition."""
    score = np.repeat([0.2, 0.5, 0.8], 10)
    weak, strong = (score > 0.3).astype(float), np.ones(30)
    weak[[10, 20]] = 0.0
    found = [threshold(score, quality=q, weak=weak, strong=strong, confidence=0.6).value for q in (0.3, 0.8, 0.965)]
    assert found == [-math.inf, 0.5, math.inf]


def test_clusters_that_agree_are_no_certainty():
    """K clusters that are all right show a quality q at best as K prompts would: q^K."""
    right, clusters = np.ones(60), np.arange(60) % 3
    assert _p_value(right, 0.99, clusters) == pytest.approx(0.99**3)
    assert _p_value(right, 0.3, clusters) == pytest.approx(0.3**3)
    with pytest.raises(BadInput, match="not shown even when every prompt goes to strong"):
        threshold(np.arange(60.0), quality=0.99, weak=right, strong=right, clusters=clusters)
    # On a scale of their own: between 1 and 9, which other rates of calls have shown.
    assert _p_value(np.full(5, 9.0), 5.0, None, (1.0, 9.0)) == pytest.approx(0.5**5)
    assert _p_value(np.full(5, 9.0), 8.0, None) == 1.0
    assert _p_value(np.full(5, 9.0), 0.5, None, (1.0, 9.0)) == 0.0


def test_the_best_of_several_scores_is_held_at_a_share_of_the_error():
    generator = np.random.default_rng(6)
    score, weak, strong = drawn(generator, 400)
    for aim in ({"calls": 0.3}, {"quality": 0.6, "weak": weak, "strong": strong}):
        found, alone = threshold(score, **aim, candidates=4), threshold(score, **aim, confidence=1 - 0.05 / 4)
        assert found.value == alone.value != threshold(score, **aim).value
        assert found.calls.upper == pytest.approx(alone.calls.upper) and found.confidence == 0.95


@pytest.mark.slow
def test_the_luckiest_of_three_scores_keeps_its_promise():
    """Scores of pure chance, of which the one that ranks best is taken: A(t) = 0.5 + 0.4 t."""
    generator = np.random.default_rng(6)
    missed = {1: 0, 3: 0}
    for _ in range(150):
        weak, strong = (generator.random(60) < 0.5).astype(float), (generator.random(60) < 0.9).astype(float)
        best = max((generator.random(60) for _ in range(3)), key=lambda score: auroc(score, weak))
        for candidates in missed:
            with suppress(BadInput):  # what is not shown is not promised
                found = threshold(best, quality=0.7, weak=weak, strong=strong, confidence=0.8, candidates=candidates)
                missed[candidates] += min(found.value, 1) < 0.5
    assert missed[3] < 0.15 * 150 < missed[1]


@pytest.mark.parametrize(("n", "calls"), [(100, 0.3), (57, 0.1), (20, 0.999)])
def test_bounds_of_a_budget_are_those_of_the_order_statistic(n, calls):
    """P(the k-th of n uniform numbers <= p) = P(at least k of n are): 0.025 at the lower bound, 0.975 at the upper."""
    found = threshold(np.arange(float(n)), calls=calls).calls
    k = round(found.value * n) + 1
    assert stats.binom.sf(k - 1, n, found.lower) == pytest.approx(0.025)
    assert stats.binom.sf(k - 1, n, found.upper) == pytest.approx(0.975)
    assert k == 20 or n > 20  # the last prompt of all is a threshold like others


def test_bounds_where_scores_are_equal():
    """Of 100 prompts 30 lie below the threshold for certain; at most as many as for the 41st of different scores."""
    found = threshold(np.repeat([0.1, 0.5, 0.9], [30, 40, 30]), calls=0.5)
    k = max(k for k in range(1, 101) if stats.binom.sf(k - 1, 100, 0.5) >= 0.95)
    assert found.value == 0.5 and found.calls.value == 0.3
    assert stats.binom.sf(29, 100, found.calls.lower) == pytest.approx(0.025)
    assert stats.binom.sf(k - 1, 100, found.calls.upper) == pytest.approx(0.975)
    one = threshold([0.1, *[0.5] * 99], calls=0.3).calls
    assert one.value == 0.01 and 1 - (1 - one.lower) ** 100 == pytest.approx(0.025)
    none = threshold(np.full(100, 0.5), calls=0.5).calls
    assert none.value == none.lower == 0 and stats.binom.sf(k - 1, 100, none.upper) == pytest.approx(0.975)
    assert threshold(np.arange(20.0), calls=1).calls == Bounded(1, 1, 1)
    assert threshold(np.arange(20.0), calls=0).calls == Bounded(0, 0, 0)


def test_ends_of_what_can_be_asked_for():
    score, ones = np.arange(50.0), np.ones(50)
    assert threshold(score, calls=0.5, confidence=0.5).confidence == 0.5
    for confidence in (0.49, 1.0):
        with pytest.raises(BadInput, match="confidence"):
            threshold(score, calls=0.5, confidence=confidence)
    with pytest.raises(BadInput, match="a share of the prompts"):
        threshold(score, calls=-0.1)
    # One prompt that is right shows a half with a confidence of a half, by both models' answers.
    assert threshold([1.0], quality=0.5, weak=[1], strong=[1], confidence=0.5).value == -math.inf
    with pytest.raises(BadInput, match="not shown"):
        threshold([1.0], quality=0.51, weak=[1], strong=[1], confidence=0.5)
    # Of 150 different scores all rates are tested, the one of no call too.
    found = threshold(np.arange(150.0), quality=0.5, weak=np.ones(150), strong=np.ones(150))
    assert found.value == -math.inf and found.calls.value == 0 and (found.n, found.aim) == (150, "quality")
    assert found.quality == Bounded(1, 1, 1)
    # 0.9 ** 50 is 0.005: weak is always right, and always wrong where it is said to be.
    never = threshold(score, quality=0.9, weak=np.zeros(50), strong=ones)
    assert never.calls.value > 0.9 and never.value == score[round(never.calls.value * 50)]


def test_the_last_rate_that_is_not_rejected_is_taken():
    """Brute force over all rates of 40 prompts: weak is right where the score is at least 20, strong always."""
    score, weak, strong = np.arange(40.0), (np.arange(40) >= 20).astype(float), np.ones(40)
    found = threshold(score, quality=0.7, weak=weak, strong=strong, confidence=0.9)
    shown = [k for k in range(41) if stats.binom.sf(20 + min(k, 20) - 1, 40, 0.7) <= 0.1]
    assert found.value == score[shown[0]] and found.calls.value == shown[0] / 40
    assert found.quality.value == pytest.approx((20 + shown[0]) / 40)
    sent = item_interval((score < found.value).astype(float), level=0.9)
    assert found.calls.lower == pytest.approx(float(sent.lower))
    assert found.calls.upper == pytest.approx(float(sent.upper))
    # Strong is right but three times in 40, which is beyond chance at 0.9: the interval of its rate ends at 1.
    many = threshold(score, quality=0.85, weak=np.zeros(40), strong=strong, confidence=0.9)
    assert many.calls.value == 0.95 and many.calls.upper == 1.0


def tail(n, k, p):
    """P(at least k of n), summed."""
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


def test_p_values_by_hand():
    assert _p_value(np.repeat([1.0, 0.0], [7, 3]), 0.5, None) == pytest.approx(tail(10, 7, 0.5))
    # Hoeffding: exp(-n (m log(m / q) + (1 - m) log((1 - m) / (1 - q)))); Bentkus: e P(at most n (1 - m) of n at 1 - q).
    values = np.array([0.5, 0.75, 1.0, 0.75] * 5)
    hoeffding = math.exp(-20 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)))
    bentkus = math.e * (1 - tail(20, 6, 0.5))
    assert _p_value(values, 0.5, None) == pytest.approx(bentkus) and bentkus < hoeffding
    few = values[:4]
    assert _p_value(few, 0.5, None) == pytest.approx(hoeffding ** (1 / 5)) and hoeffding ** (1 / 5) < 0.8
    skewed = math.exp(-4 * (0.75 * math.log(0.75 / 0.2) + 0.25 * math.log(0.25 / 0.8)))
    assert _p_value(few, 0.2, None) == pytest.approx(min(skewed, math.e * (1 - tail(4, 2, 0.8))))
    assert _p_value(few, 0.75, None) == _p_value(few, 0.8, None) == 1.0
    # A mean that rounds to 1 of what is not all 1: no logarithm of 0.
    assert _p_value(np.array([np.nextafter(1, 0), 1.0, 1.0, 1.0]), 0.5, None) == pytest.approx(0.5**4)


def student(means, quality):
    """Of the mean of equal clusters."""
    return float(stats.ttest_1samp(means, quality, alternative="greater").pvalue)


def test_p_values_of_students_t_by_hand():
    clusters = np.repeat(range(4), 2)
    values = np.array([0.5, 1.0, 0.9, 0.6, 1.0, 1.0, 0.8, 0.6])
    by_t = student([0.75, 0.75, 1.0, 0.7], 0.6)
    assert _p_value(values, 0.6, clusters) == pytest.approx(max(by_t, 0.6**4)) and by_t < 0.6**4
    assert _p_value(values, 0.3, clusters) == pytest.approx(max(student([0.75, 0.75, 1.0, 0.7], 0.3), 0.3**4))
    assert _p_value(values, 0.78, clusters) == pytest.approx(student([0.75, 0.75, 1.0, 0.7], 0.78))
    # Beyond 0 to 1 on one side, on the other, and where only the aim is: on the scale of the values themselves.
    for wide, q in (([-0.5, 0.9, 0.8, 0.7], 0.2), ([0.4, 1.4, 0.8, 0.7], 0.5), ([0.5, 0.75, 1.0, 0.5], -0.2)):
        low, high = min(wide), max(wide)
        expected = max(student(wide, q), max(0.0, (q - low) / (high - low)) ** 4)
        assert _p_value(np.array(wide), q, None) == pytest.approx(expected)
    right = np.array([1.0, 0.0, 1.0, 1.0])
    assert _p_value(right, 0.0, None) == pytest.approx(student(right, 0.0))
    # Nothing varies: no chance at all, but for what K prompts at the upper end can show.
    nines = np.full(4, 9.0)
    assert _p_value(nines, 0.5, None, (1.0, 9.0)) == 0.0
    assert _p_value(nines, 9.0, None, (1.0, 10.0)) == pytest.approx((8 / 9) ** 4)
    assert _p_value(nines, 9.5, None, (1.0, 9.0)) == _p_value(nines, 9.5, None, (1.0, 20.0)) == 1.0
    assert _p_value(nines[:1], 5.0, None, (1.0, 9.0)) == 1.0  # of one prompt nothing is known


def test_a_share_of_all_or_of_none_has_the_bounds_of_wilson():
    chosen = Threshold(0.5, "calls", 0.3, 0.95, 10, Bounded(0.3, 0.0, 1.0), Bounded(math.nan, math.nan, math.nan))
    clusters = np.arange(40) // 4
    for score, value in ((np.zeros(40), 1.0), (np.ones(40), 0.0)):
        for groups, n in ((None, 40), (clusters, 10)):
            found = chosen.check(score, clusters=groups).calls
            assert found == Bounded(value, *(pytest.approx(each) for each in wilson(value * n, n)))
            assert 0 < found.upper - found.lower < 1
    one = chosen.check(np.r_[0.0, np.ones(39)]).calls
    assert one.value == 1 / 40 and one.lower == 0.0 and one.upper == pytest.approx(0.025 + 0.025 * 2.0227, abs=1e-5)
    most = chosen.check(np.r_[1.0, np.zeros(39)]).calls
    assert most.upper == 1.0 and most.lower == pytest.approx(1 - one.upper)


def test_verdicts_at_their_ends():
    unknown = Bounded(math.nan, math.nan, math.nan)

    def verdict(aim, target, score, weak=None, strong=None, bounds=(0.0, 1.0)):
        chosen = Threshold(0.5, aim, target, 0.95, 10, Bounded(0.3, *bounds), unknown)
        return chosen.check(score, weak, strong).verdict

    half = np.tile([0.0, 1.0], 20)
    assert verdict("calls", 0.0, np.ones(40)) == "met" == verdict("calls", 0.5, half)
    assert verdict("calls", 0.45, half) == "not refuted" and verdict("calls", 0.2, half) == "refuted"
    ones, mixed = np.ones(40), np.r_[np.zeros(4), np.ones(36)]
    assert verdict("quality", 1.0, half, ones, ones) == "met" and verdict("quality", 1.1, half, ones, ones) == "refuted"
    assert (
        verdict("quality", 0.9, ones, mixed, ones) == "met"
        and verdict("quality", 0.91, ones, mixed, ones) == "not refuted"
    )
    calls = Threshold(0.5, "calls", 0.5, 0.95, 10, Bounded(0.5, 0.0, 1.0), unknown).check(half).calls
    for lower, upper in itertools.product((calls.upper, calls.lower), repeat=2):
        assert verdict("calls", 0.5, half, bounds=(lower, upper)) == "met"
    assert verdict("calls", 0.5, half, bounds=(np.nextafter(calls.upper, 1), 1.0)) == "drifted"
    assert verdict("calls", 0.5, half, bounds=(0.0, np.nextafter(calls.lower, 0))) == "drifted"
