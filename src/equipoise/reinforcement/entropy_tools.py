"""Entropy as a reward for tool calls: a call after which the model's own uncertainty fell is worth more (arXiv:2602.02050).

A trajectory is r_0, c_1, o_1, r_1, ..., c_K, o_K, r_K: reasoning r_k and calls c_k are the model's, observations o_k are
others' and never counted; the answer is in r_K. H_k is the mean entropy of r_k's tokens, n the calls that count, m those
that lowered it.

    change      D_k = H_k - H_{k-1}                    relative: D_k / (H_{k-1} + 1e-8)
    reduced     I_k = 1 if D_k < -margin
    outcome     R = score * m / n                      without a call: `NoCall`
    process     R_k = score * (1 + alpha * I_k) for c_k, score for r_K; A over all of these of a question's trajectories

    effects = call_effects(entropies, segments)                  tokens [R, T] -> `Effects` of calls [R, K]
    outcome_reward(scores, effects.reduced, counted=effects.counted)

In the loop, on episodes of an environment with tools:

    tools = ToolReward(language_model, recipe)                   the model as `prepare` left it
    train(..., sample=Playing(environment, shape=tools.shape))                      outcome rewards
    train(..., sample=Playing(environment), weigh=tools.weigh)                      process rewards

The paper's text leaves open what a segment is, what a call counts for after which little was said, and how the rewards of
calls are normalized. Here a segment is the free text before a call. The call's own words are left out: they are near certain
and would decide every mean. A segment of fewer than 5 tokens is joined with the one before it (the first with the next), and
the call between them is neutral: in neither m nor n. Entropy is confidence, not truth: a repeated or a wrong observation
lowers it, too.

R trajectories, T tokens, S segments, K = S - 1 calls. Natural logarithms. Nothing here carries a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import check_fields, closed
from equipoise.data.tools import read_action
from equipoise.language.confidence import Bounds
from equipoise.language.generate import answer_text
from equipoise.reinforcement.stages import score_rollouts

if TYPE_CHECKING:
    from equipoise.language.episodes import Turn
    from equipoise.language.model import LanguageModel
    from equipoise.language.rollouts import Rollouts
    from equipoise.reinforcement.recipe import Recipe
    from equipoise.reinforcement.stages import Step

Against = Literal["previous", "first", "running-minimum"]
NoCall = Literal["full", "zero", "task-default"]
LEAST = 5  # tokens of a segment that stands for itself
GRAM = 3  # tokens running that are a copy of what was told before


class SegmentEntropy(NamedTuple):
    """Of each segment [..., S]: its mean, its own tokens, and whether it was joined with the one before it.

    Segments that were joined have one mean, of all their tokens. nan behind a trajectory's last segment with a token.
    """

    means: Tensor
    tokens: Tensor
    joined: Tensor


class Effects(NamedTuple):
    """Of each call [..., K] bool: whether uncertainty fell after it, and whether that is known (else it is neutral)."""

    reduced: Tensor
    counted: Tensor


@torch.no_grad()
def segment_entropy(entropies: Tensor, segments: Tensor, *, least: int = LEAST, count: int = 1) -> SegmentEntropy:
    """Mean entropies of segments. entropies, segments: [..., T]; segments: k for a token of r_k, below 0 for all others.

    least: tokens of a segment that stands for itself. count: how many segments the result has at least; it has as many as
    the longest trajectory. In float64.
    """
    sums, tokens = _by_segment(entropies, segments, count)
    before = tokens.cumsum(-1) - tokens
    alone = (tokens >= least) & (before >= least)
    alone[..., 0] = True
    group = alone.cumsum(-1) - 1
    means = torch.zeros_like(sums).scatter_add_(-1, group, sums) / torch.zeros_like(tokens).scatter_add_(
        -1, group, tokens
    )
    there = tokens.flip(-1).cumsum(-1).flip(-1) > 0
    return SegmentEntropy(means.gather(-1, group).where(there, math.nan), tokens, ~alone & there)


def _by_segment(values: Tensor, segments: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sums of values [..., T] in float64 over each segment's tokens, and their numbers: [..., S]."""
    of_one = segments >= 0
    longest = int(segments.max()) + 1 if segments.numel() else 0
    shape = (*segments.shape[:-1], max(longest, count, 1))
    place = segments.clamp(min=0).long()
    sums = torch.zeros(shape, dtype=torch.float64, device=segments.device)
    sums.scatter_add_(-1, place, values.detach().where(of_one, 0).double())
    return sums, torch.zeros(shape, dtype=torch.int64, device=segments.device).scatter_add_(-1, place, of_one.long())


@closed
def changes(
    means: Tensor, *, against: Against = "previous", relative: bool = False, base: Tensor | None = None
) -> Tensor:
    """D of each call [..., K] from the means of segments [..., S]; nan where one of both is.

    against: what r_k is compared with: the segment before it, the first, or the least of all before it (a chain of calls
    cannot lower it forever). base: the means [..., S] of what it is compared with, where they are others (bounds).
    """
    earlier = (means if base is None else base)[..., :-1]
    if against == "first":
        earlier = earlier[..., :1].expand_as(earlier)
    elif against == "running-minimum":
        earlier = earlier.cummin(-1).values
    change = means[..., 1:] - earlier
    return change / (earlier + 1e-8) if relative else change


def reduced(change: Tensor | Bounds, *, margin: float = 0.0, joined: Tensor | None = None) -> Effects:
    """Which calls lowered the entropy by more than the margin (in the unit of the change).

    change: [..., K], or bounds of it, which decide only where both say the same. joined: [..., S], of `segment_entropy`:
    calls before what was joined are neutral, as those whose change is nan.
    """
    if not 0 <= margin < math.inf:
        raise BadInput(f"The margin is {margin}: use a number of at least 0.")
    lower, upper = change if isinstance(change, Bounds) else (change, change)
    fell = upper < -margin
    known = fell | (lower >= -margin)
    if joined is not None:
        known = known & ~joined[..., 1:]
    return Effects(fell & known, known)


@closed
def call_effects(
    entropies: Tensor | Bounds,
    segments: Tensor,
    *,
    against: Against = "previous",
    relative: bool = False,
    margin: float = 0.0,
    least: int = LEAST,
    calls: int = 0,
) -> Effects:
    """From the entropies of tokens [..., T], or bounds of them (`confidence.entropy_bounds`), to the effects of calls.

    segments and least: as of `segment_entropy`; against, relative: of `changes`; margin: of `reduced`. calls: how many the
    result has at least.
    """
    how = {"against": against, "relative": relative}
    if isinstance(entropies, Bounds):
        lower, upper = (segment_entropy(each, segments, least=least, count=calls + 1) for each in entropies)
        # A change is least where the segment's entropy is and what it is compared with is greatest.
        change = Bounds(changes(lower.means, base=upper.means, **how), changes(upper.means, base=lower.means, **how))
        return reduced(change, margin=margin, joined=lower.joined)
    found = segment_entropy(entropies, segments, least=least, count=calls + 1)
    return reduced(changes(found.means, **how), margin=margin, joined=found.joined)


@closed
def outcome_reward(
    score: Tensor | float,
    reduced: Tensor | Sequence[bool],
    *,
    counted: Tensor | None = None,
    no_call: NoCall = "full",
    default: Tensor | float | None = None,
) -> Tensor:
    """The score times the share of calls that lowered the entropy, of one trajectory [K] or of many [..., K].

    counted: which calls count, all when not given. no_call: what an answer is worth without a call that counts: full, the
    score; zero; task-default, the score times `default`, which the task says (in [0, 1]). If every call helps with the same
    chance the share is that chance for any number of calls: what presses on their number is this rule and calls that help
    less. The result is in [0, score]; a score below 0 stays as it is, or calls that did not help would be paid for.
    """
    score, helped, counts = _of_calls(score, reduced, counted)
    if no_call == "task-default":
        if default is None:
            raise BadInput("no_call='task-default' needs default=: the share of the score that the task pays, 0 to 1.")
        alone = torch.as_tensor(default, dtype=score.dtype, device=score.device)
        if not bool(((alone >= 0) & (alone <= 1)).all()):
            raise BadInput(f"default is {default}: use a share of the score, 0 to 1.")
    else:
        alone = torch.full_like(score, float(no_call == "full"))
    number = counts.sum(-1)
    share = torch.where(number > 0, helped.sum(-1) / number.clamp(min=1), alone)
    return torch.where(score > 0, score * share, score)


def process_rewards(
    score: Tensor | float, reduced: Tensor | Sequence[bool], *, alpha: float = 0.5, counted: Tensor | None = None
) -> Tensor:
    """A reward for each call and, last, for the answer: [K] -> [K + 1], [..., K] -> [..., K + 1]; nan for calls that do not
    count.

    alpha: how much more a call is worth that lowered the entropy, at least 0; above 1 that outweighs being right. Nothing is
    paid for calls of a wrong answer, nor of a score below 0.
    """
    if not 0 <= alpha < math.inf:
        raise BadInput(f"alpha is {alpha}: use a number of at least 0.")
    score, helped, counts = _of_calls(score, reduced, counted)
    whole = score.unsqueeze(-1)
    calls = (whole + alpha * helped * whole.clamp(min=0)).where(counts, math.nan)
    return torch.cat([calls, whole], dim=-1)


def _of_calls(
    score: Tensor | float, reduced: Tensor | Sequence[bool], counted: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The scores of trajectories [...], and which of their calls helped and which count, [..., K] each."""
    helped = torch.as_tensor(reduced, dtype=torch.bool)
    counts = torch.ones_like(helped) if counted is None else counted
    if not isinstance(score, Tensor):
        score = torch.tensor(score, dtype=torch.float64, device=helped.device)
    return score.detach(), helped & counts, counts


def pooled_advantages(rewards: Tensor, *, answer: bool = True, epsilon: float = 1e-6) -> Tensor:
    """Advantages [P, N, K + 1] of `process_rewards` [P, N, K + 1] of N trajectories of each question.

    The rewards of a question that count are one pool: A is a reward minus their mean in their standard deviations (ddof 1,
    as of `grpo`), sums to 0 over the pool, and is 0 where all are equal. A call that does not count has the answer's.
    answer: whether answers are in the pool. A trajectory of many calls weighs more in it than one of few.
    """
    flat = rewards.flatten(1)
    pool = ~rewards.isnan()
    if not answer:
        pool[..., -1] = ~pool[..., :-1].flatten(1).any(-1, keepdim=True)  # with no call to pool there are answers alone
    pool = pool.flatten(1)
    number = pool.sum(-1, keepdim=True)
    deviation = flat - flat.where(pool, 0).sum(-1, keepdim=True) / number
    spread = (deviation.square().where(pool, 0).sum(-1, keepdim=True) / (number - 1).clamp(min=1)).sqrt()
    differ = flat.where(pool, -math.inf).amax(-1) != flat.where(pool, math.inf).amin(-1)
    # As in `dr_grpo`: what rounding leaves of equal rewards is not divided by epsilon.
    found = (deviation / (spread + epsilon)).where(differ.unsqueeze(-1), 0).view_as(rewards)
    return found.where(~rewards.isnan(), found[..., -1:])


def over_tokens(advantages: Tensor, steps: Tensor, calls: Tensor) -> Tensor:
    """Advantages of calls and answers [R, K + 1] at the tokens that led to them: [R, T], 0 where steps is below 0.

    steps: [R, T], k - 1 for tokens of r_{k-1} and c_k, the trajectory's number of calls for those of its last segment.
    calls: [R], these numbers, at most K.
    """
    last = advantages.shape[-1] - 1
    place = steps.where(steps < calls.unsqueeze(-1), last).clamp(min=0)
    return advantages.gather(-1, place).where(steps >= 0, 0)


def copied(ids: Tensor, segments: Tensor, observed: Tensor, *, n: int = GRAM) -> Tensor:
    """Which tokens of segments repeat what was told before: they are in n tokens running of an earlier observation.

    ids, segments, observed: [R, T]; observed: bool, what others wrote. [R, T] bool. Copied text is near certain: a model can
    lower its entropy by quoting. To leave it out: segments.masked_fill(copied(...), -1).
    """
    if n < 1:
        raise BadInput(f"n is {n}: use at least 1 token.")
    (rows, width), device = ids.shape, ids.device
    found = torch.zeros_like(observed, dtype=torch.bool)
    if width < n or not rows:
        return found
    names, size = ids - ids.min(), int(ids.max() - ids.min()) + 1
    grams = torch.arange(rows, device=device).unsqueeze(-1).expand(rows, width - n + 1)
    for offset in range(n):  # numbered anew with each token, so that no two are alike and none is too large
        keys = grams * size + names[:, offset : offset + width - n + 1]
        grams = keys.unique(return_inverse=True)[1]
    windows = segments.unfold(1, n, 1)
    own = (windows == windows[..., :1]).all(-1) & (windows[..., 0] >= 0)
    told = observed.bool().unfold(1, n, 1).all(-1)
    place = torch.arange(width - n + 1, device=device).expand_as(grams)
    earliest = torch.full((int(grams.max()) + 1,), width, device=device)
    earliest.scatter_reduce_(0, grams[told], place[told], "amin")
    again = own & (earliest[grams] < place)
    for offset in range(n):
        found[:, offset : offset + width - n + 1] |= again
    return found


def copy_rate(ids: Tensor, segments: Tensor, observed: Tensor, *, n: int = GRAM, count: int = 1) -> Tensor:
    """The share of each segment's tokens that `copied` finds: [R, S], nan for a segment without a token."""
    sums, tokens = _by_segment(copied(ids, segments, observed, n=n).double(), segments, count)
    return sums / tokens


# Rivals that count calls, and ask no entropy.


def call_counts(rollouts: Rollouts) -> Tensor:
    """How many calls each episode made, [R], several of a turn among them."""
    made = [sum(len(turn.info.get("actions", ())) for turn in episode.turns) for episode in rollouts.episodes]
    return torch.tensor(made, device=rollouts.ids.device)


def episode_scores(rollouts: Rollouts) -> Tensor:
    """The scores of episodes, [R]."""
    return rollouts.entropies.new_tensor([episode.score for episode in rollouts.episodes])


def count_penalty(rollouts: Rollouts, *, weight: float) -> Tensor:
    """Rewards [R]: the score minus `weight` for each call, also of a wrong answer."""
    return episode_scores(rollouts) - weight * call_counts(rollouts)


def decreasing_reward(rollouts: Rollouts, *, most: int) -> Tensor:
    """Rewards [R]: the score times cos(pi n / (2 n + most)), which falls from 1 without calls, to 1/2 at n = most
    (arXiv:2504.14870's factor for PPO).
    """
    calls = call_counts(rollouts).to(rollouts.entropies.dtype)
    return episode_scores(rollouts) * (math.pi * calls / (2 * calls + most)).cos()


# In the loop.


class Segmented(NamedTuple):
    """Whose tokens are what in episodes.

    segments: [R, T], k for a token of r_k, else -1. steps: [R, T], k for those of r_k and of the call after it, else -1.
    calls: [R], how many calls. observed: [R, T] bool, what others wrote.
    """

    segments: Tensor
    steps: Tensor
    calls: Tensor
    observed: Tensor


def segmented(language_model: LanguageModel, rollouts: Rollouts) -> Segmented:
    """The segments and calls of episodes, by the turns of the model that wrote them. Raises BadInput for other rollouts.

    A turn is reasoning up to where its first call begins, and call from there on: as the environment tells (`call_at` in its
    info), else by the tag or the object that `data.tools.read_action` finds in a turn with actions. All calls of a turn are
    one. A turn without a call goes on with the segment before it; the answer is part of the last one.
    """
    if not rollouts.episodes:
        raise BadInput("these responses are no episodes: rewards for calls need an environment.")
    segments, steps = (torch.full_like(rollouts.ids, -1) for _ in range(2))
    calls = torch.zeros(len(rollouts.ids), dtype=torch.int64, device=rollouts.ids.device)
    for row, (episode, ids) in enumerate(zip(rollouts.episodes, rollouts.ids.tolist(), strict=True)):
        number = 0
        for turn in episode.turns:
            at = _call_at(turn)
            end = turn.end if at is None else turn.begin + _token_at(language_model, ids[turn.begin : turn.end], at)
            segments[row, turn.begin : end] = number
            steps[row, turn.begin : turn.end] = number
            number += at is not None
        calls[row] = number
    return Segmented(segments, steps, calls, rollouts.present & ~rollouts.mask)


def _call_at(turn: Turn) -> int | None:
    if "call_at" in turn.info:
        return turn.info["call_at"]
    if not turn.info.get("actions"):
        return None
    found = read_action(turn.text).call_at
    return 0 if found is None else found  # a turn in a syntax that nobody knows is all call


def _token_at(language_model: LanguageModel, ids: Sequence[int], character: int) -> int:
    """How many of a turn's tokens are over before a character of its text; one that reaches beyond it is not."""
    for count in range(len(ids), 0, -1):  # not by bisection: half of a character can be longer than all of it
        if len(answer_text(language_model.tokenizer, ids[:count])) <= character:  # as the turn's text was made
            return count
    return 0


@dataclass
class ToolReward:
    """Rewards for calls in `training.train`. `shape` is for `Playing`, `weigh` takes the place of `stages.weigh`.

    no_call: of outcome rewards; task-default reads `no_call` from the info of an episode's last turn, 1 where it is missing.
    alpha: of process rewards. against, relative, margin, least: as of `call_effects`. reference: a frozen model whose
    entropies decide in place of the policy's, which fall as it learns. leave_copies_out: whether tokens that repeat an
    observation are left out of the means. Entropies are those at temperature 1, whatever was sampled at.
    last: of the batch that was rewarded last: calls of an episode, the shares of them that lowered the entropy and that do
    not count, and of the tokens behind a call the share that repeats an observation.
    """

    language_model: LanguageModel
    recipe: Recipe
    no_call: NoCall = "full"
    alpha: float = 0.5
    against: Against = "previous"
    relative: bool = False
    margin: float = 0.0
    least: int = LEAST
    reference: Any = None
    leave_copies_out: bool = False
    last: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        check_fields(self)

    def shape(self, rollouts: Rollouts) -> Tensor:
        """Outcome rewards [R] of episodes, in place of their scores."""
        effects, _ = self.effects(rollouts)
        scores = episode_scores(rollouts)
        default = scores.new_tensor(
            [episode.turns[-1].info.get("no_call", 1.0) if episode.turns else 1.0 for episode in rollouts.episodes]
        )
        return outcome_reward(scores, effects.reduced, counted=effects.counted, no_call=self.no_call, default=default)

    def weigh(self, recipe: Recipe, step: Step) -> Step:
        """The step with an advantage for each token: of the call that it led to, or of the answer."""
        effects, found = self.effects(step.rollouts)
        rewards = process_rewards(step.rewards.flatten(), effects.reduced, alpha=self.alpha, counted=effects.counted)
        advantages = pooled_advantages(rewards.view(*step.rewards.shape, -1)).flatten(0, 1)
        return replace(step, advantages=over_tokens(advantages, found.steps, found.calls))

    def effects(self, rollouts: Rollouts) -> tuple[Effects, Segmented]:
        """Which calls lowered the entropy, [R, K], and whose tokens are what."""
        found = segmented(self.language_model, rollouts)
        copies = copied(rollouts.ids, found.segments, found.observed)
        segments = found.segments.masked_fill(copies, -1) if self.leave_copies_out else found.segments
        effects = call_effects(
            self.entropies(rollouts),
            segments,
            against=self.against,
            relative=self.relative,
            margin=self.margin,
            least=self.least,
            calls=int(found.calls.max()),
        )
        calls, later = int(found.calls.sum()), found.segments > 0
        self.last = {
            "calls": calls / len(found.calls),
            "reducing": int(effects.reduced.sum()) / calls if calls else math.nan,
            "neutral": 1 - int(effects.counted.sum()) / calls if calls else math.nan,
            "copied": copies[later].double().mean().item(),
        }
        return effects, found

    def entropies(self, rollouts: Rollouts) -> Tensor:
        """[R, T] in nats, of softmax(logits) of the policy or of the reference, where the model wrote; 0 elsewhere.

        Those of the sampler where they are the same, else of a pass without gradients.
        """
        as_sampled = self.recipe.temperature == 1 and self.recipe.head == "none" and self.reference is None
        if as_sampled and not bool(rollouts.entropies.isnan().any()):
            return rollouts.entropies
        model = self.language_model.model if self.reference is None else self.reference
        found = score_rollouts(model, rollouts, entropies=True).entropies
        assert found is not None
        return found
