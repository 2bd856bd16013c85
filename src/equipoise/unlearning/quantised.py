"""A round trip through few bits: weights rounded to the nearest of 2^b - 1 levels and widened again.

    s = max |w| / (2^(b - 1) - 1)        a scale for each row (output channel), or for each group of a row's inputs
    w' = s round(w / s)                  symmetric, so that 0 stays 0; |w - w'| <= s / 2

Rounding can bring back what small updates hid (arXiv:2410.16454). As weight-only quantisation does, it leaves embeddings,
output matrix, norms and biases as they are.
"""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput
from equipoise.language.model import LanguageModel
from equipoise.language.states import blocks

GROUP = 128  # inputs that share a scale, as GPTQ and AWQ have it


@torch.no_grad()
def round_trip(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """weight: [out, in] -> the same after rounding, in its precision. group: inputs of a scale; None: the whole row.

    The last group of a row may be shorter. Raises BadInput under 2 bits.
    """
    if bits < 2:
        raise BadInput(f"{bits} bits have no two signs and a zero: use at least 2.")
    levels, wide = 2 ** (bits - 1) - 1, weight.float()
    parts = []
    for part in wide.split(group or wide.shape[1], dim=1):
        scale = part.abs().amax(dim=1, keepdim=True) / levels
        parts.append(torch.where(scale > 0, (part / scale).round() * scale, part))
    return torch.cat(parts, dim=1).to(weight.dtype)


@torch.no_grad()
def quantised(language_model: LanguageModel, bits: int, group: int | None = None) -> LanguageModel:
    """A copy whose blocks' matrices have made the round trip."""
    copied = replace(language_model, model=copy.deepcopy(language_model.model))
    for module in blocks(copied.model).modules():
        weight: Tensor | None = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2 or isinstance(module, nn.Embedding):
            continue
        by_input = type(module).__name__ == "Conv1D"  # GPT-2's linear layers are [in, out]
        rounded = round_trip(weight.T if by_input else weight, bits, group)
        weight.copy_(rounded.T if by_input else rounded)
    return copied
