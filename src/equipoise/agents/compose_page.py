"""What a person sees of a composed life: what the gates came to, which questions there are, what gives answers away."""

from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.agents.compose_result import columns
from equipoise.core import page as parts
from equipoise.core.job import Page

if TYPE_CHECKING:
    from equipoise.agents.compose_result import ComposedHistory, LeakReport

SHOWN = 50  # leaks on the page; leaks.jsonl has all


def compose_page(result: "ComposedHistory", folder: Path) -> Page:
    """Warnings, the gates, the questions, the leaks."""
    sections: list[parts.Part] = [parts.Note(warning, "Look here first") for warning in result.warnings()]
    if result.made is not None:
        sections.append(parts.Section("What the gates let through", (_gates(result), *_dropped(result))))
        sections.append(parts.Section("Questions", (_kinds(result),)))
    reports = {"made": result.made, "given": result.looked}
    known = {name: report for name, report in reports.items() if report is not None}
    tables = [_leaks(known), *(_list(name, report) for name, report in known.items() if report.leaks)]
    sections.append(parts.Section("What gives answers away", tuple(tables)))
    return Page(
        "A life with questions" if result.made is not None else "Leaks of questions",
        result.headline(),
        sections,
        facts=(
            *((name, value) for name, value in result.names.items()),
            ("written by", result.source),
            ("days", f"{result.days:,}"),
            ("conversations", f"{result.sessions:,}, {result.turns:,} turns, {result.words:,} words"),
            ("calls", f"{result.calls:,}, {result.tokens:,} tokens"),
        ),
    )


def _gates(result: "ComposedHistory") -> parts.Table:
    names = ("flagged at first", "inconsistent", "repeated", "unusable", "left")
    return parts.Table(
        "Records of each step, and how many its gate flagged",
        (parts.Column("step"), parts.Column("records", True), *(parts.Column(name, True) for name in names)),
        tuple(
            (gate.step, gate.records, gate.flagged, gate.inconsistent, gate.repeated, gate.unusable, gate.left)
            for gate in result.gates
        ),
        note="A record may be flagged for several reasons. Left: still flagged when written anew, and mended by rule.",
    )


def _dropped(result: "ComposedHistory") -> tuple[parts.Table, ...]:
    if not result.dropped:
        return ()
    columns = (parts.Column("what"), parts.Column("number", True))
    return (parts.Table("What could not be used", columns, tuple(result.dropped.items())),)


def _kinds(result: "ComposedHistory") -> parts.Table:
    return parts.Table(
        "Questions by kind",
        (parts.Column("kind"), parts.Column("questions", True)),
        tuple(result.kinds.items()),
        note="Four options each, three of them from before the question's time.",
    )


def _leaks(reports: "dict[str, LeakReport]") -> parts.Table:
    rows = {name: columns(report) for name, report in reports.items()}
    titles = [title for title, _ in next(iter(rows.values()))]
    return parts.Table(
        "What was looked for",
        (parts.Column(""), *(parts.Column(name) for name in rows)),
        tuple((title, *(str(dict(row)[title]) for row in rows.values())) for title in titles),
        note="An option that is worded in another way than it was said is not found.",
    )


def _list(name: str, report: "LeakReport") -> parts.Details:
    columns = (parts.Column("question"), parts.Column("leak"), parts.Column("what"))
    rows = tuple((leak.question, leak.kind, leak.text) for leak in report.leaks[:SHOWN])
    count = f"the first {SHOWN} of {len(report.leaks):,}" if len(report.leaks) > SHOWN else f"{len(report.leaks):,}"
    return parts.Details(f"Leaks of {name} questions: {count}", (parts.Table("One a row", columns, rows),))
