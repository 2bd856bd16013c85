"""What a person sees of an unlearned model: the model card in its folder and a one-page report."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.core.numbers import number
from equipoise.unlearning import map_spectra
from equipoise.unlearning.record_outcomes import section

if TYPE_CHECKING:
    from equipoise.unlearning.result import Measure, Unlearned

MEANING = {
    "log_probability": "mean log-probability per token of the answers, in nats",
    "accuracy": "multiple choice by answer text",
    "rouge_recall": "ROUGE-L recall of the greedy answer, 0 to 1",
    "perplexity": "exp of the mean loss per token over whole texts, prompts included",
}


def page(result: "Unlearned", folder: Path) -> Page:
    """What was forgotten, what was kept, and along which way; with the card that a model folder carries."""
    warnings = [parts.Note(warning, "Look here first") for warning in result.warnings()]
    changed = [_measures(result), *([_answers(result)] if result.answers else []), *_figures(result)]
    sections: list[parts.Part] = [*warnings, parts.Section("What changed", tuple(changed))]
    if result.records:
        sections.append(section(result.records, result.weighed))
    if result.spectra:
        sections.append(map_spectra.section(result.spectra))
    if conflicts := [parts.Figure(chart) for chart in _conflicts(folder / "metrics.jsonl")]:
        sections.append(parts.Section("How the two gradients met", tuple(conflicts)))
    sections.append(parts.Section("The recipe", (parts.SettingsTable(dict(result.resolved)),)))
    return Page(
        f"{Path(result.names['model']).name}, made to forget",
        result.headline(),
        sections,
        facts=(
            ("start", result.source),
            ("objective", result.recipe["objective"]),
            ("update", _update(result)),
            ("trained weights that moved", f"{result.moved:.1%}"),
            *([("after a random change of equal size", result.by_chance())] if result.control else []),
            ("written model against trained one", f"{number(result.gap, 2)} nats per token"),
        ),
        files={"README.md": card(result, json.loads((folder / "run.json").read_text(encoding="utf-8")))},
    )


def card(result: "Unlearned", settings: Mapping[str, Any]) -> str:
    """The README.md of the model folder: YAML header as the hub reads it, settings, measures before and after."""
    recipe = result.recipe
    header = {
        "base_model": result.names["model"],
        "library_name": "peft" if recipe["parameters"] == "lora" else "transformers",
        "tags": [
            "unlearning",
            "equipoise",
            recipe["objective"],
            *([recipe["combine"]] if "combine" in result.resolved else []),
        ],
        "pipeline_tag": "text-generation",
    }
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in header.items()), "---", ""]
    lines += [
        f"# {Path(result.names['model']).name}, made to forget",
        "",
        *(f"**{warning}**\n" for warning in result.warnings()),
        f"{result.steps} optimizer steps of `{recipe['objective']}` on `{result.names['forget']}` against "
        f"{_kept_by(result)} on `{result.names['retain']}`, {_update(result)}; "
        f"{result.stopped}. Start: {result.source}",
        "",
        "| measure | better | before | after |",
        "|---|---|---|---|",
        *(f"| {name} | {m.better} | {result.before[name]} | {m} |" for name, m in result.after.items()),
        "",
        *([f"- After a random change of equal size: {result.by_chance()}."] if result.control else []),
        *(f"- {note}" for note in result.notes),
        "",
        "## Settings",
        "```json",
        json.dumps({**settings, **result.resolved}, indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)


def _kept_by(result: "Unlearned") -> str:
    """What holds the retain set: an objective that brings a loss of its own has no use for retain_objective."""
    if "retain_objective" in result.resolved:
        return f"`{result.recipe['retain_objective']}`"
    return "its own retain loss"


def _update(result: "Unlearned") -> str:
    """How the two gradients become an update, in words."""
    if "combine" in result.resolved:
        return f"combined by `{result.recipe['combine']}`"
    return f"in forget steps of length {result.resolved['update_length']:.3g}, each followed by a retain step"


def _measures(result: "Unlearned") -> parts.Table:
    return parts.Table(
        "Before and after",
        (parts.Column("measure"), parts.Column("better"), parts.Column("before", True), parts.Column("after", True)),
        tuple(
            (parts.Cell(name, _meaning(name, measure)), measure.better, _value(result.before[name]), _value(measure))
            for name, measure in result.after.items()
        ),
    )


def _value(measure: "Measure") -> parts.Cell:
    """A value to three places, with its count below."""
    if math.isnan(measure.value):
        return parts.Cell("undefined")
    counted = "" if measure.of is None else f"{round(measure.value * measure.of)} of {measure.of}"
    return parts.Cell(f"{round(measure.value, 3) + 0.0:.3f}".replace("-", "−"), counted)


def _answers(result: "Unlearned") -> parts.Table:
    """What the model says, in its own words: the likeliest answer before and after."""
    return parts.Table(
        "Answers before and after",
        (
            parts.Column("side"),
            parts.Column("prompt"),
            parts.Column("answer of the file"),
            parts.Column("before"),
            parts.Column("after"),
        ),
        tuple((each.side, each.prompt, each.wanted, each.before, each.after) for each in result.answers),
    )


def _figures(result: "Unlearned") -> list[parts.Part]:
    steps = plots.Axis("optimizer step")
    figures = []
    for kind, axis in (
        ("accuracy", plots.Axis("accuracy", chance=_chance(result), share=True)),
        ("log_probability", plots.Axis("log-probability of the answers", unit="nats/token")),
    ):
        series = {
            name.removesuffix(f"_{kind}"): [(point["step"], point[name]) for point in result.path if name in point]
            for name in result.after
            if name.endswith(kind)
        }
        if series:
            figures.append(parts.Figure(plots.lines(kind.replace("_", " ").capitalize(), series, x=steps, y=axis)))
    return [parts.Grid(tuple(figures))] if figures else []


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
