"""Removal of toxic vectors (Lee et al. 2024, arXiv:2401.01967), and whether what was removed can be rebuilt.

W_l [d, f] has the value vectors of layer l in its columns. With a probe w [d] that tells unwanted states from wanted ones,
the n value vectors with the highest cosine to w are set to zero. GLOSS's first criticism of that: a vector that was removed
is a combination of those that are left, so that the layer can still write it. That is measured here:

    residual(v) = min_c |v - R c| / |v|,  R the vectors left in v's layer

0: the layer can write it exactly; 1: nothing of it. With `terms` only so many vectors of R, chosen greedily.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.training.gradients import sum_dtype
from equipoise.training.subspace import span


def probe_direction(toxic: Tensor, neutral: Tensor, *, ridge: float = 1e-2) -> Tensor:
    """A linear probe's unit direction w [d] for states [N, d] of both sides: Fisher's, with a ridge.

    w ~ (C + ridge * tr(C) / d * I)^-1 (mean difference), C the mean covariance within the sides.
    """
    wide = sum_dtype(toxic.device)
    sides = [side.to(wide) for side in (toxic, neutral)]
    within = sum(torch.cov(side.T, correction=0) for side in sides) / 2
    assert isinstance(within, Tensor)
    eye = torch.eye(len(within)).to(within)
    scale = within.trace() / len(within)
    damped = within + (ridge * scale).clamp(min=torch.finfo(wide).tiny) * eye
    found = torch.linalg.solve(damped, sides[0].mean(0) - sides[1].mean(0))
    return found / found.norm()


def toxic_vectors(values: Mapping[int, Tensor], probe: Tensor, count: int) -> dict[int, Tensor]:
    """Layer -> indices of its columns among the `count` value vectors, of all layers [d, f], with the highest cosine to w.

    Raises BadInput for more than there are. A vector of zeros is never chosen before another.
    """
    total = sum(matrix.shape[1] for matrix in values.values())
    if not 0 <= count <= total:
        raise BadInput(f"{count} of {total} value vectors were asked for: use 0 to {total}.")
    unit = probe / probe.norm()
    cosines = {}
    for layer, matrix in values.items():
        wide = matrix.to(sum_dtype(matrix.device))
        lengths = wide.norm(dim=0)
        along = unit.to(wide) @ wide / lengths.clamp(min=torch.finfo(wide.dtype).tiny)
        cosines[layer] = along.where(lengths > 0, -torch.inf)
    every = torch.cat(list(cosines.values()))
    best = torch.zeros(total, dtype=torch.bool, device=every.device)
    best[every.argsort(descending=True, stable=True)[:count]] = True
    parts = best.split([len(each) for each in cosines.values()])
    return {layer: part.nonzero().flatten() for layer, part in zip(cosines, parts, strict=True)}


def without(weight: Tensor, columns: Tensor, *, transposed: bool = False) -> Tensor:
    """A value matrix with these value vectors set to zero: columns of [d, f], rows of one stored transposed."""
    edited = weight.clone()
    if transposed:
        edited[columns] = 0
    else:
        edited[:, columns] = 0
    return edited


def rebuilding_residual(removed: Tensor, remaining: Tensor, terms: int | None = None) -> Tensor:
    """residual(v) for each removed vector [R, d] from those that are left [M, d]: [R] in [0, 1]; nan for a vector of zeros.

    terms: with at most so many of them, by orthogonal matching pursuit; not given: with all.
    """
    wide = sum_dtype(removed.device)
    removed, remaining = removed.to(wide), remaining.to(wide)
    lengths = removed.norm(dim=-1)
    if terms is None:
        basis = _span(remaining)
        left = removed - (removed @ basis.T) @ basis
        return (left.norm(dim=-1) / lengths).clamp(max=1)
    usable = remaining[remaining.norm(dim=-1) > 0]
    unit = usable / usable.norm(dim=-1, keepdim=True)
    return torch.stack([_pursued(vector, unit, terms) for vector in removed]) if len(removed) else lengths


def _span(vectors: Tensor) -> Tensor:
    usable = vectors[vectors.norm(dim=-1) > 0]
    return span(usable) if len(usable) else vectors[:0]


def _pursued(vector: Tensor, unit: Tensor, terms: int) -> Tensor:
    basis = vector.new_empty(0, len(vector))
    left = vector
    for _ in range(min(terms, len(unit))):
        along = (unit @ left).abs()
        chosen = unit[int(along.argmax())]
        added = chosen - (chosen @ basis.T) @ basis
        added = added - (added @ basis.T) @ basis  # twice: the first leaves rounding along the basis
        if added.norm() < 1e-10:
            break
        basis = torch.cat([basis, (added / added.norm())[None]])
        left = vector - (vector @ basis.T) @ basis
    return (left.norm() / vector.norm()).clamp(max=1)
