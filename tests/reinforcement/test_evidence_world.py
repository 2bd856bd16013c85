"""Questions with paragraphs: how many there are, and that parts of one order have none in common."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

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


def evidence(name="q", question="Who was born in Oslo?"):
    texts = {"gold": "Born in Oslo: Ada", "distractor": "Oslo", "repeat": "was it"}
    return world.Evidence(name, question, "was it", texts)


def test_an_episode_gives_one_text_and_is_over():
    reading = world.Reading([evidence("a"), evidence("b", "Where?")])
    assert reading.reset(4) == world.FIRST.format(question="Where?", first="was it")
    told, reward, done, info = reading.step("hm hm")
    assert told == world.THEN.format(question="Where?", text="Oslo") and (reward, done) == (0.0, False)
    call = {"name": "read", "arguments": {"given": "distractor"}}
    assert info == {"owner": "tool", "actions": [call], "call_at": 5}
    assert reading.step("so") == ("", 0.0, True, {})
    assert "Who was born" in reading.reset(0) and "Born in Oslo: Ada" in reading.step("")[0]
    assert "was it" in [reading.reset(2), reading.step("")[0]][1]


def test_how_questions_are_thought_about(monkeypatch):
    asked = []
    monkeypatch.setattr(world, "play", lambda *given, **how: asked.append((given, how)))
    world.think("model", [evidence("a"), evidence("b")], tokens=9)
    ((model, make, seeds), how) = asked[0]
    assert (model, make().evidence[1].id, list(seeds)) == ("model", "b", [0, 1, 2, 3, 4, 5])
    assert how == {
        "samples": 1, "max_turns": 2, "max_new_tokens": 9, "temperature": 0.0, "seed": 0, "batch_size": 30
    }  # fmt: skip


def test_overlap_is_of_the_words_that_the_first_paragraph_has_not():
    # who, was, born, in, oslo; "was" is in the first paragraph.
    assert [world._overlap(evidence(), given) for given in world.GIVEN] == [3 / 5, 1 / 5, 0.0]
    assert world._overlap(evidence(question="the"), "gold") == 0.0  # of no word


def test_signals_are_those_of_the_second_thought(monkeypatch):
    """Two thoughts of two tokens, of which the last repeats the text; by hand."""
    rollouts = SimpleNamespace(
        ids=torch.zeros(3, 4), entropies=torch.tensor([[4.0, 2.0, 1.0, 2.0]] * 3).double(),
        log_probs=torch.tensor([[-1.0, -2.0, -3.0, -4.0]] * 3).double(),
    )  # fmt: skip
    segments = torch.tensor([[0, 0, 1, 1]] * 3)
    copies = torch.tensor([[True, False, False, True]] + [[False] * 4] * 2)
    monkeypatch.setattr(world, "think", lambda model, evidence, tokens: rollouts)
    monkeypatch.setattr(world, "segmented", lambda model, rollouts: SimpleNamespace(segments=segments, observed=None))
    monkeypatch.setattr(world, "copied", lambda ids, segments, observed: copies)
    monkeypatch.setattr("equipoise.reinforcement.entropy_tools.LEAST", 1)
    means = lambda values, segments, count: SimpleNamespace(  # noqa: E731
        means=torch.stack(
            [torch.where(segments == k, values, 0).sum(-1) / (segments == k).sum(-1) for k in range(2)], -1
        ),
        joined=torch.zeros(3, 2, dtype=torch.bool),
    )
    monkeypatch.setattr(world, "segment_entropy", means)
    found = world.drops(None, [evidence()], tokens=2)
    assert found["entropy"] == {given: [1.5] for given in world.GIVEN}
    assert found["relative"]["gold"] == [pytest.approx(0.5)]
    assert found["no-copies"]["gold"] == [1.0] and found["no-copies"]["repeat"] == [1.5]
    assert found["surprisal"]["gold"] == [-2.0]
    assert found["copied"] == {"gold": [0.5], "distractor": [0.0], "repeat": [0.0]}
    assert list(found) == [*world.SIGNALS, "copied"]
