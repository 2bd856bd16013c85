"""The stages by hand: statistics of unequal micro-batches, what each model is asked, what each loss reads."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.data.problems import Problem
from equipoise.data.records import Message
from equipoise.language.rollouts import score_responses
from equipoise.reinforcement import ppo, stages, training
from equipoise.reinforcement.critic import Critic, prompt_logits, token_logits
from equipoise.reinforcement.r2po import RolloutHead
from equipoise.reinforcement.recipe import ADVANTAGES, METHODS, recipe
from reinforcement_world import ALL, PROBLEMS, SMALL, model, odd


@pytest.fixture(scope="module")
def lm():
    """Left as it is."""
    return model()


def made(lm, method, index=1, **settings):
    chosen = recipe(method, **{**SMALL, **ALL[method], **settings})
    return chosen, stages.sample(lm, chosen, PROBLEMS[:3], [7, 5, 9], odd, index)


def test_a_sample_is_what_its_keys_say(lm):
    chosen, step = made(lm, "grpo", num_generations=2)
    assert step.rewards.shape == (3, 2) and step.rewards.flatten().tolist() == odd(None, step.rollouts.texts)
    assert (
        step.problems == tuple(PROBLEMS[:3]) and step.keys == (7, 5, 9) and step.index == 1 and step.stage == "policy"
    )
    alone = stages.sample(lm, chosen, PROBLEMS[1:2], [5], odd, 8)
    assert (
        torch.equal(alone.rollouts.ids[:, :1], step.rollouts.ids[2:4, :1])
        and alone.rollouts.texts == step.rollouts.texts[2:4]
    )
    other = stages.sample(lm, recipe("grpo", **SMALL, num_generations=2, seed=1), PROBLEMS[1:2], [5], odd, 8)
    assert other.rollouts.texts != alone.rollouts.texts


def test_rewards_are_asked_for_each_response_of_its_problem(lm):
    asked = []
    chosen = recipe("rloo", **SMALL, num_generations=2)
    stages.sample(
        lm,
        chosen,
        PROBLEMS[:2],
        [0, 1],
        lambda problems, texts: asked.append((problems, texts)) or odd(problems, texts),
        0,
    )
    ((problems, texts),) = asked
    assert [problem.id for problem in problems] == ["p0", "p0", "p1", "p1"] and len(texts) == 4


def test_what_is_asked():
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert Problem("1", "c", (), turns).asked == turns and Problem("1", "c", ()).asked == "c"


def test_judged():
    problems = [Problem(str(n), "q", ()) for n in range(3)]
    rewards, missing = stages.judged(lambda p, t: [0.25, math.nan, True], problems, ["", "", ""])
    assert rewards.tolist() == [0.25, 0.0, 1.0] and missing.tolist() == [False, True, False]
    with pytest.raises(BadInput) as caught:
        stages.judged(lambda p, t: [0.0, 1.0, -math.inf], problems, ["", "", ""])
    assert str(caught.value) == "the reward of a response to problem '2' is infinite."
    with pytest.raises(BadInput) as caught:
        stages.judged(lambda p, t: [0.0] * 4, problems, ["", "", ""])
    assert len(stages.judged(lambda p, t: [0.0] * 600, problems * 200, [""] * 600)[0]) == 600
    assert str(caught.value) == "the reward gave 4 numbers for 3 responses: it must give one for each."


def test_overlong_answers_lose_the_likeliest_too(lm):
    chosen, step = made(lm, "remax", overlong=4)
    shaped = stages.shape(chosen, step)

    def expected(rewards, lengths):
        return [reward - min(max((length - 1) / 4, 0), 1) for reward, length in zip(rewards, lengths, strict=True)]

    assert shaped.rewards.flatten().tolist() == pytest.approx(
        expected(step.rewards.flatten().tolist(), step.rollouts.lengths.tolist())
    )
    assert shaped.greedy_rewards.tolist() == pytest.approx(
        expected(step.greedy_rewards.tolist(), step.greedy_lengths.tolist())
    )
    assert step.greedy_lengths.max() > 1
    weighed = stages.weigh(chosen, shaped)
    assert_close(weighed.advantages[:, 0], shaped.rewards[:, 0] - shaped.greedy_rewards)
    unchanged, other = made(lm, "remax")
    assert stages.shape(unchanged, other) is other


def test_sppo_is_gae_with_the_prompts_value(lm):
    chosen, step = made(lm, "sppo", num_generations=2)
    step = stages.look(lm, chosen, step, critic=Critic.of(lm, seed=3))
    assert step.success_probability.shape == (3,) and step.values is None
    weighed = stages.weigh(chosen, step)
    values = step.success_probability.repeat_interleave(2)[:, None].expand(step.rollouts.mask.shape)
    expected, returns = ppo.of_step(stages.replace(step, values=values), recipe("ppo", **SMALL))
    assert torch.equal(weighed.token_advantages, expected)
    assert_close(returns, step.rewards.reshape(-1, 1).where(step.rollouts.mask, 0), rtol=0, atol=1e-7)
    assert not weighed.token_advantages[~step.rollouts.mask].any() and weighed.token_advantages.abs().max() < 1


def test_what_models_are_asked_before_anybody_learns(lm, monkeypatch):
    """In parts of two rows, the same as all at once; critics see each row; the reference its own logits."""
    monkeypatch.setattr(stages, "_AT_ONCE", 2)
    reference = copy.deepcopy(lm.model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.05)
    chosen, step = made(lm, "apo", temperature=0.7, num_generations=3, anchors=4)
    step = stages.look(lm, chosen, step, reference=reference)
    batch = step.rollouts.batch(range(9))
    whole = score_responses(reference, batch, temperature=0.7, top=4)
    assert_close(step.reference_log_probs, whole.log_probs.detach(), rtol=0, atol=1e-5)
    assert torch.equal(step.anchor_ids[step.rollouts.mask], whole.top_ids[step.rollouts.mask])
    assert_close(step.anchor_probs, whole.top_probs, rtol=0, atol=1e-5)
    assert step.old_log_probs is None and (step.reference_log_probs - step.rollouts.log_probs).abs().max() > 0.01
    critic = Critic.of(lm, seed=3)
    for method, settings in (("sppo", {}), ("ppo", {}), ("ppo-bce", {})):
        chosen, step = made(lm, method, num_generations=3, **settings)
        step = stages.look(lm, chosen, step, critic=critic)
        if method == "sppo":
            expected = prompt_logits(critic, step.rollouts.prompts, 0, lm.device).sigmoid()
            assert_close(step.success_probability, expected.detach(), rtol=0, atol=1e-6)
        else:
            expected = token_logits(critic, step.rollouts.batch(range(9))).detach()
            expected = expected if method == "ppo" else expected.sigmoid()
            assert_close(step.values[step.rollouts.mask], expected[step.rollouts.mask], rtol=0, atol=1e-5)
    assert not lm.model.training and not critic.training


def test_more_anchors_than_tokens_are_all_of_them(lm):
    chosen, step = made(lm, "apo", num_generations=2, anchors=1000)
    step = stages.look(lm, chosen, step, reference=lm.model)
    assert step.anchor_ids.shape[-1] == 300
    assert_close(step.anchor_probs.sum(-1)[step.rollouts.mask], torch.ones(int(step.rollouts.mask.sum())))


def test_old_log_probabilities_are_those_of_what_learns():
    """Of z + u while the head learns, of z while the policy does, whichever sampled."""
    lm = model(dtype=torch.bfloat16)
    head = RolloutHead.attach(lm.model, seed=0, scale=5.0)
    for index, stage in ((0, "head"), (1, "policy")):
        chosen = recipe("r2po", **SMALL, head_steps=1, policy_steps=1, num_generations=2, batch_size=3)
        step = stages.sample(lm, chosen, PROBLEMS[:3], [0, 1, 2], odd, index, head)
        assert step.stage == stage
        step = stages.look(lm, chosen, step, head=head)
        gap = (step.old_log_probs - step.rollouts.log_probs).abs().max().item()
        assert (gap < 0.2) == (stage == "head")
        with torch.no_grad():
            expected = score_responses(lm.model, step.rollouts.batch(range(6))).log_probs
        assert (stage == "policy") == torch.equal(expected, step.old_log_probs)


@pytest.mark.parametrize(
    ("method", "settings", "dtype", "index", "needed"),
    [
        ("grpo", {}, torch.float32, 0, False),
        ("grpo", {"batch_size": 4}, torch.float32, 0, False),
        ("grpo", {}, torch.bfloat16, 0, False),
        ("grpo", {"batch_size": 4}, torch.bfloat16, 0, True),
        ("r2po", {"batch_size": 4}, torch.float32, 0, False),
        ("r2po", {"batch_size": 4}, torch.float32, 1, True),
        ("r2po", {}, torch.float32, 1, False),
        ("r2po", {"importance_cap": 2.0}, torch.float32, 0, False),
        ("r2po", {"importance_cap": 2.0}, torch.float32, 1, True),
    ],
)
def test_when_a_pass_for_old_log_probabilities_is_made(method, settings, dtype, index, needed):
    lm = model(dtype=dtype)
    chosen, step = made(lm, method, index=index, num_generations=2, **settings)
    assert stages.needs_old(lm, chosen, step) == needed


@pytest.mark.parametrize(
    ("again", "settings", "dtype", "needed"),
    [
        (True, {"batch_size": 2, "clip_window": "current"}, torch.float32, True),
        (False, {"batch_size": 2, "clip_window": "current"}, torch.float32, False),  # nothing came again in this step
        (True, {"batch_size": 2, "clip_window": "behavior"}, torch.float32, False),
        (True, {"clip_window": "current"}, torch.float32, False),
        (False, {"clip_window": "behavior"}, torch.bfloat16, True),  # what is kept is to have the trainer's own numbers
    ],
)
def test_when_what_comes_again_takes_a_pass(again, settings, dtype, needed):
    chosen = recipe("grpo", replay=0.5, num_generations=2, **SMALL, **settings)
    step = SimpleNamespace(stage="policy", off_policy=torch.zeros(3, dtype=torch.bool) if again else None)
    policy = SimpleNamespace(model=SimpleNamespace(dtype=dtype))
    assert stages.needs_old(policy, chosen, step) is needed  # type: ignore[arg-type]


def test_importance_weights_multiply_the_advantages_of_tokens(lm):
    chosen, step = made(lm, "r2po", num_generations=4, importance_cap=1.2)
    old = step.rollouts.log_probs + torch.linspace(-0.5, 0.5, step.rollouts.ids.numel()).view_as(
        step.rollouts.log_probs
    )
    weighed = stages.weigh(chosen, stages.replace(step, old_log_probs=old))
    plain = stages.weigh(chosen, step).token_advantages
    ratio = (old - step.rollouts.log_probs).exp().clamp(max=1.2)
    assert_close(weighed.token_advantages, plain * ratio.where(step.rollouts.mask, 0))
    assert (ratio == 1.2).any() and plain.any()
    for advantage in ("reinforce++", "batch-mean"):  # of tokens, and of responses
        other = recipe(None, advantage=advantage, head="random", importance_cap=1.2, **SMALL, num_generations=4)
        assert stages.weigh(other, stages.replace(step, old_log_probs=old)).token_advantages.shape == ratio.shape


def test_the_head_is_paid_for_rarity_or_the_task(lm):
    found = {}
    for of_head in ("rarity", "task"):
        chosen, step = made(lm, "r2po", index=0, num_generations=4, head_advantage=of_head)
        step = stages.replace(step, rewards=torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(3, 1))
        assert step.stage == "head"
        found[of_head] = stages.weigh(chosen, step).advantages[0]
    assert found["rarity"][3] > 0 > found["task"][3]
    assert found["rarity"].tolist() == pytest.approx([-0.5, -0.5, -0.5, 1.5], abs=1e-4)


def test_optimizer_steps_cut_the_rows_in_order(lm):
    chosen, step = made(lm, "grpo", num_generations=3, batch_size=4)
    assert stages.minibatches(chosen, step) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def with_advantages(lm, **settings):
    """An APO step whose rows have unequal lengths and advantages of both signs, anchors from another model."""
    chosen, step = made(lm, "apo", num_generations=3, entropy_beta=0.05, kl_beta=0.2, **settings)
    reference = copy.deepcopy(lm.model)
    with torch.no_grad():
        reference.model.embed_tokens.weight.mul_(1.3)
    step = stages.look(lm, chosen, step, reference=reference)
    advantages = torch.tensor([[-1.0, 0.5, 0.0], [-0.3, -0.2, 1.0], [2.0, 1.0, 0.7]])
    anchors = step.anchor_probs.clone()
    anchors[3] = 1e-9  # a response that has nothing to be pulled to
    return chosen, stages.replace(step, advantages=advantages, anchor_probs=anchors)


def test_statistics_are_means_over_what_they_count(lm):
    """Cut into single rows, by hand from the whole: tokens, tokens with A < 0, and those that have anchors."""
    chosen, step = with_advantages(lm)
    whole, cut = [], []
    old = (
        step.rollouts.log_probs
        + torch.sin(torch.arange(step.rollouts.ids.numel()).view_as(step.rollouts.ids).float()) / 2
    )
    for rows, stats in ([[list(range(9))], whole], [[[row] for row in range(9)], cut]):
        objective = stages.policy_objective(chosen, stats)
        sums = [objective(lm.model, stages.policy_batch(step, part, old=old)) for part in rows]
        total = sum(part for part, _ in sums) / sum(weight for _, weight in sums)
        stats.append(total.detach())
    (one, loss), (*parts, same_loss) = whole, cut
    assert_close(loss, same_loss, rtol=1e-5, atol=1e-6)
    mask, wide = step.rollouts.mask, step.token_advantages
    wrong = mask & (wide < 0)
    tiny = wrong & (torch.arange(9) == 3)[:, None]
    lengths = step.rollouts.lengths
    assert len(lengths.unique()) > 2 and len({int(each) for each in wrong.sum(-1)}) > 2 and tiny.any()
    assert one["ratio"][1] == mask.sum() and one["tiny_anchor_share"].tolist() == [tiny.sum(), wrong.sum()]
    assert one["anchor_ratio"][1] == (wrong & ~tiny).sum()

    class Alone:
        num_processes = 1

    found, expected = training._averaged(parts, Alone), training._averaged([one], Alone)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7) and len(found) == 12
    with torch.no_grad():
        scores = score_responses(lm.model, step.rollouts.batch(range(9)), gather=step.anchor_ids)
    log_ratio = (scores.log_probs - old)[mask]
    assert found["ratio"] == pytest.approx(log_ratio.exp().mean().item(), rel=1e-5)
    assert found["approximate_kl"] == pytest.approx((log_ratio.exp() - 1 - log_ratio).mean().item(), rel=1e-4)
    kept = ~(step.anchor_ids == step.rollouts.ids[..., None])
    r_anc = (scores.gathered.exp() * kept).sum(-1) / (step.anchor_probs * kept).sum(-1)
    assert found["anchor_ratio"] == pytest.approx(r_anc[wrong & ~tiny].mean().item(), rel=1e-5)
    assert found["sampler_gap"] == pytest.approx((old - step.rollouts.log_probs)[mask].abs().mean().item(), rel=1e-4)
    difference = (old - step.rollouts.log_probs)[mask]
    assert found["sampler_kl"] == pytest.approx((difference.exp() - 1 - difference).mean().item(), rel=1e-4)


def test_a_mean_of_nothing_is_nan():
    class Alone:
        num_processes = 1

    assert training._averaged([], Alone) == {}
    found = training._averaged(
        [
            {"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([3.0, 4.0])},
            {"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([1.0, 0.0])},
        ],
        Alone,
    )
    assert math.isnan(found["a"]) and found["b"] == 1.0


def test_the_loss_by_hand(lm):
    """KL and entropy bonus beside the surrogate, every token's part, padding without any."""
    chosen, step = with_advantages(lm, aggregate="seq-mean-token-mean")
    old = step.rollouts.log_probs
    rows = [4, 0, 8]
    total, weight = stages.policy_objective(chosen, [])(lm.model, stages.policy_batch(step, rows, old=old))
    with torch.no_grad():
        scores = score_responses(lm.model, step.rollouts.batch(rows), gather=step.anchor_ids[rows], entropies=True)
    expected = 0.0
    for place, row in enumerate(rows):
        length, sums = int(step.rollouts.lengths[row]), 0.0
        for t in range(length):
            log_p, advantage = scores.log_probs[place, t], step.token_advantages[row, t].item()
            ratio = (log_p - old[row, t]).exp().item()
            if advantage < 0:
                kept = step.anchor_ids[row, t] != step.rollouts.ids[row, t]
                z = step.anchor_probs[row, t][kept].sum().item()
                ratio = 1.05 * ratio - 0.1 * scores.gathered[place, t][kept].exp().sum().item() / z
            loss = -min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
            d = (log_p - step.reference_log_probs[row, t]).item()
            sums += loss + 0.2 * (math.exp(-d) + d - 1) - 0.05 * scores.entropies[place, t].item()
        expected += sums / length
    assert weight == 3 and total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kl_on", ["all", "wrong"])
def test_a_kl_on_wrong_answers_alone(lm, kl_on):
    chosen, step = made(lm, "grpo", num_generations=3, kl_beta=1.0, kl_on=kl_on, aggregate="token-mean")
    reference = step.rollouts.log_probs - 0.5
    advantages = torch.tensor([[0.0, -1e-9, 1e-9]]).repeat(3, 1)
    step = stages.replace(step, advantages=advantages, reference_log_probs=reference)
    stats = []
    total, weight = stages.policy_objective(chosen, stats)(lm.model, stages.policy_batch(step, range(9), old=None))
    lengths = step.rollouts.lengths
    counted = lengths[1::3].sum() if kl_on == "wrong" else lengths.sum()
    expected = (math.exp(-0.5) + 0.5 - 1) * counted.item() / lengths.sum().item()
    assert (total / weight).item() == pytest.approx(expected, rel=1e-4)
    assert (stats[0]["kl"][0] / stats[0]["kl"][1]).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ALL)
def test_what_has_no_advantage_has_no_gradient(lm, method):
    """No step has a loss beside the surrogate but a bonus, and a KL that is 0 at its start: no value and no gradient."""
    chosen, step = made(lm, method, num_generations=2, entropy_beta=0)
    reference = step.rollouts.log_probs
    step = stages.replace(step, advantages=torch.zeros(3, 2), reference_log_probs=reference)
    if chosen.loss == "anchored":
        step = stages.look(lm, chosen, step, reference=lm.model)
    total, _ = stages.policy_objective(chosen, [])(lm.model, stages.policy_batch(step, range(6), old=None))
    found = torch.autograd.grad(total, list(lm.model.parameters()))
    assert abs(total.item()) < 1e-9 and max(each.abs().max().item() for each in found) < 1e-3 * chosen.kl_beta + 1e-12


def test_what_the_critics_learn(lm):
    """BCE at prompts, one row a response; squares of tokens, clipped; BCE of tokens: by hand."""
    critic = Critic.of(lm, seed=3)
    rows = [5, 0, 3]
    chosen, step = made(lm, "sppo", num_generations=2)
    total, weight = stages.critic_objective("prompt")(critic.train(), stages.critic_batch(step, rows, "prompt", None))
    logits = prompt_logits(critic, [step.rollouts.prompts[row // 2] for row in rows], 0, lm.device)
    rewards = step.rewards.flatten()[rows]
    p = logits.sigmoid()
    expected = -(rewards * p.log() + (1 - rewards) * (1 - p).log()).sum()
    assert weight == 3.0 and total.item() == pytest.approx(expected.item(), rel=1e-5) and not critic.training
    (gradient,) = torch.autograd.grad(total, critic.head.bias)
    assert gradient.item() == pytest.approx((p - rewards).sum().item(), rel=1e-4)

    chosen, step = made(lm, "ppo", num_generations=2)
    step = stages.look(lm, chosen, step, critic=critic)
    old = stages.replace(step, values=step.values - 0.8 * step.rollouts.mask)
    returns = ppo.of_step(step, chosen)[1]
    total, weight = stages.critic_objective("token")(critic, stages.critic_batch(old, rows, "token", returns))
    mask = step.rollouts.mask[rows]
    values, targets = step.values[rows], returns[rows]
    held = torch.maximum((values - targets) ** 2, (values - 0.3 - targets) ** 2)[mask].sum() / 2
    assert weight == mask.sum() and total.item() == pytest.approx(held.item(), rel=1e-4)

    chosen, step = made(lm, "ppo-bce", num_generations=2)
    step = stages.look(lm, chosen, step, critic=critic)
    total, weight = stages.critic_objective("token-bce")(critic, stages.critic_batch(step, rows, "token-bce", None))
    p, rewards = step.values[rows], step.rewards.flatten()[rows, None]
    losses = -(rewards * p.log() + (1 - rewards) * (1 - p).log())
    assert weight == mask.sum() and total.item() == pytest.approx(losses[mask].sum().item(), rel=1e-4)


def test_names_that_are_checked(lm):
    _, step = made(lm, "sppo")
    with pytest.raises(BadInput, match=r"'heads'\. Did you mean 'head'"):
        stages.replace(step, stage="heads")
    assert set(ADVANTAGES) >= {METHODS[name]["advantage"] for name in METHODS}
