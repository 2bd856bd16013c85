"""A sharded model in a group of one process, and several processes as threads of this one: what they say and add."""

import contextlib
import copy
import threading
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import distributed, nn
from torch.nn import functional as F
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.training import precision, sharding
from equipoise.training.loop import OneLoss, TrainerSettings, fit, mean_gradient
from equipoise.training.precision import Sample
from equipoise.training.two_gradients import TwoGradients
from equipoise.unlearning import pcgrad

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def group():
    """This process alone, in which FSDP2 splits as in a larger group."""
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    yield
    distributed.destroy_process_group()


class Net(nn.Module):
    def __init__(self, seed=0, dtype=torch.float64):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 9)])
        self.rare = nn.Parameter(torch.ones(3))
        self.wide = nn.Parameter(torch.ones(2, 3))
        self.never = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.to(dtype)

    def forward(self, tokens):
        first, second = self.blocks
        logits = second(torch.tanh(first(self.embedding(tokens))))
        if 8 in tokens.tolist():  # by one process only
            more = self.rare.square().sum() + self.wide.to(logits.dtype).square().sum()
            logits = logits + (tokens == 8).unsqueeze(-1) * more * torch.linspace(0, 1, 9, dtype=logits.dtype)
        return logits


def loss(sign=1.0):
    def loss(model, batch):
        tokens, targets, counts = batch
        each = F.cross_entropy(model(tokens), targets, reduction="none")
        return sign * (each * counts).sum(), counts.sum()

    return loss


DATA = [(i % 9, (3 * i + 1) % 9, 1 + i % 4) for i in range(27)]
SETTINGS = TrainerSettings(steps=4, learning_rate=0.02, batch_size=5, micro_batch_size=2)


def collate(examples):
    return torch.tensor(examples).T


def draw(index):
    return DATA[4 + index : 9 + index]  # an odd number: unequal shares


# The group of one.


def test_outside_of_a_group_nothing_is_split():
    with pytest.raises(BadInput) as caught:
        sharding.shard(Net(), [])
    assert str(caught.value) == (
        "--shard splits a model over several processes, and this is one: start it with torchrun."
    )
    model = nn.Linear(2, 2)
    assert not sharding.is_sharded(model)
    model.bias.placements = ()
    with pytest.raises(BadInput) as caught:
        sharding.is_sharded(model)
    assert str(caught.value) == (
        "the model is split over processes, but not by FSDP2: unsplit it, or split it with shard()."
    )
    whole = torch.ones(2)
    assert sharding.local(whole) is sharding.whole(whole) is whole
    assert sharding.from_local(whole, torch.zeros(2)) is sharding.from_whole(whole, torch.zeros(2)) is whole


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(
    ("dtype", "reduce"), [(torch.float64, None), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)]
)
def test_what_is_asked_of_fsdp(monkeypatch, dtype, reduce):
    """Blocks first, then the whole, all gathered anew each time; gradients are summed, those of 16 bits in float32."""
    from torch.distributed import fsdp

    asked, sent = [], []
    fully_shard, broadcast = fsdp.fully_shard, distributed.broadcast
    factor, force = fsdp.FSDPModule.set_gradient_divide_factor, fsdp.FSDPModule.set_force_sum_reduction_for_comms

    def record(module, *, mesh, mp_policy, reshard_after_forward):
        asked.append((module, mesh.size(), mp_policy.reduce_dtype, reshard_after_forward))
        return fully_shard(module, mesh=mesh, mp_policy=mp_policy, reshard_after_forward=reshard_after_forward)

    said = []
    monkeypatch.setattr(fsdp, "fully_shard", record)
    monkeypatch.setattr(
        distributed, "broadcast", lambda t, src: (sent.append((tuple(t.shape), src)), broadcast(t, src))
    )
    monkeypatch.setattr(
        fsdp.FSDPModule, "set_gradient_divide_factor", lambda self, by: (said.append((self, by)), factor(self, by))[1]
    )
    monkeypatch.setattr(
        fsdp.FSDPModule,
        "set_force_sum_reduction_for_comms",
        lambda self, on: (said.append((self, on)), force(self, on))[1],
    )
    model = Net(dtype=dtype)
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    sharding.shard(model, [*model.blocks])
    first, second = model.blocks
    assert asked == [(module, 1, reduce, True) for module in (first, second, model)]
    assert sent == [(shape, 0) for shape in shapes]
    assert said == [(module, each) for module in (model, first, second) for each in (1.0, True)]
    assert sharding.is_sharded(model)


@pytest.mark.usefixtures("group")
def test_parts_and_wholes_of_a_split_tensor(monkeypatch):
    model = Net()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    empty = sharding.outline(model)
    assert all(parameter.device.type == "meta" for parameter in empty.parameters())
    sharding.shard(model, model.blocks)
    weight = model.blocks[1].weight
    part = sharding.local(weight.detach())
    assert not hasattr(part, "placements") and torch.equal(part, before["blocks.1.weight"])
    part[0] += 1  # on the same memory
    assert torch.equal(sharding.whole(weight), part) and not torch.equal(part, before["blocks.1.weight"])
    with monkeypatch.context() as patch:  # asked of every parameter at every step: no process waits for another
        patch.setattr(distributed, "all_gather_object", None)
        again = sharding.from_local(part * 2, weight)
    assert again.placements == weight.placements and again.device_mesh == weight.device_mesh
    assert (again.shape, again.stride()) == (weight.shape, weight.stride()) and torch.equal(
        sharding.whole(again), part * 2
    )
    split = sharding.from_whole(part * 3, weight)
    assert split.placements == weight.placements and torch.equal(sharding.whole(split), part * 3)
    filled = sharding.gathered(model, empty)
    assert filled is empty and not sharding.is_sharded(filled)
    assert filled.blocks[1].weight.tolist() == part.tolist()
    for name, parameter in filled.named_parameters():
        assert parameter.requires_grad == (name != "frozen")
        assert name == "blocks.1.weight" or torch.equal(parameter, before[name])


@pytest.mark.usefixtures("group")
def test_a_tied_and_a_missing_parameter_are_gathered_as_they_were():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    empty = sharding.outline(model)
    filled = sharding.gathered(model, empty)
    assert filled[1].weight is filled[0].weight and filled[1].bias is None
    assert torch.equal(filled[0].weight, model[0].weight)


@pytest.mark.usefixtures("group")
def test_a_sharded_training_ends_where_another_does():
    """Its moments and weights as a whole in what is saved, and from there to the same end."""
    step = TwoGradients(loss(-1.0), loss(), pcgrad.combine, groups=True)

    def gather(examples):
        return collate(examples), collate(examples[:1])

    ends, seen, states = [], [], []
    for split in (False, True):
        model = Net()
        if split:
            sharding.shard(model, model.blocks)
        moments, kept = [], []
        fit(
            model, step, draw, SETTINGS, collate=gather, save_every=2,
            callbacks=[lambda each, moments=moments: moments.append(each.metrics)],
            save=lambda state, kept=kept: kept.append(copy.deepcopy(state)),
        )  # fmt: skip
        ends.append({name: sharding.whole(p.detach()) for name, p in model.named_parameters()})
        seen.append(moments)
        states.append(kept)
    assert_close(ends[1], ends[0], rtol=1e-12, atol=1e-12)
    assert [each.keys() for each in seen[1]] == [each.keys() for each in seen[0]]
    for one, other in zip(*seen, strict=True):
        assert one == pytest.approx(other, rel=1e-9, nan_ok=True)
    assert [state["step"] for state in states[1]] == [2, 4]
    for whole, gathered in zip(*states, strict=True):
        assert not any(hasattr(tensor, "placements") for tensor in gathered["parameters"].values())
        assert_close(gathered["parameters"], whole["parameters"], rtol=1e-12, atol=1e-12)
        assert_close(gathered["moments"], whole["moments"], rtol=1e-9, atol=1e-15)
    again = Net()
    sharding.shard(again, again.blocks)
    fit(again, step, draw, SETTINGS, collate=gather, state=states[1][0])
    for name, parameter in again.named_parameters():
        assert torch.equal(sharding.whole(parameter.detach()), ends[1][name])


def test_shares_that_moved_are_added_over_processes(monkeypatch):
    parameter = nn.Parameter(torch.zeros(10))
    sample = Sample([parameter])
    with torch.no_grad():
        parameter[:4] = 1
    assert sample.moved() == 0.4
    parameter.placements = ("split",)
    monkeypatch.setattr(precision, "sum_over_processes", lambda counts: counts + torch.tensor([6.0, 30.0]))
    assert sample.moved() == 10 / 40


# Two processes as threads.


class Pair:
    """Stands for torch.distributed in two threads: what both hand to it is added in both, and there after `wait`."""

    def __init__(self, monkeypatch):
        self.barrier = threading.Barrier(2, timeout=20)
        self.here = threading.local()
        self.handed = {}
        monkeypatch.setattr(distributed, "all_reduce", self.all_reduce)
        monkeypatch.setattr(distributed, "broadcast", self.broadcast)

    def exchanged(self, tensor):
        self.handed[self.here.index] = tensor.detach().clone()
        self.barrier.wait()
        both = self.handed[0], self.handed[1]
        self.barrier.wait()
        assert (both[0].shape, both[0].dtype) == (both[1].shape, both[1].dtype)
        return both

    def all_reduce(self, tensor, async_op=False):
        one, other = self.exchanged(tensor)
        if async_op:
            return SimpleNamespace(wait=lambda: tensor.copy_(one + other))
        tensor.copy_(one + other)
        return None

    def broadcast(self, tensor, src):
        tensor.copy_(self.exchanged(tensor)[src])

    def run(self, work):
        """work(accelerator) in both; its two results."""
        found = [None, None]

        def process(index):
            self.here.index = index
            try:
                found[index] = work(
                    SimpleNamespace(
                        num_processes=2, process_index=index, is_main_process=index == 0, device=CPU,
                        mixed_precision="no", autocast=contextlib.nullcontext, backward=lambda loss: loss.backward(),
                    )
                )  # fmt: skip
            except BaseException as error:
                found[index] = error
                self.barrier.abort()

        threads = [threading.Thread(target=process, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return found


@pytest.fixture
def pair(monkeypatch):
    monkeypatch.setattr("equipoise.training.loop.random_state_kept", lambda device: contextlib.nullcontext())
    return Pair(monkeypatch)


def narrowed(model):
    """One parameter of 16 bits, which one process alone reaches."""
    model.wide = nn.Parameter(model.wide.to(torch.bfloat16))
    return model


@pytest.mark.parametrize("count", [5, 2, 1])
def test_the_gradient_of_two_is_that_of_one(pair, count):
    """Unequal shares, or none at all for the second; what one alone reaches is in both, what nobody reaches in none."""
    examples = DATA[8 : 8 + count]

    def gradient(accelerator, batches):
        model = narrowed(Net())
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        mean, gradients = mean_gradient(loss(), model, list(trained.values()), batches, accelerator)
        assert all(parameter.grad is None for parameter in trained.values())
        return mean.item(), dict(zip(trained, gradients, strict=True))

    mean, expected = gradient(Accelerator(cpu=True), [collate(examples)])
    shares = [examples[::2], examples[1::2]]
    batches = [[collate(share[i : i + 2]) for i in range(0, len(share), 2)] for share in shares]
    for its_mean, found in pair.run(lambda accelerator: gradient(accelerator, batches[accelerator.process_index])):
        assert its_mean == pytest.approx(mean, rel=1e-12)
        assert found.pop("never") is None
        assert found["wide"].dtype == torch.float32
        for name, tensor in found.items():
            exact = name != "wide"
            assert_close(tensor, expected[name].to(tensor.dtype), rtol=1e-12 if exact else 1e-2, atol=1e-15)


def test_a_training_of_two_is_that_of_one(pair, tmp_path):
    """Unequal weights at the beginning; the first process counts, alone writes and saves; one that stops, stops both."""
    ends, saved, logs = [], [], []
    for name in ("one", "two"):
        states = []

        def work(accelerator, states=states, name=name):
            model = Net(seed=accelerator.process_index)
            main = accelerator.is_main_process
            result = fit(
                model, OneLoss(loss()), draw, SETTINGS.model_copy(update={"steps": 9}), collate=collate,
                accelerator=accelerator, log=tmp_path / f"{name}.{accelerator.process_index}", save_every=2,
                save=lambda state: states.append((accelerator.process_index, copy.deepcopy(state))),
                callbacks=[lambda moment: main and moment.step == 3],
            )  # fmt: skip
            assert (result.steps, result.stopped) == (3, True)
            return {key: value.detach() for key, value in model.named_parameters() if value.requires_grad}

        ends += [work(Accelerator(cpu=True))] if name == "one" else pair.run(work)
        saved.append(states)
        logs.append((tmp_path / f"{name}.0").read_text().splitlines())
    for end in ends[1:]:
        assert_close(end, ends[0], rtol=1e-10, atol=1e-12)
    assert all(torch.equal(ends[1][name], ends[2][name]) for name in ends[1])
    assert not (tmp_path / "two.1").exists() and len(logs[1]) == len(logs[0]) == 3
    assert [(process, state["step"], state["stopped"]) for process, state in saved[1]] == [(0, 2, False), (0, 3, True)]
    assert_close(saved[1][1][1]["parameters"], saved[0][1][1]["parameters"], rtol=1e-10, atol=1e-12)


def test_a_process_without_an_example_takes_part(pair):
    settings = SETTINGS.model_copy(update={"micro_batch_size": None})

    def work(accelerator):
        model = Net()
        fit(
            model,
            OneLoss(loss()),
            lambda index: DATA[index : index + 1],
            settings,
            collate=collate,
            accelerator=accelerator,
        )
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    alone = work(Accelerator(cpu=True))
    for end in pair.run(work):
        assert_close(end, alone, rtol=1e-10, atol=1e-12)
