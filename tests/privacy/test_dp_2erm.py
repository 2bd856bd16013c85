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
