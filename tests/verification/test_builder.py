"""The builder of networks beside torch, with sizes that differ in every dimension, and at the limits of what it takes."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.verification import network as network_module
from equipoise.verification.network import Add, Builder, Convolution, Linear, Network, Relu, Scale, not_supported


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PICTURES = (4, 7, 9)


def built(step, shape=PICTURES):
    """The network of one step, and inputs."""
    builder = Builder(shape)
    return builder.build(step(builder, 0), "built"), drawn(3, *shape, seed=9)


# --- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0,), (2, -1), (2.0,), (True,), ("2",), (2**24 + 1,), (2**12, 2**12 + 1)])
def test_inputs_that_are_none(shape):
    with pytest.raises(BadInput, match=r"^An input of shape .* is none; expected dimensions from 1, 16777216 numbers"):
        Builder(shape)


def test_views_are_handles_of_one_value():
    builder = Builder((2**12, 2**12))
    assert (builder.place(0), builder.shape_of(0), builder.sizes) == (0, (2**12, 2**12), [2**24])
    builder = Builder((2, 3))
    flat = builder.flatten(0)
    wide = builder.view(flat, [3, 1, 2])
    assert (flat, wide) == (1, 2) and builder.shape_of(flat) == (6,) and builder.shape_of(wide) == (3, 1, 2)
    assert builder.place(flat) == builder.place(wide) == 0 and builder.layers == []
    for shape in ((5,), (), (0, 6), (-2, -3), (7, 1)):
        with pytest.raises(BadInput) as error:
            builder.view(wide, shape)
        assert str(error.value) == f"a value of shape (3, 1, 2) cannot be read with the shape {shape}"


def test_no_value_is_larger_than_can_be_bounded(monkeypatch):
    monkeypatch.setattr(network_module, "LARGEST", 12)
    builder = Builder((3,))
    assert builder.sizes[builder.place(builder.linear(0, drawn(12, 3), None))] == 12
    with pytest.raises(BadInput, match=r"^a value of shape \(13,\) has 13 numbers; expected 12 at most$"):
        builder.linear(0, drawn(13, 3), None)


# --- layers ---------------------------------------------------------------------------------------------------------


def test_a_linear_layer_takes_one_flat_vector():
    weight, bias = drawn(3, 5), drawn(3, seed=1)
    for shape, out in (((5,), (3,)), ((1, 5), (1, 3)), ((1, 1, 5), (1, 1, 3))):
        builder = Builder(shape)
        value = builder.linear(0, weight, bias)
        assert builder.shape_of(value) == out
        x = drawn(4, *shape)
        assert_close(builder.build(value, "n")(x), (x.reshape(4, 5) @ weight.T + bias))
    for shape, its in (((2, 5), weight), ((4,), weight), ((5,), drawn(5)), ((5,), drawn(3, 5, 1)), ((5, 1), weight)):
        with pytest.raises(BadInput, match="expected one flat vector, as long as the weight has columns"):
            Builder(shape).linear(0, its, None)
    with pytest.raises(BadInput, match=r"^a bias of shape \(4,\) meets 3 outputs$"):
        Builder((5,)).linear(0, weight, drawn(4))
    with pytest.raises(BadInput, match=r"^a bias of shape \(3, 1\) meets 3 outputs$"):
        Builder((5,)).linear(0, weight, drawn(3, 1))


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, 0, 1, 1), (2, 1, 1, 2), ((2, 3), (1, 0), (2, 1), 1), ((1, 2), (2, 3), (1, 2), 4), (1, 1, 2, 2)],
)
def test_convolutions_and_their_transposes(stride, padding, dilation, groups):
    weight, bias = drawn(8, 4 // groups, 2, 3), drawn(8, seed=1)
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    network, x = built(lambda b, v: b.conv2d(v, weight, bias, **how))
    whole = F.conv2d(x, weight, bias, **how)
    (layer,) = network.layers
    assert layer.out_shape == tuple(whole.shape[1:]) and network.sizes == (252, whole[0].numel())
    assert_close(network(x), whole.flatten(1))
    c = drawn(2, 3, whole[0].numel(), seed=2)
    matrix = (layer.forward(torch.eye(252, dtype=torch.float64)) - layer.forward(torch.zeros(1, 252).double())).T
    assert_close(layer.back(c), c @ matrix)
    assert_close(layer.constant(c), c @ layer.forward(torch.zeros(252).double()))
    weights = drawn(252, seed=3).abs()
    assert_close(layer.squared(weights), matrix.square() @ weights)
    assert_close(layer.squared(torch.full((1,), 2.0).double()), 2 * matrix.square().sum(1))


def test_what_a_convolution_is_unless_told_otherwise():
    layer = Convolution((0,), drawn(2, 4, 2, 3), drawn(2), PICTURES)
    assert (layer.stride, layer.padding, layer.dilation, layer.groups) == ((1, 1), (0, 0), (1, 1), 1)
    network, x = built(lambda b, v: b.conv2d(v, layer.weight, None))
    assert_close(network(x), F.conv2d(x, layer.weight).flatten(1))


@pytest.mark.parametrize(
    ("weight", "how", "message"),
    [
        (drawn(8, 4, 2), {}, "expected channels of pictures"),
        (drawn(8, 3, 2, 2), {}, "expected channels of pictures"),
        (drawn(8, 4, 2, 2), {"groups": 0}, "expected channels of pictures"),
        (drawn(7, 2, 2, 2), {"groups": 2}, "in 2 groups meets a value of shape"),
        (
            drawn(8, 4, 2, 2),
            {"stride": 0},
            r"^\(0, 0\) is no size of two dimensions; expected two whole numbers from 1$",
        ),
        (
            drawn(8, 4, 2, 2),
            {"padding": -1},
            r"^\(-1, -1\) is no size of two dimensions; expected two whole numbers from 0$",
        ),
        (drawn(8, 4, 2, 2), {"dilation": (1, 0)}, "from 1"),
        (drawn(8, 4, 2, 2), {"stride": (1, 1, 1)}, "no size of two dimensions"),
        (drawn(8, 4, 2, 2), {"stride": (1.0, 1)}, "no size of two dimensions"),
        (drawn(8, 4, 2, 2), {"padding": (2**24 + 1, 0)}, "no size of two dimensions"),
        (drawn(8, 4, 8, 2), {}, "kernel"),
        (drawn(8, 4, 2, 10), {}, "kernel"),
    ],
)
def test_convolutions_that_are_none(weight, how, message):
    with pytest.raises(BadInput, match=message):
        Builder(PICTURES).conv2d(0, weight, None, **how)
    with pytest.raises(BadInput, match="expected channels of pictures"):
        Builder((4, 63)).conv2d(0, drawn(8, 4, 2, 2), None)


def test_a_kernel_may_be_as_large_as_its_padded_picture():
    network, x = built(lambda b, v: b.conv2d(v, drawn(2, 4, 7, 9), None))
    assert network.sizes[-1] == 2
    network, x = built(lambda b, v: b.conv2d(v, drawn(2, 4, 9, 13), None, padding=(1, 2)))
    assert_close(network(x), F.conv2d(x, drawn(2, 4, 9, 13), padding=(1, 2)).flatten(1))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "divisor"),
    [
        (2, 2, 0, None),
        ((2, 3), (1, 2), 0, None),
        ((3, 2), 2, 1, None),
        (3, (2, 3), (1, 2), 5),
        ((3, 4), 1, (2, 3), None),
    ],
)
def test_average_pooling(kernel, stride, padding, divisor):
    network, x = built(lambda b, v: b.average_pool(v, kernel, stride, padding, divisor=divisor))
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    # As torch has it, but with paddings beyond half a kernel: a convolution with equal weights.
    weight = torch.full((4, 1, *sides), 1 / (divisor or math.prod(sides)), dtype=torch.float64)
    assert_close(network(x), F.conv2d(x, weight, stride=stride, padding=padding, groups=4).flatten(1))
    if all(
        2 * pad <= side
        for pad, side in zip((padding,) * 2 if isinstance(padding, int) else padding, sides, strict=True)
    ):
        assert_close(network(x), F.avg_pool2d(x, kernel, stride, padding, divisor_override=divisor).flatten(1))


def test_a_kernel_of_all_channels_is_not_too_large_either(monkeypatch):
    builder = Builder((2, 2, 3))
    monkeypatch.setattr(network_module, "LARGEST", 12)
    assert builder.shape_of(builder.average_pool(0, (2, 3), 1)) == (2, 1, 1)
    monkeypatch.setattr(network_module, "LARGEST", 11)
    with pytest.raises(BadInput, match=r"^average pooling has a kernel of \(2, 3\)$"):
        builder.average_pool(0, (2, 3), 1)


def test_average_pooling_with_dilation_is_counted_in_steps():
    network, x = built(lambda b, v: b.average_pool(v, 2, 1, (2, 0), dilation=(3, 2)))
    weight = torch.full((4, 1, 2, 2), 0.25, dtype=torch.float64)
    assert_close(network(x), F.conv2d(x, weight, padding=(2, 0), dilation=(3, 2), groups=4).flatten(1))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"padding": 2}, r"has a padding of \(2, 2\), as wide as its kernel of \(2, 2\)$"),
        ({"padding": (0, 2)}, "as wide as its kernel"),
        (
            {"padding": 1, "counts_padding": False},
            "^average pooling does not count its padding, which is not known here$",
        ),
        ({"stride": 2, "ceil": True}, r"rounds its size up \(ceil mode\) and has windows that are cut off$"),
        ({"kernel": (2, 2**24 + 1)}, "no size of two dimensions"),
        ({"kernel": (2**12, 2**12)}, r"has a kernel of \(4096, 4096\)$"),
    ],
)
def test_pooling_that_is_not_known(how, message):
    with pytest.raises(BadInput, match=message):
        Builder(PICTURES).average_pool(0, **{"kernel": 2, "stride": 1, **how})
    with pytest.raises(BadInput, match=r"meets a value of shape \(4, 63\); expected channels of pictures$"):
        Builder((4, 63)).average_pool(0, 2, 2)


def test_pooling_at_its_limits():
    assert built(lambda b, v: b.average_pool(v, 2, 1, 1, counts_padding=True))[0].sizes[-1] == 4 * 8 * 10
    assert built(lambda b, v: b.average_pool(v, 2, 1, 0, counts_padding=False))[0].sizes[-1] == 4 * 6 * 8
    assert built(lambda b, v: b.average_pool(v, 2, 1, 1, counts_padding=False, divisor=4))[0].sizes[-1] == 4 * 8 * 10
    assert built(lambda b, v: b.average_pool(v, (3, 3), 2, ceil=True))[0].sizes[-1] == 4 * 3 * 4  # nothing is cut off
    assert built(lambda b, v: b.average_pool(v, (3, 3), 2, (1, 1), ceil=True))[0].sizes[-1] == 4 * 4 * 5


@pytest.mark.parametrize("size", [1, (1, 3), (2, None), (None, 9), None, [4, 1]])
def test_pooling_to_a_size(size):
    shape = (2, 4, 9)
    network, x = built(lambda b, v: b.adaptive_pool(v, size), shape)
    assert_close(network(x), F.adaptive_avg_pool2d(x, size if size is not None else (None, None)).flatten(1))


@pytest.mark.parametrize(
    ("size", "message"), [((3, 9), "windows that are not all alike"), (0, "not all alike"), ((4, 2), "not")]
)
def test_sizes_that_do_not_divide(size, message):
    with pytest.raises(BadInput, match=message):
        Builder((2, 4, 9)).adaptive_pool(0, size)
    for shape, its in (((2, 4, 9), (1, 1, 1)), ((2, 36), 1)):
        with pytest.raises(BadInput, match="expected channels of pictures"):
            Builder(shape).adaptive_pool(0, its)


@pytest.mark.parametrize("dimensions", [(2, 3), [3, 2], (-1, -2), (-2, 3)])
@pytest.mark.parametrize("keep", [True, False])
def test_a_mean_over_height_and_width(dimensions, keep):
    builder = Builder((2, 4, 9))
    value = builder.mean(0, dimensions, keep=keep)
    assert builder.shape_of(value) == ((2, 1, 1) if keep else (2,))
    x = drawn(3, 2, 4, 9)
    assert_close(builder.build(value, "n")(x), x.mean((2, 3)))
    for shape, others in (((2, 4, 9), (1, 2)), ((2, 4, 9), (3,)), ((2, 4, 9), ()), ((2, 36), (2, 3))):
        with pytest.raises(BadInput, match=r"^a mean over the dimensions .* is not known$"):
            Builder(shape).mean(0, others, keep=True)


def test_scales_by_channel_by_number_and_by_one():
    shape = (2, 3, 5)
    for size in (1, 2, 30):
        weight, bias = drawn(size), drawn(size, seed=1)
        network, x = built(lambda b, v, w=weight, c=bias: b.scale(v, w, c), shape)
        by = (1, 1, 1) if size == 1 else (2, 1, 1) if size == 2 else shape
        assert_close(network(x), (x * weight.reshape(by) + bias.reshape(by)).flatten(1))
    for size in (3, 5, 15):
        with pytest.raises(BadInput) as error:
            Builder(shape).scale(0, drawn(size), drawn(1))
        assert str(error.value) == (
            f"{size} numbers for a value of shape (2, 3, 5): expected one, one a channel, or 30"
        )


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 2)])
def test_batch_normalization(shape):
    weight, bias, mean = (drawn(3, seed=seed) for seed in range(3))
    variance = drawn(3, seed=4).square()
    network, x = built(lambda b, v: b.batch_norm(v, weight, bias, mean, variance, 0.25), shape)
    assert_close(network(x), F.batch_norm(x, mean, variance, weight, bias, eps=0.25).flatten(1))
    for place, name in enumerate(("weight", "bias", "mean", "variance")):
        given = [weight, bias, mean, variance]
        for wrong in (drawn(4), drawn(1), drawn(3, 1)):
            given[place] = wrong
            with pytest.raises(
                BadInput, match=rf"^a batch normalisation has a {name} of shape .*; expected one number a"
            ):
                Builder(shape).batch_norm(0, *given, 0.25)


KINDS = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div}


@pytest.mark.parametrize("size", [(), (1,), (5,), (3, 1), (2, 3, 5), (2, 1, 1), (1, 2, 3, 5), (1, 1, 1, 5)])
@pytest.mark.parametrize(("kind", "first"), itertools.product(KINDS, (True, False)))
def test_constants_broadcast_as_in_torch(size, kind, first):
    number = drawn(*size, seed=1)
    if kind == "div" and not first:
        with pytest.raises(BadInput, match=r"^a constant is divided by what is computed, which is not known here$"):
            Builder((2, 3, 5)).with_number(kind, 0, number, first=first)
        return
    network, x = built(lambda b, v: b.with_number(kind, v, number, first=first), (2, 3, 5))
    whole = KINDS[kind](x, number) if first else KINDS[kind](number, x)
    assert_close(network(x), whole.flatten(1))


@pytest.mark.parametrize("size", [(2,), (2, 2, 3, 5), (1, 1, 2, 3, 5), (3, 3, 5)])
def test_constants_that_do_not_fit(size):
    with pytest.raises(BadInput) as error:
        Builder((2, 3, 5)).with_number("add", 0, drawn(*size))
    assert str(error.value) == f"a constant of shape {size} meets a value of shape (2, 3, 5)"
    with pytest.raises(BadInput, match=r"kind is 'minus'"):
        Builder((2,)).with_number("minus", 0, drawn(1))


def test_sums_and_differences():
    builder = Builder((4,))
    one, other = builder.linear(0, drawn(3, 4), None), builder.linear(0, drawn(3, 4, seed=1), None)
    x = drawn(5, 4, seed=2)
    first, second = x @ drawn(3, 4).T, x @ drawn(3, 4, seed=1).T
    assert_close(builder.build(builder.add(one, other), "n")(x), first + second)
    assert_close(builder.build(builder.subtract(one, other), "n")(x), first - second)
    twice = builder.build(builder.add(one, builder.view(one, (3,))), "n")
    assert_close(twice(x), 2 * first) and not any(isinstance(each, Add) for each in twice.layers)
    with pytest.raises(BadInput) as error:
        builder.add(one, builder.view(other, (1, 3)))
    assert str(error.value) == "a sum meets values of shapes (3,) and (1, 3); expected equal ones"


@pytest.mark.parametrize(
    "wrong", [torch.ones(3, dtype=torch.int64), torch.ones(3).to_sparse(), torch.ones(3, device="meta")]
)
def test_parameters_are_plain_real_numbers(wrong):
    with pytest.raises(
        BadInput, match=r"^a parameter is a torch\..* of layout torch\..* on .*; expected plain real numbers$"
    ):
        Builder((3,)).scale(0, torch.ones(3), wrong)


# --- whole networks -------------------------------------------------------------------------------------------------


def test_a_scale_is_merged_into_the_map_before_it():
    builder = Builder((4,))
    value = builder.scale(builder.linear(0, drawn(3, 4), drawn(3)), drawn(3, seed=1), drawn(3, seed=2))
    merged = builder.build(value, "n")
    assert [type(each) for each in merged.layers] == [Linear] and merged.sizes == (4, 3)
    whole = builder.build(value, "n", merge=False)
    assert [type(each) for each in whole.layers] == [Linear, Scale] and whole.sizes == (4, 3, 3)
    assert_close(merged(x := drawn(5, 4)), whole(x))
    builder = Builder((4,))
    value = builder.scale(builder.scale(0, drawn(4), drawn(1)), drawn(4, seed=1), drawn(4, seed=2))
    merged = builder.build(value, "n")
    assert [type(each) for each in merged.layers] == [Scale]  # of two scales one
    assert_close(merged(x), builder.build(value, "n", merge=False)(x))


@pytest.mark.parametrize(("weight", "bias", "count"), [(2, 2, 1), (1, 1, 1), (36, 2, 2), (2, 36, 2), (36, 36, 2)])
def test_a_scale_is_merged_into_a_convolution_channel_by_channel_alone(weight, bias, count):
    builder = Builder((2, 3, 6))
    value = builder.conv2d(0, drawn(2, 2, 3, 3), drawn(2), padding=1)
    value = builder.scale(value, drawn(weight, seed=1), drawn(bias, seed=2))
    merged, whole = builder.build(value, "n"), builder.build(value, "n", merge=False)
    assert len(merged.layers) == count and isinstance(merged.layers[0], Convolution)
    assert_close(merged(x := drawn(4, 2, 3, 6)), whole(x))


def test_what_is_read_twice_or_is_no_map_is_not_merged():
    builder = Builder((3,))
    bent = builder.relu(builder.linear(0, drawn(3, 3), None))
    network = builder.build(builder.scale(bent, drawn(3), drawn(3)), "n")
    assert [type(each) for each in network.layers] == [Linear, Relu, Scale]
    first = builder.scale(0, drawn(3), drawn(3))  # of the input
    assert [type(each) for each in builder.build(first, "n").layers] == [Scale]
    twice = builder.linear(0, drawn(3, 3), None)
    network = builder.build(builder.add(builder.scale(twice, drawn(3), drawn(3)), twice), "n")
    assert [type(each) for each in network.layers] == [Linear, Scale, Add, Scale]
    assert [each.inputs for each in network.layers] == [(0,), (1,), (2, 1), (3,)]
    assert_close(network(x := drawn(4, 3)), (y := x @ drawn(3, 3).T) * drawn(3) + drawn(3) + y)


def test_the_output_is_what_was_asked_for():
    builder = Builder((3,))
    value = builder.linear(0, drawn(2, 3), None)
    builder.linear(value, drawn(2, 2), None)
    assert builder.build(value, "n").sizes == (3, 2)
    said = "^n: the output is not what the last layer gives; expected a network with layers\\.$"
    with pytest.raises(BadInput, match=said):
        builder.build(value, "n", merge=False)
    for merge in (True, False):
        with pytest.raises(BadInput, match=said):
            Builder((3,)).build(0, "n", merge=merge)


@pytest.mark.parametrize(("weight", "bias"), [(math.nan, 0.0), (math.inf, 0.0), (0.0, math.nan), (0.0, -math.inf)])
def test_a_parameter_that_is_not_finite_is_named(weight, bias):
    builder = Builder((1,))
    value = builder.relu(builder.linear(0, torch.ones(1, 1), None))
    value = builder.linear(value, torch.full((1, 1), weight), torch.full((1,), bias))
    with pytest.raises(BadInput, match=r"^n: layer 2 \(linear\) has a parameter that is not finite\.$"):
        builder.build(value, "n")


def test_a_network_is_read_as_rounded_and_described():
    builder = Builder((2, 3, 6))
    value = builder.conv2d(0, drawn(4, 1, 2, 3), None, stride=(1, 2), padding=(1, 0), dilation=(2, 1), groups=2)
    value = builder.linear(builder.flatten(builder.relu(value)), drawn(2, 24), None)
    network = builder.build(value, "n")
    assert network.description() == {
        "shape": [2, 3, 6],
        "layers": [
            {
                "kind": "conv2d",
                "inputs": [0],
                "shape": [2, 3, 6],
                "stride": [1, 2],
                "padding": [1, 0],
                "dilation": [2, 1],
                "groups": 2,
            },
            {"kind": "relu", "inputs": [1]},
            {"kind": "linear", "inputs": [2]},
        ],
    }
    single = network.to(torch.float32)
    assert single.layers[0].weight.dtype == single.layers[2].bias.dtype == torch.float32 and single is network.to(
        torch.float32
    )
    assert single.layers[1] is network.layers[1] and network.layers[0].weight.dtype == torch.float64
    x = drawn(5, 2, 3, 6)
    assert network.outputs == 2
    assert [each.shape for each in network.values(x)] == [(5, size) for size in network.sizes]
    assert torch.equal(network(x), network.values(x)[-1])
    plain = Network((), (2,))
    assert (plain.name, plain.sizes) == ("network", ())


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("LogSoftmax", "; drop a last one, the largest output stays the largest"),
        ("HardSigmoid", "; drop a last one, the largest output stays the largest"),
        ("Shape", "; export with a batch of fixed size"),
        ("Tanh", ""),
    ],
)
def test_the_remedy_for_what_is_not_known(kind, remedy):
    assert str(not_supported(kind, ["b", "a"])) == f"{kind} is not supported{remedy}. Known: a, b."


def test_sizes_of_two_dimensions():
    pair = network_module._pair
    assert pair(3, 1) == (3, 3) and pair([2, 5], 1) == (2, 5) and pair(0, 0) == (0, 0)
    assert pair(2**24, 1) == (2**24, 2**24) and pair((1, 1), 1) == (1, 1)
    for wrong, least in (((1, 0), 1), ((0, 1), 1), (2**24 + 1, 1), ((1, 2, 3), 0), ((1,), 0), ((True, 1), 0), (-1, 0)):
        with pytest.raises(BadInput, match=f"is no size of two dimensions; expected two whole numbers from {least}$"):
            pair(wrong, least)
