"""The worlds of DP-2ERM by their written formulas: ranges, draws, what is measured where, and with which seed."""

import math

import numpy as np
import pytest

from equipoise.privacy import dp_2erm_world as world
from equipoise.privacy import weights
from equipoise.privacy.dp_2erm import Bounds
from equipoise.privacy.noise import Noise


@pytest.mark.parametrize(("stated", "low", "high"), [
    (world.ACTG, [12, 30, 70, 0, 0, -400], [75, 160, 100, 1200, 1, 400]),
    (world.LALONDE, [16, 0, 0, 0, 0, 0], [60, 18, 1, 1, 1, 20000]),
    (world.IHDP, [-4] * 6 + [-2], [4] * 6 + [14]),
])  # fmt: skip
def test_public_ranges_begin_and_end_where_the_trials_say(stated, low, high):
    bounds, width = Bounds.read(stated), len(low) - 1
    x, clipped = bounds.scaled([low[:-1], high[:-1]])
    assert x * math.sqrt(width + 1) == pytest.approx(np.array([[1] + [-1] * width, [1] * (width + 1)])) and clipped == 0
    assert bounds.scaled_outcome([low[-1], high[-1]], 2)[0] == pytest.approx([-1, 1])


def test_the_confounded_world_is_its_formula():
    records = world.confounded(60, np.random.default_rng(5))
    draw = np.random.default_rng(5)
    raw = draw.uniform(-1, 1, (60, 4))
    first, second, third = raw[:, 0], raw[:, 1], raw[:, 2]
    a = np.where(draw.random(60) < 1 / (1 + np.exp(-1.5 * first)), 1, -1)
    effect = 0.05 + 0.25 * second - 0.25 * third + 0.125 * first * second
    y = 0.3 * np.sin(2 * first) + a * effect + 0.3 * draw.standard_normal(60)
    assert records.x == pytest.approx(np.column_stack([np.ones(60), raw]) / math.sqrt(5), abs=1e-15)
    assert records.a.tolist() == a.tolist() and np.abs(y).max() > 1
    assert records.y == pytest.approx(np.clip(y, -1, 1), abs=1e-15)
    fresh = draw.uniform(-1, 1, (5000, 4))
    assert records.tested == pytest.approx(np.column_stack([np.ones(5000), fresh]) / math.sqrt(5), abs=1e-15)
    expected = 0.05 + 0.25 * fresh[:, 1] - 0.25 * fresh[:, 2] + 0.125 * fresh[:, 0] * fresh[:, 1]
    assert records.effect == pytest.approx(expected, abs=1e-15)


def test_a_rule_treats_above_zero_alone():
    """Scores -1, 0 and 2 of effects 0.5, 0.25 and 0: who scores 0 is not treated, who gains 0 need not be."""
    x, theta = np.array([[-1.0], [0.0], [2.0]]), np.ones(1)
    known = world.Records(x, x[:, 0], x[:, 0], x, effect=np.array([0.5, -0.25, 0.0]))
    assert known.gain(theta) == pytest.approx((-0.5 + 0.25 + 0.0) / 3) and known.accuracy(theta) == pytest.approx(1 / 3)
    lot = world.Records(
        x, x[:, 0], x[:, 0], x, arms=np.array([1.0, -1.0, -1.0]), outcome=np.array([1.0, 2.0, 6.0]), chance=0.2
    )
    # Centered -2, -1 and 3; own chances 0.2, 0.8 and 0.8; as advised: no, yes, no.
    assert lot.gain(theta) == pytest.approx((2 / 0.2 - 1 / 0.8 - 3 / 0.8) / 2 / 3)
    assert math.isnan(lot.accuracy(theta))


@pytest.mark.parametrize(("arm", "fixed"), [
    ("entropy", {"radius": 1.0}), ("mmd", {"largest_weight": 5.0, "bandwidth": 0.4}), ("ipw", {"kappa": 0.2}),
])  # fmt: skip
def test_weights_have_the_studys_constants(arm, fixed, monkeypatch):
    asked = []

    def weigh(x, a, **how):
        asked.append(how)
        return getattr(weights, arm)(x, a, **how)

    monkeypatch.setattr(world, arm, weigh)
    records = world.confounded(30, np.random.default_rng(0))
    world.rule(f"exact-{arm}", records, epsilon=1.0, weight_ridge=0.25, noise=Noise(0))
    assert asked == [{"weight_ridge": 0.25, **fixed}]


def test_an_arm_is_measured_on_a_grid_and_along_a_path_of_ridges():
    grid = [(n, epsilon, 4.0) for n in (500, 1000, 1001) for epsilon in (0.5, 1.0, 4.0)]
    path = [(1001, 1.0, ridge) for ridge in (0.0625, 0.25, 1.0, 16.0)]
    assert world.conditions("ipw", (500, 1000, 1001)) == grid + path
    assert world.conditions("mmd", (500, 1000, 1001)) == grid[:6] + [(1000, *rest) for _, *rest in path]
    assert world.SIZES == (1000, 4000, 16000)


class Run:
    def __init__(self):
        self.seed, self.spent, self.rows = 77, [], {}

    def spend(self, **costs):
        self.spent.append(costs)

    def items(self, outcome, ids, scores, *, at, where):
        self.rows[outcome, at["weight_ridge"], *where.values()] = (ids, list(scores))


def test_a_replicate_is_drawn_from_the_seed_its_number_and_n(monkeypatch):
    monkeypatch.setattr(world, "FRESH", 40)
    run = Run()
    world.measure(run, arm="noise", replicates=2, sizes=(30, 50), real=False)
    due = {}
    for n, epsilon, ridge in world.conditions("noise", (30, 50)):
        accuracy, gain = [], []
        for replicate in (0, 1):
            records = world.confounded(n, np.random.default_rng([77, replicate, n]))
            code = [77, replicate, int.from_bytes(b"nois", "big"), n, 0, int(1000 * epsilon), round(1000 * ridge)]
            theta = Noise(np.random.SeedSequence(code)).gamma(5, 1.0)
            accuracy.append(records.accuracy(theta))
            gain.append(records.gain(theta))
        for outcome, scores in (("accuracy", accuracy), ("gain", gain)):
            due[outcome, ridge, "confounded", n, epsilon] = (["77-0", "77-1"], scores)
    assert run.rows == due and run.spent == [{"fits": 2, "phase": "build"}] * 10
