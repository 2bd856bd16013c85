"""DP-2ERM (arXiv:2602.12604): a treatment rule from weights and a weighted fit, private from end to end.

    weights w(D) in [0, W]^n, exact and never released                                                    (stage 1)
    theta = argmin sum_i w_i |y_i| log(1 + exp(-sign(y_i) a_i theta.x_i)) + Lam/2 |theta|^2 + b.theta      (stage 2)
    Delta = Dw + 2 W,   eps' = eps - c Delta / Lam,   b = r u,  u uniform on the sphere, r ~ Gamma(d, G Delta / eps')

Dw: how far the n - 1 shared records' weights move together when one record is replaced (`weights.sensitivity`). G = 1 and
c = 1/4 bound the loss's gradient and its Hessian's trace, since |x| <= 1 and |y| <= 1 by public bounds. Replacing a record
moves the gradient at any theta by at most G Delta, and the Hessian by a matrix of trace norm at most c Delta and full rank,
so that |log det H - log det H'| <= c Delta / Lam. Where eps' < eps/2, Lam is raised to 2 c Delta / eps.

Or noise on the result, at sensitivity (G Delta + 2 e) / Lam: Laplace or Gamma (eps), or Gaussian (eps, delta).

Differs from the paper, whose proofs and constants are not public: the constants are derived for this module; neighbours
replace a record; the loss is logistic outcome-weighted learning. The minimum is found to a gradient norm e, not exactly:
output noise has e in its sensitivity, objective noise spends a hundredth of epsilon on Laplace noise that hides it. The
Gaussian is calibrated by concentrated privacy, which also holds for OpenDP's discrete noise.

n records, d features with the constant, theta: [d].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from equipoise.core.errors import BadInput
from equipoise.core.options import check, closed
from equipoise.privacy import weights as stage_one
from equipoise.privacy.noise import SAFE, SEEDED, UNSAFE, Noise, concentrated
from equipoise.privacy.result import NoisePlan
from equipoise.privacy.weights import (
    LEAST_BANDWIDTH,
    UNIT,
    Sensitivity,
    Weighting,
    logistic,
    minimize,
    rounding,
    sensitivity,
)

__all__ = ["Bounds", "Calibration", "DPTreatmentRule", "NoisePlan", "calibrate", "noise_plan", "sensitivity"]

Array = NDArray[np.float64]
Perturbation = Literal["objective", "laplace", "gamma", "gaussian"]

GRADIENT, CURVATURE = 1.0, 0.25  # G and c of the loss
SOLVER_SHARE = 0.01  # of epsilon, for what the solver leaves of an exact minimum
TOLERANCE = 1e-6  # of the gradient's norm, in units of its sensitivity
LEAST_EPSILON = 1e-6
_BOUNDS = ("features", "outcome", "arms", "source")
_WIDEST = 1e300  # of a scale's inverse: a coefficient in the feature's own unit is a number


# --- noise ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a guarantee takes, before any record is read.

    lam: Lam, of the sum. gradient: sensitivity of the objective's gradient, G Delta. tolerance: norm of the gradient where
    the solver stops; error: of the gradient, with rounding. scale: of the noise, 0 without any; solver_scale: of the Laplace
    noise that hides the solver's error. reach: sensitivity of theta where the noise is on it. rho: of a Gaussian.
    """

    epsilon: float
    delta: float
    perturbation: str
    lam: float
    gradient: float
    tolerance: float
    error: float
    scale: float
    solver_scale: float = 0.0
    reach: float = math.nan
    rho: float = math.nan


@closed
def calibrate(
    epsilon: float,
    bound: Sensitivity,
    *,
    n: int,
    d: int,
    ridge: float = 0.01,
    perturbation: Perturbation = "objective",
    delta: float = 0.0,
) -> Calibration:
    """Noise and ridge for a guarantee. d: features, the constant included. ridge: Lam / n, raised where eps' needs it.

    Raises BadInput for an epsilon that is not positive, a ridge that is not, and a delta that the noise cannot have.
    """
    check_guarantee(epsilon, delta, perturbation, ridge)
    gradient, lam = GRADIENT * bound.total, ridge * n
    tolerance = TOLERANCE * gradient

    def left(lam: float, push: float = 0.0) -> float:
        norm = (n * GRADIENT * bound.largest + push) / lam  # of a minimum, with a linear term of norm push
        return tolerance + rounding(n, d, bound.largest, norm) + 4 * UNIT * push

    if math.isinf(epsilon):
        return Calibration(epsilon, 0.0, perturbation, lam, gradient, tolerance, left(lam), 0.0)
    if perturbation == "objective":
        hiding = SOLVER_SHARE * epsilon
        whole = epsilon - hiding
        rest = whole - CURVATURE * bound.total / lam
        if rest < whole / 2:
            lam, rest = 2 * CURVATURE * bound.total / whole, whole / 2
        scale = gradient / rest
        error = left(lam, scale * (1.4 * d + 100))  # the noise is longer once in 10^21 draws (Chernoff)
        solver = 2 * math.sqrt(d) * error / lam / hiding
        return Calibration(epsilon, 0.0, perturbation, lam, gradient, tolerance, error, scale, solver)
    error = left(lam)
    reach = (gradient + 2 * error) / lam
    rho = math.nan
    if perturbation == "laplace":
        scale = math.sqrt(d) * reach / epsilon
    elif perturbation == "gamma":
        scale = reach / epsilon
    else:
        rho = concentrated(epsilon, delta)
        scale = reach / math.sqrt(2 * rho)
    return Calibration(epsilon, delta, perturbation, lam, gradient, tolerance, error, scale, reach=reach, rho=rho)


def check_guarantee(epsilon: float, delta: float, perturbation: str, ridge: float) -> None:
    """Raises BadInput for a guarantee that is none, or that this noise does not give."""
    if isinstance(epsilon, bool) or not isinstance(epsilon, Real) or not epsilon >= LEAST_EPSILON:
        raise BadInput(
            f"epsilon is {epsilon!r}, which no noise gives or noise alone: give {LEAST_EPSILON:g} or more, such as 1."
        )
    if isinstance(ridge, bool) or not isinstance(ridge, Real) or not 0 < ridge < math.inf:
        raise BadInput(
            f"ridge is {ridge!r}: give one positive number that was fixed before the records were seen, such as 0.01. One "
            "that was chosen on them, by cross-validation or otherwise, is not covered by the guarantee."
        )
    if not 0 <= delta < 1:
        raise BadInput(f"delta is {delta!r}, which is no probability below 1: give one far below 1 / n, such as 1e-6.")
    if perturbation == "gaussian" and not delta > 0 and not math.isinf(epsilon):
        raise BadInput("Gaussian noise gives no guarantee with delta 0: give a delta such as 1e-6, or take laplace.")


@closed
def noise_plan(
    n: int,
    epsilon: float,
    d: int,
    *,
    weights: Weighting = "ipw",
    perturbation: Perturbation = "objective",
    ridge: float = 0.01,
    delta: float = 0.0,
    **constants: float,
) -> NoisePlan:
    """The noise that n records and d features (without the constant) leave; constants as `sensitivity` takes them.

    loss: E|b|^2 / (2 Lam n) + Lam / (2 n) with noise b on the gradient. With noise v on theta of E|v|^2 = V it is
    (c W n + Lam) V / (2 n) + Lam / (2 n); what hides the solver's error is noise on theta, too, beside b. Of the constants
    curvature is as `tightening` released it. Raises BadInput as `calibrate` and `sensitivity` do.
    """
    if d < 1:
        raise BadInput(f"d is {d}: a rule needs a feature.")
    width = d + 1
    bound = sensitivity(weights, n=n, d=width, **constants)
    made = calibrate(epsilon, bound, n=n, d=width, ridge=ridge, perturbation=perturbation, delta=delta)
    norm, square = _moments(made, width)
    bent = (CURVATURE * bound.largest * n + made.lam) / (2 * n)
    if perturbation == "objective":
        hiding = 2 * width * made.solver_scale**2  # on theta, of the solver's error
        norm += math.sqrt(hiding) * made.lam
        shift, pull = norm / made.lam, norm / GRADIENT
        loss = square / (2 * made.lam * n) + bent * hiding + made.lam / (2 * n)
    else:
        shift, pull = norm, norm * made.lam / GRADIENT
        loss = bent * square + made.lam / (2 * n)
    return NoisePlan(
        epsilon, made.delta, n, d, weights, perturbation, bound.movement, bound.largest, bound.total, made.lam / n,
        bool(made.lam > ridge * n * (1 + 1e-12)), made.scale, norm, shift, pull, loss,
    )  # fmt: skip


def _moments(made: Calibration, d: int) -> tuple[float, float]:
    """The noise's expected norm and squared norm; of Laplace and Gaussian noise the root of the latter for the former."""
    if made.perturbation in ("objective", "gamma"):
        return d * made.scale, d * (d + 1) * made.scale**2
    square = d * made.scale**2 * (2 if made.perturbation == "laplace" else 1)
    return math.sqrt(square), square


# --- the second stage -----------------------------------------------------------------------------------------------------


def weighted_fit(x: Array, a: Array, y: Array, w: Array, lam: float, tolerance: float, b: Array | None = None) -> Array:
    """The minimum of the weighted logistic loss with ridge lam (of the sum) and the linear term b. x: [n, d] -> [d]"""
    signs, mass = np.where(y < 0, -a, a), w * np.abs(y)
    d = x.shape[1]
    return minimize(logistic(x, signs, lam * np.eye(d), mass, 0.0 if b is None else b), d, tolerance)


def private_fit(x: Array, a: Array, y: Array, w: Array, made: Calibration, noise: Noise) -> Array:
    """theta under a calibration: noise in the objective, or on its minimum. y: [n] in [-1, 1] -> [d]"""
    d = x.shape[1]
    if math.isinf(made.epsilon):
        return weighted_fit(x, a, y, w, made.lam, made.tolerance)
    if made.perturbation == "objective":
        theta = weighted_fit(x, a, y, w, made.lam, made.tolerance, noise.gamma(d, made.scale))
        apart = 2 * math.sqrt(d) * made.error / made.lam
        return noise.laplace(theta, made.solver_scale, sensitivity=apart, epsilon=SOLVER_SHARE * made.epsilon)
    theta = weighted_fit(x, a, y, w, made.lam, made.tolerance)
    if made.perturbation == "gamma":
        return theta + noise.gamma(d, made.scale)
    if made.perturbation == "laplace":
        return noise.laplace(theta, made.scale, sensitivity=math.sqrt(d) * made.reach, epsilon=made.epsilon)
    return noise.gaussian(theta, made.scale, sensitivity=made.reach, rho=made.rho)


# --- the estimator --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """What everybody may know of the records before they are seen: ranges, from a protocol or an instrument, not from them.

    features: (lowest, highest) by name, in the order of the columns. outcome: the same, high is good. arms: control and
    treated.
    """

    features: Mapping[str, tuple[float, float]]
    outcome: tuple[float, float]
    arms: tuple[Any, Any] = (0, 1)

    @classmethod
    def read(cls, given: Any) -> Bounds:
        """From a mapping with features (by name, or a list in the columns' order), outcome, arms if not 0 and 1, and source.

        Raises BadInput for what is no such mapping, for other names in it, and for a range that is empty or infinite.
        """
        if isinstance(given, Bounds):
            return given
        if not isinstance(given, Mapping) or "features" not in given or "outcome" not in given:
            raise BadInput(
                f"bounds are {given!r:.60}: give public ranges, {{'features': {{'age': [18, 90]}}, 'outcome': [0, 100]}}. "
                "Ranges that are taken from the records are no public ones."
            )
        if unknown := [name for name in given if name not in _BOUNDS]:
            raise BadInput(f"bounds have no {unknown[0]!r}: give {', '.join(_BOUNDS)}.")
        features = given["features"]
        if isinstance(features, Sequence) and not isinstance(features, str):
            features = {f"x{place}": pair for place, pair in enumerate(features)}
        if not isinstance(features, Mapping) or not features:
            raise BadInput("bounds['features'] names no feature: give a range for each, by name.")
        ranges = {str(name): _range(f"bounds of {name!r}", pair) for name, pair in features.items()}
        arms = given.get("arms", (0, 1))
        if isinstance(arms, list | tuple):
            arms = tuple(arm.item() if isinstance(arm, np.generic) else arm for arm in arms)
        if not isinstance(arms, tuple) or len(arms) != 2 or arms[0] == arms[1]:
            raise BadInput(
                f"arms are {arms!r:.60}: a private rule chooses between two, a control and a treated one; no bound is known "
                "for more."
            )
        return cls(ranges, _range("bounds of the outcome", given["outcome"]), (arms[0], arms[1]))

    def scaled(self, features: ArrayLike) -> tuple[Array, int]:
        """Features in [-1, 1] with a constant, divided by sqrt(d + 1) so that |x| <= 1; and how many values were clipped.

        features: [n, d] -> [n, d + 1]. Raises BadInput for another width, for a data frame whose columns are not the bounds'
        in their order, and for what is no number.
        """
        names, own = [str(name) for name in getattr(features, "columns", ())], list(self.features)
        if names and names != own and own != [f"x{place}" for place in range(len(own))]:
            raise BadInput(f"the columns are {names!r:.80}, and the bounds name {own!r:.80}: give table[{own!r:.80}].")
        try:
            given = np.asarray(features, float)
        except (TypeError, ValueError) as error:
            raise BadInput(f"the features are no table of numbers: {error}") from error
        if given.ndim != 2 or given.shape[1] != len(self.features):
            raise BadInput(f"the features have shape {given.shape}, and the bounds name {len(self.features)} columns.")
        if not np.isfinite(given).all():
            place = np.argwhere(~np.isfinite(given))[0]
            name = list(self.features)[place[1]]
            raise BadInput(f"row {place[0]} has no number as {name!r}: fill it in or leave the row out beforehand.")
        low, high = np.array(list(self.features.values())).T
        z = 2 * (given - low) / (high - low) - 1
        clipped = int((np.abs(z) > 1 + 1e-12).sum())
        joined = np.column_stack([np.ones(len(z)), np.clip(z, -1, 1)])
        return joined / math.sqrt(joined.shape[1]), clipped

    def scaled_outcome(self, outcome: ArrayLike, n: int) -> tuple[Array, int]:
        """Outcomes in [-1, 1], and how many were clipped. Raises BadInput for what is no number."""
        given = np.asarray(outcome, float)
        if given.shape != (n,) or not np.isfinite(given).all():
            raise BadInput(f"the outcome has shape {given.shape} or gaps: give one number for each of the {n} records.")
        low, high = self.outcome
        z = 2 * (given - low) / (high - low) - 1
        return np.clip(z, -1, 1), int((np.abs(z) > 1 + 1e-12).sum())

    def signs(self, treatment: ArrayLike, n: int) -> Array:
        """Arms as -1 and +1. Raises BadInput for a third one, and where one of the two has no record."""
        given = np.asarray(treatment)
        if given.shape != (n,):
            raise BadInput(f"the treatment has shape {given.shape}: give one arm for each of the {n} records.")
        own = [given == arm for arm in self.arms]
        if not (own[0] | own[1]).all():
            found = given[~(own[0] | own[1])][0]
            raise BadInput(
                f"the treatment has the arm {found!r} beside {self.arms[0]!r} and {self.arms[1]!r}: name the two in the "
                "bounds' arms and leave others out; a private rule chooses between two."
            )
        for arm, there in zip(self.arms, own, strict=True):
            if not there.any():
                raise BadInput(f"no record has the arm {arm!r}: a rule needs both.")
        return np.where(own[1], 1.0, -1.0)


def _range(name: str, pair: Any) -> tuple[float, float]:
    try:
        low, high = (float(each) for each in pair)
    except (TypeError, ValueError):
        raise BadInput(f"{name} are {pair!r:.60}: give the lowest and the highest value, such as [0, 100].") from None
    if not (low < high and 0 < 1 / (high - low) < _WIDEST):  # of an infinite range the inverse is 0
        raise BadInput(
            f"{name} are {pair!r:.60}: give a lowest value below a highest one, both finite and not so far apart."
        )
    return low, high


class DPTreatmentRule:
    """A private rule for whom to treat. Has scikit-learn's get_params and set_params; `fit` takes (X, treatment, outcome).

    econml's order is fit(Y, T, X=X): name the arguments where you come from there.

    epsilon: of the whole pipeline; inf fits without noise. bounds: as `Bounds.read` takes them. weights: see `weights`.
    kappa, weight_ridge, radius, largest_weight: public constants of the weights. bandwidth: of mmd's kernel. ridge: Lam / n.
    delta: for Gaussian noise, and for tightening: a share of epsilon that is spent on releasing the curvature of the
    propensities' likelihood, which lets ipw count on more than its ridge. random_state: None for noise that nobody can
    repeat; a seed is for tests.

    After fit: coef_ [d], intercept_ (of the features as they were given), theta_ [d + 1] (of the scaled ones), calibration_,
    sensitivity_, guarantee_, ledger_ (may be released) and private_ (may not).
    """

    @closed
    def __init__(
        self,
        *,
        epsilon: float,
        bounds: Any,
        weights: Weighting = "ipw",
        perturbation: Perturbation = "objective",
        delta: float = 0.0,
        ridge: float = 0.01,
        kappa: float = 0.2,
        weight_ridge: float = 1.0,
        radius: float = 1.0,
        largest_weight: float = 5.0,
        bandwidth: float = 0.4,
        tightening: float = 0.0,
        random_state: Any = None,
    ) -> None:
        self.epsilon = epsilon
        self.bounds = bounds
        self.weights: Weighting = weights
        self.perturbation: Perturbation = perturbation
        self.delta = delta
        self.ridge = ridge
        self.kappa = kappa
        self.weight_ridge = weight_ridge
        self.radius = radius
        self.largest_weight = largest_weight
        self.bandwidth = bandwidth
        self.tightening = tightening
        self.random_state = random_state

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name."""
        return (
            dict(vars(self)) if not hasattr(self, "theta_") else {k: v for k, v in vars(self).items() if k[-1] != "_"}
        )

    def set_params(self, **params: Any) -> DPTreatmentRule:
        """Change settings. Raises BadInput for a name that is none."""
        for name, value in params.items():
            if name not in self.get_params():
                raise BadInput(f"DPTreatmentRule has no setting {name!r}.")
            setattr(self, name, value)
        return self

    def fit(
        self, X: ArrayLike, treatment: ArrayLike, outcome: ArrayLike, *, propensity: ArrayLike | None = None
    ) -> DPTreatmentRule:
        """X: [n, d]; treatment: [n], the bounds' arms; outcome: [n], high is good; propensity: of treatment, if known.

        One record a person: the guarantee is of a record. Raises BadInput for settings, bounds or records that are none.
        """
        bounds, x, a, y, known, clipped = self._read(X, treatment, outcome, propensity)
        n, d = x.shape
        noise = Noise(self.random_state)
        spent, curvature = self._released_curvature(x, noise)
        bound = sensitivity(self.weights, n=n, d=d, curvature=curvature, **self._constants())
        made = calibrate(
            self.epsilon - spent,
            bound,
            n=n,
            d=d,
            ridge=self.ridge,
            perturbation=self.perturbation,
            delta=self.output_delta,
        )
        w = self._weights(x, a, known, bound.largest, inside=curvature > 0)
        theta = private_fit(x, a, y, w, made, noise)
        low, high = np.array(list(bounds.features.values())).T
        self.theta_, self.calibration_, self.sensitivity_ = theta, made, bound
        slopes = theta[1:] * 2 / (high - low)
        self.coef_ = slopes / math.sqrt(d)
        self.intercept_ = float((theta[0] - theta[1:].sum() - slopes @ low) / math.sqrt(d))
        self.n_features_in_ = d - 1
        self.guarantee_ = self._guarantee(made)
        self.ledger_ = self._ledger(bounds, n, curvature)
        self.private_ = self._diagnosed(bounds, x, a, w, clipped)
        return self

    def diagnose(
        self,
        X: ArrayLike,
        treatment: ArrayLike,
        outcome: ArrayLike,
        *,
        propensity: ArrayLike | None = None,
        ledger: Mapping[str, Any],
    ) -> dict[str, Any]:
        """`private_` of a rule with this ledger, from the records that it was fitted on; draws no noise."""
        bounds, x, a, _, known, clipped = self._read(X, treatment, outcome, propensity)
        largest = sensitivity(self.weights, n=len(x), d=x.shape[1], **self._constants()).largest
        w = self._weights(x, a, known, largest, inside=(ledger["released"]["curvature"] or 0.0) > 0)
        return self._diagnosed(bounds, x, a, w, clipped)

    def decision_function(self, X: ArrayLike) -> Array:
        """theta.x; treat where it is positive. X is clipped to the bounds as in fit. [n, d] -> [n]"""
        if not hasattr(self, "theta_"):
            raise BadInput("this rule is not fitted: call fit(X, treatment, outcome) first.")
        return Bounds.read(self.bounds).scaled(X)[0] @ self.theta_

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The arm to give, one of the bounds' two. [n, d] -> [n]"""
        control, treated = Bounds.read(self.bounds).arms
        return np.where(self.decision_function(X) > 0, treated, control)

    def check(
        self, X: ArrayLike, treatment: ArrayLike, outcome: ArrayLike, *, propensity: ArrayLike | None = None
    ) -> None:
        """Raises BadInput for whatever `fit` would refuse; draws no noise."""
        self._read(X, treatment, outcome, propensity)

    def public(self, bounds: Bounds, n: int) -> dict[str, Any]:
        """What the ledger takes as known to everybody."""
        return {
            "n": n,
            "d": len(bounds.features) + 1,
            "features": {name: list(pair) for name, pair in bounds.features.items()},
            "outcome": list(bounds.outcome),
            "arms": list(bounds.arms),
            "weights": self.weights,
            "perturbation": self.perturbation,
            **self._constants(),
            "bandwidth": self.bandwidth,
            "ridge": self.ridge,
        }

    @property
    def output_delta(self) -> float:
        """The part of delta that noise on the result spends."""
        return (self.delta / 2 if self.tightening else self.delta) if self.perturbation == "gaussian" else 0.0

    @property
    def whole_delta(self) -> float:
        """Of everything together."""
        return self.output_delta + (self._lower_delta() if self.tightening else 0.0)

    # --- what fit is made of ----------------------------------------------------------------------------------------------

    def _constants(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("kappa", "weight_ridge", "radius", "largest_weight")}

    def _read(
        self, X: ArrayLike, treatment: ArrayLike, outcome: ArrayLike, propensity: ArrayLike | None
    ) -> tuple[Bounds, Array, Array, Array, Array | None, dict[str, int]]:
        """What the fit works with, and how many values were clipped."""
        bounds = self._checked()
        x, clipped = bounds.scaled(X)
        n = len(x)
        sensitivity(self.weights, n=n, d=x.shape[1], **self._constants())
        y, clipped_outcomes = bounds.scaled_outcome(outcome, n)
        a = bounds.signs(treatment, n)
        counts = {"clipped_features": clipped, "clipped_outcomes": clipped_outcomes}
        return bounds, x, a, y, self._known(propensity, a), counts

    def _checked(self) -> Bounds:
        check("weights", self.weights, Weighting)
        check("perturbation", self.perturbation, Perturbation)
        check_guarantee(self.epsilon, self.delta, self.perturbation, self.ridge)
        if not 0 <= self.tightening < 1:
            raise BadInput(f"tightening is {self.tightening!r}, which is no share of epsilon below 1.")
        check_guarantee(self.epsilon * (1 - self.tightening), self.output_delta, self.perturbation, self.ridge)
        if self.tightening and (self.weights != "ipw" or not self.delta > 0 or math.isinf(self.epsilon)):
            raise BadInput("tightening needs ipw weights, a finite epsilon and a delta, which it spends.")
        if not LEAST_BANDWIDTH <= self.bandwidth < math.inf:
            raise BadInput(
                f"bandwidth is {self.bandwidth!r}: give one of {LEAST_BANDWIDTH:g} or more, fixed in advance, such as 0.4."
            )
        return Bounds.read(self.bounds)

    def _known(self, propensity: ArrayLike | None, a: Array) -> Array | None:
        if (self.weights == "known") is (propensity is None):
            raise BadInput(
                "known weights need the propensity of treatment, one number or one a record." if propensity is None
                else f"weights are {self.weights!r}, which take no propensity: take weights='known' to use those you have."
            )  # fmt: skip
        if propensity is None:
            return None
        given = np.broadcast_to(np.asarray(propensity, float), a.shape)
        if not ((given > 0) & (given < 1)).all():
            raise BadInput("a propensity lies outside (0, 1): there every record could have had either arm.")
        own = np.where(a > 0, given, 1 - given)
        if own.min() < self.kappa * (1 - 1e-12):
            raise BadInput(
                f"a propensity is below kappa, {self.kappa:g}: give the least one of the trial's design as kappa."
            )
        return own

    def _weights(self, x: Array, a: Array, known: Array | None, largest: float, *, inside: bool) -> Array:
        return np.clip(self._unclipped(x, a, known, inside), 0, largest)

    def _unclipped(self, x: Array, a: Array, known: Array | None, inside: bool) -> Array:
        if self.weights == "uniform":
            return np.ones(len(x))
        if known is not None:
            return 1 / known
        if self.weights == "ipw":
            radius = self.radius if inside else math.inf
            return stage_one.ipw(x, a, kappa=self.kappa, weight_ridge=self.weight_ridge, radius=radius)
        if self.weights == "entropy":
            return stage_one.entropy(x, a, weight_ridge=self.weight_ridge, radius=self.radius)
        return stage_one.mmd(
            x, a, weight_ridge=self.weight_ridge, largest_weight=self.largest_weight, bandwidth=self.bandwidth
        )

    @staticmethod
    def _diagnosed(bounds: Bounds, x: Array, a: Array, w: Array, clipped: Mapping[str, int]) -> dict[str, Any]:
        return {
            **clipped,
            "imbalance_before": imbalance(x[:, 1:], a, np.ones(len(x))),
            "imbalance_after": imbalance(x[:, 1:], a, w),
            "effective_sample_size": {
                str(arm): stage_one.effective_sample_size(w[a == sign])
                for arm, sign in zip(bounds.arms, (-1, 1), strict=True)
            },
            "largest_weight": float(w.max()),
        }

    def _released_curvature(self, x: Array, noise: Noise) -> tuple[float, float]:
        """What it cost of epsilon, and s'(R) g of the card: a private lower bound of the likelihood's curvature."""
        if not self.tightening:
            return 0.0, 0.0
        spent = self.tightening * self.epsilon
        blurred = rounding(len(x), x.shape[1], 1.0, 0.0)
        least = float(np.linalg.eigvalsh(x.T @ x)[0]) - blurred
        # A replaced record moves the least eigenvalue by at most 1, since |x| <= 1; rounding moves both.
        reach = 1 + 1e-6 + 2 * blurred
        drawn = noise.laplace(np.array([least]), reach / spent, sensitivity=reach, epsilon=spent)[0]
        g = drawn - reach * math.log(1 / (2 * self._lower_delta())) / spent
        slope = expit(self.radius) * expit(-self.radius)
        return spent, slope * max(g, 0.0)

    def _lower_delta(self) -> float:
        return self.delta / 2 if self.perturbation == "gaussian" else self.delta

    def _guarantee(self, made: Calibration) -> dict[str, Any]:
        safe = self.perturbation in ("laplace", "gaussian")
        return {
            "epsilon": self.epsilon,
            "delta": self.whole_delta,
            "neighbours": "one record replaced; the number of records is public",
            "seeded": self.random_state is not None,
            "floating_point": "no noise" if math.isinf(self.epsilon)
            else SEEDED if self.random_state is not None
            else SAFE if safe
            else UNSAFE,
        }  # fmt: skip

    def _ledger(self, bounds: Bounds, n: int, curvature: float) -> dict[str, Any]:
        fitted = self.epsilon * (1 - self.tightening)
        hidden = SOLVER_SHARE if self.perturbation == "objective" else 0.0
        return {
            "guarantee": self.guarantee_,
            "spent": {
                "rule": fitted * (1 - hidden),
                "solver's error": fitted * hidden,
                "curvature": self.epsilon * self.tightening if self.tightening else 0.0,
            },
            "public": self.public(bounds, n),
            "sensitivity": {**asdict(self.sensitivity_), "total": self.sensitivity_.total},
            "released": {"theta": self.theta_.tolist(), "curvature": curvature if self.tightening else None},
            "solver": {"gradient_norm": self.calibration_.tolerance, "with_rounding": self.calibration_.error},
            "assumed": [
                "features, ranges, constants, ridges and the epsilon were fixed without looking at these records",
                "a record was coded, filled in or left out by what it says itself, not by what the others say",
                *(
                    ["the propensities are those of the trial's design, not estimated from these records"]
                    if self.weights == "known"
                    else []
                ),
                "a person is one record",
                "outcomes and features outside their public ranges were clipped to them; how many is not released",
                "an error message is an answer, too: do not pass on why a fit was refused",
                *(["nobody knows the seed"] if self.random_state is not None else []),
            ],
            "not to be released": [
                "the weights, the balance they reach, the effective sample size, the counts of clipped values",
                "digests of the table or of what was computed from it without noise",
                *(["the seed, and whatever shows it"] if self.random_state is not None else []),
                "the same rule without noise, and rules fitted on the same records beyond this budget",
            ],
        }


def imbalance(x: Array, a: Array, w: Array) -> float:
    """The largest standardized difference of the arms' weighted means from those of all. x: [n, d]. Not private."""
    center, spread = x.mean(0), np.maximum(x.std(0), 1e-12)
    means = [np.average(x[a == arm], axis=0, weights=w[a == arm] + 1e-300) for arm in (-1, 1)]
    return float(max(np.abs((mean - center) / spread).max() for mean in means))
