"""The matched comparison of equal arms that differ in speed and in how often they are evaluated favours nobody."""

import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from equipoise.study.claims import Claim, matched
from equipoise.study.crossings import Crossings, crossing_details, find_crossings, refuse_missed_level
from equipoise.study.declare import Outcome
from equipoise.study.judging import judge
from equipoise.study.results import Results, RunInfo, items_schema, measurements_schema
from equipoise.study.scores import Unjudgeable, coded
from judging_results import Book, declare

_PATH = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
_SPEC = importlib.util.spec_from_file_location("coverage_benchmark_paths", _PATH)
benchmark = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(benchmark)

OUTCOMES = [Outcome("retain", better="higher"), Outcome("forget", better="lower")]
VALIDATION, TEST = '{"split": "validation"}', '{"split": "test"}'


def many_studies(name, curved, studies, level):
    """As many pairs of equal arms as studies, in one Results, and an exploratory matched claim for each pair."""
    arms = benchmark.paths(name, curved, studies, np.random.default_rng(3))
    seeds = arms[0][1].shape[1]
    claims = [
        Claim(
            f"pair {n}",
            source="a",
            test=matched("forget", arm=f"slow{n}", rival=f"fast{n}", judge="retain", level=level),
            primary=False,
        )
        for n in range(studies)
    ]
    names = [f"{speed}{n}" for n in range(studies) for speed in ("fast", "slow")]
    study = declare(*claims, outcomes=OUTCOMES, arms=names, seeds=seeds)
    runs = [
        RunInfo(f"{arm}-{seed}", arm, "method", 0, {}, seed, "test", "complete", {}, Path(), "f")
        for arm in names
        for seed in range(seeds)
    ]
    columns = {key: [] for key in ("run", "value", "outcome", "at", "where")}
    texts = sorted({f'{{"step": {x}}}' for x, _, _ in arms for x in x.tolist()})
    for which, (places, forget, retain) in enumerate(arms):
        at = np.array([texts.index(f'{{"step": {x}}}') for x in places.tolist()])
        run = (np.arange(studies)[:, None] * 2 + which) * seeds + np.arange(seeds)
        for code, values in enumerate((retain, forget)):
            columns["run"].append(np.repeat(run.ravel(), places.size))
            columns["value"].append(values.ravel())
            columns["outcome"].append(np.full(values.size, code))
            columns["where"].append(np.full(values.size, code))
            columns["at"].append(np.tile(at, run.size))
    flat = {key: np.concatenate(each) for key, each in columns.items()}
    rows = flat["run"].size

    def coded(codes, words):
        return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(words))

    unused = coded(np.zeros(rows, int), ["unused"])
    table = {
        "run": pa.array(flat["run"], pa.int32()),
        "arm": unused,
        "point": pa.array(np.zeros(rows), pa.int32()),
        "seed": pa.array(np.zeros(rows), pa.int64()),
        "role": unused,
        "outcome": coded(flat["outcome"], ["retain", "forget"]),
        "value": pa.array(flat["value"]),
        "numerator": pa.array(np.full(rows, np.nan)),
        "of": pa.array(np.full(rows, np.nan)),
        "missing": pa.array(np.zeros(rows), pa.int64()),
        "at": coded(flat["at"], texts),
        "where": coded(flat["where"], [TEST, VALIDATION]),
        "order": pa.array(np.arange(rows), pa.int64()),
    }
    measurements = pa.table(table, schema=measurements_schema())
    chosen = dict.fromkeys(names, 0)
    return study, Results("many", {}, {}, runs, chosen, measurements, items_schema().empty_table())


def bias_in_points(name, curved, studies, level):
    study, results = many_studies(name, curved, studies, level)
    effects = [verdict.effects[0].estimate for verdict in judge(study, results).verdicts if verdict.effects]
    assert len(effects) > 0.98 * studies
    return 100 * float(np.mean(effects))


UNEQUAL = "2 times faster, slow arm evaluated 2 times as often"


@pytest.mark.parametrize("level", [pytest.param(0.45, marks=pytest.mark.slow), "weakest"])
def test_equal_arms_of_unequal_speed_and_density_are_not_favoured(level):
    judging, first_crossing, _, held = benchmark.matched_bias(
        benchmark.paths(UNEQUAL, True, 400, np.random.default_rng(3)), level
    )
    assert 0.92 < held < 0.98
    assert abs(judging) < 0.3
    assert first_crossing > 0.7  # what the judging corrects


@pytest.mark.parametrize("level", [0.45, "weakest"])
def test_the_simulation_computes_what_judge_computes(level):
    study, results = many_studies(UNEQUAL, True, 20, level)
    effects = [verdict.effects[0].estimate for verdict in judge(study, results).verdicts]
    expected = benchmark.matched_bias(benchmark.paths(UNEQUAL, True, 20, np.random.default_rng(3)), level)[0]
    assert 100 * np.mean(effects) == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("name", list(benchmark.PATHS)[:2])
@pytest.mark.parametrize("level", [0.45, 0.35, "weakest"])
def test_equal_arms_are_not_favoured_on_any_frontier(name, curved, level):
    arms = benchmark.paths(name, curved, 1500, np.random.default_rng(3))
    assert abs(benchmark.matched_bias(arms, level)[0]) < 0.3


# --- by item, and what cannot be matched ----------------------------------------------------------------------------

STEPS = range(0, 101, 20)


def book(
    level=0.3,
    margin=0.0,
    *,
    seeds=4,
    slow_to=100,
    slow_in=None,
    grid=STEPS,
    rival_grid=STEPS,
    judge_gain=0.1,
    log=False,
):
    """Forgetting falls linearly with the step, 0.9 to 0.1 (the rival to where it is after slow_to of these steps).

    slow_in: the only seeds in which the rival is slower.
    """
    outcomes = [Outcome("retain", better="lower" if log else "higher", log=log), Outcome("forget", better="lower")]
    claim = Claim(
        "keeps more",
        source="a",
        test=matched(
            "forget", arm="sago", rival="pcgrad", judge="retain", level=level, margin=margin, reason="r" * bool(margin)
        ),
    )
    book = Book(declare(claim, outcomes=outcomes, seeds=seeds))
    generator = np.random.default_rng(8)
    items = generator.random(40)
    for arm, places, speed in (("sago", grid, 1.0), ("pcgrad", rival_grid, slow_to / 100)):
        for seed in range(seeds):
            own = 0.02 * generator.standard_normal()
            for step in places:
                forgetting = 0.9 - 0.8 * (speed if slow_in is None or seed in slow_in else 1.0) * step / 100
                book.measure(arm, seed, "forget", forgetting, at={"step": step}, where={"split": "validation"})
                book.measure(arm, seed, "forget", 0.99, at={"step": step}, where={"split": "test"})
                scores = items + 0.5 * forgetting + own + (judge_gain if arm == "sago" else 0.0)
                book.score(arm, seed, "retain", scores, at={"step": step}, where={"split": "test"})
    return book


def verdict_of(book):
    judgement = judge(book.study, book.results())
    return judgement.verdicts[0], judgement


def test_crossing_is_found_on_validation_and_items_are_read_there():
    verdict, judgement = verdict_of(book())
    effect = verdict.effects[0]
    assert verdict.details["crossings"]["sago-0-0"] == pytest.approx(75.0)
    assert (effect.seeds, effect.items) == (4, 40)
    at_level = [s for s in judgement.summaries if s.at == '{"forget": 0.3}']
    assert {s.arm for s in at_level} == {"sago", "pcgrad"}
    difference = at_level[0].estimate - at_level[1].estimate
    assert effect.estimate == pytest.approx(difference) and effect.estimate == pytest.approx(0.1, abs=0.03)
    assert max(np.ptp(effect.per_seed), 0) > 0.01
    assert not any("validation split" in note for note in judgement.notes)


def test_equal_speed_is_not_needed():
    verdict, _ = verdict_of(book(slow_to=80, judge_gain=0.0, level=0.42))
    crossings = verdict.details["crossings"]
    assert crossings["sago-0-1"] == pytest.approx(60.0) and crossings["pcgrad-0-1"] == pytest.approx(75.0)
    assert verdict.effects[0].estimate == pytest.approx(0.0, abs=0.03)


def test_an_arm_that_misses_the_level_leaves_it_undecided():
    verdict, judgement = verdict_of(book(slow_to=60))
    assert verdict.state == "undecided" and not verdict.effects
    assert "pcgrad reached 0.3 in 0 of 4" in verdict.reason and "sago reached 0.3 in 4 of 4" in verdict.reason
    assert verdict.details["reached"] == {"sago": "4 of 4", "pcgrad": "0 of 4"}
    assert verdict.details["crossings"]["pcgrad-0-0"] is None
    assert verdict.runs and not [s for s in judgement.summaries if "forget" in s.at]


def test_seeds_that_reach_the_level_are_shown_where_others_miss_it():
    verdict, judgement = verdict_of(book(slow_to=60, slow_in=[2]))
    assert verdict.state == "undecided" and not verdict.effects
    assert verdict.details["reached"] == {"sago": "4 of 4", "pcgrad": "3 of 4"}
    shown = {s.arm: s for s in judgement.summaries if s.at == '{"forget": 0.3}'}
    assert {arm: s.seeds for arm, s in shown.items()} == {"sago": 3, "pcgrad": 3}
    assert shown["pcgrad"].runs == ("pcgrad-0-0", "pcgrad-0-1", "pcgrad-0-3")
    assert shown["sago"].estimate - shown["pcgrad"].estimate == pytest.approx(0.1, abs=0.03)


def test_a_level_passed_before_the_first_evaluation_is_no_crossing():
    verdict, _ = verdict_of(book(level=0.8, grid=range(20, 101, 20)))
    assert verdict.state == "undecided"
    assert "sago reached 0.8 in 0 of 4" in verdict.reason and "4 of the runs were past it" in verdict.reason


def test_weakest_level_is_the_strongest_that_all_reach():
    verdict, _ = verdict_of(book(level="weakest", slow_to=60))
    assert verdict.details["level"] == pytest.approx(0.9 - 0.8 * 0.6 * 0.95)  # 5 % of the slower path to spare
    assert verdict.details["crossings"]["sago-0-0"] == pytest.approx(57.0)
    assert verdict.details["crossings"]["pcgrad-0-0"] == pytest.approx(95.0)


def test_a_denser_grid_is_thinned_to_the_common_one():
    verdict, _ = verdict_of(book(grid=range(0, 101, 5)))
    assert verdict.details["places"]["sago"] == list(STEPS) == verdict.details["places"]["pcgrad"]


def test_arms_without_common_places_cannot_be_matched():
    verdict, _ = verdict_of(book(rival_grid=range(7, 101, 20)))
    assert verdict.state == "undecided" and "share" in verdict.reason


def test_undefined_values_along_the_path_are_counted():
    data = book()
    data.measurements[0]["value"] = math.nan
    verdict, _ = verdict_of(data)
    assert verdict.state == "undecided" and verdict.reason.startswith("1 values of forget")


def test_missing_answers_along_the_path_are_counted():
    """The values are there, of the answers that came: whoever failed to answer cannot say where the level was."""
    data = book()
    forgetting = [row for row in data.measurements if row["outcome"] == "forget" and "validation" in row["where"]]
    forgetting[3]["missing"] = 2
    verdict, _ = verdict_of(data)
    assert verdict.state == "undecided" and verdict.reason.startswith("2 values of forget along the paths are missing")


def test_a_coarse_path_is_said_to_be_coarse():
    wide, fine = (book(margin=0.01, judge_gain=0.02, grid=g, rival_grid=g) for g in ((0, 100), range(0, 101, 4)))
    assert any("evaluate more often" in note for note in verdict_of(wide)[1].notes)
    assert not any("evaluate more often" in note for note in verdict_of(fine)[1].notes)


def test_lower_is_better_and_ratios_at_the_level():
    verdict, _ = verdict_of(book(log=True))
    assert verdict.effects[0].favours != "arm"  # sago's 0.1 more is worse here
    assert verdict.effects[0].estimate < 0


@pytest.mark.parametrize(("increasing", "past"), [(True, 1), (False, 2)])
def test_which_runs_were_past_the_level_at_their_first_evaluation(increasing, past):
    """One begins above it and two below; the fourth, above it too, crossed."""
    fits = [np.array([0.9, 0.95]), np.array([0.1, 0.2]), np.array([0.2, 0.3]), np.array([0.8, 0.1])]
    found = Crossings(fits, 0.5, np.array([math.nan, math.nan, math.nan, 0.4]), increasing)
    with pytest.raises(Unjudgeable) as refused:
        refuse_missed_level(SimpleNamespace(outcome="height"), found, {"reached": {"up": "1 of 4"}})
    assert str(refused.value) == (
        f"height: up reached 0.5 in 1 of 4 ({past} of the runs were past it at their first evaluation)"
    )


def test_texts_of_a_column_get_codes_and_null_is_the_empty_text():
    two = pa.chunked_array([pa.array(["b", None, "a"]).dictionary_encode(), pa.array(["c", "a"]).dictionary_encode()])
    for column in (two, two.cast(pa.string())):
        codes, texts = coded(column)
        assert [texts[code] for code in codes] == ["b", "", "a", "c", "a"] and codes.dtype == np.int64
        assert sorted(texts) == ["", "a", "b", "c"]
    for kind in (pa.string(), pa.dictionary(pa.int32(), pa.string())):
        codes, texts = coded(pa.chunked_array([], kind))
        assert codes.tolist() == [] and texts == [""]


def test_what_is_told_of_the_crossings_of_each_arm():
    named = SimpleNamespace(keys_of=lambda runs: tuple(f"r{run}" for run in runs))
    positions = np.array([0.5, math.nan, 1.0, 0.0, math.nan, math.nan])
    found = Crossings([np.zeros(2)] * 6, 0.25, positions, False)
    test = SimpleNamespace(outcome="height", arm="up", rival="flat")
    at = [5.0, math.nan, 10.0, 0.0, math.nan, math.nan]
    assert crossing_details(named, test, [4, 2, 9, 1, 3, 5], found, at, "calls") == {
        "matched": "height",
        "level": 0.25,
        "dial": "calls",
        "increasing": False,
        "crossings": {"r4": 5.0, "r2": None, "r9": 10.0, "r1": 0.0, "r3": None, "r5": None},
        "reached": {"up": "2 of 3", "flat": "1 of 3"},
    }


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_paths_rise_or_fall_together_by_their_slopes(sign):
    """The first falls a little less than the second rises, whatever their lengths and heights."""
    value = np.array([9.0, 9.0, 7.5, 0.0, 2.0]) * sign
    paths = [np.array([0, 1, 2]), np.array([3, 4])]

    def found(level, missing=(0, 0, 0, 0, 0)):
        scores = SimpleNamespace(value=value, missing=np.array(missing, float))
        test = SimpleNamespace(outcome="height", level=level)
        return find_crossings(scores, test, paths)

    crossed = found(1.0 * sign)
    assert crossed.increasing is (sign < 0)  # slopes -1.5 and 1.0
    steeper = value.copy()
    steeper[4] = 4.0 * sign
    value = steeper
    crossed = found(1.0 * sign)
    assert crossed.increasing is (sign > 0) and crossed.level == sign
    assert crossed.positions[1] == pytest.approx(0.25)
    with pytest.raises(Unjudgeable, match=r"^3 values of height along the paths are missing"):
        found(1.0, (1, 0, 2, 0, 0))
    value[0] = math.inf
    with pytest.raises(Unjudgeable, match=r"^2 values of height along"):
        found(1.0, (0.5, 0, 0, 1, 0))
