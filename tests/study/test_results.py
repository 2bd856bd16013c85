"""Reading stored runs: merging, versions that are not mixed, damage, and a cache that cannot lie."""

import gc
import json
import math
import shutil

import pytest

from engine_studies import restate, walk
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.study import results as module
from equipoise.study.execute import run_study
from equipoise.study.results import load


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    monkeypatch.setattr("equipoise.core.files._sync", lambda path: None)


@pytest.fixture
def done(tmp_path):
    return run_study(walk(tmp_path), out=tmp_path / "out", engine="inline")


def content(results):
    return sorted(map(str, results.measurements.drop(["run"]).to_pylist())), sorted(
        map(str, results.items.drop(["run"]).to_pylist())
    )


def test_every_stored_number_is_in_the_tables(done):
    results = load([done.out], done.study)
    rows = results.measurements.to_pylist()
    for index, run in enumerate(results.runs):
        lines = [json.loads(line) for line in (run.folder / "measurements.jsonl").read_text().splitlines()]
        mine = [row for row in rows if row["run"] == index]
        assert [row["numerator"] for row in mine] == [line["value"] for line in lines]
        assert {(row["arm"], row["seed"], row["point"], row["role"]) for row in mine} == {
            (run.arm, run.seed, 0, "test")
        }
        assert [json.loads(row["at"]) for row in mine] == [line["at"] for line in lines]
        for row, line in zip(mine, lines, strict=True):
            if line["of"] is None:
                assert math.isnan(row["of"]) and row["value"] == line["value"]
            else:
                assert row["value"] == line["value"] / line["of"] and row["of"] == 3
    items = results.items.to_pylist()
    assert len(items) == 6 * 4 * 3
    sums = {}
    for item in items:
        key = item["run"], item["at"]
        sums[key] = sums.get(key, 0) + item["score"]
    assert sums == {(row["run"], row["at"]): row["numerator"] for row in rows if row["outcome"] == "right"}


def test_two_folders_merge_by_reading_or_by_copying(tmp_path, done):
    declaration = walk(tmp_path)
    first, second, copied = tmp_path / "first", tmp_path / "second", tmp_path / "copied"
    run_study(declaration, out=first, seeds=[0], engine="inline")
    run_study(declaration, out=second, seeds=[1], engine="inline")
    whole = load([done.out], done.study)
    for order in ([first, second], [second, first], [first, second, done.out]):
        merged = load(order, done.study)
        assert content(merged) == content(whole)
        assert [run.key for run in merged.runs] == [run.key for run in whole.runs]
        assert merged.notes == []
    shutil.copytree(first, copied)
    shutil.copytree(second, copied, dirs_exist_ok=True)
    assert content(load([copied], done.study)) == content(whole)
    assert run_study(declaration, out=copied, engine="inline").complete == 6


def test_the_cache_is_used_and_forgotten_when_anything_changes(done, monkeypatch):
    first = load([done.out], done.study)
    reads = []
    real = module._read_complete
    monkeypatch.setattr(module, "_read_complete", lambda folders: reads.append(len(folders)) or real(folders))
    second = load([done.out], done.study)
    assert reads == []
    assert content(first) == content(second) and first.runs == second.runs
    victim = first.runs[0].folder
    path = victim / "measurements.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    third = load([done.out], done.study)
    assert reads == [8]
    assert [note for note in third.notes if victim.name in note and "altered" in note]
    assert victim not in [run.folder for run in third.runs]
    shutil.rmtree(victim)
    assert len(load([done.out], done.study).runs) == 5
    assert reads == [8, 7]
    (done.out / "cache" / "measurements.parquet").write_bytes(b"PAR1")
    assert content(load([done.out], done.study)) == content(load([done.out], done.study))
    assert reads == [8, 7, 7]


def test_runs_of_other_code_are_named_and_not_mixed(tmp_path, done, monkeypatch):
    folder = load([done.out], done.study).runs[0].folder
    other = restate(shutil.copytree(folder, folder.with_name("other")), code="0" * 64)
    results = load([done.out], done.study)
    assert len(results.runs) == 6 and other not in [run.folder for run in results.runs]
    assert [note for note in results.notes if "1 complete run of another version of the code" in note]
    # With the code as it is gone from the store, the most complete version is what can be rendered.
    monkeypatch.setattr("equipoise.study.fingerprint.code_of", lambda source: type("Code", (), {"digest": "new"}))
    assert len(load([done.out], done.study).runs) == 6


def test_a_run_knows_its_threads(done):
    runs = load([done.out], done.study).runs
    assert gc.isenabled()  # switched off meanwhile
    assert {run.threads for run in runs} == {1}
    for run in runs:
        restate(run.folder, threads=2)
    assert [run.threads for run in load([done.out], done.study).runs] == [2] * len(runs)


def test_other_options_are_left_out(tmp_path, done):
    run_study(walk(tmp_path), {"steps": 2}, out=tmp_path / "short", engine="inline")
    results = load([done.out, tmp_path / "short"], done.study)
    assert len(results.runs) == 6
    assert any("of other studies or options left out" in note for note in results.notes)


def test_copies_that_differ_are_named(tmp_path, done):
    shutil.copytree(done.out, tmp_path / "copy")
    folder = tmp_path / "copy" / "runs" / load([done.out], done.study).runs[0].key
    lines = (folder / "measurements.jsonl").read_bytes()
    restate(folder, {"measurements.jsonl": lines.replace(b'"missing": 0', b'"missing": 1', 1)})
    results = load([done.out, tmp_path / "copy"], done.study)
    assert len(results.runs) == 6
    assert any("measured twice with different values" in note for note in results.notes)


def test_a_folder_without_runs_is_refused(tmp_path, done):
    with pytest.raises(BadInput, match="holds no runs"):
        load([tmp_path], done.study)


def test_a_run_under_way_whose_settings_are_anothers_is_damaged(done):
    complete = sorted(path.parent for path in done.out.rglob("config.json"))[0]
    folder = complete.with_name(complete.name[:-1] + "x.partial")
    folder.mkdir()
    shutil.copy(complete / "config.json", folder)
    with pytest.raises(WorkFailed, match=f"another run, {complete.name}"):
        module._read_partial(folder)
    mine = complete.with_name(complete.name + ".partial")
    folder.rename(mine)
    assert module._read_partial(mine) is not None
