"""Networks from torch modules: the graph of a copy in evaluation mode and float64, read function by function.

Every function and layer is known with torch's own signature: an argument that is not in it is refused, and so is what a
graph does not show (a hook, a replaced `forward`). What a weight is computed from (parametrizations, `weight_norm`,
`spectral_norm`, `prune`) is computed as the module does it.
"""

import copy
import inspect
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from equipoise.core.errors import BadInput
from equipoise.verification.faithful import OriginalRun
from equipoise.verification.network import Builder, Network, not_supported


class Normalize(nn.Module):
    """(x - mean) / std per channel, as the first layer of a network that takes raw pictures."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """(x - mean) / std, channel by channel."""
        shape = (-1, *[1] * (x.ndim - 2))
        return ((x - self.mean.reshape(shape)) / self.std.reshape(shape)).to(x.dtype)


def from_module(module: nn.Module, shape: Sequence[int], *, name: str = "network") -> Network:
    """The network that a torch module computes in evaluation mode, read from its graph (`torch.fx`), never run.

    shape: of one input, without the batch. Known: the layers and functions of `LAYERS` and `FUNCTIONS`, sums of two values,
    arithmetic with constants, and views of a value. Raises BadInput for anything else, by name.
    """
    with torch.no_grad():
        return _Reader(_plain(module, name), shape, name).network()


class ModuleOriginal:
    """A module beside what was read of it: a copy of it in evaluation mode, in float64 or else in its own precision."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name

    def runs(self) -> Iterator[OriginalRun]:
        own = next((each.dtype for each in self.module.parameters() if each.is_floating_point()), torch.float32)
        for dtype in dict.fromkeys((torch.float64, own)):
            yield OriginalRun("torch", torch.__version__, dtype, lambda dtype=dtype: self._start(dtype))

    def _start(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        module = _evaluated(self.module, self.name)
        module = module.double() if dtype == torch.float64 else module

        def outputs(x: Tensor) -> Tensor:
            with torch.no_grad():
                return module(x.clone())  # a layer may work in place

        return outputs


def _evaluated(module: nn.Module, name: str) -> nn.Module:
    """A copy on the CPU and in evaluation mode; the user's module stays as it is."""
    computed = [each for part in module.modules() for each in vars(part).values() if isinstance(each, Tensor)]
    try:
        # A weight that a hook has computed is no leaf, and torch copies only leaves.
        return (
            copy.deepcopy(module, {id(each): each.detach().clone() for each in computed if not each.is_leaf})
            .cpu()
            .eval()
        )
    except Exception as error:  # whatever the module's own attributes raise
        raise BadInput(f"{name}: the module cannot be copied ({error}).") from error


# Weights made by a hook before the layer runs; each can be made permanent by its own rule.
MADE_BEFORE = (WeightNorm, SpectralNorm, BasePruningMethod)


def _plain(module: nn.Module, name: str) -> nn.Module:
    """A copy in float64 whose graph is all that it computes."""
    plain = _evaluated(module, name).double()
    for path, part in plain.named_modules():
        where = f"{name}: {path or 'the module itself'} ({_kind(part).__name__})"
        for key, hook in list(part._forward_pre_hooks.items()):
            if isinstance(hook, MADE_BEFORE):
                hook.remove(part)
                del part._forward_pre_hooks[key]
        for kind, hooks in (
            ("forward hook", {**part._forward_hooks, **torch_module._global_forward_hooks}),
            ("forward pre-hook", {**part._forward_pre_hooks, **torch_module._global_forward_pre_hooks}),
        ):
            for hook in hooks.values():
                called = getattr(hook, "__qualname__", type(hook).__name__)
                raise BadInput(f"{where} has a {kind} ({called}), which may change what it computes; remove it first.")
        if part.training:
            raise BadInput(f"{where} stays in training mode after eval(); expected a network in evaluation mode.")
        if "forward" in vars(part) or type(part).__call__ is not nn.Module.__call__:
            raise BadInput(f"{where} has a forward or __call__ that was replaced, which is not read.")
    return plain


def _kind(layer: nn.Module) -> type:
    return parametrize.type_before_parametrizations(layer)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _kind(m) in LAYERS or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _InPlace(node, self)


class _InPlace(fx.Proxy):
    """Records x += y as what it is; torch.fx takes it for x = x + y, which leaves other names of x as they were."""

    def _change(self, function: Callable[..., Any], other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._change(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._change(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._change(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._change(operator.itruediv, other)


@dataclass(frozen=True)
class _Value:
    """What is computed, by its handle in a Builder; all else in a graph is a constant, or a size."""

    handle: int


BATCH = object()  # the size of a batch, as x.size(0) gives it


class _Alone(nn.Module):
    """A module called with its input alone: other arguments keep their defaults."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


class _Reader:
    def __init__(self, module: nn.Module, shape: Sequence[int], name: str) -> None:
        self.module, self.name = _Alone(module), name
        self.calls, self.at = _Calls(Builder(shape)), dict[fx.Node, Any]()

    def network(self) -> Network:
        try:
            graph = _Tracer().trace(self.module)
        except Exception as error:  # torch.fx raises whatever the module's own code does when it branches on a value
            raise BadInput(
                f"{self.name}: the module's graph cannot be read ({error}); expected one input and layers in a fixed order."
            ) from error
        *nodes, output = graph.nodes
        for node in nodes:
            where = f"{self.name}: {node.op.removeprefix('call_')} {_called(node)!r}"
            try:
                self.at[node] = self._read(node)
            except BadInput as error:
                raise BadInput(f"{where}: {str(error).removesuffix('.')}.") from error
            except Exception as error:  # an argument that torch would not take either
                raise BadInput(f"{where} is used in a way that is not known ({error}).") from error
        result = self.at.get(output.args[0]) if isinstance(output.args[0], fx.Node) else None
        if not isinstance(result, _Value):
            raise BadInput(f"{self.name}: the module gives {output.args[0]}, expected one computed value.")
        return self.calls.builder.build(self.calls.read(result), self.name)

    def _read(self, node: fx.Node) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), lambda each: self.at[each])
        if node.op == "placeholder":
            return _Value(0)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.module)
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            table, key, args = LAYERS, _kind(layer), (layer, *args)
        elif not any(isinstance(self.at[each], _Value) for each in node.all_input_nodes):  # of parameters and sizes
            function = getattr(type(args[0]), node.target) if isinstance(node.target, str) else node.target
            return function(*args, **kwargs)
        else:
            table, key = METHODS if node.op == "call_method" else FUNCTIONS, node.target
        if key not in table:
            raise not_supported(key.__name__ if isinstance(key, type) else _called(node), KNOWN)
        try:
            inspect.signature(table[key]).bind(self.calls, *args, **kwargs)
        except TypeError as error:
            raise BadInput(str(error)) from error
        return table[key](self.calls, *args, **kwargs)


def _called(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).removeprefix("module.")


class _Calls:
    """torch's functions with their own signatures, as far as they are known; see `FUNCTIONS` and `METHODS`."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.overwritten: set[int] = set()  # values that something changed in place

    def read(self, value: Any) -> int:
        """The handle of an argument that has to be computed."""
        if not isinstance(value, _Value):
            raise BadInput(f"it reads {type(value).__name__} where a computed value is expected")
        if self.builder.place(value.handle) in self.overwritten:
            raise BadInput("it reads a value that was changed in place before")
        return value.handle

    def overwrite(self, value: _Value) -> None:
        self.overwritten.add(self.builder.place(value.handle))

    def identity(self, input: _Value) -> _Value:
        self.read(input)
        return input

    def linear(self, input: _Value, weight: Tensor, bias: Tensor | None = None) -> _Value:
        return _Value(self.builder.linear(self.read(input), weight, bias))

    def conv2d(
        self,
        input: _Value,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> _Value:
        if padding == "valid":
            padding = 0
        elif padding == "same":
            spread = (dilation, dilation) if isinstance(dilation, int) else dilation
            whole = [apart * (size - 1) for apart, size in zip(spread, weight.shape[2:], strict=True)]
            if any(each % 2 for each in whole):
                raise BadInput("padding 'same' is not the same on both sides of this kernel")
            padding = [each // 2 for each in whole]
        chosen = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return _Value(self.builder.conv2d(self.read(input), weight, bias, **chosen))

    def relu(self, input: _Value, inplace: bool = False) -> _Value:
        result = _Value(self.builder.relu(self.read(input)))
        if inplace:
            self.overwrite(input)
        return result

    def dropout(self, input: _Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> _Value:
        if training:
            raise BadInput("it drops values at random (training=True); pass training=self.training")
        return self.identity(input)

    def avg_pool2d(
        self,
        input: _Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> _Value:
        return _Value(
            self.builder.average_pool(
                self.read(input),
                kernel_size,
                kernel_size if stride is None else stride,
                padding,
                divisor=divisor_override,
                ceil=ceil_mode,
                counts_padding=count_include_pad,
            )
        )

    def adaptive_avg_pool2d(self, input: _Value, output_size: Any) -> _Value:
        return _Value(self.builder.adaptive_pool(self.read(input), output_size))

    def mean(self, input: _Value, dim: Any, keepdim: bool = False) -> _Value:
        return _Value(self.builder.mean(self.read(input), (dim,) if isinstance(dim, int) else dim, keep=keepdim))

    def batch_norm(
        self,
        input: _Value,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float | None = 0.1,
        eps: float = 1e-5,
    ) -> _Value:
        if training or running_mean is None or running_var is None:
            raise BadInput("it normalises by the batch itself; expected a stored mean and variance")
        weight = torch.ones_like(running_mean) if weight is None else weight
        bias = torch.zeros_like(running_mean) if bias is None else bias
        return _Value(self.builder.batch_norm(self.read(input), weight, bias, running_mean, running_var, eps))

    def flatten(self, input: _Value, start_dim: int = 0, end_dim: int = -1) -> _Value:
        handle = self.read(input)
        shape = self.builder.shape_of(handle)
        begin, end = (range(len(shape) + 1)[each] for each in (start_dim, end_dim))
        if begin < 1 or end < begin:
            raise BadInput(
                f"it flattens from dimension {start_dim} to {end_dim}; expected start_dim=1, after the batch"
            )
        return _Value(self.builder.view(handle, (*shape[: begin - 1], math.prod(shape[begin - 1 : end]), *shape[end:])))

    def view(self, input: _Value, *shape: Any) -> _Value:
        handle = self.read(input)
        batch, *rest = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        if not all(type(each) is int for each in rest) or not (batch is BATCH or batch == -1):
            raise BadInput(f"its shape begins with {batch}; expected the size of the batch, x.size(0), or -1")
        if batch is BATCH and rest.count(-1) == 1:
            place = rest.index(-1)
            rest[place] = math.prod(self.builder.shape_of(handle)) // max(-math.prod(rest), 1)
        return _Value(self.builder.view(handle, rest))

    def reshape(self, input: _Value, shape: Any) -> _Value:
        return self.view(input, *shape)

    def size(self, input: _Value, dim: int | None = None) -> Any:
        whole = (BATCH, *self.builder.shape_of(input.handle))
        return whole if dim is None else whole[dim]

    def getattr(self, input: _Value, name: str) -> Any:
        if name != "shape":
            raise BadInput(f"the attribute {name!r} of a value is not known; expected shape")
        return self.size(input)

    def getitem(self, input: Any, index: Any) -> Any:
        if isinstance(input, _Value):
            raise BadInput("it takes a part of a value, which is not supported")
        return input[index]

    def add(self, input: Any, other: Any, *, alpha: float = 1) -> _Value:
        return self._arithmetic("add", input, other, alpha)

    def sub(self, input: Any, other: Any, *, alpha: float = 1) -> _Value:
        return self._arithmetic("sub", input, other, alpha)

    def mul(self, input: Any, other: Any) -> _Value:
        return self._arithmetic("mul", input, other)

    def div(self, input: Any, other: Any, *, rounding_mode: None = None) -> _Value:
        if rounding_mode is not None:
            raise BadInput(f"rounding_mode={rounding_mode!r} is not known")
        return self._arithmetic("div", input, other)

    def neg(self, input: _Value) -> _Value:
        return self.mul(input, -1)

    def _arithmetic(self, kind: Any, input: Any, other: Any, alpha: float = 1) -> _Value:
        first = isinstance(input, _Value)
        if alpha != 1:
            raise BadInput(f"alpha={alpha} is not known; multiply first")
        if first and isinstance(other, _Value):
            if kind not in ("add", "sub"):
                raise BadInput("it multiplies or divides computed values, which is not supported")
            build = self.builder.add if kind == "add" else self.builder.subtract
            return _Value(build(self.read(input), self.read(other)))
        value, constant = (input, other) if first else (other, input)
        number = torch.as_tensor(constant, dtype=torch.float64)
        return _Value(self.builder.with_number(kind, self.read(value), number, first=first))


def _in_place(function: Callable[..., _Value]) -> Callable[..., _Value]:
    def call(calls: _Calls, input: _Value, *args: Any, **kwargs: Any) -> _Value:
        result = function(calls, input, *args, **kwargs)
        calls.overwrite(input)
        return result

    call.__signature__ = inspect.signature(function)  # pyright: ignore[reportFunctionMemberAccess]
    return call


def _convolution(calls: _Calls, layer: nn.Conv2d, input: _Value) -> _Value:
    if layer.padding_mode != "zeros":
        raise BadInput(f"padding_mode={layer.padding_mode!r} is not known, expected 'zeros'")
    return calls.conv2d(input, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _batch_norm(calls: _Calls, layer: nn.BatchNorm1d | nn.BatchNorm2d, input: _Value) -> _Value:
    ranks = (1, 2) if _kind(layer) is nn.BatchNorm1d else (3,)
    if len(calls.builder.shape_of(input.handle)) not in ranks:
        raise BadInput(f"it meets a value of shape {calls.builder.shape_of(input.handle)}")
    return calls.batch_norm(
        input, layer.running_mean, layer.running_var, layer.weight, layer.bias, training=False, eps=layer.eps
    )


def _average_pool(calls: _Calls, layer: nn.AvgPool2d, input: _Value) -> _Value:
    return calls.avg_pool2d(
        input,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.ceil_mode,
        layer.count_include_pad,
        layer.divisor_override,
    )


def _normalize(calls: _Calls, layer: Normalize, input: _Value) -> _Value:
    mean, std = (each.to("cpu", torch.float64) for each in (layer.mean, layer.std))
    return _Value(calls.builder.scale(calls.read(input), 1 / std, -mean / std))


def _identity(calls: _Calls, layer: nn.Module, input: _Value) -> _Value:
    return calls.identity(input)


LAYERS: dict[Any, Callable[..., Any]] = {
    nn.Linear: lambda calls, layer, input: calls.linear(input, layer.weight, layer.bias),
    nn.Conv2d: _convolution,
    nn.ReLU: lambda calls, layer, input: calls.relu(input, layer.inplace),
    nn.Flatten: lambda calls, layer, input: calls.flatten(input, layer.start_dim, layer.end_dim),
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: lambda calls, layer, input: calls.adaptive_avg_pool2d(input, layer.output_size),
    Normalize: _normalize,
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout), _identity),
}
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.linear: _Calls.linear,
    F.conv2d: _Calls.conv2d,
    F.relu: _Calls.relu,
    torch.relu: _Calls.relu,
    F.dropout: _Calls.dropout,
    F.avg_pool2d: _Calls.avg_pool2d,
    F.adaptive_avg_pool2d: _Calls.adaptive_avg_pool2d,
    F.batch_norm: _Calls.batch_norm,
    torch.mean: _Calls.mean,
    torch.flatten: _Calls.flatten,
    torch.reshape: _Calls.reshape,
    **dict.fromkeys((operator.add, torch.add), _Calls.add),
    **dict.fromkeys((operator.sub, torch.sub), _Calls.sub),
    **dict.fromkeys((operator.mul, torch.mul), _Calls.mul),
    **dict.fromkeys((operator.truediv, torch.div), _Calls.div),
    **dict.fromkeys((operator.neg, torch.neg), _Calls.neg),
    operator.iadd: _in_place(_Calls.add),
    operator.isub: _in_place(_Calls.sub),
    operator.imul: _in_place(_Calls.mul),
    operator.itruediv: _in_place(_Calls.div),
    getattr: _Calls.getattr,
    operator.getitem: _Calls.getitem,
}
METHODS: dict[Any, Callable[..., Any]] = {
    **{
        name: getattr(_Calls, name)
        for name in ("relu", "flatten", "view", "size", "mean", "add", "sub", "mul", "div", "neg")
    },
    **{f"{name}_": _in_place(getattr(_Calls, name)) for name in ("relu", "add", "sub", "mul", "div", "neg")},
    "reshape": _Calls.view,
    **dict.fromkeys(("contiguous", "clone", "detach"), _Calls.identity),
}
KNOWN = {*(layer.__name__ for layer in LAYERS), *METHODS, "dropout", "linear", "conv2d", "avg_pool2d", "batch_norm"}
