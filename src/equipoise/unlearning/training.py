"""What a recipe does to a model: which parameters move, which two losses, which rule. Used by the job and by studies."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from equipoise.core.errors import BadInput
from equipoise.language import adapters
from equipoise.language.encode import Example, collate
from equipoise.language.model import LanguageModel
from equipoise.language.score import log_likelihoods
from equipoise.language.states import blocks
from equipoise.training import sharding
from equipoise.training.loop import LossFunction, TrainerSettings, TrainerState, TrainResult, fit
from equipoise.training.order import pairs
from equipoise.training.two_gradients import Combine, TwoGradients
from equipoise.unlearning import guard, objectives
from equipoise.unlearning.recipe import COMBINE, OBJECTIVES, Recipe


def prepare(language_model: LanguageModel, recipe: Recipe) -> LanguageModel:
    """The model with exactly the recipe's parameters trainable; with LoRA a wrapped one, which must be used from here on."""
    model, own = language_model.model, OBJECTIVES[recipe.objective].parameters
    if recipe.parameters == "lora":
        if own is not None or recipe.train_blocks is not None:
            other = f"{recipe.objective} has its own" if own is not None else "leave --train-blocks out"
            raise BadInput(f"LoRA has parameters of its own: {other}.")
        return adapters.attach(language_model, recipe.lora_rank, 2.0 * recipe.lora_rank, seed=recipe.seed)
    stack = blocks(model)
    if own is not None:
        trained = own(model)
    elif recipe.train_blocks is not None:
        if recipe.train_blocks > len(stack):
            raise BadInput(f"train_blocks is {recipe.train_blocks}, but the model has {len(stack)} blocks.")
        trained = list(stack[-recipe.train_blocks :].parameters())
    else:
        trained = list(model.parameters())
    chosen = {id(parameter) for parameter in trained}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return language_model


def train(
    language_model: LanguageModel,
    recipe: Recipe,
    forget: Sequence[Example],
    retain: Sequence[Example],
    *,
    weights: Tensor | None = None,
    combine: Combine | None = None,
    conflicts_every: int = 1,
    layers: bool = False,
    accelerator: Accelerator | None = None,
    callbacks: Sequence[Callable[[TrainerState], bool | None]] = (),
    log: Path | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    save_every: int | None = None,
    state: Mapping[str, Any] | None = None,
    shard: bool = False,
) -> TrainResult:
    """Unlearn in place, as `fit` does: the model as `prepare` left it, still with the weights that it starts from.

    weights: of the forget records, in their order, with mean 1; not given, a recipe that weighs scores the model for them.
    That, the reference log-likelihoods of NPO and the frozen copy of KL and RMU come before a stored `state` is put back.
    combine: a rule of one's own in place of the recipe's. conflicts_every: steps between entries of the conflict log, which
    with `layers` is also kept layer by layer. shard: split weights, gradients and moments over the processes meanwhile
    (FSDP2); afterwards `language_model.model` is another object, whole in every process.
    """
    model = language_model.model
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    reference: Tensor | None = None
    if OBJECTIVES[recipe.objective].reference:
        reference, _ = log_likelihoods(language_model, forget)
    if weights is None and recipe.weigh == "guard":
        weighing = guard.weigh(language_model, recipe, forget, retain)
        weights = weighing.weights
        for note in weighing.notes:
            warnings.warn(note, stacklevel=2)
    if weights is not None and bool((weights == 1).all()):
        weights = None  # the base method, bit for bit
    empty, frozen = _split(model, recipe) if shard else (None, None)
    forget_loss, retain_loss = losses(language_model, recipe, frozen)

    def together(chosen: Sequence[tuple[int, int]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        first = collate([forget[i] for i, _ in chosen], language_model.pad_id, language_model.device)
        if reference is not None:
            first["reference"] = reference[[i for i, _ in chosen]].to(language_model.device, torch.float32)
        if weights is not None:
            first["weight"] = weights[[i for i, _ in chosen]].to(language_model.device, torch.float32)
        return first, collate([retain[j] for _, j in chosen], language_model.pad_id, language_model.device)

    fitted = fit(
        model,
        TwoGradients(
            forget_loss,
            retain_loss,
            combine or COMBINE[recipe.combine],
            forget_weight=recipe.forget_weight,
            retain_weight=recipe.resolved_retain_weight,
            conflicts_every=conflicts_every,
            groups=layers,
        ),
        pairs(len(forget), len(retain), recipe.batch_size, recipe.seed),
        TrainerSettings(
            steps=recipe.steps,
            learning_rate=recipe.resolved_learning_rate(trained),
            batch_size=recipe.batch_size,
            micro_batch_size=recipe.micro_batch_size,
            seed=recipe.seed,
        ),
        collate=together,
        accelerator=accelerator,
        callbacks=callbacks,
        log=log,
        save=save,
        save_every=save_every,
        state=state,
        title="Unlearning",
    )
    if empty is not None:
        language_model.model = sharding.gathered(model, empty)  # type: ignore[assignment]
    return fitted


def _split(model: Any, recipe: Recipe) -> tuple[nn.Module, nn.Module | None]:
    """Shards the model; returns what is to take its weights up again, and the starting model where KL needs one."""
    check_shard(recipe)
    empty, frozen = sharding.outline(model), None
    if recipe.retain_objective == "kl":
        frozen = copy.deepcopy(model).requires_grad_(False).eval()
        sharding.shard(frozen, blocks(frozen))
    sharding.shard(model, blocks(model))
    return empty, frozen


def check_shard(recipe: Recipe) -> None:
    """Raises BadInput for what cannot be trained in parts."""
    sharding.check_processes()
    if OBJECTIVES[recipe.objective].parameters is not None:
        raise BadInput(f"{recipe.objective} trains a few matrices of its own: leave --shard out.")


def losses(
    language_model: LanguageModel, recipe: Recipe, frozen: nn.Module | None = None
) -> tuple[LossFunction, LossFunction]:
    """The recipe's forget and retain losses for this model, which must still be the starting model, or `frozen` is that."""
    model, objective = language_model.model, OBJECTIVES[recipe.objective]
    forget_loss = objective.loss(recipe, model)
    if objective.retain is not None:
        return forget_loss, objective.retain(model)
    if recipe.retain_objective == "kl":
        return forget_loss, objectives.kl_loss(frozen or objectives.ReferenceModel(model))
    return forget_loss, objectives.gd_loss()
