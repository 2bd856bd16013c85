"""Networks from ONNX files (extra `onnx`): operators one by one, constants in float64.

Every operator is known with its inputs and attributes as the parameters of a function: what is not there is refused. What
the output does not need is not read. `OnnxOriginal` runs the file itself: in onnxruntime where that is installed, else in
ONNX's reference evaluator, in float64 where it can.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from equipoise.core.errors import BadInput, MissingExtra
from equipoise.verification.faithful import OriginalRun, Reading
from equipoise.verification.network import LARGEST, Builder, not_supported

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

OLDEST = 7  # opset: before it, sums broadcast by attributes, and dropout and normalisation trained by default
DOUBLE = 11  # of onnx.TensorProto.DataType
FLOATS = {1: torch.float32, 10: torch.float16, DOUBLE: torch.float64, 16: torch.bfloat16}

Value = int | Tensor  # a handle in the Builder, or a constant
EPSILON = float(np.float32(1e-5))  # an attribute of ONNX is a float32, its default too


def read_onnx(path: Path) -> Reading:
    """The network of an ONNX file with one input and one output, and the file to run beside it.

    Raises BadInput naming the node, the operator and the attribute or input that is not known; MissingExtra without onnx.
    """
    try:
        import onnx  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra("ONNX files need a package: pip install 'equipoise[onnx]'") from error
    try:
        model = onnx.load(str(path))
        for each in model.graph.output:  # the checker wants a shape there, and nothing else does
            each.type.tensor_type.ClearField("shape")
            each.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(model)
        for each in model.graph.output:
            each.type.tensor_type.ClearField("shape")
    except Exception as error:  # protobuf and the checker raise types of their own, of many lines
        raise BadInput(f"{path} is no valid ONNX file ({' '.join(str(error).split())[:300]}).") from error
    reader = _Reader(model, str(path))
    return Reading(reader.builder.build(reader.output(), path.stem), OnnxOriginal(model, reader.batch))


class OnnxOriginal:
    """An ONNX file beside what was read of it. batch: the fixed first dimension of its input, None where that is free."""

    def __init__(self, model: "ModelProto", batch: int | None) -> None:
        self.model, self.batch = model, batch

    def runs(self) -> Iterator[OriginalRun]:
        import onnx

        kinds = [("onnx.reference", onnx.__version__, _reference)]
        try:
            import onnxruntime  # pyright: ignore[reportMissingImports]

            def session(model: "ModelProto") -> Callable[..., Any]:
                return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run

            kinds.insert(0, ("onnxruntime", onnxruntime.__version__, session))
        except ImportError:
            pass
        own = FLOATS[_input(self.model.graph).type.tensor_type.elem_type]
        for dtype in dict.fromkeys((torch.float64, own)):
            for name, version, make in kinds:
                yield OriginalRun(name, version, dtype, lambda make=make, dtype=dtype: self._start(make, dtype))

    def _start(
        self, make: Callable[["ModelProto"], Callable[..., Any]], dtype: torch.dtype
    ) -> Callable[[Tensor], Tensor]:
        from onnx.helper import tensor_dtype_to_np_dtype

        model = _in_double(self.model) if dtype == torch.float64 else self.model
        given = _input(model.graph)
        run, kind = make(model), tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)

        def outputs(x: Tensor) -> Tensor:
            size = self.batch or len(x)
            found = []
            for begin in range(0, len(x), size):
                rows = x[begin : begin + size].double().numpy().astype(kind)
                spare = size - len(rows)
                (y,) = run(None, {given.name: np.concatenate([rows, np.repeat(rows[-1:], spare, axis=0)])})
                found.append(np.asarray(y).astype(np.float64)[: len(rows)])
            return torch.from_numpy(np.concatenate(found))

        return outputs


def _reference(model: "ModelProto") -> Callable[..., Any]:
    from onnx.reference import ReferenceEvaluator
    from onnx.version_converter import convert_version

    # Of older batch normalisations this evaluator computes the training (onnx 1.23).
    if _opset(model) < 14 and any(node.op_type == "BatchNormalization" for node in model.graph.node):
        model = convert_version(model, 15)
    return ReferenceEvaluator(model).run


def _opset(model: "ModelProto") -> int:
    return max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)


def _in_double(model: "ModelProto") -> "ModelProto":
    """The same file with every constant, input and output in float64."""
    import onnx

    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    del raised.graph.value_info[:]
    for each in (*raised.graph.input, *raised.graph.output):
        if each.type.tensor_type.elem_type in FLOATS:
            each.type.tensor_type.elem_type = DOUBLE
    for tensor in raised.graph.initializer:
        _raise(tensor)
    for node in raised.graph.node:
        for each in node.attribute:
            if each.type == onnx.AttributeProto.TENSOR:
                _raise(each.t)
            elif each.name in ("value_float", "value_floats"):  # of a Constant
                array = np.array(onnx.helper.get_attribute_value(each), np.float64)
                each.CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(array)))
            elif node.op_type == "Cast" and each.name == "to" and each.i in FLOATS:
                each.i = DOUBLE
    return raised


def _raise(tensor: "TensorProto") -> None:
    from onnx import numpy_helper

    if tensor.data_type in FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def _input(graph: "GraphProto") -> "ValueInfoProto":
    constants = {each.name for each in graph.initializer}
    return next(each for each in graph.input if each.name not in constants)


class _Reader:
    """Reads the nodes that the output needs. batch: the fixed size of a batch, 1 where a Reshape counts on it, else None."""

    def __init__(self, model: "ModelProto", path: str) -> None:
        graph = model.graph
        self.path, self.graph = path, graph
        self.opset = _opset(model)
        if self.opset < OLDEST:
            raise BadInput(
                f"{path} has opset {self.opset}; expected {OLDEST} or newer. Convert it: onnx.version_converter."
            )
        for kind, parts in {"functions": model.functions, "sparse initializers": graph.sparse_initializer}.items():
            if parts:
                raise BadInput(f"{path} has {kind}, which are not supported.")
        initial = {each.name for each in graph.initializer}
        inputs = [each for each in graph.input if each.name not in initial]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise BadInput(f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs; expected one of each.")
        (given,) = inputs
        if given.type.tensor_type.elem_type not in FLOATS:
            raise BadInput(f"{path}: the input {given.name!r} holds no real numbers.")
        shape = [each.dim_value if each.HasField("dim_value") else None for each in given.type.tensor_type.shape.dim]
        if len(shape) < 2 or None in shape[1:]:
            raise BadInput(
                f"{path}: the input {given.name!r} has the shape {shape}, which is not fixed; expected a batch, which may "
                "be free, and fixed dimensions."
            )
        try:
            self.builder = Builder([each for each in shape[1:] if each is not None])
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error
        self.batch = shape[0] if shape[0] and shape[0] > 0 else None
        self.values: dict[str, Value] = {given.name: 0}

    def output(self) -> int:
        wanted = self.graph.output[0].name
        nodes = self._needed(wanted)
        needed = {name for node in nodes for name in node.input}
        for tensor in self.graph.initializer:
            if tensor.name in needed:
                self._at(f"initializer {tensor.name!r}", lambda tensor=tensor: self._keep(tensor.name, _array(tensor)))
        for number, node in enumerate(nodes):
            self._at(f"node {node.name or number} ({node.op_type})", lambda node=node: self._read(node))
        value = self.values.get(wanted)
        if not isinstance(value, int):
            raise BadInput(f"{self.path}: the output does not depend on the input.")
        return value

    def _at(self, where: str, step: Callable[[], None]) -> None:
        try:
            step()
        except BadInput as error:
            raise BadInput(f"{self.path}: {where}: {str(error).removesuffix('.')}.") from error
        except Exception as error:  # data that does not fit its own declaration
            raise BadInput(f"{self.path}: {where} cannot be read ({error}).") from error

    def _needed(self, output: str) -> list["NodeProto"]:
        """The nodes that the output depends on, in order; a node of its own names what it reads."""
        wanted, nodes = {output}, []
        for node in reversed(self.graph.node):
            if wanted & set(node.output):
                wanted |= set(node.input)
                nodes.append(node)
        return nodes[::-1]

    def _keep(self, name: str, array: np.ndarray) -> None:
        self.values[name] = torch.from_numpy(np.array(array))

    def _read(self, node: "NodeProto") -> None:
        import onnx

        outputs = [name for name in node.output if name]
        given = [self._value(name) for name in node.input]
        if node.domain not in ("", "ai.onnx"):
            raise not_supported(f"{node.domain}.{node.op_type}", OPERATORS)
        if len(outputs) > 1 and node.op_type != "Dropout":
            raise BadInput(f"it has {len(outputs)} outputs, expected one")
        if not any(isinstance(each, int) for each in given):
            self._fold(node, [each for each in given if isinstance(each, Tensor)])
            return
        if node.op_type not in OPERATORS:
            raise not_supported(node.op_type, OPERATORS)
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        operator = OPERATORS[node.op_type]
        try:
            inspect.signature(operator).bind(self, *given, **attributes)
        except TypeError as error:
            raise BadInput(str(error).replace("keyword argument", "attribute")) from error
        self.values[outputs[0]] = operator(self, *given, **attributes)

    def _value(self, name: str) -> Value | None:
        if name and name not in self.values:
            raise BadInput(f"it reads {name!r}, which is not known here")
        return self.values[name] if name else None

    def _fold(self, node: "NodeProto", given: list[Tensor]) -> None:
        """A node that reads only constants, by ONNX's own evaluator, on float64."""
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        if node.op_type not in FOLDED:
            raise not_supported(f"{node.op_type} of constants", FOLDED)
        if node.op_type == "Cast" and any(each.is_floating_point() for each in given):
            raise BadInput("it rounds constants; expected whole numbers")
        if (
            math.prod(torch.broadcast_shapes(*(each.shape for each in given)) if node.op_type in BROADCAST else ())
            > LARGEST
        ):
            raise BadInput("it makes a constant that is too large")
        inputs = [helper.make_empty_tensor_value_info(name) for name in node.input if name]
        graph = helper.make_graph([node], "constant", inputs, [helper.make_empty_tensor_value_info(node.output[0])])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        feeds = dict(zip([name for name in node.input if name], (each.numpy() for each in given), strict=True))
        self._keep(node.output[0], _real(next(iter(ReferenceEvaluator(model).run(None, feeds)))))


def _array(tensor: "TensorProto") -> np.ndarray:
    from onnx import numpy_helper

    return _real(numpy_helper.to_array(tensor))


def _real(array: Any) -> np.ndarray:
    """Numbers in float64, whole ones as they are. A bfloat16 is a type of its own in numpy."""
    array = np.asarray(array)
    if array.dtype.kind in "iub":
        return array
    if array.dtype.kind in "OSUc":
        raise BadInput(f"it holds {array.dtype}, expected real numbers")
    return array.astype(np.float64)


# Operators: their inputs in order, their attributes by name


def _computed(value: Value | None, name: str) -> int:
    if not isinstance(value, int):
        raise BadInput(f"its input {name} is a constant, which is not known here")
    return value


def _constant(value: Value | None, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise BadInput(f"its input {name} is computed, expected a constant")
    return value


def _gemm(
    reader: _Reader,
    a: Value,
    b: Value,
    c: Value | None = None,
    /,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> int:
    if transA:
        raise BadInput("transA=1 is not known")
    build, value = reader.builder, _computed(a, "A")
    if len(build.shape_of(value)) != 1:
        raise BadInput(f"its input A has the shape {build.shape_of(value)}, expected a flat one")
    weight = alpha * _constant(b, "B")
    weight = weight if transB else weight.T
    if isinstance(c, int):
        return build.add(build.linear(value, weight, None), build.with_number("mul", c, torch.tensor(beta)))
    return build.linear(value, weight, None if c is None else beta * _row(c, len(weight)))


def _row(constant: Tensor, size: int) -> Tensor:
    """One number a column of [batch, size]."""
    try:
        return constant.expand(1, size)[0]
    except RuntimeError as error:
        raise BadInput(
            f"its input C has the shape {tuple(constant.shape)}, expected one number for each of {size}"
        ) from error


def _matmul(reader: _Reader, a: Value, b: Value, /) -> int:
    weight = _constant(b, "B")
    if weight.ndim != 2:
        raise BadInput(f"its input B has the shape {tuple(weight.shape)}, expected a matrix")
    return reader.builder.linear(_computed(a, "A"), weight.T, None)


def _conv(
    reader: _Reader,
    x: Value,
    w: Value,
    b: Value | None = None,
    /,
    *,
    auto_pad: bytes = b"NOTSET",
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] = (1, 1),
) -> int:
    value, weight = _computed(x, "X"), _constant(w, "W")
    kernel = weight.shape[2:]
    if kernel_shape is not None and tuple(kernel_shape) != tuple(kernel):
        raise BadInput(f"kernel_shape is {kernel_shape}, the weight has the shape {tuple(weight.shape)}")
    padding = _padding(reader.builder.shape_of(value), kernel, strides, dilations, auto_pad, pads)
    bias = None if b is None else _constant(b, "B")
    chosen: dict[str, Any] = {"stride": strides, "padding": padding, "dilation": dilations, "groups": group}
    return reader.builder.conv2d(value, weight, bias, **chosen)


def _average_pool(
    reader: _Reader,
    x: Value,
    /,
    *,
    kernel_shape: Sequence[int],
    auto_pad: bytes = b"NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] = (1, 1),
    pads: Sequence[int] | None = None,
    strides: Sequence[int] = (1, 1),
) -> int:
    if auto_pad != b"NOTSET" and (ceil_mode or any(each != 1 for each in dilations)):
        raise BadInput(
            f"auto_pad={auto_pad.decode()} with ceil_mode or dilations means different things to different programs"
        )
    value = _computed(x, "X")
    padding = _padding(reader.builder.shape_of(value), kernel_shape, strides, dilations, auto_pad, pads)
    chosen: dict[str, Any] = {"dilation": dilations, "ceil": bool(ceil_mode), "counts_padding": bool(count_include_pad)}
    return reader.builder.average_pool(value, kernel_shape, strides, padding, **chosen)


def _padding(
    shape: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    auto_pad: bytes,
    pads: Sequence[int] | None,
) -> tuple[int, ...]:
    """What is added on either side of height and width, where that is the same."""
    if auto_pad != b"NOTSET" and pads is not None:
        raise BadInput(f"auto_pad={auto_pad.decode()} and pads={pads} contradict each other")
    if not len(shape) - 1 == len(kernel) == len(strides) == len(dilations) == 2:
        raise BadInput(
            f"a kernel of {tuple(kernel)} meets a value of shape {tuple(shape)}; expected pictures, two dimensions"
        )
    if auto_pad == b"VALID":
        pads = (0, 0, 0, 0)
    elif auto_pad in (b"SAME_UPPER", b"SAME_LOWER"):
        whole = [
            (math.ceil(size / step) - 1) * step + apart * (side - 1) + 1 - size
            for size, side, step, apart in zip(shape[1:], kernel, strides, dilations, strict=True)
        ]
        if min(whole) < 0:
            raise BadInput(
                f"auto_pad={auto_pad.decode()} meets strides {tuple(strides)} that are wider than the kernel"
            )
        upper = auto_pad == b"SAME_UPPER"
        less, more = [each // 2 for each in whole], [each - each // 2 for each in whole]
        pads = (*less, *more) if upper else (*more, *less)
    elif auto_pad != b"NOTSET":
        raise BadInput(f"auto_pad={auto_pad.decode()} is not known")
    pads = (0, 0, 0, 0) if pads is None else pads
    if len(pads) != 4 or tuple(pads[:2]) != tuple(pads[2:]):
        raise BadInput(f"the padding {tuple(pads)} is not the same on both sides")
    return tuple(pads[:2])


def _global_average_pool(reader: _Reader, x: Value, /) -> int:
    return reader.builder.adaptive_pool(_computed(x, "X"), 1)


def _reduce_mean(
    reader: _Reader,
    x: Value,
    places: Value | None = None,
    /,
    *,
    axes: Sequence[int] | None = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> int:
    given = axes if places is None else _constant(places, "axes").tolist()
    return reader.builder.mean(_computed(x, "data"), () if given is None else given, keep=bool(keepdims))


def _batch_normalization(
    reader: _Reader,
    x: Value,
    scale: Value,
    b: Value,
    mean: Value,
    variance: Value,
    /,
    *,
    epsilon: float = EPSILON,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> int:
    if training_mode or not spatial:
        raise BadInput(f"training_mode={training_mode}, spatial={spatial} is not known; expected 0 and 1")
    named = {"scale": scale, "B": b, "mean": mean, "var": variance}
    constants = [_constant(each, name) for name, each in named.items()]
    return reader.builder.batch_norm(_computed(x, "X"), *constants, epsilon)  # pyright: ignore[reportCallIssue]


def _relu(reader: _Reader, x: Value, /) -> int:
    return reader.builder.relu(_computed(x, "X"))


def _identity(reader: _Reader, x: Value, /) -> int:
    return _computed(x, "input")


def _dropout(
    reader: _Reader,
    x: Value,
    chance: Value | None = None,
    training: Value | None = None,
    /,
    *,
    ratio: float = 0.5,
    seed: int = 0,
) -> int:
    if training is not None and _constant(training, "training_mode").any():
        raise BadInput("training_mode is true; expected a network in evaluation mode")
    return _computed(x, "data")


def _flatten(reader: _Reader, x: Value, /, *, axis: int = 1) -> int:
    value = _computed(x, "input")
    shape = reader.builder.shape_of(value)
    place = axis + len(shape) + 1 if axis < 0 else axis
    if place < 1 or math.prod(shape[: place - 1]) != 1 or place > len(shape):
        raise BadInput(f"axis={axis} joins the batch with other dimensions; expected 1")
    return reader.builder.flatten(value)


def _reshape(reader: _Reader, x: Value, shape: Value, /, *, allowzero: int = 0) -> int:
    value, wanted = _computed(x, "data"), _constant(shape, "shape").tolist()
    before = reader.builder.shape_of(value)
    if not wanted or (allowzero and 0 in wanted):
        raise BadInput(f"a shape {wanted} with allowzero={allowzero} holds nothing")
    batch, *rest = wanted
    rest = [before[place] if each == 0 and place < len(before) else each for place, each in enumerate(rest)]
    if batch == 1 and reader.batch is None:
        reader.batch = 1
    if batch not in (0, -1, reader.batch) or rest.count(-1) > (batch != -1):
        raise BadInput(f"the shape {wanted} joins the batch with other dimensions; expected it to begin with -1 or 0")
    if -1 in rest:
        known = -math.prod(rest)
        rest[rest.index(-1)] = math.prod(before) // max(known, 1)
    return reader.builder.view(value, rest)


def _arithmetic(kind: Any) -> Callable[..., int]:
    def operator(reader: _Reader, a: Value, b: Value, /) -> int:
        build = reader.builder
        if isinstance(a, int) and isinstance(b, int):
            if kind not in ("add", "sub"):
                raise BadInput("both its inputs are computed, expected a constant")
            return build.add(a, b) if kind == "add" else build.subtract(a, b)
        value, number = (a, b) if isinstance(a, int) else (b, a)
        return build.with_number(kind, _computed(value, "A"), _constant(number, "B"), first=value is a)

    return operator


def _neg(reader: _Reader, x: Value, /) -> int:
    return reader.builder.with_number("mul", _computed(x, "X"), torch.tensor(-1.0))


OPERATORS: dict[str, Callable[..., int]] = {
    "Add": _arithmetic("add"),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "Div": _arithmetic("div"),
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Identity": _identity,
    "MatMul": _matmul,
    "Mul": _arithmetic("mul"),
    "Neg": _neg,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Sub": _arithmetic("sub"),
}
# Of constants alone: what exporters leave unfolded, and nothing that can make much out of little.
BROADCAST = ("Add", "Div", "Mul", "Sub")
FOLDED = (
    *(
        *BROADCAST,
        "Cast",
        "Concat",
        "Constant",
        "Identity",
        "Neg",
        "Reciprocal",
        "Reshape",
        "Sqrt",
        "Squeeze",
        "Transpose",
    ),
    "Unsqueeze",
)
