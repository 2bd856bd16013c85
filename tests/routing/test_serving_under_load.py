"""Over sockets: a thousand requests at once, an upstream that dies, the official client, a process and its signals."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import httpx
import openai
import pytest

from chat_models import untaught
from equipoise.data.records import Message
from equipoise.language.generate import generate
from equipoise.routing.controller import Controller
from equipoise.routing.router import Router
from equipoise.routing.serving import app
from equipoise.routing.serving_account import AccountFile
from equipoise.routing.serving_local import LocalModel
from equipoise.routing.serving_upstream import Upstream
from routing_stubs import Running, Stub, running

pytestmark = pytest.mark.slow

WORDS = ["yes", "no", "maybe", "one", "two", "three", "four", "five", "six", "seven"]
PROMPTS = [" ".join([WORDS[number % 10]] * (1 + number // 4) + [WORDS[number // 10]]) for number in range(40)]
LIMIT = 4
KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def lm():
    return untaught(3)


@pytest.fixture(scope="module")
def expected(lm):
    """What the local model says to each prompt."""
    answers = generate(lm, [[Message("user", prompt)] for prompt in PROMPTS], max_new_tokens=LIMIT, batch_size=1)
    assert len(set(answers)) > 10  # a crossed answer would show
    return dict(zip(PROMPTS, answers, strict=True))


class Setting:
    """A served router between a client and a stub upstream, each on a port."""

    def __init__(self, lm, folder, *, budget=0.3, policy="error", stub=None, **options):
        self.stub = stub or Stub()
        self.far = Running(self.stub.app)
        router = Router("length", -20.0, "chat", 3, 32)
        self.controller = Controller(budget, router.threshold)
        self.local = LocalModel(lm, router)
        upstream = Upstream(self.far.url, KEY, **options)
        account = AccountFile(folder / "account.json", self.controller)
        self.near = Running(app(router, self.local, upstream, self.controller, policy, account=account))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.near.stop()
        self.far.stop()


async def ask(client, number, *, stream):
    """(status, text, headers) of one request; its number is its prompt and its `user`."""
    body = {
        "model": "m", "messages": [{"role": "user", "content": PROMPTS[number * 7 % 40]}], "max_tokens": LIMIT,
        "user": f"u{number}", "stream": stream,
    }  # fmt: skip
    response = await client.post("/chat/completions", json=body)
    if response.status_code != 200:
        return response.status_code, response.json()["error"]["message"], response.headers
    if not stream:
        return 200, response.json()["choices"][0]["message"]["content"], response.headers
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    text = ""
    for event in events:
        if event != "[DONE]":
            chunk = json.loads(event)
            if "error" in chunk:
                return "broken", chunk["error"]["message"], response.headers
            text += chunk["choices"][0]["delta"].get("content", "")
    assert events[-1] == "[DONE]"
    return 200, text.rstrip(" "), response.headers


async def ask_many(url, count, concurrency=32, each=lambda number: None):
    gate = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=concurrency)) as client:

        async def one(number):
            async with gate:
                each(number)
                return await ask(client, number, stream=number % 2 == 1)

        return await asyncio.gather(*(one(number) for number in range(count)))


def check(answers, expected, stub):
    """Every answer is that of its own request, from the side that its header names; none was asked for twice."""
    for number, (status, text, headers) in enumerate(answers):
        if status != 200:
            continue
        prompt = PROMPTS[number * 7 % 40]
        if headers["x-equipoise-route"] == "upstream":
            assert text == f"far: u{number} {prompt}"
        else:
            assert text == expected[prompt].rstrip(" ")
    assert max(stub.seen.values()) == 1


def test_a_thousand_requests_at_concurrency_32(lm, expected, tmp_path):
    with Setting(lm, tmp_path) as setting:
        answers = asyncio.run(ask_many(setting.near.url, 1000))
        assert [status for status, _, _ in answers] == [200] * 1000
        check(answers, expected, setting.stub)
        routes = Counter(headers["x-equipoise-route"] for _, _, headers in answers)
        assert setting.controller.requests == 1000
        assert routes["upstream"] == sum(setting.stub.seen.values()) == setting.controller.calls
        assert 0.95 * 300 <= setting.controller.calls <= 300
        assert setting.stub.keys == {f"Bearer {KEY}"}
    stored = json.loads((tmp_path / "account.json").read_text())["state"]
    assert (stored["requests"], stored["calls"]) == (1000, setting.controller.calls)
    scores = {text: [] for text in ("local", "upstream")}
    for _, _, headers in answers[500:]:
        scores[headers["x-equipoise-route"]].append(float(headers["x-equipoise-score"]))
    assert sum(scores["upstream"]) / len(scores["upstream"]) < sum(scores["local"]) / len(scores["local"]) - 4


@pytest.mark.parametrize("policy", ["error", "local"])
def test_an_upstream_that_is_killed_in_mid_run(lm, expected, tmp_path, policy):
    with Setting(lm, tmp_path, policy=policy, stub=Stub(delay=0.05)) as setting:
        killer = threading.Thread(target=setting.far.kill)
        answers = asyncio.run(
            ask_many(setting.near.url, 240, 16, lambda number: killer.start() if number == 120 else None)
        )
        killer.join()
        check(answers, expected, setting.stub)
        statuses = Counter(status for status, _, _ in answers)
        whys = Counter(headers["x-equipoise-why"] for _, _, headers in answers)
        assert sum(setting.stub.seen.values()) <= setting.controller.calls <= 72
        if policy == "local":
            assert statuses[200] + statuses["broken"] == 240  # a stream that had begun is not switched
            assert whys["upstream-failed"] > 0
        else:
            assert statuses[502] > 0
            assert statuses[200] + statuses[502] + statuses["broken"] == 240
            assert all(h["x-equipoise-route"] == "upstream" for status, _, h in answers if status != 200)


def test_a_slow_upstream_and_half_a_stream(lm, tmp_path):
    with Setting(lm, tmp_path, budget=None, policy="local", stub=Stub(slow=4), seconds=0.5) as setting:
        tail = " one two three four five six seven yes no maybe one two three"
        with httpx.Client(base_url=setting.near.url, timeout=60) as client:
            body = {"model": "m", "max_tokens": LIMIT, "user": "u"}
            begin = time.monotonic()
            slow = client.post(
                "/chat/completions", json={**body, "messages": [{"role": "user", "content": f"slow{tail}"}]}
            )
            assert time.monotonic() - begin < 20
            assert slow.headers["x-equipoise-why"] == "upstream-failed"
            assert slow.json()["model"] == setting.local.name
            half = client.post(
                "/chat/completions",
                json={**body, "messages": [{"role": "user", "content": f"half{tail}"}], "stream": True},
            )
        events = [line.removeprefix("data: ") for line in half.text.split("\n\n") if line]
        assert json.loads(events[0])["choices"][0]["delta"]["content"] == "far: "
        assert json.loads(events[-1])["error"]["type"] == "upstream_error"
        assert len(events) == 2


def test_the_official_client(lm, expected, tmp_path):
    with (
        Setting(lm, tmp_path, budget=None) as setting,
        openai.OpenAI(base_url=setting.near.url, api_key="any") as client,
    ):
        easy = [{"role": "user", "content": PROMPTS[0]}]
        hard = [{"role": "user", "content": PROMPTS[39]}]
        answer = client.chat.completions.create(model="equipoise", messages=easy, max_tokens=LIMIT)
        assert answer.choices[0].message.content == expected[PROMPTS[0]]
        assert answer.usage.completion_tokens <= LIMIT
        raw = client.chat.completions.with_raw_response.create(model="equipoise", messages=hard, user="u1")
        assert raw.headers["x-equipoise-why"] == "hard"
        assert raw.parse().choices[0].message.content == f"far: u1 {PROMPTS[39]}"
        for messages, text in ((easy, expected[PROMPTS[0]]), (hard, f"far: u2 {PROMPTS[39]} ")):
            with client.chat.completions.create(
                model="equipoise", messages=messages, max_tokens=LIMIT, stream=True, user="u2"
            ) as stream:
                assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
        usage = client.chat.completions.create(
            model="equipoise", messages=easy, max_tokens=LIMIT, stream=True, stream_options={"include_usage": True}
        )
        assert next(chunk.usage.completion_tokens for chunk in usage if chunk.usage) == answer.usage.completion_tokens
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
        client.chat.completions.create(model="equipoise", messages=easy, tools=tools)
        assert setting.stub.bodies[-1]["tools"] == tools
        assert [model.id for model in client.models.list()] == ["equipoise"]
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.chat.completions.create(model="equipoise", messages=easy, temperature=9)
        half = [{"role": "user", "content": f"half {PROMPTS[39]}"}]
        with pytest.raises(openai.APIError, match="ended its answer"):
            list(client.chat.completions.create(model="equipoise", messages=half, stream=True))


def test_a_client_that_hangs_up_stops_the_local_model(lm, tmp_path):
    with Setting(lm, tmp_path, budget=None) as setting, httpx.Client(base_url=setting.near.url, timeout=60) as client:
        body = {"model": "m", "messages": [{"role": "user", "content": "a"}], "max_tokens": 100, "stream": True}
        with client.stream("POST", "/chat/completions", json=body) as response:
            next(response.iter_raw())
        deadline = time.monotonic() + 20
        while setting.local.busy and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not setting.local.busy
        assert setting.local.written < 90


class Process:
    """`serve` in a process of its own, over a model folder."""

    def __init__(self, folder, upstream, *extra):
        code = "import sys; from equipoise.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [
            sys.executable,
            "-c",
            code,
            "route",
            "serve",
            "--router",
            folder / "router",
            "--model",
            folder / "model",
        ]
        command += ["--upstream", upstream, "--port", "0", "--account", folder / "account.json", *extra]
        environment = {**os.environ, "OPENAI_API_KEY": KEY}
        self.process = subprocess.Popen(
            [str(part) for part in command], stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if "isten" in line:
                break
        self.url = self.lines[-1].split()[-1] if self.lines and "isten" in self.lines[-1] else ""

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        rest = self.process.stderr.read()
        return self.process.wait(60), "".join(self.lines) + rest


@pytest.fixture
def folder(lm, tmp_path):
    lm.save(tmp_path / "model")
    Router("length", -20.0, "chat", 3, 32).save(tmp_path / "router")
    return tmp_path


def chat(url, text, **fields):
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": LIMIT, **fields}
    return httpx.post(f"{url}/chat/completions", json=body, timeout=60)


def test_a_process_drains_and_goes_on_with_its_account(folder):
    stub = Stub(delay=1.5)
    with running(stub.app) as far:
        server = Process(folder, far.url, "--budget", "1")
        assert server.url, server.lines
        for _ in range(3):
            assert chat(server.url, PROMPTS[0]).headers["x-equipoise-route"] == "local"
        answers = []
        late = threading.Thread(target=lambda: answers.append(chat(server.url, PROMPTS[39], user="late")))
        late.start()
        deadline = time.monotonic() + 20
        while not stub.seen["late"] and time.monotonic() < deadline:
            time.sleep(0.01)
        code, told = server.end()
        late.join()
        assert code == 0, told
        assert answers[0].json()["choices"][0]["message"]["content"].startswith("far: late")
        assert "4 requests in the account, 1 calls (25.0%)" in told
        assert KEY not in told
        server = Process(folder, far.url, "--budget", "1")
        assert "goes on from 4 requests and 1 calls" in "".join(server.lines)
        assert chat(server.url, PROMPTS[39]).headers["x-equipoise-share"] == "0.4"
        stored = json.loads((folder / "account.json").read_text())["state"]
        assert stored["calls"] == sum(stub.seen.values()) == 2
        code, told = server.end(signal.SIGKILL)
        assert json.loads((folder / "account.json").read_text())["state"]["calls"] == 2
        server = Process(folder, far.url, "--budget", "1")
        assert server.end(signal.SIGINT)[0] == 0
