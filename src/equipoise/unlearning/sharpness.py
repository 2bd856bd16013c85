"""Forget gradients taken beside the weights, so that forgetting lasts: SAM and random smoothing (arXiv:2502.05374).

f: the forget loss at weights W, g = grad f(W), over all trained parameters together.

    SAM         grad f(W + rho g / ||g||)                  uphill: where the model is made to remember, forget there, too
    smoothing   mean over three e ~ N(0, rho^2) of grad f(W + e)

Minimizing f forgets, so SAM's step raises f: it goes towards remembering, as a relearning attack would. Both are for any
forget loss and any rule that combines it with the retain gradient, which stays that of W. Afterwards the weights are what
they were, bit by bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from equipoise.core.streams import torch_stream
from equipoise.training.gradients import Gradients, joint_norm
from equipoise.training.loop import Batch, LossFunction
from equipoise.training.two_gradients import GradientAt, GradientFunction, plain_gradient
from equipoise.unlearning.recipe import METHODS

DRAWS = 3  # of smoothing, as released


@contextmanager
def displaced(parameters: Sequence[nn.Parameter], by: Gradients, factor: Tensor | float = 1.0) -> Iterator[None]:
    """Inside, each parameter has factor * by added; on leaving, also by an exception, it is what it was, bit by bit."""
    kept = [
        None if shift is None else parameter.detach().clone() for parameter, shift in zip(parameters, by, strict=True)
    ]
    try:
        with torch.no_grad():
            for parameter, shift in zip(parameters, by, strict=True):
                if shift is not None:
                    parameter.copy_(parameter + factor * shift.to(torch.promote_types(shift.dtype, torch.float32)))
        yield
    finally:
        with torch.no_grad():
            for parameter, own in zip(parameters, kept, strict=True):
                if own is not None:
                    parameter.copy_(own)


def sam(rho: float, of: GradientAt = plain_gradient) -> GradientAt:
    """The gradient at rho uphill along itself; the loss is that at the weights."""

    def at(index: int) -> GradientFunction:
        def gradient(
            loss: LossFunction,
            model: nn.Module,
            parameters: Sequence[nn.Parameter],
            batches: Sequence[Batch],
            accelerator: Accelerator,
        ) -> tuple[Tensor, list[Tensor | None]]:
            mean, here = of(index)(loss, model, parameters, batches, accelerator)
            norm = joint_norm(here)
            # A gradient of zero has no direction; one that is no number must reach the loop, which refuses it.
            factor = torch.where(norm == 0, 0.0, rho / norm)
            with displaced(parameters, here, factor):
                _, there = of(index)(loss, model, parameters, batches, accelerator)
            return mean, there

        return gradient

    return at


def smoothing(rho: float, seed: int, of: GradientAt = plain_gradient, draws: int = DRAWS) -> GradientAt:
    """The mean gradient over random places around, the same in every process; the loss is the mean there."""

    def at(index: int) -> GradientFunction:
        def gradient(
            loss: LossFunction,
            model: nn.Module,
            parameters: Sequence[nn.Parameter],
            batches: Sequence[Batch],
            accelerator: Accelerator,
        ) -> tuple[Tensor, list[Tensor | None]]:
            total: Tensor | float = 0.0
            sums: list[Tensor | None] = [None] * len(parameters)
            for draw in range(draws):
                # 4 keeps these draws apart from those of training.order and training.loop.
                generator = torch_stream(seed, 4, index, draw)
                noise: list[Tensor | None] = [
                    torch.randn(parameter.shape, generator=generator).to(parameter.device) for parameter in parameters
                ]
                with displaced(parameters, noise, rho):
                    mean, there = of(index)(loss, model, parameters, batches, accelerator)
                total = total + mean / draws
                for place, own in enumerate(there):
                    if own is not None:
                        known = sums[place]
                        sums[place] = own / draws if known is None else known + own / draws
            return torch.as_tensor(total), sums

        return gradient

    return at


METHODS.register("npo-sam", {"objective": "npo", "combine": "sum", "robust": "sam"})
METHODS.register("npo-smoothing", {"objective": "npo", "combine": "sum", "robust": "smoothing"})
