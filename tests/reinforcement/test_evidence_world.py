"""Questions with paragraphs: how many there are, and that parts of one order have none in common."""

import random
from pathlib import Path

import pytest

from equipoise.core.errors import BadInput
from equipoise.reinforcement import evidence_world as world


def row(number, gold=("A", "B"), others=("C",)):
    context = [{"title": title, "sentences": [f"{title}{number}", " is."]} for title in (*gold, *others)]
    return {
        "_id": number,
        "question": f"q{number}?",
        "supporting_facts": [{"title": title} for title in gold],
        "context": context,
    }


@pytest.fixture
def rows(monkeypatch):
    kept = {name: [] for name in world.FILES}
    first, *_ = world.FILES
    # One with a single paragraph and one without a distractor are no questions.
    kept[first] = [*map(row, range(6)), row(90, gold=("A",)), row(91, others=())]
    monkeypatch.setattr(world, "folder", lambda name: Path("/", name))
    monkeypatch.setattr(world, "read_rows", lambda path: [(f"{path}:1", 1, each) for each in kept[path.name]])
    return kept


def test_parts_of_one_order_have_no_question_in_common(rows):
    parts = [[each.id for each in world.questions(2, seed=1, part=part)] for part in range(3)]
    whole = [each.id for each in world.questions(6, seed=1)]
    assert [each for part in parts for each in part] == whole and sorted(whole) == list("012345")
    assert [each.id for each in world.questions(6, seed=2)] != whole
    with pytest.raises(BadInput, match="there are 6 questions with two paragraphs and a distractor, and 8 were asked"):
        world.questions(2, seed=1, part=3)
    with pytest.raises(BadInput, match="7 were asked"):
        world.questions(7, seed=1)


def test_a_question_has_the_paragraph_that_helps_one_that_does_not_and_the_first_again():
    found = [world._evidence(row(7, others=("C", "D")), random.Random(seed)) for seed in range(20)]
    assert {each.first for each in found} == {"A: A7 is.", "B: B7 is."}
    assert {each.texts["distractor"] for each in found} == {"C: C7 is.", "D: D7 is."}
    for each in found:
        assert {each.first, each.texts["gold"]} == {"A: A7 is.", "B: B7 is."} and each.texts["repeat"] == each.first
        assert (each.id, each.question) == ("7", "q7?")
    assert world._evidence(row(7, gold=("A", "B", "C"), others=("D",)), random.Random(0)) is None
