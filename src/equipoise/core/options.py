"""Typed settings: the words that an option may be are closed, in Python as on the command line."""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

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


def closed(function: _Function) -> _Function:
    """A function whose `Literal` parameters are checked when it is called; raises BadInput as `choice` does."""
    signature = inspect.signature(function)

    @functools.cache
    def checked() -> dict[str, tuple[Any, ...]]:
        hints = get_type_hints(function)
        return {name: options for name in signature.parameters if (options := allowed(hints.get(name)))}

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        bound = signature.bind(*given, **named).arguments
        for name, options in checked().items():
            if name in bound:
                choice(name, bound[name], options)
        return function(*given, **named)

    call.__closed__ = True  # pyright: ignore[reportFunctionMemberAccess]
    return call  # pyright: ignore[reportReturnType]


def check_fields(instance: Any) -> None:
    """The same for the fields of a dataclass: call it from `__post_init__`."""
    for name, hint in _hints(type(instance)).items():
        if options := allowed(hint):
            choice(f"{type(instance).__name__}.{name}", getattr(instance, name), options)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
