"""What `prm score` makes of scores, by hand: shares, means by place, what is flagged, and the steps that are lowest."""

import json
import math
from types import SimpleNamespace

import pytest

from equipoise.core.errors import BadInput
from equipoise.data.steps import read_steps
from equipoise.reinforcement import prm_scoring
from equipoise.reinforcement.prm_scoring import Scoring

NAN = math.nan
SCORES = [[0.5, 0.25, 0.75], [0.9, NAN], [0.1, 0.25], [1.0], [NAN, NAN], [0.5, NAN, 0.0]]
ROWS = [
    {"id": f"s{n}", "problem": f"p{n}?", "steps": [f"{n}{t}" for t in range(len(its))]} for n, its in enumerate(SCORES)
]


@pytest.fixture
def scored(monkeypatch):
    monkeypatch.setattr(Scoring, "_opened", lambda self: (SimpleNamespace(source="m"), []))
    monkeypatch.setattr(prm_scoring, "step_scores", lambda *_: SCORES)

    def work(folder=None, **changes):
        given = {"format": "scores", "threshold": None, "limit": None, "batch_size": 4, "loading": {}}
        return Scoring.read("model", ROWS, **{**given, **changes}).work(folder)

    return work


def test_what_is_told_of_scores(scored):
    found = scored()
    assert (found.solutions, found.steps, found.unread, found.spread) == (6, 13, 4, 1.0)
    assert found.mean == pytest.approx((0.5 + 0.25 + 0.75 + 0.9 + 0.1 + 0.25 + 1.0 + 0.5 + 0.0) / 9)
    assert found.shares == pytest.approx({"0.1": 8 / 9, "0.25": 7 / 9, "0.5": 5 / 9, "0.75": 3 / 9, "0.9": 2 / 9})
    assert found.by_place[:3] == pytest.approx([(0.5 + 0.9 + 0.1 + 1.0 + 0.5) / 5, 0.25, 0.375])
    assert len(found.by_place) == 12 and all(math.isnan(each) for each in found.by_place[3:])
    assert (found.threshold, found.flagged) == (None, None)
    lowest = [(each.probability, each.id, each.problem, each.at, each.step) for each in found.lowest]
    assert lowest == [
        (0.0, "s5", "p5?", 2, "52"), (0.1, "s2", "p2?", 0, "20"), (0.25, "s0", "p0?", 1, "01"), (0.25, "s2", "p2?", 1, "21"),
        (0.5, "s0", "p0?", 0, "00"), (0.5, "s5", "p5?", 0, "50"), (0.75, "s0", "p0?", 2, "02"), (0.9, "s1", "p1?", 0, "10"),
    ]  # fmt: skip
    assert found.scores["s3"] == [1.0]


def test_a_solution_is_flagged_by_its_first_step_below(scored, tmp_path):
    """s0 and s2 have one; of s1, s4 and s5 it is not known which is the first, or whether there is one."""
    found = scored(tmp_path, threshold=0.5)
    assert (found.threshold, found.flagged) == (0.5, 2)
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["first_error"] for row in rows] == [1, None, 0, -1, None, None]
    assert rows[5]["scores"] == [0.5, None, 0.0] and not (tmp_path / "stepwise.jsonl").exists()


def test_labels_for_another_trainer_begin_at_the_threshold(scored, tmp_path):
    found = scored(tmp_path, format="trl")
    assert found.threshold == 0.5
    rows = [json.loads(line) for line in (tmp_path / "stepwise.jsonl").read_text().splitlines()]
    assert [row["labels"] for row in rows] == [[True, False, True], [True], [False, False], [True], [True, False]]
    assert rows[1] == {"prompt": "p1?", "completions": ["10"], "labels": [True]}
    assert scored(format="trl", threshold=0.25).threshold == 0.25
    assert scored(threshold=0.0).flagged == 0  # no step is below 0
    told = Scoring._stepwise(SimpleNamespace(threshold=0.5), SimpleNamespace(problem="ä", steps=("ö",)), [0.5])
    assert told.decode() == '{"prompt": "ä", "completions": ["ö"], "labels": [true]}\n'


def test_solutions_and_rows_are_not_mixed():
    ready = read_steps(ROWS, use="ignored")
    for mixed in ([ready[0], ROWS[1]], [*ready, ROWS[1]]):
        with pytest.raises(BadInput, match="solutions mixes solutions and rows: give one or the other"):
            prm_scoring.read_solutions("solutions", mixed, use="ignored", limit=None)
    found, named, inputs = prm_scoring.read_solutions("solutions", ready, use="ignored", limit=2)
    assert (len(found), named, inputs) == (2, "2 solutions", {})
    many = read_steps([{"id": str(n), "problem": "p", "steps": ["a"]} for n in range(300)], use="ignored")
    assert len(prm_scoring.read_solutions("solutions", many, use="ignored", limit=None)[0]) == 300


def test_sixty_four_are_read_at_once(monkeypatch):
    asked = []

    def score(language_model, read, batch_size):
        asked.append((len(read), batch_size))
        return [SimpleNamespace(tolist=lambda: [0.5]) for _ in read]

    monkeypatch.setattr(prm_scoring.prm, "score", score)
    solutions = read_steps([{"id": str(n), "problem": "p", "steps": ["a"]} for n in range(130)], use="ignored")
    rows = prm_scoring.Rows(None)
    assert prm_scoring.step_scores(None, solutions, rows, 7) == [[0.5]] * 130  # type: ignore[arg-type]
    assert asked == [(64, 7), (64, 7), (2, 7)]
    prm_scoring.step_scores(None, solutions, rows, 7)  # type: ignore[arg-type]
    prm_scoring.step_scores(None, solutions[1:], prm_scoring.Rows(None), 7)  # type: ignore[arg-type]
    assert asked[3:] == [(64, 7), (64, 7), (1, 7)]
