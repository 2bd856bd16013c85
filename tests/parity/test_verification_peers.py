"""Against auto_LiRPA 0.3 (CROWN under an l2 ball) and against exact minima from HiGHS, which know nothing of relaxations."""

import importlib
import itertools
import math
import sys
import types

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, milp
from torch import nn

from equipoise.verification.bounds import Search, crown, enclosures, geometry
from equipoise.verification.certificate import certified_margins, specifications
from equipoise.verification.from_torch import from_module
from equipoise.verification.network import Linear

pytestmark = pytest.mark.slow


def perceptron(seed, sizes):
    torch.manual_seed(seed)
    layers = [nn.Linear(sizes[0], sizes[1])]
    for n, m in itertools.pairwise(sizes[1:]):
        layers += [nn.ReLU(), nn.Linear(n, m)]
    return nn.Sequential(*layers).double().eval()


def test_crown_is_that_of_auto_lirpa(monkeypatch):
    pytest.importorskip("onnx", reason="auto_LiRPA needs it")
    shim = types.ModuleType("numpy.lib.arraysetops")
    shim.isin = np.isin
    monkeypatch.setitem(sys.modules, "numpy.lib.arraysetops", shim)
    symbolic_helper = importlib.import_module("torch.onnx.symbolic_helper")
    monkeypatch.setattr(symbolic_helper, "_set_opset_version", lambda version: None, raising=False)
    getitem = lambda self, key: getattr(self, self.kindOf(key))(key)  # noqa: E731
    monkeypatch.setattr(torch._C.Node, "__getitem__", getitem, raising=False)
    lirpa = pytest.importorskip("auto_LiRPA")
    from auto_LiRPA.perturbations import PerturbationLpNorm

    module = perceptron(0, (12, 20, 15, 4)).float()
    x = torch.rand(3, 12)
    network = from_module(module, (12,))
    labels = network(x.double()).argmax(1)
    c = specifications(labels, 4)
    for radius in (0.05, 0.3, 1.0):
        bounded = lirpa.BoundedModule(module, x[:1], verbose=False)
        ball = lirpa.BoundedTensor(x, PerturbationLpNorm(norm=2, eps=radius))
        theirs, _ = bounded.compute_bounds(x=(ball,), C=c.float(), method="CROWN", bound_upper=False)
        radii = torch.full((3,), radius, dtype=torch.float64)
        known = enclosures(network, x.double(), radii, geometry(network), boxes="crown")
        ours = crown(network, x.double(), radii, c, known)
        # Ours may be better where the Lipschitz box is smaller than CROWN's, never worse.
        assert (ours >= theirs.detach() - 1e-4).all()
        if radius < 0.1:
            torch.testing.assert_close(ours.float(), theirs.detach(), atol=2e-3, rtol=0)


def exact_minimum(network, c, low, high):
    """The minimum of c'f over the box [low, high], by mixed-integer programming with big constants from intervals."""
    layers = [layer for layer in network.layers if isinstance(layer, Linear)]
    n = len(low)
    sizes = [len(layer.weight) for layer in layers[:-1]]
    total = n + 3 * sum(sizes)  # per hidden layer: z, relu(z), active
    rows, lower, upper = [], [], []
    bounds_low, bounds_high, integral = np.full(total, -np.inf), np.full(total, np.inf), np.zeros(total)
    bounds_low[:n], bounds_high[:n] = low, high
    before, begin, least, most = np.arange(n), n, low, high

    def constrain(columns, coefficients, least, most):
        row = np.zeros(total)
        row[columns] = coefficients
        rows.append(row), lower.append(least), upper.append(most)

    for layer, m in zip(layers[:-1], sizes, strict=True):
        w, b = layer.weight.numpy(), layer.bias.numpy()
        least, most = (
            np.minimum(w * least, w * most).sum(1) + b,
            np.maximum(w * least, w * most).sum(1) + b,
        )
        z, y, active = (begin + k * m + np.arange(m) for k in range(3))
        integral[active] = 1
        bounds_low[active], bounds_high[active], bounds_low[y] = 0, 1, 0
        for i in range(m):
            big = max(abs(least[i]), abs(most[i])) + 1
            constrain([z[i], *before], [1, *-w[i]], b[i], b[i])
            constrain([y[i], z[i]], [1, -1], 0, np.inf)
            constrain([y[i], active[i]], [1, -big], -np.inf, 0)
            constrain([y[i], z[i], active[i]], [1, -1, big], -np.inf, big)
        before, begin, least, most = y, begin + 3 * m, np.maximum(least, 0), np.maximum(most, 0)
    w, b = layers[-1].weight.numpy(), layers[-1].bias.numpy()
    objective = np.zeros(total)
    objective[before] = c @ w
    constraints = LinearConstraint(np.array(rows), lower, upper)
    found = milp(objective, constraints=constraints, bounds=(bounds_low, bounds_high), integrality=integral)
    assert found.success
    return found.fun + c @ b


@pytest.mark.parametrize("seed", range(6))
def test_no_bound_is_above_the_exact_minimum_and_the_box_is_used(seed):
    """Over the box that a ball holds the minimum is exact; the bound over ball and box must lie below it, and near."""
    network = from_module(perceptron(seed, (3, 6, 5, 3)), (3,))
    x = torch.full((1, 3), 0.5, dtype=torch.float64)
    labels, half = network(x).argmax(1), 0.2
    c = specifications(labels, 3)[0].numpy()
    low, high = x[0].numpy() - half, x[0].numpy() + half
    exact = np.array([exact_minimum(network, row, low, high) for row in c])
    radius = torch.tensor([half * math.sqrt(3)], dtype=torch.float64)  # the ball around the box
    search = Search(iterations=200, dtype=torch.float64)
    (found,) = certified_margins(network, x, radius, labels, box=(0.5 - half, 0.5 + half), search=search)
    bound = found.margins[0].numpy()
    assert (bound <= exact + 1e-6).all()
    assert (exact - bound < 0.15).all()
    inside = torch.tensor([half], dtype=torch.float64)  # the ball inside the box
    (smaller,) = certified_margins(network, x, inside, labels, search=search)
    assert (smaller.margins[0].numpy() >= bound - 1e-6).all()
