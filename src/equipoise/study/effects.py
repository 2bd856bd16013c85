"""From a test to an interval: what two arms differ by for the same seed and item, and how well that is known."""

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.core import numbers, statistics
from equipoise.core.options import check_fields
from equipoise.core.statistics import Interval
from equipoise.study.claims import Between, Both, Cheaper, ClaimComparison, Matched, Rule, Statistic, Test
from equipoise.study.crossings import crossing_details, find_crossings, matched_conditions, refuse_missed_level
from equipoise.study.scores import Cells, Scores, Unjudgeable

if TYPE_CHECKING:
    from equipoise.study.declare import Outcome

ROUNDING = 1e-9  # of the compared values: differences up to this are those of rounding
Array = NDArray[np.float64]
Columns = Callable[[NDArray[np.intp] | None], Iterable[Sequence[Array] | Array]]


@dataclass(frozen=True)
class Effect:
    """One interval; positive favours the arm. `per_seed` are the seeds' own means, in the order of the seeds.

    Of outcomes compared by ratios, and of costs, estimate and margin are natural logarithms. A statistic without a
    rival is shown as it is, and `margin` is its threshold. `items` is 0 where only seeds vary. `test`: what it measures.
    """

    label: str
    estimate: float
    lower: float
    upper: float
    level: float
    df: float
    seeds: int
    items: int
    unit: str
    per_seed: tuple[float, ...]
    margin: float
    favours: Literal["arm", "rival", "neither"]
    test: Test | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Measured:
    """An effect and what deciding on it needs: `bounds` and `threshold` in the direction where more supports the claim.

    `undecided` is a sentence when no verdict can follow whatever the bounds.
    """

    effect: Effect
    interval: Interval
    rule: Rule
    threshold: float
    bounds: tuple[float, float]
    units: tuple[str, ...]
    runs: tuple[str, ...]
    text: str
    undecided: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


def measure(scores: Scores, test: Test, seeds: Sequence[int], level: float) -> Measured:
    """The effect of one test on these seeds. Raises Unjudgeable when there is none to show."""
    match test:
        case ClaimComparison():
            return _compare(scores, test, seeds, level)
        case Matched():
            return _match(scores, test, seeds, level)
        case Between():
            return _between(scores, test, seeds, level)
        case Cheaper():
            spent = _spent if test.outcome is None else _spent_until
            return _cheaper(scores, test, seeds, level, *spent(scores, test, seeds))
        case Statistic():
            return _statistic(scores, test, seeds, level)
        case Both():
            raise TypeError("both() is measured part by part")


# --- differences of means -------------------------------------------------------------------------------------------


def _compare(scores: Scores, test: ClaimComparison, seeds: Sequence[int], level: float) -> Measured:
    where = scores.where(test.outcome, test.where)
    runs = scores.runs((test.arm, test.rival), seeds)
    if scores.study.dial_is_cost and (test.at == "last" or set(test.at) == {scores.study.dial}):
        cells = _at_equal_cost(scores, test, runs, where)
    else:
        places = scores.places(runs, test.outcome, where, test.at)
        if test.at == "last":
            _note_unequal_ends(scores, test, places)
        cells = scores.cells(places)
    return _difference(scores, test, test.outcome, cells, runs, level, {})


def _at_equal_cost(scores: Scores, test: ClaimComparison, runs: Sequence[int], where: int) -> Cells:
    """Every run where it has spent the same: as stated, or the most that all of them spent; between its evaluations."""
    dial = scores.study.dial
    paths = [scores.dialled(run, test.outcome, where) for run in runs]
    spent = min(scores.x[path[-1]] for path in paths) if test.at == "last" else float(dict(test.at)[dial])
    for run, path in zip(runs, paths, strict=True):
        low, high = scores.x[path[[0, -1]]]
        if not low <= spent <= high:
            key = scores.results.runs[run].key
            raise Unjudgeable(
                f"{test.outcome} of run {key} was measured from {dial} {low:g} to {high:g}, not at {spent:g}"
            )
    if test.at == "last" and len({float(scores.x[path[-1]]) for path in paths}) > 1:
        scores.notes.append(
            f"{test.outcome}: {test.arm} and {test.rival} are compared at {dial} = {spent:g}, the most that every run "
            "spent, read between its evaluations."
        )
    return scores.between(paths, np.array([np.interp(spent, scores.x[path], np.arange(path.size)) for path in paths]))


def _note_unequal_ends(scores: Scores, test: ClaimComparison, places: Sequence[int]) -> None:
    ends = [np.unique(each).tolist() for each in np.split(scores.x[places], 2)]
    if ends[0] != ends[1] and not np.isnan(scores.x[places]).any():
        listed = "; ".join(
            f"{arm} {', '.join(f'{x:g}' for x in end)}" for arm, end in zip((test.arm, test.rival), ends, strict=True)
        )
        scores.notes.append(
            f"{test.outcome}: the paths end at different places ({scores.study.dial}: {listed}), so their ends are no "
            "comparison at equal budget."
        )


def _difference(
    scores: Scores,
    test: ClaimComparison | Matched,
    name: str,
    cells: Cells,
    runs: Sequence[int],
    level: float,
    details: dict[str, Any],
) -> Measured:
    """Arm minus rival, same seed, same item. cells: the arm's runs, then the rival's, in the same order of seeds."""
    outcome = scores.outcomes[name]
    units = _units(test.units, cells, name)
    _refuse_undefined(scores, cells, name, runs)
    values = _scaled(cells.matrix, outcome)
    one, other = np.split(values, 2)
    d = _sign(outcome) * (one - other)
    unpaired = int((np.isnan(one) != np.isnan(other)).sum())
    if unpaired:
        scores.notes.append(
            f"{name}: {unpaired} of {int((~np.isnan(cells.matrix)).sum())} scores of {test.arm} and {test.rival} have "
            "no partner (same seed, same item) in the other arm and are not in the difference."
        )
    if np.isnan(d).all(axis=1).any():
        raise Unjudgeable(f"{test.arm} and {test.rival} share no item of {name} in some seed: nothing can be paired")
    seen = ~np.isnan(d).all(axis=0)
    d, clusters = d[:, seen], None if cells.clusters is None else cells.clusters[seen]
    per_seed = np.nanmean(d, axis=1)
    undecided = _varies_though_deterministic(units, d)
    if "seed" not in units:
        d = d[:1]
    elif "item" not in units:
        d, clusters = per_seed[:, None], None
    interval = statistics.mean_interval(d, clusters, units=_countable(units, len(d)), level=level)
    if _exact_pairs(test, d, clusters, outcome, units):
        wins, losses = int((d == 1).sum()), int((d == -1).sum())
        interval = statistics.mcnemar_interval(wins, losses, d.size, level=level)
        details = {**details, "mcnemar_p": statistics.mcnemar(wins, losses)}
    if np.nanmax(d) - np.nanmin(d) <= _rounding(values, outcome):
        undecided = _saturated(name, float(np.nanmean(d)))
    effect = _effect(
        test,
        f"{name}: {test.arm} against {test.rival}",
        interval,
        per_seed,
        items=int(seen.sum()) if "item" in units else 0,
        unit=_unit(outcome),
        margin=test.margin,
    )
    bounds = (effect.lower, effect.upper)
    keys = scores.keys_of(runs)
    return Measured(effect, interval, test.rule, test.margin, bounds, units, keys, _text(effect), undecided, details)


def _between(scores: Scores, test: Between, seeds: Sequence[int], level: float) -> Measured:
    """One arm under two conditions: items that occur under both are paired, others count as drawn apart."""
    outcome, name = scores.outcomes[test.outcome], test.outcome
    runs = scores.runs((test.arm,), seeds)
    wheres = [scores.where(name, where) for where in (test.where_a, test.where_b)]
    cells = scores.cells([place for where in wheres for place in scores.places(runs, name, where, test.at)])
    units = _units(test.units, cells, name)
    _refuse_undefined(scores, cells, name, runs)
    values = _scaled(cells.matrix, outcome)
    one, other = np.split(_sign(outcome) * values, 2)
    per_seed = np.nanmean(one, axis=1) - np.nanmean(other, axis=1)
    undecided = _varies_though_deterministic(units, one) or _varies_though_deterministic(units, other)
    if "seed" not in units:
        one, other = one[:1], other[:1]
    clusters = np.zeros(1) if cells.clusters is None else cells.clusters
    countable = _countable(units, len(one))
    interval = statistics.two_sample_interval(one, other, clusters, clusters, units=countable, level=level)
    if math.sqrt(interval.seed_variance + interval.item_variance) <= _rounding(values, outcome):
        undecided = _saturated(name, interval.estimate)
    effect = _effect(
        test,
        f"{name} of {test.arm}: {json.dumps(dict(test.where_a))} against {json.dumps(dict(test.where_b))}",
        interval,
        per_seed,
        items=cells.matrix.shape[1] if "item" in units else 0,
        unit=_unit(outcome),
        margin=test.margin,
    )
    bounds = (effect.lower, effect.upper)
    keys = scores.keys_of(runs)
    return Measured(effect, interval, test.rule, test.margin, bounds, units, keys, _text(effect), undecided)


def _cheaper(
    scores: Scores,
    test: Cheaper,
    seeds: Sequence[int],
    level: float,
    spent: Sequence[float],
    details: dict[str, Any],
) -> Measured:
    """Log ratio of what rival and arm spent, per seed. Counts that never vary are exact, not saturated."""
    runs = scores.runs((test.arm, test.rival), seeds)
    arm, rival = np.split(np.array(spent, float), 2)
    ratios = np.log(rival / arm)
    interval = statistics.seed_interval(ratios, level=level)
    until = f" until {test.outcome} = {details['level']:.3g}" if test.outcome else ""
    effect = _effect(
        test,
        f"{test.cost}{until}: {test.arm} against {test.rival}",
        interval,
        ratios,
        items=0,
        unit="log ratio",
        margin=float(np.log(test.by)),  # as the ratios: math.log can differ in the last digit
    )
    with np.errstate(over="ignore"):  # of two runs the interval may reach beyond any number
        factor, lower, upper = map(numbers.number, np.exp([effect.estimate, effect.lower, effect.upper]).tolist())
    text = f"{factor} times less {test.cost}{until} [{lower} to {upper}] over {_counts(effect)}"
    bounds, keys = (effect.lower, effect.upper), scores.keys_of(runs)
    return Measured(effect, interval, "better", effect.margin, bounds, ("seed",), keys, text, details=details)


def _spent(scores: Scores, test: Cheaper, seeds: Sequence[int]) -> tuple[list[float], dict[str, Any]]:
    """What each run needed, the arm's first."""
    spent = []
    for run in (scores.results.runs[index] for index in scores.runs((test.arm, test.rival), seeds)):
        phases = run.cost.get("work", {})
        amounts = [
            costs[test.cost] for name, costs in phases.items() if test.cost in costs and test.phase in (None, name)
        ]
        if not sum(amounts) > 0:
            raise Unjudgeable(
                f"run {run.key} booked no {test.cost}" + (f" in phase {test.phase}" if test.phase else "")
            )
        spent.append(sum(amounts))
    return spent, {}


def _spent_until(scores: Scores, test: Cheaper, seeds: Sequence[int]) -> tuple[list[float], dict[str, Any]]:
    """What each run had spent where its outcome, on validation items, came to the level; the arm's first.

    Each run's path is that of its own evaluations: an arm that is evaluated more often crosses no earlier with a monotone
    fit, and thinning to the coarsest path makes a cheap arm look up to 20 % dearer (benchmarks/coverage.py).
    """
    runs = scores.runs((test.arm, test.rival), seeds)
    where = matched_conditions(scores, test)
    paths = [scores.spent_along(run, test.outcome or "", where, test.cost) for run in runs]
    crossings = find_crossings(scores, test, [places for places, _ in paths])
    spent = [float(statistics.read_at(amounts, p)) for (_, amounts), p in zip(paths, crossings.positions, strict=True)]
    details = crossing_details(scores, test, runs, crossings, spent, test.cost)
    refuse_missed_level(test, crossings, details)
    if not min(spent) > 0:
        raise Unjudgeable(f"{test.outcome} is at {crossings.level:.3g} before any {test.cost} is spent", details)
    return spent, details


def _sign(outcome: "Outcome") -> float:
    return 1.0 if outcome.better == "higher" else -1.0


def _unit(outcome: "Outcome") -> str:
    return f"log {outcome.unit}".strip() if outcome.log else outcome.unit


def _scaled(matrix: Array, outcome: "Outcome") -> Array:
    if not outcome.log:
        return matrix
    if (matrix <= 0).any():
        raise Unjudgeable(f"{outcome.name} is compared by ratios, and some of its values are not positive")
    return np.log(matrix)


def _units(units: tuple[str, ...], cells: Cells, name: str) -> tuple[str, ...]:
    """The units of the claim, seeds alone where no items are stored."""
    if cells.items is None and "seed" not in units:
        raise Unjudgeable(f"the claim is over items, and no items of {name} are stored")
    return tuple(unit for unit in ("seed", "item") if unit in units and (unit == "seed" or cells.items is not None))


def _countable(units: tuple[str, ...], seeds: int) -> Any:
    """Of one seed only its items can be shown (where seeds count too, no verdict follows: they are under three)."""
    return ("item",) if seeds == 1 and "item" in units else units


def _refuse_undefined(scores: Scores, cells: Cells, name: str, runs: Sequence[int]) -> None:
    arms = ", ".join(dict.fromkeys(scores.results.runs[run].arm for run in runs))
    present = int((~np.isnan(cells.matrix)).sum())
    if cells.missing:
        raise Unjudgeable(
            f"{cells.missing} values of {name} ({arms}) are missing or undefined, beside {present} that are there"
        )
    infinite = int(np.isinf(cells.matrix).sum())
    if infinite:
        raise Unjudgeable(
            f"{infinite} of {present} values of {name} ({arms}) are infinite, and have no mean or interval"
        )


def _varies_though_deterministic(units: tuple[str, ...], values: Array) -> str:
    if "seed" in units or np.array_equal(values, np.broadcast_to(values[0], values.shape), equal_nan=True):
        return ""
    return "the claim is over items only, as for a deterministic system, yet its seeds differ"


def _exact_pairs(
    test: ClaimComparison | Matched, d: Array, clusters: Any, outcome: "Outcome", units: tuple[str, ...]
) -> bool:
    """One run each, right or wrong answers, independent items and no margin: McNemar's test is exact."""
    independent = clusters is None or np.unique(clusters).size == d.size
    plain = isinstance(test, ClaimComparison) and test.rule == "better" and test.margin == 0 and not outcome.log
    return plain and units == ("item",) and independent and bool(np.isin(d, (-1.0, 0.0, 1.0)).all())


def _rounding(values: Array, outcome: "Outcome") -> float:
    """Up to here values that are compared differ by rounding: in their unit, of which a logarithm has none."""
    return ROUNDING * (1.0 if outcome.log else float(np.nanmax(np.abs(values))))


def _saturated(name: str, difference: float) -> str:
    return f"no variation at all (saturated): {name} differs by exactly {difference:.3g} throughout"


def _effect(
    test: Test,
    label: str,
    interval: Interval,
    per_seed: Array,
    *,
    items: int,
    unit: str,
    margin: float,
    bounds: tuple[float, float] | None = None,
) -> Effect:
    lower, upper = bounds or (interval.lower, interval.upper)
    return Effect(
        label=label,
        estimate=interval.estimate,
        lower=interval.lower,
        upper=interval.upper,
        level=interval.level,
        df=interval.df,
        seeds=per_seed.size,
        items=items,
        unit=unit,
        per_seed=tuple(per_seed.tolist()),
        margin=margin,
        favours="arm" if lower > 0 else "rival" if upper < 0 else "neither",
        test=test,
    )


def _text(effect: Effect) -> str:
    unit = f" {effect.unit}" if effect.unit else ""
    middle, between = numbers.interval(effect.estimate, effect.lower, effect.upper, signed=True)
    return f"{middle} [{between}]{unit} over {_counts(effect)}"


def _counts(effect: Effect) -> str:
    seeds = f"{effect.seeds} seed{'s' if effect.seeds != 1 else ''}"
    return f"{seeds} and {effect.items:,} items" if effect.items else seeds


# --- matched paths --------------------------------------------------------------------------------------------------


def _match(scores: Scores, test: Matched, seeds: Sequence[int], level: float) -> Measured:
    """Both arms where they cross one level of the matched outcome: found on validation, judged on test."""
    arms = (test.arm, test.rival)
    runs = scores.runs(arms, seeds)
    keys = scores.keys_of(runs)
    judged_where = scores.where(test.judge, test.where)
    kept, grids = _shared_paths(scores, test, runs, judged_where)
    crossings = find_crossings(scores, test, [matched for _, matched, _ in kept])
    crossed_at = [float(statistics.read_at(x, p)) for (x, _, _), p in zip(kept, crossings.positions, strict=True)]
    details = crossing_details(scores, test, runs, crossings, crossed_at, scores.study.dial)
    if not scores.study.dial_is_cost:
        details["places"] = {arm: grid.tolist() for arm, grid in zip(arms, grids, strict=True)}
    crossed = ~np.isnan(crossings.positions).reshape(2, -1).any(axis=0)
    rows = np.flatnonzero(np.tile(crossed, 2))
    if not rows.size:
        refuse_missed_level(test, crossings, details)

    positions, judged = crossings.positions[rows], [kept[i][2] for i in rows]
    corrections = statistics.chord_corrections(
        [crossings.fits[i] for i in rows], [scores.value[path] for path in judged], positions.tolist(), crossings.level
    )
    details["corrections"] = {keys[i]: each for i, each in zip(rows, corrections.tolist(), strict=True)}
    cells = scores.between(judged, positions)
    at_level = replace(cells, matrix=cells.matrix + corrections[:, None])
    for arm, own in zip(arms, np.split(np.arange(rows.size), 2), strict=True):
        place = (arm, test.judge, json.dumps({test.outcome: crossings.level}), scores.where_texts[judged_where])
        cells_of_arm = replace(at_level, matrix=at_level.matrix[own])
        scores.at_levels.setdefault(place, (cells_of_arm, tuple(keys[i] for i in rows[own])))
    # Only now: the seeds in which both arms came to the level are shown even where others leave no verdict.
    refuse_missed_level(test, crossings, details)
    measured = _difference(scores, test, test.judge, at_level, runs, level, details)
    _note_wide_gaps(scores, test, judged, positions, measured.effect)
    return measured


Path = tuple[Array, NDArray[np.int64], NDArray[np.int64]]


def _shared_paths(
    scores: Scores, test: Matched, runs: Sequence[int], judged_where: int
) -> tuple[list[Path], tuple[Array, Array]]:
    """Per run the dial and the places of the matched and the judged outcome, where the arms can be compared."""
    matched_where = matched_conditions(scores, test)
    paths: list[Path] = []
    for run in runs:
        own = [scores.path(run, *each) for each in ((test.outcome, matched_where), (test.judge, judged_where))]
        matched, judged = (path[~np.isnan(scores.x[path])] for path in own)
        x, in_matched, in_judged = np.intersect1d(scores.x[matched], scores.x[judged], return_indices=True)
        paths.append((x, matched[in_matched], judged[in_judged]))
    half = len(runs) // 2
    places = [np.concatenate([x for x, _, _ in own]) for own in (paths[:half], paths[half:])]
    # Runs seldom spend exactly the same, and a monotone fit does not favour the path that is evaluated more often.
    grids = (places[0], places[1]) if scores.study.dial_is_cost else statistics.shared_grid(*places)
    kept = []
    for number, path in enumerate(paths):
        keep = np.isin(path[0], grids[number // half])
        if keep.sum() < 2:
            raise Unjudgeable(
                f"{test.outcome} and {test.judge} were not measured at two or more places of {scores.study.dial} that "
                f"{test.arm} and {test.rival} share (run {scores.results.runs[runs[number]].key})"
            )
        kept.append((path[0][keep], path[1][keep], path[2][keep]))
    return kept, grids


def _note_wide_gaps(
    scores: Scores, test: Matched, judged: Sequence[NDArray[np.int64]], positions: Array, effect: Effect
) -> None:
    low = positions.astype(int)
    ends = [[path[min(int(k) + step, path.size - 1)] for path, k in zip(judged, low, strict=True)] for step in (0, 1)]
    before, behind = _scaled(scores.value[ends], scores.outcomes[test.judge])
    for arm, change in zip((test.arm, test.rival), (behind - before).reshape(2, -1).mean(axis=1), strict=True):
        if abs(change) > 2 * max(effect.upper - effect.estimate, effect.margin):
            scores.notes.append(
                f"{arm}: {test.judge} changes by {abs(change):.2g} between the evaluations on both sides of the matched "
                f"level of {test.outcome}, more than the interval is wide: evaluate more often there."
            )


# --- statistics that are no means -----------------------------------------------------------------------------------


def _statistic(scores: Scores, test: Statistic, seeds: Sequence[int], level: float) -> Measured:
    arms = (test.arm,) if test.rival is None else (test.arm, test.rival)
    runs = scores.runs(arms, seeds)
    columns, clusters, apart = (_item_columns if test.over == "items" else _path_columns)(scores, test, runs)
    units = tuple(u for u in ("seed", "item") if u in test.units and (u == "seed" or clusters is not None))
    if not units:
        raise Unjudgeable(f"the claim is over items, and the seeds share only some of {', '.join(test.outcomes)}")
    sign = 1.0 if test.better == "higher" else -1.0

    def values_of(drawn: NDArray[np.intp] | None) -> Array:
        return np.array([float(test.function(*each)) for each in columns(drawn)])

    def per_seed(values: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return values if test.rival is None else sign * (values[: len(seeds)] - values[len(seeds) :])

    try:
        values = values_of(None)
        own = per_seed(values)
        for number, lacking in (("undefined", np.isnan(own)), ("infinite", np.isinf(own))):
            if lacking.any():
                raise Unjudgeable(f"{test.label} is {number} in {lacking.sum()} of {own.size} seeds")
        undecided = "" if apart else _varies_though_deterministic(units, own[:, None])
        countable = _countable(units, len(seeds))
        if "item" in countable and clusters is not None:
            interval = statistics.pigeonhole_interval(
                lambda drawn: per_seed(values_of(drawn)),
                clusters,
                generator=np.random.default_rng(0),  # a verdict must not depend on who asks
                units=countable,
                level=level,
            )
        else:
            interval = statistics.seed_interval(own, level=level)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise Unjudgeable(f"{test.label} could not be computed: {error}") from error
    if math.sqrt(interval.seed_variance + interval.item_variance) <= ROUNDING * np.max(np.abs(values)):
        undecided = _saturated(test.label, interval.estimate)
    enough_seeds = "seed" in units and len(seeds) >= statistics.FEWEST_SEEDS
    if not enough_seeds and interval.clusters < statistics.FEWEST_CLUSTERS:
        undecided = undecided or (
            f"{test.label} is no mean: its interval needs {statistics.FEWEST_SEEDS} seeds or "
            f"{statistics.FEWEST_CLUSTERS} sources of items, and there are {len(seeds)} and {interval.clusters}"
        )
    bounds, threshold = (interval.lower, interval.upper), test.margin
    if test.rival is None:  # how far beyond the threshold, on the side that the claim names
        low, high = sorted(sign * (bound - test.margin) for bound in bounds)
        bounds, threshold = (low, high), 0.0
    effect = _effect(
        test,
        f"{test.label} of {', '.join(test.outcomes)}: {test.arm}" + (f" against {test.rival}" if test.rival else ""),
        interval,
        own,
        items=interval.items if "item" in units else 0,
        unit="",
        margin=test.margin,
        bounds=bounds,
    )
    keys = scores.keys_of(runs)
    return Measured(effect, interval, "better", threshold, bounds, units, keys, _text(effect), undecided)


def _item_columns(
    scores: Scores, test: Statistic, runs: Sequence[int]
) -> tuple[Columns, NDArray[np.int64] | None, bool]:
    """Per run one array per outcome, aligned by item; of drawn items, or (None) of all. The items' sources, if redrawn.

    Last whether each seed has items of its own, so that seeds must differ.

    The items are those that every run has in every outcome. Where the seeds share none, each run keeps its own. These are
    redrawn where items alone are the units and no two seeds have one in common; else the sources are None, since what
    differs between seeds has the items in it.
    """
    tables = []
    for name in test.outcomes:
        cells = scores.cells(scores.places(runs, name, scores.where(name, test.where), test.at))
        if cells.items is None:
            raise Unjudgeable(f"no items of {name} are stored, and {test.label} is made from items")
        _refuse_undefined(scores, cells, name, runs)
        tables.append(cells)
    common = tables[0].items
    for cells in tables[1:]:
        common = np.intersect1d(common, cells.items)
    aligned = np.stack([cells.matrix[:, np.searchsorted(cells.items, common)] for cells in tables], axis=1)
    present: NDArray[np.bool_] = np.logical_and.reduce(~np.isnan(aligned), axis=1)
    shared = present.all(axis=0)
    used = int(shared.sum()) * len(runs) if shared.any() else int(present.sum())
    left_out = sum(int((~np.isnan(cells.matrix)).sum()) for cells in tables) - used * len(tables)
    if left_out:
        scores.notes.append(
            f"{test.label}: {left_out} scores have no partner in the other outcomes, seeds or arm and do not enter."
        )
    if not (present.sum(axis=1) > 0).all():
        raise Unjudgeable(f"in some run the outcomes {', '.join(test.outcomes)} share no item")
    if not shared.any():

        def own(drawn: NDArray[np.intp] | None) -> Iterator[Array]:
            chosen = np.arange(common.size) if drawn is None else drawn
            return (aligned[run][:, chosen[present[run][chosen]]] for run in range(len(runs)))

        # An arm's runs are in the order of the seeds.
        by_arm = present.reshape(1 if test.rival is None else 2, -1, common.size)
        apart = bool((by_arm == by_arm[0]).all() and (by_arm[0].sum(axis=0) == 1).all())
        redrawn = apart and "seed" not in test.units
        return own, tables[0].clusters[np.searchsorted(tables[0].items, common)] if redrawn else None, apart
    whole = aligned[:, :, shared]
    sources = tables[0].clusters[np.searchsorted(tables[0].items, common[shared])]
    return lambda drawn: whole if drawn is None else whole[:, :, drawn], sources, False


def _path_columns(
    scores: Scores, test: Statistic, runs: Sequence[int]
) -> tuple[Columns, NDArray[np.int64] | None, bool]:
    """Per run one array per outcome along the places that all runs share; each value is a mean over (drawn) items."""
    paths = {
        name: [scores.dialled(run, name, scores.where(name, test.where)) for run in runs] for name in test.outcomes
    }
    grid = _common_grid(scores, [scores.x[path] for own in paths.values() for path in own])
    if not grid.size:
        raise Unjudgeable(
            f"the runs share no place of {scores.study.dial} where {', '.join(test.outcomes)} were measured"
        )
    tables = []
    for name, own in paths.items():
        positions = [np.interp(grid, scores.x[path], np.arange(path.size)) for path in own]
        cells = scores.between([path for path in own for _ in grid], np.concatenate(positions))
        _refuse_undefined(scores, cells, name, runs)
        tables.append(cells)
    with_items = [cells for cells in tables if cells.items is not None]
    items = np.unique(np.concatenate([cells.items for cells in with_items])) if with_items else np.zeros(0, np.int64)
    sources = np.zeros(items.size, np.int64)
    for cells in with_items:
        sources[np.searchsorted(items, cells.items)] = cells.clusters

    def columns(drawn: NDArray[np.intp] | None) -> Array:
        counts = np.ones(items.size) if drawn is None else np.bincount(drawn, minlength=items.size).astype(float)
        means = [_weighted_means(cells, items, counts) for cells in tables]
        return np.stack([mean.reshape(len(runs), -1) for mean in means], axis=1)

    return columns, sources if with_items else None, False


def _common_grid(scores: Scores, places: Sequence[Array]) -> Array:
    """Where all paths can be read: the places they share; of a cost, as many as the coarsest path has in what all spent."""
    if not scores.study.dial_is_cost:
        return functools.reduce(np.intersect1d, places)
    low, high = max(x[0] for x in places), min(x[-1] for x in places)
    fewest = min(int(((x >= low) & (x <= high)).sum()) for x in places)
    return np.linspace(low, high, max(fewest, 2)) if low < high else np.zeros(0)


def _weighted_means(cells: Cells, items: NDArray[np.int64], counts: Array) -> Array:
    if cells.items is None:
        return cells.matrix[:, 0]
    weights = counts[np.searchsorted(items, cells.items)]
    total = ~np.isnan(cells.matrix) @ weights
    return np.divide(np.nan_to_num(cells.matrix) @ weights, total, out=np.full(total.shape, np.nan), where=total > 0)
