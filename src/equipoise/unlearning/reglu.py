"""ReGLU (arXiv:2604.17396): an adapter that begins where the forget set shows and is kept out of where the retain set shows.

Of one linear map y = W0 x, d_out wide, with a LoRA adapter y = W x + s B A x, A [r, d_in], B [d_out, r]. H_F [n_F, d_out]
and H_R [n_R, d_out]: its outputs over whole sequences, a row each, summed over the tokens that are no padding.

    C_F = H_F' H_F / n_F,  C_R = H_R' H_R / n_R                         second moments; means are not taken off
    Q [d_out, r]: eigenvectors of the r largest eigenvalues of (1 - beta) C_F - beta C_R
    start:    B0 = Q,  A0 = Q' W0,  W = W0 - s B0 A0                    what the map computes stays the same
    penalty:  ||B' P||_F^2, P [d_out, k] the k main directions of C_R   summed over all adapted maps, weighed by lambda
    export:   W + s B A = W0 + s [B, B0] [A; -A0]                       rank 2 r, on the map as it was

beta = 0 begins at the main directions of the forget set, beta = 1 at the least ones of the retain set. A multiple of the
identity, which the released code adds to both moments, moves every eigenvalue alike and no eigenvector, so there is none.

Where d_out is above n_F + n_R no d_out x d_out matrix is made: with [H_F; H_R]' = U R the eigenvectors are U times those of
R diag((1 - beta) / n_F ..., -beta / n_R ...) R', and every direction outside U has the eigenvalue 0. A start there would be
arbitrary, so more directions than there are positive eigenvalues are refused.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.training import subspace
from equipoise.training.gradients import sum_dtype
from equipoise.training.precision import NARROW
from equipoise.unlearning.recipe import METHODS, Pooling

Way = Literal["auto", "dense", "thin"]
KEPT_OUT = 128  # directions of the retain set that an adapter is kept out of, or a quarter of a map that is narrower


@closed
def pool(outputs: Tensor, mask: Tensor, pooling: Pooling = "sum") -> Tensor:
    """One vector a sequence in float64 (float32 on MPS): [B, T, d] and mask [B, T], true where no padding is -> [B, d].

    A sum over hundreds of tokens leaves the range of float16, so nothing of it is kept in less. Raises BadInput for a sum
    that is no finite number.
    """
    kept = mask.to(outputs.device, torch.bool)
    wide = sum_dtype(outputs.device)
    if pooling == "last":
        last = kept.shape[1] - 1 - kept.flip(-1).int().argmax(-1)
        found = outputs[torch.arange(len(outputs), device=outputs.device), last].to(wide)
    else:
        found = torch.where(kept.unsqueeze(-1), outputs, 0).sum(1, dtype=wide)
        if pooling == "mean":
            found = found / kept.sum(-1, keepdim=True)
    if not found.isfinite().all():
        raise BadInput("the outputs hold numbers that are not finite: the model, or its precision, is damaged.")
    return found


@dataclass(frozen=True)
class Directions:
    """vectors: Q [d_out, r]; eigenvalues [r], the largest first. positive: how many of all d_out are above 0."""

    vectors: Tensor
    eigenvalues: Tensor
    positive: int


@closed
def directions(
    forget_outputs: Tensor,
    retain_outputs: Tensor,
    rank: int,
    *,
    beta: float = 0.7,
    centred: bool = False,
    way: Way = "auto",
) -> Directions:
    """Q, of pooled outputs [n_F, d_out] and [n_R, d_out]; an eigenvector's largest entry is positive.

    beta: in [0, 1]. centred: with the means of both sides taken off. way: over a d_out x d_out matrix ("dense"), or one as
    wide as there are rows ("thin"), for the same result. Raises BadInput for a rank above the width, and for one beyond the
    positive eigenvalues where the outputs do not span all directions.
    """
    width = forget_outputs.shape[-1]
    if retain_outputs.shape[-1] != width or not len(forget_outputs) or not len(retain_outputs):
        raise BadInput(
            f"forget outputs {list(forget_outputs.shape)} and retain outputs {list(retain_outputs.shape)}: need at least "
            "one row of each, of one width."
        )
    if not 1 <= rank <= width:
        raise BadInput(f"rank {rank} of outputs that are {width} wide: use a rank from 1 to {width}.")
    if not 0 <= beta <= 1:
        raise BadInput(f"beta is {beta}: it must lie from 0 (forget set only) to 1 (retain set only).")
    sides = [each.to(sum_dtype(each.device)) for each in (forget_outputs, retain_outputs)]
    if centred:
        sides = [each - each.mean(0) for each in sides]
    shares = [(1 - beta) / len(sides[0]), -beta / len(sides[1])]
    rows = torch.cat(sides)
    weights = torch.cat([rows.new_full((len(each),), share) for each, share in zip(sides, shares, strict=True)])
    if way == "dense" or (way == "auto" and len(rows) >= width):
        values, vectors = torch.linalg.eigh((rows.T * weights) @ rows)
    else:
        lift, core = torch.linalg.qr(rows.T)
        values, vectors = torch.linalg.eigh((core * weights) @ core.T)
        vectors = lift @ vectors
    floor = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    positive, spanned = int((values > floor).sum()), int((values.abs() > floor).sum())
    if rank > positive and spanned < width:
        raise BadInput(
            f"in {positive} directions the forget set shows more than the retain set, and rank {rank} would take others at "
            f"random: use a lora_rank of at most {positive}, more forget records, or a lower guidance (beta)."
        )
    chosen = vectors.flip(-1)[:, :rank]
    signs = chosen.gather(0, chosen.abs().argmax(0, keepdim=True)).sign()
    return Directions(chosen * signs, values.flip(0)[:rank], positive)


def initialize(
    forget_outputs: Tensor,
    retain_outputs: Tensor,
    weight: Tensor,
    *,
    rank: int,
    beta: float = 0.7,
    scale: float,
    centred: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(A0 [rank, d_in], B0 [d_out, rank], base [d_out, d_in]) of a weight [d_out, d_in]: base + scale B0 A0 is the weight.

    The other arguments are those of `directions`; scale: alpha / rank of the adapter. Computed in float64; returned as the
    weight is, and in float32 where that has 16 bits, in which the difference would not cancel.
    """
    if weight.shape[0] != forget_outputs.shape[-1]:
        raise BadInput(
            f"the weight has {weight.shape[0]} outputs, and the outputs given are {forget_outputs.shape[-1]} wide."
        )
    q = directions(forget_outputs, retain_outputs, rank, beta=beta, centred=centred).vectors.to(weight.device)
    return residual(weight, q.T @ weight.to(q), q, scale)


def residual(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """(A, B, weight - scale B A), in the precision of the weight, of 16 bits in float32."""
    kept = torch.float32 if weight.dtype in NARROW else weight.dtype
    a, b = a.to(kept), b.to(kept)
    wide = sum_dtype(weight.device)
    return a, b, (weight.to(wide) - scale * (b.to(wide) @ a.to(wide))).to(kept)


def retain_basis(retain_outputs: Tensor, count: int | None = None) -> Tensor:
    """P [d_out, k]: the first k = `count` eigenvectors of C_R, of pooled outputs [n_R, d_out], orthonormal.

    Not given: 128, or a quarter of the width where that is less. Fewer where the outputs vary in fewer directions: others
    would forbid what says nothing of the retain set. Raises BadInput for as many as the width or more, which would forbid
    everything.
    """
    width = retain_outputs.shape[-1]
    if count is None:
        count = max(min(KEPT_OUT, width // 4), 1)
    if not 1 <= count < width:
        raise BadInput(f"{count} retain directions of outputs that are {width} wide: use 1 to {width - 1}.")
    return subspace.directions(retain_outputs, count, centred=False, fewer=True).T


def penalty(b: Tensor, retain_basis: Tensor) -> Tensor:
    """||B' P||_F^2 of B [d_out, r] and P [d_out, k], in float32 or more: 0 iff the columns of B are orthogonal to P."""
    wide = torch.promote_types(b.dtype, torch.float32)
    return (b.to(wide).T @ retain_basis.to(b.device, wide)).square().sum()


def to_original_base(a: Tensor, b: Tensor, a0: Tensor, b0: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """(A [2r, d_in], B [d_out, 2r]) with W0 + B A the trained map W0 - scale B0 A0 + scale B A: an adapter of W0 itself.

    a, b: the trained factors; a0, b0: those it began at. The scale is in B, so the adapter's alpha is its rank, 2r.
    """
    return torch.cat([a, -a0]), scale * torch.cat([b, b0], dim=1)


def share_in(outputs: Tensor, basis: Tensor) -> float:
    """trace(P' C P) / trace(C): the share of outputs' [n, d] squares in the span of an orthonormal basis [d, k].

    Of Q and retain outputs that were not looked at for Q it is the leakage. nan where the outputs are zero.
    """
    wide = outputs.to(sum_dtype(outputs.device))
    return ((wide @ basis.to(wide)).square().sum() / wide.square().sum()).item()


METHODS.register(
    "reglu",
    {
        "objective": "ihl",
        "combine": "sum",
        "parameters": "lora",
        "start": "reglu",
        "orthogonality": 0.5,
        "lora_rank": 32,
        "learning_rate": 1e-4,
    },
)
