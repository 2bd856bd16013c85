"""The strong side of a served router: any server of OpenAI's protocol, asked with the client's own bytes.

What comes back is passed on byte by byte. A stream is cut between events only to see whether it ended as it should, so that
half an event never reaches a client; an answer in one piece is read whole first, so that one that breaks off is a failure
and not half an answer. The key goes into the request's header and nowhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from equipoise.core.errors import BadInput, MissingExtra
from equipoise.routing.serving_checks import ChatRequest

try:
    import httpx
except ImportError as error:
    raise MissingExtra(
        "Serving a router needs httpx, starlette and uvicorn: pip install 'equipoise[serve]'."
    ) from error

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 120.0
MOST_BYTES = 64 * 2**20  # of an answer in one piece, and of one event
_PASSED_ON = ("content-type", "content-encoding", "retry-after", "x-request-id", "openai-processing-ms")
_PASSED_ON_PREFIX = "x-ratelimit-"
_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")
# Said of the key or of the load, not of the request: for these the router answers, not the client.
_FAILURES = frozenset({401, 403, 407, 408, 409, 425, 429})


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """An answer in one piece, an error of the client's own included."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class StreamedAnswer:
    """The whole events of a stream: the first, and the others, out of which UpstreamFailed comes where it breaks off.

    close: ends the connection; to be awaited however the stream was used.
    """

    headers: Mapping[str, str]
    first: bytes
    others: AsyncGenerator[bytes]
    close: Callable[[], Awaitable[None]]


class UpstreamFailed(Exception):
    """No answer, or not the whole of one. status: for the client; answer: the upstream's words, where they may be told."""

    def __init__(self, message: str, *, status: int = 502, answer: WholeAnswer | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.answer = message, status, answer


def check_url(url: str) -> str:
    """The address of an API, such as https://api.openai.com/v1, without a slash at its end.

    Raises BadInput for what is none, and for one that holds a key or a query.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.username or parts.password:
        raise BadInput("The upstream's address holds a name or a key: put the key into an environment variable.")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or not url.isascii():
        raise BadInput(f"The upstream's address is {url!r}: give one such as https://api.openai.com/v1.")
    return url.rstrip("/").removesuffix("/chat/completions")


def check_key(key: str | None, variable: str) -> None:
    """Raises BadInput for a key that no header can hold, without telling it."""
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise BadInput(f"{variable} holds characters that no header can: set it to the key alone.")


class Upstream:
    """See the module. model: the name that the upstream knows its model by; None leaves the client's.

    connect, seconds: how long to wait for a connection, and for each next part of an answer. transport: for tests.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        model: str | None = None,
        connect: float = CONNECT_SECONDS,
        seconds: float = ANSWER_SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        check_key(key, "The key")
        self.url, self.model = check_url(url), model
        self._key = key
        self._seconds = seconds
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(seconds, connect=connect, pool=seconds),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            follow_redirects=False,  # the key would go with it
            transport=transport,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(self, request: ChatRequest) -> WholeAnswer | StreamedAnswer:
        """Forwards a request. The caller closes a streamed answer.

        Raises UpstreamFailed where nothing came, the load or the key was refused, or an answer in one piece broke off. An
        error that is the client's own (400, 404, 422) is an answer.
        """
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        headers["accept"] = "text/event-stream" if request.stream else "application/json"
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        sent = self._client.build_request(
            "POST", f"{self.url}/chat/completions", content=self._body(request), headers=headers
        )
        try:
            response = await self._client.send(sent, stream=True)
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._failed(error, "was not reached" if _unreached(error) else "gave no answer") from None
        passed = {name: value for name, value in response.headers.items() if self._may_pass(name, value)}
        is_stream = response.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/event-stream"
        if response.status_code == 200 and is_stream:
            return await self._streamed(response, passed)
        return await self._whole(response, passed)

    def _body(self, request: ChatRequest) -> bytes:
        """The client's bytes; with another model's name only where one was given."""
        if self.model is None or self.model == request.model:
            return request.body
        return json.dumps({**json.loads(request.body), "model": self.model}).encode()

    async def _whole(self, response: httpx.Response, headers: Mapping[str, str]) -> WholeAnswer:
        body = bytearray()
        try:
            async for part in response.aiter_raw():
                body += part
                if len(body) > MOST_BYTES:
                    raise UpstreamFailed("The upstream's answer is larger than this server passes on.")
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._failed(error, "broke off its answer") from None
        finally:
            await response.aclose()
        status = response.status_code
        if status < 300:
            if not _is_json(bytes(body)) and "content-encoding" not in headers:
                raise UpstreamFailed("The upstream's answer is no JSON.")
            return WholeAnswer(status, headers, bytes(body))
        # An error is where servers quote what they were sent.
        answer = WholeAnswer(status, headers, self._without_key(bytes(body)))
        if status >= 500 or status in _FAILURES or status < 400:
            told = None if status in (401, 403, 407) or status < 400 else answer
            reason = "refused the router's key" if status in (401, 403) else f"answered with HTTP {status}"
            raise UpstreamFailed(f"The upstream {reason}.", answer=told)
        return answer

    async def _streamed(self, response: httpx.Response, headers: Mapping[str, str]) -> StreamedAnswer:
        events = self._events(response)

        async def close() -> None:
            await events.aclose()
            await response.aclose()

        try:
            return StreamedAnswer(headers, await anext(events), events, close)
        except BaseException:
            await close()
            raise

    async def _events(self, response: httpx.Response) -> AsyncGenerator[bytes]:
        """Bytes up to the end of an event, as many events as there are; what follows [DONE] as it comes."""
        left, done = bytearray(), False
        try:
            async for part in response.aiter_raw():
                begin = max(0, len(left) - 3)
                left += part
                ends = [match.end() for match in _EVENT_END.finditer(left, begin)]
                if ends:
                    whole = bytes(left[: ends[-1]])
                    del left[: ends[-1]]
                    done = done or _is_done(whole)
                    yield whole
                if len(left) > MOST_BYTES:
                    raise UpstreamFailed("An event of the upstream's stream is larger than this server passes on.")
        except (httpx.HTTPError, httpx.StreamError) as error:
            if not done:
                raise self._failed(error, "broke off its answer") from None
        if not done and not _is_done(bytes(left)):
            raise UpstreamFailed("The upstream ended its answer before it was complete.")
        if left:
            yield bytes(left)

    def _failed(self, error: Exception, what: str) -> UpstreamFailed:
        """In our own words: an exception of the client's may quote the request."""
        if isinstance(error, httpx.TimeoutException) and not _unreached(error):
            return UpstreamFailed(f"The upstream sent nothing for {self._seconds:g} seconds.", status=504)
        return UpstreamFailed(f"The upstream {what}.", status=504 if isinstance(error, httpx.TimeoutException) else 502)

    def _may_pass(self, name: str, value: str) -> bool:
        passed = name.lower() in _PASSED_ON or name.lower().startswith(_PASSED_ON_PREFIX)
        # What is no ASCII has no one encoding in a header: left out, so that it never costs the answer.
        return passed and name.isascii() and value.isascii() and (self._key is None or self._key not in value)

    def _without_key(self, body: bytes) -> bytes:
        return body if self._key is None else body.replace(self._key.encode(), b"[key]")


def _unreached(error: Exception) -> bool:
    return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.UnsupportedProtocol)


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _is_done(events: bytes) -> bool:
    """Whether the last event is the one that ends a stream of OpenAI's."""
    lines = [line for line in events.splitlines() if line.startswith(b"data:")]
    return bool(lines) and lines[-1].removeprefix(b"data:").strip() == b"[DONE]"
