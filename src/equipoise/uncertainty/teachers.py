"""Bayesian teachers: what a LoRA adapter would say under N draws of its weights. Each is one file; this is what they share.

N draws, B inputs, C classes, r the rank. A teacher gives logits [N, B, C]; their softmax, averaged, is what it predicts
(`bayes_distill.averaged`). A draw is of all weights, the same for every input: what an input gets depends on the seed
and on itself only, never on what shares its batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import produce_atomic
from equipoise.language import adapters

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel
    from equipoise.uncertainty.class_logits import Classified

Factors = Mapping[str, tuple[Tensor, Tensor]]  # map -> A [r, n], B [m, r]
Drawn = Callable[[Sequence[int]], Tensor]
POSTERIOR = "posterior.safetensors"
_ABOUT, _TENSOR = "equipoise_teacher", "$tensor"
TEACHERS: dict[str, Callable[[Mapping[str, Any]], Teacher]] = {}


class Teacher(Protocol):
    """A distribution over the weights of an adapter."""

    kind: str
    passes: int  # forward passes that an input takes

    def on(self, language_model: LanguageModel, inputs: Classified) -> Drawn:
        """Indices of inputs -> their class logits under each draw, [N, B, C]; the adapter is the model's as it is now."""
        ...

    def state(self) -> dict[str, Any]:
        """What `load` makes it again from."""
        ...


def registered(kind: str) -> Callable[[type], type]:
    """A class decorator: `load` finds the teacher by this name, and makes it of its state's values."""

    def register(teacher: type) -> type:
        teacher.kind = kind  # type: ignore[attr-defined]
        TEACHERS[kind] = lambda state: teacher(**state)
        return teacher

    return register


def save(teacher: Teacher, folder: Path) -> None:
    """Writes the teacher beside its adapter: numbers and tensors, in safetensors, the same bytes each time."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    state = _without_tensors(teacher.state(), "", tensors)
    # One entry: safetensors keeps those of several in an order of their own each time.
    about = json.dumps({"kind": teacher.kind, "state": state, "sha256": _digest(state, tensors)})
    produce_atomic(folder / POSTERIOR, lambda path: save_file(tensors, path, metadata={_ABOUT: about}))


def load(folder: Path) -> Teacher:
    """What `save` wrote. Raises BadInput for a folder without, and WorkFailed for one that was altered."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    from equipoise.uncertainty import blob, ensemble, laplace_lora, mc_dropout, tfb  # noqa: F401  they register themselves

    path = folder / POSTERIOR
    if not path.is_file():
        raise BadInput(f"{folder} holds no {POSTERIOR}: give a folder that `equipoise uncertainty bayesianize` wrote.")
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[_ABOUT])
        tensors = load_file(path)
        kind, state = about["kind"], about["state"]
        if about["sha256"] != _digest(state, tensors):
            raise ValueError("its digest is another")
        made = _with_tensors(state, tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise WorkFailed(f"{path} was altered since it was written, or is not a teacher's ({error}).") from error
    if kind not in TEACHERS:
        raise BadInput(f"{path} is of the unknown kind {kind!r}: write it again with this version.")
    return TEACHERS[kind](made)


def _digest(state: Any, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(state).encode())
    for key in sorted(tensors):
        digest.update(f"\0{key} {tensors[key].dtype} {list(tensors[key].shape)}\0".encode())
        digest.update(tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _without_tensors(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: place}
    if isinstance(value, Mapping):
        return {name: _without_tensors(each, f"{place}/{name}", tensors) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(each, f"{place}/{index}", tensors) for index, each in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if list(value) == [_TENSOR]:
            return tensors[value[_TENSOR]]
        return {name: _with_tensors(each, tensors) for name, each in value.items()}
    return [_with_tensors(each, tensors) for each in value] if isinstance(value, list) else value


def own_factors(language_model: LanguageModel) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of every adapted map, as they are, in float32 or more on the CPU. Raises BadInput for an untrained adapter."""
    found = {}
    for name, own in adapters.adapted_maps(language_model).items():
        found[name] = tuple(_widened(each) for each in adapters.factors(own))
    if not any(bool(b.any()) for _, b in found.values()):
        raise BadInput(
            "Every B of the adapter is 0, so it was not trained, and noise on A changes nothing: train it first."
        )
    return found


def _widened(tensor: Tensor) -> Tensor:
    detached = tensor.detach().cpu()
    return detached.clone() if detached.dtype == torch.float64 else detached.float().clone()


@contextmanager
def placed(language_model: LanguageModel, given: Factors) -> Iterator[None]:
    """Inside, the adapter has these factors; afterwards its own again. The base is not touched, nor copied."""
    maps = adapters.adapted_maps(language_model)
    kept = []
    try:
        for name, pair in given.items():
            for own, new in zip(adapters.factors(maps[name]), pair, strict=True):
                kept.append((own, own.data))
                own.data = new.to(own.device, own.dtype)
        yield
    finally:
        for own, data in kept:
            own.data = data


def drawn(language_model: LanguageModel, inputs: Classified, draws: int, factors: Callable[[int], Factors]) -> Drawn:
    """Class logits under the factors of each draw 0 .. draws - 1."""

    def logits(indices: Sequence[int]) -> Tensor:
        batch = inputs.batch(indices, language_model.device)
        found = []
        for draw in range(draws):
            with placed(language_model, factors(draw)):
                found.append(inputs.logits(language_model.model, batch))
        return torch.stack(found)

    return logits
