"""What rollouts said of questions, and what a selection brought. Loads no torch, so that a page can be drawn without."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from equipoise.core.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor


class RateStore:
    """What rollouts that were made anyway say of each question's difficulty; they count half after `half_life` steps.

    total, rollouts: [N] float64, the sum of 1 - reward and the number of rollouts, faded to `step`.
    """

    def __init__(self, count: int, *, half_life: float = 10.0) -> None:
        import torch

        if not half_life > 0:
            raise BadInput(f"half_life is {half_life}, expected a number of steps above 0; inf never forgets.")
        self.half_life, self.step = half_life, 0
        self.total, self.rollouts = torch.zeros(2, count, dtype=torch.float64)

    def add(self, ids: Tensor, difficulty: Tensor, rollouts: int, step: int) -> None:
        """Take in the difficulty [n] of questions [n], one of which may come twice, by `rollouts` responses to each."""
        self.total, self.rollouts = self._faded(step)
        self.step = step
        self.total.index_add_(0, ids, difficulty.double() * rollouts)
        self.rollouts.index_add_(0, ids, self.rollouts.new_full((len(ids),), rollouts))

    def blended(self, predicted: Tensor, step: int, worth: float) -> Tensor:
        """Predictions [N], each as one more measurement of `worth` rollouts; inf leaves them as they are."""
        if worth == math.inf:
            return predicted
        total, rollouts = self._faded(step)
        return (worth * predicted + total) / (worth + rollouts)

    def _faded(self, step: int) -> tuple[Tensor, Tensor]:
        share = 0.5 ** ((step - self.step) / self.half_life)
        return self.total * share, self.rollouts * share


@dataclass(frozen=True)
class GroupCounts:
    """Groups of responses, how many had unequal rewards, and the rollouts in them."""

    groups: int = 0
    effective: int = 0
    rollouts: int = 0

    @property
    def effective_share(self) -> float:
        """Of the groups, those from which something can be learnt; nan when there is none."""
        return self.effective / self.groups if self.groups else math.nan

    def __add__(self, other: GroupCounts) -> GroupCounts:
        return GroupCounts(self.groups + other.groups, self.effective + other.effective, self.rollouts + other.rollouts)


@dataclass(frozen=True)
class SamplerStatistics:
    """What the selection brought. References are drawn uniformly: their share is the one that no selection would have had.

    blocks: of selection; uniform_blocks: those in which the predictions were not trusted. correlations: of each block, the
    step and that of predictions and measurements (nan where all references are equal, and where nothing was predicted).
    """

    trained: GroupCounts
    references: GroupCounts
    blocks: int
    uniform_blocks: int
    correlations: tuple[tuple[int, float], ...]

    @property
    def rollouts_saved(self) -> float:
        """Rollouts that uniform draws take for as many groups of unequal rewards, less all that were made, references
        included: negative where these cost more than they gave, nan where no reference shows what uniform draws give.

        Of groups of one size: a larger one is more often unequal.
        """
        if not self.references.effective:
            return math.nan
        by_uniform = self.trained.rollouts * self.trained.effective_share / self.references.effective_share
        return by_uniform - self.trained.rollouts - self.references.rollouts


@dataclass(frozen=True)
class Selected:
    """What a run learnt from, where prompts were selected or responses came again.

    select: the recipe's. fresh: the groups that were written for it. replayed: how many came again, one that did so twice
    counting twice. measured_tokens: generated to measure difficulty. statistics: of the sampler; None where there is none.
    """

    select: str
    fresh: GroupCounts
    replayed: int
    measured_tokens: int
    statistics: SamplerStatistics | None

    @property
    def rollouts_saved(self) -> float:
        """`SamplerStatistics.rollouts_saved`; nan without a sampler, and of an oracle, which is a control."""
        return self.statistics.rollouts_saved if self.statistics is not None and self.select == "dots" else math.nan

    @property
    def replayed_share(self) -> float:
        """Of the groups that were learnt from, those that came again."""
        return self.replayed / (self.replayed + self.fresh.groups) if self.fresh.groups else math.nan

    def sentences(self) -> tuple[str, ...]:
        """What a user wants to know: how many responses taught something, how many were wasted, what measuring cost."""
        fresh, statistics = self.fresh, self.statistics
        taught = fresh.effective * fresh.rollouts // max(fresh.groups, 1)
        share = f" ({fresh.effective_share:.0%})" if fresh.groups else ""
        found = [
            f"Of {fresh.rollouts:,} responses written to learn from, {taught:,}{share} taught something, since others to "
            f"the same prompt had another reward; {fresh.rollouts - taught:,} were wasted."
        ]
        if statistics is not None and (measured := statistics.references).groups:
            more = "" if self.select == "dots" else " Those of an oracle are a control, and no cost of a method."
            found.append(
                f"{measured.rollouts:,} more measured difficulty; {measured.effective_share:.0%} of these would have taught "
                f"something.{more}"
            )
        if not math.isnan(saved := self.rollouts_saved):
            compared = f"{saved:,.0f} fewer" if saved >= 0 else f"{-saved:,.0f} more"
            found.append(f"Both together are {compared} than uniform draws take for as many that teach.")
        if statistics is not None and statistics.uniform_blocks:
            found.append(
                f"In {statistics.uniform_blocks} of {statistics.blocks} blocks predictions did not agree with measurements, "
                "and prompts were drawn uniformly."
            )
        if self.replayed:
            found.append(
                f"{self.replayed:,} groups came again from earlier steps: {self.replayed_share:.0%} of what was learnt from."
            )
        return tuple(found)
