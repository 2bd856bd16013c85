"""The stored numbers arranged for lookups: which runs and conditions are meant, what is read of a path and beside it."""

import math

import numpy as np
import pytest

from equipoise.study.declare import Outcome
from equipoise.study.results import items_schema
from equipoise.study.scores import Scores, Unjudgeable, _number, _union, columns_of
from judging_results import Book, declare, table

NAN = math.nan


def book(**more):
    outcomes = [Outcome("right", better="higher"), Outcome("kept", better="higher")]
    return Book(declare(outcomes=outcomes, arms=("a", "b"), **{"seeds": 3, **more}))


def scores(made):
    return Scores(made.study, made.results())


def test_what_is_no_number_has_no_place():
    known = [_number(value) for value in (3, 2.5, True, "3", None)]
    assert known[:2] == [3.0, 2.5] and all(map(math.isnan, known[2:]))
    ids = np.array([1, 4, 4, 9]), np.array([0, 4, 10])
    assert _union(*ids).tolist() == [0, 1, 4, 9, 10]
    assert _union(ids[0][:0], ids[0][:0]).tolist() == []


def test_an_item_without_a_source_is_its_own_and_runs_that_do_not_count_give_no_rows():
    head = {"arm": "a", "point": 0, "seed": 0, "role": "test", "outcome": "right", "at": "", "where": ""}
    rows = [
        head | {"run": run, "item": item, "cluster": cluster, "score": score, "order": order}
        for order, (run, item, cluster, score) in enumerate(
            [(0, "x", "s", 1.0), (0, "y", "s", 0.0), (0, "z", "", 1.0), (1, "w", "t", 0.5), (0, "v", "", 0.0)]
        )
    ]
    found = columns_of(table(rows, items_schema()), np.array([True, False, False]), {"outcome": {}})
    assert found["run"].tolist() == [0, 0, 0, 0] and found["score"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert found["order"].tolist() == [0, 1, 2, 4] and found["outcome"].tolist() == [0] * 4
    one, other, *alone = found["cluster"].tolist()
    assert one == other and len({one, *alone}) == 3
    assert len(set(found["item"].tolist())) == 4


def test_counts_that_no_answers_give_are_told_once_an_outcome():
    made = book()
    counts = [(3, 10), (0, 4), (4, 4), (2.0000001, 4), (NAN, 5), (2.5, 4), (5, 4), (-1, 4)]
    for step, (numerator, of) in enumerate(counts):
        made.measure("a", 0, "right", numerator, of=of, at={"step": step})
    for step in range(3):
        made.measure("b", 1, "kept", 0.335, at={"step": step})  # of no count
    ending = "is no count of answers (so in {} of its values); such a rate cannot come from that many."
    assert scores(made).notes == [f"right: 2.5 of 4 {ending.format(3)}"]
    made.measure("b", 1, "kept", 4.99999, of=5, at={"step": 9})
    assert scores(made).notes[1:] == [f"kept: 4.99999 of 5 {ending.format(1)}"]


def test_runs_that_were_lost_are_told_by_how_they_ended():
    made = book()
    for seed, state in enumerate(("complete", "failed", "gave up", "failed", "complete")):
        made.run("a", seed, state=state)
        made.run("b", 4 - seed)
    made.run("a", 9, state="failed", role="tuning")
    made.run("a", 8, state="failed", point=1)
    found = scores(made)
    assert found.notes == [
        "a: 2 of 5 runs failed, not judged (seeds 1, 3).",
        "a: 1 of 5 runs gave up, not judged (seeds 2).",
    ]
    assert found.seeds(["a"]) == ([0], [4]) and found.seeds(["b"]) == ([0, 1, 2], [3, 4])
    assert found.seeds(["a", "b"]) == ([0], [4]) and found.seeds(["c"]) == ([], [])
    runs = found.runs(["b", "a"], [4, 0])
    assert found.keys_of(runs) == ("b-0-4", "b-0-0", "a-0-4", "a-0-0")


def test_which_conditions_are_meant():
    made = book()
    for where in ({"split": "test"}, {"split": "validation"}, {"split": "test", "side": "near"}, {"side": "far"}):
        made.measure("a", 0, "right", 0.5, where=where)
    for where in ({"split": "validation"}, {"k": 1}, {"k": 2}):
        made.measure("a", 0, "kept", 0.5, where=where)
    found = scores(made)
    meant = lambda *given: found.wheres[found.where(*given)]  # noqa: E731
    assert meant("right", None) == {"split": "test"}
    assert meant("right", None, "validation") == {"split": "validation"}
    assert meant("right", None, "train") == {"split": "test"}
    assert meant("right", {"side": "near"}) == {"split": "test", "side": "near"}
    assert meant("right", {"side": "far"}) == {"side": "far"}
    assert meant("kept", {"split": "validation"}) == {"split": "validation"}
    assert meant("kept", {"k": 2}) == {"k": 2}
    assert {name: sorted(found.where_texts[code] for code in codes) for name, codes in found.conditions.items()} == {
        "right": [
            '{"side": "far"}',
            '{"side": "near", "split": "test"}',
            '{"split": "test"}',
            '{"split": "validation"}',
        ],
        "kept": ['{"k": 1}', '{"k": 2}', '{"split": "validation"}'],
    }
    with pytest.raises(Unjudgeable) as caught:
        found.where("kept", None)
    listed = '({"k": 1}, {"k": 2})'
    assert str(caught.value) == (
        f"kept was measured under several conditions {listed}: name one with where= in the claim"
    )
    with pytest.raises(Unjudgeable, match=r'^no complete run measured kept under \{"k": 3\}$'):
        found.where("kept", {"k": 3})


def test_a_path_goes_by_its_dial_and_a_place_may_say_more():
    made = book()
    for value, at in ((0.4, {"step": 20}), (0.1, None), (0.2, {"step": 3}), (0.3, {"step": 3, "calls": 7})):
        made.measure("a", 0, "right", value, at=at)
    made.measure("a", 0, "right", 0.45, at={"step": 20})  # again: the later counts
    made.measure("a", 1, "right", 0.9, at={"step": 5})
    made.measure("a", 1, "right", 0.8, at={"step": 6, "calls": 2})
    found = scores(made)
    where = found.where("right", None)
    path = found.path(0, "right", where)
    assert found.value[path].tolist() == [0.1, 0.2, 0.3, 0.45]
    assert found.value[found.dialled(0, "right", where)].tolist() == [0.2, 0.3, 0.45]
    assert found.path(0, "unknown", where).tolist() == []
    read = lambda runs, at: found.value[found.places(runs, "right", where, at)].tolist()  # noqa: E731
    assert read([0, 1], "last") == [0.45, 0.8]
    assert read([0], {"step": 3}) == [0.2]  # what is said exactly so goes before what says more
    assert read([0], {"calls": 7}) == [0.3] and read([1], {"step": 6}) == [0.8]
    with pytest.raises(Unjudgeable, match=r'^run a-0-1 has no right at \{"step": 3\}$'):
        read([0, 1], {"step": 3})
    made.measure("a", 1, "right", 0.7, at={"step": 6, "calls": 3})
    found = scores(made)
    with pytest.raises(Unjudgeable, match=r'^run a-0-1 has 2 values of right at \{"step": 6\}$'):
        found.places([1], "right", found.where("right", None), {"step": 6})
    made.measure("b", 1, "kept", 0.7)
    found = scores(made)
    with pytest.raises(Unjudgeable, match=r"^run b-0-1 has no kept at any step$"):
        found.dialled(made.run("b", 1), "kept", found.where("kept", None))


def test_what_was_spent_along_a_path_is_in_its_order():
    made = book()
    for step, calls in enumerate((30, 10, 20)):
        made.measure("a", 0, "right", calls / 100, at={"step": step, "calls": calls})
        made.measure("b", 0, "right", calls / 100, at={"step": step, **({"calls": calls} if step else {})})
    found = scores(made)
    where = found.where("right", None)
    path, amounts = found.spent_along(0, "right", where, "calls")
    assert amounts.tolist() == [10, 20, 30] and found.value[path].tolist() == [0.1, 0.2, 0.3]
    with pytest.raises(Unjudgeable, match=r"^1 of 3 evaluations of right in run b-0-0 do not say the calls spent"):
        found.spent_along(1, "right", where, "calls")
    with pytest.raises(Unjudgeable, match=r"^0 of 0 evaluations of kept"):
        found.spent_along(1, "kept", where, "calls")


def test_items_stand_in_their_column_and_what_is_missing_is_counted():
    made = book()
    made.score("a", 0, "right", [1.0, 0.0, NAN], ids=["x", "y", "z"], clusters=["s", "s", "t"], at={"step": 1})
    made.score("a", 0, "right", [0.4, 0.6, 0.5], ids=["y", "x", "z"], clusters=["s", "s", "t"], at={"step": 2})
    made.score("a", 1, "right", [0.25, 1.0], ids=["w", "x"], clusters=["u", "s"], at={"step": 1})
    made.measure("a", 1, "right", 0.625, missing=2, at={"step": 1})
    made.measure("a", 1, "right", NAN, at={"step": 2})
    found = scores(made)
    where = found.where("right", None)
    paths = [found.path(run, "right", where) for run in (0, 1)]
    assert found.value[paths[0]].tolist() == pytest.approx([NAN, 0.5], nan_ok=True)
    assert [found.missing[path].tolist() for path in paths] == [[1, 0], [2, 1]]
    cells = found.cells([paths[0][0], paths[1][0]])
    rows = {tuple(row) for row in np.nan_to_num(cells.matrix, nan=-1).T.tolist()}
    assert rows == {(1, 1), (0, -1), (-1, -1), (-1, 0.25)} and cells.missing == 3
    assert cells.matrix.shape == (2, 4) and cells.items.size == cells.clusters.size == 4
    assert len(set(cells.clusters.tolist())) == 3
    plain = found.cells([paths[0][1], paths[1][1]])  # of one there is no item
    assert plain.matrix.shape == (2, 1) and plain.matrix[:, 0].tolist() == pytest.approx([0.5, NAN], nan_ok=True)
    assert plain.items is None and plain.clusters is None and plain.missing == 1
    assert found.cells([]).matrix.shape == (0, 1)
    # A quarter of the way from the first to the second evaluation; at the first of the other run.
    half = found.between(paths[:1], np.array([0.25]))
    assert sorted(np.nan_to_num(half.matrix[0], nan=-1)) == pytest.approx([-1, 0.1, 0.9]) and half.missing == 1
    assert found.between([paths[1]], np.array([0.5])).missing == 3
    ends = found.between([paths[0], paths[1][:1]], np.array([1.0, 0.0]))
    assert ends.missing == 2 and np.nansum(ends.matrix, axis=1).tolist() == [1.5, 1.25]
    made.measure("b", 0, "right", math.inf, at={"step": 1})
    made.measure("b", 0, "right", 1.0, at={"step": 2})
    found = scores(made)
    endless = found.path(made.run("b", 0), "right", found.where("right", None))
    assert found.between([endless], np.array([0.0])).matrix.tolist() == [[math.inf]]
    assert found.between([endless], np.array([1.0])).matrix.tolist() == [[1.0]]
