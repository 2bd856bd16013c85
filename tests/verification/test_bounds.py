"""Bounds against closed forms, the paper's worked example, dense samples, attacks, and an interval of known gaps."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.verification import bounds
from equipoise.verification.attack import attack
from equipoise.verification.bounds import Enclosure, Search, enclosures, geometry, optimize
from equipoise.verification.certificate import certified_margins, specifications
from equipoise.verification.from_torch import from_module
from equipoise.verification.network import Builder

QUICK = Search(iterations=10, dtype=torch.float64)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def ball(centre, radius):
    centre = torch.tensor([centre], dtype=torch.float64)
    far = torch.full_like(centre, math.inf)
    return Enclosure(centre, torch.full((1, 1), radius, dtype=torch.float64), -far, far)


def row(*numbers):
    return torch.tensor([[numbers]], dtype=torch.float64)


def random_network(seed, sizes=(3, 5, 4, 3), scale=1.0):
    rng = generator(seed)
    builder, value = Builder(sizes[:1]), 0
    for place, (n, m) in enumerate(itertools.pairwise(sizes)):
        value = builder.relu(value) if place else value
        weight = torch.randn(m, n, generator=rng, dtype=torch.float64) * scale / math.sqrt(n)
        value = builder.linear(value, weight, torch.randn(m, generator=rng, dtype=torch.float64) * 0.3)
    return builder.build(value, "random")


def samples(x, radius, count, seed=0):
    """Points of the ball around x [n]: a half on its sphere, where minima are."""
    rng = generator(seed)
    away = torch.randn(count, len(x), generator=rng, dtype=torch.float64)
    length = torch.rand(count, 1, generator=rng, dtype=torch.float64) ** (1 / len(x))
    length[::2] = 1
    return x + radius * length * away / away.norm(dim=1, keepdim=True)


# One layer: theorem 4.1


def test_theorem_at_the_origin_has_its_closed_form_and_the_box_costs_a_root_of_n_more():
    rng = generator(0)
    c, g = torch.randn(2, 1, 1, 6, generator=rng, dtype=torch.float64)
    e = ball([0.0] * 6, 0.7)
    phi = torch.minimum(c - g, g).clamp(max=0)
    closed = -0.7 * phi.norm(dim=-1)
    assert_close(bounds.ball_offset(c, g, bounds.start_multiplier(c, g, e), e), closed)
    assert_close(bounds.ball_box_offset(c, g, bounds.best_multiplier(c, g, e), e), closed)
    box = bounds.box_offset(c, g, Enclosure(e.centre, e.axes, e.centre - 0.7, e.centre + 0.7))
    assert_close(box, -0.7 * phi.abs().sum(-1))
    assert (box / closed).item() <= math.sqrt(6) and (box / closed).item() > 1


def test_the_known_duality_gap_of_one_active_neuron():
    e = ball([1.0], 0.5)
    best = max(
        bounds.ball_offset(row(-1.0), row(-1.0), torch.tensor([[at * 0.25]], dtype=torch.float64), e).item()
        for at in np.linspace(0.1, 2, 191)
    )
    assert best == pytest.approx(-1 / 16, abs=1e-6)
    half = torch.tensor([[0.5 * 0.25]], dtype=torch.float64)  # lambda = 1/2 in units of a radius of 1
    assert_close(bounds.ball_offset(row(-1.0), row(-1.0), half, e), torch.tensor([[-1 / 16]], dtype=torch.float64))
    boxed = Enclosure(e.centre, e.axes, e.centre - 0.5, e.centre + 0.5)
    exact = bounds.ball_box_offset(row(-1.0), row(-1.0), bounds.best_multiplier(row(-1.0), row(-1.0), boxed), boxed)
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
    best = bounds.best_multiplier(c, g, e)
    found = bounds.ball_box_offset(c, g, best, e).item()
    assert found <= truth + 1e-12
    assert found == pytest.approx(bounds.ball_offset(c, g, best, e).item(), abs=1e-9)  # without a box they are one
    for factor in (0.3, 0.9, 1.1, 4.0):
        assert bounds.ball_offset(c, g, best * factor, e).item() <= found + 1e-12
    boxed = Enclosure(e.centre, e.axes, e.centre - 0.8, e.centre + 0.8)
    inside = bounds.ball_box_offset(c, g, bounds.best_multiplier(c, g, boxed), boxed).item()
    assert found - 1e-9 <= inside <= truth + 1e-12
    assert inside >= bounds.box_offset(c, g, boxed).item() - 1e-9
    assert inside >= truth - 0.12  # samples miss the minimum, duality may have a gap; a wrong formula misses by more


def test_gradients_of_the_offset_are_those_of_finite_differences():
    rng = generator(3)
    c, g = (torch.randn(2, 3, 5, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(2))
    multiplier = (0.5 + torch.rand(2, 3, generator=rng, dtype=torch.float64)).requires_grad_()
    centre = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    axes = 0.5 + torch.rand(2, 5, generator=rng, dtype=torch.float64)
    for e in (Enclosure(centre, axes, centre - axes / 2, centre + axes), ball(centre[0].tolist(), 0.8)):
        assert torch.autograd.gradcheck(lambda c, g, m, e=e: bounds.ball_box_offset(c, g, m, e), (c, g, multiplier))


def test_an_ellipsoid_is_a_ball_in_other_units():
    rng = generator(5)
    c, g = (torch.randn(1, 1, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    centre, axes = torch.randn(1, 4, generator=rng, dtype=torch.float64), torch.tensor([[0.5, 2.0, 1.0, 0.1]]).double()
    far = torch.full_like(centre, math.inf)
    found = bounds.best_multiplier(c, g, e := Enclosure(centre, axes, -far, far))
    scaled = Enclosure(centre / axes, torch.ones(1, 1, dtype=torch.float64), -far, far)
    assert_close(bounds.ball_offset(c, g, found, e), bounds.ball_offset(c * axes, g * axes, found, scaled))
    assert_close(bounds.ball_offset(c, g, found, e), bounds.ball_box_offset(c, g, found, e))


# Whole networks


def worked_example():
    builder = Builder((2,))
    value = builder.linear(0, torch.tensor([[0.0, 1], [1, 0]]), None)
    value = builder.linear(builder.relu(value), torch.tensor([[-1.0, 1], [1, -1]]), None)
    return builder.build(builder.linear(builder.relu(value), torch.tensor([[-1.0, -1]]), None), "appendix B.3")


def test_the_worked_example_of_the_paper():
    network, x, radius = worked_example(), torch.ones(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    c = torch.ones(1, 1, 1, dtype=torch.float64)
    known = enclosures(network, x, radius, geometry(network), boxes="reach")
    # The paper's boxes: the ball's enclosing box, pushed through.
    away = torch.full((1, 2), 2.0, dtype=torch.float64)
    known[3] = dataclasses.replace(known[3], lower=-away, upper=away)
    assert bounds.crown(network, x, radius, c, known).item() == pytest.approx(-2, abs=1e-6)
    search = Search(iterations=80, dtype=torch.float64)
    for slopes in ("crown", "free"):
        found, relaxation = optimize(network, x, radius, c, known, slopes=slopes, offset="theorem", search=search)
        assert -math.sqrt(2) - 2e-3 <= found.item() <= -math.sqrt(2) + 1e-9
        assert (relaxation.multipliers[3] / known[3].axes ** 2).item() == pytest.approx(math.sqrt(1 / 8), rel=0.02)
        assert (relaxation.multipliers[1] / known[1].axes ** 2).item() < 1e-3


def margins(network, x, radius, labels, **words):
    words = {"search": QUICK, **words}
    return torch.cat([found.margins for found in certified_margins(network, x, radius, labels, **words)])


METHODS = [
    {"method": "alpha-crown", "slopes": "crown"},
    {"slopes": "crown", "offset": "theorem"},
    {"slopes": "crown"},
    {"slopes": "free", "offset": "theorem"},
    {},
]


@pytest.mark.parametrize("words", METHODS)
def test_a_vanishing_ball_gives_the_exact_margin_and_a_larger_one_never_more(words):
    network = random_network(1)
    x = torch.randn(4, 3, generator=generator(0), dtype=torch.float64)
    labels = network(x).argmax(1)
    exact = (specifications(labels, 3) @ network(x)[..., None])[..., 0]
    near = margins(network, x, torch.full((4,), 1e-7, dtype=torch.float64), labels, **words)
    assert_close(near, exact, atol=3e-6, rtol=0)
    last = near
    for radius in (0.1, 0.8):
        now = margins(network, x, torch.full((4,), radius, dtype=torch.float64), labels, **words)
        assert (now <= last + 1e-6).all()
        last = now


def test_the_order_of_the_methods_on_a_network_that_is_nearly_one_lipschitz():
    rng = generator(0)
    builder, value = Builder((20,)), 0
    for place in range(3):
        value = builder.relu(value) if place else value
        weight = torch.linalg.qr(torch.randn(20, 20, generator=rng, dtype=torch.float64))[0]
        value = builder.linear(value, weight, 0.1 * torch.randn(20, generator=rng, dtype=torch.float64))
    network = builder.build(value, "orthogonal")
    x = torch.randn(3, 20, generator=rng, dtype=torch.float64)
    labels, radius = network(x).argmax(1), torch.full((3,), 0.5, dtype=torch.float64)
    found = [
        margins(network, x, radius, labels, search=Search(iterations=30), **words).mean().item() for words in METHODS
    ]
    naive = bounds.lip_naive(network, x, radius, specifications(labels, 20), geometry(network)).mean().item()
    alpha, paper, boxed, free_theorem, free = found
    assert naive < alpha < paper < boxed < free and paper < free_theorem <= free + 1e-3
    exact = naive + 0.5 * math.sqrt(2)  # orthogonal weights: LipNaive is wrong by no less than the distance of two rows
    assert free < exact


def test_lip_naive_is_the_product_of_norms():
    network = worked_example()
    x, radius = torch.ones(1, 2, dtype=torch.float64), torch.full((1,), 0.25, dtype=torch.float64)
    found = bounds.lip_naive(network, x, radius, torch.ones(1, 1, 1, dtype=torch.float64), geometry(network))
    assert found.item() == pytest.approx(0 - 0.25 * math.sqrt(2) * 2 * 1, rel=1e-6)


def test_the_search_is_that_of_the_paper_unless_told_otherwise():
    assert Search() == bounds.PUBLISHED == Search(300, 0.5, 0.1, 0.98, 20, torch.float32)
    assert bounds.Relaxation({}, {}).steps == 0


@pytest.mark.parametrize(("iterations", "patience", "steps"), [(50, 0, 2), (50, 3, 5), (4, 3, 4), (1, 9, 1)])
def test_the_search_ends_when_no_bound_gets_better(iterations, patience, steps):
    """Nothing moves at rates of 0: the first iteration is the best, and patience is spent on the others."""
    network, x, radius = random_network(1), torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    known = enclosures(network, x, radius, geometry(network), boxes="reach")
    still = Search(iterations, 0.0, 0.0, 0.98, patience, torch.float64)
    found, relaxation = optimize(network, x, radius, specifications(torch.tensor([0, 1]), 3), known, search=still)
    assert relaxation.steps == steps and found.isfinite().all()
    assert set(relaxation.slopes) == set(relaxation.multipliers) == set(known)


def test_lip_naive_needs_weights_at_the_end():
    builder = Builder((2,))
    network = builder.build(builder.relu(builder.linear(0, torch.eye(2), None)), "bent", merge=False)
    x, radius = torch.ones(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    with pytest.raises(BadInput, match=r"^bent does not end with an affine layer, which LipNaive needs\.$"):
        bounds.lip_naive(network, x, radius, torch.ones(1, 2, dtype=torch.float64), geometry(network))


def test_a_narrow_first_layer_is_the_same_problem_with_fewer_inputs():
    wide = random_network(2, (9, 4, 3))
    x = torch.randn(2, 9, generator=generator(0), dtype=torch.float64)
    small, at = bounds.narrowed(wide, x)
    assert small.sizes == (4, 4, 4, 3) and at.shape == (2, 4)
    assert_close(small(at), wide(x))
    away = torch.randn(2, 9, generator=generator(1), dtype=torch.float64)
    moved = bounds.narrowed(wide, x + away)[1]
    assert_close(small(moved), wide(x + away)) and ((moved - at).norm(dim=1) <= away.norm(dim=1) + 1e-12).all()
    for network in (random_network(2, (4, 4, 3)), random_network(2, (3, 4, 3))):
        same, flat = bounds.narrowed(network, x := torch.ones(1, network.sizes[0], dtype=torch.float64))
        assert same is network and torch.equal(flat, x)


networks = st.tuples(
    st.integers(0, 2**31), st.lists(st.integers(1, 6), min_size=2, max_size=4), st.sampled_from([0.3, 1.0, 3.0])
)


@settings(max_examples=15, deadline=None)
@given(networks, st.sampled_from([1e-3, 0.1, 1.0, 10.0]), st.sampled_from(METHODS))
def test_no_sampled_or_attacked_point_violates_a_bound(network, radius, words):
    seed, hidden, scale = network
    net = random_network(seed, (3, *hidden, 3), scale)
    x = torch.randn(2, 3, generator=generator(seed), dtype=torch.float64)
    labels = torch.tensor([0, 2])
    radii = torch.tensor([radius, radius / 2], dtype=torch.float64)
    found = margins(net, x, radii, labels, search=Search(iterations=4), **words)
    chosen = specifications(labels, 3)
    worst, points = attack(net, x, radii, chosen, generator=generator(0), steps=12)
    assert (points - x[:, None]).norm(dim=-1).le(radii[:, None]).all()
    assert (found <= worst).all()
    for i in range(2):
        seen = net(samples(x[i], radii[i], 300, seed)) @ chosen[i].T
        assert (found[i] <= seen.min(0).values).all()


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.1, 0.5]), st.sampled_from(METHODS[1:]))
def test_ball_and_box_is_sound_and_no_worse_than_the_ball(seed, radius, words):
    net = random_network(seed, (4, 6, 5, 3))
    x = torch.rand(2, 4, generator=generator(seed), dtype=torch.float64)
    labels, radii = torch.tensor([1, 0]), torch.full((2,), radius, dtype=torch.float64)
    found = margins(net, x, radii, labels, box=(0.0, 1.0), search=Search(iterations=5), **words)
    worst, points = attack(net, x, radii, specifications(labels, 3), generator=generator(0), steps=12, box=(0.0, 1.0))
    assert ((points >= 0) & (points <= 1)).all() and (found <= worst).all()


def test_a_box_that_holds_the_whole_ball_changes_nothing():
    net = random_network(7)
    x, labels = torch.full((1, 3), 0.5, dtype=torch.float64), torch.tensor([0])
    radius = torch.full((1,), 0.2, dtype=torch.float64)
    search = Search(iterations=100, dtype=torch.float64)
    alone = margins(net, x, radius, labels, search=search)
    assert_close(margins(net, x, radius, labels, box=(-1.0, 2.0), search=search), alone, atol=1e-4, rtol=0)
    assert (margins(net, x, radius, labels, box=(0.45, 0.55), search=search) > alone + 1e-3).all()


def test_convolutions_residuals_and_normalisation_are_sound():
    module = Residual().double().eval()
    net = from_module(module, (2, 6, 6), name="residual")
    rng = generator(1)
    x = torch.rand(2, 2, 6, 6, generator=rng, dtype=torch.float64)
    assert_close(net(x), module(x))
    labels, radii = torch.tensor([1, 2]), torch.tensor([0.3, 0.6], dtype=torch.float64)
    worst, _ = attack(net, x, radii, specifications(labels, 3), generator=rng, steps=60)
    for words in METHODS:
        found = margins(net, x, radii, labels, search=Search(iterations=5), **words)
        assert (found <= worst).all()
        assert (found >= worst - 20).all()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        from equipoise.verification.from_torch import Normalize

        torch.manual_seed(0)
        self.normalize = Normalize([0.4, 0.6], [0.2, 0.4])
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean += torch.randn(4) * 0.2
        self.norm.running_var *= 1.5
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.last = nn.Linear(36, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(self.normalize(x))))
        x = torch.relu(x + self.inner(x))
        return self.last(self.pool(x).flatten(1))


def test_wrong_requests_are_refused():
    net, x, labels = random_network(0), torch.zeros(1, 3), torch.tensor([0])
    with pytest.raises(BadInput, match="positive"):
        margins(net, x, torch.tensor([0.0]), labels)
    with pytest.raises(BadInput, match="not one of the 3 classes"):
        margins(net, x, torch.tensor([0.1]), torch.tensor([3]))
    with pytest.raises(BadInput, match="outside the box"):
        margins(net, x - 1, torch.tensor([0.1]), labels, box=(0.0, 1.0))
