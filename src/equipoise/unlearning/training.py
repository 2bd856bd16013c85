"""What a recipe does to a model: which parameters move, which two losses, which rule. Used by the job and by studies."""

import copy
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
from equipoise.training.loop import Fitted, LossFunction, Moment, Settings, fit
from equipoise.training.order import pairs
from equipoise.training.two_gradients import Combine, TwoGradients
from equipoise.unlearning import blur, gradient_sum, objectives, pcgrad, sago
from equipoise.unlearning.recipe import Recipe

COMBINE: dict[str, Combine] = {
    "sum": gradient_sum.combine,
    "pcgrad": pcgrad.combine,
    "pcgrad-global": pcgrad.combine_global,
    "sago": sago.combine,
    "sago-prefer-retain": sago.combine_prefer_retain,
    "blur": blur.combine,
}


def prepare(language_model: LanguageModel, recipe: Recipe) -> LanguageModel:
    """The model with exactly the recipe's parameters trainable; with LoRA a wrapped one, which must be used from here on."""
    model = language_model.model
    if recipe.parameters == "lora":
        if recipe.objective == "rmu" or recipe.train_blocks is not None:
            raise BadInput("LoRA has parameters of its own: leave --train-blocks out, and use ga, npo or simnpo.")
        return adapters.attach(language_model, recipe.lora_rank, 2.0 * recipe.lora_rank, seed=recipe.seed)
    stack = blocks(model)
    if recipe.objective == "rmu":
        trained = objectives.rmu_parameters(model, rmu_block(model))
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


def rmu_block(model: nn.Module) -> int:
    """Block 7 of 32 as in arXiv:2403.03218, at the same relative depth in another model; at least 1."""
    return max(round(7 / 32 * len(blocks(model))), 1)


def train(
    language_model: LanguageModel,
    recipe: Recipe,
    forget: Sequence[Example],
    retain: Sequence[Example],
    *,
    combine: Combine | None = None,
    conflicts_every: int = 1,
    layers: bool = False,
    accelerator: Accelerator | None = None,
    callbacks: Sequence[Callable[[Moment], bool | None]] = (),
    log: Path | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    save_every: int | None = None,
    state: Mapping[str, Any] | None = None,
    shard: bool = False,
) -> Fitted:
    """Unlearn in place, as `fit` does: the model as `prepare` left it, still with the weights that it starts from.

    The reference log-likelihoods of NPO and the frozen copy of KL and RMU are taken before a stored `state` is put back.
    combine: a rule of one's own in place of the recipe's. conflicts_every: steps between entries of the conflict log, which
    with `layers` is also kept layer by layer. shard: split weights, gradients and moments over the processes meanwhile
    (FSDP2); afterwards `language_model.model` is another object, whole in every process.
    """
    model = language_model.model
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    reference: Tensor | None = None
    if recipe.objective == "npo":
        reference, _ = log_likelihoods(language_model, forget)
    empty, frozen = _split(model, recipe) if shard else (None, None)
    forget_loss, retain_loss = losses(language_model, recipe, frozen)

    def together(chosen: Sequence[tuple[int, int]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        first = collate([forget[i] for i, _ in chosen], language_model.pad_id, language_model.device)
        if reference is not None:
            first["reference"] = reference[[i for i, _ in chosen]].to(language_model.device, torch.float32)
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
        Settings(
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
    if recipe.objective == "rmu":
        raise BadInput("RMU trains three matrices and never runs the blocks above them: leave --shard out.")
    empty, frozen = sharding.outline(model), None
    if recipe.retain_objective == "kl":
        frozen = copy.deepcopy(model).requires_grad_(False).eval()
        sharding.shard(frozen, blocks(frozen))
    sharding.shard(model, blocks(model))
    return empty, frozen


def losses(
    language_model: LanguageModel, recipe: Recipe, frozen: nn.Module | None = None
) -> tuple[LossFunction, LossFunction]:
    """The recipe's forget and retain losses for this model, which must still be the starting model, or `frozen` is that."""
    model = language_model.model
    if recipe.objective == "rmu":
        block = rmu_block(model)
        generator = torch.Generator().manual_seed(recipe.seed)
        width = model.config.get_text_config().hidden_size
        steering = objectives.steering_vector(width, recipe.steering, generator).to(language_model.device)
        return objectives.rmu_loss(block, steering), objectives.rmu_retain_loss(block, objectives.Frozen(model))
    forget_loss = {
        "ga": objectives.ga_loss,
        "npo": lambda: objectives.npo_loss(recipe.resolved_beta),
        "simnpo": lambda: objectives.simnpo_loss(recipe.resolved_beta, recipe.gamma),
    }[recipe.objective]()
    if recipe.retain_objective == "kl":
        return forget_loss, objectives.kl_loss(frozen or objectives.Frozen(model))
    return forget_loss, objectives.gd_loss()
