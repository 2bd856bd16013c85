"""The study of DR-SAC: its worlds, what arms know, what they measure, that they resume."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.control import dr_sac_world
from equipoise.control.dr_sac import DRSAC
from equipoise.control.pendulum import Pendulum, seen
from equipoise.core.state import load_state
from equipoise.studies import dr_sac_pendulum
from equipoise.study import registry
from study_recorder import Stopped, StudyRecorder

SEED = 1003


class Recorder(StudyRecorder):
    seed = SEED


def test_logs_come_to_the_world_that_they_are_of():
    world = dr_sac_world.risky(np.random.default_rng(0))
    many = dr_sac_world.counted(world, 200_000, np.random.default_rng(1))
    few = dr_sac_world.counted(world, 20, np.random.default_rng(1))
    assert np.abs(many.kernel - world.kernel).max() < 0.01 < 0.1 < np.abs(few.kernel - world.kernel).max()
    assert np.allclose(few.kernel * 20, np.round(few.kernel * 20))
    near = next(dr_sac_world.around(world, np.random.default_rng(2)))
    assert 0 < np.abs(near.kernel - world.kernel).sum(-1).max() <= 2 * dr_sac_world.APART


def test_smoothing_mixes_each_kernel_with_the_uniform_one():
    world = dr_sac_world.risky(np.random.default_rng(0))
    mixed = dr_sac_world.smoothed(world, 0.3)
    np.testing.assert_allclose(mixed.kernel, 0.7 * world.kernel + 0.03, atol=1e-15)
    assert mixed.gamma == world.gamma == 0.9 and (mixed.reward == world.reward).all()
    assert world.reward.shape == (10, 3) and (world.reward[:2] < -1.8).all() and (world.reward[2:] > 0).all()
    assert np.abs(np.diff(world.reward, axis=1)).max() <= 0.1


@pytest.mark.parametrize("settings", [{"delta": 0.0}, {"delta": 0.3, "known": True}, {"delta": 0.0, "smooth": 0.4}])
def test_a_tabular_policy_is_solved_from_what_its_arm_knows(settings, monkeypatch):
    monkeypatch.setattr(dr_sac_world, "DRAWN", 3)
    monkeypatch.setattr(dr_sac_world, "RADII", (0.0, 0.25))
    asked, solve = [], dr_sac_world.solve
    monkeypatch.setattr(
        dr_sac_world, "solve", lambda world, delta, **how: asked.append((world, delta)) or solve(world, delta, **how)
    )
    worst, near = dr_sac_world.tabular(SEED, 20, settings)
    drawing, logging, shifting = (np.random.default_rng(np.random.SeedSequence([SEED, part])) for part in range(3))
    world = dr_sac_world.risky(drawing)
    known = world.kernel if settings.get("known") else logging.multinomial(20, world.kernel) / 20
    share = settings.get("smooth", 0.0)
    ((nominal, delta),) = asked
    assert delta == settings["delta"]
    np.testing.assert_allclose(nominal.kernel, (1 - share) * known + share / 10, atol=1e-12)
    policy = dr_sac_world.policy_of(solve(nominal, delta, tolerance=1e-9))

    def value(kernel):
        """Of the policy, from the linear equations of a world without a ball."""
        taken = policy.argmax(-1) if policy.ndim == 2 else policy
        rows = np.arange(10)
        return np.linalg.solve(np.eye(10) - 0.9 * kernel[rows, taken], world.reward[rows, taken])

    assert list(worst) == ["0", "0.25"] and near.shape == (3,)
    np.testing.assert_allclose(worst["0"], value(world.kernel), atol=1e-4)
    assert (worst["0.25"] < worst["0"] - 0.01).all()
    for found in near:
        other = shifting.dirichlet(np.ones(10), size=(10, 3))
        assert found == pytest.approx(value(0.7 * world.kernel + 0.3 * other).mean(), abs=1e-4)


@pytest.mark.slow
def test_tabular_arms_measure_everything(tmp_path):
    study = registry.load("dr-sac").build()
    found = {}
    for arm in ("plain", "known-0.3", "smoothed"):
        run = Recorder(tmp_path / arm, study=study, arm=arm)
        study.run(run)
        found[arm] = run.measured
        assert {key.partition(" ")[0] for key in run.measured} == {outcome.name for outcome in study.outcomes}
        worst = [value for key, value in run.measured.items() if key.startswith("worst_value")]
        assert len(worst) == 4 and worst == sorted(worst, reverse=True)
    key = 'worst_value {"step": 0} {"radius": "0.3"}'
    # With the true world known, a policy trained at the radius is the best there is at it.
    assert found["known-0.3"][key] >= max(found["plain"][key], found["smoothed"][key]) - 1e-6
    assert found["plain"] != found["smoothed"]


def test_the_oracle_draws_what_the_pendulum_does():
    generator = np.random.default_rng(0)
    state = Pendulum().reset(4, generator)
    s = torch.tensor(seen(state), dtype=torch.float32)
    a = torch.tensor([[0.3], [-1.0], [0.9], [0.0]])
    drawn = dr_sac_world.simulate(s, a, 40_000, torch.Generator().manual_seed(0)).double().numpy()
    world = Pendulum(torque_noise=dr_sac_world.TORQUE_NOISE)
    many, _ = world.step(np.repeat(state, 40_000, 0), np.repeat(2.0 * a.double().numpy()[:, 0], 40_000), generator)
    peer = seen(many).reshape(4, 40_000, 3)
    np.testing.assert_allclose(drawn.mean(1), peer.mean(1), atol=2e-3)
    np.testing.assert_allclose(drawn.std(1), peer.std(1), atol=2e-3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    dr_sac_world.log_pendulum(folder, SEED, 400)
    return folder


def test_the_pendulums_logs(prepared):
    data = dr_sac_world.logs(prepared)
    assert len(data) == 400 and data.truncated.sum() == 2 and not data.terminated.any()
    assert np.abs(data.actions).max() <= 2 and data.rewards.max() <= 1
    np.testing.assert_allclose(data.observations[2::2][:50], data.next_observations[0::2][:50], atol=1e-6)


def test_logs_are_of_a_noisy_pendulum_whose_controller_acts_half_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(dr_sac_world, "LENGTH_OF_EPISODE", 5)
    dr_sac_world.log_pendulum(tmp_path, SEED, 19)
    data = dr_sac_world.logs(tmp_path)
    generator = np.random.default_rng(np.random.SeedSequence([SEED, 7]))
    world = Pendulum(torque_noise=0.4)
    state, due = world.reset(3, generator), []
    for _ in range(5):
        by_chance, lot = generator.random(3) < 0.5, generator.uniform(-2, 2, 3)
        action = np.where(by_chance, lot, dr_sac_world.swing_up(seen(state)))
        after, reward = world.step(state, action, generator)
        due += [(seen(state)[i], action[i], 1 + reward[i] / 8, seen(after)[i]) for i in range(3)]
        state = after
    observations, actions, rewards, following = (np.array(each) for each in zip(*due, strict=True))
    np.testing.assert_allclose(data.observations, observations, atol=1e-6)
    np.testing.assert_allclose(data.actions[:, 0], actions, atol=1e-6)
    np.testing.assert_allclose(data.rewards, rewards, atol=1e-6)
    np.testing.assert_allclose(data.next_observations, following, atol=1e-6)
    assert data.truncated.tolist() == [False] * 12 + [True] * 3 and not data.terminated.any()
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([-2], [2])
    dr_sac_world.log_pendulum(tmp_path, SEED, 4)
    assert len(dr_sac_world.logs(tmp_path)) == 5  # one episode at least


@pytest.mark.parametrize("arm", ["sac", "fqi", "dr-sac-0.3", "oracle-0.3"])
def test_a_stopped_arm_comes_to_the_same_bytes(arm, prepared, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(dr_sac_pendulum, "SAVE_EVERY", 1)
    agent_of = dr_sac_world.agent_of

    def small(data, settings, seed):
        few = {"dr-sac": {"nominal_steps": 2}, "rfqi": {"dual_steps": 2}}.get(settings["method"], {})
        return agent_of(data, {**settings, **few}, seed)

    monkeypatch.setattr(dr_sac_world, "agent_of", small)
    study = registry.load("dr-sac-pendulum").build(steps=3, starts=2, transitions=400)
    whole = Recorder(tmp_path / "whole", study=study, arm=arm, prepared=prepared)
    study.run(whole)
    with pytest.raises(Stopped):
        study.run(Recorder(tmp_path / "cut", study=study, arm=arm, prepared=prepared, stop=2))
    again = Recorder(tmp_path / "cut", study=study, arm=arm, prepared=prepared)
    study.run(again)
    assert again.measured == whole.measured and again.spent == whole.spent == {"optimizer_steps": 3}
    one, other = (load_state(tmp_path / name / "state")["state"]["networks"]["critics"] for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    wanted = {"nominal_return", "shifted_return"} | (set() if arm in ("sac", "fqi") else {"spread", "few"})
    assert {key.partition(" ")[0] for key in whole.measured} == wanted


def test_rfqi_takes_a_share_of_the_steps(prepared, tmp_path):
    study = registry.load("dr-sac-pendulum").build(steps=20, starts=2, transitions=400)
    run = Recorder(tmp_path / "rfqi", study=study, arm="rfqi-short", prepared=prepared)
    study.run(run)
    assert run.spent == {"optimizer_steps": 2}
    agent = dr_sac_world.agent_of(dr_sac_world.logs(prepared), run.settings, 0)
    assert agent.settings.dual_steps == 100 and type(agent).__name__ == "RFQI"


def test_a_tabular_arm_is_measured_by_radius_state_and_world(tmp_path, monkeypatch):
    asked = []

    def tabular(*given):
        asked.append(given)
        return {"0": np.array([3.0, 5.0, 10.0]), "0.3": np.array([1.0, 2.0])}, np.array([4.0, 8.0])

    class Items(Recorder):
        def items(self, outcome, ids, scores, *, at, where=None):
            told.append((outcome, ids, list(scores), at, where))

        def spend(self, *, phase, **amounts):
            told.append((phase, amounts))

    monkeypatch.setattr(dr_sac_world, "tabular", tabular)
    told = []
    study = registry.load("dr-sac").build(samples=7)
    run = Items(tmp_path / "arm", study=study, arm="robust-0.3")
    study.run(run)
    at = {"step": 0}
    assert told == [
        ("build", {"calls": 1}),
        ("worst_value", ["state 0", "state 1", "state 2"], [3.0, 5.0, 10.0], at, {"radius": "0"}),
        ("worst_value", ["state 0", "state 1"], [1.0, 2.0], at, {"radius": "0.3"}),
        ("near_value", ["world 0", "world 1"], [4.0, 8.0], at, None),
    ]
    assert asked == [(SEED, 7, {"delta": 0.3})]


@pytest.mark.parametrize(
    ("method", "steps", "taken", "kept"),
    [
        ("dr-sac", 2500, [1000, 1000, 500], 2500),
        ("rfqi", 2500, [250], 250),
        ("rfqi", 7, [1], 1),
        ("fqi", 1000, [1000], 1000),
    ],
)
def test_an_arm_of_the_pendulum_learns_in_parts_that_are_kept(monkeypatch, method, steps, taken, kept):
    class Agent(DRSAC):
        def __init__(self):
            self.steps, self.learnt = 0, []

        few = 5

        def learn(self, some):
            self.steps += some
            self.learnt.append(some)

        def state(self):
            return {"at": self.steps}

        def spread(self):
            return np.inf if method == "fqi" else 0.5

    agent = Agent()
    monkeypatch.setattr(dr_sac_world, "logs", lambda folder: folder)
    monkeypatch.setattr(dr_sac_world, "agent_of", lambda logs, settings, seed: agent)
    names = ("nominal", *dr_sac_world.SHIFTED)
    played = {name: np.arange(3.0) + 10 * at for at, name in enumerate(names)}
    monkeypatch.setattr(dr_sac_world, "play", lambda its, starts: played)
    saved, spent, told = [], [], {}
    run = SimpleNamespace(
        options={"steps": steps, "starts": 3}, settings={"method": method}, seed=4, prepared="folder",
        resume=lambda: None, phase=lambda name: nullcontext(), checkpoint=saved.append,
        spend=lambda *, phase, optimizer_steps: spent.append(optimizer_steps),
        items=lambda outcome, ids, scores, *, at: told.update({outcome: (ids, list(scores), at)}),
        measure=lambda outcome, value, *, at: told.update({outcome: (value, at)}),
    )  # fmt: skip
    dr_sac_pendulum.learn(run)
    assert agent.learnt == spent == taken and saved == [{"at": sum(taken[: n + 1])} for n in range(len(taken))]
    ids, at = ["start 0", "start 1", "start 2"], {"step": kept}
    assert told["nominal_return"] == (ids, [0.0, 1.0, 2.0], at)
    middle = np.mean([10 * (place + 1) for place in range(len(names) - 1)])
    assert told["shifted_return"] == (ids, [middle, middle + 1, middle + 2], at)
    assert told["few"] == (5, at) and told["spread"] == (
        pytest.approx(np.nan if method == "fqi" else 0.5, nan_ok=True),
        at,
    )
