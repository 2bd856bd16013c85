"""The local engine: what runs do to it, and what it does to runs. No torch, so that its server starts at once."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from engine_studies import stored, walk
from equipoise.core.budget import Budget
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import lock
from equipoise.study.execute import alike, run_study
from equipoise.study.results import load


class Seen:
    """What people were shown."""

    def __init__(self):
        self.lines, self.events = [], []

    def plan(self, to_do, stored, seconds):
        self.to_do, self.stored = to_do, stored

    def more(self, waiting): ...

    def event(self, task, event):
        self.events.append((task, event))

    def line(self, text):
        self.lines.append(text)


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    monkeypatch.setattr("equipoise.core.files._sync", lambda path: None)


def states(out, study):
    return {(run.arm, run.seed): run.state for run in load([out], study).runs}


def test_every_run_is_done_once_and_its_preparation_is_shared(tmp_path):
    marks = tmp_path / "marks"
    declaration, seen = walk(tmp_path), Seen()
    done = run_study(declaration, {"marks": str(marks)}, out=tmp_path / "out", workers=2, show=seen)
    assert (done.complete, done.failed, seen.to_do) == (6, {}, 8)
    assert sorted(marks.read_text().split()) == ["0", "1"]
    results = load([tmp_path / "out"], done.study)
    assert {(run.arm, run.seed, run.state) for run in results.runs} == {
        (arm, seed, "complete") for arm in ("up", "flat", "coin") for seed in (0, 1)
    }
    assert [run.role for run in results.preparations] == ["preparation"] * 2
    assert results.runs[0].cost["work"]["build"] == {"optimizer_steps": 4}
    assert any(event.data.get("outcome") == "right" for _, event in seen.events)
    before = stored(tmp_path / "out")
    again, seen = run_study(declaration, {"marks": str(marks)}, out=tmp_path / "out", show=seen), seen
    assert (again.complete, seen.to_do) == (6, 0)
    assert stored(tmp_path / "out") == before
    assert sorted(marks.read_text().split()) == ["0", "1"]


def test_arms_of_a_seed_start_alike_and_the_number_of_workers_changes_nothing(tmp_path):
    declaration = walk(tmp_path)
    one = run_study(declaration, {"steps": 2}, out=tmp_path / "one", workers=1)
    run_study(declaration, {"steps": 2}, out=tmp_path / "two", workers=2)
    run_study(declaration, {"steps": 2}, out=tmp_path / "inline", engine="inline")
    assert stored(tmp_path / "one") == stored(tmp_path / "two") == stored(tmp_path / "inline")
    assert len(stored(tmp_path / "one")) == 6
    by_arm = stored(tmp_path / "one")
    assert by_arm["flat-0-seed0"] == by_arm["coin-0-seed0"] != by_arm["flat-0-seed1"]
    assert one.study.arm("flat").settings == one.study.arm("coin").settings


def test_tuning_comes_first_on_seeds_of_its_own(tmp_path):
    declaration = walk(tmp_path)
    done = run_study(declaration, {"tuned": True, "steps": 2}, out=tmp_path / "out", engine="inline")
    results = load([tmp_path / "out"], done.study)
    assert (done.complete, done.failed) == (6 + 6, {})
    assert {run.seed for run in results.runs if run.role == "tuning"} == {1_000_000}
    tests = [run for run in results.runs if run.role == "test"]
    assert {run.seed for run in tests} == {0, 1} and len(tests) == 6
    assert all(run.point == results.chosen[run.arm] for run in tests)
    assert sum(each.chosen for each in results.selection) == 3


@pytest.mark.parametrize(
    ("bad", "text"),
    [("raise", "RuntimeError: the arm broke"), ("die", "the process was ended by SIGKILL (out of memory?)")],
)
def test_a_failed_run_is_shown_with_its_log_and_the_others_go_on(tmp_path, bad, text):
    declaration, seen, out = walk(tmp_path), Seen(), tmp_path / "out"
    done = run_study(declaration, {"bad": bad}, out=out, workers=2, show=seen)
    assert done.complete == 5
    assert [(state, why) for state, why in done.failed.values()] == [("failed", text)]
    shown = next(line for line in seen.lines if "failed" in line)
    assert text in shown
    log = Path(shown.rpartition("log: ")[2])
    assert log.is_file()
    if bad == "raise":
        assert "in misbehave" in log.read_text()
        assert "in misbehave" in (log.parent / "traceback.txt").read_text()
    assert states(out, done.study)["flat", 1] == "failed"
    (failed,) = [run for run in load([out], done.study).runs if run.state == "failed"]
    assert failed.error == text
    # Run again: it goes on from its checkpoint behind step 2, where it breaks again; nothing else is done.
    seen = Seen()
    again = run_study(declaration, {"bad": bad}, out=out, workers=2, show=seen)
    assert (seen.to_do, again.complete, len(again.failed)) == (1, 5, 1)


def test_fail_fast_stops_at_the_first(tmp_path):
    done = run_study(
        walk(tmp_path), {"bad": "prepare-0", "pause": 0.2}, out=tmp_path / "out", workers=1, fail_fast=True
    )
    assert (done.complete, len(done.failed)) == (0, 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_runs_that_all_fail_alike_are_not_all_tried_and_the_error_is_said_once(tmp_path, workers):
    declaration, seen, out = walk(tmp_path), Seen(), tmp_path / "out"
    done = run_study(declaration, {"bad": "all"}, out=out, workers=workers, seeds=range(5), show=seen)
    assert (done.complete, len(done.failed)) == (0, 3)
    assert done.stopped.startswith("Stopped: 3 failed alike") and "--keep-going" in done.stopped
    first, *others = [line for line in seen.lines if "failed" in line]
    assert "RuntimeError: nothing works\nin every run\n  log: " in first
    assert len(others) == 2 and all(line.endswith("failed: as above") for line in others)
    again = run_study(declaration, {"bad": "all"}, out=out, engine="inline", seeds=range(5), keep_going=True)
    assert (len(again.failed), again.stopped) == (15, "")


def test_preparations_that_all_fail_alike_are_not_all_tried(tmp_path):
    done = run_study(walk(tmp_path), {"bad": "prepare"}, out=tmp_path / "out", engine="inline", seeds=range(9))
    assert {why for _, why in done.failed.values()} <= {
        "ValueError: no preparation",
        "the preparation of its seed failed",
    }
    assert done.stopped and sum(why.startswith("ValueError") for _, why in done.failed.values()) == 3


def test_what_fails_alike_once_a_run_is_complete_leaves_the_others_going(tmp_path):
    done = run_study(walk(tmp_path), {"bad": "flat+coin"}, out=tmp_path / "out", engine="inline", seeds=range(3))
    assert (done.complete, len(done.failed), done.stopped) == (3, 6, "")


def test_what_fails_alike():
    """Three in a row with one error; those of one arm say nothing about the others, which may take longer to end."""
    assert not alike([("up", "x")] * 2 + [("flat", "y")], 3)
    assert not alike([("up", "x")] * 5, 3)
    assert alike([("up", "x")] * 3, 1)
    assert alike([("coin", "y"), ("up", "x"), ("up", "x"), ("flat", "x")], 3)
    assert not alike([("up", "x"), ("flat", "x")], 3)
    assert alike([("", "x")] * 3, 3)


def test_without_its_preparation_a_seed_fails_and_the_other_seed_does_not(tmp_path):
    done = run_study(walk(tmp_path), {"bad": "prepare-0"}, out=tmp_path / "out", engine="inline")
    assert done.complete == 3
    assert (
        sorted(why for _, why in done.failed.values())
        == ["ValueError: no preparation"] + ["the preparation of its seed failed"] * 3
    )


def test_a_run_that_stands_still_is_given_up_with_its_stack_and_the_others_go_on(tmp_path):
    declaration, seen, out = walk(tmp_path), Seen(), tmp_path / "out"
    started = time.monotonic()
    done = run_study(declaration, {"bad": "hang"}, out=out, workers=2, stall=2.0, show=seen)
    assert time.monotonic() - started < 30
    assert done.complete == 5
    ((key, (state, why)),) = done.failed.items()
    assert (state, why) == ("gave up", "no sign of life for 2 s; its stack is in the log")
    log = (out / "runs" / f"{key}.partial" / "log.txt").read_text()
    assert "in misbehave" in log and "in train" in log
    assert states(out, done.study)["flat", 1] == "gave up"
    seen = Seen()
    again = run_study(declaration, {"bad": "hang"}, out=out, stall=2.0, show=seen)
    assert (seen.to_do, again.complete, [state for state, _ in again.failed.values()]) == (0, 5, ["gave up"])
    assert "--retry" in seen.lines[0]
    assert (
        run_study(declaration, {"bad": "hang"}, out=out, stall=0.5, retry=True, workers=1).failed[key][0] == "gave up"
    )
    assert "for 0.5 s" in (out / "runs" / f"{key}.partial" / "failure.json").read_text()


def test_the_budget_stops_cleanly_and_the_rest_is_done_later(tmp_path):
    declaration, out = walk(tmp_path), tmp_path / "out"
    options = {"pause": 0.02}
    done = run_study(declaration, options, out=out, workers=1, budget=Budget.parse("optimizer_steps=9"))
    assert "The budget of optimizer_steps=9 is reached" in done.budget
    assert 1 <= done.complete < 6
    assert not done.failed
    again = run_study(declaration, options, out=out, workers=1, budget=Budget.parse("optimizer_steps=9"))
    assert (again.complete, again.budget) == (done.complete, done.budget)  # a total over all attempts
    rest = run_study(declaration, options, out=out, workers=2, budget=Budget.parse("minutes=5,tokens=1"))
    assert (rest.complete, rest.budget) == (6, "")
    run_study(declaration, out=tmp_path / "quiet", engine="inline")
    assert stored(out) == stored(tmp_path / "quiet")


def test_seeds_begin_where_the_study_says(tmp_path, monkeypatch):
    declaration = walk(tmp_path)
    build = declaration.build
    monkeypatch.setattr(type(declaration), "build", lambda self, **given: replace(build(**given), first_seed=7))
    run_study(declaration, out=tmp_path / "out", engine="inline", seeds=2, arms=["up"])
    assert states(tmp_path / "out", build()) == {("up", 7): "complete", ("up", 8): "complete"}
    assert replace(build(), first_seed=7).test_seeds() == range(7, 7 + build().seeds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ["up", "don"]}, "no arm 'don'"),
        ({"seeds": []}, "Test seeds"),
        ({"seeds": [1_000_000]}, "Test seeds"),
        ({"workers": 0}, "--workers"),
        ({"engine": "slurm"}, "no engine 'slurm'"),
        ({"options": {"step": 3}}, "Did you mean 'steps'"),
    ],
)
def test_wrong_requests_are_refused(tmp_path, changes, message):
    with pytest.raises(BadInput, match=message):
        run_study(walk(tmp_path), **{"out": tmp_path / "out", **changes})


def test_an_output_folder_keeps_to_its_settings(tmp_path):
    declaration, out, seen = walk(tmp_path), tmp_path / "out", Seen()
    run_study(declaration, {"steps": 2}, out=out, seeds=[0], arms=["up"], engine="inline")
    with pytest.raises(BadInput, match=r"option steps is 2, now 3. .*--fresh"):
        run_study(declaration, {"steps": 3}, out=out)
    with pytest.raises(BadInput, match="threads is 1, now 2"):
        run_study(declaration, {"steps": 2}, out=out, threads=2)
    first = stored(out)
    run_study(declaration, {"steps": 3}, out=out, seeds=[0], arms=["up"], fresh=True, show=seen, engine="inline")
    assert stored(tmp_path / "out.old-1") == first != stored(out)
    assert "set aside" in seen.lines[0]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(BadInput, match="something else"):
        run_study(declaration, out=tmp_path / "other")
    with lock(out / "lock"), pytest.raises(WorkFailed, match="another `equipoise study run`"):
        run_study(declaration, {"steps": 3}, out=out)


START = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from engine_studies import walk
from equipoise.study.execute import run_study
print("ready", flush=True)
run_study(walk(Path(sys.argv[2])), {"pause": 30.0}, out=Path(sys.argv[2]) / "out", workers=2)
"""


@pytest.mark.usefixtures("as_in_a_terminal")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), pytest.param(signal.SIGINT, -2, marks=pytest.mark.slow)]
)
def test_nothing_survives_the_command(tmp_path, number, code):
    walk(tmp_path)
    arguments = [sys.executable, "-c", START, str(Path(__file__).parent.parent), str(tmp_path)]
    command = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(running := at_work(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(running) == 2
    command.send_signal(number)
    _, error = command.communicate(timeout=30)
    assert command.returncode == code or "KeyboardInterrupt" in error
    while at_work(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert at_work(tmp_path) == []


def at_work(folder: Path) -> list[str]:
    """Runs whose folder a living process holds."""
    held = []
    for path in folder.glob("out/runs/*.partial/lock"):
        try:
            with lock(path):
                pass
        except (WorkFailed, OSError):
            held.append(path.parent.name)
    return held


def test_a_server_that_dies_is_an_error_and_loses_nothing(tmp_path):
    declaration, out = walk(tmp_path), tmp_path / "out"

    class Murderer(Seen):
        def event(self, task, event):
            if event.kind == "started" and task.role == "test":
                parent = int(Path(f"/proc/{event.data['pid']}/stat").read_text().rpartition(")")[2].split()[1])
                os.kill(parent, signal.SIGKILL)

    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    with pytest.raises(WorkFailed, match="ended with -9"):
        run_study(declaration, {"pause": 0.1}, out=out, workers=2, show=Murderer())
    done = run_study(declaration, {"pause": 0.1}, out=out, workers=2)
    assert done.complete == 6 and not done.failed
