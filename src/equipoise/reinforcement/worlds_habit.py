"""R2PO's exact world: a contextual bandit whose policy starts with one dominant habit, in the wrong format.

64 prompts, 24 actions: 12 answers, each in the wrong format (even actions) or the right one (odd). The policy has a backbone
and an output matrix, both linear, that all prompts share; the rollout head reads the same states:

    h = B x,  z = W h,  u = W2 relu(W1 h);    training may sample from softmax((z + u) / T), users get softmax(z)
    reward    (+1 right answer, -1 wrong) + (+1.25 right format, -1 wrong), in {-2, 0, 0.25, 2.25}
    success   of a prompt: the exact probability of its right answer in the right format under softmax(z)

The right answer is that of a linear teacher; the start knows a little of it and gives the habit, one answer in the wrong
format, most of the mass. An update spends 64 generations, 8 prompts 8 times, whatever it trains, so that the head's stage
pays for what it samples. Every loss has k3 to the start with weight 0.04, as in the released code.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from equipoise.core.options import closed
from equipoise.reinforcement import policy_loss, r2po
from equipoise.reinforcement.worlds import Learner, draws, sample

PROMPTS, ANSWERS, FEATURES = 64, 12, 32
ACTIONS = 2 * ANSWERS
HABIT = 0  # an even action: the wrong format
GROUPS, SAMPLES = 8, 8  # an update
GENERATIONS = GROUPS * SAMPLES
BETA = 0.04
WORLD, HEAD, UPDATE = 0, 1, 2  # purposes of random numbers

Head = Literal["none", "task", "rarity", "random"]
Stages = Literal["one", "head", "frozen-output"]


@dataclass(frozen=True)
class World:
    """features [P, F], answers [P], start [V, F]: the output matrix that every policy begins with."""

    features: Tensor
    answers: Tensor
    start: Tensor

    @classmethod
    def make(cls, seed: int, *, habit: float = 4.0, skill: float = 0.5) -> "World":
        """The world of a seed; habit: the start's extra logit for it, skill: the weight of the teacher in the start."""
        random = draws(seed, WORLD)
        features = np.concatenate([np.ones((PROMPTS, 1)), random.standard_normal((PROMPTS, FEATURES - 1))], axis=1)
        teacher = random.standard_normal((ANSWERS, FEATURES)) / np.sqrt(FEATURES)
        teacher[:, 0] = 0
        start = skill * teacher.repeat(2, axis=0)
        start[HABIT, 0] += habit
        answers = (features @ teacher.T).argmax(-1)
        return cls(torch.from_numpy(features), torch.from_numpy(answers), torch.from_numpy(start))

    def rewards(self, prompts: Tensor, actions: Tensor) -> Tensor:
        """Of actions to prompts, of one shape."""
        right, formatted = actions // 2 == self.answers[prompts], actions % 2 == 1
        return torch.where(right, 1.0, -1.0).double() + torch.where(formatted, 1.25, -1.0).double()

    @property
    def right_actions(self) -> Tensor:
        """The right answer in the right format, [P]."""
        return 2 * self.answers + 1


class Training:
    """The policy and its head, if any; `update` is one batch, `done` how many there were.

    head: `task` and `rarity` are trained for that reward and start at an output of zero, `random` stays as it was drawn,
    with outputs of about `head_scale`. stages: `one` trains the policy in every update; `head` opens each round of
    `policy_updates` with `head_updates` of the head alone; `frozen-output` is that rhythm without a head, all weights and
    then the backbone alone. entropy: the weight of a bonus on what is trained. Users get temperature 1.
    """

    @closed
    def __init__(
        self,
        world: World,
        *,
        learning_rate: float,
        seed: int,
        head: Head = "none",
        stages: Stages = "one",
        head_rate: float = 0.001,
        head_scale: float = 1.0,
        head_updates: int = 20,
        policy_updates: int = 40,
        temperature: float = 1.0,
        entropy: float = 0.0,
    ) -> None:
        self.world, self.seed, self.done = world, seed, 0
        self.head, self.stages, self.temperature, self.entropy = head, stages, temperature, entropy
        self.head_updates, self.round = head_updates, head_updates + policy_updates
        self.policy = Learner(learning_rate, b=torch.eye(FEATURES, dtype=torch.float64), w=world.start)
        random = draws(seed, HEAD)
        first = torch.from_numpy(random.standard_normal((FEATURES, FEATURES)) / np.sqrt(FEATURES))
        second = torch.from_numpy(random.standard_normal((ACTIONS, FEATURES)) * head_scale * np.sqrt(2 / FEATURES))
        self.rollout_head = Learner(head_rate, w1=first, w2=second if head == "random" else torch.zeros_like(second))
        self.reference = (world.features @ world.start.T / temperature).log_softmax(-1)
        self.zero_advantages = self.distinct_rewards = 0.0

    def logits(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Base logits z and the head's u of prompts [B], [B, V] each."""
        states = self.world.features[prompts] @ self.policy["b"].T
        hidden = (states @ self.rollout_head["w1"].T).relu()
        return states @ self.policy["w"].T, hidden @ self.rollout_head["w2"].T

    @property
    def opens_round(self) -> bool:
        """Whether the next update is one of those that open a round."""
        return self.stages != "one" and self.done % self.round < self.head_updates

    @property
    def trains_head(self) -> bool:
        """Whether the next update trains the head and leaves the policy alone."""
        return self.stages == "head" and self.opens_round

    def update(self) -> None:
        """Roll out and learn, whichever part the stage trains."""
        random = draws(self.seed, UPDATE, self.done)
        prompts = torch.from_numpy(random.permutation(PROMPTS)[:GROUPS]).unsqueeze(-1).expand(GROUPS, SAMPLES)
        rows = prompts.reshape(-1)
        z, u = self.logits(rows)
        rollout = ((z + u) / self.temperature).log_softmax(-1)
        actions = sample(rollout, random.random(len(rows)))
        rewards = self.world.rewards(prompts, actions.view_as(prompts))
        rarity = self.trains_head and self.head == "rarity"
        advantages = r2po.rarity_advantages(rewards) if rarity else r2po.task_advantages(rewards)
        learning = rollout if self.trains_head else (z / self.temperature).log_softmax(-1)
        log_probs = learning.gather(-1, actions.unsqueeze(-1))
        references = self.reference[rows].gather(-1, actions.unsqueeze(-1))
        mask = torch.ones_like(log_probs, dtype=torch.bool)
        loss, _ = policy_loss.clipped(log_probs, log_probs.detach(), advantages.reshape(-1, 1), mask)
        loss = loss + BETA * policy_loss.kl_loss(log_probs, references, mask)
        if self.entropy:
            loss = loss + self.entropy * (learning.exp() * learning).sum(-1).mean()
        if self.trains_head:
            self.rollout_head.step(loss)
        else:
            self.policy.step(loss, *(("b",) if self.stages == "frozen-output" and not self.opens_round else ("b", "w")))
        self.zero_advantages = (advantages == 0).all(-1).double().mean().item()
        self.distinct_rewards = sum(len(row.unique()) for row in rewards) / GROUPS
        self.done += 1

    def success(self) -> Tensor:
        """Exact, of every prompt, of the policy without the head at temperature 1: [P]."""
        z, _ = self._evaluated()
        return z.softmax(-1).gather(-1, self.world.right_actions.unsqueeze(-1)).squeeze(-1)

    def greedy(self) -> tuple[Tensor, Tensor]:
        """Whether the likeliest action of each prompt succeeds, and whether its format is wrong: [P] bool each."""
        z, _ = self._evaluated()
        actions = z.argmax(-1)
        return actions == self.world.right_actions, actions % 2 == 0

    def divergence(self) -> float:
        """KL(rollout || base) in nats, the mean over prompts: how far sampling is from what users get."""
        z, u = self._evaluated()
        rollout = ((z + u) / self.temperature).log_softmax(-1)
        return (rollout.exp() * (rollout - z.log_softmax(-1))).sum(-1).mean().item()

    def _evaluated(self) -> tuple[Tensor, Tensor]:
        z, u = self.logits(torch.arange(PROMPTS))
        return z.detach(), u.detach()

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on after the same number of updates."""
        return {"done": self.done, "policy": self.policy.state(), "head": self.rollout_head.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.done = state["done"]
        self.policy.load(state["policy"])
        self.rollout_head.load(state["head"])
