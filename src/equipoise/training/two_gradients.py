"""A training step with two losses: both gradients over the whole window, summed over processes, then combined by a rule.

    f = grad sum_window forget / weight,  r = grad sum_window retain / weight     over all micro-batches and processes
    combine(f, r)                                                                 once, after both are complete

Combining per micro-batch or before the sum over processes would be another rule: the sign of a sum is not the sum of signs.
A parameter that appears twice in the model (tied embeddings) has one gradient and is combined once. Parameters of 16 bits
are accumulated in float32. Memory: one gradient more than an ordinary step, the result is written over the forget gradient.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from equipoise.training.gradients import Reduce, Scratch, conflicts, sum_dtype, work_dtype
from equipoise.training.loop import Batch, LossFunction, mean_gradient
from equipoise.training.sharding import is_sharded, sum_over_processes

# combine(forget, retain, *, forget_weight, retain_weight) -> combined; a rule that also takes `out` and `observe` saves a
# copy of the gradient, one that takes `reduce` gets what sums inner products over the parts of a sharded model.
Combine = Callable[..., Sequence[Tensor | None]]
# Mean and gradient of a loss over batches, as `mean_gradient` has them, but perhaps elsewhere or of another kind.
GradientFunction = Callable[
    [LossFunction, nn.Module, Sequence[nn.Parameter], Sequence[Batch], Accelerator], tuple[Tensor, list[Tensor | None]]
]
GradientAt = Callable[[int], GradientFunction]  # of an optimizer step, from 0
Part = tuple[Tensor, Tensor | float]  # sum and weight, as a loss returns them
# both(model, forget batch, retain batch) -> both losses from one pass, or None where two passes are better
BothLosses = Callable[[nn.Module, Batch, Batch], tuple[Part, Part] | None]

_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")


def plain_gradient(index: int) -> GradientFunction:
    """The gradient itself, at every step."""
    return mean_gradient


class TwoGradients:
    """The step of a forget and a retain loss; a micro-batch of the window is a pair (forget batch, retain batch).

    forget_gradient: what takes the place of the forget loss's gradient (`unlearning.cir`, `unlearning.sharpness`).
    conflicts_every: how often the conflict of the two gradients is logged, in steps; 0 for never. It costs some passes
    over both gradients. groups: whether it is also logged layer by layer. both: only where `combine` is the weighted sum;
    makes one pass of a step of one micro-batch in one process that logs no conflict.
    penalty: of the parameters alone; penalty_weight times it is part of the retain loss, and logged without that as penalty.
    """

    def __init__(
        self,
        forget_loss: LossFunction,
        retain_loss: LossFunction,
        combine: Combine,
        *,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        forget_gradient: GradientAt = plain_gradient,
        conflicts_every: int = 1,
        groups: bool = False,
        both: BothLosses | None = None,
        penalty: Callable[[], Tensor] | None = None,
        penalty_weight: float = 1.0,
    ) -> None:
        self.forget_gradient, self.both = forget_gradient, both
        self.penalty, self.penalty_weight = penalty, penalty_weight
        self.forget_loss, self.retain_loss, self.combine = forget_loss, retain_loss, combine
        self.forget_weight, self.retain_weight = forget_weight, retain_weight
        self.conflicts_every, self.groups = conflicts_every, groups
        self._accepted = inspect.signature(combine).parameters.keys()

    def __call__(
        self, model: nn.Module, window: Sequence[tuple[Batch, Batch]], accelerator: Accelerator, index: int
    ) -> tuple[list[Tensor | None], dict[str, float | Tensor]]:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        parameters = [parameter for _, parameter in named]
        watched = self.conflicts_every > 0 and index % self.conflicts_every == 0
        alone = len(window) == 1 and accelerator.num_processes == 1
        if self.both is not None and self.penalty is None and alone and not watched:
            summed = self._summed(self.both, model, parameters, window[0], accelerator)
            if summed is not None:
                return summed
        forget_loss, forget = self.forget_gradient(index)(
            self.forget_loss, model, parameters, [pair[0] for pair in window], accelerator
        )
        retain_loss, retain = mean_gradient(
            self.retain_loss, model, parameters, [pair[1] for pair in window], accelerator
        )
        losses: dict[str, float | Tensor] = {"forget_loss": forget_loss, "retain_loss": retain_loss}
        if self.penalty is not None:
            # Once a step, after the sum over micro-batches and processes: it knows no batch.
            value = self.penalty()
            added = torch.autograd.grad(self.penalty_weight * value, parameters, allow_unused=True)
            retain = [r if a is None else a if r is None else r + a for r, a in zip(retain, added, strict=True)]
            losses["penalty"] = value.detach()
        reduce = sum_over_processes if is_sharded(model) else None
        seen = Conflicts([layer(name) for name, _ in named], reduce, parameters[0].device) if watched else None
        words: dict[str, Any] = {"forget_weight": self.forget_weight, "retain_weight": self.retain_weight}
        if "reduce" in self._accepted:
            words["reduce"] = reduce
        if {"out", "observe"} <= self._accepted:
            out = [f if f is not None else r for f, r in zip(forget, retain, strict=True)]
            combined = self.combine(forget, retain, **words, out=out, observe=seen)
        else:
            combined = self.combine(forget, retain, **words)
            if seen is not None:
                seen.all(forget, retain, combined)
        return list(combined), losses if seen is None else losses | seen.summary(self.groups)

    def _summed(
        self,
        both: BothLosses,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        pair: tuple[Batch, Batch],
        accelerator: Accelerator,
    ) -> tuple[list[Tensor | None], dict[str, float | Tensor]] | None:
        """The gradient of the weighted sum of both means, and the means."""
        with accelerator.autocast():
            found = both(model, *pair)
        if found is None:
            return None
        forget, retain = (total / weight for total, weight in found)
        accelerator.backward(self.forget_weight * forget + self.retain_weight * retain)
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        return gradients, {"forget_loss": forget.detach(), "retain_loss": retain.detach()}


def layer(name: str) -> str:
    """The layer that a parameter belongs to: "block.7", else its name without "model", "weight" and "bias"."""
    block = _BLOCK.search(name)
    return f"block.{block[1]}" if block else re.sub(r"^((base_)?model\.)+|\.(weight|bias)$", "", name)


class Conflicts:
    """Observes a combination and sums, per layer, what cosines, norms and the share of conflicts are made from.

    reduce: sums over the processes of a sharded model, each of which sees its own part.
    """

    def __init__(self, layers: Sequence[str], reduce: Reduce | None = None, device: torch.device | str = "cpu") -> None:
        self.names = list(dict.fromkeys(layers))
        numbers = {name: group for group, name in enumerate(self.names)}
        self._group = [numbers[name] for name in layers]
        # Per layer the six inner products and the number of conflicts, a row for each piece of gradient.
        self._rows: list[list[Tensor]] = [[] for _ in self.names]
        self._coordinates = [0] * len(self.names)
        self._scratch = Scratch()
        self._reduce, self._device = reduce, torch.device(device)

    def __call__(self, index: int, forget: Tensor, retain: Tensor, combined: Tensor) -> None:
        f, r, g = forget, retain, combined
        opposed = conflicts(f, r, self._scratch("conflict", f)).sum()
        group = self._group[index]
        self._rows[group] += [f.dot(r), f.dot(f), r.dot(r), g.dot(f), g.dot(r), g.dot(g), opposed]
        self._coordinates[group] += f.numel()

    def all(
        self, forget: Sequence[Tensor | None], retain: Sequence[Tensor | None], combined: Sequence[Tensor | None]
    ) -> None:
        """The same for whole lists, of a rule that cannot be observed."""
        for index, gradients in enumerate(zip(forget, retain, combined, strict=True)):
            present = [tensor for tensor in gradients if tensor is not None]
            if present:
                dtype, nothing = work_dtype(*present), torch.zeros_like(present[0])
                f, r, g = (nothing if tensor is None else tensor for tensor in gradients)
                self(index, f.flatten().to(dtype), r.flatten().to(dtype), g.flatten().to(dtype))

    def summary(self, groups: bool = False) -> dict[str, float | Tensor]:
        """Over all parameters, and with `groups` also as "block.7/conflict"; nan where a gradient is zero.

        conflict: share of coordinates with f r < 0. cosine_forget_retain, cosine_update_forget, cosine_update_retain.
        forget_norm, retain_norm, and norm_ratio = ||f|| / ||r||.
        """
        dtype = sum_dtype(self._device)
        sums = torch.zeros(len(self.names), 8, dtype=dtype, device=self._device)
        for own, rows, count in zip(sums, self._rows, self._coordinates, strict=True):
            if rows:
                own[:7] = torch.stack(rows).view(-1, 7).to(dtype).sum(0)
            own[7] = count
        if self._reduce is not None:
            sums = self._reduce(sums)
        counts = self._coordinates if self._reduce is None else sums[:, 7].tolist()
        filled = [group for group, count in enumerate(counts) if count]
        if not filled:
            return {}
        summary: dict[str, float | Tensor] = _figures(sums.sum(0))
        if groups:
            for group in filled:
                figures = _figures(sums[group])
                summary |= {f"{self.names[group]}/{key}": value for key, value in figures.items()}
        return summary


def _figures(sums: Tensor) -> dict[str, float | Tensor]:
    fr, ff, rr, gf, gr, gg, conflicts, coordinates = sums.unbind()
    f, r, g = ff.sqrt(), rr.sqrt(), gg.sqrt()
    return {
        "cosine_forget_retain": fr / (f * r),
        "cosine_update_forget": gf / (g * f),
        "cosine_update_retain": gr / (g * r),
        "conflict": conflicts / coordinates,
        "forget_norm": f,
        "retain_norm": r,
        "norm_ratio": f / r,
    }
