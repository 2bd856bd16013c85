"""Our advantages and losses against verl's own, called through its registries and on its own batch object.

Known deviations: verl's GAE leaves numbers at masked places and always whitens; its actor has the dual clip on, c = 3; its
fraction of clipped tokens is that of both sides together; its mean over the tokens of a response adds 1e-8 to their number.
"""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.reinforcement import group_baselines, policy_loss, ppo, sppo

pytestmark = pytest.mark.slow
pytest.importorskip("verl", reason="needs verl, which only make test-all installs: pip install 'equipoise[verl]'")

MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")
PROMPTS, SAMPLES, LENGTH = 3, 4, 9


@pytest.fixture(scope="module")
def core():
    from verl.trainer.ppo import core_algos

    return core_algos


@pytest.fixture
def batch():
    """Rewards of groups, a mask with holes and unequal lengths, the order in which verl's batch has the rows, and noise."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.tensor([[1.0, 0.0, 0.25, 0.0], [1.0, 1.0, 1.0, 1.0], [0.5, 0.2, 0.9, 0.0]], dtype=torch.float64)
    lengths = torch.tensor([9, 3, 1, 5, 7, 2, 9, 4, 6, 8, 2, 3])
    mask = torch.arange(LENGTH) < lengths[:, None]
    mask[0, 4] = mask[9, 2] = False
    noise = torch.randn(4, PROMPTS * SAMPLES, LENGTH, generator=generator, dtype=torch.float64)
    return rewards, mask, torch.randperm(PROMPTS * SAMPLES, generator=generator), noise


def advantages(estimator, token_rewards, mask, order, **tensors):
    """verl's compute_advantage on a DataProto whose rows come in another order, put back into ours."""
    from verl import DataProto
    from verl.trainer.config import AlgoConfig
    from verl.trainer.ppo.ray_trainer import compute_advantage

    rows = {"token_level_rewards": token_rewards, "response_mask": mask.to(token_rewards), **tensors}
    uid = np.repeat([f"prompt-{i}" for i in range(PROMPTS)], SAMPLES).astype(object)
    data = DataProto.from_dict(
        tensors={name: rows_[order] for name, rows_ in rows.items()}, non_tensors={"uid": uid[order.numpy()]}
    )
    config = AlgoConfig(gamma=0.9, lam=0.7, adv_estimator=estimator)
    found = compute_advantage(data, estimator, gamma=0.9, lam=0.7, config=config).batch
    back = order.argsort()
    return found["advantages"][back], found["returns"][back]


@pytest.mark.parametrize(
    ("estimator", "function"),
    [
        ("grpo", group_baselines.grpo),
        ("grpo_vectorized", group_baselines.grpo),
        ("rloo", group_baselines.rloo),
        ("rloo_vectorized", group_baselines.rloo),
    ],
)
def test_group_advantages(batch, estimator, function):
    rewards, mask, order, _ = batch
    peer, _ = advantages(estimator, ppo.token_rewards(rewards.flatten(), mask), mask, order)
    found = policy_loss.per_token(function(rewards).flatten(), mask)
    assert_close(found, peer, rtol=1e-5, atol=1e-6)  # some of theirs are float32 within


def test_dr_grpo(batch):
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    rewards, mask, *_ = batch
    peer, _ = get_adv_estimator_fn("grpo")(
        token_level_rewards=ppo.token_rewards(rewards.flatten(), mask),
        response_mask=mask.double(),
        index=np.repeat(np.arange(PROMPTS), SAMPLES),
        norm_adv_by_std_in_grpo=False,
    )
    assert_close(policy_loss.per_token(group_baselines.dr_grpo(rewards).flatten(), mask), peer)


def test_groups_of_one(batch):
    rewards, mask, *_ = batch
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    alone = rewards.reshape(-1, 1)
    for estimator, function in (("grpo", group_baselines.grpo), ("rloo", group_baselines.rloo)):
        peer, _ = get_adv_estimator_fn(estimator)(
            token_level_rewards=ppo.token_rewards(alone.flatten(), mask),
            response_mask=mask.double(),
            index=np.arange(len(alone)),
        )
        assert_close(policy_loss.per_token(function(alone).flatten(), mask), peer)


def test_reinforce_plus_plus(batch):
    rewards, mask, order, noise = batch
    token_rewards = (ppo.token_rewards(rewards.flatten(), mask) + noise[0]).where(mask, 0)
    peer, _ = advantages("reinforce_plus_plus", token_rewards, mask, order)
    assert_close(group_baselines.reinforce_plus_plus(token_rewards, mask, gamma=0.9), peer)
    outcome = ppo.token_rewards(rewards.flatten(), mask)
    peer, _ = advantages("reinforce_plus_plus_baseline", outcome, mask, order)
    assert_close(group_baselines.reinforce_plus_plus_baseline(rewards, mask), peer)


def test_remax(batch):
    """Theirs is a return to go, ours of the response: the same where the reward stands at the end."""
    rewards, mask, order, noise = batch
    greedy = noise[1, :, 0]
    peer, _ = advantages("remax", ppo.token_rewards(rewards.flatten(), mask), mask, order, reward_baselines=greedy)
    found = group_baselines.remax(rewards.flatten(), greedy)
    assert_close(policy_loss.per_token(found, mask), peer * mask)


def test_gae_and_whitening(batch):
    """Unequal rows, holes, noise in every reward: verl whitens, so we do; its masked places hold leftovers."""
    rewards, mask, order, noise = batch
    token_rewards = (ppo.token_rewards(rewards.flatten(), mask) + noise[0]).where(mask, 0)
    peer, returns = advantages("gae", token_rewards, mask, order, values=noise[1])
    found, our_returns = ppo.gae(token_rewards, noise[1], mask, gamma=0.9, lam=0.7)
    assert_close(ppo.whiten(found, mask), peer.where(mask, 0))
    assert_close(our_returns, returns.where(mask, 0))


def test_sppo_is_their_ppo_before_whitening(batch):
    """A critic of the prompt in verl's values, gamma = lam = 1: their advantages are ours, whitened."""
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    rewards, mask, _, noise = batch
    p = noise[2, :, :1].sigmoid()
    peer, _ = get_adv_estimator_fn("gae")(
        ppo.token_rewards(rewards.flatten(), mask), p.expand(mask.shape), mask.double(), 1.0, 1.0
    )
    ours = policy_loss.per_token(sppo.advantages(rewards.flatten(), p.flatten()), mask)
    assert_close(ppo.whiten(ours, mask), peer.where(mask, 0))


def actor(**settings):
    from verl.workers.config import FSDPActorConfig

    return FSDPActorConfig(
        strategy="fsdp",
        ppo_micro_batch_size_per_gpu=1,
        rollout_n=1,
        clip_ratio_low=0.2,
        clip_ratio_high=0.28,
        **settings,
    )


@pytest.mark.parametrize("mode", MODES)
def test_policy_loss(batch, core, mode):
    _, mask, _, noise = batch
    new, old, of_tokens = 0.6 * noise[0], 0.6 * noise[1], noise[2]
    new.requires_grad_()
    config = actor(clip_ratio_c=1.4)
    config.global_batch_info["loss_scale_factor"] = 20
    peer, metrics = core.get_policy_loss_fn("vanilla")(
        old_log_prob=old,
        log_prob=new,
        advantages=of_tokens,
        response_mask=mask.double(),
        loss_agg_mode=mode,
        config=config,
    )
    ours, stats = policy_loss.clipped(
        new, old, of_tokens, mask, clip_high=0.28, dual_clip=1.4, aggregate=mode, constant=20
    )
    assert_close(ours, peer, rtol=1e-7, atol=1e-9)
    gradients = [torch.autograd.grad(loss, new, retain_graph=True)[0] for loss in (ours, peer)]
    assert_close(*gradients, rtol=1e-7, atol=1e-9)
    sides = stats["clip_fraction_low"] + stats["clip_fraction_high"]
    assert sides.item() == pytest.approx(metrics["actor/pg_clipfrac"], rel=1e-5)
    assert 0 < stats["dual_clip_fraction"].item() == pytest.approx(metrics["actor/pg_clipfrac_lower"], rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_and_processes(batch, core, mode):
    """verl's average over two processes of unequal micro-batches is our sum over our weight."""
    _, mask, _, noise = batch
    parts, peers = [], []
    for rows in (slice(0, 5), slice(5, 12)):
        values = noise[0, rows]
        peers.append(
            core.agg_loss(
                values,
                mask[rows].double(),
                mode,
                dp_size=2,
                batch_num_tokens=mask.sum(),
                global_batch_size=len(mask),
                loss_scale_factor=20,
            )
        )
        parts.append(policy_loss.aggregate_parts(values, mask[rows], mode, constant=20))
    total, weight = (sum(column) for column in zip(*parts, strict=True))
    assert_close(total / weight, sum(peers) / 2, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3+"])
def test_kl(batch, core, estimator):
    """Values and gradients, also where k3 is bounded."""
    new, reference = 4 * batch[3][0], 4 * batch[3][1]
    new.requires_grad_()
    ours, peer = policy_loss.kl(new, reference, estimator=estimator), core.kl_penalty(new, reference, estimator)
    assert_close(ours, peer)
    gradients = [torch.autograd.grad(each.sum(), new)[0] for each in (ours, peer)]
    assert_close(*gradients)
    assert estimator != "k3" or (peer == 10).any()


def test_adaptive_weight_of_the_kl(core):
    controller = core.AdaptiveKLController(0.001, 0.1, 10_000)
    beta = 0.001
    for divergence in (0.3, 0.11, 0.0):
        controller.update(divergence, 256)
        beta = policy_loss.adapted_kl_weight(beta, divergence, 256)
        assert beta == pytest.approx(controller.value, rel=1e-12)


def test_value_loss(batch, core):
    _, mask, _, noise = batch
    peer, _ = core.compute_value_loss(noise[0], noise[1], noise[2], mask.double(), cliprange_value=0.5)
    assert_close(ppo.value_loss(noise[0], noise[2], noise[1], mask), peer, rtol=1e-7, atol=1e-9)
