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

# Pieces stay in the second-level cache of a core, 2^16 float32 numbers for each of two; elsewhere only memory has to be
# bounded. Sums are made over pieces of this one size, so that they do not depend on the number of threads.
CPU_PIECE, DEVICE_PIECE = 2**17, 2**24


class Scratch:
    """Pieces of memory to write on, allocated once per name and reused from piece to piece."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype, torch.device, int], Tensor] = {}

    def __call__(self, name: str, like: Tensor) -> Tensor:
        """A flat tensor of the length, dtype and device of `like`; its content is whatever was last written there."""
        key = (name, like.dtype, like.device, like.numel())
        held = self._held.get(key)
        if held is None:
            longest = max((t for other, t in self._held.items() if other[:3] == key[:3]), key=len, default=None)
            fits = longest is not None and len(longest) >= len(like)
            held = self._held[key] = longest[: len(like)] if fits else torch.empty_like(like)  # type: ignore[index]
        return held


# rule(forget, retain, combined, scratch): flat pieces of one length; `combined` may be `forget` or `retain` itself.
Rule = Callable[[Tensor, Tensor, Tensor, Scratch], object]


def work_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 where one of the tensors is, else float32: what sums and comparisons are made in."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def sum_dtype(device: torch.device) -> torch.dtype:
    """float64, which MPS does not have: what scalars are summed in."""
    return torch.float32 if device.type == "mps" else torch.float64


def joint_norm(tensors: Gradients) -> Tensor:
    """L2 norm of all of them together, in float64 but on MPS; a missing one is zeros."""
    present = [tensor for tensor in tensors if tensor is not None]
    if not present:
        return torch.zeros(())
    dtype = sum_dtype(present[0].device)
    return torch.stack(
        [tensor.norm(dtype=torch.promote_types(tensor.dtype, torch.float32)).to(dtype) for tensor in present]
    ).norm()


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
    at once. Gradients that lie one after the other in one buffer, in all three lists, are taken as one tensor: every call
    that is saved counts where a model has hundreds of small ones. Raises BadInput when the lists do not correspond.
    """
    check_lists(forget, retain)
    scratch = Scratch()
    targets = [None] * len(forget) if out is None else out
    results: list[Tensor | None] = []
    begin = 0
    while begin < len(forget):
        end = begin + 1
        if observe is None:
            while end < len(forget) and all(_follows(side[end - 1], side[end]) for side in (forget, retain, targets)):
                end += 1
        f, r, target = (_joined(side[begin:end]) for side in (forget, retain, targets))
        if f is None and r is None:
            results.append(None)
        else:
            combined = _tensor(begin, f, r, target, rule, observe, piece, scratch)
            results += [combined] if end == begin + 1 else list(targets[begin:end])
        begin = end
    return results


def _follows(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether `second` begins in the buffer of `first` where that ends."""
    return (
        first is not None
        and second is not None
        and first.is_contiguous()
        and second.is_contiguous()
        and (first.dtype, first.device) == (second.dtype, second.device)
        and first.storage_offset() + first.numel() == second.storage_offset()
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    )


def _joined(tensors: Gradients) -> Tensor | None:
    """Tensors that follow one another as one flat tensor over the same memory; a single one as it is."""
    first = tensors[0]
    if first is None or len(tensors) == 1:
        return first
    return first.as_strided((sum(t.numel() for t in tensors if t is not None),), (1,))


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
    size = piece or _piece(target.device, observe)
    parts = stored.split(size)
    nothing = [None] * len(parts)
    f_parts = nothing if f_flat is None else f_flat.split(size)
    r_parts = nothing if r_flat is None else r_flat.split(size)
    for f, r, part in zip(f_parts, r_parts, parts, strict=True):
        f = f if f is None or f.dtype == dtype else f.to(dtype)
        r = r if r is None or r.dtype == dtype else r.to(dtype)
        f = scratch("missing", r).zero_() if f is None else f  # type: ignore[arg-type]
        r = scratch("missing", f).zero_() if r is None else r
        combined = part if straight else scratch("combined", f)
        rule(f, r, combined, scratch)
        if observe is not None:
            observe(index, f, r, combined)
        if not straight:
            part.copy_(combined)
    if flat is None:
        target.copy_(stored.view(target.shape))
    return target


def _piece(device: torch.device, observe: Observe | None) -> int:
    """Elements handed to a rule at once; an observer may sum over pieces, so its pieces have the size of sums."""
    if device.type != "cpu":
        return DEVICE_PIECE
    if observe is not None:
        return CPU_PIECE
    threads = torch.get_num_threads()
    # Torch hands the halves of a piece to threads above 2^15 elements: below there is nothing to wait for.
    return 2**15 if threads == 1 else 2**16 * threads


@torch.no_grad()
def inner_products(pairs: Sequence[tuple[Tensor | None, Tensor | None]]) -> Tensor:
    """<a, b> of each pair, [N] in `sum_dtype` on the device of the tensors; 0 where one is None."""
    device = next((t.device for pair in pairs for t in pair if t is not None), torch.device("cpu"))
    sums: list[Tensor] = []
    indices: list[int] = []
    for index, (a, b) in enumerate(pairs):
        if a is None or b is None:
            continue
        dtype = work_dtype(a, b)
        size = CPU_PIECE if a.device.type == "cpu" else DEVICE_PIECE
        for x, y in zip(a.reshape(-1).split(size), b.reshape(-1).split(size), strict=True):
            sums.append(torch.dot(x.to(dtype), y.to(dtype)))
            indices.append(index)
    total = torch.zeros(len(pairs), dtype=sum_dtype(device), device=device)
    if sums:
        total.index_add_(0, torch.tensor(indices, device=device), torch.stack(sums).to(total.dtype))
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
    return torch.addcmul(_zero(out.dtype, out.device), forget, retain, value=sign_scale(out.dtype), out=out).lt_(0)


def sign_scale(dtype: torch.dtype) -> float:
    """The largest power of two of float32 or float64: what a product is scaled by so that its sign does not underflow."""
    return 2.0**1023 if dtype == torch.float64 else 2.0**127


@functools.cache
def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device)
