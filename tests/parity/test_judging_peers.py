"""Tests of significance and agreement against SciPy, statsmodels, the krippendorff package and Inspect AI."""

import math

import numpy as np
import pytest
from scipy import stats

from equipoise.core.agreement import fleiss_kappa, krippendorff_alpha
from equipoise.judging import validation

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("most", [1, 2, 6])
def test_sign_flip_against_permutation_test(most):
    """scipy.stats.permutation_test enumerates all signs of up to 13 clusters."""
    generator = np.random.default_rng(most)
    for _ in range(6):
        sums = generator.integers(-most, most + 1, generator.integers(2, 14))
        theirs = stats.permutation_test(
            (sums,),
            lambda x, axis: x.sum(axis=axis),
            permutation_type="samples",
            alternative="greater",
            n_resamples=np.inf,
            vectorized=True,
        )
        assert validation.sign_flip(sums) == pytest.approx(theirs.pvalue, rel=1e-10)


def test_sign_flip_against_random_signs_of_many_clusters():
    generator = np.random.default_rng(7)
    sums = generator.choice([-4, -2, -1, 0, 1, 2, 3, 4], size=400, p=[0.1, 0.1, 0.1, 0.3, 0.1, 0.1, 0.1, 0.1])
    signs = generator.choice([-1, 1], size=(40_000, sums.size))
    simulated = ((signs * np.abs(sums)).sum(axis=1) >= sums.sum()).mean()
    assert validation.sign_flip(sums) == pytest.approx(simulated, abs=4 * math.sqrt(0.25 / 40_000))


def test_one_order_against_mcnemar_of_statsmodels():
    """Their two-sided exact p is twice ours in the direction that was seen."""
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    generator = np.random.default_rng(8)
    for _ in range(20):
        before, after = generator.integers(0, 2, (2, 80))
        to_wrong, to_right = int((before > after).sum()), int((after > before).sum())
        if to_wrong <= to_right:
            continue
        both = [np.repeat(each[:, None], 2, axis=1) for each in (before, after)]
        ours = validation.effect("b", *both, [str(i) for i in range(80)]).p_value
        table = [[int((before & after).sum()), to_wrong], [to_right, int(((1 - before) & (1 - after)).sum())]]
        assert min(1.0, 2 * ours) == pytest.approx(contingency.mcnemar(table, exact=True).pvalue, rel=1e-9)


@pytest.mark.parametrize(("ours", "method"), [("holm", "holm"), ("benjamini_hochberg", "fdr_bh")])
def test_corrections_against_statsmodels(ours, method):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    generator = np.random.default_rng(9)
    for tests in (1, 2, 7, 40):
        p = generator.random(tests) ** 3
        p[: tests // 3] = p[0]  # ties
        expected = multitest.multipletests(p, method=method)[1]
        np.testing.assert_allclose(getattr(validation, ours)(p), expected, rtol=1e-12)


def test_the_clustered_error_against_statsmodels():
    """A regression on a constant with clustered covariance; its small-sample factor is C / (C - 1) for one regressor."""
    api = pytest.importorskip("statsmodels.api")
    generator = np.random.default_rng(10)
    clusters = generator.integers(0, 17, 90)
    before, after = generator.integers(0, 2, (2, 90, 2)).astype(float)
    found = validation.effect("b", before, after, [f"g{each}" for each in clusters])
    difference = (before - after).mean(axis=1)
    fit = api.OLS(difference, np.ones(90)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert found.increase == pytest.approx(fit.params[0])
    assert found.standard_error == pytest.approx(fit.bse[0], rel=1e-9)


def ratings(generator, items, raters, categories, missing=0.0):
    truth = generator.integers(0, categories, (items, 1))
    drawn = np.where(generator.random((items, raters)) < 0.6, truth, generator.integers(0, categories, (items, raters)))
    return np.where(generator.random((items, raters)) < missing, np.nan, drawn.astype(float))


@pytest.mark.parametrize(("items", "raters", "categories"), [(30, 3, 2), (12, 6, 4), (200, 2, 3)])
def test_kappa_against_statsmodels(items, raters, categories):
    rater = pytest.importorskip("statsmodels.stats.inter_rater")
    table = ratings(np.random.default_rng(items), items, raters, categories)
    counts, _ = rater.aggregate_raters(table.astype(int))
    assert fleiss_kappa(table) == pytest.approx(rater.fleiss_kappa(counts), rel=1e-12)


@pytest.mark.parametrize(("items", "raters", "categories"), [(30, 3, 2), (12, 6, 4), (200, 2, 3)])
def test_alpha_against_the_krippendorff_package(items, raters, categories):
    krippendorff = pytest.importorskip("krippendorff")
    table = ratings(np.random.default_rng(items), items, raters, categories, missing=0.3)
    theirs = krippendorff.alpha(reliability_data=table.T, level_of_measurement="nominal")
    assert krippendorff_alpha(table) == pytest.approx(theirs, rel=1e-12)


def test_alpha_against_inspect():
    scoring = pytest.importorskip("inspect_ai.scorer")
    table = ratings(np.random.default_rng(3), 40, 4, 3, missing=0.2)
    scores = [
        scoring.SampleScore(score=scoring.Score(value=[str(each) for each in row if not math.isnan(each)]))
        for row in table
    ]
    assert krippendorff_alpha(table) == pytest.approx(scoring.krippendorff_alpha()(scores), rel=1e-12)
