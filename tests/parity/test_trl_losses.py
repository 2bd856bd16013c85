"""Our losses and advantages against TRL's own GRPOTrainer methods, called on random tensors in place of a model's.

Known deviations: TRL's epsilon is 1e-4, and its mean over responses counts those without a token; k3 and the ratio have no
bounds there. `bnpo` is our token-mean, `grpo` seq-mean-token-mean, `luspo` seq-mean-token-sum, `dr_grpo`
seq-mean-token-sum-norm; `dapo` is token-mean over all micro-batches of a step; `delta` is our dual clip.
"""

from collections import defaultdict, deque
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from equipoise.reinforcement import group_baselines, policy_loss, r2po

pytestmark = pytest.mark.slow
trl = pytest.importorskip("trl", reason="needs TRL: pip install 'equipoise[trl]'")

BETA, LENGTH = 0.04, 12
MODES = {
    "bnpo": "token-mean",
    "grpo": "seq-mean-token-mean",
    "luspo": "seq-mean-token-sum",
    "dr_grpo": "seq-mean-token-sum-norm",
}


def trainer(**settings):
    """TRL's trainer without a model: only what the two methods read."""
    one = trl.GRPOTrainer.__new__(trl.GRPOTrainer)
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        sync_gradients=True,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
    )
    arguments = SimpleNamespace(
        delta=None,
        use_bias_correction_kl=False,
        steps_per_generation=1,
        gradient_accumulation_steps=1,
        gradient_checkpointing_kwargs=None,
        per_device_train_batch_size=8,
    )
    defaults = {
        "accelerator": accelerator,
        "args": arguments,
        "model": SimpleNamespace(training=True, is_gradient_checkpointing=False),
        "loss_type": "grpo",
        "beta": BETA,
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "max_completion_length": LENGTH,
        "importance_sampling_level": "token",
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "current_gradient_accumulation_steps": 1,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "_metrics": {"train": defaultdict(list)},
    }
    vars(one).update(defaults | settings)
    return one


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    new, old, reference = -1 + 0.4 * torch.randn(3, 6, 9, generator=generator, dtype=torch.float64)
    mask = (torch.arange(9) < torch.tensor([9, 4, 1, 7, 2, 9])[:, None]).int()
    advantages = torch.tensor([1.2, -0.7, 0.0, -2.0, 0.4, -1.0], dtype=torch.float64)
    return new.requires_grad_(), old, reference, advantages, mask


def theirs(batch, items=None, **settings):
    new, old, reference, advantages, mask = batch
    one = trainer(**settings)
    one._get_per_token_logps_and_entropies = lambda *args, **named: (new, torch.zeros_like(new), None)
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 2, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 2, dtype=torch.long),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum() if items is None else items,
    }
    return one._compute_loss(None, inputs), one._metrics["train"]


def ours(batch, mode, dual_clip=None):
    new, old, reference, advantages, mask = batch
    loss, stats = policy_loss.clipped(
        new, old, advantages, mask, clip_high=0.28, dual_clip=dual_clip, aggregate=mode, constant=LENGTH
    )
    return loss + BETA * policy_loss.kl_loss(new, reference, mask, aggregate=mode, constant=LENGTH), stats


@pytest.mark.parametrize(("loss_type", "mode"), MODES.items())
def test_losses_and_gradients(batch, loss_type, mode):
    (peer, metrics), (found, stats) = theirs(batch, loss_type=loss_type), ours(batch, mode)
    assert_close(found, peer, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, batch[0], retain_graph=True)[0] for loss in (found, peer)]
    assert_close(*gradients, rtol=1e-12, atol=1e-15)
    for side in ("low", "high"):
        assert (
            0 < stats[f"clip_fraction_{side}"].item() == pytest.approx(metrics[f"clip_ratio/{side}_mean"][0], rel=1e-6)
        )


def test_delta_is_the_dual_clip(batch):
    one = trainer()
    one.args.delta = 1.3
    (peer, _), (found, stats) = theirs(batch, args=one.args), ours(batch, MODES["grpo"], dual_clip=1.3)
    assert_close(found, peer, rtol=1e-12, atol=0)
    assert stats["dual_clip_fraction"] > 0
    assert found != ours(batch, MODES["grpo"])[0]


def test_k3_with_their_weight_has_the_gradient_of_k3_plus(batch):
    """TRL multiplies k3 by the ratio unless told otherwise: on-policy its gradient is that of k2, as our k3+ has it."""
    new, _, reference, _, mask = batch
    one = trainer()
    one.args.use_bias_correction_kl = True
    (peer, _) = theirs((new, new.detach(), reference, torch.zeros(6, dtype=torch.float64), mask), args=one.args)
    for estimator, same in (("k3+", True), ("k2", True), ("k3", False)):
        loss = BETA * policy_loss.kl_loss(new, reference, mask, estimator=estimator, aggregate=MODES["grpo"])
        gradients = [torch.autograd.grad(each, new, retain_graph=True)[0] for each in (loss, peer)]
        assert torch.allclose(*gradients, rtol=1e-10, atol=0) is same


def test_dapo_over_two_micro_batches(batch):
    """TRL divides by the tokens of all; our sums and weights add up to the same. The mean of means is another."""
    halves = [tuple(each[rows] for each in batch) for rows in (slice(0, 2), slice(2, 6))]
    items = batch[4].sum()
    peer = sum(theirs(half, items=items, loss_type="dapo")[0] for half in halves)
    parts = []
    for new, old, reference, advantages, mask in halves:
        losses, _ = policy_loss.clipped_tokens(new, old, advantages, mask, clip_high=0.28)
        losses = losses + BETA * policy_loss.kl(new, reference, mask=mask)
        parts.append(policy_loss.aggregate_parts(losses, mask))
    total, weight = (sum(column) for column in zip(*parts, strict=True))
    assert_close(total / weight, peer, rtol=1e-12, atol=0)
    assert not torch.isclose(sum(part / w for part, w in parts) / 2, peer)


def test_an_empty_response_counts_in_their_mean(batch):
    """The deviation by name: five of six responses have a token."""
    new, old, reference, advantages, mask = batch
    mask = mask.clone()
    mask[0] = 0
    batch = new, old, reference, advantages, mask
    for loss_type in ("grpo", "dr_grpo"):
        assert_close(
            ours(batch, MODES[loss_type])[0] * 5 / 6, theirs(batch, loss_type=loss_type)[0], rtol=1e-12, atol=0
        )


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages(scale):
    """TRL's whole path from rewards to advantages, with the generation replaced."""
    rewards = torch.tensor([[1.0, 0.0, 0.25, 0.0], [1.0, 1.0, 1.0, 1.0], [0.5, 0.2, 0.9, 0.0]])
    completions = [[3, 4], [5], [6, 7, 8], [9]] * 3
    one = trainer(
        beta=0.0,
        environment_factories=None,
        environments=None,
        tools=None,
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        num_generations=4,
        num_generations_eval=4,
        num_iterations=1,
        multi_objective_aggregation="sum_then_normalize",
        scale_rewards=scale,
        reward_weights=torch.ones(1),
        reward_func_names=["r"],
        log_multimodal=False,
        _tokenizer=SimpleNamespace(pad_token_id=0),
        _logs=defaultdict(deque, rewards=defaultdict(deque)),
        _pending_extra_logs={},
        _pending_metrics={},
    )
    one._generate = lambda prompts: ([[1, 2]] * 12, completions, None, ["x"] * 12, None, {}, None, None)
    one._calculate_rewards = lambda *args: rewards.reshape(12, 1)
    peer = one._generate_and_score_completions([{"prompt": "p"}] * 12)["advantages"].reshape(3, 4)
    expected = group_baselines.grpo(rewards, epsilon=1e-4) if scale == "group" else group_baselines.dr_grpo(rewards)
    assert_close(expected, peer, rtol=1e-6, atol=1e-7)
    if scale == "group":
        assert_close(r2po.task_advantages(rewards), peer, rtol=1e-6, atol=1e-7)
        assert not torch.allclose(group_baselines.grpo(rewards, epsilon=1e-4, population=True), peer)
