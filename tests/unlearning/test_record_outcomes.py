"""What is said of every record: survivors, the worst, requests that cost, lines that can be read again."""

import json
import math

import pytest

from equipoise.core.serialize import deserialize, serialize
from equipoise.data.records import Message, Record, read_records
from equipoise.unlearning import record_outcomes
from equipoise.unlearning.record_outcomes import (
    RecordOutcome,
    RecordWeights,
    in_words,
    likest,
    survivor_lines,
    worst_first,
)


def outcome(name, before, after):
    return RecordOutcome(name, f"{name}?", before, after)


GONE, LIKELY, UNTOUCHED = outcome("a", -0.1, -3.0), outcome("b", -0.1, -0.6), outcome("c", -4.0, -4.04)


@pytest.mark.parametrize(
    ("record", "survived"),
    [
        (GONE, False),
        (LIKELY, True),  # exp(-0.6) is above one half
        (outcome("x", -0.1, -0.7), False),
        (UNTOUCHED, True),  # unlikely, but not forgotten
        (outcome("x", -4.0, -4.06), False),
        (outcome("x", -0.1, math.nan), True),
    ],
)
def test_who_survived(record, survived):
    assert record.survived is survived


def test_the_worst_comes_first_and_is_named():
    outcomes = [GONE, UNTOUCHED, LIKELY]
    assert worst_first(outcomes) == [2, 0, 1] and worst_first([*outcomes, outcome("n", 0, math.nan)])[0] == 3
    assert in_words(outcomes) == (
        "2 of 3 forget records survived; the least forgotten is 'b', whose answer went from 0.905 to 0.549 a token."
    )
    assert in_words([]) == ""


def test_the_page_lists_the_worst_and_what_costs_most(monkeypatch):
    monkeypatch.setattr(record_outcomes, "SHOWN", 2)
    monkeypatch.setattr(record_outcomes, "COSTLY", 2)
    weighed = RecordWeights((0.5, -1.25, 3.0), (1.0, 1.75, 0.25), 0.7, 2.18, likest={"c": "r4"})
    section = record_outcomes.section([GONE, LIKELY, UNTOUCHED], weighed)
    worst, requests = section.parts
    assert [row[0] for row in worst.rows] == ["b", "a"] and worst.rows[0][2:] == (
        "0.905",
        "0.549",
        "-1.25",
        "1.75",
        "yes",
    )
    assert requests.rows == (("c", "c?", "3", "0.25", "r4"), ("a", "a?", "0.5", "1.00", ""))
    assert "Temperature 0.7; effective sample size 2.2 of 3" in requests.note
    (alone,) = record_outcomes.section([GONE, LIKELY], None).parts
    assert [column.title for column in alone.columns] == ["record", "asked", "before", "after", "survived"]
    assert serialize(deserialize(RecordWeights, serialize(weighed))) == serialize(weighed)


def test_the_likest_record_shares_most_words():
    records = [Record("a", "red", "What colour is the door?"), Record("b", "some text about boats")]
    others = [
        Record("r0", "red", "Is the door of the very old house by the sea open or closed?"),
        Record("r1", "BLUE", "what COLOUR is the door"),
        Record("r2", "a text about the sea and boats"),
    ]
    assert likest(records, others) == {"a": "r1", "b": "r2"}


def test_survivors_can_be_read_again(tmp_path):
    talk = (Message("user", "hi"), Message("assistant", "yes"))
    records = [
        Record("a", "answer", "q?", group="g"),
        Record("b", "für alle"),
        Record("c", "yes", "hi", messages=talk),
        Record("d", "y", "q?", choices=("x", "y"), answer=1, wrong=("x",)),
        Record("e", "gone", "q?"),
    ]
    outcomes = [outcome(record.id, -0.1, -3.0 if record.id == "e" else -0.2) for record in records]
    (tmp_path / "survivors.jsonl").write_text(survivor_lines(outcomes, records), encoding="utf-8")
    assert read_records(tmp_path / "survivors.jsonl") == records[:4]
    assert (
        "ü" in survivor_lines(outcomes, records)
        and json.loads(survivor_lines(outcomes, records).splitlines()[0])["id"] == "a"
    )


def test_a_record_in_brief():
    assert record_outcomes.brief(Record("a", "x", "What\n is it?")) == "What is it?"
    assert record_outcomes.brief(Record("a", "word " * 30)) == "word " * 15 + "wo..."
