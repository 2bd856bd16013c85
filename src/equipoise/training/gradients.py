"""Lists of gradients, one entry a parameter, combined in place and in pieces that stay in the processor's cache.

What all combination rules share: `apply` walks two lists and hands a rule one piece of each at a time, `inner_products`
sums over whole tensors. A missing gradient (None) is zeros; where both are missing the parameter has no gradient, None.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from equipoise.core.errors import BadInput

Gradients = Sequence[Tensor | None]
# Called with (index of the tensor, forget, retain, combined) for every flat piece before the piece is stored.
Observe = Callable[[int, Tensor, Tensor, Tensor], None]
# Sums a tensor of scalars over the shards of a sharded model.
Reduce = Callable[[Tensor], Tensor]

# Three float32 pieces of 2^17 stay in the second-level cache of a core; elsewhere only memory has to be bounded.
CPU_PIECE, DEVICE_PIECE = 2**17, 2**24


class Scratch:
    """Pieces of memory to write on, allocated once per name and reused from piece to piece."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def __call__(self, name: str, like: Tensor) -> Tensor:
        """A flat tensor of the length, dtype and device of `like`; its content is whatever was last written there."""
        key = (name, like.dtype, like.device)
        held = self._held.get(key)
        if held is None or held.numel() < like.numel():
            held = self._held[key] = torch.empty_like(like)
        return held[: like.numel()]


# rule(forget, retain, combined, scratch): flat pieces of one length; `combined` may be `forget` or `retain` itself.
Rule = Callable[[Tensor, Tensor, Tensor, Scratch], object]


def work_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 where one of the tensors is, else float32: what sums and comparisons are made in."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def sum_dtype(device: torch.device) -> torch.dtype:
    """float64, which MPS does not have: what scalars are summed in."""
    return torch.float32 if device.type == "mps" else torch.float64


def check_weights(**weights: float) -> None:
    """Raises BadInput unless every weight is a finite number of at least 0."""
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise BadInput(f"{name} is {weight}, expected a finite number of at least 0.")


def check_lists(forget: Gradients, retain: Gradients) -> None:
    """Raises BadInput unless both lists have one entry per parameter, of the same shape where neither is None."""
    if len(forget) != len(retain):
        raise BadInput(f"{len(forget)} forget gradients and {len(retain)} retain gradients: one of each per parameter.")
    for index, (f, r) in enumerate(zip(forget, retain, strict=True)):
        if f is not None and r is not None and f.shape != r.shape:
            raise BadInput(f"gradient {index} is {tuple(f.shape)} for forget and {tuple(r.shape)} for retain.")


@torch.no_grad()
def apply(
    rule: Rule,
    forget: Gradients,
    retain: Gradients,
    *,
    out: Gradients | None = None,
    observe: Observe | None = None,
    piece: int | None = None,
) -> list[Tensor | None]:
    """Combine two lists of gradients piece by piece, in float32 or float64; results have the dtype of their gradients.

    out: where to write, entry by entry (None allocates); it may be `forget` or `retain`. piece: elements handed to the rule
    at once. Raises BadInput when the lists do not correspond.
    """
    check_lists(forget, retain)
    scratch = Scratch()
    targets = [None] * len(forget) if out is None else out
    return [
        None if f is None and r is None else _tensor(index, f, r, target, rule, observe, piece, scratch)
        for index, (f, r, target) in enumerate(zip(forget, retain, targets, strict=True))
    ]


def _tensor(
    index: int,
    forget: Tensor | None,
    retain: Tensor | None,
    target: Tensor | None,
    rule: Rule,
    observe: Observe | None,
    piece: int | None,
    scratch: Scratch,
) -> Tensor:
    """One tensor of `apply`; at least one of the gradients is there."""
    first = forget if forget is not None else retain
    second = retain if retain is not None else forget
    assert first is not None and second is not None
    if target is None:
        target = torch.empty(first.shape, dtype=torch.promote_types(first.dtype, second.dtype), device=first.device)
    dtype = work_dtype(first, second)
    # A target of another precision or layout gets its values through a copy; so does an observed one, because the gradient
    # that it may overwrite is still to be seen.
    flat = target.view(-1) if target.is_contiguous() else None
    straight = flat is not None and flat.dtype == dtype and observe is None
    stored = flat if flat is not None else torch.empty(target.numel(), dtype=target.dtype, device=target.device)
    f_flat = None if forget is None else forget.reshape(-1)
    r_flat = None if retain is None else retain.reshape(-1)
    size = piece or (CPU_PIECE if target.device.type == "cpu" else DEVICE_PIECE)
    for begin in range(0, target.numel(), size):
        part = slice(begin, begin + size)
        f = None if f_flat is None else f_flat[part].to(dtype)
        r = None if r_flat is None else r_flat[part].to(dtype)
        f = scratch("missing", r).zero_() if f is None else f  # type: ignore[arg-type]
        r = scratch("missing", f).zero_() if r is None else r
        combined = stored[part] if straight else scratch("combined", f)
        rule(f, r, combined, scratch)
        if observe is not None:
            observe(index, f, r, combined)
        if not straight:
            stored[part].copy_(combined)
    if flat is None:
        target.copy_(stored.view(target.shape))
    return target


@torch.no_grad()
def inner_products(pairs: Sequence[tuple[Tensor | None, Tensor | None]]) -> Tensor:
    """<a, b> of each pair, [N] in `sum_dtype` on the device of the tensors; 0 where one is None."""
    device = next((t.device for pair in pairs for t in pair if t is not None), torch.device("cpu"))
    sums: list[Tensor] = []
    places: list[int] = []
    for place, (a, b) in enumerate(pairs):
        if a is None or b is None:
            continue
        dtype = work_dtype(a, b)
        size = CPU_PIECE if a.device.type == "cpu" else DEVICE_PIECE
        for x, y in zip(a.reshape(-1).split(size), b.reshape(-1).split(size), strict=True):
            sums.append(torch.dot(x.to(dtype), y.to(dtype)))
            places.append(place)
    total = torch.zeros(len(pairs), dtype=sum_dtype(device), device=device)
    if sums:
        total.index_add_(0, torch.tensor(places, device=device), torch.stack(sums).to(total.dtype))
    return total


def weighted_sum(forget_weight: float, retain_weight: float) -> Rule:
    """The rule forget_weight * f + retain_weight * r."""

    def rule(forget: Tensor, retain: Tensor, combined: Tensor, scratch: Scratch) -> None:
        if retain_weight == 1:
            torch.add(retain, forget, alpha=forget_weight, out=combined)
            return
        if forget_weight != 1:
            forget = torch.mul(forget, forget_weight, out=scratch("forget", forget))
        torch.add(forget, retain, alpha=retain_weight, out=combined)

    return rule


def conflicts(forget: Tensor, retain: Tensor, out: Tensor) -> Tensor:
    """1 where f_i r_i < 0, else 0, written to `out` (float32 or float64, as the inputs).

    A plain product underflows to 0, which would read as agreement, from |f|, |r| ~ 1e-23 down in float32. Scaled by the
    largest power of two first, its sign is right for every pair with at least one normal number (two subnormals, both below
    1.2e-38, may count as agreeing); overflow keeps the sign, and the nan of inf * 0 compares as agreement, as a zero should.
    Comparing two sign() would cover subnormals as well, for another pass over memory.
    """
    scale = 2.0**1023 if out.dtype == torch.float64 else 2.0**127
    return torch.addcmul(_zero(out.dtype, out.device), forget, retain, value=scale, out=out).lt_(0)


@functools.cache
def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device)
