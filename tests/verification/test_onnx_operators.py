"""ONNX's operators one by one: what every attribute means, what is refused, and the file that runs beside what was read."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.verification.network import Builder

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx.version_converter")

from equipoise.verification import from_onnx  # noqa: E402
from equipoise.verification.from_onnx import OPERATORS, OnnxOriginal, _in_double, _padding  # noqa: E402
from onnx_graphs import graph  # noqa: E402

node = onnx.helper.make_node


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reader(shape, batch=None):
    return SimpleNamespace(builder=Builder(shape), batch=batch)


def computed(name, shape, *constants, **attributes):
    """What an operator makes of a value of this shape, and three inputs."""
    its, x = reader(shape), drawn(3, *shape, seed=9)
    value = OPERATORS[name](its, 0, *constants, **attributes)
    return its.builder.build(value, name)(x), x, its.builder.shape_of(value)


# --- padding --------------------------------------------------------------------------------------------------------

PICTURE, KERNEL = (2, 7, 10), (3, 4)


@pytest.mark.parametrize(
    ("auto", "pads", "strides", "dilations", "found"),
    [
        (b"NOTSET", None, (1, 1), (1, 1), (0, 0)),
        (b"NOTSET", (1, 2, 1, 2), (1, 1), (1, 1), (1, 2)),
        (b"VALID", None, (2, 3), (1, 1), (0, 0)),
        # (7 - 1) * 1 + 3 - 7 = 2 and (4 - 1) * 3 + 4 - 10 = 3: the latter is not the same on both sides.
        (b"SAME_UPPER", None, (1, 3), (1, 1), None),
        (b"SAME_LOWER", None, (1, 3), (1, 1), None),
        # ceil(10 / 4) = 3: 2 * 4 + 4 - 10 = 2.
        (b"SAME_UPPER", None, (1, 4), (1, 1), (1, 1)),
        (b"SAME_LOWER", None, (1, 4), (1, 1), (1, 1)),
        # 6 + 2 * 2 + 1 - 7 = 4 and 2 * 4 + 2 * 3 + 1 - 10 = 5, with dilations.
        (b"SAME_UPPER", None, (1, 4), (2, 2), None),
        (b"SAME_UPPER", None, (1, 1), (2, 2), (2, 3)),
        (b"SAME_UPPER", None, (2, 4), (1, 1), (1, 1)),
    ],
)
def test_what_is_added_on_either_side(auto, pads, strides, dilations, found):
    given = PICTURE, KERNEL, strides, dilations, auto, pads
    if found is not None:
        assert _padding(*given) == found
        return
    with pytest.raises(BadInput, match="is not the same on both sides") as error:
        _padding(*given)
    whole = [
        (-(-size // step) - 1) * step + apart * (side - 1) + 1 - size
        for size, side, step, apart in zip(PICTURE[1:], KERNEL, strides, dilations, strict=True)
    ]
    less, more = [each // 2 for each in whole], [each - each // 2 for each in whole]
    sides = (*less, *more) if auto == b"SAME_UPPER" else (*more, *less)
    assert str(error.value) == f"the padding {sides} is not the same on both sides"


@pytest.mark.parametrize(
    ("auto", "pads", "strides", "said"),
    [
        (b"VALID", (0, 0, 0, 0), (1, 1), "auto_pad=VALID and pads=(0, 0, 0, 0) contradict each other"),
        (b"SAME", None, (1, 1), "auto_pad=SAME is not known"),
        (b"SAME_LOWER", None, (5, 1), "auto_pad=SAME_LOWER meets strides (5, 1) that are wider than the kernel"),
        (b"NOTSET", (1, 1), (1, 1), "the padding (1, 1) is not the same on both sides"),
        (b"NOTSET", (1, 0, 0, 0), (1, 1), "the padding (1, 0, 0, 0) is not the same on both sides"),
        (b"NOTSET", (0, 1, 0, 0), (1, 1), "the padding (0, 1, 0, 0) is not the same on both sides"),
        (b"NOTSET", (1, 1, 1, 1, 1), (1, 1), "the padding (1, 1, 1, 1, 1) is not the same on both sides"),
    ],
)
def test_paddings_that_are_not_known(auto, pads, strides, said):
    with pytest.raises(BadInput) as error:
        _padding((2, 12, 10), (1, 4) if strides == (5, 1) else KERNEL, strides, (1, 1), auto, pads)
    assert str(error.value) == said


def test_a_padding_of_nothing_is_the_least():
    assert _padding((2, 11, 10), (1, 3), (5, 1), (1, 1), b"SAME_UPPER", None) == (0, 1)  # 2 * 5 + 1 - 11 is 0


@pytest.mark.parametrize("place", range(4))
def test_windows_have_two_dimensions(place):
    given = [(2, 7, 10), (3, 4), (1, 1), (1, 1)]
    given[place] = given[place][1:]
    with pytest.raises(
        BadInput, match=r"^a kernel of .* meets a value of shape .*; expected pictures, two dimensions$"
    ):
        _padding(*given, b"NOTSET", None)


# --- operators ------------------------------------------------------------------------------------------------------


def test_convolutions_with_every_attribute():
    weight, bias = drawn(4, 1, 2, 3), drawn(4, seed=1)
    how = {"dilations": (2, 1), "group": 2, "kernel_shape": (2, 3), "pads": (1, 2, 1, 2), "strides": (1, 2)}
    found, x, _ = computed("Conv", (2, 5, 6), weight, bias, **how)
    assert_close(found, F.conv2d(x, weight, bias, (1, 2), (1, 2), (2, 1), 2).flatten(1))
    weight = drawn(4, 2, 2, 3)
    found, x, _ = computed("Conv", (2, 5, 6), weight)
    assert_close(found, F.conv2d(x, weight).flatten(1))
    with pytest.raises(BadInput) as error:
        computed("Conv", (2, 5, 6), weight, kernel_shape=(3, 2))
    assert str(error.value) == "kernel_shape is (3, 2), the weight has the shape (4, 2, 2, 3)"


def test_average_pools_with_every_attribute():
    how = {"kernel_shape": (2, 3), "pads": (1, 1, 1, 1), "strides": (1, 2), "count_include_pad": 1}
    found, x, _ = computed("AveragePool", (2, 5, 6), **how)
    assert_close(found, F.avg_pool2d(x, (2, 3), (1, 2), (1, 1)).flatten(1))
    found, x, _ = computed("AveragePool", (2, 5, 6), kernel_shape=(2, 3))
    assert_close(found, F.avg_pool2d(x, (2, 3), 1).flatten(1))
    found, x, _ = computed("AveragePool", (2, 5, 6), kernel_shape=(2, 2), dilations=(3, 2))
    weight = torch.full((2, 1, 2, 2), 0.25, dtype=torch.float64)
    assert_close(found, F.conv2d(x, weight, dilation=(3, 2), groups=2).flatten(1))
    found, x, _ = computed("AveragePool", (2, 4, 6), kernel_shape=(3, 3), auto_pad=b"SAME_UPPER", count_include_pad=1)
    assert_close(found, F.avg_pool2d(x, 3, 1, 1).flatten(1))
    with pytest.raises(BadInput, match="does not count its padding"):
        computed("AveragePool", (2, 5, 6), kernel_shape=(2, 3), pads=(1, 1, 1, 1))
    with pytest.raises(BadInput, match="ceil mode"):
        computed("AveragePool", (2, 5, 6), kernel_shape=(2, 3), strides=(2, 2), ceil_mode=1)
    assert computed("AveragePool", (2, 5, 7), kernel_shape=(3, 3), strides=(2, 2), ceil_mode=1)[2] == (2, 2, 3)
    for how in ({"ceil_mode": 1}, {"dilations": (1, 2)}, {"dilations": (2, 1), "ceil_mode": 1}):
        with pytest.raises(BadInput) as error:
            computed("AveragePool", (2, 5, 6), kernel_shape=(1, 1), auto_pad=b"VALID", **how)
        assert (
            str(error.value)
            == "auto_pad=VALID with ceil_mode or dilations means different things to different programs"
        )
    assert computed("AveragePool", (2, 5, 6), kernel_shape=(1, 1), auto_pad=b"VALID", dilations=(1, 1))[2] == (2, 5, 6)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_with_every_attribute(transposed):
    matrix = drawn(5, 3)
    given = matrix.T.contiguous() if transposed else matrix
    for c in (drawn(3, seed=1), drawn(1, seed=1), drawn(1, 3, seed=1), drawn(1, 1, seed=1), torch.tensor(0.5)):
        found, x, _ = computed("Gemm", (5,), given, c, alpha=0.5, beta=-2.0, transB=transposed)
        assert_close(found, 0.5 * x @ matrix - 2 * c)
    found, x, _ = computed("Gemm", (5,), given, transB=transposed)
    assert_close(found, x @ matrix)
    found, x, _ = computed("Gemm", (5,), given, drawn(3, seed=1), transB=transposed)
    assert_close(found, x @ matrix + drawn(3, seed=1))
    for c in (drawn(2), drawn(2, 3), drawn(3, 1), drawn(1, 1, 3)):
        with pytest.raises(BadInput) as error:
            computed("Gemm", (5,), given, c, transB=transposed)
        said = f"its input C has the shape {tuple(c.shape)}, expected one number for each of 3"
        assert str(error.value) == said
    with pytest.raises(BadInput, match=r"^transA=1 is not known$"):
        computed("Gemm", (5,), given, transA=1, transB=transposed)
    with pytest.raises(BadInput, match=r"^its input A has the shape \(1, 5\), expected a flat one$"):
        computed("Gemm", (1, 5), given, transB=transposed)
    with pytest.raises(BadInput, match=r"^its input B is computed, expected a constant$"):
        computed("Gemm", (5,), 0)
    with pytest.raises(BadInput, match=r"^its input A is a constant, which is not known here$"):
        OPERATORS["Gemm"](reader((5,)), given, given)


def test_gemm_whose_third_input_is_computed():
    its, x = reader((3,)), drawn(4, 3)
    value = OPERATORS["Gemm"](its, 0, drawn(3, 3), 0, alpha=0.5, beta=-2.0)
    assert_close(its.builder.build(value, "n")(x), 0.5 * x @ drawn(3, 3) - 2 * x)


def test_matmul_takes_a_matrix():
    found, x, _ = computed("MatMul", (5,), drawn(5, 3))
    assert_close(found, x @ drawn(5, 3))
    for wrong in (drawn(5), drawn(2, 5, 3)):
        with pytest.raises(BadInput, match=r"^its input B has the shape .*, expected a matrix$"):
            computed("MatMul", (5,), wrong)


@pytest.mark.parametrize("keepdims", [None, 0, 1])
def test_means(keepdims):
    how = {} if keepdims is None else {"keepdims": keepdims}
    kept = (2,) if keepdims == 0 else (2, 1, 1)
    for given, axes in (((), {"axes": (2, 3)}), ((torch.tensor([-1, 2]),), {})):
        found, x, shape = computed("ReduceMean", (2, 3, 4), *given, **axes, **how)
        assert_close(found, x.mean((2, 3))) and shape == kept
        assert shape == kept
    with pytest.raises(
        BadInput, match=r"^a mean over the dimensions \[\] of a value of shape \(2, 3, 4\) is not known$"
    ):
        computed("ReduceMean", (2, 3, 4))
    found, x, shape = computed("GlobalAveragePool", (2, 3, 4))
    assert_close(found, x.mean((2, 3))) and shape == (2, 1, 1)
    assert shape == (2, 1, 1)


def test_batch_normalizations():
    parts = [drawn(2, seed=seed) for seed in range(3)] + [drawn(2, seed=4).square()]
    weight, bias, mean, variance = parts
    for how, eps in (({}, float(np.float32(1e-5))), ({"epsilon": 0.5, "momentum": 0.1}, 0.5)):
        found, x, _ = computed("BatchNormalization", (2, 3, 4), *parts, **how)
        assert_close(found, F.batch_norm(x, mean, variance, weight, bias, eps=eps).flatten(1))
    for how, said in (
        ({"training_mode": 1}, "training_mode=1, spatial=1 is not known; expected 0 and 1"),
        ({"spatial": 0}, "training_mode=0, spatial=0 is not known; expected 0 and 1"),
    ):
        with pytest.raises(BadInput) as error:
            computed("BatchNormalization", (2, 3, 4), *parts, **how)
        assert str(error.value) == said


def test_what_changes_nothing():
    for name in ("Identity", "Dropout"):
        its = reader((3,))
        assert OPERATORS[name](its, 0) == 0
    assert OPERATORS["Dropout"](reader((3,)), 0, torch.tensor(0.5), torch.tensor(False), ratio=0.5, seed=1) == 0
    with pytest.raises(BadInput, match=r"^training_mode is true; expected a network in evaluation mode$"):
        OPERATORS["Dropout"](reader((3,)), 0, torch.tensor(0.5), torch.tensor(True))
    found, x, _ = computed("Neg", (3,))
    assert_close(found, -x)
    found, x, _ = computed("Relu", (3,))
    assert_close(found, x.relu())


@pytest.mark.parametrize(
    ("shape", "axis", "out"),
    [
        ((2, 3, 4), None, (24,)),
        ((2, 3, 4), 1, (24,)),
        ((2, 3, 4), -3, (24,)),
        ((1, 3, 4), 2, (12,)),
        ((1, 1, 4), 3, (4,)),
        ((1, 1, 4), -1, (4,)),
        ((2, 3, 4), 2, None),
        ((2, 3, 4), 0, None),
        ((2, 3, 4), -4, None),
        ((2, 3, 4), -1, None),
        ((1, 1, 1), 4, None),
    ],
)
def test_flattening(shape, axis, out):
    how = {} if axis is None else {"axis": axis}
    if out is None:
        with pytest.raises(BadInput, match=rf"^axis={axis} joins the batch with other dimensions; expected 1$"):
            computed("Flatten", shape, **how)
    else:
        its = reader(shape)
        assert its.builder.shape_of(OPERATORS["Flatten"](its, 0, **how)) == out


@pytest.mark.parametrize(
    ("wanted", "batch", "out"),
    [
        ((-1, 24), None, (24,)),
        ((0, 24), None, (24,)),
        ((0, -1), None, (24,)),
        ((0, 4, -1), None, (4, 6)),
        ((0, 0, -1), None, (2, 12)),  # the same as before
        ((-1, 0, 0, 4), None, (2, 3, 4)),
        ((1, -1), None, (24,)),
        ((1, 24), 1, (24,)),
        ((5, 24), 5, (24,)),
        ((5, -1), 5, (24,)),
        ((-1, 12, 2), 5, (12, 2)),
        ((-1, -1), None, None),
        ((0, -1, -1), None, None),
        ((2, 12), None, None),
        ((1, 24), 5, None),
        ((24,), None, None),
        ((), None, None),
    ],
)
def test_reshaping(wanted, batch, out):
    its = reader((2, 3, 4), batch)
    shape = torch.tensor(wanted, dtype=torch.int64)
    if out is None:
        with pytest.raises(BadInput, match=r"joins the batch|holds nothing"):
            OPERATORS["Reshape"](its, 0, shape)
        return
    assert its.builder.shape_of(OPERATORS["Reshape"](its, 0, shape)) == out
    assert its.batch == (1 if wanted[0] == 1 else batch)


def test_reshapes_that_do_not_fit():
    for wanted, how, said in (
        ((0, 24), {"allowzero": 1}, "a shape [0, 24] with allowzero=1 holds nothing"),
        ((), {}, "a shape [] with allowzero=0 holds nothing"),
        ((2, 12), {}, "the shape [2, 12] joins the batch with other dimensions; expected it to begin with -1 or 0"),
        ((0, 5, -1), {}, "a value of shape (2, 3, 4) cannot be read with the shape (5, 4)"),
        ((0, 0, 0, 0, 0), {}, "a value of shape (2, 3, 4) cannot be read with the shape (2, 3, 4, 0)"),
    ):
        with pytest.raises(BadInput) as error:
            OPERATORS["Reshape"](reader((2, 3, 4)), 0, torch.tensor(wanted, dtype=torch.int64), **how)
        assert str(error.value) == said
    its = reader((2, 3, 4))
    value = OPERATORS["Reshape"](its, 0, torch.tensor([-1, 24]), allowzero=1)
    assert its.builder.shape_of(value) == (24,)


ARITHMETIC = {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_with_constants_on_either_side(name):
    number = drawn(3)
    found, x, _ = computed(name, (3,), number)
    assert_close(found, ARITHMETIC[name](x, number))
    its = reader((3,))
    if name == "Div":
        with pytest.raises(BadInput, match="a constant is divided by what is computed"):
            OPERATORS[name](its, number, 0)
    else:
        assert_close(its.builder.build(OPERATORS[name](its, number, 0), "n")(x), ARITHMETIC[name](number, x))
    its = reader((3,))
    bent = its.builder.relu(0)
    if name in ("Mul", "Div"):
        with pytest.raises(BadInput, match=r"^both its inputs are computed, expected a constant$"):
            OPERATORS[name](its, 0, bent)
    else:
        assert_close(its.builder.build(OPERATORS[name](its, 0, bent), "n")(x), ARITHMETIC[name](x, x.relu()))


# --- the file itself ------------------------------------------------------------------------------------------------


def model(batch="N"):
    nodes = [
        node("Constant", [], ["c"], value_float=0.1),
        node("Constant", [], ["d"], value_floats=[0.1, 0.2]),
        node("Constant", [], ["e"], value=onnx.numpy_helper.from_array(np.array([3.0], np.float32))),
        node("Constant", [], ["i"], value_int=3),
        node("Cast", ["W"], ["V"], to=1),
        node("Cast", ["i"], ["j"], to=7),
        node("MatMul", ["x", "V"], ["y"]),
    ]
    made = graph(nodes, {"W": np.array([[0.1, 0.2], [0.3, 0.4]]), "s": np.array([2])}, [2], batch=batch)
    made.graph.value_info.append(onnx.helper.make_tensor_value_info("y", 1, None))
    return made


def test_a_file_in_double_precision_has_no_single_number_left():
    whole, raised = model(), _in_double(model())
    assert whole == model()  # the file itself stays
    assert raised.graph.input[0].type.tensor_type.elem_type == raised.graph.output[0].type.tensor_type.elem_type == 11
    assert not raised.graph.value_info
    kinds = {each.name: each.data_type for each in raised.graph.initializer}
    assert kinds == {"W": 11, "s": 7}
    by_name = {each.output[0]: each for each in raised.graph.node}
    for name, value in (("c", 0.1), ("d", [0.1, 0.2]), ("e", [3.0])):
        array = onnx.numpy_helper.to_array(by_name[name].attribute[0].t)
        assert by_name[name].attribute[0].name == "value" and array.dtype == np.float64
        assert np.array_equal(array, np.array(value, np.float32).astype(np.float64))
    assert by_name["i"].attribute[0].i == 3 and by_name["V"].attribute[0].i == 11 and by_name["j"].attribute[0].i == 7


@pytest.mark.parametrize(("batch", "sizes"), [(None, [5]), (1, [1] * 5), (2, [2, 2, 2]), (5, [5]), (8, [8])])
def test_a_file_with_a_fixed_batch_runs_so_many_at_a_time(batch, sizes):
    original, seen = OnnxOriginal(model(batch or "N"), batch), []

    def make(its):
        def run(_, given):
            (x,) = given.values()
            seen.append((list(given), x.dtype, len(x)))
            return [2 * x]

        return run

    x = torch.arange(10.0).reshape(5, 2)
    for dtype, kind in ((torch.float64, np.float64), (torch.float32, np.float32)):
        found = original._start(make, dtype)(x)
        assert torch.equal(found, 2 * x.double()) and found.dtype == torch.float64
        assert seen == [(["x"], kind, size) for size in sizes]
        seen.clear()


def test_a_file_is_run_in_double_first_and_in_its_own_precision_then():
    runs = list(OnnxOriginal(model(), None).runs())
    kinds = [each.reference for each in runs]
    half = len(runs) // 2
    assert [each.dtype for each in runs] == [torch.float64] * half + [torch.float32] * half
    assert kinds[:half] == kinds[half:] and kinds[half - 1] == "onnx.reference"
    assert all(each.version == onnx.__version__ for each in runs if each.reference == "onnx.reference")
    assert_close(runs[half - 1].start()(torch.eye(2)), torch.tensor([[0.1, 0.2], [0.3, 0.4]]).double())
    doubled = graph([node("Relu", ["x"], ["y"])], {}, [2], dtype=np.float64)
    assert {each.dtype for each in OnnxOriginal(doubled, None).runs()} == {torch.float64}


def test_numbers_of_a_file():
    assert from_onnx._real(np.array([1, 2], np.int32)).dtype == np.int32
    assert from_onnx._real(np.array([True])).dtype == bool and from_onnx._real(np.float16(0.5)).dtype == np.float64
    assert from_onnx._real(np.array([1], np.uint8)).dtype == np.uint8
    for wrong in (np.array(["a"]), np.array([b"a"]), np.array([1j]), np.array([None])):
        with pytest.raises(BadInput, match=r"^it holds .*, expected real numbers$"):
            from_onnx._real(wrong)
    assert from_onnx._opset(model()) == 17
    other = model()
    other.opset_import.append(onnx.helper.make_opsetid("com.example", 99))
    assert from_onnx._opset(other) == 17
    del other.opset_import[:]
    assert from_onnx._opset(other) == 0


@pytest.mark.parametrize(
    ("opset", "normalised", "converted"), [(13, True, [15]), (14, True, []), (17, True, []), (13, False, [])]
)
def test_older_batch_normalisations_are_converted_and_nothing_else(monkeypatch, opset, normalised, converted):
    asked, real = [], onnx.version_converter.convert_version
    monkeypatch.setattr("onnx.version_converter.convert_version", lambda *given: asked.append(given[1]) or real(*given))
    nodes = [node("BatchNormalization", ["x", "w", "w", "w", "w"], ["y"]) if normalised else node("Relu", ["x"], ["y"])]
    run = from_onnx._reference(graph(nodes, {"w": np.ones(2)} if normalised else {}, [2], opset=opset))
    assert asked == converted
    assert run(None, {"x": np.ones((1, 2), np.float32)})[0].shape == (1, 2)
