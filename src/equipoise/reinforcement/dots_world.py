"""The world of DOTS' study: a tiny decoder among prompts that it solves always, now and then, and never.

    teach(preparation, prompts=1050)                      a model, and how others fared on the prompts; stored once a seed
    world = DotsWorld.open(run.seed, run.prepared, prompts=1050, test=280)
    world.reinforce(run, recipe(...), look, tokens=80_000, evaluations=10)      on a budget of generated tokens; resumable

Chains of one operator to seven, as many of each; the model was taught those of up to six, the long ones seldom. A chain has
one solution, so that the probability of solving it is computed: every prompt's difficulty is known at any time, without
sampling. The other models are two of other seeds, asked three times each in the course of their teaching.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.core.options import check_fields, closed
from equipoise.core.progress import progress
from equipoise.data.arithmetic import CHARACTERS, ArithmeticProblem, problems
from equipoise.data.problems import Problem
from equipoise.language import tiny, warm_start
from equipoise.language.features import Features
from equipoise.language.model import LanguageModel
from equipoise.reinforcement import stages
from equipoise.reinforcement.dots import DifficultyPredictor, DifficultySampler, EmbeddingPredictor, Predictor, pearson
from equipoise.reinforcement.group_baselines import mixed
from equipoise.reinforcement.predicting import EMBEDDINGS, PREDICTOR, embedded
from equipoise.reinforcement.recipe import Recipe
from equipoise.reinforcement.selection import sampler_of
from equipoise.reinforcement.tiny_world import TinyWorld
from equipoise.reinforcement.training import ReinforceState, prepare, train
from equipoise.training.loop import TrainerState
from equipoise.training.order import without_replacement

Order = Literal["uniform", "curriculum"]
PredictorKind = Literal["learned", "embeddings"]

Array = NDArray[np.float64]

WORLD = replace(warm_start.WORLDS["levels"], levels=(1, 2, 3, 4, 5, 6, 7), max_new_tokens=42)
ASKED = ((150, 250, 350), (300, 400, 500))  # of each other model the steps of its teaching after which it is asked
REFERENCES, HIDDEN, EPOCHS = 64, 128, 60  # with which the predictor is fitted
RATES = "rates.npy"
SAVE_EVERY = 5  # steps
_OTHERS, _DIVISION = 21, 22  # streams of a seed
_COMPARED = 3  # one prompt in so many is used to measure predictions


def teach(preparation: Any, *, prompts: int) -> None:
    """Teach the seed's model, learn what others make of its prompts, and fit a predictor to that; resumable.

    preparation: seed, folder, resume(), checkpoint(), spend() as the study engine gives them.
    """
    stored = preparation.resume() or {"part": 0, "state": None, "rates": []}
    begun, rates = stored["part"], stored["rates"]

    def saver(part: int) -> Callable[[Any], None]:
        return lambda state: preparation.checkpoint({"part": part, "state": state, "rates": rates})

    def state(part: int) -> Any:
        return stored["state"] if begun == part else None

    if begun == 0:
        own = {"seed": preparation.seed, "folder": preparation.folder, "spend": preparation.spend}
        warm_start.teach("levels", SimpleNamespace(**own, resume=lambda: state(0), checkpoint=saver(0)))
        saver(1)(None)
    pool = _pool(preparation.seed, prompts)
    for number, asked in enumerate(ASKED, 1):
        if begun <= number:
            tokens = _teach_other(preparation.seed, number, asked, pool, rates, saver(number), state(number))
            preparation.spend(phase="build", trained_tokens=tokens)
            saver(number + 1)(None)
    np.save(preparation.folder / RATES, np.stack(rates))
    language_model = warm_start.open_model("levels", preparation.seed, preparation.folder).language_model
    embeddings = embedded(language_model, _asked(pool), preparation.folder / EMBEDDINGS)
    fitted(embeddings, torch.from_numpy(np.stack(rates)), seed=preparation.seed).save(preparation.folder / PREDICTOR)


def _teach_other(
    seed: int,
    number: int,
    asked: Sequence[int],
    pool: Sequence[ArithmeticProblem],
    rates: list[Any],
    save: Callable[[Any], None],
    state: Any,
) -> int:
    """Teach another model as the policy was, and add its solve rates on the pool to `rates` after each of the steps `asked`.

    Returns the tokens that it was taught.
    """
    word = int(np.random.SeedSequence(seed, spawn_key=(_OTHERS, number)).generate_state(1)[0])
    other = replace(tiny.tiny([CHARACTERS], seed=word, tokens="characters"), chat_template="none")
    size = warm_start.BATCH_SIZE
    records = warm_start.lessons(WORLD, warm_start.STEPS * size, seed=word)

    def ask(moment: TrainerState) -> bool:
        if moment.step in asked:
            rates.append(_world(other, pool, seed).solve_rates())
        return moment.step == asked[-1]

    tiny.teach(
        other,
        records,
        seed=word,
        epochs=1,
        learning_rate=warm_start.LEARNING_RATE,
        batch_size=size,
        callbacks=[ask],
        save=save,
        save_every=warm_start.CHECKPOINT,
        state=state,
    )
    order = without_replacement(len(records), size, word)
    seen = [records[index] for step in range(asked[-1]) for index in order(step)]
    return sum(len(record.prompt) + len(record.completion) + 2 for record in seen)


def fitted(embeddings: Tensor, rates: Tensor, *, seed: int) -> DifficultyPredictor:
    """A predictor of what models of rates [M, N] met on prompts of embeddings [N, E], half of which are references."""
    order = np.random.default_rng(np.random.SeedSequence([seed, _DIVISION])).permutation(len(embeddings))
    references, others = torch.from_numpy(order).tensor_split(2)
    difficulty = 1 - rates
    return DifficultyPredictor.fit(
        embeddings[others],
        difficulty[:, others],
        embeddings[references],
        difficulty[:, references],
        seed=seed,
        references=min(REFERENCES, len(references)),
        hidden=HIDDEN,
        epochs=EPOCHS,
    )


@dataclass
class Tally:
    """What a run has spent, and what it learnt from.

    tokens: generated, reference_tokens among them. written: responses, those to references and of dropped groups among them.
    groups, effective: fresh groups that were trained on, and those of unequal rewards; taught: responses of the latter.
    updates: optimizer steps. blocks, uniform: of selection, and those whose predictions were not trusted. correlations: of
    each predictor, by block. looked, solved: tokens and the held-out problems' solve rates at each look.
    """

    tokens: int = 0
    reference_tokens: int = 0
    written: int = 0
    groups: int = 0
    effective: int = 0
    taught: int = 0
    updates: int = 0
    blocks: int = 0
    uniform: int = 0
    correlations: dict[str, list[float]] = field(default_factory=dict)
    looked: list[int] = field(default_factory=list)
    solved: list[Array] = field(default_factory=list)

    @property
    def at(self) -> dict[str, int]:
        """As measurements name it."""
        return {"optimizer_steps": self.updates, "generated_tokens": self.tokens}

    def so_far(self, rates: Array) -> Array:
        """The mean of solve rates [N] over the tokens spent so far, by trapezoids, [N]; asked once a look."""
        self.looked.append(self.tokens)
        self.solved.append(rates)
        if len(self.looked) == 1:
            return rates
        area = np.trapezoid(self.solved, self.looked, axis=0)
        return np.asarray(area) / (self.tokens - self.looked[0])

    def add(self, state: ReinforceState, recipe: Recipe) -> dict[str, int]:
        """Count a step; what it spent, as a run books it."""
        step, metrics = state.step, state.metrics
        fresh = step.rewards if step.off_policy is None else step.rewards[~step.off_policy]
        effective = int(mixed(fresh).sum())
        self.groups += len(fresh)
        self.effective += effective
        self.taught += effective * recipe.samples
        self.blocks += "uniform_block" in metrics
        self.uniform += int(metrics.get("uniform_block", 0))
        self.reference_tokens += int(metrics.get("reference_tokens", 0))
        spent = {
            "generated_tokens": int(metrics["generated_tokens"]),
            "optimizer_steps": len(stages.minibatches(recipe, step)),
        }
        self.tokens += spent["generated_tokens"]
        self.updates += spent["optimizer_steps"]
        return spent


@dataclass(frozen=True, eq=False)
class DotsWorld:
    """held_out, pool: the model among problems that are never trained on, and among those that are. rates: [M, N], how often
    other models solve the latter. embeddings: [N, E], of the model as it starts.
    """

    held_out: TinyWorld
    pool: TinyWorld
    rates: Tensor
    embeddings: Tensor
    predictors: Mapping[PredictorKind, Predictor]

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def open(cls, seed: int, folder: Path, *, prompts: int, test: int) -> DotsWorld:
        """Of the seed whose preparation `teach` stored in the folder."""
        language_model = warm_start.open_model("levels", seed, folder, train=0, test=0).language_model
        pool = _pool(seed, prompts)
        held_out = problems(test, seed=seed, kind=WORLD.kind, levels=WORLD.levels, part="test")
        return cls(
            _world(language_model, held_out, seed),
            _world(language_model, pool, seed),
            torch.from_numpy(np.load(folder / RATES)),
            torch.tensor(Features.load(folder / EMBEDDINGS).values[:, 0]),
            {"learned": DifficultyPredictor.load(folder / PREDICTOR), "embeddings": EmbeddingPredictor()},
        )

    @property
    def language_model(self) -> LanguageModel:
        """The model, which `reinforce` trains in place."""
        return self.pool.language_model

    def difficulty(self) -> Tensor:
        """Of each prompt for the model as it is, [N] float64: 1 - the computed probability of solving it."""
        return 1 - torch.from_numpy(self.pool.solve_rates())

    def thirds(self) -> list[list[int]]:
        """The prompts from the easiest third to the hardest, by the mean rate of the other models."""
        order = self.rates.mean(0).argsort(descending=True, stable=True)
        return [part.tolist() for part in order.tensor_split(3)]

    @closed
    def reinforce(
        self,
        run: Any,
        recipe: Recipe,
        look: Callable[[Tally], None],
        *,
        tokens: int,
        evaluations: int,
        order: Order = "uniform",
        predictor: PredictorKind = "learned",
    ) -> None:
        """Train as the recipe says until so many tokens are generated, on the run's books; resumable.

        look: called at the start, then whenever another part of `evaluations` of the tokens is spent, and at the end. order:
        of the prompts; with curriculum each third of the tokens is spent on a third of them, the easiest first. predictor:
        what predicts with select="dots"; an oracle computes.
        """
        stored = run.resume() or {"training": None, "tally": {}}
        training, tally = stored["training"], Tally(**stored["tally"])
        pools = self.thirds() if order == "curriculum" else [list(range(len(self.pool.test)))]
        asked = _asked(self.pool.test)
        known = {problem.id: problem for problem in self.pool.test}
        sampler = self._sampler(recipe, predictor, tally) if recipe.select == "dots" else None
        every = tokens / evaluations
        until = 0.0

        def judge(problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
            tally.written += len(texts)
            return [self.pool.solved(known[each.id], text) for each, text in zip(problems, texts, strict=True)]

        def noted(state: ReinforceState) -> bool:
            before = tally.tokens
            run.spend(phase="build", **tally.add(state, recipe))
            bar.update(tally.tokens)
            if tally.tokens // every > before // every or tally.tokens >= tokens:
                look(tally)
            return tally.tokens >= until

        def save(state: dict[str, Any]) -> None:
            nonlocal training
            training = state | {"stopped": False}  # a third of a curriculum ends, and the next goes on
            run.checkpoint({"training": training, "tally": asdict(tally)})

        if training is None:
            look(tally)
        with progress("Spending tokens", total=tokens, unit="tokens", done=tally.tokens) as bar:
            for number, places in enumerate(pools, 1):
                until = tokens * number / len(pools)
                if tally.tokens < until:
                    train(
                        prepare(self.language_model, recipe),
                        recipe,
                        [asked[place] for place in places],
                        judge,
                        sampler=sampler,
                        difficulty=(lambda _: self.difficulty()) if recipe.select == "oracle" else None,
                        callbacks=[noted],
                        save=save,
                        save_every=SAVE_EVERY,
                        state=training,
                    )

    def _sampler(self, recipe: Recipe, kind: PredictorKind, tally: Tally) -> DifficultySampler:
        """The sampler of a run, which notes how well each predictor knows the difficulty at the beginning of a block."""
        compared = range(0, len(self.pool.test), _COMPARED)
        part = _world(self.language_model, [self.pool.test[place] for place in compared], self.pool.seed)

        def note(predictions: Mapping[str, Tensor]) -> None:
            exact = 1 - torch.from_numpy(part.solve_rates())
            for name, predicted in {**predictions, "other-models": 1 - self.rates.mean(0)}.items():
                tally.correlations.setdefault(name, []).append(pearson(predicted[list(compared)], exact))

        return sampler_of(recipe, self.embeddings, _Compared(self.predictors, kind, len(self.embeddings), note))


@dataclass(frozen=True)
class _Compared:
    """One of several predictors; what all say of the whole pool, when it is asked about that, is noted."""

    predictors: Mapping[PredictorKind, Predictor]
    chosen: PredictorKind
    count: int
    note: Callable[[Mapping[str, Tensor]], None]

    def predict(self, embeddings: Tensor, reference_embeddings: Tensor, reference_difficulty: Tensor) -> Tensor:
        if len(embeddings) < self.count:  # references among themselves
            return self.predictors[self.chosen].predict(embeddings, reference_embeddings, reference_difficulty)
        found = {
            name: each.predict(embeddings, reference_embeddings, reference_difficulty)
            for name, each in self.predictors.items()
        }
        self.note(found)
        return found[self.chosen]


def _pool(seed: int, prompts: int) -> list[ArithmeticProblem]:
    return problems(prompts, seed=seed, kind=WORLD.kind, levels=WORLD.levels)


def _asked(pool: Sequence[ArithmeticProblem]) -> list[Problem]:
    return [Problem(each.id, each.prompt, (each.answer,)) for each in pool]


def _world(language_model: LanguageModel, asked: Sequence[ArithmeticProblem], seed: int) -> TinyWorld:
    """The model among these problems, which is what a `TinyWorld` can say solve rates of."""
    return TinyWorld(warm_start.ArithmeticModel(WORLD, language_model, [], list(asked), {}, 0, 0), seed)
