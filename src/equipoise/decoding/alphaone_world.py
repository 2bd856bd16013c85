"""The world of AlphaOne's study: a tiny model that thinks in paragraphs, errs, and sometimes does a step again.

    7+5-3\n     7+5=2\n\nWait 7+5=2\n\n2-3=9\n\n</think>#9

Chains of operators (`data.arithmetic`), a step a paragraph. The traces that it is taught have errors in 15 % of the steps;
in 10 % of the places a paragraph with "Wait" does the step before again, from the true value, and is right in 90 %. It may
come several times. In a part of them the thinking ends early, and the steps that are left stand in the answer, without a
"Wait". "Wait", "</think>" and the empty line are tokens, as in models that reason; every other token is a character.

A preparation teaches the model, and measures N and how many waits AlphaOne would insert, on problems of the training part.
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
from equipoise.data.arithmetic import (
    CHARACTERS,
    MISTAKES,
    SEPARATOR,
    WAIT,
    ArithmeticProblem,
    Mistake,
    check_steps,
    problems,
    solution,
)
from equipoise.data.records import Record
from equipoise.decoding.alphaone import AlphaOne, ScheduleKind, mean_thinking
from equipoise.decoding.thinking import PARAGRAPH, Common, Tags, ThinkingControl, Thought, write_thoughts
from equipoise.decoding.thinking_rivals import BudgetForcing, HardCap, Plain, RandomWaits, expected_waits
from equipoise.language import tiny
from equipoise.language.model import load

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

LEVEL, OPERATORS = 5, "+-"
ERROR, AGAIN, RIGHT, MORE, EARLY = 0.15, 0.1, 0.9, 0.3, 0.25
BUDGET = 120  # tokens of thinking and answer
TEMPERATURE = 1.0  # as the traces were drawn
ALPHA = 1.4
TAGS = Tags("", "</think>")
STORED, CHECKPOINT = "world.json", 100


def trace(problem: ArithmeticProblem, generator: np.random.Generator) -> str:
    """One text to be taught: thinking, its end, an answer."""
    planted: dict[int, Mistake] = {}
    for place in range(len(problem.steps)):
        if generator.random() < ERROR:
            kinds = MISTAKES[problem.kind]
            planted[place] = kinds[int(generator.random() * len(kinds))]
    # Where errors are a chance, a wait errs as often as any step; where they are planted it never does.
    error = ERROR if generator.random() < (1 - RIGHT) / ERROR else planted
    steps = solution(problem, error=error, correct=AGAIN, wait=AGAIN, generator=generator).steps
    paragraphs: list[str] = []
    for step in steps:
        while step.wait and generator.random() < MORE:
            paragraphs.append(WAIT + _rederived(problem, step.place or 0, generator))
        paragraphs.append(step.text)
    last = max((place for place, text in enumerate(paragraphs) if text.startswith(WAIT)), default=-1) + 1
    cut = len(paragraphs)
    if generator.random() < EARLY:
        cut = max(last, 1 + int(generator.random() * len(paragraphs)))
    thinking = "".join(paragraph + PARAGRAPH for paragraph in paragraphs[:cut])
    return f"{thinking}{TAGS.closing}{SEPARATOR.join(paragraphs[cut:])}#{steps[-1].value}"


def _rederived(problem: ArithmeticProblem, place: int, generator: np.random.Generator) -> str:
    said, _, value = problem.steps[place].rpartition("=")
    if generator.random() < RIGHT:
        return problem.steps[place]
    return f"{said}={(int(value) + 1 + int(generator.random() * 9)) % 10}"


def lessons(count: int, seed: int) -> list[Record]:
    """So many traces, each of another draw, of problems of the training part."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    pool = problems(min(count, 4000), seed=seed, kind="chain", levels=(LEVEL,), operators=OPERATORS)
    chosen = [pool[int(generator.random() * len(pool))] for _ in range(count)]
    return [
        Record(id=str(place), prompt=problem.prompt, completion=trace(problem, generator), group=problem.id)
        for place, problem in enumerate(chosen)
    ]


def untaught(seed: int) -> LanguageModel:
    """The model before it learns anything."""
    made = tiny.tiny([CHARACTERS], seed=seed, tokens="characters", context=160)
    from tokenizers import AddedToken

    tokenizer: Any = made.tokenizer
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (TAGS.closing, TAGS.word, PARAGRAPH)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return replace(made, chat_template="none")


def right(problem: ArithmeticProblem, thought: Thought) -> bool:
    """Whether the answer is the problem's, after steps that are read from the thinking and the answer alike."""
    return thought.closed and check_steps(problem, _steps(thought)).right


def _steps(thought: Thought) -> str:
    return thought.thinking.replace(PARAGRAPH, SEPARATOR) + thought.answer


def prepare(preparation: Any) -> None:
    """Teach the seed's model; measure N, plain accuracy and the waits to expect. Resumes a teaching that was cut off."""
    options = preparation.options
    language_model = untaught(preparation.seed)
    records = lessons(int(options["steps"]) * 32, preparation.seed)
    tiny.teach(
        language_model,
        records,
        seed=preparation.seed,
        epochs=1,
        learning_rate=2e-3,
        batch_size=32,
        save=preparation.checkpoint,
        save_every=CHECKPOINT,
        state=preparation.resume(),
    )
    language_model.save(preparation.folder / "model")
    own = problems(
        int(options["calibrate"]), seed=preparation.seed + 1, kind="chain", levels=(LEVEL,), operators=OPERATORS
    )
    plain = _think(
        language_model, own, Plain(language_model.tokenizer, **_common(preparation.seed)), preparation.seed, 2
    )
    mean = mean_thinking(plain)
    tokenizer = language_model.tokenizer
    alphaone = AlphaOne(tokenizer, moment=ALPHA * mean, **_common(preparation.seed))
    stored = {
        "mean_thinking": mean,
        "expected": expected_waits(alphaone, [thought.ids for thought in plain]),
        "accuracy": float(np.mean([right(problem, thought) for problem, thought in zip(own, plain, strict=True)])),
    }
    (preparation.folder / STORED).write_text(json.dumps(stored) + "\n", encoding="utf-8")
    taught = sum(len(record.prompt) + len(record.completion) for record in records)
    preparation.spend(
        phase="build", taught_characters=taught, generated_tokens=sum(thought.tokens for thought in plain)
    )


@dataclass(frozen=True)
class AlphaOneWorld:
    """A taught model and problems to think about. mean_thinking: N; expected: waits that AlphaOne would insert at ALPHA."""

    language_model: LanguageModel
    problems: list[ArithmeticProblem]
    mean_thinking: float
    expected: float
    seed: int

    @classmethod
    def open(cls, seed: int, folder: Path, count: int) -> AlphaOneWorld:
        """What `prepare` left, and the problems of the test part."""
        stored = json.loads((folder / STORED).read_text(encoding="utf-8"))
        asked = problems(count, seed=seed, kind="chain", levels=(LEVEL,), operators=OPERATORS, part="test")
        language_model = load(folder / "model", device="cpu", chat_template="none")
        return cls(language_model, asked, stored["mean_thinking"], stored["expected"], seed)

    def think(self, control: ThinkingControl) -> list[Thought]:
        """About each problem; every control gets the same draws of tokens."""
        return _think(self.language_model, self.problems, control, self.seed, 3)

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
    ids = [problem.id for problem in world.problems]
    solved = np.array(
        [right(problem, thought) for problem, thought in zip(world.problems, thoughts, strict=True)], float
    )
    inserted = [sum(each.taken for each in thought.trace if each.what == "word") for thought in thoughts]
    spoken = [thought.ids.count(control.word[0]) for thought in thoughts]
    run.items("accuracy", ids, solved)
    run.items("tokens", ids, [thought.tokens for thought in thoughts])
    run.items("thinking_tokens", ids, [thought.thinking_tokens for thought in thoughts])
    run.items("inserted", ids, inserted)
    run.items("spontaneous", ids, [said - put for said, put in zip(spoken, inserted, strict=True)])
    run.items("spent", ids, [float(not thought.ended) for thought in thoughts])
    run.items("closed_once", ids, [float(thought.ids.count(control.closing[0]) == 1) for thought in thoughts])
    steps = [
        step
        for problem, thought in zip(world.problems, thoughts, strict=True)
        for step in check_steps(problem, _steps(thought)).steps
    ]
    for name, wait in (("step_right", False), ("wait_right", True)):
        found = [step.right for step in steps if step.wait == wait]
        run.measure(name, float(sum(found)), of=len(found)) if found else run.measure(name, float("nan"))
    run.spend(prompts=len(thoughts), generated_tokens=sum(thought.tokens for thought in thoughts))


def _think(
    language_model: LanguageModel,
    asked: Sequence[ArithmeticProblem],
    control: ThinkingControl,
    seed: int,
    use: int,
) -> list[Thought]:
    return write_thoughts(
        language_model,
        [problem.prompt for problem in asked],
        control,
        max_new_tokens=BUDGET,
        seed=[seed, use],
        batch_size=128,
    )


def _common(seed: int) -> Common:
    return {"tags": TAGS, "temperature": TEMPERATURE, "seed": seed}
