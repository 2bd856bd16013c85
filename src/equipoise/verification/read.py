"""Networks from files, in words, or from a module: `read` gives the network with its original beside it.

A file of parameters alone is described in words; one of `write_network` describes itself. What a file holds and no word
reads is refused: a parameter that is left over is a layer that was left out.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.verification.faithful import Reading
from equipoise.verification.network import KINDS, METADATA, Builder, Network, Shape


def read(
    network: str | Path | nn.Module | Network, *, architecture: str | None = None, shape: Sequence[int] | None = None
) -> Reading:
    """A network that classes can be told by, and its original, as `faithful.compare` takes it.

    architecture: as in `described`, for a file of parameters. shape: of one input, where neither the file nor the network
    says it. Raises BadInput for what cannot be read, and for a network with one output.
    """
    if isinstance(network, str | Path):
        reading = _file(Path(network), architecture, shape)
    elif architecture is not None:
        raise BadInput("An architecture describes a file of parameters; a network in memory describes itself.")
    elif isinstance(network, Network):
        reading = Reading(network)
    else:
        from equipoise.verification.from_torch import ModuleOriginal, from_module

        if shape is None:
            raise BadInput("A module needs the shape of one input.")
        name = type(network).__name__
        reading = Reading(from_module(network, shape, name=name), ModuleOriginal(network, name))
    if reading.network.outputs < 2:
        raise BadInput(
            f"{reading.network.name} has one output; a class needs two or more. For a decision by its sign, let the last "
            "layer give the output and its negative."
        )
    return reading


def read_network(path: str | Path, *, architecture: str | None = None, shape: Sequence[int] | None = None) -> Network:
    """A network from a safetensors file: one that `write_network` wrote, or parameters with a description in words.

    architecture: as in `described`, or the name of one in `RELEASED`. shape: of one input; a released one has its own.
    An ONNX file (.onnx) is read as it is. Raises BadInput for a file that is missing, foreign, or without description.
    """
    return _file(Path(path), architecture, shape).network


def _file(path: Path, architecture: str | None, shape: Sequence[int] | None) -> Reading:
    if not path.is_file():
        near = [str(each) for each in path.parent.glob("*")] if path.parent.is_dir() else []
        raise BadInput(f"No network at {path}. {did_you_mean(str(path), near)}")
    if path.suffix.lower() == ".onnx":
        from equipoise.verification.from_onnx import read_onnx

        if architecture is not None:
            raise BadInput(f"{path} describes itself; an architecture is for a file of parameters.")
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
    if architecture is None:
        return Reading(_stored(path, metadata, tensors))
    if shape is None:
        raise BadInput("An architecture in words needs the shape of one input: --input-shape 1,28,28.")
    return Reading(described(architecture, tensors, shape, name=path.stem))


# Parameters described in words

WORDS = ("linear", "conv2d", "relu", "flatten", "batchnorm", "avgpool", "normalize", "save", "add")


def described(text: str, tensors: Mapping[str, Tensor], shape: Sequence[int], *, name: str = "network") -> Network:
    """The network that `text` describes over these parameters.

    text: words between commas, such as "conv2d 0 stride=2 padding=1, relu, flatten, linear 3". After linear, conv2d and
    batchnorm comes the name of the parameters (0.weight, 0.bias). `normalize mean=a/b/c std=a/b/c` for an input,
    `avgpool kernel=2 stride=2`, and for a residual block `save KEY` where it begins and `add KEY` where it ends.
    Raises BadInput for a word, a parameter or a setting that is not known, and for parameters that no word reads.
    """
    words = _Words(Builder(shape), tensors)
    for step in filter(None, (each.strip() for each in text.split(","))):
        word, *rest = step.split()
        word = {"normalise": "normalize"}.get(word, word)  # as earlier versions wrote it
        names = [each for each in rest if "=" not in each]
        settings = dict(each.split("=", 1) for each in rest if "=" in each)
        if len(names) + len(settings) < len(rest):
            raise BadInput(f"{name}: {step!r} gives a setting twice.")
        where = f"{name}: {step!r}"
        if word not in WORDS:
            raise BadInput(f"{where} is not known. {did_you_mean(word, WORDS)}")
        try:
            getattr(words, word)(*names, **settings)
        except BadInput as error:
            raise BadInput(f"{where}: {str(error).removesuffix('.')}.") from error
        except (TypeError, KeyError, ValueError, RuntimeError) as error:
            raise BadInput(f"{where}: {error}; expected such as 'conv2d NAME stride=2 padding=1'.") from error
    left = sorted(key for key in tensors.keys() - words.used if not key.endswith("num_batches_tracked"))
    if left:
        raise BadInput(
            f"{name}: the description does not read {', '.join(left[:5])}; expected a word for every parameter."
        )
    return words.builder.build(words.value, name)


class _Words:
    """One method a word, with the names and settings that it takes; settings come as text."""

    def __init__(self, builder: Builder, tensors: Mapping[str, Tensor]) -> None:
        self.builder, self.tensors, self.value = builder, tensors, 0
        self.saved: dict[str, int] = {}
        self.used: set[str] = set()

    def _parameter(self, key: str) -> Tensor:
        if key not in self.tensors:
            raise BadInput(f"no parameter {key!r}. {did_you_mean(key, self.tensors)}")
        self.used.add(key)
        return self.tensors[key]

    def _bias(self, key: str) -> Tensor | None:
        return self._parameter(f"{key}.bias") if f"{key}.bias" in self.tensors else None

    def linear(self, key: str) -> None:
        flat = self.builder.flatten(self.value)
        self.value = self.builder.linear(flat, self._parameter(f"{key}.weight"), self._bias(key))

    def conv2d(
        self, key: str, *, stride: str = "1", padding: str = "0", dilation: str = "1", groups: str = "1"
    ) -> None:
        chosen: dict[str, Any] = {"stride": int(stride), "padding": int(padding), "dilation": int(dilation)}
        weight = self._parameter(f"{key}.weight")
        self.value = self.builder.conv2d(self.value, weight, self._bias(key), **chosen, groups=int(groups))

    def batchnorm(self, key: str, *, epsilon: str = "1e-5") -> None:
        weight, mean, variance = (
            self._parameter(f"{key}.{each}") for each in ("weight", "running_mean", "running_var")
        )
        bias = self._bias(key)
        bias = torch.zeros_like(weight) if bias is None else bias
        self.value = self.builder.batch_norm(self.value, weight, bias, mean, variance, float(epsilon))

    def relu(self) -> None:
        self.value = self.builder.relu(self.value)

    def flatten(self) -> None:
        self.value = self.builder.flatten(self.value)

    def normalize(self, *, mean: str, std: str) -> None:
        center, spread = (
            torch.tensor([float(each) for each in text.split("/")], dtype=torch.float64) for text in (mean, std)
        )
        self.value = self.builder.scale(self.value, 1 / spread, -center / spread)

    def avgpool(self, *, kernel: str, stride: str | None = None, padding: str = "0") -> None:
        size = int(kernel)
        self.value = self.builder.average_pool(self.value, size, size if stride is None else int(stride), int(padding))

    def save(self, key: str) -> None:
        self.saved[key] = self.value

    def add(self, key: str) -> None:
        if key not in self.saved:
            raise BadInput(f"nothing was saved as {key!r}. {did_you_mean(key, self.saved)}")
        self.value = self.builder.add(self.value, self.saved[key])


# Files of `write_network`

CONVOLUTION = ("stride", "padding", "dilation", "groups")


def _stored(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Network:
    if METADATA not in metadata:
        raise BadInput(
            f"{path} does not say how its parameters are used. Describe it: --architecture 'flatten, linear 1, relu, "
            f"linear 3' --input-shape 1,28,28, or name one of {', '.join(RELEASED)}."
        )
    try:
        description = _fields(json.loads(metadata[METADATA]), ("shape", "layers"))
        builder, values, used = Builder(description["shape"]), [0], set()
        for row in description["layers"]:
            values.append(_stored_layer(builder, row, tensors, values, used))
        left = sorted(tensors.keys() - used)
        if left:
            raise BadInput(f"no layer reads {', '.join(left[:5])}")
        return builder.build(values[-1], path.stem, merge=False)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"{path} is no whole network file of Equipoise ({error}); write it again.") from error


def _stored_layer(
    builder: Builder, row: Any, tensors: Mapping[str, Tensor], values: Sequence[int], used: set[str]
) -> int:
    index, kind = len(values) - 1, row["kind"]
    if kind not in KINDS.values():
        raise BadInput(f"layer {index} is a {kind!r}")
    _fields(row, ("kind", "inputs", *(("shape", *CONVOLUTION) if kind == "conv2d" else ())))
    inputs = row["inputs"]
    if len(inputs) != (2 if kind == "add" else 1) or not all(
        type(each) is int and 0 <= each <= index for each in inputs
    ):
        raise BadInput(f"layer {index} ({kind}) reads {inputs}")
    given = [builder.flatten(values[each]) for each in inputs]
    if kind in ("relu", "add"):
        return getattr(builder, kind)(*given)
    (value,) = given
    names = [f"{index}.{each}" for each in ("weight", "bias")]
    used.update(names)
    weight, bias = (tensors[each] for each in names)
    if kind == "conv2d":
        return builder.conv2d(
            builder.view(value, row["shape"]), weight, bias, **{name: row[name] for name in CONVOLUTION}
        )
    return (builder.linear if kind == "linear" else builder.scale)(value, weight, bias)


def _fields(row: Any, names: Sequence[str]) -> dict[str, Any]:
    if not isinstance(row, dict) or row.keys() != set(names):
        raise BadInput(f"expected {', '.join(names)}, found {row if not isinstance(row, dict) else ', '.join(row)}")
    return row


CIFAR = "normalize mean=0.49137254901960786/0.4823529411764706/0.4466666666666667 std=0.225/0.225/0.225"

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
