"""The upstream's bytes come through as they are, in whole events; what breaks off is a failure; the key stays inside."""

import asyncio
import json

import httpx
import pytest

from equipoise.core.errors import BadInput
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
