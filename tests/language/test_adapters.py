import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from chat_models import untaught
from equipoise.core.errors import BadInput
from equipoise.language.adapters import adapted_maps, attach, attach_saved, begin_at, detach, export, factors, merge
from equipoise.language.model import Origin, load

TARGETS = ["all-linear", ["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head", "q_proj"]]
IDS = torch.tensor([[1, 40, 50, 60, 70]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def trained(language_model, targets):
    """An adapter whose B is no longer zero, so that it changes the logits."""
    adapted = attach(language_model, rank=4, alpha=8.0, targets=targets, seed=1)
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if parameter.requires_grad:
                assert "lora" in name
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    return adapted


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_merged_saved_reloaded_gives_the_same_logits(fresh, targets, tmp_path):
    before = logits(fresh.model)
    embedding = fresh.model.get_input_embeddings().weight.clone()
    adapted = trained(fresh, targets)
    after = logits(adapted.model)
    assert (after - before).abs().max() > 0.1
    merged = merge(adapted)
    assert_close(logits(merged.model), after, atol=2e-4, rtol=1e-4)
    if "embed_tokens" not in targets:
        assert torch.equal(merged.model.get_input_embeddings().weight, embedding)
    merged.save(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(reloaded), logits(merged.model))
    assert reloaded.config.tie_word_embeddings == (targets == "all-linear")
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) == (targets != "all-linear")


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_detached_model_is_as_before_bit_by_bit(fresh, targets):
    fresh.model.model.layers[0].requires_grad_(False)
    trainable = {name: parameter.requires_grad for name, parameter in fresh.model.named_parameters()}
    weights = {name: parameter.clone() for name, parameter in fresh.model.named_parameters()}
    restored = detach(trained(fresh, targets))
    assert restored.model is fresh.model
    found = dict(restored.model.named_parameters())
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert {name: parameter.requires_grad for name, parameter in found.items()} == trainable
    assert restored.model.get_output_embeddings().weight is restored.model.get_input_embeddings().weight


def test_peft_unmerge_restores_the_weights(fresh):
    before = logits(fresh.model)
    adapted = trained(fresh, "all-linear")
    adapted.model.merge_adapter()
    adapted.model.unmerge_adapter()
    assert_close(logits(detach(adapted).model), before, atol=1e-4, rtol=1e-4)


def test_merged_model_can_be_trained(fresh):
    merged = merge(trained(fresh, ["lm_head"]))
    assert all(parameter.requires_grad for parameter in merged.model.parameters())
    merged.model(IDS, labels=IDS).loss.backward()
    head, embedding = merged.model.get_output_embeddings().weight, merged.model.get_input_embeddings().weight
    assert head.grad is not None and not torch.equal(head.grad, embedding.grad)


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_exported_adapter_is_loaded_with_its_base(fresh, targets, tmp_path):
    fresh.save(tmp_path / "base")
    base = load(tmp_path / "base", device="cpu")
    adapted = trained(base, targets)
    after = logits(adapted.model)
    export(adapted, tmp_path / "adapter")
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert named == sorted(named)  # the same bytes in every process
    assert sum(file.stat().st_size for file in (tmp_path / "adapter").glob("*.safetensors")) < 40_000
    assert not list((tmp_path / "adapter").glob("*.bin"))
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str((tmp_path / "base").resolve())
    loaded = load(tmp_path / "adapter", device="cpu")
    assert_close(logits(loaded.model), after, atol=2e-4, rtol=1e-4)
    assert "adapter merged into it" in loaded.source


def test_adapter_begins_without_effect_and_follows_its_seed(fresh):
    before, state = logits(fresh.model), torch.get_rng_state()
    first = attach(fresh, rank=2, seed=7)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn from the global state
    assert torch.equal(logits(first.model), before)
    matrices = {n: p.clone() for n, p in first.model.named_parameters() if p.requires_grad}
    again = attach(detach(first), rank=2, seed=7)
    assert all(torch.equal(p, matrices[n]) for n, p in again.model.named_parameters() if p.requires_grad)
    other = attach(detach(again), rank=2, seed=8)
    assert not all(torch.equal(p, matrices[n]) for n, p in other.model.named_parameters() if p.requires_grad)


def test_refusals(fresh, tmp_path):
    with pytest.raises(BadInput, match=r"no module 'q_pro' to adapt. Did you mean 'q_proj'"):
        attach(fresh, targets=["q_pro"], seed=0)
    with pytest.raises(BadInput, match="rank 0"):
        attach(fresh, rank=0, seed=0)
    with pytest.raises(BadInput, match="has no adapter"):
        merge(fresh)
    with pytest.raises(BadInput, match="already"):
        adapted = attach(fresh, seed=0)
        attach(adapted, seed=0)
    with pytest.raises(BadInput, match="merge it first"):
        adapted.save(tmp_path)
    with pytest.raises(
        BadInput, match=r"An adapter of tiny names no base model .* made in memory: save it to a folder"
    ):
        export(adapted, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(BadInput, match="names no base model to load"):
        load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(BadInput, match=r"adapter_config\.json cannot be read"):
        load(tmp_path)


def test_an_adapter_names_what_was_loaded_and_not_what_is_called_so(fresh, tmp_path, monkeypatch):
    """A folder that happens to have the name of a model in memory is not its base; a relative path is made absolute."""
    monkeypatch.chdir(tmp_path)
    fresh.save("mine")
    with pytest.raises(BadInput, match="made in memory"):
        export(attach(replace(fresh, name="mine"), seed=0), "adapter")
    loaded = load("mine", device="cpu")
    loaded.origin = replace(loaded.origin, revision="abc")
    export(attach(replace(loaded, name="another"), seed=0), "adapter")
    stated = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert stated["base_model_name_or_path"] == str(tmp_path / "mine") and stated["revision"] == "abc"


def test_what_peft_is_asked_for(fresh):
    """Rank 8 and alpha 16 on all linear maps but the output matrix unless it is said otherwise; no biases, no dropout."""
    adapted = attach(fresh, seed=0)
    config = adapted.model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias, config.task_type) == (
        8,
        16.0,
        0.0,
        "none",
        "CAUSAL_LM",
    )
    names = {
        name.rpartition(".lora_A")[0].rpartition(".")[2]
        for name, p in adapted.model.named_parameters()
        if p.requires_grad
    }
    assert names - {""} == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert (config.base_model_name_or_path, config.revision) == (None, None)
    plain = detach(adapted)
    other = attach(replace(plain, origin=Origin("owner/name", "abc")), 2, 3.0, "q_proj", seed=0, dropout=0.5)
    config = other.model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 3.0, 0.5)
    assert (config.base_model_name_or_path, config.revision) == ("owner/name", "abc")
    assert {
        name.split(".lora")[0].rpartition(".")[2] for name, p in other.model.named_parameters() if p.requires_grad
    } == {"q_proj"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rank": 0}, "rank 0, alpha 16.0, dropout 0.0"),
        ({"alpha": 0}, "rank 8, alpha 0, dropout 0.0"),
        ({"alpha": float("nan")}, "rank 8, alpha nan, dropout 0.0"),
        ({"dropout": -0.1}, "rank 8, alpha 16.0, dropout -0.1"),
        ({"dropout": 1.0}, "rank 8, alpha 16.0, dropout 1.0"),
    ],
)
def test_sizes_of_an_adapter(fresh, options, told):
    with pytest.raises(BadInput) as caught:
        attach(fresh, seed=0, **options)
    assert str(caught.value) == f"{told}: need rank >= 1, alpha > 0 and dropout in [0, 1)."
    assert not hasattr(fresh.model, "peft_config")


def test_names_of_modules_to_adapt(fresh):
    """A whole name, or the last parts of one; not a part of a word. What is near is a module without others in it."""
    for good in ("self_attn.q_proj", "lm_head"):
        detach(attach(fresh, rank=1, targets=good, seed=0))
    for wrong in ("proj", "attn.q_proj", "q_proj."):
        with pytest.raises(BadInput, match=f"no module '{re.escape(wrong)}' to adapt"):
            attach(fresh, targets=["q_proj", wrong], seed=0)


def test_sentences_of_adapters(fresh, tmp_path):
    for wrong, sentence in (
        (lambda: detach(fresh), "tiny has no adapter: attach one first."),
        (lambda: merge(fresh), "tiny has no adapter: attach one first."),
        (lambda: export(fresh, tmp_path), "tiny has no adapter: attach one first."),
        (
            lambda: export(attach(fresh, seed=0), tmp_path),
            "An adapter of tiny names no base model that could be loaded, since it was made in memory: save it to a "
            "folder and load that, or train the weights themselves (parameters 'full').",
        ),
    ):
        with pytest.raises(BadInput) as caught:
            wrong()
        assert str(caught.value) == sentence
    assert not list(tmp_path.iterdir())
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": ["q_proj"]}')
    with pytest.raises(BadInput, match=rf"The adapter {tmp_path} does not fit small: [^\n]+$"):
        attach_saved(replace(untaught(5), name="small"), tmp_path)


@pytest.mark.parametrize("trainable", [True, False])
def test_an_untied_head_is_trained_where_the_embeddings_are(fresh, trainable):
    fresh.model.get_input_embeddings().weight.requires_grad_(trainable)
    adapted = trained(fresh, ["lm_head"])
    merged = merge(adapted)
    head, embedding = merged.model.get_output_embeddings().weight, merged.model.get_input_embeddings().weight
    assert head is not embedding and head.requires_grad is embedding.requires_grad is trainable
    assert merged.model.config.tie_word_embeddings is False and merged.model.all_tied_weights_keys == {}


def test_an_adapter_may_begin_at_a_product_that_it_takes_off_again(fresh):
    before = logits(fresh.model)
    weights = {name: parameter.detach().clone() for name, parameter in fresh.model.named_parameters()}
    adapted = attach(fresh, rank=2, alpha=3.0, seed=1)
    maps = adapted_maps(adapted)
    generator = torch.Generator().manual_seed(5)
    starts = {n: tuple(torch.randn(f.shape, generator=generator) for f in factors(own)) for n, own in maps.items()}
    name = "model.layers.0.mlp.up_proj"
    with pytest.raises(BadInput, match=f"{name} is in the adapter or in its start, but not in both"):
        begin_at(adapted, {n: pair for n, pair in starts.items() if n != name})
    with pytest.raises(BadInput, match=f"A and B of {name} are"):
        begin_at(adapted, starts | {name: starts[name][::-1]})
    begin_at(adapted, starts)
    assert_close(logits(adapted.model), before, atol=1e-4, rtol=1e-4)
    a, b = factors(maps[name])
    assert torch.equal(a, starts[name][0]) and torch.equal(b, starts[name][1]) and a.requires_grad
    with torch.no_grad():
        b.add_(0.1)
    moved = logits(adapted.model)
    assert (moved - before).abs().max() > 0.01
    merged = merge(adapted)
    assert_close(logits(merged.model), moved, atol=1e-3, rtol=1e-3)
    expected = weights[f"{name}.weight"] + 1.5 * torch.full_like(b, 0.1) @ starts[name][0]
    assert_close(merged.model.get_submodule(name).weight.detach(), expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_that_began_at_a_product_is_written_at_twice_its_rank(fresh, tmp_path):
    fresh.save(tmp_path / "base")
    adapted = attach(load(tmp_path / "base"), rank=3, alpha=5.0, targets=["q_proj"], seed=1)
    generator = torch.Generator().manual_seed(5)
    maps = adapted_maps(adapted)
    starts = {n: tuple(torch.randn(f.shape, generator=generator) for f in factors(own)) for n, own in maps.items()}
    begin_at(adapted, starts)
    with torch.no_grad():
        for own in maps.values():
            factors(own)[1].add_(0.1)
    export(adapted, tmp_path / "adapter")
    stated = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (stated["r"], stated["lora_alpha"], stated["inference_mode"]) == (6, 10, True)
    written = load(tmp_path / "adapter")
    assert_close(logits(written.model), logits(adapted.model), atol=1e-4, rtol=1e-4)


def test_the_base_is_not_written_beside_its_adapter(fresh, tmp_path):
    fresh.save(tmp_path / "base")
    export(trained(load(tmp_path / "base"), ["lm_head", "q_proj"]), tmp_path / "adapter")
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
