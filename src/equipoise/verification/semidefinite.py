"""Margins that bound propagation leaves undecided, from the dual of Shor's semidefinite relaxation of the whole network.

All values of a network are affine in w = (1, u, v_1, ..): u the input and v_k the outputs of the neurons of a ReLU layer
that may bend, each less its value at the centre and over the radius of its ball, so that |u| <= 1 and |v_k| <= 1. A neuron
that is surely active or inactive is its own input, or nothing. What is known of another, y = relu(z) with l <= z <= u, are
five inequalities (f'w)(g'w) <= 0 (arXiv:1811.01057 has the first three and the last):

    -y <= 0,   z - y <= 0,   y (y - z) <= 0,   y - u / (u - l) (z - l) <= 0,   (z - l)(z - u) <= 0

and of the input |u|^2 - 1 <= 0. With a multiplier m >= 0 for each, c'f >= t over the ball wherever

    S = C - t e e' + sum_k m_k sym(f_k g_k') + lambda (diag(0, 1, .., 1, 0, ..) - e e')   is positive semidefinite,

C that of c'f. The relaxation implies every ball of `bounds`: it is never weaker than theorem 4.1 of SDP-CROWN. Any numbers
are a proof, which takes one Cholesky factorisation to check. Good ones are found by a primal-dual interior-point method
(the direction of Helmberg, Kojima and Monteiro with Mehrotra's predictor): about twenty steps, every one of which proves
its t. A step costs the cube of the entries of w, a quarter of a second for 250: for small networks, and for few pairs.
"""

# N entries of w, K inequalities.

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.verification.bounds import Enclosure
from equipoise.verification.network import Add, Network, Relu

ROOM = 0.999  # of how far t may rise
ROUNDING = 16 * 2.0**-53  # of an operation, and what a checker allows for it
KINDS = 5  # inequalities a neuron
LARGEST = 1000  # entries of w: there a step takes some twenty seconds


@dataclass(frozen=True, eq=False)
class Problem:
    """(f'w)(g'w) <= 0 for every column of f and g, [N, K]; the first `inputs` entries of w after the 1 are a unit ball."""

    f: Tensor
    g: Tensor
    inputs: int
    output: Tensor
    """The rows [classes, N] of the network's outputs."""
    bent: dict[int, Tensor]
    """Which neurons may bend of the ReLU layer that reads value V, by V in the layers' order; [KINDS, n] columns each."""


@dataclass(frozen=True, eq=False)
class Dual:
    """multipliers: [KINDS, n] by the value that a ReLU layer reads, and of the input's ball: they prove the bound."""

    bound: float
    multipliers: dict[int, Tensor]
    ball: float


def entries(known: Mapping[int, Enclosure], item: int, inputs: int) -> int:
    """N for the enclosures of one input."""
    return 1 + inputs + sum(int(((e.lower[item] < 0) & (e.upper[item] > 0)).sum()) for e in known.values())


def problem(network: Network, x: Tensor, radius: float, known: Mapping[int, Enclosure], item: int) -> Problem:
    """The relaxation around input x [n], whose enclosures are row `item` of `known`."""
    bent = {at: ((e.lower[item] < 0) & (e.upper[item] > 0)).nonzero()[:, 0] for at, e in known.items()}
    total = entries(known, item, len(x))
    one = torch.zeros(1, total, dtype=torch.float64)
    one[0, 0] = 1
    start = torch.zeros(len(x), total, dtype=torch.float64)
    start[:, 0] = x
    start[:, 1 : 1 + len(x)] = radius * torch.eye(len(x), dtype=torch.float64)
    values, position, outputs = [start], 1 + len(x), {}
    f, g = [start[:0]], [start[:0]]
    for layer in network.layers:
        at = layer.inputs[0]
        given = values[at]
        if isinstance(layer, Relu):
            if at not in outputs:
                e, here, n = known[at], bent[at], len(bent[at])
                z, low, high = given[here], e.lower[item][here, None], e.upper[item][here, None]
                y = e.centre[item][here, None].relu() * one
                y[:, position : position + n] = e.axes[item].max() * torch.eye(n, dtype=torch.float64)
                ones, above, below = one.expand(n, total), z - low * one, z - high * one
                f += [ones, ones, y, ones, above]
                g += [-y, z - y, y - z, y - high / (high - low) * above, below]
                outputs[at] = torch.where(e.lower[item][:, None] >= 0, given, torch.zeros_like(given))
                outputs[at][here] = y
                position += n
            values.append(outputs[at])
        elif isinstance(layer, Add):
            values.append(given + values[layer.inputs[1]])
        else:
            shift = layer.forward(torch.zeros_like(given[:, :1].T))
            values.append((layer.forward(given.T) - shift).T + shift.T * one)
    return Problem(torch.cat(f).T.contiguous(), torch.cat(g).T.contiguous(), len(x), values[-1], bent)


def matrix(p: Problem, objective: Tensor, y: Tensor) -> Tensor:
    """S of this module's head, [N, N]. objective: the row [N] of c'f; y: the multipliers [K], lambda, t."""
    half = (p.f * y[:-2]) @ p.g.T / 2
    half[0] += objective / 2
    form = half + half.T
    form[0, 0] -= y[-2] + y[-1]
    form.diagonal()[1 : 1 + p.inputs] += y[-2]
    return form


def inner(p: Problem, x: Tensor) -> Tensor:
    """How much each of y moves S along x: the inner products of x [N, N] with the matrices beside them, [K + 2]."""
    ball = x.diagonal()[1 : 1 + p.inputs].sum() - x[0, 0]
    return torch.cat([(p.f * (x @ p.g)).sum(0), ball[None], -x[:1, 0]])


def solve(p: Problem, objective: Tensor, *, steps: int = 80, gap: float = 1e-5) -> Dual:
    """The largest t found: above 0, or as large as can be up to `gap`, or below 0 where a primal point says so, too.

    -inf where there is no start: weights so large that no multipliers make S positive definite in double precision.
    """
    best, y = -math.inf, _start(p, objective)
    proof = y
    s = matrix(p, objective, y)
    lower, failed = torch.linalg.cholesky_ex(s)
    if failed:
        return Dual(best, {}, 0.0)
    # With these the start is on the central path.
    x = torch.cholesky_inverse(lower)
    x, slack = x / x[0, 0], 1 / (y[:-1] * x[0, 0])
    aim = torch.zeros_like(y)
    aim[-1] = -1  # x is to have inner products -slack, and 1 in its corner
    for _ in range(steps):
        lower, failed = torch.linalg.cholesky_ex(s)
        if failed:
            break  # no better in double precision
        inverse = torch.cholesky_inverse(lower)
        t = _provable(p, objective, y, (ROOM / inverse[0, 0]).item())
        best, proof = (t, y) if t > best else (best, proof)
        if best > 0:
            break
        system = _schur(p, x, inverse)
        system.diagonal()[:-1] += slack / y[:-1]
        scale = system.diagonal().rsqrt()
        factor, singular = torch.linalg.cholesky_ex(system * scale[:, None] * scale)
        if singular:
            break
        mu = ((x * s).sum() + slack @ y[:-1]).item() / (len(s) + len(slack))

        def move(pull: Tensor, push: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, float, float]:
            """The step to x = pull - (x ds s^-1) and slack = push - (slack / y) dy, and how far it may go in both."""
            right = inner(p, pull) - aim
            right[:-1] += push
            dy = scale * torch.cholesky_solve((right * scale)[:, None], factor)[:, 0]  # noqa: B023
            ds = matrix(p, torch.zeros_like(objective), dy)
            dx, dslack = pull - x - _symmetric(x @ ds @ inverse), push - slack - slack / y[:-1] * dy[:-1]  # noqa: B023
            return dy, ds, dx, dslack, _reach(s, ds, y[:-1], dy[:-1]), _reach(x, dx, slack, dslack)  # noqa: B023

        dy, ds, dx, dslack, dual, primal = move(torch.zeros_like(x), torch.zeros_like(slack))
        after = ((x + primal * dx) * (s + dual * ds)).sum() + (slack + primal * dslack) @ (y + dual * dy)[:-1]
        goal = mu * max(after.item() / (mu * (len(s) + len(slack))), 1e-3) ** 2
        dy, _, dx, dslack, dual, primal = move(
            goal * inverse - _symmetric(dx @ ds @ inverse), (goal - dslack * dy[:-1]) / y[:-1]
        )
        if dual == primal == 0:
            break
        y, x, slack = y + dual * dy, x + primal * dx, slack + primal * dslack
        s = matrix(p, objective, y)
        missed = inner(p, x) - aim
        missed[:-1] += slack
        above = (objective @ x[0]).item()
        if missed.abs().max() < 1e-6 and (above < 0 or above - best < gap):
            break
    return Dual(best, _by_layer(p, proof), proof[-2].item())


def _provable(p: Problem, objective: Tensor, y: Tensor, room: float) -> float:
    """The t that a checker with rounding errors of its own proves, where S stays positive definite till t rose by `room`."""
    risen = y.clone()
    risen[-1] += room
    if torch.linalg.cholesky_ex(matrix(p, objective, risen))[1]:
        risen = y  # the room was wrong by rounding: S is close to singular in other directions, too
    n, count = p.f.shape
    terms = torch.linalg.norm((p.f.abs() * y[:-2]) @ p.g.abs().T).item() + p.inputs * y[-2].item() + abs(y[-1].item())
    return risen[-1].item() - ROUNDING * (n + count + 16) * terms * (2 + len(p.bent))


def _symmetric(x: Tensor) -> Tensor:
    return (x + x.T) / 2


def _schur(p: Problem, x: Tensor, inverse: Tensor) -> Tensor:
    """The inner products of A_k with x A_l s^-1, [K + 2, K + 2], from what all A_k are: sums of two outer products."""
    count, ball = p.f.shape[1], slice(1, 1 + p.inputs)
    xf, xg, sf, sg = x @ p.f, x @ p.g, inverse @ p.f, inverse @ p.g
    system = torch.empty(count + 2, count + 2, dtype=torch.float64)
    mixed = (p.g.T @ xf) * (p.f.T @ sg)
    system[:count, :count] = ((p.g.T @ xg) * (p.f.T @ sf) + (p.f.T @ xf) * (p.g.T @ sg) + mixed + mixed.T) / 4
    through = x[:, ball] @ inverse[ball] - x[:, :1] @ inverse[:1]
    system[count] = inner(p, _symmetric(through))
    system[count + 1] = inner(p, _symmetric(-x[:, :1] @ inverse[:1]))
    system[:count, count:] = system[count:, :count].T
    return system


def _reach(matrix: Tensor, change: Tensor, values: Tensor, changes: Tensor) -> float:
    """How much of a change leaves the matrix positive definite and the values positive, with some room; at most 1."""
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if failed or not change.isfinite().all():
        return 0.0
    half = torch.linalg.solve_triangular(lower, change, upper=False)
    whole = torch.linalg.solve_triangular(lower, half.T, upper=False)
    least = min(torch.linalg.eigvalsh(_symmetric(whole))[0].item(), (changes / values).min().item())
    return min(1.0, 0.95 / max(-least, 1e-9))


def _start(p: Problem, objective: Tensor) -> Tensor:
    """Multipliers, lambda, t with S positive definite: those of y (y - z) fall from layer to layer, t is far below."""
    y = torch.zeros(2, dtype=torch.float64)
    for factor in (4.0**power for power in range(1, 11)):
        weight, parts = objective.abs().max().clamp(min=1e-6).item(), []
        for here in reversed(p.bent.values()):
            part = torch.full((KINDS, len(here)), 1e-2, dtype=torch.float64)
            part[2] = weight
            parts.insert(0, part.flatten())
            weight *= factor
        y = torch.cat([*parts, torch.tensor([weight, 0.0], dtype=torch.float64)])
        s = matrix(p, objective, y)
        lower, failed = torch.linalg.cholesky_ex(s[1:, 1:])
        if not failed:
            t = s[0, 0] - (s[1:, :1] * torch.cholesky_solve(s[1:, :1], lower)).sum()
            y[-1] = t - 1 - t.abs() / 10
            break
    return y


def _by_layer(p: Problem, y: Tensor) -> dict[int, Tensor]:
    multipliers, begin = {}, 0
    for at, here in p.bent.items():
        multipliers[at] = y[begin : begin + KINDS * len(here)].reshape(KINDS, -1)
        begin += KINDS * len(here)
    return multipliers
