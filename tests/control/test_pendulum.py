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


def test_a_step_cuts_torque_and_speed_and_is_paid_for_the_state_before():
    state = np.array([[np.pi / 2 + 2 * np.pi, 1.0], [0.0, 7.9], [0.0, -7.9], [-3.0, 0.0]])
    after, reward = Pendulum().step(state, np.array([0.5, 9.0, -9.0, 0.0]), np.random.default_rng(0))
    speeds = [1 + 0.05 * (15 + 1.5), 8.0, -8.0, 0.05 * 15 * np.sin(-3.0)]
    np.testing.assert_allclose(after[:, 1], speeds)
    np.testing.assert_allclose(after[:, 0], state[:, 0] + 0.05 * np.array(speeds))
    paid = [(np.pi / 2) ** 2 + 0.1 + 0.001 * 0.25, 0.1 * 7.9**2 + 0.004, 0.1 * 7.9**2 + 0.004, 9.0]
    np.testing.assert_allclose(reward, [-each for each in paid])


def test_it_begins_at_any_angle_and_at_speeds_within_one():
    first = Pendulum().reset(4000, np.random.default_rng(3))
    assert first.shape == (4000, 2)
    lowest, highest = first.min(0), first.max(0)
    np.testing.assert_allclose([lowest, highest], [[-np.pi, -1], [np.pi, 1]], atol=0.01)
    assert (lowest >= [-np.pi, -1]).all() and (highest <= [np.pi, 1]).all()
    np.testing.assert_allclose(first.mean(0), 0, atol=0.1)


@pytest.mark.parametrize(
    ("cosine", "sine", "speed", "torque"),
    [
        # Pumping: along the speed while energy, v^2 / 2 + 15 (cos - 1), is below a half, else against it.
        (-1.0, 0.0, 0.0, 2.0),
        (-1.0, 0.0, -0.09, 2.0),  # at rest it has to begin somewhere
        (-1.0, 0.0, -0.1, -2.0),
        (-1.0, 0.0, -1.0, -2.0),
        (-1.0, 0.0, 7.8, 2.0),
        (-1.0, 0.0, 7.82, -2.0),
        (0.5, -0.8, 4.0, -2.0),  # a half of energy exactly
        (0.5, -0.8, -4.0, 2.0),
        (0.5, -0.8, 3.9, 2.0),
        (0.0, 1.0, 5.0, 2.0),
        (0.0, 1.0, 6.0, -2.0),
        # Holding, where the cosine is above 0.9 and the speed within 3: -10 angle - 2 speed.
        (np.cos(0.1), np.sin(0.1), 0.3, -1.6),
        (np.cos(0.05), -np.sin(0.05), 0.2, 0.1),
        (np.cos(0.45), np.sin(0.45), -2.95, 1.4),
        (np.cos(0.45), np.sin(0.45), -3.0, 2.0),
        (np.cos(0.3), np.sin(0.3), 0.0, -2.0),
        (0.9, np.sqrt(0.19), -2.9, 2.0),
        (0.901, np.sqrt(1 - 0.901**2), -2.9, 5.8 - 10 * np.arccos(0.901)),
    ],
)
def test_the_controller_pumps_and_holds(cosine, sine, speed, torque):
    assert swing_up(np.array([[cosine, sine, speed]])) == pytest.approx([torque])
