"""Where the job's predictor comes from: rates of other models read and divided, embeddings, and the job with both."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.core.files import sha256_file
from equipoise.data.problems import Problem
from equipoise.reinforcement import predicting, training
from equipoise.reinforcement.dots import DifficultyPredictor
from equipoise.reinforcement.job import reinforce
from equipoise.reinforcement.predicting import PredictorSource, Rates, embedded
from equipoise.reinforcement.recipe import recipe
from reinforcement_world import SMALL, model

POOL = [Problem(f"p{index}", f"What is {index}, or {'x ' * (index % 4)}?", ("a",)) for index in range(20)]


def rows_of(*models, count=20):
    return [
        {"id": f"p{place}", "model": name, "rate": (place * number % 5) / 4}
        for number, name in enumerate(models, start=1)
        for place in range(count)
    ]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rates_by_id_and_by_prompt(tmp_path):
    """In any order; what is about other prompts is counted, and so is what two prompts of one text have."""
    twice = [*POOL, replace(POOL[3], id="again")]
    rows = [*rows_of("one", count=18), {"prompt": POOL[3].prompt, "model": "two", "rate": 1}]
    rows += [{"id": f"held{place}", "model": "three", "rate": 0.5} for place in range(4)]
    rows += [
        {"id": None, "prompt": POOL[place].prompt, "model": "two", "rate": 0.25} for place in range(10) if place != 3
    ]
    found = Rates.read(written(tmp_path / "rates.jsonl", rows[::-1]), twice)
    assert set(found.models) == {"one", "two"} and found.left_out == 4 and found.rates.shape == (2, 21)
    one, two = (found.rates[found.models.index(name)] for name in ("one", "two"))
    assert one[:18].tolist() == [place % 5 / 4 for place in range(18)] and one[18:].isnan().all()
    assert two[:10].tolist() == [1.0 if place == 3 else 0.25 for place in range(10)]
    assert two[20] == 1.0 and two[10:20].isnan().all()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"model": "m", "rate": 0.5},
            r'rates.jsonl:41: expected "id" or "prompt", "model" and "rate" \(found: model, rate\)',
        ),
        ({"id": "p1", "rate": 0.5}, 'rates.jsonl:41: "model" is None, expected the name'),
        ({"id": "p1", "model": "", "rate": 0.5}, "rates.jsonl:41: \"model\" is '', expected the name"),
        ({"id": "p1", "model": 7, "rate": 0.5}, 'rates.jsonl:41: "model" is 7, expected the name'),
        (
            {"id": "p1", "model": "m", "rate": 1.01},
            r'rates.jsonl:41: "rate" is 1.01, expected a share of right responses',
        ),
        ({"id": "p1", "model": "m", "rate": True}, 'rates.jsonl:41: "rate" is True'),
        ({"id": "p1", "model": "m"}, 'rates.jsonl:41: "rate" is None'),
        (
            {"id": "p1", "model": "one", "rate": 0.5},
            "rates.jsonl:41: the rate of 'one' on 'p1' was given before: give one",
        ),
    ],
)
def test_a_row_that_is_wrong_is_named(row, said, tmp_path):
    with pytest.raises(BadInput, match=said):
        Rates.read(written(tmp_path / "rates.jsonl", [*rows_of("one", "two"), row]), POOL)


def test_rates_that_are_too_few(tmp_path):
    path = tmp_path / "rates.jsonl"
    with pytest.raises(BadInput, match="rates none of the 20 prompts that are learnt from: its ids or prompts must be"):
        Rates.read(written(path, [{**row, "id": "other"} for row in rows_of("one")]), POOL)
    with pytest.raises(
        BadInput, match="rates 15 of the prompts that are learnt from, 15 of them by every model: expected"
    ):
        Rates.read(written(path, rows_of("one", count=15)), POOL)
    with pytest.raises(
        BadInput, match="rates 20 of the prompts that are learnt from, 7 of them by every model: expected"
    ):
        Rates.read(written(path, [*rows_of("one"), *rows_of("two", count=7)]), POOL)
    with pytest.raises(BadInput, match="no such file"):
        Rates.read(tmp_path / "rate.jsonl", POOL)


def test_half_of_what_was_rated_are_references(tmp_path, monkeypatch):
    """Such as every model has met; difficulty is 1 minus the rate; the rest is learnt from, with holes."""
    given = []
    monkeypatch.setattr(DifficultyPredictor, "fit", lambda *tensors, **named: given.append((tensors, named)))
    embeddings = torch.arange(20.0).unsqueeze(-1)
    read = Rates.read(written(tmp_path / "rates.jsonl", [*rows_of("one"), *rows_of("two", count=9)]), POOL)
    for seed, questions in ((0, 256), (1, 8)):
        read.fit(embeddings, recipe("grpo", select="dots", seed=seed, reference_questions=questions))
    (first, named), (second, other) = given
    queries, difficulty, references, of_references = first
    places, chosen = queries.flatten().long(), references.flatten().long()
    assert len(chosen) == 9 and chosen.tolist() == list(range(9)) and places.tolist() == list(range(9, 20))
    assert_close(difficulty, 1 - read.rates[:, places], equal_nan=True)
    assert_close(of_references, 1 - read.rates[:, chosen]) and not of_references.isnan().any()
    assert (named, other) == ({"seed": 0, "references": 9}, {"seed": 1, "references": 8})
    whole = Rates.read(written(tmp_path / "rates.jsonl", rows_of("one", "two")), POOL)
    for seed in (0, 1):
        whole.fit(embeddings, recipe("grpo", select="dots", seed=seed))
    (one, _), (two, _) = given[2:]
    assert len(one[2]) == 10 and sorted((*one[0].flatten().tolist(), *one[2].flatten().tolist())) == list(range(20))
    assert one[2].tolist() != two[2].tolist() and second[2].tolist() == references.tolist()


def test_embeddings_are_means_of_last_states_of_the_raw_text(tmp_path):
    """Of texts of unequal lengths, one by one; a chat template in use changes nothing."""
    language_model = model()
    language_model.tokenizer = copy.deepcopy(language_model.tokenizer)  # the other is shared
    language_model.tokenizer.chat_template = "{{ messages[0].content }} and more"
    found = embedded(language_model, POOL, tmp_path / "embeddings")
    tokenizer = language_model.tokenizer
    for place in (0, 3, 17):
        ids = torch.tensor([tokenizer(POOL[place].prompt).input_ids])
        with torch.no_grad():
            states = language_model.model.model(input_ids=ids).last_hidden_state
        assert_close(found[place], states[0].mean(dim=0), rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32 and language_model.uses_chat_template


def test_what_a_request_says_of_its_predictor(tmp_path):
    rates, folder = written(tmp_path / "rates.jsonl", rows_of("one", "two")), tmp_path / "predictor"
    DifficultyPredictor(12, seed=0, hidden=4).save(folder)
    dots = recipe("grpo", select="dots", reference_questions=8, prompts_per_step=4)
    assert PredictorSource.read(recipe("grpo"), POOL, None, None) is None
    for given, told in (
        ((None, rates), f"fitted to the rates of 2 models in {rates}"),
        ((folder, None), f"the one in {folder}"),
        (
            (None, None),
            "none was learnt: the model's own embeddings as they are (--rates or --predictor give a better one)",
        ),
    ):
        source = PredictorSource.read(dots, POOL, *given)
        assert source.told == told and len(source.inputs) == sum(each is not None for each in given)
    before = PredictorSource.read(dots, POOL, folder, None)
    digest = before.inputs
    with pytest.raises(BadInput, match=r"reads embeddings of 12 numbers, and .* gives \d+: fit one to this model's"):
        before.check(model())
    DifficultyPredictor(12, seed=1, hidden=4).save(folder)
    assert before.inputs != digest
    for chosen, problems, given, said in (
        (dots, POOL, (folder, rates), "a predictor and rates were given, from which another would be fitted: give one"),
        (dots, POOL, (tmp_path, None), "holds no difficulty predictor"),
        (dots, POOL[:7], (None, None), "reference_questions is 8, and there are 7 prompts"),
        (recipe("grpo"), POOL, (folder, None), "predictor is of use with select=dots alone, and select is 'uniform'"),
        (
            recipe("grpo", select="oracle", prompts_per_step=4),
            POOL,
            (None, rates),
            "rates is of use with select=dots alone",
        ),
    ):
        with pytest.raises(BadInput, match=said):
            PredictorSource.read(chosen, problems, *given)


def test_a_predictor_of_this_width_is_taken(tmp_path):
    DifficultyPredictor(300, seed=0, hidden=4).save(tmp_path)
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=int("300")))
    PredictorSource(tmp_path).check(SimpleNamespace(model=SimpleNamespace(config=config), name="m"))  # type: ignore


@pytest.mark.parametrize(("main", "stored", "order"), [
    (True, True, ["embedded", "wait"]), (False, True, ["wait", "embedded"]),
    (True, False, ["embedded"]), (False, False, ["embedded"]),
])  # fmt: skip
def test_of_several_processes_one_makes_what_the_others_read(main, stored, order, tmp_path, monkeypatch):
    found, folders = [], []
    monkeypatch.setattr(
        predicting, "embedded", lambda *given: found.append("embedded") or folders.append(given[-1]) or torch.eye(20)
    )
    processes = SimpleNamespace(main=main, wait=lambda: found.append("wait"))
    dots = recipe("grpo", select="dots", reference_questions=8, prompts_per_step=4)
    sampler = PredictorSource().sampler(dots, None, POOL, tmp_path if stored else None, processes)  # type: ignore
    assert found == order and torch.equal(sampler.embeddings, torch.eye(20))
    assert (folders[0].parent == tmp_path) is stored and folders[0].parent.exists() is stored


def odd(completions, **_):
    return [float(len(each) % 2) for each in completions]


HOW = {
    **SMALL,
    "eval_samples": 2,
    "evaluate_every": 9,
    "reward": odd,
    "method": "grpo",
    "num_generations": 2,
    "steps": 4,
}
HOW |= {"select": "dots", "replay": 0.5, "reference_questions": 8, "prompts_per_step": 4, "save_every": 1}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("damaged", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_job_with_rates_is_told_and_goes_on_where_it_was_cut(damaged, tmp_path, monkeypatch):
    """Cut within a block with groups in the buffer: the same bytes, also when its predictor was damaged."""
    fitted, fit = [], Rates.fit
    monkeypatch.setattr(Rates, "fit", lambda self, *given: fitted.append(1) or fit(self, *given))
    rates = written(tmp_path / "rates.jsonl", [*rows_of("one", "two"), {"id": "held", "model": "one", "rate": 0.5}])
    whole = reinforce(model(), prompts=POOL, rates=rates, out=tmp_path / "whole", **HOW)
    calls = 0
    learn = training._Loop._learn

    def killed(self, step):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Killed
        return learn(self, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training._Loop, "_learn", killed)
        reinforce(model(), prompts=POOL, rates=rates, out=tmp_path / "cut", **HOW)
    assert len(fitted) == 2
    if damaged:
        (stored,) = (path for path in tmp_path.rglob("predictor.safetensors") if "whole" not in path.parts)
        stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    again = reinforce(model(), prompts=POOL, rates=rates, out=tmp_path / "cut", **HOW)
    for file in ("model.safetensors", "metrics.jsonl", "predictor/predictor.safetensors", "predictor/predictor.json"):
        assert sha256_file(tmp_path / "cut" / file) == sha256_file(tmp_path / "whole" / file), file
    assert again.selected == whole.selected and again.tokens == whole.tokens and len(fitted) == 2 + damaged
    assert not (tmp_path / "whole" / "embeddings").exists()
    selected, rows = whole.selected, [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").open()]
    assert (selected.fresh.groups, selected.replayed, selected.statistics.blocks) == (12, 4, 2)
    assert selected.measured_tokens == sum(row["reference_tokens"] for row in rows)
    assert whole.tokens["training"] == sum(row["generated_tokens"] for row in rows) > selected.measured_tokens > 0
    assert whole.predictor == f"fitted to the rates of 2 models in {rates}"
    assert "1 rates are of prompts that are not learnt from, and were left out." in whole.notes
    assert set(selected.sentences()) < set(whole.summary())
    page = (tmp_path / "whole" / "report.html").read_text()
    for title in (
        "Which prompts were learnt from",
        "Groups that teach something",
        "Groups that came again",
        "Staleness",
        "Predicted and measured difficulty",
        "Of 24 responses written to learn from",
        "4 groups came again from earlier steps: 25% of what was learnt from.",
        "Predictor of difficulty: fitted to the rates of 2 models",
    ):
        assert title in page, title


def test_the_job_without_a_predictor_says_so(tmp_path):
    result = reinforce(model(), prompts=POOL, **{**HOW, "steps": 2, "replay": 0.0})
    assert result.predictor.startswith("none was learnt: the model's own embeddings") and result.selected.replayed == 0
    plain = reinforce(model(), prompts=POOL, **{**HOW, "steps": 1, "replay": 0.0, "select": "uniform"})
    assert plain.selected is None and plain.predictor == ""
    assert not any("taught something" in line for line in plain.summary())


def test_a_plan_counts_what_is_measured():
    uniform, dots = (reinforce.plan(model(), prompts=POOL, **{**HOW, "select": word}) for word in ("uniform", "dots"))
    assert dots.generated_tokens - uniform.generated_tokens == 2 * 8 * 2 * SMALL["max_new_tokens"]


def test_a_predictor_of_another_width_is_refused_by_run_and_plan(tmp_path, monkeypatch):
    DifficultyPredictor(12, seed=0, hidden=4).save(tmp_path / "predictor")
    monkeypatch.setattr(predicting, "embedded", lambda *_: pytest.fail("the work began"))
    for call in (reinforce, reinforce.plan):
        with pytest.raises(BadInput, match="reads embeddings of 12 numbers"):
            call(model(), prompts=POOL, predictor=tmp_path / "predictor", **HOW)
