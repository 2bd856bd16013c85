"""Scores as probabilities: Platt's two numbers, fitted on what was not fitted on before. numpy and scipy only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_expit, logit

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """p = sigmoid(slope * logit + intercept)."""

    slope: float
    intercept: float

    @classmethod
    def of(cls, logits: ArrayLike, rates: ArrayLike, *, rising: bool = True) -> "Calibration":
        """The two numbers of least log loss, by Newton's method (Platt 1999; logits [N], rates [N] in [0, 1]).

        rising: with a slope of at least 0, since calibration must not turn the order around. As Platt has it, a success
        counts as (n1 + 1) / (n1 + 2) and a failure as 1 / (n0 + 2), n1 and n0 being how many there are, so that the numbers
        are finite also where logits separate both.
        """
        x, y = np.asarray(logits, float), np.asarray(rates, float)
        hits, misses = y.sum(), (1 - y).sum()
        target = y * (hits + 1) / (hits + 2) + (1 - y) / (misses + 2)
        constant = cls(0.0, float(logit(target.mean())))
        centre, width = x.mean(), x.std()
        if not width > 0:
            return constant
        design = np.stack([(x - centre) / width, np.ones_like(x)], axis=1)
        w = np.array([0.0, constant.intercept])

        def loss(at: Array) -> float:
            return -float((target * log_expit(design @ at) + (1 - target) * log_expit(-(design @ at))).sum())

        for _ in range(100):
            p = expit(design @ w)
            gradient = design.T @ (p - target)
            step = np.linalg.solve((design * (p * (1 - p))[:, None]).T @ design + 1e-12 * np.eye(2), gradient)
            size = 1.0
            while size > 1e-8 and loss(w - size * step) > loss(w) - 1e-4 * size * gradient @ step:
                size /= 2
            w = w - size * step
            if gradient @ step < 1e-14 * len(x):
                break
        slope = float(w[0] / width)
        return cls(slope, float(w[1] - slope * centre)) if slope > 0 or not rising else constant

    def __call__(self, logits: ArrayLike) -> Array:
        return expit(self.slope * np.asarray(logits, float) + self.intercept)
