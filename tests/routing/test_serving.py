"""The served router in one process: where requests go and why, what failures do by policy, what is told to whom."""

import asyncio
import json
import time
from types import SimpleNamespace

import httpx
import pytest
from starlette.testclient import TestClient

from chat_models import untaught
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.records import Message
from equipoise.language.generate import generate
from equipoise.routing import serving
from equipoise.routing.controller import Controller
from equipoise.routing.router import Router
from equipoise.routing.serving import Limits, app
from equipoise.routing.serving_account import AccountFile
from equipoise.routing.serving_local import LocalModel
from equipoise.routing.serving_upstream import Upstream

KEY = "sk-very-secret-0123456789"
EASY, HARD = "yes", "one two three four five six seven yes no maybe"
STREAM = b'data: {"id":"up","choices":[{"index":0,"delta":{"content":"far"}}]}\n\ndata: [DONE]\n\n'


@pytest.fixture(scope="module")
def lm():
    return untaught(3)


class Parts(httpx.AsyncByteStream):
    def __init__(self, *parts):
        self.parts = parts

    async def __aiter__(self):
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part


class Far:
    """An upstream that keeps what it was asked, and answers, or does what `answer` does."""

    def __init__(self, answer=None):
        self.bodies, self.answer = [], answer

    async def __call__(self, request):
        self.bodies.append(await request.aread())
        if self.answer is not None:
            return self.answer(request)
        if json.loads(self.bodies[-1]).get("stream"):
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Parts(STREAM))
        return httpx.Response(200, headers={"content-type": "application/json"}, stream=Parts(b'{"id": "up",  "x": 1}'))


class Served:
    """A client of the application, with all that stands behind it."""

    def __init__(self, lm, answer=None, *, policy="error", budget=None, host="127.0.0.1", account=None, **options):
        self.router = Router("length", -25.0, "chat", 3, 32)
        self.local = LocalModel(lm, self.router)
        self.far = Far(answer)
        self.controller = Controller(budget, self.router.threshold)
        self.upstream = Upstream("http://up.test/v1", KEY, transport=httpx.MockTransport(self.far))
        account = None if account is None else AccountFile(account, self.controller)
        served = app(self.router, self.local, self.upstream, self.controller, policy, account=account, **options)
        self.client = TestClient(served, client=(host, 5000))

    def __enter__(self):
        self.client.__enter__()
        return self

    def __exit__(self, *args):
        self.client.__exit__(*args)

    def ask(self, text=EASY, **fields):
        return self.client.post("/v1/chat/completions", json=request(text, **fields))

    def metrics(self):
        lines = self.client.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in lines if not line.startswith("#")}


def request(text=EASY, **fields):
    return {"model": "any", "max_tokens": 6, "messages": [{"role": "user", "content": text}], **fields}


def events(response):
    return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]


def test_easy_is_answered_here_and_hard_forwarded_with_the_reason(lm):
    with Served(lm) as served:
        easy, hard = served.ask(EASY), served.ask(HARD)
        expected = generate(lm, [[Message("user", EASY)]], max_new_tokens=6)[0]
        assert easy.json()["choices"][0]["message"] == {"role": "assistant", "content": expected, "refusal": None}
        assert easy.json()["choices"][0]["finish_reason"] in ("stop", "length")
        assert easy.json()["usage"]["completion_tokens"] <= 6
        assert easy.json()["usage"]["prompt_tokens"] == -float(easy.headers["x-equipoise-score"])
        assert (easy.headers["x-equipoise-route"], easy.headers["x-equipoise-why"]) == ("local", "easy")
        assert (hard.headers["x-equipoise-route"], hard.headers["x-equipoise-why"]) == ("upstream", "hard")
        for answer in (easy, hard):
            assert answer.headers["x-equipoise-threshold"] == "-25"
            assert (float(answer.headers["x-equipoise-score"]) >= -25) == (answer is easy)
        assert hard.headers["x-equipoise-share"] == "0.5"
        assert hard.content == b'{"id": "up",  "x": 1}'
        assert len(served.far.bodies) == 1


def test_streams_of_both_sides(lm):
    with Served(lm) as served:
        easy = served.ask(EASY, stream=True, stream_options={"include_usage": True})
        whole = served.ask(EASY).json()
        *chunks, usage, done = events(easy)
        chunks = [json.loads(chunk) for chunk in chunks]
        assert (
            "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
            == (whole["choices"][0]["message"]["content"])
        )
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks].count(None) == len(chunks) - 1
        assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
        assert json.loads(usage)["usage"] == whole["usage"]
        assert {chunk["id"] for chunk in chunks} == {json.loads(usage)["id"]}
        assert done == "[DONE]"
        assert easy.headers["content-type"].startswith("text/event-stream")
        assert served.ask(HARD, stream=True).content == STREAM


def test_the_upstream_gets_the_clients_bytes_and_not_its_key(lm):
    body = b'{ "model":"any", "messages":[{"role":"user","content":"yes"}], "n": 2, "tools": [],  "zz": 1.50 }'
    seen = []

    def answer(sent):
        seen.append(dict(sent.headers))
        return httpx.Response(200, stream=Parts(b"{}"))

    with Served(lm, answer) as served:
        headers = {"content-type": "application/json", "authorization": "Bearer client-secret", "cookie": "a=b"}
        response = served.client.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 200
    assert served.far.bodies == [body]
    assert seen[0]["authorization"] == f"Bearer {KEY}"
    assert "client-secret" not in str(seen) and "cookie" not in seen[0]


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"n": 3}, "n"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "images"),
        ({"messages": [{"role": "user", "content": "river bend " * 200}]}, "context"),
        ({"brand_new": True}, "brand_new"),
    ],
)
def test_what_cannot_be_local_goes_upstream_and_counts(lm, fields, needs):
    with Served(lm, budget=0.0) as served:
        response = served.ask(**fields)
        assert response.json() == {"id": "up", "x": 1}
        assert response.headers["x-equipoise-why"] == "forced"
        assert response.headers["x-equipoise-needs"] == needs
        assert "x-equipoise-score" not in response.headers
        assert (served.controller.calls, served.controller.forced) == (1, 1)
        assert response.headers["x-equipoise-level"] == "-1"


def test_a_budget_of_nothing_forwards_nothing(lm):
    with Served(lm, budget=0.0) as served:
        response = served.ask(HARD)
        assert (response.headers["x-equipoise-route"], response.headers["x-equipoise-why"]) == ("local", "spent")
        assert not served.far.bodies


def down(request):
    raise httpx.ConnectError("refused")


def broken(request):
    return httpx.Response(200, stream=Parts(b'{"half', httpx.ReadError("gone")))


@pytest.mark.parametrize("answer", [down, broken])
@pytest.mark.parametrize("stream", [False, True])
def test_an_upstream_that_fails_is_an_error_or_a_local_answer(lm, answer, stream):
    with Served(lm, answer, policy="error") as served:
        response = served.ask(HARD, stream=stream)
        assert response.status_code == 502
        assert response.json()["error"]["code"] == "upstream_failed"
        assert response.headers["x-equipoise-failed"] == "upstream"
        assert served.controller.calls == 1
    with Served(lm, answer, policy="local") as served:
        response = served.ask(HARD, stream=stream)
        assert response.status_code == 200
        assert response.headers["x-equipoise-route"] == "local"
        assert response.headers["x-equipoise-why"] == "upstream-failed"
        text = generate(lm, [[Message("user", HARD)]], max_new_tokens=6)[0]
        if stream:
            chunks = [json.loads(event) for event in events(response)[:-1]]
            assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
        else:
            assert response.json()["choices"][0]["message"]["content"] == text
        assert served.metrics()['equipoise_switched_total{to="local"}'] == "1"
        assert served.ask(n=2).status_code == 502  # what cannot be local is told as it is
        assert len(served.far.bodies) == 2  # nothing is asked twice


def test_the_upstreams_own_words_are_told_where_it_has_some(lm):
    def busy(request):
        parts = Parts(b'{"error": {"message": "quota"}}')
        return httpx.Response(429, headers={"retry-after": "9", "content-type": "application/json"}, stream=parts)

    with Served(lm, busy) as served:
        response = served.ask(HARD)
        assert (response.status_code, response.headers["retry-after"]) == (429, "9")
        assert response.json() == {"error": {"message": "quota"}}


def test_a_refused_key_is_the_routers_trouble_and_stays_inside(lm, capsys):
    def refuse(request):
        parts = Parts(f'{{"error": "wrong key {request.headers["authorization"]}"}}'.encode())
        return httpx.Response(401, headers={"www-authenticate": KEY}, stream=parts)

    with Served(lm, refuse) as served:
        response = served.ask(HARD)
        told = served.client.get("/decisions").text + served.client.get("/metrics").text
    assert response.status_code == 502
    assert KEY not in response.text + str(response.headers) + told + "".join(capsys.readouterr())


@pytest.mark.parametrize("policy", ["error", "local", "upstream"])
@pytest.mark.parametrize("end", [(), (httpx.ReadError("gone"),)])
def test_half_a_stream_ends_with_an_error_and_no_switch(lm, policy, end):
    first = b'data: {"choices":[]}\n\n'

    def half(request):
        parts = Parts(first, b'data: {"cho', *end)
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=parts)

    with Served(lm, half, policy=policy) as served:
        response = served.ask(HARD, stream=True)
        assert response.content.startswith(first)
        *_, last = events(response)
        assert json.loads(last)["error"]["code"] == "upstream_failed"
        assert "[DONE]" not in response.text
        assert not served.local.written


@pytest.mark.parametrize("policy", ["error", "local", "upstream"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_local_model_that_fails(lm, monkeypatch, policy, stream):
    with Served(lm, policy=policy, budget=1.0) as served:
        for _ in range(3):  # the first calls: two are then left
            served.controller.decide(0.0)
        monkeypatch.setattr(served.local, "_next_token", lambda answer: 1 / 0)
        response = served.ask(EASY, stream=stream)
        calls = served.controller.calls
        if policy == "upstream":
            assert response.headers["x-equipoise-why"] == "local-failed"
            assert response.headers["x-equipoise-route"] == "upstream"
            assert len(served.far.bodies) == 1
            assert calls == 1
        else:
            assert response.status_code == 503
            assert "ZeroDivisionError" in response.json()["error"]["message"]
            assert calls == 0
            assert not served.far.bodies


def test_no_call_is_left_for_a_local_failure(lm, monkeypatch):
    with Served(lm, policy="upstream", budget=0.0) as served:
        monkeypatch.setattr(served.local, "_next_token", lambda answer: 1 / 0)
        response = served.ask(EASY)
        assert response.status_code == 503
        assert "No call is left" in response.json()["error"]["message"]
        assert served.controller.calls == 0


@pytest.mark.parametrize("policy", ["error", "upstream"])
def test_a_prompt_that_cannot_be_read(lm, monkeypatch, policy):
    with Served(lm, policy=policy) as served:
        monkeypatch.setattr(served.local, "_read", lambda messages: 1 / 0)
        response = served.ask(EASY)
        assert response.status_code == (200 if policy == "upstream" else 503)
        assert len(served.far.bodies) == (policy == "upstream")


def test_a_local_stream_that_breaks_ends_with_an_error(lm, monkeypatch):
    with Served(lm, policy="upstream", budget=1.0) as served:
        served.controller.decide(0.0)
        step = served.local._next_token

        def breaks(answer):
            if len(answer.tokens) == 3:
                raise WorkFailed("The local model failed.")
            return step(answer)

        monkeypatch.setattr(served.local, "_next_token", breaks)
        response = served.ask(EASY, stream=True)
        assert json.loads(events(response)[-1])["error"]["code"] == "local_failed"
        assert "[DONE]" not in response.text
        assert not served.far.bodies


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[" * 50_000, {}, 400),
        (b"{}", {}, 400),
        (b"x" * 3000, {}, 413),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {"content-encoding": "gzip"}, 415),
    ],
)
def test_a_wrong_request_is_a_json_error_and_costs_nothing(lm, content, headers, status):
    with Served(lm, limits=Limits(body=2048)) as served:
        headers = {"content-type": "application/json", **headers}
        response = served.client.post("/v1/chat/completions", content=content, headers=headers)
        if len(content) > 2048 and status == 400:
            status = 413
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        in_parts = served.client.post("/v1/chat/completions", content=iter([content]), headers=headers)
        assert in_parts.status_code == status  # without a stated length
        assert served.controller.requests == 0
        assert not served.far.bodies
        assert served.metrics()[f'equipoise_refused_total{{status="{status}"}}'] == "2"


def test_a_stated_length_of_thousands_of_digits_is_too_large(lm):
    """Python makes no number of more than 4,300."""
    with Served(lm) as served:
        headers = {"content-type": "application/json", "content-length": "9" * 5000}
        assert served.client.post("/v1/chat/completions", content=b"{}", headers=headers).status_code == 413


def test_other_addresses_and_methods(lm):
    with Served(lm, name="mine") as served:
        client = served.client
        for path, status in [
            ("/", 404),
            ("/v1/embeddings", 404),
            ("/v1/models/other", 404),
            ("/v1/chat/completions", 405),
        ]:
            response = client.get(path)
            assert response.status_code == status
            assert response.json()["error"]["message"]
        assert client.get("/v1/models").json()["data"][0]["id"] == "mine"
        assert client.get("/v1/models/mine").json()["object"] == "model"
        assert client.get("/health").json() == {"status": "ok"}


def test_metrics_and_decisions_are_told_to_this_machine_alone(lm):
    with Served(lm, budget=0.5) as served:
        for text in (EASY, HARD, EASY):
            served.ask(text)
        served.ask(n=2)
        metrics = served.metrics()
        assert metrics["equipoise_requests_total"] == "4"
        assert metrics["equipoise_calls_total"] == str(served.controller.calls) == "2"
        assert metrics["equipoise_forced_calls_total"] == "1"
        assert metrics["equipoise_budget"] == "0.5"
        assert metrics['equipoise_decisions_total{route="local",why="easy"}'] == "2"
        decisions = served.client.get("/decisions").json()["decisions"]
        assert [each["why"] for each in decisions] == ["forced", "easy", "hard", "easy"]
        assert HARD not in str(decisions)
        for header in ("x-forwarded-for", "forwarded", "x-real-ip"):
            assert served.client.get("/metrics", headers={header: "127.0.0.1"}).status_code == 403
    with Served(lm, host="192.0.2.7") as served:
        for path in ("/metrics", "/decisions"):
            assert served.client.get(path).status_code == 403
        assert served.ask().status_code == 200
    with Served(lm, host="192.0.2.7", open_metrics=True) as served:
        assert served.client.get("/metrics").status_code == 200


def test_a_failure_that_nobody_foresaw_is_told_without_its_words_and_counted(lm, monkeypatch, capsys):
    def broken(*_, **__):
        raise KeyError("the user's own text")

    with Served(lm) as served:
        with monkeypatch.context() as patched:
            patched.setattr(serving, "parse", broken)
            for _ in range(2):
                response = served.ask()
        assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
        assert "own text" not in response.text and capsys.readouterr().err.count("KeyError") == 2
        assert served.ask().status_code == 200 and served.ask(temperature="hot").status_code == 400
        metrics = served.metrics()
        assert metrics['equipoise_refused_total{status="500"}'] == "2"
        assert metrics['equipoise_refused_total{status="400"}'] == "1"


@pytest.mark.parametrize(
    ("host", "near"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("192.0.2.1", False), ("unix", False)]
)
def test_who_is_near_is_told_by_the_connection(host, near):
    def told(client, **headers):
        return serving._is_near(SimpleNamespace(client=client, headers=headers))

    client = SimpleNamespace(host=host)
    assert told(client) is told(client, accept="x") is near
    assert told(None) is False
    for header in ("x-forwarded-for", "forwarded", "x-real-ip"):
        assert told(client, **{header: "127.0.0.1"}) is False


def test_clients_show_their_key_where_one_is_asked_for(lm):
    with Served(lm, client_key="ours") as served:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer öurs".encode("latin-1")}):
            response = served.client.post("/v1/chat/completions", json=request(), headers=headers)
            assert response.status_code == 401
            assert served.client.get("/v1/models", headers=headers).status_code == 401
        served.client.headers["authorization"] = "Bearer ours"
        assert served.ask().status_code == 200
        assert served.client.get("/v1/models").status_code == 200


def test_a_call_is_on_the_disk_before_it_goes_out_and_the_rest_at_the_end(lm, tmp_path):
    path = tmp_path / "account.json"
    seen = []

    def answer(sent):
        seen.append(json.loads(path.read_text())["state"]["calls"])
        return httpx.Response(200, stream=Parts(b"{}"))

    with Served(lm, answer, account=path) as served:
        served.ask(HARD)
        served.ask(EASY)
        served.ask(HARD)
        served.ask(EASY)
    assert seen == [1, 2]
    assert json.loads(path.read_text())["state"]["requests"] == 4


def test_no_call_goes_out_that_is_not_on_the_disk(lm, tmp_path):
    path = tmp_path / "account.json"
    path.mkdir()
    for policy, status in (("error", 503), ("local", 200)):
        served = Served(lm, policy=policy, account=path)
        with pytest.raises(WorkFailed), served:
            assert served.ask(HARD).status_code == status
        assert not served.far.bodies


async def scope_call(served, body, receive_more):
    """One request by hand: (status, parts); receive_more: what the server hears after the body."""
    sent, told = [], [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return told.pop(0) if told else await receive_more(sent)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    await served(scope, receive, send)
    return sent


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_stops_the_local_model(lm, stream):
    async def go():
        router = Router("length", -25.0, "chat", 3, 32)
        local = LocalModel(lm, router)
        upstream = Upstream("http://up.test/v1", transport=httpx.MockTransport(Far()))
        served = app(router, local, upstream, Controller(None, -25.0))

        async def gone(sent):
            while local.written < 4 or (stream and len(sent) < 3):
                await asyncio.sleep(0.002)
            return {"type": "http.disconnect"}

        body = json.dumps(request(EASY, stream=stream, max_tokens=100)).encode()
        sent = await scope_call(served, body, gone)
        for _ in range(500):
            if not local.busy:
                break
            await asyncio.sleep(0.002)
        written = local.written
        await asyncio.sleep(0.05)
        assert written == local.written < 80
        assert not local.busy
        if stream:
            assert all(b"[DONE]" not in message.get("body", b"") for message in sent)
        local.close()

    asyncio.run(go())


def test_a_client_that_goes_ends_the_call_of_the_upstream(lm):
    closed = []

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self):
            while True:
                yield b"data: {}\n\n"
                await asyncio.sleep(0.002)

        async def aclose(self):
            closed.append(True)

    async def go():
        router = Router("length", -25.0, "chat", 3, 32)
        local = LocalModel(lm, router)
        far = Far(lambda _: httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Endless()))
        upstream = Upstream("http://up.test/v1", transport=httpx.MockTransport(far))
        served = app(router, local, upstream, Controller(None, -25.0))

        async def gone(sent):
            while len(sent) < 5:
                await asyncio.sleep(0.002)
            return {"type": "http.disconnect"}

        await scope_call(served, json.dumps(request(HARD, stream=True)).encode(), gone)
        local.close()

    asyncio.run(asyncio.wait_for(go(), 20))
    assert closed


def test_more_requests_than_are_taken_are_told_to_come_again(lm):
    async def go():
        router = Router("length", -25.0, "chat", 3, 32)
        local = LocalModel(lm, router)
        upstream = Upstream("http://up.test/v1", transport=httpx.MockTransport(Far()))
        served = app(router, local, upstream, Controller(None, -25.0), limits=Limits(requests=2))

        async def stays(sent):
            await asyncio.sleep(60)

        bodies = [json.dumps(request(EASY, stream=index == 0)).encode() for index in range(5)]
        sent = await asyncio.gather(*(scope_call(served, body, stays) for body in bodies))
        statuses = sorted(messages[0]["status"] for messages in sent)
        assert statuses == [200, 200, 503, 503, 503]
        later = await scope_call(served, bodies[1], stays)
        assert later[0]["status"] == 200
        local.close()

    asyncio.run(asyncio.wait_for(go(), 30))


def test_a_slow_body_is_not_waited_for(lm):
    async def go():
        router = Router("length", -25.0, "chat", 3, 32)
        local = LocalModel(lm, router)
        upstream = Upstream("http://up.test/v1", transport=httpx.MockTransport(Far()))
        served = app(router, local, upstream, Controller(None, -25.0), limits=Limits(body_seconds=0.05))
        sent = []

        async def receive():
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
                 "headers": [(b"content-type", b"application/json")], "client": ("127.0.0.1", 1)}  # fmt: skip
        await served(scope, receive, send)
        local.close()
        return sent[0]["status"]

    assert asyncio.run(asyncio.wait_for(go(), 20)) == 408


def test_two_routers_are_refused(lm):
    local = LocalModel(lm, Router("length", -25.0, "chat", 3, 32))
    upstream = Upstream("http://up.test/v1")
    with pytest.raises(BadInput, match="another router"):
        app(Router("length", -9.0, "chat", 3, 32), local, upstream, Controller(None, -9.0))
    with pytest.raises(BadInput, match="policy"):
        app(local.router, local, upstream, Controller(None, -9.0), "retry")
    local.close()


def test_everything_that_metrics_tell(lm):
    """An easy prompt, three hard ones of which one is spent, a forced call, a wrong request."""
    with Served(lm, budget=0.5) as served:
        written = [served.ask().json()["usage"]["completion_tokens"]]
        routes = [served.ask(HARD).headers["x-equipoise-route"] for _ in range(3)]
        assert routes == ["upstream", "local", "upstream"]
        assert served.ask(tools=[{"type": "function"}]).headers["x-equipoise-why"] == "forced"
        assert served.ask(temperature=9).status_code == 400
        told = served.metrics()
    seconds = told.pop("equipoise_prompt_seconds_total")
    assert 0 < float(seconds) < 60 and int(told.pop("equipoise_local_tokens_total")) > written[0]
    assert told == {
        "equipoise_requests_total": "5",
        "equipoise_calls_total": "3",
        "equipoise_forced_calls_total": "1",
        "equipoise_spent_total": "1",
        "equipoise_budget": "0.5",
        "equipoise_level": "-0.5",
        "equipoise_share": "0.6",
        "equipoise_threshold": "-25",
        'equipoise_decisions_total{route="local",why="easy"}': "1",
        'equipoise_decisions_total{route="local",why="spent"}': "1",
        'equipoise_decisions_total{route="upstream",why="forced"}': "1",
        'equipoise_decisions_total{route="upstream",why="hard"}': "2",
        'equipoise_refused_total{status="400"}': "1",
        "equipoise_gone_total": "0",
        "equipoise_prompts_read_total": "4",
        "equipoise_requests_now": "0",
        "equipoise_local_busy": "0",
    }


def test_metrics_before_the_first_request_and_without_a_budget(lm):
    with Served(lm) as served:
        text = served.client.get("/metrics").text
        assert served.metrics() == {
            "equipoise_requests_total": "0", "equipoise_calls_total": "0", "equipoise_forced_calls_total": "0",
            "equipoise_spent_total": "0", "equipoise_share": "NaN", "equipoise_threshold": "-25",
            "equipoise_gone_total": "0", "equipoise_prompts_read_total": "0", "equipoise_prompt_seconds_total": "0",
            "equipoise_local_tokens_total": "0", "equipoise_requests_now": "0", "equipoise_local_busy": "0",
        }  # fmt: skip
    assert text.startswith(
        "# HELP equipoise_requests_total Requests in the account.\n# TYPE equipoise_requests_total counter\n"
    )
    assert text.endswith("equipoise_local_busy 0\n") and "# TYPE equipoise_share gauge\n" in text


def test_what_is_allowed_where_nothing_is_said():
    assert (Limits().body, Limits().body_seconds, Limits().requests) == (8_388_608, 30.0, 256)
    assert serving.REMEMBERED == 1000
    assert [serving._number(each) for each in (3, 0.5, 1234567.0, float("nan"), float("inf"))] == [
        "3", "0.5", "1.23457e+06", "NaN", "inf",
    ]  # fmt: skip
    assert serving._usage(3, 4) == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_a_whole_answer_and_the_model_that_is_told(lm):
    with Served(lm, name="mine") as served:
        answer = served.ask(max_tokens=3).json()
        model = served.client.get("/v1/models/mine").json()
        assert served.client.get("/v1/models").json() == {"object": "list", "data": [model]}
        assert model == {"id": "mine", "object": "model", "created": 0, "owned_by": "equipoise"}
        missing = served.client.get("/v1/models/other")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
        assert served.client.get("/health").json() == {"status": "ok"}
        first = served.client.get("/decisions").json()["decisions"]
    (choice,) = answer["choices"]
    assert (choice["index"], choice["logprobs"], choice["message"]["refusal"]) == (0, None, None)
    assert choice["message"]["role"] == "assistant" and choice["finish_reason"] in ("stop", "length")
    assert answer["object"] == "chat.completion" and answer["model"] == lm.name and answer["id"].startswith("chatcmpl-")
    usage = answer["usage"]
    assert (
        usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] and usage["completion_tokens"] <= 3
    )
    assert abs(answer["created"] - time.time()) < 60
    assert [each["route"] for each in first] == ["local"] and "budget" not in first[0] and "level" not in first[0]
