"""Looking for the counter-example: projected gradient descent on a margin within an l2 ball, with or without a box.

What it finds is an upper bound on the true margin. Each step goes a share of the radius along the normalised gradient (the
networks' scale must not matter), the share falls linearly, and the best point of all steps counts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from equipoise.verification.bounds import Box
from equipoise.verification.network import Network


def attack(
    network: Network,
    x: Tensor,
    radius: Tensor,
    specifications: Tensor,
    *,
    generator: torch.Generator | Sequence[torch.Generator],
    box: Box | None = None,
    steps: int = 100,
    share: float = 0.3,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """The smallest margins [B, S] found in float64, and the points [B, S, n] where they are, inside ball and box.

    x: [B, ...], radius: [B], specifications: [B, S, m]. The first start is x itself plus a random step of half the radius.
    generator: one for all rows in their order, or one a row, whose start then does not depend on its company.
    """
    batch, count = specifications.shape[:2]
    centre = x.flatten(1)[:, None].to(dtype)
    ball = radius[:, None, None].to(dtype)
    smallest = torch.finfo(dtype).tiny  # of a norm that is divided by: a network of tiny outputs has tiny gradients
    c, single = specifications.to(dtype), network.to(dtype)
    generators = [generator] * batch if isinstance(generator, torch.Generator) else generator
    noise = torch.stack([torch.randn(count, centre.shape[-1], generator=each, dtype=dtype) for each in generators])
    points = _inside(centre + ball / 2 * noise / noise.norm(dim=-1, keepdim=True), centre, ball, box)
    best = torch.full((batch, count), torch.inf, dtype=dtype)
    best_points = points.clone()
    for number in range(steps + 1):
        points.requires_grad_()
        margins = (single(points.flatten(0, 1)).unflatten(0, (batch, count)) * c).sum(-1)
        (gradient,) = torch.autograd.grad(margins.sum(), points)
        points = points.detach()
        better = margins.detach() < best
        best = torch.where(better, margins.detach(), best)
        best_points = torch.where(better[..., None], points, best_points)
        step = share * (1 - number / (steps + 1)) * ball
        points = points - step * gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=smallest)
        points = _inside(points, centre, ball, box)
    # Rounding in single precision may have left the ball by a hair.
    exact = _inside(
        best_points.double(), x.flatten(1)[:, None].double(), radius[:, None, None].double() * (1 - 1e-12), box
    )
    outputs = network(exact.flatten(0, 1)).unflatten(0, (batch, count))
    return (outputs * specifications).sum(-1), exact


def _inside(points: Tensor, centre: Tensor, radius: Tensor, box: Box | None) -> Tensor:
    """The ball's nearest point, then the box's: a box that holds the centre does not leave the ball."""
    away = points - centre
    points = centre + away * (radius / away.norm(dim=-1, keepdim=True).clamp(min=1e-300)).clamp(max=1)
    return points if box is None else points.clamp(*box)
