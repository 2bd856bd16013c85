"""Python tests as a verifier: the program in an answer, run in the sandbox, tests in a process of their own.

Guarded against: a program that ends itself or everybody (sys.exit, os._exit, kill), prints a forged success, changes
`AssertionError`, `__eq__`, builtins, modules or files, reads the tests or the memory of what judges it, hangs, or
takes memory, disk, processes. It can do nothing for its score but give back values, which the tests compare in a
process that holds nothing of it (`verify_program`). Not guarded against: a program that knows the expected values
(tests that stand in the prompt, public tests learnt by heart); tests that the program may pass by what they leave to
it (`assert f(x)`); faults of the sandbox, and with unsafe=True, where there is none, a program that attacks the
machine.

A test may hand the program data of Python's own types (None, numbers, text, bytes, range, lists, tuples, sets, dicts
of these) and what the program itself made; from it come such data, its exceptions and handles to its objects, whose
attributes, items and methods are at hand. A test that does more (passes a function, catches an exception class of the
program's) fails.
"""

import ast
import json
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from equipoise.core import sandbox
from equipoise.core.errors import BadInput
from equipoise.data import verify_program

_FENCED = re.compile(
    r"^([ \t]*+)(`{3,}+|~{3,}+)[ \t]*+([\w+-]*+)[^\n]*+\n(.*?)(?:^[ \t]*+\2|\Z)", re.MULTILINE | re.DOTALL
)
_PYTHON = ("", "python", "python3", "py")
_PATIENCE = 4  # seconds of the clock for one of computing: other processes compute, too


def program_in(answer: str) -> str:
    """The program in an answer: its last fenced block of Python, or all of it without one."""
    blocks = [(indent, code) for indent, _, label, code in _FENCED.findall(answer) if label.lower() in _PYTHON]
    if not blocks:
        return answer
    indent, code = blocks[-1]
    return textwrap.dedent(code) if indent else code


def check_tests(golds: Sequence[str]) -> None:
    """Raises BadInput for texts that are no Python, or among which there is no test."""
    tests = 0
    for gold in golds:
        try:
            tests += verify_program.tests_something(ast.parse(gold))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise BadInput(f"the test {gold!r:.60} is no Python ({error}).") from None
    if not tests:
        raise BadInput("there is no test: expected Python with an assertion or a call at its top.")


def run_tests(
    answer: str, golds: Sequence[str], *, seconds: float, memory_bytes: int, unsafe: bool
) -> tuple[float, str]:
    """(share of the tests passed, why not all). seconds: of computing, for all tests of an answer together.

    golds: texts of Python. Each assertion at the top of one is a test; a text without any, but with a call at its top
    (`check(f)`), is one test; a text with neither is given to the program and the tests alike (imports, helpers, the
    declaration of a function), and an answer that begins with indented lines goes on where the last of these ends.
    """
    plan = {"program": _whole(program_in(answer), golds), "gold": list(golds), "seconds": seconds * _PATIENCE}
    limits = sandbox.Limits(
        seconds=seconds * _PATIENCE + 10, cpu_seconds=math.ceil(seconds) + 1, memory_bytes=memory_bytes
    )
    code = Path(verify_program.__file__).read_text(encoding="utf-8")
    finished = sandbox.python(code, stdin=json.dumps(plan), limits=limits, unsafe=unsafe)
    if not finished.succeeded or finished.truncated:
        return 0.0, f"the tests ended early: {finished.ended} {finished.returncode} {finished.stderr[-200:]}".strip()
    failures = json.loads(finished.stdout)["tests"]
    passed = sum(not failure for failure in failures)
    first = next((failure for failure in failures if failure), "")
    return passed / len(failures), first and f"{passed} of {len(failures)} tests passed: {first}"


def _whole(program: str, golds: Sequence[str]) -> str:
    """A program that only continues a declaration, with what it continues, without what follows the continuation."""
    given = [gold for gold in golds if not verify_program.tests_something(ast.parse(gold))]
    lines = program.split("\n")
    first = next((line for line in lines if line.strip()), "")
    if not given or not first[:1].isspace():
        return program
    ends = next((index for index, line in enumerate(lines) if line.strip() and not line[0].isspace()), len(lines))
    return "\n".join([given[-1], *lines[:ends]])
