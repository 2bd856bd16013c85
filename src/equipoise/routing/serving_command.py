"""Serving a router as a process: everything that can be refused is refused before the port answers, then uvicorn runs.

SIGTERM and SIGINT end it in order: no new connections, answers on their way are finished (for `drain` seconds at most), the
account is written. A second SIGINT ends it at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import math
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from equipoise.core.errors import BadInput, MissingExtra
from equipoise.core.files import read_regular
from equipoise.core.secrets import REDACTED
from equipoise.core.terminal import say
from equipoise.data.records import Message
from equipoise.language.model import load as load_model
from equipoise.routing.controller import Controller
from equipoise.routing.router import ABOUT, load
from equipoise.routing.serve_settings import ServeSettings
from equipoise.routing.serving import Limits, app
from equipoise.routing.serving_account import AccountFile
from equipoise.routing.serving_local import LocalModel, Sampling
from equipoise.routing.serving_upstream import Upstream, check_key, check_url

try:
    import uvicorn
    from starlette.applications import Starlette
except ImportError as error:
    raise MissingExtra(
        "Serving a router needs httpx, starlette and uvicorn: pip install 'equipoise[serve]'."
    ) from error

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TRIAL = (Message("user", "How much is one and one?"),)


def serve(settings: ServeSettings, *, dry_run: bool = False) -> None:
    """Serve until a signal ends it; dry_run: all the checks, and nothing more.

    Raises BadInput for a router, model, address, key, account or port that cannot be used, before the first request.
    """
    url = check_url(settings.upstream)
    key = _key(settings.upstream_key_env, needed=False)
    client_key = None if settings.client_key_env is None else _key(settings.client_key_env, needed=True)
    router = load(settings.router)
    controller = Controller(settings.budget, router.threshold, burst=settings.burst)
    digest = hashlib.sha256(read_regular(settings.router / ABOUT)).hexdigest()  # which names that of the numbers
    account = AccountFile(settings.account, controller, digest)
    keeping = nullcontext(account.resume()) if dry_run else account.held()
    with keeping as resumed, _listening(settings.host, settings.port) as listener:
        language_model = load_model(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            chat_template=settings.chat_template,
        )
        doubts = router.check(language_model)
        local = LocalModel(language_model, router, max_tokens=settings.max_tokens, at_once=settings.at_once)
        try:
            seconds = asyncio.run(_trial(local))
            port = listener.getsockname()[1]
            shown_host = f"[{settings.host}]" if ":" in settings.host else settings.host
            for line in (
                *(f"Doubtful: {doubt}" for doubt in doubts),
                f"{language_model.name} reads a short prompt in {1000 * seconds:.0f} ms; the router: {router.kind}.",
                _budget_line(controller, resumed, settings.account),
                f"Forwards to {url} {'with' if key else 'without'} a key; on failure: {settings.on_failure}.",
                *_open_lines(settings),
            ):
                say(line)
            if dry_run:
                say(f"Would listen on http://{shown_host}:{port}/v1")
                return
            upstream = Upstream(url, key, model=settings.upstream_model, seconds=settings.upstream_timeout)
            served = app(
                router,
                local,
                upstream,
                controller,
                settings.on_failure,
                account=account,
                name=settings.name,
                temperature=settings.temperature,
                limits=Limits(body=settings.max_body, requests=settings.max_requests),
                client_key=client_key,
                open_metrics=settings.open_metrics,
            )
            _run(served, listener, settings.drain, f"Listens on http://{shown_host}:{port}/v1")
            shares = f" ({controller.share:.1%})" if controller.requests else ""
            say(f"Ended. {controller.requests} requests in the account, {controller.calls} calls{shares}.")
        finally:
            local.close()


def _run(served: Starlette, listener: socket.socket, drain: float, started: str) -> None:
    """Until a signal; started: what is said once requests are answered and signals heeded."""
    config = uvicorn.Config(
        served,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # who asks is who is connected: /metrics is told by that
        server_header=False,
        http="h11",
        timeout_graceful_shutdown=int(drain),
        h11_max_incomplete_event_size=64 * 1024,
        ws="none",
        lifespan="on",
    )
    server = _Server(config, started)
    # uvicorn sends itself the signal again that it ended by; everything is done then, so that it is no failure.
    before = {each: signal.signal(each, server.end) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: str) -> None:
        super().__init__(config)
        self._said = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        say(self._said)

    def end(self, *_: object) -> None:
        self.should_exit = True


async def _trial(local: LocalModel) -> float:
    """Read and answer one short prompt, as requests will be; the seconds that reading takes once everything is warm."""
    seconds = 0.0
    for _ in range(2):
        read = await local.read(_TRIAL)
        seconds = read.seconds
        async for _ in local.answer(read, Sampling(max_tokens=2)):
            pass
    return seconds


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """The port, held from before the model is loaded. Raises BadInput where it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise BadInput(f"--host {host} is no address of this machine ({error.strerror}).") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise BadInput(f"--port {port} on {host} cannot be had ({error.strerror}): name another.") from error
        yield listener


def _key(variable: str, *, needed: bool) -> str | None:
    """The key in a variable of the environment. Raises BadInput for what is no name of one: it might be the key itself."""
    if not _VARIABLE.fullmatch(variable):
        raise BadInput(f"{REDACTED} is no name of an environment variable: put the key into one, and give its name.")
    key = os.environ.get(variable) or None
    if key is None and needed:
        raise BadInput(f"The environment variable {variable} holds no key: set it.")
    check_key(key, variable)
    return key


def _budget_line(controller: Controller, resumed: bool, path: Path) -> str:
    account = (
        f"goes on from {controller.requests} requests and {controller.calls} calls in {path}"
        if resumed
        else f"a new account in {path}"
    )
    if controller.budget is None:
        return f"No budget: scores below {controller.threshold:.6g} go upstream; {account}."
    if controller.held_from <= controller.requests:
        return f"Budget: at most {controller.budget:g} calls a request, at every moment; {account}."
    until = "" if math.isinf(controller.held_from) else f"until {controller.held_from} requests "
    return (
        f"Budget: at most {controller.budget:g} calls a request; {account}, which are more: {until}only what has to go "
        "upstream is forwarded. To begin anew, name another --account."
    )


def _open_lines(settings: ServeSettings) -> list[str]:
    near = False
    with suppress(ValueError):
        near = ipaddress.ip_address(settings.host).is_loopback
    if near or settings.host == "localhost":
        return []
    lines = []
    if settings.client_key_env is None:
        lines.append(f"Whoever reaches {settings.host} can spend the budget: ask for a key with --client-key-env.")
    if settings.open_metrics:
        lines.append("/metrics and /decisions are told to every machine that reaches this one.")
    return lines
