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

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import check_fields
from equipoise.data.records import Message
from equipoise.language.encode import encode_prompts
from equipoise.language.generate import check_room
from equipoise.language.rollouts import Rollouts
from equipoise.reinforcement.actguide import Action, Prompt, Template, hinted, rebuild, shortest_prefixes
from equipoise.reinforcement.recipe import ADVANTAGES, Recipe
from equipoise.reinforcement.stages import Reward, Step, score_rollouts

if TYPE_CHECKING:
    from equipoise.data.problems import Problem
    from equipoise.language.model import LanguageModel
    from equipoise.reinforcement.playing import Playing
    from equipoise.reinforcement.r2po import RolloutHead

Length = Literal["search", "full", "fixed", "ratio"]
Correction = Literal["ratio", "none", "kept"]
_UNGUIDED, _GUIDED, _PROBES, _DROPPED = 4, 31, 32, 33  # purposes of random numbers; 4 is that of `Playing`


@dataclass(frozen=True)
class Guided:
    """Called as `stages.sample`. actions: by the id of a problem its list; problems without one are played as ever.

    template: of the hint, a name of `actguide.TEMPLATES` or a function. always: whether groups with a list get a hint at
    once, whatever they could do without. length: of the hint, in actions: found by search, all of the list, `fixed`, or the
    share `ratio` of it, rounded up; k_offset is added, within the list. probe_rollouts: of each k that is tried.
    hard_threshold: a group is hard when none of its rewards is above; success_threshold: a probe succeeds when one is.
    correction: "ratio" learns without the hint and divides by the probability with it; controls: "none" learns without it
    as if it had never been shown, "kept" learns with it. top_up: successful probes at the chosen k are part of the group,
    which favors luck. dropout: the share of hints that are left out, as groups without one.
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
        check_room(
            language_model, encoded, recipe.max_new_tokens, [f"with the hint of {each.id!r}" for each, _ in told]
        )

    def beside(self, recipe: Recipe) -> int:
        """The rollouts that a task may take beside those of its group: probes of each length tried, and another group."""
        longest = max(map(len, self.actions.values()), default=0)
        rounds = longest.bit_length() if self.length == "search" else 0  # of bisection: ceil(log2(longest + 1))
        return bool(longest) * recipe.samples + rounds * self.probe_rollouts

    def _check(self, recipe: Recipe) -> None:
        for clash, what in (
            (recipe.samples < 2, "num_generations=1: whether a task is hard, its group says"),
            (ADVANTAGES[recipe.advantage].greedy, f"{recipe.advantage}, whose greedy answer has no hint"),
            (recipe.replay > 0, "replay, which keeps what was written to the prompts as they are"),
            (recipe.head != "none", "a rollout head, which writes with another policy than learns"),
            (recipe.loss == "anchored", "loss='anchored', whose window is another"),
            (
                recipe.kl_beta > 0 and recipe.kl_in == "reward" and self.correction == "ratio",
                "kl_in='reward', where the KL is of the policy that saw the hint: use kl_in='loss'",
            ),
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
        rollouts, rewards = batch.played()
        failed = torch.tensor([episode.outcome == "failed" for episode in rollouts.episodes], device=rewards.device)
        step = Step(index, "policy", tuple(problems), tuple(keys), rollouts, rewards, failed.view_as(rewards))
        if self.correction == "ratio":
            guided = [batch.chosen.get(place, 0) > 0 for place in range(len(problems))]
            step = replace(step, off_policy=torch.tensor(guided, device=rewards.device))
        return batch.measured(step)

    def _offered(self, recipe: Recipe, problem: Problem, key: int) -> bool:
        """Whether a problem has a list that is not left out this time."""
        if not self.actions.get(problem.id):
            return False
        return not self.dropout or np.random.default_rng([recipe.seed, _DROPPED, key]).random() >= self.dropout

    def _hinted(self, language_model: LanguageModel, problem: Problem, actions: Sequence[Action]) -> Prompt:
        asked = problem.asked
        if isinstance(asked, str) and language_model.uses_chat_template:
            asked = (Message("user", asked),)
        return hinted(asked, actions, self.template)


NOTES = (
    *("hard", "rescued", "guided", "hint_length", "hint_share", "unguided_reward"),
    *("hint_log_ratio", "hint_log_ratio_variance", "hint_weight_variance", "hint_clipped"),
)


class _Batch:
    """The problems of a step while they are played. chosen: how many actions the hint of a place has, for those with one."""

    def __init__(
        self,
        guided: Guided,
        language_model: LanguageModel,
        recipe: Recipe,
        problems: Sequence[Problem],
        keys: Sequence[int],
    ) -> None:
        self.guided, self.language_model, self.recipe = guided, language_model, recipe
        self.problems, self.keys, self.places = problems, keys, range(len(problems))
        self.lists = [guided.actions.get(problem.id, ()) for problem in problems]
        self.offered = [place for place in self.places if guided._offered(recipe, problems[place], keys[place])]
        self.chosen: dict[int, int] = {}
        self.found: dict[int, Rollouts] = {}  # the successful probes with the shortest hint that had any, a group a row
        empty = torch.full((len(problems),), torch.nan)
        self.notes = {name: empty.clone() for name in NOTES}
        self.notes |= {name: torch.zeros_like(empty) for name in ("probe_tokens", "replaced_tokens")}

    def played(self) -> tuple[Rollouts, Tensor]:
        """The step's rollouts and rewards [P, N]: of guided places those with their hint, of the others those without."""
        always = self.offered if self.guided.always else []
        plain = [place for place in self.places if place not in always]
        parts: list[tuple[Rollouts, Tensor]] = []
        if plain:
            parts.append(self._rewarded(self._play(plain, [0] * len(plain), self.recipe.samples, _UNGUIDED)))
            self.notes["unguided_reward"][plain] = parts[0][1].mean(dim=-1).cpu()
        hard = always if self.guided.always else self._hard(*parts[0])
        if not hard:
            return parts[0]
        self.chosen = dict(zip(hard, self._lengths(hard), strict=True))
        again, rewards = self._rewarded(self._again(hard))  # judged as they were played, with the hint
        if self.guided.correction != "kept":
            again = rebuild(again, self._prompts(hard))
        parts.append((again, rewards))
        order = [*plain, *hard]  # a replaced group stands in it twice, and the later one counts
        places = [len(order) - 1 - order[::-1].index(place) for place in self.places]
        whole = Rollouts.joined([rollouts for rollouts, _ in parts]).take(places)
        return whole, torch.cat([rewards for _, rewards in parts])[places]

    def _rewarded(self, rollouts: Rollouts) -> tuple[Rollouts, Tensor]:
        return rollouts, self.guided.playing.rewards(rollouts).view(-1, rollouts.samples)

    def _hard(self, unguided: Rollouts, rewards: Tensor) -> list[int]:
        """Of the places, all of which were played without a hint, those to be played again."""
        best = rewards.amax(dim=-1).tolist()
        hard = [place for place in self.offered if best[place] <= self.guided.hard_threshold]
        self.notes["hard"][:] = 0.0
        self.notes["hard"][hard] = 1.0
        spent = unguided.lengths.view_as(rewards).sum(dim=-1).float().cpu()
        self.notes["replaced_tokens"][hard] = spent[hard]
        return hard

    def _lengths(self, hard: Sequence[int]) -> list[int]:
        guided, lengths = self.guided, [len(self.lists[place]) for place in hard]
        match guided.length:
            case "search":
                found = self._search(hard, lengths)
            case "fixed":
                found = [guided.fixed] * len(hard)
            case "ratio":
                found = [math.ceil(length * guided.ratio - 1e-9) for length in lengths]
            case "full":
                found = lengths
        return [min(max(k + guided.k_offset, 0), length) for k, length in zip(found, lengths, strict=True)]

    def _search(self, hard: Sequence[int], lengths: Sequence[int]) -> list[int]:
        rounds = itertools.count()

        def succeed(asked: Sequence[tuple[int, int]]) -> list[bool]:
            places, shown = [hard[number] for number, _ in asked], [k for _, k in asked]
            probes = self._play(places, shown, self.guided.probe_rollouts, _PROBES, next(rounds))
            good = (self.guided.playing.rewards(probes) > self.guided.success_threshold).view(len(places), -1)
            self.notes["probe_tokens"][places] += probes.lengths.view(len(places), -1).sum(dim=-1).float().cpu()
            for number, place in enumerate(places):
                if good[number].any():
                    self.found[place] = _rows(probes.take([number])).take(good[number].nonzero().flatten().tolist())
            return good.any(dim=-1).tolist()

        return shortest_prefixes(succeed, lengths)

    def _again(self, hard: Sequence[int]) -> Rollouts:
        """A group of each hard place with its hint; with top_up its successful probes are part of it."""
        samples, guided = self.recipe.samples, self.guided
        usable = guided.top_up and not guided.k_offset  # they were written with the very hint that was chosen
        found = {place: self.found[place] for place in hard if usable and place in self.found}
        had = {place: min(len(found[place].prompts), samples) if place in found else 0 for place in hard}
        groups: dict[int, list[Rollouts]] = {place: [] for place in hard}
        for place, rows in found.items():
            reused = rows.take(range(had[place]))
            groups[place].append(reused)
            self.notes["probe_tokens"][place] -= reused.lengths.sum().cpu()  # they count as the group's
        for count in sorted({samples - each for each in had.values()} - {0}):
            places = [place for place in hard if samples - had[place] == count]
            new = self._play(places, [self.chosen[place] for place in places], count, _GUIDED)
            for number, place in enumerate(places):
                groups[place].append(_rows(new.take([number])))
        whole = Rollouts.joined([part for place in hard for part in groups[place]])
        return replace(whole, prompts=whole.prompts[::samples], samples=samples)

    def _play(self, places: Sequence[int], shown: Sequence[int], samples: int, *purpose: int) -> Rollouts:
        """Episodes of these places with so many actions shown."""
        prompts = [
            self.guided._hinted(self.language_model, self.problems[place], self.lists[place][:k])
            for place, k in zip(places, shown, strict=True)
        ]
        return self.guided.playing.play(
            self.language_model,
            [self.problems[place] for place in places],
            samples=samples,
            max_new_tokens=self.recipe.max_new_tokens,
            temperature=self.recipe.temperature,
            seed=[self.recipe.seed, *purpose],
            keys=[self.keys[place] for place in places],
            prompts=prompts,
            batch_size=self.recipe.rollout_batch_size,
        )

    def _prompts(self, places: Sequence[int]) -> list[list[int]]:
        """Their tokens, without hints."""
        return encode_prompts(self.language_model, [self.problems[place].asked for place in places])[0]

    def measured(self, step: Step) -> Step:
        """The step with what is logged of it; with correction="none" as if nobody had seen a hint."""
        notes, best = self.notes, step.rewards.amax(dim=-1).cpu()
        for place, k in self.chosen.items():
            notes["hint_length"][place] = k
            notes["hint_share"][place] = k / len(self.lists[place])
            if not self.guided.always:
                notes["rescued"][place] = float(best[place] > self.guided.success_threshold)
        guided = [place for place in self.places if self.chosen.get(place, 0) > 0]
        notes["guided"][:] = 0.0
        notes["guided"][guided] = 1.0
        if guided:
            rollouts = step.rollouts
            shown = rollouts.take(guided)
            plain = rebuild(shown, self._prompts(guided))
            without = score_rollouts(self.language_model.model, plain, temperature=self.recipe.temperature).log_probs
            advantages = step.rewards[guided] - step.rewards[guided].mean(dim=-1, keepdim=True)
            clips = {"clip_low": self.recipe.clip_low, "clip_high": self.recipe.clip_high}
            for name, values in log_ratios(without, shown.log_probs, advantages, shown.mask, **clips).items():
                notes[name][guided] = values.float().cpu()
            if self.guided.correction == "none":
                log_probs = rollouts.log_probs.clone()
                log_probs.view(*step.rewards.shape, -1)[guided] = without.view(*advantages.shape, -1)
                step = replace(step, rollouts=replace(rollouts, log_probs=log_probs))
        return replace(step, notes={name: values.to(step.rewards.device) for name, values in notes.items()})


def _rows(rollouts: Rollouts) -> Rollouts:
    """Each row as a group of its own, so that rows can be taken and put together anew."""
    prompts = tuple(prompt for prompt in rollouts.prompts for _ in range(rollouts.samples))
    return replace(rollouts, prompts=prompts, samples=1)


def log_ratios(
    log_probs: Tensor,
    behavior_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> dict[str, Tensor]:
    """How far the policy without a hint is from the one that saw it, by groups: numbers [P] by their names.

    log_probs, behavior_log_probs: [P N, T], without and with the hint; advantages: [P, N]; mask: [P N, T]. hint_log_ratio
    and hint_log_ratio_variance: mean and variance of log rho over the tokens of a group; hint_weight_variance: the variance
    over its responses of the sum of log rho, the paper's R_k; hint_clipped: the share of tokens that the clip leaves no
    gradient.
    """
    groups = len(advantages)
    log_ratio = (log_probs - behavior_log_probs).double().where(mask, 0)
    sign = advantages.reshape(-1, 1)
    clipped = ((log_ratio.exp() > 1 + clip_high) & (sign > 0)) | ((log_ratio.exp() < 1 - clip_low) & (sign < 0))

    def mean(values: Tensor) -> Tensor:
        return values.double().where(mask, 0).view(groups, -1).sum(dim=-1) / mask.view(groups, -1).sum(dim=-1)

    return {
        "hint_log_ratio": mean(log_ratio),
        "hint_log_ratio_variance": mean(log_ratio.square()) - mean(log_ratio).square(),
        "hint_weight_variance": log_ratio.sum(dim=-1).view(groups, -1).var(dim=-1, correction=0),
        "hint_clipped": mean(clipped),
    }
