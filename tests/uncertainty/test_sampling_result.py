"""What is said of an audited sampler, from numbers alone: chance, warnings and advice at their limits, lines."""

import dataclasses
import math

import pytest

from equipoise.core.numbers import number
from equipoise.core.shares import Bounded
from equipoise.uncertainty.sampling_fidelity import MEASURES
from equipoise.uncertainty.sampling_result import (
    BATCH,
    SINGLE,
    SamplingAudit,
    SamplingCondition,
    SamplingPlan,
    shown,
)

NOTHING = Bounded(math.nan, math.nan, math.nan)
FIT = {"a_token": 0.05, "bias": 0.0, "leak": 0.1}
USED = "It can be used as a sampler of this target."
OUTSIDE = "Draw outside the model: let it write the distribution, or give it values that were drawn."
QUOTA = (
    "Its lists keep the quota, but a single draw is nearly decided: use whole lists, and draw outside the model where "
    "independent draws are needed."
)


def about(value, half=0.01):
    return Bounded(value, value - half, value + half)


def condition(**changes):
    measures = {name: about(0.05) for name in MEASURES} | changes.pop("measures", {})
    given = {
        "protocol": BATCH, "wording": 1, "symbols": ("a", "b"), "sequences": 8, "asked": 400, "slots": 400, "parsed": 1.0,
        "unread": 0, "measures": measures, "kind": "E", "independent": about(0.05), "own": about(0.05), "temperature": 1.0,
        "warm": {}, "drawing": {"a_token": 0.05}, "drawing_kind": "E", "slope": NOTHING, "autocorrelation": 0.0,
        "runs": 0.0, "runs_p": 1.0, "place": 0.0, "first": 0.0, "p": math.nan, "means": (0.5, 0.5), "counts": (200, 200),
    }  # fmt: skip
    return SamplingCondition(**(given | changes))


def audit(temperature=1.0, *more, **changes):
    main = condition(**changes)
    return SamplingAudit("m", "t", (0.5, 0.5), ("a", "b"), temperature, "read", {main.protocol: main}, (main, *more))


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (0.05, "as good as independent draws"),
        (0.06 + 5e-10, "as good as independent draws"),
        (0.04 - 5e-10, "as good as independent draws"),
        (0.06 + 2e-9, "worse than independent draws"),
        (0.04 - 2e-9, "too good for independent draws"),
        (math.nan, "unknown"),
    ],
)
def test_chance_at_its_ends(result, told):
    measured = {"a_result": Bounded(result, 0.0, 1.0)}
    assert condition(measures=measured).chance == told
    assert condition(measures=measured, independent=NOTHING).chance == "unknown"


def test_the_main_condition_is_of_lists_where_there_are_some():
    one, lists = condition(protocol=SINGLE), condition()
    both = dataclasses.replace(audit(), whole={SINGLE: one, BATCH: lists})
    assert both.main is lists and dataclasses.replace(both, whole={SINGLE: one}).main is one


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"slots": 360}, []),
        (
            {"slots": 359},
            [
                "Of 400 values asked for (batch) 359 were written: what is said of the slots is of those alone. With slots "
                "set, separators are put in for the model."
            ],
        ),
        ({"parsed": 0.9}, []),
        ({"parsed": 0.894}, ["Only 89% of what stands at slots (batch) is a symbol of the target."]),
        ({"unread": 1}, ["1 values (batch) share a token with their separator and are left out."]),
        ({"asked": 300, "slots": 300}, []),
        ({"asked": 299, "slots": 299}, ["There are 299 slots: read the intervals, or ask for more sequences."]),
        (
            {"asked": 299, "slots": 299, "sequences": 1},
            ["There are 299 slots: one sequence has no intervals, ask for more sequences."],
        ),
        (
            {"asked": 299, "slots": 299, "sequences": 2},
            ["There are 299 slots: read the intervals, or ask for more sequences."],
        ),
    ],
)
def test_warnings_at_their_limits(changes, words):
    assert list(audit(**changes).warnings()) == words


def test_nothing_at_slots_is_not_called_unread():
    assert "Only" not in " ".join(audit(slots=0, parsed=0.5).warnings())


def test_kinds_of_lists_that_differ_are_told():
    single, other = condition(protocol=SINGLE, kind="mixed"), condition(kind="D", wording=2)
    assert audit(1.0, single).warnings() == ()
    assert audit(1.0, single, other).warnings() == (
        "Wordings or names differ in kind (E, D): one of them alone would mislead.",
    )


FAR = {"a_token": Bounded(0.4, 0.35, 0.45)}
WORSE = {"a_result": Bounded(0.2, 0.1, 0.3)}


@pytest.mark.parametrize(
    ("temperature", "changes", "told"),
    [
        (1.0, {}, USED),
        (1.0, {"measures": WORSE}, OUTSIDE),
        (1.0, {"kind": "mixed"}, OUTSIDE),
        (1.0, {"kind": "D"}, QUOTA),
        (1.0, {"slots": 0}, "No slots were found"),
        (1.0, {"kind": "undefined"}, OUTSIDE),
        (1.0, {"kind": "mixed", "measures": {"a_token": Bounded(math.nan, 0.0, 0.5)}}, OUTSIDE),
        (1.0, {"kind": "undefined", "measures": {"a_token": Bounded(math.nan, 0.0, 0.5)}}, "What the server tells"),
        (1.0, {"protocol": SINGLE, "kind": "undefined", "measures": {"a_token": about(0.1)}}, USED),
        (1.0, {"protocol": SINGLE, "kind": "undefined", "measures": {"a_token": about(0.11)}}, OUTSIDE),
        (1.0, {"protocol": SINGLE, "kind": "undefined", "measures": WORSE}, OUTSIDE),
        (1.0, {"protocol": SINGLE, "kind": "mixed"}, OUTSIDE),
        (2.0, {}, "At temperature 2 it can be used as a sampler of this target."),
        (2.0, {"drawing_kind": "mixed"}, "At temperature 1 its probabilities are within 0.0500 of the target"),
        (2.0, {"kind": "D", "drawing_kind": "mixed"}, OUTSIDE),
        (2.0, {"kind": "mixed", "drawing_kind": "D"}, QUOTA),
        (2.0, {"drawing": {"a_token": math.nan}}, "What a server draws from at another temperature than 1"),
        (0.0, {"kind": "mixed", "drawing_kind": "mixed"}, OUTSIDE),
    ],
)
def test_what_is_advised(temperature, changes, told):
    assert audit(temperature, **{"slots": 400} | changes).advice().startswith(told)


@pytest.mark.parametrize(
    ("temperature", "slots", "changes", "advised"),
    [
        (1.0, "read", {}, True),
        (1.0, "read", {"warm": FIT | {"a_token": 0.1}}, True),
        (1.0, "read", {"warm": FIT | {"a_token": 0.11}}, False),
        (1.0, "read", {"warm": {}}, False),
        (1.0, "read", {"measures": {"a_token": Bounded(0.09, 0.08, 0.1)}}, False),  # it is as near already
        (1.0, "read", {"measures": {"a_token": Bounded(0.09, 0.08, 0.11)}}, True),
        (1.0, "read", {"warm": FIT | {"leak": 0.2}}, True),
        (1.0, "read", {"warm": FIT | {"leak": 0.21}}, False),
        (1.0, "read", {"warm": FIT | {"leak": math.nan}}, False),
        (1.0, "set", {"warm": FIT | {"leak": math.nan}, "measures": FAR | {"leak": Bounded(0.1, 0.0, 0.2)}}, True),
        (1.0, "set", {"measures": FAR | {"leak": Bounded(0.1, 0.0, 0.21)}}, False),
        (2.0, "read", {"temperature": 2 * 1.05}, False),
        (2.0, "read", {"temperature": 2 / 1.05}, False),
        (2.0, "read", {"temperature": 2 * 1.06}, True),
        (2.0, "read", {"temperature": 2 / 1.06}, True),
        (0.0, "read", {}, True),
    ],
)
def test_when_a_temperature_is_advised(temperature, slots, changes, advised):
    drawing = {"a_token": 0.4}
    given = {
        "kind": "mixed",
        "drawing_kind": "mixed",
        "drawing": drawing,
        "measures": FAR,
        "warm": FIT,
        "temperature": 3.0,
    }
    main = condition(**(given | changes))
    found = SamplingAudit("m", "t", (0.5, 0.5), ("a", "b"), temperature, slots, {BATCH: main}, (main,)).advice()
    if advised:
        at, near = number(main.temperature), number(main.warm["a_token"])
        assert found == f"At temperature {at} its probabilities would be within {near} of the target: audit it there."
    else:
        assert found == OUTSIDE


def test_a_headline_has_the_numbers_and_what_the_draws_come_from():
    five = "0.050 [0.040, 0.060]"
    told = (
        f"Kind: E. Probabilities are {five} from the target at a slot, {five} in their mean; they move by {five} from slot "
        f"to slot; {five} leaks. Frequencies are {five} off, where independent draws are {five}: as good as independent "
        "draws."
    )
    assert audit().headline() == f"{told} {USED}"
    drawn = " At temperature 2, that of the draws, what they are drawn from is 0 from the target at a slot: E."
    zero = audit(2.0, drawing={"a_token": 0.0})
    assert zero.headline() == f"{told}{drawn} At temperature 2 it can be used as a sampler of this target."
    assert drawn[:19] + "that" not in audit(2.0, drawing={"a_token": math.nan}).headline()
    html = audit()._repr_html_()
    assert html.count("<tr>") == 1 + len(MEASURES) and "<td>e_score</td><td>0.050 [0.040, 0.060]</td>" in html
    assert (
        shown(Bounded(math.nan, 0.1, 0.2)) == "between 0.100 and 0.200" and shown(Bounded(0.5, math.nan, 1)) == "0.500"
    )


def test_a_plan_shows_its_first_three_requests():
    plan = SamplingPlan("m", {"a": 0.25, "b": 0.75}, ("r1", "r2", "r3", "r4"), 12, 3400, 12_000, 1_000, {"a": "'a'"})
    assert plan.summary() == (
        "model: m",
        "target: a 0.25, b 0.75",
        "'a' is written 'a'",
        "the first requests:",
        "  r1",
        "  r2",
        "  r3",
        "12 ways of asking, 3,400 sequences; at most 12,000 tokens, 1,000 calls of a server",
    )
