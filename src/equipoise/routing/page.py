"""What a person sees of labels, of a router that was fitted, and of routers that were measured."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.core.marks import marks
from equipoise.core.numbers import number
from equipoise.core.shares import shown
from equipoise.routing.measured import RIGHT
from equipoise.routing.result import LENGTH, RANDOM, told

if TYPE_CHECKING:
    from equipoise.core.shares import Bounded
    from equipoise.routing.measured import Card, Outcomes
    from equipoise.routing.result import RouteEvaluation, RouteFit, RouteLabels

MEANING = {
    "auroc": "AUROC: higher is better, 0.5 is chance; prompts that weak answers well above the others",
    "lpm": "LPM: mean quality at a tight budget, higher is better",
    "mpm": "MPM: mean quality between the budget's and the quality's band",
    "hcr": "HCR: share of calls saved where the quality must be high, higher is better; 0.10 by chance for [0.85, 0.95]",
}
CELLS = {
    "both": "both right",
    "only_strong": "only strong right",
    "only_weak": "only weak right",
    "neither": "neither right",
}
WHERE = "Look here first"
DRAWN = 5  # scores in a figure of curves


def label_page(result: "RouteLabels", folder: Path) -> Page:
    """Who solves what, by domain, and what both miss."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    table = parts.Table(
        "Quality and outcomes by domain; 95 % intervals over prompts or their groups",
        (
            parts.Column("domain"),
            parts.Column("prompts", True),
            parts.Column("weak", True),
            parts.Column("strong", True),
            *(parts.Column(name, True) for name in CELLS.values()),
        ),
        tuple(
            (
                name,
                each.prompts,
                _cell(each.weak),
                _cell(each.strong),
                *(_cell(getattr(each.outcomes, cell)) for cell in CELLS),
            )
            for name, each in result.domains.items()
        ),
        note=f"An answer counts as right from a quality of {result.right:g}. What both miss is escalated for nothing.",
    )
    sections.append(parts.Section("Who answers well", (table,)))
    return Page(
        "Labels for a router",
        result.headline(),
        sections,
        facts=(
            ("weak", result.source),
            ("strong", result.names["strong"]),
            ("judged by", result.names["judged by"]),
            ("prompts", f"{result.prompts:,} of {result.names['prompts']}"),
            ("nothing to compare in", ", ".join(f"{count:,} {who} answers" for who, count in result.unread.items())),
            ("written here", f"{result.tokens:,} tokens; {result.calls:,} calls of servers"),
        ),
    )


def fit_page(result: "RouteFit", folder: Path) -> Page:
    """Does it rank, what does its threshold come to, where does it hold, what was learnt."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    drawn = _drawn(result.cards, result.kind)
    sections += [
        parts.Section("Does it rank?", (_cards("Every score on the test prompts", result.cards), _gains(result))),
        parts.Section("What a call buys", (_curves(drawn),)),
        parts.Section("The threshold", (_threshold(result), _outcomes({"test prompts": result.outcomes}))),
    ]
    if len(result.domains) > 1:
        tables = [_cards(f"In {name}", each) for name, each in result.domains.items()]
        sections.append(parts.Section("By domain", (*tables, *_cross(result))))
    layers = {
        name: [(float(place), weight) for place, weight in enumerate(alpha)] for name, alpha in result.alpha.items()
    }
    figure = plots.lines(
        "Weight of each layer",
        layers,
        x=plots.Axis("layer, 0 the embeddings"),
        y=plots.Axis("weight", share=True),
        note=f"All start at {1 / max(result.layers, 1):.3f}. The Dirichlet's g, at first 1, came to {number(result.g)}.",
    )
    sections.append(
        parts.Section("What was learnt", (parts.Figure(figure), parts.SettingsTable(dict(result.settings))))
    )
    candidates = ", ".join(f"{name} {number(value)}" for name, value in result.chosen_on.items())
    return Page(
        "A router between a weak and a strong model",
        result.headline(),
        sections,
        facts=(
            ("weak model", result.source),
            ("router", f"{result.kind}, {result.bytes:,} bytes"),
            ("prompts", ", ".join(f"{count:,} to {part}" for part, count in result.prompts.items())),
            ("AUROC where it was chosen", candidates),
            (
                "calibration",
                f"p = σ({number(result.slope)} · s {number(result.intercept, signed=True)}), Brier {shown(result.brier)}",
            ),
        ),
    )


def evaluation_page(result: "RouteEvaluation", folder: Path) -> Page:
    """The three axes by domain, the scenarios, and what the threshold comes to."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    for name, each in result.cards.items():
        sections.append(
            parts.Section(f"Domain: {name}", (_cards("Every score", each), _curves(_drawn(each, "router"))))
        )
    order = parts.Table(
        "Which score suits which scenario, by the mean over domains, the best first",
        (parts.Column("scenario"), parts.Column("scores")),
        tuple(
            (MEANING[measure].split(":")[0], ", ".join(names) or "undefined")
            for measure, names in result.scenarios.items()
        ),
    )
    sections.append(parts.Section("Scenarios", (order, _outcomes(result.outcomes))))
    facts = [("prompts", f"{result.prompts:,} of {result.names['labels']}")]
    if result.router:
        facts += [
            ("router", f"{result.router}, {result.names['router']}"),
            ("threshold", f"{number(result.threshold)}, for {result.aim} {result.target:g}: {result.held_out.verdict}"),
            ("calls here", shown(result.held_out.calls)),
            ("quality here", shown(result.held_out.quality)),
        ]
    if result.unread:
        facts.append(("replies without a number", f"{result.unread:,}"))
    return Page("Routers, measured", result.headline(), sections, facts=tuple(facts))


def _cell(value: "Bounded") -> parts.Cell:
    between = "" if math.isnan(value.lower) else f"{number(value.lower)} to {number(value.upper)}"
    return parts.Cell(number(value.value), between)


def _cards(title: str, cards: "Mapping[str, Card]") -> parts.Table:
    card = next(iter(cards.values()))
    order = sorted(cards, key=lambda name: -cards[name].auroc.value if not math.isnan(cards[name].auroc.value) else 1)
    return parts.Table(
        f"{title}: {card.n:,} prompts; 95 % intervals over {card.clusters:,} prompts or groups",
        (parts.Column("score"), *(parts.Column(name.upper(), True) for name in MEANING)),
        tuple((name, *(_cell(getattr(cards[name], measure)) for measure in MEANING)) for name in order),
        note=". ".join(MEANING.values())
        + f". Bands: {card.bands}. Weak alone {shown(card.weak)}, strong alone {shown(card.strong)}.",
    )


def _drawn(cards: "Mapping[str, Card]", own: str) -> "dict[str, Card]":
    """The score that matters, the controls, and the best of the others."""
    rest = sorted(
        (name for name in cards if name not in (own, LENGTH, RANDOM)), key=lambda name: -(cards[name].auroc.value or 0)
    )
    names = [name for name in (own, LENGTH, RANDOM) if name in cards]
    names = list(dict.fromkeys(names))
    return {name: cards[name] for name in [*names, *rest][:DRAWN]}


def _curves(cards: "Mapping[str, Card]") -> parts.Figure:
    kinds = {name: "control" if name in (LENGTH, RANDOM) else "method" for name in cards}
    points = [
        plots.Point(name, place / 100, value)
        for name, card in cards.items()
        for place, value in enumerate(card.curve)
        if place % 4 == 0 and not math.isnan(value)
    ]
    return parts.Figure(
        plots.paths(
            "Quality by the share of calls",
            marks(kinds),
            points,
            x=plots.Axis("share of prompts that go to the strong model", share=True),
            y=plots.Axis("mean quality of the answers", better="higher"),
            note="Random routing is the straight line from weak alone to strong alone.",
        )
    )


def _gains(result: "RouteFit") -> parts.Figure:
    order = sorted(result.gains, key=lambda name: -result.gains[name].value)
    rows = [plots.ChartRow(name, each.value, each.lower, each.upper) for name in order for each in [result.gains[name]]]
    return parts.Figure(
        plots.intervals(
            "How much higher the AUROC is than that of the prompt's length",
            rows,
            x=plots.Axis("difference of AUROCs, on the same prompts"),
            uprights=[plots.Upright("no better", 0.0)],
            sides=("length is better", "the score is better"),
        )
    )


def _threshold(result: "RouteFit") -> parts.Table:
    chosen, held = result.threshold, result.held_out
    return parts.Table(
        "The threshold where it was chosen, and on prompts that it was not chosen on",
        (parts.Column("prompts"), parts.Column("calls", True), parts.Column("quality", True), parts.Column("verdict")),
        (
            (f"{chosen.n:,} to choose", _cell(chosen.calls), _cell(chosen.quality), f"{chosen.aim} {chosen.target:g}"),
            (f"{held.n:,} to test", _cell(held.calls), _cell(held.quality), held.verdict),
        ),
        note=told(chosen) + "." + _shared(result),
    )


def _shared(result: "RouteFit") -> str:
    if result.settings["kind"] != "best":
        return ""
    return (
        f" The router is the best of {len(result.chosen_on)} on these same prompts, and the threshold is held for each of "
        f"them with 1/{len(result.chosen_on)} of the error, so that the promise holds whichever was taken."
    )


def _outcomes(tables: "Mapping[str, Outcomes]") -> parts.Table:
    rows = []
    for name, table in tables.items():
        rows.append((name, "all", table.n, *(_cell(getattr(table, cell)) for cell in CELLS)))
        if table.sent > 0:
            escalated = (number(table.escalated.get(cell, math.nan)) for cell in CELLS)
            rows.append((name, "sent to strong", round(table.sent * table.n), *escalated))
    return parts.Table(
        "Who is right",
        (
            parts.Column("prompts"),
            parts.Column("which"),
            parts.Column("how many", True),
            *(parts.Column(name, True) for name in CELLS.values()),
        ),
        tuple(rows),
        note=f"Shares of each row. An answer counts as right from a quality of {RIGHT:g}; undefined where a quality lies "
        "beyond 0 to 1. Of what is sent, only 'only strong right' gains by it.",
    )


def _cross(result: "RouteFit") -> list[parts.Table]:
    if not result.cross:
        return []
    tested = list(dict.fromkeys(name for each in result.cross.values() for name in each))
    table = parts.Table(
        "AUROC across domains: fitted on a row's domain, tested on a column's",
        (parts.Column("fitted on"), *(parts.Column(name, True) for name in tested)),
        tuple((name, *(_cell(each[other]) for other in tested)) for name, each in result.cross.items()),
        note="Tested within one domain at a time: pooled, an AUROC also measures how well domains are told apart.",
    )
    return [table]
