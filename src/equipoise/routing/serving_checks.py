"""What a request may be: its size, its JSON, the types of its fields; and whether the local model can do what it asks.

Whatever is wrong is found before anything is computed or forwarded, and told as OpenAI tells it: a JSON error with message,
type, param and code. A field that would change the answer and that the local model does not know is no error and is never
ignored: such a request goes upstream, its bytes unchanged.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from equipoise.data.records import Message
from equipoise.data.text import lone_surrogate
from equipoise.routing.serving_local import Sampling

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_BODY = 8 * 2**20  # bytes
BODY_SECONDS = 30.0
_LONGEST_FIELD = 64
_COLDEST = 1e-30  # a logit divided by less may overflow; the likeliest token is drawn at this one already
_MOST_DIGITS = 18  # of a length in bytes
_MOST_CHOICES, _MOST_STOPS = 128, 4

# What does not change an answer, and so needs nobody who understands it.
_NO_MATTER = (
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)
# A value of these that asks for nothing, beside null.
_ASKS_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
_UNDERSTOOD = ("model", "messages", "stream", "stream_options", "temperature", "top_p", "stop", "seed")
_UNDERSTOOD += ("max_tokens", "max_completion_tokens")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_PRINTABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


class RequestRefused(Exception):
    """A request that is not answered. status: of HTTP; param: the field that is wrong; kind: OpenAI's type of error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.kind = status, message, param, code, kind
        self.headers = dict(headers or {})

    def plain(self) -> dict[str, Any]:
        """The JSON body."""
        return error_object(self.message, self.kind, self.param, self.code)


def error_object(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's API writes it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request for a chat completion. body: its bytes. model: as the client named it.

    needs: what only the upstream can do ("tools", "images", "n", the name of an unknown field); "" where the local model can
    answer, from these messages and with this sampling.
    """

    body: bytes
    model: str
    stream: bool
    include_usage: bool
    needs: str
    messages: tuple[Message, ...]
    sampling: Sampling


async def read_body(request: Request, *, most: int = MAX_BODY, seconds: float = BODY_SECONDS) -> bytes:
    """The bytes of a request. Raises RequestRefused: no JSON by its type (415), too large (413), not there in time (408)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # also what keeps a page in a browser from asking without leave: no simple request
        raise RequestRefused(415, "Send the request as content-type: application/json.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestRefused(415, "Send the request without content-encoding.")
    too_large = RequestRefused(413, f"The request is larger than {most} bytes.", code="request_too_large")
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and (len(stated) > _MOST_DIGITS or int(stated) > most):
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise RequestRefused(408, f"The request was not complete after {seconds:g} seconds.") from None
    return bytes(body)


def parse(body: bytes, *, temperature: float = 0.0) -> ChatRequest:
    """A request for a chat completion. temperature: where it names none. Raises RequestRefused (400) naming the field."""
    asked = _object(body)
    model = asked.get("model")
    if not isinstance(model, str) or not model:
        _wrong("model", "a name")
    stream = _typed(asked, "stream", bool, "true or false") or False
    options = _typed(asked, "stream_options", dict, "an object") or {}
    if options and not stream:
        raise RequestRefused(400, "stream_options is for stream: true alone.", param="stream_options")
    include_usage = _typed(options, "include_usage", bool, "true or false", "stream_options.") or False
    sampling = _sampling(asked, temperature)
    messages, needed = _messages(asked.get("messages"))
    needs = needed or _needs(asked, options)
    return ChatRequest(body, model, stream, include_usage, needs, messages, sampling)


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object, strictly: no name twice (who reads it next might take the other one), no number that is none."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("it has a name twice in one object")
        return found

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError("it has a number beyond 64 bits")
        return value

    def no_number(text: str) -> NoReturn:
        raise ValueError(f"it has {text}, which JSON does not know")

    try:
        asked = json.loads(body.decode(), object_pairs_hook=once, parse_float=number, parse_constant=no_number)
    except UnicodeDecodeError:
        raise RequestRefused(400, "The request is no UTF-8.") from None
    except json.JSONDecodeError as error:
        raise RequestRefused(400, f"The request is no JSON ({error.msg}, at character {error.pos}).") from None
    except RecursionError:
        raise RequestRefused(400, "The request is no JSON that can be read: it has too many brackets.") from None
    except ValueError as error:
        long = "Exceeds the limit" in str(error)  # Python's words for a whole number of thousands of digits
        reason = "it has a number of thousands of digits" if long else str(error)
        raise RequestRefused(400, f"The request is no JSON that can be read: {reason}.") from None
    if not isinstance(asked, dict):
        raise RequestRefused(400, f"The request is a JSON {_kind(asked)}; send an object.")
    return asked


def _messages(messages: Any) -> tuple[tuple[Message, ...], str]:
    """The turns, and what of them only the upstream can read."""
    if not isinstance(messages, list) or not messages:
        _wrong("messages", "an array of at least one message")
    turns, needs = [], ""
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        if not isinstance(message, dict):
            _wrong(place, "an object")
        role = message.get("role")
        if not isinstance(role, str):
            _wrong(f"{place}.role", "a text")
        text, more = _content(message.get("content"), f"{place}.content", optional=role == "assistant")
        if (at := lone_surrogate(text)) is not None:
            message_ = f"{place}.content holds half of a surrogate pair at character {at}."
            raise RequestRefused(400, message_, param=f"{place}.content")
        others = [
            name for name, value in message.items() if name not in ("role", "content") and value not in (None, [])
        ]
        needs = needs or more or ("" if role in _ROLES else "role") or ("message_field" if others else "")
        if any(name in ("tool_calls", "function_call") for name in others) or role in ("tool", "function"):
            needs = "tools"
        turns.append(Message(_ROLES.get(role, role), text))
    return tuple(turns), needs


def _content(content: Any, place: str, *, optional: bool) -> tuple[str, str]:
    """The text of a message's content, and the first kind of part that is none."""
    if isinstance(content, str):
        return content, ""
    if content is None and optional:
        return "", "message_without_text"
    if not isinstance(content, list) or not content:
        _wrong(place, "a text, or an array of at least one part")
    texts, needs = [], ""
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or not isinstance(kind, str):
            _wrong(f"{place}[{index}]", "an object with a type")
        if kind == "text":
            if not isinstance(part.get("text"), str):
                _wrong(f"{place}[{index}].text", "a text")
            texts.append(part["text"])
        else:
            needs = needs or {"image_url": "images", "input_audio": "audio", "file": "files"}.get(kind, "content_part")
    return "".join(texts), needs


def _sampling(asked: Mapping[str, Any], temperature: float) -> Sampling:
    given = {name: _number(asked, name, 0, most) for name, most in (("temperature", 2), ("top_p", 1))}
    limits = [_whole(asked, name, 1, 2**31) for name in ("max_completion_tokens", "max_tokens")]
    warm = temperature if given["temperature"] is None else given["temperature"]
    seed = _whole(asked, "seed", -(2**63), 2**63 - 1)
    stop = asked.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(mark, str) and mark for mark in stops):
        _wrong("stop", "a text, or an array of texts, none of them empty")
    if len(stops) > _MOST_STOPS:
        _wrong("stop", f"at most {_MOST_STOPS} texts")
    return Sampling(
        temperature=warm if warm >= _COLDEST else 0.0,
        top_p=1.0 if given["top_p"] is None else max(given["top_p"], 1e-9),  # 0: the likeliest token alone
        max_tokens=next((limit for limit in limits if limit is not None), None),
        stop=tuple(stops),
        seed=secrets.randbits(62) if seed is None else seed,
    )


def _needs(asked: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """The first thing that is asked for and that the local model cannot do, or does not know; known ones of a wrong type."""
    for name in ("frequency_penalty", "presence_penalty"):
        _number(asked, name, -2, 2)
    _whole(asked, "n", 1, _MOST_CHOICES)
    for name, kind, expected in (
        ("tools", list, "an array"),
        ("functions", list, "an array"),
        ("logit_bias", dict, "an object"),
        ("response_format", dict, "an object"),
        ("logprobs", bool, "true or false"),
        ("metadata", dict, "an object"),
        ("user", str, "a text"),
    ):
        _typed(asked, name, kind, expected)
    extra = [f"stream_options_{name}" for name in options if name not in ("include_usage", "include_obfuscation")]
    asking = [name for name, value in asked.items() if value is not None and name not in (*_UNDERSTOOD, *_NO_MATTER)]
    asking = [name for name in asking if not any(_same(asked[name], each) for each in _ASKS_NOTHING.get(name, ()))]
    for name in (*asking, *extra):
        return name if _PRINTABLE_NAME.fullmatch(name) else "unknown_field"
    return ""


def _same(value: Any, other: Any) -> bool:
    """Equal, and not only because true is 1."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _typed(asked: Mapping[str, Any], name: str, kind: type, expected: str, place: str = "") -> Any:
    value = asked.get(name)
    if value is not None and not isinstance(value, kind):
        _wrong(f"{place}{name}", expected)
    return value


def _number(asked: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    value = asked.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        _wrong(name, f"a number from {least} to {most}")
    return float(value)


def _whole(asked: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = asked.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        _wrong(name, f"a whole number from {least} to {most}")
    return value


def _wrong(place: str, expected: str) -> NoReturn:
    raise RequestRefused(400, f"{place[:_LONGEST_FIELD]} must be {expected}.", param=place[:_LONGEST_FIELD])


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, Sequence):
        return "text" if isinstance(value, str) else "array"
    return "value" if isinstance(value, bool) else "number"
