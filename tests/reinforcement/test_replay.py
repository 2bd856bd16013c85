"""Rollout replay: both clip windows token by token, and a buffer against a plain list that does the same."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.core.state import load_state, save_state
from equipoise.reinforcement import group_baselines, policy_loss, replay
from equipoise.reinforcement.replay import ReplayBuffer, ReplayGroup

WINDOWS = ("behavior", "current")
EXACT = {"rtol": 0, "atol": 0, "equal_nan": True}


@pytest.fixture
def batch():
    """Log-probabilities of three policies, advantages of tokens, and a mask with holes, unequal lengths and an empty row."""
    generator = torch.Generator().manual_seed(2)
    new, behavior, old, advantages = torch.randn(4, 5, 7, generator=generator, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 4, 1, 0, 6])[:, None]
    mask[0, 2] = False
    advantages[1] = 0
    old = (old * 0.5 - 1).masked_fill(~mask, math.nan)
    return old + new * 0.4, (behavior * 0.5 - 1).masked_fill(~mask, math.nan), old, advantages, mask


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dual", [None, 1.1])
def test_fresh_responses_are_those_of_the_clipped_loss_bit_for_bit(batch, window, dtype, dual):
    """Loss, gradient and statistics, for every average; and in the first mini-batch the ratio is 1 exactly."""
    *numbers, mask = batch
    new, _, old, advantages = (each.to(dtype) for each in numbers)
    for mode in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"):
        for start in (new, old):
            ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
            more = {"clip_low": 0.1, "clip_high": 0.2, "dual_clip": dual, "aggregate": mode, "constant": 7.0}
            loss, stats = replay.clipped(ours, old, old, advantages, mask, window=window, **more)
            expected, expected_stats = policy_loss.clipped(theirs, old, advantages, mask, **more)
            assert_close(loss, expected, **EXACT)
            assert_close(torch.autograd.grad(loss, ours)[0], torch.autograd.grad(expected, theirs)[0], **EXACT)
            assert stats.pop("staleness") == 0
            assert_close(stats, expected_stats, **EXACT)
    assert stats["ratio"] == 1


def token_loss(new, behavior, old, advantage, low, high, dual, window):
    """One token, in plain Python, as the two papers' windows are written."""
    ratio = math.exp(new - behavior)
    center = math.exp(old - behavior) if window == "current" else 1.0
    loss = max(-advantage * ratio, -advantage * min(max(ratio, center * (1 - low)), center * (1 + high)))
    return min(loss, -advantage * dual * center) if advantage < 0 and dual else loss


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("low", "high", "dual"), [(0.2, 0.2, None), (0.1, 0.28, 1.1)])
def test_windows_token_by_token(batch, window, low, high, dual):
    new, behavior, old, advantages, mask = batch
    losses, stats = replay.clipped_tokens(*batch, window=window, clip_low=low, clip_high=high, dual_clip=dual)
    tokens = [[each[b, t].item() for each in batch[:4]] for b, t in mask.nonzero().tolist()]
    assert_close(losses[mask].tolist(), [token_loss(*token, low, high, dual, window) for token in tokens])
    assert losses[~mask].abs().sum() == 0
    around = behavior if window == "behavior" else old
    ratios, advantage = (new - around)[mask].exp(), advantages[mask]
    stale = (old - behavior)[mask]
    expected = {
        "clip_fraction_low": ((ratios < 1 - low) & (advantage < 0)).double().mean(),
        "clip_fraction_high": ((ratios > 1 + high) & (advantage > 0)).double().mean(),
        "dual_clip_fraction": ((ratios > (dual or math.inf)) & (advantage < 0)).double().mean(),
        "ratio": (new - behavior)[mask].exp().mean(),
        "approximate_kl": ((new - behavior).exp() - 1 - (new - behavior))[mask].mean(),
        "zero_advantage_share": (advantage == 0).double().mean(),
        "staleness": (stale.exp() - 1 - stale).mean(),
    }
    assert_close(stats, expected)
    assert all(stats[name] > 0 for name in ("clip_fraction_low", "clip_fraction_high"))


@pytest.mark.parametrize("window", WINDOWS)
def test_gradients(batch, window):
    new, behavior, old, advantages, mask = batch
    start = new.where(mask, 0).requires_grad_()
    assert gradcheck(lambda new: replay.clipped(new, behavior, old, advantages, mask, window=window)[0], start)
    others = [each.where(mask, 0).requires_grad_() for each in (behavior, old)]
    replay.clipped(start, *others, advantages, mask, window=window)[0].backward()
    assert all(each.grad is None for each in others)


def test_what_the_windows_differ_in():
    """A token that the policy has left far behind teaches nothing in one window, and one step's worth in the other."""
    behavior, old = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    advantages, mask = torch.tensor([2.0, -2.0], dtype=torch.float64), torch.ones(2, 1, dtype=torch.bool)
    for window, expected in (("behavior", [0.0, 0.0]), ("current", [-2 * math.e, 2 / math.e])):
        new = old.clone().requires_grad_()
        losses, _ = replay.clipped_tokens(new, behavior, old, advantages, mask, window=window)
        (gradient,) = torch.autograd.grad(losses.sum(), new)
        assert_close(gradient.flatten().tolist(), expected)


@pytest.mark.parametrize("window", WINDOWS)
def test_an_unchanged_policy_learns_as_reinforce(batch, window):
    """Replayed under the policy that wrote it: ratio 1, and the gradient is that of -A log p."""
    _, behavior, _, advantages, mask = batch
    new = behavior.clone().requires_grad_()
    loss, stats = replay.clipped(new, behavior, behavior, advantages, mask, window=window)
    assert stats["ratio"] == 1
    plain = behavior.clone().requires_grad_()
    expected = policy_loss.average(-advantages * plain, mask)
    assert_close(torch.autograd.grad(loss, new)[0], torch.autograd.grad(expected, plain)[0], **EXACT)


def test_the_weight_makes_replay_unbiased():
    """Over all tokens that b may have written, the mean of the gradient is the policy gradient of p, in both windows."""
    generator = torch.Generator().manual_seed(0)
    logits, written = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    rewards = torch.randn(6, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    (expected,) = torch.autograd.grad(-(logits.softmax(-1) * rewards).sum(), logits)
    behavior = written.log_softmax(-1).view(6, 1)
    for window, wide in (("behavior", 1e3), ("current", 0.2)):
        new = logits.log_softmax(-1).view(6, 1)
        losses, _ = replay.clipped_tokens(
            new, behavior, new, rewards, torch.ones(6, 1, dtype=torch.bool), window=window, clip_low=1, clip_high=wide
        )
        (found,) = torch.autograd.grad((behavior.exp() * losses).sum(), logits)
        assert_close(found, expected)


def group(question, rewards=(1.0, 0.0), length=3, mark=0.0):
    """A group of len(rewards) responses whose log-probabilities tell it from others."""
    shape = (len(rewards), length)
    return ReplayGroup(
        question,
        ids=torch.arange(length).repeat(len(rewards), 1),
        mask=torch.arange(length) < torch.arange(len(rewards), 0, -1)[:, None],
        rewards=torch.tensor(rewards),
        log_probs=torch.full(shape, -1.0 - mark),
    )


def marks(groups):
    return [(each.question, each.log_probs[0, 0].item()) for each in groups]


@settings(deadline=None, max_examples=25)
@given(
    capacity=st.integers(1, 5),
    informative_only=st.booleans(),
    pushed=st.lists(st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0.0, 0.5, 1.0])), max_size=4), max_size=8),
)
def test_buffer_against_a_list(capacity, informative_only, pushed):
    """Never larger than its capacity; the newest of a question, in the order in which they came."""
    buffer, model, mark = ReplayBuffer(capacity, informative_only=informative_only), [], 0
    for batch in pushed:
        groups = [group(question, (1.0, reward), mark=mark + n) for n, (question, reward) in enumerate(batch)]
        mark += len(batch)
        taken = [each for each in groups if not informative_only or each.rewards[1] != 1]
        assert buffer.push(groups) == len(taken)
        for each in taken:
            model = [*(other for other in model if other.question != each.question), each][-capacity:]
        assert len(buffer) == len(model) <= capacity
        assert buffer.questions == tuple(each.question for each in model)
    drawn = buffer.sample(len(model), generator=torch.Generator().manual_seed(0))
    assert sorted(marks(drawn)) == sorted(marks(model))


def test_groups_of_equal_rewards_are_not_kept_whatever_they_are():
    """By the variance: rewards of 0.5 each teach nothing, a mean of 0.5 or a mixed pair of 0.2 and 0.3 does."""
    buffer = ReplayBuffer(9)
    rewards = {"none": (0.0, 0.0), "all": (1.0, 1.0), "half": (0.5, 0.5), "mixed": (1.0, 0.0), "graded": (0.2, 0.3)}
    assert buffer.push(group(name, each) for name, each in rewards.items()) == 2
    assert buffer.questions == ("mixed", "graded")
    assert buffer.push([group("mixed", (1.0, 1.0), mark=5.0)]) == 0
    assert marks(buffer.sample(2, generator=torch.Generator().manual_seed(0)))[0][1] == -1.0


def test_nobody_can_overwrite_what_was_written():
    """Not through what was put in, nor through what was drawn, nor through a stored state; nor a step that trains on it."""
    original = group("a", mark=0.25)
    kept = {name: each.clone() for name, each in original._tensors().items()}
    buffer, generator = ReplayBuffer(2), torch.Generator().manual_seed(0)
    buffer.push([original])
    policy = torch.zeros(2, 3, requires_grad=True)
    for _ in range(3):
        (drawn,) = buffer.sample(1, generator=generator)
        loss, stats = replay.clipped(policy, drawn.log_probs, policy.detach(), torch.tensor([1.0, -1.0]), drawn.mask)
        (gradient,) = torch.autograd.grad(loss, policy)
        policy = (policy - gradient).detach().requires_grad_()
        for each in (*drawn._tensors().values(), *buffer.state_dict()["groups"][0].values()):
            if isinstance(each, torch.Tensor):
                each.zero_()
    for each in original._tensors().values():
        each.zero_()
    (drawn,) = buffer.sample(1, generator=generator)
    assert drawn._tensors().keys() == kept.keys()
    assert all(torch.equal(each, kept[name]) for name, each in drawn._tensors().items())
    assert stats["ratio"] != 1


def test_what_is_pushed_with_a_gradient_is_kept_without():
    tensors = group("a")._tensors() | {"log_probs": torch.zeros(2, 3, requires_grad=True)}
    buffer = ReplayBuffer(1)
    buffer.push([ReplayGroup("a", **tensors)])
    assert not buffer.sample(1, generator=torch.Generator())[0].log_probs.requires_grad


def test_draws_are_uniform_and_the_generators_own():
    """All pairs of 4 groups equally often, by chi-squared with 5 degrees of freedom; the global state is not touched."""
    buffer, generator = ReplayBuffer(4), torch.Generator().manual_seed(3)
    buffer.push(group(number) for number in range(4))
    state = torch.get_rng_state()
    drawn = [frozenset(each.question for each in buffer.sample(2, generator=generator)) for _ in range(300)]
    assert torch.equal(torch.get_rng_state(), state)
    counts = [drawn.count(pair) for pair in {*drawn}]
    assert len(counts) == 6 and sum((count - 50) ** 2 / 50 for count in counts) < 20.5  # 0.1 % of the time above
    again = torch.Generator().manual_seed(3)
    assert frozenset(each.question for each in buffer.sample(2, generator=again)) == drawn[0]


def test_a_stored_buffer_goes_on_to_the_same_draws(tmp_path):
    buffer = ReplayBuffer(3)
    buffer.push(group(name, (0.0, 1.0, 0.0), length=2 + n, mark=n) for n, name in enumerate(("a", "b", 7, "d")))
    save_state(tmp_path / "state", buffer.state_dict())
    other = ReplayBuffer(3)
    other.push([group("gone")])
    state = load_state(tmp_path / "state")
    other.load_state_dict(state)
    state["groups"][2]["log_probs"].zero_()
    assert other.questions == buffer.questions == ("b", 7, "d")
    for each in (buffer, other):
        each.push([group("e")])
    one, two = (each.sample(3, generator=torch.Generator().manual_seed(1)) for each in (buffer, other))
    assert marks(one) == marks(two)
    assert all(torch.equal(a.mask, b.mask) and torch.equal(a.ids, b.ids) for a, b in zip(one, two, strict=True))
    for changed in (ReplayBuffer(4), ReplayBuffer(3, informative_only=False)):
        with pytest.raises(BadInput, match="stored replay buffer has"):
            changed.load_state_dict(buffer.state_dict())


def test_joined_groups_of_unequal_lengths():
    groups = [group("a", length=2, mark=1.0), group("b", (0.0, 1.0), length=4, mark=2.0)]
    found = replay.joined(groups, pad_id=9)
    assert found["ids"].tolist() == [[0, 1, 9, 9]] * 2 + [[0, 1, 2, 3]] * 2
    assert found["mask"].tolist() == [[True, True, False, False], [True, False, False, False]] * 2
    assert found["log_probs"][:, 0].tolist() == [-2.0, -2.0, -3.0, -3.0]
    assert found["log_probs"][:2, 2:].abs().sum() == 0
    assert group_baselines.dr_grpo(found["rewards"]).tolist() == [[0.5, -0.5], [-0.5, 0.5]]
    for wrong, said in (([], "none"), ([*groups, group("c", (1.0, 0.0, 0.0))], r"\[2, 3\]")):
        with pytest.raises(BadInput, match=said):
            replay.joined(wrong)


def test_what_cannot_be_given_is_said():
    with pytest.raises(BadInput, match="capacity of a replay buffer is 0"):
        ReplayBuffer(0)
    buffer, generator = ReplayBuffer(3), torch.Generator()
    buffer.push([group("a"), group("b")])
    assert buffer.sample(0, generator=generator) == []
    with pytest.raises(BadInput, match="4 groups are asked of a replay buffer of capacity 3: make it larger"):
        buffer.sample(4, generator=generator)
    for count in (3, -1):
        with pytest.raises(BadInput, match=f"{count} groups are asked of a replay buffer that holds 2"):
            buffer.sample(count, generator=generator)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rewards": torch.tensor([1.0, 0.0, 0.0])}, "'a' has the shapes"),
        ({"rewards": torch.tensor([[1.0], [0.0]])}, "'a' has the shapes"),
        ({"log_probs": torch.zeros(2, 4)}, "'a' has the shapes"),
        ({"mask": torch.ones(2, 2, dtype=torch.bool)}, "'a' has the shapes"),
        ({"mask": torch.ones(2, 3)}, "mask of question 'a' is torch.float32"),
        ({"rewards": torch.tensor([1.0, math.nan])}, "'a' has a reward that"),
        ({"log_probs": torch.tensor([[0.0, -math.inf, 0.0]] * 2)}, "'a' has a log-probability that"),
    ],
)
def test_groups_that_are_none(changed, said):
    with pytest.raises(BadInput, match=said):
        ReplayGroup("a", **group("a")._tensors() | changed)


def test_what_is_masked_may_be_anything():
    tensors = group("a", (1.0, 0.0))._tensors()
    tensors["log_probs"][~tensors["mask"]] = math.nan
    assert ReplayGroup("a", **tensors).informative


def test_windows_are_closed(batch):
    with pytest.raises(BadInput, match="behaviour"):
        replay.clipped(*batch, window="behaviour")
