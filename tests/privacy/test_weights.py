"""The first stage: bounds of what the weights can move, and minima held to their tolerance."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.privacy import weights
from equipoise.privacy.weights import sensitivity


def rounded(n, d, most, norm):
    """The docstring's bound: a sum of n terms by n^2, a dot product of d terms by d |theta|, four units a term."""
    return 2.0**-53 * most * (4 * n**2 + 4 * n * d + n * d * norm)


@pytest.mark.parametrize(("n", "d", "kappa"), [(7, 3, 0.25), (2, 5, 0.8), (5000, 40, 0.25)])
def test_what_the_weights_can_move_is_the_cards_to_the_last_digit(n, d, kappa):
    how = {"n": n, "d": d, "kappa": kappa, "weight_ridge": 0.4}

    def is_(found, movement, largest):
        assert (found.movement, found.largest) == pytest.approx((movement, largest), rel=1e-14)
        assert found.total == pytest.approx(movement + 2 * largest, rel=1e-14)

    left = 1e-6 + rounded(n, d, 1.0, 1 / 0.4)
    for curvature, strength in ((0.0, 0.4), (-9.0, 0.4), (21.0, 0.4 + 21 / n)):
        is_(sensitivity(**how, curvature=curvature), 2 * (1 / kappa - 1) * (1 + left) / strength, 1 / kappa)
    for radius, factor in ((0.5, 1.0), (1.5, math.exp(1.5) - 1)):
        most = math.exp(radius)
        left = 1e-6 + rounded(n, d, most, radius)
        is_(sensitivity("entropy", **how, radius=radius), 2 * most * (factor + left) / 0.4, most)
    for largest, factor in ((1.5, 1.0), (4.0, 3.0)):
        left = 2 * math.sqrt(2) * 1e-6 + 2 * rounded(n, d, largest, 3e4)
        is_(sensitivity("mmd", **how, largest_weight=largest), (2 * factor + left) / 0.4, largest)
    is_(sensitivity("known", **how), 0.0, 1 / kappa)
    is_(sensitivity("uniform", **how), 0.0, 1.0)


def test_constants_are_taken_up_to_their_limits():
    right = {"kappa": 0.2, "weight_ridge": 1.0, "radius": 1.0, "largest_weight": 5.0}
    weights.check_constants(2, **right)
    with pytest.raises(BadInput, match="n is 1"):
        weights.check_constants(1, **right)
    for name, good, bad in (
        ("kappa", (1e-9, 1), (0.9e-9, math.nextafter(1, 2), math.nan)),
        ("weight_ridge", (1e-9, 1e300), (0.9e-9, float("inf"))),
        ("radius", (1e-9, 20.0), (0.0, math.nextafter(20, 21))),
        ("largest_weight", (1, 1e9), (0.999, math.nextafter(1e9, 2e9))),
    ):
        for value in good:
            weights.check_constants(9, **right | {name: value})
        for value in bad:
            with pytest.raises(BadInput, match=f"{name} is"):
                weights.check_constants(9, **right | {name: value})
    assert sensitivity("mmd", n=5000).largest == 5.0


def test_rounding_grows_with_the_square_of_the_records():
    assert weights.rounding(10, 3, 2.0, 5.0) == pytest.approx(2.0**-53 * 10 * 2 * (4 * 13 + 15), rel=1e-14)


def test_a_logistic_loss_has_its_gradient_and_its_hessian():
    """Central differences of the written loss: masses, a linear term, a ridge in every direction."""
    draw = np.random.default_rng(0)
    x, signs, mass = draw.normal(size=(9, 3)), draw.choice([-1.0, 1.0], 9), draw.uniform(0.5, 3, 9)
    ridge, linear, theta = np.diag([0.0, 1.0, 2.5]) + 0.25, np.array([0.5, -2.0, 1.0]), draw.normal(size=3)

    def loss(t):
        return (mass * np.logaddexp(0, -signs * (x @ t))).sum() + t @ ridge @ t / 2 + linear @ t

    evaluate = weights.logistic(x, signs, ridge, mass, linear)
    gradient, hessian = evaluate(theta)
    for place, step in enumerate(1e-5 * np.eye(3)):
        assert gradient[place] == pytest.approx((loss(theta + step) - loss(theta - step)) / 2e-5, rel=1e-7)
        apart = (evaluate(theta + step)[0] - evaluate(theta - step)[0]) / 2e-5
        assert hessian[place] == pytest.approx(apart, rel=1e-7)
    plain = weights.logistic(x, signs, ridge)(theta)[0]
    assert plain == pytest.approx(ridge @ theta - (signs / (1 + np.exp(signs * (x @ theta)))) @ x)


def test_a_kernel_of_rounded_distances_is_never_above_one():
    x = np.array([[0.1, 0.2, 0.3], [0.7, 0.1, 0.1]]) / 3
    assert (weights.kernel(x, x, 0.01).diagonal() <= 1.0).all() and weights.kernel(x, x, 0.01)[0, 1] == 0.5


def test_the_effective_sample_size_is_that_of_equal_weights():
    assert weights.effective_sample_size(np.array([1.0, 2.0, 3.0])) == pytest.approx(36 / 14)
    assert weights.effective_sample_size(np.full(7, 0.25)) == pytest.approx(7.0)
    assert weights.effective_sample_size(np.zeros(3)) == 0.0


def sphere(target, bend):
    """|bend (theta - target)|^2 / 2, with its gradient and Hessian."""
    square = bend**2
    return lambda at: (square * (at - target), np.diag(square))


def test_a_minimum_is_held_in_its_ball():
    """Multipliers by hand: bend^2 (theta - target) + m theta = 0 at |theta| = radius."""
    target, bend = np.array([3.0, -4.0]), np.array([1.0, 1.0])
    assert weights.minimize(sphere(target, bend), 2, 1e-9) == pytest.approx(target)
    assert weights.minimize(sphere(target, bend), 2, 1e-9, 5.0) == pytest.approx(target)
    held = weights.minimize(sphere(target, bend), 2, 1e-9, 2.5)
    assert held == pytest.approx([1.5, -2.0], abs=1e-9) and np.linalg.norm(held) == pytest.approx(2.5, rel=1e-14)
    bent = np.array([2.0, 0.5])
    held = weights.minimize(sphere(target, bent), 2, 1e-8, 1.0)
    multiplier = (4 * 3 - 4 * held[0]) / held[0]
    assert held == pytest.approx([12 / (4 + multiplier), -1 / (0.25 + multiplier)], abs=1e-7) and multiplier > 0
    assert weights.minimize(sphere(target, bend), 2, 6.0) == pytest.approx([0.0, 0.0])  # solved where it began


def test_a_minimum_that_is_not_reached_is_no_minimum(monkeypatch):
    def steep(at):  # a gradient of one everywhere, and a Hessian that promises more
        return np.ones(2), np.eye(2)

    with pytest.raises(WorkFailed, match=r"norm is 1\.4e\+00 where the guarantee needs 1\.0e-06"):
        weights.minimize(steep, 2, 1e-6)
    calls = []

    def slow(at):  # a Hessian three times too steep: each step leaves two thirds of the gradient
        calls.append(at)
        return at - 1.0, 3 * np.eye(1)

    assert weights.minimize(slow, 1, 1e-6) == pytest.approx([1.0], abs=1e-6)
    assert len(calls) == 1 + math.ceil(math.log(1e-6) / math.log(2 / 3))
    monkeypatch.setattr(weights, "_ROUNDS", 10)
    with pytest.raises(WorkFailed, match=f"norm is {(2 / 3) ** 10:.1e}"):
        weights.minimize(slow, 1, 1e-6)


def test_a_step_that_overshoots_is_halved_until_the_gradient_falls():
    """Newton on arctan from 2 overshoots: |arctan| has to fall by a quarter of the share of the step."""
    seen = []

    def evaluate(at):
        seen.append(float(at[0]))
        return np.arctan(at + 2), np.diag(1 / (1 + (at + 2) ** 2))

    assert weights.minimize(evaluate, 1, 1e-10) == pytest.approx([-2.0], abs=1e-9)
    first = math.atan(2) * 5
    share = next(s for s in (1.0, 0.5, 0.25) if abs(math.atan(2 - s * first)) <= (1 - s / 4) * math.atan(2))
    tried = [0.0, *(-s * first for s in (1.0, 0.5, 0.25) if s >= share)]
    assert share < 1 and seen[: len(tried)] == pytest.approx(tried)


def test_inverse_propensities_are_clipped_and_held_in_their_ball():
    """One feature of 1 and all arms alike: the minimum where sigmoid(-gamma) n = n ridge gamma, or the radius."""
    x, a = np.ones((8, 1)), np.array([1.0] * 8)
    gamma = brentq(lambda g: 1 / (1 + math.exp(g)) - 0.1 * g, 0, 5)
    free = weights.ipw(x, a, kappa=0.2, weight_ridge=0.1)
    assert gamma > 1 and free == pytest.approx(np.full(8, 1 + math.exp(-gamma)), rel=1e-6)
    held = weights.ipw(x, a, kappa=0.2, weight_ridge=0.1, radius=0.5)
    assert held == pytest.approx(np.full(8, 1 + math.exp(-0.5)), rel=1e-9)
    mixed = np.array([1.0] * 7 + [-1.0])
    gamma = brentq(lambda g: 7 / (1 + math.exp(g)) - 1 / (1 + math.exp(-g)) - 8 * 0.1 * g, 0, 5)
    expected = [1 + math.exp(-gamma)] * 7 + [min(1 + math.exp(gamma), 1 / 0.3)]
    assert weights.ipw(x, mixed, kappa=0.3, weight_ridge=0.1) == pytest.approx(expected, rel=1e-6)
    assert weights.ipw(x, mixed, kappa=0.9, weight_ridge=0.1)[-1] == pytest.approx(1 / 0.9)


def test_entropy_weights_by_hand_in_one_dimension():
    """Three of an arm and one of the other, all at 1: 3 exp(e) + 4 ridge e = 4, and a ball that holds the other's."""
    x, a = np.ones((4, 1)), np.array([1.0, 1.0, 1.0, -1.0])
    eta = brentq(lambda e: 3 * math.exp(e) - 4 + 4 * 0.5 * e, -5, 5)
    other = brentq(lambda e: math.exp(e) - 4 + 4 * 0.5 * e, -5, 5)
    found = weights.entropy(x, a, weight_ridge=0.5, radius=2.0)
    assert found == pytest.approx([math.exp(eta)] * 3 + [math.exp(other)], rel=1e-5)
    held = weights.entropy(x, a, weight_ridge=0.5, radius=0.3)
    assert eta < 0.3 < other and held == pytest.approx([math.exp(eta)] * 3 + [math.exp(0.3)], rel=1e-5)
    assert held.max() <= math.exp(0.3)


def test_mmd_weights_by_hand_of_records_at_one_place():
    """A kernel of ones: m v / n - 1 + ridge (v - 1) = 0 for an arm of m among n, cut at the largest weight."""
    x, a = np.full((5, 2), 0.5), np.array([1.0, 1.0, -1.0, -1.0, -1.0])
    found = weights.mmd(x, a, weight_ridge=0.25, largest_weight=9.0, bandwidth=0.4)
    assert found == pytest.approx([1.25 / 0.65] * 2 + [1.25 / 0.85] * 3, rel=1e-4)
    steep, arms = np.full((10, 2), 0.5), np.array([1.0] * 9 + [-1.0])  # as steep as a kernel can be, but for a tenth
    found = weights.mmd(steep, arms, weight_ridge=0.05, largest_weight=9.0, bandwidth=0.4)
    assert found == pytest.approx([1.05 / 0.95] * 9 + [1.05 / 0.15], rel=1e-4)
    cut = weights.mmd(x, a, weight_ridge=0.25, largest_weight=1.5, bandwidth=0.4)
    assert cut == pytest.approx([1.5] * 2 + [1.25 / 0.85] * 3, rel=1e-4)


def test_mmd_weights_are_solved_to_their_tolerance_in_few_rounds(monkeypatch):
    """Conditions of Karush, Kuhn and Tucker at a small ridge, where a step without momentum takes ten times as many."""
    draw, rounds = np.random.default_rng(1), []
    x = draw.normal(size=(40, 3))
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)
    a, ridge, most = np.where(draw.random(40) < 1 / (1 + np.exp(-4 * x[:, 0])), 1.0, -1.0), 0.0005, 3.0
    clip = np.clip
    monkeypatch.setattr(weights.np, "clip", lambda *given: rounds.append(1) or clip(*given))
    found = weights.mmd(x, a, weight_ridge=ridge, largest_weight=most, bandwidth=0.4)
    monkeypatch.undo()
    for arm in (-1, 1):
        own = x[a == arm]
        v = found[a == arm]
        gradient = (weights.kernel(own, own, 0.4) @ v - weights.kernel(own, x, 0.4).sum(1)) / 40 + ridge * (v - 1)
        left = np.where(v <= 0, np.minimum(gradient, 0), np.where(v >= most, np.maximum(gradient, 0), gradient))
        assert np.linalg.norm(left) <= 1e-6 / math.sqrt(40) * (1 + 1e-6)
        assert v.min() >= 0 and v.max() <= most
    assert (found == most).any() and (found == 0).any()
    assert len(rounds) < 1000  # 821; with half the step some 1,200


def test_mmd_weights_that_do_not_settle_are_refused(monkeypatch):
    x, a = np.full((4, 2), 0.5), np.array([1.0, 1.0, -1.0, -1.0])
    monkeypatch.setattr(weights, "kernel", lambda one, other, bandwidth: np.full((len(one), len(other)), math.nan))
    monkeypatch.setattr(weights, "_MMD_ROUNDS", 9)
    with pytest.raises(WorkFailed, match="the mmd weights did not converge"):
        weights.mmd(x, a, weight_ridge=1.0, largest_weight=5.0, bandwidth=0.4)


def test_entropy_balancing_has_its_gradient_and_its_hessian(monkeypatch):
    """Central differences of the written loss, of each arm."""
    draw, seen = np.random.default_rng(4), []
    x, a = draw.normal(size=(12, 3)), np.array([1.0, -1.0, -1.0] * 4)
    monkeypatch.setattr(weights, "minimize", lambda evaluate, d, *how: seen.append((evaluate, d, how)) or np.zeros(d))
    assert weights.entropy(x, a, weight_ridge=0.3, radius=0.7).tolist() == [1.0] * 12
    for arm, (evaluate, d, how) in zip((-1, 1), seen, strict=True):
        assert (d, how) == (3, (1e-6, 0.7))
        own, eta = x[a == arm], draw.normal(size=3)

        def loss(e, own=own):
            return np.exp(own @ e).sum() - (x @ e).sum() + 12 * 0.3 / 2 * e @ e

        gradient, hessian = evaluate(eta)
        for place, step in enumerate(1e-5 * np.eye(3)):
            assert gradient[place] == pytest.approx((loss(eta + step) - loss(eta - step)) / 2e-5, rel=1e-6)
            assert hessian[place] == pytest.approx((evaluate(eta + step)[0] - evaluate(eta - step)[0]) / 2e-5, rel=1e-6)


def test_a_step_must_take_a_quarter_of_what_it_promises():
    """A gradient of one and a Hessian so steep that a step takes a share of it: 0.26 is enough, 0.24 never."""
    calls = []

    def steep(share):
        def evaluate(at):
            calls.append(at)
            return at - 1.0, np.eye(1) / share

        return evaluate

    assert weights.minimize(steep(0.26), 1, 1e-6) == pytest.approx([1.0], abs=1e-6)
    calls.clear()
    with pytest.raises(WorkFailed, match=r"norm is 1\.0e\+00 where the guarantee needs 1\.0e-06"):
        weights.minimize(steep(0.24), 1, 1e-6)
    assert len(calls) == 1 + 40  # halved down to 2^-39, the last above 1e-12
