"""Many rows: the same numbers by every way of reading them, and a page that does not grow with them."""

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.study.judging import judge
from equipoise.study.report import render
from equipoise.study.results import load
from equipoise.study.scores import _union


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The benchmark that is told to make a million rows makes these, too."""
    path = Path(__file__).parents[2] / "benchmarks" / "judging.py"
    spec = importlib.util.spec_from_file_location("benchmark_judging", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stored(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    study, folder = bench.declared(seeds=3), tmp_path_factory.mktemp("scale")
    rows = bench.write(study, folder, 24_000)
    return study, folder, rows


def test_the_benchmark_measures_what_a_study_stores(stored: tuple) -> None:
    study, folder, rows = stored
    first = load([folder], study)
    assert rows == first.measurements.num_rows > 23_000 and first.notes == []
    cached = load([folder], study)
    assert (folder / "cache" / "runs.json").exists()
    assert list(map(str, first.measurements.to_pylist())) == list(
        map(str, cached.measurements.to_pylist())
    )  # nan is nan
    assert str(judge(study, first)) == str(judge(study, cached))


def test_the_judged_numbers_are_those_of_the_lines(stored: tuple) -> None:
    """The effect of a plain comparison, from the files themselves by a loop."""
    study, folder, _ = stored
    ends: dict[tuple[str, int], float] = {}
    for path in folder.glob("runs/*/measurements.jsonl"):
        config = json.loads((path.parent / "config.json").read_text())
        last = -1
        for record in map(json.loads, path.read_text().splitlines()):
            wanted = record["outcome"] == "retain_accuracy" and record["where"] == {"split": "test"}
            if wanted and record["at"]["step"] > last:
                last = record["at"]["step"]
                ends[config["arm"], config["seed"]] = record["value"] / record["of"]
    verdict = judge(study, load([folder], study)).verdicts[1]
    expected = np.mean([ends["sago", seed] - ends["pcgrad", seed] for seed in range(3)])
    assert verdict.effects[0].estimate == pytest.approx(expected, abs=1e-12)
    assert len(verdict.runs) == 6 and math.isfinite(verdict.effects[0].lower)


def test_the_page_does_not_grow_with_the_rows(bench: ModuleType, stored: tuple, tmp_path: Path) -> None:
    study, folder, rows = stored
    few = tmp_path / "few"
    fewer = bench.write(study, few, 6_000)
    sizes = []
    for each in (few, folder):
        results = load([each], study)
        path = render(study, results, judge(study, results), tmp_path / f"report-{each.name}")
        sizes.append(path.stat().st_size - 900_000)  # the drawing library
    assert rows > 3.9 * fewer and sizes[1] < 1.1 * sizes[0]


@settings(deadline=None)
@given(*[st.lists(st.integers(0, 60), max_size=40).map(lambda xs: np.array(sorted(xs), np.int64))] * 2)
def test_the_union_of_sorted_keys_is_numpy_s(a: np.ndarray, b: np.ndarray) -> None:
    assert _union(a, b).tolist() == np.union1d(a, b).tolist()
