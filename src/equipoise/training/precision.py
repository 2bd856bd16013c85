"""Weights of 16 bits, trained through copies of 32; and what share of its weights a training changed.

A bfloat16 number near 1 has its neighbours 2^-7 and 2^-8 away. AdamW at a rate of 1e-5 moves a weight by about 1e-5 a step:
added to the weight itself, most of that would be rounded away, at every step anew. So the optimizer moves a copy in float32,
and the weight is that copy, rounded. Moments are of 32 bits then, too.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from equipoise.training.gradients import sum_dtype
from equipoise.training.sharding import local, sum_over_processes

NARROW = (torch.float16, torch.bfloat16)
SAMPLED = 2**20


def masters(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What an optimizer is to move: each parameter itself, or its copy in float32 where it has 16 bits."""
    return {name: p.detach().float() if p.dtype in NARROW else p for name, p in parameters.items()}


@torch.no_grad()
def round_into(parameters: Iterable[nn.Parameter], moved: Iterable[Tensor]) -> None:
    """Make each parameter its master, rounded; where both are one nothing is done."""
    for parameter, master in zip(parameters, moved, strict=True):
        if master is not parameter:
            parameter.copy_(master)


def bytes_of_training(parameters: Iterable[nn.Parameter], gradients: int = 1) -> int:
    """What training holds beside the weights: gradients, two moments, an update; for 16 bits also the copy in float32."""
    wide = [(p.numel(), max(p.element_size(), 4), p.dtype in NARROW) for p in parameters]
    return sum(count * size * (gradients + 3 + narrow) for count, size, narrow in wide)


class Sample:
    """The weights as they are now, to be compared later: all, or SAMPLED drawn at random where there are more."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        flat = [local(parameter.detach()).flatten() for parameter in parameters]
        share = min(1.0, SAMPLED / max(sum(map(len, flat)), 1))
        generator = torch.Generator().manual_seed(0)
        self._places = [
            torch.randint(len(each), (math.ceil(share * len(each)),), generator=generator)
            if share < 1 and len(each)
            else None
            for each in flat
        ]
        self._start = [self._taken(index).clone() for index in range(len(parameters))]

    def moved(self) -> float:
        """The share of the weights, in [0, 1], that is another number now; over all processes of a sharded model."""
        device = self._start[0].device
        counts = torch.zeros(2, dtype=sum_dtype(device), device=device)
        for index, (parameter, start) in enumerate(zip(self._parameters, self._start, strict=True)):
            size = local(parameter.detach()).numel()
            if size:
                counts += (
                    torch.stack([(self._taken(index) != start).to(counts.dtype).mean(), counts.new_ones(())]) * size
                )
        if any(hasattr(parameter, "placements") for parameter in self._parameters):
            counts = sum_over_processes(counts)
        different, total = counts.tolist()
        return different / total

    def _taken(self, index: int) -> Tensor:
        flat, places = local(self._parameters[index].detach()).flatten(), self._places[index]
        return flat if places is None else flat[places.to(flat.device)]
