"""Streams of random numbers, each of its own words: a seed, a purpose, and what is counted in that."""

import numpy as np
import torch


def torch_seed(*words: int) -> int:
    """A seed in [0, 2^63), which is what torch takes, that follows from these numbers of 0 or more."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def torch_stream(*words: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator whose draws follow from these numbers of 0 or more, so that no purpose changes what another draws.

    On the CPU by default, so that draws are the same whatever device they are used on.
    """
    return torch.Generator(device).manual_seed(torch_seed(*words))
