"""Reading stored runs: merging, versions that are not mixed, damage, and a cache that cannot lie."""

import dataclasses
import gc
import json
import math
import shutil
from pathlib import Path

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


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        ("", True),
        ("equipoise study run sago --set steps=200", True),
        ("equipoise study run 'my file.py'", True),
        ("equipoise  study run sago", False),
        ("equipoise study run sago; ls", False),
        ("equipoise study run $(ls)", False),
        ("equipoise study show sago", False),
        ("sh study run", False),
        ("equipoise study run 'sago", False),
        (3, False),
    ],
)
def test_a_stored_command_is_one_of_this_program_or_not_shown(command, ours):
    assert module._is_ours(command) is ours


def test_how_many_in_words():
    assert [module._count(number, "run") for number in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


def entry(key, state="complete", *, role="test", code="c", threads=1, folder="one"):
    config = {"code": code, "threads": threads, "files": {}, "study": "s", "options": {}}
    info = module.RunInfo(key, "a", "method", 0, {}, 0, role, state, {}, Path(folder), "f")
    return module._Entry(info, config)


def test_of_copies_the_most_finished_is_kept_and_runs_come_before_preparations():
    states = ("failed", "gave up", "partial", "complete")
    kept = {}
    for first in states:
        for second in states:
            two = [entry("k", first, folder="one"), entry("k", second, folder="two")]
            (one,), position = module._without_copies(two, [])
            kept[first, second] = two.index(one)
            assert position == {id(one): 0}
    later = {("failed", "partial"), ("failed", "complete"), ("gave up", "partial"), ("gave up", "complete")}
    assert {pair for pair, index in kept.items() if index == 1} == later | {("partial", "complete")}
    several = [entry("z", role="preparation"), entry("b", role="tuning"), entry("c"), entry("a", role="tuning")]
    order, position = module._without_copies(several, [])
    assert [each.info.key for each in order] == ["c", "a", "b", "z"]
    assert [position[id(each)] for each in several] == [3, 2, 0, 1]


def test_which_version_counts_and_what_is_said_of_the_others(monkeypatch):
    monkeypatch.setattr("equipoise.study.fingerprint.code_of", lambda source: type("Code", (), {"digest": "now"}))
    study = type("Named", (), {"source": "study.py"})
    old = [entry(f"o{n}", code="old") for n in range(3)]
    own = [entry("n0", code="now"), entry("n1", code="now"), entry("n1", "partial", code="now", threads=2)]
    unfinished = [entry("u", "partial", code="now"), entry("p", code="now", role="preparation")]

    def chosen(entries):
        notes = []
        found, other = module._one_version(entries, study, notes)
        return [each.info.key for each in found], other, [note.partition(";")[0] for note in notes]

    left = "3 complete runs of another version of the code left out"
    assert chosen([*old, *own]) == (["n0", "n1"], False, [left, "0 complete runs of 2 threads left out"])
    keys, other, notes = chosen([*unfinished, *old])
    assert (keys, other, notes[0]) == (
        (["o0", "o1", "o2"], True, "0 complete runs of another version of the code left out")
    )
    assert notes[1] == module.OTHER_CODE.partition(";")[0]
    assert chosen(unfinished) == (["u", "p"], False, [])
    threads = [entry("a", code="now", threads=2), entry("b", code="now"), entry("c", code="now")]
    assert chosen(threads) == (["b", "c"], False, ["1 complete run of 2 threads left out"])
    even = [entry("a", code="now", threads=2), entry("b", code="now")]
    assert chosen(even)[0] == chosen(even[::-1])[0] == ["a"]  # whatever the order of the folders
    assert chosen([]) == ([], False, [])


def test_what_is_damaged_first_keeps_the_others_from_nothing(done):
    first = sorted((done.out / "runs").iterdir())[0]
    (first / "cost.json").write_text("{")
    results = load([done.out], done.study)
    assert len(results.runs) == 5 and len(results.notes) == 1
    assert results.notes[0].startswith(f"{first.name} is damaged (") and results.notes[0].endswith("redoes it.")
    rows = results.measurements.to_pylist()
    assert {row["run"] for row in rows} == set(range(5)) and len(rows) == 5 * 8


def test_runs_of_another_study_of_equal_options_are_left_out(done):
    restate(load([done.out], done.study).runs[0].folder, study="other")
    results = load([done.out], done.study)
    assert len(results.runs) == 5 and results.notes == ["1 folder of other studies or options left out."]
