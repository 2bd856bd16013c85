"""Thresholds against the binomial distribution and by simulation: the budget or the quality holds as often as stated."""

import math
from contextlib import suppress

import numpy as np
import pytest
from scipy import stats

from equipoise.core.errors import BadInput
from equipoise.core.scores import auroc
from equipoise.routing import threshold
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
