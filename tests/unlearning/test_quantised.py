"""Rounding to few bits against its closed form, and what of a model it touches."""

import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.language.tiny import tiny
from equipoise.unlearning.quantised import quantised, round_trip


def test_rounding_is_to_the_nearest_level_of_its_own_scale():
    weight = torch.tensor([[7.0, 3.4, -3.6, 0.0], [0.14, -0.075, 0.013, 0.048]])
    wanted = torch.tensor([[7.0, 3.0, -4.0, 0.0], [0.14, -0.08, 0.02, 0.04]])  # scales 1 and 0.02
    torch.testing.assert_close(round_trip(weight, 4), wanted)
    # By pairs: scales 1 and 3.6 / 7, and 0.02 and 0.048 / 7.
    by_pairs = torch.tensor([[7.0, 3.0, -3.6, 0.0], [0.14, -0.08, 2 * 0.048 / 7, 0.048]])
    torch.testing.assert_close(round_trip(weight, 4, group=2), by_pairs)


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 5), (3, None), (2, 4)])
def test_error_levels_and_extremes_are_those_of_the_formula(bits, group):
    weight = torch.randn(6, 13, generator=torch.Generator().manual_seed(bits))
    rounded = round_trip(weight, bits, group)
    for part, now in zip(weight.split(group or 13, dim=1), rounded.split(group or 13, dim=1), strict=True):
        scale = part.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((part - now).abs() <= scale / 2 * (1 + 1e-5)).all()
        torch.testing.assert_close(now / scale, (now / scale).round(), atol=1e-4, rtol=0)
        torch.testing.assert_close(now.abs().amax(dim=1), part.abs().amax(dim=1))
    torch.testing.assert_close(round_trip(rounded, bits, group), rounded)  # a second trip changes nothing
    assert not round_trip(torch.zeros(2, 3), bits).any()


def test_only_the_matrices_of_blocks_are_rounded_and_the_given_model_stays():
    model = tiny(["a few words"], seed=0, width=16, layers=2, heads=2, vocabulary=300)
    start = {name: each.detach().clone() for name, each in model.model.named_parameters()}
    made = dict(quantised(model, 4, 8).model.named_parameters())
    for name, weight in model.model.named_parameters():
        assert torch.equal(weight, start[name])
        inside = ".layers." in name and weight.dim() == 2
        torch.testing.assert_close(made[name], round_trip(weight, 4, 8) if inside else weight, atol=0, rtol=0)
        assert not inside or not torch.equal(made[name], weight)


def test_linear_layers_that_hold_inputs_first_are_rounded_by_output():
    from transformers import GPT2Config, GPT2LMHeadModel

    from equipoise.language.model import LanguageModel

    other = tiny(["a few words"], seed=0, width=16, layers=1, heads=2, vocabulary=300)
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2)
    model = LanguageModel(GPT2LMHeadModel(config), other.tokenizer, "gpt2", "made")
    weight = model.model.transformer.h[0].mlp.c_fc.weight
    torch.testing.assert_close(
        quantised(model, 3).model.transformer.h[0].mlp.c_fc.weight, round_trip(weight.T, 3).T, atol=0, rtol=0
    )
    with pytest.raises(BadInput, match="1 bits"):
        round_trip(weight, 1)
