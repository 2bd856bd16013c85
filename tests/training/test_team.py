"""Accelerators of one process for several devices."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import nn

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
