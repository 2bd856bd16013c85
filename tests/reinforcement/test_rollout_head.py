"""R2PO's head on a model: on and off, which gradients there are, and that the model is the plain one afterwards."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import Gemma2Config, Gemma2ForCausalLM

from equipoise.core.errors import BadInput
from equipoise.language import adapters, rollouts
from equipoise.language.generate import generate
from equipoise.language.model import load
from equipoise.language.rollouts import roll_out, score_responses
from equipoise.reinforcement.r2po import RolloutHead
from reinforcement_world import PROBLEMS, equal, model, weights

ASKED = {"samples": 2, "max_new_tokens": 5, "temperature": 0.9, "seed": 0}
PROMPTS = [each.prompt for each in PROBLEMS]
IDS = torch.tensor([[1, 5, 9, 40], [1, 7, 8, 50]])


def logits(language_model):
    with torch.no_grad():
        return language_model.model(IDS).logits


def test_rollouts_see_it_and_answers_do_not():
    language_model = model()
    before, answers = logits(language_model), generate(language_model, PROMPTS, max_new_tokens=5)
    head = RolloutHead.attach(language_model.model, seed=0, scale=0.5)
    assert (
        torch.equal(logits(language_model), before) and generate(language_model, PROMPTS, max_new_tokens=5) == answers
    )
    with head.rollouts():
        with_head = logits(language_model)
        with head.rollouts():
            pass
        assert torch.equal(logits(language_model), with_head)  # one inside another
        rolled = roll_out(language_model, PROMPTS, **ASKED)
    assert torch.equal(logits(language_model), before)
    states = language_model.model.model(IDS).last_hidden_state
    u = (states @ head.first.T).relu() @ head.second.T
    assert_close(with_head, before + u, rtol=1e-5, atol=1e-5)
    assert not torch.equal(roll_out(language_model, PROMPTS, **ASKED).ids, rolled.ids)
    with head.rollouts():
        scores = score_responses(language_model.model, rolled.batch(range(10)), temperature=0.9)
    assert_close(scores.log_probs.detach(), rolled.log_probs, rtol=0, atol=1e-5)
    outside = score_responses(language_model.model, rolled.batch(range(10)), temperature=0.9)
    assert (outside.log_probs - rolled.log_probs).abs().max() > 0.1
    with pytest.raises(ZeroDivisionError), head.rollouts():
        raise ZeroDivisionError
    assert torch.equal(logits(language_model), before)


def test_a_head_that_says_nothing_changes_no_bit():
    language_model = model()
    plain = roll_out(language_model, PROMPTS, **ASKED)
    head = RolloutHead.attach(language_model.model, seed=0)
    assert not head.second.any() and head.first.std().item() == pytest.approx(0.02, rel=0.1)
    with head.rollouts():
        found = roll_out(language_model, PROMPTS, **ASKED)
        assert torch.equal(logits(language_model), logits(replace(language_model)))
    assert torch.equal(found.ids, plain.ids) and torch.equal(found.log_probs, plain.log_probs)


def test_the_output_matrix_learns_first():
    """W1 drawn and W2 = 0: a gradient at W2 and none at W1; after a step both have one."""
    language_model = model()
    head = RolloutHead.attach(language_model.model, seed=0)
    rolled = roll_out(language_model, PROMPTS, **ASKED)

    def gradients():
        with head.rollouts():
            scores = score_responses(language_model.model, rolled.batch(range(10)))
            return torch.autograd.grad(scores.log_probs.sum(), head.own_parameters())

    first, second = gradients()
    assert not first.any() and second.any()
    with torch.no_grad():
        head.second.sub_(second)
    assert all(each.any() for each in gradients())
    first, second = torch.zeros(32, 32), torch.zeros(300, 32)
    base = language_model.model.lm_head.base
    with pytest.raises(BadInput, match=r"^W1 and W2 are both 0, where neither has a gradient: draw one of them\.$"):
        RolloutHead(base, first, second)
    assert RolloutHead(base, first + 1, second) and RolloutHead(base, first, second + 1)


@pytest.mark.parametrize("at_once", [2**24, 7 * 300])
def test_its_gradient_in_pieces(monkeypatch, at_once):
    """Scored and differentiated inside: the backward pass makes pieces again, with the head."""
    monkeypatch.setattr(rollouts, "_LOGITS_AT_ONCE", at_once)
    language_model = model()
    head = RolloutHead.attach(language_model.model, seed=0, scale=0.5)
    with head.rollouts():
        rolled = roll_out(language_model, PROMPTS, **ASKED)
        scores = score_responses(language_model.model, rolled.batch(range(10)))
        found = torch.autograd.grad(scores.log_probs.sum(), [*head.own_parameters(), head.weight])
    states = language_model.model.model
    batch = rolled.batch(range(10))
    h = states(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state[
        batch["predicts"]
    ]
    h = h.detach()
    full = h @ head.weight.T + (h @ head.first.T).relu() @ head.second.T
    expected = torch.autograd.grad(
        full.log_softmax(-1).gather(-1, batch["response"][batch["mask"]][:, None]).sum(), head.own_parameters()
    )
    for one, two in zip(found, expected, strict=False):
        assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_attach_save_load_detach(tmp_path):
    """What is saved after detaching is the plain model, tied as it was; the head comes back on another copy."""
    language_model = model()
    before, shapes = weights(language_model.model), language_model.model.state_dict().keys()
    head = RolloutHead.attach(language_model.model, seed=0, scale=0.5)
    embedding = language_model.model.get_input_embeddings().weight
    assert head.weight is embedding and head.second is not embedding and head.second.data_ptr() != embedding.data_ptr()
    assert sum(each.numel() for each in head.own_parameters()) == 32 * 32 + 32 * 300
    with torch.no_grad():
        embedding.add_(0.01)  # what the policy learns meanwhile
        head.second.mul_(2)
    with head.rollouts():
        expected = logits(language_model)
    plain = logits(language_model)
    head.save(tmp_path / "head.safetensors")
    head.detach()
    assert type(language_model.model.lm_head) is torch.nn.Linear and language_model.model.lm_head.weight is embedding
    assert language_model.model.state_dict().keys() == shapes and torch.equal(logits(language_model), plain)
    language_model.save(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu")
    assert equal(weights(loaded.model), weights(language_model.model)) and not equal(weights(loaded.model), before)
    assert loaded.model.lm_head.weight is loaded.model.get_input_embeddings().weight
    again = RolloutHead.load(loaded.model, tmp_path / "head.safetensors")
    assert torch.equal(logits(loaded), plain)
    with again.rollouts():
        assert torch.equal(logits(loaded), expected)
    with pytest.raises(BadInput, match=r"^LlamaForCausalLM has a rollout head already"):
        RolloutHead.attach(loaded.model, seed=0)
    with pytest.raises(BadInput, match=r"^LlamaForCausalLM has a rollout head already"):
        RolloutHead.load(loaded.model, tmp_path / "head.safetensors")
    again.detach()
    with pytest.raises(BadInput, match="is on no model: it was detached before"):
        again.detach()


def test_files_that_are_no_head(tmp_path):
    from safetensors.torch import save_file

    language_model = model()
    (tmp_path / "cut").write_bytes(b"x" * 30)
    save_file({"first": torch.ones(32, 32), "second": torch.ones(299, 32)}, tmp_path / "other")
    save_file({"first": torch.ones(31, 31), "second": torch.ones(300, 32)}, tmp_path / "inner")
    save_file({"first": torch.ones(32, 32)}, tmp_path / "half")
    for name in ("cut", "nowhere"):
        with pytest.raises(BadInput, match=rf"{name} is no rollout head \("):
            RolloutHead.load(language_model.model, tmp_path / name)
    for name in ("other", "inner", "half"):
        with pytest.raises(BadInput, match=rf"{name} is no rollout head for an output matrix of \(300, 32\)\.$"):
            RolloutHead.load(language_model.model, tmp_path / name)
    assert type(language_model.model.lm_head) is torch.nn.Linear


def test_beside_an_adapter():
    language_model = adapters.attach(model(), 2, 4.0, seed=0)
    before = logits(language_model)
    head = RolloutHead.attach(language_model.model, seed=0, scale=0.5)
    assert torch.equal(logits(language_model), before)
    with head.rollouts():
        assert (logits(language_model) - before).abs().max() > 0.01
        rolled = roll_out(language_model, PROMPTS, **ASKED)
        scores = score_responses(language_model.model, rolled.batch(range(10)), temperature=0.9)
    assert_close(scores.log_probs.detach(), rolled.log_probs, rtol=0, atol=1e-5)
    head.detach()
    merged = adapters.merge(language_model)
    assert_close(logits(merged), before, rtol=1e-5, atol=1e-5)


def test_logits_that_are_capped_are_capped_with_it():
    small = model()
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=1.5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    language_model = replace(small, model=Gemma2ForCausalLM(config).eval())
    head = RolloutHead.attach(language_model.model, seed=0, scale=3.0)
    with head.rollouts():
        assert logits(language_model).abs().max() < 1.5
        rolled = roll_out(language_model, PROMPTS, **ASKED)
        scores = score_responses(language_model.model, rolled.batch(range(10)), temperature=0.9)
    assert_close(scores.log_probs.detach(), rolled.log_probs, rtol=0, atol=1e-5)


def test_a_model_without_an_output_matrix():
    with pytest.raises(BadInput, match=r"^LlamaModel has no output matrix\.$"):
        RolloutHead.attach(model().model.model, seed=0)
