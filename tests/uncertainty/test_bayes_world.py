"""The world of Bayesian distillation's study: streams, settings and teachers of a seed."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bayes_world import CLASSES, WORDS, bare, prompts
from equipoise.language import adapters
from equipoise.training.loop import TrainerSettings
from equipoise.uncertainty import bayes_world as world_file
from equipoise.uncertainty import blob, laplace_lora, teachers, tfb
from equipoise.uncertainty.bayes_distill import averaged
from equipoise.uncertainty.class_logits import class_logits, read_prompts
from equipoise.uncertainty.ensemble import Ensemble
from equipoise.uncertainty.mc_dropout import McDropout


@pytest.fixture(scope="module")
def world():
    lm = bare()
    texts, labels = prompts(40)
    read = read_prompts(lm, texts, CLASSES)
    inputs = world_file.UpperInputs(world_file.lower_states(lm, read, 1))
    given = enumerate(zip(texts, labels, strict=True))
    questions = [world_file.Question(str(place), text, label) for place, (text, label) in given]
    upper = world_file.upper_model(lm, 1, read.class_ids)
    return world_file.World(upper, {"train": questions}, {"train": inputs}, 3, 7, 2e-4)


def seed(stream):
    return int(np.random.SeedSequence([3, 52, stream]).generate_state(1)[0])


def test_an_adapter_has_rank_8_and_a_scale_of_2(world):
    adapted = world.fresh(2)
    maps = adapters.adapted_maps(adapted)
    assert sorted(name.rpartition(".")[2] for name in maps) == ["lm_head", "q_proj", "v_proj"]
    assert {len(adapters.factors(own)[0]) for own in maps.values()} == {8}
    assert {own.scaling["default"] for own in maps.values()} == {2.0}
    first = {name: adapters.factors(own)[0].detach().clone() for name, own in maps.items()}
    adapters.detach(adapted)
    again = adapters.attach(world.language_model, 8, 16.0, ["q_proj", "v_proj", "lm_head"], seed=seed(2))
    for name, own in adapters.adapted_maps(again).items():
        assert adapters.factors(own)[0].equal(first[name])
    adapters.detach(again)


def test_trainings_are_alike_but_for_their_streams(world):
    assert world.settings(5) == TrainerSettings(
        steps=7, learning_rate=2e-4, batch_size=16, warmup_ratio=0.06, epsilon=1e-6, seed=seed(5)
    )
    assert (world_file.STUDENT, world_file.MEMBERS, world_file.BLOB) == (1, 2, 5)
    assert world_file.STRICT == (0.0001, 0.02) and world_file.SMOOTHING == 0.1
    assert world.labels("train").tolist() == prompts(40)[1]
    assert world_file.prompt(world.sides["train"][0]) == f"{world.sides['train'][0].text} Type:"


def test_teachers_of_what_was_prepared(world, monkeypatch):
    monkeypatch.setattr(world_file, "CLASSES", CLASSES)
    adapted = world.fresh(0)
    own = {
        name: tuple(each.detach().clone() for each in adapters.factors(one))
        for name, one in adapters.adapted_maps(adapted).items()
    }
    adapters.detach(adapted)
    generator = torch.Generator().manual_seed(0)

    def drawn():
        return {name: (a, 0.1 * torch.randn(b.shape, generator=generator)) for name, (a, b) in own.items()}

    shared = {"mle": drawn(), "blob": drawn(), "members": [drawn(), drawn()], "sigma": 0.25, "strict": 0.125}
    shared["omega"] = {name: torch.full_like(a, 0.5) for name, (a, _) in own.items()}
    found = {}
    for name in ("tfb", "tfb-strict", "blob", "blob-mean", "ensemble", "mc-dropout", "laplace"):
        teacher, over = world.teacher(name, shared)
        base = shared["blob" if "blob" in name else "mle"]
        for place, pair in teachers.own_factors(over).items():
            assert all(now.equal(then) for now, then in zip(pair, base[place], strict=True))
        if name == "tfb":
            p = world.predicted(teacher, over, "train")
            due = averaged(teacher.on(over, world.inputs["train"])([0, 35]).detach().double())
            assert_close(p[[0, 35]], due, atol=1e-6, rtol=1e-5)
        adapters.detach(over)
        found[name] = teacher
    assert found["tfb"] == tfb.Tfb(0.25, 10, seed(0)) and found["tfb-strict"] == tfb.Tfb(0.125, 10, seed(0))
    for name, draws, spread in (("blob", 10, 0.5), ("blob-mean", 1, 0.0)):
        made = found[name]
        assert isinstance(made, blob.Blob) and (made.draws, made.seed) == (draws, seed(5))
        assert all((omega == spread).all() for omega in made.omega.values())
    assert isinstance(found["ensemble"], Ensemble)
    members = zip(found["ensemble"].members, [shared["mle"], *shared["members"]], strict=True)
    assert all(one is other for one, other in members)
    assert found["mc-dropout"] == McDropout(0.1, 10, seed(0))
    assert isinstance(found["laplace"], laplace_lora.LastLayerLaplace) and found["laplace"].seed == seed(0)


def test_states_of_more_than_one_batch_are_each_prompt_s_own():
    lm = bare()
    texts = [" ".join(WORDS[: 1 + place % 5]) for place in range(35)]
    read = read_prompts(lm, texts, CLASSES)
    found = world_file.lower_states(lm, read, 1)
    alone = world_file.lower_states(lm, read_prompts(lm, texts[33:34], CLASSES), 1)
    assert len(found) == 35 and [len(each) for each in found] == [len(row) for row in read.rows]
    assert_close(found[33], alone[0], atol=1e-6, rtol=1e-5)
    whole = class_logits(lm, read)
    upper = world_file.upper_model(lm, 1, read.class_ids)
    assert_close(class_logits(upper, world_file.UpperInputs(found)), whole, atol=1e-5, rtol=1e-5)
    config = upper.model.config
    assert config.num_hidden_layers == 1 and not config.tie_word_embeddings
    assert not any(each.requires_grad for each in upper.model.parameters()) and not upper.model.training
    assert upper.model.get_output_embeddings().bias is None
    assert [block.self_attn.layer_idx for block in upper.model.model.layers] == [0]
