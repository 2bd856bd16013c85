"""A deep ensemble of LoRA: several adapters of one base, trained from different starts, averaged (arXiv:1612.01474)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from equipoise.core.errors import BadInput
from equipoise.uncertainty.teachers import Drawn, Factors, drawn, registered

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel
    from equipoise.uncertainty.class_logits import Classified


@registered("ensemble")
@dataclass(frozen=True, eq=False)
class Ensemble:
    """members: the factors of each adapter. Raises BadInput for fewer than two, and for members of other maps or shapes."""

    members: Sequence[Factors]

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise BadInput(f"An ensemble of {len(self.members)}: give two adapters or more.")
        first = {name: [each.shape for each in pair] for name, pair in self.members[0].items()}
        for number, member in enumerate(self.members[1:], start=2):
            if {name: [each.shape for each in pair] for name, pair in member.items()} != first:
                raise BadInput(
                    f"Adapter {number} of the ensemble adapts other maps than the first, or at another rank."
                )

    @property
    def passes(self) -> int:
        return len(self.members)

    def state(self) -> dict[str, Any]:
        return {"members": [{name: tuple(pair) for name, pair in member.items()} for member in self.members]}

    def on(self, language_model: LanguageModel, inputs: Classified) -> Drawn:
        return drawn(language_model, inputs, len(self.members), self.members.__getitem__)
