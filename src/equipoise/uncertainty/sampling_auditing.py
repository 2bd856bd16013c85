"""The work of `audit sampling`: a model is asked for values in every wording, and its probabilities are held to the target.

Killed at any moment, the same call goes on: sequences.jsonl has a row for each few sequences, calls.jsonl each answer of a
server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from equipoise.chat.calls import Call, Reply
from equipoise.chat.client import answers
from equipoise.chat.roles import Players, Role, Roles
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import sha256_file
from equipoise.core.job import Request
from equipoise.core.progress import progress
from equipoise.core.rows import Rows
from equipoise.core.shares import Bounded
from equipoise.core.statistics import item_interval
from equipoise.data.records import Message
from equipoise.language.encode import encode_prompts
from equipoise.language.features import objects_digests
from equipoise.language.generate import check_room
from equipoise.language.kept import keep_to
from equipoise.language.model import LanguageModel, load
from equipoise.language.templates import DATE
from equipoise.uncertainty import sampling_fidelity as fidelity
from equipoise.uncertainty.sampling_bounds import SlotBounds, bounded_measures, slot_bounds
from equipoise.uncertainty.sampling_result import BATCH, SINGLE, SamplingAudit, SamplingCondition, SamplingPlan
from equipoise.uncertainty.sampling_slots import SymbolPaths, Values, sample, token_limit
from equipoise.uncertainty.sampling_task import SamplingTask

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = NDArray[np.float64]
SEQUENCES = "sequences.jsonl"
AT_ONCE = 8  # sequences that are written together and stored as one row
RESAMPLES = 2000
TOGETHER = ("a_mean", "a_result", "bias", "dispersion")  # of single values, each of which has one slot
FEWEST = 10  # sequences or single values, below which resampling them tells of no interval
LIMITS = {"entropy_ratio": (0.0, math.inf), "bias": (0.0, 2.0), "e_score": (-math.inf, 1.0)}  # of all others 0 and 1


@dataclass(frozen=True)
class Observed:
    """A sequence as it is kept. probabilities: [T, k], among all tokens; draws: [T]; unread, text: as of `ValueSequence`.

    told: what a server tells of each slot, in place of probabilities, which are then empty.
    """

    probabilities: Array
    draws: NDArray[np.intp]
    unread: int
    text: str
    told: tuple[SlotBounds, ...] | None = None

    def ends(self, target: Array) -> tuple[fidelity.Fidelity, fidelity.Fidelity]:
        """The least and the most that each measure can be."""
        if self.told is None:
            found = fidelity.measures(self.probabilities, target, self.draws)
            return found, found
        lower, upper, leak = (np.array([each[part] for each in self.told]) for part in range(3))
        return bounded_measures(lower, upper, leak, target, self.draws)

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

    model: str | Path | LanguageModel | None
    roles: Roles
    likeliest: int
    task: SamplingTask
    values: int
    sequences: int
    draws: int
    temperature: float
    slots: Any
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
        server: SimpleNamespace,
        likeliest: int,
        values: int,
        sequences: int,
        draws: int,
        temperature: float,
        slots: Any,
        seed: int,
        batch_size: int,
        loading: dict[str, Any],
    ) -> Auditing:
        """Raises BadInput for a wrong request; loads no model."""
        date = loading["date"] = loading["date"] or DATE
        task = SamplingTask.read(target)
        if not sequences and not draws:
            raise BadInput("there is nothing to write: give sequences (lists), draws (single values), or both above 0.")
        if (model is None) == (server.served is None):
            raise BadInput("a sampler runs here or is a server's: give model, or served, and not both.")
        if server.served is not None and (slots == "set" or not task.separator):
            raise BadInput("a server writes freely and separates its values: give slots read, and a separator.")
        given = isinstance(target, str | Path)
        return cls(
            model=model,
            roles=Roles.read(server, Role("served", optional=True)),
            likeliest=likeliest,
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
            inputs={
                "target": sha256_file(Path(target)) if given else sha256(repr(task).encode()).hexdigest(),
                **objects_digests({"model": model}),
            },
            resolved={"date": date},
        )

    def plan(self) -> SamplingPlan:
        ways = list(self._ways())
        if self.model is not None:
            language_model, paths = self._opened()
            source, calls = language_model.source, 0
            rooms = [token_limit(paths[way.task], way.task, way.values, self.slots) for way in ways]
        else:
            with self.roles.open(None) as players:
                source, calls, paths = players.chat("served").name, sum(way.sequences for way in ways), {}
            rooms = [_room(way) for way in ways]
        return SamplingPlan(
            source=source,
            target=dict(zip(self.task.symbols, self.task.target, strict=True)),
            requests=tuple(way.request for way in ways),
            conditions=len(ways),
            sequences=sum(way.sequences for way in ways),
            tokens=sum(way.sequences * room for way, room in zip(ways, rooms, strict=True)),
            calls=calls,
            paths={symbol: _told(path) for task, path in paths.items() for symbol, path in _spelled(task, path)},
        )

    def work(self, folder: Path | None) -> SamplingAudit:
        rows = Rows(None if folder is None or self.model is None else folder / SEQUENCES)
        if self.model is not None:
            language_model, _ = self._opened()
            source, observed = language_model.source, self._observed(language_model, rows)
        else:
            with self.roles.open(folder) as players:
                source, observed = players.chat("served").name, self._served(players)
        generator = np.random.default_rng(np.random.SeedSequence([self.seed, 1]))
        conditions = []
        for way, sequences in observed:
            conditions.append(summarise(sequences, way, generator, self.temperature))
        whole = {}
        for protocol in (BATCH, SINGLE):
            mine = [(way, each) for way, each in observed if way.protocol == protocol]
            if mine:
                together = [sequence for _, each in mine for sequence in each]
                first = mine[0][0]
                way = Way(0, protocol, 0, self.task, "", first.values, len(together))
                whole[protocol] = summarise(together, way, generator, self.temperature)
        return SamplingAudit(
            source=source,
            name=self.name,
            target=self.task.target,
            symbols=self.task.symbols,
            temperature=self.temperature,
            slots=self.slots,
            whole=whole,
            conditions=tuple(conditions),
            notes=tuple(rows.damaged),
        )

    def _served(self, players: Players) -> list[tuple[Way, list[Observed]]]:
        """The same from a server, each sequence one call."""
        asked = [(way, number) for way in self._ways() for number in range(way.sequences)]
        calls = [
            Call(
                (Message("user", way.request),),
                way.protocol,
                max_tokens=_room(way),
                temperature=self.temperature,
                sample=self.seed * 1_000_000 + number,
                likeliest=self.likeliest,
            )
            for way, number in asked
        ]
        replies = answers(players.chat("served"), calls, "Sampling")
        if not any(reply.tokens for reply in replies):
            raise WorkFailed(
                f"{players.chat('served').name} told no log-probabilities of tokens: this audit needs them."
            )
        found: dict[int, tuple[Way, list[Observed]]] = {way.number: (way, []) for way in self._ways()}
        for (way, _), reply in zip(asked, replies, strict=True):
            found[way.number][1].append(told_sequence(way, reply))
        return list(found.values())

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
        assert self.model is not None
        language_model = self.model if isinstance(self.model, LanguageModel) else load(self.model, **self.loading)
        paths = {task: SymbolPaths(language_model, task) for task in self.task.named()}
        for way in self._ways():
            (encoded,), _ = encode_prompts(language_model, [way.request])
            limit = token_limit(paths[way.task], way.task, way.values, self.slots)
            check_room(language_model, [encoded], limit, [f"of wording {way.wording} ({way.protocol})"])
        return language_model, paths

    def _observed(self, language_model: LanguageModel, rows: Rows) -> list[tuple[Way, list[Observed]]]:
        keep_to(rows, language_model)
        known = {(row["way"], row["first"]): row for row in rows if "way" in row}
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


def _room(way: Way) -> int:
    """Tokens that a server may write: its tokenizer is not known here, hence the length in characters."""
    return way.values * (max(map(len, way.task.symbols)) + 3) + 32


def told_sequence(way: Way, reply: Reply) -> Observed:
    """What a server's answer tells of its slots."""
    values = Values(way.task)
    for place, token in enumerate(reply.tokens):
        values.add(place, token.text)
    values.end()
    done = values.done[: way.values]
    draws, told = list[int](), list[SlotBounds]()
    for place, text in done:
        if place is not None:
            token = reply.tokens[place]
            draws.append(values.symbol(text))
            known = {token.text: token.log_prob, **dict(token.likeliest)}
            told.append(slot_bounds(known, way.task.symbols, token.text))
    empty = np.zeros((0, len(way.task.symbols)))
    return Observed(empty, np.array(draws, dtype=np.intp), len(done) - len(draws), reply.text, tuple(told))


def summarise(
    sequences: Sequence[Observed], way: Way, generator: np.random.Generator, temperature: float = 1.0
) -> SamplingCondition:
    """All that is said of the sequences, one at least, of one way of asking, with intervals over them.

    temperature: of the draws.
    """
    target = np.array(way.task.target)
    k = len(target)
    slots = [each.probabilities for each in sequences]
    found = [each.ends(target) for each in sequences]
    served = any(each.told is not None for each in sequences)
    measures = {name: _over_sequences(name, found) for name in fidelity.MEASURES}
    least, most = (fidelity.averaged(side) for side in zip(*found, strict=True))
    every = np.concatenate(slots)
    drawn = np.concatenate([each.draws for each in sequences])
    counts = np.bincount(drawn[drawn >= 0], minlength=k)
    pooled = way.protocol == SINGLE
    if pooled:  # each value is a sequence of its own: a mean over slots is one over all of them
        told = tuple(slot for each in sequences for slot in each.told or ()) if served else None
        ends = replace(sequences[0], probabilities=every, draws=drawn, told=told).ends(target)
        least, most = (
            replace(mean, **{name: getattr(end, name) for name in TOGETHER})
            for mean, end in zip((least, most), ends, strict=True)
        )
        measures |= _together(ends, every, counts, generator)
    kinds = {fidelity.kind(replace(one, e_score=other.e_score)) for one, other in ((least, most), (most, least))}
    kind = kinds.pop() if len(kinds) == 1 else "undefined"
    parsed = float((drawn >= 0).mean()) if len(drawn) else math.nan
    best = fidelity.best_temperature(every, target)
    warm: dict[str, float] = {}
    if fidelity.COLDEST < best < fidelity.HOTTEST:
        there = _measured([fidelity.tempered(each, best) for each in slots], target, pooled)
        warm = {"a_token": there.a_token, "bias": there.bias, "leak": _most_leak(every, best)}
    drawn_from = slots if temperature == 1 else [_at(each, temperature) for each in slots]
    drawing = replace(_measured(drawn_from, target, pooled), leak=1 - parsed)  # what is drawn tells what leaked there
    lengths = [int(counts.sum())] if pooled else [int((each.draws >= 0).sum()) for each in sequences]
    order = fidelity.serial([each.draws for each in sequences] if way.protocol == BATCH else [])
    firsts = np.array([p[0] for p in slots if len(p)]).reshape(-1, k)
    whole = [p for p in slots if len(p) == way.values]
    return SamplingCondition(
        protocol=way.protocol,
        wording=way.wording,
        symbols=way.task.symbols,
        sequences=len(sequences),
        asked=way.values * len(sequences),
        slots=sum(len(each.draws) for each in sequences),
        parsed=parsed,
        unread=sum(each.unread for each in sequences),
        measures=measures,
        kind=kind,
        independent=Bounded(*fidelity.independent_floor(target, lengths, generator)),
        own=Bounded(
            *fidelity.own_floor([np.concatenate(drawn_from)] if pooled else drawn_from, target, generator, repeats=200)
        ),
        temperature=best,
        warm=warm,
        drawing={name: getattr(drawing, name) for name in ("a_token", "step", "e_score", "leak", "bias")},
        drawing_kind=fidelity.kind(drawing),
        slope=Bounded(math.nan, math.nan, math.nan) if pooled or served else _slope(sequences, target, generator),
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


def _over_sequences(name: str, ends: Sequence[tuple[fidelity.Fidelity, fidelity.Fidelity]]) -> Bounded:
    """A measure's mean over sequences with Student's interval; of an open one, what it can be at least and at most."""
    least, most = (
        Bounded.of(item_interval([getattr(each, name) for each in side]), *LIMITS.get(name, (0.0, 1.0)))
        for side in zip(*ends, strict=True)
    )
    if not most.value - least.value >= 1e-6:
        return Bounded(least.value, least.lower, most.upper)
    lower, upper = (own if math.isnan(end) else end for own, end in
                    ((least.value, least.lower), (most.value, most.upper)))  # fmt: skip
    return Bounded(math.nan, lower, upper)


def _measured(slots: Sequence[Array], target: Array, pooled: bool) -> fidelity.Fidelity:
    """The measures of these slots: means over sequences, or of single values together what is said of them so."""
    mean = fidelity.averaged([fidelity.measures(each, target) for each in slots if len(each)])
    if not pooled:
        return mean
    whole = fidelity.measures(np.concatenate(slots), target)
    return replace(mean, **{name: getattr(whole, name) for name in TOGETHER})


def _at(probabilities: Array, temperature: float) -> Array:
    """What slots [T, k] draw from at a temperature, by symbols alone; at 0 the likeliest."""
    if temperature == 0:
        return np.eye(probabilities.shape[1])[probabilities.argmax(axis=1)]
    return fidelity.tempered(probabilities, temperature)


def _most_leak(probabilities: Array, temperature: float) -> float:
    """The most that can leak at a temperature: up to 1 as if all of it were one token; nan above, where all others count."""
    if temperature > 1:
        return math.nan
    rest = np.maximum(1 - probabilities.sum(axis=1, keepdims=True), 0)
    return float(fidelity.tempered(np.hstack([probabilities, rest]), temperature)[:, -1].mean())


def _together(
    ends: tuple[fidelity.Fidelity, fidelity.Fidelity],
    every: Array,
    counts: NDArray[np.intp],
    generator: np.random.Generator,
) -> dict[str, Bounded]:
    """What is said of all single values together, with intervals; of an open measure, what it can be at least and at most.

    A distance from the target is off by no more than the mean is (the triangle's inequality), which resampled values tell.
    Distances of resampled values would not do: they stay above 0 where the mean is right.
    """
    off, squared_off, drawn_off = math.nan, math.nan, math.nan
    shares, total = _shares(every), int(counts.sum())
    if len(shares) >= FEWEST:
        errors = _resampled(len(shares), generator) @ (shares - shares.mean(axis=0)) / len(shares)
        off = float(np.quantile(np.abs(errors).sum(axis=1) / 2, 0.95))
        squared_off = float(np.quantile(np.linalg.norm(errors, axis=1), 0.95))
    if total >= FEWEST:
        errors = generator.multinomial(total, counts / total, size=RESAMPLES) / total - counts / total
        drawn_off = float(np.quantile(np.abs(errors).sum(axis=1) / 2, 0.95))
    found = {}
    for name in TOGETHER:
        least, most = (getattr(each, name) for each in ends)
        root = math.sqrt(max(least, 0.0)) if name == "bias" else math.nan
        if most - least >= 1e-6:
            found[name] = Bounded(math.nan, least, most)
        elif name == "dispersion" and len(shares):
            found[name] = Bounded.of(item_interval(((shares - shares.mean(axis=0)) ** 2).sum(axis=1)), 0.0, 1.0)
        elif name == "bias":  # comparisons with nan are false: an undefined end stays undefined
            found[name] = Bounded(least, max(root - squared_off, 0.0) ** 2, min((root + squared_off) ** 2, 2.0))
        else:
            error = {"a_mean": off, "a_result": drawn_off}.get(name, math.nan)
            found[name] = Bounded(least, max(least - error, 0.0), min(least + error, 1.0))
    return found


def _resampled(units: int, generator: np.random.Generator, *, repeats: int = RESAMPLES) -> Array:
    """How often each unit is drawn in each resample, [repeats, units]; none where they are too few to tell."""
    return generator.multinomial(units, np.full(units, 1 / units), size=repeats if units >= FEWEST else 0).astype(float)


def _slope(sequences: Sequence[Observed], target: Array, generator: np.random.Generator) -> Bounded:
    parts = [fidelity.surplus(each.probabilities, target, each.draws) for each in sequences]
    weights = _resampled(len(parts), generator, repeats=400)
    again = [fidelity.history_slope([each]) for each in np.tensordot(weights, parts, axes=1)]
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
