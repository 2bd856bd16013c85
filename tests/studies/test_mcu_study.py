"""The world and the measures of MCU's study, and an arm that is killed and goes on as if it had not been."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from equipoise.studies import mcu as study_file
from equipoise.study import registry
from equipoise.training.order import pairs
from equipoise.unlearning import audit_spectra, mcu_world, relearning, training
from equipoise.unlearning.recipe import Recipe
from study_recorder import Stopped, StudyRecorder

SMALL = {"steps": 4, "batch_size": 8, "evaluations": 2, "epochs": 4, "loss_budget": 9.0}


class Recorder(StudyRecorder):
    seed = 1000

    def spend(self, *, phase="query", **amounts):
        super().spend(phase=phase, **amounts)


@pytest.fixture(scope="module")
def small():
    """A world of 36 people that is hardly taught."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RELEARNED", 8), ("HELD_OUT", 12), ("REHEARSED", 8), ("KEPT", 8), ("VALIDATED", 4)):
            patch.setattr(mcu_world, name, value)
        patch.setattr(mcu_world, "OTHERS", mcu_world.OTHERS | {"attributes": 2, "texts": 8})
        patch.setattr(mcu_world, "TEACHING", {"epochs": 1, "learning_rate": 3e-3, "batch_size": 32})
        patch.setattr(study_file, "ATTACKS", {name: study_file.ATTACKS[name] for name in ("sgd", "lora")})
        yield


@pytest.fixture(scope="module")
def prepared(small, tmp_path_factory):
    preparation = Recorder(tmp_path_factory.mktemp("prepared"))
    mcu_world.teach(preparation)
    return preparation.folder


def test_the_people_share_nothing_and_are_asked_in_other_words():
    everybody = mcu_world.people(3)
    assert len({person.name for person in everybody}) == len(everybody) == 520
    assert [person.side for person in everybody].count("held-out") == 300
    assert everybody == mcu_world.people(3) != mcu_world.people(4)
    asked = mcu_world.questions(everybody, 3, "test")
    assert not {record.prompt for record in asked} & {record.prompt for record in mcu_world.facts(everybody)}
    assert all(len(set(record.choices)) == 4 and record.choices[record.answer] == record.completion for record in asked)
    places = torch.bincount(torch.tensor([record.answer for record in asked]))
    assert places.min() > 90  # 130 are expected, with a standard deviation of 10


def test_a_model_that_knows_nothing_is_right_at_chance(small, prepared):
    setting = mcu_world.open_setting(1000, prepared)
    with torch.no_grad():
        for parameter in setting.language_model.model.parameters():
            parameter.zero_()
    scores = mcu_world.right_probability(setting.language_model, setting.asked["held-out", "test"])
    assert torch.equal(scores, torch.full((12,), 0.25, dtype=torch.float64))


def test_what_is_recovered_is_the_best_window_for_all_questions_alike():
    path = [torch.tensor(row) for row in ([0.1, 0.3], [0.5, 0.3], [0.9, 0.1], [0.1, 0.1], [1.0, 1.0])]
    assert_close(mcu_world.recovered(path), torch.tensor([0.3, 0.3]))  # the fifth is in no whole window
    frozen = torch.tensor([0.2, 0.7])
    assert torch.equal(mcu_world.recovered([frozen] * 6) - frozen, torch.zeros(2))
    assert torch.equal(mcu_world.recovered([frozen]), frozen)


def test_what_moved_and_what_came_back_by_part():
    vectors = torch.eye(4, dtype=torch.float64)
    before = torch.zeros(2, 4)
    after = torch.tensor([[4.0, -2.0, 1.0, 0.0], [-4.0, 2.0, 0.0, 1.0]])
    relearned = torch.tensor([[1.0, -0.5, 1.0, 0.0], [-1.0, 0.5, 0.0, 1.0]])
    found = mcu_world.by_part(before, after, relearned, vectors, 2)
    assert found["dominant"] == {"change": pytest.approx(3 / 1.75), "recovery": pytest.approx(0.75)}
    assert found["minor"] == {"change": pytest.approx(0.5 / 1.75), "recovery": pytest.approx(0.0)}
    assert math.isnan(mcu_world.by_part(before, before, before, vectors, 2)["minor"]["recovery"])


def test_every_arm_is_a_recipe_of_steps_of_one_length():
    study = registry.load("mcu").build()
    for arm in study.arms:
        for point in arm.points():
            words = Recipe(**study_file.COMMON, **point).check()
            assert (words.update, words.parameters) == ("fixed-length", "mlp")
    assert len({tuple(arm.grid["update_length"]) for arm in study.arms}) == 1
    assert study.arm("mean-only").settings["components"] == 1 and {arm.kind for arm in study.arms} >= {"control"}


def test_an_arm_that_is_killed_goes_on(small, prepared, tmp_path):
    study = registry.load("mcu").build(**SMALL)
    whole = Recorder(tmp_path / "whole", study=study, arm="mcu", prepared=prepared)
    study_file.unlearn(whole)
    killed = Recorder(tmp_path / "killed", study=study, arm="mcu", prepared=prepared, stop=1)
    with pytest.raises(Stopped):
        study_file.unlearn(killed)
    again = Recorder(tmp_path / "killed", study=study, arm="mcu", prepared=prepared)
    study_file.unlearn(again)
    assert again.measured == whole.measured and again.spent == whole.spent
    assert {key.split()[0] for key in whole.measured} == {outcome.name for outcome in study.outcomes}
    assert whole.spent["optimizer_steps"] == 4 and whole.spent["attack_steps"] == 2 * 4 * 1


FORGET = [SimpleNamespace(input_ids=[0] * size) for size in (3, 5, 7)]
RETAIN = [SimpleNamespace(input_ids=[0] * size) for size in (100, 200, 400, 800)]


@pytest.fixture
def stand_in(monkeypatch):
    """losses, options -> (run, what the attack was given): a training whose weight is its step, an attack that notes it."""

    def unlearned(folder, losses, stop=None, **options):
        model = torch.nn.Linear(1, 1)
        model.bias.requires_grad_(False)
        language_model = SimpleNamespace(model=model)
        measure = lambda run, step: losses[step]  # noqa: E731
        setting = SimpleNamespace(language_model=language_model, forget=FORGET, retain=RETAIN, measure=measure)
        monkeypatch.setattr(mcu_world, "open_setting", lambda seed, prepared: setting)
        told = SimpleNamespace(recipes=[], attacked=[], saved=[])
        monkeypatch.setattr(training, "prepare", lambda given, recipe: told.recipes.append(recipe) or given)

        def train(given, recipe, forget, retain, *, callbacks, save, save_every, state):
            told.saved.append((save_every, state))
            for step in range((state or {"step": 0})["step"] + 1, recipe.steps + 1):
                with torch.no_grad():
                    model.weight.fill_(float(step))
                (callback,) = callbacks
                ended = callback(SimpleNamespace(step=step))
                if step % save_every == 0 and not ended:
                    save({"step": step})
                if ended:
                    return

        monkeypatch.setattr(training, "train", train)
        monkeypatch.setattr(
            study_file,
            "attack",
            lambda run, its, before, step: told.attacked.append((step, model.weight.item(), before.weight.item())),
        )
        start = model.weight.item()
        study = registry.load("mcu").build(**({"steps": 14, "batch_size": 2, "evaluations": 5} | options))
        run = Recorder(folder, study=study, arm="mcu", stop=stop)
        study_file.unlearn(run)
        return run, told, start

    return unlearned


def test_the_last_state_within_the_budget_is_attacked(stand_in, tmp_path):
    """Looks are every 14 // 5 steps: the third, at step 6, is at the budget, the one at step 8 beyond."""
    losses = {0: 1.0, 2: 1.1, 4: 0.9, 6: 1.25, 8: 1.2501}
    run, told, start = stand_in(tmp_path / "a", losses, loss_budget=0.25)
    assert told.attacked == [(6, 6.0, start)] and told.saved == [(2, None)]
    assert run.spent["optimizer_steps"] == 8
    drawn = [pair for step in range(8) for pair in pairs(3, 4, 2, 1000)(step)]
    assert run.spent["trained_tokens"] == sum(len(FORGET[i].input_ids) + len(RETAIN[j].input_ids) for i, j in drawn)
    (recipe,) = told.recipes
    assert (recipe.steps, recipe.batch_size, recipe.seed, recipe.retain_learning_rate) == (14, 2, 1000, 0.2)
    assert (recipe.components, recipe.first_block, recipe.last_block, recipe.update_length) == (8, 0, 3, 0.2)


def test_a_loss_that_is_no_number_ends_the_arm_and_the_end_is_looked_at(stand_in, tmp_path):
    at_once = stand_in(tmp_path / "a", {0: 1.0, 2: math.nan})
    assert at_once[1].attacked == [(0, at_once[2], at_once[2])]
    run, told, _ = stand_in(tmp_path / "b", dict.fromkeys(range(12), 1.0), steps=11, evaluations=4)
    assert told.attacked[0][:2] == (11, 11.0) and run.spent["optimizer_steps"] == 11
    _, told, _ = stand_in(tmp_path / "c", dict.fromkeys(range(5), 1.0), steps=4, evaluations=5)
    assert told.saved == [(1, None)] and told.attacked[0][0] == 4


def attacked(monkeypatch, folder, scores, epochs=20):
    """What an attack measures where the scores of the questions along each attack's epochs are given, [N] each."""
    known = {"test": ["q0", "q1"], "validation": ["v0", "v1"]}
    monkeypatch.setattr(study_file, "ATTACKS", {name: {"optimizer": "sgd", "learning_rate": 0.1} for name in scores})
    monkeypatch.setattr(
        mcu_world,
        "right_probability",
        lambda model, asked: torch.tensor(model[asked[0][0]] if isinstance(model, dict) else [0.1, 0.1]).double(),
    )
    monkeypatch.setattr(mcu_world, "record", lambda run, outcome, asked, values, step, part: found.update(
        {(outcome, part): (asked, values.tolist(), step)}
    ))  # fmt: skip
    found, given, left = {}, [], iter(scores.items())

    def relearn(language_model, records, settings, *, evaluate):
        name, path = next(left)
        given.append((records, settings.epochs, settings.seed))
        for epoch, values in path.items():
            evaluate({"q": values, "v": [1 - each for each in values]}, epoch)
        return SimpleNamespace(steps=3, language_model=SimpleNamespace(model=name))

    monkeypatch.setattr(relearning, "relearn", relearn)
    states = []
    monkeypatch.setattr(audit_spectra, "states", lambda model, asked, block, max_length: states.append(
        (model.model, asked, block, max_length)
    ) or model.model)  # fmt: skip
    monkeypatch.setattr(mcu_world, "every_component", lambda known: ("components", known))
    part = {"change": 2.0, "recovery": 0.5}
    by = []
    monkeypatch.setattr(mcu_world, "by_part", lambda *given: by.append(given) or {"dominant": part, "minor": part})
    import dataclasses

    made = dataclasses.make_dataclass("Model", ["model"])("forgotten")
    setting = SimpleNamespace(
        language_model=made, relearned="records", asked={("held-out", part): names for part, names in known.items()}
    )
    run = Recorder(folder, study=registry.load("mcu").build(epochs=epochs), arm="mcu")
    study_file.attack(run, setting, "before", 6)
    assert by == [("before", "forgotten", states[2][0], ("components", "before"), 8)]
    assert [each[1:] for each in states] == [(["q0", "q1"], 3, 128)] * 3
    assert given == [("records", epochs, 1000)] * len(scores) and run.spent == {"attack_steps": 3 * len(scores)}
    assert run.measured['change_ratio {"step": 6} {"part": "minor"}'] == 2.0
    assert run.measured['recovery_ratio {"step": 6} {"part": "dominant"}'] == 0.5
    return found, states[2][0]


def test_the_strongest_attack_counts_early_and_late(monkeypatch, tmp_path):
    """Looked at every second of 20 epochs; b is the strongest in the end, a after a tenth."""
    paths = {
        "a": {1: [0.9, 0.9], 2: [0.6, 0.4], 4: [0.6, 0.4], 5: [1.0, 1.0]},
        "b": {2: [0.1, 0.3], 4: [0.3, 0.5], 6: [0.7, 0.9], 8: [0.9, 0.9]},
        "c": {3: [0.9, 0.9]},  # never looked at: it has nothing but the state before it
    }
    found, model = attacked(monkeypatch, tmp_path / "a", paths)
    assert model == "b"
    assert found["recovered_accuracy", "test"] == (["q0", "q1"], pytest.approx([0.8, 0.9]), 6)
    assert found["recovered_early", "test"] == (["q0", "q1"], pytest.approx([0.6, 0.4]), 6)
    assert found["capped_accuracy", "test"][1] == pytest.approx([0.1, 0.1])
    assert found["regained", "test"][1] == pytest.approx([0.7, 0.8])
    assert found["recovered_accuracy", "validation"] == (["v0", "v1"], pytest.approx([0.8, 0.6]), 6)
    found, model = attacked(monkeypatch, tmp_path / "b", {"a": {1: [0.2, 0.2]}, "b": {1: [0.2, 0.2]}}, epochs=9)
    assert model == "a" and found["recovered_early", "test"][1] == pytest.approx([0.2, 0.2])
