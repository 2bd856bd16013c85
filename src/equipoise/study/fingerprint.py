"""What a stored run is a result of: the study, the arm, its settings and seed, and the code that it reaches.

Code counts by its syntax trees, so that comments and formatting change nothing. Docstrings of this package do not count
either; those of a study of one's own and the files beside it do, since a tool's docstring stands in the prompt. Code is
found without importing: a static walk over import statements, those inside functions included. The scales themselves,
the command line and what only draws (pages, plots, progress) are left out: they change no measurement.
"""

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from equipoise.core.registry import Registry

LEFT_OUT = (
    "equipoise.study",
    "equipoise.cli",
    "equipoise.core.axes",
    "equipoise.core.columns",
    "equipoise.core.marks",
    "equipoise.core.page",
    "equipoise.core.plots",
    "equipoise.core.progress",
)
VERSIONED = ("torch", "transformers")
PACKAGE = "equipoise"


@dataclass(frozen=True)
class Code:
    """`digest` of the reached code and versions; `modules` reached in this package; `foreign`: other imports."""

    digest: str
    modules: tuple[str, ...]
    foreign: frozenset[str]
    versions: dict[str, str]


# Safe to import before a fork, and slow enough to be worth it.
_PRELOADED = ("torch", "transformers", "accelerate", "peft", "tokenizers", "safetensors", "scipy", "numpy", "pydantic")


def preload(code: Code) -> list[str]:
    """What a server that forks runs imports once, as MODULE or MODULE:NAME: the reached modules and what they take."""
    names = sorted(each for each in code.foreign if each.split(".")[0] in _PRELOADED)
    foreign = [each for name in names for each in (name, ":".join(name.rsplit(".", 1)))]
    always = ("equipoise.study.run", "equipoise.core.state", "numpy.random", "pyarrow.parquet", "safetensors.numpy")
    return [*foreign, *code.modules, *always]


def fingerprint(**parts: Any) -> str:
    """sha256 (hex) over JSON parts, the digest of the code among them; equal for equal parts in any order."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@cache
def code_of(source: Path) -> Code:
    """The code that a study file reaches; computed once a process."""
    reached, foreign = _walk(source.resolve())
    versions = {name: _major_minor(name) for name in VERSIONED}
    digest = hashlib.sha256(json.dumps(versions, sort_keys=True).encode())
    for name, path in sorted(reached.items()):
        digest.update(f"{name}\0{_tree_digest(path, docstrings=_name_in_package(path) is None)}\0".encode())
    modules = tuple(sorted(name for name in reached if name.split(".")[0] == PACKAGE))
    return Code(digest.hexdigest(), modules, frozenset(foreign), versions)


def _walk(source: Path) -> tuple[dict[str, Path], set[str]]:
    """Reached files by module name, and the dotted names of everything else."""
    start = _name_in_package(source) or "<study>"  # no name of a file beside it
    reached: dict[str, Path] = {start: source}
    foreign: set[str] = set()
    queue = [start]
    while queue:
        name = queue.pop()
        path = reached[name]
        for target in _imports(name, path):
            resolved = _resolve(target, source.parent)
            if not resolved and target.split(".")[0] != PACKAGE:
                foreign.add(target)
            for module, file in resolved.items():
                if module not in reached and not module.startswith(LEFT_OUT):
                    reached[module] = file
                    queue.append(module)
    return reached, foreign


def _imports(name: str, path: Path) -> Iterator[str]:
    """Dotted names that a file imports; for `from a import b` both a and a.b, and where a lazy package has b.

    A file with a registry can come to every module that registers there.
    """
    tree = _parse(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                yield from _lazy(alias.name, None)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            for alias in node.names:
                yield f"{base}.{alias.name}" if base else alias.name
                yield from _lazy(base, alias.name)
                yield from _lazy(f"{base}.{alias.name}", None)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Registry") and len(node.args) == 2:
            yield from Registry(*map(ast.literal_eval, node.args)).modules.values()


def _lazy(package: str, wanted: str | None) -> Iterator[str]:
    """Modules that a package imports on first use, from its `if TYPE_CHECKING` block; all for None."""
    path = _package_path(package)
    if path is None or path.name != "__init__.py":
        return
    tree = _parse(path)
    if "__getattr__" not in {name for node in ast.walk(tree) for name in _defined(node)}:
        return
    for block in tree.body:
        if isinstance(block, ast.If) and _is_type_checking(block.test):
            for node in block.body:
                if isinstance(node, ast.ImportFrom):
                    names = [each.name for each in node.names if wanted in (None, each.name)]
                    yield from (f"{_absolute(node, package)}.{name}" for name in names)


def _defined(node: ast.AST) -> list[str]:
    """The names that a definition or an assignment gives."""
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    return [node.id] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else []


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            for child in node.orelse:
                yield child
                yield from _executed(child)
        else:
            yield node
            yield from _executed(node)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    base = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _resolve(target: str, folder: Path) -> dict[str, Path]:
    """Files behind a dotted name with the packages on the way: of this package, or beside the study file."""
    parts = target.split(".")
    files: dict[str, Path] = {}
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        path = _package_path(name) if parts[0] == PACKAGE else _file(folder, parts[:count])
        if path is not None:
            files[name] = path
    return files


@cache
def _root() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{PACKAGE} is not importable from itself")
    return Path(spec.origin).resolve().parent.parent


@cache
def _package_path(name: str) -> Path | None:
    return _file(_root(), name.split(".")) if name.split(".")[0] == PACKAGE else None


def _file(folder: Path, parts: list[str]) -> Path | None:
    base = folder.joinpath(*parts)
    for path in (base / "__init__.py", base.with_name(base.name + ".py")):
        if path.is_file():
            return path
    return None


def _name_in_package(source: Path) -> str | None:
    if not source.is_relative_to(_root() / PACKAGE):
        return None
    parts = source.relative_to(_root()).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), filename=str(path))


@cache
def _tree_digest(path: Path, docstrings: bool) -> str:
    """Digest of a file's syntax tree, with or without docstrings."""
    return hashlib.sha256(_dump(_parse(path), docstrings).encode()).hexdigest()


def _dump(node: Any, docstrings: bool) -> str:
    """As ast.dump, if wanted without docstrings, and without empty fields, which differ between versions of Python."""
    if isinstance(node, ast.AST):
        fields = []
        for name, value in ast.iter_fields(node):
            documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            if name == "body" and documented and not docstrings:
                value = value[1:] if ast.get_docstring(node, clean=False) is not None else value
            if value is not None and value != [] and name not in ("kind", "type_comment"):
                fields.append(f"{name}={_dump(value, docstrings)}")
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(_dump(each, docstrings) for each in node)}]"
    return repr(node)


def _major_minor(package: str) -> str:
    try:
        return ".".join(version(package).split(".")[:2])
    except PackageNotFoundError:
        return "absent"
