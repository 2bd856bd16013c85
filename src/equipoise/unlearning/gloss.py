"""GLOSS (arXiv:2601.06226): one subspace of unwanted directions, shared by all layers, projected out of what they write.

N pairs, d width, f neurons of a layer, V vocabulary, r candidates a layer, M kept, k rank.

    FFN_l(x) = W_l m_l(x) + b_l                 feed-forward part of layer l, W_l [d, f]
    T_l = (X_l - Y_l)(I - Q'Q)                  X_l, Y_l [N, d]: mean activation of each unwanted and each wanted text;
                                                Q an orthonormal basis of u_1 ... u_L, u_l the first right singular vector
                                                of Y_l, for all layers of the range
    v_l1 ... v_lr                               first right singular vectors of T_l, the candidates
    score(v) = share of the m likeliest tokens of E (g * v) that are listed, for the better of v and -v
    G [M, d]                                    candidates whose score is above mean + alpha * deviation of all scores
    U [k, d]                                    first right singular vectors of G, not centred
    W_l <- (I - s U'U) W_l,  b_l <- (I - s U'U) b_l     in each layer of the range, s the strength

E is the output matrix and g the gain of the norm before it. ProFS (arXiv:2405.13967) differs in Q, of which its own u_l is
all, and in U: each layer its own first k singular vectors, of states after the block. Pooled is GLOSS without the score,
random a control of k random directions.

The text of the paper was not to be had beyond its abstract; public reviews of an earlier version state the steps. Chosen
here: u_l as ProFS's code has it, but every layer's for all, since what one layer writes on average can be what tells two
texts apart in another, and U is taken out of both; m, r, alpha; no centring of G, since the direction that all share is its
mean; biases, which would leak a constant part; the rank as what has 90 % of the squared singular mass of G, 10 at most.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.training import subspace
from equipoise.training.gradients import sum_dtype

Centring = Literal["neutral", "none"]  # of one layer
Kept = Literal["layers", "neutral", "none"]
DetoxMethod = Literal["gloss", "pooled", "profs", "random"]
LEAST = 5  # candidates that are kept where fewer pass the threshold
SHARE, MOST = 0.9, 10  # of the squared singular mass of what is kept; the largest rank that is chosen by it
AT_ONCE = 32  # directions decoded together


@closed
def layer_directions(toxic: Tensor, neutral: Tensor, count: int, *, centring: Centring = "neutral") -> Tensor:
    """The first `count` right singular vectors of T_l, [count, d] in float64; toxic, neutral: [N, d], row by row a pair.

    centring: "neutral" takes the main direction of the neutral side out of the differences first. An eigenvector has no
    sign: its largest entry is above 0. Raises BadInput for sides of different shapes, for numbers that are not finite, and
    where the differences vary in fewer directions.
    """
    if toxic.shape != neutral.shape or toxic.dim() != 2:
        raise BadInput(
            f"the toxic side is {list(toxic.shape)} and the neutral one {list(neutral.shape)}: each pair needs both sides, "
            "as rows of two matrices of one shape."
        )
    for name, side in (("toxic", toxic), ("neutral", neutral)):
        if not side.isfinite().all():
            raise BadInput(f"the {name} side holds activations that are not finite: use dtype float32 or bfloat16.")
    wide = sum_dtype(toxic.device)
    differences, neutral = toxic.to(wide) - neutral.to(wide), neutral.to(wide)
    if centring == "neutral" and neutral.any():
        differences = subspace.project_out(differences, subspace.directions(neutral, 1, centred=False))
    return subspace.directions(differences, count, centred=False)


def main_directions(neutral: Iterable[Tensor]) -> Tensor:
    """Q: an orthonormal basis of the main direction (not centred) of each of these [N, d], [L, d] or fewer rows."""
    return subspace.span(torch.cat([subspace.directions(rows, 1, centred=False, fewer=True) for rows in neutral]))


def decode(directions: Tensor, unembedding: Tensor, count: int, *, gain: Tensor | None = None) -> Tensor:
    """The ids of the `count` tokens that each direction [M, d] makes likeliest, [M, count], the likeliest first.

    unembedding: E, [V, d]; gain: that of the norm before it, [d].
    """
    if not 1 <= count <= len(unembedding):
        raise BadInput(f"{count} tokens of a vocabulary of {len(unembedding)} were asked for: use 1 to so many.")
    matrix = unembedding if gain is None else unembedding * gain.to(unembedding)
    rows = [(part.to(matrix) @ matrix.T).topk(count, dim=-1).indices for part in directions.split(AT_ONCE)]
    return torch.cat(rows) if rows else torch.empty(0, count, dtype=torch.int64)


def rank_by_tokens(
    directions: Tensor, unembedding: Tensor, listed: Tensor, *, tokens: int = 50, gain: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Each direction with the sign whose decoded tokens are listed more often, [M, d], and that share, [M] in [0, 1].

    listed: [V] bool. Of equal shares the sign that came stays.
    """
    listed = listed.to(unembedding.device)
    along, against = (
        listed[decode(sign * directions, unembedding, tokens, gain=gain)].double().mean(-1).to(directions.device)
        for sign in (1, -1)
    )
    signs = torch.where(against > along, -1.0, 1.0).to(directions)
    return directions * signs[:, None], torch.maximum(along, against)


def keep(scores: Tensor, *, alpha: float = 0.0, least: int = LEAST) -> Tensor:
    """Which candidates are kept, highest score first: those above mean + alpha * standard deviation.

    The `least` best where fewer pass; of equal scores the earlier ones.
    """
    order = scores.argsort(descending=True, stable=True)
    above = scores > scores.mean() + alpha * scores.std(correction=0)
    return order[: max(int(above.sum()), min(least, len(scores)))]


def rank_of(directions: Tensor, *, share: float = SHARE, most: int = MOST) -> int:
    """The smallest rank with `share` of the squared singular mass of directions [M, d]; `most` at most, 0 for none."""
    if not len(directions):
        return 0
    mass = torch.linalg.svdvals(directions.to(sum_dtype(directions.device))).square().cumsum(0)
    # Rounding must not make one more of a share that is reached exactly.
    reached = (mass < (share - 1e-12) * mass[-1]).sum()
    return min(int(reached) + 1, most, len(mass))


def global_basis(directions: Tensor, count: int) -> Tensor:
    """U: the first `count` right singular vectors of directions [M, d], not centred, orthonormal, [count, d].

    Raises BadInput for a rank above the width, and above what the directions span.
    """
    width = directions.shape[-1]
    if not 0 <= count <= width:
        raise BadInput(f"rank {count} in layers that are {width} wide: use 0 to {width}.")
    if count > len(directions):
        raise BadInput(
            f"rank {count} of {len(directions)} directions that are kept: use a lower rank, or a lower alpha."
        )
    if not count:
        return directions.new_empty(0, width, dtype=sum_dtype(directions.device))
    return subspace.directions(directions, count, centred=False)


def random_basis(width: int, count: int, generator: torch.Generator) -> Tensor:
    """A control: `count` random orthonormal directions, [count, width] in float64."""
    if not 0 <= count <= width:
        raise BadInput(f"rank {count} in layers that are {width} wide: use 0 to {width}.")
    drawn = torch.randn(count, width, generator=generator, dtype=torch.float64, device=generator.device)
    return subspace.orthonormal(drawn) if count else drawn


def project(weight: Tensor, basis: Tensor, *, transposed: bool = False, strength: float = 1.0) -> Tensor:
    """(I - s U'U) W for a value matrix [d, f], or a bias [d]; W (I - s U'U) for one stored transposed, [f, d].

    basis: U, orthonormal, [k, d]. Computed in float64 (float32 on MPS) and rounded once to the weight's own precision. With
    no direction, or strength 0, the same bits. Raises BadInput for another width and for a basis that is not orthonormal.
    """
    side = weight.shape[-1] if transposed or weight.dim() == 1 else weight.shape[0]
    if basis.dim() != 2 or basis.shape[1] != side:
        raise BadInput(
            f"a basis {list(basis.shape)} does not fit a value matrix {list(weight.shape)}"
            f"{' stored transposed' if transposed else ''}: the layer writes vectors of {side}."
        )
    if not len(basis) or strength == 0:
        return weight.clone()
    wide = weight.to(sum_dtype(weight.device))
    rows = basis.to(wide)
    if (rows @ rows.T - torch.eye(len(rows)).to(rows)).abs().max() > 1e-4:
        raise BadInput("the basis is not orthonormal, so that projecting out of it would not remove it: use its span.")
    if transposed or weight.dim() == 1:
        edited = wide - strength * (wide @ rows.T) @ rows
    else:
        edited = wide - strength * rows.T @ (rows @ wide)
    return edited.to(weight.dtype)


def removed_energy(weight: Tensor, basis: Tensor, *, transposed: bool = False, strength: float = 1.0) -> float:
    """1 - |W'|^2 / |W|^2 with W' of `project`, s (2 - s) |U W|^2 / |W|^2: the share of a value matrix that is taken out.

    In [0, 1] for strengths in [0, 1]; nan of a matrix of zeros.
    """
    wide = weight.to(sum_dtype(weight.device))
    along = basis.to(wide) @ (wide.T if transposed else wide)
    return (strength * (2 - strength) * along.square().sum() / wide.square().sum()).item()


def capture(basis: Tensor, planted: Tensor) -> float:
    """|U S'|^2 / rank S for orthonormal rows S: how much of a known subspace a basis [k, d] holds, in [0, 1]."""
    return ((basis.to(planted) @ planted.T).square().sum() / len(planted)).item()


@dataclass(frozen=True, eq=False)
class Candidates:
    """Candidate directions [C, d], by layer and in a layer by singular value; layers, numbers: of each, from 0.

    scores: [C], nan where nothing is listed; kept: indices of those that U is made of, best first.
    """

    directions: Tensor
    layers: tuple[int, ...]
    numbers: tuple[int, ...]
    scores: Tensor
    kept: tuple[int, ...]


@closed
def candidates(
    toxic: Mapping[int, Tensor],
    neutral: Mapping[int, Tensor],
    count: int,
    *,
    method: DetoxMethod = "gloss",
    unembedding: Tensor | None = None,
    listed: Tensor | None = None,
    gain: Tensor | None = None,
    tokens: int = 50,
    alpha: float = 0.0,
    centring: Kept | None = None,
) -> Candidates:
    """The candidates of every layer, scored where tokens are listed; toxic, neutral: layer -> [N, d].

    "gloss" keeps those that score, all of them where no token is listed; other methods keep all. centring: "layers" takes
    the main directions of the neutral side of all layers out of the differences, "neutral" each layer's own; not given,
    "neutral" by "profs", else "layers". Raises BadInput as `layer_directions`, naming the layer.
    """
    centring = centring or ("neutral" if method == "profs" else "layers")
    if centring == "layers":
        kept_in = main_directions(neutral.values())
        toxic, neutral = (
            {layer: subspace.project_out(rows.to(sum_dtype(rows.device)), kept_in) for layer, rows in side.items()}
            for side in (toxic, neutral)
        )
    found = {}
    for layer in toxic:
        try:
            found[layer] = layer_directions(
                toxic[layer], neutral[layer], count, centring="neutral" if centring == "neutral" else "none"
            )
        except BadInput as error:
            raise BadInput(f"layer {layer}: {error}") from error
    directions = torch.cat(list(found.values()))
    scores = torch.full((len(directions),), torch.nan, dtype=torch.float64)
    ranked = False
    if unembedding is not None and listed is not None and listed.any():
        directions, scores = rank_by_tokens(directions, unembedding, listed, tokens=tokens, gain=gain)
        ranked = method == "gloss"
    kept = keep(scores, alpha=alpha).tolist() if ranked else range(len(directions))
    return Candidates(
        directions=directions,
        layers=tuple(layer for layer, rows in found.items() for _ in rows),
        numbers=tuple(number for rows in found.values() for number in range(len(rows))),
        scores=scores,
        kept=tuple(kept),
    )


@closed
def bases(found: Candidates, method: DetoxMethod, rank: int | None = None, *, seed: int = 0) -> dict[int, Tensor]:
    """U of every layer [k, d]: one for all, but each its own by "profs". rank: not given, `rank_of` what was kept.

    Of "profs" it is at most the number of candidates a layer, and all of these when not given. seed: of "random".
    """
    layers: Sequence[int] = tuple(dict.fromkeys(found.layers))
    if method == "profs":
        each = {layer: found.directions[[i for i, own in enumerate(found.layers) if own == layer]] for layer in layers}
        most = min(map(len, each.values()))
        if rank is not None and rank > most:
            raise BadInput(f"rank {rank} of {most} candidates a layer: use fewer, or more candidates.")
        return {layer: rows[:rank] for layer, rows in each.items()}
    kept = found.directions[list(found.kept)]
    k = rank_of(kept) if rank is None else rank
    if method == "random":
        basis = random_basis(kept.shape[1], k, torch.Generator().manual_seed(seed)).to(kept.device)
    else:
        basis = global_basis(kept, k)
    return dict.fromkeys(layers, basis)
