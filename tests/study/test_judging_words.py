"""What is said of a verdict and of a design, whole, and where exactly a verdict turns."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from equipoise.core.statistics import Interval, wilson
from equipoise.study import Arm, Claim, Outcome, Study, better, both, cheaper, equal, matched, not_worse, statistic
from equipoise.study.claims import Test as ClaimTest
from equipoise.study.effects import Effect, Measured
from equipoise.study.judging import (
    ClaimVerdict,
    _joined,
    _level,
    _own_interval,
    _Part,
    _reason,
    _refuted,
    _seeds_needed,
    _spreads,
    _summaries_at_levels,
    _supported,
    decide,
    design_notes,
)
from equipoise.study.scores import Cells
from judging_results import Book

PAIR: Any = {"arm": "a", "rival": "b"}
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("rule", "lower", "upper", "verdict"),
    [
        ("better", 0.1, 0.3, ("undecided", "")),
        ("better", 0.11, 0.3, ("supported", "")),
        ("better", -0.3, -0.01, ("refuted", "reversed")),
        ("better", -0.3, 0.0, ("refuted", "no advantage as large as 0.1")),
        ("better", -0.3, 0.09, ("refuted", "no advantage as large as 0.1")),
        ("better", -0.3, 0.1, ("undecided", "")),
        ("not_worse", -0.1, 0.3, ("undecided", "")),
        ("not_worse", -0.09, 0.3, ("supported", "")),
        ("not_worse", -0.3, -0.1, ("undecided", "")),
        ("not_worse", -0.3, -0.11, ("refuted", "worse by more than 0.1")),
        ("equal", -0.1, 0.05, ("undecided", "")),
        ("equal", -0.05, 0.1, ("undecided", "")),
        ("equal", -0.09, 0.09, ("supported", "")),
        ("equal", 0.1, 0.2, ("undecided", "")),
        ("equal", 0.11, 0.2, ("refuted", "a difference above 0.1")),
        ("equal", -0.2, -0.1, ("undecided", "")),
        ("equal", -0.2, -0.11, ("refuted", "a difference above 0.1")),
        ("equal", -0.2, 0.2, ("undecided", "")),
        *[(rule, *bounds, ("undecided", "")) for rule in ("better", "equal") for bounds in ((NAN, 1.0), (1.0, NAN))],
    ],
)
def test_where_a_verdict_turns(rule, lower, upper, verdict):
    assert decide(rule, lower, upper, 0.1) == verdict


def declare(*tests: ClaimTest, seeds: int = 4) -> Study:
    return Study(
        arms=[Arm("a"), Arm("b", kind="baseline")],
        outcomes=[Outcome("x", better="higher"), Outcome("y", better="lower")],
        claims=[Claim(f"It holds {number}.", source="s", test=test) for number, test in enumerate(tests)],
        run=lambda run: None,
        budget="calls",
        seeds=seeds,
        without_control="a test",
    )


def note(test: ClaimTest, seeds: int = 4) -> str:
    (said,) = design_notes(declare(test, seeds=seeds))
    return said.removeprefix("It holds 0: ")


def test_a_design_in_full():
    at_best = "4 seeds give at best ±1.6 standard deviations (of the difference between seeds) at 95 %"
    margin = {"margin": 0.1, "reason": "r"}
    assert note(better("x", **PAIR)) == f"{at_best}; a smaller advantage stays undecided."
    below = f"{0.1 / (stats.t.ppf(0.975, 3) / 2):.3g}"
    said = f"{at_best}; the margin 0.1 is decided only where that deviation is below {below}."
    assert note(not_worse("x", **PAIR, **margin)) == note(matched("x", **PAIR, judge="y", **margin)) == said
    below = f"{math.log(1.5) / (stats.t.ppf(0.975, 3) / 2):.3g}"
    said = f"{at_best}; the margin 0.405 is decided only where that deviation is below {below}."
    assert note(cheaper("calls", **PAIR, by=1.5, reason="r")) == said
    few = "cannot be decided: no verdict is given under 3 seeds, and the study has 2."
    assert note(better("x", **PAIR), seeds=2) == note(cheaper("calls", **PAIR), seeds=2) == few
    assert note(better("x", **PAIR), seeds=3).startswith("3 seeds give at best ±2.5 standard")
    sources = "can be decided only with 50 or more sources of items."
    assert note(statistic(max, **PAIR, outcomes=("x",)), seeds=9) == sources
    assert note(statistic(max, **PAIR, outcomes=("x",), units=("item",)), seeds=10) == sources
    assert note(statistic(max, **PAIR, outcomes=("x",)), seeds=10).startswith("10 seeds give at best ±0.72 standard")


@pytest.mark.parametrize(("margin", "shown"), [(0.0, "0.05"), (0.2, "0.2"), (0.5, "0.5")])
def test_how_many_items_always_do(margin, shown):
    finest = margin or 0.05
    n = np.arange(2, 2000)
    items = n[stats.t.ppf(0.975, n - 1) / np.sqrt(n - 1) <= finest][0]
    said = f"{items:,} items with right or wrong answers always give ±{shown} at 95 %, fewer when most agree."
    assert note(better("x", **PAIR, units=("item",), margin=margin, reason="r"), seeds=1) == said


def test_designs_are_those_of_the_judged_claims_at_their_level():
    two = both(better("x", **PAIR), both(better("y", **PAIR), better("x", **PAIR, units=("item",))))
    study = declare(two, better("y", **PAIR))
    known = Claim("known", source="card, known in advance", test=better("x", **PAIR))
    study = replace(study, claims=[*study.claims, known, Claim("open", source="s", untested="u")])
    assert _level(study) == 0.975
    notes = design_notes(study)
    assert [each.partition(": ")[0] for each in notes] == ["It holds 0", "It holds 0", "It holds 1"]
    assert all("at 97.5 %" in each for each in notes)
    assert notes[1].count("; ") == 2 and "seeds give at best" in notes[1] and "items with right" in notes[1]


def measured(test: ClaimTest, bounds: tuple[float, float], *, rule: Any = "better", margin: float = 0.0) -> Measured:
    middle = sum(bounds) / 2
    effect = Effect("e", middle, *bounds, 0.975, 3.0, 4, 0, "", (middle,) * 4, margin, "arm", test=test)
    interval = Interval(middle, *bounds, 0.975, 3.0, 0.01, 0.0, math.inf, 0.0, seeds=4, items=0, clusters=0)
    return Measured(effect, interval, rule, margin, bounds, ("seed",), (), "numbers")


@pytest.mark.parametrize(
    ("test", "rule", "margin", "supported", "refuted"),
    [
        (better("x", **PAIR), "better", 0.0, "an advantage", "words"),
        (better("x", **PAIR, margin=0.1, reason="r"), "better", 0.1, "an advantage above 0.1", "words"),
        (not_worse("x", **PAIR, margin=0.1, reason="r"), "not_worse", 0.1, "not worse by 0.1", "words"),
        (equal("x", **PAIR, margin=0.1, reason="r"), "equal", 0.1, "equal within 0.1", "words"),
        (cheaper("calls", **PAIR), "better", 0.0, "a is cheaper", "a is not cheaper by as much as 1 times"),
        (cheaper("calls", **PAIR, by=1.5, reason="r"), "better", 0.4, "a is cheaper by more than 1.5 times",
         "a is not cheaper by as much as 1.5 times"),
        (statistic(max, arm="a", outcomes=("x",), margin=0.7, reason="r"), "better", 0.7, "max is above 0.7",
         "max is not above 0.7"),
        (statistic(max, arm="a", outcomes=("x",), margin=0.7, reason="r", better="lower"), "better", 0.7,
         "max is below 0.7", "max is not below 0.7"),
        (statistic(max, **PAIR, outcomes=("x",), margin=0.7, reason="r"), "better", 0.7, "an advantage above 0.7", "words"),
    ],
)  # fmt: skip
def test_a_verdict_in_words(test, rule, margin, supported, refuted):
    found = measured(test, (0.1, 0.3), rule=rule, margin=margin)
    numbers = "numbers at 97.5 %"
    assert _supported(test, found) == supported and _refuted(test, "words") == refuted
    assert _reason(test, found, "supported", "", None) == f"{supported}: {numbers}"
    assert _reason(test, found, "refuted", "words", None) == f"{refuted}: {numbers}"
    assert _refuted(test, "reversed") == (refuted if "max" in refuted else "reversed")


def test_an_open_verdict_in_words():
    test = better("x", **PAIR)
    found = measured(test, (-0.1, 0.3))
    open_ = "the interval does not settle it: numbers at 97.5 %"
    fresh = "; a new run with 5 to {} fresh seeds would probably decide it"
    assert _reason(test, found, "undecided", "", None) == open_
    assert _reason(test, found, "undecided", "so far", (5, 9)) == "so far: numbers at 97.5 %" + fresh.format(9)
    assert _reason(test, found, "undecided", "", (5, 1000)) == open_ + fresh.format("1000 or more")
    assert _reason(test, found, "undecided", "", (5, 999)) == open_ + fresh.format("999")
    unknown = measured(test, (NAN, NAN))
    assert _reason(test, unknown, "undecided", "", (5, 9)) == "the interval is undefined"
    assert _reason(test, unknown, "undecided", "saturated", None) == "saturated"


def test_the_seeds_that_would_decide_go_by_the_distance_to_the_margin():
    test = better("x", **PAIR)
    same = [
        _seeds_needed(measured(test, (-0.1, 0.3), rule="better", margin=0.0)),  # 0.1 from 0
        _seeds_needed(measured(test, (-0.1, 0.2), rule="not_worse", margin=0.0)),  # 0.05 from it
        _seeds_needed(measured(test, (-0.1, 0.3), rule="equal", margin=0.15)),
        _seeds_needed(measured(test, (-0.3, 0.1), rule="equal", margin=0.15)),
        _seeds_needed(measured(test, (-0.15, 0.05), rule="not_worse", margin=0.1)),
    ]
    wide, narrow = same[0], same[1]
    assert wide is not None and narrow is not None and wide < narrow == same[2] == same[3] == same[4]


def test_parts_are_joined():
    first = _Part("supported", "good", runs=("r1", "r2"), details={"d": 1})
    open_one = _Part("undecided", "open", seeds_needed=(5, 9), preview=True, runs=("r2", "r3"))
    other = _Part("undecided", "also", seeds_needed=(7, 8))
    lost = _Part("refuted", "bad")
    joined = _joined([first, open_one, other])
    assert joined == _Part(
        "undecided",
        "(1) supported: good; (2) undecided: open; (3) undecided: also",
        (),
        (7, 9),
        True,
        ("r1", "r2", "r3"),
        {"parts": [{"d": 1}, {}, {}]},
    )
    assert _joined([open_one, replace(other, seeds_needed=None)]).seeds_needed is None
    assert (_joined([open_one, lost]).state, _joined([open_one, lost]).seeds_needed) == ("refuted", None)
    assert (_joined([first, first]).state, _joined([first, first]).preview) == ("supported", False)


def test_what_a_verdict_has_when_nothing_else_is_known():
    claim = Claim("t", source="s", untested="u")
    verdict = ClaimVerdict(claim, "untested", "u")
    assert (verdict.effects, verdict.seeds_needed, verdict.primary, verdict.preview) == ((), None, True, False)
    assert (verdict.runs, verdict.details) == ((), {})


def cells(matrix, clusters=None, *, items=True, missing=0):
    matrix = np.array(matrix, float)
    known = None if clusters is None else np.array(clusters)
    if items and clusters is None:
        known = np.arange(matrix.shape[1])
    return Cells(matrix, np.arange(matrix.shape[1]) if items else None, known if items else None, missing)


def own(matrix, of=NAN, clusters=None, items=True):
    found = cells(matrix, clusters, items=items)
    return _own_interval(found, np.nanmean(found.matrix, axis=1), of)


def test_an_arms_own_interval_over_seeds_stays_in_what_can_be():
    half = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    values = [[0.75], [0.85], [0.95]]
    assert own(values, items=False) == pytest.approx((0.85, 0.85 - half, 0.85 + half)) and 0.85 + half > 1
    assert own(values, 20.0, items=False) == pytest.approx((0.85, 0.85 - half, 1.0))
    assert own([[0.05], [0.15], [0.25]], 20.0, items=False) == pytest.approx((0.15, 0.0, 0.15 + half))
    assert own([[0.75]] * 3, items=False) == pytest.approx((0.75, NAN, NAN), nan_ok=True)
    assert own([[0.75]] * 3, 20.0, items=False) == pytest.approx((0.75, *wilson(15, 20)))
    undefined = Cells(np.array([[0.5], [NAN]]), None, None, 1)
    assert all(map(math.isnan, _own_interval(undefined, undefined.matrix[:, 0], 3.0)))


def test_an_arms_own_interval_of_one_run_is_over_its_items():
    answers = [[1.0, 0.0, 1.0, 1.0]]
    half = stats.t.ppf(0.975, 3) * 0.25
    assert own(answers) == pytest.approx((0.75, 0.75 - half, 0.75 + half))  # scores that are no share
    assert own(answers, 4.0) == pytest.approx((0.75, *wilson(3, 4)))
    assert own(answers * 2, 4.0) == pytest.approx((0.75, *wilson(3, 4)))
    assert own([[1.0] * 4, [1.0, 1.0, NAN, 1.0]], 4.0) == pytest.approx((1.0, *wilson(4, 4)))
    assert own([[1.0] * 4], 4.0, clusters=[0, 0, 1, 1]) == pytest.approx((1.0, *wilson(2, 2)))


def test_summaries_at_a_level_are_proportions_where_all_answers_are():
    def summary(matrix, **more):
        found = cells(matrix, **more)
        scores: Any = SimpleNamespace(at_levels={("a", "kept", "at", "where"): (found, ("r1", "r2"))})
        (one,) = _summaries_at_levels(scores)
        assert (one.arm, one.outcome, one.at, one.where, one.runs) == ("a", "kept", "at", "where", ("r1", "r2"))
        assert math.isnan(one.numerator) and math.isnan(one.of)
        return one.seeds, one.missing, one.estimate, one.lower, one.upper

    assert summary([[1.0] * 4] * 2, missing=3) == pytest.approx((2, 3, 1.0, *wilson(4, 4)))
    half = stats.t.ppf(0.975, 1) * 0.1
    assert summary([[0.2], [0.4]], items=False) == pytest.approx((2, 0, 0.3, 0.3 - half, 0.3 + half))
    assert summary([[1.0, 0.0], [NAN, NAN]])[2:] == pytest.approx((NAN,) * 3, nan_ok=True)
    assert summary([[0.5] * 3] * 2)[2:] == pytest.approx((0.5, NAN, NAN), nan_ok=True)  # scores, no answers


def test_what_a_pilot_promises_in_full():
    values = np.array([0.1, 0.2, 0.4, 0.1])

    def promised(test, seeds=16, spread=values):
        book = Book(declare(test, seeds=seeds))
        for seed, value in enumerate(spread):
            book.measure("a", seed, "x", 0.5 + value)
            book.measure("b", seed, "x", 0.5)
        (said,) = design_notes(book.study, book.results())
        return said.removeprefix("It holds 0: ")

    half = stats.t.ppf(0.975, 15) * values.std(ddof=1) / 4
    known = f"16 seeds should give ±{half:.3g} at 95 % (spread of a pilot of 4)"
    assert promised(better("x", **PAIR)) == f"{known}: an advantage must exceed {half:.3g} to be seen."
    over = better("x", **PAIR, margin=0.05, reason="r")
    assert promised(over) == f"{known}: an advantage must exceed {0.05 + half:.3g} to be seen."
    for margin, can in ((0.2, "can"), (0.01, "cannot")):
        wanted = f"{known} against the margin {margin}, which {can} be decided."
        assert promised(not_worse("x", **PAIR, margin=margin, reason="r")) == wanted
    one = promised(better("x", **PAIR), spread=values[:1])
    assert one == "the pilot of 1 has no spread to go by."
    assert promised(better("x", **PAIR), spread=[]).startswith("16 seeds give at best")
    assert _spreads(0.95, INF) == pytest.approx(1.959964) and _spreads(0.95, 3) == pytest.approx(3.182446)
