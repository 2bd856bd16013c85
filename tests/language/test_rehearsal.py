"""What is impossible is refused in seconds, by a sentence, and a model that can do all is left as it was."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaForCausalLM

from equipoise.core.errors import BadInput
from equipoise.language.adapters import attach, detach
from equipoise.language.model import load
from equipoise.language.rehearsal import rehearse


def test_a_model_that_can_do_all_is_left_as_it_was(fresh):
    fresh.model.model.layers[0].requires_grad_(False)
    fresh.model.train()
    weights, state = copy.deepcopy(fresh.model.state_dict()), torch.get_rng_state()
    rehearse(fresh)
    assert all(torch.equal(value, weights[name]) for name, value in fresh.model.state_dict().items())
    assert all(parameter.grad is None for parameter in fresh.model.parameters())
    assert fresh.model.training and torch.equal(torch.get_rng_state(), state)


def test_a_model_that_sees_what_follows(small):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(small.tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    with pytest.raises(BadInput, match=r"tiny \(BertLMHeadModel\) sees the tokens that it should predict"):
        rehearse(replace(small, model=BertLMHeadModel(config).eval()))


class Larger(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.extra = torch.nn.Linear(3, 3)


class Unregistered(LlamaConfig):
    model_type = "unregistered"


def test_a_model_that_would_be_another_when_it_is_loaded_again(small):
    config = small.model.config
    with pytest.raises(BadInput, match=r"would be another model when .* the parameter extra\.bias"):
        rehearse(replace(small, model=Larger(config).eval()))
    rehearse(replace(small, model=Larger(config).eval()), writes="nothing")
    own = Unregistered(**{**config.to_dict(), "model_type": "unregistered"})
    with pytest.raises(BadInput, match=r"tiny could not be loaded again after it was written .*unregistered"):
        rehearse(replace(small, model=LlamaForCausalLM(own).eval()))


def test_an_adapter_needs_a_base(fresh, tmp_path):
    adapted = attach(fresh, seed=0)
    with pytest.raises(BadInput, match="An adapter of tiny names no base model"):
        rehearse(adapted, writes="adapter")
    detach(adapted).save(tmp_path)
    rehearse(attach(load(tmp_path, device="cpu"), seed=0), writes="adapter")


class NoAnswers(LlamaForCausalLM):
    def forward(self, past_key_values=None, use_cache=False, **words):
        if use_cache:
            raise NotImplementedError("no cache here")
        return super().forward(**words)


class NoGradient(LlamaForCausalLM):
    def forward(self, **words):
        with torch.no_grad():
            return super().forward(**words)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NoAnswers, r"tiny cannot answer prompts \(NotImplementedError: no cache here\): use another model"),
        (NoGradient, r"tiny cannot be trained \(RuntimeError: "),
    ],
)
def test_what_an_architecture_cannot_do(small, kind, message):
    model = replace(small, model=kind(small.model.config).eval())
    with pytest.raises(BadInput, match=message):
        rehearse(model, writes="nothing")
    rehearse(model, writes="nothing", trains=kind is NoAnswers, generates=kind is NoGradient)


def test_nothing_to_train(fresh):
    with pytest.raises(BadInput, match="no parameter that requires a gradient"):
        rehearse(replace(fresh, model=fresh.model.requires_grad_(False)))
    with pytest.raises(BadInput, match=r"writes is 'modle'. Did you mean 'model'"):
        rehearse(fresh, writes="modle")
