"""The world of AlphaOne's study: a tiny model that thinks in paragraphs, errs, and waits (see `alphaone_traces`).

"Wait", "</think>" and the empty line are tokens of their own, as in models that reason; every other token is a character.

A preparation teaches the model, in rounds of new lessons until it keeps its place and adds as it was taught: where it does
not, waits cost it the thread, or its sums, which says nothing of them. On problems of the training part it then measures N,
the mean thinking, and how many waits AlphaOne inserts, so that waits at random come as often.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from equipoise.core.options import closed
from equipoise.decoding.alphaone import AlphaOne, ScheduleKind, mean_thinking
from equipoise.decoding.alphaone_traces import (
    CHARACTERS,
    MARKS,
    TAGS,
    ReadStep,
    ThinkingTask,
    lessons,
    read_steps,
    right,
    tasks,
)
from equipoise.decoding.thinking import PARAGRAPH, Common, ThinkingControl, Thought, write_thoughts
from equipoise.decoding.thinking_rivals import BudgetForcing, HardCap, Plain, RandomWaits
from equipoise.language import tiny
from equipoise.language.model import load

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

CONTEXT, BUDGET = 256, 240  # of a taught text, and tokens of thinking and answer
WITHIN = (40, 50, 60, 80, 100, 140, 180, BUDGET)  # tokens that an answer may take, along the path
TEMPERATURE = 1.0  # as the traces were drawn
ALPHA = 1.4
BATCH, LEARNING_RATE = 32, 4e-3
# Of steps, before teaching ends: of ten models of one round those above kept 0.95 under every control, one at 0.985 did not.
IN_PLACE, ROUNDS = 0.995, 4
# Of steps, and of those that are done again: 0.85 and 0.95 are taught. Of ten models nine came to 0.83 and 0.89 at least;
# the tenth, with 0.80 and 0.70, answered the less the more it thought.
SOUND = {False: 0.82, True: 0.88}
STORED, CHECKPOINT = "world.json", 100


def untaught(seed: int) -> LanguageModel:
    """The model before it learns anything."""
    made = tiny.tiny([CHARACTERS], seed=seed, tokens="characters", context=CONTEXT, width=96, layers=3)
    from tokenizers import AddedToken

    tokenizer: Any = made.tokenizer
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (TAGS.closing, TAGS.word, PARAGRAPH)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return replace(made, chat_template="none")


def prepare(preparation: Any) -> None:
    """Teach the seed's model; measure N and the waits to expect. Resumes a teaching that was cut off."""
    options = preparation.options
    language_model = untaught(preparation.seed)
    own = tasks(int(options["calibrate"]), preparation.seed + 1)
    thoughts: list[Thought] = []

    def written(control: ThinkingControl) -> list[Thought]:
        thoughts.extend(found := _think(language_model, own, control, preparation.seed, 2))
        return found

    def waits(control: ThinkingControl) -> float:
        return float(np.mean([inserted(thought) for thought in written(control)]))

    tokenizer, common = language_model.tokenizer, _common(preparation.seed)
    model: Any = language_model.model
    begun: dict[str, Any] = preparation.resume() or {"round": 0, "characters": 0, "tokens": 0}
    if "model" in begun:
        model.load_state_dict(begun["model"])
    first, characters, tokens = (int(begun[name]) for name in ("round", "characters", "tokens"))
    for number in range(first, ROUNDS):
        records = lessons(int(options["steps"]) * BATCH, preparation.seed, number)
        before = {"round": number, "characters": characters, "tokens": tokens}
        tiny.teach(
            language_model,
            records,
            seed=preparation.seed,
            epochs=1,
            learning_rate=LEARNING_RATE,
            batch_size=BATCH,
            save=lambda state, before=before: preparation.checkpoint({**before, "state": state}),
            save_every=CHECKPOINT,
            state=begun.get("state") if number == first else None,
        )
        characters += sum(len(record.prompt) + len(record.completion) for record in records)
        plain = written(Plain(tokenizer, **common))
        if (
            taught([step for each in zip(own, plain, strict=True) for step in read_steps(*each)])
            or number + 1 == ROUNDS
        ):
            break
        tokens += sum(thought.tokens for thought in thoughts)
        thoughts.clear()
        done = {"round": number + 1, "characters": characters, "tokens": tokens}
        preparation.checkpoint({**done, "model": model.state_dict()})
    language_model.save(preparation.folder / "model")
    mean = mean_thinking(thoughts)
    wanted = waits(AlphaOne(tokenizer, moment=ALPHA * mean, **common))
    came = waits(RandomWaits(tokenizer, moment=ALPHA * mean, expected=wanted, **common))
    # A thought may end before its time has come: of so many that are drawn, fewer are written.
    stored = {"mean_thinking": mean, "expected": wanted * (wanted / came if came else 1.0)}
    (preparation.folder / STORED).write_text(json.dumps(stored) + "\n", encoding="utf-8")
    preparation.spend(
        phase="build",
        taught_characters=characters,
        generated_tokens=tokens + sum(thought.tokens for thought in thoughts),
    )


def taught(steps: Sequence[ReadStep]) -> bool:
    """Whether these are the steps of a model that has learnt its lessons."""
    sound = all(
        np.mean([step.sound for step in steps if step.again == again] or [False]) >= least
        for again, least in SOUND.items()
    )
    return bool(sound and np.mean([step.in_place for step in steps]) >= IN_PLACE)


def inserted(thought: Thought) -> int:
    """Words that were written in the model's stead."""
    return sum(each.taken for each in thought.trace if each.what == "word")


@dataclass(frozen=True)
class AlphaOneWorld:
    """A taught model and problems to think about. mean_thinking: N; expected: waits to draw, that as many come as of
    AlphaOne at ALPHA."""

    language_model: LanguageModel
    tasks: list[ThinkingTask]
    mean_thinking: float
    expected: float
    seed: int

    @classmethod
    def open(cls, seed: int, folder: Path, count: int) -> AlphaOneWorld:
        """What `prepare` left, and the problems of the test part."""
        stored = json.loads((folder / STORED).read_text(encoding="utf-8"))
        language_model = load(folder / "model", device="cpu", chat_template="none")
        return cls(language_model, tasks(count, seed, "test"), stored["mean_thinking"], stored["expected"], seed)

    def think(self, control: ThinkingControl) -> list[Thought]:
        """About each problem; every control gets the same draws of tokens."""
        return _think(self.language_model, self.tasks, control, self.seed, 3)

    @closed
    def control(
        self,
        by: str,
        *,
        alpha: float = ALPHA,
        schedule: ScheduleKind = "linear",
        p: float = 0.0,
        force_end: bool = True,
        times: int = 2,
    ) -> ThinkingControl:
        """An arm's control, from its settings."""
        tokenizer, common, moment = self.language_model.tokenizer, _common(self.seed), alpha * self.mean_thinking
        made: Mapping[str, Any] = {
            "none": lambda: Plain(tokenizer, **common),
            "s1": lambda: BudgetForcing(tokenizer, times=times, **common),
            "cap": lambda: HardCap(tokenizer, moment=moment, **common),
            "random": lambda: RandomWaits(tokenizer, moment=moment, expected=self.expected, **common),
            "alphaone": lambda: AlphaOne(tokenizer, moment=moment, kind=schedule, p=p, force_end=force_end, **common),
        }
        return made[by]()


def measure(run: Any) -> None:
    """One arm: think about the seed's test problems, and weigh what came of it."""
    world = AlphaOneWorld.open(run.seed, run.prepared, int(run.options["problems"]))
    control = world.control(**run.settings)
    thoughts = world.think(control)
    ids = [task.id for task in world.tasks]
    solved = np.array([right(task, thought) for task, thought in zip(world.tasks, thoughts, strict=True)], float)
    tokens = np.array([thought.tokens for thought in thoughts])
    for most in WITHIN:
        within = solved * (tokens <= most)
        at = {"within": most, "generated_tokens": int(tokens.clip(max=most).sum())}
        if most < BUDGET:
            run.measure("accuracy", float(within.sum()), of=len(ids), at=at)
        else:
            run.items("accuracy", ids, within.tolist(), at=at)
    put = [inserted(thought) for thought in thoughts]
    spoken = [thought.ids.count(control.word[0]) for thought in thoughts]
    run.items("tokens", ids, tokens.tolist())
    run.items("thinking_tokens", ids, [thought.thinking_tokens for thought in thoughts])
    run.items("inserted", ids, put)
    run.items("spontaneous", ids, [said - own for said, own in zip(spoken, put, strict=True)])
    run.items("spent", ids, [float(not thought.ended) for thought in thoughts])
    run.items("closed_once", ids, [float(thought.ids.count(control.closing[0]) == 1) for thought in thoughts])
    for reach in MARKS:
        of = [place for place, task in enumerate(world.tasks) if task.reach == reach]
        for name, scores in (("accuracy", solved), ("tokens", tokens)):
            run.items(name, [ids[place] for place in of], scores[of].tolist(), where={"reach": reach})
    steps = [step for task, thought in zip(world.tasks, thoughts, strict=True) for step in read_steps(task, thought)]
    for name, found in (
        ("step_right", [step.right for step in steps if not step.again]),
        ("wait_right", [step.right for step in steps if step.again]),
        ("in_place", [step.in_place for step in steps]),
    ):
        run.measure(name, float(sum(found)), of=len(found)) if found else run.measure(name, float("nan"))
    run.spend(prompts=len(thoughts), generated_tokens=int(tokens.sum()))


def _think(
    language_model: LanguageModel,
    asked: Sequence[ThinkingTask],
    control: ThinkingControl,
    seed: int,
    use: int,
) -> list[Thought]:
    return write_thoughts(
        language_model,
        [task.prompt for task in asked],
        control,
        max_new_tokens=BUDGET,
        seed=[seed, use],
        batch_size=128,
    )


def _common(seed: int) -> Common:
    return {"tags": TAGS, "temperature": TEMPERATURE, "seed": seed}
