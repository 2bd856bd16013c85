"""Verdicts: what stored measurements say about the claims of a study, by rules that were fixed before they existed.

`judge` reads a `Study` and its `Results` and returns a `Judgement`; `design_notes` says before any run what the design
can decide. Only complete runs on test seeds at the chosen grid point count, paired by seed and item. A positive effect
favours the arm whatever the direction of the outcome. Formulas and their coverage: docs/statistics.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.core import statistics
from equipoise.core.options import check_fields, closed
from equipoise.study.claims import Both, Cheaper, Claim, Rule, Statistic, Test
from equipoise.study.effects import Effect, Measured, measure
from equipoise.study.scores import Cells, Scores, Unjudgeable

if TYPE_CHECKING:
    from equipoise.study.declare import Study
    from equipoise.study.results import Results

__all__ = ["ClaimVerdict", "Effect", "Judgement", "Summary", "decide", "design_notes", "judge"]

State = Literal["supported", "refuted", "undecided", "untested"]
FEWEST_SEEDS = 3
MOST_SEEDS = 1000


@dataclass(frozen=True)
class ClaimVerdict:
    """What became of a claim, in one sentence and in numbers; `runs` are the keys of the run folders it rests on.

    `preview`: fewer seeds are complete than the study declares. A claim that is not primary has effects and no verdict:
    its state is undecided. `seeds_needed`: how many fresh seeds would probably decide it, as a range.
    """

    claim: Claim
    state: State
    reason: str
    effects: tuple[Effect, ...] = ()
    seeds_needed: tuple[int, int] | None = None
    primary: bool = True
    preview: bool = False
    runs: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Summary:
    """An arm's own value of an outcome (no difference), with a 95 % interval; nan where undefined.

    `at`: the end of the path, "" where the runs end at different places, or {"matched outcome": level}. `numerator`,
    `of` and `missing` are totals over the runs.
    """

    arm: str
    outcome: str
    at: str
    where: str
    estimate: float
    lower: float
    upper: float
    seeds: int
    numerator: float
    of: float
    missing: int
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Judgement:
    """Verdicts, the arms' own values, what the design can decide (before any run), and what else a reader must know."""

    study: str
    verdicts: tuple[ClaimVerdict, ...]
    summaries: tuple[Summary, ...]
    design: tuple[str, ...]
    notes: tuple[str, ...]


def judge(study: "Study", results: "Results") -> Judgement:
    """The verdict on every claim, from what is stored. Does not raise for data: what cannot be judged is undecided."""
    scores = Scores(study, results)
    level = _level(study)
    verdicts = tuple(_verdict(scores, claim, level) for claim in study.claims)
    summaries = (*_summaries(scores), *_summaries_at_levels(scores))
    return Judgement(study.name, verdicts, summaries, tuple(design_notes(study)), tuple(dict.fromkeys(scores.notes)))


@closed
def decide(rule: Rule, lower: float, upper: float, margin: float) -> tuple[State, str]:
    """The verdict of an interval, and for a refutation its words. A bound equal to the margin decides nothing."""
    if math.isnan(lower) or math.isnan(upper):
        return "undecided", ""
    if rule == "better":
        if lower > margin:
            return "supported", ""
        if upper < 0:
            return "refuted", "reversed"
        return ("refuted", f"no advantage as large as {margin:g}") if upper < margin else ("undecided", "")
    if rule == "not_worse":
        if lower > -margin:
            return "supported", ""
        return ("refuted", f"worse by more than {margin:g}") if upper < -margin else ("undecided", "")
    if -margin < lower and upper < margin:
        return "supported", ""
    outside = lower > margin or upper < -margin
    return ("refuted", f"a difference above {margin:g}") if outside else ("undecided", "")


def _level(study: "Study") -> float:
    return statistics.bonferroni_level(sum(claim.judged for claim in study.claims))


# --- from an interval to a verdict ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """The verdict on one test; a claim with both() has several."""

    state: State
    reason: str
    effects: tuple[Effect, ...] = ()
    seeds_needed: tuple[int, int] | None = None
    preview: bool = False
    runs: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


def _verdict(scores: Scores, claim: Claim, level: float) -> ClaimVerdict:
    if claim.test is None:
        return ClaimVerdict(claim, "untested", claim.untested, primary=claim.primary)
    part = _judge(scores, claim.test, level)
    if not claim.primary:
        part = replace(part, state="undecided", reason=f"exploratory, no verdict: {part.reason}", seeds_needed=None)
    return ClaimVerdict(
        claim,
        part.state,
        part.reason,
        part.effects,
        part.seeds_needed,
        claim.primary,
        part.preview,
        part.runs,
        part.details,
    )


def _judge(scores: Scores, test: Test, level: float) -> _Part:
    if isinstance(test, Both):
        return _joined([_judge(scores, each, level) for each in test.tests])
    arms = test.references().arms
    seeds, further = scores.seeds(arms)
    declared = scores.study.seeds
    preview = len(seeds) < declared
    prefix = f"undecided (preview, {len(seeds)} of {declared} seeds): " if preview else ""
    if not seeds:
        which = "none of the declared seeds" if further else "no seed"
        shown = _effect_of_all(scores, test, seeds, further, level)
        return _Part("undecided", f"{prefix}{which} is complete in {' and '.join(arms)}", shown, preview=preview)
    try:
        measured = measure(scores, test, seeds, level)
    except Unjudgeable as error:
        keys = scores.keys_of(scores.runs(arms, seeds))
        return _Part("undecided", f"{prefix}{error}", preview=preview, runs=keys, details=error.details)

    state, words = decide(measured.rule, *measured.bounds, measured.threshold)
    obstacle = measured.undecided
    if not obstacle and "seed" in measured.units and len(seeds) < FEWEST_SEEDS:
        obstacle = f"no verdict under {FEWEST_SEEDS} seeds"
    needed = None
    if state == "undecided" and not measured.undecided and "seed" in measured.units:
        needed = _seeds_needed(measured)
    if preview or obstacle:
        state, words = "undecided", obstacle or "so far"
    return _Part(
        state,
        prefix + _reason(test, measured, state, words, needed),
        (measured.effect, *_effect_of_all(scores, test, seeds, further, level)),
        needed,
        preview,
        measured.runs,
        measured.details,
    )


def _joined(parts: Sequence[_Part]) -> _Part:
    states = {part.state for part in parts}
    state: State = "refuted" if "refuted" in states else "supported" if states == {"supported"} else "undecided"
    needs = [part.seeds_needed for part in parts if part.seeds_needed]
    open_parts = [part for part in parts if part.state == "undecided"]
    return _Part(
        state,
        "; ".join(f"({number}) {part.state}: {part.reason}" for number, part in enumerate(parts, 1)),
        tuple(effect for part in parts for effect in part.effects),
        # every open part must be decided, and one that no number of seeds decides leaves none to name
        (max(low for low, _ in needs), max(high for _, high in needs))
        if state == "undecided" and len(needs) == len(open_parts)
        else None,
        any(part.preview for part in parts),
        tuple(dict.fromkeys(key for part in parts for key in part.runs)),
        {"parts": [part.details for part in parts]},
    )


def _effect_of_all(
    scores: Scores, test: Test, seeds: Sequence[int], further: Sequence[int], level: float
) -> tuple[Effect, ...]:
    """The effect over all seeds, where others are complete than the study declares: shown, not judged."""
    if not further:
        return ()
    try:
        effect = measure(scores, test, [*seeds, *further], level).effect
    except Unjudgeable:
        return ()
    every = f"all {effect.seeds} seeds" if seeds else f"{effect.seeds} other seeds"
    return (replace(effect, label=f"{effect.label} ({every}, shown only)"),)


def _seeds_needed(measured: Measured) -> tuple[int, int] | None:
    estimate = sum(measured.bounds) / 2
    distances = {
        "better": abs(estimate - measured.threshold),
        "not_worse": abs(estimate + measured.threshold),
        "equal": abs(abs(estimate) - measured.threshold),
    }
    return statistics.seeds_to_decide(measured.interval, distances[measured.rule], most=MOST_SEEDS)


def _reason(test: Test, measured: Measured, state: State, words: str, needed: tuple[int, int] | None) -> str:
    """The verdict in one sentence: what holds, or what is excluded, or why neither; then the numbers."""
    effect = f"{measured.text} at {100 * measured.effect.level:.4g} %"
    if state == "supported":
        return f"{_supported(test, measured)}: {effect}"
    if state == "refuted":
        return f"{_refuted(test, words)}: {effect}"
    if math.isnan(measured.effect.lower):
        return words or "the interval is undefined"
    sentence = f"{words or 'the interval does not settle it'}: {effect}"
    if needed:
        most = f"{MOST_SEEDS} or more" if needed[1] >= MOST_SEEDS else f"{needed[1]}"
        sentence += f"; a new run with {needed[0]} to {most} fresh seeds would probably decide it"
    return sentence


def _supported(test: Test, measured: Measured) -> str:
    if isinstance(test, Cheaper):
        return f"{test.arm} is cheaper" + (f" by more than {test.by:g} times" if test.by > 1 else "")
    if isinstance(test, Statistic) and test.rival is None:
        return f"{test.label} is {'above' if test.better == 'higher' else 'below'} {test.margin:g}"
    margin = measured.effect.margin
    if measured.rule == "better":
        return "an advantage" + (f" above {margin:g}" if margin else "")
    return f"not worse by {margin:g}" if measured.rule == "not_worse" else f"equal within {margin:g}"


def _refuted(test: Test, words: str) -> str:
    if isinstance(test, Cheaper) and words != "reversed":
        return f"{test.arm} is not cheaper by as much as {test.by:g} times"
    if isinstance(test, Statistic) and test.rival is None:
        return f"{test.label} is not {'above' if test.better == 'higher' else 'below'} {test.margin:g}"
    return words


# --- the arms' own values -------------------------------------------------------------------------------------------


def _summaries(scores: Scores) -> list[Summary]:
    """Every arm and outcome at the end of its path, per condition (validation items are for choosing, not shown).

    Of an arm without a declared seed, other seeds.
    """
    summaries = []
    for arm in scores.study.arms:
        seeds, further = scores.seeds([arm.name])
        runs = scores.runs([arm.name], seeds or further)
        for outcome in scores.study.outcomes:
            for where in scores.conditions.get(outcome.name, ()):
                if scores.wheres[where].get("split") == "validation":
                    continue
                ends = {run: int(path[-1]) for run in runs if (path := scores.path(run, outcome.name, where)).size}
                if ends:
                    summaries.append(_summary(scores, arm.name, outcome.name, where, ends))
    return summaries


def _summary(scores: Scores, arm: str, outcome: str, where: int, ends: dict[int, int]) -> Summary:
    places = list(ends.values())
    cells = scores.cells(places)
    numerator, of = scores.numerator[places], scores.of[places]
    answered = ~np.isnan(cells.matrix)
    if cells.items is not None and np.isnan(of).all() and np.isin(cells.matrix[answered], (0.0, 1.0)).all():
        numerator, of = np.nansum(cells.matrix, axis=1), answered.sum(axis=1).astype(float)
    ats = {scores.at_texts[scores.at[place]] for place in places}
    return Summary(
        arm,
        outcome,
        ats.pop() if len(ats) == 1 else "",
        scores.where_texts[where],
        *_own_interval(cells, scores.value[places], float(of.min())),
        seeds=len(places),
        numerator=float(numerator.sum()),
        of=float(of.sum()),
        missing=int(scores.missing[places].sum()),
        runs=scores.keys_of(ends),
    )


def _own_interval(cells: Cells, values: NDArray[np.float64], of: float) -> tuple[float, float, float]:
    """Mean of the runs' values with a 95 % interval over seeds and items; nan where a run is undefined.

    A proportion (`of` answers a run, nan otherwise) stays inside [0, 1]. Independent answers of one run, or of runs that
    agree in everything and so add nothing to one, are a binomial: Wilson's interval, which has a width at 0 and 1, too.
    Answers that all agree, of whatever runs, count as one answer a source.
    """
    with np.errstate(invalid="ignore"):
        estimate = float(values.mean())
    if math.isnan(estimate):
        return math.nan, math.nan, math.nan
    units = ("seed",) if cells.items is None else ("seed", "item") if len(values) > 1 else ("item",)
    interval = statistics.mean_interval(cells.matrix, cells.clusters, units=units)
    half = float(interval.upper - interval.estimate)
    if math.isnan(of):
        return (estimate, estimate - half, estimate + half) if half > 0 else (estimate, math.nan, math.nan)
    sources = of
    if cells.clusters is not None:
        sources = float(np.unique(cells.clusters[~np.isnan(cells.matrix).all(axis=0)]).size)
    one_run = len(values) == 1 or np.array_equal(cells.matrix[1:], cells.matrix[:-1], equal_nan=True)
    alike = np.nanmin(cells.matrix) == np.nanmax(cells.matrix)
    if alike or (one_run and (sources == of or not half > 0)):
        return estimate, *statistics.wilson(estimate * sources, sources)
    return estimate, max(estimate - half, 0.0), min(estimate + half, 1.0)


def _summaries_at_levels(scores: Scores) -> list[Summary]:
    """The judged outcome of both arms of each matched claim, where they cross its level."""
    summaries = []
    for (arm, outcome, at, where), (cells, runs) in scores.at_levels.items():
        undefined = np.isnan(cells.matrix).all(axis=1).any()
        values = np.full(len(cells.matrix), np.nan) if undefined else np.nanmean(cells.matrix, axis=1)
        saturated = cells.items is not None and not undefined and np.isin(np.unique(cells.matrix), (0.0, 1.0)).all()
        own = _own_interval(cells, values, float(cells.matrix.shape[1]) if saturated else math.nan)
        counts = {"seeds": len(values), "numerator": math.nan, "of": math.nan, "missing": cells.missing}
        summaries.append(Summary(arm, outcome, at, where, *own, **counts, runs=runs))
    return summaries


# --- before any run -------------------------------------------------------------------------------------------------


def design_notes(study: "Study", pilot: "Results | None" = None) -> list[str]:
    """Whether the declared design can decide its claims, a sentence for each test.

    With a pilot that has the runs, from its spread; without, in units of the spread that nobody knows yet.
    """
    scores = None if pilot is None else Scores(study, pilot)
    notes = []
    for claim in study.claims:
        if claim.test is not None and claim.judged:
            tests = claim.test.tests if isinstance(claim.test, Both) else (claim.test,)
            notes += [f"{claim.text.rstrip('.')}: {_design(study, test, scores)}." for test in tests]
    return notes


def _design(study: "Study", test: Any, pilot: Scores | None) -> str:
    if isinstance(test, Both):
        return "; ".join(_design(study, each, pilot) for each in test.tests)
    units = getattr(test, "units", ("seed",))
    margin = math.log(test.by) if isinstance(test, Cheaper) else test.margin
    level, seeds = _level(study), study.seeds
    at_level = f"at {100 * level:.4g} %"
    if "seed" in units and seeds < FEWEST_SEEDS:
        return f"cannot be decided: no verdict is given under {FEWEST_SEEDS} seeds, and the study has {seeds}"
    if isinstance(test, Statistic) and (seeds < statistics.FEWEST_SEEDS or "seed" not in units):
        return f"can be decided only with {statistics.FEWEST_CLUSTERS} or more sources of items"
    measured = None if pilot is None else _pilot(pilot, test, level)
    if measured is not None:
        planned = seeds if "seed" in measured.units else measured.interval.seeds
        half = statistics.half_width(measured.interval, seeds=planned)
        if math.isnan(half):
            return f"the pilot of {measured.effect.seeds} has no spread to go by"
        known = f"{seeds} seeds should give ±{half:.3g} {at_level} (spread of a pilot of {measured.effect.seeds})"
        if measured.rule == "better":
            return f"{known}: an advantage must exceed {margin + half:.3g} to be seen"
        return f"{known} against the margin {margin:.3g}, which {'can' if half < margin else 'cannot'} be decided"
    if "seed" not in units:
        finest = margin or 0.05
        items = math.ceil((_spreads(level, math.inf) / finest) ** 2)
        while _spreads(level, items - 1) / math.sqrt(items - 1) > finest:  # of differences from -1 to 1
            items += 1
        return (
            f"{items:,} items with right or wrong answers always give ±{finest:.3g} {at_level}, fewer when most agree"
        )
    reach = _spreads(level, seeds - 1) / math.sqrt(seeds)
    known = f"{seeds} seeds give at best ±{reach:.2g} standard deviations (of the difference between seeds) {at_level}"
    if margin == 0:
        return f"{known}; a smaller advantage stays undecided"
    return f"{known}; the margin {margin:.3g} is decided only where that deviation is below {margin / reach:.3g}"


def _spreads(level: float, df: float) -> float:
    """Half-width of an interval whose standard error is 1."""
    return statistics.interval_of(0.0, 1.0, df, 0.0, math.inf, level, (0, 0, 0)).upper


def _pilot(pilot: Scores, test: Test, level: float) -> Measured | None:
    seeds, further = pilot.seeds(test.references().arms)
    try:
        return measure(pilot, test, [*seeds, *further], level) if seeds or further else None
    except Unjudgeable:
        return None
