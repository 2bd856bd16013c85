"""The worst mean over a KL ball: closed forms, limits, brute force, and what the dual promises."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from torch.autograd import gradcheck
from torch.testing import assert_close

from equipoise.control import robust
from equipoise.control.robust import dual_value, effective_sample_size, robust_value, worst_case_weights
from equipoise.core.errors import BadInput


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def divergence(weights):
    count = weights.shape[-1]
    return (weights * torch.log((weights * count).clamp_min(1e-300))).sum(-1)


def test_a_gaussian():
    # mu - s sqrt(2 delta) at b = s / sqrt(2 delta); samples at its quantiles leave out a little of the tails.
    n = 400_000
    grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    value, beta = robust_value(3 + 2 * math.sqrt(2) * torch.erfinv(2 * grid - 1), 0.3)
    assert float(value) == pytest.approx(3 - 2 * math.sqrt(0.6), abs=2e-4) == pytest.approx(1.4508, abs=2e-4)
    assert float(beta) == pytest.approx(2 / math.sqrt(0.6), rel=1e-3)


def test_few_samples_are_less_pessimistic():
    value, _ = robust_value(3 + 2 * draws(2000, 200), 0.3)
    assert float(value.mean()) == pytest.approx(1.461, abs=0.012) and float(value.std()) == pytest.approx(
        0.164, abs=0.012
    )


@pytest.mark.parametrize(("low", "count", "delta"), [(1, 4, 0.2), (3, 10, 0.05), (5, 7, 0.3)])
def test_two_points(low, count, delta):
    q = low / count
    values = torch.cat([torch.full((low,), -1.5), torch.full((count - low,), 2.0)]).double()
    root = brentq(
        lambda p: p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)) - delta, q, 1 - 1e-12, xtol=1e-14
    )
    value, _ = robust_value(values, delta)
    assert float(value) == pytest.approx(-1.5 * root + 2.0 * (1 - root), abs=1e-9)
    assert float(worst_case_weights(values, delta)[:low].sum()) == pytest.approx(root, abs=1e-8)


@pytest.mark.parametrize("delta", [0.01, 0.4, 1.2])
def test_the_primal_by_brute_force(delta):
    values = draws(5, seed=3)
    found = minimize(
        lambda p: p @ values.numpy(),
        np.full(5, 0.2),
        bounds=[(1e-9, 1)] * 5,
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1},
            {"type": "ineq", "fun": lambda p: delta - (p * np.log(5 * p)).sum()},
        ],
        options={"ftol": 1e-13, "maxiter": 500},
    )
    assert float(robust_value(values, delta)[0]) == pytest.approx(found.fun, abs=1e-6)


def test_limits():
    values = draws(7, 9)
    value, beta = robust_value(values, 0.0)
    assert_close(value, values.mean(-1), atol=1e-13, rtol=0)
    assert bool(beta.isinf().all())
    for delta in (math.log(9), 5.0):
        value, beta = robust_value(values, delta)
        assert bool((value == values.amin(-1)).all()) and bool((beta == 0).all())
        assert bool((worst_case_weights(values, delta).amax(-1) == 1).all())
    near, _ = robust_value(values, math.log(9) - 1e-6)
    assert_close(near, values.amin(-1), atol=1e-4, rtol=0)
    for delta in (0.0, 0.1, 10.0):
        value, beta = robust_value(torch.full((2, 4), -3.25), delta)
        assert bool((value == -3.25).all()) and bool((beta == 0).all())
    twice = torch.tensor([0.0, 0.0, 1.0, 2.0])
    assert_close(worst_case_weights(twice, math.log(2)), torch.tensor([0.5, 0.5, 0.0, 0.0]))


def test_order_shift_and_scale():
    values = draws(20, 12)
    radii = [0.0, 1e-6, 0.01, 0.3, 1.0, 2.0, 3.0]
    found = torch.stack([robust_value(values, delta)[0] for delta in radii])
    assert bool((found.diff(dim=0) <= 1e-12).all())
    assert bool((found >= values.amin(-1) - 1e-12).all()) and bool((found <= values.mean(-1) + 1e-12).all())
    for unit in (1e9, 1e-9):
        value, beta = robust_value(unit * values + 7 * unit, 0.3)
        assert_close(value / unit, found[3] + 7, rtol=1e-9, atol=1e-9)
        assert_close(beta / unit, robust_value(values, 0.3)[1], rtol=1e-6, atol=0)
    alone = torch.stack([robust_value(each, 0.3)[0] for each in values])  # a row does not depend on its neighbours
    assert_close(alone, found[3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("delta", [1e-5, 0.1, 1.0, 2.0])
def test_worst_weights_lie_on_the_ball_and_give_the_value(delta):
    values = draws(30, 40, seed=5)
    weights = worst_case_weights(values, delta)
    assert_close(divergence(weights), torch.full((30,), delta, dtype=torch.float64), rtol=1e-8, atol=1e-11)
    assert_close((weights * values).sum(-1), robust_value(values, delta)[0], rtol=1e-9, atol=1e-9)
    assert_close(weights.sum(-1), torch.ones(30, dtype=torch.float64))


@pytest.mark.parametrize("delta", [1e-5, 0.1, 0.3, 1.0])
def test_rows_that_arrive_early_wait_for_the_others(delta, monkeypatch):
    monkeypatch.setattr(robust, "STEPS", 8)
    values = torch.cat([draws(100, 32), -draws(100, 32, seed=1).exp()])
    weights = worst_case_weights(values, delta)
    assert_close(divergence(weights), torch.full((200,), delta, dtype=torch.float64), rtol=1e-8, atol=1e-11)
    # Numbers of float32 are searched less far, and the worst mean is as good.
    value, _ = robust_value(values.float(), delta)
    assert_close(value, robust_value(values.float().double(), delta)[0].float(), rtol=1e-6, atol=1e-6)


def test_any_b_is_a_lower_bound_and_one_for_all_the_best_of_constants():
    values = draws(30, 16, seed=6) * torch.linspace(0.5, 2, 30, dtype=torch.float64)[:, None]
    exact, beta = robust_value(values, 0.4)
    for factor in (1e-3, 0.5, 0.99, 1.01, 2.0, 1e3):
        bound = dual_value(values, 0.4, factor * beta)
        assert bool((bound < exact).all())
    assert_close(dual_value(values, 0.4, beta), exact)
    shared, one = robust_value(values, 0.4, exact=False)
    assert bool((shared <= exact + 1e-12).all()) and float(one.std()) < 1e-9 * float(one[0])
    grid = torch.linspace(0.2, 5, 4001, dtype=torch.float64) * float(one[0])
    means = torch.stack([dual_value(values, 0.4, each.expand(30)).mean() for each in grid])
    assert float(shared.mean()) >= float(means.max()) - 1e-12


def test_gradients_are_the_worst_weights():
    values = draws(3, 6, seed=8).requires_grad_(True)
    assert gradcheck(lambda each: robust_value(each, 0.3)[0], (values,))
    (gradient,) = torch.autograd.grad(robust_value(values, 0.3)[0].sum(), values)
    assert_close(gradient, worst_case_weights(values, 0.3), rtol=1e-6, atol=1e-9)


def test_the_number_of_samples_that_weights_rest_on():
    assert_close(effective_sample_size(torch.tensor([[0.25] * 4, [1.0, 0, 0, 0]])), torch.tensor([4.0, 1.0]))


@pytest.mark.parametrize("delta", [-0.1, math.inf, math.nan])
def test_what_is_no_radius_is_refused(delta):
    with pytest.raises(BadInput, match="radius"):
        robust_value(torch.zeros(3), delta)


@pytest.mark.parametrize("values", [torch.zeros(3, 0), torch.tensor([1.0, math.nan])])
def test_what_has_no_mean_is_refused(values):
    with pytest.raises(BadInput):
        robust_value(values, 0.1)


@pytest.mark.parametrize("values", [torch.tensor([-1e308, 1e308, 0.0], dtype=torch.float64)])
def test_values_too_far_apart_are_refused(values):
    with pytest.raises(BadInput, match="further apart"):
        robust_value(values, 0.1)


@pytest.mark.parametrize("delta", [1e-8, 1e-12, 1e-16, 1e-19, 1e-24, 1e-300])
def test_the_smallest_radii_are_a_gaussians(delta):
    # mean - s sqrt(2 delta): of higher order is 1e-4 of the difference at 1e-8.
    values = torch.arange(5.0, dtype=torch.float64)
    below = 2 - float(robust_value(values, delta)[0])
    assert below == pytest.approx(math.sqrt(4 * delta), rel=2e-4, abs=2e-15)
    value = dual_value(values.float(), delta, torch.tensor(math.sqrt(1 / delta), dtype=torch.float64))
    assert value.dtype == torch.float32 and float(value) == pytest.approx(2, abs=3 * math.sqrt(delta) + 1e-6)


def test_whole_numbers_are_values_too():
    whole = torch.tensor([[1, 2, 4], [7, 7, 7]])
    for got, wanted in zip(robust_value(whole, 0.3), robust_value(whole.double(), 0.3), strict=True):
        assert_close(got, wanted)
    assert_close(worst_case_weights(whole, 0.3), worst_case_weights(whole.double(), 0.3))


@pytest.mark.parametrize("exact", [True, False])
def test_one_sample_and_no_row(exact):
    value, beta = robust_value(torch.tensor([[5.0], [-2.0]]), 0.3, exact=exact)
    assert value.tolist() == [5.0, -2.0] and beta.tolist() == [0.0, 0.0]
    assert worst_case_weights(torch.ones(2, 1), 0.3).tolist() == [[1.0], [1.0]]
    assert robust_value(torch.zeros(0, 5), 0.3, exact=exact)[0].shape == (0,)


@pytest.mark.parametrize(("delta", "steps"), [(1e-5, 1), (0.01, 2), (0.3, 3), (1.0, 3), (2.5, 5)])
def test_few_steps_lead_to_the_ball(delta, steps, monkeypatch):
    """Halley's, from a Gaussian's optimum with the skewness: from far tails and short ones."""
    monkeypatch.setattr(robust, "STEPS", steps)
    values = torch.cat([draws(100, 32), -draws(100, 32, seed=1).exp()])
    weights = worst_case_weights(values, delta)
    assert_close(divergence(weights), torch.full((200,), delta, dtype=torch.float64), rtol=1e-8, atol=1e-14)


def test_the_dual_at_any_b_by_its_definition():
    values = torch.tensor([[1.0, 2.0, 5.0], [0.0, 0.0, 4.0]], dtype=torch.float64)
    for b in (0.5, 3.0):
        wanted = -b * torch.exp(-values / b).mean(-1).log() - b * 0.3
        assert_close(dual_value(values, 0.3, torch.tensor([b, b])), wanted)
    beta = torch.tensor([0.0, math.inf])
    assert dual_value(values, 0.3, beta).tolist() == [1.0, -math.inf]
    assert dual_value(values, 0.0, beta).tolist() == [1.0, 4 / 3]
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    assert effective_sample_size(weights).tolist() == pytest.approx([1 / 0.375, 1.0])


@pytest.mark.parametrize(("delta", "steps"), [(1e-5, 1), (0.01, 2), (0.3, 3), (2.5, 3)])
def test_few_steps_lead_to_the_b_that_is_shared(delta, steps, monkeypatch):
    """At which the divergence is delta on average."""
    monkeypatch.setattr(robust, "STEPS", steps)
    values = torch.cat([draws(100, 32), -draws(100, 32, seed=1).exp()])
    _, beta = robust_value(values, delta, exact=False)
    assert float(divergence(torch.softmax(-values / beta[:, None], -1)).mean()) == pytest.approx(delta, rel=1e-8)


def test_it_starts_with_the_skewness_of_the_samples(monkeypatch):
    """Which leaves an error of the order of delta; without it one of the root of delta would be left."""
    monkeypatch.setattr(robust, "STEPS", 0)
    values = torch.cat([draws(50, 32).exp(), -draws(50, 32, seed=1).exp()])
    assert_close(divergence(worst_case_weights(values, 1e-6)), torch.full((100,), 1e-6).double(), rtol=2e-4, atol=0)


@pytest.mark.parametrize("delta", [1e-20, 1.01e-20, 0.3, 10.0])
def test_no_more_steps_are_taken_than_are_needed(delta, monkeypatch):
    taken = []

    def counted(most):
        for place in range(most):
            taken.append(place)
            yield place

    monkeypatch.setattr(robust, "range", counted, raising=False)
    robust_value(draws(20, 12), delta)
    if delta == 1.01e-20:
        assert taken
    else:
        assert len(taken) == {1e-20: 0, 0.3: 4, 10.0: 1}[delta]
