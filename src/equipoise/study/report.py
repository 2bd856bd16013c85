"""The report of a study: verdicts first, then everything they rest on, in one HTML file, one Markdown file, one table.

`render` reads a study's declaration, its stored results and their judgement, and writes `report.html`, `report.md`,
`results.parquet` and `verdicts.json`. It decides nothing. It refuses to print a rate that its count cannot produce.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.core import page, plots
from equipoise.core.cost import PEAKS, UNITS, total
from equipoise.core.files import write_atomic
from equipoise.core.numbers import number
from equipoise.study import summary_text as text
from equipoise.study.claims import KNOWN_IN_ADVANCE, Between, Cheaper, Matched, Statistic, Test
from equipoise.study.table import check_rates, mapping, tidy, write_table
from equipoise.study.tracks import Track, aside_of, mean_interval, thin, tracks_of

if TYPE_CHECKING:
    from equipoise.study.declare import Outcome, Study
    from equipoise.study.judging import ClaimVerdict, Effect, Judgement, Summary
    from equipoise.study.results import Results, RunInfo

MOST_NAMES = 2_000  # run folders listed one by one; the others stand in results.parquet
FRONTIERS = 2
_MEANS = (
    "Large marks: the end of the path, mean over seeds, with 95 % intervals. Dots: seeds. Thin lines: the mean path. "
)


def render(study: "Study", results: "Results", judgement: "Judgement", folder: Path) -> Path:
    """Write report.html, report.md, results.parquet, verdicts.json and frontier.svg into `folder`; returns the page's path.

    Raises WorkFailed when a stored proportion is not attainable from its denominator, before anything is written.
    """
    check_rates(results)
    view = _View(study, results, judgement)
    html = page.page(
        study.name,
        text.about(study),
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
    write_atomic(
        folder / "verdicts.json", text.verdicts_json({study.name: text.published_entry(study, results, judgement)})
    )
    if pairs := list(_pairs(view)):
        write_atomic(folder / "frontier.svg", plots.to_svg(_frontier(view, *pairs[0])))
    return page.write_page(folder / "report.html", html)


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
        self.one_seed = len({run.seed for run in self.judged}) == 1
        self.tracks = tracks_of(study, results, self.judged)
        self.ends = [s for s in judgement.summaries if self.level(s) is None]
        self.levels: dict[text.Level, list[Summary]] = {}
        for s in judgement.summaries:
            if (level := self.level(s)) is not None and math.isfinite(s.estimate):
                self.levels.setdefault(text.Level(s.outcome, *level), []).append(s)

    def track(self, outcome: str) -> Track | None:
        """The plainest track of an outcome: without conditions, or with those that claims are about."""
        candidates = [track for track in self.tracks if track.outcome.name == outcome]
        claimed = [text.words(dict(where)) for test in _tests(self) if (where := getattr(test, "where", None))]
        order = {condition: rank for rank, condition in reversed(list(enumerate(claimed)))}

        def key(track: Track) -> tuple[bool, int, int]:
            return bool(track.condition), order.get(track.condition, len(order)), len(track.condition)

        return min(candidates, key=key, default=None)

    def level(self, summary: "Summary") -> tuple[str, float] | None:
        """The outcome that is held equal, and at what, of a value at a matched level; None for the end of a path."""
        names = {outcome.name for outcome in self.study.outcomes}
        return next(((key, at) for key, at in mapping(summary.at).items() if key in names), None)

    def end(self, arm: str, track: Track) -> "Summary | None":
        """The judged value of an arm at the place that a track ends in; None where another place was judged."""
        return next((s for s in self.ends if s.arm == arm and self._ends_at(s, track)), None)

    def _ends_at(self, summary: "Summary", track: Track) -> bool:
        at = mapping(summary.at)  # empty where the runs end at different places, and perhaps of different costs alone
        same = mapping(summary.where) == track.where and (not at or aside_of(at, self.study.dial) == track.aside)
        return summary.outcome == track.outcome.name and same


# The page


def _facts(view: _View) -> list[tuple[str, str | page.Link]]:
    study, runs = view.study, view.results.runs
    seeds, declared = {run.seed for run in view.judged}, set(study.test_seeds())
    further = len(seeds - declared)
    tested = [run for run in runs if run.role == "test"]
    complete = sum(run.state == "complete" for run in tested)
    facts = [
        ("Paper", page.paper_link(study.paper)),
        ("Seeds", f"{len(seeds & declared)} of {study.seeds}" + (f", {further} others" if further else "")),
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
    declared = "Each claim was declared before any result."
    if view.results.other_code:
        declared = (
            "The runs were made by another version of the code (the study, equipoise, torch or transformers), so the "
            "claims may be younger than the results."
        )
    lead = (
        f"{declared} A claim is supported or refuted only where the whole interval lies on one side of its margin; "
        "anything else is undecided."
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
        rows = tuple((run, "not reached" if at is None else at) for run, at in crossings.items())
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
        uprights = [plots.Upright("the same", 1.0)]
        margins = [test.by] if test.by > 1 else []
    elif isinstance(test, Statistic) and test.rival is None:
        axis, uprights, margins = plots.Axis(test.label), [], [margin]
    else:
        axis, uprights = plots.Axis("difference", unit=effect.unit), [plots.Upright("no difference", 0.0)]
        sides = {"better": (1,), "not_worse": (-1,), "equal": (-1, 1)}[rule]
        margins = [sign * margin for sign in sides if margin]
    uprights += [plots.Upright("margin", each, dashed=True) for each in margins if math.isfinite(each)]
    row = plots.ChartRow(effect.label, values[0], values[1], values[2], values[3:])
    return plots.intervals(effect.label, [row], x=axis, uprights=uprights, sides=_sides(test))


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
            for place in thin(sorted(x.values.get(m.name, {}).keys() & y.values.get(m.name, {}).keys()))
        ],
        note=("Large marks: the end of the path, one seed. Thin lines: the path. " if view.one_seed else _MEANS)
        + "Point at an arm in the legend to bring it forward, press to keep it.",
    )
    return chart.with_runs(view.keys)


def _frontier_points(view: _View, x: Track, y: Track) -> list[plots.Point]:
    points = []
    for m in view.marks:
        across, up = _end(view, m.name, x), _end(view, m.name, y)
        if math.isfinite(across[0]) and math.isfinite(up[0]):
            points.append(plots.Point(m.name, across[0], up[0], None, across[1:], up[1:]))
    return points


def _end(view: _View, arm: str, track: Track) -> tuple[float, float, float]:
    """Estimate and interval at the end of the path: as judged, or over seeds where judging gave none."""
    summary = None if track.condition else view.end(arm, track)
    return mean_interval(track.ends(arm)) if summary is None else (summary.estimate, *_over_seeds(summary))


def _over_seeds(summary: "Summary") -> tuple[float, float]:
    """The bounds of a value; nan where they are those of one seed, and so tell nothing about another one."""
    return (summary.lower, summary.upper) if summary.seeds > 1 else (math.nan, math.nan)


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
            [plots.ChartRow(s.arm, s.estimate, *_over_seeds(s), (), _seeds_words(seeds[s.arm])) for s in rows],
            x=track.axis,
            arms=view.marks,
            note="The arms of the claims that hold this level equal, each at its own crossing: found on validation "
            f"items, measured on test items. {_interval_words(rows)}" + (chosen if counted else ""),
        )
        parts.append(page.Figure(chart.with_runs(dict.fromkeys(key for s in rows for key in s.runs))))
    return parts


def _interval_words(rows: Sequence["Summary"]) -> str:
    return "Mean with 95 % interval." if any(s.seeds > 1 for s in rows) else "One seed, so without an interval."


def _seeds_words(count: str) -> str:
    return "one seed" if count == "1" else f"{count} seeds"


def _mean(by_seed: Mapping[int, float]) -> float:
    return float(np.mean(list(by_seed.values()))) if by_seed else math.nan


def _paths(view: _View) -> page.Section | None:
    figures, shown = [], set()
    for track in view.tracks:
        places = set(thin(track.places))
        if len(places) < 2:
            continue
        points = []
        for m in view.marks:
            for place in sorted(set(track.values.get(m.name, {})) & places):
                mean, low, high = mean_interval(track.values[m.name][place])
                points.append(plots.Point(m.name, place, mean, None, (low, high), (low, high)))
        chart = plots.paths(track.title, view.marks, points, x=plots.Axis(view.study.dial), y=track.axis)
        figures.append(page.Figure(chart.with_runs(view.keys), legend=False))
        shown |= {point.arm for point in points}
    if not figures:
        return None
    lead = "Mean over seeds; bands are 95 % t intervals of the mean at each place, not corrected for their number."
    if view.one_seed:
        lead = "One seed: how much another would differ is not known, so there are no bands."
    legend = tuple(m for m in view.marks if m.name in shown)
    return page.Section("Along the path", (page.Grid(tuple(figures), legend),), lead)


def _outcomes(view: _View) -> page.Section | None:
    groups = [(each, [s for s in view.ends if s.outcome == each.name]) for each in view.study.outcomes]
    tables = tuple(_outcome_table(view, outcome, rows) for outcome, rows in groups if rows)
    if not tables:
        return None
    lead = "At the end of the path, on test items. A count is given where the outcome is a proportion."
    return page.Section("Outcomes", tables, lead)


def _outcome_table(view: _View, outcome: "Outcome", rows: Sequence["Summary"]) -> page.Table:
    """A row an arm. What is the same for all of them is said once below, where it does not widen the table."""
    conditions = text.conditions_of(rows)
    several = len(set(conditions)) > 1
    values, intervals, counts = zip(*text.summary_values(rows), strict=True)
    one_seed = all(s.seeds == 1 for s in rows)
    seeds = [str(s.seeds) for s in rows]
    places = [text.words(mapping(s.at)) or "–" for s in rows]
    columns = [page.Column("arm"), page.Column("value", True, outcome.unit)]
    cells = [
        [page.Cell(s.arm, each if several else _kind(view, s.arm)) for s, each in zip(rows, conditions, strict=True)],
        values,
    ]
    shared = []
    for column, texts, same in (
        (
            page.Column("95 % interval", True, "over seeds"),
            intervals,
            "one seed, so no intervals" if one_seed else None,
        ),
        (page.Column("counted", True, "all seeds"), [each or "–" for each in counts], None if any(counts) else ""),
        (page.Column("seeds", True), seeds, "" if one_seed else f"{seeds[0]} seeds"),
        (page.Column("missing", True), [f"{s.missing:,}" for s in rows], f"{rows[0].missing:,} missing"),
        (page.Column("at", True), places, f"at {places[0]}" if rows[0].at else ""),
    ):
        if same is None or len(set(texts)) > 1:
            columns.append(column)
            cells.append(texts)
        else:
            shared.append(same)
    note = text.sentence("; ".join(filter(None, (outcome.description.rstrip("."), ", ".join(filter(None, shared))))))
    return page.Table(text.outcome_title(outcome), tuple(columns), tuple(zip(*cells, strict=True)), note)


def _kind(view: _View, arm: str) -> str:
    return next((m.kind for m in view.marks if m.name == arm and m.kind != "method"), "")


def _costs(view: _View) -> page.Section | None:
    runs = view.judged
    names = list(dict.fromkeys(name for run in runs for phase in _book(run, "work").values() for name in phase))
    if not names:
        return None
    names.sort(key=lambda name: (name != view.study.budget, name != "seconds", name in PEAKS))
    figures = [page.Figure(_cost_chart(view, runs, name).with_runs(view.keys)) for name in names[:4]]
    phases = list(dict.fromkeys(phase for run in runs for phase in _book(run, "work")))
    rows = []
    for m in view.marks:
        for phase in phases:
            own = [run for run in runs if run.arm == m.name and phase in _book(run, "work")]
            if own:
                amounts = (_scaled(name, _mean_cost(own, "work", phase, name)) for name in names)
                rows.append((m.name, phase, len(own), *(None if math.isnan(a) else a for a in amounts)))
    columns = (page.Column("arm"), page.Column("phase"), page.Column("runs", True))
    columns += tuple(page.Column(_title(name), True, _unit(name)) for name in names)
    per_run = page.Table("Work per run, mean over the judged runs that had the phase", columns, tuple(rows))
    return page.Section(
        "Costs",
        (page.Grid(tuple(figures)), per_run, _whole_cost(view)),
        "Work is what a result needed; spent is what was paid over all attempts, also those that were lost.",
    )


_COSTS = {"seconds": "time", "peak_bytes": "peak memory", "peak_device_bytes": "peak device memory"}


def _title(name: str) -> str:
    return _COSTS.get(name, name.replace("_", " "))


def _unit(name: str) -> str:
    """The unit to print beside a cost whose title does not say it."""
    unit = UNITS.get(name, "")
    return "MiB" if unit == "bytes" else "" if unit in _title(name).split() else unit


def _scaled(name: str, value: float) -> float:
    return value / 2**20 if UNITS.get(name) == "bytes" else value


def _book(run: "RunInfo", book: str) -> Mapping[str, Mapping[str, float]]:
    return run.cost.get(book, {})


def _mean_cost(runs: Sequence["RunInfo"], book: str, phase: str, name: str) -> float:
    """Mean over these runs, of which one that did not book it needed none; a peak over those that know theirs."""
    known = [amounts[name] for run in runs if name in (amounts := _book(run, book).get(phase, {}))]
    return math.fsum(known) / (len(known) if name in PEAKS else len(runs)) if known else math.nan


def _cost_chart(view: _View, runs: Sequence["RunInfo"], name: str) -> plots.Chart:
    bars = []
    for m in view.marks:
        own = [run for run in runs if run.arm == m.name]
        if name in PEAKS and own:  # peaks of phases do not add up
            peaks = [[total(run.cost.get(book, {})).get(name, math.nan) for run in own] for book in ("work", "spent")]
            bars.append(plots.ChartBar(m.name, "peak", *(_scaled(name, float(np.mean(p))) for p in peaks)))
            continue
        for phase in dict.fromkeys(phase for book in ("work", "spent") for run in own for phase in _book(run, book)):
            work, spent = (_mean_cost(own, book, phase, name) for book in ("work", "spent"))
            if math.isfinite(work) or math.isfinite(spent):
                bars.append(plots.ChartBar(m.name, phase, work if math.isfinite(work) else 0.0, spent))
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
    rows = tuple((group, len(groups[group]), *(amounts.get(name) for name in names)) for group, amounts in sums.items())
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
            s.score,
            f"{s.reached} of {s.seeds}" if study.select.matched else str(s.seeds),
            page.Badge("chosen") if s.chosen else "",
        )
        for s in selected
    )
    columns = (
        page.Column("arm"),
        page.Column("setting"),
        page.Column("when tuning", True, study.select.outcome),
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
