"""Forget losses token by token: ascent weighed by certainty, and distillation to what is left without the labelled token.

n labelled tokens of a batch, V vocabulary; z logits, p = softmax(z), p_y the probability of the labelled token, e_y its unit
vector, H(q, p) = - sum_v q_v log p_v. What stands in [] is held constant: no gradient goes through it.

                loss of a token                             its gradient in z
    WGA         [p_y^beta] log p_y                          p_y^beta (e_y - p)                            arXiv:2502.19301
    SatImp      [p_y^beta1 (1 - p_y)^beta2] log p_y         p_y^beta1 (1 - p_y)^beta2 (e_y - p)   arXiv:2505.11953, sec. 5
    UNDIAL      H(q, p), q = softmax(z_ref - beta e_y)      p - q                                         arXiv:2402.10052
    CE-U        H([q], p), q = softmax(z - inf e_y)         p - q = p_y (e_y - q)                         arXiv:2503.01224

GA is WGA with beta = 0 and SatImp with 0 and 0. z_ref are the starting model's logits. CE-U is H(q) - log(1 - p_y), and its
gradient that of -log(1 - p_y), the unlikelihood of arXiv:1908.04319. Each is a mean over the labelled tokens.

Released code (open-unlearning) averages UNDIAL over every place, prompts and padding too, and there takes the label of what
is not labelled, -100, for token V - 100. Its CE-U leaves the first token of each answer alone; an answer of one token would
never be forgotten.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equipoise.language.score import labelled_logits
from equipoise.training.loop import LossFunction
from equipoise.training.reference import ReferenceModel
from equipoise.unlearning.objectives import Batch, LabelledLoss, Objective, weighed, wide
from equipoise.unlearning.recipe import METHODS, OBJECTIVES


def wga(log_probability: Tensor, beta: float) -> Tensor:
    """WGA of each token, log p_y [n] -> [n]; beta >= 0. A token that is forgotten already counts less."""
    return (beta * log_probability.detach()).exp() * log_probability


def satimp(log_probability: Tensor, beta1: float, beta2: float) -> Tensor:
    """SatImp of each token, log p_y [n] -> [n]; beta1, beta2 >= 0. Most weight is at p_y = beta1 / (beta1 + beta2)."""
    known = log_probability.detach()
    saturation, importance = (beta1 * known).exp(), (-torch.expm1(known)).clamp(min=0) ** beta2
    return saturation * importance * log_probability


def undial(reference_logits: Tensor, logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """UNDIAL of each token, the starting model's logits [n, V], the model's [n, V] and labels [n] -> [n], in nats."""
    return cross_entropy_to(lowered(reference_logits, labels, beta), logits)


def ce_u(logits: Tensor, labels: Tensor) -> Tensor:
    """CE-U of each token, [n, V] and [n] -> [n], in nats."""
    return cross_entropy_to(lowered(logits, labels, math.inf), logits)


def lowered(logits: Tensor, labels: Tensor, by: float) -> Tensor:
    """Logits [n, V] with each row's labelled one less by `by`, which may be inf; in float32 or float64."""
    values = wide(logits)
    return values.scatter_add(-1, labels.unsqueeze(-1), values.new_full((len(labels), 1), -by))


def cross_entropy_to(target_logits: Tensor, logits: Tensor) -> Tensor:
    """H(softmax(target), softmax(logits)) of each row, [n, V] twice -> [n], in nats. No gradient goes to the target."""
    return F.cross_entropy(wide(logits), wide(target_logits).detach().softmax(-1), reduction="none")


def wga_loss(beta: float) -> LossFunction:
    """WGA on the labelled tokens."""
    return _over_tokens(lambda logits, labels, batch: wga(_log_probability(logits, labels), beta))


def satimp_loss(beta1: float, beta2: float) -> LossFunction:
    """SatImp on the labelled tokens."""
    return _over_tokens(lambda logits, labels, batch: satimp(_log_probability(logits, labels), beta1, beta2))


def undial_loss(beta: float, frozen: nn.Module | ReferenceModel) -> LossFunction:
    """UNDIAL on the labelled tokens; a pass through the frozen starting model each time."""

    def tokens(logits: Tensor, labels: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            reference, _, _ = labelled_logits(frozen, batch)
        return undial(reference, logits, labels, beta)

    return _over_tokens(tokens)


def ce_u_loss() -> LossFunction:
    """CE-U on the labelled tokens."""
    return _over_tokens(lambda logits, labels, batch: ce_u(logits, labels))


def _over_tokens(of: Callable[[Tensor, Tensor, Batch], Tensor]) -> LossFunction:
    """The sum over labelled tokens of what `of` gives for each, with the rows' weights, and how many there are."""

    def loss(logits: Tensor, labels: Tensor, rows: Tensor, batch: Batch) -> tuple[Tensor, float]:
        return weighed(of(logits, labels, batch), batch, rows).sum(), len(labels)

    return LabelledLoss(loss)


def _log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    return -F.cross_entropy(wide(logits), labels, reduction="none")


OBJECTIVES.register(
    "wga",
    Objective(loss=lambda recipe, model, seen: wga_loss(recipe.resolved_beta), settings=("beta",), beta=1.0),
)
OBJECTIVES.register(
    "satimp",
    Objective(
        loss=lambda recipe, model, seen: satimp_loss(recipe.beta1, recipe.beta2),
        settings=("beta1", "beta2"),
    ),
)
OBJECTIVES.register(
    "undial",
    Objective(
        loss=lambda recipe, model, seen: undial_loss(recipe.resolved_beta, ReferenceModel(model)),
        settings=("beta",),
        beta=10.0,
        distills=True,
    ),
)
OBJECTIVES.register("ce-u", Objective(loss=lambda recipe, model, seen: ce_u_loss()))
METHODS.register("wga", {"objective": "wga", "combine": "sum"})
METHODS.register("satimp", {"objective": "satimp", "combine": "sum", "forget_weight": 0.1})  # as released
METHODS.register("undial", {"objective": "undial", "combine": "sum"})
METHODS.register("ce-u", {"objective": "ce-u", "combine": "sum"})
