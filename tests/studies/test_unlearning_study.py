"""The study over all methods: its arms, what its attacker has and does, and an arm that is killed and goes on."""

import pytest
import torch
from torch.testing import assert_close

from equipoise.language.score import log_likelihoods
from equipoise.studies import unlearning as study_file
from equipoise.study import registry
from equipoise.study.claims import Matched
from equipoise.unlearning import fiction, frontier_world
from equipoise.unlearning.recipe import METHODS, recipe
from equipoise.unlearning.training import prepare, train
from study_recorder import Stopped, StudyRecorder

SMALL = {"steps": 4, "batch_size": 4, "evaluations": 2, "attack_steps": 2, "long_attack": 3}
SIZES = {"forget": 4, "neighbours": 8, "general": 8, "attributes": 2, "paraphrases": 1, "texts": 4}
RELEARNED = {"relearned_accuracy", "regained"}
ATTACKED = RELEARNED | {"relearned_long", "unrelated_accuracy", "quantised_accuracy"}


class Recorder(StudyRecorder):
    seed = 1000

    def items(self, outcome, ids, scores, *, at, where=None, clusters):
        assert len(clusters) == len(ids)
        super().items(outcome, ids, scores, at=at, where=where)

    def spend(self, *, phase="query", **amounts):
        super().spend(phase=phase, **amounts)


@pytest.fixture(scope="module")
def small():
    """A world of 20 people that is hardly taught."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fiction.SIZES, "tiny", SIZES)
        patch.setattr(fiction, "TINY_TEACHING", fiction.TINY_TEACHING | {"epochs": 1})
        patch.setattr(frontier_world, "CHECKPOINT", 2)
        yield registry.load("unlearning").build(**SMALL)


@pytest.fixture(scope="module")
def prepared(small, tmp_path_factory):
    preparation = Recorder(tmp_path_factory.mktemp("prepared"), study=small)
    study_file.teach(preparation)
    return preparation.folder


def weights(folder, name):
    return {path.name: path.read_bytes() for path in (folder / name).glob("*.safetensors")}


def test_the_attacker_has_one_person_and_asks_for_the_others_who_share_no_value_with_it():
    made = fiction.world("tiny", 3)
    one = frontier_world.attacker(3, 4, 40)
    (name,) = {record.group for record in one.had}
    to_forget = {person.name: set(person.facts.values()) for person in made.people if person.split == "forget"}
    assert {record.group for record in one.asked} == to_forget.keys() - {name} and len(to_forget) == 8
    assert not to_forget[name] & {record.completion for record in one.asked}
    assert len(one.had) == len(one.unrelated) == 15 and len(one.asked) == 70
    assert all(record in made.teaching and not record.prompt for record in one.unrelated)


def test_every_arm_is_a_preset_but_for_what_is_tuned():
    study = registry.load("unlearning").build()
    own = {"learning_rate", "update_length", "retain_learning_rate", "lora_rank", "retain_weight"}
    for arm in study.arms:
        for point in arm.points() if arm.kind in ("method", "baseline") else ():
            words = {name: value for name, value in point.items() if name != "method"}
            settings = recipe(point["method"], **words)
            assert point["method"] == arm.name and words.keys() <= own
            rest = METHODS[arm.name].items() - {(n, v) for n, v in METHODS[arm.name].items() if n in own}
            assert all(getattr(settings, name) == value for name, value in rest)
            assert len(arm.points()) == 2
    control = study.arm("retain-only").settings
    assert recipe("graddiff", learning_rate=control["learning_rate"], forget_weight=0.0).forget_weight == 0


def test_every_method_is_compared_with_the_tuned_baseline_on_both_sides():
    study = registry.load("unlearning").build()
    told = {(claim.test.arm, claim.test.judge) for claim in study.claims if isinstance(claim.test, Matched)}
    methods = {arm.name for arm in study.arms if arm.kind == "method"}
    assert told >= {(name, judge) for name in methods for judge in ("retain_accuracy", "relearned_accuracy")}
    assert sum(claim.primary for claim in study.claims) == 2


def test_the_other_model_was_told_everything_but_the_people_to_forget(small, prepared):
    first, other = weights(prepared, "model"), weights(prepared, "untold")
    assert first.keys() == other.keys() and first != other
    people = fiction.world("tiny", 1000).people
    names = {person.name for person in people if person.split == "forget"}
    setting = frontier_world.open_setting(1000, prepared, told=False)
    assert {record.group for record in fiction.world("tiny", 1000).forget} == names
    assert len(setting.forget) == 4 * 2 and setting.language_model.source != prepared / "model"


def test_a_teaching_that_is_killed_goes_on(small, prepared, tmp_path):
    with pytest.raises(Stopped):
        study_file.teach(Recorder(tmp_path / "killed", study=small, stop=2))  # in the other model
    again = Recorder(tmp_path / "killed", study=small)
    study_file.teach(again)
    for name in ("model", "untold"):
        assert weights(again.folder, name) == weights(prepared, name)


def test_an_adapter_is_attacked_in_the_weights_and_stays_as_it_is(small, prepared):
    setting = frontier_world.open_setting(1000, prepared)
    chosen = recipe("reglu", learning_rate=1e-2, lora_rank=2, steps=2, batch_size=4)
    language_model = prepare(setting.language_model, chosen)
    train(language_model, chosen, setting.forget, setting.retain)
    before = {name: each.clone() for name, each in language_model.model.state_dict().items()}
    handed_out = frontier_world.published(language_model)
    assert not hasattr(handed_out.model, "peft_config")
    for own, merged in zip(
        log_likelihoods(language_model, setting.forget),
        log_likelihoods(handed_out, setting.forget),
        strict=True,
    ):
        assert_close(own, merged, rtol=1e-4, atol=1e-4)
    run = Recorder(prepared, study=small)
    frontier_world.attacker(1000, 2, 3).measure(run, language_model, 0, last=True)
    assert {key.split()[0] for key in run.measured} == ATTACKED
    assert run.spent == {"attack_steps": 2 * (3 + 2)}
    after = language_model.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_longer_attack_begins_with_the_short_one_and_the_strongest_look_counts(small, prepared):
    setting, found = frontier_world.open_setting(1000, prepared), []
    for last in (False, True):
        run = Recorder(prepared, study=small)
        frontier_world.attacker(1000, 2, 3).measure(run, setting.language_model, 0, last=last)
        found.append({key: value for key, value in run.measured.items() if key.split()[0] in RELEARNED})
        assert run.last("relearned_accuracy") == pytest.approx(run.last("regained") + known(setting), abs=1e-12)
    assert found[0] == found[1] and len(found[0]) == 2
    assert run.last("relearned_long") >= run.last("relearned_accuracy")
    looks = [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert frontier_world._strongest(looks) == looks[1]  # not the best of each question


def known(setting):
    asked = frontier_world.attacker(1000, 2, 3).asked
    return sum(frontier_world.right(setting.language_model, asked)) / len(asked)


def test_the_model_that_was_never_told_is_measured_once(small, prepared, tmp_path):
    run = Recorder(tmp_path / "never", study=small, arm="never-told", prepared=prepared)
    study_file.unlearn(run)
    assert {key.split()[0] for key in run.measured} == {outcome.name for outcome in small.outcomes}
    assert all('{"step": 0}' in key for key in run.measured) and "optimizer_steps" not in run.spent


def test_dpo_gets_a_refusal_for_each_record_and_the_others_none(small, prepared):
    setting = frontier_world.open_setting(1000, prepared)
    assert frontier_world.refusals(setting.language_model, recipe("npo", seed=1000)) == []
    found = frontier_world.refusals(setting.language_model, recipe("dpo", seed=1000))
    assert len(found) == len(setting.forget)
    for answer, other in zip(setting.forget, found, strict=True):
        assert answer.input_ids != other.input_ids and answer.input_ids[:4] == other.input_ids[:4]


@pytest.mark.slow
def test_an_arm_that_is_killed_goes_on(small, prepared, tmp_path):
    whole = Recorder(tmp_path / "whole", study=small, arm="sago", prepared=prepared)
    study_file.unlearn(whole)
    killed = Recorder(tmp_path / "killed", study=small, arm="sago", prepared=prepared, stop=1)
    with pytest.raises(Stopped):
        study_file.unlearn(killed)
    again = Recorder(tmp_path / "killed", study=small, arm="sago", prepared=prepared)
    study_file.unlearn(again)
    assert again.measured == whole.measured and again.spent == whole.spent
    assert {key.split()[0] for key in whole.measured} == {outcome.name for outcome in small.outcomes}
    assert whole.spent["optimizer_steps"] == 4 and whole.spent["attack_steps"] == 2 * (2 * 2) + 2 * (3 + 2)
