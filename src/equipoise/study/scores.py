"""The stored numbers of the runs that count, arranged for lookups: which runs, conditions, places and items."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from equipoise.study.declare import Study
    from equipoise.study.results import Results


class Unjudgeable(Exception):
    """Why a test has no effect to show; becomes an undecided verdict with this sentence (and these details)."""

    def __init__(self, reason: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.details = details or {}


@dataclass(frozen=True)
class Cells:
    """Scores of one outcome at one place per run: matrix [runs, items], nan where a run did not see an item.

    Without items the matrix holds one value per run. `missing` counts values that are missing or undefined.
    """

    matrix: NDArray[np.float64]
    items: NDArray[np.int64] | None
    clusters: NDArray[np.int64] | None
    missing: int


class Scores:
    """Measurements and items of the judged runs, sorted by outcome, conditions, run and place.

    Judged are complete runs on test seeds at the chosen grid point. A place is one (outcome, conditions, run, at);
    arrays over places are parallel, and `start:stop` is a place's stretch of the item arrays. What was left
    out, and what else a reader should know, goes to `notes`.
    """

    def __init__(self, study: "Study", results: "Results") -> None:
        self.study, self.results = study, results
        self.outcomes = {outcome.name: outcome for outcome in study.outcomes}
        self.notes: list[str] = []
        self.at_levels: dict[tuple[str, str, str, str], tuple[Cells, tuple[str, ...]]] = {}
        self.attempted: dict[str, dict[int, int]] = {}
        self.complete: dict[str, dict[int, int]] = {}
        for index, run in enumerate(results.runs):
            if run.role == "test" and run.point == results.chosen.get(run.arm):
                self.attempted.setdefault(run.arm, {})[run.seed] = index
                if run.state == "complete":
                    self.complete.setdefault(run.arm, {})[run.seed] = index
        self._note_lost_runs()
        self._read()
        self._note_impossible_counts()

    # what was stored

    def _read(self) -> None:
        judged = np.zeros(len(self.results.runs) + 1, bool)
        for runs in self.complete.values():
            judged[list(runs.values())] = True
        names: dict[str, dict[str, int]] = {"outcome": {}, "where": {}, "at": {}}
        measurements = columns_of(self.results.measurements, judged, names)
        items = columns_of(self.results.items, judged, names)
        self.outcome_codes = names["outcome"]
        self.where_texts, self.at_texts = list(names["where"]), list(names["at"])
        self.wheres, self.ats = [_parsed(text) for text in names["where"]], [_parsed(text) for text in names["at"]]
        self._sizes = (max(len(self.wheres), 1), judged.size, max(len(self.ats), 1))

        keys, item_keys = (
            self._key(each["outcome"], each["where"], each["run"], each["at"]) for each in (measurements, items)
        )
        by_key = np.lexsort((measurements["order"], keys))
        last = by_key[np.flatnonzero(np.diff(keys[by_key], append=-1))]  # of a place measured twice, the later
        by_item_key = np.lexsort((items["order"], item_keys))
        group_keys, starts = np.unique(item_keys[by_item_key], return_index=True)
        stops = np.append(starts[1:], by_item_key.size)
        self.item, self.cluster = items["item"][by_item_key], items["cluster"][by_item_key]
        self.score = items["score"][by_item_key]

        self.keys = _union(keys[last], group_keys)
        self.at = self.keys % self._sizes[2]
        dial = np.array([_number(at.get(self.study.dial or "step")) for at in self.ats] or [math.nan])
        self.x = dial[self.at]
        n = self.keys.size
        self.start, self.stop = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.value, self.numerator, self.of = (np.full(n, np.nan) for _ in range(3))
        self.missing, self.order = np.zeros(n), np.zeros(n)
        if group_keys.size:  # the items' own mean, where no measure was stored beside them
            spot = np.searchsorted(self.keys, group_keys)
            self.start[spot], self.stop[spot] = starts, stops
            self.value[spot] = np.add.reduceat(self.score, starts) / (stops - starts)
            self.missing[spot] = np.add.reduceat(np.isnan(self.score).astype(float), starts)
            self.order[spot] = items["order"][by_item_key][stops - 1]
        spot = np.searchsorted(self.keys, keys[last])
        for own, column in (
            (self.value, "value"),
            (self.numerator, "numerator"),
            (self.of, "of"),
            (self.order, "order"),
        ):
            own[spot] = measurements[column][last]
        self.missing[spot] = np.maximum(self.missing[spot], measurements["missing"][last])
        self.missing = np.maximum(self.missing, np.isnan(self.value))

    def _key(self, outcome: Any, where: Any, run: Any, at: Any) -> Any:
        wheres, runs, ats = self._sizes
        return ((outcome * wheres + where) * runs + run) * ats + at

    def _note_lost_runs(self) -> None:
        for arm, runs in self.attempted.items():
            lost: dict[str, list[int]] = {}
            for seed, index in sorted(runs.items()):
                state = self.results.runs[index].state
                if state != "complete":
                    lost.setdefault(state, []).append(seed)
            for state, seeds in lost.items():
                listed = ", ".join(map(str, seeds))
                self.notes.append(f"{arm}: {len(seeds)} of {len(runs)} runs {state}, not judged (seeds {listed}).")

    def _note_impossible_counts(self) -> None:
        """A rate of n answers is a count of n: 0.335 of 10 is none, whatever printed it."""
        counted = ~np.isnan(self.of) & ~np.isnan(self.numerator)  # nan of n is undefined
        whole = np.isclose(self.numerator, np.round(self.numerator), rtol=0, atol=1e-6)
        wrong = np.flatnonzero(counted & ~(whole & (self.numerator >= 0) & (self.numerator <= self.of)))
        outcomes = self.keys[wrong] // math.prod(self._sizes)
        for code, name in enumerate(self.outcome_codes):
            places = wrong[outcomes == code]
            if places.size:
                self.notes.append(
                    f"{name}: {self.numerator[places[0]]:g} of {self.of[places[0]]:g} is no count of answers (so in "
                    f"{places.size} of its values); such a rate cannot come from that many."
                )

    # which runs

    def seeds(self, arms: Iterable[str]) -> tuple[list[int], list[int]]:
        """Seeds that every arm completed: those that the study declares, which count, and further ones.

        A run that failed, or was never tried, is not replaced by another seed: that would select runs by their fate.
        """
        arms = list(arms)
        attempted = sorted(set[int]().union(*(self.attempted.get(arm, {}) for arm in arms)))
        declared = set(self.study.test_seeds())
        done = [seed for seed in attempted if all(seed in self.complete.get(arm, {}) for arm in arms)]
        return [seed for seed in done if seed in declared], [seed for seed in done if seed not in declared]

    def runs(self, arms: Iterable[str], seeds: Sequence[int]) -> list[int]:
        """Indices of the runs of these arms, arm by arm, each in the order of the seeds."""
        return [self.complete[arm][seed] for arm in arms for seed in seeds]

    def keys_of(self, runs: Iterable[int]) -> tuple[str, ...]:
        return tuple(self.results.runs[run].key for run in runs)

    # which numbers

    @cached_property
    def conditions(self) -> dict[str, list[int]]:
        """outcome -> the codes of the conditions it was measured under."""
        names, conditions = list(self.outcome_codes), dict[str, list[int]]()
        pairs = self.keys // (self._sizes[1] * self._sizes[2])
        for pair in _union(pairs, pairs[:0]).tolist():
            conditions.setdefault(names[pair // self._sizes[0]], []).append(pair % self._sizes[0])
        return conditions

    def where(self, outcome: str, given: Mapping[str, Any] | None, split: str = "test") -> int:
        """The conditions that a test means: those that agree with `given`, on this split where there are splits.

        Of several the one with the fewest further keys. Raises Unjudgeable when that leaves none, or more than one.
        """
        given = dict(given or {})
        agreeing = [code for code in self.conditions.get(outcome, ()) if given.items() <= self.wheres[code].items()]
        if "split" not in given:
            splits = {code: self.wheres[code].get("split") for code in agreeing}
            # Nothing was held back to choose by: then the same items find the crossing and are reported at it.
            for wanted in (split, "test"):
                if wanted in splits.values():
                    agreeing = [code for code in agreeing if splits[code] == wanted]
                    break
            else:
                agreeing = [code for code in agreeing if splits[code] != "validation"]
        if not agreeing:
            raise Unjudgeable(f"no complete run measured {outcome}" + (f" under {json.dumps(given)}" if given else ""))
        fewest = min(len(self.wheres[code]) for code in agreeing)
        nearest = [code for code in agreeing if len(self.wheres[code]) == fewest]
        if len(nearest) > 1:
            listed = ", ".join(self.where_texts[code] for code in nearest)
            raise Unjudgeable(
                f"{outcome} was measured under several conditions ({listed}): name one with where= in the claim"
            )
        return nearest[0]

    def path(self, run: int, outcome: str, where: int) -> NDArray[np.int64]:
        """Places of a run in the order of the dial (without one: in the order of measuring)."""
        code = self.outcome_codes.get(outcome)
        if code is None:
            return np.zeros(0, np.int64)
        first = self._key(code, where, run, 0)
        low, high = np.searchsorted(self.keys, (first, first + self._sizes[2]))
        return np.arange(low, high)[np.lexsort((self.order[low:high], np.nan_to_num(self.x[low:high], nan=-math.inf)))]

    def places(self, runs: Iterable[int], outcome: str, where: int, at: Any) -> list[int]:
        """One place per run: the end of its path, or the stated one, whatever else (what was spent) is said of it.

        Raises Unjudgeable naming a run without it, or with several such places.
        """
        ends = []
        for run in runs:
            path, suffix = self.path(run, outcome, where).tolist(), ""
            if at != "last":
                suffix = f" at {json.dumps(dict(at))}"
                path = [each for each in path if dict(at).items() <= self.ats[self.at[each]].items()]
                path = [each for each in path if self.ats[self.at[each]] == dict(at)] or path
                if len(path) > 1:
                    raise Unjudgeable(f"run {self.results.runs[run].key} has {len(path)} values of {outcome}{suffix}")
            if not path:
                raise Unjudgeable(f"run {self.results.runs[run].key} has no {outcome}{suffix}")
            ends.append(path[-1])
        return ends

    def cells(self, places: Sequence[int]) -> Cells:
        """The scores at these places, a row each: by item where all of them have items, else one value."""
        start, stop = self.start[places], self.stop[places]
        missing = int(self.missing[places].sum())
        if not len(places) or (stop == start).any():
            return Cells(self.value[places][:, None], None, None, missing)
        rows = np.concatenate([np.arange(a, b) for a, b in zip(start, stop, strict=True)])
        items, first, position = np.unique(self.item[rows], return_index=True, return_inverse=True)
        matrix = np.full((len(places), items.size), np.nan)
        matrix[np.repeat(np.arange(len(places)), stop - start), position] = self.score[rows]
        return Cells(matrix, items, self.cluster[rows][first], missing)

    def between(self, paths: Sequence[NDArray[np.int64]], positions: NDArray[np.float64]) -> Cells:
        """The scores of each path at a fractional index, item by item, linear between the evaluations on both sides."""
        low = np.minimum(positions.astype(int), [path.size - 1 for path in paths])
        share = positions - low
        ends = [[int(path[k]) for path, k in zip(paths, at, strict=True)] for at in (low, low + (share > 0))]
        cells = self.cells(ends[0] + ends[1])
        before, behind = np.split(cells.matrix, 2)
        with np.errstate(invalid="ignore"):  # an infinity times none of it
            matrix = np.where(share[:, None] > 0, (1 - share[:, None]) * before + share[:, None] * behind, before)
        missing = self.missing[ends[0]].sum() + self.missing[ends[1]][share > 0].sum()
        return replace(cells, matrix=matrix, missing=int(missing))

    # what had been spent

    def dialled(self, run: int, outcome: str, where: int) -> NDArray[np.int64]:
        """Places of a run that have a place on the dial. Raises Unjudgeable when none has."""
        path = self.path(run, outcome, where)
        path = path[~np.isnan(self.x[path])]
        if not path.size:
            raise Unjudgeable(f"run {self.results.runs[run].key} has no {outcome} at any {self.study.dial}")
        return path

    def spent_along(
        self, run: int, outcome: str, where: int, cost: str
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Places of a run in the order of what it had spent, and these amounts.

        Raises Unjudgeable when an evaluation does not say how much that was.
        """
        path = self.path(run, outcome, where)
        amounts = np.array([_number(self.ats[code].get(cost)) for code in self.at[path]])
        unsaid = int((~np.isfinite(amounts)).sum())
        if unsaid or not path.size:
            key = self.results.runs[run].key
            raise Unjudgeable(
                f"{unsaid} of {path.size} evaluations of {outcome} in run {key} do not say the {cost} spent by then: "
                f"measure it at={{..., {cost!r}: total so far}}"
            )
        order = np.argsort(amounts, kind="stable")
        return path[order], amounts[order]


def _union(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """As np.union1d, for arrays that are sorted: its hashing takes seconds for a million, a merge none."""
    both = np.sort(np.concatenate((a, b)), kind="stable")
    return both[np.diff(both, prepend=-1) != 0]


def columns_of(table: Any, judged: NDArray[np.bool_], names: dict[str, dict[str, int]]) -> dict[str, NDArray[Any]]:
    """The rows of judged runs as numpy columns; texts as codes, those in `names` shared between tables."""
    keep = judged[table.column("run").to_numpy()]
    columns: dict[str, NDArray[Any]] = {}
    for column in table.column_names:
        if column in names:
            codes, texts = coded(table.column(column))
            known = names[column]
            shared = np.zeros(len(texts), np.int64)
            for code in np.flatnonzero(np.bincount(codes[keep])).tolist():
                shared[code] = known.setdefault(texts[code], len(known))
            columns[column] = shared[codes[keep]]
        elif column in ("item", "cluster"):
            codes, texts = coded(table.column(column))
            if column == "cluster":  # an item without a source is its own
                own = np.array([not text for text in texts])[codes]
                codes = np.where(own, len(texts) + coded(table.column("item"))[0], codes)
            columns[column] = codes[keep]
        elif column in ("run", "order", "value", "numerator", "of", "missing", "score"):
            values = table.column(column).to_numpy()[keep]
            columns[column] = values.astype(np.int64 if column in ("run", "order") else np.float64)
    return columns


def coded(column: Any) -> tuple[NDArray[np.int64], list[str]]:
    """Integer codes and their texts; null is the empty text."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    array = column.unify_dictionaries().combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    texts = [text or "" for text in array.dictionary.to_pylist()]
    return array.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False).astype(np.int64), [*texts, ""]


def _parsed(text: str) -> dict[str, Any]:
    return (json.loads(text) or {}) if text else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
