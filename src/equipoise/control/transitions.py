"""Logged transitions (s, a, r, s', terminated, truncated): from arrays, NPZ files and Minari, checked once.

A time limit (truncated) ends an episode but is no end of the world: only `terminated` stops the sum of rewards.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.core.errors import BadInput, MissingExtra
from equipoise.core.files import produce_atomic

Array = NDArray[np.float32]
NEEDED = ("observations", "actions", "rewards", "next_observations", "terminated")
OPTIONAL = ("truncated", "action_low", "action_high")
D4RL = {"terminals": "terminated", "timeouts": "truncated"}
EXTRA = "Environments and Minari need an extra: pip install 'equipoise[control]'"


@dataclass(frozen=True)
class Transitions:
    """observations, next_observations: [n, ds]; actions: [n, da] in the environment's units, inside [action_low,
    action_high], each [da]; rewards: [n]; terminated, truncated: [n] bool. Raises BadInput for anything else, by name."""

    observations: Array
    actions: Array
    rewards: Array
    next_observations: Array
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    action_low: Array
    action_high: Array

    def __post_init__(self) -> None:
        for name in ("observations", "actions", "rewards", "next_observations", "action_low", "action_high"):
            with np.errstate(over="ignore"):  # what is too large for float32 is an infinity, which is refused
                value = np.ascontiguousarray(_numbers(name, getattr(self, name)), np.float32)
            object.__setattr__(self, name, value)
            if not np.isfinite(value).all():
                raise BadInput(
                    f"{name} hold nan or an infinity (first at row {_first(~np.isfinite(value))}): drop such rows."
                )
        for name in ("terminated", "truncated"):
            value = _numbers(name, getattr(self, name))
            if not np.isin(value, (0, 1)).all():
                raise BadInput(f"{name} should be true or false; row {_first(~np.isin(value, (0, 1)))} is neither.")
            object.__setattr__(self, name, np.ascontiguousarray(value.reshape(-1), bool))
        object.__setattr__(self, "rewards", self.rewards.reshape(-1))
        count = len(self.observations)
        if (
            self.observations.ndim != 2
            or self.actions.ndim != 2
            or 0 in (*self.observations.shape, self.actions.shape[1])
        ):
            raise BadInput(
                f"observations have shape {self.observations.shape} and actions {self.actions.shape}: expected [n, width] "
                "of both, with one row or more."
            )
        for name in (*NEEDED[1:], "truncated"):
            if len(getattr(self, name)) != count:
                raise BadInput(f"{name} have {len(getattr(self, name))} rows, observations {count}.")
        if self.next_observations.shape != self.observations.shape:
            raise BadInput(
                f"next_observations have shape {self.next_observations.shape}, observations {self.observations.shape}."
            )
        if self.action_low.shape != (self.actions.shape[1],) or self.action_high.shape != self.action_low.shape:
            raise BadInput(
                f"the box of actions has shapes {self.action_low.shape} and {self.action_high.shape}: one number an action."
            )
        if not (self.action_low < self.action_high).all():
            raise BadInput("the box of actions is empty: action_low must be below action_high.")
        room = 1e-5 * (self.action_high - self.action_low)
        outside = (self.actions < self.action_low - room) | (self.actions > self.action_high + room)
        if outside.any():
            raise BadInput(
                f"row {_first(outside)} has an action outside the box {self.action_low.tolist()} to "
                f"{self.action_high.tolist()}: give the environment's own action_low and action_high, or clip the logs."
            )

    def __len__(self) -> int:
        return len(self.observations)

    @property
    def episodes(self) -> int:
        """Ends of episodes in the logs."""
        return int((self.terminated | self.truncated).sum())

    def digest(self) -> str:
        """sha256 of all that is in it."""
        found = hashlib.sha256()
        for name in (*NEEDED, *OPTIONAL):
            value = getattr(self, name)
            found.update(f"{name} {value.dtype} {value.shape} ".encode() + value.tobytes())
        return found.hexdigest()

    def save(self, path: Path) -> None:
        """Write an NPZ file that `read` reads."""
        with_names = {name: getattr(self, name) for name in (*NEEDED, *OPTIONAL)}

        def write(target: Path) -> None:
            with target.open("wb") as file:
                np.savez(file, **with_names)

        produce_atomic(path, write)


def of_arrays(arrays: Mapping[str, Any]) -> Transitions:
    """From arrays by name; D4RL's terminals and timeouts are taken, too. Without a box of actions it is [-1, 1].

    Raises BadInput for a missing or an unknown name, and for one that is there in both ways of writing it.
    """
    if twice := [f"{name} and {own}" for name, own in D4RL.items() if name in arrays and own in arrays]:
        raise BadInput(f"{twice[0]} are the same thing: give one of them.")
    named = {D4RL.get(name, name): value for name, value in arrays.items()}
    if missing := [name for name in NEEDED if name not in named]:
        raise BadInput(f"no {', '.join(missing)} (found: {', '.join(arrays) or 'nothing'}).")
    if unknown := [name for name in named if name not in (*NEEDED, *OPTIONAL)]:
        raise BadInput(f"{', '.join(unknown)} would be ignored: expected {', '.join((*NEEDED, *OPTIONAL))}.")
    named = {name: _numbers(name, value) for name, value in named.items()}
    width = named["actions"].shape[-1]
    named.setdefault("truncated", np.zeros(len(named["rewards"]), bool))
    named.setdefault("action_low", np.full(width, -1.0))
    named.setdefault("action_high", np.full(width, 1.0))
    return Transitions(**named)


def read(source: str | Path | Transitions | Mapping[str, Any]) -> Transitions:
    """From Transitions, arrays by name, the path of an NPZ file, or minari:NAME. Raises BadInput naming what is wrong."""
    if isinstance(source, Transitions):
        return source
    if isinstance(source, Mapping):
        return of_arrays(source)
    if str(source).startswith("minari:"):
        return of_minari(str(source).removeprefix("minari:"))
    path = Path(source)
    if not path.is_file():
        raise BadInput(f"{path} is no file: give an NPZ file of transitions, or minari:NAME.")
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    # An encrypted file is a RuntimeError.
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"{path} cannot be read as an NPZ file of numbers: {error}") from error
    try:
        return of_arrays(arrays)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


def of_minari(name: str) -> Transitions:
    """From a Minari data set of this machine. Raises BadInput where it is not there or its spaces are no boxes."""
    try:
        import minari
    except ImportError as error:
        raise MissingExtra(EXTRA) from error
    try:
        dataset = minari.load_dataset(name)
    except (FileNotFoundError, ValueError, ImportError) as error:
        raise BadInput(
            f"Minari has no data set {name!r} here ({error}): `minari list local` names those that are."
        ) from error
    space: Any = dataset.action_space
    if not hasattr(space, "low") or not hasattr(dataset.observation_space, "low"):
        raise BadInput(f"minari:{name} has other spaces than boxes; policies here have numbers in and numbers out.")
    parts: dict[str, list[Any]] = {key: [] for key in (*NEEDED, "truncated")}
    for episode in dataset.iterate_episodes():
        seen = np.asarray(episode.observations).reshape(len(episode.observations), -1)
        parts["observations"].append(seen[:-1])
        parts["next_observations"].append(seen[1:])
        parts["actions"].append(np.asarray(episode.actions).reshape(len(episode.actions), -1))
        parts["rewards"].append(episode.rewards)
        parts["terminated"].append(episode.terminations)
        parts["truncated"].append(episode.truncations)
    arrays = {key: np.concatenate(each) for key, each in parts.items()}
    return of_arrays(arrays | {"action_low": space.low.reshape(-1), "action_high": space.high.reshape(-1)})


def _numbers(name: str, value: Any) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise BadInput(f"{name} are no table of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise BadInput(f"{name} hold {array.dtype}, no numbers.")
    if array.ndim == 0:
        raise BadInput(f"{name} are a single number: expected one a row.")
    return array


def _first(wrong: NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(wrong.reshape(len(wrong), -1).any(-1))[0])
