"""What it costs to come to a level, and arms compared where they have spent the same: against closed forms and luck."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from equipoise.core.errors import BadInput
from equipoise.study.claims import Claim, better, cheaper, matched, statistic
from equipoise.study.declare import Arm, Outcome, Select, Study
from equipoise.study.judging import judge
from equipoise.study.results import measurements_schema
from equipoise.study.selection import choose
from judging_results import Book, declare, table

PAIR = {"arm": "dots", "rival": "uniform"}
ARMS = ("dots", "uniform")
ACCURACY = [Outcome("accuracy", better="higher")]
VALIDATION, TEST = {"split": "validation"}, {"split": "test"}


def claim(test):
    return Claim("x", source="abstract", test=test)


def first(book):
    return judge(book.study, book.results()).verdicts[0]


def learned(spent, needed):
    """Accuracy after a cost: 0.2 at the start, 0.5 where `needed` was spent, towards 0.8."""
    return 0.8 - 0.6 * 0.5 ** (spent / needed)


def climb(
    test,
    needed,
    *,
    dial="step",
    steps=range(0, 101, 2),
    price=lambda arm, seed: 1.0,
    value=lambda arm, spent, needed: learned(spent, needed),
    unit=1.0,
    only_cost=False,
):
    """Runs that need needed[arm][seed] tokens to come to 0.5, `price` tokens a step (times 10)."""
    book = Book(declare(claim(test), outcomes=ACCURACY, arms=ARMS, seeds=len(needed["dots"]), dial=dial))
    for arm, own in needed.items():
        for seed, tokens in enumerate(own):
            for step in steps:
                spent = 10 * step * price(arm, seed)
                at = {"tokens": spent * unit} if only_cost else {"step": step, "tokens": spent * unit}
                for where in (VALIDATION, TEST):
                    book.measure(arm, seed, "accuracy", value(arm, spent, tokens), at=at, where=where)
    return book


NEEDED = {"dots": [100.0, 120.0, 90.0, 110.0], "uniform": [210.0, 200.0, 230.0, 190.0]}
PLACES = np.arange(0.0, 1001.0, 20.0)  # tokens at the evaluations; between two the path is a chord
REACHED = {arm: [np.interp(0.5, learned(PLACES, needed), PLACES) for needed in own] for arm, own in NEEDED.items()}
RATIOS = np.log(np.divide(REACHED["uniform"], REACHED["dots"]))


def test_the_cost_of_a_level_is_a_log_ratio_by_seed():
    verdict = first(climb(matched("accuracy", **PAIR, judge="tokens", by=1.25, reason="r", level=0.5), NEEDED))
    expected = stats.ttest_1samp(RATIOS, 0).confidence_interval(0.95)
    effect = verdict.effects[0]
    assert effect.per_seed == pytest.approx(RATIOS)
    assert effect.per_seed == pytest.approx(np.log(np.divide(NEEDED["uniform"], NEEDED["dots"])), abs=0.02)
    assert (effect.lower, effect.upper) == pytest.approx((expected.low, expected.high))
    assert effect.margin == pytest.approx(math.log(1.25)) and effect.unit == "log ratio"
    assert verdict.state == "supported"
    assert verdict.reason.startswith("dots is cheaper by more than 1.25 times: 1.9")
    assert "times less tokens until accuracy = 0.5" in verdict.reason
    assert verdict.details["crossings"]["dots-0-1"] == pytest.approx(REACHED["dots"][1])
    assert verdict.details["dial"] == "tokens" and verdict.details["reached"] == {"dots": "4 of 4", "uniform": "4 of 4"}
    turned = first(climb(matched("accuracy", arm="uniform", rival="dots", judge="tokens", by=1, level=0.5), NEEDED))
    assert turned.state == "refuted" and turned.effects[0].estimate == pytest.approx(-effect.estimate)
    too_much = first(climb(matched("accuracy", **PAIR, judge="tokens", by=3, reason="r", level=0.5), NEEDED))
    assert too_much.state == "refuted" and "not cheaper by as much as 3 times" in too_much.reason


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_the_unit_of_a_cost_changes_no_verdict(unit):
    verdict = first(
        climb(matched("accuracy", **PAIR, judge="tokens", by=1.25, reason="r", level=0.5), NEEDED, unit=unit)
    )
    assert verdict.state == "supported"
    assert verdict.effects[0].per_seed == pytest.approx(RATIOS)


def test_the_weakest_level_is_one_that_every_run_reaches():
    verdict = first(climb(matched("accuracy", **PAIR, judge="tokens", by=1.25, reason="r"), NEEDED))
    ends = [learned(1000, tokens) for own in NEEDED.values() for tokens in own]
    level = min(ends) - 0.05 * (min(ends) - 0.2)
    assert verdict.details["level"] == pytest.approx(level)
    # of curves of one shape the ratio of the costs is the same at every level
    assert verdict.effects[0].per_seed == pytest.approx(RATIOS, abs=0.02)


def test_arms_that_pay_different_prices_a_step_are_compared_by_what_they_paid():
    """Equal in steps, 3 times dearer in tokens."""
    needed = {"dots": [100.0] * 3, "uniform": [300.0, 303.0, 297.0]}
    dear = climb(
        matched("accuracy", **PAIR, judge="tokens", by=2, reason="r", level=0.5),
        needed,
        price=lambda arm, seed: 3.0 if arm == "uniform" else 1.0,
    )
    verdict = first(dear)
    assert verdict.effects[0].estimate == pytest.approx(math.log(3), abs=0.005)
    assert verdict.state == "supported"


def test_an_arm_that_misses_the_level_leaves_its_cost_undecided():
    needed = {"dots": [100.0] * 3, "uniform": [200.0, 200.0, 9000.0]}
    verdict = first(climb(matched("accuracy", **PAIR, judge="tokens", by=1, level=0.5), needed))
    assert verdict.state == "undecided" and not verdict.effects
    assert "uniform reached 0.5 in 2 of 3" in verdict.reason
    assert verdict.details["crossings"]["uniform-0-2"] is None


def test_missing_answers_leave_the_cost_of_a_level_undecided():
    book = climb(matched("accuracy", **PAIR, judge="tokens", by=1, level=0.5), NEEDED)
    next(row for row in book.measurements if "validation" in row["where"])["missing"] = 3
    assert first(book).reason.startswith("3 values of accuracy along the paths are missing")


def test_two_runs_far_apart_have_a_cost_without_end():
    book = Book(declare(claim(cheaper("tokens", **PAIR)), outcomes=ACCURACY, arms=ARMS, seeds=2))
    for seed, tokens in enumerate((1.0, 1e150)):
        book.run("dots", seed, cost={"tokens": 1.0})
        book.run("uniform", seed, cost={"tokens": tokens})
    verdict = first(book)
    assert verdict.state == "undecided" and "to ∞]" in verdict.reason and "no verdict under 3 seeds" in verdict.reason


def test_a_level_that_costs_nothing_has_no_ratio():
    verdict = first(climb(matched("accuracy", **PAIR, judge="tokens", by=1, level=learned(0, 1)), NEEDED))
    assert verdict.state == "undecided" and "is at 0.2 before any tokens" in verdict.reason


def test_the_conditions_of_the_outcome_are_those_of_the_claim():
    """Under another condition, and under none, the arms need the reverse."""
    test = matched("accuracy", **PAIR, judge="tokens", by=1, level=0.5, where={"kind": "hard"})
    book = Book(declare(claim(test), outcomes=ACCURACY, arms=ARMS, seeds=3))
    for arm, needed in (("dots", 100.0), ("uniform", 200.0)):
        for seed in range(3):
            for spent in range(0, 1001, 20):
                for where, need in (({"kind": "hard"}, needed), ({"kind": "easy"}, 300 - needed), ({}, 300 - needed)):
                    value = learned(spent, need * (1 + 0.01 * seed))
                    book.measure(arm, seed, "accuracy", value, at={"tokens": spent}, where=where)
    verdict = first(book)
    assert verdict.effects[0].estimate == pytest.approx(math.log(2), abs=0.01)
    assert "accuracy (kind hard) = 0.5" in test.describe()


def test_evaluations_that_do_not_say_what_was_spent_are_named():
    book = climb(matched("accuracy", **PAIR, judge="calls", by=1, level=0.5), NEEDED)
    assert "51 of 51 evaluations of accuracy in run dots-0-0 do not say the calls spent" in first(book).reason


def test_equal_arms_are_favoured_by_neither_density_nor_noise():
    """Answers of 200, one arm evaluated four times as often: no bias, and the interval holds the truth."""
    generator = np.random.default_rng(4)
    estimates, held = [], 0
    for _ in range(40):
        book = Book(
            declare(
                claim(matched("accuracy", **PAIR, judge="tokens", by=1, level=0.5)),
                outcomes=ACCURACY,
                arms=ARMS,
                seeds=6,
            )
        )
        for arm, step in (("dots", 20), ("uniform", 5)):
            for seed in range(6):
                needed = 100 * math.exp(0.1 * generator.standard_normal())
                for spent in range(0, 301, step):
                    right = generator.binomial(200, learned(spent, needed))
                    book.measure(arm, seed, "accuracy", right, of=200, at={"step": spent, "tokens": spent})
        effect = first(book).effects[0]
        estimates.append(effect.estimate)
        held += effect.lower <= 0 <= effect.upper
    assert abs(np.mean(estimates)) < 0.03  # three of its standard errors
    assert held >= 35


# --- a dial that is a cost ------------------------------------------------------------------------------------------


def uneven(test, *, seeds=4, gain=0.1, dial="generated_tokens"):
    """Accuracy rises by 0.001 a token; every run is evaluated at places of its own, the rival to the end at 900."""
    generator = np.random.default_rng(2)
    book = Book(declare(claim(test), outcomes=ACCURACY, arms=ARMS, seeds=seeds, dial=dial))
    for arm, end in (("dots", 1500), ("uniform", 900)):
        for seed in range(seeds):
            own = 0.001 * generator.standard_normal()
            for spent in [0.0, *np.sort(generator.uniform(0, end, 8)), end + seed]:
                value = 0.001 * spent + own + gain * (arm == "dots")
                book.measure(arm, seed, "accuracy", value, at={dial: float(spent)}, where=TEST)
    return book


def test_at_the_end_arms_are_compared_where_all_have_spent_the_same():
    judgement = judge((book := uneven(better("accuracy", **PAIR))).study, book.results())
    verdict = judgement.verdicts[0]
    assert verdict.state == "supported"
    assert verdict.effects[0].estimate == pytest.approx(0.1, abs=0.002)  # 0.7 where each ends
    assert any("compared at generated_tokens = 900, the most that every run spent" in note for note in judgement.notes)
    assert not any("different places" in note for note in judgement.notes)


def test_a_stated_cost_is_read_between_evaluations():
    at = {"generated_tokens": 500}
    verdict = first(uneven(better("accuracy", **PAIR, at=at)))
    assert verdict.effects[0].estimate == pytest.approx(0.1, abs=0.002)
    beyond = first(uneven(better("accuracy", **PAIR, at={"generated_tokens": 1200})))
    assert beyond.state == "undecided" and "not at 1200" in beyond.reason and "uniform-0-0" in beyond.reason


def test_a_dial_that_is_no_cost_is_not_read_between_evaluations():
    verdict = first(uneven(better("accuracy", **PAIR, at={"radius": 500}), dial="radius"))
    assert verdict.state == "undecided" and "has no accuracy at" in verdict.reason


def test_a_statistic_of_the_path_is_over_a_common_grid_of_the_cost():
    seen = []

    def area(accuracy):
        seen.append(len(accuracy))
        return float(np.mean(accuracy))

    verdict = first(uneven(statistic(area, **PAIR, outcomes=("accuracy",), over="path"), seeds=10))
    assert len(set(seen)) == 1 and seen[0] >= 4
    assert verdict.effects[0].estimate == pytest.approx(0.1, abs=0.002)


def test_items_are_interpolated_one_by_one_at_an_equal_cost():
    generator = np.random.default_rng(1)
    book = Book(
        declare(claim(better("accuracy", **PAIR)), outcomes=ACCURACY, arms=ARMS, seeds=3, dial="generated_tokens")
    )
    items = generator.random(30)
    for seed in range(3):
        for arm, places in (("dots", (0, 70, 140)), ("uniform", (0, 100 + seed))):
            for spent in places:
                scores = items * spent + (0.05 * items * seed if arm == "dots" else 0.0)
                book.score(arm, seed, "accuracy", scores, at={"generated_tokens": spent})
    effect = first(book).effects[0]
    assert effect.items == 30
    assert effect.per_seed == pytest.approx([0.05 * seed * items.mean() for seed in range(3)])


@pytest.mark.parametrize(("spent", "missing"), [(0, 1), (140, 1), (70, 0)])
def test_what_is_missing_on_either_side_of_an_equal_cost_is_counted(spent, missing):
    """At 35 tokens the evaluations at 0 and 70 are read, and that at 140 is not: at 105 it is."""
    at = {"generated_tokens": 35 if spent == 0 else 105 if missing else 140}
    test = better("accuracy", **PAIR, at=at)
    book = Book(declare(claim(test), outcomes=ACCURACY, arms=ARMS, seeds=3, dial="generated_tokens"))
    for seed in range(3):
        for arm in ARMS:
            for place in (0, 70, 140):
                scores = 0.001 * place + 0.1 * seed * (arm == "dots") + np.arange(5.0)
                if (arm, seed, place) == ("dots", 1, spent):
                    scores[2] = math.nan
                book.score(arm, seed, "accuracy", scores, at={"generated_tokens": place})
    reason = first(book).reason
    assert reason.startswith("1 values of accuracy (dots, uniform) are missing") == bool(missing), reason


def test_a_matched_outcome_along_a_cost_uses_each_runs_own_evaluations():
    outcomes = [Outcome("retain", better="higher"), Outcome("forget", better="lower")]
    test = matched("forget", **PAIR, judge="retain", level=0.4)
    book = Book(declare(claim(test), outcomes=outcomes, arms=ARMS, seeds=4, dial="trained_tokens"))
    generator = np.random.default_rng(0)
    for arm, speed in (("dots", 2.0), ("uniform", 1.0)):
        for seed in range(4):
            for spent in [0.0, *np.sort(generator.uniform(0, 1000, 12)), 1000.0]:
                forget = 0.9 * math.exp(-speed * spent / 600)
                at = {"trained_tokens": spent}
                book.measure(arm, seed, "forget", forget, at=at, where=VALIDATION)
                retain = 0.5 + 0.5 * forget + 0.05 * (arm == "dots") + 0.001 * seed * (arm == "dots")
                book.measure(arm, seed, "retain", retain, at=at, where=TEST)
    verdict = first(book)
    assert verdict.effects[0].per_seed == pytest.approx([0.05 + 0.001 * seed for seed in range(4)], abs=1e-9)
    crossed = 600 * math.log(0.9 / 0.4)
    assert verdict.details["crossings"]["uniform-0-0"] == pytest.approx(crossed, rel=0.02)
    assert verdict.details["crossings"]["dots-0-0"] == pytest.approx(crossed / 2, rel=0.05)


def test_a_place_may_say_what_was_spent_beside_its_step():
    book = climb(better("accuracy", **PAIR, at={"step": 20}), NEEDED)
    assert first(book).effects[0].estimate == pytest.approx(
        np.mean([learned(200, a) - learned(200, b) for a, b in zip(*NEEDED.values(), strict=True)])
    )
    book.measure("dots", 0, "accuracy", 0.1, at={"step": 20, "tokens": 7.0}, where=TEST)
    verdict = first(book)
    assert verdict.state == "undecided" and '2 values of accuracy at {"step": 20}' in verdict.reason


# --- declaring and choosing by a cost -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (matched("accuracy", **PAIR, judge="generated_tokens"), r"generated_tokens is a cost: .*by=1\.25"),
        (matched("lost", **PAIR, judge="accuracy", by=1), "no outcome 'lost'"),
        (matched("lost", **PAIR, judge="generated_tokens", by=1), "no outcome 'lost'"),
        (cheaper("accuracy", **PAIR), "accuracy is an outcome, and by= is for costs"),
    ],
)
def test_a_cost_is_no_outcome_and_an_outcome_no_cost(test, message):
    with pytest.raises(BadInput, match=message):
        declare(claim(test), outcomes=ACCURACY, arms=ARMS)


def test_the_point_that_comes_to_the_level_for_least_is_chosen():
    study = Study(
        arms=[Arm("dots", grid={"share": [0.2, 0.5, 0.8]})],
        outcomes=ACCURACY,
        claims=[],
        run=lambda run: None,
        budget="optimizer_steps",
        without_control="a test",
        select=Select("generated_tokens", matched="accuracy", level=0.5),
    )
    rows = []
    for point, (price, needed) in enumerate([(1.0, 300.0), (3.0, 150.0), (1.0, 200.0)]):
        for step in range(0, 100, 5):
            at = {"step": step, "generated_tokens": 10 * step * price}
            who = {"run": 0, "arm": "dots", "point": point, "seed": 0, "role": "tuning", "outcome": "accuracy"}
            value = learned(10 * step * price, needed * price)
            counts = {"value": value, "numerator": value, "of": math.nan, "missing": 0}
            rows.append(who | counts | {"at": json.dumps(at), "where": json.dumps(VALIDATION), "order": step})
    chosen, fared = choose(study, table(rows, measurements_schema()))
    assert chosen == {"dots": 2}
    assert [each.score for each in fared] == pytest.approx([300, 450, 200], abs=2)
    with pytest.raises(BadInput, match="no outcome 'generated_tokens'"):
        Study(**{**vars(study), "select": Select("generated_tokens")})
