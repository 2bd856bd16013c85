"""Which prompts a step is about, and which responses come again: DOTS and replay (arXiv:2506.05316) inside the loop.

    block of `select_every` steps: references are answered, and the difficulty of all prompts predicted from theirs
    step                           P - M prompts that are answered now, and M groups of earlier steps

P prompts of a batch, M of them replayed once the buffer holds as many at the beginning of a block, N responses to each. The
buffer takes what was written, with the log-probabilities of the policy that wrote it; a group that comes again is not put
in again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.streams import torch_stream
from equipoise.language.generate import answer_text
from equipoise.language.rollouts import Rollouts
from equipoise.reinforcement.dots import DifficultySampler, Predictor
from equipoise.reinforcement.group_baselines import mixed
from equipoise.reinforcement.rates import GroupCounts, Selected
from equipoise.reinforcement.recipe import Recipe
from equipoise.reinforcement.replay import ReplayBuffer, ReplayGroup
from equipoise.training.order import without_replacement

if TYPE_CHECKING:
    from equipoise.data.problems import Problem
    from equipoise.language.model import LanguageModel
    from equipoise.reinforcement.stages import Step

_REPLAY = 9  # the stream of a seed that the draws from the buffer have to themselves
KEY = -1  # of what was written in an earlier step


def sampler_of(recipe: Recipe, embeddings: Tensor, predictor: Predictor) -> DifficultySampler:
    """The sampler that a recipe with select="dots" asks for: embeddings [N, E] of the prompts, and what predicts from them.

    Raises BadInput for settings that so many prompts cannot serve.
    """
    recipe.check_pool(len(embeddings))
    return DifficultySampler(
        embeddings,
        predictor,
        seed=recipe.seed,
        references=recipe.reference_questions,
        block=recipe.select_every,
        target=recipe.difficulty_target,
        temperature=recipe.select_temperature,
        refit=recipe.refit,
        prediction_worth=math.inf if recipe.prediction_worth is None else recipe.prediction_worth,
    )


def _oracle(recipe: Recipe, count: int) -> DifficultySampler:
    return DifficultySampler(
        torch.empty(count, 0),
        None,
        seed=recipe.seed,
        block=recipe.select_every,
        target=recipe.difficulty_target,
        temperature=recipe.select_temperature,
    )


class Selection:
    """The prompts of a run in their order, and the buffer; sampler and buffer are None where the recipe has none.

    problems: the prompts; encoded: their ids. sampler, difficulty: as of `training.train`. Raises BadInput for one of these
    that is missing, or that the recipe does not ask for.
    """

    def __init__(
        self,
        recipe: Recipe,
        language_model: LanguageModel,
        problems: Sequence[Problem],
        encoded: Sequence[Sequence[int]],
        sampler: DifficultySampler | None,
        difficulty: Callable[[LanguageModel], Tensor] | None,
    ) -> None:
        count = len(problems)
        recipe.check_pool(count)
        if difficulty is not None and recipe.select != "oracle":
            raise BadInput(f"select is {recipe.select!r}, and difficulty is what an oracle knows: use select=oracle.")
        if (recipe.select == "dots") != (sampler is not None):
            what = "needs a sampler: give sampler=sampler_of(recipe, embeddings, predictor)"
            raise BadInput(f"select is {recipe.select!r}, which {'takes no sampler' if sampler else what}.")
        if sampler is not None and (len(sampler.embeddings), sampler.block) != (count, recipe.select_every):
            raise BadInput(
                f"the sampler is of {len(sampler.embeddings)} prompts and blocks of {sampler.block} steps, expected {count} "
                f"and {recipe.select_every} (select_every)."
            )
        self.recipe, self._language_model, self._difficulty = recipe, language_model, difficulty
        self._problems, self._encoded = problems, encoded
        self.sampler = _oracle(recipe, count) if recipe.select == "oracle" else sampler
        self.buffer = ReplayBuffer(recipe.capacity) if recipe.replay else None
        self._order = without_replacement(count, 1, recipe.seed)
        self._again = 0  # groups of a step of this block that come again
        self._fresh, self._replayed = GroupCounts(), 0
        self._measured_tokens = 0

    def begin(self, index: int) -> list[int]:
        """Called before each step (from 0): the prompts that must be answered and measured first, mostly none."""
        # For a whole block, whose prompts are drawn at once; the buffer does not shrink in it.
        if index % self.recipe.select_every == 0 and self.buffer is not None:
            self._again = self.recipe.replayed if len(self.buffer) >= self.recipe.replayed else 0
        if self.sampler is None:
            return []
        asked = self.sampler.references().tolist()
        if not asked or self._difficulty is None:
            return asked
        difficulty, count = self._difficulty(self._language_model), len(self._problems)
        if difficulty.shape != (count,):
            raise BadInput(f"difficulty gave {list(difficulty.shape)}, expected a number for each of {count} problems.")
        self.sampler.know(asked, difficulty[asked])
        return []

    def next(self, drawn: int) -> list[int]:
        """The prompts to be answered in this step; `drawn`: how many were answered before."""
        count = self.recipe.prompts_per_step - self._again
        if self.sampler is None:
            return [self._order(place)[0] for place in range(drawn, drawn + count)]
        return self.sampler.next(count).tolist()

    def measured(self, places: Sequence[int], rewards: Tensor, tokens: int) -> dict[str, float]:
        """Take in the rewards [K, N] of what `begin` asked for; what is logged of them."""
        assert self.sampler is not None
        self._refuse_rewards(rewards)
        self.sampler.observe(places, rewards, reference=True)
        self._measured_tokens += tokens
        return {self._tokens: float(tokens), "reference_effective_share": mixed(rewards).double().mean().item()}

    def answered(self, places: Sequence[int], rewards: Tensor) -> dict[str, float]:
        """Take in the rewards [P, N] of the step's fresh responses; what is logged of them."""
        if self.sampler is None and self.buffer is None:
            return {}
        counts = GroupCounts(len(rewards), int(mixed(rewards).sum()), rewards.numel())
        self._fresh += counts
        found = {"fresh_groups": float(counts.groups), "effective_share": counts.effective_share}
        if self.buffer is not None:
            found["replayed_groups"] = float(self._again)
        if self.sampler is None:
            return found
        self._refuse_rewards(rewards)
        self.sampler.observe(places, rewards)
        found[self._tokens] = 0.0  # what was measured overwrites it
        block = self.sampler.blocks[-1] if self.sampler.blocks else None
        if block is not None and block["step"] == self.sampler.steps[-1]["step"] - 1:
            correlation = math.nan if block["correlation"] is None else block["correlation"]
            found |= {"correlation": correlation, "uniform_block": float(block["uniform"])}
        return found

    def with_replayed(self, step: Step) -> Step:
        """The step with the groups that come again among its own, in an order that lets every optimizer step have some."""
        if not self._again:
            return step
        assert self.buffer is not None
        generator = torch_stream(self.recipe.seed, _REPLAY, step.index)
        groups = self.buffer.sample(self._again, generator=generator)
        self._replayed += len(groups)
        device, fresh = step.rewards.device, len(step.problems)
        order = torch.randperm(fresh + len(groups), generator=generator)
        places = [int(group.question) for group in groups]
        rewards = torch.cat([step.rewards, torch.stack([group.rewards for group in groups]).to(step.rewards)])
        old = [
            _rollouts(group, self._language_model, self._encoded[place])
            for group, place in zip(groups, places, strict=True)
        ]
        every = (*step.problems, *(self._problems[place] for place in places))
        keys = (*step.keys, *(KEY for _ in groups))
        missing = torch.cat([step.missing, torch.zeros_like(rewards[fresh:], dtype=torch.bool)])
        return replace(
            step,
            problems=tuple(every[place] for place in order),
            keys=tuple(keys[place] for place in order),
            rollouts=Rollouts.joined([step.rollouts, *(each.to(device) for each in old)]).take(order.tolist()),
            rewards=rewards[order],
            missing=missing[order],
            off_policy=(order >= fresh).to(device),
        )

    def keep(self, step: Step, places: Mapping[int, int]) -> None:
        """Put what was written for a step into the buffer; places: of its keys' problems."""
        if self.buffer is None:
            return
        rolled, written = step.rollouts, step.rollouts.log_probs
        if step.old_log_probs is not None:  # the trainer's own numbers, which its ratios will be to
            written = step.old_log_probs
        ids, mask, log_probs, rewards = (each.cpu() for each in (rolled.ids, rolled.mask, written, step.rewards))
        groups = []
        for place, key in enumerate(step.keys):
            if key == KEY:
                continue
            if rolled.prompts[place] != tuple(self._encoded[places[key]]):
                raise BadInput(
                    f"replay keeps responses to the prompts as they are, and the stage `sample` asked "
                    f"{step.problems[place].id!r} otherwise: use replay=0."
                )
            rows = slice(place * rolled.samples, (place + 1) * rolled.samples)
            width = int(mask[rows].sum(dim=-1).max())
            own = (ids[rows, :width], mask[rows, :width], rewards[place], log_probs[rows, :width])
            groups.append(ReplayGroup(places[key], *own))
        self.buffer.push(groups)

    def selected(self) -> Selected | None:
        """What the run learnt from until now; None where prompts are drawn uniformly and nothing comes again."""
        if self.sampler is None and self.buffer is None:
            return None
        statistics = None if self.sampler is None else self.sampler.statistics()
        return Selected(self.recipe.select, self._fresh, self._replayed, self._measured_tokens, statistics)

    def state(self) -> dict[str, Any]:
        """JSON values and tensors; nothing where nothing is used."""
        if self.sampler is None and self.buffer is None:
            return {}
        return {
            "again": self._again,
            "fresh": asdict(self._fresh),
            "replayed": self._replayed,
            "measured_tokens": self._measured_tokens,
            "sampler": None if self.sampler is None else self.sampler.state_dict(),
            "buffer": None if self.buffer is None else self.buffer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as what returned the state would have. Raises BadInput for a sampler of other prompts or settings."""
        if not state:
            return
        if self.sampler is not None:
            self.sampler.load_state_dict(state["sampler"])
        if self.buffer is not None:
            self.buffer.load_state_dict(state["buffer"])
        self._again, self._replayed, self._fresh = state["again"], state["replayed"], GroupCounts(**state["fresh"])
        self._measured_tokens = state["measured_tokens"]

    @property
    def _tokens(self) -> str:
        """An oracle's are those of a control, and no cost of a method."""
        return "oracle_tokens" if self.recipe.select == "oracle" else "reference_tokens"

    def _refuse_rewards(self, rewards: Tensor) -> None:
        wrong = rewards[(rewards < 0) | (rewards > 1)]
        if len(wrong):
            raise BadInput(
                f"select is {self.recipe.select!r}, which takes rewards in [0, 1], and one is {wrong[0].item():g}: scale "
                "them, or use select=uniform."
            )


def _rollouts(group: ReplayGroup, language_model: LanguageModel, prompt: Sequence[int]) -> Rollouts:
    answers = [ids[mask].tolist() for ids, mask in zip(group.ids, group.mask, strict=True)]
    ended = [bool(answer) and answer[-1] in language_model.end_ids for answer in answers]
    texts = [
        answer_text(language_model.tokenizer, answer[: len(answer) - end])
        for answer, end in zip(answers, ended, strict=True)
    ]
    return Rollouts(
        prompts=(tuple(prompt),),
        samples=len(answers),
        pad_id=language_model.pad_id,
        ids=group.ids.masked_fill(~group.mask, language_model.pad_id),
        mask=group.mask,
        log_probs=group.log_probs,
        entropies=torch.full_like(group.log_probs, math.nan).where(group.mask, 0),
        forced=torch.zeros_like(group.mask),
        ended=torch.tensor(ended),
        texts=tuple(texts),
    )
