"""Collect, train and evaluate from end to end; interruptions; what is refused."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
from scipy import stats

from equipoise.cli import main
from equipoise.control import result as control_result
from equipoise.control.environments import parse_levels
from equipoise.control.job import collect, evaluate, train
from equipoise.control.policies import load_policy
from equipoise.control.result import ControlEvaluation, ControlTraining, Level, TrainedPolicy
from equipoise.control.returns import iqm, iqm_interval, probability_of_improvement, unpaired_interval
from equipoise.control.transitions import read
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.numbers import number
from equipoise.core.shares import Bounded

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
        ({"choose_by": "length=1.25"}, "both chooses and tests"),
        ({"choose_by": "l=1.3"}, "both chooses and tests"),
        ({"choose_by": "mass=1"}, "changes nothing"),
        ({"perturb": "length=0"}, "fails under length=0 at its first step"),
        ({"perturb": "length=1:2:nan"}, "FROM:TO:COUNT"),
        ({"perturb": "length=1:2:inf"}, "FROM:TO:COUNT"),
        ({"perturb": "delay=1000000000"}, "at most"),
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


def test_a_folder_whose_policies_were_exchanged_is_refused(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    shutil.copy(runs[1] / "policy-0.zip", tmp_path / "run" / "policy-0.zip")
    with pytest.raises(BadInput, match=r"damaged \(policy-0"):
        evaluate.plan(tmp_path / "run", environment="Pendulum-v1", perturb="length=1.2")
    (tmp_path / "link").symlink_to(runs[0])
    with pytest.raises(BadInput, match="named twice"):
        evaluate.plan(runs[0], environment="Pendulum-v1", perturb="length=1.2", against=[tmp_path / "link"])


def cut_before_the_end(monkeypatch, logs, out, **settings):
    """Train until the second policy's last step, then be killed before it is stored."""
    from equipoise.control.sac import SAC

    save, calls = SAC.save, []

    def cut(self, path):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(self, path)

    monkeypatch.setattr(SAC, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        train(logs, seeds=2, out=out, **settings)
    monkeypatch.setattr(SAC, "save", save)
    (work,) = [path for path in out.parent.iterdir() if (path / "seed-0.json").exists()]
    return work


def test_a_training_that_was_killed_after_its_last_step_is_finished(runs, logs, tmp_path, monkeypatch):
    from equipoise.control import training

    monkeypatch.setattr(training, "SAVE_EVERY", 3)
    cut_before_the_end(monkeypatch, str(logs), tmp_path / "cut", **SMALL)
    again = train(str(logs), seeds=2, out=tmp_path / "cut", **SMALL)
    for name in ("policy-1.zip", "result.json"):
        assert (again.folder / name).read_bytes() == (runs[0] / name).read_bytes()


@pytest.mark.parametrize("altered", ["seed-0.json", "policy-0.zip"])
def test_what_was_altered_between_two_attempts_is_made_again(altered, runs, logs, tmp_path, monkeypatch):
    work = cut_before_the_end(monkeypatch, str(logs), tmp_path / "cut", **SMALL)
    if altered == "seed-0.json":
        text = (work / altered).read_text()
        (work / altered).write_text(text.replace('"seed": 0', '"seed": 9'))
        assert (work / altered).read_text() != text
    else:
        shutil.copy(runs[1] / altered, work / altered)
    again = train(str(logs), seeds=2, out=tmp_path / "cut", **SMALL)
    assert "seed-0.json" in again.notes[0]
    assert (again.folder / "policy-0.zip").read_bytes() == (runs[0] / "policy-0.zip").read_bytes()


def test_other_arrays_are_other_settings(tmp_path):
    def arrays(seed):
        generator = np.random.default_rng(seed)
        seen = generator.normal(size=(2, 9, 2))
        named = {"observations": seen[0], "next_observations": seen[1], "actions": np.zeros((9, 1))}
        return named | {"rewards": -np.ones(9), "terminated": np.zeros(9)}

    first = train(arrays(0), out=tmp_path / "run", **SMALL)
    assert train(arrays(0), out=tmp_path / "run", **SMALL).policies == first.policies
    with pytest.raises(BadInput, match="data"):
        train(arrays(1), out=tmp_path / "run", **SMALL)


def test_what_values_cannot_exceed(logs):
    def most(**changes):
        named = {"observations": np.zeros((4, 2)), "next_observations": np.zeros((4, 2)), "actions": np.zeros((4, 2))}
        named |= {"rewards": np.full(4, -1.0), "terminated": np.zeros(4)}
        return train(named | changes, gamma=0.9, alpha=0.5, **{**SMALL, "steps": 1}).most

    entropy = 0.9 * 0.5 * 2 * np.log(2) / 0.1
    assert most() == pytest.approx(-10 + entropy)
    # Where an end is possible a cost may be paid once.
    assert most(terminated=np.ones(4)) == pytest.approx(-1 + entropy)
    assert most(terminated=np.ones(4), rewards=np.full(4, 2.0)) == pytest.approx(20 + entropy)


class Odd(gymnasium.Env):
    """One step an episode; what goes wrong is a name of its own."""

    observation_space = gymnasium.spaces.Box(-9, 9, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)

    def __init__(self, wrong=""):
        self.wrong, self.steps = wrong, 0
        if wrong == "free":
            self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.reward = -1.0 if self.wrong != "seed" else float(seed or 0)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.wrong == "late" and self.steps > 3:
            raise RuntimeError("it broke")
        return np.zeros(3, np.float32), np.nan if self.wrong == "nan" else self.reward, True, False, {}


@pytest.fixture
def odd():
    made = []

    def registered(wrong):
        made.append(f"Odd{wrong}-v0")
        gymnasium.register(made[-1], Odd, kwargs={} if wrong == "bare" else {"wrong": wrong})
        return made[-1]

    yield registered
    for name in made:
        gymnasium.registry.pop(name)


def test_environments_of_others_fail_by_name(odd, runs, tmp_path):
    with pytest.raises(BadInput, match="no bounds"):
        collect.plan(odd("free"))
    with pytest.raises(BadInput, match="nan or infinite"):
        collect.plan(odd("nan"))
    gymnasium.registry[odd("bare")].kwargs["unknown"] = 1
    with pytest.raises(BadInput, match="to be had"):
        collect.plan("Oddbare-v0")
    with pytest.raises(WorkFailed, match="fails as it is: it broke"):
        evaluate(runs[0], environment=odd("late"), perturb="delay=1", episodes=5)
    with pytest.raises(BadInput, match="epsilon would be ignored"):
        collect.plan("Pendulum-v1", epsilon=0.3)


def test_a_change_that_no_environment_reads_is_named(odd, runs):
    done = evaluate(runs[0], environment=odd(""), perturb="steps=1.4,delay=0", episodes=2)
    assert done.unmoved == ("steps=1.4",) and "nothing was tested" in done.headline()


def test_a_radius_is_chosen_from_starts_of_its_own(odd, runs, tmp_path):
    asked = {"environment": odd("seed"), "perturb": "delay=1", "episodes": 2, "seed": 3}
    done = evaluate(runs[0], **asked, choose_by="action_noise=0.1", against=[runs[1]], out=tmp_path / "e")
    rows = [json.loads(line) for line in (done.folder / "returns.jsonl").read_text().splitlines()]
    own = {row["name"]: row["returns"] for row in rows}
    assert own == {"delay": [3.0, 4.0], "action_noise": [1_000_003.0, 1_000_004.0]}


def test_policies_of_unlike_number_are_still_others_each():
    """The true gain is 0: policies differ by 30 and starts hardly."""
    draw = np.random.default_rng(0)
    held = dict.fromkeys(((5, 4), (3, 6)), 0)
    for _ in range(400):
        starts = draw.normal(size=50)
        for ones, others in held:
            one, other = (30 * draw.normal(size=(k, 1)) + starts + draw.normal(size=(k, 50)) for k in (ones, others))
            _, low, high = unpaired_interval(one, other)
            held[ones, others] += low <= 0 <= high
    assert all(0.92 <= each / 400 <= 0.99 for each in held.values())
    # Welch's, where starts add nothing, and a paired one over starts for one policy each.
    one, other = draw.normal(size=(5, 1)), draw.normal(size=(4, 1))
    wanted = stats.ttest_ind(one[:, 0], other[:, 0], equal_var=False).confidence_interval()
    assert unpaired_interval(one, other)[1:] == pytest.approx(tuple(wanted))
    one, other = draw.normal(size=(1, 9)), draw.normal(size=(1, 9))
    wanted = stats.ttest_rel(one[0], other[0]).confidence_interval()
    assert unpaired_interval(one, other)[1:] == pytest.approx(tuple(wanted))
    assert unpaired_interval([[1.0, 2.0]], [[0.0, 1.0], [0.0, 1.0]]) == (1.0, 1.0, 1.0)


def test_logs_that_end_within_an_episode_are_no_time_limit(odd):
    logs = collect("Pendulum-v1", steps=250)
    assert (logs.episodes, logs.truncated, logs.cut, logs.terminated) == (1, 1, 1, 0)
    assert collect(odd(""), steps=3).cut == 0


@pytest.mark.parametrize(
    "given", [{"nominal": "gaussian", "latent": 9}, {"nominal": "ensemble", "vae_loss": "sum"}, {"dual_steps": 9}]
)
def test_settings_of_another_nominal_model_or_dual_are_refused(given, tmp_path):
    collect("Pendulum-v1", steps=30, out=tmp_path / "logs")
    with pytest.raises(BadInput, match="would be ignored: it belongs to"):
        train.plan(str(tmp_path / "logs" / "data.npz"), method="dr-sac", **given)


def test_episodes_of_one_step(odd, tmp_path):
    logs = collect(odd(""), steps=20, out=tmp_path / "logs")
    assert (logs.episodes, logs.terminated, logs.truncated) == (20, 20, 0)
    told = train(str(tmp_path / "logs" / "data.npz"), out=tmp_path / "run", **SMALL)
    assert "diverge" not in told.headline()
    done = evaluate(tmp_path / "run", environment="Odd-v0", perturb="delay=1", episodes=3)
    assert done.levels[str(tmp_path / "run")][0].mean.value == -1


def test_warnings_come_where_something_is_wrong():
    def told(**changes):
        policy = TrainedPolicy("policy-0.zip", 0, -20.0, 0.1, 0.9, 0.0, ())
        own = {name: changes.pop(name) for name in ("value", "spread", "few") if name in changes}
        from dataclasses import replace

        base = ControlTraining("dr-sac", "d", 10, 1, 0, 0.9, 0.0, 0.1, (replace(policy, **own),))
        return replace(base, **changes).warnings()

    assert told() == ()
    assert "diverge" in told(value=1.0)[0]
    assert "around a point" in told(spread=0.01)[0] and "neither spread nor err" in told(spread=np.nan)[0]
    assert "too little" in told(spread=5.0)[0]
    assert "worst draw" in told(few=0.5)[0]
    assert "extrapolated" in told(covered=0.01)[0]


def test_an_evaluation_has_a_line_for_each_level_of_each_run():
    def level(name, value, mean):
        return Level(name, value, Bounded(mean, mean - 2, mean + 2), Bounded(mean, mean, mean), mean - 9, mean + 9)

    levels = {
        "robust": (level("length", 1.0, -120.0), level("length", 1.4, -100.0), level("delay", 2.0, -400.0)),
        "sac": (level("length", 1.0, -80.0), level("length", 1.4, -900.0)),
    }
    made = ControlEvaluation("Pendulum-v1", 20, {"robust": 3, "sac": 4}, levels, {}, {}, (), "", {})
    assert made.warnings() == ()
    lines = made.summary()
    assert lines[0] == "robust:" and lines[4] == "sac:" and lines[7:] == (made.headline(),)
    assert lines[1] == f"  length=1: {number(-120.0)} [{number(-122.0)}, {number(-118.0)}]"
    assert lines[3].startswith(f"  delay=2: {number(-400.0)} [")
    assert lines[6].startswith(f"  length=1.4: {number(-900.0)} [")
    said = made.headline()  # the first run where none is chosen
    assert said.startswith(
        f"robust: mean return {number(-100.0)} at best (length=1.4) and {number(-400.0)} at worst (delay=2)"
    )
    assert said.endswith("of 20 starts a level.")
    chosen = dataclasses.replace(made, chosen="sac", validation=("length=1.2", "delay=1")).headline()
    assert chosen.startswith("sac is chosen by length=1.2, delay=1. sac: mean return ")
    assert f"{number(-900.0)} at worst (length=1.4)" in chosen
    for count, words in ((1, "is only 1"), (2, "are only 2")):
        few = dataclasses.replace(made, policies={"robust": 5, "sac": count})
        assert words in few.warnings()[0] and few.headline().startswith(few.warnings()[0])


def test_a_training_is_warned_of_above_its_limits_and_not_at_them():
    policy = TrainedPolicy("policy-0.zip", 0, -20.0, 0.1, 0.9, 0.0, ())
    base = ControlTraining("dr-sac", "d", 10, 1, 0, 0.9, -40.0, 0.1, (policy, policy))

    def told(most=-10.0, delta=0.1, **own):
        other = dataclasses.replace(policy, file="policy-1.zip", **own)
        return dataclasses.replace(base, most=most, delta=delta, policies=(policy, other)).warnings()

    for value, most, warned in ((-9.5, -10, False), (-9.4, -10, True), (10.5, 10, False), (10.6, 10, True)):
        found = told(most=most, value=value)
        assert len(found) == warned and all(each.startswith("The values of policy-1.zip exceed") for each in found)
    limits = {"spread": (control_result.POINT, control_result.WIDE), "few": (control_result.FEW,)}
    for at in limits["spread"]:
        assert told(spread=at) == ()
    assert "around a point" in told(spread=limits["spread"][0] - 1e-6)[0] and len(told(spread=0.01)) == 1
    assert "three times" in told(spread=limits["spread"][1] + 1e-6)[0]
    assert told(few=limits["few"][0]) == () and len(told(few=limits["few"][0] + 1e-6)) == 1
    assert "neither spread" in told(spread=math.nan)[0] and told(spread=math.nan, delta=math.nan) == ()


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
