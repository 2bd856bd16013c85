"""What a person sees of a reinforced model: the model card in its folder and a one-page report."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.core.numbers import number
from equipoise.reinforcement.result import shown, signed

if TYPE_CHECKING:
    from equipoise.reinforcement.rates import Selected
    from equipoise.reinforcement.result import Reinforced

MEANING = {
    "greedy_accuracy": "the likeliest response is right",
    "pass@1": "a sampled response is right",
    "reward": "mean reward of sampled responses",
    "valid": "turns that the environment understood and allowed",
    "finished": "episodes that the environment ended, neither cut at a limit nor failed in a step",
}
# What the log has of each step, by the figure that shows it: the title, its axis, and the names of its lines.
FIGURES = (
    (
        "Reward",
        plots.Axis("mean reward of a step", better="higher"),
        {"reward": "reward", "critic_mean": "expected by the critic"},
    ),
    ("Length", plots.Axis("tokens of a response"), {"length": "length"}),
    ("Entropy", plots.Axis("entropy", unit="nats/token"), {"entropy": "entropy"}),
    (
        "What does not teach, or is held back",
        plots.Axis("share", share=True),
        {
            "zero_advantage": "responses without advantage",
            "clip_fraction_low": "tokens clipped below",
            "clip_fraction_high": "tokens clipped above",
            "tiny_anchor_share": "places without anchors",
        },
    ),
    (
        "Support of the starting model",
        plots.Axis("policy's mass on its likeliest tokens", share=True),
        {"support_coverage": "coverage"},
    ),
    ("Divergence from the starting model", plots.Axis("KL", unit="nats/token"), {"kl": "KL"}),
    (
        "Episodes",
        plots.Axis("share of a step's episodes", share=True),
        {"success": "solved", "cut": "cut at the limit", "failed": "failed"},
    ),
    ("Turns that were understood", plots.Axis("share of turns", better="higher", share=True), {"valid": "valid"}),
    ("Turns", plots.Axis("turns of an episode"), {"turns": "turns"}),
    ("The critic", plots.Axis("Brier score", better="lower"), {"critic_brier": "Brier score of the critic"}),
)
OF_SELECTION = (
    (
        "Groups that teach something",
        plots.Axis("share of groups with unequal rewards", better="higher", share=True),
        {"effective_share": "written to learn from", "reference_effective_share": "drawn uniformly, to measure"},
    ),
    ("Groups that came again", plots.Axis("share of a batch", share=True), {"replayed_share": "from earlier steps"}),
    (
        "Staleness",
        plots.Axis("KL(writer, policy)", better="lower", unit="nats/token"),
        {"staleness": "of what came again"},
    ),
)
OF_BLOCKS = (
    (
        "Predicted and measured difficulty",
        plots.Axis("correlation", better="higher"),
        {"trusted": "trusted", "untrusted": "not trusted: drawn uniformly"},
    ),
)


def page(result: "Reinforced", folder: Path) -> Page:
    """What was learnt, along which way and at which cost; with the card that a model folder carries."""
    warnings = [parts.Note(warning, "Look here first") for warning in result.warnings()]
    changed: list[parts.Part] = [_measures(result), *_path(result)]
    if result.answers:
        changed.append(_answers(result))
    sections: list[parts.Part] = [*warnings, parts.Section("What changed", tuple(changed))]
    rows = _log(folder / "metrics.jsonl")
    if result.selected is not None:
        sections.append(_selection(result, result.selected, rows))
    if figures := _figures(rows, FIGURES):
        sections.append(parts.Section("Step by step", (parts.Grid(tuple(figures)),)))
    sections.append(parts.Section("The recipe", (parts.SettingsTable(dict(result.resolved)),)))
    return Page(
        f"{Path(result.names['model']).name}, reinforced by {result.method}",
        result.headline(),
        sections,
        facts=(
            ("start", result.source),
            ("judged by", result.verifier),
            ("problems", ", ".join(f"{count:,} {name}" for name, count in result.problems.items())),
            ("generated tokens", ", ".join(f"{count:,} for {name}" for name, count in result.tokens.items())),
            ("length of right and wrong responses", _lengths(result)),
            (
                f"steps whose responses {'to each prompt' if result.within else 'all'} had one reward",
                f"{result.alike:.0%}",
            ),
            ("trained weights that moved", f"{result.moved:.1%}"),
            ("written model against trained one", f"{number(result.gap, 2)} nats per token"),
        ),
        files={"README.md": card(result, json.loads((folder / "run.json").read_text(encoding="utf-8")))},
    )


def card(result: "Reinforced", settings: Mapping[str, Any]) -> str:
    """The README.md of the model folder: YAML header as the hub reads it, settings, measures before and after."""
    recipe = result.recipe
    header = {
        "base_model": result.names["model"],
        "library_name": "peft" if recipe["parameters"] == "lora" else "transformers",
        "tags": ["reinforcement-learning", "equipoise", result.method],
        "pipeline_tag": "text-generation",
    }
    name = f"{Path(result.names['model']).name}, reinforced by {result.method}"
    beside = " The critic lies in `critic/`." if result.critic else ""
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---", "", f"# {name}", ""]
    lines += [
        *(f"**{warning}**\n" for warning in result.warnings()),
        f"{result.steps} steps on `{result.given}`, judged by `{result.verifier}`, "
        f"{result.tokens['training']:,} generated tokens.{beside} Start: {result.source}",
        "",
        "| measure | before | after | change |",
        "|---|---|---|---|",
        *(
            f"| {key} | {shown(result.before[key])} | {shown(value)} | {signed(result.changes[key])} |"
            for key, value in result.after.items()
        ),
        "",
        *(f"- {note}" for note in result.notes),
        "",
        "## Settings",
        "```json",
        json.dumps({**settings, **result.resolved}, indent=2),
        "```",
        "",
    ]
    return "\n".join(lines)


def _measures(result: "Reinforced") -> parts.Table:
    count = result.problems["to measure on"]
    return parts.Table(
        f"Before and after, on {count:,} problems; 95 % intervals over problems",
        (
            parts.Column("measure"),
            parts.Column("before", True),
            parts.Column("after", True),
            parts.Column("change", True),
        ),
        tuple(
            (
                parts.Cell(name, _meaning(name, result.chance)),
                shown(result.before[name]),
                shown(after),
                signed(result.changes[name]).replace("-", "−"),
            )
            for name, after in result.after.items()
        ),
    )


def _meaning(name: str, chance: Mapping[str, float]) -> str:
    part = name.startswith("success/")
    meaning = "of its own ends, solved" if part else MEANING.get(name, "at least one of so many samples is right")
    by_chance = chance.get({"pass@1": "success"}.get(name, name))
    return meaning if by_chance is None else f"{meaning}; without any skill {by_chance:.3f}"


def _path(result: "Reinforced") -> list[parts.Part]:
    series = {
        name: [(point["step"], point[name]) for point in result.path if name in point]
        for name in ("greedy_accuracy", "pass@1")
    }
    axis = plots.Axis("solved", better="higher", share=True)
    return [parts.Figure(plots.lines("Solved along the way", series, x=plots.Axis("step"), y=axis))]


def _answers(result: "Reinforced") -> parts.Table:
    """What the model says, in its own words: the likeliest response before and after."""
    gold = any(each.gold for each in result.answers)
    columns = ("prompt", "gold answer", "before", "after") if gold else ("first text", "before", "after")
    return parts.Table(
        "Responses before and after",
        tuple(map(parts.Column, columns)),
        tuple(
            (
                each.prompt,
                *((each.gold,) if gold else ()),
                parts.Cell(each.before, f"reward {each.reward_before:g}"),
                parts.Cell(each.after, f"reward {each.reward_after:g}"),
            )
            for each in result.answers
        ),
    )


def _lengths(result: "Reinforced") -> str:
    """Right against wrong, before and after: a method that pays for length shows here."""
    return ", ".join(
        f"{name}: {'none' if math.isnan(value) else f'{value:.1f} tokens'}" for name, value in result.lengths.items()
    )


def _log(metrics: Path) -> list[Mapping[str, Any]]:
    if not metrics.exists():
        return []
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]


def _selection(result: "Reinforced", selected: "Selected", rows: Sequence[Mapping[str, Any]]) -> parts.Section:
    """Which prompts were learnt from, what it cost to know them, and which responses came again."""
    told = [*selected.sentences(), *([f"Predictor of difficulty: {result.predictor}."] if result.predictor else [])]
    shares = [{**row, "replayed_share": _replayed_share(row)} for row in rows]
    blocks = [
        {"step": row["step"], "untrusted" if row["uniform_block"] else "trusted": row["correlation"]}
        for row in rows
        if row.get("uniform_block") is not None
    ]
    figures = [*_figures(shares, OF_SELECTION), *_figures(blocks, OF_BLOCKS)]
    return parts.Section("Which prompts were learnt from", (parts.Bullets(tuple(told)), parts.Grid(tuple(figures))))


def _replayed_share(row: Mapping[str, Any]) -> float | None:
    again = row.get("replayed_groups")
    return None if again is None else again / (again + row["fresh_groups"])


def _figures(rows: Sequence[Mapping[str, Any]], wanted: Sequence[Any]) -> list[parts.Part]:
    figures: list[parts.Part] = []
    for title, axis, names in wanted:
        series = {
            label: [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            for name, label in names.items()
        }
        series = {label: points for label, points in series.items() if points}
        if series:
            figures.append(parts.Figure(plots.lines(title, series, x=plots.Axis("step"), y=axis)))
    return figures
