import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.data.records import Record
from equipoise.language import confidence as c
from equipoise.language.encode import encode
from equipoise.language.score import log_likelihoods
from equipoise.language.tiny import tiny

DOUBLE = torch.float64


def draw(*shape, seed=0, scale=2.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE) * scale


def by_hand(logits, function):
    """The function of each distribution, as a list of Python numbers."""
    values = []
    for row in logits.reshape(-1, logits.shape[-1]).tolist():
        total = sum(math.exp(value) for value in row)
        values.append(function([math.exp(value) / total for value in row], row))
    return torch.tensor(values, dtype=DOUBLE).reshape(logits.shape[:-1])


@pytest.mark.parametrize(
    ("score", "formula"),
    [
        (c.entropy, lambda p, _: -sum(x * math.log(x) for x in p)),
        (c.max_logit, lambda _, logits: max(logits)),
        (c.max_probability, lambda p, _: max(p)),
        (c.margin, lambda p, _: sorted(p)[-1] - sorted(p)[-2]),
        (c.logit_margin, lambda _, logits: sorted(logits)[-1] - sorted(logits)[-2]),
        (c.self_certainty, lambda p, _: sum(1 / len(p) * math.log(1 / len(p) / x) for x in p)),
        (lambda x: c.top_confidence(x, top=3), lambda p, _: -sum(map(math.log, sorted(p)[-3:])) / 3),
        (lambda x: c.top_confidence(x, top=50), lambda p, _: -sum(map(math.log, p)) / len(p)),
    ],
)
def test_scores_of_a_token_are_their_formulas(score, formula):
    logits = draw(2, 3, 7)
    assert_close(score(logits), by_hand(logits, formula), rtol=1e-12, atol=1e-12)
    assert score(logits.half()).dtype == torch.float32


def test_scores_of_certain_and_of_uniform_tokens():
    certain = torch.tensor([0.0, -math.inf, -math.inf], dtype=DOUBLE)
    assert c.entropy(certain) == 0 and c.margin(certain) == 1 and c.self_certainty(certain) == 0
    assert_close(c.entropy(torch.zeros(5, dtype=DOUBLE)).item(), math.log(5))
    assert c.self_certainty(torch.zeros(5)) == pytest.approx(0, abs=1e-7)
    # a large constant changes nothing but the largest logit
    logits = draw(4, 9)
    assert_close(c.self_certainty(logits + 1e3), c.self_certainty(logits))
    assert_close(c.max_logit(logits + 1e3), c.max_logit(logits) + 1e3)
    # what cannot be said is no part of the vocabulary
    masked = torch.cat([logits, torch.full((4, 3), -math.inf, dtype=DOUBLE)], dim=-1)
    assert_close(c.self_certainty(masked), c.self_certainty(logits))
    assert_close(c.entropy(masked), c.entropy(logits))


def test_top_log_probs_give_bounds_that_hold_and_can_be_reached():
    top = torch.tensor([0.4, 0.2, 0.12], dtype=DOUBLE).log()
    lower, upper = c.entropy_bounds(top, 8)
    rest = 1 - 0.72

    def entropy_of(*p):
        return -sum(x * math.log(x) for x in p if x)

    assert_close(upper.item(), entropy_of(0.4, 0.2, 0.12, *[rest / 5] * 5))
    assert_close(lower.item(), entropy_of(0.4, 0.2, 0.12, 0.12, 0.12, rest - 0.24))
    certainty = c.self_certainty_bounds(top, 8)
    assert_close(certainty.lower.item(), -sum(map(math.log, [0.4, 0.2, 0.12, *[rest / 5] * 5])) / 8 - math.log(8))
    assert certainty.upper == math.inf


@pytest.mark.parametrize("gap", [10.0, 40.0, 300.0])
@pytest.mark.parametrize("top", [1, 2, 5])
def test_certainty_is_bounded_where_the_rest_rounds_to_nothing(top, gap):
    logits = torch.cat([torch.tensor([gap]), torch.linspace(0, -0.5, 30)])  # float32
    lower, upper = c.self_certainty_bounds(logits.log_softmax(dim=-1).topk(top).values, 31)
    true = c.self_certainty(logits.double())
    assert upper == math.inf and lower.isfinite() and lower <= true + 1e-4
    if top > 1:
        assert lower >= true - 0.5  # no other token is likelier than the last of the known ones


@pytest.mark.parametrize("top", [1, 2, 5, 8, 9])
def test_bounds_hold_for_any_distribution(top):
    logits = draw(200, 9, seed=top)
    known = logits.log_softmax(dim=-1).topk(top, dim=-1).values
    entropy, certainty = c.entropy(logits), c.self_certainty(logits)
    for (lower, upper), true in ((c.entropy_bounds(known, 9), entropy), (c.self_certainty_bounds(known, 9), certainty)):
        assert (lower <= true + 1e-9).all() and (true <= upper + 1e-9).all()
    if top >= 8:  # what one unknown token has is known, up to the rounding of 1 - 0.99
        assert_close(c.entropy_bounds(known, 9).lower, entropy)
        assert_close(c.self_certainty_bounds(known, 9).upper, certainty, rtol=1e-5, atol=1e-5)
    if top > 1:
        assert_close(c.top_margin(known), c.margin(logits))
    with pytest.raises(BadInput, match="likeliest tokens of a vocabulary of 0"):
        c.entropy_bounds(known, 0)


def test_answers_are_scored_over_what_the_mask_counts():
    values = torch.tensor([[1.0, 2.0, 9.0, 4.0], [3.0, 5.0, 7.0, math.nan], [1.0, 1.0, 1.0, 1.0]], dtype=DOUBLE)
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]])
    found = {over: c.over_answer(values, mask, over=over).tolist() for over in ("mean", "sum", "min", "max")}
    assert found["mean"][:2] == [7 / 3, 6] and found["sum"][:2] == [7, 12]
    assert found["min"][:2] == [1, 5] and found["max"][:2] == [4, 7]
    assert all(math.isnan(values[2]) for values in found.values())  # nothing is counted
    log_probs = torch.tensor([[0.5, 0.25, 0.9]], dtype=DOUBLE).log()
    assert_close(c.perplexity(log_probs, torch.tensor([[1, 1, 0]])), torch.tensor([8.0], dtype=DOUBLE).sqrt())


@pytest.mark.parametrize("window", [1, 2, 3, 20])
def test_groups_are_sliding_means_over_what_counts(window):
    values, mask = draw(6, 9), torch.rand(6, 9, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[0], mask[1] = True, False
    values = values.where(mask, math.nan)
    means = c.groups(values, mask, window=window)
    for row in range(6):
        kept = values[row][mask[row]].tolist()
        # as the published code has them: one mean of all where there are fewer than a window
        expected = [np.mean(kept[i : i + window]) for i in range(max(len(kept) - window, 0) + 1)] if kept else []
        there = means[row][~means[row].isnan()].tolist()
        assert there == pytest.approx(expected)
        assert len(there) == len(expected) and not (~means[row].isnan() & ~mask[row]).any()
        lowest = c.lowest_group(values, mask, window=window)[row].item()
        assert lowest == pytest.approx(min(expected, default=math.nan), nan_ok=True)
        for share in (0.1, 0.5, 1):
            count = max(1, int(len(expected) * share))
            bottom = c.bottom_groups(values, mask, window=window, share=share)[row].item()
            assert bottom == pytest.approx(np.mean(sorted(expected)[:count]) if expected else math.nan, nan_ok=True)
        last = c.tail(values, mask, tokens=window)[row].item()
        assert last == pytest.approx(np.mean(kept[-window:]) if kept else math.nan, nan_ok=True)


def test_groups_are_added_up_where_there_is_float64():
    """As on Apple's GPUs: a tensor that cannot be widened before `cpu` has brought it here."""

    class OnMps(torch.Tensor):
        device = property(lambda self: torch.device("mps"))

        def cpu(self):
            return self.as_subclass(torch.Tensor)

        def double(self):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )

    values, mask = draw(6, 9).float(), torch.ones(6, 9, dtype=torch.bool)
    found = c.groups(values.as_subclass(OnMps), mask, window=3)
    torch.testing.assert_close(
        found.as_subclass(torch.Tensor), c.groups(values, mask, window=3), equal_nan=True, rtol=0, atol=0
    )


def test_sizes_of_groups_are_checked():
    values, mask = torch.zeros(1, 3), torch.ones(1, 3)
    for call in (c.groups, c.lowest_group):
        with pytest.raises(BadInput, match="at least 1"):
            call(values, mask, window=0)
    with pytest.raises(BadInput, match="at least 1"):
        c.tail(values, mask, tokens=0)
    with pytest.raises(BadInput, match="above 0"):
        c.bottom_groups(values, mask, window=1, share=0)


def test_clusters_of_equal_answers_and_of_like_texts():
    assert c.clusters(["Paris", "the Paris.", "Rome", "", "paris", "", "rome!"]) == [0, 0, 1, 2, 0, 3, 1]
    texts = ["It is Paris", "it is paris!", "it is Rome", "Perhaps Berlin, who knows"]
    assert c.clusters(texts, by="text") == [0, 0, 1, 2]
    assert c.clusters(texts, by="text", threshold=0.5) == [0, 0, 0, 1]
    # the most alike of several that are alike enough, and the first member alone decides
    assert c.clusters(["aaaabbbb", "aaaacccc", "aaaaccbb"], by="text", threshold=0.6) == [0, 1, 0]
    assert c.clusters([]) == []


def test_semantic_entropy_of_counts_and_of_probabilities():
    labels = [0, 1, 0, 2, 0]
    counts = c.semantic_entropy(labels).item()
    assert counts == pytest.approx(-(0.6 * math.log(0.6) + 2 * 0.2 * math.log(0.2)))
    p = torch.tensor([0.1, 0.2, 0.05, 0.3, 0.1], dtype=DOUBLE)
    groups = [0.25, 0.2, 0.3]
    monte_carlo = c.semantic_entropy(labels, p.log(), estimate="monte-carlo").item()
    assert monte_carlo == pytest.approx(-sum(math.log(groups[label]) for label in labels) / 5)
    shares = [group / 0.75 for group in groups]
    normalized = c.semantic_entropy(torch.tensor(labels), p.log(), estimate="normalized").item()
    assert normalized == pytest.approx(-sum(share * math.log(share) for share in shares))
    assert c.semantic_entropy([3, 3, 3]).item() == 0 and math.isnan(c.semantic_entropy([]).item())
    with pytest.raises(BadInput, match="'normalized' needs the log-probability of each of the 5 answers"):
        c.semantic_entropy(labels, p[:4].log(), estimate="normalized")


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("Confidence: 85", 0.85),
        ("85%", 0.85),
        ("My confidence is 0.85 (85 %).", 0.85),
        ("17 out of 20", 0.85),
        ("Confidence: 85/100.", 0.85),
        ("Of 3 options, 2 fit. Confidence: 70 percent", 0.7),
        ("Confidence in 7 + 5 = 12: high. Confidence: 90", 0.9),
        ("90 is my confidence", 0.9),
        ("1.0", 1.0),
        ("1", 0.01),
        ("0", 0.0),
        ("Confidence: 80 or 90", math.nan),
        ("80-90%", math.nan),
        ("Confidence: 120", math.nan),
        ("Confidence: -5", math.nan),
        ("5/0", math.nan),
        ("Confidence: 1,000", math.nan),
        ("high", math.nan),
        ("v2 and x86", math.nan),
        ("", math.nan),
        ("9" * 5000, math.nan),
    ],
)
def test_verbalized_confidence_is_read_or_unknown(reply, value):
    assert c.verbalized(reply) == pytest.approx(value, nan_ok=True)


def test_verbalized_on_another_scale():
    assert c.verbalized("Confidence: 8", scale=10) == 0.8


def test_p_true_is_the_share_of_true():
    questions, answers = [f"Is {a} even" for a in range(4)], ["yes", "yes", "no", "no"]
    texts = [c.P_TRUE.format(question=q, answer=a) for q, a in zip(questions, answers, strict=True)]
    made = tiny([*texts, "True False"], seed=0, width=16, layers=1, heads=2, context=64)
    model = dataclasses.replace(made, chat_template="none")
    found = c.p_true(model, questions, answers)
    expected = []
    for text in texts:
        words = [Record(id=word, prompt=text, completion=word) for word in ("True", "False")]
        sums = log_likelihoods(model, encode(model, words, end=False))[0].tolist()
        expected.append(math.exp(sums[0]) / (math.exp(sums[0]) + math.exp(sums[1])))
    assert found.tolist() == pytest.approx(expected, rel=1e-5) and found.dtype == DOUBLE
    assert len(set(found.tolist())) == 4  # question and answer are both read
    assert c.p_true(model, questions[2:], answers[2:]).tolist() == pytest.approx(found[2:].tolist(), rel=1e-5)
    assert len(c.p_true(model, [], [])) == 0


def test_every_score_is_of_the_last_dimension():
    """What is said of [4, 5, T] is what is said of each of its four [5, T], and of a row alone."""
    logits = draw(4, 5, 9)
    top = logits.log_softmax(dim=-1).topk(4, dim=-1).values
    mask = torch.rand(4, 5, 9, generator=torch.Generator().manual_seed(2)) < 0.7
    mask[0, 0], mask[1, 1] = False, True
    for score in (
        c.entropy, c.max_logit, c.max_probability, c.margin, c.logit_margin, c.self_certainty, c.top_confidence,
        lambda x: c.entropy_bounds(x.log_softmax(-1).topk(4).values, 9)[0],
        lambda x: c.entropy_bounds(x.log_softmax(-1).topk(4).values, 9)[1],
        lambda x: c.self_certainty_bounds(x.log_softmax(-1).topk(8).values, 9)[0],
        lambda x: c.self_certainty_bounds(x.log_softmax(-1).topk(8).values, 9)[1],
    ):  # fmt: skip
        whole = score(logits)
        assert whole.shape == (4, 5)
        for place in ((0, 0), (1, 3), (3, 4)):
            assert_close(whole[place], score(logits[place]))
    for over in (
        *(lambda v, m, how=how: c.over_answer(v, m, over=how) for how in ("mean", "sum", "min", "max")),
        c.perplexity,
        lambda v, m: c.groups(v, m, window=3),
        lambda v, m: c.lowest_group(v, m, window=3),
        lambda v, m: c.bottom_groups(v, m, window=2, share=0.4),
        lambda v, m: c.tail(v, m, tokens=2),
    ):
        whole = over(logits, mask)
        for place in ((0, 0), (1, 1), (1, 3), (3, 4)):
            assert_close(whole[place], over(logits[place], mask[place]), equal_nan=True)
    assert_close(c.top_margin(top), c.margin(logits))


def test_bounds_by_hand():
    """Of 4 tokens two are known, with 0.5 and 0.25: the rest is 0.25, on one more at least."""
    top = torch.tensor([0.5, 0.25], dtype=DOUBLE).log()
    lower, upper = c.entropy_bounds(top, 4)
    assert lower.item() == pytest.approx(1.5 * math.log(2))
    assert upper.item() == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(4) + 0.25 * math.log(8))
    sure = c.self_certainty_bounds(top, 4)
    expected = -(math.log(0.5) + math.log(0.25) + 2 * math.log(0.125)) / 4 - math.log(4)
    assert sure.lower.item() == pytest.approx(expected) and sure.upper == math.inf
    one = c.self_certainty_bounds(torch.tensor([0.5, 0.25, 0.125], dtype=DOUBLE).log(), 4)
    expected = -(math.log(0.5) + math.log(0.25) + 2 * math.log(0.125)) / 4 - math.log(4)
    assert one.lower.item() == pytest.approx(expected) == one.upper.item()
    every = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=DOUBLE).log()
    whole = c.self_certainty_bounds(every, 4)
    assert whole.lower.item() == pytest.approx(expected) == whole.upper.item()
    assert c.entropy_bounds(every, 4).upper.item() == pytest.approx(1.75 * math.log(2))
    certain = c.entropy_bounds(torch.tensor([0.0, -math.inf], dtype=DOUBLE), 5)  # nothing is left for the others
    assert certain.lower == certain.upper == 0
    for known, vocabulary in ((top, 1), (top[:0], 4)):
        with pytest.raises(BadInput, match="give at least 1 and at most all"):
            c.entropy_bounds(known, vocabulary)


def test_shares_and_sizes_at_their_limits():
    values, mask = torch.arange(10.0)[None], torch.ones(1, 10)
    assert (
        c.bottom_groups(values, mask, window=1).item() == 0 and c.bottom_groups(values, mask, window=1, share=1) == 4.5
    )
    assert c.bottom_groups(values, mask, window=1, share=0.2).item() == 0.5
    for share in (-0.1, 0.0, 1.01):
        with pytest.raises(BadInput, match="above 0"):
            c.bottom_groups(values, mask, window=1, share=share)
    assert c.tail(values, mask, tokens=1).item() == 9 and c.groups(values, mask, window=1).equal(values)
    assert c.clusters(["ab", "ac"], by="text", threshold=0.5) == [0, 1]  # half of their letters are alike
    assert c.clusters(["ab", "ac"], by="text", threshold=0.49) == [0, 0]
    assert c.clusters(["AB", "ab"], by="text") == [0, 0]


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("1.5", 0.015),
        ("-0.5", math.nan),
        ("100", 1.0),
        ("101", math.nan),
        ("0.5 of 80%, confidence: 0.25", 0.25),
        ("80% is what I say, confidence", 0.8),
        ("Confidence: 40. Probability: 60", 0.6),
        ("60 and 60 %", 0.6),
        ("3/4", 0.75),
        (".5", 0.5),
        ("+7", 0.07),
        ("5/4", math.nan),
        ("1.0%", 0.01),
    ],
)
def test_statements_of_confidence(reply, value):
    assert c.verbalized(reply) == pytest.approx(value, nan_ok=True)


def test_semantic_entropy_of_answers_at_their_limits():
    assert math.isnan(c.semantic_entropy([], torch.zeros(0), estimate="normalized").item())
    assert c.semantic_entropy([1, 1], torch.tensor([-1.0, -2.0]), estimate="normalized").item() == 0
    single = c.semantic_entropy([4, 4], torch.tensor([0.25, 0.25], dtype=DOUBLE).log(), estimate="monte-carlo")
    assert single.item() == pytest.approx(math.log(2))
    assert c.semantic_entropy([0, 1], torch.zeros(2, dtype=torch.float16), estimate="normalized").dtype == torch.float32
    with pytest.raises(BadInput, match="and got none"):
        c.semantic_entropy([0, 1], estimate="normalized")
