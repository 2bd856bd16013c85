"""What `prm train` does around its optimizer steps, by hand: stages, looks, refreshes, losses, what is stored."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.core.job import WorkFailed
from equipoise.data.steps import read_steps
from equipoise.reinforcement import nait, prm
from equipoise.reinforcement import prm_training as training
from equipoise.reinforcement.prm_training_job import PrmTraining
from reinforcement_world import model

ROWS = [
    {"id": f"s{n}", "problem": f"Born {n // 2}?", "steps": ["yes", "no", "maybe"], "labels": [True, n % 3 == 0, None]}
    for n in range(20)
]
LOADING = {"device": "cpu", "dtype": "auto", "trust_remote_code": False}


def request(rows=ROWS, **settings):
    made = model()
    made.tokenizer = copy.deepcopy(made.tokenizer)
    given = {"which": None, "limit": None, "scored_at_once": 16, "save_every": 2, "loading": LOADING}
    chosen = PrmTraining(**{"held_out": 0.2, "learning_rate": 1e-2, **settings})
    return training.Training.read(made, None, rows, **given, settings=chosen)


def test_the_settings_of_a_stage():
    """16 solutions to learn from, five at a time, two and a half times: 8 steps; each stage has an order of its own."""
    asked = request(batch_size=5, epochs=2.5, warmup_ratio=0.25, weight_decay=0.5)
    language_model, examples = asked._opened(None, taught=False)
    first, second = (asked._training(language_model, examples, stage) for stage in (1, 2))
    assert (first.steps, first.batch_size, first.schedule, first.betas) == (8, 5, "cosine", (0.9, 0.95))
    assert (first.warmup_ratio, first.weight_decay, first.max_grad_norm) == (0.25, 0.5, 1.0)
    assert second.model_copy(update={"seed": first.seed}) == first
    expected = [int(np.random.SeedSequence([0, 1, stage]).generate_state(1)[0]) for stage in (1, 2)]
    assert [first.seed, second.seed] == expected
    assert request(batch_size=99)._training(language_model, examples, 1).batch_size == 16
    assert all(each.requires_grad for each in language_model.model.parameters())


def test_settings_that_count():
    asked = request()
    language_model, examples = asked._opened(None, taught=False)

    def resolved(**changes):
        return request(**changes)._resolved(language_model, examples)

    plain = resolved()
    assert {"lora_rank", "patience", "micro_batch_size"}.isdisjoint(plain)
    assert (plain["batch_size"], plain["learning_rate"], plain["weights"]) == (16, 1e-2, [1 / 6, 5 / 6])
    assert resolved(parameters="lora").keys() - plain.keys() == {"lora_rank"}
    assert resolved(early_stop="loss").keys() - plain.keys() == {"patience"}
    assert plain.keys() - resolved(stages=1).keys() == {"threshold", "anchor", "restart"}
    assert resolved(stages=2).keys() == plain.keys()
    rates = [PrmTraining().resolved_learning_rate(n) for n in (5 * 10**7, 5 * 10**7 + 1, 10**9, 10**9 + 1)]
    assert rates == [1e-3, 1e-5, 1e-5, 1e-6]
    assert PrmTraining(parameters="lora").resolved_learning_rate(10**10) == 1e-4
    assert PrmTraining(parameters="lora", learning_rate=0.5).resolved_learning_rate(1) == 0.5


def test_what_is_counted():
    asked = request(max_length=4096)
    language_model, examples = asked._opened(None, taught=False)
    assert asked._counts() == {
        "to learn from": {"problems": 8, "solutions": 16, "steps": 32},
        "held out": {"problems": 2, "solutions": 4, "steps": 8},
    }
    cut = [replace(each, places=each.places[:1], labels=each.labels[:1]) for each in examples]
    assert asked._cut(examples) == 0 and asked._cut(cut) == 16  # the third step of each has no label to lose
    known = training.learnable(asked.parts["to learn from"], cut)
    assert known.isnan().tolist() == [False, True, True] * 16
    assert asked._drift() == nait.drift_note((1 / 6, 5 / 6), threshold=0.25)
    assert request(weights="none")._drift() == ""
    plan = request(epochs=1.5).plan()
    tokens = sum(len(each.input_ids) for each in examples)
    right = sum(y is True for each in asked.parts["to learn from"] for y in map(bool, each.labels[:2]))
    assert (plan.tokens, plan.positives, plan.negatives) == (math.ceil(1.5 * tokens), right, 32 - right)
    about = asked._about(language_model, [None, None])
    assert (about["prm"], about["stages"], about["weights"]) == (1, 2, [1 / 6, 5 / 6])
    assert about["tokens"] == {"[PRM]": 300, "[POS]": 301, "[NEG]": 302} and about["threshold"] == 0.25


def test_whole_problems_at_the_limits_of_a_share():
    solutions = read_steps(ROWS)  # 10 problems
    for share, held in ((0.0, 0), (0.06, 1), (0.14, 1), (0.94, 9)):
        parts = training.divide(solutions, share, 0)
        assert len({each.group for each in parts["held out"]}) == held
    for share, left in ((0.04, "none to hold out"), (0.96, "none to learn from")):
        with pytest.raises(BadInput, match=left):
            training.divide(solutions, share, 0)
    names = sorted({each.group for each in solutions})
    order = np.random.default_rng(np.random.SeedSequence([3, 0])).permutation(10)
    expected = {names[place] for place in order[:2]}
    assert {each.group for each in training.divide(solutions, 0.2, 3)["held out"]} == expected


def test_the_loss_of_what_is_held_out():
    """By hand; a score of 0 or 1 counts as a millionth away from it, and a step without label or score not at all."""
    asked = request(weights=(0.5, 2.0))
    held = asked.parts["held out"]
    labels = [list(each.labels) for each in held]
    scores = [[0.25, 1.0, 0.5], [0.0, 0.75, math.nan], [math.nan, 0.5, 0.5], [1.0, 0.0, 0.5]]
    losses = [
        -math.log(min(max(r, 1e-6), 1 - 1e-6)) * 0.5 if y else -math.log(1 - min(max(r, 1e-6), 1 - 1e-6)) * 2.0
        for ys, rs in zip(labels, scores, strict=True)
        for y, r in zip(ys, rs, strict=True)
        if y is not None and not math.isnan(r)
    ]
    assert len(losses) == 7 and asked._loss(scores) == pytest.approx(sum(losses) / 7, rel=1e-9)
    sure = [[0.5, 0.0 if ys[1] else 1.0, math.nan] for ys in labels]
    assert max(each for each in (asked._loss(sure),)) == pytest.approx(
        sum(0.5 * math.log(2) + (0.5 if ys[1] else 2.0) * math.log(1e6) for ys in labels) / 8, rel=1e-6
    )


@pytest.mark.parametrize(("early_stop", "steps", "looked"), [
    ("none", 25, []), ("auroc", 25, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 25]),
    ("loss", 8, [1, 2, 3, 4, 5, 6, 7, 8]), ("loss", 30, [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]),
])  # fmt: skip
def test_looks_along_a_stage(early_stop, steps, looked, monkeypatch):
    """Ten a stage or a few more, and at its end; it is over when as many as `patience` in a row were no better."""
    asked = request(early_stop=early_stop, patience=3, epochs=float(steps), batch_size=16)
    language_model, examples = asked._opened(None, taught=False)
    learning = training.Learning(labels=training.learnable(asked.parts["to learn from"], examples))
    values = iter([0.1, 0.3, 0.2, 0.3, 0.1, 0.4, *[0.0] * 20])
    at, ends = [], []
    monkeypatch.setattr(training.Training, "_watched", lambda self, model: at.append(now) or next(values))

    def fit(model, step, draw, settings, *, callbacks, title, **others):
        nonlocal now
        assert title == "Stage 1 of 3" and settings.steps == steps
        (look,) = callbacks
        for now in range(1, steps + 1):
            if look(SimpleNamespace(metrics={"loss": 0.5}, step=now)):
                ends.append(len(at))
        return SimpleNamespace(steps=steps)

    now = 0
    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(training, "put_back", lambda model, weights: None)
    assert asked._fit(language_model, examples, learning, None) == steps and learning.losses == 0.5 * steps
    assert at == looked
    # Looks 2 and 6 are the best until then: the fifth is the third behind one, the ninth behind the other.
    assert ends == [number for number in range(1, len(at) + 1) if number == 5 or number >= 9]
    if at:
        assert (learning.looks, learning.kept_at, learning.watched) == (len(at), 6, 0.4)
        learning.next(learning.labels, {"a": torch.ones(1)})
        assert (learning.stage, learning.before, learning.losses, list(learning.previous)) == (2, 0.4, 0.0, ["a"])
        assert (learning.watched, learning.kept, learning.kept_at, learning.looks) == (-math.inf, {}, 0, 0)


@pytest.mark.parametrize("anchor", ["initial", "current"])
def test_which_labels_a_refresh_begins_with(anchor, monkeypatch):
    """The first step of all is doubted after the first stage and believed again after the second."""
    asked = request(anchor=anchor, stages=3)
    language_model, examples = asked._opened(None, taught=False)
    initial = training.learnable(asked.parts["to learn from"], examples)
    learning, learnt, said = training.Learning(labels=initial), [], iter([0.6, 0.8])
    stage = training.TrainedStage(*[0] * 6, 0.0, None, None, 0.0, 0.0, math.nan, math.nan, 0.0)  # type: ignore
    monkeypatch.setattr(training.Training, "_fit", lambda self, *given: learnt.append(learning.labels) or 1)
    monkeypatch.setattr(training.Training, "_measured", lambda self, *given: replace(stage, number=learning.stage))
    firsts = []

    def scores(language_model, solutions, *others):
        firsts.append(next(said))
        return [[first, *[float(y or 0) for y in each.labels[1:]]] for each, first in zip(
            solutions, [firsts[-1], *[1.0] * 15], strict=True)]  # fmt: skip

    monkeypatch.setattr(training, "step_scores", scores)
    assert asked._stages(language_model, examples, learning, None) == ""
    assert [each[0].item() for each in learnt] == pytest.approx([1.0, 0.6, 1.0 if anchor == "initial" else 0.6])
    assert all(torch.equal(each[1:].isnan(), initial[1:].isnan()) for each in learnt)
    kept = [each["positives_kept"] for each in learning.done]
    right = int((initial == 1).sum())
    assert kept[:2] == pytest.approx([1 - 1 / right, 1.0]) and len(learning.done) == 3


@pytest.mark.parametrize(("dtype", "away", "fine"), [
    (torch.float32, 0.9e-3, True), (torch.float32, 1.1e-3, False), (torch.float64, 1.1e-3, False),
    (torch.bfloat16, 0.049, True), (torch.bfloat16, 0.051, False), (torch.float32, math.nan, False),
])  # fmt: skip
def test_what_was_written_must_say_the_same(dtype, away, fine, monkeypatch, tmp_path):
    asked, found = request(), iter([[[0.5, 0.25, math.nan]], [[0.5, 0.25 + away, math.nan]]])
    seen = []
    monkeypatch.setattr(training, "step_scores", lambda model, solutions, *more: seen.append(solutions) or next(found))
    monkeypatch.setattr(training.Training, "_about", lambda self, model, stages: {})
    made = SimpleNamespace(model=SimpleNamespace(dtype=dtype), save=lambda folder: None, reload=lambda folder: None)
    if fine:
        assert asked._written(made, (), tmp_path)[1] == pytest.approx(away)  # type: ignore[arg-type]
    else:
        with pytest.raises(WorkFailed, match=r"away from the trained one \(allowed: 0\.0"):
            asked._written(made, (), tmp_path)  # type: ignore[arg-type]
    assert [len(each) for each in seen] == [16, 16]


def test_what_is_measured_of_a_stage(monkeypatch):
    asked = request()
    learning = training.Learning(labels=torch.tensor([1.0, 0.5, 0.4, 0.0, math.nan]), stage=2, losses=3.0)
    held = asked.parts["held out"]
    scores = [[0.75 if y else 0.25 for y in each.labels] for each in held]
    monkeypatch.setattr(training, "step_scores", lambda *given: scores)
    found = asked._measured(None, learning, 4, 0.125)  # type: ignore[arg-type]
    assert (found.number, found.steps, found.positives, found.negatives, found.soft) == (2, 4, 2, 2, 2)
    assert (found.loss, found.moved, found.right_score, found.wrong_score) == (0.75, 0.125, 0.75, 0.25)
    assert found.auroc.value == 1.0 and found.held_out_loss == pytest.approx(asked._loss(scores))
    assert asked._watched(None) == 1.0  # type: ignore[arg-type]
    lower = request(early_stop="loss")
    assert lower._watched(None) == -lower._loss(scores)  # type: ignore[arg-type]
    none = request(held_out=0.0)._measured(None, learning, 4, 0.125)  # type: ignore[arg-type]
    assert math.isnan(none.auroc.value) and math.isnan(none.held_out_loss) and math.isnan(none.right_score)


def test_a_batch_without_a_label_teaches_nothing():
    example = prm.StepExample((1, 2), (1,), (float(prm.IGNORE),), 0)
    assert not training.teaches(example) and training.teaches(replace(example, labels=(0.0,)))
