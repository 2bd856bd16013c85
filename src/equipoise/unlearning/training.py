"""What a recipe does to a model: which parameters move, which two losses, which rule. Used by the job and by studies."""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from equipoise.language.states import blocks, module_at
from equipoise.training import sharding
from equipoise.training.loop import LossFunction, TrainerSettings, TrainerState, TrainResult, fit
from equipoise.training.order import pairs, without_replacement
from equipoise.training.two_gradients import Combine, GradientAt, TwoGradients, plain_gradient
from equipoise.unlearning import guard, objectives, sharpness, starts
from equipoise.unlearning.cir import ROWS, Cir, linear_maps
from equipoise.unlearning.fixed_length import FixedLength
from equipoise.unlearning.mcu import represented
from equipoise.unlearning.recipe import COMBINE, OBJECTIVES, Recipe


def prepare(language_model: LanguageModel, recipe: Recipe) -> LanguageModel:
    """The model with exactly the recipe's parameters trainable; with LoRA a wrapped one, which must be used from here on."""
    model, objective = language_model.model, OBJECTIVES[recipe.objective]
    own, reaches = objective.parameters, objective.places
    if recipe.parameters == "lora":
        if own is not None or reaches is not None or recipe.train_blocks is not None:
            other = "leave --train-blocks out" if own is reaches is None else f"{recipe.objective} has its own"
            raise BadInput(f"LoRA has parameters of its own: {other}.")
        return adapters.attach(language_model, recipe.lora_rank, 2.0 * recipe.lora_rank, seed=recipe.seed)
    stack, whose = blocks(model), ""
    if reaches is not None:  # what lies above the last block that the losses see gets no gradient
        stack, whose = stack[: block_of(reaches(recipe, model)[-1]) + 1], f" that {recipe.objective} reaches"
    if recipe.train_blocks is not None and (own is None or recipe.parameters == "mlp"):
        if recipe.train_blocks > len(stack):
            raise BadInput(f"train_blocks is {recipe.train_blocks}, but the model has {len(stack)} blocks{whose}.")
        stack = stack[-recipe.train_blocks :]
    if recipe.parameters == "mlp":
        trained = mlp_weights(model, stack)
    elif own is not None:
        trained = own(model)
    elif recipe.train_blocks is not None or reaches is not None:
        trained = list(stack.parameters())
    else:
        trained = list(model.parameters())
    chosen = {id(parameter) for parameter in trained}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return language_model


def block_of(place: str) -> int:
    """The number of the block that a place of `language.states` is in."""
    return int(place.split(".")[1])


def mlp_weights(model: Any, stack: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The weights of the linear maps in the feed-forward parts of these blocks.

    Raises BadInput for a block without: experts that are one tensor are no maps that can be told apart.
    """
    weights = []
    numbers = {id(block): number for number, block in enumerate(blocks(model))}
    for block in stack:
        maps = linear_maps(module_at(model, f"block.{numbers[id(block)]}.mlp"))
        if not maps:
            raise BadInput(
                f"Block {numbers[id(block)]} has no linear maps in its feed-forward part (experts, mostly): use "
                "parameters full."
            )
        weights += [each.get_parameter("weight") for each in maps.values()]
    return weights


def train(
    language_model: LanguageModel,
    recipe: Recipe,
    forget: Sequence[Example],
    retain: Sequence[Example],
    *,
    refusals: Sequence[Example] = (),
    weights: Tensor | None = None,
    begun: starts.Begun | None = None,
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

    refusals: one for each forget example, in their order, for an objective that prefers them (`dpo.refused`).
    weights: of the forget records, in their order, with mean 1; not given, a recipe that weighs scores the model for them.
    That, the reference log-likelihoods of NPO and DPO and the frozen copy of KL, RMU and UNDIAL come before a stored `state`
    is put back.
    begun: where `starts` set the adapter already; not given, a recipe that says where one begins finds it and sets it there.
    combine: a rule of one's own in place of the recipe's. conflicts_every: steps between entries of the conflict log, which
    with `layers` is also kept layer by layer. shard: split weights, gradients and moments over the processes meanwhile
    (FSDP2); afterwards `language_model.model` is another object, whole in every process.
    """
    model, objective = language_model.model, OBJECTIVES[recipe.objective]
    if len(refusals) != (len(forget) if objective.refusals else 0):
        raise BadInput(
            f"{recipe.objective} takes {'a refusal for each' if objective.refusals else 'no refusals for'} of the "
            f"{len(forget)} forget examples, and {len(refusals)} were given: encode what dpo.refused makes of their records."
        )
    answers = [*forget, *refusals]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if begun is None and recipe.begins:
        begun = starts.begin(language_model, recipe, forget, retain)
        for note in starts.notes(begun):
            warnings.warn(note, stacklevel=2)
    reference: Tensor | None = None
    if objective.reference:
        reference, _ = log_likelihoods(language_model, answers)
    if weights is None and recipe.weigh == "guard":
        weighing = guard.weigh(language_model, recipe, forget, retain)
        weights = weighing.weights
        for note in weighing.notes:
            warnings.warn(note, stacklevel=2)
    if weights is not None and bool((weights == 1).all()):
        weights = None  # the base method, bit for bit
    empty, frozen = _split(model, recipe) if shard else (None, None)
    forget_loss, retain_loss = losses(language_model, recipe, frozen, forget)

    def forgotten(indices: Sequence[int]) -> dict[str, Tensor]:
        rows = [*indices, *(len(forget) + index for index in indices if refusals)]
        batch = collate([answers[row] for row in rows], language_model.pad_id, language_model.device)
        if reference is not None:
            batch["reference"] = reference[rows].to(language_model.device, torch.float32)
        if weights is not None:
            batch["weight"] = weights[[row % len(forget) for row in rows]].to(language_model.device, torch.float32)
        return batch

    def together(chosen: Sequence[tuple[int, int]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        kept = collate([retain[j] for _, j in chosen], language_model.pad_id, language_model.device)
        return forgotten([i for i, _ in chosen]), kept

    cir = _cir(language_model, recipe, forget, forgotten) if recipe.gradient_filter == "cir" else None
    gradient = forget_gradient(recipe, plain_gradient if cir is None else cir)

    common: dict[str, Any] = {
        "steps": recipe.steps,
        "batch_size": recipe.batch_size,
        "micro_batch_size": recipe.micro_batch_size,
        "seed": recipe.seed,
    }
    if recipe.update == "fixed-length":
        step = FixedLength(
            forget_loss,
            retain_loss,
            length=recipe.resolved_update_length(trained),
            retain_learning_rate=recipe.retain_learning_rate,
            forget_gradient=gradient,
        )
        settings = TrainerSettings(
            optimizer="sgd", learning_rate=1.0, schedule="constant", warmup_ratio=0.0, max_grad_norm=None, **common
        )
    else:
        step = TwoGradients(
            forget_loss,
            retain_loss,
            combine or COMBINE[recipe.combine],
            forget_weight=recipe.forget_weight,
            retain_weight=recipe.resolved_retain_weight,
            forget_gradient=gradient,
            conflicts_every=conflicts_every,
            groups=layers,
            both=objectives.in_one_pass(forget_loss, retain_loss) if _plain_sum(recipe, combine) else None,
            **_kept_out(language_model, recipe, begun),
        )
        settings = TrainerSettings(learning_rate=recipe.resolved_learning_rate(trained), **common)
    fitted = fit(
        model,
        step,
        pairs(len(forget), len(retain), recipe.batch_size, recipe.seed),
        settings,
        collate=together,
        accelerator=accelerator,
        callbacks=callbacks,
        log=log,
        save=save,
        save_every=save_every,
        state=state,
        carried=cir,
        title="Unlearning",
    )
    if empty is not None:
        language_model.model = sharding.gathered(model, empty)  # type: ignore[assignment]
    return fitted


def _kept_out(language_model: LanguageModel, recipe: Recipe, begun: starts.Begun | None) -> dict[str, Any]:
    """The penalty for `TwoGradients`, whose combination multiplies the retain gradient, and this in it, by retain_weight."""
    if begun is None or not recipe.orthogonality:
        return {}
    weight = recipe.orthogonality / recipe.resolved_retain_weight
    return {"penalty": starts.penalty(language_model, begun), "penalty_weight": weight}


def _split(model: Any, recipe: Recipe) -> tuple[nn.Module, nn.Module | None]:
    """Shards the model; returns what is to take its weights up again, and the starting model where KL needs one."""
    check_shard(recipe)
    empty, frozen = sharding.outline(model), None
    if recipe.retain_objective == "kl":
        frozen = copy.deepcopy(model).requires_grad_(False).eval()
        sharding.shard(frozen, blocks(frozen))
    sharding.shard(model, blocks(model))
    return empty, frozen


def _plain_sum(recipe: Recipe, combine: Combine | None) -> bool:
    words = (recipe.combine, recipe.gradient_filter, recipe.robust)
    return combine is None and words == ("sum", "none", "none")


def check_shard(recipe: Recipe) -> None:
    """Raises BadInput for what cannot be trained in parts."""
    sharding.check_processes()
    objective = OBJECTIVES[recipe.objective]
    if objective.parameters is not None or objective.places is not None:
        raise BadInput(f"{recipe.objective} trains a few matrices of its own: leave --shard out.")
    if objective.distills:
        raise BadInput(f"{recipe.objective} needs the whole starting model in each process: leave --shard out.")
    if recipe.begins:
        raise BadInput("start and orthogonality need whole weights in each process: leave --shard out.")
    divisible = {"gradient_filter": ["none"], "robust": ["none"], "update": ["adamw"], "parameters": ["full", "lora"]}
    for name, able in divisible.items():
        if getattr(recipe, name) not in able:
            raise BadInput(f"{name} {getattr(recipe, name)} needs whole weights in each process: leave --shard out.")


def forget_gradient(recipe: Recipe, of: GradientAt = plain_gradient) -> GradientAt:
    """Where the recipe takes the forget gradient, of each step; `of` is the gradient that is taken there."""
    if recipe.robust == "sam":
        return sharpness.sam(recipe.rho, of)
    return sharpness.smoothing(recipe.rho, recipe.seed, of) if recipe.robust == "smoothing" else of


def _cir(
    language_model: LanguageModel,
    recipe: Recipe,
    forget: Sequence[Example],
    forgotten: Callable[[Sequence[int]], dict[str, Tensor]],
) -> Cir:
    """CIR that looks at the forget set, or at so many of its records, drawn by the seed, as hold ROWS tokens."""
    size, looked_at, tokens = recipe.micro_batch_size or recipe.batch_size, [], 0
    for index in without_replacement(len(forget), len(forget), recipe.seed)(0):
        if tokens < ROWS:
            looked_at.append(index)
            tokens += len(forget[index].input_ids)

    def batches() -> Iterator[dict[str, Tensor]]:
        for first in range(0, len(looked_at), size):
            yield forgotten(looked_at[first : first + size])

    return Cir(
        language_model.model,
        batches,
        activations=recipe.cir_activations,
        gradients=recipe.cir_gradients,
        every=recipe.cir_every or math.ceil(len(forget) / recipe.batch_size),
        basis=recipe.basis,
    )


def losses(
    language_model: LanguageModel, recipe: Recipe, frozen: nn.Module | None = None, forget: Sequence[Example] = ()
) -> tuple[LossFunction, LossFunction]:
    """The recipe's forget and retain losses for this model, which must still be the starting model, or `frozen` is that.

    forget: for objectives that look at what the starting model represents of it.
    """
    model, objective = language_model.model, OBJECTIVES[recipe.objective]
    seen = None
    if objective.places is not None and forget and (recipe.projects or objective.measures):
        seen = represented(language_model, forget, objective.places(recipe, model), recipe)
    forget_loss = objective.loss(recipe, model, seen)
    if objective.retain is not None:
        return forget_loss, objective.retain(recipe, model)
    if recipe.retain_objective == "kl":
        return forget_loss, objectives.kl_loss(frozen or objectives.ReferenceModel(model))
    return forget_loss, objectives.gd_loss()
