"""A Python file of the user's own, which has been named by the user: run it, and see what it defines."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from equipoise.core.errors import BadInput, EquipoiseError, did_you_mean


def named_in_file(
    source: str, *, kind: str, what: str, example: str, offers: Callable[[Any], bool] = callable
) -> tuple[Any, Path, str]:
    """What FILE:NAME stands for, the file and the name.

    kind: as of `import_file`. what: it is called in errors, "a reward function". example: how it is given. offers: whether a
    value of the file may have been meant. Raises BadInput for another form, no such file or name, and a file that raises.
    """
    file, _, name = source.rpartition(":")
    path = Path(file)
    if not file or not name.isidentifier():
        bare = what.partition(" ")[2]
        raise BadInput(f"the {bare} is {source!r}, expected FILE:FUNCTION, for example {example}.")
    if not path.is_file():
        raise BadInput(f"there is no file {path} with {what} {name}.")
    try:
        module = import_file(path.resolve(), kind)
    except EquipoiseError:
        raise
    except (Exception, SystemExit) as error:
        raise BadInput(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        known = [known for known, value in vars(module).items() if offers(value)]
        raise BadInput(f"{path} has no {name!r}. {did_you_mean(name, known)}")
    return getattr(module, name), path, name


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
