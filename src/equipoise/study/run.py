"""What an arm sees while it runs: its settings and seed, and where its measurements, items, costs and state go."""

import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.core.cost import PEAKS, total
from equipoise.core.errors import BadInput
from equipoise.core.progress import share
from equipoise.study.store import ARTIFACTS, ITEMS, MEASUREMENTS, Attempt, canonical

if TYPE_CHECKING:
    import numpy as np
    import torch

    from equipoise.study.declare import Study

Report = Callable[[dict[str, Any]], None]
BOOKED_BY_THE_ENGINE = ("seconds", "peak_bytes", "peak_device_bytes")
BEAT_EVERY = 0.2  # seconds between two reports to the engine
ENGINE_PHASE = "run"  # where the engine books what no `with run.phase(...)` claims


class Work:
    """What a run and a preparation share: seed, generators, folder, costs, checkpoints."""

    def __init__(self, attempt: Attempt, report: Report = lambda event: None) -> None:
        import numpy as np

        task = attempt.task
        self.seed: int = task.seed
        self.options: dict[str, Any] = task.options
        # Equal for all arms of a seed, so that what they draw in the same order is the same.
        self.generator = np.random.default_rng(np.random.SeedSequence([task.seed, task.role == "preparation"]))
        self._attempt, self._report = attempt, report
        self._torch_generators: dict[str, torch.Generator] = {}
        self._phase = ENGINE_PHASE
        self._clock = time.monotonic()
        self._reported = -math.inf
        self._newest: dict[str, Any] = {}
        self._spent_before = total(attempt.ledger.spent)

    @property
    def folder(self) -> Path:
        """A folder for files that belong to the result; what is written here is kept."""
        return self._attempt.folder / ARTIFACTS

    def torch_generator(self, device: str = "cpu") -> "torch.Generator":
        """The torch generator on `device`, the same object at every call; checkpoints keep its state.

        As `generator`, it draws the same in all arms of a seed, and something else in their preparation.
        """
        from equipoise.core.streams import torch_stream

        name = str(device)
        if name not in self._torch_generators:
            words = (self.seed, 2, 1) if self._attempt.task.role == "preparation" else (self.seed, 2)
            self._torch_generators[name] = torch_stream(*words, device=name)
        return self._torch_generators[name]

    def spend(self, *, phase: str = "query", **amounts: float) -> None:
        """Book costs: `run.spend(calls=1, generated_tokens=31)`. Seconds and peak bytes are booked by the engine.

        Raises BadInput for an amount that is negative or not finite.
        """
        for name in BOOKED_BY_THE_ENGINE:
            if name in amounts:
                raise BadInput(
                    f"{name} is booked by the engine itself; `with run.phase('build'):` says for which phase."
                )
        self._attempt.begin()
        self._attempt.ledger.add(phase, {name: _number(amount) for name, amount in amounts.items()})
        self._tick()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The seconds inside the body are booked to the phase `name` (`build`, `query`)."""
        self._book_seconds()
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._book_seconds()
            self._phase = before

    def checkpoint(self, state: Any) -> None:
        """Store `state` (nested dicts and lists of JSON values, arrays, tensors); a killed run goes on from here.

        Everything measured and booked so far, and the state of the generators, belong to it.
        """
        self._book_seconds()
        generators = {device: generator.get_state() for device, generator in self._torch_generators.items()}
        content = {"state": state, "generator": self.generator.bit_generator.state, "torch_generators": generators}
        self._attempt.checkpoint(content)
        self._tick()

    def resume(self) -> Any | None:
        """The state of the last checkpoint, or None when the run starts from nothing. Call it first."""
        stored = self._attempt.resume()
        if stored is None:
            return None
        self.generator.bit_generator.state = stored["generator"]
        for device, state in stored["torch_generators"].items():
            self.torch_generator(device).set_state(state)
        self._resumed()
        return stored["state"]

    def log(self, message: str) -> None:
        """One line into the run's log.txt."""
        print(message, flush=True)
        self.beat()

    def beat(self) -> None:
        """A sign of life. A run without one for long is ended; measurements, costs and progress bars give it, too."""
        self._tick()

    def close(self) -> None:
        """Book the last seconds and the peak memory; called by the engine when the run ends, well or not."""
        self._book_seconds()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        amounts: dict[str, float] = {"peak_bytes": peak}
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            amounts["peak_device_bytes"] = torch.cuda.max_memory_allocated()
        self._attempt.ledger.add(ENGINE_PHASE, amounts)
        self._reported = -math.inf
        self._tick()

    def _resumed(self) -> None:
        """Hook for what must be rebuilt from the stored records."""

    def _book_seconds(self) -> None:
        now = time.monotonic()
        self._attempt.ledger.add(self._phase, {"seconds": now - self._clock})
        self._clock = now

    def _tick(self) -> None:
        """A sign of life to the engine with the newest outcome and the costs of this attempt, a few times a second."""
        now = time.monotonic()
        if now - self._clock >= 1.0:
            self._book_seconds()
            self._attempt.save_cost(every=1.0)
        if now - self._reported >= BEAT_EVERY:
            self._reported = now
            spent = total(self._attempt.ledger.spent)
            new = {
                name: amount - self._spent_before.get(name, 0) for name, amount in spent.items() if name not in PEAKS
            }
            self._report({"event": "beat", "spent": new, "share": share(), **self._newest})


class Preparation(Work):
    """Work shared by all arms of a seed; what it leaves in `folder` is `run.prepared` of each of them."""


class Run(Work):
    """One arm with one seed."""

    def __init__(
        self, study: "Study", attempt: Attempt, prepared: Path | None, report: Report = lambda event: None
    ) -> None:
        super().__init__(attempt, report)
        task = attempt.task
        self.arm: str = task.arm
        self.point: int = task.point
        self.role: str = task.role
        self.settings: dict[str, Any] = study.arm(task.arm).points()[task.point]
        self._study, self._prepared = study, prepared
        self._measured: set[tuple[str, str, str]] = set()
        self._itemised: set[tuple[str, str, str]] = set()

    @property
    def prepared(self) -> Path:
        """The folder that this seed's preparation filled. Raises BadInput when the study has no preparation."""
        if self._prepared is None:
            raise BadInput("run.prepared: this study has no preparation; give it one with Study(prepare=...).")
        return self._prepared

    def measure(
        self,
        outcome: str,
        value: float,
        *,
        of: float | None = None,
        missing: int = 0,
        at: Mapping[str, Any] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> None:
        """Store one measurement; with `of`, `value` is the numerator of a proportion (nan: one that is undefined).

        `missing`: how many answers were asked for and did not come. `at`: the place on the path ({"step": 40});
        `where`: the condition ({"split": "test"}); 40 and 40.0 are one. nan means undefined. Raises BadInput for an
        unknown outcome, a numerator that is no whole number from 0 to `of`, or a place that was measured before.
        """
        key = self._key(outcome, at, where)
        if key in self._measured:
            hint = " (run.items has derived it: measure before it)" if key in self._itemised else ""
            raise BadInput(f"{outcome} was measured at {key[1]} where {key[2]} before{hint}.")
        self._store(key, outcome, _number(value), None if of is None else _number(of), int(missing), at, where)

    def items(
        self,
        outcome: str,
        ids: Sequence[str],
        scores: "Sequence[float] | np.ndarray | torch.Tensor",
        *,
        at: Mapping[str, Any] | None = None,
        where: Mapping[str, Any] | None = None,
        clusters: Sequence[str] | None = None,
    ) -> None:
        """Store one score per item (nan: missing), what intervals are made from; `clusters` says which belong together.

        The outcome itself is derived unless it was measured for the same place before: the mean of the scores that are
        there, as a proportion when all are 0 or 1. Raises BadInput when lengths differ or an id comes twice.
        """
        key = self._key(outcome, at, where)
        names = [_text(str(each)) for each in ids]
        tolist = getattr(scores, "tolist", None)  # arrays and tensors: one transfer from a device
        listed: Any = scores if tolist is None else tolist()
        values = [_number(score) for score in listed]
        groups = [""] * len(names) if clusters is None else [_text(str(each)) for each in clusters]
        if not len(names) == len(values) == len(groups):
            raise BadInput(
                f"{outcome}: {len(names)} ids, {len(values)} scores and {len(groups)} clusters; one per item."
            )
        if len(set(names)) != len(names):
            twice = next(name for index, name in enumerate(names) if name in names[:index])
            raise BadInput(f"{outcome}: the item {twice!r} comes twice; ids must differ.")
        if any(math.isinf(value) for value in values):
            raise BadInput(
                f"{outcome}: item {names[[math.isinf(v) for v in values].index(True)]!r} has an infinite score."
            )
        if key in self._itemised:
            raise BadInput(f"{outcome}: items at {key[1]} where {key[2]} were stored before.")
        self._itemised.add(key)
        record = {
            "outcome": outcome,
            "at": _plain(at or {}),
            "where": _plain(where or {}),
            "items": names,
            "clusters": groups,
            "scores": [None if math.isnan(value) else value for value in values],
        }
        self._attempt.append(ITEMS, record)
        if key not in self._measured:
            answered = [value for value in values if not math.isnan(value)]
            missing = len(values) - len(answered)
            if answered and all(value in (0.0, 1.0) for value in answered):
                self._store(key, outcome, math.fsum(answered), float(len(answered)), missing, at, where)
            else:
                mean = math.fsum(answered) / len(answered) if answered else math.nan
                self._store(key, outcome, mean, None, missing, at, where)

    def artifact(self, name: str, path: Path | str) -> Path:
        """Keep a file or folder with the run, under `name`; returns where it is until the run is complete."""
        source, target = Path(path), self.folder / name
        if not source.exists():
            raise BadInput(f"The artifact {name!r} is to be {source}, which is not there.")
        if Path(os.path.normpath(name)).is_absolute() or ".." in Path(name).parts:
            raise BadInput(f"An artifact's name is a relative path without '..', not {name!r}.")
        self._attempt.begin()
        if source.resolve() != target.resolve():
            self._attempt.files.remove(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
        self._tick()
        return target

    def measured_anything(self) -> bool:
        """Whether any outcome was measured."""
        return bool(self._measured)

    def _resumed(self) -> None:
        def keys(name: str) -> set[tuple[str, str, str]]:
            records = self._attempt.records(name)
            return {
                (each["outcome"], canonical(_plain(each["at"])), canonical(_plain(each["where"]))) for each in records
            }

        self._measured, self._itemised = keys(MEASUREMENTS), keys(ITEMS)

    def _key(self, outcome: str, at: Mapping[str, Any] | None, where: Mapping[str, Any] | None) -> tuple[str, str, str]:
        self._study.outcome(outcome)
        try:
            return outcome, canonical(_plain(dict(at or {}))), canonical(_plain(dict(where or {})))
        except (TypeError, ValueError) as error:
            raise BadInput(f"{outcome}: at and where hold text and numbers ({error}).") from None

    def _store(
        self,
        key: tuple[str, str, str],
        outcome: str,
        value: float,
        of: float | None,
        missing: int,
        at: Mapping[str, Any] | None,
        where: Mapping[str, Any] | None,
    ) -> None:
        counted = math.isnan(value) or (0 <= value <= (of or 0) and value.is_integer())
        if of is not None and not (of >= 0 and of.is_integer() and counted):
            raise BadInput(f"{outcome}: {value:g} of {of:g} is no proportion; give the count and what it is out of.")
        if missing < 0:
            raise BadInput(f"{outcome}: missing is {missing}; it is a count.")
        record = {
            "outcome": outcome,
            "value": _stored(value),
            "of": None if of is None else _stored(of),
            "missing": missing,
            "at": _plain(at or {}),
            "where": _plain(where or {}),
        }
        self._attempt.append(MEASUREMENTS, record)
        self._measured.add(key)
        shown = value if of is None else value / of if of else math.nan
        self._newest = {"outcome": outcome, "value": _stored(shown), "place": key[1]}
        self._tick()


def _number(value: Any) -> float:
    """A Python float of a number of any library (numpy, torch); ints of reasonable size stay exact."""
    try:
        return float(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError):
        raise BadInput(f"Expected a number, got {value!r}.") from None


def _plain(value: Any) -> Any:
    """A place as it is stored, equal text for equal places: whole numbers have no fraction, text is valid UTF-8."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, str):
        return _text(value)
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _text(value: str) -> str:
    """Half of a surrogate pair, which a model can write and UTF-8 cannot hold, as its escape."""
    return value.encode("utf-8", "backslashreplace").decode()


def _stored(value: float) -> float | int | str | None:
    """As JSON: nan is null, an infinity is text, whole numbers have no fraction."""
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
