"""ReGLU's study: every arm is a recipe that differs in what it should, and an arm that is killed goes on."""

import pytest

from equipoise.studies import reglu as study_file
from equipoise.study import registry
from equipoise.unlearning import fiction
from equipoise.unlearning.recipe import Recipe
from study_recorder import Stopped, StudyRecorder

SMALL = {"steps": 10, "batch_size": 4, "evaluations": 2, "lora_rank": 2}


class Recorder(StudyRecorder):
    seed = 1000

    def items(self, outcome, ids, scores, *, at, where=None, clusters):
        assert len(clusters) == len(ids)
        super().items(outcome, ids, scores, at=at, where=where)

    def spend(self, *, phase="query", **amounts):
        super().spend(phase=phase, **amounts)


def test_arms_differ_in_start_penalty_and_loss_alone():
    study = registry.load("reglu").build()
    words = {}
    for arm in study.arms:
        for point in arm.points():
            words[arm.name] = Recipe(parameters="lora", combine="sum", **point).check()
    told = {name: (each.start, each.orthogonality, each.objective) for name, each in words.items()}
    assert told == {
        "reglu": ("reglu", 0.5, "ihl"),
        "ihl": ("default", 0.0, "ihl"),
        "fila": ("fila", 0.0, "ihl"),
        "vila": ("vila", 0.0, "ihl"),
        "graddiff": ("default", 0.0, "ga"),
        "start-only": ("reglu", 0.0, "ihl"),
        "penalty-only": ("default", 0.5, "ihl"),
        "retain-only": ("default", 0.0, "ihl"),
    }
    assert [name for name, each in words.items() if each.forget_weight != 1.0] == ["retain-only"]
    rates = {arm.name: tuple(arm.grid.get("learning_rate", ())) for arm in study.arms}
    assert rates.pop("retain-only") == () and set(rates.values()) == {(1e-3, 3e-3, 1e-2)}


@pytest.mark.slow
def test_an_arm_that_is_killed_goes_on(monkeypatch, tmp_path):
    sizes = {"forget": 4, "neighbours": 8, "general": 8, "attributes": 2, "paraphrases": 1, "texts": 4}
    monkeypatch.setitem(fiction.SIZES, "tiny", sizes)
    monkeypatch.setattr(fiction, "TINY_TEACHING", fiction.TINY_TEACHING | {"epochs": 1})
    study = registry.load("reglu").build(**SMALL)
    prepared = Recorder(tmp_path / "prepared", study=study)
    study_file.teach(prepared)
    whole = Recorder(tmp_path / "whole", study=study, arm="reglu", prepared=prepared.folder)
    study_file.unlearn(whole)
    killed = Recorder(tmp_path / "killed", study=study, arm="reglu", prepared=prepared.folder, stop=1)
    with pytest.raises(Stopped):
        study_file.unlearn(killed)
    again = Recorder(tmp_path / "killed", study=study, arm="reglu", prepared=prepared.folder)
    study_file.unlearn(again)
    assert again.measured == whole.measured and again.spent == whole.spent
    assert {key.split()[0] for key in whole.measured} == {outcome.name for outcome in study.outcomes}
    assert whole.spent["optimizer_steps"] == 10
