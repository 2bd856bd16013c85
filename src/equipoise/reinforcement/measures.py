"""How many problems a model solves: greedily, at one try, at the best of k; before a training, along the way and after."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.core.agreement import UNDEFINED, share
from equipoise.core.scores import pass_at_k
from equipoise.core.shares import Bounded
from equipoise.core.statistics import item_interval
from equipoise.language.rollouts import roll_out
from equipoise.reinforcement.stages import Reward, judged

if TYPE_CHECKING:
    from equipoise.data.problems import Problem
    from equipoise.language.model import LanguageModel

# (prompts, samples, temperature, seed) -> responses to each prompt in turn, and the ids of their tokens, None where unknown.
TokenIds = Sequence[Sequence[int]] | None
Generate = Callable[..., tuple[Sequence[str], TokenIds]]
FULL = 1 - 1e-9  # a response whose reward is at least this is right


@dataclass(frozen=True, eq=False)
class Solved:
    """rewards: [P, N] of sampled responses, lengths: their tokens. greedy: [P], the rewards of the likeliest responses.

    clusters: [P], what problems come from. texts: the greedy responses. tokens: generated in all. right, greedy_right:
    [P, N] and [P] bool, what is right where that is another thing than a full reward. shares: further outcomes, name -> a
    share in [0, 1] for each problem, [P], nan where it has none.
    """

    rewards: NDArray[np.float64]
    lengths: NDArray[np.float64]
    greedy: NDArray[np.float64]
    clusters: NDArray[np.int64]
    texts: tuple[str, ...]
    missing: int
    tokens: int
    right: NDArray[np.bool_] | None = None
    greedy_right: NDArray[np.bool_] | None = None
    shares: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Everything, as a stored state takes it."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Solved:
        """What `state` gave."""
        return cls(**{**state, "texts": tuple(state["texts"])})

    @property
    def solved(self) -> NDArray[np.bool_]:
        """Which sampled responses are right, [P, N]."""
        return self.rewards >= FULL if self.right is None else self.right

    def per_problem(self) -> dict[str, NDArray[np.float64]]:
        """Outcome -> its value for each problem, [P]: greedy_accuracy, pass@1, 2, 4 ... up to N, reward, further shares."""
        right = self.solved.sum(axis=1)
        samples = self.rewards.shape[1]
        greedy = self.greedy >= FULL if self.greedy_right is None else self.greedy_right
        found = {"greedy_accuracy": greedy.astype(float)}
        for k in _powers(samples):
            found[f"pass@{k}"] = pass_at_k(right, samples, k)
        return {**found, "reward": self.rewards.mean(axis=1), **self.shares}

    def estimates(self, other: Solved | None = None) -> dict[str, Bounded]:
        """Means over problems with 95 % intervals, clustered; of shares by Wilson's, which stay within [0, 1].

        other: one that stands beside this, of the same problems; what is in it alone is nan here.
        """
        here, found = self.per_problem(), dict.fromkeys(_told(self, other), UNDEFINED)
        for name in found.keys() & here.keys():
            mean = bounded if name == "reward" else mean_share
            found[name] = mean(here[name], self.clusters)
        return found

    def changes(self, before: Solved) -> dict[str, Bounded]:
        """This minus an earlier measurement of the same problems, paired; nan for what is in one of both alone."""
        now, earlier, found = self.per_problem(), before.per_problem(), dict.fromkeys(_told(self, before), UNDEFINED)
        for name in found.keys() & now.keys() & earlier.keys():
            found[name] = bounded(now[name] - earlier[name], self.clusters)
        return found


def _told(one: Solved, other: Solved | None) -> list[str]:
    """What is told of measurements: all that one of them has, the reward where in one of them it says more than pass@1."""
    every = [each for each in (one, other) if each is not None]
    graded = any((each.rewards != each.solved).any() for each in every)
    names = dict.fromkeys(name for each in every for name in each.per_problem())
    return [name for name in names if graded or name != "reward"]


def bounded(values: NDArray[np.float64], clusters: NDArray[np.int64]) -> Bounded:
    """The mean of values, one a problem, with its 95 % interval over problems, or over what they come from."""
    return Bounded.of(item_interval(values, clusters))


def mean_share(values: ArrayLike, clusters: ArrayLike) -> Bounded:
    """The mean of values in [0, 1], nan among them left out, with Wilson's interval on as many answers as they are worth."""
    there = ~np.isnan(np.asarray(values, float))
    found = share(np.asarray(values, float)[there], np.asarray(clusters)[there])
    return Bounded(found.rate, found.lower, found.upper)


def solve(
    language_model: LanguageModel,
    problems: Sequence[Problem],
    reward: Reward,
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int = 64,
    generate: Generate | None = None,
) -> Solved:
    """Sample `samples` responses to each problem and the likeliest one, and judge them. generate: not by the model."""
    generate = generate or own_responses(language_model, max_new_tokens, batch_size)
    asked = [problem.asked for problem in problems]
    texts, ids = generate(asked, samples, temperature, seed)
    likeliest, greedy_ids = generate(asked, 1, 0.0, seed)
    every = [problem for problem in problems for _ in range(samples)]
    rewards, missing = judged(reward, every, texts, completion_ids=ids)
    greedy, _ = judged(reward, problems, likeliest, completion_ids=greedy_ids)
    lengths = _lengths(ids, len(every))
    return Solved(
        rewards=rewards.double().view(len(problems), samples).numpy(),
        lengths=lengths.reshape(len(problems), samples),
        greedy=greedy.double().numpy(),
        clusters=clusters(problems),
        texts=tuple(likeliest),
        missing=int(missing.sum()),
        tokens=int(np.nansum(lengths) + np.nansum(_lengths(greedy_ids, len(problems)))),
    )


def own_responses(language_model: LanguageModel, max_new_tokens: int, batch_size: int = 64) -> Generate:
    """What a model itself answers; keys: as of `roll_out`, so that a prompt's draws do not depend on its place."""

    def generate(
        prompts: Sequence[Any], samples: int, temperature: float, seed: int, keys: Sequence[int] | None = None
    ) -> tuple[Sequence[str], TokenIds]:
        rolled = roll_out(
            language_model,
            prompts,
            samples=samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=[seed, 5],
            keys=keys,
            batch_size=batch_size,
        )
        return rolled.texts, rolled.token_ids

    return generate


def _lengths(ids: TokenIds, count: int) -> NDArray[np.float64]:
    return np.full(count, math.nan) if ids is None else np.array([len(each) for each in ids], dtype=float)


def tokens_per_second(
    language_model: LanguageModel, prompts: Sequence[Any], max_new_tokens: int, temperature: float
) -> float:
    """How fast a model writes responses, from one of a few tokens to each of these prompts."""
    how = {"samples": 1, "temperature": temperature, "seed": 0}
    roll_out(language_model, prompts[:1], max_new_tokens=1, **how)  # the first pass of a process is slow
    began = time.perf_counter()
    rolled = roll_out(language_model, prompts, max_new_tokens=max_new_tokens, **how)
    return int(rolled.mask.sum()) / max(time.perf_counter() - began, 1e-9)


def clusters(problems: Sequence[Problem]) -> NDArray[np.int64]:
    """A number for what each problem comes from: its group, or itself."""
    names: dict[str, int] = {}
    return np.array([names.setdefault(p.group or f"\0{p.id}", len(names)) for p in problems], dtype=np.int64)


def _powers(samples: int) -> list[int]:
    found = [2**exponent for exponent in range(int(math.log2(samples)) + 1)]
    return found if found[-1] == samples else [*found, samples]
