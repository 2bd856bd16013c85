"""Several environments in one trajectory (GIFT's nested training, arXiv:2601.05633 v1), and its rivals: mixing, rotation.

    playing = Playing(nested(["matrix-games", "tictactoe"]))          one episode: a matrix game, then tic-tac-toe
    playing = Playing(mixed(["matrix-games", "tictactoe"]))           one episode: one of both
    train(language_model, recipe, playing.problems(range(100)), no_reward, sample=playing, weigh=Spread(0.25))

K tasks, their scores S_k, P prompts with N episodes each, R = P N rows, T places of a row.

    nested       R = c(S_1, .., S_K), c the mean, the minimum, the product, or 1 where all are solved; A = GRPO's of R
    segments     tokens of task k:  A = (S_k - mean) / (std + 1e-6) over the episodes of the same prompt, task by task
    mixed        an episode is one task: seed mod K; in a batch by chance, or split evenly (`Even`)
    rotation     every prompt of a step plays the same task, for so many steps, then the next (v2 of the paper)
    per task     R - mean of the group, whitened over the tokens of the same task          AgentRL, arXiv:2510.04206
    spread       of the P groups, those whose rewards have the largest standard deviation

E[mean of S_k] is the mean of E[S_k]: where tasks do not touch each other, nesting and mixing have the same optimum. What
differs is the group (its mean and its scale are of the sum), the credit (all tokens share it), the context, and how many
samples there are. What differs from the released code: seeds of tasks are derived and not all equal; the cap on turns is the
sum of the tasks' own, and a task that reaches its own gives way to the next; the spread is that of rewards, where the
released trainer ranks rewards that it has normalized in place, so that each group's is sigma / (sigma + 1e-6), and rounding
decides.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.data.environment import Maker, OpenedEnvironment, open_environment
from equipoise.reinforcement import group_baselines, stages
from equipoise.reinforcement.playing import TURNS, Playing, seed_of
from equipoise.reinforcement.ppo import whiten
from equipoise.reinforcement.recipe import ADVANTAGES, METHODS, Advantage, Recipe

if TYPE_CHECKING:
    from equipoise.data.problems import Problem
    from equipoise.language.episodes import Episode, Turn
    from equipoise.language.model import LanguageModel
    from equipoise.language.rollouts import Rollouts
    from equipoise.reinforcement.stages import Reward, Step

Combination = Literal["mean", "min", "product", "all"]
Source = str | Maker | OpenedEnvironment
Sources = Sequence[Source] | Mapping[str, Source]


# environments of environments


def tasks_of(environments: Sources) -> dict[str, OpenedEnvironment]:
    """Environments by the names of their tasks: those of a mapping, else their own.

    Raises BadInput where there is none, where two have one name, and for what `open_environment` refuses.
    """
    named = environments.items() if isinstance(environments, Mapping) else ((None, each) for each in environments)
    tasks: dict[str, OpenedEnvironment] = {}
    for name, source in named:
        opened = source if isinstance(source, OpenedEnvironment) else open_environment(source)
        name = name or opened.name
        if name in tasks:
            raise BadInput(f"two tasks are called {name!r}: give a mapping of names to environments.")
        tasks[name] = opened
    if not tasks:
        raise BadInput("there is nothing to compose: give at least one environment.")
    return tasks


def task_seed(seed: int, place: int) -> int:
    """The seed of the task at a place (from 0) of a composed episode: the first has the episode's own."""
    return seed if place == 0 else int(np.random.SeedSequence([seed, place]).generate_state(1)[0])


class _Task:
    """One environment of several. score, penalty: its rewards so far, those of turns that were not valid apart."""

    def __init__(self, name: str, opened: OpenedEnvironment) -> None:
        self.name, self.max_turns, self._environment = name, opened.max_turns or TURNS, opened.make()

    def reset(self, seed: int) -> str:
        self.score, self.penalty, self._turns = 0.0, 0.0, 0
        text = self._environment.reset(seed)
        if not isinstance(text, str) or not text.strip():
            raise BadInput(
                f"reset({seed}) of the task {self.name} gave {text!r}, expected the text that is seen first."
            )
        return text

    def step(self, text: str) -> tuple[str, float, bool, dict[str, Any]]:
        """What the environment says; the task is over when it says so, or after as many turns as it may take."""
        reply, reward, done, told = self._environment.step(text)
        info = dict(told or {})
        self._turns += 1
        if info.get("valid", True):
            self.score += reward
        else:
            self.penalty += reward
        over = bool(done) or self._turns >= self.max_turns
        info |= {"task": self.name, "task_done": over, "task_score": self.score + self.penalty}
        if over:
            info["success"] = bool(done) and bool(info.get("success", False))
        return reply, reward, over, info


class Nested:
    """An environment whose episode is one of each task, in their order, all in one context.

    environments: names, FILE:FUNCTION or makers, or a mapping with names of one's own. reward: how the tasks' scores become
    the episode's: their mean, minimum or product, or 1 where each was solved, else 0.
    A task's score is the sum of its rewards, paid when the last task ends; rewards of turns that were not valid are paid as
    they come, and not divided. Where a task ends, what follows is the first text of the next, and no word of how it went. An
    action is one task's: what it says beyond the end of that is not read. `Info` names task, task_done, task_score (its
    rewards until now, paid or not), and of a task that ended success. With one task it is that environment itself, as long
    as this is paid when it ends.
    """

    @closed
    def __init__(self, environments: Sources, reward: Combination = "mean") -> None:
        opened = tasks_of(environments)
        self._tasks = [_Task(name, task) for name, task in opened.items()]
        self._reward = reward
        self.max_turns = sum(task.max_turns for task in self._tasks)
        self.chance = _chance(opened)

    def reset(self, seed: int) -> str:
        """Begin all tasks: the first text of the first."""
        self._place, self._solved = 0, []
        self._firsts = [task.reset(task_seed(seed, place)) for place, task in enumerate(self._tasks)]
        return self._firsts[0]

    def step(self, text: str) -> tuple[str, float, bool, dict[str, Any]]:
        """Act in the task that is on."""
        reply, reward, over, info = self._tasks[self._place].step(text)
        paid = 0.0 if info.get("valid", True) else reward
        if not over:
            return reply, paid, False, info
        self._solved.append(info["success"])
        self._place += 1
        if self._place < len(self._tasks):
            return self._firsts[self._place], paid, False, info | {"owner": "environment"}
        return reply, paid + self._combined(), True, info

    def _combined(self) -> float:
        scores = [task.score for task in self._tasks]
        if self._reward == "all":
            return float(all(self._solved))
        if self._reward == "min":
            return min(scores)
        if self._reward == "mean":
            return math.fsum(scores) / len(scores)
        if min(scores) < 0:
            raise BadInput(f"the scores of the tasks are {scores}: a product needs numbers of at least 0, use 'min'.")
        return math.prod(scores)


class Mixed:
    """An environment whose episode is one of K tasks: seed mod K says which, and the rest of the seed is the task's.

    The seeds K s to K s + K - 1 are the tasks that a `Nested` episode of the seed s goes through.
    """

    def __init__(self, environments: Sources) -> None:
        opened = tasks_of(environments)
        self._tasks = [_Task(name, task) for name, task in opened.items()]
        self.names = tuple(opened)
        self.max_turns = max(task.max_turns for task in self._tasks)
        self.chance = _chance(opened)

    def reset(self, seed: int) -> str:
        """Begin the task of this seed."""
        number, place = divmod(seed, len(self._tasks))
        self._task = self._tasks[place]
        return self._task.reset(task_seed(number, place))

    def step(self, text: str) -> tuple[str, float, bool, dict[str, Any]]:
        """Act in it."""
        return self._task.step(text)


@closed
def nested(environments: Sources, reward: Combination = "mean") -> OpenedEnvironment:
    """`Nested` as `Playing` takes it: each environment is opened once, not with each episode."""
    return _composed("+", environments, lambda tasks: partial(Nested, tasks, reward))


def mixed(environments: Sources) -> OpenedEnvironment:
    """`Mixed` as `Playing` takes it. Training draws seeds by chance: `Even` or `Rotating` says who plays what."""
    return _composed("|", environments, lambda tasks: partial(Mixed, tasks))


def _composed(
    mark: str, environments: Sources, maker: Callable[[dict[str, OpenedEnvironment]], Callable[[], Nested | Mixed]]
) -> OpenedEnvironment:
    tasks = tasks_of(environments)
    make = maker(tasks)
    digests = [task.digest for task in tasks.values()]
    digest = hashlib.sha256(" ".join(digests).encode()).hexdigest() if any(digests) else ""
    made = make()
    ranges = [task.score_range for task in tasks.values() if task.score_range is not None]
    reached = (min(least for least, _ in ranges), max(most for _, most in ranges)) if ranges else None
    return OpenedEnvironment(make, mark.join(tasks), digest, made.max_turns, made.chance, score_range=reached)


def _chance(tasks: Mapping[str, OpenedEnvironment]) -> dict[str, float]:
    """As `episode_metrics` names the scores of parts: success/NAME."""
    return {f"{score}/{name}": level for name, task in tasks.items() for score, level in task.chance.items()}


# who plays what: stages `sample` around a `Playing` of `mixed`


@dataclass(frozen=True)
class Even:
    """Called as `stages.sample`: one prompt after the other plays the next task, so that each is played as often.

    playing: of a `mixed` environment of K tasks. The prompt number n of a run plays task n mod K: a batch of a multiple of K
    is split evenly. Its seed s becomes K floor(s / K) + task; give seeds that are multiples of K, and no two are alike.
    """

    playing: Playing

    def __post_init__(self) -> None:
        _count(self.playing)

    def __call__(
        self,
        language_model: LanguageModel,
        recipe: Recipe,
        problems: Sequence[Problem],
        keys: Sequence[int],
        *more: Any,
    ) -> Step:
        count = _count(self.playing)
        asked = _as_tasks(self.playing, problems, [key % count for key in keys])
        return self.playing(language_model, recipe, asked, keys, *more)


@dataclass(frozen=True)
class Rotating:
    """Called as `stages.sample`: all prompts of a step play one task, and the tasks take turns (v2 of the paper).

    playing, and what becomes of seeds: as of `Even`. steps: how many in a row are of one task, or of each its own number.
    """

    playing: Playing
    steps: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        count = _count(self.playing)
        if len(self._each) != count or min(self._each) < 1:
            raise BadInput(f"steps is {self.steps}: give a number of at least 1, or {count}, one for each task.")

    @property
    def _each(self) -> tuple[int, ...]:
        return (self.steps,) * _count(self.playing) if isinstance(self.steps, int) else self.steps

    def task(self, index: int) -> int:
        """Which task (from 0) the step of this index (from 0) is of."""
        order = [place for place, count in enumerate(self._each) for _ in range(count)]
        return order[index % len(order)]

    def __call__(
        self,
        language_model: LanguageModel,
        recipe: Recipe,
        problems: Sequence[Problem],
        keys: Sequence[int],
        reward: Reward,
        index: int,
        *head: Any,
    ) -> Step:
        asked = _as_tasks(self.playing, problems, [self.task(index)] * len(problems))
        return self.playing(language_model, recipe, asked, keys, reward, index, *head)


def _count(playing: Playing) -> int:
    made = playing.environment.make()
    if not isinstance(made, Mixed):
        raise BadInput(f"{playing.environment.name} is one environment: give Playing(mixed([..])) of several.")
    return len(made.names)


def _as_tasks(playing: Playing, problems: Sequence[Problem], tasks: Sequence[int]) -> list[Problem]:
    count = _count(playing)
    seeds = [seed_of(problem) // count * count + task for problem, task in zip(problems, tasks, strict=True)]
    return playing.problems(seeds)


# advantages


def token_tasks(rollouts: Rollouts) -> tuple[list[str], Tensor]:
    """The names of tasks, and of each of the model's tokens the place of its task among them, [R, T]; -1 elsewhere."""
    if not rollouts.episodes or rollouts.turn is None:
        raise BadInput("there are no episodes, and so no tasks: use an environment, or another advantage (grpo).")
    of_turns = [[_task(turn) for turn in episode.turns] for episode in rollouts.episodes]
    names = list(dict.fromkeys(name for row in of_turns for name in row))
    table = torch.full((len(of_turns), max(map(len, of_turns))), -1, device=rollouts.ids.device)
    for row, tasks in enumerate(of_turns):
        table[row, : len(tasks)] = torch.tensor([names.index(name) for name in tasks], device=table.device)
    return names, table.gather(1, rollouts.turn.clamp(min=0)).where(rollouts.mask, -1)


def task_scores(episode: Episode) -> dict[str, float]:
    """The score of each task that an episode came to; of one that did not end, the rewards until then."""
    scores: dict[str, float] = {}
    for turn in episode.turns:
        scores[_task(turn)] = turn.info.get("task_score", scores.get(_task(turn), 0.0) + turn.reward)
    return scores


def segment_advantages(rollouts: Rollouts) -> Tensor:
    """GRPO's advantages task by task, [R, T]: a token's are of the score of its own task, among those who came to it.

    A task that one episode of the group alone came to teaches nothing. `Playing`'s invalid_penalty is in no task's score.
    """
    names, of_tokens = token_tasks(rollouts)
    of_tasks = torch.zeros(len(rollouts.episodes), len(names), device=rollouts.ids.device)
    scores = [task_scores(episode) for episode in rollouts.episodes]
    for begin in range(0, len(scores), rollouts.samples):
        for place, name in enumerate(names):
            rows = [row for row in range(begin, begin + rollouts.samples) if name in scores[row]]
            if len(rows) > 1:
                reached = torch.tensor([[scores[row][name] for row in rows]], device=of_tasks.device)
                of_tasks[rows, place] = group_baselines.grpo(reached)[0]
    return of_tasks.gather(1, of_tokens.clamp(min=0)).where(of_tokens >= 0, 0)


def task_normalized(rewards: Tensor, rollouts: Rollouts) -> Tensor:
    """Rewards [P, N] minus the mean of their group, whitened over all tokens of the same task, [R, T] (arXiv:2510.04206)."""
    names, of_tokens = token_tasks(rollouts)
    wide = group_baselines.dr_grpo(rewards).reshape(-1, 1).expand(of_tokens.shape)
    return sum((whiten(wide, of_tokens == place) for place in range(len(names))), torch.zeros_like(wide))


def _task(turn: Turn) -> str:
    return str(turn.info.get("task", ""))


# which groups are learnt from


def widest(rewards: Tensor, keep: float) -> list[int]:
    """Of groups of rewards [P, N] the share `keep` (at least one) with the largest standard deviation, in their order.

    rewards: as they were given, not normalized. Groups of equal rewards are chosen only where there are no others, so that
    fewer than the share may be left; of equal spreads the earlier is.
    """
    spread = rewards.double().std(-1, correction=0).where(group_baselines.mixed(rewards), 0)
    order = spread.argsort(descending=True, stable=True)[: max(math.floor(keep * len(rewards) + 0.5), 1)]
    chosen = order[spread[order] > 0]
    return sorted((chosen if len(chosen) else order).tolist())


@dataclass(frozen=True)
class Spread:
    """Called as the stage `weigh`: only the groups with the widest rewards are learnt from. keep: their share, in (0, 1].

    What was written for the others stays among the generated tokens. weigh: what gives those that are left their advantages.
    """

    keep: float = 0.25
    weigh: Callable[[Recipe, Step], Step] = stages.weigh

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise BadInput(f"keep is {self.keep}: give the share of groups to learn from, above 0 and at most 1.")

    def __call__(self, recipe: Recipe, step: Step) -> Step:
        return self.weigh(recipe, _of_prompts(step, widest(step.rewards, self.keep)))


def _of_prompts(step: Step, chosen: list[int]) -> Step:
    """The step of some of its prompts, with whatever models have said of them."""
    count, samples = step.rewards.shape
    rows = [prompt * samples + sample for prompt in chosen for sample in range(samples)]
    tensors = {field.name: value for field in fields(step) if isinstance(value := getattr(step, field.name), Tensor)}
    return replace(
        step,
        problems=tuple(step.problems[prompt] for prompt in chosen),
        keys=tuple(step.keys[prompt] for prompt in chosen),
        rollouts=step.rollouts.take(chosen),
        **{name: value[chosen if len(value) == count else rows] for name, value in tensors.items()},
    )


ADVANTAGES.register("segments", Advantage(compute=lambda step, recipe: segment_advantages(step.rollouts), least=2))
ADVANTAGES.register(
    "task-normalized", Advantage(compute=lambda step, recipe: task_normalized(step.rewards, step.rollouts), least=2)
)
METHODS.register(
    "starpo",
    {"advantage": "grpo", "aggregate": "seq-mean-token-mean", "clip_high": 0.28, "entropy_beta": 0.001},
)
