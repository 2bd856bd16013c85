"""Runs a study: what is missing in its output folder, in the order that it needs, on an engine.

Preparations of the tuning seeds, tuning runs, selection, then test runs; a seed's runs wait for its preparation only.
What is complete is never done again; what was interrupted or failed is resumed; what was given up stays so unless
`retry`.
"""

import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Protocol

from equipoise.core.budget import Budget
from equipoise.core.cost import total
from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.files import lock, set_aside
from equipoise.core.progress import is_quiet
from equipoise.core.secrets import redact
from equipoise.study import registry
from equipoise.study.declare import FIRST_TUNING_SEED, Arm, Declaration, Study
from equipoise.study.engine import Engine, Event, InlineEngine, LocalEngine
from equipoise.study.fingerprint import Code, code_of, preload
from equipoise.study.judging import design_notes
from equipoise.study.results import load
from equipoise.study.selection import choose
from equipoise.study.store import (
    COST,
    LOCK,
    LOG,
    PREPARATION,
    STUDY,
    Store,
    Task,
    identify,
    is_output,
    read_json,
    read_study,
    with_partial,
    write_json,
)

POLL = 0.5  # seconds between looks at clock, budget and watchdog when nothing happens
ALIKE = 3  # failures with one error, before any run completed, after which the others are not tried
STOPPED = (
    f"Stopped: {ALIKE} failed alike before any run was complete; the others were not tried (--keep-going tries them)."
)
ENGINES = ("local", "inline", "ray")


class Show(Protocol):
    """Where people see what happens; see `display`."""

    def plan(self, to_do: int, stored: int, seconds: float | None) -> None: ...
    def more(self, waiting: int) -> None: ...
    def event(self, task: Task, event: Event) -> None: ...
    def line(self, text: str) -> None: ...


@dataclass
class Conducted:
    """What is there now. `complete`: number of runs; `failed`: task key -> (how, why).

    Why it ended early: `budget`, or `stopped` where the first runs failed alike.
    """

    study: Study
    out: Path
    complete: int = 0
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)
    budget: str = ""
    stopped: str = ""
    notes: list[str] = field(default_factory=list)


def run_study(
    declaration: Declaration,
    options: Mapping[str, Any] | None = None,
    *,
    out: Path,
    seeds: int | Sequence[int] | None = None,
    arms: Sequence[str] | None = None,
    engine: str = "local",
    workers: int | None = None,
    threads: int = 1,
    stall: float = 600.0,
    budget: Budget | None = None,
    fail_fast: bool = False,
    keep_going: bool = False,
    fresh: bool = False,
    retry: bool = False,
    command: str = "",
    show: Show | None = None,
) -> Conducted:
    """Do everything that the study still misses in `out`; judging and reporting come after, from what is stored.

    `seeds`: test seeds, or how many of the study's (default: its own number). `threads` per run is part of every result, so
    it does not follow from `workers` (default: cores // threads). Ends where the first runs fail alike, unless `keep_going`,
    and with `fail_fast` at any failure. Raises BadInput before anything is started: options, arms, another content of `out`.
    """
    study = declaration.build(**dict(options or {}))
    if arms is not None and not arms:
        raise BadInput("No arm is named: give --arms names with commas between, or leave it out for all.")
    wanted = list(study.arms) if arms is None else [study.arm(name) for name in dict.fromkeys(arms)]
    if seeds is None or isinstance(seeds, int):
        seeds = list(study.test_seeds(seeds))
    seeds = list(dict.fromkeys(seeds))
    if not seeds or not all(0 <= seed < FIRST_TUNING_SEED for seed in seeds):
        raise BadInput(f"Test seeds are whole numbers from 0 to {FIRST_TUNING_SEED - 1}, at least one; got {seeds}.")
    if threads < 1 or (workers is not None and workers < 1) or not stall > 0:
        raise BadInput("--workers and --threads are at least 1, --stall is more than 0 seconds.")
    maker = engine_named(engine)
    workers = workers or max(1, _cores() // threads)
    show = show or _Silent()
    with _output(Path(out), declaration, study, threads, fresh, command, show) as store:
        code = code_of(declaration.source)
        plan = _Plan(declaration, study, store, code, threads, wanted, seeds, retry, show)
        show.plan(plan.to_do, plan.done.complete, _estimate(plan))
        if not plan.waiting:
            return plan.done
        if not is_quiet():
            for note in design_notes(study):
                show.line(note)
        made = maker(
            workers=workers,
            threads=threads,
            stall=stall,
            preload=preload(code),
            reference=plan.reference,
            options=study.options,
        )
        return _conduct(plan, made, budget or Budget(), _Failures(plan, fail_fast, keep_going), show)


def engine_named(name: str) -> type[Any]:
    """What makes that engine from the settings of `LocalEngine`.

    Raises BadInput for an unknown one, MissingExtra for one that is not installed.
    """
    if name not in ENGINES:
        raise BadInput(f"There is no engine {name!r}. {did_you_mean(name, ENGINES)}")
    if name == "ray":
        from equipoise.study.ray_engine import RayEngine, ray_library

        ray_library()
        return RayEngine
    return LocalEngine if name == "local" else InlineEngine


class _Plan:
    """Which tasks there are and what became of them."""

    def __init__(
        self,
        declaration: Declaration,
        study: Study,
        store: Store,
        code: Code,
        threads: int,
        arms: list[Arm],
        seeds: list[int],
        retry: bool,
        show: Show,
    ) -> None:
        self.study, self.store, self.code, self.threads, self.show = study, store, code, threads, show
        self.arms, self.seeds, self.retry = arms, seeds, retry
        self.reference = registry.reference(declaration)
        self.done = Conducted(study, store.root)
        self.waiting: list[Task] = []
        self.finished: set[str] = set()  # keys of complete tasks
        self.tuning: set[str] = set()  # keys of tuning runs that are still to end
        self.selected = False
        self.prepared: set[int] = set()  # seeds whose preparation has its place among the tasks
        if study.select is not None:
            for seed in range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + study.select.seeds):
                for arm in arms:
                    points = range(len(arm.points()))
                    for point in points if len(points) > 1 else ():
                        self._add(self._run(arm, point, seed, "tuning"))
        self.tuning = {task.key for task in self.waiting if task.role == "tuning"}
        if self.tuning:  # the test runs are not known yet, their preparations are
            for seed in seeds:
                self._prepare(seed)
            self.to_do = len(self.waiting) + len(seeds) * len(arms)
        else:
            self._add_test_runs()
            self.to_do = len(self.waiting)

    def advance(self) -> None:
        """Once no tuning run is open, choose settings and add the test runs."""
        if not self.selected and not self.tuning:
            self._add_test_runs()
            self.show.more(len(self.waiting))

    def _add_test_runs(self) -> None:
        self.selected = True
        tuned = [arm for arm in self.arms if len(arm.points()) > 1]
        chosen = {arm.name: 0 for arm in self.arms if arm not in tuned}
        if tuned:
            chosen |= choose(self.study, load([self.store.root], self.study).measurements)[0]
        for arm in self.arms:
            if arm.name not in chosen:
                why = f"no setting of arm {arm.name} could be chosen: none of its tuning runs is usable"
                self.done.failed[arm.name] = ("failed", why)
        for seed in self.seeds:
            for arm in self.arms:
                if arm.name in chosen:
                    self._add(self._run(arm, chosen[arm.name], seed, "test"))

    def next(self) -> Task | None:
        """The first task whose preparation is complete; those whose preparation failed are failed, too."""
        for task in list(self.waiting):
            if task.needs in self.done.failed:
                self.waiting.remove(task)
                self.end(task, "failed", "the preparation of its seed failed")
            elif task.needs is None or task.needs in self.finished:
                self.waiting.remove(task)
                return task
        return None

    def end(self, task: Task, state: str, text: str) -> None:
        if state == "complete":
            self._finish(task)
        else:
            self.done.failed[task.key] = (state, text)
        self.tuning.discard(task.key)
        self.advance()

    def _finish(self, task: Task) -> None:
        self.finished.add(task.key)
        self.done.complete += task.role != PREPARATION

    def _add(self, task: Task) -> None:
        damaged = self.store.repair(task)
        if damaged:
            self.done.notes.append(damaged)
            self.show.line(damaged)
        state = self.store.state(task)
        if state == "complete":
            self._finish(task)
        elif state == "gave up" and not self.retry:
            self.done.failed[task.key] = (state, "gave up before (--retry runs it again)")
            self.show.line(f"{task.key} gave up in an earlier command; --retry runs it again.")
        else:
            if task.role != PREPARATION:
                self._prepare(task.seed)
            self.waiting.append(task)

    def _prepare(self, seed: int) -> None:
        """Add the preparation of a seed, once, and only where a run still needs it."""
        if self.study.prepare is not None and seed not in self.prepared:
            self.prepared.add(seed)
            self._add(self._preparation(seed))

    def _preparation(self, seed: int) -> Task:
        return self._task("", "", 0, {}, seed, "preparation", None)

    def _run(self, arm: Arm, point: int, seed: int, role: Literal["test", "tuning"]) -> Task:
        needs = self._preparation(seed).key if self.study.prepare is not None else None
        return self._task(arm.name, arm.kind, point, arm.points()[point], seed, role, needs)

    def _task(
        self,
        arm: str,
        kind: str,
        point: int,
        settings: dict[str, Any],
        seed: int,
        role: Literal["test", "tuning", "preparation"],
        needs: str | None,
    ) -> Task:
        study = self.study
        config = {
            "study": study.name,
            "arm": arm,
            "settings": settings,
            "seed": seed,
            "role": role,
            "options": study.options,
            "threads": self.threads,
            "kind": kind,
            "point": point,
            "reference": self.reference,
            "code": self.code.digest,
            "versions": self.code.versions,
        }
        key, digest = identify(config)
        config |= {"fingerprint": digest, "preparation": needs}
        return Task(
            key=key,
            role=role,
            reference=self.reference,
            root=str(self.store.root.resolve()),
            options=study.options,
            seed=seed,
            fingerprint=digest,
            arm=arm,
            point=point,
            needs=needs,
            config=config,
        )


class _Failures:
    """What failed: each error is said once with its log, and whether the others are worth a try."""

    def __init__(self, plan: _Plan, fail_fast: bool, keep_going: bool) -> None:
        self.plan, self.fail_fast = plan, fail_fast
        self.known: list[tuple[str, str]] = []  # arm ("" for a preparation) and last line of each error
        self.hopeful = keep_going  # or once a run is complete

    def end(self, task: Task, event: Event) -> bool:
        """Take in how a task ended; whether to end here."""
        if event.state == "complete":
            self.hopeful = self.hopeful or task.role != PREPARATION
            return False
        error = event.text.strip().rpartition("\n")[2]
        if error in (each for _, each in self.known):
            self.plan.show.line(f"{_label(task)} {event.state}: as above")
        else:
            log = with_partial(self.plan.store.folder(task)) / LOG
            self.plan.show.line(f"{_label(task)} {event.state}: {event.text}\n  log: {log}")
        self.known.append((task.arm, error))
        if self.plan.waiting and not (self.fail_fast or self.hopeful) and alike(self.known, len(self.plan.arms)):
            self.plan.done.stopped = STOPPED
        return self.fail_fast or bool(self.plan.done.stopped)


def alike(errors: Sequence[tuple[str, str]], arms: int) -> bool:
    """Whether the last failures have one error, and not because of one arm alone while others are still at work.

    errors: arm ("" for a preparation) and error of each, in order. arms: how many take part.
    """
    last = list(takewhile(lambda each: each[1] == errors[-1][1], reversed(errors)))
    failing = {arm for arm, _ in last}
    return len(last) >= ALIKE and (len(failing) > 1 or arms == 1 or "" in failing)


def _conduct(plan: _Plan, engine: Any, budget: Budget, failures: _Failures, show: Show) -> Conducted:
    started = time.monotonic()
    running: dict[str, Task] = {}
    before = _spent(plan.store)
    spent: dict[str, dict[str, float]] = {}
    opened: Engine
    with engine as opened:
        while plan.waiting or running:
            totals = total({**before, **spent})
            plan.done.budget = budget.reached(totals, minutes=(time.monotonic() - started) / 60)
            if plan.done.budget:
                return plan.done
            while len(running) < opened.slots and (task := plan.next()) is not None:
                running[task.key] = task
                opened.submit(task)
            if not running:
                continue
            for event in opened.events(POLL):
                task = running[event.key]
                spent[event.key] = event.data.get("spent", spent.get(event.key, {}))
                show.event(task, event)
                if event.kind == "note":
                    plan.done.notes.append(event.text)
                if event.kind == "ended":
                    del running[event.key]
                    plan.end(task, event.state or "failed", event.text)
                    if failures.end(task, event):
                        return plan.done
    return plan.done


def _spent(store: Store) -> dict[str, dict[str, float]]:
    """What each stored run cost in earlier commands, all its attempts; a damaged one is told where it is read."""
    found = {}
    for path in (*store.root.glob(f"runs/*/{COST}"), *store.root.glob(f"preparations/*/{COST}")):
        with suppress(ValueError, OSError, KeyError):
            found[str(path)] = total(read_json(path)["spent"])
    return found


def _label(task: Task) -> str:
    if task.role == PREPARATION:
        return f"preparation of seed {task.seed}"
    return f"{task.arm} seed {task.seed} ({task.key})"


def _estimate(plan: _Plan) -> float | None:
    """Seconds of work that is left, all workers together, from what complete runs took; None before there is one."""
    seconds = []
    for folder in (plan.store.root / "runs").glob("*/"):
        if folder.name in plan.finished and len(seconds) < 50:
            spent = read_json(folder / COST)["spent"]
            seconds.append(sum(phase.get("seconds", 0) for phase in spent.values()))
    return sum(seconds) / len(seconds) * plan.to_do if seconds else None


@contextmanager
def _output(
    out: Path, declaration: Declaration, study: Study, threads: int, fresh: bool, command: str, show: Show
) -> Iterator[Store]:
    """The output folder, held by this command alone; refused when it holds other settings, set aside when `fresh`.

    What no study made is left as it is, before anything is written into it.
    """
    ours = is_output(out)
    if not ours and not _is_empty(out):
        raise BadInput(f"{out} holds something else (no {STUDY} of a study); give another --out.")
    busy = f"another `equipoise study run` at work on {out}"
    with ExitStack() as held:
        held.enter_context(lock(out / LOCK, waiting_for=busy))
        if fresh and ours:
            options = [Path(value) for value in study.options.values() if isinstance(value, str) and value]
            aside = set_aside(out, made_by=is_output, inputs=[declaration.source, *options])
            held.enter_context(lock(out / LOCK, waiting_for=busy))
            show.line(f"{out} was set aside as {aside}.")
        settings = {"study": study.name, "options": study.options, "threads": threads}
        if (out / STUDY).exists():
            _same_settings(out, settings, show)
        for name in ("runs", "preparations"):
            (out / name).mkdir(exist_ok=True)
        content = {**settings, "reference": registry.reference(declaration)}
        content["environment"] = _environment(threads, redact(command))
        write_json(out / STUDY, content)
        yield Store(out)


def _is_empty(out: Path) -> bool:
    """Whether there is nothing, or what a study makes first: an empty lock and empty folders."""
    if not os.path.lexists(out):
        return True
    if not out.is_dir():
        return False
    empty = {LOCK: lambda path: path.is_file() and not path.stat().st_size}
    empty |= dict.fromkeys(("runs", "preparations"), lambda path: path.is_dir() and not any(path.iterdir()))
    return all(path.name in empty and empty[path.name](path) for path in out.iterdir())


def _same_settings(out: Path, settings: Mapping[str, Any], show: Show) -> None:
    """Raises BadInput where the folder is of other settings; a damaged study.json is written anew, its runs say what they
    are."""
    try:
        stored = read_study(out)
    except BadInput as error:
        show.line(str(error))
        return

    def flat(content: Mapping[str, Any]) -> dict[str, Any]:
        options = {f"option {key}": value for key, value in content.get("options", {}).items()}
        return {"study": content.get("study"), "threads": content.get("threads"), **options}

    old, new = flat(stored), flat(settings)
    differing = [
        f"{key} is {old.get(key)!r}, now {new.get(key)!r}" for key in old | new if old.get(key) != new.get(key)
    ]
    if differing:
        raise BadInput(
            f"{out} holds runs with other settings: {'; '.join(differing)}. "
            "Give another --out, or --fresh to set it aside."
        )


def _environment(threads: int, command: str) -> dict[str, Any]:
    from equipoise import __version__

    return {
        "equipoise": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "transformers", "numpy")},
        "torch threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "device": _device(),
        "command": command,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _cpu() -> str:
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {_cores()} cores"


def _device() -> str:
    """NVIDIA devices by name without importing torch, else "cpu"."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text().splitlines()
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return ", ".join(names) or "cpu"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Silent:
    """Shows nothing."""

    def plan(self, to_do: int, stored: int, seconds: float | None) -> None: ...
    def more(self, waiting: int) -> None: ...
    def event(self, task: Task, event: Event) -> None: ...
    def line(self, text: str) -> None: ...
