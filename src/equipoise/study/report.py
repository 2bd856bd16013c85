"""The report of a study: verdicts first, then everything they rest on, in one HTML file, one Markdown file, one table.

`render` reads a study's declaration, its stored results and their judgement, and writes `report.html`, `report.md` and
`results.parquet`. It decides nothing. It refuses to print a rate that its count cannot produce.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.core import page, plots
from equipoise.core.cost import PEAKS, UNITS, total
from equipoise.core.errors import WorkFailed
from equipoise.core.files import produce_atomic, write_atomic
from equipoise.core.numbers import number
from equipoise.study import summary_text as text
from equipoise.study.claims import KNOWN_IN_ADVANCE, Between, Cheaper, Matched, Statistic, Test
from equipoise.study.scores import columns_of

if TYPE_CHECKING:
    import pyarrow as pa

    from equipoise.study.declare import Outcome, Study
    from equipoise.study.judging import ClaimVerdict, Effect, Judgement, Summary
    from equipoise.study.results import Results, RunInfo

MOST_PLACES = 40  # drawn along one path; more tell the eye nothing and weigh down the page
MOST_NAMES = 2_000  # run folders listed one by one; the others stand in results.parquet
FRONTIERS = 2


def render(study: "Study", results: "Results", judgement: "Judgement", folder: Path) -> Path:
    """Write report.html, report.md, results.parquet and frontier.svg into `folder`; returns the path of report.html.

    Raises WorkFailed when a stored proportion is not attainable from its denominator, before anything is written.
    """
    check_rates(results)
    view = _View(study, results, judgement)
    html = page.page(
        study.name,
        f"What it trades: {study.trades}." if study.trades else "",
        _parts(view),
        kicker="Study report",
        badges=[page.Badge(state, f"{n} {state}") for state, n in text.counts(judgement).items()],
        facts=_facts(view),
        footer="Made by equipoise. Opens offline; nothing on this page is loaded from elsewhere.",
    )
    short = text.markdown(study, results, judgement, view.ends, view.levels)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(tidy(study, results), folder / "results.parquet")
    write_atomic(folder / "report.md", short)
    if pairs := list(_pairs(view)):
        write_atomic(folder / "frontier.svg", plots.to_svg(_frontier(view, *pairs[0])))
    return page.write_page(folder / "report.html", html)


# Numbers


def check_rates(results: "Results") -> None:
    """Raises WorkFailed for the first stored proportion that is no whole count out of its n, naming its run."""
    table = results.measurements
    value, numerator, of, missing = (_numpy(table, name) for name in ("value", "numerator", "of", "missing"))
    counted = np.isfinite(of)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = (numerator == np.round(numerator)) & (of == np.round(of))
        inside = (numerator >= 0) & (numerator <= of) & (of > 0)
        equal = np.abs(value - numerator / of) <= 1e-9
    fine = (whole & inside & equal) | ((of == 0) & np.isnan(value))
    wrong = np.flatnonzero((counted & ~fine) | (missing < 0))
    if wrong.size:
        row = {name: table[name][int(wrong[0])].as_py() for name in table.column_names}
        raise WorkFailed(
            f"Run {results.runs[row['run']].key}: {row['outcome']} = {row['value']:g} is not attainable as "
            f"{row['numerator']:g} of {row['of']:g} ({row['missing']} missing){_at_words(row['at'])}. The report prints "
            "no such rate: measure a whole count with of=, or a mean of scores without it."
        )
    if results.items.num_rows:
        _check_items(results)


def _check_items(results: "Results") -> None:
    """Raises WorkFailed for a value without a count of its own that its right and wrong answers do not give.

    It would stand beside their count, and the verdicts, which go by the answers, would be about another number.
    """
    names: dict[str, dict[str, int]] = {"outcome": {}, "where": {}, "at": {}}
    every_run = np.ones(len(results.runs) + 1, bool)
    measured, items = (columns_of(table, every_run, names) for table in (results.measurements, results.items))

    def places(of: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.ravel_multi_index(
            [of["run"], *(of[name] for name in names)],
            [every_run.size, *(max(len(each), 1) for each in names.values())],
        )

    order = np.argsort(places(items), kind="stable")
    known, starts = np.unique(places(items)[order], return_index=True)
    score = items["score"][order]
    right, answered = (np.add.reduceat(each, starts) for each in (np.nan_to_num(score), np.isfinite(score) * 1.0))
    plain = np.logical_and.reduceat(np.isin(score, (0.0, 1.0)) | np.isnan(score), starts) & (answered > 0)
    at = np.minimum(np.searchsorted(known, places(measured)), known.size - 1)
    bare = np.isnan(measured["of"]) & np.isfinite(measured["value"]) & (known[at] == places(measured)) & plain[at]
    wrong = np.flatnonzero(bare & ~np.isclose(measured["value"] * answered[at], right[at], rtol=0, atol=1e-6))
    if wrong.size:
        row = {name: results.measurements[name][int(wrong[0])].as_py() for name in ("run", "outcome", "value", "at")}
        place = at[wrong[0]]
        raise WorkFailed(
            f"Run {results.runs[row['run']].key}: {row['outcome']} = {row['value']:g}, but {right[place]:g} of its "
            f"{answered[place]:g} answers are right{_at_words(row['at'])}. The report prints no such rate: let run.items "
            "derive it, or give what is no share of right answers a name of its own."
        )


def tidy(study: "Study", results: "Results") -> "pa.Table":
    """All measurements as one table that needs nothing beside it: a row names its run, settings, role, whether chosen.

    The dial of the study is a column of its own. The schema's metadata, key `equipoise`, holds study, options,
    environment, costs and states of all runs, also of those without a row, as JSON.
    """
    import pyarrow as pa

    table, runs = results.measurements, results.runs
    index = pa.array(_numpy(table, "run"), pa.int32())

    def of_run(values: Iterable[Any], type_: "pa.DataType") -> "pa.DictionaryArray | pa.Array":
        return pa.array(list(values), type_).take(index)

    chosen = [run.role == "test" and results.chosen.get(run.arm, run.point) == run.point for run in runs]
    places = _dial_values(table, study.dial)
    columns: dict[str, Any] = {
        "run": of_run((run.key for run in runs), pa.string()),
        "arm": of_run((run.arm for run in runs), pa.string()),
        "kind": of_run((run.kind for run in runs), pa.string()),
        "point": table["point"],
        "settings": of_run((json.dumps(run.settings, sort_keys=True) for run in runs), pa.string()),
        "seed": table["seed"],
        "role": of_run((run.role for run in runs), pa.string()),
        "chosen": of_run(chosen, pa.bool_()),
        "outcome": table["outcome"].cast(pa.string()),
        study.dial if study.dial not in table.column_names else f"at_{study.dial}": pa.array(places, from_pandas=True),
        **{name: table[name] for name in ("value", "numerator", "of", "missing")},
        **{name: table[name].cast(pa.string()) for name in ("at", "where")},
        "order": table["order"],
    }
    about = {
        "study": study.name,
        "paper": study.paper,
        "options": study.options,
        "environment": results.environment,
        "chosen": results.chosen,
        "runs": [
            {
                "run": r.key,
                "arm": r.arm,
                "seed": r.seed,
                "role": r.role,
                "state": r.state,
                "error": r.error,
                "cost": r.cost,
            }
            for r in runs
        ],
    }
    return pa.table(columns).replace_schema_metadata({"equipoise": json.dumps(about, sort_keys=True, default=str)})


def write_table(table: "pa.Table", path: Path) -> Path:
    """Write a table as Parquet, whole or not at all."""
    import pyarrow.parquet as parquet

    produce_atomic(path, lambda target: parquet.write_table(table, target, compression="zstd"))
    return path


def _numpy(table: "pa.Table", name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    return column.to_numpy(zero_copy_only=False)


def _codes(table: "pa.Table", name: str) -> tuple[np.ndarray, list[str]]:
    """A text column as integer codes and their values; nulls count as the empty text."""
    import pyarrow as pa

    column = table[name].combine_chunks()
    if not pa.types.is_dictionary(column.type):
        column = column.fill_null("").dictionary_encode()
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks()
    values = ["" if v is None else v for v in column.dictionary.to_pylist()]
    if column.null_count:
        return np.asarray(column.indices.fill_null(len(values))), [*values, ""]
    return np.asarray(column.indices), values


def _mapping(stored: "str | Mapping[str, Any] | None") -> dict[str, Any]:
    """`at` and `where` as a dictionary, however they are kept."""
    if not stored:
        return {}
    value = json.loads(stored) if isinstance(stored, str) else stored
    return dict(value) if isinstance(value, Mapping) else {}


def _dial_values(table: "pa.Table", dial: str) -> np.ndarray:
    codes, values = _codes(table, "at")
    places = np.array([_place(_mapping(value), dial) for value in values] or [math.nan])
    return places[codes] if len(codes) else np.empty(0)


def _place(at: Mapping[str, Any], dial: str) -> float:
    value = at.get(dial)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _at_words(stored: str | None) -> str:
    at = _mapping(stored)
    return f" at {text.words(at)}" if at else ""


def _mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean over seeds with its t interval; the bounds are nan under two values."""
    from scipy.special import stdtrit

    mean = float(values.mean()) if values.size else math.nan
    if values.size < 2:
        return mean, math.nan, math.nan
    half = float(stdtrit(values.size - 1, (1 + level) / 2) * values.std(ddof=1) / math.sqrt(values.size))
    return mean, mean - half, mean + half


# What the report looks at


@dataclass(frozen=True)
class _Track:
    """One outcome under one set of conditions: for each arm, place on the path and seed, its value."""

    outcome: "Outcome"
    condition: str
    values: dict[str, dict[float, dict[int, float]]]

    @property
    def title(self) -> str:
        return self.outcome.name + (f" ({self.condition})" if self.condition else "")

    @property
    def axis(self) -> plots.Axis:
        o = self.outcome
        return plots.Axis(self.title, better=o.better, chance=o.chance, unit=o.unit, log=o.log)

    @property
    def places(self) -> list[float]:
        return sorted({place for arm in self.values.values() for place in arm if not math.isnan(place)})

    def ends(self, arm: str) -> dict[int, float]:
        """Seed -> value at the end of the path, or at the single point."""
        by_place = self.values.get(arm, {})
        known = [place for place in by_place if not math.isnan(place)]
        return by_place[max(known)] if known else by_place.get(math.nan, {})


class _View:
    """Study, results and judgement with what several parts of the page need, computed once."""

    def __init__(self, study: "Study", results: "Results", judgement: "Judgement") -> None:
        self.study, self.results, self.judgement = study, results, judgement
        self.marks = plots.marks({arm.name: arm.kind for arm in study.arms})
        self.judged = [
            run
            for run in results.runs
            if run.role == "test" and run.state == "complete" and results.chosen.get(run.arm, run.point) == run.point
        ]
        self.keys = tuple(run.key for run in self.judged)
        self.tracks = _tracks(study, results, self.judged)
        self.ends = [s for s in judgement.summaries if self.level(s) is None]
        self.levels: dict[text.Level, list[Summary]] = {}
        for s in judgement.summaries:
            if (level := self.level(s)) is not None and math.isfinite(s.estimate):
                self.levels.setdefault(text.Level(s.outcome, *level), []).append(s)

    def track(self, outcome: str) -> _Track | None:
        """The plainest track of an outcome: without conditions, or with those that claims are about."""
        found = [track for track in self.tracks if track.outcome.name == outcome]
        claimed = [text.words(dict(where)) for test in _tests(self) if (where := getattr(test, "where", None))]
        order = {condition: place for place, condition in reversed(list(enumerate(claimed)))}

        def key(track: _Track) -> tuple[bool, int, int]:
            return bool(track.condition), order.get(track.condition, len(order)), len(track.condition)

        return min(found, key=key, default=None)

    def level(self, summary: "Summary") -> tuple[str, float] | None:
        """The outcome that is held equal, and at what, of a value at a matched level; None for the end of a path."""
        names = {outcome.name for outcome in self.study.outcomes}
        return next(((key, at) for key, at in _mapping(summary.at).items() if key in names), None)

    def end(self, arm: str, outcome: str) -> "Summary | None":
        return next((s for s in self.ends if s.arm == arm and s.outcome == outcome), None)


def _tracks(study: "Study", results: "Results", judged: Sequence["RunInfo"]) -> list[_Track]:
    """The measurements of the judged runs by outcome and condition; of outcomes with splits, the test split.

    Of a long path the places that are drawn, and each arm's last.
    """
    import pyarrow as pa

    table = results.measurements
    wanted = np.zeros(len(results.runs) + 1, bool)
    position = {id(run): i for i, run in enumerate(results.runs)}
    wanted[[position[id(run)] for run in judged]] = True
    table = table.filter(pa.array(wanted[_numpy(table, "run")]))
    table = table.take(np.argsort(_numpy(table, "order"), kind="stable"))
    outcome_codes, outcomes = _codes(table, "outcome")
    where_codes, wheres = _codes(table, "where")
    at_codes, ats = _codes(table, "at")
    run_codes, values = _numpy(table, "run"), _numpy(table, "value")

    where = [_mapping(stored) for stored in wheres]
    at = [_mapping(stored) for stored in ats]
    places = np.array([_place(each, study.dial) for each in at] or [math.nan])[at_codes]
    # The cost so far is no condition of its own: it would tear a path along the steps into points.
    aside = [{key: value for key, value in each.items() if key != study.dial and key not in UNITS} for each in at]
    known_asides = list(map(dict, dict.fromkeys(tuple(each.items()) for each in aside)))
    aside_codes = np.array([known_asides.index(each) for each in aside] or [0])[at_codes]

    found: dict[tuple[str, str], dict[str, dict[float, dict[int, float]]]] = {}
    for i, outcome in enumerate(outcomes):
        rows = np.flatnonzero(outcome_codes == i)
        used = np.unique(where_codes[rows])
        if any(where[code].get("split") == "test" for code in used):
            used = [code for code in used if where[code].get("split") == "test"]
        for code in used:
            for j, other in enumerate(known_asides):
                own = rows[(where_codes[rows] == code) & (aside_codes[rows] == j)]
                condition = text.words({key: value for key, value in where[code].items() if key != "split"} | other)
                arms = found.setdefault((outcome, condition), {}) if own.size else {}
                for row in own[_drawn(places[own], run_codes[own], results.runs)]:
                    run, place = results.runs[run_codes[row]], float(places[row])
                    by_place = arms.setdefault(run.arm, {})
                    by_place.setdefault(math.nan if math.isnan(place) else place, {})[run.seed] = float(values[row])
    return [
        _Track(outcome, condition, arms)
        for outcome in study.outcomes
        for (name, condition), arms in found.items()
        if name == outcome.name
    ]


def _drawn(places: np.ndarray, run_codes: np.ndarray, runs: Sequence["RunInfo"]) -> np.ndarray:
    """Which of the rows of one outcome are needed: those at the places that are drawn, and the last of each arm."""
    known = np.unique(places[~np.isnan(places)])
    if known.size <= MOST_PLACES:
        return np.ones(places.size, bool)
    keep = np.isnan(places) | np.isin(places, _thin(known.tolist()))
    arms = np.array([run.arm for run in runs])[run_codes]
    for arm in np.unique(arms):
        own = arms == arm
        keep |= own & (places == np.nanmax(places[own]))
    return keep


# The page


def _facts(view: _View) -> list[tuple[str, str]]:
    study, runs = view.study, view.results.runs
    seeds = {run.seed for run in view.judged}
    tested = [run for run in runs if run.role == "test"]
    complete = sum(run.state == "complete" for run in tested)
    facts = [
        ("Paper", study.paper),
        ("Seeds", f"{len(seeds)} of {study.seeds}"),
        ("Runs", f"{complete} of {len(tested)} complete"),
        ("Equal budget", study.budget),
    ]
    return [(name, value) for name, value in facts if value]


def _parts(view: _View) -> list[page.Part]:
    parts: list[page.Part] = []
    if any(text.counted(verdict) and verdict.preview for verdict in view.judgement.verdicts):
        parts.append(page.Note(text.preview_sentence(view.study, view.results), "Preview."))
    sections = (
        _verdicts(view),
        _frontiers(view),
        _paths(view),
        _outcomes(view),
        _costs(view),
        _selection(view),
        _known_in_advance(view),
        _method_notes(view),
        _runs(view),
        _settings(view),
    )
    return [*parts, *(section for section in sections if section is not None)]


def _verdicts(view: _View) -> page.Section:
    judged = [v for v in view.judgement.verdicts if text.counted(v)]
    order = sorted(judged, key=lambda verdict: verdict.state == "untested")
    cards = tuple(_card(view, verdict) for verdict in order)
    lead = (
        "Each claim was declared before any result. It is supported or refuted only where the whole interval lies on "
        "one side of its margin; anything else is undecided."
    )
    return page.Section("Verdicts", cards or (page.Text("The study declares no claims."),), lead if cards else "")


def _card(view: _View, verdict: "ClaimVerdict", badge: page.Badge | None = None) -> page.Card:
    claim, charts = verdict.claim, list[plots.Chart]()
    badge = badge or page.Badge(verdict.state, f"{verdict.state} (preview)" if verdict.preview else "")
    reason = f"Not tested here: {claim.untested}" if claim.test is None else verdict.reason
    parts: list[page.Part] = [page.Text(text.sentence(reason))] if reason else []
    for effect in verdict.effects:
        test = text.effect_test(effect, claim)
        if len(verdict.effects) > 1 or not text.states_effect(verdict):
            parts.append(page.Text(f"{effect.label}: {text.effect_numbers(effect, test)}."))
        if margin := text.margin_sentence(effect, test):
            parts.append(page.Text(margin))
        if all(math.isfinite(v) for v in (effect.estimate, effect.lower, effect.upper)):
            charts.append(_effect_chart(effect, test).with_runs(verdict.runs))
            parts.append(page.Figure(charts[-1], bare=True))
    if claim.test is not None:
        if view.study.scale:
            parts.append(page.Text(f"At this scale: {view.study.scale}", quiet=True))
        inside: list[page.Part] = [page.Text(text.sentence(f"test: {claim.test.describe()}"))]
        inside += [page.Figure(chart).table for chart in charts]
        inside += _details(verdict.details, view.study.dial)
        if verdict.runs:
            inside.append(_names("Run folders", verdict.runs))
        parts.append(page.Details("The test, its numbers and run folders", tuple(inside)))
    return page.Card(badge, claim.text, f"Source: {claim.source}", tuple(parts))


def _details(details: Mapping[str, Any], dial: str) -> list[page.Part]:
    """What judging kept besides the effect: per-run crossings as a table, the rest as names and values."""
    parts: list[page.Part] = []
    crossings = details.get("crossings")
    if isinstance(crossings, Mapping) and crossings:
        rows = tuple((run, "not reached" if at is None else number(at)) for run, at in crossings.items())
        columns = (page.Column("run folder"), page.Column(details.get("dial", dial), True))
        parts.append(page.Table(f"Where each run crossed {details.get('matched', 'the level')}", columns, rows))
    rest = {
        key.replace("_", " "): number(value) if isinstance(value, float) else value
        for key, value in details.items()
        if key not in ("crossings", "corrections", "increasing", "parts")
    }
    if rest:
        parts.append(page.SettingsTable(rest))
    for inner in details.get("parts", ()):
        parts += _details(inner, dial)
    return parts


def _effect_chart(effect: "Effect", test: Test | None) -> plots.Chart:
    rule, margin = getattr(test, "rule", "better"), effect.margin
    values = (effect.estimate, effect.lower, effect.upper, *effect.per_seed)
    if isinstance(test, Cheaper):  # ratios say more than their logarithms
        values = tuple(math.exp(v) for v in values)
        axis = plots.Axis(f"{test.cost} of {test.rival} in those of {test.arm}", unit="times", log=True)
        uprights = {"the same": 1.0} | ({"margin": test.by} if test.by > 1 else {})
    elif isinstance(test, Statistic) and test.rival is None:
        axis, uprights = plots.Axis(test.label), {"margin": margin}
    else:
        axis, uprights = plots.Axis("difference", unit=effect.unit), {"no difference": 0.0}
        if math.isfinite(margin) and margin:
            signs = {"better": (1,), "not_worse": (-1,), "equal": (-1, 1)}[rule]
            uprights |= {"margin" + " " * i: sign * margin for i, sign in enumerate(signs)}
    row = plots.ChartRow(effect.label, values[0], values[1], values[2], values[3:])
    return plots.intervals(effect.label, [row], x=axis, lines_at=uprights, sides=_sides(test))


def _sides(test: Test | None) -> tuple[str, str] | None:
    """Whom a negative and a positive effect favour."""
    if isinstance(test, Between):
        return text.words(test.where_b), text.words(test.where_a)
    rival, arm = getattr(test, "rival", None), getattr(test, "arm", None)
    return (rival, arm) if rival and arm else None


def _names(lead: str, names: Sequence[str]) -> page.Names:
    shown = tuple(names[:MOST_NAMES])
    more = len(names) - len(shown)
    return page.Names(
        f"{lead} ({len(names):,})", (*shown, *([f"and {more:,} more in results.parquet"] if more else []))
    )


def _tests(view: _View) -> list[Test]:
    return [test for verdict in view.judgement.verdicts for test in text.tests(verdict.claim)]


def _pairs(view: _View) -> dict[tuple[str, str], bool]:
    """Outcomes set against each other, and whether a claim holds the first equal; without one, the first two measured."""
    pairs = {(test.outcome, test.judge): True for test in _tests(view) if isinstance(test, Matched)}
    measured = list(dict.fromkeys(track.outcome.name for track in view.tracks))
    if not pairs and len(measured) > 1:
        pairs = {(measured[0], measured[1]): False}
    known = {pair: held for pair, held in pairs.items() if all(view.track(name) for name in pair)}
    return dict(list(known.items())[:FRONTIERS])


def _frontiers(view: _View) -> page.Section | None:
    parts: list[page.Part] = []
    for (x_name, y_name), held_equal in _pairs(view).items():
        parts.append(page.Figure(_frontier(view, x_name, y_name)))
        parts += _matched_figures(view, x_name, y_name) if held_equal else []
    if not parts:
        return None
    lead = "The same runs seen twice: after the same budget, and where each arm had reached the same level."
    if not any(isinstance(test, Matched) for test in _tests(view)):
        lead = "After the same budget. No claim of this study holds one outcome equal, so there is no matched view."
    return page.Section("What was traded", tuple(parts), lead)


def _frontier(view: _View, x_name: str, y_name: str) -> plots.Chart:
    x, y = view.track(x_name), view.track(y_name)
    assert x is not None and y is not None
    chart = plots.frontier(
        f"{y_name} against {x_name}, at equal budget ({view.study.budget})",
        view.marks,
        _frontier_points(view, x, y),
        x=x.axis,
        y=y.axis,
        seeds=[
            plots.Point(m.name, x.ends(m.name)[seed], y.ends(m.name)[seed], seed)
            for m in view.marks
            for seed in sorted(x.ends(m.name).keys() & y.ends(m.name).keys())
        ],
        paths=[
            plots.Point(m.name, _mean(x.values[m.name][place]), _mean(y.values[m.name][place]))
            for m in view.marks
            for place in _thin(sorted(x.values.get(m.name, {}).keys() & y.values.get(m.name, {}).keys()))
        ],
        note="Large marks: the end of the path, mean over seeds, with 95 % intervals. Dots: single seeds. Thin "
        "lines: the mean path. Point at an arm in the legend to bring it forward, press to keep it.",
    )
    return chart.with_runs(view.keys)


def _frontier_points(view: _View, x: _Track, y: _Track) -> list[plots.Point]:
    points = []
    for m in view.marks:
        across, up = _end(view, m.name, x), _end(view, m.name, y)
        if math.isfinite(across[0]) and math.isfinite(up[0]):
            points.append(plots.Point(m.name, across[0], up[0], None, across[1:], up[1:]))
    return points


def _end(view: _View, arm: str, track: _Track) -> tuple[float, float, float]:
    """Estimate and interval at the end of the path: as judged, or over seeds where judging gave none."""
    summary = None if track.condition else view.end(arm, track.outcome.name)
    if summary is not None:
        return summary.estimate, summary.lower, summary.upper
    return _mean_interval(np.array(list(track.ends(arm).values())))


def _matched_figures(view: _View, x_name: str, y_name: str) -> list[page.Part]:
    """The judged outcome of the arms that a claim compares at an equal level of the other, one figure per level."""
    track = view.track(y_name)
    levels = {level: rows for level, rows in view.levels.items() if (level.matched, level.judged) == (x_name, y_name)}
    if track is None or not levels:
        return [page.Text(f"There is no view at equal {x_name}: no claim of this study could be judged there.")]
    parts: list[page.Part] = []
    for level, rows in levels.items():
        seeds = text.reached(rows, view.ends)
        counted = {arm: count for arm, count in seeds.items() if " of " in count}
        chosen = (
            " Only seeds in which both arms of a claim came to the level ("
            + ", ".join(f"{arm} {count}" for arm, count in counted.items())
            + "): chosen by their fate, they decide nothing."
        )
        chart = plots.intervals(
            level.title,
            [plots.ChartRow(s.arm, s.estimate, s.lower, s.upper, (), f"{seeds[s.arm]} seeds") for s in rows],
            x=track.axis,
            arms=view.marks,
            note="The arms of the claims that hold this level equal, each at its own crossing: found on validation "
            "items, measured on test items. Mean with 95 % interval." + (chosen if counted else ""),
        )
        parts.append(page.Figure(chart.with_runs(dict.fromkeys(key for s in rows for key in s.runs))))
    return parts


def _mean(by_seed: Mapping[int, float]) -> float:
    return float(np.mean(list(by_seed.values()))) if by_seed else math.nan


def _thin(places: Sequence[float]) -> list[float]:
    """At most MOST_PLACES of them, the first and the last always among them."""
    if len(places) <= MOST_PLACES:
        return list(places)
    return [places[round(i * (len(places) - 1) / (MOST_PLACES - 1))] for i in range(MOST_PLACES)]


def _paths(view: _View) -> page.Section | None:
    figures, shown = [], set()
    for track in view.tracks:
        places = set(_thin(track.places))
        if len(places) < 2:
            continue
        points = []
        for m in view.marks:
            for place in sorted(set(track.values.get(m.name, {})) & places):
                mean, low, high = _mean_interval(np.array(list(track.values[m.name][place].values())))
                points.append(plots.Point(m.name, place, mean, None, (low, high), (low, high)))
        chart = plots.paths(track.title, view.marks, points, x=plots.Axis(view.study.dial), y=track.axis)
        figures.append(page.Figure(chart.with_runs(view.keys), legend=False))
        shown |= {point.arm for point in points}
    if not figures:
        return None
    lead = "Mean over seeds; bands are 95 % t intervals of the mean at each place, not corrected for their number."
    legend = tuple(m for m in view.marks if m.name in shown)
    return page.Section("Along the path", (page.Grid(tuple(figures), legend),), lead)


def _outcomes(view: _View) -> page.Section | None:
    tables = []
    for outcome in view.study.outcomes:
        rows = [s for s in view.ends if s.outcome == outcome.name]
        if not rows:
            continue
        cells, conditions = [], {text.words(_mapping(s.where)) for s in rows}
        for s, (value, between, counted) in zip(rows, text.summary_values(rows), strict=True):
            detail = text.words(_mapping(s.where)) if len(conditions) > 1 else _kind(view, s.arm)
            place = text.words(_mapping(s.at)) or "–"
            cells.append(
                (page.Cell(s.arm, detail), value, between, counted or "–", f"{s.missing:,}", str(s.seeds), place)
            )
        columns = (
            page.Column("arm"),
            page.Column("value", True, outcome.unit or ""),
            page.Column("95 % interval", True, "over seeds"),
            page.Column("counted", True, "all seeds"),
            page.Column("missing", True),
            page.Column("seeds", True),
            page.Column("at", True),
        )
        tables.append(page.Table(text.outcome_title(outcome), columns, tuple(cells), outcome.description))
    if not tables:
        return None
    lead = "At the end of the path, on test items. A count is given where the outcome is a proportion."
    return page.Section("Outcomes", tuple(tables), lead)


def _kind(view: _View, arm: str) -> str:
    return next((m.kind for m in view.marks if m.name == arm and m.kind != "method"), "")


def _costs(view: _View) -> page.Section | None:
    runs = [run for run in view.judged if run.cost.get("work")]
    names = list(dict.fromkeys(name for run in runs for phase in run.cost["work"].values() for name in phase))
    if not names:
        return None
    names.sort(key=lambda name: (name != view.study.budget, name != "seconds", name in PEAKS))
    figures = [page.Figure(_cost_chart(view, runs, name).with_runs(view.keys)) for name in names[:4]]
    phases = list(dict.fromkeys(phase for run in runs for phase in run.cost["work"]))
    rows = []
    for m in view.marks:
        for phase in phases:
            own = [run for run in runs if run.arm == m.name and phase in run.cost["work"]]
            if own:
                amounts = [_mean_cost(own, "work", phase, name) for name in names]
                rows.append(
                    (m.name, phase, str(len(own)), *(_amount(name, a) for name, a in zip(names, amounts, strict=True)))
                )
    columns = (page.Column("arm"), page.Column("phase"), page.Column("runs", True))
    columns += tuple(page.Column(_title(name), True, _unit(name)) for name in names)
    per_run = page.Table("Work per run, mean over the judged runs", columns, tuple(rows))
    return page.Section(
        "Costs",
        (page.Grid(tuple(figures)), per_run, _whole_cost(view)),
        "Work is what a result needed; spent is what was paid over all attempts, also those that were lost.",
    )


def _unit(name: str) -> str:
    """The unit to print beside a cost whose name does not say it."""
    unit = UNITS.get(name, "")
    return "MiB" if unit == "bytes" else "" if unit in name or name == "seconds" else unit


def _scaled(name: str, value: float) -> float:
    return value / 2**20 if UNITS.get(name) == "bytes" else value


def _amount(name: str, value: float) -> str:
    value = _scaled(name, value)
    return "–" if math.isnan(value) else number(round(value) if abs(value) >= 100 else value)


def _title(name: str) -> str:
    return name.replace("_bytes", "_memory").replace("_", " ")


def _mean_cost(runs: Sequence["RunInfo"], book: str, phase: str, name: str) -> float:
    known = [run.cost[book][phase][name] for run in runs if name in run.cost.get(book, {}).get(phase, {})]
    return float(np.mean(known)) if known else math.nan


def _cost_chart(view: _View, runs: Sequence["RunInfo"], name: str) -> plots.Chart:
    bars = []
    for m in view.marks:
        own = [run for run in runs if run.arm == m.name]
        if name in PEAKS and own:  # peaks of phases do not add up
            peaks = [[total(run.cost.get(book, {})).get(name, math.nan) for run in own] for book in ("work", "spent")]
            bars.append(plots.ChartBar(m.name, "peak", *(_scaled(name, float(np.mean(p))) for p in peaks)))
            continue
        for phase in dict.fromkeys(phase for run in own for phase in run.cost["work"]):
            work = _mean_cost(own, "work", phase, name)
            if math.isfinite(work):
                bars.append(plots.ChartBar(m.name, phase, work, _mean_cost(own, "spent", phase, name)))
    phases = list(dict.fromkeys(bar.phase for bar in bars))
    note = f"Dark to light: {', '.join(phases)}." if len(phases) > 1 else ""
    axis = plots.Axis(_title(name), unit=_unit(name))
    return plots.costs(f"{_title(name).capitalize()} per run", view.marks, bars, x=axis, note=note)


def _whole_cost(view: _View) -> page.Table:
    groups = {
        "preparations": view.results.preparations,
        "tuning runs": [run for run in view.results.runs if run.role == "tuning"],
        "test runs": [run for run in view.results.runs if run.role == "test"],
    }
    sums: dict[str, dict[str, float]] = {}
    for group, runs in groups.items():
        for run in runs:
            for name, amount in total(run.cost.get("spent", {})).items():
                if name not in PEAKS:
                    sums.setdefault(group, {})[name] = sums.get(group, {}).get(name, 0) + amount
    names = list(dict.fromkeys(name for amounts in sums.values() for name in amounts))
    columns = (page.Column("part"), page.Column("runs", True))
    columns += tuple(page.Column(_title(name), True, _unit(name)) for name in names)
    rows = tuple(
        (group, str(len(groups[group])), *(_amount(name, amounts.get(name, math.nan)) for name in names))
        for group, amounts in sums.items()
    )
    return page.Table("Spent by the whole study, all attempts", columns, rows)


def _selection(view: _View) -> page.Section:
    study, selected = view.study, view.results.selection
    fixed = tuple(f"{arm.name} has one setting: {arm.fixed}" for arm in study.arms if arm.fixed)
    if study.select is None or not selected:
        lead = "No setting was chosen by results: every arm ran with the settings that it was declared with."
        return page.Section("How settings were chosen", (page.Bullets(fixed),) if fixed else (), lead)
    most = max(len(arm.points()) for arm in study.arms)
    how = f"the best {study.select.outcome} on the {study.select.split} split"
    if study.select.matched:
        how += f" where {study.select.matched} reaches {study.select.level}"
    lead = (
        f"Each arm tried {text.plural(most, 'setting')} on {text.plural(study.select.seeds, 'tuning seed')}, none of them "
        f"a test seed; chosen was {how}."
    )
    rows = tuple(
        (
            s.arm,
            _varying(study, s.arm, s.settings),
            number(s.score),
            f"{s.reached} of {s.seeds}" if study.select.matched else str(s.seeds),
            page.Badge("chosen") if s.chosen else "",
        )
        for s in selected
    )
    columns = (
        page.Column("arm"),
        page.Column("setting"),
        page.Column(f"{study.select.outcome} when tuning", True),
        page.Column("reached" if study.select.matched else "seeds", True),
        page.Column("choice"),
    )
    emphasised = frozenset(i for i, s in enumerate(selected) if s.chosen)
    table = page.Table("Every setting tried", columns, rows, emphasised=emphasised)
    return page.Section("How settings were chosen", (table, *([page.Bullets(fixed)] if fixed else [])), lead)


def _varying(study: "Study", arm: str, settings: Mapping[str, Any]) -> str:
    """The settings of a grid point that its arm tunes."""
    keys = next((list(a.grid) for a in study.arms if a.name == arm), [])
    return ", ".join(f"{key} {settings[key]}" for key in keys if key in settings) or "as declared"


def _known_in_advance(view: _View) -> page.Section | None:
    apart = [v for v in view.judgement.verdicts if not text.counted(v)]
    if not apart:
        return None
    cards = tuple(
        _card(
            view,
            verdict,
            page.Badge("plain", "known in advance" if verdict.claim.source == KNOWN_IN_ADVANCE else "exploratory"),
        )
        for verdict in apart
    )
    lead = (
        "Effects without a verdict: what had been seen before the study was declared, and what was declared as "
        "exploratory. They take no share of the error rate and prove nothing by themselves."
    )
    return page.Section("Known in advance and exploratory", cards, lead)


def _method_notes(view: _View) -> page.Section | None:
    parts = []
    if view.judgement.design:
        parts.append(
            page.Section("What this design could decide, said before the runs", (page.Bullets(view.judgement.design),))
        )
    notes = tuple(dict.fromkeys((*view.judgement.notes, *view.results.notes)))
    if notes:
        parts.append(page.Section("What to keep in mind", (page.Bullets(notes),)))
    if view.study.without_control:
        parts.append(page.Text(f"Without the usual controls: {view.study.without_control}"))
    return page.Section("Limits", tuple(parts)) if parts else None


def _runs(view: _View) -> page.Section:
    runs = view.results.runs
    open_runs = [run for run in runs if run.state != "complete"]
    parts: list[page.Part] = []
    if open_runs:
        rows = tuple(
            (run.key, run.arm, str(run.seed), run.role, page.Badge("failed", run.state), run.error or "–")
            for run in open_runs[:MOST_NAMES]
        )
        columns = tuple(
            page.Column(name, name == "seed") for name in ("run folder", "arm", "seed", "role", "state", "error")
        )
        parts.append(page.Table("Runs that are not complete, and so not judged", columns, rows))
    for role in ("test", "tuning"):
        done = [run.key for run in runs if run.role == role and run.state == "complete"]
        if done:
            parts.append(
                page.Details(f"{text.plural(len(done), f'complete {role} run')}", (_names("Run folders", done),))
            )
    complete = len(runs) - len(open_runs)
    lead = f"{complete} of {text.plural(len(runs), 'run')} complete" + ("." if open_runs else ", none failed.")
    return page.Section("Runs", tuple(parts), lead)


def _settings(view: _View) -> page.Section:
    study, environment = view.study, dict(view.results.environment)
    command = environment.pop("command", None)
    columns = (page.Column("arm"), page.Column("kind"), page.Column("settings of the judged runs"))
    rows = tuple((arm.name, arm.kind, _arm_settings(view, arm.name)) for arm in study.arms)
    parts: list[page.Part] = []
    if study.options:
        parts.append(page.Section("Options of the study", (page.SettingsTable(study.options),)))
    parts.append(page.Table("Arms", columns, rows))
    if environment:
        parts.append(page.Section("Environment", (page.SettingsTable(environment),)))
    if command:
        words = command if isinstance(command, str) else " ".join(map(str, command))
        parts.append(page.Section("The command that made this", (page.Command(words),)))
    return page.Section("Settings", tuple(parts))


def _arm_settings(view: _View, arm: str) -> str:
    settings = next((run.settings for run in view.judged if run.arm == arm), None)
    if settings is None:
        return "no judged run"
    return ", ".join(f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in settings.items()) or "none"
