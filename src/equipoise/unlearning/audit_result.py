"""What an audit of forgetting comes to. Loads no torch, so that a page can be drawn again from a stored folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.core.columns import duration
from equipoise.core.job import Page, table_html
from equipoise.core.serialize import LIVE
from equipoise.core.shares import Bounded, Share

FEW = 20  # forgotten records: with fewer the headline says so first
RELEARNING, QUANTISATION, WORDING, CONTROL = "relearning", "quantisation", "wording", "control"
STILL, BACK, GONE, UNKNOWN = "still answered", "came back", "stays forgotten", "was not known"


@dataclass(frozen=True, slots=True)
class RecoveryAt:
    """After `step` optimizer steps (or in a wording): again, of the forgotten hold-out; answered, of all of it."""

    label: str
    step: int
    again: Share
    answered: Share


@dataclass(frozen=True, slots=True)
class ForgettingAttack:
    """One attack. best: the place in `path` that counts for it, chosen by one rule for all.

    value: what it is ranked by, a share of all forgotten records; those that it cannot be tried on count against it.
    family: relearning, quantisation, wording or control. greedy: of the forgotten questions that were asked for an answer in
    words, how many the attacked model answers so, at the attack's end; before: the before model under the same asking.
    moved: share of the trained weights that is another number. recovery: by component, what came back of the change.
    """

    name: str
    family: str
    what: str
    path: tuple[RecoveryAt, ...]
    best: int
    value: float
    greedy: Share
    before: Share
    moved: float = math.nan
    diverged: bool = False
    recovery: tuple[float, ...] = ()

    @property
    def at(self) -> RecoveryAt:
        """The look at which it is told."""
        return self.path[self.best]


@dataclass(frozen=True, slots=True)
class RecordForgetting:
    """One record: mean log-probability per token of its answer (nats) before, after, and attacked.

    attacked: at the best look of the strongest relearning.
    state: still answered, came back, stays forgotten, was not known; came back is told of hold-out records alone. attacks:
    how many of all attacks brought it back, each at the look, or with the sentence, by which it is told.
    """

    id: str
    side: str
    text: str
    before: float
    after: float
    attacked: float
    state: str
    attacks: int


@dataclass(frozen=True, slots=True)
class MembershipScore:
    """AUROC of an attack at telling forget records from retain records by `model`; 0.5 is chance."""

    attack: str
    before: Bounded
    after: Bounded


@dataclass(frozen=True, slots=True)
class ComponentSpectrum:
    """By component of the before model's states after a block, the mean first and then principal directions.

    spread: mean distance of the states from their mean, as a share over the components; change: the same of what unlearning
    moved (change ratio of arXiv:2605.11685); within: the share of all squared movement that these components hold.
    """

    block: int
    tokens: int
    spread: tuple[float, ...]
    change: tuple[float, ...]
    within: float


@dataclass(frozen=True)
class ForgettingAudit:
    """What of a forgotten set can be brought back; folder is None without one.

    before, after: shares of the hold-out that each model answers, and of the relearned set (before_relearned,
    after_relearned). forgotten: hold-out records that the before model answers and the after model does not. attacks: the
    strongest first. control: the strongest relearning on unrelated text, and on a model that never knew. untried: what was
    not tried, with reasons. chance: what guessing gets on the hold-out, nan without choices. model: the relearned one, where
    it was kept.
    """

    names: Mapping[str, str]
    sources: Mapping[str, str]
    counts: Mapping[str, int]
    answered: Mapping[str, Share]
    forgotten: int
    chance: float
    attacks: tuple[ForgettingAttack, ...]
    controls: tuple[ForgettingAttack, ...]
    membership: tuple[MembershipScore, ...]
    records: tuple[RecordForgetting, ...]
    spectrum: ComponentSpectrum | None
    untried: tuple[str, ...]
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    model: Any = field(default=None, compare=False, metadata=LIVE)

    @property
    def strongest(self) -> ForgettingAttack | None:
        """The attack that brought back most; None where nothing was forgotten."""
        return self.attacks[0] if self.forgotten and self.attacks else None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers: nothing was known, or forgotten, or any training brings it back."""
        found = []
        before, after = self.answered["before"], self.answered["after"]
        if not before.count or self.chance >= _at_least(before):
            by_chance = "" if math.isnan(self.chance) else f", where guessing gets {self.chance:.2f}"
            found.append(
                f"The before model answers {several(before)} of the hold-out{by_chance}: what it does not know cannot be "
                "forgotten, and this audit says nothing."
            )
        elif not self.forgotten:
            found.append(
                f"Nothing was forgotten: the before model answers {several(before)} hold-out records, and the after model "
                f"all of those still ({several(after)})."
            )
        elif self.forgotten < FEW:
            found.append(
                f"Only {self.forgotten} hold-out records were forgotten: one record is {1 / self.forgotten:.0%}, so read "
                "the intervals."
            )
        strongest = self.strongest
        if strongest is not None and strongest.at.again.of and math.isnan(strongest.at.again.lower):
            found.append(
                "All forgotten records that were asked for are of one group, so that there are no intervals: what came back "
                "is one case."
            )
        for control in self.controls:
            if strongest is None or not strongest.at.again.count or strongest.family != RELEARNING:
                continue
            if control.at.again.rate >= _at_least(strongest.at.again):
                found.append(
                    f"{control.what[:1].upper()}{control.what[1:]} brings back {several(control.at.again)}, about as much "
                    "as relearning the forget records: what came back need not come from them."
                )
        return tuple(found)

    def headline(self) -> str:
        """One sentence, warnings first."""
        if (strongest := self.strongest) is None:
            return " ".join(
                (*self.warnings(), f"{several(self.answered['after'])} of the hold-out are answered after.")
            )
        nothing = "" if strongest.at.again.count else f"None of the {len(self.attacks)} attacks brought anything back. "
        return " ".join((*self.warnings(), f"{nothing}{outcome(strongest)}"))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: both models, each attack, the headline."""
        lines = [
            f"{name}: {several(share)} of the hold-out answered"
            for name, share in self.answered.items()
            if name in ("before", "after")
        ]
        lines += [f"{each.name}: {percent(each.at.again)} again, {each.at.label}" for each in self.attacks]
        lines += [f"control, {each.name}: {percent(each.at.again)} again" for each in self.controls]
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.unlearning.audit_page import audit_page

        return audit_page(self)

    def _repr_html_(self) -> str:
        rows = [(each.name, each.at.label, percent(each.at.again)) for each in self.attacks]
        return table_html(("attack", "when", "answered again"), rows, caption=self.headline())


@dataclass(frozen=True)
class ForgettingAuditPlan:
    """What an audit would do, and how long it takes here (seconds)."""

    sources: Mapping[str, str]
    counts: Mapping[str, int]
    attacks: tuple[str, ...]
    steps: int
    seconds: float
    untried: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: models, records, attacks, what is left out, the estimate."""
        lines = [f"{name}: {source}" for name, source in self.sources.items()]
        lines.append(", ".join(f"{name} {count:,}" for name, count in self.counts.items()))
        lines += [f"attack: {name}" for name in self.attacks]
        lines += [f"not tried: {sentence}" for sentence in self.untried]
        return (*lines, *self.notes, f"{self.steps:,} optimizer steps in all: about {duration(self.seconds)}")


def outcome(attack: ForgettingAttack) -> str:
    """What came back under an attack, in words that need no table."""
    at = attack.at
    again = f"{several(at.again)} held-out records that had been forgotten are answered again ({percent(at.again)})"
    if attack.family in (RELEARNING, CONTROL):
        return f"After {at.step:,} steps of {attack.what}, {again}."
    return f"{attack.what[:1].upper()}{attack.what[1:]}: {again}."


def _at_least(share: Share) -> float:
    """The lower end of its interval; the share itself where there is none, as of a single group."""
    return share.rate if math.isnan(share.lower) else share.lower


def several(share: Share) -> str:
    """3 of 40."""
    return f"{round(share.count):,} of {share.of:,}"


def percent(share: Share) -> str:
    """A share with its interval, where there is one."""
    if not share.of:
        return "–"
    if math.isnan(share.lower):
        return f"{share.rate:.0%}"
    return f"{share.rate:.0%} [{share.lower:.0%} to {share.upper:.0%}]"
