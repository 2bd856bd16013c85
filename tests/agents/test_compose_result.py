"""What composing a life says in words: leaks, gates, and how many calls it would take."""

import math
from dataclasses import replace

import pytest

from equipoise.agents import compose_result as told
from equipoise.core.shares import Share

NAN = math.nan
KINDS = ("future option", "future evidence", "dated question", "answer in question")


def share(count, of, lower=NAN, upper=NAN):
    return Share(float(count), of, 0, float(of), lower, upper)


def report(*kinds, longest=None, shortest=None, questions=1200, chance=0.25):
    leaks = tuple(told.Leak(f"q{number}", kind, "x") for number, kind in enumerate(kinds))
    nothing = share(0, 0)
    return told.LeakReport(questions, leaks, chance, longest or nothing, shortest or nothing)


def life(**more):
    given = {
        "names": {}, "source": "templates", "days": 1000, "sessions": 2000, "turns": 9, "words": 99, "kinds": {},
        "gates": (), "dropped": {}, "made": report(), "looked": None, "calls": 0, "tokens": 0,
    }  # fmt: skip
    return told.ComposedHistory(**{**given, **more})


def gate(records, left, flagged=0):
    return told.Gate("events", records, flagged, 0, 0, 0, left)


def test_shares_are_shown_with_what_is_known():
    assert told.shown(share(0, 0)) == "undefined"
    assert told.shown(share(500, 1000)) == "0.50 of 1,000"
    assert told.shown(share(1, 4, 0.125, 0.5)) == "0.25 [0.12, 0.50] of 4"


def test_a_report_in_numbers():
    found = told.columns(report("dated question", "future option", "dated question", longest=share(1, 2)))
    assert found == [
        ("questions", 1200), ("future option", 1), ("future evidence", 0), ("dated question", 2), ("answer in question", 0),
        ("longest option right", "0.50 of 2"), ("shortest option right", "undefined"), ("by chance", "0.25"),
    ]  # fmt: skip
    assert told.columns(report(*KINDS))[1:5] == [(kind, 1) for kind in KINDS]
    assert told.columns(report(chance=NAN))[-1] == ("by chance", "undefined")


@pytest.mark.parametrize(
    ("longest", "shortest", "guessable"),
    [
        (share(1, 2, 0.26, 0.9), None, True),
        (share(1, 2, 0.25, 0.9), None, False),
        (None, share(1, 2, 0.26, 0.9), True),
        (share(1, 2, 0.1, 0.9), share(1, 2, 0.25, 0.9), False),
        (None, None, False),
    ],
)
def test_length_tells_the_right_option_where_the_whole_interval_is_above_chance(longest, shortest, guessable):
    made = report(longest=longest, shortest=shortest)
    assert made.guessable == guessable and len(made.warnings("made questions")) == guessable


def test_warnings_of_leaks_are_counted_by_kind():
    made = report("dated question", "future option", "dated question", longest=share(1, 2, 0.5, 1))
    assert made.warnings("made questions") == (
        "Of 1200 made questions some give their answer away: 2 dated question, 1 future option; see leaks.jsonl.",
        "Of the made questions length tells the right option: the longest is right in 0.50 [0.50, 1.00] of 2, the shortest "
        "in undefined, by chance 0.25.",
    )


def test_the_headline_and_what_stands_before_it():
    assert life().headline() == "1,000 days in 2,000 conversations, with 1,200 questions, by templates."
    looked = life(made=None, looked=report(questions=3000))
    assert looked.headline() == "3,000 given questions were looked through for leaks." and looked.warnings() == ()
    none = life(made=report(questions=0)).warnings()
    assert len(none) == 1 and none[0].startswith("No question was made")
    both = life(made=report("dated question"), looked=report("future option")).warnings()
    assert ["made questions" in each for each in both] == [True, False] and "given questions" in both[1]


def test_a_gate_that_much_does_not_pass_is_warned_of():
    few = round(told.MANY_LEFT * 100)
    assert life(gates=(gate(100, few), gate(0, 0))).warnings() == ()
    over = life(gates=(gate(100, few + 1, flagged=2000),))
    assert over.warnings() == (f"events: {few + 1} of 100 records did not pass their gate, also when written anew.",)
    assert over.summary() == (
        *over.warnings(), f"events: 100 records, 2,000 flagged, {few + 1} left", over.headline(),
    )  # fmt: skip


def test_a_plan_in_lines():
    plan = told.ComposePlan("templates", "Mara", "1 to 2 May", {"day": 1000, "week": 2}, 0, 0)
    lines = ["Mara, 1 to 2 May, by templates", "periods: day 1,000, week 2"]
    assert plan.summary() == lines
    assert replace(plan, calls=1000, given=1).summary() == [
        *lines, "about 1,000 calls of models, and more for what is written anew",
        "1 given questions are looked through for leaks",
    ]  # fmt: skip
    assert replace(plan, name="", given=2000).summary() == ["2,000 given questions are looked through for leaks"]
