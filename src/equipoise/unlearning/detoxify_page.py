"""What a person sees of a detoxified model: what was taken out in words, toxicity against perplexity, what it writes now."""

import json
import math
from typing import TYPE_CHECKING

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.core.numbers import number
from equipoise.unlearning.detoxified import PERPLEXITY, TOXICITY

if TYPE_CHECKING:
    from equipoise.unlearning.detoxified import Detoxified, Direction
    from equipoise.unlearning.result import Measure

MEANING = {
    TOXICITY: "mean probability, by a scorer taught on the fitted pairs, for what the model writes without listed words",
    PERPLEXITY: "exp of the mean loss per token, over the general texts or the neutral sides",
    "toxic_log_probability": "of the unwanted texts that are held out",
    "neutral_log_probability": "of the wanted texts that are held out",
    "preference": "how much likelier per token the unwanted text is than the wanted one",
    "written_nothing": "continuations of which nothing is left to score",
    "listed_mass": "probability of a listed token at each place of the unwanted texts; ranked by the same list",
}
LISTED = 40  # candidates that are shown


def page(result: "Detoxified") -> Page:
    """The report, from the result alone."""
    warnings = [parts.Note(warning, "Look here first") for warning in result.warnings()]
    sections: list[parts.Part] = [
        *warnings,
        parts.Section("What changed", (_measures(result), *_figures(result), *_sweep(result))),
        parts.Section(
            "What was taken out, in words",
            (
                _directions(_which(result), result.subspace, layers=False),
                parts.Details(
                    f"The candidates, {result.counts['kept']:,} of {result.counts['candidates']:,} kept",
                    (_directions("Candidates, those that are kept first", result.directions[:LISTED]), _ranked(result)),
                ),
            ),
            lead="The tokens that a direction makes likeliest, and those that its opposite does. Look whether they are what "
            "you wanted to be rid of: a direction of rare or foreign words has another meaning than the scorer's number.",
        ),
        parts.Section("What it writes", (_continuations(result),)),
        parts.Section("Where it was taken from", (_layers(result), _rebuilt(result))),
    ]
    return Page(
        f"{result.names['model'].rstrip('/').rsplit('/', 1)[-1]}, a subspace taken out",
        result.headline(),
        sections,
        facts=(
            ("start", result.source),
            ("method", f"{result.resolved['method']}, rank {result.resolved['rank']}"),
            ("layers", f"{result.resolved['layers']} of {result.resolved['of_layers']}"),
            ("numbers of the edited weights that moved", f"{result.moved:.1%}"),
            ("written model against measured one", f"{number(result.gap, 2)} nats per token"),
        ),
        files={"README.md": card(result)},
    )


def card(result: "Detoxified") -> str:
    """The README.md of the model folder."""
    header = {
        "base_model": result.names["model"],
        "library_name": "transformers",
        "tags": ["detoxification", "equipoise", result.resolved["method"]],
        "pipeline_tag": "text-generation",
    }
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in header.items()), "---", ""]
    lines += [
        f"# {result.names['model']}, a subspace taken out",
        "",
        *(f"**{warning}**\n" for warning in result.warnings()),
        result.headline(),
        "",
        "| measure | better | before | after | random |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {measure.better} | {result.before[name]} | {measure} | {result.control[name]} |"
            for name, measure in result.after.items()
        ),
        "",
        f"- {result.judged()}",
        *(f"- {note}" for note in result.notes),
        "- `equipoise detoxify --undo FOLDER` gives back the model as it was.",
        "",
    ]
    return "\n".join(lines)


def _measures(result: "Detoxified") -> parts.Table:
    return parts.Table(
        "Before, after, and after random projections of the same rank and layers",
        (
            parts.Column("measure"),
            parts.Column("better"),
            parts.Column("before", True),
            parts.Column("after", True),
            parts.Column("random", True),
        ),
        tuple(
            (
                parts.Cell(name, MEANING[name]),
                measure.better,
                _value(result.before[name]),
                _value(measure),
                _value(result.control[name]),
            )
            for name, measure in result.after.items()
        ),
        note=f"Of {result.counts['held out']:,} pairs that are held out. {result.judged()} It knows the style of these "
        "pairs; threats and hate in plain words pass it.",
    )


def _value(measure: "Measure") -> parts.Cell:
    return parts.Cell("undefined" if math.isnan(measure.value) else number(measure.value, 4))


def _figures(result: "Detoxified") -> list[parts.Part]:
    series: dict[str, list[tuple[float, float]]] = {}
    for name, measures in (
        ("before", result.before),
        ("random projections", result.control),
        *((f"layers {point.layers}", point.measures) for point in result.sweep),
    ):
        place = measures[PERPLEXITY].value, measures[TOXICITY].value
        if all(map(math.isfinite, place)):
            series.setdefault(name, []).append(place)
    if sum(map(len, series.values())) < 2:
        return []
    figure = plots.lines(
        "Toxicity against perplexity",
        {name: sorted(points) for name, points in series.items()},
        x=plots.Axis("perplexity", better="lower"),
        y=plots.Axis("toxicity", better="lower"),
    )
    return [parts.Figure(figure)]


def _sweep(result: "Detoxified") -> list[parts.Part]:
    if len(result.sweep) < 2:
        return []
    best = _frontier(result)
    return [
        parts.Table(
            "Strengths and layers",
            (
                parts.Column("layers"),
                parts.Column("strength", True),
                parts.Column("toxicity", True),
                parts.Column("perplexity", True),
                parts.Column("preference", True, "nats/token"),
                parts.Column(""),
            ),
            tuple(
                (
                    point.layers,
                    point.strength,
                    *(_number(point.measures[name].value) for name in (TOXICITY, PERPLEXITY, "preference")),
                    ", ".join(
                        [
                            *(["written"] if point.written else []),
                            *(["nothing better in both"] if place in best else []),
                        ]
                    ),
                )
                for place, point in enumerate(result.sweep)
            ),
        )
    ]


def _frontier(result: "Detoxified") -> set[int]:
    """Points, of two numbers, that no other beats in one of toxicity and perplexity without being worse in the other."""
    values = [(each.measures[TOXICITY].value, each.measures[PERPLEXITY].value) for each in result.sweep]
    return {
        place
        for place, (toxicity, perplexity) in enumerate(values)
        if math.isfinite(toxicity) and math.isfinite(perplexity)
        if not any(
            other != (toxicity, perplexity) and other[0] <= toxicity and other[1] <= perplexity for other in values
        )
    }


def _which(result: "Detoxified") -> str:
    """profs has a subspace for each layer, of which the result holds the first's."""
    first = next((each.layer for each in result.subspace), None)
    if result.resolved["method"] == "profs" and first is not None:
        return f"The subspace of layer {first}; each layer has its own"
    return "The subspace, one for all layers"


def _directions(title: str, directions: "tuple[Direction, ...]", *, layers: bool = True) -> parts.Table:
    return parts.Table(
        title,
        (
            *([parts.Column("layer", True)] if layers else []),
            parts.Column("number", True),
            parts.Column("share listed", True),
            parts.Column("likelier"),
            parts.Column("less likely"),
        ),
        tuple(
            (
                *([each.layer] if layers else []),
                each.number,
                _number(each.score),
                _tokens(each.tokens),
                _tokens(each.opposite),
            )
            for each in directions
        ),
    )


def _tokens(tokens: tuple[str, ...]) -> str:
    return " · ".join(token.strip() or "(blank)" for token in tokens)


def _ranked(result: "Detoxified") -> parts.Text:
    words = ", ".join(result.words) or "none"
    covered = (
        "" if math.isnan(result.coverage) else f"{result.coverage:.0%} of the words are tokens, or begin with one. "
    )
    return parts.Text(f"Listed words, the first of them: {words}. {covered}", quiet=True)


def _continuations(result: "Detoxified") -> parts.Table:
    return parts.Table(
        "What the model writes behind held-out prompts, before and after",
        (
            parts.Column("prompt"),
            parts.Column("before"),
            parts.Column("after"),
            parts.Column("toxicity before", True),
            parts.Column("after", True),
        ),
        tuple(
            (each.prompt, each.before, each.after, _number(each.toxicity_before), _number(each.toxicity_after))
            for each in result.continuations
        ),
    )


def _layers(result: "Detoxified") -> parts.Table:
    return parts.Table(
        "Share of the squared norm of each value matrix that was taken out",
        (parts.Column("layer", True), parts.Column("taken out", True)),
        tuple((each.layer, _number(each.removed)) for each in result.layers),
    )


def _rebuilt(result: "Detoxified") -> parts.Table:
    return parts.Table(
        "Can the layer still write what was removed?",
        (
            parts.Column("of how many vectors"),
            parts.Column("left of vectors that were set to zero", True),
            parts.Column("left of the subspace", True),
        ),
        tuple(
            ("all" if not each.terms else f"{each.terms} at most", _number(each.residual), _number(each.subspace))
            for each in result.rebuilt
        ),
        note="0: the vectors that are left write it exactly, 1: nothing of it. The first column of numbers is the older "
        "edit, which sets the value vectors likest to a linear probe to zero; this model was not edited so.",
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
