"""The setting of the study of GUARD: a forget set of which half shares values with the retain set and half with nobody.

People of `data.world`: of the eight to forget, four keep their neighbours, who share two of five facts with them; the
neighbours of the other four do not exist, so that no value of theirs is held by anybody else. `teach` makes the model that
knows everybody and, on the same texts but for the forget set, the oracle that was never told.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise.core.options import check_fields
from equipoise.data.records import Record
from equipoise.data.world import Part, people
from equipoise.language import tiny
from equipoise.language.encode import Example, encode
from equipoise.language.model import LanguageModel, load
from equipoise.language.score import log_likelihoods, text_loss
from equipoise.unlearning.measures import truth_ratios

FORGET, SHARING = 8, 4  # people to forget; of them those whose neighbours exist
SIZES: dict[str, int] = {
    "forget": FORGET,
    "neighbours": 48,
    "general": 16,
    "attributes": 5,
    "paraphrases": 3,
    "texts": 60,
}
TEACHING: dict[str, Any] = {"epochs": 6, "learning_rate": 3e-3, "batch_size": 32}
CHECKPOINT = 100
PARTS: tuple[Part, ...] = ("validation", "test")
MODEL, ORACLE = "model", "oracle.json"


@dataclass(frozen=True)
class GuardWorld:
    """forget, retain: what an arm sees; rehearsed: the neighbours among `retain`. questions: on the neighbours beside them.

    sharing: names of those to forget who share values with people to keep. teaching: (with, without the forget set).
    """

    forget: list[Record]
    retain: list[Record]
    rehearsed: list[Record]
    questions: dict[Part, list[Record]]
    sharing: frozenset[str]
    teaching: tuple[list[Record], list[Record]]
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        check_fields(self)


def world(seed: int) -> GuardWorld:
    """The people of a seed."""
    made = people(seed, **SIZES)
    told = [person.name for person in made.people if person.split == "forget"]
    sharing = frozenset(told[:SHARING])
    absent = {p.name for p in made.people if p.neighbour_of and p.neighbour_of not in sharing}
    rehearsed = _without(made.neighbour, absent)
    teaching = _without(made.teaching, absent)
    return GuardWorld(
        forget=made.forget,
        retain=[*rehearsed, *made.general],
        rehearsed=rehearsed,
        questions={part: _without(made.questions("neighbour", part), absent) for part in PARTS},
        sharing=sharing,
        teaching=(teaching, _without(teaching, set(told))),
        texts=made.texts,
    )


def _without(records: Sequence[Record], names: set[str]) -> list[Record]:
    return [record for record in records if record.group not in names]


def teach(preparation: Any) -> None:
    """Leaves the taught model and the oracle's probabilities of the forget records; resumes what was cut off.

    preparation: seed, folder, resume(), checkpoint(), spend() as the study engine gives them.
    """
    made = world(preparation.seed)
    texts = [f"{record.prompt} {record.completion}" for record in made.teaching[0]]
    stored = preparation.resume() or {"which": 0, "training": None}
    for which in range(stored["which"], 2):
        language_model = replace(tiny.tiny(texts, seed=preparation.seed), chat_template="none")
        records = made.teaching[which]
        tiny.teach(
            language_model,
            records,
            seed=preparation.seed,
            save=lambda state, which=which: preparation.checkpoint({"which": which, "training": state}),
            save_every=CHECKPOINT,
            state=stored["training"] if which == stored["which"] else None,
            **TEACHING,
        )
        tokens = sum(len(example.input_ids) for example in encode(language_model, records))
        preparation.spend(phase="build", trained_tokens=TEACHING["epochs"] * tokens)
        if which == 0:
            language_model.save(preparation.folder / MODEL)
        else:
            known = probabilities(language_model, encode(language_model, made.forget)).tolist()
            told = dict(zip([record.id for record in made.forget], known, strict=True))
            (preparation.folder / ORACLE).write_text(json.dumps(told), encoding="utf-8")


def probabilities(language_model: LanguageModel, examples: Sequence[Example], batch_size: int = 128) -> Tensor:
    """[N] in [0, 1]: exp of the mean log-probability of an answer's tokens, TOFU's probability."""
    sums, counts = log_likelihoods(language_model, examples, batch_size=batch_size)
    return (sums / counts).exp()


@dataclass(frozen=True)
class GuardSetting:
    """What an arm of a seed starts from. oracle: [N], the forget answers' probability for a model that was never told."""

    language_model: LanguageModel
    made: GuardWorld
    oracle: Tensor
    forget: list[Example]
    retain: list[Example]
    rehearsed: list[Example]

    def measure(self, run: Any, step: int) -> None:
        """Measure into `run`, per record (clustered by person); wording 0 of an answer validates, the others test."""
        model, made, at = self.language_model, self.made, {"step": step}
        forget, kept = probabilities(model, self.forget), probabilities(model, self.rehearsed)
        above = forget - self.oracle
        by_record = {
            "forget_excess": (made.forget, above),
            "still_known": (made.forget, (above > 0).double()),
            "retain_probability": (made.rehearsed, kept),
        }
        for outcome, (records, values) in by_record.items():
            for part in PARTS:
                chosen = [index for index, record in enumerate(records) if _part(record) == part]
                run.items(
                    outcome,
                    [records[index].id for index in chosen],
                    values[chosen].tolist(),
                    at=at,
                    where={"split": part},
                    clusters=[records[index].group for index in chosen],
                )
        for part, asked in made.questions.items():
            truth = (1 - truth_ratios(model, asked, mean="arithmetic", batch_size=128)).clamp(min=0)
            run.items(
                "retain_truth",
                [record.id for record in asked],
                truth.tolist(),
                at=at,
                where={"split": part},
                clusters=[record.group for record in asked],
            )
        sharing = torch.tensor([record.group in made.sharing for record in made.forget])
        run.measure("worst_excess", above.max().item(), at=at)
        run.measure("sharing_excess", above[sharing].mean().item(), at=at)
        run.measure("apart_excess", above[~sharing].mean().item(), at=at)
        run.measure("general_loss", text_loss(model, made.texts, batch_size=128), at=at)


def _part(record: Record) -> Part:
    return "validation" if record.id.endswith("-0") else "test"


def open_setting(seed: int, folder: Path) -> GuardSetting:
    """folder: where `teach` stored the model."""
    made = world(seed)
    language_model = load(folder / MODEL, chat_template="none")
    told = json.loads((folder / ORACLE).read_text(encoding="utf-8"))
    forget, retain, rehearsed = (encode(language_model, part) for part in (made.forget, made.retain, made.rehearsed))
    oracle = torch.tensor([told[record.id] for record in made.forget], dtype=torch.float64)
    return GuardSetting(language_model, made, oracle, forget, retain, rehearsed)
