"""Networks from ONNX files (extra `onnx`): operators one by one, constants folded, unknown ones refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipoise.core.errors import BadInput, MissingExtra
from equipoise.verification.network import Builder, Network

KNOWN = (
    "Add, AveragePool, BatchNormalization, Constant, Conv, Div, Dropout, Flatten, Gemm, GlobalAveragePool, Identity, "
    "MatMul, Mul, Relu, Reshape, Sub"
)


def read_onnx(path: Path) -> Network:
    """The network of an ONNX file with one input and one output. Raises BadInput for an operator that is not known."""
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        from onnx import numpy_helper  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra("ONNX files need a package: pip install 'equipoise[onnx]'") from error
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf raises types of its own
        raise BadInput(f"{path} is no ONNX file ({error}).") from error
    constants = {each.name: _tensor(numpy_helper.to_array(each)) for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise BadInput(f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs; expected one of each.")
    shape = [each.dim_value for each in inputs[0].type.tensor_type.shape.dim][1:]
    if not shape or min(shape) < 1:
        raise BadInput(
            f"{path}: the input's shape {shape} is not fixed; only the first dimension, the batch, may be free."
        )
    reader = _Reader(Builder(shape), {inputs[0].name: 0}, constants, str(path))
    uses = [name for node in graph.node for name in node.input]
    reader.kept = {name for name in uses if uses.count(name) > 1}
    for node in graph.node:
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "Constant":
            constants[node.output[0]] = _tensor(numpy_helper.to_array(attributes["value"]))
        else:
            reader.node(node.op_type, list(node.input), node.output[0], attributes)
    if graph.output[0].name not in reader.values:
        raise BadInput(f"{path}: the output does not depend on the input.")
    return reader.builder.build(reader.values[graph.output[0].name], path.stem)


class _Reader:
    def __init__(self, builder: Builder, values: dict[str, int], constants: dict[str, Tensor], path: str) -> None:
        self.builder, self.values, self.constants, self.path = builder, values, constants, path
        self.kept: set[str] = set()

    def node(self, kind: str, names: list[str], output: str, attributes: dict[str, Any]) -> None:
        at = [self.values[name] for name in names if name in self.values]
        given = [self.constants[name] for name in names if name in self.constants]
        if not at or len(at) + len(given) != len([name for name in names if name]):
            self.refuse(kind, "does not read what was computed before it")
        for name in names:
            if name in self.kept and name in self.values:
                self.builder.kept.add(self.values[name])
        self.values[output] = self.layer(kind, at, given, names[0] in self.values, attributes)

    def layer(self, kind: str, at: list[int], given: list[Tensor], first: bool, attributes: dict[str, Any]) -> int:
        build, value = self.builder, at[0]
        if kind == "Gemm":
            plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
            if plain and first and not attributes.get("transA", 0) and given:
                weight = given[0] if attributes.get("transB", 0) else given[0].T
                return build.linear(value, weight, given[1].flatten() if len(given) > 1 else None)
        elif kind == "MatMul" and first and given and given[0].ndim == 2:
            return build.linear(value, given[0].T, None)
        elif kind == "Conv" and given:
            padding = self.padding(attributes)
            if padding is not None and given[0].ndim == 4:
                return build.conv2d(
                    value,
                    given[0],
                    given[1] if len(given) > 1 else None,
                    stride=attributes.get("strides", (1, 1)),
                    padding=padding,
                    dilation=attributes.get("dilations", (1, 1)),
                    groups=attributes.get("group", 1),
                )
        elif kind == "Relu":
            return build.relu(value)
        elif kind in ("Identity", "Dropout"):
            return value
        elif {"Flatten": attributes.get("axis", 1) == 1, "Reshape": bool(given) and given[0].numel() == 2}.get(kind):
            return build.flatten(value)
        elif kind == "BatchNormalization" and len(given) == 4:
            weight, bias, mean, variance = given
            return build.batch_norm(value, weight, bias, mean, variance, attributes.get("epsilon", 1e-5))
        elif kind == "AveragePool" and not attributes.get("ceil_mode", 0):
            padding = self.padding(attributes)
            if padding is not None and (attributes.get("count_include_pad", 0) or not any(padding)):
                kernel = attributes["kernel_shape"]
                return build.average_pool(value, kernel, attributes.get("strides", (1, 1)), padding)
        elif kind == "GlobalAveragePool" and len(build.shapes[value]) == 3:
            size = build.shapes[value][1:]
            return build.average_pool(value, size, size)
        elif kind == "Add" and len(at) == 2:
            return build.add(*at)
        elif kind in ("Add", "Sub", "Mul", "Div") and len(given) == 1:
            return self.scale(kind, value, given[0], first)
        return self.refuse(kind, f"is used in a way that is not known ({attributes})")

    def scale(self, kind: str, value: int, number: Tensor, first: bool) -> int:
        """A constant added to or multiplied with a value, broadcast as numpy does over [batch, *shape]."""
        shape = self.builder.shapes[value]
        try:
            whole = (
                number.expand(1, *shape).reshape(-1) if number.ndim > len(shape) else number.expand(shape).reshape(-1)
            )
        except RuntimeError:
            return self.refuse(kind, f"meets a constant of shape {tuple(number.shape)} and a value of shape {shape}")
        one, zero = torch.ones_like(whole), torch.zeros_like(whole)
        if kind == "Add":
            return self.builder.scale(value, one, whole)
        if kind == "Sub":
            return self.builder.scale(value, one if first else -one, -whole if first else whole)
        if kind == "Div" and not first:
            return self.refuse(kind, "divides by what is computed")
        return self.builder.scale(value, whole if kind == "Mul" else 1 / whole, zero)

    def padding(self, attributes: dict[str, Any]) -> tuple[int, int] | None:
        pads = list(attributes.get("pads", (0, 0, 0, 0)))
        if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or pads[:2] != pads[2:]:
            return None
        return (pads[0], pads[1])

    def refuse(self, kind: str, why: str) -> Any:
        raise BadInput(f"{self.path}: the operator {kind} {why}. Known: {KNOWN}.")


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))
