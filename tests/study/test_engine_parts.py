"""The local engine without a server: how ends are worded, when a run is given up, what a run's process does."""

import json
import os
import random
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engine_studies import walk
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.study import engine, execute
from equipoise.study.engine import Event, InlineEngine, LocalEngine
from equipoise.study.execute import _Plan, _Silent
from equipoise.study.fingerprint import code_of
from equipoise.study.store import Store, Task, read_json


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    monkeypatch.setattr("equipoise.core.files._sync", lambda path: None)


def task(root: Path, key: str = "k", **changes) -> Task:
    return Task(
        **{
            "key": key,
            "role": "test",
            "reference": "r",
            "root": str(root),
            "options": {},
            "seed": 3,
            "fingerprint": "f",
        }
        | changes
    )


@pytest.fixture
def local(monkeypatch):
    """An engine whose server takes down what it is sent."""
    started = []

    class Server:
        def __init__(self, command, **how):
            started.append((command, how))
            self.sent = []
            self.stdin = SimpleNamespace(write=lambda line: self.sent.append(json.loads(line)), flush=lambda: None)

    monkeypatch.setattr(engine.subprocess, "Popen", Server)
    made = LocalEngine(workers=3, threads=2, preload=("numpy",), reference="walk", options={"steps": 1})
    made.started = started
    return made


def test_the_server_is_started_apart_with_the_threads_of_a_run(local):
    assert (local.slots, local.stall) == (3, 600.0)
    ((command, how),) = local.started
    assert command == [sys.executable, "-c", engine._START, json.dumps(sys.path)]
    environment = how.pop("env")
    assert environment["PATH"] == os.environ["PATH"] and environment.items() >= engine._environment(2).items()
    assert how == {"stdin": -1, "stdout": -1, "start_new_session": True}
    assert local._server.sent == [{"preload": ["numpy"], "reference": "walk", "options": {"steps": 1}}]
    assert engine._environment(2) == {
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "VECLIB_MAXIMUM_THREADS": "2",
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONHASHSEED": "0",
    }


def test_a_run_is_given_up_past_its_limit_not_at_it_and_told_so_once(local, monkeypatch, tmp_path):
    now = [1000.0]
    monkeypatch.setattr(engine.time, "monotonic", lambda: now[0])
    local._looked = now[0]

    def watch_until(moment):
        while now[0] < moment:
            now[0] = min(now[0] + 50.0, moment)
            local._watch()

    for key in ("a", "b"):
        local.submit(task(tmp_path, key))
    del local._server.sent[:]
    assert local._understand({"key": "a", "event": "started", "pid": 5}) == [Event("a", "started", data={"pid": 5})]
    watch_until(1600.0)
    assert local._server.sent == []
    watch_until(1600.5)  # b has the time of the server's imports on top
    local._watch()
    assert local._server.sent == [{"stop": "a"}]
    watch_until(2200.0)
    assert local._server.sent == [{"stop": "a"}]
    watch_until(2200.5)
    assert local._server.sent == [{"stop": "a"}, {"stop": "b"}]
    assert local._understand({"key": "gone", "event": "beat"}) == []


@pytest.mark.parametrize(
    ("result", "given_up", "status", "state", "text"),
    [
        (("complete", ""), False, 0, "complete", ""),
        (("failed", "why"), False, 1, "failed", "why"),
        (("failed", "why"), True, -9, "failed", "why"),
        (None, True, -9, "gave up", "no sign of life for 600 s; its stack is in the log"),
        (None, False, -9, "failed", "the process was ended by SIGKILL (out of memory?)"),
        (None, False, -15, "failed", "the process was ended by SIGTERM"),
        (None, False, 0, "failed", "the process ended with exit code 0 and no result"),
        (None, False, 70, "failed", "the process ended with exit code 70 and no result"),
    ],
)
def test_how_a_process_ended_in_words(local, tmp_path, result, given_up, status, state, text):
    given = task(tmp_path)
    local.submit(given)
    partial = tmp_path / "runs" / "k.partial"
    partial.mkdir(parents=True)
    if result is not None:
        assert local._understand({"key": "k", "event": "result", "state": result[0], "text": result[1]}) == []
    if given_up:
        local._given_up.add("k")
    assert local._understand({"key": "k", "event": "exited", "status": status}) == [Event("k", "ended", state, text)]
    assert (local._tasks, local._alive, local._results, local._given_up) == ({}, {}, {}, set())
    stored = partial / "failure.json"
    if result is None:  # what ended without a word is written down by the engine
        assert {key: read_json(stored)[key] for key in ("state", "error")} == {"state": state, "error": text}
    else:
        assert not stored.exists()


def test_notes_and_beats_arrive_as_they_were_reported(local, tmp_path):
    local.submit(task(tmp_path))
    note = local._understand({"key": "k", "event": "note", "text": "set aside"})
    beat = local._understand({"key": "k", "event": "beat", "spent": {"calls": 1}, "outcome": "x"})
    assert note == [Event("k", "note", None, "set aside", {})]
    assert beat == [Event("k", "beat", None, "", {"spent": {"calls": 1}, "outcome": "x"})]


def test_a_server_that_is_gone_is_said(local, tmp_path):
    def gone(line):
        raise BrokenPipeError

    local._server.stdin.write = gone
    local._server.wait = lambda: -6
    said = "The process that starts the runs ended with -6; what was stored is safe, run again to resume."
    with pytest.raises(WorkFailed) as caught:
        local.submit(task(tmp_path))
    assert str(caught.value) == said


def test_events_fit_into_one_write_of_a_pipe():
    receive, send = os.pipe()
    short = {"key": "k", "event": "result", "state": "failed", "text": "é"}
    engine._write_event(send, short)
    room = engine.LONGEST_EVENT - len(json.dumps({**short, "text": ""}))
    whole = {**short, "text": "x" * room}
    engine._write_event(send, whole)
    engine._write_event(send, {**whole, "text": "x" * (room + 1), "data": 1})
    engine._write_event(send, {"key": "k", "event": "beat", "place": "y" * 4000})
    os.close(send)
    with os.fdopen(receive, "rb") as read:
        lines = [json.loads(line) for line in read]
    assert lines == [short, whole, {**short, "text": "x" * 500}, {"key": "k", "event": "beat", "text": ""}]
    assert engine.LONGEST_EVENT < 4096


def test_what_is_preloaded_and_what_cannot_be(monkeypatch):
    asked = []

    class Module:
        def __getattr__(self, name):
            asked.append(name)
            raise AttributeError(name)

    def imported(name):
        asked.append(name)
        if name == "broken":
            raise ImportError(name)
        return Module()

    class Found:
        def build(self, **options):
            asked.append(options)
            raise BadInput("no")

    torch = SimpleNamespace(use_deterministic_algorithms=lambda on, warn_only: asked.append((on, warn_only)))
    monkeypatch.setattr(engine.importlib, "import_module", imported)
    monkeypatch.setattr(engine.registry, "load", lambda reference: asked.append(reference) or Found())
    monkeypatch.setitem(sys.modules, "torch", torch)
    engine._preload(["broken", "json", "json:loads"], "walk", {"steps": 2})
    assert asked == ["broken", "json", "json", "loads", "walk", {"steps": 2}, (True, True)]
    asked.clear()
    monkeypatch.delitem(sys.modules, "torch")
    engine._preload([], "", {})
    assert asked == []


def test_equal_seeds_make_equal_global_draws(monkeypatch, tmp_path):
    asked = []
    torch = SimpleNamespace(
        set_num_threads=asked.append,
        use_deterministic_algorithms=lambda on, warn_only: asked.append((on, warn_only)),
        manual_seed=asked.append,
    )
    before = random.getstate(), np.random.get_state()
    try:
        monkeypatch.setitem(sys.modules, "torch", torch)
        engine._make_deterministic(task(tmp_path, seed=2**32 + 5, config={"threads": 4}))
        drawn = random.random(), np.random.random()
        engine._make_deterministic(task(tmp_path, seed=2**32 + 5))
        assert (random.random(), np.random.random()) == drawn
        assert asked == [4, (True, True), 2**32 + 5, 1, (True, True), 2**32 + 5]
        random.seed(2**32 + 5)
        np.random.seed(5)
        assert (random.random(), np.random.random()) == drawn
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def test_engines_by_name(monkeypatch):
    assert execute.engine_named("local") is LocalEngine and execute.engine_named("inline") is InlineEngine
    monkeypatch.setattr("equipoise.study.ray_engine.ray_library", lambda: None)
    assert execute.engine_named("ray").__name__ == "RayEngine"
    with pytest.raises(BadInput, match=r"There is no engine 'lcal'\. Did you mean 'local'\?"):
        execute.engine_named("lcal")


def test_where_a_preparation_left_its_files(tmp_path):
    store = Store(tmp_path)
    assert engine._prepared(store, task(tmp_path)) is None
    assert engine._prepared(store, task(tmp_path, needs="p")) == tmp_path / "preparations" / "p" / "artifacts"


def planned(tmp_path, options, **changes) -> _Plan:
    declaration = walk(tmp_path)
    study, store = declaration.build(**options), Store(tmp_path / "out")
    given = {"arms": [study.arm("flat")], "seeds": [1], "retry": False, "show": _Silent(), **changes}
    return _Plan(declaration, study, store, code_of(declaration.source), 1, **given)


def test_a_run_that_fails_is_closed_with_its_costs_and_told(tmp_path, capsys):
    """Three steps are measured before it breaks; its seconds and its peak are booked all the same."""
    plan = planned(tmp_path, {"bad": "raise"})
    seen = []
    preparation, run = plan.waiting
    assert engine.perform(preparation, seen.append) == ("complete", "")
    assert engine.perform(run, seen.append) == ("failed", "RuntimeError: the arm broke")
    assert "in misbehave" in capsys.readouterr().err
    partial = tmp_path / "out" / "runs" / f"{run.key}.partial"
    cost = read_json(partial / "cost.json")
    assert cost["attempts"] == 1 and cost["spent"]["build"] == {"optimizer_steps": 2}
    assert cost["spent"]["run"]["seconds"] > 0 and cost["spent"]["run"]["peak_bytes"] > 1e6
    assert (partial / "traceback.txt").read_text().endswith("RuntimeError: the arm broke\n")
    assert seen[-1]["event"] == "beat" and seen[-1]["spent"]["optimizer_steps"] == 2
    assert engine.perform(preparation, seen.append) == ("complete", "")  # found done


def test_a_failed_preparation_and_one_without_its_folder(tmp_path):
    plan = planned(tmp_path, {"bad": "prepare-1"})
    preparation, run = plan.waiting
    assert engine.perform(preparation, lambda event: None) == ("failed", "ValueError: no preparation")
    state, why = engine.perform(run, lambda event: None)
    assert state == "failed" and why.startswith("FileNotFoundError: ")


def test_what_was_set_aside_is_reported_first(tmp_path):
    plan = planned(tmp_path, {})
    preparation, _ = plan.waiting
    partial = tmp_path / "out" / "preparations" / f"{preparation.key}.partial"
    partial.mkdir(parents=True)
    (partial / "checkpoint.safetensors").write_bytes(b"broken")
    seen = []
    assert engine.perform(preparation, seen.append) == ("complete", "")
    assert seen[0]["event"] == "note" and seen[0]["text"].startswith(f"{partial.name} is damaged (")
    assert seen[0]["text"].endswith(
        f"; set aside as {tmp_path / 'out' / 'set-aside' / partial.name}.old-1, started anew."
    )


def test_a_run_that_measures_nothing_has_failed(tmp_path, monkeypatch):
    plan = planned(tmp_path, {"steps": 1})
    preparation, run = plan.waiting
    engine.perform(preparation, lambda event: None)
    monkeypatch.setattr("equipoise.study.run.Run.measured_anything", lambda self: False)
    said = "the run measured nothing; call run.measure or run.items"
    assert engine.perform(run, lambda event: None) == ("failed", said)
    monkeypatch.undo()
    assert engine.perform(run, lambda event: None) == ("complete", "")


def test_an_interrupt_is_no_failure(tmp_path, monkeypatch):
    plan = planned(tmp_path, {})
    preparation, _ = plan.waiting

    def interrupted(given):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_make_deterministic", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.perform(preparation, lambda event: None)
    assert not list((tmp_path / "out").rglob("failure.json"))


def test_one_after_the_other_in_this_process(tmp_path, monkeypatch, capsys):
    def perform(given, report):
        print("of the study")
        report({"event": "note", "text": "n"})
        report({"event": "beat", "spent": {"calls": 2}})
        return ("complete", "") if given.key == "b" else ("failed", "why")

    monkeypatch.setattr(engine, "perform", perform)
    with InlineEngine(workers=7, threads=1) as inline:
        assert inline.slots == 1
        for key in "ab":
            inline.submit(task(tmp_path, key))
        events = list(inline.events(0.5))
        inline.submit(task(tmp_path, "c"))
    assert inline._waiting == []
    assert events == [
        each
        for key, state, text in (("b", "complete", ""), ("a", "failed", "why"))
        for each in (
            Event(key, "started"),
            Event(key, "note", text="n"),
            Event(key, "beat", data={"spent": {"calls": 2}}),
            Event(key, "ended", state, text),
        )
    ]
    said = capsys.readouterr()
    assert said.out == "" and said.err == "of the study\n" * 2


def test_a_log_takes_both_streams(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    child = os.fork()
    if child == 0:
        engine._redirect(log)
        os.write(1, b"out\n")
        os.write(2, b"err\n")
        os._exit(0)
    os.waitpid(child, 0)
    assert log.read_text() == "before\nout\nerr\n"


def test_whoever_is_signalled_may_be_gone():
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os._exit(0)
    os.waitpid(child, 0)
    engine._kill(child, signal.SIGKILL)


def test_runs_are_not_given_up_for_the_time_that_everything_was_stopped(local, monkeypatch):
    """As by a batch system that suspends a job: nobody had a chance to give a sign of life."""
    clock = [1000.0]
    monkeypatch.setattr(engine.time, "monotonic", lambda: clock[0])
    local._looked, local._alive, sent = clock[0], {"a": clock[0], "b": clock[0] + 900}, local._server.sent
    sent.clear()
    clock[0] += 1200.0
    local._watch()
    assert sent == [] and local._alive == {"a": 2200.0, "b": 2200.0}
    for _ in range(60):  # then ten minutes of its own are needed
        clock[0] += 10.0
        local._watch()
    assert sent == []
    clock[0] += 10.0
    local._watch()
    assert sent == [{"stop": "a"}, {"stop": "b"}]


class Ended(BaseException):
    """Where a process would end."""


class System:
    """What the server asks the system for, taken down; commands, deaths and the clock come from a script.

    script: a step for each wait: what arrives (None: nothing; b"" is the end), the processes that have ended, and how late
    it is then.
    """

    def __init__(self, monkeypatch, script=(), forks=()):
        self.asked, self.written, self.pauses, self.handled = [], [], [], []
        self.script, self.forks = list(script), list(forks)
        self.now, self.data, self.dead, self.gone = 100.0, None, {}, ()
        self.pipes = [(60, 61), (62, 63)]
        monkeypatch.setattr(engine, "os", self)
        monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(engine, "select", SimpleNamespace(select=self.wait))
        kept = {
            name: getattr(signal, name) for name in ("SIGCHLD", "SIGINT", "SIGUSR1", "SIGKILL", "SIG_IGN", "SIG_DFL")
        }
        calls = {name: self.noted(name) for name in ("signal", "set_wakeup_fd")}
        monkeypatch.setattr(engine, "signal", SimpleNamespace(**kept, **calls))

    def noted(self, name):
        return lambda *arguments, **named: self.asked.append((name, *arguments, *named.items()))

    def __getattr__(self, name):
        if name in ("dup2", "set_blocking", "close"):
            return self.noted(name)
        return getattr(os, name)

    def wait(self, read, write, failed, pause):
        self.pauses.append(pause)
        self.data, self.dead, self.now = self.script.pop(0)
        assert (read, write, failed) == ([0, 60], [], [])
        return [0] * (self.data is not None) + [60] * bool(self.dead), [], []

    def read(self, descriptor, size):
        assert size == (4096 if descriptor == 60 else 65536)
        if descriptor == 60:
            raise BlockingIOError
        return self.data

    def write(self, descriptor, line):
        self.written.append((descriptor, json.loads(line)))

    def dup(self, descriptor):
        return 50 + descriptor

    def open(self, path, flags):
        return (path, flags)

    def pipe(self):
        return self.pipes.pop(0)

    def fork(self):
        return self.forks.pop(0)

    def setpgid(self, *both):
        self.asked.append(("setpgid", *both))
        raise PermissionError  # the child was first

    def waitpid(self, pid, how):
        if how == 0:
            self.asked.append(("waitpid", pid))
            return pid, 0
        assert how == os.WNOHANG
        return (pid, self.dead[pid]) if pid in self.dead else (0, 0)

    def kill(self, pid, number):
        self.asked.append(("kill", pid, number))

    def killpg(self, pid, number):
        self.asked.append(("killpg", pid, number))
        if pid in self.gone:
            raise ProcessLookupError

    def _exit(self, code):
        raise Ended(code)


def lines(*commands):
    return b"".join(json.dumps(command).encode() + b"\n" for command in commands)


def served(system):
    with pytest.raises(Ended, match=r"^0$"):
        engine.serve()
    return [each for each in system.asked if each[0] in ("kill", "killpg", "waitpid")]


def test_the_server_keeps_its_output_for_events_and_minds_no_interrupt(monkeypatch):
    system = System(monkeypatch, [(b"", {}, 100.0)])
    assert served(system) == [] and system.pauses == [3600.0]
    *others, (name, number, handler), ignored = system.asked
    assert others == [
        ("dup2", 2, 1),
        ("set_blocking", 60, False),
        ("set_blocking", 61, False),
        ("set_wakeup_fd", 61, ("warn_on_full_buffer", False)),
    ]
    assert (name, number, handler(17, None)) == ("signal", signal.SIGCHLD, None)
    assert ignored == ("signal", signal.SIGINT, signal.SIG_IGN)


def test_the_server_forks_and_tells_how_each_process_ended(monkeypatch):
    """A command may come in pieces, or several at once; processes may end while others go on."""
    loaded = []
    monkeypatch.setattr(engine, "_preload", lambda **command: loaded.append(command))
    preload = {"preload": ["numpy"], "reference": "walk", "options": {}}
    both = lines(preload, {"start": "a", "task": {}}, {"start": "b", "task": {}}, {"start": "c", "task": {}})
    system = System(
        monkeypatch,
        [
            (both[:-9], {}, 100.0),
            (both[-9:], {}, 100.0),
            (None, {11: 0, 13: 9}, 100.0),
            (None, {}, 100.0),
            (lines({"start": "d", "task": {}}), {12: 3 << 8}, 100.0),
            (b"", {}, 100.0),
        ],
        forks=[11, 12, 13, 14],
    )
    assert served(system) == [("killpg", 14, signal.SIGKILL), ("waitpid", 14)]
    assert loaded == [preload]
    assert [each for each in system.asked if each[0] == "setpgid"] == [("setpgid", n, n) for n in (11, 12, 13, 14)]

    def exited(key, status):
        return (51, {"key": key, "event": "exited", "status": status})

    assert system.written == [exited("a", 0), exited("c", -9), exited("b", 3)]
    assert set(system.pauses) == {3600.0}


def test_a_process_that_is_stopped_may_say_where_it_stands_before_it_is_killed(monkeypatch):
    start = [{"start": key, "task": {}} for key in ("a", "b", "c")]
    system = System(
        monkeypatch,
        [
            (lines(*start), {}, 100.0),
            (lines({"stop": "b"}, {"stop": "unknown"}), {}, 200.0),
            (lines({"stop": "c"}), {}, 200.25),
            (None, {13: 1 << 8}, 200.375),  # it ends by itself
            (None, {}, 200.4375),
            (None, {}, 200.5),
            (None, {12: 9}, 201.0),
            (b"", {}, 202.0),
        ],
        forks=[11, 12, 13],
    )
    system.gone = (12, 11)  # whoever is killed may be gone already
    assert served(system) == [
        ("kill", 12, signal.SIGUSR1),
        ("kill", 13, signal.SIGUSR1),
        ("killpg", 12, signal.SIGKILL),
        ("killpg", 11, signal.SIGKILL),
        ("waitpid", 11),
    ]
    assert system.pauses == [3600.0, 3600.0, 0.5, 0.25, 0.125, 0.0625, 3600.0, 3600.0]
    assert [(event["key"], event["status"]) for _, event in system.written] == [("c", 1), ("b", -9)]


def test_a_wait_for_what_is_late_already_is_none(monkeypatch):
    ticking = iter([200.0, 201.0, 201.0])
    script = [(lines({"start": "a", "task": {}}), {}, 100.0), (lines({"stop": "a"}), {}, 200.0), (b"", {}, 201.0)]
    system = System(monkeypatch, script, forks=[11])
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: next(ticking)))
    assert served(system).count(("killpg", 11, signal.SIGKILL)) == 2
    assert system.pauses == [3600.0, 3600.0, 0.0]


def test_what_is_forked_is_the_run(monkeypatch):
    asked = []

    def child(*arguments):
        asked.append(arguments)
        raise Ended("the run")

    monkeypatch.setattr(engine, "_child", child)
    System(monkeypatch, [(lines({"start": "a", "task": {"key": "x"}}), {}, 1.0)], forks=[0])
    with pytest.raises(Ended, match="the run"):
        engine.serve()
    assert asked == [({"key": "x"}, 51, (62, 63), (60, 61))]


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Runs `_child` with this as what is done; (the code it ends with, what it wrote, what it asked for)."""

    def run(perform, broken=False):
        system = System(monkeypatch)
        if broken:

            def write(descriptor, line):
                raise BrokenPipeError

            system.write = write
        monkeypatch.setattr(engine, "_die_with", system.noted("_die_with"))
        calls = {name: system.noted(name) for name in ("register", "enable")}
        monkeypatch.setattr(engine, "faulthandler", SimpleNamespace(**calls))
        monkeypatch.setattr(engine, "perform", perform)
        fields = vars(task(tmp_path, "k"))
        with pytest.raises(Ended) as ended:
            engine._child(fields, 51, (62, 63), (60, 61))
        return ended.value.args[0], system.written, system.asked

    return run


def test_a_runs_process_tells_that_it_started_and_how_it_ended(child):
    def perform(task, report, *, redirect):
        assert (task.key, task.seed, redirect) == ("k", 3, True)
        report({"event": "beat", "share": 0.5})
        return "complete", ""

    code, written, asked = child(perform)
    assert code == 0 and written == [
        (51, {"key": "k", "event": "started", "pid": os.getpid()}),
        (51, {"key": "k", "event": "beat", "share": 0.5}),
        (51, {"key": "k", "event": "result", "state": "complete", "text": ""}),
    ]
    assert asked == [
        ("setpgid", 0, 0),
        ("set_wakeup_fd", -1),
        ("signal", signal.SIGCHLD, signal.SIG_DFL),
        ("close", 60),
        ("close", 61),
        ("close", 63),
        ("_die_with", 62),
        ("dup2", (os.devnull, os.O_RDONLY), 0),
        ("register", signal.SIGUSR1, ("file", 2), ("all_threads", True)),
        ("enable", ("file", 2)),
    ]


def test_a_runs_process_ends_with_what_went_wrong(child, capsys):
    code, written, _ = child(lambda *_, **__: ("failed", "no model"))
    assert (code, written[-1][1]["state"], written[-1][1]["text"]) == (1, "failed", "no model")

    def raising(error):
        def perform(*_, **__):
            raise error

        return perform

    code, written, _ = child(raising(OSError("disk full")))
    assert (code, written[-1][1]["state"], written[-1][1]["text"]) == (1, "failed", "OSError: disk full")
    assert capsys.readouterr().err == ""
    code, written, _ = child(raising(KeyboardInterrupt("odd")))
    assert code == 70 and [event["event"] for _, event in written] == ["started"]
    assert "KeyboardInterrupt: odd" in capsys.readouterr().err


def test_a_run_that_nobody_listens_to_stops_and_does_not_fail(child, capsys):
    done = []
    code, written, _ = child(lambda *_, **__: done.append(1), broken=True)
    assert code == 70 and done == [] and written == []


def test_a_process_ends_with_its_server(monkeypatch):
    system = System(monkeypatch)
    made, told = [], []

    class Thread:
        def __init__(self, **settings):
            self.settings = settings
            made.append(self)

        def start(self):
            self.started = True

    monkeypatch.setattr(engine.threading, "Thread", Thread)
    monkeypatch.setattr(engine, "_C_LIBRARY", SimpleNamespace(prctl=lambda *arguments: told.append(arguments)))
    receive, send = os.pipe()
    asked = []
    system.read = lambda descriptor, size: asked.append(size) or os.read(descriptor, size)
    for platform in ("linux", "darwin"):
        monkeypatch.setattr(sys, "platform", platform)
        engine._die_with(receive)
    assert told == [(1, signal.SIGKILL)] and [thread.started for thread in made] == [True, True]
    assert all(thread.settings["daemon"] for thread in made)
    os.close(send)
    with pytest.raises(Ended, match=r"^1$"):
        made[0].settings["target"]()
    assert asked == [1]  # reading nothing would not wait
    os.close(receive)
