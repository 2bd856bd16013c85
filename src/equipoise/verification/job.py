"""The job: for every input of a file, the margins that hold within a radius, a counter-example, or the largest radius.

Every batch is stored before the next begins, so that the same call resumes. Before the folder gets its final name the
independent checker has gone through all certificates as they are on the disk.
"""

import html
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import append_synced, write_atomic
from equipoise.core.job import JobFolder, digest, job_folder
from equipoise.core.progress import progress
from equipoise.verification import check
from equipoise.verification.attack import attack
from equipoise.verification.bounds import Box, Offset, Search, Slopes, geometry, input_set, lip_naive
from equipoise.verification.certificate import batch_size, certified_margins, contents, refined, specifications, write
from equipoise.verification.network import Network, from_module, read_network, write_network

Verdict = Literal["certified", "refuted", "undecided", "wrong"]
HALVINGS = 8  # of the bracket of the largest radius, in its logarithm
BRACKET = 8.0  # times LipNaive's radius: where the search for the largest radius ends


@dataclass(frozen=True)
class Row:
    """One input. margins: certified, one a class other than the label, in order; attacked: the smallest ones found.

    radius: within which they hold; with largest_radius the largest that is certified, 0 when none is. A wrong input (its
    label is not what the network says) has no margins. undecided: neither proved nor refuted.
    """

    index: int
    label: int
    predicted: int
    verdict: Verdict
    radius: float
    margins: tuple[float, ...] = ()
    attacked: tuple[float, ...] = ()

    @property
    def margin(self) -> float:
        """The smallest certified margin, nan for a wrong input."""
        return min(self.margins, default=math.nan)


@dataclass(frozen=True)
class Certification:
    """All rows in the order of the inputs; folder is None when nothing was written. seconds: of bounding, all attempts."""

    rows: tuple[Row, ...]
    network: str
    seconds: float
    folder: Path | None = None
    notes: tuple[str, ...] = ()

    def count(self, verdict: Verdict) -> int:
        return sum(row.verdict == verdict for row in self.rows)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{row.index}</td><td>{row.label}</td><td>{row.verdict}</td><td>{row.radius:.4g}</td>"
            f"<td>{row.margin:.4g}</td></tr>"
            for row in self.rows
        )
        head = "<tr><th>input</th><th>label</th><th>verdict</th><th>radius</th><th>smallest margin</th></tr>"
        return f"<p>{html.escape(self.network)}</p><table><thead>{head}</thead><tbody>{cells}</tbody></table>"


def certify(
    network: str | Path | nn.Module | Network,
    inputs: str | Path | np.ndarray | Tensor,
    radius: float | Sequence[float] | None = None,
    *,
    labels: str | Path | Sequence[int] | np.ndarray | Tensor | None = None,
    norm: Literal[2] = 2,
    largest_radius: bool = False,
    box: Box | None = None,
    slopes: Slopes = "free",
    offset: Offset = "ball-box",
    iterations: int = 300,
    attack_steps: int = 100,
    refine: bool = False,
    architecture: str | None = None,
    input_shape: Sequence[int] | None = None,
    limit: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    fresh: bool = False,
) -> Certification:
    """Margins that hold for every x within `radius` (l2, raw units) of each input; with `out`, a certificate each.

    network: a file as in `read_network`, a torch module, or a Network. inputs: .npy or .npz (arrays X and y), or an array
    [B, ...]; pictures with the channel last are turned. labels: else y, else what the network says. radius: one, or one an
    input; needed unless largest_radius searches, per input, for the largest up to which it is certified.
    box: limits of every number of an input, such as (0, 1): the claim is then about ball and box.
    refine: try `semidefinite` on the inputs that are neither certified nor attacked; seconds each on a small network, and
    nothing on a wide one. It takes no part in the search for the largest radius.
    Raises BadInput for a wrong request, WorkFailed when the checker refuses what was written.
    """
    if norm != 2:
        raise BadInput(f"norm is {norm!r}: these certificates are about the l2 norm, --norm 2.")
    if iterations < 1 or attack_steps < 0:
        raise BadInput("iterations must be at least 1 and attack_steps at least 0.")
    if largest_radius:
        radius = None
    elif radius is None:
        raise BadInput(
            "No radius: give --radius, in the units of the raw inputs, or search for it with --largest-radius."
        )
    x, known_labels, digests = _read_inputs(inputs, labels)
    net = _read(network, architecture, input_shape or x.shape[1:])
    x = _turned(x, net)
    if limit is not None:
        x, known_labels = x[:limit], None if known_labels is None else known_labels[:limit]
    predicted = net(x).argmax(1)
    chosen = predicted if known_labels is None else known_labels
    if len(chosen) != len(x) or chosen.min() < 0 or chosen.max() >= net.outputs:
        raise BadInput(f"{len(chosen)} labels for {len(x)} inputs and {net.outputs} classes: one from 0 an input.")
    radii = torch.as_tensor(math.nan if radius is None else radius, dtype=torch.float64).flatten()
    radii = radii.expand(len(x)) if len(radii) == 1 else radii
    if radius is not None and not (radii.isfinite() & (radii > 0)).all():
        wrong = radii[~(radii.isfinite() & (radii > 0))][0].item()
        raise BadInput(f"The radius is {wrong:g}; it must be a number above 0, in the units of the raw inputs.")
    if radius is not None and len(radii) != len(x):
        raise BadInput(f"{len(radii)} radii for {len(x)} inputs: give one for all, or one each.")
    if box is not None:
        input_set(x, radii, box)
    work = _Work(
        net, x, chosen, predicted, radii, largest_radius, box, slopes, offset, iterations, attack_steps, refine, seed
    )
    if out is None:
        return work.result(list(work.rows(set(), None)), None)
    settings = {
        "network": str(network) if isinstance(network, str | Path) else net.name,
        "inputs": str(inputs) if isinstance(inputs, str | Path) else f"{len(x)} inputs",
        "labels": str(labels) if isinstance(labels, str | Path) else None,
        "radius": radius if radius is None or isinstance(radius, int | float) else radii.tolist(),
        "norm": norm,
        "largest_radius": largest_radius,
        "box": None if box is None else f"{box[0]:g},{box[1]:g}",
        "slopes": slopes,
        "offset": offset,
        "iterations": iterations,
        "attack_steps": attack_steps,
        "refine": refine,
        "architecture": architecture,
        "input_shape": None if input_shape is None else ",".join(map(str, input_shape)),
        "limit": limit,
        "seed": seed,
    }
    digests |= {"the network": net.digest}
    with job_folder(Path(out), settings, digests, fresh=fresh) as folder:
        if not folder.complete:
            work.write(folder, settings)
        rows = _stored_rows(folder.final / "rows.jsonl")
        return work.result(list(rows.values()), folder.final)


@dataclass(frozen=True, eq=False)
class _Work:
    net: Network
    x: Tensor
    labels: Tensor
    predicted: Tensor
    radii: Tensor
    largest: bool
    box: Box | None
    slopes: Slopes
    offset: Offset
    iterations: int
    attack_steps: int
    refine: bool
    seed: int

    def result(self, rows: list[Row], folder: Path | None) -> Certification:
        seconds = json.loads((folder / "seconds.json").read_text())["bounding"] if folder else math.nan
        rows = sorted(rows, key=lambda row: row.index)
        return Certification(tuple(rows), self.net.name, seconds, folder, self.notes())

    def notes(self) -> tuple[str, ...]:
        where = "the ball" if self.box is None else f"the ball and the box from {self.box[0]:g} to {self.box[1]:g}"
        return (
            f"A certified margin holds for every point of {where}, for the network read as a function of real numbers; "
            "what a computer's own rounding adds to an output is not part of the claim.",
            "A refuted input has a point within its radius that the network puts into another class; an undecided one has "
            "neither that nor a proof.",
        )

    def rows(self, done: set[int], folder: Path | None):
        """The rows that are not done yet, batch by batch; with a folder each batch's certificates are written first."""
        shape = geometry(self.net)
        for index in range(len(self.x)):
            if self.predicted[index] != self.labels[index] and index not in done:
                yield self._row(index, "wrong", 0.0 if self.largest else self.radii[index].item())
        right = [i for i in range(len(self.x)) if self.predicted[i] == self.labels[i] and i not in done]
        size = batch_size(self.net)
        with progress("certifying", total=len(right), unit="inputs") as bar:
            for begin in range(0, len(right), size):
                yield from self._batch(right[begin : begin + size], shape, folder)
                bar.update(min(begin + size, len(right)))

    def _row(self, index: int, verdict: Verdict, radius: float, margins=(), attacked=()) -> Row:
        label, predicted = int(self.labels[index]), int(self.predicted[index])
        return Row(index, label, predicted, verdict, radius, tuple(margins), tuple(attacked))

    def _batch(self, indices: list[int], shape: Any, folder: Path | None):
        x, labels = self.x[indices], self.labels[indices]
        radii = self._largest(x, labels, shape) if self.largest else self.radii[indices]
        ((found),) = self._certified(x, radii, labels, shape, self.iterations)
        generator = torch.Generator().manual_seed(self.seed + indices[0])
        chosen = specifications(labels, self.net.outputs)
        worst, points = attack(self.net, x, radii, chosen, generator=generator, box=self.box, steps=self.attack_steps)
        if self.refine:
            found = refined(self.net, x, radii, labels, found, worst.amin(1) >= 0)
        arrays = contents(self.net, x, radii, labels, shape, found, self.box)
        for i, (index, content) in enumerate(zip(indices, arrays, strict=True)):
            margins, attacked = found.margins[i].tolist(), worst[i].tolist()
            if min(attacked) < min(margins):
                raise WorkFailed(
                    f"input {index}: an attacked margin is below the certified one; this is a defect, report it."
                )
            verdict = "certified" if min(margins) > 0 else "refuted" if min(attacked) < 0 else "undecided"
            if folder is not None:
                write(content, folder / "certificates" / f"{index:05d}.npz")
                if verdict == "refuted":
                    which = int(worst[i].argmin())
                    other = which + (which >= int(labels[i]))
                    write(
                        {"point": points[i, which].numpy(), "input": content["input"], "class": np.array(other)},
                        folder / "counterexamples" / f"{index:05d}.npz",
                    )
            yield self._row(index, verdict, radii[i].item(), margins, attacked)

    def _certified(self, x: Tensor, radii: Tensor, labels: Tensor, shape: Any, iterations: int) -> list[Any]:
        search = Search(iterations=iterations)
        words: dict[str, Any] = {"slopes": self.slopes, "offset": self.offset, "box": self.box, "shape": shape}
        return list(certified_margins(self.net, x, radii, labels, search=search, **words))

    def _largest(self, x: Tensor, labels: Tensor, shape: Any) -> Tensor:
        """Per input the largest radius found certified, by bisection of its logarithm; at worst LipNaive's own."""
        chosen, one = specifications(labels, self.net.outputs), torch.ones(len(x), dtype=torch.float64)
        at_zero = lip_naive(self.net, x, one * 0, chosen, shape)
        falling = at_zero - lip_naive(self.net, x, one, chosen, shape)
        low = (at_zero / falling.clamp(min=1e-300)).amin(1).clamp(min=1e-9) * (1 - 1e-5)
        bottom, high = low.clone(), low * BRACKET
        for _ in range(HALVINGS):
            middle = (low * high).sqrt()
            (found,) = self._certified(x, middle, labels, shape, max(self.iterations // 3, 1))
            held = found.margins.amin(1) > 0
            low, high = torch.where(held, middle, low), torch.where(held, high, middle)
        # The search for the certificate starts anew with more iterations, so a hair less than was certified is safe.
        return torch.where(low > bottom, low * (1 - 1e-3), low)

    def write(self, folder: JobFolder, settings: dict[str, Any]) -> None:
        from equipoise.verification.page import report

        for name in ("certificates", "counterexamples"):
            (folder.work / name).mkdir(exist_ok=True)
        write_network(self.net, folder.work / "network.safetensors")
        stored, clock = folder.work / "rows.jsonl", folder.work / "seconds.json"
        rows = _stored_rows(stored)
        # A line that was cut short must not swallow the next one.
        write_atomic(stored, "".join(json.dumps(asdict(row)) + "\n" for row in rows.values()))
        before = json.loads(clock.read_text())["bounding"] if clock.exists() else 0.0
        began = time.perf_counter()
        for row in self.rows(set(rows), folder.work):
            rows[row.index] = row
            append_synced(stored, json.dumps(asdict(row)) + "\n")
            write_atomic(clock, json.dumps({"bounding": before + time.perf_counter() - began}))
        if not clock.exists():
            write_atomic(clock, json.dumps({"bounding": before}))
        accepted = self._check(folder.work)
        result = Certification(
            tuple(rows[index] for index in sorted(rows)),
            self.net.name,
            before + time.perf_counter() - began,
            None,
            self.notes(),
        )
        report(result, settings, self.net.shape, accepted, folder.work, folder.final)
        folder.finish()

    @staticmethod
    def _check(folder: Path) -> int:
        """The number of certificates, all accepted by the checker as they are on the disk."""
        net = check.read_net(folder / "network.safetensors")
        files = sorted((folder / "certificates").glob("*.npz"))
        with progress("checking", total=len(files), unit="certificates") as bar:
            for file in files:
                try:
                    check.check(file, net)
                except check.Refused as error:
                    raise WorkFailed(f"The checker refuses {file}: {error}. Nothing was given its name.") from error
                bar.advance()
        return len(files)


def _stored_rows(path: Path) -> dict[int, Row]:
    """Rows by index; a last line that was cut short is none."""
    rows = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                plain = json.loads(line)
            except ValueError:
                continue
            plain |= {name: tuple(plain[name]) for name in ("margins", "attacked")}
            rows[plain["index"]] = Row(**plain)
    return rows


def _read(network: str | Path | nn.Module | Network, architecture: str | None, shape: Sequence[int]) -> Network:
    if isinstance(network, Network):
        return network
    if isinstance(network, nn.Module):
        return from_module(network, shape, name=type(network).__name__)
    return read_network(network, architecture=architecture, shape=shape)


def _read_inputs(inputs: Any, labels: Any) -> tuple[Tensor, Tensor | None, dict[str, str]]:
    digests = {}
    if isinstance(inputs, str | Path):
        path = Path(inputs)
        content, digests["the inputs"] = _arrays(path), digest(path)
        names = [name for name in ("X", "x", "inputs", "images", "array") if name in content]
        if not names:
            raise BadInput(f"{path} has no array X (found: {', '.join(content) or 'nothing'}).")
        inputs = content[names[0]]
        labels = content.get("y", content.get("labels")) if labels is None else labels
    if isinstance(labels, str | Path):
        path = Path(labels)
        content, digests["the labels"] = _arrays(path), digest(path)
        labels = next(iter(content.values()))
    x = torch.as_tensor(np.asarray(inputs)).double()
    if x.ndim < 2 or not len(x) or not x.isfinite().all():
        raise BadInput(
            f"The inputs have the shape {tuple(x.shape)}; expected finite numbers [inputs, ...], at least one."
        )
    return x, None if labels is None else torch.as_tensor(np.asarray(labels)).long().flatten(), digests


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        content = np.load(path, allow_pickle=False)
        return {name: content[name] for name in content.files} if hasattr(content, "files") else {"array": content}
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({error}); expected .npy or .npz.") from error


def _turned(x: Tensor, net: Network) -> Tensor:
    """x as the network wants it: [B, channels, height, width] or flat."""
    if tuple(x.shape[1:]) == net.shape:
        return x
    if x.ndim == 4 and len(net.shape) == 3 and (x.shape[3], *x.shape[1:3]) == net.shape:
        return x.permute(0, 3, 1, 2).contiguous()
    if x[0].numel() == math.prod(net.shape) and (x.ndim == 2 or len(net.shape) == 1):
        return x.reshape(-1, *net.shape)
    raise BadInput(f"An input has the shape {tuple(x.shape[1:])}, {net.name} takes {net.shape}.")
