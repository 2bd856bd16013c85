"""Answers as data: the schema that a provider gets, JSON found in a text, its validation, and the one repair question."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from equipoise.chat.account import REPAIR
from equipoise.chat.calls import Call
from equipoise.data.records import Message

if TYPE_CHECKING:
    from inspect_ai.model import ResponseSchema
    from pydantic import BaseModel

_BROKEN = re.compile(r'\{\s*"')  # the beginning of a JSON object, not of a word in braces


class Unfit(ValueError):
    """A text that does not satisfy a schema; the message tells the model what to mend."""


def parse(text: str, schema: type[BaseModel]) -> Any:
    """The schema's instance in a text: the whole text as JSON, else the first JSON object in it that satisfies the schema.

    Code fences and prose around are passed over. An object inside another, or inside one that breaks off, is never taken
    for the answer. Raises Unfit with what was wrong first.
    """
    from pydantic import ValidationError

    problem = ""
    for value in _values(text):
        try:
            return schema.model_validate_json(
                json.dumps(value)
            )  # as JSON: no tuples or enums, which Python's mode wants
        except ValidationError as error:
            problem = problem or _first_errors(error)
    raise Unfit(problem or "there is no whole JSON object in it")


def repair(call: Call, answer: str, problem: str) -> Call:
    """The question that shows a model its unfit answer and asks for it once more."""
    assert call.schema is not None
    schema = json.dumps(call.schema.model_json_schema(), ensure_ascii=False)
    request = (
        f"That answer cannot be used: {problem}.\nGive the same answer again as one JSON object and nothing else: no code "
        f"fence, no words around it. It must satisfy this JSON schema:\n{schema}"
    )
    messages = (*call.messages, Message("assistant", answer), Message("user", request))
    return replace(call, messages=messages, phase=call.phase + REPAIR)


def response_schema(schema: type[BaseModel]) -> ResponseSchema:
    """The schema in the form that Inspect hands to providers."""
    from inspect_ai.model import ResponseSchema
    from inspect_ai.util import JSONSchema

    name = re.sub(r"[^A-Za-z0-9_-]", "_", schema.__name__)[:64]
    return ResponseSchema(name=name, json_schema=JSONSchema.model_validate(_inlined(schema.model_json_schema())))


def _values(text: str) -> Iterator[Any]:
    """What a text says as JSON: itself, or the objects in it. Line breaks within strings, which models write, are let by."""
    decoder = json.JSONDecoder(strict=False, parse_constant=_no_number)
    try:
        yield decoder.decode(text.strip())
        return
    except (ValueError, RecursionError):
        pass
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
            yield value
        except (ValueError, RecursionError):
            if _BROKEN.match(text, start):
                return
            end = start + 1
        start = text.find("{", end)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _first_errors(error: Any) -> str:
    parts = []
    for item in error.errors(include_url=False, include_input=False)[:3]:
        place = ".".join(map(str, item["loc"]))
        parts.append(f"{place}: {item['msg']}" if place else item["msg"])
    return "; ".join(parts)


def _inlined(schema: dict[str, Any]) -> Any:
    """The JSON schema without references (recursion becomes "anything") and constants, which Inspect does not pass on."""
    definitions = schema.get("$defs", {})

    def walk(node: Any, within: tuple[str, ...]) -> Any:
        if isinstance(node, list):
            return [walk(item, within) for item in node]
        if not isinstance(node, dict):
            return node
        if isinstance(reference := node.get("$ref"), str):
            name = reference.rsplit("/", 1)[-1]
            target = {} if name in within else walk(definitions[name], (*within, name))
            return target | {key: value for key, value in node.items() if key == "description"}
        walked = {
            key: {name: walk(part, within) for name, part in value.items()}
            if key == "properties"
            else walk(value, within)
            for key, value in node.items()
            if key not in ("$defs", "default", "examples")
        }
        if "const" in walked:
            walked["enum"] = [walked.pop("const")]
        if "properties" in walked:
            walked.setdefault("additionalProperties", False)
        return walked

    return walk(schema, ())
