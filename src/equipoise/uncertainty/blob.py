"""BLoB: a Gaussian over the A of a LoRA adapter, learnt by backpropagation with the adapter (arXiv:2406.11675).

q(A_ij) = N(M_ij, Omega_ij^2) with Omega = G * G; B is a number. Prior N(0, beta^2).

    KL = sum log beta - log Omega + (Omega^2 + M^2) / (2 beta^2) - 1/2
    flipout: y = W0 x + s B (M x) + s B [S o ((Omega o E) (R o x))],  E ~ N(0, 1), signs R, S of each token

Each step is one of AdamW on the NLL under one draw, then one of plain SGD on pi_i KL, with a rate of its own on the same
warm-up and decay. pi_i = 2^i / (2^(M + 1) - 1), i = 1 .. M and again, M = int(100 n^(3.14159 / gamma) / batch).

Here log Omega = 2 log |G| takes the place of log(Omega + 1e-6), in float64. A draw for predictions is of the weights, the
same for all inputs; flipout is for training alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from equipoise.core.errors import BadInput
from equipoise.core.streams import torch_stream
from equipoise.language import adapters
from equipoise.training.loop import OneLoss, TrainerSettings, TrainerState, TrainResult, fit
from equipoise.training.order import without_replacement
from equipoise.uncertainty.teachers import Drawn, Factors, drawn, own_factors, registered

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel
    from equipoise.uncertainty.class_logits import Classified

_STREAM, _START = 33, 34
_ROOT = "blob_root"


class BlobSettings(BaseModel, frozen=True, extra="forbid"):
    """What BLoB has beside an optimizer."""

    epsilon: float = Field(default=0.05, gt=0, description="G begins uniform in [epsilon / sqrt 2, epsilon].")
    beta: float = Field(default=0.2, gt=0, description="Standard deviation of the prior.")
    gamma: float = Field(default=8.0, gt=0, description="Decides the length of a cycle of the KL's weights.")
    kl_learning_rate: float = Field(default=0.01, gt=0, description="Peak rate of the SGD steps on the KL.")


def cycle(n: int, batch_size: int, gamma: float = 8.0) -> int:
    """M: the steps of a cycle of the KL's weights, at least 1. n: training inputs."""
    return max(int(100 * n ** (3.14159 / gamma) / batch_size), 1)


def kl_weight(i: int, length: int) -> float:
    """pi_i of i = 1 .. M: 2^i / (2^(M + 1) - 1), with whole numbers, since 2^M exceeds every float from M = 1024.

    A cycle sums to just under 1. Raises BadInput for an i outside the cycle.
    """
    if not 1 <= i <= length:
        raise BadInput(f"Step {i} of a cycle of {length}: they count from 1.")
    return (1 << i) / ((1 << (length + 1)) - 1)


def kl(mean: Tensor, root: Tensor, beta: float) -> Tensor:
    """KL(N(mean, root^4) || N(0, beta^2)), summed over all entries, in float64."""
    m, g = mean.double(), root.double()
    omega = g * g
    return (math.log(beta) - 2 * g.abs().log() + (omega**2 + m**2) / (2 * beta**2) - 0.5).sum()


def flipout(x: Tensor, std: Tensor) -> Tensor:
    """The noise that a draw of A adds to A x, [..., r], one of E for all x [..., n] and signs for each (arXiv:1803.04386).

    Random from torch's global state, which the training loop sets for each step.
    """
    perturbed = std * torch.randn_like(std)
    before, behind = (_signs(x, size) for size in (std.shape[1], std.shape[0]))
    return behind * nn.functional.linear(before * x, perturbed)


def _signs(like: Tensor, size: int) -> Tensor:
    ones = torch.randint(0, 2, (*like.shape[:-1], size), device=like.device, dtype=torch.int8)
    return ones.to(like.dtype) * 2 - 1


@registered("blob")
@dataclass(frozen=True, eq=False)
class Blob:
    """omega: map -> standard deviations [r, n]; the means are the adapter itself. means alone: N = 0 of the paper."""

    omega: Mapping[str, Tensor]
    draws: int = 10
    seed: int = 0

    @property
    def passes(self) -> int:
        return self.draws

    def state(self) -> dict[str, Any]:
        return {"omega": dict(self.omega), "draws": self.draws, "seed": self.seed}

    def factors(self, own: Factors, draw: int) -> Factors:
        """A and B of a draw, from the adapter's own."""
        found = {}
        for place, (name, (a, b)) in enumerate(own.items()):
            noise = torch.randn(a.shape, generator=torch_stream(self.seed, _STREAM, draw, place))
            found[name] = (a + self.omega[name].to(a.dtype) * noise.to(a.dtype), b)
        return found

    def on(self, language_model: LanguageModel, inputs: Classified) -> Drawn:
        own = own_factors(language_model)
        return drawn(language_model, inputs, self.draws, lambda draw: self.factors(own, draw))


@contextmanager
def variational(language_model: LanguageModel, epsilon: float, seed: int) -> Iterator[dict[str, nn.Parameter]]:
    """Inside, every adapted map has a parameter G [r, n] and its A is drawn by flipout; G of each map."""
    roots: dict[str, nn.Parameter] = {}
    maps = adapters.adapted_maps(language_model)
    with ExitStack() as undo:
        for place, (name, own) in enumerate(maps.items()):
            a, _ = adapters.factors(own)
            drawn = torch.rand(a.shape, generator=torch_stream(seed, _START, place)).to(a.device, a.dtype)
            root = nn.Parameter(epsilon * (1 / math.sqrt(2) + (1 - 1 / math.sqrt(2)) * drawn))
            own.register_parameter(_ROOT, root)
            undo.callback(delattr, own, _ROOT)
            hook = own.lora_A[_adapter(own)].register_forward_hook(_noisy(root))
            undo.callback(hook.remove)
            roots[name] = root
        yield roots


def _adapter(own: Any) -> str:
    return own.active_adapters[0]


def _noisy(root: nn.Parameter) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + flipout(inputs[0], root * root)

    return hook


def train(
    language_model: LanguageModel,
    inputs: Classified,
    labels: Sequence[int],
    settings: TrainerSettings,
    blob: BlobSettings | None = None,
    *,
    draws: int = 10,
    save: Callable[[dict[str, Any]], None] | None = None,
    save_every: int | None = None,
    state: Mapping[str, Any] | None = None,
    accelerator: Any = None,
) -> tuple[Blob, TrainResult]:
    """Train the adapter, in place, and its posterior; labels: the class of each input, from 0.

    The A of the adapter as it is are the first means. save, save_every, state, accelerator: of `training.fit`.
    """
    given = blob or BlobSettings()
    length = cycle(len(inputs), settings.batch_size, given.gamma)
    gold = torch.as_tensor(labels)
    rates = settings.model_copy(update={"learning_rate": given.kl_learning_rate})
    maps = adapters.adapted_maps(language_model)
    for own in maps.values():
        for factor in adapters.factors(own):
            factor.requires_grad_(True)

    def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        own = dict(batch)
        target = own.pop("gold")
        return nn.functional.cross_entropy(inputs.logits(model, own), target, reduction="sum"), len(target)

    def collate(chosen: Sequence[int]) -> dict[str, Tensor]:
        batch = inputs.batch(chosen, language_model.device)
        return batch | {"gold": gold[list(chosen)].to(language_model.device)}

    with variational(language_model, given.epsilon, settings.seed) as roots:

        def towards_prior(moment: TrainerState) -> None:
            step = rates.learning_rate_at(moment.step - 1) * kl_weight((moment.step - 1) % length + 1, length)
            for name, root in roots.items():
                mean, _ = adapters.factors(maps[name])
                with torch.enable_grad():
                    moved = torch.autograd.grad(kl(mean, root, given.beta), (mean, root))
                with torch.no_grad():
                    for parameter, gradient in zip((mean, root), moved, strict=True):
                        parameter.sub_(step * gradient)

        result = fit(
            language_model.model,
            OneLoss(loss),
            without_replacement(len(inputs), settings.batch_size, settings.seed),
            settings,
            collate=collate,
            callbacks=[towards_prior],
            save=save,
            save_every=save_every,
            state=state,
            accelerator=accelerator,
            title="BLoB",
        )
        omega = {name: (root * root).detach().cpu().float().clone() for name, root in roots.items()}
    return Blob(omega, draws, settings.seed), result
