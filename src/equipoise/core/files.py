"""Files that survive a kill: every write reaches the disk before it counts, and a name appears with its whole content.

All writing goes through a `Files` object, so that a test can fail the k-th operation, cut a write short, or end the
process.
"""

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from equipoise.core.errors import WorkFailed

CACHE_VARIABLE = "EQUIPOISE_CACHE"


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
    try:
        files.produce(temporary, writer)
        files.replace(temporary, path)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise


def append_synced(path: Path, data: bytes | str, *, files: Files = FILES) -> None:
    """Append to `path`; after it returns the bytes survive a power cut. Text is UTF-8."""
    files.append(Path(path), data.encode() if isinstance(data, str) else data)


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
        for each in temporary.rglob("*"):
            _sync(each)
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

    Waits up to `wait` seconds for another holder, then raises WorkFailed naming `waiting_for` (or the file).
    """
    path = Path(path)
    deadline = time.monotonic() + wait
    descriptor = -1
    try:
        while True:
            if descriptor < 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
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


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


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
