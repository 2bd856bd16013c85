"""Whatever in the package may be one of a few words refuses every other, wherever it is called from.

What is not closed is listed by name. Functions that are not marked by `closed` are not called: nobody knows what they
would do with nonsense; a dataclass or a model is built with it and has to refuse.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from unittest.mock import MagicMock

from pydantic import BaseModel, ValidationError

import equipoise
from equipoise.core.errors import BadInput, EquipoiseError
from equipoise.core.options import closed_hints

WRONG = "no-such-word"


def modules():
    for found in pkgutil.walk_packages(equipoise.__path__, "equipoise."):
        if any(part.startswith("_") for part in found.name.split(".")):
            continue
        try:
            yield importlib.import_module(found.name)
        except (ImportError, EquipoiseError):  # an extra that is not installed
            continue


def public(module):
    """Functions, classes and the methods of classes that a module defines, by their full name."""
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing):
            yield f"{module.__name__}.{name}", thing
        elif inspect.isclass(thing):
            yield f"{module.__name__}.{name}", thing
            for method, function in vars(thing).items():
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function) and (not method.startswith("_") or method == "__init__"):
                    yield f"{module.__name__}.{name}.{method}", function


def refuses(thing, parameter):
    """Whether a word that is none of the parameter's ends in a sentence that names it."""
    if inspect.isclass(thing) and issubclass(thing, BaseModel):
        try:
            thing(**{parameter: WRONG})
        except ValidationError as error:
            return any(problem["loc"][0] == parameter for problem in error.errors())
        return False
    given = {
        name: MagicMock()
        for name, each in inspect.signature(thing).parameters.items()
        if each.default is each.empty and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }
    several = typing.get_origin(closed_hints(thing)[parameter]) in (tuple, list)
    try:
        thing(**given | {parameter: (WRONG,) if several else WRONG})
    except BadInput as error:
        return WRONG in str(error)
    except Exception:
        return False
    return False


def open_parameters():
    for module in modules():
        for name, thing in public(module):
            if getattr(thing, "_is_protocol", False):
                continue
            is_data = inspect.isclass(thing) and (dataclasses.is_dataclass(thing) or issubclass(thing, BaseModel))
            if inspect.isclass(thing) and not is_data:
                continue
            if inspect.isfunction(thing) and thing.__name__ == "__init__" and "<string>" in thing.__code__.co_filename:
                continue
            for parameter in closed_hints(thing):
                if not is_data and not getattr(thing, "__closed__", False):
                    yield f"{name}({parameter})"
                elif not refuses(thing, parameter):
                    yield f"{name}({parameter})"


def test_every_word_of_the_package_is_closed():
    left = sorted(set(open_parameters()))
    print("\n".join(left), len(left))
    assert not left
