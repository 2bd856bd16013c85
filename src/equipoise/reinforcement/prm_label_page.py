"""What a person sees of labels of steps: how many are right before and after correction, what was removed, what it cost."""

from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.core.numbers import number
from equipoise.reinforcement.prm_label_result import HARD, NONE, SOFT
from equipoise.reinforcement.result import shown, signed

if TYPE_CHECKING:
    from equipoise.reinforcement.prm_label_result import StepLabels

WHERE = "Look here first"
LONGEST = 400  # characters of a step or a quote that is shown


def label_page(result: "StepLabels", folder: Path) -> Page:
    """Labels, corrections with their evidence, labels by place, one solution step by step, cost."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    sections += [
        parts.Section("How many steps are right?", (_labels(result), _noise(result))),
        parts.Section("What the judge removed", tuple(_removed(result))),
        parts.Section("Labels by the place of a step", (_figure(result), _places(result))),
        parts.Section("A solution, step by step", (_solution(result),)),
        parts.Section("What it cost", (_cost(result),)),
    ]
    return Page(
        f"Which steps are right? Labels from {Path(result.names['model']).name}",
        result.headline(),
        sections,
        facts=(
            ("policy", result.source),
            ("judge", result.names["judge"]),
            ("verifier", result.names["verifier"]),
            ("labelled", f"{result.steps:,} steps of {result.solutions:,} solutions of {result.problems:,} problems"),
            ("right solutions", f"{shown(result.correct)} of those that come to an answer"),
            ("completions", f"{result.completions:,}, {result.settings['samples']} from the end of a step"),
        ),
    )


def _labels(result: "StepLabels") -> parts.Table:
    meaning = {
        HARD: "share labelled right: one completion or more reached the gold answer",
        SOFT: "mean share that did",
    }
    return parts.Table(
        "Labels before and after correction; 95 % intervals over problems",
        (parts.Column("label"), parts.Column("before"), parts.Column("after"), parts.Column("lowered by")),
        tuple(
            (
                parts.Cell(name, meaning[name]),
                shown(result.before[name]),
                shown(result.after[name]),
                signed(result.lowered[name]),
            )
            for name in (HARD, SOFT)
        ),
    )


def _noise(result: "StepLabels") -> parts.Text:
    before, after = result.rises
    return parts.Text(
        f"{before:,} of {result.pairs:,} steps that follow another one are labelled right behind one that is labelled wrong "
        f"({after:,} after correction). A right step behind a wrong one is a repair, or one of both labels is noise."
    )


def _removed(result: "StepLabels") -> list[parts.Part]:
    if result.names["judge"] == NONE:
        return [parts.Text("No judge was asked: successes by repair are among the labels.")]
    share = f" ({result.removed / result.successes:.1%})" if result.successes else ""
    told = f"{result.removed:,} of {result.successes:,} successful completions{share} corrected the step they went on from."
    if result.judged:
        told += (
            " Of the judge's answers: " + ", ".join(f"{count:,} {what}" for what, count in result.judged.items()) + "."
        )
    if not result.examples:
        return [parts.Text(told)]
    table = parts.Table(
        "Some of them, with the words that the judge went by",
        (parts.Column("step"), parts.Column("what the step says"), parts.Column("what a completion said of it")),
        tuple(
            (
                parts.Cell(f"step {each.step}", f"{each.solution}, completion {each.completion}"),
                _short(each.text),
                parts.Cell(_short(each.quote), "" if each.quote == each.added else f"in: {_short(each.added)}"),
            )
            for each in result.examples
        ),
    )
    return [parts.Text(told), table]


def _figure(result: "StepLabels") -> parts.Figure:
    corrected = result.names["judge"] != NONE
    series = {"soft label": [(float(each.place), each.soft) for each in result.places]}
    if corrected:
        series["corrected"] = [(float(each.place), each.corrected_soft) for each in result.places]
    return parts.Figure(
        plots.lines(
            "Mean soft label by place",
            series,
            x=plots.Axis("place of the step in its solution"),
            y=plots.Axis("mean soft label", share=True),
            note="Later places are those of longer solutions alone.",
        )
    )


def _places(result: "StepLabels") -> parts.Table:
    return parts.Table(
        "Labels by place",
        (
            parts.Column("place"),
            parts.Column("steps", True),
            parts.Column("hard", True),
            parts.Column("corrected hard", True),
            parts.Column("soft", True),
            parts.Column("corrected soft", True),
        ),
        tuple(
            (
                f"{each.place} and later" if each.more else str(each.place),
                each.steps,
                each.hard,
                each.corrected_hard,
                each.soft,
                each.corrected_soft,
            )
            for each in result.places
        ),
        note="Hard: the share of positive labels; soft: the mean share of completions that reached the gold answer.",
    )


def _solution(result: "StepLabels") -> parts.Table:
    samples = result.settings["samples"]
    name = result.solution_shown[0].solution if result.solution_shown else ""
    return parts.Table(
        f"Solution {name}: how many of {samples} completions from the end of each step were right",
        (parts.Column("step"), parts.Column("text"), parts.Column("right", True), parts.Column("corrected", True)),
        tuple((str(each.step), _short(each.text), each.successes, each.corrected) for each in result.solution_shown),
    )


def _cost(result: "StepLabels") -> parts.Table:
    return parts.Table(
        "In all attempts",
        (parts.Column("what"), parts.Column("how many")),
        tuple((what, number(value)) for what, value in result.cost.items()),
    )


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
