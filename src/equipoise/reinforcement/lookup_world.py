"""The world of the study of tool entropy: a tiny decoder that looks keys up, some of them for nothing.

    teach(preparation)                                    a model that can do it, with 2 to 4 useless calls an episode
    world = LookupWorld.open(run.seed, run.prepared, test=300)
    world.reinforce(run, recipe(...), look, evaluations=6, reward="outcome")                     resumable

An episode is `data.lookup`'s. Before each call the model writes what it believes the answer to be, six digits: of what it
has looked up the digit, of what it does not know any digit, over and again (`417417` for an answer of three). The entropy of
that is the log of ten for each unknown digit: it falls with a useful call and with no other, so that if the reward works
anywhere, then here. Useless calls are repeats of what was told, and keys of no chain.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import nn

from equipoise.core.errors import WorkFailed
from equipoise.core.options import closed
from equipoise.data.environment import open_environment
from equipoise.data.lookup import CHARACTERS, GARBAGE, KEYS, Lookup, useful
from equipoise.language import tiny
from equipoise.language.encode import IGNORE, Example, collate, encode_prompts, encode_replies
from equipoise.language.model import LanguageModel, load
from equipoise.language.score import labelled_logits
from equipoise.reinforcement import stages
from equipoise.reinforcement.entropy_tools import ToolReward, call_counts, count_penalty, decreasing_reward
from equipoise.reinforcement.playing import Playing, no_reward
from equipoise.reinforcement.tiny_world import Array, Look
from equipoise.reinforcement.training import ReinforceState, prepare, train
from equipoise.training.loop import OneLoss, TrainerSettings, TrainerState, fit

if TYPE_CHECKING:
    from torch import Tensor

    from equipoise.data.problems import Problem
    from equipoise.language.episodes import Episode
    from equipoise.language.rollouts import Rollouts
    from equipoise.reinforcement.recipe import Recipe

RewardKind = Literal["score", "count", "decreasing", "outcome", "process"]
CallKind = Literal["useful", "noisy", "repeat", "stray"]

ORDER: tuple[CallKind, ...] = ("useful", "noisy", "stray", "repeat")
BELIEF = 6  # digits: a multiple of every length of an answer
MAX_NEW_TOKENS = BELIEF + 5  # with an answer of three digits and the end
USELESS = (2, 3, 4)  # calls of an episode that is taught
SIZES: Mapping[str, int] = {"width": 64, "layers": 3, "heads": 4, "context": 160}
STEPS, BATCH_SIZE, LEARNING_RATE = 1200, 32, 3e-3
CLEAN = 300  # first steps, without useless calls: which key comes next is learnt late where most are none
SOLVED = 0.5  # share of sampled episodes at which teaching stops
MEASURE_EVERY, CHECKPOINT, MEASURED = 50, 100, 128
AT_ONCE = 256  # episodes of an evaluation
TEST = 10**6  # seeds of the environment from here on are for testing, those below for teaching and training
_TAUGHT, _MEASURED, _TRAINED = 31, 32, 33  # streams of a seed


@dataclass(frozen=True)
class Demonstration:
    """An episode as it is taught: what is seen first, what is written in each turn, what is told to all but the last."""

    first: str
    turns: tuple[str, ...]
    replies: tuple[str, ...]


def demonstration(seed: int, draw: random.Random, *, useless: int) -> Demonstration:
    """One way through the episode of a seed: what is needed, in its order, and so many useless calls among it."""
    environment = Lookup()
    first = environment.reset(seed)
    keys: list[str | None] = [*useful(environment)]
    for _ in range(useless):
        keys.insert(draw.randint(0, len(keys)), None)
    told: list[str] = []  # keys that have given what they have
    turns, replies = [], []
    for wanted in keys:
        stray = draw.choice([key for key in KEYS if key not in environment.chain])
        key = wanted or (draw.choice(told) if told and draw.random() < 0.5 else stray)
        turns.append(f"{belief(environment, told, draw)}?{key}")
        replies.append(environment.look_up(key))
        told += [key] if GARBAGE not in replies[-1] else []
    turns.append(f"{belief(environment, told, draw)}={environment.answer}")
    return Demonstration(first, tuple(turns), tuple(replies))


def belief(environment: Lookup, told: Sequence[str], draw: random.Random) -> str:
    """Six digits: of the answer those that were told, and any in place of the others."""
    chain = environment.chain
    answer = [chain[place % len(chain)] for place in range(BELIEF)]
    return "".join(environment.table[key][0] if key in told else draw.choice("0123456789") for key in answer)


def examples(language_model: LanguageModel, shown: Sequence[Demonstration]) -> list[Example]:
    """What `play` would have of these episodes, the model's own tokens to be learnt."""
    firsts, _ = encode_prompts(language_model, [each.first for each in shown])
    end, _ = encode_replies(language_model, [])
    said = iter(encode_replies(language_model, [turn for each in shown for turn in each.turns])[1])
    told = iter(encode_replies(language_model, [reply for each in shown for reply in each.replies])[1])
    found = []
    for each, first in zip(shown, firsts, strict=True):
        ids, labels = list(first), [IGNORE] * len(first)
        for number in range(len(each.turns)):
            written = [*next(said), *end]
            reply = next(told) if number < len(each.replies) else []
            ids += [*written, *reply]
            labels += [*written, *[IGNORE] * len(reply)]
        found.append(Example(tuple(ids), tuple(labels)))
    return found


def lessons(language_model: LanguageModel, seed: int, step: int) -> list[Example]:
    """What is taught in a step (from 0): demonstrations that follow from the seed and the step."""
    draw = random.Random(_word(seed, _TAUGHT, step))
    shown = [
        demonstration(draw.randrange(TEST), draw, useless=draw.choice(USELESS) if step >= CLEAN else 0)
        for _ in range(BATCH_SIZE)
    ]
    return examples(language_model, shown)


def teach(preparation: Any) -> None:
    """Teach a new model of the preparation's seed until it solves half of its episodes, useless calls and all; resumable.

    preparation: seed, folder, resume(), checkpoint(), spend() as the study engine gives them. Raises WorkFailed when the
    last step comes first.
    """
    seed = preparation.seed
    made = tiny.tiny([CHARACTERS], seed=seed, tokens="characters", **SIZES)
    language_model = replace(made, chat_template="none")
    measured = [_word(seed, _MEASURED) % TEST + number for number in range(MEASURED)]
    state = preparation.resume()
    steps = 0 if state is None else int(state["step"])

    def solved() -> float:
        return float(_scores(_play(language_model, measured, [steps])).mean())

    def enough(moment: TrainerState) -> bool:
        nonlocal steps
        steps = moment.step
        return steps > CLEAN and steps % MEASURE_EVERY == 0 and solved() >= SOLVED

    fit(
        language_model.model,
        OneLoss(_cross_entropy),
        lambda step: lessons(language_model, seed, step),
        TrainerSettings(steps=STEPS, learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE, betas=(0.9, 0.95), seed=seed),
        collate=lambda chosen: collate(chosen, language_model.pad_id, language_model.device),
        callbacks=[enough],
        save=preparation.checkpoint,
        save_every=CHECKPOINT,
        state=state,
        title="Teaching",
    )
    if (share := solved()) < SOLVED:
        raise WorkFailed(
            f"After {steps} steps the model of seed {seed} solves {share:.2f} of its episodes, and the study starts from "
            f"{SOLVED}: take another seed."
        )
    language_model.save(preparation.folder / "model")
    tokens = sum(len(lesson.input_ids) for step in range(steps) for lesson in lessons(language_model, seed, step))
    preparation.spend(phase="build", trained_tokens=tokens)


def _cross_entropy(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    logits, labels, _ = labelled_logits(model, batch)
    return nn.functional.cross_entropy(logits.float(), labels, reduction="sum"), len(labels)


def kinds_of_calls(episode: Episode) -> list[CallKind]:
    """What each step of calls was: useful, the digit of a key of the chain became known; noisy, garbage of one that still
    has to be asked; repeat, of what was told; stray, any other. Of several at once the first of `ORDER`.
    """
    environment = Lookup()
    environment.reset(episode.seed)
    told: set[str] = set()
    found: list[CallKind] = []
    for turn in episode.turns:
        kinds: list[CallKind] = []
        for action in turn.info.get("actions", ()):
            key = action["arguments"]["key"]
            if key in told:
                kinds.append("repeat")
                continue
            garbage = GARBAGE in environment.look_up(key)
            if key in environment.chain:
                kinds.append("noisy" if garbage else "useful")
            else:
                kinds.append("stray")
            told |= set() if garbage else {key}
        if kinds:
            found.append(min(kinds, key=ORDER.index))
    return found


@dataclass(frozen=True)
class Measured:
    """right, calls, useless: of each test episode, the last being repeats and stray keys. reduced: by the model whose
    entropy it is and the kind of call, how many lowered it and how many count.
    """

    right: Array
    calls: Array
    useless: Array
    reduced: Mapping[tuple[str, str], tuple[int, int]]


@dataclass(frozen=True)
class LookupWorld:
    """A model at its warm start, how it started, and the seeds of the episodes that it is tested on."""

    language_model: LanguageModel
    start: Any
    seed: int
    test: tuple[int, ...]

    @classmethod
    def open(cls, seed: int, folder: Path, *, test: int) -> LookupWorld:
        """Of the seed whose model `teach` stored in the folder."""
        language_model = load(folder / "model", chat_template="none")
        return cls(language_model, copy.deepcopy(language_model.model), seed, tuple(range(TEST, TEST + test)))

    @property
    def names(self) -> list[str]:
        """Of the test episodes."""
        return [f"lookup-{seed}" for seed in self.test]

    def measure(self, recipe: Recipe) -> Measured:
        """One sampled episode of each test seed, with the same random numbers at every look."""
        rollouts = _play(self.language_model, self.test, [self.seed, 6])
        kinds = [kinds_of_calls(episode) for episode in rollouts.episodes]
        reduced: dict[tuple[str, str], tuple[int, int]] = {}
        for name, reference in (("policy", None), ("start", self.start)):
            effects, _ = ToolReward(self.language_model, recipe, reference=reference).effects(rollouts)
            for row, of_row in enumerate(kinds):
                for place, kind in enumerate(of_row):
                    lowered, count = reduced.get((name, kind), (0, 0))
                    counts = int(effects.counted[row, place])
                    reduced[name, kind] = (lowered + int(effects.reduced[row, place]), count + counts)
        useless = np.array([sum(kind in ("repeat", "stray") for kind in of_row) for of_row in kinds], float)
        return Measured(_scores(rollouts), call_counts(rollouts).double().numpy(), useless, reduced)

    @closed
    def stages(
        self,
        recipe: Recipe,
        *,
        reward: RewardKind = "score",
        weight: float = 0.0,
        **settings: Any,
    ) -> dict[str, Any]:
        """The stages of `training.train` for a kind of reward. weight: of a call with "count". settings: of `ToolReward`."""
        tools = ToolReward(self.language_model, recipe, **settings)
        shape: Callable[[Rollouts], Tensor] | None = None
        if reward == "count":
            shape = lambda rollouts: count_penalty(rollouts, weight=weight)  # noqa: E731
        elif reward == "decreasing":
            shape = lambda rollouts: decreasing_reward(rollouts, most=Lookup.max_turns)  # noqa: E731
        elif reward == "outcome":
            shape = tools.shape
        playing = Playing(open_environment(Lookup), shape=shape)
        return {"sample": playing, "weigh": tools.weigh if reward == "process" else stages.weigh}

    def reinforce(
        self, run: Any, recipe: Recipe, look: Callable[[Look], None], *, evaluations: int, **settings: Any
    ) -> None:
        """Train as the recipe says, on the run's books; goes on from its last checkpoint, which every look leaves.

        look: called at the start, `evaluations` times along the way, the end among them. settings: as of `stages`.
        """
        stored = run.resume() or {"training": None, "tokens": 0, "notes": {}}
        tokens, notes = stored["tokens"], stored["notes"]
        logged: list[Mapping[str, float]] = []  # empty at every checkpoint, which is a look
        every = max(recipe.steps // evaluations, 1)
        replaced = self.stages(recipe, **settings)

        def looked(done: int) -> None:
            look(Look(done, done * recipe.updates, tokens, done == recipe.steps, logged, notes))
            logged.clear()

        def noted(state: ReinforceState) -> None:
            nonlocal tokens
            spent = int(state.metrics["generated_tokens"])
            tokens += spent
            run.spend(phase="build", generated_tokens=spent, optimizer_steps=recipe.updates)
            logged.append(state.metrics)
            if state.done % every == 0 or state.done == recipe.steps:
                looked(state.done)

        if stored["training"] is None:
            looked(0)
        train(
            prepare(self.language_model, recipe),
            recipe,
            self._asked(replaced["sample"], recipe),
            no_reward,
            callbacks=[noted],
            save=lambda state: run.checkpoint({"training": state, "tokens": tokens, "notes": notes}),
            save_every=every,
            state=stored["training"],
            **replaced,
        )

    def _asked(self, playing: Playing, recipe: Recipe) -> list[Problem]:
        """Episodes to learn from, none of them twice."""
        first = _word(self.seed, _TRAINED) % (TEST // 2)
        return playing.problems(range(first, first + recipe.steps * recipe.prompts_per_step))


def _play(language_model: LanguageModel, seeds: Sequence[int], draws: Sequence[int]) -> Rollouts:
    from equipoise.language.episodes import play

    return play(
        language_model,
        Lookup,
        seeds,
        samples=1,
        max_turns=Lookup.max_turns,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=1.0,
        seed=draws,
        batch_size=AT_ONCE,
    )


def _scores(rollouts: Rollouts) -> Array:
    return np.array([episode.score for episode in rollouts.episodes])


def _word(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
