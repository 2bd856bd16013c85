"""Where activations vary: moments over tokens in float64, principal directions from them, and projection.

N states, D their width, K directions. For states x_1 ... x_N in the rows of X, with mean m,

    C = X' X / N                       second moments, or C = (X - m)' (X - m) / N when centred
    C v_k = s_k v_k,  s_1 >= s_2 ...   directions v_k, variances s_k
    P x = x - sum_k <x, v_k> v_k       projection out of them

Two ways to the same directions: `Moments` sums X' X while states stream by, D^2 numbers whatever N is; `directions`
decomposes states that are all in memory, cheaper where N < D. An eigenvector has no sign: here its largest entry is above 0.

Far from zero X' X / N - m m' is what rounding leaves of two large numbers. So a mean is subtracted before squaring: m itself
of states in memory, of a stream the mean of its first batch.
"""

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.training.gradients import sum_dtype


class Moments:
    """Sums of x - o and (x - o)(x - o)' over tokens, added batch by batch; o is the mean of the first."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        """device: where the sums are kept; in float64, which MPS does not have."""
        self.count = 0
        device = torch.device(device)
        self._sum = torch.zeros(width, dtype=sum_dtype(device), device=device)
        self._origin = self._sum.clone()
        self._squares = self._sum.new_zeros(width, width)

    @property
    def width(self) -> int:
        """D."""
        return len(self._sum)

    @torch.no_grad()
    def add(self, states: Tensor, mask: Tensor | None = None) -> None:
        """states: [..., D]; mask: [...], true or 1 where a state counts, all when not given.

        Raises BadInput for another width, and for a state that counts and is no finite number.
        """
        if states.shape[-1] != self.width:
            raise BadInput(f"these states are {states.shape[-1]} wide, the moments {self.width}.")
        rows = states.reshape(-1, self.width) if mask is None else states[mask.to(states.device, torch.bool)]
        rows = rows.to(self._sum)
        _check_finite(rows)
        if not self.count and len(rows):
            self._origin = rows.mean(0)
        rows = rows - self._origin
        self._sum += rows.sum(0)
        self._squares.addmm_(rows.T, rows)
        self.count += len(rows)

    @property
    def mean(self) -> Tensor:
        """[D]; nan when nothing was added."""
        return self._origin + self._sum / self.count if self.count else torch.full_like(self._sum, torch.nan)

    def second(self, *, centred: bool) -> Tensor:
        """C, [D, D]: the covariance when centred, else the second moments. Raises BadInput when nothing was added."""
        _require(self.count, 1)
        shift = self._sum / self.count
        covariance = self._squares / self.count - shift.outer(shift)
        return covariance if centred else covariance + self.mean.outer(self.mean)

    def directions(self, count: int, *, centred: bool) -> Tensor:
        """The first `count` principal directions, orthonormal, [count, D], those of the largest variance first.

        Raises BadInput where the states vary in fewer directions: the rest would be arbitrary.
        """
        _require(self.count, count + centred)
        shift = self._sum / self.count
        return _chosen(*self.spectrum(centred=centred), count, _lost(self.mean, shift if centred else None))

    def spectrum(self, *, centred: bool) -> tuple[Tensor, Tensor]:
        """Every eigenvector of C, [D, D] row by row, and its eigenvalue, [D], largest first."""
        return _spectrum(self.second(centred=centred))

    def variances(self, directions: Tensor, *, centred: bool) -> Tensor:
        """Mean square along each of the directions [K, D] (from the mean when centred), [K]."""
        along = directions.to(self._sum)
        return ((along @ self.second(centred=centred)) * along).sum(-1)


@torch.no_grad()
def directions(states: Tensor, count: int, *, centred: bool, fewer: bool = False) -> Tensor:
    """As `Moments.directions`, of states [N, D] in memory: float64, by singular values where N < D.

    fewer: where they vary in fewer directions, those.
    """
    _require(len(states), 1 if fewer else count + centred)
    rows = states.to(sum_dtype(states.device))
    _check_finite(rows)
    mean = rows.mean(0)
    rows = rows - mean if centred else rows
    if rows.shape[0] >= rows.shape[1]:
        return _chosen(*_spectrum(rows.T @ rows / len(rows)), count, _lost(mean), fewer)
    _, singular, vectors = torch.linalg.svd(rows, full_matrices=False)
    return _chosen(vectors, singular.square() / len(rows), count, _lost(mean), fewer)


def orthonormal(vectors: Tensor) -> Tensor:
    """Vectors [K, D] made orthonormal in their order (Gram-Schmidt by QR), signs kept; float64 unless on MPS.

    Raises BadInput where one lies in the span of those before it.
    """
    wide = vectors.to(sum_dtype(vectors.device))
    lengths = wide.norm(dim=-1)
    q, r = torch.linalg.qr(wide.T)
    left = r.diagonal()
    if len(wide) > wide.shape[1] or (left.abs() <= lengths * wide.shape[1] * torch.finfo(wide.dtype).eps).any():
        raise BadInput(f"these {len(wide)} directions span fewer dimensions: use fewer of them.")
    return (q * left.sign()).T


def span(vectors: Tensor) -> Tensor:
    """An orthonormal basis [R, D] of what vectors [K, D] span, whatever their lengths; R is smaller where some depend."""
    wide = vectors.to(sum_dtype(vectors.device))
    unit = wide[wide.norm(dim=-1) > 0]
    unit = unit / unit.norm(dim=-1, keepdim=True)
    _, singular, rows = torch.linalg.svd(unit, full_matrices=False)
    return rows[singular > wide.shape[1] * torch.finfo(wide.dtype).eps]


def project_out(states: Tensor, basis: Tensor) -> Tensor:
    """States [..., D] without their part in the span of an orthonormal basis [K, D]; with gradients, in their precision."""
    basis = basis.to(states)
    return states - (states @ basis.T) @ basis


def _require(found: int, needed: int) -> None:
    if found < needed:
        raise BadInput(f"{found} states cannot tell so many directions: {needed} are needed. Use more text, or fewer.")


def _check_finite(rows: Tensor) -> None:
    if not rows.sum(0).isfinite().all():
        raise BadInput("states hold numbers that are not finite: the model, or its precision, is damaged.")


def _spectrum(second: Tensor) -> tuple[Tensor, Tensor]:
    variances, vectors = torch.linalg.eigh(second)
    return vectors.T.flip(0), variances.flip(0)


def _lost(mean: Tensor, shift: Tensor | None = None) -> Tensor:
    """The variance that rounding makes of states with that mean: their last bits, and shift shift' taken from squares."""
    eps = torch.finfo(mean.dtype).eps
    last = (mean.norm() * eps).square()
    return last if shift is None else last + shift.square().sum() * eps


def _chosen(vectors: Tensor, variances: Tensor, count: int, lost: Tensor, fewer: bool = False) -> Tensor:
    """The first of these rows, largest entry positive; refuses, or with `fewer` leaves out, whose variance is rounding."""
    floor = (variances[0].clamp(min=0) * torch.finfo(variances.dtype).eps + lost) * len(vectors)
    varied = int((variances > floor).sum())
    if varied < count and not fewer:
        raise BadInput(f"the states vary in {varied} directions and {count} were asked for: use fewer.")
    chosen = vectors[: min(count, varied)]
    return chosen * chosen.gather(-1, chosen.abs().argmax(-1, keepdim=True)).sign()
