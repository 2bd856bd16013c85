"""Intervals hold the truth as often as docs/statistics.md says; few draws here, 10,000 in benchmarks/coverage.py."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

_PATH = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
_SPEC = importlib.util.spec_from_file_location("coverage_benchmark", _PATH)
benchmark = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(benchmark)

# Lowest and highest share of 95 % intervals that hold the truth, for 3, 5 and 10 seeds. Skewed seeds (skewness 2) cost
# coverage that no interval over 3 values can give back; the residual, counted twice, makes pure chance too safe.
BOUNDS = {
    ("seeds only", "normal"): [(0.93, 0.97)] * 3,
    ("seeds only", "skewed"): [(0.84, 0.93), (0.85, 0.94), (0.87, 0.95)],
    ("100 items, seeds vary most", "normal"): [(0.90, 0.96), (0.92, 0.97), (0.93, 0.97)],
    ("100 items, seeds vary most", "skewed"): [(0.83, 0.92), (0.86, 0.94), (0.89, 0.96)],
    ("100 items, items vary most", "normal"): [(0.93, 0.99)] * 3,
    ("100 items, items vary most", "skewed"): [(0.92, 0.99)] * 3,
    ("20 items of 5 sources", "normal"): [(0.93, 0.985), (0.92, 0.98), (0.92, 0.98)],
}


@pytest.mark.parametrize(("design", "kind"), BOUNDS)
def test_coverage(design, kind):
    generator = np.random.default_rng(1)
    for seeds, (low, high) in zip(benchmark.SEEDS, BOUNDS[design, kind], strict=True):
        held = benchmark.coverage(design, kind, seeds, 2000, generator)
        assert low < held < high, (seeds, held)


def test_percentile_bootstrap_over_few_seeds_would_be_too_narrow():
    held = benchmark.percentile_coverage("normal", 3, 1000, np.random.default_rng(1))
    assert held < 0.82


def test_pigeonhole_interval_of_an_auroc():
    held = benchmark.pigeonhole_coverage(10, 30, 60, np.random.default_rng(1))
    assert held > 0.88
