"""What labelling, fitting and evaluating come to. Loads no torch and no numpy, so that a page can be drawn again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.core.job import Page, table_html
from equipoise.core.shares import Bounded, shown
from equipoise.routing.measured import Card, HeldOut, Outcomes, Threshold

RANDOM, LENGTH = "random", "length"
USEFUL = (0.2, 0.8)  # mean quality of weak between which there is something to route
MEASURES = ("auroc", "lpm", "mpm", "hcr")


@dataclass(frozen=True, slots=True)
class DomainLabels:
    """One domain of labelled prompts. outcomes: who is right, where qualities are 0 or 1 (or made so from `right`)."""

    prompts: int
    weak: Bounded
    strong: Bounded
    outcomes: Outcomes


@dataclass(frozen=True)
class RouteLabels:
    """Prompts with the quality of both answers, all in labels.jsonl of the folder; folder is None without one.

    unread: answers in which nothing to compare was found, counted as wrong. unjudged: prompts without a quality of one of
    both. right: the quality from which an answer counts as right. tokens: the weak model's. calls: of servers.
    """

    names: Mapping[str, str]
    source: str
    prompts: int
    domains: Mapping[str, DomainLabels]
    unread: Mapping[str, int]
    unjudged: int
    right: float
    tokens: int
    calls: int
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: nothing to route, no gain from strong, answers without a judgement."""
        found = []
        for name, domain in self.domains.items():
            if not USEFUL[0] <= domain.weak.value <= USEFUL[1]:
                found.append(
                    f"In {name} the weak model's mean quality is {domain.weak.value:.2f}: nearly all of its prompts belong "
                    "on one side, so that there is little to route. Leave it out, or use easier or harder prompts."
                )
            if not domain.strong.value > domain.weak.value:
                found.append(
                    f"In {name} the strong model is no better than the weak one: no call is worth its price there."
                )
        if self.unjudged:
            found.append(f"{self.unjudged} of {self.prompts} prompts have an answer that was not judged: no label.")
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        told = "; ".join(
            f"{name}: weak {each.weak.value:.2f}, strong {each.strong.value:.2f}" for name, each in self.domains.items()
        )
        return " ".join((*self.warnings(), f"{self.prompts:,} prompts are labelled. Mean quality by domain: {told}."))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: warnings, a line a domain, the headline."""
        lines = [*self.warnings()]
        for name, each in self.domains.items():
            table = each.outcomes
            lines.append(
                f"{name}: {each.prompts:,} prompts; weak {shown(each.weak)}, strong {shown(each.strong)}; both right "
                f"{table.both.value:.2f}, only strong {table.only_strong.value:.2f}, only weak {table.only_weak.value:.2f}, "
                f"neither {table.neither.value:.2f}"
            )
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.routing.page import label_page

        return label_page(self, folder)

    def _repr_html_(self) -> str:
        rows = [(name, each.prompts, shown(each.weak), shown(each.strong)) for name, each in self.domains.items()]
        return table_html(("domain", "prompts", "weak", "strong"), rows)


@dataclass(frozen=True)
class LabelPlan:
    """What labelling would do. calls: of servers at most; tokens: that the weak model would write at most."""

    weak: str
    strong: str
    judged_by: str
    prompts: int
    domains: Mapping[str, int]
    first: tuple[Mapping[str, Any], ...]
    calls: int
    tokens: int

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        import json

        lines = [f"weak: {self.weak}", f"strong: {self.strong}", f"judged by: {self.judged_by}"]
        lines.append(
            f"{self.prompts:,} prompts: " + ", ".join(f"{count:,} {name}" for name, count in self.domains.items())
        )
        lines += ["the first:", *(f"  {json.dumps(each, ensure_ascii=False)}" for each in self.first)]
        return (*lines, f"at most: {self.tokens:,} tokens written here, {self.calls:,} calls of servers")


@dataclass(frozen=True)
class RouteFit:
    """A fitted router; folder is None without one. kind: of the router that was saved.

    cards: score -> its card on the test prompts; domains: domain -> the same for a few scores. gains: score -> AUROC above
    length's, paired by prompt. cross: fitted on -> tested on -> AUROC. outcomes: of the test prompts under the threshold.
    alpha: score -> the weight of each layer. g: of the Dirichlet. slope, intercept: of the calibration. chosen_on: AUROC of
    the candidates where they were chosen. bytes: of the router's files.
    """

    names: Mapping[str, str]
    source: str
    settings: Mapping[str, Any]
    prompts: Mapping[str, int]
    kind: str
    chosen_on: Mapping[str, float]
    threshold: Threshold
    held_out: HeldOut
    cards: Mapping[str, Card]
    domains: Mapping[str, Mapping[str, Card]]
    gains: Mapping[str, Bounded]
    cross: Mapping[str, Mapping[str, Bounded]]
    outcomes: Outcomes
    brier: Bounded
    alpha: Mapping[str, tuple[float, ...]]
    g: float
    slope: float
    intercept: float
    layers: int
    width: int
    bytes: int
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: nothing beats length, the threshold did not hold, nothing is sent."""
        found = []
        own = self.gains.get(self.kind)
        if all(not each.lower > 0 for each in self.gains.values()):
            found.append(
                "No score is shown to rank prompts better than their length does: route by length, label more prompts, or "
                "prompts that differ in other ways."
            )
        elif own is not None and not own.lower > 0:
            found.append(f"The saved router, {self.kind}, is not shown to rank better than the length of the prompt.")
        if not self.cards[self.kind].auroc.value > 0.5:
            found.append("The saved router ranks the test prompts no better than chance.")
        if self.held_out.verdict == "refuted":
            found.append(
                f"The threshold does not hold on the test prompts: aimed at {self.threshold.aim} {self.threshold.target:g}, "
                f"calls {shown(self.held_out.calls)}, quality {shown(self.held_out.quality)}."
            )
        if self.held_out.verdict == "drifted":
            found.append(
                f"The share of calls on the test prompts, {shown(self.held_out.calls)}, is not that of the prompts that the "
                f"threshold was chosen on, {shown(self.threshold.calls)}: label more prompts, and name their groups."
            )
        if self.threshold.note:
            found.append(self.threshold.note)
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        card = self.cards[self.kind]
        done = (
            f"Router {self.kind}: AUROC {shown(card.auroc)} on {card.n:,} new prompts (length "
            f"{shown(self.cards[LENGTH].auroc)}); at its threshold {self.held_out.calls.value:.1%} go to the strong model, "
            f"with a mean quality of {shown(self.held_out.quality)} (weak alone {card.weak.value:.3f}, strong alone "
            f"{card.strong.value:.3f})."
        )
        return " ".join((*self.warnings(), done))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: warnings, a line a score, the threshold, the headline."""
        return (*self.warnings(), *lines_of(self.cards), f"threshold: {told(self.threshold)}", self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.routing.page import fit_page

        return fit_page(self, folder)

    def _repr_html_(self) -> str:
        return cards_html(self.cards)


@dataclass(frozen=True)
class FitPlan:
    """What a fit would do: the labels as read, and the first prompt as the model reads it."""

    model: str
    prompts: Mapping[str, int]
    domains: Mapping[str, int]
    solved: float
    shown: str
    layers: int
    width: int
    tokens: int
    disk: int
    settings: Mapping[str, Any]

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        lines = [f"model: {self.model}, {self.layers} layers of width {self.width}"]
        lines.append("prompts: " + ", ".join(f"{count:,} to {part}" for part, count in self.prompts.items()))
        lines.append("domains: " + ", ".join(f"{count:,} {name}" for name, count in self.domains.items()))
        lines.append(f"answered well by the weak model: {self.solved:.1%}")
        lines.append(f"the first as the model reads it: {self.shown!r}")
        lines.append("settings: " + ", ".join(f"{name}={value}" for name, value in self.settings.items()))
        return (*lines, f"{self.tokens:,} tokens to read; {self.disk / 2**20:,.1f} MB of states, kept until the end")


@dataclass(frozen=True)
class RouteEvaluation:
    """Routers measured; folder is None without one. cards: domain -> score -> card. scenarios: measure -> scores in order.

    router: the kind that was loaded, "" for none. held_out: what its threshold comes to here; outcomes: under it, or of all.
    unread: replies without a number, of the verbalised score.
    """

    names: Mapping[str, str]
    prompts: int
    router: str
    cards: Mapping[str, Mapping[str, Card]]
    scenarios: Mapping[str, tuple[str, ...]]
    threshold: float
    aim: str
    target: float
    held_out: HeldOut
    outcomes: Mapping[str, Outcomes]
    unread: int
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        found = []
        if self.router and self.held_out.verdict == "refuted":
            found.append(
                f"The router's threshold does not hold here: it aims at {self.aim} {self.target:g}, and comes to calls "
                f"{shown(self.held_out.calls)} with a quality of {shown(self.held_out.quality)}. The prompts have drifted, "
                "or the model is another: fit it anew."
            )
        if self.router and self.held_out.verdict == "drifted":
            found.append(
                f"The share of calls has drifted to {shown(self.held_out.calls)}, outside the bounds that the threshold for "
                f"{self.aim} {self.target:g} had where it was chosen. The prompts are others, or the model is: fit it anew."
            )
        for name, cards in self.cards.items():
            card = next(iter(cards.values()))
            if not card.strong.value > card.weak.value:
                found.append(f"In {name} strong is no better than weak: MPM and HCR are undefined.")
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        best = self.scenarios["auroc"]
        ranks = (
            f"{best[0]} ranks best ({shown(self._mean(best[0]))})" if best else "no score can be ranked: one class only"
        )
        done = f"{self.prompts:,} prompts of {len(self.cards)} domains: {ranks}, by the mean AUROC over domains."
        return " ".join((*self.warnings(), done))

    def _mean(self, score: str) -> Bounded:
        values = [cards[score].auroc for cards in self.cards.values() if score in cards]
        if len(values) == 1:
            return values[0]
        return Bounded(sum(each.value for each in values) / len(values), math.nan, math.nan)

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: warnings, a line a score and domain, the headline."""
        lines = [*self.warnings()]
        for name, cards in self.cards.items():
            lines += [f"{name}:", *(f"  {line}" for line in lines_of(cards))]
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.routing.page import evaluation_page

        return evaluation_page(self, folder)

    def _repr_html_(self) -> str:
        return "".join(cards_html(cards, name) for name, cards in self.cards.items())


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation would do. scores: those that would be measured."""

    prompts: int
    domains: Mapping[str, int]
    scores: tuple[str, ...]
    reader: str
    tokens: int

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        lines = [f"{self.prompts:,} prompts: " + ", ".join(f"{count:,} {name}" for name, count in self.domains.items())]
        lines.append(f"scores: {', '.join(self.scores)}")
        return (*lines, f"read by: {self.reader}; {self.tokens:,} tokens")


def told(threshold: Threshold) -> str:
    """A threshold in words."""
    if math.isinf(threshold.value):
        return "nothing is sent" if threshold.value < 0 else "everything is sent"
    return (
        f"prompts whose score is below {threshold.value:.4g} are sent: {shown(threshold.calls)} of the prompts that it was "
        f"chosen on, for {threshold.aim} {threshold.target:g} with a confidence of {threshold.confidence:g}"
    )


def lines_of(cards: Mapping[str, Card]) -> list[str]:
    """A line a score."""
    width = max(map(len, cards), default=0)
    return [
        f"{name:<{width}}  " + "  ".join(f"{measure.upper()} {shown(getattr(card, measure))}" for measure in MEASURES)
        for name, card in cards.items()
    ]


def cards_html(cards: Mapping[str, Card], caption: str = "") -> str:
    """A table of cards, as results show themselves in a notebook."""
    rows = [(name, *(shown(getattr(card, measure)) for measure in MEASURES)) for name, card in cards.items()]
    return table_html(("score", *(measure.upper() for measure in MEASURES)), rows, caption)
