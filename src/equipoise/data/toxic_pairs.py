"""Pairs of an unwanted text and a wanted one that says the same, and words that tell the two apart.

A row is understood by the fields it has (the first line that fits):

    toxic, neutral                            as ParaDetox (Logacheva et al. 2022); neutral may be a list, its first counts
    prompt, rejected, chosen                  preference pairs, where rejected is the unwanted one; prompt may be missing
    prompt_text, pert_gen_text, unpert_gen_text   the pairs of Lee et al. (arXiv:2401.01967)

`id` is taken when there. Other spellings are named by the caller: fields={"toxic": "rude", "neutral": "polite"}.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.files import read_regular
from equipoise.data.public import folder
from equipoise.data.records import read_rows
from equipoise.data.text import lone_surrogate, printable

FIELDS = ("toxic", "neutral", "prompt", "id")
SHAPES = (
    {"toxic": "toxic", "neutral": "neutral", "prompt": "prompt"},
    {"toxic": "rejected", "neutral": "chosen", "prompt": "prompt"},
    {"toxic": "pert_gen_text", "neutral": "unpert_gen_text", "prompt": "prompt_text"},
)
SURE = 2.5  # standard deviations: a word of one side more often than chance would put it there
WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True, slots=True)
class ToxicPair:
    """An unwanted text and a wanted one. prompt: what both answer, "" where they are texts of their own."""

    id: str
    toxic: str
    neutral: str
    prompt: str = ""


def read_toxic_pairs(
    source: str | Path | Sequence["ToxicPair | Mapping[str, Any]"], fields: Mapping[str, str] | None = None
) -> list[ToxicPair]:
    """The pairs of a file (JSON lines, CSV, Parquet) or of rows, with unique ids; those with equal sides, too.

    Raises BadInput, naming the place, for a pair of which a side is missing, for a name in `fields` that no row has, and
    where there is no pair.
    """
    fields = dict(fields or {})
    for name in fields:
        if name not in FIELDS:
            raise BadInput(f"pairs have no field {name!r} to rename. {did_you_mean(name, FIELDS)}")
    if isinstance(source, str | Path):
        path = Path(source)
        stem = path.name.split(".")[0]
        rows = [(place, f"{stem}-{number}", row) for place, number, row in read_rows(path)]
    else:
        rows = [(f"pairs[{index}]", f"pair-{index}", row) for index, row in enumerate(source)]
    known = dict.fromkeys(str(key) for _, _, row in rows if isinstance(row, Mapping) for key in row)
    for name, own in fields.items():
        if rows and own not in known:
            found = printable(", ".join(list(known)[:20])) or "no fields"
            raise BadInput(f"{rows[0][0]}: no row has the field {own!r} that was named for {name} (found: {found}).")
    pairs = [
        _pair(place, name, asdict(row), {}) if isinstance(row, ToxicPair) else _pair(place, name, row, fields)
        for place, name, row in rows
    ]
    seen: dict[str, str] = {}
    for (place, _, _), pair in zip(rows, pairs, strict=True):
        if pair.id in seen:
            raise BadInput(f"{place}: id {pair.id!r} was used before at {seen[pair.id]}; make ids unique.")
        seen[pair.id] = place
    if not pairs:
        raise BadInput(f"{source if isinstance(source, str | Path) else 'pairs'}: there is no pair to read.")
    return pairs


def telling_pairs(pairs: Sequence[ToxicPair]) -> list[ToxicPair]:
    """Those whose sides are different texts; published sets hold a few others, which were given back as they were."""
    return [pair for pair in pairs if pair.toxic.split() != pair.neutral.split()]


def paradetox() -> list[ToxicPair]:
    """The telling pairs of ParaDetox, or of its sample in EQUIPOISE_DATA; the first rewrite of each sentence."""
    found = sorted(folder("paradetox").glob("paradetox*.jsonl*"))
    if not found:
        raise BadInput(f"{folder('paradetox')} holds no paradetox*.jsonl with toxic and neutral sentences.")
    return telling_pairs(read_toxic_pairs(found[0]))


def listed_words() -> list[str]:
    """The list of bad words beside ParaDetox, for measures that need one; the product ships none."""
    return read_words(folder("paradetox") / "bad-words-en.txt")


def read_words(path: str | Path) -> list[str]:
    """A word or phrase a line, lower case, each once; empty lines do not count. Raises BadInput for none."""
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file; expected a text with a word on each line.")
    try:
        lines = read_regular(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: the words cannot be read ({error}): it must be a text in UTF-8.") from error
    words = list(dict.fromkeys(line.strip().casefold() for line in lines if line.strip()))
    if not words:
        raise BadInput(f"{path} holds no word: expected one on each line.")
    return words


def telling_words(pairs: Sequence[ToxicPair], most: int = 400) -> list[str]:
    """Words of three letters and more that stand on the unwanted side alone clearly more often than on the other alone.

    With a pairs where a word is only on the unwanted side and b where only on the other, (a - b) / sqrt(a + b) is at least
    2.5, which a word that is as often on either side passes once in 160 times. The surest first; [] where none is sure.
    """
    gone: Counter[str] = Counter()
    come: Counter[str] = Counter()
    for pair in pairs:
        toxic, neutral = (set(WORD.findall(text.casefold())) for text in (pair.toxic, pair.neutral))
        gone.update(toxic - neutral)
        come.update(neutral - toxic)
    sure = {word: (gone[word] - come[word]) / math.sqrt(gone[word] + come[word]) for word in gone}
    return sorted((word for word in sure if sure[word] >= SURE), key=lambda word: (-sure[word], word))[:most]


def _pair(place: str, default_id: str, row: Any, fields: Mapping[str, str]) -> ToxicPair:
    if not isinstance(row, Mapping):
        raise BadInput(f"{place}: expected a row with a toxic and a neutral text, found {type(row).__name__}.")
    shapes = [{**shape, **{name: fields[name] for name in fields if name in shape}} for shape in SHAPES]
    fitting = [shape for shape in shapes if shape["toxic"] in row or shape["neutral"] in row]
    if not fitting:
        found = printable(", ".join(map(str, row))) or "no fields"
        raise BadInput(
            f"{place}: nothing to read, expected toxic and neutral, or rejected and chosen (found: {found}). Name yours "
            "with --fields toxic=NAME,neutral=NAME."
        )
    names = next((shape for shape in fitting if shape["toxic"] in row and shape["neutral"] in row), fitting[0])
    toxic, neutral = (_text(place, row, names[side]) for side in ("toxic", "neutral"))
    prompt = row.get(names["prompt"])
    if prompt not in (None, "") and not isinstance(prompt, str):
        raise BadInput(f"{place}: field {names['prompt']!r}: expected text, found {type(prompt).__name__}.")
    prompt = prompt if prompt and prompt.strip() else ""
    identifier = row.get(fields.get("id", "id"))
    identifier = default_id if identifier in (None, "") else str(identifier)
    for name, text in ((names["prompt"], prompt), (fields.get("id", "id"), identifier)):
        if lone_surrogate(text) is not None:
            raise BadInput(f"{place}: field {name!r} is cut in the middle of a character: mend the pair.")
    return ToxicPair(identifier, toxic, neutral, prompt)


def _text(place: str, row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if isinstance(value, list | tuple):
        value = next(iter(value), None)
    if value is None or value == "":
        raise BadInput(f"{place}: the pair has no {field!r} side: complete the pair, or leave it out.")
    if not isinstance(value, str):
        raise BadInput(f"{place}: field {field!r}: expected text, found {type(value).__name__}.")
    if not value.strip() or lone_surrogate(value) is not None:
        raise BadInput(f"{place}: field {field!r} is empty, or cut in the middle of a character: mend the pair.")
    return value
