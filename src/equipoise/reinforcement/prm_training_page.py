"""What a person sees of a process reward model that was trained."""

import math
from typing import TYPE_CHECKING

from equipoise.core import page as parts
from equipoise.core import plots
from equipoise.core.job import Page
from equipoise.core.marks import marks
from equipoise.core.numbers import number
from equipoise.reinforcement.prm_evaluation_page import misjudged_table
from equipoise.reinforcement.prm_evaluation_result import difference
from equipoise.reinforcement.result import shown

if TYPE_CHECKING:
    from equipoise.reinforcement.prm_training_result import PrmTrained

WHERE = "Look here first"
HELD_OUT = "on problems held out"


def training_page(result: "PrmTrained") -> Page:
    """Whether right steps are told from wrong ones, stage by stage; what became of the labels; which ones are doubted."""
    sections: list[parts.Part] = [parts.Note(warning, WHERE) for warning in result.warnings()]
    sections += [
        parts.Section("Does it tell right steps from wrong ones?", (_auroc(result), _stages(result))),
        parts.Section("What became of the labels", (_labels(result),)),
    ]
    if result.disputed:
        title, note = (
            "Held-out steps whose score is furthest from their label",
            "Either is mistaken, the label or the model.",
        )
        table = misjudged_table(title, result.disputed, note)
        sections.append(parts.Section("Labels that the model doubts", (table,)))
    right, wrong = result.weights
    of = {part: ", ".join(f"{count:,} {name}" for name, count in each.items()) for part, each in result.counts.items()}
    return Page(
        "A process reward model",
        result.headline(),
        sections,
        facts=(
            ("model", result.source),
            ("labels", f"{', '.join(result.labelled_by)} of {result.names['labels']}"),
            *of.items(),
            ("trained parameters", f"{result.trained_parameters:,}"),
            ("class weights", f"{number(right)} of right steps, {number(wrong)} of wrong ones"),
            ("read", "softmax over the logits of [POS] and [NEG] at [PRM], which stands behind each step"),
        ),
    )


def _auroc(result: "PrmTrained") -> parts.Figure:
    points = [
        plots.Point(HELD_OUT, each.number, each.auroc.value, y_interval=(each.auroc.lower, each.auroc.upper))
        for each in result.stages
    ]
    return parts.Figure(
        plots.paths(
            "AUROC of steps",
            marks({HELD_OUT: "method"}),
            points,
            x=plots.Axis("stage"),
            y=plots.Axis("chance that a right step is scored above a wrong one", better="higher", chance=0.5),
            note="Against the labels as they were given, which may be wrong themselves.",
        )
    )


def _stages(result: "PrmTrained") -> parts.Table:
    return parts.Table(
        "The model after each stage, on problems held out",
        (
            parts.Column("stage"),
            parts.Column("steps", True),
            parts.Column("loss, learning", True),
            parts.Column("loss, held out", True),
            parts.Column("AUROC", True),
            parts.Column("above the step's position", True),
            parts.Column("mean score of right steps", True),
            parts.Column("of wrong steps", True),
            parts.Column("weights moved", True),
        ),
        tuple(
            (
                str(each.number),
                each.steps,
                number(each.loss),
                number(each.held_out_loss),
                shown(each.auroc),
                "none" if math.isnan(each.gain.value) else difference(each.gain),
                number(each.right_score),
                number(each.wrong_score),
                f"{each.moved:.0%}",
            )
            for each in result.stages
        ),
        note="Right and wrong by the labels that were given. Step position knows only which step of its solution it is. "
        "Losses are those that were trained with, held out always against the labels that were given.",
    )


def _labels(result: "PrmTrained") -> parts.Table:
    return parts.Table(
        "The labels of each stage, and what its model left of them",
        (
            parts.Column("stage"),
            parts.Column("right, from 0.5 on", True),
            parts.Column("wrong", True),
            parts.Column("neither 0 nor 1", True),
            parts.Column("of right ones kept", True),
            parts.Column("of wrong ones kept", True),
        ),
        tuple(
            (
                str(each.number),
                each.positives,
                each.negatives,
                each.soft,
                *("–" if math.isnan(share) else f"{share:.1%}" for share in (each.positives_kept, each.negatives_kept)),
            )
            for each in result.stages
        ),
        note="Kept: within the threshold of the model's score. Each stage's labels, and the scores that followed, are in "
        "its folder.",
    )
