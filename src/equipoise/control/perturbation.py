"""What a change of the system does: any Gymnasium environment with other parameters, noise, or delay.

`perturb(environment, length=1.2, observation_noise=0.1, random_action=0.2, delay=1)`. A name that is none of the noises is a
parameter of the environment, multiplied by the number. Everything random follows from the seed of `reset`.
"""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from equipoise.control.transitions import EXTRA
from equipoise.core.errors import BadInput, MissingExtra, did_you_mean

try:
    import gymnasium
except ImportError as error:
    raise MissingExtra(EXTRA) from error

NOISES = ("observation_noise", "uniform_noise", "action_noise", "random_action", "delay")
ALIASES = {  # words of the field -> what environments call them
    "length": ("length", "l"),
    "mass": ("m", "masspole"),
    "gravity": ("gravity", "g"),
    "force": ("force_mag", "max_torque"),
    "speed": ("max_speed",),
}
LONGEST = 10_000  # steps of a delay
MUJOCO = {
    "damping": ("dof_damping",),
    "stiffness": ("jnt_stiffness",),
    "friction": ("geom_friction",),
    "mass": ("body_mass", "body_inertia"),
    "force": ("actuator_gear",),
}


class Perturbed(gymnasium.Wrapper):
    """An environment with its changes, as a wrapper; made by `perturb`."""

    def __init__(self, environment: Any, changes: Mapping[str, float]) -> None:
        super().__init__(environment)
        self.changes = dict(changes)
        self._noise = np.random.default_rng(0)
        self._waiting: deque[Any] = deque()
        box: Any = environment.action_space
        self._half = (np.asarray(box.high) - np.asarray(box.low)) / 2

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; a seed decides its noise, too."""
        if seed is not None:
            self._noise = np.random.default_rng(np.random.SeedSequence([seed, 1]))
        box: Any = self.action_space
        middle = (np.asarray(box.low) + np.asarray(box.high)) / 2
        self._waiting = deque([middle] * int(self.changes.get("delay", 0)))
        observation, info = self.env.reset(seed=seed, options=options)
        return self._seen(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act, later and otherwise than was asked where that is among the changes."""
        box: Any = self.action_space
        if self._noise.random() < self.changes.get("random_action", 0.0):
            action = self._noise.uniform(box.low, box.high)
        if scale := self.changes.get("action_noise", 0.0):
            action = action + scale * self._half * self._noise.standard_normal(box.shape)
        self._waiting.append(np.clip(action, box.low, box.high).astype(box.dtype))
        observation, reward, terminated, truncated, info = self.env.step(self._waiting.popleft())
        return self._seen(observation), reward, terminated, truncated, info

    def _seen(self, observation: Any) -> Any:
        gaussian, uniform = (self.changes.get(name, 0.0) for name in ("observation_noise", "uniform_noise"))
        if not (gaussian or uniform):
            return observation
        noise = gaussian * self._noise.standard_normal(np.shape(observation))
        noise = noise + self._noise.uniform(-1, 1, np.shape(observation)) * uniform
        return (observation + noise).astype(np.asarray(observation).dtype)


def perturb(environment: Any, **changes: float) -> Any:
    """The environment with these changes; it is changed in place where a parameter is.

    observation_noise: standard deviation of Gaussian noise on what is seen; uniform_noise: half width of uniform noise;
    action_noise: standard deviation as a share of half the range of actions; random_action: chance of a uniform action in
    place of the one asked for; delay: steps until an action acts, the middle of the box before. Any other name is a factor
    of a parameter: an attribute of the environment, or length, mass, gravity, force, damping, stiffness, friction as
    `ALIASES` and `MUJOCO` read them. Raises BadInput for a name that it has not, and for a number that is none.
    """
    box = environment.action_space
    if not isinstance(box, gymnasium.spaces.Box):
        raise BadInput("the environment's actions are no box of numbers: noise and delay have no meaning there.")
    check_changes(changes)
    bounded = bool(np.isfinite(box.low).all() and np.isfinite(box.high).all())
    if not bounded and (
        unbounded := [name for name in ("action_noise", "random_action", "delay") if changes.get(name)]
    ):
        raise BadInput(f"{unbounded[0]} has no meaning where actions have no bounds: rescale them into a box first.")
    for name, factor in changes.items():
        if name not in NOISES:
            scale_parameter(environment, name, factor)
    return Perturbed(environment, changes)


def check_changes(changes: Mapping[str, float]) -> None:
    """Raises BadInput for a number that a change may not be, and for a parameter that is named twice."""
    names: dict[str, str] = {}
    for name, value in changes.items():
        if (other := names.setdefault(canonical(name), name)) != name:
            raise BadInput(f"{other} and {name} are the same parameter: name it once.")
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise BadInput(f"{name}={value!r} is no number.")
        if not math.isfinite(value) or value < 0:
            raise BadInput(f"{name}={value!r} is no change: expected a finite number of 0 or more.")
        if name == "random_action" and value > 1:
            raise BadInput(f"random_action={value!r} is a chance: at most 1.")
        if name == "delay" and (value != int(value) or value > LONGEST):
            raise BadInput(f"delay={value!r} is a number of steps: a whole one, at most {LONGEST:,}.")


def canonical(name: str) -> str:
    """The word of the field for a parameter, however an environment calls it."""
    return next((word for word, names in ALIASES.items() if name in names), name)


def scale_parameter(environment: Any, name: str, factor: float) -> None:
    """Multiply a parameter of the environment, and what it has derived from it. Raises BadInput where it is missing."""
    inner = environment.unwrapped
    model = getattr(inner, "model", None)
    if model is not None and name in MUJOCO:
        for array in MUJOCO[name]:
            getattr(model, array)[:] *= factor
        return
    if model is not None and name == "gravity":
        model.opt.gravity[:] *= factor
        return
    for attribute in (name, *ALIASES.get(name, ())):
        value = getattr(inner, attribute, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                setattr(inner, attribute, value * factor)
            except AttributeError as error:
                raise BadInput(f"{name} follows from other parameters of the environment: change those.") from error
            break
    else:
        own = [key for key, value in vars(inner).items() if isinstance(value, float) and not key.startswith("_")]
        known = (*NOISES, *own, *(word for word, names in ALIASES.items() if any(each in own for each in names)))
        known += tuple(MUJOCO) if model is not None else ()
        raise BadInput(f"the environment has no parameter {name!r}. {did_you_mean(name, known)}")
    if hasattr(inner, "polemass_length"):  # the cart and its pole keep products of their parameters
        inner.total_mass = inner.masspole + inner.masscart
        inner.polemass_length = inner.masspole * inner.length
