"""Soft actor-critic with a state value, on logs or in an environment: the agent that DR-SAC is robust against.

One step, on a batch (s, a, r, s', terminated); primes are slow copies; a~ ~ pi(s):

    V loss        mean (V(s) - [min_i Q'_i(s, a~) - alpha log pi(a~|s)])^2
    y             r + gamma (1 - terminated) V'(s')                     DR-SAC changes this line alone
    Q loss        sum_i mean (Q_i(s, a) - y)^2
    actor loss    mean (alpha log pi(a~|s) - min_i Q'_i(s, a~)), (1 - w) of it + w mean (pi(s) - a)^2 with behaviour cloning
    temperature   -log alpha mean (log pi(a~|s) + target entropy)
    slow copies   V' <- (1 - tau) V' + tau V, and so Q'

Nothing in a step depends on what another of its lines has updated, so that all losses take one backward pass and one AdamW.

Differs from the released code: a time limit is no terminal state; the actor's gradient
may go through the critics themselves (`actor_through="critics"`) where the released code takes their slow copies.
"""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from equipoise.control.agent import Agent, Batch, adamw, seeded
from equipoise.control.networks import Actor, Critics, perceptron, squash
from equipoise.control.settings import SACSettings


class SAC(Agent):
    """See the module; the calls are Stable-Baselines3's, as `Agent` has them."""

    Settings: ClassVar[Any] = SACSettings
    name: ClassVar[str] = "sac"

    actor: Actor
    value: nn.Sequential
    critics: Critics
    slow_value: nn.Sequential
    slow_critics: Critics

    def _made(self) -> dict[str, nn.Module]:
        given = self.settings
        with seeded(given.seed):
            actor = Actor(*self._shape, given.hidden)
            value = perceptron(self._shape[0], given.hidden, 1)
            critics = Critics(*self._shape, given.hidden, given.critics)
        slow = {"slow_value": deepcopy(value), "slow_critics": deepcopy(critics)}
        for network in slow.values():
            network.requires_grad_(False)
        return {"actor": actor, "value": value, "critics": critics, **slow}

    def _begin(self) -> None:
        given = self.settings
        self.log_alpha = torch.tensor(math.log(given.alpha), requires_grad=given.learn_alpha)
        self.target_entropy = -float(self._shape[1]) if given.target_entropy is None else given.target_entropy
        self._optimizer = adamw(self._learnt(), given.learning_rate, given.weight_decay)
        self._fast: list[Tensor] = [*self.value.parameters(), *self.critics.parameters()]
        self._slow: list[Tensor] = [*self.slow_value.parameters(), *self.slow_critics.parameters()]

    def _learnt(self) -> list[dict[str, Any]]:
        """The optimizer's groups of parameters."""
        parameters = [*self.actor.parameters(), *self.value.parameters(), *self.critics.parameters()]
        return [{"params": parameters + [self.log_alpha] * self.settings.learn_alpha}]

    def _action(self, observations: Tensor, deterministic: bool) -> Tensor:
        mean, log_std = self.actor(observations)
        noise = torch.zeros_like(mean)
        if not deterministic:
            noise = torch.randn(mean.shape, generator=self._acting)
        return squash(mean, log_std, noise)[0]

    def state(self) -> dict[str, Any]:
        """As of `Agent`, with the temperature."""
        return {**super().state(), "log_alpha": self.log_alpha}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        super().restore(state)
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])

    def update(self, batch: Batch) -> dict[str, float]:
        """One step of the module's on a batch; the losses by name. Raises WorkFailed where one is no number."""
        given, alpha = self.settings, self.log_alpha.detach().exp()
        mean, log_std = self.actor(batch.s)
        action, log_prob = squash(mean, log_std, torch.randn(mean.shape, generator=self._batches))
        lowest = self.slow_critics(batch.s, action).amin(0)
        soft = (lowest - alpha * log_prob).detach()
        value_loss = (self.value(batch.s).squeeze(-1) - soft).square().mean()
        with torch.no_grad():
            target = batch.r + given.gamma * batch.going * self._next_value(batch)
        critic_loss = (self.critics(batch.s, batch.a) - target).square().mean(1).sum()
        followed = lowest if given.actor_through == "slow" else self.critics(batch.s, action, frozen=True).amin(0)
        actor_loss = (alpha * log_prob - followed).mean()
        if given.behavior_weight:
            cloning = (torch.tanh(mean) - batch.a).square().mean()
            actor_loss = (1 - given.behavior_weight) * actor_loss + given.behavior_weight * cloning
        loss = value_loss + critic_loss + actor_loss
        if given.learn_alpha:
            loss = loss - self.log_alpha * (log_prob.detach() + self.target_entropy).mean()
        loss = loss + self._own_loss(batch)
        self._check_loss(loss)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._slow, self._fast, given.tau)
        return {
            "value": float(value_loss.detach()), "critics": float(critic_loss.detach()), "actor": float(actor_loss.detach()),
            "alpha": float(alpha), "q": float(target.mean()),
        }  # fmt: skip

    def _own_loss(self, batch: Batch) -> Tensor | float:
        """Of networks beside SAC's that learn on the same batch."""
        return 0.0

    def _next_value(self, batch: Batch) -> Tensor:
        """V'(s') [B]: what follows an action."""
        return self.slow_value(batch.s2).squeeze(-1)
