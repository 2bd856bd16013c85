"""What a person sees of a process reward model that was weighed."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.reinforcement.prm_evaluation_result import MODEL, of_split, rule
from equipoise.reinforcement.result import shown

if TYPE_CHECKING:
    from equipoise.reinforcement.prm_evaluation_result import Misjudged, PrmEvaluation

WHERE = "Look here first"


def evaluation_page(result: "PrmEvaluation") -> Page:
    """Whether right steps are told from wrong ones, whether the first error is found, what choosing by scores brings."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    if result.discrimination:
        told = _discrimination(result)
        sections.append(parts.Section("Does it tell right steps from wrong ones?", told))
    if result.first_errors:
        sections.append(parts.Section("Does it find the first error?", (_first_errors(result),)))
    if result.classes:
        sections.append(parts.Section("Which errors does it see?", (_classes(result),)))
    if result.best_of:
        sections.append(parts.Section("Choosing the best of several solutions", (_best_of(result),)))
    if result.misjudged:
        sections.append(
            parts.Section(
                "Where it was most wrong",
                (misjudged_table("Steps whose score is furthest from their label", result.misjudged),),
            )
        )
    return Page(
        "How well are steps judged?",
        result.headline(),
        sections,
        facts=(
            ("model", result.source),
            ("data", result.names["data"]),
            ("solutions", ", ".join(f"{count:,} {name}" for name, count in result.solutions.items())),
            ("steps", f"{result.steps:,}, of which {result.unread:,} were not read"),
            *(
                (("wrong steps beyond the end", f"{result.beyond:,}, which count for nothing"),)
                if result.beyond
                else ()
            ),
        ),
    )


def _discrimination(result: "PrmEvaluation") -> tuple[parts.Part, ...]:
    rows = [
        plots.ChartRow(f"{each.data}, {each.split}", each.model.value, each.model.lower, each.model.upper)
        for each in result.discrimination
        if not math.isnan(each.model.value)
    ]
    figure = plots.intervals(
        "AUROC of steps",
        rows,
        x=plots.Axis("chance that a right step is scored above a wrong one", better="higher"),
        uprights=[plots.Upright("no better than chance", 0.5)],
    )
    table = parts.Table(
        "AUROC of steps, with 95 % intervals over problems",
        (
            parts.Column("data"),
            parts.Column("split"),
            parts.Column("the model", True),
            parts.Column("step position", True),
            parts.Column("right steps", True),
            parts.Column("wrong steps", True),
            parts.Column("not read", True),
        ),
        tuple(
            (each.data, each.split, shown(each.model), shown(each.position), each.right, each.wrong, each.unread)
            for each in result.discrimination
        ),
        note="Step position knows only which step of its solution it is. Intervals need 50 problems.",
    )
    return (parts.Figure(figure), table) if rows else (table,)


def _first_errors(result: "PrmEvaluation") -> parts.Table:
    return parts.Table(
        "First errors, as ProcessBench counts them",
        (
            parts.Column("data"),
            parts.Column("split"),
            parts.Column("by"),
            parts.Column("a step is wrong below"),
            parts.Column("F1", True),
            parts.Column("right error named", True),
            parts.Column("right solution passed", True),
            parts.Column("wrong solutions", True),
            parts.Column("right solutions", True),
        ),
        tuple(
            (
                each.data,
                of_split(each),
                each.predictor,
                rule(each, result.threshold),
                shown(each.f1),
                _share(each.error_accuracy),
                _share(each.correct_accuracy),
                each.errors,
                each.corrects,
            )
            for each in result.first_errors
        ),
        note="F1 is the harmonic mean of the two shares; published numbers are 100 times as large, averaged over the splits "
        "that have both wrong and right solutions. "
        "Each half of the problems is judged at the threshold that is best on the other half.",
        emphasised=frozenset(i for i, each in enumerate(result.first_errors) if each.predictor == MODEL),
    )


def _classes(result: "PrmEvaluation") -> parts.Table:
    return parts.Table(
        "Classes of errors, as PRMBench counts them",
        (
            parts.Column("class"),
            parts.Column("by"),
            parts.Column("a step is wrong below"),
            parts.Column("PRMScore", True),
            parts.Column("F1 of right steps", True),
            parts.Column("F1 of wrong steps", True),
            parts.Column("right steps", True),
            parts.Column("wrong steps", True),
        ),
        tuple(
            (
                each.name,
                each.predictor,
                rule(each, result.threshold),
                shown(each.score),
                _share(each.f1),
                _share(each.negative_f1),
                each.right,
                each.wrong,
            )
            for each in result.classes
        ),
        note="PRMScore is the mean of the two, where there are no wrong steps the first alone (multi_solutions); of all, "
        "over the steps of all classes together. A model with one score a step is asked for redundancy by the same score.",
        emphasised=frozenset(i for i, each in enumerate(result.classes) if each.predictor == MODEL),
    )


def _best_of(result: "PrmEvaluation") -> parts.Table:
    counts = result.chosen_from
    return parts.Table(
        "Solved, when the solution with the highest aggregate of its steps' scores is taken",
        (parts.Column("aggregate"), parts.Column("solved", True)),
        tuple((each.how, shown(each.solved)) for each in result.best_of),
        note=f"{counts['solutions']:,} solutions of {counts['problems']:,} problems; in {counts['decided']:,} of these some "
        "solutions are right and some wrong, so that the choice decides. Of equal ones the mean counts.",
    )


def misjudged_table(title: str, steps: Sequence["Misjudged"], note: str = "") -> parts.Table:
    """Steps with their labels and their scores."""
    return parts.Table(
        title,
        (
            parts.Column("solution"),
            parts.Column("step", True),
            parts.Column("what it says"),
            parts.Column("label"),
            parts.Column("score", True),
        ),
        tuple(
            (
                parts.Cell(each.id, each.problem),
                each.at + 1,
                each.step,
                "right" if each.right else "wrong",
                each.probability,
            )
            for each in steps
        ),
        note=note,
    )


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
