"""Laplace-LoRA of the last layer: a Gaussian over the output matrix's B, in closed form (arXiv:2308.13111).

C classes, r the rank, z = s A h what B reads of an input (h: its last state). Logits are W0 h + B z, linear in the C
rows of B that belong to classes: nothing is linearised, and the generalised Gauss-Newton matrix is the Hessian itself:

    H = sum_i (diag p_i - p_i p_i') (x) z_i z_i'   [C r, C r],     posterior N(B, (H + lambda I)^-1)
    f(x) ~ N(W0 h + B z, J (H + lambda I)^-1 J'),  J = I_C (x) z'
    lambda maximises  (C r / 2) log lambda - lambda |B|^2 / 2 - log det(H + lambda I) / 2

Neither needs a label."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.streams import torch_stream
from equipoise.language import adapters
from equipoise.language.states import module_at
from equipoise.uncertainty.class_logits import in_batches
from equipoise.uncertainty.teachers import Drawn, registered

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel
    from equipoise.uncertainty.class_logits import Classified

SAMPLES = 1000
_STREAM = 35
_RANGE = 1e-6, 1e8  # of lambda


def hessian(features: Tensor, probabilities: Tensor) -> Tensor:
    """sum_i (diag p_i - p_i p_i') (x) z_i z_i', [C k, C k]. features z: [n, k]; probabilities p: [n, C]."""
    k = features.shape[1]
    c = probabilities.shape[1]
    curvature = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None, :]
    return torch.einsum("nab,ni,nj->aibj", curvature, features, features).reshape(c * k, c * k)


def log_evidence(precision: float, eigenvalues: Tensor, squared_norm: float) -> float:
    """The part of the log marginal likelihood that depends on lambda; eigenvalues: of H; squared_norm: |B|^2."""
    k = len(eigenvalues)
    return 0.5 * (k * math.log(precision) - precision * squared_norm - (eigenvalues + precision).log().sum().item())


def best_precision(eigenvalues: Tensor, squared_norm: float) -> float:
    """The lambda in [1e-6, 1e8] that maximises `log_evidence`: the best of a grid, then refined between its neighbours."""
    low, high = map(math.log, _RANGE)
    grid = torch.linspace(low, high, 65).tolist()
    values = [log_evidence(math.exp(at), eigenvalues, squared_norm) for at in grid]
    top = max(range(len(grid)), key=values.__getitem__)
    found: Any = minimize_scalar(
        lambda at: -log_evidence(math.exp(at), eigenvalues, squared_norm),
        bounds=(grid[max(top - 1, 0)], grid[min(top + 1, len(grid) - 1)]),
        method="bounded",
        options={"xatol": 1e-8},
    )
    return math.exp(found.x)


@registered("laplace")
@dataclass(frozen=True, eq=False)
class LastLayerLaplace:
    """covariance: (H + lambda I)^-1, [C r, C r], float64. samples: of the logits, whose softmax is averaged."""

    covariance: Tensor
    precision: float
    samples: int = SAMPLES
    seed: int = 0

    @property
    def passes(self) -> int:
        return 1

    def state(self) -> dict[str, Any]:
        return {
            "covariance": self.covariance,
            "precision": self.precision,
            "samples": self.samples,
            "seed": self.seed,
        }

    def spread(self, features: Tensor) -> Tensor:
        """The covariance of the logits of inputs with these features [n, k]: [n, C, C]."""
        k = features.shape[1]
        c = len(self.covariance) // k
        blocks = self.covariance.reshape(c, k, c, k)
        return torch.einsum("ni,aibj,nj->nab", features, blocks, features)

    def drawn(self, mean: Tensor, features: Tensor) -> Tensor:
        """Draws of the logits, [samples, n, C]; mean: [n, C], features: [n, k]; the normal numbers are the same for all."""
        covariance = self.spread(features)
        # By eigenvectors: this is singular where no class but one has any probability.
        values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
        root = vectors * values.clamp(min=0).sqrt()[:, None, :]
        normal = torch.randn(
            self.samples, mean.shape[1], generator=torch_stream(self.seed, _STREAM), dtype=torch.float64
        )
        return mean + torch.einsum("nab,sb->sna", root, normal)

    def on(self, language_model: LanguageModel, inputs: Classified) -> Drawn:
        def logits(indices: Sequence[int]) -> Tensor:
            mean, features = _read(language_model, inputs, indices)
            if len(self.covariance) != mean.shape[1] * features.shape[1]:
                raise BadInput(
                    f"The Laplace posterior is not of {mean.shape[1]} classes at rank {features.shape[1]}: fit it anew."
                )
            return self.drawn(mean, features)

        return logits


def laplace(
    language_model: LanguageModel,
    inputs: Classified,
    class_ids: Sequence[int],
    *,
    precision: float | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    batch_size: int = 32,
) -> LastLayerLaplace:
    """The posterior of the adapter of the output matrix on these inputs. precision: lambda, found where not given.

    class_ids: the rows of the output matrix that are classes. Raises BadInput for an adapter that is not
    on it.
    """
    head = adapted_head(language_model)
    rows: list[Tensor] = []

    def some(chosen: Sequence[int]) -> Tensor:
        mean, features = _read(language_model, inputs, chosen)
        rows.append(features)
        return mean

    logits = in_batches(language_model, inputs, some, batch_size)
    curvature = hessian(torch.cat(rows), logits.softmax(-1))
    weights = adapters.factors(head)[1].detach().cpu().double()[list(class_ids)]
    if precision is None:
        eigenvalues = torch.linalg.eigvalsh(curvature).clamp(min=0)
        precision = best_precision(eigenvalues, weights.square().sum().item())
    eye = torch.eye(len(curvature), dtype=torch.float64)
    return LastLayerLaplace(
        torch.cholesky_inverse(torch.linalg.cholesky(curvature + precision * eye)), precision, samples, seed
    )


def adapted_head(language_model: LanguageModel) -> Any:
    """The adapted output matrix. Raises BadInput for an adapter that is not on it."""
    head = module_at(language_model.model, "head")
    if not any(head is own for own in adapters.adapted_maps(language_model).values()):
        raise BadInput(
            "Laplace of the last layer needs an adapter on the output matrix, and this one is not on it: train one with "
            "lm_head among its target modules, or use the teacher tfb."
        )
    return head


def _read(language_model: LanguageModel, inputs: Classified, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits [n, C] and what B reads, [n, r], in float64 on the CPU."""
    head = adapted_head(language_model)
    with _kept(head) as found:
        mean = inputs.logits(language_model.model, inputs.batch(indices, language_model.device))
    scale = head.scaling[head.active_adapters[0]]
    features = scale * found[-1].detach().cpu().double().reshape(len(indices), -1)
    return mean.detach().cpu().double(), features


@contextmanager
def _kept(head: Any) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    hook = head.lora_A[head.active_adapters[0]].register_forward_hook(lambda _, __, output: found.append(output))
    try:
        yield found
    finally:
        hook.remove()
