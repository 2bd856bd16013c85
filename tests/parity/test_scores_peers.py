"""Scores against scikit-learn, with ties and with weights."""

import numpy as np
import pytest

from equipoise.core import statistics as st

pytestmark = pytest.mark.slow
metrics = pytest.importorskip("sklearn.metrics")
calibration = pytest.importorskip("sklearn.calibration")


@pytest.mark.parametrize("digits", [1, 12])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (st.auroc, metrics.roc_auc_score),
        (st.auprc, metrics.average_precision_score),
        (st.brier, metrics.brier_score_loss),
    ],
)
def test_scores_are_those_of_scikit_learn(ours, theirs, digits):
    generator = np.random.default_rng(7)
    for n in (5, 40, 400):
        confidence = np.round(generator.random(n), digits)
        labels = (generator.random(n) < confidence).astype(int)
        labels[:2] = 0, 1
        counts = generator.integers(0, 4, n)
        counts[:2] = 1
        assert ours(confidence, labels) == pytest.approx(theirs(labels, confidence), rel=1e-12)
        assert ours(confidence, labels, counts) == pytest.approx(theirs(labels, confidence, sample_weight=counts))


@pytest.mark.parametrize("bins", [4, 10, 15])
def test_calibration_error_from_the_curve_of_scikit_learn(bins):
    generator = np.random.default_rng(8)
    confidence = generator.random(500)
    labels = (generator.random(500) < confidence**2).astype(int)
    right, said = calibration.calibration_curve(labels, confidence, n_bins=bins, strategy="uniform")
    sizes = np.histogram(confidence, bins=bins, range=(0, 1))[0]
    expected = (np.abs(right - said) * sizes[sizes > 0]).sum() / 500
    assert st.ece(confidence, labels, bins=bins) == pytest.approx(expected, rel=1e-12)


def test_area_under_risk_coverage_from_scikit_learns_accuracy():
    """Without ties the risk at coverage k / N is one minus the accuracy of the k surest."""
    generator = np.random.default_rng(9)
    confidence = generator.permutation(60) / 60
    labels = (generator.random(60) < confidence).astype(int)
    order = np.argsort(-confidence)
    risks = [1 - metrics.accuracy_score(np.ones(k), labels[order[:k]]) for k in range(1, 61)]
    coverage, risk = st.risk_coverage(confidence, 1 - labels)
    assert risk == pytest.approx(risks)
    assert st.aurc(confidence, 1 - labels) == pytest.approx(np.mean(risks))
    assert coverage[-1] == 1.0
