"""What a verdict rests on: who pairs exactly, what is a ratio, which side an interval favours, in numbers by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.core.statistics import mean_interval, seed_interval
from equipoise.study import Outcome
from equipoise.study import effects as e
from equipoise.study.claims import Claim, better, between, matched, not_worse, statistic
from equipoise.study.judging import judge
from judging_results import Book, declare

PAIR = {"arm": "sago", "rival": "pcgrad"}
NAN = math.nan


def outcome(**options):
    return Outcome("accuracy", **{"better": "higher", **options})


@pytest.mark.parametrize(
    ("changed", "exact"),
    [
        ({}, True),
        ({"clusters": np.array([0, 1, 2, 3])}, True),
        ({"clusters": np.array([0, 1, 2, 2])}, False),
        ({"d": np.array([[-1.0, 0.0, 1.0, 0.5]])}, False),
        ({"d": np.array([[-1.0, 0.0, 1.0, 2.0]])}, False),
        ({"d": np.array([[-2.0, 0.0, 1.0, 1.0]])}, False),
        ({"units": ("seed", "item")}, False),
        ({"test": better("accuracy", **PAIR, margin=0.01, reason="r")}, False),
        ({"test": not_worse("accuracy", **PAIR, margin=0.01, reason="r")}, False),
        ({"test": matched("accuracy", **PAIR, judge="loss")}, False),
        ({"outcome": outcome(log=True)}, False),
    ],
)
def test_only_plain_pairs_of_right_and_wrong_are_exact(changed, exact):
    given = {
        "test": better("accuracy", **PAIR),
        "d": np.array([[-1.0, 0.0, 1.0, 1.0]]),
        "clusters": None,
        "outcome": outcome(),
        "units": ("item",),
    }
    assert e._exact_pairs(**(given | changed)) is exact


def test_a_ratio_needs_values_above_zero():
    log = outcome(log=True)
    assert e._scaled(np.array([[1.0, math.e]]), log).tolist() == [[0.0, 1.0]]
    assert e._scaled(np.array([[0.5]]), log)[0, 0] < 0
    for value in (0.0, -1.0):
        with pytest.raises(e.Unjudgeable, match="some of its values are not positive"):
            e._scaled(np.array([[1.0, value]]), log)
        assert e._scaled(np.array([[1.0, value]]), outcome()).tolist() == [[1.0, value]]
    assert [e._unit(outcome(unit="s", log=log)) for log in (False, True)] == ["s", "log s"]
    assert [e._unit(outcome(log=log)) for log in (False, True)] == ["", "log"]
    assert [e._sign(outcome(better=better)) for better in ("higher", "lower")] == [1, -1]
    assert e._rounding(np.array([[2.0, -50.0, NAN]]), outcome()) == 50 * e.ROUNDING
    assert e._rounding(np.array([[2.0, -50.0]]), log) == e.ROUNDING


def test_seeds_of_a_deterministic_system_are_equal_also_where_nothing_is_known():
    same = np.array([[1.0, NAN, 2.0], [1.0, NAN, 2.0]])
    other = np.array([[1.0, NAN, 2.0], [1.0, NAN, 2.5]])
    assert e._varies_though_deterministic(("item",), same) == ""
    assert e._varies_though_deterministic(("item",), other).endswith("yet its seeds differ")
    assert e._varies_though_deterministic(("seed", "item"), other) == ""
    assert e._varies_though_deterministic(("item",), other[:1]) == ""


@pytest.mark.parametrize(
    ("lower", "upper", "favours"),
    [(0.1, 0.3, "arm"), (0.0, 0.3, "neither"), (-0.1, 0.3, "neither"), (-0.3, 0.0, "neither"), (-0.3, -0.1, "rival")],
)
def test_an_interval_favours_the_side_that_it_lies_on(lower, upper, favours):
    interval, per_seed = seed_interval([0.1, 0.2, 0.4]), np.array([0.1, 0.2, 0.4])
    given = {"items": 0, "unit": "s", "margin": 0.05}
    effect = e._effect(better("accuracy", **PAIR), "label", interval, per_seed, **given, bounds=(lower, upper))
    assert (effect.favours, effect.seeds, effect.items, effect.margin) == (favours, 3, 0, 0.05)
    assert (effect.estimate, effect.lower, effect.upper) == (interval.estimate, interval.lower, interval.upper)
    assert effect.per_seed == (0.1, 0.2, 0.4) and (effect.df, effect.level) == (2, 0.95)
    own = e._effect(better("accuracy", **PAIR), "label", interval, per_seed, **given)
    assert own.favours == ("arm" if interval.lower > 0 else "neither")


def test_how_much_a_verdict_is_over():
    shown = [
        e._counts(SimpleNamespace(seeds=seeds, items=items)) for seeds, items in ((1, 0), (2, 0), (1, 1), (10, 1234))
    ]
    effect = SimpleNamespace(estimate=0.2, lower=0.1, upper=0.3, unit="s", seeds=3, items=0)
    assert e._text(effect) == "+0.20 [+0.10 to +0.30] s over 3 seeds"
    assert shown == ["1 seed", "2 seeds", "1 seed and 1 items", "10 seeds and 1,234 items"]


def test_paths_that_end_at_different_places_are_told():
    x = np.array([1.0, 5.0, 5.0, 4.0, NAN])
    scores = SimpleNamespace(x=x, notes=[], study=SimpleNamespace(dial="steps"))
    for places in ([1, 1, 2, 2], [4, 1, 1, 1], [1, 4, 1, 3]):  # all at 5, or an end that nobody knows
        e._note_unequal_ends(scores, better("loss", **PAIR), places)
    assert scores.notes == []
    e._note_unequal_ends(scores, better("loss", **PAIR), [1, 2, 3, 1])
    assert scores.notes == [
        "loss: the paths end at different places (steps: sago 5; pcgrad 4, 5), so their ends are no "
        "comparison at equal budget."
    ]


@pytest.mark.parametrize("units", [("seed", "item"), ("seed",)])
def test_two_conditions_have_the_interval_of_their_differences(units):
    test = between("accuracy", arm="sago", where_a={"k": 1}, where_b={"k": 2}, units=units)
    book = Book(declare(Claim("holds", source="abstract", test=test), seeds=4))
    values = np.random.default_rng(2).normal(size=(2, 4, 6))
    for seed in range(4):
        for k in (1, 2):
            book.score("sago", seed, "accuracy", values[k - 1, seed], where={"k": k})
    (effect,) = judge(book.study, book.results()).verdicts[0].effects
    expected = mean_interval(values[0] - values[1], units=units)
    assert (effect.lower, effect.upper) == pytest.approx((expected.lower, expected.upper))
    assert (effect.seeds, effect.items) == (4, 6 if "item" in units else 0)
    assert effect.per_seed == pytest.approx(tuple((values[0] - values[1]).mean(1)))


def average(accuracy):
    return float(np.mean(accuracy))


def test_a_statistic_over_seeds_has_their_interval_and_its_name():
    values = np.random.default_rng(4).normal(size=(2, 10, 8))
    means = values.mean(2)
    outcomes = {"outcomes": ("accuracy",)}
    tests = [
        statistic(average, **PAIR, **outcomes, better="lower", units=("seed",)),
        statistic(average, arm="sago", **outcomes, better="lower", units=("seed",), margin=5.0, reason="r"),
        statistic(average, arm="sago", **outcomes, units=("seed",), margin=5.0, reason="r"),
        statistic(average, **PAIR, **outcomes, units=("item",)),
    ]
    verdicts = []
    for test in tests:
        book = Book(declare(Claim("holds", source="abstract", test=test), seeds=10))
        for arm, own in zip(("sago", "pcgrad"), values, strict=True):
            for seed in range(10):
                book.score(arm, seed, "accuracy", own[seed])
        judgement = judge(book.study, book.results())
        assert not any("no partner" in note for note in judgement.notes)
        verdicts += judgement.verdicts
    pair, below, above, items = verdicts
    level = pair.effects[0].level
    for verdict, per_seed in ((pair, means[1] - means[0]), (below, means[0]), (above, means[0])):
        (effect,), expected = verdict.effects, seed_interval(per_seed, level=level)
        assert (effect.estimate, effect.lower, effect.upper) == pytest.approx(
            (expected.estimate, expected.lower, expected.upper)
        )
        assert effect.per_seed == pytest.approx(tuple(per_seed)) and (effect.seeds, effect.items) == (10, 0)
    assert pair.effects[0].label == "average of accuracy: sago against pcgrad"
    assert below.effects[0].label == "average of accuracy: sago"
    # Averages are near 0: below five, and not above.
    assert (below.state, above.state) == ("supported", "refuted")
    assert (below.effects[0].favours, above.effects[0].favours) == ("arm", "rival")
    assert items.state == "undecided" and "yet its seeds differ" in items.reason
