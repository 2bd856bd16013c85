"""What is measured of the calls in traces: entropy before and after, repeats, what was copied, and how traces ended.

A trace's texts are segments r_0, r_1, ..., one a turn; the calls of turn k are one step, after which r_{k+1} was written.
What entropy says of a step is defined in `entropy_tools`. Entropies of tokens are known exactly (recomputed with a model),
or within bounds (from the likeliest tokens that were logged).

N tokens, R traces, T tokens of a trace's texts, S steps of all traces. Entropies in nats.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from equipoise.core.options import closed
from equipoise.core.secrets import REDACTED, SECRET_NAME, one_line
from equipoise.data.problems import Problem
from equipoise.data.text import unified
from equipoise.data.traces import ToolCall, Trace
from equipoise.data.verify import Verifier
from equipoise.language.confidence import Bounds, entropy_bounds
from equipoise.reinforcement.entropy_tools import LEAST, Against, changes, copy_rate, reduced, segment_entropy
from equipoise.reinforcement.tool_audit_result import (
    ALIKE,
    INTERRUPTED,
    LOWERED,
    NO_LOG_PROBS,
    NOT_LOWERED,
    NOTHING_AFTER,
    OVERLAP,
    SAME,
    SHORT,
)

Array = NDArray[np.float64]
AT_ONCE = 2**20  # places of padded tokens
TEXTS_AT_ONCE = 1000  # whose entropies are bounded together
MEASURED = (LOWERED, NOT_LOWERED, OVERLAP)  # outcomes of steps whose change is known within bounds
NOTHING = (math.nan, math.nan)
NOT_SECRET = ("key", "keys")  # what a lookup is called by
_EDGE = " \t\r\n\"'`.,;:!?"
_WORD = re.compile(r"\w+|[^\w\s]")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_ANSWER_LINE = re.compile(r"^\W*(?:final )?answer\W*:\s*(.+)$", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class TextEntropies:
    """Of the tokens of a trace's texts: bounds of the entropy [T], and to which turn each belongs [T].

    missing: turn -> why nothing is known of its text.
    """

    lower: Array
    upper: Array
    turn: NDArray[np.int64]
    missing: dict[int, str]


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """Columns [S]: which trace and turn; number, from 1 in its trace; outcome, a word of `tool_audit_result`.

    before, after, change: bounds [S, 2], nan where nothing is known. copied: the share of what was written after it that
    repeats what tools replied.
    """

    trace: NDArray[np.int64]
    turn: NDArray[np.int64]
    number: NDArray[np.int64]
    outcome: tuple[str, ...]
    before: Array
    after: Array
    change: Array
    copied: Array


# Entropies of tokens, from what was logged.


def recorded(traces: Sequence[Trace], vocabularies: Sequence[int]) -> list[TextEntropies]:
    """From the log-probabilities of the likeliest tokens; a vocabulary for each trace."""
    texts: dict[int, list[tuple[int, int, Array]]] = {}
    for place, (trace, size) in enumerate(zip(traces, vocabularies, strict=True)):
        logged = [(index, turn.log_probs) for index, turn in enumerate(trace.turns)]
        texts.setdefault(size, []).extend((place, index, each) for index, each in logged if each is not None)
    bounds: dict[tuple[int, int], Array] = {}
    for size, every in texts.items():
        for start in range(0, len(every), TEXTS_AT_ONCE):
            some = every[start : start + TEXTS_AT_ONCE]
            found = _bounds([each for *_, each in some], size)
            bounds |= {(place, index): each for (place, index, _), each in zip(some, found, strict=True)}
    return [_of_trace(trace, place, bounds) for place, trace in enumerate(traces)]


def _of_trace(trace: Trace, place: int, bounds: Mapping[tuple[int, int], Array]) -> TextEntropies:
    """Tokens without alternatives make the mean of their text unknown."""
    known = {index: each for index in range(len(trace.turns)) if (each := bounds.get((place, index))) is not None}
    known = {index: each for index, each in known.items() if not np.isnan(each).any()}
    whole = np.concatenate([np.empty((2, 0)), *known.values()], axis=1)
    turn = turns_of_tokens({index: each.shape[1] for index, each in known.items()})
    missing = {index: NO_LOG_PROBS for index in range(len(trace.turns)) if index not in known}
    return TextEntropies(whole[0], whole[1], turn, missing)


def turns_of_tokens(lengths: Mapping[int, int]) -> NDArray[np.int64]:
    """Turn -> tokens of its text, as the turn of each token."""
    return np.repeat(np.array([*lengths], np.int64), np.array([*lengths.values()], np.int64))


def _bounds(texts: Sequence[Array], vocabulary: int) -> list[Array]:
    """Bounds of the entropy [2, T] for log-probabilities [T, K] with nan beyond what is known; nan where nothing is."""
    known = [~np.isnan(each) for each in texts]
    counts = np.concatenate([each.sum(axis=1) for each in known])
    flat = np.concatenate([each[there] for each, there in zip(texts, known, strict=True)])
    of_token = np.repeat(counts, counts)
    found = np.full((2, len(counts)), np.nan)
    for count in np.unique(counts[counts > 0]).tolist():
        values = torch.from_numpy(flat[of_token == count].reshape(-1, count))
        found[:, counts == count] = torch.stack(list(entropy_bounds(values, vocabulary))).numpy()
    return np.split(found, np.cumsum([len(each) for each in texts])[:-1], axis=1)


# Steps


@closed
def steps_of(traces: Sequence[Trace], entropies: Sequence[TextEntropies], *, against: Against, margin: float) -> Steps:
    """The steps of all traces, in order."""
    of_trace: list[dict[str, Any]] = [{}] * len(traces)
    for places in _batches([len(each.turn) for each in entropies]):
        turns = max(len(traces[place].turns) for place in places)
        measured = _measured([entropies[place] for place in places], turns, against, margin)
        for place, columns in zip(places, measured, strict=True):
            of_trace[place] = columns
    rates = _copy_rates(traces)
    rows = []
    for index, (trace, known, columns) in enumerate(zip(traces, entropies, of_trace, strict=True)):
        calling = [turn for turn, each in enumerate(trace.turns) if each.calls]
        for number, turn in enumerate(calling, start=1):
            why = _unknown(trace, turn, known.missing, against)
            outcome = why or str(columns["outcome"][turn])
            change = columns["change"][turn] if outcome in MEASURED else NOTHING
            copied = math.nan if why else rates[index][turn + 1]
            rows.append((index, turn, number, outcome, columns["before"][turn], columns["after"][turn], change, copied))
    trace, turn, number, outcome, before, after, change, copied = zip(*rows, strict=True)
    return Steps(
        trace=np.array(trace),
        turn=np.array(turn),
        number=np.array(number),
        outcome=outcome,
        before=np.array(before),
        after=np.array(after),
        change=np.array(change),
        copied=np.array(copied),
    )


def _unknown(trace: Trace, turn: int, missing: dict[int, str], against: Against) -> str:
    """Why nothing can be said of the step of a turn, "" where nothing stands against it."""
    if turn + 1 == len(trace.turns):
        return NOTHING_AFTER
    if trace.turns[turn + 1].before:
        return INTERRUPTED
    needed = {"previous": [turn], "first": [0], "running-minimum": range(turn + 1)}[against]
    return next((missing[each] for each in (*needed, turn + 1) if each in missing), "")


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of like length together, so that little is padded."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > AT_ONCE:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _measured(batch: Sequence[TextEntropies], turns: int, against: Against, margin: float) -> Iterator[dict[str, Any]]:
    """For each trace by its turns: outcome, and bounds [turns, 2] before, after and of the change."""
    segments = _padded([each.turn for each in batch], -1)
    sides = [_padded([getattr(each, name) for each in batch], 0.0) for name in ("lower", "upper")]
    lower, upper = (segment_entropy(each, segments, count=turns + 1) for each in sides)
    change = Bounds(
        changes(lower.means, against=against, base=upper.means), changes(upper.means, against=against, base=lower.means)
    )
    effects = reduced(change, margin=margin, joined=lower.joined)
    # Of calls in a row without a text between them, the change is that of all together: no one's credit, nor blame.
    short = lower.tokens < LEAST
    before = short[..., :-1] | short[..., :1] if against == "first" else short[..., :-1]
    neutral = (before | lower.joined[..., 1:] | change.lower.isnan()).numpy()
    decided = np.where(effects.reduced.numpy(), LOWERED, NOT_LOWERED)
    words = np.where(neutral, SHORT, np.where(effects.counted.numpy(), decided, OVERLAP))
    means = torch.stack([lower.means, upper.means], dim=-1).numpy()
    changed = torch.stack(list(change), dim=-1).numpy()
    for row in range(len(batch)):
        yield {"outcome": words[row], "before": means[row, :-1], "after": means[row, 1:], "change": changed[row]}


def _padded(rows: Sequence[NDArray[Any]], fill: float) -> torch.Tensor:
    width = max(map(len, rows))
    whole = np.full((len(rows), width), fill, dtype=rows[0].dtype)
    for place, row in enumerate(rows):
        whole[place, : len(row)] = row
    return torch.from_numpy(whole)


def _copy_rates(traces: Sequence[Trace]) -> list[Array]:
    """Of the text of each turn the share of words in three running that a reply before it has; nan for none."""
    names: dict[str, int] = {}
    words, turns = [], []
    for trace in traces:
        ids: list[int] = []
        of: list[int] = []
        for index, turn in enumerate(trace.turns):
            for text, owner in ((turn.text, index), *((call.reply or "", -1) for call in turn.calls)):
                found = [names.setdefault(word, len(names)) for word in _WORD.findall(text.lower())]
                ids += [*found, -1]  # no three words run from one text into the next
                of += [owner] * len(found) + [-2]
        words.append(np.array(ids, np.int64))
        turns.append(np.array(of, np.int64))
    rates: list[Array] = [np.empty(0)] * len(traces)
    for places in _batches([len(each) for each in words]):
        owner = _padded([turns[place] for place in places], -2)
        count = max(len(traces[place].turns) for place in places) + 1
        found = copy_rate(_padded([words[place] for place in places], -1), owner, owner == -1, count=count).numpy()
        for row, place in enumerate(places):
            rates[place] = found[row]
    return rates


# Calls


@dataclass(frozen=True, slots=True)
class Repeat:
    """That a call equals an earlier one of its trace. kind: same, alike. number: of the earlier one's step, from 1.

    replied: whether both had the same reply.
    """

    kind: str
    number: int
    replied: bool


def repeats(trace: Trace) -> list[list[Repeat | None]]:
    """For each turn with calls and each of its calls: which earlier one it repeats, the first of them."""
    exact: dict[tuple[str, str], tuple[int, ToolCall]] = {}
    loose: dict[tuple[str, str], tuple[int, ToolCall]] = {}
    found: list[list[Repeat | None]] = []
    for number, calls in enumerate((turn.calls for turn in trace.turns if turn.calls), start=1):
        found.append([])
        for call in calls:
            given = _parsed(call.arguments)
            keys = [(call.tool, json.dumps(each, sort_keys=True)) for each in (given, _loose(given))]
            kind, earlier = next(
                (
                    (kind, known[key])
                    for kind, known, key in zip((SAME, ALIKE), (exact, loose), keys, strict=True)
                    if key in known
                ),
                ("", None),
            )
            alike = earlier is not None and call.reply is not None and _same_text(call.reply, earlier[1].reply)
            found[-1].append(None if earlier is None else Repeat(kind, earlier[0], alike))
            for known, key in zip((exact, loose), keys, strict=True):
                known.setdefault(key, (number, call))
    return found


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _loose(value: Any) -> Any:
    """As people take arguments for the same: without case, blanks and marks at the ends of texts; 1.0 is 1.

    Nothing within a text goes but blanks: 2*3 and 2/3 are two questions.
    """
    if isinstance(value, dict):
        return {key: _loose(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_loose(each) for each in value]
    if isinstance(value, str):
        return " ".join(unified(value).casefold().split()).strip(_EDGE)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else value


def _same_text(one: str, other: str | None) -> bool:
    return other is not None and one.split() == other.split()


def shown_arguments(call: ToolCall, secrets: Sequence[str]) -> str:
    """Arguments for a reader: one line, not too long, without what is a secret by its name or looks like one."""
    given = _parsed(call.arguments)
    text = json.dumps(_without_secrets(given), ensure_ascii=False) if isinstance(given, dict | list) else call.arguments
    return one_line(text, secrets)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_secrets(each) for each in value]
    if not isinstance(value, dict):
        return value
    secret = {key for key in value if SECRET_NAME.search(key) and key.lower() not in NOT_SECRET}
    return {key: REDACTED if key in secret else _without_secrets(each) for key, each in value.items()}


# Traces


def right(traces: Sequence[Trace], verifier: Verifier, right_at: float) -> list[bool | None]:
    """Whether each trace was right: its score, else its answer against its gold; None where it has neither."""
    scores = [trace.score for trace in traces]
    asked = [place for place, trace in enumerate(traces) if trace.score is None and trace.gold]
    problems = [Problem(traces[place].id, "", traces[place].gold) for place in asked]
    graded = verifier(problems, [final_text(traces[place].answer, verifier.name) for place in asked]) if asked else []
    for place, score in zip(asked, graded, strict=True):
        scores[place] = score.value
    return [None if score is None else score >= right_at for score in scores]


def final_text(answer: str, kind: str) -> str:
    """What of an answer is compared: for `exact` and `f1`, which compare all of it, what is marked as the answer."""
    if kind in ("exact", "f1"):
        for marked in (_ANSWER, _ANSWER_LINE):
            if found := marked.findall(answer):
                return found[-1].strip()
    return answer
