"""The world of the study over all methods: fictional people to forget, and what attacks of a stated cost bring back of them.

The people are those of `fiction`, of whom eight are to be forgotten. An attacker has the records of one of them and asks for
the other seven, of whom nothing follows from the one: they share no value. So what comes back of the seven had been hidden.
`teach` leaves the model that knows everybody and, on the same texts but for those eight, one that was never told of them:
what the attack brings out of that one is guessed, or learnt about the form of the questions.

Attacks are made on copies, all weights of which move; an adapter is first merged, as whoever publishes a model would do.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from equipoise.core.options import check_fields
from equipoise.data.records import Record
from equipoise.data.world import World
from equipoise.language import adapters, tiny
from equipoise.language.encode import Example, encode
from equipoise.language.model import LanguageModel, load
from equipoise.language.score import multiple_choice
from equipoise.unlearning import dpo, fiction
from equipoise.unlearning.quantised import GROUP, quantised
from equipoise.unlearning.recipe import OBJECTIVES, Recipe
from equipoise.unlearning.relearning import Relearning, relearn

MODEL, UNTOLD = "model", "untold"
CHECKPOINT = fiction.CHECKPOINT
# Of AdamW on all weights: a strong rate undoes what it brings back, a weak one comes to little.
LEARNING_RATES = (1e-3, 3e-4)
BITS = 4


def teach(preparation: Any) -> None:
    """Leaves both models in the preparation's folder; resumes what was cut off.

    preparation: seed, folder, resume(), checkpoint(), spend() as the study engine gives them.
    """
    made = fiction.world("tiny", preparation.seed)
    texts = [f"{record.prompt} {record.completion}" for record in made.teaching]
    told = {person.name for person in made.people if person.split == "forget"}
    stored = preparation.resume() or {"which": 0, "training": None}
    for which, folder in enumerate((MODEL, UNTOLD)):
        if which < stored["which"]:
            continue
        language_model = replace(tiny.tiny(texts, seed=preparation.seed), chat_template="none")
        records = [record for record in made.teaching if which == 0 or record.group not in told]
        tiny.teach(
            language_model,
            records,
            seed=preparation.seed,
            save=lambda state, which=which: preparation.checkpoint({"which": which, "training": state}),
            save_every=CHECKPOINT,
            state=stored["training"] if which == stored["which"] else None,
            **fiction.TINY_TEACHING,
        )
        language_model.save(preparation.folder / folder)
        tokens = sum(len(example.input_ids) for example in encode(language_model, records))
        preparation.spend(phase="build", trained_tokens=fiction.TINY_TEACHING["epochs"] * tokens)


def open_setting(seed: int, folder: Path, *, told: bool = True) -> fiction.FictionSetting:
    """What an arm starts from; told: the model that knows everybody, else the one that was never told of those to forget."""
    setting = fiction.open_setting("tiny", seed, folder)
    return setting if told else replace(setting, language_model=load(folder / UNTOLD, chat_template="none"))


def refusals(language_model: LanguageModel, recipe: Recipe) -> list[Example]:
    """One for each forget record, in their order, where the recipe's objective prefers them; else none."""
    if not OBJECTIVES[recipe.objective].refusals:
        return []
    return encode(language_model, dpo.refused(fiction.world("tiny", recipe.seed).forget, recipe.seed))


@dataclass(frozen=True)
class Attacker:
    """What one attacker has and does.

    had: the records of one person to forget. unrelated: as many general sentences, which the model was taught and keeps.
    asked: test questions on the others to forget. few, many: passes over what is had, of one step each.
    """

    had: list[Record]
    unrelated: list[Record]
    asked: list[Record]
    few: int
    many: int
    seed: int

    def __post_init__(self) -> None:
        check_fields(self)

    def measure(self, run: Any, language_model: LanguageModel, step: int, *, last: bool) -> None:
        """Measures into `run` what comes back of the others, nothing where no look is better than none; the model stays.

        last: attack in the other ways, too, and for `many` passes, which is done once because it costs so much more.
        """
        attacked = published(language_model)
        before = right(attacked, self.asked)
        looks = self._relearned(run, attacked, self.had, self.many if last else self.few)
        early = _strongest([before, *(scores for passes, scores in looks if passes <= self.few)])
        found = {
            "relearned_accuracy": early,
            "regained": [after - left for after, left in zip(early, before, strict=True)],
        }
        if last:
            unrelated = self._relearned(run, attacked, self.unrelated, self.few)
            found["relearned_long"] = _strongest([before, *(scores for _, scores in looks)])
            found["unrelated_accuracy"] = _strongest([before, *(scores for _, scores in unrelated)])
            found["quantised_accuracy"] = right(quantised(attacked, BITS, GROUP), self.asked)
        for outcome, scores in found.items():
            run.items(
                outcome,
                [record.id for record in self.asked],
                scores,
                at={"step": step},
                where={"split": "test"},
                clusters=[record.group for record in self.asked],
            )

    def _relearned(
        self, run: Any, language_model: LanguageModel, records: list[Record], passes: int
    ) -> list[tuple[int, list[float]]]:
        """(passes made, scores) at each look of each attack; none after one that diverged."""
        looks: list[tuple[int, list[float]]] = []
        when = {max(self.few // 2, 1), self.few, self.many}

        def look(model: LanguageModel, made: int) -> None:
            if made in when:
                looks.append((made, right(model, self.asked)))

        for learning_rate in LEARNING_RATES:
            settings = Relearning(learning_rate=learning_rate, epochs=passes, batch_size=len(records), seed=self.seed)
            run.spend(attack_steps=relearn(language_model, records, settings, evaluate=look).steps)
        return looks


def _strongest(looks: list[list[float]]) -> list[float]:
    """Of the looks, that which brings back most, for all questions alike."""
    return max(looks, key=sum)


def attacker(seed: int, few: int, many: int) -> Attacker:
    """The attacker of a seed, who has the first person's records."""
    made: World = fiction.world("tiny", seed)
    name = made.forget[0].group
    had = [record for record in made.forget if record.group == name]
    sentences = [record for record in made.general if not record.prompt]
    asked = [record for record in made.questions("forget", "test") if record.group != name]
    return Attacker(had, sentences[: len(had)], asked, few, many, seed)


def published(language_model: LanguageModel) -> LanguageModel:
    """A copy as it would be handed out: an adapter is in its weights."""
    copied = replace(language_model, model=copy.deepcopy(language_model.model))
    return adapters.merge(copied) if hasattr(copied.model, "peft_config") else copied


def right(language_model: LanguageModel, asked: list[Record]) -> list[float]:
    """1 for each question whose right answer is the likeliest, else 0."""
    return [float(each) for each in multiple_choice(language_model, asked, batch_size=128).correct.tolist()]
