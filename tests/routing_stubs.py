"""Servers on ports of this machine for tests of routing: an upstream that keeps what it was asked, and any application."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections import Counter

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route


class Stub:
    """An OpenAI-compatible upstream: "far: " and the last message, streamed word by word where asked for.

    seen: how often each `user` field came. delay: seconds before an answer. A message that begins with "half" gets half a
    stream, one that begins with "slow" waits for `slow` seconds.
    """

    def __init__(self, delay=0.0, slow=5.0):
        self.seen, self.keys, self.bodies = Counter(), set(), []
        self.delay, self.slow = delay, slow
        self.app = Starlette(routes=[Route("/v1/chat/completions", self.chat, methods=["POST"])])

    async def chat(self, request):
        body = await request.json()
        self.bodies.append(body)
        self.seen[body.get("user")] += 1
        self.keys.add(request.headers.get("authorization"))
        text = body["messages"][-1]["content"]
        await asyncio.sleep(self.slow if isinstance(text, str) and text.startswith("slow") else self.delay)
        answer = f"far: {body.get('user')} {text}"
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            head = {"id": "far", "object": "chat.completion", "created": 1, "model": body["model"]}
            return JSONResponse({**head, "choices": [choice], "usage": usage})
        return StreamingResponse(self.words(body, answer), media_type="text/event-stream")

    async def words(self, body, answer):
        head = {"id": "far", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
        for word in answer.split(" "):
            choice = {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}
            yield f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"
            if body["messages"][-1]["content"].startswith("half"):
                yield 'data: {"id": "far", "cho'
                return
            await asyncio.sleep(0)
        choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
        yield f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"
        yield "data: [DONE]\n\n"


class Running:
    """An application on a port of its own, in a thread; `kill` ends it as a crash would, with its connections cut."""

    def __init__(self, app):
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        config = uvicorn.Config(app, log_config=None, access_log=False, http="h11", ws="none", proxy_headers=False)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def kill(self):
        for connection in list(self.server.server_state.connections):
            with contextlib.suppress(Exception):
                loop = connection.loop
                loop.call_soon_threadsafe(connection.transport.abort)
        self.server.force_exit = self.server.should_exit = True
        self.thread.join(20)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(60)


@contextlib.contextmanager
def running(app):
    """The application while the block runs."""
    server = Running(app)
    try:
        yield server
    finally:
        server.stop()
