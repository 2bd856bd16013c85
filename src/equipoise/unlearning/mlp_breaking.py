"""MLP breaking (arXiv:2509.11816, as in the code of arXiv:2605.11685): turn what feed-forward parts say of the forget set.

o_t: output of a block's feed-forward part at token t now, o*_t: in the original model; h, h*: after the last such block.

    s = mean_t ||o*_t||,  L = mean over blocks of mean_t max(0, <o_t, o*_t> / s^2)      at first at least 1, and stops at 0
    retain: mean_t ||h_t - h*_t|| / mean_t ||h*_t||                                     over all tokens of retain texts

With MCU (`unlearning.mcu`) o, o* and s are those of projected outputs. Padding and a text's first token do not count in L.

Differs from the released code: s is the mean over the whole forget set, not over a batch, so that a batch may be split into
micro-batches; the retain loss is the ratio of sums over the whole batch for the same reason.
"""

import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput
from equipoise.language.states import blocks
from equipoise.training.loop import LossFunction
from equipoise.training.reference import ReferenceModel
from equipoise.unlearning.mcu import Representations
from equipoise.unlearning.objectives import Batch, Objective, block_states, counted, states_at, weighed, wide
from equipoise.unlearning.recipe import METHODS, OBJECTIVES, Recipe

SHALLOW = 8  # blocks; what so small a model knows is in all of them


def breaking(outputs: Tensor, originals: Tensor, length: Tensor | float | None = None) -> Tensor:
    """max(0, <o, o*> / s^2) of each token, [..., D] -> [...]; length: s, when not given that of these tokens."""
    if length is None:
        length = originals.norm(dim=-1).mean()
    return (outputs * originals).sum(-1).clamp(min=0) / length**2


def mlp_breaking_loss(places: list[str], frozen: nn.Module | ReferenceModel, seen: Representations) -> LossFunction:
    """The mean over places of the tokens' losses; of all gradients only that through the current outputs flows."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            originals = states_at(frozen, places, batch)
        outputs, kept = states_at(model, places, batch), counted(batch)
        tokens = [
            breaking(seen.project(place, wide(outputs[place])), seen.project(place, wide(originals[place])), length)
            for place in places
            for length in (seen.lengths[place],)
        ]
        return weighed(torch.stack(tokens).mean(0) * kept, batch).sum(), kept.sum()

    return loss


def state_retain_loss(block: int, frozen: nn.Module | ReferenceModel) -> LossFunction:
    """How far the states after a block are from those of the frozen model, relative to the length of these."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            originals = wide(block_states(frozen, block, batch))
        states, mask = wide(block_states(model, block, batch)), batch["attention_mask"]
        return ((states - originals).norm(dim=-1) * mask).sum(), (originals.norm(dim=-1) * mask).sum()

    return loss


def broken_blocks(recipe: Recipe, model: nn.Module) -> range:
    """The recipe's blocks, counted from 0; those not given lie as deep as 6 to 11 of 32, and are all of up to 8.

    Raises BadInput for a block that the model does not have.
    """
    depth = len(blocks(model))
    first, last = (0, depth - 1) if depth <= SHALLOW else (round(6 / 32 * depth), round(12 / 32 * depth) - 1)
    if recipe.first_block is not None:
        first = recipe.first_block
        last = max(first, last)
    if recipe.last_block is not None:
        last = recipe.last_block
        first = min(first, last) if recipe.first_block is None else first
    if not first <= last < depth:
        raise BadInput(
            f"first_block {first} and last_block {last}: the model has {depth} blocks, counted from 0, and the first must "
            "not lie behind the last."
        )
    return range(first, last + 1)


def broken_places(recipe: Recipe, model: nn.Module) -> list[str]:
    """Where MLP breaking looks."""
    return [f"block.{index}.mlp" for index in broken_blocks(recipe, model)]


def _loss(recipe: Recipe, model: nn.Module, seen: Representations | None) -> LossFunction:
    if seen is None:
        raise BadInput(
            "mlp-breaking needs what the starting model represents of the forget set: give losses() that set."
        )
    return mlp_breaking_loss(broken_places(recipe, model), ReferenceModel(model), seen)


OBJECTIVES.register(
    "mlp-breaking",
    Objective(
        loss=_loss,
        retain=lambda recipe, model: state_retain_loss(broken_blocks(recipe, model)[-1], ReferenceModel(model)),
        settings=("first_block", "last_block"),
        places=broken_places,
        measures=True,
    ),
)
METHODS.register(
    "mlp-breaking",
    {
        "objective": "mlp-breaking",
        "parameters": "mlp",
        "gradient_filter": "cir",
        "update": "fixed-length",
        "loss_budget": 0.05,
    },
)
