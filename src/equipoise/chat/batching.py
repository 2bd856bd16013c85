"""What an in-process engine is asked, and the queue before it: an idle engine starts at once, a busy one gets batches.

Nothing ever waits for company. Calls that are made in one turn of the event loop start together; what arrives while a
batch runs makes the next ones. A batch holds calls of one model with equal settings; limits, seeds and schemas belong to
each call. Threads exist only while there is work.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from equipoise.core.errors import EquipoiseError, WorkFailed
from equipoise.core.options import check_fields

if TYPE_CHECKING:
    from equipoise.data.records import Message


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """What all calls of a batch share. temperature 0 takes the likeliest token; top_k 0 and top_p 1 cut nothing.

    logprobs: how many likeliest tokens to tell beside each token of the answer, with the log-probability of that token
    itself; None for none of this.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One call. A last message of the assistant is the beginning of the answer. schema: JSON schema of the answer."""

    messages: tuple[Message, ...]
    settings: GenerationSettings
    max_tokens: int
    seed: int = 0
    schema: str | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer with its natural log-probability under the model: before temperature, cuts and schema.

    content: its bytes, None where they are not known. top: the likeliest tokens at this place, likeliest first.
    """

    text: str
    logprob: float
    content: bytes | None
    top: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationAnswer:
    """ended: "stop" (end token, stop string, schema done), "max_tokens", or "model_length" (the context is full)."""

    text: str
    ended: Literal["stop", "max_tokens", "model_length"]
    input_tokens: int
    output_tokens: int
    tokens: tuple[Token, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


class GenerationEngine(Protocol):
    """Runs one batch at a time per worker. Called from worker threads only."""

    name: str

    def run(
        self,
        requests: Sequence[GenerationRequest],
        reply: Callable[[int, GenerationAnswer | Exception], None],
        wanted: Callable[[int], bool],
    ) -> None:
        """Replies once to each request, by its index, as soon as its answer is there; not to those no longer wanted.

        What is wrong with one request is its reply. What is raised is meant for all that have none yet.
        """
        ...

    def close(self) -> None: ...


@dataclass(eq=False, slots=True)
class _Call:
    request: GenerationRequest
    future: Future[GenerationAnswer] = field(default_factory=Future)
    wanted: bool = True

    @property
    def length(self) -> int:
        return sum(len(message.content) for message in self.request.messages)


class Batcher:
    """The queue before one engine: `ask` from any event loop of any thread, answers from up to `workers` threads."""

    def __init__(self, engine: GenerationEngine, batch_size: int, workers: int = 1) -> None:
        self.engine = engine
        self._batch_size = batch_size
        self._most_workers = workers
        self._lock = threading.Lock()
        self._waiting: list[_Call] = []
        self._running: set[_Call] = set()
        self._workers: set[threading.Thread] = set()
        self._closed = False

    async def ask(self, request: GenerationRequest) -> GenerationAnswer:
        """The answer. Raises what the engine replied; cancelling the coroutine takes its call out of the batch."""
        call = _Call(request)
        with self._lock:
            if self._closed:
                raise WorkFailed(f"{self.engine.name} was closed: get the model anew.")
            self._waiting.append(call)
        # After what else is ready in this turn of the loop, so that calls made together form one batch.
        asyncio.get_running_loop().call_soon(self._start)
        try:
            return await asyncio.wrap_future(call.future)
        except asyncio.CancelledError:
            call.wanted = False
            raise

    def close(self) -> None:
        """Ends: what waits or runs fails with WorkFailed, the threads are gone, the engine is closed. May be repeated."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            calls, self._waiting = [*self._waiting, *self._running], []
            workers = list(self._workers)
        for call in calls:
            call.wanted = False
            self._settle(call, WorkFailed(f"{self.engine.name} was closed before it answered."))
        for worker in workers:
            worker.join()
        self.engine.close()

    def _start(self) -> None:
        with self._lock:
            if not self._waiting or len(self._workers) >= self._most_workers:
                return
            worker = threading.Thread(target=self._work, name=f"equipoise {self.engine.name}")
            self._workers.add(worker)
            worker.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                batch = self._next_batch()
                if not batch:
                    self._workers.discard(threading.current_thread())
                    return
                self._running.update(batch)
                if self._waiting and len(self._workers) < self._most_workers:
                    more = threading.Thread(target=self._work, name=threading.current_thread().name)
                    self._workers.add(more)
                    more.start()
            self._run(batch)
            with self._lock:
                self._running.difference_update(batch)

    def _next_batch(self) -> list[_Call]:
        """The oldest call and the longest of those with its settings, longest first. The caller holds the lock."""
        self._waiting = [call for call in self._waiting if call.wanted]
        if not self._waiting:
            return []
        oldest, *others = self._waiting
        alike = [call for call in others if call.request.settings == oldest.request.settings]
        longest = sorted(alike, key=lambda call: call.length, reverse=True)[: self._batch_size - 1]
        batch = sorted([oldest, *longest], key=lambda call: call.length, reverse=True)
        self._waiting = [call for call in self._waiting if call not in batch]
        return batch

    def _run(self, batch: list[_Call]) -> None:
        """Every call of the batch gets a reply. Where all fail together for no stated reason, each is tried alone."""
        try:
            self.engine.run(
                [call.request for call in batch],
                lambda index, outcome: self._settle(batch[index], outcome),
                lambda index: batch[index].wanted,
            )
            failure: Exception = WorkFailed(f"{self.engine.name} gave no answer.")
        except Exception as error:
            failure = error
        left = [call for call in batch if call.wanted and not call.future.done()]
        if len(batch) > 1 and not isinstance(failure, EquipoiseError):
            for call in left:
                self._run([call])
        else:
            for call in left:
                self._settle(call, failure)

    def _settle(self, call: _Call, outcome: GenerationAnswer | Exception) -> None:
        """Sets the future once; the first outcome stands, and a cancelled call takes none."""
        with self._lock:
            if call.future.done() or not call.future.set_running_or_notify_cancel():
                return
            if isinstance(outcome, Exception):
                call.future.set_exception(outcome)
            else:
                call.future.set_result(outcome)
