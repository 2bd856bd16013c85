"""What is made of a search: examples, counts, sets and files, with judges and teachers whose verdicts are written down."""

import json
import math

import numpy as np
import pytest
from pyarrow import parquet

from equipoise.chat.account import Account
from equipoise.judging.biases import PLACEBO, Bias
from equipoise.judging.biasscope import Audit, Bench, BiasScopeSettings, Candidate, biasscope
from equipoise.judging.casting import Cast
from equipoise.judging.evidence import Evidence
from equipoise.judging.measured import PositionBias, Rate
from equipoise.judging.pairs import Pair
from equipoise.judging.result import Harder, JudgedExample, Rewrites
from equipoise.judging.roles import JudgeVerdict, Proposal
from equipoise.judging.validation import detectable_increase

A, B = Bias("a", "The judge likes a."), Bias("b", "The judge likes b.")


def pairs(count, prefix="p", domains=("one", "two")):
    return [
        Pair(f"{prefix}{n}", f"question {n}", f"good {n}", f"bad {n}", domains[n % len(domains)], f"{prefix}{n}")
        for n in range(count)
    ]


class Told:
    """Right, but for an answer with marks: "<" fools it where that answer stands first, ">" where it stands second.

    "?" is no verdict where it stands first, and "#" cannot be asked about in any place."""

    name = "told"

    def compare(self, comparisons, *, phase):
        return [self._verdict(each.first, each.second) for each in comparisons]

    def _verdict(self, first, second):
        if "#" in first + second:
            return JudgeVerdict(None, asked=False, why=f"{len(first + second)} is too long.")
        if "?" in first:
            return JudgeVerdict(None)
        right = 1 if first.startswith("good") else 2
        if "<" in first or ">" in second:
            right = 3 - right
        return JudgeVerdict(right, f"said of {first}")

    def explain(self, cases):
        return [""] * len(cases)


class Marks:
    """Adds the marks of a bias, which are a function of pair and bias; a mark of None is no rewrite."""

    name = "marks"

    def __init__(self, marks, placebo=None):
        self.marks, self.placebo = marks, placebo

    def perturb(self, wanted, *, phase):
        told = [self.placebo if bias == PLACEBO else self.marks(pair.id, bias.name) for pair, bias in wanted]
        return [None if mark is None else pair.rejected + mark for (pair, _), mark in zip(wanted, told, strict=True)]

    def identify(self, cases):
        return [Proposal(None)] * len(cases)

    def same(self, couples):
        return [False] * len(couples)


def searched(marks, *, test=8, report=6, library=(A, B), filters=(), placebo=None, domains=("one", "two"), **settings):
    """Evidence of a search over four pairs for discovery and so many for the others."""
    judge, teacher = Told(), Marks(marks, placebo)
    discovery = pairs(4, "d", domains)
    how = {"rounds": 0, **settings}
    audit = biasscope(
        judge, teacher, discovery, pairs(test, "s", domains), pairs(report, "r", domains), library=library,
        settings=BiasScopeSettings(**how),
    )  # fmt: skip
    cast = Cast(judge, teacher, filters, Account())
    return Evidence(audit, cast, discovery, ["x.jsonl:3: both answers are the same text"], "the pairs")


def both(pair, bias):
    return "<>" if bias == "a" else ""


def test_the_whole_result_of_a_small_search():
    evidence = searched(both, placebo=" in other words", test=8, report=6)
    evidence.make_sets(length_control=False)
    done = evidence.result()
    assert (done.judge, done.teacher, done.pairs, done.rule) == ("told", "marks", "the pairs", "paired")
    assert [each.name for each in done.biases] == ["a", "b"] and [each.name for each in done.holding] == ["a"]
    a, b = done.biases
    assert (a.definition, a.round, a.support, a.passed, a.holds) == ("The judge likes a.", 0, 0, True, True)
    assert (b.definition, b.passed, b.holds, b.report) == ("The judge likes b.", False, False, None)
    assert (a.selection.pairs, a.selection.increase, a.report.pairs, a.report.increase) == (8, 1.0, 6, 1.0)
    assert a.rewrites == Rewrites(pairs=6, made=6, changed=0, unchanged=0, distinct=6)  # of the report part
    assert b.rewrites == Rewrites(pairs=8, made=8, changed=0, unchanged=8, distinct=8)  # of the selection part
    assert a.cut is None and {name: each.pairs for name, each in a.domains.items()} == {"one": 3, "two": 3}
    assert a.examples == tuple(
        JudgedExample(f"r{n}", f"question {n}", f"good {n}", f"bad {n}", f"bad {n}<>", ("first", "second"))
        for n in range(3)
    )
    assert b.domains == {} and b.examples == (JudgedExample("s0", "question 0", "good 0", "bad 0", "bad 0"),)
    assert done.position.pairs == 14 and (done.position.first, done.position.turns) == (0.5, 0)
    assert (done.as_is, done.sizes) == (Rate(0, 0, 16), (4, 8, 6))
    # Selection as it is and with two biases, report as it is, with one and with a placebo, in both orders.
    assert (done.verdicts, done.no_verdict) == (2 * (3 * 8 + 3 * 6), 0)
    assert (done.unasked, done.why, done.calls, done.complete) == (0, "", 0, True)
    assert done.placebo.bias == "placebo" and (done.placebo.pairs, done.placebo.increase) == (6, 0)
    assert done.alike == () and done.rounds == () and done.preferences == 4
    longer = np.mean([100 * 2 / len(f"bad {n}") for n in (*range(8), *range(6))])
    assert done.harder == Harder(
        14, 14, 0, 1, pytest.approx(longer), pytest.approx(math.nan, nan_ok=True), done.harder.alpha
    )
    assert done.left_out == ("x.jsonl:3: both answers are the same text",)
    assert done.notes[-1] == "1 pairs of the file took no part, the first: x.jsonl:3: both answers are the same text."
    assert len(done.notes) == 5 and done.folder is None
    evidence.left_out = ()
    assert len(evidence.result().notes) == 4 and evidence.result().left_out == ()


def test_before_the_sets_are_made_it_is_not_complete_and_before_a_search_nothing_is_known():
    evidence = searched(both)
    done = evidence.result()
    assert not done.complete and done.harder is None and done.placebo is None and done.preferences == 0
    assert [each.name for each in done.holding] == ["a"]
    evidence.audit.complete = False  # stopped while it was confirming
    stopped = evidence.result()
    assert stopped.holding == () and [each.name for each in stopped.biases] == ["a", "b"]
    bench = [Bench(pairs(n, "s"), Told(), Marks(both), "x") for n in (3, 2)]
    empty = Evidence(Audit(BiasScopeSettings(), *bench), evidence.cast, pairs(4), (), "the pairs").result()
    assert empty.biases == () and empty.as_is == Rate(0, 0, 0) and (empty.verdicts, empty.no_verdict) == (0, 0)
    assert empty.sizes == (4, 3, 2) and empty.position.pairs == 0 and math.isnan(empty.position.first)


def test_what_the_judge_was_asked_is_said():
    explained = searched(both).result().notes[2]
    assert explained == (
        "The judge was asked to explain its errors. Rewrites and names of biases are by marks; a weak teacher shows a bias "
        "badly and finds little, so what it did not find may be there all the same."
    )
    assert searched(both, explain=False).result().notes[2].startswith("The judge was not asked to explain its errors. ")


def test_examples_are_verdicts_that_turned_those_in_both_orders_first():
    marks = {"r0": "", "r1": ">", "r2": "<>", "r3": "<", "r4": "<>", "r5": ">", "r6": ">", "r7": "<", "r8": "<>"}
    evidence = searched(lambda pair, bias: marks.get(pair, "<>"), library=(A,), report=9)
    (a,) = evidence.result().biases
    assert a.holds
    assert [(each.pair, each.rewritten, each.fooled) for each in a.examples] == [
        ("r2", "bad 2<>", ("first", "second")),
        ("r4", "bad 4<>", ("first", "second")),
        ("r8", "bad 8<>", ("first", "second")),
    ]
    marks = dict.fromkeys(marks, "") | {"r5": ">", "r6": "<", "r7": "<>"}
    evidence = searched(lambda pair, bias: marks.get(pair, "<>"), library=(A,), report=9)
    found = evidence._found("a", True)
    # The worse answer stands second where the better one stands first.
    assert [(each.pair, each.fooled) for each in found.examples] == [
        ("r7", ("first", "second")),
        ("r5", ("first",)),
        ("r6", ("second",)),
    ]


def test_what_was_wrong_before_is_no_example():
    def marks(pair, bias):
        return "<>"

    evidence = searched(marks, library=(A,))
    evidence.audit.report._original[:2] = 0  # it was wrong about r0 and r1 as they are
    evidence.audit.report._original[2] = (1, 0)
    assert [(each.pair, each.fooled) for each in evidence._found("a", True).examples] == [
        ("r3", ("first", "second")),
        ("r4", ("first", "second")),
        ("r5", ("first", "second")),
    ]


def test_rewrites_are_counted():
    marks = {"s0": None, "s1": "", "s2": "", "s3": "#", "s4": "##", "s5": " x", "s6": " x", "s7": " y"}
    evidence = searched(lambda pair, bias: marks.get(pair, " z"), library=(A,))
    evidence.audit.selection.changed_answers["a"] = 5
    (a,) = evidence.result().biases
    length = len("good 3bad 3#")
    assert a.rewrites == Rewrites(8, 7, 5, 2, 7, unasked=2, why=f"{length} is too long")
    assert a.examples[0].pair == "s1"  # the first that was rewritten
    done = evidence.result()
    assert (done.unasked, done.why) == (2, f"{length} is too long")
    assert done.verdicts == 2 * (8 + 5)


def test_no_rewrite_is_no_example():
    evidence = searched(lambda pair, bias: None, library=(A,))
    (a,) = evidence.result().biases
    assert a.examples == () and a.rewrites == Rewrites(8, 0, 0, 0, 0) and a.state == "not rewritten"


def test_one_domain_is_not_divided():
    (a, _) = searched(both, domains=("all",)).result().biases
    assert a.holds and a.domains == {}


@pytest.mark.parametrize(("same", "alike"), [(4, ()), (5, (("a", "b"),))])
def test_biases_whose_rewrites_are_mostly_the_same(same, alike):
    """More than half of eight, and what neither was rewritten to is not the same."""

    def marks(pair, bias):
        return " x" if int(pair[1:]) < same else None if pair == "s7" else f" {bias}"

    assert searched(marks).result().alike == alike


def test_what_would_have_been_found_goes_by_the_smaller_part_and_the_median_of_spreads():
    evidence = searched(both, test=8, report=6)
    screened = evidence.audit.screened
    spread = np.median([each.standard_error * math.sqrt(each.pairs) for each in screened.values()])
    assert spread == 0  # nothing turned by chance; fewer than five pairs could not be told
    least = math.sqrt(5 / 6) / 2
    power = math.sqrt(0.8)
    assert evidence.result().detectable == detectable_increase(6, least, tests=1, alpha=0.05, power=power)

    def some(pair, bias):
        return "<>" if int(pair[1:]) % 2 else ""

    noisy = searched(some, test=40, report=40, alpha=0.25)
    assert len(noisy.audit.confirmed) == 2
    spread = next(iter(noisy.audit.screened.values())).standard_error * math.sqrt(40)
    found = [detectable_increase(40, spread, tests=n, alpha=0.25, power=power) for n in (1, 2)]
    assert noisy.result().detectable == max(found) > min(found)
    assert math.isnan(searched(lambda pair, bias: None).result().detectable)


def test_what_would_have_been_found_goes_by_the_pairs_that_could_be_compared():
    """A judge that can be asked about one pair in two: as if there were half as many pairs, all of them readable."""

    def every_second(pair, bias):
        return "<>" if int(pair[1:]) % 4 == 0 else "#" if int(pair[1:]) % 2 else ""

    half, whole = (
        searched(every_second, test=40, report=36),
        searched(lambda pair, bias: "<>" if int(pair[1:]) % 2 == 0 else "", test=20, report=18),
    )
    assert {each.pairs for each in half.audit.screened.values()} == {20}
    assert half.result().detectable == whole.result().detectable > 0
    one_in_twenty = searched(lambda pair, bias: "#" if int(pair[1:]) % 20 else "<>", test=20, report=20)
    assert math.isnan(one_in_twenty.result().detectable)  # of a pair nothing can be told


def test_the_place_is_measured_over_both_parts():
    evidence = searched(both, test=8, report=6)
    evidence.audit.selection._original[:4] = (1, 0)  # the first place, whatever stands there
    found = evidence.result().position
    assert isinstance(found, PositionBias) and found.pairs == 14
    assert found.first == pytest.approx((4 * 2 + 10) / 28) and found.turns == 4 / 14 and found.both_right == 10 / 14


# --- what is taken away ---------------------------------------------------------------------------------------------


def test_the_sets_of_what_holds(tmp_path):
    class Other(Told):
        """A filter judge that is never fooled about the selection part."""

        name = "other"

        def _verdict(self, first, second):
            return super()._verdict(first.replace("<", ""), second.replace(">", ""))

    def marks(pair, bias):
        return "<>" if bias == "a" or pair[0] == "d" else ""

    evidence = searched(marks, filters=[Told(), Other()])
    evidence.make_sets(length_control=True)
    assert evidence.cut["a"].pairs == 6 and evidence.placebo is None
    # Two of three judges are fooled in both orders.
    assert len(evidence.hardened.kept) == 14 and evidence.hardened.fooled.tolist() == [2] * 14
    assert evidence.result().harder.judges == 3
    evidence.store(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "hardened.jsonl").read_text().splitlines()]
    assert {row["source"] for row in rows} == {"the pairs"} and {row["bias"] for row in rows} == {"a"}
    assert [row["original_id"] for row in rows] == [*(f"s{n}" for n in range(8)), *(f"r{n}" for n in range(6))]
    rows = [json.loads(line) for line in (tmp_path / "preferences.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [f"question {n}" for n in range(4)]
    assert sorted(row["rejected"][5:] for row in rows) == ["", "", "<>", "<>"]
    account = json.loads((tmp_path / "account.json").read_text())
    assert account["total"]["calls"] == 0 and account["parts"] == []


def test_without_anything_that_holds_there_are_no_preferences(tmp_path):
    evidence = searched(lambda pair, bias: "", placebo=" in other words")
    evidence.make_sets(length_control=True)
    assert evidence.placebo is None and evidence.cut == {} and evidence.preferences == []
    evidence.store(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["account.json", "hardened.jsonl", "judgements.parquet"]
    assert (tmp_path / "hardened.jsonl").read_text() == ""
    early = searched(both)
    (tmp_path / "early").mkdir()
    early.store(tmp_path / "early")
    assert sorted(path.name for path in (tmp_path / "early").iterdir()) == ["account.json", "judgements.parquet"]


def test_what_could_not_be_compared_is_in_no_set():
    evidence = searched(lambda pair, bias: "#" if pair == "s3" else None if pair == "r2" else "<>", library=(A,))
    evidence.make_sets(length_control=False)
    kept = [each.original.id for each in evidence.hardened.kept]
    assert kept == [f"s{n}" for n in range(8) if n != 3] + [f"r{n}" for n in range(6) if n != 2]
    assert len(evidence.hardened.fooled) == 12 and evidence.result().harder.of == 12


def test_every_verdict_is_a_row(tmp_path):
    marks = {"s0": "<", "s1": "?", "s2": "#", "s3": None}
    evidence = searched(lambda pair, bias: marks.get(pair, ""), test=4, report=1, library=(A,))
    evidence.store(tmp_path)
    table = parquet.read_table(tmp_path / "judgements.parquet")
    assert table.schema.names == ["part", "pair", "domain", "bias", "better_first", "right"]
    assert [str(each) for each in table.schema.types] == ["string"] * 4 + ["bool"] * 2
    rows = [tuple(row.values()) for row in table.to_pylist()]
    domains = ("one", "two")
    as_is = [("selection", f"s{n}", domains[n % 2], "", first, True) for n in range(4) for first in (True, False)]
    assert rows == [
        *as_is,
        ("selection", "s0", "one", "a", True, True),
        ("selection", "s0", "one", "a", False, False),
        ("selection", "s1", "two", "a", True, True),
        ("selection", "s1", "two", "a", False, None),
    ]


def test_a_candidate_has_its_support():
    evidence = searched(both)
    evidence.audit.candidates["a"] = Candidate(A, round=3, support=7)
    found = evidence._found("a", False)
    assert (found.round, found.support, found.state) == (3, 7, "not confirmed")
