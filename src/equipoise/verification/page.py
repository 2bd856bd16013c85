"""What a person sees of a certification: verdicts, margins and radii as curves, counter-examples as pictures."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.columns import duration
from equipoise.core.job import Page
from equipoise.core.numbers import rate

if TYPE_CHECKING:
    from equipoise.verification.result import Certification

VERDICTS = {
    "certified": "no point within the radius changes the class, proved",
    "refuted": "a point within the radius has another class, found",
    "undecided": "neither",
    "wrong": "the input itself is not given its label",
}
ROWS = 200  # of the table
PICTURES = 3


def page(result: "Certification", folder: Path) -> Page:
    """Verdicts, curves and the first inputs, from a result and the counter-examples beside it."""
    rows, total = result.rows, len(result.rows)
    counts = {name: sum(row.verdict == name for row in rows) for name in VERDICTS}
    verdicts = parts.Table(
        "Verdicts",
        (parts.Column("verdict"), parts.Column("inputs", True), parts.Column("share", True)),
        tuple((parts.Cell(name, VERDICTS[name]), str(n), rate(n, total)) for name, n in counts.items()),
    )
    inputs = parts.Table(
        f"Inputs, the first {ROWS}" if total > ROWS else "Inputs",
        (
            parts.Column("input", True),
            parts.Column("label", True),
            parts.Column("network says", True),
            parts.Column("verdict"),
            parts.Column("radius", True),
            parts.Column("smallest certified margin", True),
            parts.Column("smallest margin found", True),
        ),
        tuple(
            (
                str(row.index),
                str(row.label),
                str(row.predicted),
                row.verdict,
                row.radius,
                row.margin,
                min(row.attacked, default=math.nan),
            )
            for row in rows[:ROWS]
        ),
    )
    sections: list[parts.Part] = [parts.Section("What was found", (verdicts, *_curves(result)))]
    if pictures := _pictures(folder / "counterexamples", result.shape):
        sections.append(parts.Section("Counter-examples", tuple(pictures)))
    sections.append(parts.Section("Input by input", (inputs,)))
    return Page(
        f"{result.network}, certified",
        result.headline(),
        sections,
        facts=(
            ("norm", "l2"),
            ("labels", result.labels),
            ("certificates accepted by the checker", f"{result.accepted} of {result.accepted}"),
            ("time", duration(result.seconds)),
        ),
    )


def _curves(result: "Certification") -> list[parts.Part]:
    rows = [row for row in result.rows if row.margins]
    if not rows:
        return []
    total = len(result.rows)
    share = plots.Axis("share of all inputs", better="higher", share=True)
    if result.largest:
        title, axis = "Largest certified radius", plots.Axis("radius")
        series = {"certified at least": _survival([row.radius for row in rows if row.verdict == "certified"], total)}
    else:
        title, axis = "Smallest margin", plots.Axis("margin")
        series = {
            "certified at least": _survival([row.margin for row in rows], total),
            "found at most": _survival([min(row.attacked) for row in rows], total),
        }
    note = "How many inputs have at least this value; wrong inputs have none. The truth lies between the lines."
    series = {name: points for name, points in series.items() if points}
    return [parts.Figure(plots.lines(title, series, x=axis, y=share, note=note))] if series else []


def _survival(values: Sequence[float], total: int) -> list[tuple[float, float]]:
    """Value and the share of all inputs that have at least it, at no more than 60 places."""
    ordered = sorted(values)
    places = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), 60)).round().astype(int)) if ordered else []
    return [(ordered[i], (len(ordered) - i) / total) for i in places]


def _pictures(folder: Path, shape: Sequence[int]) -> list[parts.Part]:
    """Input, counter-example and their difference, the first few; for inputs that are pictures."""
    if len(shape) != 3:
        return []
    grids: list[parts.Part] = []
    for file in sorted(folder.glob("*.npz"))[:PICTURES]:
        with np.load(file, allow_pickle=False) as stored:
            start, point, other = stored["input"], stored["point"], int(stored["class"])
        high = max(float(start.max()), 1.0)
        widest = float(abs(point - start).max()) or 1.0
        shown = (
            (f"Input {int(file.stem)}", start, (-high, high)),
            (f"Class {other} to the network", point, (-high, high)),
            ("Difference", point - start, (-widest, widest)),
        )
        pictures = (_picture(title, each.reshape(shape), span) for title, each, span in shown)
        grids.append(parts.Grid(tuple(parts.Figure(each, bare=True) for each in pictures), small=True))
    return grids


def _picture(title: str, image: np.ndarray, span: tuple[float, float]) -> plots.Chart:
    value = plots.Axis("value, mean over channels" if len(image) > 1 else "value")
    return plots.picture(title, image.mean(0).tolist(), value=value, domain=span)
