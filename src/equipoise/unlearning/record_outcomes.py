"""What became of every record that was to be forgotten: a mean over the set hides the one that is still there.

A record survived when its answer is still likelier than HALF a token (the geometric mean of its tokens' probabilities), or
fell by less than FORGOTTEN nats per token. Loads no torch, so that a page can be drawn again from a stored folder.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.core import page as parts
from equipoise.core.terminal import one_line
from equipoise.data.records import Record
from equipoise.unlearning.notes import FORGOTTEN

HALF = 0.5
SHOWN = 20  # records that a page lists, the worst first
COSTLY = 5  # records whose removal costs most, listed with the retain record that is likest


@dataclass(frozen=True)
class RecordOutcome:
    """before, after: mean log-probability of the answer's tokens, in nats; asked: the prompt, or the text, in brief."""

    id: str
    asked: str
    before: float
    after: float

    @property
    def survived(self) -> bool:
        """Whether it counts as still known; a value that is no number counts as such."""
        return not self.after <= math.log(HALF) or not self.before - self.after >= FORGOTTEN


@dataclass(frozen=True)
class RecordWeights:
    """GUARD's scores and weights of the forget records, in their order, as `guard.Weighing` has them.

    likest: retain records whose words are likest, for the records that score highest: id -> id.
    """

    scores: tuple[float, ...]
    weights: tuple[float, ...]
    temperature: float
    effective_sample_size: float
    split_half: float = math.nan
    likest: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()


def worst_first(outcomes: Sequence[RecordOutcome]) -> list[int]:
    """Indices of the records, the likeliest answer first; what is no number before all others."""
    key = {index: math.inf if math.isnan(each.after) else each.after for index, each in enumerate(outcomes)}
    return sorted(key, key=lambda index: -key[index])


def in_words(outcomes: Sequence[RecordOutcome]) -> str:
    """How many survived and which is the worst, in a sentence; empty without outcomes."""
    if not outcomes:
        return ""
    survived = sum(each.survived for each in outcomes)
    worst = outcomes[worst_first(outcomes)[0]]
    return (
        f"{survived} of {len(outcomes)} forget records survived; the least forgotten is {worst.id!r}, whose answer went "
        f"from {_probability(worst.before)} to {_probability(worst.after)} a token."
    )


def section(outcomes: Sequence[RecordOutcome], weighed: RecordWeights | None) -> parts.Section:
    """The part of a page: the worst records, and, where they were weighed, which requests cost most."""
    order = worst_first(outcomes)
    columns = [
        *(parts.Column("record"), parts.Column("asked"), parts.Column("before", True), parts.Column("after", True)),
        *([parts.Column("score", True), parts.Column("weight", True)] if weighed else []),
        parts.Column("survived"),
    ]

    def row(index: int) -> tuple[str, ...]:
        each = outcomes[index]
        given = [f"{weighed.scores[index]:.3g}", f"{weighed.weights[index]:.2f}"] if weighed else []
        return (
            *(each.id, each.asked, _probability(each.before), _probability(each.after), *given),
            "yes" if each.survived else "no",
        )

    worst = parts.Table(
        "The least forgotten records",
        tuple(columns),
        tuple(row(index) for index in order[:SHOWN]),
        note=f"{in_words(outcomes)} Before and after: geometric mean of the probabilities of the answer's tokens. "
        f"Survived: above {HALF:g}, or down by less than {FORGOTTEN:g} nats a token. survivors.jsonl holds them, for a "
        "second pass.",
    )
    if weighed is None:
        return parts.Section("Every record", (worst,))
    costly = sorted(range(len(outcomes)), key=lambda index: -weighed.scores[index])[:COSTLY]
    likest = weighed.likest or {}
    requests = parts.Table(
        "The requests that cost most",
        (
            *(parts.Column("record"), parts.Column("asked"), parts.Column("score", True), parts.Column("weight", True)),
            parts.Column("likest retain record"),
        ),
        tuple(
            (
                outcomes[index].id,
                outcomes[index].asked,
                f"{weighed.scores[index]:.3g}",
                f"{weighed.weights[index]:.2f}",
                likest.get(outcomes[index].id, ""),
            )
            for index in costly
        ),
        note="Score: by how much, to first order, forgetting the record raises the mean loss of the retain set. "
        f"Temperature {weighed.temperature:.3g}; effective sample size {weighed.effective_sample_size:.1f} of "
        f"{len(outcomes)}. Likest: by shared words.",
    )
    return parts.Section("Every record", (worst, requests))


def likest(records: Sequence[Record], others: Sequence[Record]) -> dict[str, str]:
    """Of each record the other that shares most of its words (Jaccard): id -> id; the first of equals."""
    words = [_words(other) for other in others]
    found = {}
    for record in records:
        own = _words(record)
        shares = [len(own & each) / max(len(own | each), 1) for each in words]
        found[record.id] = others[shares.index(max(shares))].id
    return found


def survivor_lines(outcomes: Sequence[RecordOutcome], records: Sequence[Record]) -> str:
    """The survivors as JSON lines that `--forget` reads."""
    rows = [_row(record) for outcome, record in zip(outcomes, records, strict=True) if outcome.survived]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def brief(record: Record, width: int = 80) -> str:
    """What a record asks, or says where it asks nothing, on a line of at most so many characters."""
    return one_line(record.prompt or record.completion, width)


def _row(record: Record) -> dict[str, Any]:
    common: dict[str, Any] = {"id": record.id, **({"group": record.group} if record.group else {})}
    if record.messages:
        said = [{"role": message.role, "content": message.content} for message in record.messages]
        return common | {"messages": said}
    if record.choices:
        return common | {"question": record.prompt, "choices": list(record.choices), "answer": record.answer}
    if record.prompt:
        return common | {"prompt": record.prompt, "completion": record.completion}
    return common | {"text": record.completion}


def _words(record: Record) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", f"{record.prompt} {record.completion}".casefold()))


def _probability(log_probability: float) -> str:
    return f"{math.exp(min(log_probability, 0.0)):.3f}" if not math.isnan(log_probability) else "undefined"
