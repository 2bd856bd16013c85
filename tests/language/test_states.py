from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from equipoise.core.errors import BadInput
from equipoise.language.adapters import attach
from equipoise.language.states import blocks, editing, module_at, places, recording

IDS = torch.tensor([[3, 14, 15, 9, 2], [6, 5, 3, 5, 8]])
LLAMA_LIKE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def build(name: str):
    torch.manual_seed(0)
    made = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA_LIKE)),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**LLAMA_LIKE)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2)
        ),
        "neox": lambda: GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
                bos_token_id=1, eos_token_id=2,
            )
        ),
    }  # fmt: skip
    return made[name]().eval()


ALL = ["llama", "qwen2", "gemma2", "gpt2", "neox"]


@pytest.mark.parametrize("name", ALL)
def test_blocks_are_transformers_hidden_states(name):
    model = build(name)
    assert len(blocks(model)) == 3
    with torch.no_grad(), recording(model, [*places(model), "head.input", "block.1.mlp.down.input"]) as found:
        output = model(IDS, output_hidden_states=True)
    # hidden_states: what enters each block; the last one is after the final normalisation.
    for number in (0, 1):
        assert torch.equal(found[f"block.{number}"], output.hidden_states[number + 1])
    assert torch.equal(found["head.input"], output.hidden_states[-1])
    # Gemma caps what leaves the output matrix.
    assert_close(found["head"], output.logits, atol=1.0 if name == "gemma2" else 0, rtol=0)
    if name in ("llama", "qwen2"):
        assert torch.equal(found["embed"], output.hidden_states[0])
    assert found["block.1.mlp.down"].shape == (2, 5, 16)
    assert found["block.1.mlp.down.input"].shape == (2, 5, 64 if name == "gpt2" else 24)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_attention_and_mlp_add_up_to_the_block(name):
    model = build(name)
    wanted = ["block.0", "block.1.attention", "block.1.mlp", "block.1.mlp.down", "block.1"]
    with torch.no_grad(), recording(model, wanted) as found:
        model(IDS)
    total = found["block.0"] + found["block.1.attention"] + found["block.1.mlp"]
    assert_close(found["block.1"], total, atol=1e-5, rtol=1e-5)
    assert_close(found["block.1.mlp.down"], found["block.1.mlp"], atol=0, rtol=0)


def test_states_keep_their_graph():
    model = build("llama")
    with recording(model, ["block.1"]) as found:
        model(IDS)
    found["block.1"].square().sum().backward()
    assert model.model.layers[1].mlp.down_proj.weight.grad is not None
    assert model.model.layers[2].mlp.down_proj.weight.grad is None


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "place", ["embed", "block.1", "block.1.attention", "block.1.mlp.down", "block.2.input", "block.1.attention.input"]
)
def test_edits_change_what_follows(name, place):
    model = build(name)
    with torch.no_grad():
        plain = model(IDS).logits
        with editing(model, {place: lambda state: state}):
            assert torch.equal(model(IDS).logits, plain)
        with editing(model, {place: lambda state: state * 0}), recording(model, [place]) as found:
            changed = model(IDS).logits
        assert torch.equal(found[place], torch.zeros_like(found[place]))  # hooks made later see what was put there
        assert not torch.equal(changed, plain)
        assert torch.equal(model(IDS).logits, plain)


def test_hooks_are_removed_when_the_body_fails():
    model = build("llama")
    with (
        pytest.raises(RuntimeError),
        recording(model, ["block.0", "head.input"]),
        editing(model, {"embed": lambda x: x}),
    ):
        raise RuntimeError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("wrong", ["block.3", "block.1.mpl", "blok.1", "block.1.attention.down", "", "block.-1"])
def test_unknown_places_are_refused_before_anything_is_hooked(wrong):
    model = build("llama")
    with pytest.raises(BadInput, match="no place"), recording(model, ["block.0", wrong]):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_places_of_a_model_with_an_adapter(fresh):
    plain = places(fresh.model)
    adapted = attach(fresh, seed=0)
    assert places(adapted.model) == plain
    with recording(adapted.model, ["block.1"]) as found:
        adapted.model(IDS)
    assert found["block.1"].shape == (2, 5, 32)


def test_places_in_the_order_in_which_a_token_passes_them():
    inner = [f"block.{i}{part}" for i in range(3) for part in (".attention", ".mlp", ".mlp.down", "")]
    assert places(build("llama")) == ["embed", *inner, "head"]
    odd = torch.nn.Module()
    odd.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=2))
    first, second = torch.nn.Module(), torch.nn.Module()
    first.attn, second.feed_forward = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    odd.layers = torch.nn.ModuleList([first, second])
    assert places(odd) == ["embed", "block.0.attention", "block.0", "block.1.mlp", "block.1", "head"]
    for wrong in ("block.0.mlp", "block.1.mlp.down", "block.2"):
        with pytest.raises(BadInput, match=f"This model has no place '{wrong}'"):
            module_at(odd, wrong)
    assert module_at(odd, "block.1.mlp") is second.feed_forward and module_at(odd, "block.0") is first


def test_the_list_of_blocks_among_others():
    def model(depth, **lists):
        made = torch.nn.Module()
        made.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=depth))
        for name, modules in lists.items():
            setattr(made, name, torch.nn.ModuleList(modules))
        return made

    def part(experts=0):
        made = torch.nn.Module()
        made.experts = torch.nn.ModuleList([torch.nn.Identity() for _ in range(experts)])
        return made

    nested = model(2, layers=[part(2), part(2)], other=[part()])
    assert blocks(nested) is nested.layers  # as many experts in a block as there are blocks
    shared = model(2, layers=[part(), part()])
    shared.again = shared.layers
    assert blocks(shared) is shared.layers
    for wrong, count in ((model(3, layers=[part()]), 0), (model(1, layers=[part()], other=[part()]), 2)):
        depth = wrong.config.get_text_config().num_hidden_layers
        with pytest.raises(BadInput) as caught:
            blocks(wrong)
        assert str(caught.value) == f"Module has {count} lists of {depth} blocks, so its places are unknown."


class Block(torch.nn.Module):
    """Takes its states by position or by name with another argument beside them, and gives a tuple."""

    def forward(self, hidden_states, scale, extra=None):
        return hidden_states * scale, scale, extra


@pytest.mark.parametrize("named", [False, True])
def test_what_stands_beside_the_states_is_left_alone(named):
    model = torch.nn.Module()
    model.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=1))
    model.layers = torch.nn.ModuleList([Block()])
    states = torch.tensor([1.0, 2.0])

    def run():
        block = model.layers[0]
        return block(hidden_states=states, scale=3.0, extra="x") if named else block(states, 3.0, "x")

    def same(found, expected):
        assert found[0].tolist() == expected and found[1:] == (3.0, "x")

    same(run(), [3.0, 6.0])
    with editing(model, {"block.0.input": lambda tensor: tensor + 1}):
        same(run(), [6.0, 9.0])
    with editing(model, {"block.0": lambda tensor: tensor + 1}):
        same(run(), [4.0, 7.0])
    with editing(model, {"block.0": lambda tensor: None, "block.0.input": lambda tensor: None}):
        same(run(), [3.0, 6.0])
    with recording(model, ["block.0", "block.0.input"]) as found:
        same(run(), [3.0, 6.0])
        run()
    assert list(found) == ["block.0.input", "block.0"]
    assert found["block.0.input"] is states and found["block.0"].tolist() == [3.0, 6.0]
