"""A local server of OpenAI's chat protocol that misbehaves on demand: the question's first word says how, and how often.

"500*2 q7" is answered twice with HTTP 500 and then with "answer to 500*2 q7". Words: 429, after (429 with Retry-After),
any other status, garbage (half of a JSON text), invalid (JSON without choices), nothing (the connection is closed), hang,
empty, filter, long (cut at max_tokens), echo (the answer holds the key that was sent), untold (no token counts), schema
(HTTP 400 while a response format is asked for), ok, say (what follows is the answer; a repair question is answered by what
follows "then" in it).
"""

import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 3,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


class FaultyServer:
    """asked: the questions in order of arrival; answered: how often each got an answer; peak: most requests at once."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.answered: Counter[str] = Counter()
        self.peak = 0
        self.die_after: int | None = None  # requests; then every connection is closed without an answer
        self._now = 0
        self._lock = threading.Lock()
        self._release = threading.Event()
        self._port = 0
        self.start()

    def __enter__(self) -> "FaultyServer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Listen, after a stop on the same port."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer._handle(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that gave up

        self._release.clear()
        self._server = Quiet(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Close the port."""
        self._release.set()
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        question = next(m["content"] for m in body["messages"] if m["role"] == "user")
        with self._lock:
            self.asked.append(question)
            self.bodies.append(body)
            times = self.asked.count(question)
            self._now += 1
            self.peak = max(self.peak, self._now)
            dead = self.die_after is not None and len(self.asked) > self.die_after
        try:
            self._release.wait(self.delay)
            if not dead:
                self._answer(handler, body, question, times)
        finally:
            with self._lock:
                self._now -= 1

    def _answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], question: str, times: int) -> None:
        word, _, rest = question.partition(" ")
        fault, _, often = word.partition("*")
        if fault == "say":
            wrong, _, right = rest.partition(" then ")
            self._say(handler, question, right if len(body["messages"]) > 1 else wrong)
        elif times > int(often or 1_000_000) or fault == "ok" or (fault == "schema" and "response_format" not in body):
            self._say(handler, question, f"answer to {question}")
        elif fault == "hang":
            self._release.wait(30)
        elif fault == "after":
            self._send(handler, 429, '{"error": {"message": "slow down"}}', {"Retry-After": "0.3"})
        elif fault == "schema":
            self._send(handler, 400, '{"error": {"message": "response_format is not supported"}}')
        elif fault == "garbage":
            self._send(handler, 200, '{"id": "1", "choi')
        elif fault == "invalid":
            self._send(handler, 200, '{"result": "fine"}')
        elif fault == "empty":
            self._say(handler, question, "")
        elif fault == "long":
            self._say(handler, question, "the beginning", finish="length")
        elif fault == "echo":
            self._say(handler, question, f"you sent {handler.headers['Authorization']} to {question}")
        elif fault == "untold":
            self._say(handler, question, "here", usage=None)
        elif fault == "filter":
            self._say(handler, question, "", finish="content_filter")
        elif re.fullmatch(r"\d+", fault):
            key = handler.headers["Authorization"]
            self._send(handler, int(fault), json.dumps({"error": {"message": f"no: {key} http://u:pw@h/?key=abc"}}))

    def _say(
        self,
        handler: BaseHTTPRequestHandler,
        question: str,
        text: str,
        finish: str = "stop",
        usage: dict[str, Any] | None = USAGE,
    ) -> None:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        self._send(handler, 200, json.dumps(reply))
        with self._lock:
            self.answered[question] += 1

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, text: str, headers: dict[str, str] | None = None
    ) -> None:
        data = text.encode()
        handler.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)
