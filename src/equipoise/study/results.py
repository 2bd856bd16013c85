"""What judging and reports read: the runs of a study as tables, wherever they are stored."""

import gc
import hashlib
import math
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import produce_atomic, read_regular, seal, sha256_file, unseal, write_atomic
from equipoise.core.options import check_fields
from equipoise.study.selection import Selected, choose
from equipoise.study.store import (
    CONFIG,
    COST,
    ITEMS_TABLE,
    MEASUREMENTS,
    PARTIAL,
    PREPARATION,
    RESULTS,
    STUDY,
    canonical,
    identify,
    parse_lines,
    read_complete,
    read_failure,
    read_json,
    read_study,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from equipoise.study.declare import Study

CACHE = "cache"
OTHER_CODE = (
    "These runs were made by another version of the code (the study, equipoise, torch or transformers) than the one that "
    "judges them, so its claims may be younger than the results (`equipoise study run` makes the runs anew)."
)
State = Literal["complete", "partial", "failed", "gave up", "absent"]


@dataclass(frozen=True)
class RunInfo:
    """One run and how it ended. `cost`: {"work" | "spent": {phase: {name: amount}}}; `key`: its folder's name."""

    key: str
    arm: str
    kind: str
    point: int
    settings: dict[str, Any]
    seed: int
    role: str
    state: State
    cost: dict[str, dict[str, dict[str, float]]]
    folder: Path
    fingerprint: str
    error: str | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class Results:
    """Stored runs of one study with one set of options, of one code version.

    `measurements` columns: run (int32, index into runs), arm, point, seed, role, outcome, value (nan: undefined),
    numerator, of (nan: no denominator), missing, at and where (canonical JSON), order. `items` columns: run, arm,
    point, seed, role, outcome, item, cluster, score, at, where, order. Only complete runs have rows. `chosen`: arm ->
    grid point. `other_code`: whether that version is another one than the code that reads them, claims included.
    """

    study: str
    options: dict[str, Any]
    environment: dict[str, Any]
    runs: list[RunInfo]
    chosen: dict[str, int]
    measurements: "pa.Table"
    items: "pa.Table"
    selection: list[Selected] = field(default_factory=list)
    preparations: list[RunInfo] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    other_code: bool = False


def measurements_schema() -> "pa.Schema":
    """Columns of the measurements of all runs."""
    import pyarrow as pa

    return _schema(("value", pa.float64()), ("numerator", pa.float64()), ("of", pa.float64()), ("missing", pa.int64()))


def items_schema() -> "pa.Schema":
    """Columns of the scores of all items."""
    import pyarrow as pa

    return _schema(("item", pa.string()), ("cluster", pa.string()), ("score", pa.float64()))


def _schema(*measured: "tuple[str, pa.DataType]") -> "pa.Schema":
    """What was measured, between the run that it belongs to and the place on its path."""
    import pyarrow as pa

    text = pa.dictionary(pa.int32(), pa.string())
    run = [("run", pa.int32()), ("arm", text), ("point", pa.int32()), ("seed", pa.int64()), ("role", text)]
    return pa.schema([*run, ("outcome", text), *measured, ("at", text), ("where", text), ("order", pa.int64())])


def load(folders: Sequence[Path], study: "Study") -> Results:
    """All stored runs of `study` (same name and options) in the output folders, as tables.

    Runs of another code version are never mixed: those of the current code are taken, else of the version with the most
    complete runs, which is said in `notes`, as the others are. So are damaged folders, which are not read, and copies
    that differ. Raises BadInput when a folder is no output folder.
    """
    import pyarrow as pa

    stored = [_read_folder(Path(folder)) for folder in folders]
    notes = [note for each in stored for note in each.notes]
    entries = [entry for each in stored for entry in each.entries]
    mine = [each for each in entries if each.config["study"] == study.name and each.config["options"] == study.options]
    if len(mine) < len(entries):
        notes.append(f"{_count(len(entries) - len(mine), 'folder')} of other studies or options left out.")
    mine, other_code = _one_version(mine, study, notes)
    kept, position = _without_copies(mine, notes)

    tables: dict[str, list[pa.Table]] = {"measurements": [], "items": []}
    for each in stored:
        indices = np.array([position.get(id(entry), -1) for entry in each.entries], dtype=np.int32)
        for name, parts in tables.items():
            table: pa.Table = getattr(each, name)
            if table.num_rows:
                run = indices[table["run"].to_numpy()]
                table = table.set_column(0, "run", pa.array(run, pa.int32()))
                parts.append(table if (run >= 0).all() else table.filter(pa.array(run >= 0)))
    measurements = pa.concat_tables([measurements_schema().empty_table(), *tables["measurements"]]).unify_dictionaries()
    items = pa.concat_tables([items_schema().empty_table(), *tables["items"]]).unify_dictionaries()
    runs = [each.info for each in kept if each.info.role != PREPARATION]
    try:
        chosen, selection = choose(study, measurements)
    except WorkFailed as error:
        chosen, selection = {}, []
        notes.append(str(error))
    return Results(
        study=study.name,
        options=study.options,
        environment=next((each.environment for each in stored if each.environment), {}),
        runs=runs,
        chosen=chosen,
        measurements=measurements,
        items=items,
        selection=selection,
        preparations=[each.info for each in kept if each.info.role == PREPARATION],
        notes=notes,
        other_code=other_code,
    )


@dataclass(frozen=True)
class _Entry:
    info: RunInfo
    config: dict[str, Any]

    @property
    def version(self) -> tuple[str, int]:
        return self.config["code"], self.config["threads"]


@dataclass(frozen=True)
class _Stored:
    """One output folder. Column `run` of the tables is an index into `entries`."""

    entries: list[_Entry]
    measurements: "pa.Table"
    items: "pa.Table"
    environment: dict[str, Any]
    notes: list[str]


def _one_version(entries: list[_Entry], study: "Study", notes: list[str]) -> tuple[list[_Entry], bool]:
    """The runs of one version of the code, and whether that is another one than the code as it is now."""
    from equipoise.study.fingerprint import code_of

    complete_runs: dict[tuple[str, int], set[str]] = {}
    for each in entries:
        keys = complete_runs.setdefault(each.version, set())
        if each.info.state == "complete" and each.info.role != PREPARATION:
            keys.add(each.info.key)
    versions = {version: len(keys) for version, keys in complete_runs.items()}
    if not versions:
        return entries, False
    current = code_of(study.source).digest if study.source else None
    # The last part decides between equals, so that the order of the folders does not.
    wanted = max(versions, key=lambda each: (each[0] == current and versions[each] > 0, versions[each], each))
    for version, complete in versions.items():
        if version != wanted:
            why = f"of {_count(version[1], 'thread')}" if version[0] == wanted[0] else "of another version of the code"
            notes.append(
                f"{_count(complete, 'complete run')} {why} left out; results of different versions are not mixed."
            )
    other_code = current is not None and wanted[0] != current
    if other_code:
        notes.append(OTHER_CODE)
    return [each for each in entries if each.version == wanted], other_code


def _without_copies(entries: list[_Entry], notes: list[str]) -> tuple[list[_Entry], dict[int, int]]:
    """Of the same run in several folders the most finished; runs come first. Also id(entry) -> index among the kept."""
    rank = {"complete": 0, "partial": 1, "gave up": 2, "failed": 2}
    by_key: dict[str, _Entry] = {}
    for each in entries:
        known = by_key.setdefault(each.info.key, each)
        if known is each:
            continue
        if known.info.state == each.info.state == "complete":
            if not _measured_alike(known, each):
                notes.append(
                    f"{each.info.key} was measured twice with different values: {known.info.folder} is used, "
                    f"{each.info.folder} is not."
                )
        elif rank[each.info.state] < rank[known.info.state]:
            by_key[each.info.key] = each
    order = sorted(by_key.values(), key=lambda each: (each.info.role == PREPARATION, each.info.role, each.info.key))
    return order, {id(each): index for index, each in enumerate(order)}


def _measured_alike(one: _Entry, other: _Entry) -> bool:
    """Whether two complete copies of a run hold the same measurements and items."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    measured, items = (
        [each.config["files"].get(name) for each in (one, other)] for name in (MEASUREMENTS, ITEMS_TABLE)
    )
    if measured[0] != measured[1] or None in items or items[0] == items[1]:
        return measured[0] == measured[1] and items[0] == items[1]
    # Other versions of Arrow write the same table in other bytes. As text, where nan is equal to itself.
    tables = (pq.read_table(pa.BufferReader(read_regular(each.info.folder / ITEMS_TABLE))) for each in (one, other))
    return len({str(table.to_pydict()) for table in tables}) == 1


def _read_folder(root: Path) -> _Stored:
    """Everything in an output folder; complete runs through the cache beside them."""
    if not (root / "runs").is_dir() and not (root / "preparations").is_dir():
        raise BadInput(f"{root} holds no runs; give the --out folder of `equipoise study run`.")
    environment, notes = _environment(root)
    folders = [
        Path(entry.path)
        for home in ("runs", "preparations")
        if (root / home).is_dir()
        for entry in sorted(os.scandir(root / home), key=lambda entry: entry.name)
        if entry.is_dir() and not entry.name.startswith(".")
    ]
    complete = [folder for folder in folders if not folder.name.endswith(PARTIAL)]
    state = _state_of(complete)
    with _without_collecting():
        try:
            cached = _from_cache(root, state, {folder.name: folder for folder in complete})
        except WorkFailed as error:
            cached = None
            notes.append(f"{root / CACHE} is damaged ({error}); it is made anew from the runs themselves.")
        if cached is None:
            cached, damaged = _read_complete(complete)
            notes += damaged
            if not damaged:
                _to_cache(root, state, *cached)
    entries, measurements, items = cached
    done = {each.info.key for each in entries}
    for folder in folders:
        if folder.name.endswith(PARTIAL) and folder.name.removesuffix(PARTIAL) not in done:
            try:
                entries.append(_read_partial(folder))
            except FileNotFoundError:
                continue  # its work has not begun
            except _UNREADABLE as error:
                notes.append(
                    f"{folder.name} is damaged ({_why(error)}) and left out; `equipoise study run` goes on with it."
                )
    return _Stored(entries, measurements, items, environment, notes)


# What reading a file that is not what it was can raise; Arrow's own errors are among them.
_UNREADABLE = (
    WorkFailed,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    NotImplementedError,
    RecursionError,
)


def _why(error: BaseException) -> str:
    return str(error) if isinstance(error, WorkFailed | OSError | ValueError) else f"{type(error).__name__}: {error}"


def _environment(root: Path) -> tuple[dict[str, Any], list[str]]:
    """How the runs were made, as the folder tells it, and what is wrong with that. No run depends on it."""
    if not (root / STUDY).exists():
        return {}, []
    try:
        environment = dict(read_study(root).get("environment", {}))
    except (BadInput, ValueError, TypeError) as error:
        return {}, [str(error)]
    if not _is_ours(environment.get("command", "")):
        return {**environment, "command": ""}, [f"{root / STUDY} names no command of this program, so none is shown."]
    return environment, []


def _is_ours(command: Any) -> bool:
    """Whether pasting it into a shell runs a study and nothing else; a folder from elsewhere can name any command."""
    try:
        words = shlex.split(command)
    except (ValueError, AttributeError, TypeError):
        return False
    return not words or (words[:3] == ["equipoise", "study", "run"] and shlex.join(words) == command)


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Parsed records hold no cycles; looking for some in a million of them takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read_complete(folders: list[Path]) -> "tuple[tuple[list[_Entry], pa.Table, pa.Table], list[str]]":
    import pyarrow as pa
    import pyarrow.parquet as pq

    entries: list[_Entry] = []
    notes: list[str] = []
    counts: list[int] = []
    columns = _Columns()
    items: list[pa.Table] = []
    for folder in folders:
        try:
            config, contents = read_complete(folder)
            entry = _Entry(_info(folder.name, config, "complete", unseal(contents[COST])[0], folder), config)
            records = parse_lines(contents.get(MEASUREMENTS, b""))
            if ITEMS_TABLE in contents:
                table = pq.read_table(pa.BufferReader(contents[ITEMS_TABLE]), use_threads=False)
                items.append(_with_run(table, len(entries), entry.info))
            columns.add(records)
        except _UNREADABLE as error:
            notes.append(
                f"{folder.name} is damaged ({_why(error)}) and not read; `equipoise study run` sets it aside and redoes it."
            )
            continue
        counts.append(len(records))
        entries.append(entry)
    measured = columns.table([each.info for each in entries], counts)
    joined = pa.concat_tables([items_schema().empty_table(), *items]).unify_dictionaries()
    return (entries, measured, joined), notes


class _Columns:
    """Measurements of many runs, column by column."""

    def __init__(self) -> None:
        self.numerator: list[float] = []
        self.of: list[float] = []
        self.missing: list[int] = []
        self.order: list[int] = []
        self.outcome = _Codes()
        self.at = _Codes()
        self.where = _Codes()

    def add(self, records: list[dict[str, Any]]) -> None:
        """Add all of them, or raise and add none."""
        nan = math.nan
        numerator = [nan if each["value"] is None else float(each["value"]) for each in records]
        of = [nan if each["of"] is None else float(each["of"]) for each in records]
        missing = [int(each["missing"]) for each in records]
        order = [int(each["order"]) for each in records]
        outcome = self.outcome.texts_of([each["outcome"] for each in records])
        at = self.at.places_of([each["at"] for each in records])
        where = self.where.places_of([each["where"] for each in records])
        self.numerator += numerator
        self.of += of
        self.missing += missing
        self.order += order
        for codes, more in ((self.outcome, outcome), (self.at, at), (self.where, where)):
            codes.codes += more

    def table(self, runs: list[RunInfo], counts: list[int]) -> "pa.Table":
        import pyarrow as pa

        numerator, of = np.array(self.numerator, float), np.array(self.of, float)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.where(np.isnan(of), numerator, np.where(of > 0, numerator / of, math.nan))
        columns = [
            *_run_columns(runs, np.repeat(np.arange(len(runs)), counts)),
            self.outcome.array(),
            pa.array(value, pa.float64()),
            pa.array(numerator, pa.float64()),
            pa.array(of, pa.float64()),
            pa.array(self.missing, pa.int64()),
            self.at.array(),
            self.where.array(),
            pa.array(self.order, pa.int64()),
        ]
        return pa.Table.from_arrays(columns, schema=measurements_schema())


class _Codes:
    """A column of few different texts, as codes into a dictionary."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.known: dict[Any, int] = {}
        self.texts: dict[str, int] = {}

    def texts_of(self, values: list[str]) -> list[int]:
        """Their codes, to be added."""
        return [self.texts.setdefault(value, len(self.texts)) for value in values]

    def places_of(self, values: list[dict[str, Any]]) -> list[int]:
        """The same for places."""
        known, codes = self.known, []
        for value in values:
            key: Any = (*value.items(), *map(type, value.values()))  # 1, 1.0 and True are equal, and no one text
            try:
                code = known.get(key)
            except TypeError:  # a place that holds a list
                key = canonical(value)
                code = known.get(key)
            if code is None:
                code = known[key] = self.texts.setdefault(canonical(value), len(self.texts))
            codes.append(code)
        return codes

    def array(self) -> "pa.Array":
        import pyarrow as pa

        return pa.DictionaryArray.from_arrays(pa.array(self.codes, pa.int32()), pa.array(list(self.texts), pa.string()))


def _run_columns(runs: list[RunInfo], rows: np.ndarray) -> "list[pa.Array]":
    """Columns run, arm, point, seed, role for rows that belong to these runs."""
    import pyarrow as pa

    def coded(values: list[str]) -> pa.Array:
        names = {name: code for code, name in enumerate(dict.fromkeys(values))}
        codes = np.array([names[value] for value in values], np.int32)
        return pa.DictionaryArray.from_arrays(pa.array(codes[rows], pa.int32()), pa.array(list(names), pa.string()))

    def numbers(values: list[int]) -> np.ndarray:
        return np.array(values, np.int64)[rows]

    return [
        pa.array(rows, pa.int32()),
        coded([each.arm for each in runs]),
        pa.array(numbers([each.point for each in runs]), pa.int32()),
        pa.array(numbers([each.seed for each in runs]), pa.int64()),
        coded([each.role for each in runs]),
    ]


def _with_run(table: "pa.Table", index: int, info: RunInfo) -> "pa.Table":
    import pyarrow as pa

    before = _run_columns([info], np.zeros(table.num_rows, np.int64))
    before[0] = pa.array(np.full(table.num_rows, index), pa.int32())
    names = ["outcome", "item", "cluster", "score", "at", "where", "order"]
    columns = [*before, *(table[name].combine_chunks() for name in names)]
    return pa.table(columns, schema=items_schema())


def _read_partial(folder: Path) -> _Entry:
    """A run that is not complete. Raises FileNotFoundError when it has no config yet, others when that is damaged."""
    config = read_json(folder / CONFIG)
    key = folder.name.removesuffix(PARTIAL)
    if identify(config)[0] != key:
        raise WorkFailed(f"{CONFIG} describes another run, {identify(config)[0]}")
    cost = read_json(folder / COST) if (folder / COST).exists() else {"work": {}, "spent": {}}
    failure = read_failure(folder)
    state: State = "partial"
    if failure is not None:
        state = "gave up" if failure["state"] == "gave up" else "failed"
    return _Entry(_info(key, config, state, cost, folder, failure["error"] if failure else None), config)


def _info(
    key: str, config: dict[str, Any], state: State, cost: dict[str, Any], folder: Path, error: str | None = None
) -> RunInfo:
    return RunInfo(
        key=key,
        arm=config["arm"],
        kind=config["kind"],
        point=config["point"],
        settings=config["settings"],
        seed=config["seed"],
        role=config["role"],
        state=state,
        cost={"work": cost["work"], "spent": cost["spent"]},
        folder=folder,
        fingerprint=config["fingerprint"],
        error=error,
        threads=int(config["threads"]),
    )


# ---- the cache: what complete runs hold never changes, so it is read file by file once ---------------------


def _state_of(folders: list[Path]) -> str:
    """Digest over names, sizes and times of everything that is read: another one means another content."""
    digest = hashlib.sha256(b"3")  # the version of the cache
    for folder in folders:
        digest.update(folder.name.encode())
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name in (CONFIG, *RESULTS):
                stat = entry.stat()
                digest.update(f"{entry.name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}".encode())
    return digest.hexdigest()


def _from_cache(root: Path, state: str, folders: dict[str, Path]) -> "tuple[list[_Entry], pa.Table, pa.Table] | None":
    """What the cache holds; None when there is none of this state. Raises WorkFailed for a damaged one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    cache = root / CACHE
    try:
        content = read_json(cache / "runs.json")
        if content["state"] != state:
            return None
        entries = [
            _Entry(_info(each["key"], each["config"], "complete", each["cost"], folders[each["key"]]), each["config"])
            for each in content["runs"]
        ]
        tables = []
        for name, schema in (("measurements", measurements_schema()), ("items", items_schema())):
            data = read_regular(cache / f"{name}.parquet")
            if hashlib.sha256(data).hexdigest() != content["sha256"][name]:
                raise WorkFailed(f"{name}.parquet was altered")
            tables.append(pq.read_table(pa.BufferReader(data)).cast(schema))
    except FileNotFoundError:
        return None
    except _UNREADABLE as error:
        raise WorkFailed(_why(error)) from error
    return entries, tables[0], tables[1]


def _to_cache(root: Path, state: str, entries: list[_Entry], measurements: "pa.Table", items: "pa.Table") -> None:
    import pyarrow.parquet as pq

    cache = root / CACHE
    if cache.is_symlink():
        return  # to a folder that is not ours
    try:
        cache.mkdir(exist_ok=True)
        (cache / "runs.json").unlink(missing_ok=True)  # until all three belong together there is no cache
        for name, table in (("measurements", measurements), ("items", items)):
            produce_atomic(cache / f"{name}.parquet", lambda path, table=table: pq.write_table(table, path))
        content = {
            "state": state,
            "sha256": {name: sha256_file(cache / f"{name}.parquet") for name in ("measurements", "items")},
            "runs": [{"key": each.info.key, "config": each.config, "cost": each.info.cost} for each in entries],
        }
        write_atomic(cache / "runs.json", seal(content))
    except OSError:
        return  # a folder that cannot be written is read file by file, every time


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
