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


@dataclass(frozen=True)
class TabularWorld:
    """reward: [S, A]; kernel: [S, A, S], its rows sum to 1; gamma in [0, 1)."""

    reward: Array
    kernel: Array
    gamma: float

    def __post_init__(self) -> None:
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

    values: [S]; probabilities: [..., S], rows sum to 1. Returns value [...] and p [..., S]. What has probability 0 keeps it.
    """
    if not 0 <= delta < math.inf:
        raise BadInput(f"delta is {delta!r}; the radius of a ball is a finite number of 0 or more.")
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
    tilt, worst = np.maximum(np.sqrt(2 * delta) / np.maximum(spread, 1e-150), lower), probabilities
    for _ in range(STEPS):
        worst, gap, slope = _tilted(own, probabilities, tilt)
        gap -= delta
        if np.all(beyond | (np.abs(gap) <= CLOSE * delta) | (upper <= lower * (1 + 1e-15))):
            break
        lower, upper = np.where(gap < 0, tilt, lower), np.where(gap < 0, upper, tilt)
        step = tilt - gap / np.maximum(slope, 1e-200)
        most = np.minimum(upper, 10 * np.maximum(lower, tilt))
        halved = np.where(np.isfinite(upper), np.sqrt(lower) * np.sqrt(np.minimum(upper, 1e300)), 10 * lower)
        tilt = np.where((step > lower) & (step < most), step, halved)
    worst = np.where(beyond[..., None], least / mass[..., None], worst)
    return worst @ values, worst


def soft_value(quality: Array, alpha: float) -> Array:
    """V of Q [S, A]: alpha log sum_a exp(Q / alpha), at alpha = 0 the maximum."""
    best = quality.max(-1)
    if alpha == 0:
        return best
    return best + alpha * np.log(np.exp((quality - best[:, None]) / alpha).sum(-1))


def backup(world: TabularWorld, quality: Array, delta: float, *, alpha: float = 0.0) -> Array:
    """T Q, the robust soft Bellman operator once. quality: [S, A] -> [S, A]."""
    return world.reward + world.gamma * worst_mean(soft_value(quality, alpha), world.kernel, delta)[0]


def solve(world: TabularWorld, delta: float, *, alpha: float = 0.0, tolerance: float = 1e-10) -> Array:
    """The fixed point of T, [S, A], to within the tolerance in every entry."""
    quality = np.zeros_like(world.reward)
    while True:
        after = backup(world, quality, delta, alpha=alpha)
        # A contraction by gamma: what is left is at most gamma / (1 - gamma) of the last move.
        if np.abs(after - quality).max() * world.gamma <= tolerance * (1 - world.gamma):
            return after
        quality = after


def policy_of(quality: Array, alpha: float = 0.0) -> Array:
    """pi(a|s) ~ exp(Q / alpha), [S, A]; at alpha = 0 all on the best action, of equals the first."""
    if alpha == 0:
        return np.eye(quality.shape[1])[quality.argmax(-1)]
    weights = np.exp((quality - quality.max(-1, keepdims=True)) / alpha)
    return weights / weights.sum(-1, keepdims=True)


def evaluate(
    world: TabularWorld, policy: Array, delta: float, *, alpha: float = 0.0, tolerance: float = 1e-10
) -> Array:
    """Value [S] of a policy [S, A] in the worst world of radius delta, its entropy rewarded with alpha.

    The worst kernel may be another one in each state and action, as in the operator.
    """
    entropy = -(policy * np.log(np.where(policy > 0, policy, 1.0))).sum(-1)
    value = np.zeros(len(policy))
    while True:
        quality = world.reward + world.gamma * worst_mean(value, world.kernel, delta)[0]
        after = (policy * quality).sum(-1) + alpha * entropy
        if np.abs(after - value).max() * world.gamma <= tolerance * (1 - world.gamma):
            return after
        value = after


def _tilted(own: Array, probabilities: Array, tilt: Array) -> tuple[Array, Array, Array]:
    """Weights ~ p_0 exp(-t v), their KL to p_0, and its slope in t. own: [..., S], zero at the least possible value."""
    weights = probabilities * np.exp(-tilt[..., None] * own)
    total = weights.sum(-1)
    weights = weights / total[..., None]
    mean = (weights * own).sum(-1)
    return weights, -tilt * mean - np.log(total), tilt * ((weights * own**2).sum(-1) - mean**2)
