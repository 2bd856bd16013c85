"""What a worker does, in this process: streams are pipes, and what would end it is taken down."""

import contextlib
import io
import json
import os
import resource
import signal
import sys
import types

import pytest

from equipoise.data import verify_worker as worker


class Ended(BaseException):
    """Where the process would end."""


def serve(monkeypatch, kind, *tasks, limit=None):
    """What `main` replied, and what it asked the system for."""
    start = {"kind": kind, "seconds": 1.5, "memory_bytes": 2**31, "path": ["/lib", "/more"]}
    asked, streams, stdin = [], [], io.StringIO("".join(json.dumps(each) + "\n" for each in (start, *tasks)))
    read, write = os.pipe()
    with monkeypatch.context() as patch, os.fdopen(read) as pipe:
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "path", ["/old"])
        patch.setattr(os, "dup", lambda descriptor: (streams.append(("dup", descriptor)), write)[1])
        patch.setattr(os, "dup2", lambda *both: streams.append(both))
        patch.setattr(signal, "signal", lambda *how: asked.append(how))
        patch.setattr(signal, "setitimer", lambda *how: asked.append(how))

        def set_limit(*how):
            asked.append(how)
            if limit:
                raise limit("no")

        def end(code):
            asked.append(("end", code))
            raise Ended

        patch.setattr(resource, "setrlimit", set_limit)
        patch.setattr(os, "_exit", end)
        with contextlib.suppress(Ended):
            worker.main()
        assert sys.path == ["/lib", "/more"] and streams == [("dup", 1), (2, 1)]
        patch.undo()
        return [json.loads(line) for line in pipe.read().splitlines()], asked


BEGUN = [
    (signal.SIGINT, signal.SIG_IGN),
    (signal.SIGPROF, signal.SIG_DFL),
    (resource.RLIMIT_AS, (2**31, 2**31)),
]
TIMED = [(signal.ITIMER_PROF, 1.5), (signal.ITIMER_PROF, 0)]


def test_patterns_are_searched_a_task_a_line(monkeypatch):
    tasks = [
        {"answer": "xab", "golds": ["^b", "b$"]},
        {"answer": "xab", "golds": ["^b", "^a"]},
        {"answer": "xab", "golds": ["("]},
        {"answer": "", "golds": [""]},
    ]
    replies, asked = serve(monkeypatch, "regex", *tasks)
    crashed = replies.pop(3)["crashed"]
    assert replies == [{"ready": True}, {"right": True}, {"right": False}, {"right": True}]
    assert crashed.startswith(("error: ", "PatternError: ")) and asked == BEGUN + TIMED * 4


def test_why_a_task_crashed_is_cut(monkeypatch):
    def compare(answer, golds):
        raise ValueError("m" * 500)

    monkeypatch.setattr(worker, "_regex", lambda: compare)
    replies, _ = serve(monkeypatch, "regex", {"answer": "", "golds": []})
    assert replies[1] == {"crashed": "ValueError: " + "m" * 188}


def test_without_memory_a_worker_ends_and_says_nothing(monkeypatch):
    def compare(answer, golds):
        raise MemoryError

    monkeypatch.setattr(worker, "_regex", lambda: compare)
    task = {"answer": "", "golds": []}
    replies, asked = serve(monkeypatch, "regex", task, task)
    assert replies == [{"ready": True}] and asked == [*BEGUN, TIMED[0], ("end", 1)]


@pytest.mark.parametrize("limit", [ValueError, OSError])
def test_a_system_without_a_limit_of_memory_is_done_with(monkeypatch, limit):
    replies, asked = serve(monkeypatch, "regex", {"answer": "a", "golds": ["a"]}, limit=limit)
    assert replies == [{"ready": True}, {"right": True}] and asked == BEGUN + TIMED


def test_mathematics_is_any_of_the_golds_and_gold_comes_first(monkeypatch):
    """On a stand-in for math-verify, whose limits of time would wait for the end of what is computed."""
    asked = []
    library = types.ModuleType("math_verify")
    library.parse = lambda text, *, parsing_timeout: ["parsed", text, parsing_timeout]

    def verify(gold, answer, *, timeout_seconds):
        asked.append((gold, answer, timeout_seconds))
        return gold[1] == "2"

    library.verify = verify
    monkeypatch.setitem(sys.modules, "math_verify", library)
    told = []
    monkeypatch.setattr(worker.logging, "disable", told.append)
    tasks = [{"answer": "4/2", "golds": ["1", "2", "3"]}, {"answer": "5", "golds": ["4"]}]
    replies, _ = serve(monkeypatch, "math", *tasks)
    assert replies == [{"ready": True}, {"right": True}, {"right": False}]

    def parsed(text):
        return ["parsed", text, 0]

    assert asked == [(parsed(gold), parsed(answer), 0) for gold, answer in (("1", "4/2"), ("2", "4/2"), ("4", "5"))]
    assert told == [50]
