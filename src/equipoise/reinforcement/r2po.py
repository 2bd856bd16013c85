"""R2PO, residual rollout policy optimization (arXiv:2601.11960): one head samples for training, another answers the user.

P prompts, N responses each, V vocabulary. z are the logits of the model, u those of a small head on the same states;
training samples from softmax((z + u) / T), answers come from z. Two stages alternate, each with GRPO's loss, averaged by
seq-mean-token-mean, and k3 to the frozen start (beta 0.04):

    head      rewards how rare a result is: s_i = 1 / (how many of the group have the reward of i)
              A = (s - mean) / (std + 1e-6), ddof 1, groups whose s are all equal skipped; log-probabilities of z + u
    policy    A = (R - mean) / (std + 1e-4), groups with max - min < 0.01 skipped; log-probabilities of z, old ones as well

The released policy stage has no weight for tokens that z + u sampled and z learns; `importance_weights` is that weight, an
option. Rarity is of the value of the reward, not of the text, and so it pays a rare failure, too.
"""

import torch
from torch import Tensor

from equipoise.reinforcement.group_baselines import grpo


def rarity_advantages(rewards: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """How rare the reward of each response is in its group, in the group's standard deviations: [P, N] -> [P, N].

    Rewards are the same when they are equal as numbers. A group whose rewards are all equally frequent is skipped: 0.
    """
    counts = (rewards.unsqueeze(-1) == rewards.unsqueeze(-2)).sum(-1)
    skipped = (counts == counts[:, :1]).all(-1, keepdim=True)
    return grpo(1 / counts.to(rewards), epsilon=epsilon).masked_fill(skipped, 0)


def task_advantages(rewards: Tensor, *, epsilon: float = 1e-4, min_spread: float = 0.01) -> Tensor:
    """GRPO's advantages [P, N] of the policy stage; 0 in a group whose rewards differ by less than `min_spread`."""
    spread = rewards.amax(-1, keepdim=True) - rewards.amin(-1, keepdim=True)
    return grpo(rewards, epsilon=epsilon).masked_fill(spread < min_spread, 0)


@torch.no_grad()
def importance_weights(old_log_probs: Tensor, rollout_log_probs: Tensor, *, cap: float = 2.0) -> Tensor:
    """min(p_old / p_rollout, cap) of each sampled token, to multiply its advantage with; of the shape that came in.

    old_log_probs: under z; rollout_log_probs: under z + u, as sampled.
    """
    return (old_log_probs - rollout_log_probs).exp().clamp(max=cap)
