"""The networks of actors and critics: perceptrons with ReLU, several critics as one, a squashed Gaussian policy."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOG_STD = (-20.0, 2.0)


def perceptron(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Layers of these widths with ReLU between them."""
    widths = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def by_columns(layers: Iterable[nn.Module], inputs: Tensor, kept: list[Tensor] | None = None) -> Tensor:
    """What layers of a perceptron make of rows that are given as columns: [in, N] -> [out, N].

    Of many rows a narrow layer takes a fifth of the time so. kept: gets the inputs of the linear layers.
    """
    for layer in layers:
        if isinstance(layer, nn.Linear):
            if kept is not None:
                kept.append(inputs)
            inputs = torch.mm(layer.weight, inputs).add_(layer.bias[:, None])
        else:
            inputs = layer(inputs)
    return inputs


def set_gradients(network: nn.Sequential, kept: Sequence[Tensor], slope: Tensor) -> None:
    """Gradients of a perceptron's parameters, of what `by_columns` kept and the slope [out, N] in its outputs.

    A third of autograd's time where layers are so small that its own work is most of it.
    """
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    for layer, inputs in zip(reversed(linear), reversed(kept), strict=True):
        layer.weight.grad, layer.bias.grad = slope @ inputs.T, slope.sum(1)
        if layer is not linear[0]:
            slope = (layer.weight.T @ slope).mul_(inputs > 0)


class Actor(nn.Module):
    """Mean and log standard deviation [B, da] of a Gaussian before tanh; heads start within 1e-3 of zero."""

    def __init__(self, observations: int, actions: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.body = perceptron(observations, hidden, 2 * actions)
        head: Any = self.body[-1]
        nn.init.uniform_(head.weight, -1e-3, 1e-3)
        nn.init.uniform_(head.bias, -1e-3, 1e-3)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.body(observations).chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD)


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """a = tanh(mean + std * noise) and log pi(a), summed over the last axis. noise: standard normal, as mean."""
    raw = mean + log_std.exp() * noise
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2 x)): exact where tanh(x) rounds to 1.
    correction = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
    return torch.tanh(raw), (gaussian - correction).sum(-1)


class Critics(nn.Module):
    """Q_1 ... Q_n of (s, a) in one product a layer: [B, ds], [B, da] -> [n, B]. Biases start at 0.1."""

    def __init__(self, observations: int, actions: int, hidden: Sequence[int], count: int) -> None:
        super().__init__()
        widths = [observations + actions, *hidden, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in itertools.pairwise(widths):
            last = after == 1
            bound = 3e-3 if last else 1 / math.sqrt(before)
            self.weights.append(torch.empty(count, before, after).uniform_(-bound, bound))
            bias = torch.empty(count, 1, after)
            self.biases.append(bias.uniform_(-bound, bound) if last else bias.fill_(0.1))

    def forward(self, observations: Tensor, actions: Tensor, *, frozen: bool = False) -> Tensor:
        """frozen: gradients reach the inputs only."""
        hidden = torch.cat([observations, actions], -1).expand(self.weights[0].shape[0], -1, -1)
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            weight, bias = (weight.detach(), bias.detach()) if frozen else (weight, bias)
            hidden = torch.baddbmm(bias, hidden, weight)
            if place < len(self.weights) - 1:
                hidden = hidden.relu_()
        return hidden.squeeze(-1)
