"""torch's functions as they are read, one by one and beside torch; words that describe parameters, with their defaults."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.verification.from_torch import BATCH, FUNCTIONS, LAYERS, METHODS, Normalize, _Calls, _Value, from_module
from equipoise.verification.network import Builder
from equipoise.verification.read import RELEASED, described


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SHAPE = (2, 5, 6)


def beside(call, truth, shape=SHAPE):
    """What a call makes of a value of this shape, equal to what torch makes of it; the shape of the result."""
    calls, x = _Calls(Builder(shape)), drawn(3, *shape, seed=9)
    value = call(calls, _Value(0))
    expected = truth(x)
    assert calls.builder.shape_of(value.handle) == tuple(expected.shape[1:])
    if calls.builder.place(value.handle):
        assert_close(calls.builder.build(value.handle, "n")(x), expected.flatten(1))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"stride": (1, 2), "padding": (2, 1), "dilation": (1, 2), "groups": 2},
        {"padding": "valid", "stride": 2},
        {"padding": "same"},
        {"padding": "same", "dilation": 2},
        {"padding": "same", "dilation": (1, 2)},
    ],
)
def test_convolutions(how):
    weight = drawn(4, 2 // how.get("groups", 1), 3, 5)
    beside(lambda c, v: c.conv2d(v, weight, **how), lambda x: F.conv2d(x, weight, **how), (2, 7, 11))
    bias = drawn(4, seed=1)
    beside(lambda c, v: c.conv2d(v, weight, bias, **how), lambda x: F.conv2d(x, weight, bias, **how), (2, 7, 11))


def test_a_padding_that_is_not_the_same_on_both_sides():
    for sides, dilation in (((2, 3), 1), ((3, 4), 1), ((3, 2), (2, 3))):
        with pytest.raises(BadInput, match=r"^padding 'same' is not the same on both sides of this kernel$"):
            _Calls(Builder(SHAPE)).conv2d(_Value(0), drawn(4, 2, *sides), padding="same", dilation=dilation)
    weight = drawn(4, 2, 2, 3)
    calls = _Calls(Builder(SHAPE))
    value = calls.conv2d(_Value(0), weight, padding="same", dilation=(2, 1))  # two apart: three wide
    assert calls.builder.shape_of(value.handle) == (4, 5, 6)


@pytest.mark.parametrize(
    ("given", "how"),
    [((2,), {}), ((2, 1), {}), (((2, 3),), {"stride": (1, 2), "padding": 1}), ((3, 2, 1), {"divisor_override": 4})],
)
def test_average_pools(given, how):
    beside(lambda c, v: c.avg_pool2d(v, *given, **how), lambda x: F.avg_pool2d(x, *given, **how))


def test_average_pools_that_are_not_known():
    calls = _Calls(Builder(SHAPE))
    with pytest.raises(BadInput, match="ceil mode"):
        calls.avg_pool2d(_Value(0), 2, ceil_mode=True)
    with pytest.raises(BadInput, match="does not count its padding"):
        calls.avg_pool2d(_Value(0), 2, padding=1, count_include_pad=False)


def test_means_and_pools_to_a_size():
    beside(lambda c, v: c.adaptive_avg_pool2d(v, (5, 3)), lambda x: F.adaptive_avg_pool2d(x, (5, 3)))
    for keep in (False, True):
        beside(lambda c, v, k=keep: c.mean(v, (2, 3), k), lambda x, k=keep: x.mean((2, 3), k))
    beside(lambda c, v: c.mean(v, (-1, -2)), lambda x: x.mean((2, 3)))
    with pytest.raises(BadInput, match=r"^a mean over the dimensions \[3\] of a value of shape"):
        _Calls(Builder(SHAPE)).mean(_Value(0), 3)


def test_batch_normalizations():
    mean, variance, weight, bias = drawn(2), drawn(2, seed=1).square(), drawn(2, seed=2), drawn(2, seed=3)
    for given in ((), (weight,), (weight, bias), (None, bias)):
        beside(
            lambda c, v, g=given: c.batch_norm(v, mean, variance, *g),
            lambda x, g=given: F.batch_norm(x, mean, variance, *g),
        )
    how = {"eps": 0.5, "momentum": 0.9}
    beside(
        lambda c, v: c.batch_norm(v, mean, variance, weight, bias, **how),
        lambda x: F.batch_norm(x, mean, variance, weight, bias, **how),
    )
    for given, more in (((None, variance), {}), ((mean, None), {}), ((mean, variance), {"training": True})):
        with pytest.raises(BadInput, match=r"^it normalises by the batch itself; expected a stored mean and variance$"):
            _Calls(Builder(SHAPE)).batch_norm(_Value(0), *given, **more)
    norm = nn.BatchNorm1d(2).eval()
    for shape, fits in (((2,), True), ((2, 5), True), ((2, 5, 6), False)):
        if fits:
            beside(lambda c, v: LAYERS[nn.BatchNorm1d](c, norm.double(), v), norm.double(), shape)
        else:
            with pytest.raises(BadInput, match=r"^it meets a value of shape \(2, 5, 6\)$"):
                LAYERS[nn.BatchNorm1d](_Calls(Builder(shape)), norm, _Value(0))
    for shape in ((2,), (2, 5)):
        with pytest.raises(BadInput, match=r"^it meets a value of shape"):
            LAYERS[nn.BatchNorm2d](_Calls(Builder(shape)), nn.BatchNorm2d(2), _Value(0))


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ((1,), True),
        ((1, -1), True),
        ((1, 2), True),
        ((2,), True),
        ((2, 3), True),
        ((-2,), True),
        ((1, 1), True),
        ((3,), True),
        ((), False),
        ((0, 1), False),
        ((2, 1), False),
        ((-4, -1), False),
    ],
)
def test_flattening_some_dimensions(given, fits):
    if fits:
        beside(lambda c, v: c.flatten(v, *given), lambda x: x.flatten(*given))
    else:
        begin, end = (*given, *(0, -1)[len(given) :])
        with pytest.raises(BadInput) as error:
            _Calls(Builder(SHAPE)).flatten(_Value(0), *given)
        assert str(error.value) == (
            f"it flattens from dimension {begin} to {end}; expected start_dim=1, after the batch"
        )


@pytest.mark.parametrize(
    ("shape", "out"),
    [
        ((BATCH, -1), (60,)),
        ((BATCH, 60), (60,)),
        ((BATCH, 4, -1), (4, 15)),
        ((BATCH, -1, 3, 4), (5, 3, 4)),
        (((BATCH, 12, 5),), (12, 5)),
        (([BATCH, -1],), (60,)),
        ((-1, 60), (60,)),
        ((-1, 10, 6), (10, 6)),
        ((3, 20), None),
        ((BATCH, 2.0, -1), None),
        ((BATCH, BATCH), None),
        ((0, 60), None),
        ((BATCH, -1, -1), None),
        ((-1, -1), None),
        ((BATCH, 7, -1), None),
        ((-1, 61), None),
    ],
)
def test_views(shape, out):
    for call in ("view", "reshape"):
        calls = _Calls(Builder(SHAPE))
        given = shape if call == "view" else shape[0] if isinstance(shape[0], tuple | list) else shape
        run = (
            (lambda c=calls, g=given: c.view(_Value(0), *g))
            if call == "view"
            else (lambda c=calls, g=given: c.reshape(_Value(0), g))
        )
        if out is None:
            with pytest.raises(BadInput):
                run()
        else:
            assert calls.builder.shape_of(run().handle) == out


def test_sizes_and_parts():
    calls = _Calls(Builder(SHAPE))
    assert calls.size(_Value(0)) == (BATCH, 2, 5, 6) == calls.getattr(_Value(0), "shape")
    assert [calls.size(_Value(0), dim) for dim in (0, 1, -1)] == [BATCH, 2, 6]
    assert calls.getitem((BATCH, 2), 1) == 2
    with pytest.raises(BadInput, match=r"^the attribute 'dtype' of a value is not known; expected shape$"):
        calls.getattr(_Value(0), "dtype")
    with pytest.raises(BadInput, match=r"^it takes a part of a value, which is not supported$"):
        calls.getitem(_Value(0), 0)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_arithmetic(name):
    function, number = getattr(torch, name), drawn(5, 1)
    for constant in (number, 0.5, 2):
        beside(lambda c, v, k=constant: getattr(c, name)(v, k), lambda x, k=constant: function(x, k))
        if name == "div":
            with pytest.raises(BadInput, match="a constant is divided by what is computed"):
                _Calls(Builder(SHAPE)).div(constant, _Value(0))
        else:
            beside(
                lambda c, v, k=constant: getattr(c, name)(k, v),
                lambda x, k=constant: function(torch.as_tensor(k, dtype=torch.float64), x),
            )
    if name in ("add", "sub"):
        beside(lambda c, v: getattr(c, name)(v, c.relu(v)), lambda x: function(x, x.relu()))
        assert getattr(_Calls(Builder(SHAPE)), name)(_Value(0), 1, alpha=1)
        with pytest.raises(BadInput, match=r"^alpha=2 is not known; multiply first$"):
            getattr(_Calls(Builder(SHAPE)), name)(_Value(0), 1, alpha=2)
    else:
        calls = _Calls(Builder(SHAPE))
        with pytest.raises(BadInput, match=r"^it multiplies or divides computed values, which is not supported$"):
            getattr(calls, name)(_Value(0), calls.relu(_Value(0)))


def test_other_functions():
    beside(lambda c, v: c.neg(v), torch.neg)
    beside(lambda c, v: c.relu(v), torch.relu)
    beside(lambda c, v: c.linear(v, drawn(3, 6)), lambda x: F.linear(x, drawn(3, 6)), (6,))
    beside(lambda c, v: c.linear(v, drawn(3, 6), drawn(3)), lambda x: F.linear(x, drawn(3, 6), drawn(3)), (6,))
    calls = _Calls(Builder(SHAPE))
    assert calls.identity(_Value(0)) == _Value(0) == calls.dropout(_Value(0), training=False)
    with pytest.raises(BadInput, match=r"^it drops values at random \(training=True\); pass training=self\.training$"):
        calls.dropout(_Value(0))
    with pytest.raises(BadInput, match=r"^rounding_mode='floor' is not known$"):
        calls.div(_Value(0), 2, rounding_mode="floor")
    with pytest.raises(BadInput, match=r"^it reads float where a computed value is expected$"):
        calls.relu(0.5)


def test_what_was_changed_in_place_is_not_read_again():
    calls = _Calls(Builder((3,)))
    bent = calls.relu(_Value(0), inplace=True)
    assert calls.builder.place(bent.handle) == 1
    with pytest.raises(BadInput, match=r"^it reads a value that was changed in place before$"):
        calls.relu(_Value(0))
    assert calls.relu(bent)
    calls = _Calls(Builder((3,)))
    calls.relu(_Value(0))
    assert calls.relu(_Value(0))  # as it was
    for name in ("relu_", "add_", "sub_", "mul_", "div_", "neg_"):
        calls = _Calls(Builder((3,)))
        METHODS[name](calls, _Value(0), *([] if name in ("relu_", "neg_") else [2.0]))
        with pytest.raises(BadInput, match="changed in place"):
            calls.read(_Value(0))
    for function in (operator.iadd, operator.isub, operator.imul, operator.itruediv):
        calls = _Calls(Builder((3,)))
        FUNCTIONS[function](calls, _Value(0), 2.0)
        with pytest.raises(BadInput, match="changed in place"):
            calls.read(_Value(0))


def test_the_first_layer_that_normalises():
    normalize = Normalize([0.25, 0.5], torch.tensor([0.5, 2.0]))
    x = drawn(3, 2, 4, 5).float()
    expected = (x - torch.tensor([0.25, 0.5])[:, None, None]) / torch.tensor([0.5, 2.0])[:, None, None]
    assert normalize(x).dtype == torch.float32 and torch.equal(normalize(x), expected)
    assert torch.equal(normalize(x[:, :, 0, 0]), expected[:, :, 0, 0])
    beside(lambda c, v: LAYERS[Normalize](c, normalize, v), lambda x: normalize(x), (2, 4, 5))
    assert from_module(nn.Sequential(normalize), (2,)).name == "network"


# --- words ----------------------------------------------------------------------------------------------------------


def test_words_unless_told_otherwise():
    tensors = {"a.weight": drawn(3, 2, 2, 3), "a.bias": drawn(3)}
    x = drawn(4, 2, 6, 7)
    assert_close(described("conv2d a", tensors, (2, 6, 7))(x), F.conv2d(x, *tensors.values()).flatten(1))
    more = "conv2d a stride=2 padding=1 dilation=2 groups=1"
    assert_close(described(more, tensors, (2, 6, 7))(x), F.conv2d(x, *tensors.values(), 2, 1, 2).flatten(1))
    grouped = {"a.weight": drawn(4, 1, 2, 3)}
    assert_close(
        described("conv2d a groups=2", grouped, (2, 6, 7))(x), F.conv2d(x, grouped["a.weight"], groups=2).flatten(1)
    )
    norm = {"n.weight": drawn(2), "n.running_mean": drawn(2, seed=1), "n.running_var": drawn(2, seed=2).square()}
    for words, eps in (("batchnorm n", 1e-5), ("batchnorm n epsilon=0.5", 0.5)):
        for bias in (None, drawn(2, seed=3)):
            given = norm if bias is None else norm | {"n.bias": bias}
            expected = F.batch_norm(x, norm["n.running_mean"], norm["n.running_var"], norm["n.weight"], bias, eps=eps)
            assert_close(described(words, given, (2, 6, 7))(x), expected.flatten(1))
    for words, how in (
        ("avgpool kernel=2", (2, 2, 0)),
        ("avgpool kernel=3 stride=1", (3, 1, 0)),
        ("avgpool kernel=3 stride=2 padding=1", (3, 2, 1)),
    ):
        assert_close(described(words, {}, (2, 6, 7))(x), F.avg_pool2d(x, *how).flatten(1))
    scaled = described("normalize mean=0.5/0.25 std=2/4", {}, (2, 6, 7), name="mine")
    by = torch.tensor([2.0, 4.0]).double()[:, None, None]
    assert_close(scaled(x), ((x - torch.tensor([0.5, 0.25]).double()[:, None, None]) / by).flatten(1))
    assert scaled.name == "mine" and described("normalize mean=0 std=1", {}, (2,)).name == "network"


def test_words_with_blanks_and_saved_values():
    tensors = {"a.weight": drawn(3, 3), "b.weight": drawn(3, 3, seed=1)}
    network = described(" , linear a ,save one,relu,  save two, linear  b, add one,, add two", tensors, (3,))
    x = drawn(4, 3)
    first = x @ tensors["a.weight"].T
    assert_close(network(x), first.relu() @ tensors["b.weight"].T + first + first.relu())
    for words, said in (
        ("linear a, linear b, linear", "network: 'linear': "),
        ("linear a, linear b, relu 3", "network: 'relu 3': "),
        ("linear a, linear b, avgpool kernel=x", "network: 'avgpool kernel=x': invalid literal"),
        ("linear a, linear b, add one", "network: 'add one': nothing was saved as 'one'."),
        ("linear a, linear b, sav one", "network: 'sav one' is not known. Did you mean 'save'?"),
        ("linear a, linear b x=1 x=2", "network: 'linear b x=1 x=2' gives a setting twice."),
        ("linear a", "network: the description does not read b.weight; expected a word for every parameter."),
    ):
        with pytest.raises(BadInput) as error:
            described(words, tensors, (3,))
        assert str(error.value).startswith(said)
    many = {f"{name}.weight": drawn(3, 3) for name in "gfedcba"}
    with pytest.raises(BadInput) as error:
        described("linear a", many, (3,))
    assert "does not read b.weight, c.weight, d.weight, e.weight, f.weight; expected" in str(error.value)


def test_the_released_networks_are_described_for_pictures_of_their_size():
    assert {name: shape for name, (shape, _) in RELEASED.items()} == {
        "mnist_mlp": (1, 28, 28),
        "mnist_convsmall": (1, 28, 28),
        "cifar10_cnn_a": (3, 32, 32),
        "cifar10_cnn_c": (3, 32, 32),
        "cifar10_convsmall": (3, 32, 32),
        "cifar10_convdeep": (3, 32, 32),
    }
