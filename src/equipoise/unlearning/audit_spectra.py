"""What moved and what came back, by component of the states that the model had before.

h_o, h_u, h_r: states of the same token in the model before, after, and after relearning. v_0 is the direction of the mean of
h_o, v_1 ... its principal directions (centred), made orthonormal in this order. d_k = <h_u - h_o, v_k>.

    spread_k    mean |<h_o - mean, v_k>|, normalised to sum 1 over k
    change_k    mean |d_k|, normalised to sum 1                       change ratio (arXiv:2605.11685, as its card has it)
    within      sum over k and tokens of d_k^2 / sum over tokens of |h_u - h_o|^2
    recovery_k  sum over tokens of <h_u - h_r, v_k> d_k, over the sum of d_k^2

The card's recovery ratio is mean <h_u - h_r, v_k> / mean d_k, which divides by a number near 0 where d_k has both signs;
ours is the same ratio by least squares: 1 where everything is back, 0 where nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from equipoise.data.records import Record
from equipoise.language.encode import collate, encode
from equipoise.language.model import LanguageModel, evaluating
from equipoise.training.subspace import directions, orthonormal
from equipoise.unlearning.objectives import block_states
from equipoise.unlearning.sides import subsample

MOST = 4096  # tokens whose states are compared
BATCH = 32


def states(language_model: LanguageModel, records: Sequence[Record], block: int, *, max_length: int) -> Tensor:
    """States [N, D] after a block, in float32 on the CPU: of at most MOST tokens, without first ones and padding."""
    examples = encode(language_model, records, max_length=max_length)
    found = []
    with evaluating(language_model.model):
        for first in range(0, len(examples), BATCH):
            batch = collate(examples[first : first + BATCH], language_model.pad_id, language_model.device)
            mask = batch["attention_mask"].bool()
            mask[:, 0] = False
            found.append(block_states(language_model.model, block, batch)[mask].float().cpu())
    rows = torch.cat(found)
    return rows[subsample(range(len(rows)), MOST)]


def basis(before: Tensor, count: int) -> Tensor:
    """The direction of the mean and the first `count` - 1 principal directions, [count, D]. Raises BadInput for too few."""
    mean = before.double().mean(0)
    return orthonormal(torch.cat([mean[None], directions(before, count - 1, centred=True)]))


def spread(before: Tensor, vectors: Tensor) -> list[float]:
    """spread_k of the module's text."""
    rows = before.double()
    return _shares((rows - rows.mean(0)) @ vectors.T)


def change(before: Tensor, after: Tensor, vectors: Tensor) -> tuple[list[float], float]:
    """change_k and within of the module's text; nan where nothing moved."""
    moved = after.double() - before.double()
    along = moved @ vectors.T
    total = moved.square().sum()
    return _shares(along), (along.square().sum() / total).item() if total > 0 else math.nan


def recovery(before: Tensor, after: Tensor, relearned: Tensor, vectors: Tensor) -> list[float]:
    """recovery_k of the module's text; nan where nothing moved along a component."""
    moved, back = ((after - other).double() @ vectors.T for other in (before, relearned))
    products, squares = (back * moved).sum(0), moved.square().sum(0)
    return [(p / s).item() if s > 0 else math.nan for p, s in zip(products, squares, strict=True)]


def _shares(along: Tensor) -> list[float]:
    sizes = along.abs().mean(0)
    return (sizes / sizes.sum()).tolist()
