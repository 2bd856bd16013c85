"""Certificates together, against what they are said to be about: the rows of the job that made them, and its inputs.

That each is proved does not say that they are about these inputs: any number of copies of one is proved, too. Only
`inputs` ties them for good; without, what a job stored beside them has to agree, and no two may be about one input.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.verification.check import prove
from equipoise.verification.check_files import Net, Refused, plain_json, read_certificate, told
from equipoise.verification.rounding import Array

ROWS = "rows.jsonl"
NAMED = ("X", "x", "inputs", "images", "array")  # arrays of an .npz that hold inputs, the first of them


@dataclass(frozen=True)
class CheckedCertificate:
    """Of one file: the margins that its certificate proves, or why it is refused."""

    margins: tuple[float, ...] = ()
    reason: str | None = None

    @property
    def accepted(self) -> bool:
        return self.reason is None

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return (
            {"accepted": True, "margins": self.margins} if self.accepted else {"accepted": False, "reason": self.reason}
        )

    def __str__(self) -> str:
        return f"accepted, smallest margin {min(self.margins):.6g}" if self.accepted else f"refused: {self.reason}"


def check_folder(where: str | Path, net: Net, inputs: Array | None = None) -> dict[str, CheckedCertificate]:
    """What was found of every certificate by its file; whatever is wrong with one, the others are checked.

    where: a job's folder, a folder of certificates, or one of them. Those that lie in a job's folder are compared with
    its rows, and a folder's that are missing are refused by name. inputs: [B, n] as `read_inputs` gives them, of which a
    file's name is the index. Raises Refused where there is nothing to check.
    """
    where = Path(where)
    try:
        if not where.exists():
            raise Refused(f"No certificate at {where}: expected an .npz file or a folder of them.")
        folder = where / "certificates" if (where / ROWS).exists() else where if where.is_dir() else where.parent
        files = sorted(folder.glob("*.npz")) if where.is_dir() else [where]
        stored = folder.parent / ROWS
        rows, checked = _rows(stored) if folder.name == "certificates" and stored.exists() else (None, {})
    except OSError as error:
        raise Refused(f"{where} cannot be read: {error}.") from error
    if not files and rows is None:
        raise Refused(f"No certificate in {where}: expected .npz files.")
    seen: dict[bytes, str] = {}
    for file in files:
        try:
            checked[str(file)] = CheckedCertificate(_checked(file, net, rows, inputs, seen))
        except Refused as error:
            checked[str(file)] = CheckedCertificate(reason=str(error))
    for index, row in (rows or {}).items() if where.is_dir() else ():
        name = str(folder / _name(index))
        if row["verdict"] != "wrong" and name not in checked:
            checked[name] = CheckedCertificate(reason=f"it is missing, and its row says {row['verdict']}")
    return checked


def _checked(
    file: Path, net: Net, rows: Mapping[int, Any] | None, inputs: Array | None, seen: dict[bytes, str]
) -> tuple[float, ...]:
    content = read_certificate(file, net)
    margins = prove(content, net).tolist()
    index = -1
    if rows is not None or inputs is not None:
        index = int(file.stem) if file.stem.isascii() and file.stem.isdigit() and len(file.stem) < 10 else -1
        if index < 0 or file.name != _name(index):
            raise Refused(f"its name is not the index of an input, as {_name(3)} is")
    if rows is not None:
        if index not in rows:
            raise Refused(f"no row of {ROWS} is about input {index}")
        row = rows[index]
        says = {"label": int(content["label"]), "radius": float(content["radius"]), "margins": margins}
        for name, value in says.items():
            if row[name] != value:
                raise Refused(f"its {name} {told(value)} is not that of its row, {told(row[name])}")
        if row["verdict"] == "wrong" or (row["verdict"] == "certified") != (min(margins) > 0):
            raise Refused(f"its row says {row['verdict']}, and its smallest margin is {min(margins):.6g}")
    if inputs is None:
        other = seen.setdefault((content["input"] + 0.0).tobytes(), file.name)
        if other != file.name:
            raise Refused(
                f"it is about the same input as {other}; if that stands twice in the inputs, show them: --inputs"
            )
    elif index >= len(inputs):
        raise Refused(f"there are {len(inputs)} inputs, and none of index {index}")
    elif not np.array_equal(inputs[index], content["input"]):
        same = np.flatnonzero((inputs == content["input"]).all(1))
        raise Refused(f"it is not about input {index}, but about {f'input {same[0]}' if len(same) else 'none of them'}")
    return tuple(margins)


def _name(index: int) -> str:
    return f"{index:05d}.npz"


def _rows(path: Path) -> tuple[dict[int, Any], dict[str, CheckedCertificate]]:
    """A job's rows by index, and what is wrong with the file by place."""
    rows: dict[int, Any] = {}
    problems: dict[str, CheckedCertificate] = {}
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], start=1):
        try:
            whole = plain_json(line, "it")
            row = whole.get("row", whole) if isinstance(whole, dict) else whole
            if not _is_row(row):
                raise Refused("it has not index, label, verdict, radius and margins")
            # What was made again stands there twice.
            if rows.setdefault(row["index"], row) != row:
                raise Refused(f"input {row['index']} has another row before it")
        except Refused as error:
            problems[f"{path}:{number}"] = CheckedCertificate(reason=str(error))
    if gaps := set(range(len(rows))) - set(rows):
        problems[str(path)] = CheckedCertificate(reason=f"it has no row of input {min(gaps)}")
    return rows, problems


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and all(type(row.get(name)) is int and row[name] >= 0 for name in ("index", "label"))
        and row.get("verdict") in ("certified", "refuted", "undecided", "wrong")
        and isinstance(row.get("margins"), list)
        and all(type(each) in (int, float) for each in (row.get("radius"), *row["margins"]))
    )


def read_inputs(path: str | Path, net: Net) -> Array:
    """The inputs of a .npy or .npz file as `certify run` takes them, [B, n], channels of pictures first. Raises Refused."""
    path = Path(path)
    expected = "expected .npy, or .npz with an array X"
    if not path.is_file():
        raise Refused(f"No inputs at {path}: {expected}.")
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.lib.npyio.NpzFile):
            with stored:
                stored = stored[next(name for name in NAMED if name in stored.files)]
    except StopIteration:
        raise Refused(f"{path} has no array named {', '.join(NAMED)}: {expected}.") from None
    except Exception as error:  # of a foreign file numpy raises whatever the reader of its kind does
        raise Refused(f"{path} cannot be read ({error}): {expected}.") from error
    if stored.dtype.kind not in "fiub" or stored.ndim < 2 or not np.isfinite(stored).all():
        raise Refused(
            f"The inputs in {path} are {stored.dtype} of shape {stored.shape}: expected finite numbers [B, ...]."
        )
    shape = stored.shape[1:]
    if shape != net.shape and len(shape) == len(net.shape) == 3 and (shape[2], *shape[:2]) == net.shape:
        stored = stored.transpose(0, 3, 1, 2)
    elif shape != net.shape and (min(len(shape), len(net.shape)) > 1 or np.prod(shape) != net.sizes[0]):
        raise Refused(f"An input in {path} has the shape {shape}, and the network takes {net.shape}.")
    return stored.reshape(len(stored), -1).astype(np.float64)
