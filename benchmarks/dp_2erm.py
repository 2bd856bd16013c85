"""Time and memory of a private rule on 100,000 records of 50 features, beside scikit-learn's weighted logistic regression.

    python benchmarks/dp_2erm.py                     # 50,000 and 100,000 records; seconds, peak MB, ratios

One process, candidates in turn, the minimum of the repeats. The peer fits the second stage alone, without weights or noise:
the floor of what a rule takes. Both solve to their own tolerance. mmd is asked above its limit, to see that it refuses.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from equipoise.core.errors import BadInput
from equipoise.privacy import DPTreatmentRule


def records(n: int, d: int) -> tuple[Any, Any, Any]:
    """Features [n, d] on [-1, 1], arms and outcomes."""
    draw = np.random.default_rng(0)
    X = draw.uniform(-1, 1, (n, d))
    treatment = (draw.random(n) < 1 / (1 + np.exp(-X[:, 0]))).astype(int)
    return X, treatment, np.clip((2 * treatment - 1) * X[:, 1] + draw.standard_normal(n) / 3, -1, 1)


def measured(work: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Seconds, the least of the repeats, and peak MB of one more."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return min(seconds), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 100_000])
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    bounds = {"features": [(-1, 1)] * asked.features, "outcome": (-1, 1)}
    print(f"{'records':>8} {'weights':<10} {'s':>7} {'MB':>7} {'times scikit-learn':>19}")
    for n in asked.sizes:
        X, treatment, outcome = records(n, asked.features)
        labels, mass = np.sign((2 * treatment - 1) * outcome), np.abs(outcome)
        peer = LogisticRegression(C=1 / (0.01 * n), fit_intercept=False)
        floor, peak = measured(lambda: peer.fit(X, labels, sample_weight=mass), asked.repeats)  # noqa: B023
        print(f"{n:>8} {'peer':<10} {floor:>7.3f} {peak:>7.0f} {1:>19.2f}")
        for weights in ("ipw", "entropy"):
            rule = DPTreatmentRule(epsilon=1.0, bounds=bounds, weights=weights, random_state=0)
            seconds, peak = measured(lambda: rule.fit(X, treatment, outcome), asked.repeats)  # noqa: B023
            print(f"{n:>8} {weights:<10} {seconds:>7.3f} {peak:>7.0f} {seconds / floor:>19.2f}")
    try:
        DPTreatmentRule(epsilon=1.0, bounds=bounds, weights="mmd", random_state=0).fit(X, treatment, outcome)
    except BadInput as error:
        print(f"mmd: {error}")


if __name__ == "__main__":
    main()
