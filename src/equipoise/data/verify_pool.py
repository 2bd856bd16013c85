"""A few processes that are started once and kept, do a task each at a time and are replaced when one ends them."""

import contextlib
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from equipoise.core.errors import WorkFailed
from equipoise.core.options import closed
from equipoise.data import verify_worker

_PATIENCE = 6  # seconds of the clock for one of computing: other processes compute, too
_START = 120.0  # seconds for a worker to import what it needs


class Pool:
    """Workers of one kind, each started when there is a task for it.

    seconds: of computing that a task may take. memory_bytes: address space of each worker. workers: at most so many. They
    end when the pool is closed, is garbage, or its process has ended, be it by SIGKILL.
    """

    @closed
    def __init__(self, kind: Literal["math", "regex"], *, seconds: float, memory_bytes: int, workers: int) -> None:
        self.kind, self.seconds, self.memory_bytes, self.workers = kind, seconds, memory_bytes, workers
        self._start_over()

    def _start_over(self) -> None:
        self._owner = os.getpid()
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self.workers):
            self._idle.put(None)
        weakref.finalize(self, _end_all, self._idle, self._owner)

    def run(self, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What each task came to, in order: {"right": bool} or {"crashed": why}.

        A task is alone in its worker. Raises WorkFailed where no worker can be started.
        """
        if self._owner != os.getpid():  # workers of a process are not those of its forks
            self._start_over()
        with ThreadPoolExecutor(max(1, min(self.workers, len(tasks)))) as threads:
            try:
                return list(threads.map(self._do, tasks))
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise

    def close(self) -> None:
        """End all workers; a further task starts new ones."""
        _end_all(self._idle, self._owner)

    def _do(self, task: Mapping[str, Any]) -> dict[str, Any]:
        worker = self._idle.get()
        try:
            while True:
                worker = worker or _Worker(self.kind, self.seconds, self.memory_bytes)
                if (reply := worker.ask(task, self.seconds * _PATIENCE)) is not None:
                    return reply
                failed, worker = worker, None
                ended = failed.end()
                if failed.late or ended == -signal.SIGPROF:
                    return {"crashed": f"took longer than {self.seconds:g} s"}
                # What earlier tasks left behind may have ended it: a fresh one decides, so that no task depends on others.
                if not failed.done:
                    return {"crashed": f"took too much memory or ended its process ({ended})"}
        finally:
            self._idle.put(worker)


class _Worker:
    """A process. done: how many tasks it has done. late: whether it said nothing in time."""

    def __init__(self, kind: str, seconds: float, memory_bytes: int) -> None:
        self.done, self.late = -1, False
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", verify_worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        assert self.process.stdin and self.process.stdout
        self.input, self.output = self.process.stdin, self.process.stdout
        start = {"kind": kind, "seconds": seconds, "memory_bytes": memory_bytes, "path": sys.path}
        if self.ask(start, _START) is None:
            raise WorkFailed(f"the process that compares answers could not be started ({self.end()}).")

    def ask(self, task: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
        """Its reply, None when it has died or has said nothing for so many seconds."""
        with contextlib.suppress(BrokenPipeError):  # it has died, which shows when its output ends
            self.input.write(json.dumps(task).encode() + b"\n")
            self.input.flush()
        received, deadline = b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.output, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.late = True
                    return None
                if not (data := os.read(self.output.fileno(), 65536)):
                    self.process.wait()
                    return None
                received += data
        self.done += 1
        return json.loads(received)

    def end(self) -> int:
        """Kill it, unless it has ended by itself; how it ended."""
        self.process.kill()
        for pipe in (self.input, self.output):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        return self.process.wait()


def _end_all(idle: "queue.LifoQueue[_Worker | None]", owner: int) -> None:
    if os.getpid() != owner:
        return
    workers = []
    with contextlib.suppress(queue.Empty):
        while True:
            workers.append(idle.get_nowait())
    for worker in workers:
        if worker is not None:
            worker.end()
        idle.put(None)
