"""What the exact worlds share: small problems in which success probabilities and Pass@k are computed, not sampled.

`worlds_sequences` (SPPO), `worlds_strategies` (APO) and `worlds_habit` (R2PO) are the worlds. All are float64 and a policy
there is a table or a linear map, so that a run takes seconds; advantages and losses are those that a language model is
trained with. What an update draws depends on the seed and the update's number only: arms of a seed meet the same prompts
and the same random numbers, and a run that resumes goes on as if it had not stopped.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def draws(seed: int, *key: int) -> np.random.Generator:
    """The generator of one purpose, such as (UPDATE, number): independent of what else was drawn."""
    return np.random.default_rng(np.random.SeedSequence([seed, *key]))


def sample(log_probs: Tensor, uniforms: np.ndarray) -> Tensor:
    """One token for each uniform number of [0, 1), by the inverse of the distribution: log_probs [..., V] -> [...]."""
    cumulative = log_probs.detach().exp().cumsum(-1)
    threshold = torch.from_numpy(uniforms).unsqueeze(-1) * cumulative[..., -1:]
    return (cumulative <= threshold).sum(-1).clamp(max=log_probs.shape[-1] - 1)


def pass_at(success: Tensor, k: int) -> Tensor:
    """1 - (1 - p)^k of each problem: the chance that one of k answers is right, when each is with probability p."""
    return -torch.expm1(k * torch.log1p(-success.clamp(max=1.0)))


def expected_brier(predicted: Tensor, success: Tensor) -> float:
    """The mean squared error of predictions [P] on answers that are right with probability success [P], exact."""
    return (success * (1 - predicted).square() + (1 - success) * predicted.square()).mean().item()


def spearman(one: Tensor, other: Tensor) -> float:
    """Rank correlation of two [N], equal values at the mean of their ranks; nan where one of them is constant."""
    ranks = []
    for values in (one, other):
        _, place, counts = np.unique(values.numpy(), return_inverse=True, return_counts=True)
        ranks.append((counts.cumsum() - (counts - 1) / 2)[place])
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(*ranks)[0, 1])


class Learner:
    """Named float64 tensors that Adam moves (arXiv:1412.6980, algorithm 1, with its defaults).

    Not torch.optim: what that imports at its first use takes longer than many a run.
    """

    def __init__(self, learning_rate: float, **tensors: Tensor) -> None:
        self.learning_rate = learning_rate
        self.tensors = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        self._moments = {name: (torch.zeros_like(each), torch.zeros_like(each)) for name, each in tensors.items()}
        self._steps = dict.fromkeys(tensors, 0)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def step(self, loss: Tensor, *names: str) -> None:
        """One step down a loss, of the tensors of these names; of all where none is named."""
        names = names or tuple(self.tensors)
        gradients = torch.autograd.grad(loss, [self.tensors[name] for name in names])
        for name, gradient in zip(names, gradients, strict=True):
            self._steps[name] += 1
            first, second = self._moments[name]
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.001)
            corrections = 1 - 0.9 ** self._steps[name], 1 - 0.999 ** self._steps[name]
            spread = (second / corrections[1]).sqrt_().add_(1e-8)
            self.tensors[name].data.addcdiv_(first, spread, value=-self.learning_rate / corrections[0])

    def state(self) -> dict[str, Any]:
        """Tensors, their moments and how often each was moved, for a checkpoint."""
        tensors = {name: each.detach() for name, each in self.tensors.items()}
        return {"tensors": tensors, "moments": self._moments, "steps": self._steps}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.tensors = {name: each.clone().requires_grad_() for name, each in state["tensors"].items()}
        self._moments = {name: tuple(each.clone() for each in pair) for name, pair in state["moments"].items()}
        self._steps = dict(state["steps"])
