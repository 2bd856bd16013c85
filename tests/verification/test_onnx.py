"""ONNX files: read as ONNX's own evaluator computes them, or refused with a sentence."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.verification.from_onnx import read_onnx
from equipoise.verification.read import read, read_network
from onnx_graphs import graph, random_graph, save, truth

onnx = pytest.importorskip("onnx")
node = onnx.helper.make_node


def both(folder, nodes, constants, shape, *, x=None, **settings):
    """What was read and what the reference evaluator gives in float64, at three points."""
    x = np.random.default_rng(0).normal(size=(3, *shape)) if x is None else x
    network = read_network(save(graph(nodes, constants, shape, **settings), folder))
    wide = {
        name: np.asarray(each, np.float32) if np.asarray(each).dtype.kind == "f" else each
        for name, each in constants.items()
    }
    exact = graph(nodes, wide, shape, **settings | {"dtype": np.float64, "element": None})
    return network(torch.from_numpy(x)).numpy(), truth(exact, x)


def check_random(folder, count, seed):
    rng, read_at_all = np.random.default_rng(seed), 0
    for number in range(count):
        nodes, constants, shape, opset, batch = random_graph(rng)
        x = rng.normal(size=(1 if batch == 1 else 3, *shape))
        try:
            found, expected = both(folder, nodes, constants, shape, x=x, opset=opset, batch=batch)
        except BadInput as error:
            assert str(error).startswith(str(folder)) and str(error).endswith("."), error
            continue
        assert np.allclose(found, expected, rtol=1e-12, atol=1e-12), (number, nodes, shape, opset, batch)
        read_at_all += 1
    return read_at_all


def test_a_graph_of_one_operator_is_read_as_it_is_or_refused(tmp_path):
    assert check_random(tmp_path, 150, seed=0) > 50


@pytest.mark.slow
def test_many_graphs_of_one_operator(tmp_path):
    assert check_random(tmp_path, 5000, seed=1) > 1500


M = np.array([[1.0, -1.0], [0.5, 2.0]])
GRAPHS = {
    "Gemm adds a computed value": (
        [
            node("Mul", ["x", "k"], ["c"]),
            node("Gemm", ["c", "V", "z"], ["h"]),
            node("Relu", ["h"], ["r"]),
            node("Gemm", ["r", "W", "c"], ["y"], beta=1.0),
        ],
        {"W": M / 10, "k": [-5.0, 5.0], "V": [[-1.0, 0.0], [0.0, 0.5]], "z": [0.0, 0.0]},
    ),
    "Gemm adds a scaled computed value": (
        [node("Relu", ["x"], ["r"]), node("Gemm", ["r", "W", "x"], ["y"], alpha=0.5, beta=-2.0)],
        {"W": M},
    ),
    "Gemm with one number": ([node("Gemm", ["x", "W", "b"], ["y"])], {"W": M, "b": [0.25]}),
    "a computed value of the same twice": (
        [node("Add", ["x", "x"], ["a"]), node("MatMul", ["a", "W"], ["y"])],
        {"W": M},
    ),
    "two values subtracted": ([node("MatMul", ["x", "W"], ["a"]), node("Sub", ["x", "a"], ["y"])], {"W": M}),
    "identity of an initializer": (
        [node("Identity", ["b"], ["c"]), node("Gemm", ["x", "W", "c"], ["y"])],
        {"W": M, "b": [1.0, 2.0]},
    ),
    "transposed initializer": ([node("Transpose", ["W"], ["V"]), node("MatMul", ["x", "V"], ["y"])], {"W": M}),
    "constants computed from constants": (
        [node("Sqrt", ["v"], ["s"]), node("Div", ["m", "s"], ["q"]), node("Sub", ["x", "q"], ["y"])],
        {"v": [0.3, 0.7], "m": [1.0, 3.0]},
    ),
    "a dead end": (
        [node("Relu", ["x"], ["y"]), node("Sigmoid", ["x"], ["p"]), node("Neg", ["y"], ["z"])],
        {},
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_legal_graphs_are_read_exactly(tmp_path, name):
    nodes, constants = GRAPHS[name]
    assert_close(*both(tmp_path, nodes, constants, [2]), rtol=1e-14, atol=1e-14)


def test_a_flat_reading_of_a_value_leaves_its_picture(tmp_path):
    nodes = [
        node("Conv", ["x", "K"], ["a"]),
        node("Flatten", ["a"], ["f"]),
        node("Conv", ["a", "K"], ["b"]),
        node("Flatten", ["b"], ["g"]),
        node("Add", ["f", "g"], ["y"]),
    ]
    kernel = np.random.default_rng(1).normal(size=(2, 2, 1, 1))
    assert_close(*both(tmp_path, nodes, {"K": kernel}, [2, 2, 3]))


def test_constants_as_exporters_write_them(tmp_path):
    for value, expected in [
        ({"value_float": 2.5}, [2.5, 2.5]),
        ({"value_floats": [2.0, 3.0]}, [2.0, 3.0]),
        ({"value": onnx.numpy_helper.from_array(np.array([2.0, 3.0], np.float32))}, [2.0, 3.0]),
    ]:
        nodes = [node("Constant", [], ["s"], **value), node("Mul", ["x", "s"], ["y"])]
        network = read_network(save(graph(nodes, {}, [2]), tmp_path))
        assert_close(network(torch.ones(1, 2).double())[0], torch.tensor(expected).double())
    import ml_dtypes

    rounded = np.array([[0.1, 0.2], [0.3, 1.0]]).astype(ml_dtypes.bfloat16)
    model = graph([node("Gemm", ["x", "W"], ["y"])], {}, [2], element=onnx.TensorProto.BFLOAT16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(rounded, "W"))
    network = read_network(save(model, tmp_path))
    assert_close(network.layers[0].weight.numpy(), rounded.astype(np.float64).T, rtol=0, atol=0)


def test_a_division_is_inverted_in_float64(tmp_path):
    """c = 0.225 inverted in float32 was 5e-9 off; at x = 1000 the margin changed its sign."""
    c = np.float32(0.225)
    network = read_network(save(graph([node("Div", ["x", "c"], ["y"])], {"c": np.array([c, c])}, [2]), tmp_path))
    assert (network.layers[0].weight.numpy() == 1 / np.float64(c)).all()
    nodes = [node("Conv", ["x", "K"], ["a"]), node("BatchNormalization", ["a", "w", "b", "m", "v"], ["y"])]
    constants = {"K": np.full((2, 1, 1, 1), 0.1), "w": [0.3, 0.7], "b": [0.1, 0.2], "m": [0.3, 0.6], "v": [0.1, 0.9]}
    assert_close(*both(tmp_path, nodes, constants, [1, 1, 1]), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("opset", [7, 9, 13])
def test_older_batch_normalisations_agree_with_their_file(tmp_path, opset):
    from equipoise.verification.faithful import compare

    nodes = [node("BatchNormalization", ["x", "w", "b", "m", "v"], ["y"], momentum=0.9)]
    constants = {"w": [0.3, 0.7], "b": [0.1, 0.2], "m": [0.3, 0.6], "v": [0.1, 0.9]}
    reading = read_onnx(save(graph(nodes, constants, [2, 2, 2], opset=opset), tmp_path))
    x = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    assert compare(reading.network, reading.original, x, torch.ones(3)).precision == "float64"


REFUSED = {
    "MaxPool is not supported": ([node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])], {}),
    "Slice is not supported": ([node("Slice", ["x", "a", "b"], ["y"])], {"a": np.array([0]), "b": np.array([1])}),
    "drop a last one": ([node("Softmax", ["x"], ["y"])], {}),
    "node pool .AveragePool.*does not count its padding": (
        [node("AveragePool", ["x"], ["y"], "pool", kernel_shape=[2, 2], pads=[1, 1, 1, 1])],
        {},
    ),
    "training_mode=1": (
        [node("BatchNormalization", ["x", "w", "w", "w", "w"], ["y"], training_mode=1)],
        {"w": [1.0, 2.0]},
    ),
    "training_mode is true": (
        [node("Dropout", ["x", "r", "t"], ["y"])],
        {"r": np.array(0.5), "t": np.array(True)},
    ),
    "no attribute|unrecognized attribute|Unrecognized attribute": ([node("Relu", ["x"], ["y"], slope=0.1)], {}),
    "padding .1, 0, 0, 0. is not the same": (
        [node("Conv", ["x", "K"], ["y"], pads=[1, 0, 0, 0])],
        {"K": np.ones((1, 2, 1, 1))},
    ),
    "a sum meets values of shapes": ([node("GlobalAveragePool", ["x"], ["p"]), node("Add", ["x", "p"], ["y"])], {}),
    "axis=2 joins": ([node("Flatten", ["x"], ["y"], axis=2)], {}),
    "3, 4. joins the batch": ([node("Reshape", ["x", "s"], ["y"])], {"s": np.array([3, 4])}),
    "layer 0 .scale. has a parameter that is not finite": ([node("Div", ["x", "z"], ["y"])], {"z": np.array(0.0)}),
    "reads 'mask'": ([node("Dropout", ["x"], ["d", "mask"]), node("Identity", ["mask"], ["y"])], {}),
    "does not depend on the input": ([node("Identity", ["c"], ["y"])], {"c": np.array([[1.0]])}),
    "Exp of constants is not supported": (
        [node("Exp", ["c"], ["e"]), node("Mul", ["x", "e"], ["y"])],
        {"c": np.array(1.0)},
    ),
    "com.example.Relu is not supported": ([node("Relu", ["x"], ["y"], domain="com.example")], {}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_known_is_refused_by_name(tmp_path, message):
    nodes, constants = REFUSED[message]
    model = graph(nodes, constants, [2, 2, 2])
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    with pytest.raises(BadInput, match=message):
        read_network(save(model, tmp_path))


def test_a_file_is_refused_with_its_reason(tmp_path):
    relu = [node("Relu", ["x"], ["y"])]
    for shape, message in [
        ([2**40], "16777216 numbers at most"),
        ([-3], "dimensions from 1"),
        (["width"], "not fixed"),
        ([None], "not fixed"),
        ([], r"the shape \[None\], which is not fixed"),
    ]:
        with pytest.raises(BadInput, match=message):
            read_network(save(graph(relu, {}, shape), tmp_path))
    with pytest.raises(BadInput, match="opset 6; expected 7"):
        read_network(save(graph(relu, {}, [2], opset=6), tmp_path))
    with pytest.raises(BadInput, match="holds no real numbers"):
        read_network(save(graph(relu, {}, [2], element=onnx.TensorProto.INT64), tmp_path))
    for kind in ("functions", "sparse initializers"):
        model = graph(relu, {}, [2])
        if kind == "functions":
            opset = onnx.helper.make_opsetid("", 17)
            model.functions.append(
                onnx.helper.make_function("own", "f", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [opset])
            )
        else:
            parts = [
                onnx.numpy_helper.from_array(np.array([1], each), name)
                for each, name in ((np.float32, "s"), (np.int64, "i"))
            ]
            model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(*parts, [2]))
        with pytest.raises(BadInput, match=f"has {kind}, which are not supported"):
            read_network(save(model, tmp_path))
    short = graph([node("Mul", ["x", "c"], ["y"])], {"c": np.ones(4)}, [4])
    short.graph.initializer[0].raw_data = b"1234"
    with pytest.raises(BadInput, match=r"no valid ONNX file .*tensor name: c"):
        read_network(save(short, tmp_path))
    short.graph.initializer[0].dims[0] = 2**62
    with pytest.raises(BadInput, match=r"no valid ONNX file .*tensor name: c"):
        read_network(save(short, tmp_path))
    (tmp_path / "bad.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(BadInput, match="no valid ONNX file"):
        read_network(tmp_path / "bad.onnx")
    path = save(graph([node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((2, 1))}, [2]), tmp_path)
    with pytest.raises(BadInput, match="has one output; a class needs two"):
        read(path)
    with pytest.raises(BadInput, match="describes itself"):
        read(path, architecture="flatten, linear 1")
