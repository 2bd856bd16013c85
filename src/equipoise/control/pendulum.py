"""A pendulum that is swung up, many at once, with torque noise: what Gymnasium's Pendulum-v1 is where the noise is 0.

State: angle from upright and its speed, [n, 2]; seen: cos, sin, speed, [n, 3]. With torque u in [-2, 2] and noise e:

    speed' = speed + (3 g / (2 l) sin(angle) + 3 / (m l^2) (u + e)) dt      within [-8, 8]
    angle' = angle + speed' dt
    reward = -(angle^2 + 0.1 speed^2 + 0.001 u^2), angle in [-pi, pi], of the state before

Noise makes it a world in which a ball of kernels holds more than one: around a kernel that is a point there is none.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
TORQUE, SPEED, STEP, LENGTH_OF_EPISODE = 2.0, 8.0, 0.05, 200


@dataclass(frozen=True)
class Pendulum:
    """gravity, mass, length: of the pendulum; torque_noise: standard deviation; torque: share of the torque that arrives."""

    gravity: float = 10.0
    mass: float = 1.0
    length: float = 1.0
    torque_noise: float = 0.0
    torque: float = 1.0

    def reset(self, count: int, generator: np.random.Generator) -> Array:
        """States [count, 2], uniform over angles and over speeds within 1."""
        return generator.uniform([-np.pi, -1.0], [np.pi, 1.0], size=(count, 2))

    def step(self, state: Array, action: Array, generator: np.random.Generator) -> tuple[Array, Array]:
        """What follows [n, 2], and rewards [n]. action: torques [n], cut to [-2, 2]."""
        angle, speed = state[..., 0], state[..., 1]
        torque = np.clip(action, -TORQUE, TORQUE)
        near = (angle + np.pi) % (2 * np.pi) - np.pi
        reward = -(near**2 + 0.1 * speed**2 + 0.001 * torque**2)
        force = self.torque * torque + self.torque_noise * generator.standard_normal(torque.shape)
        push = 1.5 * self.gravity / self.length * np.sin(angle) + 3 / (self.mass * self.length**2) * force
        after = np.clip(speed + push * STEP, -SPEED, SPEED)
        return np.stack([angle + after * STEP, after], -1), reward


def seen(state: Array) -> Array:
    """cos, sin and speed, [..., 3]."""
    return np.stack([np.cos(state[..., 0]), np.sin(state[..., 0]), state[..., 1]], -1)


def swing_up(observation: Array) -> Array:
    """Torques [n] of a controller made by hand: energy until the top is near, then a spring with damping."""
    cosine, sine, speed = observation[..., 0], observation[..., 1], observation[..., 2]
    # Energy of a rod about its end over its inertia, zero at rest upright.
    energy = 0.5 * speed**2 + 15.0 * (cosine - 1)
    pumping = np.where(np.abs(speed) < 0.1, TORQUE, TORQUE * np.sign(speed)) * np.where(energy < 0.5, 1.0, -1.0)
    angle = np.arctan2(sine, cosine)
    holding = -10.0 * angle - 2.0 * speed
    return np.clip(np.where((cosine > 0.9) & (np.abs(speed) < 3), holding, pumping), -TORQUE, TORQUE)
