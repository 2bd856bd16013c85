"""Worlds of unlearning studies: frontier_world teaches who is told of whom, mcu_world scores what comes back."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from equipoise.unlearning import frontier_world, mcu_world


def scores(*values):
    return [torch.tensor(each, dtype=torch.float64) for each in values]


def test_what_is_recovered_is_the_best_whole_window():
    """Two by two: the fifth look has no partner, and windows do not overlap."""
    path = scores([0.0, 0.2], [0.2, 0.4], [0.5, 0.3], [0.1, 0.1], [9.0, 9.0])
    assert_close(mcu_world.recovered(path), torch.tensor([0.3, 0.2], dtype=torch.float64))
    assert_close(mcu_world.recovered(path[:3]), torch.tensor([0.1, 0.3], dtype=torch.float64))
    assert_close(mcu_world.recovered(path[:1]), path[0])
    assert_close(mcu_world.recovered(path, window=1), path[4])
    assert_close(mcu_world.recovered(path[:4], window=3), torch.tensor([0.7 / 3, 0.3], dtype=torch.float64))
    assert_close(mcu_world.recovered(scores([0.0, 1.0], [0.6, 0.6]), window=1), torch.tensor([0.6, 0.6]).double())


def test_what_moved_and_came_back_by_part():
    """Three components; two steps along the first, one along the last, of which a half and a quarter come back."""
    vectors, before = torch.eye(3, dtype=torch.float64), torch.zeros(2, 3)
    after = torch.tensor([[2.0, 0.0, 1.0], [-2.0, 0.0, 1.0]])
    relearned = torch.tensor([[1.0, 0.0, 0.75], [-1.0, 0.0, 0.75]])
    found = mcu_world.by_part(before, after, relearned, vectors, 1)
    assert found["dominant"] == pytest.approx({"change": 2.0, "recovery": 0.5})
    assert found["minor"] == pytest.approx({"change": 0.5, "recovery": 0.25})


def test_every_component_is_the_mean_and_all_that_varies_about_it():
    before = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([5.0, 0.0, 0.0, 0.0])
    found = mcu_world.every_component(before)
    mean = before.double().mean(0)
    assert found.shape == (4, 4)
    assert_close(found @ found.T, torch.eye(4, dtype=torch.float64))
    assert_close(found[0], mean / mean.norm())
    assert mcu_world.every_component(before[:2]).shape == (2, 4)  # the mean, and the one way in which two differ


class Preparation:
    seed = 3

    def __init__(self, folder, stored=None):
        self.folder, self.stored, self.spent, self.saved = folder, stored, [], []

    def resume(self):
        return self.stored

    def checkpoint(self, state):
        self.saved.append(state)

    def spend(self, **what):
        self.spent.append(what)


@pytest.mark.parametrize(
    ("stored", "taught"),
    [
        (None, [("model", "abcd", None), ("untold", "bcd", None)]),
        ({"which": 0, "training": "begun"}, [("model", "abcd", "begun"), ("untold", "bcd", None)]),
        ({"which": 1, "training": "begun"}, [("untold", "bcd", "begun")]),
    ],
)
def test_one_model_is_told_of_everybody_and_the_other_not_of_those_to_forget(monkeypatch, stored, taught):
    people = {"a": "forget", "b": "retain", "c": "holdout", "d": "zz"}
    teaching = [SimpleNamespace(group=name, prompt=f"who is {name}?", completion=name) for name in people]
    made = SimpleNamespace(teaching=teaching, people=[SimpleNamespace(name=n, split=s) for n, s in people.items()])
    done, asked = [], []
    monkeypatch.setattr(frontier_world.fiction, "world", lambda size, seed: asked.append((size, seed)) or made)
    model = SimpleNamespace(save=lambda folder: done[-1].insert(0, folder.name))
    monkeypatch.setattr(frontier_world, "replace", lambda model, **how: model)
    monkeypatch.setattr(frontier_world.tiny, "tiny", lambda texts, *, seed: asked.append((len(texts), seed)) or model)
    words = [SimpleNamespace(input_ids=(1, 2, 3))]
    monkeypatch.setattr(frontier_world, "encode", lambda model, records: words * len(records))

    def teach(model, records, *, seed, save, save_every, state, **how):
        assert seed == 3 and save_every == frontier_world.CHECKPOINT and how == frontier_world.fiction.TINY_TEACHING
        save("half")
        done.append(["".join(record.group for record in records), state])

    monkeypatch.setattr(frontier_world.tiny, "teach", teach)
    preparation = Preparation(Path("kept"), stored)
    frontier_world.teach(preparation)
    assert [tuple(each) for each in done] == taught
    assert asked == [("tiny", 3)] + [(4, 3)] * len(taught)
    first = 2 - len(taught)
    assert preparation.saved == [{"which": which, "training": "half"} for which in range(first, 2)]
    epochs = frontier_world.fiction.TINY_TEACHING["epochs"]
    assert preparation.spent == [{"phase": "build", "trained_tokens": epochs * 3 * n} for n in (4, 3)[first:]]
