"""MC dropout on LoRA: the inputs of every A are dropped with probability p, also when predicting (arXiv:1506.02142).

A draw is one of the weights, A diag(z) / (1 - p) with z ~ Bernoulli(1 - p) for each input of A, the same for all texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from equipoise.core.errors import BadInput
from equipoise.core.streams import torch_stream
from equipoise.uncertainty.teachers import Drawn, Factors, drawn, own_factors, registered

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel
    from equipoise.uncertainty.class_logits import Classified

DROPOUT = 0.1
_STREAM = 32


@registered("mc-dropout")
@dataclass(frozen=True)
class McDropout:
    """The adapter with dropout left on. Raises BadInput for a p outside [0, 1)."""

    p: float = DROPOUT
    draws: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise BadInput(f"The probability of dropout is {self.p:g}: give one from 0 to below 1.")

    @property
    def passes(self) -> int:
        return self.draws

    def state(self) -> dict[str, Any]:
        return {"p": self.p, "draws": self.draws, "seed": self.seed}

    def factors(self, own: Factors, draw: int) -> Factors:
        """A and B of a draw, from the adapter's own."""
        found = {}
        for place, (name, (a, b)) in enumerate(own.items()):
            kept = torch.rand(a.shape[1], generator=torch_stream(self.seed, _STREAM, draw, place)) >= self.p
            found[name] = (a * kept / (1 - self.p), b)
        return found

    def on(self, language_model: LanguageModel, inputs: Classified) -> Drawn:
        own = own_factors(language_model)
        return drawn(language_model, inputs, self.draws, lambda draw: self.factors(own, draw))
