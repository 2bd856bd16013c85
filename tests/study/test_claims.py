"""Claims refuse what no data could decide, and name what they rely on."""

import math
import subprocess
import sys

import pytest

from equipoise.core.errors import BadInput
from equipoise.study import claims as c

PAIR = {"arm": "sago", "rival": "pcgrad"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: c.better("a", **PAIR, margin=0.03), "reason"),
        (lambda: c.better("a", **PAIR, margin=-0.1, reason="r"), ">= 0"),
        (lambda: c.better("a", **PAIR, margin=float("nan"), reason="r"), "finite"),
        (lambda: c.better("a", arm="sago", rival="sago"), "two different arms"),
        (lambda: c.better("a", **PAIR, units=()), "units"),
        (lambda: c.better("a", **PAIR, units=("seed", "seed")), "units"),
        (lambda: c.better("a", **PAIR, units=("question",)), "units is 'question'"),
        (lambda: c.better("a", **PAIR, units=("seeds",)), "units is 'seeds'. Did you mean 'seed'"),
        (lambda: c.better("a", **PAIR, units="seed"), "write ('seed',)"),
        (lambda: c.better("a", **PAIR, at="first"), "Known: last. It may also be a Mapping"),
        (lambda: c.better("a", **PAIR, at={}), "'step': 40"),
        (lambda: c.ClaimComparison("beter", "a", **PAIR), "rule is 'beter'. Did you mean 'better'"),
        (lambda: c.not_worse("a", **PAIR, margin=0.0, reason="r"), "not_worse() needs a margin"),
        (lambda: c.equal("a", **PAIR, margin=0.0, reason="r"), "equal() needs a margin"),
        (lambda: c.equal("a", **PAIR, margin=0.1, reason=" "), "reason"),
        (lambda: c.cheaper("tokens", **PAIR, by=0.5), ">= 1"),
        (lambda: c.cheaper("tokens", **PAIR, by=2), "reason"),
        (lambda: c.between("a", arm="sago", where_a={"k": 1}, where_b={"k": 1}), "two different conditions"),
        (lambda: c.matched("a", **PAIR, judge="a"), "holds one outcome equal"),
        (lambda: c.matched("a", **PAIR, judge="b", level="best"), "Did you mean 'weakest'? It may also be a float"),
        (lambda: c.matched("a", **PAIR, judge="b", level=float("nan")), "'weakest'"),
        (lambda: c.matched("a", **PAIR, judge="b", level=True), "'weakest'"),
        (lambda: c.matched("a", **PAIR, judge="tokens", by=0.5), ">= 1"),
        (lambda: c.matched("a", **PAIR, judge="tokens", by=2), "reason"),
        (lambda: c.matched("a", **PAIR, judge="tokens", by=2, reason="r", margin=0.1), "leave out margin="),
        (lambda: c.matched("a", **PAIR, judge="tokens", by=2, reason="r", rule="equal"), "leave out margin="),
        (lambda: c.matched("a", **PAIR, judge="tokens", by=2, reason="r", units=("item",)), "seed by seed"),
        (lambda: c.matched("a", **PAIR, judge="tokens", by=2, reason="r", level="best"), "Did you mean 'weakest'"),
        (lambda: c.matched("a", **PAIR, judge="b", rule="equal"), "equal() needs a margin"),
        (lambda: c.statistic("auroc", arm="sago", outcomes=("a",)), "function"),
        (lambda: c.statistic(max, arm="sago", outcomes="a"), "outcomes=("),
        (
            lambda: c.statistic(max, arm="sago", outcomes=("a",), better="more"),
            "better is 'more'. Known: higher, lower",
        ),
        (lambda: c.statistic(max, arm="sago", outcomes=("a",), over="runs"), "over is 'runs'. Known: items, path"),
        (lambda: c.both(c.better("a", **PAIR)), "at least two"),
        (lambda: c.both("a", "b"), "made by better()"),
        (lambda: c.Claim("x", source="", test=c.better("a", **PAIR)), "source"),
        (lambda: c.Claim("x", source="abstract"), "untested="),
        (lambda: c.Claim("x", source="abstract", test=c.better("a", **PAIR), untested="no GPU"), "keep one"),
        (lambda: c.Claim("", source="abstract", untested="no GPU"), "text"),
        (lambda: c.Claim("x", source="abstract", test="better"), "made by better()"),
    ],
)
def test_what_cannot_be_judged_is_refused(make, words):
    with pytest.raises(BadInput) as error:
        make()
    assert words in str(error.value)


def test_references_name_every_arm_outcome_and_cost_once():
    test = c.both(
        c.better("accuracy", **PAIR),
        c.cheaper("tokens", arm="sago", rival="sum"),
        c.matched("forget", **PAIR, judge="accuracy"),
        c.matched("recall", **PAIR, judge="seconds", by=1),
        c.statistic(max, arm="blur", outcomes=("accuracy", "confidence")),
        c.between("fluency", arm="sum", where_a={"k": 1}, where_b={"k": 2}),
    )
    found = c.Claim("x", source="abstract", test=test).references()
    assert found.arms == ("sago", "pcgrad", "sum", "blur")
    assert found.outcomes == ("accuracy", "forget", "recall", "confidence", "fluency")
    assert found.costs == ("tokens", "seconds")
    assert c.Claim("x", source="abstract", untested="no GPU").references() == c.References()


def test_what_the_card_knew_in_advance_is_never_primary():
    known = c.Claim("x", source="card, known in advance", test=c.better("a", **PAIR))
    assert not known.primary and not known.judged
    assert c.Claim("x", source="abstract", test=c.better("a", **PAIR)).judged
    assert not c.Claim("x", source="abstract", test=c.better("a", **PAIR), primary=False).judged
    assert not c.Claim("x", source="abstract", untested="no GPU").judged


@pytest.mark.parametrize(
    ("test", "sentence"),
    [
        (c.better("retain", **PAIR), "retain of sago against pcgrad at the end of the path: better"),
        (
            c.not_worse("retain", **PAIR, margin=0.02, reason="r", at={"step": 40}, where={"kind": "general"}),
            "retain (kind general) of sago against pcgrad at step 40: not worse by 0.02",
        ),
        (c.cheaper("tokens", **PAIR), "tokens of sago against pcgrad: cheaper"),
        (
            c.cheaper("tokens", **PAIR, by=2, phase="query", reason="r"),
            "tokens in phase query of sago against pcgrad: more than 2 times cheaper",
        ),
        (
            c.matched("forget", **PAIR, judge="retain", margin=0.03, reason="r", level=0.3),
            "retain of sago against pcgrad at forget = 0.3: better by more than 0.03",
        ),
        (
            c.matched("retain", **PAIR, judge="tokens", by=1.25, reason="r", level=0.5),
            "tokens of sago against pcgrad until retain = 0.5: more than 1.25 times cheaper",
        ),
        (
            c.matched("retain", **PAIR, judge="tokens", by=1),
            "tokens of sago against pcgrad until retain = the strongest level both reach: cheaper",
        ),
        (c.statistic(max, arm="sago", outcomes=("a",), margin=0.7, reason="r"), "max of a of sago: above 0.7"),
        (
            c.between("a", arm="sago", where_a={"k": 1}, where_b={"k": 2}),
            "a of sago under k 1 against k 2 at the end of the path: better",
        ),
    ],
)
def test_a_test_says_what_it_tests(test, sentence):
    assert test.describe() == sentence


AT, WHERE, FROM = {"step": 3}, {"kind": "x", "split": "test"}, {"margin": 0.5, "reason": "r"}
SUBJECT = "(kind x, split test) of sago against pcgrad"


@pytest.mark.parametrize(
    ("test", "made", "sentence"),
    [
        (
            c.better("a", **PAIR, **FROM, at=AT, where=WHERE, units=("item",)),
            c.ClaimComparison("better", "a", "sago", "pcgrad", 0.5, "r", AT, WHERE, ("item",)),
            f"a {SUBJECT} at step 3: better by more than 0.5",
        ),
        (
            c.not_worse("a", **PAIR, **FROM, at={"step": 3, "round": 2}, units=("seed",)),
            c.ClaimComparison("not_worse", "a", "sago", "pcgrad", 0.5, "r", {"step": 3, "round": 2}, None, ("seed",)),
            "a of sago against pcgrad at step 3, round 2: not worse by 0.5",
        ),
        (
            c.equal("a", **PAIR, **FROM, at=AT, where=WHERE, units=("item",)),
            c.ClaimComparison("equal", "a", "sago", "pcgrad", 0.5, "r", AT, WHERE, ("item",)),
            f"a {SUBJECT} at step 3: equal within 0.5",
        ),
        (
            c.better("a", **PAIR),
            c.ClaimComparison("better", "a", "sago", "pcgrad", 0.0, "", "last", None, ("seed", "item")),
            "a of sago against pcgrad at the end of the path: better",
        ),
        (
            c.cheaper("calls", **PAIR, by=1.5, phase="query", reason="r"),
            c.Cheaper("calls", "sago", "pcgrad", 1.5, "query", "r", None, "weakest", None),
            "calls in phase query of sago against pcgrad: more than 1.5 times cheaper",
        ),
        (c.cheaper("calls", **PAIR), c.Cheaper("calls", "sago", "pcgrad", 1.0, None, "", None, "weakest", None),
         "calls of sago against pcgrad: cheaper"),
        (
            c.between("a", arm="sago", where_a=WHERE, where_b={"kind": "y"}, **FROM, rule="equal", at=AT, units=("item",)),
            c.Between("a", "sago", WHERE, {"kind": "y"}, 0.5, "r", "equal", AT, ("item",)),
            "a of sago under kind x, split test against kind y at step 3: equal within 0.5",
        ),
        (
            c.between("a", arm="sago", where_a=WHERE, where_b={}),
            c.Between("a", "sago", WHERE, {}, 0.0, "", "better", "last", ("seed", "item")),
            "a of sago under kind x, split test against  at the end of the path: better",
        ),
        (
            c.statistic(max, **PAIR, outcomes=["a", "b"], **FROM, better="lower", over="path", where=WHERE,
                        units=("seed",), name="tau"),
            c.Statistic(max, "sago", "pcgrad", ("a", "b"), 0.5, "r", "lower", "path", "last", WHERE, ("seed",), "tau"),
            f"tau of a, b {SUBJECT}: better by more than 0.5",
        ),
        (
            c.statistic(max, arm="sago", outcomes=("a",), better="lower"),
            c.Statistic(max, "sago", None, ("a",), 0.0, "", "lower", "items", "last", None, ("seed", "item"), ""),
            "max of a of sago: below 0",
        ),
        (
            c.matched("a", **PAIR, judge="b", **FROM, level=0.25, rule="not_worse", where=WHERE, units=("item",)),
            c.Matched("a", "sago", "pcgrad", "b", 0.5, "r", 0.25, "not_worse", WHERE, ("item",)),
            f"b {SUBJECT} at a = 0.25: not worse by 0.5",
        ),
        (
            c.matched("a", **PAIR, judge="b"),
            c.Matched("a", "sago", "pcgrad", "b", 0.0, "", "weakest", "better", None, ("seed", "item")),
            "b of sago against pcgrad at a = the strongest level both reach: better",
        ),
        (
            c.matched("a", **PAIR, judge="calls", by=2, reason="r", level=0.25, where=WHERE, units=("seed",)),
            c.Cheaper("calls", "sago", "pcgrad", 2, None, "r", "a", 0.25, WHERE),
            "calls of sago against pcgrad until a (kind x, split test) = 0.25: more than 2 times cheaper",
        ),
        (
            c.both(c.better("a", **PAIR), c.cheaper("calls", **PAIR)),
            c.Both((c.better("a", **PAIR), c.cheaper("calls", **PAIR))),
            "a of sago against pcgrad at the end of the path: better; and calls of sago against pcgrad: cheaper",
        ),
    ],
)  # fmt: skip
def test_every_builder_fills_every_field(test, made, sentence):
    assert test == made and test.describe() == sentence


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: c.better("a", **PAIR, margin=math.inf, reason="r"),
         "A margin is a finite number >= 0 in the unit of the outcome; got inf."),
        (lambda: c.better("a", **PAIR, margin="0", reason="r"),
         "A margin is a finite number >= 0 in the unit of the outcome; got '0'."),
        (lambda: c.not_worse("a", **PAIR, margin=0, reason="r"),
         "not_worse() needs a margin > 0: without one, no amount of data could support it."),
        (lambda: c.better("a", **PAIR, margin=0.25),
         "The margin 0.25 needs its reason: add reason='why a smaller difference would not matter'."),
        (lambda: c.better("a", arm="x", rival="x"), "A test compares two different arms; both are 'x'."),
        (lambda: c.better("a", **PAIR, units=()),
         "The units of a test are ('seed',), ('item',) or ('seed', 'item'); got ()."),
        (lambda: c.better("a", **PAIR, at={}),
         "A test's at is 'last' or a place on the path such as {'step': 40}; got {}."),
        (lambda: c.statistic(max, **PAIR, outcomes=("a",), over="path", at={"step": 3}),
         "statistic(over='path') is made from all places of the path; leave out at={'step': 3}."),
        (lambda: c.matched("a", **PAIR, judge="b", level=math.inf), "level is a finite number or 'weakest'; got inf."),
        (lambda: c.cheaper("a", **PAIR, by=0.999),
         "by is the factor by which the arm is cheaper, >= 1 (1: cheaper at all); got 0.999."),
        (lambda: c.cheaper("a", **PAIR, by=math.inf),
         "by is the factor by which the arm is cheaper, >= 1 (1: cheaper at all); got inf."),
        (lambda: c.cheaper("a", **PAIR, by=1.001, reason=" "),
         "The factor 1.001 needs its reason: add reason='why a smaller one would not matter'."),
        (lambda: c.between("a", arm="x", where_a={"k": 1}, where_b={"k": 1}),
         "between() compares two different conditions; both are {'k': 1}."),
        (lambda: c.statistic(max, arm="x", rival="x", outcomes=("a",)), "A test compares two different arms; both are 'x'."),
        (lambda: c.statistic(max, arm="x", outcomes=()),
         "statistic() needs outcomes=('name', ...), one per argument; got ()."),
        (lambda: c.matched("a", **PAIR, judge="a"),
         "matched() holds one outcome equal and compares another; both are 'a'."),
        (lambda: c.matched("a", arm="x", rival="x", judge="b"), "A test compares two different arms; both are 'x'."),
        (lambda: c.cheaper("a", arm="x", rival="x"), "A test compares two different arms; both are 'x'."),
        (lambda: c.both(), "both() joins at least two tests; got 0."),
        (lambda: c.Claim(" ", source="s", untested="u"), "A claim needs its text: the statement in one sentence."),
        (lambda: c.Claim("t", source=" ", untested="u"), "The claim 't' needs its source, such as source='abstract'."),
        (lambda: c.Claim("t", source="s", untested=" "),
         "The claim 't' needs a test, or untested='why it cannot be tested here'."),
    ],
)  # fmt: skip
def test_why_a_claim_is_refused(make, said):
    with pytest.raises(BadInput) as caught:
        make()
    assert str(caught.value) == said


def test_at_its_limit_a_number_is_taken():
    assert c.cheaper("a", **PAIR, by=1).by == 1 and c.better("a", **PAIR, margin=0).margin == 0
    assert c.matched("a", **PAIR, judge="b", level=0).level == 0 and c.both(*[c.better("a", **PAIR)] * 2).tests[1:]
    claim = c.Claim("t", source="s", test=c.better("a", **PAIR), untested=" ")
    assert (claim.primary, claim.judged, claim.untested) == (True, True, " ")
    one, other = c.References(("x",), ("a",), ("u",)), c.References(("y", "x"), ("b",), ("u", "v"))
    assert one | other == c.References(("x", "y"), ("a", "b"), ("u", "v"))
    assert c.References() == c.References((), (), ())


def test_declaring_claims_loads_nothing_heavy():
    code = (
        "import sys, equipoise.study.claims; "
        "sys.exit(sorted({'numpy', 'scipy', 'pyarrow', 'torch', 'pydantic'} & set(sys.modules)) != [])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
