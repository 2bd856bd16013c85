"""An OpenAI-compatible address in front of two models: easy prompts are answered here, the others are forwarded.

    app(router, local, upstream, Controller(0.3, router.threshold))        a starlette application

Each prompt is read once by the local model; the router scores what was read, and the controller says where it goes. A local
answer goes on from what was read. What the local model cannot do (tools, response formats, several choices, pictures, fields
that it does not know, prompts beyond its context) goes upstream always, and counts in the account.

Failure, by policy. A side failed when no byte of an answer went to the client yet; what then?

    error       the client is told (502, 503 or 504)
    local       what the upstream did not answer is answered by the local model, where it can
    upstream    what the local model could not answer goes upstream, where a call is left in the budget

Once bytes went out nothing is switched: the stream ends with an event that holds an error, and without [DONE]. Nothing is
asked twice. Every answer names in its headers where it came from and why.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import secrets
import time
import uuid
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from equipoise.core.errors import BadInput, EquipoiseError, MissingExtra
from equipoise.core.options import closed
from equipoise.core.secrets import one_line
from equipoise.core.terminal import say
from equipoise.routing.controller import Controller, Decision
from equipoise.routing.serve_settings import OnFailure
from equipoise.routing.serving_checks import (
    BODY_SECONDS,
    MAX_BODY,
    ChatRequest,
    RequestRefused,
    error_object,
    parse,
    read_body,
)
from equipoise.routing.serving_local import LocalModel, Piece, ReadPrompt, TooLong
from equipoise.routing.serving_upstream import StreamedAnswer, Upstream, UpstreamFailed, WholeAnswer

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
except ImportError as error:
    raise MissingExtra(
        "Serving a router needs httpx, starlette and uvicorn: pip install 'equipoise[serve]'."
    ) from error

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from equipoise.routing.router import Router
    from equipoise.routing.serving_account import AccountFile

MOST_REQUESTS = 256
REMEMBERED = 1000  # decisions that /decisions tells
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Limits:
    """body: bytes of a request; body_seconds: until it is there; requests: worked on at once, more get 503."""

    body: int = MAX_BODY
    body_seconds: float = BODY_SECONDS
    requests: int = MOST_REQUESTS


class LocalFailed(Exception):
    """The local model gave no answer."""


@closed
def app(
    router: Router,
    local: LocalModel,
    upstream: Upstream,
    controller: Controller,
    policy: OnFailure = "error",
    *,
    account: AccountFile | None = None,
    name: str = "equipoise",
    temperature: float = 0.0,
    limits: Limits | None = None,
    client_key: str | None = None,
    open_metrics: bool = False,
) -> Starlette:
    """The application: /v1/chat/completions, /v1/models, /health, and /metrics and /decisions for this machine alone.

    policy: see the module. account: where the controller's counts are kept; none keeps them in memory. name: of the model
    that /v1/models tells; a request may name any. temperature: of local answers to requests that name none. client_key: what
    clients have to send as their key; None asks for none. open_metrics: tell /metrics and /decisions to other machines, too.
    The application's end closes the local model and the upstream. Raises BadInput where local scores by another router.
    """
    if local.router is not router:
        raise BadInput("The local model scores prompts by another router: give both the same one.")
    server = _Server(local, upstream, controller, policy, account, name, temperature, limits or Limits(), client_key)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await server.end()

    def guarded(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            if not open_metrics and not _is_near(request):
                raise RequestRefused(403, "This is told to the server's own machine alone.", kind="permission_error")
            return await handler(request)

        return handle

    routes = [
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/models", server.models, methods=["GET"]),
        Route("/v1/models/{name:path}", server.model, methods=["GET"]),
        Route("/health", server.health, methods=["GET"]),
        Route("/metrics", guarded(server.metrics), methods=["GET"]),
        Route("/decisions", guarded(server.decisions), methods=["GET"]),
    ]
    handlers = {RequestRefused: _refused, HTTPException: _not_here}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)  # pyright: ignore[reportArgumentType]


class _Server:
    def __init__(
        self,
        local: LocalModel,
        upstream: Upstream,
        controller: Controller,
        policy: OnFailure,
        account: AccountFile | None,
        name: str,
        temperature: float,
        limits: Limits,
        client_key: str | None,
    ) -> None:
        self._local, self._upstream, self._controller = local, upstream, controller
        self._policy, self._account, self._name = policy, account, name
        self._temperature, self._limits, self._client_key = temperature, limits, client_key
        self._now = 0
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._read_seconds = 0.0
        self._decided: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)

    async def end(self) -> None:
        """After the last answer: the account as it is, the model's thread and the connections gone."""
        try:
            if self._account is not None:
                await self._account.save()
        finally:
            await asyncio.to_thread(self._local.close)
            await self._upstream.close()

    # What is asked

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions"""
        self._admit(request)
        if self._now >= self._limits.requests:
            self._counts["refused", "503"] += 1
            raise RequestRefused(
                503,
                "The server is busy; try again.",
                code="busy",
                kind="overloaded_error",
                headers={"retry-after": "1"},
            )
        self._now += 1
        held = _Held(self._left)
        try:
            body = await read_body(request, most=self._limits.body, seconds=self._limits.body_seconds)
            asked = parse(body, temperature=self._temperature)
            response = await _unless_gone(request, self._route(asked))
            if isinstance(response, _Stream):
                response.held = held.passed_on()
            return response
        except RequestRefused as error:
            self._counts["refused", str(error.status)] += 1
            raise
        except ClientDisconnect:
            self._counts["gone",] += 1
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            self._counts["refused", "500"] += 1
            say(f"A request failed: {type(error).__name__}: {one_line(str(error))}")
            raise RequestRefused(500, "The server failed on this request.", kind="server_error") from error
        finally:
            held.end()

    async def models(self, request: Request) -> Response:
        """GET /v1/models"""
        self._admit(request)
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME"""
        self._admit(request)
        if request.path_params["name"] != self._name:
            raise RequestRefused(
                404, f"There is no such model; the one here is {self._name!r}.", code="model_not_found"
            )
        return JSONResponse(self._model())

    async def health(self, request: Request) -> Response:
        """GET /health"""
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, as Prometheus reads it."""
        return Response(self._metrics(), media_type="text/plain; version=0.0.4")

    async def decisions(self, request: Request) -> Response:
        """GET /decisions: the newest first; no text of any request."""
        return JSONResponse({"decisions": list(reversed(self._decided))})

    # Where it goes

    async def _route(self, asked: ChatRequest) -> Response:
        read: ReadPrompt | None = None
        failed = ""
        if not asked.needs:
            try:
                read = await self._local.read(asked.messages)
                self._counts["read",] += 1
                self._read_seconds += read.seconds
            except TooLong:
                asked = replace(asked, needs="context")
            except BadInput:  # the chat template refuses these turns, or there is no text in them
                asked = replace(asked, needs="chat_template")
            except EquipoiseError as error:
                failed = self._local_failed(error)
        if failed and self._policy != "upstream":
            raise RequestRefused(503, failed, kind="server_error", headers={"x-equipoise-why": "local-failed"})
        decision = self._controller.force() if asked.needs else self._controller.decide(read.score if read else _NAN)
        told = _Told(decision, asked.needs, self._controller.budget)
        self._remember(told)
        if failed:
            told.now(decision.route, "local-failed")
        if decision.route == "upstream":
            return await self._forwarded(asked, told, read if self._policy == "local" else None)
        if read is None:
            return await self._instead(asked, told, failed)
        try:
            return await self._answered(asked, told, read)
        except LocalFailed as error:
            return await self._instead(asked, told, str(error))

    async def _instead(self, asked: ChatRequest, told: _Told, failed: str) -> Response:
        """After the local model failed on a prompt of its own."""
        if self._policy != "upstream" or not self._controller.may_call():
            why = "" if self._policy != "upstream" else " No call is left in the budget to forward it."
            told.now("local", "local-failed")
            raise RequestRefused(503, f"{failed}{why}", kind="server_error", headers=told.headers())
        self._controller.call()
        told.now("upstream", "local-failed")
        self._counts["switched", "upstream"] += 1
        return await self._forwarded(asked, told, None)

    async def _forwarded(self, asked: ChatRequest, told: _Told, read: ReadPrompt | None) -> Response:
        """The upstream's answer; read: what a local answer may go on from should the upstream fail."""
        try:
            if self._account is not None:
                await self._account.save()
            answer = await self._upstream.ask(asked)
        except (UpstreamFailed, EquipoiseError) as error:
            self._counts["failed", "upstream"] += 1
            message = error.message if isinstance(error, UpstreamFailed) else str(error)
            say(one_line(message))
            if read is not None:
                told.now("local", "upstream-failed")
                self._counts["switched", "local"] += 1
                try:
                    return await self._answered(asked, told, read)
                except LocalFailed as other:
                    message = f"{message} {other}"
            return self._neither(error, message, told)
        headers = {**answer.headers, **told.headers()}
        if isinstance(answer, WholeAnswer):
            return Response(answer.body, answer.status, headers)
        return _Stream(self._passed_on(answer), headers, answer.close)

    def _neither(self, error: Exception, message: str, told: _Told) -> Response:
        """What a client is told of an upstream that failed: its own words where it has some."""
        headers = {**told.headers(), "x-equipoise-failed": "upstream"}
        if not isinstance(error, UpstreamFailed):
            raise RequestRefused(503, "The account of calls cannot be written.", kind="server_error", headers=headers)
        if error.answer is not None:
            return Response(error.answer.body, error.answer.status, {**error.answer.headers, **headers})
        raise RequestRefused(error.status, message, code="upstream_failed", kind="upstream_error", headers=headers)

    async def _passed_on(self, answer: StreamedAnswer) -> AsyncGenerator[bytes]:
        try:
            yield answer.first
            async for event in answer.others:
                yield event
        except UpstreamFailed as error:
            self._counts["failed", "upstream"] += 1
            say(one_line(error.message))
            yield _event(error_object(error.message, "upstream_error", code="upstream_failed"))

    async def _answered(self, asked: ChatRequest, told: _Told, read: ReadPrompt) -> Response:
        """The local answer. Raises LocalFailed before anything of it went out."""
        pieces = self._local.answer(read, asked.sampling)
        try:
            first = await anext(pieces)
            if asked.stream:
                events = self._events(asked, len(read.ids), first, pieces)
                headers = {"content-type": "text/event-stream; charset=utf-8", **told.headers()}
                return _Stream(events, headers, pieces.aclose)
            got = [first] + [piece async for piece in pieces]
        except EquipoiseError as error:
            await pieces.aclose()
            raise LocalFailed(self._local_failed(error)) from None
        except BaseException:
            await pieces.aclose()
            raise
        text = "".join(piece.text for piece in got)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": got[-1].ended,
        }
        whole = {**self._head("chat.completion"), "choices": [choice], "usage": _usage(len(read.ids), got[-1].tokens)}
        return JSONResponse(whole, headers=told.headers())

    async def _events(
        self, asked: ChatRequest, length: int, first: Piece, pieces: AsyncGenerator[Piece]
    ) -> AsyncGenerator[bytes]:
        head = self._head("chat.completion.chunk")

        def chunk(delta: Mapping[str, Any], ended: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": ended}
            extra = {"usage": None} if asked.include_usage else {}
            return _event({**head, "choices": [choice], **extra})

        try:
            yield chunk({"role": "assistant", "content": first.text}, first.ended)
            last = first
            async for last in pieces:
                yield chunk({"content": last.text} if last.text else {}, last.ended)
            if asked.include_usage:
                yield _event({**head, "choices": [], "usage": _usage(length, last.tokens)})
            yield b"data: [DONE]\n\n"
        except EquipoiseError as error:
            yield _event(error_object(self._local_failed(error), "server_error", code="local_failed"))

    # What is told

    def _admit(self, request: Request) -> None:
        """Raises RequestRefused for a client without the key, where one is asked for."""
        if self._client_key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not secrets.compare_digest(given.encode(), self._client_key.encode()):
            self._counts["refused", "401"] += 1
            raise RequestRefused(401, "The key is missing or wrong.", code="invalid_api_key")

    def _left(self) -> None:
        self._now -= 1

    def _local_failed(self, error: Exception) -> str:
        self._counts["failed", "local"] += 1
        cause = f" {error.__cause__}" if error.__cause__ is not None else ""
        say(one_line(f"{error}{cause}"))
        return str(error)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self._local.name,
        }

    def _model(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": 0, "owned_by": "equipoise"}

    def _remember(self, told: _Told) -> None:
        self._counts["decided", told.decision.route, told.decision.why] += 1
        self._decided.append(told.shown)

    def _metrics(self) -> str:
        controller = self._controller
        lines: list[str] = []

        def metric(name: str, kind: str, about: str, *values: tuple[str, float]) -> None:
            lines.extend((f"# HELP equipoise_{name} {about}", f"# TYPE equipoise_{name} {kind}"))
            lines.extend(f"equipoise_{name}{labels} {_number(value)}" for labels, value in values)

        def counted(group: str, *labels: str) -> list[tuple[str, float]]:
            rows = sorted((key[1:], count) for key, count in self._counts.items() if key[0] == group)
            named = [(",".join(f'{a}="{b}"' for a, b in zip(labels, key, strict=True)), count) for key, count in rows]
            return [(f"{{{text}}}", count) for text, count in named]

        metric("requests_total", "counter", "Requests in the account.", ("", controller.requests))
        metric("calls_total", "counter", "Calls of the upstream in the account.", ("", controller.calls))
        metric("forced_calls_total", "counter", "Calls that could not be local.", ("", controller.forced))
        metric("spent_total", "counter", "Hard prompts that no call was left for.", ("", controller.spent))
        if controller.budget is not None:
            metric("budget", "gauge", "Most calls a request.", ("", controller.budget))
            metric("level", "gauge", "Calls that are left now.", ("", controller.level))
        metric("share", "gauge", "Calls by requests.", ("", controller.share))
        metric("threshold", "gauge", "Scores below go upstream.", ("", controller.threshold_now))
        metric("decisions_total", "counter", "Since the start.", *counted("decided", "route", "why"))
        metric("refused_total", "counter", "Requests that were wrong, by HTTP status.", *counted("refused", "status"))
        metric("failures_total", "counter", "Answers that did not come, or not whole.", *counted("failed", "side"))
        metric("switched_total", "counter", "Requests that the other side took.", *counted("switched", "to"))
        metric("gone_total", "counter", "Clients that went before an answer.", ("", self._counts["gone",]))
        metric("prompts_read_total", "counter", "Prompts that were read to be scored.", ("", self._counts["read",]))
        metric("prompt_seconds_total", "counter", "Seconds that reading them took.", ("", self._read_seconds))
        metric("local_tokens_total", "counter", "Tokens that the local model wrote.", ("", self._local.written))
        metric("requests_now", "gauge", "Requests that are worked on.", ("", self._now))
        metric("local_busy", "gauge", "Prompts and answers at the local model.", ("", self._local.busy))
        return "\n".join(lines) + "\n"


_NAN = float("nan")


class _Told:
    """Where one request goes and why, as its headers and /decisions tell it."""

    def __init__(self, decision: Decision, needs: str, budget: float | None) -> None:
        self.decision = decision
        known = {
            "score": decision.score,
            "threshold": decision.threshold,
            "budget": budget,
            "level": decision.level,
            "share": decision.share,
        }
        kept = {name: value for name, value in known.items() if value is not None and abs(value) < float("inf")}
        self.shown: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "route": decision.route,
            "why": decision.why,
            **({"needs": needs} if needs else {}),
            **kept,
        }

    def now(self, route: str, why: str) -> None:
        """It went elsewhere than was decided."""
        self.shown |= {"route": route, "why": why}

    def headers(self) -> dict[str, str]:
        return {
            f"x-equipoise-{name}": _number(value) if isinstance(value, float) else str(value)
            for name, value in self.shown.items()
        }


class _Held:
    """A place among the requests at work, given back once: at the end of the handler, or of the stream that it returned."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back: Callable[[], None] | None = give_back

    def passed_on(self) -> _Held:
        give_back, self._give_back = self._give_back, None
        assert give_back is not None
        return _Held(give_back)

    def end(self) -> None:
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


class _Stream(StreamingResponse):
    """A stream whose source is closed however it ends: read to its end, left by its client, or never begun."""

    def __init__(
        self, events: AsyncGenerator[bytes], headers: Mapping[str, str], close: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        self.held: _Held | None = None
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self.held is not None:
                self.held.end()
            await self._close()


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """What the work gives; it is cancelled where its client goes. Raises ClientDisconnect then."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


def _is_near(request: Request) -> bool:
    """Whether a request comes from this machine itself, and through no proxy on it."""
    if request.client is None or any(name in request.headers for name in ("x-forwarded-for", "forwarded", "x-real-ip")):
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)
    return JSONResponse(error.plain(), error.status, error.headers)


async def _not_here(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = "There is nothing at this address." if error.status_code == 404 else str(error.detail)
    return JSONResponse(error_object(message, "invalid_request_error"), error.status_code, error.headers)


def _event(content: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n".encode()


def _usage(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _number(value: float) -> str:
    return f"{value:.6g}" if isinstance(value, float) and value == value else "NaN" if value != value else str(value)
