"""A Python file of the user's own, which has been named by the user: run it, and see what it defines."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from equipoise.core.errors import BadInput


def import_file(path: Path, kind: str) -> ModuleType:
    """Import a user's file as Python would run it: its neighbours can be imported. kind: what it is for, in its name.

    Raises BadInput for what is no Python file, and whatever the file raises.
    """
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = f"equipoise_{kind}_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
