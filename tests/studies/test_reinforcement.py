"""The studies of SPPO, APO and R2PO: every arm runs, on equal budgets, and goes on to the same measurements when stopped."""

import json

import pytest

from equipoise.core.state import load_state, save_state
from equipoise.study import registry

OPTIONS = {
    "sppo": {"updates": 4, "evaluations": 2},
    "apo": {"updates": 4, "evaluations": 2},
    "r2po": {"rounds": 2, "head_updates": 1, "policy_updates": 2},
}
COSTS = {"sppo": 4 * 384, "apo": 4 * 256, "r2po": 6 * 64}
SEED = 1007


class Stopped(Exception):
    """The process is killed here."""


class Recorder:
    """What a run gives and takes, with `stop` as the number of the checkpoint after which it dies."""

    def __init__(self, study, arm, folder, stop=None):
        self.settings, self.options, self.seed = arm.points()[0], study.options, SEED
        self.measured, self.spent, self.stop = {}, 0, stop
        self._names, self._path = {each.name for each in study.outcomes}, folder / f"{study.name}-{arm.name}"

    def resume(self):
        if not self._path.exists():
            return None
        stored = load_state(self._path)
        self.measured, self.spent = stored["measured"], stored["spent"]
        return stored["state"]

    def checkpoint(self, state):
        save_state(self._path, {"state": state, "measured": self.measured, "spent": self.spent})
        if self.stop is not None:
            self.stop -= 1
            if not self.stop:
                raise Stopped

    def measure(self, outcome, value, *, of=None, at):
        assert outcome in self._names
        self.measured[f"{outcome} {json.dumps(at)}"] = float(value) / (of or 1)

    def spend(self, *, generated_tokens, phase):
        self.spent += generated_tokens


def built(name):
    return registry.load(name).build(**OPTIONS[name])


@pytest.mark.parametrize("name", OPTIONS)
def test_every_arm_runs_and_all_spend_the_same(name, tmp_path):
    study = built(name)
    ends = set()
    for arm in study.arms:
        run = Recorder(study, arm, tmp_path)
        study.run(run)
        assert run.spent == COSTS[name], arm.name
        ends.add(max(json.loads(key.partition(" ")[2])["generated_tokens"] for key in run.measured))
        always = {outcome.name for outcome in study.outcomes} - {"critic_spearman", "critic_brier"}
        assert always <= {key.partition(" ")[0] for key in run.measured}, arm.name
    assert ends == {COSTS[name]}


@pytest.mark.parametrize(("name", "arm"), [("sppo", "sppo"), ("apo", "apo"), ("r2po", "r2po-task")])
def test_a_stopped_run_measures_the_same(name, arm, tmp_path):
    study = built(name)
    folders = [tmp_path / "whole", tmp_path / "stopped"]
    for folder in folders:
        folder.mkdir()
    whole = Recorder(study, study.arm(arm), folders[0])
    study.run(whole)
    with pytest.raises(Stopped):
        study.run(Recorder(study, study.arm(arm), folders[1], stop=2))
    resumed = Recorder(study, study.arm(arm), folders[1])
    study.run(resumed)
    assert resumed.measured == pytest.approx(whole.measured, rel=0, abs=0, nan_ok=True)
    assert resumed.spent == whole.spent


@pytest.mark.parametrize("name", OPTIONS)
def test_seeds_that_were_looked_at_are_no_test_seeds(name):
    assert max(registry.load(name).build().test_seeds()) < 1000


def test_every_arm_of_a_world_starts_alike(tmp_path):
    """At step 0 nothing but the arm's name differs: the same world, the same policy."""
    for name, outcome in (("sppo", "solve_rate"), ("apo", "pass_at_8"), ("r2po", "success")):
        study = built(name)
        starts = set()
        for arm in study.arms:
            run = Recorder(study, arm, tmp_path, stop=1)
            with pytest.raises(Stopped):
                study.run(run)
            starts |= {value for key, value in run.measured.items() if key.startswith(f'{outcome} {{"step": 0')}
        assert len(starts) == 1


def test_the_area_is_the_mean_of_the_path_by_trapezoids(tmp_path):
    study = built("sppo")
    run = Recorder(study, study.arm("grpo"), tmp_path)
    study.run(run)
    rates = [value for key, value in run.measured.items() if key.startswith("solve_rate {")]
    (area,) = [value for key, value in run.measured.items() if key.startswith("solve_rate_area")]
    assert len(rates) == 3 and area == pytest.approx((rates[0] / 2 + rates[1] + rates[2] / 2) / 2)


def test_the_share_without_advantage_is_of_the_updates_since_the_last_evaluation(tmp_path, monkeypatch):
    from equipoise.reinforcement.worlds_sequences import Training

    def update(training):
        training.done += 1
        training.zero_advantages = training.done / 10

    monkeypatch.setattr(Training, "update", update)
    study = built("sppo")
    run = Recorder(study, study.arm("grpo"), tmp_path)
    study.run(run)
    shares = [value for key, value in run.measured.items() if key.startswith("zero_advantage_share")]
    assert shares == pytest.approx([0.15, 0.35])


def test_equal_updates_of_the_policy_are_where_the_claim_looks(tmp_path):
    study = built("r2po")
    (claim,) = [claim for claim in study.claims if "equal updates" in claim.text]
    assert dict(claim.test.at) == {"policy_updates": 4}
    for name, step in (("r2po-task", 6), ("grpo", 4)):
        run = Recorder(study, study.arm(name), tmp_path)
        study.run(run)
        places = [json.loads(key.partition(" ")[2]) for key in run.measured if key.startswith("greedy_success")]
        assert [each["step"] for each in places if each["policy_updates"] == 4] == [step]
