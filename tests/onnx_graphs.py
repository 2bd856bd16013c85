"""ONNX graphs for tests, and random ones of one operator with all its attributes varied."""

from pathlib import Path

import numpy as np


def graph(nodes, constants, shape, *, opset=17, batch="N", dtype=np.float32, element=None):
    """A model with input x: [batch, *shape] and the last node's first output; real constants become `dtype`."""
    from onnx import helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) if element is None else element
    held = {name: np.asarray(each) for name, each in constants.items()}
    initial = [
        numpy_helper.from_array(each.astype(dtype) if each.dtype.kind == "f" else each, name)
        for name, each in held.items()
    ]
    x = helper.make_tensor_value_info("x", kind, [batch, *shape])
    y = helper.make_tensor_value_info(nodes[-1].output[0], kind, None)
    made = helper.make_graph(nodes, "g", [x], [y], initial)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def save(model, folder: Path, name="net.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def truth(model, x):
    """Outputs of ONNX's own reference evaluator, all rows at once or, where a file counts on batches of one, row by row."""
    from onnx.reference import ReferenceEvaluator

    run = ReferenceEvaluator(model).run
    try:
        return run(None, {"x": x})[0].reshape(len(x), -1)
    except ValueError:
        return np.concatenate([run(None, {"x": row[None]})[0].reshape(1, -1) for row in x])


KINDS = (
    *("Arithmetic", "AveragePool", "BatchNormalization", "Conv", "Dropout", "Flatten", "Gemm", "GlobalAveragePool"),
    *("MatMul", "ReduceMean", "Reshape"),
)


def random_graph(rng):
    """Nodes, constants, shape, opset and batch of a random graph of one operator, read directly or after another."""
    from onnx import helper

    def pick(*options):
        return options[rng.integers(len(options))]

    def some(**attributes):
        return {name: value for name, value in attributes.items() if rng.random() < 0.4}

    def pair(*options):
        return [int(pick(*options)), int(pick(*options))]

    picture = [int(each) for each in rng.integers((1, 2, 2), (4, 6, 6))]
    kind = pick(*KINDS)
    shape = picture if kind in ("Conv", "AveragePool") else pick(picture, [int(rng.integers(1, 6))], [2, 3])
    size, last, source, before = int(np.prod(shape)), shape[-1], "x", []
    constants, names, attributes = {}, [], {}
    pads = pick([1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1], [2, 1, 2, 1], [0, 0, 1, 1], [0, 0, 0, 0])
    window = {
        **some(strides=pair(1, 2, 3), dilations=pair(1, 1, 2), pads=pads),
        **({} if rng.random() < 0.7 else {"auto_pad": pick("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")}),
    }
    if kind == "Gemm":
        m = int(rng.integers(1, 4))
        attributes = some(alpha=0.5, beta=-1.5, transA=int(rng.integers(2)), transB=int(rng.integers(2)))
        constants["w"] = rng.normal(size=(m, size) if attributes.get("transB") else (size, m))
        names = ["w"]
        if rng.random() < 0.2:  # the third input is computed
            before, constants["w"] = [helper.make_node("Neg", ["x"], ["r"])], rng.normal(size=(size, size))
            names.append("r")
        elif rng.random() < 0.7:
            constants["c"] = rng.normal(size=pick((m,), (1,), (), (1, m), (1, 1), (3, m), (3, 1), (m, 1), (1, 1, m)))
            names.append("c")
    elif kind == "MatMul":
        constants["w"], names = rng.normal(size=pick((last, 3), (last, 3), (last,), (1, last, 3), (size, 2))), ["w"]
    elif kind == "Conv":
        groups, kernel = pick(1, shape[0]), pair(1, 2, 3)
        attributes = window | some(kernel_shape=kernel, group=groups) | ({"group": groups} if groups > 1 else {})
        constants["w"], names = rng.normal(size=(2 * groups, shape[0] // groups, *kernel)), ["w"]
        if rng.random() < 0.5:
            constants["b"], names = rng.normal(size=2 * groups), ["w", "b"]
    elif kind == "AveragePool":
        attributes = window | some(ceil_mode=int(rng.integers(2)), count_include_pad=int(rng.integers(2)))
        attributes["kernel_shape"] = pair(1, 2, 3)
    elif kind == "BatchNormalization":
        channels = shape[0]
        if len(shape) == 3 and rng.random() < 0.6:
            constants["k"], channels, source = rng.normal(size=(2, channels, 1, 1)), 2, "a"
            before = [helper.make_node("Conv", ["x", "k"], ["a"])]
            if rng.random() < 0.5:
                channels, source = 2 * shape[1] * shape[2], "f"
                before.append(helper.make_node("Flatten", ["a"], ["f"]))
        names = ["scale", "bias", "mean", "var"]
        constants |= {name: rng.uniform(0.2, 2, channels) for name in names}
        attributes = some(epsilon=0.25, momentum=0.5) | (
            {"training_mode": int(rng.integers(2))} if rng.random() < 0.2 else {}
        )
    elif kind == "Arithmetic":
        kind, ones = pick("Add", "Sub", "Mul", "Div"), (1,) * len(shape)
        wide = [(1, *shape), (3, *shape), (2, *shape), (1, 1, *shape), (1, *ones), (3, *ones)]
        constants["c"] = rng.normal(size=pick((), (1,), (5,), shape, (last,), shape[1:], (shape[0], *ones[1:]), *wide))
        source, names = ("x", ["c"]) if rng.random() < 0.7 else ("c", ["x"])
        if rng.random() < 0.2:
            names, before = ["r"], [helper.make_node(pick("Relu", "GlobalAveragePool", "Flatten"), ["x"], ["r"])]
    elif kind == "Flatten":
        attributes = some(axis=int(rng.integers(-4, 5)))
    elif kind == "Reshape":
        wanted = [
            [0, -1],
            [-1, size],
            [1, -1],
            [3, -1],
            [size, -1],
            [-1],
            [0, 0, -1],
            [-1, last],
            [0, *shape],
            [0, 1, -1],
        ]
        constants["s"], names = np.array(pick(*wanted, [0, *shape[::-1]], [-1, size, 1], [-1, 0]), np.int64), ["s"]
        attributes = some(allowzero=int(rng.integers(2))) if rng.random() < 0.2 else {}
    elif kind == "Dropout" and rng.random() < 0.5:
        constants |= {"chance": np.array(0.5), "training": np.array(bool(rng.integers(2)))}
        names = ["chance", "training"]
    elif kind == "ReduceMean":
        attributes = some(keepdims=int(rng.integers(2))) | {
            "axes": pick([2, 3], [-1, -2], [1, 2], [-1], [0, 1], [1], [1, 2, 3])
        }
    opset = int(pick(7, 9, 11, 13, 15, 17, 19, 21))
    if kind == "ReduceMean" and opset >= 18:  # where the axes are an input
        constants["axes"], names = np.array(attributes.pop("axes"), np.int64), ["axes"]
    if kind == "BatchNormalization":  # of older ones the reference evaluator computes the training
        opset = max(opset, 15)
    outputs = ["y", "mask"] if kind == "Dropout" and rng.random() < 0.3 else ["y"]
    nodes = [*before, helper.make_node(kind, [source, *names], outputs, **attributes)]
    nodes.append(helper.make_node("Mul", ["y", "half"], ["z"]))
    constants["half"] = np.array(0.5)
    return nodes, constants, shape, opset, pick("N", "N", 3, 1)
