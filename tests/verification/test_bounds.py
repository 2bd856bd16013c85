"""Bounds of whole networks, of every method, against closed forms, dense samples and attacks."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.verification import bounds, sdp_crown
from equipoise.verification.attack import attack
from equipoise.verification.bounds import Search, enclosures, geometry, summed_sizes
from equipoise.verification.certificate import certified_margins, specifications
from equipoise.verification.from_torch import from_module
from equipoise.verification.network import Builder
from relu_networks import generator, random_network, samples, worked_example

QUICK = Search(iterations=10, dtype=torch.float64)


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
    assert sdp_crown.Relaxation({}, {}).steps == 0


@pytest.mark.parametrize(("iterations", "patience", "steps"), [(50, 0, 2), (50, 3, 5), (4, 3, 4), (1, 9, 1)])
def test_the_search_ends_when_no_bound_gets_better(iterations, patience, steps):
    """Nothing moves at rates of 0: the first iteration is the best, and patience is spent on the others."""
    network, x, radius = random_network(1), torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    known = bounds.enclosures(network, x, radius, geometry(network), boxes="reach")
    still = Search(iterations, 0.0, 0.0, 0.98, patience, torch.float64)
    found, relaxation = sdp_crown.optimize(
        network, x, radius, specifications(torch.tensor([0, 1]), 3), known, search=still
    )
    assert relaxation.steps == steps and found.isfinite().all()
    assert set(relaxation.slopes) == set(relaxation.multipliers) == set(known)


def test_an_enclosure_scales_with_the_unit_of_the_network():
    """Powers of two change no rounding, so that all must be equal to the last bit."""
    x, radius = torch.randn(3, 3, generator=generator(0), dtype=torch.float64), torch.full((3,), 1e-3).double()
    first = bounds.enclosures(random_network(1), x, radius, geometry(random_network(1)))
    for unit in (2.0**-60, 2.0**60):
        network = random_network(1)
        layers = [
            replace(layer, bias=layer.bias * unit) if hasattr(layer, "bias") else layer for layer in network.layers
        ]
        network = replace(network, layers=tuple(layers))
        scaled = bounds.enclosures(network, x * unit, radius * unit, geometry(network))
        assert scaled.keys() == first.keys() and len(first) > 1
        for at, e in scaled.items():
            for name in ("centre", "axes", "lower", "upper"):
                assert torch.equal(getattr(e, name), getattr(first[at], name) * unit)


@pytest.mark.parametrize("boxes", ["reach", "crown"])
def test_an_enclosure_holds_what_rounding_makes_of_large_terms(boxes):
    """0.1 + 0.2 - 0.3 is 0 where it is computed a trillion times as large without fused products; it is 2.8e-5."""
    exact = 10**12 * (Fraction(0.1) + Fraction(0.2) - Fraction(0.3))
    builder = Builder((3,))
    value = builder.linear(0, torch.tensor([[1e12, 1e12, -1e12], [1.0, 0.0, 0.0]]), None)
    other = builder.linear(builder.relu(value), torch.tensor([[1.0, 0.0]]), None)
    network = builder.build(builder.linear(builder.relu(other), torch.eye(1), None), "cancels")
    x, radius = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64), torch.tensor([1e-30]).double()
    known = bounds.enclosures(network, x, radius, geometry(network), boxes=boxes)
    assert float(exact) > 2e-5
    for e in known.values():
        assert e.lower[0, 0].item() <= exact <= e.upper[0, 0].item()
        assert (exact - Fraction(e.centre[0, 0].item())) <= e.axes[0, 0].item()


def test_so_does_one_behind_a_neuron_that_never_bends():
    """The same sum of numbers that a ReLU lets by: there plain CROWN is as wrong as the centre."""
    exact = 10**12 * (Fraction(0.1) + Fraction(0.2) - Fraction(0.3))
    builder = Builder((3,))
    shown = builder.relu(builder.linear(0, torch.eye(3), None))
    value = builder.linear(shown, torch.tensor([[1e12, 1e12, -1e12], [-1e12, -1e12, 1e12]]), None)
    network = builder.build(builder.linear(builder.relu(value), torch.eye(2), None), "cancels")
    x, radius = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64), torch.tensor([1e-30]).double()
    e = list(bounds.enclosures(network, x, radius, geometry(network), boxes="crown").values())[-1]
    assert e.lower[0, 0].item() <= exact <= e.upper[0, 0].item()
    assert e.lower[0, 1].item() <= -exact <= e.upper[0, 1].item()
    assert (e.upper - e.lower).max() < 1e4


def test_slopes_of_crown_by_hand():
    """Above: 0 or 1, of equal areas 1. Below: the line through the ends. Where nothing bends both are the neuron's own."""
    lower = torch.tensor([[-1.0, -2.0, -1.0, 0.0, -1.0, 0.5, -2.0, 0.0, -0.5]]).double()
    upper = torch.tensor([[1.0, 1.0, 2.0, 1.0, 0.0, 0.75, -1.0, 0.0, 0.25]]).double()
    above, below = bounds.crown_slopes(bounds.Enclosure(lower, lower, lower, upper))
    assert above.tolist() == [[1, 0, 1, 1, 0, 1, 0, 1, 0]] and above.dtype == torch.float64
    assert_close(below, torch.tensor([[1 / 2, 1 / 3, 2 / 3, 1, 0, 1, 0, 0, 1 / 3]]).double())


def test_crown_of_one_neuron_by_hand():
    """Over [-1, 2] relu(x) lies above x, the steeper of 0 and x there, and below 2 / 3 (x + 1)."""
    builder = Builder((1,))
    network = builder.build(
        builder.linear(builder.relu(builder.linear(0, torch.eye(1), None)), torch.eye(1), None), "one"
    )
    x, radius = torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([1.5], dtype=torch.float64)
    known = bounds.enclosures(network, x, radius, geometry(network))
    both = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    assert_close(
        bounds.crown(network, x, radius, both, known), torch.tensor([[-1.0, -2.0]]).double(), atol=1e-6, rtol=0
    )


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


def test_parts_that_the_value_does_not_hang_on_are_passed_over():
    """Two ways part at the input; the bounds of a ReLU on one of them do not ask for the other, which lies between."""
    one, two = (torch.randn(3, 3, generator=generator(seed), dtype=torch.float64) for seed in (0, 1))
    x, radius = torch.ones(1, 3, dtype=torch.float64), torch.full((1,), 0.5, dtype=torch.float64)
    lower = []
    for aside in (True, False):
        builder = Builder((3,))
        bent = builder.linear(0, one, None)
        other = builder.linear(0, two, None) if aside else 0
        above = builder.relu(builder.linear(builder.relu(bent), two, None))
        whole = builder.build(builder.linear(builder.add(above, other), one, None), "parted")
        lower.append([e.lower for e in bounds.enclosures(whole, x, radius, geometry(whole), boxes="crown").values()])
    assert len(lower[0]) == 2
    assert_close(lower[0], lower[1])
    # Nor is the input turned, on which the second way hangs as well.
    wide = Builder((3,))
    narrow = wide.linear(0, one[:2], None)
    out = wide.add(wide.linear(wide.relu(narrow), torch.ones(3, 2, dtype=torch.float64), None), 0)
    skipping = wide.build(wide.linear(out, one, None), "skipping")
    same, flat = bounds.narrowed(skipping, x)
    assert same is skipping and torch.equal(flat, x)


def test_without_a_bend_the_bound_is_exact_at_once():
    weight = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    builder = Builder((2,))
    network = builder.build(builder.linear(0, weight, torch.ones(1, dtype=torch.float64)), "straight")
    x, radius = torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    found, relaxation = sdp_crown.optimize(network, x, radius, one, {}, search=QUICK)
    assert found.item() == pytest.approx(8 - 2 * 5) and relaxation.steps == 1 and relaxation.slopes == {}


def test_an_ellipsoid_of_one_axis_is_a_ball():
    builder = Builder((1,))
    value = builder.scale(0, torch.tensor([-3.0]), torch.tensor([1.0]))
    network = builder.build(builder.linear(builder.relu(value), torch.full((2, 1), 2.0), None), "one", merge=False)
    shape = geometry(network)
    assert [each.tolist() for each in shape.axes[:2]] == [[1.0], [pytest.approx(3)]]
    assert shape.axes[-1].tolist() == [pytest.approx(3 * math.sqrt(8))]
    assert [each.tolist() for each in shape.reach] == [
        [1.0],
        [pytest.approx(3)],
        [pytest.approx(3)],
        [pytest.approx(6)] * 2,
    ]


def test_the_sizes_that_are_added_up_by_hand():
    """Of 2 (3e6 - 3 relu(x + 1e6)) both terms count in full, though they cancel, and all that lead to them."""
    builder = Builder((1,))
    bent = builder.relu(builder.linear(0, torch.ones(1, 1).double(), torch.tensor([1e6]).double()))
    net = builder.build(builder.linear(bent, torch.tensor([[-3.0]]).double(), torch.tensor([3e6]).double()), "net")
    shape, x, radius = geometry(net), torch.tensor([[2.0]]).double(), torch.tensor([0.5]).double()
    known = enclosures(net, x, radius, shape, boxes="reach")
    (at,) = known
    coefficients = torch.tensor([[[2.0]]]).double()
    sizes = summed_sizes(net, x, radius, coefficients, known, {at: torch.ones(1, 1, 1)}, shape)
    # 2 (3 relu + bias); 6 of the layer before, of what it adds up and how far it reaches; 6 of x within its ball.
    by_hand = 2 * (3 * (1e6 + 2) + 3e6) + 6 * ((2 + 1e6) + (1e6 + 2.5)) + 6 * 2 + 0.5 * 6
    assert sizes.tolist() == [[pytest.approx(by_hand, rel=1e-6)]]
    assert (coefficients @ net(x)[0]).item() == pytest.approx(
        2 * (3e6 - 3 * (1e6 + 2)), abs=1e-6
    )  # of which -12 is left


@pytest.mark.parametrize(("rows", "calls"), [(2**22, 2), (10, 4), (14, 4), (15, 4), (20, 2), (1, 8)])
def test_boxes_are_bounded_in_pieces_of_so_many_numbers(monkeypatch, rows, calls):
    """Four numbers of a network whose largest value has five: all at once, two, or one at a time, from both sides."""
    network, x, radius = random_network(1), torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    known = enclosures(network, x, radius, geometry(network))
    at = list(known)[1]
    whole = [bounds.crown(network, x, radius, sign * torch.eye(4).double(), known, value=at) * sign for sign in (1, -1)]
    asked, real = [], bounds.crown
    monkeypatch.setattr(bounds, "crown", lambda *given, **how: asked.append(given) or real(*given, **how))
    low, high = bounds._crown_box(network, at, x, radius, known, *(() if rows == 2**22 else (rows,)))
    assert len(asked) == calls and low.shape == high.shape == (2, 4)
    assert_close([low, high], whole)
    assert (low < high).all()


def test_going_back_from_the_input_is_no_way_at_all():
    c = torch.randn(2, 1, 3, generator=generator(0), dtype=torch.float64)
    a, constant = bounds.backward(random_network(1), c, None, value=0)
    assert a is c and constant.item() == 0


@pytest.mark.parametrize("boxes", ["reach", "crown"])
def test_boxes_of_reach_are_around_the_centre(boxes):
    network, x, radius = random_network(1), torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    first, last = enclosures(network, x, radius, geometry(network), boxes=boxes).values()
    assert_close(first.lower + first.upper, 2 * first.centre)
    around = torch.isclose(last.lower + last.upper, 2 * last.centre)
    assert around.all() if boxes == "reach" else not around.any()
    assert_close(first.upper - first.centre, geometry(network).reach[1].expand(2, -1))


def test_rounding_of_a_sum_is_that_of_both_its_parts():
    """The sum's own sizes are those of both, and its ball is the larger one and what may have been rounded away."""
    builder = Builder((1,))
    small, large = (
        builder.linear(0, torch.tensor([[weight]]), torch.tensor([bias])) for weight, bias in ((2.0, 3.0), (4e3, -5e3))
    )
    network = builder.build(builder.linear(builder.add(small, large), torch.eye(1), None), "sum")
    shape, x, radius = geometry(network), torch.tensor([[1.5]]).double(), torch.tensor([0.5]).double()
    first, second = (1.5 * 2 + 3) * 1e-10, (1.5 * 4e3 + 5e3) * 1e-10
    for turned in (False, True):
        layers = [replace(each, inputs=(2, 1)) if turned and len(each.inputs) == 2 else each for each in network.layers]
        values = network.values(x)
        radii, spares = bounds._with_rounding(replace(network, layers=tuple(layers)), values, radius, shape)
        expected = [1.5e-10, first, second, first + second, abs(values[3].item()) * 1e-10]
        assert [each.item() for each in spares] == pytest.approx(expected, rel=1e-12)
        inside = 0.5 * (1 + 1e-10)
        largest = max(inside + first / shape.axes[1].item(), inside + second / shape.axes[2].item())
        assert radii[3].item() - 0.5 == pytest.approx(largest + (first + second) / shape.axes[3].item() - 0.5, rel=1e-6)
