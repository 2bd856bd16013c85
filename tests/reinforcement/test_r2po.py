"""R2PO's advantages: rarity as the card counts it, the task's with its skipping, and the truncated weight."""

import math

import pytest
import torch
from torch.testing import assert_close

from equipoise.reinforcement import r2po

COMMON, MIDDLE, RARE = -0.6106, 0.4361, 2.1807


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([2.25] * 7 + [0.25], [-0.3536] * 7 + [2.4749]),
        ([2.25] * 4 + [-2] * 4, [0] * 8),
        ([2.25] * 5 + [0.25] * 2 + [-2], [COMMON] * 5 + [MIDDLE] * 2 + [RARE]),
        ([-2, 2.25, 0.25, 2.25, 2.25, 0.25, 2.25, 2.25], [RARE, COMMON, MIDDLE, *[COMMON] * 2, MIDDLE, *[COMMON] * 2]),
        ([1.0] * 8, [0] * 8),
        (range(8), [0] * 8),
        ([0, 0, 1, 1, 2, 2, 3, 3], [0] * 8),
    ],
)
def test_rarity(rewards, expected):
    """Alone and beside another group: by how often a value occurs, never by how large it is."""
    group = torch.tensor([[float(reward) for reward in rewards]], dtype=torch.float64)
    other = torch.tensor([[5.0] * 7 + [6.0]], dtype=torch.float64)
    found = r2po.rarity_advantages(torch.cat([other, group]))
    assert found[1].tolist() == pytest.approx(expected, abs=1e-4)
    assert_close(found[1:], r2po.rarity_advantages(group), rtol=0, atol=0)


def test_rarity_pays_a_rare_failure():
    found = r2po.rarity_advantages(torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    assert found[0, 3] > 0 > found[0, 0]


def test_a_group_of_one_is_skipped():
    assert r2po.rarity_advantages(torch.tensor([[1.0]])).tolist() == [[0.0]]
    assert r2po.task_advantages(torch.tensor([[1.0]])).tolist() == [[0.0]]


def test_task_advantages():
    """ddof 1 and 1e-4, and nothing where the rewards differ by less than 0.01."""
    rewards = torch.tensor(
        [[1.0, 0.0, 0.0], [0.500, 0.509, 0.5], [0.50, 0.52, 0.5], [1.0, 1.0, 1.0]], dtype=torch.float64
    )
    found = r2po.task_advantages(rewards)
    deviation = math.sqrt(1 / 3)
    assert found[0].tolist() == pytest.approx([2 / 3 / (deviation + 1e-4), *[-1 / 3 / (deviation + 1e-4)] * 2])
    assert found[1].tolist() == found[3].tolist() == [0, 0, 0]
    small = 0.02 / math.sqrt(3)  # the deviation of [0, 0.02, 0]
    assert found[2].tolist() == pytest.approx([each / (small + 1e-4) for each in (-0.02 / 3, 0.04 / 3, -0.02 / 3)])


def test_importance_weights():
    base, rollout = torch.tensor([-1.0, -1.0, -1.0, -200.0]), torch.tensor([-1.5, -3.0, -0.5, -400.0])
    found = r2po.importance_weights(base.requires_grad_(), rollout)
    assert_close(found, torch.tensor([math.exp(0.5), 2.0, math.exp(-0.5), 2.0]))
    assert not found.requires_grad
    assert_close(r2po.importance_weights(base, rollout, cap=5.0)[:2], torch.tensor([math.exp(0.5), 5.0]))
