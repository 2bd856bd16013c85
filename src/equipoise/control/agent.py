"""What all agents are: the calls of Stable-Baselines3, logs or an environment to learn from, files, a state to go on from.

An agent's own module gives its networks (`_made`), their optimizers (`_begin`), a step (`update`) and an action (`_action`).
Actions are scaled to [-1, 1] inside.
"""

import json
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, Field, FiniteFloat, ValidationError
from torch import Tensor, nn

from equipoise.control.transitions import Transitions, read
from equipoise.core.errors import BadInput, WorkFailed, WrongOption
from equipoise.core.files import produce_atomic
from equipoise.core.state import load_state, save_state
from equipoise.core.streams import torch_stream

ABOUT, STATE = "model.json", "state.safetensors"
LARGEST = 1 << 32  # bytes of a stored model


class Batch(NamedTuple):
    """s, s': [B, ds]; a: [B, da] in [-1, 1]; r: [B]; going: 1 where not terminated, [B]."""

    s: Tensor
    a: Tensor
    r: Tensor
    s2: Tensor
    going: Tensor


class About(BaseModel, frozen=True, extra="forbid", strict=True):
    """model.json of a stored agent. kind: its class; simulator: whether its nominal model was one, which no file holds."""

    format: Literal[1] = 1
    kind: str = Field(alias="class")
    settings: dict[str, Any]
    observations: int = Field(ge=1)
    actions: int = Field(ge=1)
    steps: int = Field(ge=0)
    action_low: Annotated[list[FiniteFloat], Field(min_length=1)]
    action_high: Annotated[list[FiniteFloat], Field(min_length=1)]
    simulator: bool = False


class Agent:
    """See the module. env_or_data: what `transitions.read` takes, or an environment.

    An environment has reset(seed=), step(action), action_space and observation_space with low, high, shape, as Gymnasium's.
    """

    Settings: ClassVar[Any]
    name: ClassVar[str]
    _optimizer: torch.optim.Optimizer

    def __init__(self, env_or_data: Any = None, **settings: Any) -> None:
        """Raises BadInput for a setting or data that are none."""
        try:
            self.settings: Any = self.Settings(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            named = str(first["loc"][0]) if first["loc"] else "settings"
            raise WrongOption(named, f"is {first['input']!r}: {first['msg'].removeprefix('Input ')}.") from error
        self.steps = 0
        self.losses: dict[str, float] = {}
        self.env: Any = None
        self._shape: tuple[int, int] = (0, 0)
        self._episode: dict[str, Any] = {}
        if env_or_data is not None:
            self._attach(env_or_data)

    # --- the calls of Stable-Baselines3 -------------------------------------------------------------------------------

    def learn(self, total_timesteps: int, callback: "Callable[[Agent], bool | None] | None" = None) -> "Agent":
        """Take so many steps more: of learning on logs, or in the environment, learning once a step. Returns itself.

        callback: called after each step with the agent; False ends the learning. Raises WorkFailed for a loss that is none.
        """
        if total_timesteps < 0:
            raise BadInput(f"total_timesteps is {total_timesteps}; expected 0 or more.")
        self._check_logs()
        for _ in range(total_timesteps):
            if self.env is not None:
                self._act()
            if self.env is None or self._buffer.size >= max(2, self.settings.learning_starts):
                self._learn_once()
            self.steps += 1
            if callback is not None and callback(self) is False:
                break
        return self

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Actions [da] or [B, da] in the environment's units for observations [ds] or [B, ds], and the state as it came.

        deterministic: the squashed mean, else a draw. Raises BadInput for observations of another width or that are nan.
        """
        seen = np.array(observation, np.float32)
        if seen.ndim not in (1, 2) or seen.shape[-1] != self._shape[0]:
            raise BadInput(f"an observation has shape {seen.shape}; this agent was made for [{self._shape[0]}].")
        if not np.isfinite(seen).all():
            raise BadInput("an observation is nan or infinite.")
        with torch.no_grad():
            action = self._unscaled(self._action(torch.from_numpy(np.atleast_2d(seen)), deterministic).numpy())
        return (action[0] if seen.ndim == 1 else action), state

    def save(self, path: str | Path) -> None:
        """Write a zip with model.json and state.safetensors, atomically; .zip is added where there is no ending."""
        self._check_built()
        about = self._about().model_dump(mode="json", by_alias=True)
        with tempfile.TemporaryDirectory() as made:
            save_state(Path(made) / STATE, self.state())
            content = (Path(made) / STATE).read_bytes()

        def write(target: Path) -> None:
            with zipfile.ZipFile(target, "w") as archive:
                # A fixed date: the same model is the same bytes.
                archive.writestr(zipfile.ZipInfo(ABOUT), json.dumps(about, indent=1))
                archive.writestr(zipfile.ZipInfo(STATE), content)

        produce_atomic(zip_path(path), write)

    @classmethod
    def load(cls, path: str | Path, env_or_data: Any = None) -> "Agent":
        """Read what `save` wrote; on the same data it learns on to the bytes that it would have come to
        at once; in an environment it begins a new episode.

        Raises BadInput for a file of another class and for data of other spaces, WorkFailed for a damaged one.
        """
        return cls._loaded(zip_path(path), env_or_data, lambda about: {})

    @classmethod
    def _loaded(cls, path: Path, env_or_data: Any, more: Callable[[About], dict[str, Any]]) -> Any:
        if not path.is_file():
            raise BadInput(f"{path} is no file; expected a model that {cls.__name__}.save wrote.")
        about, state = read_model(path)
        if about.kind != cls.__name__:
            raise BadInput(f"{path} holds a {about.kind}: load it with {about.kind}.load.")
        made = cls(**more(about), **about.settings)
        made._check_stored(path, about, state)
        made._build(about.observations, np.array(about.action_low), np.array(about.action_high))
        if env_or_data is not None:
            made._attach(env_or_data)
        try:
            made.restore(state)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WorkFailed(f"{path} holds the state of another agent: {error}") from error
        if not all(bool(each.isfinite().all()) for net in made._networks().values() for each in net.parameters()):
            raise WorkFailed(f"{path} holds weights that are no numbers: train it again.")
        return made

    def _check_stored(self, path: Path, about: About, state: Any) -> None:
        """Raises WorkFailed where networks are other ones than model.json says, before any of that size is made."""
        self._shape = (about.observations, about.actions)
        with torch.device("meta"):
            wanted = _shapes({name: each.state_dict() for name, each in self._made().items()})
        self._shape = (0, 0)
        try:
            found = _shapes(state["networks"])
        except (KeyError, TypeError, AttributeError) as error:
            raise WorkFailed(f"{path} holds the state of no agent ({error!r}).") from error
        low, high = about.action_low, about.action_high
        box = len(low) == len(high) == about.actions and all(one < other for one, other in zip(low, high, strict=True))
        if not box or found != wanted:
            raise WorkFailed(f"{path} holds other networks than its {ABOUT} says.")

    def check_spaces(self, environment: Any) -> None:
        """Raises BadInput where an environment has other spaces than what this agent was made for."""
        check_boxes(environment)
        box = environment.action_space
        self._build_or_compare(int(environment.observation_space.shape[0]), np.asarray(box.low), np.asarray(box.high))

    # --- an agent's own ------------------------------------------------------------------------------------------------

    def _made(self) -> dict[str, nn.Module]:
        """Its networks by name, from the seed."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Optimizers and what else goes with new networks."""
        raise NotImplementedError

    def _action(self, observations: Tensor, deterministic: bool) -> Tensor:
        """Actions [B, da] in [-1, 1] for observations [B, ds]."""
        raise NotImplementedError

    def update(self, batch: Batch) -> dict[str, float]:
        """One step on a batch; the losses by name. Raises WorkFailed where one is no number."""
        raise NotImplementedError

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that learning goes on from, for `core.state.save_state`; logs are not in it, an environment's buffer is."""
        found: dict[str, Any] = {
            "steps": self.steps,
            "networks": {name: each.state_dict() for name, each in self._networks().items()},
            "optimizers": {name: each.state_dict() for name, each in self._optimizers().items()},
            "generators": {name: each.get_state() for name, each in self._generators().items()},
            "losses": self.losses,
        }
        if self.env is not None:
            found["buffer"] = self._buffer.state()
        return found

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave. An environment begins a new episode."""
        self.steps, self.losses = int(state["steps"]), dict(state.get("losses", {}))
        for name, each in self._networks().items():
            each.load_state_dict(state["networks"][name])
        if hasattr(self, "_buffer"):  # who only acts needs none
            for name, each in self._optimizers().items():
                each.load_state_dict(state["optimizers"][name])
        for name, each in self._generators().items():
            each.set_state(state["generators"][name])
        if self.env is not None and "buffer" in state:
            self._buffer.restore(state["buffer"])

    def _networks(self) -> dict[str, nn.Module]:
        return {name: getattr(self, name) for name in self._names}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"agent": self._optimizer}

    def _generators(self) -> dict[str, torch.Generator]:
        return {"batches": self._batches, "acting": self._acting}

    def _about(self) -> About:
        low, high = (each.tolist() for each in (self.low, self.high))
        settings = self.settings.model_dump(mode="json")
        named = {"class": type(self).__name__, "settings": settings, "observations": self._shape[0]}
        return About(**named, actions=self._shape[1], steps=self.steps, action_low=low, action_high=high)

    def _check_built(self) -> None:
        if self._shape == (0, 0):
            raise BadInput(f"this {type(self).__name__} has no networks yet: give it logs or an environment.")

    def _check_logs(self) -> None:
        if not hasattr(self, "_buffer"):
            raise BadInput(
                f"this agent has nothing to learn from: {type(self).__name__}.load(path, env_or_data) attaches it."
            )

    # --- what it learns from ------------------------------------------------------------------------------------------

    def _attach(self, source: Any) -> None:
        if hasattr(source, "reset") and hasattr(source, "step"):
            seen, box = source.observation_space, source.action_space
            check_boxes(source)
            if max(2, self.settings.learning_starts) > self.settings.buffer_size:
                raise BadInput(
                    f"learning_starts is {self.settings.learning_starts}, and buffer_size keeps only "
                    f"{self.settings.buffer_size} transitions: it would never learn. Lower the one or raise the other."
                )
            self._build_or_compare(int(seen.shape[0]), np.asarray(box.low), np.asarray(box.high))
            self.env = source
            self._buffer = Buffer(self.settings.buffer_size, *self._shape)
            return
        data = read(source)
        self._build_or_compare(data.observations.shape[1], data.action_low, data.action_high)
        self._buffer = Buffer.of(data, self._scaled(data.actions))

    def _build_or_compare(self, observations: int, low: np.ndarray, high: np.ndarray) -> None:
        if self._shape == (0, 0):
            self._build(observations, low, high)
            return
        same = self._shape == (observations, len(low)) and np.allclose(self.low, low) and np.allclose(self.high, high)
        if not same:
            raise BadInput(
                f"the agent has {self._shape[0]} observations and actions in {self.low.tolist()} to "
                f"{self.high.tolist()}; what it is given has {observations} and {np.asarray(low).tolist()} to "
                f"{np.asarray(high).tolist()}."
            )

    def _build(self, observations: int, low: np.ndarray, high: np.ndarray) -> None:
        self._shape = (observations, len(low))
        self.low, self.high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        self._batches, self._acting = torch_stream(self.settings.seed, 1), torch_stream(self.settings.seed, 2)
        made = self._made()
        self._names = tuple(made)
        for name, network in made.items():
            setattr(self, name, network)
        self._begin()

    def _scaled(self, actions: np.ndarray) -> np.ndarray:
        return 2 * (actions - self.low) / (self.high - self.low) - 1

    def _unscaled(self, actions: np.ndarray) -> np.ndarray:
        return np.clip(self.low + (actions + 1) / 2 * (self.high - self.low), self.low, self.high)

    def _act(self) -> None:
        """One step in the environment, at random before learning starts."""
        if "observation" not in self._episode:
            first, _ = self.env.reset(seed=self.settings.seed + self.steps)
            self._episode["observation"] = finite(np.asarray(first, np.float32))
        seen = self._episode["observation"]
        if self._buffer.size < self.settings.learning_starts:
            drawn = torch.rand(self._shape[1], generator=self._acting).numpy()
            action = self._unscaled(2 * drawn - 1)
        else:
            action = self.predict(seen)[0]
        after, reward, terminated, truncated, _ = self.env.step(action)
        after, reward = finite(np.asarray(after, np.float32)), float(finite(reward))
        self._buffer.add(seen, self._scaled(action), reward, after, bool(terminated))
        if terminated or truncated:
            self._episode.clear()
        else:
            self._episode["observation"] = after

    def _learn_once(self) -> None:
        self.losses = self.update(self._buffer.draw(self.settings.batch_size, self._batches))

    def _check_loss(self, loss: Tensor) -> None:
        if not bool(loss.isfinite()):
            raise WorkFailed(
                f"the losses are no numbers any more at step {self.steps}: the values diverge. Lower learning_rate, scale "
                "the rewards, or give logs that cover more, or a behavior_weight."
            )


class Buffer:
    """Transitions as tensors, of which batches are drawn; a ring where it is full."""

    def __init__(self, capacity: int, observations: int, actions: int) -> None:
        self.capacity, self.size, self.place = capacity, 0, 0
        self.s, self.s2 = torch.zeros(capacity, observations), torch.zeros(capacity, observations)
        self.a, self.r, self.going = torch.zeros(capacity, actions), torch.zeros(capacity), torch.zeros(capacity)

    @classmethod
    def of(cls, data: Transitions, actions: np.ndarray) -> "Buffer":
        made = cls(0, *(each.shape[1] for each in (data.observations, data.actions)))
        made.capacity = made.size = len(data)
        made.s, made.s2 = torch.from_numpy(data.observations), torch.from_numpy(data.next_observations)
        made.a, made.r = torch.from_numpy(actions.astype(np.float32)), torch.from_numpy(data.rewards)
        made.going = torch.from_numpy(~data.terminated).float()
        return made

    def add(self, s: np.ndarray, a: np.ndarray, r: float, s2: np.ndarray, terminated: bool) -> None:
        here = self.place
        self.s[here], self.a[here], self.s2[here] = torch.from_numpy(s), torch.from_numpy(a), torch.from_numpy(s2)
        self.r[here], self.going[here] = r, float(not terminated)
        self.place, self.size = (here + 1) % self.capacity, min(self.size + 1, self.capacity)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        rows = torch.randint(self.size, (count,), generator=generator)
        return Batch(*(each.index_select(0, rows) for each in (self.s, self.a, self.r, self.s2, self.going)))

    def all(self) -> Batch:
        return Batch(*(each[: self.size] for each in (self.s, self.a, self.r, self.s2, self.going)))

    def state(self) -> dict[str, Any]:
        return {"size": self.size, "place": self.place, **self.all()._asdict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.size, self.place = int(state["size"]), int(state["place"])
        for name in Batch._fields:
            getattr(self, name)[: self.size] = state[name]


def check_boxes(environment: Any) -> None:
    """Raises BadInput for an environment that has other spaces than flat boxes, that of the actions with bounds."""
    for space in (environment.observation_space, environment.action_space):
        if getattr(space, "low", None) is None or len(space.shape) != 1:
            raise BadInput(
                "the environment has other spaces than flat boxes: policies here have numbers in and numbers out."
            )
    box = environment.action_space
    if not (np.isfinite(box.low).all() and np.isfinite(box.high).all()):
        raise BadInput("the environment's actions have no bounds: rescale them into a box first.")


def adamw(parameters: Any, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW in one kernel a step."""
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights that are drawn inside follow from the seed; the global state is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _shapes(networks: Any) -> dict[str, dict[str, list[int]]]:
    return {name: {key: list(each.shape) for key, each in network.items()} for name, network in networks.items()}


def read_model(path: Path) -> tuple[About, Any]:
    """What `save` wrote: its description and its state. Raises WorkFailed for anything else."""
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as made:
            if (
                sorted(archive.namelist()) != [ABOUT, STATE]
                or sum(each.file_size for each in archive.infolist()) > LARGEST
            ):
                raise WorkFailed(f"{path} holds something else than {ABOUT} and {STATE}.")
            about = About.model_validate_json(archive.read(ABOUT))
            stored = Path(made) / STATE
            stored.write_bytes(archive.read(STATE))
            return about, load_state(stored)
    # An encrypted file is a RuntimeError, one in an unknown compression a NotImplementedError, which is one, too.
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise WorkFailed(f"{path} cannot be read as a model that `save` wrote: {error}") from error


def finite(value: Any) -> Any:
    """An observation or a reward. Raises WorkFailed where it is none."""
    if not np.isfinite(value).all():
        raise WorkFailed("the environment gave a nan or infinite observation or reward.")
    return value


def zip_path(path: str | Path) -> Path:
    """The path of a model, with .zip where it has no ending."""
    path = Path(path)
    return path if path.suffix else path.with_name(path.name + ".zip")
