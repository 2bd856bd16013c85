"""Nominal models: what may follow (s, a), as samples, learnt from logs. A ball around them is all that DR-SAC is robust to.

    vae        encoder q(z | s, a, s'), decoder s' = f(s, a, z), z ~ N(0, I); loss = squared error + KL(q || N(0, I))
    gaussian   s' ~ N(mu(s, a), diag sigma(s, a)^2); loss = negative log-likelihood
    ensemble   several of these; each sample is of one of them, so that what they disagree on is spread, too

All of them learn the change s' - s, in units of its standard deviation in the logs. A nominal model that says one thing only
is a ball around a point, which holds nothing else: the spread of its samples against what they miss is measured (`spread`).
"Mean" losses of the VAE are the released code's: both terms averaged over all their numbers, which makes the KL term weigh
ds / latent times more against an error of one unit than the evidence bound does, and invites that the latent goes unused;
"sum" is the evidence bound.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.control.agent import Batch
from equipoise.control.networks import by_columns, perceptron
from equipoise.control.settings import VaeLoss
from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.core.registry import Registry

MEMBERS = 5
LOG_STD = (-7.0, 2.0)  # of a change in units of its standard deviation
ROUNDING = 1e-7  # of the largest value of a component
ROWS = 4096  # transitions of which the spread is measured


class Nominal(nn.Module):
    """Samples of what follows. Subclasses give `loss` and `draw` in changes that `fit_units` standardises."""

    state_mean: Tensor
    state_std: Tensor
    change_mean: Tensor
    change_std: Tensor

    def __init__(self, observations: int, actions: int) -> None:
        super().__init__()
        for name, width in (("state", observations), ("change", observations)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_std", torch.ones(width))

    def fit_units(self, logs: Batch) -> None:
        """Take means and standard deviations of the states and of their changes from the logs."""
        change = (logs.s2 - logs.s).double()
        largest = torch.maximum(logs.s.abs().amax(0), logs.s2.abs().amax(0)).double()
        for name, value in (("state", logs.s.double()), ("change", change)):
            std = value.std(0, correction=0)
            # What is no wider than the rounding of float32 is a constant, in whatever unit.
            std = std.where(std > ROUNDING * largest, torch.ones_like(std))
            getattr(self, f"{name}_mean").copy_(value.mean(0))
            getattr(self, f"{name}_std").copy_(std)

    def inputs(self, s: Tensor, a: Tensor) -> Tensor:
        return torch.cat([(s - self.state_mean) / self.state_std, a], 1)

    def change(self, batch: Batch) -> Tensor:
        return (batch.s2 - batch.s - self.change_mean) / self.change_std

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """What is minimised, a mean over the batch."""
        raise NotImplementedError

    def draw(self, inputs: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """[ds, B, count], standardised changes."""
        raise NotImplementedError

    @torch.no_grad()
    def columns(self, s: Tensor, a: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """So many next states of each: [B, ds], [B, da] in [-1, 1] -> [ds, B, count]."""
        drawn = self.draw(self.inputs(s, a), count, generator)
        return drawn.mul_(self.change_std[:, None, None]).add_((s + self.change_mean).T[:, :, None])

    def sample(self, s: Tensor, a: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """As `columns`: [B, count, ds]."""
        return self.columns(s, a, count, generator).movedim(0, -1).contiguous()

    def spread(self, logs: Batch, generator: torch.Generator, *, count: int = 100) -> float:
        """Standard deviation of samples over the error of their mean, each the root of a mean square over the logs.

        In units of the changes' standard deviation: 1 where it knows how wrong it is, 0 for a point, inf for samples about
        a mean that never errs, nan where there is neither spread nor error.
        """
        rows = torch.randperm(len(logs.s), generator=generator)[:ROWS]
        some = Batch(*(each[rows] for each in logs))
        drawn = (self.sample(some.s, some.a, count, generator) - some.s[:, None] - self.change_mean) / self.change_std
        inside = drawn.var(1).mean().double()
        missed = (drawn.mean(1) - self.change(some)).square().mean().double()
        return float(torch.sqrt(inside / missed))


NOMINAL: Registry[Callable[..., Nominal]] = Registry("equipoise.control", "NOMINAL")


@NOMINAL.register("vae")
class VariationalAutoencoder(Nominal):
    """The paper's; latent: width of z."""

    @closed
    def __init__(
        self, observations: int, actions: int, hidden: Sequence[int], *, latent: int = 5, vae_loss: VaeLoss = "mean"
    ) -> None:
        super().__init__(observations, actions)
        self.latent, self.reduced = latent, vae_loss
        self.encoder = perceptron(2 * observations + actions, hidden, 2 * latent)
        self.decoder = perceptron(observations + actions + latent, hidden, observations)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        inputs, change = self.inputs(batch.s, batch.a), self.change(batch)
        mean, log_variance = self.encoder(torch.cat([inputs, change], 1)).chunk(2, 1)
        log_variance = log_variance.clamp(-20, 10)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=generator)
        error = (self.decoder(torch.cat([inputs, z], 1)) - change).square()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        if self.reduced == "mean":
            return error.mean() + divergence.mean()
        # The evidence bound of a decoder with variance 1/2.
        return error.sum(1).mean() + divergence.sum(1).mean()

    def draw(self, inputs: Tensor, count: int, generator: torch.Generator) -> Tensor:
        layers: list[Any] = [*self.decoder]
        first, *others = layers
        z = torch.randn((len(inputs) * count, self.latent), generator=generator)
        known = inputs.shape[-1]
        # The part of the first layer that all samples of a pair share is computed once.
        shared = torch.addmm(first.bias[:, None], first.weight[:, :known], inputs.T)
        hidden = torch.mm(first.weight[:, known:], z.T).view(-1, len(inputs), count).add_(shared[:, :, None])
        return by_columns(others, hidden.flatten(1)).view(-1, len(inputs), count)


@NOMINAL.register("gaussian")
class GaussianHead(Nominal):
    """A mean and a standard deviation of each component."""

    def __init__(self, observations: int, actions: int, hidden: Sequence[int], **_: Any) -> None:
        super().__init__(observations, actions)
        self.body = perceptron(observations + actions, hidden, 2 * observations)

    def moments(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.body(inputs).chunk(2, 1)
        return mean, log_std.clamp(*LOG_STD)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        mean, log_std = self.moments(self.inputs(batch.s, batch.a))
        return (0.5 * ((self.change(batch) - mean) / log_std.exp()).square() + log_std).sum(1).mean()

    def draw(self, inputs: Tensor, count: int, generator: torch.Generator) -> Tensor:
        mean, log_std = (each.T[:, :, None] for each in self.moments(inputs))
        noise = torch.randn((len(inputs), count, len(mean)), generator=generator).movedim(-1, 0)
        return mean + log_std.exp() * noise


@NOMINAL.register("ensemble")
class Ensemble(Nominal):
    """Five Gaussian heads, each on the same batches from weights of its own."""

    def __init__(self, observations: int, actions: int, hidden: Sequence[int], **_: Any) -> None:
        super().__init__(observations, actions)
        self.members: Any = nn.ModuleList(GaussianHead(observations, actions, hidden) for _ in range(MEMBERS))

    def fit_units(self, logs: Batch) -> None:
        super().fit_units(logs)
        for member in self.members:
            member.load_state_dict(self.state_dict(), strict=False)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return torch.stack([member.loss(batch, generator) for member in self.members]).sum()

    def draw(self, inputs: Tensor, count: int, generator: torch.Generator) -> Tensor:
        moments = [member.moments(inputs) for member in self.members]
        mean, log_std = (torch.stack(each, 1) for each in zip(*moments, strict=True))
        whose = torch.randint(MEMBERS, (len(inputs), count), generator=generator)
        rows = torch.arange(len(inputs))[:, None]
        noise = torch.randn((len(inputs), count, mean.shape[-1]), generator=generator)
        return (mean[rows, whose] + log_std[rows, whose].exp() * noise).movedim(-1, 0)


Simulator = Callable[[Tensor, Tensor, int, torch.Generator], Tensor]


class Simulated(Nominal):
    """A simulator in place of what is learnt: called with s [B, ds], a [B, da] in [-1, 1], count and a generator."""

    def __init__(self, observations: int, actions: int, simulator: Simulator) -> None:
        super().__init__(observations, actions)
        self.simulator = simulator

    @torch.no_grad()
    def columns(self, s: Tensor, a: Tensor, count: int, generator: torch.Generator) -> Tensor:
        drawn = self.simulator(s, a, count, generator)
        if drawn.shape != (len(s), count, s.shape[-1]):
            raise BadInput(f"the simulator gave {tuple(drawn.shape)}; expected {(len(s), count, s.shape[-1])}.")
        return drawn.movedim(-1, 0)
