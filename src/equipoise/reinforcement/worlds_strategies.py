"""APO's exact world: one decision, by one softmax policy that all prompts share, with several right answers.

40 tokens, of which 8 are strategies: the reference puts `peak` on the first and spreads the rest over the others, and a
sliver of 1e-3 over the 32 tokens that are never right. Each of 200 prompts is solved by a random subset of the strategies,
about 3 in 10. The policy starts at the reference and never sees the prompt, so that it cannot be right everywhere:

    p_i = sum of pi over the strategies that solve prompt i;  Pass@k = mean_i 1 - (1 - p_i)^k, exact

To sharpen is to move mass to the strategy that solves most prompts, and to lose those that only others solve. How many
prompts a strategy solves is the same in every seed (`RATES`: the spread that 200 independent coins have); which ones, and
which strategies are the better ones, is drawn. So all seeds begin at the same Pass@1 and can gain the same.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from equipoise.core.options import closed
from equipoise.reinforcement import apo, policy_loss
from equipoise.reinforcement.group_baselines import grpo
from equipoise.reinforcement.worlds import Learner, draws, pass_at, sample

VOCABULARY, STRATEGIES, PROMPTS = 40, 8, 200
RATES = (64, 55, 58, 61, 63, 67, 70, 73)  # prompts that a strategy solves: the reference's favourite, then the others
SLIVER = 1e-3
GROUPS, SAMPLES, MINI_BATCHES = 32, 8, 4  # an update
GENERATIONS = GROUPS * SAMPLES
REACH = 1e-3  # a branch below this probability is out of reach of sampling
DEAD = 0.01  # a prompt below this probability is dead
WORLD, UPDATE = 0, 1  # purposes of random numbers

Loss = Literal["clipped", "anchored"]
KLOn = Literal["none", "all", "wrong"]


@dataclass(frozen=True)
class World:
    """reference [V], solves [P, V] bool: whether a token is right for a prompt."""

    reference: Tensor
    solves: Tensor

    @classmethod
    def make(cls, seed: int, *, peak: float = 0.85) -> "World":
        """The world of a seed; peak: what the reference gives its favourite strategy."""
        random = draws(seed, WORLD)
        reference = np.full(VOCABULARY, SLIVER / (VOCABULARY - STRATEGIES))
        reference[:STRATEGIES] = [peak, *np.full(STRATEGIES - 1, (1 - SLIVER - peak) / (STRATEGIES - 1))]
        solves = np.zeros((PROMPTS, VOCABULARY), bool)
        for strategy, count in enumerate([RATES[0], *random.permutation(RATES[1:])]):
            solves[random.permutation(PROMPTS)[:count], strategy] = True
        for unsolved in np.flatnonzero(~solves.any(1)):  # takes over a strategy of a prompt that has several
            giver, strategy = random.choice(np.argwhere(solves & (solves.sum(1, keepdims=True) > 1)))
            solves[giver, strategy], solves[unsolved, strategy] = False, True
        return cls(torch.from_numpy(reference), torch.from_numpy(solves))

    def success(self, log_probs: Tensor) -> Tensor:
        """The exact probability of a right answer to each prompt, [P], under a policy [V]."""
        return self.solves.double() @ log_probs.detach().exp()


class Training:
    """The shared policy, learning from groups of 8 answers to 32 prompts; `update` is one batch, `done` how many there were.

    loss: `clipped` is GRPO's, `anchored` APO's with `anchored_settings`. kl_on and beta: k3 to the reference, of all
    answers or of those with a negative advantage. entropy: the weight of the policy's entropy as a bonus.
    """

    @closed
    def __init__(
        self,
        world: World,
        *,
        learning_rate: float,
        seed: int,
        loss: Loss = "clipped",
        kl_on: KLOn = "none",
        beta: float = 0.0,
        entropy: float = 0.0,
        **anchored_settings: Any,
    ) -> None:
        self.world, self.seed, self.done = world, seed, 0
        self.loss, self.kl_on, self.beta, self.entropy = loss, kl_on, beta, entropy
        self.anchored_settings = anchored_settings
        self.reference = world.reference.log()
        self.policy = Learner(learning_rate, logits=self.reference)
        self.anchors, self.anchor_probs = apo.anchors(self.reference, STRATEGIES)
        self.fallen = torch.zeros(STRATEGIES, dtype=torch.bool)

    def log_probs(self) -> Tensor:
        """Of every token under the policy, [V]."""
        return self.policy["logits"].log_softmax(-1)

    def success(self) -> Tensor:
        """Exact, of every prompt, [P]."""
        return self.world.success(self.log_probs())

    def pass_at(self, k: int) -> Tensor:
        """Exact Pass@k of every prompt, [P]."""
        return pass_at(self.success(), k)

    def coverage(self) -> float:
        """The policy's mass on the reference's top 8."""
        return self.log_probs()[self.anchors].exp().sum().item()

    def returned(self) -> float:
        """Of the strategies that ever were out of reach, the share that is within it now; nan when none was."""
        within = self.log_probs()[:STRATEGIES].exp() >= REACH
        return within[self.fallen].double().mean().item()

    def roll_out(self) -> tuple[Tensor, Tensor]:
        """Answers of the policy as it is and their rewards, [32, 8] each."""
        random = draws(self.seed, UPDATE, self.done)
        prompts = torch.from_numpy(random.permutation(PROMPTS)[:GROUPS])
        answers = sample(self.log_probs(), random.random((GROUPS, SAMPLES)))
        return answers, self.world.solves[prompts.unsqueeze(-1), answers].double()

    def update(self) -> None:
        """Roll out, and learn in mini-batches of whole groups."""
        answers, rewards = self.roll_out()
        old = self.log_probs().detach()
        for tokens, advantages in zip(answers.chunk(MINI_BATCHES), grpo(rewards).chunk(MINI_BATCHES), strict=True):
            self.policy.step(self.batch_loss(old, tokens.reshape(-1, 1), advantages.reshape(-1, 1)))
        self.fallen |= self.log_probs()[:STRATEGIES].exp() < REACH
        self.done += 1

    def batch_loss(self, old: Tensor, tokens: Tensor, advantages: Tensor) -> Tensor:
        """The loss of tokens and advantages [B, 1] sampled under log-probabilities old [V]."""
        log_probs = self.log_probs()
        mask = torch.ones_like(tokens, dtype=torch.bool)
        chosen, references = log_probs[tokens], self.reference[tokens]
        if self.loss == "clipped":
            loss, _ = policy_loss.clipped(chosen, old[tokens], advantages, mask)
        else:
            shape = (*tokens.shape, STRATEGIES)
            loss, _ = apo.anchored_loss(
                chosen,
                old[tokens],
                log_probs[self.anchors].expand(shape),
                self.anchor_probs.expand(shape),
                tokens.unsqueeze(-1) == self.anchors,
                advantages,
                mask,
                **self.anchored_settings,
            )
        if self.kl_on == "all":
            loss = loss + self.beta * policy_loss.kl_loss(chosen, references, mask)
        elif self.kl_on == "wrong":
            loss = loss + self.beta * apo.kl_on_wrong(chosen, references, advantages, mask)
        if self.entropy:
            loss = loss + self.entropy * (log_probs.exp() * log_probs).sum()
        return loss

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on after the same number of updates."""
        return {"done": self.done, "policy": self.policy.state(), "fallen": self.fallen}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.done, self.fallen = state["done"], state["fallen"]
        self.policy.load(state["policy"])
