"""Records, and the readers that make them from a user's file: JSON lines, CSV or Parquet, streamed row by row.

A row is understood by the fields it has (the first line that fits):

    question, choices, answer (index or text)   multiple choice, as WMDP is published
    question, answer                            also TOFU's paraphrased_answer and perturbed_answer, if there
    prompt, completion                          texts, or lists of {"role", "content"} as in TRL
    messages                                    a list of {"role", "content"} that ends with the assistant
    text                                        plain text, as in the WMDP corpora

`id` and `group` are taken when there. Other spellings are named by the caller: fields={"answer": "reply"}.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic_core import from_json

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.files import open_regular
from equipoise.core.options import closed
from equipoise.data.text import lone_surrogate, printable


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; role is "system", "user", "assistant" or "tool"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Record:
    """One thing to learn, forget, retain or ask."""

    id: str  # stable and unique in its file
    completion: str  # what is trained on and scored: the answer, or the whole text when there is no prompt
    prompt: str = ""  # "" for plain text; of a conversation, the last turn before the completion
    messages: tuple[Message, ...] = ()  # all turns of a conversation; the last is the assistant's and is `completion`
    choices: tuple[str, ...] = ()  # multiple choice
    answer: int | None = None  # index into choices
    paraphrases: tuple[str, ...] = ()  # other wordings of the completion (truth ratio)
    wrong: tuple[str, ...] = ()  # wrong answers, worded as the paraphrases are (truth ratio)
    group: str = ""  # what the record is about (author, person, subject): the cluster in intervals


Row = dict[str, Any]

SHAPES: dict[str, tuple[str, ...]] = {
    "choices": ("question", "choices", "answer"),
    "question": ("question", "answer"),
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
}
OPTIONAL = ("id", "group", "paraphrased_answer", "perturbed_answer")
FIELDS = tuple(dict.fromkeys([name for shape in SHAPES.values() for name in shape])) + OPTIONAL
_CONVERSATION = re.compile(r"""\s*\[\s*\{\s*["'](?:role|content)["']\s*:""")
EXTENSIONS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")


@closed
def read_records(
    source: str | Path,
    *,
    limit: int | None = None,
    fields: Mapping[str, str] | None = None,
    nothing: Literal["error", "empty"] = "error",
    renamed: "Renamed | None" = None,
) -> list[Record]:
    """The first `limit` records of a file (all by default), with ids that are unique in it.

    fields: our name of a field -> the file's, for example {"answer": "reply"}. nothing: what a file without records is.
    renamed: is told of the rows where several files have the same `fields`; their reader asks it when all are read.
    Raises BadInput, one sentence with file, line and remedy, for whatever cannot be read, and for a name in `fields` that
    no row has.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"limit is {limit}, expected at least 1.")
    records: list[Record] = []
    places: dict[str, str] = {}
    seen = renamed or Renamed(fields)
    for place, record in islice(iterate_records(source, fields=fields, renamed=seen), limit):
        if record.id in places:
            raise BadInput(f"{place}: id {record.id!r} was used before at {places[record.id]}; make ids unique.")
        places[record.id] = place
        records.append(record)
    if renamed is None:
        seen.check()
    if not records and nothing == "error":
        raise BadInput(f"{source} is empty: expected at least one record with {_expected()}.")
    return records


def iterate_records(
    source: str | Path, *, fields: Mapping[str, str] | None = None, renamed: "Renamed | None" = None
) -> Iterator[tuple[str, Record]]:
    """(place, record) of every row, one row in memory at a time; place is "FILE:LINE". renamed: is told of the rows.

    Raises BadInput.
    """
    fields = dict(fields or {})
    for name in fields:
        if name not in FIELDS:
            raise BadInput(f"there is no field {name!r} to rename. {did_you_mean(name, FIELDS)}")
    path = Path(source)
    stem = path.name.split(".")[0]
    wanted = {fields.get(name, name) for name in FIELDS}
    for place, number, row in read_rows(path, wanted):
        if renamed is not None:
            renamed.see(place, row)
        yield place, record_from(row, place=place, default_id=f"{stem}-{number}", fields=fields)


def record_from(row: Row, *, place: str, default_id: str, fields: Mapping[str, str] | None = None) -> Record:
    """The record that a row means. place: named in errors. Raises BadInput for a missing field or a wrong type."""
    cells = Cells(row, place, fields or {})
    identifier = row.get(cells.name("id"))
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    record = partial(
        Record,
        id=default_id if identifier in (None, "") else cells.check_text("id", identifier),
        group=cells.text("group") if cells.has("group") else "",
    )
    match cells.shape():
        case "choices":
            choices = cells.texts("choices", at_least=2)
            answer = cells.choice(choices)
            wrong = tuple(choice for index, choice in enumerate(choices) if index != answer)
            return record(
                completion=choices[answer],
                prompt=cells.text("question"),
                choices=choices,
                answer=answer,
                wrong=wrong,
            )
        case "question":
            return record(
                completion=cells.text("answer"),
                prompt=cells.text("question"),
                paraphrases=cells.texts("paraphrased_answer") if cells.has("paraphrased_answer") else (),
                wrong=cells.texts("perturbed_answer") if cells.has("perturbed_answer") else (),
            )
        case "prompt" if any(isinstance(cells.said(field), list) for field in SHAPES["prompt"]):
            return _conversation(cells.messages("prompt") + cells.messages("completion"), cells, "completion", record)
        case "prompt":
            return record(completion=cells.text("completion"), prompt=cells.text("prompt"))
        case "messages":
            return _conversation(cells.messages("messages"), cells, "messages", record)
        case _:
            return record(completion=cells.text("text"))


def _conversation(messages: tuple[Message, ...], cells: "Cells", field: str, record: Callable[..., Record]) -> Record:
    *before, last = messages
    if last.role != "assistant":
        cells.refuse(field, "a conversation that ends with the assistant", f"one that ends with {last.role!r}")
    return record(completion=last.content, prompt=before[-1].content if before else "", messages=messages)


class Renamed:
    """The names that a caller gave fields, and whether any row had them: one of a typo would change nothing, in silence.

    Over the rows of one file, or of several that are read with the same names: texts to keep may be of another shape.
    """

    def __init__(self, fields: Mapping[str, str] | None) -> None:
        """fields: our name of a field -> the file's."""
        self.missing = {name: own for name, own in (fields or {}).items() if own != name}
        self._first = ""
        self._found: dict[str, None] = {}

    def see(self, place: str, row: Mapping[str, Any], *, lowered: bool = False) -> None:
        """A row that was read, and where. lowered: whether its fields are found in lower case, too."""
        self._first = self._first or place
        if self.missing:
            self._found.update(dict.fromkeys(map(str, row)))
            names = {*row, *(str(name).lower() for name in row)} if lowered else row
            self.missing = {name: own for name, own in self.missing.items() if own not in names}

    def check(self) -> None:
        """Raises BadInput, when all is read, for a name that no row had."""
        for name, own in self.missing.items() if self._first else ():
            found = printable(", ".join(list(self._found)[:20])) or "no fields"
            raise BadInput(f"{self._first}: no row has the field {own!r} that was named for {name} (found: {found}).")


class Cells:
    """The fields of one row under our names; every refusal names the place, the field and what was expected."""

    def __init__(self, row: Row, place: str, fields: Mapping[str, str]) -> None:
        self.row, self.place, self.fields = row, place, fields

    def name(self, field: str) -> str:
        return self.fields.get(field, field)

    def has(self, field: str) -> bool:
        return self.row.get(self.name(field)) not in (None, "")

    def refuse(self, field: str, expected: str, came: str) -> NoReturn:
        raise BadInput(f"{self.place}: field {self.name(field)!r}: expected {expected}, found {came}.")

    def shape(self) -> str:
        # A renamed field says which shape is meant; it goes before what the row happens to contain besides. Where a part of
        # that shape is there, the row is none of a shape that has nothing of it.
        ordered = sorted(SHAPES, key=lambda shape: -len(set(SHAPES[shape]) & set(self.fields)))
        meant = [shape for shape in ordered if set(SHAPES[shape]) & set(self.fields)]
        begun = {field for shape in meant for field in SHAPES[shape]} if any(map(self._share, meant)) else set(FIELDS)
        for shape in ordered:
            if all(self.row.get(self.name(field)) is not None for field in SHAPES[shape]) and begun & set(
                SHAPES[shape]
            ):
                return shape
        found = printable(", ".join(map(str, self.row))) or "no fields"
        nearest = max(meant if any(map(self._share, meant)) else ordered, key=self._share)
        if not self._share(nearest):
            raise BadInput(
                f"{self.place}: nothing to read, expected {_expected()} (found: {found}). "
                "Name yours with --fields text=NAME, or --fields question=NAME,answer=NAME."
            )
        missing = next(field for field in SHAPES[nearest] if self.row.get(self.name(field)) is None)
        if self.name(missing) in self.row:
            self.refuse(missing, "a value", "nothing (null)")
        raise BadInput(
            f"{self.place}: no field {self.name(missing)!r} (found: {found}). Name yours with --fields {missing}=NAME."
        )

    def _share(self, shape: str) -> float:
        return sum(self.row.get(self.name(field)) is not None for field in SHAPES[shape]) / len(SHAPES[shape])

    def text(self, field: str) -> str:
        return self.check_text(field, self.row[self.name(field)])

    def check_text(self, field: str, value: Any) -> str:
        if not isinstance(value, str):
            self.refuse(field, "text", kind_of(value))
        if not value.strip():
            self.refuse(field, "text that is not empty", repr(value))
        if (at := lone_surrogate(value)) is not None:
            self.refuse(field, "text", f"half of a surrogate pair at character {at}")
        return value

    def texts(self, field: str, at_least: int = 1) -> tuple[str, ...]:
        """A list of texts; one text counts as a list of one, and a CSV cell may hold a JSON list."""
        value = self.row[self.name(field)]
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                self.refuse(field, "a JSON list of texts", repr(value[:40]))
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or len(value) < at_least:
            self.refuse(field, f"a list of at least {at_least} texts", kind_of(value))
        return tuple(self.check_text(field, item) for item in value)

    def said(self, field: str) -> Any:
        """A text, or a conversation as a list, which a CSV cell may hold as JSON; refused is one that Python wrote."""
        value = self.row[self.name(field)]
        if not isinstance(value, str) or not _CONVERSATION.match(value):
            return value
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            self.refuse(field, 'a JSON list of {"role", "content"}, or a text', repr(value[:40]))
        return found if all(isinstance(item, dict) and {"role", "content"} <= item.keys() for item in found) else value

    def choice(self, choices: tuple[str, ...]) -> int:
        """The index of the right choice, given as a number, as its digits (CSV) or as the choice's own text."""
        value = self.row[self.name("answer")]
        meant = {index for index, choice in enumerate(choices) if choice == value}
        digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 5
        index = int(value) if digits else value
        if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(choices):
            meant.add(index)
        if len(meant) > 1:
            self.refuse("answer", "one meaning", f"{value!r}, the text of a choice and an index")
        if not meant:
            self.refuse("answer", f"one of the choices or its index, 0 to {len(choices) - 1}", kind_of(value))
        return meant.pop()

    def messages(self, field: str) -> tuple[Message, ...]:
        """The turns of a conversation: a list, which a CSV cell may hold as JSON."""
        value = self.said(field)
        if not isinstance(value, list) or not value:
            self.refuse(field, 'a list of {"role", "content"}', kind_of(value))
        for item in value:
            if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
                self.refuse(field, 'a list of {"role", "content"}', f"an item that is {kind_of(item)}")
        return tuple(
            Message(self.check_text(field, item["role"]), self.check_text(field, item["content"])) for item in value
        )


def kind_of(value: Any) -> str:
    """What a value is, in the words of a refusal."""
    if value is None:
        return "nothing"
    if isinstance(value, int | float):
        return f"{type(value).__name__} {str(value)[:20]}"
    if isinstance(value, str):
        return f"text {value[:40]!r}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with {printable(', '.join(map(str, value)))[:80] or 'no fields'}"
    return type(value).__name__


def _expected() -> str:
    return ", or ".join(" + ".join(shape) for shape in reversed(SHAPES.values()))


def read_rows(path: Path, wanted: set[str] | None = None) -> Iterator[tuple[str, int, Row]]:
    """(place, 1-based number, row) of every row of a file, as it is; wanted: the Parquet columns to read, else all.

    Raises BadInput for a file that is not there, not whole, not UTF-8 or not in the format that its name says.
    """
    name = path.name.lower()
    if not name.endswith(EXTENSIONS):
        raise BadInput(f"{path}: unknown kind of file; expected {', '.join(EXTENSIONS)}.")
    if not path.exists():
        siblings = path.parent.iterdir() if path.parent.is_dir() else ()
        near = did_you_mean(path.name, [file.name for file in siblings if file.name.lower().endswith(EXTENSIONS)])
        raise BadInput(f"{path}: no such file. {near if path.parent.is_dir() else f'{path.parent} is no folder.'}")
    if path.is_dir():
        raise BadInput(f"{path} is a folder; name a file in it.")
    try:
        if name.endswith(".parquet"):
            yield from _parquet_rows(path, wanted)
        elif name.endswith((".csv", ".csv.gz")):
            yield from _csv_rows(path)
        else:
            yield from _json_rows(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"{path}: not a whole gzip file ({error}); copy or download it again.") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error}).") from None


def _lines(path: Path) -> Iterator[str]:
    offset = 0
    with open_regular(path) as stored, gzip.open(stored) if path.name.lower().endswith(".gz") else stored as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise BadInput(
                    f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x} at offset {offset + error.start}); "
                    f"convert the file, for example with iconv -f latin1 -t utf-8."
                ) from None
            offset += len(line)


def _json_rows(path: Path) -> Iterator[tuple[str, int, Row]]:
    lines = enumerate(_lines(path), start=1)
    for number, line in lines:
        if not line.strip():
            continue
        place = f"{path}:{number}"
        if number == 1 and line.lstrip().startswith("["):
            # A .json file may be one array; it is small enough to read whole or would be JSON lines.
            whole = _json(line + "".join(rest for _, rest in lines), place)
            for index, row in enumerate(whole, start=1):
                yield _object(row, f"{path}: item {index}", index)
            return
        yield _object(_json(line, place), place, number)


def _json(text: str, place: str) -> Any:
    try:
        return from_json(text)  # twice as fast as json
    except ValueError:
        pass  # json reads some that it refuses, such as lone surrogates, and says better what is wrong
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{place}: not JSON ({error.msg} at column {error.colno}); expected one JSON object a line."
        ) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{place}: not usable JSON ({error}); expected one JSON object a line.") from None


def _object(row: Any, place: str, number: int) -> tuple[str, int, Row]:
    if not isinstance(row, dict):
        raise BadInput(f"{place}: expected a JSON object with {_expected()}, found {kind_of(row)}.")
    return place, number, row


def _csv_rows(path: Path) -> Iterator[tuple[str, int, Row]]:
    reader = csv.reader(_lines(path), strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            if not row:
                continue
            place = f"{path}:{reader.line_num}"
            if header is None:
                header = row
                if len(set(header)) < len(header):
                    raise BadInput(f"{place}: a column name stands twice (found: {', '.join(header)}).")
            elif len(row) != len(header):
                raise BadInput(
                    f"{place}: {len(row)} cells under {len(header)} columns; put cells with commas in double quotes."
                )
            else:
                yield place, reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise BadInput(f"{path}:{reader.line_num}: not CSV ({error}); JSON lines has no such limits.") from None


def _parquet_rows(path: Path, wanted: set[str] | None) -> Iterator[tuple[str, int, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            # With nothing to take, all is read, so that the error can list the columns.
            chosen = [name for name in columns if wanted is None or name in wanted] or columns
            rows = (row for batch in file.iter_batches(1024, columns=chosen) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{path}: row {number}", number, {**dict.fromkeys(columns), **row}
    except (pyarrow.ArrowException, UnicodeDecodeError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"{path}: not a whole Parquet file ({reason}); copy or download it again.") from None
