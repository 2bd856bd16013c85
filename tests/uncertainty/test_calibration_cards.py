"""Cards of calibration against the formulas of their parts."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.core.errors import BadInput
from equipoise.core.scores import ece
from equipoise.core.statistics import item_interval, score_interval
from equipoise.uncertainty.bayes_result import MLE, TEACHER, Bin
from equipoise.uncertainty.calibration_cards import brier_scores, cards, negative_log_likelihoods, reliability


def test_scores_of_two_inputs_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.0, 0.5]], dtype=torch.float64)
    labels = torch.tensor([1, 1])
    found = negative_log_likelihoods(p, labels)
    assert found.tolist() == pytest.approx([math.log(5), -math.log(np.finfo(float).tiny)]) and found[1] < 708.5
    assert_close(brier_scores(p, labels), torch.tensor([0.49 + 0.64 + 0.01, 0.25 + 1 + 0.25], dtype=torch.float64))


def test_bins_of_reliability_hold_their_upper_edge():
    confidence = torch.tensor([0.25, 0.2, 0.5, 0.51, 1.0], dtype=torch.float64)
    found = reliability(confidence, torch.tensor([1, 0, 1, 0, 1]), bins=4)
    assert found[:3] == (Bin(2, 0.225, 0.5), Bin(1, 0.5, 1.0), Bin(1, 0.51, 0.0)) and found[3] == Bin(1, 1.0, 1.0)
    every = reliability(confidence, torch.ones(5))
    assert [each.count for each in every] == [0, 0, 1, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1]
    assert math.isnan(every[0].confidence) and math.isnan(every[0].accuracy)


def test_a_card_of_each_prediction():
    generator = torch.Generator().manual_seed(0)
    n = 60
    labels = torch.randint(0, 3, (n,), generator=generator)
    ways = {name: torch.randn(n, 3, generator=generator).double().softmax(-1) for name in (MLE, TEACHER, "student")}
    for row, name in enumerate(("student", TEACHER)):
        ways[name][row] = 0.5
        ways[name][row, (labels[row] + 1) % 3] = 0.0
    found = cards(ways, {MLE: 1, TEACHER: 10, "student": 2}, labels, seed=5)
    stream = np.random.default_rng(np.random.SeedSequence([5, 41]))
    gold = torch.eye(3, dtype=torch.float64)[labels]

    def scores(p):
        return {
            "accuracy": (p.argmax(-1) == labels).double().numpy(),
            "nll": -(p * gold).sum(-1).log().numpy(),
            "brier": ((p - gold) ** 2).sum(-1).numpy(),
        }

    before = scores(ways[MLE])
    for name, p in ways.items():
        own, card = scores(p), found[name]
        assert card.n == n and card.passes == {MLE: 1, TEACHER: 10, "student": 2}[name]
        assert card.confidence == pytest.approx(p.amax(-1).mean().item())
        for measure, sign in (("accuracy", 1), ("nll", -1), ("brier", -1)):
            for told, due in (
                (getattr(card, measure), item_interval(own[measure])),
                (card.gains[measure], item_interval(sign * (own[measure] - before[measure]))),
            ):
                assert (told.value, told.lower, told.upper) == pytest.approx((due.estimate, due.lower, due.upper))
        due = score_interval(ece, p.amax(-1).numpy(), own["accuracy"], generator=stream, draws=400, bins=15)
        assert (card.ece.value, card.ece.upper) == (due.estimate, due.upper)
        assert card.ece.lower == max(due.lower, 0) and len(card.bins) == 15
        q, least = ways[TEACHER].numpy(), 1e-300
        kl = (q * (np.log(np.maximum(q, least)) - np.log(np.maximum(p.numpy(), least)))).sum(-1).mean()
        assert card.to_teacher == pytest.approx(kl, abs=1e-12)
        assert sum(each.count for each in card.bins) == n
    assert found["student"].to_teacher > 1  # of a class that the teacher gives something and the student nothing
    alone = cards({MLE: ways[MLE]}, {MLE: 1}, labels)[MLE]
    assert math.isnan(alone.to_teacher) and alone.gains["nll"].value == 0
    with pytest.raises(BadInput, match="no labelled input"):
        cards({MLE: ways[MLE][:0]}, {MLE: 1}, labels[:0])


@pytest.mark.parametrize(
    ("p", "labels", "ends"),
    [
        ([[0.9, 0.1]] * 3, [0, 0, 1], {"accuracy": (0, 1), "nll": (0, math.inf), "brier": (0, 2)}),
        ([[1.0, 0.0]] * 3, [1, 1, 0], {"accuracy": (0, 1), "nll": (0, math.inf), "brier": (0, 2)}),
    ],
)
def test_intervals_end_where_their_measure_does(p, labels, ends):
    labels = torch.tensor(labels)
    found = cards({MLE: torch.tensor(p, dtype=torch.float64)}, {MLE: 1}, labels)[MLE]
    for measure, (least, most) in ends.items():
        told = getattr(found, measure)
        assert told.lower == least and (told.upper == most or most == math.inf > told.upper > 0), measure


def test_an_error_of_calibration_is_at_most_one():
    """Sure of all of 60 and right in one: 59 of 60, give or take a sixtieth, which would go beyond."""
    labels = torch.tensor([0] + [1] * 59)
    p = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(60, 2) * (1 + 1e-9)  # a mean of softmax may round so
    found = cards({MLE: p}, {MLE: 1}, labels)[MLE].ece
    assert found.value == pytest.approx(59 / 60) and 0.9 < found.lower < found.value and found.upper == 1.0
