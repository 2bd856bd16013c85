"""What changed between two output folders of one study: how they were made, what was measured, what follows from it.

Each folder is read and judged by itself, with its own options; nothing of one enters the other. Runs belong together by
arm, settings, seed and role, whatever code made them; where settings differ, by their place in the grid.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.core.cost import PEAKS, total
from equipoise.core.errors import BadInput
from equipoise.core.numbers import number
from equipoise.study import summary_text as text
from equipoise.study.judging import Judgement, judge
from equipoise.study.results import Results, RunInfo, load
from equipoise.study.scores import coded
from equipoise.study.store import CONFIG, canonical, read_json, read_study

if TYPE_CHECKING:
    from equipoise.study.declare import Declaration, Study

MOST_NAMES = 5  # listed one by one in the text; the JSON has them all
VALUES = {"measurements": ("value", "numerator", "of", "missing"), "items": ("score",)}
PLACES = {"measurements": ("outcome", "where", "at"), "items": ("outcome", "where", "at", "item")}


@dataclass(frozen=True)
class Side:
    """One output folder, read and judged; `made`: how, as names and JSON values that can be compared."""

    folder: Path
    study: "Study"
    results: Results
    judgement: Judgement
    made: dict[str, Any]


@dataclass(frozen=True)
class Change:
    """Something that differs in how the two were made; None where one of them has it not."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Difference:
    """The values of one outcome at the places that both measured: how many differ, and by how much at most.

    `largest` is |b - a|, nan where no two defined values differ; `run_a`, `run_b`, `at`, `where`, `a` and `b` say where.
    `only_a`, `only_b`: places that one of them did not measure.
    """

    outcome: str
    places: int
    differing: int
    largest: float = math.nan
    run_a: str = ""
    run_b: str = ""
    at: str = ""
    where: str = ""
    a: float = math.nan
    b: float = math.nan
    only_a: int = 0
    only_b: int = 0


@dataclass(frozen=True)
class Compared:
    """The whole comparison. Runs by the names of their folders: pairs are (in a, in b)."""

    a: Side
    b: Side
    changes: tuple[Change, ...]
    identical: tuple[tuple[str, str], ...]
    differing: tuple[tuple[str, str], ...]
    states: tuple[tuple[str, str, str, str], ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    outcomes: tuple[Difference, ...]
    costs: dict[str, dict[str, tuple[float, float]]]


def compare(declaration: "Declaration", a: Path, b: Path) -> Compared:
    """Compare two output folders of this study. Raises BadInput when one of them holds another study."""
    sides = _read(declaration, a), _read(declaration, b)
    runs = sides[0].results.runs, sides[1].results.runs
    pairs = _pairs(*runs)
    both = [(i, j) for i, j in pairs if runs[0][i].state == runs[1][j].state == "complete"]
    measured, outcomes = _measurements(sides, both)
    unequal = measured | _unequal(_rows(sides, both, "items"), len(both))
    named = [(runs[0][i].key, runs[1][j].key) for i, j in both]
    return Compared(
        *sides,
        _changes(*sides),
        tuple(pair for pair, differs in zip(named, unequal, strict=True) if not differs),
        tuple(pair for pair, differs in zip(named, unequal, strict=True) if differs),
        tuple(
            (runs[0][i].key, runs[0][i].state, runs[1][j].key, runs[1][j].state)
            for i, j in pairs
            if (i, j) not in set(both)
        ),
        _unpaired(runs[0], {i for i, _ in pairs}),
        _unpaired(runs[1], {j for _, j in pairs}),
        outcomes,
        _costs(sides, both),
    )


def _read(declaration: "Declaration", folder: Path) -> Side:
    stored = read_study(folder)
    if stored.get("study") != declaration.name:
        raise BadInput(
            f"{folder} holds the study {stored.get('study')!r}, not {declaration.name!r}: two folders of one study are "
            "compared."
        )
    study = declaration.build(**stored["options"])
    results = load([folder], study)
    made = {f"option {name}": value for name, value in study.options.items()}
    made["declared seeds"] = study.seeds
    if results.runs:  # all of them are of one version, see `load`
        config = read_json(results.runs[0].folder / CONFIG)
        made |= {"code": config["code"][:12], "threads": config["threads"]}
    made |= dict(_flat(stored.get("environment", {})))
    for arm in study.arms:
        point = results.chosen.get(arm.name)
        settings = None if point is None or point >= len(arm.points()) else arm.points()[point]
        made[f"arm {arm.name}"] = "no setting chosen" if settings is None else settings
    return Side(folder, study, results, judge(study, results), made)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value


def _changes(a: Side, b: Side) -> tuple[Change, ...]:
    names = dict.fromkeys([*a.made, *b.made])
    changes = (Change(name, a.made.get(name), b.made.get(name)) for name in names)
    return tuple(each for each in changes if each.a != each.b)


# Which runs belong together


def _pairs(a: Sequence[RunInfo], b: Sequence[RunInfo]) -> list[tuple[int, int]]:
    """Indices of the runs that both have: of the same settings first, the others by their place in the grid."""
    pairs: list[tuple[int, int]] = []
    for of in (lambda run: canonical(run.settings), lambda run: run.point):
        taken = {i for i, _ in pairs}, {j for _, j in pairs}
        theirs = {(run.role, run.arm, run.seed, of(run)): j for j, run in enumerate(b) if j not in taken[1]}
        for i, run in enumerate(a):
            j = theirs.get((run.role, run.arm, run.seed, of(run)))
            if i not in taken[0] and j is not None:
                pairs.append((i, j))
    return sorted(pairs)


def _unpaired(runs: Sequence[RunInfo], paired: set[int]) -> tuple[str, ...]:
    return tuple(run.key for index, run in enumerate(runs) if index not in paired)


# What they measured


@dataclass(frozen=True)
class _Rows:
    """The rows of both sides, a place measured twice by its later; `place` is equal where pair, outcome and so on are."""

    place: tuple[NDArray[np.int64], NDArray[np.int64]]
    pair: tuple[NDArray[np.int64], NDArray[np.int64]]
    columns: tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]
    texts: dict[str, list[str]]

    def common(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Positions of the places that both have."""
        _, a, b = np.intersect1d(*self.place, assume_unique=True, return_indices=True)
        return a, b

    def alone(self, side: int) -> NDArray[np.intp]:
        """Positions of the places that the other has not."""
        return np.flatnonzero(~np.isin(self.place[side], self.place[1 - side], assume_unique=True))

    def same(self, a: NDArray[np.intp], b: NDArray[np.intp], names: Sequence[str]) -> NDArray[np.bool_]:
        """Whether all these columns agree, undefined with undefined."""
        equal = np.ones(a.size, bool)
        for name in names:
            x, y = self.columns[0][name][a], self.columns[1][name][b]
            equal &= (x == y) | (np.isnan(x) & np.isnan(y))
        return equal


def _rows(sides: Sequence[Side], pairs: Sequence[tuple[int, int]], name: Literal["measurements", "items"]) -> _Rows:
    import pyarrow as pa

    tables = []
    for side, each in enumerate(sides):
        table = getattr(each.results, name)
        number_of = np.full(len(each.results.runs), -1)
        number_of[[pair[side] for pair in pairs]] = np.arange(len(pairs))
        pair = number_of[table["run"].to_numpy()]
        table = table.append_column("pair", pa.array(pair)).append_column("side", pa.array(np.full(pair.size, side)))
        tables.append(table.filter(pa.array(pair >= 0)).select(["pair", "side", "order", *PLACES[name], *VALUES[name]]))
    table = pa.concat_tables(tables, promote_options="permissive")
    columns = {key: table[key].to_numpy() for key in ("pair", "side", "order", *VALUES[name])}
    place, texts = columns["pair"].astype(np.int64), {}
    for key in PLACES[name]:
        columns[key], texts[key] = coded(table[key])
        place = place * len(texts[key]) + columns[key]
    order = np.lexsort((columns["order"], place))
    per_side = []
    for side in (0, 1):
        own = order[columns["side"][order] == side]
        own = own[np.diff(place[own], append=-1) != 0]
        per_side.append((place[own], columns["pair"][own], {key: column[own] for key, column in columns.items()}))
    return _Rows(
        (per_side[0][0], per_side[1][0]), (per_side[0][1], per_side[1][1]), (per_side[0][2], per_side[1][2]), texts
    )


def _unequal(rows: _Rows, count: int) -> NDArray[np.bool_]:
    """For each pair of runs whether anything in these rows differs, or is in one of them only."""
    a, b = rows.common()
    names = [name for name in ("value", "numerator", "of", "missing", "score") if name in rows.columns[0]]
    off = [rows.pair[0][a[~rows.same(a, b, names)]], *(rows.pair[side][rows.alone(side)] for side in (0, 1))]
    return np.bincount(np.concatenate(off).astype(np.int64), minlength=count) > 0


def _measurements(
    sides: Sequence[Side], pairs: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.bool_], tuple[Difference, ...]]:
    """Whether each pair of runs differs, and the differences by outcome, in the order of the study."""
    rows = _rows(sides, pairs, "measurements")
    a, b = rows.common()
    alone = [rows.columns[side]["outcome"][rows.alone(side)] for side in (0, 1)]
    x, y = rows.columns[0]["value"][a], rows.columns[1]["value"][b]
    off = ~rows.same(a, b, ["value"])
    distance = np.where(off & np.isfinite(x) & np.isfinite(y), np.abs(y - x), np.nan)
    differences = []
    for outcome in dict.fromkeys(each.name for side in sides for each in side.study.outcomes):
        code = rows.texts["outcome"].index(outcome) if outcome in rows.texts["outcome"] else -1
        own = np.flatnonzero(rows.columns[0]["outcome"][a] == code)
        only_a, only_b = (int((each == code).sum()) for each in alone)
        known = own[np.isfinite(distance[own])]
        if known.size:
            worst = known[np.argmax(distance[known])]
            i, j = pairs[int(rows.pair[0][a[worst]])]
            at, where = (rows.texts[key][rows.columns[0][key][a[worst]]] for key in ("at", "where"))
            largest: dict[str, Any] = {
                "largest": float(distance[worst]),
                "run_a": sides[0].results.runs[i].key,
                "run_b": sides[1].results.runs[j].key,
                "at": at,
                "where": where,
                "a": float(x[worst]),
                "b": float(y[worst]),
            }
        else:
            largest = {}
        if own.size or only_a or only_b:
            counts = {"places": own.size, "differing": int(off[own].sum()), "only_a": only_a, "only_b": only_b}
            differences.append(Difference(outcome, **counts, **largest))
    return _unequal(rows, len(pairs)), tuple(differences)


def _costs(sides: Sequence[Side], pairs: Sequence[tuple[int, int]]) -> dict[str, dict[str, tuple[float, float]]]:
    """arm -> cost -> its amount in the test runs that both completed, (a, b): sums, of peaks the largest."""
    costs: dict[str, dict[str, tuple[float, float]]] = {}
    for pair in pairs:
        runs = [side.results.runs[index] for side, index in zip(sides, pair, strict=True)]
        if runs[0].role != "test":
            continue
        amounts = [total(run.cost.get("work", {})) for run in runs]
        known = costs.setdefault(runs[0].arm, {})
        for name in amounts[0].keys() & amounts[1].keys():
            new = amounts[0][name], amounts[1][name]
            old = known.get(name, (0.0, 0.0))
            join = max if name in PEAKS else lambda x, y: x + y
            known[name] = (join(old[0], new[0]), join(old[1], new[1]))
    return {arm: dict(sorted(amounts.items())) for arm, amounts in costs.items()}


# For people and for programs


def as_json(compared: Compared) -> dict[str, Any]:
    """Everything as JSON values; undefined is null."""
    claims = [
        {claim["text"]: claim for claim in text.published_claims(side.judgement)} for side in (compared.a, compared.b)
    ]
    return {
        "study": compared.a.study.name,
        "a": str(compared.a.folder),
        "b": str(compared.b.folder),
        "changes": [asdict(each) for each in compared.changes],
        "runs": {
            "identical": compared.identical,
            "differing": compared.differing,
            "states": compared.states,
            "only_a": compared.only_a,
            "only_b": compared.only_b,
        },
        "outcomes": [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(each).items()}
            for each in compared.outcomes
        ],
        "claims": [
            {"text": each, "a": claims[0].get(each), "b": claims[1].get(each)} for each in claims[0] | claims[1]
        ],
        "work": {
            arm: {name: {"a": a, "b": b, "ratio": b / a if a else None} for name, (a, b) in amounts.items()}
            for arm, amounts in compared.costs.items()
        },
        "notes": {"a": compared.a.results.notes, "b": compared.b.results.notes},
    }


def lines(compared: Compared) -> Iterator[str]:
    """The comparison for a terminal."""
    yield f"A {compared.a.folder}"
    yield f"B {compared.b.folder}"
    yield "\nHow they were made"
    width = max((len(each.name) for each in compared.changes), default=0)
    for each in compared.changes:
        yield f"  {each.name:<{width}}  A {_shown(each.a)}  B {_shown(each.b)}"
    if not compared.changes:
        yield "  the same options, code, threads, versions and settings"
    yield "\nRuns"
    yield from _run_lines(compared)
    yield "\nLargest differences between runs in both"
    width = max((len(each.outcome) for each in compared.outcomes), default=0)
    for each in compared.outcomes:
        yield f"  {each.outcome:<{width}}  {_difference(each)}"
    yield "\nVerdicts"
    verdicts = [{each.claim.text: each for each in side.judgement.verdicts} for side in (compared.a, compared.b)]
    for claim in verdicts[0] | verdicts[1]:
        yield f"  {claim}"
        for side, claims in zip("AB", verdicts, strict=True):
            yield f"    {side} {_verdict(claims[claim])}" if claim in claims else f"    {side} has no such claim"
    if compared.costs:
        yield "\nWork of the test runs in both, B as a multiple of A"
        width = max(map(len, compared.costs))
        for arm, amounts in compared.costs.items():
            yield f"  {arm:<{width}}  " + ", ".join(f"{name} {_ratio(a, b)}" for name, (a, b) in amounts.items())


def _run_lines(compared: Compared) -> Iterator[str]:
    def some(names: Sequence[str]) -> str:
        return ", ".join(names[:MOST_NAMES]) + (
            f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        )

    yield f"  {len(compared.identical)} in both with identical measurements"
    if compared.differing:
        yield f"  {len(compared.differing)} in both whose measurements differ: {some([a for a, _ in compared.differing])}"
    for a, state_a, b, state_b in compared.states[:MOST_NAMES]:
        yield f"  {a} is {state_a} in A, {b} {state_b} in B"
    if len(compared.states) > MOST_NAMES:
        yield f"  and {len(compared.states) - MOST_NAMES} more that are not complete in both"
    for side, names in (("A", compared.only_a), ("B", compared.only_b)):
        if names:
            yield f"  {len(names)} only in {side}: {some(names)}"


def _difference(each: Difference) -> str:
    beside = [f"{count:,} only in {side}" for side, count in (("A", each.only_a), ("B", each.only_b)) if count]
    many = ", ".join([f"{each.differing:,} of {each.places:,} values differ", *beside])
    if math.isnan(each.largest):
        return many if each.differing or beside else f"none in {each.places:,} values"
    place = " ".join(part for part in (each.at, each.where) if part not in ("", "{}"))
    run = " ".join(part for part in (each.run_a, place) if part)
    return f"{number(each.largest)}: {number(each.a)} in A, {number(each.b)} in B ({run}); {many}"


def _verdict(verdict: Any) -> str:
    effects = [f"{e.label}: {text.effect_numbers(e, text.effect_test(e, verdict.claim))}" for e in verdict.effects]
    state = verdict.state if text.counted(verdict) else "exploratory"
    return f"{state}{' (preview)' if verdict.preview else ''}: {'; '.join(effects) or verdict.reason}"


def _ratio(a: float, b: float) -> str:
    return number(b / a) if a else "undefined"


def _shown(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
