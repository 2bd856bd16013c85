"""What training a process reward model comes to. Loads no torch, so that a page can be drawn from a stored folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.core.job import Page, table_html
from equipoise.core.serialize import LIVE
from equipoise.core.shares import Bounded
from equipoise.reinforcement.prm_evaluation_result import Misjudged, at_least, difference
from equipoise.reinforcement.result import FEW_MOVED, shown


@dataclass(frozen=True, slots=True)
class TrainedStage:
    """A stage: what it learnt, and what the model says after it. steps: of the optimizer.

    positives, negatives: labels from 0.5 on, and below; soft: how many are neither 0 nor 1. loss: mean over the steps.
    held_out_loss, auroc, gain (over the step's position): on problems held out, against the labels that were given; nan
    without any. right_score, wrong_score: mean score there of steps labelled right and wrong. positives_kept,
    negatives_kept: the share of the labels that the refresh behind this stage left as they were; nan behind the last.
    moved: share of the trained weights, in [0, 1], that is another number than before the first stage.
    """

    number: int
    steps: int
    positives: int
    negatives: int
    soft: int
    loss: float
    held_out_loss: float
    auroc: Bounded
    gain: Bounded
    right_score: float
    wrong_score: float
    positives_kept: float
    negatives_kept: float
    moved: float


@dataclass(frozen=True)
class PrmTrained:
    """A process reward model that was trained, with what it knows of problems held out; folder is None without one.

    labelled_by: the fields that the labels come from. counts: problems, solutions and labelled steps of both parts. cut:
    labelled steps that did not fit. weights: of right and of wrong steps. stages: those whose model was kept, in order.
    stopped: why there are fewer than asked for, "" if not. drift: what unequal weights do over stages. disputed: held-out
    steps whose label the model doubts most. gap: largest difference of a probability between the written model and the
    trained one.
    """

    names: Mapping[str, str]
    source: str
    settings: Mapping[str, Any]
    labelled_by: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    cut: int
    weights: tuple[float, float]
    stages: tuple[TrainedStage, ...]
    stopped: str
    drift: str
    disputed: tuple[Misjudged, ...]
    trained_parameters: int
    gap: float = math.nan
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    model: Any = field(default=None, compare=False, metadata=LIVE)

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers; last what the class weights do."""
        return (*self._doubts(), *((self.drift,) if self.drift else ()))

    def _doubts(self) -> tuple[str, ...]:
        """Nothing was learnt, or nobody knows whether."""
        found, last = [], self.stages[-1]
        if last.moved < FEW_MOVED:
            found.append(
                f"Only {last.moved:.2%} of the trained weights changed: use a larger learning rate, more epochs, or dtype "
                "float32."
            )
        if math.isnan(last.auroc.value):
            found.append("How well it tells right steps from wrong ones is not known: no held-out problem has both.")
        elif not at_least(last.auroc) > 0.5:
            found.append(
                "On problems held out the model is not shown to tell right steps from wrong ones better than chance: AUROC "
                f"{shown(last.auroc)}. Use more problems, more epochs, a larger learning rate, or a larger model."
            )
        elif not at_least(last.gain) > 0:
            found.append(
                "On problems held out the model is not shown to tell right steps from wrong ones better than their position "
                f"alone does: its AUROC {shown(last.auroc)} is higher by {difference(last.gain)}."
            )
        if self.cut:
            found.append(
                f"{self.cut:,} labelled steps lie beyond max_length or the model's context: they were not learnt."
            )
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        last = self.stages[-1]
        done = (
            f"{len(self.stages)} of {self.settings['stages']} stages on {self.counts['to learn from']['steps']:,} labelled "
            f"steps of {self.names['labels']}: AUROC {shown(last.auroc)} on problems held out."
        )
        return " ".join((*self._doubts(), done, self.stopped)).strip()

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: the settings, the stages, what the weights do, the headline."""
        lines = ["settings: " + ", ".join(f"{name}={value}" for name, value in self.settings.items())]
        for each in self.stages:
            kept = "" if math.isnan(each.positives_kept) else f"; {kept_by(each)}"
            lines.append(
                f"stage {each.number}: {each.steps:,} steps, loss {each.loss:.3f}, held out {each.held_out_loss:.3f}, AUROC "
                f"{shown(each.auroc)}{kept}"
            )
        return (*lines, *((self.drift,) if self.drift else ()), self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.reinforcement.prm_training_page import training_page

        return training_page(self)

    def _repr_html_(self) -> str:
        rows = [(each.number, each.steps, shown(each.auroc), f"{each.held_out_loss:.3f}") for each in self.stages]
        return table_html(("stage", "steps", "AUROC, held out", "loss, held out"), rows, caption=self.headline())


@dataclass(frozen=True)
class PrmTrainingPlan:
    """What a training would do: solutions as read, the first as the model reads it. steps: optimizer steps of a stage."""

    model: str
    settings: Mapping[str, Any]
    labelled_by: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    positives: int
    negatives: int
    cut: int
    tokens: int
    steps: int
    trained_parameters: int
    weights: tuple[float, float]
    drift: str
    shown: str

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        lines = [
            self.model,
            f"labels: {', '.join(self.labelled_by)}; {self.positives:,} right, {self.negatives:,} wrong",
        ]
        for part, counts in self.counts.items():
            lines.append(f"{part}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
        if self.cut:
            lines.append(f"{self.cut:,} labelled steps lie beyond max_length or the model's context")
        lines += ["the first as the model reads it:", f"  {self.shown!r}"]
        lines.append("settings: " + ", ".join(f"{name}={value}" for name, value in self.settings.items()))
        lines += [self.drift] if self.drift else []
        stages = self.settings["stages"]
        lines.append(f"trained parameters: {self.trained_parameters:,}; {stages} stages of {self.steps:,} steps")
        return (*lines, f"estimate, at most: {self.tokens * stages:,} tokens to learn from")


def kept_by(stage: TrainedStage) -> str:
    """What the refresh behind a stage left of the labels, in words."""
    kept = (f"{share:.0%}" if not math.isnan(share) else "none there" for share in _kept(stage))
    return "labels kept: right {}, wrong {}".format(*kept)


def _kept(stage: TrainedStage) -> tuple[float, float]:
    return stage.positives_kept, stage.negatives_kept
