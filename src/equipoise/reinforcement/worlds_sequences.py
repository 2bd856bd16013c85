"""SPPO's exact world: a policy whose parameters all prompts share answers in six tokens, right only if each of them is.

P prompts, T tokens, V vocabulary, D features, B responses. Prompt i has features x_i [D]: a constant, its ease, and a
direction scaled by the ease. The policy is linear, softmax(x_i W_t) [V] at place t, and starts at the teacher's W with
errors: hard prompts start near chance, easy ones near certainty. The reward is 1 when all T tokens are the teacher's, so

    solve rate    s_i = prod_t softmax(x_i W_t)[answer_it]

An update spends 64 generations: 64 prompts once, 8 prompts 8 times, or, for ReMax, 32 prompts and their greedy answers.
Every method makes its advantages from the same rewards and has the same clipped loss, two mini-batches an update.

The critics of the prompt are linear in x, or in its first quarter. The critic of tokens is as large as the policy: its
value before token t adds up what the prompt and each token so far speak for, v_t = x c_t + sum_{s<t} x C_s[:, y_s].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.core.options import closed
from equipoise.reinforcement import group_baselines, policy_loss, ppo, sppo
from equipoise.reinforcement.worlds import Learner, draws, sample

Critic = Literal["sppo", "running-mean", "ppo-gae", "ppo-bce"]
Group = Literal["grpo", "rloo", "dr-grpo"]
Single = Literal["reinforce++", "remax", "oracle", "batch-mean", "none"]
Method = Literal[Critic, Group, Single]
GENERATIONS = 64  # an update
SAMPLES = 8  # of a prompt, where a group is the baseline
MINI_BATCHES = 2
DUAL_CLIP = 3.0
WORLD, UPDATE = 0, 1  # purposes of random numbers


@dataclass(frozen=True)
class World:
    """features [P, D], answers [P, T], start [T, D, V]: where every policy begins."""

    features: Tensor
    answers: Tensor
    start: Tensor

    @classmethod
    def make(
        cls,
        seed: int,
        *,
        prompts: int = 256,
        features: int = 32,
        vocabulary: int = 6,
        tokens: int = 6,
        skill: float = 3.0,
        errors: float = 0.3,
    ) -> "World":
        """The world of a seed; skill: the scale of the start, errors: its noise where the teacher has deviation 1."""
        random = draws(seed, WORLD)
        ease = random.uniform(0.5, 2.0, (prompts, 1))
        direction = random.standard_normal((prompts, features - 2))
        x = np.concatenate([np.ones((prompts, 1)), ease, ease * direction], axis=1) / np.sqrt(features)
        teacher = random.standard_normal((tokens, features, vocabulary))
        start = skill * (teacher + errors * random.standard_normal(teacher.shape))
        answers = np.einsum("pd,tdv->ptv", x, teacher).argmax(-1)
        return cls(torch.from_numpy(x), torch.from_numpy(answers), torch.from_numpy(start))

    def log_probs(self, policy: Tensor, prompts: Tensor) -> Tensor:
        """[B, T, V] of prompts [B] under a policy [T, D, V]."""
        return torch.einsum("bd,tdv->btv", self.features[prompts], policy).log_softmax(-1)

    def solve_rates(self, policy: Tensor) -> Tensor:
        """The exact probability that the policy answers each prompt right, [P]."""
        log_probs = self.log_probs(policy.detach(), torch.arange(len(self.answers)))
        return log_probs.gather(-1, self.answers.unsqueeze(-1)).sum((-2, -1)).exp()


@dataclass(frozen=True)
class Batch:
    """B responses: prompts [B], tokens [B, T], rewards [B], greedy_rewards [B], the prompts' exact solve rates [B]."""

    prompts: Tensor
    tokens: Tensor
    rewards: Tensor
    greedy_rewards: Tensor
    solve_rates: Tensor

    @property
    def mask(self) -> Tensor:
        return torch.ones_like(self.tokens, dtype=torch.bool)

    def mini_batches(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Tensors [B, ...] in mini-batches, in the same order."""
        return list(zip(*(tensor.chunk(MINI_BATCHES) for tensor in tensors), strict=True))


class Estimator(Protocol):
    """How a method gets from a batch to advantages, [B] or [B, T], and what it learns from the batch afterwards.

    `predictions`: its success probability of every prompt, [P], or None; `parameters`: of its critic.
    """

    parameters: int

    def advantages(self, batch: Batch, /) -> Tensor: ...
    def learn(self, batch: Batch) -> None: ...
    def predictions(self) -> Tensor | None: ...
    def state(self) -> dict[str, Any]: ...
    def load(self, state: dict[str, Any]) -> None: ...


@dataclass
class Rule:
    """Advantages that follow from the batch alone."""

    advantages: Callable[[Batch], Tensor]
    parameters: int = 0

    def learn(self, batch: Batch) -> None:
        """Nothing."""

    def predictions(self) -> Tensor | None:
        return None

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Nothing."""


def _grouped(function: Callable[[Tensor], Tensor]) -> Callable[[Batch], Tensor]:
    return lambda batch: function(batch.rewards.view(-1, SAMPLES)).flatten()


RULES: dict[str, Callable[[Batch], Tensor]] = {
    "oracle": lambda batch: sppo.advantages(batch.rewards, batch.solve_rates),
    "batch-mean": lambda batch: sppo.advantages(batch.rewards, batch.rewards.mean().expand_as(batch.rewards)),
    "none": lambda batch: batch.rewards,
    "grpo": _grouped(group_baselines.grpo),
    "dr-grpo": _grouped(group_baselines.dr_grpo),
    "rloo": _grouped(group_baselines.rloo),
    "remax": lambda batch: group_baselines.remax(batch.rewards, batch.greedy_rewards),
    "reinforce++": lambda batch: group_baselines.reinforce_plus_plus(
        ppo.token_rewards(batch.rewards, batch.mask), batch.mask
    ),
}


class RunningMean:
    """A table with the mean of all rewards that a prompt has had; one half before the first."""

    parameters = 0

    def __init__(self, world: World) -> None:
        self.sums = torch.full((len(world.answers),), 0.5, dtype=torch.float64)
        self.counts = torch.ones_like(self.sums)

    def advantages(self, batch: Batch) -> Tensor:
        return sppo.advantages(batch.rewards, self.predictions()[batch.prompts])

    def learn(self, batch: Batch) -> None:
        self.sums.index_add_(0, batch.prompts, batch.rewards)
        self.counts.index_add_(0, batch.prompts, torch.ones_like(batch.rewards))

    def predictions(self) -> Tensor:
        return self.sums / self.counts

    def state(self) -> dict[str, Any]:
        return {"sums": self.sums, "counts": self.counts}

    def load(self, state: dict[str, Any]) -> None:
        self.sums.copy_(state["sums"])
        self.counts.copy_(state["counts"])


class PromptCritic:
    """SPPO's critic: p = sigmoid(x w) of the first `width` features of the prompt."""

    def __init__(self, world: World, learning_rate: float, width: int) -> None:
        self.features, self.parameters = world.features[:, :width], width
        self.learner = Learner(learning_rate, w=torch.zeros(width, dtype=torch.float64))

    def advantages(self, batch: Batch) -> Tensor:
        return sppo.advantages(batch.rewards, self.predictions()[batch.prompts])

    def learn(self, batch: Batch) -> None:
        for prompts, rewards in batch.mini_batches(batch.prompts, batch.rewards):
            self.learner.step(sppo.critic_loss(self.features[prompts] @ self.learner["w"], rewards))

    def predictions(self) -> Tensor:
        return (self.features @ self.learner["w"].detach()).sigmoid()

    def state(self) -> dict[str, Any]:
        return self.learner.state()

    def load(self, state: dict[str, Any]) -> None:
        self.learner.load(state)


class TokenCritic:
    """PPO's critic, a value before every token: of the squared error and linear, or of BCE and a success probability."""

    def __init__(self, world: World, learning_rate: float, *, bce: bool) -> None:
        tokens, features, _ = world.start.shape
        self.features, self.bce = world.features, bce
        prompt = torch.zeros((tokens, features), dtype=torch.float64)
        self.learner = Learner(learning_rate, prompt=prompt, token=torch.zeros_like(world.start))
        self.parameters = sum(tensor.numel() for tensor in self.learner.tensors.values())

    def outputs(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """What the critic says before each token, [B, T]; under BCE a logit."""
        x = self.features[prompts]
        spoken = torch.einsum("bd,tdv->btv", x, self.learner["token"]).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return x @ self.learner["prompt"].T + F.pad(spoken.cumsum(-1)[:, :-1], (1, 0))

    def values(self, batch: Batch) -> Tensor:
        """V of each token, [B, T]."""
        outputs = self.outputs(batch.prompts, batch.tokens).detach()
        return outputs.sigmoid() if self.bce else outputs

    def advantages(self, batch: Batch) -> Tensor:
        advantages, _ = ppo.gae(ppo.token_rewards(batch.rewards, batch.mask), self.values(batch), batch.mask)
        return ppo.whiten(advantages, batch.mask)

    def learn(self, batch: Batch) -> None:
        old = self.values(batch)
        for prompts, tokens, rewards, values, mask in batch.mini_batches(
            batch.prompts, batch.tokens, batch.rewards, old, batch.mask
        ):
            outputs = self.outputs(prompts, tokens)
            returns = rewards.unsqueeze(-1).expand_as(outputs)
            loss = (
                ppo.bce_value_loss(outputs, rewards, mask)
                if self.bce
                else ppo.value_loss(outputs, values, returns, mask)
            )
            self.learner.step(loss)

    def predictions(self) -> Tensor:
        outputs = self.features @ self.learner["prompt"][0].detach()
        return outputs.sigmoid() if self.bce else outputs.clamp(0, 1)

    def state(self) -> dict[str, Any]:
        return self.learner.state()

    def load(self, state: dict[str, Any]) -> None:
        self.learner.load(state)


class Training:
    """A policy of a world, learning by one method; `update` is one batch, `done` how many there were."""

    @closed
    def __init__(
        self,
        world: World,
        method: Method,
        *,
        learning_rate: float,
        seed: int,
        critic_rate: float = 0.1,
        critic_share: float = 1.0,
    ) -> None:
        self.world, self.seed, self.done = world, seed, 0
        self.samples = SAMPLES if method in get_args(Group) else 1
        self.greedy = method == "remax"
        self.policy = Learner(learning_rate, w=world.start)
        self.zero_advantages = 0.0
        if method == "sppo":
            self.estimator: Estimator = PromptCritic(world, critic_rate, int(critic_share * world.features.shape[1]))
        elif method in ("ppo-gae", "ppo-bce"):
            self.estimator = TokenCritic(world, critic_rate, bce=method == "ppo-bce")
        else:
            self.estimator = RunningMean(world) if method == "running-mean" else Rule(RULES[method])

    @property
    def generated_tokens(self) -> int:
        """What an update spends, the same for every method."""
        return GENERATIONS * self.world.answers.shape[1]

    def roll_out(self) -> Batch:
        """The next batch: its prompts, and tokens from the policy as it is."""
        random = draws(self.seed, UPDATE, self.done)
        prompts, tokens = self.world.answers.shape
        drawn = random.permutation(prompts)[: GENERATIONS // (self.samples * (1 + self.greedy))]
        rows = torch.from_numpy(drawn).repeat_interleave(self.samples)
        log_probs = self.world.log_probs(self.policy["w"].detach(), rows)
        spoken = sample(log_probs, random.random((len(rows), tokens)))
        answers = self.world.answers[rows]
        rewards, greedy = ((each == answers).all(-1).double() for each in (spoken, log_probs.argmax(-1)))
        solve_rates = log_probs.gather(-1, answers.unsqueeze(-1)).sum((-2, -1)).exp()
        return Batch(rows, spoken, rewards, greedy, solve_rates)

    def update(self) -> None:
        """Roll out, learn; the advantages are those of before the critic learnt."""
        batch = self.roll_out()
        advantages = self.estimator.advantages(batch)
        self.zero_advantages = (advantages == 0).double().mean().item()
        self.estimator.learn(batch)
        old = self.log_probs(batch.prompts, batch.tokens).detach()
        for prompts, tokens, each, old_log_probs, mask in batch.mini_batches(
            batch.prompts, batch.tokens, advantages, old, batch.mask
        ):
            log_probs = self.log_probs(prompts, tokens)
            loss, _ = policy_loss.clipped(log_probs, old_log_probs, each, mask, dual_clip=DUAL_CLIP)
            self.policy.step(loss)
        self.done += 1

    def log_probs(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """Of tokens [B, T] under the policy, [B, T]."""
        return self.world.log_probs(self.policy["w"], prompts).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def solve_rates(self) -> Tensor:
        """Exact, of every prompt, [P]."""
        return self.world.solve_rates(self.policy["w"])

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on after the same number of updates."""
        return {"done": self.done, "policy": self.policy.state(), "estimator": self.estimator.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.done = state["done"]
        self.policy.load(state["policy"])
        self.estimator.load(state["estimator"])
