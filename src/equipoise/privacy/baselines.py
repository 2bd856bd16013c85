"""Rivals of DP-2ERM on the same scaled records: what else could be done with an epsilon, and what only looks private.

    stage-wise     private propensities at eps/2, then weights that are each record's own, noise for 2 W at eps/2
    split          private propensities from one half, the rule from the other, each at eps
    worst-case     the weights may move by n W
    weighted-erm   noise on the result for 2 W alone (arXiv:2307.13127): estimated weights move, too, so that this is not
                   private from end to end
    unweighted     no weights: least noise, biased where treatment was not drawn by lot

x: [n, d] with |x| <= 1, a: [n] in {-1, 1}, y: [n] in [-1, 1].
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from equipoise.core.options import closed
from equipoise.privacy.dp_2erm import calibrate, private_fit
from equipoise.privacy.noise import Noise
from equipoise.privacy.weights import Sensitivity, ipw

Array = NDArray[np.float64]
Rival = Literal["stage-wise", "split", "worst-case", "weighted-erm", "unweighted"]


@closed
def fit_rival(
    rival: Rival,
    x: Array,
    a: Array,
    y: Array,
    *,
    epsilon: float,
    noise: Noise,
    ridge: float = 0.01,
    weight_ridge: float = 1.0,
    kappa: float = 0.2,
) -> Array:
    """theta of a rival, [d]. epsilon inf: without noise. Raises BadInput as `calibrate` does."""
    n, d = x.shape
    if rival == "unweighted":
        made = calibrate(epsilon, Sensitivity(0.0, 1.0), n=n, d=d, ridge=ridge)
        return private_fit(x, a, y, np.ones(n), made, noise)
    if rival in ("stage-wise", "split"):
        first, second, each = slice(None), slice(None), epsilon / 2
        if rival == "split":  # the records come in an order of no meaning
            first, second, each = slice(0, n // 2), slice(n // 2, None), epsilon
        made = calibrate(each, Sensitivity(0.0, 1.0), n=len(x[first]), d=d, ridge=weight_ridge)
        gamma = private_fit(x[first], a[first], np.ones(len(x[first])), np.ones(len(x[first])), made, noise)
        x, a, y = x[second], a[second], y[second]
        w = 1 / np.maximum(expit(a * (x @ gamma)), kappa)
        made = calibrate(each, Sensitivity(0.0, 1 / kappa), n=len(x), d=d, ridge=ridge)
        return private_fit(x, a, y, w, made, noise)
    w = ipw(x, a, kappa=kappa, weight_ridge=weight_ridge)
    if rival == "worst-case":
        made = calibrate(epsilon, Sensitivity(n / kappa, 1 / kappa), n=n, d=d, ridge=ridge)
    else:
        made = calibrate(epsilon, Sensitivity(0.0, 1 / kappa), n=n, d=d, ridge=ridge, perturbation="gamma")
    return private_fit(x, a, y, w, made, noise)
