"""Looks for an unsound bound on random small networks, and for a file that deceives the checker of certificates.

    python scripts/fuzz_certificates.py --networks 1000      # some seconds on one core
    python scripts/fuzz_certificates.py                      # 100,000; stores the result in scripts/fuzz_certificates.json

Networks come in blocks of one shape that are bounded as one batch: the bounder's own code, whose layers here hold a matrix
a network. Widths, depths, sums, slopes, constants and input sets are drawn for every block; weights, scales, inputs, labels
and radii for every network. Exact minima: where there is one input number the output is linear between kinks, so its minimum
over the interval is exact; of the others every 25th is solved by mixed-integer programming (HiGHS) over the cube inside the
ball, whose minimum no bound may exceed. Every 25th also has its negative margins refined by the semidefinite dual. The
checker proves every certificate, of every 25th network with the network read from its file.

Of one network a block, file and certificate are damaged: bits flipped, bytes lost, the description changed at a place. Every
such file must be refused with a sentence, or read as what it was; a network with another description that is read must be
the one that `read_network` reads, and a certificate that is proved for it must hold at samples of its ball.

The result is stored after every block: the same command goes on where it was ended, however it was. Ends with 1 when a bound
is above any of these, a file is read as another one, or the checker refuses a certificate.
"""

import argparse
import copy
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import LinearConstraint, milp
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.files import write_atomic
from equipoise.core.progress import progress
from equipoise.verification import attack as attacks
from equipoise.verification import bounds, certificate, check, check_files, norms, rounding, sdp_crown, semidefinite
from equipoise.verification import network as networks
from equipoise.verification.attack import attack
from equipoise.verification.bounds import Geometry, Search, geometry, lip_naive
from equipoise.verification.certificate import Certified, certified_margins, contents, refined, specifications
from equipoise.verification.check_files import METADATA, Net, Refused, read_certificate, read_net
from equipoise.verification.network import (
    Affine,
    Builder,
    Linear,
    Network,
    Relu,
    Scale,
    write_network,
)
from equipoise.verification.read import read_network
from equipoise.verification.sdp_crown import Relaxation

TOLERANCE = 1e-9
RESULT = Path(__file__).with_suffix(".json")
BLOCK = 50  # networks of one shape
SOLVED = 25  # every so many-th network is refined, given to the solver, and to the checker as a file
SAMPLES = 100
DAMAGED = 30  # files a block
COUNTED = ["networks", "bounds", "exact_on_a_line", "exact_by_solver", "refined", "proved", "refused"]
COUNTED += ["damaged_refused", "damaged_read"]
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
        if not _is_relu(layer):
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
    return isinstance(layer, Relu)


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
    counts = dict.fromkeys(COUNTED[2:], 0)
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
    margins, unsound = found.margins.clone(), []
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
        except Refused as error:
            counts["refused"] += 1
            print(f"network {number * BLOCK + i}: {error}", flush=True)
        if i == 0:
            for kind, deceived in damaged(rng, one, content, folder, DAMAGED):
                counts[kind] += 1
                unsound += [f"network {number * BLOCK}: {deceived}"] if deceived else []
    below = {"certified": margins, "lip-naive": lip_naive(many, x, radii, c, by_row) - 1e-7 * radii[:, None]}
    unsound += [
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


def _as_read(network: Network, folder: Path | None) -> Net:
    """The network as the checker holds it; through a file where there is a folder."""
    if folder is not None:
        write_network(network, folder / "net.safetensors")
        return read_net(folder / "net.safetensors")
    layers = [
        {**row, "weight": layer.weight.numpy(), "bias": layer.bias.numpy()} if isinstance(layer, Affine) else row
        for row, layer in zip(network.description()["layers"], network.layers, strict=True)
    ]
    return Net(network.shape, list(network.sizes), layers, network.digest)


# Files that are not what was written


ODD = [-1, 0, 1, 2, 3, 10**6, 10**30, True, False, None, 1.0, 0.5, "1", "relu", "add", "linear", [], [0], [1, 1], {}]


def flipped(rng: np.random.Generator, raw: bytes) -> bytes:
    """Some bits changed, or bytes lost or doubled."""
    found, kind = bytearray(raw), rng.integers(10)
    at = int(rng.integers(len(found)))
    if kind == 0:
        return bytes(found[:at])
    if kind == 1:
        return bytes(found[:at] + found[at + int(rng.integers(1, 9)) :])
    if kind == 2:
        return bytes(found[:at] + found[at : at + 8] + found[at:])
    for _ in range(1 if kind > 4 else kind):
        found[rng.integers(len(found))] ^= 1 << rng.integers(8)
    return bytes(found)


def redescribed(rng: np.random.Generator, raw: bytes) -> bytes:
    """A network's file with another description, of which one or two places are changed, and tensors that may fit it."""
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    text = json.loads(header["__metadata__"][METADATA])
    for _ in range(rng.integers(1, 3)):
        _change(rng, text)
    header["__metadata__"][METADATA] = json.dumps(text)
    if rng.random() < 0.3:  # shapes of the same number of numbers, or names of other places
        name = str(rng.choice([name for name in header if name != "__metadata__"]))
        shape = header[name]["shape"]
        header[name]["shape"] = shape[::-1] if rng.random() < 0.5 else [int(np.prod(shape)), 1]
        if rng.random() < 0.3:
            header[f"{rng.integers(4)}.weight"] = header.pop(name)
    if rng.random() < 0.1:
        _change(rng, header)
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + raw[8 + length :]


def _change(rng: np.random.Generator, text: Any) -> None:
    """One change at a place of a JSON value that is drawn on the way down."""
    while True:
        keys = list(text) if isinstance(text, dict) else list(range(len(text)))
        if not keys:
            return
        key = keys[rng.integers(len(keys))]
        if isinstance(text[key], dict | list) and rng.random() < 0.8:
            text = text[key]
            continue
        kind = rng.integers(6)
        if kind == 0:
            del text[key]
        elif kind == 1 and isinstance(text, list):
            text.insert(key, copy.deepcopy(text[rng.integers(len(text))]))
        elif kind == 1:
            text[str(rng.choice(["bias", "stride", "groups", "note", "Inputs"]))] = copy.deepcopy(text[key])
        elif kind == 2 and type(text[key]) is int:
            text[key] += int(rng.integers(-2, 3))
        elif kind == 3 and isinstance(text, list):
            text.reverse()
        else:
            text[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
        return


def damaged(
    rng: np.random.Generator, network: Network, content: dict[str, Any], folder: Path, count: int
) -> Iterator[tuple[str, str]]:
    """Of `count` damaged files what became of each ("damaged_refused", "damaged_read"), and how it deceived, "" if not."""
    whole, proof = folder / "whole.safetensors", folder / "whole.npz"
    write_network(network, whole)
    certificate.write(content, proof)
    net, other, raw = read_net(whole), folder / "other", {path: path.read_bytes() for path in (whole, proof)}
    for number in range(count):
        kind = ("network", "certificate", "description")[number % 3]
        change = redescribed if kind == "description" else flipped
        other.write_bytes(change(rng, raw[proof if kind == "certificate" else whole]))
        try:
            if kind == "certificate":
                found = read_certificate(other, net)
                check.prove(found, net)
                same = all(found[name].tobytes() == np.asarray(content[name]).tobytes() for name in content)
                yield "damaged_read", "" if same else "a damaged certificate is proved"
            else:
                yield "damaged_read", _deceived(read_net(other), net, content, other)
        except Refused:
            yield "damaged_refused", ""
        except Exception as error:  # whatever it is: the checker promises a sentence
            yield "damaged_refused", f"a damaged {kind} ends in {error!r}"


def _deceived(found: Net, net: Net, content: dict[str, Any], path: Path) -> str:
    """How a network that was read from a damaged file deceives, "" when it does not."""
    try:
        network = read_network(path)
    except BadInput:
        return ""  # the checker reads what nobody else does
    if (network.digest == net.digest) != _same(found, net) or network.digest != found.digest:
        return "a damaged network is read as another one"
    signed = {**content, "network": np.array(found.digest)}
    try:
        claimed = check.prove(signed, found)
    except Refused:
        return ""
    generator = torch.Generator().manual_seed(0)
    x, radius, label = torch.from_numpy(content["input"]), float(content["radius"]), int(content["label"])
    away = torch.randn(SAMPLES, len(x), generator=generator, dtype=torch.float64)
    points = x + radius * away / away.norm(dim=1, keepdim=True)
    outputs = network(points.clamp(*content["box"]) if "box" in content else points).numpy()
    least = (outputs[:, [label]] - np.delete(outputs, label, 1)).min(0)
    return "" if (claimed <= least + TOLERANCE * (1 + abs(least))).all() else "a damaged network has false margins"


def _bits(value: Any) -> tuple[Any, ...]:
    return np.shape(value), np.asarray(value).tobytes()


def _same(one: Net, two: Net) -> bool:
    """To the last bit: 0 and -0 are two, as they are for the digest."""
    return (
        one.shape == two.shape
        and len(one.layers) == len(two.layers)
        and all(
            a.keys() == b.keys() and all(_bits(a[key]) == _bits(b[key]) for key in a)
            for a, b in zip(one.layers, two.layers, strict=True)
        )
    )


def code() -> str:
    """sha256 of what is under test and of this program: another one's result is not continued."""
    makers = (bounds, sdp_crown, certificate, norms, networks, attacks, semidefinite)
    files = [Path(str(module.__file__)) for module in (*makers, check, check_files, rounding)]
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
    start: dict[str, Any] = {"asked": asked, **dict.fromkeys(COUNTED, 0), "unsound": [], "seconds": 0.0}
    start |= {"first": arguments.first, "torch": torch.__version__, "code": code()}
    total = begun(arguments.store, start)
    with tempfile.TemporaryDirectory() as folder, progress("fuzzing", total=asked, unit="networks") as bar:
        while total["networks"] < asked:
            began = time.perf_counter()
            result = block(arguments.first + total["networks"] // BLOCK, Path(folder))
            for key in (*COUNTED, "unsound"):
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
