"""The work of `audit sampling`: a model is asked for values in every wording, and its probabilities are held to the target.

Killed at any moment, the same call goes on: sequences.jsonl has a row for each few sequences, calls.jsonl each answer of a
server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from equipoise.core.errors import BadInput
from equipoise.core.files import sha256_file
from equipoise.core.job import Request
from equipoise.core.progress import progress
from equipoise.core.rows import Rows
from equipoise.core.shares import Bounded
from equipoise.language.encode import encode_prompts
from equipoise.language.generate import check_room
from equipoise.language.model import LanguageModel, load
from equipoise.language.templates import DATE
from equipoise.uncertainty import sampling_fidelity as fidelity
from equipoise.uncertainty.sampling_result import BATCH, SINGLE, SamplingAudit, SamplingCondition, SamplingPlan
from equipoise.uncertainty.sampling_slots import Slots, SymbolPaths, sample, token_limit
from equipoise.uncertainty.sampling_task import SamplingTask

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = NDArray[np.float64]
SEQUENCES = "sequences.jsonl"
AT_ONCE = 8  # sequences that are written together and stored as one row
RESAMPLES = 2000


@dataclass(frozen=True)
class Observed:
    """A sequence as it is kept. probabilities: [T, k], among all tokens; draws: [T]; unread, text: as of `ValueSequence`."""

    probabilities: Array
    draws: NDArray[np.intp]
    unread: int
    text: str

    @classmethod
    def of(cls, row: Mapping[str, Any], symbols: int) -> Observed:
        """From a stored row."""
        values = np.array(row["probabilities"], dtype=float).reshape(-1, symbols)
        return cls(values, np.array(row["draws"], dtype=np.intp), int(row["unread"]), str(row["text"]))


@dataclass(frozen=True)
class Way:
    """One way of asking, and its seed's part."""

    number: int
    protocol: str
    wording: int
    task: SamplingTask
    request: str
    values: int
    sequences: int


@dataclass(frozen=True, eq=False)
class Auditing(Request):
    """A request to audit a sampler, read and found right."""

    model: str | Path | LanguageModel
    task: SamplingTask
    values: int
    sequences: int
    draws: int
    temperature: float
    slots: Slots
    seed: int
    batch_size: int
    loading: Mapping[str, Any]
    name: str
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        model: Any,
        target: Any,
        *,
        values: int,
        sequences: int,
        draws: int,
        temperature: float,
        slots: Slots,
        seed: int,
        batch_size: int,
        loading: dict[str, Any],
    ) -> Auditing:
        """Raises BadInput for a wrong request; loads no model."""
        date = loading["date"] = loading["date"] or DATE
        task = SamplingTask.read(target)
        if not sequences and not draws:
            raise BadInput("there is nothing to write: give sequences (lists), draws (single values), or both above 0.")
        given = isinstance(target, str | Path)
        return cls(
            model=model,
            task=task,
            values=values,
            sequences=sequences,
            draws=draws,
            temperature=temperature,
            slots=slots,
            seed=seed,
            batch_size=batch_size,
            loading=loading,
            name=str(target) if given else "a target given as an object",
            inputs={"target": sha256_file(Path(target))} if given else {},
            resolved={"date": date},
        )

    def plan(self) -> SamplingPlan:
        language_model, paths = self._opened()
        ways = list(self._ways())
        return SamplingPlan(
            source=language_model.source,
            target=dict(zip(self.task.symbols, self.task.target, strict=True)),
            requests=tuple(way.request for way in ways),
            conditions=len(ways),
            sequences=sum(way.sequences for way in ways),
            tokens=sum(way.sequences * token_limit(paths[way.task], way.task, way.values, self.slots) for way in ways),
            calls=0,
            paths={symbol: _told(path) for task, path in paths.items() for symbol, path in _spelled(task, path)},
        )

    def work(self, folder: Path | None) -> SamplingAudit:
        language_model, _ = self._opened()
        rows = Rows(None if folder is None else folder / SEQUENCES)
        observed = self._observed(language_model, rows)
        generator = np.random.default_rng(np.random.SeedSequence([self.seed, 1]))
        conditions = []
        for way, sequences in observed:
            conditions.append(summarise(sequences, way, generator))
        whole = {}
        for protocol in (BATCH, SINGLE):
            mine = [(way, each) for way, each in observed if way.protocol == protocol]
            if mine:
                together = [sequence for _, each in mine for sequence in each]
                first = mine[0][0]
                way = Way(0, protocol, 0, self.task, "", first.values, len(together))
                whole[protocol] = summarise(together, way, generator)
        return SamplingAudit(
            source=language_model.source,
            name=self.name,
            target=self.task.target,
            symbols=self.task.symbols,
            temperature=self.temperature,
            slots=self.slots,
            whole=whole,
            conditions=tuple(conditions),
            notes=tuple(rows.damaged),
        )

    def _ways(self) -> Iterator[Way]:
        number = 0
        for task in self.task.named():
            for protocol, requests, values, sequences in (
                (BATCH, task.requests(self.values), self.values, self.sequences),
                (SINGLE, task.single_requests(), 1, self.draws),
            ):
                for wording, request in enumerate(requests, start=1):
                    number += 1  # also of those that are left out, so that a way's draws do not depend on others
                    if sequences:
                        yield Way(number, protocol, wording, task, request, values, sequences)

    def _opened(self) -> tuple[LanguageModel, dict[SamplingTask, SymbolPaths]]:
        """The model, and the symbols' tokens; what leaves no room, or cannot be told apart, is refused here."""
        language_model = self.model if isinstance(self.model, LanguageModel) else load(self.model, **self.loading)
        paths = {task: SymbolPaths(language_model, task) for task in self.task.named()}
        for way in self._ways():
            (encoded,), _ = encode_prompts(language_model, [way.request])
            limit = token_limit(paths[way.task], way.task, way.values, self.slots)
            check_room(language_model, [encoded], limit, [f"of wording {way.wording} ({way.protocol})"])
        return language_model, paths

    def _observed(self, language_model: LanguageModel, rows: Rows) -> list[tuple[Way, list[Observed]]]:
        known = {(row["way"], row["first"]): row for row in rows}
        ways = list(self._ways())
        found: list[tuple[Way, list[Observed]]] = []
        with progress("Sampling", total=sum(way.sequences for way in ways), unit="sequences") as bar:
            for way in ways:
                sequences: list[Observed] = []
                for first in range(0, way.sequences, AT_ONCE):
                    count = min(AT_ONCE, way.sequences - first)
                    row = known.get((way.number, first))
                    if row is None or len(row["sequences"]) != count:
                        row = {
                            "way": way.number,
                            "first": first,
                            "sequences": self._written(language_model, way, first, count),
                        }
                        rows.add(row)
                    sequences += [Observed.of(each, len(way.task.symbols)) for each in row["sequences"]]
                    bar.advance(count)
                found.append((way, sequences))
        return found

    def _written(self, language_model: LanguageModel, way: Way, first: int, count: int) -> list[dict[str, Any]]:
        sequences = sample(
            language_model,
            way.request,
            way.task,
            values=way.values,
            sequences=count,
            seed=[self.seed, way.number],
            temperature=self.temperature,
            slots=self.slots,
            first=first,
            batch_size=self.batch_size,
        )
        return [
            {
                "protocol": way.protocol,
                "wording": way.wording,
                "symbols": list(way.task.symbols),
                "probabilities": each.probabilities.tolist(),
                "draws": each.draws.tolist(),
                "unread": each.unread,
                "text": each.text,
            }
            for each in sequences
        ]


def summarise(sequences: Sequence[Observed], way: Way, generator: np.random.Generator) -> SamplingCondition:
    """All that is said of the sequences of one way of asking, with intervals from resampled sequences."""
    target = np.array(way.task.target)
    k = len(target)
    slots = [each.probabilities for each in sequences]
    found = [fidelity.measures(each.probabilities, target, each.draws) for each in sequences]
    weights = _resampled(len(sequences), generator)
    values = np.array([astuple(each) for each in found])
    ends = zip(*(column.tolist() for column in _means(values, weights)), strict=True)
    measures = {name: Bounded(*each) for name, each in zip(fidelity.MEASURES, ends, strict=True)}
    mean = fidelity.averaged(found)
    every = np.concatenate(slots) if slots else np.zeros((0, k))
    drawn = np.concatenate([each.draws for each in sequences]) if sequences else np.zeros(0, int)
    counts = np.bincount(drawn[drawn >= 0], minlength=k)
    temperature = fidelity.best_temperature(every, target)
    warm: dict[str, float] = {}
    if not math.isnan(temperature):
        there = fidelity.averaged(
            [fidelity.measures(fidelity.tempered(p, temperature), target) for p in slots if len(p)]
        )
        warm = {"a_token": there.a_token, "bias": there.bias}
    lengths = [int((each.draws >= 0).sum()) for each in sequences]
    order = fidelity.serial([each.draws for each in sequences] if way.protocol == BATCH else [])
    firsts = np.array([p[0] for p in slots if len(p)]).reshape(-1, k)
    whole = [p for p in slots if len(p) == way.values]
    pooled = way.protocol == SINGLE
    if pooled:  # each value is a sequence of its own: its frequencies are those of all of them
        everything = fidelity.measures([], target, drawn).a_result
        n = int(counts.sum())
        redrawn = generator.multinomial(n, counts / n, size=RESAMPLES) / n if n else np.zeros((0, k))
        again = np.abs(redrawn - target).sum(axis=1) / 2
        measures["a_result"] = Bounded(everything, *_middle(again))
        lengths = [n]
    return SamplingCondition(
        protocol=way.protocol,
        wording=way.wording,
        symbols=way.task.symbols,
        sequences=len(sequences),
        asked=way.values * len(sequences),
        slots=len(every),
        parsed=float((drawn >= 0).mean()) if len(drawn) else math.nan,
        unread=sum(each.unread for each in sequences),
        measures=measures,
        kind=fidelity.kind(mean),
        independent=Bounded(*fidelity.independent_floor(target, lengths, generator)),
        own=Bounded(*fidelity.own_floor([every] if pooled else slots, target, generator, repeats=200)),
        temperature=temperature,
        warm=warm,
        slope=_slope(sequences, target, weights) if way.protocol == BATCH else Bounded(math.nan, math.nan, math.nan),
        autocorrelation=order.autocorrelation,
        runs=order.z,
        runs_p=order.p,
        place=fidelity.position_effect(whole) if way.protocol == BATCH and len(whole) > 1 else math.nan,
        first=fidelity.measures(firsts, target).a_mean,
        p=fidelity.multinomial_test(counts, target, generator) if pooled else math.nan,
        means=tuple(map(float, _shares(every).mean(axis=0))) if len(every) else (),
        counts=tuple(map(int, counts)),
    )


def _shares(raw: Array) -> Array:
    return raw / raw.sum(axis=1, keepdims=True)


def _resampled(sequences: int, generator: np.random.Generator) -> Array:
    """How often each sequence is drawn in each resample, [RESAMPLES, sequences]."""
    if not sequences:
        return np.zeros((RESAMPLES, 0))
    return generator.multinomial(sequences, np.full(sequences, 1 / sequences), size=RESAMPLES).astype(float)


def _means(values: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Mean over sequences of each column, and its bootstrap interval; nan values are left out."""
    there = ~np.isnan(values)
    filled = np.where(there, values, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = np.where(there.any(axis=0), filled.sum(axis=0) / there.sum(axis=0), np.nan)
        again = (weights @ filled) / (weights @ there.astype(float))
    ends = np.array([_middle(column) for column in again.T]).T
    return estimate, ends[0], ends[1]


def _slope(sequences: Sequence[Observed], target: Array, weights: Array) -> Bounded:
    parts = [fidelity.surplus(each.probabilities, target, each.draws) for each in sequences]
    again = [fidelity.history_slope([each]) for each in np.tensordot(weights[:400], parts, axes=1)] if parts else []
    return Bounded(fidelity.history_slope(parts), *_middle(again))


def _middle(values: Any) -> tuple[float, float]:
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    if not len(known):
        return math.nan, math.nan
    lower, upper = np.quantile(known, [0.025, 0.975])
    return float(lower), float(upper)


def _spelled(task: SamplingTask, paths: SymbolPaths) -> list[tuple[str, list[str]]]:
    return [
        (symbol, ["|".join(map(paths.piece, path)) for path, owner in sorted(paths.owner.items()) if owner == index])
        for index, symbol in enumerate(task.symbols)
    ]


def _told(paths: Sequence[str]) -> str:
    return " or ".join(map(repr, paths))
