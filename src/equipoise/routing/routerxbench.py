"""RouterXBench's measures (arXiv:2602.11877): is a router able, does it fit the scenario, does it hold on other domains?

n prompts; score [n]: high keeps a prompt local; weak, strong [n]: quality of both models' answers; S, G their means. Sorted
by score ascending, A(r) is the mean quality when the share r that scores lowest goes to strong and the rest stays; r is
0, 0.01 ... 1.

    AUROC   of the score against "weak answered well"                        router ability
    LPM     mean A(r), r in [c0, c1]                                         a tight budget; higher is better
    MPM     mean { A(r) : A(c1) < A(r) < S + rho0 (G - S) }                  in between
    HCR     1 - mean { r : S + rho0 (G - S) <= A(r) <= S + rho1 (G - S) }    calls saved where quality must be high

The bands c = [0, 0.3] and rho = [0.85, 0.95] are not the paper's, whose tables do not tell theirs; they stand beside every
result. Undefined (nan) where the released code says 0: no point of the curve in the band, and MPM and HCR where G <= S.
Prompts of equal score go in random order: their mean quality counts. floor(r n) is made from whole numbers, since
0.29 * 100 is 28.999... in floating point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.core.scores import auroc as ranked
from equipoise.core.shares import Bounded
from equipoise.core.statistics import FEWEST_CLUSTERS, Interval, item_interval, pigeonhole_interval, score_interval
from equipoise.routing.measured import RIGHT
from equipoise.routing.measured import Card as Card
from equipoise.routing.measured import Outcomes as Outcomes

Array = NDArray[np.float64]
Measure = Literal["auroc", "lpm", "mpm", "hcr"]

STEPS = 100  # of the rate of calls
BUDGET = (0.0, 0.3)  # c: shares of prompts that go to strong
QUALITY = (0.85, 0.95)  # rho: shares of the gap between weak and strong
DRAWS = 400  # of a bootstrap


@dataclass(frozen=True)
class Bands:
    """c = budget and rho = quality, both in [0, 1], the lower end first; at which results are read."""

    budget: tuple[float, float] = BUDGET
    quality: tuple[float, float] = QUALITY

    def __post_init__(self) -> None:
        _percent(self.budget)
        _check_band(self.quality, "quality")

    def __str__(self) -> str:
        (c0, c1), (low, high) = self.budget, self.quality
        return f"c = [{c0:g}, {c1:g}], rho = [{low:g}, {high:g}]"


def curve(score: ArrayLike, weak: ArrayLike, strong: ArrayLike, counts: ArrayLike | None = None) -> Array:
    """A(0), A(0.01) ... A(1), [101], of n prompts; A(0) = S and A(1) = G. nan throughout for no prompt.

    counts: [n], how often each prompt stands (what a bootstrap draws), 1 when not given. Raises BadInput for arrays of
    different lengths and for a score or quality that is not finite.
    """
    score, weak, strong = checked(score, weak, strong)
    often = np.ones(len(score)) if counts is None else np.asarray(counts, float)
    return _curve(_ties(score), weak, strong, often)


def auroc(score: ArrayLike, solved: ArrayLike) -> float:
    """The share of pairs of a solved and an unsolved prompt in which the solved one has the higher score, ties half.

    solved: [n] of 0 and 1: weak answered well. nan where one of both does not occur (the released code says 0.5).
    """
    return float(ranked(score, solved))


def lpm(score: ArrayLike, weak: ArrayLike, strong: ArrayLike, *, band: tuple[float, float] = BUDGET) -> float:
    """Mean quality over rates of calls in the band [c0, c1], ends included."""
    return _lpm(curve(score, weak, strong), _percent(band))


def mpm(
    score: ArrayLike,
    weak: ArrayLike,
    strong: ArrayLike,
    *,
    band: tuple[float, float] = QUALITY,
    budget: tuple[float, float] = BUDGET,
) -> float:
    """Mean quality between A(c1), the end of the budget's band, and the lower end of the band of quality, both excluded."""
    _check_band(band, "quality")
    return _mpm(curve(score, weak, strong), band, _percent(budget))


def hcr(score: ArrayLike, weak: ArrayLike, strong: ArrayLike, *, band: tuple[float, float] = QUALITY) -> float:
    """1 - the mean rate of calls at which the quality lies in the band, as shares of the gap G - S, ends included."""
    _check_band(band, "quality")
    return _hcr(curve(score, weak, strong), band)


def _lpm(a: Array, band: tuple[int, int]) -> float:
    return float(a[band[0] : band[1] + 1].mean())


def _mpm(a: Array, rho: tuple[float, float], c: tuple[int, int]) -> float:
    lower, _ = _levels(a, rho)
    # Above A(c1) by more than rounding: the value itself is no quality that a larger budget buys.
    return _mean(a[(a > a[c[1]] + _rounding(a)) & (a < lower - _rounding(a))])


def _hcr(a: Array, rho: tuple[float, float]) -> float:
    lower, upper = _levels(a, rho)
    return 1 - _mean(np.flatnonzero((a >= lower - _rounding(a)) & (a <= upper + _rounding(a))) / STEPS)


def _levels(a: Array, rho: tuple[float, float]) -> tuple[float, float]:
    """The band of quality; nan, in which nothing lies, where strong is not better than weak."""
    gap = a[-1] - a[0] if a[-1] - a[0] > _rounding(a) else math.nan
    return a[0] + rho[0] * gap, a[0] + rho[1] * gap


def _rounding(a: Array) -> float:
    """What two qualities that are equal may differ by, in their own unit."""
    return 1e-12 * float(np.abs(a).max())


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else math.nan


def _ties(score: Array) -> NDArray[np.intp]:
    """For each prompt the number of the tie it is in, the lowest score first."""
    return np.unique(score, return_inverse=True)[1]


def _curve(tie: NDArray[np.intp], weak: Array, strong: Array, counts: Array) -> Array:
    total = round(counts.sum())
    if not total:
        return np.full(STEPS + 1, math.nan)
    many, gain = np.bincount(tie, weights=counts), np.bincount(tie, weights=counts * (strong - weak))
    ends, gained = np.concatenate([[0.0], np.cumsum(many)]), np.concatenate([[0.0], np.cumsum(gain)])
    sent = np.arange(STEPS + 1) * total // STEPS  # whole numbers: floor(k n / 100)
    # Between the ends of a tie the gain grows in proportion: the mean over its random orders.
    return (float((counts * weak).sum()) + np.interp(sent, ends, gained)) / total


def checked(*arrays: ArrayLike) -> list[Array]:
    """score, weak and strong, those given, as floats [n]. Raises BadInput for other shapes and what is not finite."""
    found = [np.asarray(each, float) for each in arrays]
    if any(each.ndim != 1 or each.shape != found[0].shape for each in found):
        shapes = ", ".join(str(list(each.shape)) for each in found)
        raise BadInput(f"score, weak and strong are {shapes}: give one number a prompt, for the same prompts.")
    for name, values in zip(("score", "weak", "strong"), found, strict=False):
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise BadInput(
                f"{name} of prompt {wrong[0]} is {values[wrong[0]]}: leave out what has no number, and say so."
            )
    return found


def grouped(clusters: ArrayLike | None, n: int) -> NDArray[Any] | None:
    """The cluster of each of n prompts, [n], or None. Raises BadInput for another number of them."""
    if clusters is None:
        return None
    found = np.asarray(clusters)
    if found.shape != (n,):
        raise BadInput(f"clusters are {list(found.shape)}, for {n} prompts: name the cluster of each prompt, [n].")
    return found


def _check_band(band: tuple[float, float], name: str) -> None:
    low, high = band
    if not 0 <= low <= high <= 1:
        raise BadInput(f"the band of {name} is [{low:g}, {high:g}]: give two numbers in [0, 1], the lower first.")


def _percent(band: tuple[float, float]) -> tuple[int, int]:
    """The ends as whole hundredths."""
    _check_band(band, "the budget")
    low, high = (round(each * STEPS) for each in band)
    if any(abs(each * STEPS - whole) > 1e-6 for each, whole in zip(band, (low, high), strict=True)):
        raise BadInput(f"the band of the budget is [{band[0]:g}, {band[1]:g}]: its ends are whole hundredths.")
    return low, high


# --- with intervals -----------------------------------------------------------------------------------------------------


def measure(
    score: ArrayLike,
    weak: ArrayLike,
    strong: ArrayLike,
    *,
    solved: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    bands: Bands | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Card:
    """Every measure with its 95 % interval over clusters of prompts (each prompt on its own when not given).

    solved: [n] of 0 and 1, what the AUROC is of; when not given, `default_labels`.
    LPM, a mean over prompts at each rate, and the others are redrawn together; what is no mean has no interval under
    FEWEST_CLUSTERS clusters, or where it is undefined in more than 5 % of the draws.
    """
    bands = bands or Bands()
    score, weak, strong = checked(score, weak, strong)
    label = default_labels(weak, strong) if solved is None else np.asarray(solved, float)
    if label.shape != score.shape:
        raise BadInput(f"solved is {list(label.shape)}, for {len(score)} prompts: give one label a prompt.")
    own = grouped(clusters, len(score))
    codes = np.arange(len(score)) if own is None else np.unique(own, return_inverse=True)[1]
    c, tie = _percent(bands.budget), _ties(score)

    def drawn() -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([seed, 11]))

    curves: list[Array] = []

    def redrawn(read: Callable[[Array], float]) -> Interval:
        known = iter(curves.copy())  # the draws are the same for each measure, in the same order

        def statistic(items: NDArray[np.intp]) -> float:
            if (a := next(known, None)) is None:
                a = _curve(tie, weak, strong, np.bincount(items, minlength=len(tie)).astype(float))
                curves.append(a)
            return read(a)

        return pigeonhole_interval(statistic, codes, generator=drawn(), draws=draws, units=("item",))

    enough = len(np.unique(codes)) >= FEWEST_CLUSTERS
    found = {
        "lpm": redrawn(lambda a: _lpm(a, c)),
        "mpm": redrawn(lambda a: _mpm(a, bands.quality, c)),
        "hcr": redrawn(lambda a: _hcr(a, bands.quality)),
    }
    able = score_interval(ranked, score, label, codes, generator=drawn(), draws=draws)
    cut = {name: bounded(each, enough) for name, each in found.items()}
    return Card(
        n=len(score),
        clusters=len(np.unique(codes)),
        weak=_mean_quality(weak, codes),
        strong=_mean_quality(strong, codes),
        auroc=bounded(able, True, 0, 1),
        lpm=cut["lpm"],
        mpm=cut["mpm"],
        hcr=Bounded(cut["hcr"].value, max(cut["hcr"].lower, 0), min(cut["hcr"].upper, 1)) if enough else cut["hcr"],
        curve=tuple(float(each) for each in curve(score, weak, strong)),
        bands=str(bands),
    )


def default_labels(weak: Array, strong: Array) -> Array:
    """1 where weak answered well: where it is at least as good as strong, and not both are 0. Each row for itself.

    For qualities of 0 and 1 that is weak itself, and for open-ended ones the paper's label, so that the two may stand in one
    file. (The paper labels by data set; a row alone does not tell its scale, and two answers of 0 are none that is good.)
    """
    return ((weak >= strong) & ~((weak == 0) & (strong == 0))).astype(float)


def outcomes(
    weak: ArrayLike, strong: ArrayLike, *, sent: ArrayLike | None = None, clusters: ArrayLike | None = None
) -> Outcomes:
    """The table of (weak, strong) right or wrong. weak, strong: [n] of 0 and 1. sent: [n], which prompts go to strong."""
    found = checked(weak, strong)
    if any(not np.isin(each, (0.0, 1.0)).all() for each in found):
        raise BadInput(
            "outcomes are of answers that are right (1) or wrong (0): choose a quality from which one is right."
        )
    w, s = (each > 0 for each in found)
    clusters = grouped(clusters, len(w))
    cells = {"both": w & s, "only_strong": ~w & s, "only_weak": w & ~s, "neither": ~w & ~s}
    gone = np.zeros(len(w), bool) if sent is None else np.asarray(sent, bool)
    shares = {name: bounded(item_interval(cell.astype(float), clusters), True, 0, 1) for name, cell in cells.items()}
    return Outcomes(
        n=len(w),
        **shares,
        sent=float(gone.mean()) if len(gone) else math.nan,
        escalated={name: float(cell[gone].mean()) if gone.any() else math.nan for name, cell in cells.items()},
    )


def quality_outcomes(
    weak: ArrayLike, strong: ArrayLike, *, sent: ArrayLike | None = None, clusters: ArrayLike | None = None
) -> Outcomes:
    """`outcomes` of qualities from 0 to 1, of which an answer is right from RIGHT; where one lies beyond, shares are nan.

    On another scale, such as grades from 1 to 10, nothing says from where an answer is right.
    """
    found = checked(weak, strong)
    table = outcomes(*((each >= RIGHT).astype(float) for each in found), sent=sent, clusters=clusters)
    if all(((each >= 0) & (each <= 1)).all() for each in found):
        return table
    cells = dict.fromkeys(table.escalated, Bounded(math.nan, math.nan, math.nan))
    return Outcomes(n=table.n, **cells, sent=table.sent, escalated=dict.fromkeys(cells, math.nan))


def scenarios(cards: Mapping[str, Card]) -> dict[Measure, list[str]]:
    """Which score suits which scenario: for each measure the names, the best first; undefined ones are left out.

    A tight budget is LPM, a high quality HCR, in between MPM; ability is AUROC.
    """
    order: dict[Measure, list[str]] = {}
    for name in ("auroc", "lpm", "mpm", "hcr"):
        values = {each: getattr(card, name).value for each, card in cards.items()}
        known = [each for each, value in values.items() if not math.isnan(value)]
        order[name] = sorted(known, key=lambda each: -values[each])
    return order


@closed
def cross_domain(
    score: Callable[[str, str], ArrayLike],
    domains: Sequence[str],
    weak: Mapping[str, ArrayLike],
    strong: Mapping[str, ArrayLike],
    *,
    clusters: Mapping[str, ArrayLike] | None = None,
    of: Measure = "auroc",
    bands: Bands | None = None,
    seed: int = 0,
) -> dict[tuple[str, str], Bounded]:
    """A measure for each (fitted on, tested on) pair of domains, tested within one domain at a time.

    score(fitted, tested): the score of the prompts of one domain by the router of another. Pooled over domains an AUROC also
    measures how well domains are told apart, so nothing is pooled.
    """
    found = {}
    for fitted in domains:
        for tested in domains:
            card = measure(
                score(fitted, tested),
                weak[tested],
                strong[tested],
                clusters=None if clusters is None else clusters[tested],
                bands=bands,
                seed=seed,
            )
            found[fitted, tested] = getattr(card, of)
    return found


def _mean_quality(values: Array, codes: NDArray[Any]) -> Bounded:
    """A share where each quality is 0 or 1; on other scales nothing says where they end."""
    ends = (0, 1) if np.isin(values, (0.0, 1.0)).all() else (-math.inf, math.inf)
    return bounded(item_interval(values, codes), True, *ends)


def bounded(interval: Interval, enough: bool = True, least: float = -math.inf, most: float = math.inf) -> Bounded:
    """An interval within the values that its estimate can have; without bounds where there are too few clusters."""
    if not enough:
        return Bounded(float(interval.estimate), math.nan, math.nan)
    return Bounded.of(interval, least, most)
