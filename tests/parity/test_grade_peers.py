"""Cohen's kappa against scikit-learn, its interval against statsmodels."""

import numpy as np
import pytest
from scipy import stats

from equipoise.core.agreement import cohen_kappa

pytestmark = pytest.mark.slow
metrics = pytest.importorskip("sklearn.metrics")
raters = pytest.importorskip("statsmodels.stats.inter_rater")


@pytest.mark.parametrize("ordered", [False, True])
def test_kappa_and_its_interval(ordered):
    generator = np.random.default_rng(0)
    a = generator.integers(4, size=200)
    b = np.where(generator.random(200) < 0.5, a, generator.integers(4, size=200))
    found = cohen_kappa(a, b, [str(i) for i in range(200)], 4, ordered=ordered)
    assert found.value == pytest.approx(metrics.cohen_kappa_score(a, b, weights="quadratic" if ordered else None))
    table = np.array([[np.sum((a == i) & (b == j)) for j in range(4)] for i in range(4)])
    peer = raters.cohens_kappa(table, wt="quadratic" if ordered else None)
    half = stats.t.ppf(0.975, 199) * peer.std_kappa * np.sqrt(200 / 199)
    assert (found.lower, found.upper) == pytest.approx((found.value - half, found.value + half))
