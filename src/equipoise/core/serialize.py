"""Results as strict JSON and back: dataclasses as objects, nan as null, infinities as text."""

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from equipoise.core.errors import WorkFailed

LIVE: Mapping[str, bool] = types.MappingProxyType({"live": True})  # metadata of a field that is not stored

_Kind = TypeVar("_Kind")


def serialize(value: Any) -> Any:
    """JSON values for dataclasses, pydantic models, mappings, sequences, numbers and text; LIVE fields are left out.

    Raises WorkFailed for anything else.
    """
    if isinstance(value, Mapping):
        return {str(key): serialize(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [serialize(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if callable(dump := getattr(value, "model_dump", None)):
        return serialize(dump(mode="json"))
    if is_dataclass(value):
        kept = [field.name for field in fields(value) if not field.metadata.get("live")]
        return {name: serialize(getattr(value, name)) for name in kept}
    raise WorkFailed(f"A result cannot be stored as JSON: {type(value).__name__} {value!r:.80}.")


def deserialize(kind: type[_Kind], plain: Any) -> _Kind:
    """An instance of a dataclass from what `serialize` made of it. Raises ValueError where it is not of that form."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_python(_with_nan(kind, plain))


def _with_nan(hint: Any, plain: Any) -> Any:
    """Null in the place of a float that may not be None is nan; what else is of a wrong type is left to the validation."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is float:
        return math.nan if plain is None else plain
    if is_dataclass(hint) and isinstance(plain, Mapping):
        hints = get_type_hints(hint)
        return {name: _with_nan(hints.get(name), each) for name, each in plain.items()}
    if origin in (Union, types.UnionType):
        kinds = [each for each in arguments if each is not type(None)]
        return _with_nan(kinds[0], plain) if len(kinds) == 1 and plain is not None else plain
    if isinstance(plain, Mapping) and len(arguments) == 2:
        return {name: _with_nan(arguments[1], each) for name, each in plain.items()}
    if isinstance(plain, list) and isinstance(origin, type) and issubclass(origin, Sequence) and arguments:
        fixed = origin is tuple and ... not in arguments and len(arguments) == len(plain)
        kinds = arguments if fixed else arguments[:1] * len(plain)
        return [_with_nan(each, value) for each, value in zip(kinds, plain, strict=True)]
    return plain
