"""The loop: what every method logs and moves, its identities, resume bit by bit, equal trajectories for every split."""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.state import load_state
from equipoise.data.problems import Problem
from equipoise.data.records import Record
from equipoise.language import adapters, rollouts
from equipoise.language.rollouts import roll_out, score_responses
from equipoise.language.tiny import teach, tiny
from equipoise.reinforcement import ppo, stages, training
from equipoise.reinforcement.critic import Critic
from equipoise.reinforcement.r2po import RolloutHead
from equipoise.reinforcement.recipe import METHODS, recipe
from equipoise.reinforcement.training import train
from equipoise.training.loop import Optimization
from ports import free_port
from reinforcement_world import ALL, PROBLEMS, SMALL, copied, equal, model, odd, reinforced, weights


@cache
def plain(method):
    return reinforced(method)


@pytest.fixture
def ratios(monkeypatch):
    """The largest |log ratio| of each pass in which old log-probabilities were given."""
    found = []

    def noting(model, batch, **asked):
        scores = score_responses(model, batch, **asked)
        if "old_log_probs" in batch:
            found.append((scores.log_probs - batch["old_log_probs"])[batch["mask"]].abs().max().item())
        return scores

    monkeypatch.setattr(stages, "score_responses", noting)
    return found


def test_every_preset_has_been_thought_of():
    assert set(ALL) == set(METHODS) and len(ALL) == 14


# The others differ from these in what they compute the advantage from, which no ratio sees.
QUICK_METHODS = ("grpo", "sppo", "ppo", "apo", "r2po", "reinforce++-baseline")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in QUICK_METHODS else pytest.mark.slow) for name in ALL]
)
def test_the_first_ratio_is_one(method, ratios):
    """Exactly where a batch is one optimizer step; within rounding where it is several and the sampler's numbers are old."""
    found = plain(method)
    for metrics in found.metrics:
        assert metrics["ratio"] == 1.0 and metrics["approximate_kl"] == 0.0
        assert metrics["clip_fraction_low"] == metrics["clip_fraction_high"] == metrics["dual_clip_fraction"] == 0.0
        assert metrics["sampler_gap"] < (0.1 if method == "r2po" else 1e-5)
    start = weights(model().model)
    assert found.result.moved > 0.9 and not any(torch.equal(found.weights[name], start[name]) for name in start)
    assert not ratios
    size = -(-found.recipe.responses // 3)
    cut = reinforced(method, batch_size=size)
    assert cut.recipe.updates == 3 and len(ratios) == 6
    assert max(ratios[0], ratios[3]) < 1e-5 < 1e-4 < min(ratios[2], ratios[5])


def test_dropout_is_off_in_what_is_learnt(ratios):
    """Else the policy that learns is not the one that sampled."""
    language_model = model()
    for block in language_model.model.model.layers:
        block.self_attn.attention_dropout = 0.5
    found = reinforced("ppo", language_model=language_model, batch_size=1, steps=1)
    assert ratios[0] < 1e-5 and found.recipe.updates == 3
    assert not language_model.model.training and not found.critic.training and not found.critic.body.training


def test_apo_without_push_and_pull_is_grpo():
    grpo, own = plain("grpo"), {"aggregate": "seq-mean-token-mean"}
    assert equal(reinforced("apo", push=1.0, pull=0.0, **own).weights, grpo.weights)
    assert not equal(reinforced("apo", **own).weights, grpo.weights)


def test_sppo_is_ppo_with_a_value_that_is_the_prompts():
    """Unwhitened GAE with gamma = lam = 1, bit for bit through the loop, with a batch of several optimizer steps."""

    def by_gae(recipe, step):
        mask = step.rollouts.mask
        values = step.success_probability.repeat_interleave(recipe.samples).unsqueeze(-1).expand(mask.shape)
        advantages, _ = ppo.gae(ppo.token_rewards(step.rewards.flatten(), mask), values, mask)
        return stages.replace(step, advantages=advantages)

    settings = {"batch_size": 2, "num_generations": 2}
    found, expected = reinforced("sppo", how={"weigh": by_gae}, **settings), reinforced("sppo", **settings)
    assert equal(found.weights, expected.weights) and equal(weights(found.critic), weights(expected.critic))
    assert [each["loss"] for each in found.metrics] == [each["loss"] for each in expected.metrics]


def test_r2po_with_a_head_that_says_nothing_is_grpo():
    """u is below the last bit of z: the same samples, the same loss, the same bits."""
    silent = reinforced("r2po", head="random", head_scale=1e-35)
    grpo = reinforced("r2po", head="none")
    assert equal(silent.weights, grpo.weights) and [m["loss"] for m in silent.metrics] == [
        m["loss"] for m in grpo.metrics
    ]
    loud = reinforced("r2po", head="random", head_scale=5.0)
    assert (
        not equal(loud.weights, grpo.weights)
        and loud.metrics[0]["sampler_kl"] > 0.01 > 1e-9 > grpo.metrics[0]["sampler_kl"]
    )


def test_stages_of_r2po_move_their_own_part():
    """Head, policy, head, policy: the other part is the same bits, answers do not see the head, W2 begins before W1."""
    language_model, seen, after = model(), [], []

    def look_at(state):
        head = language_model.model.get_output_embeddings()
        assert isinstance(head, RolloutHead) and not head.active
        own = {name: getattr(head, name).detach().clone() for name in ("first", "second")}
        rest = {n: p for n, p in weights(language_model.model).items() if not n.endswith((".first", ".second"))}
        seen.append((state.step.stage, own, rest))
        after.append(roll_out(language_model, ["yes"], samples=2, max_new_tokens=5, temperature=1.0, seed=0).log_probs)

    start = {"first": None, "second": None}

    def note(recipe, step):
        head = language_model.model.get_output_embeddings()
        if step.index == 0:
            start.update({name: getattr(head, name).detach().clone() for name in start})
        return stages.weigh(recipe, step)

    before = weights(language_model.model)
    found = reinforced(
        "r2po", language_model=language_model, steps=4, learning_rate=1e-2, how={"callbacks": [look_at], "weigh": note}
    )
    assert [stage for stage, _, _ in seen] == ["head", "policy", "head", "policy"]
    (_, head1, rest1), (_, head2, rest2), (_, head3, rest3), (_, head4, rest4) = seen
    assert torch.equal(start["first"], head1["first"]) and not start["second"].any() and head1["second"].any()
    assert [rest1[name.replace("lm_head.", "lm_head.base.")] for name in before] and equal(
        {name.replace("lm_head.base", "lm_head"): each for name, each in rest1.items()}, before
    )
    assert equal(head1, head2) and not equal(rest1, rest2)
    assert equal(rest2, rest3) and not torch.equal(head2["first"], head3["first"])
    assert equal(head3, head4) and not equal(rest3, rest4)
    assert torch.equal(after[1], after[2]) and not torch.equal(after[0], after[1])
    plain_head = language_model.model.get_output_embeddings()
    assert (
        type(plain_head) is torch.nn.Linear and plain_head.weight is language_model.model.get_input_embeddings().weight
    )
    assert found.result.steps == 4 and language_model.model.state_dict().keys() == model().model.state_dict().keys()


def test_each_schedule_runs_over_its_own_stage():
    """Of 6 steps 4 are the head's: a linear rate ends near 0 for both."""
    found = reinforced(
        "r2po", steps=6, head_steps=2, policy_steps=1, schedule="linear", learning_rate=8e-3, head_learning_rate=4e-3
    )
    rates = [metrics["learning_rate"] for metrics in found.metrics]
    assert rates == pytest.approx([4e-3, 3e-3, 8e-3, 2e-3, 1e-3, 4e-3])


KILLED = {
    "grpo": ("grpo", {"batch_size": 9}),
    "sppo": ("sppo", {}),
    "ppo": ("ppo", {"batch_size": 2}),
    "r2po": ("r2po", {}),
    "dapo": ("dapo", {"num_generations": 2, "prompts_per_step": 2}),
    "running mean": ("reinforce", {"advantage": "running-mean", "schedule": "linear"}),
    "remax with lora": ("remax", {"parameters": "lora", "lora_rank": 2}),
    "anchored, with a random head": ("apo", {"head": "random", "num_generations": 2, "importance_cap": 2.0}),
}


class Killed(BaseException):
    pass


QUICK = [("sppo", "update"), ("r2po", "rollout")]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        pytest.param(name, place, marks=[] if (name, place) in QUICK else pytest.mark.slow)
        for name in KILLED
        for place in ("rollout", "update")
    ],
)
def test_resumed_is_undisturbed(name, place, tmp_path, monkeypatch):
    """Ended within step 4 of 5, when step 2 was saved: the same bits, the same log, the same tokens spent."""
    method, settings = KILLED[name]
    settings = {"steps": 5, **settings}
    whole = reinforced(method, how={"log": tmp_path / "whole.jsonl"}, **settings)
    saved, done = [], []

    def reward(problems, texts):
        if place == "rollout" and len(done) == 3:
            raise Killed
        return odd(problems, texts)

    def update(self, *given):
        if place == "update" and len(done) == 3 and (whole.critic is None or self.model is not whole.critic):
            raise Killed
        return original(self, *given)

    original = Optimization.update
    how = {"log": tmp_path / "log.jsonl", "save_every": 2, "save": lambda state: saved.append(copied(state, tmp_path))}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Optimization, "update", update)
        reinforced(method, reward=reward, how={**how, "callbacks": [lambda state: done.append(state.done)]}, **settings)
    assert done == [1, 2, 3] and [state["step"] for state in saved] == [2]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    resumed = reinforced(method, how={**how, "state": saved[0]}, **settings)
    assert equal(resumed.weights, whole.weights)
    assert (tmp_path / "log.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert resumed.result == whole.result and resumed.result.steps == 5
    if whole.critic is not None:
        assert equal(weights(resumed.critic), weights(whole.critic))


def test_a_state_of_another_training_is_refused_and_nothing_is_touched(tmp_path):
    saved = []
    reinforced("grpo", how={"save": lambda state: saved.append(copied(state, tmp_path))})
    assert len(saved) == 1  # the last step
    for changes, sentence in (
        ({"temperature": 0.5}, "the stored training has temperature=1.0, this one temperature=0.5: start it anew."),
        ({"seed": 3}, "the stored training has seed=0, this one seed=3: start it anew."),
    ):
        language_model = model()
        with pytest.raises(BadInput) as caught:
            reinforced("grpo", language_model=language_model, how={"state": saved[0]}, **changes)
        assert str(caught.value) == sentence and equal(weights(language_model.model), weights(model().model))
    over = reinforced("grpo", how={"state": saved[0]}, micro_batch_size=5, rollout_batch_size=7)
    assert over.result.steps == 2 and over.metrics == [] and equal(over.weights, plain("grpo").weights)


def test_a_callback_ends_the_run(tmp_path):
    saved, seen = [], []
    stop = {"callbacks": [lambda state: state.done == 1, lambda state: seen.append(state.step.stage)]}
    found = reinforced("sppo", how={**stop, "save": lambda state: saved.append(copied(state, tmp_path))})
    assert found.result.stopped and found.result.steps == 1 and saved[0]["stopped"] and seen == ["policy"]
    again = reinforced("sppo", how={"state": saved[0]})
    assert again.result.stopped and again.result.steps == 1 and equal(again.weights, found.weights)


@cache
def in_double(name):
    return SPLIT[name]()


def run_of(method, **settings):
    return lambda **more: reinforced(method, language_model=model(dtype=torch.float64), steps=3, **{**settings, **more})


def near(found, expected):
    """A thousandth of a step on average: Adam makes whole steps of gradients that are nothing but rounding."""
    for key, value in expected.items():
        assert (found[key] - value).abs().mean() < 1e-6, key


SPLIT = {
    "grpo": run_of("grpo", batch_size=10),
    "sppo": run_of("sppo", num_generations=2),
    "ppo": run_of("ppo", kl_beta=0.1, kl_in="reward"),
    "apo": run_of("apo", entropy_beta=0.01, aggregate="seq-mean-token-sum-norm", overlong=2),
    "r2po": run_of("r2po"),
    "reinforce++-baseline": run_of("reinforce++-baseline", kl_beta=0.3),
    "lora": run_of("dapo", parameters="lora", learning_rate=1e-2),
}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        pytest.param(
            name,
            {"micro_batch_size": 2 if name in ("sppo", "ppo") else 5, "rollout_batch_size": 3},
            marks=[] if name == "sppo" else pytest.mark.slow,
        )
        for name in SPLIT
    ]
    + [
        pytest.param(name, split, marks=pytest.mark.slow)
        for name, split in (
            ("grpo", {"micro_batch_size": 1}),
            ("r2po", {"rollout_batch_size": 1}),
            ("sppo", {"micro_batch_size": 1}),
        )
    ],
)
def test_every_split_gives_one_trajectory(name, split):
    """Micro-batches of unequal numbers of tokens, rollouts in other company: weights and every number that is logged."""
    whole, found = in_double(name), SPLIT[name](**split)
    for one, two in zip(whole.metrics, found.metrics, strict=True):
        assert one == pytest.approx(two, rel=1e-5, abs=1e-6, nan_ok=True)
    assert len({int(length) for length in whole.steps[0].rollouts.lengths}) > 2
    near(found.weights, whole.weights)
    if whole.critic is not None:
        near(weights(found.critic), weights(whole.critic))


@pytest.mark.slow
def test_an_adapter_merged_or_not_says_the_same():
    found = in_double("lora")
    start = weights(model(dtype=torch.float64).model)
    assert all("lora_" in name for name, each in found.language_model.model.named_parameters() if each.requires_grad)
    asked = {"samples": 3, "max_new_tokens": 6, "temperature": 0.9, "seed": 1}
    before = roll_out(found.language_model, [each.prompt for each in PROBLEMS], **asked)
    merged = adapters.merge(found.language_model)
    after = roll_out(merged, [each.prompt for each in PROBLEMS], **asked)
    assert torch.equal(before.ids, after.ids)
    assert_close(before.log_probs, after.log_probs, rtol=0, atol=1e-10)
    assert not equal(weights(merged.model), start)


def test_a_head_beside_an_adapter():
    found = reinforced("r2po", parameters="lora", steps=4, learning_rate=1e-2)
    assert [step.stage for step in found.steps] == ["head", "policy"] * 2
    bare = found.language_model.model.get_base_model()
    assert type(bare.get_output_embeddings()) is torch.nn.Linear
    moved = {name for name, each in found.weights.items() if "lora_B" in name and each.any()}
    assert len(moved) == 14  # seven maps in each of two blocks


def test_only_groups_with_right_and_wrong_responses():
    """All right, all wrong, mixed: only the last is learnt from, and the cursor moves on."""
    kinds = [
        Problem(f"{kind}{n}", PROBLEMS[n].prompt, ("a",)) for n in range(5) for kind in ("right", "wrong", "mixed")
    ]

    def reward(problems, texts):
        count = {}
        found = []
        for problem in problems:
            count[problem.id] = count.get(problem.id, 0) + 1
            found.append({"right": 1.0, "wrong": 0.0, "mixed": float(count[problem.id] % 2)}[problem.id[:5]])
        return found

    found = reinforced("dapo", problems=kinds, reward=reward, num_generations=2, prompts_per_step=3, steps=4)
    drawn = 0
    for step, metrics in zip(found.steps, found.metrics, strict=True):
        assert [problem.id[:5] for problem in step.problems] == ["mixed"] * 3
        assert metrics["zero_advantage"] == 0.0 and 0 < metrics["distinct_rewards"] - 1 < 1
        keys = list(step.keys)
        assert keys == sorted(keys) and keys[0] >= drawn  # what was left of a batch that was needed in part is dropped
        drawn = -(-(keys[-1] + 1) // 3) * 3
    written = sum(int(step.rollouts.mask.sum()) for step in found.steps)
    assert found.result.generated_tokens == sum(m["generated_tokens"] for m in found.metrics) > 1.5 * written


def test_what_is_all_alike_ends_the_work():
    with pytest.raises(WorkFailed) as caught:
        reinforced("dapo", reward=lambda problems, texts: [1.0] * len(texts), num_generations=2)
    assert str(caught.value) == (
        "of 30 prompts none had right and wrong responses: nothing can be learnt from them. Use prompts nearer to what the "
        "model can do, more num_generations, or leave mixed_only out."
    )
    few = reinforced(
        "dapo",
        reward=lambda problems, texts: [float(p.id == "p0" and t < "m") for p, t in zip(problems, texts, strict=True)],
        problems=PROBLEMS[:2],
        prompts_per_step=9,
        steps=1,
    )
    assert {problem.id for problem in few.steps[0].problems} == {"p0"}


def test_right_answers_of_other_lengths_are_no_mixed_group():
    """DAPO's penalty on length comes after its choice of groups."""
    rewards = {"reward": lambda problems, texts: [1.0] * len(texts)}
    with pytest.raises(WorkFailed, match="none had right and wrong"):
        reinforced("dapo", num_generations=4, overlong=4, **rewards)
    found = reinforced("grpo", num_generations=4, overlong=4, **rewards)
    step = found.steps[0]
    expected = 1 + ((1 - step.rollouts.lengths.double()) / 4).clamp(-1, 0)
    assert_close(step.rewards.flatten().double(), expected, rtol=0, atol=1e-7)
    assert found.metrics[0]["reward"] == 1.0 and step.rewards.unique().numel() > 2


def test_the_running_mean_by_hand():
    """Of earlier steps alone, also where a problem comes twice in one; the step's own mean where there is none."""
    values = {"p0": [1.0, 0.0, 0.5, 0.0], "p1": [0.0, 0.25, 1.0, 1.0], "p2": [0.5, 1.0, 0.0, 0.75]}
    given = {name: iter(each) for name, each in values.items()}
    found = reinforced(
        "reinforce", advantage="running-mean", problems=PROBLEMS[:3], prompts_per_step=4, steps=3,
        reward=lambda problems, texts: [next(given[problem.id]) for problem in problems],
    )  # fmt: skip
    past = {name: [] for name in values}
    twice = 0
    for step in found.steps:
        names = [problem.id for problem in step.problems]
        rewards = step.rewards.flatten().tolist()
        expected = [sum(past[name]) / len(past[name]) if past[name] else sum(rewards) / 4 for name in names]
        assert step.baselines.tolist() == pytest.approx(expected)
        assert_close(step.advantages[:, 0], step.rewards[:, 0] - torch.tensor(expected))
        for name, reward in zip(names, rewards, strict=True):
            past[name].append(reward)
        twice += len(names) - len(set(names))
    assert twice == 3 and past == values


def test_a_problem_that_comes_twice_is_answered_anew():
    found = reinforced("sppo", problems=PROBLEMS[1:2], prompts_per_step=8, steps=2)
    answers = [tuple(row) for step in found.steps for row in step.rollouts.ids.tolist()]
    assert len(set(answers)) > 12


def test_tokens_of_greedy_answers_are_counted():
    found = reinforced("remax")
    for step, metrics in zip(found.steps, found.metrics, strict=True):
        assert metrics["generated_tokens"] == int(step.rollouts.mask.sum()) + int(step.greedy_lengths.sum())


def test_half_precision_learns_from_its_own_numbers(ratios, monkeypatch):
    """In bfloat16 sampler and trainer differ: the ratio is 1 all the same, and the gap is logged.

    Of whole rows: responses that share the reading of their prompt, as the sampler's do, may round alike.
    """
    monkeypatch.setattr(rollouts, "_shared_reading", lambda model, batch: None)
    one = reinforced("grpo", language_model=model(dtype=torch.bfloat16))
    assert all(metrics["ratio"] == 1.0 and metrics["sampler_gap"] > 0 for metrics in one.metrics) and not ratios
    several = reinforced("grpo", language_model=model(dtype=torch.bfloat16), batch_size=8, steps=1)
    step = several.steps[0]
    expected = (step.old_log_probs - step.rollouts.log_probs)[step.rollouts.mask].abs().mean().item()
    assert several.metrics[0]["sampler_gap"] == pytest.approx(expected, rel=1e-4) and expected > 0
    gap = (step.old_log_probs - step.rollouts.log_probs).abs().max().item()
    assert len(ratios) == 3 and ratios[0] < gap / 3
    assert step.rollouts.log_probs.dtype == torch.float32 and one.result.moved > 0


def test_the_wishes_of_a_stage_of_ones_own():
    """sample and weigh take the places of ours; what the step has is what is learnt from."""
    calls = []

    def sample(language_model, recipe, problems, keys, reward, index, head=None):
        calls.append((list(keys), [problem.id for problem in problems], index, head))
        step = stages.sample(language_model, recipe, problems, keys, reward, index, head)
        return stages.replace(step, rewards=torch.ones_like(step.rewards))

    def weigh(recipe, step):
        return stages.replace(step, advantages=torch.zeros_like(step.rewards))

    found = reinforced("sppo", how={"sample": sample, "weigh": weigh})
    assert [call[0] for call in calls] == [[0, 1, 2], [3, 4, 5]] and [call[2] for call in calls] == [0, 1]
    assert sorted(calls[0][1] + calls[1][1][:2]) == [problem.id for problem in PROBLEMS]
    assert [metrics["reward"] for metrics in found.metrics] == [1.0, 1.0]
    assert [metrics["zero_advantage"] for metrics in found.metrics] == [1.0, 1.0]
    assert equal(found.weights, weights(model().model)) and found.result.moved == 0.0  # a gradient of 0 moves nothing


def test_everything_is_left_as_it_was_found():
    language_model = model()
    language_model.model.train()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    critic = Critic.of(language_model, seed=0).train()
    reinforced("sppo", language_model=language_model, critic=critic)
    assert torch.equal(torch.rand(3), expected) and language_model.model.training and critic.training
    for each in (*language_model.model.parameters(), *critic.parameters()):
        assert each.requires_grad and each.grad is None
    with pytest.raises(Killed):
        reinforced(
            "r2po",
            language_model=language_model,
            reward=lambda problems, texts: exec("raise Killed", {"Killed": Killed}),
        )
    assert type(language_model.model.get_output_embeddings()) is torch.nn.Linear and language_model.model.training


@pytest.mark.parametrize(
    ("method", "how", "error", "sentence"),
    [
        ("grpo", {"problems": []}, BadInput, "there are no prompts to learn from."),
        ("grpo", {"reward": lambda p, t: [math.inf] * len(t)}, BadInput, "the reward of a response to problem 'p"),
        ("grpo", {"reward": lambda p, t: [1.0]}, BadInput, "the reward gave 1 numbers for 24 responses: it must give"),
        ("sppo", {"reward": lambda p, t: [2.0] * len(t)}, BadInput, r"rewards\[0\] is 2, expected a number in \[0, 1\]"),
        ("ppo-bce", {"reward": lambda p, t: [-1.0] * len(t)}, BadInput, r"rewards\[0\] is -1, expected a number in"),
        ("grpo", {"learning_rate": 1e30, "steps": 3}, WorkFailed, "is (nan|inf) at step"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_from(method, how, error, sentence):
    with pytest.raises(error, match=sentence):
        reinforced(method, **how)


def test_critics_where_they_belong():
    language_model = model()
    for method, critic, sentence in (
        ("sppo", None, "the advantage sppo needs a critic."),
        ("grpo", Critic.of(language_model, seed=0), "the advantage grpo has no critic."),
    ):
        with pytest.raises(BadInput) as caught:
            train(language_model, recipe(method, **SMALL), PROBLEMS, odd, critic=critic)
        assert str(caught.value) == sentence


def test_a_prompt_without_room_is_refused_before_the_first_step():
    asked = []
    problems = [*PROBLEMS, Problem("the long one", "one " * 130, ("a",))]
    with pytest.raises(
        BadInput, match=r"^Prompt 'the long one' has \d+ tokens; with 5 new ones that is more than the context"
    ):
        reinforced(
            "grpo", problems=problems, prompts_per_step=1, steps=1, reward=lambda p, t: asked.append(p) or odd(p, t)
        )
    assert not asked


def test_rewards_that_are_missing_count_as_none():
    found = reinforced("grpo", reward=lambda p, t: [math.nan if i % 3 == 0 else 1.0 for i in range(len(t))])
    assert [metrics["missing"] for metrics in found.metrics] == [8.0, 8.0]
    assert [metrics["reward"] for metrics in found.metrics] == pytest.approx([2 / 3] * 2)
    assert found.steps[0].missing.flatten().nonzero().flatten().tolist() == list(range(0, 24, 3))


def test_what_is_logged_of_a_step(tmp_path):
    found = reinforced("sppo", num_generations=2, how={"log": tmp_path / "log.jsonl"}, steps=1)
    step, metrics = found.steps[0], found.metrics[0]
    rolled, p = step.rollouts, step.success_probability
    assert metrics["reward"] == pytest.approx(step.rewards.mean().item())
    assert metrics["best_of_group"] == pytest.approx(step.rewards.max(-1).values.mean().item())
    assert metrics["length"] == pytest.approx(rolled.mask.sum().item() / 6)
    assert metrics["ended"] == pytest.approx(sum(rolled.ended.tolist()) / 6)
    assert metrics["entropy"] == pytest.approx((rolled.entropies.sum() / rolled.mask.sum()).item())
    assert metrics["critic_brier"] == pytest.approx(((p[:, None] - step.rewards) ** 2).mean().item())
    assert metrics["critic_mean"] == pytest.approx(p.mean().item())
    (row,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert row == {"step": 1, **metrics}


def sums():
    """Single-digit sums, and a model that has been taught two answers to each: about every second one is right."""
    pairs = [(a, b) for a in range(4) for b in range(4)]
    texts = [f"{a} + {b} = {c}" for a, b in pairs for c in (a + b, a + b + 1)]
    language_model = tiny(texts, seed=0, width=32, layers=2, heads=2, vocabulary=300)
    language_model.chat_template = "none"
    records = [Record(f"{a}{b}{c}", f"{a + b + c}", f"{a} + {b} =") for a, b in pairs for c in (0, 1)]
    teach(language_model, records, seed=0, epochs=40, learning_rate=1e-2)
    return language_model, [Problem(f"{a}+{b}", f"{a} + {b} =", (str(a + b),)) for a, b in pairs]


@cache
def taught():
    language_model, problems = sums()
    return weights(language_model.model), language_model, problems


@pytest.mark.parametrize("method", ["sppo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("grpo", "r2po"))])
def test_it_learns(method):
    """The mean reward of the last steps is above that of the first ones by far more than its standard error."""
    start, language_model, problems = taught()
    with torch.no_grad():
        for name, parameter in language_model.model.named_parameters():
            parameter.copy_(start[name])
    rows, samples = 128, 1 if method == "sppo" else 8
    settings = {"prompts_per_step": rows // samples, "num_generations": samples, "steps": 22, "max_new_tokens": 2}
    settings |= {"learning_rate": 2e-3}
    if method == "r2po":
        settings |= {"head_steps": 1, "policy_steps": 6, "kl_beta": 0.0, "head_learning_rate": 2e-4}
    found = reinforced(
        method, language_model=language_model, problems=problems, **settings,
        reward=lambda asked, texts: [float(text == each.gold[0]) for each, text in zip(asked, texts, strict=True)],
    )  # fmt: skip
    rewards = [metrics["reward"] for metrics in found.metrics]
    before, after = sum(rewards[:3]) / 3, sum(rewards[-3:]) / 3
    assert 0.2 < before < 0.75 and after - before > 4 * math.sqrt(2 * 0.25 / (3 * rows)), rewards


IN_PROCESSES = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from equipoise.core.state import save_state
from reinforcement_world import PROBLEMS, model, reinforced, weights

accelerator = Accelerator(cpu=True)
folder = Path(sys.argv[1])
RUNS = {
    "grpo": ("grpo", {"batch_size": 9, "micro_batch_size": 2}),
    "apo": ("apo", {"num_generations": 3}),
    "sppo": ("sppo", {"batch_size": 2}),  # a last update of one row: nothing for the second process
    "one prompt": ("remax", {"prompts_per_step": 1}),
    "dapo": ("dapo", {"num_generations": 2, "overlong": 2}),
    "r2po": ("r2po", {}),
    "running mean": ("reinforce", {"advantage": "running-mean", "num_generations": 2}),
}
for name, (method, settings) in RUNS.items():
    found = reinforced(
        method, language_model=model(dtype=torch.float64), steps=3, **settings,
        how={"accelerator": accelerator, "log": folder / f"{name}.jsonl"},
    )
    of_critic = {} if found.critic is None else weights(found.critic)
    save_state(folder / f"{name}.{accelerator.process_index}", {"policy": found.weights, "critic": of_critic})
"""


def environment():
    root = Path(__file__).parents[2]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root / 'src'}:{root / 'tests'}"}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(IN_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    for count, command in (("1", [sys.executable]), ("2", launch)):
        (tmp_path / count).mkdir()
        done = subprocess.run(
            [*command, str(script), str(tmp_path / count)],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    names = [path.stem for path in (tmp_path / "1").glob("*.jsonl")]
    assert len(names) == 7
    for name in names:
        expected = load_state(tmp_path / "1" / f"{name}.0")
        for process in (0, 1):
            for part, ended in load_state(tmp_path / "2" / f"{name}.{process}").items():
                near(ended, expected[part])
        rows = [
            [json.loads(line) for line in (tmp_path / count / f"{name}.jsonl").read_text().splitlines()]
            for count in "12"
        ]
        assert len(rows[0]) == 3
        for one, two in zip(*rows, strict=True):
            assert two == pytest.approx(one, rel=1e-5, abs=1e-6)


KILL = """
import os, signal, sys
from pathlib import Path
import torch
from safetensors import safe_open
from equipoise.core.state import load_state, save_state
from equipoise.training.loop import Optimization
from reinforcement_world import odd, reinforced, weights

folder, (method, place) = Path(sys.argv[1]), sys.argv[2].split(",")
settings = {"steps": 4, "num_generations": 2, "batch_size": 3}
reinforced(method)  # whatever is made on first use


def forked(work):
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(name, state=None, die=False):
    done = []

    def kill(where):
        if die and place == where and len(done) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    def reward(problems, texts):
        kill("rollout")
        return odd(problems, texts)

    def update(self, *given):
        numbers = original(self, *given)
        kill("update")
        return numbers

    original, Optimization.update = Optimization.update, update
    found = reinforced(method, reward=reward, **settings, how={
        "log": folder / f"{name}.jsonl", "callbacks": [lambda reached: done.append(reached.done)], "state": state,
        "save_every": 2, "save": lambda state: save_state(folder / f"{name}.state", state),
    })
    critic = {} if found.critic is None else weights(found.critic)
    save_state(folder / f"{name}.end", {"policy": found.weights, "critic": critic})


def digest(file):  # over all that is in it; safetensors writes the two entries of its metadata in any order
    with safe_open(file, framework="numpy") as opened:
        return opened.metadata()["equipoise_sha256"]


assert forked(lambda: run("whole")) == 0
assert forked(lambda: run("cut", die=True)) == -signal.SIGKILL
assert len((folder / "cut.jsonl").read_text().splitlines()) == 2 and not (folder / "cut.end").exists()
assert forked(lambda: run("cut", state=load_state(folder / "cut.state"))) == 0
assert (folder / "cut.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
for ending in ("end", "state"):
    assert digest(folder / f"cut.{ending}") == digest(folder / f"whole.{ending}"), ending
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["sppo,rollout", "r2po,update", "dapo,rollout", "grpo,update"])
def test_killed_and_resumed_is_undisturbed(killed, tmp_path):
    """SIGKILL in a process of its own: the same bytes of the weights, the log and the last state."""
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(tmp_path), killed],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_was_chosen_is_the_main_processs(monkeypatch):
    asked = []

    def broadcast(objects, src):
        asked.append((list(objects), src))
        objects[0] = [7, 8]

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)

    def agreed(processes):
        return training._Loop._agreed(SimpleNamespace(accelerator=SimpleNamespace(num_processes=processes)), [3, 4])

    assert agreed(1) == [3, 4] and asked == []
    assert agreed(2) == [7, 8] and asked == [([[3, 4]], 0)]


def test_a_step_goes_to_another_device_whole():
    @dataclass
    class Step:
        rollouts: object
        notes: dict
        index: int
        rewards: object = None
        missing: object = None
        greedy_rewards: object = None
        greedy_lengths: object = None
        off_policy: object = None

    rollouts = SimpleNamespace(to=lambda device: ("rollouts", device))
    given = {name: torch.ones(2) for name in ("rewards", "missing", "greedy_rewards", "off_policy")}
    moved = training._on(Step(rollouts, {"a": torch.ones(3)}, 5, **given), "meta")
    assert moved.rollouts == ("rollouts", "meta") and moved.index == 5 and moved.greedy_lengths is None
    assert {getattr(moved, name).device.type for name in given} == {"meta"} and moved.notes["a"].is_meta


@pytest.mark.parametrize(
    ("mixed_only", "batches", "drawn"),
    [(True, [2, 1, 3], 2), (True, [3, 3], 1), (True, [2, 0, 0, 1, 3], 4), (True, [0] * 12, 10), (False, [0, 3], 1)],
)
def test_batches_are_drawn_until_as_many_prompts_can_teach(monkeypatch, mixed_only, batches, drawn):
    """Of each batch of three prompts so many have right and wrong responses."""
    parts = iter(
        SimpleNamespace(rewards=torch.tensor([[0.0, float(place < mixed)] for place in range(3)])) for mixed in batches
    )
    loop = SimpleNamespace(
        recipe=SimpleNamespace(mixed_only=mixed_only, prompts_per_step=3), drawn=0,
        selection=SimpleNamespace(next=lambda drawn: []), _agreed=list, _together=lambda index, places: next(parts),
    )  # fmt: skip
    monkeypatch.setattr(training, "_joined", list)
    assert len(training._Loop._sampled(loop, 0)) == drawn


@pytest.mark.parametrize(("save_every", "steps"), [(2, [2, 4, 5]), (None, [5]), (5, [5])])
def test_a_state_is_saved_every_so_many_steps_and_at_the_end(save_every, steps):
    saved = []
    how = {"save": lambda state: saved.append(state["step"]), "save_every": save_every}
    reinforced("grpo", how=how, steps=5, prompts_per_step=1, num_generations=2, max_new_tokens=2)
    assert saved == steps


def test_what_a_problem_was_worth_is_its_mean_so_far():
    """Of a problem that is new the mean of the step; what came now counts from the next step on."""
    loop = SimpleNamespace(places={5: 0, 6: 2}, past={2: (3.0, 4)})
    step = SimpleNamespace(rewards=torch.tensor([[1.0, 0.0], [1.0, 1.0]]), keys=(5, 6))
    assert training._Loop._running_means(loop, step).tolist() == [0.75, 0.75]
    assert loop.past == {0: (1.0, 2), 2: (5.0, 6)}
    assert training._Loop._running_means(loop, step).tolist() == pytest.approx([0.5, 5 / 6])


def test_what_was_written_for_a_step():
    rolled = SimpleNamespace(
        lengths=torch.tensor([2, 3, 1, 2]), ended=torch.tensor([True, False, True, True]), episodes=(),
        entropies=torch.tensor([[1.0, 2.0, 0.0]] * 4),
        mask=torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool(),
    )  # fmt: skip
    step = SimpleNamespace(
        rollouts=rolled, rewards=torch.tensor([[0.0, 1.0], [0.5, 0.5]]), missing=torch.tensor([[True, False], [True, True]]),
        greedy_lengths=torch.tensor([4, 5]),
        notes={"probe_tokens": torch.tensor([3.0, math.nan]), "hard": torch.tensor([1.0, math.nan])},
    )  # fmt: skip
    assert training._of_rollouts(step) == {
        "reward": 0.5, "best_of_group": 0.75, "length": 2.0, "ended": 0.75, "entropy": 1.5, "distinct_rewards": 1.5,
        "missing": 3.0, "generated_tokens": 8 + 9 + 3, "probe_tokens": 3.0, "hard": 1.0,
    }  # fmt: skip
    step.token_advantages = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [2.0, 0.0]])
    step.success_probability = torch.tensor([0.5, 0.25])
    assert training._of_learning(step) == {
        "zero_advantage": 0.5, "critic_brier": pytest.approx((0.25 + 0.25 + 2 * 0.0625) / 4), "critic_mean": 0.375,
    }  # fmt: skip
