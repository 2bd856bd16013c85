"""Accelerators of one process for several devices, and what is asked of several processes."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import nn

from equipoise.core.errors import BadInput
from equipoise.training import team
from equipoise.training.loop import Optimization, TrainerSettings, mean_gradient
from equipoise.training.team import accelerator_for


@pytest.fixture
def an_accelerator_elsewhere():
    """What a first training on a GPU leaves: this process' device is another than that of the next model."""
    before = dict(PartialState._shared_state), dict(AcceleratorState._shared_state)
    Accelerator()
    PartialState().device = AcceleratorState().device = torch.device("meta")
    yield
    for state, kept in zip((PartialState, AcceleratorState), before, strict=True):
        state._shared_state.clear()
        state._shared_state.update(kept)


def test_a_model_is_trained_where_it_is_whatever_was_trained_before(an_accelerator_elsewhere):
    accelerator = accelerator_for("cpu")
    assert accelerator.device.type == "meta"  # what Accelerate says of it
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0]]))
    batch = {"x": torch.tensor([[3.0, 1.0], [0.0, 2.0]])}

    def loss(model, batch):
        return model(batch["x"]).square().sum(), 2.0

    mean, (gradient,) = mean_gradient(loss, model, list(model.parameters()), [batch], accelerator)
    assert mean.item() == 4 and gradient.tolist() == [[6.0, -2.0]]
    optimization = Optimization(model, TrainerSettings(steps=1, learning_rate=0.1, batch_size=2))
    numbers = optimization.update(
        lambda model, window, accelerator, index: (
            list(mean_gradient(loss, model, list(model.parameters()), window, accelerator)[1]),
            {},
        ),
        batch["x"].tolist(),
        lambda rows: {"x": torch.tensor(rows)},
    )
    assert numbers["gradient_norm"] == pytest.approx(40**0.5)


@pytest.mark.parametrize(
    ("started", "holding", "refused"), [(None, 1, False), ("1", 1, False), ("2", 1, True), ("2", 2, False)]
)
def test_processes_that_would_not_know_of_each_other_are_refused(started, holding, refused, monkeypatch):
    accelerator = SimpleNamespace(num_processes=holding, is_main_process=False)
    monkeypatch.setattr(team, "accelerator_for", lambda device: accelerator)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if started is not None:
        monkeypatch.setenv("WORLD_SIZE", started)
    if refused:
        with pytest.raises(
            BadInput, match="2 processes were started, but without GPUs each is alone: add --device cpu"
        ):
            team.Team.of("cuda")
        return
    assert team.Team.of("cuda").accelerator is accelerator and team.Team.of("cuda").main is False


@pytest.mark.parametrize(("device", "before", "cpu"), [
    ("cpu", False, True), ("cpu", True, False), ("cuda:1", False, False), ("mps", False, False),
])  # fmt: skip
def test_an_accelerator_is_told_of_a_cpu_unless_one_was_made_before(device, before, cpu, monkeypatch):
    asked = []
    monkeypatch.setattr(team, "Accelerator", lambda **how: asked.append(how))
    monkeypatch.setattr(team, "is_initialized", lambda: before)
    team.accelerator_for(device)
    team.accelerator_for(torch.device(device))
    assert asked == [{"cpu": cpu}] * 2
