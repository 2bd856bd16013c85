"""A process that does what may never end: comparing mathematics with math-verify, searching with a pattern.

Run by file name (`data.verify_pool` does), so it imports the standard library only until it is told what it needs. A
line in, a line out, both JSON. The kernel ends it when a task has computed for too long (ITIMER_PROF with the default
action): Python's own signal handlers, which math-verify uses, wait for the end of what is being computed, be it
10^(10^10). It ends with its input, so it outlives a parent that was killed by one task at most.
"""

import contextlib
import json
import logging
import os
import re
import resource
import signal
import sys
from typing import Any


def main() -> None:
    """Read what is needed, say that it is there, then do a task a line."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent decides when to end
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    start = json.loads(sys.stdin.readline())
    sys.path[:] = start["path"]
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (start["memory_bytes"], start["memory_bytes"]))
    compare = {"math": _math, "regex": _regex}[start["kind"]]()
    _reply(replies, {"ready": True})
    for line in sys.stdin:
        task = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, start["seconds"])
        try:
            done = {"right": compare(task["answer"], task["golds"])}
        except MemoryError:
            os._exit(1)  # as the parent sees any other death: what is left of the memory is not to be trusted
        except Exception as error:
            done = {"crashed": f"{type(error).__name__}: {error}"[:200]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _reply(replies, done)


def _reply(replies: Any, value: Any) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


def _math() -> Any:
    import math_verify

    logging.disable(logging.CRITICAL)  # that it has no limit of time, which it has

    def compare(answer: str, golds: list[str]) -> bool:
        found = math_verify.parse(answer, parsing_timeout=0)
        return any(
            math_verify.verify(math_verify.parse(gold, parsing_timeout=0), found, timeout_seconds=0) for gold in golds
        )

    return compare


def _regex() -> Any:
    return lambda answer, golds: any(re.search(gold, answer) for gold in golds)


if __name__ == "__main__":
    main()
