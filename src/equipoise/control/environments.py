"""Environments by name, changes as they are typed, and episodes in them."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from equipoise.control.perturbation import NOISES, check_changes, perturb
from equipoise.core.errors import BadInput

MOST_LEVELS = 200


class Policy(Protocol):
    """What `predict` of Stable-Baselines3 and of our agents is."""

    def predict(self, observation: Any, /, *, deterministic: bool) -> tuple[Any, Any]: ...


def open_environment(name: str, changes: Mapping[str, float] | None = None) -> Any:
    """The Gymnasium environment of a registered name, with changes. Raises BadInput for one that does not suit."""
    import gymnasium

    if ":" in name:
        raise BadInput(
            f"{name!r} would import a module: import it in Python yourself, and give the name that it registers."
        )
    try:
        environment = gymnasium.make(name)
    except Exception as error:  # others' code, which may fail in any way
        raise BadInput(f"there is no environment {name!r} to be had: {' '.join(str(error).split())}") from error
    flat = gymnasium.spaces.Box
    for what, space in (("observations", environment.observation_space), ("actions", environment.action_space)):
        if not isinstance(space, flat) or len(space.shape) != 1:
            raise BadInput(f"{name} has {what} that are no flat box ({space}); policies here have numbers in and out.")
    try:
        return perturb(environment, **changes) if changes else environment
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from error


def parse_levels(text: str) -> dict[str, tuple[float, ...]]:
    """NAME=FROM:TO:COUNT or NAME=VALUE, with commas between -> levels by name. Raises BadInput for anything else."""
    found: dict[str, tuple[float, ...]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        name = name.strip().replace("-", "_")
        if not name or name in found:
            raise BadInput(f"{part!r} is no perturbation of its own: write each name once, as in length=0.7:1.4:8.")
        try:
            numbers = [float(each) for each in value.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) == 3 and numbers[2].is_integer() and 2 <= numbers[2] <= MOST_LEVELS:
            levels = np.linspace(numbers[0], numbers[1], int(numbers[2]))
            numbers = [float(f"{each:.6g}") for each in levels]
        elif len(numbers) != 1:
            raise BadInput(
                f"{part!r} is no perturbation: write NAME=VALUE, or NAME=FROM:TO:COUNT with a count of 2 to 200."
            )
        if not all(map(math.isfinite, numbers)):
            raise BadInput(f"{part!r} has a number that is not finite.")
        for level in numbers:
            check_changes({name: level})
        found[name] = tuple(dict.fromkeys(numbers))
    if not found:
        raise BadInput("no perturbation is named: write one, such as length=0.7:1.4:8.")
    return found


def try_out(name: str, changes: Mapping[str, float] | None = None) -> None:
    """One step in a changed environment, closed again. Raises BadInput where it fails, naming the changes."""
    environment = open_environment(name, changes)
    box = environment.action_space
    try:
        first, _ = environment.reset(seed=0)
        after, reward, *_ = environment.step(((box.low + box.high) / 2).astype(box.dtype))
        if not all(np.isfinite(np.asarray(each, float)).all() for each in (first, after, reward)):
            raise ArithmeticError("an observation or the reward is nan or infinite")
    except Exception as error:  # others' code, which may fail in any way
        raise BadInput(f"{name} fails {shown_changes(changes)} at its first step: {error}") from error
    finally:
        environment.close()


def shown_changes(changes: Mapping[str, float] | None) -> str:
    """Changes in a sentence."""
    return f"under {', '.join(f'{name}={level:g}' for name, level in changes.items())}" if changes else "as it is"


def unchanged(name: str) -> float:
    """The level at which a perturbation changes nothing."""
    return 0.0 if name in NOISES else 1.0


def episode(policy: Policy, environment: Any, seed: int, *, most: int = 100_000) -> tuple[float, list[Any]]:
    """The undiscounted return of the episode of this seed, and its observations, each [ds]."""
    observation, _ = environment.reset(seed=seed)
    total, seen = 0.0, [np.asarray(observation, np.float32)]
    for _ in range(most):
        action, _ = policy.predict(seen[-1], deterministic=True)
        observation, reward, terminated, truncated, _ = environment.step(action)
        total += float(reward)
        seen.append(np.asarray(observation, np.float32))
        if terminated or truncated:
            return total, seen
    raise BadInput(f"an episode has not ended after {most:,} steps: give an environment with a time limit.")
