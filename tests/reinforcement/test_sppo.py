"""SPPO's advantage and critic loss: every identity that ties them to PPO and to the group baselines."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.reinforcement import group_baselines, policy_loss, ppo, sppo

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)


def test_is_ppo_with_a_value_of_the_prompt():
    """Unwhitened GAE at gamma = lam = 1, with p at every token, is R - p at every token; and so is the actor's gradient."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(9) < torch.tensor([9, 3, 1, 6])[:, None]
    mask[0, 4] = False
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.3], dtype=torch.float64)
    p = torch.rand(4, generator=generator, dtype=torch.float64)
    of_tokens, returns = ppo.gae(ppo.token_rewards(rewards, mask), p[:, None].expand(4, 9), mask)
    ours = sppo.advantages(rewards, p)
    assert_close(of_tokens[mask], ours[:, None].expand(4, 9)[mask], rtol=1e-15, atol=1e-15)
    assert_close(returns[mask], rewards[:, None].expand(4, 9)[mask])
    new, old = torch.randn(2, 4, 9, generator=generator, dtype=torch.float64)
    new.requires_grad_()
    losses = [policy_loss.clipped(new, old, each, mask, dual_clip=3)[0] for each in (ours, of_tokens)]
    assert_close(*(torch.autograd.grad(loss, new)[0] for loss in losses), rtol=1e-14, atol=1e-15)


def test_group_baselines_are_special_critics():
    """The group's mean as p gives Dr.GRPO, that of the others RLOO, k/N normalized GRPO with the population's deviation."""
    count = REWARDS.shape[-1]
    mean = REWARDS.mean(-1, keepdim=True).expand_as(REWARDS)
    others = (REWARDS.sum(-1, keepdim=True) - REWARDS) / (count - 1)
    for p, function in ((mean, group_baselines.dr_grpo), (others, group_baselines.rloo)):
        assert_close(sppo.advantages(REWARDS.flatten(), p.flatten()), function(REWARDS).flatten())
    assert_close(
        sppo.advantages(REWARDS.flatten(), mean.flatten(), normalize=True),
        group_baselines.grpo(REWARDS, epsilon=0.0, population=True).flatten(),
    )


def test_normalized_form_of_the_earlier_code():
    """exp(-v/2) for a success and -exp(v/2) for a failure; held at p = 0.02 and 0.98."""
    v = torch.tensor([-1.5, 0.0, 2.0], dtype=torch.float64)
    p = v.sigmoid()
    assert_close(sppo.advantages(torch.ones_like(p), p, normalize=True), (-v / 2).exp())
    assert_close(sppo.advantages(torch.zeros_like(p), p, normalize=True), -(v / 2).exp())
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert_close(sppo.advantages(1 - ends, ends, normalize=True), torch.tensor([7.0, -7.0], dtype=torch.float64))


@pytest.mark.parametrize("success", [0.1, 0.5])
def test_mean_and_variance(success):
    """E A = p* - p and Var A = p*(1 - p*), whatever the critic says."""
    rewards, weights = torch.tensor([1.0, 0.0]), torch.tensor([success, 1 - success])
    for p in (0.3, success):
        advantages = sppo.advantages(rewards, torch.tensor([p, p]))
        mean = (weights * advantages).sum()
        assert_close(mean, torch.tensor(success - p))
        assert_close((weights * (advantages - mean).square()).sum(), torch.tensor(success * (1 - success)))


def test_when_a_critic_beats_rloo():
    """E A^2 below that of RLOO where the critic's squared error is below p*(1-p*)/(N-1): 0.189 at p* = 0.5 and N = 8."""
    groups = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)))
    rloo = group_baselines.rloo(groups)[:, 0].square().mean()
    limit = math.sqrt(0.25 / 7)
    for error, wins in ((limit - 0.01, True), (limit + 0.01, False)):
        advantages = sppo.advantages(torch.tensor([1.0, 0.0]), torch.full((2,), 0.5 + error))
        assert bool(advantages.square().mean() < rloo) is wins


def test_critic_gradient_is_the_surprise():
    """d BCE / d v = sigmoid(v) - R over the batch, for soft labels too; at the success frequency it vanishes."""
    v = torch.tensor([-3.0, 0.2, 1.0, 40.0], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 0.25, 0.0, 0.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(sppo.critic_loss(v, rewards), v)
    assert_close(gradient, (v.sigmoid() - rewards) / 4)
    frequency = torch.tensor(3 / 8, dtype=torch.float64)
    shared = frequency.logit().requires_grad_()
    outcomes = torch.tensor([1.0] * 3 + [0.0] * 5, dtype=torch.float64)
    (at_frequency,) = torch.autograd.grad(sppo.critic_loss(shared.expand(8), outcomes), shared)
    assert abs(at_frequency) < 1e-15


def test_critic_is_not_reached_through_the_advantage():
    v = torch.zeros(2, requires_grad=True)
    assert not sppo.advantages(torch.tensor([1.0, 0.0]), v.sigmoid()).requires_grad


@pytest.mark.parametrize("wrong", [-1.0, 1.5, math.nan])
def test_rewards_outside_are_refused(wrong):
    rewards = torch.tensor([1.0, 0.0, wrong, -7.0])
    for function in (sppo.critic_loss, sppo.advantages):
        order = (torch.full((4,), 0.5), rewards) if function is sppo.critic_loss else (rewards, torch.full((4,), 0.5))
        with pytest.raises(BadInput, match=rf"rewards\[2\] is {wrong:g}"):
            function(*order)
    with pytest.raises(BadInput, match=r"success_probability\[2\]"):
        sppo.advantages(torch.zeros(4), rewards)
