"""Killed at random moments and resumed, a study stores the same bytes as one that was left alone."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from engine_studies import stored, walk
from equipoise.study.execute import run_study
from equipoise.study.results import load

ARMS = ["up", "flat"]
START = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from engine_studies import walk
from equipoise.study.execute import run_study
folder = Path(sys.argv[2])
run_study(walk(folder), {"steps": 10, "pause": 0.03}, out=folder / "out", arms=["up", "flat"], workers=int(sys.argv[3]))
"""


def start(folder: Path, workers: int) -> subprocess.Popen:
    arguments = [sys.executable, "-c", START, str(Path(__file__).parent.parent), str(folder), str(workers)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE)


def items(out: Path) -> dict:
    return {
        path.parent.name.rpartition("-")[0]: pq.read_table(path).to_pydict()
        for path in out.glob("runs/*/items.parquet")
    }


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_sigkill_at_random_moments(tmp_path, workers):
    rng = random.Random(workers)
    declaration, out, quiet = walk(tmp_path), tmp_path / "out", tmp_path / "quiet"
    run_study(declaration, {"steps": 10}, out=quiet, arms=ARMS, engine="inline")
    kills = 0
    while kills < 3 and len(stored(out)) < 4:
        command = start(tmp_path, workers)
        deadline = time.monotonic() + 60
        while not list(out.glob("runs/*.partial/measurements.jsonl")) and command.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.4))
        command.send_signal(signal.SIGKILL)
        kills += command.wait() == -signal.SIGKILL
        command.communicate()
    assert kills
    options = {"steps": 10, "pause": 0.03}
    done = run_study(declaration, options, out=out, arms=ARMS, workers=workers)
    assert (done.complete, done.failed, done.notes) == (4, {}, [])
    assert len(stored(quiet)) == 4
    assert stored(out) == stored(quiet)
    assert items(out) == items(quiet)
    costs = [run.cost for run in load([out], done.study).runs]
    assert all(cost["work"]["build"] == {"optimizer_steps": 10} for cost in costs)
    assert all(cost["spent"]["build"]["optimizer_steps"] >= 10 for cost in costs)
