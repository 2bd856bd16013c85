"""Low-rank noise on chosen linear maps of a causal model: the exact law of one token's outputs, without a copy of a weight.

    W = W0 + U' E',  E' [r, in] of independent N(0, sigma^2)      so  W x = W0 x + sigma |x| U' z,  z ~ N(0, I_r)

U' [out, r] are the first left singular vectors of W0 (TokUR: arXiv:2505.11737, alg. 1). z is drawn for every token, map and
member anew: the paper's stepwise posterior, in which the weights of different tokens are independent. The released code
shares z between the query and value maps of a layer where it serves, and does not elsewhere; here they are independent.

The projections of a fused map are perturbed one by one, each in its own basis: GPT-2's c_attn is q_proj, k_proj and v_proj.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.language.score import wide

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

TARGETS = ("q_proj", "v_proj")
_FUSED = {"c_attn": ("q_proj", "k_proj", "v_proj")}  # GPT-2's, in the order of its outputs
_LAYER = re.compile(r"\.\d+\.")

# (number of the projection, its inputs [..., in]) -> z [..., rank]
Draw = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Projection:
    """A linear map, or the outputs begin to end of a fused one; basis: [out, rank], orthonormal columns."""

    name: str
    module: nn.Module
    begin: int
    end: int
    basis: Tensor


@dataclass(frozen=True)
class Perturbed:
    """A model with the maps on which noise can be laid; the model itself is untouched outside of `noise`."""

    language_model: LanguageModel
    sigma: float
    rank: int
    targets: tuple[str, ...]
    projections: tuple[Projection, ...]

    def at(self, sigma: float) -> Perturbed:
        """The same maps and bases with another scale of noise."""
        _check_sigma(sigma)
        return replace(self, sigma=sigma)

    @contextmanager
    def noise(self, draw: Draw) -> Iterator[None]:
        """Inside, sigma |x| U' z is added to the outputs of each projection, with z from `draw`; afterwards to none."""
        hooks = [
            projection.module.register_forward_hook(self._hook(index, draw))
            for index, projection in enumerate(self.projections)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, index: int, draw: Draw) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        projection = self.projections[index]

        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            noise = noise_of(inputs[0], draw(index, inputs[0]), projection.basis, self.sigma).to(output.dtype)
            if projection.end - projection.begin == output.shape[-1]:
                return output + noise
            padding = (projection.begin, output.shape[-1] - projection.end)
            return output + nn.functional.pad(noise, padding)

        return add


def perturb(
    language_model: LanguageModel, *, rank: int = 8, sigma: float = 0.1, targets: Sequence[str] = TARGETS
) -> Perturbed:
    """The linear maps called so in every layer, with the bases of their noise; the model is left as it is.

    rank: of the noise. sigma: standard deviation of an entry of E'; where a map reads normalized states of width d, its
    outputs are moved by about sigma sqrt(d) along each direction. targets: names of maps, such as q_proj, k_proj, v_proj.
    Raises BadInput for a target that is not there, naming what is, for a rank above a map's, and for an adapter that is not
    merged.
    """
    _check_sigma(sigma)
    targets = tuple(targets)
    if not targets:
        raise BadInput("There is no target: name linear maps that get noise, such as q_proj and v_proj.")
    if len(set(targets)) < len(targets):
        raise BadInput(f"The targets {', '.join(targets)} name a map twice: give each once.")
    if rank < 1:
        raise BadInput(f"The rank is {rank}: use at least 1.")
    if hasattr(language_model.model, "peft_config"):
        raise BadInput(f"{language_model.name} has an adapter, beside whose maps noise cannot be laid: merge it first.")
    found = _maps(language_model.model)
    known = dict.fromkeys(target for target, *_ in found)
    for target in targets:
        if target not in known:
            raise BadInput(
                f"{language_model.name} has no linear map {target!r} in its layers. {did_you_mean(target, list(known))}"
            )
    projections = []
    for target, name, module, begin, end in found:
        if target in targets:
            weight = _weight(module)[begin:end]
            if rank > min(weight.shape):
                raise BadInput(
                    f"The rank is {rank}, but {name} ({target}) is {weight.shape[0]} x {weight.shape[1]}: "
                    f"use at most {min(weight.shape)}."
                )
            projections.append(Projection(f"{name}:{target}", module, begin, end, basis(weight, rank)))
    return Perturbed(language_model, sigma, rank, targets, tuple(projections))


def basis(weight: Tensor, rank: int) -> Tensor:
    """The first left singular vectors of a weight [out, in]: [out, rank], orthonormal, of arbitrary sign."""
    with torch.no_grad():
        return torch.linalg.svd(wide(weight), full_matrices=False).U[:, :rank].contiguous()


def noise_of(inputs: Tensor, z: Tensor, basis: Tensor, sigma: float) -> Tensor:
    """sigma |x| U' z: inputs [..., in], z [..., r], basis [out, r] -> [..., out], in float32 or float64.

    For z ~ N(0, I) its covariance is sigma^2 |x|^2 U' U'^T, that of U' E' x.
    """
    size = torch.linalg.vector_norm(wide(inputs), dim=-1, keepdim=True)
    return sigma * size * (z.to(size) @ basis.to(size).T)


def sampled(generator: torch.Generator, rank: int) -> Draw:
    """A draw for `Perturbed.noise` that takes fresh numbers for every token from the generator."""

    def draw(_: int, inputs: Tensor) -> Tensor:
        shape = (*inputs.shape[:-1], rank)
        return torch.randn(shape, generator=generator, device=generator.device).to(inputs.device)

    return draw


def token_noise(tokens: int, projections: int, rank: int, *, seed: int, member: int, key: Sequence[int] = ()) -> Tensor:
    """z of the first `tokens` tokens of a text, [tokens, projections, rank] in float64, named by seed, member and key.

    A longer text of the same key begins with the same numbers, so a token's noise does not depend on what follows it.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, member, *key])))
    return torch.from_numpy(generator.standard_normal((tokens, projections, rank)))


def _check_sigma(sigma: float) -> None:
    if not 0 <= sigma < float("inf"):
        raise BadInput(f"sigma is {sigma}: use 0 for no noise, or a number above.")


def _maps(model: nn.Module) -> list[tuple[str, str, nn.Module, int, int]]:
    """The linear maps inside numbered layers: (target, name, module, begin, end of its outputs)."""
    found = []
    for name, module in model.named_modules():
        if not _LAYER.search(f".{name}.") or not _linear(module):
            continue
        last = name.rpartition(".")[2]
        parts = _FUSED.get(last, (last,))
        width = _weight(module).shape[0] // len(parts)
        found += [(part, name, module, each * width, (each + 1) * width) for each, part in enumerate(parts)]
    return found


def _linear(module: nn.Module) -> bool:
    """Whether a plain linear map with a readable weight: not a quantized one, whose weight is packed."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.weight.is_floating_point() and module.weight.shape == (module.out_features, module.in_features)
    return isinstance(module, Conv1D)


def _weight(module: Any) -> Tensor:
    """[out, in]; Conv1D keeps [in, out]."""
    return module.weight if isinstance(module, nn.Linear) else module.weight.T
