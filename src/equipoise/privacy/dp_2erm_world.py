"""The worlds of DP-2ERM's study: one that is made up, and three tables whose answers are known or were drawn by lot.

confounded   x uniform on [-1, 1]^4; P(a = 1) = 1 / (1 + exp(-1.5 x1)); y = 0.3 sin(2 x1) + a effect(x) + noise, clipped to
             [-1, 1]; effect = 0.25 (0.2 + x2 - x3 + 0.5 x1 x2): who is treated would also have done better untreated, and
             no linear rule is exact
actg175      two arms of a trial drawn by lot, thinned so that the older and healthier stay more often when treated; value on
             a half that is not thinned
lalonde      the same of a trial of job training
ihdp         a simulated table whose two mean outcomes are known of everyone

A replicate of the confounded world is drawn from the seed, its number and n; of a table it is the division into halves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.data.public import folder
from equipoise.data.records import read_rows
from equipoise.privacy.baselines import fit_rival
from equipoise.privacy.dp_2erm import Bounds, calibrate, private_fit
from equipoise.privacy.noise import Noise
from equipoise.privacy.weights import entropy, ipw, mmd, sensitivity

Array = NDArray[np.float64]
SIZES = (1000, 4000, 16000)
EPSILONS = (0.5, 1.0, 4.0)
RIDGES = (0.0625, 0.25, 1.0, 4.0, 16.0)  # of the weights: the path
CHOSEN_EPSILON, CHOSEN_RIDGE = 1.0, 4.0
FRESH = 5000  # points that a rule is judged on
MOST_MMD = 1000  # records: the kernel of more takes minutes of a study
TABLES = ("actg175", "lalonde", "ihdp")

# Public ranges, as the trials' protocols and the scales state them; wide ends where a quantity has none.
ACTG = {
    "features": {"age": (12, 75), "wtkg": (30, 160), "karnof": (70, 100), "cd40": (0, 1200), "symptom": (0, 1)},
    "outcome": (-400, 400),
}
LALONDE = {
    "features": {"age": (16, 60), "educ": (0, 18), "black": (0, 1), "nodegr": (0, 1), "u75": (0, 1)},
    "outcome": (0, 20000),
}
IHDP = {"features": {f"x{place}": (-4, 4) for place in range(1, 7)}, "outcome": (-2, 14)}


@dataclass(frozen=True)
class Records:
    """What a rule learns from: x [n, d] with |x| <= 1, a [n], y [n]; and what it is judged on.

    effect: of treatment, at the tested x. Where nobody knows it: the tested records' own arms and outcomes, and the chance
    of treatment that the trial's lot gave.
    """

    x: Array
    a: Array
    y: Array
    tested: Array
    effect: Array | None = None
    arms: Array | None = None
    outcome: Array | None = None
    chance: float = math.nan

    def accuracy(self, theta: Array) -> float:
        """The share of tested points at which the rule gives the better arm; nan where nobody knows it."""
        if self.effect is None:
            return math.nan
        return float(((self.tested @ theta > 0) == (self.effect > 0)).mean())

    def gain(self, theta: Array) -> float:
        """The mean outcome under the rule above that of an arm drawn by lot, in units of half the outcome's range."""
        advised = np.where(self.tested @ theta > 0, 1.0, -1.0)
        if self.effect is not None:
            return float((advised * self.effect).mean())
        assert self.arms is not None and self.outcome is not None
        own = np.where(self.arms > 0, self.chance, 1 - self.chance)
        centered = self.outcome - self.outcome.mean()
        return float((np.sign(advised * self.arms) * centered / own / 2).mean())


def effect(x: Array) -> Array:
    """Half the difference of the arms' mean outcomes in the confounded world. x: [n, 4]"""
    return 0.25 * (0.2 + x[:, 1] - x[:, 2] + 0.5 * x[:, 0] * x[:, 1])


def confounded(n: int, draw: np.random.Generator) -> Records:
    """n records of the confounded world, and FRESH points."""
    raw = draw.uniform(-1, 1, (n, 4))
    a = np.where(draw.random(n) < 1 / (1 + np.exp(-1.5 * raw[:, 0])), 1.0, -1.0)
    y = 0.3 * np.sin(2 * raw[:, 0]) + a * effect(raw) + 0.3 * draw.standard_normal(n)
    fresh = draw.uniform(-1, 1, (FRESH, 4))
    return Records(_with_constant(raw), a, np.clip(y, -1, 1), _with_constant(fresh), effect(fresh))


def read_tables() -> dict[str, Any]:
    """The three tables as arrays. Raises BadInput where EQUIPOISE_DATA has no folder causal."""
    place = folder("causal")
    actg = [row for _, _, row in read_rows(place / "actg175.csv.gz") if row["arms"] in ("0", "1")]
    lalonde = [row for _, _, row in read_rows(place / "lalonde.csv")]
    ihdp = [row for _, _, row in read_rows(place / "ihdp-npci-10.parquet")]
    return {
        "actg175": _table(ACTG, actg, "arms", lambda row: float(row["cd420"]) - float(row["cd40"])),
        "lalonde": _table(LALONDE, lalonde, "treat", lambda row: float(row["re78"])),
        "ihdp": {
            number: _table(
                IHDP,
                [row for row in ihdp if row["replication"] == number],
                "treatment",
                lambda row: float(row["y_factual"]),
                lambda row: (float(row["mu1"]) - float(row["mu0"])) / (14 + 2),
            )
            for number in sorted({row["replication"] for row in ihdp})
        },
    }


def halved(name: str, tables: Mapping[str, Any], replicate: int, draw: np.random.Generator) -> Records:
    """A table divided in two: records to learn from, thinned where treatment was drawn by lot, and those to judge by."""
    table = tables[name]
    if name == "ihdp":
        table = table[sorted(table)[replicate % len(table)]]
    x, a, y, truth = table
    order = draw.permutation(len(x))
    learnt, tested = order[: len(x) // 2], order[len(x) // 2 :]
    if truth is not None:
        return Records(x[learnt], a[learnt], y[learnt], x[tested], truth[tested])
    # Of the treated, those high in the first and the fourth feature stay; of the others, those low.
    pull = (x[:, 1] + x[:, 4]) * math.sqrt(x.shape[1])
    kept = draw.random(len(learnt)) < 1 / (1 + np.exp(-2 * a[learnt] * (pull[learnt] - np.median(pull))))
    learnt = learnt[kept]
    return Records(
        x[learnt], a[learnt], y[learnt], x[tested], arms=a[tested], outcome=y[tested], chance=float((a > 0).mean())
    )


def rule(arm: str, records: Records, *, epsilon: float, weight_ridge: float, noise: Noise) -> Array:
    """theta of an arm of the study."""
    x, a, y = records.x, records.a, records.y
    n, d = x.shape
    if arm == "noise":
        return noise.gamma(d, 1.0)
    if arm.startswith("exact-"):
        arm, epsilon = arm.removeprefix("exact-"), math.inf
    if arm == "entropy":
        w = entropy(x, a, weight_ridge=weight_ridge, radius=1.0)
    elif arm == "mmd":
        w = mmd(x, a, weight_ridge=weight_ridge, largest_weight=5.0, bandwidth=0.4)
    elif arm == "ipw":
        w = ipw(x, a, kappa=0.2, weight_ridge=weight_ridge)
    else:
        rival: Any = arm
        return fit_rival(rival, x, a, y, epsilon=epsilon, noise=noise, weight_ridge=weight_ridge)
    kind: Any = arm
    made = calibrate(epsilon, sensitivity(kind, n=n, d=d, weight_ridge=weight_ridge), n=n, d=d)
    return private_fit(x, a, y, w, made, noise)


def conditions(arm: str, sizes: Sequence[int]) -> list[tuple[int, float, float]]:
    """(n, epsilon, ridge of the weights) where an arm is measured: a grid at the chosen ridge, and a path over ridges.

    The path is at the largest n, where the noise that a small ridge costs is easiest to bear.
    """
    own = [n for n in sizes if arm != "mmd" or n <= MOST_MMD]
    grid = [(n, epsilon, CHOSEN_RIDGE) for n in own for epsilon in EPSILONS]
    return grid + [(max(own), CHOSEN_EPSILON, ridge) for ridge in RIDGES if ridge != CHOSEN_RIDGE]


def measure(run: Any, *, arm: str, replicates: int, sizes: Sequence[int], real: bool) -> None:
    """Every condition of one arm and seed; a replicate is an item, the same for all arms."""
    seed = run.seed
    number = int.from_bytes(arm.encode()[:4], "big")  # each arm has noise of its own

    def scored(draw: Any, epsilon: float, ridge: float, world: int) -> tuple[list[float], list[float]]:
        accuracy, gain = [], []
        for replicate in range(replicates):
            records = draw(replicate)
            code = [seed, replicate, number, len(records.x), world, round(1000 * epsilon), round(1000 * ridge)]
            theta = rule(arm, records, epsilon=epsilon, weight_ridge=ridge, noise=Noise(np.random.SeedSequence(code)))
            accuracy.append(records.accuracy(theta))
            gain.append(records.gain(theta))
        run.spend(fits=replicates, phase="build")
        return accuracy, gain

    ids = [f"{seed}-{replicate}" for replicate in range(replicates)]
    for n, epsilon, ridge in conditions(arm, sizes):
        accuracy, gain = scored(
            lambda replicate, n=n: confounded(n, np.random.default_rng([seed, replicate, n])), epsilon, ridge, 0
        )
        at, where = {"weight_ridge": ridge}, {"world": "confounded", "n": n, "epsilon": epsilon}
        run.items("accuracy", ids, accuracy, at=at, where=where)
        run.items("gain", ids, gain, at=at, where=where)
    if not real:
        return
    tables = read_tables()
    for place, name in enumerate(TABLES, 1):
        for epsilon in EPSILONS:
            accuracy, gain = scored(
                lambda replicate, name=name, place=place: halved(
                    name, tables, replicate, np.random.default_rng([seed, replicate, place])
                ),
                epsilon,
                CHOSEN_RIDGE,
                place,
            )
            at, where = {"weight_ridge": CHOSEN_RIDGE}, {"world": name, "epsilon": epsilon}
            if name == "ihdp":
                run.items("accuracy", ids, accuracy, at=at, where=where)
            run.items("gain", ids, gain, at=at, where=where)


def _with_constant(raw: Array) -> Array:
    return np.column_stack([np.ones(len(raw)), raw]) / math.sqrt(raw.shape[1] + 1)


def _table(stated: Mapping[str, Any], rows: list[Any], treatment: str, outcome: Any, truth: Any = None) -> Any:
    bounds = Bounds.read(stated)
    x, _ = bounds.scaled([[float(row[name]) for name in bounds.features] for row in rows])
    y, _ = bounds.scaled_outcome([outcome(row) for row in rows], len(rows))
    a = bounds.signs([round(float(row[treatment])) for row in rows], len(rows))
    return x, a, y, None if truth is None else np.array([truth(row) for row in rows])
