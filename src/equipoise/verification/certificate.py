"""Certified margins of images, and the certificate of each: what a checker needs to prove them again.

A certificate is one .npz file of plain arrays:

    format                                              2
    network, label, input [n], radius, margins [S]      what is claimed; S = classes other than the label, in order
    box [2]                                             limits of the inputs, where the claim is about ball and box
    norm_P                                              spectral norm of linear or convolutional layer P
    centre_V, axes_V, lower_V, upper_V                  enclosure of value V, the input of a ReLU layer
    slopes_V [S, n], lambda_V [S], lambda_input [S]     the relaxation; lambda in units where the axes are 1
    refined [R]                                         places in margins that a semidefinite dual proves instead, and
    multipliers_V [R, 5, n], ball [R]                   its multipliers (`semidefinite`), 0 for a neuron that cannot bend
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.files import write_atomic
from equipoise.core.options import closed
from equipoise.core.progress import progress
from equipoise.verification import semidefinite
from equipoise.verification.bounds import (
    PUBLISHED,
    Box,
    Enclosure,
    Geometry,
    Search,
    enclosures,
    geometry,
    narrowed,
    summed_sizes,
)
from equipoise.verification.network import Network
from equipoise.verification.sdp_crown import Method, Offset, Relaxation, Slopes, optimize

# What a margin gives away so that a checker with its own rounding errors proves it: a share of 1 and of the bound, or, where
# that is more, of all that is added up, of which large terms may cancel.
SLACK, ROUNDING = 1e-8, 1e-12
SMALLEST = 2.0**-10  # by which outputs can move within a radius; a network with less is bounded in other units
# A matrix product rounds a row alike whatever stands beside it when the number of rows is a multiple of this.
LANES = 8
FORMAT = 2
CHUNK = 2**15  # numbers of a layer over all specifications that are worked on at once: what a processor's cache holds


@dataclass(frozen=True, eq=False)
class Certified:
    """Margins [B, S] that hold for every x of the set, in float64, and what proves them."""

    margins: Tensor
    known: dict[int, Enclosure]
    relaxation: Relaxation
    duals: dict[tuple[int, int], semidefinite.Dual] = field(default_factory=dict)
    """What proves the margins that `refined` raised, by input and place."""
    units: Sequence[float] = ()
    """What the coefficients of an input were multiplied by while they were worked with, see `_units`; 1 where not given."""


def specifications(labels: Tensor, classes: int) -> Tensor:
    """Rows e_label - e_other for every other class, in order. labels: [B] -> [B, classes - 1, classes]."""
    unit = torch.eye(classes, dtype=torch.float64)
    others = torch.stack([torch.cat([unit[:y], unit[y + 1 :]]) for y in labels.tolist()])
    return unit[labels][:, None] - others


def batch_size(network: Network) -> int:
    """How many inputs are bounded at once: a multiple of LANES, or fewer than LANES."""
    size = max(CHUNK // (max(network.sizes[1:]) * (network.outputs - 1)), 1)
    return size if size < LANES else size // LANES * LANES


@closed
def certified_margins(
    network: Network,
    x: Tensor,
    radius: Tensor,
    labels: Tensor,
    *,
    method: Method = "sdp-crown",
    slopes: Slopes = "free",
    offset: Offset = "ball-box",
    box: Box | None = None,
    search: Search = PUBLISHED,
    shape: Geometry | None = None,
) -> Iterator[Certified]:
    """Lower bounds on f_label - f_other over ||x' - x||_2 <= radius, in batches that go through x in order.

    x: [B, ...] raw inputs, radius: [B] > 0, labels: [B]. box: limits of the inputs, else the ball alone.
    method: "alpha-crown" with slopes="crown" is alpha-CROWN as published, over CROWN's boxes; only "sdp-crown" can be
    written as certificates, since a checker proves the boxes of `enclosures(boxes="reach")` and no others.
    Raises BadInput for a radius that is not positive and a label that is no class.
    """
    if not (radius.isfinite() & (radius > 0)).all():
        raise BadInput("A radius must be a positive number; got one that is not.")
    if not ((labels >= 0) & (labels < network.outputs)).all():
        raise BadInput(f"A label is not one of the {network.outputs} classes, 0 to {network.outputs - 1}.")
    shape = geometry(network) if shape is None else shape
    size = batch_size(network)
    for begin in range(0, len(x), size):
        at = slice(begin, begin + size)
        exact, ball = x[at].double(), radius[at].double()
        known = enclosures(network, exact, ball, shape, boxes="reach")
        guide = enclosures(network, exact, ball, shape, boxes="crown") if slopes == "crown" else known
        if method == "alpha-crown":
            known = guide
        unit = _units(ball * shape.axes[-1].max())
        chosen = specifications(labels[at], network.outputs) * unit[:, None, None]
        bounds, relaxation = optimize(
            network,
            exact,
            ball,
            chosen,
            known,
            guide=guide,
            method=method,
            slopes=slopes,
            offset=offset,
            box=box,
            search=search,
        )
        sizes = summed_sizes(network, exact, ball, chosen, known, relaxation.slopes, shape)
        margins = bounds - torch.maximum(SLACK * (1 + bounds.abs()), ROUNDING * sizes)
        multipliers = {index: each / unit[:, None] for index, each in relaxation.multipliers.items()}
        yield Certified(
            margins / unit[:, None], known, replace(relaxation, multipliers=multipliers), units=unit.tolist()
        )


def _units(moved: Tensor) -> Tensor:
    """Powers of two [B] by which coefficients are multiplied while they are worked with: no rounding, and 1 as a rule."""
    exponents = torch.log2(SMALLEST / moved.clamp(min=SMALLEST * 2.0**-100)).ceil().clamp(min=0)
    return torch.where(moved > 0, torch.exp2(exponents), 1.0)


def refined(
    network: Network, x: Tensor, radius: Tensor, labels: Tensor, certified: Certified, wanted: Tensor | None = None
) -> Certified:
    """The same with margins of undecided pairs raised by `semidefinite`, as far as it proves more; none gets lower.

    wanted: [B], the inputs worth it, such as those no attack has refuted; else all. Of each the negative margins are tried
    from the lowest on, until one stays negative: seconds for a pair and 250 neurons that may bend, much more for more.
    Inputs with more than `semidefinite.LARGEST` entries are left as they are. The claim is about the ball alone, and so
    holds for ball and box.
    """
    margins, duals = certified.margins.clone(), dict(certified.duals)
    small, flat = narrowed(network, x.double())
    chosen = specifications(labels, network.outputs)
    items = range(len(x)) if wanted is None else wanted.nonzero()[:, 0].tolist()
    with progress("refining", total=len(items), unit="inputs") as bar:
        for i in items:
            negative = [j for j in margins[i].argsort().tolist() if margins[i, j] < 0]
            if negative and semidefinite.entries(certified.known, i, flat.shape[1]) <= semidefinite.LARGEST:
                problem = semidefinite.problem(small, flat[i], radius[i].item(), certified.known, i)
                unit = certified.units[i] if certified.units else 1.0
                for j in negative:
                    dual = semidefinite.solve(problem, unit * chosen[i, j] @ problem.output)
                    bound = (dual.bound - SLACK * (1 + abs(dual.bound))) / unit
                    multipliers = {at: each / unit for at, each in dual.multipliers.items()}
                    dual = replace(dual, bound=dual.bound / unit, ball=dual.ball / unit, multipliers=multipliers)
                    if bound > margins[i, j]:
                        margins[i, j], duals[i, j] = bound, dual
                    if margins[i, j] < 0:
                        break
            bar.advance()
    return replace(certified, margins=margins, duals=duals)


def contents(
    network: Network,
    x: Tensor,
    radius: Tensor,
    labels: Tensor,
    shape: Geometry,
    certified: Certified,
    box: Box | None = None,
) -> Iterator[dict[str, Any]]:
    """The arrays of one certificate after the other, for the inputs that `certified` (by "sdp-crown") is about."""
    for i in range(len(certified.margins)):
        content: dict[str, Any] = {
            "format": np.array(FORMAT, dtype=np.int64),
            "network": np.array(network.digest),
            "label": np.array(int(labels[i]), dtype=np.int64),
            "input": x[i].double().flatten().numpy(),
            "radius": radius[i].double().numpy(),
            "margins": certified.margins[i].numpy(),
        }
        if box is not None:
            content["box"] = np.array(box, dtype=np.float64)
            content["lambda_input"] = (certified.relaxation.multipliers[0][i] / radius[i].double() ** 2).numpy()
        content |= {f"norm_{index}": np.array(norm) for index, norm in shape.norms.items()}
        for at, e in certified.known.items():
            for name in ("centre", "axes", "lower", "upper"):
                content[f"{name}_{at}"] = getattr(e, name)[i].numpy()
            content[f"slopes_{at}"] = certified.relaxation.slopes[at][i].numpy()
            content[f"lambda_{at}"] = certified.relaxation.multipliers[at][i].numpy()
        raised = [j for item, j in certified.duals if item == i]
        if raised:
            duals = [certified.duals[i, j] for j in raised]
            content |= {"refined": np.array(raised, dtype=np.int64), "ball": np.array([dual.ball for dual in duals])}
            for at, e in certified.known.items():
                bent = (e.lower[i] < 0) & (e.upper[i] > 0)
                whole = np.zeros((len(raised), semidefinite.KINDS, len(bent)))
                whole[:, :, bent.numpy()] = torch.stack([dual.multipliers[at] for dual in duals]).numpy()
                content[f"multipliers_{at}"] = whole
        yield content


def write(content: dict[str, Any], path: Path) -> None:
    """One certificate as one file."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: np.array(value, order="C") for name, value in content.items()}
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())
