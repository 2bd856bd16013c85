"""Two processes end where one does, in float64, each holding half of the batch; both losses, all reductions."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from equipoise.core.state import load_state
from ports import free_port

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from equipoise.core.state import save_state
from equipoise.training.loop import OneLoss, TrainerSettings, fit
from equipoise.training.two_gradients import TwoGradients
from equipoise.unlearning import pcgrad, sago

accelerator = Accelerator(cpu=True)
folder = Path(sys.argv[1])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.inner = nn.Linear(4, 9)
        self.rare = nn.Parameter(torch.ones(3))
        self.double()
        generator = torch.Generator().manual_seed(accelerator.process_index)  # drawn apart, as an adapter may be
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def forward(self, tokens):
        return self.inner(torch.tanh(self.embedding(tokens)))


def loss(sign):
    def loss(model, batch):
        tokens, targets, counts = batch
        each = F.cross_entropy(model(tokens), targets, reduction="none")
        total = sign * (each * counts).sum()
        if 8 in tokens.tolist():  # reached in one process only
            total = total + model.rare.square().sum()
        return total, counts.sum()
    return loss


data = [(i % 9, (3 * i + 1) % 9, 1 + i % 4) for i in range(27)]
one = lambda index: data[index : index + 5]  # an odd number: the processes have unequal shares
two = lambda index: [(data[i], data[(5 * i + 2) % 27]) for i in range(index, index + 5)]
single = lambda examples: torch.tensor(examples).T
paired = lambda examples: tuple(torch.tensor(side).T for side in zip(*examples))
steps = {
    "one": (OneLoss(loss(1)), one, single),
    "sago": (TwoGradients(loss(-1), loss(1), sago.combine, groups=True), two, paired),
    "pcgrad": (TwoGradients(loss(-1), loss(1), pcgrad.combine), two, paired),
    "alone": (OneLoss(loss(1)), lambda index: data[index : index + 1], single),  # nothing for the second process
}
for name, (step, draw, collate) in steps.items():
    model = Net()
    moments = []
    result = fit(
        model, step, draw, TrainerSettings(steps=6, learning_rate=0.02, batch_size=5, micro_batch_size=2), collate=collate,
        accelerator=accelerator, log=folder / f"{name}.jsonl",
        callbacks=[lambda moment: accelerator.is_main_process and moment.step == 5],
        save=lambda state: save_state(folder / f"{name}.state", state),
    )
    assert result.steps == 5 and result.stopped
    weights = {key: value.detach() for key, value in model.named_parameters()}
    save_state(folder / f"{name}.{accelerator.process_index}", weights)
"""


SIXTEEN_BITS = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from equipoise.core.state import load_state, save_state
from equipoise.training import sharding
from equipoise.training.loop import OneLoss, TrainerSettings, fit

accelerator = Accelerator(cpu=True)
folder = Path(sys.argv[1])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(8, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.bfloat16()

    def forward(self, tokens):
        first, second = self.blocks
        return second(torch.tanh(first(self.embedding(tokens))))


def loss(model, batch):
    return F.cross_entropy(model(batch).float(), (3 * batch + 1) % 8, reduction="sum"), len(batch)


def run(name, shard, state=None):
    model = Net()
    empty = sharding.outline(model)
    if shard:
        sharding.shard(model, model.blocks)
    result = fit(
        model, OneLoss(loss), lambda index: [(index + i) % 8 for i in range(4)],
        TrainerSettings(steps=12, learning_rate=2e-4, batch_size=4), collate=torch.tensor, accelerator=accelerator,
        save_every=5, save=lambda state: save_state(folder / f"{name}.{state['step']}", state), state=state,
    )
    accelerator.wait_for_everyone()
    whole = sharding.gathered(model, empty) if shard else model
    found = {key: value.detach() for key, value in whole.named_parameters()}
    save_state(folder / f"{name}.end.{accelerator.process_index}", {"weights": found, "moved": result.moved})
    accelerator.wait_for_everyone()


for shard in (False, True)[: accelerator.num_processes]:
    run(f"{shard}", shard)
    run(f"{shard}.resumed", shard, load_state(folder / f"{shard}.5"))
"""


def in_one_and_in_two(script_text: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(script_text)
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    # `accelerate launch --cpu` starts several processes through MPI only; torchrun needs nothing.
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    for count, command in ((1, [sys.executable]), (2, launch)):
        folder = tmp_path / str(count)
        folder.mkdir()
        done = subprocess.run(
            [*command, str(script), str(folder)], env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_sixteen_bits_in_two_processes_whole_and_sharded(tmp_path):
    """Updates below the last bit add up in every arrangement, and a resumed run ends bit by bit as a whole one."""
    in_one_and_in_two(SIXTEEN_BITS, tmp_path)
    one = load_state(tmp_path / "1" / "False.end.0")
    assert load_state(tmp_path / "1" / "False.5")["parameters"]["blocks.0.weight"].dtype == torch.float32
    assert 0.2 < one["moved"] < 0.6
    for name in ("False", "True"):
        ends = [load_state(tmp_path / "2" / f"{name}{kind}.end.{i}") for kind in ("", ".resumed") for i in (0, 1)]
        for other in ends[1:]:
            assert all(torch.equal(other["weights"][key], value) for key, value in ends[0]["weights"].items())
        assert {end["moved"] for end in ends} == {ends[0]["moved"]}
        assert ends[0]["moved"] == pytest.approx(one["moved"], abs=0.02)
        assert_close(ends[0]["weights"], one["weights"], rtol=2**-7, atol=0)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    in_one_and_in_two(SCRIPT, tmp_path)
    for name in ("one", "sago", "pcgrad", "alone"):
        expected = load_state(tmp_path / "1" / f"{name}.0")
        for process in (0, 1):
            found = load_state(tmp_path / "2" / f"{name}.{process}")
            assert_close(found, expected, rtol=1e-10, atol=1e-12)
            assert torch.equal(found["rare"], load_state(tmp_path / "2" / f"{name}.0")["rare"])
        rows = [
            [
                {key: math.nan if value is None else value for key, value in json.loads(line).items()}
                for line in (tmp_path / count / f"{name}.jsonl").read_text().splitlines()
            ]
            for count in ("1", "2")
        ]
        assert len(rows[0]) == 5
        for one, two in zip(*rows, strict=True):
            assert two == pytest.approx(one, rel=1e-9, abs=1e-11, nan_ok=True)
        assert load_state(tmp_path / "2" / f"{name}.state")["step"] == 5
