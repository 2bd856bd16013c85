"""Claims refuse what no data could decide, and name what they rely on."""

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


def test_declaring_claims_loads_nothing_heavy():
    code = (
        "import sys, equipoise.study.claims; "
        "sys.exit(sorted({'numpy', 'scipy', 'pyarrow', 'torch', 'pydantic'} & set(sys.modules)) != [])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
