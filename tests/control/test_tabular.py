"""The robust operator where everything can be counted."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from equipoise.control import tabular
from equipoise.control.robust import robust_value
from equipoise.control.tabular import TabularWorld, backup, evaluate, policy_of, soft_value, solve, worst_mean
from equipoise.core.errors import BadInput

RADII = (0.0, 0.1, 0.3, 1.0)


@pytest.fixture(scope="module")
def world():
    return TabularWorld.draw(np.random.default_rng(0))


def test_equal_probabilities_are_samples():
    values = np.random.default_rng(1).normal(size=8)
    for delta in (0.0, 0.2, 1.0, 3.0):
        value, worst = worst_mean(values, np.full(8, 1 / 8), delta)
        assert value == pytest.approx(float(robust_value(torch.tensor(values), delta)[0]), abs=1e-9)
        assert worst @ values == pytest.approx(value)


def test_the_worst_kernel_is_on_the_ball_and_keeps_what_is_impossible():
    generator = np.random.default_rng(2)
    nominal = generator.dirichlet(np.ones(6), size=(4, 3))
    nominal[..., 2] = 0
    nominal /= nominal.sum(-1, keepdims=True)
    values = generator.normal(size=6)
    values[2] = -100.0
    value, worst = worst_mean(values, nominal, 0.2)
    assert np.all(worst[..., 2] == 0) and np.all(value >= values[[0, 1, 3, 4, 5]].min())
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.nansum(worst * np.log(worst / nominal), -1)
    np.testing.assert_allclose(gap, 0.2, rtol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("delta", RADII)
def test_the_operator_contracts_and_is_monotone(world, delta, alpha):
    generator = np.random.default_rng(3)
    for _ in range(5):
        one, other = generator.normal(size=(2, 10, 3)) * 3
        apart = np.abs(backup(world, one, delta, alpha=alpha) - backup(world, other, delta, alpha=alpha)).max()
        assert apart <= world.gamma * np.abs(one - other).max() + 1e-12
        more = backup(world, one + 2.5, delta, alpha=alpha) - backup(world, one, delta, alpha=alpha)
        np.testing.assert_allclose(more, 2.5 * world.gamma, atol=1e-9)  # no further than that, and no less
        above = np.maximum(one, other)
        assert np.all(backup(world, above, delta, alpha=alpha) >= backup(world, one, delta, alpha=alpha) - 1e-12)


def test_values_fall_with_the_radius_and_stay_at_the_fixed_point(world):
    found = [solve(world, delta, tolerance=1e-6) for delta in RADII]
    for more, less in zip(found[1:], found[:-1], strict=True):
        assert np.all(more < less - 1e-4)
    for quality, delta in zip(found, RADII, strict=True):
        assert np.abs(backup(world, quality, delta) - quality).max() < 1e-6


def test_without_a_ball_it_is_the_linear_program_of_the_world(world):
    states, actions = world.reward.shape
    rows = [world.gamma * world.kernel[s, a] - np.eye(states)[s] for s in range(states) for a in range(actions)]
    found = linprog(np.ones(states), A_ub=np.array(rows), b_ub=-world.reward.ravel(), bounds=(None, None))
    np.testing.assert_allclose(soft_value(solve(world, 0.0), 0.0), found.x, atol=1e-7)


def test_the_best_policy_of_each_radius_is_the_one_trained_at_it():
    world = TabularWorld.draw(np.random.default_rng(1))
    policies = [policy_of(solve(world, delta, tolerance=1e-6)) for delta in RADII]
    table = np.array([[evaluate(world, policy, test, tolerance=1e-6).mean() for policy in policies] for test in RADII])
    assert np.all(table.max(1) <= np.diag(table) + 1e-5)
    assert np.all(np.diff(table, axis=0) < 0)  # a larger radius is a worse world for every policy


@pytest.mark.parametrize("delta", [0.0, 0.3])
def test_the_soft_policy_is_the_best_of_soft_values(world, delta):
    quality = solve(world, delta, alpha=0.3, tolerance=1e-7)
    best = evaluate(world, policy_of(quality, 0.3), delta, alpha=0.3, tolerance=1e-7)
    np.testing.assert_allclose(best, soft_value(quality, 0.3), atol=1e-6)
    generator = np.random.default_rng(4)
    for _ in range(3):
        other = generator.dirichlet(np.ones(3), size=10)
        assert np.all(evaluate(world, other, delta, alpha=0.3, tolerance=1e-3) <= best + 1e-3)


def test_what_is_no_world_is_refused():
    with pytest.raises(BadInput, match="distribution"):
        TabularWorld(np.zeros((2, 1)), np.ones((2, 1, 2)), 0.9)
    with pytest.raises(BadInput, match="gamma"):
        TabularWorld(np.zeros((2, 1)), np.full((2, 1, 2), 0.5), 1.0)
    with pytest.raises(BadInput, match="shape"):
        TabularWorld(np.zeros((2, 1)), np.ones((2, 2)), 0.9)


@pytest.mark.parametrize("delta", [1e-8, 1e-12, 1e-16, 1e-24, 1e-300])
def test_the_smallest_radii_are_a_gaussians(delta):
    value, _ = worst_mean(np.arange(5.0), np.full(5, 0.2), delta)
    assert 2 - value == pytest.approx(np.sqrt(4 * delta), rel=2e-4, abs=2e-15)


def test_probabilities_are_divided_by_their_sum():
    nearly = np.array([0.25, 0.25, 0.25, 0.250002])
    value, _ = worst_mean(np.arange(4.0), nearly, 1e-8)
    assert value == pytest.approx(worst_mean(np.arange(4.0), nearly / nearly.sum(), 1e-8)[0], abs=1e-12)


@pytest.mark.parametrize("unit", [1e9, 1e-9, 1e13])
def test_the_unit_of_rewards_does_not_matter(world, unit):
    other = TabularWorld(unit * world.reward, world.kernel, world.gamma)
    quality = solve(other, 0.3, tolerance=1e-12)
    np.testing.assert_allclose(quality / unit, solve(world, 0.3), rtol=1e-3 if unit < 1 else 1e-9)
    policy = policy_of(quality)
    np.testing.assert_allclose(evaluate(other, policy, 0.3, tolerance=0.0) / unit, quality.max(-1) / unit, rtol=2e-3)


def test_no_tolerance_is_to_rounding():
    base = TabularWorld.draw(np.random.default_rng(5), 4, 2, 0.9)
    quality = solve(base, 0.1, tolerance=0.0)
    assert np.abs(backup(base, quality, 0.1) - quality).max() < 1e-12


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda world: TabularWorld(np.full((10, 3), np.nan), world.kernel, 0.8), "finite numbers"),
        (lambda world: TabularWorld(np.full((10, 3), np.inf), world.kernel, 0.8), "finite numbers"),
        (lambda world: TabularWorld(np.zeros((0, 3)), np.zeros((0, 3, 0)), 0.8), "one or more"),
        (lambda world: worst_mean(np.full(10, np.nan), world.kernel, 0.1), "nan or infinite"),
        (lambda world: solve(world, 0.1, alpha=-1.0), "temperature"),
        (lambda world: evaluate(world, np.ones((10, 3)), 0.1), "no policy|none here"),
        (lambda world: evaluate(world, np.ones((3, 10)), 0.1), "none here"),
        (lambda world: solve(world, np.nan), "radius"),
    ],
)
def test_what_would_never_settle_is_refused(world, act, told):
    with pytest.raises(BadInput, match=told):
        act(world)


@pytest.mark.parametrize(("delta", "steps"), [(0.01, 4), (0.3, 6), (1.0, 8), (3.0, 7)])
def test_few_steps_lead_to_the_ball(delta, steps, monkeypatch):
    """Newton's, from a Gaussian's optimum: hardly more than its digits need, for two hundred kernels at once."""
    monkeypatch.setattr(tabular, "STEPS", steps)
    nominal = np.random.default_rng(1).dirichlet(np.full(8, 0.5), size=200)
    values = np.random.default_rng(2).normal(size=8)
    value, worst = worst_mean(values, nominal, delta)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.nansum(worst * np.log(worst / nominal), -1)
    least = nominal[:, values.argmin()]
    inside = delta < -np.log(least)
    assert 10 < inside.sum() < 201
    np.testing.assert_allclose(gap[inside], delta, rtol=1e-7)
    np.testing.assert_allclose(value, worst @ values, rtol=1e-8)
    np.testing.assert_allclose(value[~inside], values.min(), rtol=1e-12)


def test_the_least_values_share_what_is_left_in_proportion():
    values, nominal = np.array([3.0, -1.0, -1.0, 5.0, -9.0]), np.array([0.5, 0.1, 0.2, 0.2, 0.0])
    for delta in (-np.log(0.3) + 1e-9, 40.0):
        value, worst = worst_mean(values, nominal, delta)
        assert value == -1 and worst == pytest.approx([0, 1 / 3, 2 / 3, 0, 0], abs=1e-15)
    value, worst = worst_mean(values, nominal, -np.log(0.3) - 1e-4)
    assert value > -1 and worst[0] > 1e-9 and worst[4] == 0
    value, worst = worst_mean(np.full(3, 7.0), np.array([[0.2, 0.8, 0.0], [1.0, 1.0, 2.0]]), 0.3)
    assert value.tolist() == [7, 7] and worst == pytest.approx(np.array([[0.2, 0.8, 0], [0.25, 0.25, 0.5]]))
    value, worst = worst_mean(np.array([1.0, 4.0]), np.array([3.0, 1.0]), 0.0)
    assert value == 1.75 and worst.tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    ("tolerance", "count"),
    [(2.0**-10, 11), (2.0**-10 * 0.99, 12), (0.0, 44)],  # without one, at 2e-13 of rounding
)
def test_iteration_ends_at_the_first_move_that_is_small_enough(tolerance, count, monkeypatch):
    """One state, reward 1, gamma 1/2: the n-th value is 2 - 2^(1-n), its move 2^(1-n), of which half a move is left."""
    world, calls = TabularWorld(np.ones((1, 1)), np.ones((1, 1, 1)), 0.5), []
    inner = tabular.worst_mean
    monkeypatch.setattr(tabular, "worst_mean", lambda *given: calls.append(1) or inner(*given))
    for act in (
        lambda: solve(world, 0.0, tolerance=tolerance)[0, 0],
        lambda: evaluate(world, np.ones((1, 1)), 0.0, tolerance=tolerance)[0],
    ):
        calls.clear()
        assert act() == 2 - 2.0 ** (1 - count) and len(calls) == count


def test_soft_values_and_policies_by_hand():
    quality = np.array([[1.0, 2.0], [0.0, 0.0], [5.0, -1000.0]])
    assert soft_value(quality, 0.0).tolist() == [2, 0, 5]
    found = soft_value(quality, 2.0)
    assert found == pytest.approx([2 * np.log(np.exp(0.5) + np.exp(1)), 2 * np.log(2), 5])
    assert policy_of(quality).tolist() == [[0, 1], [1, 0], [1, 0]]  # of equals the first
    share = 1 / (1 + np.exp(0.5))
    assert policy_of(quality, 2.0) == pytest.approx(np.array([[share, 1 - share], [0.5, 0.5], [1, 0]]))
    # A policy's entropy is paid for at its temperature: of two states that stay, (r + alpha H) / (1 - gamma).
    still = TabularWorld(quality[:2], np.repeat(np.eye(2)[:, None], 2, 1), 0.75)
    policy = np.array([[0.25, 0.75], [1.0, 0.0]])
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert evaluate(still, policy, 0.3, alpha=0.5) == pytest.approx([4 * (1.75 + 0.5 * entropy), 0])
    assert evaluate(still, policy, 0.3) == pytest.approx([7, 0])
    assert evaluate(still, policy_of(quality[:2], 1e-9), 0.3) == pytest.approx([8, 0])
    for alpha in (-1e-9, np.inf, np.nan):
        for act in (lambda: soft_value(quality, alpha), lambda: policy_of(quality, alpha)):  # noqa: B023
            with pytest.raises(BadInput, match="temperature"):
                act()


def test_worlds_at_the_limits_of_what_is_one():
    sure = TabularWorld(np.array([[2.0]]), np.ones((1, 1, 1)), 0.0)
    assert solve(sure, 0.5).tolist() == [[2.0]]
    TabularWorld(np.zeros((2, 1)), np.array([[[1.0, 0.0]], [[0.0, 1.0]]]), 0.999)
    for kernel, gamma in (([[[1.2, -0.2]], [[0.0, 1.0]]], 0.5), ([[[1.0, 0.0]], [[0.0, 1.0]]], -1e-9)):
        with pytest.raises(BadInput):
            TabularWorld(np.zeros((2, 1)), np.array(kernel), gamma)
    for policy in ([[1.5, -0.5]], [[0.5, 0.4]]):
        with pytest.raises(BadInput, match="none here"):
            evaluate(TabularWorld(np.zeros((1, 2)), np.ones((1, 2, 1)), 0.5), np.array(policy), 0.1)
    drawn = TabularWorld.draw(np.random.default_rng(4), 3, 2, 0.7)
    generator = np.random.default_rng(4)
    np.testing.assert_array_equal(drawn.kernel, generator.dirichlet([1, 1, 1], size=(3, 2)))
    np.testing.assert_array_equal(drawn.reward, generator.uniform(size=(3, 2)))
    assert drawn.gamma == 0.7


@pytest.mark.parametrize(("delta", "steps"), [(1e-20, 0), (1.01e-20, None), (0.3, 4), (60.0, 1)])
def test_no_more_steps_are_taken_than_are_needed(delta, steps, monkeypatch):
    taken = []

    def counted(most):
        for place in range(most):
            taken.append(place)
            yield place

    monkeypatch.setattr(tabular, "range", counted, raising=False)
    worst_mean(np.arange(6.0), np.array([0.1, 0.2, 0.3, 0.1, 0.2, 0.1]), delta)
    assert len(taken) == steps if steps is not None else taken
