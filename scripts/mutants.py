"""Draws random mutants in every room of the house, runs the tests that execute each line, and shows those nobody noticed.

    python -m pip install cosmic-ray pytest-cov     # its mutation operators, and which test runs which line
    python scripts/mutants.py --map                 # runs the quick tests once under coverage: some ten minutes
    python scripts/mutants.py                       # 50 mutants, seed 0: some fifteen minutes
    python scripts/mutants.py --only 7,19           # two of that draw again

A room is a package of `equipoise`; the sample is spread over the rooms by turns. Within a room a place in the code is drawn
(every place has the same chance, however many mutants it has), then one of its mutants. Not drawn: what does not compile;
what differs only in annotations, in how arguments may be given, in what an error says, the `strict` of a zip, the `frozen`
of a dataclass or the `indent` of JSON; an assertion; another operator for the slash that joins paths or the bar that joins
types, which no test could miss; the product of two comparisons for both of them; a size of ten or more that somebody
chose, by one (a constant of a module, a default batch size); what draws pages, bars, tables and figures, whose tests are
people's eyes; and the mutants of `equivalent_mutants.txt`, each of which somebody looked at and found to do the same, for
the reason given there: in the place of one the next of its room is drawn. An entry holds the texts of the changed line; one
whose line is no longer there is an error: mend it or delete it. A survivor that is listed counts all the same in the draw
that showed it.

All work is done on a copy of the tree in a temporary folder. A mutant is caught when a test fails, when the tests take five
times as long as without it, or when the linter or the type checker refuses it, as in `.ci/run`. The same seed, code and
version of cosmic-ray give the same draw. Exit code 1 when one survives.

The libraries are imported once and every mutant meets its tests in a child of that process, which imports Equipoise anew.
"""

import argparse
import ast
import contextlib
import difflib
import hashlib
import importlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "equipoise"
LISTED = ROOT / "scripts" / "equivalent_mutants.txt"
MAP = ROOT / "equipoise-out" / "mutants"  # where the map of lines and tests is kept
ROOMS = tuple(sorted(file.parent.name for file in SOURCE.glob("*/__init__.py")))
# Drawn for people's eyes, or declarations without behaviour of their own.
LEFT_OUT = re.compile(
    r"(page|plots|report|index_page|display|progress|summary_text|doctor|health|__init__|__main__)\.py$"
)
LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "pydantic",
    "cyclopts",
    "numpy",
    "scipy.stats",
    "pyarrow.parquet",
)
LIBRARIES += (
    "sklearn.metrics",
    "hypothesis",
    "pytest",
    "rich.progress",
    "altair",
    "onnx",
    "inspect_ai.model",
    "tokenizers",
)
CHOSEN = 10  # a constant that is larger is a size that somebody chose: one more or less is no fault
ALWAYS = ("tests/test_defaults.py",)  # reads sources, so that no line that runs is tied to it
DECORATED = ("tests/core/test_closed_words.py",)  # calls whatever `closed` is written over, as the 40 s seldom come to
DECLARED = ("tests/studies/test_declarations.py",)  # builds studies, whose modules an earlier test has imported already
SECONDS = 40.0  # of tests, without the mutant, that run a mutant's line: those nearest to its file first


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

    def keys(self) -> set[tuple[str, str, str]]:
        """Path, text removed, text added: of whole lines, blanks evened out; also with the line before the one removed."""
        lines = self.difference().splitlines()[3:]
        removed, added = (" ".join(" ".join(each[1:] for each in lines if each[0] == sign).split()) for sign in "-+")
        before = " ".join(lines[0].split()) if lines[0][0] == " " else ""
        return {(self.path, removed, added), (self.path, f"{before} {removed}", added)}


def draw(number: int, seed: int, of: Sequence[str]) -> list[Mutant]:
    """`number` mutants, one a room by turns."""
    equivalent = equivalents(LISTED.read_text(encoding="utf-8"))
    rooms = {room: _drawn(room, seed, equivalent) for room in of}
    drawn: list[Mutant] = []
    while len(drawn) < number:
        drawn += [mutant for its in rooms.values() if (mutant := next(its, None))]
    return drawn[:number]


def _drawn(room: str, seed: int, equivalent: set[tuple[str, str, str]]) -> Iterator[Mutant]:
    rng = random.Random(f"{room} {seed}")  # a change in one room leaves the draw of the others as it was
    files = sorted(path for path in (SOURCE / room).rglob("*.py") if not LEFT_OUT.search(path.name))
    places = [place for path in files for place in _places(path.relative_to(ROOT).as_posix())]
    rng.shuffle(places)
    for path, line, ways in places:
        mutant = _mutant(path, line, rng.choice(ways))
        if mutant and equivalent.isdisjoint(mutant.keys()):
            yield mutant


def equivalents(text: str) -> set[tuple[str, str, str]]:
    """Keys of what `equivalent_mutants.txt` lists, an empty line between two entries.

    Ends the program, naming the line, where an entry is none or the line that it removes does not stand in its file once.
    """
    keys, number = set(), 1
    for block in text.rstrip("\n").split("\n\n"):
        if entry := re.fullmatch(r"(src/\S+)\n(?:  (.+)\n)?- (.+)((?:\n\+.*)+)\n[^-+#\s].+", block):
            path, before, removed = entry[1], *(" ".join((entry[place] or "").split()) for place in (2, 3))
            code = (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).is_file() else ""
            lines = [" ".join(line.split()) for line in code.splitlines()]
            if before:
                lines, removed = [f"{one} {two}" for one, two in itertools.pairwise(lines)], f"{before} {removed}"
            if (times := lines.count(removed)) != 1:
                sys.exit(f"{LISTED.name}:{number + 1}: {path} has this line {times} times, not once; mend the entry.")
            keys |= {(path, removed, " ".join(added[1:].split())) for added in entry[4].split("\n")[1:]}
        elif not block.startswith("#"):
            expected = "a path, '- line removed', '+ line added' and the reason, a line each"
            sys.exit(f"{LISTED.name}:{number}: expected {expected}.")
        number += block.count("\n") + 2
    return keys


def _places(path: str) -> list[tuple[str, int, list[tuple[str, int]]]]:
    """(path, line, ways) for each place in a file that an operator can change; a way is (operator, its n-th mutant).

    Kept beside the map, since finding them takes a second a file.
    """
    code = (ROOT / path).read_text(encoding="utf-8")
    kept = MAP / "places" / f"{hashlib.sha256(f'{path} {code}'.encode()).hexdigest()}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(list(_find_places(path, code))), encoding="utf-8")
    return [(file, line, [(name, n) for name, n in ways]) for file, line, ways in json.loads(kept.read_text())]


def _find_places(path: str, code: str) -> Iterator[tuple[str, int, list[tuple[str, int]]]]:
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.operators.provider import OperatorProvider

    tree = get_ast(code)
    joins_paths = "from pathlib import Path" in code  # such a file divides nothing else
    provider = OperatorProvider()
    places: dict[tuple, list[tuple[str, int]]] = defaultdict(list)
    for name in sorted(provider):
        meaningless = joins_paths and name.startswith("ReplaceBinaryOperator_Div_")
        if provider[name].arguments() or meaningless or name.startswith("ReplaceBinaryOperator_BitOr_"):
            continue  # the first ask which variable causes which; bars join types, or dicts that no other operator joins
        operator = provider[name]()
        positions = (position for node in ast_nodes(tree) for position in operator.mutation_positions(node))
        for occurrence, position in enumerate(positions):
            places[position].append((name, occurrence))
    for position in sorted(places):
        yield path, position[0][0], places[position]


def _mutant(path: str, line: int, way: tuple[str, int]) -> Mutant | None:
    """None when it is no other program: it does not compile, or says something else and does the same."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.operators.provider import OperatorProvider

    name, occurrence = way
    before = (ROOT / path).read_text(encoding="utf-8")
    try:
        after = mutate_code(before, OperatorProvider()[name](), occurrence)
        different = after is not None and _behaviour(after) != _behaviour(before)
    except (SyntaxError, AttributeError):  # the latter is cosmic-ray's own, of `except module.Error`
        return None
    return Mutant(path, name, line, str(after)) if different else None


def _behaviour(code: str) -> str:
    """The syntax tree without what the module says is not drawn."""
    tree = ast.parse(code)
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]).isupper():
            for node in ast.walk(statement.value):
                if isinstance(node, ast.Constant) and type(node.value) is int and node.value >= CHOSEN - 1:
                    node.value = CHOSEN
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):  # by position or by name alone: whoever calls a function knows which
            named = [*node.posonlyargs, *node.args][::-1], node.defaults[::-1]
            for argument, default in [*zip(*named, strict=False), *zip(node.kwonlyargs, node.kw_defaults, strict=True)]:
                if argument.arg == "batch_size" and isinstance(default, ast.Constant):
                    default.value = CHOSEN
            every = [*node.posonlyargs, *node.args, *node.kwonlyargs]
            node.posonlyargs, node.args, node.kwonlyargs = [], every, []
            node.defaults, node.kw_defaults = [*node.defaults, *filter(None, node.kw_defaults)], []
        if isinstance(node, ast.If) and ast.unparse(node.test).removeprefix("not ") == "TYPE_CHECKING":
            node.test = ast.Constant(None)
        elif isinstance(node, ast.Assert):
            node.test, node.msg = ast.Constant(True), None
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.Mult):
            if _is_truth(node.left) and _is_truth(node.right):
                node.op = ast.BitAnd()
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.Compare) and isinstance(node.comparators[0], ast.Constant):
            if isinstance(node.comparators[0].value, str | int) and isinstance(node.ops[0], ast.Is | ast.IsNot):
                node.ops[0] = ast.Eq() if isinstance(node.ops[0], ast.Is) else ast.NotEq()  # Python warns of it
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        elif isinstance(node, ast.Call):
            # Whether a dataclass can be changed shows in no result, how text is laid out in none that is asserted.
            shape = {"frozen", "slots"} if ast.unparse(node.func) == "dataclass" else {"strict", "indent", "bar_width"}
            node.keywords = [each for each in node.keywords if each.arg not in shape]
    compile(code, "mutant", "exec")
    return ast.dump(tree)


def _is_truth(node: ast.expr) -> bool:
    """Whether it is a comparison, or several joined: of arrays of True and False the product is what both say."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return _is_truth(node.operand)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr | ast.Mult):
        return _is_truth(node.left) and _is_truth(node.right)
    return isinstance(node, ast.Compare)


class Running:
    """Which tests run a line, and how long each takes: from one run of the quick tests under coverage."""

    def __init__(self) -> None:
        if not (MAP / "coverage").exists():
            sys.exit("There is no map of lines and tests yet: python scripts/mutants.py --map")
        self.seconds: dict[str, float] = json.loads((MAP / "seconds.json").read_text(encoding="utf-8"))
        self._data = sqlite3.connect(MAP / "coverage")
        listed = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "not slow", "--ignore=tests/parity"]
        lines = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
        self.there = {line for line in lines if "::" in line}  # the map may be older

    def of(self, mutant: Mutant) -> list[str]:
        """Tests that run the mutant's line, or else its file, those of its own test file first; then others about it."""
        from coverage.numbits import numbits_to_nums

        rows = self._data.execute(
            "select context.context, line_bits.numbits from line_bits join file on file.id = line_bits.file_id "
            "join context on context.id = line_bits.context_id where file.path like ?",
            (f"%/{mutant.path}",),
        ).fetchall()
        names: dict[str, set[int]] = defaultdict(set)
        for name, bits in rows:
            if name:
                names[name.rpartition("|")[0] or name].update(numbits_to_nums(bits))
        names = {name: its for name, its in names.items() if name in self.there}
        lines = _lines(mutant.path, mutant.line)
        running = [name for name, its in names.items() if lines is None or its & lines] or list(names)
        room, stem = Path(mutant.path).parent.name, Path(mutant.path).stem

        def distance(name: str) -> tuple[bool, bool, float]:
            return stem not in name, f"tests/{room}/" not in name, self.seconds.get(name, 1.0)

        chosen = self._within(SECONDS, sorted(running, key=distance))
        # What an import, a cache or a fixture made is noted of whichever test came first: others may look at it, too.
        about = self._about(mutant.path)
        others = (name for name in self.there.difference(chosen) if name.partition("::")[0] in about)
        always = ALWAYS + DECLARED * (room == "studies") + DECORATED * (mutant.operator == "RemoveDecorator")
        return [*always, *chosen, *self._within(SECONDS / 2, sorted(others, key=distance))]

    def _about(self, path: str) -> set[str]:
        """The test files that are named after a module, or name it."""
        package, _, stem = path.removeprefix("src/").removesuffix(".py").replace("/", ".").rpartition(".")
        named = re.compile(rf"{re.escape(package)}(?:\.| import .*\b){stem}\b")
        return {
            file
            for file in {name.partition("::")[0] for name in self.there}
            if f"/test_{stem}" in file or named.search((ROOT / file).read_text(encoding="utf-8"))
        }

    def _within(self, seconds: float, names: Sequence[str]) -> list[str]:
        """The first of these tests that take so long together, one at least."""
        chosen: list[str] = []
        for name in names:
            if (seconds := seconds - self.seconds.get(name, 1.0)) < 0 and chosen:
                break
            chosen.append(name)
        return chosen


def _lines(path: str, line: int) -> set[int] | None:
    """The lines whose running shows that a line matters: its statement's first, and for the head of a function its body.

    None for what a module or a class does once, when it is imported: that is noted of whichever test came first.
    """
    node: ast.AST = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found: set[int] | None = None
    inside = False
    while True:
        holding = [each for each in _statements(node) if _first(each) <= line <= (each.end_lineno or 0)]
        if not holding:
            return found
        node = holding[0]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = True
            if line < node.body[0].lineno:
                return set(range(node.body[0].lineno, (node.end_lineno or 0) + 1))
        found = {line, node.lineno} if inside else None


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements directly within a node, also those of an except or a case."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        else:
            yield from _statements(child)


def _first(statement: ast.stmt) -> int:
    return min([statement.lineno, *(each.lineno for each in getattr(statement, "decorator_list", ()))])


def make_map() -> None:
    """Run the quick tests once, with the test as coverage's context."""
    MAP.mkdir(parents=True, exist_ok=True)
    report = MAP / "durations.xml"
    configuration = MAP / "coveragerc"
    configuration.write_text(f"[run]\nsource = {SOURCE}\ndata_file = {MAP / 'coverage'}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-n", "2", "--ignore=tests/parity"]
    command += [f"--cov={SOURCE}", "--cov-context=test", f"--cov-config={configuration}", "--cov-report="]
    subprocess.run(
        [*command, f"--junit-xml={report}"], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    import xml.etree.ElementTree as ElementTree  # of a file that pytest has just written here

    seconds = {}
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.attrib["classname"].replace(".", "/")
        seconds[f"{file}.py::{case.attrib['name']}"] = float(case.attrib["time"])
    (MAP / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


class Copy:
    """A copy of the tree in which the tests run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("src", "tests", "benchmarks", "examples", "docs", "scripts"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "AGENTS.md", "CHANGELOG.md", "Makefile"):
            shutil.copy2(ROOT / name, folder)
        # Byte code is told apart by size and second: a mutant of the same length could meet its predecessor's.
        changed = {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        self.environment = {**os.environ, **changed}
        command = [sys.executable, "-c", "import equipoise; print(equipoise.__file__)"]
        found = subprocess.check_output(command, cwd=folder, env=self.environment, text=True).strip()
        if not Path(found).is_relative_to(folder):
            sys.exit(f"The tests would import {found} instead of the copy in {folder}.")

    def try_out(self, mutant: Mutant, tests: list[str], seconds: float) -> str:
        """What noticed the mutant, "" when nothing did: a test, or else linter and types, which `.ci/run` asks, too."""
        target = self.folder / mutant.path
        target.write_text(mutant.code, encoding="utf-8")
        try:
            return self.test(tests, limit=5 * seconds + 60) or self.check(mutant.path)
        finally:
            shutil.copy2(ROOT / mutant.path, target)

    def test(self, tests: list[str], limit: float) -> str:
        """The first failure, "" when all pass."""
        output = self.folder / "output.txt"
        child = os.fork()
        if child == 0:
            os._exit(self._run(tests, output))
        deadline = time.monotonic() + limit
        while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):  # what a broken test has left behind ends with it
            os.killpg(child, signal.SIGKILL)
        if not ended[0]:
            os.waitpid(child, 0)
            return f"the limit of {limit:.0f} s"
        status = os.waitstatus_to_exitcode(ended[1])
        named = re.search(r"^(?:FAILED|ERROR) (\S+)", output.read_text(encoding="utf-8"), re.MULTILINE)
        return "" if status == 0 else named[1] if named else f"exit code {status}"

    def check(self, path: str) -> str:
        """The first fault, not of style, that linter or type checker find in a file, "" when they find none."""
        beside = Path(sys.executable).parent
        for command in (
            ["ruff", "check", "--select=F", "--output-format=concise"],
            ["basedpyright", "--pythonpath", sys.executable],
        ):
            command = [str(beside / command[0]), *command[1:], path]
            checked = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
            if finding := re.search(rf"{re.escape(Path(path).name)}:\d+:\d+(?:: | - error: )(.+)", checked.stdout):
                return f"{Path(command[0]).name}: {finding[1]}"
        return ""

    def _run(self, tests: list[str], output: Path) -> int:
        """The tests, in a child that has imported nothing of Equipoise yet; pytest's exit code."""
        import pytest

        os.setsid()
        os.chdir(self.folder)
        os.environ.update(self.environment)
        sys.path.insert(0, str(self.folder / "src"))
        sys.dont_write_bytecode = True
        with output.open("w", encoding="utf-8") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        return int(pytest.main(["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=50, help="mutants to draw (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--only", default="", help="numbers of the draw to try, as in 7,19 (all)")
    parser.add_argument("--room", choices=ROOMS, action="append", help="draw from this room alone; may be repeated")
    parser.add_argument("--list", action="store_true", help="show the draw and try nothing")
    parser.add_argument("--map", action="store_true", help="run the quick tests once and note which runs which line")
    arguments = parser.parse_args()
    if arguments.map:
        make_map()
        return 0
    numbered = dict(enumerate(draw(arguments.number, arguments.seed, arguments.room or ROOMS), start=1))
    if arguments.only:
        numbered = {number: numbered[number] for number in map(int, arguments.only.split(","))}
    if arguments.list:
        for number, mutant in numbered.items():
            print(f"[{number}] {mutant.operator}\n{mutant.difference()}")
        return 0
    running = Running()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert not any(name.partition(".")[0] == "equipoise" for name in sys.modules), (
        "Equipoise would not be imported anew"
    )
    survivors: list[int] = []
    with tempfile.TemporaryDirectory(prefix="equipoise-mutants-") as folder:
        copy = Copy(Path(folder))
        for number, mutant in numbered.items():
            tests = running.of(mutant)
            seconds = sum(running.seconds.get(name, 1.0) for name in tests)
            caught_by = copy.try_out(mutant, tests, seconds)
            fate = f"caught by {caught_by}" if caught_by else "SURVIVED"
            print(f"[{number}] {mutant.path}:{mutant.line} {mutant.operator}: {fate}", flush=True)
            survivors += [] if caught_by else [number]
    for number in survivors:
        print(f"\n[{number}] {numbered[number].operator}\n{numbered[number].difference()}")
    print(f"\n{len(numbered) - len(survivors)} of {len(numbered)} caught (seed {arguments.seed}).")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
