"""What comparing and asking say in words: warnings, the headline, the lines for a terminal."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from equipoise.agents import memory_result as told
from equipoise.core.shares import Bounded, Share

NAN = math.nan
NOTHING = Share(0.0, 0, 0, 0.0, NAN, NAN)


def share(count, of):
    return Share(float(count), of, 0, float(of), count / of - 0.1, count / of + 0.1)


def scores(right, tokens, *, unanswered=0, against=None, build=None, added=False, recall=3):
    its = told.ProtocolScores(
        questions=10, recall=share(recall, 10), evidence=NOTHING, accuracy=share(right, 10) if right else NOTHING,
        choice=NOTHING, corrected=told.UNKNOWN, times=NOTHING, near_times=NOTHING, f1=NOTHING, read_tokens=tokens,
        printed=5.0, late=0.0, words=1.0, unanswered=unanswered, kinds={},
    )  # fmt: skip
    return told.SystemScores(
        added=added, protocols={"online": its}, modification=Bounded(0.25, 0.125, 0.375), contamination=told.UNKNOWN,
        contaminated=None, against=against or {}, build=build or {}, query={}, seconds={}, age=(), store=(),
    )  # fmt: skip


def comparison(systems, **more):
    given = {
        "names": {}, "histories": 1, "sessions": 3, "turns": 9, "questions": 1200, "with_evidence": 5, "clusters": 10,
        "clustered": "days", "measure": "accuracy", "k": 5, "context_tokens": None, "systems": systems, "graders": (),
        "agreement": (), "usage": (), "calls": 0,
    }  # fmt: skip
    return told.MemoryComparison(**{**given, **more})


GAPS = {"full": Bounded(-0.2, -0.3, -0.1), "rag": Bounded(0.1, -0.1, 0.3)}
SYSTEMS = {
    "empty": scores(2, 0),
    "full": scores(8, 12345),
    "rag": scores(5, 500),
    "mine": scores(6, 499.6, against=GAPS),
    "none": scores(0, 1, unanswered=6),
}


def test_the_best_comes_first_and_what_has_no_score_last():
    made = comparison(SYSTEMS)
    assert made.order == ["full", "mine", "rag", "empty", "none"] and made.protocols == ["online"]
    assert made.measured("mine").count == 6 and comparison(SYSTEMS, measure="recall").measured("mine").count == 3
    failed = replace(SYSTEMS["rag"], protocols={}, failed="it broke")
    assert comparison({"rag": failed, "mine": SYSTEMS["mine"]}).order == ["mine"] and failed.first is None
    assert [made.tokens(name) for name in ("full", "mine")] == ["12,345", "500"]
    assert comparison({"rag": failed}).tokens("rag") == "no"


def test_the_headline_names_the_best_that_is_no_rival_and_no_control():
    assert comparison(SYSTEMS).headline() == (
        "none gave no answer to 6 of 10 questions. "
        "1,200 questions about 1 history, online: mine answers 0.600 [0.500, 0.700] of them right, reading 500 tokens a "
        "question; full 0.800 [0.700, 0.900], reading 12,345 (mine is worse by -0.200 [-0.300, -0.100]); rag 0.500 "
        "[0.400, 0.600], reading 500 (mine is not shown to differ, +0.100 [-0.100, +0.300])."
    )
    two = comparison({name: SYSTEMS[name] for name in ("empty", "full")}, histories=2, measure="recall")
    assert two.headline() == (
        "1,200 questions about 2 histories, online: full prints all evidence for 0.300 [0.200, 0.400] of them, reading "
        "12,345 tokens a question."
    )
    alone = comparison({"empty": SYSTEMS["empty"], "oracle": scores(9, 3)}, histories=2000)
    assert "questions about 2,000 histories, online: oracle answers" in alone.headline()
    nobody = comparison({"mine": replace(SYSTEMS["mine"], protocols={}, failed="it broke")})
    assert nobody.headline() == "mine has no scores: it broke"
    assert nobody.summary() == ("mine has no scores: it broke", nobody.headline())


def test_a_line_a_system():
    lines = comparison({"empty": SYSTEMS["empty"], "mine": replace(SYSTEMS["mine"], against={})}).summary()
    assert lines[:2] == (
        "mine   accuracy 0.600 [0.500, 0.700]  reads 500 tokens  modification 0.250 [0.125, 0.375]  contamination undefined",
        "empty  accuracy 0.200 [0.100, 0.300]  reads 0 tokens  modification 0.250 [0.125, 0.375]  contamination undefined",
    )
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("clusters", "said"),
    [
        (10, []),
        (9, ["Intervals are over 9 days: too few to tell close systems apart."]),
        (2, ["Intervals are over 2 days: too few to tell close systems apart."]),
        (1, ["There is one cluster of questions, so that nothing is known of how far scores would vary."]),
    ],
)
def test_few_clusters_are_warned_of(clusters, said):
    assert list(comparison({"mine": SYSTEMS["mine"]}, clusters=clusters).warnings()) == said


def test_what_is_lost_and_not_answered_is_warned_of():
    lost = scores(5, 1, build={"unparsable": 2, "not_given": 1, "calls": 9}, unanswered=5)
    assert comparison({"a": lost}).warnings() == (
        "a: 3 replies of the model that writes it could not be read, and are not in it.",
    )
    silent = comparison({"a": scores(5, 1, build={"calls": 9}, unanswered=6)})
    assert silent.warnings() == ("a gave no answer to 6 of 10 questions.",)
    assert replace(silent, measure="recall").warnings() == ()


def test_graders_that_cannot_be_trusted_are_warned_of():
    def grader(accepts, rejects, invalid=0):
        accept, reject = (Share(each, 100, 0, 100.0, 0.0, 1.0) for each in (accepts, rejects))
        audit = SimpleNamespace(false_accept=accept, false_reject=reject)
        return SimpleNamespace(grader="g", invalid=invalid, audit=audit)

    def warned(*graders):
        return comparison({"mine": SYSTEMS["mine"]}, graders=graders).warnings()

    assert warned(grader(10.0, 10.0)) == () == warned(SimpleNamespace(grader="g", invalid=0, audit=None))
    assert warned(grader(11.0, 12.0, 1)) == (
        "g gave 1 judgements that cannot be read; they count as none.",
        "g accepts 11% of answers that were planted wrong: accuracy is too high by as much or more.",
        "g rejects 12% of answers that were planted right.",
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ((NAN, NAN, NAN), "not comparable"),
        ((0.5, NAN, NAN), "+0.500 apart, how surely is not known"),
        ((0.5, 0.25, 0.75), "better by +0.500 [+0.250, +0.750]"),
        ((-0.5, -0.75, -0.25), "worse by -0.500 [-0.750, -0.250]"),
        ((0.5, 0.0, 0.75), "not shown to differ, +0.500 [+0.000, +0.750]"),
        ((-0.5, -0.75, 0.0), "not shown to differ, -0.500 [-0.750, +0.000]"),
        ((0.5, 0.001, 0.75), "better by +0.500 [+0.001, +0.750]"),
    ],
)
def test_a_difference_in_words(value, words):
    assert told.difference(Bounded(*value)) == words


def reply(**more):
    evidence = (
        told.Evidence("i1", "s1", "t", "short", ("t1", "t2")),
        told.Evidence("i2", "s1", "t", "x" * 1001, ("t2",)),
        told.Evidence("i3", "s1", "t", "y" * 1000, ("t3",)),
    )
    given = {
        "names": {"reader": "r"}, "question": "q", "now": "noon", "answer": "yes", "evidence": evidence, "trace": (),
        "read_tokens": 1500, "sessions": 2, "of": 3, "build": {}, "query": {}, "seconds": {},
    }  # fmt: skip
    return told.MemoryReply(**{**given, **more})


def test_a_reply_says_what_it_rests_on():
    assert reply().headline() == "yes (from 3 turns of 2 sessions until noon, 1,500 tokens)"
    assert reply(answer="").headline() == (
        "r gave no answer. No reader: the evidence is 3 turns of 2 sessions until noon, 1,500 tokens."
    )
    assert reply(answer="", names={"reader": ""}).warnings() == () == reply().warnings()
    assert reply(evidence=()).warnings() == ("Nothing was found.",)
    assert reply().summary() == (
        "t1, t2  short",
        f"t2  {'x' * 1000} ... (1,001 characters; the report has them all)",
        f"t3  {'y' * 1000}",
        reply().headline(),
    )


def test_plans_in_lines():
    plan = told.ComparisonPlan(
        histories=1, sessions=2, turns=3000, questions=4, with_evidence=1, systems=("a", "b"), added=(),
        protocols=("online",), reader="r", embedder="none", answers=8, calls={"the reader r": 8000}, further=(),
        planted=0, clusters=2, clustered="days", first={"question": "Q?", "time": "noon"}, licence="",
    )  # fmt: skip
    lines = (
        "1 histories of 2 sessions and 3,000 turns; 4 questions, 1 with known evidence", "systems: a, b",
        "protocols: online; intervals over 2 days", "embedder: none; reader: r; 8 answers",
        "calls of the reader r: at most 8,000", "the first question: 'Q?', asked noon",
    )  # fmt: skip
    assert plan.summary() == lines
    more = replace(plan, added=("full",), planted=5, further=("facts",), licence="not for sale").summary()
    assert more == (
        *lines[:2], "compulsory rivals that were not named, and are added: full", *lines[2:5],
        "among those of graders 5 planted answers, of which it is known whether they are right",
        "beside them facts ask a model about every session they take in", lines[5], "not for sale",
    )  # fmt: skip
    asked = told.ReplyPlan("rag", "Q?", "noon", 1, 2, 1000, "", 3)
    assert asked.summary() == (
        "rag takes in 1 of 2 sessions (1,000 turns), those until noon", "the question: 'Q?'",
        "reader: none, the evidence is shown; at most 3 calls",
    )  # fmt: skip
    assert replace(asked, calls=None, reader="r").summary()[2] == "reader: r; calls as the system needs them"
    assert replace(asked, calls=0).summary()[2].endswith("at most 0 calls")
