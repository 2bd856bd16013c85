"""LoRA through PEFT: attach, detach, merge, export; right also where the input and output embeddings are one tensor.

Such a tie (SmolLM2 and most small models have it) is where merging goes wrong: what an adapter adds to the output
matrix is written into the embeddings as well, or is lost when the saved model ties the two again (peft#2018). So
`merge` unties first whenever an adapter sits on either: the merged model has two tensors and its configuration says so.

An adapter may begin at a product B0 A0 that is not zero (`begin_at`). Usual code takes that off the base, whose weights then
are other ones, in 16 bits also rounded ones, and an adapter loaded on the original is another model. Here the base stays as
it is: a second adapter that is never trained takes the product off, and `export` writes both as one of twice the rank.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from equipoise.core.errors import BadInput, did_you_mean

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

    from equipoise.language.model import LanguageModel

_TRAINED, _OFFSET = "default", "offset"  # PEFT's names of the adapter that is trained, and of what takes its start off
_TRAINABLE = "_equipoise_trainable"  # names of the base parameters that were trainable before PEFT froze them all


def attach(
    language_model: LanguageModel,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str | list[str] = "all-linear",
    *,
    seed: int,
    dropout: float = 0.0,
) -> LanguageModel:
    """A LanguageModel whose only trainable parameters are LoRA matrices (arXiv:2106.09685), at first without effect.

    It shares the weights of the one given, whose modules PEFT wraps in place: use the returned one, and `detach` or
    `merge` to end it. The update is alpha / rank * B A. targets: "all-linear" (all but the output matrix), or names of
    modules ("q_proj", "lm_head", "embed_tokens"). seed decides the initial A; B is 0. Raises BadInput for a name that
    the model does not have, and for a model that has an adapter already.
    """
    from peft import LoraConfig, get_peft_model

    model = language_model.model
    _require_bare(model)
    if rank < 1 or not alpha > 0 or not 0 <= dropout < 1:
        raise BadInput(
            f"rank {rank}, alpha {alpha}, dropout {dropout}: need rank >= 1, alpha > 0 and dropout in [0, 1)."
        )
    if targets != "all-linear":
        targets = [targets] if isinstance(targets, str) else targets  # PEFT takes a lone text for a pattern
        _check_targets(model, targets)
    options: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "target_modules": targets}
    config = LoraConfig(**options, bias="none", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):  # PEFT initialises from the global state only, on the CPU
        torch.manual_seed(seed)
        adapted = _wrap(model, lambda: get_peft_model(model, config))
    # PEFT notes the folder that the weights were read from, which for a name of the catalogue is this user's cache, and for
    # a model made in memory is a name that nothing has.
    origin = language_model.origin
    config.base_model_name_or_path, config.revision = (None, None) if origin is None else (origin.name, origin.revision)
    return replace(language_model, model=adapted)


def attach_saved(language_model: LanguageModel, folder: str | Path) -> LanguageModel:
    """The same with the matrices that `export` wrote. Raises BadInput when they do not fit the model."""
    from peft import PeftModel

    model = language_model.model
    _require_bare(model)
    try:
        adapted = _wrap(model, lambda: PeftModel.from_pretrained(model, str(folder)))
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise BadInput(
            f"The adapter {folder} does not fit {language_model.name}: {str(error).splitlines()[0]}"
        ) from error
    return replace(language_model, model=adapted)


def adapted_maps(language_model: LanguageModel) -> dict[str, Any]:
    """The linear maps that the adapter sits on, as PEFT wraps them, by their names in the bare model."""
    adapted = _require_adapter(language_model)
    return {n: m for n, m in adapted.get_base_model().named_modules() if _TRAINED in getattr(m, "lora_A", {})}


def factors(adapted_map: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """A [rank, inputs] and B [outputs, rank] of one of `adapted_maps`: what is trained."""
    return adapted_map.lora_A[_TRAINED].weight, adapted_map.lora_B[_TRAINED].weight


@torch.no_grad()
def begin_at(language_model: LanguageModel, starts: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Set the adapter, in place, to these A and B of its maps, by their names, without changing what the model computes.

    scale B A of the start is taken off again by an adapter that is not trained; `merge` and `export` know of it. Raises
    BadInput for an adapter that began so already, and for maps or shapes that are not its own.
    """
    adapted, maps = _require_adapter(language_model), adapted_maps(language_model)
    if _OFFSET in adapted.peft_config:
        raise BadInput("The adapter has begun at a product already: detach it and attach another.")
    for name in starts.keys() ^ maps.keys():
        raise BadInput(f"{name} is in the adapter or in its start, but not in both: give A and B of every adapted map.")
    for name, own in maps.items():
        shapes = [tuple(each.shape) for each in factors(own)]
        if (given := [tuple(each.shape) for each in starts[name]]) != shapes:
            raise BadInput(f"A and B of {name} are {given}, the adapter's {shapes}.")
    with torch.random.fork_rng(devices=[]):
        adapted.add_adapter(_OFFSET, copy.copy(adapted.peft_config[_TRAINED]))
    adapted.base_model.set_adapter([_TRAINED, _OFFSET])
    for name, own in maps.items():
        for own_factor, given, sign, offset in zip(
            factors(own), starts[name], (1, -1), (own.lora_A[_OFFSET], own.lora_B[_OFFSET]), strict=True
        ):
            own_factor.copy_(given)
            offset.weight.copy_(sign * own_factor)
            offset.weight.requires_grad_(False)


def detach(language_model: LanguageModel) -> LanguageModel:
    """The model as it was before `attach`, bit by bit."""
    adapted = _require_adapter(language_model)
    return replace(language_model, model=_unwrapped(adapted, adapted.unload()))


def merge(language_model: LanguageModel) -> LanguageModel:
    """A plain model with the adapter's update in its weights, which are changed in place.

    Unties the embeddings when the adapter sits on one of them: the file then grows by that matrix.
    """
    adapted = _require_adapter(language_model)
    base = adapted.get_base_model()
    untie = _tied(base) and _adapts_embeddings(base)
    if untie:
        _untie(base)
    model = _unwrapped(adapted, adapted.merge_and_unload(safe_merge=True))
    if untie:
        model.get_output_embeddings().weight.requires_grad_(model.get_input_embeddings().weight.requires_grad)
    return replace(language_model, model=model)


def export(language_model: LanguageModel, folder: str | Path) -> None:
    """Writes the adapter (safetensors), its configuration and the tokenizer; `load(folder)` merges it into its base.

    One that began at a product (`begin_at`) is written with twice its rank, for the same base. Raises BadInput for a model
    made in memory, which the adapter could not name.
    """
    adapted = _require_adapter(language_model)
    require_base(language_model)
    # "auto" would store the whole base matrix beside its adapter, and look on the hub for the base's configuration.
    adapted.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=[_TRAINED])
    if _OFFSET in adapted.peft_config:
        _write_whole(adapted, Path(folder))
    # PEFT keeps names of maps as a set, whose order is another in every process.
    place = Path(folder) / "adapter_config.json"
    config = json.loads(place.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    place.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    language_model.tokenizer.save_pretrained(str(folder))


def require_base(language_model: LanguageModel) -> None:
    """Raises BadInput unless an adapter of this model could name what it belongs to."""
    if language_model.origin is None:
        raise BadInput(
            f"An adapter of {language_model.name} names no base model that could be loaded, since it was made in memory: "
            "save it to a folder and load that, or train the weights themselves (parameters 'full')."
        )


def _write_whole(adapted: Any, folder: Path) -> None:
    """Both adapters as one over what PEFT wrote of the first: their A below and their B beside each other, at one scale."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    trained, offset = (
        get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
        for name in (_TRAINED, _OFFSET)
    )
    whole = {
        name: torch.cat([trained[name], offset[name]], dim=0 if "lora_A" in name else 1).contiguous().cpu()
        for name in trained
    }
    save_file(whole, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(adapted.peft_config[_TRAINED])
    config.r, config.lora_alpha, config.inference_mode = 2 * config.r, 2 * config.lora_alpha, True
    config.save_pretrained(str(folder))


def _require_bare(model: Any) -> None:
    if hasattr(model, "peft_config"):
        raise BadInput("The model has an adapter already: merge or detach it first.")


def _require_adapter(language_model: LanguageModel) -> Any:
    if not hasattr(language_model.model, "peft_config"):
        raise BadInput(f"{language_model.name} has no adapter: attach one first.")
    return language_model.model


def _check_targets(model: nn.Module, targets: list[str]) -> None:
    last_names = {name.rpartition(".")[2] for name, module in model.named_modules() if not list(module.children())}
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name, _ in model.named_modules()):
            raise BadInput(f"The model has no module {target!r} to adapt. {did_you_mean(target, last_names)}")


def _wrap(model: nn.Module, wrap: Callable[[], Any]) -> Any:
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with warnings.catch_warnings():
        # PEFT warns that merging into tied embeddings goes wrong; `merge` sees to it.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        warnings.filterwarnings("ignore", message=".*base_model_name_or_path.*")
        adapted = wrap()
    setattr(adapted, _TRAINABLE, trainable)
    return adapted


def _unwrapped(adapted: PeftModel, model: Any) -> Any:
    trainable = getattr(adapted, _TRAINABLE)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    return model


def _tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _adapts_embeddings(model: Any) -> bool:
    return any(
        hasattr(module, "base_layer") for module in (model.get_input_embeddings(), model.get_output_embeddings())
    )


def _untie(model: Any) -> None:
    head = model.get_output_embeddings()
    head = getattr(head, "base_layer", head)
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    model.all_tied_weights_keys = {}
