"""What an argument means that a caller leaves out is part of the product: defaults are compared with a kept table.

A changed default shows as one line of difference in review. To accept it: python tests/test_defaults.py --write
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "defaults.txt"


def defaults() -> Iterator[str]:
    """One line a public function or class: its name and every default in it, in the order of the source."""
    package = ROOT / "src" / "equipoise"
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        yield from _within(ast.parse(path.read_text(encoding="utf-8")), module)


def _within(holder: ast.AST, name: str) -> Iterator[str]:
    for node in getattr(holder, "body", ()):
        if isinstance(node, ast.If | ast.Try):
            yield from _within(node, name)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            fields = [
                f"{ast.unparse(field.target)}={_text(field.value)}"
                for field in node.body
                if isinstance(field, ast.AnnAssign) and field.value is not None
            ]
            if fields:
                yield f"{name}.{node.name}: {', '.join(fields)}"
            yield from _within(node, f"{name}.{node.name}")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(node.name):
            positional = [*node.args.posonlyargs, *node.args.args]
            behind = positional[len(positional) - len(node.args.defaults) :]
            pairs = [*zip(behind, node.args.defaults, strict=True)]
            pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            if given := [f"{argument.arg}={_text(value)}" for argument, value in pairs if value is not None]:
                yield f"{name}.{node.name}: {', '.join(given)}"


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__call__")


def _text(value: ast.expr) -> str:
    """Without descriptions, which are prose."""
    for node in ast.walk(value):
        if isinstance(node, ast.Call):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "description"]
    return ast.unparse(value)


def test_no_default_changed_unnoticed():
    assert list(defaults()) == TABLE.read_text(encoding="utf-8").splitlines(), (
        "if that is meant: python tests/test_defaults.py --write"
    )


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    TABLE.write_text("".join(f"{line}\n" for line in defaults()), encoding="utf-8")
