"""The descent step by step, on networks whose slope is known."""

import math

import pytest
import torch
from torch.testing import assert_close

from equipoise.verification.attack import _inside, attack
from equipoise.verification.network import Builder


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def linear(*rows):
    """Outputs that are affine in the input: of the first margin the slope is row 0 - row 1."""
    builder, weight = Builder((len(rows[0]),)), double(*rows)
    return builder.build(builder.linear(0, weight, torch.zeros(len(rows))), "linear")


NETWORK = linear((0.0, 3.0, 0.0), (0.0, 0.0, 4.0), (1.0, 0.0, 0.0))
MARGINS = double((1.0, -1.0, 0.0), (0.0, 1.0, -1.0), (-1.0, 0.0, 1.0))
SLOPES = double((0.0, 3.0, -4.0), (-1.0, 0.0, 4.0), (1.0, -3.0, 0.0))
X, RADII = torch.randn(2, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64), double(0.5, 2.0)


def generators():
    return [torch.Generator().manual_seed(seed) for seed in (8, 9)]


def starts():
    noise = torch.stack([torch.randn(3, 3, generator=each, dtype=torch.float64) for each in generators()])
    return X[:, None] + RADII[:, None, None] / 2 * noise / noise.norm(dim=-1, keepdim=True)


def run(x=X, radii=RADII, network=NETWORK, **others):
    given = {"generator": generators(), "dtype": torch.float64, **others}
    return attack(network, x, radii, MARGINS.expand(len(x), -1, -1), **given)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
@pytest.mark.parametrize("share", [0.3, 0.1])
def test_it_goes_down_the_slope_by_falling_shares_of_the_radius(steps, share):
    """From half the radius away; so few steps do not reach the sphere, or the nearest point of the ball counts."""
    points = starts()
    for number in range(steps):
        length = share * (1 - number / (steps + 1)) * RADII[:, None, None]
        points = points - length * SLOPES / SLOPES.norm(dim=-1, keepdim=True)
        away = points - X[:, None]
        points = X[:, None] + away * (RADII[:, None, None] / away.norm(dim=-1, keepdim=True)).clamp(max=1)
    worst, found = run(steps=steps, share=share)
    assert_close(found, points, rtol=0, atol=1e-10)
    assert_close(worst, (points * SLOPES).sum(-1), rtol=0, atol=1e-9)
    assert worst.dtype == found.dtype == torch.float64 and worst.shape == (2, 3)


@pytest.mark.parametrize("unit", [1e-9, 1e-16, 1e-30, 1e12])
def test_what_is_found_does_not_depend_on_the_unit_of_the_outputs(unit):
    other = linear(*([unit * weight for weight in row] for row in ((0.0, 3.0, 0.0), (0.0, 0.0, 4.0), (1.0, 0.0, 0.0))))
    least = (X[:, None] * SLOPES).sum(-1) - RADII[:, None] * SLOPES.norm(dim=-1)
    for network, its in ((NETWORK, 1.0), (other, unit)):
        worst, _ = run(network=network, dtype=torch.float32)
        assert_close(worst / its, least, rtol=0, atol=1e-5)


def test_a_hundred_steps_of_three_tenths_in_single_precision_unless_told_otherwise():
    given = attack(NETWORK, X, RADII, MARGINS.expand(2, -1, -1), generator=generators())
    same = run(dtype=torch.float32, steps=100, share=0.3)
    assert torch.equal(given[0], same[0]) and torch.equal(given[1], same[1])
    away = (given[1] - X[:, None]).norm(dim=-1)
    assert (away <= RADII[:, None]).all() and (away > 0.999 * RADII[:, None]).all()
    # On a ball the minimum of a linear function is known.
    least = (X[:, None] * SLOPES).sum(-1) - RADII[:, None] * SLOPES.norm(dim=-1)
    assert_close(given[0], least, rtol=1e-3, atol=1e-3)


def test_one_generator_is_drawn_from_row_by_row():
    rng = torch.Generator().manual_seed(8)
    _, found = run(generator=rng, steps=0)
    again = torch.Generator().manual_seed(8)
    noise = torch.stack([torch.randn(3, 3, generator=again, dtype=torch.float64) for _ in X])
    expected = X[:, None] + RADII[:, None, None] / 2 * noise / noise.norm(dim=-1, keepdim=True)
    assert_close(found, expected, rtol=0, atol=1e-10)


def valley():
    """Outputs (|x|, 0)."""
    builder = Builder((1,))
    both = builder.relu(builder.linear(0, double((1.0,), (-1.0,)), None))
    return builder.build(builder.linear(both, double((1.0, 1.0), (0.0, 0.0)), None), "valley")


@pytest.mark.parametrize(("share", "steps", "least"), [(0.9, 1, 0.4), (1.5, 1, 0.5), (0.5, 1, 0.0), (0.375, 2, 0.125)])
def test_the_best_point_of_all_steps_counts(share, steps, least):
    """|x| from half the radius: to 0.4 on the other side, or so far that the start was better, or to the bottom."""
    worst, found = attack(
        valley(), double((0.0,)), double(1.0), double((1.0, -1.0))[None, None], generator=torch.Generator(),
        dtype=torch.float64, share=share, steps=steps,
    )  # fmt: skip
    assert worst.item() == pytest.approx(least, abs=1e-9) and abs(found.item()) == pytest.approx(least, abs=1e-9)


def test_the_nearest_point_of_ball_and_box():
    centre, radius = double((1.0, 1.0)), double((5.0,))
    points = double((4.0, 5.0), (1.0, 7.0), (2.0, 1.0), (7.0, 9.0), (1.0, 1.0))
    expected = double((4.0, 5.0), (1.0, 6.0), (2.0, 1.0), (4.0, 5.0), (1.0, 1.0))
    assert_close(_inside(points, centre, radius, None), expected)
    assert_close(_inside(points, centre, radius, (0.0, 4.5)), expected.clamp(0.0, 4.5))
    assert _inside(centre[None], centre, 0 * radius, None).isfinite().all()


def test_points_of_an_attack_lie_in_the_box():
    worst, found = run(box=(-0.25, 0.5), x=X.clamp(-0.2, 0.4), steps=20)
    assert found.min() == -0.25 and found.max() == 0.5
    assert_close(worst, (found * SLOPES).sum(-1))


def test_a_flat_network_is_attacked_without_a_slope():
    builder = Builder((3,))
    flat = builder.build(builder.linear(0, torch.zeros(3, 3), double(1.0, 2.0, 4.0)), "flat")
    worst, found = run(network=flat, steps=3)
    assert worst.tolist() == [[-1.0, -2.0, 3.0]] * 2 and found.isfinite().all()
    assert math.isclose((found[0, 0] - X[0]).norm().item(), 0.25)
