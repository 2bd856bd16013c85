"""Chooses one grid point per arm from tuning runs, by the rule that the study states in `Select`."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.core import statistics
from equipoise.core.errors import WorkFailed

if TYPE_CHECKING:
    import pyarrow as pa

    from equipoise.study.declare import Arm, Outcome, Study

Runs = Mapping[
    tuple[str, int, int], dict[str, tuple[np.ndarray, np.ndarray]]
]  # arm, point, seed -> outcome -> x, value


@dataclass(frozen=True)
class Selected:
    """One grid point of one arm on the tuning seeds; `score` is nan when it could not be ranked."""

    arm: str
    point: int
    settings: dict[str, Any]
    score: float
    reached: int
    seeds: int
    chosen: bool


def choose(study: "Study", measurements: "pa.Table") -> tuple[dict[str, int], list[Selected]]:
    """arm -> grid point, and how every point fared. An arm with one point needs no tuning; one whose tuning runs all
    failed is not in the result.

    Raises WorkFailed when an outcome was measured under several conditions so that none is meant.
    """
    select = study.select
    chosen = {arm.name: 0 for arm in study.arms if len(arm.points()) == 1}
    tuned = [arm for arm in study.arms if arm.name not in chosen]
    if select is None or not tuned:
        return chosen, []
    names = filter(None, (select.outcome, select.matched))
    wanted = [study.outcome(name) for name in names if not study.is_cost(name)]
    runs = _tuning_paths(study, measurements, wanted)
    level = _level(study, tuned, runs) if select.matched else math.nan
    table: list[Selected] = []
    for arm in tuned:
        ranked = []
        for point, settings in enumerate(arm.points()):
            paths = [runs[key] for key in sorted(runs) if key[:2] == (arm.name, point)]
            score, reached, rank = _rank(study, paths, level)
            ranked.append((rank, -point, Selected(arm.name, point, settings, score, reached, len(paths), False)))
        rank, _, best = max(ranked, key=lambda each: each[:2])
        if rank != _UNUSABLE:
            chosen[arm.name] = best.point
        for _, _, each in ranked:
            is_best = rank != _UNUSABLE and each is best
            table.append(Selected(each.arm, each.point, each.settings, each.score, each.reached, each.seeds, is_best))
    return chosen, table


_UNUSABLE = (-1, -math.inf)


def _rank(study: "Study", paths: Sequence[dict], level: float) -> tuple[float, int, tuple[int, float]]:
    """Score to show (mean over seeds that reached), how many reached, and a key that sorts better points higher."""
    select = study.select
    assert select is not None
    sign = 1 if not study.is_cost(select.outcome) and study.outcome(select.outcome).better == "higher" else -1
    scores, gaps = [], []
    for path in paths:
        values = path.get(select.outcome, _NOTHING)[1]
        if select.matched is None:
            score = float(values[-1]) if values.size else math.nan
        else:
            outcome = study.outcome(select.matched)
            judged = None if study.is_cost(select.outcome) else select.outcome
            score, gap = _at_level(path, judged, outcome, level)
            gaps.append(gap)
        scores.append(score)
    reached = [score for score in scores if not math.isnan(score)]
    if reached:
        mean = float(np.mean(reached))
        return mean, len(reached), (len(reached), sign * mean)
    near = [gap for gap in gaps if math.isfinite(gap)]
    return math.nan, 0, (0, -float(np.mean(near))) if near else _UNUSABLE


_NOTHING = (np.empty(0), np.empty(0))


def _at_level(path: dict, judged: str | None, matched: "Outcome", level: float) -> tuple[float, float]:
    """The judged outcome where the matched one crosses the level (nan: it does not), and how far its end stays off.

    Without a judged outcome, the place of the crossing itself: what was spent by then.
    """
    x, values = path.get(matched.name, _NOTHING)
    if not values.size or np.isnan(values).any() or math.isnan(level):
        return math.nan, math.inf
    increasing = matched.better == "higher"
    fit = statistics.monotone_fit(values, increasing=increasing)
    position = statistics.crossing(fit, level, increasing=increasing)
    if math.isnan(position):
        return math.nan, abs(float(fit[-1]) - level)
    crossed_at = float(statistics.read_at(x, position))
    if judged is None:
        return crossed_at, 0.0
    places, scores = path.get(judged, _NOTHING)
    return (float(np.interp(crossed_at, places, scores)) if scores.size else math.nan), 0.0


def _level(study: "Study", tuned: "Sequence[Arm]", runs: Runs) -> float:
    """The stated level, or the strongest that every tuned arm reaches in all tuning seeds with its best point."""
    select = study.select
    assert select is not None and select.matched is not None
    if not isinstance(select.level, str):
        return math.nan if select.level is None else float(select.level)
    increasing = study.outcome(select.matched).better == "higher"
    ends = []
    for arm in tuned:
        of_points = []
        for point in range(len(arm.points())):
            values = [
                path.get(select.matched, _NOTHING)[1] for key, path in runs.items() if key[:2] == (arm.name, point)
            ]
            fits = [statistics.monotone_fit(each, increasing=increasing) for each in values]
            of_points.append(statistics.weakest_level(fits, increasing=increasing))
        usable = [level for level in of_points if not math.isnan(level)]
        if usable:
            ends.append(max(usable) if increasing else min(usable))
    return (min(ends) if increasing else max(ends)) if ends else math.nan


def _tuning_paths(study: "Study", measurements: "pa.Table", outcomes: "Sequence[Outcome]") -> Runs:
    import pyarrow as pa
    import pyarrow.compute as pc

    assert study.select is not None
    names = [outcome.name for outcome in outcomes]
    wanted = (pc.field("role") == "tuning") & pc.field("outcome").cast(pa.string()).isin(names)
    rows = measurements.filter(wanted).to_pylist()
    where = {outcome.name: _condition(outcome.name, study.select.split, rows) for outcome in outcomes}
    along = study.select.outcome if study.is_cost(study.select.outcome) else study.dial
    points: dict[tuple[str, int, int], dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["where"] == where[row["outcome"]]:
            x = json.loads(row["at"]).get(along)
            place = float(x) if isinstance(x, (int, float)) else math.nan
            points[row["arm"], row["point"], row["seed"]][row["outcome"]].append((place, row["order"], row["value"]))
    return {key: {name: _path(measured) for name, measured in by_outcome.items()} for key, by_outcome in points.items()}


def _path(measured: list[tuple[float, int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """x and value along the path; what has no place on it comes first."""
    ordered = sorted(measured, key=lambda each: (-math.inf if math.isnan(each[0]) else each[0], each[1]))
    return np.array([each[0] for each in ordered]), np.array([each[2] for each in ordered])


def _condition(outcome: str, split: str, rows: Sequence[dict]) -> str | None:
    """The one `where` that is meant: on the split; else without split; else any; of several the plainest."""
    texts = {row["where"] for row in rows if row["outcome"] == outcome}
    parsed = {text: json.loads(text) for text in texts}
    for matching in (
        {text for text, where in parsed.items() if where.get("split") == split},
        {text for text, where in parsed.items() if "split" not in where},
        texts,
    ):
        if matching:
            fewest = min(len(parsed[text]) for text in matching)
            plainest = sorted(text for text in matching if len(parsed[text]) == fewest)
            if len(plainest) > 1:
                raise WorkFailed(
                    f"Settings cannot be chosen by {outcome}: it was measured under several conditions "
                    f"({', '.join(plainest)}) and none is plainly the {split} split."
                )
            return plainest[0]
    return None
