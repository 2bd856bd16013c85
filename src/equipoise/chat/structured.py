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
from equipoise.data.text import after_thinking, encodable

if TYPE_CHECKING:
    from inspect_ai.model import ResponseSchema
    from pydantic import BaseModel

# How an object begins, of JSON or nearly so, and not a word in braces; and one without quotes, or a set of mathematics.
_BROKEN = re.compile(r"""\{\s*(?:"|//|/\*|'[^'{}]*'\s*:)""")
_UNQUOTED = re.compile(r"\{\s*[\w-]+\s*:")
_BRACES = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]', re.DOTALL)


class Unfit(ValueError):
    """A text that does not satisfy a schema; the message tells the model what to mend."""


def parse(text: str, schema: type[BaseModel]) -> Any:
    """The schema's instance in a text: the whole text as JSON, else the last JSON object in it that satisfies the schema.

    Thinking, code fences and prose around are passed over; before its last object a model may show the form or weigh. An
    object inside another, or inside one that breaks off or is no JSON (without quotes, with single ones, with comments), is
    never taken for the answer, nor is one that gives a field two values, or that follows one with others. Raises Unfit with
    what was wrong.
    """
    from pydantic import ValidationError

    problem = "there is no whole JSON object in it"
    fitting: list[tuple[bool, Any]] = []
    for adjacent, value in _values(text):
        serialized = encodable(json.dumps(value, ensure_ascii=False))  # a string may spell half of a surrogate pair
        try:  # as JSON: no tuples or enums, which Python's mode wants
            fitting.append((adjacent, schema.model_validate_json(serialized)))
        except ValidationError as error:
            problem = _first_errors(error)
    if not fitting:
        raise Unfit(problem)
    adjacent, last = fitting[-1]
    if adjacent and len(fitting) > 1 and fitting[-2][1] != last:
        raise Unfit("two objects that differ follow each other, and nothing says which one counts")
    return last


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


def _values(text: str) -> Iterator[tuple[bool, Any]]:
    """What a text says as JSON: itself, or the objects in it after thinking; True where one follows another directly.

    The first is said to follow the beginning. Line breaks within strings, which models write, are let by. Raises Unfit
    for thinking without an end.
    """
    decoder = json.JSONDecoder(strict=False, parse_constant=_no_number, object_pairs_hook=_once)
    try:
        yield False, decoder.decode(text.strip())
        return
    except (ValueError, RecursionError):
        pass
    if (answer := after_thinking(text)) is None:
        raise Unfit("there is thinking without an end, and nothing after it")
    before, start = 0, answer.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(answer, start)
            yield not answer[before:start].strip(), value
            before = end
        except (ValueError, RecursionError):
            unquoted = _UNQUOTED.match(answer, start) is not None
            end = _behind(answer, start) if unquoted else start + 1
            if not end or _BROKEN.match(answer, start):
                return
        start = answer.find("{", end)


def _behind(text: str, start: int) -> int:
    """The place behind the brace that closes the one at `start`; 0 where none does. Braces in quotes do not count."""
    depth = 0
    for mark in _BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if not depth:
            return mark.end()
    return 0


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose fields have one value each."""
    fields = dict(reversed(pairs))
    if any(fields[name] != value for name, value in pairs):
        raise ValueError("a field stands twice, with two values")
    return dict(pairs)


def _first_errors(error: Any) -> str:
    parts = []
    for item in error.errors()[:3]:
        field = ".".join(map(str, item["loc"]))
        parts.append(f"{field}: {item['msg']}" if field else item["msg"])
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
            name = reference.removeprefix("#/$defs/")
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
