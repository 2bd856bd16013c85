"""Intervals, exact tests, power and paths against scipy, statsmodels, closed forms and brute force."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint

from equipoise.core import statistics as st
from equipoise.core.errors import BadInput


@pytest.fixture
def generator():
    return np.random.default_rng(20260414)


def test_seed_interval_is_students_t(generator):
    values = generator.exponential(size=7)
    interval = st.seed_interval(values, level=0.98)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.98)
    assert (interval.lower, interval.upper) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert interval.df == pytest.approx(6)


def test_one_seed_has_no_interval():
    interval = st.seed_interval([0.3])
    assert interval.estimate == 0.3
    assert math.isnan(interval.lower) and math.isnan(interval.upper)


def test_item_interval_is_students_t_over_items(generator):
    values = generator.standard_normal(31)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    interval = st.item_interval(values)
    assert (interval.lower, interval.upper) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_equal_clusters_are_a_t_interval_over_their_means(generator):
    values = generator.standard_normal(40)
    clusters = generator.permutation(np.repeat(np.arange(8), 5))
    means = [values[clusters == c].mean() for c in range(8)]
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    interval = st.item_interval(values, clusters)
    assert (interval.lower, interval.upper) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert interval.clusters == 8 and interval.items == 40


def test_unequal_clusters_match_the_cluster_robust_variance_of_statsmodels(generator):
    import statsmodels.api as sm

    clusters = np.repeat(np.arange(6), [1, 9, 2, 5, 3, 4])
    values = generator.standard_normal(24) + generator.standard_normal(6)[clusters]
    robust = sm.OLS(values, np.ones(24)).fit(cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False})
    assert st.item_interval(values, clusters).item_variance == pytest.approx(robust.bse[0] ** 2 * 6 / 5, rel=1e-9)


def test_few_large_clusters_have_fewer_degrees_of_freedom(generator):
    values = generator.standard_normal(100)
    equal = st.item_interval(values, np.arange(100) // 10)
    lopsided = st.item_interval(values, np.minimum(np.arange(100) // 2, 9))
    assert equal.df == pytest.approx(9)
    assert lopsided.df < 1  # one source holds 82 of 100 items


def test_two_way_interval_from_its_written_formula(generator):
    d = generator.standard_normal((4, 9)) + generator.standard_normal((4, 1))
    seed, item = d.mean(1).var(ddof=1) / 4, d.mean(0).var(ddof=1) / 9
    df = (seed + item) ** 2 / (seed**2 / 3 + item**2 / 8)
    half = stats.t.ppf(0.975, df) * math.sqrt(seed + item)
    interval = st.mean_interval(d)
    assert (interval.lower, interval.upper) == pytest.approx((d.mean() - half, d.mean() + half), rel=1e-12)
    assert interval.df == pytest.approx(df)


def test_batches_are_computed_one_by_one(generator):
    d = generator.standard_normal((3, 4, 6))
    together = st.mean_interval(d, [0, 0, 1, 1, 2, 3])
    assert (together.seeds, together.items, together.clusters) == (4, 6, 4)
    assert together.lower == pytest.approx([st.mean_interval(each, [0, 0, 1, 1, 2, 3]).lower for each in d])


def test_a_missing_cell_leaves_each_seed_its_own_mean(generator):
    d = generator.standard_normal((3, 5))
    d[1, 2] = np.nan
    interval = st.mean_interval(d)
    means = np.nanmean(d, axis=1)
    assert interval.estimate == pytest.approx(means.mean())
    assert interval.seed_variance == pytest.approx(means.var(ddof=1) / 3)
    weights = ~np.isnan(d) / (3 * (~np.isnan(d)).sum(1, keepdims=True))
    sums = np.nansum(weights * (d - means.mean()), axis=0)
    assert interval.item_variance == pytest.approx(5 / 4 * (sums**2).sum())


def test_an_item_that_one_seed_saw_counts_where_seeds_would_be_the_same_next_time():
    d = np.array([[1.0, 2.0, 4.0, math.nan], [2.0, 7.0, 3.0, 8.0]])
    mean = (7 / 3 + 5) / 2
    errors = [(1 - mean) / 6 + (2 - mean) / 8, (2 - mean) / 6 + (7 - mean) / 8, (4 - mean) / 6 + (3 - mean) / 8]
    squares, last = sum(error**2 for error in errors), ((8 - mean) / 8) ** 2
    interval = st.mean_interval(d, units=("item",))
    assert interval.estimate == pytest.approx(mean) and (interval.clusters, interval.seed_variance) == (4, 0)
    assert interval.item_variance == interval.staying_variance == pytest.approx(4 / 3 * (squares + last))
    both = st.mean_interval(d)  # what varies from seed to seed is in their part already
    assert both.clusters == 3 and both.item_variance == pytest.approx(3 / 2 * squares)
    assert both.item_df == pytest.approx(2) and both.seed_variance == pytest.approx(np.var([7 / 3, 5], ddof=1) / 2)
    alone = st.mean_interval(d[1:])
    assert (
        alone.clusters == 4
        and alone.item_df == pytest.approx(3)
        and alone.item_variance == pytest.approx(np.var(d[1], ddof=1) / 4)
    )
    assert math.isnan(alone.seed_variance)


def test_a_seed_without_items_is_undefined_not_dropped():
    assert math.isnan(st.mean_interval([[1.0, 2.0], [np.nan, np.nan], [0.0, 1.0]]).estimate)


def test_seeds_with_items_of_their_own_count_seeds_only(generator):
    d = np.full((4, 20), np.nan)
    for seed in range(4):
        d[seed, 5 * seed : 5 * seed + 5] = generator.standard_normal(5)
    interval = st.mean_interval(d)
    expected = st.seed_interval(np.nanmean(d, axis=1))
    assert (interval.lower, interval.upper, interval.df) == pytest.approx((expected.lower, expected.upper, 3.0))
    assert interval.items == 20 and interval.clusters == interval.item_variance == interval.staying_variance == 0


@pytest.mark.parametrize("values", [np.zeros((3, 0)), np.full((3, 4), np.nan), [[1.0, math.inf], [2.0, 3.0]]])
def test_without_items_or_with_an_infinite_one_there_is_no_interval(values):
    interval = st.mean_interval(values)
    assert math.isnan(interval.lower) and math.isnan(interval.upper)
    ends = st.pigeonhole_interval(
        lambda items: np.array([math.inf, -math.inf]), np.arange(5), generator=np.random.default_rng(0), draws=9
    )
    assert math.isnan(ends.estimate) and math.isnan(ends.lower)


def test_two_samples_that_share_their_items_are_paired(generator):
    a, b = generator.standard_normal((2, 4, 12)) + generator.standard_normal(12)
    items = np.arange(12)
    paired, apart = st.mean_interval(a - b), st.two_sample_interval(a, b, items, items + 12)
    together = st.two_sample_interval(a, b, items, items)
    assert (together.lower, together.upper) == pytest.approx((paired.lower, paired.upper), rel=1e-12)
    assert apart.item_variance > 2 * paired.item_variance


def test_two_samples_drawn_apart_add_their_item_variances(generator):
    a, b = generator.standard_normal((3, 400)), generator.standard_normal((3, 300))
    interval = st.two_sample_interval(a, b, np.arange(400), np.arange(300) + 400)
    expected = a.mean(0).var(ddof=1) / 400 + b.mean(0).var(ddof=1) / 300
    assert interval.item_variance == pytest.approx(expected, rel=0.01)


def test_bonferroni():
    assert [st.bonferroni_level(m) for m in (0, 1, 2, 3)] == pytest.approx([0.95, 0.95, 0.975, 1 - 0.05 / 3])


@pytest.mark.parametrize(("wins", "losses"), [(8, 2), (3, 3), (0, 7), (25, 9), (1, 0)])
def test_mcnemar_against_statsmodels(wins, losses):
    table = [[50, wins], [losses, 40]]
    assert st.mcnemar(wins, losses) == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue, rel=1e-9)


def test_what_never_differs_has_an_interval_without_a_width():
    interval = st.mean_interval([[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]])
    assert (interval.estimate, interval.lower, interval.upper) == (2, 2, 2)
    assert (interval.seed_variance, interval.item_variance, interval.staying_variance) == (0, 0, 0)


def test_an_exact_interval_has_no_variances_nor_seeds():
    interval = st.mcnemar_interval(8, 2, 40)
    low, high = proportion_confint(8, 10, method="beta")
    assert interval.estimate == 6 / 40 and interval.level == 0.95
    assert (interval.lower, interval.upper) == pytest.approx(((2 * low - 1) / 4, (2 * high - 1) / 4))
    parts = (interval.df, interval.item_variance, interval.item_df, interval.staying_variance)
    assert all(map(math.isnan, parts)) and interval.seed_variance == 0
    assert (interval.seeds, interval.items, interval.clusters) == (1, 40, 40)


def test_a_sum_of_credits_may_exceed_its_count_by_rounding_alone():
    assert st.wilson(3 * (1 + 5e-13), 3) == st.wilson(3, 3)
    for successes, of in ((3 + 1e-9, 3), (-1e-9, 3)):
        with pytest.raises(BadInput, match="is no proportion"):
            st.wilson(successes, of)


def test_a_rate_is_attainable_but_for_a_thousandth_of_its_last_digit():
    for off, whether in ((0, True), (8.5e-7, True), (1.5e-6, False), (-8.5e-7, True), (-1.5e-6, False)):
        assert st.attainable(0.333 + off, 3, digits=3) is whether
    assert [st.attainable(rate, 2, digits=1) for rate in (-0.5, 0.0, 1.0, 1.5)] == [False, True, True, False]


def test_no_seeds_are_no_spread_of_them():
    assert math.isnan(st.mean_interval(np.zeros((0, 3))).seed_variance)


def test_no_seeds_have_no_mean():
    interval = st.mean_interval(np.zeros((0, 3)))
    assert math.isnan(interval.estimate) and math.isnan(interval.lower) and interval.seeds == 0


def test_mcnemar_without_discordant_pairs():
    assert st.mcnemar(0, 0) == 1.0
    assert math.isnan(st.mcnemar_interval(0, 0, 50).lower)


def test_mcnemar_interval_excludes_zero_exactly_when_the_test_rejects():
    for wins, losses in itertools.product(range(15), range(15)):
        if wins + losses:
            interval = st.mcnemar_interval(wins, losses, 100)
            rejected = interval.lower > 0 or interval.upper < 0
            assert rejected == (st.mcnemar(wins, losses) < 0.05), (wins, losses)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 17), (250, 1000)])
def test_wilson_against_statsmodels(k, n):
    assert st.wilson(k, n, level=0.9) == pytest.approx(proportion_confint(k, n, alpha=0.1, method="wilson"), abs=1e-12)


def test_wilson_of_nothing_and_of_what_is_no_proportion():
    assert all(math.isnan(bound) for bound in st.wilson(0, 0))
    for successes in (5, -1, math.nan):
        with pytest.raises(BadInput, match="of 3 is no proportion"):
            st.wilson(successes, 3)


def test_attainable_rates_are_those_some_count_rounds_to():
    for of in (1, 7, 10, 200):
        reachable = {round(k / of, 3) for k in range(of + 1)}
        for thousandths in range(-1, 1003):
            rate = thousandths / 1000
            assert st.attainable(rate, of, digits=3) == (rate in reachable), (rate, of)
    assert st.attainable(math.nan, 0, digits=3) and not st.attainable(0.0, 0, digits=3)
    assert not st.attainable(math.nan, 10, digits=3)


def test_pigeonhole_of_a_mean_is_the_two_way_interval(generator):
    d = generator.standard_normal((5, 60)) + generator.standard_normal(60) + generator.standard_normal((5, 1))
    clusters = np.arange(60) // 2
    drawn = st.pigeonhole_interval(lambda items: d[:, items].mean(1), clusters, generator=generator, draws=4000)
    closed = st.mean_interval(d, clusters)
    assert drawn.estimate == pytest.approx(closed.estimate)
    assert drawn.seed_variance == pytest.approx(closed.seed_variance)
    assert drawn.item_variance == pytest.approx(closed.item_variance, rel=0.08)
    assert drawn.df == pytest.approx(closed.df, rel=0.08)


def test_pigeonhole_of_few_clusters_is_as_wide_as_the_closed_form(generator):
    """Redrawing 4 clusters shows 3/4 of their variance."""
    d = np.repeat(generator.standard_normal(4), 3)[None]
    clusters = np.repeat(np.arange(4), 3)
    drawn = st.pigeonhole_interval(
        lambda items: d[:, items].mean(1), clusters, generator=generator, draws=6000, units=("item",)
    )
    assert drawn.item_variance == pytest.approx(st.item_interval(d[0], clusters).item_variance, rel=0.1)
    assert drawn.df == pytest.approx(3) and drawn.seed_variance == 0


def test_pigeonhole_that_is_undefined_says_so(generator):
    def undefined_without_the_first(items):
        return np.where(0 in items, 1.0, np.nan) * np.ones(3)

    interval = st.pigeonhole_interval(undefined_without_the_first, np.arange(30), generator=generator)
    assert math.isnan(interval.lower)  # item 0 is missing from 36 % of the draws


# --- paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("units", "counted"), [(("seed", "item"), 3), (("item",), 3), (("seed",), 0)])
def test_a_redrawn_interval_from_its_written_formula(units, counted):
    per_seed, redrawn, sizes = np.array([0.2, 0.5, 0.4, 0.7]), np.array([0.3, 0.5, 0.6, 0.4, 0.7]), np.array([2, 3, 5])
    found = st._redrawn_interval(per_seed, redrawn, sizes, units, 0.9)
    by_seed = per_seed.var(ddof=1) / 4 if "seed" in units else 0.0
    by_item = 3 / 2 * redrawn.var(ddof=1) if "item" in units else 0.0
    item_df = 38**2 / 722 - 1 if "item" in units else math.inf  # of clusters of 2, 3 and 5 items
    parts = [(by_seed, 3.0), (by_item, item_df)]
    df = (by_seed + by_item) ** 2 / sum(variance**2 / own for variance, own in parts if variance)
    half = stats.t.ppf(0.95, df) * math.sqrt(by_seed + by_item)
    assert (found.seed_variance, found.item_variance) == pytest.approx(
        (by_seed, by_item)
    ) and found.df == pytest.approx(df)
    assert (found.estimate, found.lower, found.upper) == pytest.approx((0.45, 0.45 - half, 0.45 + half))
    assert (found.seeds, found.items, found.clusters, found.level) == (4, 10, counted, 0.9)
    assert found.item_df == item_df


def test_what_a_redrawn_interval_needs():
    """Two clusters, two draws, and a value in 95 % of the draws; seeds alone need two."""

    def upper(per_seed, redrawn, sizes, units=("seed", "item")):
        return st._redrawn_interval(np.array(per_seed), np.array(redrawn, float), np.array(sizes), units, 0.95).upper

    draws = [0.1, 0.3] * 10
    assert math.isfinite(upper([0.1, 0.2], [math.nan, *draws[1:]], [1, 1]))
    assert math.isnan(upper([0.1, 0.2], [math.nan, math.nan, *draws[2:]], [1, 1]))
    assert math.isfinite(upper([0.1, 0.2], draws[:2], [1, 1])) and math.isnan(upper([0.1, 0.2], draws[:1], [1, 1]))
    assert math.isnan(upper([0.1, 0.2], draws, [2])) and math.isnan(upper([0.1], draws, [1, 1]))
    assert math.isfinite(upper([0.1], draws, [1, 1], ("item",))) and math.isnan(upper([0.1], draws, [1, 1], ("seed",)))


def test_monotone_fit_is_the_least_squares_one_by_brute_force(generator):
    path = generator.integers(0, 5, size=5) / 4
    levels = np.linspace(0, 1, 25)
    best = min(
        ((np.array(each) - path) ** 2).sum() for each in itertools.combinations_with_replacement(levels[::-1], 5)
    )
    fit = st.monotone_fit(path, increasing=False)
    assert (np.diff(fit) <= 0).all()
    assert ((fit - path) ** 2).sum() <= best + 1e-12
    assert ((fit - path) ** 2).sum() == pytest.approx(best, abs=0.01)
    assert np.isnan(st.monotone_fit([0.5, np.nan, 0.1], increasing=False)).all()


@pytest.mark.parametrize(
    ("fit", "level", "position"),
    [
        ([0.9, 0.5, 0.1], 0.7, 0.5),
        ([0.9, 0.5, 0.1], 0.2, 1.75),
        ([0.9, 0.5, 0.1], 0.9, 0.0),
        ([0.9, 0.5, 0.1], 0.1, 2.0),
        ([0.9, 0.5, 0.5, 0.5, 0.1], 0.5, 2.0),  # the middle of the stretch
        ([0.9, 0.5, 0.5, 0.5, 0.1], 0.3, 3.5),
        ([0.9, 0.5, 0.5], 0.5, 1.5),
        ([0.9, 0.5, 0.1], 0.05, math.nan),
        ([0.9, 0.5, 0.1], 0.95, math.nan),
        ([math.nan, math.nan], 0.5, math.nan),
        ([], 0.5, math.nan),
    ],
)
def test_crossing(fit, level, position):
    assert st.crossing(fit, level, increasing=False) == pytest.approx(position, nan_ok=True)
    rising = 1 - np.array(fit)
    assert st.crossing(rising, 1 - level, increasing=True) == pytest.approx(position, nan_ok=True)


def test_weakest_level_is_reached_by_all():
    falling = [[0.9, 0.3], [0.9, 0.5, 0.4], [0.8, 0.2]]
    assert st.weakest_level(falling, increasing=False) == pytest.approx(0.4)
    level = st.weakest_level(falling, increasing=False, spare=0.05)
    assert level == pytest.approx(0.4 + 0.05 * 0.5)
    assert all(st.crossing(fit, level, increasing=False) < len(fit) - 1 for fit in falling)
    assert st.weakest_level([[0.1, 0.6], [0.2, 0.5]], increasing=True, spare=0.1) == pytest.approx(0.47)
    assert math.isnan(st.weakest_level([], increasing=True))
    assert math.isnan(st.weakest_level([[0.9, 0.3], [np.nan]], increasing=False))


def test_read_at():
    path = np.array([[1.0, 3.0, np.nan], [0.0, 4.0, 8.0]])
    assert st.read_at(path, 0.25) == pytest.approx([1.5, 1.0])
    assert st.read_at(path, 1.0) == pytest.approx([3.0, 4.0])
    assert np.isnan(st.read_at(path, math.nan)).all()


def test_shared_grid_takes_what_both_have_and_no_more_often_beyond():
    dense, sparse = np.arange(0, 101, 5), np.arange(0, 61, 20)
    one, other = st.shared_grid(dense, sparse)
    assert other.tolist() == [0, 20, 40, 60]
    assert one.tolist() == [0, 20, 40, 60, 80, 100]
    assert [each.size for each in st.shared_grid([0, 1], [5, 6])] == [0, 0]


def test_chord_corrections_find_the_frontier_between_wide_gaps():
    frontier = lambda f: 0.9 - 0.8 * (0.95 - f) ** 2  # noqa: E731
    fast, slow = np.array([0.95, 0.65, 0.35, 0.25]), np.linspace(0.95, 0.25, 15)
    fits = [fast, slow]
    judged = [frontier(fit) for fit in fits]
    positions = [st.crossing(fit, 0.5, increasing=False) for fit in fits]
    raw = np.array([st.read_at(values, p) for values, p in zip(judged, positions, strict=True)])
    assert raw[0] - frontier(0.5) == pytest.approx(-0.8 * 0.15**2)  # what a chord loses
    corrected = raw + st.chord_corrections(fits, judged, positions, 0.5)
    assert corrected == pytest.approx([frontier(0.5)] * 2, abs=1e-12)
    for level in (0.8, 0.3, 0.25):  # in the first gap, in the last, and at the end
        ends = [st.crossing(fit, level, increasing=False) for fit in fits]
        raw = np.array([st.read_at(values, p) for values, p in zip(judged, ends, strict=True)])
        corrected = raw + st.chord_corrections(fits, judged, ends, level)
        assert corrected == pytest.approx([frontier(level)] * 2, abs=1e-12)
    alone = st.chord_corrections(fits[:1], judged[:1], positions[:1], 0.5)
    assert alone.tolist() == [0.0]  # one run's bend may be its noise


# --- power ----------------------------------------------------------------------------------------------------------


def test_half_width_of_the_same_seeds_is_the_intervals_own(generator):
    d = generator.standard_normal((6, 30)) + generator.standard_normal(30)
    interval = st.mean_interval(d)
    assert st.half_width(interval, seeds=6) == pytest.approx((interval.upper - interval.lower) / 2)
    more = st.half_width(interval, seeds=600)
    assert math.sqrt(interval.staying_variance) * 1.96 < more < st.half_width(interval, seeds=60)


def test_staying_variance_is_the_items_own(generator):
    draws = generator.standard_normal((4000, 4, 40)) + 2.0 * generator.standard_normal((4000, 1, 40))
    staying = st.mean_interval(draws).staying_variance.mean()
    assert staying == pytest.approx(4.0 / 40, rel=0.03)


def test_staying_variance_of_few_items_counts_them_as_the_whole_does(generator):
    """Products of two seeds, each from its own mean, with C / (C - 1); on average the variance of the items alone."""
    d = generator.standard_normal((6, 5)) + 3 * generator.standard_normal(5) + 2 * generator.standard_normal((6, 1))
    u = (d - d.mean(axis=1, keepdims=True)) / d.size
    crossed = sum(u[s] @ u[t] for s in range(6) for t in range(6) if s != t)
    assert st.mean_interval(d).staying_variance == pytest.approx(5 / 4 * 6 / 5 * crossed, rel=1e-12)
    draws = generator.standard_normal((20_000, 4, 4)) + 2.0 * generator.standard_normal((20_000, 1, 4))
    assert st.mean_interval(draws).staying_variance.mean() == pytest.approx(4.0 / 4, rel=0.02)


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_staying_variance_does_not_depend_on_how_much_seeds_differ(generator, spread):
    items = 2.0 * generator.standard_normal((4000, 1, 20)) + generator.standard_normal((4000, 5, 20))
    draws = items + spread * generator.standard_normal((4000, 5, 1))
    assert st.mean_interval(draws).staying_variance.mean() == pytest.approx(4.0 / 20, rel=0.03)
    clusters = np.arange(20) // 2
    doubled = np.repeat(items[..., ::2], 2, axis=-1) + spread * generator.standard_normal((4000, 5, 1))
    assert st.mean_interval(doubled, clusters).staying_variance.mean() == pytest.approx(4.0 / 10, rel=0.03)
    two = st.two_sample_interval(draws, 5 - draws[..., ::-1, :], clusters, clusters + 100)
    assert two.staying_variance.mean() > 0


def test_seeds_to_decide_have_the_power_they_promise(generator):
    per_seed, distance = 0.02, 0.1
    interval = st.interval_of(distance, per_seed / 10, 9, 0.0, math.inf, 0.95, (10, 0, 0))
    low, high = st.seeds_to_decide(interval, distance)
    low_sd, high_sd = (math.sqrt(per_seed * 9 / stats.chi2.ppf(q, 9)) for q in (0.75, 0.25))
    for seeds, sd in ((low, low_sd), (high, high_sd)):
        values = distance + sd * generator.standard_normal((20000, seeds))
        decided = (st.seed_interval(values).lower > 0).mean()
        fewer = (st.seed_interval(values[:, :-1]).lower > 0).mean()
        assert fewer < 0.83 and decided > 0.77, (seeds, fewer, decided)
    assert st.seeds_to_decide(interval, distance, most=high - 1) == (low, high - 1)
    assert st.seeds_to_decide(interval, distance, most=low) == (low, low)
    assert st.seeds_to_decide(interval, distance, most=low - 1) is None


def test_seeds_to_decide_knows_when_seeds_do_not_help():
    items_only = st.interval_of(0.1, 0.001, 4, 1.0, 99, 0.95, (5, 100, 100))
    assert st.seeds_to_decide(items_only, 0.1) is None
    assert st.seeds_to_decide(items_only, 0.0) is None
    assert st.seeds_to_decide(st.seed_interval([0.1]), 0.1) is None


def test_the_curvature_is_that_of_two_evaluations_on_either_side_of_each_crossing():
    generator = np.random.default_rng(5)
    fits = [np.sort(generator.uniform(1, 9, size)) for size in (7, 6, 3, 5, 2, 4)]
    judged = [generator.normal(size=fit.size) for fit in fits]
    positions = [
        3.4,
        0.5,
        1.0,
        math.nan,
        0.5,
        3.0,
    ]  # in the middle, in the first gap, of three, none, of two, at the end
    level = 4.5
    windows = {0: (2, 6), 1: (0, 3), 2: (0, 3), 5: (1, 4)}
    rows, response = [], []
    for number, (run, (first, end)) in enumerate(windows.items()):
        for place in range(first, end):
            own = [1.0 if each == number else 0.0 for each in range(len(windows))]
            rows.append([*own, fits[run][place], fits[run][place] ** 2])
            response.append(judged[run][place])
    curvature = np.linalg.lstsq(np.array(rows), np.array(response), rcond=None)[0][-1]
    between = {0: (3, 4), 1: (0, 1), 2: (1, 2), 5: (2, 3)}
    expected = [0.0] * len(fits)
    for run, (low, high) in between.items():
        expected[run] = curvature * (fits[run][low] - level) * (fits[run][high] - level)
    assert st.chord_corrections(fits, judged, positions, level) == pytest.approx(expected)
    assert st.chord_corrections(fits[:1], judged[:1], positions[:1], level).tolist() == [0.0]
    assert st.chord_corrections([], [], [], level).tolist() == []
    flat = st.chord_corrections([np.ones(4), np.ones(4)], [np.arange(4.0)] * 2, [1, 2], 1.0)
    assert flat.tolist() == [0.0, 0.0]


def test_a_path_read_at_no_position_is_undefined_for_each_of_its_rows():
    paths = np.arange(6.0).reshape(2, 3)
    assert np.isnan(st.read_at(paths, math.nan)).tolist() == [True, True] and math.isnan(st.read_at(paths[0], math.nan))
    assert st.read_at(paths, 2.0).tolist() == [2, 5] and st.read_at(paths, 1.25).tolist() == [1.25, 4.25]
    assert st.read_at(paths[1], 0.0) == 3


def test_what_other_numbers_of_seeds_would_tell_by_the_formulas():
    generator = np.random.default_rng(11)
    d = generator.normal(size=(5, 20)) + generator.normal(size=20) + 0.5 * generator.normal(size=(5, 1))
    interval = st.mean_interval(d)
    assert 0 < interval.staying_variance < interval.item_variance

    def reach(seeds, spread, power):
        seed = interval.seed_variance * 5 / seeds * spread
        item = interval.staying_variance + (interval.item_variance - interval.staying_variance) * 5 / seeds
        df = (seed + item) ** 2 / (seed**2 / (seeds - 1) + item**2 / interval.item_df)
        return (stats.t.ppf(0.975, df) + stats.t.ppf(power, df)) * math.sqrt(seed + item)

    for seeds in (3, 12):
        assert st.half_width(interval, seeds=seeds) == pytest.approx(reach(seeds, 1, 0.5))
    assert st.half_width(interval, seeds=5) == pytest.approx((interval.upper - interval.lower) / 2)
    few, many = ((5 - 1) / stats.chi2.ppf(quartile, 4) for quartile in (0.75, 0.25))
    for power in (0.8, 0.9):
        for distance in (
            reach(3, few, power),
            reach(3, few, power) * 0.999,
            reach(40, many, power),
            reach(7, few, power),
        ):
            ends = [
                next(seeds for seeds in range(3, 2000) if reach(seeds, spread, power) <= distance * (1 + 1e-12))
                for spread in (few, many)
            ]
            assert st.seeds_to_decide(interval, distance * (1 + 1e-12), power=power) == tuple(ends)
    distance = reach(40, many, 0.8) * (1 + 1e-12)
    low, _ = st.seeds_to_decide(interval, distance)
    assert st.seeds_to_decide(interval, distance, most=40) == (low, 40)
    assert st.seeds_to_decide(interval, distance, most=39) == (low, 39)
    assert st.seeds_to_decide(interval, distance, most=low) == (low, low)
    assert st.seeds_to_decide(interval, distance, most=low - 1) is None
    # What would decide nothing: no distance, one seed, one source, no spread.
    for distance in (0.0, -1.0, math.nan):
        assert st.seeds_to_decide(interval, distance) is None
    for other in (
        st.mean_interval(d[:1], units=("item",)),
        st.mean_interval(d[:1]),
        st.mean_interval(d, [0] * 20),
        st.mean_interval(np.ones((3, 4))),
    ):
        assert st.seeds_to_decide(other, 100.0) is None
    assert st.seeds_to_decide(st.mean_interval(d[:2]), 1e6) == (3, 3)
