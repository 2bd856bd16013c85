"""A comparison as it is printed and as JSON, whole; and which runs belong together, and what they cost."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.study import Arm, Claim, Outcome, Study, better, cheaper, compare
from equipoise.study.compare import Change, Compared, Difference, Side, _changes, _costs, _flat, _pairs, as_json, lines
from equipoise.study.effects import Effect
from equipoise.study.judging import ClaimVerdict, Judgement
from equipoise.study.results import Results, RunInfo, items_schema, measurements_schema

FIRST = Claim("up rises", source="abstract", test=better("height", arm="up", rival="flat"))
SECOND = Claim("up is cheap", source="table", primary=False, test=cheaper("calls", arm="up", rival="flat"))
STUDY = Study(
    arms=[Arm("up"), Arm("flat", kind="baseline")],
    outcomes=[Outcome("height", better="higher", unit="m")],
    claims=[FIRST, SECOND],
    run=lambda run: None,
    budget="calls",
    without_control="a test",
    name="walk",
)


def effect(estimate: float, test: Any, *, unit: str = "", items: int = 0) -> Effect:
    spread = estimate - 0.5, estimate + 0.5
    return Effect("e", estimate, *spread, 0.95, 3.0, 4, items, unit, (estimate,) * 4, 0.0, "arm", test=test)


def run(key: str, arm: str = "up", seed: int = 0, **changes: Any) -> RunInfo:
    values = {"kind": "method", "point": 0, "settings": {}, "role": "test", "state": "complete", "cost": {}}
    values |= {"folder": Path(key), "fingerprint": "f", **changes}
    return RunInfo(key=key, arm=arm, seed=seed, **values)


def side(folder: str, verdicts: tuple[ClaimVerdict, ...] = (), runs: list[RunInfo] | None = None, **made: Any) -> Side:
    tables = measurements_schema().empty_table(), items_schema().empty_table()
    results = Results("walk", {}, {}, runs or [], {}, *tables, notes=[f"note of {folder}"])
    return Side(Path(folder), STUDY, results, Judgement("walk", verdicts, (), (), ()), made)


VERDICTS = (
    ClaimVerdict(FIRST, "supported", "it does", (effect(1.0, FIRST.test, unit="m", items=7),), preview=True),
    ClaimVerdict(SECOND, "undecided", "no verdict", (effect(0.5, SECOND.test), effect(0.25, SECOND.test))),
)
NAMES = tuple(f"r{number}" for number in range(7))


def compared(**changes: Any) -> Compared:
    same: dict[str, Any] = {
        "a": side("out/a", VERDICTS),
        "b": side("out/b", (ClaimVerdict(FIRST, "refuted", "it does not"),)),
        "changes": (),
        "identical": (("r0", "s0"), ("r1", "s1")),
        **dict.fromkeys(("differing", "states", "only_a", "only_b", "outcomes"), ()),
        "costs": {},
    }
    return Compared(**same | changes)


def test_two_that_are_alike_in_full():
    empty = {"a": side("a"), "b": side("b"), "identical": ()}
    assert list(lines(compared(**empty))) == [
        "A a",
        "B b",
        "\nHow they were made",
        "  the same options, code, threads, versions and settings",
        "\nRuns",
        "  0 in both with identical measurements",
        "\nLargest differences between runs in both",
        "\nVerdicts",
    ]


def test_a_claim_that_only_the_second_has_is_told_too():
    only = compared(a=side("a"), b=side("b", (ClaimVerdict(FIRST, "refuted", "it does not"),)))
    told = list(lines(only))
    start = told.index("\nVerdicts")
    assert told[start + 1 :] == ["  up rises", "    A has no such claim", "    B refuted: it does not"]


def test_two_that_differ_in_full():
    where = {"run_a": "r1", "run_b": "s1", "at": '{"step": 3}', "where": '{"split": "test"}', "a": 0.25, "b": 0.75}
    found = compared(
        changes=(Change("code", "abc", None), Change("option names", ["ü"], ["v", 1]), Change("threads", 1, 2)),
        differing=tuple((name, f"s{name}") for name in NAMES[:6]),
        states=tuple((name, "complete", f"s{name}", "failed") for name in NAMES[:6]),
        only_a=NAMES,
        only_b=NAMES[:1],
        outcomes=(
            Difference("height", 2400, 1200, 0.5, **where, only_a=1000),
            Difference("x", 4, 1, only_b=2),
            Difference("y", 4, 1, 0.5, a=1.0, b=1.5, at="{}", where="{}"),
            Difference("calm", 1024, 0),
        ),
        costs={"up": {"calls": (4, 6), "seconds": (0, 2)}, "level": {}},
    )
    first = "e: +1.00 m (95\u00a0% interval +0.50 to +1.50; 4 seeds, 7 items)"
    factors = "e: 1.65 times less (95\u00a0% interval 1.00 to 2.72; 4 seeds)"
    factors += "; e: 1.28 times less (95\u00a0% interval 0.78 to 2.12; 4 seeds)"
    assert list(lines(found)) == [
        "A out/a",
        "B out/b",
        "\nHow they were made",
        "  code          A abc  B –",
        '  option names  A ["ü"]  B ["v", 1]',
        "  threads       A 1  B 2",
        "\nRuns",
        "  2 in both with identical measurements",
        "  6 in both whose measurements differ: r0, r1, r2, r3, r4 and 1 more",
        *(f"  {name} is complete in A, s{name} failed in B" for name in NAMES[:5]),
        "  and 1 more that are not complete in both",
        "  7 only in A: r0, r1, r2, r3, r4 and 2 more",
        "  1 only in B: r0",
        "\nLargest differences between runs in both",
        '  height  0.500: 0.250 in A, 0.750 in B (r1 {"step": 3} {"split": "test"}); '
        "1,200 of 2,400 values differ, 1,000 only in A",
        "  x       1 of 4 values differ, 2 only in B",
        "  y       0.500: 1 in A, 1.50 in B (); 1 of 4 values differ",
        "  calm    none in 1,024 values",
        "\nVerdicts",
        "  up rises",
        f"    A supported (preview): {first}",
        "    B refuted: it does not",
        "  up is cheap",
        f"    A exploratory: {factors}",
        "    B has no such claim",
        "\nWork of the test runs in both, B as a multiple of A",
        "  up     calls 1.50, seconds undefined",
        "  level  ",
    ]
    five = list(lines(compared(states=found.states[:5], differing=found.differing[:5])))
    assert not any("more" in line for line in five) and "  r4 is complete in A, sr4 failed in B" in five


def test_all_of_it_as_json():
    found = compared(
        changes=(Change("threads", 1, None),),
        differing=(("r2", "s2"),),
        states=(("r3", "complete", "s3", "failed"),),
        only_a=("r4",),
        only_b=("s5",),
        outcomes=(
            Difference("height", 3, 1, 0.5, "r2", "s2", "{}", "{}", math.inf, 1.0, 1, 2),
            Difference("calm", 1, 0),
        ),
        costs={"up": {"calls": (4, 6), "seconds": (0, 2)}},
    )
    content = as_json(found)
    claims = content.pop("claims")
    unknown = {"run_a": "", "run_b": "", "at": "", "where": "", "a": None, "b": None}
    largest = {"run_a": "r2", "run_b": "s2", "at": "{}", "where": "{}", "a": None, "b": 1.0}
    assert content == {
        "study": "walk",
        "a": "out/a",
        "b": "out/b",
        "changes": [{"name": "threads", "a": 1, "b": None}],
        "runs": {
            "identical": (("r0", "s0"), ("r1", "s1")),
            "differing": (("r2", "s2"),),
            "states": (("r3", "complete", "s3", "failed"),),
            "only_a": ("r4",),
            "only_b": ("s5",),
        },
        "outcomes": [
            {"outcome": "height", "places": 3, "differing": 1, "largest": 0.5, **largest, "only_a": 1, "only_b": 2},
            {"outcome": "calm", "places": 1, "differing": 0, "largest": None, **unknown, "only_a": 0, "only_b": 0},
        ],
        "work": {"up": {"calls": {"a": 4, "b": 6, "ratio": 1.5}, "seconds": {"a": 0, "b": 2, "ratio": None}}},
        "notes": {"a": ["note of out/a"], "b": ["note of out/b"]},
    }
    json.dumps(claims, allow_nan=False)
    assert [claim["text"] for claim in claims] == ["up rises", "up is cheap"] and claims[1]["b"] is None
    told = {"text": "up rises", "source": "abstract", "verdict": "refuted", "preview": False, "reason": "it does not"}
    assert claims[0]["b"] == {**told, "effects": []}
    numbers = {"estimate": 1.0, "lower": 0.5, "upper": 1.5, "level": 0.95, "margin": 0.0, "seeds": 4, "items": 7}
    assert claims[0]["a"]["effects"] == [{"label": "e", "unit": "m", **numbers}]
    assert [claim["a"]["verdict"] for claim in claims] == ["supported", "exploratory"]


def test_runs_are_paired_by_settings_then_by_their_place_in_the_grid():
    a = [run("a0", settings={"r": 1}), run("a1", point=1, settings={"r": 2}), run("a2", seed=1), run("a3", "flat")]
    b = [
        run("b0", "flat"),
        run("b1", settings={"r": 9}),
        run("b2", point=3, settings={"r": 2}),
        run("b3", seed=1, role="tuning"),
    ]
    assert _pairs(a, b) == [(0, 1), (1, 2), (3, 0)] and _pairs(a, []) == _pairs([], b) == []
    assert _pairs(a, a) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_only_what_test_runs_spent_is_compared_and_peaks_are_no_sums():
    def cost(**amounts: float) -> dict:
        return {"work": {"build": amounts, "query": {"calls": 1}}}

    tuning = [run("a0", role="tuning", cost=cost(calls=99))]
    a = [*tuning, run("a1", cost=cost(calls=2, peak_bytes=7, seconds=1)), run("a2", seed=1, cost=cost(peak_bytes=5))]
    b = [*tuning, run("b1", cost=cost(calls=3, peak_bytes=1)), run("b2", seed=1, cost=cost(peak_bytes=9))]
    lone = [run("c", "flat", cost={}), run("d", "flat", cost={})]
    found = _costs((side("a", runs=[*a, lone[0]]), side("b", runs=[*b, lone[1]])), [(0, 0), (1, 1), (2, 2), (3, 3)])
    assert found == {"up": {"calls": (4, 5), "peak_bytes": (7, 9)}, "flat": {}}
    assert list(found["up"]) == ["calls", "peak_bytes"]


def test_what_differs_in_how_they_were_made():
    a, b = side("a", x=1, y=2, only=0), side("b", x=1, y=3, z=None)
    assert _changes(a, b) == (Change("y", 2, 3), Change("only", 0, None))
    assert list(_flat({"a": 1, "b": {"c": {"d": 2}, "e": 3}}, "at ")) == [("at a", 1), ("at b c d", 2), ("at b e", 3)]


def test_of_places_that_agree_nothing_is_largest():
    nothing = Difference("x", 1, 0)
    assert all(math.isnan(value) for value in (nothing.largest, nothing.a, nothing.b))
    assert (nothing.run_a, nothing.run_b, nothing.at, nothing.where, nothing.only_a, nothing.only_b) == (
        "",
        "",
        "",
        "",
        0,
        0,
    )


def test_a_pair_is_unequal_by_one_row_that_differs_or_stands_on_one_side_alone():
    def rows(value, other):
        place, pair = (np.array([1, 2, 5]), np.array([2, 5, 9])), (np.array([0, 0, 1]), np.array([0, 1, 2]))
        return compare._Rows(place, pair, ({"value": np.array(value)}, {"value": np.array(other)}), {})

    assert compare._unequal(rows([7.0, 1.0, math.nan], [1.0, math.nan, 7.0]), 4).tolist() == [True, False, True, False]
    assert compare._unequal(rows([7.0, 1.0, 3.0], [1.0, 4.0, 7.0]), 4).tolist() == [True, True, True, False]
