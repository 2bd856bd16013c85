"""The upstream's bytes come through as they are, in whole events; what breaks off is a failure; the key stays inside."""

import asyncio
import json

import httpx
import pytest

from equipoise.core.errors import BadInput
from equipoise.routing import serving_upstream
from equipoise.routing.serving_checks import parse
from equipoise.routing.serving_upstream import StreamedAnswer, Upstream, UpstreamFailed, WholeAnswer, check_url

KEY = "sk-very-secret-0123456789"
BODY = b'{ "model":"m",  "messages":[{"role":"user","content":"hi"}], "brand_new": 0.10 }'
STREAM = (
    b': comment\n\ndata: {"a":1}\r\n\r\nevent: x\ndata: {"b":\ndata: 2}\n\n'
    b'data: {"c": "data: [DONE]\\n\\n"}\r\rdata: [DONE]\n\n'
)


class Parts(httpx.AsyncByteStream):
    def __init__(self, parts, error=None):
        self.parts, self.error, self.closed = parts, error, False

    async def __aiter__(self):
        for part in self.parts:
            yield part
        if self.error is not None:
            raise self.error

    async def aclose(self):
        self.closed = True


def said(status, body, headers=None):
    """An answer as it comes over a wire, in pieces."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    parts = [content[at : at + 5] for at in range(0, len(content), 5)]
    return httpx.Response(status, headers={"content-type": "application/json", **(headers or {})}, stream=Parts(parts))


def upstream(answer, **options):
    """One whose every request is answered by `answer(request)`."""
    return Upstream("http://up.test/v1", KEY, transport=httpx.MockTransport(answer), **options)


def streamed(parts, error=None, status=200):
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    return lambda request: httpx.Response(status, headers=headers, stream=Parts(parts, error))


async def read(side, body=BODY):
    """Headers, and the whole events; with the failure that ended them."""
    answer = await side.ask(parse(body))
    assert isinstance(answer, StreamedAnswer)
    events = [answer.first]
    try:
        async for event in answer.others:
            events.append(event)
        return events, None
    except UpstreamFailed as error:
        return events, error
    finally:
        await answer.close()


def test_a_request_goes_out_as_it_came():
    seen = []

    async def answer(request):
        seen.append((request, await request.aread()))
        return said(200, {"id": "x"}, {"x-request-id": "r1", "set-cookie": "a=b", "x-other": "c"})

    got = asyncio.run(upstream(answer).ask(parse(BODY)))
    request, body = seen[0]
    assert body == BODY
    assert str(request.url) == "http://up.test/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert isinstance(got, WholeAnswer)
    assert json.loads(got.body) == {"id": "x"}
    assert got.headers == {"content-type": "application/json", "x-request-id": "r1"}


def test_another_models_name_changes_nothing_else():
    bodies = []

    async def answer(request):
        bodies.append(await request.aread())
        return said(200, {})

    asyncio.run(upstream(answer, model="big").ask(parse(BODY)))
    asyncio.run(upstream(answer, model="m").ask(parse(BODY)))
    assert json.loads(bodies[0]) == {**json.loads(BODY), "model": "big"}
    assert bodies[1] == BODY


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
def test_a_stream_comes_through_byte_by_byte_in_whole_events(size):
    parts = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    events, failure = asyncio.run(read(upstream(streamed(parts))))
    assert failure is None
    assert b"".join(events) == STREAM
    for event in events:
        assert event.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))
    assert size > 7 or len(events) == 5


def test_what_follows_the_end_of_a_stream_comes_too():
    parts = [b"data: {}\n\ndata: [DONE]\n\n", b": bye"]
    assert asyncio.run(read(upstream(streamed(parts)))) == ([parts[0], parts[1]], None)
    unended = [b"data: {}\n\ndata: [DONE]"]  # the last blank line is missing
    events, failure = asyncio.run(read(upstream(streamed(unended))))
    assert (b"".join(events), failure) == (unended[0], None)


@pytest.mark.parametrize(
    "error", [None, httpx.ReadError("gone"), httpx.RemoteProtocolError("cut"), httpx.ReadTimeout("slow")]
)
def test_half_an_answer_is_a_failure_after_the_last_whole_event(error):
    parts = [b'data: {"a":1}\n\n', b'data: {"b":2}\n\ndata: {"c"']
    events, failure = asyncio.run(read(upstream(streamed(parts, error))))
    assert b"".join(events) == b'data: {"a":1}\n\ndata: {"b":2}\n\n'
    assert failure is not None
    assert failure.status == (504 if isinstance(error, httpx.ReadTimeout) else 502)


half_event = streamed([b'data: {"a"'], httpx.ReadError("gone"))


def half(request):
    return httpx.Response(200, stream=Parts([b'{"half":'], httpx.ReadError("gone")))


@pytest.mark.parametrize(
    "answer",
    [
        half_event,
        streamed([b"data: half"]),
        streamed([]),
        half,
        lambda request: said(200, b'{"half":'),
        lambda request: said(500, b"down"),
        lambda request: said(429, {"error": {"message": "slow down"}}, {"retry-after": "7"}),
        lambda request: said(401, f"the key {KEY} is wrong".encode()),
        lambda request: said(302, b"", {"location": "http://elsewhere.test"}),
    ],
)
def test_what_fails_before_the_first_event_is_a_failure(answer):
    with pytest.raises(UpstreamFailed) as caught:
        asyncio.run(upstream(answer).ask(parse(BODY)))
    assert KEY not in str(caught.value)
    assert "broke off" not in str(caught.value) or answer in (half, half_event)
    if caught.value.answer is not None:
        assert KEY.encode() not in caught.value.answer.body
        assert caught.value.answer.status in (429, 500)


@pytest.mark.parametrize(
    ("error", "status"), [(httpx.ConnectError, 502), (httpx.ConnectTimeout, 504), (httpx.ReadTimeout, 504)]
)
def test_what_is_not_reached_is_a_failure_in_our_own_words(error, status):
    def answer(request):
        raise error(f"http://up.test said {KEY}")

    with pytest.raises(UpstreamFailed) as caught:
        asyncio.run(upstream(answer).ask(parse(BODY)))
    assert caught.value.status == status
    assert KEY not in str(caught.value) and "up.test" not in str(caught.value)


def test_the_clients_own_error_is_its_answer_without_the_key():
    def answer(request):
        return said(400, {"error": f"you sent {request.headers['authorization']}"}, {"x-request-id": KEY})

    got = asyncio.run(upstream(answer).ask(parse(BODY)))
    assert isinstance(got, WholeAnswer)
    assert got.status == 400
    assert json.loads(got.body) == {"error": "you sent Bearer [key]"}
    assert "x-request-id" not in got.headers


def test_a_stream_is_closed_however_it_is_left():
    stream = Parts([b"data: 1\n\n", b"data: 2\n\n"])
    side = upstream(lambda request: httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=stream))

    async def leave():
        answer = await side.ask(parse(BODY))
        await answer.close()

    asyncio.run(leave())
    assert stream.closed


@pytest.mark.parametrize("url", ["", "api.openai.com/v1", "ftp://a/v1", "http://", "http://a:99999/v1", "http://a/v1?key=x",
                                 "http://[::1/v1"])  # fmt: skip
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(BadInput, match="address"):
        check_url(url)


def test_an_address_with_a_key_is_refused_without_telling_it():
    with pytest.raises(BadInput) as caught:
        check_url(f"https://user:{KEY}@api.test/v1")
    assert KEY not in str(caught.value)
    assert (
        check_url("https://api.test/v1/") == check_url("https://api.test/v1/chat/completions") == "https://api.test/v1"
    )


@pytest.mark.parametrize("key", ["sk é", "sk\n", "", "a b"])
def test_a_key_that_no_header_holds_is_refused_without_telling_it(key):
    with pytest.raises(BadInput) as caught:
        Upstream("http://up.test/v1", key)
    assert not key or key not in str(caught.value)


def test_a_header_that_no_answer_can_carry_is_left_out():
    headers = [(b"content-type", b"application/json"), (b"x-request-id", "→".encode()), (b"retry-after", b"3")]
    got = asyncio.run(upstream(lambda _: httpx.Response(200, headers=headers, stream=Parts([b"{}"]))).ask(parse(BODY)))
    assert isinstance(got, WholeAnswer) and got.body == b"{}"
    assert dict(got.headers) == {"content-type": "application/json", "retry-after": "3"}


BOTH = {"error": {"message": "no"}}


@pytest.mark.parametrize("status", [200, 201, 299, 400, 402, 404, 405, 406, 410, 422, 424, 426, 428, 430, 499])
def test_answers_and_the_clients_own_errors_pass(status):
    got = asyncio.run(upstream(lambda _: said(status, BOTH)).ask(parse(BODY)))
    assert isinstance(got, WholeAnswer) and (got.status, json.loads(got.body)) == (status, BOTH)


@pytest.mark.parametrize(
    ("status", "reason", "told"),
    [
        (300, "answered with HTTP 300", False),
        (307, "answered with HTTP 307", False),
        (399, "answered with HTTP 399", False),
        (401, "refused the router's key", False),
        (403, "refused the router's key", False),
        (407, "answered with HTTP 407", False),
        (408, "answered with HTTP 408", True),
        (409, "answered with HTTP 409", True),
        (425, "answered with HTTP 425", True),
        (429, "answered with HTTP 429", True),
        (500, "answered with HTTP 500", True),
        (503, "answered with HTTP 503", True),
    ],
)
def test_what_is_said_of_the_key_or_the_load_is_a_failure(status, reason, told):
    with pytest.raises(UpstreamFailed) as caught:
        asyncio.run(upstream(lambda _: said(status, f"{KEY}!".encode(), {"retry-after": "7"})).ask(parse(BODY)))
    assert caught.value.message == f"The upstream {reason}." and caught.value.status == 502
    assert (caught.value.answer is not None) == told
    if caught.value.answer is not None:
        assert (caught.value.answer.status, caught.value.answer.body) == (status, b"[key]!")
        assert caught.value.answer.headers["retry-after"] == "7"


def failure(answer, **options):
    with pytest.raises(UpstreamFailed) as caught:
        asyncio.run(upstream(answer, **options).ask(parse(BODY)))
    return caught.value


def test_a_failure_is_told_in_our_own_words():
    def raising(error):
        def answer(request):
            raise error("secret")

        return answer

    told = {
        httpx.ConnectError: ("The upstream was not reached.", 502),
        httpx.ConnectTimeout: ("The upstream was not reached.", 504),
        httpx.PoolTimeout: ("The upstream was not reached.", 504),
        httpx.UnsupportedProtocol: ("The upstream was not reached.", 502),
        httpx.ReadTimeout: ("The upstream sent nothing for 7.5 seconds.", 504),
        httpx.WriteTimeout: ("The upstream sent nothing for 7.5 seconds.", 504),
        httpx.ReadError: ("The upstream gave no answer.", 502),
    }
    for error, (message, status) in told.items():
        found = failure(raising(error), seconds=7.5)
        assert (found.message, found.status, found.answer) == (message, status, None)
    assert failure(half).message == "The upstream broke off its answer."
    assert failure(lambda _: said(200, b"half")).message == "The upstream's answer is no JSON."
    assert failure(lambda _: said(200, b"[" * 100_000)).message == "The upstream's answer is no JSON."
    assert failure(streamed([])).message == "The upstream ended its answer before it was complete."


def test_an_answer_that_is_packed_is_not_looked_into():
    got = asyncio.run(upstream(lambda _: said(200, b"\x1f\x8b", {"content-encoding": "zstd2"})).ask(parse(BODY)))
    assert isinstance(got, WholeAnswer) and got.body == b"\x1f\x8b"


@pytest.mark.parametrize("status", [201, 400])
def test_a_stream_is_one_that_succeeded(status):
    body = b'{"a": 1}'
    got = asyncio.run(upstream(streamed([body], status=status)).ask(parse(BODY)))
    assert isinstance(got, WholeAnswer) and got.body == body
    assert got.headers == {"content-type": "text/event-stream; charset=utf-8"}


def test_no_more_is_held_than_the_limit(monkeypatch):
    monkeypatch.setattr(serving_upstream, "MOST_BYTES", 20)
    whole = b'{"a": "1234567890"}'
    assert len(whole) == 19
    got = asyncio.run(upstream(lambda _: said(200, whole + b" ")).ask(parse(BODY)))
    assert isinstance(got, WholeAnswer) and got.body == whole + b" "
    assert failure(lambda _: said(200, whole + b"  ")).message.startswith("The upstream's answer is larger")
    event = b"data: 1\n\n"
    done = b"data: [DONE]\n\n"
    fits, reason = asyncio.run(read(upstream(streamed([event * 9, b"data: " + b"x" * 14, b"\n\n", done]))))
    assert reason is None and b"".join(fits) == event * 9 + b"data: " + b"x" * 14 + b"\n\n" + done
    some, reason = asyncio.run(read(upstream(streamed([event, b"data: " + b"x" * 15, b"\n\n", done]))))
    assert some == [event] and reason is not None
    assert reason.message == "An event of the upstream's stream is larger than this server passes on."


@pytest.mark.parametrize(
    ("last", "complete"),
    [
        (b"data: [DONE]\n\n", True),
        (b"data:[DONE]\n\n", True),
        (b"data: [DONE]", True),
        (b"data: 1\n\ndata: [DONE]\n\n", True),
        (b"data: [DONE]\n\ndata: 1\n\n", False),
        (b"data: [DONE]\n\n: bye\n\n", True),
        (b"id: [DONE]\n\n", False),
        (b": bye\n\n", False),
        (b"data: done\n\n", False),
    ],
)
def test_a_stream_is_complete_with_its_last_event(last, complete):
    _, reason = asyncio.run(read(upstream(streamed([b"data: 0\n\n", last]))))
    assert (reason is None) == complete


def test_what_breaks_after_the_end_is_no_failure():
    parts = [b"data: 0\n\n", b"data: [DONE]\n\n"]
    assert asyncio.run(read(upstream(streamed(parts, httpx.ReadError("gone"))))) == (parts, None)


def test_headers_of_a_request_and_of_an_answer():
    seen = []

    def answer(request):
        seen.append(request.headers)
        told = {"X-RateLimit-Remaining": "3", "openai-processing-ms": "9", "retry-after": f"x{KEY}", "server": "s"}
        return said(200, {}, told)

    streams = json.dumps({**json.loads(BODY), "stream": True}).encode()
    got = asyncio.run(upstream(answer).ask(parse(BODY)))
    assert isinstance(got, WholeAnswer)
    assert got.headers == {
        "content-type": "application/json", "x-ratelimit-remaining": "3", "openai-processing-ms": "9",
    }  # fmt: skip
    asyncio.run(upstream(answer).ask(parse(streams)))
    bare = Upstream("http://up.test/v1/", transport=httpx.MockTransport(answer))
    keyless = asyncio.run(bare.ask(parse(BODY)))
    assert isinstance(keyless, WholeAnswer) and keyless.headers["retry-after"] == f"x{KEY}"
    assert [each["accept"] for each in seen] == ["application/json", "text/event-stream", "application/json"]
    assert {(each["content-type"], each["accept-encoding"]) for each in seen} == {("application/json", "identity")}
    assert ["authorization" in each for each in seen] == [True, True, False]
    wrong = asyncio.run(
        Upstream("http://up.test", transport=httpx.MockTransport(lambda _: said(400, b"x"))).ask(parse(BODY))
    )
    assert isinstance(wrong, WholeAnswer) and wrong.body == b"x"


def test_how_long_is_waited_and_where_nothing_is_followed(monkeypatch):
    given = []
    real = httpx.AsyncClient
    monkeypatch.setattr(httpx, "AsyncClient", lambda **how: given.append(how) or real(**how))
    Upstream("http://up.test/v1")
    Upstream("http://up.test/v1", seconds=3.0, connect=2.0)
    first, second = (how["timeout"] for how in given)
    assert (first.connect, first.read, first.write, first.pool) == (5.0, 120.0, 120.0, 120.0)
    assert (second.connect, second.read, second.write, second.pool) == (2.0, 3.0, 3.0, 3.0)
    for how in given:
        assert not how["follow_redirects"]
        assert (how["limits"].max_connections, how["limits"].max_keepalive_connections) == (None, 64)
    assert serving_upstream.MOST_BYTES == 67_108_864


@pytest.mark.parametrize("url", ["http://a/v1#x", "http://ä/v1", "http://user@a/v1", "http://:word@a/v1"])
def test_an_address_is_plain(url):
    with pytest.raises(BadInput, match="address"):
        check_url(url)
    assert check_url("http://127.0.0.1:8000/v1//") == "http://127.0.0.1:8000/v1"
