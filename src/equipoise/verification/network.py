"""A feed-forward ReLU network as data: affine maps, ReLUs and sums over a list of values, read as a function of reals.

Value 0 is the input, value i + 1 the output of layer i; all are flat vectors, a convolution knows its picture's shape.
Readers build it (`from_torch`, `from_onnx`, `read`); what they do not consume they refuse by name. Batch normalisation is
folded into the map before it, average pooling is a convolution, input normalisation is a layer: a radius is always in the
units of the raw input.
"""

import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.files import produce_atomic
from equipoise.core.options import closed

METADATA = "equipoise_network"
LARGEST = 2**24  # numbers of a value: no bound on a larger one could be searched for
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
    """max(z, 0), number by number."""

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
        """Number of outputs."""
        return self.sizes[-1]

    def values(self, x: Tensor) -> list[Tensor]:
        """All values at inputs x: [B, ...], each [B, n]."""
        values = [x.reshape(len(x), -1)]
        for layer in self.layers:
            given = [values[index] for index in layer.inputs]
            if isinstance(layer, Relu):
                values.append(given[0].relu())
            elif isinstance(layer, Add):
                values.append(given[0] + given[1])
            else:
                values.append(layer.forward(given[0]))
        return values

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
        digest = hashlib.sha256(json.dumps(self.description(), sort_keys=True).encode())
        for index, layer in enumerate(self.layers):
            if isinstance(layer, Affine):
                for name in ("weight", "bias"):
                    tensor = getattr(layer, name).double().contiguous()
                    digest.update(f"\n{index}.{name} {list(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()

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
    """Adds layers one by one. Every method takes and returns handles; a handle is a value and the shape it is read with.

    Handle 0 is the input. What cannot be a layer raises BadInput.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        if not shape or not all(type(each) is int and each > 0 for each in shape) or math.prod(shape) > LARGEST:
            raise BadInput(
                f"An input of shape {tuple(shape)} is none; expected dimensions from 1, {LARGEST} numbers at most."
            )
        self.shape: Shape = tuple(shape)
        self.layers: list[Layer] = []
        self.sizes: list[int] = [math.prod(shape)]
        self.views: list[tuple[int, Shape]] = [(0, self.shape)]

    def place(self, value: int) -> int:
        """Which value it is: 0 the input, i + 1 the output of layer i."""
        return self.views[value][0]

    def shape_of(self, value: int) -> Shape:
        return self.views[value][1]

    def view(self, value: int, shape: Sequence[int]) -> int:
        """The same numbers, read with another shape."""
        index, before = self.views[value]
        if min(shape, default=0) < 1 or math.prod(shape) != self.sizes[index]:
            raise BadInput(f"a value of shape {before} cannot be read with the shape {tuple(shape)}")
        self.views.append((index, tuple(shape)))
        return len(self.views) - 1

    def flatten(self, value: int) -> int:
        return self.view(value, (math.prod(self.shape_of(value)),))

    def linear(self, value: int, weight: Tensor, bias: Tensor | None) -> int:
        shape = self.shape_of(value)
        if weight.ndim != 2 or weight.shape[1] != shape[-1] or math.prod(shape[:-1]) != 1:
            raise BadInput(
                f"a linear layer with a weight of shape {tuple(weight.shape)} meets a value of shape {shape}; "
                "expected one flat vector, as long as the weight has columns"
            )
        layer = Linear((self.place(value),), _exact(weight), _bias(bias, len(weight)))
        return self._append(layer, (*shape[:-1], len(weight)))

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
        shape = self.shape_of(value)
        if weight.ndim != 4 or len(shape) != 3 or shape[0] != weight.shape[1] * groups or len(weight) % groups:
            raise BadInput(
                f"a convolution with a weight of shape {tuple(weight.shape)} in {groups} groups meets a value of shape "
                f"{shape}; expected channels of pictures"
            )
        pairs = _pair(stride, 1), _pair(padding, 0), _pair(dilation, 1)
        layer = Convolution((self.place(value),), _exact(weight), _bias(bias, len(weight)), shape, *pairs, groups)
        if min(layer.out_shape) < 1:
            raise BadInput(f"a kernel of {tuple(weight.shape[2:])} leaves nothing of a value of shape {shape}")
        return self._append(layer, layer.out_shape)

    def average_pool(
        self,
        value: int,
        kernel: int | Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int] = 0,
        *,
        dilation: int | Sequence[int] = 1,
        divisor: int | None = None,
        ceil: bool = False,
        counts_padding: bool = True,
    ) -> int:
        """A convolution of each channel with a constant. Refused: windows that do not all divide by the same number."""
        shape = self.shape_of(value)
        if len(shape) != 3:
            raise BadInput(f"average pooling meets a value of shape {shape}; expected channels of pictures")
        sides, pads, steps, spread = _pair(kernel, 1), _pair(padding, 0), _pair(stride, 1), _pair(dilation, 1)
        if any(pads) and not counts_padding and divisor is None:
            raise BadInput("average pooling does not count its padding, which is not known here")
        for size, side, pad, step, apart in zip(shape[1:], sides, pads, steps, spread, strict=True):
            if pad > apart * (side - 1):
                raise BadInput(f"average pooling has a padding of {pads}, as wide as its kernel of {sides}")
            if ceil and (size + 2 * pad - apart * (side - 1) - 1) % step:
                raise BadInput("average pooling rounds its size up (ceil mode) and has windows that are cut off")
        if shape[0] * math.prod(sides) > LARGEST:
            raise BadInput(f"average pooling has a kernel of {sides}")
        divided = math.prod(sides) if divisor is None else divisor
        weight = torch.full((shape[0], 1, *sides), 1 / divided, dtype=torch.float64)
        return self.conv2d(value, weight, None, stride=steps, padding=pads, dilation=spread, groups=shape[0])

    def adaptive_pool(self, value: int, size: int | Sequence[int | None] | None) -> int:
        """Average pooling to pictures of this size, None for the same as before. Refused: windows that are not all alike."""
        shape = self.shape_of(value)
        wanted = (size, size) if isinstance(size, int | None) else tuple(size)
        if len(shape) != 3 or len(wanted) != 2:
            raise BadInput(f"average pooling to {wanted} meets a value of shape {shape}; expected channels of pictures")
        sides = [before if after is None else after for before, after in zip(shape[1:], wanted, strict=True)]
        if min(sides) < 1 or any(before % after for before, after in zip(shape[1:], sides, strict=True)):
            raise BadInput(f"average pooling of pictures of {shape[1:]} to {wanted} has windows that are not all alike")
        windows = [before // after for before, after in zip(shape[1:], sides, strict=True)]
        return self.average_pool(value, windows, windows)

    def mean(self, value: int, dimensions: Sequence[int], *, keep: bool) -> int:
        """Over height and width, dimensions 2 and 3 of [batch, channels, height, width]."""
        shape = self.shape_of(value)
        if len(shape) != 3 or sorted(each % 4 for each in dimensions) != [2, 3]:
            raise BadInput(f"a mean over the dimensions {list(dimensions)} of a value of shape {shape} is not known")
        pooled = self.adaptive_pool(value, 1)
        return pooled if keep else self.flatten(pooled)

    def scale(self, value: int, weight: Tensor, bias: Tensor) -> int:
        """weight, bias: one number a channel, or one a value."""
        shape = self.shape_of(value)
        whole = [_spread(each, shape) for each in (weight, bias)]
        return self._append(Scale((self.place(value),), *whole), shape)

    def batch_norm(
        self, value: int, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float
    ) -> int:
        """Of a value whose first dimension are the channels, with the stored mean and variance."""
        channels = self.shape_of(value)[0]
        for name, each in {"weight": weight, "bias": bias, "mean": mean, "variance": variance}.items():
            if each.shape != (channels,):
                raise BadInput(
                    f"a batch normalisation has a {name} of shape {tuple(each.shape)} for a value of shape "
                    f"{self.shape_of(value)}; expected one number a channel"
                )
        factor = _exact(weight) / (_exact(variance) + epsilon).sqrt()
        return self.scale(value, factor, _exact(bias) - _exact(mean) * factor)

    @closed
    def with_number(
        self, kind: Literal["add", "sub", "mul", "div"], value: int, number: Tensor, *, first: bool = True
    ) -> int:
        """A value and a constant that broadcasts as in numpy over [batch, *shape]. first: the value is the first of them."""
        shape, number = self.shape_of(value), _exact(number)
        try:
            whole = number.expand(shape if number.ndim <= len(shape) else (1, *shape)).flatten()
        except RuntimeError as error:
            raise BadInput(f"a constant of shape {tuple(number.shape)} meets a value of shape {shape}") from error
        one, zero = torch.ones_like(whole), torch.zeros_like(whole)
        if kind == "div" and not first:
            raise BadInput("a constant is divided by what is computed, which is not known here")
        weight = {"mul": whole, "div": 1 / whole, "sub": one if first else -one}.get(kind, one)
        bias = {"add": whole, "sub": -whole if first else whole}.get(kind, zero)
        return self._append(Scale((self.place(value),), weight, bias), shape)

    def relu(self, value: int) -> int:
        return self._append(Relu((self.place(value),)), self.shape_of(value))

    def add(self, value: int, other: int) -> int:
        """Both of the same shape: one that broadcasts is not known."""
        shape, operands = self.shape_of(value), (self.place(value), self.place(other))
        if shape != self.shape_of(other):
            raise BadInput(f"a sum meets values of shapes {shape} and {self.shape_of(other)}; expected equal ones")
        if operands[0] == operands[1]:
            return self.with_number("mul", value, torch.tensor(2.0))
        return self._append(Add(operands), shape)

    def subtract(self, value: int, other: int) -> int:
        return self.add(value, self.with_number("mul", other, torch.tensor(-1.0)))

    def build(self, value: int, name: str, *, merge: bool = True) -> Network:
        """The network whose output is `value`. Raises BadInput where a parameter is not finite or nothing was built.

        merge: layers that the output does not need are left out, a scale is merged into the map before it when nothing
        else reads that map, and the last layer is affine, which is where bounds begin.
        """
        if merge and self.place(value) and not isinstance(self.layers[self.place(value) - 1], Affine):
            value = self.with_number("mul", value, torch.tensor(1.0))
        layers, sizes = self.layers, self.sizes
        if merge:
            layers, sizes = _merged(layers, sizes, self.place(value))
        if not layers or (not merge and self.place(value) != len(layers)):
            raise BadInput(f"{name}: the output is not what the last layer gives; expected a network with layers.")
        for index, layer in enumerate(layers):
            if isinstance(layer, Affine) and not (layer.weight.isfinite().all() and layer.bias.isfinite().all()):
                raise BadInput(f"{name}: layer {index} ({KINDS[type(layer)]}) has a parameter that is not finite.")
        return Network(tuple(layers), self.shape, name, tuple(sizes))

    def _append(self, layer: Layer, shape: Shape) -> int:
        size = math.prod(shape)
        if size > LARGEST:
            raise BadInput(f"a value of shape {shape} has {size} numbers; expected {LARGEST} at most")
        self.layers.append(layer)
        self.sizes.append(size)
        self.views.append((len(self.layers), shape))
        return len(self.views) - 1


REMEDIES = {
    "softmax": "; drop a last one, the largest output stays the largest",
    "sigmoid": "; drop a last one, the largest output stays the largest",
    "shape": "; export with a batch of fixed size",
}


def not_supported(kind: str, known: Iterable[str]) -> BadInput:
    """The refusal of an operator or layer, with the remedy where there is one."""
    remedy = next((remedy for word, remedy in REMEDIES.items() if word in kind.lower()), "")
    return BadInput(f"{kind} is not supported{remedy}. Known: {', '.join(sorted(known))}.")


def _merged(layers: Sequence[Layer], sizes: Sequence[int], output: int) -> tuple[list[Layer], list[int]]:
    needed = {output}
    for value in range(output, 0, -1):
        if value in needed:
            needed.update(layers[value - 1].inputs)
    order = sorted(needed - {0})
    readers = Counter(index for value in order for index in layers[value - 1].inputs)
    at, kept, widths = {0: 0}, [], [sizes[0]]
    for value in order:
        layer = layers[value - 1]
        before = at[layer.inputs[0]]
        if isinstance(layer, Scale) and before and readers[layer.inputs[0]] == 1:
            merged = _scaled(kept[before - 1], layer)
            if merged is not None:
                kept[before - 1], at[value] = merged, before
                continue
        kept.append(replace(layer, inputs=tuple(at[index] for index in layer.inputs)))
        widths.append(sizes[value])
        at[value] = len(kept)
    return kept, widths


def _scaled(before: Layer, scale: Scale) -> Affine | None:
    """One layer for both; none where a convolution's channel is not scaled as one."""
    weight, bias = scale.weight, scale.bias
    if isinstance(before, Convolution):
        weight, bias = (each.reshape(len(before.weight), -1) for each in (weight, bias))
        if not ((weight == weight[:, :1]).all() and (bias == bias[:, :1]).all()):
            return None
        weight, bias = weight[:, 0], bias[:, 0]
    elif not isinstance(before, Linear | Scale):
        return None
    rows = weight.reshape(-1, *[1] * (before.weight.ndim - 1))
    return replace(before, weight=before.weight * rows, bias=before.bias * weight + bias)


def write_network(network: Network, path: Path) -> None:
    """One safetensors file with parameters (float32 where that is exact) and description; `read_network` gives it back."""
    from safetensors.torch import save_file

    tensors = {}
    for index, layer in enumerate(network.layers):
        if isinstance(layer, Affine):
            for name in ("weight", "bias"):
                whole = getattr(layer, name).contiguous()
                single = whole.float()
                tensors[f"{index}.{name}"] = single if torch.equal(single.double(), whole) else whole.clone()
    metadata = {METADATA: json.dumps(network.description())}
    produce_atomic(path, lambda target: save_file(tensors, target, metadata=metadata))


def _exact(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
        raise BadInput(
            f"a parameter is a {tensor.dtype} of layout {tensor.layout} on {tensor.device}; expected plain real numbers"
        )
    return tensor.detach().to("cpu", torch.float64).contiguous()


def _bias(bias: Tensor | None, size: int) -> Tensor:
    if bias is None:
        return torch.zeros(size, dtype=torch.float64)
    if bias.shape != (size,):
        raise BadInput(f"a bias of shape {tuple(bias.shape)} meets {size} outputs")
    return _exact(bias)


def _spread(tensor: Tensor, shape: Shape) -> Tensor:
    """One number a channel, or one a value, as one a value."""
    whole = _exact(tensor).flatten()
    size = math.prod(shape)
    if len(whole) == size:
        return whole
    if len(whole) not in (1, shape[0]):
        raise BadInput(f"{len(whole)} numbers for a value of shape {shape}: expected one, one a channel, or {size}")
    return whole.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).reshape(-1).contiguous()


def _pair(value: int | Sequence[int], least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(type(each) is int and least <= each <= LARGEST for each in pair):
        raise BadInput(f"{pair} is no size of two dimensions; expected two whole numbers from {least}")
    return pair
