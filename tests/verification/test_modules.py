"""Torch modules: read as they compute in evaluation mode, or refused with a sentence; never changed."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.verification.from_torch import Normalize, from_module


def x_for(shape, count=3):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def moved(module):
    """Every parameter and stored mean away from what it begins with, so that a part that is left out shows."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in itertools.chain(module.parameters(), module.buffers()):
            if each.is_floating_point():
                each.add_(torch.rand(each.shape, generator=rng) * 0.5)
    return module


def computed(module, x):
    """What a copy of the module says in evaluation mode and float64."""
    with torch.no_grad():
        return copy.deepcopy(module).double().eval()(x.clone()).flatten(1)


def read_or_refused(module, shape):
    """Whether it was read, in which case it is equal to the module."""
    try:
        network = from_module(module, shape)
    except BadInput as error:
        assert str(error).endswith(".")
        return False
    x = x_for(shape)
    assert_close(network(x), computed(module, x), rtol=1e-12, atol=1e-12)
    return True


class Call(nn.Module):
    """A module that computes `function(self, x)`, with a linear map, an in-place ReLU and constants at hand."""

    def __init__(self, function, shape=(4,)):
        super().__init__()
        self.function, self.linear, self.other = function, nn.Linear(shape[-1], shape[-1]), nn.Linear(shape[-1], 3)
        self.inplace, self.same, self.weight = (
            nn.ReLU(inplace=True),
            nn.Identity(),
            nn.Parameter(torch.ones(3, shape[-1])),
        )
        self.register_buffer("row", torch.linspace(1, 2, shape[-1]))

    def forward(self, x):
        return self.function(self, x)


def test_layers_with_odd_settings():
    shape, found = (2, 5, 6), []
    for padding, dilation, groups in itertools.product((0, 1, (2, 1), "same", "valid"), (1, (2, 1)), (1, 2)):
        layer = nn.Conv2d(2, 4, (3, 2), padding=padding, dilation=dilation, groups=groups, bias=groups == 1)
        found.append(read_or_refused(moved(layer), shape))
    for mode in ("reflect", "replicate", "circular"):
        found.append(read_or_refused(nn.Conv2d(2, 4, 3, padding=1, padding_mode=mode), shape))
    for stride, padding, ceil, counts, divisor in itertools.product(
        (None, (1, 2)), (0, 1), *[(True, False)] * 2, (None, 3)
    ):
        found.append(read_or_refused(nn.AvgPool2d((3, 2), stride, padding, ceil, counts, divisor), shape))
    for affine, tracks, (layers, width) in itertools.product(
        (True, False), (True, False), (((), 2), ((nn.Conv2d(2, 3, 1),), 3), ((nn.Conv2d(2, 3, 1), nn.Flatten()), 90))
    ):
        kind = nn.BatchNorm1d if width == 90 else nn.BatchNorm2d
        norm = kind(width, eps=0.25, affine=affine, track_running_stats=tracks)
        found.append(read_or_refused(moved(nn.Sequential(*layers, norm)), shape))
    for begin, end in itertools.product((1, 2, -1, -3), (-1, 1, 2, 3)):
        if (begin % 4) <= (end % 4):
            found.append(read_or_refused(nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(begin, end)), shape))
    for dimensions, keep in itertools.product(((2, 3), [-1, -2], (1, 2), -1, 0), (True, False)):
        module = Call(lambda self, x, over=dimensions, keep=keep: x.mean(over, keepdim=keep))
        found.append(read_or_refused(module, shape))
    for size in (1, 2, (1, None), (None, 3), (5, 2), (5, 6)):
        found.append(read_or_refused(nn.Sequential(nn.Conv2d(2, 3, 1), nn.AdaptiveAvgPool2d(size)), shape))
    assert sum(found) > 50 and not all(found)


def test_a_batch_normalisation_after_flatten_keeps_every_number():
    module = moved(nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 2)))
    assert read_or_refused(module, (1, 3, 3))


@pytest.mark.parametrize("kind", ["untouched", "trained", "run"])
@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
        lambda layer: prune.random_unstructured(prune.l1_unstructured(layer, "weight", 0.3), "weight", 0.3),
    ],
    ids=["weight_norm", "spectral_norm", "new weight_norm", "new spectral_norm", "prune", "prune twice"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_that_is_computed_is_never_a_stale_one(wrap, kind):
    """The attribute `weight` is what the last forward pass made; loading or training leaves it behind."""
    torch.manual_seed(0)
    module = nn.Sequential(wrap(nn.Linear(4, 8)), nn.ReLU(), wrap(nn.Linear(8, 3)))
    if kind != "untouched":
        moved(module)
    if kind == "run":
        module(torch.zeros(2, 4))  # the weight is no leaf now, which torch does not copy
    x, before = x_for((4,)), {name: each.clone() for name, each in module.state_dict().items()}
    network = from_module(module, (4,))
    assert module.training and all(torch.equal(each, module.state_dict()[name]) for name, each in before.items())
    with torch.no_grad():
        assert_close(network(x), module.double().eval()(x), rtol=1e-12, atol=1e-12)


def residual_in_place(self, x):
    kept = y = self.linear(x)
    y += x
    return self.other(y) + self.other(kept)


def residual_after_relu(self, x):
    y = self.linear(x)
    return self.inplace(y) + y


def changed_through_a_view(self, x):
    y = self.linear(x)
    y.view(-1, 4).mul_(2.0)
    return self.other(y)


READ = {
    "alpha of one": lambda self, x: torch.add(x, self.linear(x), alpha=1),
    "difference": lambda self, x: self.linear(x) - x,
    "twice": lambda self, x: x + x,
    "constants": lambda self, x: (2 * x - self.row) / 0.225 + 1.5,
    "constant less value": lambda self, x: self.row - x,
    "in place, not read again": lambda self, x: self.other(self.inplace(self.linear(x)).add_(1.0)),
    "functional layers": lambda self, x: F.linear(F.relu(x), self.weight * self.row, bias=self.weight[:, 0]),
    "dropout in evaluation": lambda self, x: F.dropout(self.other(x), 0.5, training=self.training),
    "a view by sizes": lambda self, x: self.other(x.view(x.size(0), 2, -1).reshape(-1, x.shape[1] * 1)),
    "identity of the input": lambda self, x: self.same(x) + self.linear(x),
    "a default of its own": lambda self, x, double=False: self.other(x) * (2 if double else 1),
}
REFUSED = {
    "alpha=2": lambda self, x: torch.add(x, self.linear(x), alpha=2),
    "alpha=3": lambda self, x: torch.sub(x, 1.0, alpha=3),
    "rounding_mode='floor'": lambda self, x: torch.div(x, 2.0, rounding_mode="floor"),
    "unexpected keyword argument 'out'": lambda self, x: torch.add(x, x, out=None),
    "method 'add_': .*changed in place|it reads a value that was changed": residual_in_place,
    "was changed in place": residual_after_relu,
    "reads a value that was changed in place": changed_through_a_view,
    "takes a part of a value": lambda self, x: x[:, :2],
    "training=True": lambda self, x: F.dropout(x, 0.5),
    "normalises by the batch": lambda self, x: F.batch_norm(x, self.row, self.row, training=True),
    "the attribute 'T'": lambda self, x: x.T,
    "clamp is not supported": lambda self, x: x.clamp(min=0),
    "multiplies or divides computed values": lambda self, x: x * self.linear(x),
    "constant is divided": lambda self, x: 1.0 / x,
    "softmax is not supported; drop a last one": lambda self, x: self.other(x).softmax(1),
    "its shape begins with 1": lambda self, x: x.view(1, -1),
    "flattens from dimension 0": lambda self, x: torch.flatten(x),
    "gives .*expected one computed value": lambda self, x: (x, x),
    "graph cannot be read": lambda self, x: x if x.sum() > 0 else -x,
}


@pytest.mark.parametrize("name", READ)
def test_functions_are_read_with_their_arguments(name):
    assert read_or_refused(Call(READ[name]), (4,))


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_consumed_is_refused_by_name(message):
    with pytest.raises(BadInput, match=message):
        from_module(Call(REFUSED[message]), (4,))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Shifted(Normalize):
    def forward(self, x):
        return super().forward(x) + 1


class Stubborn(nn.Dropout):
    def train(self, mode=True):
        self.training = True
        return self


def test_a_subclass_is_read_by_its_own_forward():
    assert read_or_refused(nn.Sequential(Doubled(4, 3)), (4,))
    for module, message in [
        (parametrizations.weight_norm(Doubled(4, 3)), "Doubled is not supported"),
        (nn.Sequential(nn.Linear(4, 4), Stubborn()), r"1 \(Stubborn\) stays in training mode"),
    ]:
        with pytest.raises(BadInput, match=message):
            from_module(nn.Sequential(module), (4,))
    with pytest.raises(BadInput, match="graph cannot be read"):
        from_module(nn.Sequential(Shifted([0.0], [1.0])), (4,))


def test_hooks_and_replaced_functions_are_refused_by_name():
    def hooked(register, hook, layer):
        module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        getattr(module if layer is None else module[layer], register)(hook)
        return module

    def doubles(module, args, output=None):
        return None

    for register, layer, message in [
        ("register_forward_hook", 0, r"0 \(Linear\) has a forward hook \(.*doubles\)"),
        ("register_forward_pre_hook", 1, r"1 \(ReLU\) has a forward pre-hook"),
        ("register_forward_hook", None, "the module itself .* has a forward hook"),
    ]:
        with pytest.raises(BadInput, match=message):
            from_module(hooked(register, doubles, layer), (4,))
    assert read_or_refused(hooked("register_full_backward_hook", lambda *given: None, 0), (4,))
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    try:
        with pytest.raises(BadInput, match="forward hook"):
            from_module(nn.Sequential(nn.Linear(4, 2)), (4,))
    finally:
        handle.remove()
    replaced = nn.Sequential(nn.Linear(4, 4))
    replaced[0].forward = lambda x: x
    with pytest.raises(BadInput, match=r"0 \(Linear\) has a forward or __call__ that was replaced"):
        from_module(replaced, (4,))


def test_parameters_that_are_no_plain_numbers_are_refused():
    for module, message in [
        (nn.Sequential(nn.Linear(4, 3, device="meta")), "meta"),
        (nn.Sequential(nn.Linear(4, 3, dtype=torch.complex64)), "complex"),
    ]:
        with pytest.raises(BadInput, match=message):
            from_module(module, (4,))
    with pytest.raises(BadInput, match="dimensions from 1"):
        from_module(nn.Linear(4, 3), (-4,))
    with pytest.raises(BadInput, match="16777216 numbers at most"):
        from_module(nn.Linear(4, 3), (2**40,))
    assert read_or_refused(nn.Linear(4, 3, dtype=torch.bfloat16), (4,))
