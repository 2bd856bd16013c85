"""A training step with two losses: both gradients over the whole window, reduced over processes, then combined by a rule.

    f = grad sum_window forget / weight,  r = grad sum_window retain / weight     summed over micro-batches and processes
    .grad = combine(f, r)                                                         once, after both are complete

Combining per micro-batch or before the reduction would be another rule: the sign of a sum is not the sum of signs.
A parameter that appears twice in the model (tied embeddings) has one gradient and is combined once. Parameters of lower
precision are accumulated in float32. Memory: one gradient more than an ordinary step.
"""

import re
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from equipoise.training.loop import Batch, LossFunction

Combine = Callable[..., list[Tensor | None]]  # combine(forget, retain, *, forget_weight, retain_weight, out, observe)

_BLOCK = re.compile(r"\.(\d+)\.")
# Columns of the sums that the conflict log is made from.
_FR, _FF, _RR, _GF, _GR, _GG, _CONFLICTS, _COUNT = range(8)


class TwoGradients:
    """The step of a forget and a retain loss; a micro-batch of the window is a pair (forget batch, retain batch).

    conflicts_every: how often the conflict of the two gradients is logged, in steps; 0 for never. It costs some passes
    over both gradients. groups: whether it is also logged layer by layer.
    """

    def __init__(
        self,
        forget_loss: LossFunction,
        retain_loss: LossFunction,
        combine: Combine,
        *,
        forget_weight: float = 1.0,
        retain_weight: float = 1.0,
        conflicts_every: int = 1,
        groups: bool = False,
    ) -> None:
        self.forget_loss, self.retain_loss, self.combine = forget_loss, retain_loss, combine
        self.forget_weight, self.retain_weight = forget_weight, retain_weight
        self.conflicts_every, self.groups = conflicts_every, groups
        self._steps = 0

    def __call__(
        self, model: nn.Module, window: Sequence[tuple[Batch, Batch]], accelerator: Accelerator
    ) -> dict[str, float | Tensor]:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        parameters = [parameter for _, parameter in named]
        forget_loss, forget = gradient(self.forget_loss, model, parameters, [pair[0] for pair in window], accelerator)
        retain_loss, retain = gradient(self.retain_loss, model, parameters, [pair[1] for pair in window], accelerator)
        watched = self.conflicts_every > 0 and self._steps % self.conflicts_every == 0
        self._steps += 1
        conflicts = Conflicts([layer(name) for name, _ in named], accelerator.device) if watched else None
        combined = self.combine(
            forget,
            retain,
            forget_weight=self.forget_weight,
            retain_weight=self.retain_weight,
            out=[f if f is not None else r for f, r in zip(forget, retain, strict=True)],
            observe=conflicts,
        )
        for parameter, update in zip(parameters, combined, strict=True):
            parameter.grad = None if update is None else update.to(parameter.dtype)
        losses: dict[str, float | Tensor] = {"forget_loss": forget_loss, "retain_loss": retain_loss}
        return losses if conflicts is None else losses | conflicts.summary(self.groups)


def gradient(
    loss: LossFunction,
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Sequence[Batch],
    accelerator: Accelerator,
) -> tuple[Tensor, list[Tensor | None]]:
    """Weighted mean of the loss and its gradient over `batches` of all processes; leaves every .grad None.

    None for a parameter that the loss does not reach in any process.
    """
    low = any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in parameters)
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
    totals = torch.zeros(2, dtype=dtype, device=accelerator.device)
    sums: list[Tensor | None] = [None] * len(parameters)
    for batch in batches:
        part, weight = loss(model, batch)
        accelerator.backward(part)
        totals += torch.stack([part.detach().to(dtype), torch.as_tensor(weight, dtype=dtype, device=part.device)])
        if low:
            _collect(sums, parameters)
    if not low:
        _collect(sums, parameters)
    if accelerator.num_processes > 1:
        totals = accelerator.reduce(totals, "sum")
        sums = _reduced(sums, parameters, accelerator)
    total, weight = totals.unbind()
    for each in sums:
        if each is not None:
            each.div_(weight)
    return total / weight, sums


def _collect(sums: list[Tensor | None], parameters: Sequence[nn.Parameter]) -> None:
    for index, parameter in enumerate(parameters):
        if parameter.grad is None:
            continue
        grad, parameter.grad = parameter.grad, None
        wide = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
        sums[index] = wide if sums[index] is None else sums[index].add_(wide)  # type: ignore[union-attr]


def _reduced(
    sums: Sequence[Tensor | None], parameters: Sequence[nn.Parameter], accelerator: Accelerator
) -> list[Tensor | None]:
    """Summed over processes; a process that has nothing for a parameter takes part with zeros."""
    there = torch.tensor([each is not None for each in sums], dtype=torch.float32, device=accelerator.device)
    anywhere = accelerator.reduce(there, "sum").tolist()
    return [
        accelerator.reduce(torch.zeros_like(parameter, dtype=torch.float32) if each is None else each, "sum")
        if count
        else None
        for each, parameter, count in zip(sums, parameters, anywhere, strict=True)
    ]  # type: ignore[return-value]


def layer(name: str) -> str:
    """The layer that a parameter belongs to: "block.7", else its name without "weight" and "bias"."""
    block = _BLOCK.search(name)
    return f"block.{block[1]}" if block else re.sub(r"(^(base_)?model\.)+|\.(weight|bias)$", "", name)


class Conflicts:
    """Observes a combination and sums, per layer, what cosines, norms and the share of conflicts are made from."""

    def __init__(self, layers: Sequence[str], device: torch.device) -> None:
        self.names = list(dict.fromkeys(layers))
        places = {name: place for place, name in enumerate(self.names)}
        self._place = [places[name] for name in layers]
        self._rows: list[list[Tensor]] = [[] for _ in self.names]
        self.device = device

    def __call__(self, index: int, forget: Tensor, retain: Tensor, combined: Tensor) -> None:
        f, r, g = forget, retain, combined
        conflicts = ((f > 0) & (r < 0)) | ((f < 0) & (r > 0))
        row = [f.dot(r), f.dot(f), r.dot(r), g.dot(f), g.dot(r), g.dot(g), conflicts.sum().to(f.dtype)]
        self._rows[self._place[index]].append(torch.stack([*row, torch.full_like(row[0], f.numel())]))

    def summary(self, groups: bool = False) -> dict[str, float | Tensor]:
        """Over all parameters, and with `groups` also as "block.7/conflict": cosines nan where a gradient is zero.

        conflict: share of coordinates with f r < 0. cosine_forget_retain, cosine_update_forget, cosine_update_retain.
        forget_norm, retain_norm, and norm_ratio = ||f|| / ||r||.
        """
        sums = torch.stack([torch.stack(rows).to(torch.float32).sum(0) for rows in self._rows if rows])
        found: dict[str, float | Tensor] = dict(_figures(sums.sum(0)))
        if groups:
            names = [name for name, rows in zip(self.names, self._rows, strict=True) if rows]
            for name, row in zip(names, sums, strict=True):
                found |= {f"{name}/{key}": value for key, value in _figures(row).items()}
        return found


def _figures(sums: Tensor) -> dict[str, Tensor]:
    f, r, g = sums[_FF].sqrt(), sums[_RR].sqrt(), sums[_GG].sqrt()
    return {
        "cosine_forget_retain": sums[_FR] / (f * r),
        "cosine_update_forget": sums[_GF] / (g * f),
        "cosine_update_retain": sums[_GR] / (g * r),
        "conflict": sums[_CONFLICTS] / sums[_COUNT],
        "forget_norm": f,
        "retain_norm": r,
        "norm_ratio": f / r,
    }
