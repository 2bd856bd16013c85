"""Packages whose names are imported on first use, so that importing them costs nothing and an editor still sees them."""

import ast
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """__getattr__, __dir__ and __all__ of a package from the imports under its own `if TYPE_CHECKING:`.

    They are read from the source, so that what a type checker sees and what is imported at run time is one list. A name
    that is none of them may be a module of the package.
    """
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    home = {alias.name: str(node.module) for node in imports for alias in node.names}
    names = sorted(home)

    def __getattr__(name: str) -> Any:
        if name in home and home[name] != package:
            return getattr(importlib.import_module(home[name]), name)
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__, lambda: names, names
