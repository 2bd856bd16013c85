"""TokUR's study on a model that is untaught: what is stored, what an arm measures, and what its claims name."""

import json

import numpy as np
import pytest
import torch

from equipoise.data.arithmetic import CHARACTERS, solution
from equipoise.language import tiny, warm_start
from equipoise.studies import tokur as study_file
from equipoise.study import registry
from equipoise.uncertainty import tokur_world
from study_recorder import StudyRecorder


class Recorder(StudyRecorder):
    seed = 3

    def measure(self, outcome, value, *, of=1, at=None, where=None):
        super().measure(outcome, value, of=of, at=at or {}, where=where)

    def spend(self, *, phase="query", **amounts):
        super().spend(phase=phase, **amounts)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Half of the answers are right solutions, the others have one step less; the model has learnt neither."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tokur")
    study = registry.load("tokur").build(answers=100, members=2, rank=2)
    model = tiny.tiny([CHARACTERS], seed=0, tokens="characters", width=32, layers=2, heads=2)
    model.chat_template = "none"
    written = {}

    def answers(language_model, prompts, **settings):
        return [written[prompt] for prompt in prompts]

    real = tokur_world.problems

    def asked(*args, **settings):
        found = real(*args, **settings)
        for place, problem in enumerate(found):
            steps = solution(problem).text.split(";")
            written[problem.prompt] = ";".join(steps if place % 2 else steps[:-1])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm_start, "teach", lambda *_: type("Made", (), {"language_model": model}))
        patch.setattr(tokur_world, "generate", answers)
        patch.setattr(tokur_world, "problems", asked)
        preparation = Recorder(folder / "prepared", study=study)
        study_file.prepare(preparation)
    return study, preparation


def test_what_is_stored_is_a_score_of_every_answer(prepared):
    _, preparation = prepared
    world = tokur_world.AnsweredWorld.open(preparation.folder)
    assert world.accuracy == 0.5 and len(world.right) == 100 and set(world.right) == {0.0, 1.0}
    assert world.sigma > 0 and world.members == 2 and preparation.spent["generated_tokens"] == world.lengths.sum()
    assert all(values.shape == (100,) and np.isfinite(values).all() for values in world.scores.values())
    json.loads((preparation.folder / tokur_world.STORED).read_text())


@pytest.mark.parametrize("arm", ["tu-sum", "eu-mean", "entropy-sum", "length", "random"])
def test_an_arm_measures_what_it_can(prepared, tmp_path, arm):
    study, preparation = prepared
    run = Recorder(tmp_path / "run", study=study, arm=arm, prepared=preparation.folder)
    study_file.weigh(run)
    there = {key.split()[0] for key in run.measured}
    everything = {outcome.name for outcome in study.outcomes}
    assert there == everything - ({"accuracy", "epistemic_share"} if arm != "random" else set())
    assert run.spent["answers"] == 100
    world = tokur_world.AnsweredWorld.open(preparation.folder)
    due = {"tu-sum": 2, "eu-mean": 2, "entropy-sum": 1, "length": 0, "random": 0}[arm]
    assert run.spent["prompt_tokens"] == due * world.tokens
    if arm == "length":  # among equal lengths it knows nothing
        assert run.last("auroc_within") == pytest.approx(0.5) or np.isnan(run.last("auroc_within"))
    assert 0 <= run.last("surest_half") <= 1


def test_the_surest_half_and_auroc_by_hand(tmp_path, prepared):
    study, _ = prepared
    run = Recorder(tmp_path / "run", study=study, arm="tu-sum")
    right, lengths = np.array([1.0, 0, 1, 0]), np.array([1.0, 1, 2, 2])
    scores = {"tu_sum": np.array([0.9, 0.8, 0.1, 0.2])}
    tokur_world.measure(run, tokur_world.AnsweredWorld(right, lengths, scores, 0.5, 0.1, 0.05, 4, 10))
    assert (run.last("auroc"), run.last("auroc_within"), run.last("surest_half")) == (0.5, 0.5, 0.5)


def test_the_primary_claims_are_against_length_and_summed_entropy():
    study = registry.load("tokur").build()
    primary = [claim for claim in study.claims if claim.judged]
    assert {claim.test.rival for claim in primary} == {"length", "entropy-sum"}
    assert all(claim.test.arm == "tu-sum" and claim.test.margin == 0.01 for claim in primary)
