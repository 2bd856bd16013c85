"""What we register with verl, through verl's own registries, batch and loss of its actor; and that a failure is seen."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.reinforcement import apo, policy_loss, sppo
from equipoise.reinforcement.critic import Critic

pytestmark = pytest.mark.slow
pytest.importorskip("verl", reason="needs verl, which only make test-all installs: pip install 'equipoise[verl]'")

from equipoise import verl_plugin  # noqa: E402


def from_verl(code, path, **environment):
    """A fresh Python in which verl loads one plug-in: ours, by another name, whether or not it is installed."""
    entry = path / "plugged-1.0.dist-info"
    entry.mkdir(parents=True)
    (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    (entry / "entry_points.txt").write_text("[verl.plugins]\nplugged = equipoise.verl_plugin\n")
    source = Path(verl_plugin.__file__).parents[1]
    variables = os.environ | {"PYTHONPATH": f"{path}:{source}", "VERL_USE_EXTERNAL_PLUGINS": "plugged"} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables)


SHOW = """
import verl
from verl.trainer.ppo import core_algos
from verl.trainer.distillation.losses import DISTILLATION_LOSS_REGISTRY
for registry in (core_algos.ADV_ESTIMATOR_REGISTRY, core_algos.POLICY_LOSS_REGISTRY, DISTILLATION_LOSS_REGISTRY):
    print([name for name in registry if name.startswith("equipoise")])
"""


def test_verl_loads_it_by_itself(tmp_path):
    done = from_verl(SHOW, tmp_path)
    assert done.stdout.splitlines()[-3:] == ["['equipoise_sppo']", "['equipoise_apo']", "['equipoise_apo']"], (
        done.stderr
    )
    assert "equipoise: verl does not have" not in done.stderr


def test_a_failure_is_seen(tmp_path):
    """verl goes on without it and says nothing above DEBUG."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, types\nbroken = types.ModuleType('verl.workers.utils.padding')\nsys.modules[broken.__name__] = broken\n"
    )
    done = from_verl("import verl; print('verl goes on')", tmp_path)
    assert "equipoise: verl does not have equipoise_sppo and equipoise_apo: ImportError" in done.stderr
    assert done.stderr.count("equipoise: verl") == 1


@pytest.fixture
def rows():
    """Prompts padded on the left, responses on the right, as verl pads them."""
    prompts = [[5, 6, 7], [8], [9, 10], [5, 6, 7]]
    responses = [[11, 12], [13, 14, 15, 16], [17], [18, 19, 20]]
    width, length = 4, 5
    ids = torch.zeros(4, width, dtype=torch.long)
    answers, mask = torch.zeros(4, length, dtype=torch.long), torch.zeros(4, width + length, dtype=torch.long)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        answers[row, : len(response)] = torch.tensor(response)
        mask[row, width - len(prompt) : width + len(response)] = 1
    return ids, answers, mask


def test_sppo(rows):
    """From a critic of the prompt through verl's compute_advantage: R - p at every token of the response."""
    from transformers import LlamaConfig, LlamaModel
    from verl import DataProto
    from verl.trainer.config import AlgoConfig
    from verl.trainer.ppo.ray_trainer import compute_advantage

    prompts, responses, attention = rows
    torch.manual_seed(0)
    body = LlamaModel(
        LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    critic = Critic(body, seed=0, bias=0.3)
    mask = attention[:, 4:].double()
    rewards = torch.zeros(4, 5, dtype=torch.float64)
    outcomes = torch.tensor([1.0, 0.0, 0.25, 0.0], dtype=torch.float64)
    rewards[torch.arange(4), mask.sum(-1).long() - 1] = outcomes
    rewards[1, 4] = 7.0  # behind the end: no reward of anybody's
    data = DataProto.from_dict(
        tensors={
            "prompts": prompts,
            "responses": responses,
            "attention_mask": attention,
            "response_mask": mask,
            "token_level_rewards": rewards,
        },
        non_tensors={"uid": np.array(list("abcd"), dtype=object)},
    )
    config = AlgoConfig(adv_estimator="equipoise_sppo")
    with pytest.raises(BadInput, match="reward_baselines"):
        compute_advantage(data, "equipoise_sppo", config=config)
    logits = verl_plugin.prompt_logits(data, critic)
    assert logits[0] == logits[3] and len(set(logits.tolist())) == 3
    data.batch["reward_baselines"] = logits.sigmoid().detach()
    found = compute_advantage(data, "equipoise_sppo", config=config).batch
    p = torch.stack([critic(torch.tensor([ids]), torch.ones(1, len(ids)))[0, -1] for ids in ([5, 6, 7], [8], [9, 10])])
    p = p.sigmoid().double()[[0, 1, 2, 0]]
    assert_close(found["advantages"], (outcomes - p).unsqueeze(-1) * mask, rtol=1e-5, atol=1e-6)
    assert_close(found["returns"], outcomes.unsqueeze(-1) * mask)
    sppo.critic_loss(logits, outcomes.float()).backward()
    assert critic.head.weight.grad.abs().sum() > 0
    data.batch["token_level_rewards"] = -rewards
    with pytest.raises(BadInput, match=r"rewards\[0\] is -1"):
        compute_advantage(data, "equipoise_sppo", config=config)


def actor(name, **settings):
    from verl.workers.config import FSDPActorConfig, PolicyLossConfig

    return FSDPActorConfig(
        strategy="fsdp",
        ppo_micro_batch_size_per_gpu=1,
        rollout_n=1,
        clip_ratio_low=0.2,
        clip_ratio_high=0.28,
        policy_loss=PolicyLossConfig(loss_mode=name),
        **settings,
    )


def distillation(name, **settings):
    from verl.workers.config import DistillationLossConfig

    chosen = {"topk": 3, "use_policy_gradient": False, "loss_max_clamp": None} | settings
    return SimpleNamespace(distillation_loss=DistillationLossConfig(loss_mode=name, **chosen))


@pytest.fixture
def jagged(rows):
    """A micro-batch as verl's engine has it, jagged, with logits of a policy and the teacher's top 3 at every place."""
    from verl.utils import tensordict_utils as tu

    prompts, responses, attention = rows
    generator = torch.Generator().manual_seed(0)
    lengths = attention.sum(-1).tolist()
    logits = torch.randn(sum(lengths), 32, generator=generator, dtype=torch.float64).requires_grad_()
    reference = logits.detach() + 0.7 * torch.randn(sum(lengths), 32, generator=generator, dtype=torch.float64)
    whole = torch.cat([prompts, responses], dim=1)
    # The sampled tokens are among the reference's likeliest at some places and not at others.
    ends = torch.tensor(lengths).cumsum(0)
    nested = lambda flat: torch.nested.nested_tensor(list(flat.split(lengths)), layout=torch.jagged)  # noqa: E731
    log_reference = reference.log_softmax(-1)
    top = log_reference.topk(3, dim=-1)
    for row, (start, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
        length = int(attention[row, 4:].sum())
        likely = top.indices[end - length - 1 : end - 1, 1]
        kept = torch.arange(length) % 2 == row % 2
        responses[row, :length] = torch.where(kept, likely, responses[row, :length])
        whole[row, 4:] = responses[row]
        assert start < end - length
    mask = attention[:, 4:]
    jag = lambda tensor: torch.nested.nested_tensor(  # noqa: E731
        [line[real.bool()] for line, real in zip(tensor, mask, strict=True)], layout=torch.jagged
    )
    ids = torch.nested.nested_tensor(
        [line[real.bool()] for line, real in zip(whole, attention, strict=True)], layout=torch.jagged
    )
    real_prompts = torch.nested.nested_tensor(
        [line[real.bool()] for line, real in zip(prompts, attention[:, :4], strict=True)], layout=torch.jagged
    )
    predicted = torch.cat([each.roll(-1) for each in ids.unbind()])
    log_probs = logits.log_softmax(-1).gather(-1, predicted.unsqueeze(-1)).squeeze(-1)
    advantages = torch.tensor([-1.0, -0.5, 0.7, -1.5], dtype=torch.float64).unsqueeze(-1).expand(4, 5)
    old = torch.zeros(4, 5, dtype=torch.float64)
    for row, end in enumerate(ends.tolist()):
        length = int(mask[row].sum())
        old[row, :length] = log_probs.detach()[end - length - 1 : end - 1]
    old += 0.3 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    data = tu.get_tensordict(
        {
            "prompts": real_prompts,
            "responses": jag(responses),
            "input_ids": ids,
            "response_mask": jag(mask),
            "advantages": jag(advantages),
            "old_log_probs": jag(old),
            "teacher_ids": nested(top.indices),
            "teacher_logprobs": nested(top.values),
        },
        {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None},
    )
    return data, logits, log_reference, log_probs, (responses, mask, old, advantages, ends.tolist())


@pytest.mark.parametrize("clip_mode", ["inside", "outside"])
@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_apo(jagged, clip_mode, mode):
    """verl's own loss of its actor with both pieces: the anchored loss from whole softmaxes, in value and gradient."""
    from verl.trainer.distillation.losses import distillation_ppo_loss

    name = f"equipoise_apo_{clip_mode}_{mode}"
    verl_plugin.register_apo(name, clip_mode=clip_mode, pull=0.3)
    data, logits, log_reference, log_probs, (responses, mask, old, advantages, ends) = jagged
    config, settings = actor(name, loss_agg_mode=mode), distillation(name)
    found = distillation_ppo_loss(config, settings, data=data, student_logits=logits.unsqueeze(0))
    nested = lambda flat: torch.nested.nested_tensor_from_jagged(flat, data["input_ids"].offsets())  # noqa: E731
    output = {name: nested(each.squeeze(0)) for name, each in found.items()} | {"log_probs": nested(log_probs)}
    loss, metrics = distillation_ppo_loss(config, settings, model_output=output, data=data)

    log_policy = logits.log_softmax(-1)
    places = [torch.arange(end - int(m.sum()) - 1, end - 1) for end, m in zip(ends, mask, strict=True)]
    at = torch.nn.utils.rnn.pad_sequence(places, batch_first=True)
    width = at.shape[1]
    anchor_ids, anchor_probs = apo.anchors(log_reference, 3)
    expected, stats = apo.anchored_loss(
        log_policy[at].gather(-1, responses[:, :width].unsqueeze(-1)).squeeze(-1),
        old[:, :width],
        log_policy.gather(-1, anchor_ids)[at],
        anchor_probs[at],
        anchor_ids[at] == responses[:, :width].unsqueeze(-1),
        advantages[:, :width],
        mask[:, :width],
        pull=0.3,
        clip_high=0.28,
        clip_mode=clip_mode,
        aggregate=mode,
    )
    assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (loss, expected)]
    assert_close(*gradients, rtol=1e-4, atol=1e-6)
    for key in ("anchor_ratio", "support_coverage", "tiny_anchor_share"):
        assert metrics[f"apo/{key}"] == pytest.approx(stats[key].item(), rel=1e-5)
    sampled = (anchor_ids[at] == responses[:, :width].unsqueeze(-1)).any(-1)[mask[:, :width].bool()]
    assert 0 < sampled.sum() < len(sampled)


@pytest.mark.parametrize(
    "wrong", [{"loss_max_clamp": 10.0}, {"use_task_rewards": False}, {"distillation_loss_coef": 0.5}]
)
def test_apo_refuses_what_would_change_the_sum(jagged, wrong):
    from verl.trainer.distillation.losses import distillation_loss

    data, *_ = jagged
    (name,) = wrong
    with pytest.raises(BadInput, match=name):
        distillation_loss(actor("equipoise_apo"), distillation("equipoise_apo", **wrong), {}, data)
    with pytest.raises(BadInput, match="loss_mode is 'vanilla'"):
        distillation_loss(actor("vanilla"), distillation("equipoise_apo"), {}, data)


def test_the_push_alone(rows):
    """The policy loss without its other piece is the ablation of that name."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    *_, attention = rows
    mask = attention[:, 4:]
    generator = torch.Generator().manual_seed(1)
    new, old, advantages = 0.3 * torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    loss, metrics = get_policy_loss_fn("equipoise_apo")(
        old_log_prob=old, log_prob=new, advantages=advantages, response_mask=mask, config=actor("equipoise_apo")
    )
    ids = torch.zeros(4, 5, 1, dtype=torch.bool)
    ones = torch.ones(4, 5, 1, dtype=torch.float64)
    expected, stats = apo.anchored_loss(new, old, ones.log(), ones, ids, advantages, mask, pull=0.0, clip_high=0.28)
    assert_close(loss, expected, rtol=1e-6, atol=1e-9)
    assert metrics["actor/clip_fraction_low"] == pytest.approx(stats["clip_fraction_low"].item())
    plain, _ = policy_loss.clipped(new, old, advantages, mask, clip_high=0.28)
    assert not torch.isclose(loss, plain)


def test_names_are_ours():
    with pytest.raises(BadInput, match="'vanilla'"):
        verl_plugin.register_apo("vanilla")
