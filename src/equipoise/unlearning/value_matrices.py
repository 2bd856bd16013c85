"""The value matrices of a model: the last linear map of each feed-forward part, in either layout.

A `Linear` holds W as [d, f], the `Conv1D` of GPT-2 transposed as [f, d]; both may have a bias [d]. What else writes in the
place of one linear map (experts, a norm behind the feed-forward part, quantised numbers) is refused by its name.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput
from equipoise.language.model import LanguageModel, evaluating
from equipoise.language.states import blocks, editing, module_at, recording
from equipoise.unlearning.gloss import project

# A norm between the map and the residual stream rescales what the map writes, so that a projected map leaks (Gemma 2 and 3).
NORMS_BEHIND = ("post_feedforward_layernorm", "post_mlp_layernorm")


@dataclass(frozen=True, eq=False)
class ValueMatrix:
    """W of a layer with its bias, and their names in the model. transposed: whether it is stored as [f, d]."""

    layer: int
    weight: nn.Parameter
    name: str
    transposed: bool
    bias: nn.Parameter | None = None
    bias_name: str = ""

    @property
    def width(self) -> int:
        """d."""
        return self.weight.shape[1 if self.transposed else 0]

    @property
    def values(self) -> Tensor:
        """W as [d, f], detached."""
        weight = self.weight.detach()
        return weight.T if self.transposed else weight

    def parts(self) -> dict[str, tuple[nn.Parameter, bool]]:
        """By name the parameters that a projection changes, and whether each is stored transposed."""
        found = {self.name: (self.weight, self.transposed)}
        return found if self.bias is None else found | {self.bias_name: (self.bias, False)}


def value_matrices(model: Any) -> list[ValueMatrix]:
    """Those of every layer. Raises BadInput, by the layer, for a feed-forward part that does not end in one linear map."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    width = model.get_input_embeddings().weight.shape[1]
    found = []
    for layer, block in enumerate(blocks(model)):
        if behind := next((name for name in NORMS_BEHIND if getattr(block, name, None) is not None), None):
            raise BadInput(
                f"Layer {layer} of {type(model).__name__} has {behind} behind its feed-forward part, which would write the "
                "directions again: such models are not edited."
            )
        try:
            module: Any = module_at(model, f"block.{layer}.mlp.down")
        except BadInput:
            part = type(module_at(model, f"block.{layer}.mlp")).__name__
            raise BadInput(
                f"Layer {layer} of {type(model).__name__} writes through a {part}, not through one linear map (experts, or "
                "a layout that is not known): such models are not edited."
            ) from None
        kind = type(module).__name__
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.dim() != 2 or not weight.is_floating_point():
            raise BadInput(
                f"The value matrix of layer {layer} is a {kind} without a plain matrix of floating-point numbers: load the "
                "model unquantised."
            )
        transposed = kind == "Conv1D"
        bias = getattr(module, "bias", None)
        matrix = ValueMatrix(
            layer, weight, names[id(weight)], transposed, bias, "" if bias is None else names[id(bias)]
        )
        if matrix.width != width:
            raise BadInput(
                f"The value matrix of layer {layer} writes vectors of {matrix.width}, the model's states are {width} wide: "
                "its layout is not known."
            )
        found.append(matrix)
    return found


@torch.no_grad()
def projected(
    matrices: Sequence[ValueMatrix],
    bases: Mapping[int, Tensor],
    strength: float = 1.0,
    stored: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """By name what the projection makes of the weights and biases of the layers that have a basis.

    stored: the same tensors in another precision, which are then projected in place of the model's.
    """
    return {
        name: project(
            parameter.detach() if stored is None else stored[name],
            bases[matrix.layer],
            transposed=transposed,
            strength=strength,
        )
        for matrix in matrices
        if matrix.layer in bases
        for name, (parameter, transposed) in matrix.parts().items()
    }


@contextmanager
@torch.no_grad()
def replaced(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the parameters of these names have these values; afterwards the old bits, also after an exception."""
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in tensors}
    try:
        for name, value in tensors.items():
            parameters[name].copy_(value)
        yield
    finally:
        for name, value in before.items():
            parameters[name].copy_(value)


@torch.no_grad()
def readout(language_model: LanguageModel) -> Tensor:
    """What turns a small change of the last state into a change of logits, but for its scale: [V, d] in float32.

    The output matrix times the gain of the norm before it, without the mean of each row where that norm takes the mean out.
    The gain is read off the model, whatever kind of norm it is: states of ones and of signs that alternate are sent out of
    the last block, of which the root mean square is the same everywhere.
    """
    model: Any = language_model.model
    matrix = module_at(model, "head").get_parameter("weight").detach().float()
    signs = torch.ones(matrix.shape[1])
    signs[1::2] = -1
    # So large that the constant which norms add to the variance is nothing; a power of 2 is exact in every precision.
    probes = 1024 * torch.stack([torch.zeros_like(signs), torch.ones_like(signs), signs])

    def probe(state: Tensor) -> Tensor:
        return probes.to(state)[None]

    ids = torch.full((1, len(probes)), language_model.pad_id, device=language_model.device)
    last = f"block.{len(blocks(model)) - 1}"
    with evaluating(model), editing(model, {last: probe}), recording(model, ["head.input"]) as found:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    zero, of_ones, of_signs = found["head.input"][0].float()
    read = matrix * ((of_signs - zero) * signs.to(of_signs))
    centred = (of_ones - zero).abs().max() < 1e-3 * (of_signs - zero).abs().max()
    return read - read.mean(-1, keepdim=True) if centred else read
