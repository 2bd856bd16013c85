"""The study's worlds from their streams, and episodes of which every step is known."""

import numpy as np
import pytest
import torch

from equipoise.control import dr_sac_world
from equipoise.control.dr_sac import DRSAC
from equipoise.control.fqi import FQI, RFQI
from equipoise.control.pendulum import Pendulum, seen
from equipoise.control.sac import SAC


def test_a_risky_world_is_drawn_as_it_says():
    world, generator = dr_sac_world.risky(np.random.default_rng(3)), np.random.default_rng(3)
    reward = generator.uniform(size=(10, 1)) + generator.uniform(size=(10, 3)) / 10
    reward[:2] -= 3
    concentration = 0.03 * (3.0 / 0.03) ** generator.uniform(size=(10, 3))
    raw = generator.standard_gamma(concentration[..., None], size=(10, 3, 10)) + 1e-6
    np.testing.assert_allclose(world.reward, reward)
    np.testing.assert_allclose(world.kernel, raw / raw.sum(-1, keepdims=True), rtol=1e-9)
    assert world.gamma == 0.9
    logged = dr_sac_world.counted(world, 7, np.random.default_rng(1))
    np.testing.assert_array_equal(logged.kernel, np.random.default_rng(1).multinomial(7, world.kernel) / 7)
    near, generator = [*dr_sac_world.around(world, np.random.default_rng(2))], np.random.default_rng(2)
    assert len(near) == 50 and all(each.gamma == 0.9 for each in near)
    for each in near[:3]:
        np.testing.assert_allclose(
            each.kernel, 0.7 * world.kernel + 0.3 * generator.dirichlet(np.ones(10), size=(10, 3))
        )


def test_the_oracle_draws_with_its_own_noise_within_the_speed_that_there_is():
    s = torch.tensor([[1.0, 0.0, 7.99], [0.0, 1.0, -7.99], [np.cos(2), np.sin(2), 0.5]], dtype=torch.float64)
    a = torch.tensor([[3.0], [-0.5], [0.25]])
    drawn = dr_sac_world.simulate(s, a, 5, torch.Generator().manual_seed(1))
    noise = 0.4 * torch.randn((3, 5), generator=torch.Generator().manual_seed(1), dtype=torch.float64).numpy()
    for row, (angle, speed, torque) in enumerate(((0.0, 7.99, 2.0), (np.pi / 2, -7.99, -1.0), (2.0, 0.5, 0.5))):
        after = np.clip(speed + 0.05 * (15 * np.sin(angle) + 3 * (torque + noise[row])), -8, 8)
        turned = angle + 0.05 * after
        np.testing.assert_allclose(drawn[row].numpy(), np.stack([np.cos(turned), np.sin(turned), after], -1), atol=1e-9)
    assert drawn.dtype == s.dtype and (drawn[0, :, 2] == 8).any()


@pytest.mark.parametrize("changes", [{}, {"length": 1.4}, {"torque_noise": 0.0}])
def test_returns_are_of_starts_and_noise_of_the_seed(changes, monkeypatch):
    monkeypatch.setattr(dr_sac_world, "LENGTH_OF_EPISODE", 4)

    def predict(observation):
        return observation[:, 0] - observation[:, 2]

    found = dr_sac_world.returns(predict, changes, 3, seed=5)
    generator, world = (
        np.random.default_rng(np.random.SeedSequence([5, 11])),
        Pendulum(**{"torque_noise": 0.4} | changes),
    )
    state, due = world.reset(3, generator), 0
    for _ in range(4):
        state, reward = world.step(state, predict(seen(state)), generator)
        due = due + reward
    np.testing.assert_allclose(found, due)
    assert dr_sac_world.CHANGES["noise 4"] == {"torque_noise": 1.6}


def test_every_change_is_played_from_the_same_starts(monkeypatch):
    monkeypatch.setattr(dr_sac_world, "LENGTH_OF_EPISODE", 2)
    asked = []

    class Still:
        def predict(self, observations, *, deterministic):
            asked.append((observations.shape, deterministic))
            return np.stack([observations[:, 2], np.full(len(observations), np.nan)], -1), None

    found = dr_sac_world.play(Still(), 3)
    assert list(found) == list(dr_sac_world.CHANGES) and set(asked) == {((3, 3), True)}
    for name, changes in dr_sac_world.CHANGES.items():
        due = dr_sac_world.returns(lambda observation: observation[:, 2], changes, 3, seed=0)
        np.testing.assert_array_equal(found[name], due)


def test_an_arms_agent_has_the_settings_of_all_and_its_own(tmp_path):
    dr_sac_world.log_pendulum(tmp_path, 1, 200)
    data = dr_sac_world.logs(tmp_path)
    for method, kind in (("sac", SAC), ("fqi", FQI), ("rfqi", RFQI), ("dr-sac", DRSAC)):
        agent = dr_sac_world.agent_of(data, {"method": method}, 9)
        assert type(agent) is kind and agent.settings.seed == 9
        assert (agent.settings.gamma, agent.settings.tau, agent.settings.learning_rate) == (0.95, 0.02, 1e-3)
        assert (agent.settings.hidden, agent.settings.batch_size) == ((64, 64), 128)
        if method.endswith("sac"):
            assert agent.settings.behavior_weight == 0.2
    robust = dr_sac_world.agent_of(data, {"method": "dr-sac", "delta": 0.7, "samples": 8}, 2)
    assert (robust.settings.delta, robust.settings.samples, robust.settings.nominal_steps) == (0.7, 8, 1000)
    assert robust.settings.dual == "exact" and robust._simulator is None
    oracle = dr_sac_world.agent_of(data, {"method": "dr-sac", "oracle": True}, 2)
    assert oracle._simulator is dr_sac_world.simulate and oracle.settings.samples == 32
