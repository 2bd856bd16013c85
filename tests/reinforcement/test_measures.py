"""What is measured before and after: Pass@k against all draws, intervals by group, and what `solve` asks a model."""

from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.core.statistics import item_interval
from equipoise.data.problems import Problem
from equipoise.language.rollouts import roll_out
from equipoise.reinforcement.measures import Solved, clusters, solve
from reinforcement_world import PROBLEMS, model, odd

REWARDS = np.array([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], float)


def solved(rewards, greedy=(1, 0, 1), groups=(0, 1, 2)):
    rewards = np.array(rewards, float)
    texts = tuple(f"answer {place}" for place in range(len(rewards)))
    return Solved(rewards, rewards + 4, np.array(greedy, float), np.array(groups), texts, 1, 40)


def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_right_response():
    found = solved(REWARDS).per_problem()
    shown = ["greedy_accuracy", "pass@1", "pass@2", "pass@4", "pass@5"]
    assert list(solved(REWARDS).estimates()) == shown  # every reward is 0 or 1
    for k in (1, 2, 4, 5):
        draws = [[max(draw) for draw in combinations(row, k)] for row in REWARDS.tolist()]
        assert found[f"pass@{k}"] == pytest.approx([np.mean(row) for row in draws])
    assert found["greedy_accuracy"].tolist() == [1, 0, 1]


def test_a_response_is_right_with_the_full_reward_alone_and_parts_are_shown_as_reward():
    found = solved([[0.99, 1.0], [0.5, 0.25]], greedy=(0.99, 1), groups=(0, 1)).per_problem()
    assert found["pass@1"].tolist() == [0.5, 0] and found["pass@2"].tolist() == [1, 0]
    assert found["greedy_accuracy"].tolist() == [0, 1]
    assert found["reward"] == pytest.approx([0.995, 0.375])


def test_changes_are_paired_and_clustered():
    before, after = solved(REWARDS, groups=(0, 0, 1)), solved(1 - REWARDS, greedy=(1, 1, 1), groups=(0, 0, 1))
    change = after.changes(before)["pass@1"]
    expected = item_interval(np.array([0.6 - 0.4, 1, -1]), np.array([0, 0, 1]))
    assert (change.value, change.lower, change.upper) == (expected.estimate, expected.lower, expected.upper)
    assert change.value == pytest.approx(0.2 / 3)


@pytest.mark.parametrize(("then", "now"), [(0.0, 0.6), (0.6, 0.0), (1.0, 0.6), (0.25, 0.75)])
def test_a_graded_reward_is_judged_where_one_of_both_measurements_has_no_grade(then, now):
    before, after = (solved(np.full((40, 4), each), (0,) * 40, range(40)) for each in (then, now))
    change = after.changes(before)["reward"]
    assert change.value == change.lower == change.upper == pytest.approx(now - then)
    assert before.estimates(after)["reward"].value == pytest.approx(then)
    assert after.estimates(before)["reward"].value == pytest.approx(now)
    assert before.estimates(after).keys() == after.estimates(before).keys() == after.changes(before).keys()


def test_rewards_that_are_not_what_is_right_are_told_though_they_are_0_and_1():
    paid = replace(solved(REWARDS), right=REWARDS < 0)
    assert paid.estimates()["reward"].value == pytest.approx(REWARDS.mean()) and paid.estimates()["pass@1"].value == 0
    assert "reward" not in replace(paid, right=REWARDS == 1).estimates()


def test_a_share_that_is_of_one_measurement_alone_does_not_vanish():
    with_part = replace(solved(REWARDS), shares={"success/b": np.array([1.0, np.nan, 0.0])})
    for before, after in ((solved(REWARDS), with_part), (with_part, solved(REWARDS))):
        assert np.isnan(after.changes(before)["success/b"].value)
        both = before.estimates(after)["success/b"].value, after.estimates(before)["success/b"].value
        assert sum(np.isnan(both)) == 1 and np.nansum(both) == 0.5


def test_the_interval_of_a_share_stays_within_0_and_1():
    found = solved(np.ones((6, 2)), greedy=(1,) * 6, groups=range(6)).estimates()
    for name in ("greedy_accuracy", "pass@1", "pass@2"):
        assert found[name].value == found[name].upper == 1 and 0.5 < found[name].lower < 0.7, name
    beyond = solved(np.array([[2.0, -1.0], [0.0, 3.0]]), greedy=(1, 0), groups=(0, 1)).estimates()
    assert beyond["reward"].value == 1 and beyond["reward"].upper > 1


def test_what_is_stored_is_what_comes_back():
    one = solved(REWARDS)
    two = Solved.of(one.state())
    assert two.estimates() == one.estimates() and two.texts == one.texts and (two.missing, two.tokens) == (1, 40)


def test_problems_of_one_group_are_one_cluster_and_a_group_is_no_id():
    asked = [Problem("a", "x", ("1",), group="g"), Problem("g", "y", ("1",)), Problem("b", "z", ("1",), group="g")]
    assert clusters(asked).tolist() == [0, 1, 0]


def test_solve_samples_and_judges_what_the_model_writes():
    language_model, asked = model(), [problem.prompt for problem in PROBLEMS]
    found = solve(language_model, PROBLEMS, odd, samples=3, max_new_tokens=5, temperature=0.7, seed=9, batch_size=4)
    limits = {"max_new_tokens": 5}
    sampled = roll_out(language_model, asked, samples=3, temperature=0.7, seed=[9, 5], **limits)
    likeliest = roll_out(language_model, asked, samples=1, temperature=0.0, seed=0, **limits)
    assert found.rewards.flatten().tolist() == odd(None, sampled.texts) and 0 < found.rewards.mean() < 1
    assert found.greedy.tolist() == odd(None, likeliest.texts)
    assert found.texts == tuple(likeliest.texts)
    assert found.lengths.flatten().tolist() == sampled.lengths.tolist()
    assert found.tokens == int(sampled.mask.sum() + likeliest.mask.sum())


def test_of_another_s_tokens_nothing_need_be_known():
    def generate(prompts, samples, temperature, seed):
        return ["a"] * samples * len(prompts), None

    found = solve(None, PROBLEMS, odd, samples=2, max_new_tokens=1, temperature=1, seed=0, generate=generate)  # type: ignore[arg-type]
    assert np.isnan(found.lengths).all() and found.tokens == 0 and found.greedy.all()


def test_another_may_write_and_what_cannot_be_judged_counts_as_wrong():
    calls = []

    def generate(prompts, samples, temperature, seed):
        calls.append(SimpleNamespace(prompts=list(prompts), samples=samples, temperature=temperature, seed=seed))
        texts = [f"{prompt}{number}" for prompt in prompts for number in range(samples)]
        return texts, [[5] * 7] * len(texts)

    def reward(problems, texts):
        assert [text[:-1] for text in texts] == [problem.prompt for problem in problems]
        return [float("nan") if text.endswith("1") else 1.0 for text in texts]

    found = solve(None, PROBLEMS[:2], reward, samples=2, max_new_tokens=1, temperature=0.5, seed=3, generate=generate)  # type: ignore[arg-type]
    assert found.rewards.tolist() == [[1, 0], [1, 0]] and found.missing == 2 and found.tokens == 6 * 7
    assert [(call.samples, call.temperature) for call in calls] == [(2, 0.5), (1, 0.0)]
