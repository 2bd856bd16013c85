"""What is written of a certified margin, array by array, and in which batches; what is compared with an original."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.verification import certificate, faithful
from equipoise.verification.bounds import Enclosure, Geometry, Search, geometry
from equipoise.verification.certificate import (
    Certified,
    batch_size,
    certified_margins,
    contents,
    refined,
    specifications,
)
from equipoise.verification.faithful import OriginalRun, _absolute, _points, _terms, compare
from equipoise.verification.network import Builder
from equipoise.verification.sdp_crown import Relaxation
from equipoise.verification.semidefinite import Dual


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network():
    builder = Builder((3,))
    value = builder.relu(
        builder.linear(builder.scale(0, torch.tensor([1.0, 2.0, 0.5]), torch.ones(1)), drawn(4, 3), None)
    )
    return builder.build(builder.linear(value, drawn(3, 4, seed=1), None), "n")


def test_every_other_class_in_order():
    assert specifications(torch.tensor([1, 0, 2]), 3).tolist() == [
        [[-1, 1, 0], [0, 1, -1]],
        [[1, -1, 0], [1, 0, -1]],
        [[-1, 0, 1], [0, -1, 1]],
    ]
    assert specifications(torch.tensor([1]), 2).tolist() == [[[-1, 1]]]


@pytest.mark.parametrize(
    ("sizes", "batch"),
    [
        ((10**6, 64, 10), 56),  # the input counts for nothing; 32768 / (64 * 9) is 56
        ((3, 4096, 2), 8),
        ((3, 4096, 3), 4),  # fewer than a processor's lanes stay as they are
        ((3, 4681, 2), 7),
        ((3, 2**15, 2), 1),
        ((3, 2**20, 2), 1),
        ((3, 910, 5), 8),  # of 9 the multiple below
    ],
)
def test_a_batch_is_a_multiple_of_the_lanes(sizes, batch):
    assert batch_size(SimpleNamespace(sizes=sizes, outputs=sizes[-1])) == batch


def enclosure(size, seed, kind=1):
    centre = drawn(2, size, seed=seed)
    axes = drawn(2, kind, seed=seed + 1).abs()
    return Enclosure(centre, axes, centre - drawn(2, size, seed=2).abs(), centre + drawn(2, size, seed=3).abs())


@pytest.mark.parametrize("box", [None, (-9.0, 9.0)])
def test_the_arrays_of_a_certificate(box):
    net = network()  # scale, linear, relu, linear
    known = {2: enclosure(4, 5)}
    slopes, multipliers = {2: drawn(2, 2, 4, seed=7)}, {2: drawn(2, 2, seed=8), 0: drawn(2, 2, seed=9)}
    found = Certified(drawn(2, 2, seed=10), known, Relaxation(slopes, multipliers))
    x, radii, labels = drawn(2, 3, seed=11).float(), torch.tensor([0.5, 0.25]), torch.tensor([2, 0])
    shape = Geometry((), (), {1: 2.5, 3: 3.5})
    for i, content in enumerate(contents(net, x, radii, labels, shape, found, box)):
        expected = {
            "format": 2,
            "network": net.digest,
            "label": int(labels[i]),
            "input": x[i].double(),
            "radius": radii[i].double(),
            "margins": found.margins[i],
            "norm_1": 2.5,  # none of a scale
            "norm_3": 3.5,
            "centre_2": known[2].centre[i],
            "axes_2": known[2].axes[i],
            "lower_2": known[2].lower[i],
            "upper_2": known[2].upper[i],
            "slopes_2": slopes[2][i],
            "lambda_2": multipliers[2][i],
        }
        if box is not None:
            expected |= {"box": [-9.0, 9.0], "lambda_input": multipliers[0][i] / radii[i].double() ** 2}
        assert content.keys() == expected.keys()
        assert all(np.array_equal(content[name], np.asarray(its)) for name, its in expected.items())
        kinds = {name: str(np.asarray(its).dtype) for name, its in content.items()}
        assert kinds.pop("network") == "<U64" and kinds.pop("format") == kinds.pop("label") == "int64"
        assert set(kinds.values()) == {"float64"}


def test_the_arrays_of_refined_margins():
    net = network()
    e = Enclosure(
        torch.zeros(2, 4).double(), torch.ones(2, 1).double(),
        torch.tensor([[-1.0, 0.0, -1.0, 1.0], [0.0, 0.0, -1.0, -2.0]]).double(),
        torch.tensor([[1.0, 2.0, 0.0, 2.0], [1.0, 1.0, 1.0, -1.0]]).double(),
    )  # fmt: skip
    # Only where it is on both sides can a neuron bend: the first of the first input, the third of the second.
    duals = {
        (0, 1): Dual(0.5, {2: drawn(5, 1, seed=1)}, 0.25),
        (1, 0): Dual(0.5, {2: drawn(5, 1, seed=2)}, 0.5),
        (1, 1): Dual(0.5, {2: drawn(5, 1, seed=3)}, 0.75),
    }
    relaxation = Relaxation({2: drawn(2, 2, 4)}, {2: drawn(2, 2)})
    found = Certified(drawn(2, 2), {2: e}, relaxation, duals)
    x, radii, labels = drawn(2, 3), torch.ones(2), torch.tensor([0, 1])
    first, second = contents(net, x, radii, labels, geometry(net), found)
    assert first["refined"].tolist() == [1] and first["ball"].tolist() == [0.25]
    assert second["refined"].tolist() == [0, 1] and second["ball"].tolist() == [0.5, 0.75]
    assert first["multipliers_2"].shape == (1, 5, 4) and second["multipliers_2"].shape == (2, 5, 4)
    assert np.array_equal(first["multipliers_2"][0, :, 0], duals[0, 1].multipliers[2][:, 0])
    assert np.array_equal(second["multipliers_2"][1, :, 2], duals[1, 1].multipliers[2][:, 0])
    assert not first["multipliers_2"][:, :, 1:].any() and not second["multipliers_2"][:, :, [0, 1, 3]].any()
    assert first["refined"].dtype == np.int64
    assert Certified(drawn(2, 2), {2: e}, relaxation).duals == {}


def test_margins_give_away_what_a_checker_rounds(monkeypatch):
    """A hundred-millionth of what is beside them, in batches that go through the inputs in order."""
    net, seen = network(), []
    bounds = torch.tensor([[0.0, 3.0], [-5.0, 1e6], [2.0, 1.0]], dtype=torch.float64)

    def optimize(network, x, radius, chosen, known, *, guide, **how):
        seen.append((x, radius, chosen, known is guide, how))
        slopes = {index: torch.zeros(len(x), 1, each.centre.shape[1]) for index, each in known.items()}
        return bounds[: len(x)], Relaxation(slopes, {})

    monkeypatch.setattr(certificate, "optimize", optimize)
    monkeypatch.setattr(certificate, "batch_size", lambda network: 2)
    x, radii, labels = drawn(3, 3).float(), torch.tensor([0.5, 0.25, 1.0]), torch.tensor([0, 1, 2])
    found = list(certified_margins(net, x, radii, labels))
    assert [len(each.margins) for each in found] == [2, 1]
    for each in found:
        expected = bounds[: len(each.margins)]
        assert torch.equal(each.margins, expected - 1e-8 * (1 + expected.abs()))
    assert torch.equal(torch.cat([each[0] for each in seen]), x.double())
    assert torch.equal(torch.cat([each[1] for each in seen]), radii.double()) and seen[0][0].dtype == torch.float64
    assert torch.equal(torch.cat([each[2] for each in seen]), specifications(labels, 3))
    plain = {"method": "sdp-crown", "slopes": "free", "offset": "ball-box", "box": None, "search": Search()}
    assert [each[3:] for each in seen] == [(True, plain)] * 2
    del seen[:]
    # CROWN's slopes are chosen by CROWN's boxes, and alpha-CROWN rests on them.
    for method, same in (("sdp-crown", False), ("alpha-crown", True)):
        list(certified_margins(net, x[:1], radii[:1], labels[:1], method=method, slopes="crown"))
        assert seen.pop()[3] is same


@pytest.mark.parametrize(
    ("radius", "label", "said"),
    [
        (0.0, 0, "A radius must be a positive number; got one that is not."),
        (-1.0, 0, "A radius must be a positive number; got one that is not."),
        (math.inf, 0, "A radius must be a positive number; got one that is not."),
        (math.nan, 0, "A radius must be a positive number; got one that is not."),
        (1.0, -1, "A label is not one of the 3 classes, 0 to 2."),
        (1.0, 3, "A label is not one of the 3 classes, 0 to 2."),
    ],
)
def test_what_cannot_be_certified(radius, label, said):
    with pytest.raises(BadInput) as error:
        list(certified_margins(network(), drawn(2, 3), torch.tensor([1.0, radius]), torch.tensor([0, label])))
    assert str(error.value) == said


# --- beside the original --------------------------------------------------------------------------------------------


class Itself:
    """An original that is the network, a little off at the output that is named."""

    def __init__(self, net, off=0.0, dtype=torch.float64, fails=()):
        self.net, self.off, self.dtype, self.fails, self.seen = net, off, dtype, fails, []

    def runs(self):
        for reference in (*self.fails, "itself"):
            yield OriginalRun(reference, "1.0", self.dtype, lambda reference=reference: self.start(reference))

    def start(self, reference):
        if reference in self.fails:
            raise RuntimeError(f"{reference} is out of order")

        def outputs(x):
            self.seen.append(x)
            found = self.net(x.double())
            found[:, 1] += self.off
            return found.to(self.dtype).reshape(len(x), 1, -1)

        return outputs


def test_the_terms_of_a_network_and_its_sizes():
    net = network()
    assert _terms(net) == (2 + 1) + (2 + 3) + 2 + (2 + 4)  # a scale has one term a number
    x = drawn(5, 3)
    sizes = _absolute(net)(x.abs())
    assert (sizes >= net(x).abs()).all()
    scale, first, _, last = net.layers
    by_hand = (x.abs() * scale.weight.abs() + scale.bias.abs()) @ first.weight.abs().T
    assert_close(sizes, by_hand @ last.weight.abs().T)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float64, 2.0**-53), (torch.float32, 2.0**-24)])
def test_the_difference_that_is_allowed(dtype, unit):
    """Sixteen times what rounding explains of an input of zeros, at the output that is off."""
    net, x = network(), torch.zeros(1, 3, dtype=torch.float64)
    allowed = 16 * 16 * unit * _absolute(net)(x)[0, 1].item()
    inside = compare(net, Itself(net, 0.9 * allowed, dtype), x, torch.ones(1), points=0)
    assert 0.85 < inside.allowed < 0.95 + (dtype == torch.float32) * 0.05
    assert inside.absolute == pytest.approx(0.9 * allowed, rel=0.1) and inside.points == 1
    largest = net(x).abs().max().item()
    assert inside.relative == pytest.approx(inside.absolute / largest, rel=1e-6)
    assert (inside.reference, inside.version, inside.precision) == ("itself", "1.0", str(dtype).removeprefix("torch."))
    with pytest.raises(BadInput, match="not read as it is computed: at input 0, output 1 is"):
        compare(net, Itself(net, 1.1 * allowed, dtype), x, torch.ones(1), points=0)


def test_an_input_is_compared_with_its_points_in_pieces(monkeypatch):
    net, x = network(), drawn(5, 3)
    original = Itself(net)
    radii = torch.tensor([0.5, 0.25, 1.0, math.nan, 2.0])
    found = compare(net, original, x, radii, seed=3, points=2, rows=[7, 8, 9, 10, 11])
    assert found.points == 15 and [len(each) for each in original.seen] == [1, 15]
    expected = [_points(x[n], radii[n].item(), None, 2, np.random.SeedSequence([3, 7 + n])) for n in range(5)]
    assert torch.equal(original.seen[1], torch.cat(expected))
    monkeypatch.setattr(faithful, "CHUNK", 4 * 3 * 2)  # two inputs of three points of four numbers at once
    in_pieces = Itself(net)
    assert compare(net, in_pieces, x, radii, seed=3, points=2, rows=[7, 8, 9, 10, 11]) == found
    assert [len(each) for each in in_pieces.seen] == [1, 6, 6, 3]
    default = Itself(net)
    assert compare(net, default, x, radii).points == 25
    assert torch.equal(default.seen[1][:5], _points(x[0], 0.5, None, 4, np.random.SeedSequence([0, 0])))


@pytest.mark.parametrize(
    ("place", "where"), [(0, "input 8"), (1, "a point of the ball of input 8"), (2, "a point of the")]
)
def test_the_place_of_a_difference_is_named(place, where):
    net, x = network(), drawn(3, 3)

    class Elsewhere(Itself):
        def start(self, reference):
            whole = super().start(reference)

            def outputs(given):
                found = whole(given)
                if len(given) > 1:
                    found[3 + place, 0, 2] += 1
                return found

            return outputs

    with pytest.raises(BadInput, match=f"at {where}.*output 2 is .* in itself 1.0 \\(torch.float64\\)"):
        compare(net, Elsewhere(net), x, torch.ones(3), points=2, rows=[7, 8, 9])


def test_the_first_run_that_takes_an_input_is_the_reference():
    net, x = network(), drawn(1, 3)
    assert compare(net, Itself(net, fails=("one", "two")), x, torch.ones(1)).reference == "itself"

    class Never(Itself):
        def runs(self):
            return iter(list(super().runs())[:-1])

    with pytest.raises(BadInput) as error:
        compare(net, Never(net, fails=("one", "two")), x, torch.ones(1))
    assert str(error.value) == (
        "n: the original does not run on an input of shape (3,) (one in torch.float64: one is out of order; two in "
        "torch.float64: two is out of order), so that what was read cannot be compared with it."
    )


@pytest.mark.parametrize(
    ("gives", "told"), [(lambda x: x[:, :2], r"\(5, 2\)"), (lambda x: [1], "list"), (lambda x: x[:1], r"\(1, 3\)")]
)
def test_other_outputs_than_were_read(gives, told):
    class Other(Itself):
        def start(self, reference):
            return gives

    net = network()
    with pytest.raises(BadInput, match=rf"^n: itself gives {told} for 5 inputs, where 3 outputs each were read\.$"):
        compare(net, Other(net), drawn(1, 3), torch.ones(1))


def test_points_by_hand():
    center, seed = drawn(3), np.random.SeedSequence([1, 2])
    rng = np.random.default_rng(np.random.SeedSequence([1, 2]))
    steps, reach = rng.normal(size=(4, 3)), rng.uniform(size=3)
    away = 0.5 * np.array([1.0, *reach])[:, None] * steps / np.linalg.norm(steps, axis=1, keepdims=True)
    assert_close(_points(center, 0.5, None, 4, seed), torch.cat([center[None], center + torch.from_numpy(away)]))
    assert torch.equal(_points(center, 0.5, None, 0, seed), center[None])
    one = _points(center, 0.5, None, 1, np.random.SeedSequence(3))
    assert one.shape == (2, 3) and (one[1] - center).norm().item() == pytest.approx(0.5)
    zero = _points(torch.zeros(3).double(), math.nan, None, 1, np.random.SeedSequence(3))
    assert zero[1].norm().item() == pytest.approx(1.0)  # of an input of zeros there is no tenth


def test_negative_margins_are_raised_from_the_lowest_on_until_one_stays_negative(monkeypatch):
    """With half of 1 and of the bound as slack: 3 proves 1, 1 proves 0, and -1 proves -2."""
    # By input: its margins, what a search finds of each, which are tried in which order, and what is left.
    table = [
        ([-3.0, -1.0], [3.0, -0.25], [0, 1], [1.0, -0.875]),
        ([-1.0, -2.0], [9.0, -1.0], [1], [-1.0, -2.0]),  # no more than was known: the other is not tried
        ([0.0, -1.0], [9.0, 1.0], [1], [0.0, 0.0]),  # a margin of 0 is not negative, before or after
        ([-1.0, -2.0], [3.0, 1.0], [1, 0], [1.0, 0.0]),
        ([1.0, 2.0], [9.0, 9.0], [], [1.0, 2.0]),
        ([-1.0, -1.5], [9.0, 9.0], [], [-1.0, -1.5]),  # one entry too many
        ([-0.125, -0.5], [3.0, 2.0], [1, 0], [0.25, 0.125]),  # in units of a quarter
    ]
    units = [1.0] * 6 + [4.0]
    net, tried = network(), []
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    chosen = specifications(labels, 3)

    def solve(problem, objective):
        (j,) = (chosen[problem.item] * units[problem.item] == objective).all(1).nonzero()[:, 0].tolist()
        tried.append((problem.item, j))
        return Dual(table[problem.item][1][j], {2: torch.full((5, 1), 8.0)}, 2.0)

    def problem(small, at, radius, known, item):
        assert radius == 0.5 + item and torch.equal(at, x[item])
        return SimpleNamespace(item=item, output=torch.eye(3, dtype=torch.float64))

    monkeypatch.setattr(certificate, "SLACK", 0.5)
    monkeypatch.setattr(certificate.semidefinite, "entries", lambda known, item, inputs: 998 + inputs - (item != 5))
    monkeypatch.setattr(certificate.semidefinite, "problem", problem)
    monkeypatch.setattr(certificate.semidefinite, "solve", solve)
    x, radii = drawn(7, 3), 0.5 + torch.arange(7.0)
    margins = torch.tensor([row[0] for row in table], dtype=torch.float64)
    before = Certified(margins.clone(), {}, Relaxation({}, {}), units=units)
    found = refined(net, x, radii, labels, before)
    assert tried == [(i, j) for i, (_, _, order, _) in enumerate(table) for j in order]
    assert found.margins.tolist() == [row[3] for row in table] and torch.equal(before.margins, margins)
    raised = [(i, j) for i, j in tried if found.margins[i, j] > margins[i, j]]
    assert list(found.duals) == raised and (1, 1) not in raised and before.duals == {}
    for (i, j), dual in found.duals.items():
        assert (dual.bound, dual.ball) == (table[i][1][j] / units[i], 2.0 / units[i])
        assert torch.equal(dual.multipliers[2], torch.full((5, 1), 8.0 / units[i]))
    del tried[:]
    refined(net, x, radii, labels, before, torch.arange(7) == 3)
    assert tried == [(3, 1), (3, 0)]


def test_coefficients_are_worked_with_in_powers_of_two():
    """1 where outputs move by 2^-10 or more, else the least power that lets them, 2^100 at most; 1 where nothing moves."""
    moved = [4.0, 2.0**-10, 2.0**-11, 0.75 * 2.0**-10, 0.49 * 2.0**-10, 2.0**-109, 2.0**-110, 2.0**-111, 1e-300, 0.0]
    expected = [1.0, 1.0, 2.0, 2.0, 4.0, 2.0**99, 2.0**100, 2.0**100, 2.0**100, 1.0]
    assert certificate._units(torch.tensor(moved, dtype=torch.float64)).tolist() == expected


def test_a_network_of_small_outputs_is_bounded_in_larger_units(monkeypatch):
    builder, unit = Builder((3,)), 2.0**-14
    value = builder.relu(builder.linear(0, torch.eye(3).double(), None))
    net, seen = builder.build(builder.linear(value, unit * torch.eye(3).double(), None), "small"), []

    def optimize(network, x, radius, chosen, known, **how):
        seen.append(chosen)
        slopes = {index: torch.zeros(len(x), 2, 3) for index in known}
        return torch.ones(2, 2, dtype=torch.float64), Relaxation(slopes, {1: torch.full((2, 2), 64.0).double()})

    monkeypatch.setattr(certificate, "optimize", optimize)
    x, labels = torch.ones(2, 3), torch.tensor([0, 2])
    (found,) = certified_margins(net, x, torch.tensor([1.0, 0.25]), labels)
    assert found.units == [16.0, 64.0]  # of 2^-14 and of 2^-16, and a hair: the least power by which 2^-10 is reached
    assert torch.equal(seen[0], specifications(labels, 3) * torch.tensor([16.0, 64.0])[:, None, None])
    assert torch.equal(found.margins, (1 - 2e-8) / torch.tensor([[16.0] * 2, [64.0] * 2]).double())
    assert found.relaxation.multipliers[1].tolist() == [[4.0, 4.0], [1.0, 1.0]]
