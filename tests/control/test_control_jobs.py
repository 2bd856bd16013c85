"""Collect, train and evaluate from end to end; interruptions; what is refused."""

import json

import numpy as np
import pytest

from equipoise.cli import main
from equipoise.control.environments import parse_levels
from equipoise.control.job import collect, evaluate, train
from equipoise.control.policies import load_policy
from equipoise.control.result import ControlTraining, TrainedPolicy
from equipoise.control.returns import iqm, iqm_interval, probability_of_improvement
from equipoise.control.transitions import read
from equipoise.core.errors import BadInput

gymnasium = pytest.importorskip("gymnasium")

SMALL = {"steps": 6, "hidden": (8,), "batch_size": 8, "samples": 5, "nominal_steps": 4}


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    return collect("Pendulum-v1", steps=450, out=folder / "logs").folder / "data.npz"


@pytest.fixture(scope="module")
def runs(logs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        train(str(logs), seeds=2, out=folder / "robust", **SMALL).folder,
        train(str(logs), method="sac", seeds=2, steps=6, hidden=(8,), batch_size=8, out=folder / "sac").folder,
    ]


def test_logs_are_the_environments(logs, tmp_path):
    data = read(logs)
    assert len(data) == 450 and data.truncated.nonzero()[0].tolist() == [199, 399, 449] and not data.terminated.any()
    peer = gymnasium.make("Pendulum-v1")
    first, _ = peer.reset(seed=0)
    np.testing.assert_array_equal(data.observations[0], first)
    for place in range(3):
        seen, reward, *_ = peer.step(data.actions[place])
        np.testing.assert_array_equal(data.next_observations[place], seen)
        assert data.rewards[place] == np.float32(reward)
    done = collect("Pendulum-v1", steps=450, seed=0)
    assert done.episodes == 2 and done.transitions == 450 and done.folder is None
    total = data.rewards[:400].astype(float).sum() / 2
    assert done.mean_return == pytest.approx(total, rel=1e-5)


def test_a_policy_acts_unless_chance_does(runs, tmp_path):
    policy = runs[0] / "policy-0.zip"
    always = collect("Pendulum-v1", policy=policy, steps=30, epsilon=0.0, out=tmp_path / "a").folder
    data, agent = read(always / "data.npz"), load_policy(policy)
    np.testing.assert_allclose(data.actions, agent.predict(data.observations, deterministic=True)[0], atol=1e-6)


def test_training_stores_what_it_trained_and_says_how(runs, logs):
    told = train.stored(runs[0])
    assert [each.file for each in told.policies] == ["policy-0.zip", "policy-1.zip"]
    assert told.policies[0].value != told.policies[1].value and told.policies[0].spread > 0
    assert told.policies[0].curve[-1] == (6, told.policies[0].value)
    assert load_policy(runs[0] / "policy-1.zip").settings.seed == 1
    assert np.isnan(train.stored(runs[1]).delta)
    report = (runs[0] / "report.html").read_text()
    assert "policy-1.zip" in report


def test_a_killed_training_comes_to_the_same_bytes(runs, logs, tmp_path, monkeypatch):
    from equipoise.control import training
    from equipoise.control.sac import SAC

    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    learn, calls = SAC.learn, []

    def cut(self, *given):
        calls.append(1)
        if len(calls) == 10:  # within the second policy
            raise KeyboardInterrupt
        return learn(self, *given)

    monkeypatch.setattr(SAC, "learn", cut)
    with pytest.raises(KeyboardInterrupt):
        train(str(logs), seeds=2, out=tmp_path / "cut", **SMALL)
    again = train(str(logs), seeds=2, out=tmp_path / "cut", **SMALL)
    assert len(calls) < 10 + 6  # the first policy was not trained again
    for name in ("policy-0.zip", "policy-1.zip", "result.json"):
        assert (again.folder / name).read_bytes() == (runs[0] / name).read_bytes()
    assert not (again.folder / "training.safetensors").exists()


@pytest.mark.slow
def test_evaluation_measures_the_same_starts(runs, tmp_path):
    done = evaluate(
        runs[0],
        environment="Pendulum-v1",
        perturb="length=0.8:1.2:2,delay=2",
        against=[runs[1]],
        choose_by="mass=1.5",
        episodes=2,
        out=tmp_path / "e",
    )
    robust, sac = (done.levels[str(run)] for run in runs)
    assert [(each.name, each.level) for each in robust] == [
        ("length", 0.8), ("length", 1.0), ("length", 1.2), ("delay", 0.0), ("delay", 2.0),
    ]  # fmt: skip
    assert robust[1].mean == robust[3].mean  # the environment as it is, seen from either perturbation
    assert len({each.mean.value for each in robust}) == 4
    agent = load_policy(runs[0] / "policy-1.zip")
    environment = gymnasium.make("Pendulum-v1")
    environment.unwrapped.l = 0.8
    returns = []
    for seed in range(2):
        seen, _ = environment.reset(seed=seed)
        returns.append(0.0)
        for _ in range(200):
            seen, reward, *_ = environment.step(agent.predict(seen, deterministic=True)[0])
            returns[-1] += float(reward)
    rows = [json.loads(line) for line in (done.folder / "returns.jsonl").read_text().splitlines()]
    own = [row["returns"] for row in rows if row["policy"].endswith("robust/policy-1.zip") and row["level"] == 0.8]
    assert own == [pytest.approx(returns)]
    gain = done.gains[str(runs[1])][0][2]
    assert gain.value == pytest.approx(robust[0].mean.value - sac[0].mean.value)
    assert done.chosen == max(done.validated, key=done.validated.get) and done.validation == ("mass=1.5",)
    report = (done.folder / "report.html").read_text()
    assert "Return against length" in report and "Trajectories" in report


@pytest.mark.slow
def test_the_command_line_plans_and_evaluates(runs, capsys, tmp_path):
    words = [
        "control",
        "evaluate",
        str(runs[0]),
        "--environment",
        "Pendulum-v1",
        "--perturb",
        "length=1.1",
        "--episodes",
        "2",
    ]
    assert main([*words, "--dry-run", "--out", str(tmp_path / "e")]) == 0
    assert not (tmp_path / "e").exists()
    assert main([*words, "--out", str(tmp_path / "e")]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1].endswith("report.html") or (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"environment": "Pendulum-v9"}, "no environment"),
        ({"environment": "os:Pendulum-v1"}, "import a module"),
        ({"environment": "MountainCarContinuous-v0"}, "the agent has 3 observations"),
        ({"environment": "CartPole-v1"}, "no flat box"),
        ({"perturb": "lenght=1.2"}, "no parameter"),
        ({"perturb": "length=1:2:1"}, "FROM:TO:COUNT"),
        ({"perturb": ""}, "no perturbation"),
        ({"choose_by": "length=1.2"}, "both chooses and tests"),
        ({"choose_by": "mass=1.2", "against": None}, "nothing to choose from"),
    ],
)
def test_evaluations_that_cannot_be_are_refused_before_they_begin(runs, changes, told):
    asked = {"environment": "Pendulum-v1", "perturb": "length=1.2", "against": [runs[1]], "episodes": 2}
    with pytest.raises(BadInput, match=told):
        evaluate.plan(runs[0], **asked | changes)


def test_training_requests_that_cannot_be_are_refused(logs, tmp_path):
    with pytest.raises(BadInput, match="delta would be ignored"):
        train.plan(str(logs), method="sac", delta=0.3)
    with pytest.raises(BadInput, match="no file"):
        train.plan(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("no numbers")
    with pytest.raises(BadInput, match="cannot be read"):
        train.plan(str(tmp_path / "text.npz"))
    with pytest.raises(BadInput, match="one level"):
        collect.plan("Pendulum-v1", perturb="length=1:2:3")
    assert "450" in " ".join(train.plan(str(logs)).summary())


def test_warnings_come_where_something_is_wrong():
    def told(**changes):
        policy = TrainedPolicy("policy-0.zip", 0, -20.0, 0.1, 0.9, 0.0, ())
        own = {name: changes.pop(name) for name in ("value", "spread", "few") if name in changes}
        from dataclasses import replace

        base = ControlTraining("dr-sac", "d", 10, 1, 0, 0.9, 0.0, 0.1, (replace(policy, **own),))
        return replace(base, **changes).warnings()

    assert told() == ()
    assert "diverge" in told(value=1.0)[0]
    assert "around a point" in told(spread=0.01)[0]
    assert "too little" in told(spread=5.0)[0]
    assert "worst draw" in told(few=0.5)[0]
    assert "extrapolated" in told(covered=0.01)[0]


def test_levels_as_they_are_typed():
    assert parse_levels("length=0.7:1.4:8, delay=2") == {
        "length": (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4),
        "delay": (2.0,),
    }
    assert parse_levels("observation-noise=0:0.4:3") == {"observation_noise": (0.0, 0.2, 0.4)}


def test_the_interquartile_mean_is_scipys():
    from scipy.stats import trim_mean

    scores = np.random.default_rng(0).normal(size=(5, 7))
    assert iqm(scores) == pytest.approx(trim_mean(scores, 0.25, axis=None))
    low, high = iqm_interval(scores, np.random.default_rng(1), draws=500)
    assert low < iqm(scores) < high
    assert all(np.isnan(iqm_interval(scores[:1], np.random.default_rng(1))))
    ahead = probability_of_improvement([[1, 2], [3, 3]], [[2, 2]])
    assert ahead == pytest.approx((0 + 0.5 + 1 + 1) / 4)
