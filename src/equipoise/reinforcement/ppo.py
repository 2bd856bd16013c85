"""Token-level PPO with a critic (arXiv:1707.06347): rewards of tokens, advantages, whitening and the critic's losses.

B responses, T places. V_t is the critic's value of the state before token t, r_t the reward of token t. A mask [B, T] is
true at the tokens of the policy; the others (padding, text of a tool) are no steps: the step after a token is the next
true one.

    delta_t = r_t + gamma V_{t+1} - V_t,  V = 0 past the end
    A_t = delta_t + gamma lam A_{t+1},  G_t = A_t + V_t                                        arXiv:1506.02438, eq. 16
    critic      1/2 mean max((V - G)^2, (clamp(V, V_old - clip, V_old + clip) - G)^2)

With a verifiable reward r is 0 but at the last token, and gamma = lam = 1. Every result is 0 where the mask is false.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.reinforcement.policy_loss import average, kl
from equipoise.reinforcement.recipe import ADVANTAGES, METHODS, Advantage, Recipe
from equipoise.reinforcement.sppo import check_rewards

if TYPE_CHECKING:
    from equipoise.reinforcement.stages import Step


def token_rewards(
    rewards: Tensor,
    mask: Tensor,
    *,
    log_probs: Tensor | None = None,
    reference_log_probs: Tensor | None = None,
    beta: float = 0.0,
) -> Tensor:
    """Rewards of tokens [B, T] from rewards of responses [B]: R at the last token, minus beta k1 at each where beta is
    not 0.

    log_probs, reference_log_probs: [B, T], read only with a beta, without gradient. A response without a token has none.
    """
    mask = mask.bool()
    last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    result = rewards.unsqueeze(-1).where(last, 0)
    if beta:
        assert log_probs is not None and reference_log_probs is not None
        result = result - beta * kl(log_probs, reference_log_probs, estimator="k1", mask=mask).detach()
    return result


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Generalized advantages and the returns G that the critic learns, [B, T] each, from rewards and values [B, T]."""
    mask = mask.bool()
    rewards, values = rewards.where(mask, 0), values.where(mask, 0)
    advantage = next_value = values.new_zeros(len(values))
    columns: list[Tensor] = []
    for t in reversed(range(mask.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(mask[:, t], delta + gamma * lam * advantage, advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], dim=-1).where(mask, 0)
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Values [B, T] shifted and scaled to mean 0 and variance 1 over all tokens that count.

    The variance has Bessel's correction and 1e-8 added, as in verl. A single token becomes 0.
    """
    mask = mask.bool()
    count = mask.sum()
    mean = values.where(mask, 0).sum() / count.clamp(min=1)
    centered = (values - mean).where(mask, 0)
    variance = centered.square().sum() / (count - 1).clamp(min=1)
    return centered * torch.rsqrt(variance + 1e-8)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float | None = 0.5
) -> Tensor:
    """The critic's loss, a scalar: the mean of `value_losses` over all tokens; nan when no token counts."""
    return average(value_losses(values, old_values, returns, mask, clip=clip), mask)


def value_losses(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float | None = 0.5
) -> Tensor:
    """Half the squared error of each token, [B, T], the worse of the value and the value held near the old one.

    All [B, T]. clip: how far from the old value; None for no clip.
    """
    mask = mask.bool()
    values, old_values, returns = (tensor.where(mask, 0) for tensor in (values, old_values, returns))
    losses = (values - returns).square()
    if clip is not None:
        held = torch.clamp(values, old_values - clip, old_values + clip)
        losses = torch.maximum(losses, (held - returns).square())
    return losses / 2


def bce_value_loss(logits: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """The critic's loss of "PPO+BCE", SPPO's ablation: a success probability at every token, trained on the outcome.

    logits, mask: [B, T]; rewards: [B] in [0, 1], else BadInput. The values for `gae` are sigmoid(logits). The ablation's
    exact form is not published; this is the mean over all tokens.
    """
    check_rewards(rewards)
    logits = logits.where(mask.bool(), 0)
    targets = rewards.to(logits).unsqueeze(-1).expand_as(logits)
    return average(F.binary_cross_entropy_with_logits(logits, targets, reduction="none"), mask)


def rewards_of_tokens(step: "Step", recipe: Recipe) -> Tensor:
    """The rewards [R, T] of a step's tokens, with the KL in them where the recipe has it there."""
    beta = recipe.kl_beta if recipe.kl_in == "reward" else 0.0
    old = step.rollouts.log_probs if step.old_log_probs is None else step.old_log_probs
    return token_rewards(
        step.rewards.flatten(),
        step.rollouts.mask,
        log_probs=old,
        reference_log_probs=step.reference_log_probs,
        beta=beta,
    )


def of_step(step: "Step", recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Advantages, not yet whitened, and returns of a step's tokens, [R, T] each."""
    assert step.values is not None
    return gae(rewards_of_tokens(step, recipe), step.values, step.rollouts.mask, lam=recipe.gae_lambda)


def _whitened(step: "Step", recipe: Recipe) -> Tensor:
    return whiten(of_step(step, recipe)[0], step.rollouts.mask)


ADVANTAGES.register("gae", Advantage(compute=_whitened, critic="token", samples=1))
ADVANTAGES.register("gae-bce", Advantage(compute=_whitened, critic="token-bce", samples=1, unit=True))
METHODS.register("ppo", {"advantage": "gae"})
METHODS.register("ppo-bce", {"advantage": "gae-bce"})
