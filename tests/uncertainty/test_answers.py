"""Answers that are read: labels as they are written, questions, and what a verifier decides."""

import contextlib
import hashlib
import json
import math
from types import SimpleNamespace

import pytest

from equipoise.core.errors import BadInput
from equipoise.data.problems import Problem
from equipoise.data.records import Message
from equipoise.uncertainty import answers
from equipoise.uncertainty.answers import question, read_answers


def row(**more):
    return {"prompt": "p", "answer": "a", **more}


@pytest.mark.parametrize(
    ("written", "label"),
    [
        ("1", 1),
        ("0", 0),
        (" True ", 1),
        ("FALSE", 0),
        (True, 1),
        (False, 0),
        (1, 1),
        (0, 0),
        (1.0, 1),
        ("", None),
        (None, None),
    ],
)
def test_labels_as_they_are_written(written, label):
    found = read_answers([row(correct=written)])
    assert found.labelled == (label is not None)
    assert math.isnan(found.right[0]) if label is None else found.right == (float(label),)


@pytest.mark.parametrize("written", ["yes", 2, -1, 0.5, "2", [1]])
def test_labels_that_are_none(written):
    with pytest.raises(BadInput, match="expected true, false, 1 or 0"):
        read_answers([row(correct=written)])


def test_answers_to_one_question_are_known_by_group_or_prompt():
    found = read_answers([row(group="g"), row(), row(prompt="q"), row(correct=1), row(correct=0)])
    assert found.questions == ["g", "'p'", "'q'", "'p'", "'p'"] and found.labelled == 2
    assert found.texts == ("a",) * 5 and found.sha256 is None


def test_a_question_of_several_turns_says_who_said_what():
    turns = (Message("system", "be brief"), Message("user", "why?"))
    assert question(Problem("1", "why?", (), turns)) == "System: be brief\nUser: why?"
    assert question(Problem("1", "why?", (), turns[1:])) == "why?" == question(Problem("1", "why?", ()))


def test_a_verifier_decides_what_is_not_labelled(monkeypatch):
    asked = []

    class Judge:
        def check(self, problems):
            asked.append([each.id for each in problems])

        def __call__(self, problems, texts):
            asked.append(texts)
            values = {"a": (0.5, False), "b": (0.49, False), "c": (1.0, True)}
            return [SimpleNamespace(value=values[text][0], crashed=values[text][1]) for text in texts]

    monkeypatch.setattr(answers, "open_verifier", lambda kind: contextlib.nullcontext(Judge()))
    given = [row(id=str(n), gold="7", answer=text) for n, text in enumerate("abc")]
    given.insert(1, row(id="known", gold="7", answer="d", correct=0))
    found = read_answers([*given, row(id="open", answer="e")], verifier="number")
    assert asked == [["0", "1", "2"], ["a", "b", "c"]]
    assert found.right[:3] == (1.0, 0.0, 0.0) and all(map(math.isnan, found.right[3:])) and found.labelled == 3
    for rows in ([row()], [row(gold="7", correct=1)]):
        with pytest.raises(BadInput, match="no row has a gold answer that needs it"):
            read_answers(rows, verifier="number")
    with pytest.raises(BadInput, match="say how answers are compared"):
        read_answers([row(), row(gold="7")])


def test_fields_are_renamed_and_files_have_a_digest(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"q": f"p{n}", "said": "x", "ok": n % 2}) + "\n" for n in range(3)))
    names = {"prompt": "q", "answer": "said", "correct": "ok"}
    found = read_answers(path, fields=names)
    assert found.right == (0.0, 1.0, 0.0) and found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(read_answers(path, fields=names, limit=2).texts) == 2
    with pytest.raises(BadInput, match="there is no field 'promt' to rename"):
        read_answers(path, fields={"promt": "q"})
    with pytest.raises(BadInput, match="the answer is int 3, expected a text"):
        read_answers([row(answer=3)])
    with pytest.raises(BadInput, match="surrogate pair at character 2"):
        read_answers([row(answer="ab\ud83d")])
