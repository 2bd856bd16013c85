"""Noise of a stated privacy, from the operating system's randomness or, for tests and studies, from a seed.

Laplace and Gaussian noise without a seed are OpenDP's, which are sampled exactly on a grid and so stay private in floating
point. Gamma noise, the direction uniform and the norm Gamma(d), has no such form: float64, not floating-point safe.
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar

from equipoise.core.errors import MissingExtra, WorkFailed

Array = NDArray[np.float64]
_MORE = 1 + 1e-12  # on a scale, so that no rounding of it is paid by the records
SAFE = "floating-point safe (OpenDP)"
UNSAFE = "float64, not floating-point safe"
SEEDED = "float64, not floating-point safe; drawn from a seed, which must stay as secret as the records"


class Noise:
    """Draws noise. seed: None for the system's randomness, whose draws nobody can repeat."""

    def __init__(self, seed: Any = None) -> None:
        self.generator = None if seed is None else np.random.default_rng(seed)

    def gamma(self, d: int, scale: float) -> Array:
        """b with density in proportion to exp(-|b| / scale). -> [d]"""
        if self.generator is None:
            system = random.SystemRandom()
            direction = np.array([system.gauss(0.0, 1.0) for _ in range(d)])
            norm = system.gammavariate(d, scale)
        else:
            direction = self.generator.standard_normal(d)
            norm = self.generator.gamma(d, scale)
        return direction / np.linalg.norm(direction) * norm

    def laplace(self, values: Array, scale: float, *, sensitivity: float, epsilon: float) -> Array:
        """values plus Laplace noise in each coordinate. sensitivity: in the 1-norm. Raises MissingExtra without OpenDP."""
        if self.generator is not None:
            return values + self.generator.laplace(0.0, scale, len(values))
        dp = opendp()
        space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.l1_distance(T=float)
        mechanism = dp.m.make_laplace(*space, scale=scale * _MORE)
        _agree(mechanism.map(sensitivity), epsilon)
        return np.array(mechanism(values.tolist()))

    def gaussian(self, values: Array, scale: float, *, sensitivity: float, rho: float) -> Array:
        """values plus Gaussian noise. sensitivity: in the 2-norm; rho: of zero-concentrated privacy."""
        if self.generator is not None:
            return values + self.generator.normal(0.0, scale, len(values))
        dp = opendp()
        space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.l2_distance(T=float)
        mechanism = dp.m.make_gaussian(*space, scale=scale * _MORE)
        _agree(mechanism.map(sensitivity), rho)
        return np.array(mechanism(values.tolist()))


def concentrated(epsilon: float, delta: float) -> float:
    """The rho of zero-concentrated privacy that is (epsilon, delta) private, the largest one found.

    delta(rho) = min over alpha > 1 of exp((alpha - 1)(alpha rho - epsilon)) / (alpha - 1) (1 - 1/alpha)^alpha
    (arXiv:2004.00010, cor. 13). It holds for discrete noise in several dimensions, as OpenDP's is, where the analytic
    Gaussian's formula does not; the noise is some percent larger for it.
    """

    def log_delta(rho: float) -> float:
        def at(log_excess: float) -> float:
            excess = math.exp(log_excess)
            return excess * ((1 + excess) * rho - epsilon + log_excess) - (1 + excess) * math.log1p(excess)

        found: Any = minimize_scalar(at, bounds=(-40.0, 40.0), method="bounded", options={"xatol": 1e-10})
        return float(found.fun)

    wanted, most = math.log(delta), epsilon
    while log_delta(most) <= wanted:
        most *= 4
    least = most
    while log_delta(least) > wanted:
        least /= 4
    found: Any = brentq(lambda log_rho: log_delta(math.exp(log_rho)) - wanted, math.log(least), math.log(most))
    return math.exp(float(found)) * (1 - 1e-9)


def opendp() -> Any:
    """OpenDP, its mechanisms at hand. Raises MissingExtra where it is not installed."""
    try:
        import opendp.prelude as dp
    except ImportError as error:
        raise MissingExtra(
            "Noise that is safe in floating point is OpenDP's: pip install 'equipoise[privacy]'."
        ) from error
    dp.enable_features("contrib")
    return dp


def _agree(found: float, wanted: float) -> None:
    if not found <= wanted:
        raise WorkFailed(f"OpenDP counts a loss of {found!r} where {wanted!r} is meant: nothing was released.")
