"""What is measured of a router, as plain data: its card, the table of outcomes, a threshold and what it comes to.

Loads no numpy, so that a stored result can be read and drawn again at once. What is undefined is nan.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from equipoise.core.shares import Bounded

RIGHT = 0.5  # the quality from which an answer counts as right, where qualities go from 0 to 1


@dataclass(frozen=True)
class Outcomes:
    """How often (weak, strong) were right: what both miss is escalated for nothing. Shares of n; each sums to 1.

    both, only_strong, only_weak, neither: Bounded, of all; nan where nothing says from which quality an answer is right.
    escalated: the same four shares among the prompts that a threshold sends to strong, nan where it sends none. sent: their
    share.
    """

    n: int
    both: Bounded
    only_strong: Bounded
    only_weak: Bounded
    neither: Bounded
    sent: float
    escalated: Mapping[str, float]


@dataclass(frozen=True)
class Card:
    """One score on one domain. curve: [101]. weak, strong: their mean quality. bands: where lpm, mpm and hcr were read."""

    n: int
    clusters: int
    weak: Bounded
    strong: Bounded
    auroc: Bounded
    lpm: Bounded
    mpm: Bounded
    hcr: Bounded
    curve: tuple[float, ...]
    bands: str


@dataclass(frozen=True)
class Threshold:
    """value: score >= value stays local; minus infinity sends nothing, infinity everything. n: prompts it was chosen on.

    calls: the share that goes to strong, with bounds for new prompts. quality: of what is answered then, where weak and
    strong were given, with bounds; nan otherwise. target, aim: what was asked for. note: what a reader should know, or "".
    """

    value: float
    aim: str
    target: float
    confidence: float
    n: int
    calls: Bounded
    quality: Bounded
    note: str = ""

    def check(self, score: Any, weak: Any = None, strong: Any = None, *, clusters: Any = None) -> "HeldOut":
        """What the threshold comes to on other prompts, and whether these speak against it."""
        from equipoise.routing.thresholds import held_out

        return held_out(self, score, weak, strong, clusters=clusters)


@dataclass(frozen=True)
class HeldOut:
    """n prompts that the threshold was not chosen on.

    verdict: met; not refuted (missed, within chance); refuted; drifted (not refuted, but the share of calls lies outside the
    bounds that it had where the threshold was chosen).
    """

    n: int
    calls: Bounded
    quality: Bounded
    verdict: str
