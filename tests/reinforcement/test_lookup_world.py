"""The world of noisy keys by its numbers: what is taught when, who plays what, what is measured, and when is looked."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.core.errors import WorkFailed
from equipoise.data.lookup import Lookup
from equipoise.language import tiny
from equipoise.reinforcement import lookup_world, tiny_world
from equipoise.reinforcement.lookup_world import LookupWorld, demonstration
from equipoise.training.loop import TrainerSettings
from reinforcement_world import Books


def word(*numbers):
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@pytest.mark.parametrize(("step", "useless"), [(299, {0}), (300, {2, 3, 4})])
def test_useless_calls_come_after_the_first_steps(monkeypatch, step, useless):
    asked = []
    monkeypatch.setattr(lookup_world, "demonstration", lambda seed, draw, useless: asked.append((seed, useless)))
    monkeypatch.setattr(lookup_world, "examples", lambda model, shown: shown)
    assert len(lookup_world.lessons(None, 5, step)) == 32
    assert {each for _, each in asked} == useless
    first = list(asked)
    lookup_world.lessons(None, 5, step)
    assert asked[32:] == first and len(set(asked)) == 32
    assert max(seed for seed, _ in asked) < 1_000_000
    for other in ((6, step), (5, step - 1)):
        lookup_world.lessons(None, *other)
        assert asked[-32:] != first


class Teaching:
    """A preparation, and a training that gets to some steps; of every measurement which episodes, which draws."""

    def __init__(self, monkeypatch, tmp_path, scores, reached):
        self.seed, self.folder, self.played, self.spent, self.fits = 3, tmp_path, [], [], []
        made, left = tiny.tiny, iter(scores)
        small = {"width": 16, "layers": 1, "heads": 2}
        monkeypatch.setattr(tiny, "tiny", lambda *texts, **more: made(*texts, **{**more, **small}))
        monkeypatch.setattr(lookup_world, "_play", lambda model, seeds, draws: self.played.append((list(seeds), draws)))
        monkeypatch.setattr(lookup_world, "_scores", lambda played: np.array(next(left)))
        monkeypatch.setattr(
            lookup_world, "lessons", lambda model, seed, step: [SimpleNamespace(input_ids=range(step + 1))] * 2
        )

        def fit(model, loss, draw, settings, **how):
            self.fits.append((settings, how))
            for step in reached:
                if how["callbacks"][0](SimpleNamespace(step=step)):
                    return

        monkeypatch.setattr(lookup_world, "fit", fit)

    def resume(self):
        return None

    def checkpoint(self, state):
        """Nothing."""

    def spend(self, *, phase, **amounts):
        self.spent.append((phase, amounts))


def test_teaching_ends_where_half_is_solved(monkeypatch, tmp_path):
    scores = [[0.0, 0.5], [0.0, 1.0], [0.0, 1.0]]
    teaching = Teaching(monkeypatch, tmp_path, scores, [50, 299, 300, 301, 349, 350, 400, 450])
    lookup_world.teach(teaching)
    assert [draws for _, draws in teaching.played] == [[350], [400], [400]]
    first = word(3, 32) % 1_000_000
    assert all(seeds == list(range(first, first + 128)) for seeds, _ in teaching.played)
    ((settings, how),) = teaching.fits
    assert settings == TrainerSettings(steps=1200, learning_rate=3e-3, batch_size=32, betas=(0.9, 0.95), seed=3)
    assert (how["save_every"], how["state"], how["save"]) == (100, None, teaching.checkpoint)
    assert teaching.spent == [("build", {"trained_tokens": 2 * sum(range(1, 401))})]
    assert (tmp_path / "model").is_dir()


def test_a_model_that_never_solves_half_is_refused(monkeypatch, tmp_path):
    teaching = Teaching(monkeypatch, tmp_path, [[0.0, 0.98]] * 2, [1200])
    with pytest.raises(WorkFailed, match=r"After 1200 steps the model of seed 3 solves 0\.49"):
        lookup_world.teach(teaching)
    assert not teaching.spent


def test_the_loss_is_summed_over_what_is_learnt(monkeypatch):
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr(lookup_world, "labelled_logits", lambda model, batch: (logits, torch.tensor([2, 1]), None))
    total, count = lookup_world._cross_entropy(None, {})
    assert count == 2 and total.item() == pytest.approx(-logits.log_softmax(-1)[[0, 1], [2, 1]].sum().item(), rel=1e-6)


def world(**changes):
    return LookupWorld(**{"language_model": "model", "start": "start", "seed": 7, "test": (10, 11, 12), **changes})


def test_what_is_measured_is_counted_by_model_and_kind(monkeypatch):
    kinds = {10: ["useful", "repeat"], 11: ["stray", "useful", "useful"], 12: []}
    played = []

    def play(model, seeds, draws):
        played.append((model, seeds, draws))
        return SimpleNamespace(episodes=[SimpleNamespace(seed=seed, score=seed / 20) for seed in seeds])

    counted = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0]]).bool()
    lowered = {None: torch.tensor([[1, 0, 0], [1, 0, 0], [0, 0, 0]]).bool(), "start": counted}

    class Reward:
        def __init__(self, model, recipe, *, reference=None):
            self.reference = reference

        def effects(self, rollouts):
            return SimpleNamespace(counted=counted, reduced=lowered[self.reference]), None

    monkeypatch.setattr(lookup_world, "_play", play)
    monkeypatch.setattr(lookup_world, "ToolReward", Reward)
    monkeypatch.setattr(lookup_world, "kinds_of_calls", lambda episode: kinds[episode.seed])
    monkeypatch.setattr(lookup_world, "call_counts", lambda rollouts: torch.tensor([2, 3, 0]))
    found = world().measure(None)
    assert played == [("model", (10, 11, 12), [7, 6])]
    assert found.right.tolist() == [0.5, 0.55, 0.6] and found.calls.tolist() == [2, 3, 0]
    assert found.useless.tolist() == [1, 1, 0]
    assert found.reduced == {
        ("policy", "useful"): (1, 2), ("policy", "repeat"): (0, 1), ("policy", "stray"): (1, 1),
        ("start", "useful"): (2, 2), ("start", "repeat"): (1, 1), ("start", "stray"): (1, 1),
    }  # fmt: skip
    assert world().names == ["lookup-10", "lookup-11", "lookup-12"]


def test_episodes_of_the_world_are_sampled_as_they_come(monkeypatch):
    asked = []
    monkeypatch.setattr("equipoise.language.episodes.play", lambda *given, **how: asked.append((given, how)))
    lookup_world._play("model", [4, 5], [7, 6])
    how = {"samples": 1, "max_turns": 11, "max_new_tokens": 11, "temperature": 1.0, "seed": [7, 6], "batch_size": 256}
    assert asked == [(("model", Lookup, [4, 5]), how)]


def test_no_episode_is_learnt_from_twice_and_none_that_is_tested():
    playing, recipe = SimpleNamespace(problems=list), SimpleNamespace(steps=5, prompts_per_step=3)
    first = word(7, 33) % 500_000
    assert world()._asked(playing, recipe) == list(range(first, first + 15))


def test_test_episodes_are_beyond_those_that_are_taught(monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setattr(
        lookup_world, "load", lambda path, **how: loaded.append((path, how)) or SimpleNamespace(model=[1])
    )
    opened = LookupWorld.open(5, tmp_path, test=3)
    assert opened.test == (1_000_000, 1_000_001, 1_000_002) and loaded == [
        (tmp_path / "model", {"chat_template": "none"})
    ]
    assert opened.start == [1] and opened.start is not opened.language_model.model


def stages_of(done):
    """The head learns in the third step."""
    return "head" if done == 3 else "policy"


def reinforced(monkeypatch, module, steps, evaluations, *, stored=None):
    """Looks and books of a training of these steps, each of ten tokens and the number of the step more."""
    asked = []

    def train(model, recipe, problems, reward, *, callbacks, save, save_every, state, **how):
        asked.append((save_every, state))
        for done in range(1 + (state or {"done": 0})["done"], steps + 1):
            told = SimpleNamespace(stage=stages_of(done))
            callbacks[-1](SimpleNamespace(done=done, step=told, metrics={"generated_tokens": 10.0 + done, "n": done}))
            if done % save_every == 0 or done == steps:
                save({"done": done})

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "prepare", lambda model, recipe: model)
    books, looks = Books(stored), []

    def look(now):
        now.notes["looks"] = now.notes.get("looks", 0) + 1
        looks.append((now.done, now.updates, now.tokens, now.last, [each["n"] for each in now.logged]))

    recipe = SimpleNamespace(steps=steps, updates=2)
    if module is lookup_world:
        monkeypatch.setattr(LookupWorld, "stages", lambda self, recipe: {"sample": "sample"})
        monkeypatch.setattr(LookupWorld, "_asked", lambda self, playing, recipe: [])
        world().reinforce(books, recipe, look, evaluations=evaluations)
    else:
        made = SimpleNamespace(train=[], language_model=None)
        tiny_world.TinyWorld(made, 0).reinforce(books, recipe, look, evaluations=evaluations)
    return looks, books, asked


@pytest.mark.parametrize("module", [lookup_world, tiny_world], ids=["lookup", "tiny"])
def test_looks_along_the_way(monkeypatch, module):
    looks, books, asked = reinforced(monkeypatch, module, 5, 2)
    third = [3] if module is lookup_world else []  # the tiny world shows what was logged of the policy alone
    assert looks == [
        (0, 0, 0, False, []),
        (2, 4, 23, False, [1, 2]),
        (4, 8, 50, False, [*third, 4]),
        (5, 10, 65, True, [5]),
    ]
    assert asked == [(2, None)]
    assert books.spent == [{"generated_tokens": 10 + done, "optimizer_steps": 2} for done in range(1, 6)]
    assert [(each["training"]["done"], each["tokens"], each["notes"]) for each in books.states] == [
        (2, 23, {"looks": 4}), (4, 50, {"looks": 4}), (5, 65, {"looks": 4}),
    ]  # fmt: skip  # the notes are the living ones
    stored = {"training": {"done": 4}, "tokens": 50, "notes": {"looks": 3}}
    looks, books, asked = reinforced(monkeypatch, module, 5, 2, stored=stored)
    assert looks == [(5, 10, 65, True, [5])] and asked == [(2, {"done": 4})]
    assert books.states[-1]["notes"] == {"looks": 4}
    assert [each[0] for each in reinforced(monkeypatch, module, 3, 9)[0]] == [0, 1, 2, 3]


def test_a_useless_call_may_come_at_any_place():
    """Of episodes with a link or more and a useless call: before the first, and behind the last."""
    first, last = set(), set()
    for seed in range(40):
        environment = Lookup()
        environment.reset(seed)
        needed = set(environment.chain)
        calls = [turn.partition("?")[2] for turn in demonstration(seed, random.Random(seed), useless=1).turns[:-1]]
        first.add(calls[0] in needed)
        last.add(calls[-1] in needed)
    assert first == last == {True, False}
