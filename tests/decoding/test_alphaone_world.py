"""The preparation of the study's model with everything it calls at hand: rounds, what is measured, what is stored."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.decoding import alphaone_world
from equipoise.decoding.alphaone_traces import TAGS, ReadStep, lessons, tasks
from equipoise.decoding.alphaone_world import AlphaOneWorld, prepare, taught
from equipoise.decoding.thinking import Intervention, Thought


def thought(thinking, *words):
    """words: whether each that might have been inserted was."""
    trace = tuple(Intervention(0, "word", 0.5, 0.1, taken) for taken in words)
    end = Intervention(9, "end", 1.0, float("nan"), True)
    return Thought((), "", "", thinking, 3, True, True, 0, (*trace, end))


class Preparation:
    seed = 5

    def __init__(self, folder, begun=None):
        self.options = {"steps": 2, "calibrate": 4}
        self.folder, self.begun, self.stored, self.spent = folder, begun, [], {}

    def resume(self):
        return self.begun

    def checkpoint(self, state):
        self.stored.append(state)

    def spend(self, **amounts):
        self.spent = amounts


@pytest.fixture
def staged(monkeypatch):
    """Everything that teaches or thinks is noted; `plain` has N of each round, `acts` what the two controls insert."""
    told = SimpleNamespace(
        taught=[], thought=[], loaded=[], saved=[], learnt=[False] * 4, acts={"alphaone": 3, "random": 2}
    )
    model = SimpleNamespace(load_state_dict=told.loaded.append, state_dict=lambda: {"w": len(told.taught)})
    untaught = alphaone_world.untaught(5)
    made = SimpleNamespace(model=model, tokenizer=untaught.tokenizer, save=told.saved.append)
    monkeypatch.setattr(alphaone_world, "untaught", lambda seed: made)

    def teach(language_model, records, **how):
        how["save"]({"step": 1})
        told.taught.append((records, how))

    def think(language_model, asked, control, seed, use):
        told.thought.append((control, [task.id for task in asked], seed, use))
        if control.name == "none":
            return [thought(length) for length in (10, 20, 30, 40 * len(told.taught))]
        return [thought(7, *[True] * told.acts[control.name], False)] + [thought(7)] * 3

    monkeypatch.setattr(alphaone_world.tiny, "teach", teach)
    monkeypatch.setattr(alphaone_world, "_think", think)
    monkeypatch.setattr(alphaone_world, "taught", lambda steps: told.learnt[len(told.taught) - 1])
    return told


def characters(*parts):
    return sum(len(each.prompt) + len(each.completion) for part in parts for each in lessons(64, 5, part))


def test_rounds_go_on_until_it_has_learnt_and_the_last_is_measured(staged, tmp_path):
    staged.learnt = [False, True]
    run = Preparation(tmp_path)
    prepare(run)
    assert [len(records) for records, _ in staged.taught] == [64, 64]
    for part, (records, how) in enumerate(staged.taught):
        assert records == lessons(64, 5, part)
        assert (how["seed"], how["epochs"], how["learning_rate"], how["batch_size"]) == (5, 1, 4e-3, 32)
        assert how["save_every"] == 100 and how["state"] is None
    own = [task.id for task in tasks(4, 6)]
    assert [(control.name, asked, seed, use) for control, asked, seed, use in staged.thought] == [
        (name, own, 5, 2) for name in ("none", "none", "alphaone", "random")
    ]
    mean = (10 + 20 + 30 + 80) / 4
    alphaone, random = (control for control, *_ in staged.thought[2:])
    assert alphaone.moment == random.moment == pytest.approx(1.4 * mean)
    assert random.expected == 3 / 4 and all(control.tags == TAGS for control, *_ in staged.thought)
    assert {(control.temperature, control.seed) for control, *_ in staged.thought} == {(1.0, 5)}
    # Where of three two come, as many more are drawn.
    stored = json.loads((tmp_path / "world.json").read_text())
    assert stored == {"mean_thinking": mean, "expected": pytest.approx(0.75 * 1.5)}
    first = 10 + 20 + 30 + 40 + 12
    assert run.spent == {
        "phase": "build", "taught_characters": characters(0, 1),
        "generated_tokens": first + (140 + 12) + 2 * (4 * 7 + 12),
    }  # fmt: skip
    whole = {"round": 1, "characters": characters(0), "tokens": first}
    assert run.stored == [
        {"round": 0, "characters": 0, "tokens": 0, "state": {"step": 1}}, {**whole, "model": {"w": 1}},
        {**whole, "state": {"step": 1}},
    ]  # fmt: skip
    assert staged.saved == [tmp_path / "model"] and not staged.loaded


def test_four_rounds_are_the_most_and_none_that_was_done_is_done_again(staged, tmp_path):
    begun = {"round": 2, "characters": 100, "tokens": 10, "model": {"w": 7}, "state": {"step": 3}}
    run = Preparation(tmp_path, begun)
    staged.acts["random"] = 0
    prepare(run)
    assert [records for records, _ in staged.taught] == [lessons(64, 5, part) for part in (2, 3)]
    assert [how["state"] for _, how in staged.taught] == [{"step": 3}, None] and staged.loaded == [{"w": 7}]
    assert run.spent["taught_characters"] == 100 + characters(2, 3)
    assert run.spent["generated_tokens"] == 10 + 112 + 152 + 2 * 40
    assert json.loads((tmp_path / "world.json").read_text())["expected"] == 0.75  # none comes, whatever is drawn


def test_a_model_is_asked_with_draws_of_their_use(monkeypatch):
    asked = []
    monkeypatch.setattr(alphaone_world, "write_thoughts", lambda *given, **how: asked.append((given, how)) or [])
    world = AlphaOneWorld("model", tasks(2, 1), 100.0, 2.5, 8)
    world.think("control")
    ((given, how),) = asked
    assert given == ("model", [task.prompt for task in tasks(2, 1)], "control")
    assert how == {"max_new_tokens": 240, "seed": [8, 3], "batch_size": 128}


def test_the_model_has_tokens_of_its_words():
    made = alphaone_world.untaught(3)
    config = made.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.max_position_embeddings) == (96, 3, 256)
    assert made.tokenizer.encode("Wait\n\n</think>", add_special_tokens=False) == made.tokenizer.convert_tokens_to_ids(
        ["Wait", "\n\n", "</think>"]
    )
    assert made.model.get_input_embeddings().weight.shape[0] == len(made.tokenizer)
    again = alphaone_world.untaught(3).model.state_dict()
    assert all(np.array_equal(each, again[name]) for name, each in made.model.state_dict().items())


@pytest.mark.parametrize("name", ["first", "again"])
def test_nothing_is_learnt_where_a_kind_of_step_is_missing(name):
    step = ReadStep(name == "again", True, True, True)
    assert not taught([step] * 10) and not taught([])
    assert taught([step, ReadStep(name != "again", True, True, True)])
