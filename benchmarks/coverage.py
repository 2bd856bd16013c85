"""How often the intervals of the judging hold the truth, and whom the matched comparison favours. Prints docs' tables.

    python benchmarks/coverage.py [--draws 10000] [--studies 2000]

Everything is simulated with a known truth; nothing is read. Some minutes on one core.
"""

import argparse
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from equipoise.core import statistics

Array = NDArray[np.float64]
SEEDS = (3, 5, 10)
# Standard deviations of seeds, items and the rest, as they are found: retraining noise, hard and easy items, chance.
DESIGNS = {
    "seeds only": (1.0, 0.0, 0.0),
    "100 items, seeds vary most": (0.3, 0.5, 0.5),
    "100 items, items vary most": (0.05, 0.7, 0.7),
    "100 items, chance only": (0.0, 0.0, 1.0),
    "20 items of 5 sources": (0.1, 0.5, 0.7),
}


def draw(kind: str, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Zero mean, unit variance: normal, or skewed (exponential, skewness 2)."""
    return generator.standard_normal(shape) if kind == "normal" else generator.exponential(size=shape) - 1


def differences(
    design: str, kind: str, seeds: int, draws: int, generator: np.random.Generator
) -> tuple[Array, NDArray[np.int64] | None]:
    """Differences [draws, seeds, items] whose true mean is 0, and the items' sources."""
    of_seed, of_item, rest = DESIGNS[design]
    items = 1 if design == "seeds only" else int(design.split()[0])
    sources = np.arange(items) // 4 if "sources" in design else None
    easy = draw(kind, (draws, 1, items), generator)
    if sources is not None:
        easy = draw(kind, (draws, 1, sources.max() + 1), generator)[..., sources]
    d = of_seed * draw(kind, (draws, seeds, 1), generator) + of_item * easy
    return d + rest * draw(kind, (draws, seeds, items), generator), sources


def coverage(design: str, kind: str, seeds: int, draws: int, generator: np.random.Generator) -> float:
    """Share of 95 % intervals that hold the true mean."""
    held, done = 0, 0
    while done < draws:
        d, sources = differences(design, kind, seeds, min(1000, draws - done), generator)
        units = ("seed",) if design == "seeds only" else ("seed", "item")
        interval = statistics.mean_interval(d, sources, units=units)
        held += int(((interval.lower <= 0) & (interval.upper >= 0)).sum())
        done += len(d)
    return held / done


def percentile_coverage(kind: str, seeds: int, draws: int, generator: np.random.Generator) -> float:
    """The same for the percentile bootstrap over seeds, which the judging does not use."""
    values = draw(kind, (draws, seeds), generator)
    held = 0
    for part in np.array_split(values, max(draws // 500, 1)):
        redrawn = generator.integers(seeds, size=(1000, seeds))
        low, high = np.quantile(part[:, redrawn].mean(-1), (0.025, 0.975), axis=1)
        held += int(((low <= 0) & (high >= 0)).sum())
    return held / draws


def pigeonhole_coverage(seeds: int, items: int, draws: int, generator: np.random.Generator) -> float:
    """Share of intervals that hold the true AUROC, about 0.78, of a score in runs of varying skill."""
    truth = _auroc_truth()
    held = 0
    for _ in range(draws):
        skill = 1.1 + 0.2 * generator.standard_normal((seeds, 1))
        hardness = 0.5 * generator.standard_normal(items)
        label = generator.random(items) < 0.5
        score = skill * label + hardness + math.sqrt(0.75) * generator.standard_normal((seeds, items))
        interval = statistics.score_interval(statistics.auroc, score, label, generator=generator, draws=200)
        held += interval.lower <= truth <= interval.upper
    return held / draws


def _auroc_truth() -> float:
    from scipy import integrate, stats

    def at(skill: float) -> float:
        return float(stats.norm.cdf(skill / math.sqrt(2)) * stats.norm.pdf(skill, 1.1, 0.2))

    return integrate.quad(at, 0.1, 2.1)[0]


# --- matched paths of equal frontiers -------------------------------------------------------------------------------

# (what, steps until forgetting, places of each arm): the arms differ in speed and in how often they are evaluated only.
PATHS = {
    "2 times faster, same places": ((30, 60), (np.arange(0, 201, 10), np.arange(0, 201, 10))),
    "2 times faster, slow arm evaluated 2 times as often": ((30, 60), (np.arange(0, 201, 10), np.arange(0, 201, 5))),
    "3 times faster, fast arm evaluated 2 times as often": ((20, 60), (np.arange(0, 201, 5), np.arange(0, 201, 10))),
    "4 times faster, evaluated rarely": ((20, 80), (np.arange(0, 261, 10), np.arange(0, 261, 20))),
}


def frontier(forgetting: Array, curved: bool) -> Array:
    """Retention that a given forgetting costs, the same for every arm: 0.95 down to 0.55, straight or ever steeper."""
    spent = (0.95 - forgetting) / 0.7
    return 0.95 - 0.4 * (spent**2 if curved else spent)


def paths(
    name: str, curved: bool, studies: int, generator: np.random.Generator, *, seeds: int = 10, items: int = 200
) -> list[tuple[NDArray[np.int64], Array, Array]]:
    """Per arm (fast, slow): places, and forgetting and retention [studies, seeds, places] as shares of 200 answers."""
    found = []
    for speed, places in zip(*PATHS[name], strict=True):
        forgetting = 0.25 + 0.7 / (1 + (places / speed) ** 3)
        shape = (studies, seeds, places.size)
        retention = frontier(forgetting, curved)
        found.append(
            (
                places,
                generator.binomial(items, forgetting, shape) / items,
                generator.binomial(items, retention, shape) / items,
            )
        )
    return found


def matched_bias(
    arms: Sequence[tuple[NDArray[np.int64], Array, Array]], level: float | str
) -> tuple[float, float, float, float]:
    """How much the slow arm is favoured, in points: by the judging, by first crossings, standard error of the former.

    Last, the share of studies whose 95 % interval over seeds holds the truth, which is no difference.
    """
    grids = statistics.shared_grid(arms[0][0], arms[1][0])
    kept = [
        (forget[..., np.isin(x, grid)], retain[..., np.isin(x, grid)])
        for (x, forget, retain), grid in zip(arms, grids, strict=True)
    ]
    judged, first, held = [], [], []
    for study in range(len(kept[0][0])):
        forget, retain = ([row for arm in kept for row in arm[which][study]] for which in (0, 1))
        raw = [row for _, path, _ in arms for row in path[study]], [row for _, _, path in arms for row in path[study]]
        fits = [statistics.monotone_fit(path, increasing=False) for path in forget]
        target = statistics.weakest_level(fits, increasing=False, spare=0.05) if level == "weakest" else float(level)
        positions = [statistics.crossing(fit, target, increasing=False) for fit in fits]
        if np.isnan(positions).any():
            continue
        values = np.array([statistics.read_at(path, p) for path, p in zip(retain, positions, strict=True)])
        values += statistics.chord_corrections(fits, retain, positions, target)
        half = len(fits) // 2
        interval = statistics.seed_interval(values[half:] - values[:half])
        judged.append(interval.estimate)
        held.append(interval.lower <= 0 <= interval.upper)
        naive = np.array([_first_crossing(f, r, target) for f, r in zip(*raw, strict=True)])
        first.append(naive[half:].mean() - naive[:half].mean())
    error = np.std(judged) / math.sqrt(len(judged))
    return 100 * float(np.mean(judged)), 100 * float(np.mean(first)), 100 * float(error), float(np.mean(held))


def _first_crossing(forget: Array, retain: Array, target: float) -> float:
    below = np.flatnonzero(forget <= target)
    if not below.size or not below[0]:
        return math.nan
    k = below[0]
    share = (forget[k - 1] - target) / (forget[k - 1] - forget[k])
    return float((1 - share) * retain[k - 1] + share * retain[k])


# --- what it costs to come to a level ---------------------------------------------------------------------------------

# (what, tokens that each arm needs to come half the way, tokens between its evaluations): dear arm last.
PRICES = {
    "equally dear, as many evaluations": ((100, 100), (10, 10)),
    "equally dear, one evaluated 4 times as often": ((100, 100), (20, 5)),
    "3 times dearer, as many evaluations": ((100, 300), (10, 30)),
    "10 times dearer, as many evaluations": ((100, 1000), (10, 100)),
    "10 times dearer, evaluated after as many tokens": ((100, 1000), (20, 20)),
}


def level_cost(
    name: str, level: float, studies: int, generator: np.random.Generator, *, common: bool = False, seeds: int = 10
) -> tuple[float, float, float]:
    """How much dearer in percent the cheap arm looks than it is, its standard error, and the share of 95 % intervals that
    hold the true log ratio. Accuracy 0.2 to 0.8 of 200 answers; runs need 20 % more or less than their arm.

    common: paths are read on one grid, as wide as the coarser arm's evaluations, which the judging does not do.
    """
    needs, gaps = PRICES[name]
    truth, ratios, held = math.log(needs[1] / needs[0]), [], 0
    for _ in range(studies):
        spent = np.full((2, seeds), np.nan)
        for arm, (need, gap) in enumerate(zip(needs, gaps, strict=True)):
            for seed in range(seeds):
                x = np.arange(0, 6 * need + 1, gap, dtype=float)
                accuracy = 0.8 - 0.6 * 0.5 ** (x / (need * math.exp(0.2 * generator.standard_normal())))
                path = generator.binomial(200, accuracy) / 200
                if common:
                    grid = np.arange(0, x[-1] + 1, max(gaps))
                    x, path = grid, np.interp(grid, x, path)
                fit = statistics.monotone_fit(path, increasing=True)
                spent[arm, seed] = statistics.read_at(x, statistics.crossing(fit, level, increasing=True))
        if np.isnan(spent).any() or not spent.all():
            continue
        interval = statistics.seed_interval(np.log(spent[1] / spent[0]))
        ratios.append(interval.estimate)
        held += interval.lower <= truth <= interval.upper
    bias, error = np.mean(ratios) - truth, np.std(ratios) / math.sqrt(len(ratios))
    return -100 * float(bias), 100 * float(error), held / len(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--studies", type=int, default=2000)
    options = parser.parse_args()
    generator = np.random.default_rng(0)

    print(f"Coverage of 95 % intervals in percent, {options.draws:,} draws each.\n")
    print("| what varies | values | " + " | ".join(f"{s} seeds" for s in SEEDS) + " |")
    print("|---|---|" + "---|" * len(SEEDS))
    for design in DESIGNS:
        for kind in ("normal", "skewed"):
            row = [f"{100 * coverage(design, kind, seeds, options.draws, generator):.1f}" for seeds in SEEDS]
            print(f"| {design} | {kind} | " + " | ".join(row) + " |")
    for kind in ("normal", "skewed"):
        row = [f"{100 * percentile_coverage(kind, seeds, options.draws, generator):.1f}" for seeds in SEEDS]
        print(f"| seeds only, percentile bootstrap (not used) | {kind} | " + " | ".join(row) + " |")
    draws = options.draws // 10
    row = [f"{100 * pigeonhole_coverage(seeds, 60, draws, generator):.1f}" for seeds in SEEDS]
    print(f"| AUROC over 60 items, pigeonhole ({draws:,} draws) | normal | " + " | ".join(row) + " |")

    print(
        f"\nPoints by which the slower of two equal arms is favoured, {options.studies:,} studies of 10 seeds each.\n"
    )
    print("| the fast arm is | frontier | level | judging | first crossing (not used) | coverage |")
    print("|---|---|---|---|---|---|")
    for name in PATHS:
        for curved in (False, True):
            arms = paths(name, curved, options.studies, generator)
            for level in (0.45, 0.35, "weakest"):
                bias, naive, error, held = matched_bias(arms, level)
                shape = "curved" if curved else "straight"
                print(
                    f"| {name} | {shape} | {level} | {bias:+.2f} ± {error:.2f} | {naive:+.2f} | {100 * held:.1f} |",
                    flush=True,
                )

    print(f"\nPercent by which the cheaper arm looks too dear, {options.studies // 4:,} studies of 10 seeds each.\n")
    print("| the other arm is | level | judging | common grid (not used) | coverage |")
    print("|---|---|---|---|---|")
    for name in PRICES:
        for level in (0.35, 0.5, 0.65):
            bias, error, held = level_cost(name, level, options.studies // 4, generator)
            grid = level_cost(name, level, options.studies // 4, generator, common=True)[0]
            print(f"| {name} | {level} | {bias:+.1f} ± {error:.1f} | {grid:+.1f} | {100 * held:.1f} |", flush=True)


if __name__ == "__main__":
    main()
