"""Is what was read what is computed? The original beside the network, at the inputs and at random points of their balls.

A reader that misunderstands a part of a network proves margins of another one, and a checker that gets the same reading
accepts them. So the original itself runs: the torch module, or the ONNX file in an evaluator of ONNX.

The difference that rounding explains is bounded as for any sum of products: carried through layers of n1, n2, ... terms in
precision u, it is at most (n1 + n2 + ...) u times what the network gives with absolute values for weights, biases and input,
to first order in u, in whatever order the terms are added. `SLACK` times that is allowed, since a normalisation that was
folded into the map before it is other sums of the same size.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.verification.network import Affine, Network
from equipoise.verification.result import Faithfulness

SLACK = 16
CHUNK = 2**24  # numbers of the largest value of all points that are run at once


@dataclass(frozen=True)
class OriginalRun:
    """One way to run an original. start: makes outputs [B, ...] from inputs [B, *shape] of this precision, or raises."""

    reference: str
    version: str
    dtype: torch.dtype
    start: Callable[[], Callable[[Tensor], Tensor]]


class Original(Protocol):
    """What a network was read from, where that can be run."""

    def runs(self) -> Iterator[OriginalRun]:
        """From the most to the least exact; the first that runs is the reference."""
        ...


@dataclass(frozen=True, eq=False)
class Reading:
    """A network, and what it was read from; original is None where there is nothing but the network itself."""

    network: Network
    original: Original | None = None


def compare(
    network: Network,
    original: Original | None,
    x: Tensor,
    radii: Tensor,
    *,
    box: tuple[float, float] | None = None,
    seed: int = 0,
    points: int = 4,
    rows: Sequence[int] | None = None,
) -> Faithfulness:
    """The network and its original at inputs x: [B, ...] and at `points` random points of each one's ball and the box.

    radii: [B]; where one is not a number, a tenth of the input's norm. rows: the numbers of the inputs, which seed their
    points; else 0, 1, ... Raises BadInput with both values where they differ by more than rounding, or cannot be compared.
    """
    if original is None:
        return Faithfulness(None)
    run, outputs = _started(network, original, x)
    allowed_per = SLACK * _terms(network) * torch.finfo(run.dtype).eps / 2
    sizes, size = _absolute(network), max(CHUNK // max(network.sizes) // (points + 1), 1)
    every = np.arange(len(x)) if rows is None else np.asarray(rows)
    worst, count = torch.zeros(3, dtype=torch.float64), 0
    for begin in range(0, len(x), size):
        at = slice(begin, begin + size)
        drawn = torch.cat(
            [
                _points(center, radius.item(), box, points, np.random.SeedSequence([seed, int(row)]))
                for center, radius, row in zip(x[at].flatten(1).double(), radii[at], every[at], strict=True)
            ]
        )
        given = drawn.to(run.dtype)
        read, truth = network(given.double()), _outputs(network, outputs, given, run)
        difference, allowed = (read - truth).abs(), allowed_per * sizes(given.double().abs())
        _refuse(network, run, read, truth, difference <= allowed, every[at], points)
        relative = difference.amax(1) / torch.maximum(read.abs().amax(1), truth.abs().amax(1)).clamp(min=1e-300)
        share = (difference / allowed.clamp(min=1e-300)).max()
        worst = torch.maximum(worst, torch.stack([difference.max(), relative.max(), share]))
        count += len(drawn)
    precision = str(run.dtype).removeprefix("torch.")
    return Faithfulness(run.reference, run.version, precision, count, *worst.tolist())


def _started(network: Network, original: Original, x: Tensor) -> tuple[OriginalRun, Callable[[Tensor], Tensor]]:
    """The first run that takes an input."""
    problems = []
    for run in original.runs():
        try:
            outputs = run.start()
            outputs(x[:1].reshape(-1, *network.shape).to(run.dtype))
        except Exception as error:  # whatever the user's own code, or an evaluator that lacks an operator, raises
            problems.append(f"{run.reference} in {run.dtype}: {error}")
        else:
            return run, outputs
    raise BadInput(
        f"{network.name}: the original does not run on an input of shape {network.shape} ({'; '.join(problems)}), so that "
        "what was read cannot be compared with it."
    )


def _outputs(network: Network, outputs: Callable[[Tensor], Tensor], given: Tensor, run: OriginalRun) -> Tensor:
    result = outputs(given.reshape(-1, *network.shape))
    if not isinstance(result, Tensor) or result.numel() != len(given) * network.outputs:
        shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise BadInput(
            f"{network.name}: {run.reference} gives {shape} for {len(given)} inputs, where "
            f"{network.outputs} outputs each were read."
        )
    return result.reshape(len(given), -1).double()


def _refuse(
    network: Network, run: OriginalRun, read: Tensor, truth: Tensor, equal: Tensor, rows: np.ndarray, points: int
) -> None:
    if equal.all():
        return
    index, output = (int(each) for each in (~equal).nonzero()[0])
    row, which = rows[index // (points + 1)], index % (points + 1)
    where = f"input {row}" if which == 0 else f"a point of the ball of input {row}"
    raise BadInput(
        f"{network.name} is not read as it is computed: at {where}, output {output} is {read[index, output].item():.17g} as "
        f"it was read and {truth[index, output].item():.17g} in {run.reference} {run.version} ({run.dtype}). Nothing can be "
        "certified; something in it acts where the reader does not see it."
    )


def _points(
    center: Tensor, radius: float, box: tuple[float, float] | None, count: int, seed: np.random.SeedSequence
) -> Tensor:
    """The center and points of its ball, the first on its surface: [1 + count, n]. They depend on nothing but these."""
    rng = np.random.default_rng(seed)
    if not math.isfinite(radius):
        radius = 0.1 * center.norm().item() or 1.0
    steps = torch.from_numpy(rng.normal(size=(count, len(center))))
    reach = torch.from_numpy(np.concatenate([np.ones(min(count, 1)), rng.uniform(size=max(count - 1, 0))]))
    moved = center + radius * reach[:, None] * steps / steps.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return torch.cat([center[None], moved if box is None else moved.clamp(*box)])


def _terms(network: Network) -> int:
    """n1 + n2 + ... over all layers, with the bias and the rounding of a weight."""
    return sum(2 + (layer.weight[0].numel() if isinstance(layer, Affine) else 0) for layer in network.layers)


def _absolute(network: Network) -> Network:
    layers = tuple(
        replace(layer, weight=layer.weight.abs(), bias=layer.bias.abs()) if isinstance(layer, Affine) else layer
        for layer in network.layers
    )
    return replace(network, layers=layers)
