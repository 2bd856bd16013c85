"""APO, anchored policy optimization (arXiv:2602.05717): what a wrong token loses flows back to the reference's likely
tokens.

B responses, T places, K anchors. At a place with sampled token y and advantage A, p is the policy, p_ref a frozen reference:

    anchors     S = top K of p_ref without y,  Z = sum_S p_ref,  r_anc = (sum_S p) / Z
    ratio       A >= 0:  r = p(y) / p_old(y), left alone
                A <  0:  push r - pull r_anc                                            push 1.05, pull 0.1, K = 8
    loss        PPO's clipped loss of that ratio, A group-normalized (`group_baselines.grpo`)

Its gradient where A < 0 and no clip holds, by logit j, with M = sum_S p:

    y           -|A| (push r (1 - p_y) + pull p_y M / Z)           always down
    anchors     +|A| p_k (push r + pull (1 - M) / Z)               up, more than by pushing alone
    others      +|A| p_j (push r - pull M / Z)                     up less, or down

The pull is |A| pull / Z times the gradient of M: it lifts what is small but alive, in proportion to p_k, and cannot raise
the dead. What was readable of the paper leaves open how the ratio meets the clip. Here it goes INSIDE
(`clip_mode="inside"`): push - pull = 0.95 starts within the trust region, and the pull stops once r_anc > (push - 1 +
clip) / pull, 2.5 at r = 1. `"outside"` clips push r alone and adds the pull unclipped. Where the reference is all but
certain of y (Z < z_min) there is nothing to pull to and the plain ratio stays. A dual clip is not offered: the ratio may
be negative. Policy and reference are taken at the same temperature. "KL-on-Wrong", the authors' own rival, is
`kl_on_wrong`, in a form proposed here.
"""

from typing import Literal

import torch
from torch import Tensor

from equipoise.core.options import closed
from equipoise.reinforcement.policy_loss import (
    LOG_RATIO_LIMIT,
    Aggregate,
    KLEstimator,
    Stats,
    average,
    check_kl_in_loss,
    kl,
    masked_log_ratio,
    masked_mean,
    per_token,
    ratio_stats,
    surrogate,
    wide,
)
from equipoise.reinforcement.recipe import METHODS

ClipMode = Literal["inside", "outside"]


@torch.no_grad()
def anchors(reference_logits: Tensor, count: int = 8, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The reference's `count` likeliest tokens at each place, [..., V] -> ids and probabilities [..., K].

    K is the vocabulary's size where that is less. Half precision is widened first: ties would change the set.
    """
    logits = wide(reference_logits) / temperature
    top = logits.topk(min(count, logits.shape[-1]), dim=-1)
    return top.indices, (top.values - logits.logsumexp(-1, keepdim=True)).exp()


def anchored_ratio(
    log_probs: Tensor,
    old_log_probs: Tensor,
    anchor_log_probs: Tensor,
    reference_probs: Tensor,
    sampled: Tensor,
    advantages: Tensor,
    *,
    push: float = 1.05,
    pull: float = 0.1,
    z_min: float = 1e-6,
    inclusive: bool = False,
) -> Tensor:
    """The ratio that PPO's loss takes, [...]: push r - pull r_anc where A < 0, r elsewhere.

    log_probs, old_log_probs, advantages: [...]. anchor_log_probs, reference_probs: of the policy and of the reference, at
    the reference's top K, [..., K]; sampled: whether that token is y, [..., K] bool. inclusive: the ablation that keeps y
    among the anchors. Where A >= 0 nothing of the reference reaches the value or a gradient.
    """
    ratio = (log_probs - old_log_probs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    negative = advantages < 0
    anchor_ratio, anchored = _anchor_ratio(anchor_log_probs, reference_probs, sampled, negative, z_min, inclusive)
    return torch.where(anchored, push * ratio - pull * anchor_ratio, ratio)


def _anchor_ratio(
    anchor_log_probs: Tensor,
    reference_probs: Tensor,
    sampled: Tensor,
    negative: Tensor,
    z_min: float,
    inclusive: bool,
) -> tuple[Tensor, Tensor]:
    """r_anc, and where it applies: A < 0 and enough of the reference's mass left."""
    kept = negative.unsqueeze(-1) if inclusive else negative.unsqueeze(-1) & ~sampled
    reference = reference_probs.detach().where(kept, 0).sum(-1)
    policy = anchor_log_probs.where(kept, -torch.inf).exp().sum(-1)
    anchored = negative & (reference >= z_min)
    return policy / reference.where(anchored, 1), anchored


@closed
def anchored_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    anchor_log_probs: Tensor,
    reference_probs: Tensor,
    sampled: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    push: float = 1.05,
    pull: float = 0.1,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_mode: ClipMode = "inside",
    z_min: float = 1e-6,
    inclusive: bool = False,
    aggregate: Aggregate = "token-mean",
    constant: float | None = None,
) -> tuple[Tensor, Stats]:
    """APO's loss, to be minimized, and what happened in it: the average of `anchored_tokens`; nan when no token counts."""
    losses, stats = anchored_tokens(
        log_probs,
        old_log_probs,
        anchor_log_probs,
        reference_probs,
        sampled,
        advantages,
        mask,
        push=push,
        pull=pull,
        clip_low=clip_low,
        clip_high=clip_high,
        clip_mode=clip_mode,
        z_min=z_min,
        inclusive=inclusive,
    )
    return average(losses, mask, aggregate, constant=constant), stats


@closed
def anchored_tokens(
    log_probs: Tensor,
    old_log_probs: Tensor,
    anchor_log_probs: Tensor,
    reference_probs: Tensor,
    sampled: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    push: float = 1.05,
    pull: float = 0.1,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_mode: ClipMode = "inside",
    z_min: float = 1e-6,
    inclusive: bool = False,
) -> tuple[Tensor, Stats]:
    """The loss of each token, [B, T], before any average; 0 where the mask is false.

    As `anchored_ratio` with log-probabilities and mask [B, T], anchors [B, T, K] and advantages [B, T] or [B]. Beside
    those of `policy_loss.clipped_tokens` the statistics have `support_coverage`, the policy's mass on the reference's top
    K, a mean over all tokens; and, over those with A < 0 (nan when there is none): `anchor_ratio` r_anc where there is
    something to pull to, and `tiny_anchor_share`, how often there is not (Z < z_min). `ratio` is the plain r, 1 in the
    first step.
    """
    mask = mask.bool()
    advantages = per_token(advantages, mask)
    log_ratio = masked_log_ratio(log_probs, old_log_probs, mask)
    ratio, negative = log_ratio.exp(), advantages < 0
    anchor_ratio, anchored = _anchor_ratio(anchor_log_probs, reference_probs, sampled, negative, z_min, inclusive)
    clips = {"clip_low": clip_low, "clip_high": clip_high}
    if clip_mode == "inside":
        rectified = torch.where(anchored, push * ratio - pull * anchor_ratio, ratio)
        losses, stats = surrogate(rectified, advantages, mask, **clips)
    else:
        losses, stats = surrogate(torch.where(anchored, push * ratio, ratio), advantages, mask, **clips)
        losses = losses + torch.where(anchored, advantages * pull * anchor_ratio, 0)
    stats |= ratio_stats(log_ratio, advantages, mask)
    stats["anchor_ratio"] = masked_mean(anchor_ratio.detach(), anchored)
    stats["tiny_anchor_share"] = masked_mean((~anchored).to(ratio), negative)
    stats["support_coverage"] = masked_mean(anchor_log_probs.detach().exp().sum(-1), mask)
    return losses, stats


@closed
def kl_on_wrong(
    log_probs: Tensor,
    reference_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    estimator: KLEstimator = "k3",
    aggregate: Aggregate = "token-mean",
    constant: float | None = None,
) -> Tensor:
    """The KL to the reference where A < 0 and 0 elsewhere, averaged over all tokens: a scalar to be added with its weight.

    log_probs, reference_log_probs, mask: [B, T]; advantages: [B, T] or [B]. Raises BadInput for k1.
    """
    check_kl_in_loss(estimator)
    wrong = per_token(advantages, mask) < 0
    return average(
        kl(log_probs, reference_log_probs, estimator=estimator, mask=wrong), mask, aggregate, constant=constant
    )


METHODS.register("apo", {"advantage": "grpo", "loss": "anchored"})
