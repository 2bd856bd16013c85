"""What a detoxification comes to. Loads no torch, so that a page can be drawn again from a stored folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.core.columns import duration
from equipoise.core.job import Page, table_html
from equipoise.core.numbers import number
from equipoise.core.serialize import LIVE
from equipoise.core.terminal import one_line
from equipoise.unlearning.result import Measure

RISEN = 0.1  # of the perplexity: more is general ability lost
AS_WELL = 0.9  # of the fall of toxicity: a random projection that gets there did as well, give or take its draw
TELLS = 0.7  # AUROC: a scorer below says little of what it scores
TOXICITY, PERPLEXITY, NOTHING = "toxicity", "perplexity", "written_nothing"


@dataclass(frozen=True)
class Direction:
    """A candidate, decoded. tokens: what it makes likelier, opposite: what less; score: nan where nothing is listed."""

    layer: int
    number: int
    score: float
    kept: bool
    tokens: tuple[str, ...]
    opposite: tuple[str, ...]


@dataclass(frozen=True)
class LayerEdit:
    """removed: share of the squared norm of the layer's value matrix that was taken out."""

    layer: int
    removed: float


@dataclass(frozen=True)
class SweepPoint:
    """Measures at a strength and a range of layers. written: whether this is the model in the folder."""

    strength: float
    layers: str
    written: bool
    measures: Mapping[str, Measure]


@dataclass(frozen=True)
class Continuation:
    """What the model writes behind a prompt before and after, with its toxicity; nan for nothing written."""

    id: str
    prompt: str
    before: str
    after: str
    toxicity_before: float
    toxicity_after: float


@dataclass(frozen=True)
class Rebuilt:
    """How far vectors that were set to zero can be rebuilt from those left: mean residual, 0 is exactly, 1 not at all.

    terms: of how many vectors left at most, 0 for all. vectors: how many were set to zero. subspace: the same of the
    directions that the projection took out, with the projected vectors.
    """

    terms: int
    vectors: int
    residual: float
    subspace: float


@dataclass(frozen=True)
class Detoxified:
    """A model of which a subspace was taken out; folder is None when nothing was written.

    resolved: the settings as they were meant. control: measures of random projections of the same rank and layers, their
    mean. moved: share of the numbers of the edited weights that are another number now. gap: nats per token between the
    written model and the measured one, nan without a folder. scorer: AUROC of the scorer, which is taught on the pairs that
    the subspace is made of, on held-out texts. coverage: share
    of the listed words that are tokens. model: the edited model, where the work was done in this process.
    """

    resolved: Mapping[str, Any]
    names: Mapping[str, str]
    source: str
    counts: Mapping[str, int]
    before: Mapping[str, Measure]
    after: Mapping[str, Measure]
    control: Mapping[str, Measure]
    sweep: tuple[SweepPoint, ...]
    directions: tuple[Direction, ...]
    subspace: tuple[Direction, ...]
    layers: tuple[LayerEdit, ...]
    rebuilt: tuple[Rebuilt, ...]
    continuations: tuple[Continuation, ...]
    words: tuple[str, ...]
    coverage: float
    scorer: float
    moved: float
    gap: float = math.nan
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    model: Any = field(default=None, compare=False, metadata=LIVE)

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: nothing happened, too much did, or chance does it, too."""
        found = []
        if self.moved == 0:
            found.append(
                "Not one number of the edited weights changed: what was taken out is smaller than the distance of "
                "neighbouring numbers in this precision."
            )
        was, now = self.before[PERPLEXITY].value, self.after[PERPLEXITY].value
        if not now <= was * (1 + RISEN):  # nan, too
            found.append(f"Perplexity rose by {now / was - 1:.0%}, from {was:.3g} to {now:.3g}: the model paid for it.")
        fell = self.before[TOXICITY].value - self.after[TOXICITY].value
        by_chance = self.before[TOXICITY].value - self.control[TOXICITY].value
        if not fell > 0:
            found.append(
                f"Toxicity did not fall: {self.before[TOXICITY]} before, {self.after[TOXICITY]} after. Try another layer "
                "range, a higher rank, or the other site."
            )
        elif math.isnan(by_chance):
            found.append(
                "After a random projection nothing was written that could be scored, so that nothing tells whether chance "
                "does as well."
            )
        elif by_chance >= AS_WELL * fell:
            found.append(
                f"A random projection of equal rank does as well: it took toxicity from {self.before[TOXICITY]} to "
                f"{self.control[TOXICITY]}, the chosen one to {self.after[TOXICITY]}."
            )
        if self.after[NOTHING].value > self.before[NOTHING].value + RISEN:
            found.append(
                f"Share of continuations that hold nothing to score: {self.before[NOTHING]} before, {self.after[NOTHING]} "
                "after. Toxicity is that of the others, behind other prompts than before."
            )
        if not self.scorer >= TELLS:
            found.append(
                f"The scorer tells held-out texts apart with an AUROC of {self.scorer:.2f} only, so that its toxicity says "
                "little: give more pairs."
            )
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        resolved = self.resolved
        before, after, control = (f"{each[TOXICITY].value:.3f}" for each in (self.before, self.after, self.control))
        done = (
            f"{resolved['method']}, rank {resolved['rank']}, strength {resolved['strength']:g}, "
            f"layers {resolved['layers']}: toxicity of what is written {before} before and {after} after ({control} by "
            f"random projections), perplexity {self.before[PERPLEXITY].value:.4g} and {self.after[PERPLEXITY].value:.4g}."
        )
        return " ".join((*self.warnings(), done))

    def judged(self) -> str:
        """What gave the toxicity, and how well it tells."""
        fitted, held = self.counts["fitted"], self.counts["held out"]
        return (
            f"Toxicity is judged by a scorer taught on the {fitted:,} pairs that the subspace is made of; it tells the two "
            f"sides of the {held:,} that are held out apart with an AUROC of {number(self.scorer, 3)} (0.5 is chance)."
        )

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: what was taken out in words, each measure, a continuation, the headline."""
        lines = [f"direction {each.number}: {', '.join(each.tokens[:10])}" for each in self.subspace[:5]]
        width = max(map(len, self.after))
        for name, measure in self.after.items():
            lines.append(
                f"{name:<{width}}  {self.before[name]!s:>12} -> {measure!s:<12} random {self.control[name]} "
                f"({measure.better} is better)"
            )
        for each in self.continuations[:1]:
            before, after = (one_line(text, 80, empty="(nothing)") for text in (each.before, each.after))
            lines.append(f"before: {before}   after: {after}")
        return (*lines, self.judged(), self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.unlearning.detoxify_page import page

        return page(self)

    def _repr_html_(self) -> str:
        rows = [(name, self.before[name], self.after[name], self.control[name]) for name in self.after]
        return table_html(("", "before", "after", "random"), rows, caption=self.headline())


@dataclass(frozen=True)
class DetoxifyPlan:
    """What a run would do: pairs as they are split, layers, what is written, an estimate of time (s)."""

    model: str
    settings: Mapping[str, Any]
    counts: Mapping[str, int]
    first: tuple[Mapping[str, str], ...]
    words: tuple[str, ...]
    models_measured: int
    seconds: float
    notes: tuple[str, ...] = ()

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        counted = ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        lines = [self.model, f"pairs: {counted}; the first:"]
        lines += [f"  {each['toxic']!r} / {each['neutral']!r}" for each in self.first]
        lines.append("settings: " + ", ".join(f"{name}={value}" for name, value in self.settings.items()))
        lines.append(f"ranked by {len(self.words)} words: {', '.join(self.words[:12]) or 'none'}")
        lines += self.notes
        return (*lines, f"{self.models_measured} models measured; estimate: {duration(self.seconds)}")
