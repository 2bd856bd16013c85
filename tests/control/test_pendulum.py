"""The pendulum against Gymnasium's, and the controller that makes its logs."""

import numpy as np
import pytest

from equipoise.control.pendulum import LENGTH_OF_EPISODE, Pendulum, seen, swing_up


def test_without_noise_it_is_gymnasiums():
    gymnasium = pytest.importorskip("gymnasium")
    peer = gymnasium.make("Pendulum-v1").unwrapped
    peer.l, peer.m, peer.g = 1.3, 0.8, 9.0
    peer.reset(seed=0)
    generator = np.random.default_rng(0)
    state = np.array([peer.state])
    for _ in range(60):
        action = generator.uniform(-3, 3, size=1)
        observation, reward, *_ = peer.step(action)
        state, mine = Pendulum(gravity=9.0, mass=0.8, length=1.3).step(state, action, generator)
        np.testing.assert_allclose(seen(state)[0], observation, atol=1e-5)
        assert mine[0] == pytest.approx(float(reward), abs=1e-9)


def test_noise_pushes_as_a_torque_does():
    generator = np.random.default_rng(1)
    states, _ = Pendulum(torque_noise=0.4).step(np.zeros((20_000, 2)), np.zeros(20_000), generator)
    assert states[:, 1].std() == pytest.approx(3 * 0.4 * 0.05, rel=0.02)
    weak, _ = Pendulum(torque=0.5).step(np.zeros((1, 2)), np.ones(1), generator)
    assert weak[0, 1] == pytest.approx(0.5 * 3 * 0.05)


def test_the_controller_swings_up_and_holds():
    world, generator = Pendulum(), np.random.default_rng(2)
    state = world.reset(50, generator)
    for _ in range(LENGTH_OF_EPISODE):
        state, reward = world.step(state, swing_up(seen(state)), generator)
    assert np.median(reward) > -0.2
