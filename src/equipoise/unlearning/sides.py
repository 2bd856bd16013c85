"""The records of an unlearning: what is to be forgotten, what kept, and the questions that both are asked."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.errors import BadInput
from equipoise.core.files import sha256_file
from equipoise.data.records import Record, Renamed, read_records, record_from
from equipoise.unlearning.notes import of_records

CHOICES = 4
MEASURED = 200  # records of each side that are measured, evenly spread over the file


@dataclass(frozen=True)
class Sides:
    """records by side (forget, retain, general), where they came from in words, and digests of them: of files, or of rows.

    held_out: how many of the retain records were taken out of it to be `general`. whole: that side as it was given.
    """

    records: dict[str, list[Record]]
    names: dict[str, str]
    digests: dict[str, str]
    held_out: int = 0
    whole: Mapping[str, list[Record]] = field(default_factory=dict)

    @cached_property
    def questions(self) -> dict[str, list[Record]]:
        return questions(self)

    def given(self, name: str) -> list[Record]:
        """All records of a side in their order, whatever was held out of them."""
        return self.whole.get(name, self.records[name])

    def texts(self) -> list[str]:
        every = [record for side in self.records.values() for record in side]
        return [f"{record.prompt} {record.completion}" for record in every]

    @property
    def general(self) -> str:
        """The side whose texts tell of general ability: the one given for it, else what is to be kept."""
        return "general" if "general" in self.records else "retain"

    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of the files: repeated records, and records that are on both sides."""
        notes = of_records(self.records)
        for name, records in self.records.items():
            if len(records) > MEASURED:
                notes.append(f"{name}: measured on {MEASURED} of {len(records)} records, evenly spread over the file.")
        if self.held_out:
            notes.append(
                f"general: {self.held_out} records held out of retain, evenly spread over the file. Nothing trains on them; "
                "they tell when the loss budget is spent."
            )
        made_up = [name for name, asked in self.questions.items() if asked and not self.records[name][0].choices]
        if made_up:
            notes.append(
                f"{', '.join(name + '_accuracy' for name in made_up)}: the file has no choices, so each right answer stands "
                f"against the answers of the {CHOICES - 1} records with the likest prompts."
            )
        return (
            *notes,
            "The measures use the wordings of the files themselves: they tell what the model does with these questions, "
            "not that nothing of the knowledge is left. A relearning or paraphrase test asks more.",
        )


def read_sides(given: Mapping[str, Any], fields: Mapping[str, str] | None) -> Sides:
    """Files, or records. Raises BadInput for a side without records or with one id twice, and for a retain set that is the
    forget set.
    """
    records: dict[str, list[Record]] = {}
    names, digests = {}, {}
    renamed = Renamed(fields)
    for name, source in given.items():
        if isinstance(source, str | Path):
            records[name], names[name] = read_records(source, fields=fields, renamed=renamed), str(source)
            digests[name] = sha256_file(Path(source))
        else:
            records[name] = []
            for index, record in enumerate(source):
                if not isinstance(record, Record):
                    place, row = f"{name}[{index}]", dict(record)
                    renamed.see(place, row)
                    record = record_from(row, place=place, default_id=f"{name}-{index}", fields=fields)
                records[name].append(record)
            _check_ids(name, records[name])
            names[name] = f"{len(records[name])} records"
            digests[name] = digest_of(records[name])
        if not records[name]:
            raise BadInput(f"{name} holds no records: at least one is needed.")
    renamed.check()
    of_records(records)
    return Sides(records, names, digests)


def _check_ids(name: str, records: Sequence[Record]) -> None:
    """Raises BadInput for an id that was used before, as `read_records` does of files: answers are kept by ids."""
    places: dict[str, int] = {}
    for index, record in enumerate(records):
        if (first := places.setdefault(record.id, index)) != index:
            raise BadInput(f"{name}[{index}]: id {record.id!r} was used before at {name}[{first}]; make ids unique.")


def digest_of(rows: Sequence[Any]) -> str:
    """sha256 of dataclasses that were given as objects: the same number of others has another."""
    text = json.dumps([asdict(row) for row in rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def with_general(sides: Sides) -> Sides:
    """With every tenth retain record held out as `general`, where no such side was given.

    Raises BadInput for a single retain record, of which none can be held out.
    """
    if "general" in sides.records:
        return sides
    retain = sides.records["retain"]
    if len(retain) < 2:
        raise BadInput("loss_budget needs general text, and retain has no record to hold out: give --general.")
    held = subsample(range(len(retain)), min(max(len(retain) // 10, 1), MEASURED))
    chosen = set(held)
    records = sides.records | {
        "retain": [record for index, record in enumerate(retain) if index not in chosen],
        "general": [retain[index] for index in held],
    }
    names = sides.names | {"general": f"{len(held)} records of {sides.names['retain']}"}
    return replace(sides, records=records, names=names, held_out=len(held), whole={"retain": retain})


def questions(sides: Sides) -> dict[str, list[Record]]:
    """Multiple-choice records of each side: with their own choices, or with wrong answers from the likest prompts."""
    every = [record for side in sides.records.values() for record in side if record.prompt and not record.messages]
    words = [frozenset(re.findall(r"\w+", record.prompt.casefold())) for record in every]
    asked: dict[str, list[Record]] = {}
    for name, side in sides.records.items():
        asked[name] = []
        for record in subsample(side, MEASURED):
            if record.choices:
                asked[name].append(record)
            elif record.prompt and not record.messages:
                wrong = _wrong_answers(record, every, words)
                if len(wrong) == CHOICES - 1:
                    asked[name].append(replace(record, choices=(record.completion, *wrong), answer=0))
    return asked


def _wrong_answers(record: Record, every: Sequence[Record], words: Sequence[frozenset[str]]) -> list[str]:
    """Other records' answers, those first whose prompts share most words, so that wrong answers are of the same kind."""
    own = frozenset(re.findall(r"\w+", record.prompt.casefold()))
    likeness = np.array([len(own & other) / max(len(own | other), 1) for other in words])
    wrong: dict[str, None] = {}
    for index in np.argsort(-likeness, kind="stable"):
        answer = every[index].completion
        if answer != record.completion and every[index].prompt != record.prompt:
            wrong.setdefault(answer)
        if len(wrong) == CHOICES - 1:
            break
    return list(wrong)


def subsample(records: Sequence[Any], count: int) -> list[Any]:
    """`count` of them, evenly over the whole."""
    if len(records) <= count:
        return list(records)
    return [records[index] for index in np.linspace(0, len(records) - 1, count).round().astype(int)]
