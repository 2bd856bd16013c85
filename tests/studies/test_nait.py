"""The study of NAIT: what an arm measures and spends, that it resumes, that arms and claims are what they are called."""

import json

import pytest
import torch

from equipoise.core.state import load_state, save_state
from equipoise.reinforcement import worlds_steps
from equipoise.reinforcement.worlds_steps import POLICIES, StepRecipe
from equipoise.studies import nait as nait_study
from equipoise.study import registry

OPTIONS = {"steps": 1, "batch_size": 4, "train_chains": 10, "test_chains": 10}


class Stopped(Exception):
    """The process is killed here."""


class Recorder:
    """What a run gives and takes; `stop`: the number of the checkpoint after which it dies."""

    seed = 1007

    def __init__(self, study, arm, folder, prepared, stop=None):
        self.settings, self.options, self.prepared = study.arm(arm).points()[0], study.options, prepared
        self.measured, self.spent, self.stop = {}, {}, stop
        self._names, self._path = {each.name for each in study.outcomes}, folder / arm

    def resume(self):
        if not self._path.exists():
            return None
        stored = load_state(self._path)
        self.measured, self.spent = stored["measured"], stored["spent"]
        return stored["state"]

    def checkpoint(self, state):
        save_state(self._path, {"state": state, "measured": self.measured, "spent": self.spent})
        self.state = state
        if state["stage"] == self.stop:
            raise Stopped

    def measure(self, outcome, value, *, of=None, at, where=None):
        assert outcome in self._names
        key = json.dumps([outcome, at["stage"], (where or {}).get("policy")])
        assert key not in self.measured
        self.measured[key] = float(value) / (of or 1)

    def spend(self, *, phase, **amounts):
        for name, amount in amounts.items():
            self.spent[name] = self.spent.get(name, 0) + amount

    def of(self, outcome, policy=None):
        return [self.measured.get(json.dumps([outcome, stage, policy])) for stage in (1, 2, 3)]


@pytest.fixture(scope="module")
def study():
    torch.set_num_threads(1)
    return registry.load("nait").build(**OPTIONS)


@pytest.fixture(scope="module")
def prepared(study, tmp_path_factory):
    """A seed's preparation, with few chains to choose a threshold on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worlds_steps, "VALIDATION", 10)
        folder = tmp_path_factory.mktemp("prepared")
        preparation = type("Preparation", (), {"options": study.options, "seed": Recorder.seed, "folder": folder})
        study.prepare(preparation)
        yield folder


@pytest.fixture(scope="module")
def whole(study, prepared, tmp_path_factory):
    """An arm that was not disturbed."""
    run = Recorder(study, "nait-current", tmp_path_factory.mktemp("whole"), prepared)
    study.run(run)
    return run


def test_an_arm_measures_both_policies_after_every_stage(study, whole, prepared):
    world = worlds_steps.StepWorld.open(prepared, whole.seed, train=10, test=10)
    shown = sum(int(outcomes.sum()) for outcomes in world.outcomes.values())
    assert whole.spent == {"optimizer_steps": 6, "calls": shown, "trained_tokens": whole.spent["trained_tokens"]}
    assert 6 * 4 * 13 <= whole.spent["trained_tokens"] <= 6 * 4 * 25
    assert {json.loads(key)[0] for key in whole.measured} == {each.name for each in study.outcomes}
    assert None not in whole.of("equal_verdicts") + whole.of("score_correlation")
    for policy in POLICIES:
        noise = worlds_steps.nait.label_noise(world.labels(policy, "rules", "hard"), world.train.right)
        assert whole.of("label_f1", policy)[0] == noise.f1
        assert whole.of("label_false_positives", policy)[0] == noise.false_positive_rate
        assert whole.of("label_false_negatives", policy)[0] == noise.false_negative_rate
        assert whole.of("positives_kept", policy)[0] is None and None not in whole.of("negatives_kept", policy)[1:]
        assert None not in whole.of("first_error_f1_tuned", policy)


def test_a_stopped_run_comes_to_the_same_numbers_and_weights(study, whole, prepared, tmp_path):
    with pytest.raises(Stopped):
        study.run(Recorder(study, "nait-current", tmp_path, prepared, stop=2))
    resumed = Recorder(study, "nait-current", tmp_path, prepared)
    study.run(resumed)
    assert resumed.spent == whole.spent
    assert resumed.measured == pytest.approx(whole.measured, rel=0, abs=0, nan_ok=True)
    for policy in POLICIES:
        for name, weight in whole.state[policy]["weights"].items():
            assert torch.equal(weight, resumed.state[policy]["weights"][name])


def test_of_true_labels_both_policies_make_one_model(study, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(nait_study, "STAGES", 1)
    run = Recorder(study, "truth", tmp_path, prepared)
    study.run(run)
    assert run.of("equal_verdicts")[0] == 1 and run.of("score_correlation")[0] == pytest.approx(1)
    assert run.of("label_f1", "weak")[0] == 1 and "calls" not in run.spent
    assert run.of("step_auroc", "weak") == run.of("step_auroc", "strong")


def test_arms_differ_as_they_are_called():
    arms = registry.load("nait").build().arms
    recipes = {arm.name: StepRecipe(**arm.points()[0]) for arm in arms}
    assert len(set(recipes.values())) == len(arms) == 16
    for name, recipe in recipes.items():
        assert (recipe.threshold == 0.25) == name.startswith(("nait", "refreshed")) and recipe.threshold in (None, 0.25)
        assert (recipe.weights == "none") == (name.endswith("unweighted") or name == "gce")
        judge = "none" if name.split("-")[0] in ("mce", "gce", "refreshed", "truth") else "rules"
        assert recipe.judge == (name.split("-")[1] if name.endswith(("exact", "faulty")) else judge)
        assert recipe.labels == {"mce-soft": "soft", "corrected-soft": "soft", "truth": "truth"}.get(name, "hard")
        assert recipe.restart == name.endswith("restart") and (recipe.anchor == "current") == name.endswith("current")
        assert (recipe.loss == "cross-entropy") == (name != "gce")


def test_claims_ask_for_what_is_measured_on_seeds_nobody_looked_at():
    study = registry.load("nait").build()
    assert max(study.test_seeds()) < 1000
    for claim in study.claims:
        for test in getattr(claim.test, "tests", (claim.test,)) if claim.test else ():
            assert (test.where or {}).get("policy") in (*POLICIES, None) and test.units == ("seed",)
            assert (test.where is None) == (test.outcome == "equal_verdicts")
