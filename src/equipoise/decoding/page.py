"""What a person sees of steered thinking."""

import json
import math
from pathlib import Path

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.core.marks import marks
from equipoise.core.numbers import number
from equipoise.core.shares import shown
from equipoise.decoding.result import ThinkRun, rows_of

SHOWN = 3  # thoughts with their insertions
EXCERPT = 600  # characters


def think_page(result: ThinkRun, folder: Path) -> Page:
    """What the control did, what it cost, what was right, and a few thoughts."""
    sections: list[parts.Part] = [parts.Note(warning, "Look here first") for warning in result.warnings()]
    table = parts.Table(
        "Of a prompt; 95 % intervals over prompts or their groups",
        (parts.Column(""), parts.Column("value", True)),
        tuple(rows_of(result)),
    )
    sections.append(parts.Section("What it came to", (table,)))
    if result.within:
        sections.append(parts.Section("Accuracy within a budget", (_curve(result),)))
    if thoughts := _first(folder):
        sections.append(parts.Section("The first thoughts", thoughts))
    moment = "none"
    if not math.isnan(result.moment):
        where = f", measured on {result.measured_on} prompts" if result.measured_on else ", as given"
        moment = (
            f"{result.moment:,.1f} tokens: {result.settings['alpha']:g} times {shown(result.mean_thinking, 1)}{where}"
        )
    return Page(
        f"Thinking under {result.settings['control']}",
        result.headline(),
        sections,
        facts=(
            ("model", result.source),
            ("moment", moment),
            ("prompts", f"{result.prompts:,} of {result.names['prompts']}"),
            ("judged by", result.names["judged by"]),
            ("nothing to compare in", f"{result.unread:,} answers"),
            ("written", f"{result.tokens:,} tokens"),
        ),
    )


def _curve(result: ThinkRun) -> parts.Figure:
    name = str(result.settings["control"])
    points = [plots.Point(name, tokens, value) for tokens, value in result.within]
    return parts.Figure(
        plots.paths(
            "Right answers that were there within so many tokens",
            marks({name: "method"}),
            points,
            x=plots.Axis("tokens of thinking and answer"),
            y=plots.Axis("share of all prompts", better="higher", share=True),
            note="An answer counts from the token on with which it ended.",
        )
    )


def _first(folder: Path) -> tuple[parts.Details, ...]:
    """A few thoughts, with the places where something was written in the model's stead."""
    path = folder / "thoughts.jsonl"
    if not path.is_file():
        return ()
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(SHOWN), strict=False)]
    found = []
    for row in rows:
        trace = parts.Table(
            "Where something could be written in the model's stead",
            (
                parts.Column("behind tokens", True),
                parts.Column("what"),
                parts.Column("chance", True),
                parts.Column("draw", True),
                parts.Column("written"),
            ),
            tuple(
                (
                    each["position"],
                    each["what"],
                    number(each["p"]),
                    "" if each["draw"] is None else number(each["draw"]),
                    "yes" if each["taken"] else "no",
                )
                for each in row["trace"]
            ),
        )
        said = [parts.Text(_cut(row["thinking"]), quiet=True), parts.Text(_cut(row["answer"]))]
        found.append(
            parts.Details(
                f"{row['id']}: {row['thinking_tokens']} tokens of thinking, {row['answer_tokens']} of answer",
                (*said, trace) if row["trace"] else tuple(said),
            )
        )
    return tuple(found)


def _cut(text: str) -> str:
    return text if len(text) <= EXCERPT else f"{text[: EXCERPT // 2]} … {text[-EXCERPT // 2 :]}"
