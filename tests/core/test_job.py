import json

import pytest

from equipoise.core.errors import BadInput
from equipoise.core.job import digest, job_folder


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


def test_changed_input_is_refused(tmp_path):
    out = tmp_path / "done"
    with job_folder(out, {}, {"forget.jsonl": "a"}):
        pass
    with pytest.raises(BadInput, match=r"another content of forget\.jsonl"), job_folder(out, {}, {"forget.jsonl": "b"}):
        pass


def test_a_strange_folder_is_not_touched(tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match=r"holds no readable run\.json"), job_folder(out, {}):
        pass
    assert (out / "thesis.txt").read_text() == "years of work"


def test_fresh_sets_aside_and_deletes_nothing(tmp_path):
    out = tmp_path / "done"
    with job_folder(out, {"rate": 1}) as folder:
        (folder.work / "weights").write_text("old")
        folder.finish()
    with job_folder(out, {"rate": 2}, fresh=True) as folder:
        assert not folder.complete
    assert (tmp_path / "done.old-1" / "weights").read_text() == "old"


def test_ended_before_the_first_setting(tmp_path):
    out = tmp_path / "done"
    (tmp_path / "done.partial").mkdir()
    with job_folder(out, {"rate": 1}) as folder:
        assert json.loads((folder.work / "run.json").read_text()) == {"rate": 1}


def test_digest_is_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert digest(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
