"""The work of the job: batches of inputs are bounded, attacked, written and proved again by the independent checker.

What a row yields depends on its own input and the seed alone, to the last bit: blocks are filled up to a number of rows at
which a matrix product rounds each alike, and after a kill a block of which a row is missing is worked on as a whole.
"""

import io
import math
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import read_regular, sha256_file
from equipoise.core.job import Request
from equipoise.core.options import check_fields
from equipoise.core.progress import progress
from equipoise.core.rows import Rows
from equipoise.core.serialize import deserialize, serialize
from equipoise.core.streams import torch_stream
from equipoise.verification import check
from equipoise.verification.attack import attack
from equipoise.verification.bounds import Box, Geometry, Search, geometry, input_set, lip_naive
from equipoise.verification.certificate import (
    LANES,
    Certified,
    batch_size,
    certified_margins,
    contents,
    refined,
    specifications,
    write,
)
from equipoise.verification.faithful import Faithfulness, compare
from equipoise.verification.network import Network, write_network
from equipoise.verification.read import read
from equipoise.verification.result import Certification, CertificationPlan, CertifiedRow, Verdict
from equipoise.verification.sdp_crown import Offset, Slopes

HALVINGS = 8  # of the bracket of the largest radius, in its logarithm
BRACKET = 8.0  # times LipNaive's radius: where the search for the largest radius ends
IMAGES = ("X", "x", "inputs", "images", "array")
CLASSES = ("y", "Y", "labels", "label", "targets", "target")


@dataclass(frozen=True, eq=False)
class Certifying(Request):
    """A request to certify, read and found right."""

    net: Network
    faithful: Faithfulness
    x: Tensor
    labels: Tensor
    whose: str
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
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def read(
        cls,
        network: str | Path | nn.Module | Network,
        inputs: Any,
        radius: Any,
        *,
        labels: Any,
        largest: bool,
        box: Box | None,
        architecture: str | None,
        shape: Sequence[int] | None,
        limit: int | None,
        **how: Any,
    ) -> "Certifying":
        """Raises BadInput for a wrong request."""
        if not largest and radius is None:
            raise BadInput(
                "No radius: give --radius, in the units of the raw inputs, or search for it with --largest-radius."
            )
        x, known, whose, digests = _read_inputs(inputs, labels)
        reading = read(network, architecture=architecture, shape=shape or x.shape[1:])
        net = reading.network
        x = _turned(x, net)
        inputs_given, labels_given = len(x), len(x if known is None else known)
        x, known = x[:limit], None if known is None else known[:limit]
        radii = _radii(None if largest else radius, len(x))
        predicted = net(x).argmax(1)
        chosen = predicted if known is None else known
        if labels_given != inputs_given or chosen.min() < 0 or chosen.max() >= net.outputs:
            raise BadInput(
                f"{labels_given} labels for {inputs_given} inputs and {net.outputs} classes: one from 0 an input."
            )
        if box is not None:
            input_set(x, radii, box)
        faithful = compare(net, reading.original, x, radii, box=box, seed=how["seed"])
        resolved: dict[str, Any] = {"radius": None if largest else radii.tolist() if np.ndim(radius) else radius}
        digests["the network"] = net.digest
        how |= {"largest": largest, "box": box, "inputs": digests, "resolved": resolved}
        return cls(net=net, faithful=faithful, x=x, labels=chosen, whose=whose, predicted=predicted, radii=radii, **how)

    def plan(self) -> CertificationPlan:
        right = int((self.predicted == self.labels).sum())
        return CertificationPlan(
            self.net.name, tuple(self.net.shape), len(self.x), right, self.whose, batch_size(self.net)
        )

    def work(self, folder: Path | None) -> Certification:
        stored = Rows(None if folder is None else folder / "rows.jsonl")
        done = {each["index"]: each for each in stored if folder is None or _is_whole(each, folder)}
        if folder is not None:
            for name in ("certificates", "counterexamples"):
                (folder / name).mkdir(exist_ok=True)
            write_network(self.net, folder / "network.safetensors")
        began = time.perf_counter()
        for row, files in self._rows(set(done), folder):
            now = time.perf_counter()
            plain = {"index": row.index, "row": serialize(row), "files": files, "seconds": now - began}
            stored.add(plain)
            done[row.index], began = plain, now
        rows = tuple(deserialize(CertifiedRow, done[index]["row"]) for index in sorted(done))
        return Certification(
            rows=rows,
            network=self.net.name,
            shape=tuple(self.net.shape),
            labels=self.whose,
            seconds=sum(each["seconds"] for each in stored),
            radius=None if self.largest or len(set(self.radii.tolist())) > 1 else self.radii[0].item(),
            largest=self.largest,
            accepted=0 if folder is None else _check(folder, [row.index for row in rows if row.verdict != "wrong"]),
            faithful=self.faithful,
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        where = "the ball" if self.box is None else f"the ball and the box from {self.box[0]:g} to {self.box[1]:g}"
        return (
            str(self.faithful),
            f"A certified margin holds for every point of {where}, for the network read as a function of real numbers; "
            "what a computer's own rounding adds to an output is not part of the claim.",
            "A refuted input has a point within its radius that the network puts into another class; an undecided one has "
            "neither that nor a proof.",
        )

    def _rows(self, done: set[int], folder: Path | None) -> Iterator[tuple[CertifiedRow, dict[str, str]]]:
        """The rows that are not done yet with the digests of their files, which are written first."""
        shape, size = geometry(self.net), batch_size(self.net)
        with progress("certifying", total=len(self.x), unit="inputs", done=len(done)) as bar:
            for begin in range(0, len(self.x), size):
                block = range(begin, min(begin + size, len(self.x)))
                if done.issuperset(block):
                    continue
                for row, files in self._block(block, shape, folder):
                    if row.index not in done:
                        yield row, files
                        bar.advance()

    def _block(
        self, block: range, shape: Geometry, folder: Path | None
    ) -> Iterator[tuple[CertifiedRow, dict[str, str]]]:
        right = [index for index in block if self.predicted[index] == self.labels[index]]
        for index in block:
            if index not in right:
                yield self._row(index, "wrong", 0.0 if self.largest else self.radii[index].item()), {}
        if not right:
            return
        filled = [*right, *right[-1:] * (-len(right) % min(LANES, batch_size(self.net)))]
        x, labels = self.x[filled], self.labels[filled]
        radii = self._largest(x, labels, shape) if self.largest else self.radii[filled]
        certified = self._certified(x, radii, labels, shape, self.iterations)
        generators = [torch_stream(self.seed, index) for index in filled]
        chosen = specifications(labels, self.net.outputs)
        worst, points = attack(self.net, x, radii, chosen, generator=generators, box=self.box, steps=self.attack_steps)
        if self.refine:
            wanted = (worst.amin(1) >= 0) & (torch.arange(len(filled)) < len(right))
            certified = refined(self.net, x, radii, labels, certified, wanted)
        arrays = contents(self.net, x, radii, labels, shape, certified, self.box)
        for i, (index, content) in enumerate(zip(right, arrays, strict=False)):
            margins, attacked = certified.margins[i].tolist(), worst[i].tolist()
            if min(attacked) < min(margins):
                raise WorkFailed(
                    f"input {index}: an attacked margin is below the certified one; this is a defect, report it."
                )
            verdict = "certified" if min(margins) > 0 else "refuted" if min(attacked) < 0 else "undecided"
            # A search that certified nothing proves its margins at the input alone.
            radius = 0.0 if self.largest and verdict == "undecided" else radii[i].item()
            content["radius"] = np.array(radius)
            files: dict[str, str] = {}
            if folder is not None:
                files |= _written(folder, f"certificates/{index:05d}.npz", content)
                if verdict == "refuted":
                    which = int(worst[i].argmin())
                    other = which + (which >= int(labels[i]))
                    shown = {"point": points[i, which].numpy(), "input": content["input"], "class": np.array(other)}
                    files |= _written(folder, f"counterexamples/{index:05d}.npz", shown)
            yield self._row(index, verdict, radius, margins, attacked), files

    def _row(
        self, index: int, verdict: Verdict, radius: float, margins: Sequence[float] = (), attacked: Sequence[float] = ()
    ) -> CertifiedRow:
        label, predicted = int(self.labels[index]), int(self.predicted[index])
        return CertifiedRow(index, label, predicted, verdict, radius, tuple(margins), tuple(attacked))

    def _certified(self, x: Tensor, radii: Tensor, labels: Tensor, shape: Geometry, iterations: int) -> Certified:
        how: dict[str, Any] = {"slopes": self.slopes, "offset": self.offset, "box": self.box, "shape": shape}
        (certified,) = certified_margins(self.net, x, radii, labels, search=Search(iterations=iterations), **how)
        return certified

    def _largest(self, x: Tensor, labels: Tensor, shape: Geometry) -> Tensor:
        """Per input the largest radius found certified, by bisection of its logarithm; at worst LipNaive's own."""
        chosen, one = specifications(labels, self.net.outputs), torch.ones(len(x), dtype=torch.float64)
        at_zero = lip_naive(self.net, x, one * 0, chosen, shape)
        falling = at_zero - lip_naive(self.net, x, one, chosen, shape)
        low = (at_zero / falling.clamp(min=1e-300)).amin(1) * (1 - 1e-5)
        low = torch.where(low > 0, low, 1e-9 * (1 - 1e-5))  # on the border, where there is no unit to go by
        bottom, high = low.clone(), low * BRACKET
        for _ in range(HALVINGS):
            middle = (low * high).sqrt()
            certified = self._certified(x, middle, labels, shape, max(self.iterations // 3, 1))
            held = certified.margins.amin(1) > 0
            low, high = torch.where(held, middle, low), torch.where(held, high, middle)
        # The search for the certificate starts anew with more iterations, so a hair less than was certified is safe.
        return torch.where(low > bottom, low * (1 - 1e-3), low)


def _written(folder: Path, name: str, content: Mapping[str, Any]) -> dict[str, str]:
    write(dict(content), folder / name)
    return {name: sha256_file(folder / name)}


def _is_whole(stored: Mapping[str, Any], folder: Path) -> bool:
    """Whether the files of a stored row are there as they were written."""
    return all(
        (folder / name).is_file() and sha256_file(folder / name) == digest for name, digest in stored["files"].items()
    )


def _check(folder: Path, indices: Sequence[int]) -> int:
    """The number of certificates, one an index, all accepted by the checker as they are on the disk."""
    net = check.read_net(folder / "network.safetensors")
    with progress("checking", total=len(indices), unit="certificates") as bar:
        for index in indices:
            file = folder / "certificates" / f"{index:05d}.npz"
            try:
                check.check(file, net)
            except check.Refused as error:
                raise WorkFailed(f"The checker refuses {file}: {error}. Nothing was given its name.") from error
            bar.advance()
    return len(indices)


def _radii(radius: Any, count: int) -> Tensor:
    """One radius an input, nan where it is to be searched for. Raises BadInput for one that is none."""
    radii = _numbers("radii", math.nan if radius is None else radius).flatten()
    if len(radii) not in (1, count):
        raise BadInput(f"{len(radii)} radii for {count} inputs: give one for all, or one each.")
    wrong = radii[~(radii.isfinite() & (radii > 0))] if radius is not None else radii[:0]
    if len(wrong):
        raise BadInput(
            f"The radius is {wrong[0].item():g}; it must be a number above 0, in the units of the raw inputs."
        )
    return radii.expand(count)


def _read_inputs(inputs: Any, labels: Any) -> tuple[Tensor, Tensor | None, str, dict[str, str]]:
    """Inputs, their labels, whose those are in words, and the digests of the files."""
    digests: dict[str, str] = {}
    whose = "given" if labels is not None else "the network's own answers"
    if isinstance(inputs, str | Path):
        path = Path(inputs)
        content, digests["the inputs"] = _arrays(path), sha256_file(path)
        image = next((name for name in IMAGES if name in content), None)
        if image is None:
            raise BadInput(f"{path} has no array X (found: {', '.join(content) or 'nothing'}).")
        inputs = content[image]
        if labels is None:
            labels, whose = _labels_beside(path, content, image)
    if isinstance(labels, str | Path):
        path = Path(labels)
        content, digests["the labels"] = _arrays(path), sha256_file(path)
        if len(content) > 1:
            raise BadInput(f"{path} holds {len(content)} arrays ({', '.join(content)}); expected the labels alone.")
        labels, whose = next(iter(content.values())), f"of {path.name}"
    x = _numbers("inputs", inputs)
    if x.ndim < 2 or not len(x) or not x.isfinite().all():
        raise BadInput(
            f"The inputs have the shape {tuple(x.shape)}; expected finite numbers [inputs, ...], at least one."
        )
    return x, None if labels is None else _classes(labels), whose, digests


def _labels_beside(path: Path, content: Mapping[str, np.ndarray], image: str) -> tuple[Any, str]:
    name = next((name for name in CLASSES if name in content), None)
    if name is not None:
        return content[name], f"of {path.name}, array {name}"
    for other, array in content.items():
        if other != image and array.ndim == 1 and array.shape == content[image].shape[:1] and array.dtype.kind in "iu":
            raise BadInput(
                f"{path} has an array {other!r} of {len(array)} whole numbers that may be the labels: call it y, or give "
                "--labels; without it the network's own answers would count as right."
            )
    return None, "the network's own answers"


def _classes(labels: Any) -> Tensor:
    classes = _numbers("labels", labels)
    if classes.numel() != max(classes.shape, default=1):
        raise BadInput(
            f"The labels have the shape {tuple(classes.shape)}; expected one class an input, from 0, such as the argmax of "
            "rows with a 1 each."
        )
    classes = classes.flatten()
    if not (classes == classes.round()).all():
        raise BadInput("The labels are no whole numbers; expected one class an input, from 0.")
    return classes.long()


def _numbers(what: str, given: Any) -> Tensor:
    """Numbers of any real type and place as float64. Raises BadInput for text, objects and complex numbers."""
    if isinstance(given, Tensor) and not given.is_complex():
        return given.detach().cpu().double()
    try:
        array = np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of several lengths
        raise BadInput(f"The {what} are no array of numbers ({error}).") from error
    if array.dtype.kind not in "fiub":
        raise BadInput(f"The {what} are {array.dtype}; expected real numbers.")
    with np.errstate(over="ignore"):  # of a longer type: an infinity, which is refused
        return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        content = np.load(io.BytesIO(read_regular(path)), allow_pickle=False)
        return {name: content[name] for name in content.files} if hasattr(content, "files") else {"array": content}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
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
