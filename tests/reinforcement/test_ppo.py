"""Token-level PPO: advantages against a double sum, whitening, the critic's losses and rewards of tokens by hand."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.reinforcement import ppo


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 6, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 9, generator=generator) < 0.6
    mask[3], mask[4] = False, True
    return rewards, values, mask


def double_sum(rewards, values, gamma, lam):
    """A_t = sum_l (gamma lam)^l delta_{t+l} of one response without holes."""
    following = [*values, 0.0][1:]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return [
        sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, len(deltas))) for t in range(len(deltas))
    ]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.7), (1.0, 0.0)])
def test_gae_against_a_double_sum(batch, gamma, lam):
    rewards, values, mask = batch
    advantages, returns = ppo.gae(rewards, values, mask, gamma=gamma, lam=lam)
    for row in range(len(mask)):
        of = mask[row]
        expected = double_sum(rewards[row, of].tolist(), values[row, of].tolist(), gamma, lam)
        assert advantages[row, of].tolist() == pytest.approx(expected)
        assert_close(returns[row, of], advantages[row, of] + values[row, of])
    assert advantages[~mask].abs().sum() == 0 and returns[~mask].abs().sum() == 0


def test_gae_is_differentiable_and_blind_to_masked_places(batch):
    rewards, values, mask = batch
    values.requires_grad_()
    assert gradcheck(lambda v: ppo.gae(rewards, v, mask, gamma=0.9, lam=0.7), values)
    spoilt = [each.detach().masked_fill(~mask, math.nan) for each in (rewards, values)]
    assert_close(ppo.gae(*spoilt, mask.int(), lam=0.5), ppo.gae(rewards, values, mask, lam=0.5), rtol=0, atol=0)


def test_whitening_by_hand(batch):
    values, _, mask = batch
    chosen = values[mask].numpy()
    expected = (chosen - chosen.mean()) / np.sqrt(chosen.var(ddof=1) + 1e-8)
    found = ppo.whiten(values.masked_fill(~mask, math.nan), mask)
    assert_close(found[mask].numpy(), expected)
    assert found[~mask].abs().sum() == 0
    three = ppo.whiten(torch.tensor([[1.0, 2.0, 6.0, 99.0]], dtype=torch.float64), torch.tensor([[1, 1, 1, 0]]))
    assert_close(three, torch.tensor([[-2.0, -1.0, 3.0, 0.0]], dtype=torch.float64) / math.sqrt(7))


def test_whitening_what_does_not_vary():
    mask = torch.tensor([[True, False]])
    assert ppo.whiten(torch.tensor([[3.0, math.nan]]), mask).tolist() == [[0, 0]]
    assert ppo.whiten(torch.full((2, 2), 0.1), torch.ones(2, 2)).abs().max() < 1e-3


def test_value_loss_by_hand():
    """The worse of the value and the one held near the old: 1 is held at 0.5; 2 towards a return of 0 is worse unheld."""
    values, old = torch.tensor([[1.0, 2.0, math.nan]]), torch.tensor([[0.0, 0.0, math.nan]])
    returns, mask = torch.tensor([[1.0, 0.0, math.nan]]), torch.tensor([[1, 1, 0]])
    assert ppo.value_losses(values, old, returns, mask).tolist() == [[0.125, 2.0, 0.0]]
    assert ppo.value_loss(values, old, returns, mask) == (0.125 + 2.0) / 2
    assert ppo.value_loss(values, old, returns, mask, clip=None) == (0.0 + 2.0) / 2


def test_value_loss_gradient(batch):
    returns, old, mask = batch
    generator = torch.Generator().manual_seed(1)
    values = (old + torch.randn(old.shape, generator=generator, dtype=torch.float64)).requires_grad_()
    assert gradcheck(lambda v: ppo.value_loss(v, old, returns, mask), values)
    spoilt = [each.detach().masked_fill(~mask, math.nan) for each in (values, old, returns)]
    spoilt[0].requires_grad_()
    gradients = [
        torch.autograd.grad(ppo.value_loss(*inputs, mask), inputs[0])[0] for inputs in ((values, old, returns), spoilt)
    ]
    assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_rewards_of_tokens():
    """The reward stands at the last token, whatever the holes; the KL at every token; nan elsewhere stays outside."""
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    rewards = torch.tensor([1.0, 2.0, 3.0])
    assert ppo.token_rewards(rewards, mask).tolist() == [[0, 0, 0, 1, 0], [2, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    log_probs = torch.tensor([[-1.0, -2.0, math.nan, -3.0, math.nan]] * 3).requires_grad_()
    reference = torch.tensor([[-1.5, -1.0, math.nan, -3.0, math.nan]] * 3)
    found = ppo.token_rewards(rewards, mask, log_probs=log_probs, reference_log_probs=reference, beta=0.1)
    assert_close(found, torch.tensor([[-0.05, 0.1, 0, 1, 0], [1.95, 0, 0, 0, 0], [0, 0, 0, 0, 0]]))
    assert not found.requires_grad


def test_bce_value_loss(batch):
    """Every token's logit is moved by p - R; with a critic of the prompt alone it is SPPO's loss."""
    _, logits, mask = batch
    rewards = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 0.25], dtype=torch.float64)
    spoilt = logits.masked_fill(~mask, math.nan).requires_grad_()
    loss = ppo.bce_value_loss(spoilt, rewards, mask)
    (gradient,) = torch.autograd.grad(loss, spoilt)
    assert_close(gradient, (logits.sigmoid() - rewards[:, None]).where(mask, 0) / mask.sum())
    p = logits.sigmoid()
    by_hand = -(rewards[:, None] * p.log() + (1 - rewards[:, None]) * (1 - p).log())
    assert_close(loss, by_hand[mask].mean())
    with pytest.raises(BadInput, match=r"rewards\[2\] is -1"):
        ppo.bce_value_loss(logits, rewards.index_fill(0, torch.tensor(2), -1.0), mask)
