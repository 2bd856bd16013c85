"""Advantages from groups, by hand and by enumerating every group of binary rewards."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.reinforcement import group_baselines, ppo

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 0.5], [2.0, 2.0, 2.0, 2.0], [-1.0, 3.0, 0.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize(("population", "ddof"), [(False, 1), (True, 0)])
def test_grpo_against_numpy(population, ddof):
    rewards = REWARDS.numpy()
    deviation = rewards.std(1, ddof=ddof, keepdims=True)
    for epsilon in (1e-6, 1e-4):
        found = group_baselines.grpo(REWARDS, epsilon=epsilon, population=population)
        assert_close(found.numpy(), (rewards - rewards.mean(1, keepdims=True)) / (deviation + epsilon))


def test_means_of_the_group_and_of_the_others():
    rewards = REWARDS.numpy()
    assert_close(group_baselines.dr_grpo(REWARDS).numpy(), rewards - rewards.mean(1, keepdims=True))
    others = [[np.delete(row, i).mean() for i in range(4)] for row in rewards]
    assert_close(group_baselines.rloo(REWARDS).numpy(), rewards - others)


def test_a_group_of_one_keeps_its_reward():
    alone = torch.tensor([[1.0], [-2.0]])
    assert_close(group_baselines.grpo(alone), alone / (1 + 1e-6))
    for function in (group_baselines.dr_grpo, group_baselines.rloo):
        assert function(alone).tolist() == alone.tolist()


def test_equal_rewards_are_no_signal_whatever_rounding_leaves():
    """In float32 the mean of nine times 1/3 is another number."""
    equal = torch.full((2, 9), 1 / 3)
    assert (equal.mean(-1) != equal[:, 0]).all()
    for function in (group_baselines.grpo, group_baselines.dr_grpo, group_baselines.rloo):
        assert function(equal).abs().sum() == 0


@pytest.mark.parametrize("success", [0.2, 0.5])
def test_mean_and_variance_by_enumeration(success):
    """Over all groups of 4: no drift, and variances p(1-p)(N-1)/N for the group mean, p(1-p)N/(N-1) for RLOO."""
    groups = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)
    weight = (success**groups * (1 - success) ** (1 - groups)).prod(-1)
    variance = success * (1 - success)
    for function, expected in ((group_baselines.dr_grpo, variance * 3 / 4), (group_baselines.rloo, variance * 4 / 3)):
        first = function(groups)[:, 0]
        assert_close((weight * first).sum().item(), 0.0)
        assert_close((weight * first.square()).sum().item(), expected)


@pytest.fixture
def mask():
    mask = torch.arange(5) < torch.tensor([5, 2, 4, 1])[:, None]
    mask[0, 1] = False
    return mask


def test_reinforce_plus_plus(mask):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    to_go = torch.zeros(4, 5, dtype=torch.float64)
    for row in range(4):
        places = mask[row].nonzero().flatten().tolist()
        for position, place in enumerate(places):
            to_go[row, place] = sum(0.9**n * rewards[row, later] for n, later in enumerate(places[position:]))
    chosen = to_go[mask]
    found = group_baselines.reinforce_plus_plus(rewards.masked_fill(~mask, math.nan), mask, gamma=0.9)
    assert_close(found[mask], (chosen - chosen.mean()) / (chosen.var() + 1e-8).sqrt())
    assert found[~mask].abs().sum() == 0


def test_reinforce_plus_plus_with_kl_in_the_reward(mask):
    """A response's tokens see the KL that is still to come, not that of before."""
    log_probs = torch.zeros(4, 5, dtype=torch.float64)
    log_probs[0, 3] = 2.0  # one step that strays, in the first response
    rewards = ppo.token_rewards(
        torch.zeros(4), mask, log_probs=log_probs, reference_log_probs=torch.zeros_like(log_probs), beta=0.5
    )
    found = group_baselines.reinforce_plus_plus(rewards, mask)
    assert found[0, 0] == found[0, 2] == found[0, 3] < 0 < found[0, 4] == found[1, 0]


def test_reinforce_plus_plus_baseline(mask):
    """Whitened over tokens: a long response counts more in the mean than a short one."""
    rewards = torch.tensor([[1.0, 0.0], [3.0, 2.0]], dtype=torch.float64)
    centered = torch.tensor([0.5, -0.5, 0.5, -0.5], dtype=torch.float64)[:, None].expand(4, 5)
    chosen = centered[mask]
    found = group_baselines.reinforce_plus_plus_baseline(rewards, mask)
    assert_close(found[mask], (chosen - chosen.mean()) / (chosen.var() + 1e-8).sqrt())
    assert chosen.mean() > 0 and found[~mask].abs().sum() == 0


def test_remax():
    assert group_baselines.remax(torch.tensor([1.0, 0.0]), torch.tensor([0.25, 1.0])).tolist() == [0.75, -1.0]


def test_mixed_groups():
    rewards = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.1, 0.1, 0.1]])
    assert group_baselines.mixed(rewards).tolist() == [True, False, True, False]


def test_overlong_penalty():
    lengths = torch.tensor([0, 80, 81, 90, 99, 100, 500])
    found = group_baselines.overlong_penalty(lengths, max_length=100, cache=20)
    assert_close(found, torch.tensor([0.0, 0.0, -0.05, -0.5, -0.95, -1.0, -1.0]))
    for cache in (0, 101):
        with pytest.raises(BadInput, match=f"cache is {cache}"):
            group_baselines.overlong_penalty(lengths, max_length=100, cache=cache)
