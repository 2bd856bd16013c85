"""DP-2ERM's study: arms meet the same data, what is claimed is measured, rivals are what they are called."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from equipoise.core.errors import BadInput
from equipoise.privacy import baselines, weights
from equipoise.privacy import dp_2erm_world as world
from equipoise.privacy.baselines import fit_rival
from equipoise.privacy.dp_2erm import calibrate, private_fit, weighted_fit
from equipoise.privacy.noise import Noise
from equipoise.study import registry
from study_recorder import StudyRecorder

TABLES = Path(os.environ.get("EQUIPOISE_DATA", "nowhere")) / "causal"


class Recorder(StudyRecorder):
    seed = 1000

    def items(self, outcome, ids, scores, *, at=None, where=None):
        super().items(outcome, ids, scores, at=at, where=where)


def ran(arm, folder, **options):
    study = registry.load("dp-2erm").build(**{"replicates": 2, "largest": 1000, "real": False} | options)
    run = Recorder(folder / arm, study=study, arm=arm)
    study.run(run)
    return study, run


def test_every_claim_is_of_something_that_is_measured(tmp_path):
    study, run = ran("dp-2erm", tmp_path)
    assert run.spent["fits"] == 2 * len(world.conditions("ipw", (1000,)))
    for claim in study.claims:
        if claim.test is not None:
            own = json.dumps(dict(claim.test.at)), dict(sorted(claim.test.where.items()))
            assert any(
                key.startswith(claim.test.outcome)
                and own[0] in key
                and dict(sorted(json.loads(key[key.rindex("{") :]).items())) == own[1]
                for key in run.measured
            ), claim.text
    again = ran("dp-2erm", tmp_path / "again" if (tmp_path / "again").mkdir() is None else tmp_path)[1]
    assert again.measured == run.measured


def test_rules_are_better_than_noise_and_worse_than_without_any(tmp_path):
    at = '{"weight_ridge": 4.0} {"world": "confounded", "n": 1000, "epsilon": 4.0}'
    found = {arm: ran(arm, tmp_path)[1].measured[f"accuracy {at}"] for arm in ("dp-2erm", "noise", "exact-weighted")}
    assert found["noise"] < 0.7 < found["dp-2erm"] and found["exact-weighted"] > 0.72


@pytest.mark.parametrize("rival", ["stage-wise", "split", "worst-case", "weighted-erm", "unweighted"])
def test_rivals_without_noise_are_the_weighted_fit_with_their_weights(rival):
    records = world.confounded(400, np.random.default_rng(0))
    x, a, y = records.x, records.a, records.y
    theta = fit_rival(rival, x, a, y, epsilon=math.inf, noise=Noise(0), weight_ridge=0.1)
    first = slice(0, 200) if rival == "split" else slice(None)
    second = slice(200, None) if rival == "split" else slice(None)
    n = len(x[first])
    gamma = weighted_fit(x[first], a[first], np.ones(n), np.ones(n), 0.1 * n, 1e-8)
    w = np.ones(400) if rival == "unweighted" else 1 / np.maximum(1 / (1 + np.exp(-a * (x @ gamma))), 0.2)
    expected = weighted_fit(x[second], a[second], y[second], w[second], 0.01 * len(x[second]), 1e-6)
    assert theta == pytest.approx(expected, abs=1e-4)
    with pytest.raises(BadInput, match="rival"):
        fit_rival("best", x, a, y, epsilon=1.0, noise=Noise(0))


@pytest.mark.parametrize("rival", ["stage-wise", "split", "worst-case", "weighted-erm", "unweighted"])
def test_rivals_draw_the_noise_that_their_guarantee_asks_for(rival, monkeypatch):
    """By hand, of 41 records and a kappa of 0.25: how much one record moves the weights, and how large one can be."""
    records = world.confounded(41, np.random.default_rng(0))
    asked = []

    def calibrated(epsilon, bound, *, n, d, ridge, **further):
        asked.append((epsilon, bound.movement, bound.largest, n, d, ridge, further))
        return calibrate(epsilon, bound, n=n, d=d, ridge=ridge, **further)

    monkeypatch.setattr(baselines, "calibrate", calibrated)
    how = {"ridge": 0.3, "weight_ridge": 0.7, "kappa": 0.25}
    fit_rival(rival, records.x, records.a, records.y, epsilon=2.0, noise=Noise(0), **how)
    assert (
        asked
        == {
            "unweighted": [(2.0, 0.0, 1.0, 41, 5, 0.3, {})],
            "stage-wise": [(1.0, 0.0, 1.0, 41, 5, 0.7, {}), (1.0, 0.0, 4.0, 41, 5, 0.3, {})],
            "split": [(2.0, 0.0, 1.0, 20, 5, 0.7, {}), (2.0, 0.0, 4.0, 21, 5, 0.3, {})],
            "worst-case": [(2.0, 164.0, 4.0, 41, 5, 0.3, {})],
            "weighted-erm": [(2.0, 0.0, 4.0, 41, 5, 0.3, {"perturbation": "gamma"})],
        }[rival]
    )


def test_gain_is_the_mean_effect_of_what_is_advised():
    x = np.array([[1.0, -0.5], [1.0, 0.5]])
    records = world.Records(x, np.ones(2), np.ones(2), x, effect=np.array([-0.2, 0.4]))
    assert records.gain(np.array([0.0, 1.0])) == pytest.approx(0.3) and records.accuracy(np.array([0.0, 1.0])) == 1
    draw = np.random.default_rng(0)
    tested = np.column_stack([np.ones(40_000), draw.uniform(-1, 1, 40_000)])
    arms = np.where(draw.random(40_000) < 0.3, 1.0, -1.0)
    lot = world.Records(x, x[0], x[0], tested, arms=arms, outcome=2.0 + arms * tested[:, 1] / 2, chance=0.3)
    assert lot.gain(np.array([0.0, 1.0])) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("arm", ["entropy", "mmd", "ipw"])
def test_an_arm_is_the_fit_with_its_weights(arm):
    records = world.confounded(90, np.random.default_rng(0))
    x, a, y = records.x, records.a, records.y
    w = {
        "entropy": lambda: weights.entropy(x, a, weight_ridge=0.5, radius=1.0),
        "mmd": lambda: weights.mmd(x, a, weight_ridge=0.5, largest_weight=5.0, bandwidth=0.4),
        "ipw": lambda: weights.ipw(x, a, kappa=0.2, weight_ridge=0.5),
    }[arm]()
    assert w.std() > 0.01
    exact = world.rule(f"exact-{arm}", records, epsilon=1.0, weight_ridge=0.5, noise=Noise(1))
    bare = calibrate(math.inf, weights.sensitivity(arm, n=90, d=5, weight_ridge=0.5), n=90, d=5)
    assert exact == pytest.approx(weighted_fit(x, a, y, w, bare.lam, 1e-8), abs=1e-5)
    made = calibrate(2.0, weights.sensitivity(arm, n=90, d=5, weight_ridge=0.5), n=90, d=5)
    noisy = world.rule(arm, records, epsilon=2.0, weight_ridge=0.5, noise=Noise(1))
    assert noisy.tolist() == private_fit(x, a, y, w, made, Noise(1)).tolist() and not np.allclose(noisy, exact)
    lot = world.rule("noise", records, epsilon=2.0, weight_ridge=0.5, noise=Noise(1))
    assert lot.tolist() == Noise(1).gamma(5, 1.0).tolist()


def small_tables():
    """Three tables in a few rows, of the widths that the real ones have, and of ihdp two replications."""
    draw = np.random.default_rng(3)

    def one(n, width, known):
        x = draw.uniform(-0.3, 0.3, (n, width))
        return x, draw.choice([-1.0, 1.0], n), draw.uniform(-1, 1, n), draw.uniform(-1, 1, n) if known else None

    return {
        "actg175": one(41, 6, False),
        "lalonde": one(30, 6, False),
        "ihdp": {9: one(20, 7, True), 4: one(24, 7, True)},
    }


def test_tables_are_measured_at_every_epsilon_with_noise_of_their_own(tmp_path, monkeypatch):
    tables = small_tables()
    monkeypatch.setattr(world, "read_tables", lambda: tables)
    monkeypatch.setattr(world, "FRESH", 50)
    run = Recorder(tmp_path / "run", study=registry.load("dp-2erm").build(replicates=3, largest=1000))
    world.measure(run, arm="noise", replicates=3, sizes=(60, 80), real=True)
    number, due = int.from_bytes(b"nois", "big"), {}
    for place, name in enumerate(("actg175", "lalonde", "ihdp"), 1):
        for epsilon in (0.5, 1.0, 4.0):
            accuracy, gain = [], []
            for replicate in range(3):
                records = world.halved(name, tables, replicate, np.random.default_rng([1000, replicate, place]))
                code = [1000, replicate, number, len(records.x), place, round(1000 * epsilon), 4000]
                theta = Noise(np.random.SeedSequence(code)).gamma(records.x.shape[1], 1.0)
                accuracy.append(records.accuracy(theta))
                gain.append(records.gain(theta))
            where = f'{{"weight_ridge": 4.0}} {json.dumps({"world": name, "epsilon": epsilon})}'
            due[f"gain {where}"] = np.mean(gain)
            if name == "ihdp":
                due[f"accuracy {where}"] = np.mean(accuracy)
    found = {key: value for key, value in run.measured.items() if '"n"' not in key}
    assert found == pytest.approx(due) and len(due) == 12
    assert run.spent == {"fits": 3 * (2 * 3 + 4 + 9)}  # a grid, a path of the other ridges, the tables
    sized = {key for key in run.measured if '"n"' in key}
    assert len(sized) == 2 * (2 * 3 + 4) and not any(
        '"n": 60' in key for key in sized if '"weight_ridge": 4.0' not in key
    )


def test_a_table_is_halved_and_thinned_by_its_first_and_fourth_feature():
    tables = small_tables()
    for replicate, own in ((0, 4), (1, 9), (2, 4)):  # replications in their order, by turns
        x, a, y, truth = tables["ihdp"][own]
        records = world.halved("ihdp", tables, replicate, np.random.default_rng(8))
        order = np.random.default_rng(8).permutation(len(x))
        half = len(x) // 2
        assert records.x.tolist() == x[order[:half]].tolist() and records.tested.tolist() == x[order[half:]].tolist()
        assert (
            records.effect.tolist() == truth[order[half:]].tolist() and records.y.tolist() == y[order[:half]].tolist()
        )
    x, a, y, _ = tables["actg175"]
    records = world.halved("actg175", tables, 0, np.random.default_rng(8))
    draw = np.random.default_rng(8)
    order = draw.permutation(41)
    learnt = order[:20]
    pull = (x[:, 1] + x[:, 4]) * math.sqrt(6)
    middle = sorted(pull)[20]  # of all 41
    kept = learnt[draw.random(20) < 1 / (1 + np.exp(-2 * a[learnt] * (pull[learnt] - middle)))]
    assert 0 < len(kept) < 20 and records.x.tolist() == x[kept].tolist() and records.a.tolist() == a[kept].tolist()
    assert records.arms.tolist() == a[order[20:]].tolist() and records.outcome.tolist() == y[order[20:]].tolist()
    assert records.chance == (a > 0).mean() and math.isnan(records.accuracy(np.ones(6)))


def test_tables_are_read_by_their_ranges_and_replications(monkeypatch):
    trial = {"wtkg": "95", "karnof": "85", "cd40": "600", "symptom": "1", "cd420": "700"}
    actg = [{**trial, "age": age, "arms": arms} for age, arms in (("12", "0"), ("75", "1"), ("40", "2"), ("90", "1"))]
    job = {"educ": "9", "black": "1", "nodegr": "0", "u75": "1"}
    lalonde = [{**job, "age": "38", "treat": "0", "re78": "5000"}, {**job, "age": "16", "treat": "1", "re78": "30000"}]
    child = {f"x{place}": 4 * (place % 2) for place in range(1, 7)}
    ihdp = [
        {**child, "replication": r, "treatment": t, "y_factual": 6 + 4 * t, "mu0": 1, "mu1": 1 + 4 * r}
        for r, t in ((7, 0), (2, 1), (7, 1), (2, 0), (2, 0))
    ]
    given = {"actg175.csv.gz": actg, "lalonde.csv": lalonde, "ihdp-npci-10.parquet": ihdp}
    monkeypatch.setattr(world, "folder", lambda name: Path(name))
    monkeypatch.setattr(world, "read_rows", lambda path: [(path, i, row) for i, row in enumerate(given[path.name])])
    tables = world.read_tables()
    x, a, y, truth = tables["actg175"]
    assert truth is None and a.tolist() == [-1, 1, 1] and y == pytest.approx([0.25] * 3)
    assert x * math.sqrt(6) == pytest.approx(np.array([[1, -1, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1]]))
    x, a, y, truth = tables["lalonde"]
    assert truth is None and a.tolist() == [-1, 1] and y == pytest.approx([-0.5, 1.0])  # clipped to the range
    assert x[1] * math.sqrt(6) == pytest.approx([1, -1, 0, 1, -1, 1])
    assert list(tables["ihdp"]) == [2, 7]
    x, a, y, truth = tables["ihdp"][2]
    assert a.tolist() == [1, -1, -1] and truth == pytest.approx([0.5] * 3) and tables["ihdp"][7][3][0] == 28 / 16
    assert y == pytest.approx([0.5, 0, 0]) and x[0] * math.sqrt(7) == pytest.approx([1, 1, 0, 1, 0, 1, 0])


@pytest.mark.skipif(not TABLES.is_dir(), reason="needs EQUIPOISE_DATA with the folder causal")
def test_tables_are_read_and_thinned():
    tables = world.read_tables()
    assert {name: len(tables[name][0]) for name in ("actg175", "lalonde")} == {"actg175": 1054, "lalonde": 445}
    assert len(tables["ihdp"]) == 10
    for name in world.TABLES:
        records = world.halved(name, tables, 3, np.random.default_rng(0))
        assert np.linalg.norm(records.x, axis=1).max() <= 1 + 1e-12 and np.abs(records.y).max() <= 1
    trial = world.halved("actg175", tables, 0, np.random.default_rng(0))
    apart = [np.mean(trial.x[trial.a == arm, 1] + trial.x[trial.a == arm, 4]) for arm in (1, -1)]
    assert apart[0] > apart[1] + 0.02
