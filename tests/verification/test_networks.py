"""Networks as they are read: equal to what torch computes, refused by name where they are not known."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.verification.attack import attack
from equipoise.verification.bounds import Enclosure, geometry
from equipoise.verification.certificate import Certified, specifications
from equipoise.verification.faithful import Reading
from equipoise.verification.from_torch import Normalize, from_module
from equipoise.verification.network import METADATA, Builder, Convolution, Linear, Scale, write_network
from equipoise.verification.norms import dense, row_norms, spectral_norm
from equipoise.verification.read import described, read, read_network
from equipoise.verification.sdp_crown import Relaxation
from equipoise.verification.semidefinite import Dual, Problem
from equipoise.verification.setting import VerificationSetting


def x_for(shape, count=3):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def moved(module):
    """A copy of the module in float64, with a batch normalisation that is not the identity."""
    module = copy.deepcopy(module)
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean), nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    return module.double().eval()


class Branching(nn.Module):
    """A residual block whose inner value is read twice: its batch normalisation must not be folded."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        x = F.relu(x + self.norm(x))
        return self.last(x.view(x.size(0), -1))


SEQUENTIAL = nn.Sequential(
    Normalize([0.1, 0.2], [0.5, 2.0]),
    nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
    nn.BatchNorm2d(4),
    nn.ReLU(),
    nn.Sequential(nn.Conv2d(4, 6, (2, 3), dilation=(2, 1), bias=False), nn.ReLU(), nn.Dropout()),
    nn.AvgPool2d(2, stride=1, padding=1),
    nn.Flatten(),
    nn.LazyLinear(5),
    nn.BatchNorm1d(5),
    nn.ReLU(),
    nn.BatchNorm1d(5),
    nn.Linear(5, 3),
)
SEQUENTIAL.eval()(torch.zeros(1, 2, 8, 9))  # which gives the lazy layer its size


@pytest.mark.parametrize(
    ("module", "shape"), [(SEQUENTIAL, (2, 8, 9)), (Branching(), (5,))], ids=["sequential", "branch"]
)
def test_a_module_is_what_it_computes(module, shape):
    module = moved(module)
    network = from_module(module, shape)
    x = x_for(shape)
    assert_close(network(x), module(x))
    for place, layer in enumerate(network.layers):  # W'c is the transpose of W x
        if hasattr(layer, "weight"):
            value = network.values(x)[layer.inputs[0]]
            c = x_for((network.sizes[place + 1],))
            linear = layer.forward(value) - layer.forward(torch.zeros_like(value))
            assert_close((linear * c).sum(), (value * layer.back(c)).sum())
            assert_close(layer.forward(value[:1] * 0)[0] @ c[0], layer.constant(c)[0])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(32, 3), nn.Sigmoid()), "Sigmoid"),
        (nn.Sequential(nn.Conv2d(2, 2, 3), nn.MaxPool2d(2)), "MaxPool2d"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding_mode="circular", padding=1)), "circular"),
        (nn.Sequential(nn.AvgPool2d(3, padding=1, count_include_pad=False)), "does not count its padding"),
        (nn.Sequential(nn.Flatten(), nn.Linear(31, 3)), r"\(3, 31\) meets a value of shape \(32,\)"),
        (nn.Sequential(nn.Linear(4, 3)), r"\(3, 4\) meets a value of shape \(2, 4, 4\)"),
    ],
)
def test_what_is_not_known_is_refused_by_name(module, message):
    with pytest.raises(BadInput, match=message):
        from_module(module, (2, 4, 4))


def test_words_describe_parameters(tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).double()
    words = "normalise mean=0.5 std=0.25, conv2d 0 stride=2, relu, flatten, linear 3"
    tensors = module.state_dict()
    network = described(words, tensors, (1, 5, 5))
    x = x_for((1, 5, 5))
    assert_close(network(x), module((x - 0.5) / 0.25))
    residual = described("linear a, relu, save r, linear b, add r, linear c", square := squares(), (4,))
    x = x_for((4,))
    first = F.relu(x @ square["a.weight"].T)
    assert_close(residual(x), (first + first @ square["b.weight"].T) @ square["c.weight"].T)
    save_file(tensors, tmp_path / "n.safetensors")
    assert read_network(tmp_path / "n.safetensors", architecture=words, shape=(1, 5, 5)).digest == network.digest
    for wrong, message in [
        ("linaer 3", "Did you mean 'linear'"),
        ("flatten, linear 4", "no parameter '4.weight'"),
        ("conv2d 0 strid=2", "strid"),
        ("relu, add k", "add k"),
        ("", "does not read 0.bias"),
    ]:
        with pytest.raises(BadInput, match=message):
            described(wrong, tensors, (1, 5, 5))
    with pytest.raises(BadInput, match="does not say how"):
        read_network(tmp_path / "n.safetensors")
    with pytest.raises(BadInput, match="needs the shape"):
        read_network(tmp_path / "n.safetensors", architecture=words)
    with pytest.raises(BadInput, match="No network at"):
        read_network(tmp_path / "m.safetensors")


def squares():
    return {f"{name}.weight": x_for((4,), 4) + place for place, name in enumerate("abc")}


@pytest.mark.parametrize(("channels", "stride", "padding"), [(1, 1, 0), (3, 2, 1), (2, 1, 2)])
def test_norms_are_upper_bounds_and_tight(channels, stride, padding):
    weight = x_for((channels, 3, 3), 4)
    layer = Convolution((0,), weight, torch.zeros(4).double(), (channels, 6, 7), (stride,) * 2, (padding,) * 2)
    whole = dense(layer)
    assert_close(layer.forward(x := x_for((channels * 42,))), x @ whole.T)
    one, axes = torch.ones(1, dtype=torch.float64), x_for((channels * 42,), 1)[0].abs() + 0.1
    for scale in (one, axes):
        true = torch.linalg.matrix_norm(whole * scale, 2).item()
        assert true <= spectral_norm(layer, scale) <= true * (1 + 2e-8)
        rows = (whole * scale).norm(dim=1)
        assert (row_norms(layer, scale) >= rows).all() and torch.allclose(row_norms(layer, scale), rows, rtol=1e-7)


def test_a_layer_too_large_to_decompose_has_a_certified_norm(monkeypatch):
    monkeypatch.setattr("equipoise.verification.norms.DENSE", 10)
    layer = Convolution((0,), x_for((2, 3, 3), 4), torch.zeros(4).double(), (2, 6, 6), (1, 1), (1, 1))
    for axes in (torch.ones(1).double(), x_for((72,), 1)[0].abs() + 0.1):
        true = torch.linalg.matrix_norm(dense(layer) * axes, 2).item()
        assert true <= spectral_norm(layer, axes) <= 20 * true


@pytest.mark.parametrize("shape", [(2, 5), (5, 2), (3, 3)])
def test_the_smaller_gram_matrix_is_decomposed(shape, monkeypatch):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    builder = Builder((shape[1],))
    layer = builder.build(builder.linear(0, weight, None), "one").layers[0]
    sizes, real = [], torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda gram: sizes.append(tuple(gram.shape)) or real(gram))
    found = spectral_norm(layer, torch.ones(1, dtype=torch.float64))
    assert found == pytest.approx(torch.linalg.matrix_norm(weight, 2).item(), rel=2e-8) and sizes == [(min(shape),) * 2]


def test_the_largest_layer_that_is_decomposed(monkeypatch):
    """3 x 5 entries; one more than allowed is bounded by the largest sums of sizes of a row and of a column."""
    weight, axes = x_for((5,)), torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    layer = Linear((0,), weight, torch.ones(3, dtype=torch.float64))
    true = torch.linalg.matrix_norm(weight * axes, 2).item()
    sizes = weight.abs() * axes
    bound = (sizes.sum(1).max() * sizes.sum(0).max()).sqrt().item()
    for dense_, expected in ((16, true), (15, true), (14, bound), (0, bound)):
        monkeypatch.setattr("equipoise.verification.norms.DENSE", dense_)
        assert expected <= spectral_norm(layer, axes) <= expected * (1 + 2e-8)
    scale = Scale((0,), torch.tensor([0.5, -4.0, 1.0]).double(), torch.ones(3).double())
    assert spectral_norm(scale, torch.tensor([1.0, 0.5, 3.0]).double()) == pytest.approx(3.0, rel=2e-8)
    assert spectral_norm(scale, torch.ones(1).double()) == pytest.approx(4.0, rel=2e-8)
    nothing = Linear((0,), torch.zeros(2, 3).double(), torch.zeros(2).double())
    monkeypatch.setattr("equipoise.verification.norms.DENSE", 15)
    assert spectral_norm(nothing, torch.ones(1).double()) == 1e-9  # so that it can be proved


def test_geometry_holds_what_moves():
    """No two points end further apart than the geometry says; a normalisation gives an ellipsoid."""
    network = from_module(moved(SEQUENTIAL), (2, 8, 9))
    shape = geometry(network)
    x = x_for((2, 8, 9), 40)
    step = x_for((2, 8, 9), 41)[1:]
    step = step / step.flatten(1).norm(dim=1)[:, None, None, None]
    assert len(shape.axes[1]) == 144 and len(shape.axes[2]) == 1
    for a, b, axes, reach in zip(network.values(x), network.values(x + step), shape.axes, shape.reach, strict=True):
        assert (((a - b) / axes).norm(dim=1) <= 1 + 1e-9).all()
        assert ((a - b).abs() <= reach + 1e-9).all()


def test_the_attack_finds_the_minimum_of_a_linear_function():
    builder = Builder((6,))
    weight = x_for((6,))
    network = builder.build(builder.linear(0, weight, None), "linear")
    x, radius = torch.full((1, 6), 0.3, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    c = specifications(torch.tensor([1]), 3)
    found, points = attack(network, x, radius, c, generator=torch.Generator().manual_seed(0), steps=60)
    rows = (c @ weight)[0]
    assert_close(found[0], rows @ x[0] - 0.5 * rows.norm(dim=1), atol=1e-3, rtol=0)
    assert math.isclose((points - x).norm(dim=-1).max().item(), 0.5, rel_tol=1e-9)
    boxed, points = attack(network, x, radius, c, generator=torch.Generator().manual_seed(0), steps=60, box=(0.0, 0.4))
    assert (boxed >= found - 1e-9).all() and ((points >= 0) & (points <= 0.4)).all()


def test_onnx(tmp_path):
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    rng = torch.Generator().manual_seed(0)

    def constant(name, *shape):
        return numpy_helper.from_array(torch.randn(*shape, generator=rng).numpy(), name)

    constants = [
        *(constant("mean", 1, 2, 1, 1), constant("conv", 4, 2, 3, 3), constant("b", 4), constant("gemm", 3, 16)),
        *(constant("c", 3), constant("mat", 3, 3), constant("d", 3)),
        numpy_helper.from_array(torch.tensor([0.5]).numpy(), "std"),
    ]
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["a"]),
        helper.make_node("Div", ["a", "std"], ["n"]),
        helper.make_node("Conv", ["n", "conv", "b"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("Add", ["z", "y"], ["s"]),
        helper.make_node("AveragePool", ["s"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "gemm", "c"], ["g"], transB=1),
        helper.make_node("MatMul", ["g", "mat"], ["m"]),
        helper.make_node("Add", ["m", "d"], ["out"]),
    ]

    def save(nodes, name):
        x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 2, 4, 4])
        out = helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)
        onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [out], constants)), str(tmp_path / name))
        return tmp_path / name

    network = read_network(save(nodes, "net.onnx"))
    mean, conv, b, gemm, c, mat, d, std = (
        torch.from_numpy(numpy_helper.to_array(each).copy()).double() for each in constants
    )
    x = x_for((2, 4, 4))
    y = F.conv2d((x - mean) / std, conv, b, padding=1)
    pooled = F.avg_pool2d(y.relu() + y, 2).flatten(1)
    assert_close(network(x), (pooled @ gemm.T + c) @ mat + d)
    with pytest.raises(BadInput, match="Sigmoid"):
        read_network(save([*nodes[:4], helper.make_node("Sigmoid", ["z"], ["w"])], "sigmoid.onnx"))
    (tmp_path / "bad.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(BadInput, match=r"no valid ONNX file"):
        read_network(tmp_path / "bad.onnx")


def stored(folder, change):
    """A network file whose description was changed by hand."""
    builder = Builder((1, 3, 3))
    value = builder.conv2d(0, x_for((1, 2, 2), 2), None)
    value = builder.linear(builder.flatten(builder.relu(value)), x_for((8,)), None)
    write_network(builder.build(value, "stored"), folder / "n.safetensors")
    with safe_open(folder / "n.safetensors", "pt") as file:
        description = json.loads(file.metadata()[METADATA])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(description, tensors)
    save_file(tensors, folder / "n.safetensors", metadata={METADATA: json.dumps(description)})
    return folder / "n.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d["layers"][1].update(inputs=[-1]), r"layer 1 \(relu\) reads \[-1\]"),
        (lambda d, t: d["layers"][1].update(inputs=[1, 1]), r"layer 1 \(relu\) reads \[1, 1\]"),
        (lambda d, t: d["layers"][1].update(inputs=[2]), r"reads \[2\]"),
        (lambda d, t: d["layers"][1].update(inputs=[]), r"layer 1 \(relu\) reads \[\]"),
        (lambda d, t: d["layers"][2].update(inputs=[]), r"layer 2 \(linear\) reads \[\]"),
        (lambda d, t: d["layers"][1].update(kind="add"), r"layer 1 \(add\) reads \[1\]"),
        (lambda d, t: d["layers"][1].update(kind="add", inputs=[1, 1, 1]), r"layer 1 \(add\) reads \[1, 1, 1\]"),
        (lambda d, t: d["layers"][1].update(inputs=[True]), r"reads \[True\]"),
        (lambda d, t: d["layers"][1].update(slope=0.1), "expected kind, inputs, found"),
        (lambda d, t: d["layers"][0].pop("groups"), "groups"),
        (lambda d, t: d["layers"][0].update(stride=[0, 1]), "from 1"),
        (lambda d, t: d["layers"][0].update(padding=[-1, 0]), "from 0"),
        (lambda d, t: d["layers"][0].update(shape=[3, 3]), "a value of shape"),
        (lambda d, t: d["layers"][1].update(kind="elu"), "layer 1 is a 'elu'"),
        (lambda d, t: d.update(shape=[2**40]), "numbers at most"),
        (lambda d, t: d.update(version=2), "expected shape, layers"),
        (lambda d, t: (d.update(layers=[]), t.clear()), "network with layers"),
        (lambda d, t: t.update({"9.weight": torch.ones(1)}), "no layer reads 9.weight"),
        (lambda d, t: t.pop("2.bias"), "2.bias"),
        (lambda d, t: t.update({"0.bias": torch.ones(3)}), r"a bias of shape \(3,\) meets 2 outputs"),
        (lambda d, t: t.update({"0.bias": torch.ones(2).int()}), "int32"),
        (lambda d, t: t.update({"2.bias": torch.full((3,), torch.nan)}), "not finite"),
    ],
)
def test_a_stored_network_is_whole_or_refused(tmp_path, change, message):
    assert read_network(stored(tmp_path, lambda d, t: None)).sizes == (9, 8, 8, 3)
    with pytest.raises(BadInput, match=message):
        read_network(stored(tmp_path, change))


def test_what_a_description_leaves_out_is_refused():
    tensors = {"0.weight": x_for((4,)), "0.bias": x_for((3,), 1)[0], "1.running_mean": torch.zeros(3)}
    with pytest.raises(BadInput, match=r"does not read 1.running_mean"):
        described("linear 0", tensors, (4,))
    del tensors["1.running_mean"]
    assert described("linear 0", tensors | {"1.num_batches_tracked": torch.tensor(3)}, (4,)).sizes == (4, 3)
    for words, message in [
        ("linear 0 stride=2", "stride"),
        ("conv2d 0 stride=1 stride=2", "a setting twice"),
        ("linear 0, add r", "nothing was saved as 'r'"),
        ("linear 0, avgpool kernel=2", "average pooling meets"),
        ("linear 0, flatten 3", "flatten"),
    ]:
        with pytest.raises(BadInput, match=message):
            described(words, tensors, (4,))
    with pytest.raises(BadInput, match="dimensions from 1"):
        described("linear 0", tensors, (-4,))


def test_read_takes_what_classes_can_be_told_by(tmp_path):
    module = nn.Sequential(nn.Linear(4, 3))
    assert read(module, shape=(4,)).original is not None
    network = read(module, shape=(4,)).network
    assert read(network).network is network and read(network).original is None
    write_network(network, tmp_path / "n.safetensors")
    assert read(tmp_path / "n.safetensors").network.digest == network.digest
    for given, words, message in [
        (nn.Linear(4, 1), {"shape": (4,)}, "has one output"),
        (module, {}, "needs the shape"),
        (module, {"shape": (4,), "architecture": "linear 0"}, "describes itself"),
        (network, {"architecture": "linear 0"}, "describes itself"),
    ]:
        with pytest.raises(BadInput, match=message):
            read(given, **words)


def test_only_what_the_output_needs_is_kept_and_ends_with_an_affine_layer():
    builder = Builder((4,))
    first = builder.linear(0, x_for((4,), 4), None)
    builder.linear(first, x_for((4,), 9), None)  # nothing reads it
    scaled = builder.scale(first, x_for((4,), 1)[0], x_for((4,), 1)[0])
    network = builder.build(builder.relu(scaled), "ends with a ReLU")
    assert [type(each).__name__ for each in network.layers] == ["Linear", "Relu", "Scale"] and network.sizes == (
        4,
        4,
        4,
        4,
    )
    x = x_for((4,))
    assert_close(network(x), ((x @ x_for((4,), 4).T) * x_for((4,), 1)[0] + x_for((4,), 1)[0]).relu())
    kept = builder.build(builder.add(scaled, first), "the map is read twice")
    assert [type(each).__name__ for each in kept.layers] == ["Linear", "Scale", "Add", "Scale"]


def test_what_holds_tensors_is_compared_by_identity():
    """Of tensors == is no answer, and a mapping by layer needs a hash."""
    made = [Builder((2,)) for _ in range(2)]
    networks = [
        builder.build(
            builder.scale(builder.linear(0, torch.eye(2), None), torch.ones(2), torch.ones(2)), "n", merge=False
        )
        for builder in made
    ]
    assert networks[0] != networks[1] and len({*networks}) == 2
    assert len({layer for network in networks for layer in network.layers}) == 4
    kernels = [
        Convolution((0,), torch.ones(1, 1, 1, 1), torch.ones(1), (1, 1, 1), (1, 1), (0, 0), (1, 1), 1) for _ in range(2)
    ]
    assert kernels[0] != kernels[1]
    assert len({geometry(network) for network in networks}) == 2
    for each in (
        Enclosure(*(torch.ones(1, 2) for _ in range(4))),
        Relaxation({1: torch.ones(1)}, {}),
        Certified(torch.ones(1), {}, Relaxation({}, {})),
        Dual(0.0, {1: torch.ones(5, 1)}, 1.0),
        Problem(torch.eye(2), torch.eye(2), 1, torch.eye(2), {}),
        Reading(networks[0]),
        VerificationSetting({}, torch.ones(1), torch.ones(1)),
    ):
        assert replace(each) != each and len({each, replace(each)}) == 2


def test_the_last_four_rounded_networks_are_kept():
    networks = [from_module(nn.Linear(2, 2), (2,)) for _ in range(5)]
    rounded = [each.to(torch.float32) for each in networks[:4]]
    assert all(each.to(torch.float32) is its for each, its in zip(networks, rounded, strict=False))
    networks[4].to(torch.float32)
    assert networks[3].to(torch.float32) is rounded[3] and networks[0].to(torch.float32) is not rounded[0]


def test_a_file_that_may_not_be_opened_is_an_error_of_one_sentence(tmp_path, monkeypatch):
    def closed(path, framework):
        raise PermissionError("no way in")

    (tmp_path / "net.safetensors").touch()
    monkeypatch.setattr("safetensors.safe_open", closed)
    with pytest.raises(BadInput) as error:
        read_network(tmp_path / "net.safetensors")
    assert (
        str(error.value)
        == f"{tmp_path / 'net.safetensors'} is no safetensors file (no way in); expected one, or .onnx."
    )


def test_two_outputs_are_enough():
    assert read(nn.Linear(3, 2), shape=(3,)).network.outputs == 2
    with pytest.raises(BadInput, match="has one output; a class needs two or more"):
        read(nn.Linear(3, 1), shape=(3,))


def test_the_norm_of_a_large_layer_is_its_sums_and_a_hair(monkeypatch):
    """The root of the largest sums of a row and of a column, with the axes, and a hundred-millionth more."""
    monkeypatch.setattr("equipoise.verification.norms.DENSE", 1)
    layer = Linear((0,), torch.tensor([[3.0, -4.0], [0.5, 1.0]]).double(), torch.ones(2).double())
    for axes, largest in (((1.0, 1.0), 7 * 5), ((2.0, 0.5), 8 * 7)):
        found = spectral_norm(layer, torch.tensor(axes).double())
        assert found == pytest.approx(math.sqrt(largest) * (1 + 1e-8), rel=1e-13)
