"""Logits of a few classes: those of each class's one token where a prompt ends, all others left out.

B prompts of a batch, C classes. A class is the text that follows a prompt, and must be one token there: where it is several,
its probability is no softmax over next tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.records import Message
from equipoise.language.encode import encode_prompts
from equipoise.language.model import evaluating, memory_advice
from equipoise.language.rollouts import padded
from equipoise.language.score import head_reads, wide

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

_BEFORE = ("", " ", "\n")


class Classified(Protocol):
    """What a model classifies: batches of it, and their class logits [B, C] with their graph."""

    def __len__(self) -> int: ...
    def batch(self, indices: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """What the model reads of these."""
        ...

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """In float32 or float64."""
        ...


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts as token ids, and the token of each class. Only the last place goes through the output matrix."""

    rows: Sequence[Sequence[int]]
    class_ids: Sequence[int]
    pad_id: int

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        ids, mask = padded([self.rows[index] for index in indices], self.pad_id, device)
        return {"input_ids": ids, "attention_mask": mask}

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"]
        last = torch.zeros_like(mask, dtype=torch.bool)
        last[torch.arange(len(mask), device=mask.device), mask.sum(dim=1) - 1] = True
        with head_reads(model, last):
            output = model(**batch, use_cache=False)
        return wide(output.logits[0][:, list(self.class_ids)])


def read_prompts(
    language_model: LanguageModel,
    prompts: Sequence[str | Sequence[Message]],
    classes: Sequence[str],
    names: Sequence[object] | None = None,
) -> Prompts:
    """Prompts with their classes, each of which is the very text that follows (" A" behind "Type:").

    Blanks at the end of a prompt are left out: they belong to the class. names: of the prompts, for errors. Raises BadInput
    for fewer than two classes, for a class that is not one token behind every prompt, with the white-space variants of it
    that are, for two classes of one token, and for a prompt that is longer than the model's context.
    """
    if len(set(classes)) < 2 or len(set(classes)) < len(classes):
        raise BadInput(f"The classes are {', '.join(map(repr, classes)) or 'none'}: give two or more, each once.")
    rows, _ = encode_prompts(language_model, prompts)
    for name, row in zip(names or range(len(rows)), rows, strict=True):
        if len(row) >= language_model.context:
            raise BadInput(
                f"Prompt {name!r} has {len(row)} tokens and the model a context of {language_model.context}: leave it out, "
                "or shorten it."
            )
    tokens: dict[int, str] = {}
    for text in classes:
        token = _token(language_model, prompts, rows, text)
        if token is None:
            able = [
                repr(variant)
                for before in _BEFORE
                if (variant := before + text.strip()) != text
                and variant
                and _token(language_model, prompts, rows, variant) is not None
            ]
            remedy = f"Give {' or '.join(able)}." if able else "No white-space variant of it is: give it another name."
            raise BadInput(f"The class {text!r} is not one token of {language_model.name} behind the prompts. {remedy}")
        if token in tokens:
            raise BadInput(f"The classes {tokens[token]!r} and {text!r} are one and the same token: rename one.")
        tokens[token] = text
    return Prompts(rows, tuple(tokens), language_model.pad_id)


def _token(
    language_model: LanguageModel,
    prompts: Sequence[str | Sequence[Message]],
    rows: Sequence[list[int]],
    text: str,
) -> int | None:
    """The one token that this text adds to every prompt; None where it adds another number, or not the same."""
    if not text.strip():
        return None
    behind: Any
    if language_model.uses_chat_template:
        turns = [[Message("user", each)] if isinstance(each, str) else list(each) for each in prompts]
        begun = [place for place, each in enumerate(turns) if each[-1].role == "assistant"]
        # What stands before an answer that has not begun is the template's own end, the same whatever the prompt.
        chosen = [*begun, *[place for place, each in enumerate(turns) if each[-1].role != "assistant"][:1]]
        rows = [rows[place] for place in chosen]
        behind = [_with_answer(turns[place], text) for place in chosen]
    else:
        behind = [str(prompt).rstrip(" ") + text for prompt in prompts]
    found, _ = encode_prompts(language_model, behind)
    added = {
        tuple(longer[len(row) :]) if longer[: len(row)] == row else () for longer, row in zip(found, rows, strict=True)
    }
    only = added.pop() if len(added) == 1 else ()
    return only[0] if len(only) == 1 else None


def _with_answer(turns: list[Message], text: str) -> list[Message]:
    """The turns with this answer, or with this behind the answer that they end in."""
    if turns[-1].role != "assistant":
        return [*turns, Message("assistant", text)]
    return [*turns[:-1], Message("assistant", turns[-1].content.rstrip(" ") + text)]


def in_batches(
    language_model: LanguageModel,
    inputs: Classified,
    logits: Callable[[Sequence[int]], Tensor],
    batch_size: int,
    indices: Sequence[int] | None = None,
) -> Tensor:
    """`logits(indices)` of all inputs, or of these, a batch at a time, joined over the last but one dimension, [..., n, C].

    In evaluation mode, without gradients, in float64 on the CPU. Raises WorkFailed for values that are not finite.
    """
    places = range(len(inputs)) if indices is None else indices
    found = []
    with evaluating(language_model.model), memory_advice(batch_size):
        for first in range(0, len(places), batch_size):
            found.append(logits(places[first : first + batch_size]).detach().cpu().double())
    joined = torch.cat(found, dim=-2)
    if not bool(joined.isfinite().all()):
        raise WorkFailed(
            f"{language_model.name} gives logits that are not finite: its weights, or its adapter's, are bad."
        )
    return joined


def class_logits(
    language_model: LanguageModel,
    inputs: Classified,
    *,
    batch_size: int = 32,
    indices: Sequence[int] | None = None,
) -> Tensor:
    """Class logits of all inputs, or of these, [n, C] in float64 on the CPU: one pass each."""

    def some(chosen: Sequence[int]) -> Tensor:
        return inputs.logits(language_model.model, inputs.batch(chosen, language_model.device))

    return in_batches(language_model, inputs, some, batch_size, indices)
