"""DP-2ERM's study: arms meet the same data, what is claimed is measured, rivals are what they are called."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from equipoise.core.errors import BadInput
from equipoise.privacy import dp_2erm_world as world
from equipoise.privacy.baselines import fit_rival
from equipoise.privacy.dp_2erm import weighted_fit
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


def test_gain_is_the_mean_effect_of_what_is_advised():
    x = np.array([[1.0, -0.5], [1.0, 0.5]])
    records = world.Records(x, np.ones(2), np.ones(2), x, effect=np.array([-0.2, 0.4]))
    assert records.gain(np.array([0.0, 1.0])) == pytest.approx(0.3) and records.accuracy(np.array([0.0, 1.0])) == 1
    draw = np.random.default_rng(0)
    tested = np.column_stack([np.ones(40_000), draw.uniform(-1, 1, 40_000)])
    arms = np.where(draw.random(40_000) < 0.3, 1.0, -1.0)
    lot = world.Records(x, x[0], x[0], tested, arms=arms, outcome=2.0 + arms * tested[:, 1] / 2, chance=0.3)
    assert lot.gain(np.array([0.0, 1.0])) == pytest.approx(0.25, abs=0.02)


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
