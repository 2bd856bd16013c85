"""Advantages without a critic: the other responses to a prompt, the batch, or a greedy answer are the baseline.

P prompts, N responses each, B = P N responses in that order, T places. R is the reward of a response.

    GRPO                    (R - mean) / (std + epsilon), std with ddof 1                        arXiv:2402.03300, eq. 10
    Dr.GRPO                 R - mean; the loss is averaged by seq-mean-token-sum-norm            arXiv:2503.20783
    RLOO                    R - mean of the others = N / (N - 1) (R - mean)                      arXiv:2402.14740
    REINFORCE++             return to go of R and -beta k1, whitened over the batch              arXiv:2501.03262
    REINFORCE++ baseline    R - mean, whitened over the batch
    ReMax                   R - reward of the greedy answer to the same prompt                   arXiv:2310.10505
    DAPO                    GRPO, clip_high=0.28, token-mean, `mixed` groups only, `overlong_penalty` added to R
                                                                                                 arXiv:2503.14476
A group of one has nobody to be compared with: its baseline is 0 and its scale 1, as in verl, so that A is about R.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.reinforcement.ppo import gae, rewards_of_tokens, whiten
from equipoise.reinforcement.recipe import ADVANTAGES, METHODS, Advantage, Recipe

if TYPE_CHECKING:
    from equipoise.reinforcement.stages import Step


def grpo(rewards: Tensor, *, epsilon: float = 1e-6, population: bool = False) -> Tensor:
    """Rewards [P, N] relative to their group in its standard deviations, [P, N].

    epsilon: 1e-6 in verl, 1e-4 in TRL and in GRPO's first code. population: the standard deviation with ddof 0, not 1.
    """
    if rewards.shape[-1] == 1:
        return rewards / (1 + epsilon)
    return dr_grpo(rewards) / (rewards.std(-1, keepdim=True, correction=0 if population else 1) + epsilon)


def dr_grpo(rewards: Tensor) -> Tensor:
    """Rewards [P, N] minus the mean of their group, [P, N]; each row sums to 0 for N > 1, and is 0 when all are equal."""
    if rewards.shape[-1] == 1:
        return rewards.clone()
    # The mean of nine times 1/3 is not 1/3 in float32: GRPO would divide what rounding left by epsilon, and get 0.03.
    return (rewards - rewards.mean(-1, keepdim=True)).where(mixed(rewards).unsqueeze(-1), 0)


def rloo(rewards: Tensor) -> Tensor:
    """Rewards [P, N] minus the mean of the others of their group, [P, N]."""
    count = rewards.shape[-1]
    return dr_grpo(rewards) * (count / max(count - 1, 1))


def reinforce_plus_plus(token_rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Whitened returns to go, [B, T], of rewards of tokens [B, T] as `ppo.token_rewards` makes them."""
    returns, _ = gae(token_rewards, torch.zeros_like(token_rewards), mask, gamma=gamma)
    return whiten(returns, mask)


def reinforce_plus_plus_baseline(rewards: Tensor, mask: Tensor) -> Tensor:
    """R - mean of its group for [P, N], at every token of its response and whitened over all tokens of mask [P N, T]: [P
    N, T].

    The KL belongs into the loss here (k2 or k3+).
    """
    return whiten(dr_grpo(rewards).reshape(-1, 1).expand(mask.shape), mask)


def remax(rewards: Tensor, greedy_rewards: Tensor) -> Tensor:
    """Rewards [P] minus those of the greedy answers [P] to the same prompts."""
    return rewards - greedy_rewards


def mixed(rewards: Tensor) -> Tensor:
    """Which groups [P, N] have rewards that differ, [P] bool: the others teach nothing, and DAPO samples anew."""
    return (rewards != rewards[:, :1]).any(-1)


def overlong_penalty(lengths: Tensor, max_length: int, cache: int) -> Tensor:
    """What DAPO adds to R for length: 0 up to max_length - cache tokens, then falling to -1 at max_length and beyond.

    lengths: of responses in tokens, of any shape. Raises BadInput unless 1 <= cache <= max_length.
    """
    if not 1 <= cache <= max_length:
        raise BadInput(f"cache is {cache}, expected 1 to {max_length} tokens (max_length).")
    return ((max_length - cache - lengths) / cache).clamp(-1, 0)


def _remax(step: "Step", recipe: Recipe) -> Tensor:
    assert step.greedy_rewards is not None
    return remax(step.rewards, step.greedy_rewards.unsqueeze(-1))


def _reinforce_plus_plus(step: "Step", recipe: Recipe) -> Tensor:
    return reinforce_plus_plus(rewards_of_tokens(step, recipe), step.rollouts.mask)


def _reinforce_plus_plus_baseline(step: "Step", recipe: Recipe) -> Tensor:
    return reinforce_plus_plus_baseline(step.rewards, step.rollouts.mask)


ADVANTAGES.register("grpo", Advantage(compute=lambda step, recipe: grpo(step.rewards), least=2))
ADVANTAGES.register("dr-grpo", Advantage(compute=lambda step, recipe: dr_grpo(step.rewards), least=2))
ADVANTAGES.register("rloo", Advantage(compute=lambda step, recipe: rloo(step.rewards), least=2))
ADVANTAGES.register("remax", Advantage(compute=_remax, greedy=True, samples=1))
ADVANTAGES.register("reinforce++", Advantage(compute=_reinforce_plus_plus, of_tokens=True, samples=1))
ADVANTAGES.register("reinforce++-baseline", Advantage(compute=_reinforce_plus_plus_baseline, least=2))
METHODS.register("grpo", {"advantage": "grpo", "aggregate": "seq-mean-token-mean"})
METHODS.register("dr-grpo", {"advantage": "dr-grpo", "aggregate": "seq-mean-token-sum-norm"})
METHODS.register("rloo", {"advantage": "rloo", "aggregate": "seq-mean-token-sum-norm"})
METHODS.register("remax", {"advantage": "remax", "aggregate": "seq-mean-token-sum-norm"})
METHODS.register("reinforce++", {"advantage": "reinforce++"})
METHODS.register("reinforce++-baseline", {"advantage": "reinforce++-baseline", "kl_beta": 0.001, "kl_estimator": "k2"})
METHODS.register("dapo", {"advantage": "grpo", "clip_high": 0.28, "mixed_only": True})
