"""Small ReLU networks, and points of the balls around their inputs."""

import itertools
import math

import torch

from equipoise.verification.network import Builder


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_network(seed, sizes=(3, 5, 4, 3), scale=1.0):
    rng = generator(seed)
    builder, value = Builder(sizes[:1]), 0
    for place, (n, m) in enumerate(itertools.pairwise(sizes)):
        value = builder.relu(value) if place else value
        weight = torch.randn(m, n, generator=rng, dtype=torch.float64) * scale / math.sqrt(n)
        value = builder.linear(value, weight, torch.randn(m, generator=rng, dtype=torch.float64) * 0.3)
    return builder.build(value, "random")


def samples(x, radius, count, seed=0):
    """Points of the ball around x [n]: a half on its sphere, where minima are."""
    rng = generator(seed)
    away = torch.randn(count, len(x), generator=rng, dtype=torch.float64)
    length = torch.rand(count, 1, generator=rng, dtype=torch.float64) ** (1 / len(x))
    length[::2] = 1
    return x + radius * length * away / away.norm(dim=1, keepdim=True)


def worked_example():
    """The network of the paper's appendix B.3."""
    builder = Builder((2,))
    value = builder.linear(0, torch.tensor([[0.0, 1], [1, 0]]), None)
    value = builder.linear(builder.relu(value), torch.tensor([[-1.0, 1], [1, -1]]), None)
    return builder.build(builder.linear(builder.relu(value), torch.tensor([[-1.0, -1]]), None), "appendix B.3")
