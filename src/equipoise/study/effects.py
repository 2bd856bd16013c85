"""From a test to an interval: what two arms differ by for the same seed and item, and how well that is known."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.core import statistics
from equipoise.core.statistics import Interval
from equipoise.study.claims import Between, Both, Cheaper, Comparison, Matched, Rule, Statistic, Test
from equipoise.study.scores import Cells, Scores, Unjudgeable

if TYPE_CHECKING:
    from equipoise.study.declare import Outcome

FEWEST_BOOTSTRAP_SEEDS, FEWEST_BOOTSTRAP_CLUSTERS = 10, 50
SPARE = 0.05  # of a path's range: how far before its very end "weakest" stays, see statistics.weakest_level
Array = NDArray[np.float64]
Columns = Callable[[NDArray[np.intp] | None], Iterable[Sequence[Array] | Array]]


@dataclass(frozen=True)
class Effect:
    """One interval; positive favours the arm. `per_seed` are the seeds' own means, in the order of the seeds.

    Of outcomes compared by ratios, and of costs, estimate and margin are natural logarithms. A statistic without a
    rival is shown as it is, and `margin` is its threshold. `items` is 0 where only seeds vary.
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


def measure(scores: Scores, test: Test, seeds: Sequence[int], level: float) -> Measured:
    """The effect of one test on these seeds. Raises Unjudgeable when there is none to show."""
    match test:
        case Comparison():
            return _compare(scores, test, seeds, level)
        case Matched():
            return _match(scores, test, seeds, level)
        case Between():
            return _between(scores, test, seeds, level)
        case Cheaper():
            return _cheaper(scores, test, seeds, level)
        case Statistic():
            return _statistic(scores, test, seeds, level)
        case Both():
            raise TypeError("both() is measured part by part")


# --- differences of means -------------------------------------------------------------------------------------------


def _compare(scores: Scores, test: Comparison, seeds: Sequence[int], level: float) -> Measured:
    where = scores.where(test.outcome, test.where)
    runs = scores.runs((test.arm, test.rival), seeds)
    places = scores.places(runs, test.outcome, where, test.at)
    if test.at == "last":
        _note_unequal_ends(scores, test, places)
    return _difference(scores, test, test.outcome, scores.cells(places), runs, level, {})


def _note_unequal_ends(scores: Scores, test: Comparison, places: Sequence[int]) -> None:
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
    test: Comparison | Matched,
    name: str,
    cells: Cells,
    runs: Sequence[int],
    level: float,
    details: dict[str, Any],
) -> Measured:
    """Arm minus rival, same seed, same item. cells: the arm's runs, then the rival's, in the same order of seeds."""
    outcome = scores.outcomes[name]
    units = _units(test.units, cells, name)
    _refuse_missing(scores, cells, name, runs)
    one, other = np.split(_scaled(cells.matrix, outcome), 2)
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
    if np.nanmax(d) - np.nanmin(d) <= 1e-9 * np.nanmax(np.abs(cells.matrix)):
        undecided = _saturated(name, float(np.nanmean(d)))
    effect = _effect(
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
    _refuse_missing(scores, cells, name, runs)
    one, other = np.split(_sign(outcome) * _scaled(cells.matrix, outcome), 2)
    per_seed = np.nanmean(one, axis=1) - np.nanmean(other, axis=1)
    undecided = _varies_though_deterministic(units, one) or _varies_though_deterministic(units, other)
    if "seed" not in units:
        one, other = one[:1], other[:1]
    clusters = np.zeros(1) if cells.clusters is None else cells.clusters
    countable = _countable(units, len(one))
    interval = statistics.two_sample_interval(one, other, clusters, clusters, units=countable, level=level)
    if interval.seed_variance + interval.item_variance <= 1e-18 * np.nanmax(np.abs(cells.matrix)) ** 2:
        undecided = _saturated(name, interval.estimate)
    effect = _effect(
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


def _cheaper(scores: Scores, test: Cheaper, seeds: Sequence[int], level: float) -> Measured:
    """Log ratio of what rival and arm spent, per seed. Counts that never vary are exact, not saturated."""
    runs = scores.runs((test.arm, test.rival), seeds)
    spent = []
    for run in (scores.results.runs[index] for index in runs):
        phases = run.cost.get("work", {})
        amounts = [
            costs[test.cost] for name, costs in phases.items() if test.cost in costs and test.phase in (None, name)
        ]
        if not sum(amounts) > 0:
            raise Unjudgeable(
                f"run {run.key} booked no {test.cost}" + (f" in phase {test.phase}" if test.phase else "")
            )
        spent.append(sum(amounts))
    arm, rival = np.split(np.array(spent, float), 2)
    ratios = np.log(rival / arm)
    interval = statistics.seed_interval(ratios, level=level)
    if np.ptp(ratios) == 0:  # exactly this, without the rounding of a mean
        interval = replace(interval, estimate=ratios[0], lower=ratios[0], upper=ratios[0])
    effect = _effect(
        f"{test.cost}: {test.arm} against {test.rival}",
        interval,
        ratios,
        items=0,
        unit="log ratio",
        margin=math.log(test.by),
    )
    factor, lower, upper = (math.exp(x) for x in (effect.estimate, effect.lower, effect.upper))
    text = f"{factor:.3g} times less {test.cost} [{lower:.3g}, {upper:.3g}] over {_counts(effect)}"
    bounds = (effect.lower, effect.upper)
    return Measured(effect, interval, "better", effect.margin, bounds, ("seed",), scores.keys_of(runs), text)


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


def _refuse_missing(scores: Scores, cells: Cells, name: str, runs: Sequence[int]) -> None:
    if cells.missing:
        arms = ", ".join(dict.fromkeys(scores.results.runs[run].arm for run in runs))
        present = int((~np.isnan(cells.matrix)).sum())
        raise Unjudgeable(
            f"{cells.missing} values of {name} ({arms}) are missing or undefined, beside {present} that are there"
        )


def _varies_though_deterministic(units: tuple[str, ...], values: Array) -> str:
    if "seed" in units or np.array_equal(values, np.broadcast_to(values[0], values.shape), equal_nan=True):
        return ""
    return "the claim is over items only, as for a deterministic system, yet its seeds differ"


def _exact_pairs(
    test: Comparison | Matched, d: Array, clusters: Any, outcome: "Outcome", units: tuple[str, ...]
) -> bool:
    """One run each, right or wrong answers, independent items and no margin: McNemar's test is exact."""
    independent = clusters is None or np.unique(clusters).size == d.size
    plain = isinstance(test, Comparison) and test.rule == "better" and test.margin == 0 and not outcome.log
    return plain and units == ("item",) and independent and bool(np.isin(d, (-1.0, 0.0, 1.0)).all())


def _saturated(name: str, difference: float) -> str:
    return f"no variation at all (saturated): {name} differs by exactly {difference:.3g} throughout"


def _effect(
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
    )


def _text(effect: Effect) -> str:
    unit = f" {effect.unit}" if effect.unit else ""
    return f"{effect.estimate:+.3g} [{effect.lower:+.3g}, {effect.upper:+.3g}]{unit} over {_counts(effect)}"


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
    values = [scores.value[matched] for _, matched, _ in kept]
    missing = int(sum(scores.missing[matched].sum() for _, matched, _ in kept))
    if missing:
        raise Unjudgeable(f"{missing} values of {test.outcome} along the paths are missing or undefined")

    increasing = sum(float((np.arange(v.size) - (v.size - 1) / 2) @ v) for v in values) > 0
    fits = [statistics.monotone_fit(v, increasing=increasing) for v in values]
    if test.level == "weakest":
        target = statistics.weakest_level(fits, increasing=increasing, spare=SPARE)
    else:
        target = float(test.level)
    positions = np.array([statistics.crossing(fit, target, increasing=increasing) for fit in fits])
    where_crossed = [float(statistics.read_at(x, p)) for (x, _, _), p in zip(kept, positions, strict=True)]
    details: dict[str, Any] = {
        "matched": test.outcome,
        "level": target,
        "dial": scores.study.dial or "step",
        "increasing": increasing,
        "crossings": {key: None if math.isnan(x) else x for key, x in zip(keys, where_crossed, strict=True)},
        "places": {arm: grid.tolist() for arm, grid in zip(arms, grids, strict=True)},
    }
    crossed = ~np.isnan(positions).reshape(2, -1).any(axis=0)
    rows = np.flatnonzero(np.tile(crossed, 2))
    if not rows.size:
        _refuse_missed_level(test, fits, np.isnan(positions), target, increasing, details)

    last = np.array([fits[i].size - 1 for i in rows])
    low = np.minimum(positions[rows].astype(int), last)
    ends = [[int(kept[i][2][k]) for i, k in zip(rows, at, strict=True)] for at in (low, np.minimum(low + 1, last))]
    cells = scores.cells(ends[0] + ends[1])
    before, behind = np.split(cells.matrix, 2)
    share = (positions[rows] - low)[:, None]
    corrections = statistics.chord_corrections(
        [fits[i] for i in rows], [scores.value[kept[i][2]] for i in rows], positions[rows].tolist(), target
    )
    details["corrections"] = {keys[i]: each for i, each in zip(rows, corrections.tolist(), strict=True)}
    matrix = np.where(share == 0, before, (1 - share) * before + share * behind) + corrections[:, None]
    at_level = replace(cells, matrix=matrix)
    for arm, own in zip(arms, np.split(np.arange(rows.size), 2), strict=True):
        place = (arm, test.judge, json.dumps({test.outcome: target}), scores.where_texts[judged_where])
        scores.at_levels.setdefault(place, (replace(at_level, matrix=matrix[own]), tuple(keys[i] for i in rows[own])))
    # Only now: the seeds in which both arms came to the level are shown even where others leave no verdict.
    _refuse_missed_level(test, fits, np.isnan(positions), target, increasing, details)
    measured = _difference(scores, test, test.judge, at_level, runs, level, details)
    _note_wide_gaps(scores, test, np.diff(scores.value[ends], axis=0)[0], measured.effect)
    return measured


Path = tuple[Array, NDArray[np.int64], NDArray[np.int64]]


def _shared_paths(
    scores: Scores, test: Matched, runs: Sequence[int], judged_where: int
) -> tuple[list[Path], tuple[Array, Array]]:
    """Per run the dial and the places of the matched and the judged outcome, where the arms can be compared."""
    try:
        matched_where = scores.where(test.outcome, None, "validation")
    except Unjudgeable:
        matched_where = scores.where(test.outcome, test.where, "validation")
    if scores.wheres[matched_where].get("split") != "validation":
        scores.notes.append(
            f"{test.outcome} has no validation split: its crossing is found on the items it is reported on."
        )
    paths: list[Path] = []
    for run in runs:
        own = [scores.path(run, *each) for each in ((test.outcome, matched_where), (test.judge, judged_where))]
        matched, judged = (path[~np.isnan(scores.x[path])] for path in own)
        x, in_matched, in_judged = np.intersect1d(scores.x[matched], scores.x[judged], return_indices=True)
        paths.append((x, matched[in_matched], judged[in_judged]))
    half = len(runs) // 2
    grids = statistics.shared_grid(*(np.concatenate([x for x, _, _ in own]) for own in (paths[:half], paths[half:])))
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


def _refuse_missed_level(
    test: Matched,
    fits: Sequence[Array],
    missed: NDArray[np.bool_],
    target: float,
    increasing: bool,
    details: dict[str, Any],
) -> None:
    """Raises Unjudgeable when a run does not cross the level: comparing the others would compare chosen runs."""
    counts = [int((~each).sum()) for each in np.split(missed, 2)]
    of = missed.size // 2
    details["reached"] = {arm: f"{count} of {of}" for arm, count in zip((test.arm, test.rival), counts, strict=True)}
    if not missed.any():
        return
    listed = ", ".join(f"{arm} reached {target:.3g} in {count}" for arm, count in details["reached"].items())
    past = sum(bool(m) and (fit[0] > target) == increasing for m, fit in zip(missed, fits, strict=True))
    tail = f" ({past} of the runs were past it at their first evaluation)" if past else ""
    raise Unjudgeable(f"{test.outcome}: {listed}{tail}", details)


def _note_wide_gaps(scores: Scores, test: Matched, changes: Array, effect: Effect) -> None:
    for arm, change in zip((test.arm, test.rival), np.abs(changes.reshape(2, -1).mean(axis=1)), strict=True):
        if change > 2 * max(effect.upper - effect.estimate, effect.margin):
            scores.notes.append(
                f"{arm}: {test.judge} changes by {change:.2g} between the evaluations on both sides of the matched "
                f"level of {test.outcome}, more than the interval is wide: evaluate more often there."
            )


# --- statistics that are no means -----------------------------------------------------------------------------------


def _statistic(scores: Scores, test: Statistic, seeds: Sequence[int], level: float) -> Measured:
    arms = (test.arm,) if test.rival is None else (test.arm, test.rival)
    runs = scores.runs(arms, seeds)
    columns, clusters = (_item_columns if test.over == "items" else _path_columns)(scores, test, runs)
    units: Any = tuple(u for u in ("seed", "item") if u in test.units and (u == "seed" or clusters is not None))
    if not units:
        raise Unjudgeable(f"the claim is over items, and the seeds share none of {', '.join(test.outcomes)}")
    sign = 1.0 if test.better == "higher" else -1.0

    def per_seed(drawn: NDArray[np.intp] | None = None) -> Array:
        values = np.array([float(test.function(*each)) for each in columns(drawn)])
        return values if test.rival is None else sign * (values[: len(seeds)] - values[len(seeds) :])

    try:
        own = per_seed()
        undecided = _varies_though_deterministic(units, own[:, None])
        if "item" in units and clusters is not None:
            generator = np.random.default_rng(0)  # a verdict must not depend on who asks
            interval = statistics.pigeonhole_interval(per_seed, clusters, generator=generator, units=units, level=level)
        else:
            interval = statistics.seed_interval(own, level=level)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise Unjudgeable(f"{test.label} could not be computed: {error}") from error
    undefined = int(np.isnan(own).sum())
    if undefined:
        raise Unjudgeable(f"{test.label} is undefined in {undefined} of {own.size} seeds")
    if interval.seed_variance + interval.item_variance <= 1e-18 * np.max(np.abs(own)) ** 2:
        undecided = _saturated(test.label, interval.estimate)
    if not ("seed" in units and len(seeds) >= FEWEST_BOOTSTRAP_SEEDS) and interval.clusters < FEWEST_BOOTSTRAP_CLUSTERS:
        undecided = undecided or (
            f"{test.label} is no mean: its interval needs {FEWEST_BOOTSTRAP_SEEDS} seeds or "
            f"{FEWEST_BOOTSTRAP_CLUSTERS} sources of items, and there are {len(seeds)} and {interval.clusters}"
        )
    bounds, threshold = (interval.lower, interval.upper), test.margin
    if test.rival is None:  # how far beyond the threshold, on the side that the claim names
        low, high = sorted(sign * (bound - test.margin) for bound in bounds)
        bounds, threshold = (low, high), 0.0
    effect = _effect(
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


def _item_columns(scores: Scores, test: Statistic, runs: Sequence[int]) -> tuple[Columns, NDArray[np.int64] | None]:
    """Per run one array per outcome, aligned by item; of drawn items, or (None) of all. And the items' sources.

    The items are those that every run has in every outcome. Where the seeds share none, each run keeps its own,
    and there is nothing to redraw: the sources are None.
    """
    tables = []
    for name in test.outcomes:
        cells = scores.cells(scores.places(runs, name, scores.where(name, test.where), test.at))
        if cells.items is None:
            raise Unjudgeable(f"no items of {name} are stored, and {test.label} is made from items")
        _refuse_missing(scores, cells, name, runs)
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
        return lambda drawn: (aligned[run][:, present[run]] for run in range(len(runs))), None
    whole = aligned[:, :, shared]
    sources = tables[0].clusters[np.searchsorted(tables[0].items, common[shared])]
    return lambda drawn: whole if drawn is None else whole[:, :, drawn], sources


def _path_columns(scores: Scores, test: Statistic, runs: Sequence[int]) -> tuple[Columns, NDArray[np.int64] | None]:
    """Per run one array per outcome along the places that all runs share; each value is a mean over (drawn) items."""
    paths = {name: [scores.path(run, name, scores.where(name, test.where)) for run in runs] for name in test.outcomes}
    grids = [scores.x[path] for own in paths.values() for path in own]
    grid = grids[0][~np.isnan(grids[0])]
    for other in grids[1:]:
        grid = np.intersect1d(grid, other)
    if not grid.size:
        raise Unjudgeable(
            f"the runs share no place of {scores.study.dial} where {', '.join(test.outcomes)} were measured"
        )
    tables = []
    for name, own in paths.items():
        on_grid = [path[np.intersect1d(scores.x[path], grid, return_indices=True)[1]] for path in own]
        cells = scores.cells(np.concatenate(on_grid).tolist())
        _refuse_missing(scores, cells, name, runs)
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

    return columns, sources if with_items else None


def _weighted_means(cells: Cells, items: NDArray[np.int64], counts: Array) -> Array:
    if cells.items is None:
        return cells.matrix[:, 0]
    weights = counts[np.searchsorted(items, cells.items)]
    total = ~np.isnan(cells.matrix) @ weights
    return np.divide(np.nan_to_num(cells.matrix) @ weights, total, out=np.full(total.shape, np.nan), where=total > 0)
