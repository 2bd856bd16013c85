"""Whatever in the package may be one of a few words refuses every other, wherever it is called from.

What is not closed is listed by name. Functions that are not marked by `closed` are not called: nobody knows what they
would do with nonsense; a dataclass or a model is built with it and has to refuse.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterable, Mapping
from typing import Literal
from unittest.mock import MagicMock

from pydantic import BaseModel, ValidationError

import equipoise
from equipoise.core.errors import BadInput, EquipoiseError
from equipoise.core.options import check_fields, closed, closed_hints, words

WRONG = "no-such-word"
# The words of commands are read by cyclopts, those of a model provider given by Inspect AI.
READ_BY_OTHERS = ("equipoise.cli.", "equipoise.chat.provider.EquipoiseAPI.generate(tool_choice)")


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
            made = "" if dataclasses.is_dataclass(thing) else "__init__"
            for method, function in vars(thing).items():
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function) and (not method.startswith("_") or method == made):
                    yield f"{module.__name__}.{name}.{method}", function


def is_kind(hint, kind):
    origin = typing.get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, kind)


def right(hint):
    """A value that is not refused: no word at all, or the first that there is."""
    return {} if is_kind(hint, Mapping) else words(hint)[0]


def refuses(thing, parameter):
    """Whether a word that is none of the parameter's ends in a sentence that names it."""
    if inspect.isclass(thing) and issubclass(thing, BaseModel):
        try:
            thing(**{parameter: WRONG})
        except ValidationError as error:
            return any(problem["loc"][0] == parameter for problem in error.errors())
        return False
    hints = closed_hints(thing)
    needed = {
        name: right(hints[name]) if name in hints else MagicMock()
        for name, each in inspect.signature(thing).parameters.items()
        if each.default is each.empty and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }
    hint = hints[parameter]
    wrong = {WRONG: 1} if is_kind(hint, Mapping) else (WRONG,) if is_kind(hint, Iterable) else WRONG
    try:
        thing(**needed | {parameter: wrong})
    except BadInput as error:
        return WRONG in str(error)
    except Exception:
        return False
    return False


def open_parameters():
    for module in modules():
        for name, thing in public(module):
            is_data = inspect.isclass(thing) and (dataclasses.is_dataclass(thing) or issubclass(thing, BaseModel))
            if inspect.isclass(thing) != is_data or getattr(thing, "_is_protocol", False):
                continue
            for parameter in closed_hints(thing):
                marked = is_data or hasattr(thing, "__closed__")
                if not parameter.startswith("_") and not (marked and refuses(thing, parameter)):
                    yield f"{name}({parameter})"


def test_every_word_of_the_package_is_closed():
    left = sorted(name for name in open_parameters() if not name.startswith(READ_BY_OTHERS))
    assert not left, "open to any word:\n" + "\n".join(left)


Word = Literal["fast", "slow"]


@closed
def shut(name: str, how: Word, several: tuple[Word, ...] = ()) -> None: ...


def ajar(how: Word) -> None: ...


@dataclasses.dataclass
class Ajar:
    how: Word


@dataclasses.dataclass
class Shut:
    name: str
    how: Word | None = None
    by: Mapping[Word, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


class Model(BaseModel):
    how: Word
    number: int


def test_what_is_open_is_found():
    assert all(refuses(shut, name) for name in ("how", "several"))
    assert all(refuses(Shut, name) for name in ("how", "by")) and refuses(Model, "how")
    assert not refuses(ajar, "how") and not refuses(Ajar, "how")
