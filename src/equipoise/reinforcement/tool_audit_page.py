"""What a person sees of an audit of tools."""

import math
from typing import TYPE_CHECKING

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.core.marks import marks
from equipoise.reinforcement.tool_audit_result import (
    ALIKE,
    ALL,
    LOWERED,
    NOT_LOWERED,
    REASONS,
    SAME,
    between,
    percent,
)

if TYPE_CHECKING:
    from equipoise.core.shares import Bounded
    from equipoise.reinforcement.tool_audit_result import ToolAudit, ToolUse, UselessCall

WHERE = "Look here first"
DRAWN = 6  # tools in a figure, those with the most calls
LISTED = 40  # tools in the table


def audit_page(result: "ToolAudit") -> Page:
    """The calls that were useless first, then each tool, how entropy changed, and what could not be decided."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    if result.useless:
        sections.append(parts.Section("Calls that were of no use", (_useless(result),)))
    tables = (_use(result), *((_cost(result),) if result.overall.right else ()))
    sections.append(parts.Section("By tool", (*tables, *_figures(result))))
    sections.append(parts.Section("Does falling entropy mean right answers?", _calibration(result)))
    if result.undecided:
        sections.append(parts.Section("What could not be decided", (_undecided(result),)))
    counts = result.counts
    graded = f"{counts['right']:,} right, {counts['wrong']:,} wrong, {counts['ungraded']:,} that do not say"
    return Page(
        "Which calls were of use?",
        result.headline(),
        sections,
        facts=(
            ("traces", f"{counts['traces']:,} of {result.names['traces']}: {graded}"),
            ("calls", f"{counts['calls']:,} in {counts['steps']:,} steps, of {len(result.tools):,} tools"),
            ("entropies", result.source),
            *((("bounds", f"{result.width:.3f} nats wide in the mean"),) if result.width > 0 else ()),
        ),
    )


def _useless(result: "ToolAudit") -> parts.Table:
    more = result.useless_count - len(result.useless)
    return parts.Table(
        f"The worst {len(result.useless)} of {result.useless_count:,}" if more else "All of them",
        (
            parts.Column("trace"),
            parts.Column("call"),
            parts.Column("why"),
            parts.Column("change of entropy", unit="nats a token"),
            parts.Column("tokens", True),
        ),
        tuple(
            (
                parts.Cell(each.trace, f"step {each.number}, {_ended(each)}"),
                parts.Cell(each.tool, each.arguments),
                _why(each),
                _bounds(each.change),
                round(each.tokens),
            )
            for each in result.useless
        ),
        note="Calls of right traces first, then those against which most speaks, then the dearest; all of them are in "
        "calls.jsonl. Arguments are shortened, and what looks like a key is left out.",
    )


def _ended(call: "UselessCall") -> str:
    return {True: "right", False: "wrong", None: "end not known"}[call.right]


def _why(call: "UselessCall") -> str:
    said = {SAME: "repeats a call", ALIKE: "repeats a call in other words", "": ""}[call.duplicate]
    effect = {LOWERED: "which lowered uncertainty all the same", NOT_LOWERED: "did not lower uncertainty"}
    return ", ".join(filter(None, (said, effect.get(call.outcome))))


def _use(result: "ToolAudit") -> parts.Table:
    more = len(result.tools) - LISTED
    return parts.Table(
        "How tools were used",
        (
            parts.Column("tool"),
            parts.Column("calls", True),
            parts.Column("decided steps", True),
            parts.Column("of these lowered uncertainty", True),
            parts.Column("mean change", True, "nats a token"),
            parts.Column("repeats", True),
            parts.Column("copied after it", True),
        ),
        tuple(
            (
                each.tool,
                each.calls,
                f"{each.lowered.of:,} of {each.steps:,}",
                percent(each.lowered),
                between(each.change, signed=True),
                percent(each.duplicate),
                "–" if math.isnan(each.copied) else f"{each.copied:.0%}",
            )
            for each in _listed(result)
        ),
        note="With 95 % intervals over what was asked: of the decided steps those after which entropy was lower; of all "
        "calls those that repeat an earlier one. Copied: the share of what was written next that repeats replies, three "
        "words running." + (f" {more:,} tools with fewer calls are in result.json." if more > 0 else ""),
        emphasised=frozenset({0}),
    )


def _cost(result: "ToolAudit") -> parts.Table:
    uses = _listed(result)
    timed = any(not math.isnan(each.seconds) for each in uses)
    paid = any(not math.isnan(each.price) for each in uses)
    return parts.Table(
        "What could have been left out, in traces that were right",
        (
            parts.Column("tool"),
            parts.Column("calls", True),
            parts.Column("lowered nothing", True),
            parts.Column("needless", True),
            parts.Column("their tokens", True),
            parts.Column("of all tokens", True),
            *((parts.Column("their time", True, "s"),) if timed else ()),
            *((parts.Column("their price", True),) if paid else ()),
        ),
        tuple(
            (
                each.tool,
                each.right,
                each.anyway,
                each.needless,
                round(each.needless_tokens),
                f"{each.needless_tokens / each.tokens:.0%}" if each.tokens else None,
                *((_known(each.needless_seconds),) if timed else ()),
                *((_known(each.needless_price),) if paid else ()),
            )
            for each in uses
        ),
        note="Needless: lowered nothing, or repeated a call with the same reply. Tokens are those of the turn that made the "
        "call, of calls at once in equal parts, and of the reply, read once; beside them their share of those of all calls "
        "of the tool." + (" They are estimates where nobody counted." if result.estimated else ""),
        emphasised=frozenset({0}),
    )


def _listed(result: "ToolAudit") -> "tuple[ToolUse, ...]":
    return (result.overall, *result.tools[:LISTED])


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _figures(result: "ToolAudit") -> tuple[parts.Part, ...]:
    shown = [each.tool for each in result.tools if not math.isnan(each.change.value)][:DRAWN]
    if not shown:
        return ()
    points = [
        plots.Point(each.tool, each.number, each.change.value, y_interval=(each.change.lower, each.change.upper))
        for each in result.path
        if each.tool in shown
    ]
    axis = plots.Axis("change of entropy", unit="nats a token")
    along = plots.paths(
        "Change of entropy by the number of the call",
        marks(shown),
        points,
        x=plots.Axis("step of the trace"),
        y=axis,
        note="Below 0 the model was surer after the call. Bands are 95 % intervals, the bounds of what was logged included.",
    )
    rows = [
        plots.ChartRow(each.tool, each.change.value, each.change.lower, each.change.upper)
        for each in (result.overall, *result.tools)
        if each.tool in (ALL, *shown)
    ]
    by_tool = plots.intervals("Change of entropy by tool", rows, x=axis, uprights=[plots.Upright("no change", 0.0)])
    return (parts.Figure(along), parts.Figure(by_tool))


def _calibration(result: "ToolAudit") -> tuple[parts.Part, ...]:
    right, wrong = result.calibrated["right"], result.calibrated["wrong"]
    if math.isnan(result.calibration.value):
        return (
            parts.Text(
                f"That cannot be told: {right:,} measured steps are in traces known to be right and {wrong:,} in traces "
                "known to be wrong, and it takes some of both. Entropy is confidence, not truth."
            ),
        )
    chart = plots.intervals(
        "AUROC of the fall of entropy, steps of right against steps of wrong traces",
        [plots.ChartRow("fall of entropy", *_triple(result.calibration))],
        x=plots.Axis("AUROC", better="higher", share=True),
        uprights=[plots.Upright("chance", 0.5)],
    )
    few = " Intervals need 50 traces." if math.isnan(result.calibration.lower) else ""
    return (
        parts.Text(
            f"AUROC {between(result.calibration)}, from {right:,} steps of right and {wrong:,} of wrong traces: how often "
            f"entropy fell more at a step of a right one; 0.5 is chance.{few} Entropy is confidence, not truth: where this "
            "is near 0.5, what follows a call says nothing about whether it helped."
        ),
        parts.Figure(chart),
    )


def _triple(value: "Bounded") -> tuple[float, float, float]:
    return value.value, value.lower, value.upper


def _undecided(result: "ToolAudit") -> parts.Table:
    counted = sorted(result.undecided.items(), key=lambda each: -each[1])
    return parts.Table(
        f"Steps of which nothing is said, of {result.counts['steps']:,}",
        (parts.Column("why"), parts.Column("steps", True)),
        tuple((parts.Cell(word, REASONS[word]), count) for word, count in counted),
    )


def _bounds(change: "Bounded") -> str:
    if math.isnan(change.value):
        return "–"
    if change.upper - change.lower < 1e-9:
        return f"{change.value:+.3f}"
    return f"{change.lower:+.3f} to {change.upper:+.3f}"
