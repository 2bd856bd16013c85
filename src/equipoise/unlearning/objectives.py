"""Losses that forget and losses that retain: first on log-probabilities, then on batches of a causal model.

B rows, n labelled tokens of a batch, V vocabulary, D width. log p is natural. S_i is the summed negative log-likelihood of
sequence i over its n_i labelled tokens, S_i,ref that of the frozen starting model.

    GA          - mean over tokens of -log p                     (unbounded below)
    NPO         -(2 / beta) mean_i log sigmoid(beta (S_i - S_i,ref))               arXiv:2404.05868, eq. 3
    SimNPO      -(2 / beta) mean_i log sigmoid(beta (S_i / n_i - delta))           arXiv:2410.07163, eq. 4
    RMU         mean over tokens and dimensions of (h - u)^2, u = c v / ||v||, v ~ Uniform[0, 1)^D     arXiv:2403.03218
    GD retain   mean over tokens of -log p
    KL retain   mean over labelled tokens of KL(p_ref || p); padding is masked (the authors of SAGO average over it)
    RMU retain  mean over tokens and dimensions of (h - h_ref)^2

A loss over batches returns (sum, weight): sequences weigh 1 in NPO and SimNPO, tokens elsewhere. A batch has input_ids,
attention_mask and labels, [B, T]; for NPO also `reference` [B], the frozen model's summed log-likelihoods.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.language.score import labelled_logits
from equipoise.language.states import recording
from equipoise.training.loop import LossFunction

Batch = Mapping[str, Tensor]


def npo(log_likelihood: Tensor, reference: Tensor, beta: float) -> Tensor:
    """NPO of each sequence, [B]. Its gradient is w times that of log p, w = 2 sigmoid(-beta (S - S_ref)): 1 at the start."""
    return -2 / beta * F.logsigmoid(beta * (reference - log_likelihood))


def simnpo(log_likelihood: Tensor, tokens: Tensor, beta: float, delta: float = 0.0) -> Tensor:
    """SimNPO of each sequence, [B]: without reference, normalised by length; delta in nats per token."""
    return -2 / beta * F.logsigmoid(beta * (-log_likelihood / tokens - delta))


def kl(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(p_ref || p) of each row of logits, [n, V] -> [n], in nats."""
    reference, current = _wide(reference_logits).log_softmax(-1), _wide(logits).log_softmax(-1)
    return (reference.exp() * (reference - current)).sum(-1)


def steering_vector(width: int, length: float, generator: torch.Generator) -> Tensor:
    """u = length * v / ||v|| with v ~ Uniform[0, 1)^width, drawn once a run."""
    vector = torch.rand(width, generator=generator)
    return length * vector / vector.norm()


def sequence_log_likelihoods(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed log-likelihood [B] (with graph) and number of labelled tokens [B] of each row."""
    logits, labels, rows = labelled_logits(model, batch)
    tokens = -F.cross_entropy(_wide(logits), labels, reduction="none")
    size = len(batch["labels"])
    sums = torch.zeros(size, dtype=tokens.dtype, device=tokens.device).index_add(0, rows, tokens)
    return sums, torch.bincount(rows, minlength=size)


def gd_loss() -> LossFunction:
    """Cross-entropy on the labelled tokens: what retains, and what teaches."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
        logits, labels, _ = labelled_logits(model, batch)
        return F.cross_entropy(_wide(logits), labels, reduction="sum"), len(labels)

    return loss


def ga_loss() -> LossFunction:
    """Gradient ascent: the negative of `gd_loss`."""
    descent = gd_loss()

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | float]:
        total, weight = descent(model, batch)
        return -total, weight

    return loss


def npo_loss(beta: float) -> LossFunction:
    """NPO; every row of the batch needs its `reference`."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
        sums, _ = sequence_log_likelihoods(model, batch)
        return npo(sums, batch["reference"].to(sums), beta).sum(), len(sums)

    return loss


def simnpo_loss(beta: float, delta: float = 0.0) -> LossFunction:
    """SimNPO."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
        sums, counts = sequence_log_likelihoods(model, batch)
        return simnpo(sums, counts, beta, delta).sum(), len(sums)

    return loss


def kl_loss(frozen: nn.Module) -> LossFunction:
    """KL to the frozen model at the labelled tokens."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
        with torch.no_grad():
            reference, _, _ = labelled_logits(frozen, batch)
        logits, labels, _ = labelled_logits(model, batch)
        return kl(reference, logits).sum(), len(labels)

    return loss


def rmu_loss(block: int, steering: Tensor) -> LossFunction:
    """RMU's forget loss at the output of a block (counted from 0): towards the steering vector [D], over all tokens."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return _distance(_states(model, block, batch), steering, batch["attention_mask"])

    return loss


def rmu_retain_loss(block: int, frozen: nn.Module) -> LossFunction:
    """RMU's retain loss: the states of the frozen model at the same block."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            reference = _states(frozen, block, batch)
        return _distance(_states(model, block, batch), reference, batch["attention_mask"])

    return loss


def rmu_parameters(model: nn.Module, block: int) -> list[nn.Parameter]:
    """What RMU trains: the down-projections of the feed-forward parts of `block` and the two before it."""
    from equipoise.language.states import module_at

    down = [module_at(model, f"block.{index}.mlp.down") for index in range(max(block - 2, 0), block + 1)]
    return [module.get_parameter("weight") for module in down]


def _states(model: nn.Module, block: int, batch: Batch) -> Tensor:
    place = f"block.{block}"
    with recording(model, [place]) as found:
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, logits_to_keep=1)
    return found[place]


def _distance(states: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    squares = (_wide(states) - target.to(states.device)).square().mean(-1)
    return (squares * mask).sum(), mask.sum()


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
