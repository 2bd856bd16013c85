"""NAIT's labels, losses and scores against enumeration, finite differences, torch's cross entropy, derived numbers."""

import itertools
import math

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.reinforcement import nait

AUTHORS = (1 / 6, 5 / 6)
OUTCOMES = torch.tensor([[[1, 0, 0, 1], [0, 0, 0, 0]], [[1, 1, 1, 1], [0, 0, 1, 0]]])
LOGITS = torch.tensor([[2.0, -1.0], [0.3, 0.4], [-60.0, 60.0], [5.0, 5.0], [-0.7, 1.1]], dtype=torch.float64)
TARGETS = torch.tensor([1.0, 0.0, 1.0, 0.35, 0.9], dtype=torch.float64)


def test_soft_is_the_share_and_hard_whether_any():
    soft, hard = nait.monte_carlo(OUTCOMES)
    assert soft.tolist() == [[0.5, 0.0], [1.0, 0.25]] and hard.tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert nait.monte_carlo(OUTCOMES.bool())[0].tolist() == soft.tolist()
    with pytest.raises(BadInput, match=r"outcomes\[1, 0, 2\] is 2"):
        nait.monte_carlo(OUTCOMES + torch.tensor([[[0, 0, 0, 0]] * 2, [[0, 0, 1, 0], [0, 0, 0, 0]]]))
    with pytest.raises(BadInput, match=r"shape \[3, 0\]"):
        nait.monte_carlo(torch.zeros(3, 0))
    with pytest.raises(BadInput, match=r"shape \[\]: the last axis"):
        nait.monte_carlo(torch.tensor(1.0))


def succeeds(error, left, wrong):
    """The chance that a sum mod 10 ends right: each of `left` steps adds, with the chance `error`, one of 9 shifts."""
    return 0.1 + ((not wrong) - 0.1) * (1 - 10 / 9 * error) ** left


@pytest.mark.parametrize(("error", "wrong"), [(0.3, False), (0.3, True), (0.05, False)])
def test_labels_of_a_symbolic_policy_by_enumeration(error, wrong):
    """All completions of 3 steps succeed with the closed form p; over all K outcomes E SE = p and E HE = 1 - (1 - p)^K."""
    completions = torch.tensor(list(itertools.product(range(10), repeat=3)))
    chances = torch.where(completions == 0, 1 - error, error / 9).double().prod(-1)
    ends_right = ((completions.sum(-1) + 4 * wrong) % 10 == 0).double()
    p = (chances * ends_right).sum().item()
    assert_close(p, succeeds(error, 3, wrong))
    groups = torch.tensor(list(itertools.product([0, 1], repeat=4)))
    soft, hard = nait.monte_carlo(groups)
    weights = (p**groups * (1 - p) ** (1 - groups)).prod(-1).to(soft)
    assert_close((weights * soft).sum().item(), p)
    assert_close((weights * hard).sum().item(), 1 - (1 - p) ** 4)


def test_soft_labels_of_a_symbolic_policy_converge():
    """Prefixes of 0 to 4 steps of five, the one of 2 with a mistake: 40,000 drawn completions each."""
    generator = torch.Generator().manual_seed(0)
    count, error = 40_000, 0.15
    starts = torch.tensor([0, 0, 7, 0, 0])
    outcomes = torch.empty(5, count)
    for prefix, start in enumerate(starts):
        shape = (count, 5 - prefix)
        shifts = torch.randint(1, 10, shape, generator=generator) * (torch.rand(shape, generator=generator) < error)
        outcomes[prefix] = (shifts.sum(-1) + start) % 10 == 0
    expected = torch.tensor([succeeds(error, 5 - prefix, bool(start)) for prefix, start in enumerate(starts)])
    soft, _ = nait.monte_carlo(outcomes)
    assert ((soft - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt()).all()


def test_correction_takes_only_from_successes():
    assert torch.equal(nait.correct(OUTCOMES, torch.zeros_like(OUTCOMES)), OUTCOMES)
    reflected = torch.tensor([[[1, 1, 0, 0], [1, 1, 1, 1]], [[0, 0, 0, 1], [0, 0, 1, 0]]])
    found = nait.correct(OUTCOMES, reflected)
    assert found.tolist() == [[[0, 0, 0, 1], [0, 0, 0, 0]], [[1, 1, 1, 0], [0, 0, 0, 0]]] and found.dtype == torch.int64
    for before, after in zip(nait.monte_carlo(OUTCOMES), nait.monte_carlo(found), strict=True):
        assert (after <= before).all() and (after < before).any()
    failures_ignored = reflected * OUTCOMES
    assert torch.equal(nait.correct(OUTCOMES, failures_ignored), found)
    assert nait.correct(OUTCOMES.bool(), reflected.bool()).dtype == torch.bool
    with pytest.raises(BadInput, match=r"\[2, 2, 4\] and \[4\]"):
        nait.correct(OUTCOMES, torch.ones(4))
    with pytest.raises(BadInput, match=r"reflected\[0, 0, 0\] is 0.5"):
        nait.correct(OUTCOMES, reflected / 2)


def test_refresh_between_the_limits():
    labels = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    scores = torch.tensor([0.75, 0.7, 1.0, 0.25, 0.9, 0.0])
    found = nait.refresh(labels, scores)
    assert found.labels.tolist() == [1.0, scores[1], 1.0, 0.0, scores[4], 0.0]  # 0.25 itself is no disagreement
    assert found.kept.tolist() == [True, False, True, True, False, False]
    assert found.positives_kept == 0.5 and found.negatives_kept == 0.5
    assert torch.equal(nait.refresh(labels, scores, threshold=0).labels, scores)
    assert nait.refresh(labels, scores, threshold=0).kept.tolist() == [False, False, True, False, False, False]
    for threshold in (1.0, 7.0):
        unchanged = nait.refresh(labels, scores, threshold=threshold)
        assert torch.equal(unchanged.labels, labels) and unchanged.kept.all() and unchanged.positives_kept == 1
    assert math.isnan(nait.refresh(labels[:3], scores[:3]).negatives_kept)
    assert torch.equal(nait.refresh(labels.bool(), scores).labels, found.labels)
    soft = nait.refresh(torch.tensor([0.5, 0.4]), torch.tensor([0.5, 0.9]))
    assert (soft.positives_kept, soft.negatives_kept) == (1.0, 0.0)


def test_anchors_part_at_the_second_refresh():
    """A step that is doubted once: the first labels take it back when the model comes round, those before it do not."""
    first = torch.tensor([1.0, 0.0])
    once = nait.refresh(first, torch.tensor([0.6, 0.1])).labels
    later = torch.tensor([0.8, 0.1])
    assert nait.refresh(first, later).labels.tolist() == [1.0, 0.0]
    current = nait.refresh(once, later)
    assert current.labels.tolist() == once.tolist() == [pytest.approx(0.6), 0.0] and current.positives_kept == 1


def test_what_cannot_be_refreshed():
    scores = torch.tensor([0.5, 0.5])
    for labels, words in ((torch.tensor([1.0, -100.0]), r"labels\[1\] is -100"), (torch.ones(3), r"\[3\] and \[2\]")):
        with pytest.raises(BadInput, match=words):
            nait.refresh(labels, scores)
    with pytest.raises(BadInput, match=r"scores\[0\] is nan"):
        nait.refresh(scores, torch.tensor([math.nan, 1.0]))
    for threshold in (-0.1, math.nan):
        with pytest.raises(BadInput, match="threshold is"):
            nait.refresh(scores, scores, threshold=threshold)


@pytest.mark.parametrize("weights", [AUTHORS, (1.0, 1.0), (0.9, 0.2)])
def test_gradient_identity_by_finite_differences(weights):
    """d / d logit of right = w- (1 - y) r - w+ y (1 - r), of wrong its negative; with equal weights of 1 it is r - y."""
    logits, targets = LOGITS[[0, 1, 4]], TARGETS[[0, 3, 4]]
    right, wrong = weights
    r = logits.softmax(-1)[:, 0]
    expected = wrong * (1 - targets) * r - right * targets * (1 - r)
    if weights == (1.0, 1.0):
        assert_close(expected, r - targets)
    step = 1e-5
    for entry, sign in ((0, 1), (1, -1)):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[entry] = step
        up, down = (nait.cross_entropy(logits + way * shift, targets, weights) for way in (1, -1))
        assert_close((up - down) / (2 * step), sign * expected, rtol=1e-8, atol=1e-9)
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nait.prm_loss(leaf, targets, weights=weights), leaf)
    assert_close(gradient, torch.stack([expected, -expected], -1) / 3)


def test_gradient_vanishes_at_the_fixed_point():
    targets = torch.tensor([0.02, 0.5, 0.9, 0.999], dtype=torch.float64)
    for weights in (AUTHORS, (1.0, 1.0), (3.0, 0.5)):
        r = nait.fixed_point(targets, weights)
        logits = torch.stack([r.logit(), torch.zeros_like(r)], -1).requires_grad_()
        (gradient,) = torch.autograd.grad(nait.prm_loss(logits, targets, weights=weights), logits)
        assert gradient.abs().max() < 1e-15
    assert_close(nait.fixed_point(targets, AUTHORS), targets / (targets + 5 * (1 - targets)))
    assert_close(nait.fixed_point(nait.fixed_point(targets, AUTHORS), AUTHORS[::-1]), targets)


def test_derived_numbers():
    stages = [0.9]
    for _ in range(3):
        stages.append(nait.fixed_point(stages[-1], AUTHORS))
    assert [round(stage, 3) for stage in stages] == [0.9, 0.643, 0.265, 0.067]
    assert_close(nait.fixed_point(0.5, AUTHORS), 1 / 6)
    for needed, score in ((5 / 6, 0.5), (0.9375, 0.75), (0.625, 0.25)):
        assert_close(nait.fixed_point(needed, AUTHORS), score)
    for q, survives in ((0.938, True), (0.937, False)):
        score = torch.tensor([nait.fixed_point(q, AUTHORS)], dtype=torch.float64)
        assert bool(nait.refresh(torch.ones(1), score).kept) is survives
    for q, survives in ((0.626, False), (0.624, True)):
        score = torch.tensor([nait.fixed_point(q, AUTHORS)], dtype=torch.float64)
        assert bool(nait.refresh(torch.zeros(1), score).kept) is survives


def test_the_drift_is_told():
    assert nait.drift_note((0.5, 0.5)) is None
    note = nait.drift_note(AUTHORS) or ""
    for number in ("0.6429", "0.2647", "0.06716", "0.8333", "0.9375", "0.625", "towards wrong"):
        assert number in note
    other_way = nait.drift_note((5.0, 1.0), threshold=0.1) or ""
    assert "towards right" in other_way and "probability 0.1 get 0.3571" in other_way and "threshold 0.1" in other_way


def test_parity_with_torch_in_both_forms():
    """For probabilities torch's mean is ours; for class indices it divides by the weights of the targets, not by N."""
    weight = torch.tensor(AUTHORS, dtype=torch.float64)
    soft = functional.cross_entropy(LOGITS, torch.stack([TARGETS, 1 - TARGETS], -1), weight=weight)
    assert_close(nait.prm_loss(LOGITS, TARGETS), soft)
    hard = torch.tensor([1, 0, 1, 1, 0])
    by_index = functional.cross_entropy(LOGITS, 1 - hard, weight=weight)
    mean_weight = weight[1 - hard].mean()
    assert_close(nait.prm_loss(LOGITS, hard), by_index * mean_weight)
    assert_close(nait.prm_loss(LOGITS, hard.bool(), weights="none"), functional.cross_entropy(LOGITS, 1 - hard))
    positive = torch.ones(5, dtype=torch.int64)
    by_index = functional.cross_entropy(LOGITS, 1 - positive, weight=weight)
    assert_close(nait.prm_loss(LOGITS, positive) / by_index, torch.tensor(1 / 6, dtype=torch.float64))


def test_losses_are_finite_in_half_precision_and_far_out():
    logits = torch.tensor([[300.0, -300.0], [-300.0, 300.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = nait.prm_loss(logits, torch.tensor([0.0, 1.0]), weights="none")
    assert loss.dtype == torch.float32 and loss.item() == 600
    loss.backward()
    assert logits.grad is not None and logits.grad.tolist() == [[0.5, -0.5], [-0.5, 0.5]]
    assert nait.prm_loss(LOGITS.expand(2, 5, 2), TARGETS.expand(2, 5)) == nait.prm_loss(LOGITS, TARGETS)


def test_class_weights():
    targets = torch.tensor([1, 1, 1, 1, 1, 0])
    assert nait.class_weights("none", targets) == (1.0, 1.0) and nait.class_weights((2.0, 3.0), targets) == (2.0, 3.0)
    assert nait.class_weights("inverse_frequency", targets) == pytest.approx(AUTHORS)
    assert nait.class_weights("inverse_frequency", torch.tensor([0.5, 0.1])) == pytest.approx((0.7, 0.3))
    assert_close(
        nait.prm_loss(LOGITS, TARGETS, weights="inverse_frequency"),
        nait.prm_loss(LOGITS, TARGETS, weights=(0.35, 0.65)),
    )
    for wrong, words in (
        ((0.0, 1.0), "above 0"),
        ((1.0, math.inf), "above 0"),
        ((1.0,), "two numbers"),
        ((1.0, 1.0, 1.0), "two numbers"),
    ):
        with pytest.raises(BadInput, match=words):
            nait.class_weights(wrong, targets)
    for one_class in (torch.ones(3), torch.zeros(3), torch.zeros(0)):
        with pytest.raises(BadInput, match=r"^inverse_frequency needs labels of right and of wrong steps"):
            nait.class_weights("inverse_frequency", one_class)
    with pytest.raises(BadInput, match=r"weights is 'inverse'.*inverse_frequency"):
        nait.prm_loss(LOGITS, TARGETS, weights="inverse")


def test_targets_of_another_kind_are_refused():
    with pytest.raises(BadInput, match=r"targets\[1\] is -100"):
        nait.prm_loss(LOGITS[:2], torch.tensor([0.5, -100.0]))
    for function in nait.LOSSES.values():
        with pytest.raises(BadInput, match=r"\[5\] and \[5, 1\]"):
            function(LOGITS, TARGETS[:, None], AUTHORS)


def test_robust_losses_in_their_limits():
    plain = nait.cross_entropy(LOGITS, TARGETS, AUTHORS)
    for function, setting in ((nait.label_smoothing, {"epsilon": 0.0}), (nait.bootstrapping, {"beta": 1.0})):
        assert_close(function(LOGITS, TARGETS, AUTHORS, **setting), plain)
    mild = LOGITS[[0, 1, 3, 4]], TARGETS[[0, 1, 3, 4]]
    assert_close(nait.generalized_cross_entropy(*mild, AUTHORS, q=1e-8), plain[[0, 1, 3, 4]], rtol=1e-6, atol=1e-8)
    r = nait.probability(LOGITS)
    distance = AUTHORS[0] * TARGETS * (1 - r) + AUTHORS[1] * (1 - TARGETS) * r
    assert_close(nait.generalized_cross_entropy(LOGITS, TARGETS, AUTHORS, q=1.0), distance)
    assert_close(
        nait.label_smoothing(LOGITS, TARGETS, AUTHORS, epsilon=0.2),
        nait.cross_entropy(LOGITS, 0.8 * TARGETS + 0.1, AUTHORS),
    )


def test_what_robust_losses_do_to_a_wrong_label():
    """Generalised: p^q times the gradient of cross entropy. Bootstrapped: through its own prediction, not beta times it."""
    logits = torch.tensor([[-2.0, 1.0], [1.5, 0.0]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([1.0, 0.0], dtype=torch.float64)

    def gradient(function, **settings):
        return torch.autograd.grad(function(logits, targets, (1.0, 1.0), **settings).sum(), logits)[0]

    plain = gradient(nait.cross_entropy)
    p = torch.where(targets == 1, nait.probability(logits), 1 - nait.probability(logits)).detach()
    assert_close(gradient(nait.generalized_cross_entropy, q=0.6), p[:, None] ** 0.6 * plain)
    found = gradient(nait.bootstrapping, beta=0.8)
    r = nait.probability(logits).detach()
    entropy = -0.2 * r * (1 - r) * (r / (1 - r)).log()  # of the prediction, whose gradient the detached label lacks
    assert_close(found[:, 0], 0.8 * plain[:, 0] + entropy)
    for function in nait.LOSSES.values():
        assert torch.autograd.gradcheck(lambda each, function=function: function(each, targets, AUTHORS), logits)


def test_first_errors():
    scores = torch.tensor([0.9, 0.5, 0.49, 0.1])
    assert nait.first_error(scores) == 2 and nait.first_error(scores, threshold=0.95) == 0
    assert nait.first_error(scores[:2]) == -1 and nait.first_error(scores, threshold=0.05) == -1
    unread = torch.tensor([0.9, math.nan, 0.1])
    assert nait.first_error(unread) is None and nait.first_error(unread[[0, 2, 1]]) == 1
    assert nait.first_error(unread[:2]) is None
    with pytest.raises(BadInput, match=r"scores\[1\] is 1.5"):
        nait.first_error(torch.tensor([0.2, 1.5]))


def test_f1_as_published():
    gold = [-1, -1, 0, 3, 2, 5, -1, 1]
    predicted = [-1, 4, 0, 2, 2, -1, -1, None]
    found = nait.first_error_f1(predicted, gold)
    assert (found.error_accuracy, found.correct_accuracy) == (pytest.approx(2 / 5), pytest.approx(2 / 3))
    assert found.f1 == pytest.approx(2 * (2 / 5) * (2 / 3) / (2 / 5 + 2 / 3)) and (found.errors, found.corrects) == (
        5,
        3,
    )
    never = nait.first_error_f1([-1] * 8, gold)
    assert (never.error_accuracy, never.correct_accuracy, never.f1) == (0.0, 1.0, 0.0)
    assert nait.first_error_f1([7] * 8, gold).f1 == 0.0
    assert nait.first_error_f1(gold, gold).f1 == 1.0
    no_errors = nait.first_error_f1([-1, 0], [-1, -1])
    assert no_errors.correct_accuracy == 0.5 and math.isnan(no_errors.error_accuracy) and math.isnan(no_errors.f1)
    with pytest.raises(BadInput, match="2 predictions came for 8"):
        nait.first_error_f1([0, 1], gold)
    with pytest.raises(BadInput, match=r"gold\[1\] is -2"):
        nait.first_error_f1([0, 1], [0, -2])


def test_aggregates():
    scores = torch.tensor([0.5, 0.25, 1.0])
    expected = {"mean": 1.75 / 3, "min": 0.25, "max": 1.0, "product": 0.125, "geometric-mean": 0.5, "sum": 1.75}
    for how, value in expected.items():
        assert nait.aggregate(scores, how) == pytest.approx(value)
    with_zero = torch.tensor([0.0, 0.5])  # a score of 0 is a score
    assert nait.aggregate(with_zero, "mean") == 0.25 and nait.aggregate(with_zero, "geometric-mean") == 0.0
    assert all(math.isnan(nait.aggregate(torch.tensor([0.5, math.nan]), how)) for how in expected)
    with pytest.raises(BadInput, match="without steps"):
        nait.aggregate(torch.empty(0), "sum")


def test_best_of_n():
    solutions = [torch.tensor([0.6, 0.6]), torch.tensor([0.9, 0.2, 0.9]), torch.tensor([0.6, 0.6]), torch.tensor([0.7])]
    found = {how: nait.best_of(solutions, how) for how in ("mean", "min", "max", "product", "geometric-mean", "sum")}
    assert found == {"mean": 3, "min": 3, "max": 1, "product": 3, "geometric-mean": 3, "sum": 1}
    assert nait.best_of(solutions[:3:2], "mean") == 0 and nait.all_best_of(solutions[:3:2], "min") == [0, 1]
    assert nait.all_best_of(solutions, "max") == [1] and nait.all_best_of([torch.tensor([math.nan])] * 2, "sum") == [
        0,
        1,
    ]
    alike = [torch.full((steps,), 0.3) for steps in range(1, 40)]  # whose geometric means differ by their rounding
    assert len({nait.aggregate(each, "geometric-mean") for each in alike}) > 1
    assert nait.all_best_of(alike, "geometric-mean") == list(range(39))
    nothing = [torch.tensor([math.nan]), torch.tensor([0.0]), torch.tensor([0.0, 0.5])]  # products of 0 are known
    assert nait.all_best_of(nothing, "product") == [1, 2]
    assert nait.best_of([torch.tensor([math.nan, 1.0]), torch.tensor([0.1])], "mean") == 1
    long = torch.full((401,), 0.1)
    assert nait.aggregate(long, "product") == 0.0 and nait.best_of([long, long[:400]], "product") == 1
    with pytest.raises(BadInput, match="no solution"):
        nait.best_of([], "mean")


def test_label_noise():
    truth = torch.tensor([1, 1, 1, 1, 0, 0, 0])
    labels = torch.tensor([1.0, 0.5, 0.4, 0.0, 0.9, 0.0, 0.2])
    found = nait.label_noise(labels, truth)
    assert (found.precision, found.recall) == (pytest.approx(2 / 3), 0.5)
    assert found.f1 == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert (found.false_positive_rate, found.false_negative_rate) == (pytest.approx(1 / 3), 0.5)
    assert (found.right, found.wrong) == (4, 3)
    none_right = nait.label_noise(torch.zeros(2), torch.zeros(2))
    assert none_right.false_positive_rate == 0 and math.isnan(none_right.recall) and math.isnan(none_right.f1)


def test_disagreement_over_all_pairs():
    labels = torch.tensor([[1.0, 0.0, 0.7, 0.1], [1.0, 1.0, 0.2, 0.0], [0.6, 1.0, 0.1, 0.0]])
    pairs = [((a >= 0.5) != (b >= 0.5)).double().mean() for a, b in itertools.combinations(labels, 2)]
    assert nait.disagreement(labels) == pytest.approx(sum(pairs) / 3)
    assert nait.disagreement(labels[:2]) == 0.5 and math.isnan(nait.disagreement(torch.ones(2, 0)))
    for wrong, shape in ((labels[:1], r"\[1, 4\]"), (labels[0], r"\[4\]"), (labels[:, None], r"\[3, 1, 4\]")):
        with pytest.raises(BadInput, match=shape):
            nait.disagreement(wrong)
