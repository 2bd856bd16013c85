"""Two output folders compared: what is said against what was changed by hand, or by other options."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from engine_studies import restate, walk
from equipoise.cli import main
from equipoise.core.errors import BadInput
from equipoise.study.compare import as_json, compare, lines
from equipoise.study.execute import run_study
from equipoise.study.results import load
from equipoise.study.store import read_json, write_json


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    monkeypatch.setattr("equipoise.core.files._sync", lambda path: None)


@pytest.fixture
def declaration(tmp_path):
    return walk(tmp_path)


@pytest.fixture
def out(tmp_path, declaration):
    return run_study(
        declaration, out=tmp_path / "a", engine="inline", command="equipoise study run ./walk_study.py"
    ).out


def copied(out: Path, name: str = "b") -> Path:
    return Path(shutil.copytree(out, out.with_name(name), ignore=shutil.ignore_patterns("cache", "lock")))


def folder_of(out: Path, start: str) -> Path:
    return next(path for path in (out / "runs").iterdir() if path.name.startswith(start))


def rewrite(folder: Path, name: str, change) -> None:
    """Change a file of a complete run and its digest with it, as another machine would have stored it."""
    restate(folder, {name: change((folder / name).read_bytes())})


def test_a_copy_is_the_same_in_everything(declaration, out):
    found = compare(declaration, out, copied(out))
    assert found.changes == () and found.differing == found.states == found.only_a == found.only_b == ()
    assert len(found.identical) == 6 and all(a == b for a, b in found.identical)
    assert [(each.outcome, each.places, each.differing) for each in found.outcomes] == [
        ("height", 24, 0),
        ("right", 24, 0),
    ]
    said = "\n".join(lines(found))
    assert "the same options, code, threads, versions and settings" in said and "height  none in 24 values" in said
    assert "optimizer_steps 1" in said


def test_the_largest_difference_is_found_where_it_was_made(declaration, out):
    other = copied(out)
    changes = {("up-0-seed0", 3): 0.5, ("up-0-seed0", 1): -0.25, ("flat-0-seed1", 2): 0.125}
    for (start, step), by in changes.items():

        def change(data: bytes, step=step, by=by) -> bytes:
            records = [json.loads(line) for line in data.splitlines()]
            for record in records:
                if record["outcome"] == "height" and record["at"] == {"step": step}:
                    record["value"] += by
            return "".join(json.dumps(record) + "\n" for record in records).encode()

        rewrite(folder_of(other, start), "measurements.jsonl", change)
    found = compare(declaration, out, other)
    height, right = found.outcomes
    assert (height.places, height.differing, right.differing) == (24, 3, 0)
    assert height.largest == pytest.approx(0.5) and height.b - height.a == pytest.approx(0.5)
    assert height.run_a.startswith("up-0-seed0") and height.at == '{"step": 3}'
    assert [a.rpartition("-")[0] for a, _ in found.differing] == ["flat-0-seed1", "up-0-seed0"]
    assert len(found.identical) == 4 and found.changes == ()
    turned = compare(declaration, other, out).outcomes[0]
    assert (turned.a, turned.b, turned.largest) == (height.b, height.a, height.largest)


def test_undefined_items_counts_and_missing_rows_differ_too(declaration, out):
    """A value that became undefined, a count out of another number, an item's score, a row too few: none is equal."""

    def edited(start: str, name: str, change) -> Path:
        other = copied(out, f"b-{len(list(out.parent.iterdir()))}")
        rewrite(folder_of(other, start), name, change)
        return other

    def undefined(data: bytes) -> bytes:
        first, _, rest = data.partition(b"\n")
        return json.dumps({**json.loads(first), "value": None}).encode() + b"\n" + rest

    def missing(data: bytes) -> bytes:
        return data.replace(b'"missing": 0', b'"missing": 1', 1)

    def shorter(data: bytes) -> bytes:
        return b"\n".join(data.split(b"\n")[:-2]) + b"\n"

    def scored(data: bytes) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(pa.BufferReader(data))
        score = table["score"].to_numpy().copy()
        score[[0, 1]] = 1 - score[[0, 1]] if score[0] != score[1] else score[[0, 1]] + 0.5
        place = table.schema.get_field_index("score")
        sink = pa.BufferOutputStream()
        pq.write_table(table.set_column(place, "score", pa.array(score)), sink)
        return sink.getvalue().to_pybytes()

    for name, change in (("measurements.jsonl", undefined), ("measurements.jsonl", missing), ("items.parquet", scored)):
        found = compare(declaration, out, edited("coin-0-seed1", name, change))
        assert len(found.differing) == 1 and found.differing[0][0].startswith("coin-0-seed1"), change
    found = compare(declaration, out, edited("coin-0-seed1", "measurements.jsonl", undefined))
    assert found.outcomes[0].differing == 1 and math.isnan(found.outcomes[0].largest)
    assert as_json(found)["outcomes"][0]["largest"] is None
    found = compare(declaration, out, edited("coin-0-seed1", "measurements.jsonl", shorter))
    assert [(each.only_a, each.only_b) for each in found.outcomes] == [(0, 0), (1, 0)]
    assert len(found.differing) == 1 and "1 only in A" in "\n".join(lines(found))


def test_other_options_are_named_and_their_runs_paired(tmp_path, declaration, out):
    longer = run_study(declaration, {"steps": 6}, out=tmp_path / "longer", engine="inline", seeds=[1]).out
    found = compare(declaration, out, longer)
    changes = {each.name: (each.a, each.b) for each in found.changes}
    assert changes["option steps"] == (4, 6)
    assert {name for name in changes if name.startswith(("code", "threads", "arm", "torch"))} == set()
    assert len(found.differing) == 3 and len(found.only_a) == 3 and found.only_b == ()
    assert all("-seed0-" in name for name in found.only_a)
    # The walk draws the same numbers, whatever its length: four steps in common, two more in B.
    assert [(each.places, each.differing, each.only_b) for each in found.outcomes] == [(12, 0, 6), (12, 0, 6)]
    assert found.costs["up"]["optimizer_steps"] == (4, 6)
    content = as_json(found)
    assert content["work"]["up"]["optimizer_steps"]["ratio"] == 1.5
    [claim] = content["claims"]
    assert claim["a"]["preview"] is False and claim["b"]["preview"] is True
    up, flat = ([r for r in load([out], found.a.study).runs if r.arm == arm] for arm in ("up", "flat"))
    ends = {}
    for run in (*up, *flat):
        last = [json.loads(line) for line in (run.folder / "measurements.jsonl").read_text().splitlines()]
        ends[run.arm, run.seed] = next(r["value"] for r in last if r["at"] == {"step": 4} and r["outcome"] == "height")
    mean = np.mean([ends["up", seed] - ends["flat", seed] for seed in (0, 1)])
    assert claim["a"]["effects"][0]["estimate"] == pytest.approx(mean)


def test_other_code_is_said_and_what_failed_is_no_measurement(declaration, out, tmp_path):
    other = copied(out)
    for folder in (*(other / "runs").iterdir(), *(other / "preparations").iterdir()):
        restate(folder, code="0" * 64)
    mixed = folder_of(out, "up-0-seed1")
    restate(folder_of(other, "up-0-seed1"), code="f" * 64)  # a run of a third version among them
    found = compare(declaration, out, other)
    assert [(each.name, each.b) for each in found.changes] == [("code", "0" * 12)]
    assert any("another version of the code left out" in note for note in found.b.results.notes)
    assert len(found.identical) == 5 and found.only_a == (mixed.name,)
    broken = run_study(declaration, {"bad": "raise"}, out=tmp_path / "bad", engine="inline").out
    found = compare(declaration, out, broken)
    [(a, state_a, b, state_b)] = found.states
    assert (a[:12], state_a, b[:12], state_b) == ("flat-0-seed1", "complete", "flat-0-seed1", "failed")
    assert f"{a} is complete in A, {b} failed in B" in "\n".join(lines(found))


def test_settings_that_moved_in_the_grid_are_paired_by_what_they_are(declaration, tmp_path):
    tuned = run_study(declaration, {"tuned": True}, out=tmp_path / "tuned", engine="inline").out
    turned = copied(tuned)
    for folder in list((turned / "runs").iterdir()):
        folder.rename(folder.with_name(f"moved-{folder.name}"))
    for folder in list((turned / "runs").iterdir()):
        restate(folder, point=1 - read_json(folder / "config.json")["point"])
    found = compare(declaration, tuned, turned)
    assert len(found.identical) + len(found.differing) == 12 and not found.differing
    assert all(a.split("-")[::2] == b.split("-")[::2] for a, b in found.identical)


def test_as_typed(declaration, out, tmp_path, capsys):
    other = copied(out)
    mine = ["--study", str(declaration.source)]
    assert main(["study", "compare", str(out), str(other), *mine]) == 0
    said = capsys.readouterr().out
    for words in ("A " + str(out), "6 in both with identical measurements", "up goes up", "    B undecided: height"):
        assert words in said
    assert main(["study", "compare", str(out), str(other), "--json", *mine]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["study"] == "walk" and len(content["runs"]["identical"]) == 6
    assert main(["study", "compare", str(out), str(tmp_path), *mine]) == 2
    assert "holds no study.json" in capsys.readouterr().err
    write_json(other / "study.json", {**read_json(other / "study.json"), "study": "run"})
    assert main(["study", "compare", str(out), str(other), *mine]) == 2
    assert "holds the study 'run', not 'walk'" in capsys.readouterr().err
    with pytest.raises(BadInput, match="damaged"):
        (other / "study.json").write_text("{")
        compare(declaration, out, other)
