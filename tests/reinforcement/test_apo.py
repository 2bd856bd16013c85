"""APO's ratio and loss: gradients by finite differences, cases worked by hand, and what must not be touched."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.reinforcement import apo, group_baselines, policy_loss


def anchors_of(logits, reference_logits, tokens, count):
    """What the loss takes: log-probabilities of the tokens and of the anchors, the reference's mass there, who is
    sampled."""
    ids, probs = apo.anchors(reference_logits, count)
    log_probs = logits.log_softmax(-1)
    return (
        log_probs.gather(-1, tokens[..., None]).squeeze(-1),
        log_probs.gather(-1, ids),
        probs,
        ids == tokens[..., None],
    )


@pytest.fixture
def batch():
    """Three responses of five places over seven tokens, one advantage of each sign and 0, unequal lengths."""
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64)
    tokens = torch.randint(7, (3, 5), generator=generator)
    old, *_ = anchors_of(logits + 0.2 * torch.randn(3, 5, 7, generator=generator), reference, tokens, 3)
    mask = torch.arange(5) < torch.tensor([5, 4, 2])[:, None]
    return logits.requires_grad_(), reference, tokens, old, torch.tensor([-1.3, 0.8, 0.0], dtype=torch.float64), mask


@pytest.mark.parametrize("token", [0, 5])
@pytest.mark.parametrize("push", [1.0, 1.05])
def test_gradient_lines(token, push):
    """By central differences of r~ A in every logit: sampled, anchors, others; their sum is 0. y in the top K and not."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, generator=generator, dtype=torch.float64)
    reference = torch.tensor([2.0, 1.5, 1.2, 0.0, -0.4, -1.0], dtype=torch.float64)  # top 3 are tokens 0, 1, 2
    y, advantage, pull = torch.tensor(token), torch.tensor(-0.7, dtype=torch.float64), 0.3
    old = (logits + 0.3 * torch.randn(6, generator=generator, dtype=torch.float64)).log_softmax(-1)[y]

    def objective(logits):
        log_prob, anchor_log_probs, probs, sampled = anchors_of(logits, reference, y, 3)
        return advantage * apo.anchored_ratio(
            log_prob, old, anchor_log_probs, probs, sampled, advantage, push=push, pull=pull
        )

    step = 1e-5
    found = torch.stack(
        [(objective(logits + step * e) - objective(logits - step * e)) / (2 * step) for e in torch.eye(6).double()]
    )
    p, p_ref = logits.softmax(-1), reference.softmax(-1)
    anchors = torch.tensor([k < 3 and k != token for k in range(6)])
    mass, z, r = p[anchors].sum(), p_ref[anchors].sum(), p[y] / old.exp()
    expected = -advantage * p * (push * r - pull * mass / z)  # others
    expected[anchors] = -advantage * p[anchors] * (push * r + pull * (1 - mass) / z)
    expected[y] = advantage * (push * r * (1 - p[y]) + pull * p[y] * mass / z)
    assert_close(found, expected, rtol=0, atol=1e-9)
    assert abs(found.sum()) < 1e-9
    logits.requires_grad_()
    assert_close(torch.autograd.grad(objective(logits), logits)[0], expected)


def test_three_tokens_by_hand():
    """Reference (.5, .3, .2), K = 2, y = 0, policy (.7, .2, .1): S = {1}, Z = .3, r_anc = .6667, r~ = 1.05 - .0667."""
    reference, policy = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.7, 0.2, 0.1])
    inputs = anchors_of(policy.log(), reference.log(), torch.tensor(0), 2)
    old = inputs[0]
    ratio = apo.anchored_ratio(inputs[0], old, *inputs[1:], torch.tensor(-1.0))
    assert_close(ratio, torch.tensor(1.05 - 0.1 * 2 / 3))
    inclusive = apo.anchored_ratio(inputs[0], old, *inputs[1:], torch.tensor(-1.0), inclusive=True)
    assert_close(inclusive, torch.tensor(1.05 - 0.1 * 0.9 / 0.8))
    loss, stats = apo.anchored_loss(
        *(each[None, None] for each in (inputs[0], old, *inputs[1:])), -torch.ones(1), torch.ones(1, 1)
    )
    assert_close(loss, torch.tensor(0.98333333))
    assert_close(stats["anchor_ratio"], torch.tensor(2 / 3))
    assert_close(stats["support_coverage"], torch.tensor(0.9))
    assert stats["ratio"] == 1 and stats["clip_fraction_low"] == stats["tiny_anchor_share"] == 0


def test_equal_policies_start_at_push_minus_pull(batch):
    """policy = old = reference: r_anc = 1 and r~ = push - pull, for y in and out of the top K."""
    _, reference, *_ = batch
    for token in range(7):
        tokens = torch.full((3, 5), token)
        inputs = anchors_of(reference, reference, tokens, 3)
        ratio = apo.anchored_ratio(inputs[0], inputs[0], *inputs[1:], -torch.ones(3, 5), push=1.07, pull=0.2)
        assert_close(ratio, torch.full_like(ratio, 0.87))


@pytest.mark.parametrize("clip_mode", ["inside", "outside"])
def test_without_push_and_pull_it_is_grpo_bit_for_bit(batch, clip_mode):
    logits, reference, tokens, old, advantages, mask = batch
    log_probs, *rest = anchors_of(logits, reference, tokens, 3)
    ours, stats = apo.anchored_loss(log_probs, old, *rest, advantages, mask, push=1.0, pull=0.0, clip_mode=clip_mode)
    theirs, their_stats = policy_loss.clipped(log_probs, old, advantages, mask)
    assert ours == theirs
    assert {name: stats[name] for name in their_stats} == their_stats
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs)]
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0


def test_positions_without_a_negative_advantage_do_not_touch_the_reference(batch):
    """nan in the reference, in its anchors' log-probabilities and under the mask changes neither value nor gradient."""
    logits, reference, tokens, old, advantages, mask = batch
    negative = mask & (advantages < 0)[:, None]
    results = []
    for spoilt in (False, True):
        log_probs, anchor_log_probs, probs, sampled = (
            each.detach() for each in anchors_of(logits, reference, tokens, 3)
        )
        before = old
        if spoilt:
            probs = probs.masked_fill(~negative[..., None], math.nan)
            anchor_log_probs = anchor_log_probs.masked_fill(~negative[..., None], math.nan)
            log_probs, before = (each.masked_fill(~mask, math.nan) for each in (log_probs, old))
        inputs = log_probs.requires_grad_(), anchor_log_probs.requires_grad_()
        losses = [
            apo.anchored_loss(inputs[0], before, inputs[1], probs, sampled, advantages, mask, clip_mode=mode)[0]
            for mode in ("inside", "outside")
        ]
        losses.append(apo.kl_on_wrong(inputs[0], probs[..., 0], advantages, mask))
        results.append((losses, torch.autograd.grad(sum(losses), inputs)))
    assert_close(results[1], results[0], rtol=0, atol=0)
    log_prob_gradient, anchor_gradient = results[0][1]
    assert anchor_gradient[~negative].abs().sum() == 0 < anchor_gradient[negative].abs().sum()
    assert log_prob_gradient[~mask].abs().sum() == 0


def test_the_whole_vocabulary_as_anchors(batch):
    """K >= V: r_anc = (1 - p(y)) / (1 - p_ref(y)), so lifting the anchors is pushing down y."""
    logits, reference, tokens, old, *_ = batch
    inputs = anchors_of(logits, reference, tokens, 50)
    assert inputs[1].shape[-1] == 7
    ratio = apo.anchored_ratio(inputs[0], old, *inputs[1:], -torch.ones(3, 5))
    p, p_ref = inputs[0].exp(), reference.softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    assert_close(ratio, 1.05 * (inputs[0] - old).exp() - 0.1 * (1 - p) / (1 - p_ref))


def test_order_of_anchors_and_padding_do_not_matter(batch):
    logits, reference, tokens, old, advantages, mask = batch
    log_probs, *rest = anchors_of(logits, reference, tokens, 3)
    loss, _ = apo.anchored_loss(log_probs, old, *rest, advantages, mask)
    turned = [each.flip(-1) for each in rest]
    assert_close(apo.anchored_loss(log_probs, old, *turned, advantages, mask)[0], loss)
    padded = [torch.cat([each, each[:, :2]], dim=1) for each in (log_probs, old, *rest)]
    more = torch.cat([mask, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    assert_close(apo.anchored_loss(*padded, advantages, more)[0], loss)


@pytest.mark.parametrize("clip_mode", ["inside", "outside"])
def test_gradient_of_the_loss(batch, clip_mode):
    logits, reference, tokens, old, advantages, mask = batch

    def loss(logits):
        log_probs, *rest = anchors_of(logits, reference, tokens, 3)
        return apo.anchored_loss(log_probs, old, *rest, advantages, mask, clip_mode=clip_mode, pull=0.4)[0]

    assert gradcheck(loss, logits)


def one_place(policy_anchor, reference_anchor, new=0.0, **settings):
    """The loss of one negative place with a single anchor that is not sampled, and its gradients by log p and log
    p_anchor."""
    log_prob = torch.tensor([[new]], dtype=torch.float64, requires_grad=True)
    anchor = torch.tensor([[[policy_anchor]]], dtype=torch.float64).log().requires_grad_()
    loss, stats = apo.anchored_loss(
        log_prob,
        torch.zeros(1, 1, dtype=torch.float64),
        anchor,
        torch.tensor([[[reference_anchor]]], dtype=torch.float64),
        torch.zeros(1, 1, 1, dtype=torch.bool),
        -torch.ones(1, dtype=torch.float64),
        torch.ones(1, 1),
        **settings,
    )
    return loss.item(), [each.item() for each in torch.autograd.grad(loss, (log_prob, anchor))], stats


def test_inside_the_clip_the_pull_ends_where_the_ratio_leaves_the_region():
    """r = 1: until r_anc = 2.5 the anchor is lifted, beyond both forces are gone; outside the clip the pull goes on."""
    loss, (push, pull), stats = one_place(0.24, 0.1)
    assert (loss, push, pull) == pytest.approx((1.05 - 0.24, 1.05, -0.24)) and stats["clip_fraction_low"] == 0
    loss, gradients, stats = one_place(0.26, 0.1)
    assert loss == pytest.approx(0.8) and gradients == [0, 0] and stats["clip_fraction_low"] == 1
    loss, (push, pull), stats = one_place(0.26, 0.1, clip_mode="outside")
    assert (loss, push, pull) == pytest.approx((1.05 - 0.26, 1.05, -0.26)) and stats["clip_fraction_low"] == 0
    # Pushed below 0.8 by itself: only the pull is left.
    loss, (push, pull), stats = one_place(0.1, 0.1, new=math.log(0.7), clip_mode="outside")
    assert (loss, push, pull) == pytest.approx((0.8 - 0.1, 0, -0.1)) and stats["clip_fraction_low"] == 1


def test_where_the_reference_is_certain_the_plain_ratio_stays():
    loss, gradients, stats = one_place(0.3, 1e-7, new=math.log(1.1))
    assert loss == pytest.approx(1.1) and gradients == pytest.approx([1.1, 0])
    assert stats["tiny_anchor_share"] == 1 and stats["anchor_ratio"].isnan()
    loss, gradients, stats = one_place(1e-6, 1e-6, new=math.log(1.1), z_min=1e-6)
    assert loss == pytest.approx(1.05 * 1.1 - 0.1) and stats["tiny_anchor_share"] == 0


def test_statistics(batch):
    """r_anc over the negative places, coverage over all that count: by hand for the first response."""
    logits, reference, tokens, old, advantages, mask = batch
    log_probs, anchor_log_probs, probs, sampled = (each.detach() for each in anchors_of(logits, reference, tokens, 3))
    probs[0, 1] = 0.0  # nothing to pull to at one of five places
    _, stats = apo.anchored_loss(log_probs, old, anchor_log_probs, probs, sampled, advantages, mask)
    kept = (~sampled[0]).double()
    ratios = (anchor_log_probs[0].exp() * kept).sum(-1) / (probs[0] * kept).sum(-1)
    assert_close(stats["anchor_ratio"], ratios[[0, 2, 3, 4]].mean())
    assert_close(stats["tiny_anchor_share"].item(), 1 / 5)
    assert_close(stats["support_coverage"], anchor_log_probs[mask].exp().sum(-1).mean())
    assert_close(stats["zero_advantage_share"].item(), 2 / 11)


def test_anchors_of_a_reference():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [1.0, 1.0, 5.0, 0.0]])
    ids, probs = apo.anchors(logits, 2, temperature=0.5)
    assert ids[0].tolist() == [1, 3] and ids[1, 0] == 2
    assert_close(probs, (logits / 0.5).softmax(-1).gather(-1, ids))
    assert apo.anchors(logits.bfloat16(), 2)[1].dtype == torch.float32


def test_advantages_of_groups_make_negative_places():
    """A group whose rewards are all equal has nothing to pull, an ordinary one pulls on its failures only."""
    rewards = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    advantages = group_baselines.grpo(rewards).flatten()
    log_probs = torch.full((4, 1), -1.0)
    ratio = apo.anchored_ratio(
        log_probs,
        log_probs,
        torch.full((4, 1, 2), -2.0),
        torch.full((4, 1, 2), 0.2),
        torch.zeros(4, 1, 2, dtype=torch.bool),
        advantages[:, None],
    )
    assert (ratio != 1).flatten().tolist() == [False, False, False, True]


def test_kl_on_wrong(batch):
    """k3 on the negative places, averaged over all tokens; 0 elsewhere; k1 is refused."""
    *_, advantages, mask = batch
    generator = torch.Generator().manual_seed(5)
    new, reference = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    found = apo.kl_on_wrong(new, reference, advantages, mask)
    d = (new - reference)[0]
    assert_close(found, ((-d).exp() + d - 1).sum() / 11)
    per_response = apo.kl_on_wrong(new, reference, advantages, mask, aggregate="seq-mean-token-mean")
    assert_close(per_response, ((-d).exp() + d - 1).mean() / 3)
    with pytest.raises(BadInput, match="k1"):
        apo.kl_on_wrong(new, reference, advantages, mask, estimator="k1")
