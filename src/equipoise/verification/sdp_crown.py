"""SDP-CROWN (arXiv:2506.06665): lower bounds on c'f(x) over all x with ||x - xh||_2 <= radius.

Theorem 4.1 replaces the constant that bound propagation pays at each ReLU layer. With z in a
ball of centre zh and radius r, coefficients c on relu(z) and any slopes g, for every lambda > 0

    c'relu(z) - g'z  >=  h(lambda) = -1/2 (lambda (r^2 - |zh|^2) + |phi|^2 / lambda),
    phi_i = min(c_i - g_i - lambda zh_i, g_i + lambda zh_i, 0).

It is Lagrangian duality: add lambda/2 (|z - zh|^2 - r^2) <= 0, and what is left separates into one-dimensional problems.
What differs here, all of it sound for any g and lambda:

- The one-dimensional problems are solved over the box l_i <= z_i <= u_i that is known anyway, not over the line:

    d(lambda) = sum_i min_{l_i <= z <= u_i} (c_i relu(z) - g_i z + lambda/2 (z - zh_i)^2) - lambda r^2 / 2.

  d >= h for every lambda, and d(0) is the constant of plain bound propagation: it is never below the larger of the two.
- slopes="free" (default): both slopes of a neuron are free in [0, 1] (appendix C of the paper allows it).
- The certified bound is recomputed in float64 from the optimised slopes, with lambda found by a one-dimensional search.
- The input set may be a ball and a box (pictures in [0, 1]): the same Lagrangian, with one more lambda.

slopes="crown" with offset="theorem" is what the paper's table and code do: CROWN's upper slope u/(u - l) for negative c, an
optimised one for positive c, and h as the constant. method="alpha-crown" is the same search with the box's constant.
"""

# B images, S specifications (rows c), n values of a layer. Radii are per image.

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from equipoise.core.options import closed
from equipoise.verification.bounds import (
    PUBLISHED,
    Box,
    Enclosure,
    Search,
    ascend,
    backward,
    box_offset,
    crown_slopes,
    input_set,
    narrowed,
    over_ball,
)
from equipoise.verification.network import Network

Method = Literal["alpha-crown", "sdp-crown"]
Slopes = Literal["crown", "free"]
Offset = Literal["theorem", "ball-box"]
FLOOR = 1e-6  # of lambda


# The theorem: the constant of a layer, and its lambda


def ball_offset(c: Tensor, g: Tensor, multiplier: Tensor, e: Enclosure) -> Tensor:
    """h of theorem 4.1, for balls and ellipsoids: -1/2 (lambda (1 - |zh/p|^2) + |phi|^2 / lambda), p the axes.

    multiplier: lambda [B, S] in units where the radius is 1, that is, r^2 times the paper's.
    """
    centre, axes = (e.centre / e.axes)[:, None], e.axes[:, None]
    pull = multiplier[..., None] * centre
    phi = torch.minimum(axes * (c - g) - pull, axes * g + pull).clamp(max=0)
    return -(multiplier * (1 - centre.square().sum(-1)) + phi.square().sum(-1) / multiplier) / 2


def ball_box_offset(c: Tensor, g: Tensor, multiplier: Tensor, e: Enclosure) -> Tensor:
    """d(lambda) of this module's head over the ball (or ellipsoid) and the box. Differentiable in c, g, lambda. [B, S]."""
    offset = _BallBox.apply(c, g, multiplier, e)
    assert isinstance(offset, Tensor)
    return offset


class _BallBox(torch.autograd.Function):
    """By the envelope theorem the derivatives are those at the minimising z: relu(z), -z, and half the excess over r^2."""

    @staticmethod
    def forward(ctx, c: Tensor, g: Tensor, multiplier: Tensor, e: Enclosure) -> Tensor:  # type: ignore[override]
        z, least, away = _minimizer(c, g, multiplier, e)
        ctx.save_for_backward(z, away)
        return least.sum(-1) - multiplier / 2

    @staticmethod
    def backward(ctx, upstream: Tensor):  # type: ignore[override]
        z, away = ctx.saved_tensors
        each = upstream[..., None]
        return each * z.relu(), -each * z, upstream * (away - 1) / 2, None


def _minimizer(c: Tensor, g: Tensor, multiplier: Tensor, e: Enclosure) -> tuple[Tensor, Tensor, Tensor]:
    """The minimising z, each neuron's minimum, and |(z - centre) / axes|^2."""
    centre, lower, upper = e.centre[:, None], e.lower[:, None], e.upper[:, None]
    pull = multiplier[..., None] / e.axes.square()[:, None]
    rise = c - g
    right = torch.clamp(centre - rise / pull, lower.relu(), upper.relu())
    left = torch.clamp(centre + g / pull, -(-lower).relu(), -(-upper).relu())
    at_right = rise * right + pull / 2 * (right - centre).square()
    at_left = -g * left + pull / 2 * (left - centre).square()
    # A neuron that is never on one side has no minimum there.
    take_right = ((at_right <= at_left) | (lower > 0)) & ~(upper < 0)
    z = torch.where(take_right, right, left)
    away = ((z - centre) / e.axes[:, None]).square().sum(-1)
    return z, torch.where(take_right, at_right, at_left), away


def best_multiplier(c: Tensor, g: Tensor, e: Enclosure, steps: int = 40) -> Tensor:
    """The lambda [B, S] that maximises d: concave, so its derivative is bisected, in log lambda."""
    low = torch.full(torch.broadcast_shapes(c.shape, g.shape)[:2], math.log(FLOOR * 1e-3), dtype=c.dtype)
    high = torch.log(torch.maximum(c.abs(), g.abs()).square().mul(e.axes.square()[:, None]).sum(-1).sqrt() * 4 + 1)
    low = low.expand_as(high).clone()
    for _ in range(steps):
        middle = (low + high) / 2
        rising = _minimizer(c, g, middle.exp(), e)[2] > 1
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    return ((low + high) / 2).exp()


# The search over a whole network


@dataclass(frozen=True, eq=False)
class Relaxation:
    """What proves a bound: per ReLU layer (by the index of its input) slopes [B, S, n] and lambda [B, S].

    steps: of the search that found it.
    """

    slopes: dict[int, Tensor]
    multipliers: dict[int, Tensor]
    steps: int = 0


@closed
def optimize(
    network: Network,
    x: Tensor,
    radius: Tensor,
    specifications: Tensor,
    known: Mapping[int, Enclosure],
    *,
    guide: Mapping[int, Enclosure] | None = None,
    method: Method = "sdp-crown",
    slopes: Slopes = "free",
    offset: Offset = "ball-box",
    box: Box | None = None,
    search: Search = PUBLISHED,
) -> tuple[Tensor, Relaxation]:
    """The best lower bounds [B, S] found on c'f, in float64, and what proves them. specifications: [B, S, m].

    guide: enclosures that CROWN's slopes are chosen from, else `known`: slopes need no proof, what is known does.
    box: limits of every input number, for inputs within the ball and the box. The search runs in `search.dtype`; the bound
    that is returned is evaluated anew in float64 with the stored slopes.
    """
    small, at = narrowed(network, x) if box is None else (network, x.flatten(1))
    single, at = small.to(search.dtype), at.to(search.dtype)
    c, ball = specifications.to(search.dtype), radius.to(search.dtype)
    enclosed = {index: e.to(search.dtype) for index, e in known.items()}
    inputs = None if box is None else input_set(x, radius, box).to(search.dtype)
    guides = {index: e.to(search.dtype) for index, e in (known if guide is None else guide).items()}
    crowns = {index: tuple(each[:, None] for each in crown_slopes(e)) for index, e in guides.items()}
    pairs = {index: tuple(each.repeat(1, c.shape[1], 1) for each in pair) for index, pair in crowns.items()}
    free = [each for pair in pairs.values() for each in (pair if slopes == "free" else pair[:1])]
    multipliers = _first_multipliers(single, c, {i: _seen(e, offset) for i, e in enclosed.items()}, crowns, inputs)
    for each in (*free, *multipliers.values()):
        each.requires_grad_()

    def bound() -> tuple[Tensor, dict[int, Tensor]]:
        used: dict[int, Tensor] = {}

        def step(index: int, c: Tensor) -> tuple[Tensor, Tensor]:
            e, (above, below) = enclosed[index], pairs[index]
            used[index] = torch.where(c >= 0, above, below)
            g = c * used[index]
            if method == "alpha-crown":
                return g, box_offset(c, g, e)
            constant = ball_offset if offset == "theorem" else ball_box_offset
            return g, constant(c, g, multipliers[index].exp(), e)

        a, constant = backward(single, c, step)
        if inputs is None:
            return over_ball(a, at, ball) + constant, used
        return ball_box_offset(torch.zeros_like(a), -a, multipliers[0].exp(), inputs) + constant, used

    def settle() -> None:
        for each in free:
            each.clamp_(0, 1)
        for each in multipliers.values():
            each.clamp_(min=math.log(FLOOR))
        if slopes == "crown":  # of a neuron that never bends the slope is known
            for index, e in guides.items():
                stable = ((e.lower >= 0) | (e.upper <= 0))[:, None]
                pairs[index][0].copy_(torch.where(stable, crowns[index][0], pairs[index][0]))

    groups = [
        {"params": free, "lr": search.learning_rate},
        {"params": list(multipliers.values()), "lr": search.multiplier_rate},
    ]
    kept, steps = ascend(bound, (c.shape[0], c.shape[1]), groups, settle, search)
    proved, relaxation = evaluate(
        network, x, radius, specifications, known, kept, method=method, offset=offset, box=box
    )
    return proved, replace(relaxation, steps=steps)


@torch.no_grad()
def _first_multipliers(
    network: Network,
    c: Tensor,
    known: Mapping[int, Enclosure],
    crowns: Mapping[int, tuple[Tensor, ...]],
    inputs: Enclosure | None,
) -> dict[int, Tensor]:
    """The best log lambda [B, S] of every layer for CROWN's slopes; at 0 that of the input, when it has a box as well."""
    multipliers: dict[int, Tensor] = {}

    def step(index: int, c: Tensor) -> tuple[Tensor, Tensor]:
        e, (above, below) = known[index], crowns[index]
        g = c * torch.where(c >= 0, above, below)
        multipliers[index] = best_multiplier(c, g, e, steps=15).log()
        return g, box_offset(c, g, e)

    a, _ = backward(network, c, step)
    if inputs is not None:
        multipliers[0] = best_multiplier(torch.zeros_like(a), -a, inputs, steps=15).log()
    return multipliers


def _seen(e: Enclosure, offset: Offset) -> Enclosure:
    """What the offset knows of an enclosure: the theorem's has no box."""
    return e if offset == "ball-box" else e.without_box()


@closed
def evaluate(
    network: Network,
    x: Tensor,
    radius: Tensor,
    specifications: Tensor,
    known: Mapping[int, Enclosure],
    slopes: Mapping[int, Tensor],
    *,
    method: Method = "sdp-crown",
    offset: Offset = "ball-box",
    box: Box | None = None,
) -> tuple[Tensor, Relaxation]:
    """The bounds [B, S] that these slopes prove, in float64, each lambda the best for them."""
    multipliers: dict[int, Tensor] = {}

    def step(index: int, c: Tensor) -> tuple[Tensor, Tensor]:
        e = _seen(known[index], offset)
        g = c * slopes[index].double()
        if method == "alpha-crown":
            return g, box_offset(c, g, e)
        multipliers[index] = best_multiplier(c, g, e)
        return g, ball_box_offset(c, g, multipliers[index], e)

    with torch.no_grad():
        a, constant = backward(network, specifications, step)
        if box is None:
            bound = over_ball(a, x, radius) + constant
        else:
            inputs, none = input_set(x, radius, box), torch.zeros_like(a)
            multipliers[0] = best_multiplier(none, -a, inputs)
            bound = ball_box_offset(none, -a, multipliers[0], inputs) + constant
    return bound, Relaxation(dict(slopes), multipliers)
