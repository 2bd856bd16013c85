"""How well a number that is known before any answer predicts whether a model will solve a problem. numpy and scipy only.

Legend: N problems, S responses to each. rewards [N, S] in [0, 1], rates [N] their means. logits, p [N]: what is predicted of
a problem, p = sigmoid(slope * logit + intercept). clusters [N]: what problems come from; intervals are over those.

    Brier      mean over responses of (p - reward)^2 = (p - rate)^2 + the spread of the rewards around the rate
    log loss   mean of -rate log p - (1 - rate) log(1 - p), in nats
    ECE        mean gap of p and rate over BINS bins of equal width, weighted by problems
    AUROC      of right responses (full reward) above others by the p of their problem
    Spearman   rank correlation of p and rate
    AURC       mean over coverages of 1 - the mean rate of what is kept

No prediction from the problem alone has an expected Brier score below that of the true rates, which `floor` estimates: on
the problems at hand a prediction can come below the estimate by chance.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from equipoise.core.errors import BadInput
from equipoise.core.scores import aurc, auroc
from equipoise.core.shares import Bounded
from equipoise.core.statistics import FEWEST_CLUSTERS, Interval, item_interval, pigeonhole_interval, score_interval
from equipoise.reinforcement.measures import FULL, mean_share
from equipoise.reinforcement.solvable_result import Bin, Coverage, Threshold

Array = NDArray[np.float64]
Part = Literal["fit", "stopping", "calibration", "test"]

SHARES: Mapping[Part, float] = {"fit": 0.4, "stopping": 0.1, "calibration": 0.2, "test": 0.3}
FEWEST = 50  # groups of problems that can be divided so
BINS = 10
COVERAGES = np.arange(1, 11) / 10
TARGETS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
DRAWS = 200  # of a bootstrap


def divide(groups: Sequence[str], seed: int) -> list[Part]:
    """The part of each problem, groups whole, in the shares of SHARES; a function of the names and the seed alone.

    Raises BadInput for fewer than FEWEST groups.
    """
    names = sorted(set(groups), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    if len(names) < FEWEST:
        raise BadInput(
            f"{len(names)} problems (or groups of them) are too few to fit, calibrate and test a scorer on different ones: "
            f"give at least {FEWEST}."
        )
    ends = np.round(np.cumsum(list(SHARES.values())) * len(names))
    parts = list(SHARES)
    part_of: dict[str, Part] = {
        name: parts[int(np.searchsorted(ends, place, "right"))] for place, name in enumerate(names)
    }
    return [part_of[group] for group in groups]


# --- how good a prediction is -----------------------------------------------------------------------------------------


def squared_errors(p: Array, rewards: Array) -> Array:
    """What the Brier score is the mean of: for each problem the mean over its responses of (p - reward)^2, [N]."""
    return np.square(p[:, None] - rewards).mean(axis=1)


def log_losses(p: Array, rates: Array) -> Array:
    """What the log loss is the mean of, in nats, [N]."""
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return -(rates * np.log(p) + (1 - rates) * np.log1p(-p))


def calibration_error(p: Array, rates: Array) -> float:
    """ECE: as `core.scores.ece`, of rates that may be any number in [0, 1]."""
    gaps = np.bincount(bins_of(p), weights=rates - p, minlength=BINS)
    return float(np.abs(gaps).sum() / len(p))


def bins_of(p: Array) -> NDArray[np.intp]:
    """In which of the BINS bins ((m - 1) / M, m / M] each lies; 0 is in the first."""
    return np.searchsorted(np.arange(1, BINS) / BINS, p, side="left")


def spearman(p: Array, rates: Array) -> float:
    """Rank correlation, equal values at their mean rank; nan where one of both does not vary."""
    one, other = (rankdata(each) - (len(each) + 1) / 2 for each in (p, rates))
    size = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / size if size else math.nan


def floor(rewards: Array) -> float:
    """An unbiased estimate of the Brier score of the true rates; nan of single responses, which do not show them."""
    samples = rewards.shape[1]
    return float(rewards.var(axis=1, ddof=1).mean()) if samples > 1 else math.nan


def measures(p: Array, rewards: Array, clusters: ArrayLike, seed: int) -> dict[str, Bounded]:
    """Every measure of the legend with its 95 % interval over clusters.

    Those that are no means have none (nan) under FEWEST_CLUSTERS clusters.
    """
    rates, samples = rewards.mean(axis=1), rewards.shape[1]
    right = (rewards >= FULL).astype(float)

    def drawn() -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([seed, 7]))

    def redrawn(statistic: Callable[[Any], float]) -> Interval:
        return pigeonhole_interval(statistic, clusters, generator=drawn(), draws=DRAWS, units=("item",))

    ranked = score_interval(
        auroc, np.repeat(p, samples), right.ravel(), np.repeat(clusters, samples), draws=DRAWS, generator=drawn()
    )
    kept = score_interval(aurc, p, 1 - rates, clusters, draws=DRAWS, generator=drawn())
    found = {
        "Brier": Bounded.of(item_interval(squared_errors(p, rewards), clusters), 0, 1),
        "log loss": Bounded.of(item_interval(log_losses(p, rates), clusters), 0, math.inf),
        "ECE": Bounded.of(redrawn(lambda items: calibration_error(p[items], rates[items])), 0, 1),
        "AUROC": Bounded.of(ranked, 0, 1),
        "Spearman": Bounded.of(redrawn(lambda items: spearman(p[items], rates[items])), -1, 1),
        "AURC": Bounded.of(kept, 0, 1),
    }
    if kept.clusters < FEWEST_CLUSTERS:
        found |= {name: Bounded(found[name].value, math.nan, math.nan) for name in ("ECE", "Spearman")}
    return found


def gains(p: Array, control: Array, rewards: Array, clusters: ArrayLike) -> dict[str, Bounded]:
    """How much lower the losses are than those of a control, paired by problem; above 0 is better."""
    rates = rewards.mean(axis=1)
    return {
        "Brier": Bounded.of(item_interval(squared_errors(control, rewards) - squared_errors(p, rewards), clusters)),
        "log loss": Bounded.of(item_interval(log_losses(control, rates) - log_losses(p, rates), clusters)),
    }


def reliability(p: Array, rates: Array, clusters: ArrayLike) -> tuple[Bin, ...]:
    """What was predicted and what came in each bin that holds a problem."""
    own = bins_of(p)
    return tuple(
        Bin(
            m / BINS,
            (m + 1) / BINS,
            int((own == m).sum()),
            float(p[own == m].mean()),
            mean_rate(rates, clusters, own == m),
        )
        for m in range(BINS)
        if (own == m).any()
    )


def mean_rate(rates: Array, clusters: ArrayLike, chosen: NDArray[np.bool_] | None = None) -> Bounded:
    """`mean_share` of rates, or of those chosen."""
    where = np.ones(len(rates), bool) if chosen is None else chosen
    return mean_share(rates[where], np.asarray(clusters)[where])


# --- answering only what will be solved --------------------------------------------------------------------------------


def selective(p: Array, rates: Array, clusters: ArrayLike) -> tuple[Coverage, ...]:
    """The mean rate of the surest problems, at about each coverage, and of an oracle that knows the rates.

    Problems of equal p are kept together, as any threshold keeps them. The oracle's rate is above what anybody can reach: it
    also knows the luck of the responses that were drawn.
    """
    sure, best = np.sort(p)[::-1], np.sort(rates)[::-1]
    thresholds = {float(sure[max(math.ceil(each * len(p) - 1e-9), 1) - 1]) for each in COVERAGES.tolist()}
    found = []
    for threshold in sorted(thresholds, reverse=True):
        kept = p >= threshold
        found.append(Coverage(float(kept.mean()), mean_rate(rates, clusters, kept), float(best[: kept.sum()].mean())))
    return tuple(found)


def thresholds(
    chosen_p: Array, chosen_rates: Array, p: Array, rates: Array, clusters: ArrayLike
) -> tuple[Threshold, ...]:
    """For each target above the mean rate the lowest threshold that reaches it, and what it comes to on other problems.

    chosen_p, chosen_rates: of the problems on which thresholds are chosen. A threshold is nan where none reaches the target.
    """
    order = np.argsort(-chosen_p, kind="stable")
    sure, means = chosen_p[order], np.cumsum(chosen_rates[order]) / np.arange(1, len(order) + 1)
    whole = np.append(sure[1:] != sure[:-1], True)  # equal predictions are kept together
    found = []
    for target in TARGETS:
        if target > chosen_rates.mean():
            reached = np.flatnonzero(whole & (means >= target - 1e-12))
            threshold = float(sure[reached[-1]]) if len(reached) else math.nan
            kept = p >= threshold
            covered = mean_rate(kept.astype(float), clusters)
            found.append(Threshold(target, threshold, covered, mean_rate(rates, clusters, kept)))
    return tuple(found)
