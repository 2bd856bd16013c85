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


class Learner:
    """Named float64 tensors that Adam moves."""

    def __init__(self, learning_rate: float, **tensors: Tensor) -> None:
        self.tensors = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        self._adam = torch.optim.Adam(list(self.tensors.values()), lr=learning_rate)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def step(self, loss: Tensor, *names: str) -> None:
        """One step down a loss, of the tensors of these names; of all where none is named."""
        moved = [self.tensors[name] for name in names or self.tensors]
        self._adam.zero_grad()
        for tensor, gradient in zip(moved, torch.autograd.grad(loss, moved), strict=True):
            tensor.grad = gradient
        self._adam.step()

    def state(self) -> dict[str, Any]:
        """Tensors and Adam's moments, for a checkpoint."""
        return {"tensors": {name: each.detach() for name, each in self.tensors.items()}, "adam": self._adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(state["tensors"][name])
        self._adam.load_state_dict(state["adam"])
