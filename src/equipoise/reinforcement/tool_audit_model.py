"""Entropies of the texts of traces, computed anew with a causal model: one pass a trace, at temperature 1.

The conversation is shown as the model's chat template shows it. Where that refuses it, or leaves out something that was
said, it is shown with the calls and the replies as text, and at last without the template. Logits are made at the tokens of
the texts alone, by pieces: [L, V] for a trace of L tokens never exists, but for models that change their logits after the
output matrix (soft-capping).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from equipoise.core import progress
from equipoise.core.errors import BadInput
from equipoise.core.rows import Rows
from equipoise.data.traces import Trace
from equipoise.language.encode import frame
from equipoise.language.model import evaluating, memory_advice
from equipoise.language.rollouts import score_responses
from equipoise.language.templates import render
from equipoise.reinforcement.tool_audit_measures import TextEntropies, turns_of_tokens
from equipoise.reinforcement.tool_audit_result import TOO_LONG

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

TIMED = 256  # tokens of the pass that is timed
PLACES = 6  # decimals of an entropy that is stored
Turns = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ReadTrace:
    """A trace as a model reads it, cut to its context. texts: (turn, first token, behind the last) of each that fits.

    beyond: turns whose text does not. plain: whether the chat template could not show it.
    """

    ids: tuple[int, ...]
    texts: tuple[tuple[int, int, int], ...]
    beyond: tuple[int, ...]
    plain: bool

    @property
    def digest(self) -> str:
        """Of the tokens and of which of them are measured."""
        return hashlib.sha256(json.dumps([self.ids, self.texts]).encode()).hexdigest()[:16]


def read_traces_with(language_model: LanguageModel, traces: Sequence[Trace]) -> list[ReadTrace]:
    """Each trace as the model reads it. Raises BadInput for a tokenizer without offsets, and for tokens it does not know."""
    tokenizer: Any = language_model.tokenizer
    if not tokenizer.is_fast:
        raise BadInput(
            f"{language_model.name} has a tokenizer without offsets, which texts are found by: use a fast one."
        )
    return [_read(language_model, trace) for trace in traces]


def _read(language_model: LanguageModel, trace: Trace) -> ReadTrace:
    text, spans, plain = _shown(language_model, trace)
    tokenizer: Any = language_model.tokenizer
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    begin = frame(language_model)[0] if plain else []
    ids, context = [*begin, *encoded.input_ids], language_model.context
    if max(ids, default=0) >= language_model.vocabulary:
        raise BadInput(
            f"{trace.place}: a token is unknown to {language_model.name}, which has embeddings for "
            f"{language_model.vocabulary} tokens: give the model the tokenizer that it was trained with."
        )
    ends = np.array([end for _, end in encoded.offset_mapping], int)
    starts = np.array([start for start, _ in encoded.offset_mapping], int)
    texts, beyond = [], []
    for turn, (start, end) in spans.items():
        first, behind = int(np.searchsorted(ends, start, "right")), int(np.searchsorted(starts, end, "left"))
        first, behind = max(first + len(begin), 1), behind + len(begin)  # nothing predicts the first token of all
        if behind > context:
            beyond.append(turn)
        elif first < behind:
            texts.append((turn, first, behind))
    return ReadTrace(tuple(ids[:context]), tuple(texts), tuple(beyond), plain)


def _shown(language_model: LanguageModel, trace: Trace) -> tuple[str, dict[int, tuple[int, int]], bool]:
    """The conversation as text, turn -> where its text stands there, and whether the template was left out."""
    if language_model.uses_chat_template:
        for turns in (_as_logged(trace), _as_text(trace, "tool"), _as_text(trace, "user")):
            try:
                (text,) = render(language_model, [turns], [trace.place])
            except BadInput:
                continue
            if (spans := _spans(trace, text)) is not None:
                return text, spans, False
    text = "".join(f"{turn['role']}: {turn['content']}\n\n" for turn in _as_text(trace, "tool"))
    spans = _spans(trace, text)
    assert spans is not None
    return text, spans, True


def _as_logged(trace: Trace) -> Turns:
    found: Turns = []
    for number, turn in enumerate(trace.turns):
        found += [{"role": role, "content": text} for role, text in turn.before]
        names = [f"call_{number}_{index}" for index in range(len(turn.calls))]
        calls = [
            {"id": name, "type": "function", "function": {"name": call.tool, "arguments": _arguments(call.arguments)}}
            for name, call in zip(names, turn.calls, strict=True)
        ]
        found.append({"role": "assistant", "content": turn.text} | ({"tool_calls": calls} if calls else {}))
        found += [
            {"role": "tool", "name": call.tool, "tool_call_id": name, "content": call.reply}
            for name, call in zip(names, turn.calls, strict=True)
            if call.reply is not None
        ]
    return found


def _as_text(trace: Trace, role: str) -> Turns:
    """With calls in the assistant's text, and their replies in one message of this role."""
    found: Turns = []
    for turn in trace.turns:
        found += [{"role": other, "content": text} for other, text in turn.before]
        calls = [
            json.dumps({"name": call.tool, "arguments": _arguments(call.arguments)}, ensure_ascii=False)
            for call in turn.calls
        ]
        said = [turn.text, *(f"<tool_call>\n{call}\n</tool_call>" for call in calls)]
        found.append({"role": "assistant", "content": "\n".join(filter(None, said))})
        replies = [f"<tool_response>\n{call.reply}\n</tool_response>" for call in turn.calls if call.reply is not None]
        found += [{"role": role, "content": "\n".join(replies)}] if replies else []
    return found


def _arguments(text: str) -> Any:
    """Templates take them as an object."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return given if isinstance(given, dict) else text


def _spans(trace: Trace, shown: str) -> dict[int, tuple[int, int]] | None:
    """Turn -> where its text stands in the whole; None where something that was said is not there, in its order."""
    place, spans = 0, {}
    for number, turn in enumerate(trace.turns):
        told = [(None, text) for _, text in turn.before]
        called = [(None, call.tool) for call in turn.calls]
        replied = [(None, call.reply or "") for call in turn.calls]
        for owner, text in (*told, (number, turn.text), *called, *replied):
            if not (text := text.strip()):
                continue
            if (at := shown.find(text, place)) < 0:
                return None
            place = at + len(text)
            if owner is not None:
                spans[owner] = (at, place)
    return spans


def seconds_for(language_model: LanguageModel, read: Sequence[ReadTrace]) -> float:
    """How long one pass for each of these takes, from the time of a short one."""
    if not read:
        return 0.0
    longest = max(read, key=lambda each: len(each.ids))
    ids = longest.ids[:TIMED]
    short = ReadTrace(ids, ((0, 1, len(ids)),) if len(ids) > 1 else (), (), longest.plain)
    entropies_of(language_model, short)  # the first pass of a process is slow
    began = time.perf_counter()
    entropies_of(language_model, short)
    return (time.perf_counter() - began) / max(len(ids), 1) * sum(len(each.ids) for each in read)


def left(traces: Sequence[Trace], read: Sequence[ReadTrace], rows: Rows) -> list[ReadTrace]:
    """Those that have no row yet."""
    done = {(row["trace"], row["digest"]) for row in rows}
    return [each for trace, each in zip(traces, read, strict=True) if (trace.id, each.digest) not in done]


def entropies_of(language_model: LanguageModel, read: ReadTrace) -> list[float]:
    """Entropies of the tokens of all texts of a trace, in order, in one pass."""
    device = language_model.device
    places = torch.tensor([place for _, first, behind in read.texts for place in range(first, behind)], device=device)
    if not len(places):
        return []
    ids = torch.tensor([read.ids], device=device)
    predicts = torch.zeros_like(ids, dtype=torch.bool)
    predicts[0, places - 1] = True
    response = ids[:, places]
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "predicts": predicts,
        "response": response,
        "mask": torch.ones_like(response, dtype=torch.bool),
    }
    with evaluating(language_model.model), memory_advice(1):
        found = score_responses(language_model.model, batch, entropies=True).entropies
    assert found is not None
    return [round(value, PLACES) for value in found[0].double().tolist()]


def computed(
    language_model: LanguageModel, traces: Sequence[Trace], read: Sequence[ReadTrace], rows: Rows
) -> list[TextEntropies]:
    """Entropies of all traces; those that are in `rows` already are not computed again."""
    done = {(row["trace"], row["digest"]): row["entropies"] for row in rows}
    with progress.progress("Reading traces", total=sum(len(each.ids) for each in read), unit="tokens") as bar:
        found = []
        for trace, each in zip(traces, read, strict=True):
            key = (trace.id, each.digest)
            if key not in done:
                done[key] = entropies_of(language_model, each)
                rows.add({"trace": trace.id, "digest": each.digest, "entropies": done[key]})
            bar.advance(len(each.ids))
            values = np.array(done[key], float)
            turn = turns_of_tokens({turn: behind - first for turn, first, behind in each.texts})
            found.append(TextEntropies(values, values, turn, dict.fromkeys(each.beyond, TOO_LONG)))
    return found
