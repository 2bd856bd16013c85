"""Episodes in the loop: the stage `sample` of `training.train` that plays in an environment, and what is measured of it.

    playing = Playing(open_environment("tictactoe"), max_turns=5)
    train(language_model, recipe, playing.problems(range(100)), no_reward, sample=playing)

A problem is a seed of the environment, its prompt what is seen first; the episodes of one seed are its group. A reward is an
episode's score, which `shape` may change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.data.problems import Problem
from equipoise.language.episodes import Episode, play
from equipoise.reinforcement.measures import Solved, clusters
from equipoise.reinforcement.recipe import ADVANTAGES, Recipe
from equipoise.reinforcement.stages import Reward, Step, sampling

if TYPE_CHECKING:
    from equipoise.data.environment import OpenedEnvironment
    from equipoise.language.model import LanguageModel
    from equipoise.language.rollouts import Rollouts
    from equipoise.reinforcement.r2po import RolloutHead

TURNS = 8  # of an episode at most, where neither the caller nor the environment says how many


def no_reward(problems: Sequence[Problem], answers: Sequence[str]) -> list[float]:
    """The reward of a training whose environment gives its own. Never called."""
    raise BadInput("an environment gives rewards of its own: give sample=Playing(...).")


@dataclass(frozen=True)
class Playing:
    """Called as `stages.sample`. max_turns: not given, the environment's own, else TURNS.

    shape: the rollouts of a batch -> its rewards [R], in place of the episodes' scores. invalid_penalty: subtracted from
    these for each turn that the environment did not understand or allow.
    """

    environment: OpenedEnvironment
    max_turns: int | None = None
    invalid_penalty: float = 0.0
    shape: Callable[[Rollouts], Tensor] | None = None

    @property
    def turns(self) -> int:
        """The most that an episode takes."""
        return self.max_turns or self.environment.max_turns or TURNS

    def problems(self, seeds: Iterable[int]) -> list[Problem]:
        """A problem for each seed, with what is seen first as its prompt. Raises BadInput where `reset` fails."""
        from equipoise.language.episodes import begun

        return [
            Problem(
                f"{self.environment.name}-{seed}", begun(self.environment.make, seed)[1], (), columns={"seed": seed}
            )
            for seed in seeds
        ]

    def play(
        self,
        language_model: LanguageModel,
        problems: Sequence[Problem],
        *,
        samples: int,
        max_new_tokens: int,
        temperature: float,
        seed: int | Sequence[int],
        keys: Sequence[int] | None = None,
        prompts: Sequence[Any] | None = None,
        batch_size: int = 64,
    ) -> Rollouts:
        """Episodes of these problems; prompts: what is shown in place of the environment's first texts."""
        return play(
            language_model,
            self.environment.make,
            [seed_of(problem) for problem in problems],
            samples=samples,
            max_turns=self.turns,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            keys=keys,
            prompts=prompts,
            batch_size=batch_size,
        )

    def rewards(self, rollouts: Rollouts) -> Tensor:
        """[R] in float32: what each episode is worth in training."""
        like: dict[str, Any] = {"dtype": torch.float32, "device": rollouts.ids.device}
        invalid = [sum(not turn.info.get("valid", True) for turn in episode.turns) for episode in rollouts.episodes]
        scores = torch.tensor([episode.score for episode in rollouts.episodes], **like)
        worth = scores if self.shape is None else self.shape(rollouts).float()
        return worth - self.invalid_penalty * torch.tensor(invalid, **like)

    def __call__(
        self,
        language_model: LanguageModel,
        recipe: Recipe,
        problems: Sequence[Problem],
        keys: Sequence[int],
        reward: Reward,
        index: int,
        head: RolloutHead | None = None,
    ) -> Step:
        limits: dict[str, Any] = {"max_new_tokens": recipe.max_new_tokens, "batch_size": recipe.rollout_batch_size}
        with sampling(head):
            rollouts = self.play(
                language_model,
                problems,
                samples=recipe.samples,
                temperature=recipe.temperature,
                seed=[recipe.seed, 4],
                keys=keys,
                **limits,
            )
        shape = len(problems), recipe.samples
        failed = torch.tensor([episode.outcome == "failed" for episode in rollouts.episodes])
        rewards = self.rewards(rollouts).view(shape)
        step = Step(
            index,
            recipe.stage(index),
            tuple(problems),
            tuple(keys),
            rollouts,
            rewards,
            failed.to(rewards.device).view(shape),
        )
        if not ADVANTAGES[recipe.advantage].greedy:
            return step
        greedy = self.play(language_model, problems, samples=1, temperature=0.0, seed=0, **limits)
        return replace(step, greedy_rewards=self.rewards(greedy), greedy_lengths=greedy.lengths)

    def solve(
        self,
        language_model: LanguageModel,
        problems: Sequence[Problem],
        *,
        samples: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        batch_size: int = 64,
    ) -> Solved:
        """As `measures.solve`: sampled episodes of each problem and the likeliest one; right are those that succeeded.

        Rewards are scores, with nothing shaped. Among the shares are valid turns, episodes
        that the environment ended, and of composed episodes each part's.
        """
        how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": [seed, 5], "batch_size": batch_size}
        sampled = self.play(language_model, problems, samples=samples, temperature=temperature, **how)
        greedy = self.play(language_model, problems, samples=1, temperature=0.0, **how)
        groups = [sampled.episodes[place : place + samples] for place in range(0, len(sampled.episodes), samples)]
        return Solved(
            rewards=_scores(sampled.episodes).reshape(len(problems), samples),
            right=_solved(sampled.episodes).reshape(len(problems), samples),
            greedy_right=_solved(greedy.episodes),
            shares=_shares(groups),
            lengths=sampled.lengths.double().cpu().numpy().reshape(len(problems), samples),
            greedy=_scores(greedy.episodes),
            clusters=clusters(problems),
            texts=tuple(map(transcript, greedy.episodes)),
            missing=sum(episode.outcome == "failed" for episode in sampled.episodes),
            tokens=int(sampled.mask.sum() + greedy.mask.sum()),
        )


def seed_of(problem: Problem) -> int:
    """The seed of the environment that a problem is. Raises BadInput for a problem without one."""
    seed = problem.columns.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise BadInput(
            f"problem {problem.id!r} has the seed {seed!r}: an environment needs a whole number of at least 0."
        )
    return seed


def episode_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """What is logged of the episodes of a step: shares of successes, of valid turns, of what was cut or failed; turns.

    Of composed episodes also the share of successes of each part, as success/NAME, over those that came to its end.
    """
    count = len(episodes)
    found = {
        "success": sum(episode.success for episode in episodes) / count,
        "turns": sum(len(episode.turns) for episode in episodes) / count,
        "valid": sum(episode.valid for episode in episodes) / count,
        "cut": sum(episode.outcome in ("turns", "room") for episode in episodes) / count,
        "failed": sum(episode.outcome == "failed" for episode in episodes) / count,
    }
    return found | {f"success/{name}": sum(each) / len(each) for name, each in sorted(of_tasks(episodes).items())}


def of_tasks(episodes: Sequence[Episode]) -> Mapping[str, list[bool]]:
    """By the names of parts: whether each that came to its end was solved."""
    found: dict[str, list[bool]] = {}
    for episode in episodes:
        for turn in episode.turns:
            if turn.info.get("task_done"):
                found.setdefault(str(turn.info.get("task", "")), []).append(bool(turn.info.get("success", False)))
    return found


def transcript(episode: Episode) -> str:
    """What was said after the first text, a turn a paragraph."""
    said = [line for turn in episode.turns for line in (turn.text, turn.reply and f"> {turn.reply}")]
    return "\n".join(filter(None, [*said, episode.reason]))


def _scores(episodes: Sequence[Episode]) -> Any:
    return np.array([episode.score for episode in episodes])


def _solved(episodes: Sequence[Episode]) -> Any:
    return np.array([episode.success for episode in episodes])


def _shares(groups: Sequence[Sequence[Episode]]) -> dict[str, Any]:
    """Of each group: the shares of valid turns and of finished episodes, and for each part that of its ends solved."""
    of_groups = [of_tasks(group) for group in groups]
    found = {
        "valid": np.array([np.mean([episode.valid for episode in group]) for group in groups]),
        "finished": np.array([np.mean([episode.outcome == "done" for episode in group]) for group in groups]),
    }
    for name in sorted({name for each in of_groups for name in each}):
        found[f"success/{name}"] = np.array([np.mean(each[name]) if name in each else np.nan for each in of_groups])
    return found
