import dataclasses
import io
import json
import math
import sys
import time
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.study import Arm, Outcome, Run, Study
from equipoise.study.run import Preparation, _number, _stored
from equipoise.study.store import ITEMS, MEASUREMENTS, Store, Task, take

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


class Clock:
    """Time that passes when a test says so."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("equipoise.study.run.time.monotonic", lambda: self.now)


@pytest.fixture
def heard(opened, monkeypatch):
    """Opens the run with a clock in the test's hand and takes down what the engine would hear."""
    monkeypatch.setattr("equipoise.core.files._sync", lambda path: None)
    clock, seen = Clock(monkeypatch), []
    with opened as run:
        run._clock, run._report = clock.now, seen.append
        yield run, clock, seen, opened.attempt


def test_the_engine_hears_of_the_newest_outcome_and_what_was_spent_a_few_times_a_second(heard):
    run, clock, seen, _ = heard
    run.beat()
    assert seen == [{"event": "beat", "spent": {}, "share": None}]
    run.measure("right", 3, of=4, at={"step": 1})
    run.spend(calls=2, phase="build")
    assert len(seen) == 1
    clock.now += 0.2
    run.beat()
    newest = {"outcome": "right", "value": 0.75, "place": '{"step": 1}', "share": None}
    assert seen[1] == {"event": "beat", "spent": {"calls": 2}, **newest}
    clock.now += 0.2
    run.measure("loss", math.inf)
    lost = {"outcome": "loss", "value": "inf", "place": "{}", "share": None}
    assert seen[2] == {"event": "beat", "spent": {"calls": 2}, **lost}
    clock.now += 0.2
    run.measure("right", 0, of=0, at={"step": 2})
    assert seen[3]["value"] is None


def test_seconds_are_booked_once_a_second_where_they_were_spent(heard):
    run, clock, seen, attempt = heard
    saved = attempt.folder / "cost.json"
    clock.now += 0.75
    run.beat()
    assert attempt.ledger.work == {} and not saved.exists()
    clock.now += 0.25
    run.beat()
    assert attempt.ledger.work == {"run": {"seconds": 1}} and saved.exists()
    clock.now += 0.5
    with run.phase("build"):
        clock.now += 2
        with run.phase("query"):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    run.spend(calls=1)
    assert attempt.ledger.work == {
        "run": {"seconds": 17.5},
        "build": {"seconds": 10},
        "query": {"seconds": 4, "calls": 1},
    }
    assert seen[-1]["spent"] == {"seconds": 31.5, "calls": 1}


def test_the_end_books_the_last_seconds_and_the_peak(heard, monkeypatch):
    run, clock, seen, attempt = heard
    cuda = SimpleNamespace(is_initialized=lambda: True, max_memory_allocated=lambda: 77)
    monkeypatch.setattr("equipoise.study.run.resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=3))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    run.beat()
    clock.now += 0.125
    run.close()
    assert attempt.ledger.work == {"run": {"seconds": 0.125, "peak_bytes": 3072, "peak_device_bytes": 77}}
    assert seen[1:] == [{"event": "beat", "spent": {"seconds": 0.125}, "share": None}]  # a peak is no sum
    monkeypatch.setattr(sys, "platform", "darwin")
    cuda.is_initialized = lambda: False
    monkeypatch.setattr("equipoise.study.run.resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=5000))
    run.close()
    assert attempt.ledger.work["run"]["peak_bytes"] == 5000


def test_a_line_of_the_log_is_there_at_once_and_a_sign_of_life(heard, monkeypatch):
    run, clock, seen, _ = heard
    log = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(log, encoding="utf-8"))
    clock.now += 1
    run.log("half way")
    assert log.getvalue() == b"half way\n" and [each["event"] for each in seen] == ["beat"]


def test_an_error_inside_a_phase_books_its_seconds(heard):
    run, clock, _, attempt = heard
    with pytest.raises(ZeroDivisionError), run.phase("build"):
        clock.now += 2
        raise ZeroDivisionError
    clock.now += 1
    run.beat()
    assert attempt.ledger.work == {"run": {"seconds": 1}, "build": {"seconds": 2}}


def test_what_earlier_attempts_spent_is_not_told_again(opened, monkeypatch):
    with opened as run:
        run.spend(calls=5)
        run.checkpoint({"n": 1})
    clock, seen = Clock(monkeypatch), []
    with opened as run:
        run._report, run._clock = seen.append, clock.now
        assert run.resume() == {"n": 1}
        run.spend(calls=1)
    assert seen[-1]["spent"]["calls"] == 1


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (1, 1), (2.0, 2), (0.5, 0.5), (-0.0, 0), (math.nan, None), (math.inf, "inf"), (-math.inf, "-inf"), (True, 1),
        (2.0**53 - 1, 2**53 - 1), (2.0**53, 2.0**53), (np.float32(0.25), 0.25), (np.int64(7), 7),
    ],
)  # fmt: skip
def test_how_a_number_is_stored(given, stored):
    found = _stored(_number(given))
    assert found == stored and type(found) is type(stored)


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (lambda run: run.measure("right", 5, of=4), "right: 5 of 4 is no proportion; give the count and what it is out of."),
        (lambda run: run.measure("right", 0, of=-1),
         "right: 0 of -1 is no proportion; give the count and what it is out of."),
        (lambda run: run.measure("right", 1, missing=-2), "right: missing is -2; it is a count."),
        (lambda run: run.measure("right", None), "Expected a number, got None."),
        (lambda run: [run.measure("loss", 1, at={"step": 2}), run.measure("loss", 2, at={"step": 2})],
         'loss was measured at {"step": 2} where {} before.'),
        (lambda run: [run.items("right", ["a"], [1]), run.measure("right", 1)],
         "right was measured at {} where {} before (run.items has derived it: measure before it)."),
        (lambda run: [run.items("right", [name], [1], where={"k": 1}) for name in "ab"],
         'right: items at {} where {"k": 1} were stored before.'),
        (lambda run: run.items("right", ["a", "b"], [1, 0], clusters=["x"]),
         "right: 2 ids, 2 scores and 1 clusters; one per item."),
        (lambda run: run.items("right", ["a", "b", "b", "a"], [1] * 4), "right: the item 'b' comes twice; ids must differ."),
        (lambda run: run.items("right", ["a", "b"], [1, -math.inf]), "right: item 'b' has an infinite score."),
        (lambda run: run.spend(peak_bytes=1),
         "peak_bytes is booked by the engine itself; `with run.phase('build'):` says for which phase."),
        (lambda run: run.artifact("x", "/nowhere/at/all"), "The artifact 'x' is to be /nowhere/at/all, which is not there."),
        (lambda run: run.artifact("../x", "/"), "An artifact's name is a relative path without '..', not '../x'."),
        (lambda run: run.artifact("/x", "/"), "An artifact's name is a relative path without '..', not '/x'."),
        (lambda run: run.prepared, "run.prepared: this study has no preparation; give it one with Study(prepare=...)."),
    ],
)  # fmt: skip
def test_why_it_cannot_be(opened, measure, said):
    with opened as run, pytest.raises(BadInput) as caught:
        measure(run)
    assert str(caught.value) == said


def test_rows_of_items_and_of_what_is_derived_from_them(opened):
    with opened as run:
        assert not run.measured_anything()
        run.items("right", [1, 2, 3], [1, math.nan, 0.0], at={"step": 1}, where={"split": "test"})
        run.items("loss", ["a"], [2.5])
        run.items("loss", [], [], at={"step": 2})
        assert run.measured_anything()
        measured = lines(run)
        stored = [json.loads(line) for line in (run.folder.parent / ITEMS).read_text().splitlines()]
    place = {"at": {"step": 1}, "where": {"split": "test"}}
    nowhere = {"at": {}, "where": {}}
    assert stored == [
        {
            "outcome": "right",
            **place,
            "items": ["1", "2", "3"],
            "clusters": [""] * 3,
            "scores": [1, None, 0],
            "order": 0,
        },
        {"outcome": "loss", **nowhere, "items": ["a"], "clusters": [""], "scores": [2.5], "order": 2},
        {"outcome": "loss", "at": {"step": 2}, "where": {}, "items": [], "clusters": [], "scores": [], "order": 4},
    ]
    assert measured == [
        {"outcome": "right", "value": 1, "of": 2, "missing": 1, **place, "order": 1},
        {"outcome": "loss", "value": 2.5, "of": None, "missing": 0, **nowhere, "order": 3},
        {"outcome": "loss", "value": None, "of": None, "missing": 0, "at": {"step": 2}, "where": {}, "order": 5},
    ]


def test_an_artifact_is_where_it_is_said_to_be_and_replaces_an_earlier_one(opened, tmp_path):
    for number in (1, 2):
        (tmp_path / f"made-{number}").mkdir()
        (tmp_path / f"made-{number}" / str(number)).touch()
    with opened as run:
        for number in (1, 2):
            assert run.artifact("deep/adapter", tmp_path / f"made-{number}") == run.folder / "deep" / "adapter"
        assert [path.name for path in (run.folder / "deep" / "adapter").iterdir()] == ["2"]
        assert run.folder == opened.folder.with_name("k.partial") / "artifacts"


def test_a_seed_draws_the_same_for_ever(opened):
    """Of torch, too: results of another year are compared with new ones."""
    with opened as run:
        assert (
            run.torch_generator().initial_seed() == int(np.random.SeedSequence([7, 2]).generate_state(1, "u8")[0]) // 2
        )
        assert run.torch_generator("cpu") is run.torch_generator()
        here = run.torch_generator().initial_seed(), run.generator.random()
    task = dataclasses.replace(opened.attempt.task, key="p", role="preparation", arm="")
    with take(Store(opened.folder.parents[1]), task) as (attempt, _):
        there = Preparation(attempt)
        assert there.torch_generator().initial_seed() != here[0] and there.generator.random() != here[1]


def test_a_place_is_one_whatever_type_its_numbers_have(opened):
    """40 and 40.0 are one step; a condition that is true is no number."""
    with opened as run:
        run.items("right", ["a"], [1], at={"step": 40.0}, where={"radius": np.float64(1.0), "layers": (2.0, 0.5)})
        run.items("right", ["a"], [0], at={"step": 40}, where={"radius": True, "layers": [2, 0.5]})
        run.measure("loss", 1, at={"step": -0.0, "far": 2.0**60})
        with pytest.raises(BadInput, match="were stored before"):
            run.items("right", ["a"], [1], at={"step": 40}, where={"layers": [2, 0.5], "radius": 1})
        with pytest.raises(BadInput, match="was measured at"):
            run.measure("loss", 1, at={"far": 2.0**60, "step": 0.0})
        rows = lines(run)
        run.checkpoint({})
    assert [json.dumps(row["at"]) for row in rows] == ['{"step": 40}'] * 2 + [f'{{"step": 0, "far": {2.0**60}}}']
    with opened as run:
        run.resume()
        with pytest.raises(BadInput, match="were stored before"):
            run.items("right", ["a"], [1], at={"step": 40}, where={"layers": [2, 0.5], "radius": 1})
        opened.attempt.finish()
    table = pq.read_table(opened.folder / "items.parquet").to_pydict()
    assert table["at"] == ['{"step": 40}'] * 2
    assert table["where"] == ['{"layers": [2, 0.5], "radius": 1}', '{"layers": [2, 0.5], "radius": true}']


def test_text_that_utf8_cannot_hold_is_kept_as_its_escape(opened):
    """A model can write half of a surrogate pair; an item that is named by it is not lost, nor is the run."""
    with opened as run:
        run.items("right", ["a\ud800", "ä"], [1, 0], clusters=["\udfff", "x"], where={"said": "\ud800"})
        with pytest.raises(BadInput, match="comes twice"):
            run.items("right", ["a\ud800", r"a\ud800"], [1, 0])
        opened.attempt.finish()
    table = pq.read_table(opened.folder / "items.parquet").to_pydict()
    assert table["item"] == [r"a\ud800", "ä"] and table["cluster"] == [r"\udfff", "x"]
    assert json.loads(table["where"][0]) == {"said": r"\ud800"}
