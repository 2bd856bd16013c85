"""The stages of one step of reinforcement, each a plain function: prompts -> rollouts -> rewards -> advantages -> losses.

P prompts, N responses each, R = P N rows (row = prompt * N + sample), T tokens. `Step` holds what is known so far; a stage
takes it and returns it with more. A stage of one's own takes the place of another as an argument of `training.train`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput
from equipoise.core.options import check_fields
from equipoise.language.model import evaluating
from equipoise.language.rollouts import ResponseScores, Rollouts, padded, roll_out, score_responses
from equipoise.reinforcement import apo, group_baselines, policy_loss, replay
from equipoise.reinforcement.critic import last_logits, prompt_logits, token_logits
from equipoise.reinforcement.recipe import ADVANTAGES, Recipe

if TYPE_CHECKING:
    from equipoise.data.problems import Problem
    from equipoise.language.model import LanguageModel
    from equipoise.reinforcement.r2po import RolloutHead
    from equipoise.training.loop import LossFunction

# problems, responses -> a reward for each; nan for one that could not be judged, which then counts as 0. A function with
# parameters of these names also gets completion_ids (of each response, None where nobody knows them) and step (from 0).
Reward = Callable[..., Sequence[float]]
_AT_ONCE = 64  # rows of a pass without gradients
T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One batch of prompts and what came of it.

    index: of the step, from 0. stage: who learns. problems: P. keys: numbers that name the draws of each, no two in a run
    alike. rewards: [P, N]; missing: [P, N] bool, which could not be judged. greedy_rewards, greedy_lengths: [P], of the
    likeliest answers. baselines: [P], the mean of earlier rewards. success_probability: [P], the prompt critic's, before it
    learns from this step. values: [R, T], the token critic's. old_log_probs, reference_log_probs: [R, T]. anchor_ids,
    anchor_probs: [R, T, K], the reference's likeliest tokens. advantages: [P, N], or [R, T].

    off_policy: [P] bool, whose responses another policy wrote, in an earlier step or with a hint before it; None where none
    did. Of these the rollouts' log-probabilities are the writer's. What comes again has nan as entropies, and -1 as its key.

    notes: [P] each, what a stage of one's own measured of its prompts, nan where nothing; logged as means over the others.
    Those whose names end in _tokens are sums of tokens that were written beside the rollouts, and count as generated.
    """

    index: int
    stage: Literal["policy", "head"]
    problems: tuple[Problem, ...]
    keys: tuple[int, ...]
    rollouts: Rollouts
    rewards: Tensor
    missing: Tensor
    greedy_rewards: Tensor | None = None
    greedy_lengths: Tensor | None = None
    baselines: Tensor | None = None
    success_probability: Tensor | None = None
    values: Tensor | None = None
    old_log_probs: Tensor | None = None
    reference_log_probs: Tensor | None = None
    anchor_ids: Tensor | None = None
    anchor_probs: Tensor | None = None
    advantages: Tensor | None = None
    off_policy: Tensor | None = None
    notes: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def token_advantages(self) -> Tensor:
        """The advantages as [R, T], 0 where there is no token."""
        assert self.advantages is not None
        mask = self.rollouts.mask
        wide = self.advantages
        if wide.shape != mask.shape:
            wide = wide.reshape(-1, 1).expand(mask.shape)
        return wide.where(mask, 0)


def sample(
    language_model: LanguageModel,
    recipe: Recipe,
    problems: Sequence[Problem],
    keys: Sequence[int],
    reward: Reward,
    index: int,
    head: RolloutHead | None = None,
) -> Step:
    """Roll out and judge: a step with its rewards, 0 for what could not be judged."""
    device, asked = language_model.device, [problem.asked for problem in problems]
    limits: dict[str, Any] = {"max_new_tokens": recipe.max_new_tokens, "batch_size": recipe.rollout_batch_size}
    with sampling(head):
        rollouts = roll_out(
            language_model,
            asked,
            samples=recipe.samples,
            temperature=recipe.temperature,
            seed=[recipe.seed, 4],  # 4 keeps these draws apart from those of the order and of the weights
            keys=keys,
            **limits,
        )
    every = [problem for problem in problems for _ in range(recipe.samples)]
    rewards, missing = (
        each.to(device).view(len(problems), recipe.samples)
        for each in judged(reward, every, rollouts.texts, completion_ids=rollouts.token_ids, step=index)
    )
    step = Step(index, recipe.stage(index), tuple(problems), tuple(keys), rollouts, rewards, missing)
    if not ADVANTAGES[recipe.advantage].greedy:
        return step
    greedy = roll_out(language_model, asked, samples=1, temperature=0.0, seed=0, **limits)
    of_greedy, _ = judged(reward, problems, greedy.texts, completion_ids=greedy.token_ids, step=index)
    return replace(step, greedy_rewards=of_greedy.to(device), greedy_lengths=greedy.lengths)


def shape(recipe: Recipe, step: Step) -> Step:
    """The step with DAPO's penalty on overlong answers in its rewards. Until then they say what was right."""
    if not recipe.overlong:
        return step

    def penalized(rewards: Tensor, lengths: Tensor) -> Tensor:
        penalty = group_baselines.overlong_penalty(lengths, recipe.max_new_tokens, recipe.overlong)
        return rewards + penalty.view_as(rewards)

    step = replace(step, rewards=penalized(step.rewards, step.rollouts.lengths))
    if step.greedy_rewards is None or step.greedy_lengths is None:
        return step
    return replace(step, greedy_rewards=penalized(step.greedy_rewards, step.greedy_lengths))


def judged(
    reward: Reward,
    problems: Sequence[Problem],
    texts: Sequence[str],
    *,
    completion_ids: Sequence[Sequence[int]] | None = None,
    step: int = 0,
) -> tuple[Tensor, Tensor]:
    """Rewards [n] in float32, and which could not be judged, [n] bool, and have 0.

    Raises BadInput for an infinite one, and when there are more or fewer than responses.
    """
    wanted = inspect.signature(reward).parameters
    more = {name: each for name, each in {"completion_ids": completion_ids, "step": step}.items() if name in wanted}
    found = torch.tensor([float(each) for each in reward(problems, texts, **more)], dtype=torch.float32)
    if len(found) != len(problems):
        raise BadInput(
            f"the reward gave {len(found)} numbers for {len(problems)} responses: it must give one for each."
        )
    if found.isinf().any():
        place = int(found.isinf().nonzero()[0])
        raise BadInput(f"the reward of a response to problem {problems[place].id!r} is infinite.")
    missing = found.isnan()
    return found.masked_fill(missing, 0.0), missing


def look(
    language_model: LanguageModel,
    recipe: Recipe,
    step: Step,
    *,
    reference: nn.Module | None = None,
    critic: nn.Module | None = None,
    head: RolloutHead | None = None,
) -> Step:
    """What is asked of models before anybody learns: old log-probabilities, the reference's, the critic's values."""
    model = language_model.model
    if needs_old(language_model, recipe, step):
        with acting(head, step):
            scores = score_rollouts(model, step.rollouts, temperature=recipe.temperature)
            step = replace(step, old_log_probs=scores.log_probs)
    if reference is not None:
        top = recipe.anchors if recipe.loss == "anchored" else 0
        found = score_rollouts(reference, step.rollouts, temperature=recipe.temperature, top=top)
        step = replace(
            step, reference_log_probs=found.log_probs, anchor_ids=found.top_ids, anchor_probs=found.top_probs
        )
    if critic is not None and recipe.critic == "prompt":
        prompts, pad_id = step.rollouts.prompts, step.rollouts.pad_id
        with evaluating(critic):
            parts = [prompt_logits(critic, part, pad_id, language_model.device) for part in _parts(prompts)]
        step = replace(step, success_probability=torch.cat(parts).sigmoid())
    elif critic is not None:
        with evaluating(critic):
            parts = [token_logits(critic, step.rollouts.batch(part)) for part in _parts(_rows(step))]
        values = _joined(parts, step.rollouts.mask)
        step = replace(step, values=values.sigmoid() if recipe.critic == "token-bce" else values)
    return step


def needs_old(language_model: LanguageModel, recipe: Recipe, step: Step) -> bool:
    """Whether old log-probabilities take a pass of their own.

    In a step of one update the loss has them already. In others the sampler's serve where it sampled from what learns, in a
    precision in which both agree to 1e-5. In a narrower one what is to be replayed is stored with the trainer's own numbers.
    """
    narrow = language_model.model.dtype in (torch.float16, torch.bfloat16)
    elsewhere = recipe.head != "none" and step.stage == "policy"
    stale = step.off_policy is not None and recipe.clip_window == "current"
    several = recipe.updates > 1 and (narrow or elsewhere or stale)
    return several or (recipe.importance_cap is not None and elsewhere) or (recipe.replay > 0 and narrow)


def sampling(head: RolloutHead | None) -> AbstractContextManager[None]:
    """Inside, models give the distribution that is sampled from: of z + u where there is a head."""
    return nullcontext() if head is None else head.rollouts()


def acting(head: RolloutHead | None, step: Step) -> AbstractContextManager[None]:
    """Inside, models give the distribution that learns: of z + u while the head does, of z else."""
    return sampling(head if step.stage == "head" else None)


def _rows(step: Step) -> range:
    return range(len(step.rollouts.ids))


def _parts(rows: Sequence[T]) -> list[Sequence[T]]:
    return [rows[first : first + _AT_ONCE] for first in range(0, len(rows), _AT_ONCE)]


def _joined(parts: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Parts [b, t, ...] of rows, each cut to its own longest, as one [R, T, ...]."""
    whole = parts[0].new_zeros(*mask.shape, *parts[0].shape[2:])
    first = 0
    for part in parts:
        whole[first : first + len(part), : part.shape[1]] = part
        first += len(part)
    return whole


def score_rollouts(
    model: Any, rollouts: Rollouts, *, temperature: float = 1.0, top: int = 0, entropies: bool = False
) -> ResponseScores:
    """`score_responses` of all rows, [R, T], without gradients and some rows at a time."""
    with evaluating(model):
        found = [
            score_responses(model, rollouts.batch(part), temperature=temperature, top=top, entropies=entropies)
            for part in _parts(range(len(rollouts.ids)))
        ]

    def joined(name: str) -> Any:
        parts = [getattr(each, name) for each in found]
        return None if parts[0] is None else _joined(parts, rollouts.mask)

    names = ("log_probs", "entropies", "top_ids", "top_probs")
    return ResponseScores(**{name: joined(name) for name in names})


def weigh(recipe: Recipe, step: Step) -> Step:
    """The step with its advantages. Raises BadInput for rewards that the advantage cannot take."""
    if step.stage == "head":
        from equipoise.reinforcement import r2po

        of_head = r2po.rarity_advantages if recipe.head_advantage == "rarity" else r2po.task_advantages
        return replace(step, advantages=of_head(step.rewards))
    advantages = ADVANTAGES[recipe.advantage].compute(step, recipe)
    if recipe.importance_cap is not None and step.old_log_probs is not None:
        from equipoise.reinforcement.r2po import importance_weights

        weights = importance_weights(step.old_log_probs, step.rollouts.log_probs, cap=recipe.importance_cap)
        advantages = replace(step, advantages=advantages).token_advantages * weights
    return replace(step, advantages=advantages)


def minibatches(recipe: Recipe, step: Step) -> list[list[int]]:
    """The rows of each optimizer step, in their order."""
    rows = list(_rows(step))
    return [rows[first : first + recipe.minibatch] for first in range(0, len(rows), recipe.minibatch)]


def policy_batch(step: Step, rows: Sequence[int], *, old: Tensor | None) -> dict[str, Tensor]:
    """What the policy's loss reads of these rows. old: the log-probabilities that its ratios are to, [R, T]."""
    batch = step.rollouts.batch(rows)
    width, chosen = batch["mask"].shape[1], list(rows)
    more = {
        "advantages": step.token_advantages,
        "old_log_probs": old,
        "sampled_log_probs": step.rollouts.log_probs,
        "reference_log_probs": step.reference_log_probs,
        "anchor_ids": step.anchor_ids,
        "anchor_probs": step.anchor_probs,
    }
    if step.off_policy is not None:
        batch["off_policy"] = step.off_policy.repeat_interleave(step.rollouts.samples)[chosen].unsqueeze(-1)
    return batch | {name: each[chosen][:, :width] for name, each in more.items() if each is not None}


Stats = list[dict[str, Tensor]]  # of each batch: name -> (sum, how much was counted), whose quotient is the mean


def policy_objective(recipe: Recipe, stats: Stats) -> LossFunction:
    """The loss of batches that `policy_batch` made, whose statistics it appends. Used inside `acting`, backward pass too.

    Without old log-probabilities they are those of this very pass, and the ratio of what was written now is 1 exactly.
    """

    def loss(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        model.eval()  # the policy that is learnt is the one that sampled: without dropout
        mask, advantages = batch["mask"], batch["advantages"]
        scores = score_responses(
            model,
            batch,
            temperature=recipe.temperature,
            gather=batch.get("anchor_ids"),
            entropies=recipe.entropy_beta > 0,
        )
        log_probs = scores.log_probs
        old = batch.get("old_log_probs", log_probs.detach())
        sampled, off_policy = batch["sampled_log_probs"], batch.get("off_policy")
        clips = {"clip_low": recipe.clip_low, "clip_high": recipe.clip_high}
        if recipe.loss == "anchored":
            assert scores.gathered is not None
            losses, found = apo.anchored_tokens(
                log_probs,
                old,
                scores.gathered,
                batch["anchor_probs"],
                batch["anchor_ids"] == batch["response"].unsqueeze(-1),
                advantages,
                mask,
                push=recipe.push,
                pull=recipe.pull,
                clip_mode=recipe.clip_mode,
                inclusive=recipe.inclusive,
                **clips,
            )
        elif off_policy is not None:
            behavior = sampled.where(off_policy, old)
            if (
                recipe.clip_window == "behavior"
            ):  # here p_old reaches the statistics alone, and no pass has asked for it
                old = log_probs.detach().where(off_policy, old)
            losses, found = replay.clipped_tokens(
                log_probs,
                behavior,
                old,
                advantages,
                mask,
                window=recipe.clip_window,
                dual_clip=recipe.dual_clip,
                **clips,
            )
        else:
            losses, found = policy_loss.clipped_tokens(
                log_probs, old, advantages, mask, dual_clip=recipe.dual_clip, **clips
            )
        if recipe.kl_beta:
            where = mask if recipe.kl_on == "all" else mask & (advantages < 0)
            estimator = "k1" if recipe.kl_in == "reward" else recipe.kl_estimator
            divergence = policy_loss.kl(log_probs, batch["reference_log_probs"], estimator=estimator, mask=where)
            found["kl"] = policy_loss.masked_mean(divergence.detach(), mask)
            if recipe.kl_in == "loss":
                losses = losses + recipe.kl_beta * divergence
        if scores.entropies is not None:
            losses = losses - recipe.entropy_beta * scores.entropies
        # How far the sampler is from what learns: rounding in half precision, u where R2PO's head sampled.
        fresh = mask if off_policy is None else mask & ~off_policy
        found["sampler_gap"] = policy_loss.masked_mean((sampled - old).abs(), fresh)
        found["sampler_kl"] = policy_loss.masked_mean(policy_loss.kl(sampled, old, mask=mask), fresh)
        stats.append(_sums(found, mask, advantages, fresh))
        return policy_loss.aggregate_parts(losses, mask, recipe.aggregate, constant=recipe.max_new_tokens)

    return loss


def _sums(means: dict[str, Tensor], mask: Tensor, advantages: Tensor, fresh: Tensor) -> dict[str, Tensor]:
    """Means over tokens as (sum, tokens) each; those of APO are over tokens with A < 0, and r_anc's over the anchored.

    What tells of the sampler is over fresh tokens, and staleness over the others.
    """
    wrong = (mask & (advantages < 0)).sum()
    counts = dict.fromkeys(means, mask.sum()) | {"sampler_gap": fresh.sum(), "sampler_kl": fresh.sum()}
    if "staleness" in means:  # 0 on fresh tokens
        counts["staleness"] = mask.sum() - fresh.sum()
        means["staleness"] = means["staleness"] * mask.sum() / counts["staleness"]
    if "tiny_anchor_share" in means:
        counts["tiny_anchor_share"] = wrong
        counts["anchor_ratio"] = (wrong * (1 - means["tiny_anchor_share"].nan_to_num())).round()
    return {
        name: torch.stack([mean.nan_to_num() * counts[name], counts[name].to(mean)]) for name, mean in means.items()
    }


def critic_batch(step: Step, rows: Sequence[int], kind: str, returns: Tensor | None) -> dict[str, Tensor]:
    """What the critic's loss reads: the prompts of these rows, or their tokens with what they came to."""
    if kind == "prompt":
        samples = step.rollouts.samples
        prompts = [step.rollouts.prompts[row // samples] for row in rows]
        ids, mask = padded(prompts, step.rollouts.pad_id, step.rewards.device)
        return {"input_ids": ids, "attention_mask": mask, "rewards": step.rewards.flatten()[list(rows)]}
    batch = step.rollouts.batch(rows)
    width, chosen = batch["mask"].shape[1], list(rows)
    assert step.values is not None
    batch |= {"rewards": step.rewards.flatten()[chosen], "old_values": step.values[chosen][:, :width]}
    return batch | ({"returns": returns[chosen][:, :width]} if returns is not None else {})


def critic_objective(kind: str) -> LossFunction:
    """The critic's loss of batches that `critic_batch` made: BCE for a prompt, clipped squares or BCE for tokens."""
    from equipoise.reinforcement import ppo, sppo

    def loss(critic: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | float]:
        critic.eval()  # what is learnt is what `look` asks: without dropout
        if kind == "prompt":
            logits = last_logits(critic, batch["input_ids"], batch["attention_mask"])
            return sppo.critic_loss(logits, batch["rewards"]) * len(logits), float(len(logits))
        mask, values = batch["mask"], token_logits(critic, batch)
        if kind == "token-bce":
            tokens = mask.sum()
            return ppo.bce_value_loss(values, batch["rewards"], mask) * tokens, tokens
        losses = ppo.value_losses(values, batch["old_values"], batch["returns"], mask)
        return policy_loss.aggregate_parts(losses, mask)

    return loss
