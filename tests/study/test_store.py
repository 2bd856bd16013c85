"""The folder of a run: at every moment absent, resumable or complete, whatever fails, and never different."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from equipoise.core.files import Files, atomic_folder
from equipoise.study import store as store_module
from equipoise.study.store import ITEMS, MEASUREMENTS, Store, Task, canonical, damage, identify, take, with_partial


def task_in(root, **changes) -> Task:
    config = {"study": "s", "arm": "a", "settings": {}, "seed": 0, "role": "test", "options": {}, "threads": 1}
    config |= {"kind": "method", "point": 0, "code": "c" * 64, **changes}
    key, digest = identify(config)
    return Task(key, "test", "none", str(root), {}, 0, digest, "a", config={**config, "fingerprint": digest})


STEPS = 5


def work(store, task, die_after=None):
    """A run of five steps that checkpoints every second one."""
    with take(store, task) as (attempt, notes):
        if attempt is None:
            return notes
        state = (attempt.resume() or {"state": {"step": 0, "x": np.zeros(2)}})["state"]
        for step in range(state["step"], STEPS):
            if step == die_after:
                raise KeyboardInterrupt
            x = state["x"] + step
            attempt.append(MEASUREMENTS, {"outcome": "o", "value": float(x[0]), "at": {"step": step}})
            chunk = {"items": ["i", "j"], "clusters": ["", ""], "scores": [1.0, None], "at": {"step": step}}
            attempt.append(ITEMS, {"outcome": "o", "where": {}, **chunk})
            attempt.ledger.add("build", {"optimizer_steps": 1})
            state = {"step": step + 1, "x": x}
            if step % 2:
                attempt.checkpoint({"state": state})
        attempt.finish()
    return notes


def outcome(store, task):
    """What counts of a complete run."""
    folder = store.folder(task)
    return (folder / MEASUREMENTS).read_bytes(), pq.read_table(folder / "items.parquet").to_pydict()


@pytest.fixture
def expected(tmp_path):
    store = Store(tmp_path / "quiet")
    task = task_in(store.root)
    work(store, task)
    return str(outcome(store, task))


def test_the_state_is_told_by_name(tmp_path):
    store, task = Store(tmp_path), task_in(tmp_path)
    assert store.state(task) == "absent"
    with pytest.raises(KeyboardInterrupt):
        work(store, task, die_after=3)
    assert store.state(task) == "resumable"
    store.mark(task, "gave up", "stood still")
    assert store.state(task) == "gave up"
    work(store, task)
    assert store.state(task) == "complete"
    assert [each.name for each in (tmp_path / "runs").iterdir()] == [task.key]
    names = {each.name for each in store.folder(task).iterdir()}
    assert names == {"config.json", "cost.json", "measurements.jsonl", "items.parquet", "artifacts"}


def test_a_resumed_run_is_equal_and_its_lost_steps_are_spent_only(tmp_path, expected):
    store, task = Store(tmp_path / "out"), task_in(tmp_path / "out")
    for die_after in (1, 3, 4):  # the checkpoints are after steps 2 and 4: one step, then one step is lost
        with pytest.raises(KeyboardInterrupt):
            work(store, task, die_after)
        with take(store, task) as (attempt, _):
            attempt.save_cost()
    work(store, task)
    assert str(outcome(store, task)) == expected
    assert outcome(store, task)[1]["score"][0] == 1.0
    assert np.isnan(outcome(store, task)[1]["score"][1])
    cost = json.loads((store.folder(task) / "cost.json").read_text())
    assert cost["work"] == {"build": {"optimizer_steps": STEPS}}
    # Six that could count themselves: the first was killed before it had stored anything.
    assert cost["attempts"] == 6


def test_whoever_dies_at_a_checkpoint_has_spent_what_it_holds(tmp_path):
    class Dies(Files):
        def sync_folder(self, path):
            if any(path.glob("checkpoint.safetensors")):
                raise KeyboardInterrupt
            super().sync_folder(path)

    task = task_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        work(Store(tmp_path, files=Dies()), task)
    work(Store(tmp_path), task)
    cost = json.loads((Store(tmp_path).folder(task) / "cost.json").read_text())
    assert cost["spent"] == cost["work"] == {"build": {"optimizer_steps": STEPS}}


class Failing(Files):
    """Fails the k-th operation: by an error, by a write cut short, or by ending the process."""

    def __init__(self, at, how):
        self.at, self.how, self.count = at, how, 0

    def _step(self):
        self.count += 1
        if self.count == self.at:
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(28, "No space left on device")

    def produce(self, path, writer):
        if self.how == "short" and self.count + 1 == self.at:
            super().produce(path, writer)
            os.truncate(path, path.stat().st_size // 2)
        self._step()
        super().produce(path, writer)

    def append(self, path, data):
        if self.how == "short" and self.count + 1 == self.at:
            super().append(path, data[: len(data) // 2])
        self._step()
        super().append(path, data)

    def truncate(self, path, size):
        self._step()
        super().truncate(path, size)

    def replace(self, source, target):
        self._step()
        super().replace(source, target)

    def make_folder(self, path):
        self._step()
        super().make_folder(path)

    def remove(self, path):
        self._step()
        super().remove(path)

    def sync_folder(self, path):
        self._step()
        super().sync_folder(path)


@pytest.fixture
def fast_disk(monkeypatch):
    """Whether a sync reaches the disk is not what these tests ask."""
    monkeypatch.setattr("equipoise.core.files._sync", lambda path: None)


@pytest.mark.parametrize("how", ["raise", "short"])
def test_whichever_operation_fails_the_run_is_resumable_or_complete_and_never_different(
    tmp_path, expected, fast_disk, how
):
    at = 0
    while True:
        at += 1
        root = tmp_path / f"{how}-{at}"
        files = Failing(at, how)
        task = task_in(root)
        try:
            work(Store(root, files), task)
        except OSError:
            pass
        else:
            break
        store = Store(root)
        assert store.state(task) in ("absent", "resumable", "complete")
        if store.state(task) == "complete":
            assert damage(store.folder(task)) is None
        assert work(store, task) == []
        assert str(outcome(store, task)) == expected, f"operation {at}"
        assert [each.name for each in (root / "runs").iterdir()] == [task.key]
    assert at > 30


def test_whichever_operation_the_process_dies_in(tmp_path, expected, fast_disk):
    at = 0
    while True:
        at += 1
        root = tmp_path / f"die-{at}"
        task = task_in(root)
        pid = os.fork()
        if pid == 0:
            work(Store(root, Failing(at, "die")), task)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        store = Store(root)
        assert work(store, task) == []
        assert str(outcome(store, task)) == expected, f"operation {at}"
    assert at > 30


@pytest.mark.parametrize(
    ("name", "harm", "reason"),
    [
        ("measurements.jsonl", lambda data: data[:-9], "measurements.jsonl has"),
        ("measurements.jsonl", lambda data: data.replace(b"1.0", b"9.0"), "measurements.jsonl was altered"),
        ("items.parquet", lambda data: data[:-4], "items.parquet has"),
        ("cost.json", lambda data: b"x" * len(data), "cost.json was altered"),
        ("config.json", lambda data: data[:-4], "config.json is not what"),
        ("config.json", lambda data: b"[]", "config.json is not what"),
        ("measurements.jsonl", None, "measurements.jsonl is missing"),
        ("artifacts/model.bin", lambda data: data[:-1], "artifacts/model.bin has 3 bytes instead of 4"),
    ],
)
def test_a_damaged_complete_run_is_named_set_aside_and_done_again(tmp_path, expected, name, harm, reason):
    store, task = Store(tmp_path / "out"), task_in(tmp_path / "out")
    with take(store, task) as (attempt, _):
        (attempt.folder / "artifacts" / "model.bin").write_bytes(b"1234")
    with pytest.raises(KeyboardInterrupt):
        work(store, task, die_after=2)
    (with_partial(store.folder(task)) / "artifacts" / "model.bin").write_bytes(b"1234")
    work(store, task)
    path = store.folder(task) / name
    if harm is None:
        path.unlink()
    else:
        path.write_bytes(harm(path.read_bytes()))
    said = store.repair(task)
    assert said is not None and reason in said
    aside = tmp_path / "out" / "set-aside" / f"{task.key}.old-1"
    assert aside.is_dir() and reason in aside.with_name(f"{aside.name}.txt").read_text()
    assert store.state(task) == "absent"
    work(store, task)
    assert store.repair(task) is None
    assert str(outcome(store, task)) == expected


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("checkpoint.safetensors", lambda data: data[:-1]),
        ("measurements.jsonl", lambda data: data[:20]),
        ("measurements.jsonl", lambda data: b"{" + data[1:].replace(b"}", b"x", 1)),
    ],
)
def test_a_damaged_unfinished_run_starts_anew_and_says_so(tmp_path, expected, name, harm):
    store, task = Store(tmp_path / "out"), task_in(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        work(store, task, die_after=3)
    path = with_partial(store.folder(task)) / name
    path.write_bytes(harm(path.read_bytes()))
    notes = work(store, task)
    assert len(notes) == 1 and "is damaged" in notes[0] and "set-aside" in notes[0]
    assert (tmp_path / "out" / "set-aside" / f"{task.key}.partial.old-1" / name).exists()
    assert str(outcome(store, task)) == expected


@pytest.mark.parametrize("name", ["cost.json", "config.json"])
def test_the_work_of_an_unfinished_run_is_kept_where_only_its_book_is_damaged(tmp_path, expected, name):
    store, task = Store(tmp_path / "out"), task_in(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        work(store, task, die_after=3)
    path = with_partial(store.folder(task)) / name
    path.write_bytes(path.read_bytes().replace(b"1", b"7").replace(b'"s"', b'"t"'))
    notes = work(store, task)
    told = f"{task.key}.partial: cost.json was altered or is no JSON object; what was spent is counted from the last"
    assert [note.partition(" checkpoint")[0] for note in notes] == ([told] if name == "cost.json" else [])
    assert not (tmp_path / "out" / "set-aside").exists()
    assert str(outcome(store, task)) == expected
    cost = json.loads((store.folder(task) / "cost.json").read_text())
    assert cost["attempts"] == 2
    assert cost["work"] == {"build": {"optimizer_steps": STEPS}}
    assert cost["spent"]["build"]["optimizer_steps"] == STEPS


def test_a_torn_line_behind_the_checkpoint_is_no_damage(tmp_path, expected):
    store, task = Store(tmp_path / "out"), task_in(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        work(store, task, die_after=3)
    with (with_partial(store.folder(task)) / MEASUREMENTS).open("ab") as file:
        file.write(b'{"outcome": "o", "val')
    assert work(store, task) == []
    assert str(outcome(store, task)) == expected


@pytest.mark.parametrize(
    ("name", "line", "altered"),
    [(MEASUREMENTS, b'"value": 0.0', b'"value": 7.0'), (ITEMS, b'"scores": [1.0', b'"scores": [7.0')],
)
def test_an_altered_line_before_the_checkpoint_is_damage(tmp_path, expected, name, line, altered):
    """Still JSON, still a number: only its digest, which the checkpoint holds, tells that it is another one."""
    store, task = Store(tmp_path / "out"), task_in(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        work(store, task, die_after=3)
    path = with_partial(store.folder(task)) / name
    data = path.read_bytes()
    assert line in data
    path.write_bytes(data.replace(line, altered, 1))
    (note,) = work(store, task)
    assert f"is damaged ({name} was altered)" in note
    assert str(outcome(store, task)) == expected


def test_a_run_that_ignores_its_checkpoint_has_none_any_more(tmp_path):
    store, task = Store(tmp_path), task_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        work(store, task, die_after=3)
    with take(store, task) as (attempt, _):
        attempt.append(MEASUREMENTS, {"outcome": "o"})
        assert len(attempt.records(MEASUREMENTS)) == 1
    with take(store, task) as (attempt, _):
        assert attempt.resume() is None and attempt.records(MEASUREMENTS) == []


def test_nothing_gets_its_name_before_it_is_on_the_disk(tmp_path, monkeypatch):
    """What a power cut would show: content is synced, then renamed, then the folder of the new name is synced."""
    synced = set()
    monkeypatch.setattr("equipoise.core.files._sync", lambda path: synced.add(path.stat().st_ino))

    class Watching(Files):
        def replace(self, source, target):
            content = [path for path in (source, *source.rglob("*")) if path.is_file()]
            assert content and {path.stat().st_ino for path in content} <= synced, target
            super().replace(source, target)

    with atomic_folder(tmp_path / "model", files=Watching()) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_bytes(b"1")
    assert tmp_path.stat().st_ino in synced
    store, task = Store(tmp_path / "out", Watching()), task_in(tmp_path / "out")
    work(store, task)
    assert store.folder(task).parent.stat().st_ino in synced


def test_files_are_readable_and_not_executable(tmp_path):
    store, task = Store(tmp_path), task_in(tmp_path, study="größer")
    with pytest.raises(KeyboardInterrupt):
        work(store, task, die_after=2)
    folder = with_partial(store.folder(task))
    assert "größer" in (folder / "config.json").read_text(encoding="utf-8")
    assert {each.name for each in folder.iterdir() if each.is_file() and each.stat().st_mode & 0o111} == set()
    work(store, task)
    assert "größer" in (store.folder(task) / "config.json").read_text(encoding="utf-8")


def test_a_place_is_the_same_whatever_the_order_of_its_keys():
    assert canonical({"step": 1, "split": "früh"}) == canonical({"split": "früh", "step": 1})
    assert canonical({"step": 1}) != canonical({"step": 2})
    assert canonical(None) == canonical({}) == "{}"
    assert canonical({"split": "früh"}) == '{"split": "früh"}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"radius": math.nan})


def test_files_of_a_lost_attempt_stay_only_with_its_checkpoint(tmp_path):
    store, task = Store(tmp_path), task_in(tmp_path)
    with take(store, task) as (attempt, _):
        (attempt.folder / "artifacts" / "half.bin").write_bytes(b"1")
    with take(store, task) as (attempt, _):
        assert list((attempt.folder / "artifacts").iterdir()) == []
        (attempt.folder / "artifacts" / "kept.bin").write_bytes(b"1")
        attempt.checkpoint({})
    with take(store, task) as (attempt, _):
        assert [each.name for each in (attempt.folder / "artifacts").iterdir()] == ["kept.bin"]


def test_a_second_process_waits_for_the_first_and_finds_it_done(tmp_path, expected):
    store, task = Store(tmp_path / "out"), task_in(tmp_path / "out")
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); import test_store as t;"
        "from equipoise.study.store import Store; s = Store(Path(sys.argv[1])); print(t.work(s, t.task_in(s.root)))"
    )
    with take(store, task) as (attempt, _):
        arguments = [sys.executable, "-c", code, str(store.root), str(Path(__file__).parent)]
        other = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=1.5)
        assert attempt.number == 1
    assert other.communicate(timeout=30)[0] == "[]\n"
    assert str(outcome(store, task)) == expected


def test_a_run_that_another_process_finishes_meanwhile_is_complete(tmp_path, monkeypatch):
    """Whoever waited for the folder finds the run done, and nothing of it under way."""
    store, task = Store(tmp_path), task_in(tmp_path)
    final = store.folder(task)
    waited = []

    @contextlib.contextmanager
    def lock(path, *, wait, waiting_for):
        waited.append((path, str(path.parent) in waiting_for))
        final.mkdir()
        yield

    monkeypatch.setattr(store_module, "lock", lock)
    with take(store, task) as (attempt, notes):
        assert (attempt, notes) == (None, [])
    assert waited == [(with_partial(final) / store_module.LOCK, True)]
    assert final.is_dir() and not with_partial(final).exists()
