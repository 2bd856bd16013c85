"""Theorem 4.1 against closed forms, dense samples, finite differences and known gaps; the paper's worked example."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.verification import sdp_crown
from equipoise.verification.bounds import Enclosure, Search, box_offset, crown, crown_slopes, enclosures, geometry
from equipoise.verification.network import Builder
from equipoise.verification.sdp_crown import ball_box_offset, ball_offset, best_multiplier, optimize
from relu_networks import generator, random_network, samples, worked_example


def ball(centre, radius):
    centre = torch.tensor([centre], dtype=torch.float64)
    far = torch.full_like(centre, math.inf)
    return Enclosure(centre, torch.full((1, 1), radius, dtype=torch.float64), -far, far)


def row(*numbers):
    return torch.tensor([[numbers]], dtype=torch.float64)


def test_theorem_at_the_origin_has_its_closed_form_and_the_box_costs_a_root_of_n_more():
    rng = generator(0)
    c, g = torch.randn(2, 1, 1, 6, generator=rng, dtype=torch.float64)
    e = ball([0.0] * 6, 0.7)
    phi = torch.minimum(c - g, g).clamp(max=0)
    closed = -0.7 * phi.norm(dim=-1)
    assert_close(ball_offset(c, g, 0.7 * phi.norm(dim=-1), e), closed)
    assert_close(ball_box_offset(c, g, best_multiplier(c, g, e), e), closed)
    box = box_offset(c, g, Enclosure(e.centre, e.axes, e.centre - 0.7, e.centre + 0.7))
    assert_close(box, -0.7 * phi.abs().sum(-1))
    assert (box / closed).item() <= math.sqrt(6) and (box / closed).item() > 1


def test_the_known_duality_gap_of_one_active_neuron():
    e = ball([1.0], 0.5)
    best = max(
        ball_offset(row(-1.0), row(-1.0), torch.tensor([[at * 0.25]], dtype=torch.float64), e).item()
        for at in np.linspace(0.1, 2, 191)
    )
    assert best == pytest.approx(-1 / 16, abs=1e-6)
    half = torch.tensor([[0.5 * 0.25]], dtype=torch.float64)  # lambda = 1/2 in units of a radius of 1
    assert_close(ball_offset(row(-1.0), row(-1.0), half, e), torch.tensor([[-1 / 16]], dtype=torch.float64))
    boxed = Enclosure(e.centre, e.axes, e.centre - 0.5, e.centre + 0.5)
    exact = ball_box_offset(row(-1.0), row(-1.0), best_multiplier(row(-1.0), row(-1.0), boxed), boxed)
    assert exact.item() == pytest.approx(0, abs=1e-9)  # the box knows that the neuron is active


@pytest.mark.parametrize("seed", range(5))
def test_one_layer_is_tight_and_never_above_the_minimum(seed):
    """Against the minimum of c'relu(z) - g'z over the ball, from many descents on its sphere and inside."""
    rng = generator(seed)
    c, g = (torch.randn(1, 1, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    centre = torch.randn(4, generator=rng, dtype=torch.float64)
    e = ball(centre.tolist(), 0.8)
    points = samples(centre, 0.8, 200_000, seed)
    truth = (points.relu() @ c.flatten() - points @ g.flatten()).min().item()
    best = best_multiplier(c, g, e)
    found = ball_box_offset(c, g, best, e).item()
    assert found <= truth + 1e-12
    assert found == pytest.approx(ball_offset(c, g, best, e).item(), abs=1e-9)  # without a box they are one
    for factor in (0.3, 0.9, 1.1, 4.0):
        assert ball_offset(c, g, best * factor, e).item() <= found + 1e-12
    boxed = Enclosure(e.centre, e.axes, e.centre - 0.8, e.centre + 0.8)
    inside = ball_box_offset(c, g, best_multiplier(c, g, boxed), boxed).item()
    assert found - 1e-9 <= inside <= truth + 1e-12
    assert inside >= box_offset(c, g, boxed).item() - 1e-9
    assert inside >= truth - 0.12  # samples miss the minimum, duality may have a gap; a wrong formula misses by more


def test_gradients_of_the_offset_are_those_of_finite_differences():
    rng = generator(3)
    c, g = (torch.randn(2, 3, 5, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(2))
    multiplier = (0.5 + torch.rand(2, 3, generator=rng, dtype=torch.float64)).requires_grad_()
    centre = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    axes = 0.5 + torch.rand(2, 5, generator=rng, dtype=torch.float64)
    for e in (Enclosure(centre, axes, centre - axes / 2, centre + axes), ball(centre[0].tolist(), 0.8)):
        assert torch.autograd.gradcheck(lambda c, g, m, e=e: ball_box_offset(c, g, m, e), (c, g, multiplier))


def test_an_ellipsoid_is_a_ball_in_other_units():
    rng = generator(5)
    c, g = (torch.randn(1, 1, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    centre, axes = torch.randn(1, 4, generator=rng, dtype=torch.float64), torch.tensor([[0.5, 2.0, 1.0, 0.1]]).double()
    far = torch.full_like(centre, math.inf)
    found = best_multiplier(c, g, e := Enclosure(centre, axes, -far, far))
    scaled = Enclosure(centre / axes, torch.ones(1, 1, dtype=torch.float64), -far, far)
    assert_close(ball_offset(c, g, found, e), ball_offset(c * axes, g * axes, found, scaled))
    assert_close(ball_offset(c, g, found, e), ball_box_offset(c, g, found, e))


def test_the_worked_example_of_the_paper():
    network, x, radius = worked_example(), torch.ones(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    c = torch.ones(1, 1, 1, dtype=torch.float64)
    known = enclosures(network, x, radius, geometry(network), boxes="reach")
    # The paper's boxes: the ball's enclosing box, pushed through.
    away = torch.full((1, 2), 2.0, dtype=torch.float64)
    known[3] = dataclasses.replace(known[3], lower=-away, upper=away)
    assert crown(network, x, radius, c, known).item() == pytest.approx(-2, abs=1e-6)
    search = Search(iterations=80, dtype=torch.float64)
    for slopes in ("crown", "free"):
        found, relaxation = optimize(network, x, radius, c, known, slopes=slopes, offset="theorem", search=search)
        assert -math.sqrt(2) - 2e-3 <= found.item() <= -math.sqrt(2) + 1e-9
        assert (relaxation.multipliers[3] / known[3].axes ** 2).item() == pytest.approx(math.sqrt(1 / 8), rel=0.02)
        assert (relaxation.multipliers[1] / known[1].axes ** 2).item() < 1e-3


@pytest.mark.parametrize("slopes", ["free", "crown"])
def test_the_search_with_the_theorem_never_looks_at_a_box(slopes):
    network, x, radius = random_network(1), torch.full((1, 3), 0.3, dtype=torch.float64), torch.tensor([0.5]).double()
    known, c = enclosures(network, x, radius, geometry(network)), torch.eye(network.outputs).double()[None]
    without = {index: e.without_box() for index, e in known.items()}
    asked = {"guide": known, "slopes": slopes, "offset": "theorem", "search": Search(iterations=3)}
    found, _ = optimize(network, x, radius, c, known, **asked)
    assert torch.equal(found, optimize(network, x, radius, c, without, **asked)[0])


@pytest.mark.parametrize("slopes", ["free", "crown"])
def test_after_a_step_everything_is_back_where_it_may_be(monkeypatch, slopes):
    network, x, radius = random_network(1), torch.full((1, 3), 0.3, dtype=torch.float64), torch.tensor([0.5]).double()
    known = enclosures(network, x, radius, geometry(network))
    first = next(iter(known))  # of which one neuron may reach 0 from below, and one from above
    known[first].lower[0, :2], known[first].upper[0, :2] = torch.tensor([-1.0, 0.0]), torch.tensor([0.0, 1.0])
    bends = [((e.lower < 0) & (e.upper > 0))[:, None] for e in known.values()]
    assert any((~each).any() for each in bends) and any(each.any() for each in bends)
    real = sdp_crown.ascend

    def astray(bound, shape, groups, settle, search):
        free, multipliers = (group["params"] for group in groups)
        at_first = [each.detach().clone() for each in free]
        for away, clamped, lowest in ((-100.0, 0.0, math.log(1e-6)), (100.0, 1.0, 100.0)):
            with torch.no_grad():
                for each in (*free, *multipliers):
                    each.fill_(away)
                settle()
            assert all((each == torch.tensor(lowest)).all() for each in multipliers)
            if slopes == "free":
                assert all((each == clamped).all() for each in free)
            else:  # of a neuron that never bends, CROWN's slope
                for each, begun, bent in zip(free, at_first, bends, strict=True):
                    assert_close(each.detach(), torch.where(bent, clamped, begun))
        return real(bound, shape, groups, settle, dataclasses.replace(search, iterations=1))

    monkeypatch.setattr(sdp_crown, "ascend", astray)
    optimize(network, x, radius, torch.eye(3, dtype=torch.float64)[None], known, slopes=slopes)


def boxed(seed, scale):
    """Coefficients, and boxes of that size on either side of 0 and around it."""
    rng = generator(seed)
    c, g = (torch.randn(1, 1, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    lower = scale * torch.tensor([[0.25, 0.5, -0.75, -0.5, -0.25, -0.5]], dtype=torch.float64)
    upper = scale * torch.tensor([[0.75, 0.75, -0.25, -0.25, 0.5, 0.25]], dtype=torch.float64)
    return c, g, Enclosure((lower + upper) / 2, torch.full((1, 1), 2.0 * scale).double(), lower, upper)


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_offsets_over_boxes_are_the_least_of_every_neuron(scale):
    """Each by itself on a fine grid of its box, which holds both ends and 0."""
    for seed in range(12):
        c, g, e = boxed(seed, scale)
        multiplier = torch.tensor([[0.3 * (seed + 1)]], dtype=torch.float64)
        shares = torch.linspace(0, 1, 3001, dtype=torch.float64)[:, None]
        z = e.lower + shares * (e.upper - e.lower)
        bent = c[0] * z.relu() - g[0] * z
        assert_close(box_offset(c, g, e), bent.amin(0).sum()[None, None], rtol=0, atol=1e-9 * scale)
        pulled = bent + multiplier / 2 * ((z - e.centre) / e.axes).square()
        found = ball_box_offset(c, g, multiplier, e)
        assert_close(found, pulled.amin(0).sum() - multiplier / 2, rtol=0, atol=1e-5 * scale)


def test_a_wide_input_is_narrowed_where_there_is_no_box(monkeypatch):
    network, seen, real = random_network(2, (9, 4, 3)), [], sdp_crown.narrowed
    monkeypatch.setattr(sdp_crown, "narrowed", lambda *given: seen.append(given) or real(*given))
    x, radius = torch.full((1, 9), 0.3, dtype=torch.float64), torch.tensor([0.1]).double()
    known, c = enclosures(network, x, radius, geometry(network)), torch.eye(3).double()[None]
    plain, _ = optimize(network, x, radius, c, known, search=Search(iterations=3))
    assert len(seen) == 1
    inside, _ = optimize(network, x, radius, c, known, box=(0.0, 1.0), search=Search(iterations=3))
    assert len(seen) == 1
    assert_close(plain, inside, rtol=0, atol=1e-4)  # a box that holds the ball


def test_a_search_begins_with_the_slopes_of_crown_by_the_sign_of_coefficients():
    """Those from above where a coefficient is 0, too, as it is certified with them."""
    builder = Builder((3,))
    weight = torch.tensor([[1.0, 0.0, -2.0, 0.0, 3.0], [-1.0, 0.0, 1.0, 0.0, 1.0]]).double()
    bent = builder.relu(builder.linear(0, torch.randn(5, 3, generator=generator(4)).double(), None))
    network = builder.build(builder.linear(bent, weight, None), "signs")
    x, radius = torch.full((2, 3), 0.1, dtype=torch.float64), torch.tensor([0.5, 1.0]).double()
    known, c = enclosures(network, x, radius, geometry(network)), torch.eye(2).double().expand(2, -1, -1)
    (at,) = known
    above, below = (each[:, None] for each in crown_slopes(known[at]))
    assert (above != below).all()
    expected = torch.where(weight >= 0, above, below)
    for slopes in ("free", "crown"):
        _, relaxation = optimize(network, x, radius, c, known, slopes=slopes, search=Search(1, dtype=torch.float64))
        assert_close(relaxation.slopes[at], expected)
