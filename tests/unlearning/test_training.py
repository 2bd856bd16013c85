"""What a recipe asks of the training loop: every setting, the rule, the batches, the losses, a frozen model."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.data.records import Record
from equipoise.language.encode import encode
from equipoise.language.score import log_likelihoods
from equipoise.language.tiny import tiny
from equipoise.unlearning import gradient_sum, objectives, pcgrad, sago, training
from equipoise.unlearning.recipe import Recipe
from equipoise.unlearning.training import losses, prepare, train

RECORDS = [Record(str(n), " ".join(["a", "few", "more", "words", "of", "it"][: n + 1]), "q?") for n in range(5)]


@pytest.fixture
def model():
    return tiny(["a few more words of it q?"], seed=0, width=16, layers=3, heads=2, vocabulary=300)


@pytest.fixture
def fitted(monkeypatch):
    """What the loop is given; it does nothing."""
    seen = {}

    def fit(model, method, order, settings, **how):
        seen.update(model=model, method=method, order=order, settings=settings, **how)
        return "fitted"

    monkeypatch.setattr(training, "fit", fit)
    return seen


def test_the_loop_gets_the_recipe(monkeypatch, model, fitted):
    forget, retain = encode(model, RECORDS), encode(model, RECORDS[:3])
    built = []
    monkeypatch.setattr(training, "pairs", lambda *given: built.append(given) or "pairs")
    recipe = Recipe(objective="ga", steps=7, batch_size=4, micro_batch_size=2, seed=9, forget_weight=0.5, combine="sum")
    prepare(model, recipe)
    assert train(model, recipe, forget, retain) == "fitted"
    assert built == [(5, 3, 4, 9)]
    method, settings = fitted["method"], fitted["settings"]
    assert fitted["model"] is model.model and fitted["order"] == "pairs" and fitted["title"] == "Unlearning"
    assert (settings.steps, settings.learning_rate, settings.batch_size) == (7, 1e-3, 4)
    assert (settings.micro_batch_size, settings.seed) == (2, 9)
    assert (method.forget_weight, method.retain_weight) == (0.5, 1.0)
    assert method.combine is gradient_sum.combine and method.conflicts_every == 1 and not method.groups
    nothing = {"accelerator": None, "callbacks": (), "log": None, "save": None, "save_every": None, "state": None}
    assert {name: fitted[name] for name in nothing} == nothing


def test_what_is_given_beside_the_recipe_reaches_the_loop(model, fitted):
    forget = encode(model, RECORDS)
    others = {name: object() for name in ("accelerator", "callbacks", "log", "save", "save_every", "state")}
    recipe = Recipe(objective="simnpo", learning_rate=0.25, retain_weight=2.0)
    train(model, recipe, forget, forget, combine=pcgrad.combine, conflicts_every=5, layers=True, **others)
    assert {name: fitted[name] for name in others} == others
    method = fitted["method"]
    assert (method.combine, method.conflicts_every, method.retain_weight) == (pcgrad.combine, 5, 2.0) and method.groups
    assert fitted["settings"].learning_rate == 0.25
    train(model, Recipe(objective="npo"), forget, forget)
    assert fitted["method"].combine is sago.combine and fitted["method"].retain_weight == 0.1


@pytest.mark.parametrize("objective", ["npo", "ga"])
def test_a_batch_has_the_forget_and_the_retain_records_of_its_pairs(model, fitted, objective):
    forget, retain = encode(model, RECORDS), encode(model, RECORDS[::-1])
    train(model, Recipe(objective=objective), forget, retain)
    first, second = fitted["collate"]([(3, 0), (1, 4)])
    assert [
        row[mask.bool()].tolist() for row, mask in zip(first["input_ids"], first["attention_mask"], strict=True)
    ] == [
        list(forget[3].input_ids),
        list(forget[1].input_ids),
    ]
    assert second["attention_mask"].sum(1).tolist() == [len(retain[0].input_ids), len(retain[4].input_ids)]
    assert "reference" not in second and ("reference" in first) == (objective == "npo")
    if objective == "npo":
        sums, _ = log_likelihoods(model, forget)
        assert first["reference"].dtype == torch.float32
        torch.testing.assert_close(first["reference"], sums[[3, 1]].float())


def test_the_losses_of_a_recipe(monkeypatch, model):
    made = []

    def note(name):
        return lambda *given: made.append((name, *given)) or name

    for name in ("gd_loss", "kl_loss", "npo_loss", "simnpo_loss", "rmu_loss", "rmu_retain_loss", "ga_loss"):
        monkeypatch.setattr(objectives, name, note(name))
    assert losses(model, Recipe(objective="npo", beta=0.5)) == ("npo_loss", "gd_loss")
    assert made == [("npo_loss", 0.5), ("gd_loss",)]
    assert losses(model, Recipe(objective="simnpo", gamma=0.25)) == ("simnpo_loss", "gd_loss")
    assert made[2:] == [("simnpo_loss", 2.5, 0.25), ("gd_loss",)]
    assert losses(model, Recipe(objective="ga", retain_objective="kl")) == ("ga_loss", "kl_loss")
    assert isinstance(made[-1][1], objectives.ReferenceModel) and made[-1][1]._model is model.model
    frozen = torch.nn.Linear(1, 1)
    assert (
        losses(model, Recipe(objective="ga", retain_objective="kl"), frozen)[1] == "kl_loss" and made[-1][1] is frozen
    )
    assert losses(model, Recipe(objective="rmu", seed=4, retain_objective="kl")) == ("rmu_loss", "rmu_retain_loss")
    (_, block, steering, seen), (_, same, reference) = made[-2:]
    assert seen is None
    assert block == same == 1 and isinstance(reference, objectives.ReferenceModel)
    expected = objectives.steering_vector(16, 2.0, torch.Generator().manual_seed(4))
    torch.testing.assert_close(steering, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("layers", "block"),
    [(1, 1), (2, 1), (6, 1), (7, 2), (12, 3), (24, 5), (30, 7), (32, 7), (36, 8), (48, 10), (80, 18)],
)
def test_the_block_of_rmu_lies_at_seven_of_thirty_two(monkeypatch, layers, block):
    monkeypatch.setattr(objectives, "blocks", lambda model: [None] * layers)
    assert objectives.rmu_block(None) == block


@pytest.mark.parametrize(("block", "trained"), [(0, [0]), (1, [0, 1]), (2, [0, 1, 2]), (5, [3, 4, 5])])
def test_rmu_trains_three_blocks_at_most(monkeypatch, block, trained):
    def module_at(model, place):
        return SimpleNamespace(get_parameter=lambda name: f"{place}.{name}")

    monkeypatch.setattr(objectives, "module_at", module_at)
    assert objectives.rmu_parameters(None, block) == [f"block.{each}.mlp.down.weight" for each in trained]


def named(model):
    return {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}


def test_the_last_blocks_are_trained(model):
    every = named(model)
    for count in (1, 2, 3):
        assert prepare(model, Recipe(train_blocks=count)) is model
        assert named(model) == {name for name in every if any(f".layers.{n}." in name for n in range(3 - count, 3))}
    with pytest.raises(BadInput, match=r"^train_blocks is 4, but the model has 3 blocks\.$"):
        prepare(model, Recipe(train_blocks=4))
    prepare(model, Recipe())
    assert named(model) == every


@pytest.mark.parametrize(
    ("words", "why"), [({"train_blocks": 1}, "leave --train-blocks out"), ({"objective": "rmu"}, "rmu has its own")]
)
def test_an_adapter_has_parameters_of_its_own(monkeypatch, model, words, why):
    with pytest.raises(BadInput, match=rf"^LoRA has parameters of its own: {why}\.$"):
        prepare(model, Recipe(parameters="lora", **words))
    monkeypatch.setattr(training.adapters, "attach", lambda *given, **how: (*given, how))
    attached = prepare(model, Recipe(parameters="lora", lora_rank=3, seed=8))
    assert attached == (model, 3, 6.0, {"seed": 8})


def test_what_cannot_be_sharded_is_refused_and_the_rest_is_split(monkeypatch, model, fitted):
    sharded = []
    monkeypatch.setattr(training.sharding, "check_processes", lambda: None)
    monkeypatch.setattr(training.sharding, "outline", lambda its: ("outline", its))
    monkeypatch.setattr(training.sharding, "shard", lambda its, parts: sharded.append((its, list(parts))))
    monkeypatch.setattr(training.sharding, "gathered", lambda its, empty: ("gathered", its, empty))
    with pytest.raises(BadInput, match=r"^rmu trains a few matrices of its own: leave --shard out\.$"):
        train(model, Recipe(objective="rmu"), [], [], shard=True)
    with pytest.raises(BadInput, match=r"^undial needs the whole starting model in each process: leave --shard out\.$"):
        train(model, Recipe(objective="undial"), [], [], shard=True)
    examples, whole = encode(model, RECORDS), model.model
    for retain_objective, count in (("gd", 1), ("kl", 2)):
        its = replace(model)
        recipe = Recipe(objective="ga", retain_objective=retain_objective)
        assert train(its, recipe, examples, examples, shard=True) == "fitted"
        assert its.model == ("gathered", whole, ("outline", whole)) and fitted["model"] is whole
        assert len(sharded) == count and sharded[-1][0] is whole
        assert all(len(parts) == 3 for _, parts in sharded)
        frozen = sharded[0][0]
        if count == 2:
            assert frozen is not whole and not frozen.training
            assert not any(parameter.requires_grad for parameter in frozen.parameters())
        del sharded[:]
    assert all(parameter.requires_grad for parameter in whole.parameters())


def test_cir_looks_at_the_forget_set_in_batches_and_anew_after_each_pass(monkeypatch, model, fitted):
    forget = encode(model, RECORDS)
    words = {"objective": "ga", "combine": "sum", "parameters": "mlp", "gradient_filter": "cir", "batch_size": 2}
    for more, sizes, every in (
        ({}, [2, 2, 1], 3),
        ({"micro_batch_size": 1}, [1] * 5, 3),
        ({"batch_size": 5, "cir_every": 7}, [5], 7),
        ({"cir_activations": 3, "cir_gradients": 4}, [2, 2, 1], 3),
    ):
        recipe = Recipe(**words | more)
        train(prepare(model, recipe), recipe, forget, forget)
        found = fitted["carried"]
        assert [len(batch["input_ids"]) for batch in found.batches()] == sizes and found.every == every
        assert (found.activations, found.gradients) == (recipe.cir_activations, recipe.cir_gradients)
    rows = [row.tolist() for batch in found.batches() for row in batch["input_ids"]]
    lengths = [len(forget[index].input_ids) for index in training.without_replacement(5, 5, 0)(0)]
    assert [len([each for each in row if each != model.pad_id]) for row in rows] == lengths
    # So many records as hold that many tokens: one less is not enough.
    for tokens, count in ((sum(lengths[:3]), 3), (sum(lengths[:3]) + 1, 4), (1, 1)):
        monkeypatch.setattr(training, "ROWS", tokens)
        train(model, recipe, forget, forget)
        assert sum(len(batch["input_ids"]) for batch in fitted["carried"].batches()) == count


def test_steps_of_one_length_are_taken_as_they_are(model, fitted):
    forget = encode(model, RECORDS)
    recipe = Recipe(
        objective="ga", update="fixed-length", update_length=0.5, retain_learning_rate=0.25, steps=3, batch_size=4
    )
    train(prepare(model, recipe), recipe, forget, forget)
    method, settings = fitted["method"], fitted["settings"]
    assert (method.length, method.retain_learning_rate) == (0.5, 0.25) and fitted["carried"] is None
    assert (settings.optimizer, settings.learning_rate, settings.schedule) == ("sgd", 1.0, "constant")
    assert (settings.warmup_ratio, settings.max_grad_norm, settings.steps, settings.batch_size) == (0.0, None, 3, 4)


def test_weights_of_one_are_the_base_method_and_a_penalty_counts_once(monkeypatch, model, fitted):
    forget = encode(model, RECORDS)
    others = ([1.0, 1.0, 0.5, 1.5, 1.0], [1.0] * 4 + [2.0], [1.0] * 4 + [0.5])
    for given, kept in (([1.0] * 5, False), *((each, True) for each in others)):
        train(model, Recipe(objective="ga"), forget, forget, weights=torch.tensor(given, dtype=torch.float64))
        assert ("weight" in fitted["collate"]([(0, 0)])[0]) == kept
    monkeypatch.setattr(training.starts, "penalty", lambda *given: "penalty")
    recipe = Recipe(objective="ga", orthogonality=0.5, retain_weight=0.25)
    assert training._kept_out(model, recipe, "begun") == {"penalty": "penalty", "penalty_weight": 2.0}
    assert training._kept_out(model, recipe, None) == training._kept_out(model, Recipe(objective="ga"), "begun") == {}
