"""What a person sees of an audit of forgetting."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.core.marks import marks
from equipoise.unlearning.audit_result import (
    BACK,
    CONTROL,
    GONE,
    RELEARNING,
    STILL,
    UNKNOWN,
    outcome,
    percent,
    several,
)

if TYPE_CHECKING:
    from equipoise.core.shares import Bounded, Share
    from equipoise.unlearning.audit_result import ForgettingAttack, ForgettingAudit, RecoveryAt

WHERE = "Look here first"
LISTED = 12  # records of a state in the table
DRAWN = 60  # records in the figure


def audit_page(result: "ForgettingAudit") -> Page:
    """What came back and under what, strongest first; the controls; each record; what moved; what was not tried."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    sections.append(parts.Section("What came back", (*_said(result), _attacks(result), *_figures(result))))
    sections.append(parts.Section("Record by record", (_states(result), _records(result), _record_figure(result))))
    if result.membership:
        sections.append(parts.Section("Can an outsider tell that records were forgotten?", (_membership(result),)))
    if result.spectrum is not None:
        sections.append(parts.Section("What moved inside the model, and what came back", _spectrum(result)))
    sections.append(parts.Section("What was not tried", (parts.Bullets(result.untried),)))
    counts = result.counts
    return Page(
        "What of the forgotten comes back?",
        result.headline(),
        sections,
        facts=(
            ("before", result.sources["before"]),
            ("after", result.sources["after"]),
            ("relearned", f"{counts['forget']:,} records of {result.names['forget']}"),
            ("held out", f"{counts['holdout']:,} records of {result.names['holdout']}"),
            ("forgotten", f"{result.forgotten:,} of the held-out records that were asked for"),
        ),
    )


def _said(result: "ForgettingAudit") -> tuple[parts.Part, ...]:
    """In sentences: both models, the strongest relearning, the controls."""
    answered = result.answered
    guessing = "" if math.isnan(result.chance) else f" Guessing gets {result.chance:.0%}."
    said = [
        f"Of the held-out records the before model answers {several(answered['before'])} and the after model "
        f"{several(answered['after'])}; of the records that are relearned {several(answered['before_relearned'])} and "
        f"{several(answered['after_relearned'])}.{guessing} A record counts as forgotten when the before model answers it "
        "and the after model does not."
    ]
    if result.forgotten:
        relearned = next((each for each in result.attacks if each.family == RELEARNING), None)
        shown = dict.fromkeys(each for each in (*result.attacks[:1], relearned, *result.controls) if each is not None)
        said += [outcome(each) for each in shown]
        said.append(
            "Records were chosen because the after model misses them, so that some are answered again by luck alone: "
            "compare with the controls, and with the share of all held-out records that are answered."
        )
    return tuple(parts.Text(each) for each in said)


def _attacks(result: "ForgettingAudit") -> parts.Table:
    return parts.Table(
        "Attacks, the strongest first, and controls",
        (
            parts.Column("attack"),
            parts.Column("when"),
            parts.Column("forgotten records answered again", True),
            parts.Column("of all held out", True),
            parts.Column("again in words", True),
            parts.Column("weights moved", True),
        ),
        tuple(
            (
                parts.Cell(each.name, each.what),
                parts.Cell(each.at.label, _looks(each)),
                parts.Cell(percent(each.at.again), several(each.at.again)),
                percent(each.at.answered),
                several(each.greedy) if each.greedy.of else "–",
                "–" if math.isnan(each.moved) else f"{each.moved:.0%}",
            )
            for each in (*result.attacks, *result.controls)
        ),
        note="With 95 % intervals over records, or over their groups where they have some. In words: of the questions that "
        "the before model answers greedily with the answer of the file and the after model does not, those that the "
        "attacked model answers so at the attack's end. Of a relearning the mean of its best three looks running decides "
        "its place, and the highest of these is told."
        + "".join(
            f" {each.name}: the before model, asked the same, answers {several(each.before)} of the forgotten records."
            if each.family != CONTROL
            else f" {each.name}: before its training it answers {several(each.before)} of the forgotten records."
            for each in (*result.attacks, *result.controls)
            if each.before.of
        ),
    )


def _looks(attack: "ForgettingAttack") -> str:
    along = attack.family in (RELEARNING, CONTROL) and not math.isnan(attack.value)
    return f"{attack.value:.0%} in the mean of its best looks" if along else ""


def _figures(result: "ForgettingAudit") -> tuple[parts.Part, ...]:
    if not result.forgotten:
        return ()
    axis = plots.Axis("forgotten records answered again", better="lower", share=True)
    relearned = [each for each in (*result.attacks, *result.controls) if each.family in (RELEARNING, CONTROL)]
    kinds = {each.name: "control" if each.family == CONTROL else "method" for each in relearned}
    points = [
        plots.Point(each.name, at.step, at.again.rate, y_interval=_interval(each, at.again, relearned))
        for each in relearned
        for at in _from_nothing(each)
    ]
    along = plots.paths(
        "Recovery along the steps of an attack",
        marks(kinds),
        points,
        x=plots.Axis("optimizer step"),
        y=axis,
        note="Held-out records that nobody relearned. The band is the 95 % interval of the strongest. Controls are dotted.",
    )
    rows = [
        plots.ChartRow(each.name, each.at.again.rate, each.at.again.lower, each.at.again.upper, note=each.at.label)
        for each in (*result.attacks, *result.controls)
        if each.at.again.of
    ]
    return parts.Figure(along), parts.Figure(plots.intervals("Recovery by attack", rows, x=axis))


def _from_nothing(attack: "ForgettingAttack") -> "list[RecoveryAt]":
    """Its looks behind its start, where none of the forgotten is answered but by a model that is another one."""
    first = attack.path[0]
    none = replace(first.again, count=0.0, lower=math.nan, upper=math.nan)
    return [replace(first, step=0, again=attack.before if attack.before.of else none), *attack.path]


def _interval(attack: "ForgettingAttack", share: "Share", relearned: "list[ForgettingAttack]") -> tuple[float, float]:
    return (share.lower, share.upper) if attack is relearned[0] else (math.nan, math.nan)


def _states(result: "ForgettingAudit") -> parts.Table:
    counted = {
        (state, side): sum(each.state == state and each.side == side for each in result.records)
        for state in (STILL, BACK, GONE, UNKNOWN)
        for side in ("holdout", "forget")
    }
    meaning = {
        STILL: "both models answer it, the after model perhaps by guessing: see what it lost",
        BACK: "an attack brought it back",
        GONE: "no attack that was tried brought it back, each at its best look or with its best sentence",
        UNKNOWN: "the before model did not answer it",
    }
    return parts.Table(
        "How many records",
        (parts.Column("state"), parts.Column("held out", True), parts.Column("relearned", True)),
        tuple(
            (parts.Cell(state, meaning[state]), counted[state, "holdout"], counted[state, "forget"])
            for state in meaning
        ),
        note="Of relearned records only forgetting is told: that relearning brings them back is no wonder.",
    )


def _records(result: "ForgettingAudit") -> parts.Table:
    shown = [each for state in (STILL, BACK) for each in [r for r in result.records if r.state == state][:LISTED]]
    more = sum(each.state in (STILL, BACK) for each in result.records) - len(shown)
    return parts.Table(
        "The worst records",
        (
            parts.Column("record"),
            parts.Column("state"),
            parts.Column("brought back by", True),
            parts.Column("before", True, "nats/token"),
            parts.Column("after", True, "nats/token"),
            parts.Column("relearned", True, "nats/token"),
        ),
        tuple(
            (
                parts.Cell(each.id, each.text),
                each.state if each.side == "holdout" else f"{each.state}, relearned",
                each.attacks if each.state == BACK else None,
                each.before,
                each.after,
                None if math.isnan(each.attacked) else each.attacked,
            )
            for each in shown
        ),
        note="Those that are still answered first, then those that most attacks brought back. Mean log-probability per "
        "token of the answer; relearned: under the strongest relearning."
        + (f" {more:,} more are in result.json." if more else ""),
    )


def _record_figure(result: "ForgettingAudit") -> parts.Part:
    """Log-probabilities of the held-out records, by what the after model leaves of them."""
    held = sorted((each for each in result.records if each.side == "holdout"), key=lambda each: -each.after)
    places = sorted({round(i * (len(held) - 1) / max(DRAWN - 1, 1)) for i in range(DRAWN)} & set(range(len(held))))
    drawn = [(place + 1, held[place]) for place in places]
    return parts.Figure(
        plots.lines(
            "Each held-out record",
            {
                "before": [(place, each.before) for place, each in drawn],
                "after": [(place, each.after) for place, each in drawn],
                "after relearning": [(place, each.attacked) for place, each in drawn],
            },
            x=plots.Axis("held-out records, the least forgotten first"),
            y=plots.Axis("log-probability of the answer", unit="nats/token"),
            note="Where the third line reaches the first, the record is back.",
        )
    )


def _membership(result: "ForgettingAudit") -> parts.Table:
    return parts.Table(
        "AUROC of telling forgotten records from retain records",
        (parts.Column("attack"), parts.Column("before", True), parts.Column("after", True)),
        tuple((each.attack, _bounded(each.before), _bounded(each.after)) for each in result.membership),
        note="0.5 is chance; with 95 % intervals over groups, which need 50 of them. Far below 0.5 tells as much as far "
        "above: the forgotten records then stand out by being unlikely. If both kinds were equally well known before, 0.5 "
        "is what a model that shows nothing has.",
    )


def _bounded(value: "Bounded") -> parts.Cell:
    if math.isnan(value.value):
        return parts.Cell("undefined")
    known = not math.isnan(value.lower)
    return parts.Cell(f"{value.value:.3f}", f"{value.lower:.3f} to {value.upper:.3f}" if known else "")


def _spectrum(result: "ForgettingAudit") -> tuple[parts.Part, ...]:
    spectrum = result.spectrum
    assert spectrum is not None
    across = plots.Axis("component: 0 the mean, then by falling variance")
    moved = plots.lines(
        "What forgetting moved",
        {
            "movement": list(enumerate(spectrum.change)),
            "spread of the states before": list(enumerate(spectrum.spread)),
        },
        x=across,
        y=plots.Axis("share of the sum over components", share=True),
        note=f"States after block {spectrum.block} of {spectrum.tokens:,} tokens. These components hold "
        f"{spectrum.within:.0%} of all squared movement.",
    )
    attacked = [each for each in (*result.attacks, *result.controls) if each.recovery]
    strongest = next((each for each in attacked if each.family == RELEARNING), None)
    shown = [each for each in attacked if each is strongest or each.family == CONTROL]
    figures: list[parts.Part] = [parts.Figure(moved)]
    if shown:
        back = plots.lines(
            "What the strongest relearning moved back",
            {each.name: list(enumerate(each.recovery)) for each in shown},
            x=across,
            y=plots.Axis("recovery ratio"),
            note="1: all of the movement along this component is undone; 0: none; below 0: moved further away.",
        )
        figures.append(parts.Figure(back))
    return (parts.Grid(tuple(figures)),)
