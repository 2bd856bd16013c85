"""DP-2ERM against closed forms, brute force and an audit that catches too little noise."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize as scipy_minimize
from scipy.special import expit

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.privacy import dp_2erm, weights
from equipoise.privacy.dp_2erm import (
    CURVATURE,
    Bounds,
    DPTreatmentRule,
    calibrate,
    noise_plan,
    private_fit,
    weighted_fit,
)
from equipoise.privacy.noise import Noise, concentrated
from equipoise.privacy.weights import Sensitivity, sensitivity


def records(seed, n=200, d=3):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, d))
    x[:, 0] = 1
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1) * (1 + draw.random((n, 1)) * 0.3)
    a = np.where(draw.random(n) < 1 / (1 + np.exp(-3 * x[:, 1])), 1.0, -1.0)
    y = np.clip(draw.normal(size=n) * 0.5 + a * x[:, -1], -1, 1)
    return x, a, y


WAYS = {
    "ipw": (lambda x, a: weights.ipw(x, a, kappa=0.1, weight_ridge=0.5), {"kappa": 0.1, "weight_ridge": 0.5}),
    "entropy": (lambda x, a: weights.entropy(x, a, weight_ridge=0.5, radius=1.0), {"weight_ridge": 0.5}),
    "mmd": (lambda x, a: weights.mmd(x, a, weight_ridge=1.0, largest_weight=5.0, bandwidth=0.4), {}),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_replaced_record_never_moves_the_weights_beyond_the_bound(name):
    """Adversarial replacements of the card: to the other side, the other arm, a corner."""
    weigh, constants = WAYS[name]
    bound = sensitivity(name, n=80, **constants)
    worst = 0.0
    for seed in range(6):
        x, a, _ = records(seed, n=80)
        own = weigh(x, a)
        assert own.min() >= 0 and own.max() <= bound.largest * (1 + 1e-12)
        for place, x_new, a_new in ((0, -x[0], -a[0]), (1, np.array([0.0, 1.0, 0.0]), -1.0), (2, -x[2], a[2])):
            other, arms = x.copy(), a.copy()
            other[place], arms[place] = x_new, a_new
            shared = np.arange(80) != place
            worst = max(worst, float(np.abs(weigh(other, arms) - own)[shared].sum()))
    assert bound.movement / 1000 < worst <= bound.movement


def test_bounds_are_the_cards():
    assert sensitivity("ipw", n=200, kappa=0.1, weight_ridge=0.5).movement == pytest.approx(36, rel=1e-5)
    assert sensitivity("mmd", n=200).movement == pytest.approx(8, rel=1e-5)
    assert sensitivity("entropy", n=200, weight_ridge=0.5).movement == pytest.approx(18.7, abs=0.05)
    assert sensitivity("ipw", n=200, weight_ridge=4.0).total == pytest.approx(12, rel=1e-5)
    assert sensitivity("known", n=9, kappa=0.5) == Sensitivity(0.0, 2.0)
    assert sensitivity("uniform", n=9).total == 2
    with pytest.raises(BadInput, match="5,000"):
        sensitivity("mmd", n=5001)


def test_weights_are_the_minima_that_they_say():
    x, a, _ = records(3, n=60)
    n = len(x)
    found = scipy_minimize(
        lambda g: np.logaddexp(0, -a * (x @ g)).sum() + n * 0.05 / 2 * g @ g, np.zeros(3), method="BFGS", tol=1e-9
    ).x
    expected = 1 / np.maximum(1 / (1 + np.exp(-a * (x @ found))), 0.2)
    assert weights.ipw(x, a, kappa=0.2, weight_ridge=0.05) == pytest.approx(expected, abs=1e-5)
    own = x[a == 1]
    found = scipy_minimize(
        lambda e: np.exp(own @ e).sum() - (x @ e).sum() + n * 0.01 / 2 * e @ e,
        np.zeros(3),
        constraints={"type": "ineq", "fun": lambda e: 0.3**2 - e @ e},
        tol=1e-12,
    ).x
    assert np.linalg.norm(found) == pytest.approx(0.3, abs=1e-5)  # the ball is reached
    held = weights.entropy(x, a, weight_ridge=0.01, radius=0.3)
    assert held[a == 1] == pytest.approx(np.exp(own @ found), abs=1e-4)
    inner, target = weights.kernel(own, own, 0.4), weights.kernel(own, x, 0.4).sum(1)
    found = scipy_minimize(
        lambda v: v @ inner @ v / n**2 - 2 * v @ target / n**2 + 0.02 / n * ((v - 1) ** 2).sum(),
        np.ones(len(own)),
        bounds=[(0, 2.4)] * len(own),
        options={"ftol": 1e-14, "gtol": 1e-10, "maxiter": 5000, "maxfun": 10**6},
    ).x
    made = weights.mmd(x, a, weight_ridge=0.02, largest_weight=2.4, bandwidth=0.4)[a == 1]
    assert made == pytest.approx(found, abs=2e-3) and 0 < (made == 2.4).sum() < len(own)
    assert weights.mmd(x, a, weight_ridge=1e6, largest_weight=5, bandwidth=0.4) == pytest.approx(np.ones(n), abs=1e-5)


def test_the_kernel_is_half_a_gaussian_and_half_a_constant():
    x, z = np.array([[0.0, 0.0], [0.3, 0.4], [1.0, 0.0]]), np.array([[0.3, 0.4], [0.0, 0.0]])
    expected = [[(np.exp(-(np.hypot(*(row - other)) ** 2) / (2 * 0.25)) + 1) / 2 for other in z] for row in x]
    assert weights.kernel(x, z, 0.5) == pytest.approx(np.array(expected), abs=1e-12)


def test_entropy_weights_with_hardly_a_ridge_balance_exactly():
    x, a, _ = records(5, n=300)
    w = weights.entropy(x, a, weight_ridge=1e-9, radius=50.0)
    for arm in (-1, 1):
        own = a == arm
        assert (w[own, None] * x[own]).sum(0) == pytest.approx(x.sum(0), abs=1e-4)


@pytest.mark.parametrize("n", [3, 400])
def test_what_float64_rounds_away_is_in_the_bounds(n):
    """A long theta, nearly at right angles to the records: its products cancel, where the gradient is steepest."""
    draw = np.random.default_rng(n)
    d, ridge = 120, 1e-6
    x = draw.normal(size=(n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    made = calibrate(1.0, sensitivity("uniform", n=n, d=d), n=n, d=d, ridge=ridge, perturbation="laplace")
    theta = draw.normal(size=d)
    theta -= np.linalg.lstsq(x, x @ theta, rcond=None)[0]
    theta *= n / made.lam / np.linalg.norm(theta)

    def gradient(x, theta):
        return (expit(-(x @ theta))[:, None] * x).sum(0)

    exact = gradient(x.astype(np.longdouble), theta.astype(np.longdouble))
    apart = float(np.linalg.norm(gradient(x, theta) - exact))
    allowed = made.error - made.tolerance
    assert apart <= allowed
    assert n > 3 or apart > 4 * (n + d) * 2.0**-53 * n  # the products are what counts here, and not the sum


def test_movement_counts_the_rounding_of_many_records():
    few, many = (sensitivity("ipw", n=n, d=50, kappa=0.2, weight_ridge=1.0).movement for n in (10**3, 10**7))
    assert few == pytest.approx(8, rel=2e-6)
    assert 8 * (1 + 1e7**2 * 2.0**-53) < many < 8.5


def density_log_ratio(theta, one, other, made):
    """log of the ratio of two pipelines' densities in d dimensions, from noise and Jacobian; each: (x, a, y, w). [k, d]"""

    def log_density(x, a, y, w):
        s = np.sign(y) * a
        p = expit(-s * (theta @ x.T))
        b = (w * np.abs(y) * s * p) @ x - made.lam * theta
        bent = np.einsum("ki,ij,il->kjl", w * np.abs(y) * p * (1 - p), x, x) + made.lam * np.eye(x.shape[1])
        return -np.linalg.norm(b, axis=1) / made.scale + np.linalg.slogdet(bent)[1]

    return log_density(*one) - log_density(*other)


@pytest.mark.parametrize("name", WAYS)
def test_densities_of_the_whole_pipeline_differ_by_no_more_than_epsilon(name):
    """Estimated weights, in two dimensions, a record turned round: every weight moves, and the Hessian in all ways."""
    weigh, constants = WAYS[name]
    worst = 0.0
    for seed in range(8):
        draw = np.random.default_rng(seed)
        x, a, y = records(seed, n=12, d=2)
        other, arms, outcome = x.copy(), a.copy(), y.copy()
        y[0], outcome[0] = 1.0, 1.0
        x[0] = x[0] / np.linalg.norm(x[0])
        other[0], arms[0] = (-x[0], a[0]) if seed % 2 else (x[0], -a[0])
        made = calibrate(0.5, sensitivity(name, n=12, d=2, **constants), n=12, d=2, ridge=0.05)
        theta = np.concatenate([draw.normal(size=(400, 2)) * size for size in (0.1, 1, 10, 300)])
        pair = (x, a, y, weigh(x, a)), (other, arms, outcome, weigh(other, arms))
        worst = max(worst, float(np.abs(density_log_ratio(theta, *pair, made)).max()))
    assert 0.005 < worst <= 0.5 * (1 - dp_2erm.SOLVER_SHARE)


def test_infinite_epsilon_is_the_weighted_fit():
    x, a, y = records(7)
    w = weights.ipw(x, a, kappa=0.2, weight_ridge=1.0)
    made = calibrate(math.inf, sensitivity(n=200), n=200, d=3)
    theta = private_fit(x, a, y, w, made, Noise(0))

    def loss(t):
        return (w * np.abs(y) * np.logaddexp(0, -np.sign(y) * a * (x @ t))).sum() + 0.01 * 200 / 2 * t @ t

    assert theta == pytest.approx(scipy_minimize(loss, np.zeros(3), method="BFGS", tol=1e-9).x, abs=1e-4)


def test_known_weights_of_one_are_objective_perturbation_at_sensitivity_two():
    made = calibrate(1.0, sensitivity("known", n=1000, kappa=1.0), n=1000, d=4, ridge=0.05)
    assert made.scale == pytest.approx(2 / (0.99 - 2 * 0.25 / 50))
    raised = calibrate(1.0, sensitivity("known", n=1000, kappa=1.0), n=1000, d=4, ridge=1e-5)
    assert raised.lam == pytest.approx(2 * CURVATURE * 2 / 0.99)
    assert raised.scale == pytest.approx(2 / (0.99 / 2))


def test_the_log_determinant_moves_less_than_the_guarantee_spends():
    draw = np.random.default_rng(0)
    share = 0.0
    for _ in range(300):
        n, d, lam = 12, int(draw.integers(1, 4)), float(draw.choice([0.1, 1.0]))
        x = draw.normal(size=(n, d)) / math.sqrt(d) / 3
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)
        w, moved = draw.random(n) * 5, draw.random(n) * 5
        other = x.copy()
        other[0] = -x[0][::-1]
        total = np.abs(w - moved)[1:].sum() + 10
        theta = draw.normal(size=d)

        def log_det(x, w, theta=theta, lam=lam, d=d):
            p = 1 / (1 + np.exp(-x @ theta))
            return np.linalg.slogdet((x * (w * p * (1 - p))[:, None]).T @ x + lam * np.eye(d))[1]

        share = max(share, abs(log_det(x, w) - log_det(other, moved)) / (CURVATURE * total / lam))
    assert 0.005 < share <= 1


def noise_density(theta, x, a, y, w, made):
    """Of the minimum in one dimension: that of the noise that makes theta the minimum, times its slope."""
    p = 1 / (1 + np.exp(np.sign(y) * a * x * theta[:, None]))
    b = (w * np.abs(y) * np.sign(y) * a * x * p).sum(1) - made.lam * theta
    slope = (w * np.abs(y) * x**2 * p * (1 - p)).sum(1) + made.lam
    return -np.abs(b) / made.scale + np.log(slope)


def test_densities_of_neighbours_differ_by_no_more_than_epsilon():
    """Known weights of 5, one record turned round: in one dimension the density is closed."""
    theta = np.linspace(-60, 60, 4001)
    x, a, y = np.ones(6), np.array([1.0, 1, 1, -1, -1, 1]), np.ones(6)
    turned = np.where(np.arange(6) == 5, -a, a)
    bound = sensitivity("known", n=6, kappa=0.2)
    made = calibrate(1.0, bound, n=6, d=1, ridge=0.5)
    w = np.full(6, 5.0)
    apart = np.abs(noise_density(theta, x, a, y, w, made) - noise_density(theta, x, turned, y, w, made)).max()
    assert 0.2 < apart <= 1.0
    areas = [np.exp(noise_density(theta, x, arm, y, w, made)).sum() for arm in (a, turned)]
    assert areas[0] == pytest.approx(
        areas[1], rel=1e-2
    )  # both are densities: what is compared is a ratio of probabilities


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(1e-6, 1e-6), (1e-5, 1e-9), (1e-3, 1e-300), (0.1, 0.5), (1.0, 0.9), (1e6, 1e-6), (1e-6, 0.3)]
)
def test_every_guarantee_has_a_gaussian(epsilon, delta):
    """The analytic Gaussian's exact delta, by other formulas, is never above the one that was asked for."""
    sigma = 1 / math.sqrt(2 * concentrated(epsilon, delta))
    first = stats.norm.logcdf(1 / (2 * sigma) - epsilon * sigma)
    second = epsilon + stats.norm.logcdf(-1 / (2 * sigma) - epsilon * sigma)
    spent = first + math.log(-math.expm1(min(second - first, -1e-300))) if second < first else -math.inf
    assert spent <= math.log(delta)
    assert spent > 3 * math.log(delta) - 6  # and not far below, which would be noise for nothing


def test_gaussian_scale_agrees_with_the_formula_of_concentrated_privacy():
    rho = concentrated(1.0, 1e-6)
    alphas = 1 + np.geomspace(1e-3, 100, 200_000)
    deltas = np.exp((alphas - 1) * (alphas * rho - 1.0)) / (alphas - 1) * (1 - 1 / alphas) ** alphas
    assert deltas.min() == pytest.approx(1e-6, rel=1e-4)
    sigma = 1 / math.sqrt(2 * rho)  # the analytic Gaussian's delta at this scale is smaller: nothing was given away
    exact = stats.norm.cdf(1 / (2 * sigma) - sigma) - math.e * stats.norm.cdf(-1 / (2 * sigma) - sigma)
    assert 1e-8 < exact < 1e-6


def test_noise_has_the_moments_that_the_plan_expects():
    draws = np.array([np.linalg.norm(Noise(seed).gamma(4, 2.0)) for seed in range(4000)])
    assert draws.mean() == pytest.approx(8, abs=4 * 4 / math.sqrt(4000))
    plan = noise_plan(1000, 1.0, 3, ridge=1.0)
    assert plan.noise == pytest.approx(4 * plan.scale, rel=1e-3)
    assert plan.sensitivity == pytest.approx(18, rel=1e-5) and not plan.raised
    assert noise_plan(1000, 1.0, 3, ridge=1e-4).raised
    assert noise_plan(2000, 1.0, 3).loss < noise_plan(1000, 1.0, 3).loss


def test_plans_count_the_noise_that_hides_the_solvers_error():
    """From some million records on it is what moves the rule."""
    n = 10_000_000
    plan = noise_plan(n, 1.0, 3, ridge=1e-4)
    made = calibrate(1.0, sensitivity("ipw", n=n, d=4), n=n, d=4, ridge=1e-4)
    blur = 2 * 4 * made.solver_scale**2  # of four Laplace numbers
    assert math.sqrt(blur) > made.scale * 4 / made.lam
    assert plan.shift == pytest.approx(4 * made.scale / made.lam + math.sqrt(blur))
    assert plan.pull == pytest.approx(4 * made.scale + math.sqrt(blur) * made.lam)
    theta = (0.25 * 5 * n + made.lam) * blur / (2 * n)
    assert plan.loss == pytest.approx(20 * made.scale**2 / (2 * made.lam * n) + made.lam / (2 * n) + theta)
    assert theta > 0.5 * plan.loss


def test_columns_of_a_frame_are_the_bounds_in_their_order():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"sex": [0.0, 1.0], "age": [20.0, 80.0]})
    bounds = Bounds.read({"features": {"age": [18, 90], "sex": [0, 1]}, "outcome": [0, 1]})
    with pytest.raises(BadInput, match=r"give table\[\['age', 'sex'\]\]"):
        bounds.scaled(frame)
    assert (bounds.scaled(frame[["age", "sex"]])[0] == bounds.scaled([[20, 0], [80, 1]])[0]).all()
    Bounds.read({"features": [[0, 1], [18, 90]], "outcome": [0, 1]}).scaled(frame)


@pytest.mark.parametrize("arms", [None, 5, "01", [1]])
def test_arms_are_a_list_of_two(arms):
    with pytest.raises(BadInput, match="chooses between two"):
        Bounds.read({"features": {"age": [18, 90]}, "outcome": [0, 1], "arms": arms})
    taken = Bounds.read({"features": {"age": [18, 90]}, "outcome": [0, 1], "arms": list(np.array([3, 4]))}).arms
    assert taken == (3, 4) and type(taken[0]) is int


def test_plan_bounds_the_loss_that_noise_really_costs():
    x, a, y = records(1, n=400)
    y = np.where(y < 0, -1.0, 1.0)
    bound = sensitivity("uniform", n=400)
    for perturbation in ("objective", "gamma"):
        made = calibrate(2.0, bound, n=400, d=3, ridge=0.02, perturbation=perturbation)

        def loss(theta):
            return np.logaddexp(0, -np.sign(y) * a * (x @ theta)).mean()

        best = weighted_fit(x, a, y, np.ones(400), 1e-3, 1e-6)
        best /= max(np.linalg.norm(best), 1)
        got = np.mean([loss(private_fit(x, a, y, np.ones(400), made, Noise(seed))) for seed in range(40)])
        plan = noise_plan(400, 2.0, 2, weights="uniform", ridge=0.02, perturbation=perturbation)
        assert got - loss(best) <= plan.loss


def test_twice_the_records_halve_the_shift():
    shifts = []
    for n in (2000, 8000):
        x, a, y = records(11, n=n)
        made = calibrate(1.0, sensitivity("uniform", n=n), n=n, d=3, ridge=0.1)
        exact = weighted_fit(x, a, y, np.ones(n), made.lam, 1e-6)
        shifts.append(
            np.mean([np.linalg.norm(private_fit(x, a, y, np.ones(n), made, Noise(s)) - exact) for s in range(60)])
        )
    assert shifts[0] / shifts[1] == pytest.approx(4, rel=0.35)


def epsilon_seen(scale_factor, runs, *, epsilon=1.0):
    """A lower bound of epsilon (Clopper-Pearson, 95 %) from reruns on a worst pair: d = 1, known weights of 5, Lam large."""
    bound = sensitivity("known", n=4, kappa=0.2)
    lam = 40 * CURVATURE * bound.total / epsilon
    made = calibrate(epsilon, bound, n=4, d=1, ridge=lam / 4)
    x, y, w = np.ones((4, 1)), np.ones(4), np.full(4, 5.0)
    pair = np.array([1.0, -1, 1, 1]), np.array([1.0, -1, 1, -1])
    draws = []
    for place, a in enumerate(pair):
        noise = np.random.default_rng(place)
        b = noise.laplace(0, scale_factor * made.scale, runs)
        draws.append(np.array([weighted_fit(x, a, y, w, made.lam, 1e-6, np.array([each]))[0] for each in b]))
    return audited(*draws)


def audited(first, second):
    cut = np.median(first)
    return seen((first > cut).sum(), len(first), (second > cut).sum(), len(second))


def seen(hits, of, others, of_others):
    least = stats.beta.ppf(0.025, hits, of - hits + 1)
    most = stats.beta.ppf(0.975, others + 1, of_others - others)
    return math.log(least / most)


@pytest.mark.slow
def test_audit_of_the_whole_pipeline():
    """The worst gradients of this pair differ by W and not by 2 W: half the noise is private here, a quarter is not."""
    assert epsilon_seen(1.0, 2000) < 1.0
    assert epsilon_seen(0.5, 2000) < 1.0 + 1e-9
    assert epsilon_seen(0.25, 2000) > 1.0


def test_audit_catches_half_the_noise_of_the_mechanism():
    """The Gamma noise at its exact sensitivity; in one dimension it is Laplace noise."""
    draws = {}
    for factor in (1.0, 0.5):
        noise = Noise(3)
        first = np.array([noise.gamma(1, factor * 2.0)[0] for _ in range(2000)])
        second = np.array([noise.gamma(1, factor * 2.0)[0] for _ in range(2000)]) - 2.0
        draws[factor] = audited(first, second)
    assert draws[1.0] < 1.0 < draws[0.5]


def table(n=300, seed=0):
    draw = np.random.default_rng(seed)
    X = np.column_stack([draw.uniform(20, 80, n), draw.integers(0, 2, n)]).astype(float)
    treatment = (draw.random(n) < 0.5).astype(int)
    outcome = 50 + (X[:, 0] - 50) * (2 * treatment - 1) + draw.normal(size=n)
    return X, treatment, outcome


BOUNDS = {"features": {"age": (20, 80), "sex": (0, 1)}, "outcome": (0, 100)}


def test_gaussian_noise_of_a_seed_is_about_the_values_in_every_coordinate():
    values, scale = np.array([3.0, -2.0, 10.0]), 0.5
    drawn = np.array([Noise(seed).gaussian(values, scale, sensitivity=1.0, rho=2.0) for seed in range(3000)])
    assert drawn.shape == (3000, 3)
    assert drawn.mean(0) == pytest.approx(values, abs=4 * scale / math.sqrt(3000))
    assert drawn.std(0) == pytest.approx([scale] * 3, rel=0.06)
    assert np.corrcoef(drawn.T)[np.triu_indices(3, 1)] == pytest.approx([0.0] * 3, abs=0.08)
    # Of a Gaussian's draws two in three lie within one standard deviation; of Laplace's with this spread three in four.
    assert (np.abs(drawn - values) < scale).mean() == pytest.approx(0.683, abs=0.02)


def test_settings_of_a_rule_are_changed_by_their_names():
    rule = DPTreatmentRule(epsilon=1.0, bounds=BOUNDS, weights="known")
    assert rule.set_params(epsilon=2.5, ridge=0.125, random_state=3) is rule
    assert (rule.epsilon, rule.ridge, rule.random_state) == (2.5, 0.125, 3)
    before = rule.get_params()
    assert before["epsilon"] == 2.5 and before["weights"] == "known"
    with pytest.raises(BadInput, match="no setting 'epsilom'"):
        rule.set_params(ridge=0.5, epsilom=1.0)
    assert not hasattr(rule, "epsilom") and rule.set_params() is rule
    X, treatment, outcome = table(60)
    fitted = rule.fit(X, treatment, outcome, propensity=0.5)
    assert fitted.get_params() == before | {"ridge": rule.ridge}  # what was fitted is no setting
    with pytest.raises(BadInput, match="no setting 'theta_'"):
        fitted.set_params(theta_=[0.0])


@pytest.mark.parametrize("way", ["ipw", "entropy", "mmd", "uniform", "known"])
def test_rule_learns_whom_to_treat(way):
    X, treatment, outcome = table()
    propensity = {"propensity": 0.5} if way == "known" else {}
    rule = DPTreatmentRule(epsilon=math.inf, bounds=BOUNDS, weights=way).fit(X, treatment, outcome, **propensity)
    assert ((rule.predict(X) == 1) == (X[:, 0] > 50)).mean() > 0.9
    assert X @ rule.coef_ + rule.intercept_ == pytest.approx(rule.decision_function(X), abs=1e-9)


def test_rule_with_a_seed_repeats_itself_and_says_what_that_means():
    X, treatment, outcome = table()
    first, again, other = (
        DPTreatmentRule(epsilon=1.0, bounds=BOUNDS, random_state=seed).fit(X, treatment, outcome) for seed in (1, 1, 2)
    )
    assert (first.theta_ == again.theta_).all() and (first.theta_ != other.theta_).all()
    assert "seed" in first.guarantee_["floating_point"]
    assert sum(first.ledger_["spent"].values()) == pytest.approx(1.0)
    assert first.get_params() == DPTreatmentRule(epsilon=1.0, bounds=BOUNDS, random_state=1).get_params()


@pytest.mark.parametrize(
    ("perturbation", "said"), [("laplace", "OpenDP"), ("gaussian", "OpenDP"), ("gamma", "not"), ("objective", "not")]
)
def test_noise_of_opendp_is_called_safe_and_other_noise_is_not(perturbation, said):
    pytest.importorskip("opendp")
    X, treatment, outcome = table()
    rule = DPTreatmentRule(epsilon=1.0, bounds=BOUNDS, perturbation=perturbation, delta=1e-6 * (said == "OpenDP"))
    rule.fit(X, treatment, outcome)
    first = rule.theta_
    assert said in rule.guarantee_["floating_point"]
    assert (rule.fit(X, treatment, outcome).theta_ != first).all()


def test_the_released_curvature_is_above_the_true_one_as_often_as_delta_says():
    X, _, _ = table(400)
    rule = DPTreatmentRule(epsilon=1.0, bounds=BOUNDS, tightening=0.5, delta=0.2, radius=1.0)
    x, _ = rule._checked().scaled(X)
    least = np.linalg.eigvalsh(x.T @ x)[0] * expit(1.0) * expit(-1.0)
    assert least > 5  # far from where the release is cut at 0
    above = 0
    for seed in range(1500):
        spent, curvature = rule._released_curvature(x, Noise(seed))
        above += curvature > least
    assert spent == 0.5 and above / 1500 == pytest.approx(0.2, abs=0.04)


def test_a_curvature_bounds_the_movement_that_a_ridge_alone_would_not():
    """The strong convexity of one of two neighbours suffices."""
    radius, ridge, kappa, worst = 0.5, 1e-4, 0.1, 0.0
    for seed in range(6):
        x, a, _ = records(seed, n=80)
        curvature = expit(radius) * expit(-radius) * np.linalg.eigvalsh(x.T @ x)[0]
        bound = sensitivity("ipw", n=80, d=3, kappa=kappa, weight_ridge=ridge, curvature=curvature)
        assert bound.movement < sensitivity("ipw", n=80, d=3, kappa=kappa, weight_ridge=ridge).movement / 50
        own = weights.ipw(x, a, kappa=kappa, weight_ridge=ridge, radius=radius)
        for place, x_new, a_new in ((0, -x[0], -a[0]), (1, np.array([0.0, 1.0, 0.0]), -1.0), (2, -x[2], a[2])):
            other, arms = x.copy(), a.copy()
            other[place], arms[place] = x_new, a_new
            moved = np.abs(weights.ipw(other, arms, kappa=kappa, weight_ridge=ridge, radius=radius) - own)
            worst = max(worst, float(moved[np.arange(80) != place].sum()) / bound.movement)
    assert 0.003 < worst <= 1


def test_opendp_counts_no_more_than_is_stated():
    """To the last digit, whatever the division that made the scale."""
    pytest.importorskip("opendp")
    draw, noise = np.random.default_rng(0), Noise()
    for reach, epsilon in draw.uniform(1e-6, 3, (40, 2)):
        noise.laplace(np.zeros(2), reach / epsilon, sensitivity=reach, epsilon=epsilon)
        noise.gaussian(np.zeros(2), reach / math.sqrt(2 * epsilon), sensitivity=reach, rho=epsilon)
    with pytest.raises(WorkFailed, match="nothing was released"):
        noise.laplace(np.zeros(2), 1.0, sensitivity=1 + 1e-9, epsilon=1.0)


def test_tightening_spends_from_the_budget_and_lessens_the_movement():
    X, treatment, outcome = table(3000)
    plain = DPTreatmentRule(epsilon=2.0, bounds=BOUNDS, weight_ridge=0.1, random_state=0)
    tight = DPTreatmentRule(epsilon=2.0, bounds=BOUNDS, weight_ridge=0.1, random_state=0, tightening=0.2, delta=1e-6)
    plain.fit(X, treatment, outcome)
    tight.fit(X, treatment, outcome)
    assert tight.sensitivity_.movement < plain.sensitivity_.movement
    assert tight.guarantee_["delta"] == 1e-6 and tight.calibration_.epsilon == pytest.approx(1.6)
    assert sum(tight.ledger_["spent"].values()) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("changed", "records", "said"),
    [
        ({"epsilon": 0}, {}, "epsilon is 0"),
        ({"epsilon": float("nan")}, {}, "epsilon is nan"),
        ({"bounds": "data"}, {}, "no public ones"),
        ({"bounds": {**BOUNDS, "outcome": (5, 5)}}, {}, "below a highest"),
        ({"bounds": {**BOUNDS, "outcome": (-1e308, 1e308)}}, {}, "not so far apart"),
        ({"bounds": {**BOUNDS, "outcome": (0, 5e-324)}}, {}, "not so far apart"),
        ({"bounds": {**BOUNDS, "arms": (0, 1, 2)}}, {}, "no bound is known for more"),
        ({"bounds": {**BOUNDS, "Arms": (1, 0)}}, {}, "bounds have no 'Arms'"),
        ({"ridge": "cv"}, {}, "cross-validation"),
        ({"ridge": [0.1, 1]}, {}, "cross-validation"),
        ({"weights": "exact"}, {}, "weights is 'exact'"),
        ({"weights": "known"}, {}, "need the propensity"),
        ({"perturbation": "gaussian"}, {}, "delta 0"),
        ({"tightening": 0.5}, {}, "needs ipw weights"),
        ({"weight_ridge": 0.0}, {}, "without a bound"),
        ({"kappa": 0.0}, {}, "kappa is 0"),
        ({"kappa": 1e-300}, {}, "kappa is 1e-300"),
        ({"weight_ridge": 1e-300}, {}, "1e-09 or more"),
        ({"weights": "entropy", "radius": 700.0}, {}, "20 at most"),
        ({"weights": "mmd", "bandwidth": 1e-4}, {}, "0.01 or more"),
        ({"epsilon": 1.5e-6, "tightening": 0.5, "delta": 1e-6}, {}, "epsilon is 7.5e-07"),
        ({}, {"treatment": np.zeros(300)}, "no record has the arm 1"),
        ({}, {"treatment": np.arange(300) % 3}, "chooses between two"),
        ({}, {"outcome": np.full(300, np.nan)}, "gaps"),
        ({}, {"X": np.full((300, 2), np.nan)}, "no number as 'age'"),
        ({}, {"X": np.zeros((300, 3))}, "name 2 columns"),
    ],
)
def test_wrong_requests_are_refused(changed, records, said):
    X, treatment, outcome = table()
    given = {"X": X, "treatment": treatment, "outcome": outcome} | records
    with pytest.raises(BadInput, match=said):
        DPTreatmentRule(**{"epsilon": 1.0, "bounds": BOUNDS, "random_state": 0} | changed).fit(**given)


def test_outcomes_outside_the_bounds_are_clipped_and_counted_where_nobody_sees_it():
    X, treatment, outcome = table()
    wild = outcome.copy()
    wild[:7] = 1e6
    held = np.clip(wild, 0, 100)
    one, other = (
        DPTreatmentRule(epsilon=1.0, bounds=BOUNDS, random_state=0).fit(X, treatment, o) for o in (wild, held)
    )
    assert (one.theta_ == other.theta_).all()
    assert one.private_["clipped_outcomes"] >= 7
    assert "clipped_outcomes" not in str(one.ledger_)


def test_bounds_are_of_the_unit_that_the_data_has():
    X, treatment, outcome = table()
    scale = np.array([1e9, 1e-9])
    bounds = {"features": [(20e9, 80e9), (0, 1e-9)], "outcome": (0, 100)}
    one = DPTreatmentRule(epsilon=1.0, bounds=BOUNDS, random_state=0).fit(X, treatment, outcome)
    other = DPTreatmentRule(epsilon=1.0, bounds=bounds, random_state=0).fit(X * scale, treatment, outcome)
    assert other.theta_ == pytest.approx(one.theta_, rel=1e-6)


def test_the_ledger_names_what_a_trial_assumes():
    X, treatment, outcome = table()
    rule = DPTreatmentRule(epsilon=1.0, bounds=BOUNDS, weights="known", random_state=0)
    assumed = rule.fit(X, treatment, outcome, propensity=0.5).ledger_["assumed"]
    assert any("propensities" in line and "not estimated" in line for line in assumed)
    assert any("nobody knows the seed" in line for line in assumed)
    other = DPTreatmentRule(epsilon=1.0, bounds=BOUNDS, perturbation="gamma").fit(X, treatment, outcome).ledger_
    assert not any(
        "propensities" in line or "seed" in line for line in (*other["assumed"], *other["not to be released"])
    )


def test_public_names():
    import equipoise

    assert equipoise.privacy.DPTreatmentRule is DPTreatmentRule
    assert dp_2erm.sensitivity is sensitivity


# --- numbers of the card, written out ------------------------------------------------------------------------------------


def rounded(n, d, most, norm):
    """The docstring's bound: a sum of n terms by n^2, a dot product of d terms by d |theta|, four units a term."""
    return 2.0**-53 * most * (4 * n**2 + 4 * n * d + n * d * norm)


BOUND = Sensitivity(3.0, 4.0)  # Delta = 3 + 2 * 4


def left_over(n, d, lam, push=0.0):
    """Of a gradient whose sensitivity is 11: what the solver leaves, and float64's rounding at a minimum."""
    return 11e-6 + rounded(n, d, 4.0, (4.0 * n + push) / lam) + 4 * 2.0**-53 * push


@pytest.mark.parametrize(("n", "ridge"), [(40, 0.5), (40, 0.01)])
def test_a_calibration_is_the_cards(n, ridge):
    d, lam = 3, ridge * n
    how = {"n": n, "d": d, "ridge": ridge}
    common = {"delta": 0.0, "gradient": 11.0, "tolerance": 11e-6}

    def is_(made, **expected):
        held = {name: getattr(made, name) for name in (*common, *expected)}
        assert held == pytest.approx(common | expected, rel=1e-13, abs=0)

    is_(calibrate(math.inf, BOUND, **how, perturbation="laplace"), lam=lam, error=left_over(n, d, lam), scale=0.0)
    whole = 0.99 * 2.0  # without what hides the solver's error
    raised = 0.25 * 11 / lam > whole / 2
    assert raised is (ridge == 0.01)
    lam_objective = 2 * 0.25 * 11 / whole if raised else lam
    scale = 11 / (whole - 0.25 * 11 / lam_objective)
    error = left_over(n, d, lam_objective, scale * (1.4 * d + 100))
    made = calibrate(2.0, BOUND, **how)
    is_(made, lam=lam_objective, scale=scale, error=error)
    is_(made, solver_scale=2 * math.sqrt(3) * error / lam_objective / (0.01 * 2.0))
    assert math.isnan(made.reach) and math.isnan(made.rho)
    error = left_over(n, d, lam)
    reach = (11 + 2 * error) / lam
    for kind, scale in {"laplace": math.sqrt(3) * reach / 2.0, "gamma": reach / 2.0}.items():
        made = calibrate(2.0, BOUND, **how, perturbation=kind)
        is_(made, lam=lam, error=error, scale=scale, reach=reach, solver_scale=0.0)
        assert math.isnan(made.rho)
    made = calibrate(2.0, BOUND, **how, perturbation="gaussian", delta=1e-5)
    rho = concentrated(2.0, 1e-5)
    is_(made, delta=1e-5, scale=reach / math.sqrt(2 * rho), reach=reach, rho=rho, lam=lam, error=error)


def test_where_half_of_epsilon_is_left_the_ridge_is_not_raised():
    """At c Delta / Lam = eps' / 2 both ways are the same; a little below Lam is raised to it."""
    least = 2 * 0.25 * 11 / 0.99
    for ridge, lam in ((least * 1.001, least * 1.001), (least * 0.999, least)):
        assert calibrate(1.0, BOUND, n=10, d=2, ridge=ridge / 10).lam == pytest.approx(lam, rel=1e-12)


@pytest.mark.parametrize(("perturbation", "share"), [("objective", 0.3), ("laplace", 1), ("gamma", 1), ("gaussian", 1)])
def test_a_plan_is_the_arithmetic_of_its_docstring(perturbation, share):
    """At a ridge of 0.3 objective noise has to raise it; E|b| and E|b|^2 from the moments of each noise."""
    n, d, ridge, delta = 30, 4, 0.3, 1e-4 * (perturbation == "gaussian")
    how = {"ridge": ridge, "perturbation": perturbation, "delta": delta}
    plan = noise_plan(n, 0.8, d - 1, weights="known", kappa=0.4, **how)
    made = calibrate(0.8, Sensitivity(0.0, 2.5), n=n, d=d, **how)
    scale, lam = made.scale, made.lam
    norm, square = {
        "objective": (4 * scale, 20 * scale**2),  # Gamma(4): mean 4, mean square 4 + 16
        "gamma": (4 * scale, 20 * scale**2),
        "laplace": (math.sqrt(8) * scale, 8 * scale**2),
        "gaussian": (2 * scale, 4 * scale**2),
    }[perturbation]
    bent, flat = (0.25 * 2.5 * n + lam) / (2 * n), lam / (2 * n)
    if perturbation == "objective":
        hiding = 8 * made.solver_scale**2
        norm += math.sqrt(hiding) * lam
        shift, pull, loss = norm / lam, norm, square / (2 * lam * n) + bent * hiding + flat
    else:
        shift, pull, loss = norm, norm * lam, bent * square + flat
    found = (plan.noise, plan.shift, plan.pull, plan.loss, plan.scale, plan.ridge)
    assert found == pytest.approx((norm, shift, pull, loss, scale, lam / n), rel=1e-12)
    assert (plan.movement, plan.largest, plan.sensitivity) == (0.0, 2.5, 5.0) and plan.delta == delta
    assert plan.raised is False and plan.ridge == pytest.approx(0.3)
    raised = noise_plan(n, 0.8, d - 1, weights="known", kappa=0.4, **how | {"ridge": 0.1})
    assert raised.raised is (perturbation == "objective")  # to 0.105: hardly
    assert raised.ridge == pytest.approx(2 * 0.25 * 5 / (0.99 * 0.8) / 30 if raised.raised else 0.1)
    with pytest.raises(BadInput, match="d is 0"):
        noise_plan(n, 0.8, 0)
    assert noise_plan(2, 0.8, 1).d == 1


def test_a_guarantee_is_checked_at_its_limits():
    dp_2erm.check_guarantee(1e-6, 0, "laplace", 1e-300)
    dp_2erm.check_guarantee(np.float64(1), 0.999, "gaussian", np.float32(1))
    dp_2erm.check_guarantee(math.inf, 0.0, "gaussian", 1)
    for epsilon in (True, "1", 0.99e-6, None):
        with pytest.raises(BadInput, match="epsilon is"):
            dp_2erm.check_guarantee(epsilon, 0.0, "laplace", 0.1)
    for ridge in (True, "1", 0, -1.0, math.inf, math.nan):
        with pytest.raises(BadInput, match="ridge is"):
            dp_2erm.check_guarantee(1.0, 0.0, "laplace", ridge)
    for delta in (-1e-9, 1, math.nan):
        with pytest.raises(BadInput, match="delta is"):
            dp_2erm.check_guarantee(1.0, delta, "laplace", 0.1)
    with pytest.raises(BadInput, match="delta 0"):
        dp_2erm.check_guarantee(1.0, 0.0, "gaussian", 0.1)


class Silent(Noise):
    """Adds nothing, and keeps what it was asked for."""

    def __init__(self, draw=0.0):
        super().__init__(0)
        self.asked, self.draw = [], draw

    def gamma(self, d, scale):
        self.asked.append(("gamma", d, scale))
        return np.full(d, self.draw)

    def laplace(self, values, scale, *, sensitivity, epsilon):
        self.asked.append(("laplace", scale, sensitivity, epsilon))
        return values + self.draw

    def gaussian(self, values, scale, *, sensitivity, rho):
        self.asked.append(("gaussian", scale, sensitivity, rho))
        return values + self.draw


@pytest.mark.parametrize("perturbation", ["objective", "laplace", "gamma", "gaussian"])
def test_each_noise_is_asked_for_as_it_was_calibrated(perturbation):
    x, a, y = records(2, n=30)
    y[4] = 0.0
    w = np.linspace(0.5, 2.5, 30)
    made = calibrate(
        2.0,
        Sensitivity(0.0, 2.5),
        n=30,
        d=3,
        ridge=0.2,
        perturbation=perturbation,
        delta=1e-3 * (perturbation[:2] == "ga"),
    )
    noise = Silent(0.25)
    theta = private_fit(x, a, y, w, made, noise)

    def loss(t, b=0.0):
        return (w * np.abs(y) * np.logaddexp(0, -np.sign(y) * a * (x @ t))).sum() + made.lam / 2 * t @ t + b * t.sum()

    inside = 0.25 if perturbation == "objective" else 0.0
    best = scipy_minimize(loss, np.zeros(3), args=(inside,), method="BFGS", tol=1e-10).x
    assert theta == pytest.approx(best + 0.25, abs=1e-5)
    apart = 2 * math.sqrt(3) * made.error / made.lam
    assert (
        noise.asked
        == {
            "objective": [("gamma", 3, made.scale), ("laplace", made.solver_scale, pytest.approx(apart), 0.02)],
            "laplace": [("laplace", made.scale, pytest.approx(math.sqrt(3) * made.reach), 2.0)],
            "gamma": [("gamma", 3, made.scale)],
            "gaussian": [("gaussian", made.scale, made.reach, made.rho)],
        }[perturbation]
    )


def test_features_are_scaled_into_the_unit_ball_and_counted_where_clipped():
    bounds = Bounds.read({"features": {"age": [20, 80], "sex": [-1, 3]}, "outcome": [10, 30], "arms": ["old", "new"]})
    given = [[20, 3], [80, -1], [50, 1], [81, 1], [35, 3.5], [19, -5], [80 + 1e-13, 1]]
    x, clipped = bounds.scaled(given)
    expected = [[1, -1, 1], [1, 1, -1], [1, 0, 0], [1, 1, 0], [1, -0.5, 1], [1, -1, -1], [1, 1, 0]]
    assert x == pytest.approx(np.array(expected) / math.sqrt(3), abs=1e-12) and clipped == 4
    y, clipped = bounds.scaled_outcome([10, 30, 25, 31, 9, 10 - 1e-13, 14], 7)
    assert y == pytest.approx([-1, 1, 0.5, 1, -1, -1, -0.6], abs=1e-12) and clipped == 2
    assert bounds.signs(["new", "old", "new"], 3).tolist() == [1.0, -1.0, 1.0]
    gaps = np.array(given, float)
    gaps[2, 1] = gaps[4, 0] = np.nan
    with pytest.raises(BadInput, match="row 2 has no number as 'sex'"):
        bounds.scaled(gaps)
    for shape in ([1.0, 2.0], np.zeros((2, 3)), np.zeros((2, 1)), np.zeros((2, 2, 2))):
        with pytest.raises(BadInput, match="the features have shape"):
            bounds.scaled(shape)
    for outcome in ([10, 20], [10, 20, math.inf], [[10, 20, 30]]):
        with pytest.raises(BadInput, match="the outcome has shape"):
            bounds.scaled_outcome(outcome, 3)
    with pytest.raises(BadInput, match="the treatment has shape"):
        bounds.signs(["new", "old"], 3)
    with pytest.raises(BadInput, match=r"has the arm .*'newer'.* beside 'old' and 'new'"):
        bounds.signs(["new", "newer", "old", "older"], 4)
    for only, lost in (("new", "old"), ("old", "new")):
        with pytest.raises(BadInput, match=f"no record has the arm '{lost}'"):
            bounds.signs([only] * 3, 3)


@pytest.mark.parametrize(
    "given",
    [
        {"features": {"age": [18, 90]}},
        {"outcome": [0, 1]},
        {"features": {}, "outcome": [0, 1]},
        {"features": "age", "outcome": [0, 1]},
        {"features": {"age": [18, math.inf]}, "outcome": [0, 1]},
        {"features": {"age": [-math.inf, 18]}, "outcome": [0, 1]},
        {"features": {"age": [18, math.nan]}, "outcome": [0, 1]},
        {"features": {"age": [90, 18]}, "outcome": [0, 1]},
        {"features": {"age": [1, 2, 3]}, "outcome": [0, 1]},
        {"features": {"age": 5}, "outcome": [0, 1]},
        {"features": {"age": [18, 90]}, "outcome": [0, 1], "arms": [1, 1]},
        None,
    ],
)
def test_what_is_no_public_range_is_refused(given):
    with pytest.raises(BadInput):
        Bounds.read(given)


def test_bounds_that_were_read_are_taken_as_they_are():
    bounds = Bounds.read({"features": [(0, 1), (5, 9)], "outcome": (0, 1), "arms": ("a", "b"), "source": "made up"})
    assert (
        bounds == Bounds({"x0": (0.0, 1.0), "x1": (5.0, 9.0)}, (0.0, 1.0), ("a", "b")) and Bounds.read(bounds) is bounds
    )


def test_what_a_fit_tells_is_what_it_did():
    X, treatment, outcome = table(200)
    X[0, 0], outcome[:3] = 81.0, 150.0
    rule = DPTreatmentRule(
        epsilon=2.0, bounds=BOUNDS, weights="mmd", weight_ridge=0.3, largest_weight=1.7, bandwidth=0.6, ridge=0.05,
        random_state=4,
    ).fit(X, treatment, outcome)  # fmt: skip
    bounds = Bounds.read(BOUNDS)
    x, a, y = bounds.scaled(X)[0], treatment * 2.0 - 1, bounds.scaled_outcome(outcome, 200)[0]
    bound = sensitivity("mmd", n=200, d=3, weight_ridge=0.3, largest_weight=1.7)
    w = weights.mmd(x, a, weight_ridge=0.3, largest_weight=1.7, bandwidth=0.6)
    made = calibrate(2.0, bound, n=200, d=3, ridge=0.05)
    assert (rule.sensitivity_, rule.calibration_, rule.n_features_in_) == (bound, made, 2)
    assert rule.theta_.tolist() == private_fit(x, a, y, w, made, Noise(4)).tolist()
    assert rule.decision_function(X).tolist() == (x @ rule.theta_).tolist()
    clipped = {"clipped_features": 1, "clipped_outcomes": int((outcome > 100).sum() + (outcome < 0).sum())}
    private = rule.private_
    assert {name: private[name] for name in clipped} == clipped and private["largest_weight"] == w.max()
    assert private["imbalance_before"] == dp_2erm.imbalance(x[:, 1:], a, np.ones(200))
    assert private["imbalance_after"] == dp_2erm.imbalance(x[:, 1:], a, w) < private["imbalance_before"]
    sizes = {str(arm): w[treatment == arm].sum() ** 2 / (w[treatment == arm] ** 2).sum() for arm in (0, 1)}
    assert private["effective_sample_size"] == pytest.approx(sizes)
    ledger = rule.ledger_
    assert rule.diagnose(X, treatment, outcome, ledger=ledger) == private
    assert ledger["spent"] == pytest.approx({"rule": 1.98, "solver's error": 0.02, "curvature": 0.0})
    assert ledger["public"] == {
        "n": 200, "d": 3, "features": {"age": [20, 80], "sex": [0, 1]}, "outcome": [0, 100], "arms": [0, 1],
        "weights": "mmd", "perturbation": "objective", "kappa": 0.2, "weight_ridge": 0.3, "radius": 1.0,
        "largest_weight": 1.7, "bandwidth": 0.6, "ridge": 0.05,
    }  # fmt: skip
    assert ledger["sensitivity"] == {"movement": bound.movement, "largest": 1.7, "total": bound.movement + 3.4}
    assert ledger["released"] == {"theta": rule.theta_.tolist(), "curvature": None}
    assert ledger["solver"] == {"gradient_norm": made.tolerance, "with_rounding": made.error}
    assert ledger["guarantee"] is rule.guarantee_ and rule.guarantee_["epsilon"] == 2.0
    assert rule.guarantee_["seeded"] is True and rule.guarantee_["delta"] == 0.0
    rule.theta_ = np.array([0.0, 1.0, 0.0])
    assert rule.predict([[50, 0], [50.1, 0], [49.9, 0]]).tolist() == [0, 1, 0]  # treated where it is above zero


def test_a_rule_that_was_not_fitted_decides_nothing():
    with pytest.raises(BadInput, match="not fitted"):
        DPTreatmentRule(epsilon=1.0, bounds=BOUNDS).predict([[50, 0]])


@pytest.mark.parametrize("way", ["ipw", "entropy", "known", "uniform"])
def test_a_rules_weights_have_its_constants(way):
    x, a, _ = records(4, n=60)
    rule = DPTreatmentRule(epsilon=1.0, bounds=BOUNDS, weights=way, kappa=0.3, weight_ridge=0.2, radius=0.4)
    known = rule._known(0.4, a) if way == "known" else None
    for inside in (False, True):
        expected = {
            "ipw": lambda radius: weights.ipw(x, a, kappa=0.3, weight_ridge=0.2, radius=radius),
            "entropy": lambda radius: weights.entropy(x, a, weight_ridge=0.2, radius=0.4),
            "known": lambda radius: np.where(a > 0, 1 / 0.4, 1 / 0.6),
            "uniform": lambda radius: np.ones(60),
        }[way](0.4 if inside else math.inf)
        assert rule._weights(x, a, known, 99.0, inside=inside).tolist() == pytest.approx(expected.tolist(), rel=1e-15)
        assert rule._weights(x, a, known, 0.75, inside=inside).max() == 0.75
    assert expected.std() > 0 or way == "uniform"


def test_propensities_are_of_ones_own_arm_and_not_below_kappa():
    rule, a = DPTreatmentRule(epsilon=1.0, bounds=BOUNDS, weights="known", kappa=0.2), np.array([1.0, -1.0, 1.0])
    assert rule._known([0.2, 0.8, 0.9], a) == pytest.approx([0.2, 0.2, 0.9])
    assert rule._known(0.2 * (1 - 1e-13), a) == pytest.approx([0.2, 0.8, 0.2])
    for given, said in (([0.19, 0.5, 0.5], "below kappa"), ([0.5, 0.81, 0.5], "below kappa"), (0.0, "outside"),
                        (1, "outside"), ([0.5, 1.0, 0.5], "outside"), (-0.1, "outside")):  # fmt: skip
        with pytest.raises(BadInput, match=said):
            rule._known(given, a)
    with pytest.raises(BadInput, match="take no propensity"):
        DPTreatmentRule(epsilon=1.0, bounds=BOUNDS)._known(0.5, a)
    assert DPTreatmentRule(epsilon=1.0, bounds=BOUNDS)._known(None, a) is None


TIGHT = {"tightening": 0.5, "delta": 1e-6}


@pytest.mark.parametrize(("changed", "said"), [
    ({"tightening": -0.01}, "no share of epsilon"), ({"tightening": 1, "delta": 0.1}, "no share of epsilon"),
    ({**TIGHT, "weights": "uniform"}, "needs ipw"), ({"tightening": 0.5}, "needs ipw"),
    ({**TIGHT, "epsilon": math.inf}, "needs ipw"), ({"bandwidth": 0.0099}, "bandwidth is"),
    ({"bandwidth": math.inf}, "bandwidth is"), ({"delta": 1.0}, "delta is"), ({"ridge": 0.0}, "ridge is"),
    ({**TIGHT, "epsilon": 1.9e-6}, "epsilon is 9.5e-07"),
])  # fmt: skip
def test_settings_are_refused_beyond_their_limits(changed, said):
    with pytest.raises(BadInput, match=said):
        DPTreatmentRule(**{"epsilon": 1.0, "bounds": BOUNDS} | changed)._checked()


def test_settings_are_taken_at_their_limits():
    for changed in (
        {"bandwidth": 0.01},
        {"tightening": 0.999, "delta": 1e-9},
        {"epsilon": 1e-6},
        {"delta": 0.5},
        {**TIGHT, "epsilon": 2e-6},
    ):
        DPTreatmentRule(**{"epsilon": 1.0, "bounds": BOUNDS} | changed)._checked()


@pytest.mark.parametrize(("perturbation", "tightening", "output", "whole", "spent"), [
    ("gaussian", 0.0, 1e-3, 1e-3, (4.0, 0.0, 0.0)),
    ("gaussian", 0.25, 5e-4, 1e-3, (3.0, 0.0, 1.0)),  # one half for each
    ("laplace", 0.25, 0.0, 1e-3, (3.0, 0.0, 1.0)),
    ("laplace", 0.0, 0.0, 0.0, (4.0, 0.0, 0.0)),
    ("objective", 0.25, 0.0, 1e-3, (2.97, 0.03, 1.0)),
])  # fmt: skip
def test_a_budget_is_shared_out(perturbation, tightening, output, whole, spent):
    X, treatment, outcome = table(60)
    rule = DPTreatmentRule(
        epsilon=4.0, bounds=BOUNDS, perturbation=perturbation, delta=1e-3, tightening=tightening, random_state=0
    ).fit(X, treatment, outcome)
    assert (rule.output_delta, rule.whole_delta, rule.guarantee_["delta"]) == (output, whole, whole)
    assert tuple(rule.ledger_["spent"].values()) == pytest.approx(spent)
    assert (rule.ledger_["released"]["curvature"] is None) is (tightening == 0)


def test_the_released_curvature_is_the_least_eigenvalue_less_a_margin():
    """By hand, of noise that adds one: reach of a replaced record and its rounding, and a quantile of the noise."""
    x, _, _ = records(6, n=400)
    rule = DPTreatmentRule(epsilon=2.0, bounds=BOUNDS, tightening=0.25, delta=1e-4, radius=0.7, perturbation="gamma")
    noise = Silent(1.0)
    spent, curvature = rule._released_curvature(x, noise)
    blurred = rounded(400, 3, 1.0, 0.0)
    reach = 1 + 1e-6 + 2 * blurred
    least = np.linalg.eigvalsh(x.T @ x).min() - blurred
    assert spent == 0.5 and noise.asked == [
        ("laplace", pytest.approx(reach / 0.5, rel=1e-13), pytest.approx(reach), 0.5)
    ]
    g = least + 1 - reach * math.log(1 / (2 * 1e-4)) / 0.5
    p = 1 / (1 + math.exp(-0.7))
    assert g > 0 and curvature == pytest.approx(p * (1 - p) * g, rel=1e-10)
    assert rule._released_curvature(x, Silent(-1e6)) == (0.5, 0.0)
    assert rule.set_params(tightening=0.0)._released_curvature(x, Silent()) == (0.0, 0.0)


def test_imbalance_is_the_largest_standardized_difference():
    x = np.array([[1.0, 7.0, 4.0], [2.0, 7.0, 0.0], [3.0, 7.0, 4.0], [6.0, 7.0, 0.0]])
    a, w = np.array([1, 1, -1, -1]), np.array([3.0, 1.0, 0.0, 2.0])
    # The first: mean 3, deviation sqrt(3.5); means 1.25 and 6. The third: mean 2, deviation 2; means 3 and 0.
    assert dp_2erm.imbalance(x, a, w) == pytest.approx(3 / math.sqrt(3.5))
    assert dp_2erm.imbalance(x[:, 1:], a, w) == pytest.approx(1.0) and dp_2erm.imbalance(x[:, 1:2], a, w) == 0.0
    assert dp_2erm.imbalance(x[:, :1], a, np.zeros(4)) == pytest.approx(1.5 / math.sqrt(3.5))  # no weight: all alike


@pytest.mark.parametrize(("seed", "perturbation", "epsilon", "said"), [
    (3, "laplace", 1.0, "drawn from a seed"), (None, "gamma", 1.0, "not floating-point safe"),
    (3, "gamma", math.inf, "no noise"),
])  # fmt: skip
def test_a_guarantee_says_what_its_noise_is(seed, perturbation, epsilon, said):
    X, treatment, outcome = table(60)
    rule = DPTreatmentRule(epsilon=epsilon, bounds=BOUNDS, perturbation=perturbation, random_state=seed)
    told = rule.fit(X, treatment, outcome).guarantee_
    assert said in told["floating_point"] and ("seed" in told["floating_point"]) is (said == "drawn from a seed")
    assert told["seeded"] is (seed is not None)


@pytest.mark.parametrize("released", [0.0, 0.25])
def test_propensities_are_held_in_a_ball_where_a_curvature_was_released(released, monkeypatch):
    """However small it is; and so again when the weights are diagnosed from the ledger."""
    X, treatment, outcome = table(200)
    treatment = (X[:, 0] > 40).astype(int)
    rule = DPTreatmentRule(
        epsilon=2.0, bounds=BOUNDS, tightening=0.25, delta=1e-4, weight_ridge=0.01, radius=0.1, random_state=0
    )
    monkeypatch.setattr(rule, "_released_curvature", lambda x, noise: (0.5, released))
    rule.fit(X, treatment, outcome)
    x, a = Bounds.read(BOUNDS).scaled(X)[0], treatment * 2.0 - 1
    held, free = (
        dp_2erm.imbalance(x[:, 1:], a, weights.ipw(x, a, kappa=0.2, weight_ridge=0.01, radius=radius))
        for radius in (0.1, math.inf)
    )
    assert held > 1.02 * free and rule.private_["imbalance_after"] == (held if released else free)
    assert rule.calibration_.epsilon == 1.5 and rule.ledger_["released"]["curvature"] == released
    assert rule.sensitivity_ == sensitivity("ipw", n=200, d=3, weight_ridge=0.01, curvature=released)
    for told, expected in ((None, free), (0.5, held), (0.0, free)):
        again = rule.diagnose(X, treatment, outcome, ledger={"released": {"curvature": told}})
        assert again["imbalance_after"] == expected


def test_a_range_may_be_as_narrow_as_a_coefficient_can_be_large():
    assert Bounds.read({"features": {"age": (0, 1.1e-300)}, "outcome": (0, 1.1e-300)}).outcome == (0.0, 1.1e-300)
    for narrow in (
        {"features": {"age": (0, 0.9e-300)}, "outcome": (0, 1)},
        {"features": {"age": (0, 1)}, "outcome": (0, 0.9e-300)},
    ):
        with pytest.raises(BadInput, match="not so far apart"):
            Bounds.read(narrow)
