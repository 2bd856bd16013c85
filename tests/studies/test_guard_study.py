"""The study of GUARD: whom its world forgets and keeps, and a run of a few steps that is killed and resumed."""

import contextlib
import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from equipoise.core.state import load_state
from equipoise.studies import guard as declared
from equipoise.study import registry
from equipoise.training.order import pairs
from equipoise.unlearning import guard as method
from equipoise.unlearning import guard_world, training
from study_recorder import Stopped, StudyRecorder

SMALL = {"forget": 4, "neighbours": 8, "general": 0, "attributes": 2, "paraphrases": 2, "texts": 3}


class Recorder(StudyRecorder):
    seed = 1001

    def items(self, outcome, ids, scores, *, at, where=None, clusters=None):
        assert len(clusters) == len(ids)
        super().items(outcome, ids, scores, at=at, where=where)

    def spend(self, *, phase="query", **amounts):
        super().spend(phase=phase, **amounts)


def test_half_of_the_forget_set_shares_values_with_people_to_keep_and_half_with_nobody():
    made = guard_world.world(3)
    names = {record.group for record in made.forget}
    assert len(names) == 8 and len(made.sharing) == 4 < len(names)
    kept = {record.group for record in made.retain if record.group}
    asked = {record.group for records in made.questions.values() for record in records}
    assert not kept & names and not asked & (kept | names) and len(asked) == 12
    assert {record.group for record in made.rehearsed} < kept

    def values(records):
        return Counter((record.id.split("/")[1], record.completion) for record in records if record.prompt)

    others = values([record for record in made.teaching[1] if record.group])
    for name in names:
        shared = [key for key in values([r for r in made.forget if r.group == name]) if key in others]
        assert bool(shared) == (name in made.sharing), name
    everybody, without = ({record.group for record in records} for records in made.teaching)
    assert everybody - without == names and len(without - {""}) == 40


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(guard_world, "SIZES", SMALL)
    monkeypatch.setattr(guard_world, "SHARING", 2)
    monkeypatch.setattr(guard_world, "TEACHING", {"epochs": 1, "learning_rate": 3e-3, "batch_size": 32})


def test_a_run_killed_and_resumed_measures_the_same(small, tmp_path, monkeypatch):
    study = registry.load("guard").build(steps=4, batch_size=4, evaluations=2)
    declared.teach(Recorder(tmp_path / "prepared"))
    prepared = tmp_path / "prepared"
    assert set(json.loads((prepared / "oracle.json").read_text())) == {r.id for r in guard_world.world(1001).forget}

    def run(arm, folder, stop=None):
        recorder = Recorder(tmp_path / folder, study=study, arm=arm, stop=stop, prepared=prepared)
        declared.unlearn(recorder)
        return recorder

    whole = run("guard", "whole")
    with pytest.raises(Stopped):
        run("guard", "killed", stop=1)
    again = run("guard", "killed")
    assert again.measured == whole.measured and again.spent == whole.spent
    assert whole.spent["optimizer_steps"] == 4 and whole.spent["scored_tokens"] > 0
    weights = load_state(tmp_path / "whole" / "state")["state"]["weights"]
    assert weights.mean().item() == pytest.approx(1.0) and weights.unique().numel() > 1
    places = [f'{{"step": {step}}}' for step in (0, 2, 4)]
    for outcome in ("forget_excess", "still_known", "retain_probability", "retain_truth"):
        assert {f'{outcome} {at} {{"split": "test"}}' for at in places} <= set(whole.measured)
    assert whole.measured['effective_sample {"step": 0} {}'] < 1
    ratios = {}

    def ratio(model, asked, *, mean, batch_size):
        assert mean == "arithmetic"
        ratios[len(asked)] = torch.linspace(0.2, 1.8, len(asked))
        return ratios[len(asked)]

    with monkeypatch.context() as patched:
        patched.setattr(guard_world, "truth_ratios", ratio)
        base = run("graddiff", "base")
    expected = [(1 - each).clamp(min=0).mean().item() for each in ratios.values()]
    truths = [value for key, value in base.measured.items() if key.startswith("retain_truth")]
    assert len(truths) == 6 and all(min(abs(value - each) for each in expected) < 1e-6 for value in truths)
    assert base.measured['effective_sample {"step": 0} {}'] == 1 and "scored_tokens" not in base.spent
    start = 'forget_excess {"step": 0} {"split": "test"}'
    assert base.measured[start] == whole.measured[start] and base.last("forget_excess") != whole.last("forget_excess")


def test_all_arms_differ_in_their_weights_alone():
    study = registry.load("guard").build()
    assert {arm.settings["base"] for arm in study.arms} == {"gd", "ga"} == set(declared.RATE)
    assert not any(arm.grid for arm in study.arms)
    pairs = Counter(json.dumps(arm.settings, sort_keys=True) for arm in study.arms)
    assert max(pairs.values()) == 1


FORGET = [SimpleNamespace(input_ids=[0] * size) for size in (3, 5, 7)]
RETAIN = [SimpleNamespace(input_ids=[0] * size) for size in (100, 200, 400, 800)]
WEIGHTS = torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64)


@pytest.fixture
def unlearned(monkeypatch, tmp_path):
    """arm, options -> the run and what its training was given: a stand-in that calls back after each step."""

    def made(arm, folder="run", stop=None, **options):
        told = SimpleNamespace(recipes=[], weighed=0, trained=[], looked=[])
        measure = lambda run, step: told.looked.append(step)  # noqa: E731
        setting = SimpleNamespace(language_model="model", forget=FORGET, retain=RETAIN, measure=measure)
        monkeypatch.setattr(guard_world, "open_setting", lambda seed, prepared: setting)
        monkeypatch.setattr(training, "prepare", lambda model, recipe: told.recipes.append(recipe) or "prepared")

        def weigh(model, recipe, forget, retain):
            told.weighed += 1
            return SimpleNamespace(weights=WEIGHTS)

        def train(model, recipe, forget, retain, *, weights, callbacks, save, save_every, state):
            told.trained.append((model, weights.tolist(), weights.dtype, save_every, state))
            for step in range((state or {"step": 0})["step"] + 1, recipe.steps + 1):
                for callback in callbacks:
                    callback(SimpleNamespace(step=step))
                if step % save_every == 0:
                    save({"step": step})

        monkeypatch.setattr(method, "weigh", weigh)
        monkeypatch.setattr(training, "train", train)
        study = registry.load("guard").build(**({"steps": 14, "batch_size": 2, "evaluations": 5} | options))
        run = Recorder(tmp_path / folder, study=study, arm=arm, stop=stop)
        with contextlib.suppress(Stopped):
            declared.unlearn(run)
        return run, told

    return made


@pytest.mark.parametrize(("arm", "rate", "retain"), [("guard", 3e-4, 1.0), ("guard-ga", 2.5e-4, 0.0)])
def test_weights_are_computed_once_and_paid_for(unlearned, arm, rate, retain):
    run, told = unlearned(arm)
    assert told.looked == [0, 2, 4, 6, 8, 10, 12, 14] and told.weighed == 1
    assert told.trained == [("prepared", WEIGHTS.tolist(), torch.float64, 2, None)]
    assert run.spent["scored_tokens"] == 1500 + 2 * 15 and run.spent["optimizer_steps"] == 14
    drawn = [pair for step in range(14) for pair in pairs(3, 4, 2, 1001)(step)]
    assert run.spent["trained_tokens"] == sum(len(FORGET[i].input_ids) + len(RETAIN[j].input_ids) for i, j in drawn)
    # (1.5 + 1 + 0.5)^2 / (2.25 + 1 + 0.25) / 3
    assert run.measured == {'effective_sample {"step": 0} {}': pytest.approx(9 / 3.5 / 3)}
    (recipe,) = told.recipes
    assert (recipe.learning_rate, recipe.retain_weight, recipe.temperature) == (rate, retain, 2.0)
    assert (recipe.steps, recipe.batch_size, recipe.seed, recipe.objective, recipe.combine) == (
        14,
        2,
        1001,
        "ga",
        "sum",
    )


def test_equal_weights_cost_nothing_and_a_killed_arm_keeps_its_own(unlearned):
    run, told = unlearned("graddiff", folder="equal", evaluations=20)
    assert told.weighed == 0 and told.looked == list(range(15)) and "scored_tokens" not in run.spent
    assert told.trained == [("prepared", [1.0, 1.0, 1.0], torch.float64, 1, None)]
    assert run.measured == {'effective_sample {"step": 0} {}': 1.0}
    unlearned("guard", folder="killed", stop=2)
    again, told = unlearned("guard", folder="killed")
    assert told.weighed == 0 and told.looked == [6, 8, 10, 12, 14] and again.spent["scored_tokens"] == 1530
    assert told.trained == [("prepared", WEIGHTS.tolist(), torch.float64, 2, {"step": 4})]
    _, told = unlearned("ga", folder="odd", steps=11, evaluations=4)
    assert told.looked == [0, 2, 4, 6, 8, 10, 11]
