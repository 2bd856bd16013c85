import json
import math

import numpy as np
import pyarrow as pa
import pytest

from equipoise.core.errors import WorkFailed
from equipoise.study import Arm, Outcome, Select, Study
from equipoise.study.results import measurements_schema
from equipoise.study.selection import _at_level, _path, choose

GRID = {"rate": [1, 2, 3]}


def study(select, arms=("a",)) -> Study:
    return Study(
        arms=[Arm(name, grid=GRID) for name in arms],
        outcomes=[Outcome("kept", better="higher"), Outcome("lost", better="lower")],
        claims=[],
        run=lambda run: None,
        budget="calls",
        without_control="a test",
        select=select,
    )


def table(*rows, role="tuning", where=None):
    """Rows (arm, point, seed, outcome, path of values at steps 0, 10, 20, ...)."""
    full = []
    for arm, point, seed, outcome, path in rows:
        for index, value in enumerate(path):
            place = {"at": json.dumps({"step": 10 * index}), "where": json.dumps(where or {"split": "validation"})}
            counts = {"value": float(value), "numerator": float(value), "of": math.nan, "missing": 0}
            who = {"run": 0, "arm": arm, "point": point, "seed": seed, "role": role, "outcome": outcome}
            full.append({**who, **counts, **place, "order": index})
    return pa.Table.from_pylist(full, schema=measurements_schema())


def test_the_best_end_of_the_path_over_the_tuning_seeds():
    rows = [
        *[("a", 0, seed, "kept", [0.9, 0.5]) for seed in (0, 1)],
        ("a", 1, 0, "kept", [0.1, 0.9]),
        ("a", 1, 1, "kept", [0.1, 0.4]),
        *[("a", 2, seed, "kept", [0.2, 0.6]) for seed in (0, 1)],
    ]
    chosen, fared = choose(study(Select("kept")), table(*rows))
    assert chosen == {"a": 1}
    assert [each.score for each in fared] == pytest.approx([0.5, 0.65, 0.6])
    assert [each.chosen for each in fared] == [False, True, False]
    lower = [(arm, point, seed, "lost", path) for arm, point, seed, _, path in rows]
    assert choose(study(Select("lost")), table(*lower))[0] == {"a": 0}


def test_test_runs_and_other_splits_do_not_choose():
    good = table(("a", 0, 0, "kept", [0.5]), ("a", 1, 0, "kept", [0.4]), ("a", 2, 0, "kept", [0.3]))
    tests = table(("a", 2, 0, "kept", [0.99]), role="test")
    other = table(("a", 1, 0, "kept", [0.99]), where={"split": "test"})
    assert choose(study(Select("kept", seeds=1)), pa.concat_tables([good, tests, other]).unify_dictionaries())[0] == {
        "a": 0
    }


def test_matched_reads_the_outcome_where_the_level_is_crossed():
    # lost falls through 0.5 halfway between steps 10 and 20 (point 0), and at step 10 (point 1)
    rows = [
        ("a", 0, 0, "lost", [0.9, 0.6, 0.4]),
        ("a", 0, 0, "kept", [1.0, 0.8, 0.6]),
        ("a", 1, 0, "lost", [0.9, 0.5, 0.1]),
        ("a", 1, 0, "kept", [1.0, 0.65, 0.95]),
    ]
    chosen, fared = choose(study(Select("kept", seeds=1, matched="lost", level=0.5)), table(*rows))
    assert chosen == {"a": 0}
    assert [each.score for each in fared[:2]] == pytest.approx([0.7, 0.65])
    assert [(each.reached, each.seeds) for each in fared] == [(1, 1), (1, 1), (0, 0)]


def test_a_point_that_misses_the_level_ranks_below_by_how_near_it_came():
    rows = [("a", 0, 0, "lost", [0.9, 0.8]), ("a", 1, 0, "lost", [0.9, 0.6]), ("a", 2, 0, "lost", [0.9, 0.7])]
    rows += [("a", point, 0, "kept", [1.0, 1.0 - point / 10]) for point in range(3)]
    select = Select("kept", seeds=1, matched="lost", level=0.5)
    assert choose(study(select), table(*rows))[0] == {"a": 1}
    reaching = [*rows[1:], ("a", 0, 0, "lost", [0.9, 0.4])]
    assert choose(study(select), table(*reaching))[0] == {"a": 0}


def test_the_weakest_level_is_what_every_arm_can_reach():
    rows = [("a", point, 0, "lost", [0.9, 0.5, 0.1]) for point in range(3)]
    rows += [("a", point, 0, "kept", path) for point, path in enumerate([[1, 0.9, 0.0], [1, 0.5, 0.5], [1, 0.6, 0.4]])]
    rows += [("b", point, 0, "lost", [0.9, 0.7, 0.5 + point / 10]) for point in range(3)]
    rows += [("b", point, 0, "kept", [1, 0.9, 0.8]) for point in range(3)]
    chosen, fared = choose(study(Select("kept", seeds=1, matched="lost", level="weakest"), ("a", "b")), table(*rows))
    assert chosen == {"a": 0, "b": 0}  # level 0.5: the end of b's best point; at it a keeps 0.9, 0.5, 0.6
    assert [each.score for each in fared[:3]] == pytest.approx([0.9, 0.5, 0.6])
    assert [each.reached for each in fared] == [1, 1, 1, 1, 0, 0]


def test_ties_go_to_the_first_and_failures_are_not_chosen():
    rows = [("a", 1, 0, "kept", [0.5]), ("a", 2, 0, "kept", [0.5]), ("b", 0, 0, "kept", [math.nan])]
    chosen, fared = choose(study(Select("kept", seeds=1), ("a", "b")), table(*rows))
    assert chosen == {"a": 1}
    assert not any(each.chosen for each in fared if each.arm == "b")
    one_failed = [("a", 0, 0, "kept", [0.9]), *[("a", 1, seed, "kept", [0.5]) for seed in (0, 1)]]
    assert choose(study(Select("kept")), table(*one_failed))[0] == {"a": 1}


def test_a_condition_that_is_not_plain_is_an_error():
    two = pa.concat_tables(
        [
            table(("a", 0, 0, "kept", [1]), where={"split": "validation", "topic": "x"}),
            table(("a", 0, 0, "kept", [1]), where={"split": "validation", "topic": "y"}),
        ]
    ).unify_dictionaries()
    with pytest.raises(WorkFailed, match="several conditions"):
        choose(study(Select("kept", seeds=1)), two)


def test_an_arm_with_one_point_needs_no_tuning():
    built = study(Select("kept"), ("a",))
    fixed = Arm("oracle", kind="reference", fixed="nothing to tune")
    built = Study(
        **{
            **{f: getattr(built, f) for f in ("outcomes", "claims", "run", "budget", "select")},
            "arms": [*built.arms, fixed],
            "without_control": "x",
        }
    )
    assert choose(built, measurements_schema().empty_table())[0] == {"oracle": 0}


def test_a_path_goes_by_its_places_and_at_one_by_the_order_of_measuring():
    measured = [(2.0, 5, 0.1), (1.0, 9, 0.2), (1.0, 3, 0.3), (math.nan, 8, 0.4), (math.nan, 2, 0.5), (2.0, 4, 0.6)]
    places, values = _path(measured)
    assert values.tolist() == [0.5, 0.4, 0.3, 0.2, 0.6, 0.1]
    assert places[2:].tolist() == [1, 1, 2, 2] and all(map(math.isnan, places[:2]))


def test_where_a_path_comes_to_a_level_nothing_is_missed():
    """Half way between the places 2 and 4; the judged outcome is read there, without one the place itself."""
    height = Outcome("height", better="higher")
    path = {
        "height": (np.array([2.0, 4.0]), np.array([1.0, 3.0])),
        "kept": (np.array([2.0, 4.0]), np.array([0.9, 0.5])),
    }
    assert _at_level(path, None, height, 2.0) == (3.0, 0.0)
    assert _at_level(path, "kept", height, 2.0) == (pytest.approx(0.7), 0.0)
    assert _at_level(path, "kept", height, 3.5) == (pytest.approx(math.nan, nan_ok=True), 0.5)
    longer = {"height": (np.arange(3.0), np.array([0.0, 1.0, 3.0]))}
    assert _at_level(longer, None, height, 4.5) == (pytest.approx(math.nan, nan_ok=True), 1.5)  # off its end
    assert _at_level(longer, None, height, 2.0) == (pytest.approx(1.5), 0.0)
    assert _at_level({**longer, "kept": (np.arange(2.0), np.ones(2))}, "kept", height, 0.5) == (1.0, 0.0)
    for values, level in ((np.array([0.0, math.nan, 3.0]), 2.0), (np.array([0.0, 1.0, 3.0]), math.nan)):
        unknown = _at_level({"height": (np.arange(3.0), values)}, None, height, level)
        assert unknown == (pytest.approx(math.nan, nan_ok=True), math.inf)
    assert _at_level({}, "kept", height, 2.0) == (pytest.approx(math.nan, nan_ok=True), math.inf)
