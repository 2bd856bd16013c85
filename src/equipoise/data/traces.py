"""Traces of agents, read as they are logged: what a model wrote before each call of a tool, what came back, how it ended.

A row is understood by the fields it has (the first line that fits):

    messages + choices    a request with its response, as a proxy logs them; also under `request` and `response` (`body`).
                          Rows whose request holds an earlier row's request and response go on with its trace
    messages              a whole conversation in OpenAI's form; log-probabilities beside the assistant's messages
    first + turns         an episode of `language.episodes`

Calls are an assistant message's `tool_calls` (also `function_call`), else <tool_call> blocks in its text; what it says is
the text before them. Log-probabilities are {"content": [{"token", "logprob", "top_logprobs": [{"token", "logprob"}]}]}.
Of a row are taken when there: `id` (`trace_id`, `custom_id`), `group` (what is asked: the cluster in intervals), `success`
(or `correct`), `score`, `reward`, `gold` (`answers`; `answer`, which beside a gold is what was answered), `vocabulary`. Of a
message: `usage`, `latency` (seconds) or `latency_ms`, `price` or `cost`; a tool's message may have the last four, too.
"""

import gc
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.core.errors import BadInput
from equipoise.data.records import Cells, kind_of, read_rows
from equipoise.data.text import encodable, printable

Array = NDArray[np.float64]
Fields = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
IDS, GOLDS = ("id", "trace_id", "custom_id"), ("gold", "answers", "answer")
MORE_THAN_ALL = 1.01  # probabilities of a token's alternatives that sum to more were logged otherwise
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_REPLY = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)
_CALL_BEGINS = re.compile(r"<\|?tool_calls?\b|<function[=_]|\[TOOL_CALLS\]|<\|python_tag\|>|\{\s*\"name\"\s*:")
_FORMS = "messages, messages + choices, or first + turns"
_OPENAI = "OpenAI's form, role with content or tool_calls"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call. arguments: as logged, mostly JSON. reply: None where there is none. seconds, price: nan where not logged.

    tool: "" where the text of the call cannot be read.
    """

    tool: str
    arguments: str
    reply: str | None = None
    seconds: float = math.nan
    price: float = math.nan


@dataclass(frozen=True, slots=True, eq=False)
class TraceTurn:
    """What a model wrote at once: a text, then calls, which are one step.

    before: role and text of each message of others since the turn before, its calls' replies left out. log_probs [T, K]: of
    the likeliest tokens at each token of the text (not of the calls), nan beyond those recorded; None where none are.
    tokens: generated in all, the calls among them, as `usage` has it, None where not logged. seconds, price: nan likewise.
    """

    text: str
    calls: tuple[ToolCall, ...]
    before: tuple[tuple[str, str], ...]
    log_probs: Array | None = None
    tokens: float | None = None
    seconds: float = math.nan
    price: float = math.nan


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """place: FILE:LINE, for errors. score: in success's place 1 or 0; None where neither is logged. gold: () without one.

    answer: the text of the last turn unless it calls. vocabulary: None where the row does not say. strays: messages of tools
    that answer no call.
    """

    id: str
    place: str
    group: str
    turns: tuple[TraceTurn, ...]
    answer: str
    gold: tuple[str, ...] = ()
    score: float | None = None
    vocabulary: int | None = None
    strays: int = 0

    @property
    def calls(self) -> int:
        """How many calls it has."""
        return sum(len(turn.calls) for turn in self.turns)


def read_traces(source: str | Path | Iterable[Fields], *, limit: int | None = None) -> list[Trace]:
    """The first `limit` traces (all by default) of a file or of rows, with unique ids.

    Raises BadInput, one sentence with file, line and remedy, for whatever cannot be read.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"limit is {limit}, expected at least 1.")
    if isinstance(source, str | Path):
        path = Path(source)
        rows = ((place, f"{path.name.split('.')[0]}-{number}", row) for place, number, row in read_rows(path))
    else:
        rows = ((f"row {number}", f"trace-{number}", row) for number, row in enumerate(source, start=1))
    made = _Conversations()
    places: dict[str, str] = {}
    with _no_collection():
        for place, default_id, row in rows:
            for name in made.add(Cells(dict(row), place, {}), default_id):
                if name in places:
                    raise BadInput(f"{place}: id {name!r} was used before at {places[name]}; make ids unique.")
                places[name] = place
        traces = made.traces(limit)
    if not traces:
        named = source if isinstance(source, str | Path) else "what was given"
        raise BadInput(f"{named} is empty: expected at least one trace, with {_FORMS}.")
    return traces


@contextmanager
def _no_collection() -> Iterator[None]:
    """No search for cycles, which rows do not have: in the millions of their objects it takes as long as all the rest."""
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()


class _Conversations:
    """Rows put together to traces: a response is found again as the beginning of a later request."""

    def __init__(self) -> None:
        self._found: list[Trace | _Open] = []
        self._waiting: dict[bytes, list[_Open]] = {}  # by what their next request begins with

    def add(self, cells: Cells, default_id: str) -> list[str]:
        """The ids of the traces that begin with this row."""
        messages, choices, beside = _parts(cells)
        own = _named(cells) or default_id
        if not choices:  # whole; what was read of it stays, the row goes
            self._found.append(_Open(own, cells, [*messages]).trace())
            return [own]
        begun: list[str] = []
        keys = _chain(messages)
        for number, choice in enumerate(choices):
            trace = self._waited_for(keys) if number == 0 else None
            if trace is None:
                kept = Cells(dict(_ends(cells)), cells.place, {})  # not the row, which has the log-probabilities
                trace = _Open(own if len(choices) == 1 else f"{own}/{number}", kept, [*messages])
                self._found.append(trace)
                begun.append(trace.id)
            else:
                trace.go_on(cells, messages)
            trace.messages.append(_written(cells, {**beside, **choice}))
            (key,) = _chain([choice], keys[-1] if keys else b"")
            self._waiting.setdefault(key, []).append(trace)
        return begun

    def traces(self, limit: int | None) -> list[Trace]:
        """The first of them."""
        return [each if isinstance(each, Trace) else each.trace() for each in self._found[:limit]]

    def _waited_for(self, keys: Sequence[bytes]) -> "_Open | None":
        for key in reversed(keys):
            if self._waiting.get(key):
                return self._waiting[key].pop(0)
        return None


def _chain(messages: Sequence[Fields], digest: bytes = b"") -> list[bytes]:
    """A digest of each beginning of the messages; what only a response or only a request has does not count."""
    keys = []
    for each in messages:
        said = [each.get(name) or "" for name in ("role", "content", "tool_calls", "tool_call_id")]
        text = json.dumps(said, sort_keys=True, default=str).encode()
        digest = hashlib.blake2b(digest + text, digest_size=16).digest()
        keys.append(digest)
    return keys


def _parts(cells: Cells) -> tuple[list[Fields], list[Fields], Fields]:
    """Messages of a request, or of a conversation; the messages of a response; what was logged beside the response."""
    row = cells.row
    if isinstance(row.get("turns"), list) and row.get("messages") is None:
        return _episode(cells), [], {}
    response, request = (_body(row.get(name)) for name in ("response", "request"))
    response = row if row.get("choices") is not None else response
    messages = row.get("messages") if row.get("messages") is not None else request.get("messages")
    if messages is None:
        found = printable(", ".join(map(str, row))) or "no fields"
        raise BadInput(f"{cells.place}: no trace (found: {found}), expected {_FORMS}.")
    messages = _objects(cells, "messages", messages, "a list of messages")
    choices = response.get("choices")
    if choices is None:
        return messages, [], {}
    made = []
    for choice in _objects(cells, "choices", choices, "a list of choices"):
        if not isinstance(message := choice.get("message"), Mapping):
            cells.refuse("choices", "choices with a message", kind_of(message))
        logged = choice.get("logprobs") or message.get("logprobs")
        made.append({**message, "role": "assistant", "logprobs": logged})
    if not made:
        cells.refuse("choices", "at least one choice", "none; leave the row out")
    named = ("usage", "latency", "latency_ms", "price", "cost")
    beside = {name: each[name] for each in (response, row) for name in named if each.get(name) is not None}
    return messages, made, beside if len(made) == 1 else {}


def _body(value: Any) -> Fields:
    """A request or a response, which batches log one level deeper; {} for what is neither."""
    inner = value.get("body") if isinstance(value, Mapping) else None
    found = inner if isinstance(inner, Mapping) else value
    return found if isinstance(found, Mapping) else {}


def _episode(cells: Cells) -> list[Fields]:
    """The messages that an episode amounts to; its actions are calls, and what answers them is a tool."""
    messages: list[Fields] = [{"role": "user", "content": cells.row.get("first") or ""}]
    for turn in _objects(cells, "turns", cells.row["turns"], "a list of turns"):
        info = turn.get("info")
        done = info.get("actions") if isinstance(info, Mapping) else None
        actions = _objects(cells, "turns", done or [], "actions as a list")
        calls = [{"function": each} for each in actions]
        messages.append({**turn, "role": "assistant", "content": turn.get("text"), "tool_calls": calls})
        if reply := turn.get("reply"):
            names = [str(action.get("name")) for action in actions]
            parts = [{"role": "tool", "content": part} for part in _parts_of(reply, names)]
            messages += parts if calls else [{"role": "user", "content": reply}]
    return messages


def _parts_of(reply: str, names: Sequence[str]) -> list[str]:
    """A reply to several calls, cut where a line begins with each one's name, as `data.tools` writes it; else whole."""
    listed = "|".join(map(re.escape, names))
    marks = list(re.finditer(rf"^({listed}): ", reply, re.MULTILINE)) if len(names) > 1 else []
    if [mark[1] for mark in marks] != [*names]:
        return [reply]
    ends = [*(mark.start() for mark in marks[1:]), len(reply)]
    found = [reply[mark.end() : end].removesuffix("\n") for mark, end in zip(marks, ends, strict=True)]
    return [reply[: marks[0].start()] + found[0], *found[1:]]


@dataclass(eq=False)
class _Open:
    """A trace to which rows may still be added; responses are read already."""

    id: str
    cells: Cells
    messages: "list[Fields | _Written]"

    def go_on(self, cells: Cells, messages: Sequence[Fields]) -> None:
        """With a later request: what it says beyond what is known; what is known of the end comes with the last row."""
        self.messages += messages[len(self.messages) :]
        self.cells = Cells({**self.cells.row, **_ends(cells)}, cells.place, {})

    def trace(self) -> Trace:
        cells = self.cells
        turns, strays = _turns(cells, self.messages)
        last = turns[-1].text if turns and not turns[-1].calls else ""
        gold_field = next((name for name in GOLDS if cells.has(name)), "")
        answered = None if gold_field == "answer" else cells.row.get("answer")
        return Trace(
            id=self.id,
            place=cells.place,
            group=cells.text("group") if cells.has("group") else self.id,
            turns=turns,
            answer=last if answered is None else str(answered),
            gold=_gold(cells, gold_field) if gold_field else (),
            score=_score(cells),
            vocabulary=_vocabulary(cells),
            strays=strays,
        )


def _ends(cells: Cells) -> Fields:
    """What a row says of how its trace ended, and of what it is."""
    names = ("group", "success", "correct", "score", "reward", *GOLDS, "vocabulary")
    return {name: cells.row[name] for name in names if cells.row.get(name) is not None}


def _gold(cells: Cells, name: str) -> tuple[str, ...]:
    number = _number(cells.row[name])
    return cells.texts(name) if number is None else (str(cells.row[name]),)


def _vocabulary(cells: Cells) -> int | None:
    value = cells.row.get("vocabulary")
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 1):
        return value
    return cells.refuse("vocabulary", "how many tokens the model knows", kind_of(value))


def _named(cells: Cells) -> str:
    value = next((cells.row[name] for name in IDS if cells.row.get(name) not in (None, "")), "")
    return str(value) if isinstance(value, str | int) else cells.refuse("id", "text or a number", kind_of(value))


def _score(cells: Cells) -> float | None:
    """Of success, correct, score and reward the first that is logged. Raises BadInput for what is no number."""
    for name in ("success", "correct", "score", "reward"):
        value = cells.row.get(name)
        if value is None:
            continue
        number = float(value) if isinstance(value, bool) else _number(value)
        return cells.refuse(name, "true, false or a number", kind_of(value)) if number is None else number
    return None


def _number(value: Any) -> float | None:
    """A finite number; None for what is none."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if fits else None


def _objects(cells: Cells, name: str, value: Any, expected: str) -> list[Fields]:
    if not isinstance(value, list):
        cells.refuse(name, expected, kind_of(value))
    for each in value:
        if not isinstance(each, Mapping):
            cells.refuse(name, f"{expected}, each an object", f"one that is {kind_of(each)}")
    return value


@dataclass(slots=True)
class _Asked:
    """A call that waits for its reply. id: None where none was logged. spoken: read from the text."""

    id: str | None
    call: ToolCall
    spoken: bool
    answered: bool = False


@dataclass(slots=True)
class _Written:
    """A turn that is being read."""

    text: str
    asked: list[_Asked]
    log_probs: list[Array | None]
    tokens: list[float | None]
    seconds: float
    price: float
    before: tuple[tuple[str, str], ...] = ()

    def turn(self) -> TraceTurn:
        recorded = [each for each in self.log_probs if each is not None]
        counted = [count for count in self.tokens if count is not None]
        return TraceTurn(
            text=self.text,
            calls=tuple(each.call for each in self.asked),
            before=self.before,
            log_probs=_below(recorded) if len(recorded) == len(self.log_probs) else None,
            tokens=sum(counted) if len(counted) == len(self.tokens) else None,
            seconds=self.seconds,
            price=self.price,
        )


def _below(parts: Sequence[Array]) -> Array:
    """Several [T, K] one below the other, with nan beyond those of fewer alternatives."""
    if len(parts) == 1:
        return parts[0]
    width = max(each.shape[1] for each in parts)
    wide = [np.pad(each, ((0, 0), (0, width - each.shape[1])), constant_values=np.nan) for each in parts]
    return np.concatenate(wide)


def _turns(cells: Cells, messages: "Sequence[Fields | _Written]") -> tuple[tuple[TraceTurn, ...], int]:
    """The assistant's turns with what answers their calls, and how many messages of tools answer none."""
    turns: list[_Written] = []
    before: list[tuple[str, str]] = []
    strays, alone = 0, False  # alone: the message before was the assistant's, too
    for message in messages:
        if isinstance(message, _Written) or message.get("role") == "assistant":
            written = message if isinstance(message, _Written) else _written(cells, message)
            written.before = tuple(before)
            if alone and not turns[-1].asked:
                _join(turns[-1], written)
            else:
                turns.append(written)
            before, alone = [], True
            continue
        if (role := message.get("role")) not in ROLES:
            cells.refuse("messages", f"messages in {_OPENAI}", f"the role {role!r:.40}")
        alone, text = False, _text(cells, message.get("content"))
        spoken = [each for each in turns[-1].asked if each.spoken and not each.answered] if turns and not before else []
        if role in ("tool", "function"):
            strays += not _answer(message, text, turns)
        elif role == "user" and spoken:
            for each, reply in zip(spoken, _REPLY.findall(text) or [text], strict=False):
                _take(each, reply, message)
        else:
            before.append((role, text))
    return tuple(each.turn() for each in turns), strays


def _answer(message: Fields, text: str, turns: Sequence[_Written]) -> bool:
    """Give a tool's message to the call that it answers; False where there is none.

    By its id, where both have one; else the calls of the last turn are answered in order.
    """
    identifier = message.get("tool_call_id")
    waiting = [asked for turn in reversed(turns) for asked in turn.asked if not asked.answered]
    if identifier is not None and any(each.id is not None for each in waiting):
        found = next((each for each in waiting if each.id == identifier), None)
    else:
        found = next((each for each in (turns[-1].asked if turns else []) if not each.answered), None)
    if found is None:
        return False
    _take(found, text, message)
    return True


def _take(asked: _Asked, text: str, message: Fields) -> None:
    call = asked.call
    asked.call = ToolCall(call.tool, call.arguments, text, _seconds(message), _price(message))
    asked.answered = True


def _join(turn: _Written, more: _Written) -> None:
    """Two messages of the assistant's in a row are one turn."""
    turn.text = "\n".join(filter(None, (turn.text, more.text)))
    turn.asked += more.asked
    turn.log_probs += more.log_probs
    turn.tokens += more.tokens
    turn.seconds, turn.price = _sum(turn.seconds, more.seconds), _sum(turn.price, more.price)


def _sum(one: float, other: float) -> float:
    known = [each for each in (one, other) if not math.isnan(each)]
    return sum(known) if known else math.nan


def _written(cells: Cells, message: Fields) -> _Written:
    content = _text(cells, message.get("content"))
    thought = _text(cells, message.get("reasoning_content") or message.get("reasoning"))
    asked = _calls(cells, message)
    if not asked:
        asked = [_Asked(None, _spoken(block), True) for block in _CALL.findall(content)]
    if asked and (begin := _CALL_BEGINS.search(content)):
        content = content[: begin.start()]
    text = "\n".join(filter(None, (thought.strip(), content.strip())))
    log_probs = _log_probs(cells, message.get("logprobs"), (thought, content), bool(asked))
    if log_probs is None and not text:
        log_probs = np.empty((0, 0))
    usage = message.get("usage")
    generated = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    return _Written(text, asked, [log_probs], [_number(generated)], _seconds(message), _price(message))


def _text(cells: Cells, content: Any) -> str:
    """A message's content: nothing, a text, or parts of which those of text are read."""
    if content is None:
        return ""
    if isinstance(content, str):
        return encodable(content)
    parts = _objects(cells, "messages", content, "content that is text or a list of parts")
    if other := next((each.get("type") for each in parts if each.get("type") in ("tool_use", "tool_result")), None):
        cells.refuse("messages", f"messages in {_OPENAI}", f"a part of the type {other}; convert them")
    return encodable("".join(str(each.get("text") or "") for each in parts))


def _calls(cells: Cells, message: Fields) -> list[_Asked]:
    calls = list(_objects(cells, "messages", message.get("tool_calls") or [], "tool_calls as a list"))
    if isinstance(legacy := message.get("function_call"), Mapping):
        calls.append({"function": legacy})
    return [_Asked(each.get("id"), _call(each.get("function") or each.get("custom") or each), False) for each in calls]


def _call(function: Any) -> ToolCall:
    """A call that can be read: an object with the tool's name and its arguments, as JSON text or as they are."""
    if not isinstance(function, Mapping) or not isinstance(name := function.get("name"), str) or not name:
        return ToolCall("", json.dumps(function, ensure_ascii=False, default=str))
    given = next((function[key] for key in ("arguments", "parameters", "input") if function.get(key) is not None), "")
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, default=str)
    return ToolCall(encodable(name), encodable(text))


def _spoken(block: str) -> ToolCall:
    try:
        return _call(json.loads(block))
    except (ValueError, RecursionError):
        return ToolCall("", block)


def _log_probs(cells: Cells, logged: Any, said: tuple[str, str], calls: bool) -> Array | None:
    """Of the tokens of the text [T, K], None where they are not recorded."""
    tokens = logged.get("content", ()) if isinstance(logged, Mapping) else logged
    if tokens is None:
        return None
    if not isinstance(tokens, list):
        cells.refuse("logprobs", 'OpenAI\'s form, {"content": [{"token", "logprob", "top_logprobs"}]}', kind_of(logged))
    try:
        kept = tokens[: _until_the_call(tokens, said)] if calls else tokens
        others = [each.get("top_logprobs") or () for each in kept]
        counts = [len(each) for each in others]
        flat = np.fromiter((other["logprob"] for each in others for other in each), float, sum(counts))
        chosen = np.array([each["logprob"] for each in kept], float)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        cells.refuse("logprobs", "tokens with logprob and top_logprobs, numbers", f"{type(error).__name__}: {error}")
    return _alternatives(cells, flat, np.array(counts, int), chosen) if flat.size else None


def _alternatives(cells: Cells, flat: Array, counts: NDArray[np.int_], chosen: Array) -> Array:
    """Log-probabilities [T, K] of the likeliest tokens, nan beyond those that are known to be the likeliest.

    Some servers put the token that was chosen among the listed whether it belongs there or not: where it is the least of
    them, it is left out, since one that is not listed may be likelier.
    """
    there = np.arange(int(counts.max())) < counts[:, None]
    listed = np.full(there.shape, -np.inf)
    listed[there] = flat
    if not flat.max() <= 1e-3:
        cells.refuse("logprobs", "natural logarithms of probabilities, at most 0", f"{flat.max():g}")
    if (total := np.exp(listed).sum(axis=1).max()) > MORE_THAN_ALL:
        cells.refuse("logprobs", "probabilities that sum to at most 1", f"a token's that sum to {total:.3g}")
    places = np.arange(len(counts)), np.where(there, listed, np.inf).argmin(axis=1)
    there[places] &= (listed[places] != chosen) | (counts == 1)
    return np.where(there, listed, np.nan)


def _until_the_call(tokens: Sequence[Fields], said: tuple[str, str]) -> int:
    """How many tokens come before the call; 0 where the text that was said is not what these tokens spell."""
    pieces = [each["token"] for each in tokens]
    whole = "".join(pieces)
    if begin := _CALL_BEGINS.search(whole):
        end = begin.start()
    else:
        end = 0
        for text in filter(None, map(str.strip, said)):
            if (at := whole.find(text, end)) < 0:
                return 0
            end = at + len(text)
        end += len(whole[end:]) - len(whole[end:].lstrip())  # blanks may be of the last token of the text
    return int(np.searchsorted(np.cumsum([len(piece) for piece in pieces]), end, side="right"))


def _seconds(message: Fields) -> float:
    if (seconds := _number(message.get("latency"))) is not None:
        return seconds
    milliseconds = _number(message.get("latency_ms"))
    return math.nan if milliseconds is None else milliseconds / 1000


def _price(message: Fields) -> float:
    usage = message.get("usage")
    of_usage = usage.get("cost") if isinstance(usage, Mapping) else None
    known = (_number(value) for value in (message.get("price"), message.get("cost"), of_usage))
    return next((value for value in known if value is not None), math.nan)
