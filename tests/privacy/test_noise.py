"""Noise: densities and moments, what is refused, and the scale that a guarantee asks for."""

import math
import random
import sys

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar

from equipoise.core.errors import MissingExtra, WorkFailed
from equipoise.privacy import noise as noises
from equipoise.privacy.noise import Noise, concentrated


class Script(random.Random):
    """The system's randomness, told beforehand."""

    def gauss(self, mu=0.0, sigma=1.0):
        self.told = getattr(self, "told", [3.0, -4.0, 12.0])
        return mu + sigma * self.told.pop(0)

    def gammavariate(self, alpha, beta):
        return 100 * alpha + beta


def test_unseeded_gamma_noise_has_a_direction_and_a_norm(monkeypatch):
    monkeypatch.setattr(random, "SystemRandom", Script)
    drawn = Noise().gamma(3, 0.5)
    assert drawn == pytest.approx(np.array([3.0, -4.0, 12.0]) / 13 * 300.5)


def test_seeded_noise_has_the_scale_in_every_coordinate():
    scale = 0.25
    gamma = np.array([Noise(seed).gamma(3, scale) for seed in range(3000)])
    norms = np.linalg.norm(gamma, axis=1)
    assert stats.kstest(norms / scale, stats.gamma(3).cdf).pvalue > 1e-3
    assert np.abs(gamma / norms[:, None]).mean(0) == pytest.approx([0.5] * 3, abs=0.02)  # uniform on the sphere
    values = np.array([1.0, -7.0])
    laplace = np.array([Noise(seed).laplace(values, scale, sensitivity=9.0, epsilon=9.0) for seed in range(3000)])
    for column, value in zip(laplace.T, values, strict=True):
        assert stats.kstest((column - value) / scale, stats.laplace.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(laplace.T)[0, 1]) < 0.08


def test_safe_noise_is_about_the_values_and_of_the_scale():
    pytest.importorskip("opendp")
    values, noise = np.tile([2.0, -30.0, 400.0], 300), Noise()
    laplace = noise.laplace(values, 0.5, sensitivity=1.0, epsilon=2.0) - values
    gaussian = noise.gaussian(values, 0.5, sensitivity=1.0, rho=2.0) - values
    assert stats.kstest(laplace / 0.5, stats.laplace.cdf).pvalue > 1e-4
    assert stats.kstest(gaussian / 0.5, stats.norm.cdf).pvalue > 1e-4


def test_a_loss_that_opendp_counts_above_what_is_meant_releases_nothing():
    pytest.importorskip("opendp")
    noise = Noise()
    with pytest.raises(WorkFailed, match="nothing was released"):
        noise.gaussian(np.zeros(2), 1.0, sensitivity=1.0 + 1e-9, rho=0.5)
    noise.gaussian(np.zeros(2), 1.0, sensitivity=1.0, rho=0.5)
    with pytest.raises(WorkFailed):
        noises._agree(math.nan, 1.0)
    noises._agree(1.0, 1.0)


def test_opendp_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opendp.prelude", None)
    with pytest.raises(MissingExtra, match=r"equipoise\[privacy\]"):
        Noise().laplace(np.zeros(1), 1.0, sensitivity=1.0, epsilon=1.0)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-5), (1.0, 0.3), (3.0, 1e-9), (8.0, 0.02), (1e-4, 1e-7)])
def test_the_rho_is_the_largest_that_the_bound_allows(epsilon, delta):
    """The written bound at its best order: not above delta at this rho, and above it a little further."""
    rho = concentrated(epsilon, delta)

    def least(rho):
        def bound(
            log_excess,
        ):  # log of the formula: (1 - 1/alpha)^alpha / (alpha - 1) is excess^(alpha - 1) / alpha^alpha
            excess = math.exp(log_excess)
            alpha = 1 + excess
            return excess * (alpha * rho - epsilon) + excess * log_excess - alpha * math.log(alpha)

        grid = np.linspace(-12, 25, 2000)
        near = grid[np.argmin([bound(each) for each in grid])]
        return minimize_scalar(bound, bounds=(near - 0.1, near + 0.1), method="bounded", options={"xatol": 1e-11}).fun

    assert least(rho) < math.log(delta) - 1e-11 * abs(math.log(delta)) and least(rho * (1 + 3e-9)) > math.log(delta)


def test_a_delta_next_to_one_still_asks_for_noise():
    """There the order is next to one: the least of e (rho + log e) is -exp(-1 - rho) at e = exp(-1 - rho), up to e^2."""
    assert concentrated(1.0, 1 - 1e-15) == pytest.approx(-math.log(1e-15), rel=0.05)
