"""What a person sees of a Bayesian teacher and of its student."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.core.numbers import number
from equipoise.uncertainty.bayes_result import MEASURES, MLE, STUDENT, TEACHER

if TYPE_CHECKING:
    from equipoise.core.shares import Bounded
    from equipoise.uncertainty.bayes_result import Bayesianized, CalibrationCard, Distilled, Tested

WHERE = "Look here first"
PERFECT = "as often right as sure"


def teacher_page(result: "Bayesianized") -> Page:
    """How the noise was chosen, and what it does to calibration."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    sections += _tested(result.tested)
    if result.tried:
        rows = tuple((number(sigma), number(change)) for sigma, change in result.tried)
        table = parts.Table(
            "What each sigma changes",
            (parts.Column("sigma", True), parts.Column("relative change of the NLL", True)),
            rows,
            note=f"Of the adapter's own predictions as labels. Borne: {number(result.settings['tolerance'])}.",
        )
        sections.append(parts.Section("The noise", (table,)))
    sections.append(parts.Section("Settings", (parts.SettingsTable(dict(result.settings)),)))
    return Page(
        "A Bayesian teacher",
        result.headline(),
        sections,
        facts=(
            ("adapter", f"{result.names['adapter']}. {result.source}"),
            ("teacher", f"{result.kind}, {result.passes} passes an input"),
            ("classes", ", ".join(map(repr, result.classes))),
            ("inputs", f"{result.inputs:,} of {result.names['inputs']}"),
            (
                "mean confidence on them",
                f"{number(result.confidence[MLE])} before, {number(result.confidence[TEACHER])} now",
            ),
        ),
    )


def student_page(result: "Distilled") -> Page:
    """Is it calibrated, at which accuracy, and how near to its teacher."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    sections += _tested(result.tested)
    sections.append(parts.Section("Settings", (parts.SettingsTable(dict(result.settings)),)))
    before, after = (number(result.divergence[when]) for when in ("before", "after"))
    return Page(
        "A student of a Bayesian teacher",
        result.headline(),
        sections,
        facts=(
            ("teacher", f"{result.names['teacher']} ({result.teacher}, {result.teacher_passes} passes an input)"),
            ("base", result.source),
            ("classes", ", ".join(map(repr, result.classes))),
            ("inputs", f"{result.inputs:,} of {result.names['inputs']}"),
            ("divergence from the teacher on them", f"{before} before, {after} after {result.steps:,} steps"),
            (
                "mean confidence on them",
                f"teacher {number(result.confidence[TEACHER])}, student {number(result.confidence[STUDENT])}",
            ),
            (
                "written and read again",
                "nothing was written" if math.isnan(result.gap) else f"class logits within {result.gap:.1g}",
            ),
        ),
    )


def _tested(tested: "Tested | None") -> list[parts.Part]:
    if tested is None:
        return [parts.Text("Nothing was tested: give labelled inputs with --test.")]
    first = next(iter(tested.cards.values()))
    table = parts.Table(
        f"{first.n:,} tested inputs; 95 % intervals over inputs",
        (
            parts.Column("prediction"),
            parts.Column("passes", True),
            *(parts.Column(measure if measure == "accuracy" else measure.upper(), True) for measure in MEASURES),
            parts.Column("mean confidence", True),
            parts.Column("KL from the teacher", True),
        ),
        tuple(
            (
                name,
                card.passes,
                *(_cell(getattr(card, measure)) for measure in MEASURES),
                number(card.confidence),
                number(card.to_teacher),
            )
            for name, card in tested.cards.items()
        ),
        note=f"Temperature {number(tested.temperature)}, fitted on {tested.fitted_on:,} further inputs. NLL, BRIER and ECE: "
        "lower is better. ECE has 15 bins and is above 0 by chance; judge by NLL and Brier.",
    )
    gains = parts.Table(
        "Gain on the adapter, on the same inputs",
        (parts.Column("prediction"), *(parts.Column(measure, True) for measure in ("accuracy", "nll", "brier"))),
        tuple(
            (name, *(_cell(card.gains[measure]) for measure in ("accuracy", "nll", "brier")))
            for name, card in tested.cards.items()
            if name != MLE
        ),
        note="Above 0 is better: more right answers, a lower NLL, a lower Brier score.",
    )
    return [parts.Section("Calibration", (table, gains, _reliability(tested.cards)))]


def _reliability(cards: "Mapping[str, CalibrationCard]") -> parts.Figure:
    series = {
        name: [(each.confidence, each.accuracy) for each in card.bins if each.count] for name, card in cards.items()
    }
    return parts.Figure(
        plots.lines(
            "Reliability",
            {PERFECT: [(0.0, 0.0), (1.0, 1.0)], **series},
            x=plots.Axis("mean confidence of a bin", share=True),
            y=plots.Axis("share that is right", share=True),
            note="Below the diagonal: over-confident. A point is a bin, however few inputs are in it.",
        )
    )


def _cell(value: "Bounded") -> parts.Cell:
    between = "" if math.isnan(value.lower) else f"{number(value.lower)} to {number(value.upper)}"
    return parts.Cell(number(value.value), between)
