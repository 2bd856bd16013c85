"""Weights of 16 bits: the trajectory of float32, rounded; bit by bit again after a kill; and what share of them moved."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from equipoise.core.errors import WorkFailed
from equipoise.core.state import load_state, save_state
from equipoise.training import precision
from equipoise.training.loop import OneLoss, TrainerSettings, fit
from equipoise.training.memory import memory_advice
from equipoise.training.precision import Sample, bytes_of_training
from equipoise.training.two_gradients import TwoGradients
from equipoise.unlearning import sago

SLOPES = torch.tensor([[2.0, -2.0, 0.5, 3.0], [-1.0, 0.25, 4.0, -0.5]])
STEPS = 40


class Net(nn.Module):
    """Some layers that learn in earnest, and a table of weights between 0.02 and 2, as models have them."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7)
        self.table = nn.Parameter(torch.empty(64, 4))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.02 + 2 * torch.rand(parameter.shape, generator=generator))

    def forward(self, tokens):
        return self.head(self.embedding(tokens) + self.table[tokens])


def along(sign=1.0):
    """A loss with the same gradient wherever the weights are: bfloat16 and float32 then get the same updates."""

    def loss(model, batch):
        rows = SLOPES.to(model.table.dtype)[batch]
        return sign * (model.table.sum(0) * rows).float().sum(), len(batch)

    return loss


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch).float(), (3 * batch + 1) % 7, reduction="sum"), len(batch)


def run(model, step, *, learning_rate=1e-5, steps=STEPS, **options):
    settings = TrainerSettings(steps=steps, learning_rate=learning_rate, batch_size=4)
    draw = lambda index: [index % 2, (index + 1) % 2, 1, 0]  # noqa: E731
    return fit(model, step, draw, settings, **{"collate": torch.tensor, **options})


def table_alone(dtype):
    model = Net().to(torch.bfloat16).to(dtype)  # both begin at numbers that bfloat16 has
    model.embedding.requires_grad_(False)
    model.head.requires_grad_(False)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("two", [False, True], ids=["one loss", "two gradients"])
def test_the_end_is_the_rounded_end_of_float32(dtype, two):
    wide, narrow = table_alone(torch.float32), table_alone(dtype)
    start = narrow.table.detach().clone()
    step = TwoGradients(along(-0.5), along(), sago.combine) if two else OneLoss(along())
    batch = (lambda rows: (torch.tensor(rows), torch.tensor(rows[:3]))) if two else torch.tensor
    whole, rounded = (run(model, step, learning_rate=1e-4, collate=batch) for model in (wide, narrow))
    assert torch.equal(narrow.table, wide.table.to(dtype))
    assert whole.moved == 1.0
    expected = (wide.table.to(dtype) != start).float().mean().item()
    assert rounded.moved == pytest.approx(expected, abs=1e-9) and expected > 0.2
    assert narrow.table.dtype == dtype and narrow.table.grad is None


def test_updates_below_the_last_bit_add_up():
    """1.0 in bfloat16 has 1 - 2^-8 below it; 40 steps of 2e-4 come to 8e-3, though each alone would be rounded away."""
    model = table_alone(torch.bfloat16)
    with torch.no_grad():
        model.table.fill_(1.0)

    def falling(model, batch):
        return model.table.float().sum(), 1

    run(model, OneLoss(falling), learning_rate=2e-4)
    assert (model.table == 1 - 2**-8).all()
    still = table_alone(torch.bfloat16)
    with torch.no_grad():
        still.table.fill_(1.0)
    assert run(still, OneLoss(falling), learning_rate=1e-6).moved == 0.0


def test_a_kill_changes_nothing(tmp_path):
    """What is stored are the copies in float32: resumed from any step, through a file, the end is bit by bit the same."""
    begun = Net().to(torch.bfloat16)
    whole, states = copy.deepcopy(begun), []

    def save(state):
        save_state(tmp_path / f"{state['step']}.safetensors", state)
        states.append(state["step"])

    result = run(whole, OneLoss(cross_entropy), learning_rate=1e-3, steps=6, save=save, save_every=1)
    assert states == [1, 2, 3, 4, 5, 6]
    for step in states:
        state = load_state(tmp_path / f"{step}.safetensors")
        stored = state["parameters"]["table"]
        assert stored.dtype == state["moments"]["table"]["exp_avg"].dtype == torch.float32
        assert step == 6 or not torch.equal(stored, stored.bfloat16().float())
        again = copy.deepcopy(begun)
        assert run(again, OneLoss(cross_entropy), learning_rate=1e-3, steps=6, state=state).moved == result.moved
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True)), step
    assert 0 < result.moved < 1  # some rows of the table are never read


def test_share_that_moved_counts_weights_and_not_matrices(monkeypatch):
    first, second = nn.Parameter(torch.zeros(1000, 30)), nn.Parameter(torch.zeros(10))
    sample = Sample([first, second, nn.Parameter(torch.zeros(0))])
    assert sample.moved() == 0.0
    with torch.no_grad():
        first[:250] += 1
    assert sample.moved() == pytest.approx(7500 / 30010, abs=1e-12)
    monkeypatch.setattr(precision, "SAMPLED", 3000)
    drawn = Sample([first, second])
    with torch.no_grad():
        first[:, 7] += 1  # a column: places at equal distances could all miss it
    assert drawn.moved() == pytest.approx(1 / 30, abs=4 * (29 / 900 / 3000) ** 0.5)


def test_bytes_beside_the_weights():
    wide, narrow = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(5, dtype=torch.bfloat16))
    assert bytes_of_training([wide]) == 5 * 4 * 4  # gradient, two moments, update
    assert bytes_of_training([narrow], gradients=2) == 5 * 4 * 6  # and the copy
    assert (
        bytes_of_training([wide, narrow, nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))]) == 80 + 100 + 6 * 8 * 4
    )
    assert bytes_of_training([]) == 0


def test_a_sample_is_of_as_many_weights_as_are_stated(monkeypatch):
    """All of them up to the limit, each once; above it so many of each, drawn from one seed."""
    assert precision.SAMPLED == 1_048_576
    monkeypatch.setattr(precision, "SAMPLED", 10)
    exact = nn.Parameter(torch.zeros(10))
    sample = Sample([exact])
    for count in range(10):
        assert sample.moved() == pytest.approx(count / 10)
        exact.data[count] = 1
    more, none = nn.Parameter(torch.zeros(5, 3)), nn.Parameter(torch.zeros(0))
    sample = Sample([none, more])
    drawn = torch.randint(15, (10,), generator=torch.Generator().manual_seed(0))
    for place in range(15):
        more.data.zero_().view(-1)[place] = 1
        assert sample.moved() == pytest.approx((drawn == place).double().mean().item())


def test_what_an_optimizer_moves():
    """The weights themselves, or copies of those of 16 bits, which are rounded into them and nothing else."""
    kinds = {str(dtype): nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64)}  # fmt: skip
    moved = precision.masters(kinds)
    assert [moved[name] is kinds[name] for name in kinds] == [False, False, True, True]
    assert [each.dtype for each in moved.values()] == [torch.float32] * 3 + [torch.float64]
    for master in moved.values():
        master.data.fill_(1 + 2**-12)
    precision.round_into(kinds.values(), moved.values())
    assert [each[0].item() for each in kinds.values()] == [1.0, 1.0, 1 + 2**-12, 1 + 2**-12]
    assert moved["torch.bfloat16"][0].item() == 1 + 2**-12


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("none left"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried"),
        RuntimeError("MPS backend Out Of Memory"),
    ],
)
def test_a_host_without_memory_says_so(error):
    with pytest.raises(WorkFailed, match=r"Out of memory at noon: buy some\."), memory_advice("at noon", "buy some"):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), memory_advice("at noon", "buy some"):
        raise RuntimeError("shapes do not match")


def test_a_process_that_holds_nothing_of_a_model_has_a_sample_of_nothing():
    sample = Sample([nn.Parameter(torch.zeros(0))])
    assert sample._start[0].shape == (0,) and sample._places == [None]
