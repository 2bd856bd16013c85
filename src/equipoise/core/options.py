"""Typed settings: the words that an option may be are closed, in Python as on the command line."""

import functools
import inspect
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from equipoise.core.errors import BadInput, did_you_mean

_Function = TypeVar("_Function", bound=Callable[..., Any])


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
    for name, annotation in inspect.get_annotations(thing).items():
        alone = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            hints |= get_type_hints(alone, vars(sys.modules[thing.__module__]), include_extras=True)
        except NameError:
            continue  # a class that is imported for the type checker only
    return {name: hint for name, hint in hints.items() if name != "return" and words(hint)}
