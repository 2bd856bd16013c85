"""A checkpoint with some of its tensors replaced in place, and the way back to its own bytes.

The files of a model's folder are copied and the numbers of the edited tensors written over the old ones, at their own places
in their own precision: all other bytes, keys, shards, configuration and tokenizer stay. The old numbers go into
undo.safetensors, the sha256 of each original file into undo.json; `undo` puts them back and compares.
"""

import json
import re
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import atomic_folder, produce_atomic, read_regular, seal, sha256_file, unseal, write_atomic

UNDO, ABOUT = "undo.safetensors", "undo.json"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# What belongs to a model besides its weights; a folder may also hold reports of the job that made it.
PARTS = re.compile(
    r"config\.json|generation_config\.json|tokenizer.*|vocab.*|merges\.txt|special_tokens_map\.json|added_tokens\.json|"
    r"chat_template.*|spiece\.model|tekken\.json|.*\.tiktoken"
)
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files of a model's folder, in order; [] where it has none.

    Raises BadInput for an index that names a file elsewhere.
    """
    if (folder / INDEX).is_file():
        names = sorted(set(json.loads(read_regular(folder / INDEX))["weight_map"].values()))
        _require_plain(names, folder / INDEX)
        return names
    return [SINGLE] if (folder / SINGLE).is_file() else []


def model_files(folder: Path, *, code: bool = False) -> list[str]:
    """Names of the files that are the model: weights, index, configuration, tokenizer; with `code` its Python files, too."""
    names = [
        path.name
        for path in sorted(folder.iterdir())
        if path.is_file() and (PARTS.fullmatch(path.name) or (code and path.suffix == ".py"))
    ]
    return [*names, *([INDEX] if (folder / INDEX).is_file() else []), *weight_files(folder)]


def stored_names(folder: Path, parameters: Mapping[str, Tensor]) -> dict[str, tuple[str, str]] | None:
    """Where each parameter lies: its name -> (file, key), its own key or the same with or without what stands before.

    None where one is not to be found, or is stored in another shape.
    """
    keys: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in weight_files(folder):
        header, _ = _header(folder / name)
        keys |= {key: (name, tuple(entry["shape"])) for key, entry in header.items() if key != "__metadata__"}
    found = {}
    for name, parameter in parameters.items():
        fitting = [key for key in keys if key == name] or [
            key for key in keys if name.endswith(f".{key}") or key.endswith(f".{name}")
        ]
        if len(fitting) != 1 or keys[fitting[0]][1] != tuple(parameter.shape):
            return None
        found[name] = (keys[fitting[0]][0], fitting[0])
    return found


def read_tensors(folder: Path, names: Mapping[str, tuple[str, str]]) -> dict[str, Tensor]:
    """By the parameters' names the tensors as they are stored."""
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    for name, (file, key) in names.items():
        with safe_open(folder / file, framework="pt") as opened:  # pyright: ignore[reportPrivateImportUsage]
            found[name] = opened.get_tensor(key)
    return found


def copy_model(source: Path, target: Path, *, code: bool = False) -> None:
    """Copy the model's files; what the target has under these names is replaced."""
    for name in model_files(source, code=code):
        shutil.copyfile(source / name, target / name)


def edit(folder: Path, names: Mapping[str, tuple[str, str]], edited: Mapping[str, Tensor]) -> None:
    """Replace tensors of a folder that holds the original model, after what it takes to undo that is written there.

    Raises WorkFailed for a tensor of another shape or precision than the one in its place.
    """
    originals = read_tensors(folder, names)
    about = {
        "files": {name: sha256_file(folder / name) for name in model_files(folder, code=True)},
        "tensors": {name: list(names[name]) for name in sorted(edited)},
    }
    kept = {name: originals[name].contiguous() for name in sorted(edited)}
    produce_atomic(folder / UNDO, lambda path: save_file(kept, path))
    write_atomic(folder / ABOUT, seal(about | {"undo": sha256_file(folder / UNDO)}))
    for file in sorted({names[name][0] for name in edited}):
        patch(folder / file, {names[name][1]: edited[name] for name in edited if names[name][0] == file})


def patch(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors over those of the same keys of a safetensors file. Raises WorkFailed where they do not fit."""
    header, start = _header(path)
    with path.open("r+b") as file:
        for key, tensor in tensors.items():
            entry = header.get(key)
            if entry is None:
                raise WorkFailed(f"{path} holds no {key}.")
            if entry["dtype"] != _DTYPES.get(tensor.dtype) or entry["shape"] != list(tensor.shape):
                raise WorkFailed(
                    f"{path}: {key} is {entry['dtype']} {entry['shape']}, which {tensor.dtype} {list(tensor.shape)} cannot "
                    "replace."
                )
            file.seek(start + entry["data_offsets"][0])
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def undo(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the model as it was before `detoxify`, byte for byte, into a new folder; returns it.

    out: FOLDER-undone when not given. The folder itself stays as it is. Raises BadInput for a folder that `detoxify` did not
    write, for one whose way back was altered, and where `out` is there already; WorkFailed where what comes out is not
    what was there before.
    """
    folder = Path(folder).expanduser()
    target = folder.with_name(f"{folder.name}-undone") if out is None else Path(out).expanduser()
    if not (folder / ABOUT).is_file():
        raise BadInput(
            f"{folder} holds no {ABOUT}, so that there is nothing to undo: give a folder that detoxify wrote."
        )
    if target.exists():
        raise BadInput(f"{target} is there already: give another --out for the model as it was.")
    try:
        about, sealed = unseal(read_regular(folder / ABOUT))
        if not sealed or sha256_file(folder / UNDO) != about["undo"]:
            raise ValueError(f"{UNDO} or {ABOUT} was altered since it was written")
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{folder} cannot be undone ({error}): take the original model.") from error
    _require_plain((*about["files"], *(file for file, _ in about["tensors"].values())), folder / ABOUT)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{target}: its folder cannot be made ({error.strerror}): give another --out.") from error
    originals = load_file(folder / UNDO)
    with atomic_folder(target) as work:
        for name in about["files"]:
            try:
                shutil.copyfile(folder / name, work / name)
            except OSError as error:
                raise BadInput(
                    f"{folder}/{name} cannot be read ({error.strerror}): take the original model."
                ) from error
        for file in sorted({file for file, _ in about["tensors"].values()}):
            parts = {key: originals[name] for name, (own, key) in about["tensors"].items() if own == file}
            with suppress(WorkFailed):  # a file that the numbers do not fit is found by its digest
                patch(work / file, parts)
        wrong = differing(work, about["files"])
        if wrong:
            raise WorkFailed(
                f"{', '.join(wrong)} of {folder} changed after detoxify wrote it, so that the original's bytes cannot be "
                "given back: take the original model."
            )
    return target


def differing(folder: Path, digests: Mapping[str, str]) -> Sequence[str]:
    """The files whose sha256 is another."""
    return [name for name, digest in digests.items() if sha256_file(folder / name) != digest]


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The entries of a safetensors file by key, and where its numbers begin. Raises WorkFailed for what is none."""
    with path.open("rb") as file:
        try:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > path.stat().st_size:
                raise ValueError("shorter than it says")
            return json.loads(file.read(size)), 8 + size
        except (struct.error, ValueError) as error:
            raise WorkFailed(f"{path} is cut, or no safetensors file ({error}).") from error


def _require_plain(names: Iterable[str], where: Path) -> None:
    for name in names:
        if Path(name).name != name:
            raise BadInput(f"{where} names {name!r}, which is no file of the folder.")
