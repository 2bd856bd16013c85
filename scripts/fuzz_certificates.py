"""Looks for an unsound bound on random small networks: against samples, an attack, exact minima, and the checker.

    python scripts/fuzz_certificates.py --networks 1000      # some seconds on one core
    python scripts/fuzz_certificates.py                      # 100,000; stores the result in scripts/fuzz_certificates.json

Networks come in blocks of one shape that are bounded as one batch: the bounder's own code, whose layers here hold a matrix
a network. Widths, depths, sums, slopes, constants and input sets are drawn for every block; weights, scales, inputs, labels
and radii for every network. Exact minima: where there is one input number the output is linear between kinks, so its minimum
over the interval is exact; of the others every 25th is solved by mixed-integer programming (HiGHS) over the cube inside the
ball, whose minimum no bound may exceed. Every 25th also has its negative margins refined by the semidefinite dual. The
checker proves every certificate, of every 25th network with the network read from its file.

The result is stored after every block: the same command goes on where it was ended, however it was. Ends with 1 when a bound
is above any of these, or the checker refuses a certificate.
"""

import argparse
import hashlib
import json
import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import LinearConstraint, milp
from torch import Tensor

from equipoise.core.files import write_atomic
from equipoise.core.progress import progress
from equipoise.verification import attack as attacks
from equipoise.verification import bounds, certificate, check, norms, semidefinite
from equipoise.verification import network as networks
from equipoise.verification.attack import attack
from equipoise.verification.bounds import Geometry, Relaxation, Search, geometry, lip_naive
from equipoise.verification.certificate import Certified, certified_margins, contents, refined, specifications
from equipoise.verification.network import Affine, Builder, Linear, Network, Scale, write_network

TOLERANCE = 1e-9
RESULT = Path(__file__).with_suffix(".json")
BLOCK = 50  # networks of one shape
SOLVED = 25  # every so many-th network is refined, given to the solver, and to the checker as a file
SAMPLES = 100
SETTINGS: list[dict[str, Any]] = [
    {},
    {"offset": "theorem"},
    {"slopes": "crown"},
    {"slopes": "crown", "offset": "theorem"},
    {"method": "alpha-crown", "slopes": "crown"},
]


# One batch, a network each: what the bounder calls an image has layers of its own. B networks, S specifications.


@dataclass(frozen=True, eq=False)
class Linears(Linear):
    """weight: [B, m, n], bias: [B, m]. Rows of an x [B k, n] go by network."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(len(self.weight), -1, x.shape[-1])
        return (rows @ self.weight.mT + self.bias[:, None]).flatten(0, 1)

    def constant(self, coefficients: Tensor) -> Tensor:
        return (coefficients * self.bias[:, None]).sum(-1)


@dataclass(frozen=True, eq=False)
class Scales(Scale):
    """weight, bias: [B, n]."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.reshape(len(self.weight), -1, x.shape[-1]) * self.weight[:, None] + self.bias[:, None]).flatten(0, 1)

    def back(self, coefficients: Tensor) -> Tensor:
        return coefficients * self.weight[:, None]

    def constant(self, coefficients: Tensor) -> Tensor:
        return (coefficients * self.bias[:, None]).sum(-1)


def together(each: list[Network]) -> Network:
    """Networks of one shape as one."""
    layers = []
    for place, first in enumerate(each[0].layers):
        if isinstance(first, Affine):
            parts = [[getattr(one.layers[place], name) for one in each] for name in ("weight", "bias")]
            kind = Linears if isinstance(first, Linear) else Scales
            layers.append(kind(first.inputs, *(torch.stack(part) for part in parts)))
        else:
            layers.append(first)
    return replace(each[0], layers=tuple(layers))


def shapes_together(each: list[Geometry]) -> Geometry:
    """Geometries of networks of one shape as one of rows [B, n]; norms stay with their networks."""
    axes, reach = (
        tuple(torch.stack(part) for part in zip(*(getattr(one, name) for one in each), strict=True))
        for name in ("axes", "reach")
    )
    return Geometry(axes, reach, {})


def draw(rng: np.random.Generator, count: int) -> list[Network]:
    """One to three hidden layers of one to six neurons, some with a residual sum, dead neurons, or zero weights."""
    inputs, classes = int(rng.integers(1, 5)), int(rng.integers(2, 5))
    widths = rng.integers(1, 7, size=rng.integers(1, 4)).tolist()
    sizes = list(zip([inputs, *widths], [*widths, classes], strict=True))
    scaled = rng.random() < 0.3
    summed = [n == m and rng.random() < 0.3 for n, m in sizes]
    bent = [place < len(widths) or rng.random() < 0.1 for place in range(len(sizes))]
    return [_draw_one(rng, inputs, classes, sizes, scaled, summed, bent) for _ in range(count)]


def _draw_one(
    rng: np.random.Generator,
    inputs: int,
    classes: int,
    sizes: list[tuple[int, int]],
    scaled: bool,
    summed: list[bool],
    bent: list[bool],
) -> Network:
    scale = 10 ** rng.uniform(-1, 1)
    builder, value = Builder((inputs,)), 0
    if scaled:
        ones = torch.from_numpy(10 ** rng.uniform(-1, 1, inputs))
        value = builder.scale(value, ones, torch.from_numpy(rng.normal(size=inputs)))
    for place, (n, m) in enumerate(sizes):
        weight = rng.normal(size=(m, n)) * scale / math.sqrt(n)
        weight[rng.random(weight.shape) < 0.1] = 0
        bias = rng.normal(size=m) * 10 ** rng.uniform(-2, 1)
        before, value = value, builder.linear(value, torch.from_numpy(weight), torch.from_numpy(bias))
        if summed[place]:
            value = builder.add(value, before)
        if bent[place]:
            value = builder.relu(value)
    return builder.build(builder.linear(value, torch.eye(classes), None), "random")


def exact_on_a_line(network: Network, c: np.ndarray, low: float, high: float) -> np.ndarray:
    """The minima of c'f over an interval of the one input number: at its ends and where a neuron changes sides."""
    points = np.array([low, high])
    for layer in network.layers:
        if type(layer).__name__ != "Relu":
            continue
        grid = torch.from_numpy(np.unique(points))[:, None]
        z = network.values(grid)[layer.inputs[0]].numpy()
        x, (a, b) = grid.numpy(), (z[:-1], z[1:])
        crossing = (a < 0) != (b < 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            where = x[:-1] + (x[1:] - x[:-1]) * (a / (a - b))
        points = np.concatenate([points, where[crossing]])
    points = np.clip(points, low, high)
    return (network(torch.from_numpy(points)[:, None]).numpy() @ c.T).min(0)


def exact_in_a_box(network: Network, c: np.ndarray, low: np.ndarray, high: np.ndarray) -> float | None:
    """The minimum of c'f over a box by mixed-integer programming; None where the solver gave up."""
    sizes, starts, total = network.sizes, [], 0
    for size in sizes:
        starts.append(total + np.arange(size))
        total += size
    hidden = {index + 1: total + np.arange(sizes[index + 1]) for index, e in enumerate(network.layers) if _is_relu(e)}
    count = 0
    for index in hidden:
        hidden[index] = total + count + np.arange(sizes[index])
        count += sizes[index]
    width = total + count
    least, most = [low], [high]
    rows, lower, upper = [], [], []

    def constrain(columns: Any, coefficients: Any, a: float, b: float) -> None:
        row = np.zeros(width)
        np.add.at(row, np.asarray(columns), np.asarray(coefficients, dtype=float))
        rows.append(row), lower.append(a), upper.append(b)

    for index, layer in enumerate(network.layers):
        out, given = starts[index + 1], [starts[before] for before in layer.inputs]
        lows, highs = [least[before] for before in layer.inputs], [most[before] for before in layer.inputs]
        if _is_relu(layer):
            least.append(np.maximum(lows[0], 0)), most.append(np.maximum(highs[0], 0))
            for i, active in enumerate(hidden[index + 1]):
                big = max(abs(lows[0][i]), abs(highs[0][i])) + 1
                constrain([out[i], given[0][i]], [1, -1], 0, np.inf)
                constrain([out[i], active], [1, -big], -np.inf, 0)
                constrain([out[i], given[0][i], active], [1, -1, big], -np.inf, big)
        elif len(given) == 2:
            least.append(lows[0] + lows[1]), most.append(highs[0] + highs[1])
            for i in range(len(out)):
                constrain([out[i], given[0][i], given[1][i]], [1, -1, -1], 0, 0)
        else:
            weight = layer.weight.numpy() if isinstance(layer, Linear) else np.diag(layer.weight.numpy())
            bias = layer.bias.numpy()
            least.append(np.minimum(weight * lows[0], weight * highs[0]).sum(1) + bias)
            most.append(np.maximum(weight * lows[0], weight * highs[0]).sum(1) + bias)
            for i in range(len(out)):
                constrain([out[i], *given[0]], [1, *-weight[i]], bias[i], bias[i])
    lowest, highest, integral = np.full(width, -np.inf), np.full(width, np.inf), np.zeros(width)
    lowest[: sizes[0]], highest[: sizes[0]] = low, high
    for index, active in hidden.items():
        lowest[active], highest[active], integral[active], lowest[starts[index]] = 0, 1, 1, 0
    objective = np.zeros(width)
    objective[starts[-1]] = c
    found = milp(
        objective,
        constraints=LinearConstraint(np.array(rows), lower, upper),
        bounds=(lowest, highest),
        integrality=integral,
    )
    if not found.success:
        return None
    # The solver's own tolerances may lie: what the network says at its point is what counts.
    point = np.clip(found.x[: sizes[0]], low, high)
    return float(network(torch.from_numpy(point)[None])[0].numpy() @ c)


def _is_relu(layer: Any) -> bool:
    return type(layer).__name__ == "Relu"


def block(number: int, folder: Path) -> dict[str, Any]:
    """Everything about the networks of one block; "unsound" lists what is above what it must be below."""
    rng = np.random.default_rng(number)
    each = draw(rng, BLOCK)
    many, shapes = together(each), [geometry(one) for one in each]
    shape, n, classes = shapes_together(shapes), many.sizes[0], many.outputs
    x = torch.from_numpy(rng.uniform(0, 1, size=(BLOCK, n)))
    labels = torch.from_numpy(rng.integers(classes, size=BLOCK))
    radii = torch.from_numpy(10 ** rng.uniform(-3, 1, size=BLOCK))
    box = (0.0, 1.0) if rng.random() < 0.3 else None
    words = SETTINGS[rng.integers(len(SETTINGS))]
    c, search = specifications(labels, classes), Search(iterations=int(rng.integers(1, 21)))
    (found,) = certified_margins(many, x, radii, labels, shape=shape, box=box, search=search, **words)
    by_row = replace(shape, axes=tuple(axes[:, None] for axes in shape.axes))
    generator = torch.Generator().manual_seed(number)
    above = {"attacked": attack(many, x, radii, c, generator=generator, box=box, steps=10)[0]}
    away = rng.normal(size=(BLOCK, SAMPLES, n))
    away *= rng.uniform(0, 1, size=(BLOCK, SAMPLES, 1)) ** (1 / n) / np.linalg.norm(away, axis=2, keepdims=True)
    points = x[:, None] + radii[:, None, None] * torch.from_numpy(away)
    points = points if box is None else points.clamp(*box)
    outputs = many(points.flatten(0, 1)).unflatten(0, (BLOCK, SAMPLES))
    above["sampled"] = (outputs @ c.transpose(1, 2)).amin(1)
    counts = {"exact_on_a_line": 0, "exact_by_solver": 0, "refined": 0, "proved": 0, "refused": 0}
    above["exact"] = torch.full_like(above["sampled"], math.inf)
    for i, one in enumerate(each):
        away = radii[i].item() if n == 1 else radii[i].item() / math.sqrt(n)
        low, high = x[i].numpy() - away, x[i].numpy() + away
        if box is not None:
            low, high = np.maximum(low, box[0]), np.minimum(high, box[1])
        if n == 1:
            least = exact_on_a_line(one, c[i].numpy(), low[0], high[0])
            counts["exact_on_a_line"] += len(least)
        elif i % SOLVED == 0:
            solved = [exact_in_a_box(one, row, low, high) for row in c[i].numpy()]
            least = np.array([math.inf if value is None else value for value in solved])
            counts["exact_by_solver"] += int(np.isfinite(least).sum())
        else:
            continue
        above["exact"][i] = torch.from_numpy(least)
    margins = found.margins.clone()
    for i, one in enumerate(each) if "method" not in words else ():
        at = slice(i, i + 1)
        alone = _alone(found, at)
        if i % SOLVED == 0:
            alone = refined(one, x[at], radii[at], labels[at], alone)
            margins[i] = alone.margins[0]
            counts["refined"] += len(alone.duals)
        (content,) = contents(one, x[at], radii[at], labels[at], shapes[i], alone, box)
        try:
            check.prove(content, _as_read(one, folder if i % SOLVED == 0 else None))
            counts["proved"] += 1
        except check.Refused as error:
            counts["refused"] += 1
            print(f"network {number * BLOCK + i}: {error}", flush=True)
    below = {"certified": margins, "lip-naive": lip_naive(many, x, radii, c, by_row) - 1e-7 * radii[:, None]}
    unsound = [
        f"network {number * BLOCK + i}: {name} above {other}"
        for name, bound in below.items()
        for other, value in above.items()
        for i in (~(bound <= value + TOLERANCE * (1 + value.abs().nan_to_num(posinf=0))))
        .any(1)
        .nonzero()[:, 0]
        .tolist()
    ]
    return {"networks": BLOCK, "bounds": margins.numel(), **counts, "unsound": unsound}


def _alone(found: Certified, at: slice) -> Certified:
    """The row of a batch that is about one network."""
    known = {
        index: bounds.Enclosure(e.centre[at], e.axes[at], e.lower[at], e.upper[at]) for index, e in found.known.items()
    }
    slopes, multipliers = (
        {index: value[at] for index, value in part.items()}
        for part in (found.relaxation.slopes, found.relaxation.multipliers)
    )
    return Certified(found.margins[at], known, Relaxation(slopes, multipliers))


def _as_read(network: Network, folder: Path | None) -> check.Net:
    """The network as the checker holds it; through a file where there is a folder."""
    if folder is not None:
        write_network(network, folder / "net.safetensors")
        return check.read_net(folder / "net.safetensors")
    layers = [
        {**row, "weight": layer.weight.numpy(), "bias": layer.bias.numpy()} if isinstance(layer, Affine) else row
        for row, layer in zip(network.description()["layers"], network.layers, strict=True)
    ]
    return check.Net(network.sizes[0], layers, network.digest)


def code() -> str:
    """sha256 of what is under test and of this program: another one's result is not continued."""
    files = [
        Path(str(module.__file__)) for module in (bounds, certificate, check, norms, networks, attacks, semidefinite)
    ]
    return hashlib.sha256(b"".join(file.read_bytes() for file in [*files, Path(__file__)])).hexdigest()


def begun(store: Path, start: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call stored, when it was ended before its time and did the same; else a start."""
    try:
        stored = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return start
    same = all(stored.get(key) == start[key] for key in ("asked", "first", "torch", "code"))
    return stored if same and stored["networks"] < stored["asked"] else start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=100_000, help=f"rounded up to blocks of {BLOCK}")
    parser.add_argument("--first", type=int, default=0, help="number of the first block")
    parser.add_argument("--store", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    asked = -(-arguments.networks // BLOCK) * BLOCK
    counted = ["networks", "bounds", "exact_on_a_line", "exact_by_solver", "refined", "proved", "refused"]
    start: dict[str, Any] = {"asked": asked, **dict.fromkeys(counted, 0), "unsound": [], "seconds": 0.0}
    start |= {"first": arguments.first, "torch": torch.__version__, "code": code()}
    total = begun(arguments.store, start)
    with tempfile.TemporaryDirectory() as folder, progress("fuzzing", total=asked, unit="networks") as bar:
        while total["networks"] < asked:
            began = time.perf_counter()
            result = block(arguments.first + total["networks"] // BLOCK, Path(folder))
            for key in (*counted, "unsound"):
                total[key] += result[key]
            for each in result["unsound"]:
                print(each, flush=True)
            total["seconds"] = round(total["seconds"] + time.perf_counter() - began, 2)
            write_atomic(arguments.store, json.dumps(total, indent=2) + "\n")
            bar.update(total["networks"], unsound=len(total["unsound"]), refused=total["refused"])
    print(json.dumps(total, indent=2))
    return 1 if total["unsound"] or total["refused"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
