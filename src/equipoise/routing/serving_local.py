"""The local side of a served router: one thread owns the model, reads each prompt once, and answers from what it has read.

The thread reads a waiting prompt, then gives every running answer one token, and so on in turn: a decision waits for one
round of tokens at most, never for an answer, and no answer waits for another to end. Answers share no forward pass, so each
is what it would be alone, to the bit. What the thread computes is sent to the event loop that asked; an answer that nobody
waits for any more ends at its next token.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from equipoise.core.errors import BadInput, EquipoiseError, WorkFailed
from equipoise.core.options import check_fields
from equipoise.language.encode import encode_prompts
from equipoise.language.generate import answer_text, choose
from equipoise.language.model import evaluating
from equipoise.language.score import wide
from equipoise.routing.prompt_states import encode, prefill

if TYPE_CHECKING:
    from equipoise.data.records import Message
    from equipoise.language.model import LanguageModel
    from equipoise.routing.prompt_states import Prefill
    from equipoise.routing.router import Router

AT_ONCE = 16  # answers that are written at once; each keeps its keys and values
MAX_TOKENS = 2048
Ended = Literal["stop", "length"]


class TooLong(BadInput):
    """The prompt leaves no room for an answer in the local model's context."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn. max_tokens: None for as many as the server allows. seed: of the draws at temperature > 0."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer. ended: set on the last one, which has no text. tokens: written so far, an end token included."""

    text: str
    tokens: int
    ended: Ended | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(eq=False, slots=True)
class ReadPrompt:
    """A prompt that was read: its score, the tokens of the answer's prompt, and what to go on from.

    prefill: None where the router reads other tokens (the bare instruction) than the answer begins from, so that these are
    read when the answer begins. seconds: what reading took, the score included.
    """

    ids: tuple[int, ...]
    ends: frozenset[int]
    score: float
    seconds: float
    prefill: Prefill | None


@dataclass(eq=False, slots=True)
class _Reading:
    messages: Sequence[Message]
    settle: Callable[[ReadPrompt | Exception], None]
    wanted: bool = True


@dataclass(eq=False, slots=True)
class _Answer:
    """An answer on its way. uniform: [limit], one draw a token, made before the first."""

    read: ReadPrompt
    sampling: Sampling
    limit: int
    send: Callable[[Piece | Exception], None]
    uniform: Tensor | None
    text: GrowingText
    logits: Tensor | None = None
    cache: Any = None
    tokens: list[int] = field(default_factory=list)
    wanted: bool = True


class LocalModel:
    """See the module. router: whose score each prompt gets. max_tokens: most tokens of any answer."""

    def __init__(
        self,
        language_model: LanguageModel,
        router: Router,
        *,
        max_tokens: int = MAX_TOKENS,
        at_once: int = AT_ONCE,
    ) -> None:
        if max_tokens < 1 or at_once < 1:
            raise BadInput(f"max_tokens is {max_tokens} and at_once {at_once}: both must be at least 1.")
        self.language_model, self.router, self.max_tokens = language_model, router, max_tokens
        self.written = 0  # tokens of all answers
        self._at_once = at_once
        self._changed = threading.Condition()
        self._readings: deque[_Reading] = deque()
        self._waiting: deque[_Answer] = deque()
        self._running: list[_Answer] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="equipoise local model", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        return self.language_model.name

    @property
    def busy(self) -> int:
        """Prompts and answers that wait or are worked on."""
        with self._changed:
            return len(self._readings) + len(self._waiting) + len(self._running)

    async def read(self, messages: Sequence[Message]) -> ReadPrompt:
        """Reads a conversation, and scores it. Cancelling it takes it out of the queue.

        Raises TooLong where no token of an answer would fit, BadInput for a conversation that the chat template refuses, and
        WorkFailed where the model failed, or gives no numbers.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ReadPrompt] = loop.create_future()

        def settle(outcome: ReadPrompt | Exception) -> None:
            if future.done():
                return
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        reading = _Reading(messages, lambda outcome: _tell(loop, settle, outcome))
        self._add(self._readings, reading)
        try:
            return await future
        finally:
            reading.wanted = False

    async def answer(self, read: ReadPrompt, sampling: Sampling) -> AsyncGenerator[Piece]:
        """The answer, piece by piece; closing the generator ends the writing. What was read is used up by it.

        Raises WorkFailed where the model failed, at the first piece or any later one.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        limit = min(sampling.max_tokens or self.max_tokens, self.max_tokens, self._room(len(read.ids)))
        uniform = None
        if sampling.temperature > 0:
            generator = torch.Generator().manual_seed(sampling.seed)
            uniform = torch.rand(limit, generator=generator, dtype=torch.float64)
        text = GrowingText(self.language_model.tokenizer, sampling.stop)
        job = _Answer(read, sampling, limit, lambda piece: _tell(loop, pieces.put_nowait, piece), uniform, text)
        self._add(self._waiting, job)
        try:
            while True:
                piece = await pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.ended:
                    return
        finally:
            job.wanted = False

    def close(self) -> None:
        """Ends the thread; what waits or runs fails with WorkFailed. May be repeated."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _add(self, queue: deque[Any], what: Any) -> None:
        with self._changed:
            if self._closed:
                raise WorkFailed(f"{self.name} was closed.")
            queue.append(what)
            self._changed.notify()

    def _room(self, length: int) -> int:
        return self.language_model.context - length

    def _work(self) -> None:
        with evaluating(self.language_model.model):
            while self._wait():
                with self._changed:
                    reading = self._readings.popleft() if self._readings else None
                    while self._waiting and len(self._running) < self._at_once:
                        self._running.append(self._waiting.popleft())
                if reading is not None and reading.wanted:
                    reading.settle(_caught(self._read, reading.messages))
                for answer in list(self._running):
                    if not answer.wanted or self._step(answer):
                        with self._changed:
                            self._running.remove(answer)
        closed = WorkFailed(f"{self.name} was closed before it answered.")
        for reading in self._readings:
            reading.settle(closed)
        for answer in (*self._waiting, *self._running):
            answer.send(closed)

    def _wait(self) -> bool:
        """Until there is something to do; False when all is over."""
        with self._changed:
            while not (self._closed or self._readings or self._waiting or self._running):
                self._changed.wait()
            return not self._closed

    def _read(self, messages: Sequence[Message]) -> ReadPrompt:
        begin = time.perf_counter()
        language_model, router = self.language_model, self.router
        (ids,), ends = _answer_prompt(language_model, messages)
        if self._room(len(ids)) < 1:
            raise TooLong(
                f"The prompt has {len(ids)} tokens, and {self.name} reads {language_model.context} with the answer."
            )
        scored = encode(language_model, [messages], router.reads)[0]
        done = prefill(language_model, scored)
        self._check(done.logits)
        score = router.score_prefill(done)
        if not math.isfinite(score):
            raise WorkFailed(
                f"The router's score of a prompt is {score}: {self.name} is broken, or was read in too few bits."
            )
        seconds = time.perf_counter() - begin
        return ReadPrompt(tuple(ids), ends, score, seconds, done if scored == ids else None)

    def _check(self, logits: Tensor) -> None:
        """Raises WorkFailed for a model that says nothing: it would answer all the same."""
        if logits.isnan().any():
            raise WorkFailed(
                f"{self.name} gives no numbers for the next token: it is broken, or was read in too few bits."
            )

    def _step(self, answer: _Answer) -> bool:
        """One more token, or the failure; whether the answer is over."""
        outcome = _caught(self._next_token, answer)
        if isinstance(outcome, Exception):
            answer.send(outcome)
            return True
        return self._take(answer, outcome)

    def _next_token(self, answer: _Answer) -> int:
        model, place = self.language_model.model, len(answer.tokens)
        if answer.logits is None:
            begun = answer.read.prefill or prefill(self.language_model, answer.read.ids)
            answer.read.prefill = None  # its cache is written on from here
            answer.logits, answer.cache = begun.logits, begun.cache
        elif answer.cache is None:  # a model that keeps no keys and values: read all anew
            answer.logits = prefill(self.language_model, [*answer.read.ids, *answer.tokens]).logits
        else:
            ids = torch.tensor([[answer.tokens[-1]]], device=self.language_model.device)
            output: Any = model(input_ids=ids, past_key_values=answer.cache, use_cache=True)
            answer.cache = output.past_key_values
            answer.logits = wide(output.logits)[0, -1]
        uniform = None if answer.uniform is None else answer.uniform[place : place + 1]
        assert answer.logits is not None
        self._check(answer.logits)
        return int(choose(answer.logits[None], answer.sampling.temperature, uniform, top_p=answer.sampling.top_p))

    def _take(self, answer: _Answer, token: int) -> bool:
        count = len(answer.tokens) + 1
        self.written += 1
        ended: Ended | None = "stop" if token in answer.read.ends else None
        if ended is None:
            answer.tokens.append(token)
            if new := answer.text.add(token):
                answer.send(Piece(new, count))
            ended = "stop" if answer.text.stopped else "length" if count >= answer.limit else None
        if ended is None:
            return False
        if rest := answer.text.rest():
            answer.send(Piece(rest, count))
        answer.send(Piece("", count, ended))
        return True


class GrowingText:
    """The text of tokens as they come; what later tokens may still change or take back is held back.

    That is a character that is not complete yet, and what may be the beginning of a stop string. stopped: a stop string
    came, behind which nothing is told. All that was told, put together, is the text of all tokens, without the blank that
    joins it to the prompt.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._tokens: list[int] = []
        self._text = ""
        self._told = 0
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is settled by this token and was not told yet."""
        self._tokens.append(token)
        self._text = answer_text(self._tokenizer, self._tokens)
        places = [place for mark in self._stop if (place := self._text.find(mark)) >= 0]
        if places:
            self._text, self.stopped = self._text[: min(places)], True
            return self.rest()
        settled = len(self._text.rstrip("\ufffd"))
        for mark in self._stop:
            begins = (length for length in range(len(mark) - 1, 0, -1) if self._text.endswith(mark[:length]))
            settled = min(settled, len(self._text) - next(begins, 0))
        return self._tell(settled)

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        return self._tell(len(self._text))

    def _tell(self, upto: int) -> str:
        new = self._text[self._told : upto]
        self._told = max(self._told, upto)
        return new


def _answer_prompt(
    language_model: LanguageModel, messages: Sequence[Message]
) -> tuple[list[list[int]], frozenset[int]]:
    """Tokens that the answer goes on from, and those that end it; a lone question may be read without a template."""
    alone = not language_model.uses_chat_template and [message.role for message in messages] == ["user"]
    return encode_prompts(language_model, [messages[0].content if alone else messages])


def _caught(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives, or the exception: what the model may raise must not end the thread of all others."""
    try:
        return function(*arguments)
    except EquipoiseError as error:
        return error
    except Exception as error:
        failed = WorkFailed(f"The local model failed ({type(error).__name__}).")
        failed.__cause__ = error
        return failed


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[[Any], None], what: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop that asked is closed
        loop.call_soon_threadsafe(function, what)
