"""Where tasks are done. An `Engine` takes tasks and yields what happens to them; nothing else of the study knows how.

`LocalEngine` keeps one server process that has imported what the study needs (torch takes seconds) and forks one
process per task from it. Tasks travel as JSON: nothing is pickled. When the command dies, however it dies, the server
reads the end of its input and kills what it started; each process also dies with the server. A task without a sign of
life for `stall` seconds is ended, its Python stack first written to its log.

Tasks are idempotent folders, so an engine may run one twice (after losing a machine): the second finds it done, or
resumes.
"""

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

from equipoise.core.errors import EquipoiseError, WorkFailed
from equipoise.core.options import check_fields
from equipoise.core.progress import watch
from equipoise.core.secrets import redact
from equipoise.core.terminal import say
from equipoise.study import registry
from equipoise.study.store import LOG, Store, Task, take

EventKind = Literal["started", "note", "beat", "ended"]
Ending = Literal["complete", "failed", "gave up"]

PAUSED = 60.0  # seconds between two looks for signs of life, which are a second apart
START_LIMIT = 600.0  # seconds that the server may take to import everything, on top of the limit on a standstill
LAST_WORDS = 0.5  # seconds between the request for a stack and the end
LONGEST_EVENT = 3500  # bytes; a write to a pipe is atomic up to 4096
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_C_LIBRARY = ctypes.CDLL(None)
_START = "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); from equipoise.study.engine import serve; serve()"


@dataclass(frozen=True)
class Event:
    """What an engine reports about the task `key`.

    `note`: text says what was set aside. `beat`: work goes on; data may hold the newest outcome (outcome, value, place),
    the costs of this attempt so far (spent), and how much of the work under way is done (share, in [0, 1]). `ended`:
    state says how, text why when it is not complete.
    """

    key: str
    kind: EventKind
    state: Ending | None = None
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


class Engine(Protocol):
    """Does tasks somewhere; used as a context manager, whose end stops everything that still runs."""

    slots: int  # tasks worth submitting at once

    def submit(self, task: Task) -> None:
        """Start the task; its folder is complete or unfinished, and the preparation that it needs is complete."""
        ...

    def events(self, timeout: float) -> Iterable[Event]:
        """What happened since the last call; waits up to `timeout` seconds for something. A task ends once."""
        ...

    def close(self) -> None:
        """Stop everything that runs; all of it can be resumed."""
        ...


def perform(task: Task, report: Any, *, redirect: bool = False) -> tuple[Ending, str]:
    """Do one task in this process, in any engine's worker; returns how it ended and, for a failure, why.

    `report` takes dicts with "event"; it is called often. `redirect`: stdout and stderr go to the run's log.
    """
    from equipoise.study.run import Preparation, Run

    store = Store(Path(task.root))
    with take(store, task) as (attempt, notes):
        for note in notes:
            report({"event": "note", "text": note})
        if attempt is None:
            return "complete", ""
        if redirect:
            _redirect(attempt.folder / LOG)
        work = None
        try:
            study = registry.load(task.reference).build(**task.options)
            if task.role == "preparation":
                work = Preparation(attempt, report)
                assert study.prepare is not None
                act: Any = study.prepare
            else:
                work = Run(study, attempt, _prepared(store, task), report)
                act = study.run
            _make_deterministic(task)
            with watch(work.beat):
                act(work)
            if isinstance(work, Run) and not work.measured_anything():
                raise WorkFailed("the run measured nothing; call run.measure or run.items")
            work.close()
            attempt.finish()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            sentence = redact(str(error) if isinstance(error, EquipoiseError) else f"{type(error).__name__}: {error}")
            trace = redact(traceback.format_exc())
            say(trace)
            if work is not None:
                with contextlib.suppress(Exception):
                    work.close()
            attempt.fail(sentence, trace)
            return "failed", sentence
        return "complete", ""


class LocalEngine:
    """Processes on this machine, `workers` at a time, forked from a server that imported `preload` and built the study.

    `threads`: of each process, for torch and the numeric libraries. `stall`: seconds without a sign of life before a
    task is given up.
    """

    def __init__(
        self,
        *,
        workers: int,
        threads: int,
        stall: float = 600.0,
        preload: Sequence[str] = (),
        reference: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.slots, self.stall = workers, stall
        self._tasks: dict[str, Task] = {}
        self._alive: dict[str, float] = {}  # last sign of life
        self._looked = time.monotonic()  # when these were last looked at
        self._results: dict[str, tuple[Ending, str]] = {}
        self._given_up: set[str] = set()
        self._buffer = b""
        # The server sits in its own session: Ctrl-C reaches the command only, which then stops everything in order.
        self._server = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **_environment(threads)},
        )
        self._send({"preload": list(preload), "reference": reference, "options": dict(options or {})})

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(self, task: Task) -> None:
        self._tasks[task.key] = task
        self._alive[task.key] = time.monotonic() + START_LIMIT
        self._send({"start": task.key, "task": task.to_json()})

    def events(self, timeout: float) -> list[Event]:
        output = self._server.stdout
        assert output is not None
        events: list[Event] = []
        wait = timeout
        while select.select([output], [], [], wait)[0]:
            wait = 0.0
            data = os.read(output.fileno(), 1 << 16)
            if not data:
                self._server_died()
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                events += self._understand(json.loads(line))
        self._watch()
        return events

    def close(self) -> None:
        if self._server.stdin is not None and not self._server.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._server.stdin.close()
        try:
            self._server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        if self._server.stdout is not None:
            self._server.stdout.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._server.stdin is not None
        try:
            self._server.stdin.write(json.dumps(message).encode() + b"\n")
            self._server.stdin.flush()
        except BrokenPipeError:
            self._server_died()

    def _understand(self, message: dict[str, Any]) -> list[Event]:
        key = message.pop("key")
        if key not in self._tasks:
            return []
        self._alive[key] = time.monotonic()
        kind = message.pop("event")
        if kind == "result":
            self._results[key] = (message["state"], message["text"])
            return []
        if kind == "exited":
            return [self._ended(key, message["status"])]
        return [Event(key, kind, text=message.pop("text", ""), data=message)]

    def _ended(self, key: str, status: int) -> Event:
        task = self._tasks.pop(key)
        del self._alive[key]
        state, text = self._results.pop(key, ("failed", ""))
        if state == "failed" and not text:
            if key in self._given_up:
                state, text = "gave up", f"no sign of life for {self.stall:g} s; its stack is in the log"
            elif status < 0:
                hint = " (out of memory?)" if status == -signal.SIGKILL else ""
                text = f"the process was ended by {signal.Signals(-status).name}{hint}"
            else:
                text = f"the process ended with exit code {status} and no result"
            Store(Path(task.root)).mark(task, state, text)
        self._given_up.discard(key)
        return Event(key, "ended", state, text)

    def _watch(self) -> None:
        now = time.monotonic()
        if now - self._looked > PAUSED:  # this process was stopped, and so may its runs have been
            self._alive = {key: max(seen, now) for key, seen in self._alive.items()}
        self._looked = now
        for key, seen in self._alive.items():
            if now - seen > self.stall and key not in self._given_up:
                self._given_up.add(key)
                self._send({"stop": key})

    def _server_died(self) -> NoReturn:
        code = self._server.wait()
        raise WorkFailed(
            f"The process that starts the runs ended with {code}; what was stored is safe, run again to resume."
        )


class InlineEngine:
    """One task at a time in this process: for a debugger. Not watched, and it imports the study's libraries here."""

    slots = 1

    def __init__(self, **ignored: Any) -> None:
        self._waiting: list[Task] = []

    def __enter__(self) -> "InlineEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(self, task: Task) -> None:
        self._waiting.append(task)

    def events(self, timeout: float) -> Iterable[Event]:
        while self._waiting:
            task = self._waiting.pop()
            seen: list[Event] = [Event(task.key, "started")]

            def report(message: dict[str, Any], key: str = task.key, seen: list[Event] = seen) -> None:
                data = dict(message)
                seen.append(Event(key, data.pop("event"), text=data.pop("text", ""), data=data))

            with contextlib.redirect_stdout(sys.stderr):
                state, text = perform(task, report)
            yield from seen
            yield Event(task.key, "ended", state, text)

    def close(self) -> None:
        self._waiting.clear()


# ---- the server: a process that imports once and forks often ---------------------------------------------------------


def serve() -> None:
    """Read commands from stdin until it ends: {"start": key, "task"} forks, {"stop": key} ends one, stack first."""
    commands, wire = 0, os.dup(1)
    os.dup2(2, 1)  # what a library prints on import must not look like an event
    wakeup, signalled = os.pipe()
    for end in (wakeup, signalled):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    life = os.pipe()  # held open by this process only: a child that reads its end knows that we are gone
    children: dict[int, str] = {}
    condemned: dict[int, float] = {}
    buffer = b""
    while True:
        pause = min((when - time.monotonic() for when in condemned.values()), default=3600.0)
        ready = select.select([commands, wakeup], [], [], max(0.0, pause))[0]
        if wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup, 4096)
        for pid, when in list(condemned.items()):
            if time.monotonic() >= when:
                del condemned[pid]
                _kill(pid, signal.SIGKILL)
        for pid in list(children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                condemned.pop(pid, None)
                code = os.waitstatus_to_exitcode(status)
                _write_event(wire, {"key": children.pop(pid), "event": "exited", "status": code})
        if commands not in ready:
            continue
        data = os.read(commands, 1 << 16)
        if not data:
            break
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            if "preload" in command:
                _preload(**command)
            elif "start" in command:
                pid = os.fork()
                if pid == 0:
                    _child(command["task"], wire, life, (wakeup, signalled))
                with contextlib.suppress(OSError):  # the child does the same; whoever comes first
                    os.setpgid(pid, pid)
                children[pid] = command["start"]
            else:
                for pid in [pid for pid, key in children.items() if key == command["stop"]]:
                    os.kill(pid, signal.SIGUSR1)
                    condemned[pid] = time.monotonic() + LAST_WORDS
    for pid in children:
        _kill(pid, signal.SIGKILL)
    for pid in children:
        os.waitpid(pid, 0)
    os._exit(0)


def _kill(pid: int, number: int) -> None:
    """Signal a run and the processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _child(fields: Mapping[str, Any], wire: int, life: tuple[int, int], closed: tuple[int, int]) -> None:
    code = 70
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (*closed, life[1]):
            os.close(descriptor)
        _die_with(life[0])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
        faulthandler.enable(file=2)
        task = Task(**fields)

        def report(message: dict[str, Any]) -> None:
            try:
                _write_event(wire, {"key": task.key, **message})
            except (
                BrokenPipeError
            ):  # nobody listens any more: the command is gone, so this run is not to fail but to stop
                os._exit(code)

        report({"event": "started", "pid": os.getpid()})
        try:
            state, text = perform(task, report, redirect=True)
        except Exception as error:  # not of the run: its folder could not be taken, or written
            state, text = "failed", f"{type(error).__name__}: {error}"
        report({"event": "result", "state": state, "text": text})
        code = 0 if state == "complete" else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _write_event(wire: int, message: dict[str, Any]) -> None:
    line = json.dumps(message).encode()
    if len(line) > LONGEST_EVENT:
        text = message.get("text", "")
        line = json.dumps(
            {key: message[key] for key in ("key", "event", "state") if key in message} | {"text": text[:500]}
        ).encode()
    os.write(wire, line + b"\n")


def _preload(preload: Sequence[str], reference: str, options: Mapping[str, Any]) -> None:
    """Import MODULE or MODULE:NAME (for packages that load lazily), then what building the study imports."""
    for name in preload:
        # What cannot be imported is the business of the run that needs it, which says so in its own log.
        with contextlib.suppress(Exception):
            module, _, attribute = name.partition(":")
            loaded = importlib.import_module(module)
            if attribute:
                getattr(loaded, attribute)
    if reference:
        with contextlib.suppress(Exception):
            registry.load(reference).build(**options)
    torch = sys.modules.get("torch")
    if torch is not None:  # the first call imports hundreds of modules, two seconds that every run would pay again
        torch.use_deterministic_algorithms(True, warn_only=True)


def _die_with(life: int) -> None:
    """End this process when the server is gone: by the kernel on Linux, by a thread at the pipe everywhere."""
    if sys.platform == "linux":
        _C_LIBRARY.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)

    def wait() -> None:
        os.read(life, 1)
        os._exit(1)

    threading.Thread(target=wait, name="equipoise-life", daemon=True).start()


def _redirect(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _environment(threads: int) -> dict[str, str]:
    count = str(threads)
    return {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "VECLIB_MAXIMUM_THREADS": count,
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONHASHSEED": "0",
    }


def _make_deterministic(task: Task) -> None:
    """Equal sums for equal seeds: the stated number of threads, deterministic kernels, global generators seeded."""
    import numpy as np

    random.seed(task.seed)
    np.random.seed(task.seed % 2**32)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(int(task.config.get("threads", 1)))
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.manual_seed(task.seed)


def _prepared(store: Store, task: Task) -> Path | None:
    if task.needs is None:
        return None
    from equipoise.study.store import ARTIFACTS

    return store.home("preparation") / task.needs / ARTIFACTS
