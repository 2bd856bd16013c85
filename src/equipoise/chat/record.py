"""The record of a pipeline's calls: what was asked, what came, what it cost. It is the memory of a run and its replay.

JSON lines. The first line names the format; every further line is one call, on the disk before its answer is used. A
call's key says what was asked (`equipoise.chat.client.key`), so an answered call is never asked again. Calls that failed
are kept for the account and found by nobody. A line counts when it ends with a newline: what a kill left is cut off.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from operator import itemgetter
from pathlib import Path
from typing import Any

from equipoise.chat.calls import Call, Status
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import FILES, Files, append_synced, lock

HEADER = {"format": "equipoise chat record", "version": 1}


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. prompt: all that were read, cached ones too; generated: all that were written, reasoning too."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0
    reasoning: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Usage)))


@dataclass(frozen=True, slots=True)
class Entry:
    """One call that came to an end. usage: None where the provider told none. seconds: the model's own, where it tells.

    status: "invalid" where the text does not satisfy the call's schema; whether a repair did is in the repair's own entry.
    retries: how often the call was sent again. attempt: in which opening of the record it was asked, from 1.
    """

    key: str
    model: str
    phase: str
    status: Status
    text: str
    usage: Usage | None
    stop: str = ""
    reason: str = ""
    seconds: float = 0.0
    retries: int = 0
    attempt: int = 1


_values = itemgetter(*(field.name for field in fields(Entry)))


class Record:
    """A file of calls, held against other processes while it is open. Close it, or use it in a `with`.

    read_only: nothing is added or mended, and others may hold it; so is a path that ends in .gz, a shipped record.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False, files: Files = FILES) -> None:
        """Raises BadInput for a file that is no record, naming the line; WorkFailed when another process holds it."""
        self.path = Path(path)
        self.read_only = read_only or self.path.suffix == ".gz"
        self.entries: list[Entry] = []
        self._answers: dict[str, Entry] = {}
        self._files = files
        self._held = contextlib.ExitStack()
        if self.path.is_dir():
            raise BadInput(f"{self.path} is a folder; name a file for the record of the calls, such as calls.jsonl.")
        if self.read_only and not self.path.exists():
            raise BadInput(f"{self.path}: no such record; name a .jsonl file to record the calls.")
        if not self.read_only:
            aside = self.path.with_name(f".{self.path.name}.lock")
            self._held.enter_context(lock(aside, waiting_for=f"another process that writes {self.path}"))
            self._held.callback(aside.unlink, missing_ok=True)  # while it is still held: `lock` sees that
        try:
            self._load()
        except BaseException:
            self.close()
            raise
        self.attempt = 1 + max((entry.attempt for entry in self.entries), default=0)

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes have the file."""
        self._held.close()

    def __len__(self) -> int:
        """How many calls are answered."""
        return len(self._answers)

    def found(self, key: str) -> Entry | None:
        """What was answered to the call with this key, None where it was not asked or failed."""
        return self._answers.get(key)

    def add(self, entry: Entry, call: Call) -> None:
        """Store an entry with what was asked; it is on the disk when this returns.

        Raises BadInput for a record that is only read, WorkFailed when the file cannot be written.
        """
        if self.read_only:
            raise BadInput(f"{self.path} is only read; name a .jsonl file to record the calls.")
        asked = {
            "messages": [{"role": message.role, "content": message.content} for message in call.messages],
            "settings": {
                "max_tokens": call.max_tokens,
                "temperature": call.temperature,
                "sample": call.sample,
                "schema": call.schema.__name__ if call.schema else None,
            },
        }
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            if not size:
                append_synced(self.path, _line(HEADER), files=self._files)
                self._files.sync_folder(self.path.parent)
                size = self.path.stat().st_size
            append_synced(self.path, _line(asdict(entry) | asked), files=self._files)
        except OSError as error:
            with contextlib.suppress(OSError):  # half a line would stand in front of the next one
                self._files.truncate(self.path, size)
            raise WorkFailed(f"{self.path}: the record cannot be written ({error.strerror or error}).") from error
        self._keep(entry)

    def _keep(self, entry: Entry) -> None:
        self.entries.append(entry)
        if entry.status != "failed":
            self._answers.setdefault(entry.key, entry)

    def _load(self) -> None:
        if not self.path.exists():
            return
        good = 0
        for number, line in self._lines():
            if not line.endswith(b"\n"):
                if not self.read_only:
                    self._files.truncate(self.path, good)
                break
            row = self._row(number, line)
            if number == 1:
                if row.get("format") != HEADER["format"]:
                    raise BadInput(f"{self.path} is no record of calls; name another file.")
                if row.get("version") != HEADER["version"]:
                    raise BadInput(
                        f"{self.path} is a record of version {row.get('version')!r}, this program reads version "
                        f"{HEADER['version']}; update equipoise, or name another file."
                    )
            else:
                self._keep(self._entry(number, row))
            good += len(line)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        try:
            with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as file:
                yield from enumerate(file, start=1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BadInput(f"{self.path}: not a whole gzip file ({error}); copy or download it again.") from None

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
            if isinstance(row, dict):
                return row
        except (ValueError, RecursionError):
            pass
        raise self._damaged(number)

    def _entry(self, number: int, row: dict[str, Any]) -> Entry:
        try:
            row["usage"] = None if row["usage"] is None else Usage(**row["usage"])
            return Entry(*_values(row))
        except (KeyError, TypeError):
            raise self._damaged(number) from None

    def _damaged(self, number: int) -> BadInput:
        return BadInput(
            f"{self.path}:{number}: the line is damaged; restore the file from a copy, or delete this line to ask the "
            f"call again."
        )


def _line(row: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which a model can write as an escape, is no UTF-8
        return (json.dumps(row) + "\n").encode()
