"""SPPO and APO inside verl (0.9.1), registered when verl starts: an entry point of the group `verl.plugins`.

verl loads it by itself and hides what fails; this module says it on stderr. VERL_USE_EXTERNAL_PLUGINS=none leaves it out.

SPPO, `algorithm.adv_estimator=equipoise_sppo`. verl gives an estimator no critic's values, but the column
`reward_baselines` where it is there. It must hold the success probability p of each row's prompt, [B]; without it the
estimator refuses. A critic of the prompt is ours, and a trainer of yours puts it in between, around verl's
compute_advantage:

    logits = verl_plugin.prompt_logits(data, critic)                        equipoise.reinforcement.critic.Critic
    data.batch["reward_baselines"] = logits.sigmoid().detach()
    data = compute_advantage(data, "equipoise_sppo", config=...)
    sppo.critic_loss(logits, rewards).backward()                            and a step of the critic's optimizer

verl's own critic reads the response, too: it does not serve. Its actor loss, `vanilla` with clip_ratio_c=3, is SPPO's.

APO needs the policy's probabilities at the reference's likeliest tokens, which verl gives to no policy loss; its
distillation gives their sum, with the starting model as the teacher. Two pieces of one name add up to the anchored loss,
token by token:

    actor_rollout_ref.actor.policy_loss.loss_mode=equipoise_apo             the push alone: an ablation by itself
    distillation.enabled=True                                               the rest of the anchored loss
    distillation.distillation_loss.loss_mode=equipoise_apo
    distillation.distillation_loss.topk=8
    distillation.distillation_loss.use_task_rewards=True
    distillation.distillation_loss.use_policy_gradient=False
    distillation.distillation_loss.loss_max_clamp=null
    distillation.teacher_models.teacher_model.model_path=...                the model that training starts from

Other settings of the second piece are refused. Sample at temperature 1, at which verl's teacher is asked. verl sums the
policy's probabilities in the precision of its logits: in bf16 r_anc is rough where the sampled token has nearly all of
them. Push, pull and the clip's mode are those of `register_apo`; for others call it with another name, from a module that
VERL_USE_EXTERNAL_MODULES names. R2PO is not offered: verl's engines sample from the plain model, without a head.

Seen on a CPU: verl's registries, batches and losses with these functions in them (tests/parity/test_verl_plugin.py). A
whole run of verl, which needs GPUs and a server for the teacher, is not.
"""

import sys
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.core.errors import BadInput, MissingExtra
from equipoise.core.options import closed
from equipoise.reinforcement import apo, policy_loss, sppo
from equipoise.reinforcement import critic as critics

PREFIX = "equipoise_"
SPPO, APO = f"{PREFIX}sppo", f"{PREFIX}apo"


def sppo_advantages(
    token_level_rewards: Tensor, response_mask: Tensor, reward_baselines: Tensor | None = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """R - p at every token, and R, [B, T] each: verl's form of an advantage estimator.

    reward_baselines: p, [B]. Raises BadInput without it, and for a reward or a p outside [0, 1].
    """
    if reward_baselines is None:
        raise BadInput(
            f"{SPPO} needs data.batch['reward_baselines'], the success probability of each row's prompt: fill it before "
            "verl's compute_advantage, as the head of equipoise/verl_plugin.py shows."
        )
    with torch.no_grad():
        mask = response_mask.bool()
        rewards = token_level_rewards.where(mask, 0).sum(-1)
        advantages = sppo.advantages(rewards, reward_baselines.to(rewards))
        return policy_loss.per_token(advantages, mask), rewards.unsqueeze(-1).where(mask, 0)


def prompt_logits(data: Any, critic: torch.nn.Module) -> Tensor:
    """What a critic says of the prompt of each row of a DataProto, [B], differentiable; it sees no response."""
    prompts = data.batch["prompts"]
    mask = data.batch["attention_mask"][:, : prompts.shape[1]].bool()
    rows = [ids[real].tolist() for ids, real in zip(prompts, mask, strict=True)]
    return critics.prompt_logits(critic, rows, 0, next(critic.parameters()).device)


@closed
def register_apo(
    name: str, *, push: float = 1.05, pull: float = 0.1, clip_mode: Literal["inside", "outside"] = "inside"
) -> None:
    """Register both pieces of APO with verl under a name. Raises BadInput for one that does not begin with `equipoise_`."""
    from verl.trainer.distillation.losses import DistillationLossSettings, register_distillation_loss  # pyright: ignore[reportMissingImports]
    from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss  # pyright: ignore[reportMissingImports]
    from verl.workers.utils.padding import no_padding_2_padding  # pyright: ignore[reportMissingImports]

    if not name.startswith(PREFIX):
        raise BadInput(f"The name is {name!r}, which may be another's: begin it with {PREFIX!r}.")

    def pushed(log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, config: Any) -> tuple[Tensor, Any]:
        ratio = policy_loss.masked_log_ratio(log_probs, old, mask).exp()
        return policy_loss.surrogate(
            torch.where(advantages < 0, push * ratio, ratio), advantages, mask, **_clips(config)
        )

    @register_policy_loss(name)  # type: ignore[arg-type]
    def push_loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        advantages = policy_loss.per_token(advantages, response_mask)
        losses, stats = pushed(log_prob, old_log_prob, advantages, response_mask, config)
        if rollout_is_weights is not None:
            losses = losses * rollout_is_weights
        stats |= policy_loss.ratio_stats(
            policy_loss.masked_log_ratio(log_prob, old_log_prob, response_mask), advantages, response_mask
        )
        loss = agg_loss(losses, response_mask, loss_agg_mode, **config.global_batch_info)
        return loss, {f"actor/{key}": value.item() for key, value in stats.items()}

    @register_distillation_loss(DistillationLossSettings(names=[name], use_topk=True))
    def anchor_losses(
        config: Any, distillation_config: Any, model_output: Any, data: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        _check(name, config, distillation_config.distillation_loss)
        log_probs, policy_mass, reference_mass, ids, reference = (
            no_padding_2_padding(each, data)
            for each in (
                model_output["log_probs"],
                model_output["student_mass"],
                model_output["teacher_mass"],
                data["teacher_ids"],
                data["teacher_logprobs"],
            )
        )
        width = log_probs.shape[1]
        mask = _padded(data["response_mask"], width).bool()
        advantages = policy_loss.per_token(_padded(data["advantages"], width), mask)
        old = _padded(data["old_log_probs"], width)
        sampled = ids == _padded(data["responses"], width).unsqueeze(-1)
        # verl has summed both masses over the top K: without the sampled token they are those of a single anchor.
        inside = sampled.any(-1)
        rest = policy_mass - log_probs.exp().where(inside, 0)
        left = reference_mass - (reference.exp() * sampled).sum(-1)
        none = torch.zeros_like(inside).unsqueeze(-1)
        losses, stats = apo.anchored_tokens(
            log_probs,
            old,
            rest.clamp(min=torch.finfo(rest.dtype).tiny).log().unsqueeze(-1),
            left.unsqueeze(-1),
            none,
            advantages,
            mask,
            push=push,
            pull=pull,
            clip_mode=clip_mode,
            **_clips(config),
        )
        losses = losses - pushed(log_probs, old, advantages, mask, config)[0]
        if "rollout_is_weights" in data:
            losses = losses * _padded(data["rollout_is_weights"], width)
        stats["support_coverage"] = policy_loss.masked_mean(policy_mass.detach(), mask)
        named = ("anchor_ratio", "tiny_anchor_share", "support_coverage", "clip_fraction_low", "clip_fraction_high")
        return losses, {f"apo/{key}": stats[key].item() for key in named}


def _clips(config: Any) -> dict[str, Any]:
    low, high = config.clip_ratio_low, config.clip_ratio_high
    return {
        "clip_low": config.clip_ratio if low is None else low,
        "clip_high": config.clip_ratio if high is None else high,
    }


def _check(name: str, config: Any, distillation: Any) -> None:
    """Raises BadInput where verl would change the sum of both pieces."""
    wanted = {
        "policy_loss.loss_mode": (config.policy_loss.get("loss_mode"), name),
        "distillation_loss.use_task_rewards": (distillation.use_task_rewards, True),
        "distillation_loss.use_policy_gradient": (distillation.use_policy_gradient, False),
        "distillation_loss.distillation_loss_coef": (distillation.distillation_loss_coef, 1.0),
        "distillation_loss.loss_max_clamp": (distillation.loss_max_clamp, None),
    }
    for setting, (value, expected) in wanted.items():
        if value != expected:
            raise BadInput(f"{name}: {setting} is {value!r}, expected {expected!r}: its two pieces would not add up.")


def _padded(tensor: Tensor, width: int) -> Tensor:
    """Rows of a batch, jagged or padded, as [B, width] with zeros behind."""
    rows = tensor.to_padded_tensor(0) if tensor.is_nested else tensor
    return F.pad(rows, (0, width - rows.shape[1]))


def register() -> None:
    """Enter `equipoise_sppo` and `equipoise_apo` into verl's registries; done on import where verl is installed."""
    if find_spec("verl") is None:
        raise MissingExtra("This plug-in is verl's: pip install 'equipoise[verl]'")
    from verl.trainer.ppo.core_algos import register_adv_est  # pyright: ignore[reportMissingImports]

    register_adv_est(SPPO)(sppo_advantages)
    register_apo(APO)


if find_spec("verl") is not None:
    try:
        register()
    except Exception as error:
        print(f"equipoise: verl does not have {SPPO} and {APO}: {type(error).__name__}: {error}", file=sys.stderr)
        raise
