"""MCU (arXiv:2605.11685): forget in the minor components of representations, which relearning does not bring back cheaply.

N tokens of the forget set (without each text's first token and padding), d width, K components. H [N, d]: what the original
model represents there, m its mean, v_1, v_2, ... its principal directions about the mean.

    C = m, v_1, ..., v_{K-1}           the mean is one more direction to remove
    P h = h - the part of h in the span of C
    a loss on h and h* becomes the same loss on P h and P h*; gradients then have no part along C

C is computed once, from the original model. `basis`: "orthonormal" removes the span; "sequential" is the released code,
which removes one direction after the other, so that a little of the mean comes back with the directions, which overlap it.
`mean`: "direction" as in the released code; "subtract" takes m off first and removes v_1 ... v_K, as others describe the
paper; "none" leaves it alone. K = 1 is the mean alone. Random directions in place of v_k are the control.

Differs from the released code: directions come from all tokens in float64, by eigenvectors, not by a randomized PCA.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.core.progress import beat
from equipoise.language.encode import Example, collate
from equipoise.language.model import LanguageModel, evaluating, memory_advice
from equipoise.training import subspace
from equipoise.unlearning.objectives import Batch, counted, states_at
from equipoise.unlearning.recipe import METHODS, Recipe

MeanMode = Literal["direction", "subtract", "none"]
Basis = Literal["orthonormal", "sequential"]
READ = 16  # texts read at once


@closed
def components(states: Tensor, count: int, *, mean: MeanMode = "direction", basis: Basis = "orthonormal") -> Tensor:
    """C of states [N, d]: [count, d] in float64, the mean first where it is a direction.

    Raises BadInput where the states vary in fewer directions.
    """
    center = states.to(torch.float64).mean(0)
    return _components(center, lambda number: subspace.directions(states, number, centred=True), count, mean, basis)


@closed
def components_of(
    moments: subspace.Moments, count: int, *, mean: MeanMode = "direction", basis: Basis = "orthonormal"
) -> Tensor:
    """The same, of states that were streamed."""
    return _components(moments.mean, lambda number: moments.directions(number, centred=True), count, mean, basis)


@closed
def random_components(center: Tensor, count: int, *, mean: MeanMode = "direction", seed: int) -> Tensor:
    """A control: as many directions, drawn at random beside the mean, orthonormal. center: [d]."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(number: int) -> Tensor:
        return torch.randn(number, len(center), generator=generator, dtype=torch.float64).to(center)

    return _components(center, drawn, count, mean, "orthonormal")


def project_out(states: Tensor, components: Tensor) -> Tensor:
    """P h of states [..., d], with gradients: directions [K, d] removed in their order, whatever their length.

    Of orthonormal components that is the part outside their span. Others overlap: what a later one puts back stays.
    """
    unit = components / components.norm(dim=-1, keepdim=True)
    # h - a_1 c_1 - ... with a_k = <h - a_1 c_1 - ... - a_{k-1} c_{k-1}, c_k>: the lower triangle of the products is read.
    read = torch.linalg.solve_triangular(unit @ unit.T, unit, upper=False)
    return states - (states @ read.T.to(states)) @ unit.to(states)


def _components(
    center: Tensor, directions: Callable[[int], Tensor], count: int, mean: MeanMode, basis: Basis
) -> Tensor:
    if count < 0 or count > len(center):
        raise BadInput(f"{count} components of representations that are {len(center)} wide: use 0 to {len(center)}.")
    with_mean = mean == "direction" and count > 0
    others = directions(count - with_mean) if count > with_mean else center.new_empty(0, len(center))
    found = torch.cat([center[None], others]) if with_mean else others
    return subspace.orthonormal(found) if basis == "orthonormal" and count else found


@dataclass(frozen=True)
class Representations:
    """Of the forget set in the original model, by place: what an objective needs to know before the first step.

    lengths: the mean length of a token's state after the projection. shift: what is subtracted before it.
    """

    lengths: Mapping[str, float]
    components: Mapping[str, Tensor] = field(default_factory=dict)
    shift: Mapping[str, Tensor] = field(default_factory=dict)

    def project(self, place: str, states: Tensor) -> Tensor:
        """P h; the states themselves where nothing is projected."""
        if place in self.shift:
            states = states - self.shift[place].to(states)
        return project_out(states, self.components[place]) if place in self.components else states


def represented(
    language_model: LanguageModel, examples: Sequence[Example], places: Sequence[str], recipe: Recipe
) -> Representations:
    """From two passes over the forget set, or one where nothing is projected; in evaluation mode, as far as needed."""
    components: dict[str, Tensor] = {}
    shift: dict[str, Tensor] = {}
    if recipe.projects:
        for place, moments in _moments(language_model, examples, places).items():
            if recipe.project == "random":
                components[place] = random_components(
                    moments.mean, recipe.components, mean=recipe.mean_mode, seed=recipe.seed
                )
            else:
                components[place] = components_of(moments, recipe.components, mean=recipe.mean_mode, basis=recipe.basis)
            if recipe.mean_mode == "subtract":
                shift[place] = moments.mean
    found = Representations({}, components, shift)
    sums, count = dict.fromkeys(places, 0.0), 0

    def measure(batch: Batch, states: Mapping[str, Tensor]) -> None:
        nonlocal count
        kept = counted(batch)
        count += int(kept.sum())
        for place in places:
            sums[place] += found.project(place, states[place][kept].float()).norm(dim=-1).double().sum().item()

    _read(language_model, examples, places, measure)
    if not count:
        raise BadInput("Every text of the forget set is a single token: there is no representation to turn away.")
    return Representations({place: total / count for place, total in sums.items()}, components, shift)


def _moments(
    language_model: LanguageModel, examples: Sequence[Example], places: Sequence[str]
) -> dict[str, subspace.Moments]:
    moments: dict[str, subspace.Moments] = {}

    def add(batch: Batch, states: Mapping[str, Tensor]) -> None:
        for place, values in states.items():
            if place not in moments:
                moments[place] = subspace.Moments(values.shape[-1], values.device)
            moments[place].add(values, counted(batch))

    _read(language_model, examples, places, add)
    return moments


def _read(
    language_model: LanguageModel,
    examples: Sequence[Example],
    places: Sequence[str],
    look: Callable[[Batch, Mapping[str, Tensor]], None],
) -> None:
    """Shows every batch with its states at these places, longest texts first."""
    ordered = sorted(examples, key=lambda example: len(example.input_ids), reverse=True)
    with evaluating(language_model.model), memory_advice(READ):
        for first in range(0, len(ordered), READ):
            batch = collate(ordered[first : first + READ], language_model.pad_id, language_model.device)
            look(batch, states_at(language_model.model, places, batch))
            beat()


METHODS.register(
    "mcu",
    {
        "objective": "mlp-breaking",
        "project": "mcu",
        "parameters": "mlp",
        "gradient_filter": "cir",
        "update": "fixed-length",
        "loss_budget": 0.05,
    },
)
METHODS.register(
    "rmu-mcu",
    {
        "objective": "rmu",
        "project": "mcu",
        "parameters": "mlp",
        "steering": 1.0,
        "gradient_filter": "cir",
        "update": "fixed-length",
        "loss_budget": 0.05,
    },
)
