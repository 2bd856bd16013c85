"""Where runs live: one folder a run, plain files, told apart by name.

    OUT/study.json                      the study, its options, where and with what command it ran
    OUT/runs/KEY/                       a complete run, never written again
    OUT/runs/KEY.partial/               a run in progress, interrupted, failed or given up (failure.json says which)
    OUT/preparations/KEY[.partial]/     the same for preparations
    OUT/cache/                          everything read once, rebuilt when a folder changes
    OUT/set-aside/                      damaged folders, kept for a look, never read

    config.json         what the run is; once complete also the size and digest of every file; sealed by its own digest
    measurements.jsonl  one record a line, synced one by one
    items.jsonl         one line per call of run.items; items.parquet once complete
    cost.json           work (what the result needed), spent (all attempts), attempts
    checkpoint.safetensors  the run's own state, with size and digest of measurements and items when it was taken
    artifacts/  log.txt  traceback.txt  failure.json

A run is complete from the moment its config.json lists its files; the rename to its final name follows. Folders of the
same name hold the same run, so two outputs are merged by copying. Nothing in a folder is trusted as a path: files are read
by known names, and a link is damage.
"""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from equipoise.core.cost import Ledger
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import (
    FILES,
    Files,
    append_synced,
    lock,
    produce_atomic,
    read_regular,
    seal,
    set_aside,
    sha256_file,
    unseal,
    write_atomic,
)
from equipoise.core.options import check_fields, closed
from equipoise.core.state import load_state, save_state
from equipoise.study.fingerprint import fingerprint

PARTIAL = ".partial"
PREPARATION = "preparation"
STUDY = "study.json"
MEASUREMENTS, ITEMS, ITEMS_TABLE = "measurements.jsonl", "items.jsonl", "items.parquet"
CONFIG, COST, CHECKPOINT, FAILURE = "config.json", "cost.json", "checkpoint.safetensors", "failure.json"
TRACEBACK, LOG, ARTIFACTS, LOCK = "traceback.txt", "log.txt", "artifacts", "lock"
IDENTITY = ("study", "arm", "settings", "seed", "role", "options", "threads", "code")
STUDY_FIELDS = {"study": str, "options": dict, "threads": int}
RESULTS = (MEASUREMENTS, ITEMS_TABLE, COST)  # the files of a complete run that are read as results
HANDOVER = 30.0  # seconds that a run waits for an earlier process on the same folder to die

StoredState = Literal["absent", "resumable", "complete", "failed", "gave up"]


@dataclass(frozen=True)
class Task:
    """One unit of work as JSON values: what a worker needs to rebuild it, and what its folder says it is.

    `reference` finds the study (a name, or FILE:NAME); `needs` is the key of the preparation that must be complete
    first.
    """

    key: str
    role: Literal["test", "tuning", "preparation"]
    reference: str
    root: str
    options: dict[str, Any]
    seed: int
    fingerprint: str
    arm: str = ""
    point: int = 0
    needs: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    def to_json(self) -> dict[str, Any]:
        """The task as it is stored."""
        return asdict(self)


def read_study(root: Path) -> dict[str, Any]:
    """What study.json of an output folder says. Raises BadInput where there is none, or a damaged one."""
    try:
        content = read_json(root / STUDY)
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{root} holds no {STUDY}; give the --out folder of `equipoise study run`.") from None
    except ValueError as error:
        raise BadInput(f"{root / STUDY} is damaged ({error}); the command that made it writes it anew.") from None
    if not all(isinstance(content.get(name), kind) for name, kind in STUDY_FIELDS.items()):
        raise BadInput(f"{root / STUDY} was not written by `equipoise study run`; give its --out folder.")
    return content


def is_output(root: Path) -> bool:
    """Whether `equipoise study run` made what is in this folder: by its study.json or, without one, by a run in it."""
    try:
        read_study(root)
    except BadInput:
        return any(_describes_itself(folder) for home in ("runs", "preparations") for folder in (root / home).glob("*"))
    return True


def _describes_itself(folder: Path) -> bool:
    try:
        return identify(read_json(folder / CONFIG))[0] == folder.name.removesuffix(PARTIAL)
    except (OSError, ValueError, KeyError, TypeError):
        return False


class Store:
    """The output folder of a study."""

    def __init__(self, root: Path, files: Files = FILES) -> None:
        self.root, self.files = Path(root), files

    def folder(self, task: Task) -> Path:
        """Where the complete run or preparation is, or will be."""
        return self.home(task.role) / task.key

    def home(self, role: str) -> Path:
        return self.root / ("preparations" if role == PREPARATION else "runs")

    def state(self, task: Task) -> StoredState:
        """Told by name; a failure by its file."""
        final = self.folder(task)
        if final.is_dir():
            return "complete"
        partial = with_partial(final)
        if not partial.is_dir():
            return "absent"
        failure = read_failure(partial)
        if failure is None:
            return "resumable"
        return "gave up" if failure["state"] == "gave up" else "failed"

    def set_aside(self, folder: Path, reason: str) -> Path:
        """Move a damaged folder to set-aside/ under a numbered name, the reason beside it; returns where it is."""
        homes = self.home("test"), self.home(PREPARATION)
        target = set_aside(
            folder, made_by=lambda each: each.parent in homes, into=self.root / "set-aside", files=self.files
        )
        assert target is not None
        write_atomic(target.with_name(f"{target.name}.txt"), reason + "\n", files=self.files)
        return target

    def repair(self, task: Task) -> str | None:
        """Set a damaged complete folder aside; returns the sentence that says so, None when there was nothing to do.

        What a preparation left is read by the runs of its seed, so it is compared whole.
        """
        folder = self.folder(task)
        if not folder.is_dir():
            return None
        reason = damage(folder, artifacts=task.role == PREPARATION)
        if reason is None:
            return None
        target = self.set_aside(folder, reason)
        return f"{folder.name} is damaged ({reason}); set aside as {target}, to be run again."

    @closed
    def mark(self, task: Task, state: Literal["failed", "gave up"], error: str) -> None:
        """Write down how an unfinished run ended; for the engine, where the run itself could not."""
        partial = with_partial(self.folder(task))
        if partial.is_dir():
            write_failure(partial, state, error, self.files)


class Attempt:
    """One process at work on one run's folder, which it holds locked (see `take`)."""

    def __init__(self, folder: Path, final: Path, task: Task, files: Files) -> None:
        self.folder, self.final, self.task, self.files = folder, final, task, files
        self.notes: list[str] = []
        self._checkpoint = load_state(folder / CHECKPOINT) if (folder / CHECKPOINT).exists() else None
        cost = self._stored_cost()
        self.number = int(cost.get("attempts", 0)) + 1
        self.ledger = Ledger(spent=cost.get("spent"))
        self.order = 0
        self._digests = {name: hashlib.sha256() for name in (MEASUREMENTS, ITEMS)}  # of all lines that count
        if self._checkpoint is not None:
            for name, size in self._checkpoint["sizes"].items():
                if _size(folder / name) < size:
                    raise WorkFailed(f"{name} is shorter than its checkpoint says")
                if size:
                    self._digests[name].update((folder / name).read_bytes()[:size])
                if self._digests[name].hexdigest() != self._checkpoint["digests"][name]:
                    raise WorkFailed(f"{name} was altered")
        self._begun = False
        self._saved = -math.inf

    def _stored_cost(self) -> dict[str, Any]:
        """What earlier attempts spent; of a damaged file what the checkpoint knows, since the work itself is whole."""
        try:
            return read_json(self.folder / COST)
        except FileNotFoundError:
            return {}
        except ValueError as error:
            known = self._checkpoint or {"work": {}}
            self.notes.append(
                f"{self.folder.name}: {error}; what was spent is counted from the last checkpoint, the work goes on."
            )
            return known.get("cost", {"spent": known["work"]})

    def resume(self) -> dict[str, Any] | None:
        """Go back to the last checkpoint: its content, or None when there is none (the run starts from nothing)."""
        if self._begun:
            raise WorkFailed("resume() comes first: before anything is measured, booked or stored, and once.")
        self._begun = True
        stored = self._checkpoint
        sizes = stored["sizes"] if stored else {MEASUREMENTS: 0, ITEMS: 0}
        for name, size in sizes.items():
            if _size(self.folder / name) > size:
                self.files.truncate(self.folder / name, size)
        if stored is None:
            return None
        self.order = stored["order"]
        self.ledger.restore(stored["work"])
        return stored

    def begin(self) -> None:
        """Start from nothing unless `resume` was called: a run that ignores its checkpoint must not append to it."""
        if not self._begun:
            self._checkpoint = None
            self._digests = {name: hashlib.sha256() for name in self._digests}
            self.files.remove(self.folder / CHECKPOINT)
            self.resume()

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Add one record, synced; it counts from the moment this returns."""
        self.begin()
        ordered = {**record, "order": self.order}
        try:
            line = (json.dumps(ordered, ensure_ascii=False, allow_nan=False) + "\n").encode()
        except UnicodeEncodeError:  # half of a surrogate pair is no UTF-8
            line = (json.dumps(ordered, allow_nan=False) + "\n").encode()
        append_synced(self.folder / name, line, files=self.files)
        self._digests[name].update(line)
        self.order += 1

    def records(self, name: str) -> list[dict[str, Any]]:
        """What stands in measurements.jsonl or items.jsonl now."""
        return read_lines(self.folder / name)

    def checkpoint(self, content: dict[str, Any]) -> None:
        """Store `content` together with how far the files have come, in one atomic file."""
        self.begin()
        sizes = {name: _size(self.folder / name) for name in self._digests}
        digests = {name: digest.hexdigest() for name, digest in self._digests.items()}
        book = {"sizes": sizes, "digests": digests, "order": self.order, "work": self.ledger.work, "cost": self._cost()}
        self.save_cost()  # first: whoever dies in between has paid for what was lost, never less than the result needed
        save_state(self.folder / CHECKPOINT, {**content, **book}, files=self.files)
        self.files.sync_folder(self.folder)

    def save_cost(self, every: float = 0.0) -> None:
        """Write cost.json, unless that was done less than `every` seconds ago."""
        now = time.monotonic()
        if now - self._saved >= every:
            self._saved = now
            write_json(self.folder / COST, self._cost(), self.files)

    def _cost(self) -> dict[str, Any]:
        return {**self.ledger.to_json(), "attempts": self.number}

    def finish(self) -> Path:
        """Make the run complete; returns its final folder."""
        self.begin()
        if _size(self.folder / ITEMS):
            chunks = read_lines(self.folder / ITEMS)
            produce_atomic(self.folder / ITEMS_TABLE, lambda path: _write_items(chunks, path), files=self.files)
        self.save_cost()
        config = {**self.task.config, "files": _manifest(self.folder)}
        write_json(self.folder / CONFIG, config, self.files)
        publish(self.folder, self.final, self.files)
        return self.final

    def fail(self, error: str, traceback: str) -> None:
        """Say why this attempt failed; the run stays resumable."""
        self.save_cost()
        write_atomic(self.folder / TRACEBACK, traceback.encode("utf-8", "backslashreplace"), files=self.files)
        write_failure(self.folder, "failed", error, self.files)


@contextmanager
def take(store: Store, task: Task) -> Iterator[tuple[Attempt | None, list[str]]]:
    """Take the task's folder, alone: waits for an earlier process on it to die, sets a damaged one aside.

    Yields (None, notes) when the run is complete already, else the attempt; notes say what was set aside. Raises BadInput
    for a folder that is a link: what it leads to is not ours to write.
    """
    files, final = store.files, store.folder(task)
    partial = with_partial(final)
    notes: list[str] = []
    while True:
        for folder in (final, partial):
            if folder.is_symlink():
                raise BadInput(f"{folder} is a link; put the folder itself in its place, or remove the link.")
        if final.is_dir():
            yield None, notes
            return
        files.make_folder(partial)
        with lock(partial / LOCK, wait=HANDOVER, waiting_for=f"another process at work on {partial}"):
            if final.is_dir():  # finished while we waited
                shutil.rmtree(partial, ignore_errors=True)
                continue
            try:
                _refuse_links(partial)
                if _finished(partial):
                    publish(partial, final, files)
                    continue
                current = Attempt(partial, final, task, files)
            except (WorkFailed, ValueError, KeyError, TypeError, AttributeError) as error:
                target = store.set_aside(partial, str(error))
                notes.append(f"{partial.name} is damaged ({error}); set aside as {target}, started anew.")
                continue
            notes += current.notes
            for leftover in partial.glob(".*.tmp"):
                files.remove(leftover)
            files.remove(partial / FAILURE)
            if not (partial / CHECKPOINT).exists():  # starts from nothing, so without the files of a lost attempt
                files.remove(partial / ARTIFACTS)
            files.make_folder(partial / ARTIFACTS)
            write_json(partial / CONFIG, task.config, files)
            yield current, notes
            return


def publish(partial: Path, final: Path, files: Files) -> None:
    """The last steps of a complete run: drop what only an unfinished one needs, then give it its name."""
    for name in (ITEMS, CHECKPOINT, TRACEBACK, FAILURE, LOCK):
        files.remove(partial / name)
    files.replace(partial, final)
    files.sync_folder(final.parent)


def identify(config: Mapping[str, Any]) -> tuple[str, str]:
    """(key, fingerprint) of the run that a configuration describes; the key is its folder's name. Raises KeyError."""
    # The grid index is left out: it is where a setting stands in a list, not what the run is.
    digest = fingerprint(**{name: config[name] for name in IDENTITY})
    of = f"{config['arm']}-{config['point']}-" if config["arm"] else ""
    return f"{of}seed{config['seed']}-{digest[:12]}", digest


def read_complete(folder: Path, *, artifacts: bool = False) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The configuration of a complete run and the content of its results; of other files the size, and with `artifacts`
    the digest, are compared.

    Raises WorkFailed saying what is missing, altered, or of another run than the folder's name says.
    """
    contents: dict[str, bytes] = {}
    try:
        config = read_json(folder / CONFIG)
        if (folder.name.removesuffix(PARTIAL), config["fingerprint"]) != identify(config):
            raise WorkFailed(f"{CONFIG} describes another run, {identify(config)[0]}")
        unlisted = [name for name in RESULTS if name not in config["files"] and (folder / name).exists()]
        if unlisted:
            raise WorkFailed(f"{CONFIG} does not list {unlisted[0]}")
        for name, entry in config["files"].items():
            path = folder / name
            if name in RESULTS:
                contents[name] = read_regular(path)
            elif not name.startswith(f"{ARTIFACTS}/") or ".." in Path(name).parts:
                raise WorkFailed(f"{CONFIG} lists {name!r}, which is no file of a run")
            size = len(contents[name]) if name in contents else path.stat().st_size
            if size != entry["bytes"]:
                raise WorkFailed(f"{name} has {size} bytes instead of {entry['bytes']}")
            if name in contents:
                digest = hashlib.sha256(contents[name]).hexdigest()
            elif artifacts and "sha256" in entry:  # earlier versions stored the sizes of artifacts alone
                digest = sha256_file(path)
            else:
                continue
            if digest != entry["sha256"]:
                raise WorkFailed(f"{name} was altered")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WorkFailed(f"{Path(error.filename).name} is missing") from None
    except BadInput as error:
        raise WorkFailed(str(error)) from None
    except (KeyError, ValueError, TypeError, AttributeError):
        raise WorkFailed(f"{CONFIG} is not what a complete run holds") from None
    return config, contents


def damage(folder: Path, *, artifacts: bool = False) -> str | None:
    """Why a complete folder cannot be trusted: a file that is missing or altered. None when it is whole."""
    try:
        read_complete(folder, artifacts=artifacts)
    except WorkFailed as error:
        return str(error)
    return None


def with_partial(final: Path) -> Path:
    """The name of a run's folder while it is not complete."""
    return final.with_name(final.name + PARTIAL)


def read_json(path: Path) -> dict[str, Any]:
    """An object as `write_json` stores it. Raises ValueError naming the file when it holds none or was altered."""
    try:
        return unseal(read_regular(path))[0]
    except BadInput:
        raise
    except ValueError as error:
        raise ValueError(f"{path.name} was altered or is no JSON object") from error


def write_json(path: Path, content: Mapping[str, Any], files: Files = FILES) -> None:
    """Store an object for people to read, atomically, sealed by its digest."""
    write_atomic(path, seal(content, indent=2), files=files)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records in a file; [] when it is not there. ValueError names it."""
    if not path.exists():
        return []
    try:
        return parse_lines(read_regular(path))
    except BadInput:
        raise
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON Lines") from error


def parse_lines(data: bytes) -> list[dict[str, Any]]:
    """Records of JSON Lines, parsed at once. Raises ValueError."""
    return json.loads(b"[" + b",".join(data.splitlines()) + b"]")


def read_failure(partial: Path) -> dict[str, str] | None:
    """{"state": "failed" | "gave up", "error"} of an unfinished run that ended by itself, else None."""
    try:
        failure = read_json(partial / FAILURE)
        return {"state": str(failure["state"]), "error": str(failure["error"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError):
        return {"state": "failed", "error": f"{FAILURE} is damaged"}


def write_failure(partial: Path, state: str, error: str, files: Files) -> None:
    """Note in an unfinished run how it ended."""
    write_json(partial / FAILURE, {"state": state, "error": error}, files)


def _refuse_links(partial: Path) -> None:
    """Raises WorkFailed where writing to a file of an unfinished run would write to another one."""
    links = [each.name for each in os.scandir(partial) if each.is_symlink()]
    if links:
        raise WorkFailed(f"{links[0]} is a link")


def _finished(partial: Path) -> bool:
    """Whether a run was killed between its completion and its rename. Raises WorkFailed when it was damaged since.

    What an unfinished run is, its task knows: a damaged config.json is written anew, unless the run may have been complete.
    """
    try:
        if "files" not in read_json(partial / CONFIG):
            return False
    except FileNotFoundError:
        return False
    except ValueError:
        if (partial / CHECKPOINT).exists():
            return False
        raise
    reason = damage(partial)
    if reason is not None:
        raise WorkFailed(reason)
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of every file that must be whole."""
    artifacts = [path for path in sorted((folder / ARTIFACTS).rglob("*")) if path.is_file()]
    for path in artifacts:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    paths = [*(folder / name for name in RESULTS if (folder / name).exists()), *artifacts]
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in paths
    }


def _write_items(chunks: list[dict[str, Any]], path: Path) -> None:
    """Parquet from buffers: `pyarrow.array` imports pandas where there is one, half a second in every run."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts = [len(chunk["items"]) for chunk in chunks]

    def numbers(values: Any, kind: pa.DataType) -> pa.Array:
        array = np.asarray(values, kind.to_pandas_dtype())
        return pa.Array.from_buffers(kind, len(array), [None, pa.py_buffer(array)])

    def texts(values: list[str]) -> pa.Array:
        encoded = [value.encode() for value in values]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
        return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))

    def repeated(values: list[str]) -> pa.Array:
        codes = {value: code for code, value in enumerate(dict.fromkeys(values))}
        indices = np.repeat([codes[value] for value in values], counts)
        return pa.DictionaryArray.from_arrays(numbers(indices, pa.int32()), texts(list(codes)))

    scores = [math.nan if score is None else score for chunk in chunks for score in chunk["scores"]]
    columns = {
        "outcome": repeated([chunk["outcome"] for chunk in chunks]),
        "item": texts([item for chunk in chunks for item in chunk["items"]]),
        "cluster": texts([cluster for chunk in chunks for cluster in chunk["clusters"]]),
        "score": numbers(scores, pa.float64()),
        "at": repeated([canonical(chunk["at"]) for chunk in chunks]),
        "where": repeated([canonical(chunk["where"]) for chunk in chunks]),
        "order": numbers(np.repeat([chunk["order"] for chunk in chunks], counts), pa.int64()),
    }
    pq.write_table(pa.Table.from_arrays(list(columns.values()), names=list(columns)), path, compression="zstd")


def canonical(place: dict[str, Any] | None) -> str:
    """A place (`at`, `where`) as text that is equal exactly when the places are; "{}" for none."""
    return json.dumps(place or {}, sort_keys=True, ensure_ascii=False, allow_nan=False)
