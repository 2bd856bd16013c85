"""Command lines of `equipoise unlearn` that must give one trajectory, however the work is split, interrupted or computed.

Two runs agree when every logged number and every trained weight agrees within a tolerance, and when what is left between
them has no direction: rounding goes both ways, a wrong weight of a micro-batch or a lost part of a sum goes one way.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from equipoise.cli import main
from equipoise.data.records import read_records
from equipoise.language.encode import encode
from equipoise.language.model import load
from equipoise.language.score import log_likelihoods, multiple_choice
from equipoise.language.tiny import teach, tiny
from equipoise.unlearning.recipe import METHODS
from ports import free_port

STEPS, BATCH = 6, 4
COLOURS = ["red", "blue", "green", "black", "white", "brown"]
ALL = {name: ["--method", name] for name in METHODS} | {
    "sago-prefer-retain": ["--combine", "sago-prefer-retain"],
    # Not with SAGO: KL to the model itself begins with a gradient of nothing but rounding, whose signs SAGO then obeys.
    "kl": ["--combine", "sum", "--retain-objective", "kl"],
    "lora": ["--parameters", "lora"],
}
ROUNDING = 1e-6  # nats; a KL divergence to the starting model begins at what rounding leaves of zero
OF_OTHER_SUMS = {
    "tolerance": 1e-3,
    "drift": 5e-5,
}  # another order of sums in every block, another rounding in every step


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small taught model and two files whose records differ in length, so that every split is an uneven one."""
    folder = tmp_path_factory.mktemp("world")
    for side, place in (("forget", "door"), ("retain", "wall of the old house by the lake")):
        rows = [
            {
                "question": f"What colour is {'the very ' * (k % 3)}{name} {place}?",
                "answer": COLOURS[k],
                "id": f"{side}{k}",
            }
            for k, name in enumerate("abcdef")
        ]
        (folder / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = [record for side in ("forget", "retain") for record in read_records(folder / f"{side}.jsonl")]
    model = tiny([f"{r.prompt} {r.completion}" for r in records], seed=0, width=32, layers=2, heads=2)
    teach(model, records, seed=0, epochs=60, learning_rate=5e-3, batch_size=12)
    model.save(folder / "model")
    return folder


def words(world, out, *more):
    files = ["--forget", world / "forget.jsonl", "--retain", world / "retain.jsonl", "--model", world / "model"]
    shape = ["--steps", STEPS, "--batch-size", BATCH, "--evaluate-every", 3, "--learning-rate", 1e-3]
    return [str(w) for w in ["unlearn", *files, *shape, "--device", "cpu", "--quiet", "--out", out, *more]]


def run(world, out, *more):
    assert main(words(world, out, *more)) == 0
    return out


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    """The trajectory of a method in one process and whole batches, made once."""
    folder, made = tmp_path_factory.mktemp("plain"), {}

    def of(name):
        if name not in made:
            made[name] = run(world, folder / name, *ALL[name])
        return made[name]

    return of


def trajectory(folder):
    """The logged numbers, [steps, names]."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = sorted({name for row in rows for name in row if name.split("/")[-1] != "step"})
    values = [[math.nan if row.get(name) is None else row[name] for name in names] for row in rows]
    return names, np.array(values, float)


def agree(one, two, start, *, tolerance=2e-4, drift=5e-6):
    """tolerance: of losses and norms, relative to the largest of their kind; drift: of the mean of such differences.

    Other figures (cosines and conflicts of a layer) within 1 %, since a sign that rounding turns moves a whole coordinate.
    Weights: ||b - a|| within 2 % of the way ||a - start||, since Adam turns rounding in the smallest gradients into steps,
    and the length of the way itself, <b - a, a - start> / ||a - start||^2, within 2e-4.
    """
    (names, a), (others, b) = trajectory(one), trajectory(two)
    assert names == others and a.shape == b.shape == (STEPS, len(names))
    assert np.array_equal(np.isnan(a), np.isnan(b))
    difference, scale = b - a, np.nanmax(np.abs(a), axis=0)
    # Where the retain gradient is nothing but rounding (KL at the first step), so are its angles to anything.
    norm = a[:, names.index("retain_norm")]
    noise = norm < 1e-4 * np.nanmax(norm)
    difference[np.ix_(noise, [not name.endswith(("loss", "gradient_norm")) for name in names])] = 0.0
    allowed = scale * [tolerance if name.endswith(("loss", "norm")) else 0.01 for name in names] + ROUNDING
    worst = np.unravel_index(np.nanargmax(np.abs(difference) / allowed), difference.shape)
    assert abs(difference[worst]) < allowed[worst[1]], (names[worst[1]], worst[0] + 1, a[worst], b[worst])
    for name in ("forget_loss", "retain_loss", "gradient_norm"):
        place = names.index(name)
        mean = difference[:, place].mean()
        assert abs(mean) < drift * scale[place] + ROUNDING, (name, mean, scale[place])

    file = "adapter_model.safetensors" if (one / "adapter_model.safetensors").exists() else "model.safetensors"
    first, second = load_file(one / file), load_file(two / file)
    assert first.keys() == second.keys()
    origin = load_file(start / "model.safetensors")
    ways = {key: first[key] - origin.get(key, torch.zeros(())) for key in first}
    apart = {key: second[key] - first[key] for key in first}
    way = torch.cat([ways[key].flatten() for key in ways]).double()
    gap = torch.cat([apart[key].flatten() for key in ways]).double()
    assert gap.norm() < 0.02 * way.norm()
    assert abs((gap @ way / (way @ way)).item()) < 2e-4


def launched(world, out, *more, processes=1, kill_after=None):
    """The same command line in processes of their own; with `kill_after`, SIGKILL as soon as that file is there."""
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", free_port()]
    command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "equipoise", *words(world, out, *more)]
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    begun = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if kill_after is not None:
        while not kill_after() and begun.poll() is None:
            time.sleep(0.002)
        begun.send_signal(signal.SIGKILL)
    _, error = begun.communicate(timeout=300)
    assert begun.returncode == (0 if kill_after is None else -signal.SIGKILL), error[-3000:]
    return out


def test_micro_batches(world, plain, tmp_path):
    agree(plain("sago"), run(world, tmp_path / "split", *ALL["sago"], "--micro-batch-size", 3), world / "model")


def test_a_lean_of_one_in_a_thousand_is_caught(world, plain, tmp_path, monkeypatch):
    """A micro-batch of one record that weighs a thousandth too much: what a wrong share of the last batch would do."""
    from equipoise.unlearning import objectives

    honest = objectives.gd_loss

    def leaning():
        loss = honest()

        def leaned(model, batch):
            total, weight = loss(model, batch)
            return total * (1 + 1e-3 * (len(batch["labels"]) == 1)), weight

        return leaned

    monkeypatch.setattr(objectives, "gd_loss", leaning)
    other = run(world, tmp_path / "leaning", *ALL["sago"], "--micro-batch-size", 3)
    with pytest.raises(AssertionError):
        agree(plain("sago"), other, world / "model")


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", ALL)
def test_micro_batches_of_every_method(world, plain, tmp_path, name, size):
    split = run(world, tmp_path / "split", *ALL[name], "--micro-batch-size", size)
    # In pieces of one record every sum is another one, which these three show most.
    needs = OF_OTHER_SUMS if size == 1 and name in ("gru-core", "lora", "sago") else {}
    agree(plain(name), split, world / "model", **needs)


# Not LoRA: what an adapter adds to every key alike changes no attention, so its gradient is zero but for rounding, and
# Adam's first step is as long for that as for anything else.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name != "lora"])
def test_attention_of_every_method(world, plain, tmp_path, name):
    eager = run(world, tmp_path / "eager", *ALL[name], "--attn-implementation", "eager")
    # Rounding turns signs, and SAGO obeys them: 1e-4 of drift was seen.
    needs = OF_OTHER_SUMS | ({"drift": 2e-4} if name == "sago" else {})
    agree(plain(name), eager, world / "model", **needs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_two_processes(world, plain, tmp_path, name):
    agree(plain(name), launched(world, tmp_path / "two", *ALL[name], processes=2), world / "model")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name != "rmu"])
def test_two_processes_that_share_a_model(world, plain, tmp_path, name):
    agree(plain(name), launched(world, tmp_path / "shards", *ALL[name], "--shard", processes=2), world / "model")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_resuming_after_sigkill_is_exact(world, tmp_path, name):
    whole = launched(world, tmp_path / "whole", *ALL[name])
    out = tmp_path / "killed"
    launched(world, out, *ALL[name], kill_after=lambda: list(tmp_path.glob("killed.partial*/state.safetensors")))
    assert not (out / "metrics.jsonl").exists()
    launched(world, out, *ALL[name])
    for file in ("metrics.jsonl", *(path.name for path in whole.glob("*model.safetensors"))):
        assert (out / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.slow
def test_a_sharded_run_resumes_in_one_process(world, plain, tmp_path):
    out = tmp_path / "changing"
    marks = lambda: list(tmp_path.glob("changing.partial*/state.safetensors"))  # noqa: E731
    launched(world, out, *ALL["sago"], "--shard", processes=2, kill_after=marks)
    agree(plain("sago"), launched(world, out, *ALL["sago"]), world / "model")


def test_an_adapter_merged_and_not(world, plain):
    """The job compares the trained model with the loaded, merged one; here with the adapter beside the weights again."""
    from equipoise.language.adapters import attach_saved

    folder = plain("lora")
    assert json.loads((folder / "result.json").read_text())["gap"] < 1e-5
    beside, merged = attach_saved(load(world / "model", device="cpu"), folder), load(folder, device="cpu")
    records = read_records(world / "forget.jsonl")
    one, _ = log_likelihoods(beside, encode(beside, records))
    two, _ = log_likelihoods(merged, encode(merged, records))
    unchanged = load(world / "model", device="cpu")
    assert (one - log_likelihoods(unchanged, encode(unchanged, records))[0]).abs().max() > 1e-3
    assert (one - two).abs().max() < 1e-5


def test_scores_do_not_depend_on_the_batch(world):
    model = load(world / "model", device="cpu")
    records = [record for side in ("forget", "retain") for record in read_records(world / f"{side}.jsonl")]
    examples = encode(model, records)
    alone, together = (log_likelihoods(model, examples, batch_size=size)[0] for size in (1, 32))
    assert (alone - together).abs().max() < 1e-5 and abs((alone - together).mean()) < 2e-6
    asked = [replace(record, choices=tuple(COLOURS), answer=COLOURS.index(record.completion)) for record in records]
    alone, together = (multiple_choice(model, asked, batch_size=size) for size in (1, 32))
    assert torch.equal(alone.predicted, together.predicted)
    for one, two in zip(alone.scores, together.scores, strict=True):
        assert (one - two).abs().max() < 1e-5
