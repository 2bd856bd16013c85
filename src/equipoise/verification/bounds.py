"""Lower bounds on c'f(x) over all x with ||x - xh||_2 <= radius: what every method of bound propagation stands on.

Geometry and enclosures say where the values of a network lie, `backward` takes a linear form from its output to its input,
`ascend` searches for the slopes that bound it best. CROWN and LipNaive need no search and stand here whole.
"""

# B images, S specifications (rows c), m and n values of a layer. Radii are per image.

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.core.progress import beat
from equipoise.verification.network import Add, Linear, Network, Relu, Scale
from equipoise.verification.norms import SLACK, row_norms, spectral_norm

Box = tuple[float, float]
SPARE = 1e-10  # of the sizes that were added up: room for what rounding does to centres and boxes
FLATTEST = 2.0**-20  # of the longest axis: a flatter ellipsoid would make the rounding error of its centre the longest


@dataclass(frozen=True, eq=False)
class Geometry:
    """How far every value of a network can move per unit of input radius; the same for all inputs.

    axes[v]: [1] for a ball, [n] for an ellipsoid: ||(value - centre) / (radius axes)||_2 <= 1. reach[v]: [n], of each
    number by itself.
    """

    axes: tuple[Tensor, ...]
    reach: tuple[Tensor, ...]
    norms: dict[int, float]
    """The spectral norm of every linear layer and convolution by its index: of W after a ball; after an ellipsoid of
    W diag(d), d its axes over the radius of the ball that it was made of."""


def geometry(network: Network) -> Geometry:
    """Balls of radius r(k+1) = sigma(W) r(k), an ellipsoid after a normalisation; a sum adds the radii of its parts."""
    one = torch.ones(1, dtype=torch.float64)
    sizes, directions, reach, norms = [one], [one], [one.expand(network.sizes[0])], {}
    for index, layer in enumerate(network.layers):
        before = layer.inputs[0]
        size, direction, far = sizes[before], directions[before], reach[before]
        if isinstance(layer, Add):
            size = torch.stack([sizes[value] * directions[value].max() for value in layer.inputs]).sum(0) * (1 + 1e-15)
            direction, far = one, (far + reach[layer.inputs[1]]) * (1 + 1e-15)
        elif isinstance(layer, Scale):
            direction = row_norms(layer, direction)
            direction = torch.maximum(direction, (FLATTEST * direction.max()).clamp(min=1e-300))
            if len(direction) == 1:
                size, direction = size * direction, one
            far = (size * direction).expand(network.sizes[index + 1])
        elif not isinstance(layer, Relu):
            rows = row_norms(layer, size * direction)
            norms[index] = spectral_norm(layer, direction)
            size = size * norms[index] * (1 + SLACK)  # room for the rounding of whoever proves the norm again
            direction, far = one, torch.minimum(rows, size)
        sizes.append(size)
        directions.append(direction)
        reach.append(far)
    axes = tuple(size * direction for size, direction in zip(sizes, directions, strict=True))
    return Geometry(axes, tuple(reach), norms)


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
    radii, spares = _with_rounding(network, values, radius, shape)
    known: dict[int, Enclosure] = {}
    for layer in network.layers:
        if not isinstance(layer, Relu) or layer.inputs[0] in known:
            continue
        at = layer.inputs[0]
        centre = values[at]
        axes = radii[at] * shape.axes[at]
        spare = spares[at] + SPARE * axes.amax(1, keepdim=True)
        away = radii[at] * shape.reach[at] + spare
        lower, upper = centre - away, centre + away
        known[at] = Enclosure(centre, axes, lower, upper)
        if boxes == "crown" and any(isinstance(before, Relu) for before in network.layers[:at]):
            low, high = _crown_box(network, at, x, radius, known)
            low, high = low - SPARE * low.abs() - spare, high + SPARE * high.abs() + spare
            known[at] = Enclosure(centre, axes, torch.maximum(lower, low), torch.minimum(upper, high))
    return known


def _with_rounding(
    network: Network, values: Sequence[Tensor], radius: Tensor, shape: Geometry
) -> tuple[list[Tensor], list[Tensor]]:
    """Per value the radius [B, 1], in units of its axes, that holds it although its centre is rounded; and of each number
    what its own layer rounds away at most, [B, n].

    A sum is wrong by a share of the sizes that were added up, not of the result, which can be 0 of large terms. What the
    layers before were wrong by goes through a layer like the ball. So all of it scales with the network's unit.
    """
    radii, spares = [radius[:, None] * (1 + SPARE)], [SPARE * values[0].abs()]
    for index, layer in enumerate(network.layers):
        before = layer.inputs[0]
        if isinstance(layer, Relu):
            radii.append(radii[before])
            spares.append(spares[before])
            continue
        if isinstance(layer, Add):
            other = layer.inputs[1]
            inside, spare = torch.maximum(radii[before], radii[other]), spares[before] + spares[other]
        else:
            sizes = replace(layer, weight=layer.weight.abs(), bias=layer.bias.abs())
            inside, spare = radii[before], SPARE * sizes.forward(values[before].abs())
        radii.append(inside + (spare / shape.axes[index + 1]).norm(dim=1, keepdim=True))
        spares.append(spare)
    return radii, spares


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
    return torch.cat(low, 1), torch.cat(high, 1)


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


def summed_sizes(
    network: Network,
    x: Tensor,
    radius: Tensor,
    coefficients: Tensor,
    known: Mapping[int, Enclosure],
    slopes: Mapping[int, Tensor],
    shape: Geometry,
) -> Tensor:
    """The sizes [B, S] of what `backward` adds up with these slopes: rounding takes a share of them, not of the bound."""
    spares = _with_rounding(network, network.values(x), radius, shape)[1]
    sizes = [(coefficients.abs() * spares[-1][:, None] / SPARE).sum(-1)]

    def step(index: int, c: Tensor) -> tuple[Tensor, Tensor]:
        e = known[index]
        reach = spares[index] / SPARE + torch.maximum(e.lower.abs(), e.upper.abs())
        sizes.append((c.abs() * reach[:, None]).sum(-1))
        return c * slopes[index].double(), torch.zeros((), dtype=c.dtype)

    a, _ = backward(network, coefficients, step)
    return torch.stack(sizes).sum(0) - over_ball(-a.abs(), x.abs(), radius)


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


# The search


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


@torch.no_grad()
def ascend(
    bound: Callable[[], tuple[Tensor, Mapping[int, Tensor]]],
    shape: tuple[int, int],
    groups: Sequence[Mapping[str, Any]],
    settle: Callable[[], None],
    search: Search,
) -> tuple[dict[int, Tensor], int]:
    """The slopes [B, S, n] by layer with which each bound was highest, and the number of steps made.

    bound: the bounds, of that shape [B, S], and the slopes in use, from the variables as they are. groups: these variables,
    as Adam takes them. settle: puts them back where they may be, after each step.
    """
    adam = torch.optim.Adam([dict(group) for group in groups])
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, search.decay)
    best = torch.full(shape, -math.inf, dtype=search.dtype)
    kept: dict[int, Tensor] = {}
    idle = torch.zeros(shape[0], dtype=torch.int64)
    steps = 0
    while steps < search.iterations and (idle <= search.patience).any():
        beat()  # of a large network a step takes seconds, and a batch many of them
        steps += 1
        with torch.enable_grad():
            value, slopes = bound()
        better = (value > best) & (idle <= search.patience)[:, None]
        best = torch.where(better, value, best)
        for index, slope in slopes.items():
            kept[index] = torch.where(better[..., None], slope, kept[index]) if index in kept else slope.detach()
        idle = torch.where(better.any(1), 0, idle + 1)
        if not value.requires_grad:
            break  # no ReLU: the bound is exact
        adam.zero_grad()
        value.backward(torch.full_like(value, -1.0))  # upwards
        adam.step()
        schedule.step()
        settle()
    return kept, steps
