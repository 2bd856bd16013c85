"""ONNX graphs for tests: written to a file in one precision, run by ONNX's reference evaluator in another."""

from pathlib import Path

import numpy as np

BATCH = 3
OPSETS = (7, 9, 11, 13, 15, 17, 19, 21)


def graph(nodes, constants, shape, *, opset=17, element=None, batch="N", extra=(), dtype=np.float32):
    """A model with input x: [batch, *shape] and the last node's first output; constants of numbers become `dtype`."""
    from onnx import TensorProto, helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) if element is None else element
    held = [np.asarray(each).astype(dtype) if np.asarray(each).dtype.kind == "f" else np.asarray(each) for each in constants.values()]
    initial = [numpy_helper.from_array(each, name) for name, each in zip(constants, held, strict=True)]
    x = helper.make_tensor_value_info("x", kind, [batch, *shape])
    y = helper.make_tensor_value_info(nodes[-1].output[0], kind, None)
    made = helper.make_graph(nodes, "g", [x, *extra], [y], initial)
    assert TensorProto.FLOAT == 1
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def save(model, folder: Path, name="net.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def truth(model, x):
    """Outputs of ONNX's own reference evaluator, flat."""
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run(None, {"x": x})[0].reshape(len(x), -1)
