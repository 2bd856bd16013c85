"""Robust and soft control where everything can be counted: S states, A actions, a reward and a kernel.

    V(s) = alpha log sum_a exp(Q(s,a) / alpha)      or max_a Q(s,a) at alpha = 0
    T Q(s,a) = r(s,a) + gamma inf { E_p V : KL(p || p_0(.|s,a)) <= delta }

T is a contraction by gamma, so that iteration finds the one fixed point. The same operator on the left of a fixed policy is
its value in the worst world of that radius. The kernel's probabilities need not be equal, as those of samples are.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.core.errors import BadInput

Array = NDArray[np.float64]
STEPS, CLOSE = 100, 1e-10  # of Newton at most, and how near to the radius it ends
TINY = 1e-20  # a radius below which it has no part
ROUNDING = 1e-13  # of the largest value: a move as small as this is none


@dataclass(frozen=True)
class TabularWorld:
    """reward: [S, A]; kernel: [S, A, S], its rows sum to 1; gamma in [0, 1)."""

    reward: Array
    kernel: Array
    gamma: float

    def __post_init__(self) -> None:
        if self.reward.ndim != 2 or self.reward.size == 0 or not np.isfinite(self.reward).all():
            raise BadInput(f"reward has shape {self.reward.shape}; expected finite numbers [S, A], one or more.")
        states, actions = self.reward.shape
        if self.kernel.shape != (states, actions, states):
            raise BadInput(f"kernel has shape {self.kernel.shape}; a reward of {self.reward.shape} needs [S, A, S].")
        if not (np.all(self.kernel >= 0) and np.allclose(self.kernel.sum(-1), 1)):
            raise BadInput("a row of the kernel is no distribution: probabilities of 0 or more that sum to 1.")
        if not 0 <= self.gamma < 1:
            raise BadInput(f"gamma is {self.gamma!r}; it lies in [0, 1).")

    @classmethod
    def draw(
        cls, generator: np.random.Generator, states: int = 10, actions: int = 3, gamma: float = 0.8
    ) -> "TabularWorld":
        """A world with rewards uniform in [0, 1] and kernels uniform on the simplex."""
        kernel = generator.dirichlet(np.ones(states), size=(states, actions))
        return cls(generator.uniform(size=(states, actions)), kernel, gamma)


def worst_mean(values: Array, probabilities: Array, delta: float) -> tuple[Array, Array]:
    """inf { E_p values : KL(p || p_0) <= delta } and the p that attains it.

    values: [S], finite; probabilities: [..., S], each row is divided by its sum. Returns value [...] and p [..., S].
    What has probability 0 keeps it.
    """
    if not 0 <= delta < math.inf:
        raise BadInput(f"delta is {delta!r}; the radius of a ball is a finite number of 0 or more.")
    if not np.isfinite(values).all():
        raise BadInput("a value is nan or infinite; the worst mean of that is none.")
    probabilities = probabilities / probabilities.sum(-1, keepdims=True)
    if delta == 0:
        return probabilities @ values, probabilities
    possible = probabilities > 0
    own = np.where(possible, values, np.inf)
    low = own.min(-1, keepdims=True)
    own = np.where(possible, own - low, 0.0)
    scale = own.max(-1, keepdims=True)
    own = own / np.where(scale > 0, scale, 1.0)
    least = probabilities * (possible & (own == 0))
    mass = least.sum(-1)
    beyond = delta >= -np.log(mass)
    # KL(t) = delta by Newton inside a bracket, which starts where KL <= t^2 / 8 allows it.
    lower = np.full(mass.shape, np.sqrt(8 * delta))
    upper = np.full(mass.shape, np.inf)
    spread = np.sqrt((probabilities * own**2).sum(-1) - (probabilities * own).sum(-1) ** 2)
    tilt = np.maximum(np.sqrt(2 * delta) / np.maximum(spread, 1e-150), lower)
    for _ in range(STEPS if delta > TINY else 0):
        _, _, gap, slope = _tilted(own, probabilities, tilt)
        gap -= delta
        # A row that has arrived stays: a step within rounding of it would leave its bracket, and be halved away.
        found = beyond | (np.abs(gap) <= CLOSE * delta) | (upper <= lower * (1 + 1e-15))
        if np.all(found):
            break
        lower, upper = np.where(gap < 0, tilt, lower), np.where(gap < 0, upper, tilt)
        step = tilt - gap / np.maximum(slope, 1e-200)
        most = np.minimum(upper, 10 * np.maximum(lower, tilt))
        halved = np.where(np.isfinite(upper), np.sqrt(lower) * np.sqrt(np.minimum(upper, 1e300)), 10 * lower)
        tilt = np.where(found, tilt, np.where((step > lower) & (step < most), step, halved))
    worst, log_total, _, _ = _tilted(own, probabilities, tilt)
    # Of the dual, which is flat at its maximum: what is left of Newton's gap is squared in it.
    value = low[..., 0] + scale[..., 0] * np.where(beyond, 0.0, -(log_total + delta) / tilt)
    return value, np.where(beyond[..., None], least / mass[..., None], worst)


def soft_value(quality: Array, alpha: float) -> Array:
    """V of Q [S, A]: alpha log sum_a exp(Q / alpha), at alpha = 0 the maximum. Raises BadInput for an alpha that is none."""
    _check_temperature(alpha)
    best = quality.max(1)
    if alpha == 0:
        return best
    return best + alpha * np.log(np.exp((quality - best[:, None]) / alpha).sum(1))


def backup(world: TabularWorld, quality: Array, delta: float, *, alpha: float = 0.0) -> Array:
    """T Q, the robust soft Bellman operator once. quality: [S, A] -> [S, A]."""
    return world.reward + world.gamma * worst_mean(soft_value(quality, alpha), world.kernel, delta)[0]


def solve(world: TabularWorld, delta: float, *, alpha: float = 0.0, tolerance: float = 1e-10) -> Array:
    """The fixed point of T, [S, A], to within the tolerance in every entry, or to rounding where that is coarser."""
    quality = np.zeros_like(world.reward)
    while True:
        after = backup(world, quality, delta, alpha=alpha)
        if _settled(world, after, quality, tolerance):
            return after
        quality = after


def policy_of(quality: Array, alpha: float = 0.0) -> Array:
    """pi(a|s) ~ exp(Q / alpha), [S, A]; at alpha = 0 all on the best action, of equals the first."""
    _check_temperature(alpha)
    if alpha == 0:
        return np.eye(quality.shape[1])[quality.argmax(1)]
    weights = np.exp((quality - quality.max(1, keepdims=True)) / alpha)
    return weights / weights.sum(1, keepdims=True)


def evaluate(
    world: TabularWorld, policy: Array, delta: float, *, alpha: float = 0.0, tolerance: float = 1e-10
) -> Array:
    """Value [S] of a policy [S, A] in the worst world of radius delta, its entropy rewarded with alpha.

    The worst kernel may be another one in each state and action, as in the operator. Raises BadInput for what is no policy.
    """
    _check_temperature(alpha)
    if policy.shape != world.reward.shape or not (np.all(policy >= 0) and np.allclose(policy.sum(1), 1)):
        raise BadInput(f"a policy of shape {policy.shape} is none here: expected distributions {world.reward.shape}.")
    entropy = -(policy * np.log(np.where(policy > 0, policy, 1.0))).sum(1)
    value = np.zeros(len(policy))
    while True:
        quality = world.reward + world.gamma * worst_mean(value, world.kernel, delta)[0]
        after = (policy * quality).sum(1) + alpha * entropy
        if _settled(world, after, value, tolerance):
            return after
        value = after


def _settled(world: TabularWorld, after: Array, before: Array, tolerance: float) -> bool:
    """Whether a fixed point is reached: T contracts by gamma, so at most gamma / (1 - gamma) of the last move is left."""
    move = np.abs(after - before).max()
    return bool(move * world.gamma <= tolerance * (1 - world.gamma) or move <= ROUNDING * np.abs(after).max())


def _check_temperature(alpha: float) -> None:
    if not 0 <= alpha < math.inf:
        raise BadInput(f"alpha is {alpha!r}; a temperature is a finite number of 0 or more.")


def _tilted(own: Array, probabilities: Array, tilt: Array) -> tuple[Array, Array, Array, Array]:
    """Weights ~ p_0 exp(-t v), the log of their sum, their KL to p_0, and its slope in t.

    own: [..., S], zero at the least possible value.
    """
    missing = np.expm1(-tilt[..., None] * own)
    weights = probabilities * (missing + 1)
    total = weights.sum(-1)
    # Near 1 the logarithm is taken of what is missing, which a small radius is made of.
    less = np.maximum((probabilities * missing).sum(-1), -0.5)
    log_total = np.where(total < 0.5, np.log(total), np.log1p(less))
    weights = weights / total[..., None]
    mean = (weights * own).sum(-1)
    return weights, log_total, -tilt * mean - log_total, tilt * ((weights * own**2).sum(-1) - mean**2)
