"""The world of sampling fidelity's study: its targets, streams, texts and how a model is taught them."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.training.loop import TrainerSettings
from equipoise.uncertainty import sampling_fidelity as fidelity
from equipoise.uncertainty import sampling_world as world


def test_targets_are_the_paper_s():
    assert world.TASKS["extreme"].target == pytest.approx((0.1, 0.7, 0.1, 0.1))
    assert world.TASKS["extreme"].symbols == ("1", "2", "3", "4")
    assert world.TASKS["flat"].target == pytest.approx((0.1, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1))
    assert {task.separator for task in world.TASKS.values()} == {""}


def test_the_model_has_two_layers_of_width_64():
    config = world.untaught(0).model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 64, 4)
    assert config.max_position_embeddings == 9 + 64 + 2


def test_probabilities_of_streams_slot_by_slot():
    q = [0.5, 0.3, 0.2]
    copied = world.stream("copying", q, 30, np.random.default_rng(1))
    assert copied.probabilities[0].tolist() == q and copied.places.tolist() == [*range(30)] and copied.unread == 0
    for before, p in zip(copied.draws, copied.probabilities[1:], strict=False):
        assert p == pytest.approx(0.8 * np.eye(3)[before] + 0.2 * np.array(q))
    kept, counts = world.stream("quota", q, 30, np.random.default_rng(1)), np.zeros(3)
    for drawn, p in zip(kept.draws, kept.probabilities, strict=True):
        assert p.tolist() == world.quota_probabilities(counts, np.array(q)).tolist()
        counts[drawn] += 1
    free = world.stream("independent", q, 30, np.random.default_rng(1))
    assert (free.probabilities == q).all() and len(set(free.draws.tolist())) == 3
    again = np.random.default_rng(1)
    assert free.draws.tolist() == [int(again.choice(3, p=q)) for _ in range(30)]


class Least:
    """A generator whose uniform draws are all 0, the least that comes; whole numbers are as ever."""

    def __init__(self):
        rng = np.random.default_rng(5)
        self.integers, self.choice = rng.integers, rng.choice

    def random(self, shape):
        return np.zeros(shape)


def test_what_has_no_weight_is_never_written():
    for text in world.corpus_texts("independent", 30, Least()):
        first = next(place for place, weight in enumerate(text[:9]) if weight != "a")
        assert text[9:] == world.SYMBOLS[first] * 64


def test_texts_are_drawn_by_seed_step_and_corpus(monkeypatch):
    called = {}

    def fit(model, loss, draw, settings, **how):
        called.update(draw=draw, settings=settings, **how)

    monkeypatch.setattr(world, "fit", fit)
    language_model = world.untaught(0)
    for kind, number in (("independent", 0), ("quota", 1)):
        world.teach(language_model, kind, seed=6, steps=9, save_every=4)
        assert called["settings"] == TrainerSettings(
            steps=9, learning_rate=1e-3, batch_size=32, schedule="cosine", warmup_ratio=0.05, seed=6
        )
        texts = world.corpus_texts(kind, 32, np.random.default_rng(np.random.SeedSequence([6, 3, number])))
        assert called["draw"](3) == language_model.tokenizer(texts)["input_ids"] and called["save_every"] == 4
        assert called["title"] == f"Teaching {kind}" and called["collate"] is torch.tensor


def test_the_loss_is_of_the_symbols_alone():
    language_model = world.untaught(1)
    ids = torch.tensor(language_model.tokenizer(world.corpus_texts("quota", 2, np.random.default_rng(0)))["input_ids"])
    with torch.no_grad():
        found, count = world._loss(language_model.model, ids)
        logs = language_model.model(input_ids=ids).logits.double().log_softmax(-1)
    due = -sum(logs[row, place - 1, ids[row, place]] for row in range(2) for place in range(10, 74))
    assert ids.shape[1] == 74 and count == 128 and found.item() == pytest.approx(due.item(), rel=1e-5)


def asked_of(monkeypatch, by, **settings):
    """What one arm asks of `sample`, what it records, and what it spends."""
    calls, spent, recorded = [], [], {}

    def sample(language_model, request, task, **how):
        calls.append((language_model, request, task, how))
        return [world.stream("uniform", task.target, 5, np.random.default_rng(0)) for _ in range(how["sequences"])]

    monkeypatch.setattr(world, "sample", sample)
    monkeypatch.setattr(world, "load", lambda name, **how: (name, how))
    monkeypatch.setattr(world, "record", lambda run, found: recorded.update(found))
    monkeypatch.setattr(world, "lens", lambda *_: [0.5, 0.25])
    measured = []
    run = SimpleNamespace(
        settings={"by": by, **settings},
        options={"sequences": 3, "model_sequences": 2, "model": "big"},
        seed=4,
        prepared=world_folder,
        spend=lambda **amounts: spent.append(amounts),
        measure=lambda *args, **how: measured.append((*args, how)),
    )
    world.measure(run)
    return calls, spent, recorded, measured


class Folder:
    def __truediv__(self, name):
        return f"prepared/{name}"


world_folder = Folder()


def test_what_is_asked_of_a_taught_and_of_a_language_model(monkeypatch):
    calls, spent, recorded, measured = asked_of(monkeypatch, "taught", corpus="quota")
    assert [call[0] for call in calls] == [("prepared/quota", {"chat_template": "none"})] * 2
    assert [call[1] for call in calls] == ["bhbbaaaaa", "bbbcbbbbb"]
    assert [call[3] for call in calls] == [
        {"values": 64, "sequences": 3, "seed": [4, number], "batch_size": 64} for number in range(2)
    ]
    assert spent == [{"generated_tokens": 15}] * 2 and {name: len(each) for name, each in recorded.items()} == {
        "extreme": 3,
        "flat": 3,
    }
    assert measured == [
        ("lens", distance, {"at": {"layer": layer}, "where": {"task": name}})
        for name in ("extreme", "flat")
        for layer, distance in enumerate((0.5, 0.25))
    ]
    calls, spent, _, measured = asked_of(monkeypatch, "language")
    assert [call[3] for call in calls] == [
        {"values": 64, "sequences": 2, "seed": [4, number], "slots": "set"} for number in range(2)
    ]
    spoken = calls[0][2]
    assert spoken.separator == ", " and calls[0][1] == spoken.requests(64)[4 % 3] and not measured
    calls, _, recorded, _ = asked_of(monkeypatch, "stream", stream="uniform")
    drawn = np.random.default_rng(np.random.SeedSequence([4, 1]))
    due = [world.stream("uniform", world.TASKS["flat"].target, 64, drawn) for _ in range(3)]
    assert not calls and [each.draws.tolist() for each in recorded["flat"]] == [each.draws.tolist() for each in due]


def test_what_is_recorded_of_two_sequences_of_each_target():
    rng, items, measured = np.random.default_rng(2), [], {}
    found = {
        name: [world.stream(kind, task.target, 20, rng) for kind in ("copying", "uniform")]
        for name, task in world.TASKS.items()
    }
    run = SimpleNamespace(
        items=lambda name, ids, scores, where: items.append((name, where, ids, scores)),
        measure=lambda name, value, where: measured.update({where["task"]: value}),
    )
    world.record(run, found)
    every = ["extreme 0", "extreme 1", "flat 0", "flat 1"]
    told = {(name, str(where)): (ids, scores) for name, where, ids, scores in items}
    assert len(items) == len(told) == 8 * 3 + 3
    for name in world.ITEMS:
        ids, scores = told[name, "{'temperature': 'own'}"]
        due = [
            getattr(fidelity.measures(each.probabilities, world.TASKS[task].target, each.draws), name)
            for task, sequences in found.items()
            for each in sequences
        ]
        assert ids == every and scores == pytest.approx(due)
        for place, task in enumerate(found):
            ids, scores = told[name, str({"temperature": "own", "task": task})]
            assert ids == every[2 * place : 2 * place + 2] and scores == pytest.approx(due[2 * place : 2 * place + 2])
    ids, scores = told["a_token", "{'temperature': 'best'}"]
    best = fidelity.best_temperature(
        np.concatenate([each.probabilities for each in found["extreme"]]), world.TASKS["extreme"].target
    )
    warm = [fidelity.measures(fidelity.tempered(each.probabilities, best), world.TASKS["extreme"].target).a_token
            for each in found["extreme"]]  # fmt: skip
    assert ids == every and scores[:2] == pytest.approx(warm) and not math.isnan(best)
    parts = [fidelity.surplus(each.probabilities, world.TASKS["flat"].target, each.draws) for each in found["flat"]]
    assert measured["flat"] == fidelity.history_slope(parts) and set(measured) == {"extreme", "flat"}
