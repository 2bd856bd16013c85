"""Files below a folder that somebody else has written in: no link is followed, and nothing that lies there can block.

A name is walked one folder at a time, each opened relative to the one before and only if it is a folder itself. What is
replaced is unlinked and made anew, so a pipe, a device, or a hard link to a file elsewhere is never opened.
"""

import contextlib
import errno
import itertools
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from equipoise.core.errors import BadInput, WorkFailed

_OURS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_THEIRS = _OURS | os.O_NOFOLLOW


def write(folder: str | Path, name: str, content: bytes) -> None:
    """Creates or replaces a file below `folder`, with the folders on the way to it. A file that was there is unlinked.

    Raises BadInput for a name that leaves the folder, WorkFailed where a link or something else stands in the way.
    """
    *folders, last = _parts(name)
    with _said(folder, name), _opened(folder, folders, make=True) as parent:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(last, dir_fd=parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(last, flags, 0o666, dir_fd=parent), "wb") as file:
            file.write(content)


def read(folder: str | Path, name: str, *, most: int = 64 * 2**20) -> bytes:
    """The content of a file below `folder`.

    Raises BadInput for a name that leaves the folder; WorkFailed where there is no such file, a link stands in the way,
    it is no plain file or has a second name (it may be a file elsewhere), or it has more than `most` bytes.
    """
    *folders, last = _parts(name)
    with _said(folder, name), _opened(folder, folders) as parent:
        # Looked at before it is opened: opening a device can already act on it.
        _plain(os.stat(last, dir_fd=parent, follow_symlinks=False), most)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with os.fdopen(os.open(last, flags, dir_fd=parent), "rb") as file:
            _plain(os.fstat(file.fileno()), most)
            content = file.read(most + 1)
        if len(content) > most:
            raise OSError(errno.EFBIG, f"it grew beyond {most:,} bytes")
        return content


def remove(folder: str | Path) -> None:
    """Deletes a folder with everything below it, however deep; links themselves, not what they name.

    What cannot be deleted is left without a word.
    """
    with contextlib.suppress(OSError):
        _permit(str(folder), None)
        top = os.open(folder, _THEIRS)
        try:
            _empty(top)
        finally:
            os.close(top)
        Path(folder).rmdir()


def _empty(top: int) -> None:
    """Folders inside of folders are moved to the top first: no recursion, two open descriptors at any depth."""
    fresh = (f"{secrets.token_hex(8)}-{number}" for number in itertools.count())
    waiting: list[str] = []

    def strip(here: int) -> None:
        for name in os.listdir(here):
            with contextlib.suppress(OSError):
                if stat.S_ISDIR(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
                    _permit(name, here)
                    moved = next(fresh)
                    os.rename(name, moved, src_dir_fd=here, dst_dir_fd=top)
                    waiting.append(moved)
                else:
                    os.unlink(name, dir_fd=here)

    strip(top)
    while waiting:
        name = waiting.pop()
        with contextlib.suppress(OSError):
            here = os.open(name, _THEIRS, dir_fd=top)
            try:
                strip(here)
            finally:
                os.close(here)
            os.rmdir(name, dir_fd=top)


def _permit(name: str, parent: int | None) -> None:
    """Gives its owner all rights to a folder, which whoever wrote there may have taken away; never through a link."""
    if os.chmod in os.supports_follow_symlinks:
        os.chmod(name, 0o700, dir_fd=parent, follow_symlinks=False)
        return
    opened = os.open(name, os.O_PATH | _THEIRS, dir_fd=parent)
    try:
        Path(f"/proc/self/fd/{opened}").chmod(0o700)
    finally:
        os.close(opened)


def _parts(name: str) -> tuple[str, ...]:
    parts = Path(name).parts
    try:
        is_name = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        is_name = False
    if not is_name or not parts:
        raise BadInput(f"{name!r} is no file name.")
    if Path(name).is_absolute() or ".." in parts:
        raise BadInput(f"the file name {name!r} leaves the working folder.")
    return parts


@contextlib.contextmanager
def _opened(folder: str | Path, names: Sequence[str], *, make: bool = False) -> Iterator[int]:
    """A descriptor of the folder that is reached from `folder` by `names`, which may not be links; `folder` may be."""
    here = os.open(folder, _OURS)
    try:
        for name in names:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=here)
            below = os.open(name, _THEIRS, dir_fd=here)
            os.close(here)
            here = below
        yield here
    finally:
        os.close(here)


@contextlib.contextmanager
def _said(folder: str | Path, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        link = error.errno in (errno.ELOOP, errno.ENOTDIR)
        reason = "a link or a file stands where a folder should be" if link else error.strerror or str(error)
        raise WorkFailed(f"{name!r} below {folder}: {reason}.") from error


def _plain(status: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a link, a folder, a pipe, a socket or a device, no plain file")
    if status.st_nlink != 1:
        raise OSError(errno.EMLINK, "it has a second name and may be a file elsewhere")
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, more than {most:,}")
