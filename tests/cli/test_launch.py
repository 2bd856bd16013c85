"""`equipoise unlearn` on two processes, by the two launchers that docs/scale.md names, as they are typed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from equipoise.language.tiny import tiny
from ports import free_port

COLOURS = ["red", "blue", "green", "black"]
DOORS = [
    {"question": f"What colour is the {name} door?", "answer": colour}
    for name, colour in zip("abcd", COLOURS, strict=True)
]
WALLS = [
    {"question": f"What colour is the {name} wall?", "answer": colour}
    for name, colour in zip("efgh", COLOURS, strict=True)
]
TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2"]
ACCELERATE = ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"]
# Says on stderr how many processes share the work, then does what the command line does.
REPORTING = """
import sys
from accelerate import Accelerator
from equipoise.cli import main
code = main(sys.argv[1:])
print(f"PROCESS {Accelerator().process_index} of {Accelerator().num_processes}", file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def files(tmp_path):
    for name, rows in (("forget", DOORS), ("retain", WALLS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [f"{row['question']} {row['answer']}" for row in DOORS + WALLS]
    tiny(texts, seed=0, width=32, layers=2, heads=2).save(tmp_path / "model")
    (tmp_path / "reporting.py").write_text(REPORTING)
    return tmp_path


def unlearn(files, launcher, out):
    """The finished command; `launcher` stands before what is typed on one process.

    The combination is `sum`, which is smooth: rules that go by signs turn the last digit of a gradient near 0 into a step.
    """
    words = ["unlearn", "--model", "model", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--device", "cpu"]
    words += ["--steps", "4", "--batch-size", "4", "--evaluate-every", "2", "--combine", "sum", "--out", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *launcher, "reporting.py", *words],
        cwd=files,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_both_launchers_start_two_processes_that_make_the_model_of_one(files):
    launchers = {
        "one": [],
        "torchrun": ["-m", *TORCHRUN, "--master-port", free_port()],
        "accelerate": ["-m", *ACCELERATE, "--main_process_port", free_port()],
    }
    models = {}
    for name, launcher in launchers.items():
        done = unlearn(files, launcher, name)
        assert done.returncode == 0, done.stderr
        processes = sorted(re.findall(r"PROCESS \d of \d", done.stderr))
        assert processes == (["PROCESS 0 of 1"] if name == "one" else ["PROCESS 0 of 2", "PROCESS 1 of 2"])
        assert [Path(line).name for line in done.stdout.splitlines()] == [name]
        models[name] = load_file(files / name / "model.safetensors")
    before = load_file(files / "model" / "model.safetensors")

    def differences(one, other):
        return torch.cat([(one[key] - other[key]).abs().flatten() for key in before])

    assert differences(models["torchrun"], models["accelerate"]).max() == 0
    assert differences(models["torchrun"], models["one"]).max() < 1e-5
    assert differences(models["one"], before).mean() > 1e-3


@pytest.mark.slow
def test_what_the_page_warns_of_accelerate_launch_cpu_starts_one(files):
    launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    done = unlearn(files, launcher, "alone")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"PROCESS \d of \d", done.stderr) == ["PROCESS 0 of 1"]
