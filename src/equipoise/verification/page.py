"""What a person sees of a certification: verdicts, margins and radii as curves, counter-examples as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.core import page, plots
from equipoise.core.job import command_line
from equipoise.core.numbers import number, rate

if TYPE_CHECKING:
    from equipoise.verification.job import Certification

VERDICTS = {
    "certified": "no point within the radius changes the class, proved",
    "refuted": "a point within the radius has another class, found",
    "undecided": "neither",
    "wrong": "the input itself is not given its label",
}
ROWS = 200  # of the table
PICTURES = 3


def report(
    result: "Certification", settings: Mapping[str, Any], shape: Sequence[int], accepted: int, work: Path, final: Path
) -> Path:
    """One self-contained page."""
    rows, total = result.rows, len(result.rows)
    counts = {name: sum(row.verdict == name for row in rows) for name in VERDICTS}
    verdicts = page.Table(
        "Verdicts",
        (page.Column("verdict"), page.Column("inputs", True), page.Column("share", True)),
        tuple((page.Cell(name, VERDICTS[name]), str(n), rate(n, total)) for name, n in counts.items()),
    )
    each = page.Table(
        f"Inputs, the first {ROWS}" if total > ROWS else "Inputs",
        (
            page.Column("input", True),
            page.Column("label", True),
            page.Column("network says", True),
            page.Column("verdict"),
            page.Column("radius", True),
            page.Column("smallest certified margin", True),
            page.Column("smallest margin found", True),
        ),
        tuple(
            (
                str(row.index),
                str(row.label),
                str(row.predicted),
                row.verdict,
                number(row.radius, 4),
                number(row.margin, 4),
                number(min(row.attacked) if row.attacked else None, 4),
            )
            for row in rows[:ROWS]
        ),
    )
    parts: list[page.Part] = [page.Section("What was found", (verdicts, *_curves(result, settings)))]
    if pictures := _pictures(work / "counterexamples", shape):
        parts.append(page.Section("Counter-examples", tuple(pictures)))
    parts += [
        page.Section("Input by input", (each,)),
        page.Section("How to read this", (page.Bullets(result.notes),)),
        page.Section("Settings", (page.Settings(settings),)),
    ]
    asked = "up to the largest radius certified" if settings["largest_radius"] else "within the radius"
    text = page.job_page(
        f"{result.network}, certified",
        f"{counts['certified']} of {total} inputs keep their class for every point {asked}.",
        parts,
        command_line("certify run", settings, final),
        facts=(
            ("norm", "l2"),
            ("certificates accepted by the checker", f"{accepted} of {accepted}"),
            ("time", f"{result.seconds:.1f} s"),
        ),
    )
    return page.write_page(work / "report.html", text)


def _curves(result: "Certification", settings: Mapping[str, Any]) -> list[page.Part]:
    rows = [row for row in result.rows if row.margins]
    if not rows:
        return []
    total = len(result.rows)
    share = plots.Axis("share of all inputs", better="higher")
    if settings["largest_radius"]:
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
    return [page.Figure(plots.lines(title, series, x=axis, y=share, note=note))] if series else []


def _survival(values: Sequence[float], total: int) -> list[tuple[float, float]]:
    """Value and the share of all inputs that have at least it, at no more than 60 places."""
    ordered = sorted(values)
    places = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), 60)).round().astype(int)) if ordered else []
    return [(ordered[i], (len(ordered) - i) / total) for i in places]


def _pictures(folder: Path, shape: Sequence[int]) -> list[page.Part]:
    """Input, counter-example and their difference, the first few; for inputs that are pictures."""
    if len(shape) != 3:
        return []
    grids: list[page.Part] = []
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
        grids.append(
            page.Grid(tuple(page.Figure(_picture(title, each, shape, span), bare=True) for title, each, span in shown))
        )
    return grids


def _picture(title: str, flat: np.ndarray, shape: Sequence[int], span: tuple[float, float]) -> plots.Chart:
    grey = flat.reshape(shape).mean(0)
    cells = [(x, y, float(grey[y, x])) for y in range(shape[1]) for x in range(shape[2])]
    value = plots.Axis("value, mean over channels")
    axes = {"x": plots.Axis("column"), "y": plots.Axis("row")}
    return plots.heat_map(title, cells, **axes, value=value, domain=span, note=f"{title}.")
