import contextlib
import gc
import json
import logging
import os
import re
import signal
import string
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.core import sandbox
from equipoise.core.errors import BadInput, MissingExtra, WorkFailed
from equipoise.data import verify as module
from equipoise.data import verify_pool, verify_program
from equipoise.data import verify_tests as module_of_tests
from equipoise.data.problems import Problem
from equipoise.data.verify import VerifierScore, open_verifier, verify
from equipoise.data.verify_pool import Pool
from equipoise.data.verify_tests import program_in, run_tests

ENDLESS = "1/2+10^(10^10)-10^(10^10)"


def problems(golds):
    return [Problem(str(index), "?", (gold,) if isinstance(gold, str) else gold) for index, gold in enumerate(golds)]


def values(kind, golds, answers, **options):
    with open_verifier(kind, **options) as verifier:
        return [score.value for score in verifier(problems(golds), answers)]


@pytest.mark.parametrize(
    ("kind", "answer", "gold", "value"),
    [
        ("exact", "The  Löwe!", "löwe", 1),
        ("exact", "a lion", ["tiger", "Lion"], 1),
        ("exact", "a lion and", "lion", 0),
        ("exact", "!!!", "!!!", 1),
        ("number", "so 1,200 of 3", "3", 1),
        ("number", "He has -5 left, #### -5", "5", 0),  # a pattern without a minus would say yes
        ("number", "<think>4</think>The answer is 5.", ["4", "5.0"], 1),
        ("number", "<think>The answer is 5", "5", 0),
        ("number", "about 0.33333", "1/3", 1),
        ("number", r"so \boxed{\frac9{19}}", r"\frac{9}{19}", 1),
        ("number", r"so \boxed{19}", r"\frac9{19}", 0),
        ("number", r"so \boxed{\sqrt{2}}", "2", 0),
        ("choice", "<think>Answer: C</think>I take (B).", "B", 1),
        ("choice", "A or B", "A", 0),
        ("f1", "the cat sat on a mat", ["dog", "cat sat"], 2 * 2 / (4 + 2)),
    ],
)
def test_kinds_that_need_no_process(kind, answer, gold, value):
    score = verify(kind, answer, gold)
    assert score.value == pytest.approx(value) and (score.reason == "") == (value == 1)


def test_reasons_say_what_is_missing_and_what_differs():
    assert verify("number", "none", "5") == VerifierScore(0.0, "missing: no number, or no single plain one in a box")
    assert verify("number", "<think> 5", "5") == VerifierScore(0.0, "missing: the thinking has not ended")
    assert verify("number", "1e500", "5").reason == "another number: 1e+500"
    assert verify("choice", "The answer is C", "D") == VerifierScore(0.0, "another choice: C")
    assert verify("choice", "A, or B", "D").missing and not verify("choice", "C", "D").missing


@pytest.mark.parametrize(
    ("kind", "gold", "message"),
    [
        ("number", "Paris", "'Paris' is no number"),
        ("number", "(3, 4)", r"'\(3, 4\)' is no single number; use another kind"),
        ("number", "2\\sqrt{3}", "is no single number"),
        ("choice", "Paris", "'Paris' is no letter"),
        ("regex", "(", r"'\(' is no pattern"),
        ("tests", "def f(", "is no Python"),
        ("tests", "x = 1", "there is no test"),
        ("f1", (), "there is no gold answer"),
        ("math", " ", "or an empty one"),
        ("maths", "1", "kind is 'maths'. Did you mean 'math'"),
    ],
)
def test_a_gold_answer_of_another_kind_is_refused_and_in_a_batch_only_its_own_row(kind, gold, message, caplog):
    with pytest.raises(BadInput, match=message):
        verify(kind, "x", gold)
    if kind in ("number", "choice", "f1"):
        right = {"number": "5", "choice": "B", "f1": "x"}[kind]
        with open_verifier(kind) as verifier, caplog.at_level(logging.WARNING):
            scores = verifier(problems([right, gold, right]), [right] * 3)
            with pytest.raises(BadInput, match=f"problem '1': .*{message}"):
                verifier.check(problems([right, gold]))
        assert [score.value for score in scores] == [1, 0, 1] and scores[1].crashed
        assert "on problem 1 crashed: BadInput" in caplog.text


def squad_f1(answer, gold):
    """The official evaluation of SQuAD 1.1."""

    def tokens(text):
        text = "".join(character for character in text.lower() if character not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    same = sum((Counter(tokens(answer)) & Counter(tokens(gold))).values())
    if not same:
        return 0.0
    precision, recall = same / len(tokens(answer)), same / len(tokens(gold))
    return 2 * precision * recall / (precision + recall)


WORDS = st.lists(
    st.sampled_from(["the", "Cat", "cat", "sat,", "mat.", "on", "an", "owl's"]), min_size=1, max_size=7
).map(" ".join)


@given(WORDS, st.lists(WORDS.filter(lambda text: text.lower().strip("the an")), min_size=1, max_size=3))
def test_f1_is_squads_of_the_best_alias(answer, golds):
    # Where nothing but articles is said SQuAD sees nothing; here an article that stands alone counts as the word it is.
    if set(answer.lower().split()) - {"the", "an"} and all(set(gold.lower().split()) - {"the", "an"} for gold in golds):
        assert verify("f1", answer, golds).value == pytest.approx(max(squad_f1(answer, gold) for gold in golds))


@pytest.fixture(scope="module")
def mathematics():
    with open_verifier("math", seconds=30, workers=1) as verifier:  # the first answer pays for what its worker imports
        yield verifier


def test_math_compares_what_is_in_the_last_box_and_takes_no_part_of_an_expression(mathematics, monkeypatch):
    golds = [
        r"\frac{1}{2}",
        r"\frac{1}{2}",
        r"\left( 3, \frac{\pi}{2} \right)",
        "x^2-1",
        "3",
        "4",
        "5",
        "1/2",
        r"\text{Evelyn}",
    ]
    answers = [
        r"<think>\boxed{3}</think>so \boxed{1} or rather \boxed{0.5}",
        r"\boxed{\dfrac{1}{2}} and not \boxed{2}",
        r"\boxed{(3,\pi/2)}",
        r"\boxed{(x-1)(x+1)}",
        "3 + 1",
        "There are 4 of them",
        "<think>5",
        "1/2 + 1",
        r"\boxed{Evelyn}",
    ]
    scores = mathematics(problems(golds), answers)
    assert [score.value for score in scores] == [1, 0, 1, 1, 0, 1, 0, 0, 1]
    loaded = "{'sympy', 'torch'} & sys.modules.keys()"
    code = f"import sys; from equipoise.data.verify import verify; print(verify('number', '1', '1').value, {loaded})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1.0 set()\n"
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"equipoise\[math\]"):
        open_verifier("math")


@pytest.mark.parametrize(
    ("gold", "other", "same"),
    [
        ("1 1/2", ("11/2", "1", "1 1/3"), ("1 1/2", r"1\frac{1}{2}", "3/2", "1.5")),
        ("11/2", ("1 1/2",), ("5.5",)),
        ("2 3", ("23",), ("2  3", r"2\,3")),
        ("23", ("2 3", r"2\,3", r"2\ 3"), ("$23$", r"\text{23}")),
        ("1,234", ("1, 234", r"1,\ 234", "$1$, $234$"), (r"1,\!234", "1234", r"1,\! 234")),
        (r"1\,234", (r"1\,23", "235"), ("1234", r"1 \, 234")),
        ("1, 234", ("1,234", "1234", r"1\,234"), ("1,  234", "234, 1")),
        ("3, 5, 7", ("35,7",), ("3,5,7", r"3,\,5,\ 7")),
        (r"\frac12", (), (r"\frac 1 2", r"\dfrac{1}{2}")),
        (r"1\frac{1}{2}", (), (r"1 \frac{1}{2}", r"1\,\frac12")),
    ],
)
def test_a_blank_that_tells_numbers_apart_counts(mathematics, gold, other, same):
    answers = [rf"\boxed{{{each}}}" for each in (*other, *same)]
    scores = mathematics(problems([gold] * len(answers)), answers)
    assert [score.value for score in scores] == [0] * len(other) + [1] * len(same)


@pytest.mark.slow
def test_mathematics_that_never_ends_is_ended_and_the_rest_is_as_it_would_be_alone():
    golds, answers = ["1/2", "0.25", "1/2"], [ENDLESS, r"\frac14", r"\frac{2}{4}"]
    with open_verifier("math", seconds=5, workers=1) as verifier:
        forth = verifier(problems(golds), answers)
        back = verifier(problems(golds[::-1]), answers[::-1])
    assert forth == back[::-1]
    assert [score.value for score in forth] == [0, 1, 1]
    assert forth[0].reason == "crashed: took longer than 5 s" and forth[0].crashed


def test_a_pattern_that_never_ends_is_ended_and_the_next_is_searched():
    with open_verifier("regex", seconds=0.3, workers=1) as verifier:
        scores = verifier(problems(["(a+)+$", "b", "^b"]), ["a" * 40 + "b"] * 3)
    assert [score.value for score in scores] == [0, 1, 0]
    assert scores[0].reason == "crashed: took longer than 0.3 s"


def test_patterns_are_searched_in_the_whole_answer():
    form = r"\A<think>[^<]*</think>\s*<answer>[^<]*</answer>\Z"
    answers = ["<think>a</think> <answer>5</answer>", "<answer>5</answer>", "<think>a</think> <answer>5</answer>."]
    assert values("regex", [form] * 3, answers) == [1, 0, 0]


def workers_of(pid):
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [int(each) for each, parent, arguments in rows if "verify_worker.py" in arguments and int(parent) == pid]


def test_a_worker_that_dies_costs_its_own_task_and_what_it_had_taken_before_costs_nobody():
    pool = Pool("regex", seconds=5, memory_bytes=2**31, workers=1)
    task = {"answer": "ab", "golds": ["b"]}
    assert pool.run([task]) == [{"right": True}]
    (worker,) = workers_of(os.getpid())[-1:]
    os.kill(worker, signal.SIGKILL)
    assert pool.run([task, task]) == [{"right": True}] * 2
    big = Pool("regex", seconds=20, memory_bytes=2**27, workers=1)
    huge = {"answer": "a" * 5 * 10**6, "golds": ["(a|b)*c"]}
    assert [set(each) for each in big.run([huge, task])] == [{"crashed"}, {"right"}]
    pool.close()
    big.close()


def gone(pids):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.02)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_nothing_outlives_a_verifier_that_is_closed_or_garbage():
    before = set(workers_of(os.getpid()))
    verifier = open_verifier("regex", workers=2)
    assert [score.value for score in verifier(problems(["a"] * 8), ["a"] * 8)] == [1] * 8
    started = set(workers_of(os.getpid())) - before
    assert 1 <= len(started) <= 2
    verifier.close()
    assert gone(started)
    assert verifier(problems(["a"]), ["a"])[0].value == 1  # closed, and used again
    started = set(workers_of(os.getpid())) - before
    del verifier
    gc.collect()
    assert gone(started)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_parent_that_is_killed_leaves_no_orphan_at_rest_or_at_work():
    code = (
        "import threading, time\nfrom equipoise.data.verify_pool import Pool\n"
        "idle, busy = (Pool('regex', seconds=1, memory_bytes=2**31, workers=1) for _ in range(2))\n"
        "print(idle.run([{'answer': 'a', 'golds': ['a']}]), flush=True)\n"
        "threading.Thread(target=busy.run, args=([{'answer': 'a' * 40 + 'b', 'golds': ['(a+)+$']}],)).start()\n"
        "time.sleep(0.6)\nprint('there', flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline().startswith("[{'right'") and parent.stdout.readline() == "there\n"
    workers = workers_of(parent.pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert workers and gone(workers)


def test_programs_are_found_in_answers():
    assert program_in("def f(): pass") == "def f(): pass"
    assert program_in("Use:\n```python\na = 1\n```\nor\n```py\na = 2\n```\nwhich prints\n```text\n2\n```") == "a = 2\n"
    assert program_in("1. So:\n   ```\n   a = 1\n   if a:\n       b\n   ```\n") == "a = 1\nif a:\n    b\n"
    assert program_in("cut:\n~~~python\na = 1\n") == "a = 1\n"


isolated = pytest.mark.skipif(not sandbox.isolation().available, reason="no isolation here")
TWO = ("assert f(1) == 2", "assert f(2) == 3")
CHECK = ("def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 3\n\ncheck(f)",)
STUB = "import math\n\ndef half(x):\n    return x / 2\n\ndef f(x):\n    '''Add one.'''\n"
FORGED = '{"tests": ["", ""]}'
WRITES_EVERYWHERE = f"""
import os
def f(x):
    for place in [*range(1, 20), *(f"/proc/{{os.getppid()}}/fd/{{fd}}" for fd in range(20))]:
        try:
            with open(place, "w", closefd=isinstance(place, str)) as file:
                file.write({FORGED!r})
        except OSError:
            pass
    os.kill(os.getppid(), 9)
"""
EQUAL_TO_ALL = """
class A(int):
    __eq__ = lambda *_: True
    __hash__ = int.__hash__
class B:
    __eq__ = lambda *_: True
def f(x):
    return [A(0), B()][x - 1]
"""
BREAKS_ASSERTING = """
import builtins
class Other(Exception):
    pass
builtins.AssertionError = Other
int = len = lambda *_: 1
def f(x):
    raise AssertionError
"""
REPLACES_MODULES = f"""
open("statistics.py", "w").write("def mean(values): return 2")
open("main.py", "w").write({FORGED!r})
def f(x):
    return 0
"""
READS_THE_MEMORY = """
import os
def f(x):
    try:
        with open(f"/proc/{os.getppid()}/mem", "rb"):
            return x + 1
    except OSError:
        return 0
"""
READS_THE_TESTS = """
import gc
def f(x):
    return next((each for each in gc.get_objects() if isinstance(each, str) and "==" in each), 0)
"""
OBJECTS = """
class Node:
    def __init__(self, value):
        self.value, self.left = value, None
def depth(node):
    return 1 + depth(node.left) if node else 0
def walk():
    yield from (1, (2, {3}))
"""
ON_OBJECTS = """
root = Node(1)
root.left = Node(2)
assert depth(root) == 2 and root.left.value == 2
assert list(walk()) == [1, (2, {3})]
"""
ON_ERRORS = """
def fails():
    try:
        f(1)
    except KeyError:
        return True
assert fails()
"""
PLUS_ONE = "def f(x):\n    return x + 1"
PROGRAMS = {  # what it does: the program, its tests, the value
    "right": (PLUS_ONE, TWO, 1),
    "right and checked": (f"```python\n{PLUS_ONE}\n```", CHECK, 1),
    "half right": ("def f(x):\n    return 2", TWO, 0.5),
    "half right, but one test": ("def f(x):\n    return 2", CHECK, 0),
    "goes on": ("    return math.ceil(half(2 * x)) + 1\n\nprint('more')\nthat is all", (STUB, *TWO), 1),
    "whole, with what is given": ("def f(x):\n    return math.ceil(half(2 * x)) + 1", (STUB, *CHECK), 1),
    "another helper": (f"def half(x):\n    return 0\n{PLUS_ONE}", (STUB, "assert half(f(1)) == 1"), 1),
    "ends in the second": ("import os\ndef f(x):\n    return 2 if x == 1 else os._exit(0)", TWO, 0.5),
    "ends early": ("import sys\nsys.exit(0)", TWO, 0),
    "ends at once": ("import os\nos._exit(0)", CHECK, 0),
    "equal to all": (EQUAL_TO_ALL, TWO, 0),
    "breaks asserting": (BREAKS_ASSERTING, TWO, 0),
    "ends a loop of the tests'": ("def f(x):\n    raise StopIteration", ("assert all(map(f, [1, 2]))",), 0),
    "writes everywhere": (WRITES_EVERYWHERE, TWO, 0),
    "prints": (f"print({FORGED!r}, flush=True)\ndef f(x):\n    print({FORGED!r}, flush=True)", TWO, 0),
    "replaces modules": (REPLACES_MODULES, ("import statistics\nassert statistics.mean([f(1)]) == 2",), 0),
    "reads the memory": (READS_THE_MEMORY, TWO, 0),
    "reads the tests": (READS_THE_TESTS, TWO, 0),
    "a loop": ("def f(x):\n    while True:\n        pass", TWO, 0),
    "no python": ("I cannot do that.", TWO, 0),
    "objects": (OBJECTS, (ON_OBJECTS,), 1),
    "in place": (
        "def f(x, y):\n    x.sort()\n    y['a'] = 1",
        ("x, y = [2, 1], {}\nf(x, y)\nassert (x, y) == ([1, 2], {'a': 1})",),
        1,
    ),
    "raises": ("def f(x):\n    raise KeyError(x)", (ON_ERRORS,), 1),
    "named as python's own": ("def sum(a, b):\n    return a + b + 1", ("assert sum(1, 2) == 4",), 1),
}
QUICK = ("half right", "goes on", "ends in the second", "equal to all")
SLOW = tuple(name for name in PROGRAMS if name not in QUICK)


@isolated
@pytest.mark.parametrize("names", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["quick", "slow"])
def test_programs_score_what_they_compute_and_nothing_else(names):
    programs, golds, expected = zip(*[PROGRAMS[name] for name in names], strict=True)
    with open_verifier("tests", seconds=1, workers=4) as verifier:
        scores = dict(zip(names, verifier(problems(golds), programs), strict=True))
    assert {name: score.value for name, score in scores.items()} == dict(zip(names, expected, strict=True))
    reasons = {"half right": "1 of 2 tests passed: AssertionError", "no python": "0 of 2 tests passed: SyntaxError"}
    assert all(scores[name].reason.startswith(reason) for name, reason in reasons.items() if name in scores)


def test_without_isolation_programs_are_refused_before_the_first(monkeypatch):
    monkeypatch.setattr(sandbox, "isolation", lambda: sandbox.Isolation(False, 0, "no namespaces"))
    with pytest.raises(BadInput, match=r"not run without isolation \(no namespaces\)"):
        open_verifier("tests")
    assert values("tests", [TWO], ["def f(x): return x + 1"], unsafe=True) == [1]


def test_a_verifier_says_what_it_is():
    with open_verifier("f1") as verifier:
        assert (verifier.name, verifier.binary, verifier.digest) == ("f1", False, "")
    with open_verifier("number", tolerance=0.1) as verifier:
        assert verifier.binary and verifier(problems(["10.5"]), ["10"])[0].value == 1
    for wrong in (
        {},
        {"kind": "math", "reward": print},
        {"kind": "number", "seconds": 0},
        {"kind": "number", "tolerance": 1},
    ):
        with pytest.raises(BadInput):
            open_verifier(**wrong)


def test_mathematics_without_an_answer_is_missing_it():
    for said in ("  \n", "So \\boxed{ }"):
        score = module._math(said, ["1"])
        assert (score.value, score.reason) == (0.0, "missing: no answer")


def test_where_no_worker_starts_every_task_of_the_batch_has_crashed(monkeypatch):
    with open_verifier("regex", workers=1) as verifier:

        def broken(*_):
            raise WorkFailed("no process")

        monkeypatch.setattr(verify_pool, "_Worker", broken)
        scores = verifier(problems(["a", "b", "c"]), ["a", "b", "c"])
        assert [(score.value, score.crashed) for score in scores] == [(0, True)] * 3
        assert all("no process" in score.reason for score in scores)
        with pytest.raises(WorkFailed, match="no process"):
            Pool("regex", seconds=1, memory_bytes=2**31, workers=1).run([{"answer": "a", "golds": ["a"]}])
        monkeypatch.undo()
        assert verifier(problems(["a", "b"]), ["a", "a"])[0].value == 1  # the place of the worker is free again


def test_a_worker_that_says_nothing_in_time_is_late():
    worker = object.__new__(verify_pool._Worker)
    worker.done, worker.late = 3, False
    (given, into), (out, replies) = os.pipe(), os.pipe()
    worker.input = os.fdopen(into, "wb")
    with os.fdopen(out, "rb") as worker.output:
        os.write(replies, b'{"right"')
        assert worker.ask({"answer": "é"}, 0.02) is None
        assert worker.late and worker.done == 3 and os.read(given, 99) == b'{"answer": "\\u00e9"}\n'
        os.write(replies, b'{"right": true}\n')
        assert worker.ask({}, 5) == {"right": True} and worker.done == 4
        os.close(replies)
        worker.process = SimpleNamespace(wait=lambda: 0)
        worker.late = False
        assert worker.ask({}, 5) is None and not worker.late
        os.close(given)
        assert worker.ask({}, 5) is None  # it has died
    with contextlib.suppress(BrokenPipeError):
        worker.input.close()


@pytest.mark.parametrize(
    "finished, score, why",
    [
        ({"stdout": '{"tests": ["", "E: 1", "", "E: 2"]}'}, 0.5, "2 of 4 tests passed: E: 1"),
        ({"stdout": '{"tests": ["", ""]}'}, 1.0, ""),
        ({"stdout": '{"tests": ["", ""]}', "truncated": True}, 0.0, "the tests ended early: exit 0"),
        ({"succeeded": False, "ended": "memory", "stderr": "é" * 300}, 0.0, "ended early: memory 0 " + "é" * 200),
    ],
)
def test_shares_of_tests_and_limits_of_their_processes(monkeypatch, finished, score, why):
    asked = []
    ended = {
        "succeeded": True,
        "truncated": False,
        "ended": "exit",
        "returncode": 0,
        "stderr": "",
        "stdout": "",
    } | finished

    def python(code, **how):
        asked.append((code, how))
        return SimpleNamespace(**ended)

    monkeypatch.setattr(sandbox, "python", python)
    found, told = run_tests("```python\nx = 1\n```", ["assert x == 1"], seconds=2.5, memory_bytes=77, unsafe=True)
    assert found == score and told.endswith(why) and bool(told) == bool(why)
    ((code, how),) = asked
    assert code == Path(verify_program.__file__).read_text(encoding="utf-8")
    assert json.loads(how["stdin"]) == {"program": "x = 1\n", "gold": ["assert x == 1"], "seconds": 10.0}
    assert how["unsafe"] is True
    assert how["limits"] == sandbox.Limits(seconds=20.0, cpu_seconds=4, memory_bytes=77)


def test_a_verifier_that_is_kept_runs_programs_in_the_sandbox_with_the_usual_limits():
    (how,) = module._kept("tests").first.args
    assert how == {"seconds": 5.0, "memory_bytes": 2 * 2**30, "unsafe": False}


class FakeWorker:
    """What a pool sees of a worker. ends: for each of its tasks its reply, or how it ends."""

    asked, ended, ends = [], [], []

    def __init__(self, kind, seconds, memory_bytes):
        self.done, self.late, self.started = 0, False, (kind, seconds, memory_bytes)

    def ask(self, task, seconds):
        self.asked.append((task, seconds, self.started))
        how = self.ends.pop(0)
        if isinstance(how, dict):
            self.done += 1
            return how
        self.late, self.code = how == "late", 0 if how == "late" else how
        return None

    def end(self):
        self.ended.append(self)
        return getattr(self, "code", 0)


def test_why_a_worker_ended_is_told_and_who_had_worked_before_gets_another_try(monkeypatch):
    monkeypatch.setattr(verify_pool, "_Worker", FakeWorker)
    right = {"right": True}

    def run(*ends, tasks=1):
        FakeWorker.asked, FakeWorker.ended, FakeWorker.ends = [], [], list(ends)
        pool = Pool("math", seconds=2.5, memory_bytes=7, workers=1)
        return pool.run([{"n": n} for n in range(tasks)]), len(FakeWorker.asked), len(FakeWorker.ended), pool

    assert run(right)[:3] == ([right], 1, 0)
    assert FakeWorker.asked == [({"n": 0}, 15.0, ("math", 2.5, 7))]
    assert run("late")[:3] == ([{"crashed": "took longer than 2.5 s"}], 1, 1)
    assert run(-signal.SIGPROF)[:3] == ([{"crashed": "took longer than 2.5 s"}], 1, 1)
    why = "took too much memory or ended its process (27)"
    assert run(signal.SIGPROF.value)[0] == [{"crashed": why}]
    assert run(right, -9, right, tasks=2)[:3] == ([right, right], 3, 1)
    assert run(right, -9, -9, tasks=2)[0][1] == {"crashed": "took too much memory or ended its process (-9)"}
    found, _, ended, pool = run(right, right, tasks=2)
    assert found == [right, right] and ended == 0
    pool.close()
    assert len(FakeWorker.ended) == 1
    pool.close()
    assert len(FakeWorker.ended) == 1 and pool.run([]) == []


def test_so_many_processes_as_there_are_cores_and_four_at_most(monkeypatch):
    for cores, workers in ((None, 1), (1, 1), (3, 3), (9, 4)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        with open_verifier("regex") as verifier:
            assert verifier._scorer.workers == workers == verifier._scorer.pool.workers
        with open_verifier("exact", workers=7) as verifier:
            assert verifier._scorer.workers == 7 and verifier._scorer.pool is None


def test_settings_at_their_ends():
    open_verifier("number", tolerance=0.0, workers=1, seconds=1e-9).close()
    for settings in ({"tolerance": 1.0}, {"tolerance": -0.1}, {"seconds": 0}, {"workers": 0}):
        with pytest.raises(BadInput, match="must be above 0"):
            open_verifier("number", **settings)


def test_what_needs_no_process_starts_none(monkeypatch):
    def broken(*_):
        raise WorkFailed("no process")

    monkeypatch.setattr(verify_pool, "_Worker", broken)
    pytest.importorskip("math_verify")
    with open_verifier("math") as verifier:
        scores = verifier(problems(["1/2", "1/2", "1/3"]), ["\\boxed{1/2}", "", "\\boxed{1/4}"])
        assert [(each.value, each.crashed) for each in scores] == [(1.0, False), (0.0, False), (0.0, True)]


def test_only_a_continuation_is_put_behind_what_it_continues():
    declared = "def f(x):\n    'Twice.'"
    continued = "\n    return 2 * x\n\n    # done\nprint(f(1))\n    more"
    assert module_of_tests._whole(continued, [declared]) == f"{declared}\n\n    return 2 * x\n\n    # done"
    assert module_of_tests._whole(continued, ["assert f(1) == 2"]) == continued
    alone = "y = 1\n    z"
    assert module_of_tests._whole(alone, [declared]) == alone == module_of_tests._whole(alone, [])
    assert module_of_tests._whole("", [declared]) == ""
