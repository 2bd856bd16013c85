"""Draws random mutants of the code that decides results, runs the tests that cover each and shows those nobody noticed.

    python -m pip install cosmic-ray            # its mutation operators; no dependency of Equipoise
    python scripts/mutants.py                   # 50 mutants, seed 0: some ten minutes
    python scripts/mutants.py --only 7,19       # two of that draw again

A third of the sample each goes to judging, to the store and to the gradient rules. Within a third a place in the code is
drawn (every place has the same chance, however many mutants it has), then one of its mutants. Not drawn: what does not
compile; what differs only in annotations, in what an error says or in the `strict` of a zip, an assertion; another operator
for the slash that joins paths, which no test could miss. All work is done on a copy of the tree in a temporary folder. A
mutant is caught when a test fails or when the tests take five times as long as without it. The same seed, code and version
of cosmic-ray give the same draw. Exit code 1 when one survives.
"""

import argparse
import ast
import contextlib
import difflib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider

ROOT = Path(__file__).resolve().parent.parent
JUDGING = ("tests/study/test_judging.py", "tests/study/test_judging_matched.py")
STORE = ("tests/study/test_store.py", "tests/study/test_store_machine.py")
RULES = ("tests/unlearning/test_gradient_rules.py", "tests/training/test_two_gradients.py")
# What is mutated, by third of the sample, and the tests that have to notice.
SAMPLED = {
    "judging": {
        "src/equipoise/study/judging.py": JUDGING,
        "src/equipoise/study/effects.py": JUDGING,
        "src/equipoise/core/statistics.py": ("tests/core/test_statistics.py", *JUDGING),
    },
    "store": {
        "src/equipoise/study/store.py": (*STORE, "tests/study/test_results.py", "tests/study/test_run.py"),
        "src/equipoise/core/files.py": ("tests/core/test_files.py", "tests/core/test_state.py", *STORE),
    },
    "gradient rules": {
        "src/equipoise/training/gradients.py": RULES,
        "src/equipoise/unlearning/sago.py": RULES,
        "src/equipoise/unlearning/pcgrad.py": RULES,
        "src/equipoise/unlearning/blur.py": RULES,
        "src/equipoise/unlearning/gradient_sum.py": RULES,
    },
}


@dataclass(frozen=True)
class Mutant:
    """One changed file: the operator that changed it, the line, and the whole new text."""

    path: str
    operator: str
    line: int
    code: str

    def difference(self) -> str:
        before = (ROOT / self.path).read_text(encoding="utf-8").splitlines()
        lines = difflib.unified_diff(before, self.code.splitlines(), self.path, self.path, n=1, lineterm="")
        return "\n".join(lines)


def draw(number: int, seed: int) -> list[Mutant]:
    """`number` mutants, the thirds in the order of SAMPLED."""
    drawn: list[Mutant] = []
    for index, (third, files) in enumerate(SAMPLED.items()):
        rng = random.Random(f"{third} {seed}")  # a change in one third leaves the draw of the others as it was
        places = [place for path in files for place in _places(path)]
        rng.shuffle(places)
        valid = filter(None, (_mutant(path, line, rng.choice(ways)) for path, line, ways in places))
        share = number // len(SAMPLED) + (index < number % len(SAMPLED))
        drawn += [mutant for mutant, _ in zip(valid, range(share), strict=False)]
    return drawn


def _places(path: str) -> Iterator[tuple[str, int, list[tuple[str, int]]]]:
    """(path, line, ways) for each place in a file that an operator can change; a way is (operator, its n-th mutant)."""
    code = (ROOT / path).read_text(encoding="utf-8")
    tree = get_ast(code)
    joins_paths = "from pathlib import Path" in code  # such a file divides nothing else
    provider = OperatorProvider()
    places: dict[tuple, list[tuple[str, int]]] = defaultdict(list)
    for name in sorted(provider):
        if provider[name].arguments() or (joins_paths and name.startswith("ReplaceBinaryOperator_Div_")):
            continue  # the former ask which variable causes which
        operator = provider[name]()
        positions = (position for node in ast_nodes(tree) for position in operator.mutation_positions(node))
        for occurrence, position in enumerate(positions):
            places[position].append((name, occurrence))
    for position in sorted(places):
        yield path, position[0][0], places[position]


def _mutant(path: str, line: int, way: tuple[str, int]) -> Mutant | None:
    """None when it is no other program: it does not compile, or says something else and does the same."""
    name, occurrence = way
    before = (ROOT / path).read_text(encoding="utf-8")
    after = mutate_code(before, OperatorProvider()[name](), occurrence)
    try:
        different = after is not None and _behaviour(after) != _behaviour(before)
    except SyntaxError:
        return None
    return Mutant(path, name, line, after) if different else None


def _behaviour(code: str) -> str:
    """The syntax tree without annotations, the texts of errors and the `strict` of a zip."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        elif isinstance(node, ast.Call):
            node.keywords = [each for each in node.keywords if each.arg != "strict"]
    compile(code, "mutant", "exec")
    return ast.dump(tree)


class Copy:
    """A copy of the tree in which the tests run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("src", "tests", "benchmarks", "examples"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(ROOT / "pyproject.toml", folder)
        # Byte code is told apart by size and second: a mutant of the same length could meet its predecessor's.
        changed = {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        self.environment = {**os.environ, **changed}
        self.seconds: dict[tuple[str, ...], float] = {}

    def check(self, tests: tuple[str, ...]) -> None:
        """The tests pass without a mutant and use the copy; remembers how long they took."""
        command = [sys.executable, "-c", "import equipoise; print(equipoise.__file__)"]
        found = subprocess.check_output(command, cwd=self.folder, env=self.environment, text=True).strip()
        if not Path(found).is_relative_to(self.folder):
            sys.exit(f"The tests would import {found} instead of the copy in {self.folder}.")
        begun = time.monotonic()
        failed = self.test(tests, limit=600)
        if failed:
            sys.exit(f"Fails without a mutant: {failed}")
        self.seconds[tests] = time.monotonic() - begun

    def try_out(self, mutant: Mutant, tests: tuple[str, ...]) -> str:
        """What noticed the mutant, "" when nothing did."""
        original = ROOT / mutant.path
        target = self.folder / mutant.path
        target.write_text(mutant.code, encoding="utf-8")
        try:
            return self.test(tests, limit=5 * self.seconds[tests] + 30)
        finally:
            shutil.copy2(original, target)

    def test(self, tests: tuple[str, ...], limit: float) -> str:
        """The first failure, "" when all pass."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", *tests]
        with (self.folder / "output.txt").open("w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                status = process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                return f"the limit of {limit:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):  # what a broken test has left behind ends with it
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0)
            named = re.search(r"^(?:FAILED|ERROR) (\S+)", output.read(), re.MULTILINE)
        return "" if status == 0 else named[1] if named else f"exit code {status}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=50, help="mutants to draw (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--only", default="", help="numbers of the draw to try, as in 7,19 (all)")
    parser.add_argument("--list", action="store_true", help="show the draw and try nothing")
    arguments = parser.parse_args()
    numbered = dict(enumerate(draw(arguments.number, arguments.seed), start=1))
    if arguments.only:
        numbered = {number: numbered[number] for number in map(int, arguments.only.split(","))}
    if arguments.list:
        for number, mutant in numbered.items():
            print(f"[{number}] {mutant.operator}\n{mutant.difference()}")
        return 0
    tests_of = {path: tests for files in SAMPLED.values() for path, tests in files.items()}
    survivors: list[int] = []
    with tempfile.TemporaryDirectory(prefix="equipoise-mutants-") as folder:
        copy = Copy(Path(folder))
        for tests in dict.fromkeys(tests_of[mutant.path] for mutant in numbered.values()):
            copy.check(tests)
        for number, mutant in numbered.items():
            caught_by = copy.try_out(mutant, tests_of[mutant.path])
            fate = f"caught by {caught_by}" if caught_by else "SURVIVED"
            print(f"[{number}] {mutant.path}:{mutant.line} {mutant.operator}: {fate}", flush=True)
            survivors += [] if caught_by else [number]
    for number in survivors:
        print(f"\n[{number}] {numbered[number].operator}\n{numbered[number].difference()}")
    print(f"\n{len(numbered) - len(survivors)} of {len(numbered)} caught (seed {arguments.seed}).")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
