"""Scores against brute force and closed forms: ties, repetitions, batches, what is undefined; their intervals."""

import itertools
import math

import numpy as np
import pytest

from equipoise.core import scores
from equipoise.core import statistics as st
from equipoise.core.errors import BadInput


@pytest.fixture
def generator():
    return np.random.default_rng(20260415)


def tied(generator, *shape):
    """Confidences of one digit, so that most are tied, and labels that they predict."""
    confidence = np.round(generator.random(shape), 1)
    return confidence, (generator.random(shape) < confidence).astype(float)


def pairs_won(confidence, labels):
    positive, negative = confidence[labels == 1], confidence[labels == 0]
    won = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(positive, negative)]
    return sum(won) / len(won)


def mean_risks(confidence, losses):
    """risk_coverage by its definition: every order that the confidences allow."""
    risks = []
    for order in itertools.permutations(range(len(losses))):
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order)):
            ordered = np.asarray(losses)[list(order)]
            risks.append(np.cumsum(ordered) / np.arange(1, len(losses) + 1))
    return np.mean(risks, axis=0)


def test_auroc_is_the_share_of_pairs_won_ties_half(generator):
    for _ in range(20):
        confidence, labels = tied(generator, 25)
        assert st.auroc(confidence, labels) == pytest.approx(pairs_won(confidence, labels))
        assert st.auroc(-confidence, labels) == pytest.approx(1 - pairs_won(confidence, labels))
    assert st.auroc([0.3] * 5, [1, 0, 0, 1, 0]) == 0.5
    assert st.auroc([-math.inf, 0.0, math.inf], [0, 1, 1]) == 1.0


def test_auprc_of_ties_is_one_threshold():
    # thresholds 0.9: 1 of 1 right; 0.5: 2 of 4; recall goes 0, 1/2, 1
    assert st.auprc([0.5, 0.9, 0.5, 0.5], [1, 1, 0, 0]) == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert st.auprc([0.5, 0.9, 0.5, 0.5], [0, 1, 0, 1]) == pytest.approx(0.5 * 1 + 0.5 * 0.5)  # whatever their order
    assert st.auprc([0.4] * 10, [1] * 3 + [0] * 7) == pytest.approx(0.3)


def test_risk_is_the_mean_over_all_orders_of_the_ties(generator):
    for _ in range(5):
        confidence = np.round(generator.random(6) * 3) / 3
        losses = generator.random(6)
        coverage, risk = st.risk_coverage(confidence, losses)
        expected = mean_risks(confidence, losses)
        assert coverage == pytest.approx(np.arange(1, 7) / 6)
        assert risk == pytest.approx(expected)
        assert st.aurc(confidence, losses) == pytest.approx(expected.mean())
    assert st.aurc([0.9, 0.8, 0.7], [0, 0, 1]) == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert st.aurc([0.5] * 8, [1, 0, 0, 0, 0, 0, 0, 1]) == pytest.approx(0.25)  # luck: the mean loss


def test_calibration_errors_by_hand():
    # (0, 0.5]: 0.2, 0.4, right 1 of 2; (0.5, 1]: 0.6, 0.8, 1.0, right 1 of 3
    confidence, labels = [0.2, 0.4, 0.6, 0.8, 1.0], [1, 0, 0, 0, 1]
    expected = 2 / 5 * abs(0.5 - 0.3) + 3 / 5 * abs(1 / 3 - 0.8)
    assert st.ece(confidence, labels, bins=2) == pytest.approx(expected)
    assert st.brier(confidence, labels) == pytest.approx((0.64 + 0.16 + 0.36 + 0.64 + 0) / 5)
    assert st.ece([1.0, 1.0, 0.0], [1, 1, 0]) == 0.0
    assert st.ece([1.0, 1.0], [0, 0]) == 1.0


@pytest.mark.parametrize("bins", [3, 7, 10, 15])
def test_an_edge_belongs_to_the_bin_below(bins):
    """m / M is in bin m: decided by the division itself, not by an edge summed up from steps."""
    for m in range(1, bins):
        below, above = m / bins, np.nextafter(m / bins, 1.0)
        inside = (m - 0.5) / bins
        # in one bin the gaps of a right and a wrong answer cancel in part, in two they do not
        together = abs((1 - below) + (0 - inside)) / 2
        apart = (abs(1 - above) + abs(0 - inside)) / 2
        assert st.ece([below, inside], [1, 0], bins=bins) == pytest.approx(together)
        assert st.ece([above, inside], [1, 0], bins=bins) == pytest.approx(apart)


SCORES = [st.auroc, st.auprc, st.brier, st.ece, st.aurc]


@pytest.mark.parametrize("score", SCORES)
def test_counts_are_repetitions(score, generator):
    confidence, labels = tied(generator, 30)
    counts = generator.integers(0, 4, 30)
    copied = score(np.repeat(confidence, counts), np.repeat(labels, counts))
    assert score(confidence, labels, counts) == pytest.approx(copied)
    assert score(confidence, labels, np.ones(30)) == pytest.approx(score(confidence, labels))


@pytest.mark.parametrize("score", SCORES)
def test_batches_are_computed_one_by_one_and_order_does_not_matter(score, generator):
    confidence, labels = tied(generator, 4, 5, 20)
    together = score(confidence, labels)
    assert together.shape == (4, 5)
    assert together[2, 3] == pytest.approx(score(confidence[2, 3], labels[2, 3]))
    assert isinstance(score(confidence[2, 3], labels[2, 3]), float)
    turned = generator.permutation(20)
    assert together == pytest.approx(score(confidence[..., turned], labels[..., turned]))
    counts = generator.integers(1, 3, (7, 1, 1, 20))
    assert score(confidence, labels, counts)[6, 2, 3] == pytest.approx(
        score(confidence[2, 3], labels[2, 3], counts[6, 0, 0])
    )
    assert score(confidence, labels[0, 0]).shape == (4, 5)  # labels that all seeds share


@pytest.mark.parametrize("score", SCORES)
def test_what_is_undefined_is_nan(score):
    assert math.isnan(score([], []))
    assert math.isnan(score([0.5, math.nan, 0.2], [0, 1, 1]))
    assert math.isnan(score([0.5, 0.3, 0.2], [0, 1, math.nan]))
    assert math.isnan(score([0.5, 0.3], [0, 1], [0, 0]))
    none = st.score_interval(score, np.zeros((10, 0)), np.zeros((10, 0)), generator=np.random.default_rng(0))
    assert math.isnan(none.estimate) and math.isnan(none.lower)
    batch = score([[0.5, 0.3], [0.5, math.nan]], [[0, 1], [0, 1]])
    assert not math.isnan(batch[0]) and math.isnan(batch[1])


def test_an_infinite_loss_has_no_mean_risk():
    assert math.isnan(st.aurc([0.1, 0.2], [math.inf, 0.0]))
    assert np.isnan(st.risk_coverage([[0.1, 0.2], [0.1, 0.2]], [[0.0, -math.inf], [0.0, 1.0]])[1]).tolist() == [
        [True, True],
        [False, False],
    ]


def test_one_draw_shows_no_spread(generator):
    confidence, labels = tied(generator, 10, 60)
    for draws in (0, 1):
        assert math.isnan(st.score_interval(st.auroc, confidence, labels, generator=generator, draws=draws).lower)


def test_one_class_alone_has_no_ranking():
    assert math.isnan(st.auroc([0.1, 0.2], [1, 1])) and math.isnan(st.auroc([0.1, 0.2], [0, 0]))
    assert math.isnan(st.auprc([0.1, 0.2], [0, 0]))
    assert st.auprc([0.1, 0.2], [1, 1]) == 1.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: st.ece([0.2, 1.5], [0, 1]), "Confidence 1 is 1.5"),
        (lambda: st.brier([[0.2, 0.5], [0.1, -0.1]], [0, 1]), "Confidence 1, 1 is -0.1"),
        (lambda: st.auroc([0.2, 0.5], [0, 2]), "Label 1 is 2: a label is 0 or 1"),
        (lambda: st.auroc(0.2, 1), "a list of confidences"),
        (lambda: st.auroc([0.2, 0.3, 0.4], [0, 1]), "Confidences [3] and labels [2]"),
        (lambda: st.ece([0.2], [0], bins=0), "bins is 0"),
        (lambda: st.auroc([0.2, 0.5], [0, 1], [0.5, 1]), "whole numbers"),
        (lambda: st.auroc([0.2, 0.5], [0, 1], [-1, 1]), "whole numbers"),
        (lambda: st.pass_at_k([1, 4], [3, 3], 1), "Problem 1 has 4 right of 3"),
        (lambda: st.pass_at_k([1.5], [3], 1), "1.5 right of 3"),
        (lambda: st.pass_at_k([-1], [3], 1), "-1 right of 3"),
        (lambda: st.pass_at_k([1], [2.75], 1), "1 right of 2.75"),
        (lambda: st.pass_at_k([1], [2.25], 1), "1 right of 2.25"),
        (lambda: st.pass_at_k([0.75], [3], 1), "0.75 right of 3"),
        (lambda: st.pass_at_k([1], [3], 0), "k is 0"),
    ],
)
def test_what_is_no_score_is_refused_with_its_place(call, words):
    with pytest.raises(BadInput) as error:
        call()
    assert words in str(error.value)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert st.pass_at_k(c, n, k) == pytest.approx(np.mean([any(each) for each in subsets])), (n, c, k)


def test_pass_at_k_of_large_and_unequal_counts():
    exact = 1 - math.comb(10**6 - 3, 1000) / math.comb(10**6, 1000)
    assert st.pass_at_k(3, 10**6, 1000) == pytest.approx(exact, rel=1e-12)
    tiny = st.pass_at_k(1, 10**15, 2)
    assert tiny == pytest.approx(2e-15, rel=1e-9)  # 1 - (a number that rounds to 1) would be 0 or 2.2e-15
    found = st.pass_at_k([0, 2, 5, 1], [10, 4, 5, 2], 3)
    assert found[:3] == pytest.approx([0.0, 1.0, 1.0]) and math.isnan(found[3])
    assert not np.signbit(found[0])


def test_pass_at_k_is_unbiased(generator):
    p, n, k = 0.15, 12, 5
    right = generator.binomial(n, p, 200_000)
    assert st.pass_at_k(right, n, k).mean() == pytest.approx(1 - (1 - p) ** k, abs=0.002)


# --- intervals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [st.auroc, st.auprc, st.ece, st.aurc])
def test_the_interval_is_the_pigeonhole_of_the_same_draws(score, generator):
    confidence, labels = tied(generator, 10, 60)
    clusters = generator.permutation(np.arange(60) // 4)
    found = st.score_interval(score, confidence, labels, clusters, generator=np.random.default_rng(1), draws=50)
    slow = st.pigeonhole_interval(
        lambda items: score(confidence[:, items], labels[:, items]),
        clusters,
        generator=np.random.default_rng(1),
        draws=50,
    )
    for name in ("estimate", "lower", "upper", "df", "seed_variance", "item_variance"):
        assert getattr(found, name) == pytest.approx(getattr(slow, name)), name
    assert (found.seeds, found.items, found.clusters) == (10, 60, 15)


def test_draws_in_pieces_are_the_same_draws(generator, monkeypatch):
    confidence, labels = tied(generator, 10, 30)
    whole = st.score_interval(st.auroc, confidence, labels, generator=np.random.default_rng(2), draws=20)
    monkeypatch.setattr(st, "DRAWN_AT_ONCE", 700)
    pieces = st.score_interval(st.auroc, confidence, labels, generator=np.random.default_rng(2), draws=20)
    assert (whole.lower, whole.upper) == pytest.approx((pieces.lower, pieces.upper), rel=1e-12)


def test_the_interval_of_a_mean_is_the_closed_one(generator):
    confidence, labels = tied(generator, 4, 30)
    clusters = np.arange(30) // 3
    found = st.score_interval(st.brier, confidence, labels, clusters, generator=generator)
    closed = st.mean_interval((confidence - labels) ** 2, clusters)
    assert (found.lower, found.upper, found.df) == (closed.lower, closed.upper, closed.df)


@pytest.mark.parametrize(
    ("seeds", "items", "units", "defined"),
    [
        (10, 40, ("seed", "item"), True),
        (9, 49, ("seed", "item"), False),
        (9, 50, ("seed", "item"), True),
        (10, 20, ("seed",), True),
        (9, 60, ("seed",), False),
        (10, 40, ("item",), False),
        (None, 50, ("seed", "item"), True),  # one run alone: its items
        (None, 49, ("seed", "item"), False),
    ],
)
def test_what_is_no_mean_needs_ten_seeds_or_fifty_sources(seeds, items, units, defined, generator):
    confidence, labels = tied(generator, *([] if seeds is None else [seeds]), items)
    found = st.score_interval(st.auroc, confidence, labels, generator=generator, draws=40, units=units)
    assert found.estimate == pytest.approx(np.mean(st.auroc(confidence, labels)))
    assert math.isnan(found.lower) != defined and math.isnan(found.upper) != defined


def test_settings_reach_the_score(generator):
    confidence, labels = tied(generator, 10, 40)
    found = st.score_interval(st.ece, confidence, labels, generator=generator, draws=10, bins=4)
    assert found.estimate == pytest.approx(st.ece(confidence, labels, bins=4).mean())


def test_the_interval_of_an_auroc_holds_the_truth(generator):
    """Two normals one and a half apart: the truth is Phi(1.5 / sqrt 2). 60 items, 10 seeds that differ in skill."""
    truth, held = 0.5 * (1 + math.erf(1.5 / 2)), 0
    for _ in range(100):
        labels = np.arange(60) % 2
        hard = 0.6 * generator.standard_normal(60)
        confidence = 1.5 * labels + hard + 0.8 * generator.standard_normal((10, 60))
        found = st.score_interval(st.auroc, confidence, labels, generator=generator, draws=100)
        held += found.lower <= truth <= found.upper
    assert held >= 90


@pytest.mark.parametrize("units", [("seeds",), (), ("seed", "seed"), "seed"])
def test_units_are_closed_words(units, generator):
    values = generator.random((3, 20))
    for call in (
        lambda: st.mean_interval(values, units=units),
        lambda: st.two_sample_interval(values, values, np.arange(20), np.arange(20), units=units),
        lambda: st.pigeonhole_interval(lambda i: values[:, i].mean(1), np.arange(20), generator=generator, units=units),
        lambda: st.score_interval(st.auroc, values, values > 0.5, generator=generator, units=units),
    ):
        with pytest.raises(BadInput):
            call()


def test_squared_errors_by_hand():
    assert scores.squared_errors([0.2, 0.9, 1.0], [1, 1, 0]).tolist() == pytest.approx([0.64, 0.01, 1.0])
