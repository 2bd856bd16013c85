"""Relearning: an attacker trains on a few of the forgotten records, and others come back that were not among them.

    for each step: a batch of the records, cross-entropy on their labelled tokens, one step of AdamW or of plain SGD

Protocol of Deeb and Roger (arXiv:2410.08827), as the card of MCU (arXiv:2605.11685) has it: relearn on T, ask for V, where
nothing of V can be inferred from T. Differences. Every weight, all MLP weights or a LoRA adapter may move; released code
moved the MLP weights of the blocks that its unlearning had computed alone (`blocks`), by SGD with a rate of 1e-5, which
flatters every defence. The model stays in evaluation mode: without dropout, so that a seed decides everything. The rate is
constant, and gradients are not clipped.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import nn

from equipoise.core.errors import BadInput
from equipoise.core.progress import progress
from equipoise.data.records import Record
from equipoise.language import adapters
from equipoise.language.encode import collate, encode
from equipoise.language.model import LanguageModel
from equipoise.language.states import blocks, module_at
from equipoise.training.gradients import joint_norm
from equipoise.training.loop import mean_gradient
from equipoise.training.memory import memory_advice
from equipoise.training.order import without_replacement
from equipoise.training.precision import Sample, masters, round_into
from equipoise.training.team import accelerator_for
from equipoise.unlearning.objectives import gd_loss


class Relearning(BaseModel, frozen=True, extra="forbid"):
    """What an attacker does with the records that he has."""

    parameters: Literal["full", "mlp", "lora"] = Field(default="full", description="What moves; lora: an adapter.")
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(gt=0, description="Constant learning rate.")
    epochs: int = Field(default=20, ge=1, description="Passes over the records.")
    batch_size: int = Field(default=32, ge=1, description="Records of a step; all of them where there are fewer.")
    micro_batch_size: int | None = Field(default=None, ge=1, description="Records in memory at once.")
    blocks: int | None = Field(default=None, ge=1, description="Of mlp: the first so many blocks only.")
    lora_rank: int = Field(default=16, ge=1, description="Rank of the adapter.")
    max_length: int = Field(default=512, ge=2, description="Tokens of a record; what is longer is cut.")
    seed: int = Field(default=0, ge=0, description="Seed of the order and of the adapter.")

    def steps(self, records: int) -> int:
        """Optimizer steps that the passes over so many records take."""
        return self.steps_until(self.epochs, records)

    def steps_until(self, epoch: int, records: int) -> int:
        """Steps after which so many passes are made; a batch may hold the end of one and the beginning of the next."""
        return math.ceil(epoch * records / min(self.batch_size, records))


@dataclass(frozen=True)
class Relearned:
    """What relearning made, of which the given model is no part.

    epochs, steps: that were made. loss: of the last step, nats per token. moved: share of the trained weights, in [0, 1],
    that is another number than before. diverged: a loss or a gradient was no number; what came before it stands.
    """

    language_model: LanguageModel
    epochs: int
    steps: int
    loss: float
    moved: float
    diverged: bool


def relearn(
    language_model: LanguageModel,
    records: Sequence[Record],
    settings: Relearning,
    *,
    evaluate: Callable[[LanguageModel, int], object] | None = None,
    epochs: int | None = None,
    title: str = "Relearning",
) -> Relearned:
    """Train a copy of the model on the records; the model given is the same afterwards, bit by bit.

    evaluate: called with the copy and the number of passes made after each of them, from 1; it must change nothing. epochs:
    end after so many passes, as the same relearning was after them. Raises BadInput without records, and for `blocks` that
    the model does not have.
    """
    if not records:
        raise BadInput("There is nothing to relearn: no records were given.")
    attacked = attackable(language_model, settings)
    model: Any = attacked.model
    examples = encode(attacked, records, max_length=settings.max_length)
    size = min(settings.batch_size, len(examples))
    micro = min(settings.micro_batch_size or size, size)
    order = without_replacement(len(examples), size, settings.seed)
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    sample, moved, optimizer = Sample(list(parameters.values())), *_optimizer(parameters, settings)
    accelerator, loss_function = accelerator_for(attacked.device), gd_loss()
    epoch, loss, diverged, step = 0, math.nan, False, 0
    total = settings.steps_until(min(epochs or settings.epochs, settings.epochs), len(examples))
    with progress(title, total=total, unit="steps") as bar:
        while step < total:
            drawn = [examples[index] for index in order(step)]
            with memory_advice(f"with {micro} records at once", f"use micro_batch_size={max(micro // 2, 1)}"):
                window = [
                    collate(drawn[first : first + micro], attacked.pad_id, attacked.device)
                    for first in range(0, size, micro)
                ]
                mean, gradients = mean_gradient(loss_function, model, list(parameters.values()), window, accelerator)
                diverged = not math.isfinite(mean.item() + joint_norm(gradients).item())
                if diverged:
                    break
                for tensor, gradient in zip(moved.values(), gradients, strict=True):
                    tensor.grad = None if gradient is None else gradient.to(tensor.dtype)
                optimizer.step()
            optimizer.zero_grad()
            round_into(parameters.values(), moved.values())
            step, loss = step + 1, mean.item()
            bar.advance(1, loss=f"{loss:.3g}")
            if step == settings.steps_until(epoch + 1, len(examples)):
                epoch += 1
                if evaluate is not None:
                    evaluate(attacked, epoch)
    return Relearned(attacked, epoch, step, loss, sample.moved(), diverged)


def attackable(language_model: LanguageModel, settings: Relearning) -> LanguageModel:
    """A copy in evaluation mode, of which exactly what the attack moves requires gradients."""
    attacked = replace(language_model, model=copy.deepcopy(language_model.model).eval())
    if settings.blocks is not None and settings.parameters != "mlp":
        raise BadInput(f"blocks={settings.blocks} counts those whose MLP weights move: it needs parameters='mlp'.")
    if settings.parameters == "lora":
        attacked = adapters.attach(attacked, settings.lora_rank, 2.0 * settings.lora_rank, seed=settings.seed)
        attacked.model.eval()
        return attacked
    chosen = {id(each) for each in _chosen(attacked.model, settings)}
    for parameter in attacked.model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return attacked


def _chosen(model: Any, settings: Relearning) -> list[nn.Parameter]:
    if settings.parameters == "full":
        return list(model.parameters())
    depth = len(blocks(model))
    if (settings.blocks or 0) > depth:
        raise BadInput(f"blocks is {settings.blocks}, but the model has {depth}.")
    return [
        parameter
        for index in range(settings.blocks or depth)
        for parameter in module_at(model, f"block.{index}.mlp").parameters()
    ]


def _optimizer(parameters: dict[str, nn.Parameter], settings: Relearning) -> tuple[Any, torch.optim.Optimizer]:
    """What it moves (copies in float32 of weights of 16 bits), and the optimizer."""
    moved = masters(parameters)
    if settings.optimizer == "sgd":
        return moved, torch.optim.SGD(moved.values(), lr=settings.learning_rate)
    return moved, torch.optim.AdamW(moved.values(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
