"""Finds studies: the files of `equipoise.studies`, entry points of that group, and a user's own file.

A plug-in that cannot be imported is known by its name and says why when it is asked for. Two studies of one name are an
error.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from equipoise.core.errors import BadInput, EquipoiseError, did_you_mean
from equipoise.core.user_file import import_file
from equipoise.study.declare import Declaration

GROUP = "equipoise.studies"


@dataclass(frozen=True)
class FoundStudy:
    """A name and what stands behind it: a declaration, or the reason why there is none. `origin`: for people."""

    name: str
    origin: str
    declaration: Declaration | None
    problem: Exception | None = None


@cache
def found() -> dict[str, FoundStudy]:
    """Everything that is installed, by name, sorted. Raises BadInput when two studies have one name."""
    everything = [*_packaged(), *_plugged_in()]
    by_name: dict[str, FoundStudy] = {}
    for each in everything:
        if each.name in by_name:
            raise BadInput(
                f"Two studies are called {each.name!r}: {by_name[each.name].origin} and {each.origin}. "
                "Rename or remove one."
            )
        by_name[each.name] = each
    return dict(sorted(by_name.items()))


def names() -> list[str]:
    """Names of all installed studies that can be loaded."""
    return [name for name, each in found().items() if each.declaration is not None]


def systems() -> dict[str, list[str]]:
    """The systems that are weighed, each with its studies, its first one before the further ones.

    Raises BadInput for a study of a system that has no study of its own name: it would appear nowhere.
    """
    by_system: dict[str, list[str]] = {}
    for name in sorted(names(), key=lambda name: (load(name).system != name, name)):
        system = load(name).system
        if name != system and system not in by_system:
            raise BadInput(
                f"The study {name!r} is of the system {system!r}, which no study is called: name one that is."
            )
        by_system.setdefault(system, []).append(name)
    return by_system


def load(reference: str) -> Declaration:
    """The study of that name, or of a file: `./mine.py`, or `./mine.py:name` where it declares several.

    Raises BadInput: unknown (with the nearest names), no such file, or broken (with the reason).
    """
    path, _, name = reference.partition(".py:")
    if reference.endswith(".py") or name:
        return _from_file(Path(path if path.endswith(".py") else path + ".py"), name)
    if reference in found():
        each = found()[reference]
        if each.declaration is None:
            raise BadInput(
                f"The study {reference!r} ({each.origin}) cannot be loaded: {_reason(each.problem)}"
            ) from each.problem
        return each.declaration
    raise BadInput(
        f"There is no study {reference!r}. {did_you_mean(reference, found())} "
        "A study of your own is named by its file: ./mine.py"
    )


def declared(name: str, folder: Path) -> Declaration:
    """The installed study that a stored result is of; a name in a folder never imports a file that is not installed.

    Raises BadInput where none is called so, saying how to name the file.
    """
    if name in found():
        return load(name)
    raise BadInput(
        f"{folder} holds results of {name!r}, which is no installed study. If it comes from a file of yours, name it: "
        f"--study ./FILE.py (a file that is named runs, so look into one that somebody sent)."
    )


def reference(declaration: Declaration) -> str:
    """What `load` must be given in another process to find this study."""
    each = found().get(declaration.name)
    if each is not None and each.declaration is declaration:
        return declaration.name
    return f"{declaration.source.resolve()}:{declaration.name}"


def _packaged() -> Iterable[FoundStudy]:
    for module in pkgutil.iter_modules(importlib.import_module(GROUP).__path__):
        name = f"{GROUP}.{module.name}"
        try:
            declared = _declared(importlib.import_module(name))
        except Exception as error:
            yield FoundStudy(module.name.replace("_", "-"), name, None, error)
        else:
            yield from (FoundStudy(each.name, name, each) for each in declared)


def _plugged_in() -> Iterable[FoundStudy]:
    for point in entry_points(group=GROUP):
        origin = f"entry point {point.name} = {point.value}"
        try:
            loaded = point.load()
            declared = _declared(loaded) if isinstance(loaded, ModuleType) else [loaded]
            for each in declared:
                if not isinstance(each, Declaration):
                    raise BadInput(f"{point.value} is a {type(each).__name__}, not a study (decorate it with @study).")
        except Exception as error:
            yield FoundStudy(point.name, origin, None, error)
        else:
            yield from (FoundStudy(each.name, origin, each) for each in declared)


def _from_file(path: Path, name: str) -> Declaration:
    if not path.is_file():
        raise BadInput(
            f"There is no file {path}. A study is named by its name (see `equipoise study list`) or its file."
        )
    try:
        module = _import_file(path.resolve())
    except EquipoiseError:
        raise
    except Exception as error:
        raise BadInput(f"{path} cannot be loaded: {_reason(error)}") from error
    declared = {each.name: each for each in _declared(module)}
    if not declared:
        raise BadInput(f"{path} declares no study; decorate a function with @study(name, paper=..., trades=...).")
    if not name and len(declared) > 1:
        raise BadInput(f"{path} declares {len(declared)} studies; name one: {path}:{next(iter(declared))}")
    if name and name not in declared:
        raise BadInput(f"{path} declares no study {name!r}. {did_you_mean(name, declared)}")
    return declared[name or next(iter(declared))]


@cache
def _import_file(path: Path) -> ModuleType:
    return import_file(path, "study")


def _declared(module: ModuleType) -> list[Declaration]:
    """Studies declared in the module itself, not those it imported."""
    here = [each for each in vars(module).values() if isinstance(each, Declaration)]
    return [each for each in dict.fromkeys(here) if each.function.__module__ == module.__name__]


def _reason(error: Exception | None) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.msg} (line {error.lineno})"
    return str(error) if isinstance(error, EquipoiseError) else f"{type(error).__name__}: {error}"
