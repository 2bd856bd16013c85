"""What an unlearning comes to. Loads no torch, so that a page can be drawn again from a stored folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from equipoise.core.columns import duration
from equipoise.core.job import Page, table_html
from equipoise.core.serialize import LIVE
from equipoise.core.terminal import one_line
from equipoise.unlearning.map_spectra import MapSpectrum
from equipoise.unlearning.notes import of_outcome
from equipoise.unlearning.record_outcomes import RecordOutcome, RecordWeights, in_words

Evaluation = Literal["none", "open-unlearning"]


@dataclass(frozen=True)
class Measure:
    """A measured value with what it takes to read it: good direction, unit, chance level, denominator."""

    value: float
    better: str
    unit: str = ""
    chance: float | None = None
    of: int | None = None

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "undefined"
        if self.of is not None:
            return f"{self.value:.3f} ({round(self.value * self.of)} of {self.of})"
        return f"{self.value + 0.0:.3f} {self.unit}".rstrip().replace("-0.000", "0.000")


@dataclass(frozen=True)
class AnswerPair:
    """What the model says to one prompt before and after, beside the answer of the file."""

    side: str
    prompt: str
    wanted: str
    before: str
    after: str


@dataclass(frozen=True)
class Unlearned:
    """A model that was made to forget, with its measures before and after; folder is None when nothing was written.

    resolved: every word of the recipe with its value. moved: share of the trained weights that is another number now.
    source: what the model was before. gap: nats per token between the written model and the trained one, nan without a
    folder. control: of the forget side, after a random change of equal size to the model at its start. records: what became
    of each forget record; weighed: its score and weight, where the recipe weighs; spectra: what an adapter began with, map
    by map, where the recipe says where it begins. model: the model itself, where the work was done in this process.
    """

    recipe: Mapping[str, Any]
    resolved: Mapping[str, Any]
    before: Mapping[str, Measure]
    after: Mapping[str, Measure]
    path: tuple[Mapping[str, Any], ...]
    answers: tuple[AnswerPair, ...]
    steps: int
    stopped: str
    moved: float
    source: str
    names: Mapping[str, str]
    gap: float = math.nan
    notes: tuple[str, ...] = ()
    control: Mapping[str, Measure] = field(default_factory=dict)
    records: tuple[RecordOutcome, ...] = ()
    weighed: RecordWeights | None = None
    spectra: tuple[MapSpectrum, ...] = ()
    folder: Path | None = None
    model: Any = field(default=None, compare=False, metadata=LIVE)

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: nothing was forgotten, what should be kept is gone, noise does it."""
        return tuple(of_outcome(self.before, self.after, self.moved, self.control))

    def headline(self) -> str:
        """One sentence, warnings first."""
        done = (
            f"{self.steps} optimizer steps on {self.names['forget']} against {self.names['retain']}; {self.stopped}; "
            f"{self.moved:.0%} of the trained weights moved."
        )
        return " ".join(filter(None, (*self.warnings(), done, in_words(self.records))))

    def weights(self) -> dict[str, float]:
        """Record id -> weight, for a trainer of one's own; all 1 where the recipe did not weigh."""
        given = self.weighed.weights if self.weighed else [1.0] * len(self.records)
        return {record.id: weight for record, weight in zip(self.records, given, strict=True)}

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: the recipe, each measure before and after, answers, the headline."""
        recipe = ", ".join(f"{name}={value}" for name, value in self.resolved.items())
        width = max(len(name) for name in self.after)
        lines = [f"recipe: {recipe}"]
        for name, measure in self.after.items():
            change = f"{self.before[name]!s:>24} -> {measure!s:<24}"
            lines.append(f"{name:<{width}}  {change} ({measure.better} is better)")
        if self.control:
            lines.append(f"after a random change of equal size: {self.by_chance()}")
        for answer in self.answers[:2]:
            lines.append(f"{answer.side}: {_short(answer.prompt)}")
            lines.append(f"  before: {_short(answer.before)}   after: {_short(answer.after)}")
        return (*lines, self.headline())

    def by_chance(self) -> str:
        """What the forget side is after a random change of equal size, in words; "" where that was not measured."""
        return ", ".join(f"{name} {measure}" for name, measure in self.control.items())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.unlearning.page import page

        return page(self, folder)

    def _repr_html_(self) -> str:
        return table_html(("", "before", "after"), [(name, self.before[name], self.after[name]) for name in self.after])


@dataclass(frozen=True)
class UnlearnPlan:
    """What a run would do: the records as parsed, as the model reads them, and estimates of time (s) and memory (bytes).

    shown: of each side one record with the tokens that are learnt or forgotten between » and «.
    """

    model: str
    recipe: Mapping[str, Any]
    records: Mapping[str, int]
    tokens: Mapping[str, int]
    first: Mapping[str, tuple[Mapping[str, Any], ...]]
    shown: Mapping[str, str]
    trained_parameters: int
    seconds: float
    peak_bytes: int
    notes: tuple[str, ...] = ()

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: the records as they are read, the recipe, notes, the estimate."""
        import json

        lines = [self.model]
        for side, records in self.first.items():
            lines.append(f"{side}: {self.records[side]:,} records, {self.tokens[side]:,} tokens; the first:")
            lines += [f"  {json.dumps(record, ensure_ascii=False)}" for record in records]
            lines.append(f"  as the model reads it, what is trained between » and «: {self.shown[side]!r}")
        lines.append("recipe: " + ", ".join(f"{name}={value}" for name, value in self.recipe.items()))
        lines.append(f"trained parameters: {self.trained_parameters:,}")
        lines += self.notes
        return (*lines, f"estimate: {duration(self.seconds)}, {self.peak_bytes / 1e9:.2g} GB at the peak")


def _short(text: str, width: int = 100) -> str:
    return one_line(text, width, empty="(nothing)")
