"""What is said of a teacher and its student, from numbers alone: warnings at their limits, lines, tables."""

import dataclasses
import math

import pytest

from equipoise.core.shares import Bounded
from equipoise.uncertainty import bayes_result
from equipoise.uncertainty.bayes_result import (
    MEASURES,
    MLE,
    STUDENT,
    TEACHER,
    TEMPERATURE,
    Bayesianized,
    BayesPlan,
    CalibrationCard,
    Distilled,
)


def about(value, half=0.02):
    return Bounded(value, value - half, value + half)


def card(passes=1, **other):
    given = {
        "confidence": 0.8,
        "accuracy": about(0.75),
        "nll": about(0.6),
        "brier": about(0.4),
        "ece": about(0.05),
        "gains": {name: about(0.0) for name in ("accuracy", "nll", "brier")},
    }
    return CalibrationCard(n=1200, passes=passes, to_teacher=0.0, bins=(), **(given | other))


def of_cards(temperature=1.5, **cards):
    own = {MLE: card(), TEMPERATURE: card(), TEACHER: card(10), STUDENT: card(nll=about(0.5), ece=about(0.031))}
    return bayes_result.Tested(own | cards, temperature, 1340)


def teacher(kind="tfb", **other):
    given = {"confidence": {MLE: 0.9, TEACHER: 0.7}, "sigma": 0.05, "tested": of_cards()}
    return Bayesianized(kind, {}, "a model", {}, ("a", "b"), 2400, 10, **(given | other))


def student(**other):
    given = {
        "divergence": {"before": 0.3, "after": 0.1},
        "confidence": {TEACHER: 0.7},
        "moved": 0.25,
        "tested": of_cards(),
    }
    return Distilled({}, "a model", {}, ("a", "b"), 2400, "tfb", 10, 60, **(given | other))


def test_nothing_is_warned_of_where_nothing_is_wrong():
    assert teacher().warnings() == student().warnings() == ()
    assert teacher().headline() == (
        "A teacher (TFB with sigma 0.05) of 2,400 inputs: mean confidence on them 0.900 before, 0.700 averaged over its "
        "draws."
    )
    assert "(Laplace with lambda 12.35)" in teacher("laplace", sigma=math.nan, precision=12.3456).headline()
    assert "(ensemble)" in teacher("ensemble", sigma=math.nan).headline()


def count(found, words):
    assert len(found) == (1 if words else 0) and words in "".join(found)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sigma": 0.0, "edge": "lower"}, "sigma is 0"),
        ({"sigma": 0.1, "edge": "upper"}, "upper edge of its range, 0.1:"),
        ({"kind": "blob", "sigma": 0.0, "edge": "upper"}, ""),
        ({"confidence": {MLE: 0.7 + 9e-7, TEACHER: 0.7}}, "draws change nothing"),
        ({"confidence": {MLE: 0.7, TEACHER: 0.7 + 9e-7}}, "draws change nothing"),
        ({"confidence": {MLE: 0.7 + 2e-6, TEACHER: 0.7}}, ""),
        ({"sigma": 0.0, "confidence": {MLE: 0.7, TEACHER: 0.7}}, "sigma is 0"),  # why they change nothing is said
        ({"confidence": {MLE: 0.9, TEACHER: 0.9991}}, "confidence is 0.9991"),
        ({"confidence": {MLE: 0.9, TEACHER: 0.999}}, ""),
    ],
)
def test_a_teacher_is_warned_of_by_its_noise(given, words):
    count(teacher(**given).warnings(), words)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"moved": 0.0}, "no nearer"),
        ({"divergence": {"before": 0.3, "after": 0.3}}, "no nearer"),
        ({"divergence": {"before": 0.3, "after": math.nan}}, "no nearer"),
        ({"divergence": {"before": 0.3, "after": 0.2999}}, ""),
        ({"confidence": {TEACHER: 0.9995}}, "confidence is 0.9995"),
        ({"confidence": {TEACHER: 0.999}}, ""),
    ],
)
def test_a_student_is_warned_of_by_its_training(given, words):
    count(student(**given).warnings(), words)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"temperature": 0.0101}, "0.0101, since 1,340 labelled"),
        ({"temperature": 0.01011}, ""),
        ({"temperature": 99.1}, "99.1, since"),
        ({"temperature": 99.0}, ""),
        ({STUDENT: {"gains": {"accuracy": Bounded(-0.2, -0.3, -0.1), "nll": about(0)}}}, "-0.200 [-0.300, -0.100]"),
        ({STUDENT: {"gains": {"accuracy": Bounded(-0.2, -0.3, 0.0), "nll": about(0)}}}, ""),
        ({STUDENT: {"gains": {"accuracy": about(0), "nll": Bounded(-0.2, -0.3, -0.1)}}}, "by 0.200 [0.100, 0.300]."),
        ({STUDENT: {"gains": {"accuracy": about(0), "nll": Bounded(-0.2, -0.3, 0.0)}}}, ""),
        ({STUDENT: {"confidence": 0.72}}, "confidence 0.720, accuracy 0.750 [0.730, 0.770]"),
        ({STUDENT: {"confidence": 0.73, "accuracy": Bounded(0.75, 0.73, 0.8)}}, ""),
        ({TEACHER: {"confidence": 0.1}}, ""),  # of the teacher nothing is said of its student
    ],
)
def test_a_student_is_warned_of_by_its_card(more, words):
    made = {name: card(**given) for name, given in more.items() if name != "temperature"}
    done = student(tested=of_cards(more.get("temperature", 1.5), **made))
    count(done.warnings(), words)
    assert done.headline().startswith(f"{' '.join(done.warnings())} One pass".strip())


def test_a_student_s_headline_is_of_what_was_tested():
    assert student().headline() == (
        "One pass in place of 10: the student's divergence from its teacher went from 0.3000 to 0.1000 nats on 2,400 "
        "inputs. On 1,200 tested inputs NLL 0.600 -> 0.500, Brier 0.400 -> 0.400, "
        "ECE 0.050 -> 0.031, accuracy 0.750 -> 0.750."
    )
    assert student(tested=None).headline().endswith("nats on 2,400 inputs.")


@pytest.mark.parametrize("done", [teacher(sigma=0.0), student(moved=0.0)])
def test_a_summary_is_warnings_a_line_a_prediction_and_the_headline(done):
    lines = done.summary()
    assert lines[0] == done.warnings()[0] and lines[-1] == done.headline() and len(lines) == 6
    width = len(TEMPERATURE)
    assert lines[1].startswith("adapter".ljust(width) + "  1 passes  accuracy 0.750 [0.730, 0.770]  nll 0.600 ")
    assert [line[:width].rstrip() for line in lines[1:5]] == [MLE, TEMPERATURE, TEACHER, STUDENT]
    assert lines[3][width:].startswith("  10 passes  ") and lines[4].endswith("  ece 0.031 [0.011, 0.051]")
    assert len(dataclasses.replace(done, tested=None).summary()) == 2
    assert bayes_result.Tested({}, 1.0, 0).lines() == []


@pytest.mark.parametrize("done", [teacher(), student()])
def test_a_notebook_shows_a_table_of_predictions(done):
    shown = done._repr_html_()
    assert shown == done.tested.html() and shown.count("<tr>") == 5
    for word in ("prediction", "passes", *MEASURES):
        assert f"<th>{word}</th>" in shown
    assert "<tr><td>teacher</td><td>10</td><td>0.750 [0.730, 0.770]</td><td>0.600" in shown
    bare = dataclasses.replace(done, tested=None)
    assert bare._repr_html_() == f"<p>{bare.headline()}</p>"


def test_a_plan_says_what_is_read_and_how_often():
    lines = BayesPlan("m.", "ad", "what", 2400, 1200, (" A", " B"), "Why?\n", 48_000, 3_000).summary()
    assert lines[0] == "m. Adapter: ad" and lines[1] == "what"
    assert lines[2:] == (
        "2,400 inputs, 1,200 to test on; classes ' A', ' B'",
        "the first, as it is read: 'Why?\\n'",
        "at most 48,000 forward passes of one input, 3,000 optimizer steps",
    )
