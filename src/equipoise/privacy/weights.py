"""First stage of DP-2ERM: weights that balance two arms, and how far a replaced record can move all of them.

    known     1 / pi, of a trial whose propensities are known
    uniform   1 for everyone
    ipw       1 / max(sigmoid(a gamma.x), kappa), gamma = argmin sum log(1 + exp(-a gamma.x)) + n lam/2 |gamma|^2
    entropy   exp(eta_a.x), eta_a = argmin_{|eta| <= R} sum [1{a_i = a} exp(eta.x_i) - eta.x_i] + n lam/2 |eta|^2, by arm
    mmd       argmin_{0 <= v <= W} v'K_aa v / n^2 - 2 v'K_a. 1 / n^2 + lam/n |v - 1|^2, by arm, K = (Gaussian kernel + 1) / 2

Each minimum is strongly convex with the ridge n lam, so that one record moves its argument by O(1/n) and all n weights
together by O(1): the bounds of `sensitivity`. Without a ridge there is no bound. The weights stay secret.

n records, d features with |x| <= 1 (the constant is one of them), a in {-1, +1}.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.options import closed

Array = NDArray[np.float64]
Weighting = Literal["ipw", "entropy", "mmd", "known", "uniform"]
Evaluate = Callable[[Array], tuple[Array, Array]]

TOLERANCE = 1e-6  # norm of the first stage's gradient at which it counts as solved; its error is in the bounds
LEAST_KAPPA, LEAST_RIDGE, MOST_RADIUS, MOST_WEIGHT = 1e-9, 1e-9, 20.0, 1e9  # beyond them noise is all that is left
MOST_MMD = 5000  # records whose kernel is held in memory
UNIT = 2.0**-53  # of float64's rounding
LEAST_BANDWIDTH = 0.01  # below it rounding of a distance is no small part of the kernel
_KERNEL = 3e4  # rounding of a kernel's entry at that bandwidth, a feature, in units of UNIT
_ROUNDS, _MMD_ROUNDS = 200, 100_000


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """movement: the most that the shared records' weights move together when one is replaced. largest: of one weight."""

    movement: float
    largest: float

    @property
    def total(self) -> float:
        """Of the whole pipeline: the moved weights, and the replaced record with its largest weight before and after."""
        return self.movement + 2 * self.largest


@closed
def sensitivity(
    weights: Weighting = "ipw",
    *,
    n: int,
    d: int = 100,
    kappa: float = 0.2,
    weight_ridge: float = 1.0,
    radius: float = 1.0,
    largest_weight: float = 5.0,
    curvature: float = 0.0,
) -> Sensitivity:
    """How far the weights of n records can move, whatever the records are, as float64 computes them.

    d: features, the constant included, with which rounding grows. kappa: least propensity (ipw, known). weight_ridge: lam
    above. radius: R of entropy. largest_weight: W of mmd. curvature: of the likelihood beside the ridge, for ipw, as
    `DPTreatmentRule(tightening=...)` releases it; 0 otherwise. Raises BadInput for constants out of range, and for mmd above
    5,000 records.
    """
    check_constants(n, kappa=kappa, weight_ridge=weight_ridge, radius=radius, largest_weight=largest_weight)
    if weights == "uniform":
        return Sensitivity(0.0, 1.0)
    if weights == "known":
        return Sensitivity(0.0, 1 / kappa)
    if weights == "ipw":
        strength = weight_ridge + max(curvature, 0.0) / n
        left = TOLERANCE + rounding(n, d, 1.0, 1 / weight_ridge)
        return Sensitivity(2 * (1 + left) * (1 / kappa - 1) / strength, 1 / kappa)
    if weights == "entropy":
        most = math.exp(radius)
        left = TOLERANCE + rounding(n, d, most, radius)
        return Sensitivity(2 * most * (max(1.0, most - 1) + left) / weight_ridge, most)
    if n > MOST_MMD:
        raise BadInput(
            f"mmd weights hold the kernel of all pairs, too much for {n:,} records: use ipw or entropy above {MOST_MMD:,}."
        )
    left = 2 * math.sqrt(2) * TOLERANCE + 2 * rounding(n, d, largest_weight, _KERNEL)
    return Sensitivity((2 * max(1.0, largest_weight - 1) + left) / weight_ridge, largest_weight)


def rounding(n: int, d: int, most: float, norm: float) -> float:
    """The most that float64 changes the norm of sum m_i s(theta.x_i) x_i, whatever the records; |m_i s|, |m_i s'| <= most.

    n records, d features, norm: the most that theta has. A dot product of d terms is wrong by d |x| |theta| units, a sum of
    n terms by n^2 most; the rest is a handful of units a term.
    """
    return UNIT * n * most * (4 * (n + d) + d * norm)


def check_constants(n: int, *, kappa: float, weight_ridge: float, radius: float, largest_weight: float) -> None:
    """Raises BadInput for public constants that no bound can be computed from."""
    if n < 2:
        raise BadInput(f"n is {n}: a rule needs two records at least.")
    if not LEAST_KAPPA <= kappa <= 1:
        raise BadInput(
            f"kappa is {kappa!r}, which is no least propensity: give one of {LEAST_KAPPA:g} to 1, such as 0.2."
        )
    if not LEAST_RIDGE <= weight_ridge < math.inf:
        raise BadInput(
            f"weight_ridge is {weight_ridge!r}: without a positive one the weights can move without a bound; give one of "
            f"{LEAST_RIDGE:g} or more, such as 1."
        )
    if not 0 < radius <= MOST_RADIUS:
        raise BadInput(
            f"radius is {radius!r}: without a positive one the weights can move without a bound; give one of "
            f"{MOST_RADIUS:g} at most, such as 1."
        )
    if not 1 <= largest_weight <= MOST_WEIGHT:
        raise BadInput(f"largest_weight is {largest_weight!r}: give a number of 1 to {MOST_WEIGHT:g}.")


def logistic(x: Array, signs: Array, ridge: Array, mass: Array | float = 1.0, linear: Array | float = 0.0) -> Evaluate:
    """Gradient and Hessian of sum_i mass_i log(1 + exp(-signs_i x_i theta)) + theta ridge theta / 2 + linear theta.

    x: [n, d], signs: [n] in {-1, 1}, ridge: [d, d], mass: [n], linear: [d].
    """

    def evaluate(theta: Array) -> tuple[Array, Array]:
        p = expit(-signs * (x @ theta))
        bent = mass * p * (1 - p)
        return ridge @ theta + linear - x.T @ (mass * signs * p), x.T @ (x * bent[:, None]) + ridge

    return evaluate


def ipw(x: Array, a: Array, *, kappa: float, weight_ridge: float, radius: float = math.inf) -> Array:
    """Inverse propensities of a ridge-logistic model. x: [n, d], a: [n] -> [n] in [1, 1 / kappa].

    radius: of gamma, where a curvature of the likelihood counts in the bound. Raises WorkFailed if it does not converge.
    """
    n, d = x.shape
    gamma = minimize(logistic(x, a, n * weight_ridge * np.eye(d)), d, TOLERANCE, radius)
    return 1 / np.maximum(expit(a * (x @ gamma)), kappa)


def entropy(x: Array, a: Array, *, weight_ridge: float, radius: float) -> Array:
    """Entropy balancing with a ridge in a ball: weighted means of an arm near those of all, [n] in [e^-R, e^R]."""
    n, d = x.shape
    weights = np.empty(n)
    strength, target = n * weight_ridge, x.sum(0)
    for arm in (-1, 1):
        own = x[a == arm]

        def evaluate(eta: Array, own: Array = own) -> tuple[Array, Array]:
            with np.errstate(over="ignore", invalid="ignore"):
                w = np.exp(own @ eta)
                return own.T @ w - target + strength * eta, own.T @ (own * w[:, None]) + strength * np.eye(d)

        weights[a == arm] = np.exp(own @ minimize(evaluate, d, TOLERANCE, radius))
    return np.minimum(weights, math.exp(radius))


def mmd(x: Array, a: Array, *, weight_ridge: float, largest_weight: float, bandwidth: float) -> Array:
    """Weights in [0, W] under which each arm's kernel mean is near that of all; [n]. Memory is quadratic in n."""
    n = len(x)
    weights = np.empty(n)
    step = 1 / (1 + weight_ridge)
    kept = math.sqrt(weight_ridge * step)
    momentum = (1 - kept) / (1 + kept)
    for arm in (-1, 1):
        own = x[a == arm]
        inner, target = kernel(own, own, bandwidth), kernel(own, x, bandwidth).sum(1)
        v = before = np.ones(len(own))
        for _ in range(_MMD_ROUNDS):
            gradient = (inner @ v - target) / n + weight_ridge * (v - 1)
            left = np.where(
                v <= 0, np.minimum(gradient, 0), np.where(v >= largest_weight, np.maximum(gradient, 0), gradient)
            )
            if np.linalg.norm(left) <= TOLERANCE / math.sqrt(n):
                break
            ahead = v + momentum * (v - before)
            slope = (inner @ ahead - target) / n + weight_ridge * (ahead - 1)
            before, v = v, np.clip(ahead - step * slope, 0, largest_weight)
        else:
            raise WorkFailed("the mmd weights did not converge: give a larger weight_ridge.")
        weights[a == arm] = v
    return weights


def kernel(x: Array, z: Array, bandwidth: float) -> Array:
    """(exp(-|x - z|^2 / (2 bandwidth^2)) + 1) / 2: the constant half pins an arm's mass. [n, d], [m, d] -> [n, m]."""
    squares = (x**2).sum(1)[:, None] + (z**2).sum(1) - 2 * x @ z.T
    return (np.exp(-np.maximum(squares, 0) / (2 * bandwidth**2)) + 1) / 2


def effective_sample_size(weights: Array) -> float:
    """(sum of weights)^2 / sum of squares: on how many records a weighted mean rests; 0 without any weight."""
    return float(weights.sum() ** 2 / max((weights**2).sum(), 1e-300))


def minimize(evaluate: Evaluate, d: int, tolerance: float, radius: float = math.inf) -> Array:
    """The minimum of a strongly convex function within a ball, to a stated norm of what the gradient leaves. -> [d]

    evaluate: point -> (gradient, Hessian). On the sphere the gradient's part along the normal is no error. Raises WorkFailed
    where the tolerance is not reached.
    """
    point = _newton(evaluate, np.zeros(d), tolerance)
    if np.linalg.norm(point) <= radius:
        return point

    def held(multiplier: float) -> Array:
        def more(at: Array) -> tuple[Array, Array]:
            gradient, hessian = evaluate(at)
            return gradient + multiplier * at, hessian + multiplier * np.eye(d)

        return _newton(more, np.zeros(d), tolerance / 10)

    most = float(np.linalg.norm(evaluate(np.zeros(d))[0])) / radius  # the point at which it is certainly inside
    multiplier: Any = brentq(lambda value: float(np.linalg.norm(held(value))) - radius, 0.0, most, xtol=1e-14)
    point = held(float(multiplier))
    point *= radius / np.linalg.norm(point)
    gradient = evaluate(point)[0]
    left = gradient - point * min(float(gradient @ point), 0.0) / radius**2
    if not np.linalg.norm(left) <= tolerance:
        raise WorkFailed(_unsolved(float(np.linalg.norm(left)), tolerance))
    return point


def _newton(evaluate: Evaluate, point: Array, tolerance: float) -> Array:
    gradient, hessian = evaluate(point)
    for _ in range(_ROUNDS):
        norm = float(np.linalg.norm(gradient))
        if norm <= tolerance:
            return point
        step = np.linalg.solve(hessian, gradient)
        share = 1.0
        while share > 1e-12:  # along Newton's direction the gradient's norm falls at first
            ahead = evaluate(point - share * step)
            if np.linalg.norm(ahead[0]) <= (1 - share / 4) * norm:
                break
            share /= 2
        else:
            raise WorkFailed(_unsolved(norm, tolerance))
        point = point - share * step
        gradient, hessian = ahead
    raise WorkFailed(_unsolved(float(np.linalg.norm(gradient)), tolerance))


def _unsolved(norm: float, tolerance: float) -> str:
    return f"the gradient's norm is {norm:.1e} where the guarantee needs {tolerance:.1e}: give a larger ridge."
