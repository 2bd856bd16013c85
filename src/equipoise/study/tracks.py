"""The paths of a study's outcomes as they are drawn: per condition and arm, the value of every seed at every place."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.core.axes import Axis
from equipoise.core.cost import UNITS
from equipoise.study.store import canonical
from equipoise.study.summary_text import words
from equipoise.study.table import codes_of, mapping, place_of, values_of

if TYPE_CHECKING:
    from equipoise.study.declare import Outcome, Study
    from equipoise.study.results import Results, RunInfo

MOST_PLACES = 40  # drawn along one path; more tell the eye nothing and weigh down the page


@dataclass(frozen=True)
class Track:
    """One outcome under one set of conditions: arm -> place on the path -> seed -> value; nan is the place of no path.

    where: what it was measured under. aside: what its places say besides the path. condition: both in words.
    """

    outcome: "Outcome"
    condition: str
    values: dict[str, dict[float, dict[int, float]]]
    where: Mapping[str, Any]
    aside: Mapping[str, Any]

    @property
    def title(self) -> str:
        return self.outcome.name + (f" ({self.condition})" if self.condition else "")

    @property
    def axis(self) -> Axis:
        o = self.outcome
        return Axis(self.title, better=o.better, chance=o.chance, unit=o.unit, log=o.log, share=not o.unit)

    @property
    def places(self) -> list[float]:
        return sorted({place for arm in self.values.values() for place in arm if not math.isnan(place)})

    def ends(self, arm: str) -> Mapping[int, float]:
        """Seed -> value at the end of the path, or at the single point."""
        by_place = self.values.get(arm, {})
        known = [place for place in by_place if not math.isnan(place)]
        return by_place[max(known)] if known else by_place.get(math.nan, {})


def tracks_of(study: "Study", results: "Results", judged: Sequence["RunInfo"]) -> list[Track]:
    """The measurements of the judged runs by outcome and condition; of outcomes with splits, the test split.

    Without one it is every split but validation, which is drawn where it is all there is; these are named. Of a long path
    the places that are drawn, and each arm's last.
    """
    import pyarrow as pa

    table, declared = results.measurements, {outcome.name: outcome for outcome in study.outcomes}
    wanted = np.zeros(len(results.runs), bool)
    position = {id(run): i for i, run in enumerate(results.runs)}
    wanted[[position[id(run)] for run in judged]] = True
    table = table.filter(pa.array(wanted[values_of(table, "run")]))
    table = table.take(np.argsort(values_of(table, "order"), kind="stable"))
    outcome_codes, outcomes = codes_of(table, "outcome")
    where_codes, wheres = codes_of(table, "where")
    at_codes, ats = codes_of(table, "at")
    run_codes, values = values_of(table, "run"), values_of(table, "value")

    where = [mapping(stored) for stored in wheres]
    at = [mapping(stored) for stored in ats]
    places = np.array([place_of(each, study.dial) for each in at] or [math.nan])[at_codes]
    aside = [aside_of(each, study.dial) for each in at]
    known_asides = {canonical(each): each for each in aside}
    numbered = {text: number for number, text in enumerate(known_asides)}
    aside_codes = np.array([numbered[canonical(each)] for each in aside] or [0])[at_codes]

    tracks: dict[tuple[str, str, str], Track] = {}
    for i, outcome in enumerate(outcomes):
        rows = np.flatnonzero(outcome_codes == i)
        used, named = _splits({code: where[code].get("split") for code in np.unique(where_codes[rows]).tolist()})
        for code in used if outcome in declared else ():
            shown = {key: value for key, value in where[code].items() if key != "split" or named}
            for j, (text, other) in enumerate(known_asides.items()):
                own = rows[(where_codes[rows] == code) & (aside_codes[rows] == j)]
                if not own.size:
                    continue
                new = Track(declared[outcome], words(shown | other), {}, where[code], other)
                arms = tracks.setdefault((outcome, canonical(where[code]), text), new).values
                for row in own[_drawn(places[own], run_codes[own], results.runs)]:
                    run, place = results.runs[run_codes[row]], float(places[row])
                    by_place = arms.setdefault(run.arm, {})
                    by_place.setdefault(math.nan if math.isnan(place) else place, {})[run.seed] = float(values[row])
    return [track for name in declared for (outcome, _, _), track in tracks.items() if outcome == name]


def aside_of(at: Mapping[str, Any], dial: str) -> dict[str, Any]:
    """What a place says besides the path. What was spent by then is no condition: it would tear a path into points."""
    return {key: value for key, value in at.items() if key != dial and key not in UNITS}


def _splits(of: Mapping[int, Any]) -> tuple[list[int], bool]:
    """Of conditions with their splits those that are drawn, as judging chooses, and whether the split must be named."""
    used = [code for code, split in of.items() if split == "test"]
    used = used or [code for code, split in of.items() if split != "validation"] or list(of)
    return used, any(of[code] == "validation" or of[code] != of[used[0]] for code in used)


def _drawn(places: np.ndarray, run_codes: np.ndarray, runs: Sequence["RunInfo"]) -> np.ndarray:
    """Which of the rows of one outcome are needed: those at the places that are drawn, and the last of each arm."""
    known = np.unique(places[~np.isnan(places)])
    if known.size <= MOST_PLACES:
        return np.ones(places.size, bool)
    keep = np.isnan(places) | np.isin(places, thin(known.tolist()))
    arms = np.array([run.arm for run in runs])[run_codes]
    for arm in np.unique(arms):
        own = (arms == arm) & ~np.isnan(places)
        keep |= own & (places == np.max(places[own], initial=-math.inf))
    return keep


def thin(places: Sequence[float]) -> list[float]:
    """At most MOST_PLACES of them, the first and the last always among them."""
    if len(places) <= MOST_PLACES:
        return list(places)
    return [places[round(i * (len(places) - 1) / (MOST_PLACES - 1))] for i in range(MOST_PLACES)]


def mean_interval(by_seed: Mapping[int, float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean over seeds with its t interval; the bounds are nan for one seed."""
    from scipy.special import stdtrit

    values = np.array(list(by_seed.values()))
    mean = float(values.mean()) if values.size else math.nan
    if values.size < 2:
        return mean, math.nan, math.nan
    half = float(stdtrit(values.size - 1, (1 + level) / 2) * values.std(ddof=1) / math.sqrt(values.size))
    return mean, mean - half, mean + half
