"""A study without torch for tests of the engine: random walks that take steps, checkpoint, and can be made to misbehave."""

import hashlib
from pathlib import Path

from equipoise.study import registry
from equipoise.study.declare import Declaration
from equipoise.study.store import identify, read_json, write_json

SOURCE = '''
import os, time
from typing import Annotated
from pydantic import Field
from equipoise.study import Arm, Claim, Outcome, Select, Study, better, study

@study("walk", paper="none", trades="this for that")
def walk(steps: Annotated[int, Field(ge=1, le=1000)] = 4, pause: float = 0.0, bad: str = "", marks: str = "",
         tuned: bool = False) -> Study:
    """Random walks."""
    grid = {"rate": [1, 2]} if tuned else {}
    return Study(
        seeds=2, budget="optimizer_steps", prepare=prepare, run=train, select=Select("height", seeds=1) if tuned else None,
        arms=[Arm("up", drift=0.5, grid=grid), Arm("flat", kind="baseline", drift=0.0, grid=grid),
              Arm("coin", kind="control", drift=0.0, grid=grid)],
        outcomes=[Outcome("height", better="higher"), Outcome("right", better="higher", chance=0.5)],
        claims=[Claim("up goes up", source="here", test=better("height", arm="up", rival="flat", units=("seed",)))])

def prepare(preparation):
    if preparation.options["marks"]:
        with open(preparation.options["marks"], "a") as file:
            file.write(f"{preparation.seed}\\n")
    if preparation.options["bad"] in ("prepare", f"prepare-{preparation.seed}"):
        raise ValueError("no preparation")
    (preparation.folder / "start.txt").write_text(repr(float(preparation.generator.random())))

def train(run):
    if run.options["bad"] == "all" or run.arm in run.options["bad"].split("+"):
        raise RuntimeError(f"nothing works\\nin every run")
    state = run.resume() or {"step": 0, "height": float((run.prepared / "start.txt").read_text())}
    for step in range(state["step"], run.options["steps"]):
        time.sleep(run.options["pause"])
        if run.arm == "flat" and run.seed == 1 and step == 2:
            misbehave(run.options["bad"])
        state = {"step": step + 1, "height": state["height"] + run.settings["drift"] + float(run.generator.normal())}
        run.measure("height", state["height"], at={"step": step + 1})
        run.items("right", ["a", "b", "c"], run.generator.integers(0, 2, 3), at={"step": step + 1})
        run.spend(phase="build", optimizer_steps=1)
        if step % 2 == 1:
            run.checkpoint(state)

def misbehave(how):
    if how == "raise":
        raise RuntimeError("the arm broke")
    if how == "hang":
        time.sleep(600)
    if how == "die":
        os.kill(os.getpid(), 9)
'''


def walk(folder: Path) -> Declaration:
    """The study, from a file of its own in `folder`."""
    path = folder / "walk_study.py"
    if not path.exists():
        path.write_text(SOURCE)
    return registry.load(str(path))


def stored(out: Path) -> dict[str, bytes]:
    """Measurements of every complete run as bytes, by arm, grid point and seed."""
    found = sorted(path for path in out.glob("runs/*/measurements.jsonl") if path.parent.suffix != ".partial")
    return {path.parent.name.rpartition("-")[0]: path.read_bytes() for path in found}


def restate(folder: Path, files: dict[str, bytes] | None = None, **changes) -> Path:
    """Make a complete run the one that this configuration and these files describe, as another machine would have stored
    it; returns where it is now."""
    config = {**read_json(folder / "config.json"), **changes}
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content)
        config["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    key, config["fingerprint"] = identify(config)
    write_json(folder / "config.json", config)
    return folder.rename(folder.with_name(key))
