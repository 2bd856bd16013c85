"""Typed settings, written once: the parameters of a function become a closed model, read from values or from text.

Studies and jobs share it. A word that may be one of several is checked in Python as on the command line (`choice`).
"""

import contextlib
import functools
import hashlib
import inspect
import json
import math
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from equipoise.core.errors import BadInput, WrongOption, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Setting:
    """What else there is to say of a parameter: `Annotated[str, Setting(alias=("-m",))]`.

    alias: further names on the command line. objects: in Python values of other types may come, which the function reads
    itself. python: only there, with no option of a command. stored: False for what says how the work is done, not what
    comes out. typed: which stored values have to be typed again, since they let code run.
    """

    alias: tuple[str, ...] = ()
    objects: bool = False
    python: bool = False
    stored: bool = True
    typed: Callable[[Any], bool] = lambda value: False


class Options:
    """The options of a function: its parameters, and the fields of the pydantic model that stands for its **rest.

    owner: how a sentence about a wrong option begins ("Study 'sago': "). renamed: options of earlier versions, each with its
    name of today, or with the sentence that it is answered with. Raises BadInput for a parameter without a type.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        owner: str = "",
        rest: "type[BaseModel] | None" = None,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self.function, self.owner, self.rest, self.renamed = function, owner, rest, dict(renamed or {})
        self.parameters = {
            name: parameter
            for name, parameter in inspect.signature(function).parameters.items()
            if not (rest is not None and parameter.kind is parameter.VAR_KEYWORD)
        }
        for name, parameter in self.parameters.items():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise BadInput(f"{owner}*args and **kwargs cannot be options; name each one.")
            if parameter.annotation is parameter.empty:
                raise BadInput(f"{owner}option {name!r} needs a type.")

    @cached_property
    def hints(self) -> dict[str, Any]:
        """Types with what stands beside them in Annotated."""
        hints = get_type_hints(self.function, include_extras=True)
        named = {name: hints[name] for name in self.parameters}
        if self.rest is not None:
            fields = self.rest.model_fields
            named |= {name: Annotated[field.rebuild_annotation(), field] for name, field in fields.items()}
        return named

    @cached_property
    def model(self) -> "type[BaseModel]":
        """A closed pydantic model of the function's own parameters and those of `rest`."""
        fields = {
            name: (Any if self.setting(name).objects else self.hints[name], self.default(name)) for name in self.hints
        }
        return _model(fields, validate_default=self.rest is None)

    @cached_property
    def _texts(self) -> "type[BaseModel]":
        return _model({name: (self.hints[name], None) for name in self.hints if self.setting(name).objects})

    def setting(self, name: str) -> Setting:
        marks = getattr(self.hints[name], "__metadata__", ())
        return next((mark for mark in marks if isinstance(mark, Setting)), Setting())

    def default(self, name: str) -> Any:
        """The default of an option, ... for one that must be given."""
        if name in self.parameters:
            default = self.parameters[name].default
            return ... if default is inspect.Parameter.empty else default
        assert self.rest is not None
        field = self.rest.model_fields[name]
        return ... if field.is_required() else field.get_default(call_default_factory=True)

    def read(self, given: Mapping[str, Any], *, text: bool = False) -> dict[str, Any]:
        """The values of all parameters, `given` over the defaults; of `rest` only what is given. text: strings as typed.

        Raises BadInput: an unknown option with the nearest names, a missing one, a value outside its range.
        """
        from pydantic import ValidationError

        self.check_names(given)
        values = {name: self.from_text(name, value) for name, value in given.items()} if text else dict(given)
        # Rows of a generator are there once: for the function, and for what tells them from others.
        values = {name: list(value) if isinstance(value, Iterator) else value for name, value in values.items()}
        try:
            model = self.model.model_validate(values)
            read = {name: getattr(model, name) for name in self.hints if name in self.parameters or name in given}
            # What is text or a path has to be one that the option's type allows; other objects are the function's matter.
            texts = {name: value for name, value in read.items() if isinstance(value, str | Path)}
            texts = {name: value for name, value in texts.items() if self.setting(name).objects}
            found = self._texts.model_validate(texts)
            return read | {name: getattr(found, name) for name in texts}
        except ValidationError as error:
            problem = error.errors()[0]
            name = str(problem["loc"][0])
            raise WrongOption(name, self._told(problem, name, values.get(name)), self.owner) from None

    def check_names(self, given: Iterable[str]) -> None:
        """Raises BadInput for an unknown option, with the nearest names."""
        for name in given:
            if name in self.renamed:
                today = self.renamed[name]
                raise BadInput(f"{self.owner}{name} is now {today}." if today in self.hints else f"{self.owner}{today}")
            if name not in self.hints:
                raise BadInput(f"{self.owner}there is no option {name!r}. {did_you_mean(name, self.hints)}")

    def current(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that an earlier version stored, under the names of today."""
        today = {old: new for old, new in self.renamed.items() if new in self.hints}
        return {today.get(name, name): value for name, value in stored.items()}

    def from_text(self, name: str, value: Any) -> Any:
        """A string as typed, as the option wants it: as it is, else as JSON, or with commas and equal signs between."""
        from pydantic import TypeAdapter, ValidationError

        if not isinstance(value, str):
            return value
        adapter = TypeAdapter(self.hints[name])
        for candidate in (value, *_readings(value)):
            try:
                adapter.validate_python(candidate)
            except ValidationError:
                continue
            return candidate
        return value

    def to_json(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Settings as JSON values that `read(..., text=True)` reads back: paths as text, objects by their name."""
        from pydantic import TypeAdapter

        typed = TypeAdapter(Any)
        return {
            name: _shown(value) if self.setting(name).objects else typed.dump_python(value, mode="json")
            for name, value in values.items()
        }

    def digests(self, values: Mapping[str, Any]) -> dict[str, str]:
        """name -> sha256 of rows, arrays and mappings that were given in memory, which settings show by number alone."""
        told = {name: self.setting(name) for name in values}
        found = {name: value for name, value in values.items() if told[name].objects and told[name].stored}
        contents = {name: _content(value) for name, value in found.items() if isinstance(_shown(value), str)}
        return {name: hashlib.sha256(told).hexdigest() for name, told in contents.items() if told is not None}

    def described(self) -> list[dict[str, Any]]:
        """Name, type (with its range), default and description of every option, for people."""
        schema = self.model.model_json_schema()["properties"]
        known = {name: self.default(name) for name in self.hints}
        defaults = self.to_json({name: default for name, default in known.items() if default is not ...})
        return [
            {
                "name": name,
                "type": type_text(schema[name]),
                "default": defaults.get(name),
                "description": schema[name].get("description", ""),
            }
            for name in self.hints
        ]

    def _told(self, problem: Any, name: str, value: Any) -> str:
        """What is wrong with a value, in words that follow the option's name."""
        if problem["type"] == "missing":
            return "is missing."
        if problem["type"] == "literal_error":
            return f"is {value!r}. {did_you_mean(str(value), map(str, allowed(_bare(self.hints[name]))))}"
        if problem["type"] in ("tuple_type", "list_type", "is_instance_of") and isinstance(value, str):
            return f"is {value!r}, expected {_several(self.hints[name])} with commas between."
        expected = problem["msg"].removeprefix("Input should be ").replace("Value error, ", "")
        for long, short in _SHORTER.items():
            expected = expected.replace(long, short)
        return f"should be {expected}, but got {value!r}."


def _several(hint: Any) -> str:
    """How many values a sequence takes, in words."""
    bare = _bare(hint)
    kinds = get_args(bare) if get_origin(bare) in (Union, types.UnionType) else (bare,)
    for kind in kinds:
        if get_origin(kind) is tuple and ... not in get_args(kind):
            return f"{len(get_args(kind))} values"
    return "values"


_SHORTER = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}


def _model(fields: Mapping[str, Any], *, validate_default: bool = False) -> "type[BaseModel]":
    from pydantic import ConfigDict, create_model

    config = ConfigDict(
        extra="forbid", validate_default=validate_default, protected_namespaces=(), arbitrary_types_allowed=True
    )
    return create_model("Options", __config__=config, **fields)


def _readings(text: str) -> list[Any]:
    """What else a text may mean: JSON, a list with commas between, or pairs with an equal sign."""
    found: list[Any] = []
    with contextlib.suppress(ValueError, RecursionError):
        found.append(json.loads(text))
    parts = [part.strip() for part in text.split(",") if part.strip()]
    found.append(parts)
    if parts and all("=" in part for part in parts):
        # A value may hold equal signs no less than a name: the first one counts unless that leaves no value of the kind.
        for split in (str.partition, str.rpartition):
            pairs = [split(part, "=") for part in parts]
            found += [
                {name.strip(): _scalar(value) for name, _, value in pairs},
                {name.strip(): tuple(value.split(":")) for name, _, value in pairs},
            ]
    return found


def _scalar(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text.strip()
    return value if isinstance(value, bool | int | float) and math.isfinite(value) else text.strip()


def _shown(value: Any) -> Any:
    """An object as a setting: text and numbers as they are, others by their name, or by how many they are."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if getattr(value, "shape", None) == ():  # one number of numpy or torch
        return _shown(value.tolist())
    if isinstance(value, list | tuple) and all(isinstance(each, bool | int | float | str) for each in value):
        return list(value)
    if isinstance(name := getattr(value, "name", None), str):
        return name
    return f"{len(value)} given" if isinstance(value, Sized) else type(value).__name__


def _content(value: Any) -> bytes | None:
    """What tells rows and arrays from others of their number; None for text, and for objects that are neither."""
    if isinstance(value, str):
        return None
    if isinstance(value, list | tuple | Mapping):
        return json.dumps(value, default=_told, skipkeys=True).encode()
    if hasattr(value, "__array__"):
        import numpy as np

        # Not every type of a tensor, nor a tensor that a gradient is wanted of, becomes an array by itself.
        array = np.asarray(value.tolist() if hasattr(value, "detach") else value)
        listed = array.dtype.hasobject  # their bytes are addresses
        numbers = json.dumps(array.tolist(), default=_told).encode() if listed else array.tobytes()
        return f"{array.dtype.str} {array.shape} ".encode() + numbers
    if isinstance(value, Sized) and isinstance(value, Iterable):
        rows = list(value)  # such as a datasets.Dataset
        return _content(rows) if all(isinstance(row, Mapping) or is_dataclass(row) for row in rows) else None
    return None


def _told(value: Any) -> Any:
    """Of an object within rows its numbers or fields, or else its class: nothing that differs between two processes."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytes | Path):
        return str(value)
    if is_dataclass(value):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    return value.tolist() if hasattr(value, "tolist") else f"{type(value).__module__}.{type(value).__qualname__}"


def type_text(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words: "integer from 1 to 9", "one of ga, npo"."""
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if "anyOf" in schema:
        return " or ".join(map(type_text, schema["anyOf"]))
    text = str(schema.get("type", "value"))
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return " ".join([text, *(f"{word} {schema[key]}" for key, word in words.items() if key in schema)])


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def choice(name: str, value: Any, options: Any) -> Any:
    """`value`, when it is one of `options` (a Literal, or any iterable of values).

    Raises BadInput naming `name`, what came and the nearest of what may be.
    """
    known = allowed(options) or tuple(options)
    # 1 == True, and an unhashable value is in no set: the type has to be the same, too.
    if not any(type(value) is type(option) and value == option for option in known):
        near = did_you_mean(str(value), [str(option) for option in known])
        raise BadInput(f"{name} is {value!r}. {near}")
    return value


def allowed(hint: Any) -> tuple[Any, ...]:
    """The values that a Literal, or a union with one (None among them), leaves; () where anything else may come, too."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        parts = [(None,) if part is type(None) else allowed(part) for part in get_args(hint)]
        return tuple(value for part in parts for value in part) if all(parts) and parts != [(None,)] else ()
    return ()


def words(hint: Any) -> tuple[Any, ...]:
    """Every value that a Literal anywhere in a type names: in a union, among the elements of a tuple or list."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) is Annotated:
        return words(get_args(hint)[0])
    return tuple(word for part in get_args(hint) for word in words(part))


def check(name: str, value: Any, hint: Any) -> None:
    """Raises BadInput, as `choice` does, for a word that no Literal of the type names.

    Where numbers may come beside words (`float | Literal["weakest"]`), a text must be one of the words; of several
    (`tuple[Literal["seed", "item"], ...]`, or the keys of a mapping) each must.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        check(name, value, parts[0])
    elif allowed(hint):
        choice(name, value, hint)
    elif origin in (Union, types.UnionType):
        own = tuple(word for part in parts for word in allowed(part))
        if isinstance(value, str) and (value in own or any(_takes_text(part) for part in parts)):
            return
        if isinstance(value, str) and own:
            others = " or ".join(part.__name__ for part in parts if part is not type(None) and not allowed(part))
            raise BadInput(f"{name} is {value!r}. {did_you_mean(value, map(str, own))} It may also be a {others}.")
        for part in parts:
            if isinstance(value, str) or _holds(part, value):
                check(name, value, part)
    elif isinstance(origin, type) and words(hint):
        _check_each(name, value, origin, parts)


def _check_each(name: str, value: Any, origin: type, parts: tuple[Any, ...]) -> None:
    if isinstance(value, str):
        raise BadInput(f"{name} is {value!r}, one word where several may come: write ({value!r},).")
    if issubclass(origin, Mapping) and isinstance(value, Mapping):
        for key, inner in value.items():
            check(name, key, parts[0])
            check(f"{name}[{key!r}]", inner, parts[1])
    elif issubclass(origin, Iterable) and isinstance(value, Collection):  # an iterator would be used up
        fixed = origin is tuple and parts[-1] is not Ellipsis
        for index, inner in enumerate(value):
            check(name, inner, parts[min(index, len(parts) - 1)] if fixed else parts[0])


def _takes_text(part: Any) -> bool:
    return part is Any or (isinstance(part, type) and issubclass(str, part))


def _holds(part: Any, value: Any) -> bool:
    origin = get_origin(part)
    return isinstance(origin, type) and isinstance(value, origin)


def closed(function: _Function) -> _Function:
    """A function whose `Literal` parameters are checked when it is called; raises BadInput as `choice` does."""
    signature = inspect.signature(function)
    hints = functools.cache(lambda: closed_hints(function))

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        bound = signature.bind(*given, **named).arguments
        for name, hint in hints().items():
            if name in bound:
                check(name, bound[name], hint)
        return function(*given, **named)

    call.__dict__["__closed__"] = True
    return call  # pyright: ignore[reportReturnType]


def check_fields(instance: Any) -> None:
    """The same for the fields of a dataclass: call it from `__post_init__`."""
    for name, hint in _closed_fields(type(instance)).items():
        check(f"{type(instance).__name__}.{name}", getattr(instance, name), hint)


@functools.cache
def _closed_fields(kind: type) -> dict[str, Any]:
    return {name: hint for base in reversed(kind.__mro__) for name, hint in closed_hints(base).items()}


def closed_hints(thing: Any) -> dict[str, Any]:
    """The annotated names of a function, or of a class itself, in whose type a Literal stands, with the type."""
    hints: dict[str, Any] = {}
    # A file that another program runs as it is (an Inspect task) is no module that Python knows.
    names = getattr(thing, "__globals__", None) or vars(sys.modules.get(thing.__module__, types))
    for name, annotation in inspect.get_annotations(thing).items():
        alone = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            hints |= get_type_hints(alone, names, include_extras=True)
        except NameError:
            continue  # a class that is imported for the type checker only
    return {name: hint for name, hint in hints.items() if name != "return" and words(hint)}
