"""The jobs `prm train`, `prm score` and `prm evaluate`: what they learn, refuse, resume, keep and say."""

import copy
import hashlib
import json
import math
import re
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from equipoise.core.errors import BadInput
from equipoise.data.steps import read_steps
from equipoise.language.model import load
from equipoise.reinforcement import nait, prm, prm_scoring
from equipoise.reinforcement import prm_training as training
from equipoise.reinforcement.prm_evaluation_job import evaluate
from equipoise.reinforcement.prm_scoring_job import score
from equipoise.reinforcement.prm_training_job import LossName, PrmTraining, train
from reinforcement_world import model as made_model
from small_jobs import small_prm

WORDS = ["yes", "no", "maybe", "one two", "three four", "Oslo", "Paris", "Norway"]
QUICK = {"stages": 2, "epochs": 4.0, "learning_rate": 1e-2, "batch_size": 16, "held_out": 0.25, "save_every": 2}


def model():
    """Untaught, with a tokenizer of its own: it is given tokens."""
    found = made_model()
    found.tokenizer = copy.deepcopy(found.tokenizer)
    return found


def labelled(count=48, seed=0):
    """Two solutions a problem; "no" and "maybe" are wrong, and one label in ten is drawn; one is not known."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        steps = [WORDS[k] for k in rng.integers(0, len(WORDS), size=int(rng.integers(2, 5)))]
        truth = [step not in ("no", "maybe") for step in steps]
        labels = [bool(rng.random() < 0.5) if rng.random() < 0.1 else y for y in truth]
        rows.append({"id": f"s{number}", "problem": f"Born <b>{number // 2}</b>?", "steps": steps, "labels": labels})
    rows[0]["labels"][1] = None
    return rows


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prm")
    labels = write(folder / "labels.jsonl", labelled())
    result = train(model(), labels=labels, **{**QUICK, "stages": 3}, out=folder / "prm")
    return SimpleNamespace(folder=folder / "prm", labels=labels, result=result)


# prm train


def test_it_learns_which_steps_are_right_on_problems_held_out(done):
    result = done.result
    assert [each.number for each in result.stages] == [1, 2, 3] and result.stopped == ""
    assert result.stages[0].auroc.value > 0.6 and result.stages[0].steps == math.ceil(4 * 36 / 16)
    assert result.counts["held out"]["problems"] == 6 and result.counts["to learn from"]["solutions"] == 36
    known = sum(y is not None for row in labelled() for y in row["labels"])
    assert sum(each["steps"] for each in result.counts.values()) == known
    first = result.stages[0]
    assert first.positives + first.negatives == result.counts["to learn from"]["steps"] and first.soft == 0
    assert first.right_score > first.wrong_score and math.isnan(result.stages[-1].positives_kept)
    assert result.drift.startswith("The class weights 0.167 and 0.833 pull scores towards wrong")
    assert (
        result.drift in result.warnings() and result.drift not in result.headline() and result.drift in result.summary()
    )
    page = (done.folder / "report.html").read_text()
    assert "<b>1" not in page and "&lt;b&gt;" in page and "0.06716" in page


def test_the_folder_is_a_model_of_transformers_that_says_how_it_is_read(done):
    network = AutoModelForCausalLM.from_pretrained(done.folder)
    tokenizer = AutoTokenizer.from_pretrained(done.folder)
    about = json.loads((done.folder / "prm.json").read_text())
    ids = about["tokens"]
    assert (
        ids == {"[PRM]": 300, "[POS]": 301, "[NEG]": 302}
        and about["weights"] == [1 / 6, 5 / 6]
        and about["stages"] == 3
    )
    problem, steps = "Born <b>1</b>?", ["yes", "no"]
    encoded = tokenizer(problem + "".join(f"\n{step} [PRM]" for step in steps), return_tensors="pt").input_ids
    logits = network(input_ids=encoded).logits[0][encoded[0] == ids["[PRM]"]]
    expected = logits[:, [ids["[POS]"], ids["[NEG]"]]].softmax(-1)[:, 0]
    (found,) = prm.score(load(done.folder, device="cpu"), [(problem, steps)])
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert done.result.gap < 1e-4


def stage(folder, number):
    """Labels and scores of its solutions."""
    rows = lines(folder / f"stage-{number}" / "labels.jsonl")
    return [row["labels"] for row in rows], [row["scores"] for row in rows]


def refreshed(anchors, scores):
    return [
        [y if y is None or abs(r - y) <= 0.25 else r for y, r in zip(ys, rs, strict=True)]
        for ys, rs in zip(anchors, scores, strict=True)
    ]


def test_labels_give_way_to_scores_that_are_far_from_those_given(done):
    given, scores = stage(done.folder, 1)
    second, later = stage(done.folder, 2)
    third, last = stage(done.folder, 3)
    assert second == refreshed(given, scores) != given
    assert third == refreshed(given, later) != refreshed(second, later) and set(last) == {None}
    one = done.result.stages[0]
    pairs = [(y, r) for ys, rs in zip(given, scores, strict=True) for y, r in zip(ys, rs, strict=True) if y is not None]
    assert one.positives_kept == pytest.approx(np.mean([r >= 0.75 for y, r in pairs if y == 1]))
    assert one.negatives_kept == pytest.approx(np.mean([r <= 0.25 for y, r in pairs if y == 0]))
    assert 0 < one.positives_kept < 1


@pytest.mark.slow
def test_or_to_scores_that_are_far_from_those_of_the_stage_before(done, tmp_path):
    train(model(), labels=done.labels, **{**QUICK, "stages": 3}, anchor="current", out=tmp_path / "prm")
    second, later = stage(tmp_path / "prm", 2)
    assert (second, later) == stage(done.folder, 2)
    third, _ = stage(tmp_path / "prm", 3)
    assert third == refreshed(second, later) != stage(done.folder, 3)[0]


def test_steps_that_are_never_learnt_count_nowhere(tmp_path):
    """max_length is below the model's context, so that the model scores steps that it does not learn."""
    rows = labelled()
    how = {**QUICK, "epochs": 1.0, "max_length": 32}
    result = train(model(), labels=rows, **how, out=tmp_path / "prm")
    given, scores = stage(tmp_path / "prm", 1)
    second, _ = stage(tmp_path / "prm", 2)
    known = sum(y is not None for row in rows for y in row["labels"])
    held = result.counts["held out"]["steps"]
    assert result.cut > 0 and [s.positives + s.negatives for s in result.stages] == [known - held - result.cut] * 2
    pairs = [(y, r) for ys, rs in zip(given, scores, strict=True) for y, r in zip(ys, rs, strict=True) if y is not None]
    assert len(pairs) == known - held - result.cut > 20
    assert result.stages[0].positives_kept == pytest.approx(
        np.mean([r >= 0.75 for y, r in pairs if y == 1]), nan_ok=True
    )
    assert second == refreshed(given, scores)
    named = {row["id"]: row["labels"] for row in rows}
    ids = [row["id"] for row in lines(tmp_path / "prm" / "stage-1" / "labels.jsonl")]
    lost = [
        (y, r)
        for name, ys, rs in zip(ids, given, scores, strict=True)
        for told, y, r in zip(named[name], ys, rs, strict=True)
        if told is not None and y is None
    ]
    assert len(lost) == result.cut and all(r is not None for _, r in lost)
    plan = train.plan(model(), labels=rows, **how)
    assert (plan.positives, plan.negatives) == (result.stages[0].positives, result.stages[0].negatives)


def test_killed_anywhere_it_goes_on_to_the_same_bytes(done, tmp_path, monkeypatch):
    """In the middle of the second stage, between its steps; while labels are refreshed; and while it is written."""
    store, refresh, saves = training.save_state, training.refresh, []

    def stopping(path, state):
        store(path, state)
        saves.append(state["stage"])
        if len(saves) == 8:
            raise KeyboardInterrupt

    def killed(*_):
        monkeypatch.setattr(training, "refresh", refresh)
        raise KeyboardInterrupt

    def again():
        return train(model(), labels=done.labels, **{**QUICK, "stages": 3}, out=tmp_path / "prm")

    monkeypatch.setattr(training, "save_state", stopping)
    monkeypatch.setattr(training, "refresh", killed)
    with pytest.raises(KeyboardInterrupt):  # behind the first stage
        again()
    assert set(saves) == {1}
    with pytest.raises(KeyboardInterrupt):  # within the second
        again()
    assert saves[-1] == 2
    result = again()
    assert result.stages == done.result.stages
    one, other = contents(done.folder), contents(tmp_path / "prm")
    drawn = {"report.html", "manifest.json", "run.json"}
    assert one.keys() == other.keys() and [name for name in one.keys() - drawn if one[name] != other[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("at", [4, 9, 13])
def test_so_it_does_with_an_adapter_restarts_and_looks(tmp_path, monkeypatch, at):
    how = {**QUICK, "parameters": "lora", "restart": True, "early_stop": "loss", "save_every": 1, "patience": 9}
    rows = labelled()
    result = train(model(), labels=rows, **how, out=tmp_path / "one")
    store, saves = training.save_state, []

    def stopping(path, state):
        store(path, state)
        saves.append(state["stage"])
        if len(saves) == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_state", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(model(), labels=rows, **how, out=tmp_path / "other")
    assert train(model(), labels=rows, **how, out=tmp_path / "other").stages == result.stages
    one, other = contents(tmp_path / "one"), contents(tmp_path / "other")
    drawn = {"report.html", "manifest.json", "run.json"}
    assert one.keys() == other.keys() and [name for name in one.keys() - drawn if one[name] != other[name]] == []


@pytest.mark.slow
def test_a_restart_learns_each_stage_from_the_start():
    """With nothing refreshed and whole batches both stages are the same training, up to the order of the sums."""
    whole = {**QUICK, "batch_size": 36, "threshold": 1.0, "weights": "none"}
    first, second = train(model(), labels=labelled(), **whole, restart=True).stages
    assert second.right_score == pytest.approx(first.right_score, abs=1e-3) and first.positives_kept == 1
    _, on = train(model(), labels=labelled(), **whole).stages
    assert on.right_score != pytest.approx(first.right_score, abs=3e-2)


def test_a_stage_that_is_no_better_is_undone(monkeypatch):
    """The third look of the first stage is the best, and no look of the second: the weights of that look are kept."""
    looks = iter([-3.0, -2.0, -1.0, -2.0, -2.0, -9.0, -9.0, -9.0])
    kept = {}

    def watched(self, language_model):
        value = next(looks)
        kept[value] = training.trained_weights(language_model.model)
        return value

    monkeypatch.setattr(training.Training, "_watched", watched)
    result = train(model(), labels=labelled(), **{**QUICK, "patience": 2, "early_stop": "auroc", "stages": 3})
    assert len(result.stages) == 1 and result.stages[0].steps == 5
    assert "Stage 2 was no better on problems held out" in result.stopped and result.stopped in result.headline()
    own = dict(result.model.model.named_parameters())
    assert all(torch.equal(own[name].cpu(), each) for name, each in kept[-1.0].items())


def test_an_adapter_is_merged_and_a_bound_on_length_is_told(tmp_path):
    made = model()
    rows = made.model.get_input_embeddings().weight.detach().clone()
    how = {**QUICK, "stages": 1, "epochs": 1.0, "parameters": "lora", "lora_rank": 2, "max_length": 20}
    result = train(made, labels=labelled(), **how, out=tmp_path / "prm")
    assert not (tmp_path / "prm" / "adapter_config.json").exists() and result.gap < 1e-4
    again = load(tmp_path / "prm", device="cpu").model.get_input_embeddings().weight
    assert torch.equal(again[:300], rows) and len(again) == 303
    assert (
        result.cut > 0
        and result.stages[0].steps == 1
        and any("lie beyond max_length" in each for each in result.warnings())
    )
    assert "threshold" not in result.settings and result.settings["lora_rank"] == 2
    plan = train.plan(model(), labels=labelled(), **how)
    assert plan.cut == result.cut and plan.trained_parameters == result.trained_parameters < 10_000
    assert plan.steps == result.stages[0].steps and plan.shown.startswith("<|begin|> Born")


@pytest.mark.parametrize(
    ("rows", "how", "words"),
    [
        ([{**row, "labels": [True] * len(row["steps"])} for row in labelled()], {}, r"none is labelled wrong \(below 0.5\)"),
        ([{**row, "labels": [0.25] * len(row["steps"])} for row in labelled()], {}, r"none is labelled right \(0.5 or"),
        (labelled(4), {"held_out": 0.1}, "held_out 0.1 of 2 problems leaves none to hold out: use more problems, another"),
        (labelled(4), {"held_out": 0.9}, "held_out 0.9 of 2 problems leaves none to learn from"),
        (labelled(), {"held_out": 0.0, "early_stop": "loss"}, "early_stop looks at problems held out, and held_out is 0"),
        (labelled(), {"held_out": 1.0}, "'held_out' should be below 1, but got 1.0"),
        (labelled(), {"threshold": 1.5}, "'threshold' should be at most 1, but got 1.5"),
        (labelled(), {"threshold": -0.1}, "'threshold' should be at least 0"),
        (labelled(), {"weights": (0.0, 1.0)}, "weights"),
        (labelled(), {"which": "soft"}, "row 1: no labels 'soft' .found: labels.: choose another --which"),
        (labelled(), {"max_length": 3}, "No labelled step fits into 3 tokens"),
        ([{**labelled()[0], "steps": ["a"]}], {}, "row 1: field 'labels': expected 1 labels, one for each step .*, found 4"),
        ([{"problem": "a?", "steps": ["b"]}], {}, r"row 1: no labels \(found: problem, steps\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_is_refused_before_it_begins(rows, how, words, monkeypatch):
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("it began"))
    for call in (train, train.plan):
        with pytest.raises(BadInput, match=words):
            call(model(), labels=rows, **{**QUICK, **how})


def test_other_requests_that_cannot_be_meant(monkeypatch):
    with pytest.raises(BadInput, match=r"row 1: the text holds \[PRM\], which marks the end of a step"):
        train(model(), labels=[{"problem": "a?", "steps": ["b [PRM]"], "labels": [1]}])
    with pytest.raises(BadInput, match="is a server, whose logits cannot be read from here"):
        train("http://here/v1", labels=labelled())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="works in one process"):
        train(model(), labels=labelled())


def test_whole_problems_are_held_out():
    solutions = read_steps(labelled())
    parts = training.divide(solutions, 0.25, 3)
    groups = [{each.group for each in part} for part in parts.values()]
    assert not groups[0] & groups[1] and len(groups[1]) == 6
    assert [len(part) for part in parts.values()] == [36, 12] and training.divide(solutions, 0.25, 4) != parts
    assert training.divide(solutions, 0.0, 3)["held out"] == ()


def test_the_words_of_the_loss_are_those_there_are():
    assert get_args(LossName) == get_args(nait.StepLoss) == tuple(nait.LOSSES)
    assert [PrmTraining().resolved_learning_rate(n) for n in (10**6, 10**8, 7 * 10**9)] == [1e-3, 1e-5, 1e-6]


# prm score


def test_scores_are_written_once_and_the_same_wherever_it_was_killed(done, tmp_path, monkeypatch):
    monkeypatch.setattr(prm_scoring, "AT_ONCE", 5)
    whole = score(done.folder, solutions=done.labels, threshold=0.5, out=tmp_path / "whole")
    asked, real = [], prm.score

    def killing(language_model, solutions, **how):
        if len(asked) == 3:
            asked.append(0)
            raise KeyboardInterrupt
        asked.append(len(solutions))
        return real(language_model, solutions, **how)

    monkeypatch.setattr(prm, "score", killing)
    with pytest.raises(KeyboardInterrupt):
        score(done.folder, solutions=done.labels, threshold=0.5, out=tmp_path / "killed")
    score(done.folder, solutions=done.labels, threshold=0.5, out=tmp_path / "killed")
    assert sum(asked) == 48
    one, other = ((tmp_path / name / "scores.jsonl").read_bytes() for name in ("whole", "killed"))
    assert one == other and not (tmp_path / "whole" / "scored.jsonl").exists()
    solutions = read_steps(done.labels)
    expected = real(load(done.folder, device="cpu"), [(each.problem, each.steps) for each in solutions])
    for row, each, r in zip(lines(tmp_path / "whole" / "scores.jsonl"), solutions, expected, strict=True):
        assert row["id"] == each.id and row["scores"] == pytest.approx(r.tolist(), abs=1e-5)
        assert row["first_error"] == nait.first_error(torch.tensor(row["scores"]), 0.5)
        assert whole.scores[each.id] == row["scores"]
    assert whole.flagged == sum(row["first_error"] >= 0 for row in lines(tmp_path / "whole" / "scores.jsonl"))
    assert whole.lowest[0].probability == min(map(min, whole.scores.values()))


def test_trl_reads_what_is_written_for_it(done, tmp_path):
    rows = [{"prompt": row["problem"], "completions": row["steps"]} for row in labelled()[:4]]
    long = {"prompt": "one", "completions": ["two three four " * 10, "yes", "no " * 60]}
    result = score(done.folder, solutions=[*rows, long], format="trl", out=tmp_path / "usual")
    found = lines(tmp_path / "usual" / "stepwise.jsonl")
    assert [row["completions"] for row in found] == [*(row["completions"] for row in rows), long["completions"][:2]]
    assert result.unread == 1 and "1 of" in result.headline() and "left out of stepwise.jsonl" in result.headline()
    assert "In stepwise.jsonl a step is labelled right from 0.5 on." in result.headline() and result.threshold == 0.5
    assert read_steps(tmp_path / "usual" / "stepwise.jsonl")[0].labels == tuple(map(float, found[0]["labels"]))
    scores = [row["scores"] for row in lines(tmp_path / "usual" / "scores.jsonl")]
    assert scores[:4] == list(result.scores.values())[:4] and scores[4][2] is None
    told = [[r for r in row if r is not None] for row in scores]
    edge = told[0][0]  # a threshold that a score equals
    score(done.folder, solutions=[*rows, long], format="trl", threshold=edge, out=tmp_path / "given")
    given = lines(tmp_path / "given" / "stepwise.jsonl")
    for file, threshold in ((found, 0.5), (given, edge)):
        assert {type(y) for row in file for y in row["labels"]} == {bool}
        # PRMTrainer's tokenize_row makes ints of them: what it learns is what was meant
        assert [[int(y) for y in row["labels"]] for row in file] == [[int(r >= threshold) for r in row] for row in told]


def test_solutions_in_memory_are_scored_like_their_rows(done):
    rows = labelled(6)
    objects = read_steps(rows)
    assert score(done.folder, solutions=objects, limit=2).scores == score(done.folder, solutions=rows, limit=2).scores
    with pytest.raises(BadInput, match="id 's0' was used before at row 1; make ids unique"):
        score(done.folder, solutions=[*objects, objects[0]])
    with pytest.raises(BadInput, match="its labels are 'labels', and which is soft"):
        train(model(), labels=objects, which="soft", **QUICK)


def test_a_model_that_was_altered_since_is_refused(done):
    weights = done.folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        for job, name in ((score, "solutions"), (evaluate, "data")):
            with pytest.raises(BadInput, match=r"prm is damaged \(model\.safetensors\): the command that made it"):
                job(done.folder, **{name: done.labels})
    finally:
        weights.write_bytes(whole)


def test_a_plain_model_scores_nothing():
    with pytest.raises(BadInput, match="no process reward model"):
        score(model(), solutions=labelled())
    with pytest.raises(BadInput, match="no process reward model"):
        score.plan(model(), solutions=labelled())


# prm evaluate


def test_a_plain_model_is_a_floor_and_stays_as_it_was(monkeypatch):
    """Its scores are those that it would give, but for steps beyond its context; it is not asked."""
    made = model()
    long = {"problem": "one", "steps": ["two three four " * 10, "no", "no " * 60], "labels": [1, 0, 0]}
    copied = model()
    prm.add_tokens(copied)
    assert prm.undecided(copied) and not prm.undecided(small_prm())
    with pytest.warns(UserWarning, match="last 1 steps"):
        (asked,) = prm.score(copied, [(long["problem"], long["steps"])])
    monkeypatch.setattr(prm, "score", lambda *_, **__: pytest.fail("it was asked"))
    (found,) = evaluate(made, data=[long]).scores.values()
    assert str(found) == str(asked.tolist()) == "[0.5, 0.5, nan]"
    rows = [{**row, "correct": bool(number % 2)} for number, row in enumerate(labelled())]
    result = evaluate(made, data=rows)
    assert made.vocabulary == 300 and not prm.has_tokens(made)
    assert not result.trained and {r for each in result.scores.values() for r in each} == {0.5}
    assert result.headline().startswith("tiny is no process reward model: [PRM], [POS] and [NEG] were added in memory")
    assert {each.model.value for each in result.discrimination} == {0.5} and result.misjudged == ()
    assert [each.f1.value for each in result.first_errors if each.predictor == "the model"] == [0, 0]
    assert {each.how: each.solved.value for each in result.best_of}[
        "mean"
    ] == 0.5  # one of equals, half of which are right
    assert not evaluate.plan(made, data=rows).trained


def test_a_trained_model_is_weighed_beside_its_controls(done, tmp_path):
    split = [{**row, "split": "ab"[number % 2]} for number, row in enumerate(labelled(60, seed=5))]
    result = evaluate(done.folder, data=write(tmp_path / "a.jsonl", split), out=tmp_path / "weighed")
    told = {each.split: each for each in result.discrimination}
    assert told["all"].model.value > 0.6 and told["all"].gain.value > 0 and result.trained
    assert {each.split for each in result.first_errors} == {"a", "b", "mean"} and result.classes == ()
    stored = lines(tmp_path / "weighed" / "scores.jsonl")
    assert [row["scores"] for row in stored] == list(result.scores.values())
    assert [row["labels"] for row in stored] == [
        [None if y is None else float(y) for y in row["labels"]] for row in split
    ]
    page = (tmp_path / "weighed" / "report.html").read_text()
    assert "best of the other half" in page and "step position" in page and "<b>" not in page.replace("<b></b>", "")
    assert evaluate.stored(tmp_path / "weighed").first_errors == result.first_errors


def test_each_format_has_a_first_error_f1_of_its_own(done, tmp_path):
    words = [["yes", "no"], ["yes", "Oslo"]]
    named = [
        {"id": f"a{i}", "problem": f"{i}?", "steps": words[i % 2], "label": (1, -1)[i % 2], "split": "xy"[i // 10]}
        for i in range(20)
    ]
    each = [{"id": f"b{i}", "problem": f"{i}!", "steps": words[i % 2], "labels": [0, i % 2]} for i in range(20)]
    each[1]["labels"] = [1, 1]
    alone = [evaluate(done.folder, data=rows) for rows in (named, each)]
    both = evaluate(done.folder, data=named + each, out=tmp_path / "both")

    def told(result):
        return re.findall(r"first-error F1 \S+ at 0.5 \(\w+\)", result.headline())

    assert told(both) == told(alone[0]) + told(alone[1]) and len(set(told(both))) == 2
    assert [x.data for x in both.first_errors if (x.predictor, x.rule) == ("the model", "")] == [
        *["processbench"] * 3,
        "labels",
    ]
    lines = [line for line in both.summary()[:-1] if "first-error F1" in line]
    assert {line.partition(":")[0] for line in lines} == {
        "processbench x",
        "processbench y",
        "processbench mean",
        "labels all",
    }
    assert len(lines) == len(set(lines)) == 2 + 4 + 4
    page = (tmp_path / "both" / "report.html").read_text()
    table = page[page.index("First errors, as ProcessBench") :].partition("</table>")[0]
    assert re.search(r">data<.*>split<", table, re.DOTALL) and table.count(">processbench<") == 3 * 4
    assert table.count(">labels<") == 4


def test_a_limit_draws_from_each_split(done):
    rows = [
        {"id": f"{split}{i}", "split": split, "problem": f"{i}?", "steps": ["yes", "no"], "label": 1 if i < 8 else -1}
        for split in "ab"
        for i in range(16)
    ]
    first, second, again = (list(evaluate(done.folder, data=rows, limit=8, seed=seed).scores) for seed in (0, 1, 0))
    assert first == again != second and len(first) == 16 and first[0][0] == "a" and first[8][0] == "b"
    labels = {row["id"]: row["label"] for row in rows}
    assert {labels[each] for each in first} == {1, -1}


def test_data_without_labels_weighs_nothing(done):
    with pytest.raises(BadInput, match="has no labels to compare scores with: `prm score` says"):
        evaluate(done.folder, data=[{"problem": "a?", "steps": ["yes"]}])


def test_an_adapter_that_is_not_merged_is_read_like_any_model():
    made = model()
    prm.add_tokens(made)  # whose rows of [POS] and [NEG] are equal: what is learnt of them is the adapter's
    adapted = prm.attach(made, 2, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    rows = labelled(12)
    found = evaluate(adapted, data=rows).scores
    assert found == score(adapted, solutions=rows).scores and len({r for each in found.values() for r in each}) > 1
    merged = evaluate(prm.merge(adapted), data=rows).scores
    for one, other in zip(found.values(), merged.values(), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_what_is_scored_has_a_digest_of_names_and_contents(tmp_path):
    digest = prm_scoring._digest
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.jsonl").write_text("{}\n")
    (tmp_path / "a" / "two.jsonl").write_text("[]\n")
    before = digest(tmp_path / "a")
    assert digest(tmp_path / "a" / "one.jsonl") == hashlib.sha256(b"{}\n").hexdigest()
    listed = {name: hashlib.sha256(text).hexdigest() for name, text in (("one.jsonl", b"{}\n"), ("two.jsonl", b"[]\n"))}
    assert before == hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    (tmp_path / "a" / "two.jsonl").rename(tmp_path / "a" / "three.jsonl")
    assert digest(tmp_path / "a") != before


@pytest.mark.parametrize(
    "early_stop, right, expected", [("loss", (1, 0), -0.25), ("auroc", (1, 0), 1.0), ("auroc", (1, 1), 0.0)]
)
def test_what_early_stop_looks_at_is_the_higher_the_better(monkeypatch, early_stop, right, expected):
    asked = []
    monkeypatch.setattr(training, "step_scores", lambda *arguments: asked.append(arguments[:2]) or [[0.75, 0.5]])
    steps = SimpleNamespace(scores=np.array([0.75, 0.5]), right=np.array(right, bool))

    def judged(held, scores):
        return SimpleNamespace(steps=lambda: steps)

    loop = SimpleNamespace(
        parts={training.HELD_OUT: "held"}, scored_at_once=3, _loss=lambda scores: 0.25, _judged=judged
    )
    loop.settings = SimpleNamespace(early_stop=early_stop)
    (kind,) = [each for each in vars(training).values() if hasattr(each, "_watched")]
    assert kind._watched(loop, "model") == expected and asked == [("model", "held")]
