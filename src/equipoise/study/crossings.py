"""Where the paths of two arms come to one level of an outcome: found on validation items, by a monotone fit per run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.core import statistics
from equipoise.study.claims import Cheaper, Matched
from equipoise.study.scores import Scores, Unjudgeable

SPARE = 0.05  # of a path's range: how far before its very end "weakest" stays, see statistics.weakest_level
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Crossings:
    """Monotone fits of the runs' paths, the arm's first, and where (as an index, nan: nowhere) each comes to the level."""

    fits: list[Array]
    level: float
    positions: Array
    increasing: bool


def find_crossings(scores: Scores, test: Matched | Cheaper, paths: Sequence[NDArray[np.int64]]) -> Crossings:
    """Where the matched outcome, along the places of each run, crosses the level of the test."""
    values = [scores.value[path] for path in paths]
    undefined = sum(float(np.maximum(scores.missing[path], ~np.isfinite(scores.value[path])).sum()) for path in paths)
    if undefined:
        raise Unjudgeable(f"{undefined:g} values of {test.outcome} along the paths are missing, undefined or infinite")
    increasing = sum(float((np.arange(path.size) - (path.size - 1) / 2) @ path) for path in values) > 0
    fits = [statistics.monotone_fit(path, increasing=increasing) for path in values]
    if test.level == "weakest":
        level = statistics.weakest_level(fits, increasing=increasing, spare=SPARE)
    else:
        level = float(test.level)
    positions = np.array([statistics.crossing(fit, level, increasing=increasing) for fit in fits])
    return Crossings(fits, level, positions, increasing)


def crossing_details(
    scores: Scores,
    test: Matched | Cheaper,
    runs: Sequence[int],
    crossings: Crossings,
    crossed_at: Sequence[float],
    dial: str,
) -> dict[str, Any]:
    """What the report shows of a matched comparison: the level, and where along `dial` each run came to it."""
    keys = scores.keys_of(runs)
    counts = [int((~np.isnan(each)).sum()) for each in np.split(crossings.positions, 2)]
    return {
        "matched": test.outcome,
        "level": crossings.level,
        "dial": dial,
        "increasing": crossings.increasing,
        "crossings": {key: None if math.isnan(x) else x for key, x in zip(keys, crossed_at, strict=True)},
        "reached": {arm: f"{n} of {len(runs) // 2}" for arm, n in zip((test.arm, test.rival), counts, strict=True)},
    }


def matched_conditions(scores: Scores, test: Matched | Cheaper) -> int:
    """The conditions under which the matched outcome is held equal: on validation items where there are any."""
    name, meant = test.outcome or "", test.where if isinstance(test, Cheaper) else None
    try:
        where = scores.where(name, meant, "validation")
    except Unjudgeable:  # of a matched claim `where` is said of the judged outcome, and may help here
        where = scores.where(name, test.where, "validation")
    if scores.wheres[where].get("split") != "validation":
        scores.notes.append(f"{name} has no validation split: its crossing is found on the items it is reported on.")
    return where


def refuse_missed_level(test: Matched | Cheaper, crossings: Crossings, details: dict[str, Any]) -> None:
    """Raises Unjudgeable when a run does not cross the level: comparing the others would compare chosen runs."""
    missed = np.isnan(crossings.positions)
    if not missed.any():
        return
    listed = ", ".join(f"{arm} reached {crossings.level:.3g} in {count}" for arm, count in details["reached"].items())
    starts = (fit[0] > crossings.level for fit in crossings.fits)
    past = sum(bool(m) and (start == crossings.increasing) for m, start in zip(missed, starts, strict=True))
    tail = f" ({past} of the runs were past it at their first evaluation)" if past else ""
    raise Unjudgeable(f"{test.outcome}: {listed}{tail}", details)
