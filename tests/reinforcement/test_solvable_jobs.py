"""The jobs `solvable fit` and `solvable score`: what they learn, refuse, resume, keep and say."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from equipoise.chat import client
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.shares import Bounded
from equipoise.data.problems import Problem, read_problems
from equipoise.data.records import Message
from equipoise.reinforcement import solvable, solvable_scoring
from equipoise.reinforcement import solvable_fitting as fitting
from equipoise.reinforcement.solvable_job import fit, score
from equipoise.reinforcement.solvable_result import CONSTANT, CRITIC, LENGTH
from equipoise.reinforcement.solvable_scorer import Scorer
from faulty_server import FaultyServer
from reinforcement_world import equal, model, weights

EASY, HARD = "Where was {} born?", "no maybe {} seven"
PROBLEMS = [
    Problem(f"p{i}", (EASY if i % 3 else HARD).format(f"{i} <script>alert(1)</script>"), ("yes",)) for i in range(60)
]
QUICK = {"samples": 2, "max_new_tokens": 2, "epochs": 6, "learning_rate": 1e-2, "batch_size": 8, "save_every": 1}


def by_prompt(prompts, completions, **_):
    """Right where the problem is easy, but for two; answers do not matter."""
    return [float(("born" in prompt) != (" 4" in prompt and len(prompt) % 2 == 0)) for prompt in prompts]


def fitted(out=None, problems=PROBLEMS, **more):
    return fit(model(), prompts=problems, **{"reward": by_prompt, **QUICK, **more}, out=out)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("solvable") / "scorer"
    return SimpleNamespace(folder=folder, result=fitted(folder))


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_learns_which_prompts_are_solved(done):
    result = done.result
    assert result.gains[CONSTANT]["Brier"].lower > 0 and result.warnings()[:0] == ()
    assert result.measures[CRITIC]["AUROC"].value > 0.9 > result.measures[CONSTANT]["AUROC"].value == 0.5
    assert result.problems == {"fit": 24, "stopping": 6, "calibration": 12, "test": 18}
    outcomes = rows(done.folder / "outcomes.jsonl")
    assert [each["id"] for each in outcomes] == [problem.id for problem in PROBLEMS]
    scorer = Scorer.load(done.folder)
    found = scorer([problem.prompt for problem in PROBLEMS], batch_size=7)
    assert found.tolist() == pytest.approx([each["probability"] for each in outcomes], abs=1e-5)
    assert scorer([PROBLEMS[5].prompt]).tolist() == pytest.approx([outcomes[5]["probability"]], abs=1e-5)
    page = (done.folder / "report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_it_goes_on_where_it_was_killed(done, tmp_path, monkeypatch):
    """In the sampling, and in the fitting: no problem is asked twice, and the files are the same bytes."""
    asked, again = [], fitting.own_responses

    def counted(*args):
        generate = again(*args)

        def counting(prompts, *rest):
            if len(asked) == 2:
                asked.append(0)
                raise KeyboardInterrupt
            asked.append(len(prompts))
            return generate(prompts, *rest)

        return counting

    monkeypatch.setattr(fitting, "own_responses", counted)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "scorer")
    saves, store = [], fitting.save_state

    def stopping(path, state):
        store(path, state)
        saves.append(1)
        if len(saves) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "save_state", stopping)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "scorer")
    fitted(tmp_path / "scorer")
    assert sum(asked) == len(PROBLEMS)
    for name in ("outcomes.jsonl", "sampled.jsonl", "scorer.json", "result.json", "metrics.jsonl"):
        assert (tmp_path / "scorer" / name).read_bytes() == (done.folder / name).read_bytes(), name
    one, other = (Scorer.load(folder).critic for folder in (done.folder, tmp_path / "scorer"))
    assert equal(weights(one), weights(other))


def test_nothing_to_learn_is_said_at_once_and_refused(capsys):
    with pytest.raises(
        WorkFailed, match=r"^There is nothing to learn\. All 24 problems .* same share, 0\.5: use prompts nearer"
    ):
        fitted(reward=lambda prompts, **_: [0.5] * len(prompts))
    assert "All 16 problems so far are solved in the same share, 0.5" in capsys.readouterr().err


def test_a_critic_that_knows_nothing_says_so_first(done):
    """Rates that do not follow from the prompt."""
    result = fitted(reward=lambda prompts, **_: [float(sum(map(ord, p)) % 7 < 3) for p in prompts], epochs=1)
    assert not result.gains[CONSTANT]["Brier"].lower > 0
    first = result.summary()[0]
    assert first.startswith("The critic is not shown to predict better than the mean solve rate alone")
    assert result.headline().startswith(first) and "Use more prompts" in first
    assert result.measures[LENGTH].keys() == result.measures[CRITIC].keys()


def test_what_is_said_goes_no_further_than_the_interval(done):
    """Of a gain: above 0, around it, below it, and unknown; by the mean rate, and by the length."""

    def said(constant, length):
        gains = {
            **done.result.gains,
            CONSTANT: {**done.result.gains[CONSTANT], "Brier": Bounded(*constant)},
            LENGTH: {**done.result.gains[LENGTH], "Brier": Bounded(*length)},
        }
        return " ".join(replace(done.result, gains=gains).warnings())

    above, around, below, unknown = (0.2, 0.1, 0.3), (0.02, -0.1, 0.1), (-0.2, -0.3, -0.1), (0.2, math.nan, math.nan)
    assert said(above, above) == ""
    for gain in (around, unknown):
        assert said(gain, above).startswith("The critic is not shown to predict better than the mean solve rate alone")
        assert said(above, gain).startswith("The critic is not shown to predict better than the length of the prompt")
    assert said(below, above).startswith("The critic predicts worse than the mean solve rate alone")
    assert said(above, below).startswith("The critic predicts worse than the length of the prompt alone")


def test_the_floor_is_an_estimate_that_true_rates_can_beat(done):
    rng = np.random.default_rng(0)
    rates = rng.beta(3, 3, (300, 15))
    rewards = (rng.random((300, 15, 4)) < rates[..., None]).astype(float)
    below = [
        solvable.squared_errors(q, each).mean() < solvable.floor(each) for q, each in zip(rates, rewards, strict=True)
    ]
    assert 0.3 < np.mean(below) < 0.7
    page = (done.folder / "report.html").read_text()
    assert "(estimated)" in page and "No prediction of these problems" not in page


@pytest.mark.parametrize("wrong", [1.5, -1.0])
def test_a_reward_outside_is_refused_by_its_problem(wrong):
    with pytest.raises(
        BadInput, match=rf"response to problem 'p3' is {wrong:g}, expected a number in \[0, 1\]\. Rescale"
    ):
        fitted(reward=lambda prompts, **_: [wrong if " 3 " in prompt else 0.0 for prompt in prompts])


def test_a_server_that_dies_is_asked_for_the_rest(tmp_path, monkeypatch):
    pytest.importorskip("inspect_ai")
    monkeypatch.setenv("LOCAL_API_KEY", "sk-test-0123456789abcdef")
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.001)
    monkeypatch.setattr(client, "PATIENCE", 2)
    monkeypatch.setattr("inspect_ai.model._model.format_traceback", lambda *_: ("", ""), raising=False)
    model().save(tmp_path / "small")

    class Server(FaultyServer):
        def _answer(self, handler, body, question, times):
            self._say(handler, question, "yes" if "born" in question else "\ud800 no")

    def ask(out):
        given = {**QUICK, "epochs": 1, "samples": 1, "verifier": "exact", "critic": tmp_path / "small"}
        served = {"model_url": server.url, "max_connections": 2}
        return fit("openai-api/local/m", prompts=PROBLEMS, **given, **served, out=out)

    with Server() as server:
        server.die_after = 20
        with pytest.raises(WorkFailed, match="the same command goes on"):
            ask(tmp_path / "a")
        server.die_after = None
        result = ask(tmp_path / "a")
        assert set(server.answered.values()) == {1} and len(server.answered) == len(PROBLEMS)
    assert result.calls >= len(PROBLEMS) and result.tokens > 0
    assert [each["solve_rate"] for each in rows(tmp_path / "a" / "outcomes.jsonl")] == [
        float(i % 3 > 0) for i in range(60)
    ]


def test_new_prompts_are_scored_and_kept(done, tmp_path):
    given = [{"ask": PROBLEMS[i].prompt, "n": i} for i in range(6)]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    how = {"prompts": tmp_path / "new.jsonl", "fields": {"prompt": "ask"}}
    result = score(done.folder, **how, keep="0.5:1", out=tmp_path / "scores")
    found = rows(tmp_path / "scores" / "scores.jsonl")
    known = [each["probability"] for each in rows(done.folder / "outcomes.jsonl")[:6]]
    assert [each["probability"] for each in found] == pytest.approx(known, abs=1e-5)
    kept = [i for i, p in enumerate(known) if p >= 0.5]
    assert 0 < len(kept) < 6 and result.kept == len(kept)
    assert rows(tmp_path / "scores" / "kept.jsonl") == [{**given[i], "id": f"new-{i + 1}"} for i in kept]
    assert result.expected == pytest.approx(sum(known) / 6, abs=1e-5)
    alone = score(done.folder, prompts=PROBLEMS[:6])
    assert alone.kept is None and list(alone.scores.values()) == pytest.approx(known, abs=1e-5)
    page = (tmp_path / "scores" / "report.html").read_text()
    assert "<script>alert" not in page


def test_rows_are_kept_as_they_were_in_words_that_json_has(done, tmp_path):
    columns = {
        "prompt": [EASY.format("a"), EASY.format("b"), EASY.format("c")],
        "answer": ["1", "2", "3"],
        "rating": [math.nan, 2.0, math.inf],
        "parts": [[0.5, math.nan], [], None],
        "count": pa.array([None, 3, 4], pa.int64()),
        "id": [7, 8, 9],
    }
    pq.write_table(pa.table(columns), tmp_path / "new.parquet")
    score(done.folder, prompts=tmp_path / "new.parquet", keep="0:1", out=tmp_path / "scores")

    def no_json(word):
        pytest.fail(f"{word} is no JSON")

    lines = (tmp_path / "scores" / "kept.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=no_json) for line in lines]
    assert [row["id"] for row in found] == [7, 8, 9] and [row["rating"] for row in found] == [None, 2.0, None]
    assert [row["parts"] for row in found] == [[0.5, None], [], None] and [row["count"] for row in found] == [
        None,
        3,
        4,
    ]
    again = read_problems(tmp_path / "scores" / "kept.jsonl")
    assert [(p.id, p.prompt, p.gold) for p in again] == [
        (p.id, p.prompt, p.gold) for p in read_problems(tmp_path / "new.parquet")
    ]


def test_another_folder_is_no_scorer(done, tmp_path):
    with pytest.raises(BadInput, match=r"has no manifest\.json"):
        score(tmp_path, prompts=PROBLEMS)
    head = done.folder / "critic" / "critic_head.safetensors"
    whole = head.read_bytes()
    head.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(BadInput, match=r"is damaged \(critic/critic_head\.safetensors\)"):
            score(done.folder, prompts=PROBLEMS)
    finally:
        head.write_bytes(whole)
    with pytest.raises(BadInput, match=r"keep is '0.8:0.2', expected LOW:HIGH"):
        score(done.folder, prompts=PROBLEMS, keep="0.8:0.2")


def test_what_cannot_be_meant_is_refused_before_anything_is_read():
    for given, told in (
        ({"model": "http://here/v1"}, "give it as --model-url"),
        ({"model": "openai-api/local/m"}, "give a model here as --critic"),
        ({"model": "small", "model_args": {"top_k": 1}}, "model_args are for a server"),
        ({"model": "small", "budget": "calls=5"}, "budget is for chat models"),
    ):
        with pytest.raises(BadInput, match=told):
            fit(**given, prompts=PROBLEMS, verifier="exact")
    assert torch.is_grad_enabled()


def test_what_is_kept_is_a_row_of_its_own_fields():
    asked = (Message("user", "1 + 1?"), Message("assistant", "2"), Message("user", "and 3?"))
    rows = [
        solvable_scoring._as_row(each)
        for each in (Problem("a", "1 + 2", ("3", "4")), Problem("b", "and 3?", ("5",), asked, "g"))
    ]
    turns = [{"role": turn.role, "content": turn.content} for turn in asked]
    assert rows == [{"prompt": "1 + 2", "gold": ["3", "4"]}, {"prompt": turns, "gold": ["5"], "group": "g"}]
    given = {"prompt": "x", "empty": ""}
    assert solvable_scoring._as_row(given) == given and solvable_scoring._as_row(given) is not given
    line = solvable_scoring._line({"id": 7, "of": (1.5, math.nan, {"a": [-math.inf, 0]}), "prompt": "x"}, "8")
    assert json.loads(line) == {"id": "8", "of": [1.5, None, {"a": [None, 0]}], "prompt": "x"} and line.endswith("}\n")
    assert json.loads(solvable_scoring._line({"id": 7}, "7")) == {"id": 7}  # as it was written
