"""What a study's run, or its preparation, gives and takes, kept in memory and in a folder: a stand-in for the engine."""

import json
from contextlib import nullcontext

import numpy as np

from equipoise.core.state import load_state, save_state


class Stopped(Exception):
    """The process is killed here."""


class StudyRecorder:
    """`stop` is the number of the checkpoint after which the process dies. Seed and prepared folder may be a subclass's."""

    seed: int
    prepared = None

    def __init__(self, folder, *, study=None, arm=None, stop=None, prepared=None):
        folder.mkdir(exist_ok=True)
        self.folder, self.stop, self.study, self.arm = folder, stop, study, arm
        self.prepared = prepared or self.prepared
        self.settings = {} if arm is None else study.arm(arm).points()[0]
        self.options = {} if study is None else study.options
        self.measured, self.spent, self.checkpoints = {}, {}, 0

    def resume(self):
        if not (self.folder / "state").exists():
            return None
        stored = load_state(self.folder / "state")
        self.measured, self.spent = stored["measured"], stored["spent"]
        return stored["state"]

    def checkpoint(self, state):
        save_state(self.folder / "state", {"state": state, "measured": self.measured, "spent": self.spent})
        self.checkpoints += 1
        if self.checkpoints == self.stop:
            raise Stopped

    def measure(self, outcome, value, *, of=1, at, where=None):
        self.study.outcome(outcome)
        key = f"{outcome} {json.dumps(at)} {json.dumps(where or {})}"
        assert key not in self.measured
        self.measured[key] = float(value) / of

    def items(self, outcome, ids, scores, *, at, where=None):
        assert len(set(ids)) == len(scores)
        self.measure(outcome, float(np.mean(scores)), at=at, where=where)

    def spend(self, *, phase, **amounts):
        for name, amount in amounts.items():
            self.spent[name] = self.spent.get(name, 0) + amount

    def phase(self, name):
        return nullcontext()

    def last(self, outcome):
        """What was measured last of an outcome."""
        return [value for key, value in self.measured.items() if key.startswith(f"{outcome} ")][-1]
