"""Entropy as a reward for calls: by hand, by loops over single trajectories, by enumeration, and inside the loop."""

import copy
import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

import reinforcement_world
from equipoise.core.errors import BadInput
from equipoise.data.environment import open_environment
from equipoise.language.confidence import Bounds, entropy, entropy_bounds
from equipoise.reinforcement import entropy_tools, group_baselines, stages
from equipoise.reinforcement.entropy_tools import (
    ToolReward,
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
    segmented,
)
from equipoise.reinforcement.playing import Playing, no_reward
from equipoise.reinforcement.recipe import recipe
from equipoise.reinforcement.training import prepare, train
from reinforcement_world import equal, model, weights

NAN = math.nan


def random_trajectories(rows=14, width=60, seed=0):
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


def test_means_of_entropies_carry_no_gradients_into_an_advantage():
    entropies, segments = random_trajectories()
    assert not segment_entropy(entropies.requires_grad_(), segments).means.requires_grad


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
    nothing = torch.zeros(2, 0)
    assert segment_entropy(nothing, nothing.long(), count=0).means.shape == (
        2,
        1,
    )  # one segment at least, without a mean


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


EVERY = [list(each) for length in range(1, 5) for each in itertools.product([False, True], repeat=length)]


def test_outcome_reward_in_every_case_of_up_to_four_calls():
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


def test_a_score_below_zero_is_neither_softened_nor_raised():
    for flags in ([True, False], [False, False], []):
        assert outcome_reward(-0.5, flags, no_call="zero").item() == -0.5
        assert process_rewards(-0.5, flags).tolist() == [-0.5] * (len(flags) + 1)


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


def test_only_a_question_without_a_call_has_its_answers_in_the_pool():
    """The first has calls, which alone are its pool: 1.5 and 0; of the second, answers 1 and 0."""
    rewards = torch.tensor([[[1.5, 1.0], [0.0, 0.0]], [[NAN, 1.0], [NAN, 0.0]]], dtype=torch.float64)
    found = pooled_advantages(rewards, answer=False, epsilon=0.0)
    one, other = math.sqrt(0.5), 0.25 / math.sqrt(1.125)
    expected = torch.tensor([[[one, other], [-one, -one]], [[one, one], [-one, -one]]], dtype=torch.float64)
    assert_close(found, expected)


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


# In the loop.

SETTINGS = {
    "steps": 2,
    "prompts_per_step": 2,
    "num_generations": 3,
    "max_new_tokens": 9,
    "learning_rate": 1e-3,
    "seed": 3,
}


class Half:
    """Whatever is written is a call from its middle on, in all turns but the last; a seed's number is its calls, 1 to 3."""

    reply = "Kunwick was born in"

    def reset(self, seed):
        self.left = seed % 4
        return f"one two {seed}"

    def step(self, text):
        self.left -= 1
        if self.left < 0:
            return "", float(len(text) % 3), True, {"no_call": 0.5}
        actions = [{"name": "half", "arguments": {}}]
        return self.reply, 0.0, False, {"owner": "tool", "actions": actions, "call_at": len(text) // 2}


class Other(Half):
    """The same but for what it says, in as many tokens."""

    reply = "Mulum two one one"


def playing(make=Half, **changes):
    return Playing(open_environment(make), max_turns=4, **changes)


@pytest.fixture(scope="module")
def untaught():
    return model()


def played(language_model, make=Half, temperature=1.0):
    stage = playing(make)
    limits = {"max_new_tokens": 9, "temperature": temperature, "seed": 5}
    return stage.play(language_model, stage.problems([1, 3, 2, 4]), samples=2, **limits)


def of_prompt(rollouts, row):
    return list(rollouts.prompts[row // rollouts.samples])


def test_segments_calls_and_observations_give_back_the_episode(untaught):
    rollouts = played(untaught)
    found = segmented(untaught, rollouts)
    assert found.calls.tolist() == [1, 1, 3, 3, 2, 2, 0, 0]
    thought, called = found.segments >= 0, (found.steps >= 0) & (found.segments < 0)
    assert torch.equal(thought.int() + called.int() + found.observed.int(), rollouts.present.int())
    assert torch.equal(thought | called, rollouts.mask)
    for row, episode in enumerate(rollouts.episodes):
        said = []
        for number, turn in enumerate(episode.turns):
            ids, segments = (each[row, turn.begin : turn.end].tolist() for each in (rollouts.ids, found.segments))
            assert set(found.steps[row, turn.begin : turn.end].tolist()) == {number}
            count = segments.index(-1) if -1 in segments else len(ids)
            assert segments == [number] * count + [-1] * (len(ids) - count)
            # The reasoning is the most tokens that are over before the call begins.
            at = turn.info.get("call_at", math.inf)
            lengths = [
                len(untaught.tokenizer.decode(ids[:n], skip_special_tokens=True).removeprefix(" "))
                for n in range(len(ids) + 1)
            ]
            assert lengths[count] <= at and (count == len(ids) or lengths[count + 1] > at)
            said += [*ids, *rollouts.ids[row, turn.end : turn.stop].tolist()]
        assert said == rollouts.ids[row][rollouts.present[row]].tolist()


def test_where_a_call_begins_is_read_where_nobody_tells(untaught):
    """By the tag, and by the object that is one; a turn with actions in a syntax of its own is call from its beginning."""
    tokenizer = untaught.tokenizer
    said = ['one two three <tool_call>{"name": "x", "arguments": {}}</tool_call>', "one {} two", "three ?x", "yes"]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in said]
    turns, begin = [], 0
    for text, each in zip(said, ids, strict=True):
        info = {} if text == "yes" else {"actions": [{"name": "x", "arguments": {}}]}
        turns.append(SimpleNamespace(text=text, info=info, begin=begin, end=begin + len(each), stop=begin + len(each)))
        begin += len(each)
    turns[1].info = {}
    row = torch.tensor([[token for each in ids for token in each]])
    rollouts = SimpleNamespace(
        episodes=[SimpleNamespace(turns=turns)], ids=row, present=row > -1, mask=row > -1
    )  # fmt: skip
    found = segmented(untaught, rollouts)  # type: ignore[arg-type]
    first = tokenizer("one two three ", add_special_tokens=False).input_ids
    first = first if ids[0][: len(first)] == first else first[:-1]  # the blank may belong to what follows
    parts = [found.segments[0, turn.begin : turn.end].tolist() for turn in turns]
    assert parts[0] == [0] * len(first) + [-1] * (len(ids[0]) - len(first))
    assert parts[1:] == [[1] * len(ids[1]), [-1] * len(ids[2]), [2] * len(ids[3])]
    assert found.calls.tolist() == [2]
    assert [entropy_tools._call_at(turn) for turn in turns] == [len("one two three "), None, 0, None]
    with pytest.raises(BadInput, match="no episodes"):
        segmented(untaught, SimpleNamespace(episodes=()))  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_entropies_are_those_at_temperature_one(untaught, temperature, monkeypatch):
    """Against the logits of each row alone; and in chunks as at once."""
    rollouts = played(untaught, temperature=temperature)
    rewards = ToolReward(untaught, recipe("grpo", **SETTINGS, temperature=temperature))
    found = rewards.entropies(rollouts)
    assert (found is rollouts.entropies) == (temperature == 1)
    for row in range(len(found)):
        prompt, ids = of_prompt(rollouts, row), rollouts.ids[row][rollouts.present[row]]
        with torch.no_grad():
            logits = untaught.model(torch.tensor([prompt + ids.tolist()])).logits[0, len(prompt) - 1 : -1]
        expected = entropy(logits).where(rollouts.mask[row][: len(ids)], 0)
        assert_close(found[row][: len(ids)], expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(stages, "_AT_ONCE", 3)
    again = ToolReward(untaught, recipe("grpo", **SETTINGS, temperature=0.9)).entropies(rollouts)
    assert_close(again, found, rtol=1e-5, atol=1e-5)
    assert (again[~rollouts.mask] == 0).all()


def test_a_reference_decides_in_place_of_the_policy(untaught):
    rollouts = played(untaught)
    other = copy.deepcopy(untaught.model)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(0)
    uniform = ToolReward(untaught, recipe("grpo", **SETTINGS), reference=other, least=1)
    vocabulary = math.log(untaught.vocabulary)
    assert_close(uniform.entropies(rollouts)[rollouts.mask], torch.full((int(rollouts.mask.sum()),), vocabulary))
    effects, _ = uniform.effects(rollouts)
    assert (
        not ToolReward(untaught, recipe("grpo", **SETTINGS), reference=other, margin=1e-4)
        .effects(rollouts)[0]
        .reduced.any()
    )
    assert effects.counted.any()


def test_outcome_rewards_of_episodes(untaught):
    rollouts = played(untaught)
    for rule, alone in (("full", 1.0), ("zero", 0.0), ("task-default", 0.5)):
        rewards = ToolReward(untaught, recipe("grpo", **SETTINGS), no_call=rule, least=2)
        shaped = rewards.shape(rollouts)
        effects, found = rewards.effects(rollouts)
        assert effects.counted.shape == (8, 3)
        for row, episode in enumerate(rollouts.episodes):
            means = []
            for number in range(int(found.calls[row]) + 1):
                means.append(rollouts.entropies[row][found.segments[row] == number].double().mean().item())
            m = sum(bool(x) for x in effects.reduced[row])
            n = sum(bool(x) for x in effects.counted[row])
            assert shaped[row].item() == pytest.approx(episode.score * (m / n if n else alone))
            for call in range(int(found.calls[row])):
                if effects.counted[row, call] and not (found.segments[row] == call).sum() < 2:
                    assert bool(effects.reduced[row, call]) == (means[call + 1] < means[call])
        assert rewards.last["calls"] == 1.5
        assert rewards.last["neutral"] == pytest.approx(1 - int(effects.counted.sum()) / 12)
    assert Playing(open_environment(Half), max_turns=4, shape=rewards.shape).rewards(rollouts).dtype == torch.float32


def test_copies_are_left_out_on_request(untaught):
    rollouts = played(untaught)
    row = next(row for row, episode in enumerate(rollouts.episodes) if len(episode.turns) > 2)
    second = rollouts.episodes[row].turns[1]
    told = rollouts.ids[row, second.begin - 4 : second.begin]
    ids = rollouts.ids.clone()
    ids[row, second.begin : second.begin + 4] = told  # the model repeats the end of the reply before it
    quoting = replace(rollouts, ids=ids)
    rewards = ToolReward(untaught, recipe("grpo", **SETTINGS), least=1)
    _, found = rewards.effects(quoting)
    segment = int((found.segments[row] == 1).sum())
    assert rewards.last["copied"] > 0 and segment >= 3
    left_out = replace(rewards, leave_copies_out=True).effects(quoting)[0]
    kept = segment_entropy(
        quoting.entropies, found.segments.masked_fill(copied(ids, found.segments, found.observed), -1), least=1
    )
    assert left_out.counted.tolist() == reduced(changes(kept.means), joined=kept.joined).counted.tolist()


def judged_step(untaught, chosen, stage):
    problems = stage.problems([1, 3])
    step = stage(untaught, chosen, problems, [0, 1], no_reward, 0)
    return stages.look(untaught, chosen, step, reference=copy.deepcopy(untaught.model))


def test_process_rewards_reach_each_calls_own_tokens(untaught):
    chosen = recipe("grpo", **SETTINGS)
    step = judged_step(untaught, chosen, playing())
    rewards = ToolReward(untaught, chosen, least=2)
    weighed = rewards.weigh(chosen, step)
    effects, found = rewards.effects(step.rollouts)
    scores = step.rewards.flatten()
    pools: dict[int, list[float]] = {0: [], 1: []}
    of_entry = {}
    for row in range(6):
        for call in range(int(found.calls[row])):
            bonus = 0.5 * bool(effects.reduced[row, call])
            of_entry[row, call] = scores[row].item() * (1 + bonus)
            if effects.counted[row, call]:
                pools[row // 3].append(of_entry[row, call])
        of_entry[row, int(found.calls[row])] = scores[row].item()
        pools[row // 3].append(scores[row].item())
    for (row, entry), value in of_entry.items():
        pool = torch.tensor(pools[row // 3], dtype=torch.float64)
        expected = (value - pool.mean()) / (pool.std() + 1e-6) if pool.std() > 0 else torch.tensor(0.0)
        own = weighed.advantages[row][found.steps[row] == entry]
        assert_close(own, expected.float().expand_as(own), rtol=1e-4, atol=1e-5)
    assert (weighed.advantages[~step.rollouts.mask] == 0).all()
    assert len({round(each, 4) for each in weighed.advantages[5][step.rollouts.mask[5]].tolist()}) > 1 or scores[5] == 0


def test_no_observed_token_has_loss_entropy_or_kl(untaught):
    """Poison everywhere but at the model's own tokens changes neither the loss nor a gradient, KL and bonus among it."""
    chosen = recipe("grpo", **SETTINGS, kl_beta=0.1, entropy_beta=0.01)
    step = judged_step(untaught, chosen, playing())
    rewards = ToolReward(untaught, chosen, least=2)
    observed = segmented(untaught, step.rollouts).observed
    assert observed.sum() > 20
    weighed = rewards.weigh(chosen, step)
    policy = copy.deepcopy(untaught.model)
    seen = []
    for poison in (False, True):
        given = weighed
        if poison:
            spoiled = {
                name: getattr(given, name).masked_fill(observed, math.nan)
                for name in ("advantages", "reference_log_probs")
            }
            rollouts = replace(given.rollouts, log_probs=given.rollouts.log_probs.masked_fill(observed, math.nan))
            given = replace(given, **spoiled, rollouts=rollouts)
        policy.zero_grad()
        batch = stages.policy_batch(given, range(6), old=given.rollouts.log_probs)
        total, count = stages.policy_objective(chosen, [])(policy, batch)
        (total / count).backward()
        seen.append((total.item(), weights_of_gradients(policy)))
    assert seen[0][0] == seen[1][0] != 0
    assert equal(seen[0][1], seen[1][1])


def weights_of_gradients(policy):
    return {name: each.grad.clone() for name, each in policy.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("kind", ["outcome", "process"])
def test_training_with_rewards_for_calls_resumes(kind, tmp_path):
    """A run that goes on from its first step comes to the same weights, having learnt from these rewards."""

    def trained(state=None):
        chosen = recipe("grpo", **SETTINGS)
        language_model = prepare(model(), chosen)
        rewards = ToolReward(language_model, chosen, no_call="zero", least=1)
        stage = playing(shape=rewards.shape if kind == "outcome" else None)
        stored, seen = [], []
        train(
            language_model, chosen, stage.problems([1, 3, 2]), no_reward, sample=stage,
            weigh=rewards.weigh if kind == "process" else stages.weigh, callbacks=[seen.append],
            save=lambda state: stored.append(reinforcement_world.copied(state, tmp_path)), save_every=1, state=state,
        )  # fmt: skip
        return weights(language_model.model), stored, seen, rewards

    whole, stored, seen, rewards = trained()
    assert equal(whole, trained(stored[0])[0])
    for now in seen:
        step = now.step
        expected = rewards.shape(step.rollouts) if kind == "outcome" else rewards.weigh(rewards.recipe, step).advantages
        found = step.rewards.flatten() if kind == "outcome" else step.advantages
        assert_close(found, expected.float())
        assert found.count_nonzero() > 0
