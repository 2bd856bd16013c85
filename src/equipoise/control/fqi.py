"""Fitted Q iteration with the logs' own actions (arXiv:1812.02900), and RFQI, robust against a ball of total variation
(arXiv:2208.05129): what DR-SAC's paper is faster than.

One step, on a batch (s, a, r, s', terminated); primes are slow copies:

    actions         of a VAE, q(z | s, a) and f(s, z) = tanh(...); loss = mean (f - a)^2 + mean KL(q || N(0, I)) / 2
    candidates      a_j = f(s, z_j) + phi tanh xi(s, f(s, z_j)), within [-1, 1]; z_j ~ N(0, I) cut to [-0.5, 0.5]
    V'              0 at an end, else max_j of 3/4 min_i Q'_i(s', a_j) + 1/4 max_i Q'_i(s', a_j), candidates by xi'
    y, FQI          r + gamma V'
    y, RFQI         r + gamma [(1 - rho) eta(s,a) + rho least - (eta(s,a) - V')_+]
    Q loss          sum_i mean (Q_i(s, a) - y)^2
    xi loss         -mean Q_1(s, a~), a~ one candidate

It acts by the best candidate of 100, by Q_1. RFQI's y is, for any eta, the dual of

    inf { E_p V' : total variation of p and p_0 <= rho }

with `least` a value that a state may have; eta is a network that is fitted anew in every step, on the batch, to

    max  mean of (1 - rho) eta - (eta - V')_+            within [least, least + (most - least) / rho]

Differs from the released code: `least` is the smallest reward of the logs for ever where that is below 0, else 0 (the code
takes 0 throughout, which rewards below 0 belie), and `most` so of the largest; eta starts at the same weights each time, in
units of the batch's values; all losses take one backward pass; that an episode ends is one of the outcomes of the ball.
"""

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from equipoise.control.agent import Agent, Batch, adamw, seeded
from equipoise.control.networks import Critics, by_columns, perceptron, set_gradients
from equipoise.control.settings import FQISettings, RFQISettings
from equipoise.core.streams import torch_stream

LOG_STD = (-4.0, 15.0)
CUT = 0.5  # of z, where actions are drawn
PESSIMISM = 0.75  # weight of the lowest critic against the highest


class ActionModel(nn.Module):
    """A VAE of the logs' actions: s [B, ds], a [B, da] in [-1, 1]."""

    def __init__(self, observations: int, actions: int, hidden: tuple[int, ...], latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = perceptron(observations + actions, hidden, 2 * latent)
        self.decoder = perceptron(observations + latent, hidden, actions)

    def loss(self, s: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        """noise: standard normal, [B, latent]."""
        mean, log_std = self.encoder(torch.cat([s, a], 1)).chunk(2, 1)
        log_std = log_std.clamp(*LOG_STD)
        error = (self.decode(s, mean + log_std.exp() * noise) - a).square().mean()
        divergence = (0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std).mean()
        return error + 0.5 * divergence

    def decode(self, s: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.decoder(torch.cat([s, z], 1)))


class FQI(Agent):
    """See the module; the calls are Stable-Baselines3's, as `Agent` has them."""

    Settings: ClassVar[Any] = FQISettings
    name: ClassVar[str] = "fqi"

    actions: ActionModel
    perturbation: nn.Sequential
    critics: Critics
    slow_perturbation: nn.Sequential
    slow_critics: Critics

    def _made(self) -> dict[str, nn.Module]:
        given, (observations, actions) = self.settings, self._shape
        with seeded(given.seed):
            model = ActionModel(observations, actions, given.hidden, given.latent or 2 * actions)
            perturbation = perceptron(observations + actions, given.hidden, actions)
            critics = Critics(observations, actions, given.hidden, given.critics)
        slow = {"slow_perturbation": copy.deepcopy(perturbation), "slow_critics": copy.deepcopy(critics)}
        for network in slow.values():
            network.requires_grad_(False)
        return {"actions": model, "perturbation": perturbation, "critics": critics, **slow}

    def _begin(self) -> None:
        given = self.settings
        self._fast: list[Tensor] = [*self.perturbation.parameters(), *self.critics.parameters()]
        self._slow: list[Tensor] = [*self.slow_perturbation.parameters(), *self.slow_critics.parameters()]
        self._optimizer = adamw([*self.actions.parameters(), *self._fast], given.learning_rate, given.weight_decay)
        # The same for all observations, so that an action depends on its own alone.
        self._fixed = self._draw(given.acting_actions, torch_stream(given.seed, 3))

    def _action(self, observations: Tensor, deterministic: bool) -> Tensor:
        count, width = self.settings.acting_actions, self._shape[1]
        if deterministic:
            z = self._fixed.expand(len(observations), -1, -1)
        else:
            z = self._draw(len(observations) * count, self._acting).view(len(observations), count, -1)
        s = observations[:, None].expand(-1, count, -1).flatten(0, 1)
        candidates = self._candidates(s, z.flatten(0, 1), self.perturbation)
        best = self.critics(s, candidates)[0].view(-1, count).argmax(1)
        return candidates.view(-1, count, width)[torch.arange(len(observations)), best]

    def update(self, batch: Batch) -> dict[str, float]:
        """One step of the module's on a batch; the losses by name. Raises WorkFailed where one is no number."""
        given = self.settings
        noise = torch.randn((len(batch.s), self.actions.latent), generator=self._batches)
        action_loss = self.actions.loss(batch.s, batch.a, noise)
        with torch.no_grad():
            target = batch.r + given.gamma * self._next_value(batch, batch.going * self._best_value(batch.s2))
        critic_loss = (self.critics(batch.s, batch.a) - target).square().mean(1).sum()
        tried = self._candidates(batch.s, self._draw(len(batch.s), self._batches), self.perturbation)
        perturbation_loss = -self.critics(batch.s, tried, frozen=True)[0].mean()
        loss = action_loss + critic_loss + perturbation_loss
        self._check_loss(loss)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._slow, self._fast, given.tau)
        return {
            "actions": float(action_loss.detach()), "critics": float(critic_loss.detach()),
            "perturbation": float(perturbation_loss.detach()), "q": float(target.mean()),
        }  # fmt: skip

    def _next_value(self, batch: Batch, values: Tensor) -> Tensor:
        """What follows [B], of the values V' [B] of what did follow."""
        return values

    @torch.no_grad()
    def _best_value(self, s: Tensor) -> Tensor:
        count = self.settings.target_actions
        repeated = s[:, None].expand(-1, count, -1).flatten(0, 1)
        z = self._draw(len(repeated), self._batches)
        found = self.slow_critics(repeated, self._candidates(repeated, z, self.slow_perturbation))
        return (PESSIMISM * found.amin(0) + (1 - PESSIMISM) * found.amax(0)).view(-1, count).amax(1)

    def _candidates(self, s: Tensor, z: Tensor, perturbation: nn.Module) -> Tensor:
        """Actions like those of the logs, moved by no more than phi; gradients reach the perturbation alone."""
        with torch.no_grad():
            like = self.actions.decode(s, z)
        moved = like + self.settings.perturbation * torch.tanh(perturbation(torch.cat([s, like], 1)))
        return moved.clamp(-1, 1)

    def _draw(self, count: int, noise: torch.Generator) -> Tensor:
        return torch.randn((count, self.actions.latent), generator=noise).clamp(-CUT, CUT)


class RFQI(FQI):
    """See the module; of the same calls."""

    Settings: ClassVar[Any] = RFQISettings
    name: ClassVar[str] = "rfqi"

    def _begin(self) -> None:
        super()._begin()
        with seeded(self.settings.seed + 1):
            self._start = perceptron(sum(self._shape), self.settings.hidden, 1)

    def _next_value(self, batch: Batch, values: Tensor) -> Tensor:
        least, _ = self._range()
        return total_variation_value(values, self.fit_eta(batch, values), self.settings.rho, least)

    @torch.no_grad()
    def fit_eta(self, batch: Batch, values: Tensor) -> Tensor:
        """eta(s, a) [B], fitted from its start to these values [B] of what followed."""
        given, (least, most) = self.settings, self._range()
        highest = least + (most - least) / given.rho
        eta, pairs = copy.deepcopy(self._start), torch.cat([batch.s, batch.a], 1).T
        optimizer = adamw(eta.parameters(), given.dual_learning_rate, 0.0)
        middle, unit = values.mean(), values.std(correction=0)
        unit = unit.where(unit > 0, torch.ones_like(unit))
        for _ in range(given.dual_steps):
            kept: list[Tensor] = []
            raw = middle + unit * by_columns(eta, pairs, kept)
            inside = (raw >= least) & (raw <= highest)
            # Of minus the mean of `total_variation_value`, in units of the batch's values.
            slope = ((raw > values).float() - (1 - given.rho)) / len(values)
            set_gradients(eta, kept, slope * inside)
            optimizer.step()
        return (middle + unit * by_columns(eta, pairs)).clamp(least, highest)[0]

    def _range(self) -> tuple[float, float]:
        """Values below and above which no state can be, by the rewards that were seen."""
        rewards = self._buffer.all().r
        ever = 1 / (1 - self.settings.gamma)
        return min(0.0, float(rewards.min())) * ever, max(0.0, float(rewards.max())) * ever


def total_variation_value(values: Tensor, eta: Tensor, rho: float, least: float) -> Tensor:
    """(1 - rho) eta + rho least - (eta - v)_+ [B], whose mean is at most the worst mean within rho of total variation.

    values, eta: [B] of at least `least`; equal to the worst mean at eta the (1 - rho)-quantile of what follows a pair.
    """
    return (1 - rho) * eta + rho * least - torch.relu(eta - values)
