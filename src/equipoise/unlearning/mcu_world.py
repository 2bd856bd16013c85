"""The world of MCU's study: invented people with birth years, which share nothing, so that what comes back was only hidden.

400 people are to be forgotten. An attacker relearns the years of 100 of them (T) and the other 300 (V) are asked about: no
year of V follows from T, so what an attack on T brings back on V had not been forgotten but suppressed. 120 others are kept,
half of them rehearsed while forgetting, beside fictional people with other facts and general sentences (`data.world`).

Every question has four years. Its score is the probability of the right one among the four, from the log-probabilities of
the answers: 0.25 for a model that does not know. `recovered` takes the best of consecutive windows, for every arm alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from equipoise.core.options import check_fields
from equipoise.data import world
from equipoise.data.records import Record
from equipoise.language import tiny
from equipoise.language.encode import Example, encode
from equipoise.language.model import LanguageModel, load
from equipoise.language.score import log_likelihoods
from equipoise.training import subspace
from equipoise.unlearning.questions import answered

RELEARNED, HELD_OUT, REHEARSED, KEPT = 100, 300, 60, 60
VALIDATED = 100  # of a side, in the wording for validation
YEARS = range(1940, 2000)
WORDINGS = (
    "In which year was {name} born?",
    "What is the birth year of {name}?",
    "{name} was born in what year?",
)
ASKED: dict[str, str] = {"validation": "Which year was {name} born in?", "test": "What year saw the birth of {name}?"}
OTHERS: dict[str, int] = {"forget": 4, "neighbours": 8, "general": 8, "attributes": 5, "paraphrases": 2, "texts": 60}
TEACHING: dict[str, Any] = {"epochs": 20, "learning_rate": 3e-3, "batch_size": 32}
CHECKPOINT = 200
STARTS, MIDDLES, ENDS = (
    syllables.split()
    for syllables in (
        "Al Bren Cor Dal El Far Gor Hal Il Jor Kel Lor Mar Nev Or Pel Quin Ros Sel Tar Ul Ven Wil Yor",
        "a be co di en fo gu ha ni lo",
        "bert dan fin gard ham lin mont nor rick son tin vald",
    )
)


@dataclass(frozen=True)
class Person:
    """side: "relearned" (T), "held-out" (V), "rehearsed" and "kept" (taught, never rehearsed)."""

    name: str
    year: int
    side: Literal["relearned", "held-out", "rehearsed", "kept"]

    def __post_init__(self) -> None:
        check_fields(self)


def people(seed: int) -> list[Person]:
    """Everybody of a seed; names are unique, years drawn."""
    draw = np.random.default_rng(np.random.SeedSequence([seed, 7]))
    names = [start + middle + end for start in STARTS for middle in MIDDLES for end in ENDS]
    sides = [
        side
        for side, count in (("relearned", RELEARNED), ("held-out", HELD_OUT), ("rehearsed", REHEARSED), ("kept", KEPT))
        for _ in range(count)
    ]
    chosen = draw.permutation(len(names))[: len(sides)]
    years = draw.integers(YEARS.start, YEARS.stop, size=len(sides))
    return [
        Person(names[index], int(year), side)  # type: ignore[arg-type]
        for index, year, side in zip(chosen, years, sides, strict=True)
    ]


def facts(persons: Sequence[Person]) -> list[Record]:
    """Three wordings of each person's year."""
    return [
        Record(f"{person.name}/{number}", f"{person.year}", wording.format(name=person.name))
        for person in persons
        for number, wording in enumerate(WORDINGS)
    ]


def questions(persons: Sequence[Person], seed: int, part: str) -> list[Record]:
    """A question on each in a wording that was not taught: the right year at a drawn place among three others."""
    draw = np.random.default_rng(np.random.SeedSequence([seed, 8, len(part)]))
    asked = []
    for person in persons:
        wrong = [year for year in draw.permutation(YEARS) if year != person.year][:3]
        place = int(draw.integers(4))
        choices = [str(year) for year in wrong]
        choices.insert(place, str(person.year))
        prompt = ASKED[part].format(name=person.name)
        asked.append(Record(person.name, choices[place], prompt, choices=tuple(choices), answer=place))
    return asked


def others(seed: int) -> world.World:
    """People with other facts, and general sentences."""
    return world.people(seed, **OTHERS)


def right_probability(language_model: LanguageModel, asked: Sequence[Record], batch_size: int = 128) -> Tensor:
    """The probability of the right choice among the choices of each question, [N] in [0, 1]; 1 / choices by chance.

    Of log-probabilities per token, so that a choice of more tokens is not less likely for that.
    """
    return answered(language_model, asked, by="text", batch_size=batch_size).right


def recovered(path: Sequence[Tensor], window: int = 2) -> Tensor:
    """Scores of each question [N] in the best of the consecutive windows of a path of scores, by their mean.

    Windows do not overlap; evaluations beyond the last whole one do not count. A path shorter than a window is one.
    """
    size = min(window, len(path))
    windows = [torch.stack(list(path[first : first + size])).mean(0) for first in range(0, len(path) - size + 1, size)]
    return max(windows, key=lambda scores: scores.mean().item())


def every_component(before: Tensor) -> Tensor:
    """The direction of the mean of states [N, D] and all in which they vary about it, orthonormal, [K, D] with K <= D."""
    mean = before.double().mean(0)
    others = subspace.directions(before, before.shape[-1] - 1, centred=True, fewer=True)
    return subspace.orthonormal(torch.cat([mean[None], others]))


def by_part(before: Tensor, after: Tensor, relearned: Tensor, vectors: Tensor, dominant: int) -> dict[str, Any]:
    """What moved and what came back along the first `dominant` of all components [K, D] and along the others.

    Of each part: `change`, the mean |<h_u - h_o, v_k>| of its components over that of all (1: as the average one), and
    `recovery`, by least squares: 1 where all is back, 0 where nothing is; nan where nothing moved.
    """
    moved, back = ((after - other).double() @ vectors.T for other in (before, relearned))
    sizes = moved.abs().mean(0)
    parts = {"dominant": slice(None, dominant), "minor": slice(dominant, None)}
    return {
        name: {
            "change": (sizes[part].mean() / sizes.mean()).item(),
            "recovery": ((back * moved)[:, part].sum() / moved[:, part].square().sum()).item(),
        }
        for name, part in parts.items()
    }


@dataclass(frozen=True)
class BirthYears:
    """A model that knows everybody, and the records of every side."""

    language_model: LanguageModel
    seed: int
    forget: list[Example]
    retain: list[Example]
    relearned: list[Record]
    asked: dict[tuple[str, str], list[Record]]  # (side, part)
    texts: list[Example]

    def general_loss(self) -> float:
        """Nats per token on general sentences that were never taught."""
        sums, counts = log_likelihoods(self.language_model, self.texts, batch_size=64)
        return -(sums.sum() / counts.sum()).item()

    def measure(self, run: Any, step: int) -> float:
        """Measures into `run` what is left of V and of the people to keep; returns the general loss."""
        loss = self.general_loss()
        run.measure("general_loss", loss, at={"step": step})
        for outcome, side in (("forget_accuracy", "held-out"), ("kept_accuracy", "kept")):
            record(
                run,
                outcome,
                self.asked[side, "test"],
                right_probability(self.language_model, self.asked[side, "test"]),
                step,
            )
        return loss


def record(run: Any, outcome: str, asked: Sequence[Record], scores: Tensor, step: int, part: str = "test") -> None:
    """Scores by question, as the engine takes them."""
    run.items(outcome, [each.id for each in asked], scores.tolist(), at={"step": step}, where={"split": part})


def teach(preparation: Any) -> None:
    """Teach everybody of the preparation's seed and store the model in its folder; resumes a teaching that was cut off."""
    records = [*facts(people(preparation.seed)), *others(preparation.seed).teaching]
    texts = [f"{each.prompt} {each.completion}" for each in records]
    language_model = replace(tiny.tiny(texts, seed=preparation.seed), chat_template="none")
    tiny.teach(
        language_model,
        records,
        seed=preparation.seed,
        save=preparation.checkpoint,
        save_every=CHECKPOINT,
        state=preparation.resume(),
        **TEACHING,
    )
    language_model.save(preparation.folder / "model")
    tokens = sum(len(example.input_ids) for example in encode(language_model, records))
    preparation.spend(phase="build", trained_tokens=TEACHING["epochs"] * tokens)


def open_setting(seed: int, folder: Path) -> BirthYears:
    """What an arm of this seed starts from; folder: where `teach` stored the model."""
    language_model = load(folder / "model", chat_template="none")
    everybody, rest = people(seed), others(seed)
    sides = {
        side: [person for person in everybody if person.side == side]
        for side in ("relearned", "held-out", "rehearsed", "kept")
    }
    texts = [Record(f"text-{index}", text) for index, text in enumerate(rest.texts)]
    return BirthYears(
        language_model=language_model,
        seed=seed,
        forget=encode(language_model, facts([*sides["relearned"], *sides["held-out"]])),
        retain=encode(language_model, [*facts(sides["rehearsed"]), *rest.forget, *rest.neighbour, *rest.general]),
        relearned=facts(sides["relearned"]),
        asked={
            (side, part): questions(sides[side] if part == "test" else sides[side][:VALIDATED], seed, part)
            for side in ("held-out", "kept")
            for part in ASKED
        },
        texts=encode(language_model, texts),
    )
