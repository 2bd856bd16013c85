"""Verdicts on results made by hand: every rule at its boundary, every way of having no verdict."""

import functools
import math
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from equipoise.core import statistics
from equipoise.core.errors import WorkFailed
from equipoise.core.statistics import item_interval
from equipoise.study.claims import Claim, better, between, both, cheaper, equal, not_worse, statistic
from equipoise.study.declare import Outcome
from equipoise.study.judging import decide, design_notes, judge
from equipoise.study.summary_text import preview_sentence, publish
from judging_results import Book, declare

PAIR = {"arm": "sago", "rival": "pcgrad"}
LEVEL_OF_ONE = 0.95


def claim(test, text="x", **more):
    return Claim(text, source="abstract", test=test, **more)


def filled(test, *, differences=None, seeds=5, items=30, outcomes=None, spread=0.05, mean=0.1, **more):
    """sago minus pcgrad in accuracy: as given [seeds, items], or normal around `mean`."""
    generator = np.random.default_rng(5)
    if differences is None:
        differences = mean + spread * generator.standard_normal((seeds, items))
    book = Book(declare(*(test if isinstance(test, tuple) else (claim(test),)), outcomes=outcomes, seeds=seeds, **more))
    base = generator.random(differences.shape[1])
    for seed, row in enumerate(differences):
        book.score("sago", seed, "accuracy", base + row)
        book.score("pcgrad", seed, "accuracy", base)
    return book


def first(book, **chosen):
    return judge(book.study, book.results(**chosen)).verdicts[0]


# --- the rules ------------------------------------------------------------------------------------------------------

M = 0.1


@pytest.mark.parametrize(
    ("rule", "lower", "upper", "margin", "state", "words"),
    [
        ("better", 0.01, 0.2, 0.0, "supported", ""),
        ("better", 0.0, 0.2, 0.0, "undecided", ""),
        ("better", -0.2, 0.0, 0.0, "undecided", ""),
        ("better", -0.2, -0.01, 0.0, "refuted", "reversed"),
        ("better", M + 1e-9, 0.2, M, "supported", ""),
        ("better", M, 0.2, M, "undecided", ""),
        ("better", 0.01, M, M, "undecided", ""),
        ("better", 0.01, M - 1e-9, M, "refuted", "no advantage as large as 0.1"),
        ("better", -0.1, 0.0, M, "refuted", "no advantage as large as 0.1"),
        ("better", -0.1, -1e-9, M, "refuted", "reversed"),
        ("not_worse", -M + 1e-9, 0.2, M, "supported", ""),
        ("not_worse", -M, 0.2, M, "undecided", ""),
        ("not_worse", -0.3, -M, M, "undecided", ""),
        ("not_worse", -0.3, -M - 1e-9, M, "refuted", "worse by more than 0.1"),
        ("equal", -M + 1e-9, M - 1e-9, M, "supported", ""),
        ("equal", -M, 0.0, M, "undecided", ""),
        ("equal", 0.0, M, M, "undecided", ""),
        ("equal", M, 0.3, M, "undecided", ""),
        ("equal", M + 1e-9, 0.3, M, "refuted", "a difference above 0.1"),
        ("equal", -0.3, -M - 1e-9, M, "refuted", "a difference above 0.1"),
        ("equal", -0.3, 0.3, M, "undecided", ""),
        ("better", math.nan, math.nan, 0.0, "undecided", ""),
    ],
)
def test_rules_at_their_boundaries(rule, lower, upper, margin, state, words):
    assert decide(rule, lower, upper, margin) == (state, words)


# --- differences ----------------------------------------------------------------------------------------------------


def test_better_is_a_two_way_interval_of_paired_differences():
    book = filled(better("accuracy", **PAIR, margin=0.03, reason="r"))
    verdict = first(book)
    generator = np.random.default_rng(5)
    d = 0.1 + 0.05 * generator.standard_normal((5, 30))
    seed, item = d.mean(1).var(ddof=1) / 5, d.mean(0).var(ddof=1) / 30
    df = (seed + item) ** 2 / (seed**2 / 4 + item**2 / 29)
    half = stats.t.ppf(0.975, df) * math.sqrt(seed + item)
    effect = verdict.effects[0]
    assert (effect.lower, effect.upper) == pytest.approx((d.mean() - half, d.mean() + half))
    assert effect.per_seed == pytest.approx(d.mean(1).tolist())
    assert (effect.seeds, effect.items, effect.margin, effect.favours) == (5, 30, 0.03, "arm")
    assert verdict.state == "supported" and not verdict.preview
    assert verdict.runs[0] == "sago-0-0" and len(verdict.runs) == 10
    assert verdict.reason == "an advantage above 0.03: +0.095 [+0.082 to +0.108] over 5 seeds and 30 items at 95 %"


def test_items_are_paired_whatever_their_order_and_despite_their_spread():
    book = filled(better("accuracy", **PAIR))
    shuffled = Book(book.study)
    generator = np.random.default_rng(0)
    for arm in ("pcgrad", "sago"):
        for seed in (3, 0, 4, 1, 2):
            rows = [row for row in book.items if (row["arm"], row["seed"]) == (arm, seed)]
            generator.shuffle(rows)
            shuffled.score(arm, seed, "accuracy", [r["score"] for r in rows], ids=[r["item"] for r in rows])
    one, other = first(book).effects[0], first(shuffled).effects[0]
    assert (one.estimate, one.lower) == pytest.approx((other.estimate, other.lower))
    assert one.upper - one.lower < 0.05  # the items' own spread, 0.3, has no part in it


def test_lower_is_better_turns_the_sign():
    outcomes = [Outcome("accuracy", better="lower")]
    verdict = first(filled(better("accuracy", **PAIR), outcomes=outcomes))
    assert verdict.state == "refuted" and verdict.reason.startswith("reversed")
    assert verdict.effects[0].favours == "rival" and verdict.effects[0].estimate < 0


def test_outcomes_compared_by_ratios():
    outcomes = [Outcome("accuracy", better="lower", log=True, unit="nats")]
    book = Book(declare(claim(better("accuracy", **PAIR)), outcomes=outcomes, seeds=3))
    for seed in range(3):
        book.score("sago", seed, "accuracy", np.exp([0.1, 0.2, 0.3]))
        book.score("pcgrad", seed, "accuracy", np.exp([0.4 + 0.01 * seed, 0.5, 0.6]))
    effect = first(book).effects[0]
    assert effect.estimate == pytest.approx(0.3 + 0.01 / 3)
    assert effect.unit == "log nats"


def test_without_items_seeds_are_the_units():
    book = Book(declare(claim(better("accuracy", **PAIR)), seeds=4))
    gains = [0.1, 0.2, 0.15, 0.3]
    for seed, gain in enumerate(gains):
        book.measure("sago", seed, "accuracy", 0.5 + gain)
        book.measure("pcgrad", seed, "accuracy", 0.5)
    effect = first(book).effects[0]
    expected = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (effect.lower, effect.upper) == pytest.approx((expected.low, expected.high))
    assert effect.items == 0 and effect.df == pytest.approx(3)


def test_units_of_seeds_alone_leave_the_items_out():
    with_items = first(filled(better("accuracy", **PAIR)))
    seeds_only = first(filled(better("accuracy", **PAIR, units=("seed",))))
    expected = stats.ttest_1samp(with_items.effects[0].per_seed, 0).confidence_interval(0.95)
    assert seeds_only.effects[0].lower == pytest.approx(expected.low)


def test_clusters_of_items_widen_the_interval():
    generator = np.random.default_rng(2)
    of_source = np.repeat(generator.standard_normal(6), 10)
    widths = []
    for clusters in (None, np.repeat(np.arange(6), 10)):
        book = Book(declare(claim(better("accuracy", **PAIR)), seeds=3))
        for seed in range(3):
            book.score("sago", seed, "accuracy", of_source + 0.01 * seed, clusters=clusters)
            book.score("pcgrad", seed, "accuracy", np.zeros(60), clusters=clusters)
        effect = first(book).effects[0]
        widths.append(effect.upper - effect.lower)
    assert widths[1] > 3 * widths[0]


def test_unpaired_items_are_counted():
    book = filled(better("accuracy", **PAIR))
    book.items = [row for row in book.items if not (row["arm"] == "sago" and row["item"] in ("i00003", "i00007"))]
    judgement = judge(book.study, book.results())
    assert judgement.verdicts[0].effects[0].items == 28
    assert any("10 of 290 scores" in note and "no partner" in note for note in judgement.notes)


def test_where_and_place_choose_the_rows():
    test = better("accuracy", **PAIR, where={"kind": "general"}, at={"step": 20})
    book = Book(declare(claim(test), seeds=3))
    for seed in range(3):
        for arm, gain in (("sago", 0.2 + 0.01 * seed), ("pcgrad", 0.0)):
            for split in ("validation", "test"):
                for kind in ("general", "near"):
                    for step in (20, 40):
                        right = (split, kind, step) == ("test", "general", 20)
                        where = {"kind": kind, "split": split}
                        book.measure(arm, seed, "accuracy", gain if right else 9.0, at={"step": step}, where=where)
    assert first(book).effects[0].estimate == pytest.approx(0.21)


def test_the_end_of_the_path_is_the_largest_step_not_the_last_row():
    book = Book(declare(claim(better("accuracy", **PAIR)), seeds=3))
    for seed in range(3):
        for step in (100, 9, 50):
            book.measure("sago", seed, "accuracy", step + seed / 10, at={"step": step})
            book.measure("pcgrad", seed, "accuracy", 0.0, at={"step": step})
    assert first(book).effects[0].estimate == pytest.approx(100.1)


def test_paths_that_end_at_different_places_are_no_equal_budget():
    book = Book(declare(claim(better("accuracy", **PAIR)), seeds=3))
    for seed in range(3):
        book.measure("sago", seed, "accuracy", 0.5 + seed, at={"step": 100})
        book.measure("pcgrad", seed, "accuracy", 0.4, at={"step": 80})
    assert any("sago 100; pcgrad 80" in note for note in judge(book.study, book.results()).notes)


def test_ambiguous_conditions_are_named_not_pooled():
    book = Book(declare(claim(better("accuracy", **PAIR)), seeds=3))
    for seed in range(3):
        for kind in ("general", "near"):
            for arm in ("sago", "pcgrad"):
                book.measure(arm, seed, "accuracy", 0.1 * seed, where={"kind": kind})
    verdict = first(book)
    assert verdict.state == "undecided" and "several conditions" in verdict.reason and "near" in verdict.reason


# --- no verdict -----------------------------------------------------------------------------------------------------


def test_two_seeds_give_no_verdict():
    verdict = first(filled(better("accuracy", **PAIR), seeds=2, differences=np.full((2, 9), 0.5) + np.eye(2, 9)))
    assert verdict.state == "undecided" and not verdict.preview
    assert verdict.reason.startswith("no verdict under 3 seeds")


def test_one_seed_shows_its_items_and_gives_no_verdict():
    verdict = first(filled(better("accuracy", **PAIR), seeds=1, differences=0.5 + np.eye(1, 9)))
    assert verdict.state == "undecided" and not math.isnan(verdict.effects[0].lower)


def test_fewer_seeds_than_declared_are_a_preview():
    verdict = first(filled(better("accuracy", **PAIR), seeds=10, differences=0.5 + 0.01 * np.eye(3, 9)))
    assert verdict.state == "undecided" and verdict.preview
    assert verdict.reason.startswith("undecided (preview, 3 of 10 seeds): so far: +0.5")
    assert verdict.seeds_needed is None  # the interval is clear already
    assert verdict.effects[0].lower > 0


def test_more_seeds_are_shown_and_the_verdict_stays_on_the_first():
    differences = 0.2 + 0.01 * np.random.default_rng(1).standard_normal((8, 20))
    differences[5:] = -5.0
    verdict = first(filled(better("accuracy", **PAIR), seeds=5, differences=differences))
    assert verdict.state == "supported"
    assert [effect.seeds for effect in verdict.effects] == [5, 8]
    assert verdict.effects[0].estimate == pytest.approx(0.2, abs=0.01) and verdict.effects[1].estimate < 0


def test_verdicts_fall_on_the_declared_seeds_whatever_was_run_first():
    """Seeds that were used up, or picked by hand, are shown and decide nothing: also where they are all there is."""
    differences = 0.2 + 0.01 * np.random.default_rng(1).standard_normal((14, 20))
    differences[:10] = -5.0
    book = filled(better("accuracy", **PAIR), seeds=4, differences=differences, first_seed=10)
    verdict = first(book)
    assert verdict.state == "supported" and set(verdict.runs) == {
        f"{a}-0-{s}" for a in PAIR.values() for s in range(10, 14)
    }
    assert [(e.seeds, e.label.endswith("(all 14 seeds, shown only)")) for e in verdict.effects] == [
        (4, False),
        (14, True),
    ]
    assert {s.seeds for s in judge(book.study, book.results()).summaries} == {4}

    picked = filled(better("accuracy", **PAIR), seeds=4, differences=differences[10:], first_seed=20)
    verdict = first(picked)
    assert (
        verdict.state == "undecided" and verdict.preview and "none of the declared seeds is complete" in verdict.reason
    )
    (effect,) = verdict.effects
    assert effect.label.endswith("(4 other seeds, shown only)") and effect.lower > 0 and not verdict.runs
    judgement = judge(picked.study, picked.results())
    assert {s.seeds for s in judgement.summaries} == {4}
    assert preview_sentence(picked.study, picked.results()).startswith("0 of 4 seeds are complete.")
    assert "pilot of 4" in design_notes(picked.study, picked.results())[0]


def test_a_failed_run_is_not_replaced_by_a_later_seed():
    book = filled(better("accuracy", **PAIR), seeds=5, differences=0.2 + 0.01 * np.eye(6, 9))
    lost = book.runs[book.index["sago", 2, "test", 0]]
    book.runs[book.index["sago", 2, "test", 0]] = type(lost)(**{**vars(lost), "state": "failed"})
    judgement = judge(book.study, book.results())
    verdict = judgement.verdicts[0]
    assert verdict.preview and "4 of 5 seeds" in verdict.reason
    assert any("sago: 1 of 6 runs failed" in note and "seeds 2" in note for note in judgement.notes)
    # A further seed does not make up for it either where a preview is explained or where verdicts are published.
    assert preview_sentence(book.study, book.results()).startswith("Not all seeds are complete: sago 4 of 5.")
    with pytest.raises(WorkFailed, match="is a preview: Not all seeds are complete: sago 4 of 5"):
        publish(Path("nowhere/verdicts.json"), book.study, book.results(), judgement)


def test_saturated_outcomes_are_undecided_and_said_so():
    for value in (0.0, 1.0):
        verdict = first(filled(better("accuracy", **PAIR), differences=np.full((5, 9), value)))
        assert verdict.state == "undecided" and "saturated" in verdict.reason
        assert verdict.seeds_needed is None


def test_missing_and_undefined_values_are_counted_not_dropped():
    book = filled(better("accuracy", **PAIR))
    book.items[0]["score"] = math.nan
    book.items[40]["score"] = math.nan
    verdict = first(book)
    assert verdict.state == "undecided" and verdict.reason.startswith("2 values of accuracy (sago, pcgrad) are missing")

    book = filled(better("accuracy", **PAIR))
    book.measure("sago", 0, "accuracy", 15, of=30, missing=3)
    assert first(book).reason.startswith("3 values of accuracy")


def test_nothing_complete_is_undecided():
    book = Book(declare(claim(better("accuracy", **PAIR)), seeds=3))
    assert first(book).reason == "undecided (preview, 0 of 3 seeds): no seed is complete in sago and pcgrad"
    book.measure("sago", 0, "accuracy", 0.5)
    assert "no seed is complete" in first(book).reason


def test_an_outcome_that_nobody_measured_is_undecided():
    outcomes = [Outcome("accuracy", better="higher"), Outcome("fluency", better="higher")]
    verdict = first(filled(better("fluency", **PAIR), outcomes=outcomes))
    assert verdict.reason == "no complete run measured fluency"


def test_only_the_chosen_point_and_test_seeds_count():
    book = filled(better("accuracy", **PAIR))
    for seed in range(5):
        book.score("sago", seed, "accuracy", np.full(30, 99.0), point=1)
        for arm, score in (("sago", 99.0), ("pcgrad", 0.0)):
            book.score(arm, 1_000_000 + seed, "accuracy", np.full(30, score), role="tuning")
    assert [effect.estimate for effect in first(book).effects] == [pytest.approx(0.1, abs=0.02)]
    assert first(book, chosen={"sago": 1, "pcgrad": 0}).effects[0].estimate > 90


# --- levels, exploratory, untested ----------------------------------------------------------------------------------


def test_the_level_is_shared_by_the_primary_claims_that_are_tested():
    test = better("accuracy", **PAIR)
    book = filled(
        (
            claim(test),
            claim(not_worse("accuracy", **PAIR, margin=0.1, reason="r")),
            Claim("known", source="card, known in advance", test=test),
            Claim("too large", source="abstract", untested="needs 8 GPUs"),
            claim(test, primary=False),
        )
    )
    verdicts = judge(book.study, book.results()).verdicts
    assert [v.effects[0].level if v.effects else None for v in verdicts] == [0.975, 0.975, 0.975, None, 0.975]
    assert [v.state for v in verdicts] == ["supported", "supported", "undecided", "untested", "undecided"]
    assert verdicts[2].reason.startswith("exploratory, no verdict") and not verdicts[2].primary
    assert verdicts[3].reason == "needs 8 GPUs"


def test_both_needs_all_and_falls_with_one():
    good, bad = better("accuracy", **PAIR), better("accuracy", arm="pcgrad", rival="sago")
    unclear = better("accuracy", **PAIR, margin=0.1, reason="r")
    states = [first(filled(both(*tests))).state for tests in ((good, good), (good, unclear), (unclear, bad))]
    assert states == ["supported", "undecided", "refuted"]
    verdict = first(filled(both(good, bad)))
    assert (
        len(verdict.effects) == 2 and verdict.reason.startswith("(1) supported: ") and "(2) refuted" in verdict.reason
    )
    assert verdict.effects[0].level == LEVEL_OF_ONE


# --- deterministic systems ------------------------------------------------------------------------------------------


def right_or_wrong(wins, losses, ties, clusters=None, seeds=1, **test):
    book = Book(declare(claim(better("accuracy", **PAIR, units=("item",), **test)), seeds=seeds))
    for seed in range(seeds):
        book.score("sago", seed, "accuracy", [1] * wins + [0] * losses + [1] * ties, clusters=clusters)
        book.score("pcgrad", seed, "accuracy", [0] * wins + [1] * losses + [1] * ties, clusters=clusters)
    return first(book)


def test_one_seed_of_right_or_wrong_answers_is_an_exact_mcnemar_test():
    verdict = right_or_wrong(6, 0, 30)
    assert verdict.details["mcnemar_p"] == pytest.approx(2 * 0.5**6)  # 0.031
    assert verdict.state == "supported"
    assert right_or_wrong(5, 0, 30).state == "undecided"  # p = 0.0625, where a t interval excludes 0
    assert right_or_wrong(0, 9, 30).reason.startswith("reversed")
    assert "saturated" in right_or_wrong(0, 0, 30).reason


def test_mcnemar_is_not_used_where_it_is_not_exact():
    assert "mcnemar_p" not in right_or_wrong(6, 0, 30, clusters=np.arange(36) // 2).details
    assert "mcnemar_p" not in right_or_wrong(6, 0, 30, margin=0.01, reason="r").details
    by_seed = Book(declare(claim(better("accuracy", **PAIR, units=("seed",))), seeds=10))
    for seed in range(10):  # whole numbers, and yet means of runs
        by_seed.measure("sago", seed, "accuracy", float(seed > 1))
        by_seed.measure("pcgrad", seed, "accuracy", 0.0)
    assert "mcnemar_p" not in first(by_seed).details
    assert right_or_wrong(9, 0, 30, seeds=3).details["mcnemar_p"] == pytest.approx(2 * 0.5**9)  # equal runs are one run


def test_a_claim_over_items_whose_seeds_differ_is_wrongly_declared():
    verdict = first(filled(better("accuracy", **PAIR, units=("item",))))
    assert verdict.state == "undecided" and "deterministic" in verdict.reason


# --- other tests ----------------------------------------------------------------------------------------------------


def spent(test, arm, rival):
    book = Book(declare(claim(test), seeds=len(arm)))
    for seed, (one, other) in enumerate(zip(arm, rival, strict=True)):
        book.run("sago", seed, cost={"tokens": one})
        book.run("pcgrad", seed, cost={"tokens": other})
    return first(book)


def test_cheaper_compares_log_ratios():
    arm, rival = [100, 110, 90, 105], [230, 200, 260, 210]
    verdict = spent(cheaper("tokens", **PAIR, by=1.5, reason="r"), arm, rival)
    expected = stats.ttest_1samp(np.log(np.divide(rival, arm)), 0).confidence_interval(0.95)
    assert (verdict.effects[0].lower, verdict.effects[0].upper) == pytest.approx((expected.low, expected.high))
    assert verdict.effects[0].margin == pytest.approx(math.log(1.5))
    assert verdict.state == "supported"
    assert verdict.reason.startswith("sago is cheaper by more than 1.5 times: 2.")
    assert spent(cheaper("tokens", **PAIR), arm, rival).reason.startswith("sago is cheaper: 2.")
    turned = spent(cheaper("tokens", **PAIR), rival, arm)
    assert turned.state == "refuted" and turned.reason.startswith("reversed")
    refuted = spent(cheaper("tokens", **PAIR, by=5, reason="r"), arm, rival)
    assert refuted.reason.startswith("sago is not cheaper by as much as 5 times")


def test_counted_costs_that_never_vary_are_exact_not_saturated():
    assert spent(cheaper("tokens", **PAIR, by=1.9, reason="r"), [100] * 3, [200] * 3).state == "supported"
    assert spent(cheaper("tokens", **PAIR, by=2.0, reason="r"), [100] * 3, [200] * 3).state == "undecided"
    assert spent(cheaper("tokens", **PAIR), [100] * 3, [100] * 3).state == "undecided"


@pytest.mark.parametrize("by", [1.05, 1.1, 1.25, 1.5, 1.7, 3.0])
def test_a_factor_of_exactly_the_margin_decides_nothing(by):
    book = Book(declare(claim(cheaper("calls", **PAIR, by=by, reason="r"))))
    for seed in range(5):
        book.run("sago", seed, cost={"calls": 100.0})
        book.run("pcgrad", seed, cost={"calls": 100.0 * by})
    verdict = first(book)
    assert verdict.state == "undecided" and verdict.effects[0].lower == verdict.effects[0].margin


def test_a_cost_that_was_not_booked_is_undecided():
    verdict = spent(cheaper("seconds", **PAIR), [1, 2, 3], [2, 3, 4])
    assert verdict.reason == "run sago-0-0 booked no seconds"
    assert "in phase query" in spent(cheaper("tokens", **PAIR, phase="query"), [1, 2, 3], [2, 3, 4]).reason


def two_conditions(shared, seeds=4):
    test = between("accuracy", arm="sago", where_a={"prompt": "plain"}, where_b={"prompt": "bias"})
    book = Book(declare(claim(test), seeds=seeds))
    generator = np.random.default_rng(4)
    hard = generator.standard_normal(50)
    for seed in range(seeds):
        own = 0.05 * generator.standard_normal((2, 50))
        book.score("sago", seed, "accuracy", hard + 0.3 + own[0], where={"prompt": "plain"})
        ids = None if shared else [f"other{n}" for n in range(50)]
        book.score("sago", seed, "accuracy", hard + own[1], ids=ids, where={"prompt": "bias"})
    return first(book)


def test_between_pairs_items_that_occur_under_both_conditions():
    paired, apart = two_conditions(True), two_conditions(False)
    assert paired.state == "supported" and apart.state == "undecided"
    assert paired.effects[0].estimate == pytest.approx(apart.effects[0].estimate)
    assert paired.effects[0].favours == "arm" and paired.effects[0].items == 50


def test_between_over_items_alone_is_a_t_interval_over_their_differences():
    plain, bias = np.random.default_rng(8).standard_normal((2, 12))
    test = between("accuracy", arm="sago", where_a={"prompt": "plain"}, where_b={"prompt": "bias"}, units=("item",))
    book = Book(declare(claim(test), seeds=3))
    for seed in range(3):  # a deterministic method: every seed answers the same
        book.score("sago", seed, "accuracy", plain, where={"prompt": "plain"})
        book.score("sago", seed, "accuracy", bias, where={"prompt": "bias"})
    effect = first(book).effects[0]
    expected = stats.ttest_1samp(plain - bias, 0).confidence_interval(0.95)
    assert (effect.lower, effect.upper) == pytest.approx((expected.low, expected.high))
    assert effect.estimate == pytest.approx(np.mean(plain - bias)) and effect.items == 12


def correlation(a, b):
    if len(a) < 2:
        return math.nan
    x, y = (
        np.asarray(values) - np.mean(values) for values in (a, b)
    )  # np.corrcoef takes five times as long, and it is computed thousands of times
    return float(x @ y / math.sqrt((x @ x) * (y @ y)))


def scored(test, *, seeds=10, items=40, own_items=False, slope=1.0):
    outcomes = [Outcome("confidence", better="higher"), Outcome("accuracy", better="higher")]
    book = Book(declare(claim(test), outcomes=outcomes, seeds=seeds))
    generator = np.random.default_rng(6)
    hard = generator.standard_normal(items)
    for seed in range(seeds):
        ids = [f"{seed if own_items else 0}-{n}" for n in range(items)]
        hardness = generator.standard_normal(items) if own_items else hard
        for arm, sign in (("sago", slope), ("pcgrad", 0.0)):
            book.score(arm, seed, "confidence", sign * hardness + generator.standard_normal(items), ids=ids)
            book.score(arm, seed, "accuracy", hardness + 0.3 * generator.standard_normal(items), ids=ids)
    return book


OUTCOMES = ("confidence", "accuracy")


def test_statistic_is_computed_per_run_and_compared():
    book = scored(statistic(correlation, **PAIR, outcomes=OUTCOMES))
    verdict = first(book)
    table = {}
    for row in book.items:
        table.setdefault((row["arm"], row["seed"], row["outcome"]), []).append(row["score"])
    expected = [
        correlation(*(table["sago", s, o] for o in OUTCOMES)) - correlation(*(table["pcgrad", s, o] for o in OUTCOMES))
        for s in range(10)
    ]
    assert verdict.effects[0].per_seed == pytest.approx(expected)
    assert verdict.state == "supported" and verdict.effects[0].items == 40
    turned = first(scored(statistic(correlation, **PAIR, outcomes=OUTCOMES, better="lower")))
    assert turned.state == "refuted" and turned.effects[0].estimate == pytest.approx(-np.mean(expected))


def test_statistic_against_a_threshold():
    @functools.cache
    def of(threshold, side):
        test = statistic(correlation, arm="sago", outcomes=OUTCOMES, margin=threshold, reason="r", better=side)
        return first(scored(test))

    assert of(0.4, "higher").state == "supported" and of(0.4, "lower").state == "refuted"
    assert of(0.9, "higher").state == "refuted" and of(0.9, "lower").state == "supported"
    assert of(0.4, "lower").effects[0].estimate > 0.4  # shown as it is
    assert of(0.4, "lower").reason.startswith("correlation is not below 0.4")
    assert of(0.9, "lower").effects[0].favours == "arm"


def test_statistic_needs_ten_seeds_or_fifty_sources():
    few = first(scored(statistic(correlation, **PAIR, outcomes=OUTCOMES), seeds=4))
    assert few.state == "undecided" and "needs 10 seeds or 50 sources" in few.reason
    assert first(scored(statistic(correlation, **PAIR, outcomes=OUTCOMES), seeds=4, items=50)).state == "supported"


def test_statistic_joins_its_outcomes_by_item():
    """An outcome that has more items than the other, in front of the others, must not shift them."""
    test = statistic(correlation, **PAIR, outcomes=OUTCOMES)
    whole = judge(scored(test).study, scored(test).results())
    assert not any("no partner" in note for note in whole.notes)
    book = scored(test)
    for seed in range(10):
        for arm in ("sago", "pcgrad"):
            book.score(arm, seed, "confidence", [9.0, -9.0], ids=["0-", "zz"])
    more = judge(book.study, book.results())
    assert more.verdicts[0].effects[0].per_seed == pytest.approx(whole.verdicts[0].effects[0].per_seed)
    assert any("correlation: 40 scores have no partner" in note for note in more.notes)


def test_statistic_over_each_seeds_own_items_counts_seeds():
    verdict = first(scored(statistic(correlation, **PAIR, outcomes=OUTCOMES), own_items=True))
    expected = stats.ttest_1samp(verdict.effects[0].per_seed, 0).confidence_interval(0.95)
    assert verdict.effects[0].lower == pytest.approx(expected.low) and verdict.effects[0].items == 0


def test_statistic_over_items_alone_redraws_each_seeds_own():
    """Of a mean, the interval is that of the pooled questions about their own seed's mean."""

    def ahead(a, b):
        return float(np.mean(a - b))

    test = statistic(ahead, arm="sago", outcomes=OUTCOMES, units=("item",))
    book = scored(test, seeds=3, items=60, own_items=True)
    effect = first(book).effects[0]
    rows = [row for row in book.items if row["arm"] == "sago"]
    own = [[r["score"] for r in rows if (r["seed"], r["outcome"]) == key] for key in product(range(3), OUTCOMES)]
    gaps = [np.subtract(*pair) for pair in zip(own[::2], own[1::2], strict=True)]
    assert effect.per_seed == pytest.approx([gap.mean() for gap in gaps]) and effect.items == 180
    assert "its seeds differ" not in first(book).reason  # with questions of their own they may
    spread = math.sqrt(np.mean([gap.var(ddof=1) for gap in gaps]) / 180)
    assert (effect.upper - effect.lower) / 2 == pytest.approx(stats.t.ppf(0.975, 179) * spread, rel=0.1)
    both = scored(statistic(ahead, **PAIR, outcomes=OUTCOMES, units=("item",)), seeds=3, items=60, own_items=True)
    assert first(both).effects[0].items == 180
    for arm, outcome in product(("sago", "pcgrad"), OUTCOMES):
        for seed in (0, 1):  # a question that two seeds share, and not the third
            both.score(arm, seed, outcome, [0.5], ids=["common"])
    assert "the seeds share only some of" in first(both).reason


def test_statistic_that_is_undefined_or_fails_is_undecided():
    def undefined(a, b):
        return math.nan

    def failing(a, b):
        raise ValueError("only one class")

    assert "undefined in 10 of 10" in first(scored(statistic(undefined, **PAIR, outcomes=OUTCOMES))).reason
    assert (
        "failing could not be computed: only one" in first(scored(statistic(failing, **PAIR, outcomes=OUTCOMES))).reason
    )


def test_statistic_over_the_path_sees_means_per_place():
    seen = []

    def area(retain, forget):
        seen.append((len(retain), len(forget)))
        return float(np.trapezoid(retain, 1 - np.asarray(forget)))

    outcomes = [Outcome("retain", better="higher"), Outcome("forget", better="lower")]
    test = statistic(area, **PAIR, outcomes=("retain", "forget"), over="path")
    book = Book(declare(claim(test), outcomes=outcomes, seeds=10))
    generator = np.random.default_rng(7)
    for seed in range(10):
        for step in (0, 10, 20, 30):
            for arm, gain in (("sago", 0.2), ("pcgrad", 0.0)):
                retain = 0.5 + gain + 0.1 * generator.standard_normal(20)
                book.score(arm, seed, "retain", retain, at={"step": step})
                book.measure(arm, seed, "forget", 0.9 - step / 50, at={"step": step})
    verdict = first(book)
    assert set(seen) == {(4, 4)}
    assert verdict.state == "supported"
    assert verdict.effects[0].estimate == pytest.approx(0.2 * 0.6, abs=0.01)


# --- what else the judgement says -----------------------------------------------------------------------------------


def test_a_draw_without_any_item_of_a_place_is_left_out():
    """Three of twenty items were asked at the first place: every thirtieth draw has none of them."""
    outcomes = [Outcome("retain", better="higher")]
    test = statistic(lambda retain: float(np.mean(retain)), **PAIR, outcomes=("retain",), over="path")
    book = Book(declare(claim(test), outcomes=outcomes, seeds=10))
    generator = np.random.default_rng(9)
    gaps = []
    for seed in range(10):
        means = {}
        for arm, gain in (("sago", 0.2), ("pcgrad", 0.0)):
            scores = gain + 0.1 * generator.standard_normal(20)
            book.score(arm, seed, "retain", scores[:3], at={"step": 0})
            book.score(arm, seed, "retain", scores, at={"step": 10})
            means[arm] = (scores[:3].mean() + scores.mean()) / 2
        gaps.append(means["sago"] - means["pcgrad"])
    verdict = first(book)
    assert verdict.effects[0].per_seed == pytest.approx(gaps)
    assert verdict.state == "supported" and math.isfinite(verdict.effects[0].lower)


def test_seeds_that_would_decide_are_a_range():
    book = filled(better("accuracy", **PAIR), seeds=5, mean=0.0, spread=0.0, differences=None)
    generator = np.random.default_rng(11)
    noisy = 0.1 + 0.2 * generator.standard_normal((5, 1)) + 0.05 * generator.standard_normal((5, 30))
    verdict = first(filled(better("accuracy", **PAIR), differences=noisy))
    assert verdict.state == "undecided"
    low, high = verdict.seeds_needed
    assert 5 < low < high < 1000
    assert f"{low} to {high} fresh seeds" in verdict.reason
    assert first(book).seeds_needed is None


def test_summaries_are_the_arms_own_values_with_counts():
    book = Book(declare(claim(better("accuracy", **PAIR)), seeds=3))
    generator = np.random.default_rng(1)
    scores = {arm: (generator.random((3, 50)) < p).astype(float) for arm, p in (("sago", 0.8), ("pcgrad", 0.4))}
    for arm, rows in scores.items():
        for seed, row in enumerate(rows):
            book.score(arm, seed, "accuracy", row, where={"split": "test"}, at={"step": 9})
            book.measure(arm, seed, "accuracy", row.sum(), of=50, missing=seed, where={"split": "test"}, at={"step": 9})
            book.score(arm, seed, "accuracy", row, where={"split": "validation"}, at={"step": 9})
    judgement = judge(book.study, book.results())
    sago, pcgrad = judgement.summaries
    assert (sago.arm, pcgrad.arm, sago.at, sago.where) == ("sago", "pcgrad", '{"step": 9}', '{"split": "test"}')
    assert sago.estimate == pytest.approx(scores["sago"].mean())
    assert (sago.numerator, sago.of, sago.missing, sago.seeds) == (scores["sago"].sum(), 150, 3, 3)
    assert 0 < pcgrad.lower < scores["pcgrad"].mean() < pcgrad.upper < sago.lower < 1


def test_a_summary_without_any_spread_has_an_interval_of_its_answers():
    book = Book(declare(claim(better("accuracy", **PAIR)), seeds=3))
    for seed in range(3):
        book.score("sago", seed, "accuracy", np.ones(20))
        book.measure("pcgrad", seed, "accuracy", 0.5)
    sago, pcgrad = judge(book.study, book.results()).summaries
    assert (sago.estimate, sago.upper) == (1.0, 1.0) and 0.8 < sago.lower < 0.9  # Wilson, 20 of 20
    assert pcgrad.estimate == 0.5 and math.isnan(pcgrad.lower) and math.isnan(pcgrad.of)


def test_clusters_of_one_run_that_come_to_the_same_are_as_many_answers():
    """Between them nothing spreads, within them it does: half of four, where four that differ have their own spread."""
    book = Book(declare(claim(better("accuracy", **PAIR)), seeds=1))
    book.score("sago", 0, "accuracy", np.array([0.0, 1.0] * 4), clusters=list("aabbccdd"))
    book.score("pcgrad", 0, "accuracy", np.array([0.0, 0, 1, 1, 0, 1, 1, 1]), clusters=list("aabbccdd"))
    sago, pcgrad = judge(book.study, book.results()).summaries
    assert (sago.lower, sago.upper) == pytest.approx(statistics.wilson(2, 4))
    spread = statistics.mean_interval(np.array([[0.0, 0, 1, 1, 0, 1, 1, 1]]), list("aabbccdd"), units=("item",))
    assert (pcgrad.lower, pcgrad.upper) == (max(spread.lower, 0.0), min(spread.upper, 1.0))


def test_a_rate_that_no_count_gives_is_named():
    book = Book(declare(claim(better("accuracy", **PAIR)), seeds=3))
    for seed in range(3):
        book.measure("sago", seed, "accuracy", 3.35, of=10)
        book.measure("pcgrad", seed, "accuracy", 3, of=10)
    notes = judge(book.study, book.results()).notes
    assert [note for note in notes if "3.35 of 10 is no count of answers (so in 3 of its values)" in note]


def test_design_notes_before_any_run():
    study = declare(
        claim(better("accuracy", **PAIR), "A is better."),
        claim(equal("accuracy", **PAIR, margin=0.05, reason="r"), "A equals B"),
        claim(better("accuracy", **PAIR, units=("item",), margin=0.1, reason="r"), "C"),
        seeds=10,
    )
    notes = design_notes(study)
    level = 1 - 0.05 / 3
    reach = stats.t.ppf((1 + level) / 2, 9) / math.sqrt(10)
    assert notes[0].startswith(f"A is better: 10 seeds give at best ±{reach:.2g} standard deviations")
    assert f"below {0.05 / reach:.3g}" in notes[1]
    items = int(re.search(r"([\d,]+) items", notes[2])[1].replace(",", ""))
    widest = [item_interval(np.resize([1.0, -1.0], n - n % 2), level=level).upper for n in (items + 1, items - 2)]
    assert widest[0] <= 0.1 < widest[1]  # what the judging itself would say of answers that differ as much as they can
    assert judge(study, Book(study).results()).design == tuple(notes)
    hopeless = declare(claim(better("accuracy", **PAIR)), seeds=2)
    assert "cannot be decided" in design_notes(hopeless)[0]


def test_design_notes_from_a_pilot():
    def notes(margin):
        book = filled(equal("accuracy", **PAIR, margin=margin, reason="r"), seeds=20, differences=PILOT)
        return design_notes(book.study, book.results())[0]

    assert "which can be decided" in notes(0.2) and "pilot of 4" in notes(0.2)
    assert "which cannot be decided" in notes(0.001)


PILOT = 0.1 * np.random.default_rng(3).standard_normal((4, 1)) + 0.05 * np.random.default_rng(4).standard_normal(
    (4, 30)
)


def test_one_more_claim_widens_every_interval():
    one = first(filled(better("accuracy", **PAIR))).effects[0]
    two = first(filled((claim(better("accuracy", **PAIR)), claim(better("accuracy", **PAIR))))).effects[0]
    assert two.upper - two.lower > 1.05 * (one.upper - one.lower)
