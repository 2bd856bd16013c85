"""Files that survive a kill: every write reaches the disk before it counts, and a name appears with its whole content.

All writing goes through a `Files` object, so that a test can fail the k-th operation, cut a write short, or end the
process.
"""

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from equipoise.core.errors import BadInput, WorkFailed

CACHE_VARIABLE = "EQUIPOISE_CACHE"
PARTS, PART = 256, 2**14  # that the digest of a model reads of a file, and bytes of each


class Files:
    """The operations that change a disk. Content is synced when they return, a new name by `sync_folder`."""

    def write(self, path: Path, data: bytes) -> None:
        """Create or replace the content of `path`; not atomic, see `write_atomic`."""
        self.produce(path, lambda target: _write(target, data, os.O_TRUNC))

    def produce(self, path: Path, writer: Callable[[Path], object]) -> None:
        """Let `writer` create the file `path` by its own means (safetensors, Parquet), then sync it."""
        writer(path)
        _sync(path)

    def append(self, path: Path, data: bytes) -> None:
        """Append in one write call, then sync."""
        _write(path, data, os.O_APPEND)
        _sync(path)

    def truncate(self, path: Path, size: int) -> None:
        os.truncate(path, size)
        _sync(path)

    def replace(self, source: Path, target: Path) -> None:
        """Rename over `target`: readers see the old or the new."""
        source.replace(target)

    def sync_folder(self, path: Path) -> None:
        """After it returns, the names in `path` survive a power cut."""
        _sync(path)

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def remove(self, path: Path) -> None:
        """Remove a file or a folder with all in it; nothing happens when it is not there."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


FILES = Files()


def write_atomic(path: Path, data: bytes | str, *, files: Files = FILES) -> None:
    """Write `path` so that a reader sees the old content or the new, never a part. Text is UTF-8."""
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    produce_atomic(path, lambda target: _write(target, content, os.O_TRUNC), files=files)


def produce_atomic(path: Path, writer: Callable[[Path], object], *, files: Files = FILES) -> None:
    """As `write_atomic`, for writers that want a path of their own (safetensors, Parquet)."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # one of a dead process, or a link that somebody left there
    try:
        files.produce(temporary, writer)
        files.replace(temporary, path)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise


def append_synced(path: Path, data: bytes | str, *, files: Files = FILES) -> None:
    """Append to `path`; after it returns the bytes survive a power cut. Text is UTF-8."""
    files.append(Path(path), data.encode() if isinstance(data, str) else data)


def publish(work: Path, path: Path, *, files: Files = FILES) -> None:
    """Give a finished folder the name `path`, which is free: all that is in it is on the disk before, the name after."""
    _sync_all(work)
    files.replace(work, path)
    files.sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path, *, files: Files = FILES) -> Iterator[Path]:
    """Yields a folder to fill; at the end it gets the name `path`, an older folder of that name is replaced.

    When the body raises, what was written is removed and `path` is as before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    files.remove(temporary)
    files.make_folder(temporary)
    try:
        yield temporary
        _sync_all(temporary)
        if path.exists():
            files.replace(path, old)
        files.replace(temporary, path)
        files.sync_folder(path.parent)
        files.remove(old)
    except BaseException:
        if old.exists() and not path.exists():
            old.replace(path)
        files.remove(temporary)
        raise


@contextmanager
def lock(path: Path, *, wait: float = 0.0, waiting_for: str = "") -> Iterator[None]:
    """Hold the file lock `path` (flock: it ends with its process, so a stale one never blocks).

    Waits up to `wait` seconds for another holder, then raises WorkFailed naming `waiting_for` (or the file). Raises BadInput
    for a link.
    """
    path = Path(path)
    deadline = time.monotonic() + wait
    descriptor = -1
    try:
        while True:
            if descriptor < 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.is_symlink():
                    raise BadInput(f"{path} is a link, and a lock is a file of its own; remove the link.")
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The holder may have moved the file away while we waited: then this lock guards nothing.
                if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                    break
                os.close(descriptor)
                descriptor = -1
                continue
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = waiting_for or f"another process that holds {path}"
                    raise WorkFailed(f"Found {holder}; wait until it ends, or stop it.") from None
                time.sleep(0.02)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file to read its bytes. Raises BadInput for a pipe, a device or a folder, which may have no end; OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait here for its writer
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return io.BufferedReader(io.FileIO(descriptor))
    os.close(descriptor)
    what = "folder" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device"
    raise BadInput(f"{path} is a {what}; expected a file. Copy what it holds into one and name that.")


def read_regular(path: Path) -> bytes:
    """The bytes of a file. Raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read in pieces. Raises as `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_files_digest(path: Path) -> str:
    """Of a folder with *.safetensors, their configuration, tokenizer and chat templates, or of a .gguf file; else "".

    Over names, sizes and parts from end to end, four megabytes of a file at most: weights that were trained further differ
    nearly everywhere.
    """
    files = [path] * (path.suffix.lower() == ".gguf" and path.is_file())
    if path.is_dir() and (weights := sorted(path.glob("*.safetensors"))):
        files = [*weights, *sorted(path.glob("*config.json")), *path.glob("tokenizer.json")]
        # Where tokenizers of other kinds keep their words, and transformers its chat templates.
        files += [file for name in ("tokenizer.model", "vocab.json", "merges.txt") for file in path.glob(name)]
        files += [*sorted(path.glob("*.jinja")), *sorted(path.glob("additional_chat_templates/*.jinja"))]
    digest = hashlib.sha256()
    for file in files:
        with open_regular(file) as opened:
            size = os.fstat(opened.fileno()).st_size
            name = file.name if file == path else file.relative_to(path).as_posix()
            digest.update(f"{name} {size} ".encode())
            step = max(size // PARTS, PART)
            for start in range(0, size, step):
                opened.seek(start)
                digest.update(opened.read(PART))
            opened.seek(max(size - PART, 0))
            digest.update(opened.read(PART))
    return digest.hexdigest() if files else ""


def set_aside(
    folder: Path,
    *,
    made_by: Callable[[Path], bool],
    inputs: Iterable[Path] = (),
    into: Path | None = None,
    files: Files = FILES,
) -> Path | None:
    """Rename a folder to the first free NAME.old-1, NAME.old-2, ... beside it, or in `into`; None when it is not there.

    made_by: whether the folder is one that the caller's work made. Raises BadInput, with everything as it was, for any
    other, for a link, and for a folder that is or holds the working folder or one of the `inputs`.
    """
    folder = Path(folder)
    if not folder.is_symlink() and not folder.exists():
        return None
    if folder.is_symlink() or not folder.is_dir() or not made_by(folder):
        raise BadInput(f"{folder} was not made by this command, so it is not set aside; give another --out.")
    for needed, what in [(Path.cwd(), "the working folder"), *((path, f"the input {path}") for path in inputs)]:
        if needed.resolve().is_relative_to(folder.resolve()):
            raise BadInput(f"{folder} is or holds {what}, so it is not set aside; give another --out.")
    home = into or folder.parent
    files.make_folder(home)
    aside = free_name(home / folder.name, "old")
    files.replace(folder, aside)
    return aside


def free_name(path: Path, mark: str) -> Path:
    """The first of NAME.MARK-1, NAME.MARK-2, ... beside a path that nothing bears, not even a link that leads nowhere."""
    number = 1
    while os.path.lexists(free := path.with_name(f"{path.name}.{mark}-{number}")):
        number += 1
    return free


SEAL = "seal"
_END = re.compile(rb'\s*,?\s*"seal": "([0-9a-f]{16})"\s*\}$')
_LONGEST_END = 64


def seal(row: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    """A JSON object, on one line unless indented, that ends with a digest of itself: no altered one is read as another.

    nan and infinities are written as Python reads them. Raises ValueError for a row that has a "seal" already.
    """
    if SEAL in row:
        raise ValueError(f"a row to seal has no field {SEAL!r}")
    text = json.dumps({**row, SEAL: "?"}, ensure_ascii=False, indent=indent) + "\n"
    try:
        data = text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which a model can write as an escape, is no UTF-8
        data = json.dumps({**row, SEAL: "?"}, indent=indent).encode() + b"\n"
    place = data.rindex(b'"?"') + 1
    content = data[: data.rindex(b'"seal"')].rstrip().removesuffix(b",")
    return data[:place] + _digest_of(content) + data[place + 1 :]


def unseal(data: bytes) -> tuple[dict[str, Any], bool]:
    """The object in `data`, with or without a newline at its end, and whether it was sealed: earlier versions did not.

    Raises ValueError for an object that was altered since, or cut, and for what is none.
    """
    data = data.rstrip()
    start = max(0, len(data) - _LONGEST_END)
    end = _END.search(data, start)
    sealed = end is not None and end[1] == _digest_of(data[: end.start()])
    try:
        row = json.loads(data)
    except RecursionError:
        raise ValueError("too many brackets") from None
    if not isinstance(row, dict) or (SEAL in row and not sealed):
        raise ValueError("it was altered since it was written")
    row.pop(SEAL, None)
    return row, sealed


def _digest_of(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:16].encode()


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def _sync_all(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """What EQUIPOISE_CACHE names, else the platform's place for caches."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "equipoise"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "equipoise"
