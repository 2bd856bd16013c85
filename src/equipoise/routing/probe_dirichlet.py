"""ProbeDirichlet (arXiv:2602.11877): a linear probe on a weighted mean of layers whose weights are noisy in training.

    beta = exp(g) softmax(a)                                   the same for every prompt; B = sum beta = exp(g)
    training: alpha ~ Dirichlet(beta), one draw an example, reparameterised
    scoring:  alpha = beta / B = softmax(a)
    score = sigmoid(w . sum_l alpha_l z_l + b)                 BCE alone; no prior on beta

a in R^L and g start at 1. What training adds to softmax fusion is, to second order, a penalty on layers that disagree: with
q_l = w . z_l + b and m = softmax(a)

    E BCE = BCE at the mean + p (1 - p) Var / 2,    Var = [sum m_l q_l^2 - (sum m_l q_l)^2] / (B + 1)

so that g -> infinity is softmax fusion. Where the paper's overview writes beta(x), its code has one beta for all prompts.
Differs from the code: w and b start at 0, and the learning rate (`routing.probes`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from equipoise.routing.probes import ProbeSoftmax


def concentration(a: Tensor, g: Tensor) -> Tensor:
    """beta, [L], positive; sums to exp(g)."""
    return g.exp() * a.softmax(dim=0)


def draw(a: Tensor, g: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """alpha ~ Dirichlet(beta), [n, L], each row on its own; gradients reach a and g. Drawn in float64, given as a is."""
    beta = concentration(a.double(), g.double())
    # torch's distributions take no generator: they are drawn inside a fork of its own random state.
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return torch.distributions.Dirichlet(beta).rsample(torch.Size([n])).to(a.dtype)


class ProbeDirichlet(ProbeSoftmax):
    """The layers' weights are drawn in training, for each prompt anew, and their mean is used to score."""

    kind = "dirichlet"

    def _noise(self) -> Callable[[Tensor, Tensor, int, torch.Generator], Tensor]:
        return draw

    def _concentration(self, fitted: dict[str, Any]) -> float:
        return float(fitted["g"])
