"""Reading stored runs: merging, versions that are not mixed, damage, and a cache that cannot lie."""

import dataclasses
import gc
import json
import math
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine_studies import SOURCE, restate, walk
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.study import registry
from equipoise.study import results as module
from equipoise.study.execute import run_study
from equipoise.study.results import load
from equipoise.study.scores import Scores
from equipoise.study.store import canonical


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
    assert not results.other_code and module.OTHER_CODE not in results.notes
    # With the code as it is gone from the store, the most complete version is what can be rendered, and that is said.
    monkeypatch.setattr("equipoise.study.fingerprint.code_of", lambda source: type("Code", (), {"digest": "new"}))
    results = load([done.out], done.study)
    assert len(results.runs) == 6 and results.other_code and module.OTHER_CODE in results.notes


def test_runs_of_a_study_that_was_edited_since_say_so(tmp_path, done):
    """Also where there is one version alone: its claims may have been written after its results."""
    assert load([done.out], done.study).notes == []
    path = tmp_path / "later" / "walk_study.py"
    path.parent.mkdir()
    path.write_text(SOURCE.replace('better("height", arm="up"', 'better("right", arm="up"'))
    edited = registry.load(str(path)).build()
    results = load([done.out], edited)
    assert len(results.runs) == 6 and results.other_code and results.notes == [module.OTHER_CODE]
    unknown = load([done.out], dataclasses.replace(edited, source=None))
    assert not unknown.other_code and unknown.notes == []


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


def test_copies_with_other_items_and_equal_means_are_named(tmp_path, done):
    shutil.copytree(done.out, tmp_path / "copy")
    folder = tmp_path / "copy" / "runs" / load([done.out], done.study).runs[0].key
    table = pq.read_table(folder / "items.parquet")
    scores = table["score"].to_numpy().copy()
    scores[0] = math.nan
    for note, column, how in ((True, scores, "zstd"), (False, table["score"].combine_chunks(), "gzip")):
        changed = table.set_column(table.column_names.index("score"), "score", pa.array(column))
        pq.write_table(changed, tmp_path / "items", compression=how)
        folder = restate(folder, {"items.parquet": (tmp_path / "items").read_bytes()})
        notes = load([done.out, tmp_path / "copy"], done.study).notes
        assert [each for each in notes if "measured twice with different values" in each] == notes and bool(
            notes
        ) == note


def test_a_folder_without_runs_is_refused(tmp_path, done):
    with pytest.raises(BadInput, match="holds no runs"):
        load([tmp_path], done.study)


def test_arms_that_name_a_place_by_an_int_and_a_float_keep_their_items(tmp_path):
    """Their places are one, so that items are paired, whatever the other arm's run stored before."""
    path = tmp_path / "walk_study.py"
    path.write_text(
        SOURCE.replace('at={"step": step + 1}', 'at={"step": (step + 1) * (1.0 if run.arm == "up" else 1)}')
    )
    done = run_study(registry.load(str(path)), out=tmp_path / "out", engine="inline")
    scores = Scores(done.study, load([done.out], done.study))
    assert sorted(scores.at_texts) == [f'{{"step": {step}}}' for step in (1, 2, 3, 4)]
    runs = scores.runs(["up", "flat"], [0, 1])
    cells = scores.cells(scores.places(runs, "right", scores.where("right", None), "last"))
    assert cells.items is not None and cells.matrix.shape == (4, 3)


def test_places_of_earlier_runs_keep_the_text_that_their_items_have():
    codes = module._Codes()
    places = [{"k": 1}, {"k": 1.0}, {"k": True}, {"k": 1}, {"k": [1]}, {"k": [1.0]}]
    codes.codes = codes.places_of(places)
    assert codes.array().to_pylist() == [canonical(place) for place in places]


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
