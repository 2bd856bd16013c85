"""What the readers of published histories share: objects of JSON files, fields with the place named in every refusal, times.

Places are "FILE: record N", from 1, so that they can be counted in an editor.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from datetime import datetime, time
from pathlib import Path
from typing import Any, NoReturn

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.files import read_regular, sha256_file
from equipoise.data.records import kind_of
from equipoise.data.text import lone_surrogate

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?)?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class Row:
    """One object of a file. place: names it in errors. stem: the file's name where it holds nothing else."""

    def __init__(self, values: dict[str, Any], place: str, stem: str = "") -> None:
        self.values, self.place, self.stem = values, place, stem

    def has(self, field: str) -> bool:
        """Whether there is something in it: neither null nor "" nor missing."""
        return self.values.get(field) not in (None, "")

    def refuse(self, field: str, expected: str, came: str) -> NoReturn:
        """Raises BadInput."""
        raise BadInput(f"{self.place}: field {field!r}: expected {expected}, found {came}.")

    def only(self, known: Collection[str]) -> None:
        """Raises BadInput for a field of another name: what is not read would be ignored in silence."""
        for name in self.values:
            if name not in known:
                raise BadInput(f"{self.place}: there is no field {name!r} here. {did_you_mean(name, known)}")

    def value(self, field: str) -> Any:
        """Raises BadInput when the field is missing or null, naming those that are there."""
        if self.values.get(field) is None:
            found = ", ".join(map(str, self.values)) or "no fields"
            raise BadInput(f"{self.place}: no field {field!r} (found: {found[:120]}). Add it to the record.")
        return self.values[field]

    def text(self, field: str, *, empty: bool = False) -> str:
        """A text. empty: "" is one, too."""
        return self.as_text(field, self.value(field), empty=empty)

    def as_text(self, field: str, value: Any, *, empty: bool = False) -> str:
        """The value, which stands in that field, when it is a text that can be written."""
        if not isinstance(value, str):
            self.refuse(field, "text", kind_of(value))
        if not empty and not value.strip():
            self.refuse(field, "text that is not empty", repr(value))
        if (at := lone_surrogate(value)) is not None:
            self.refuse(field, "text", f"half of a surrogate pair at character {at}")
        return value

    def answer(self, field: str) -> str:
        """A text or a number, as text; published answers are both."""
        value = self.value(field)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return str(value) if number else self.as_text(field, value)

    def items(self, field: str, what: str) -> list[Any]:
        """A list. what: of what, for the refusal."""
        value = self.value(field)
        if not isinstance(value, list):
            self.refuse(field, f"a list of {what}", kind_of(value))
        return value

    def texts(self, field: str, what: str = "texts") -> list[str]:
        """A list of texts."""
        return [self.as_text(field, value) for value in self.items(field, what)]

    def rows(self, field: str, what: str) -> Iterator[Row]:
        """The objects of a list, each with its number in the place."""
        return self.each(self.items(field, what), what)

    def each(self, values: list[Any], what: str) -> Iterator[Row]:
        """The same of a list that was found otherwise."""
        for number, value in enumerate(values, start=1):
            place = f"{self.place}, {what} {number}"
            if not isinstance(value, dict):
                raise BadInput(f"{place}: expected a JSON object, found {kind_of(value)}.")
            yield Row(value, place)

    def moment(self, field: str, value: Any = None, *, whole: time = time.min) -> datetime:
        """An ISO date, or date and time, without a zone. whole: the time of day that a date alone stands for."""
        value = self.value(field) if value is None else value
        text = self.as_text(field, value).strip()
        if not _ISO.fullmatch(text):
            self.refuse(
                field, "an ISO date such as 2024-05-31, or 2024-05-31 09:30:00, without a time zone", kind_of(value)
            )
        try:
            found = datetime.fromisoformat(text)
        except ValueError as error:
            self.refuse(field, "a date of the calendar", f"{text!r} ({error})")
        return datetime.combine(found.date(), whole) if is_date(text) else found


def is_date(text: str) -> bool:
    """Whether a text is an ISO date without a time."""
    return bool(_DATE.fullmatch(text.strip()))


def of_calendar(row: Row, field: str, text: str, date: tuple[int, int, int], hour: int, minute: int) -> datetime:
    """The moment of (year, month, day), hour and minute. Raises BadInput where no calendar has it."""
    try:
        return datetime(*date, hour, minute)
    except ValueError as error:
        row.refuse(field, "a date and time of the calendar", f"{text!r} ({error})")


def read_objects(path: str | Path) -> list[Row]:
    """The objects of a file: one, an array of them, or one a line; plain or gzip. Of a folder: of its files, whose names are
    ordered by the numbers in them.

    Raises BadInput for what is not there, not whole or not JSON, and for nothing at all.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(_inside(path), key=_natural)
        if not files:
            raise BadInput(f"{path} has no file that ends in {', '.join(ENDINGS)}.")
        return [row for file in files for row in read_objects(file)]
    if not path.exists():
        near = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise BadInput(f"{path}: no such file. {did_you_mean(path.name, near)}")
    if not path.name.lower().endswith(ENDINGS):
        raise BadInput(f"{path}: unknown kind of file; expected {', '.join(ENDINGS)}.")
    rows = list(_rows(path, _text(path)))
    if not rows:
        raise BadInput(f"{path} is empty: expected at least one history.")
    return rows


def objects_digest(path: str | Path) -> str:
    """A digest of all that `read_objects` reads: of a folder the names and contents of such files."""
    path = Path(path)
    if path.is_dir():
        parts = [[file.name, objects_digest(file)] for file in sorted(_inside(path))]
        return hashlib.sha256(repr(parts).encode()).hexdigest()
    return sha256_file(path)


def _inside(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.name.lower().endswith(ENDINGS)]


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _text(path: Path) -> str:
    try:
        data = read_regular(path)
        return (gzip.decompress(data) if path.name.lower().endswith(".gz") else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}; convert the file.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path}: not a whole gzip file ({error}); copy or download it again.") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error}).") from None


def _rows(path: Path, text: str) -> Iterator[Row]:
    # not splitlines: JSON ends no line where Unicode does, so that a text may hold U+2028 and its like as they are
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if len(lines) > 1 and ".jsonl" in path.name.lower():
        values = [_json(line, f"{path}:{number}") for number, line in lines]
    elif not lines:
        return
    else:
        found = _json(text, str(path))
        values = found if isinstance(found, list) else [found]
    for number, value in enumerate(values, start=1):
        place = f"{path}: record {number}"
        if not isinstance(value, dict):
            raise BadInput(f"{place}: expected a JSON object, found {kind_of(value)}.")
        yield Row(value, place, path.name.split(".")[0] if len(values) == 1 else "")


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number(place))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BadInput(f"{place}: not JSON ({error.msg} at {where}); one object a line belongs in a .jsonl.") from None
    except ValueError as error:
        raise BadInput(f"{place}: a number has too many digits to be read ({error}).") from None
    except RecursionError:
        raise BadInput(f"{place}: nested too deeply to be a history.") from None


def _no_number(place: str) -> Callable[[str], NoReturn]:
    def refuse(constant: str) -> NoReturn:
        raise BadInput(f"{place}: {constant} is no JSON; write null where there is no number.")

    return refuse
