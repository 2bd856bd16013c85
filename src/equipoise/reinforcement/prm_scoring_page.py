"""What a person sees of scored steps."""

import math
from typing import TYPE_CHECKING

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page

if TYPE_CHECKING:
    from equipoise.reinforcement.prm_scoring_result import StepScores

WHERE = "Look here first"


def score_page(result: "StepScores") -> Page:
    """How scores are spread, how they change along a solution, where they are lowest."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    spread = [(0.0, 1.0), *((float(r), share) for r, share in result.shares.items())]
    places = [(float(t), mean) for t, mean in enumerate(result.by_place, start=1) if not math.isnan(mean)]
    figures = (
        plots.lines(
            "Steps that are scored at least so high",
            {"steps": spread},
            x=plots.Axis("probability of being right", share=True),
            y=plots.Axis("share of the steps", share=True),
        ),
        plots.lines(
            "Along a solution",
            {"steps": places},
            x=plots.Axis("step of the solution"),
            y=plots.Axis("mean probability of being right", share=True),
        ),
    )
    lowest = parts.Table(
        "Steps with the lowest scores",
        (
            parts.Column("solution"),
            parts.Column("step", True),
            parts.Column("what it says"),
            parts.Column("probability of being right", True),
        ),
        tuple((parts.Cell(each.id, each.problem), each.at + 1, each.step, each.probability) for each in result.lowest),
    )
    sections.append(parts.Section("What is scored", (parts.Grid(tuple(map(parts.Figure, figures))), lowest)))
    return Page(
        "Which steps are right?",
        result.headline(),
        sections,
        facts=(
            ("model", result.source),
            ("solutions", f"{result.solutions:,} of {result.names['solutions']}"),
            ("steps", f"{result.steps:,}, of which {result.unread:,} were not read"),
        ),
    )
