"""Pairs of answers of which one is known to be better, read from a user's file and divided without leaks.

A row is understood by the fields it has (the first line that fits):

    question, response_A, response_B, label     JudgeBench and BiasScope; label is "A>B" or "B>A", or 1 or 2
    prompt, chosen, rejected                    TRL's preference type, plain or conversational; RewardBench
    chosen, rejected                            conversational, the question being the turns that both share

`id` (or pair_id), `domain`, `bias` and `group` are taken when there. Without an id `read_pairs` takes a digest of the texts:
what is drawn for a pair then follows neither from the file's name nor from its order.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.errors import BadInput
from equipoise.data.records import read_rows
from equipoise.data.text import lone_surrogate, printable

IDS = ("id", "pair_id")
LABELS = {"A>B": True, "B>A": False, 1: True, 2: False, "1": True, "2": False}
# Thai, Lao, Tibetan, Burmese and Khmer; kana and Han. Signs that follow a character belong to it.
_UNSPACED = (
    r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"
    r"\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}][^\w\s]*|[^\s{_UNSPACED}]+")
EXPECTED = "question, response_A, response_B and label; or prompt, chosen and rejected; or chosen and rejected as turns"


@dataclass(frozen=True, slots=True)
class Pair:
    """One question with its better and its worse answer.

    chosen_first: whether the file shows the better one first. group: pairs of one question, a cluster in intervals, never
    divided between parts. bias: what the worse answer was rewritten with, "" for none.
    Raises BadInput for half of a surrogate pair, which JSON can spell and no file or request can hold.
    """

    id: str
    question: str
    chosen: str
    rejected: str
    domain: str = ""
    group: str = ""
    chosen_first: bool = True
    bias: str = ""

    def __post_init__(self) -> None:
        for field in ("id", "question", "chosen", "rejected", "domain", "group", "bias"):
            if (at := lone_surrogate(getattr(self, field))) is not None:
                raise BadInput(
                    f"pair {self.id!r}: {field} holds half of a surrogate pair at character {at}; put U+FFFD in its place, "
                    "or what it was cut from."
                )


def read_pairs(path: str | Path, *, limit: int | None = None, left_out: list[str] | None = None) -> list[Pair]:
    """All pairs of a file (JSON lines, CSV, Parquet), or the first `limit`, with unique ids.

    Pairs of two equal answers, of which neither can be the better (JudgeBench has one), are left out and named in
    `left_out`.
    Raises BadInput, one sentence with file and line, for an empty file, a missing field, an unknown label.
    """
    pairs: list[Pair] = []
    places: dict[str, str] = {}
    alike: Counter[str] = Counter()
    for place, pair, row in islice(iterate_pairs(path, left_out=left_out), limit):
        if not _name(row, *IDS):
            digest = _digest("\x1f".join((pair.question, pair.chosen, pair.rejected)))
            alike[digest] += 1
            pair = replace(pair, id=digest if alike[digest] == 1 else f"{digest}-{alike[digest]}")
        if pair.id in places:
            raise BadInput(f"{place}: id {pair.id!r} was used before at {places[pair.id]}; make ids unique.")
        places[pair.id] = place
        pairs.append(pair)
    if not pairs:
        why = "holds only pairs of two equal answers" if left_out else "is empty"
        raise BadInput(f"{path} {why}: expected at least one pair with {EXPECTED}.")
    return pairs


def iterate_pairs(path: str | Path, *, left_out: list[str] | None = None) -> Iterator[tuple[str, Pair, dict[str, Any]]]:
    """(place, pair, row) of every pair of a file; those of two equal answers are left out and named. Raises BadInput."""
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"{path} is a folder: name the file of pairs in it (JSON lines, CSV or Parquet).")
    for place, number, row in read_rows(path):
        pair = pair_from(row, place=place, default_id=f"{path.name.split('.')[0]}-{number}")
        if pair.chosen != pair.rejected:
            yield place, pair, row
        elif left_out is not None:
            left_out.append(f"{place}: both answers are the same text")


def pair_from(row: Mapping[str, Any], *, place: str, default_id: str) -> Pair:
    """The pair that a row means. place: named in errors. Raises BadInput."""
    if {"question", "response_A", "response_B", "label"} <= row.keys():
        label = row["label"]
        if isinstance(label, bool) or not isinstance(label, int | str) or label not in LABELS:
            raise BadInput(f"{place}: label is {label!r}, expected 'A>B' or 'B>A' (or 1 or 2: which answer is better).")
        first, second = row["response_A"], row["response_B"]
        chosen, rejected = (first, second) if LABELS[label] else (second, first)
        question, chosen_first = row["question"], LABELS[label]
    elif {"prompt", "chosen", "rejected"} <= row.keys():
        question, chosen, rejected, chosen_first = row["prompt"], row["chosen"], row["rejected"], True
        turns = [_turns(chosen), _turns(rejected)]
        if all(isinstance(each, list) and len(each) > 1 for each in turns) and turns[0][:-1] == turns[1][:-1]:
            chosen, rejected = (
                turns[0][-1:],
                turns[1][-1:],
            )  # whole conversations beside the prompt that they begin with
    elif {"chosen", "rejected"} <= row.keys() and all(isinstance(_turns(row[f]), list) for f in ("chosen", "rejected")):
        turns = [_turns(row[field]) for field in ("chosen", "rejected")]
        if turns[0][:-1] != turns[1][:-1] or not turns[0][:-1]:
            raise BadInput(f"{place}: chosen and rejected must share all turns but the last.")
        question, chosen, rejected, chosen_first = turns[0][:-1], turns[0][-1:], turns[1][-1:], True
    else:
        raise BadInput(f"{place}: expected {EXPECTED}; found {printable(', '.join(sorted(map(str, row))))}.")
    question, chosen, rejected = (
        _text(value, field, place)
        for value, field in ((question, "the question"), (chosen, "the better answer"), (rejected, "the worse answer"))
    )
    try:
        return Pair(
            id=_name(row, *IDS) or default_id,
            question=question,
            chosen=chosen,
            rejected=rejected,
            domain=_name(row, "domain", "subset"),
            group=_name(row, "group") or _digest(question),
            chosen_first=chosen_first,
            bias=_name(row, "bias"),
        )
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from None


def divide(pairs: Sequence[Pair], shares: Sequence[float], *, seed: int = 42) -> list[list[Pair]]:
    """Divide pairs into parts of about these shares (they sum to 1), domain by domain, groups whole; order as given.

    Raises BadInput for a part that would be empty.
    """
    if not np.isclose(sum(shares), 1) or min(shares) <= 0:
        raise BadInput(f"shares are {list(shares)}: expected positive numbers that sum to 1.")
    generator = np.random.default_rng(seed)
    domain_of = {pair.group: pair.domain for pair in reversed(pairs)}  # of a group in several domains: the first
    part_of: dict[str, int] = {}
    counts = np.zeros(len(shares))
    for domain in sorted(set(domain_of.values())):
        groups = sorted(group for group in domain_of if domain_of[group] == domain)
        for index in generator.permutation(len(groups)):
            # The part that is furthest behind its share: in each domain, and over all, counts stay within one of it.
            part = int(np.argmax(np.asarray(shares) * (counts.sum() + 1) - counts))
            part_of[groups[index]] = part
            counts[part] += 1
    parts: list[list[Pair]] = [[] for _ in shares]
    for pair in pairs:
        parts[part_of[pair.group]].append(pair)
    if not all(parts):
        raise BadInput(
            f"Questions among the pairs: {len(part_of)}, too few to divide into {len(shares)} parts; give more pairs."
        )
    return parts


def word_count(text: str) -> int:
    """Words with blanks around them; in scripts that have none between words, such as Chinese and Thai, characters."""
    return sum(1 for _ in _WORD.finditer(text))


def shortened(text: str, words: int) -> str:
    """The first so many words (at least 1), as `word_count` counts them, with the blanks between them."""
    matches = list(islice(_WORD.finditer(text), words + 1))
    return text if len(matches) <= words else text[: matches[words - 1].end()]


def _turns(value: Any) -> Any:
    """A list of turns; Parquet and CSV may hold it as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _text(value: Any, field: str, place: str) -> str:
    value = _turns(value)
    if isinstance(value, list) and value and all(isinstance(turn, dict) and "content" in turn for turn in value):
        turns = [(str(turn.get("role", "user")), str(turn["content"])) for turn in value]
        value = turns[0][1] if len(turns) == 1 else "\n\n".join(f"{role}: {content}" for role, content in turns)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{place}: {field} is {value!r}, expected a text that is not empty.")
    return value


def _name(row: Mapping[str, Any], *fields: str) -> str:
    """The first of these fields that holds something, as text; a missing cell of a table (None, nan) holds nothing."""
    values = (row.get(field) for field in fields)
    return next((str(value) for value in values if value not in (None, "") and value == value), "")


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()[:16]
