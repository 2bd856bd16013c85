"""The record of a pipeline's calls: what was asked, what came, what it cost. It is the memory of a run and its replay.

JSON lines. The first line names the format; every further line is one call, on the disk before its answer is used. A
call's key says what was asked (`equipoise.chat.client.key`), so an answered call is never asked again. Calls that failed
are kept for the account and found by nobody. Every line ends with a digest of itself and counts when it is whole: what a
kill left is cut off, an altered line is set aside and its call asked again, and all others stay. Lines of earlier versions
have no digest; they are read, and it is said that nobody can tell whether one was altered.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from operator import itemgetter
from pathlib import Path
from typing import Any, get_args

from equipoise.chat.calls import Call, Status, ToldToken
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import (
    FILES,
    Files,
    append_synced,
    free_name,
    lock,
    open_regular,
    produce_atomic,
    seal,
    unseal,
    write_atomic,
)
from equipoise.core.options import check_fields
from equipoise.core.progress import note
from equipoise.core.secrets import redact

HEADER = {"format": "equipoise chat record", "version": 1}
_OLD_HEADER = json.dumps(HEADER).encode() + b"\n"  # of earlier versions


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
    retries: how often the call was sent again. attempt: in which opening of the record it was asked, from 1. tokens: of the
    answer, where the call asks for them.
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
    tokens: tuple[ToldToken, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


_values = itemgetter(*(field.name for field in fields(Entry)))


class Record:
    """A file of calls, held against other processes while it is open. Close it, or use it in a `with`.

    read_only: nothing is added or mended, and others may hold it; so is a path that ends in .gz, a shipped record.
    notes: what was found wrong with it, also told on stderr.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False, files: Files = FILES) -> None:
        """Raises BadInput for a file that is no record, which stays as it is; WorkFailed when another process holds it."""
        self.path = Path(path)
        self.read_only = read_only or self.path.suffix == ".gz"
        self.entries: list[Entry] = []
        self.notes: list[str] = []
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
            self._held.callback(_remove_empty, aside)  # while it is still held: `lock` sees that
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

    def add(self, entry: Entry, call: Call, *, secrets: Iterable[str] = ()) -> None:
        """Store an entry with what was asked, without these secrets; it is on the disk when this returns.

        Raises BadInput for a record that is only read, WorkFailed when the file cannot be written.
        """
        if self.read_only:
            raise BadInput(f"{self.path} is only read; name a .jsonl file to record the calls.")
        asked = {
            "messages": [
                {"role": message.role, "content": redact(message.content, secrets)} for message in call.messages
            ],
            "settings": {
                "max_tokens": call.max_tokens,
                "temperature": call.temperature,
                "sample": call.sample,
                "schema": call.schema.__name__ if call.schema else None,
            },
        }
        row = asdict(entry) | asked
        if call.likeliest:
            row["settings"]["likeliest"] = call.likeliest
        else:
            del row["tokens"]
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            if not size:
                append_synced(self.path, seal(HEADER), files=self._files)
                self._files.sync_folder(self.path.parent)
                size = self.path.stat().st_size
            append_synced(self.path, seal(row), files=self._files)
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
        damaged: list[tuple[int, bytes]] = []
        end, unsealed, all_sealed, mended = 0, 0, False, False
        for number, line in self._lines():
            whole = _ended(line)
            if whole is None and (number > 1 or any(header.startswith(line) for header in (seal(HEADER), _OLD_HEADER))):
                break  # a kill cut it before it counted
            try:
                row, sealed = unseal(whole or line)
                if number == 1:
                    self._check(row)
                elif all_sealed and not sealed:
                    raise ValueError("a line that lost its digest")
                else:
                    self._keep(_entry(row))
                    unsealed += not sealed
                all_sealed = all_sealed or sealed
            except BadInput:
                raise
            except (ValueError, KeyError, TypeError):
                damaged.append((number, line))
            mended = mended or whole != line
            end += len(whole or line)
        if damaged and damaged[0][0] == 1 and not all_sealed:
            raise BadInput(f"{self.path} is no record of calls; name another file.")
        if damaged:
            self._set_aside(damaged)
        elif mended and not self.read_only:
            self._write_without([])
        elif not self.read_only and self.path.stat().st_size > end:
            self._files.truncate(self.path, end)
        if unsealed:
            self.notes.append(
                f"{self.path} holds {unsealed} calls of an earlier version, without digests: nobody can tell whether one of "
                "them was altered."
            )
        for each in self.notes:
            note(each)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        packed = self.path.suffix == ".gz"
        with open_regular(self.path) as file, gzip.open(file) if packed else contextlib.nullcontext(file) as lines:
            try:
                yield from enumerate(lines, start=1)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise BadInput(f"{self.path}: not a whole gzip file ({error}); copy or download it again.") from None

    def _check(self, header: dict[str, Any]) -> None:
        if header.get("format") != HEADER["format"]:
            raise BadInput(f"{self.path} is no record of calls; name another file.")
        if header.get("version") != HEADER["version"]:
            raise BadInput(
                f"{self.path} is a record of version {header.get('version')!r}, this program reads version "
                f"{HEADER['version']}; update equipoise, or name another file."
            )

    def _set_aside(self, damaged: list[tuple[int, bytes]]) -> None:
        """Take altered lines out of the record into a file beside it, and say so."""
        numbers = [number for number, _ in damaged]
        what = f"{self.path}:{', '.join(map(str, numbers[:5]))}: {len(numbers)} altered " + (
            "line" if len(numbers) == 1 else "lines"
        )
        if self.read_only:
            self.notes.append(f"{what} left out; the other {len(self)} answers stay.")
            return
        aside = free_name(self.path, "damaged")
        write_atomic(aside, b"".join(line for _, line in damaged), files=self._files)
        self._write_without(numbers)
        self.notes.append(
            f"{what} set aside as {aside.name}; what was answered there is asked again, the other {len(self)} answers stay."
        )

    def _write_without(self, numbers: list[int]) -> None:
        """The file anew with its whole lines but for these."""

        def write(target: Path) -> None:
            with target.open("wb") as file:
                if 1 in numbers:
                    file.write(seal(HEADER))
                for number, line in self._lines():
                    if number not in numbers:
                        file.write(_ended(line) or b"")

        produce_atomic(self.path, write, files=self._files)


def _ended(line: bytes) -> bytes | None:
    """A line with its newline. Of one without, the content if it is whole (the newline was lost or altered), else None."""
    if line.endswith(b"\n"):
        return line
    for text in (line, line[:-1]):
        with contextlib.suppress(ValueError):
            unseal(text)
            return text.rstrip() + b"\n"
    return None


def _entry(row: dict[str, Any]) -> Entry:
    """Raises KeyError, TypeError or ValueError for a row that is no call."""
    usage = None if row["usage"] is None else Usage(**row["usage"])
    if row["status"] not in get_args(Status):
        raise ValueError("a status that is none")
    tokens = tuple(ToldToken(text, p, tuple(map(tuple, rest))) for text, p, rest in row.get("tokens", ()))
    entry = Entry(*_values({**row, "usage": usage, "tokens": tokens}))
    texts = (entry.key, entry.model, entry.phase, entry.text, entry.stop, entry.reason)
    counts = [entry.retries, entry.attempt, *(asdict(usage).values() if usage else ())]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text that is none")
    if not all(isinstance(count, int) and count >= 0 for count in counts) or not 0 <= entry.seconds < math.inf:
        raise ValueError("a count that is none")
    return entry


def _remove_empty(path: Path) -> None:
    """Remove a lock, which is empty; a file of that name that holds something is somebody's."""
    if path.is_file() and not path.stat().st_size:
        path.unlink()
