"""What the checker allows for rounding and underflow is needed: claims that are false by a hair, in exact fractions."""

import contextlib
import itertools
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.verification import check, rounding
from equipoise.verification.check_files import FORMAT, KINDS, Net, Refused
from equipoise.verification.rounding import TINY, Near, U, near

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def in_any_order():
    """The same numbers for a test, whatever ran before it."""
    RNG.bit_generator.state = START


def exact(x):
    return np.vectorize(Fraction, otypes=[object])(x)


def linear(weight, bias=0.0, inputs=0):
    weight = np.array(weight, dtype=np.float64)
    return {"kind": "linear", "inputs": [inputs], "weight": weight, "bias": np.zeros(len(weight)) + bias}


def scale(weight, inputs=0):
    weight = np.array(weight, dtype=np.float64)
    return {"kind": "scale", "inputs": [inputs], "weight": weight, "bias": np.zeros(len(weight))}


def add(*inputs):
    return {"kind": "add", "inputs": list(inputs)}


def relu(inputs):
    return {"kind": "relu", "inputs": [inputs]}


def net_of(*layers, size=1):
    sizes = [size]
    for layer in layers:
        sizes.append(len(layer["bias"]) if "weight" in layer else sizes[layer["inputs"][0]])
    return Net((size,), sizes, list(layers), "0" * 64)


def claimed(net, x, radius, label, margins, *, loose=1.0, **arrays):
    """A certificate with norms that hold. arrays: those of ReLU layers and the box."""
    given = {"input": x, "radius": radius, "margins": margins, **arrays}
    content = {name: np.array(value, dtype=np.float64) for name, value in given.items()}
    content |= {"format": np.array(FORMAT), "network": np.array(net.digest), "label": np.array(label)}
    for place, layer in enumerate(net.layers):
        if layer["kind"] == "linear":
            content[f"norm_{place}"] = np.array((np.linalg.norm(layer["weight"]) or 1e-9) * (1 + 1e-9) * loose)
    return content


def enclosed(at, centre, axes, lower, upper, *, multiplier=1e-6, slopes=0.0, classes=2):
    """The arrays of one ReLU layer."""
    found = {"centre": centre, "axes": axes, "lower": lower, "upper": upper, "lambda": [multiplier] * (classes - 1)}
    found["slopes"] = np.full((classes - 1, len(centre)), slopes)
    return {f"{name}_{at}": value for name, value in found.items()}


def refused(content, net, match=None):
    with pytest.raises(Refused, match=match):
        pytest.fail(f"proved: {check.prove(content, net)}")


# Underflow


def test_coefficients_that_underflow_with_their_errors_prove_nothing():
    """f_0 = x: 1e110 thrice, then 1e-110 thrice. Going back 1e-330 is 0, and 0 times 1e330 is 0."""
    down, last = [linear([[1e-110]], inputs=place) for place in (3, 4)], linear([[1e-110], [0.0]], inputs=5)
    net = net_of(*(linear([[1e110]], inputs=place) for place in range(3)), *down, last)
    refused(claimed(net, [-1.0], 0.0, 0, [-1e-6]), net, "the margin")
    assert check.prove(claimed(net, [-1.0], 0.0, 0, [-1e40]), net) == [-1e40]


def test_values_that_underflow_with_their_errors_prove_nothing():
    """f_1 - f_0 = -relu(x): 1e-110 thrice, then 1e110 thrice. Going forward the value is 0, and so is its ball."""
    layers = [linear([[w]], inputs=place) for place, w in enumerate([1e-110] * 3 + [1e110] * 3)]
    net = net_of(*layers, relu(6), linear([[1.0], [0.0]], inputs=7))
    for loose in (1.0, 1e9):
        content = claimed(net, [1.0], 0.0, 1, [-1e-6], loose=loose, **enclosed(6, [0.0], [1e-7], [-1e-7], [1e-7]))
        refused(content, net, "layer input 6")
        content = claimed(net, [0.0], 1.0, 1, [-1e-6], loose=loose, **enclosed(6, [0.0], [1e-7], [-1e-7], [1e-7]))
        refused(content, net, "layer input 6")


def test_rows_whose_squares_underflow_are_not_short():
    """x within 1e20, 1e150 and 1e-170: the second layer's value goes to 1, although the square of its weight is 0."""
    net = net_of(linear([[1e150]]), linear([[1e-170]], inputs=1), relu(2), linear([[1.0], [0.0]], inputs=3))
    box = enclosed(2, [0.0], [1e25], [-1e-7], [1e-7], multiplier=1e-20)
    content = claimed(net, [0.0], 1e20, 1, [-1e-6], **box)
    content["norm_1"] = np.array(1e-160)
    refused(content, net, "the box at layer input 2 is too small")


def test_a_gradient_whose_square_underflows_is_not_short():
    net = net_of(linear([[1e-170], [0.0]]))
    refused(claimed(net, [0.0], 1e170, 0, [-0.9]), net, "the margin")
    assert check.prove(claimed(net, [0.0], 1e170, 0, [-1.1]), net) == [-1.1]
    boxed = claimed(net, [0.0], 1e170, 0, [-0.9], box=[-1e170, 1e170], lambda_input=[1e-171])
    refused(boxed, net, "the margin")


def test_a_norm_whose_squares_underflow_is_not_short():
    weight = np.full((1000, 1000), 3e-163)  # its norm is 3e-160, and all squares are 0
    layer = linear(weight)
    with contextlib.suppress(Refused):
        assert check.prove_norm(layer, np.ones(1), 1e-160) >= 3e-160
    assert check.prove_norm(linear([[1e-200]]), np.ones(1), 1e-9) < 2e-9
    with pytest.raises(Refused):
        check.prove_norm(layer, np.ones(1), 0.0)


def test_axes_beside_which_underflow_would_count_are_refused():
    net = net_of(relu(0), linear([[1.0], [0.0]], inputs=1))
    for axis in (5e-324, 1e-300, 2.0**-900, -1.0, 0.0):
        content = claimed(net, [0.0], 0.0, 1, [-1e-6], **enclosed(0, [0.0], [axis], [-1e-9], [1e-9]))
        refused(content, net, "axes_0 is not above")


# Enclosures that are false by one rounding


def false_box(net, at, x, radius, lower, upper, **arrays):
    """Claims a box that ends exactly there around an ample ball."""
    centre = np.array(x)
    for layer in net.layers[:at]:
        if layer["kind"] == "linear":
            centre = layer["weight"] @ centre + layer["bias"]
    away = enclosed(at, centre, [10.0 + 10 * radius], np.full(len(centre), lower), np.full(len(centre), upper))
    refused(claimed(net, x, radius, 1, [-100.0], **away, **arrays), net, f"the box at layer input {at} is too small")


def test_the_inputs_box_is_rounded_outwards():
    net = net_of(relu(0), linear([[1.0], [0.0]], inputs=1))
    assert 1.0 - 2.0**-54 == 1.0
    false_box(net, 0, [1.0], 2.0**-54, 1.0, 2.0)
    false_box(net, 0, [-1.0], 2.0**-54, -2.0, -1.0)
    false_box(net, 0, [1.0], 1.0, 1e-9, 9.0)
    false_box(net, 0, [1.0], 1.0, -9.0, 2.0 - 1e-9)


def test_the_box_of_a_sum_is_rounded_outwards():
    """3 x for x from 0.1 to 0.7, as x + relu(x) + x: 0.1 + 0.1 + 0.1 is above the truth, and 0.7 + 0.7 + 0.7 below."""
    net = net_of(relu(0), add(0, 1), add(2, 0), relu(3), linear([[1.0], [0.0]], inputs=4))
    assert Fraction(0.1 + 0.1 + 0.1) > 3 * Fraction(0.1) and Fraction(0.7 + 0.7 + 0.7) < 3 * Fraction(0.7)
    tied = {"box": [0.1, 0.7], "lambda_input": [1e-6]}
    relu_0 = enclosed(0, [0.1], [2.0], [-9.0], [9.0])
    for lower, upper in ((0.1 + 0.1 + 0.1, 9.0), (-9.0, 0.7 + 0.7 + 0.7), (0.29, 2.11)):
        relu_3 = enclosed(3, [0.3], [9.0], [lower], [upper])
        content = claimed(net, [0.1], 0.9, 1, [-50.0], **relu_0, **relu_3, **tied)
        fits = (lower, upper) == (0.29, 2.11)
        if fits:
            check.prove(content, net)
        else:
            refused(content, net, "the box at layer input 3 is too small")


def test_the_box_of_a_layer_holds_what_rounding_hides():
    """w x + b from 0 on but for what was rounded: the sum is 0 as computed, and its error decides."""
    seen = 0
    for _ in range(60):
        w, x, r = RNG.uniform(1, 2, 3)
        bias = -(w * x - w * r)
        lowest = Fraction(w) * Fraction(x) - Fraction(w) * Fraction(r) + Fraction(bias)
        net = net_of(linear([[w]], bias), relu(1), linear([[1.0], [0.0]], inputs=2))
        if lowest < 0:
            seen += 1
            false_box(net, 1, [x], r, 0.0, 9.0)
    assert seen > 10


def test_the_box_of_a_layer_holds_what_its_centre_lost():
    """At a point: sums that cancel, whose exact value is elsewhere than the computed one."""
    for _ in range(30):
        weight, x = RNG.normal(size=(1, 4)) * 1e9, RNG.normal(size=4)
        computed = weight @ x
        bias = -float(computed[0]) + float(RNG.normal()) * 1e-3
        net = net_of(linear(weight, bias), relu(1), linear([[1.0], [0.0]], inputs=2), size=4)
        value, truth = float((computed + bias)[0]), exact(weight)[0] @ exact(x) + Fraction(bias)
        assert abs(truth - Fraction(value)) > 1e-9
        if truth < Fraction(value):
            false_box(net, 1, x, 0.0, value, 9e9)
        else:
            false_box(net, 1, x, 0.0, -9e9, value)
        short = enclosed(1, [value], [float(abs(truth - Fraction(value))) / 2], [-9e9], [9e9])
        refused(claimed(net, x, 0.0, 1, [-9e9], **short), net, "the ball at layer input 1 is too small or elsewhere")


def test_the_box_of_a_layer_allows_for_sums_in_any_order():
    """200 products of about 1: n u times the sum of their sizes, although this machine's order may err by less."""
    weight, x = RNG.uniform(0.5, 1, (1, 200)), RNG.choice([-1.0, 1.0], 200)
    net = net_of(linear(weight), relu(1), linear([[1.0], [0.0]], inputs=2), size=200)
    value, allowed = float((weight @ x)[0]), 200 * U * weight.sum()
    for below, above, fits in ((0.9, 2.0, False), (2.0, 0.9, False), (1.1, 1.1, True)):
        away = enclosed(1, [value], [1.0], [value - below * allowed], [value + above * allowed])
        content = claimed(net, x, 0.0, 1, [-900.0], **away)
        if fits:
            check.prove(content, net)
        else:
            refused(content, net, "the box at layer input 1 is too small")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_balls_of_a_sum_add_up(order):
    """x + (3 x_0, -x_1): the ball of radius 1 and the ellipsoid of 3 and 1 make a ball of 4."""
    net = net_of(scale([3.0, -1.0]), add(*order), relu(2), linear([[1.0, 1.0], [0.0, 0.0]], inputs=3), size=2)
    for axis, fits in ((4 - 1e-9, False), (4 + 1e-9, True)):
        away = enclosed(2, [0.0, 0.0], [axis], [-9.0, -9.0], [9.0, 9.0])
        content = claimed(net, [0.0, 0.0], 1.0, 1, [-50.0], **away)
        if fits:
            check.prove(content, net)
        else:
            refused(content, net, "the ball at layer input 2 is too small")


def test_an_ellipsoid_has_the_size_of_its_scales():
    """Scales of -2 and 1 after one of 0.5 and 3: axes of 1 and 3, in either order too small by little."""
    net = net_of(scale([0.5, 3.0]), scale([-2.0, 1.0], inputs=1), relu(2), linear(np.eye(2), inputs=3), size=2)
    for axes, fits in (([1 - 1e-9, 4.0], False), ([4.0, 3 - 1e-9], False), ([1 + 1e-9, 3 + 1e-9], True), ([3.1], True)):
        away = enclosed(2, [0.0, 0.0], axes, [-9.0, -9.0], [9.0, 9.0])
        content = claimed(net, [0.0, 0.0], 1.0, 1, [-50.0], loose=4.0, **away)
        if fits:
            check.prove(content, net)
        else:
            refused(content, net, "the ball at layer input 2 is too small")
    # Two layers on: the norm is that of the matrix times the ellipsoid's axes.
    net = net_of(scale([0.5, 3.0]), linear([[1.0, 1.0]], inputs=1), relu(2), linear([[1.0], [0.0]], inputs=3), size=2)
    content = claimed(net, [0.0, 0.0], 1.0, 1, [-50.0], **enclosed(2, [0.0], [9.0], [-9.0], [9.0]))
    true = math.sqrt(0.25 + 9)
    for norm, axis, fits in ((true, true + 1e-6, True), (true, true - 1e-6, False), (true - 1e-6, 9.0, False)):
        changed = {**content, "norm_1": np.array(norm * (1 + 1e-9)), "axes_2": np.array([axis])}
        if fits:
            check.prove(changed, net)
        else:
            refused(changed, net)
    for reach, fits in ((true - 1e-9, False), (true + 1e-9, True)):
        changed = {**content, "norm_1": np.array(8.0), "lower_2": np.array([-reach]), "upper_2": np.array([reach])}
        if fits:
            check.prove(changed, net)
        else:
            refused(changed, net, "the box at layer input 2 is too small")


def test_a_ball_that_is_short_by_one_rounding_is_refused():
    seen, net = 0, net_of(relu(0), linear([[1.0], [0.0]], inputs=1))
    for moved, axis in ((0.5, 1.49), (-0.5, 1.49), (0.0, 0.99)):
        away = enclosed(0, [1 + moved], [axis], [-9.0], [9.0])
        refused(
            claimed(net, [1.0], 1.0, 1, [-50.0], **away), net, "the ball at layer input 0 is too small or elsewhere"
        )
        check.prove(claimed(net, [1.0], 1.0, 1, [-50.0], **{**away, "axes_0": [axis + 0.02]}), net)
    for _ in range(100):
        x, r, away = *RNG.uniform(1, 2, 2), RNG.choice([0.0, 2.0**-52])
        moved = enclosed(0, [x + away], [r + away], [-9.0], [9.0])
        if Fraction(x + away) - Fraction(x) + Fraction(r) >= Fraction(r + away):
            seen += 1
            refused(
                claimed(net, [x], r, 1, [-50.0], **moved), net, "the ball at layer input 0 is too small or elsewhere"
            )
    assert seen > 30


def test_a_set_is_grown_by_the_error_of_its_centre():
    for _ in range(100):
        n = int(RNG.integers(1, 4))
        value, d = RNG.normal(size=n) * 10.0 ** RNG.uniform(-2, 6, n), RNG.uniform(1, 2, n)
        error = abs(RNG.normal(size=n)) * 10.0 ** RNG.integers(-30, 1)
        t = float(RNG.uniform(1, 2))
        if RNG.random() < 0.5:
            value = t * d * RNG.choice([-1, 1])  # so that an end of it is 0 as computed
            error = np.zeros(n)
        centre, grown, same, low, high = check._around(Near(value, error), t, d)
        assert centre is value and same is d
        more = sum((exact(error) / exact(d)) ** 2)
        assert (Fraction(grown) - Fraction(t)) ** 2 >= more and Fraction(grown) > Fraction(t)
        assert Fraction(grown) <= Fraction(t) + Fraction(math.sqrt(more)) * 2 + Fraction(1, 10**12)
        reach = Fraction(grown) * exact(d)
        assert (exact(low) <= exact(value) - reach).all() and (exact(high) >= exact(value) + reach).all()
        assert np.allclose([low, high], [value - grown * d, value + grown * d], rtol=1e-13, atol=1e-12)


def convolution(groups=2):
    weight = RNG.normal(size=(4, 4 // groups, 2, 3))
    shape = {"shape": [4, 3, 3], "stride": [2, 1], "padding": [1, 1], "dilation": [2, 1], "groups": groups}
    return {"kind": "conv2d", "inputs": [0], "weight": weight, "bias": RNG.normal(size=4), **shape}


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_matrix_of_a_convolution_is_exact_in_either_direction(groups, monkeypatch):
    layer = convolution(groups)
    n, m = check._inputs(layer), len(check._bias(layer))
    forward, back = check._apply(layer, np.eye(n)).T, check._back(layer, np.eye(m))
    assert (forward == back).all() and (check._matrix(layer) == forward).all() and forward.shape == (m, n)
    assert set(np.unique(forward)) == {0.0, *layer["weight"].flat}
    monkeypatch.setattr(check, "PIECE", 1)
    assert (check._matrix(layer) == forward).all()
    wide = {**layer, "weight": layer["weight"][:groups], "bias": layer["bias"][:groups]}
    assert (check._matrix(wide) == check._apply(wide, np.eye(n)).T).all()
    # The most products that any number of the result is a sum of, going forward or back, and the bias.
    most = max((forward != 0).sum(1).max(), (forward != 0).sum(0).max())
    assert most + 1 <= check._terms(layer)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [
        ((1, 1), (0, 0), (1, 1), 1),
        ((2, 3), (1, 0), (2, 1), 1),
        ((1, 2), (2, 3), (1, 2), 4),
        ((3, 1), (0, 2), (1, 3), 2),
    ],
)
def test_a_convolution_is_that_of_torch(stride, padding, dilation, groups):
    weight, bias, x = (RNG.normal(size=size) for size in ((8, 4 // groups, 2, 3), (8,), (2, 4, 7, 9)))
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    layer = {"kind": "conv2d", "weight": weight, "bias": bias, "shape": [4, 7, 9], "groups": groups}
    layer |= {name: list(pair) for name, pair in how.items()}
    given = [torch.from_numpy(each) for each in (x, weight, bias)]
    plain, whole = (
        torch.nn.functional.conv2d(*given[:2], each, **how, groups=groups).numpy() for each in (None, given[2])
    )
    assert check._out_shape(layer) == whole.shape[1:]
    assert np.allclose(check._apply(layer, x.reshape(2, -1)), plain.reshape(2, -1))
    assert np.allclose(whole - plain, check._bias(layer).reshape(whole.shape[1:]))
    c = RNG.normal(size=(3, whole[0].size))
    assert np.allclose(check._back(layer, c), c @ check._apply(layer, np.eye(4 * 7 * 9)).T)
    assert check._padded(layer, 5).shape == (5, groups, 4 // groups, 7 + 2 * padding[0], 9 + 2 * padding[1])
    assert check._terms(layer) == weight.size + 2


@pytest.mark.parametrize("scale", [1.0, 1e-170, 1e150])
def test_row_lengths_are_never_short(scale):
    for layer in (
        linear(RNG.normal(size=(1, 1000)) * scale),
        convolution() | {"weight": convolution()["weight"] * scale},
    ):
        n = check._inputs(layer)
        for d in (np.ones(1), RNG.uniform(0.5, 2, n), 10.0 ** RNG.uniform(-200, -100, n)):
            found = exact(check._row_lengths(layer, d))
            matrix = exact(check._matrix(layer)) * exact(np.broadcast_to(d, n))
            squares = (matrix**2).sum(1)
            assert (found**2 >= squares * (1 + (matrix != 0).sum(1).max() * Fraction(U))).all()
            if scale == 1.0 and d.max() > 0.1:
                assert (found**2 <= squares * (1 + Fraction(1, 10**12))).all()
    tiny = exact(check._row_lengths(linear(np.full((1, 2), 5e-324)), np.ones(1)))
    assert tiny[0] ** 2 > 2 * Fraction(5e-324) ** 2
    assert check._row_lengths(linear(np.zeros((2, 3))), np.ones(1)).max() < 1e-140


def test_products_are_counted():
    assert check._terms(linear(np.zeros((3, 7)))) >= 8  # of one row and its bias, or of a column
    assert check._terms(linear(np.zeros((7, 3)))) >= 8
    assert check._terms({"kind": "scale", "weight": np.zeros(1)}) >= 2


@pytest.mark.parametrize(
    "layer", [linear(RNG.normal(size=(3, 30)), RNG.normal(size=3)), convolution()], ids=["linear", "conv"]
)
def test_a_layer_and_its_transpose_hold_every_result(layer):
    n, m = check._inputs(layer), len(check._bias(layer))
    matrix, bias = exact(check._matrix(layer)), exact(check._bias(layer))
    x, c = (Near(RNG.normal(size=(2, k)), abs(RNG.normal(size=(2, k))) * 1e-13) for k in (n, m))
    for found, way, shift, given in (
        (check._forward(layer, x), matrix.T, bias, x),
        (check._backward(layer, c), matrix, 0, c),
    ):
        spread = exact(given.error) @ abs(way)
        sizes = abs(exact(given.value)) @ abs(way) + abs(shift)
        assert (
            exact(found.error) >= spread + len(way) * Fraction(U) * sizes * (1 if layer["kind"] == "linear" else 0)
        ).all()
        for x_end in (exact(given.value) - exact(given.error), exact(given.value) + exact(given.error)):
            assert (abs(x_end @ way + shift - exact(found.value)) <= exact(found.error)).all()


# Norms


def norm_demand(matrix, claimed):
    """What the square of a proved norm may not be below: the claim and the error of each step in the theory, as floats."""
    (m, n), u = matrix.shape, U
    square, size, terms = float((matrix**2).sum()), min(m, n), max(m, n)
    gram = terms * u * square
    diagonal = 2 * u * (claimed**2 + square / size)
    trace = abs(size * claimed**2 - square)
    return gram, diagonal, (size + 1) * u * trace


@pytest.mark.parametrize(
    ("shape", "loose", "most"),
    [((1, 100_000), 1 + 1e-9, 0), ((200, 200), 1 + 1e-9, 0), ((1, 1), 1 + 1e-12, 1), ((200, 200), 1e4, 2)],
    ids=["a long row", "an orthogonal matrix", "the diagonal", "the factorisation"],
)
def test_a_proved_norm_pays_for_every_step(shape, loose, most):
    """Matrices of each of which another step's error is most of the sum."""
    matrix = RNG.uniform(0.5, 1, size=shape)
    if shape == (200, 200) and not most:
        matrix = np.linalg.qr(RNG.normal(size=shape))[0]
    claimed = float(np.linalg.norm(matrix, 2)) * loose
    asked = norm_demand(matrix, claimed)
    assert asked[most] > 0.6 * sum(asked)
    found = check.prove_norm(linear(matrix), np.ones(1), claimed)
    paid = Fraction(found) ** 2 - Fraction(claimed) ** 2
    assert sum(asked) <= paid <= 5 * sum(asked) + 200 * U * claimed**2


def test_a_norm_of_rounded_products_pays_for_them():
    for _ in range(100):
        w, d = RNG.uniform(1, 2, 2)
        claimed = float(np.nextafter(w * d, 9) if RNG.random() < 0.5 else w * d * (1 + 1e-15))
        try:
            found = check.prove_norm(linear([[w]]), np.array([d]), claimed)
        except Refused:
            continue
        assert Fraction(found) >= Fraction(w) * Fraction(d)


def test_a_norm_that_is_claimed_too_small_by_little_is_refused():
    for shape in ((1, 50), (50, 1), (30, 40), (40, 30)):
        matrix = RNG.normal(size=shape)
        true = float(np.linalg.norm(matrix, 2))
        d = RNG.uniform(0.5, 2, shape[1])
        assert true <= check.prove_norm(linear(matrix), np.ones(1), true * (1 + 1e-11)) <= true * (1 + 1e-9)
        stretched = float(np.linalg.norm(matrix * d, 2))
        assert stretched <= check.prove_norm(linear(matrix), d, stretched * (1 + 1e-11)) <= stretched * (1 + 1e-9)
        for wrong in (true * (1 - 1e-11), -true / 2, 0.0):
            with pytest.raises(Refused, match="spectral norm"):
                check.prove_norm(linear(matrix), np.ones(1), wrong)


def test_the_norm_of_a_large_layer_is_bounded_by_its_sums(monkeypatch):
    monkeypatch.setattr(check, "DENSE", 0)
    ones = np.full((3, 5), 0.7)
    for layer, d in itertools.product(
        (linear(ones), linear(ones.T), convolution(), linear(RNG.normal(size=(4, 6)))), (1.0, 0.3)
    ):
        matrix = check._matrix(layer) * d
        found = check.prove_norm(layer, np.array([d]), 0.0)
        assert found >= np.linalg.norm(matrix, 2)
        sums = [abs(exact(check._matrix(layer))).sum(axis).max() * Fraction(d) for axis in (0, 1)]
        assert Fraction(found) ** 2 >= sums[0] * sums[1] / 1 if d == 1.0 else Fraction(found) ** 2 >= sums[0] * sums[1]
        assert found == pytest.approx(math.sqrt(sums[0] * sums[1]), rel=1e-12)
    stretched = check.prove_norm(linear([[3.0, 4.0]]), np.array([1.0, 0.5]), 0.0)
    assert stretched == pytest.approx(math.sqrt(5.0 * 3.0), rel=1e-12)


def test_a_matrix_with_a_factor_may_be_negative_by_so_much():
    for n in (1, 5, 300):
        diagonal = RNG.uniform(0, 1, n)
        asked = (n + 1) * Fraction(U) * sum(exact(diagonal))
        assert asked <= Fraction(check._factor_error(diagonal)) <= 5 * asked + (n + 3) * 2 * Fraction(TINY)
        assert check._factor_error(-diagonal) == check._factor_error(diagonal)
    assert not check._has_factor(np.full((2, 2), np.nan)) and not check._has_factor(np.full((2, 2), np.inf))
    assert not check._has_factor(-np.eye(2)) and check._has_factor(np.eye(2))


@pytest.mark.parametrize("what", ["its error", "the factorisation", "the size of w"])
def test_a_form_is_nonnegative_where_its_corner_pays(what):
    """A diagonal form whose corner is a little above, and a little below, what is asked of it."""
    n, size = (2, 3.0) if what == "its error" else (400, 2.0) if what == "the factorisation" else (2, 50.0)
    error = np.full((n, n), 1e-3 if what != "the factorisation" else 0.0)
    value = np.eye(n)
    value[1:] *= 1e6 if what == "the factorisation" else 1.0
    value[0, 0] = 0.0
    asked = size * (float(np.linalg.norm(error)) + (n + 1) * U * float(np.trace(value)))
    for corner, holds in ((0.99 * asked, False), (1.05 * asked if error.any() else 5 * asked, True)):
        value[0, 0] = corner
        form = Near(value.copy(), error)
        assert check._nonnegative(form, size) == holds
        assert (form.value == value).all()


# Going back


def test_the_line_above_relu_is_never_too_flat():
    low, high = -(10.0 ** RNG.uniform(-3, 3, 300)), 10.0 ** RNG.uniform(-3, 3, 300)
    low[:4], high[:4] = [-5e-324, -1e-310, -1e200, -1.0], [5e-324, 1e-310, 1e-200, 2.0**-60]
    found = exact(check._chord(low, high))
    assert (found >= exact(high) / (exact(high) - exact(low))).all() and (found <= 1 + Fraction(1, 10**12)).all()


def test_a_penalty_is_never_too_small():
    w, reach = 10.0 ** RNG.uniform(-5, 5, 300), 10.0 ** RNG.uniform(-5, 5, 300)
    w[:3], reach[:3] = [5e-324, 1e-320, 1e-200], [1.4, 0.7, 1e-70]
    found, asked = exact(check._penalty(w, reach)), exact(w) * exact(reach) ** 2 / 2
    assert (found >= asked).all() and (found <= asked * (1 + Fraction(1, 10**12)) + Fraction(TINY)).all()


def least_exactly(a, w, centre, low, high):
    z = min(max(centre - a / w, low), high)
    return a * z + w / 2 * (z - centre) ** 2


def test_the_least_of_a_parabola_is_never_too_large():
    n = 200
    a = Near(RNG.normal(size=n) * 10.0 ** RNG.uniform(-3, 3, n), np.where(RNG.random(n) < 0.5, 0, 1e-9))
    w, centre = 10.0 ** RNG.uniform(-8, 3, n), RNG.normal(size=n)
    low, high = np.sort(RNG.normal(size=(2, n)), axis=0)
    w[:3], centre[:3] = [5e-324, 1e-310, 1e300], [0.0, 1e-310, 5e-324]
    with np.errstate(over="ignore"):
        found = check._least(a, w, centre, low, high)
    for i in range(n):
        numbers = [Fraction(float(each[i])) for each in (w, centre, low, high)]
        ends = [Fraction(a.value[i]) + sign * Fraction(a.error[i]) for sign in (-1, 1)]
        least = min(least_exactly(end, *numbers) for end in ends)
        assert Fraction(found.least[i]) <= least
        if i > 2:
            size = abs(a.value[i]) + w[i] * (abs(centre[i]) + abs(low[i]) + abs(high[i]) + 1)
            assert least - Fraction(found.least[i]) <= 1e-8 + 1e-12 * size * (1 + abs(low[i]) + abs(high[i]))


def test_margins_of_linear_networks_are_below_the_truth_and_close_to_it():
    """Three layers whose products cancel: the truth c'(W x + b) - r |W'c| is a fraction and a root."""
    for trial in range(30):
        big = 10.0 ** RNG.integers(0, 9)
        first = RNG.normal(size=(4, 3)) * big
        layers = [linear(first, RNG.normal(size=4) * big)]
        layers += [
            linear(RNG.normal(size=(3, 4)), RNG.normal(size=3), inputs=1),
            linear(RNG.normal(size=(3, 3)), inputs=2),
        ]
        net, x, radius = net_of(*layers, size=3), RNG.normal(size=3), float(10.0 ** RNG.uniform(-9, 1))
        boxed = {"box": [-20.0, 20.0], "lambda_input": [big, big]} if trial % 3 == 0 else {}
        proof = check._Proof(claimed(net, x, radius, 1, [0.0, 0.0], **boxed), net)
        proof.sets = {}
        found = proof._lower_bounds()
        value, rows = exact(x), exact(np.eye(3))
        for layer in layers:
            value = exact(layer["weight"]) @ value + exact(layer["bias"])
            rows = exact(layer["weight"]) @ rows
        for bound, other in zip(found, (0, 2), strict=True):
            middle, gradient = value[1] - value[other], rows[1] - rows[other]
            falls = middle - Fraction(float(bound))  # at least r |gradient|
            needed = Fraction(radius) ** 2 * sum(gradient**2)
            assert falls > 0 and falls**2 >= needed
            if not boxed:
                assert float(falls) <= math.sqrt(needed) * (1 + 1e-9) + 1e-11 * big


def cancelling():
    """Two layers of 1e8 whose product is 0 but for what rounding leaves: the layers, the exact product and the computed."""
    p, q, w = RNG.uniform(1, 2, 3) * 1e8
    layers = [linear([[w], [-p * w / q]]), linear([[p, q], [0.0, 0.0]], inputs=1)]
    product = exact(layers[1]["weight"][0]) @ exact(layers[0]["weight"])[:, 0]
    return layers, product, float((layers[1]["weight"][:1] @ layers[0]["weight"])[0, 0])


def test_a_gradient_that_cancels_is_as_long_as_it_may_be():
    seen = 0
    for _ in range(60):
        layers, product, computed = cancelling()
        if abs(product) > abs(Fraction(computed)) + Fraction(1, 10):
            seen += 1
            net = net_of(*layers)
            refused(claimed(net, [0.0], 1.0, 0, [-abs(computed) - 0.05], loose=2.0), net, "the margin")
    assert seen > 3


def test_coefficients_of_relu_that_cancel_are_as_low_as_they_may_be():
    """c relu(z) for z from 0 to 1e6: c is 0 as computed, or above what it is."""
    seen = 0
    for _ in range(60):
        layers, product, computed = cancelling()
        if product < Fraction(computed) - Fraction(1, 10) and computed >= 0:
            seen += 1
            net = net_of(relu(0), *({**layer, "inputs": [layer["inputs"][0] + 1]} for layer in layers))
            box = enclosed(0, [0.0], [1e6 + 1], [-1e6 - 1], [1e6 + 1], multiplier=1e-9)
            refused(claimed(net, [0.0], 1e6, 0, [-1.0], loose=2.0, **box), net, "the margin")
    assert seen > 3


def test_constants_behind_coefficients_that_cancel_are_as_low_as_they_may_be():
    seen = 0
    for _ in range(60):
        layers, product, computed = cancelling()
        if product < Fraction(computed) - Fraction(1, 10) and computed >= 0:
            seen += 1
            net = net_of(linear([[0.0]], 1e6), *({**layer, "inputs": [layer["inputs"][0] + 1]} for layer in layers))
            refused(claimed(net, [0.0], 0.0, 0, [-1.0], loose=2.0), net, "the margin")
    assert seen > 3


def test_a_ball_has_to_meet_its_box():
    net = net_of(linear(np.eye(2)), size=2)
    tied = {"box": [0.0, 1.0], "lambda_input": [1e-6]}
    check.prove(claimed(net, [0.5, 1.05], 0.1, 0, [-9.0], **tied), net)
    for x in ([0.5, 1.2], [-0.2, 0.5]):
        refused(claimed(net, x, 0.1, 0, [-9.0], **tied), net, "does not meet its box")
    refused(claimed(net, [0.5, 0.5], 0.1, 0, [-9.0], **{**tied, "box": [1.0, 0.0]}), net, "does not meet its box")


def test_behind_a_relu_nothing_is_below_zero():
    """Neither a centre nor an end of a box; what is claimed of the next ReLU's input is compared with that."""
    net = net_of(relu(0), relu(1), linear([[1.0], [0.0]], inputs=2))
    more = 1 + 1e-9
    for x, centre, upper in ((0.5, 0.5, 1.5 * more), (-3.0, 0.0, 0.0), (3.0, 3.0, 4 * more)):
        first = enclosed(0, [x], [more], [x - more], [x + more])
        lower = 2.0 - 1e-9 if x > 1 else 0.0
        check.prove(claimed(net, [x], 1.0, 0, [-9.0], **first, **enclosed(1, [centre], [more], [lower], [upper])), net)
        for changed, said in (
            (enclosed(1, [centre + 1e-6], [more], [lower], [upper]), "too small or elsewhere"),
            (enclosed(1, [centre], [more], [lower + 1e-6], [upper + 1e-6]), "the box at layer input 1 is too small"),
            (enclosed(1, [centre], [more], [lower], [upper - 1e-6]), "the box at layer input 1 is too small"),
        ):
            refused(claimed(net, [x], 1.0, 0, [-9.0], **first, **changed), net, said)


def test_multipliers_are_positive():
    net = net_of(relu(0), linear([[1.0], [0.0]], inputs=1))
    box = {"box": [-1.0, 1.0], "lambda_input": [0.1], **enclosed(0, [0.0], [1.1], [-1.0], [1.0])}
    content = claimed(net, [0.0], 1.0, 1, [-9.0], **box)
    check.prove(content, net)
    for name in ("lambda_0", "lambda_input", "axes_0"):
        for value in (0.0, -0.1):
            refused({**content, name: np.array([value])}, net, f"{name} is not above")
    with pytest.raises(Refused, match="its radius is -1"):
        check.prove({**content, "radius": np.array(-1.0)}, net)


def test_the_margin_at_a_point_is_refused_one_rounding_higher():
    """Radius 0: what is proved is the exact margin less an error, never the margin as computed where that is higher."""
    higher = 0
    for _ in range(60):
        net = net_of(linear(RNG.normal(size=(2, 5)), RNG.normal(size=2)), size=5)
        x = RNG.normal(size=5)
        weight, bias = exact(net.layers[0]["weight"]), exact(net.layers[0]["bias"])
        truth = (weight @ exact(x) + bias) @ exact([1.0, -1.0])
        computed = float((net.layers[0]["weight"] @ x + net.layers[0]["bias"]) @ [1.0, -1.0])
        higher += Fraction(computed) > truth
        refused(
            claimed(net, x, 0.0, 0, [computed if Fraction(computed) > truth else np.nextafter(float(truth), 1e9)]), net
        )
        close = float(truth) - 1e-12
        assert check.prove(claimed(net, x, 0.0, 0, [close]), net) == [close]
    assert higher > 15


# Refined margins


def test_multipliers_of_rows_known_up_to_an_error_pay_for_it(monkeypatch):
    """The quadratic form of a network of one neuron: a claim is proved up to what its exact Schur complement gives."""
    net = net_of(linear([[1.0]], 0.25), relu(1), linear([[1.0], [0.0]], inputs=2))
    box = enclosed(1, [0.25], [1.0 + 1e-6], [-0.75 - 1e-6], [1.25 + 1e-6])
    parts = {"refined": [0], "ball": [0.7], "multipliers_1": np.zeros((1, KINDS, 1))}
    parts["multipliers_1"][0, :, 0] = [0.1, 0.2, 0.9, 0.3, 0.05]
    content = claimed(net, [0.0], 1.0, 1, [-9.0], **box, **parts)
    content["refined"] = np.array([0])
    proof = check._Proof(content, net)
    proof._prove_enclosures()
    f, g, outputs, bent = proof._rows()
    assert {at: here.tolist() for at, here in bent.items()} == {1: [0]}
    m = exact(parts["multipliers_1"][0, :, 0])
    half = (exact(f.value).T * m) @ exact(g.value) / 2
    half[0] += (exact(outputs.value)[1] - exact(outputs.value)[0]) / 2
    form = half + half.T
    form[0, 0] -= Fraction(0.7)
    form[1, 1] += Fraction(0.7)
    a, b, c = form[1, 1], form[1, 2], form[2, 2]
    x, y = form[0, 1], form[0, 2]
    most = form[0, 0] - (x * x * c - 2 * x * y * b + y * y * a) / (a * c - b * b)
    low, high = float(most) - 1e-6, float(most) + 1e-6

    def proves(margin):
        return (
            proof._refined(np.array([-np.inf]))[0] == margin
            if proof.content.__setitem__("margins", np.array([margin])) is None
            else 0
        )

    assert proves(low) and not proves(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if proves(middle) else (low, middle)
    assert most - Fraction(1, 10**12) < Fraction(low) < most
    sizes, real = [], check._nonnegative
    monkeypatch.setattr(check, "_nonnegative", lambda form, size: sizes.append(size) or real(form, size))
    assert proves(low) and sizes == [3]  # of w: 1, the input, and the outputs of one layer
    negative = {**content, "margins": np.array([low]), "ball": np.array([-0.01])}
    refused(negative, net, "the multipliers of margin 0 are not nonnegative")
    for key, value in (("multipliers_1", -content["multipliers_1"]), ("ball", np.array([-1.0]))):
        refused({**content, key: value}, net, "the multipliers of margin 0 are not nonnegative")
    twice = {**content, "refined": np.array([0, 0]), "ball": np.array([0.7, 0.7])}
    twice["multipliers_1"] = np.repeat(content["multipliers_1"], 2, axis=0)
    refused(twice, net, "refines 2 of 1 margins")


def test_rows_of_a_form_hold_for_every_input():
    """Every inequality and the outputs, at points of the ball, in fractions up to the error of the rows.

    Of four neurons two may bend, one is surely active, and one ends at 0; the ellipsoid has axes of its own.
    """
    weight, bias, x, radius = RNG.normal(size=(4, 2)), np.array([0.1, 0.0, 5.0, -5.0]), 0.1 * RNG.normal(size=2), 0.5
    net = net_of(linear(weight, bias), relu(1), linear(RNG.normal(size=(3, 4)), inputs=2), size=2)
    centre = weight @ x + bias
    axes = float(np.linalg.norm(weight)) * radius * np.array([1.01, 1.5, 1.2, 1.1])
    lower, upper = centre - axes, centre + axes
    lower[2], upper[3] = 0.0, 0.0
    box = enclosed(1, centre, axes, lower, upper, classes=3)
    proof = check._Proof(claimed(net, x, radius, 1, [-9.0, -9.0], **box), net)
    proof._prove_enclosures()
    f, g, outputs, bent = proof._rows()
    assert bent[1].tolist() == [0, 1]
    for _ in range(20):
        away = RNG.normal(size=2)
        away *= RNG.uniform(0, 1) / np.linalg.norm(away)
        u = exact(away)
        z = exact(weight) @ (exact(x) + Fraction(radius) * u) + exact(bias)
        y = np.maximum(z, Fraction(0))
        v = [(y[i] - max(Fraction(centre[i]), Fraction(0))) / Fraction(axes.max()) for i in bent[1]]
        w = np.array([Fraction(1), *u, *v])
        left, right = ((exact(each.value) @ w, exact(each.error) @ abs(w)) for each in (f, g))
        sizes = abs(left[0]) * right[1] + left[1] * (abs(right[0]) + right[1])
        assert (left[0] * right[0] <= sizes).all()
        truth = exact(net.layers[2]["weight"]) @ y
        assert (abs(exact(outputs.value) @ w - truth) <= exact(outputs.error) @ abs(w)).all()
        assert sum(each**2 for each in w) <= 3


def test_roundings_are_counted(monkeypatch):
    """Every sum is given the number of its products, and of what is rounded beside them."""
    counted = []

    def off(terms, size):
        counted.append(terms)
        return rounding.off(terms, size)

    monkeypatch.setattr(check, "off", off)
    for shape in ((3, 7), (7, 3)):
        check.prove_norm(linear(RNG.normal(size=shape)), np.ones(1), 100.0)
        check._row_lengths(linear(np.ones(shape)), np.ones(1))
    assert counted == [7 + 2, 3 + 3, 3 + 7 + 2 + 8] * 2
    counted.clear()
    layer = convolution()
    check._row_lengths(layer, np.ones(1))
    check._row_lengths({"kind": "scale", "inputs": [0], "weight": np.ones(5)}, np.ones(1))
    assert counted == [4 * 2 * 2 * 3 + 2 + 8, 5 + 2 + 8]


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_the_bound_of_a_relu_is_the_least_of_every_neuron(scale):
    """On a fine grid of boxes on either side of 0 and around it, less half of lambda."""
    lower = scale * np.array([0.25, 0.5, -0.75, -0.5, -0.25, -0.5])
    upper = scale * np.array([0.75, 0.75, -0.25, -0.25, 0.5, 0.25])
    for seed in range(6):
        rng = np.random.default_rng(seed)
        c, slopes = rng.normal(size=(2, 6)), rng.uniform(size=(2, 6))
        axes, penalty = scale * rng.uniform(1, 2, 6 if seed % 2 else 1), rng.uniform(0.1, 2, 2)
        centre = lower + rng.uniform(size=6) * (upper - lower)
        proof = SimpleNamespace(
            sets={1: (centre, axes, lower, upper)},
            content={"slopes_1": slopes},
            _above=lambda least, key, its=penalty: its,
        )
        offset, g = check._Proof._relu(proof, 1, near(c))
        assert np.array_equal(g.value, c * slopes) and not g.error.any()
        z = lower + np.linspace(0, 1, 3001)[:, None, None] * (upper - lower)
        parts = c * np.maximum(z, 0) - g.value * z + penalty[:, None] / 2 * ((z - centre) / axes) ** 2
        assert np.allclose(offset.least, parts.min(0).sum(1) - penalty / 2, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("step", [1, 5, 11, 12, 99])
def test_a_map_is_made_in_pieces(monkeypatch, step):
    layer = convolution(1)
    n, m = check._inputs(layer), len(check._bias(layer))
    way, size = ("_apply", n) if n <= m else ("_back", m)
    whole, made, real = check._matrix(layer), [], getattr(check, way)
    monkeypatch.setattr(check, way, lambda layer, rows: made.append(len(rows)) or real(layer, rows))
    monkeypatch.setattr(check, "PIECE", (step + 1) * check._padded(layer, 1).size - 1)
    assert np.array_equal(check._matrix(layer), whole)
    assert made == [min(step, size - begin) for begin in range(0, size, step)]


def test_rows_by_hand_and_as_many_as_can_be_checked(monkeypatch):
    """Of three neurons the first may reach 0 from above, the second bends from -1 to 3, the third reaches 0 from below."""
    net = net_of(linear(np.eye(3)), relu(1), linear(np.diag([1.0, 2.0, 4.0]), 1.0, inputs=2), size=3)
    x, low, high = [2.0, 1.0, -2.0], [0.0, -1.0, -4.0], [4.0, 3.0, 0.0]
    proof = check._Proof(claimed(net, x, 0.5, 0, [-9.0, -9.0]), net)
    proof.sets = {1: tuple(np.array(each) for each in (x, [1.5, 1.25, 2.0], low, high))}
    f, g, outputs, bent = proof._rows()
    one, z, y = (np.array(row) for row in ([1.0, 0, 0, 0, 0], [1.0, 0, 0.5, 0, 0], [1.0, 0, 0, 0, 2.0]))
    above, below = z + one, z - 3 * one
    assert {at: here.tolist() for at, here in bent.items()} == {1: [1]}
    assert np.allclose(f.value, [one, one, y, one, above], rtol=0, atol=1e-12)
    assert np.allclose(g.value, [-y, z - y, y - z, y - 0.75 * above, below], rtol=0, atol=1e-12)
    assert np.allclose(outputs.value, [[3, 0.5, 0, 0, 0], [3, 0, 0, 0, 4], [1, 0, 0, 0, 0]], rtol=0, atol=1e-12)
    assert max(f.error.max(), g.error.max(), outputs.error.max()) < 1e-14
    # Five entries, twelve numbers of all values, and fifty more.
    monkeypatch.setattr(check, "ROWS", 5 * (12 + 50))
    assert len(proof._rows()[0].value) == 5
    monkeypatch.setattr(check, "ROWS", 5 * (12 + 50) - 1)
    with pytest.raises(Refused, match="about 5 numbers at once, too many for this checker"):
        proof._rows()
