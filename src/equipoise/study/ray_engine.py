"""`--engine ray`: the same runs on a Ray cluster. The output folder lies where every node sees it, as on any cluster.

Each slot is an actor that holds the CPUs of one run (and a GPU, where there are any) and keeps a `LocalEngine` of one
worker: runs are forked, seeded, logged and watched as without Ray, and end with their actor. Tasks and events travel as
JSON text. A run whose worker is lost (process, machine or network) goes on elsewhere from its last checkpoint.
"""

import contextlib
import importlib
import json
import math
import os
import platform
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from equipoise.core.errors import BadInput, MissingExtra, WorkFailed
from equipoise.study import registry
from equipoise.study.engine import START_LIMIT, Event, LocalEngine
from equipoise.study.fingerprint import code_of
from equipoise.study.store import STUDY, Store, Task

LOSSES = 3  # workers that one run may lose; with one more it has failed, since it may be what ends them
FALSE_STARTS = 20  # workers lost in a row, beyond one a slot, before a run began on any: the cluster is at fault
TICK = 1.0  # seconds between two batches of events of a worker; an empty batch still is a sign of life
SILENCE = 60.0  # seconds without a batch, on top of the limit on a standstill, after which a worker counts as lost
OBJECT_STORE = 80 << 20  # bytes for a local cluster: near Ray's minimum, since only short texts pass through
ADDRESS = "RAY_ADDRESS"


def ray_library() -> Any:
    """The module `ray`. Raises MissingExtra when it is not installed."""
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise MissingExtra("There is no engine 'ray' without its extra: pip install 'equipoise[ray]'") from None


class RayHost:
    """The actor: one task at a time on a `LocalEngine` of its own, in a process of the cluster."""

    def __init__(self, settings: str) -> None:
        given = json.loads(settings)
        for name, value in given.pop("variables").items():
            os.environ.setdefault(name, value)
        with contextlib.suppress(OSError):  # relative paths in options mean what they mean to the command
            os.chdir(given.pop("folder"))
        self._engine = LocalEngine(workers=1, **given)

    def node(self) -> str:
        """The machine's name; answered as soon as tasks are welcome."""
        return platform.node()

    def perform(self, task: str) -> Iterator[str]:
        """Batches of events as JSON until the task has ended, at most one a `TICK` except for the last."""
        wanted = Task(**json.loads(task))
        if refusal := _refusal(wanted):
            yield json.dumps([asdict(Event(wanted.key, "ended", "failed", refusal))])
            return
        self._engine.submit(wanted)
        batch: list[Event] = []
        sent = -math.inf
        while True:
            batch += self._engine.events(TICK)
            ended = any(event.kind == "ended" for event in batch)
            if ended or time.monotonic() - sent >= TICK:
                yield json.dumps([asdict(event) for event in batch])
                sent, batch = time.monotonic(), []
            if ended:
                return


def _refusal(task: Task) -> str:
    """Why a node must not do the task, else "": what it stored would be lost, or be another run than its name says."""
    if not (Path(task.root) / STUDY).is_file():
        return f"{platform.node()} does not see {task.root}: --out must lie in a folder that all nodes share"
    try:
        code = code_of(registry.load(task.reference).source).digest
    except Exception as error:  # such as the study's file, or what it imports, missing there
        return f"{platform.node()} cannot load the study: {type(error).__name__}: {error}"
    if code != task.config["code"]:
        return (
            f"{platform.node()} has other code than the command: the study's files, equipoise and the versions of torch "
            "and transformers must be the same on all nodes"
        )
    return ""


@dataclass
class _Work:
    """A task at an actor. `spent`: costs of this attempt as last reported."""

    task: Task
    actor: Any
    node: str
    seen: float
    spent: dict[str, float] = field(default_factory=dict)


class RayEngine:
    """Actors on the cluster at RAY_ADDRESS, or on one started here for as long as the engine lives.

    `workers`: actors at most; each takes `threads` CPUs and, where the cluster has GPUs, one or an equal share of one.
    `stall`: as in `LocalEngine`. Raises MissingExtra without Ray, WorkFailed when the cluster does not answer.
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
        self._ray = ray_library()
        self._waiting: deque[Task] = deque()
        self._starting: dict[Any, Any] = {}  # reference to the first answer -> actor
        self._idle: list[tuple[Any, str]] = []  # actor, node
        self._busy: dict[Any, _Work] = {}  # stream of batches -> what it is about
        self._losses: Counter[str] = Counter()
        self._lost_costs: dict[str, Counter[str]] = {}  # what earlier attempts of this engine spent on a task
        self._false_starts = 0
        self._staffed = time.monotonic()  # when there last was a worker
        with contextlib.ExitStack() as opened:
            # Ray prints to the driver's stdout that a worker died, whatever its settings; ours is for results.
            opened.enter_context(contextlib.redirect_stdout(sys.stderr))
            if _connect(self._ray, cpus=workers * threads):
                opened.callback(self._ray.shutdown)
            self._closing = opened.pop_all()
        self._needs = {"num_cpus": threads, "num_gpus": _share(self._ray.cluster_resources().get("GPU", 0.0), workers)}
        self._settings = json.dumps(
            {
                "threads": threads,
                "stall": stall,
                "preload": list(preload),
                "reference": reference,
                "options": dict(options or {}),
                "variables": {name: value for name, value in os.environ.items() if name.startswith("EQUIPOISE_")},
                "folder": str(Path.cwd()),
            }
        )

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(self, task: Task) -> None:
        self._waiting.append(task)
        self._assign()

    def events(self, timeout: float) -> list[Event]:
        events: list[Event] = []
        watched = [*self._starting, *self._busy]
        if watched and self._ray.wait(watched, num_returns=1, timeout=timeout)[0]:
            for each in self._ray.wait(watched, num_returns=len(watched), timeout=0)[0]:
                if each in self._starting:
                    self._ready(each)
                else:
                    events += self._next_batch(each)
        return events + self._watch()

    def close(self) -> None:
        for actor in [*self._starting.values(), *(actor for actor, _ in self._idle)]:
            self._end(actor)
        for work in self._busy.values():
            self._end(work.actor)
        self._starting, self._idle, self._busy = {}, [], {}
        self._closing.close()

    def _assign(self) -> None:
        """Give what waits to idle workers, and start as many workers as still lack."""
        while self._waiting and self._idle:
            task = self._waiting.popleft()
            actor, node = self._idle.pop()
            stream = actor.perform.options(num_returns="streaming").remote(json.dumps(task.to_json()))
            self._busy[stream] = _Work(task, actor, node, time.monotonic())
        for _ in range(len(self._waiting) - len(self._starting)):
            actor = self._ray.remote(RayHost).options(**self._needs).remote(self._settings)
            self._starting[actor.node.remote()] = actor

    def _ready(self, answer: Any) -> None:
        actor = self._starting.pop(answer)
        try:
            self._idle.append((actor, self._ray.get(answer)))
        except self._ray.exceptions.RayError as error:
            self._false_start(_reason(error))
        self._assign()

    def _next_batch(self, stream: Any) -> list[Event]:
        work = self._busy[stream]
        try:
            batch = [Event(**fields) for fields in json.loads(self._ray.get(next(stream)))]
        except (self._ray.exceptions.RayError, StopIteration) as error:
            return self._lost(stream, _reason(error))
        work.seen = time.monotonic()
        for event in batch:
            if event.kind == "started":
                self._false_starts = 0
            if "spent" in event.data:
                work.spent = event.data["spent"]
                event.data["spent"] = dict(self._lost_costs.get(event.key, Counter()) + Counter(work.spent))
            if event.kind == "ended":
                del self._busy[stream]
                self._idle.append((work.actor, work.node))
                self._assign()
        return batch

    def _lost(self, stream: Any, why: str) -> list[Event]:
        """The worker is gone or as good as gone: its task is done by another, unless that happened too often."""
        work = self._busy.pop(stream)
        self._end(work.actor)
        key, store = work.task.key, Store(Path(work.task.root))
        if store.state(work.task) != "absent":  # not by its events: the last ones may be lost with the worker
            self._losses[key] += 1
        else:
            self._false_start(why)
        if self._losses[key] > LOSSES:
            text = f"its worker was lost {self._losses[key]} times, last on {work.node}: {why}"
            store.mark(work.task, "failed", text)
            self._assign()
            return [Event(key, "ended", "failed", text)]
        self._lost_costs[key] = self._lost_costs.get(key, Counter()) + Counter(work.spent)
        self._waiting.appendleft(work.task)
        self._assign()
        return [Event(key, "note", text=f"{key}: its worker on {work.node} was lost ({why}); another takes over.")]

    def _false_start(self, why: str) -> None:
        self._false_starts += 1
        if self._false_starts > FALSE_STARTS + self.slots:
            raise WorkFailed(f"{self._false_starts} Ray workers in a row ended before a run began: {why}")

    def _watch(self) -> list[Event]:
        now = time.monotonic()
        if self._idle or self._busy or not self._starting:
            self._staffed = now
        elif now - self._staffed > START_LIMIT:
            there = {name: self._ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
            raise WorkFailed(
                f"No Ray worker was ready within {START_LIMIT:g} s: each needs {self._needs}, the cluster has {there}."
            )
        limit = self.stall + SILENCE
        silent = [stream for stream, work in self._busy.items() if now - work.seen > limit]
        return [event for stream in silent for event in self._lost(stream, f"it said nothing for {limit:g} s")]

    def _end(self, actor: Any) -> None:
        with contextlib.suppress(Exception):  # gone already, or the cluster is
            self._ray.kill(actor)


def _connect(ray: Any, cpus: int) -> bool:
    """Connect to the cluster at RAY_ADDRESS, else start one here; False when this process is connected already."""
    if ray.is_initialized():
        return False
    address = os.environ.get(ADDRESS) or "local"
    if address.startswith("ray://"):
        raise BadInput(f"{ADDRESS} is {address}: run the command on a node of the cluster, with {ADDRESS}=auto.")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings |= {"include_dashboard": False, "num_cpus": cpus, "object_store_memory": OBJECT_STORE}
    try:
        ray.init(address=address, **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise WorkFailed(f"No Ray cluster could be reached at {address}: {_reason(error)}") from error
    return True


def _share(gpus: float, workers: int) -> float:
    """GPUs of each worker: one, or 1/k where k workers must share one."""
    return 1 / math.ceil(workers / gpus) if gpus else 0.0


def _reason(error: BaseException) -> str:
    """The last line of what Ray says, which holds the cause, cut to its first sentences."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip().partition(" Some common causes")[0][:300]
