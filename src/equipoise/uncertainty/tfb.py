"""TFB: a trained LoRA adapter made Bayesian without training, by as much noise as it bears (arXiv:2412.05723).

B = U diag(d) V' (SVD); B A = (U diag(d)) (V' A). The noise on row k of V' A has deviation sigma / d_k, so that the full
update s B A gets s sigma U E with E ~ N(0, 1): Cov(vec dW) = s^2 sigma^2 I (x) U U', one sigma for all maps. Directions
with d_k = 0 up to rounding take no part: there B erases whatever A does.

    sigma = the largest in [low, high] with |NLL(sigma) - NLL(0)| / NLL(0) <= 0.3 %, on pseudo-labels argmax p(sigma = 0)

compat does as the released code: it also divides by the number of anchors, which makes nearly every sigma pass, and returns
the smallest tested sigma that does not, or `high`. Noise here is one draw of the weights for all inputs (the code's flipout
draws signs for each token: the same law for one token, not for the tokens of one input together).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.streams import torch_stream
from equipoise.uncertainty.class_logits import class_logits, in_batches
from equipoise.uncertainty.teachers import Drawn, Factors, drawn, own_factors, registered

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel
    from equipoise.uncertainty.class_logits import Classified

Bases = Mapping[str, tuple[Tensor, Tensor, Tensor]]
TOLERANCE = 0.003
LOW, HIGH = 0.001, 0.015
DRAWS = 10
_STREAM = 31  # keeps these draws apart from others of the same seed


class TfbNoise(NamedTuple):
    """a: V' A [r, n]; b: U diag(d) [m, r], with b a = B A; std: of the noise on each entry of a, [r, n]."""

    a: Tensor
    b: Tensor
    std: Tensor


def tfb_noise(A: Tensor, B: Tensor, sigma: float) -> TfbNoise:
    """The factors in which TFB's noise is independent, and its standard deviations (arXiv:2412.05723).

    A: [r, n], B: [m, r]. The standard deviation is sigma / d_k in row k, and 0 where d_k is 0 up to rounding. Raises
    BadInput for a negative sigma, and for factors whose ranks differ.
    """
    if sigma < 0:
        raise BadInput(f"sigma is {sigma:g}: a standard deviation is 0 or more.")
    if A.dim() != 2 or B.dim() != 2 or A.shape[0] != B.shape[1]:
        raise BadInput(f"A {list(A.shape)} and B {list(B.shape)} are no factors of one update: need [r, n] and [m, r].")
    u, d, v = torch.linalg.svd(B, full_matrices=False)
    rank = len(d)  # of a B with fewer rows than columns, smaller than A's
    there = d > max(B.shape) * torch.finfo(d.dtype).eps * d.max()
    each = torch.where(there, sigma / torch.where(there, d, 1.0), 0.0)
    return TfbNoise(v @ A, u * d, each[:, None].expand(rank, A.shape[1]))


@registered("tfb")
@dataclass(frozen=True)
class Tfb:
    """The adapter with TFB's noise at one sigma."""

    sigma: float
    draws: int = DRAWS
    seed: int = 0

    @property
    def passes(self) -> int:
        return self.draws

    def state(self) -> dict[str, Any]:
        return {"sigma": self.sigma, "draws": self.draws, "seed": self.seed}

    def factors(self, bases: Bases, draw: int) -> Factors:
        """A and B of a draw: A + V (sigma / d) E, so that B stays as it is."""
        found = {}
        for place, (name, (a, b, spread)) in enumerate(bases.items()):
            noise = torch.randn(spread.shape[1], a.shape[1], generator=torch_stream(self.seed, _STREAM, draw, place))
            found[name] = (a + self.sigma * (spread @ noise.to(a.dtype)), b)
        return found

    def on(self, language_model: LanguageModel, inputs: Classified) -> Drawn:
        own = bases(language_model)
        return drawn(language_model, inputs, self.draws, lambda draw: self.factors(own, draw))


def bases(language_model: LanguageModel) -> Bases:
    """A, B and V diag(1 / d) [r, r] of each adapted map."""
    found = {}
    for name, (a, b) in own_factors(language_model).items():
        noise = tfb_noise(torch.eye(b.shape[1], dtype=b.dtype), b, 1.0)
        found[name] = (a, b, noise.a.T * noise.std[:, 0])
    return found


@dataclass(frozen=True)
class SigmaSearch:
    """sigma: what was found. tried: sigma -> relative change of the NLL. edge: "lower", "upper" or "" (inside the range).

    At the lower edge sigma is `low`, or 0 where even that changes the NLL by more: then the teacher is the model itself.
    """

    sigma: float
    tried: dict[float, float]
    edge: str


def largest_sigma(
    change: Callable[[float], float],
    *,
    low: float = LOW,
    high: float = HIGH,
    tolerance: float = TOLERANCE,
    steps: int = 10,
    compat: bool = False,
) -> SigmaSearch:
    """The largest sigma in [low, high] whose change is within the tolerance, by bisection; compat: as the code searches.

    change(sigma): the relative change of the NLL, which should rise with sigma. Raises BadInput for an empty range.
    """
    if not 0 < low < high:
        raise BadInput(f"sigma is looked for in [{low:g}, {high:g}]: give two numbers above 0, the smaller first.")
    tried: dict[float, float] = {}

    def within(sigma: float) -> bool:
        tried[sigma] = change(sigma)
        return tried[sigma] <= tolerance

    at, end = low, high
    if compat:
        best = high
        for _ in range(steps):
            middle = (at + end) / 2
            if within(middle):
                at = middle
            else:
                best = end = middle
        return SigmaSearch(best, tried, "upper" if best == high else "")
    if within(high):
        return SigmaSearch(high, tried, "upper")
    if not within(low):
        return SigmaSearch(0.0, tried, "lower")
    for _ in range(steps):
        middle = (at + end) / 2
        if within(middle):
            at = middle
        else:
            end = middle
    return SigmaSearch(at, tried, "lower" if at == low else "")


def search(
    language_model: LanguageModel,
    inputs: Classified,
    *,
    anchors: Sequence[int] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    batch_size: int = 32,
    low: float = LOW,
    high: float = HIGH,
    tolerance: float = TOLERANCE,
    steps: int | None = None,
    compat: bool = False,
) -> SigmaSearch:
    """The sigma of an adapter on these inputs, or on those of them that are `anchors`; no label is used.

    The draws are the same for every sigma, so that the search is of one curve. steps: bisections, 10, or the code's 5 with
    compat.
    """
    clean = class_logits(language_model, inputs, batch_size=batch_size, indices=anchors).log_softmax(-1)
    pseudo = clean.argmax(dim=-1, keepdim=True)
    before = -clean.gather(-1, pseudo).mean().item()
    own = bases(language_model)

    def change(sigma: float) -> float:
        teacher = Tfb(sigma, draws, seed)
        under = drawn(language_model, inputs, draws, lambda draw: teacher.factors(own, draw))
        logits = in_batches(language_model, inputs, under, batch_size, anchors)
        # log of a mean of probabilities by log-sum-exp: those of a sure model round to 1 otherwise.
        log_p = logits.log_softmax(-1).logsumexp(0) - torch.tensor(float(draws)).double().log()
        relative = abs(-log_p.gather(-1, pseudo).mean().item() - before) / max(before, torch.finfo(torch.float64).tiny)
        return relative / len(clean) if compat else relative

    return largest_sigma(
        change, low=low, high=high, tolerance=tolerance, steps=steps or (5 if compat else 10), compat=compat
    )
