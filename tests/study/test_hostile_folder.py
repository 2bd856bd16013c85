"""Output folders as somebody else, a bad disk or a mistaken command leaves them: nothing of theirs runs, is lost or lies."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from engine_studies import walk
from equipoise.cli import main
from equipoise.core.errors import BadInput
from equipoise.study.execute import run_study
from equipoise.study.results import load
from equipoise.study.store import damage, is_output, read_json, write_json


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    monkeypatch.setattr("equipoise.core.files._sync", lambda path: None)


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A study with its output, made once; nothing changes it."""
    home = tmp_path_factory.mktemp("walked")
    return run_study(walk(home), {"steps": 2}, out=home / "out", seeds=[0], engine="inline")


@pytest.fixture
def out(walked, tmp_path):
    return Path(shutil.copytree(walked.out, tmp_path / "out"))


def study(*words):
    return main(["study", *map(str, words)])


def content(folder):
    """Everything below a folder: names, links, bytes."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink())
        if path.is_symlink()
        else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


# Code in data


@pytest.mark.parametrize("command", ["report", "compare"])
@pytest.mark.parametrize("named", ["walk", "{evil}", "{evil}:walk", "../../evil", "sago"])
def test_no_stored_name_imports_a_file(out, tmp_path, capsys, command, named):
    evil, ran = tmp_path / "evil.py", tmp_path / "ran"
    evil.write_text(f"open({str(ran)!r}, 'w')\n")
    stored = read_json(out / "study.json")
    write_json(out / "study.json", {**stored, "study": named.format(evil=evil), "reference": f"{evil}:walk"})
    assert study(command, out, *([out] if command == "compare" else [])) == 2
    assert not ran.exists()
    said = capsys.readouterr().err
    if named == "sago":  # the installed study, which has other options
        assert "Study 'sago': there is no option" in said
    else:
        assert "which is no installed study" in said
        assert "--study ./FILE.py" in said


@pytest.mark.parametrize(
    "command",
    [
        "rm -rf ~",
        "equipoise study run sago; curl x | sh",
        "equipoise study run $(id)",
        "x equipoise study run",
        7,
        ["a"],
    ],
)
def test_a_command_of_somebody_else_is_not_shown_as_what_to_type(walked, out, command):
    stored = read_json(out / "study.json")
    write_json(out / "study.json", {**stored, "environment": {"cpu": "fast", "command": command}})
    results = load([out], walked.study)
    assert results.environment == {"cpu": "fast", "command": ""}
    assert any("names no command of this program" in note for note in results.notes)
    ours = "equipoise study run './my walk.py' --bad ''"
    write_json(out / "study.json", {**stored, "environment": {"command": ours}})
    assert load([out], walked.study).environment == {"command": ours}


def test_a_listed_path_outside_the_run_is_not_read(out):
    folder = next((out / "runs").glob("up-*"))
    stored = read_json(folder / "config.json")
    assert damage(folder) is None
    for name in ("/dev/zero", "../../../secret", "artifacts/../../../secret", "study.json"):
        files = {**stored["files"], name: {"bytes": 0, "sha256": "0" * 64}}
        write_json(folder / "config.json", {**stored, "files": files})
        assert f"lists {name!r}, which is no file of a run" in str(damage(folder))


@pytest.mark.parametrize("name", ["study.json", "config.json", "measurements.jsonl", "cache/items.parquet"])
def test_a_pipe_in_a_folder_stops_nothing(walked, out, name):
    load([out], walked.study)  # makes the cache
    path = next((out / "runs").glob("up-*")) / name
    path = path if path.exists() else out / name
    path.unlink()
    os.mkfifo(path)
    results = load([out], walked.study)
    assert any(str(path.name) in note for note in results.notes)
    assert len(results.runs) == (2 if "runs" in path.parts else 3)


def test_links_in_a_folder_write_nowhere_else(walked, out, tmp_path):
    """A run that goes on, and the cache, write beneath the folder or not at all."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "notes.txt").write_text("mine")
    (theirs / "items.parquet").write_text("mine")
    before = content(theirs)
    folder = next((out / "runs").glob("up-*"))
    partial = folder.with_name(f"{folder.name}.partial")
    folder.rename(partial)
    (partial / "measurements.jsonl").unlink()
    (partial / "measurements.jsonl").symlink_to(theirs / "notes.txt")
    (out / "cache").symlink_to(theirs)
    again = run_study(walk(walked.study.source.parent), {"steps": 2}, out=out, seeds=[0], engine="inline")
    assert any("measurements.jsonl is a link" in note for note in again.notes)
    assert len(load([out], walked.study).runs) == 3
    assert content(theirs) == before
    shutil.rmtree(folder)
    partial.symlink_to(theirs)
    with pytest.raises(BadInput, match="is a link"):
        run_study(walk(walked.study.source.parent), {"steps": 2}, out=out, seeds=[0], engine="inline")
    assert content(theirs) == before


# The user's own files


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "holds", [["lock"], ["lock", "data.csv"], ["runs/mine.txt"], ["study.json"], ["runs/a/config.json"]]
)
def test_a_folder_that_no_study_made_stays_as_it_is(walked, tmp_path, capsys, fresh, holds):
    theirs = tmp_path / "theirs"
    for name in holds:
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        (theirs / name).write_text('{"name": "of the user"}')
    before = content(theirs)
    flags = ["--fresh"] if fresh else []
    assert study("run", walked.study.source, "--steps", 2, "--engine", "inline", "--out", theirs, *flags) == 2
    assert "holds something else" in capsys.readouterr().err
    assert content(theirs) == before
    assert not is_output(theirs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]


def test_fresh_sets_aside_what_a_study_made(walked, out, tmp_path):
    before = content(out / "runs")
    declaration = walk(walked.study.source.parent)
    for number in (1, 2):
        run_study(declaration, {"steps": 2}, out=out, seeds=[0], arms=["up"], engine="inline", fresh=True)
        assert (tmp_path / f"out.old-{number}").is_dir()
    assert content(tmp_path / "out.old-1" / "runs") == before


def test_fresh_never_moves_the_working_folder_or_an_input(walked, out, tmp_path, monkeypatch):
    declaration = walk(walked.study.source.parent)
    before = content(out)
    monkeypatch.chdir(out / "runs")
    with pytest.raises(BadInput, match="holds the working folder"):
        run_study(declaration, {"steps": 2}, out=out, engine="inline", fresh=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"holds the input .*marks\.txt"):
        run_study(declaration, {"steps": 2, "marks": str(out / "marks.txt")}, out=out, engine="inline", fresh=True)
    (out / "walk_study.py").write_bytes(walked.study.source.read_bytes())
    with pytest.raises(BadInput, match=r"holds the input .*walk_study.py"):
        run_study(walk(out), {"steps": 2}, out=out, engine="inline", fresh=True)
    (out / "walk_study.py").unlink()
    assert {name: data for name, data in content(out).items() if "pycache" not in name} == before


def test_a_damaged_study_json_costs_no_run(walked, out, capsys):
    path = out / "study.json"
    path.write_bytes(path.read_bytes().replace(b'"steps": 2', b'"steps": 3'))
    assert study("report", out, "--study", walked.study.source) == 2
    assert f"{path} is damaged" in capsys.readouterr().err
    assert load([out], walked.study).notes[0].startswith(f"{path} is damaged")
    again = run_study(walk(walked.study.source.parent), {"steps": 2}, out=out, seeds=[0], engine="inline")
    assert again.complete == 3
    assert read_json(path)["options"]["steps"] == 2


# Bits that flip


def flipped(path, chance):
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def told(results):
    """What a report is made from."""
    runs = [(run.key, run.arm, run.seed, run.settings, run.cost) for run in results.runs]
    return repr((runs, results.measurements.to_pylist(), results.items.to_pylist()))


@pytest.mark.parametrize("name", ["config.json", "cost.json", "measurements.jsonl", "items.parquet"])
def test_no_flipped_bit_of_a_run_is_read_as_another_result(walked, out, name):
    shutil.rmtree(out / "cache", ignore_errors=True)
    folder = next((out / "runs").glob("up-*"))
    whole, expected = (folder / name).read_bytes(), told(load([out], walked.study))
    chance, named = random.Random(11), 0
    for _ in range(40):
        flipped(folder / name, chance)
        results = load([out], walked.study)
        assert len(results.runs) in (2, 3)
        if len(results.runs) == 2:
            assert any(folder.name in note and "damaged" in note for note in results.notes)
            named += 1
        else:
            assert told(results) == expected
        (folder / name).write_bytes(whole)
    assert named >= 35


@pytest.mark.parametrize("name", ["runs.json", "measurements.parquet", "items.parquet"])
def test_no_flipped_bit_of_the_cache_is_read_as_another_result(walked, out, name):
    expected = told(load([out], walked.study))
    path = out / "cache" / name
    chance, named = random.Random(12), 0
    for _ in range(40):
        flipped(path, chance)
        results = load([out], walked.study)
        assert told(results) == expected
        named += any("cache is damaged" in note for note in results.notes)
    assert named >= 30
    assert load([out], walked.study).notes == []


def test_a_run_under_another_name_or_of_other_settings_is_not_that_run(walked, out):
    """Without a seal, as earlier versions stored it, the folder's name still tells."""
    folder = next((out / "runs").glob("up-*"))
    stored = read_json(folder / "config.json")
    for change in (
        {"arm": "flat"},
        {"seed": 1},
        {"settings": {"drift": 9}},
        {"options": {}},
        {"threads": 2},
        {"point": 1},
    ):
        (folder / "config.json").write_text(json.dumps({**stored, **change}))
        assert "describes another run" in str(damage(folder)), change
    (folder / "config.json").write_text(json.dumps(stored))
    assert damage(folder) is None
    (folder / "config.json").write_text(json.dumps({**stored, "files": {}}))
    assert "does not list measurements.jsonl" in str(damage(folder))


def test_an_altered_preparation_is_prepared_again(walked, out):
    before = load([out], walked.study).measurements.column("value")
    prepared = next((out / "preparations").iterdir())
    (prepared / "artifacts" / "start.txt").write_bytes((prepared / "artifacts" / "start.txt").read_bytes()[::-1])
    shutil.rmtree(next((out / "runs").glob("up-*")))
    again = run_study(walk(walked.study.source.parent), {"steps": 2}, out=out, seeds=[0], engine="inline")
    assert any("start.txt was altered" in note for note in again.notes)
    assert load([out], walked.study).measurements.column("value") == before
