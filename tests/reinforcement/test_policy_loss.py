"""The clipped surrogate, KL estimators and averages against brute force, enumeration and finite differences."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.reinforcement import policy_loss

MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")


@pytest.fixture
def batch():
    """Log-probabilities new and old, advantages of tokens, and a mask with holes, unequal lengths and an empty row."""
    generator = torch.Generator().manual_seed(1)
    new, old, advantages = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 4, 1, 0, 6])[:, None]
    mask[0, 2] = False
    advantages[1] = 0
    return new * 0.4 - 1, old * 0.4 - 1, advantages, mask


def token_loss(new, old, advantage, low, high, dual):
    """One token, in plain Python."""
    ratio = math.exp(min(max(new - old, -20), 20))
    loss = max(-advantage * ratio, -advantage * min(max(ratio, 1 - low), 1 + high))
    return min(loss, -advantage * dual) if advantage < 0 and dual else loss


@pytest.mark.parametrize(("low", "high", "dual"), [(0.2, 0.2, None), (0.1, 0.28, 1.1)])
def test_clipped_token_by_token(batch, low, high, dual):
    new, old, advantages, mask = batch
    losses, stats = policy_loss.clipped_tokens(new, old, advantages, mask, clip_low=low, clip_high=high, dual_clip=dual)
    places = mask.nonzero().tolist()
    tokens = [(new[b, t].item(), old[b, t].item(), advantages[b, t].item()) for b, t in places]
    assert_close(losses[mask].tolist(), [token_loss(*token, low, high, dual) for token in tokens])
    assert losses[~mask].abs().sum() == 0
    ratios = [math.exp(new - old) for new, old, _ in tokens]
    expected = {
        "ratio": sum(ratios),
        "approximate_kl": sum(ratio - 1 - math.log(ratio) for ratio in ratios),
        "zero_advantage_share": sum(a == 0 for *_, a in tokens),
        "clip_fraction_low": sum(a < 0 and ratio < 1 - low for ratio, (*_, a) in zip(ratios, tokens, strict=True)),
        "clip_fraction_high": sum(a > 0 and ratio > 1 + high for ratio, (*_, a) in zip(ratios, tokens, strict=True)),
        "dual_clip_fraction": sum(
            bool(dual) and a < 0 and ratio > dual for ratio, (*_, a) in zip(ratios, tokens, strict=True)
        ),
    }
    assert {name: value.item() for name, value in stats.items()} == pytest.approx(
        {name: value / len(tokens) for name, value in expected.items()}
    )
    assert all(stats[name] > 0 for name in ("clip_fraction_low", "clip_fraction_high"))
    assert not dual or stats["dual_clip_fraction"] > 0
    loss, _ = policy_loss.clipped(new, old, advantages, mask, clip_low=low, clip_high=high, dual_clip=dual)
    assert_close(loss, losses[mask].mean())


def test_gradient_of_the_clipped_loss(batch):
    new, old, advantages, mask = batch
    new.requires_grad_()
    for mode in MODES:
        assert gradcheck(
            lambda x, mode=mode: policy_loss.clipped(
                x, old, advantages, mask, dual_clip=1.1, aggregate=mode, constant=9
            )[0],
            new,
        )


def test_first_step_is_reinforce(batch):
    """Where the policy is the old one the ratio is 1, nothing is clipped and the gradient is -A over the tokens."""
    new, _, advantages, mask = batch
    new.requires_grad_()
    loss, stats = policy_loss.clipped(new, new.detach(), advantages, mask, dual_clip=3)
    assert stats["ratio"] == 1 and stats["approximate_kl"] == 0
    assert all(value == 0 for name, value in stats.items() if "clip" in name)
    (gradient,) = torch.autograd.grad(loss, new)
    assert_close(gradient, -advantages.where(mask, 0) / mask.sum())
    assert gradient[1].abs().sum() == 0  # advantage 0


def test_clip_and_dual_clip_stop_the_gradient():
    """Beyond the clip on the side of the advantage, and beyond c for a negative one; not on the other side."""
    old, new = torch.zeros(1, 6), torch.tensor([[1.3, 0.7, 1.3, 0.7, 2.9, 3.1]]).log().requires_grad_()
    advantages = torch.tensor([[1.0, -1, -1, 1, -1, -1]])
    loss, _ = policy_loss.clipped(new, old, advantages, torch.ones(1, 6), dual_clip=3)
    loss.backward()
    assert (new.grad != 0).tolist() == [[False, False, True, True, True, False]]


def test_extreme_ratios_stay_finite():
    new, old = torch.tensor([[300.0, -300.0]]).requires_grad_(), torch.zeros(1, 2)
    loss, _ = policy_loss.clipped(new, old, -torch.ones(1, 2), torch.ones(1, 2))
    assert_close(loss.item(), (math.exp(20) + 0.8) / 2)
    loss.backward()
    assert new.grad.abs().sum() == 0


def test_advantages_of_responses_are_those_of_their_tokens(batch):
    new, old, advantages, mask = batch
    column = advantages[:, 0]
    for mode in MODES:
        ours, _ = policy_loss.clipped(new, old, column, mask, aggregate=mode, constant=7)
        spread, _ = policy_loss.clipped(new, old, column[:, None].expand(5, 7), mask.int(), aggregate=mode, constant=7)
        assert ours == spread


@pytest.mark.parametrize("dual", [None, 3.0])
def test_nothing_leaks_from_masked_places(batch, dual):
    """nan there changes neither value, nor statistics, nor gradient."""
    new, old, advantages, mask = batch
    results = []
    for filler in (0.0, math.nan, math.inf):
        inputs = [tensor.masked_fill(~mask, filler) for tensor in (new, old, advantages)]
        inputs[0].requires_grad_()
        loss, stats = policy_loss.clipped(*inputs, mask, dual_clip=dual)
        for estimator in ("k2", "k3", "k3+"):
            loss = loss + policy_loss.kl_loss(*inputs[:2], mask, estimator=estimator)
        results.append((loss, stats, *torch.autograd.grad(loss, inputs[0])))
    for other in results[1:]:
        assert_close(other, results[0], rtol=0, atol=0)
    assert results[0][2][~mask].abs().sum() == 0


def test_a_nan_that_counts_is_seen(batch):
    new, old, advantages, mask = batch
    new[0, 0] = math.nan
    assert policy_loss.clipped(new, old, advantages, mask)[0].isnan()


def test_a_dual_clip_below_one_is_refused(batch):
    with pytest.raises(BadInput, match=r"dual_clip is 0\.5"):
        policy_loss.clipped(*batch, dual_clip=0.5)


def test_averages_by_hand():
    nan = math.nan
    values = torch.tensor([[1.0, 2.0, 6.0], [5.0, nan, 9.0], [nan, 7.0, nan]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    expected = [(1 + 2 + 6 + 5) / 4, (3 + 5) / 2, (9 + 5) / 2, (9 + 5) / 2 / 10]
    assert [policy_loss.average(values, mask, mode, constant=10).item() for mode in MODES] == pytest.approx(expected)
    roots = sum(policy_loss.average(values.sqrt(), mask, mode, constant=10) for mode in MODES)
    (gradient,) = torch.autograd.grad(roots, values)
    assert gradient[mask.bool()].isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_parts_of_micro_batches_add_up(batch, mode):
    values, *_, mask = batch
    whole = policy_loss.average(values, mask, mode, constant=7)
    parts = [
        policy_loss.aggregate_parts(values[rows], mask[rows], mode, constant=7) for rows in ([0], [1, 3], [2, 4], [3])
    ]
    total, weight = (sum(column) for column in zip(*parts, strict=True))
    # Row 3 is empty: it weighs nothing, however often it comes.
    assert_close(total / weight, whole)
    means = [part / weight for part, weight in parts if weight]
    assert not torch.isclose(sum(means) / len(means), whole)


def test_a_constant_must_be_given(batch):
    with pytest.raises(BadInput, match="constant="):
        policy_loss.average(batch[0], batch[3], "seq-mean-token-sum-norm")


def test_an_empty_mask_has_no_average(batch):
    for mode in MODES:
        assert policy_loss.average(batch[0], torch.zeros(5, 7), mode, constant=7).isnan()


@pytest.fixture
def distributions():
    """Logits of a policy and log-probabilities of a reference over five tokens."""
    generator = torch.Generator().manual_seed(1)
    logits, reference = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), reference.log_softmax(-1)


def divergence(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum()


def expected_gradient(estimator, logits, reference):
    """sum_y p(y) grad k(y), every token enumerated."""
    log_p = logits.log_softmax(-1)
    values = policy_loss.kl(log_p, reference, estimator=estimator)
    return torch.autograd.grad((log_p.exp().detach() * values).sum(), logits)[0]


def test_estimators_by_enumeration(distributions):
    """Values of k1, k3 and k3+ have the KL as their mean; the gradients have it for k2 and k3+, the other for k3, none
    for k1."""
    logits, reference = distributions
    log_p = logits.log_softmax(-1)
    forward, backward = divergence(log_p, reference), divergence(reference, log_p)
    for estimator in ("k1", "k3", "k3+"):
        values = policy_loss.kl(log_p, reference, estimator=estimator)
        assert_close((log_p.exp() * values).sum(), forward)
    towards, away = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (forward, backward))
    assert not torch.allclose(towards, away, rtol=0.1)
    for estimator, expected in {"k1": 0 * towards, "k2": towards, "k3+": towards, "k3": away}.items():
        assert_close(expected_gradient(estimator, logits, reference), expected)


def test_values_of_estimators():
    log_p, log_q = torch.tensor([-1.0, -2.0, 0.0, -50.0]), torch.tensor([-1.5, -1.0, -12.0, 0.0])
    d = log_p - log_q
    assert_close(policy_loss.kl(log_p, log_q, estimator="k1"), d)
    assert_close(policy_loss.kl(log_p, log_q, estimator="k2"), d**2 / 2)
    exact = [math.exp(-each) + each - 1 for each in d.tolist()]
    for estimator in ("k3", "k3+"):
        assert_close(policy_loss.kl(log_p, log_q, estimator=estimator).tolist(), [*exact[:2], 10.0, 10.0])


def test_small_differences_keep_their_digits():
    """k3 of d = 1e-4 is d^2 / 2 in float32, where exp(-d) + d - 1 as written is off by a fifth."""
    d = torch.tensor([1e-4])
    assert_close(policy_loss.kl(d, torch.zeros(1)), torch.tensor([5e-9]), rtol=0.02, atol=0)


def test_gradients_of_estimators(batch):
    new, old, _, mask = batch
    new.requires_grad_()
    for estimator in ("k2", "k3"):
        assert gradcheck(lambda x, e=estimator: policy_loss.kl_loss(x, old, mask, estimator=e), new)
    straight, squared = (policy_loss.kl_loss(new, old, mask, estimator=estimator) for estimator in ("k3+", "k2"))
    assert_close(torch.autograd.grad(straight, new), torch.autograd.grad(squared, new))
    assert straight != squared


def test_k1_is_no_loss(batch):
    with pytest.raises(BadInput, match=r"k1.*reward"):
        policy_loss.kl_loss(*batch[:2], batch[3], estimator="k1")


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(2, 2, 5, 11, generator=generator, dtype=torch.float64)
    return first.requires_grad_(), second


def test_exact_kl(logits):
    """Against torch's own divergence of distributions, in value and gradient, whatever the chunk."""
    first, second = logits
    categorical = torch.distributions.Categorical
    peer = torch.distributions.kl_divergence(categorical(logits=first), categorical(logits=second))
    weights = torch.arange(10, dtype=torch.float64).reshape(2, 5)
    (expected,) = torch.autograd.grad((peer * weights).sum(), first)
    for chunk in (1, 3, 100):
        ours = policy_loss.exact_kl(first, second, chunk=chunk)
        assert_close(ours, peer)
        assert_close(torch.autograd.grad((ours * weights).sum(), first)[0], expected)


def test_exact_kl_where_tokens_are_excluded_or_places_masked(logits):
    first, second = logits
    banned = torch.zeros(11, dtype=torch.bool).index_fill(0, torch.tensor([3, 8]), True)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    shut = [each.detach().masked_fill(banned, -math.inf).masked_fill(~mask[..., None], math.nan) for each in logits]
    shut[0].requires_grad_()
    found = policy_loss.exact_kl(*shut, mask=mask, chunk=3)
    open_, other = first[..., ~banned], second[..., ~banned]
    expected = (open_.softmax(-1) * (open_.log_softmax(-1) - other.log_softmax(-1))).sum(-1)
    assert_close(found, expected.where(mask, 0))
    (gradient,) = torch.autograd.grad(found.sum(), shut[0])
    assert_close(gradient[..., ~banned], torch.autograd.grad(expected[mask].sum(), first)[0][..., ~banned])
    assert gradient[~mask].abs().sum() == 0 and gradient[..., banned].abs().sum() == 0


def test_nothing_as_large_as_the_logits_is_kept():
    """What the graph holds for the backward pass beside the logits themselves."""
    first, second = torch.randn(2, 64, 50).requires_grad_(), torch.randn(2, 64, 50)
    ids = torch.randint(50, (2, 64, 8))
    for function in (policy_loss.exact_kl, lambda x, _: policy_loss.gathered_log_probs(x, ids, temperature=0.7)):
        kept = []
        own = {each.untyped_storage().data_ptr() for each in (first, second, ids)}

        def pack(tensor, kept=kept, own=own):
            if tensor.untyped_storage().data_ptr() not in own:
                kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = function(first, second).sum()
        assert sum(kept) < first.numel() / 10
        value.backward()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gathered_log_probs(logits, temperature):
    first, _ = logits
    ids = torch.randint(11, (2, 5, 3), generator=torch.Generator().manual_seed(3))
    expected = (first / temperature).log_softmax(-1).gather(-1, ids)
    found = policy_loss.gathered_log_probs(first, ids, temperature=temperature, chunk=4)
    assert_close(found, expected)
    assert_close(torch.autograd.grad(found.prod(), first), torch.autograd.grad(expected.prod(), first))
    half = policy_loss.gathered_log_probs(first.bfloat16(), ids)
    assert half.dtype == torch.float32
    assert_close(half, first.bfloat16().float().log_softmax(-1).gather(-1, ids))


def test_gathered_log_probs_of_masked_places(logits):
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    first = logits[0].detach().masked_fill(~mask[..., None], math.nan).requires_grad_()
    found = policy_loss.gathered_log_probs(first, torch.zeros(2, 5, 1, dtype=torch.long), mask=mask)
    assert_close(found[~mask], torch.full((3, 1), -math.log(11), dtype=torch.float64))
    found.sum().backward()
    assert first.grad.isfinite().all() and first.grad[~mask].abs().sum() == 0


def test_adapted_kl_weight():
    """Growth is bounded to a fifth of what the horizon allows."""
    assert policy_loss.adapted_kl_weight(0.001, 0.11, 256) == pytest.approx(0.001 * (1 + 0.1 * 0.0256))
    assert policy_loss.adapted_kl_weight(0.001, 5.0, 256) == pytest.approx(0.001 * (1 + 0.2 * 0.0256))
    assert policy_loss.adapted_kl_weight(0.001, 0.0, 256) == pytest.approx(0.001 * (1 - 0.2 * 0.0256))
