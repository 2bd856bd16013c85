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

from ports import free_port

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from equipoise.core.state import save_state
from equipoise.training.loop import OneLoss, Settings, fit
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
        model, step, draw, Settings(steps=6, rate=0.02, batch_size=5, micro_batch=2), collate=collate,
        accelerator=accelerator, log=folder / f"{name}.jsonl",
        callbacks=[lambda moment: accelerator.is_main_process and moment.step == 5],
        save=lambda state: save_state(folder / f"{name}.state", state),
    )
    assert result.steps == 5 and result.stopped
    weights = {key: value.detach() for key, value in model.named_parameters()}
    save_state(folder / f"{name}.{accelerator.process_index}", weights)
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    from equipoise.core.state import load_state

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
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
