"""The loop: prompts -> rollouts -> rewards -> advantages -> updates, as a recipe says. Used by the job and by studies.

    for each step: problems = the next of the order
                   step = sample(...)             responses and their rewards            } `stages`, each a plain function
                   step = look(...)               what models say before anybody learns  }
                   step = weigh(...)              advantages                             }
                   the critic learns, then the policy (or R2PO's head), by `training.Optimization`

The unit is the batch of prompts: what a step draws follows from the seed, its number and the problems' places in the data,
so that a run which was killed within a rollout or an update goes on from the last step that was saved, and comes to the
same bytes. Of several processes each writes and judges its share of the prompts; updates split rows, as `training.fit` does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.progress import progress
from equipoise.language import adapters
from equipoise.language.rollouts import Rollouts
from equipoise.reinforcement import group_baselines, ppo, stages
from equipoise.reinforcement.critic import Critic
from equipoise.reinforcement.r2po import RolloutHead
from equipoise.reinforcement.recipe import Recipe
from equipoise.reinforcement.stages import Reward, Step
from equipoise.training.loop import Gradients, Optimization, TrainerSettings, mean_gradient, random_state_kept, step_log
from equipoise.training.order import without_replacement
from equipoise.training.reference import ReferenceModel

if TYPE_CHECKING:
    from equipoise.data.problems import Problem
    from equipoise.language.model import LanguageModel
    from equipoise.training.loop import LossFunction

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

    moved: the share of the policy's trained weights, in [0, 1], that is another number than before.
    """

    steps: int
    stopped: bool
    metrics: Mapping[str, float]
    moved: float


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
    one; it is trained, too. sample, weigh: stages of one's own. R2PO's head is attached for the training alone.
    callbacks, log, save, save_every and state are those of `training.fit`, a step being a batch of prompts.
    Raises BadInput for what does not fit together, WorkFailed when a loss is no number or memory runs out.
    """
    recipe.check()
    if not problems:
        raise BadInput("there are no prompts to learn from.")
    if (recipe.critic != "none") != (critic is not None):
        raise BadInput(f"the advantage {recipe.advantage} {'needs a' if critic is None else 'has no'} critic.")
    model: Any = language_model.model
    reference = _reference(model) if recipe.reference else None
    head = None
    if recipe.head != "none":
        scale = recipe.head_scale if recipe.head == "random" else 0.0
        head = RolloutHead.attach(model, seed=recipe.seed, scale=scale)
    try:
        loop = _Loop(language_model, recipe, problems, reward, reference, critic, head, accelerator, sample, weigh)
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
        reference: Any,
        critic: Critic | None,
        head: RolloutHead | None,
        accelerator: Accelerator | None,
        sample: Callable[..., Step],
        weigh: Callable[[Recipe, Step], Step],
    ) -> None:
        self.language_model, self.recipe, self.problems, self.reward = language_model, recipe, problems, reward
        self.reference, self.critic, self.head = reference, critic, head
        self.sample, self.weigh = sample, weigh
        self.order = without_replacement(len(problems), recipe.prompts, recipe.seed)
        self.accelerator = accelerator or Accelerator(cpu=language_model.device.type == "cpu")
        with _training_only(language_model.model, head, "policy"):
            trained = sum(each.numel() for each in language_model.model.parameters() if each.requires_grad)
            rate = recipe.resolved_learning_rate(trained)
            self.policy = Optimization(language_model.model, self._settings(rate), self.accelerator)
        self.optimizations = {"policy": self.policy}
        if recipe.head == "trained":
            with _training_only(language_model.model, head, "head"):
                settings = self._settings(recipe.head_learning_rate or rate)
                self.optimizations["head"] = Optimization(language_model.model, settings, self.accelerator)
        if critic is not None:
            settings = self._settings(recipe.critic_learning_rate or 5 * rate)
            self.optimizations["critic"] = Optimization(critic, settings, self.accelerator)
        self.drawn = 0  # batches of prompts
        self.past: dict[int, tuple[float, int]] = {}  # place of a problem -> sum and number of its rewards so far
        self.generated = 0

    def _settings(self, rate: float) -> TrainerSettings:
        recipe = self.recipe
        return TrainerSettings(
            steps=recipe.steps * recipe.updates,
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
        training = self.language_model.model.training
        with (
            random_state_kept(self.accelerator.device),
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
                    stopped = self._anywhere(any(wishes))
                    last = stopped or done == steps
                    if save is not None and main and (last or (save_every and not done % save_every)):
                        save(self._state(done, stopped))
                    bar.advance(1, reward=f"{metrics['reward']:.3f}", length=f"{metrics['length']:.1f}")
            finally:
                self.language_model.model.train(training)
                for each in self.optimizations.values():
                    each.release()
        return ReinforceResult(done, stopped, metrics, self.policy.moved())

    def _step(self, index: int) -> tuple[Step, dict[str, float]]:
        recipe, step = self.recipe, self._sampled(index)
        if recipe.advantage == "running-mean":
            step = replace(step, baselines=self._running_means(step))
        step = stages.look(
            self.language_model, recipe, step, reference=self.reference, critic=self.critic, head=self.head
        )
        step = self.weigh(recipe, step)
        metrics = _measures(step)
        self.generated += int(metrics["generated_tokens"])
        if self.critic is not None:
            metrics |= self._learn_critic(step)
        metrics |= self._learn(step)
        return step, metrics

    def _sampled(self, index: int) -> Step:
        """The step's responses; with `mixed_only` of prompts whose responses are not all alike, as many as are wanted."""
        recipe, parts, wanted = self.recipe, [], self.recipe.prompts
        for _ in range(MIXED_ATTEMPTS if recipe.mixed_only else 1):
            keys = self.order(self.drawn)
            self.drawn += 1
            part = self._together(index, keys)
            if recipe.mixed_only:
                part = _take(part, group_baselines.mixed(part.rewards).nonzero().flatten().tolist())
            parts.append(part)
            if sum(len(each.keys) for each in parts) >= wanted:
                break
        step = _joined(parts)
        if not step.keys:
            raise WorkFailed(
                f"of {MIXED_ATTEMPTS * wanted} prompts none had right and wrong responses: nothing can be learnt from them. "
                "Use prompts nearer to what the model can do, more num_generations, or leave mixed_only out."
            )
        return _take(step, range(wanted)) if len(step.keys) > wanted else step

    def _together(self, index: int, keys: Sequence[int]) -> Step:
        """All of a batch's responses, each process having written and judged its share."""
        count, own = self.accelerator.num_processes, self.accelerator.process_index
        mine = list(range(len(keys)))[own::count] or [0]
        chosen = [keys[place] for place in mine]
        part = self.sample(
            self.language_model,
            self.recipe,
            [self.problems[key] for key in chosen],
            chosen,
            self.reward,
            index,
            self.head,
        )
        if count == 1:
            return part
        shares: list[Any] = [None for _ in range(count)]
        torch.distributed.all_gather_object(shares, (mine, _moved(part, "cpu")))
        places = [place for theirs, _ in shares for place in theirs]
        whole = _moved(_joined([part for _, part in shares]), self.language_model.device)
        return _take(whole, [places.index(place) for place in range(len(keys))])

    def _running_means(self, step: Step) -> Tensor:
        """The mean reward of each problem in earlier steps, else that of this step; notes what came now."""
        now, means = step.rewards.mean().item(), []
        for key, rewards in zip(step.keys, step.rewards.tolist(), strict=True):
            total, number = self.past.get(key, (0.0, 0))
            means.append(total / number if number else now)
            self.past[key] = (total + sum(rewards), number + len(rewards))
        return torch.tensor(means, device=step.rewards.device)

    def _learn_critic(self, step: Step) -> dict[str, float]:
        kind = self.recipe.critic
        returns = ppo.of_step(step, self.recipe)[1] if kind == "token" else None
        collate = partial(stages.critic_batch, step, kind=kind, returns=returns)
        update = _Update(stages.critic_objective(kind))
        losses = [
            self.optimizations["critic"].update(update, rows, collate)["loss"]
            for rows in stages.minibatches(self.recipe, step)
        ]
        return {"critic_loss": sum(losses) / len(losses)}

    def _learn(self, step: Step) -> dict[str, float]:
        recipe, optimization = self.recipe, self.optimizations[step.stage]
        old = step.old_log_probs if step.old_log_probs is not None else step.rollouts.log_probs
        batches = stages.minibatches(recipe, step)
        collate = partial(stages.policy_batch, step, old=old if len(batches) > 1 else None)
        numbers: list[dict[str, float]] = []
        with _training_only(self.language_model.model, self.head, step.stage):
            for rows in batches:
                stats: stages.Stats = []
                update = _Update(stages.policy_objective(recipe, self.head, step, stats), stats)
                numbers.append(optimization.update(update, rows, collate))
        return {name: sum(each[name] for each in numbers) / len(numbers) for name in numbers[0]}

    def _anywhere(self, wish: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return wish
        wishes = torch.tensor(float(wish), device=self.accelerator.device)
        torch.distributed.all_reduce(wishes)
        return bool(wishes.item())

    def _state(self, done: int, stopped: bool) -> dict[str, Any]:
        return {
            "step": done,
            "stopped": stopped,
            "drawn": self.drawn,
            "generated": self.generated,
            "past": [[key, total, number] for key, (total, number) in self.past.items()],
            "recipe": self.recipe.model_dump(mode="json"),
            "optimizations": {name: each.state() for name, each in self.optimizations.items()},
        }

    def _restore(self, state: Mapping[str, Any] | None) -> tuple[int, bool]:
        for name, each in self.optimizations.items():
            each.restore(None if state is None else state["optimizations"][name])
        if state is None:
            return 0, False
        now = self.recipe.model_dump(mode="json")
        free = ("micro_batch_size", "rollout_batch_size")  # they do not change the result
        for name, stored in state["recipe"].items():
            if name not in free and stored != now[name]:
                raise BadInput(f"the stored training has {name}={stored}, this one {name}={now[name]}: start it anew.")
        self.drawn, self.generated = state["drawn"], state["generated"]
        self.past = {int(key): (total, int(number)) for key, total, number in state["past"]}
        return state["step"], state["stopped"]


class _Update:
    """The step of one loss that also says what happened in it, averaged over tokens."""

    def __init__(self, loss: LossFunction, stats: stages.Stats | None = None) -> None:
        self.loss, self.stats = loss, stats if stats is not None else []

    def __call__(
        self, model: nn.Module, window: Sequence[Any], accelerator: Accelerator, index: int
    ) -> tuple[Gradients, dict[str, float | Tensor]]:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        mean, gradients = mean_gradient(self.loss, model, parameters, window, accelerator)
        return gradients, {"loss": mean, **_averaged(self.stats, accelerator)}


def _averaged(stats: stages.Stats, accelerator: Accelerator) -> dict[str, Tensor]:
    """Means over tokens of all batches of all processes, without those where nothing was counted."""
    if not stats:
        return {}
    names = list(stats[0][1])
    weights = torch.tensor([[float(count)] for count, _ in stats], device=accelerator.device)
    values = torch.stack([torch.stack([each[name].float() for name in names]) for _, each in stats])
    there = (~values.isnan()).float() * weights
    sums = torch.stack([(values.nan_to_num() * there).sum(dim=0), there.sum(dim=0)])
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(sums)
    return dict(zip(names, (sums[0] / sums[1]).unbind(), strict=True))


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


def _measures(step: Step) -> dict[str, float]:
    """What a step's rollouts say, before anybody learns from them."""
    rollouts, rewards = step.rollouts, step.rewards
    tokens = rollouts.mask.sum()
    assert step.advantages is not None
    per_response = step.token_advantages.abs().sum(dim=-1)
    found: dict[str, Any] = {
        "reward": rewards.mean(),
        "length": rollouts.lengths.double().mean(),
        "ended": rollouts.ended.double().mean(),
        "entropy": rollouts.entropies.sum() / tokens,
        "zero_advantage": (per_response == 0).double().mean(),
        "distinct_rewards": torch.tensor([len(set(group)) for group in rewards.tolist()]).double().mean(),
        "missing": float(step.missing),
        "generated_tokens": tokens,
    }
    if step.success_probability is not None:
        error = step.success_probability.unsqueeze(-1) - rewards
        found["critic_brier"] = error.square().mean()
        found["critic_mean"] = step.success_probability.mean()
    if step.old_log_probs is not None and step.stage == "policy":
        gap = (step.old_log_probs - rollouts.log_probs).where(rollouts.mask, 0).abs()
        found["sampler_gap"] = gap.max()
    return {name: float(value) for name, value in found.items()}


def _take(step: Step, prompts: Sequence[int]) -> Step:
    """The step of some of its prompts, before anything was asked of other models."""
    chosen = list(prompts)
    greedy = step.greedy_rewards
    return replace(
        step,
        problems=tuple(step.problems[place] for place in chosen),
        keys=tuple(step.keys[place] for place in chosen),
        rollouts=step.rollouts.take(chosen),
        rewards=step.rewards[chosen],
        greedy_rewards=None if greedy is None else greedy[chosen],
    )


def _joined(parts: Sequence[Step]) -> Step:
    """Steps of several calls as that of one."""
    if len(parts) == 1:
        return parts[0]
    greedy = [each.greedy_rewards for each in parts if each.greedy_rewards is not None]
    return replace(
        parts[0],
        problems=tuple(problem for each in parts for problem in each.problems),
        keys=tuple(key for each in parts for key in each.keys),
        rollouts=Rollouts.joined([each.rollouts for each in parts]),
        rewards=torch.cat([each.rewards for each in parts]),
        missing=sum(each.missing for each in parts),
        greedy_rewards=torch.cat(greedy) if greedy else None,
    )


def _moved(step: Step, device: torch.device | str) -> Step:
    greedy = step.greedy_rewards
    return replace(
        step,
        rollouts=step.rollouts.to(device),
        rewards=step.rewards.to(device),
        greedy_rewards=None if greedy is None else greedy.to(device),
    )
