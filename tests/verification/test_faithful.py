"""The original beside what was read: equal to rounding, or an error with both values."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.core.errors import BadInput
from equipoise.verification.faithful import _points, compare
from equipoise.verification.from_torch import ModuleOriginal
from equipoise.verification.network import Network
from equipoise.verification.read import read
from onnx_graphs import graph, save


def inputs(shape=(4,), count=3):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def small(width=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def nudged(network: Network, place: int, by: float) -> Network:
    """The network with one bias a little off: what a wrong reading looks like."""
    layers = list(network.layers)
    bias = layers[place].bias.clone()
    bias[0] += by
    layers[place] = replace(layers[place], bias=bias)
    return replace(network, layers=tuple(layers))


def test_a_faithful_reading_says_how_close_it_is():
    module, x = small(), inputs()
    reading = read(module, shape=(4,))
    found = compare(reading.network, reading.original, x, torch.ones(3))
    assert (found.reference, found.version, found.precision, found.points) == (
        "torch",
        torch.__version__,
        "float64",
        15,
    )
    assert 0 <= found.absolute < 1e-14 and found.relative < 1e-14 and found.allowed <= 1
    assert json.loads(json.dumps(asdict(found)))["points"] == 15 and "float64 at 15 points" in str(found)
    assert module.training and module[0].weight.dtype == torch.float32


def test_a_difference_is_an_error_with_both_values():
    reading, x = read(small(), shape=(4,)), inputs()
    true = reading.network(x)[0, 0].item()
    wrong = nudged(reading.network, 2, 1e-11)
    with pytest.raises(BadInput, match="not read as it is computed: at input 7, output 0 is") as caught:
        compare(wrong, reading.original, x, torch.ones(3), rows=[7, 8, 9])
    assert f"{wrong(x)[0, 0].item():.17g}" in str(caught.value) and str(true)[:10] in str(caught.value)
    assert "in torch" in str(caught.value)
    compare(nudged(reading.network, 2, 1e-17), reading.original, x, torch.ones(3))


class Bump(nn.Module):
    """One function on the inputs, another beside them."""

    def __init__(self, inner, x):
        super().__init__()
        self.inner, self.x = inner, x

    def forward(self, x):
        near = (x[:, None] - self.x.to(x.dtype)).norm(dim=-1).amin(1, keepdim=True) < 1e-9
        return self.inner(x) + torch.where(near, 0.0, 0.5)


def test_points_of_the_balls_are_compared_too():
    module, x = small(), inputs()
    network = read(module, shape=(4,)).network
    original = ModuleOriginal(Bump(module, x), "bump")
    assert compare(network, original, x, torch.ones(3), points=0).points == 3
    with pytest.raises(BadInput, match="at a point of the ball of input 0"):
        compare(network, original, x, torch.ones(3))


def test_points_lie_in_ball_and_box_and_depend_on_their_row_alone():
    x, seen = inputs(), []
    for rows in ([0, 1, 2], [2, 0]):
        seen.append({row: _points(x[row], 0.3, None, 5, np.random.SeedSequence([4, row])) for row in rows})
    for row in (0, 2):
        assert torch.equal(seen[0][row], seen[1][row]) and torch.equal(seen[0][row][0], x[row])
        away = (seen[0][row][1:] - x[row]).norm(dim=1)
        assert away[0].item() == pytest.approx(0.3) and (away <= 0.3 * (1 + 1e-12)).all() and away.min() > 0
    assert not torch.allclose(seen[0][0][1] - x[0], seen[0][1][1] - x[1])
    boxed = _points(torch.full((4,), 0.1).double(), 0.5, (0.0, 1.0), 8, np.random.SeedSequence(0))
    assert boxed.min() == 0
    searched = _points(torch.tensor([3.0, 4.0]).double(), float("nan"), None, 2, np.random.SeedSequence(0))
    assert (searched[1] - searched[0]).norm().item() == pytest.approx(0.5)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_allowed_difference_goes_with_the_unit(scale):
    """Weights and inputs in another unit: the same verdicts on the same relative error."""
    module = small().double()
    with torch.no_grad():
        for each in module.parameters():
            each.mul_(scale)
    reading, x = read(module, shape=(4,)), inputs() * scale
    compare(reading.network, reading.original, x, torch.full((3,), scale))
    size = reading.network(x).abs().max().item()
    with pytest.raises(BadInput):
        compare(nudged(reading.network, 2, 1e-10 * size), reading.original, x, torch.full((3,), scale))


class Fixed(nn.Module):
    """A weight that is no parameter stays in single precision when the module is doubled."""

    def __init__(self):
        super().__init__()
        self.inner, self.matrix = small(), torch.linspace(-1, 1, 9).reshape(3, 3)

    def forward(self, x):
        return nn.functional.linear(self.inner(x), self.matrix)


def test_a_module_that_cannot_be_doubled_runs_in_its_own_precision():
    reading, x = read(Fixed(), shape=(4,)), inputs()
    found = compare(reading.network, reading.original, x, torch.ones(3))
    assert found.precision == "float32" and 1e-10 < found.absolute < 1e-5 and found.allowed <= 1
    with pytest.raises(BadInput, match=r"torch.float32"):
        compare(nudged(reading.network, -1, 1e-2), reading.original, x, torch.ones(3))


def test_an_original_that_does_not_run_is_an_error():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("out of order")

    network = read(small(), shape=(4,)).network
    with pytest.raises(BadInput, match=r"does not run on an input of shape .*out of order"):
        compare(network, ModuleOriginal(Broken(), "broken"), inputs(), torch.ones(3))
    with pytest.raises(BadInput, match=r"gives \(15, 2\) for 15 inputs, where 3 outputs"):
        compare(network, ModuleOriginal(nn.Linear(4, 2), "short"), inputs(), torch.ones(3))


def test_a_network_without_an_original_says_so():
    reading = read(read(small(), shape=(4,)).network)
    found = compare(reading.network, reading.original, inputs(), torch.ones(3))
    assert found.reference is None and found.points == 0 and "no original" in str(found)
    assert json.dumps(asdict(found))


@pytest.mark.parametrize("batch", ["N", 1, 2])
def test_an_onnx_file_runs_beside_what_was_read(tmp_path, batch):
    onnx = pytest.importorskip("onnx")
    node, rng = onnx.helper.make_node, np.random.default_rng(0)
    constants = {"K": rng.normal(size=(3, 2, 2, 2)), "W": rng.normal(size=(27, 4)), "b": rng.normal(size=4)}
    nodes = [
        node("Constant", [], ["c"], value_float=0.225),
        node("Div", ["x", "c"], ["q"]),
        node("Conv", ["q", "K"], ["a"]),
        node("Relu", ["a"], ["r"]),
        node("Reshape", ["r", "s"], ["f"]),
        node("Gemm", ["f", "W", "b"], ["y"]),
    ]
    shape = {"s": np.array([1 if batch == 1 else -1 if batch == "N" else 2, 27])}
    reading = read(save(graph(nodes, constants | shape, [2, 4, 4], batch=batch), tmp_path))
    x = inputs((2, 4, 4))
    found = compare(reading.network, reading.original, x, torch.ones(3))
    assert found.precision == "float64" and found.points == 15 and found.absolute < 1e-12
    with pytest.raises(BadInput, match="not read as it is computed"):
        compare(nudged(reading.network, 0, 1e-9), reading.original, x, torch.ones(3))
