"""Public data sets as they are published, under the folder that the variable EQUIPOISE_DATA names.

A sub-folder each: `tofu` (Maini et al. 2024, arXiv:2401.06121), `wmdp` or `wmdp-deduped` (Li et al. 2024,
arXiv:2403.03218), `rwku` (Jin et al. 2024, arXiv:2406.10890). Files may be JSON lines (plain or gzip) or, as on the Hugging
Face hub, Parquet.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.options import closed
from equipoise.data.records import EXTENSIONS, Record, read_records, read_rows, record_from

VARIABLE = "EQUIPOISE_DATA"

# TOFU: 200 authors with 20 questions each, in the order of the published `full` set; the splits are ranges of it.
TOFU_RECORDS = 4000
TOFU_PER_AUTHOR = 20
TOFU_FORGET = {"forget01": 40, "forget05": 200, "forget10": 400}
TOFU_RETAIN = {"retain99": 40, "retain95": 200, "retain90": 400}
TOFU_FILES = (
    "full",
    "holdout10",
    "forget01_perturbed",
    "forget05_perturbed",
    "forget10_perturbed",
    "retain_perturbed",
    "real_authors_perturbed",
    "world_facts_perturbed",
    "real_authors_mc",
    "world_facts_mc",
)
RWKU_LEVELS: Mapping[str, tuple[int, ...]] = {"forget": (1, 2, 3), "neighbor": (1, 2), "passages": ()}


def folder(name: str) -> Path:
    """The folder of a data set. Raises BadInput, in one sentence, when the variable or the data set is not there."""
    root = os.environ.get(VARIABLE)
    if not root:
        raise BadInput(f"this needs the data set {name!r}: set {VARIABLE} to the folder that holds {name}/.")
    path = Path(root) / name
    if not path.is_dir():
        there = [entry.name for entry in Path(root).iterdir() if entry.is_dir()] if Path(root).is_dir() else []
        raise BadInput(f"{VARIABLE}={root} has no data set {name!r}. {did_you_mean(name, there)}")
    return path


def tofu(split: str = "full", *, limit: int | None = None) -> list[Record]:
    """A split of TOFU; group is the author ("author 198"), ids are positions in the full set.

    split: full, forget01/05/10, retain99/95/90, holdout10, one of the *_perturbed sets (with paraphrases and wrong
    answers), or real_authors_mc, world_facts_mc (with choices). Raises BadInput for another name.
    """
    known = (*TOFU_FILES, *TOFU_FORGET, *TOFU_RETAIN)
    if split not in known:
        raise BadInput(f"TOFU has no split {split!r}. {did_you_mean(split, known)}")
    path = _file(folder("tofu"), split if split in TOFU_FILES else "full")
    if split.endswith("_mc"):
        return [_with_options(row, path, number) for number, row in _some(path, limit)]
    if split in TOFU_FORGET:
        return _authors(path, TOFU_RECORDS - TOFU_FORGET[split], TOFU_RECORDS)[:limit]
    if split in TOFU_RETAIN:
        return _authors(path, 0, TOFU_RECORDS - TOFU_RETAIN[split])[:limit]
    if split == "full":
        return _authors(path, 0, TOFU_RECORDS)[:limit]
    records = read_records(path, limit=limit)
    first = TOFU_RECORDS - TOFU_FORGET.get(split.removesuffix("_perturbed"), TOFU_RECORDS)
    if split in ("holdout10", "real_authors_perturbed", "world_facts_perturbed"):
        return records
    return [_of_author(record, first + index) for index, record in enumerate(records)]


@closed
def wmdp(
    domain: Literal["bio", "cyber", "chem"],
    kind: Literal["mcq", "corpus"] = "mcq",
    *,
    split: str | None = None,
    limit: int | None = None,
) -> list[Record]:
    """WMDP's questions, or texts on them, of one domain.

    From the folder `wmdp` (as published: wmdp-bio as Parquet or JSON lines, bio-forget-corpus.jsonl) or, failing that,
    `wmdp-deduped`. There a split (T, V, dev_T, dev_V) may be asked for, and the corpus is short restatements of the
    answers, one record a sentence, with their question as group. Raises BadInput.
    """
    try:
        path = folder("wmdp")
    except BadInput:
        path = folder("wmdp-deduped")
    if path.name == "wmdp":
        if split is not None:
            raise BadInput(f"{path}: the published WMDP has no splits; leave split out.")
        stems = (
            (f"wmdp-{domain}", f"{domain}-mcq") if kind == "mcq" else (f"{domain}-forget-corpus", f"{domain}-corpus")
        )
        return read_records(_file(path, *stems), limit=limit)
    file = _file(path, f"{domain}-{kind}")
    rows = [(number, row) for number, row in _some(file, None) if split in (None, row.get("split"))]
    if not rows:
        splits = sorted({str(row.get("split")) for _, row in _some(file, None)})
        raise BadInput(f"{file} has no split {split!r}. {did_you_mean(str(split), splits)}")
    if kind == "mcq":
        wanted = {row["id"] for _, row in rows}
        return [record for record in read_records(file) if record.id in wanted][:limit]
    return [
        record_from(
            {"text": sentence, "group": row["question"]},
            place=f"{file}:{number}",
            default_id=f"{domain}-corpus-{number}-{index}",
        )
        for number, row in rows
        for index, sentence in enumerate(row["sentences"])
    ][:limit]


@closed
def rwku(
    kind: Literal["forget", "neighbor", "passages"] = "forget",
    *,
    subjects: Sequence[str] | None = None,
    level: Literal[1, 2, 3] | None = None,
    limit: int | None = None,
    path: str | Path | None = None,
) -> list[Record]:
    """RWKU's probes of real, famous people, or texts on them; group is the person who is to be forgotten.

    kind: forget, what is to go; neighbor, facts close by that are to stay; passages, texts, without levels. level: 1 blanks
    to fill, 2 questions, 3 adversarial forms of questions (forget only); all when not given. subjects: people by name, all
    when not given. path: the folder, in place of `rwku` in the one that EQUIPOISE_DATA names. Prompts are the published
    wordings; the blank of level 1 is mostly `___`, and a few probes have none.

    Read are `probes` and `passages` as one file each, or, as published, `1_Stephen_King/forget_level1.json` and so on. Ids
    are positions in these. Raises BadInput for a level that a kind has not, and for a name that nobody in the data has.
    """
    levels = RWKU_LEVELS[kind]
    if level is not None and level not in levels:
        raise BadInput(f"RWKU's {kind} have {f'levels {levels}' if levels else 'no levels'}, and level is {level}.")
    source = folder("rwku") if path is None else Path(path)
    rows = _rwku_rows(source, kind, levels if level is None else (level,))
    people = list(dict.fromkeys(record.group for record in rows))
    for name in subjects or ():
        if name not in people:
            raise BadInput(f"{source} has no {kind} of {name!r}. {did_you_mean(name, people)}")
    return [record for record in rows if subjects is None or record.group in subjects][:limit]


def _rwku_rows(source: Path, kind: str, levels: tuple[int, ...]) -> list[Record]:
    """In the order of the file, or of people by their numbers and, of each, of the levels."""
    stem = "passages" if kind == "passages" else "probes"
    files = [source / (stem + extension) for extension in EXTENSIONS if (source / (stem + extension)).exists()]
    if files:
        return [
            _rwku_record(row, kind, f"{files[0]}:{number}", f"{stem}-{number}")
            for number, row in _some(files[0], None)
            if stem == "passages" or (row.get("set") == kind and str(row.get("level")) in map(str, levels))
        ]
    names = ["passage"] if kind == "passages" else [f"{kind}_level{level}" for level in levels]
    entries = source.iterdir() if source.is_dir() else ()
    numbered = [(int(found[1]), entry) for entry in entries if (found := re.match(r"(\d+)_", entry.name))]
    records = [
        _rwku_record(row, kind, f"{entry / name}.json: item {number}", f"{entry.name}-{name}-{number}")
        for _, entry in sorted(numbered)
        for name in names
        for number, row in _some(entry / f"{name}.json", None)
    ]
    if not records:
        raise BadInput(f"{source} has neither a file {stem} nor folders of people such as 1_Stephen_King.")
    return records


def _rwku_record(row: Mapping[str, Any], kind: str, place: str, default_id: str) -> Record:
    names = ("text",) if kind == "passages" else ("query", "answer")
    for name in ("subject", *names):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise BadInput(f"{place}: expected RWKU's subject, {', '.join(names)}, and {name!r} is no text.")
    said = {"text": row["text"]} if kind == "passages" else {"question": row["query"], "answer": row["answer"]}
    return record_from({**said, "group": row["subject"]}, place=place, default_id=default_id)


def _file(path: Path, *stems: str) -> Path:
    for stem in stems:
        for extension in EXTENSIONS:
            if (path / (stem + extension)).exists():
                return path / (stem + extension)
        shards = sorted((path / stem).glob("*.parquet"))  # a configuration on the hub is a folder of one test shard
        if len(shards) == 1:
            return shards[0]
    raise BadInput(f"{path} has no file {' or '.join(stems)} with one of {', '.join(EXTENSIONS)}.")


def _some(path: Path, limit: int | None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for _, number, row in read_rows(path):
        if limit is not None and number > limit:
            return
        yield number, row


def _authors(path: Path, start: int, stop: int) -> list[Record]:
    records = read_records(path)
    if len(records) != TOFU_RECORDS:
        raise BadInput(
            f"{path}: {len(records)} records, expected TOFU's {TOFU_RECORDS}; its splits are ranges of them."
        )
    return [_of_author(record, start + index) for index, record in enumerate(records[start:stop])]


def _of_author(record: Record, position: int) -> Record:
    return replace(record, id=str(position), group=f"author {position // TOFU_PER_AUTHOR}")


def _with_options(row: Mapping[str, Any], path: Path, number: int) -> Record:
    options = [row[name] for name in sorted(row) if name.startswith("option")]
    if row.get("answer") not in options:
        raise BadInput(f"{path}:{number}: expected question, option1, option2, ... and the answer among them.")
    choices = {"question": row.get("question"), "choices": options, "answer": options.index(row["answer"])}
    return record_from(choices, place=f"{path}:{number}", default_id=f"{path.name.split('.')[0]}-{number}")
