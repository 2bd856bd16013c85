"""The loop: prompts -> rollouts -> rewards -> advantages -> updates, as a recipe says. Used by the job and by studies.

    for each step: problems = the next of the order, or those that are selected          } `selection`
                   step = sample(...)             responses and their rewards            } `stages`, each a plain function
                   step = shape(...)              a penalty on length                    }
                   step = with_replayed(...)      groups of earlier steps among them     } `selection`
                   step = look(...)               what models say before anybody learns  }
                   step = weigh(...)              advantages                             }
                   the critic learns, then the policy (or R2PO's head), by `training.Optimization`

The unit is the batch of prompts: what is drawn for a prompt follows from the seed and its number in the run's order, so that
a run which was killed within a rollout or an update goes on from the last step that was saved, and comes to the same bytes.
Of several processes each writes and judges its share of the prompts; updates split rows, as `training.fit` does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.progress import progress
from equipoise.language import adapters
from equipoise.language.encode import encode_prompts
from equipoise.language.generate import check_room
from equipoise.language.rollouts import Rollouts
from equipoise.reinforcement import group_baselines, ppo, stages
from equipoise.reinforcement.critic import Critic
from equipoise.reinforcement.playing import episode_metrics
from equipoise.reinforcement.r2po import RolloutHead
from equipoise.reinforcement.rates import Selected
from equipoise.reinforcement.recipe import ADVANTAGES, Recipe
from equipoise.reinforcement.selection import Selection
from equipoise.reinforcement.stages import Reward, Step
from equipoise.training.loop import OneLoss, Optimization, TrainerSettings, anywhere, random_state_kept, step_log
from equipoise.training.reference import ReferenceModel
from equipoise.training.team import accelerator_for

if TYPE_CHECKING:
    from equipoise.data.problems import Problem
    from equipoise.language.model import LanguageModel
    from equipoise.reinforcement.dots import DifficultySampler

MIXED_ATTEMPTS = 10  # batches of prompts that DAPO's sampling draws for one step before it takes what it has


@dataclass(frozen=True)
class ReinforceState:
    """Where the training is: after step `done` (counted from 1), with its step and what was logged of it."""

    done: int
    step: Step
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class ReinforceResult:
    """steps: made in all attempts that led here. stopped: a callback ended it. metrics: of the last step.

    moved: the share of the policy's trained weights, in [0, 1], that is another number than before. generated_tokens: all
    that were written for these steps, dropped and greedy answers, DOTS' references and what a stage notes among them, an
    oracle's not. selected: what was learnt from, where prompts were selected or groups replayed.
    """

    steps: int
    stopped: bool
    metrics: Mapping[str, float]
    moved: float
    generated_tokens: int
    selected: Selected | None = None


def prepare(language_model: LanguageModel, recipe: Recipe) -> LanguageModel:
    """The model with exactly the recipe's parameters trainable; with LoRA a wrapped one, which must be used from here on."""
    if recipe.parameters == "lora":
        return adapters.attach(language_model, recipe.lora_rank, 2.0 * recipe.lora_rank, seed=recipe.seed)
    language_model.model.requires_grad_(True)
    return language_model


def train(
    language_model: LanguageModel,
    recipe: Recipe,
    problems: Sequence[Problem],
    reward: Reward,
    *,
    critic: Critic | None = None,
    sampler: DifficultySampler | None = None,
    difficulty: Callable[[LanguageModel], Tensor] | None = None,
    sample: Callable[..., Step] = stages.sample,
    weigh: Callable[[Recipe, Step], Step] = stages.weigh,
    accelerator: Accelerator | None = None,
    callbacks: Sequence[Callable[[ReinforceState], bool | None]] = (),
    log: Path | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    save_every: int | None = None,
    state: Mapping[str, Any] | None = None,
) -> ReinforceResult:
    """Train a policy in place: the model as `prepare` left it, still with the weights that it starts from.

    reward: problems and responses -> numbers, as `open_verifier` makes them. critic: needed where the recipe's advantage has
    one; it is trained, too. sampler: needed with select="dots", as `selection.sampler_of` makes it; afterwards it is where
    the training ended. difficulty: with select="oracle", what gives the difficulty of all problems, [N] in [0, 1], for the
    policy as it is; not given: it answers them all before each block. sample, weigh: stages of one's own. R2PO's head is
    attached for the training alone.
    callbacks, log, save, save_every and state are those of `training.fit`, a step being a batch of prompts.
    Raises BadInput for what does not fit together, prompts without room for an answer among it, WorkFailed when a loss is no
    number or memory runs out.
    """
    recipe.check()
    if not problems:
        raise BadInput("there are no prompts to learn from.")
    encoded, _ = encode_prompts(language_model, [problem.asked for problem in problems])
    check_room(language_model, encoded, recipe.max_new_tokens, [repr(problem.id) for problem in problems])
    if (recipe.critic != "none") != (critic is not None):
        raise BadInput(f"the advantage {recipe.advantage} {'needs a' if critic is None else 'has no'} critic.")
    selection = Selection(recipe, language_model, problems, encoded, sampler, difficulty)
    model: Any = language_model.model
    reference = _reference(model) if recipe.reference else None
    head = None
    if recipe.head != "none":
        scale = recipe.head_scale if recipe.head == "random" else 0.0
        head = RolloutHead.attach(model, seed=recipe.seed, scale=scale)
    try:
        models = (reference, critic, head)
        loop = _Loop(language_model, recipe, problems, reward, selection, models, accelerator, sample, weigh)
        return loop.run(callbacks, log, save, save_every, state)
    finally:
        if head is not None:
            head.detach()


def _reference(model: Any) -> Any:
    """The model as it is now; a copy of all of it where all of it is trained."""
    if all(parameter.requires_grad for parameter in model.parameters()):
        return copy.deepcopy(model).requires_grad_(False).eval()
    return ReferenceModel(model)


class _Loop:
    def __init__(
        self,
        language_model: LanguageModel,
        recipe: Recipe,
        problems: Sequence[Problem],
        reward: Reward,
        selection: Selection,
        models: tuple[Any, Critic | None, RolloutHead | None],
        accelerator: Accelerator | None,
        sample: Callable[..., Step],
        weigh: Callable[[Recipe, Step], Step],
    ) -> None:
        self.language_model, self.recipe, self.problems, self.reward = language_model, recipe, problems, reward
        self.reference, self.critic, self.head = models
        self.selection, self.sample, self.weigh = selection, sample, weigh
        self.accelerator = accelerator or accelerator_for(language_model.device)
        with _training_only(language_model.model, self.head, "policy"):
            trained = sum(each.numel() for each in language_model.model.parameters() if each.requires_grad)
            rate = recipe.resolved_learning_rate(trained)
            self.policy = Optimization(language_model.model, self._settings(rate, "policy"), self.accelerator)
        self.optimizations = {"policy": self.policy}
        if recipe.head == "trained":
            with _training_only(language_model.model, self.head, "head"):
                settings = self._settings(recipe.head_learning_rate or rate, "head")
                self.optimizations["head"] = Optimization(language_model.model, settings, self.accelerator)
        if self.critic is not None:
            settings = self._settings(recipe.critic_learning_rate or 5 * rate, "policy")
            self.optimizations["critic"] = Optimization(self.critic, settings, self.accelerator)
        self.drawn = 0  # prompts that were answered
        self.places: dict[int, int] = {}  # key of a prompt of this step -> which problem it is
        self.past: dict[int, tuple[float, int]] = {}  # place of a problem -> sum and number of its rewards so far
        self.generated = 0  # tokens

    def _settings(self, rate: float, stage: str) -> TrainerSettings:
        """Of what learns in this stage: its schedule runs over those steps alone."""
        recipe = self.recipe
        return TrainerSettings(
            steps=recipe.updates * sum(recipe.stage(step) == stage for step in range(recipe.steps)),
            learning_rate=rate,
            batch_size=recipe.minibatch,
            micro_batch_size=recipe.micro_batch_size,
            schedule=recipe.schedule,
            warmup_ratio=recipe.warmup_ratio,
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.max_grad_norm,
            seed=recipe.seed,
        )

    def run(
        self,
        callbacks: Sequence[Callable[[ReinforceState], bool | None]],
        log: Path | None,
        save: Callable[[dict[str, Any]], None] | None,
        save_every: int | None,
        state: Mapping[str, Any] | None,
    ) -> ReinforceResult:
        begin, stopped = self._restore(state)
        done, metrics, steps = begin, {}, self.recipe.steps
        main = self.accelerator.is_main_process
        models = [each for each in (self.language_model.model, self.critic) if each is not None]
        modes = [each.training for each in models]
        with (
            random_state_kept(self.language_model.device),
            step_log(log if main else None, begin) as write,
            progress("Reinforcing", total=steps, unit="steps", done=begin) as bar,
        ):
            try:
                while done < steps and not stopped:
                    step, metrics = self._step(done)
                    done += 1
                    write({"step": done, **metrics})
                    reached = ReinforceState(done, step, metrics)
                    wishes = [callback(reached) for callback in callbacks]  # every one sees every step
                    stopped = anywhere(any(wishes), self.accelerator)
                    last = stopped or done == steps
                    if save is not None and main and (last or (save_every and not done % save_every)):
                        save(self._state(done, stopped))
                    bar.advance(1, reward=f"{metrics['reward']:.3f}", length=f"{metrics['length']:.1f}")
            finally:
                for model, mode in zip(models, modes, strict=True):
                    model.train(mode)
                for each in self.optimizations.values():
                    each.release()
        return ReinforceResult(done, stopped, metrics, self.policy.moved(), self.generated, self.selection.selected())

    def _step(self, index: int) -> tuple[Step, dict[str, float]]:
        recipe, selection = self.recipe, self.selection
        self.places = {}
        measured = self._measured(index)
        sampled = self._sampled(index)
        picked = selection.answered([self.places[key] for key in sampled.keys], sampled.rewards)
        step = stages.shape(recipe, self._chosen(sampled) if recipe.mixed_only else sampled)
        if ADVANTAGES[recipe.advantage].past:
            step = replace(step, baselines=self._running_means(step))
        step = selection.with_replayed(step)
        step = stages.look(
            self.language_model, recipe, step, reference=self.reference, critic=self.critic, head=self.head
        )
        selection.keep(step, self.places)
        step = self.weigh(recipe, step)
        metrics = _of_rollouts(sampled) | _of_learning(step) | picked | measured
        metrics["generated_tokens"] += metrics.get("reference_tokens", 0.0)
        self.generated += int(metrics["generated_tokens"])
        if self.critic is not None:
            metrics |= self._learn_critic(step)
        metrics |= self._learn(step)
        return step, metrics

    def _measured(self, index: int) -> dict[str, float]:
        """Answers to what has to be measured before a block of selection; what is logged of them."""
        asked = self.selection.begin(index)
        if not asked:
            return {}
        step = self._together(index, asked)
        return self.selection.measured(asked, step.rewards, int(_tokens(step)))

    def _sampled(self, index: int) -> Step:
        """A batch of prompts with its responses; with `mixed_only` as many batches as it takes."""
        recipe, parts, mixed = self.recipe, [], 0
        for _ in range(MIXED_ATTEMPTS if recipe.mixed_only else 1):
            part = self._together(index, self._agreed(self.selection.next(self.drawn)))
            parts.append(part)
            mixed += int(group_baselines.mixed(part.rewards).sum())
            if mixed >= recipe.prompts_per_step:
                break
        return _joined(parts)

    def _chosen(self, sampled: Step) -> Step:
        """The prompts that have right and wrong responses, at most as many as a batch."""
        mixed = group_baselines.mixed(sampled.rewards).nonzero().flatten().tolist()
        if not mixed:
            raise WorkFailed(
                f"of {len(sampled.keys)} prompts none had right and wrong responses: nothing can be learnt from them. "
                "Use prompts nearer to what the model can do, more num_generations, or leave mixed_only out."
            )
        return _take(sampled, mixed[: self.recipe.prompts_per_step])

    def _agreed(self, places: list[int]) -> list[int]:
        """The main process's: predictions of several may differ in a last bit."""
        agreed = [places]
        if self.accelerator.num_processes > 1:
            torch.distributed.broadcast_object_list(agreed, src=0)
        return agreed[0]

    def _together(self, index: int, places: Sequence[int]) -> Step:
        """All responses to these problems, each process having written and judged its share."""
        count, own = self.accelerator.num_processes, self.accelerator.process_index
        keys = range(self.drawn, self.drawn + len(places))
        self.drawn += len(places)
        self.places |= zip(keys, places, strict=True)
        mine = list(keys)[own::count] or [keys[0]]  # a process that has none writes one again
        problems = [self.problems[self.places[key]] for key in mine]
        part = self.sample(self.language_model, self.recipe, problems, mine, self.reward, index, self.head)
        if count == 1:
            return part
        shares: list[Any] = [None for _ in range(count)]
        torch.distributed.all_gather_object(shares, _on(part, "cpu"))
        whole = _on(_joined(shares), self.language_model.device)
        return _take(whole, [whole.keys.index(key) for key in keys])

    def _running_means(self, step: Step) -> Tensor:
        """The mean reward of each problem in earlier steps, else that of this step; notes what came now."""
        now, places = step.rewards.mean().item(), [self.places[key] for key in step.keys]
        known = [self.past.get(place, (0.0, 0)) for place in places]
        for place, rewards in zip(places, step.rewards.tolist(), strict=True):
            total, number = self.past.get(place, (0.0, 0))
            self.past[place] = (total + sum(rewards), number + len(rewards))
        return torch.tensor([total / number if number else now for total, number in known], device=step.rewards.device)

    def _learn_critic(self, step: Step) -> dict[str, float]:
        kind = self.recipe.critic
        returns = ppo.of_step(step, self.recipe)[1] if kind == "token" else None
        collate = partial(stages.critic_batch, step, kind=kind, returns=returns)
        update = OneLoss(stages.critic_objective(kind))
        losses = [
            self.optimizations["critic"].update(update, rows, collate)["loss"]
            for rows in stages.minibatches(self.recipe, step)
        ]
        return {"critic_loss": sum(losses) / len(losses)}

    def _learn(self, step: Step) -> dict[str, float]:
        """One pass over the step's responses; means over its optimizer steps, and over tokens of what happened in them."""
        batches = stages.minibatches(self.recipe, step)
        old = step.old_log_probs if step.old_log_probs is not None else step.rollouts.log_probs
        collate = partial(stages.policy_batch, step, old=old if len(batches) > 1 else None)
        stats: stages.Stats = []
        update = OneLoss(stages.policy_objective(self.recipe, stats))
        with _training_only(self.language_model.model, self.head, step.stage), stages.acting(self.head, step):
            numbers = [self.optimizations[step.stage].update(update, rows, collate) for rows in batches]
        means = {name: sum(each[name] for each in numbers) / len(numbers) for name in numbers[0]}
        return means | _averaged(stats, self.accelerator)

    def _state(self, done: int, stopped: bool) -> dict[str, Any]:
        return {
            "step": done,
            "stopped": stopped,
            "drawn": self.drawn,
            "generated": self.generated,
            "past": [[place, total, number] for place, (total, number) in self.past.items()],
            "recipe": self.recipe.model_dump(mode="json"),
            "optimizations": {name: each.state() for name, each in self.optimizations.items()},
            "selection": self.selection.state(),
        }

    def _restore(self, state: Mapping[str, Any] | None) -> tuple[int, bool]:
        now = self.recipe.model_dump(mode="json")
        free = ("micro_batch_size", "rollout_batch_size")  # they do not change the result
        before = now if state is None else Recipe().model_dump(mode="json") | state["recipe"]
        for name, stored in before.items():
            if name not in free and stored != now[name]:
                raise BadInput(f"the stored training has {name}={stored}, this one {name}={now[name]}: start it anew.")
        for name, each in self.optimizations.items():
            each.restore(None if state is None else state["optimizations"][name])
        if state is None:
            return 0, False
        self.selection.restore(state.get("selection", {}))
        self.drawn, self.generated = state["drawn"], state["generated"]
        self.past = {int(place): (total, int(number)) for place, total, number in state["past"]}
        return state["step"], state["stopped"]


def _averaged(stats: stages.Stats, accelerator: Accelerator) -> dict[str, float]:
    """Means over all batches of all processes; nan where nothing was counted."""
    own: dict[str, list[float]] = {}
    if stats:  # a process may have had no row
        sums = torch.stack([torch.stack(list(each.values())) for each in stats]).sum(dim=0)
        own = dict(zip(stats[0], sums.tolist(), strict=True))
    shares = [own]
    if accelerator.num_processes > 1:
        shares = [own for _ in range(accelerator.num_processes)]
        torch.distributed.all_gather_object(shares, own)
    names = dict.fromkeys(name for share in shares for name in share)
    found = {name: [share[name] for share in shares if name in share] for name in names}
    totals = {name: [sum(column) for column in zip(*each, strict=True)] for name, each in found.items()}
    return {name: total / count if count else math.nan for name, (total, count) in totals.items()}


@contextmanager
def _training_only(model: Any, head: RolloutHead | None, stage: str) -> Iterator[None]:
    """Inside, gradients are asked of the stage's parameters alone: the head's, or all others that had any."""
    if head is None:
        yield
        return
    own = {id(parameter) for parameter in head.own_parameters()}
    frozen = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and (id(parameter) in own) != (stage == "head")
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _of_rollouts(step: Step) -> dict[str, float]:
    """What was written for a step, whether it is learnt from or not."""
    rollouts, rewards = step.rollouts, step.rewards
    found = {
        "reward": rewards.mean(),
        "best_of_group": rewards.amax(dim=-1).mean(),  # of rewards 0 and 1: Pass@N
        "length": rollouts.lengths.double().mean(),
        "ended": rollouts.ended.double().mean(),
        "entropy": rollouts.entropies.sum() / rollouts.mask.sum(),
        "distinct_rewards": torch.tensor([len(set(group)) for group in rewards.tolist()]).double().mean(),
        "missing": step.missing.sum(),
        "generated_tokens": _tokens(step),
    }
    found |= {name: each.nansum() if name.endswith("_tokens") else each.nanmean() for name, each in step.notes.items()}
    of_episodes = episode_metrics(rollouts.episodes) if rollouts.episodes else {}
    return {name: float(value) for name, value in found.items()} | of_episodes


def _tokens(step: Step) -> Tensor:
    """How many were written for a step."""
    greedy = 0 if step.greedy_lengths is None else step.greedy_lengths.sum()
    beside = sum(int(each.nansum()) for name, each in step.notes.items() if name.endswith("_tokens"))
    return step.rollouts.mask.sum() + greedy + beside


def _of_learning(step: Step) -> dict[str, float]:
    """What a step has to teach."""
    found = {"zero_advantage": (step.token_advantages == 0).all(dim=-1).double().mean()}
    if step.success_probability is not None:
        error = step.success_probability.unsqueeze(-1) - step.rewards
        found |= {"critic_brier": error.square().mean(), "critic_mean": step.success_probability.mean()}
    return {name: float(value) for name, value in found.items()}


# Tensors [P, ...] of what was just sampled.
_OF_PROMPTS = ("rewards", "missing", "greedy_rewards", "greedy_lengths", "off_policy")


def _take(step: Step, prompts: Sequence[int]) -> Step:
    """The step of some of its prompts, before anything was asked of other models."""
    chosen = list(prompts)
    return replace(
        step,
        problems=tuple(step.problems[place] for place in chosen),
        keys=tuple(step.keys[place] for place in chosen),
        rollouts=step.rollouts.take(chosen),
        notes={name: each[chosen] for name, each in step.notes.items()},
        **{name: each[chosen] for name in _OF_PROMPTS if (each := getattr(step, name)) is not None},
    )


def _joined(parts: Sequence[Step]) -> Step:
    """Steps of several calls as that of one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    there = [name for name in _OF_PROMPTS if getattr(first, name) is not None]
    return replace(
        first,
        problems=tuple(problem for each in parts for problem in each.problems),
        keys=tuple(key for each in parts for key in each.keys),
        rollouts=Rollouts.joined([each.rollouts for each in parts]),
        notes={name: torch.cat([each.notes[name] for each in parts]) for name in first.notes},
        **{name: torch.cat([getattr(each, name) for each in parts]) for name in there},
    )


def _on(step: Step, device: torch.device | str) -> Step:
    """The step on another device."""
    there = {name: each.to(device) for name in _OF_PROMPTS if (each := getattr(step, name)) is not None}
    notes = {name: each.to(device) for name, each in step.notes.items()}
    return replace(step, rollouts=step.rollouts.to(device), notes=notes, **there)
