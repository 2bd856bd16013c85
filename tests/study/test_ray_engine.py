"""`--engine ray`: what the command decides, on a Ray that plays a script; and, where Ray is installed, real clusters."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow.parquet as pq
import pytest

from engine_studies import SOURCE, stored, walk
from equipoise.cli import main
from equipoise.core.errors import BadInput, MissingExtra, WorkFailed
from equipoise.study import ray_engine
from equipoise.study.engine import Event
from equipoise.study.execute import engine_named, run_study
from equipoise.study.ray_engine import FALSE_STARTS, LOSSES, RayEngine
from equipoise.study.store import Task, read_json

TESTS = str(Path(__file__).parent.parent)


# ---- without Ray -----------------------------------------------------------------------------------------------------


def test_without_the_extra_one_sentence_and_exit_2(tmp_path, monkeypatch, capsys):
    walk(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["study", "run", str(tmp_path / "walk_study.py"), "--engine", "ray", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    out, error = capsys.readouterr()
    assert out == "" and "pip install 'equipoise[ray]'" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(MissingExtra):
        engine_named("ray")


class Reference:
    def __init__(self, value):
        self.value, self.ready = value, value is not None


class Stream:
    def __init__(self, batches):
        self.batches = batches

    @property
    def ready(self):
        return bool(self.batches)

    def __next__(self):
        return Reference(self.batches.pop(0))


class Call:
    def __init__(self, answer):
        self.answer = answer

    def options(self, num_returns):
        assert num_returns == "streaming"
        return self

    def remote(self, *arguments):
        return self.answer(*arguments)


class Worker:
    """Answers `node` with the first part of its script, each task with the next one."""

    def __init__(self, script):
        self.node = Call(lambda: Reference(script.pop(0)))
        self.perform = Call(lambda task: Stream(script.pop(0)))


class ScriptedRay:
    """As much of Ray as the engine uses. Exceptions in a script are raised; None is an answer that never comes."""

    class exceptions:
        class RayError(Exception): ...

    def __init__(self, *scripts):
        self.scripts, self.workers, self.killed, self.asked = list(scripts), [], [], {}

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return {"CPU": 8.0, "GPU": 2.0}

    def remote(self, cls):
        return self

    def options(self, **needs):
        self.asked = needs
        return Call(self._start)

    def _start(self, settings):
        json.loads(settings)
        self.workers.append(Worker(self.scripts.pop(0)))
        return self.workers[-1]

    def wait(self, references, num_returns, timeout):
        ready = [each for each in references if each.ready][:num_returns]
        return ready, [each for each in references if each not in ready]

    def get(self, reference):
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    def kill(self, worker):
        self.killed.append(self.workers.index(worker))


def batch(*events):
    return json.dumps([{"key": "up-0-seed0-f", "text": "", "data": {}, "state": None, **event} for event in events])


STARTED = batch({"kind": "started"})
COMPLETE = batch({"kind": "ended", "state": "complete"})
GONE = ScriptedRay.exceptions.RayError("The actor died.\nThe worker process has died. Some common causes include: all")


@pytest.fixture
def host(monkeypatch, tmp_path):
    """The actor, on an engine that plays batches of events, by a clock that the engine moves on by a second each."""
    clock, made, batches = [0.0], [], []

    class Played:
        def __init__(self, **given):
            made.append(given)

        def submit(self, task):
            made.append(task)

        def events(self, seconds):
            made.append(seconds)
            clock[0] += batches[0][0]
            return [Event("k", **event) for event in batches.pop(0)[1]]

    monkeypatch.setattr(ray_engine, "LocalEngine", Played)
    monkeypatch.setattr(ray_engine.time, "monotonic", lambda: clock[0])
    monkeypatch.setenv("KNOWN_HERE", "mine")
    monkeypatch.setenv("NEW_HERE", "")
    monkeypatch.delenv("NEW_HERE")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    variables = {"KNOWN_HERE": "theirs", "NEW_HERE": "1"}
    settings = {"threads": 2, "variables": variables, "folder": str(tmp_path / "there")}
    return ray_engine.RayHost(json.dumps(settings)), made, batches


def test_the_actor_works_in_the_commands_folder_on_an_engine_of_its_own(host, tmp_path):
    actor, made, _ = host
    assert made == [{"workers": 1, "threads": 2}] and Path.cwd() == tmp_path / "there"
    assert (os.environ["KNOWN_HERE"], os.environ["NEW_HERE"]) == ("mine", "1")
    assert actor.node() == ray_engine.platform.node()


def test_the_actor_tells_once_a_tick_and_at_the_end(host, monkeypatch):
    actor, made, batches = host
    task = Task("k", "test", "none", "root", {}, 0, "f")
    beat, end = {"kind": "beat", "data": {"spent": {"calls": 1}}}, {"kind": "ended", "state": "complete"}
    monkeypatch.setattr(ray_engine, "_refusal", lambda wanted: "" if wanted == task else "no")
    batches += [(0.5, [{"kind": "started"}]), (0.5, [beat]), (0.5, []), (0.25, [beat]), (0.5, [beat, end])]
    told = [json.loads(text) for text in actor.perform(json.dumps(asdict(task)))]
    assert [[event["kind"] for event in each] for each in told] == [["started"], ["beat"], ["beat", "beat", "ended"]]
    assert told[1] == [asdict(Event("k", "beat", data={"spent": {"calls": 1}}))]
    assert made[1:] == [task, *[ray_engine.TICK] * 5]
    (refused,) = actor.perform(json.dumps(asdict(replace(task, key="x"))))
    assert json.loads(refused) == [asdict(Event("x", "ended", "failed", "no"))]


def test_a_cluster_is_joined_where_there_is_one_and_started_here_where_not(monkeypatch):
    asked = []

    def connected(address, *, already=False, fails=None):
        def init(**settings):
            asked.append(settings)
            if fails:
                raise fails

        monkeypatch.setenv(ray_engine.ADDRESS, address)
        return ray_engine._connect(SimpleNamespace(is_initialized=lambda: already, init=init), 6)

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    assert connected("", already=True) is False and asked == []
    assert connected("auto") is True and asked == [{"address": "auto", **quiet}]
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ
    assert connected("") is True and os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    small = {"include_dashboard": False, "num_cpus": 6, "object_store_memory": 83_886_080}
    assert asked[1] == {"address": "local", **quiet, **small}
    with pytest.raises(BadInput, match=r"RAY_ADDRESS is ray://h: run the command on a node of the cluster"):
        connected("ray://h")
    for error in (ConnectionError("away"), ValueError("away"), RuntimeError("away")):
        with pytest.raises(WorkFailed, match=r"^No Ray cluster could be reached at auto: .*away"):
            connected("auto", fails=error)


def spent(**amounts):
    return batch({"kind": "beat", "data": {"spent": amounts}})


def engine(monkeypatch, *scripts, **settings):
    ray = ScriptedRay(*scripts)
    monkeypatch.setattr(ray_engine, "ray_library", lambda: ray)
    return ray, RayEngine(**{"workers": 3, "threads": 2, **settings})


def done(engine, task, turns=40):
    engine.submit(task)
    events = []
    while not any(event.kind == "ended" for event in events):
        events += engine.events(0.0)
        turns -= 1
        assert turns
    return events


@pytest.fixture
def task(tmp_path):
    return Task("up-0-seed0-f", "test", "walk", str(tmp_path), {}, 0, "f", arm="up")


def test_what_lost_attempts_spent_counts_and_the_worker_is_used_again(monkeypatch, task):
    ray, made = engine(
        monkeypatch,
        ["a", [STARTED, spent(calls=3, tokens=10), spent(calls=4, tokens=11), GONE]],
        ["b", [STARTED, spent(calls=2), GONE]],
        ["c", [STARTED, spent(calls=1, seconds=0.5), COMPLETE], [STARTED, spent(calls=1), COMPLETE]],
    )
    with made:
        events = done(made, task)
        amounts = [event.data["spent"] for event in events if "spent" in event.data]
        assert amounts == [
            {"calls": 3, "tokens": 10},
            {"calls": 4, "tokens": 11},
            {"calls": 6, "tokens": 11},
            {"calls": 7, "tokens": 11, "seconds": 0.5},
        ]
        notes = [event.text for event in events if event.kind == "note"]
        assert [note.partition("worker on ")[2][:1] for note in notes] == ["a", "b"]
        assert "(The worker process has died.)" in notes[0]
        assert events[-1].state == "complete" and ray.killed == [0, 1]
        assert done(made, task)[-1].state == "complete"
        assert len(ray.workers) == 3
    assert ray.killed == [0, 1, 2]
    assert ray.asked == {"num_cpus": 2, "num_gpus": 0.5}


def test_a_run_that_ends_its_workers_fails_at_the_stated_bound(monkeypatch, task, tmp_path):
    (tmp_path / "runs" / f"{task.key}.partial").mkdir(parents=True)
    scripts = [[f"node{index}", [STARTED, GONE]] for index in range(9)]
    ray, made = engine(monkeypatch, *scripts)
    with made:
        *_, last = done(made, task)
    assert len(ray.killed) == LOSSES + 1 == 4
    assert (last.state, last.text) == (
        "failed",
        "its worker was lost 4 times, last on node3: The worker process has died.",
    )
    failure = read_json(tmp_path / "runs" / f"{task.key}.partial" / "failure.json")
    assert failure == {"state": "failed", "error": last.text}


def test_workers_that_die_before_a_run_begins_are_the_clusters_fault(monkeypatch, task):
    def early(count):  # some before they answer, some at work on a run that has not begun
        return [[GONE] if index % 2 else ["a", [GONE]] for index in range(count)]

    few = FALSE_STARTS + 3  # one for each of three slots
    ray, made = engine(monkeypatch, *early(few + 1))
    with made, pytest.raises(WorkFailed, match=r"24 Ray workers in a row.*process has died\."):
        done(made, task, turns=200)
    assert len(ray.workers) == few + 1
    monkeypatch.setattr(ray_engine, "FALSE_STARTS", 2)  # 2 + 3 is more than 2 | 3
    ray, made = engine(monkeypatch, *early(6))
    with made, pytest.raises(WorkFailed, match=r"^6 Ray workers in a row"):
        done(made, task, turns=200)
    monkeypatch.setattr(ray_engine, "FALSE_STARTS", FALSE_STARTS)
    # A run that began in between shows that the cluster works; it is not blamed for what died before it began.
    _, made = engine(monkeypatch, *early(few), ["b", [STARTED, GONE]], *early(few - 1), ["c", [STARTED, COMPLETE]])
    with made:
        assert done(made, task, turns=200)[-1].state == "complete"


def test_a_silent_worker_is_given_up_and_no_worker_at_all_is_an_error(monkeypatch, task):
    clock = [0.0]
    monkeypatch.setattr(ray_engine.time, "monotonic", lambda: clock[0])
    ray, made = engine(monkeypatch, ["a", [STARTED]], ["b", [STARTED, COMPLETE]], stall=5.0)
    with made:
        made.submit(task)
        made.events(0.0)
        assert [event.kind for event in made.events(0.0)] == ["started"]
        clock[0] = 64.9
        assert made.events(0.0) == [] and ray.killed == []
        clock[0] = 65.1
        (note,) = made.events(0.0)
        assert ray.killed == [0] and "it said nothing for 65 s" in note.text
        assert made.events(0.0) == [] and [event.kind for event in made.events(0.0)] == ["started"]
    _, made = engine(monkeypatch, [None])
    with made:
        made.submit(task)
        clock[0] += ray_engine.START_LIMIT - 1
        assert made.events(0.0) == []
        clock[0] += 2
        with pytest.raises(WorkFailed, match=r"No Ray worker was ready.*'num_cpus': 2.*'CPU': 8\.0"):
            made.events(0.0)


@pytest.mark.parametrize(("gpus", "workers", "share"), [(0, 4, 0), (8, 8, 1), (8, 4, 1), (8, 12, 0.5), (1, 3, 1 / 3)])
def test_gpus_are_shared_so_that_all_workers_fit(gpus, workers, share):
    assert ray_engine._share(float(gpus), workers) == share
    assert not share or int(1 / share + 1e-9) * gpus >= workers


def test_results_are_printed_after_what_ray_says_on_stdout(monkeypatch, capsys):
    _, made = engine(monkeypatch)
    with made:
        print("(raylet) A worker died")
    print("report.html")
    out, error = capsys.readouterr()
    assert (out, error) == ("report.html\n", "(raylet) A worker died\n")


def test_the_client_protocol_is_refused(monkeypatch, capsys):
    ray = ScriptedRay()
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_engine, "ray_library", lambda: ray)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(BadInput, match="RAY_ADDRESS=auto"):
        RayEngine(workers=1, threads=1)
    print("here")
    assert capsys.readouterr().out == "here\n"


def test_a_node_refuses_what_it_does_not_share(tmp_path):
    declaration, out = walk(tmp_path), tmp_path / "out"
    run_study(declaration, out=out, seeds=[0], arms=["up"], engine="inline")
    (folder,) = out.glob("runs/up-*")
    config = json.loads((folder / "config.json").read_text())
    task = Task(folder.name, "test", config["reference"], str(out), {}, 0, config["fingerprint"], config=config)
    assert ray_engine._refusal(task) == ""
    other = replace(task, config={**config, "code": "0" * 64})
    assert "other code than the command" in ray_engine._refusal(other)
    absent = replace(task, reference=str(tmp_path / "gone.py"))
    assert "cannot load the study: BadInput" in ray_engine._refusal(absent)
    (out / "study.json").unlink()
    assert "--out must lie in a folder that all nodes share" in ray_engine._refusal(task)


# ---- real clusters ---------------------------------------------------------------------------------------------------

RUN = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from engine_studies import walk
from equipoise.study.execute import run_study
folder, given = Path(sys.argv[2]), json.loads(sys.argv[3])
done = run_study(walk(folder), given.pop("options"), out=folder / "out", engine="ray", workers=2, **given)
print(json.dumps([done.complete, done.failed, done.notes]))
"""


@pytest.fixture
def start(tmp_path):
    """Starts the study on Ray in a process of its own, and ends whatever of it is left."""
    pytest.importorskip("ray")
    started = []

    def start(options, variables=None, **given):
        arguments = [sys.executable, "-c", RUN, TESTS, str(tmp_path), json.dumps({"options": options, **given})]
        environment = {**os.environ, "RAY_ADDRESS": "", **(variables or {})}
        with (tmp_path / "stderr.txt").open("w") as error:
            command = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=error, text=True, env=environment)
        started.append(command)
        return command

    yield start
    for command in started:
        command.kill()
        command.communicate()


def result(command, folder):
    out, _ = command.communicate(timeout=400)
    assert command.returncode == 0, (folder / "stderr.txt").read_text()[-3000:]
    (line,) = out.splitlines()
    return json.loads(line)


def at_work(command):
    """(worker, the server that it forks runs from, the run) of the command's own cluster, where a run is under way."""
    found = []
    with suppress(psutil.NoSuchProcess):  # one ended while we looked
        for worker in psutil.Process(command.pid).children(recursive=True):
            if worker.cmdline()[:1] and worker.cmdline()[0].startswith("ray::Host"):
                found += [(worker, server, run) for server in worker.children() for run in server.children()]
    return found


def items(out):
    return {
        path.parent.name.rpartition("-")[0]: pq.read_table(path).to_pydict()
        for path in out.glob("runs/*/items.parquet")
    }


@pytest.mark.slow
def test_chaos_two_hundred_runs_while_a_random_worker_dies_every_two_seconds(tmp_path, start):
    options, seeds = {"pause": 0.01}, list(range(67))
    run_study(walk(tmp_path), options, out=tmp_path / "quiet", seeds=seeds, workers=1)
    rng, ended = random.Random(0), 0
    command = start(options, seeds=seeds)
    while command.poll() is None:
        time.sleep(2.0)
        while command.poll() is None and not (alive := at_work(command)):
            time.sleep(0.01)  # on a busy machine a worker takes longer than two seconds to be there again
        if command.poll() is None:
            rng.choice(rng.choice(alive)[:2]).kill()
            ended += 1
    complete, failed, notes = result(command, tmp_path)
    assert (complete, failed) == (201, {})
    assert ended >= 3 and sum("another takes over" in note for note in notes) >= 1
    assert stored(tmp_path / "out") == stored(tmp_path / "quiet") and len(stored(tmp_path / "out")) == 201
    assert items(tmp_path / "out") == items(tmp_path / "quiet")
    assert not list((tmp_path / "out").glob("set-aside/*"))


@pytest.mark.slow
def test_a_run_that_kills_its_worker_is_tried_four_times(tmp_path, start):
    ancestor = 'int(open(f"/proc/{os.getppid()}/stat").read().rpartition(")")[2].split()[1])'
    assert "os.kill(os.getpid(), 9)" in SOURCE
    mark = 'print("here", file=open(__file__ + ".marks", "a"), flush=True)'
    source = SOURCE.replace("os.kill(os.getpid(), 9)", f"{mark}; os.kill({ancestor}, 9); time.sleep(60)")
    (tmp_path / "walk_study.py").write_text(source)
    complete, failed, notes = result(start({"bad": "die"}), tmp_path)
    assert complete == 5 and len(notes) == LOSSES
    ((state, why),) = failed.values()
    assert state == "failed" and "its worker was lost 4 times" in why
    assert (tmp_path / "walk_study.py.marks").read_text() == "here\n" * (LOSSES + 1)


@pytest.mark.slow
def test_a_machine_of_a_cluster_is_lost_and_its_runs_go_on(tmp_path, start):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    options = {"pause": 0.2, "steps": 10}
    run_study(walk(tmp_path), {**options, "pause": 0.0}, out=tmp_path / "quiet", engine="inline")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
        command = start(options, {"RAY_ADDRESS": cluster.address})
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("out/runs/*.partial/checkpoint.safetensors"))) < 2:
            assert time.monotonic() < deadline and command.poll() is None
            time.sleep(0.05)
        cluster.remove_node(machines[0], allow_graceful=False)
        complete, failed, notes = result(command, tmp_path)
    finally:
        cluster.shutdown()
    assert (complete, failed) == (6, {}) and len(notes) == 1
    assert stored(tmp_path / "out") == stored(tmp_path / "quiet")


@pytest.mark.slow
@pytest.mark.usefixtures("as_in_a_terminal")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_survives_the_command(tmp_path, start, number):
    command = start({"pause": 30.0})
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("out/runs/*.partial/log.txt"))) < 2:
        assert time.monotonic() < deadline and command.poll() is None
        time.sleep(0.05)
    while len(ours := at_work(command)) < 2:
        assert time.monotonic() < deadline
    ours = [process for each in ours for process in each]
    command.send_signal(number)
    command.communicate(timeout=60)
    _, alive = psutil.wait_procs(ours, timeout=30)
    assert alive == []


def test_a_cluster_of_ones_own_has_the_cores_of_all_workers_and_is_shut_down(monkeypatch):
    ray, calls = ScriptedRay(), []
    ray.is_initialized = lambda: False
    ray.init = lambda **settings: calls.append(settings["num_cpus"])
    ray.shutdown = lambda: calls.append("down")
    monkeypatch.delenv(ray_engine.ADDRESS, raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(ray_engine, "ray_library", lambda: ray)
    with RayEngine(workers=3, threads=2) as made:
        assert made._needs == {"num_cpus": 2, "num_gpus": 0.5} and calls == [6]
    assert calls == [6, "down"]
