"""Lower bounds on c'f(x) over all x with ||x - xh||_2 <= radius: LipNaive, CROWN, alpha-CROWN and SDP-CROWN.

SDP-CROWN (arXiv:2506.06665, theorem 4.1) replaces the constant that bound propagation pays at each ReLU layer. With z in a
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
optimised one for positive c, and h as the constant.
"""

# B images, S specifications (rows c), m and n values of a layer. Radii are per image.

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.verification.network import Add, Linear, Network, Relu, Scale
from equipoise.verification.norms import SLACK, row_norms, spectral_norm

Method = Literal["alpha-crown", "sdp-crown"]
Slopes = Literal["crown", "free"]
Offset = Literal["theorem", "ball-box"]
Box = tuple[float, float]
FLOOR = 1e-6  # of lambda
SPARE = 1e-10  # relative room for what rounding does to centres and boxes


@dataclass(frozen=True, eq=False)
class Geometry:
    """How far every value of a network can move per unit of input radius; the same for all inputs.

    axes[v]: [1] for a ball, [n] for an ellipsoid: ||(value - centre) / (radius axes)||_2 <= 1. reach[v]: [n], of each
    number by itself.
    """

    axes: tuple[Tensor, ...]
    reach: tuple[Tensor, ...]
    norms: dict[int, float]
    """The spectral norm of every affine layer by its place: of W after a ball, of W diag(axes) after an ellipsoid."""


def geometry(network: Network) -> Geometry:
    """Balls of radius r(k+1) = sigma(W) r(k), an ellipsoid after a normalisation; a sum adds the radii of its parts."""
    one = torch.ones(1, dtype=torch.float64)
    axes, reach, norms = [one], [one.expand(network.sizes[0])], {}
    for place, layer in enumerate(network.layers):
        before = [axes[index] for index in layer.inputs]
        if isinstance(layer, Relu):
            axes.append(before[0])
            reach.append(reach[layer.inputs[0]])
        elif isinstance(layer, Add):
            axes.append(torch.stack([each.max() for each in before]).sum()[None] * (1 + 1e-15))
            reach.append((reach[layer.inputs[0]] + reach[layer.inputs[1]]) * (1 + 1e-15))
        else:
            rows = row_norms(layer, before[0])
            size, direction = (before[0], one) if len(before[0]) == 1 else (one, before[0])
            norms[place] = spectral_norm(layer, direction)
            ball = size * norms[place] * (1 + SLACK)  # room for the rounding of whoever proves the norm again
            axes.append(rows.clamp(min=1e-300) if isinstance(layer, Scale) else ball)
            reach.append(torch.minimum(rows, ball))
    return Geometry(tuple(axes), tuple(reach), norms)


@dataclass(frozen=True, eq=False)
class Enclosure:
    """A set around a ReLU layer's inputs: ||(z - centre) / axes|| <= 1, lower <= z <= upper. [B, n]; axes also [B, 1]."""

    centre: Tensor
    axes: Tensor
    lower: Tensor
    upper: Tensor

    def without_box(self) -> "Enclosure":
        far = torch.full_like(self.lower, math.inf)
        return replace(self, lower=-far, upper=far)

    def to(self, dtype: torch.dtype) -> "Enclosure":
        return Enclosure(*(each.to(dtype) for each in (self.centre, self.axes, self.lower, self.upper)))


@closed
def enclosures(
    network: Network,
    x: Tensor,
    radius: Tensor,
    shape: Geometry,
    *,
    boxes: Literal["reach", "crown"] = "crown",
) -> dict[int, Enclosure]:
    """The enclosure of every ReLU layer's input, by the index of that value, for inputs x: [B, ...], radius: [B].

    boxes: from the reach of each number, or the intersection of that with plain CROWN's bounds.
    """
    values = network.values(x)
    found: dict[int, Enclosure] = {}
    for layer in network.layers:
        if not isinstance(layer, Relu) or layer.inputs[0] in found:
            continue
        at = layer.inputs[0]
        centre = values[at]
        # The centre is rounded: what the ball is to hold is the exact one's neighbourhood.
        spare = SPARE * (1 + centre.abs().amax(1, keepdim=True))
        away = radius[:, None] * shape.reach[at] + spare
        lower, upper = centre - away, centre + away
        axes = radius[:, None] * shape.axes[at] + spare
        found[at] = Enclosure(centre, axes, lower, upper)
        if boxes == "crown" and any(isinstance(each, Relu) for each in network.layers[:at]):
            low, high = _crown_box(network, at, x, radius, found)
            found[at] = Enclosure(centre, axes, torch.maximum(lower, low), torch.minimum(upper, high))
    return found


def _crown_box(
    network: Network, at: int, x: Tensor, radius: Tensor, known: Mapping[int, Enclosure], rows: int = 2**22
) -> tuple[Tensor, Tensor]:
    """Plain CROWN's bounds on value `at`, [B, n] each, in float64."""
    size = network.sizes[at]
    width = max(rows // max(network.sizes), 1)
    unit = torch.eye(size, dtype=x.dtype)
    low, high = [], []
    for piece in unit.split(width):
        low.append(crown(network, x, radius, piece, known, value=at))
        high.append(-crown(network, x, radius, -piece, known, value=at))
    low, high = torch.cat(low, 1), torch.cat(high, 1)
    return low - SPARE * (1 + low.abs()), high + SPARE * (1 + high.abs())


# One backward pass

ReluStep = Callable[[int, Tensor], tuple[Tensor, Tensor]]


def backward(network: Network, coefficients: Tensor, step: ReluStep, value: int = -1) -> tuple[Tensor, Tensor]:
    """A'x + H <= c'value for all x: returns A [B, S, n] and H [B, S].

    coefficients: [B, S, m] (or [1, S, m]) on the value. step(index, c) gives for c'relu(z), z the value `index`, slopes g
    and an offset h with c'relu(z) >= g'z + h.
    """
    value = len(network.sizes) - 1 if value < 0 else value
    pending: dict[int, Tensor] = {value: coefficients}
    constant = torch.zeros((), dtype=coefficients.dtype)
    for index in range(value, 0, -1):
        if index not in pending:
            continue
        c, layer = pending.pop(index), network.layers[index - 1]
        if isinstance(layer, Relu):
            g, offset = step(layer.inputs[0], c)
            constant = constant + offset
        elif isinstance(layer, Add):
            g = c
        else:
            constant = constant + layer.constant(c)
            g = layer.back(c)
        for before in layer.inputs:
            pending[before] = pending[before] + g if before in pending else g
    return pending[0], constant


def over_ball(a: Tensor, x: Tensor, radius: Tensor) -> Tensor:
    """The minimum of a'x over the balls. a: [B, S, n], x: [B, ...], radius: [B] -> [B, S]."""
    return (a * x.reshape(len(x), 1, -1)).sum(-1) - radius[:, None] * a.norm(dim=-1)


def input_set(x: Tensor, radius: Tensor, box: Box) -> Enclosure:
    """Ball and box around inputs x: [B, ...] as an enclosure. Raises BadInput for an input outside the box."""
    flat = x.flatten(1)
    if not ((flat >= box[0]) & (flat <= box[1])).all():
        raise BadInput(f"An input lies outside the box from {box[0]:g} to {box[1]:g}: give --box with its true limits.")
    return Enclosure(flat, radius[:, None], torch.full_like(flat, box[0]), torch.full_like(flat, box[1]))


def crown_slopes(e: Enclosure) -> tuple[Tensor, Tensor]:
    """CROWN's slopes [B, n] for positive coefficients (0 or 1, whichever area is smaller) and for negative ones."""
    below = (e.upper / (e.upper - e.lower)).masked_fill(e.lower >= 0, 1.0).masked_fill(e.upper <= 0, 0.0)
    return (e.upper >= -e.lower).to(below.dtype), below


def box_offset(c: Tensor, g: Tensor, e: Enclosure) -> Tensor:
    """The minimum of c'relu(z) - g'z over the box lower <= z <= upper: the constant of bound propagation. [B, S]."""
    lower, upper = e.lower[:, None], e.upper[:, None]
    ends = torch.minimum(c * lower.relu() - g * lower, c * upper.relu() - g * upper)
    return torch.where((lower < 0) & (upper > 0), ends.clamp(max=0), ends).sum(-1)


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
    found = _BallBox.apply(c, g, multiplier, e)
    assert isinstance(found, Tensor)
    return found


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


def start_multiplier(c: Tensor, g: Tensor, e: Enclosure) -> Tensor:
    """|phi| at zh = 0, times the radius: there the best lambda, in units where the radius is 1."""
    return (torch.minimum(c - g, g).clamp(max=0) * e.axes[:, None]).norm(dim=-1).clamp(min=FLOOR)


# The methods


def crown(
    network: Network,
    x: Tensor,
    radius: Tensor,
    specifications: Tensor,
    known: Mapping[int, Enclosure],
    *,
    value: int = -1,
) -> Tensor:
    """Plain CROWN's lower bounds [B, S] on c'value. specifications: [S, m] or [B, S, m]."""
    c = specifications if specifications.ndim == 3 else specifications[None]

    def step(index: int, c: Tensor) -> tuple[Tensor, Tensor]:
        e = known[index]
        above, below = crown_slopes(e)
        g = c * torch.where(c >= 0, above[:, None], below[:, None])
        return g, box_offset(c, g, e)

    a, constant = backward(network, c, step, value)
    return over_ball(a, x, radius) + constant


def lip_naive(network: Network, x: Tensor, radius: Tensor, specifications: Tensor, shape: Geometry) -> Tensor:
    """c'f(xh) - radius |c'W_N|_2 prod sigma(W_k): lower bounds [B, S]. The last layer must be linear."""
    last = network.layers[-1]
    if isinstance(last, Relu | Add):
        raise BadInput(f"{network.name} does not end with an affine layer, which LipNaive needs.")
    c = specifications if specifications.ndim == 3 else specifications[None]
    moved = (last.back(c) * shape.axes[last.inputs[0]]).norm(dim=-1)
    return (c * network(x)[:, None]).sum(-1) - radius[:, None] * moved


@dataclass(frozen=True, eq=False)
class Relaxation:
    """What proves a bound: per ReLU layer (by the index of its input) slopes [B, S, n] and lambda [B, S].

    steps: of the search that found it.
    """

    slopes: dict[int, Tensor]
    multipliers: dict[int, Tensor]
    steps: int = 0


@dataclass(frozen=True)
class Search:
    """Adam ascent on the bounds: the paper's 300 iterations, rate of the slopes 0.5, decay 0.98 an iteration.

    multiplier_rate: of log lambda. patience: iterations without an improvement of any bound of an input before that input's
    search ends; what an input yields does not depend on the others that are searched beside it.
    """

    iterations: int = 300
    learning_rate: float = 0.5
    multiplier_rate: float = 0.1
    decay: float = 0.98
    patience: int = 20
    dtype: torch.dtype = torch.float32


PUBLISHED = Search()


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
    batch, count = c.shape[:2]
    fixed: dict[int, tuple[Tensor, Tensor]] = {}
    free: list[Tensor] = []
    stable: list[tuple[Tensor, Tensor, Tensor]] = []  # slopes, where they stay, as what
    multipliers: dict[int, Tensor] = {}
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    for index, chosen in (known if guide is None else guide).items():
        e = chosen.to(search.dtype)
        above, below = (each[:, None].expand(batch, count, -1).contiguous() for each in crown_slopes(e))
        fixed[index] = (above.clone(), below.clone())
        above.requires_grad_()
        free.append(above)
        if slopes == "free":
            below.requires_grad_()
            free.append(below)
        else:
            stable.append((above, ((e.lower >= 0) | (e.upper <= 0))[:, None], fixed[index][0]))
        pairs[index] = (above, below)

    def first(index: int, c: Tensor) -> tuple[Tensor, Tensor]:
        e, (above, below) = enclosed[index], fixed[index]
        g = c * torch.where(c >= 0, above, below)
        multipliers[index] = best_multiplier(c, g, e, steps=15).log()
        return g, box_offset(c, g, e)

    with torch.no_grad():
        a, _ = backward(single, c, first)
        if inputs is not None:
            multipliers[0] = best_multiplier(torch.zeros_like(a), -a, inputs, steps=15).log()
    for each in multipliers.values():
        each.requires_grad_()
    final: dict[int, Tensor] = {}

    def step(index: int, c: Tensor) -> tuple[Tensor, Tensor]:
        e, (above, below) = enclosed[index], pairs[index]
        slope = torch.where(c >= 0, above, below)
        final[index] = slope
        g = c * slope
        if method == "alpha-crown":
            return g, box_offset(c, g, e)
        bound = ball_offset if offset == "theorem" else ball_box_offset
        return g, bound(c, g, multipliers[index].exp(), e)

    adam = torch.optim.Adam(
        [
            {"params": free, "lr": search.learning_rate},
            {"params": list(multipliers.values()), "lr": search.multiplier_rate},
        ]
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, search.decay)
    best = torch.full((batch, count), -math.inf, dtype=search.dtype)
    kept: dict[int, Tensor] = {}
    idle = torch.zeros(batch, dtype=torch.int64)
    steps = 0
    while steps < search.iterations and (idle <= search.patience).any():
        steps += 1
        a, constant = backward(single, c, step)
        if inputs is None:
            bound = over_ball(a, at, ball) + constant
        else:
            bound = ball_box_offset(torch.zeros_like(a), -a, multipliers[0].exp(), inputs) + constant
        with torch.no_grad():
            better = (bound > best) & (idle <= search.patience)[:, None]
            best = torch.where(better, bound, best)
            for index, slope in final.items():
                kept[index] = torch.where(better[..., None], slope, kept[index]) if index in kept else slope.detach()
            idle = torch.where(better.any(1), 0, idle + 1)
        if not bound.requires_grad:
            break  # no ReLU: the bound is exact
        adam.zero_grad()
        (-bound.sum()).backward()
        adam.step()
        schedule.step()
        with torch.no_grad():
            for each in free:
                each.clamp_(0, 1)
            for each, mask, value in stable:
                each.copy_(torch.where(mask, value, each))
            for each in multipliers.values():
                each.clamp_(min=math.log(FLOOR))
    bound, relaxation = evaluate(network, x, radius, specifications, known, kept, method=method, offset=offset, box=box)
    return bound, replace(relaxation, steps=steps)


def narrowed(network: Network, x: Tensor) -> tuple[Network, Tensor]:
    """The same problem with an input no wider than the first layer: W = R'Q' with orthonormal Q maps a ball onto a ball."""
    first = network.layers[0]
    if not isinstance(first, Linear) or len(first.weight) >= first.weight.shape[1]:
        return network, x.flatten(1)
    if any(0 in layer.inputs for layer in network.layers[1:]):
        return network, x.flatten(1)
    q, r = torch.linalg.qr(first.weight.T)
    layers = (replace(first, weight=r.T.contiguous()), *network.layers[1:])
    return replace(network, layers=layers, sizes=(q.shape[1], *network.sizes[1:])), x.flatten(1) @ q


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
        e = known[index] if offset == "ball-box" else known[index].without_box()
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
