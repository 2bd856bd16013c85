"""SAGO, sign-align gradient optimisation (arXiv:2604.14808): no coordinate of the update opposes retention.

With forget gradient f, retain gradient r, weights gamma (forget) and alpha (retain), per coordinate i:

    SAGO                  g_i = alpha r_i             where f_i r_i < 0      g_i = gamma f_i              elsewhere
    SAGO-prefer-retain    g_i = alpha r_i             where f_i r_i < 0      g_i = gamma f_i + alpha r_i  elsewhere

so g_i r_i >= 0 everywhere. A zero in either is agreement. On agreeing coordinates SAGO drops the retain gradient; the second
rule, found in the authors' code and not in the paper, keeps it. f and r are the gradients of the unweighted losses over the
whole accumulation window and all processes: combining per micro-batch is another rule.
"""

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from equipoise.training.gradients import (
    CPU_PIECE,
    Gradients,
    Observe,
    Reduce,
    Rule,
    Scratch,
    apply,
    check_weights,
    conflicts,
    sign_scale,
)
from equipoise.unlearning.recipe import COMBINE, METHODS

METHODS.register("sago", {"objective": "simnpo", "combine": "sago"})

COMPILED_PIECE = 2**31  # whole tensors: a fused kernel needs no cache, and no scratch memory


@COMBINE.register("sago")
def combine(
    forget: Gradients,
    retain: Gradients,
    *,
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    out: Gradients | None = None,
    reduce: Reduce | None = None,
    observe: Observe | None = None,
    compiled: bool = False,
) -> list[Tensor | None]:
    """SAGO; every coordinate of the result is bit for bit that of one of the two weighted gradients.

    forget, retain: one gradient a parameter, None for zeros (None in both stays None). Arithmetic in float32, or float64
    for float64. What is not finite in either gradient is not finite in the result, so that it is noticed.
    out: where to write, may be `forget`. reduce: unused, the rule is local to every shard. observe: see
    `training.gradients`. compiled: one fused kernel, built on first use; eager where there is no compiler.
    Raises BadInput for lists that do not correspond and for weights that are negative.
    """
    rule = _sago(forget_weight, retain_weight)
    return _combine("sago", rule, forget, retain, forget_weight, retain_weight, out, observe, compiled)


@COMBINE.register("sago-prefer-retain")
def combine_prefer_retain(
    forget: Gradients,
    retain: Gradients,
    *,
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    out: Gradients | None = None,
    reduce: Reduce | None = None,
    observe: Observe | None = None,
    compiled: bool = False,
) -> list[Tensor | None]:
    """SAGO-prefer-retain: as `combine`, but coordinates that agree get the weighted sum."""
    rule = _prefer_retain(forget_weight, retain_weight)
    return _combine("prefer-retain", rule, forget, retain, forget_weight, retain_weight, out, observe, compiled)


def _sago(forget_weight: float, retain_weight: float) -> Rule:
    def rule(forget: Tensor, retain: Tensor, combined: Tensor, scratch: Scratch) -> None:
        conflict = conflicts(forget, retain, scratch("conflict", forget))
        if forget_weight != 1:
            forget = torch.mul(forget, forget_weight, out=scratch("forget", forget))
        if retain_weight != 1:
            retain = torch.mul(retain, retain_weight, out=scratch("retain", retain))
        # For a weight of exactly 0 or 1 lerp is exact; torch.where takes 4 to 7 times as long on a CPU.
        torch.lerp(forget, retain, conflict, out=combined)

    return rule


def _prefer_retain(forget_weight: float, retain_weight: float) -> Rule:
    def rule(forget: Tensor, retain: Tensor, combined: Tensor, scratch: Scratch) -> None:
        agreeing = conflicts(forget, retain, scratch("conflict", forget)).eq_(0).mul_(forget)
        if retain_weight != 1:
            retain = torch.mul(retain, retain_weight, out=scratch("retain", retain))
        torch.add(retain, agreeing, alpha=forget_weight, out=combined)

    return rule


def _combine(
    name: Literal["sago", "prefer-retain"],
    rule: Rule,
    forget: Gradients,
    retain: Gradients,
    forget_weight: float,
    retain_weight: float,
    out: Gradients | None,
    observe: Observe | None,
    compiled: bool,
) -> list[Tensor | None]:
    check_weights(forget_weight=forget_weight, retain_weight=retain_weight)
    if not compiled:
        return apply(rule, forget, retain, out=out, observe=observe)

    def fused(forget: Tensor, retain: Tensor, combined: Tensor, scratch: Scratch) -> None:
        # A call of the compiled kernel takes some 50 microseconds: for a small tensor that is longer than the work.
        kernel = None if forget.numel() < CPU_PIECE else _kernel(name, forget.dtype, forget.device)
        if kernel is None:
            rule(forget, retain, combined, scratch)
        else:
            kernel(forget, retain, combined, forget_weight, retain_weight)

    return apply(fused, forget, retain, out=out, observe=observe, piece=COMPILED_PIECE)


@functools.cache
def _kernel(name: str, dtype: torch.dtype, device: torch.device) -> Callable[..., None] | None:
    """The rule as one compiled loop over memory, tried out on a small tensor; None where it cannot be built."""

    scale = sign_scale(dtype)

    def kernel(f: Tensor, r: Tensor, combined: Tensor, forget_weight: float, retain_weight: float) -> None:
        # The sign of f r without its underflow, as in `conflicts`.
        conflict = f * scale * r < 0
        agreed = f * forget_weight + r * retain_weight if name == "prefer-retain" else f * forget_weight
        # What the choice drops must still be noticed where it is not finite: x - x is then nan.
        dropped = torch.where(conflict, f, r)
        combined.copy_(torch.where(conflict, r * retain_weight, agreed) + (dropped - dropped))

    try:
        built = torch.compile(kernel, dynamic=True)
        probe = torch.ones(CPU_PIECE, dtype=dtype, device=device)
        built(probe, probe, torch.empty_like(probe), 1.0, 1.0)
    except Exception:  # no compiler, no headers, an unsupported device: torch raises a dozen types, all mean eager
        return None
    return built
