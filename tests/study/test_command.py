"""`equipoise study`, as typed: what goes to stdout, what to stderr, and the exit code."""

import json
from pathlib import Path

import pytest

from engine_studies import walk
from equipoise.cli import main


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    monkeypatch.setattr("equipoise.core.files._sync", lambda path: None)


@pytest.fixture
def mine(tmp_path):
    walk(tmp_path)
    return str(tmp_path / "walk_study.py")


def study(*words):
    return main(["study", *map(str, words)])


def test_run_prints_verdicts_and_last_the_report_and_resumes(mine, tmp_path, capsys):
    command = ("run", mine, "--steps", 3, "--set", "bad=none", "--out", tmp_path / "out", "--engine", "inline")
    assert study(*command) == 0
    out, error = capsys.readouterr()
    assert out.splitlines()[0] == "undecided: up goes up"
    report = Path(out.splitlines()[-1])
    assert report == tmp_path / "out" / "report.html" and report.is_file()
    assert "[8/8]" in error
    assert study(*command, "--json") == 0
    out, error = capsys.readouterr()
    content = json.loads(out)
    assert content["options"] == {"steps": 3, "pause": 0.0, "bad": "none", "marks": "", "tuned": False}
    assert list(content["runs"].values()) == ["complete"] * 6
    assert "0 to do, 6 stored" in error
    stored = json.loads((tmp_path / "out" / "study.json").read_text())
    assert stored["environment"]["command"] == f"equipoise study run {mine} --steps 3 --bad none"
    assert study("report", tmp_path / "out", "--study", mine, "--out", tmp_path / "elsewhere") == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "elsewhere" / "report.html")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "3"], "no option 'step'. Did you mean 'steps'"),
        (["--steps", "0"], "should be at least 1"),
        (["--set", "steps"], "--set takes NAME=VALUE"),
        (["--seeds", "0"], "--seeds"),
        (["--seeds", "2", "--seed-list", "1"], "not both"),
        (["--seed-list", "1,x"], "whole numbers"),
        (["--arms", "up,dwn"], "no arm 'dwn'"),
        (["--budget", "hours=3"], "hours"),
        (["--engine", "slurm"], "no engine 'slurm'"),
    ],
)
def test_wrong_requests_exit_2_with_one_sentence(mine, tmp_path, capsys, words, message):
    assert study("run", mine, "--out", tmp_path / "out", *words) == 2
    out, error = capsys.readouterr()
    assert out == "" and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_failures_exit_1_and_the_budget_3_with_a_report_all_the_same(mine, tmp_path, capsys):
    command = ("run", mine, "--engine", "inline")
    assert study(*command, "--bad", "raise", "--out", tmp_path / "bad") == 1
    out, error = capsys.readouterr()
    assert Path(out.splitlines()[-1]).is_file()
    assert "RuntimeError: the arm broke" in error and "log.txt" in error
    assert study(*command, "--budget", "optimizer_steps=5", "--out", tmp_path / "short") == 3
    out, error = capsys.readouterr()
    assert Path(out.splitlines()[-1]).is_file()
    assert "The budget of optimizer_steps=5 is reached" in error


def test_a_study_whose_runs_all_fail_alike_ends_with_one_sentence_and_no_page_of_nothing(mine, tmp_path, capsys):
    command = ("run", mine, "--engine", "inline", "--bad", "all", "--out", tmp_path / "out")
    assert study(*command) == 1
    out, error = capsys.readouterr()
    assert (out, error.count("failed: RuntimeError: nothing works")) == ("", 1)
    assert (
        error.splitlines()[-1].startswith("equipoise: Stopped: 3 failed alike")
        and not (tmp_path / "out/report.html").exists()
    )
    assert study(*command, "--keep-going") == 1
    out, error = capsys.readouterr()
    assert error.count("as above") == 5 and "6 not done" in error and Path(out.splitlines()[-1]).is_file()


def test_reports_of_what_is_no_study(tmp_path, mine, capsys):
    assert study("report") == 2
    assert study("report", tmp_path) == 2
    assert "study.json" in capsys.readouterr().err
    for steps in (2, 3):
        assert (
            study("run", mine, "--steps", steps, "--engine", "inline", "--arms", "up", "--out", tmp_path / f"{steps}")
            == 0
        )
    assert study("report", tmp_path / "2", tmp_path / "3") == 2
    assert "different studies" in capsys.readouterr().err


def test_list_and_show(mine, capsys):
    assert study("list") == 0
    assert "\nsago " in capsys.readouterr().out
    assert study("list", "--json") == 0
    assert {"name", "trades", "summary", "paper", "origin", "verdicts"} == set(json.loads(capsys.readouterr().out)[0])
    assert study("show", mine) == 0
    shown = capsys.readouterr().out
    for text in (
        "up (method)  drift=0.5",
        "--steps integer from 1 to 1000  default 4",
        "up goes up",
        "height, higher is better",
    ):
        assert text in shown
    assert study("show", mine, "--json") == 0
    assert [arm["kind"] for arm in json.loads(capsys.readouterr().out)["arms"]] == ["method", "baseline", "control"]
