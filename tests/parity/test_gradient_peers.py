"""PCGrad over all tensors against TorchJD 0.18 and against a float64 sum in NumPy."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.unlearning import gradient_sum, pcgrad

pytestmark = pytest.mark.slow
torchjd = pytest.importorskip("torchjd")


def toy(seed):
    """Gradients of two losses of one small net, as lists and as TorchJD's matrix."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    x, y = torch.randn(10, 6).double(), torch.randint(3, (10,))
    first = -torch.nn.functional.cross_entropy(net(x), y)
    second = net(x + 0.3).square().mean() + torch.nn.functional.cross_entropy(net(x[:5]), y[:5])
    lists = [list(torch.autograd.grad(loss, list(net.parameters()))) for loss in (first, second)]
    return lists, torch.stack([torch.cat([t.flatten() for t in side]) for side in lists])


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def test_pcgrad_against_torchjd():
    """TorchJD projects both gradients, as `combine_symmetric` does; `combine_global` projects only the forget gradient."""
    from torchjd.aggregation import PCGrad

    conflicts = 0
    for seed in range(12):
        (forget, retain), matrix = toy(seed)
        theirs = PCGrad()(matrix)
        # They have no 1e-10 in the denominator.
        assert_close(flat(pcgrad.combine_symmetric(forget, retain)), theirs, rtol=1e-7, atol=1e-9)
        f, r = matrix
        conflicts += bool(f.dot(r) < 0)
        assert torch.allclose(flat(pcgrad.combine_global(forget, retain)), theirs) == bool(f.dot(r) >= 0)
    assert conflicts >= 4


def test_pcgrad_where_the_symmetric_projection_does_nothing():
    """Orthogonal gradients: nobody projects anything."""
    from torchjd.aggregation import PCGrad, Sum

    f = torch.tensor([1.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    r = torch.tensor([0.0, 0.0, 3.0, -1.0], dtype=torch.float64)
    assert_close(pcgrad.combine_global([f], [r])[0], PCGrad()(torch.stack([f, r])))
    assert_close(gradient_sum.combine([f], [r])[0], Sum()(torch.stack([f, r])))


def test_inner_products_keep_their_digits():
    """<f, r> of 2 M float32 coordinates that nearly cancel: within 1e-6 of the float64 value's scale."""
    generator = np.random.default_rng(0)
    f, r = generator.standard_normal((2, 2_000_000)).astype(np.float32)
    expected = float(f.astype(np.float64) @ r.astype(np.float64))
    scale = float(np.linalg.norm(f.astype(np.float64)) * np.linalg.norm(r.astype(np.float64)))
    assert abs(expected) < 1e-2 * scale
    tensors = [torch.from_numpy(f)], [torch.from_numpy(r)]
    coefficient = min(expected, 0) / (float(r.astype(np.float64) @ r.astype(np.float64)) + 1e-10)
    projected = f.astype(np.float64) - coefficient * r
    assert_close(pcgrad.combine_global(*tensors, retain_weight=0.0)[0].double().numpy(), projected, rtol=0, atol=1e-6)
