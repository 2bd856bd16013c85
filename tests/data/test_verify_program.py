import ast
import contextlib
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import ClassVar

import pytest

from equipoise.data import verify_program as module
from equipoise.data.verify_program import ProgramError, Remote, decode, encode


def served(requests, replies):
    """A server on these descriptors, without the standard streams."""
    server = object.__new__(module._Server)
    server.requests, server.replies = os.fdopen(requests, "rb"), os.fdopen(replies, "wb")
    server.objects, server.module = [], types.ModuleType("__program__")
    with server.requests, server.replies:
        server.serve()


class Here:
    """The process of the program, as a thread of this one."""

    started: ClassVar[list["Here"]] = []

    def __init__(self, command, **streams):
        self.command, self.streams = command, streams
        requests, into = os.pipe()
        out, replies = os.pipe()
        self.stdin, self.stdout = os.fdopen(into, "wb", 0), os.fdopen(out, "rb", 0)
        self.thread = threading.Thread(target=served, args=(requests, replies), daemon=True)
        self.thread.start()
        self.started.append(self)

    def kill(self):
        self.stdin.close()
        self.thread.join(5)

    def wait(self):
        self.stdout.close()
        return -9


class Dead(Here):
    """One that ended at once."""

    code = 7

    def __init__(self, command, **streams):
        super().__init__(command, **streams)
        self.stdin.close()
        self.thread.join(5)  # its output ends
        requests, into = os.pipe()
        os.close(requests)
        self.stdin = os.fdopen(into, "wb", 0)

    def wait(self):
        self.stdout.close()
        return self.code


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setitem(sys.modules, "__program__", types.ModuleType("__program__"))
    monkeypatch.setattr(Here, "started", [])
    monkeypatch.setattr(subprocess, "Popen", Here)
    yield Here.started
    for process in Here.started:
        process.kill()
        process.stdout.close()


def opened(program, given="", seconds=20.0):
    return module._Program(given, program, module.time.monotonic() + seconds)


def names(run, *texts):
    return run.names([ast.parse(text) for text in texts])


class Number(int):
    def __eq__(*_):
        return True

    __hash__ = int.__hash__
    __int__ = __index__ = lambda _: 99


class Text(str):
    def __str__(_):
        return "other"


class Listed(list):
    def __iter__(_):
        return iter([9])


class Mapped(dict):
    def items(_):
        return [(9, 9)]


VALUES = [
    (None, None),
    (True, True),
    (10**30, 10**30),
    (-2.5, -2.5),
    ("é", "é"),
    ([1, [2, ()]], [1, [2, ()]]),
    ((1, (2, [3])), (1, (2, [3]))),
    ({1, 2, 3}, {1, 2, 3}),
    (frozenset({(1, "a")}), frozenset({(1, "a")})),
    ({(1, 2): {"b": [None]}, "c": 4}, {(1, 2): {"b": [None]}, "c": 4}),
    (b"\x00\xff", b"\x00\xff"),
    (bytearray(b"ab"), b"ab"),
    (1.5 - 2j, 1.5 - 2j),
    (range(3, 11, 4), range(3, 11, 4)),
    (Number(5), 5),
    (Text("own"), "own"),
    (Listed([1, 2]), [1, 2]),
    (Mapped({1: 2}), {1: 2}),
]


@pytest.mark.parametrize("value, arrived", VALUES, ids=lambda value: type(value).__name__)
def test_data_arrives_as_what_it_holds_and_of_pythons_own_types(value, arrived):
    def refuse(value):
        return pytest.fail(f"held {value!r}")

    found = decode(json.loads(json.dumps(encode(value, refuse))), refuse)
    assert (type(found), repr(found)) == (type(arrived), repr(arrived)) and found == arrived


def test_what_is_no_data_is_held_wherever_it_is():
    held = []

    def hold(value):
        return held.append(value) or len(held) - 1

    written = json.loads(json.dumps(encode([print, {"a": (len,)}, 3], hold)))
    assert held == [print, len]
    assert decode(written, lambda number: f"held {number}") == ["held 0", {"a": ("held 1",)}, 3]
    for unknown in (["eval", "1"], ["int", [3]]):
        with pytest.raises(ProgramError, match="no kind of value"):
            decode(unknown, hold)


@pytest.mark.parametrize(
    "text, tests",
    [
        ("assert f(1)", True),
        ("check(f)", True),
        ("x = 1\ncheck(f)", True),
        ("x = check(f)", False),
        ("'''words'''\nx", False),
        ("def g():\n    assert f(1)\n    check(f)", False),
        ("", False),
    ],
)
def test_a_test_asserts_or_calls_at_its_top(text, tests):
    assert module.tests_something(ast.parse(text)) is tests


def test_what_is_only_declared_is_left_out_of_what_is_given():
    text = "import math\ndef a():\n    '''Add.'''\ndef b():\n    import os\n    from re import match\n    pass\n"
    text += "async def c():\n    pass\ndef d():\n    'Words.'\n    return 1\ndef e():\n    print()\n"
    text += "class G:\n    pass\nx = 1"
    left = module._without_stubs(ast.parse(text)).body
    assert [getattr(each, "name", type(each).__name__) for each in left] == ["Import", "d", "e", "G", "Assign"]


def test_why_a_test_failed_in_words():
    assert module._told(AssertionError()) == "AssertionError"
    assert module._told(KeyError("a")) == "KeyError: 'a'"
    assert module._told(ProgramError("Odd: no")) == "the program raised: Odd: no"
    assert module._told(module._OutOfTime()) == "out of time"
    assert module._told(ValueError("é" * 300)) == "ValueError: " + "é" * 188


F = "def f(x):\n    return x + 1 if x < 3 else 0"


@pytest.mark.parametrize(
    "program, golds, outcomes",
    [
        (F, ["assert f(1) == 2\nassert f(3) == 4\nassert f(2) == 3"], ["", "AssertionError", ""]),
        (
            F,
            ["assert f(1) == 2\nx = f(2)\ny = x // f(3)\nassert f(1) == 2\nassert x", "assert f(2) == 3"],
            ["", *["ZeroDivisionError: integer division or modulo by zero"] * 2, ""],
        ),
        (F, ["def check(g):\n    assert g(1) == 2\n    assert g(3) == 4\ncheck(f)"], ["AssertionError"]),
        (F, ["f(1)\nf(2)", "raise ValueError(3)\nprint()", "import sys\nsys.exit(4)\nprint()"], None),
        (F, ["k = 4\ndef f(x):\n    '''Add.'''", "assert f(k) == 0 and k == 4"], [""]),
        ("def f(x):\n    return k", ["k = 4", "assert f(0) == 4"], [""]),
        (
            F,
            ["if __name__ == 'tests':\n    raise ValueError('given')", "assert f(1) == 2", "f(1)"],
            ["ValueError: given"] * 2,
        ),
        (
            "1 / 0",
            ["assert f(1)", "f(1)"],
            ["ZeroDivisionError: division by zero", "the program raised: division by zero"],
        ),
    ],
)
def test_outcomes_of_tests(here, program, golds, outcomes):
    expected = ["", "ValueError: 3", "SystemExit: 4"] if outcomes is None else outcomes
    assert module._judge(program, golds, 20.0) == expected
    assert len(here) == 1
    here[0].thread.join(5)
    assert not here[0].thread.is_alive()  # nothing is left


def test_a_test_is_given_the_programs_names_and_pythons_own_modules(here):
    run = opened("statistics = len = f = g = 3\n__all__ = []", "h = 4")
    found = names(run, "assert statistics.mean([f(1)]) == len(h)", "f.a = 1")
    assert set(found) == {"__name__", "statistics", "f", "h"}
    assert found["__name__"] == "tests" and found["statistics"] is statistics
    assert all(type(found[name]) is Remote for name in "fh")
    assert sorted(run.defined) == ["f", "g", "h", "len", "statistics"]
    assert here[0].command[1:] == ["-B", "-E", "-s", "main.py", "program"]
    assert here[0].streams == {"stdin": -1, "stdout": -1, "stderr": -3, "bufsize": 0}


def test_a_program_is_tested_by_a_name_of_pythons_own_where_there_is_no_other(here):
    run = opened("def sum(a, b):\n    return a + b + 1\ndef max(a): pass")
    found = names(run, "assert sum(1, 2) == 4")
    assert set(found) == {"__name__", "sum"} and found["sum"](1, 2) == 4
    assert set(names(run, "statistics.mean(sum)")) == {"__name__", "statistics", "sum"}


OBJECTS = """
class Odd(Exception):
    pass
class Node:
    def __init__(self, value, *, left=None):
        self.value, self.left, self.items = value, left, {}
    def __getitem__(self, key): return self.items[key]
    def __setitem__(self, key, value): self.items[key] = value
    def __len__(self): return 3
    def __bool__(self): return self.value > 1
    def __int__(self): return self.value * 2
    def __float__(self): return self.value / 2
    def __str__(self): return f'node {self.value}'
    def __repr__(self): return f'Node({self.value})'
    def __eq__(self, other): return isinstance(other, (Node, int)) or other
    def __iter__(self): yield from (self.value, [2, (3,)])
def make(value): return Node(value)
def walk(): return iter([1, [2]])
def counted(n): return range(n)
def fails(name): raise {'Odd': Odd, 'Key': KeyError, 'Stop': StopIteration, 'Exit': SystemExit}[name](name)
def text(): b'\\xff'.decode()
def spoil(x, y, z, t):
    x.sort(); y['a'] = 1; z.add(4)
def same(x): return x
def long(n): return 'a' * n
"""


@pytest.fixture
def objects(here):
    run = opened(OBJECTS)
    run.start()
    return lambda name: Remote(run, ["name", name])


def test_objects_of_the_program_are_asked_there(objects):
    node = objects("Node")(2, left=objects("make")(1))
    assert type(node) is Remote and (node.value, node.left.value) == (2, 1)
    node.value = 5
    node["k"] = (7, 8)
    assert node.value == 5 and node["k"] == (7, 8) and node.items == {"k": (7, 8)}
    assert (len(node), int(node), float(node), str(node), repr(node)) == (3, 10, 2.5, "node 5", "Node(5)")
    assert bool(node) and not node.left
    assert list(node) == [5, [2, (3,)]]
    assert next(objects("walk")()) == 1
    assert list(objects("walk")()) == [1, [2]] and list(objects("counted")(3)) == [0, 1, 2]
    assert node == node.left and hash(node) != hash(node.left)
    with pytest.raises(AttributeError):
        _ = node.nothing


def test_no_data_is_equal_to_what_is_the_programs_and_only_true_is_equal(objects):
    node, other = objects("make")(1), objects("fails")
    assert node != 1 and (node == 1) is False
    assert (node == other) is False and node == objects("make")(2)  # of the first it says something that is merely true


def test_what_is_changed_in_place_is_changed_here(objects):
    x, y, z, t = [3, 1, 2], {"b": 2}, {5}, (1, [2])
    assert objects("spoil")(x, y, z, t) is None
    assert (x, y, z, t) == ([1, 2, 3], {"b": 2, "a": 1}, {4, 5}, (1, [2]))
    given = objects("walk")()
    assert objects("same")([given, 2])[1] == 2
    with pytest.raises(TypeError, match=r"gives the program a builtin_function_or_method"):
        objects("same")(print)


def test_only_a_value_of_the_same_kind_is_taken_over():
    for mine, theirs, after in (
        ([1], [2, 3], [2, 3]),
        ([1], (2,), [1]),
        ({1}, {2}, {2}),
        ({1}, [2], {1}),
        ({1: 1}, {2: 2}, {2: 2}),
        ({1}, {2: 2}, {1}),
        (Listed([1]), [2], Listed([1])),
        ((1,), (2,), (1,)),
        (1, 2, 1),
    ):
        module._update(mine, theirs)
        assert mine == after and (not isinstance(mine, Listed) or (len(mine) == 1 and mine[0] == 1))


@pytest.mark.parametrize(
    "name, kind, text",
    [
        ("Odd", ProgramError, "Odd: Odd"),
        ("Key", KeyError, "'Key'"),
        ("Stop", RuntimeError, "Stop"),
        ("Exit", ProgramError, "SystemExit: Exit"),
    ],
)
def test_what_the_program_raises_is_raised_where_it_is_pythons_own(objects, name, kind, text):
    with pytest.raises(Exception) as raised:
        objects("fails")(name)
    assert raised.type is kind and text in str(raised.value)


def test_an_error_of_encoding_cannot_be_made_again_and_an_end_only_ends_what_walks(objects):
    with pytest.raises(ProgramError, match="UnicodeDecodeError"):
        objects("text")()
    walked = objects("walk")()._do("iter")
    assert [walked._do("next"), walked._do("next")] == [1, [2]]
    with pytest.raises(StopIteration):
        next(walked)


def test_what_is_longer_than_a_pipe_holds_arrives(objects):
    long = "b" * 300_000
    assert objects("same")(long) == long
    assert objects("long")(400_000) == "a" * 400_000
    assert objects("same")("c") == "c"


def test_the_time_of_all_tests_ends(here):
    run = opened("import time\ndef f(): time.sleep(0.3)")
    f = names(run, "f()")["f"]
    run.deadline = module.time.monotonic() + 0.05
    with pytest.raises(module._OutOfTime):
        f()
    assert run.process is None and len(here) == 1
    assert not issubclass(module._OutOfTime, Exception)
    assert run.end() == 0


def test_a_program_that_died_is_started_again_unless_it_dies_before_its_first_test(here, monkeypatch):
    run = opened(F)
    f = names(run, "f(1)")["f"]
    assert f(1) == 2 and len(here) == 1
    run.process.kill()
    run.process.stdin = os.fdopen(os.open(os.devnull, os.O_WRONLY), "wb", 0)
    with pytest.raises(ProgramError, match=r"its process ended \(-9\)"):
        f(1)
    assert f(2) == 3 and len(here) == 2
    monkeypatch.setattr(subprocess, "Popen", Dead)
    run.end()
    for _ in range(2):
        with pytest.raises(ProgramError, match=r"its process ended \(7\)"):
            f(1)
        assert len(here) == 3  # and not tried again
    monkeypatch.setattr(Dead, "code", -signal.SIGXCPU)
    late = opened(F)
    with pytest.raises(module._OutOfTime):
        late.start()
    assert late.deadline == 0 and late.failed == ""


def test_a_program_cannot_reply_with_other_than_names(here, monkeypatch):
    monkeypatch.setattr(module._Server, "load", lambda *_: "f")
    with pytest.raises(ProgramError, match="no names"):
        opened(F).start()


@contextlib.contextmanager
def streams(given: bytes):
    """Pipes as the standard input and output of this process; what was written stands in the list that is yielded."""
    saved, written = [os.dup(0), os.dup(1)], []
    (requests, into), (out, replies) = os.pipe(), os.pipe()
    os.write(into, given)
    os.close(into)
    os.dup2(requests, 0)
    os.dup2(replies, 1)
    os.close(requests)
    os.close(replies)
    try:
        yield written
    finally:
        os.dup2(saved[0], 0)
        os.dup2(saved[1], 1)
        for descriptor in saved:
            os.close(descriptor)
        with os.fdopen(out, "rb") as file:
            written.append(file.read())


@pytest.fixture
def digits():
    before = sys.get_int_max_str_digits()
    yield
    sys.set_int_max_str_digits(before)


@pytest.mark.usefixtures("digits")
def test_as_the_program_it_answers_and_leaves_its_streams_to_nobody(monkeypatch, here):
    monkeypatch.setattr(sys, "argv", ["main.py", "program"])
    monkeypatch.setattr(sys, "path", ["", ".", str(Path.cwd()), "/there"])
    program = (
        "import os, sys\nos.write(1, b'forged')\nread = os.read(0, 9)\nlong = 7 ** 7000\n_x = 1\n__y = 2\n"
        "def fails(x): raise KeyError('m' * 600)\ndef same(x): return [x, [1]]"
    )

    def call(name, *args):
        return {"do": "call", "args": encode([0, *args], lambda value: value), "kwargs": ["dict", []]}

    requests = [{"given": "z = 3", "program": program}, None, call("same", [4]), call("fails", 1), call("same", 5)]
    for request, name in ((requests[2], "same"), (requests[3], "fails"), (requests[4], "same")):
        request["args"][1][0] = ["object", ["name", name]]
    requests[1] = {"do": "str", "args": ["list", [["object", ["name", "long"]]]], "kwargs": ["dict", []]}
    with streams(b"".join(json.dumps(request).encode() + b"\n" for request in requests)) as written:
        module.main()
    loaded, long, same, failed, plain = map(json.loads, written[0].splitlines())
    assert loaded == {"names": ["z", "os", "sys", "read", "long", "_x", "fails", "same"]}
    assert vars(sys.modules["__program__"])["read"] == b"" and sys.path == ["/there"]
    assert long == {"value": str(7**7000)}  # more digits than Python writes by itself
    assert decode(same["value"], None) == [[4], [1]] and decode(same["changed"], None) == [None, [4]]
    assert failed == {"raised": ["KeyError", "'" + "m" * 499]}
    assert decode(plain["value"], None) == [5, [1]] and "changed" not in plain


@pytest.mark.usefixtures("digits")
def test_as_the_tests_it_reports_and_ends_at_once(monkeypatch, here):
    class Ended(BaseException):
        pass

    def end(code):
        raise Ended(code)

    told = []
    library = types.SimpleNamespace(prctl=lambda *arguments: told.append(arguments))
    plan = {
        "program": F,
        "gold": ["import os\nos.write(1, b'forged')", "assert f(1) == 2\nassert f(3) == 4"],
        "seconds": 9,
    }
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(plan)))
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(os, "_exit", end)
    with streams(b"") as written, pytest.raises(Ended, match=r"^0$"):
        module.main()
    assert json.loads(written[0]) == {"tests": ["", "", "AssertionError"]}
    assert told == [(4, 0, 0, 0, 0)]  # PR_SET_DUMPABLE
