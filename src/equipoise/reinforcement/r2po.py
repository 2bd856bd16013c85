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

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.core.errors import BadInput
from equipoise.reinforcement.group_baselines import grpo
from equipoise.reinforcement.recipe import ADVANTAGES, METHODS, Advantage


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


class RolloutHead(nn.Module):
    """The output matrix of a causal model with a residual beside it, z + W2 relu(W1 h), which only rollouts see.

        head = RolloutHead.attach(language_model.model, seed=0)
        with head.rollouts():
            roll_out(language_model, ...)          samples from softmax((z + u) / T)
        head.detach()                              the model as it was, all that it learnt meanwhile in it

    Outside `rollouts()` the model gives z, to the bit. W1 is drawn, W2 is 0, so that u begins at 0 and W2 learns from the
    first step; with a `scale` W2 is drawn with that standard deviation (the control of a random head). Its parameters are
    H^2 + H V (H width, V vocabulary); where the embeddings are tied, W2 is not.
    """

    def __init__(self, base: nn.Module, first: Tensor, second: Tensor) -> None:
        """base: the output matrix; first: W1 [H, H]; second: W2 [V, H]. Raises BadInput when both are 0."""
        super().__init__()
        if not first.any() and not second.any():
            raise BadInput("W1 and W2 are both 0, where neither has a gradient: draw one of them.")
        self.base = base
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)
        self.active = False
        self._model: tuple[Any, ...] = ()  # in a tuple, which is no submodule

    @classmethod
    def attach(cls, model: Any, *, seed: int, scale: float = 0.0) -> RolloutHead:
        """Put a new head on a model's output matrix. Raises BadInput for a model that has one, or has no output matrix."""
        base = _output_matrix(model)
        vocabulary, width = base.weight.shape
        generator = torch.Generator().manual_seed(seed)
        first = 0.02 * torch.randn(width, width, generator=generator)
        second = scale * torch.randn(vocabulary, width, generator=generator)
        return cls(base, first.to(base.weight), second.to(base.weight))._onto(model)

    def _onto(self, model: Any) -> RolloutHead:
        _bare(model).set_output_embeddings(self)
        self._model = (_bare(model),)
        return self

    def detach(self) -> None:
        """Give the model its own output matrix back. Raises BadInput when the head is on none."""
        if not self._model:
            raise BadInput("this rollout head is on no model: it was detached before.")
        self._model[0].set_output_embeddings(self.base)
        self._model = ()

    @contextmanager
    def rollouts(self) -> Iterator[None]:
        """Inside, the model's logits are z + u."""
        before, self.active = self.active, True
        try:
            yield
        finally:
            self.active = before

    def residual(self, states: Tensor) -> Tensor:
        """u of states [..., H], [..., V]."""
        return functional.linear(functional.linear(states, self.first).relu(), self.second)

    def forward(self, states: Tensor) -> Tensor:
        """Logits [..., V] of states [..., H]: z, and inside `rollouts()` z + u."""
        logits = self.base(states)
        return logits + self.residual(states) if self.active else logits

    @property
    def weight(self) -> Any:
        """The base output matrix's, where transformers looks for it."""
        return self.base.weight

    def own_parameters(self) -> list[nn.Parameter]:
        """W1 and W2."""
        return [self.first, self.second]

    def save(self, path: str | Path) -> None:
        """W1 and W2 in a safetensors file."""
        from safetensors.torch import save_file

        save_file({"first": self.first.detach().cpu(), "second": self.second.detach().cpu()}, path)

    @classmethod
    def load(cls, model: Any, path: str | Path) -> RolloutHead:
        """Put a saved head on a model. Raises BadInput when it does not fit."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        base = _output_matrix(model)
        vocabulary, width = base.weight.shape
        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{path} is no rollout head ({str(error).splitlines()[0]}).") from error
        shapes = {name: tuple(each.shape) for name, each in found.items()}
        if shapes != {"first": (width, width), "second": (vocabulary, width)}:
            raise BadInput(f"{path} is no rollout head for an output matrix of {(vocabulary, width)}.")
        return cls(base, found["first"].to(base.weight), found["second"].to(base.weight))._onto(model)


def _output_matrix(model: Any) -> Any:
    base = _bare(model).get_output_embeddings()
    if base is None or isinstance(base, RolloutHead):
        raise BadInput(
            f"{type(model).__name__} has {'no output matrix' if base is None else 'a rollout head already'}."
        )
    return base


def _bare(model: Any) -> Any:
    """The model under an adapter's wrapper, whose output matrix cannot be set."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


ADVANTAGES.register("r2po", Advantage(compute=lambda step, recipe: task_advantages(step.rewards), least=2))
METHODS.register("r2po", {"advantage": "r2po", "head": "trained", "kl_beta": 0.04, "aggregate": "seq-mean-token-mean"})
