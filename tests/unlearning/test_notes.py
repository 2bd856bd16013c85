"""What a run must say of itself: nothing happened, too much happened, the request contradicts itself."""

from dataclasses import dataclass

import pytest

from equipoise.core.errors import BadInput
from equipoise.data.records import Message, Record
from equipoise.unlearning.notes import of_outcome, of_records


@dataclass(frozen=True)
class Value:
    value: float
    chance: float | None = None
    of: int | None = None


def record(number, prompt=None, completion=None):
    return Record(
        id=f"r{number}", prompt=prompt or f"Who wrote letter {number}?", completion=completion or f"Person {number}"
    )


FORGET, RETAIN = [record(i) for i in range(4)], [record(i) for i in range(4, 10)]


def test_sides_that_are_apart_need_no_words():
    general = [Record(id="t", completion="Some text."), Record(id="u", completion="Another text.")]
    other_answer = record(20, FORGET[0].prompt, "I do not know.")  # a question may be answered otherwise from now on
    assert of_records({"forget": FORGET, "retain": [*RETAIN, other_answer], "general": general}) == []


def test_overlap_and_duplicates_are_counted():
    again = record(30, "who  wrote letter 1? ", "PERSON 1")
    turns = (("user", "she?"), ("assistant", "no"), ("user", "and he?"), ("assistant", "yes"))
    conversation = Record(id="c", prompt="and he?", completion="yes", messages=tuple(Message(*turn) for turn in turns))
    single = Record(id="s", prompt="and he?", completion="yes")
    told = of_records({"forget": [*FORGET, conversation], "retain": [*RETAIN, again, RETAIN[0], RETAIN[0], single]})
    assert told == [
        "retain: 2 of 10 records stand there more than once.",
        "1 of 5 forget records also stand in retain: they are pushed away and held at once.",
    ]


def test_what_is_to_be_forgotten_and_kept_is_refused():
    with pytest.raises(BadInput, match=r"Every record of forget \(4\) also stands in retain"):
        of_records({"forget": FORGET, "retain": [*RETAIN, *FORGET]})
    (told,) = of_records({"forget": FORGET, "retain": RETAIN, "general": [*RETAIN, *FORGET]})
    assert told == "4 of 4 forget records also stand in general: it measures what should be forgotten."


GOOD = {
    "forget_log_probability": Value(-0.1),
    "forget_accuracy": Value(1.0, 0.25, 16),
    "retain_log_probability": Value(-0.2),
    "retain_accuracy": Value(1.0, 0.25, 60),
    "retain_rouge_recall": Value(0.9),
}


def test_a_run_that_did_what_was_asked():
    after = GOOD | {"forget_log_probability": Value(-3.0), "retain_accuracy": Value(55 / 60, 0.25, 60)}
    assert of_outcome(GOOD, after, moved=1.0) == []


def test_a_run_that_did_nothing():
    (told,) = of_outcome(GOOD, GOOD, moved=0.8)
    assert told.startswith("Nothing was forgotten")
    few, nothing = of_outcome(GOOD, GOOD | {"forget_log_probability": Value(-0.12)}, moved=0.031)
    assert few.startswith("Only 3.1% of the trained weights changed") and nothing.startswith("Nothing was forgotten")
    assert of_outcome(GOOD, GOOD, moved=0.0)[0].startswith("Not one of the trained weights changed")
    fell = GOOD | {"forget_accuracy": Value(0.5, 0.25, 16)}
    assert of_outcome(GOOD, fell, moved=1.0) == []


def test_a_model_that_was_destroyed():
    after = GOOD | {
        "forget_log_probability": Value(-9.0),
        "retain_accuracy": Value(17 / 60, 0.25, 60),
        "retain_log_probability": Value(-6.0),
    }
    likely, right = of_outcome(GOOD, after, moved=1.0)
    assert "retain_log_probability fell from -0.200 to -6.000." in likely
    assert "retain_accuracy fell from 1.000 (60 of 60) to 0.283 (17 of 60), where guessing gets 0.25." in right
    guessing = GOOD | {"retain_accuracy": Value(0.2, 0.25, 60), "forget_log_probability": Value(-3.0)}
    assert of_outcome(guessing, guessing | {"forget_log_probability": Value(-9.0)}, moved=1.0) == []
