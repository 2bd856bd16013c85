"""ActGuide in the loop: the stage `sample` of `training.train` that plays, and plays again with a hint where all failed.

    guided = Guided(Playing(open_environment("corridor")), actions={problem.id: [...]})
    train(language_model, recipe, problems, no_reward, sample=guided)

    groups of rollouts without a hint;  hard = those of a task with a list whose best reward is at most hard_threshold
    k of each hard one by `shortest_prefixes`, each k asked with probe_rollouts rollouts, all tasks in one call a round
    new rollouts with g_k take the place of the failed ones, on the prompt without the hint (`actguide.rebuild`)

A group is all with a hint or all without: the two meet in the batch alone. Every token that is written counts: those of
probes and of rollouts that were replaced are `probe_tokens` and `replaced_tokens` among the generated ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import check_fields
from equipoise.data.records import Message
from equipoise.language.encode import encode_prompts
from equipoise.language.generate import check_room
from equipoise.language.model import evaluating
from equipoise.language.rollouts import Rollouts, score_responses
from equipoise.reinforcement.actguide import Action, Prompt, Template, hinted, rebuild, shortest_prefixes
from equipoise.reinforcement.recipe import ADVANTAGES, Recipe
from equipoise.reinforcement.stages import Reward, Step, ask

if TYPE_CHECKING:
    from equipoise.data.problems import Problem
    from equipoise.language.model import LanguageModel
    from equipoise.reinforcement.playing import Playing
    from equipoise.reinforcement.r2po import RolloutHead

Length = Literal["search", "full", "fixed", "ratio"]
Correction = Literal["ratio", "none", "kept"]
_UNGUIDED, _GUIDED, _PROBES, _DROPPED = 4, 31, 32, 33  # purposes of random numbers; 4 is that of `Playing`
_AT_ONCE = 64  # rows of a pass without gradients


@dataclass(frozen=True)
class Guided:
    """Called as `stages.sample`. actions: by the id of a problem its list; problems without one are played as ever.

    template: of the hint, a name of `actguide.TEMPLATES` or a function. always: whether groups with a list get a hint at once,
    whatever they could do without. length: of the hint, in actions: found by search, all of the list, `fixed`, or the share
    `ratio` of it, rounded up; k_offset is added, within the list. probe_rollouts: of each k that is tried.
    hard_threshold: a group is hard when none of its rewards is above; success_threshold: a probe succeeds when one is.
    correction: "ratio" learns without the hint and divides by the probability with it; controls: "none" learns without it
    as if it had never been shown, "kept" learns with it. top_up: successful probes at the chosen k are part of the group.
    dropout: the share of hints that are left out, as groups without one.
    Raises BadInput for settings out of range.
    """

    playing: Playing
    actions: Mapping[str, Sequence[Action]]
    template: str | Template = "plan"
    always: bool = False
    length: Length = "search"
    fixed: int = 1
    ratio: float = 0.5
    k_offset: int = 0
    probe_rollouts: int = 2
    hard_threshold: float = 0.0
    success_threshold: float = 0.0
    correction: Correction = "ratio"
    top_up: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.fixed, self.probe_rollouts) < 1 or not 0 < self.ratio <= 1 or not 0 <= self.dropout <= 1:
            raise BadInput(
                f"fixed is {self.fixed}, probe_rollouts {self.probe_rollouts}, ratio {self.ratio} and dropout "
                f"{self.dropout}: expected at least 1, at least 1, in (0, 1] and in [0, 1]."
            )
        if self.top_up and self.length != "search":
            raise BadInput(f"top_up uses the probes of a search, and length is {self.length!r}: leave one of them out.")

    def check(self, language_model: LanguageModel, recipe: Recipe, problems: Sequence[Problem]) -> None:
        """Raises BadInput for a recipe that cannot be guided, and for a hint without room: to be asked before training."""
        self._check(recipe)
        told = [(problem, actions) for problem in problems if (actions := self.actions.get(problem.id))]
        encoded, _ = encode_prompts(language_model, [self._hinted(language_model, *each) for each in told])
        check_room(language_model, encoded, recipe.max_new_tokens, [f"with the hint of {each.id!r}" for each, _ in told])

    def _check(self, recipe: Recipe) -> None:
        for clash, what in (
            (recipe.samples < 2, "num_generations=1: whether a task is hard, its group says"),
            (ADVANTAGES[recipe.advantage].greedy, f"{recipe.advantage}, whose greedy answer has no hint"),
            (recipe.replay > 0, "replay, which keeps what was written to the prompts as they are"),
            (recipe.head != "none", "a rollout head, which writes with another policy than learns"),
            (recipe.loss == "anchored", "loss='anchored', whose window is another"),
        ):
            if clash:
                raise BadInput(f"guidance does not go together with {what}.")

    def __call__(
        self,
        language_model: LanguageModel,
        recipe: Recipe,
        problems: Sequence[Problem],
        keys: Sequence[int],
        reward: Reward,
        index: int,
        head: RolloutHead | None = None,
    ) -> Step:
        self._check(recipe)
        if not any(self.actions.values()):
            return self.playing(language_model, recipe, problems, keys, reward, index, head)
        batch = _Batch(self, language_model, recipe, problems, keys)
        offered = [place for place in range(len(problems)) if self._offered(recipe, problems[place], keys[place])]
        first = [place for place in range(len(problems)) if not (self.always and place in offered)]
        unguided = batch.play(first, [0] * len(first), recipe.samples, _UNGUIDED) if first else None
        hard = offered if self.always else batch.hard(unguided, first, offered)
        rollouts = batch.joined(unguided, first, hard)
        shape = len(problems), recipe.samples
        rewards = self.playing.rewards(rollouts).view(shape)
        failed = torch.tensor([episode.outcome == "failed" for episode in rollouts.episodes], device=rewards.device)
        hints = torch.tensor([batch.chosen.get(place, 0) for place in range(len(problems))], device=rewards.device) > 0
        step = Step(index, "policy", tuple(problems), tuple(keys), rollouts, rewards, failed.view(shape))
        step = replace(step, off_policy=hints if self.correction == "ratio" else None)
        return self._measured(language_model, recipe, step, batch, hard)

    def _offered(self, recipe: Recipe, problem: Problem, key: int) -> bool:
        """Whether a problem has a list that is not left out this time."""
        if not self.actions.get(problem.id):
            return False
        return not self.dropout or np.random.default_rng([recipe.seed, _DROPPED, key]).random() >= self.dropout

    def _hinted(self, language_model: LanguageModel, problem: Problem, actions: Sequence[Action]) -> Prompt:
        asked = ask(problem)
        if isinstance(asked, str) and language_model.uses_chat_template:
            asked = (Message("user", asked),)
        return hinted(asked, actions, self.template)

    def _measured(
        self, language_model: LanguageModel, recipe: Recipe, step: Step, batch: _Batch, hard: Sequence[int]
    ) -> Step:
        """The step with what is logged of it; with correction="none" as if nobody had seen a hint."""
        rollouts, count, samples = step.rollouts, len(step.problems), recipe.samples
        guided = [place for place in hard if batch.chosen[place] > 0]
        notes = batch.notes
        notes["hard"][[place for place in batch.seen]] = 0.0
        for place in hard:
            k, best = batch.chosen[place], step.rewards[place].max().item()
            if place in batch.seen:
                notes["hard"][place] = 1.0
                notes["rescued"][place] = float(best > self.success_threshold)
            notes["hint_length"][place] = k
            notes["hint_share"][place] = k / len(self.actions[step.problems[place].id])
        notes["guided"][:] = 0.0
        notes["guided"][guided] = 1.0
        if guided:
            plain = rollouts if self.correction != "kept" else rebuild(rollouts, batch.prompts(range(count)))
            rows = [place * samples + sample for place in guided for sample in range(samples)]
            scored = _scored(language_model, recipe, plain, rows)
            chosen = torch.tensor(rows, device=scored.device)
            advantages = (step.rewards - step.rewards.mean(dim=-1, keepdim=True)).flatten()[chosen]
            mask = rollouts.mask[chosen]
            found = ratio_of_hints(
                scored,
                rollouts.log_probs[chosen],
                advantages,
                mask,
                samples=samples,
                clip_low=recipe.clip_low,
                clip_high=recipe.clip_high,
            )
            for name, values in found.items():
                notes[name][guided] = values.cpu()
            if self.correction == "none":
                log_probs = rollouts.log_probs.clone()
                log_probs[chosen] = scored.where(mask, 0)
                step = replace(step, rollouts=replace(rollouts, log_probs=log_probs))
        return replace(step, notes={name: values.to(step.rewards.device) for name, values in notes.items()})


NOTES = (
    *("hard", "rescued", "guided", "hint_length", "hint_share", "unguided_reward"),
    *("hint_log_ratio", "hint_log_ratio_variance", "hint_weight_variance", "hint_clipped"),
)


class _Batch:
    """The problems of a step while they are played. chosen: place -> actions of its hint. seen: places played without one."""

    def __init__(
        self,
        guided: Guided,
        language_model: LanguageModel,
        recipe: Recipe,
        problems: Sequence[Problem],
        keys: Sequence[int],
    ) -> None:
        self.guided, self.language_model, self.recipe = guided, language_model, recipe
        self.problems, self.keys = problems, keys
        self.chosen: dict[int, int] = {}
        self.seen: list[int] = []
        self.kept: dict[int, Rollouts] = {}  # the successful probes of a place at the smallest k that had any
        empty = torch.full((len(problems),), torch.nan, dtype=torch.float64)
        self.notes = {name: empty.clone() for name in NOTES}
        self.notes |= {name: torch.zeros_like(empty) for name in ("probe_tokens", "replaced_tokens")}

    def list_of(self, place: int) -> Sequence[Action]:
        return self.guided.actions[self.problems[place].id]

    def prompts(self, places: Sequence[int]) -> list[list[int]]:
        """The tokens of the prompts without hints."""
        return encode_prompts(self.language_model, [ask(self.problems[place]) for place in places])[0]

    def play(self, places: Sequence[int], lengths: Sequence[int], samples: int, *purpose: int) -> Rollouts:
        """Episodes of these places with so many actions shown."""
        shown = [
            self.guided._hinted(self.language_model, self.problems[place], self.list_of(place)[:k])
            if k
            else ask(self.problems[place])
            for place, k in zip(places, lengths, strict=True)
        ]
        return self.guided.playing.play(
            self.language_model,
            [self.problems[place] for place in places],
            samples=samples,
            max_new_tokens=self.recipe.max_new_tokens,
            temperature=self.recipe.temperature,
            seed=[self.recipe.seed, *purpose],
            keys=[self.keys[place] for place in places],
            prompts=shown,
            batch_size=self.recipe.rollout_batch_size,
        )

    def hard(self, unguided: Rollouts | None, first: Sequence[int], offered: Sequence[int]) -> list[int]:
        """Of the places that were played without a hint those that are hard and have a list."""
        assert unguided is not None
        rewards = self.guided.playing.rewards(unguided).view(len(first), -1)
        self.seen = list(first)
        self.notes["unguided_reward"][self.seen] = rewards.mean(dim=-1).double().cpu()
        best = rewards.amax(dim=-1).tolist()
        return [
            place for place, value in zip(first, best, strict=True)
            if place in offered and value <= self.guided.hard_threshold
        ]  # fmt: skip

    def joined(self, unguided: Rollouts | None, first: Sequence[int], hard: Sequence[int]) -> Rollouts:
        """The step's rollouts: those of hard places with their hint, the others as they are."""
        if not hard:
            assert unguided is not None
            return unguided
        self._choose(hard)
        again = self._again(hard)
        if self.guided.correction != "kept":
            again = rebuild(again, self.prompts(hard))
        order, parts = list(hard), [again]
        if unguided is not None:
            left = [place for place in first if place not in self.chosen]
            tokens = unguided.lengths.view(len(first), -1).sum(dim=-1).double().cpu()
            for place, spent in zip(first, tokens.tolist(), strict=True):
                self.notes["replaced_tokens"][place] = spent if place in self.chosen else 0.0
            parts += [unguided.take([list(first).index(place) for place in left])] if left else []
            order += left
        whole = Rollouts.joined(parts)
        return whole.take([order.index(place) for place in range(len(self.problems))])

    def _choose(self, hard: Sequence[int]) -> None:
        """The length of each hint."""
        guided, lengths = self.guided, [len(self.list_of(place)) for place in hard]
        match guided.length:
            case "search":
                found = self._search(hard, lengths)
            case "fixed":
                found = [guided.fixed] * len(hard)
            case "ratio":
                found = [int(np.ceil(length * guided.ratio - 1e-9)) for length in lengths]
            case "full":
                found = lengths
        for place, k, length in zip(hard, found, lengths, strict=True):
            self.chosen[place] = min(max(k + guided.k_offset, 0), length)

    def _search(self, hard: Sequence[int], lengths: Sequence[int]) -> list[int]:
        rounds = 0

        def succeed(asked: Sequence[tuple[int, int]]) -> list[bool]:
            nonlocal rounds
            places = [hard[number] for number, _ in asked]
            probes = self.play(places, [k for _, k in asked], self.guided.probe_rollouts, _PROBES, rounds)
            rounds += 1
            good = (self.guided.playing.rewards(probes) > self.guided.success_threshold).view(len(places), -1)
            spent = probes.lengths.view(len(places), -1).sum(dim=-1).tolist()
            for number, (place, tokens) in enumerate(zip(places, spent, strict=True)):
                self.notes["probe_tokens"][place] += tokens
                if good[number].any():
                    one = _rows(probes.take([number]))
                    self.kept[place] = one.take(good[number].nonzero().flatten().tolist())
            return good.any(dim=-1).tolist()

        return shortest_prefixes(succeed, lengths)

    def _again(self, hard: Sequence[int]) -> Rollouts:
        """A group of each hard place with its hint; with top_up its successful probes are part of it."""
        samples, lengths = self.recipe.samples, [self.chosen[place] for place in hard]
        kept = {place: self._usable(place) for place in hard}
        if not any(kept.values()):
            return self.play(hard, lengths, samples, _GUIDED)
        groups: dict[int, Rollouts] = {}
        for had in sorted(set(kept.values())):
            places = [place for place in hard if kept[place] == had]
            parts = {place: [self.kept[place].take(range(had))] if had else [] for place in places}
            if had < samples:
                new = self.play(places, [self.chosen[place] for place in places], samples - had, _GUIDED)
                for number, place in enumerate(places):
                    parts[place].append(_rows(new.take([number])))
            for place in places:
                self.notes["probe_tokens"][place] -= float(sum(each.lengths.sum() for each in parts[place][:1])) if had else 0.0
                groups[place] = Rollouts.joined(parts[place])
        whole = Rollouts.joined([groups[place] for place in hard])
        return replace(whole, prompts=whole.prompts[::samples], samples=samples)

    def _usable(self, place: int) -> int:
        """How many probes may be part of a place's group: those that succeeded with the very hint that was chosen."""
        guided = self.guided
        if not guided.top_up or guided.k_offset or place not in self.kept:
            return 0
        return min(len(self.kept[place].prompts), self.recipe.samples)


def _rows(rollouts: Rollouts) -> Rollouts:
    """Each row as a group of its own, so that rows can be taken and put together anew."""
    prompts = tuple(prompt for prompt in rollouts.prompts for _ in range(rollouts.samples))
    return replace(rollouts, prompts=prompts, samples=1)


def _scored(language_model: LanguageModel, recipe: Recipe, rollouts: Rollouts, rows: Sequence[int]) -> Tensor:
    """Log-probabilities of these rows, [n, T], by the policy as it is, of the prompts that the rollouts have."""
    found = rollouts.log_probs.new_zeros(len(rows), rollouts.ids.shape[1])
    with evaluating(language_model.model):
        for begin in range(0, len(rows), _AT_ONCE):
            batch = rollouts.batch(rows[begin : begin + _AT_ONCE])
            part = score_responses(language_model.model, batch, temperature=recipe.temperature).log_probs
            found[begin : begin + len(part), : part.shape[1]] = part
    return found


def ratio_of_hints(
    log_probs: Tensor,
    behavior_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    samples: int,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> dict[str, Tensor]:
    """How far the hint-free policy is from the one that saw a hint, of each group: numbers [P] by their names.

    log_probs, behavior_log_probs: [P N, T], without and with the hint; advantages: [P N]; mask: [P N, T]. hint_log_ratio,
    hint_log_ratio_variance: mean and variance of log rho over a group's tokens; hint_weight_variance: variance over its
    responses of the sum of log rho, the paper's R_k; hint_clipped: the share of tokens that the clip leaves no gradient.
    """
    log_ratio = (log_probs - behavior_log_probs).double().where(mask, 0)
    high = (log_ratio.exp() > 1 + clip_high) & (advantages > 0).unsqueeze(-1)
    low = (log_ratio.exp() < 1 - clip_low) & (advantages < 0).unsqueeze(-1)

    def of_groups(values: Tensor) -> Tensor:
        return values.reshape(len(values) // samples, -1).sum(dim=-1)

    tokens = of_groups(mask.double())
    mean = of_groups(log_ratio) / tokens
    sums = log_ratio.sum(dim=-1).view(-1, samples)
    return {
        "hint_log_ratio": mean,
        "hint_log_ratio_variance": of_groups(log_ratio.square()) / tokens - mean.square(),
        "hint_weight_variance": sums.var(dim=-1, correction=0),
        "hint_clipped": of_groups(((high | low) & mask).double()) / tokens,
    }
