"""The scores of one memory system, number by number, of four questions that are worked by hand."""

import math
from dataclasses import replace
from datetime import datetime

import pytest

from equipoise.agents import comparing_scores as scores
from equipoise.agents.lifedialbench import AskedQuestion, MemoryAnswers
from equipoise.data.histories import MemoryQuestion

FOUR = {"options": ("10:00", "9:05 pm", "9:12 pm", "noon"), "gold": ("9:05 pm",), "right": 1}
QUESTIONS = (
    MemoryQuestion("q0", "?", datetime(2024, 5, 1), evidence=("t1",), kind="a", **FOUR),
    MemoryQuestion("q1", "?", datetime(2024, 5, 2), evidence=("t1", "t2"), kind="a", **FOUR),
    MemoryQuestion("q2", "?", datetime(2024, 5, 3), gold=("red bowl",), kind="b"),
    MemoryQuestion("q3", "?", datetime(2024, 5, 4), gold=("x",), evidence=("t3",), kind="b"),
)


def row(number, **more):
    given = {
        "text": "", "choice": None, "printed": 0, "later": 0, "found": (), "sessions": 1, "turns": 1, "age": math.nan,
        "read_tokens": 0, "amounts": {}, "state": "",
    }  # fmt: skip
    return AskedQuestion("h", f"q{number}", **{**given, **more})


ROWS = (
    row(0, choice=1, printed=4, later=1, found=("t1",), read_tokens=10, turns=10, age=0.5),
    row(1, text="C it is", choice=2, printed=2, later=1, found=("t2",), read_tokens=20, turns=20, age=3.0),
    row(2, text="red", read_tokens=0, turns=30, age=math.nan),
    row(3, text=" ", printed=2, found=("t3",), read_tokens=30, turns=40, age=4.0),
)


def answers(protocol="online", rows=ROWS, **more):
    return MemoryAnswers("s", protocol, QUESTIONS, rows, **more)


def right(question, row):
    return float(row.choice == question.right) if question.options else float("red" in row.text)


def made(by_protocol, measured=scores.recalled, rivals=None, right=right):
    return scores.system_scores(by_protocol, measured, right, rivals or {}, added=True, by="question", seed=3)


def rates(share):
    return share.count, share.of


def test_scores_of_single_questions():
    pairs = list(zip(QUESTIONS, ROWS, strict=True))
    assert [scores.recalled(*pair) for pair in pairs] == [1, 0, pytest.approx(math.nan, nan_ok=True), 1]
    assert scores.recalled(QUESTIONS[0], row(0, found=("t1", "t9"))) == 1
    shared = [scores.shared_words(*pair) for pair in pairs]
    assert shared == pytest.approx([math.nan, math.nan, 2 / 3, 0], nan_ok=True)
    assert scores.shared_words(QUESTIONS[2], row(2, text="a red bowl")) == 1
    assert math.isnan(scores.shared_words(replace(QUESTIONS[2], gold=()), row(2, text="red")))


def test_one_protocol():
    found = made({"online": answers(built=({"calls": 2},), seconds={"build": 1.5})})
    its = found.protocols["online"]
    assert found.first is its and its.questions == 4
    assert rates(its.recall) == (2, 3) and its.recall.missing == 1
    assert rates(its.evidence) == (2.5, 3) and rates(its.accuracy) == (2, 4) and rates(its.choice) == (1, 2)
    assert rates(its.f1) == pytest.approx((2 / 3, 2))
    assert rates(its.times) == (1, 2) and rates(its.near_times) == (2, 2)
    assert its.corrected.value == pytest.approx(1 / 3) and its.corrected.lower == -1 and its.corrected.upper == 1
    assert (its.read_tokens, its.printed, its.late, its.words) == (15, 2, 0.25, 2)
    assert its.unanswered == 1
    assert {kind: (rates(each.recall), rates(each.accuracy)) for kind, each in its.kinds.items()} == {
        "a": ((1, 2), (1, 2)), "b": ((1, 1), (1, 2)),
    }  # fmt: skip
    assert math.isnan(found.modification.value) and math.isnan(found.contamination.value)
    assert found.contaminated is None and found.against == {} and found.added and not found.failed
    assert (found.build, found.query, found.seconds) == ({"calls": 2}, {"read_tokens": 60}, {"build": 1.5})


def test_a_system_that_only_prints_has_no_right_answers():
    its = made({"online": answers()}, right=None).protocols["online"]
    for share in (its.accuracy, its.choice, its.times, its.near_times, its.f1):
        assert share.of == 0 and share.missing == 4
    assert math.isnan(its.corrected.value) and rates(its.recall) == (2, 3)


def test_curves_have_the_median_of_what_lies_in_each_band():
    found = made({"online": answers()})
    assert [(each.low, each.high, each.at, *rates(each.share)) for each in found.age] == [
        (-math.inf, 1, 0.5, 1, 1), (1, 7, 3.5, 1, 2),
    ]  # fmt: skip
    # turns 10 .. 40, quarters of 40; the question with 30 turns has no measure
    assert [(each.low, each.high, each.at, *rates(each.share)) for each in found.store] == [
        (10, 20, 10, 1, 1), (20, 30, 20, 0, 1), (30, math.inf, 40, 1, 1),
    ]  # fmt: skip


def test_the_two_effects_and_what_later_items_do():
    lost, kept = row(0, found=(), printed=4, later=3), row(3, found=("t3",), printed=2)
    online = answers()
    asof = answers("asof", (ROWS[0], replace(ROWS[1], found=("t1", "t2")), *ROWS[2:]))
    offline = answers("offline", (lost, replace(ROWS[1], found=("t1", "t2"), later=0), ROWS[2], kept))
    found = made({"online": online, "asof": asof, "offline": offline}, rivals={"r": offline})
    assert found.modification.value == pytest.approx(-1 / 3) and found.contamination.value == pytest.approx(1 / 3)
    assert found.modification.lower == -1 and found.contamination.upper == 1
    assert found.contaminated.overall.value == 0 and found.contaminated.later == pytest.approx(0.25)
    assert len(found.contaminated.quarters) == 4
    assert found.against["r"].lower == -1 and found.against["r"].upper == 1
    assert list(found.against) == ["r"] and found.against["r"].value == pytest.approx(0, abs=1e-12)
    assert list(found.protocols) == ["online", "asof", "offline"]
    two = made({"online": online, "offline": offline})
    assert math.isnan(two.modification.value) and two.contaminated is not None


def test_who_says_nothing_and_chooses_nothing_has_not_answered():
    rows = (replace(ROWS[0], choice=None), ROWS[1], ROWS[2], ROWS[3])
    assert made({"online": answers(rows=rows)}).protocols["online"].unanswered == 2
    chosen = tuple(replace(each, text="", choice=0) for each in ROWS)
    assert made({"online": answers(rows=chosen)}).protocols["online"].unanswered == 0


def test_an_area_has_bounds_where_there_are_fifty_clusters():
    questions = tuple(replace(QUESTIONS[0], id=f"q{number}") for number in range(60))
    rows = tuple(
        row(number, choice=number % 2, printed=10, later=number % 7, found=("t1",) * (number % 3 > 0))
        for number in range(60)
    )
    whole = MemoryAnswers("s", "offline", questions, rows)
    one, again, other = (
        scores.system_scores(
            {"offline": whole}, scores.recalled, right, {}, added=False, by="question", seed=seed
        ).contaminated.overall
        for seed in (3, 3, 4)
    )
    assert 0.2 < one.lower < one.value < one.upper < 0.8 and one == again != other
    assert one.value == other.value
