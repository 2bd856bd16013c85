"""What a person sees of a scorer: the report of its fit, and that of new prompts that it scored."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.core.marks import marks
from equipoise.core.numbers import number
from equipoise.reinforcement.result import shown
from equipoise.reinforcement.solvable_result import CRITIC

if TYPE_CHECKING:
    from equipoise.core.shares import Bounded
    from equipoise.reinforcement.solvable_result import Solvable, SolvableScores

MEANING = {
    "Brier": "lower is better; of single responses",
    "log loss": "lower is better; nats",
    "ECE": "lower is better; 10 bins of equal width",
    "AUROC": "higher is better; right responses above others",
    "Spearman": "higher is better; with the solve rate",
    "AURC": "lower is better; area under risk and coverage",
}
WHERE = "Look here first"


def fit_page(result: "Solvable", folder: Path) -> Page:
    """Whether it predicts, what answering only the surest brings, how honest its numbers are, where it was wrong."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    sections += [
        parts.Section("Is it better than a guess?", (_measures(result), _gains(result))),
        parts.Section("Answering only what will be solved", (_curve(result), _thresholds(result))),
        parts.Section("Are its numbers right?", tuple(_reliability(result))),
        parts.Section("Where it was most wrong", (_surprises(result),)),
        parts.Section("How the critic was fitted", (_path(result), parts.SettingsTable(dict(result.settings)))),
    ]
    name = Path(result.names["model"]).name
    asked = f", in {result.calls:,} calls" if result.calls else ""
    return Page(
        f"Will {name} solve it?",
        result.headline(),
        sections,
        facts=(
            ("asked", result.source),
            ("critic", f"{result.names['critic']}, {result.critic_parameters:,} parameters"),
            ("verifier", result.names["verifier"]),
            ("problems", ", ".join(f"{count:,} {part}" for part, count in result.problems.items())),
            ("solved at one try", f"{shown(result.solved)} of the test problems"),
            ("generated tokens", f"{result.tokens:,}{asked}"),
            ("calibration", f"p = σ({number(result.slope)} · logit {number(result.intercept, signed=True)})"),
        ),
    )


def _measures(result: "Solvable") -> parts.Table:
    columns = [parts.Column("predictor"), *(parts.Column(name, True) for name in MEANING)]
    rows = tuple(
        (name, *(parts.Cell(number(found[measure].value), _between(found[measure])) for measure in MEANING))
        for name, found in result.measures.items()
    )
    floor = (
        ""
        if math.isnan(result.floor)
        else f" The true rates of these problems would have a Brier score of about {number(result.floor)} (estimated), "
        "which no prediction can improve on but by chance."
    )
    return parts.Table(
        f"On {result.problems['test']:,} test problems; 95 % intervals over problems",
        tuple(columns),
        rows,
        note="; ".join(f"{name}: {meaning}" for name, meaning in MEANING.items()) + "." + floor,
        emphasised=frozenset({0}),
    )


def _between(value: "Bounded") -> str:
    return "" if math.isnan(value.lower) else f"{number(value.lower)} to {number(value.upper)}"


def _gains(result: "Solvable") -> parts.Figure:
    rows = [
        plots.ChartRow(control, found["Brier"].value, found["Brier"].lower, found["Brier"].upper)
        for control, found in result.gains.items()
    ]
    return parts.Figure(
        plots.intervals(
            "How much lower the critic's Brier score is than that of",
            rows,
            x=plots.Axis("difference of Brier scores, paired by problem"),
            uprights=[plots.Upright("no better", 0.0)],
            sides=("the control is better", "the critic is better"),
        )
    )


def _curve(result: "Solvable") -> parts.Figure:
    names = (CRITIC, "oracle", "random")
    points = [
        point
        for each in result.coverages
        for point in (
            plots.Point(CRITIC, each.coverage, each.rate.value, y_interval=(each.rate.lower, each.rate.upper)),
            plots.Point("oracle", each.coverage, each.oracle),
            plots.Point("random", each.coverage, result.solved.value),
        )
    ]
    kinds = dict(zip(names, ("method", "reference", "control"), strict=True))
    return parts.Figure(
        plots.paths(
            "Solved among the surest",
            marks(kinds),
            points,
            x=plots.Axis("coverage: share of the problems that are answered", share=True),
            y=plots.Axis("solved", better="higher", share=True),
            note="The oracle knows how often each problem was solved, luck included: nobody can reach it.",
        )
    )


def _thresholds(result: "Solvable") -> parts.Table:
    rows = tuple(
        (
            f"{each.target:.0%}",
            "none reached it" if math.isnan(each.threshold) else f"{each.threshold:.3f}",
            "–" if math.isnan(each.threshold) else shown(each.coverage),
            "–" if math.isnan(each.threshold) else shown(each.rate),
        )
        for each in result.thresholds
    )
    return parts.Table(
        "Thresholds for a target",
        (
            parts.Column("to solve"),
            parts.Column("answer where p is at least", True),
            parts.Column("share answered", True),
            parts.Column("solved of these", True),
        ),
        rows,
        note="Chosen on the calibration problems, measured on the test problems.",
    )


def _reliability(result: "Solvable") -> list[parts.Part]:
    points = [
        plots.Point(CRITIC, each.predicted, each.came.value, y_interval=(each.came.lower, each.came.upper))
        for each in result.bins
    ]
    ends = [plots.Point("as predicted", end, end) for end in (0.0, 1.0)]
    figure = plots.paths(
        "Predicted and solved",
        marks({CRITIC: "method", "as predicted": "reference"}),
        [*points, *ends],
        x=plots.Axis("predicted solve rate, mean of a bin", share=True),
        y=plots.Axis("solved", share=True),
    )
    table = parts.Table(
        "Bins of predictions",
        (
            parts.Column("predicted"),
            parts.Column("problems", True),
            parts.Column("mean prediction", True),
            parts.Column("solved", True),
        ),
        tuple(
            (f"{each.lower:.1f} to {each.upper:.1f}", each.count, each.predicted, shown(each.came))
            for each in result.bins
        ),
    )
    return [parts.Figure(figure), table]


def _surprises(result: "Solvable") -> parts.Table:
    """In the model's own words."""
    return parts.Table(
        "Test problems whose solve rate is furthest from the prediction",
        (
            parts.Column("prompt"),
            parts.Column("gold answer"),
            parts.Column("a response"),
            parts.Column("predicted", True),
            parts.Column("solved", True),
        ),
        tuple(
            (parts.Cell(each.prompt, each.id), each.gold, each.response, each.predicted, each.rate)
            for each in result.surprises
        ),
    )


def _path(result: "Solvable") -> parts.Figure:
    series = {"other prompts": [(point["step"], point["loss"]) for point in result.path]}
    return parts.Figure(
        plots.lines(
            "Loss on the prompts for stopping",
            series,
            x=plots.Axis("step"),
            y=plots.Axis("log loss", better="lower", unit="nats"),
            note=f"{result.steps:,} steps; the weights of step {result.kept_step:,} were kept.",
        )
    )


def score_page(result: "SolvableScores", folder: Path) -> Page:
    """How the predictions are spread, what the scorer's thresholds keep, the surest prompts and the least sure."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    spread = {"prompts": [(0.0, 1.0), *((float(p), share) for p, share in result.shares.items()), (1.0, 0.0)]}
    figure = plots.lines(
        "Prompts that are predicted at least so high",
        spread,
        x=plots.Axis("predicted solve rate", share=True),
        y=plots.Axis("share of the prompts", share=True),
    )
    targets = parts.Table(
        "The thresholds of the scorer on these prompts",
        (
            parts.Column("to solve"),
            parts.Column("answer where p is at least", True),
            parts.Column("share answered", True),
        ),
        tuple(
            (
                f"{each.target:.0%}",
                "none reached it" if math.isnan(each.threshold) else f"{each.threshold:.3f}",
                "–" if math.isnan(each.threshold) else f"{each.share:.1%}",
            )
            for each in result.targets
        ),
        note="Chosen when the scorer was fitted; its own report says how often they held there.",
    )
    extremes = parts.Table(
        "The surest prompts, and the least sure",
        (parts.Column("prompt"), parts.Column("predicted", True)),
        tuple((parts.Cell(each.prompt, each.id), each.probability) for each in result.extremes),
    )
    sections.append(parts.Section("What is predicted", (parts.Figure(figure), targets, extremes)))
    kept = () if result.kept is None else (("kept", f"{result.kept:,} within {result.keep}, in kept.jsonl"),)
    return Page(
        f"Which prompts will {Path(result.model).name} solve?",
        result.headline(),
        sections,
        facts=(
            ("scorer", result.names["scorer"]),
            ("prompts", f"{result.prompts:,} of {result.names['prompts']}"),
            *kept,
        ),
    )
