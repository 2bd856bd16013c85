"""What runs, in which order, and what is known before it does; without an engine."""

import os
import platform
import re
from pathlib import Path

import pytest

from engine_studies import walk
from equipoise import __version__
from equipoise.core.budget import Budget
from equipoise.core.errors import BadInput
from equipoise.study import execute
from equipoise.study.engine import Event
from equipoise.study.execute import Conducted, _conduct, _Failures, _Plan, _Silent, run_study
from equipoise.study.fingerprint import code_of
from equipoise.study.store import Store, write_json


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    monkeypatch.setattr("equipoise.core.files._sync", lambda path: None)


class Seen(_Silent):
    def __init__(self):
        self.lines, self.mores, self.events = [], [], []

    def line(self, text):
        self.lines.append(text)

    def more(self, waiting):
        self.mores.append(waiting)

    def event(self, task, event):
        self.events.append((task.key, event.kind))


@pytest.fixture
def planned(tmp_path):
    def plan(options=None, arms=("up", "flat"), seeds=(0, 1), **changes) -> _Plan:
        declaration = walk(tmp_path)
        study = declaration.build(**(options or {}))
        given = {"retry": False, "show": Seen(), **changes}
        wanted = [study.arm(name) for name in arms]
        return _Plan(
            declaration, study, Store(tmp_path / "out"), code_of(declaration.source), 3, wanted, list(seeds), **given
        )

    return plan


def names(tasks) -> list[str]:
    return [f"{task.role} {task.arm} {task.point} {task.seed}" for task in tasks]


def test_a_preparation_goes_before_the_runs_of_its_seed(planned, tmp_path):
    plan = planned()
    assert names(plan.waiting) == [
        "preparation  0 0",
        "test up 0 0",
        "test flat 0 0",
        "preparation  0 1",
        "test up 0 1",
        "test flat 0 1",
    ]
    assert plan.to_do == 6 and plan.done == Conducted(plan.study, tmp_path / "out") and plan.selected
    first, up, flat, second, *_ = plan.waiting
    assert up.needs == flat.needs == first.key and first.needs is None
    assert (up.config["arm"], up.config["kind"], up.config["settings"]) == ("up", "method", {"drift": 0.5})
    assert (up.config["threads"], up.config["preparation"], up.config["fingerprint"]) == (3, first.key, up.fingerprint)
    assert (up.config["study"], up.config["seed"], up.config["role"], up.config["point"]) == ("walk", 0, "test", 0)
    assert (
        up.root == str(tmp_path / "out")
        and up.reference.endswith("walk_study.py:walk")
        and up.options == plan.study.options
    )
    assert plan.next() is first and plan.next() is second and plan.next() is None
    plan.end(second, "complete", "")
    assert plan.done.complete == 0 and plan.next().seed == 1
    plan.end(first, "failed", "why")
    assert plan.next().seed == 1 and plan.next() is None and plan.waiting == []
    why = ("failed", "the preparation of its seed failed")
    assert plan.done.failed == {first.key: ("failed", "why"), up.key: why, flat.key: why}
    plan.end(flat, "complete", "")
    assert plan.done.complete == 1 and flat.key in plan.finished


def test_tuning_runs_come_first_then_what_was_chosen(planned, monkeypatch):
    plan = planned({"tuned": True}, arms=("up",), seeds=(4,))
    assert names(plan.waiting) == [
        "preparation  0 1000000",
        "tuning up 0 1000000",
        "tuning up 1 1000000",
        "preparation  0 4",
    ]
    assert plan.to_do == 5 and not plan.selected
    tuning = [task for task in plan.waiting if task.role == "tuning"]
    assert [task.config["settings"]["rate"] for task in tuning] == [1, 2] and plan.tuning == {t.key for t in tuning}
    monkeypatch.setattr(execute, "load", lambda folders, study: type("R", (), {"measurements": folders}))
    monkeypatch.setattr(execute, "choose", lambda study, measurements: ({"up": 1}, []))
    plan.waiting = plan.waiting[3:]
    plan.end(tuning[0], "complete", "")
    assert not plan.selected and plan.show.mores == []
    plan.end(tuning[1], "failed", "x")
    assert plan.selected and names(plan.waiting) == ["preparation  0 4", "test up 1 4"] and plan.show.mores == [2]
    plan.advance()
    assert plan.show.mores == [2]


def test_an_arm_that_cannot_be_chosen_has_failed_and_the_others_run(planned, monkeypatch):
    plan = planned({"tuned": True}, arms=("up", "flat"), seeds=(0,))
    monkeypatch.setattr(execute, "load", lambda folders, study: type("R", (), {"measurements": folders}))
    monkeypatch.setattr(execute, "choose", lambda study, measurements: ({"flat": 0}, []))
    plan.tuning.clear()
    plan.waiting.clear()
    plan.advance()
    said = "no setting of arm up could be chosen: none of its tuning runs is usable"
    assert plan.done.failed == {"up": ("failed", said)} and names(plan.waiting) == ["test flat 0 0"]


def test_what_is_stored_is_not_done_again(planned, tmp_path, monkeypatch):
    states = {"up-0-seed0": "complete", "flat-0-seed0": "gave up", "up-0-seed1": "failed", "flat-0-seed1": "resumable"}
    monkeypatch.setattr(Store, "state", lambda self, task: states.get(task.key.rpartition("-")[0], "absent"))
    monkeypatch.setattr(Store, "repair", lambda self, task: "mended" if task.key.startswith("up-0-seed0") else None)
    plan = planned()
    assert names(plan.waiting) == ["preparation  0 1", "test up 0 1", "test flat 0 1"]
    assert plan.done.complete == 1 and plan.done.notes == ["mended"]
    ((key, why),) = plan.done.failed.items()
    assert why == ("gave up", "gave up before (--retry runs it again)")
    assert plan.show.lines == ["mended", f"{key} gave up in an earlier command; --retry runs it again."]
    again = planned(retry=True)
    assert names(again.waiting)[:2] == ["preparation  0 0", "test flat 0 0"] and not again.done.failed


class Engine:
    """Ends what it is given as the test says, one call of `events` after another."""

    def __init__(self, slots, endings=None):
        self.slots, self.endings, self.given, self.most = slots, endings or {}, [], 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.closed = True

    def submit(self, task):
        self.given.append(task)
        self.most = max(self.most, len(self.given))

    def events(self, timeout):
        task = self.given.pop(0)
        yield Event(task.key, "note", text=f"note of {task.role}")
        yield Event(task.key, "beat", data={"spent": {"calls": 2}})
        state = self.endings.get(task.arm, "complete")
        yield Event(task.key, "ended", state, "" if state == "complete" else "why")


def test_as_many_at_a_time_as_there_are_slots_and_every_end_is_told(planned, tmp_path):
    plan, engine = planned(), Engine(2, {"flat": "failed"})
    done = _conduct(plan, engine, Budget(), _Failures(plan, False, False), plan.show)
    assert done is plan.done and engine.most == 2 and engine.closed
    assert done.complete == 2 and list(done.failed.values()) == [("failed", "why")] * 2
    first, second = done.failed
    log = tmp_path / "out" / "runs" / f"{first}.partial" / "log.txt"
    assert plan.show.lines == [
        f"flat seed 0 ({first}) failed: why\n  log: {log}",
        f"flat seed 1 ({second}) failed: as above",
    ]
    assert done.notes.count("note of preparation") == 2 and done.notes.count("note of test") == 4
    assert len(plan.show.events) == 18 and done.budget == ""


def test_a_budget_is_looked_at_before_every_start(planned):
    plan, engine = planned(), Engine(1)
    done = _conduct(plan, engine, Budget(calls=4), _Failures(plan, False, False), plan.show)
    assert done.complete == 1 and done.budget.startswith("The budget of calls=4 is reached (4)") and engine.given == []
    plan = planned()
    done = _conduct(plan, Engine(1), Budget(minutes=0), _Failures(plan, False, False), plan.show)
    assert done.complete == 0 and done.budget.startswith("The budget of minutes=0 is reached")


def test_fail_fast_leaves_the_rest(planned):
    plan = planned()
    done = _conduct(plan, Engine(1, {"up": "failed"}), Budget(), _Failures(plan, True, False), plan.show)
    assert len(done.failed) == 1 and done.complete == 0 and len(plan.waiting) == 4
    plan = planned()
    plan.show.lines.clear()
    _conduct(plan, Engine(1, {"": "failed"}), Budget(), _Failures(plan, True, False), plan.show)
    assert plan.show.lines[0].startswith("preparation of seed 0 failed: why\n  log: ")


def test_what_was_spent_before_and_what_is_left_are_known_from_the_store(planned, tmp_path):
    plan = planned()
    assert execute._spent(plan.store) == {} and execute._estimate(plan) is None
    for name, seconds in (("a", 2), ("b", 4), ("c.partial", 100)):
        folder = tmp_path / "out" / "runs" / name
        folder.mkdir(parents=True)
        write_json(
            folder / "cost.json", {"spent": {"build": {"seconds": seconds}, "query": {"seconds": 1, "calls": 3}}}
        )
    other = tmp_path / "out" / "preparations" / "p"
    other.mkdir(parents=True)
    write_json(other / "cost.json", {"spent": {"run": {"calls": 1}}})
    (tmp_path / "out" / "runs" / "broken").mkdir()
    (tmp_path / "out" / "runs" / "broken" / "cost.json").write_text("{")
    plan.finished = {"a", "b"}
    assert execute._estimate(plan) == 6 * (3 + 5) / 2
    runs = {name: {"seconds": seconds + 1, "calls": 3} for name, seconds in (("a", 2), ("b", 4), ("c.partial", 100))}
    spent = {Path(path).parent.name: amounts for path, amounts in execute._spent(plan.store).items()}
    assert spent == {**runs, "p": {"calls": 1}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": []}, "Test seeds are whole numbers from 0 to 999999, at least one; got []."),
        ({"seeds": [3, -1]}, "Test seeds are whole numbers from 0 to 999999, at least one; got [3, -1]."),
        ({"seeds": [1_000_000]}, "Test seeds are whole numbers from 0 to 999999, at least one; got [1000000]."),
        ({"threads": 0}, "--workers and --threads are at least 1, --stall is more than 0 seconds."),
        ({"workers": 0}, "--workers and --threads are at least 1, --stall is more than 0 seconds."),
        ({"arms": []}, "No arm is named: give --arms names with commas between, or leave it out for all."),
        ({"stall": 0.0}, "--workers and --threads are at least 1, --stall is more than 0 seconds."),
        ({"stall": float("nan")}, "--workers and --threads are at least 1, --stall is more than 0 seconds."),
    ],
)
def test_a_wrong_request_in_full(tmp_path, changes, said):
    with pytest.raises(BadInput) as caught:
        run_study(walk(tmp_path), **{"out": tmp_path / "out", **changes})
    assert str(caught.value) == said and not (tmp_path / "out").exists()


@pytest.fixture
def made(monkeypatch):
    """`run_study` with an engine that only says what it was made of."""
    found = {}

    def conduct(plan, engine, budget, failures, show):
        found.update(plan=plan, budget=budget, fail_fast=failures.fail_fast, keep_going=failures.hopeful)
        return plan.done

    monkeypatch.setattr(execute, "engine_named", lambda name: lambda **settings: found.update(name=name, **settings))
    monkeypatch.setattr(execute, "_conduct", conduct)
    monkeypatch.setattr(execute, "_cores", lambda: 8)
    return found


def test_what_an_engine_is_made_of(tmp_path, made):
    declaration = walk(tmp_path)
    run_study(declaration, out=tmp_path / "a")
    plan, budget = made.pop("plan"), made.pop("budget")
    assert budget.limits == {} and made.pop("preload") == execute.preload(plan.code)
    assert made == {
        "name": "local",
        "workers": 8,
        "threads": 1,
        "stall": 600.0,
        "reference": plan.reference,
        "options": declaration.options(),
        "fail_fast": False,
        "keep_going": False,
    }
    assert (plan.seeds, [arm.name for arm in plan.arms], plan.threads) == ([0, 1], ["up", "flat", "coin"], 1)
    assert not plan.retry
    limits = Budget(calls=3)
    given = {"workers": 5, "threads": 3, "stall": 0.5, "budget": limits, "fail_fast": True, "retry": True}
    run_study(declaration, {"steps": 2}, out=tmp_path / "b", seeds=[2, 0, 2], arms=["coin"], engine="x", **given)
    plan = made.pop("plan")
    assert (made["workers"], made["threads"], made["stall"], made["budget"]) == (5, 3, 0.5, limits)
    assert made["fail_fast"] and plan.retry and made["options"]["steps"] == 2
    assert (plan.seeds, [arm.name for arm in plan.arms]) == ([2, 0], ["coin"])
    for threads, workers in ((3, 2), (9, 1), (8, 1)):
        run_study(declaration, out=tmp_path / f"t{threads}", threads=threads)
        assert made["workers"] == workers


def test_what_an_output_folder_says_of_itself(tmp_path, made, monkeypatch):
    from equipoise.study.store import read_study

    monkeypatch.setenv("MY_API_KEY", "s3cret-s3cret")
    declaration, out = walk(tmp_path), tmp_path / "out"
    run_study(declaration, out=out, threads=2, command="equipoise study run x --key s3cret-s3cret")
    stored = read_study(out)
    environment = stored.pop("environment")
    reference = f"{declaration.source.resolve()}:walk"
    assert stored == {"study": "walk", "options": declaration.options(), "threads": 2, "reference": reference}
    assert {name: environment[name] for name in ("equipoise", "python", "torch threads", "command")} == {
        "equipoise": __version__,
        "python": platform.python_version(),
        "torch threads": 2,
        "command": "equipoise study run x --key [key]",
    }
    assert environment["system"] == f"{platform.system()} {platform.machine()}"
    known = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", known.read_text(), re.MULTILINE) if known.exists() else None
    assert model is None or environment["cpu"].startswith(f"{model[1]}, ")
    assert {child.name for child in out.iterdir()} == {"lock", "preparations", "runs", "study.json"}
    with pytest.raises(BadInput) as caught:
        run_study(declaration, {"steps": 9, "bad": "x"}, out=out, threads=1)
    said = "threads is 2, now 1; option steps is 4, now 9; option bad is '', now 'x'"
    ending = "Give another --out, or --fresh to set it aside."
    assert str(caught.value) == f"{out} holds runs with other settings: {said}. {ending}"
    (out / "study.json").write_text("{")
    (out / "runs" / "x").mkdir()
    with pytest.raises(BadInput) as caught:
        run_study(declaration, out=out)
    assert str(caught.value) == f"{out} holds something else (no study.json of a study); give another --out."


def test_which_folders_are_empty(tmp_path):
    out = tmp_path / "out"
    assert execute._is_empty(out)
    out.mkdir()
    assert execute._is_empty(out)
    (out / "lock").touch()
    (out / "runs").mkdir()
    (out / "preparations").mkdir()
    assert execute._is_empty(out)
    (out / "lock").write_text("x")
    assert not execute._is_empty(out)
    (out / "lock").write_text("")
    (out / "runs" / "x").touch()
    assert not execute._is_empty(out) and not execute._is_empty(out / "lock")
    (out / "runs" / "x").unlink()
    (out / "notes").touch()
    assert not execute._is_empty(out)
    (tmp_path / "link").symlink_to("nowhere")
    assert not execute._is_empty(tmp_path / "link")


def test_cores_of_this_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5} if process == 0 else set(), raising=False)
    assert execute._cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, cores in ((7, 7), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert execute._cores() == cores


def test_devices_by_name(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(execute, "Path", lambda path: asked.append(path) or tmp_path)
    assert execute._device() == "cpu" and asked == ["/proc/driver/nvidia/gpus"]
    for card, name in (("0000:b", " H200: 1"), ("0000:a", "\t H100")):
        (tmp_path / card).mkdir()
        (tmp_path / card / "information").write_text(f"IRQ: 3\nModel: {name}\nModel of nothing\n")
    assert execute._device() == "H100, H200: 1"


@pytest.mark.parametrize(
    ("errors", "arms", "same"),
    [
        ([("a", "x"), ("b", "x"), ("a", "x")], 2, True),
        ([("a", "x"), ("b", "x")], 2, False),
        ([("a", "x")] * 3, 2, False),  # the others may do better
        ([("a", "x")] * 3, 1, True),
        ([("a", "x")] * 3, 0, False),
        ([("", "x")] * 3, 2, True),
        ([("a", "x"), ("b", "x"), ("a", "y")], 2, False),
        ([("b", "y"), ("a", "x"), ("a", "x"), ("a", "x")], 2, False),
        ([("b", "y"), ("a", "x"), ("b", "x"), ("a", "x"), ("a", "x")], 3, True),
        ([("b", "x"), ("a", "y"), ("a", "x"), ("b", "x")], 2, False),
    ],
)
def test_what_fails_alike_and_not_because_of_one_arm(errors, arms, same):
    assert execute.alike(errors, arms) is same


def test_a_last_line_tells_errors_apart_and_one_complete_run_gives_hope(planned):
    plan = planned()
    tasks = {task.arm: task for task in plan.waiting if task.seed == 0}
    failures = _Failures(plan, False, False)

    def end(arm, text, state="failed"):
        return failures.end(tasks[arm], Event(tasks[arm].key, "ended", state, text))

    assert [end("up", "one\nsame "), end("flat", "other\nsame"), end("up", "else")] == [False] * 3
    assert [line.partition("\n  log")[0].partition("failed: ")[2] for line in plan.show.lines] == [
        "one\nsame ",
        "as above",
        "else",
    ]
    assert [end("", "", "complete"), end("up", "z"), end("flat", "z"), end("up", "z")] == [False] * 3 + [True]
    assert plan.done.stopped == execute.STOPPED
    plan.done.stopped = ""
    assert [end("up", "", "complete"), end("up", "z"), end("flat", "z")] == [False] * 3 and plan.done.stopped == ""
    assert _Failures(plan, False, True).hopeful and not _Failures(plan, True, False).hopeful


@pytest.mark.parametrize("quiet", [True, False])
def test_what_the_design_can_decide_is_said_before_the_first_run_unless_quiet(tmp_path, made, monkeypatch, quiet):
    monkeypatch.setattr(execute, "is_quiet", lambda: quiet)
    monkeypatch.setattr(execute, "design_notes", lambda study: ["it can", "it cannot"])
    seen = Seen()
    run_study(walk(tmp_path), out=tmp_path / "out", show=seen)
    assert seen.lines == ([] if quiet else ["it can", "it cannot"])
