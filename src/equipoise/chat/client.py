"""A chat model with its record, account and budget: ask many calls, get as many replies, pay for none twice.

    with Record("calls.jsonl") as record, Chat("openai/gpt-4o", record=record, account=Account()) as chat:
        replies = chat.ask([Call((Message("user", "Which is longer, ...?"),), phase="judge")])

The model API is Inspect's (any provider that it knows). Its cache is not used; the record takes its place.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import hashlib
import json
import os
import random
import re
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from equipoise.chat.account import LOCAL, OWN, Account
from equipoise.chat.calls import Call, Message, Reply, Status, ToldToken
from equipoise.chat.record import Entry, Record, Usage
from equipoise.chat.structured import Unfit, parse, repair, response_schema
from equipoise.chat.templates import ROLES
from equipoise.core.budget import Budget
from equipoise.core.errors import BadInput, EquipoiseError, MissingExtra, WorkFailed, did_you_mean
from equipoise.core.files import sha256_file
from equipoise.core.progress import Bar, progress
from equipoise.core.secrets import SECRET_NAME, known_secrets, one_line, redact
from equipoise.language import catalog

if TYPE_CHECKING:
    from inspect_ai.model import Model, ModelOutput
    from pydantic import BaseModel
    from tenacity import RetryCallState

KEY_VERSION = 1  # raise it when the same call would be asked in another way: older answers are then left alone
PATIENCE = 20  # failed calls in a row, after which the provider counts as gone
LONGEST_WAIT = 60.0  # seconds between two tries by our own rule
LONGEST_ASKED = 600.0  # the same where the provider names a time: a quota that ends tomorrow is a failure today
LAST_WAIT = 10  # seconds for what is in flight to end after an interrupt
NO_LIMIT = 100_000
WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")  # of a model folder, what answers depend on
TRANSPORT = ("http_client", "client_timeout", "timeout", "max_retries", "stream", "device", "threads", "parallel")
TRANSPORT += ("batch_size", "custom_outputs")  # arguments that change how answers come, not which

_SCHEMA_REFUSED = re.compile(r"(?i)response_?(?:format|schema)|json_?schema|structured|guided")

# After which errors the call of the current task was sent again.
_retried: ContextVar[list[BaseException]] = ContextVar("retried")


class Chat:
    """A chat model. `name` goes into keys, the account and reports; it holds no path of this machine.

    model: an Inspect name ("openai/gpt-4o", "openai-api/PROVIDER/NAME", "mockllm/model"), or what `language.load` takes
    from this machine: a catalogue name, a folder or a .gguf file (its content is part of the name). model_args, base_url:
    as for Inspect's `get_model`. max_connections: calls in flight at once, None is the provider's default. timeout: seconds
    of one try. max_retries: further tries after 429, 5xx, a timeout, a lost connection or an answer that is no JSON;
    retry_wait: seconds before the first of them, doubled each time, up to 60; a Retry-After of the provider goes first, up
    to 600. offline: only the record answers, and no provider is needed.
    """

    def __init__(
        self,
        model: str,
        *,
        record: Record,
        account: Account,
        budget: Budget | None = None,
        model_args: Mapping[str, Any] | None = None,
        base_url: str | None = None,
        max_connections: int | None = None,
        max_retries: int = 4,
        retry_wait: float = 3.0,
        timeout: int = 600,
        offline: bool = False,
    ) -> None:
        """Raises BadInput for a name that cannot be a model's, and for a budget in dollars without the model's price."""
        self.name, self._address = resolve(model)
        self.record, self.account, self.budget, self.offline = record, account, budget, offline
        self._model_args = dict(model_args or {})
        self._base_url = base_url
        self._max_connections = max_connections
        self._max_retries, self._retry_wait, self._timeout = max_retries, retry_wait, timeout
        self._model: Model | None = None
        self._schemas = True  # until the provider refuses one
        self._failed_in_row = 0
        self._in_flight = 0
        self._answered = False
        self._identity = identity(self.name, self._model_args, base_url)
        if max_connections is not None and max_connections < 1:
            raise BadInput(f"max_connections is {max_connections}; expected 1 or more.")
        if budget is not None and "usd" in budget.limits and not offline and not account.has_price(self.name):
            raise BadInput(
                f"A budget in usd needs the price of {self.name}: Account(prices={{{self.name!r}: (prompt, cached, "
                f"generated)}}), in dollars per million tokens."
            )
        account.include(record)

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Make the provider now, which else the first call does. Raises BadInput or MissingExtra where there is none."""
        if not self.offline:
            self._open()

    def close(self) -> None:
        """Close the provider's connections; the record stays open."""
        if self._model is not None:
            model, self._model = self._model, None
            _loop(os.getpid()).run(model.api.aclose())

    def ask(self, calls: Sequence[Call], *, title: str = "") -> list[Reply]:
        """The replies, in order. What the record holds is not asked; equal calls are asked once; the rest go out together.

        An answer is on the disk before the next call of its connection goes out, so that a kill loses calls in flight and
        nothing else. A call that failed is a Reply with status "failed", and is asked again by the next run.

        Raises BadInput where no call can succeed (a wrong key, an unknown model, offline and not recorded), BudgetReached,
        and WorkFailed when the provider seems gone. What was answered is stored in every case.
        """
        calls = list(calls)
        for role in {message.role for call in calls for message in call.messages} - set(ROLES):
            raise BadInput(f"A call cannot have a message of {role!r}. {did_you_mean(role, ROLES)}")
        keys = [self.key(call) for call in calls]
        replies: dict[str, Reply] = {}
        wanted: dict[str, Call] = {}
        again: list[tuple[str, Call]] = []
        for key, call in zip(keys, calls, strict=True):
            if key in replies or key in wanted:
                again.append((key, call))
            elif (reply := self._replay(key, call)) is not None:
                replies[key] = reply
            else:
                wanted[key] = call
        if wanted:
            if self.offline or self.record.read_only:
                phase = next(iter(wanted.values())).phase
                how = "without offline (--replay)" if self.offline else "with a .jsonl file as the record"
                raise BadInput(
                    f"{self.record.path} has no answer of {self.name} to {len(wanted)} of {len(calls)} calls, the first in "
                    f"phase {phase!r}; run the same command {how} to record them."
                )
            with progress(title or f"Asking {self.name}", total=len(wanted), unit="calls") as bar:
                self._run(wanted, replies, bar)
        for key, call in again:
            if replies[key].status != "failed":
                self.account.replayed(self.name, call.phase)
        return [replies[key] for key in keys]

    def key(self, call: Call) -> str:
        """What tells this call of this model from every other: sha256 over all that its answer depends on."""
        asked = {
            "version": KEY_VERSION,
            **self._identity,
            "messages": [[message.role, message.content] for message in call.messages],
            "schema": _schema_text(call.schema) if call.schema else None,
            "max_tokens": call.max_tokens,
            "temperature": float(call.temperature),
            "sample": call.sample,
        }
        if call.likeliest:  # absent otherwise, so that records from before it was asked for still answer
            asked["likeliest"] = call.likeliest
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _replay(self, key: str, call: Call) -> Reply | None:
        """The reply from the record alone; None where a call of it, or of its repair, was not answered."""
        entry = self.record.found(key)
        if entry is None:
            return None
        reply, again = _reading(call, entry)
        if again is not None:
            repaired = self.record.found(self.key(again))
            if repaired is None:
                return None
            self.account.replayed(self.name, again.phase)
            reply = _repaired(again, repaired)
        self.account.replayed(self.name, call.phase)
        return reply

    def _run(self, wanted: dict[str, Call], replies: dict[str, Reply], bar: Bar) -> None:
        """Ask on the loop's thread while this one, the caller's, shows the progress and can be interrupted."""
        before, failed = len(replies), 0
        ended = threading.Event()

        def done(key: str, reply: Reply) -> None:
            nonlocal failed
            replies[key] = reply
            failed += reply.status == "failed"

        async def work() -> None:
            try:
                await self._ask(wanted, done)
            finally:
                ended.set()

        running = _loop(os.getpid()).start(work())
        try:
            while not running.done():
                concurrent.futures.wait([running], timeout=0.2)
                if len(replies) - before != bar.done:
                    bar.update(len(replies) - before, **({"failed": failed} if failed else {}))
        except BaseException:
            running.cancel()
            ended.wait(timeout=LAST_WAIT)
            raise
        running.result()

    async def _ask(self, wanted: dict[str, Call], done: Callable[[str, Reply], None]) -> None:
        model = self._open()
        self._failed_in_row = 0
        pending = iter(wanted.items())
        stopped: list[EquipoiseError] = []

        async def worker() -> None:
            for key, call in pending:
                try:
                    done(key, await self._settle(model, key, call))
                except _Stop as stop:  # what is in flight beside it is finished
                    stopped.append(stop.error)
                if stopped:
                    return

        connections = self._max_connections or model.api.max_connections()
        workers = [asyncio.create_task(worker()) for _ in range(min(connections, len(wanted)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        if stopped:
            raise stopped[0]

    async def _settle(self, model: Model, key: str, call: Call) -> Reply:
        """Ask a call and, where its answer does not satisfy the schema, its repair; each is stored on arrival."""
        reply, again = _reading(call, await self._stored(model, key, call))
        if again is None:
            return reply
        return _repaired(again, await self._stored(model, self.key(again), again))

    async def _stored(self, model: Model, key: str, call: Call) -> Entry:
        if (known := self.record.found(key)) is not None:
            self.account.replayed(self.name, call.phase)
            return known
        if self.budget is not None:
            try:
                self.account.check(self.budget, in_flight=self._in_flight)
            except EquipoiseError as error:
                raise _Stop(error) from None
        self._in_flight += 1
        try:
            # A task of its own: Inspect keeps an event per call in the context, which ends with the task.
            entry = await asyncio.create_task(self._generate(model, key, call))
        finally:
            self._in_flight -= 1
        self.record.add(entry, call, secrets=self._secrets(model))
        self.account.book(entry)
        if entry.status != "failed":
            self._failed_in_row, self._answered = 0, True
            return entry
        self._failed_in_row += 1
        if self._failed_in_row >= PATIENCE:
            raise _Stop(
                WorkFailed(
                    f"{self._failed_in_row} calls of {self.name} in a row failed, the last with: {entry.reason}. "
                    f"{len(self.record)} answered calls are stored; the same command goes on."
                )
            )
        return entry

    async def _generate(self, model: Model, key: str, call: Call) -> Entry:
        """One call with all its tries. Raises _Stop where no other call can succeed either."""
        retried: list[BaseException] = []
        _retried.set(retried)
        answer = _Answer("answered", reason="an empty answer, twice")
        spent: Usage | None = None
        seconds, empty = 0.0, 0
        while empty < 2:
            try:
                output = await self._output(model, key, call)
            except _Stop:
                raise
            except Exception as error:
                cause, status = _cause(error)
                lasting = isinstance(cause, EquipoiseError) or status in (400, 413, 422)
                answer = _Answer("rejected" if lasting else "failed", reason=_reason(error))
                break
            seconds += output.time or 0.0
            if (usage := _usage(output)) is not None:
                spent = usage if spent is None else spent + usage
            if (read := _read(output)) is not None:
                answer = read
                break
            empty += 1
        secrets = self._secrets(model)  # a server can echo the headers that it was sent
        redacted = redact(answer.text, secrets)
        tokens = answer.tokens if call.likeliest and redacted == answer.text else ()
        answer = replace(answer, text=redacted)
        if call.schema is not None and answer.status in ("answered", "cut"):
            try:
                parse(answer.text, call.schema)
                answer = replace(answer, status="answered")
            except Unfit as problem:
                answer = replace(answer, status="invalid", reason=str(problem))
        return Entry(
            key=key,
            model=self.name,
            phase=call.phase,
            status=answer.status,
            text=answer.text,
            usage=spent,
            stop=redact(answer.stop, secrets),
            reason=answer.reason and one_line(answer.reason, secrets),
            seconds=round(seconds, 4),
            retries=len(retried) + min(empty, 1),
            attempt=self.record.attempt,
            tokens=tokens,
        )

    async def _output(self, model: Model, key: str, call: Call) -> ModelOutput:
        from inspect_ai.model import GenerateConfig

        messages = inspect_messages(call.messages)
        while True:
            schemas = self._schemas
            config = GenerateConfig(
                max_retries=self._max_retries,
                attempt_timeout=self._timeout,
                max_connections=NO_LIMIT,  # Inspect shares the first limit it hears of among all clients of a model
                max_tokens=call.max_tokens,
                temperature=call.temperature,
                seed=int(key[:7], 16) if self.name.startswith(OWN) else None,  # not every server takes one
                response_schema=response_schema(call.schema) if call.schema and schemas else None,
                logprobs=True if call.likeliest else None,
                top_logprobs=call.likeliest or None,
            )
            try:
                return await model.generate(messages, config=config)
            except Exception as error:
                cause, status = _cause(error)
                if call.schema and schemas and status in (400, 422) and _SCHEMA_REFUSED.search(str(cause)):
                    self._schemas = False
                    _retried.get().append(error)
                    continue
                if status in (401, 404) or (status == 403 and not self._answered):
                    what = {
                        401: "the API key",
                        403: "the API key and its rights",
                        404: "the model's name and the address",
                    }
                    reason = one_line(str(cause), self._secrets(model))
                    refusal = f"The provider refuses {self.name} with HTTP {status}; check {what[status]} ({reason})."
                    raise _Stop(BadInput(refusal)) from None
                if isinstance(cause, MissingExtra):
                    raise _Stop(cause) from None
                raise

    def _secrets(self, model: Model) -> list[str]:
        keys = {name: getattr(model.api, name, None) for name in ("api_key", "initial_api_key")}
        return known_secrets({**self._model_args, **keys}, self._base_url)

    def _open(self) -> Model:
        if self._model is None:
            self._model = _open(
                self._address, self._base_url, self._model_args, self._max_connections, self._retry_wait
            )
        return self._model


class _Stop(Exception):
    """No further call goes out, for this reason; those in flight are finished."""

    def __init__(self, error: EquipoiseError) -> None:
        self.error = error


@dataclass(frozen=True, slots=True)
class _Answer:
    status: Status
    text: str = ""
    reason: str = ""
    stop: str = ""
    tokens: tuple[ToldToken, ...] = ()


def resolve(model: str) -> tuple[str, str]:
    """(name for keys and reports, address for Inspect). Raises BadInput for what can be neither a provider's nor ours.

    A folder or file is named by its last part and a digest of its content: "equipoise/forgotten@1f2e3d4c5b6a". With such a
    name a record replays where the model is not at hand.
    """
    target = model.removeprefix(OWN)
    if target in catalog.CATALOG:
        return OWN + target, OWN + target
    path = Path(target).expanduser()
    if path.is_file() or any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        return f"{OWN}{path.name}@{_content(path)[:12]}", f"{OWN}{path.absolute()}"
    if "/" not in model:
        raise BadInput(
            f"No model {model!r} is known here. {did_you_mean(model, catalog.CATALOG)} A provider's model is named with "
            f"the provider, such as openai/gpt-4o."
        )
    return model, model


def _content(path: Path) -> str:
    if path.is_file():
        return _file_digest(path, *_state(path))
    files = sorted({file for pattern in WEIGHTS for file in path.glob(pattern)})
    digests = "\n".join(f"{file.name} {_file_digest(file, *_state(file))}" for file in files)
    return hashlib.sha256(digests.encode()).hexdigest()


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@functools.cache
def _file_digest(path: Path, size: int, modified: int) -> str:
    """Read once while it stays as it is: a name is resolved for the plan, the settings and every chat."""
    return sha256_file(path)


def answers(chat: Chat, calls: Sequence[Call], title: str, *, name: str = "") -> list[Reply]:
    """Replies without failed ones; name: who asks for them, where that is not the chat.

    Raises WorkFailed when there is one: a lost connection must not count as an error.
    """
    replies = chat.ask(calls, title=title)
    failed = [reply for reply in replies if reply.status == "failed"]
    if failed:
        why = failed[0].reason.rstrip(".")
        raise WorkFailed(
            f"{len(failed)} of {len(calls)} calls of {name or chat.name} got no answer ({why}); the others are stored, and "
            "the same command asks for what is missing."
        )
    return replies


def identity(name: str, model_args: Mapping[str, Any], base_url: str | None) -> dict[str, Any]:
    """The part of every key that says who is asked: neither secrets, nor the host, nor what only changes the transport.

    Arguments that are no JSON values are left out.
    """
    kept = {}
    for argument, value in model_args.items():
        if not SECRET_NAME.search(argument) and argument not in TRANSPORT:
            try:
                kept[argument] = json.loads(json.dumps(value))
            except (TypeError, ValueError):
                continue
    return {"model": name, "model_args": kept, "base_url": urlsplit(base_url).path.rstrip("/") if base_url else ""}


@functools.cache
def _schema_text(schema: type[BaseModel]) -> str:
    return json.dumps(schema.model_json_schema(), sort_keys=True)


def _reading(call: Call, entry: Entry) -> tuple[Reply, Call | None]:
    """The reply that a stored call gives, and the repair question where its text does not satisfy the schema."""
    if call.schema is None or entry.status in ("failed", "refused", "rejected"):
        return Reply(entry.text, entry.status, reason=entry.reason, tokens=entry.tokens), None
    try:
        return Reply(entry.text, "answered", value=parse(entry.text, call.schema), tokens=entry.tokens), None
    except Unfit as problem:
        why = f"no valid answer, not repaired either: {problem}"
        reply = Reply(entry.text, "invalid", reason=why, tokens=entry.tokens)
        return reply, repair(call, entry.text, str(problem))


def _repaired(again: Call, entry: Entry) -> Reply:
    reply, _ = _reading(again, entry)
    if reply.status in ("refused", "rejected"):
        return Reply(entry.text, "invalid", reason=f"the repair was {reply.status}: {entry.reason}")
    return reply


def inspect_messages(messages: Sequence[Message]) -> list[Any]:
    """Messages as Inspect's own."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    return [kinds[message.role](content=message.content) for message in messages]


def _read(output: ModelOutput) -> _Answer | None:
    """What came; None for an empty answer. A provider's own words (a filter's, an error's) are a reason, not the text."""
    if output.error:
        return _Answer("failed", reason=output.error)
    text, stop = output.completion, "" if output.empty else output.stop_reason
    if stop == "content_filter":
        return _Answer("refused", reason=text or "the provider's filter", stop=stop)
    if stop == "model_length" and not (output.usage and output.usage.output_tokens):
        return _Answer("rejected", reason=text or "too long for the model", stop=stop)
    if stop in ("max_tokens", "model_length"):
        return _Answer("cut", text, stop=stop, tokens=_tokens(output))
    return _Answer("answered", text, stop=stop, tokens=_tokens(output)) if text.strip() else None


def _tokens(output: ModelOutput) -> tuple[ToldToken, ...]:
    told = output.choices[0].logprobs if output.choices else None
    return tuple(
        ToldToken(each.token, each.logprob, tuple((other.token, other.logprob) for other in each.top_logprobs or ()))
        for each in (told.content if told else ())
    )


def _usage(output: ModelOutput) -> Usage | None:
    usage = output.usage
    if usage is None:
        return None
    cached = usage.input_tokens_cache_read or 0
    prompt = usage.input_tokens + cached + (usage.input_tokens_cache_write or 0)
    return Usage(prompt, cached, usage.output_tokens, usage.reasoning_tokens or 0)


def _open(
    address: str, base_url: str | None, model_args: dict[str, Any], max_connections: int | None, retry_wait: float
) -> Model:
    """Inspect's model. Raises BadInput, or MissingExtra naming the package, where there is none."""
    try:
        from inspect_ai.model import GenerateConfig, get_model
    except ImportError as error:
        raise MissingExtra("Chat models need Inspect AI: pip install 'equipoise[chat]'") from error
    try:
        model = get_model(
            address,
            config=GenerateConfig(max_connections=max_connections),
            base_url=base_url,
            memoize=False,
            **model_args,
        )
    except EquipoiseError:
        raise
    except Exception as error:
        # Inspect's sentences are in rich markup.
        reason = re.sub(r"\[/?\w+\]", "", str(getattr(error, "message", error)))
        reason = " ".join(reason.split()).removeprefix("ERROR: ").rstrip(".")
        kind = MissingExtra if "pip install" in reason else BadInput
        raise kind(f"{address} cannot be used: {redact(reason, known_secrets(model_args, base_url))}.") from error
    _govern(model, retry_wait, local=address.startswith(LOCAL))
    return model


def _govern(model: Model, first_wait: float, *, local: bool) -> None:
    """Make Inspect's retries the only ones, count them, and let them wait as long as the provider says."""
    api = model.api
    client: Any = getattr(api, "client", None)
    if hasattr(client, "max_retries"):
        client.max_retries = 0  # those of the provider's own client multiply with Inspect's
    classify = api.should_retry
    chance = random.Random()

    def should_retry(error: Exception) -> Any:
        # A body that is no JSON, or not of the expected form, comes from a proxy or a dying server.
        unreadable = isinstance(error, json.JSONDecodeError | TypeError | LookupError | AttributeError)
        return classify(error) or (unreadable and not local)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = getattr(classify(error), "retry_after", None) if isinstance(error, Exception) else None
        own = min(first_wait * 2 ** (state.attempt_number - 1), LONGEST_WAIT)
        seconds = min(asked, LONGEST_ASKED) if asked else own
        return seconds * chance.uniform(1.0, 1.25)

    async def before_retry(error: BaseException) -> None:
        _retried.get().append(error)
        await before(error)

    before = model.before_retry
    vars(api)["should_retry"] = should_retry
    vars(api)["retry_wait"] = lambda: wait
    vars(model)["before_retry"] = before_retry


def _cause(error: Exception) -> tuple[BaseException, int | None]:
    """What went wrong beneath the retries and Inspect's wrappers (which quote the request), and its HTTP status."""
    cause: BaseException = error
    if (last := getattr(error, "last_attempt", None)) is not None:
        cause = last.exception() or cause
    if type(cause).__name__ == "ModelGenerateError" and cause.__cause__ is not None:
        cause = cause.__cause__
    status = next(
        (code for name in ("status_code", "code") if isinstance(code := getattr(cause, name, None), int)), None
    )
    return cause, status


def _reason(error: Exception) -> str:
    cause, status = _cause(error)
    return f"HTTP {status}: {cause}" if status else f"{type(cause).__name__}: {cause}"


class _Loop:
    """An event loop on a thread of its own. Inspect's limits and the providers' connections belong to the loop in which
    they were first used, so the whole process has one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="equipoise-chat", daemon=True).start()

    def start(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.start(work).result()


@functools.cache
def _loop(process: int) -> _Loop:
    """The loop of this process; a fork has no thread of its parent's, hence its number."""
    return _Loop()
