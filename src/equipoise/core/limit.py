"""An end for Python code of others, such as a template with loops in loops, in whichever thread it runs."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from equipoise.core.errors import BadInput


class _Late(BaseException):
    """Raised in the body; no `except Exception` of the body keeps it."""


@contextmanager
def at_most(seconds: float, sentence: str) -> Iterator[None]:
    """End the body after so many seconds. Raises BadInput with the sentence.

    It ends between two steps of the interpreter: a single call into C goes on until it returns.
    """
    thread, lock = threading.get_ident(), threading.Lock()
    over = fired = False

    def end() -> None:
        nonlocal fired
        with lock:
            if not over:
                fired = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Late))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        try:
            yield
        finally:
            with lock:
                over = True
            timer.cancel()
        while fired:  # in the last moment: it is on its way, and must not arrive outside
            time.sleep(0.001)
    except _Late:
        raise BadInput(sentence) from None
