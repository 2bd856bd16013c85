import json
import math
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.study import Arm, Outcome, Run, Study
from equipoise.study.store import MEASUREMENTS, Store, Task, take

STUDY = Study(
    arms=[Arm("new", rate=0.5)],
    outcomes=[Outcome("right", better="higher"), Outcome("loss", better="lower")],
    claims=[],
    run=lambda run: None,
    budget="calls",
    without_control="a test",
)


@pytest.fixture
def opened(tmp_path):
    """Opens the same run again and again, as attempts after one another."""
    store = Store(tmp_path)
    task = Task("k", "test", "none", str(tmp_path), {"n": 3}, 7, "f", arm="new", config={})

    class Opened:
        folder = store.folder(task)

        def __enter__(self):
            self.held = take(store, task)
            self.attempt, _ = self.held.__enter__()
            return Run(STUDY, self.attempt, None)

        def __exit__(self, *exception):
            self.held.__exit__(None, None, None)

    return Opened()


def lines(run):
    return [json.loads(line) for line in (run.folder.parent / MEASUREMENTS).read_text().splitlines()]


def test_what_is_measured_is_stored_with_its_counts(opened):
    torch = pytest.importorskip("torch")
    with opened as run:
        assert (run.arm, run.settings, run.seed, run.options, run.role) == ("new", {"rate": 0.5}, 7, {"n": 3}, "test")
        run.measure("right", 3, of=4, missing=1, at={"step": 1}, where={"split": "test"})
        run.measure("loss", torch.tensor(0.25), at={"step": 1})
        run.measure("loss", math.nan, at={"step": 2})
        run.measure("loss", math.inf, at={"step": 3})
        rows = lines(run)
    first = {"outcome": "right", "value": 3, "of": 4, "missing": 1, "at": {"step": 1}, "where": {"split": "test"}}
    assert rows[0] == {**first, "order": 0}
    assert [row["value"] for row in rows[1:]] == [0.25, None, "inf"]


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda run: run.measure("rihgt", 1), "no outcome 'rihgt'. Did you mean 'right'"),
        (lambda run: run.measure("right", 5, of=4), "5 of 4 is no proportion"),
        (lambda run: run.measure("right", -1, of=4), "-1 of 4 is no proportion"),
        (lambda run: run.measure("right", 0.335, of=10), "0.335 of 10 is no proportion"),
        (lambda run: run.measure("right", 1, of=2.5), "1 of 2.5 is no proportion"),
        (lambda run: run.measure("right", 1, missing=-1), "missing is -1"),
        (lambda run: run.measure("right", "many"), "Expected a number"),
        (lambda run: run.measure("right", 1, at={"step": {1, 2}}), "at and where hold text and numbers"),
        (
            lambda run: [run.measure("right", 1, at={"a": 1, "b": 2}), run.measure("right", 1, at={"b": 2, "a": 1})],
            "before",
        ),
        (lambda run: run.items("right", ["a", "b"], [1]), "2 ids, 1 scores"),
        (lambda run: run.items("right", ["a", "b", "a"], [1, 0, 1]), "'a' comes twice"),
        (lambda run: run.items("right", ["a"], [math.inf]), "infinite"),
        (lambda run: [run.items("right", ["a"], [1]), run.measure("right", 1)], "run.items has derived it"),
        (lambda run: [run.items("right", ["a"], [1]), run.items("right", ["a"], [1])], "stored before"),
        (lambda run: run.spend(seconds=3), "booked by the engine"),
        (lambda run: run.spend(calls=-3), "0 or more"),
        (lambda run: run.artifact("x", "/nowhere/at/all"), "not there"),
        (lambda run: run.prepared, "no preparation"),
    ],
)
def test_what_cannot_be_is_refused(opened, measure, message):
    with opened as run, pytest.raises(BadInput, match=message):
        measure(run)


def test_items_give_the_outcome_unless_it_was_measured(opened):
    with opened as run:
        run.items("right", ["a", "b", "c", "d"], np.array([1, 0, math.nan, 1]), clusters=["x", "x", "y", "y"])
        run.items("loss", [1, 2], [0.5, 1.0], at={"step": 1})
        run.items("loss", ["a"], [math.nan], at={"step": 2})
        run.measure("loss", 9, at={"step": 3})
        run.items("loss", ["a", "b"], [1, 2], at={"step": 3})
        rows = lines(run)
        opened.attempt.finish()
    assert [(row["value"], row["of"], row["missing"]) for row in rows] == [
        (2, 3, 1),
        (0.75, None, 0),
        (None, None, 1),
        (9, None, 0),
    ]
    table = pq.read_table(opened.folder / "items.parquet").to_pydict()
    assert table["item"] == ["a", "b", "c", "d", "1", "2", "a", "a", "b"]
    assert table["cluster"][:4] == ["x", "x", "y", "y"]
    np.testing.assert_array_equal(table["score"], [1, 0, math.nan, 1, 0.5, 1.0, math.nan, 1, 2])
    assert table["at"][4] == '{"step": 1}'


def test_a_resumed_run_draws_what_it_would_have_drawn(opened):
    torch = pytest.importorskip("torch")
    with opened as run:
        assert run.resume() is None
        before = run.generator.random(), float(torch.rand((), generator=run.torch_generator()))
        run.measure("loss", 1, at={"step": 1})
        run.checkpoint({"step": 1})
        expected = run.generator.random(), float(torch.rand((), generator=run.torch_generator()))
        run.measure("loss", 2, at={"step": 2})
    with opened as run:
        assert run.resume() == {"step": 1}
        assert (run.generator.random(), float(torch.rand((), generator=run.torch_generator()))) == expected != before
        with pytest.raises(BadInput, match="before"):
            run.measure("loss", 1, at={"step": 1})
        run.measure("loss", 2, at={"step": 2})
        assert [row["order"] for row in lines(run)] == [0, 1]


def test_a_run_that_ignores_its_checkpoint_starts_from_nothing(opened):
    with opened as run:
        run.measure("loss", 1, at={"step": 1})
        run.checkpoint({"step": 1})
    with opened as run:
        run.measure("loss", 1, at={"step": 1})
        assert len(lines(run)) == 1
        with pytest.raises(WorkFailed, match="resume"):
            run.resume()


def test_equal_seeds_draw_equally_whatever_the_arm(opened, tmp_path):
    with opened as run:
        first = run.generator.random()
    store = Store(tmp_path / "other")
    task = Task("other", "test", "none", str(tmp_path), {}, 7, "g", arm="new", config={})
    with take(store, task) as (attempt, _):
        assert Run(STUDY, attempt, None).generator.random() == first
    with take(store, Task("next", "test", "none", str(tmp_path), {}, 8, "g", arm="new", config={})) as (attempt, _):
        assert Run(STUDY, attempt, None).generator.random() != first


def test_seconds_go_to_their_phase_and_lost_ones_stay_spent(opened):
    with opened as run:
        run.resume()
        with run.phase("build"):
            time.sleep(0.05)
        run.checkpoint({})
        with run.phase("query"):
            time.sleep(0.1)
        run.close()
        opened.attempt.save_cost()
    with opened as run:
        run.resume()
        run.spend(phase="query", calls=2)
        run.close()
        work, spent = opened.attempt.ledger.work, opened.attempt.ledger.spent
    assert work["build"]["seconds"] == pytest.approx(0.05, abs=0.04)
    assert "seconds" not in work["query"]
    assert spent["query"]["seconds"] == pytest.approx(0.1, abs=0.06)
    assert work["query"] == {"calls": 2}
    assert spent["run"]["peak_bytes"] > 1e6


def test_artifacts_are_kept_under_their_name(opened, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "weights.bin").write_bytes(b"12")
    with opened as run:
        run.artifact("adapter", tmp_path / "made")
        (run.folder / "notes.txt").write_text("here")
        run.artifact("notes.txt", run.folder / "notes.txt")
        run.measure("loss", 1)
        opened.attempt.finish()
    assert (opened.folder / "artifacts" / "adapter" / "weights.bin").read_bytes() == b"12"
    assert set(json.loads((opened.folder / "config.json").read_text())["files"]) == {
        "artifacts/adapter/weights.bin",
        "artifacts/notes.txt",
        "cost.json",
        "measurements.jsonl",
    }
