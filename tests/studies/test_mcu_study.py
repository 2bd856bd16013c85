"""The world and the measures of MCU's study, and an arm that is killed and goes on as if it had not been."""

import math

import pytest
import torch
from torch.testing import assert_close

from equipoise.studies import mcu as study_file
from equipoise.study import registry
from equipoise.unlearning import mcu_world
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
