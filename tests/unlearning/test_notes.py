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
        "1 of 5 forget records also stand in retain (r1): they are pushed away and held at once.",
    ]


def test_a_conversation_is_all_that_was_said_before_the_answer():
    def talk(*turns):
        roles = ("user", "assistant", "user", "assistant")
        return Record("c", turns[-1], turns[2], messages=tuple(map(Message, roles, turns)))

    one = talk("a?", "b", "c?", "d")
    for place in range(4):
        other = ["a?", "b", "c?", "d"]
        other[place] = "something else"
        assert of_records({"forget": [one, talk(*other)], "retain": RETAIN}) == []
    again = ["forget: 1 of 2 records stand there more than once."]
    assert of_records({"forget": [one, talk("A?", "b", " c? ", "D")], "retain": RETAIN}) == again
    answered = Record("c", "d", "c?", messages=(Message("user", "c?"), Message("assistant", "d")))
    asked = Record("c", "d", "c?", messages=(Message("system", "c?"), Message("assistant", "d")))
    assert of_records({"forget": [answered, asked], "retain": RETAIN}) == []


def test_what_is_to_be_forgotten_and_kept_is_refused():
    with pytest.raises(BadInput) as error:
        of_records({"forget": FORGET, "retain": [*RETAIN, *FORGET]})
    assert str(error.value) == (
        "Every record of forget (r0, r1, r2, r3) also stands in retain: the same cannot be forgotten and kept. Take the "
        "forget records out of retain."
    )
    (told,) = of_records({"forget": FORGET, "retain": [*RETAIN, *FORGET[1:]]})
    assert told == "3 of 4 forget records also stand in retain (r1, r2, r3): they are pushed away and held at once."
    (told,) = of_records({"forget": FORGET, "retain": RETAIN, "general": [*RETAIN, *FORGET]})
    assert told == (
        "4 of 4 forget records also stand in general (r0, r1, r2, r3): it measures what should be forgotten."
    )


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


NOTHING = "Nothing was forgotten: the forget set is as likely as it was. Use a larger rate or more steps."
ROUNDED = (
    "of the trained weights changed: the updates are smaller than the distance of neighbouring numbers in this precision. "
    "Use a larger rate, more steps, or dtype float32."
)


@pytest.mark.parametrize(
    ("moved", "told"),
    [(0.0, [f"Not one {ROUNDED}"]), (0.099, [f"Only 9.9% {ROUNDED}"]), (0.1, []), (1.0, [])],
)
def test_few_weights_that_changed(moved, told):
    after = GOOD | {"forget_log_probability": Value(-3.0)}
    assert of_outcome(GOOD, after, moved=moved) == told


@pytest.mark.parametrize(
    ("likely", "right", "told"),
    [
        (-0.125, 0.96875, [NOTHING]),
        (-0.16, 1.0, []),
        (-0.1, 0.9375, []),
        (0.5, 1.5, [NOTHING]),
    ],
)
def test_what_counts_as_forgetting(likely, right, told):
    """One of likelihood and accuracy has to fall by a twentieth."""
    after = GOOD | {"forget_log_probability": Value(likely), "forget_accuracy": Value(right, 0.25, 16)}
    assert of_outcome(GOOD, after, moved=1.0) == told


def test_a_twentieth_exactly_is_forgetting_and_without_a_measure_of_it_nothing_is_said():
    before, after = {"forget_accuracy": Value(0.05)}, {"forget_accuracy": Value(0.0)}
    assert of_outcome(before, after, moved=1.0) == []
    assert of_outcome(before, {"forget_rouge_recall": Value(0.0)}, moved=1.0) == []
    assert of_outcome({}, {"forget_accuracy": Value(1.0)}, moved=1.0) == []


REMEDY = "Use a smaller rate, fewer steps, stop_at, or a larger retain_weight."


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        ("retain_log_probability", Value(-0.5), Value(-1.5), None),  # one nat exactly
        ("retain_log_probability", Value(-0.5), Value(-1.51), "fell from -0.500 to -1.510."),
        ("general_log_probability", Value(-0.5), Value(float("nan")), "fell from -0.500 to nan."),
        ("general_accuracy", Value(0.75), Value(0.375), None),  # half of what was known
        ("general_accuracy", Value(0.75), Value(0.37), "fell from 0.750 to 0.370."),
        ("retain_accuracy", Value(0.75, 0.25, 8), Value(0.5, 0.25, 8), None),  # half of what was beyond chance
        (
            "retain_accuracy",
            Value(0.75, 0.25, 8),
            Value(0.375, 0.25, 8),
            "fell from 0.750 (6 of 8) to 0.375 (3 of 8), where guessing gets 0.25.",
        ),
        ("retain_accuracy", Value(0.25, 0.25, 8), Value(0.0, 0.25, 8), None),  # nothing was known
        ("retain_accuracy", Value(0.25, 0.5, 8), Value(0.25, 0.5, 8), None),
        ("retain_rouge_recall", Value(1.0), Value(-9.0), None),
        ("forget_accuracy", Value(1.0), Value(0.0), None),
    ],
)
def test_what_counts_as_damage(name, before, after, told):
    start = {"forget_log_probability": Value(0.0), name: before}
    end = {"forget_log_probability": Value(-5.0), name: after}
    sentence = f"The model is damaged beyond the forget set: {name} {told} {REMEDY}"
    assert of_outcome(start, end, moved=1.0) == ([] if told is None else [sentence])


def test_ids_of_an_overlap_are_ten_at_most():
    forget = [record(i) for i in range(13)]
    (told,) = of_records({"forget": forget, "retain": [record(20), *forget[1:]]})
    names = "r1, r2, r3, r4, r5, r6, r7, r8, r9, r10 and 2 more"
    assert told == f"12 of 13 forget records also stand in retain ({names}): they are pushed away and held at once."


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        ("retain_perplexity", 2.0, 2.2, None),  # a tenth exactly
        ("retain_perplexity", 2.0, 2.21, "retain texts rose by 10%, from 2 to 2.21."),
        ("general_perplexity", 1.5, 3.0, "general texts rose by 100%, from 1.5 to 3."),
        ("general_perplexity", 1.5, float("inf"), "general texts rose by inf%, from 1.5 to inf."),
        ("general_perplexity", 3.0, 1.5, None),
        ("general_perplexity", float("nan"), 1.5, None),
    ],
)
def test_a_perplexity_that_rose_by_more_than_a_tenth(name, before, after, told):
    start = {"forget_log_probability": Value(0.0), name: Value(before)}
    end = {"forget_log_probability": Value(-5.0), name: Value(after)}
    assert of_outcome(start, end, moved=1.0) == ([] if told is None else [f"The perplexity of the {told}"])


@pytest.mark.parametrize(
    ("trained", "noise", "told"),
    [(-2.1, -1.89, False), (-2.1, -1.91, True), (-2.1, -7.0, True), (-2.1, float("nan"), True), (-0.12, -9.0, False)],
)
def test_noise_that_forgets_as_much(trained, noise, told):
    after = GOOD | {"forget_log_probability": Value(trained), "forget_accuracy": Value(0.5, 0.25, 16)}
    found = of_outcome(GOOD, after, moved=1.0, control={"forget_log_probability": Value(noise)})
    sentence = (
        f"A random change of equal size forgets as much: noise took forget_log_probability from -0.100 to {noise:.3f}, the "
        f"training to {trained:.3f}. Use a smaller rate or fewer steps."
    )
    assert found == ([sentence] if told else [])
    assert of_outcome(GOOD, after, moved=1.0) == of_outcome(GOOD, after, moved=1.0, control={}) == []
