"""The folder of a job: resumed, found, refused, set aside; damage found; nothing of anybody else's is touched."""

import json
import math
import os
from pathlib import Path

import pytest

from equipoise.core.errors import BadInput
from equipoise.core.files import FILES
from equipoise.core.folder import check_folder, damage, job_folder, opened, read_manifest


def finished(out, **files):
    with job_folder(out, {"rate": 1}) as folder:
        for name, text in files.items():
            (folder.work / name).write_text(text)
        folder.finish("toy", {"page"} & files.keys())
    return out


def test_same_settings_resume_and_finish(tmp_path):
    out = tmp_path / "done"
    with job_folder(out, {"rate": 0.1}, {"file": "a"}) as folder:
        (folder.work / "half").write_text("x")
        assert not folder.complete
    with job_folder(out, {"rate": 0.1}, {"file": "a"}) as folder:
        assert (folder.work / "half").read_text() == "x"
        assert folder.finish() == out
    with job_folder(out, {"rate": 0.1}, {"file": "a"}) as folder:
        assert folder.complete
    assert json.loads((out / "run.json").read_text()) == {"rate": 0.1}


def test_other_settings_are_refused_by_name(tmp_path):
    out = tmp_path / "done"
    with job_folder(out, {"rate": 0.1, "steps": 3}):
        pass
    with pytest.raises(BadInput, match=r"rate 0\.1 \(now 0\.2\).*--fresh"), job_folder(out, {"rate": 0.2, "steps": 3}):
        pass
    with pytest.raises(BadInput, match=r"rate 0\.1 \(now 0\.2\)"):
        check_folder(out, {"rate": 0.2, "steps": 3})


def test_settings_of_an_earlier_version_are_read_first(tmp_path):
    with job_folder(tmp_path / "done", {"box": "0,1"}):
        pass
    now = {"box": [0, 1], "steps": 3}
    with job_folder(tmp_path / "done", now, read=lambda stored: {"box": [0, 1], "steps": 3}) as folder:
        assert folder.work.exists()


def test_changed_input_is_refused(tmp_path):
    out = tmp_path / "done"
    with job_folder(out, {}, {"forget.jsonl": "a"}):
        pass
    with pytest.raises(BadInput, match=r"another content of forget\.jsonl"), job_folder(out, {}, {"forget.jsonl": "b"}):
        pass


@pytest.mark.parametrize("name", ["thesis.txt", "inputs.json", "run.json"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_the_users_own_is_not_touched(tmp_path, name, fresh):
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text("years of work")
    with pytest.raises(BadInput, match="mine"), job_folder(out, {}, fresh=fresh):
        pass
    assert (out / name).read_text() == "years of work" and list(tmp_path.glob("mine*")) == [out]


def test_fresh_sets_aside_and_deletes_nothing(tmp_path):
    out = finished(tmp_path / "done", weights="old")
    with job_folder(out, {"rate": 2}, fresh=True) as folder:
        assert not folder.complete
    assert (tmp_path / "done.old-1" / "weights").read_text() == "old"


def test_fresh_leaves_what_the_command_reads_or_stands_in(tmp_path, monkeypatch):
    out = finished(tmp_path / "model", weights="w")
    with pytest.raises(BadInput, match="holds the input"), job_folder(out, {}, fresh=True, needed=[out / "weights"]):
        pass
    monkeypatch.chdir(out)
    with pytest.raises(BadInput, match="the working folder"), job_folder(out, {}, fresh=True):
        pass
    assert (out / "weights").read_text() == "w"


def test_unfinished_work_is_no_name_for_a_result(tmp_path):
    with job_folder(tmp_path / "out", {}):
        pass
    for wanted in (lambda: check_folder(tmp_path / "out.partial", {}), lambda: enter(tmp_path / "out.partial")):
        with pytest.raises(BadInput, match=r"ends in \.partial"):
            wanted()


def enter(out):
    with job_folder(out, {}):
        pass


def test_an_unwritable_place_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o777)  # it could be opened and run, and is no folder
    with pytest.raises(BadInput, match="nothing can be written"):
        check_folder(tmp_path / "file" / "out", {})
    with pytest.raises(BadInput, match="nothing can be written"), job_folder(tmp_path / "file" / "out", {}):
        pass


def test_a_request_found_wrong_leaves_no_folder_but_older_work_stays(tmp_path):
    with pytest.raises(BadInput, match="late"), job_folder(tmp_path / "out", {}):
        raise BadInput("late")
    assert not opened(tmp_path / "out").work.exists()
    enter(tmp_path / "out")
    with pytest.raises(BadInput, match="late"), job_folder(tmp_path / "out", {}):
        raise BadInput("late")
    assert opened(tmp_path / "out").work.exists()


@pytest.mark.parametrize("name", ["weights", "page", "run.json", "inputs.json"])
def test_every_flipped_bit_missing_or_cut_file_is_damage(tmp_path, name):
    out = finished(tmp_path / "done", weights="0123", page="<p>")
    assert damage(out) == {}
    whole = (out / name).read_bytes()
    for altered in (bytes([whole[0] ^ 1]) + whole[1:], whole[:-1], whole + b" ", None):
        (out / name).unlink(missing_ok=True)
        if altered is not None:
            (out / name).write_bytes(altered)
        assert damage(out) == {name: name == "page"}
    (out / name).write_bytes(whole)
    (out / "notes of mine.txt").write_text("not listed")
    assert damage(out) == {}


def test_a_manifest_that_was_altered_vouches_for_nothing(tmp_path):
    out = finished(tmp_path / "done", weights="0123")
    manifest = out / "manifest.json"
    whole = manifest.read_bytes()
    for place in range(0, len(whole) - 1, 7):
        manifest.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(BadInput, match=r"manifest\.json.*--fresh"):
            damage(out)
    manifest.unlink()
    with pytest.raises(BadInput, match=r"manifest\.json"):
        damage(out)


def test_reopened_work_keeps_what_was_damaged_and_rows_in_place(tmp_path):
    out = finished(tmp_path / "done", weights="bad", **{"rows.jsonl": "bad"})
    with job_folder(out, {"rate": 1}) as folder:
        again = folder.reopen(["weights", "rows.jsonl", "never there"])
        assert not again.complete and not out.exists() and again.work.exists()
        again.finish()
    assert (out / "damaged" / "1" / "weights").read_text() == "bad" and not (out / "weights").exists()
    assert (out / "rows.jsonl").read_text() == "bad" and damage(out) == {}
    assert (out / "damaged" / "1" / "rows.jsonl").read_text() == "bad"  # somebody's own lines, perhaps
    with job_folder(out, {"rate": 1}) as folder:
        (out / "weights").write_text("worse")
        folder.reopen(["weights"]).finish()
    assert [(out / "damaged" / n / "weights").read_text() for n in "12"] == ["bad", "worse"]


def test_a_kill_while_a_folder_is_reopened_leaves_one_that_goes_on(tmp_path, monkeypatch):
    """A finished folder never stands there without the manifest by which it is found again."""
    out = finished(tmp_path / "done", weights="bad")
    monkeypatch.setattr(FILES, "replace", lambda source, target: pytest.fail("killed") if source == out else None)
    with job_folder(out, {"rate": 1}) as folder, pytest.raises(pytest.fail.Exception):
        folder.reopen(["weights"])
    monkeypatch.undo()
    assert damage(out) == {}
    with job_folder(out, {"rate": 1}) as folder:
        monkeypatch.setattr(Path, "unlink", lambda path, **how: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            folder.reopen(["weights"])
    monkeypatch.undo()
    with job_folder(out, {"rate": 1}) as folder:
        assert not folder.complete
        (folder.work / "weights").write_text("good")
        folder.finish("toy")
    assert damage(out) == {} and set(read_manifest(out)["files"]) == {"weights", "run.json", "inputs.json"}


def test_what_the_user_put_there_stays_the_users_when_work_is_done_again(tmp_path):
    out = finished(tmp_path / "done", weights="bad")
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("mine")
    with job_folder(out, {"rate": 1}) as folder:
        again = folder.reopen(["weights"])
        (again.work / "weights").write_text("good")
        (again.work / "more").write_text("new")
        again.finish("toy")
    assert (out / "notes" / "mine.txt").read_text() == "mine"
    assert set(read_manifest(out)["files"]) == {"weights", "more", "run.json", "inputs.json"}


def test_scratch_goes_when_the_name_is_there_and_is_not_missed(tmp_path):
    with job_folder(tmp_path / "out", {}) as folder:
        (folder.work / "state").write_text("s")
        (folder.work / "taught").mkdir()
        (folder.work / "taught" / "weights").write_text("w")
        folder.finish("toy", scratch=("state", "taught"))
    assert not (tmp_path / "out" / "state").exists() and not (tmp_path / "out" / "taught").exists()
    assert damage(tmp_path / "out") == {}
    assert read_manifest(tmp_path / "out")["command"] == "toy"


def test_a_folder_begins_with_its_settings_and_inputs_in_order(tmp_path):
    with job_folder(tmp_path / "out", {"b": 1, "a": [0.5, None]}, {"y": "2", "x": "1"}) as folder:
        held = {path.name: path.read_text() for path in folder.work.iterdir()}
    assert [list(json.loads(held[name])) for name in ("run.json", "inputs.json")] == [["a", "b"], ["x", "y"]]
    assert len(held) == 2
    with pytest.raises(ValueError), job_folder(tmp_path / "other", {"a": math.nan}):  # no JSON
        pass


def test_three_of_the_settings_that_differ_are_told(tmp_path):
    with job_folder(tmp_path / "out", {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}):
        pass
    with pytest.raises(BadInput) as caught:
        check_folder(tmp_path / "out", {"b": 0, "d": 0, "e": 0, "a": 1, "f": 6})
    assert str(caught.value) == (
        f"{tmp_path / 'out.partial'} holds other settings: b 2 (now 0), c 3 (now None), d 4 (now 0). "
        "Give another --out, or --fresh to set it aside and start anew."
    )


def test_a_place_must_be_one_to_write_in_and_to_enter(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "access", lambda path, how: asked.append((path, how)) or False)
    with pytest.raises(BadInput) as caught:
        check_folder(tmp_path / "none" / "yet" / "out", {})
    assert asked == [(tmp_path, 3)]  # to write and to enter
    assert str(caught.value) == f"--out {tmp_path / 'none' / 'yet' / 'out'}: nothing can be written in {tmp_path}."


def test_a_manifest_lists_what_was_made_and_nothing_that_was_set_aside(tmp_path):
    with job_folder(tmp_path / "out", {}) as folder:
        for name in ("damaged/1/x", "deep/damaged/y", "rows.jsonl.damaged-1", "deep/state", "state/z", "page"):
            (folder.work / name).parent.mkdir(parents=True, exist_ok=True)
            (folder.work / name).write_text("12345")
        folder.finish("toy", {"page"}, scratch=("state",))
    files = read_manifest(tmp_path / "out")["files"]
    assert list(files) == ["deep/damaged/y", "deep/state", "inputs.json", "page", "run.json"]
    assert [name for name, row in files.items() if row["drawn"]] == ["page"] and files["page"]["bytes"] == 5
    assert not (tmp_path / "out" / "state").exists()


def test_what_a_name_outside_of_a_folder_leads_to_is_damage(tmp_path):
    out = finished(tmp_path / "done", weights="0123")
    (tmp_path / "same").write_text("0123")
    for place in (out / "other", tmp_path / "same"):
        (out / "other").write_text("0123")
        (out / "weights").unlink()
        (out / "weights").symlink_to(place)
        assert damage(out) == {"weights": False}
    (out / "weights").unlink()
    (out / "weights").mkdir()
    assert damage(out) == {"weights": False}


def test_a_folder_is_made_with_those_above_it(tmp_path):
    with job_folder(tmp_path / "a" / "b" / "out", {}) as folder:
        assert folder.finish() == tmp_path / "a" / "b" / "out"
    assert damage(tmp_path / "a" / "b" / "out") == {}
