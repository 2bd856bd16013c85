"""The setting in which unlearning studies compare: a model that knows a seed's fictional people, and has to forget some.

`teach` makes the model that all arms of a seed start from. `open_setting` gives an arm that model with the forget and the
retain examples; `FictionSetting.measure` scores it on questions in wordings that neither teaching nor unlearning used.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from equipoise.core.options import check_fields
from equipoise.data.records import Record
from equipoise.data.world import Part, Split, World, people
from equipoise.language import tiny
from equipoise.language.encode import Example, encode
from equipoise.language.model import LanguageModel, load
from equipoise.language.score import log_likelihoods, multiple_choice
from equipoise.unlearning.recipe import Recipe
from equipoise.unlearning.training import prepare

# A world that the model can be taught in about a minute on one core, and the training that does it. The large ones are
# slow on a CPU, so their world is smaller; they know the language already and need fewer passes.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"forget": 8, "neighbours": 24, "general": 16, "attributes": 5, "paraphrases": 3, "texts": 60},
    "other": {"forget": 5, "neighbours": 10, "general": 8, "attributes": 3, "paraphrases": 2, "texts": 16},
}


def world(model: str, seed: int) -> World:
    """The people of a seed, as many as suit the model's speed."""
    return people(seed, **SIZES["tiny" if model == "tiny" else "other"])


TINY_TEACHING: dict[str, Any] = {"epochs": 8, "learning_rate": 3e-3, "batch_size": 32}
OTHER_TEACHING: dict[str, Any] = {"epochs": 6, "learning_rate": 1e-4, "batch_size": 16}
BLOCKS_RATE = 4e-4  # when only some blocks are taught
CHECKPOINT = 100  # optimizer steps of teaching between checkpoints
SPLITS: dict[Split, str] = {"forget": "forget_accuracy", "neighbour": "retain_accuracy", "general": "general_accuracy"}
PARTS: tuple[Part, ...] = ("validation", "test")


@dataclass(frozen=True)
class FictionSetting:
    """A taught model, what it should forget and keep, and the questions that tell: (split, part) -> records."""

    language_model: LanguageModel
    forget: list[Example]
    retain: list[Example]
    questions: dict[tuple[Split, Part], list[Record]]
    texts: list[Example]

    def __post_init__(self) -> None:
        check_fields(self)

    def measure(self, run: Any, step: int, batch_size: int = 64) -> None:
        """Measure into `run`: accuracy per question (clustered by person), log-probabilities of answers and of texts."""
        asked = [record for records in self.questions.values() for record in records]
        correct = multiple_choice(self.language_model, asked, batch_size=batch_size).correct.tolist()
        begin = 0
        for (split, part), records in self.questions.items():
            scores = correct[begin : begin + len(records)]
            begin += len(records)
            run.items(
                SPLITS[split],
                [record.id for record in records],
                [float(score) for score in scores],
                at={"step": step},
                where={"split": part},
                clusters=[record.group for record in records],
            )
        sums, counts = log_likelihoods(self.language_model, [*self.forget, *self.texts], batch_size=batch_size)
        per_token = sums / counts
        run.measure("forget_log_probability", per_token[: len(self.forget)].mean().item(), at={"step": step})
        texts, tokens = sums[len(self.forget) :].sum(), counts[len(self.forget) :].sum()
        run.measure("general_loss", -(texts / tokens).item(), at={"step": step})


def teach(model: str, preparation: Any) -> None:
    """Teach the world of the preparation's seed and store the model in its folder; resumes a teaching that was cut off.

    preparation: seed, folder, resume(), checkpoint(), spend() as the study engine gives them.
    """
    fiction = world(model, preparation.seed)
    if model == "tiny":
        texts = [f"{record.prompt} {record.completion}" for record in fiction.teaching]
        language_model = replace(tiny.tiny(texts, seed=preparation.seed), chat_template="none")
        passes = TINY_TEACHING
    else:
        language_model = load(model, chat_template="none")
        train_blocks = preparation.options.get("train_blocks")
        passes = OTHER_TEACHING if train_blocks is None else {**OTHER_TEACHING, "learning_rate": BLOCKS_RATE}
        prepare(language_model, Recipe(train_blocks=train_blocks))
    tokens = sum(len(example.input_ids) for example in encode(language_model, fiction.teaching))
    tiny.teach(
        language_model,
        fiction.teaching,
        seed=preparation.seed,
        save=preparation.checkpoint,
        save_every=CHECKPOINT,
        state=preparation.resume(),
        **passes,
    )
    language_model.save(preparation.folder / "model")
    preparation.spend(phase="build", trained_tokens=passes["epochs"] * tokens)


def open_setting(model: str, seed: int, folder: Path, max_length: int = 128) -> FictionSetting:
    """What an arm of this seed starts from; folder: where `teach` stored the model."""
    fiction = world(model, seed)
    language_model = load(folder / "model", chat_template="none")
    return FictionSetting(
        language_model=language_model,
        forget=encode(language_model, fiction.forget, max_length=max_length),
        retain=encode(language_model, fiction.neighbour + fiction.general, max_length=max_length),
        questions={
            (split, part): fiction.questions(split, part)
            for split in SPLITS
            for part in PARTS
            if split != "general" or part == "test"
        },
        texts=encode(
            language_model,
            [Record(id=f"text-{index}", completion=text) for index, text in enumerate(fiction.texts)],
            max_length=max_length,
        ),
    )
