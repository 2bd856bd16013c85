"""Two processes in one sandbox: tests run in the first, the program under test in the second, and only data passes between.

Run as `main.py` in the sandbox (`data.verify_tests` does), with a plan on its standard input, so it imports the standard
library only. What a test calls by a name of the program's is a `Remote`: arguments go over a pipe and come back as values of
Python's own types, so that every comparison is made here, with nothing of the program's in this process. The program
cannot end this process with a success, cannot reach its memory, its files or its output (PR_SET_DUMPABLE off, pipes
not inherited), and does not see the tests.

On standard output: {"tests": ["" for one that passed, else why not, ...]}.
"""

import ast
import builtins
import contextlib
import ctypes
import importlib
import json
import operator
import os
import select
import signal
import subprocess
import sys
import time
import types
from typing import Any

_PR_SET_DUMPABLE = 4
_SCALARS = {int: int.__int__, float: float.__float__, str: str.__str__}
_CONTAINERS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


class _OutOfTime(BaseException):
    """The time of all tests together is over; no Exception, so that no test can catch it."""


class ProgramError(Exception):
    """What the program raised, where it is none of Python's own exceptions."""


def main() -> None:
    """The tests, or with the word `program` the program under test."""
    sys.set_int_max_str_digits(0)
    sys.path[:] = [path for path in sys.path if path and os.path.realpath(path) != os.path.realpath(".")]
    if sys.argv[1:] == ["program"]:
        _Server().serve()
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    report = os.fdopen(_private_output(), "w")
    plan = json.load(sys.stdin)
    json.dump({"tests": _judge(plan["program"], plan["gold"], plan["seconds"])}, report)
    report.flush()
    os._exit(0)  # threads and exit handlers of a test have nothing to say any more


def _private_output() -> int:
    """The standard output, which from now on leads nowhere for everybody else."""
    output = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    return output


def encode(value: Any, hold: Any) -> Any:
    """A value as JSON: data of Python's own types by content, subclasses as their base, other objects as hold(value)."""
    if isinstance(value, bool | None):
        return value
    for kind, content in _SCALARS.items():
        if isinstance(value, kind):
            return content(value)
    for name, kind in _CONTAINERS.items():
        if isinstance(value, kind):
            return [name, [encode(each, hold) for each in kind.__iter__(value)]]
    if isinstance(value, dict):
        return ["dict", [[encode(key, hold), encode(each, hold)] for key, each in dict.items(value)]]
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    return ["object", hold(value)]


def decode(value: Any, find: Any) -> Any:
    """The value that `encode` wrote; objects are find(what stands for them)."""
    if not isinstance(value, list):
        return value
    name, content = value
    if name in _CONTAINERS:
        return _CONTAINERS[name]([decode(each, find) for each in content])
    if name == "dict":
        return {decode(key, find): decode(each, find) for key, each in content}
    if name == "bytes":
        return bytes.fromhex(content)
    if name in ("complex", "range"):
        return getattr(builtins, name)(*content)
    if name == "object":
        return find(content)
    raise ProgramError(f"no kind of value: {name!r}")


# The tests' side.


def _judge(program: str, golds: list[str], seconds: float) -> list[str]:
    trees = [ast.parse(gold) for gold in golds]
    given = [tree for tree in trees if not tests_something(tree)]
    tests = [tree for tree in trees if tests_something(tree)]
    run = _Program("\n".join(map(ast.unparse, given)), program, time.monotonic() + seconds)
    outcomes: list[str] = []
    for tree in tests:
        outcomes += _outcomes(tree, [*map(_without_stubs, given)], run, trees)
    run.end()
    return outcomes


def _outcomes(tree: ast.Module, given: list[ast.Module], run: "_Program", trees: list[ast.Module]) -> list[str]:
    """Why each test of a text failed, "" for one that passed: every assertion at its top, or the text when it has none."""
    steps = [ast.Module([statement], []) for statement in tree.body]
    each_counts = any(isinstance(statement, ast.Assert) for statement in tree.body)
    outcomes, why, names = [], "", {}
    try:
        names = run.names(trees)
        for module in given:
            exec(compile(module, "given", "exec"), names)
    except (Exception, SystemExit, _OutOfTime) as error:
        why = _told(error)
    for step in steps:
        counts = each_counts and isinstance(step.body[0], ast.Assert)
        failed = why  # what prepares a test and fails is the failure of all that follow
        if not failed:
            try:
                exec(compile(step, "test", "exec"), names)
            except (Exception, SystemExit, _OutOfTime) as error:
                failed = _told(error)
        if counts:
            outcomes.append(failed)
        else:
            why = failed
    return outcomes if each_counts else [why]


def tests_something(tree: ast.Module) -> bool:
    """Whether a text of Python has an assertion or a call at its top."""
    return any(
        isinstance(each, ast.Assert) or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Call))
        for each in tree.body
    )


def _without_stubs(tree: ast.Module) -> ast.Module:
    """Without functions that are only declared: those the program has to define."""
    return ast.Module([each for each in tree.body if not _is_stub(each)], [])


def _is_stub(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and all(
        isinstance(each, ast.Pass | ast.Import | ast.ImportFrom)
        or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        for each in statement.body
    )


def _told(error: BaseException) -> str:
    name = "the program raised" if isinstance(error, ProgramError) else type(error).__name__
    if isinstance(error, _OutOfTime):
        name = "out of time"
    return f"{name}: {error}".removesuffix(": ")[:200]


class _Program:
    """The process of the program; started again when it has died, as long as it gets as far as its first test."""

    def __init__(self, given: str, program: str, deadline: float) -> None:
        self.given, self.program, self.deadline = given, program, deadline
        self.process: subprocess.Popen[bytes] | None = None
        self.defined: list[str] = []
        self.failed = ""

    def names(self, trees: list[ast.Module]) -> dict[str, Any]:
        """What a test finds besides its own names: the program's, never in the place of Python's own and its modules."""
        self.start()
        nodes = [node for tree in trees for node in ast.walk(tree)]
        modules = {
            node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        names: dict[str, Any] = {"__name__": "tests"}
        for name in used & modules & sys.stdlib_module_names:
            names[name] = importlib.import_module(name)
        remote = {name for name in used & set(self.defined) if name not in names and not hasattr(builtins, name)}
        # A program that is to define `sum` is tested by that name and by no other.
        remote = remote or (used & set(self.defined)) - names.keys()
        return names | {name: Remote(self, ["name", name]) for name in remote}

    def start(self) -> None:
        if self.failed:
            raise ProgramError(self.failed)
        if self.process is not None:
            return
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-E", "-s", "main.py", "program"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self.buffer = bytearray()
        try:
            self.defined = self.ask({"given": self.given, "program": self.program})["names"]
        except Exception as error:
            self.failed = f"{error}"
            raise
        if not isinstance(self.defined, list):
            raise ProgramError("no names")

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The program's reply. Raises what it raised, ProgramError when it died, _OutOfTime."""
        self.start()
        assert self.process and self.process.stdin and self.process.stdout
        unsent = memoryview(json.dumps(request).encode() + b"\n")
        into, out = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(into, False)
        while b"\n" not in self.buffer[-65536:]:
            left = self.deadline - time.monotonic()
            readable, writable, _ = select.select([out], [into] if unsent else [], [], max(0.0, left))
            if not readable and not writable:
                self.end()
                raise _OutOfTime
            if writable:
                with contextlib.suppress(BrokenPipeError):
                    unsent = unsent[os.write(into, unsent[:65536]) :]
            if readable:
                data = os.read(out, 65536)
                if not data:
                    code = self.end()
                    if code == -signal.SIGXCPU:
                        self.deadline = 0.0
                        raise _OutOfTime
                    raise ProgramError(f"its process ended ({code})")
                self.buffer += data
        line, _, rest = bytes(self.buffer).partition(b"\n")
        self.buffer = bytearray(rest)
        reply = json.loads(line)
        if "raised" in reply:
            name, message = reply["raised"]
            kind = getattr(builtins, str(name), None)
            # StopIteration would end a `map` over the program's function, and all() of nothing is true.
            if kind is StopIteration and request.get("do") != "next":
                kind = RuntimeError
            if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
                raise kind(str(message))
            raise ProgramError(f"{name}: {message}")
        return reply

    def end(self) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.kill()
        return process.wait()


class Remote:
    """Something of the program's that is no data: a function, a class, an object. No data is equal to it."""

    __slots__ = ("_held", "_program")
    __hash__ = object.__hash__

    def __init__(self, program: _Program, held: Any) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_held", held)

    def _do(self, what: str, *args: Any, **kwargs: Any) -> Any:
        program = self._program
        sent = [self, *args]
        request = {"do": what, "args": encode(sent, _held), "kwargs": encode(kwargs, _held)}
        reply = program.ask(request)
        find = lambda held: Remote(program, held)  # noqa: E731
        if "changed" in reply:
            for mine, theirs in zip(sent, decode(reply["changed"], find), strict=True):
                _update(mine, theirs)
        return decode(reply["value"], find)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._do("call", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._do("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._do("setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._do("getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._do("setitem", key, value)

    def __len__(self) -> int:
        return operator.index(self._do("len"))

    def __bool__(self) -> bool:
        return self._do("bool") is True

    def __int__(self) -> int:
        return int(self._do("int"))

    def __float__(self) -> float:
        return float(self._do("float"))

    def __str__(self) -> str:
        return str(self._do("str"))

    def __repr__(self) -> str:
        return str(self._do("repr"))

    def __iter__(self) -> Any:
        walked = self._do("iter")
        while isinstance(walked, Remote):
            try:
                yield walked._do("next")
            except StopIteration:
                return

    def __next__(self) -> Any:
        return self._do("next")

    def __eq__(self, other: object) -> bool:
        # Two things of the program's are its own matter; no data is equal to one of them, whatever it says.
        return isinstance(other, Remote) and self._do("eq", other) is True


def _held(value: Any) -> Any:
    if isinstance(value, Remote):
        return object.__getattribute__(value, "_held")
    raise TypeError(f"a test gives the program a {type(value).__name__}, which is no data")


def _update(mine: Any, theirs: Any) -> None:
    """A list, set or dict that the program changed in place."""
    if type(mine) is list and type(theirs) is list:
        mine[:] = theirs
    elif isinstance(mine, set | dict) and type(theirs) is type(mine):
        mine.clear()
        mine.update(theirs)


# The program's side: nothing here is trusted by the other.

_DOINGS = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "len": len,
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "repr": repr,
    "iter": lambda value: _Walked(iter(value)),
    "next": next,
    "eq": operator.eq,
}


class _Walked:
    """An iterator that stays here, also where it would be data."""

    def __init__(self, iterator: Any) -> None:
        self.iterator = iterator

    def __next__(self) -> Any:
        return next(self.iterator)


class _Server:
    """Runs the program, then does what it is asked."""

    def __init__(self) -> None:
        self.requests = os.fdopen(os.dup(0), "rb")
        self.replies = os.fdopen(_private_output(), "wb")
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        self.objects: list[Any] = []
        self.module = types.ModuleType("__program__")

    def serve(self) -> None:
        for line in self.requests:
            try:
                reply = self.reply(json.loads(line))
            except BaseException as error:
                reply = {"raised": [type(error).__name__, str(error)[:500]]}
            self.replies.write(json.dumps(reply).encode() + b"\n")
            self.replies.flush()

    def reply(self, request: dict[str, Any]) -> dict[str, Any]:
        if "program" in request:
            return {"names": self.load(request["given"], request["program"])}
        target, *args = decode(request["args"], self.find)
        value = _DOINGS[request["do"]](target, *args, **decode(request["kwargs"], self.find))
        reply = {"value": encode(value, self.hold)}
        if any(isinstance(each, list | set | dict) for each in args):
            reply["changed"] = encode([None, *args], self.hold)
        return reply

    def load(self, given: str, program: str) -> list[str]:
        sys.modules["__program__"] = self.module  # what looks up the module of a class finds it
        names = vars(self.module)
        exec(compile(given, "given", "exec"), names)
        exec(compile(program, "program", "exec"), names)
        return [name for name in names if not name.startswith("__")]

    def hold(self, value: Any) -> int:
        self.objects.append(value)
        return len(self.objects) - 1

    def find(self, held: Any) -> Any:
        return vars(self.module)[held[1]] if isinstance(held, list) else self.objects[held]


if __name__ == "__main__":
    main()
