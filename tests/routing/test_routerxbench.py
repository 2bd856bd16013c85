"""RouterXBench's measures against hand-computed cases, brute force over ties, straight lines and scikit-learn."""

import itertools
import math

import numpy as np
import pytest

from equipoise.core.errors import BadInput
from equipoise.core.statistics import item_interval, pigeonhole_interval
from equipoise.routing import routerxbench as bench
from equipoise.routing.routerxbench import Bands

FOUR = ([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], [1, 1, 1, 1])


def test_four_prompts_by_hand():
    a = bench.curve(*FOUR)
    assert a.shape == (101,) and a[0] == 0.5 and a[-1] == 1.0
    assert (a[:25] == 0.5).all() and (a[25:50] == 0.75).all() and (a[50:] == 1).all()
    assert bench.auroc(FOUR[0], FOUR[1]) == 1.0
    assert bench.lpm(*FOUR) == pytest.approx((25 * 0.5 + 6 * 0.75) / 31)
    assert bench.lpm(*FOUR, band=(0.25, 0.3)) == pytest.approx(0.75)
    assert bench.hcr(*FOUR, band=(0.5, 1.0)) == pytest.approx(1 - 0.625)  # rates .25 to 1
    assert bench.mpm(*FOUR, budget=(0, 0.2)) == pytest.approx(0.75)  # above A(.2) = .5, below .925
    assert math.isnan(bench.mpm(*FOUR)) and math.isnan(bench.hcr(*FOUR))  # nothing there: not 0


def test_rates_are_whole_hundredths():
    """0.29 * 100 is 28.999... in floating point: A(0.29) would be 0.28."""
    n = 100
    a = bench.curve(np.arange(n), np.zeros(n), np.ones(n))
    assert a.tolist() == [k / 100 for k in range(101)]
    assert bench.lpm(np.arange(n), np.zeros(n), np.ones(n), band=(0.29, 0.29)) == 0.29
    assert bench.hcr(np.arange(n), np.zeros(n), np.ones(n)) == pytest.approx(0.10)  # the middle of the band
    odd = bench.curve(np.arange(7), np.zeros(7), np.ones(7))
    assert odd.tolist() == [(k * 7 // 100) / 7 for k in range(101)]


def test_random_scores_give_the_straight_line():
    generator = np.random.default_rng(0)
    weak, strong = generator.random(1000), generator.random(1000) + 0.4
    curves = np.mean([bench.curve(generator.random(1000), weak, strong) for _ in range(400)], axis=0)
    line = weak.mean() + np.arange(101) / 100 * (strong.mean() - weak.mean())
    assert np.abs(curves - line).max() < 0.003
    same = bench.curve(np.zeros(1000), weak, strong)  # all equal: exactly the mean over orders
    np.testing.assert_allclose(same, line, rtol=1e-12)
    assert bench.hcr(np.zeros(1000), weak, strong) == pytest.approx(0.10)


def test_ties_count_as_the_mean_over_their_orders():
    score, weak, strong = [1, 1, 1, 0, 2], np.array([0.3, 0.0, 1.0, 0.5, 0.9]), np.array([0.6, 1.0, 0.8, 0.2, 1.0])
    orders = [order for order in itertools.permutations(range(5)) if order[0] == 3 and order[4] == 4]
    by_hand = []
    for k in range(101):
        sent = k * 5 // 100
        means = [sum(strong[i] if place < sent else weak[i] for place, i in enumerate(order)) / 5 for order in orders]
        by_hand.append(np.mean(means))
    np.testing.assert_allclose(bench.curve(score, weak, strong), by_hand, rtol=1e-12)


def test_perfect_constant_and_negated_routers():
    generator = np.random.default_rng(1)
    weak, strong = (generator.random(200) < 0.5).astype(float), (generator.random(200) < 0.8).astype(float)
    only_weak = ((weak == 1) & (strong == 0)).mean()
    perfect = bench.curve(weak, weak, strong)
    assert bench.auroc(weak, weak) == 1
    assert perfect.max() == pytest.approx(strong.mean() + only_weak, abs=0.006)
    assert int(perfect.argmax()) <= round(100 * (weak == 0).mean()) + 1
    assert bench.auroc(np.zeros(200), weak) == 0.5
    score = generator.permutation(200)
    assert bench.auroc(-score, weak) == pytest.approx(1 - bench.auroc(score, weak))
    assert math.isnan(bench.auroc(score, np.ones(200)))
    from sklearn.metrics import roc_auc_score

    tied = np.round(generator.random(200), 1)
    assert bench.auroc(tied, weak) == pytest.approx(roc_auc_score(weak, tied), rel=1e-12)


def test_where_strong_is_no_better_the_band_is_undefined():
    generator = np.random.default_rng(2)
    score, weak = generator.random(300), generator.random(300)
    for strong in (weak, weak - 0.1, weak[::-1]):
        assert math.isnan(bench.hcr(score, weak, strong)) and math.isnan(bench.mpm(score, weak, strong))
        assert math.isfinite(bench.lpm(score, weak, strong))
    assert math.isnan(bench.lpm([], [], []))


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_a_unit_changes_no_set_of_rates(unit):
    generator = np.random.default_rng(3)
    score, weak, strong = generator.random(500), generator.random(500), generator.random(500) + 0.3
    assert bench.hcr(score, weak * unit, strong * unit) == bench.hcr(score, weak, strong)
    scaled, plain = (bench.mpm(score, weak * each, strong * each) for each in (unit, 1))
    assert scaled == pytest.approx(plain * unit, rel=1e-9)


@pytest.mark.slow
def test_intervals_are_those_of_a_mean_where_the_measure_is_one():
    """Of equal scores LPM is the mean of weak + 0.15 gain, so its interval is known in closed form."""
    generator = np.random.default_rng(4)
    weak, strong = (generator.random(400) < 0.4).astype(float), (generator.random(400) < 0.7).astype(float)
    card = bench.measure(np.zeros(400), weak, strong, draws=1500)
    exact = item_interval(weak + 0.15 * (strong - weak))
    assert card.lpm.value == pytest.approx(exact.estimate)
    assert card.lpm.upper - card.lpm.lower == pytest.approx(exact.upper - exact.lower, rel=0.08)
    assert card.weak.value == weak.mean() and card.strong.value == strong.mean()
    assert str(card.bands) == "c = [0, 0.3], rho = [0.85, 0.95]" and len(card.curve) == 101

    score = generator.random(400)
    once = bench.measure(score, weak, strong, draws=200)
    thrice = bench.measure(
        np.repeat(score, 3), np.repeat(weak, 3), np.repeat(strong, 3), clusters=np.repeat(range(400), 3), draws=200
    )
    alone = bench.measure(np.repeat(score, 3), np.repeat(weak, 3), np.repeat(strong, 3), draws=200)
    for name in ("auroc", "lpm", "weak"):
        one, three, wrong = (getattr(card, name) for card in (once, thrice, alone))
        assert three.upper - three.lower == pytest.approx(one.upper - one.lower, rel=0.03)
        assert wrong.upper - wrong.lower < 0.7 * (one.upper - one.lower)
    assert (thrice.n, thrice.clusters) == (1200, 400)
    few = bench.measure(score[:40], weak[:40], strong[:40], draws=20)
    assert math.isnan(few.lpm.lower) and math.isfinite(few.lpm.value) and math.isfinite(few.weak.lower)


def test_labels_of_open_ended_answers_compare_both():
    weak, strong = np.array([7.0, 5.0, 9.0]), np.array([7.0, 6.0, 8.0])
    assert bench.default_labels(weak, strong).tolist() == [1, 0, 1]
    assert bench.default_labels(np.array([0.0, 1.0]), np.array([0.0, 0.0])).tolist() == [0, 1]


def test_a_label_depends_on_its_own_row_alone():
    """The paper's two rules by hand: weak itself for correctness, a comparison for open ends; the grade 1 is no success."""
    correctness = [((w, g), w) for w in (0.0, 1.0) for g in (0.0, 1.0)]
    open_ended = [((w, g), float(w >= g)) for w in (0.1, 0.5, 0.9) for g in (0.0, 0.1, 0.5, 0.9, 1.0)]
    graded = [((w, g), float(w >= g)) for w in range(1, 11) for g in range(1, 11)]
    halves = [((0.0, 0.5), 0.0), ((1.0, 0.5), 1.0)]
    rows = [*correctness, *open_ended, *graded, *halves]
    pairs, expected = (np.array(each, float) for each in zip(*rows, strict=True))
    assert bench.default_labels(*pairs.T).tolist() == expected.tolist()
    for (weak, strong), label in rows:
        assert bench.default_labels(np.array([weak]), np.array([strong])).tolist() == [label]


def test_what_both_miss_is_escalated_for_nothing():
    weak, strong = [1, 0, 0, 0, 1], [1, 1, 0, 0, 0]
    table = bench.outcomes(weak, strong, sent=[0, 1, 1, 1, 0])
    cells = {name: getattr(table, name).value for name in ("both", "only_strong", "only_weak", "neither")}
    assert cells == pytest.approx({"both": 0.2, "only_strong": 0.2, "only_weak": 0.2, "neither": 0.4})
    assert table.sent == 0.6
    assert table.escalated == pytest.approx({"both": 0, "only_strong": 1 / 3, "only_weak": 0, "neither": 2 / 3})
    assert math.isnan(bench.outcomes(weak, strong).escalated["neither"])
    with pytest.raises(BadInput, match="right"):
        bench.outcomes([0.5], [1])


def test_who_is_right_is_undefined_beyond_zero_to_one():
    generator = np.random.default_rng(0)
    weak, strong, sent = generator.random(200), generator.random(200), generator.random(200) < 0.3
    weak[:2], strong[:2] = (0.5, 1.0), (0.0, np.nextafter(0.5, 0))
    table = bench.quality_outcomes(weak, strong, sent=sent)
    for name, w, s in (("both", 1, 1), ("only_strong", 0, 1), ("only_weak", 1, 0), ("neither", 0, 0)):
        cell = [(a >= 0.5) == w and (b >= 0.5) == s for a, b in zip(weak, strong, strict=True)]
        assert getattr(table, name).value == pytest.approx(np.mean(cell))
        assert table.escalated[name] == pytest.approx(np.mean(np.array(cell)[sent]))
    for scale in ((weak * 9 + 1, strong * 9 + 1), (weak, strong * 2), (weak - 0.01, strong)):
        other = bench.quality_outcomes(*scale, sent=sent)
        assert (other.n, other.sent) == (table.n, table.sent)
        for name in other.escalated:
            assert math.isnan(getattr(other, name).value) and math.isnan(other.escalated[name])


def test_scenarios_and_domains():
    generator = np.random.default_rng(5)
    weak = {name: (generator.random(120) < 0.5).astype(float) for name in ("sums", "sorting")}
    strong = {name: np.ones(120) for name in weak}
    noise = {name: generator.random(120) for name in weak}

    def score(fitted, tested):
        return weak[tested] + noise[tested] if fitted == tested else -weak[tested]

    matrix = bench.cross_domain(score, list(weak), weak, strong)
    assert matrix["sums", "sums"].value == 1 and matrix["sums", "sorting"].value == 0
    cards = {
        name: bench.measure(score("sums", name), weak["sums"] if name == "sums" else weak[name], strong[name], draws=20)
        for name in weak
    }
    best = bench.scenarios(cards)
    assert best["auroc"] == ["sums", "sorting"]
    assert best["hcr"][0] == "sums"
    with pytest.raises(BadInput, match="of"):
        bench.cross_domain(score, list(weak), weak, strong, of="auc")


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(BadInput, match="for the same prompts"):
        bench.curve([1, 2], [1], [1])
    with pytest.raises(BadInput, match="weak of prompt 1 is nan"):
        bench.lpm([1, 2], [1, math.nan], [1, 1])
    with pytest.raises(BadInput, match="whole hundredths"):
        bench.lpm([1], [1], [1], band=(0, 0.305))
    for wrong in ((0.3, 0.2), (-0.1, 0.2), (0.5, 1.2)):
        with pytest.raises(BadInput, match="band"):
            bench.hcr([1], [1], [1], band=wrong)
        with pytest.raises(BadInput, match="band"):
            Bands(quality=wrong)


def test_the_interval_of_a_share_ends_at_one_and_that_of_grades_does_not():
    right = np.ones(40)
    right[3] = 0
    card = bench.measure(np.arange(40.0), right, right)
    assert card.strong.value == 0.975 and card.strong.upper == 1.0
    graded = bench.measure(np.arange(40.0), 10 * right, 10 * right)
    assert graded.strong.upper == pytest.approx(9.75 + (9.75 - graded.strong.lower)) and graded.strong.upper > 10


def answered(seed, n):
    """Weak right half the time, strong nine times in ten."""
    generator = np.random.default_rng(seed)
    weak = (generator.random(n) < 0.5).astype(float)
    return weak, (generator.random(n) < 0.9).astype(float), generator


def test_a_card_is_of_clusters_drawn_from_its_own_stream():
    """Every measure redrawn by the indices themselves, from the stream [seed, 11], the same draws for each."""
    weak, strong, generator = answered(0, 120)
    score = weak - strong + generator.normal(size=120) * 0.6
    clusters = np.arange(120) // 2
    bands = Bands(budget=(0.0, 0.1), quality=(0.8, 0.9))
    card = bench.measure(score, weak, strong, clusters=clusters, bands=bands, seed=3, draws=25)
    solved = bench.default_labels(weak, strong)
    measures = {
        "lpm": lambda items: bench.lpm(score[items], weak[items], strong[items], band=(0.0, 0.1)),
        "mpm": lambda items: bench.mpm(score[items], weak[items], strong[items], band=(0.8, 0.9), budget=(0.0, 0.1)),
        "hcr": lambda items: bench.hcr(score[items], weak[items], strong[items], band=(0.8, 0.9)),
        "auroc": lambda items: bench.auroc(score[items], solved[items]),
    }
    for name, read in measures.items():
        stream = np.random.default_rng(np.random.SeedSequence([3, 11]))
        wanted = pigeonhole_interval(read, clusters, generator=stream, draws=25, units=("item",))
        found = getattr(card, name)
        assert (found.value, found.lower, found.upper) == pytest.approx(
            (float(wanted.estimate), float(wanted.lower), float(wanted.upper))
        ), name
    assert (card.n, card.clusters) == (120, 60) and card.bands == "c = [0, 0.1], rho = [0.8, 0.9]"
    assert card.curve == tuple(bench.curve(score, weak, strong)) and card.curve[0] == weak.mean()
    means = item_interval(strong, clusters)
    assert (card.strong.value, card.strong.lower) == pytest.approx((strong.mean(), float(means.lower)))
    other = bench.measure(score, weak, strong, solved=1 - solved, clusters=clusters, draws=2)
    assert other.auroc.value == pytest.approx(1 - card.auroc.value)


def test_bounds_stay_where_their_measure_can_be():
    weak, strong, generator = answered(0, 50)
    score = generator.permutation(50).astype(float)
    early = bench.measure(score, weak, strong, bands=Bands(quality=(0, 0.02)), seed=3, draws=40).hcr
    assert early.value == 0.995 and early.upper == 1.0 and 0.9 < early.lower < 0.995
    weak, strong, generator = answered(0, 50)
    score = strong - weak - generator.normal(size=50) * 0.6
    late = bench.measure(score, weak, strong, bands=Bands(quality=(0.9, 1)), seed=3, draws=40).hcr
    assert late.value == pytest.approx(0.01) and late.lower == 0.0 and 0.01 < late.upper < 0.05
    ranked = np.arange(60.0)
    label = (ranked > 30).astype(float)
    label[[30, 31]] = 1.0, 0.0
    high, low = (bench.measure(ranked, each, np.ones(60), draws=40).auroc for each in (label, 1 - label))
    assert high.value == pytest.approx(1 - 1 / (29 * 31)) and high.upper == 1.0 and 0.9 < high.lower < high.value
    assert low.value == pytest.approx(1 / (29 * 31)) and low.lower == 0.0 and low.value < low.upper < 0.1
    none = np.zeros(60)
    none[0] = 1.0
    rare = bench.measure(ranked, none, np.ones(60), draws=5).weak
    assert rare.value == pytest.approx(1 / 60) and rare.lower == 0.0 and rare.upper > 1 / 60


def test_what_is_no_mean_has_bounds_from_fifty_clusters_on():
    weak, strong, generator = answered(2, 100)
    score = generator.random(100)
    for clusters in (49, 50):
        card = bench.measure(score, weak, strong, clusters=np.arange(100) % clusters, draws=10)
        assert card.clusters == clusters
        for name in ("lpm", "mpm", "hcr", "auroc"):
            assert math.isfinite(getattr(card, name).value)
            assert math.isfinite(getattr(card, name).lower) == (clusters == 50), name
        assert math.isfinite(card.weak.lower)


def test_shapes_and_ends_that_are_allowed():
    for wrong in (1.0, [[1.0, 2.0]]):
        with pytest.raises(BadInput, match="one number a prompt"):
            bench.curve(wrong, wrong, wrong)
    assert math.isnan(bench.hcr([1, 2], [0, 0], [0, 0])) and math.isnan(bench.mpm([1, 2], [0, 0], [0, 0]))
    assert bench.curve([1, 2], [0, 0], [1, 1], [1, 3])[[0, 24, 25, 50, 100]] == pytest.approx([0, 0, 0.25, 0.5, 1])
    assert bench.lpm(*FOUR, band=(0.0, 1.0)) == pytest.approx((25 * 0.5 + 25 * 0.75 + 51) / 101)
    assert bench.lpm(*FOUR, band=(0.5, 0.5)) == 1.0
    assert bench.hcr(*FOUR, band=(0.0, 0.0)) == pytest.approx(1 - 0.12)  # rates 0 to 0.24
    with pytest.raises(BadInput, match="solved is"):
        bench.measure(*FOUR, solved=[1, 0])
    for size in ([1, 2], [[1, 2, 3, 4]]):
        with pytest.raises(BadInput, match="clusters are"):
            bench.measure(*FOUR, clusters=size)


def test_who_was_right_among_those_that_are_sent():
    weak, strong = np.tile([1, 0, 0, 1], 30), np.tile([1, 1, 0, 0], 30)
    sent = np.arange(120) < 6
    table = bench.outcomes(weak, strong, sent=sent, clusters=np.arange(120) // 2)
    for name, cell in (("both", weak & strong), ("only_weak", weak & ~strong & 1)):
        wanted = item_interval(cell.astype(float), np.arange(120) // 2)
        found = getattr(table, name)
        assert (found.value, found.lower, found.upper) == pytest.approx(
            (0.25, float(wanted.lower), float(wanted.upper))
        )
    assert (table.n, table.sent) == (120, 0.05)
    assert table.escalated == pytest.approx({"both": 2 / 6, "only_strong": 2 / 6, "only_weak": 1 / 6, "neither": 1 / 6})
    nobody = bench.outcomes(weak, strong)
    assert nobody.sent == 0.0 and all(math.isnan(each) for each in nobody.escalated.values())
    assert math.isnan(bench.outcomes([], []).sent)
    rare = bench.outcomes(np.arange(40) == 0, np.ones(40))
    assert rare.both.lower == 0.0 and rare.only_strong.upper == 1.0 and rare.both.upper > 1 / 40
