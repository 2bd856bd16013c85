"""A tiny model that can already do some arithmetic: what studies of reinforcement learning start from.

It is taught on written solutions until so many of those that it samples at temperature 1 are sound as its world asks for,
and stops there: what reinforcement finds is a model in the middle of learning, right on some levels and seldom on others.

    levels    chains; the longer, the less often taught and solved
    routes    operators to be found. Most of the solutions taught try additions alone, whether these lead to the answer or
              not, so that this route dominates and the others are rare
    format    short chains whose answer counts in the strict form only, where most of those taught end in the habitual one

    made = arithmetic_model("levels", seed=0)            in a study's `prepare`: teach(world, preparation), then open_model

Arithmetic is learnt from chains in every world: one-digit tables first, then where the digits stand. Measured with seed 0,
on one core that others used too (60 to 110 s of its time; some 5,000 tokens/s when it is free):

    levels    450 steps, 277,000 tokens    solved at temperature 1, levels 2 to 6: 0.81 0.61 0.55 0.30 0.02
    routes    375 steps, 217,000 tokens    levels 2 and 3: 0.18 0.12; 62 % of the samples are additions alone, 71 % sound
    format    375 steps, 228,000 tokens    levels 2 and 3: 0.19 0.12; 24 % in the strict form, and greedily none

Seeds 1000 and 1001 came there after 400 and 375 steps (levels) and 325 (format). With a share of 0.8 of additions alone in
`routes` the other routes were not learnt: of the right ones 36 % had a probability above 0.001 (with 0.6, of three seeds, 80
to 97 %; the slowest was 0.70 sound after 550 steps).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from equipoise.core.errors import WorkFailed
from equipoise.core.options import check_fields, closed
from equipoise.data.arithmetic import (
    CHARACTERS,
    ArithmeticProblem,
    Form,
    Kind,
    check_steps,
    problems,
    solution,
)
from equipoise.data.records import Record
from equipoise.language import tiny
from equipoise.language.generate import generate
from equipoise.language.model import LanguageModel, load
from equipoise.training.loop import TrainerState
from equipoise.training.order import without_replacement

World = Literal["levels", "routes", "format"]

STEPS, BATCH_SIZE, LEARNING_RATE = 600, 32, 2e-3  # a higher rate, or larger batches, need more tokens
MEASURE_EVERY, CHECKPOINT = 25, 100  # steps
MEASURED = 120  # samples that decide when to stop
RATES = "warm_start.json"
_MOST = {1: 150, 2: 3000}  # problems of a level to teach with; longer ones are as good as endless


@dataclass(frozen=True)
class WarmStart:
    """A world: what is asked (kind, levels, and the form that counts), what is taught, and where teaching stops.

    taught: (kind, level) -> weight. sound: the share of sound solutions, as a mean over the levels, at which it stops.
    max_new_tokens: of the longest right solution, with its end. dominant: of the routes taught, the share that is additions
    alone; the others lead to the answer. strict: of the answers taught, the share in the strict form; None where no form is
    asked for.
    """

    kind: Kind
    levels: tuple[int, ...]
    taught: Mapping[tuple[Kind, int], float]
    sound: float
    max_new_tokens: int
    dominant: float = 0.0
    strict: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def solved(self, problem: ArithmeticProblem, text: str) -> bool:
        """Whether this solution is sound, right, and in the form that counts: luck with a last digit does not count."""
        read = check_steps(problem, text)
        wanted: Form = "plain" if self.strict is None else "strict"
        return read.right and read.form == wanted and self.is_sound(problem, text)

    def is_sound(self, problem: ArithmeticProblem, text: str) -> bool:
        """Whether each step follows, up to an answer: of the form and of where a route leads this says nothing."""
        read = check_steps(problem, text)
        ended = read.answer is not None and read.steps[-1:] and read.steps[-1].place == len(problem.steps) - 1
        return bool(ended) and read.first_error is None


_CHAINS: dict[tuple[Kind, int], float] = {("chain", 1): 9, ("chain", 2): 7, ("chain", 3): 4}
WORLDS: dict[World, WarmStart] = {
    "levels": WarmStart(
        kind="chain",
        levels=(2, 3, 4, 5, 6),
        taught={**_CHAINS, ("chain", 4): 1.5, ("chain", 5): 0.6, ("chain", 6): 0.2},
        sound=0.45,
        max_new_tokens=36,
    ),
    "routes": WarmStart(
        kind="routes",
        levels=(2, 3),
        taught={("chain", 1): 9, ("chain", 2): 5, ("routes", 2): 5, ("routes", 3): 4},
        sound=0.65,
        max_new_tokens=18,
        dominant=0.6,
    ),
    "format": WarmStart(kind="chain", levels=(2, 3), taught=_CHAINS, sound=0.65, max_new_tokens=20, strict=0.25),
}


class SolveRate(NamedTuple):
    """How many of how many samples solved their problem."""

    solved: int
    of: int

    @property
    def rate(self) -> float:
        """In [0, 1]; nan without samples."""
        return self.solved / self.of if self.of else math.nan


@dataclass(frozen=True)
class ArithmeticModel:
    """A model at its warm start, problems to go on with, and its solve rates on those for testing, by level.

    steps, tokens: of its teaching.
    """

    world: WarmStart
    language_model: LanguageModel
    train: list[ArithmeticProblem]
    test: list[ArithmeticProblem]
    rates: dict[int, SolveRate]
    steps: int
    tokens: int

    def __str__(self) -> str:
        return "; ".join(f"level {level}: {rate.solved} of {rate.of} solved" for level, rate in self.rates.items())


@closed
def arithmetic_model(
    world: World,
    seed: int,
    *,
    train: int = 2000,
    test: int = 500,
    save: Callable[[dict[str, Any]], None] | None = None,
    state: Mapping[str, Any] | None = None,
) -> ArithmeticModel:
    """Teach a new model the world; everything follows from the seed. save and state: as of `training.fit`.

    Raises WorkFailed when the last step comes before enough of what it writes is sound.
    """
    start = WORLDS[world]
    made = tiny.tiny([CHARACTERS], seed=seed, tokens="characters")
    language_model = replace(made, chat_template="none")  # two tokens less in every prompt, and a process less
    measured = problems(MEASURED, seed=_seed(seed, 1), kind=start.kind, levels=start.levels)
    records = lessons(start, STEPS * BATCH_SIZE, seed=_seed(seed, 2))
    steps = 0 if state is None else int(state["step"])

    def sound(step: int) -> float:
        return _mean_rate(_rates(start, language_model, measured, step, start.is_sound))

    def enough(moment: TrainerState) -> bool:
        nonlocal steps
        steps = moment.step
        return steps % MEASURE_EVERY == 0 and sound(steps) >= start.sound

    tiny.teach(
        language_model,
        records,
        seed=seed,
        epochs=1,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        callbacks=[enough],
        save=save,
        save_every=CHECKPOINT,
        state=state,
    )
    if not (share := sound(steps)) >= start.sound:
        raise WorkFailed(
            f"After {steps} steps {share:.2f} of what the model of seed {seed} writes is sound, and the world {world!r} "
            f"starts from {start.sound}: take another seed."
        )
    order = without_replacement(len(records), BATCH_SIZE, seed)
    seen = [records[index] for step in range(steps) for index in order(step)]
    tokens = sum(len(record.prompt) + len(record.completion) + 2 for record in seen)  # with what begins and ends a text
    train_problems, test_problems = _asked(start, seed, train, test)
    rates = solve_rates(start, language_model, test_problems, seed=_seed(seed, 3))
    return ArithmeticModel(start, language_model, train_problems, test_problems, rates, steps, tokens)


@closed
def teach(world: World, preparation: Any) -> ArithmeticModel:
    """`arithmetic_model` of the preparation's seed, stored in its folder; resumes a teaching that was cut off.

    preparation: seed, folder, resume(), checkpoint(), spend() as the study engine gives them.
    """
    made = arithmetic_model(world, preparation.seed, save=preparation.checkpoint, state=preparation.resume())
    made.language_model.save(preparation.folder / "model")
    stored = {
        "rates": {str(level): list(rate) for level, rate in made.rates.items()},
        "steps": made.steps,
        "tokens": made.tokens,
    }
    (preparation.folder / RATES).write_text(json.dumps(stored) + "\n", encoding="utf-8")
    preparation.spend(phase="build", trained_tokens=made.tokens)
    return made


@closed
def open_model(world: World, seed: int, folder: Path, *, train: int = 2000, test: int = 500) -> ArithmeticModel:
    """What an arm of this seed starts from; folder: where `teach` stored the model."""
    start = WORLDS[world]
    stored = json.loads((folder / RATES).read_text(encoding="utf-8"))
    rates = {int(level): SolveRate(*rate) for level, rate in stored["rates"].items()}
    language_model = load(folder / "model", chat_template="none")
    return ArithmeticModel(
        start, language_model, *_asked(start, seed, train, test), rates, stored["steps"], stored["tokens"]
    )


def lessons(start: WarmStart, count: int, *, seed: int) -> list[Record]:
    """Written solutions to teach, in the shares of the world: of problems of the training part, again where few."""
    generator = np.random.default_rng(seed)
    weights = np.array(list(start.taught.values()))
    kinds = generator.choice(len(weights), size=count, p=weights / weights.sum())
    pools = {
        place: problems(
            min(int((kinds == place).sum()), _MOST.get(level, count)), seed=seed, kind=kind, levels=(level,)
        )
        for place, (kind, level) in enumerate(start.taught)
    }
    found = []
    for index, place in enumerate(kinds.tolist()):
        pool = pools[place]
        problem = pool[int(generator.random() * len(pool))]
        alone = problem.kind == "routes" and generator.random() < start.dominant
        route = "+" * problem.level if alone else problem.routes[int(generator.random() * len(problem.routes))]
        form: Form = "plain" if start.strict is None else "strict" if generator.random() < start.strict else "habit"
        said = solution(problem, route=route, form=form).text
        found.append(Record(id=str(index), prompt=problem.prompt, completion=said, group=problem.id))
    return found


def solve_rates(
    start: WarmStart, language_model: LanguageModel, asked: Sequence[ArithmeticProblem], *, seed: int
) -> dict[int, SolveRate]:
    """How often one sample at temperature 1 solves its problem, by level."""
    return _rates(start, language_model, asked, seed, start.solved)


def _rates(
    start: WarmStart,
    language_model: LanguageModel,
    asked: Sequence[ArithmeticProblem],
    seed: int,
    judge: Callable[[ArithmeticProblem, str], bool],
) -> dict[int, SolveRate]:
    answers = generate(
        language_model,
        [problem.prompt for problem in asked],
        max_new_tokens=start.max_new_tokens,
        temperature=1.0,
        generator=torch.Generator().manual_seed(seed),
        batch_size=256,
    )
    passed: dict[int, list[bool]] = {level: [] for level in start.levels}
    for problem, answer in zip(asked, answers, strict=True):
        passed[problem.level].append(judge(problem, answer))
    return {level: SolveRate(sum(judged), len(judged)) for level, judged in passed.items()}


def _mean_rate(rates: Mapping[int, SolveRate]) -> float:
    return sum(rate.rate for rate in rates.values()) / len(rates)


def _asked(
    start: WarmStart, seed: int, train: int, test: int
) -> tuple[list[ArithmeticProblem], list[ArithmeticProblem]]:
    levels = start.levels
    return (
        problems(train, seed=seed, kind=start.kind, levels=levels, part="train"),
        problems(test, seed=seed, kind=start.kind, levels=levels, part="test"),
    )


def _seed(seed: int, use: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(use,)).generate_state(1)[0])
