"""Losses of the policy on the tokens that it sampled: clipped surrogate, KL to a reference, and how tokens are averaged.

B responses, T places of a response, V vocabulary. Log-probabilities are natural and of single tokens; a mask [B, T] is
true at the tokens that count, and what stands elsewhere, nan included, reaches neither a value nor a gradient.

    ratio       r = exp(clamp(log p - log p_old, -20, 20))
    clipped     l = max(-A r, -A clamp(r, 1 - clip_low, 1 + clip_high))                            arXiv:1707.06347, eq. 7
    dual clip   where A < 0, l = min(l, -A c)                                                      arXiv:1912.09729, eq. 5
    k1          d = log p - log p_ref                                               an estimate of KL(p || p_ref) each:
    k2          d^2 / 2                                                             values of tokens sampled from p
    k3          exp(-d) + d - 1
    k3+         the value of k3 with the gradient of k2

As losses on tokens sampled from p: E[grad k2] = grad KL(p || p_ref), E[grad k3] = grad KL(p_ref || p), E[grad k1] = 0. So k1
belongs into the reward, and `kl_loss` refuses it.

Four ways to average are in use, and they weigh long responses differently. The names are verl's:

    token-mean                 over all tokens of the batch (DAPO)
    seq-mean-token-mean        over the tokens of a response, then over responses (GRPO as published)
    seq-mean-token-sum         the sum over a response, then the mean over responses (REINFORCE)
    seq-mean-token-sum-norm    that, divided by a constant of the run (Dr.GRPO: the maximum length)
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from equipoise.core.errors import BadInput
from equipoise.core.options import closed

Aggregate = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
KLEstimator = Literal["k1", "k2", "k3", "k3+"]
Stats = dict[str, Tensor]

LOG_RATIO_LIMIT = 20.0
K3_LIMIT = 10.0


@closed
def clipped(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    aggregate: Aggregate = "token-mean",
    constant: float | None = None,
) -> tuple[Tensor, Stats]:
    """PPO's clipped loss, to be minimized, and what happened in it.

    log_probs, old_log_probs, mask: [B, T]; advantages: [B, T], or [B] for one a response. dual_clip: c above 1, off when
    None. constant: what seq-mean-token-sum-norm divides by. Returns a scalar (nan when no token counts) and the
    statistics of `clipped_tokens`.
    """
    losses, stats = clipped_tokens(
        log_probs, old_log_probs, advantages, mask, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )
    return average(losses, mask, aggregate, constant=constant), stats


def clipped_tokens(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> tuple[Tensor, Stats]:
    """The loss of each token, [B, T], before any average; 0 where the mask is false.

    The statistics are detached means over the tokens that count: `ratio`, `approximate_kl` (k3 to the old policy),
    `clip_fraction_low` and `clip_fraction_high` (tokens that the clip keeps from moving), `dual_clip_fraction` and
    `zero_advantage_share`. Weigh them by the number of tokens to join batches.
    """
    advantages = per_token(advantages, mask)
    log_ratio = masked_log_ratio(log_probs, old_log_probs, mask)
    losses, stats = surrogate(
        log_ratio.exp(), advantages, mask, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )
    return losses, stats | ratio_stats(log_ratio, advantages, mask)


def surrogate(
    ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> tuple[Tensor, Stats]:
    """The clipped loss of each token for any ratio, all [B, T], and the shares of tokens that a clip holds.

    Advantages as `per_token` gives them, so that the loss is 0 where the mask is false.
    """
    if dual_clip is not None and dual_clip <= 1:
        raise BadInput(f"dual_clip is {dual_clip}, expected a number above 1 (3 is usual), or None for none.")
    low, high = 1 - clip_low, 1 + clip_high
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(low, high))
    beyond = torch.zeros_like(ratio, dtype=torch.bool)
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        beyond = (advantages < 0) & (losses > ceiling)
        losses = torch.where(beyond, ceiling, losses)
    stats = {
        "clip_fraction_low": masked_mean(((ratio < low) & (advantages < 0)).to(ratio), mask),
        "clip_fraction_high": masked_mean(((ratio > high) & (advantages > 0)).to(ratio), mask),
        "dual_clip_fraction": masked_mean(beyond.to(ratio), mask),
    }
    return losses, {name: value.detach() for name, value in stats.items()}


def per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages of responses [B], or of tokens [B, T], as [B, T] with 0 where the mask is false."""
    if advantages.dim() == mask.dim() - 1:
        advantages = advantages.unsqueeze(-1)
    return advantages.where(mask.bool(), 0)


def masked_log_ratio(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Tensor:
    """log p - log p_old within +-20, 0 where the mask is false."""
    return (log_probs - old_log_probs).where(mask.bool(), 0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def ratio_stats(log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Stats:
    """Mean ratio, k3 estimate of KL(p_old || p) and share of tokens without advantage."""
    log_ratio = log_ratio.detach()
    return {
        "ratio": masked_mean(log_ratio.exp(), mask),
        "approximate_kl": masked_mean(log_ratio.expm1() - log_ratio, mask),
        "zero_advantage_share": masked_mean((advantages.detach() == 0).to(log_ratio), mask),
    }


@closed
def kl(
    log_probs: Tensor, reference_log_probs: Tensor, *, estimator: KLEstimator = "k3", mask: Tensor | None = None
) -> Tensor:
    """An estimate of KL(p || p_ref) in nats at each sampled token, of the shape that came in.

    k3 has d within +-20 and its value within +-10, as in verl; beyond, its gradient is 0. Where a mask is given and
    false: 0. Of the gradients only that of k2 (so k3+) is the KL's own; that of k1 is 0 on average: see the head of the
    module.
    """
    difference = log_probs - reference_log_probs
    if mask is not None:
        difference = difference.where(mask.bool(), 0)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    bounded = difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    value = ((-bounded).expm1() + bounded).clamp(max=K3_LIMIT)
    if estimator == "k3":
        return value
    squared = difference.square() / 2
    return value.detach() + (squared - squared.detach())


@closed
def kl_loss(
    log_probs: Tensor,
    reference_log_probs: Tensor,
    mask: Tensor,
    *,
    estimator: KLEstimator = "k3",
    aggregate: Aggregate = "token-mean",
    constant: float | None = None,
) -> Tensor:
    """The average of `kl`, a scalar to be added to the loss with its weight beta. Raises BadInput for k1."""
    check_kl_in_loss(estimator)
    values = kl(log_probs, reference_log_probs, estimator=estimator, mask=mask)
    return average(values, mask, aggregate, constant=constant)


@closed
def check_kl_in_loss(estimator: KLEstimator) -> None:
    """Raises BadInput for k1, which as a loss has no gradient on average and only adds noise."""
    if estimator == "k1":
        raise BadInput(
            "estimator is 'k1', whose gradient is 0 on average in a loss. Choose 'k3+' or 'k2' for the gradient of "
            "KL(policy || reference), 'k3' for that of the other direction, or put k1 into the reward."
        )


def exact_kl(logits: Tensor, reference_logits: Tensor, *, mask: Tensor | None = None, chunk: int = 256) -> Tensor:
    """KL(p || p_ref) in nats over the whole vocabulary, [..., V] -> [...]; 0 where a mask [...] is given and false.

    Works through `chunk` places at a time, forward and backward, so that beside the logits nothing of their size is kept but
    their gradient. Half precision is widened. A token that both exclude (-inf) adds nothing.
    """

    def of(logits: Tensor, reference: Tensor) -> Tensor:
        log_p, log_q = logits.log_softmax(-1), reference.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q).where(log_p > -math.inf, 0)).sum(-1)

    return _by_chunks(of, (logits, reference_logits), mask, chunk)


def gathered_log_probs(
    logits: Tensor, ids: Tensor, *, temperature: float = 1.0, mask: Tensor | None = None, chunk: int = 256
) -> Tensor:
    """Log-probabilities of tokens [..., K] under softmax(logits / temperature), logits [..., V], with the same care.

    Where a mask [...] is given and false, they are those of a uniform distribution.
    """

    def of(logits: Tensor, ids: Tensor) -> Tensor:
        logits = logits / temperature
        return logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)

    return _by_chunks(of, (logits, ids), mask, chunk)


def _by_chunks(
    function: Callable[[Tensor, Tensor], Tensor], tensors: tuple[Tensor, Tensor], mask: Tensor | None, chunk: int
) -> Tensor:
    """A function of the last dimension of both, `chunk` places at a time, computed again in the backward pass.

    It sees floating numbers in float32 at least, and zeros where the mask is false.
    """
    shape = tensors[0].shape[:-1]
    present = torch.ones(shape, dtype=torch.bool, device=tensors[0].device) if mask is None else mask.bool()

    def of(present: Tensor, *pieces: Tensor) -> Tensor:
        return function(*(wide(piece).where(present, 0) for piece in pieces))

    flat = (present.reshape(-1, 1), *(tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors))
    chunks = zip(*(tensor.split(chunk) for tensor in flat), strict=True)
    results = [checkpoint(of, *pieces, use_reentrant=False, preserve_rng_state=False) for pieces in chunks]
    joined = torch.cat(results)  # type: ignore[arg-type]
    return joined.reshape(*shape, *joined.shape[1:])


@closed
def average(values: Tensor, mask: Tensor, mode: Aggregate = "token-mean", *, constant: float | None = None) -> Tensor:
    """The average of values of tokens, [B, T] -> scalar; nan when no token counts."""
    total, weight = aggregate_parts(values, mask, mode, constant=constant)
    return total / weight


@closed
def aggregate_parts(
    values: Tensor, mask: Tensor, mode: Aggregate = "token-mean", *, constant: float | None = None
) -> tuple[Tensor, Tensor]:
    """Sum and weight whose quotient is the average, so that sums of both over micro-batches and processes give it exactly.

    values, mask: [B, T]. The weight is the number of tokens in token-mean, else that of responses with a token; it has no
    gradient. constant: what seq-mean-token-sum-norm divides by, the same for the whole run; raises BadInput without it,
    since the width of a batch, which others take, changes with its padding.
    """
    mask = mask.bool()
    values, lengths = values.where(mask, 0), mask.sum(-1)
    if mode == "token-mean":
        return values.sum(), lengths.sum()
    sums, responses = values.sum(-1), (lengths > 0).sum()
    if mode == "seq-mean-token-mean":
        return (sums / lengths.clamp(min=1)).sum(), responses
    if mode == "seq-mean-token-sum":
        return sums.sum(), responses
    if constant is None:
        raise BadInput("seq-mean-token-sum-norm needs constant=, the maximum length of a response in this run.")
    return sums.sum() / constant, responses


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of [B, T] over the tokens that count; nan when none does."""
    return average(values, mask)


def adapted_kl_weight(
    beta: float, divergence: float, samples: int, *, target: float = 0.1, horizon: int = 10_000
) -> float:
    """beta after `samples` responses with this mean KL: it grows above the target and shrinks below (arXiv:1909.08593)."""
    error = min(max(divergence / target - 1, -0.2), 0.2)
    return beta * (1 + error * samples / horizon)


def wide(tensor: Tensor) -> Tensor:
    """Half precision as float32; other types as they are."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
