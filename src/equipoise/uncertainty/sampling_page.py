"""What a person sees of an audited sampler."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.core.numbers import number
from equipoise.uncertainty.sampling_result import BATCH, MEANING, SINGLE, shown

if TYPE_CHECKING:
    from equipoise.core.shares import Bounded
    from equipoise.uncertainty.sampling_result import SamplingAudit, SamplingCondition

WHERE = "Look here first"
NAMES = {BATCH: "lists, each from one context", SINGLE: "single values, each from a fresh context"}


def sampling_page(result: "SamplingAudit", folder: Path) -> Page:
    """How far off, model or noise, what the history does, what would mend it, and every way of asking by itself."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    sections.append(parts.Section("What to do", (parts.Text(result.advice()),)))
    for protocol, each in result.whole.items():
        sections.append(
            parts.Section(
                NAMES[protocol].capitalize(),
                (_measures(each), _symbols(result, each), parts.Bullets(_told(result, each))),
            )
        )
    sections.append(parts.Section("Each way of asking", (_conditions(result),)))
    return Page(
        "A model as a sampler",
        result.headline(),
        sections,
        facts=(
            ("model", result.source),
            ("target", f"{result.name}, {len(result.target)} symbols"),
            ("temperature of the draws", number(result.temperature)),
            ("slots", "found in what was written" if result.slots == "read" else "set, with separators put in"),
        ),
    )


def _cell(value: "Bounded") -> parts.Cell:
    between = "" if math.isnan(value.lower) else f"{number(value.lower)} to {number(value.upper)}"
    return parts.Cell(number(value.value) if not math.isnan(value.value) or not between else "in", between)


def _measures(each: "SamplingCondition") -> parts.Table:
    rows = [(name, _cell(each.measures[name]), meaning) for name, meaning in MEANING.items()]
    rows.append(("a_result by chance", _cell(each.independent), "the same of independent draws from the target"))
    rows.append(("a_result of its own", _cell(each.own), "the same of draws as each slot makes them"))
    return parts.Table(
        f"{each.slots:,} slots in {each.sequences:,} sequences; 95 % intervals over sequences, where there are several",
        (parts.Column("measure"), parts.Column("value", True), parts.Column("what it is")),
        tuple(rows),
        note="bias and dispersion are together the mean squared distance of a slot's probabilities from the target.",
    )


def _symbols(result: "SamplingAudit", each: "SamplingCondition") -> parts.Table:
    total = sum(each.counts)
    return parts.Table(
        "By symbol: what is asked for, what the probabilities are in the mean, what was drawn",
        (
            parts.Column("symbol"),
            *(parts.Column(name, True) for name in ("target", "mean probability", "drawn", "times")),
        ),
        tuple(
            (symbol, number(q), number(p), number(count / total if total else math.nan), count)
            for symbol, q, p, count in zip(
                each.symbols, result.target, each.means or [math.nan] * len(each.symbols), each.counts, strict=True
            )
        ),
    )


def _told(result: "SamplingAudit", each: "SamplingCondition") -> tuple[str, ...]:
    lines = [f"Frequencies: {each.chance}."]
    if each.protocol == BATCH:
        lines.append(
            f"A symbol that was drawn too often: its probability moves by {shown(each.slope)} for each unit of share; "
            "below 0 it is held back (a quota), above 0 copied."
        )
        lines.append(
            f"Order of the draws: autocorrelation {number(each.autocorrelation)}, runs z = {number(each.runs)} "
            f"(p = {number(each.runs_p)}); above 0 there are more changes than by chance."
        )
        lines.append(f"The place in the list alone decides a variance of {number(each.place)}, chance included.")
    else:
        lines.append(f"Independent draws from the target have such counts with p = {number(each.p)}.")
    lines.append(f"At the first slot the mean probabilities are {number(each.first)} from the target.")
    if each.warm:
        lines.append(
            f"Temperature {number(each.temperature)} fits best: there a_token would be {number(each.warm['a_token'])} and "
            f"the bias {number(each.warm['bias'])}, on the same slots. It flattens; what it leaves no temperature mends."
        )
    return tuple(lines)


def _conditions(result: "SamplingAudit") -> parts.Figure:
    rows = [
        plots.ChartRow(
            f"{each.protocol}, wording {each.wording}, {' '.join(each.symbols)}: {each.kind}",
            value.value,
            value.lower,
            value.upper,
        )
        for each in result.conditions
        for value in [each.measures["a_token"]]
    ]
    return parts.Figure(
        plots.intervals(
            "Distance of a slot's probabilities from the target, by wording",
            rows,
            x=plots.Axis("a_token, 0 is best"),
            uprights=[plots.Upright("the target", 0.0)],
        )
    )
