"""The world of TokUR's study: what is asked, chosen and stored, and what an arm measures of it, by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.core.scores import auprc
from equipoise.uncertainty import tokur_world as world


def prepared(monkeypatch, tmp_path, members):
    """What a preparation asks for and stores, of six answers of which the third is empty and every other right."""
    asked, spent = [], []
    found = SimpleNamespace(
        lengths=torch.tensor([1, 2, 3, 4, 5]),
        eu=torch.tensor([[0.25, 0.5], [0.0, 0.25]]),
        tu=torch.tensor([[1.0, 2.0], [0.5, 0.5]]),
    )
    scored = {"tu_sum": torch.tensor([0.5, 0.25, 0.75, 1.0, 0.0])}
    unsure = SimpleNamespace(at=lambda sigma: ("unsure", sigma))

    def problems(count, **how):
        asked.append(("problems", count, how))
        return [SimpleNamespace(prompt=f"{how['part']} {place}") for place in range(count)]

    def generate(model, prompts, **how):
        asked.append(("generate", model, len(prompts), how))
        return [" " if prompt.endswith(" 2") else f"said {prompt}" for prompt in prompts]

    def choose_sigma(given, rows, **how):
        asked.append(("sigma", given is unsure, [row.text for row in rows], how))
        return SimpleNamespace(sigma=0.125)

    def score_tokens(given, rows, **how):
        asked.append(("score", given, [row.text for row in rows], how))
        return found

    def encoded(model, prompt, text):
        return SimpleNamespace(text=text, prompt=(0,) * len(prompt), answer=(0,) * len(text))

    levels = SimpleNamespace(
        kind="kind", levels=(1, 2), max_new_tokens=9, solved=lambda problem, text: int(problem.prompt[-1]) % 2 == 1
    )
    teach = {"levels": SimpleNamespace(language_model="taught")}
    monkeypatch.setattr(world.warm_start, "teach", lambda name, preparation: teach[name])
    for name, each in (
        ("problems", problems), ("generate", generate), ("choose_sigma", choose_sigma), ("encoded", encoded),
        ("score_tokens", score_tokens), ("confidences", lambda given: scored), ("_LEVELS", levels),
        ("perturb", lambda model, *, rank: asked.append(("perturb", model, rank)) or unsure),
    ):  # fmt: skip
        monkeypatch.setattr(world, name, each)
    preparation = SimpleNamespace(seed=7, folder=tmp_path, spend=lambda **amounts: spent.append(amounts))
    world.prepare(preparation, answers=6, members=members, rank=3)
    return asked, spent, world.AnsweredWorld.open(tmp_path)


@pytest.mark.parametrize("members", [1, 2, 5])
def test_what_a_preparation_asks_for_and_stores(monkeypatch, tmp_path, members):
    asked, spent, stored = prepared(monkeypatch, tmp_path, members)
    texts = [f"said test {place}" for place in (0, 1, 3, 4, 5)]
    how = {"seed": 7, "kind": "kind", "levels": (1, 2)}
    others = [f"said train {place}" for place in range(40) if place != 2]
    assert asked == [
        ("perturb", "taught", 3),
        ("problems", 40, {**how, "part": "train"}),
        ("generate", "taught", 40, {"max_new_tokens": 9, "batch_size": 256}),
        ("sigma", True, others[:20], {"members": max(members, 2), "seed": 7, "batch_size": 20}),
        ("problems", 6, {**how, "part": "test"}),
        ("generate", "taught", 6, {"max_new_tokens": 9, "batch_size": 256}),
        ("score", ("unsure", 0.125), texts, {"members": members, "seed": 7, "batch_size": 64}),
    ]
    assert stored.right.tolist() == [0, 1, 1, 0, 1] and stored.lengths.tolist() == [1, 2, 3, 4, 5]
    assert stored.accuracy == 0.5 and (stored.sigma, stored.share, stored.members) == (0.125, 0.25, members)
    assert stored.scores["tu_sum"].tolist() == [0.5, 0.25, 0.75, 1.0, 0.0]
    assert stored.tokens == 5 * (len("test 0") + len("said test 0"))
    assert spent == [{"phase": "build", "generated_tokens": 5 * len("said test 0") + 1}]
    assert json.loads((tmp_path / world.STORED).read_text())["right"] == [0.0, 1.0, 1.0, 0.0, 1.0]


def measured(score):
    found, spent = {}, []
    scores = {
        name: np.array([0.9, 0.8, 0.7, 0.2, 0.1]) for name in ("tu_sum", "au_mean", "eu_max", "log_prob_sum", "length")
    }
    right, lengths = np.array([1.0, 0, 1, 0, 1]), np.array([1.0, 1, 2, 2, 2])
    given = world.AnsweredWorld(right, lengths, scores, 0.375, 0.1, 0.0625, 4, 11)
    run = SimpleNamespace(
        settings={"score": score},
        seed=6,
        measure=lambda name, value: found.update({name: value}),
        spend=lambda **amounts: spent.append(amounts),
    )
    world.measure(run, given)
    return found, spent, right


@pytest.mark.parametrize(
    ("score", "readings"),
    [("tu_sum", 4), ("au_mean", 4), ("eu_max", 4), ("log_prob_sum", 1), ("length", 0), ("random", 0)],
)
def test_what_an_arm_measures_and_reads(score, readings):
    found, spent, right = measured(score)
    assert spent == [{"phase": "query", "answers": 5, "prompt_tokens": readings * 11}]
    if score == "random":
        assert (found.pop("accuracy"), found.pop("epistemic_share")) == (0.375, 0.0625)
        drawn = np.random.default_rng(np.random.SeedSequence([6, 1])).random(5)
        order = np.argsort(-drawn)
        assert found["surest_half"] == pytest.approx(right[order[:3]].mean())
        assert found["auprc"] == pytest.approx(float(auprc(drawn, right)))
        return
    # Of six pairs of a right and a wrong answer three stand rightly; of like length one of one, and one of two.
    assert found["auroc"] == pytest.approx(3 / 6) and found["auroc_within"] == pytest.approx(2 / 3)
    assert found["surest_half"] == pytest.approx(2 / 3)  # of five answers the three surest
    assert found.keys() == {"auroc", "auroc_within", "auprc", "surest_half"}
    assert found["auprc"] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
