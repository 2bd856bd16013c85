"""Looks for an unsound bound on random small networks: against samples, an attack, exact minima, and the checker.

    python scripts/fuzz_certificates.py --networks 1000      # a minute or two on one core
    python scripts/fuzz_certificates.py                      # 100,000; stores the result in scripts/fuzz_certificates.json

Widths, depths, scales, radii, slopes, constants and input sets are drawn anew for every network. One input number: the
output is linear between kinks, so its minimum over the interval is exact. More: every twentieth network is solved by
mixed-integer programming (HiGHS) over the cube inside the ball, whose minimum no bound may exceed. Ends with 1 when a bound
is above any of these, or the checker refuses a certificate.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import LinearConstraint, milp

from equipoise.verification import check
from equipoise.verification.attack import attack
from equipoise.verification.bounds import Search, geometry, lip_naive
from equipoise.verification.certificate import certified_margins, contents, specifications
from equipoise.verification.network import Builder, Linear, Network, write_network

TOLERANCE = 1e-9
RESULT = Path(__file__).with_suffix(".json")
SETTINGS: list[dict[str, Any]] = [
    {},
    {"offset": "theorem"},
    {"slopes": "crown"},
    {"slopes": "crown", "offset": "theorem"},
    {"method": "alpha-crown", "slopes": "crown"},
]


def draw(rng: np.random.Generator) -> Network:
    """One to three hidden layers of one to six neurons, some with a residual sum, dead neurons, or zero weights."""
    inputs, classes = int(rng.integers(1, 5)), int(rng.integers(2, 5))
    widths = rng.integers(1, 7, size=rng.integers(1, 4)).tolist()
    scale = 10 ** rng.uniform(-1, 1)
    builder, value = Builder((inputs,)), 0
    if rng.random() < 0.3:
        ones = torch.from_numpy(10 ** rng.uniform(-1, 1, inputs))
        value = builder.scale(value, ones, torch.from_numpy(rng.normal(size=inputs)))
    for n, m in zip([inputs, *widths], [*widths, classes], strict=True):
        weight = rng.normal(size=(m, n)) * scale / math.sqrt(n)
        weight[rng.random(weight.shape) < 0.1] = 0
        bias = rng.normal(size=m) * 10 ** rng.uniform(-2, 1)
        before, value = value, builder.linear(value, torch.from_numpy(weight), torch.from_numpy(bias))
        if n == m and rng.random() < 0.3:
            value = builder.add(value, before)
        if m != classes or rng.random() < 0.1:
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


def one(seed: int, folder: Path) -> dict[str, Any]:
    """Everything about one random network; "unsound" lists what is above what it must be below."""
    rng = np.random.default_rng(seed)
    network = draw(rng)
    n, classes = network.sizes[0], network.outputs
    x = torch.from_numpy(rng.uniform(0, 1, size=(2, n)))
    labels = torch.from_numpy(rng.integers(classes, size=2))
    radii = torch.from_numpy(10 ** rng.uniform(-3, 1, size=2))
    box = (0.0, 1.0) if rng.random() < 0.3 else None
    words = SETTINGS[rng.integers(len(SETTINGS))]
    shape, c = geometry(network), specifications(labels, classes)
    search = Search(iterations=int(rng.integers(1, 8)))
    (found,) = certified_margins(network, x, radii, labels, shape=shape, box=box, search=search, **words)
    bounds = {"certified": found.margins, "lip-naive": lip_naive(network, x, radii, c, shape) - 1e-7 * radii[:, None]}
    generator = torch.Generator().manual_seed(seed)
    above = {"attacked": attack(network, x, radii, c, generator=generator, box=box, steps=10)[0]}
    away = rng.normal(size=(2, 100, n))
    away *= rng.uniform(0, 1, size=(2, 100, 1)) ** (1 / n) / np.linalg.norm(away, axis=2, keepdims=True)
    points = x[:, None] + radii[:, None, None] * torch.from_numpy(away)
    points = points if box is None else points.clamp(*box)
    outputs = network(points.flatten(0, 1)).unflatten(0, (2, 100))
    above["sampled"] = (outputs @ c.transpose(1, 2)).amin(1)
    exact = 0
    for i in range(2):
        low, high = x[i].numpy() - radii[i].item(), x[i].numpy() + radii[i].item()
        if n > 1:
            low, high = x[i].numpy() - radii[i].item() / math.sqrt(n), x[i].numpy() + radii[i].item() / math.sqrt(n)
        if box is not None:
            low, high = np.maximum(low, box[0]), np.minimum(high, box[1])
        if n == 1:
            least = exact_on_a_line(network, c[i].numpy(), low[0], high[0])
        elif seed % 20 == 0 and i == 0:
            solved = [exact_in_a_box(network, row, low, high) for row in c[i].numpy()]
            least = np.array([math.inf if each is None else each for each in solved])
        else:
            continue
        exact += int(np.isfinite(least).sum())
        above.setdefault("exact", torch.full_like(above["sampled"], math.inf))[i] = torch.from_numpy(least)
    unsound = [
        f"{name} above {other}"
        for name, bound in bounds.items()
        for other, value in above.items()
        if not (bound <= value + TOLERANCE * (1 + value.abs().nan_to_num(posinf=0))).all()
    ]
    write_network(network, folder / "net.safetensors")
    net = check.read_net(folder / "net.safetensors")
    refused = 0
    for content in contents(network, x, radii, labels, shape, found, box) if "method" not in words else ():
        try:
            check.prove(content, net)
        except check.Refused as error:
            refused += 1
            print(f"network {seed}: {error}", flush=True)
    return {"unsound": unsound, "refused": refused, "exact": exact, "bounds": found.margins.numel()}


def main() -> int:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first network")
    parser.add_argument("--store", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    total: dict[str, Any] = {"networks": 0, "bounds": 0, "exact_minima": 0, "unsound": [], "refused": 0}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.first, arguments.first + arguments.networks):
            result = one(seed, Path(folder))
            total["networks"] += 1
            total["bounds"] += result["bounds"]
            total["exact_minima"] += result["exact"]
            total["refused"] += result["refused"]
            total["unsound"] += [f"network {seed}: {each}" for each in result["unsound"]]
            for each in result["unsound"]:
                print(f"network {seed}: {each}", flush=True)
    total |= {"first": arguments.first, "seconds": round(time.perf_counter() - began), "torch": torch.__version__}
    arguments.store.write_text(json.dumps(total, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(total, indent=2))
    return 1 if total["unsound"] or total["refused"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
