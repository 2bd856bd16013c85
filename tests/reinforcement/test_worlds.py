"""The exact worlds against enumeration, sampling and finite differences; budgets; the same bits again and when resumed."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.core.state import load_state, save_state
from equipoise.reinforcement import policy_loss, sppo, worlds_habit, worlds_sequences, worlds_strategies
from equipoise.reinforcement.worlds import Learner, draws, expected_brier, pass_at, sample, spearman

METHODS = [*worlds_sequences.RULES, "sppo", "running-mean", "ppo-gae", "ppo-bce"]


def sequences(method="sppo", seed=3, learning_rate=0.1, **settings):
    world = worlds_sequences.World.make(7, prompts=64, features=8, vocabulary=3, tokens=3)
    return worlds_sequences.Training(world, method, learning_rate=learning_rate, seed=seed, **settings)


def strategies(seed=3, learning_rate=0.05, **settings):
    return worlds_strategies.Training(
        worlds_strategies.World.make(7), learning_rate=learning_rate, seed=seed, **settings
    )


def habit(seed=3, learning_rate=0.01, **settings):
    return worlds_habit.Training(worlds_habit.World.make(7), learning_rate=learning_rate, seed=seed, **settings)


def updated(training, count):
    for _ in range(count):
        training.update()
    return training


def numerical_gradient(function, at, step=1e-6):
    gradient = torch.zeros_like(at)
    for index in range(at.numel()):
        moved = [at.clone(), at.clone()]
        for each, sign in zip(moved, (1, -1), strict=True):
            each.view(-1)[index] += sign * step
        gradient.view(-1)[index] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return gradient


# --- exact ----------------------------------------------------------------------------------------------------------


def test_pass_at_k_is_what_sampling_finds():
    training = updated(strategies(), 20)
    uniforms = np.random.default_rng(0).random((4000, 8))
    answers = sample(training.log_probs(), uniforms)
    solved = training.world.solves[:, answers].any(-1).double()  # [P, draws]
    exact = training.pass_at(8)
    errors = (solved.mean(1) - exact).abs() / (exact * (1 - exact) / 4000).sqrt()
    assert errors.max() < 5 and 0.2 < exact.mean() < 0.9


def test_pass_at_k_holds_for_tiny_p():
    assert_close(pass_at(torch.tensor([0.25, 1.0, 0.0]).double(), 3), torch.tensor([1 - 0.75**3, 1.0, 0.0]).double())
    assert pass_at(torch.tensor(1e-18).double(), 256).item() == pytest.approx(2.56e-16, rel=1e-12)


def test_solve_rates_are_sums_over_all_sequences():
    training = updated(sequences(), 3)
    world, policy = training.world, training.policy["w"].detach()
    all_tokens = torch.tensor(list(itertools.product(range(3), repeat=3)))
    for prompt in (0, 5, 63):
        rows = torch.full((27,), prompt)
        chances = training.log_probs(rows, all_tokens).sum(-1).exp()
        right = (all_tokens == world.answers[prompt]).all(-1)
        assert_close(chances.sum(), torch.tensor(1.0).double())
        assert_close(world.solve_rates(policy)[prompt], chances[right].sum())


def test_rewards_come_as_often_as_the_solve_rate_says():
    training = sequences("none", learning_rate=0.0)
    batches = []
    for training.done in range(60):
        batches.append(training.roll_out())
    rewards, exact = (torch.cat([getattr(each, name) for each in batches]) for name in ("rewards", "solve_rates"))
    assert (rewards - exact).sum().abs() < 4 * (exact * (1 - exact)).sum().sqrt()
    assert_close(exact[:64], training.solve_rates()[batches[0].prompts])


def test_expected_brier_is_that_of_answers():
    predicted, success = torch.tensor([0.2, 0.9]).double(), torch.tensor([0.5, 1.0]).double()
    assert expected_brier(predicted, success) == pytest.approx(((0.5 * 0.64 + 0.5 * 0.04) + 0.01) / 2)


def test_ranks_that_are_equal_share_their_mean():
    one, other = torch.tensor([0.1, 0.5, 0.5, 0.9]).double(), torch.tensor([3.0, 1.0, 2.0, 4.0]).double()
    assert spearman(one, other) == pytest.approx(1.5 / (4.5 * 5) ** 0.5)  # ranks 1, 2.5, 2.5, 4 and 3, 1, 2, 4
    assert spearman(one, one.exp()) == pytest.approx(1.0) and np.isnan(spearman(torch.ones(4).double(), one))


def test_a_sample_follows_the_distribution_to_its_edges():
    log_probs = torch.tensor([0.25, 0.0, 0.75]).double().log()
    assert sample(log_probs, np.array([0.0, 0.2499, 0.25, 0.999999999999])).tolist() == [0, 0, 2, 2]


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [False, True])
def test_the_expected_policy_gradient_is_that_of_the_exact_solve_rate(baseline):
    """Over all sequences of all prompts, weighed by their chance; SPPO's baseline, whatever it says, changes nothing."""
    training = updated(sequences(), 2)
    world, prompts = training.world, torch.arange(6)
    tokens = torch.tensor(list(itertools.product(range(3), repeat=3))).repeat(6, 1)
    rows = prompts.repeat_interleave(27)
    log_probs = training.log_probs(rows, tokens)
    chances = log_probs.detach().sum(-1).exp()
    rewards = (tokens == world.answers[rows]).all(-1).double()
    predicted = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.0, 1.0]).double()[rows]
    advantages = (sppo.advantages(rewards, predicted) if baseline else rewards) * chances * 27
    mask = torch.ones_like(tokens, dtype=torch.bool)
    loss, _ = policy_loss.clipped(log_probs, log_probs.detach(), advantages, mask)
    (gradient,) = torch.autograd.grad(loss, [training.policy["w"]])
    start = training.policy["w"].detach()
    expected = numerical_gradient(lambda w: world.solve_rates(w)[prompts].mean(), start)
    assert_close(gradient, -expected / 3, atol=1e-9, rtol=1e-6)  # the mean over three tokens


def test_the_expected_gradient_of_the_shared_policy_is_that_of_exact_pass_at_1():
    training = updated(strategies(), 10)
    world, old = training.world, training.log_probs().detach()
    tokens = torch.arange(40).repeat(200).unsqueeze(-1)
    rewards = world.solves.double().view(-1, 1) - world.success(old).repeat_interleave(40).unsqueeze(-1)
    loss = training.batch_loss(old, tokens, rewards * old.exp()[tokens] * 40)
    (gradient,) = torch.autograd.grad(loss, [training.policy["logits"]])
    start = training.policy["logits"].detach()
    expected = numerical_gradient(lambda logits: world.success(logits.log_softmax(-1)).mean(), start)
    assert_close(gradient, -expected, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "extra"),
    [
        ({"kl_on": "all", "beta": 0.3}, lambda t, wrong: 0.3 * t.clamp(max=10).mean()),
        ({"kl_on": "wrong", "beta": 0.3}, lambda t, wrong: 0.3 * (t * wrong).mean()),
        ({"loss": "anchored", "push": 1.0, "pull": 0.0}, lambda t, wrong: 0.0),
    ],
)
def test_what_is_added_to_grpo(settings, extra):
    plain, other = updated(strategies(), 10), strategies(**settings)
    other.policy.load(plain.policy.state())
    old, tokens = plain.log_probs().detach(), torch.tensor([[0], [3], [7], [1]])
    advantages = torch.tensor([[1.0], [-0.5], [-1.5], [1.0]]).double()
    d = (old - plain.reference)[tokens]
    expected = plain.batch_loss(old, tokens, advantages) + extra((-d).exp() + d - 1, advantages < 0)
    assert_close(other.batch_loss(old, tokens, advantages), expected)


def test_the_entropy_bonus_is_the_entropy():
    plain, other = strategies(), strategies(entropy=0.2)
    old, tokens = plain.log_probs().detach(), torch.tensor([[0], [3]])
    advantages = torch.tensor([[1.0], [-1.0]]).double()
    entropy = torch.distributions.Categorical(logits=old).entropy()
    bonus = plain.batch_loss(old, tokens, advantages) - other.batch_loss(old, tokens, advantages)
    assert_close(bonus, 0.2 * entropy)


# --- budgets and arms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "prompts", "samples"), [("sppo", 64, 1), ("grpo", 8, 8), ("remax", 32, 1)])
def test_every_method_spends_the_same_generations(method, prompts, samples):
    world = worlds_sequences.World.make(7)
    training = worlds_sequences.Training(world, method, learning_rate=0.1, seed=3)
    batch = training.roll_out()
    assert len(batch.prompts.unique()) == prompts and len(batch.prompts) == prompts * samples
    assert len(batch.prompts) * (2 if method == "remax" else 1) == worlds_sequences.GENERATIONS
    assert training.generated_tokens == 384


def test_what_each_baseline_is():
    training = sequences("grpo")
    batch = training.roll_out()
    groups = batch.rewards.view(8, 8)
    rule = worlds_sequences.RULES
    assert 0 < groups.mean() < 1
    assert_close(rule["dr-grpo"](batch), (groups - groups.mean(1, keepdim=True)).flatten())
    assert_close(rule["rloo"](batch), rule["dr-grpo"](batch) * 8 / 7)
    assert_close(rule["oracle"](batch), batch.rewards - training.solve_rates()[batch.prompts])
    assert_close(rule["batch-mean"](batch), batch.rewards - batch.rewards.mean())
    assert_close(rule["remax"](batch), batch.rewards - batch.greedy_rewards)
    assert rule["reinforce++"](batch).std() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("method", ["sppo", "ppo-bce", "running-mean"])
def test_advantages_are_taken_before_the_critic_learns(method, monkeypatch):
    """Afterwards the label has leaked into the prediction."""
    training, called = sequences(method), []
    for name in ("advantages", "learn"):
        function = getattr(training.estimator, name)
        monkeypatch.setattr(training.estimator, name, lambda batch, f=function, n=name: (called.append(n), f(batch))[1])
    training.update()
    assert called == ["advantages", "learn"]


def test_a_running_mean_is_of_what_came_before():
    training = sequences("running-mean")
    first = training.roll_out()
    assert_close(training.estimator.advantages(first), first.rewards - 0.5)
    training.estimator.learn(first)
    training.done = 1
    second = training.roll_out()
    before = torch.zeros(64).double().index_add(0, first.prompts, first.rewards)
    assert_close(training.estimator.advantages(second), second.rewards - (before[second.prompts] + 0.5) / 2)


def test_the_critic_of_tokens_reads_what_was_said_before_and_nothing_after():
    training = updated(sequences("ppo-gae"), 5)
    tokens = torch.tensor([[0, 1, 2], [0, 1, 0], [0, 2, 2], [1, 1, 2]])
    values = training.estimator.outputs(torch.full((4,), 9), tokens).detach()
    assert (values[:, 0] == values[0, 0]).all() and values[0, 1] == values[1, 1] == values[2, 1]
    assert values[0, 1] != values[3, 1] and values[0, 2] == values[1, 2] != values[2, 2]
    assert training.estimator.parameters == 3 * 8 * 3 + 3 * 8


def test_every_seed_has_the_same_start_and_the_same_to_gain():
    for seed in range(5):
        world = worlds_strategies.World.make(seed)
        counts = world.solves.sum(0)
        assert (
            sorted(counts[:8].tolist()) == sorted(worlds_strategies.RATES) and counts[0] == 64 and not counts[8:].any()
        )
        assert world.solves.any(1).all()
        assert world.reference.sum().item() == pytest.approx(1.0) and world.reference[0] == 0.85
    assert not torch.equal(worlds_strategies.World.make(0).solves, worlds_strategies.World.make(1).solves)


def test_returned_counts_only_what_had_fallen():
    training = strategies(learning_rate=0.0)
    assert np.isnan(training.returned())
    training.policy["logits"].data[[2, 3]] -= 20.0
    training.update()
    assert training.returned() == 0.0
    training.policy["logits"].data[2] += 20.0
    assert training.returned() == 0.5


def test_rewards_of_the_habit_world():
    world = worlds_habit.World.make(7)
    prompt = torch.tensor([5, 5, 5, 5])
    right = int(world.answers[5])
    wrong = (right + 1) % 12
    actions = torch.tensor([2 * right + 1, 2 * right, 2 * wrong + 1, 2 * wrong])
    assert world.rewards(prompt, actions).tolist() == [2.25, 0.0, 0.25, -2.0]
    assert world.right_actions[5] == 2 * right + 1


def test_the_habit_dominates_at_the_start():
    training = habit()
    assert (training.logits(torch.arange(64))[0].argmax(-1) == worlds_habit.HABIT).double().mean() > 0.9
    assert training.zero_advantages == training.distinct_rewards == 0  # of no batch yet
    assert 0.01 < training.success().mean() < 0.1 and training.greedy()[1].double().mean() > 0.9


def test_success_and_greed_of_each_prompt():
    """By a loop over prompts, with weights that prefer other actions to each."""
    training = habit()
    generator = torch.Generator().manual_seed(1)
    training.policy["w"].data.copy_(3 * torch.randn(24, 32, generator=generator, dtype=torch.float64))
    success, (right, wrong_format) = training.success(), training.greedy()
    likeliest = set()
    for prompt in range(64):
        z = (training.policy["w"] @ training.world.features[prompt]).tolist()
        wanted = 2 * int(training.world.answers[prompt]) + 1
        assert success[prompt].item() == pytest.approx(math.exp(z[wanted]) / sum(map(math.exp, z)))
        best = max(range(24), key=z.__getitem__)
        assert bool(right[prompt]) is (best == wanted) and bool(wrong_format[prompt]) is (best % 2 == 0)
        likeliest.add(best)
    assert len(likeliest) > 10


def test_the_bonus_is_the_mean_entropy_of_what_learns(monkeypatch):
    losses = []
    for entropy in (0.0, 0.5):
        training = habit(entropy=entropy, temperature=2.0)
        monkeypatch.setattr(training.policy, "step", lambda loss, *names: losses.append(loss.item()))
        training.update()
    prompts = torch.from_numpy(draws(3, worlds_habit.UPDATE, 0).permutation(64)[:8])
    p = (training.logits(prompts)[0] / 2).softmax(-1)
    assert losses[1] - losses[0] == pytest.approx(0.5 * (p * p.log()).sum(-1).mean().item())


def test_a_head_that_says_nothing_leaves_grpo_bit_for_bit():
    silent = updated(habit(head="task", stages="head", head_rate=0.0, head_updates=2, policy_updates=3), 5)
    plain = habit()
    plain.done = 2
    updated(plain, 3)
    assert torch.equal(silent.policy["w"], plain.policy["w"]) and torch.equal(silent.policy["b"], plain.policy["b"])
    assert not torch.equal(plain.policy["w"], plain.world.start)


def test_each_stage_moves_its_own_part_only():
    training = habit(head="rarity", stages="head", head_updates=2, policy_updates=2)

    def parts():
        tensors = {**training.policy.tensors, **training.rollout_head.tensors}
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    moved = []
    for _ in range(4):
        before = parts()
        training.update()
        moved.append({name for name, tensor in parts().items() if not torch.equal(tensor, before[name])})
    assert moved == [{"w2"}, {"w1", "w2"}, {"b", "w"}, {"b", "w"}]
    assert training.divergence() > 0
    staged = updated(habit(stages="frozen-output", head_updates=1, policy_updates=2), 1)
    output = staged.policy["w"].detach().clone()
    assert not torch.equal(output, staged.world.start)
    updated(staged, 2)
    assert torch.equal(staged.policy["w"], output)


def test_what_the_head_sampled_teaches_the_base_logits():
    """The first step of Adam is the sign of the gradient, here in closed form; the KL is at its minimum and has none."""
    training = habit(head="random")
    random = draws(3, worlds_habit.UPDATE, 0)
    prompts = torch.from_numpy(random.permutation(64)[:8]).repeat_interleave(8)
    z, u = training.logits(prompts)
    actions = sample((z + u).log_softmax(-1), random.random(64))
    rewards = training.world.rewards(prompts, actions).view(8, 8)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    errors = torch.nn.functional.one_hot(actions, 24) - z.detach().softmax(-1)
    gradient = -(advantages.view(-1, 1) * errors).T @ training.world.features[prompts]
    training.update()
    moved = training.policy["w"].detach() - training.world.start
    clear = gradient.abs() > 1e-6
    assert clear.any() and torch.equal(moved[clear].sign(), -gradient[clear].sign())
    assert moved[~clear].abs().max() < 1e-8  # actions that no group sampled; a KL of the rollouts would move them


def test_a_random_head_and_a_temperature_change_what_is_sampled_and_not_what_users_get():
    plain, noisy, warm = habit(), habit(head="random"), habit(temperature=2.0)
    assert_close(plain.success(), noisy.success())
    assert_close(plain.success(), warm.success())
    assert plain.divergence() == 0 and noisy.divergence() > 0.05 and warm.divergence() > 0.05


# --- the same again -------------------------------------------------------------------------------------------------


def same(one, other):
    """Whether two nested states hold the same bits."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return all(map(same, one, other)) if isinstance(one, tuple | list) else one == other


MADE = [
    *((sequences, {"method": method}) for method in ("sppo", "ppo-gae", "running-mean", "grpo")),
    *((strategies, each) for each in ({}, {"loss": "anchored"})),
    *((habit, each) for each in ({}, {"head": "task", "stages": "head", "head_updates": 2, "policy_updates": 2})),
]


@pytest.mark.parametrize(("make", "settings"), MADE)
def test_the_same_seed_gives_the_same_bytes_and_a_resumed_run_as_well(make, settings, tmp_path):
    whole = updated(make(**settings), 5)
    stopped = updated(make(**settings), 3)
    save_state(tmp_path / "stopped", stopped.state())
    resumed = make(**settings)
    resumed.load(load_state(tmp_path / "stopped"))
    assert same(updated(resumed, 2).state(), whole.state())
    assert not same(updated(make(seed=4, **settings), 5).state(), whole.state())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(method):
    training = sequences(method, learning_rate=0.2)
    before = training.solve_rates().mean()
    assert updated(training, 12).solve_rates().mean() > before + 0.05


def test_draws_of_another_purpose_are_others():
    assert draws(3, 1, 2).random() == draws(3, 1, 2).random() != draws(3, 1, 3).random() != draws(3, 0, 3).random()


def test_a_learner_moves_what_is_named():
    learner = Learner(0.1, a=torch.ones(2).double(), b=torch.ones(2).double())
    learner.step((learner["a"] * learner["b"]).sum(), "b")
    assert learner["a"].tolist() == [1, 1] and learner["b"].tolist() == pytest.approx([0.9, 0.9])


def test_a_learner_is_adam():
    learner, theirs = Learner(0.05, a=torch.tensor([1.0, -2.0]).double()), torch.tensor([1.0, -2.0]).double()
    adam = torch.optim.Adam([theirs.requires_grad_()], lr=0.05)
    for scale in (1.0, -3.0, 0.5, 0.0):
        learner.step((scale * learner["a"] ** 3).sum())
        adam.zero_grad()
        (scale * theirs**3).sum().backward()
        adam.step()
    assert_close(learner["a"], theirs)


def test_the_world_of_sequences_is_what_it_says():
    """By its parts: a constant, an ease, a direction scaled by it; a teacher whom the start knows but for some noise."""
    sizes = {"prompts": 300, "features": 20, "vocabulary": 5, "tokens": 4}
    known, noisy = (worlds_sequences.World.make(3, **sizes, skill=2.0, errors=errors) for errors in (0.0, 0.5))
    x = known.features * math.sqrt(20)
    ease, direction = x[:, 1], x[:, 2:] / x[:, 1:2]
    assert_close(x[:, 0], torch.ones(300).double())
    assert 0.5 <= ease.min() < 0.52 and 1.98 < ease.max() <= 2.0 and abs(ease.mean() - 1.25) < 0.1
    assert direction.shape == (300, 18) and abs(direction.std() - 1) < 0.03 and abs(direction.mean()) < 0.05
    assert torch.equal(known.features, noisy.features) and torch.equal(known.answers, noisy.answers)
    teacher = known.start / 2
    assert known.start.shape == (4, 20, 5) and abs(teacher.std() - 1) < 0.1
    assert torch.equal(torch.einsum("pd,tdv->ptv", known.features, teacher).argmax(-1), known.answers)
    noise = (noisy.start - known.start) / 2
    assert abs(noise.std() - 0.5) < 0.06 and abs(noise.mean()) < 0.08
    assert known.solve_rates(known.start).mean() > noisy.solve_rates(noisy.start).mean()


def test_critics_have_the_features_that_they_are_given():
    assert sequences("sppo", critic_share=0.25).estimator.parameters == 2
    assert sequences("sppo").estimator.parameters == 8 and sequences("grpo").estimator.parameters == 0
    training = updated(sequences("sppo", critic_share=0.5), 2)
    weights = training.estimator.learner["w"].detach()
    assert weights.shape == (4,) and (weights != 0).all()
    assert_close(training.estimator.predictions(), (training.world.features[:, :4] @ weights).sigmoid())
    for method in ("ppo-gae", "ppo-bce"):
        critic = updated(sequences(method), 2).estimator
        said = critic.outputs(torch.arange(64), torch.zeros(64, 3, dtype=torch.long))[:, 0].detach()
        assert_close(critic.predictions(), said.sigmoid() if method == "ppo-bce" else said.clamp(0, 1))
