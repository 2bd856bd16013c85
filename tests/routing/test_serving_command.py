"""`equipoise route serve` before its first request: what it refuses, in one sentence, and what a dry run says."""

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
from equipoise.routing import serving_command
from equipoise.routing.controller import Controller
from equipoise.routing.router import Router
from equipoise.routing.serve_settings import ServeSettings
from equipoise.routing.serving_account import AccountFile

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
