"""The worst expectation over a Kullback-Leibler ball, by its dual (arXiv:2506.12622, the robust soft Bellman operator).

m equally likely samples v_1 ... v_m of a value, p_0 their empirical distribution, delta the radius of the ball:

    inf { E_p v : KL(p || p_0) <= delta } = sup_{b >= 0}  -b log(1/m sum_j exp(-v_j / b)) - b delta

The right side is concave in b. At its maximum the worst weights w_j ~ exp(-v_j / b) have KL(w || uniform) = delta, which is
the equation that is solved here: KL grows with t = 1/b from 0 to log(m / k), k the number of smallest samples, and
KL(t) <= t^2 range^2 / 8, which starts the bracket. Halley's steps in t, kept inside the bracket, for all rows at once.

Differs from the released per-pair solver, which takes the logarithm of the state's width for that of the number of samples
and stops at b = 1: here nothing is capped, and values are shifted and scaled before, so that their unit does not matter.
"""

import math

import torch
from torch import Tensor

from equipoise.core.errors import BadInput

STEPS = 100  # a bracket over all of float64 is halved 64 times; Halley takes 3 to 5
CLOSE, CLOSE_ENOUGH = (
    1e-10,
    1e-6,
)  # of the radius, for values in float64 and in less; the worst mean is off by the square
SMALL = 1e-6  # a radius below which the divergence is lost in the rounding of a sum near 1
TINY = 1e-20  # a radius so small that rounding hides the divergence, and a Gaussian's optimum is the answer


def robust_value(values: Tensor, delta: float, *, exact: bool = True) -> tuple[Tensor, Tensor]:
    """Worst mean of samples over a KL ball of radius delta around them, and the dual variable b that attains it.

    values: [..., m], finite. Returns value [...] between minimum and mean, and beta [...] >= 0: inf where delta is 0, 0
    where the minimum is reached or all samples are equal; both of the values' type, in float64 for whole numbers. exact: a b
    of each row. Else one b for all rows, the best on average (the functional dual with a constant as its function): a lower
    bound of each row's value. Gradients with respect to values are the worst-case weights. Raises BadInput for a delta that
    is no finite number of 0 or more, and for values that are none.
    """
    kind, work = _kind(values), values.double()
    with torch.no_grad():
        beta = 1 / _tilt(work, delta, _close(kind), shared=not exact)
    return dual_value(work, delta, beta).to(kind), beta.to(kind)


def dual_value(values: Tensor, delta: float, beta: Tensor) -> Tensor:
    """-b log(1/m sum exp(-v/b)) - b delta at any b >= 0: never above the worst mean. values: [..., m], beta: [...].

    At b = 0 it is the minimum, at b = inf the mean where delta is 0, else -inf.
    """
    kind, values, beta = _kind(values), values.double(), beta.double()
    inside = (beta > 0) & beta.isfinite()
    safe = beta.where(inside, torch.ones_like(beta))
    low = values.amin(-1, keepdim=True).detach()
    # A large b multiplies what rounding leaves of a logarithm near 0: hence by what is missing from 1.
    soft = torch.log1p(torch.expm1(-(values - low) / safe.unsqueeze(-1)).mean(-1))
    value = low.squeeze(-1) - safe * (soft + delta)
    endless = values.mean(-1) if delta == 0 else torch.full_like(value, -math.inf)
    return torch.where(inside, value, torch.where(beta > 0, endless, values.amin(-1))).to(kind)


def worst_case_weights(values: Tensor, delta: float) -> Tensor:
    """The distribution over samples at which the worst mean is taken: values [..., m] -> [..., m], each row sums to 1.

    KL to the uniform one is delta, or log(m / k) where delta is no smaller than that and the k smallest samples share all.
    """
    kind, work = _kind(values), values.detach().double()
    return _weights(work, _tilt(work, delta, _close(kind))).to(kind)


def effective_sample_size(weights: Tensor) -> Tensor:
    """1 / sum of squares: how many samples a mean under these weights rests on. weights: [..., m] -> [...] in [1, m]."""
    return 1 / weights.square().sum(-1)


def _kind(values: Tensor) -> torch.dtype:
    return values.dtype if values.is_floating_point() else torch.float64


def _close(kind: torch.dtype) -> float:
    return CLOSE if kind is torch.float64 else CLOSE_ENOUGH


def _unit(values: Tensor, delta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Values shifted to start at 0 and scaled to end at 1, the smallest and the scale [..., 1], 1 where all are equal."""
    if not 0 <= delta < math.inf:
        raise BadInput(f"delta is {delta!r}; the radius of a ball is a finite number of 0 or more.")
    if values.ndim == 0 or values.shape[-1] == 0:
        raise BadInput("there are no samples: values need a last axis with one or more.")
    low, high = values.aminmax(dim=-1, keepdim=True)
    scale = high - low
    if not bool(scale.isfinite().all()):
        if bool(values.isfinite().all()):
            raise BadInput("values lie further apart than a float64 can tell: scale them.")
        raise BadInput("a value is nan or infinite; the worst mean of that is none.")
    scale = scale.where(scale > 0, torch.ones_like(scale))
    return (values - low) / scale, low, scale


def _weights(values: Tensor, tilt: Tensor) -> Tensor:
    low = values.amin(-1, keepdim=True)
    smallest = (values == low).to(values)
    limit = smallest / smallest.sum(-1, keepdim=True)
    tilt = tilt.unsqueeze(-1)
    return torch.where(tilt.isfinite(), torch.softmax(-(values - low) * tilt, -1), limit)


def _tilt(values: Tensor, delta: float, close: float, *, shared: bool = False) -> Tensor:
    """t = 1/b of every row, inf where the minimum is reached.

    close: how far from delta KL may be, as a share of it; shared: one t for all rows, at which KL is delta on average.
    """
    unit, low, scale = _unit(values, delta)
    if values.numel() == 0:
        return values.new_zeros(values.shape[:-1])
    count = values.shape[-1]
    smallest = (unit == 0).sum(-1)
    most = torch.log(count / smallest.double())
    if shared:
        # One scale, so that one t is one b of all rows.
        scale = scale.amax().expand_as(scale)
        unit = (values - low) / scale
        most = most.mean().expand_as(most)
    if delta == 0:
        flat = unit.amax(-1) == 0
        return torch.where(flat & (not shared), torch.full_like(most, math.inf), torch.zeros_like(most))
    beyond = delta >= most
    lower = torch.full_like(most, math.sqrt(8 * delta))
    upper = torch.full_like(most, math.inf)
    square = unit.square()
    cube = square * unit
    off = unit - unit.mean(-1, keepdim=True)
    variance, third = off.square().mean(-1), (off.square() * off).mean(-1)
    if shared:
        variance, third = (each.mean().expand_as(each) for each in (variance, third))
    spread = variance.sqrt().clamp_min(1e-300)
    # KL = s^2 / 2 - skewness s^3 / 3 + ... in s = t spread.
    skew = (third / spread**3 * (math.sqrt(2 * delta) / 3)).nan_to_num(0.0).clamp(-0.5, 1)
    tilt = torch.maximum(math.sqrt(2 * delta) / spread * (1 + skew), lower).clamp_max(1e300)
    for _ in range(STEPS if delta > TINY else 0):
        # The smallest sample has logit 0, so that nothing overflows and the sum is at least 1.
        logits = unit * -tilt.unsqueeze(-1)
        weights = logits.exp()
        total = weights.sum(-1)
        log_mean = torch.log1p(torch.expm1(logits).mean(-1)) if delta < SMALL else torch.log(total / count)
        mean, second, third = ((weights * power).sum(-1) / total for power in (unit, square, cube))
        above = mean * mean
        variance = second - above
        gap, slope = -tilt * mean - log_mean, tilt * variance
        bend = variance - tilt * (third - mean * (3 * second - 2 * above))
        if shared:
            gap, slope, bend = (each.mean().expand_as(each) for each in (gap, slope, bend))
        gap = gap - delta
        # A row that has arrived stays: a step within rounding of it would leave its bracket, and be halved away.
        found = beyond | (gap.abs() <= close * delta) | (upper <= lower * (1 + 1e-15))
        if bool(found.all()):
            break
        below = gap < 0
        lower, upper = torch.where(below, tilt, lower), torch.where(below, upper, tilt)
        step = tilt - 2 * gap * slope / (2 * slope.square() - gap * bend)
        inside = (step > lower) & (step < torch.minimum(upper, 10 * tilt))
        if not bool((inside | found).all()):
            halved = torch.where(upper.isfinite(), (lower.log() + upper.log()).div(2).exp(), 10 * lower)
            step = torch.where(inside, step, halved)
        tilt = torch.where(found, tilt, step)
    return torch.where(beyond, torch.full_like(tilt, math.inf), tilt / scale.squeeze(-1))
