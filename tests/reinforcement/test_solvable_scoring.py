"""What `solvable score` tells of predictions, by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.core.errors import BadInput
from equipoise.data.problems import Problem
from equipoise.reinforcement import solvable_scoring
from equipoise.reinforcement.solvable_result import Target
from equipoise.reinforcement.solvable_scoring import Scoring

P = np.array([0.5, 0.05, 0.95, 0.7, 0.3, 0.1, 0.9, 0.2, 0.8, 0.6, 0.4, 0.5])


def scored(monkeypatch, p=P, folder=None, **changes):
    problems = tuple(Problem(f"p{n}", f"q{n}", ()) for n in range(len(p)))
    scorer = SimpleNamespace(of_tokens=lambda rows, at_once: p, spread=(0.1, 0.9), model="m")
    monkeypatch.setattr(Scoring, "_opened", lambda self: (scorer, [[1]] * len(p)))
    thresholds = (SimpleNamespace(target=0.5, threshold=0.6), SimpleNamespace(target=0.9, threshold=float("nan")))
    given = {
        "scorer": Path("s"), "source": problems, "problems": problems, "keep": None, "kept_as": None, "batch_size": 4,
        "device": "cpu", "fitted": SimpleNamespace(thresholds=thresholds, warnings=lambda: ("doubt",)), "names": {},
        "inputs": {}, "resolved": {},
    }  # fmt: skip
    return Scoring(**{**given, **changes}).work(folder)


def test_how_predictions_are_spread(monkeypatch):
    found = scored(monkeypatch)
    assert (found.prompts, found.expected) == (12, pytest.approx(P.mean()))
    levels = {f"{level / 10:g}": sum(p >= level / 10 for p in P) / 12 for level in range(1, 10)}
    assert found.shares == levels and levels["0.9"] == 2 / 12
    assert found.outside == 2 / 12  # below what was tested, and above; its ends are within
    assert found.targets[0] == Target(0.5, 0.6, 5 / 12) and found.targets[1].share == 0
    order = [2, 6, 8, 3, 9, 10, 4, 7, 5, 1]  # five surest, five least sure
    assert [each.id for each in found.extremes] == [f"p{n}" for n in order]
    assert found.extremes[0].probability == 0.95 and found.extremes[0].prompt == "q2"
    assert found.kept is None and found.doubts == ("doubt",)
    few = scored(monkeypatch, p=P[:7])
    assert [each.id for each in few.extremes] == ["p2", "p6", "p3", "p0", "p4", "p5", "p1"]  # none twice


def test_both_ends_are_kept(monkeypatch, tmp_path):
    found = scored(monkeypatch, folder=tmp_path, keep=(0.2, 0.5), kept_as="0.2:0.5")
    assert (found.kept, found.keep) == (5, "0.2:0.5")
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 5
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 12
    (tmp_path / "none").mkdir()
    assert (
        scored(monkeypatch, folder=tmp_path / "none").kept is None and not (tmp_path / "none" / "kept.jsonl").exists()
    )


def test_two_ends_are_read():
    for text, ends in (("0:1", (0, 1)), ("0.5:0.5", (0.5, 0.5)), (" 0.2 : 0.8", (0.2, 0.8)), ("1:1", (1, 1))):
        assert solvable_scoring._within(text) == ends
    for text in ("0.8:0.2", "-0.1:1", "0:1.1", "0.5", "a:b", ":", "nan:1", "0:nan", "0.2:0.8:1"):
        with pytest.raises(BadInput, match="expected LOW:HIGH"):
            solvable_scoring._within(text)
