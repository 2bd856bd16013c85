"""Entropy as a reward for calls: by hand, by loops over single trajectories, by enumeration, and inside the loop."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.language.confidence import Bounds, entropy, entropy_bounds
from equipoise.reinforcement import entropy_tools, group_baselines
from equipoise.reinforcement.entropy_tools import (
    call_effects,
    changes,
    copied,
    copy_rate,
    outcome_reward,
    over_tokens,
    pooled_advantages,
    process_rewards,
    reduced,
    segment_entropy,
)

NAN = math.nan


def random_trajectories(rows=40, width=60, seed=0):
    """Entropies and segments as a model's turns give them: segment, call (-1), observation (-1), the next segment."""
    draw = torch.Generator().manual_seed(seed)
    entropies = torch.rand(rows, width, generator=draw, dtype=torch.float64)
    segments = torch.full((rows, width), -1)
    for row in range(rows):
        place, number = 0, 0
        while place < width - row % 7:
            length = int(torch.randint(0, 12, (1,), generator=draw))
            segments[row, place : place + length] = number
            place, number = place + length + 4, number + 1
        segments[row, width - row % 7 :] = -1
    return entropies, segments


def by_loops(entropies, segments, least=5):
    """One trajectory: the means of its segments and which are joined, written as the words say it."""
    last = max((s for s in segments if s >= 0), default=-1)
    parts = [[e for e, s in zip(entropies, segments, strict=True) if s == k] for k in range(last + 1)]
    groups, joined = [], []
    for part in parts:
        join = bool(groups) and (len(part) < least or len(groups[-1]) < least)
        joined.append(join)
        if join:
            groups[-1].extend(part)
        else:
            groups.append(list(part))
    of_group, number = [], -1
    for join in joined:
        number += not join
        of_group.append(number)
    return [sum(groups[g]) / len(groups[g]) if groups[g] else NAN for g in of_group], joined


def test_segment_means_against_loops_over_single_trajectories():
    entropies, segments = random_trajectories()
    entropies[segments < 0] = NAN  # what is in no segment is not read
    found = segment_entropy(entropies, segments)
    for row in range(len(entropies)):
        means, joined = by_loops(entropies[row].tolist(), segments[row].tolist())
        assert_close(found.means[row, : len(means)], torch.tensor(means, dtype=torch.float64), equal_nan=True)
        assert found.means[row, len(means) :].isnan().all()
        assert found.joined[row, : len(joined)].tolist() == joined
        alone = segment_entropy(entropies[row], segments[row])  # a trajectory's means do not depend on its company
        assert_close(alone.means, found.means[row, : len(means)], rtol=0, atol=0, equal_nan=True)
    assert found.joined.any()
    assert (~found.joined[:, 1:]).any()


def test_short_segments_make_their_calls_neutral():
    #          r_0: 5 tokens      r_1: 4 tokens   r_2: 6 tokens
    segments = torch.tensor([[0, 0, 0, 0, 0, -1, 1, 1, 1, 1, -1, 2, 2, 2, 2, 2, 2]])
    entropies = torch.tensor([[2.0, 2, 2, 2, 2, 9, 1, 1, 1, 1, 9, 1, 1, 1, 1, 1, 1]])
    found = segment_entropy(entropies, segments)
    assert found.means.tolist() == [[14 / 9, 14 / 9, 1.0]]
    assert found.tokens.tolist() == [[5, 4, 6]]
    assert found.joined.tolist() == [[False, True, False]]
    effects = call_effects(entropies, segments)
    assert effects.reduced.tolist() == [[False, True]]
    assert effects.counted.tolist() == [[False, True]]
    assert call_effects(entropies, segments, least=4).reduced.tolist() == [[True, False]]
    # A first segment that is short is joined with the next, until both are long enough.
    first = segment_entropy(entropies, torch.tensor([[0, 0, -1, 1, 1, -1, 2, 2, 2, 2, -1, 3, 3, 3, 3, 3, 3]]))
    assert first.joined.tolist() == [[False, True, True, False]]


def test_a_call_that_ended_its_trajectory_is_neutral():
    entropies, segments = torch.rand(1, 12), torch.tensor([[0] * 6 + [-1] + [1] * 5])
    effects = call_effects(entropies, segments, calls=3)
    assert effects.counted.tolist() == [[True, False, False]]
    empty = call_effects(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.int64), calls=1)
    assert empty.counted.tolist() == [[False], [False]]


@pytest.mark.parametrize("against", ["previous", "first", "running-minimum"])
@pytest.mark.parametrize("relative", [False, True])
def test_changes_by_hand(against, relative):
    means = torch.tensor([[2.0, 1.0, 3.0, 1.5, NAN]], dtype=torch.float64)
    base = {"previous": [2, 1, 3, 1.5], "first": [2, 2, 2, 2], "running-minimum": [2, 1, 1, 1]}[against]
    expected = [(h - b) / (b + 1e-8 if relative else 1) for h, b in zip(means[0, 1:].tolist(), base, strict=True)]
    found = changes(means, against=against, relative=relative)
    assert_close(found, torch.tensor([expected], dtype=torch.float64), equal_nan=True)


def test_the_margin_is_exceeded_not_met():
    change = torch.tensor([-0.5, -0.25, 0.0, NAN])
    assert reduced(change).reduced.tolist() == [True, True, False, False]
    assert reduced(change, margin=0.25).reduced.tolist() == [True, False, False, False]
    assert reduced(change).counted.tolist() == [True, True, True, False]
    with pytest.raises(BadInput, match="margin is -1"):
        reduced(change, margin=-1)


def test_words_are_closed():
    with pytest.raises(BadInput, match="against"):
        changes(torch.zeros(1, 2), against="last")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no_call"):
        outcome_reward(1.0, [True], no_call="none")  # type: ignore[arg-type]


@pytest.mark.parametrize("against", ["previous", "first", "running-minimum"])
@pytest.mark.parametrize("relative", [False, True])
def test_bounds_decide_only_what_every_completion_of_them_agrees_on(against, relative):
    """Whatever the true entropies of tokens are between the bounds, a decided call is decided alike for them."""
    draw = torch.Generator().manual_seed(3)
    _, segments = random_trajectories(rows=12)
    lower = torch.rand(segments.shape, generator=draw, dtype=torch.float64)
    upper = lower + 0.3 * torch.rand(segments.shape, generator=draw, dtype=torch.float64)
    how = {"against": against, "relative": relative, "margin": 0.01}
    decided = call_effects(Bounds(lower, upper), segments, **how)
    agreed = torch.ones_like(decided.counted)
    for each in range(60):
        share = torch.rand(segments.shape, generator=draw, dtype=torch.float64)
        if each % 2:  # whole segments at one of their ends, as the bounds of a mean are reached
            side = torch.rand(segments.shape[0], 20, generator=draw, dtype=torch.float64).round()
            share = side.gather(1, segments.clamp(min=0))
        true = call_effects(lower + share * (upper - lower), segments, **how)
        agreed &= true.reduced == decided.reduced
        assert (true.counted | ~decided.counted).all()
    assert (agreed | ~decided.counted).all()
    assert decided.counted.any()
    assert (~decided.counted & true.counted).any()
    same = call_effects(Bounds(lower, lower), segments, **how)
    assert (same.reduced == call_effects(lower, segments, **how).reduced).all()


def test_bounds_from_the_likeliest_tokens():
    """All of the vocabulary gives the entropies themselves; few of it leave the close call open."""
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 18, 30, generator=draw, dtype=torch.float64)
    logits[:, 6:12] *= 6  # r_1 is surer by far
    logits[:, 12:] = logits[:, 6:12] * 0.999  # r_2 as sure as r_1, all but
    segments = torch.arange(3).repeat_interleave(6).unsqueeze(0)
    top = logits.log_softmax(-1).sort(-1, descending=True).values
    whole = call_effects(entropy_bounds(top, 30), segments)
    assert whole.counted.all()
    assert whole.reduced.tolist() == call_effects(entropy(logits), segments).reduced.tolist() == [[True, False]]
    some = call_effects(entropy_bounds(top[..., :5], 30), segments)
    assert some.counted.tolist() == [[True, False]]
    assert some.reduced.tolist() == [[True, False]]


def test_entropy_of_uniform_and_certain_tokens():
    for size in (2, 50, 49_152):
        assert_close(entropy(torch.zeros(3, size)), torch.full((3,), math.log(size)))
    certain = torch.full((4,), -math.inf)
    certain[2] = 0.0
    assert entropy(certain).item() == 0.0
    # By exhaustive sampling of a toy: the mean of -log p over outcomes, each as often as it comes.
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    outcomes = [0, 0, 1, 2]
    assert_close(entropy(p.log()).item(), sum(-math.log(p[each]) for each in outcomes) / 4)


def test_a_sharper_model_is_rewarded_for_the_same_text():
    """What the signal is: confidence. Logits scaled up behind a call flip its indicator, with no token changed."""
    logits = torch.randn(1, 12, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:, :6] *= 1.5
    segments = torch.tensor([[0] * 6 + [1] * 6])
    assert call_effects(entropy(logits), segments).reduced.tolist() == [[False]]
    logits[:, 6:] *= 4
    assert call_effects(entropy(logits), segments).reduced.tolist() == [[True]]


EVERY = [list(each) for length in range(1, 6) for each in itertools.product([False, True], repeat=length)]


def test_outcome_reward_in_every_case_of_up_to_five_calls():
    for flags in EVERY:
        for score in (0.0, 0.3, 1.0):
            found = outcome_reward(score, flags).item()
            assert 0 <= found <= score
            assert (found == score) == (all(flags) or score == 0)
            assert found == pytest.approx(score * sum(flags) / len(flags))
            assert outcome_reward(score, flags[::-1]).item() == found
            n = len(flags)
            assert outcome_reward(score, [*flags, False]).item() == pytest.approx(found * n / (n + 1))


def test_outcome_reward_of_many_leaves_neutral_calls_out():
    score = torch.tensor([0.8, 0.6, 1.0, 0.5], dtype=torch.float64)
    helped = torch.tensor([[True, False, True], [True, True, True], [False, False, False], [True, True, False]])
    counted = torch.tensor([[True, True, False], [False, False, False], [False, False, False], [True, True, True]])
    found = {
        rule: outcome_reward(score, helped, counted=counted, no_call=rule, default=0.25).tolist()
        for rule in ("full", "zero", "task-default")
    }
    assert found["full"] == pytest.approx([0.4, 0.6, 1.0, 1 / 3])
    assert found["zero"] == pytest.approx([0.4, 0.0, 0.0, 1 / 3])
    assert found["task-default"] == pytest.approx([0.4, 0.15, 0.25, 1 / 3])
    own = outcome_reward(score, helped, counted=counted, no_call="task-default", default=torch.tensor([1, 0.5, 0, 1]))
    assert own.tolist() == pytest.approx([0.4, 0.3, 0.0, 1 / 3])
    assert outcome_reward(0.7, []).item() == 0.7
    for wrong in (None, 1.5, NAN):
        with pytest.raises(BadInput, match="default"):
            outcome_reward(1.0, [True], no_call="task-default", default=wrong)


def test_process_rewards():
    assert process_rewards(0.8, [True, False, True]).tolist() == pytest.approx([1.2, 0.8, 1.2, 0.8])
    assert process_rewards(0.0, [True, True]).tolist() == [0, 0, 0]
    assert process_rewards(0.5, [True, False], alpha=0).tolist() == [0.5, 0.5, 0.5]
    counted = torch.tensor([[True, False], [False, True]])
    many = process_rewards(torch.tensor([1.0, 0.5]), torch.ones(2, 2, dtype=torch.bool), alpha=0.2, counted=counted)
    assert_close(many, torch.tensor([[1.2, NAN, 1.0], [NAN, 0.6, 0.5]]), equal_nan=True)
    for alpha in (-0.1, math.inf, NAN):
        with pytest.raises(BadInput, match="alpha"):
            process_rewards(1.0, [True], alpha=alpha)


def test_pooled_advantages_against_the_plain_formula():
    draw = torch.Generator().manual_seed(5)
    score = torch.rand(3, 4, generator=draw, dtype=torch.float64)
    helped, counted = (torch.rand(3, 4, 5, generator=draw) < share for share in (0.5, 0.7))
    rewards = process_rewards(score, helped, counted=counted)
    found = pooled_advantages(rewards)
    for question in range(3):
        pool = [value for row in rewards[question].tolist() for value in row if not math.isnan(value)]
        mean = sum(pool) / len(pool)
        spread = math.sqrt(sum((value - mean) ** 2 for value in pool) / (len(pool) - 1)) + 1e-6
        for row in range(4):
            for call in range(6):
                value = rewards[question, row, call].item()
                value = score[question, row].item() if math.isnan(value) else value
                assert found[question, row, call].item() == pytest.approx((value - mean) / spread)
    sums = found.where(~rewards.isnan(), 0).sum((1, 2))
    assert_close(sums, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_equal_rewards_of_a_pool_are_exactly_no_advantage():
    rewards = process_rewards(torch.full((1, 9), 1 / 3), torch.zeros(1, 9, 3, dtype=torch.bool))
    assert pooled_advantages(rewards).abs().max().item() == 0.0
    wrong = process_rewards(torch.zeros(1, 3), torch.ones(1, 3, 2, dtype=torch.bool))  # all wrong: nothing is learnt
    assert pooled_advantages(wrong).abs().max().item() == 0.0


def test_without_a_bonus_and_with_one_call_it_is_grpo():
    score = torch.tensor([[1.0, 0.0, 0.25, 0.5], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    rewards = process_rewards(score, torch.ones(2, 4, 1, dtype=torch.bool), alpha=0.0)
    expected = group_baselines.grpo(score).unsqueeze(-1).expand(2, 4, 2)
    assert_close(pooled_advantages(rewards, answer=False), expected)
    twice = pooled_advantages(rewards)  # with the answers in the pool every score is there twice: another ddof alone
    assert_close(twice, expected * math.sqrt(7 / 6), rtol=1e-5, atol=0)
    # Unequal numbers of calls: a long trajectory weighs more in the pool's mean.
    counted = torch.tensor([[[True, True, True], [False, False, False]]])
    long = pooled_advantages(process_rewards(torch.tensor([[1.0, 0.0]]), counted, alpha=0.0, counted=counted))
    assert long[0, 0, 0] < -long[0, 1, 3]


def test_no_call_at_all_leaves_the_answers_as_the_pool():
    rewards = process_rewards(torch.tensor([[1.0, 0.0, 0.0]]), torch.zeros(1, 3, 0, dtype=torch.bool))
    expected = group_baselines.grpo(torch.tensor([[1.0, 0.0, 0.0]]))
    for answer in (True, False):
        assert_close(pooled_advantages(rewards, answer=answer)[..., 0], expected)


def test_advantages_go_to_the_tokens_that_led_to_each_call():
    advantages = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    steps = torch.tensor([[0, 0, -1, 1, 1, -1, 2], [0, -1, 1, 1, 1, -1, -1], [0, 0, 0, -1, -1, -1, -1]])
    found = over_tokens(advantages, steps, torch.tensor([2, 1, 0]))
    assert found.tolist() == [[1, 1, 0, 2, 2, 0, 3], [4, 0, 6, 6, 6, 0, 0], [9, 9, 9, 0, 0, 0, 0]]


def test_copied_tokens_against_a_search_in_each_trajectory():
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 8, (25, 40), generator=draw)
    kind = torch.tensor([0] * 6 + [-1] * 2 + [-2] * 8 + [1] * 8 + [-1] * 2 + [-2] * 6 + [2] * 8)
    segments, observed = kind.clamp(min=-1).expand(25, 40), (kind == -2).expand(25, 40)
    for n in (1, 2, 3, 4):
        found = copied(ids, segments, observed, n=n)
        for row, tokens in enumerate(ids.tolist()):
            expected = [False] * 40
            for begin in range(41 - n):
                own = {int(each) for each in kind[begin : begin + n]}
                if len(own) > 1 or min(own) < 0:
                    continue
                earlier = [
                    tokens[other : other + n] for other in range(begin) if set(kind[other : other + n].tolist()) == {-2}
                ]
                if tokens[begin : begin + n] in earlier:
                    expected[begin : begin + n] = [True] * n
            assert found[row].tolist() == expected
        rate = copy_rate(ids, segments, observed, n=n)
        assert rate[:, 0].tolist() == [0] * 25  # nothing was told before the first
        assert_close(rate[:, 2], found[:, 32:].double().mean(-1))
    assert copied(ids, segments, observed, n=41).sum() == 0
    with pytest.raises(BadInput, match="n is 0"):
        copied(ids, segments, observed, n=0)


def test_no_gradient_flows_through_entropies_or_scores():
    entropies = torch.rand(2, 12, requires_grad=True)
    segments = torch.tensor([[0] * 6 + [1] * 6, [0] * 5 + [-1] + [1] * 6])
    score = torch.rand(2, requires_grad=True)
    found = segment_entropy(entropies, segments)
    effects = call_effects(entropies, segments)
    for each in (
        found.means,
        outcome_reward(score, effects.reduced, counted=effects.counted),
        process_rewards(score, effects.reduced, counted=effects.counted),
    ):
        assert not each.requires_grad


def test_ten_thousand_calls_in_one_go():
    """No assertion of a time, but of the shape that the audit needs: one call of many trajectories, long ones among them."""
    entropies, segments = random_trajectories(rows=1, width=300)
    many = call_effects(entropies.expand(500, -1), segments.expand(500, -1))
    assert many.reduced.shape == (500, int(segments.max()))
    assert (many.reduced == many.reduced[:1]).all()
    assert entropy_tools.copied(
        segments.expand(500, -1) + 1, segments.expand(500, -1), segments.expand(500, -1) < 0
    ).shape
