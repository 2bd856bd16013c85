"""Appended rows: the one reader and writer of JSON lines, where each line is paid for and on the disk before the next."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from equipoise.core.errors import WorkFailed
from equipoise.core.files import FILES, Files, append_synced, free_name, read_regular, seal, unseal, write_atomic


class Rows:
    """The rows of a file; without a file they are kept in memory alone.

    A torn last line is cut off: it was never counted. A whole line that was altered is named in `damaged`, and so is a last
    one that is no beginning of a row where no other line is one; the file as it was is kept under a numbered name, and the
    lines that are whole stay. Raises BadInput for what is no file.
    """

    def __init__(self, path: Path | None, *, files: Files = FILES) -> None:
        self.path, self._files = path, files
        self._rows: list[dict[str, Any]] = []
        self.damaged: list[str] = []
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        content = read_regular(path)
        *lines, torn = content.split(b"\n")
        whole = []
        for number, line in enumerate(lines, start=1):
            try:
                row, sealed = unseal(line)
                if not sealed:
                    raise ValueError("it carries no digest")
            except ValueError as error:
                self.damaged.append(f"{path}:{number}: {error}")
            else:
                self._rows.append(row)
                whole.append(line + b"\n")
        if torn and not whole and not _is_torn(torn):
            self.damaged.append(f"{path}:{len(lines) + 1}: it carries no digest")
        if self.damaged:
            write_atomic(free_name(path, "damaged"), content, files=self._files)
            write_atomic(path, b"".join(whole), files=self._files)
        elif torn:
            self._files.truncate(path, len(content) - len(torn))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row of JSON values; after it returns the row survives a power cut. Raises WorkFailed for nan."""
        try:
            line = seal(row)
        except ValueError as error:
            raise WorkFailed(f"A row for {self.path} cannot be stored: {error}.") from error
        if self.path is not None:
            append_synced(self.path, line, files=self._files)
        self._rows.append(dict(row))


def _is_torn(line: bytes) -> bool:
    """Whether a line without an end can be of a row: an object that breaks off, or one with its digest."""
    if not b'{"'.startswith(line[:2]):
        return False
    try:
        _, sealed = unseal(line)
    except ValueError:
        return True
    return sealed
