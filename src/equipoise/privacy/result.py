"""What fitting, measuring and planning a rule come to. Loads no numpy, so that a page can be drawn from a stored folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.core.job import Page, table_html
from equipoise.core.numbers import number
from equipoise.core.shares import Bounded

MUCH_EPSILON = 10.0
MUCH_PULL = 0.1  # of the records: noise that pulls like so many of them decides much of the rule
LEARNT = (
    "These are the records that the rule was fitted on: on others its value is likely lower. Name a held-out table."
)
SEED_SHOWN = (
    "This page shows the seed of the noise: whoever reads it can take the noise away. Keep it, or fit without a seed."
)
RULE, ALL, NONE = "the rule", "everybody treated", "nobody treated"


@dataclass(frozen=True, slots=True)
class NoisePlan:
    """What a guarantee costs at a sample size, from public numbers alone.

    movement, largest, sensitivity: Dw, W and Delta. ridge: Lam / n, as it will be. raised: whether the guarantee raised it.
    noise: expected norm of the noise, on the gradient (objective) or on theta. shift: the most, in expectation, that it
    moves theta. pull: of the noise, in records that all pull one way. loss: the most, in expectation, that the mean weighted
    loss exceeds that of the best theta of norm 1, ridge and noise together.
    """

    epsilon: float
    delta: float
    n: int
    d: int
    weights: str
    perturbation: str
    movement: float
    largest: float
    sensitivity: float
    ridge: float
    raised: bool
    scale: float
    noise: float
    shift: float
    pull: float
    loss: float

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: warnings, sensitivity, ridge, noise."""
        return (
            *plan_warnings(self),
            f"sensitivity: {number(self.movement)} of all weights together + 2 · {number(self.largest)} = "
            f"{number(self.sensitivity)}",
            f"ridge: {number(self.ridge)} a record{', raised by the guarantee' if self.raised else ''}",
            f"noise: expected norm {number(self.noise)}; it pulls like {number(self.pull)} records and moves the rule by "
            f"{number(self.shift)} at most in expectation",
        )


@dataclass(frozen=True)
class RuleFit:
    """A private rule. All of it may be released; what may not lies in private.json of the folder.

    coef, intercept: of the features in their own units; treat where coef . x + intercept > 0, x within its public range.
    """

    names: Mapping[str, str]
    features: tuple[str, ...]
    theta: tuple[float, ...]
    coef: tuple[float, ...]
    intercept: float
    guarantee: Mapping[str, Any]
    ledger: Mapping[str, Any]
    plan: NoisePlan
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the rule; of public numbers alone."""
        return (
            *([SEED_SHOWN] if self.guarantee.get("seeded") else []),
            *plan_warnings(self.plan, **{name: self.guarantee[name] for name in ("epsilon", "delta")}),
        )

    def headline(self) -> str:
        """One sentence."""
        return (
            f"A rule of {len(self.features)} features from {self.plan.n:,} records, {promised(self.guarantee)}; the noise "
            f"pulls like {number(self.plan.pull)} records."
        )

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        largest = max(map(abs, self.theta[1:]), default=0.0)
        order = sorted(range(len(self.features)), key=lambda place: -abs(self.theta[place + 1]))[:8]
        lines = [f"{self.features[place]}: {number(self.coef[place], signed=True)}" for place in order if largest]
        return (*self.warnings(), *lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.privacy.page import fit_page

        return fit_page(self)

    def _repr_html_(self) -> str:
        rows = [(name, number(value, signed=True)) for name, value in zip(self.features, self.coef, strict=True)]
        return table_html(("feature", "coefficient"), rows, self.headline())


@dataclass(frozen=True)
class RuleEvaluation:
    """What a rule comes to on a held-out table, in the outcome's unit. Not private: these numbers are of those records.

    values: of each policy. gains: by how much the rule is above each that treats all alike. treated: share that it treats.
    agreed: share of records whose own arm is the one it gives. learnt: whether the rule was fitted on these very records.
    """

    names: Mapping[str, str]
    n: int
    propensity: str
    values: Mapping[str, Bounded]
    gains: Mapping[str, Bounded]
    treated: float
    agreed: float
    guarantee: Mapping[str, Any]
    learnt: bool = False
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        found = [LEARNT] if self.learnt else []
        if few := [name for name, value in self.values.items() if math.isnan(value.lower)]:
            found.append(f"Too few records are as under {', '.join(map(repr, few))}: no interval is told.")
        if not all(gain.lower > 0 for gain in self.gains.values()):
            found.append("The rule is not shown to be better than treating all alike.")
        if self.treated in (0.0, 1.0):
            found.append("The rule gives everybody the same arm: noise, or an effect that hardly differs, decides it.")
        return tuple(found)

    def headline(self) -> str:
        """One sentence."""
        return (
            f"Value of the rule {_told(self.values[RULE])} on {self.n:,} {'of its own' if self.learnt else 'held-out'} "
            f"records; everybody treated {_told(self.values[ALL])}, nobody {_told(self.values[NONE])}."
        )

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        lines = [f"{name}: {_told(value)}" for name, value in self.values.items()]
        lines += [f"gain over {name}: {_told(value)}" for name, value in self.gains.items()]
        return (*self.warnings(), *lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.privacy.page import evaluation_page

        return evaluation_page(self)

    def _repr_html_(self) -> str:
        rows = [(name, _told(value)) for name, value in self.values.items()]
        return table_html(("policy", "value"), rows, self.headline())


@dataclass(frozen=True)
class RulePlan:
    """What a guarantee costs before any record is touched. asked: as it was asked; others: rivals by what differs.

    best: the ridge with the lowest bound of the loss, which public numbers alone decide.
    """

    asked: NoisePlan
    ridges: tuple[NoisePlan, ...]
    others: tuple[NoisePlan, ...]
    sizes: tuple[NoisePlan, ...]
    best: float
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        return plan_warnings(self.asked)

    def headline(self) -> str:
        """One sentence."""
        asked = self.asked
        return (
            f"With {asked.n:,} records, {asked.d} features and epsilon {asked.epsilon:g} the noise pulls like "
            f"{number(asked.pull)} records; the mean loss is at most {number(asked.loss)} above the best rule's in "
            f"expectation, lowest with the ridge {number(self.best)}."
        )

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        return (*self.asked.summary(), self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.privacy.page import plan_page

        return plan_page(self)

    def _repr_html_(self) -> str:
        rows = [(number(each.ridge), number(each.pull), number(each.loss)) for each in self.ridges]
        return table_html(("ridge", "noise, in records", "loss at most"), rows, self.headline())


def plan_warnings(plan: NoisePlan, *, epsilon: float | None = None, delta: float | None = None) -> tuple[str, ...]:
    """Of a guarantee that promises little, of noise that decides much of a rule, and of a ridge that was raised.

    epsilon, delta: of everything together, where the plan is of a part.
    """
    found = []
    epsilon, delta = plan.epsilon if epsilon is None else epsilon, plan.delta if delta is None else delta
    if delta > 1 / plan.n:
        found.append(
            f"Delta {delta:g} is above one in {plan.n:,} records: to publish a record drawn by lot has it, too. Give one "
            "far below."
        )
    if epsilon > MUCH_EPSILON:
        found.append(
            f"Epsilon {epsilon:g} promises hardly anything: a record may change the odds of a rule by e^{epsilon:g}."
        )
    if plan.pull > MUCH_PULL * plan.n:
        found.append(
            f"The noise pulls like {number(plan.pull)} of {plan.n:,} records: it decides much of the rule. More records, a "
            "larger epsilon, fewer features, a larger weight ridge or a smaller largest weight make it less."
        )
    if plan.raised:
        found.append(f"The guarantee raised the ridge to {number(plan.ridge)} a record, which flattens the rule.")
    return tuple(found)


def promised(guarantee: Mapping[str, Any]) -> str:
    """A guarantee in words."""
    delta = guarantee["delta"]
    kind = f"epsilon {guarantee['epsilon']:g}" + (f" and delta {delta:g}" if delta else "")
    return f"private with {kind} ({guarantee['floating_point']})"


def _told(value: Bounded) -> str:
    if math.isnan(value.lower):
        return number(value.value)
    return f"{number(value.value)} ({number(value.lower)} to {number(value.upper)})"
