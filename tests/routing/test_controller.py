"""The budget of calls: its bound for every order, use and quality on stationary traffic, its account over restarts."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.core.errors import BadInput
from equipoise.routing.controller import UNIT, WARM, WINDOW, Controller


def calls_of(controller, scores):
    return np.array([controller.decide(float(score)).route == "upstream" for score in scores])


def check_bound(calls, budget, burst):
    """Every run of requests, from the first on and any other, in exact arithmetic on the counts alone."""
    b = Fraction(repr(budget))
    ahead = lowest = 0  # calls minus what the budget gives, in parts of its denominator
    for call in calls:
        ahead += int(call) * b.denominator - b.numerator
        assert ahead <= 0
        lowest = min(lowest, ahead)
        assert ahead - lowest <= Fraction(burst) * b.denominator


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.5, 0.9, -3.0, 1e300, math.nan, math.inf]), max_size=400),
    st.sampled_from([0.0, 0.01, 0.29, 0.3, 1 / 3, 0.999, 1.0]),
    st.sampled_from([4.0, 7.5, 64.0]),
)
def test_no_order_of_scores_breaks_the_bound(scores, budget, burst):
    check_bound(calls_of(Controller(budget, 0.4, burst=burst), scores), budget, burst)


@pytest.mark.parametrize("budget", [0.05, 0.7])
def test_an_adversary_that_sees_the_threshold_does_not_break_the_bound(budget):
    """It saves up with easy prompts, then sends prompts just below the threshold for as long as they are called."""
    controller, calls = Controller(budget, 0.5, burst=16), []
    for turn in range(4500):
        saving = turn % 1500 < 1200
        score = 1.0 + turn if saving else controller.threshold_now - 1e-9
        calls.append(controller.decide(score).route == "upstream")
    check_bound(calls, budget, 16)
    ahead = np.cumsum(np.array(calls) - budget)
    assert max(ahead[i + 40] - ahead[i] for i in range(len(ahead) - 40)) > 5  # it tried: a burst there was


@pytest.mark.parametrize("order", ["ascending", "descending", "hard first", "easy first", "alternating"])
def test_sorted_traffic_keeps_the_bound(order):
    scores = np.linspace(0, 1, 3000)
    scores = {
        "ascending": scores,
        "descending": scores[::-1],
        "hard first": np.repeat([0.0, 1.0], 1500),
        "easy first": np.repeat([1.0, 0.0], 1500),
        "alternating": np.tile([0.0, 1.0], 1500),
    }[order]
    calls = calls_of(Controller(0.3, 0.5), scores)
    check_bound(calls, 0.3, 64)
    if order == "alternating":  # half are hard and 3 in 10 may go: those of the hard half
        assert not calls[1000:][1::2].any()


def traffic(seed, n, distance):
    """Scores, and whether the weak model is right: half the time, with normal scores `distance` apart.

    0.74 apart is an AUROC of 0.70, 2.33 one of 0.95.
    """
    generator = np.random.default_rng(seed)
    right = generator.random(n) < 0.5
    return generator.normal(size=n) + distance * right, right


@pytest.mark.parametrize(("budget", "distance"), [(0.05, 2.33), (0.3, 0.74), (0.3, 2.33), (0.7, 0.74)])
def test_stationary_traffic_uses_the_budget_and_loses_at_most_a_point(budget, distance):
    scores, right = traffic(1, 10_000, distance)
    calls = calls_of(Controller(budget, 100.0), scores)  # a threshold of another world: everything is below it
    assert 0.95 * budget * 10_000 <= calls.sum() <= budget * 10_000
    best = np.zeros(10_000, bool)
    best[np.argsort(scores)[: int(budget * 10_000)]] = True  # the fixed threshold that is best in hindsight
    quality, best_quality = np.where(calls, 1, right).mean(), np.where(best, 1, right).mean()
    assert best_quality - quality <= 0.01
    chance = budget + (1 - budget) * right.mean()
    assert quality - chance > 0.7 * (best_quality - chance)


def test_the_shape_of_scores_does_not_matter():
    """A quantile: what keeps the order of scores keeps every decision once the router's threshold has had its say."""
    scores, _ = traffic(2, 3000, 1.0)
    calls = calls_of(Controller(0.3, math.inf), scores)
    assert (calls == calls_of(Controller(0.3, math.inf), 1e-9 * np.exp(scores))).all()
    assert (calls == calls_of(Controller(0.3, math.inf), 1e9 * scores - 4)).all()


def test_equal_scores_share_the_budget():
    calls = calls_of(Controller(0.3, 0.5), np.full(4000, 0.7))
    assert 0.95 * 1200 <= calls.sum() <= 1200
    halves = [calls[1000:][part::2].sum() for part in (0, 1)]
    assert abs(halves[0] - halves[1]) < 0.2 * sum(halves)
    scores = np.random.default_rng(0).choice([0.0, 1.0], 6000, p=[0.2, 0.8])  # fewer hard ones than the budget allows
    calls = calls_of(Controller(0.3, 0.5), scores)
    assert calls[1000:][scores[1000:] == 0].mean() > 0.97
    assert 0.95 * 1800 <= calls.sum() <= 1800


def test_a_drift_is_followed():
    scores, _ = traffic(3, 6000, 1.0)
    scores[3000:] += 50
    calls = calls_of(Controller(0.3, 0.5), scores)
    assert 0.9 * 900 <= calls[4000:].sum() * 900 / 600 <= 1.1 * 900


def test_the_first_requests_go_by_the_routers_threshold():
    controller = Controller(1.0, 0.5)
    scores = np.tile([0.4, 0.6], WARM // 2)
    assert (calls_of(controller, scores) == (scores < 0.5)).all()


def test_without_a_budget_the_threshold_decides_alone():
    controller = Controller(None, 0.5)
    scores = np.random.default_rng(0).random(500)
    assert (calls_of(controller, scores) == (scores < 0.5)).all()
    assert controller.level == math.inf
    assert controller.share == (scores < 0.5).mean()
    assert controller.decide(math.nan).route == "upstream"


def test_without_a_budget_nothing_is_held_and_all_is_counted():
    controller = Controller(None, 0.5)
    for score in (0.1, 0.9, 0.2):
        controller.decide(score)
    assert controller.force().why == "forced" and controller.may_call() and controller.calls == 3
    assert controller.held_from == 0 and controller._level == 0 and controller.threshold_now == 0.5
    never, half = Controller(0.0, 0.5), Controller(0.5, 0.5)
    assert never.held_from == half.held_from == 0
    for each in (never, half):
        for _ in range(3):
            each.force()
    assert never.held_from == math.inf and half.held_from == 6  # three calls are half of six requests


def test_a_budget_of_every_request_sends_what_ranks_anywhere():
    whole, nearly = Controller(1.0, 0.5), Controller(0.9, 0.5)
    for controller in (whole, nearly):
        for score in np.linspace(0, 1, WARM + 8):
            controller.decide(float(score))
    assert whole._quantile() == 1.0 and whole.threshold_now == 1.0
    assert whole.decide(0.999).route == "upstream"
    for controller in (whole, nearly):
        for _ in range(400):
            controller.force()
    assert whole._quantile() == 1.0 and nearly._quantile() == 0.0  # of which 40 calls less the saved ones are owed


def test_forced_calls_count_and_are_paid_back():
    controller = Controller(0.25, 1.0)
    for _ in range(100):
        assert controller.force().why == "forced"
    assert controller.level == 25 - 100
    calls = calls_of(controller, np.zeros(301))
    assert not calls[:300].any()  # 300 deposits pay for 75 calls
    assert controller.spent == WARM  # after these the threshold itself follows the empty account
    assert calls_of(controller, np.zeros(400)).sum() >= 90
    assert controller.calls <= 0.25 * controller.requests
    assert controller.forced == 100


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=300), st.sampled_from([0.1, 0.3]))
def test_no_call_is_chosen_above_the_budget_whatever_is_forced(requests, budget):
    controller = Controller(budget, 0.5, burst=8)
    for forced, score in requests:
        decision = controller.force() if forced else controller.decide(score)
        if decision.why == "hard":
            assert controller.calls <= Fraction(repr(budget)) * controller.requests
        assert controller.calls <= Fraction(repr(budget)) * controller.requests + controller.forced


def test_a_restart_changes_no_decision():
    scores, _ = traffic(4, 3000, 1.0)
    whole = Controller(0.3, 0.5)
    expected = [whole.decide(float(score)) for score in scores]
    controller, seen = Controller(0.3, 0.5), []
    for at, score in enumerate(scores):
        if at % 250 == 0:
            state = json.loads(json.dumps(controller.state()))
            controller = Controller(0.3, 0.5)
            controller.restore(state)
        seen.append(controller.decide(float(score)))
    assert seen == expected
    assert controller.state() == whole.state()


def test_a_restart_with_another_router_keeps_the_account_and_no_scores():
    controller = Controller(0.3, 0.5)
    calls_of(controller, np.random.default_rng(0).random(500))
    other = Controller(0.3, 0.2)
    other.restore(controller.state(), scores=False)
    assert (other.calls, other.requests, other.level) == (controller.calls, 500, controller.level)
    assert other.threshold_now == 0.2


BUDGETS = [None, 0.0, 0.01, 0.29, 0.3, 0.9, 1.0]
SERVED = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.4, 0.6, 1.0, math.nan])), min_size=1, max_size=60)


@given(st.lists(st.tuples(st.sampled_from(BUDGETS), SERVED), min_size=1, max_size=5), st.sampled_from([4.0, 64.0]))
def test_no_change_of_budget_breaks_the_bound(times, burst):
    """Each budget in turn, by brute force on the counts alone: over the whole account, and in every run of requests."""
    state = None
    ahead = lowest = 0  # hundredths of a call: calls, chosen or forced, minus what each request's budget gives
    for budget, served in times:
        controller = Controller(budget, 0.5, burst=burst)
        if state is not None:
            controller.restore(json.loads(json.dumps(state)))
        if budget is None:
            ahead = lowest = 0
        b, before, forced = round(100 * (budget or 0)), controller.calls, controller.forced
        within = 100 * before <= b * controller.requests + 100 * forced
        for is_forced, score in served:
            decision = controller.force() if is_forced else controller.decide(score)
            if budget is None:
                continue
            calls, since, gives = 100 * controller.calls, 100 * (controller.forced - forced), b * controller.requests
            assert calls <= max(100 * before, gives) + since
            assert not within or calls <= gives + 100 * controller.forced
            ahead += 100 * (decision.route == "upstream") - b
            lowest = min(lowest, ahead)
            if decision.why == "hard":
                assert calls <= gives
                assert ahead - lowest <= 100 * burst  # every run of requests that ends here
        state = controller.state()


@pytest.mark.parametrize("before", [None, 0.9])
def test_calls_that_another_budget_allowed_are_paid_back_first(before):
    """1,000 requests that were all worth a call; 0.3 of the requests is reached at c / 0.3, and kept from there."""
    controller = Controller(before, 0.5)
    calls_of(controller, np.zeros(1000))
    made = controller.calls
    other = Controller(0.3, 0.5)
    other.restore(controller.state())
    assert other.held_from == math.ceil(Fraction(made * 10, 3))
    assert other.level == pytest.approx(300 - made)
    paid = calls_of(other, np.zeros(math.ceil(made / 0.3) - 1000))
    assert not paid.any() and other.share <= 0.3
    later = calls_of(other, np.random.default_rng(0).random(4000))
    assert later.sum() > 0.9 * 0.3 * 4000 and other.calls <= 0.3 * other.requests
    more = Controller(0.9, 0.5)  # a larger budget: nothing is owed, and nothing is given for the past
    more.restore(other.state())
    assert more.level == other.level and more.held_from <= more.requests


def test_a_budget_is_never_rounded_up():
    assert Controller(0.29, 0.5)._deposit == 290_000  # 0.29 * 1e6 is a little less in floating point
    assert Controller(1 / 3, 0.5)._deposit * 3 < UNIT


@pytest.mark.parametrize(
    ("arguments", "options", "word"),
    [((1.2, 0.5), {}, "budget"), ((math.nan, 0.5), {}, "budget"), ((0.3, math.nan), {}, "threshold"),
     ((0.3, 0.5), {"burst": 1}, "burst"), ((0.3, 0.5), {"burst": math.inf}, "burst")],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(arguments, options, word):
    with pytest.raises(BadInput, match=word):
        Controller(*arguments, **options)


@pytest.mark.parametrize(
    "change",
    [{"calls": "7"}, {"level": 0.5}, {"recent": None}, {"recent": [math.nan]}, {"recent": ["a"]}, {"carry": 1.5},
     {"requests": True}],
)  # fmt: skip
def test_a_state_that_is_none_is_refused(change):
    controller = Controller(0.3, 0.5)
    with pytest.raises(BadInput):
        controller.restore({**controller.state(), **change})


def decided_by_the_equations(budget, router, burst, requests):
    """(route, why, threshold, level, share) of each request by the module's equations; None is a request that is forced."""
    level, carry, calls, scores, found = Fraction(0), 0.0, 0, [], []
    b = Fraction(repr(budget))

    def share():
        target = min(burst / 2, max(2, 0.02 * budget * t))
        return min(1.0, budget * (1 + min(1.0, max(-1.0, float(level) / target - 1)) ** 3))

    def threshold():
        return sorted(scores)[min(int(share() * len(scores)), len(scores) - 1)] if len(scores) >= 32 else router

    for t, score in enumerate(requests, start=1):
        level = min(Fraction(burst), level + b)
        part = 1.0
        if score is not None and math.isfinite(score):
            warm = len(scores) >= 32
            scores = [*scores, score][-1000:]
            below, equal = sum(each < score for each in scores), scores.count(score)
            part = float(score < router)
            if warm:
                part = min(1.0, max(0.0, (share() - below / len(scores)) / (equal / len(scores))))
        if score is None:
            level, calls = level - 1, calls + 1
            found.append(("upstream", "forced", threshold(), float(level), calls / t))
            continue
        at = threshold() if warm or not math.isfinite(score) else router
        carry += part
        hard = carry >= 1 - 1e-9
        carry -= hard
        called = hard and level >= 1
        level, calls = level - called, calls + called
        why = "hard" if called else "spent" if hard else "easy"
        found.append(("upstream" if called else "local", why, at, float(level), calls / t))
    return found


@pytest.mark.parametrize(("budget", "burst", "router"), [(0.3, 64.0, 0.5), (0.05, 4.0, 0.2), (0.7, 10.0, 0.5)])
def test_decisions_are_those_of_the_equations(budget, burst, router):
    """Of continuous scores, whose order changes at a half; some requests are forced, some have no score."""
    generator = np.random.default_rng(5)
    requests = [float(each) for each in generator.random(1300)]
    requests[600:] = [each / 2 for each in requests[600:]]
    requests[50:600:23] = [None] * len(requests[50:600:23])
    requests[45:600:37] = [math.nan] * len(requests[45:600:37])
    controller, found = Controller(budget, router, burst=burst), []
    for score in requests:
        one = controller.force() if score is None else controller.decide(score)
        found.append((one.route, one.why, one.threshold, one.level, one.share))
        assert one.score == score or math.isnan(one.score)
    expected = decided_by_the_equations(budget, router, burst, requests)
    assert len(expected) > WINDOW
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one[:2] == other[:2] and one[2:] == pytest.approx(other[2:]), place


def test_the_share_of_calls_by_hand():
    """target = min(burst / 2, max(2, 0.02 b t)); q = b (1 + (level / target - 1)^3), the cube within [-1, 1]."""
    controller = Controller(0.5, 0.5, burst=20.0)
    for requests, level, share in (
        (10, 2, 0.5), (10, 3, 0.5 * (1 + 1 / 8)), (10, 1, 0.5 * (1 - 1 / 8)), (10, 0, 0.0), (10, -7, 0.0), (10, 9, 1.0),
        (400, 4, 0.5), (400, 6, 0.5 * (1 + 1 / 8)), (3000, 10, 0.5), (3000, 15, 0.5 * (1 + 1 / 8)),
    ):  # fmt: skip
        controller.requests, controller._level = requests, level * UNIT
        assert controller._quantile() == pytest.approx(share, abs=1e-12)
    most = Controller(0.8, 0.5)
    most.requests, most._level = 10, 4 * UNIT
    assert most._quantile() == 1.0


def test_equal_scores_share_what_is_left_above_those_below():
    """32 scores, of them 8 below and 16 equal to the next: of q = 0.5 the 17 equal ones get (0.5 - 8/33) / (17/33)."""
    controller = Controller(0.5, 0.5, burst=20.0)
    for score in np.repeat([0.1, 0.4, 0.9], [8, 16, 8]):
        controller.decide(float(score))
    controller.requests, controller._level = 400, 4 * UNIT
    threshold, share = controller._threshold(0.4)
    assert (threshold, share) == (0.4, pytest.approx((0.5 - 8 / 33) / (17 / 33)))
    assert controller._threshold(0.05)[1] == 1.0 and controller._threshold(0.95)[1] == 0.0
    controller._carry = 1 - 0.5
    controller._threshold = lambda _: (0.4, 0.5)  # type: ignore[method-assign]
    assert controller.decide(0.4).why == "hard" and controller._carry == 0.0


def test_a_call_needs_a_whole_one_and_the_ends_of_what_is_allowed():
    controller = Controller(0.5, 1.0, burst=4.0)
    assert math.isnan(controller.share) and not controller.may_call()
    assert [controller.decide(0.0).why for _ in range(4)] == ["spent", "hard", "spent", "hard"]
    assert (controller.requests, controller.calls, controller.spent, controller.share) == (4, 2, 2, 0.5)
    assert Controller(0.0, 0.5).budget == 0 and Controller(1.0, 0.5).budget == 1
    assert Controller(0.5, 0.5, burst=1e9).burst == 1e9 and controller.burst == 4 and Controller(0.5, 0.5).burst == 64
    for budget, burst in ((-0.01, 64.0), (1.01, 64.0), (0.5, 3.99), (0.5, 1.1e9)):
        with pytest.raises(BadInput, match=r"is (-0\.01|1\.01|3\.99|1100000000)"):
            Controller(budget, 0.5, burst=burst)
    state = controller.state()
    for carry in (0.0, 0.999):
        controller.restore({**state, "carry": carry})
        assert controller._carry == carry
    for carry in (-0.001, 1.0):
        with pytest.raises(BadInput, match="no account"):
            controller.restore({**state, "carry": carry})
    scores = [float(each) for each in range(WINDOW + 5)]
    controller.restore({**state, "recent": scores, "level": 9 * UNIT})
    assert controller.state()["recent"] == scores[5:] and controller.level == 0.0  # half of 4, less the two calls
    saved = Controller(1.0, 0.5, burst=4.0)
    saved.restore({**state, "requests": 100, "level": 9 * UNIT})
    assert saved.level == 4.0
