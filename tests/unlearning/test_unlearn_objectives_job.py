"""DPO, UNDIAL, WGA, SatImp and CE-U through the job, from the command line's settings to the folder that is loaded again."""

import json

import pytest

from equipoise.cli import main
from equipoise.core.errors import BadInput
from equipoise.unlearning import dpo, unlearn
from small_jobs import unlearn_files

NAMES = ["dpo", "undial", "wga", "satimp", "ce-u"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_method_is_done_to_its_end(tmp_path, capsys, name):
    given = unlearn_files(tmp_path)
    words = ["unlearn", "--method", name, "--steps", "2", "--batch-size", "2", "--learning-rate", "1e-3"]
    for side in ("model", "forget", "retain"):
        words += [f"--{side}", str(given[side])]
    assert main([*words, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert capsys.readouterr().out.strip().endswith(str(tmp_path / "out"))
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    assert stored["steps"] == 2 and stored["moved"] > 0.5 and stored["resolved"]["objective"] == name
    logged = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 2 and logged[0]["forget_loss"] != logged[1]["forget_loss"]
    if name == "dpo":
        assert abs(logged[0]["forget_loss"] - 0.6931472) < 1e-5
        assert any("refusals" in note for note in stored["notes"])


@pytest.mark.slow
def test_dpo_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    given = unlearn_files(tmp_path) | {"method": "dpo", "steps": 4, "evaluate_every": 1, "learning_rate": 1e-3}
    whole = unlearn(**given, out=tmp_path / "whole")
    seen = []

    def killed(self, path):
        seen.append(path[-1]["step"])
        if path[-1]["step"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("equipoise.unlearning.forgetting.Forgetting._ended", killed)
        with pytest.raises(KeyboardInterrupt):
            unlearn(**given, out=tmp_path / "killed")
    assert seen[-1] == 2
    again = unlearn(**given, out=tmp_path / "killed")
    assert again.path == whole.path and again.after == whole.after


def test_plain_text_is_refused_before_a_model_is_read(tmp_path):
    given = unlearn_files(tmp_path) | {"model": tmp_path / "none", "method": "dpo"}
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "Nothing asked.", "id": "t-1"}) + "\n")
    for ask in (unlearn, unlearn.plan):
        with pytest.raises(
            BadInput, match=r"^dpo prefers a refusal to an answer, and forget record 't-1' has no prompt"
        ):
            ask(**{**given, "forget": tmp_path / "text.jsonl"})


def test_the_dry_run_shows_a_refusal(tmp_path):
    plan = unlearn.plan(**unlearn_files(tmp_path), method="dpo")
    assert any(repr(dpo.refusal("forget-1", 0)) in note for note in plan.notes) and plan.seconds > 0
