"""A feed-forward ReLU network as data: affine maps, ReLUs and sums over a list of values, read as a function of reals.

Value 0 is the input, value i + 1 the output of layer i; all are flat vectors, a convolution knows its picture's shape.
Readers: `from_module` (torch), `read_network` (safetensors), `onnx.read_onnx`. What they do not know they refuse by name.
Batch normalisation is folded into the map before it, average pooling is a convolution, input normalisation is a layer: a
radius is always in the units of the raw input.
"""

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.files import produce_atomic

if TYPE_CHECKING:
    from torch import fx

METADATA = "equipoise_network"
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Linear:
    """y = W x + b. weight: [m, n], bias: [m]."""

    inputs: tuple[int, ...]
    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def back(self, coefficients: Tensor) -> Tensor:
        """W' c for c of shape [..., m]."""
        return coefficients @ self.weight

    def constant(self, coefficients: Tensor) -> Tensor:
        return coefficients @ self.bias

    def squared(self, weights: Tensor) -> Tensor:
        """Row by row, the sum of w_j W_ij^2. weights: [n], or [1] for the same everywhere -> [m]."""
        return self.weight.square() @ weights.expand(self.weight.shape[1])


@dataclass(frozen=True, eq=False)
class Convolution:
    """A two-dimensional convolution over zero-padded pictures of shape `shape` (channels, height, width)."""

    inputs: tuple[int, ...]
    weight: Tensor
    bias: Tensor
    shape: Shape
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @functools.cached_property
    def out_shape(self) -> Shape:
        sizes = [
            (self.shape[1 + i] + 2 * self.padding[i] - self.dilation[i] * (self.weight.shape[2 + i] - 1) - 1)
            // self.stride[i]
            + 1
            for i in (0, 1)
        ]
        return (self.weight.shape[0], *sizes)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        pictures = x.reshape(-1, *self.shape)
        y = F.conv2d(pictures, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return y.reshape(*x.shape[:-1], -1)

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.weight, self.bias)

    def back(self, coefficients: Tensor) -> Tensor:
        kernel, shape = self.weight.shape[2:], self.out_shape
        spare = [
            self.shape[1 + i]
            - ((shape[1 + i] - 1) * self.stride[i] - 2 * self.padding[i] + self.dilation[i] * (kernel[i] - 1) + 1)
            for i in (0, 1)
        ]
        pictures = coefficients.reshape(-1, *shape)
        back = F.conv_transpose2d(
            pictures, self.weight, None, self.stride, self.padding, spare, self.groups, self.dilation
        )
        return back.reshape(*coefficients.shape[:-1], -1)

    def constant(self, coefficients: Tensor) -> Tensor:
        return coefficients.reshape(*coefficients.shape[:-1], self.out_shape[0], -1).sum(-1) @ self.bias

    def squared(self, weights: Tensor) -> Tensor:
        return self._convolve(weights.expand(math.prod(self.shape)), self.weight.square(), None)


@dataclass(frozen=True, eq=False)
class Scale:
    """y_i = weight_i x_i + bias_i: the normalisation of an input, or a batch normalisation with no map to fold it into."""

    inputs: tuple[int, ...]
    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias

    def back(self, coefficients: Tensor) -> Tensor:
        return coefficients * self.weight

    def constant(self, coefficients: Tensor) -> Tensor:
        return coefficients @ self.bias

    def squared(self, weights: Tensor) -> Tensor:
        return self.weight.square() * weights


@dataclass(frozen=True)
class Relu:
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Add:
    """The sum of two values, as at the end of a residual block."""

    inputs: tuple[int, ...]


Affine = Linear | Convolution | Scale
Layer = Affine | Relu | Add
KINDS = {Linear: "linear", Convolution: "conv2d", Scale: "scale", Relu: "relu", Add: "add"}


@dataclass(frozen=True, eq=False)
class Network:
    """Layers in order, each after its inputs; the last one's output is the network's. shape: of one input."""

    layers: tuple[Layer, ...]
    shape: Shape
    name: str = "network"
    sizes: tuple[int, ...] = field(default=())
    """How many numbers each value has, the input first."""

    @property
    def outputs(self) -> int:
        return self.sizes[-1]

    def values(self, x: Tensor) -> list[Tensor]:
        """All values at inputs x: [B, ...], each [B, n]."""
        found = [x.reshape(len(x), -1)]
        for layer in self.layers:
            given = [found[index] for index in layer.inputs]
            if isinstance(layer, Relu):
                found.append(given[0].relu())
            elif isinstance(layer, Add):
                found.append(given[0] + given[1])
            else:
                found.append(layer.forward(given[0]))
        return found

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs [B, classes] at inputs x: [B, ...]."""
        return self.values(x)[-1]

    @functools.lru_cache(maxsize=4)  # noqa: B019  a network is read once and lives as long as the work on it
    def to(self, dtype: torch.dtype) -> "Network":
        """The same network with rounded parameters."""
        layers = tuple(
            replace(layer, weight=layer.weight.to(dtype), bias=layer.bias.to(dtype))
            if isinstance(layer, Affine)
            else layer
            for layer in self.layers
        )
        return replace(self, layers=layers)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over what the network computes: its description, and of every parameter name, shape and float64 numbers."""
        found = hashlib.sha256(json.dumps(self.description(), sort_keys=True).encode())
        for place, layer in enumerate(self.layers):
            if isinstance(layer, Affine):
                for name in ("weight", "bias"):
                    tensor = getattr(layer, name).double().contiguous()
                    found.update(f"\n{place}.{name} {list(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
        return found.hexdigest()

    def description(self) -> dict[str, Any]:
        """What is not a parameter, as JSON values."""
        layers = []
        for layer in self.layers:
            row: dict[str, Any] = {"kind": KINDS[type(layer)], "inputs": list(layer.inputs)}
            if isinstance(layer, Convolution):
                row |= {name: list(getattr(layer, name)) for name in ("shape", "stride", "padding", "dilation")}
                row["groups"] = layer.groups
            layers.append(row)
        return {"shape": list(self.shape), "layers": layers}


class Builder:
    """Adds layers one by one and keeps the shapes; every method takes and returns the index of a value."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape: Shape = tuple(shape)  # of an input; as the network reads it, it may be flat
        self.shapes: list[Shape] = [self.shape]
        self.layers: list[Layer] = []
        self.kept: set[int] = {0}  # values that something else than the next layer may read

    def linear(self, value: int, weight: Tensor, bias: Tensor | None) -> int:
        size = math.prod(self.shapes[value])
        if weight.ndim != 2 or weight.shape[1] != size:
            raise BadInput(f"A linear layer with a weight of shape {tuple(weight.shape)} meets {size} values.")
        bias = torch.zeros(len(weight)) if bias is None else bias
        return self._append(Linear((value,), _exact(weight), _exact(bias)), (len(weight),))

    def conv2d(
        self,
        value: int,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> int:
        shape = self.shapes[value]
        if weight.ndim != 4 or len(shape) != 3 or shape[0] != weight.shape[1] * groups:
            raise BadInput(
                f"A convolution with a weight of shape {tuple(weight.shape)} meets a value of shape {shape}."
            )
        layer = Convolution(
            (value,),
            _exact(weight),
            _exact(torch.zeros(len(weight)) if bias is None else bias),
            shape,
            _pair(stride),
            _pair(padding),
            _pair(dilation),
            groups,
        )
        if min(layer.out_shape) < 1:
            raise BadInput(
                f"A convolution of kernel {tuple(weight.shape[2:])} leaves nothing of a value of shape {shape}."
            )
        return self._append(layer, layer.out_shape)

    def scale(self, value: int, weight: Tensor, bias: Tensor) -> int:
        """weight, bias: one number a channel, or one a value."""
        shape = self.shapes[value]
        whole = [_spread(each, shape) for each in (weight, bias)]
        return self._append(Scale((value,), *whole), shape)

    def relu(self, value: int) -> int:
        return self._append(Relu((value,)), self.shapes[value])

    def add(self, value: int, other: int) -> int:
        if math.prod(self.shapes[value]) != math.prod(self.shapes[other]):
            raise BadInput(f"A sum meets values of shapes {self.shapes[value]} and {self.shapes[other]}.")
        return self._append(Add((value, other)), self.shapes[value])

    def flatten(self, value: int) -> int:
        self.shapes[value] = (math.prod(self.shapes[value]),)
        return value

    def average_pool(
        self, value: int, kernel: int | Sequence[int], stride: int | Sequence[int], padding: int | Sequence[int] = 0
    ) -> int:
        """Average pooling that counts the padding: a convolution of each channel with a constant."""
        if len(self.shapes[value]) != 3:
            raise BadInput(
                f"Average pooling meets a value of shape {self.shapes[value]}, expected channels of pictures."
            )
        channels, (height, width) = self.shapes[value][0], _pair(kernel)
        weight = torch.full((channels, 1, height, width), 1 / (height * width), dtype=torch.float64)
        return self.conv2d(value, weight, None, stride=stride, padding=padding, groups=channels)

    def batch_norm(
        self, value: int, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float
    ) -> int:
        """Folded into the linear or convolutional layer before it, when nothing else reads that."""
        factor = _exact(weight) / (_exact(variance) + epsilon).sqrt()
        shift = _exact(bias) - _exact(mean) * factor
        before = self.layers[value - 1] if value == len(self.layers) and value not in self.kept else None
        if isinstance(before, Linear | Convolution):
            scaled = before.weight * factor.reshape(-1, *[1] * (before.weight.ndim - 1))
            self.layers[-1] = replace(before, weight=scaled, bias=before.bias * factor + shift)
            return value
        return self.scale(value, factor, shift)

    def build(self, value: int, name: str) -> Network:
        """The network whose output is `value`. Raises BadInput where a parameter is not finite or nothing was built."""
        if not self.layers or value != len(self.layers):
            raise BadInput(f"{name}: the output is not what the last layer gives; expected a network with layers.")
        for place, layer in enumerate(self.layers):
            if isinstance(layer, Affine) and not (layer.weight.isfinite().all() and layer.bias.isfinite().all()):
                raise BadInput(f"{name}: layer {place} ({KINDS[type(layer)]}) has a parameter that is not finite.")
        sizes = tuple(math.prod(shape) for shape in self.shapes)
        return Network(tuple(self.layers), self.shape, name, sizes)

    def _append(self, layer: Layer, shape: Shape) -> int:
        self.layers.append(layer)
        self.shapes.append(shape)
        return len(self.layers)


# How a picture becomes a vector in a module's code: the last argument of flatten(1), flatten(1, -1), view(x.size(0), -1).
FLATTENED = {"flatten": ((1,), (-1,)), "view": ((-1,),), "reshape": ((-1,),)}


def from_module(module: nn.Module, shape: Sequence[int], *, name: str = "network") -> Network:
    """The network that a torch module computes in evaluation mode, read from its graph (`torch.fx`), never run.

    shape: of one input, without the batch. Known: Linear, Conv2d, ReLU, Flatten, BatchNorm1d and 2d, AvgPool2d, Dropout,
    Identity, sums of two values, `view` and `reshape` to [B, -1]. Raises BadInput for anything else, by name.
    """
    from torch import fx

    try:
        graph = _tracer().trace(module)
    except Exception as error:  # torch.fx raises whatever the module's own code does when it branches on a value
        raise BadInput(
            f"{name}: the module's graph cannot be read ({error}); expected layers in a fixed order."
        ) from error
    modules, builder, at = dict(module.named_modules()), Builder(shape), {}
    last = -1
    for node in graph.nodes:
        given = [at[each] for each in node.args if isinstance(each, fx.Node) and each in at]
        if node.op == "placeholder":
            if at:
                raise BadInput(f"{name}: the module takes several inputs, expected one.")
            at[node] = 0
        elif node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise BadInput(f"{name}: the module gives several outputs, expected one.")
            last = at[node.args[0]]
        elif node.op == "call_module":
            if len(node.all_input_nodes[0].users) > 1:
                builder.kept.add(given[0])
            at[node] = _module_layer(builder, given[0], modules[str(node.target)], f"{name}: layer {node.target!r}")
        else:
            called = getattr(node.target, "__name__", str(node.target))
            if called == "relu" and len(given) == 1:
                at[node] = builder.relu(given[0])
            elif called in ("add", "iadd") and len(given) == 2:
                at[node] = builder.add(*given)
            elif called in FLATTENED and (*node.args[1:], *node.kwargs.values())[-1:] in FLATTENED[called]:
                at[node] = builder.flatten(given[0])
            elif called in ("size", "getattr", "getitem"):
                continue  # the batch size, which only a view asks for
            else:
                raise BadInput(f"{name}: the operation {called!r} is not known. {_known()}")
    return builder.build(last, name)


def _tracer() -> "fx.Tracer":
    from torch import fx

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, Normalise) or super().is_leaf_module(m, module_qualified_name)

    return Tracer()


def _module_layer(builder: Builder, value: int, layer: nn.Module, where: str) -> int:
    if isinstance(layer, nn.Linear):
        return builder.linear(value, layer.weight, layer.bias)
    if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return builder.conv2d(
            value,
            layer.weight,
            layer.bias,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
        )
    if isinstance(layer, nn.ReLU):
        return builder.relu(value)
    if isinstance(layer, nn.Flatten) and layer.start_dim == 1 and layer.end_dim == -1:
        return builder.flatten(value)
    if isinstance(layer, nn.Identity | nn.Dropout | nn.Dropout2d):
        return value
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_mean is not None:
        assert layer.running_var is not None
        weight = torch.ones_like(layer.running_mean) if layer.weight is None else layer.weight
        bias = torch.zeros_like(layer.running_mean) if layer.bias is None else layer.bias
        return builder.batch_norm(value, weight, bias, layer.running_mean, layer.running_var, layer.eps)
    if isinstance(layer, nn.AvgPool2d) and not layer.ceil_mode and layer.divisor_override is None:
        divides_by_all = layer.count_include_pad or not any(_pair(layer.padding))
        if divides_by_all:
            return builder.average_pool(value, layer.kernel_size, layer.stride, layer.padding)
    if isinstance(layer, Normalise):
        return builder.scale(value, 1 / _exact(layer.std), -_exact(layer.mean) / _exact(layer.std))
    raise BadInput(f"{where} is a {layer} that is not known. {_known()}")


def _known() -> str:
    return "Known: " + ", ".join(WORDS) + ", sums of two values; with zero padding, fixed sizes and no ceil mode."


class Normalise(nn.Module):
    """(x - mean) / std per channel, as the first layer of a network that takes raw pictures."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        return ((x - self.mean.reshape(shape)) / self.std.reshape(shape)).to(x.dtype)


# Reading and writing

WORDS = ("linear", "conv2d", "relu", "flatten", "batchnorm", "avgpool", "normalise", "save", "add")


def described(text: str, tensors: Mapping[str, Tensor], shape: Sequence[int], *, name: str = "network") -> Network:
    """The network that `text` describes over these parameters.

    text: words between commas, such as "conv2d 0 stride=2 padding=1, relu, flatten, linear 3". After linear, conv2d and
    batchnorm comes the name of the parameters (0.weight, 0.bias). `normalise mean=a/b/c std=a/b/c` for an input,
    `avgpool kernel=2 stride=2`, and for a residual block `save KEY` where it begins and `add KEY` where it ends.
    Raises BadInput for a word, a parameter or a setting that is not known.
    """
    builder, value, saved = Builder(shape), 0, {}
    for step in filter(None, (each.strip() for each in text.split(","))):
        word, *rest = step.split()
        names = [each for each in rest if "=" not in each]
        settings = dict(each.split("=", 1) for each in rest if "=" in each)
        where = f"{name}: {step!r}"
        try:
            if word in ("linear", "conv2d", "batchnorm"):
                (key,) = names
                weight, bias = _parameter(tensors, f"{key}.weight", where), tensors.get(f"{key}.bias")
                if word == "linear":
                    _only(settings, ())
                    value = builder.linear(value, weight, bias)
                elif word == "conv2d":
                    value = builder.conv2d(value, weight, bias, **{k: int(v) for k, v in settings.items()})
                else:
                    _only(settings, ("epsilon",))
                    mean, variance = (_parameter(tensors, f"{key}.running_{each}", where) for each in ("mean", "var"))
                    epsilon = float(settings.get("epsilon", 1e-5))
                    bias = torch.zeros(len(weight)) if bias is None else bias
                    value = builder.batch_norm(value, weight, bias, mean, variance, epsilon)
            elif word in ("relu", "flatten") and not rest:
                value = getattr(builder, word)(value)
            elif word == "normalise" and settings.keys() == {"mean", "std"} and not names:
                mean, std = (
                    torch.tensor([float(each) for each in settings[key].split("/")], dtype=torch.float64)
                    for key in ("mean", "std")
                )
                value = builder.scale(value, 1 / std, -mean / std)
            elif word == "avgpool":
                chosen = {k: int(v) for k, v in settings.items()}
                kernel = chosen.pop("kernel")
                value = builder.average_pool(value, kernel, chosen.pop("stride", kernel), **chosen)
            elif word == "save":
                saved[names[0]] = value
                builder.kept.add(value)
            elif word == "add":
                value = builder.add(value, saved[names[0]])
            else:
                raise BadInput(f"{where} is not known. {did_you_mean(word, WORDS)}")
        except (TypeError, KeyError, ValueError, IndexError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{where}: {error!r}; expected such as 'conv2d NAME stride=2 padding=1'.") from error
    return builder.build(value, name)


def _only(settings: Mapping[str, str], known: Sequence[str]) -> None:
    for name in settings:
        if name not in known:
            raise BadInput(f"A setting {name!r} is not known here. {did_you_mean(name, known)}")


def read_network(path: str | Path, *, architecture: str | None = None, shape: Sequence[int] | None = None) -> Network:
    """A network from a safetensors file: one that `write_network` wrote, or parameters with a description in words.

    architecture: as in `described`, or the name of one in `RELEASED`. shape: of one input; a released one has its own.
    An ONNX file (.onnx) is read as it is. Raises BadInput for a file that is missing, foreign, or without description.
    """
    path = Path(path)
    if not path.is_file():
        near = [str(each) for each in path.parent.glob("*")] if path.parent.is_dir() else []
        raise BadInput(f"No network at {path}. {did_you_mean(str(path), near)}")
    if path.suffix == ".onnx":
        from equipoise.verification.from_onnx import read_onnx

        return read_onnx(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no mapping
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} is no safetensors file ({error}); expected one, or .onnx.") from error
    if architecture in RELEASED:
        shape, architecture = RELEASED[architecture]
    if architecture is not None:
        if shape is None:
            raise BadInput("An architecture in words needs the shape of one input: --input-shape 1,28,28.")
        return described(architecture, tensors, shape, name=path.stem)
    try:
        description = json.loads(metadata[METADATA])
        builder = Builder(description["shape"])
        for place, row in enumerate(description["layers"]):
            _stored_layer(builder, row, tensors, place)
        return builder.build(len(builder.layers), path.stem)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"{path} does not say how its parameters are used. Describe it: --architecture 'flatten, linear 1, relu, "
            f"linear 3' --input-shape 1,28,28, or name one of {', '.join(RELEASED)}."
        ) from error


def write_network(network: Network, path: Path) -> None:
    """One safetensors file with parameters (float32 where that is exact) and description; `read_network` gives it back."""
    from safetensors.torch import save_file

    tensors = {}
    for place, layer in enumerate(network.layers):
        if isinstance(layer, Affine):
            for name in ("weight", "bias"):
                whole = getattr(layer, name).contiguous()
                single = whole.float()
                tensors[f"{place}.{name}"] = single if torch.equal(single.double(), whole) else whole.clone()
    metadata = {METADATA: json.dumps(network.description())}
    produce_atomic(path, lambda target: save_file(tensors, target, metadata=metadata))


def _stored_layer(builder: Builder, row: Mapping[str, Any], tensors: Mapping[str, Tensor], place: int) -> None:
    inputs = row["inputs"]
    if row["kind"] in ("relu", "add"):
        getattr(builder, row["kind"])(*inputs)
        return
    weight, bias = tensors[f"{place}.weight"], tensors[f"{place}.bias"]
    if row["kind"] == "conv2d":
        if math.prod(row["shape"]) != math.prod(builder.shapes[inputs[0]]):
            raise ValueError(f"layer {place} reads a picture of shape {row['shape']}")
        builder.shapes[inputs[0]] = tuple(row["shape"])
        chosen = {name: row[name] for name in ("stride", "padding", "dilation", "groups")}
        builder.conv2d(inputs[0], weight, bias, **chosen)
    else:
        if row["kind"] == "linear":
            builder.flatten(inputs[0])
        {"linear": builder.linear, "scale": builder.scale}[row["kind"]](inputs[0], weight, bias)


CIFAR = "normalise mean=0.49137254901960786/0.4823529411764706/0.4466666666666667 std=0.225/0.225/0.225"

# The evaluation networks of the paper (its released weights): shape of an input, description.
RELEASED: dict[str, tuple[Shape, str]] = {
    "mnist_mlp": ((1, 28, 28), "flatten, linear 1, relu, linear 3, relu, linear 5"),
    "mnist_convsmall": (
        (1, 28, 28),
        "conv2d conv1 stride=2 padding=1, relu, conv2d conv2 stride=2 padding=1, relu, flatten, linear fc1, relu, "
        "linear fc2",
    ),
    "cifar10_cnn_a": (
        (3, 32, 32),
        f"{CIFAR}, conv2d 0 stride=2 padding=1, relu, conv2d 2 stride=2 padding=1, relu, flatten, linear 5, relu, linear 7",
    ),
    "cifar10_cnn_c": (
        (3, 32, 32),
        f"{CIFAR}, conv2d 0 stride=2, relu, conv2d 2 stride=2, relu, flatten, linear 5, relu, linear 7, relu, linear 9",
    ),
    "cifar10_convsmall": (
        (3, 32, 32),
        f"{CIFAR}, conv2d 0 stride=2, relu, conv2d 2 stride=2, relu, flatten, linear 5, relu, linear 7",
    ),
    "cifar10_convdeep": (
        (3, 32, 32),
        f"{CIFAR}, conv2d 0 stride=2 padding=1, relu, conv2d 2 padding=1, relu, conv2d 4 padding=1, relu, "
        "conv2d 6 stride=2 padding=1, relu, flatten, linear 9, relu, linear 11",
    ),
}


def _parameter(tensors: Mapping[str, Tensor], key: str, where: str) -> Tensor:
    if key not in tensors:
        raise BadInput(f"{where}: no parameter {key!r}. {did_you_mean(key, tensors)}")
    return tensors[key]


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64).contiguous()


def _spread(tensor: Tensor, shape: Shape) -> Tensor:
    """One number a channel, or one a value, as one a value."""
    whole = _exact(tensor).flatten()
    size = math.prod(shape)
    if len(whole) == size:
        return whole
    if len(whole) not in (1, shape[0]):
        raise BadInput(f"{len(whole)} numbers for a value of shape {shape}: expected one, one a channel, or {size}.")
    return whole.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).reshape(-1).contiguous()


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    first, second = value
    return (int(first), int(second))
