"""`equipoise route serve` before its first request: what it refuses, in one sentence, and what a dry run says."""

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from chat_models import untaught
from equipoise.cli import main
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.records import Message
from equipoise.routing import serving_command
from equipoise.routing.controller import Controller
from equipoise.routing.router import Router
from equipoise.routing.serve_settings import ServeSettings
from equipoise.routing.serving import Limits
from equipoise.routing.serving_account import AccountFile
from equipoise.routing.serving_local import Sampling

KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def lm():
    return untaught(3)


@pytest.fixture
def command(lm, tmp_path, monkeypatch):
    """What is typed for a server that would run, but for its last words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(serving_command, "load_model", lambda name, **options: lm)
    monkeypatch.setattr(serving_command, "_run", lambda *arguments: print(arguments[-1], file=sys.stderr))
    Router("length", -20.0, "chat", 3, 32).save("router")
    return [
        "route",
        "serve",
        "--router",
        "router",
        "--model",
        "small",
        "--upstream",
        "http://127.0.0.1:9/v1",
        "--port",
        "0",
    ]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--budget", "7"], "--budget should be"),
        (["--budget", "some"], "--budget should be"),
        (["--on-failure", "retry"], "--on-failure should be"),
        (["--port", "99999"], "port"),
        (["--upstream", "nowhere"], "address"),
        (["--upstream", f"http://{KEY}:x@a/v1"], "environment variable"),
        (["--router", "."], "router"),
        (["--client-key-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE"),
        (["--upstream-key-env", KEY], "environment variable"),
        (["--host", "not.a.host.invalid"], "host"),
        (["--account", "router"], "router"),
        (["--max-tokens", "0"], "--max-tokens should be"),
        (["--bugdet", "0.3"], "--budget"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_cannot_be_served_is_refused_in_one_sentence(command, capsys, typed, words, dry):
    command = [
        word for word in command if typed[0] not in command or word not in command[command.index(typed[0]) :][:2]
    ]
    assert main([*command, *typed, *dry]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert KEY not in told and "Traceback" not in told


def test_a_key_that_no_header_holds_is_not_told(command, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "OPENAI_API_KEY" in told and KEY not in told


def test_a_port_that_is_taken(command, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main([*command[:-1], port]) == 2
    assert port in capsys.readouterr().err


def test_a_dry_run_answers_once_and_changes_nothing(command, capsys, tmp_path):
    assert main([*command, "--dry-run", "--budget", "none", "--host", "0.0.0.0", "--open-metrics"]) == 0
    told = capsys.readouterr().err
    assert "scores below -20 go upstream" in told
    assert "Would listen on http://0.0.0.0:" in told
    assert "can spend the budget" in told
    assert "told to every machine" in told
    assert KEY not in told
    assert [path.name for path in tmp_path.iterdir()] == ["router"]


@pytest.mark.parametrize(
    ("host", "warned"),
    [("127.0.0.1", 0), ("::1", 0), ("localhost", 0), ("0.0.0.0", 2), ("192.0.2.7", 2), ("gateway.example", 2)],
)
def test_an_address_that_others_reach_is_warned_of(host, warned):
    settings: Any = SimpleNamespace(host=host, client_key_env=None, open_metrics=True)
    assert len(serving_command._open_lines(settings)) == warned
    settings.client_key_env = "KEY"
    assert len(serving_command._open_lines(settings)) == warned // 2


def test_a_run_keeps_its_account_and_tells_what_it_does(command, capsys):
    for expected in ("a new account", "goes on from 0 requests and 0 calls"):
        assert main(command) == 0
        told = capsys.readouterr().err
        assert expected in told
        assert "at most 0.3 calls a request" in told
        assert "with a key; on failure: error" in told
        assert "Listens on http://127.0.0.1:" in told
        assert "0 requests in the account, 0 calls." in told


@pytest.mark.parametrize(
    ("budget", "words"),
    [("0.3", "until 3334 requests only what has to go"), ("0", "more: only what has to go"), ("1", "at every moment")],
)
def test_an_account_above_the_budget_is_told(command, capsys, budget, words):
    before = Controller(None, 0.5)
    for _ in range(1000):
        before.decide(0.1)
    AccountFile(Path("account.json"), before).write()
    assert main([*command, "--budget", budget, "--account", "account.json", "--dry-run"]) == 0
    told = capsys.readouterr().err
    assert words in told and "goes on from 1000 requests and 1000 calls" in told
    assert ("at every moment" in told) == (budget == "1") != ("name another --account" in told)


def test_another_model_than_the_routers_is_refused(command, capsys):
    Router("length", -20.0, "chat", 3, 32, fingerprint="another").save("router")
    assert main([*command, "--dry-run"]) == 0  # a length is one of any model
    Router("max-logit", 0.5, "chat", 3, 32, fingerprint="another").save("router")
    assert main([*command, "--dry-run"]) == 0
    assert "Doubtful:" in capsys.readouterr().err


def test_a_fresh_account_is_within_any_budget():
    for budget in (0.0, 0.3, 1.0):
        line = serving_command._budget_line(Controller(budget, 0.5), False, Path("account.json"))
        assert f"at most {budget:g} calls a request, at every moment; a new account in account.json" in line
    owing = Controller(0.5, 0.5)
    for _ in range(3):
        owing.force()
    assert "until 6 requests only" in serving_command._budget_line(owing, True, Path("a"))
    assert "scores below 0.5 go upstream" in serving_command._budget_line(Controller(None, 0.5), False, Path("a"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_answers_until_a_signal_and_leaves_the_handlers_as_they_were(monkeypatch, number):
    seen, said = [], []

    async def who(request):
        seen.append(request.client.host)
        return PlainTextResponse("here")

    def ask():
        time.sleep(0.02)  # what is said is said a moment before the first answer
        port = listener.getsockname()[1]
        with httpx.Client(trust_env=False) as client:
            answers.append(client.get(f"http://127.0.0.1:{port}/who", headers={"x-forwarded-for": "192.0.2.9"}))
        os.kill(os.getpid(), number)

    def say(line):
        said.append(line)
        asker.start()

    asker, answers = threading.Thread(target=ask), []
    monkeypatch.setattr(serving_command, "say", say)
    own = {each: lambda *_: None for each in (signal.SIGINT, signal.SIGTERM)}
    before = {each: signal.signal(each, handler) for each, handler in own.items()}
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            serving_command._run(Starlette(routes=[Route("/who", who)]), listener, 2.0, "Listens")
        assert all(signal.getsignal(each) is handler for each, handler in own.items())
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    asker.join(5)
    assert said == ["Listens"] and seen == ["127.0.0.1"]  # not who the header says
    assert answers[0].text == "here" and "server" not in answers[0].headers


def test_a_server_keeps_to_what_was_asked_of_it(monkeypatch):
    made = []

    def run(server, sockets):
        made.append((server.config, sockets, signal.getsignal(signal.SIGTERM), server))

    monkeypatch.setattr(serving_command.uvicorn.Server, "run", run)
    serving_command._run("an app", "a socket", 7.9, "Listens")
    ((config, sockets, handler, server),) = made
    assert (config.app, sockets, config.timeout_graceful_shutdown, config.http) == ("an app", ["a socket"], 7, "h11")
    assert (config.access_log, config.proxy_headers, config.server_header, config.lifespan) == (
        False,
        False,
        False,
        "on",
    )
    assert config.h11_max_incomplete_event_size == 65536 and config.ws == "none" and config.log_config is None
    assert not server.should_exit
    handler(signal.SIGTERM, None)
    assert server.should_exit is True


def test_settings_are_closed_in_python_too():
    with pytest.raises(ValidationError):
        ServeSettings(router="r", model="m", upstream="u", on_failure="retry")
    with pytest.raises(ValidationError):
        ServeSettings(router="r", model="m", upstream="u", bugdet=0.3)
    with pytest.raises((BadInput, WorkFailed)):
        serving_command.serve(ServeSettings(router="nowhere", model="m", upstream="http://a/v1"))


def test_what_is_served_is_what_was_asked_for_and_told_in_numbers(command, lm, capsys, monkeypatch):
    """Of eight requests three are sent, two of them by their scores below -20."""
    apps, locals_, loaded = [], [], []

    async def trial(local):
        assert local is locals_[0][0]
        return 2.0

    def app(*given, **named):
        apps.append((given, named))
        return "served"

    class Local:
        def __init__(self, *given, **named):
            locals_.append((self, given, named))
            self.closed = False

        def close(self):
            self.closed = True

    def run(served, listener, drain, started):
        assert (served, drain) == ("served", 3.5) and not locals_[0][0].closed
        assert started == f"Listens on http://127.0.0.1:{listener.getsockname()[1]}/v1"
        controller = apps[0][0][3]
        for score in (-30.0, -19.0, -20.0, -21.0, 0.0, -1.0, -2.0):
            controller.decide(score)
        controller.force()

    for name, stand_in in (("_trial", trial), ("app", app), ("LocalModel", Local), ("_run", run)):
        monkeypatch.setattr(serving_command, name, stand_in)
    monkeypatch.setattr(serving_command, "Upstream", lambda *given, **named: (given, named))
    monkeypatch.setattr(serving_command, "load_model", lambda name, **how: loaded.append((name, how)) or lm)
    monkeypatch.setenv("CLIENTS", "a-key-of-clients")
    typed = (
        "--budget none --drain 3.5 --client-key-env CLIENTS --max-body 2048 --max-requests 7 --max-tokens 9 --at-once 2"
    )
    typed += (
        " --temperature 0.5 --upstream-timeout 11 --upstream-model strong --name both --open-metrics --on-failure local"
    )
    assert main([*command, *typed.split()]) == 0
    told = capsys.readouterr().err
    assert f"{lm.name} reads a short prompt in 2000 ms; the router: length." in told and "Doubtful" not in told
    assert "Forwards to http://127.0.0.1:9/v1 with a key; on failure: local." in told
    assert "Ended. 8 requests in the account, 3 calls (37.5%)." in told
    ((local, (model, router), sizes),) = locals_
    assert model is lm and (router.kind, sizes) == ("length", {"max_tokens": 9, "at_once": 2}) and local.closed
    (((of, at, upstream, controller, policy), more),) = apps
    assert (of, at, controller.budget, policy) == (router, local, None, "local")
    assert upstream == (("http://127.0.0.1:9/v1", KEY), {"model": "strong", "seconds": 11.0})
    assert isinstance(more.pop("account"), AccountFile)
    assert more == {
        "name": "both",
        "temperature": 0.5,
        "limits": Limits(body=2048, requests=7),
        "client_key": "a-key-of-clients",
        "open_metrics": True,
    }
    ((name, how),) = loaded
    assert (name, how["trust_remote_code"], how["revision"]) == ("small", False, None)


def test_the_trial_reads_and_answers_twice_and_tells_the_second_reading():
    asked, times = [], iter([9.0, 0.25])

    class Local:
        async def read(self, messages):
            asked.append(messages)
            return SimpleNamespace(seconds=next(times))

        async def answer(self, read, sampling):
            for piece in ("a", "b"):
                asked.append((read.seconds, piece, sampling))
                yield piece

    assert asyncio.run(serving_command._trial(Local())) == 0.25
    asked_for, sampling = (Message("user", "How much is one and one?"),), Sampling(max_tokens=2)
    assert asked == [
        asked_for, (9.0, "a", sampling), (9.0, "b", sampling),
        asked_for, (0.25, "a", sampling), (0.25, "b", sampling),
    ]  # fmt: skip


def test_a_port_can_be_had_again_at_once():
    with serving_command._listening("127.0.0.1", 0) as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert (listener.family, listener.type) == (socket.AF_INET, socket.SOCK_STREAM)


@pytest.mark.parametrize(("held", "needed", "key"), [("abc", True, "abc"), ("", False, None), (None, False, None)])
def test_an_empty_variable_holds_no_key(monkeypatch, held, needed, key):
    monkeypatch.delenv("_KEY_1", raising=False)
    if held is not None:
        monkeypatch.setenv("_KEY_1", held)
    assert serving_command._key("_KEY_1", needed=needed) == key
    if key is None:
        with pytest.raises(BadInput, match="holds no key"):
            serving_command._key("_KEY_1", needed=True)


@pytest.mark.parametrize(
    ("name", "least", "most", "beyond"),
    [
        ("budget", 0, 1, 1.001),
        ("burst", 4, 1e9, 1.001e9),
        ("port", 0, 65535, 65536),
        ("upstream_timeout", 0.001, 86400, 86401),
        ("max_tokens", 1, None, None),
        ("temperature", 0, 2, 2.001),
        ("at_once", 1, None, None),
        ("max_requests", 1, None, None),
        ("max_body", 1024, None, None),
        ("drain", 0, 3600, 3601),
    ],
)
def test_settings_lie_between_their_ends(name, least, most, beyond):
    below = least - 1 if isinstance(least, int) and name != "burst" else 3.999 if name == "burst" else 0
    for value in (least, most):
        if value is not None:
            assert getattr(ServeSettings(router="r", model="m", upstream="u", **{name: value}), name) == value
    for value in (below, beyond):
        if value is not None:
            with pytest.raises(ValidationError):
                ServeSettings(router="r", model="m", upstream="u", **{name: value})


def test_a_server_has_a_name_of_a_letter_at_least():
    assert ServeSettings(router="r", model="m", upstream="u", name="b").name == "b"
    with pytest.raises(ValidationError):
        ServeSettings(router="r", model="m", upstream="u", name="")
    assert ServeSettings(router="r", model="m", upstream="u", budget="none").budget is None
    assert ServeSettings(router="r", model="m", upstream="u").budget == 0.3
