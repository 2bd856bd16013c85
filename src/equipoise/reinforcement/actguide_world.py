"""The world of ActGuide's study: a tiny decoder that goes through short corridors, and can read a list of actions.

    teach(preparation)                                         what every arm of a seed starts from
    world = GuideWorld.open(run.seed, run.prepared, train=100, test=40)
    world.reinforce(run, recipe(...), look, tokens=40_000, evaluations=4, guidance={"length": "search"})

Easy corridors take four actions at most. Hard ones take eight to twelve, since the key lies behind: no easy one teaches to
walk away from the goal. The model was taught the easy ones, by a teacher who strays now and then, and to follow lists: short
plans, and lists of random actions, which say nothing about hard corridors. An action is one letter and one generated token.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equipoise.core.options import closed
from equipoise.core.progress import progress
from equipoise.data.corridor import ACTIONS, Corridor
from equipoise.data.environment import OpenedEnvironment
from equipoise.data.problems import Problem
from equipoise.language import tiny
from equipoise.language.encode import encode_prompts, encode_replies
from equipoise.language.model import LanguageModel, load
from equipoise.language.rollouts import Rollouts, padded, score_responses
from equipoise.reinforcement.actguide import Action, Prompt, hinted, rebuild
from equipoise.reinforcement.group_baselines import mixed
from equipoise.reinforcement.guiding import Guided, log_ratios
from equipoise.reinforcement.playing import Playing, no_reward, seed_of
from equipoise.reinforcement.recipe import Recipe
from equipoise.reinforcement.stages import score_rollouts
from equipoise.reinforcement.training import ReinforceState, prepare, train
from equipoise.training.loop import OneLoss, TrainerSettings, fit

Array = NDArray[np.float64]
Start = Literal["taught", "sft"]

CELLS, SLACK = 9, 2
EASY, HARD = (1, 4), (8, 12)
WIDTH, LAYERS, CONTEXT = 64, 2, 256
LESSONS, STEPS, BATCH_SIZE, LEARNING_RATE = 3000, 500, 32, 4e-3
STRAYS = 0.2  # the share of the teacher's own actions that are any
FOLLOWED = 0.5  # the share of lessons with a list
LIST = HARD[1]  # actions of the longest random list
CHECKPOINT = 100  # steps of teaching
SAVE_EVERY = 5  # steps of reinforcement
SFT_EPOCHS, SFT_RATE = 10, 1e-3
PROBED = 16  # hard problems of which the log-ratio is measured at each look
_LOOK, _ORDER = 41, 42  # streams of a seed
AT_ONCE = 256  # rows of an evaluation
_TURNS = "123456789abcdefg"


class Corridors:
    """Easy corridors for even seeds, hard ones for odd."""

    max_turns = HARD[1] + SLACK

    def __init__(self) -> None:
        self.kinds = (
            Corridor(EASY, cells=CELLS, slack=SLACK, rules=False),
            Corridor(HARD, cells=CELLS, slack=SLACK, rules=False, key="behind"),
        )

    def plan(self, seed: int) -> list[dict[str, Any]]:
        """The shortest plan."""
        return self.kinds[seed % 2].plan(seed // 2)

    def reset(self, seed: int) -> str:
        """As of `Corridor`."""
        self._now = self.kinds[seed % 2]
        return self._now.reset(seed // 2)

    def step(self, text: str) -> tuple[str, float, bool, Mapping[str, Any]]:
        """As of `Corridor`."""
        return self._now.step(text)


def letters(prompt: Prompt, actions: Sequence[Action]) -> str:
    """A hint that a tiny model can read: the turn and the first letter of each action, before the corridor."""
    listed = "".join(turn + action["name"][0] for turn, action in zip(_TURNS, actions, strict=False))
    return f"{listed} {prompt}"


@dataclass(frozen=True)
class Written:
    """An episode that somebody else played: what is seen first, hint included, and (letter, reply) of each turn."""

    prompt: str
    turns: tuple[tuple[str, str], ...]


def lessons(count: int, *, seed: int) -> Iterator[Written]:
    """Episodes in easy corridors: of a teacher who strays, and of one who follows a list and goes on from where it ends.

    A lesson ends where the goal is more than EASY[1] actions away: longer ways are not taught.
    """
    corridor = Corridor(EASY, cells=CELLS, slack=LIST, rules=False)
    draw = random.Random(f"lessons {seed}")
    for _ in range(count):
        number = draw.randrange(1000)
        first, plan, listed = corridor.reset(number), corridor.plan(number), []
        if draw.random() < FOLLOWED:
            own = draw.random() < 0.3
            listed = plan[: draw.randint(1, len(plan))] if own else [_any(draw) for _ in range(draw.randint(1, LIST))]
        turns, done = [], False
        while not done:
            ahead = corridor.plan_from_here
            if len(turns) < len(listed):
                action = listed[len(turns)]
            elif not 0 < len(ahead) <= EASY[1]:
                break
            else:
                action = _any(draw) if draw.random() < STRAYS else ahead[0]
            reply, _, done, _ = corridor.step(action["name"])
            turns.append((action["name"][0], reply))
        if turns:
            yield Written(letters(first, listed) if listed else first, tuple(turns))


def _any(draw: random.Random, other_than: str = "") -> dict[str, Any]:
    return {"name": draw.choice([action for action in ACTIONS if action != other_than]), "arguments": {}}


def planned(seeds: Sequence[int], lists: Sequence[Sequence[Action]]) -> list[Written]:
    """What comes of these lists in the corridors of these seeds, no hint shown: what is fine-tuned on."""
    found = []
    for seed, actions in zip(seeds, lists, strict=True):
        corridors = Corridors()
        first, turns = corridors.reset(seed), []
        for action in actions:
            reply, _, done, _ = corridors.step(action["name"])
            turns.append((action["name"][0], reply))
            if done:
                break
        found.append(Written(first, tuple(turns)))
    return found


def as_rollouts(language_model: LanguageModel, episodes: Sequence[Written]) -> Rollouts:
    """Written episodes with the tokens that playing them would have had; the mask is true at the letters."""
    prompts, _ = encode_prompts(language_model, [each.prompt for each in episodes])
    end, replies = encode_replies(language_model, [reply for each in episodes for _, reply in each.turns])
    _, said = encode_replies(language_model, [letter for each in episodes for letter, _ in each.turns])
    both = iter(zip(said, replies, strict=True))
    rows: list[list[int]] = []
    owners: list[list[int]] = []
    for each in episodes:
        ids: list[int] = []
        owner: list[int] = []
        kept = 0
        for _ in each.turns:
            own, reply = next(both)
            kept = len(ids) + len(own)  # nobody reads what is said to the last action
            ids += [*own, *end, *reply]
            owner += [1] * len(own) + [2] * len(end + reply)
        rows.append(ids[:kept])
        owners.append(owner[:kept])
    whole, present = padded(rows, language_model.pad_id, language_model.device)
    by, _ = padded(owners, 0, language_model.device)
    nothing = torch.zeros(whole.shape, device=whole.device)
    return Rollouts(
        prompts=tuple(map(tuple, prompts)),
        samples=1,
        pad_id=language_model.pad_id,
        ids=whole,
        mask=by == 1,
        log_probs=nothing,
        entropies=nothing,
        forced=torch.zeros_like(by, dtype=torch.bool),
        ended=present.any(dim=-1),
        texts=("",) * len(rows),
        owner=by.to(torch.int8),
    )


def fine_tune(
    language_model: LanguageModel, episodes: Rollouts, *, steps: int, learning_rate: float, seed: int, **how: Any
) -> int:
    """Cross-entropy of the model's own tokens, in place; the tokens that were learnt. how: as of `training.fit`.

    Batches are of episodes of about one length.
    """
    order = episodes.present.sum(dim=-1).argsort(stable=True).tolist()
    size = min(BATCH_SIZE, len(order))
    learnt = 0

    def draw(step: int) -> list[int]:
        begin = np.random.default_rng([seed, _ORDER, step]).integers(0, len(order) - size + 1)
        return order[begin : begin + size]

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return -score_responses(model, batch).log_probs.sum(), batch["mask"].sum()

    for step in range(steps):
        learnt += int(episodes.mask[draw(step)].sum())
    fit(
        language_model.model,
        OneLoss(loss),
        draw,
        TrainerSettings(steps=steps, learning_rate=learning_rate, batch_size=size, betas=(0.9, 0.95), seed=seed),
        collate=lambda rows: episodes.batch(rows),
        **how,
    )
    return learnt


def untaught(seed: int) -> LanguageModel:
    """The tiny model of a seed, with all signs of the corridor."""
    signs = "".join((*ACTIONS, _TURNS, "@&Kk*D_. ,\n", "expected one of"))
    made = tiny.tiny([signs], seed=seed, tokens="characters", width=WIDTH, layers=LAYERS, heads=4, context=CONTEXT)
    return replace(made, chat_template="none")


def teach(preparation: Any) -> None:
    """Teach the seed's model; resumable. preparation: as the study engine gives it."""
    language_model = untaught(preparation.seed)
    episodes = as_rollouts(language_model, list(lessons(LESSONS, seed=preparation.seed)))
    tokens = fine_tune(
        language_model,
        episodes,
        steps=STEPS,
        learning_rate=LEARNING_RATE,
        seed=preparation.seed,
        save=preparation.checkpoint,
        save_every=CHECKPOINT,
        state=preparation.resume(),
    )
    language_model.save(preparation.folder / "model")
    preparation.spend(phase="build", trained_tokens=tokens)


@dataclass
class Tally:
    """What a run has spent, and what its groups were.

    tokens: generated, those of probes and of replaced rollouts among them. groups, effective: all so far, and those of
    unequal rewards. judged: groups that were played without a hint first; hard, rescued: of these. guided: groups with a
    hint; hints, shares: sums over these of k and of k / L.
    """

    tokens: int = 0
    updates: int = 0
    groups: int = 0
    effective: int = 0
    judged: int = 0
    hard: int = 0
    rescued: int = 0
    guided: int = 0
    hints: float = 0.0
    shares: float = 0.0

    @property
    def at(self) -> dict[str, int]:
        """As measurements name it."""
        return {"optimizer_steps": self.updates, "generated_tokens": self.tokens}

    def add(self, state: ReinforceState, recipe: Recipe) -> dict[str, int]:
        """Count a step; what it spent, as a run books it."""
        step, notes = state.step, state.step.notes
        self.groups += len(step.rewards)
        self.effective += int(mixed(step.rewards).sum())
        if notes:
            self.judged += int((~notes["hard"].isnan()).sum())
            self.hard += int(notes["hard"].nansum())
            self.rescued += int(notes["rescued"].nansum())
            self.guided += int(notes["guided"].nansum())
            self.hints += float(notes["hint_length"].nansum())
            self.shares += float(notes["hint_share"].nansum())
        spent = {"generated_tokens": int(state.metrics["generated_tokens"]), "optimizer_steps": recipe.updates}
        self.tokens += spent["generated_tokens"]
        self.updates += spent["optimizer_steps"]
        return spent


@dataclass(frozen=True, eq=False)
class GuideWorld:
    """A taught model, problems to train on, easy and hard in turn, and hard ones to test on, whose pictures are others."""

    seed: int
    language_model: LanguageModel
    playing: Playing
    train: list[Problem]
    test: list[Problem]

    @classmethod
    def open(cls, seed: int, folder: Path, *, train: int, test: int) -> GuideWorld:
        """Of the seed whose model `teach` stored in the folder; train: problems of each kind."""
        return cls.of(seed, load(folder / "model", chat_template="none"), train=train, test=test)

    @classmethod
    def of(cls, seed: int, language_model: LanguageModel, *, train: int, test: int) -> GuideWorld:
        """With a model that is at hand."""
        playing = Playing(OpenedEnvironment(Corridors, "corridors", max_turns=Corridors.max_turns))
        first = 1_000_000 * (seed + 1)
        held_out = _different(playing, range(first + 1, first + 500_000, 2), test, set())
        hard = _different(
            playing, range(first + 500_001, first + 1_000_000, 2), train, {each.prompt for each in held_out}
        )
        easy = _different(playing, range(first, first + 1_000_000, 2), train, set())
        return cls(
            seed, language_model, playing, [each for pair in zip(easy, hard, strict=True) for each in pair], held_out
        )

    def plans(self, problems: Sequence[Problem], *, wrong: float = 0.0) -> dict[str, list[Action]]:
        """By id the plan of each hard problem, of which a share of the actions is another one."""
        found = {}
        for problem in problems:
            number = seed_of(problem)
            if number % 2:
                draw = random.Random(f"wrong {self.seed} {number}")
                found[problem.id] = [
                    _any(draw, other_than=action["name"]) if draw.random() < wrong else action
                    for action in Corridors().plan(number)
                ]
        return found

    def success(self, *, samples: int, share: float = 0.0) -> Array:
        """How often each test problem is solved with a share of its plan shown, [N]; the same draws at every look."""
        played = self.play(self.test, samples=samples, share=share)
        return _solved(played).reshape(-1, samples).mean(axis=1)

    def play(self, problems: Sequence[Problem], *, samples: int, share: float = 0.0) -> Rollouts:
        """Episodes with a share of each plan as a hint."""
        plans = [Corridors().plan(seed_of(problem)) for problem in problems]
        shown = [plan[: round(share * len(plan))] for plan in plans]
        return self.playing.play(
            self.language_model,
            problems,
            samples=samples,
            max_new_tokens=1,
            temperature=1.0,
            seed=[self.seed, _LOOK],
            prompts=[hinted(problem.prompt, each, letters) for problem, each in zip(problems, shown, strict=True)],
            batch_size=AT_ONCE,
        )

    def hint_weights(self, share: float, *, samples: int = 4) -> tuple[list[str], dict[str, Array]]:
        """Ids of some hard problems to train on, and `log_ratios` of each with a share of its plan shown, by their names."""
        problems = [problem for problem in self.train if seed_of(problem) % 2][:PROBED]
        rolled = self.play(problems, samples=samples, share=share)
        plain, _ = encode_prompts(self.language_model, [problem.prompt for problem in problems])
        found = score_rollouts(self.language_model.model, rebuild(rolled, plain)).log_probs
        rewards = torch.tensor(_solved(rolled)).view(len(problems), samples)
        measured = log_ratios(found, rolled.log_probs, rewards - rewards.mean(dim=-1, keepdim=True), rolled.mask)
        return [problem.id for problem in problems], {name: values.numpy() for name, values in measured.items()}

    def fine_tune(self, *, wrong: float = 0.0) -> int:
        """Cross-entropy on the plans of the hard problems to train on, no hint shown; the tokens that were learnt."""
        plans = self.plans(self.train, wrong=wrong)
        numbers = [seed_of(problem) for problem in self.train if problem.id in plans]
        episodes = as_rollouts(self.language_model, planned(numbers, list(plans.values())))
        steps = math.ceil(SFT_EPOCHS * len(numbers) / min(BATCH_SIZE, len(numbers)))
        return fine_tune(self.language_model, episodes, steps=steps, learning_rate=SFT_RATE, seed=self.seed)

    @closed
    def reinforce(
        self,
        run: Any,
        recipe: Recipe,
        look: Callable[[Tally], None],
        *,
        tokens: int,
        evaluations: int,
        start: Start = "taught",
        wrong: float = 0.0,
        guidance: Mapping[str, Any] | None = None,
    ) -> None:
        """Train until so many tokens are generated, on the run's books; resumable.

        look: called at the start, then whenever another part of `evaluations` of the tokens is spent, and at the end. start:
        "sft" fine-tunes on the plans first. wrong: the share of actions of the plans that are other ones. guidance: settings
        of `Guided`; None for rollouts without hints.
        """
        stored = run.resume() or {"training": None, "tally": {}}
        tally = Tally(**stored["tally"])
        if stored["training"] is None:
            if start == "sft":
                run.spend(phase="build", trained_tokens=self.fine_tune(wrong=wrong))
            look(tally)
        sample: Any = self.playing
        if guidance is not None:
            sample = Guided(self.playing, self.plans(self.train, wrong=wrong), template=letters, **guidance)
        every = tokens / evaluations

        def noted(state: ReinforceState) -> bool:
            before = tally.tokens
            run.spend(phase="build", **tally.add(state, recipe))
            bar.update(tally.tokens)
            if tally.tokens // every > before // every or tally.tokens >= tokens:
                look(tally)
            return tally.tokens >= tokens

        def save(state: dict[str, Any]) -> None:
            run.checkpoint({"training": state, "tally": asdict(tally)})

        if tally.tokens < tokens:
            with progress("Spending tokens", total=tokens, unit="tokens", done=tally.tokens) as bar:
                train(
                    prepare(self.language_model, recipe),
                    recipe,
                    self.train,
                    no_reward,
                    sample=sample,
                    callbacks=[noted],
                    save=save,
                    save_every=SAVE_EVERY,
                    state=stored["training"],
                )


def _different(playing: Playing, seeds: Iterable[int], count: int, without: set[str]) -> list[Problem]:
    """The first problems of these seeds with pictures that are neither among `without` nor equal."""
    found: dict[str, Problem] = {}
    for seed in seeds:
        if len(found) == count:
            break
        (problem,) = playing.problems([seed])
        if problem.prompt not in without:
            found.setdefault(problem.prompt, problem)
    return list(found.values())


def _solved(rollouts: Rollouts) -> Array:
    return np.array([float(episode.success) for episode in rollouts.episodes])
