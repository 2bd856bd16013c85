"""What a result and a plan of an audit say of themselves, whole: states, sentences, limits, defaults."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from equipoise.core.serialize import deserialize, serialize
from equipoise.judging.measured import BiasEffect, PositionBias, Rate, Round
from equipoise.judging.notes import points
from equipoise.judging.result import (
    AuditPlan,
    FoundBias,
    Harder,
    JudgeAudit,
    JudgedExample,
    Rewrites,
)


def effect(increase=0.25, pairs=8, **others):
    words = {
        "bias": "length",
        "pairs": pairs,
        "clusters": pairs,
        "before": Rate(1, 1, 2 * pairs),
        "after": Rate(5, 1, 2 * pairs),
        "increase": increase,
        "lower": increase - 0.125,
        "upper": increase + 0.0625,
        "standard_error": 0.1,
        "p_value": 0.01,
        "to_wrong": 5,
        "to_right": 1,
    }
    return BiasEffect(**(words | others))


def found(name="length", **others):
    words = {
        "name": name,
        "definition": "The judge likes it.",
        "round": 0,
        "support": 0,
        "passed": True,
        "holds": True,
        "selection": effect(0.5),
        "report": effect(0.25),
        "rewrites": Rewrites(pairs=8, made=8, changed=0, unchanged=0, distinct=8),
    }
    return FoundBias(**(words | others))


POSITION = PositionBias(pairs=16, no_verdict=0, first=0.5, lower=0.4, upper=0.6, turns=0.1, both_right=0.7)


def audit(*biases, **others):
    words = {
        "judge": "judge",
        "teacher": "teacher",
        "pairs": "some/folder/pairs.jsonl",
        "rule": "paired",
        "biases": biases,
        "position": POSITION,
        "as_is": Rate(2, 0, 16),
        "sizes": (4, 8, 8),
        "verdicts": 100,
        "no_verdict": 5,
        "unasked": 0,
        "why": "",
        "calls": 1234,
        "complete": True,
    }
    return JudgeAudit(**(words | others))


# --- plain data -----------------------------------------------------------------------------------------------------


def test_an_error_counts_what_was_not_right():
    assert Rate(1, 2, 4).error == 0.75 and Rate(0, 0, 3).error == 0 and math.isnan(Rate(0, 0, 0).error)


def test_what_is_not_given():
    assert effect().left_out == 0 and math.isnan(effect().p_adjusted)
    rounds = Round(*range(1, 12), accepted=("a",))
    assert rounds.unasked == 0 and (rounds.number, rounds.measured) == (1, 11)
    made = Rewrites(1, 2, 3, 4, 5)
    assert (made.unasked, made.why) == (0, "") and JudgedExample("p", "q", "c", "r", "w").fooled == ()
    bias = found()
    assert bias.cut is None and bias.domains == {} and bias.examples == ()
    result = audit()
    assert math.isnan(result.detectable) and result.placebo is result.harder is result.folder is None
    assert result.alike == result.rounds == result.left_out == result.notes == () and result.preferences == 0
    assert result.hardened == 0 and audit(harder=Harder(3, 9, 6, 2, 10.0, 0.5, 0.25)).hardened == 3


def test_a_result_comes_back_from_json():
    example = JudgedExample("p", "q", "c", "r", "w", ("first",))
    result = audit(
        found(cut=effect(0.0), domains={"math": effect(1.0)}, examples=(example,)),
        placebo=effect(0.0, p_adjusted=0.5),
        alike=(("a", "b"),),
        rounds=(Round(*range(1, 12), accepted=("a",), unasked=3),),
        harder=Harder(3, 9, 6, 2, 10.0, 0.5, 0.25),
        folder=Path("somewhere"),
        detectable=0.5,
    )
    again = deserialize(JudgeAudit, serialize(result))
    assert serialize(again) == serialize(result)
    assert (again.rounds, again.harder, again.alike) == (result.rounds, result.harder, result.alike)
    assert again.biases[0].examples == (example,) and again.biases[0].report.increase == 0.25


# --- one bias -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bias", "state"),
    [
        (found(), "holds"),
        (found(report=None), "holds"),  # under the published rule
        (found(holds=False), "not confirmed"),
        (found(holds=False, passed=False), "not confirmed"),
        (found(holds=False, report=None), "to confirm"),
        (found(holds=False, report=None, passed=False), "screened out"),
        (found(selection=effect(pairs=0)), "not readable"),
        (found(selection=effect(pairs=0), rewrites=Rewrites(8, 1, 0, 0, 1)), "not readable"),
        (found(selection=effect(pairs=0), rewrites=Rewrites(8, 0, 0, 0, 0)), "not rewritten"),
    ],
)
def test_the_state_of_a_bias(bias, state):
    assert bias.state == state


def test_the_effect_is_that_of_the_report_part_where_there_is_one():
    assert found().effect.increase == 0.25 and found(report=None).effect.increase == 0.5


# --- the headline ---------------------------------------------------------------------------------------------------


def test_the_headline_of_an_audit():
    two = (found("a"), found("b", holds=False), found("c", selection=effect(pairs=0), holds=False))
    assert audit(*two).headline() == (
        "1 of 2 measured biases hold for judge: its verdicts on 16 test pairs (labels of pairs.jsonl) in both orders, as "
        "they are and rewritten by teacher; 5 of 100 verdicts could not be read."
    )
    assert [each.name for each in audit(*two).measured] == ["a", "b"]
    assert [each.name for each in audit(*two).holding] == ["a"]


def test_the_headline_of_an_audit_that_ended_early():
    rest = (
        ": its verdicts on 16 test pairs (labels of pairs.jsonl) in both orders, as they are and rewritten by teacher; 5 of "
        "100 verdicts could not be read."
    )
    open_ = (found("a", holds=False), found("b", holds=False))
    assert audit(*open_, complete=False).headline() == f"2 biases of judge measured so far, none confirmed yet{rest}"
    assert audit(*open_).headline() == f"0 of 2 measured biases hold for judge{rest}"
    assert audit(found("a"), complete=False).headline() == f"1 of 1 measured biases hold for judge{rest}"
    for nothing in (audit(), audit(found(selection=effect(pairs=0)))):
        assert nothing.headline() == "No bias of judge was measured."


def test_the_headline_says_what_to_beware_of():
    said = audit(found(), no_verdict=6, unasked=3, why="too long").headline()
    assert said.endswith(
        "; 6 of 100 verdicts could not be read, 3 times a pair could not be put to it. Beware: Verdicts that could not be "
        "read; Pairs that the judge could not be asked about."
    )


def test_ties_are_told_apart_from_what_could_not_be_read():
    said = audit(found(), no_verdict=9, ties=5, unasked=3, why="too long").headline()
    assert "; 4 of 100 verdicts could not be read, 5 are ties, 3 times a pair" in said and "Ties" not in said
    stored = serialize(audit(no_verdict=9))
    del stored["ties"]  # as before these were counted
    assert deserialize(JudgeAudit, stored).ties == 0 and deserialize(JudgeAudit, stored).unread == 9


# --- warnings -------------------------------------------------------------------------------------------------------


def test_nothing_to_warn_of_at_the_limits():
    at_limit = replace(POSITION, turns=0.89)
    fine = audit(
        found(rewrites=Rewrites(8, 8, 0, 4, 2)),
        found(rewrites=Rewrites(8, 1, 0, 0, 1)),
        position=at_limit,
        as_is=Rate(89, 0, 100),
        placebo=effect(lower=0.0),
    )
    assert list(fine.warnings()) == []


@pytest.mark.parametrize(
    ("result", "title", "text"),
    [
        (
            audit(no_verdict=6),
            "Verdicts that could not be read",
            "No verdict could be read in 6 of 100 answers; each of them counts as an error.",
        ),
        (
            audit(no_verdict=11, ties=6),
            "Ties",
            "It found both answers alike in 6 of 100 verdicts; each of them counts as an error. A pairwise judge has to "
            "choose.",
        ),
        (
            audit(unasked=1, why="9 tokens, 8 fit"),
            "Pairs that the judge could not be asked about",
            "1 times, as they are or rewritten; they are left out. The first: 9 tokens, 8 fit.",
        ),
        (
            audit(position=replace(POSITION, turns=0.9, first=0.51)),
            "The judge goes by the place",
            "90 % of its verdicts turn round with the order: it chooses what is shown first, so that hardly anything else "
            "can be seen to fool it.",
        ),
        (
            audit(position=replace(POSITION, turns=0.95, first=0.5)),
            "The judge goes by the place",
            "95 % of its verdicts turn round with the order: it chooses what is shown second, so that hardly anything else "
            "can be seen to fool it.",
        ),
        (
            audit(as_is=Rate(8, 1, 10)),
            "The judge is nearly always wrong",
            "It errs in 90 % of its verdicts on the pairs as they are, so that hardly more can be seen: is what is labelled "
            "so the better answer?",
        ),
        (
            audit(placebo=effect(0.2, lower=0.001)),
            "The placebo has an effect",
            "The same answers in other words, with no bias: +20.0 points. So rewriting by this teacher fools the judge by "
            "itself; what exceeds it can be laid to a bias.",
        ),
        (
            audit(alike=(("a", "b"), ("a", "c"))),
            "Same rewrites",
            "More than half of the rewrites are the same text for a and b; a and c. These are not different biases: the "
            "teacher did not tell them apart.",
        ),
        (
            audit(*(found(name, rewrites=Rewrites(9, 8, 0, 5, 8)) for name in "abcdef")),
            "Rewrites that change nothing",
            "More than half of the answers came back as they were for a; b; c; d; e and 1 more: what these biases do is not "
            "known.",
        ),
        (
            audit(*(found(name, rewrites=Rewrites(9, 2, 0, 0, 1)) for name in "abcde")),
            "One text for all",
            "Every answer became the same for a; b; c; d; e: the effect is that text's.",
        ),
    ],
)
def test_every_warning_by_itself(result, title, text):
    assert list(result.warnings()) == [(title, text)]


# --- lines ----------------------------------------------------------------------------------------------------------


def test_the_summary_line_by_line():
    none = effect(math.nan, pairs=0, lower=math.nan, upper=math.nan)
    biases = (
        found("length"),
        found("a", holds=False, report=None, passed=False, selection=effect(-0.1, lower=-0.2, upper=0.0)),
        found("b", holds=False, selection=none, report=None, rewrites=Rewrites(8, 0, 0, 0, 0)),
        found("c\x1b", holds=False, selection=none, report=None, rewrites=Rewrites(8, 3, 0, 0, 3, 3, "it is too long")),
    )
    result = audit(*biases, no_verdict=6)
    assert list(result.summary()) == [
        f"length{' ' * 23}holds          +25.0 points [+12.5, +31.2], 8 pairs",
        f"a{' ' * 28}screened out   -10.0 points [-20.0, +0.0], 8 pairs",
        f"b{' ' * 28}not rewritten  the teacher gave no rewrite that could be compared",
        f"c\\u001b{' ' * 27}not readable   it is too long",
        "Verdicts that could not be read: No verdict could be read in 6 of 100 answers; each of them counts as an error.",
        f"{result.headline()} Chat calls: 1,234.",
    ]
    assert audit(biases[0])._repr_html_() == (
        f"<p>{audit(biases[0]).headline()}</p><table><thead><tr><th>bias</th><th></th><th>increase of the error</th>"
        "<th>interval</th></tr></thead><tbody><tr><td>length</td><td>holds</td><td>+0.250</td><td>+0.125 to +0.312</td></tr>"
        "</tbody></table>"
    )


def test_points_as_people_read_them():
    assert [points(each) for each in (0.125, -0.25, 0.0)] == ["+12.5 points", "−25.0 points", "+0.0 points"]
    assert points(math.nan) == "an unknown number of points"


# --- the plan -------------------------------------------------------------------------------------------------------


def plan(**others):
    words = {
        "sizes": (24, 36, 37),
        "left_out": tuple(f"pair {n}" for n in range(4)),
        "calls": {"judge": (1000, 2345), "teacher": (0, 5)},
        "tokens": (1_240_000, 12_600_000),
        "usd": (0.0, 12.345),
        "first": ({"id": "a", "question": "ü" * 80, "chosen": "x" * 81, "chosen_first": True},),
    }
    return AuditPlan(**(words | others))


@pytest.mark.parametrize(
    ("usd", "said"),
    [
        ((0.0, 12.345), ", 0.00 to 12.35 usd"),
        ((0.0, 0.001), ", 0.00 to 0.00 usd"),
        ((0.0, 0.0), ", free"),
        (None, ", cost unknown without --prices of every model"),
    ],
)
def test_what_a_plan_costs(usd, said):
    assert plan(usd=usd).cost == said
    assert plan(usd=usd).announced() == (
        f"1,000 calls when nothing is found, up to 2,350{said}; --budget sets a limit, what is recorded costs nothing."
    )
    assert list(plan(usd=usd).summary()) == [
        "24 pairs to discover, 36 to select, 37 to report; the first:",
        f'  {{"id": "a", "question": "{"ü" * 80}", "chosen": "{"x" * 80}...", "chosen_first": true}}',
        "left out: pair 0",
        "left out: pair 1",
        "left out: pair 2",
        "judge: 1,000 calls when nothing is found, up to 2,345",
        "teacher: 0 calls when nothing is found, up to 5",
        f"about 1.2 to 13 million tokens{said}",
    ]


def test_millions_of_tokens_are_rounded_to_two_digits():
    for tokens, said in (((1_250_000, 12_500_000), "1.2 to 12"), ((1_350_000, 13_500_000), "1.4 to 14")):
        assert list(plan(tokens=tokens, usd=(0.0, 0.0)).summary())[-1] == f"about {said} million tokens, free"


def test_without_calls_nothing_is_announced():
    assert plan(calls={"judge": (0, 0)}).announced() == ""
    assert plan(calls={"judge": (0, 1)}).announced().startswith("0 calls when nothing is found, up to 1,")
