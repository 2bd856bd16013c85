"""What a person sees of an unlearned model: the model card in its folder and a one-page report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.core import page, plots
from equipoise.core.job import command_line

if TYPE_CHECKING:
    from equipoise.unlearning.job import Measure, Unlearned

MEANING = {
    "log_probability": "mean log-probability per token of the answers",
    "accuracy": "multiple choice by answer text",
    "rouge_recall": "ROUGE-L recall of the greedy answer, 0 to 1",
}


def command(settings: Mapping[str, Any], out: Path) -> str:
    """The command line that asks for these settings."""
    options: dict[str, Any] = {}
    for name, value in settings.items():
        options |= {f"{ours}_field": theirs for ours, theirs in value.items()} if name == "fields" else {name: value}
    return command_line("unlearn", options, out)


def card(result: "Unlearned", settings: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
    """The README.md of the model folder: YAML header as the hub reads it, settings, measures before and after."""
    header = {
        "base_model": settings["model"],
        "library_name": "peft" if result.recipe.parameters == "lora" else "transformers",
        "tags": ["unlearning", "equipoise", result.recipe.objective, result.recipe.combine],
        "pipeline_tag": "text-generation",
    }
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in header.items()), "---", ""]
    lines += [
        f"# {Path(settings['model']).name}, made to forget",
        "",
        f"{result.steps} optimizer steps of `{result.recipe.objective}` on `{settings['forget']}` against "
        f"`{result.recipe.retain_objective}` on `{settings['retain']}`, combined by `{result.recipe.combine}`; "
        f"{result.stopped}. Start: {stored['source']}",
        "",
        "| measure | better | before | after |",
        "|---|---|---|---|",
        *(f"| {name} | {m.better} | {result.before[name]} | {m} |" for name, m in result.after.items()),
        "",
        *(f"- {note}" for note in result.notes),
        "",
        "## Settings",
        "```json",
        json.dumps({**settings, **stored["resolved"]}, indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)


def report(
    result: "Unlearned", settings: Mapping[str, Any], stored: Mapping[str, Any], path: Path, final: Path
) -> Path:
    """One self-contained page: what was forgotten, what was kept, and along which way."""
    steps = plots.Axis("optimizer step")
    figures = []
    for kind, axis in (
        ("accuracy", plots.Axis("accuracy", chance=_chance(result))),
        ("log_probability", plots.Axis("log-probability of the answers", unit="nats/token")),
    ):
        series = {
            name.removesuffix(f"_{kind}"): [(point["step"], point[name]) for point in result.path if name in point]
            for name in result.after
            if name.endswith(kind)
        }
        if series:
            figures.append(page.Figure(plots.lines(kind.replace("_", " ").capitalize(), series, x=steps, y=axis)))
    table = page.Table(
        "Before and after",
        (page.Column("measure"), page.Column("better"), page.Column("before", True), page.Column("after", True)),
        tuple(
            (page.Cell(name, _meaning(name, measure)), measure.better, str(result.before[name]), str(measure))
            for name, measure in result.after.items()
        ),
    )
    conflicts = [page.Figure(chart) for chart in _conflicts(path.parent / "metrics.jsonl")]
    parts = [
        page.Section("What changed", (table, *([page.Grid(tuple(figures))] if figures else []))),
        *([page.Section("How the two gradients met", tuple(conflicts))] if conflicts else []),
        page.Section("How to read this", (page.Bullets(result.notes),)),
        page.Section("Settings", (page.Settings({**settings, **stored["resolved"]}),)),
    ]
    html = page.job_page(
        f"{Path(settings['model']).name}, made to forget",
        f"{result.steps} optimizer steps on {settings['forget']} against {settings['retain']}; {result.stopped}.",
        parts,
        command(settings, final),
        facts=(
            ("start", stored["source"]),
            ("objective", result.recipe.objective),
            ("combine", result.recipe.combine),
            ("written model against trained one", f"{stored['reloaded_gap_nats_per_token']:.1e} nats per token"),
        ),
    )
    return page.write_page(path, html)


def _chance(result: "Unlearned") -> float | None:
    return next((measure.chance for measure in result.after.values() if measure.chance is not None), None)


def _meaning(name: str, measure: "Measure") -> str:
    meaning = next(text for ending, text in MEANING.items() if name.endswith(ending))
    return meaning if measure.chance is None else f"{meaning}; chance {measure.chance:.2f}"


def _conflicts(metrics: Path) -> list[plots.Chart]:
    """How the gradients met, as logged by the training: cosines along the steps, share of conflicts layer by layer."""
    if not metrics.exists():
        return []
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = plots.Axis("optimizer step")
    names = {
        "cosine_forget_retain": "forget with retain",
        "cosine_update_forget": "update with forget",
        "cosine_update_retain": "update with retain",
    }
    series = {
        label: [(row["step"], row[name]) for row in rows if row.get(name) is not None] for name, label in names.items()
    }
    cells = [
        (row["step"], name.removesuffix("/conflict"), value)
        for row in rows
        for name, value in row.items()
        if name.endswith("/conflict") and value is not None
    ]
    charts = []
    if any(series.values()):
        title, note = "Cosines of the gradients", "Below zero two gradients pull against each other."
        charts.append(plots.lines(title, series, x=steps, y=plots.Axis("cosine"), note=note))
    if cells:
        title, note = "Conflict by layer", "Share of coordinates in which the two gradients have opposite signs."
        charts.append(
            plots.heat_map(
                title,
                cells,
                x=steps,
                y=plots.Axis("layer"),
                value=plots.Axis("share in conflict"),
                domain=(0.0, 1.0),
                note=note,
            )
        )
    return charts
