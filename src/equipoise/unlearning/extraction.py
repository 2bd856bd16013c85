"""How much of an answer a model writes by itself when it is helped on: exact memorization and extraction strength.

Of an answer y of n tokens after prompt x, with greedy tokens g_t = argmax p(. | x, y_<t):

    exact memorization     mean over t of [g_t = y_t]                          arXiv:2205.10770
    extraction strength    1 - min{k : g_t = y_t for all t >= k} / n           arXiv:2012.07805

Strength is the share of the answer that need not be given for the rest to be written word by word: 1 when all of it is
extracted from the prompt alone, 0 when not even its last token follows. Released code (open-unlearning) cannot say 0: its
loop stops at k = n - 1, so that what was not extracted at all scores 1 / n; `floor=True` is that reading. The end token does
not count, in either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from equipoise.data.records import Record

if TYPE_CHECKING:
    from equipoise.language import LanguageModel
    from equipoise.language.encode import Example


def exact_memorization(predicted: Tensor, labels: Tensor) -> float:
    """Share of the tokens [n] that are predicted, in [0, 1]; nan for none."""
    return (predicted == labels).double().mean().item()


def extraction_strength(predicted: Tensor, labels: Tensor, *, floor: bool = False) -> float:
    """Share of the tokens [n] before which all is predicted, in [0, 1]; nan for none. floor: at least 1 / n, as released."""
    if not len(labels):
        return math.nan
    wrong = (predicted != labels).nonzero()
    given = int(wrong[-1]) + 1 if len(wrong) else 0
    return 1 - min(given, len(labels) - 1 if floor else len(labels)) / len(labels)


@dataclass(frozen=True)
class Memorized:
    """Exact memorization and extraction strength of N records, and the tokens [N] they are over."""

    ids: tuple[str, ...]
    exact: Tensor
    strength: Tensor
    tokens: Tensor


def memorization(
    language_model: LanguageModel,
    records: Sequence[Record],
    *,
    floor: bool = False,
    max_length: int = 512,
    batch_size: int = 32,
) -> Memorized:
    """Both measures of every record's completion (of a text without prompt, of all but its first token)."""
    from equipoise.language.encode import encode

    examples = encode(language_model, records, max_length=max_length, end=False)
    exact, strength, tokens = ([math.nan] * len(records) for _ in range(3))
    for index, predicted, labels in _greedy(language_model, examples, batch_size):
        exact[index] = exact_memorization(predicted, labels)
        strength[index] = extraction_strength(predicted, labels, floor=floor)
        tokens[index] = len(labels)
    columns = [torch.tensor(column, dtype=torch.float64) for column in (exact, strength, tokens)]
    return Memorized(tuple(record.id for record in records), *columns)


def _greedy(
    language_model: LanguageModel, examples: Sequence[Example], batch_size: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(index, likeliest token at each labelled place, labels) of every example, long ones first."""
    from equipoise.language.encode import IGNORE, collate
    from equipoise.language.model import evaluating, memory_advice
    from equipoise.language.score import labelled_logits

    order = sorted(range(len(examples)), key=lambda index: len(examples[index].input_ids), reverse=True)
    with evaluating(language_model.model), memory_advice(batch_size):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = collate([examples[index] for index in chosen], language_model.pad_id, language_model.device)
            logits, labels, _ = labelled_logits(language_model.model, batch)
            sizes = [sum(label != IGNORE for label in examples[index].labels) for index in chosen]
            yield from zip(chosen, logits.argmax(-1).cpu().split(sizes), labels.cpu().split(sizes), strict=True)
