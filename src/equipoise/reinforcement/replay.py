"""Rollout replay (arXiv:2506.05316): part of each batch are groups that an earlier policy wrote, weighed for what changed.

Three policies meet at a token: the one that wrote it, b (behavior), the one at the start of this step, p_old, and the one
that learns, p. Per token, with advantage A, r = p / b, r_old = p_old / b:

    behavior    l = max(-A r, -A clamp(r, 1 - clip_low, 1 + clip_high))                                        the paper
    current     l = max(-A r, -A clamp(r, r_old (1 - clip_low), r_old (1 + clip_high)))                the released code

The first keeps p near the policy that wrote the response, which has no gradient left where p_old is beyond already; the
second limits this step alone. Since r = r_old p / p_old, it is r_old times PPO's loss around p_old, the form computed here.
For fresh responses b = p_old and both are `policy_loss.clipped`, bit for bit.

The buffer keeps the newest groups, one a question, and only those that teach something: of unequal rewards. A group of
equal rewards leaves an older one of its question where it is. The released trainer has that filter switched off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.reinforcement.group_baselines import mixed
from equipoise.reinforcement.policy_loss import (
    Aggregate,
    Stats,
    average,
    masked_log_ratio,
    masked_mean,
    per_token,
    ratio_stats,
    surrogate,
)

ClipWindow = Literal["behavior", "current"]


@closed
def clipped(
    log_probs: Tensor,
    behavior_log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    window: ClipWindow = "behavior",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    aggregate: Aggregate = "token-mean",
    constant: float | None = None,
) -> tuple[Tensor, Stats]:
    """The loss of replayed and fresh responses, to be minimized, and what happened in it: `clipped_tokens`, averaged."""
    losses, stats = clipped_tokens(
        log_probs,
        behavior_log_probs,
        old_log_probs,
        advantages,
        mask,
        window=window,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
    )
    return average(losses, mask, aggregate, constant=constant), stats


@closed
def clipped_tokens(
    log_probs: Tensor,
    behavior_log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    window: ClipWindow = "behavior",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> tuple[Tensor, Stats]:
    """The loss of each token, [B, T], before any average; 0 where the mask is false.

    log_probs, behavior_log_probs, old_log_probs, mask: [B, T]; advantages: [B, T], or [B] for one a response. Only log_probs
    has a gradient; old_log_probs reaches the loss with window="current" alone. dual_clip bounds the ratio that the window
    bounds. The statistics are those of `policy_loss.clipped_tokens`, with r as their ratio, and
    `staleness`, the k3 estimate of KL(b || p_old): 0 for fresh responses.
    """
    advantages = per_token(advantages, mask)
    behavior, old = behavior_log_probs.detach(), old_log_probs.detach()
    log_ratio, stale = masked_log_ratio(log_probs, behavior, mask), masked_log_ratio(old, behavior, mask)
    around = log_ratio if window == "behavior" else masked_log_ratio(log_probs, old, mask)
    losses, stats = surrogate(
        around.exp(), advantages, mask, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )
    if window == "current":
        losses = stale.exp() * losses
    stats |= ratio_stats(log_ratio, advantages, mask)
    return losses, stats | {"staleness": masked_mean(stale.expm1() - stale, mask)}


@dataclass(frozen=True, eq=False)
class ReplayGroup:
    """The G responses to a question as they were written.

    question: its id. ids: [G, T] tokens; mask: [G, T] bool, which count. rewards: [G]. log_probs: [G, T], each token's under
    the policy that wrote it. Raises BadInput, naming the question, for shapes that do not fit and for what is no number.
    """

    question: int | str
    ids: Tensor
    mask: Tensor
    rewards: Tensor
    log_probs: Tensor

    def __post_init__(self) -> None:
        count, shape = len(self.rewards), self.ids.shape
        fitting = self.rewards.dim() == 1 and self.ids.dim() == 2 and len(self.ids) == count > 0
        if not fitting or not shape == self.mask.shape == self.log_probs.shape:
            shapes = {name: tuple(each.shape) for name, each in self._tensors().items()}
            raise BadInput(
                f"the group of question {self.question!r} has the shapes {shapes}: expected ids, mask and log_probs "
                "[G, T] and rewards [G]."
            )
        if self.mask.dtype != torch.bool:
            raise BadInput(f"the mask of question {self.question!r} is {self.mask.dtype}, expected torch.bool.")
        for name, values in (("reward", self.rewards), ("log-probability", self.log_probs[self.mask])):
            if not values.isfinite().all():
                raise BadInput(f"question {self.question!r} has a {name} that is no finite number.")

    @property
    def informative(self) -> bool:
        """Whether rewards differ: the advantages of equal ones are 0."""
        return bool(mixed(self.rewards.unsqueeze(0)))

    def copy(self) -> ReplayGroup:
        """The same with tensors of its own, without gradients."""
        return ReplayGroup(self.question, **{name: each.detach().clone() for name, each in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "question"}


def joined(groups: Sequence[ReplayGroup], *, pad_id: int = 0) -> dict[str, Tensor]:
    """Groups as one batch: ids, mask, log_probs [P G, T], padded on the right to the longest, and rewards [P, G].

    Raises BadInput for no group, and for groups of different G.
    """
    sizes = sorted({len(group.rewards) for group in groups})
    if len(sizes) != 1:
        raise BadInput(f"a batch is made of groups of one size, and these have {sizes or 'none: there is no group'}.")
    width = max(group.ids.shape[1] for group in groups)

    def widened(name: str, fill: float) -> Tensor:
        each = [getattr(group, name) for group in groups]
        return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in each])

    return {
        "ids": widened("ids", pad_id),
        "mask": widened("mask", False),
        "log_probs": widened("log_probs", 0.0),
        "rewards": torch.stack([group.rewards for group in groups]),
    }


class ReplayBuffer:
    """The newest groups, at most `capacity`, first in first out; the newest of a question takes the place of an older one.

    informative_only: groups of equal rewards are not kept. What is put in and what is drawn are copies: nobody who trains on
    a group can change the log-probabilities that it was written with. Raises BadInput for a capacity below 1.
    """

    def __init__(self, capacity: int, *, informative_only: bool = True) -> None:
        if capacity < 1:
            raise BadInput(f"the capacity of a replay buffer is {capacity}, expected at least 1 group.")
        self.capacity, self.informative_only = capacity, informative_only
        self._groups: dict[int | str, ReplayGroup] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def questions(self) -> tuple[int | str, ...]:
        """Whose groups are kept, the oldest first."""
        return tuple(self._groups)

    def push(self, groups: Iterable[ReplayGroup]) -> int:
        """Take in groups in their order; returns how many of them were informative, or all where that does not count."""
        taken = [group.copy() for group in groups if group.informative or not self.informative_only]
        for group in taken:
            self._groups.pop(group.question, None)
            self._groups[group.question] = group
            if len(self._groups) > self.capacity:
                del self._groups[next(iter(self._groups))]
        return len(taken)

    def sample(self, count: int, *, generator: torch.Generator) -> list[ReplayGroup]:
        """`count` different groups, uniformly. Raises BadInput when there are fewer, or never can be as many."""
        if count > self.capacity:
            raise BadInput(f"{count} groups are asked of a replay buffer of capacity {self.capacity}: make it larger.")
        if not 0 <= count <= len(self):
            raise BadInput(
                f"{count} groups are asked of a replay buffer that holds {len(self)}: train on fresh ones until it is full."
            )
        kept = list(self._groups.values())
        places = torch.randperm(len(kept), generator=generator, device=generator.device)[:count]
        return [kept[place].copy() for place in places.tolist()]

    def state_dict(self) -> dict[str, Any]:
        """JSON values and tensors (copies), for `core.state.save_state` or any other store."""
        groups = [{"question": group.question, **group.copy()._tensors()} for group in self._groups.values()]
        return {"capacity": self.capacity, "informative_only": self.informative_only, "groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hold what the buffer held that returned the state. Raises BadInput for that of a buffer with other settings."""
        for name in ("capacity", "informative_only"):
            if state[name] != getattr(self, name):
                raise BadInput(f"the stored replay buffer has {name}={state[name]}, this one {getattr(self, name)}.")
        self._groups = {each["question"]: ReplayGroup(**each).copy() for each in state["groups"]}
