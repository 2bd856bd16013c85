"""Steps of one length, as CIR and MCU take them (arXiv:2509.11816; the code of arXiv:2605.11685).

    W <- W - length f / ||f||                  f: forget gradient over all trained parameters
    W <- W - retain_learning_rate r            r: retain gradient at the weights that this leaves

There is no momentum, no schedule and no combination of the two: the loop's optimizer is plain SGD with a rate of 1, and what
it gets is the sum of both moves. Where the forget gradient is zero (MLP breaking stops there) nothing is forgotten.
"""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from equipoise.training.gradients import joint_norm
from equipoise.training.loop import Batch, LossFunction, mean_gradient
from equipoise.training.two_gradients import GradientAt, plain_gradient
from equipoise.unlearning.sharpness import displaced


class FixedLength:
    """The step; a micro-batch of the window is a pair (forget batch, retain batch)."""

    def __init__(
        self,
        forget_loss: LossFunction,
        retain_loss: LossFunction,
        *,
        length: float,
        retain_learning_rate: float,
        forget_gradient: GradientAt = plain_gradient,
    ) -> None:
        self.forget_loss, self.retain_loss, self.forget_gradient = forget_loss, retain_loss, forget_gradient
        self.length, self.retain_learning_rate = length, retain_learning_rate

    def __call__(
        self, model: nn.Module, window: Sequence[tuple[Batch, Batch]], accelerator: Accelerator, index: int
    ) -> tuple[list[Tensor | None], dict[str, float | Tensor]]:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        forget_loss, forget = self.forget_gradient(index)(
            self.forget_loss, model, parameters, [pair[0] for pair in window], accelerator
        )
        norm = joint_norm(forget)
        factor = torch.where(norm == 0, 0.0, self.length / norm)
        with displaced(parameters, forget, -factor):
            retain_loss, retain = mean_gradient(
                self.retain_loss, model, parameters, [pair[1] for pair in window], accelerator
            )
        update = [_sum(f, factor, r, self.retain_learning_rate) for f, r in zip(forget, retain, strict=True)]
        retain_norm = joint_norm(retain)
        return update, {
            "forget_loss": forget_loss,
            "retain_loss": retain_loss,
            "forget_norm": norm,
            "retain_norm": retain_norm,
        }


def _sum(forget: Tensor | None, factor: Tensor, retain: Tensor | None, rate: float) -> Tensor | None:
    moves = [tensor * scale for tensor, scale in ((forget, factor), (retain, rate)) if tensor is not None]
    return moves[0] if len(moves) == 1 else moves[0] + moves[1] if moves else None
