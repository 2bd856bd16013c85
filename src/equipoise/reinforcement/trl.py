"""SPPO, APO and R2PO inside TRL, and any advantage or policy loss of one's own (extra `trl`).

    class MyTrainer(ObjectiveMixin, GRPOTrainer): ...             or ObjectiveTrainer, which is just that
    MyTrainer(model, reward_funcs, args, train_dataset, advantage_fn=group_baselines.rloo,
              policy_loss_fn=partial(policy_loss.clipped_tokens, dual_clip=3.0))

    SPPOTrainer(model, reward_funcs, SPPOConfig(...), train_dataset)         a response a prompt, and a critic beside
    APOTrainer(model, reward_funcs, APOConfig(...), train_dataset)           the anchored loss
    R2POTrainer(model, reward_funcs, R2POConfig(...), train_dataset)         a rollout head, two stages

All else is TRL's: data, rewards, generation, logging, checkpoints, and how losses of tokens are averaged (`loss_type`). The
configurations take 32-bit floats where there is no accelerator; GRPOConfig's own default, bf16, fails there.
"""

from collections.abc import Callable, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate.utils import is_peft_model
from torch import Tensor

from equipoise.core.errors import BadInput, MissingExtra
from equipoise.core.options import check_fields
from equipoise.language.rollouts import ResponseScores, score_responses
from equipoise.reinforcement import apo, policy_loss, r2po, sppo
from equipoise.reinforcement.critic import Critic, prompt_logits
from equipoise.training.reference import ReferenceModel

try:
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise MissingExtra("These trainers stand on TRL: pip install 'equipoise[trl]'") from error
from trl.trainer.utils import use_adapter

if TYPE_CHECKING:
    GRPOTrainer = Any  # half of its attributes are declared as possibly None
    _Base = Any
else:
    _Base = object

AdvantageFunction = Callable[[Tensor], Tensor]
PolicyLossFunction = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]

# How TRL's kinds of loss average, in the words of `policy_loss`; the kinds that are not here are losses of their own.
_AVERAGES: dict[str, policy_loss.Aggregate] = {
    "grpo": "seq-mean-token-mean",
    "bnpo": "token-mean",
    "dapo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "luspo": "seq-mean-token-sum",
}
_FORWARD = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
_CRITIC, _CRITIC_OPTIMIZER, _HEAD = "critic", "critic_optimizer.safetensors", "rollout_head.safetensors"


class ObjectiveMixin(_Base):
    """Put before GRPOTrainer among the bases: advantages and the policy's loss are functions.

    advantage_fn: rewards [P, N] of all processes -> advantages [P, N]; nan where no reward function judged a response, whose
    advantage is 0 whatever comes back. For what needs more than rewards override `compute_advantages`. policy_loss_fn:
    (log_probs, old_log_probs, advantages, mask), all [B, T] -> losses of tokens [B, T] and statistics, which are logged.
    TRL's `loss_type` says how they are averaged, its `beta` adds the KL as it does. Without a function TRL's own is used.
    Raises BadInput for a function that the trainer has of its own, and, with a policy_loss_fn, for settings that belong to
    TRL's losses.
    """

    brings: tuple[str, ...] = ()  # which of the two functions a trainer has of its own

    def __init__(
        self,
        *arguments: Any,
        advantage_fn: AdvantageFunction | None = None,
        policy_loss_fn: PolicyLossFunction | None = None,
        **named: Any,
    ) -> None:
        self.advantage_fn, self.policy_loss_fn = advantage_fn, policy_loss_fn
        self._judged: Tensor | None = None
        for name, function in (("advantage_fn", advantage_fn), ("policy_loss_fn", policy_loss_fn)):
            if function is not None and name in self.brings:
                raise BadInput(f"{type(self).__name__} brings what {name} would replace: use ObjectiveTrainer.")
        super().__init__(*arguments, **named)
        if policy_loss_fn is not None:
            self._check_own_loss()
        prompts = self.args.generation_batch_size // self.num_generations
        if isinstance(self.train_dataset, Sized) and len(self.train_dataset) < prompts:
            # TRL would end at step 0 with a warning.
            raise BadInput(
                f"There are {len(self.train_dataset)} prompts, but a generation batch takes {prompts}: lower "
                "per_device_train_batch_size or gradient_accumulation_steps, or raise num_generations."
            )

    def compute_advantages(self, rewards: Tensor, batch: dict[str, Any]) -> Tensor:
        """Advantages of all processes' responses, [R], from their rewards [R]; batch: what this process has generated."""
        assert self.advantage_fn is not None
        return self.advantage_fn(rewards.view(-1, self._samples)).flatten()

    @property
    def _samples(self) -> int:
        return self.num_generations if self.model.training else self.num_generations_eval

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _calculate_rewards(self, *arguments: Any, **named: Any) -> Tensor:
        self._judged = judged = super()._calculate_rewards(*arguments, **named)
        return judged

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if self.advantage_fn is None and type(self).compute_advantages is ObjectiveMixin.compute_advantages:
            return batch
        assert self._judged is not None
        rewards = (self._judged * self.reward_weights.to(self._judged.device)).nansum(dim=1)
        unjudged = self._judged.isnan().all(dim=1)
        advantages = self.compute_advantages(rewards.masked_fill(unjudged, torch.nan), batch).detach()
        if advantages.shape != rewards.shape:
            raise BadInput(
                f"advantage_fn made {tuple(advantages.shape)} of {len(rewards)} rewards, expected one advantage for each."
            )
        advantages = advantages.masked_fill(unjudged, 0).nan_to_num(nan=0.0)
        first = self.accelerator.process_index * len(inputs)
        batch["advantages"] = advantages[first : first + len(inputs)]
        self._replace_logged(advantages)
        return batch

    def _replace_logged(self, advantages: Tensor) -> None:
        """TRL has logged its own advantages by now: the last of the log are ours."""
        logged = self._logs["advantages"]
        for _ in range(min(len(advantages), len(logged))):
            logged.pop()
        logged.extend(advantages.tolist())
        self._note(
            zero_advantage_share=(advantages == 0).float().mean(), mean_absolute_advantage=advantages.abs().mean()
        )

    def _note(self, **values: Tensor) -> None:
        for name, value in values.items():
            mean = self.accelerator.gather(value.detach()).nanmean()
            if not mean.isnan():  # TRL averages what it is given
                self._metrics[self._mode][name].append(mean.item())

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self.policy_loss_fn is None:
            return super()._compute_loss(model, inputs)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        log_probs, entropies, _ = self._get_per_token_logps_and_entropies(
            model,
            ids,
            attention,
            inputs["completion_ids"].shape[1],
            compute_entropy=True,
            **{name: inputs.get(name) for name in _FORWARD},
        )
        mask, advantages = self._counting(inputs)
        losses, stats = self.policy_loss_fn(log_probs, self._old(inputs, log_probs), advantages, mask)
        return self._averaged(losses, log_probs, entropies, stats, mask, inputs)

    @staticmethod
    def _counting(inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Which tokens count, and their advantages: [B, T] each."""
        mask = inputs["completion_mask"].bool()
        if "tool_mask" in inputs:
            mask = mask & inputs["tool_mask"].bool()
        advantages = policy_loss.per_token(inputs["advantages"], mask)
        return mask, advantages.expand(mask.shape)

    @staticmethod
    def _old(inputs: dict[str, Any], log_probs: Tensor) -> Tensor:
        """The old log-probabilities; TRL leaves them out where they are those of this very pass."""
        old = inputs.get("old_per_token_logps")
        return log_probs.detach() if old is None else old

    def _averaged(
        self,
        losses: Tensor,
        log_probs: Tensor,
        entropies: Tensor | None,
        stats: dict[str, Tensor],
        mask: Tensor,
        inputs: dict[str, Any],
    ) -> Tensor:
        """The loss of this micro-batch: KL added, averaged as TRL would average its own, and what happened logged."""
        if losses.shape != mask.shape:
            raise BadInput(
                f"policy_loss_fn gave a loss of shape {tuple(losses.shape)}, expected one for each token, "
                f"{tuple(mask.shape)}: policy_loss.clipped_tokens, not clipped. loss_type says how they are averaged."
            )
        if "importance_sampling_ratio" in inputs:
            losses = losses * inputs["importance_sampling_ratio"]
        if self.beta:
            divergence = policy_loss.kl(log_probs, inputs["ref_per_token_logps"], mask=mask)
            if self.args.use_bias_correction_kl:
                divergence = (
                    divergence * policy_loss.masked_log_ratio(log_probs, self._old(inputs, log_probs), mask).exp()
                )
            losses = losses + self.beta * divergence
            stats = stats | {"kl": policy_loss.masked_mean(divergence, mask)}
        if entropies is not None:
            stats = stats | {"entropy": policy_loss.masked_mean(entropies, mask)}
        self._note(**stats)
        mode = _AVERAGES[self.loss_type]
        total, weight = policy_loss.aggregate_parts(losses, mask, mode, constant=self.max_completion_length)
        accumulated = self.current_gradient_accumulation_steps if self.model.training else 1
        if self.loss_type == "dapo":
            # The tokens of an optimizer step: TRL counts those of a generation batch, over all processes.
            weight = inputs["num_items_in_batch"] / self.accelerator.num_processes
            if self.model.training:
                weight = weight * accumulated / self.args.steps_per_generation
            return total / weight.clamp(min=1)
        if mode != "token-mean":
            weight = weight.new_tensor(len(mask))  # TRL counts responses that have no token, too
        return total / weight.clamp(min=1) / accumulated

    def _check_own_loss(self) -> None:
        arguments = self.args
        wrong = {
            "loss_type": self.loss_type not in _AVERAGES and self.loss_type,
            "importance_sampling_level": self.importance_sampling_level != "token" and self.importance_sampling_level,
            "delta": arguments.delta is not None and arguments.delta,
            "top_entropy_quantile": self.top_entropy_quantile < 1 and self.top_entropy_quantile,
            "off_policy_mask_threshold": self.off_policy_mask_threshold,
            "entropy_coef": self._entropy_bonus_enabled and "set",
            "router_aux_loss_coef": self.aux_loss_enabled and "set",
        }
        for name, value in wrong.items():
            if value:
                raise BadInput(
                    f"{name} is {value!r}, which belongs to TRL's own losses: leave it out, or leave out policy_loss_fn. "
                    f"loss_type may be {', '.join(_AVERAGES)}."
                )


class ObjectiveTrainer(ObjectiveMixin, GRPOTrainer):
    """GRPOTrainer with `advantage_fn` and `policy_loss_fn`."""


@dataclass
class ObjectiveConfig(GRPOConfig):
    """GRPOConfig that takes 32-bit floats where there is no accelerator, unless bf16 is asked for."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.bf16 is None and (self.use_cpu or not torch.accelerator.is_available()):
            self.bf16 = False
        super().__post_init__()


@dataclass
class SPPOConfig(ObjectiveConfig):
    """For SPPOTrainer: one response a prompt, dual clip 3, no KL. TRL wants an even batch, whatever num_generations is."""

    num_generations: int | None = field(default=1, metadata={"help": "Responses to a prompt."})
    delta: float | None = field(default=3.0, metadata={"help": "TRL's bound of the ratio, the paper's dual clip."})
    critic_learning_rate: float = field(default=5e-6, metadata={"help": "Of the critic's AdamW."})
    critic_batch_size: int | None = field(
        default=None, metadata={"help": "Prompts of a critic step; not given: per_device_train_batch_size."}
    )
    normalize: bool = field(default=False, metadata={"help": "Divide the advantage by sqrt(p (1 - p))."})

    def __post_init__(self) -> None:
        asked = self.num_generations
        self.num_generations = max(asked or 1, 2)  # TRL refuses 1, where it has nothing to compare with
        super().__post_init__()
        self.num_generations = asked


class SPPOTrainer(ObjectiveMixin, GRPOTrainer):
    """SPPO: advantages R - p against a critic of the prompt, which then learns from R. Rewards must lie in [0, 1].

    critic: a `Critic`, also of another size with the same tokenizer; not given: a copy of the policy's own body, which is
    refused for a model with an adapter. It is saved beside each model and checkpoint in `critic/`, its optimizer with it.
    """

    args: SPPOConfig
    brings = ("advantage_fn",)

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: SPPOConfig | None = None,
        *rest: Any,
        critic: Critic | None = None,
        **named: Any,
    ) -> None:
        super().__init__(model, reward_funcs, args or SPPOConfig("sppo"), *rest, **named)
        self.critic = (critic or self._new_critic()).to(self.accelerator.device).eval()
        self.critic_optimizer = torch.optim.AdamW(
            self.critic.parameters(), lr=self.args.critic_learning_rate, weight_decay=self.args.weight_decay
        )

    def _new_critic(self) -> Critic:
        import copy

        if is_peft_model(self.model):
            raise BadInput("The model has an adapter: give critic=Critic(AutoModel.from_pretrained(...), seed=0).")
        return Critic(copy.deepcopy(self.model.base_model).requires_grad_(True), seed=self.args.seed)

    def compute_advantages(self, rewards: Tensor, batch: dict[str, Any]) -> Tensor:
        prompts = [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
        ]
        with torch.no_grad():
            logits = self._says(prompts)
        p = self.accelerator.gather(logits.sigmoid()).to(rewards)
        judged = ~rewards.isnan()
        advantages = torch.zeros_like(rewards)
        advantages[judged] = sppo.advantages(rewards[judged], p[judged], normalize=self.args.normalize)
        self._note(critic_brier=(rewards - p)[judged].square().mean())
        if self.model.training:
            first = self.accelerator.process_index * len(prompts)
            self._fit_critic(prompts, rewards[first : first + len(prompts)])
        return advantages

    def _says(self, prompts: list[list[int]]) -> Tensor:
        return prompt_logits(self.critic, prompts, self._tokenizer.pad_token_id, self.accelerator.device)

    def _fit_critic(self, prompts: list[list[int]], rewards: Tensor) -> None:
        """One pass over the batch, after the advantages are known."""
        size = self.args.critic_batch_size or self.args.per_device_train_batch_size
        for first in range(0, len(prompts), size):
            part = rewards[first : first + size]
            judged = ~part.isnan()
            logits = self._says(prompts[first : first + size])
            loss = sppo.critic_loss(logits[judged], part[judged]) if judged.any() else 0 * logits.sum()
            loss.backward()
            for parameter in self.critic.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
            torch.nn.utils.clip_grad_norm_(self.critic.parameters(), self.args.max_grad_norm)
            self.critic_optimizer.step()
            self.critic_optimizer.zero_grad()
            self._note(critic_loss=loss)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        self.critic.save(Path(output_dir or str(self.args.output_dir)) / _CRITIC)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        from safetensors.torch import save_file

        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = self.critic_optimizer.state_dict()["state"]
            tensors = {f"{place}.{name}": value for place, each in state.items() for name, value in each.items()}
            save_file(tensors, Path(output_dir) / _CRITIC_OPTIMIZER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        from safetensors.torch import load_file

        critic = Critic.load(Path(checkpoint) / _CRITIC)
        self.critic.load_state_dict(critic.state_dict())
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in load_file(Path(checkpoint) / _CRITIC_OPTIMIZER).items():
            place, entry = name.split(".")
            state.setdefault(int(place), {})[entry] = value
        self.critic_optimizer.load_state_dict(self.critic_optimizer.state_dict() | {"state": state})


@dataclass
class APOConfig(ObjectiveConfig):
    """For APOTrainer; the settings of `apo.anchored_tokens` and how many anchors there are."""

    push: float = field(default=1.05, metadata={"help": "Weight of the ratio of a wrong token."})
    pull: float = field(default=0.1, metadata={"help": "Weight of the anchors."})
    anchors: int = field(default=8, metadata={"help": "Likeliest tokens of the reference that are anchors."})
    clip_mode: Literal["inside", "outside"] = field(
        default="inside", metadata={"help": "How the ratio meets the clip."}
    )
    inclusive: bool = field(default=False, metadata={"help": "Whether the sampled token may be its own anchor."})


class APOTrainer(ObjectiveMixin, GRPOTrainer):
    """APO: TRL's group advantages, the anchored loss. The reference is the model as it came, or under its new adapter.

    It is asked once a generation batch; K ids and probabilities a token are kept. Text models on one process or DDP: the
    reference of a full model is a copy of its parameters, which sharding (FSDP, DeepSpeed) would cut, and is refused.
    """

    args: APOConfig
    brings = ("policy_loss_fn",)

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: APOConfig | None = None, *rest: Any, **named: Any
    ) -> None:
        super().__init__(model, reward_funcs, args or APOConfig("apo"), *rest, **named)
        self._check_own_loss()
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise BadInput("APOTrainer copies its reference, which FSDP and DeepSpeed cut in pieces: use DDP.")
        self._anchor_model = None if is_peft_model(self.model) else ReferenceModel(self.model)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        with torch.no_grad(), self._reference() as reference:
            found = _scores(reference, batch, self.temperature, top=min(self.args.anchors, self._vocabulary))
        return batch | {"anchor_ids": found.top_ids, "anchor_probs": found.top_probs}

    @property
    def _vocabulary(self) -> int:
        return self.model.get_output_embeddings().weight.shape[0]

    @contextmanager
    def _reference(self) -> Any:
        if self._anchor_model is not None:
            yield self._anchor_model
            return
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            yield model

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        scored = _Wrapped(model, self.accelerator.unwrap_model(model))
        with self.accelerator.autocast():
            scores = _scores(scored, inputs, self.temperature, gather=inputs["anchor_ids"], entropies=True)
        mask, advantages = self._counting(inputs)
        losses, stats = apo.anchored_tokens(
            scores.log_probs,
            self._old(inputs, scores.log_probs),
            scores.gathered,  # type: ignore[arg-type]
            inputs["anchor_probs"],
            inputs["anchor_ids"] == inputs["completion_ids"].unsqueeze(-1),
            advantages,
            mask,
            push=self.args.push,
            pull=self.args.pull,
            clip_low=self.epsilon_low,
            clip_high=self.epsilon_high,
            clip_mode=self.args.clip_mode,
            inclusive=self.args.inclusive,
        )
        return self._averaged(losses, scores.log_probs, scores.entropies, stats, mask, inputs)


@dataclass
class R2POConfig(ObjectiveConfig):
    """For R2POTrainer, with GRPO's first average and KL as in the released code."""

    loss_type: str = field(default="grpo", metadata={"help": "How losses of tokens are averaged."})
    beta: float = field(default=0.04, metadata={"help": "Weight of k3 to the starting model."})
    use_bias_correction_kl: bool = field(default=False, metadata={"help": "Weigh k3 by the ratio, as TRL does."})
    head_advantage: Literal["rarity", "task"] = field(default="task", metadata={"help": "What the head is paid for."})
    head_steps: int = field(default=20, metadata={"help": "Optimizer steps of a round in which the head learns."})
    policy_steps: int = field(default=40, metadata={"help": "Optimizer steps of a round in which the policy learns."})
    importance_cap: float | None = field(
        default=None, metadata={"help": "Bound of the weight for what the head sampled; not given: no weight."}
    )


class R2POTrainer(ObjectiveMixin, GRPOTrainer):
    """R2PO: a rollout head samples, in turn it learns and the policy does; what is saved is the plain model.

    The head stays beside each saved model in `rollout_head.safetensors`. A stage begins with a generation batch. One
    process, and generation by transformers: vLLM would not sample from the head.
    """

    args: R2POConfig
    brings = ("advantage_fn",)

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: R2POConfig | None = None, *rest: Any, **named: Any
    ) -> None:
        super().__init__(model, reward_funcs, args or R2POConfig("r2po"), *rest, **named)
        if self.use_vllm or self.accelerator.num_processes > 1:
            raise BadInput(
                "R2POTrainer samples from its own head on one process: leave out use_vllm and run one process."
            )
        self._policy = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._adapters = self._acting_adapters()
        self.head = r2po.RolloutHead.attach(self.model, seed=self.args.seed)
        self._head_learns = False

    def _acting_adapters(self) -> list[str]:
        """Those of the model that are on; none of one without, or while they are switched off."""
        model = self.accelerator.unwrap_model(self.model)
        return list(model.active_adapters) if is_peft_model(model) and model.has_active_enabled_adapter else []

    def _choose_stage(self) -> None:
        round_steps = self.args.head_steps + self.args.policy_steps
        self._head_learns = self.state.global_step % round_steps < self.args.head_steps
        for parameter in self._policy:
            parameter.requires_grad_(not self._head_learns)
        for parameter in self.head.own_parameters():
            parameter.requires_grad_(self._head_learns)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.model.training:
            self._choose_stage()
        batch = super()._generate_and_score_completions(inputs)
        if self.model.training:  # an adapter that the reference was asked without learns again when it is back
            self._choose_stage()
        if self.args.importance_cap is not None and self.model.training and not self._head_learns:
            with torch.no_grad():
                old = _scores(self.model, batch, self.temperature).log_probs
                with self.head.rollouts():
                    sampled = _scores(self.model, batch, self.temperature).log_probs
            weights = r2po.importance_weights(old, sampled, cap=self.args.importance_cap)
            batch["advantages"] = batch["advantages"].unsqueeze(-1) * weights
        return batch

    def _generate(self, prompts: list[Any]) -> Any:
        with self.head.rollouts() if self.model.training else nullcontext():
            return super()._generate(prompts)

    def compute_advantages(self, rewards: Tensor, batch: dict[str, Any]) -> Tensor:
        rare = self._head_learns and self.args.head_advantage == "rarity"
        function = r2po.rarity_advantages if rare else r2po.task_advantages
        return function(rewards.view(-1, self._samples)).flatten()

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *_: Any, **__: Any
    ) -> Any:
        """Of z + u while the head learns, of z while the policy does; TRL's own reads the output matrix past the head.

        The reference's are always of z: another model, or with adapters this one without them, or with others.
        """
        cut = input_ids.shape[1] - logits_to_keep
        batch = {
            "prompt_ids": input_ids[:, :cut],
            "prompt_mask": attention_mask[:, :cut],
            "completion_ids": input_ids[:, cut:],
            "completion_mask": attention_mask[:, cut:],
        }
        same = self.accelerator.unwrap_model(model) is self.accelerator.unwrap_model(self.model)
        own = same and self._acting_adapters() == self._adapters
        rollouts = own and self._head_learns and self.model.training
        with self.head.rollouts() if rollouts else nullcontext(), self.accelerator.autocast():
            scores = _scores(model, batch, self.temperature, entropies=True)
        return scores.log_probs, scores.entropies, None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The plain model under its own names, and the head beside it."""
        with self._plain():
            super()._save(output_dir, None)
        self.head.save(Path(output_dir or str(self.args.output_dir)) / _HEAD)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        with self._plain():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.head.load_state_dict(load_file(Path(resume_from_checkpoint) / _HEAD), strict=False)

    @contextmanager
    def _plain(self) -> Any:
        """Inside, the model has its own output matrix back."""
        head, bare = self.head, self.head._model[0]
        head.detach()
        try:
            yield
        finally:
            head._onto(bare)


class _Wrapped:
    """A model inside a wrapper of a distributed run, whose forward must be the wrapper's."""

    def __init__(self, wrapper: Any, model: Any) -> None:
        self._wrapper, self._model = wrapper, model

    def __call__(self, **inputs: Any) -> Any:
        return self._wrapper(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _scores(model: Any, inputs: dict[str, Any], temperature: float, **asked: Any) -> ResponseScores:
    """Log-probabilities and more of the completions of a TRL batch, [B, T]."""
    completion, mask = inputs["completion_ids"], inputs["completion_mask"].bool()
    predicts = torch.zeros_like(torch.cat([inputs["prompt_mask"], mask], dim=1), dtype=torch.bool)
    predicts[:, inputs["prompt_ids"].shape[1] - 1 : -1] = mask
    batch = {
        "input_ids": torch.cat([inputs["prompt_ids"], completion], dim=1),
        "attention_mask": torch.cat([inputs["prompt_mask"], mask.long()], dim=1),
        "predicts": predicts,
        "response": completion,
        "mask": mask,
    }
    return score_responses(model, batch, temperature=temperature, **asked)
