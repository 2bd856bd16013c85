"""A verdict does not hang on the unit of what was measured, on an infinity, or on an interval without width."""

import math

import numpy as np
import pytest
from scipy import stats

from equipoise.core.statistics import auroc, half_width, mean_interval, wilson
from equipoise.study.claims import Claim, Matched, better, between, both, matched, statistic
from equipoise.study.declare import Outcome
from equipoise.study.judging import design_notes, judge
from judging_results import Book, declare

PAIR = {"arm": "pcgrad", "rival": "pcgrad-global"}
ARMS = ("pcgrad", "pcgrad-global")
UNITS = [1e-9, 1.0, 1e9]


def claim(test):
    return Claim("x", source="abstract", test=test)


def study(*tests, outcomes=None, seeds=4, **more):
    return declare(*map(claim, tests), outcomes=outcomes, arms=ARMS, seeds=seeds, **more)


def first(book):
    return judge(book.study, book.results()).verdicts[0]


def tokens(test, log, unit, spread=0.02, seeds=4):
    """The arm needs about 100,000 tokens, its rival some 20 % more, item by item."""
    generator = np.random.default_rng(3)
    book = Book(study(test, outcomes=[Outcome("tokens", better="lower", log=log)], seeds=seeds))
    items = 1e5 * np.exp(generator.standard_normal(30))
    for seed in range(seeds):
        book.score("pcgrad", seed, "tokens", unit * items)
        book.score("pcgrad-global", seed, "tokens", unit * items * 1.2 * np.exp(spread * generator.standard_normal(30)))
    return book


# --- units ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("log", [True, False])
def test_a_difference_of_large_values_is_no_rounding(log, unit):
    verdict = first(tokens(better("tokens", **PAIR), log, unit))
    assert verdict.state == "supported"
    if log:
        assert verdict.effects[0].estimate == pytest.approx(math.log(1.2), abs=0.01)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("log", [True, False])
def test_what_differs_by_rounding_only_is_saturated_in_any_unit(log, unit):
    verdict = first(tokens(better("tokens", **PAIR), log, unit, spread=1e-12 if log else 0.0))
    if log:
        assert "saturated" in verdict.reason and verdict.effects[0].estimate == pytest.approx(math.log(1.2))
    else:
        assert verdict.state == "supported"  # 20 % of unequal items is no constant difference


def test_ratios_beside_one_have_the_rounding_of_any_ratio():
    """Logarithms near 0 are small because of their unit, not because they are exact."""
    generator = np.random.default_rng(0)
    book = Book(study(better("tokens", **PAIR), outcomes=[Outcome("tokens", better="lower", log=True)]))
    for seed in range(4):
        scores = 1 + 1e-6 * generator.standard_normal(20)
        book.score("pcgrad", seed, "tokens", scores)
        book.score("pcgrad-global", seed, "tokens", scores * (1 + 1e-13 * generator.standard_normal(20)))
    assert "saturated" in first(book).reason


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("log", [True, False])
def test_two_conditions_in_any_unit(log, unit):
    test = between("tokens", arm="pcgrad", where_a={"k": 1}, where_b={"k": 2})
    generator = np.random.default_rng(3)
    states = []
    for spread in (0.02, 0.0):
        book = Book(study(test, outcomes=[Outcome("tokens", better="lower", log=log)]))
        for seed in range(4):
            for k, factor in ((1, 1.0), (2, 1.2)):
                scores = unit * 1e5 * factor * np.exp(spread * generator.standard_normal(20))
                book.score("pcgrad", seed, "tokens", scores, where={"k": k})
        states.append(first(book))
    assert states[0].state == "supported"
    assert states[1].state == "undecided" and "saturated" in states[1].reason


@pytest.mark.parametrize("unit", UNITS)
def test_a_matched_ratio_and_its_note_on_wide_gaps_in_any_unit(unit):
    outcomes = [Outcome("loss", better="lower", log=True), Outcome("forget", better="lower")]
    notes, estimates = [], []
    for grid in ((0, 100), range(0, 101, 4)):
        book = Book(study(matched("forget", **PAIR, judge="loss", level=0.5), outcomes=outcomes))
        for seed in range(4):
            for arm, factor in zip(ARMS, (1.0, 1.02), strict=True):
                for step in grid:
                    at = {"step": step}
                    book.measure(arm, seed, "forget", 0.9 - 0.008 * step, at=at)
                    value = unit * factor * math.exp(0.01 * step + 0.02 * seed * (arm == "pcgrad"))
                    book.measure(arm, seed, "loss", value, at=at)
        judgement = judge(book.study, book.results())
        notes.append([note for note in judgement.notes if "evaluate more often" in note])
        estimates.append(judgement.verdicts[0].effects[0].estimate)
    assert len(notes[0]) == 2 and "changes by 1 " in notes[0][0]  # e-fold between the two evaluations
    assert not notes[1]
    assert estimates == pytest.approx([math.log(1.02) - 0.03] * 2, abs=2e-3)


def test_a_statistic_that_differs_by_rounding_is_saturated():
    """Differences of 1e-17 are nothing beside values of 0.7, though they are all of the difference."""
    generator = np.random.default_rng(1)
    book = Book(study(statistic(lambda x: float(np.sum(x) / len(x)), **PAIR, outcomes=("accuracy",)), seeds=10))
    for seed in range(10):
        scores = generator.random(40)
        book.score("pcgrad", seed, "accuracy", scores)
        book.score("pcgrad-global", seed, "accuracy", scores * (1 + 1e-15 * generator.standard_normal(40)))
    assert "saturated" in first(book).reason


def test_equal_values_have_no_variance_whatever_their_binary_digits():
    values = np.full((7, 13), 0.1)
    values[2, 5] = np.nan
    interval = mean_interval(values)
    assert interval.seed_variance == interval.item_variance == 0.0
    assert interval.estimate == interval.lower == interval.upper == 0.1
    shifted = np.random.default_rng(0).standard_normal((4, 9))
    assert mean_interval(shifted + 1e9).seed_variance == pytest.approx(mean_interval(shifted).seed_variance, rel=1e-6)


# --- infinities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinite_value_is_said_to_be_infinite(log, value):
    if log and value < 0:
        return
    book = Book(study(better("perplexity", **PAIR), outcomes=[Outcome("perplexity", better="lower", log=log)]))
    for seed in range(4):
        book.measure("pcgrad", seed, "perplexity", 3.0 + seed)
        book.measure("pcgrad-global", seed, "perplexity", value if seed == 2 else 5.0)
    judgement = judge(book.study, book.results())
    verdict = judgement.verdicts[0]
    assert verdict.state == "undecided" and not verdict.effects
    assert verdict.reason == (
        "1 of 8 values of perplexity (pcgrad, pcgrad-global) are infinite, and have no mean or interval"
    )
    own = {s.arm: s for s in judgement.summaries}["pcgrad-global"]
    assert own.estimate == value and math.isnan(own.lower) and math.isnan(own.upper)


def test_an_infinite_value_along_a_matched_path_is_named():
    outcomes = [Outcome("retain", better="higher"), Outcome("forget", better="lower")]
    book = Book(study(matched("forget", **PAIR, judge="retain", level=0.5), outcomes=outcomes))
    for seed in range(4):
        for arm in ARMS:
            for step in (0, 50, 100):
                at = {"step": step}
                forget = math.inf if (arm, seed, step) == ("pcgrad", 1, 0) else 0.9 - step / 125
                book.measure(arm, seed, "forget", forget, at=at)
                book.measure(arm, seed, "retain", 0.5 + 0.1 * seed, at=at)
    assert first(book).reason.startswith("1 values of forget along the paths are missing, undefined or infinite")


def test_a_statistic_that_is_infinite_is_said_to_be():
    book = Book(study(statistic(lambda x: math.inf, **PAIR, outcomes=("accuracy",)), seeds=10))
    alone = Book(study(statistic(lambda x: math.inf, arm="pcgrad", outcomes=("accuracy",)), seeds=10))
    for each in (book, alone):
        for seed in range(10):
            for arm in ARMS:
                each.score(arm, seed, "accuracy", [0.0, 1.0])
    assert "is undefined in 10 of 10" in first(book).reason  # infinity less infinity
    assert "is infinite in 10 of 10" in first(alone).reason


# --- one seed, and no width -----------------------------------------------------------------------------------------


def test_a_statistic_over_items_has_an_interval_with_one_seed():
    generator = np.random.default_rng(5)
    label = (generator.random(80) < 0.5).astype(float)
    outcomes = [Outcome("confidence", better="higher"), Outcome("right", better="higher")]
    verdicts = {}
    for units, seeds in ((("item",), 1), (("item",), 2), (("seed", "item"), 1)):
        test = statistic(auroc, **PAIR, outcomes=("confidence", "right"), units=units)
        book = Book(study(test, outcomes=outcomes, seeds=seeds))
        scores = {
            arm: np.random.default_rng(6).standard_normal(80) + shift * label
            for arm, shift in zip(ARMS, (2, 0), strict=True)
        }
        for seed in range(seeds):
            for arm in ARMS:
                book.score(arm, seed, "confidence", scores[arm])
                book.score(arm, seed, "right", label)
        verdicts[units, seeds] = first(book)
    one, two, shown = verdicts.values()
    assert one.state == two.state == "supported"
    assert math.isfinite(one.effects[0].lower) and one.effects[0].lower == pytest.approx(two.effects[0].lower)
    assert one.effects[0].df == pytest.approx(79)
    assert shown.state == "undecided" and "no verdict under 3 seeds" in shown.reason
    assert shown.effects[0].lower == pytest.approx(one.effects[0].lower)


def own_values(scores, clusters=None, of=None):
    """The arm's own interval from [seeds, items] of right and wrong answers."""
    book = Book(study(better("accuracy", **PAIR), seeds=len(scores)))
    for seed, row in enumerate(scores):
        if of is None:
            book.score("pcgrad", seed, "accuracy", row, clusters=clusters)
        else:
            book.measure("pcgrad", seed, "accuracy", row, of=of)
    summary = judge(book.study, book.results()).summaries[0]
    return summary.lower, summary.upper


@pytest.mark.parametrize("right", [0, 1, 7, 29, 30])
def test_one_runs_answers_are_a_binomial(right):
    answers = np.array([[1.0] * right + [0.0] * (30 - right)])
    assert own_values(answers) == pytest.approx(wilson(right, 30))
    assert own_values(np.repeat(answers, 4, axis=0)) == pytest.approx(wilson(right, 30))  # a deterministic system
    assert own_values([right], of=30) == pytest.approx(wilson(right, 30))


@pytest.mark.parametrize("items", [7, 30, 49])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_right_or_all_wrong_has_a_width_at_any_number_of_seeds_and_items(items, value):
    for seeds in (1, 3, 7):
        lower, upper = own_values(np.full((seeds, items), value))
        assert (lower, upper) == pytest.approx(wilson(value * items, items))
        assert upper - lower > 0.05


def test_runs_that_were_asked_different_things_and_agree_in_all_have_a_width():
    """Each seed has two items of its own among six: every answer is right, of six sources."""
    book = Book(study(better("accuracy", **PAIR), seeds=3))
    for seed in range(3):
        ids = [f"item {2 * seed}", f"item {2 * seed + 1}", "item 0"][: 3 if seed else 2]
        book.score("pcgrad", seed, "accuracy", [1.0] * len(ids), ids=ids)
    summary = judge(book.study, book.results()).summaries[0]
    assert (summary.lower, summary.upper) == pytest.approx(wilson(6, 6))


def test_answers_of_few_sources_count_as_so_many_answers():
    assert own_values(np.ones((3, 40)), clusters=np.arange(40) // 10) == pytest.approx(wilson(4, 4))
    mixed = np.array([[1.0] * 10 + [0.0] * 10 + [1.0] * 20])
    lower, upper = own_values(mixed, clusters=np.arange(40) // 10)
    spread = np.array([1, 0, 1, 1]).std(ddof=1) / 2
    half = stats.t.ppf(0.975, 3) * spread
    assert (lower, upper) == pytest.approx((max(0.75 - half, 0), 1.0))


# --- plans and tests ------------------------------------------------------------------------------------------------


def test_a_plan_for_the_same_seeds_is_the_interval_itself():
    """A few sources hold most items: clusters - 1 degrees of freedom would promise half the width."""
    generator = np.random.default_rng(2)
    clusters = np.minimum(np.arange(60) // 2, 5)
    d = generator.standard_normal(6)[clusters] + 0.1 * generator.standard_normal((8, 60))
    interval = mean_interval(d, clusters)
    more = mean_interval(np.concatenate([d] * 3), clusters)
    half = (interval.upper - interval.lower) / 2
    assert half_width(interval, seeds=8) == pytest.approx(half, rel=1e-12)
    assert half_width(interval, seeds=9) == pytest.approx(half, rel=0.05)
    assert half_width(interval, seeds=24) == pytest.approx((more.upper - more.lower) / 2, rel=0.05)
    naive = stats.t.ppf(0.975, 5) * math.sqrt(interval.item_variance)
    assert half > 1.5 * naive


@pytest.mark.parametrize(("units", "seeds"), [(("item",), 1), (("item",), 4), (("seed", "item"), 5)])
def test_a_design_note_promises_what_the_judging_will_say(units, seeds):
    """The pilot is the study itself: the note's half-width is that of the effect, McNemar's interval included."""
    generator = np.random.default_rng(4)
    answers = (generator.random((2, seeds, 60)) < np.array([0.8, 0.5])[:, None, None]).astype(float)
    if units == ("item",):
        answers[:] = answers[:, :1]
    for margin in (0.0, 0.02):
        book = Book(
            study(better("accuracy", **PAIR, units=units, margin=margin, reason="r" * bool(margin)), seeds=seeds)
        )
        for arm, rows in zip(ARMS, answers, strict=True):
            for seed, row in enumerate(rows):
                book.score(arm, seed, "accuracy", row)
        effect = first(book).effects[0]
        note = design_notes(book.study, book.results())[0]
        assert f"±{(effect.upper - effect.lower) / 2:.3g} " in note


def test_effects_carry_their_test():
    """Names that contain each other: pcgrad and pcgrad-global, loss and loss_after."""
    outcomes = [Outcome("loss", better="lower"), Outcome("loss_after", better="lower")]
    parts = [
        better("loss_after", **PAIR),
        better("loss", arm="pcgrad-global", rival="pcgrad"),
        better("loss", **PAIR),
        matched("loss", **PAIR, judge="loss_after", level=0.5),
        between("loss", arm="pcgrad", where_a={"k": 1}, where_b={"k": 2}),
    ]
    book = Book(study(both(*parts[:3]), parts[3], parts[4], outcomes=outcomes))
    for seed in range(4):
        for arm in ARMS:
            for step in (0, 1):
                for k in (1, 2):
                    value = 0.9 - 0.8 * step + 0.01 * seed * k * (arm == "pcgrad")
                    book.measure(arm, seed, "loss", value, at={"step": step}, where={"k": k})
                    book.measure(arm, seed, "loss", value, at={"step": step})
                    book.measure(arm, seed, "loss_after", value, at={"step": step})
    verdicts = judge(book.study, book.results()).verdicts
    assert [effect.test for effect in verdicts[0].effects] == parts[:3]
    assert [effect.test for effect in verdicts[1].effects] == [parts[3]]
    assert isinstance(parts[3], Matched)
    assert [effect.test for effect in verdicts[2].effects] == [parts[4]]


@pytest.mark.parametrize("scale", [1e6, 1.0, 1e-6])
@pytest.mark.parametrize(("spread", "saturated"), [(1e-12, True), (1e-6, False)])
def test_differences_of_rounding_go_by_the_size_of_what_is_compared(scale, spread, saturated):
    """Of a statistic over the path, seeds alone: what differs by the last digits is no variation, at any scale."""
    test = statistic(lambda x: float(x[0]), **PAIR, outcomes=("accuracy",), over="path", units=("seed",))
    book = Book(study(test, seeds=10))
    for seed in range(10):
        book.measure("pcgrad", seed, "accuracy", 2 * scale * (1 + spread * seed), at={"step": 1})
        book.measure("pcgrad-global", seed, "accuracy", scale, at={"step": 1})
    verdict = first(book)
    assert verdict.state == ("undecided" if saturated else "supported") and ("saturated" in verdict.reason) is saturated
