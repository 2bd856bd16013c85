"""Sampling fidelity (arXiv:2601.17865): do a model's next-token probabilities match the distribution asked for?

T value slots of a sequence (places where a symbol is due), k symbols, P_t [k] the model's own probabilities of symbols at
slot t, divided by their sum, q the task's. Three things can agree or not: q, P_t, and the frequencies of what was drawn.
Sampled at temperature 1, frequencies less mean_t P_t are a mean of martingale differences and fade as 1/sqrt(T): outcomes
show the bias of the mean, and never how much P_t moves. Hence the exact division

    mean_t sum_x (P_t(x) - q(x))^2  =  sum_x (mean_t P_t(x) - q(x))^2  +  sum_x Var_t P_t(x)        bias + dispersion

by which two samplers of equal outcomes are told apart: E, flat and stable, P_t = q at each slot; D, peaky and varying, P_t
nearly one symbol at a time, in an order that keeps the quota. The paper names the two kinds and the three distributions; its
formulas are not published: those here state the same notions with known ideal values, and the rule of kinds is ours.

A mean over t is taken after the comparison, except where the mean is what is compared. A result of T draws is nothing
without its floor: what as many independent draws from q would show (`independent_floor`), and from the P_t themselves
(`own_floor`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from equipoise.core.errors import BadInput

Array = NDArray[np.float64]
Kind = Literal["E", "D", "mixed", "does not follow the task", "undefined"]
FOLLOWS_NOT: Kind = "does not follow the task"
NEAR_ONE = 1e-6  # how far the sum of a distribution may be from 1
COLDEST, HOTTEST = 0.02, 50.0  # between which the best temperature is looked for


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How one sequence's probabilities relate to the task's. What is undefined is nan.

    a_token: mean_t TV(P_t, q), where TV is half of the absolute differences' sum; a_mean: TV(mean_t P_t, q); a_result:
    TV(frequencies of the draws, q); step: mean_t TV(P_t, P_{t-1}); all 0 at best, in [0, 1]. entropy_ratio: mean_t H(P_t) /
    H(q). leak: mean probability of all that is no symbol. bias, dispersion: the two parts of the mean squared distance.
    e_score: 1 - a_token / (1 - sum_x q(x)^2): 1 for P_t = q, 0 in the mean for one symbol at a time drawn from q, below 0
    for less than that.
    """

    a_token: float
    a_mean: float
    a_result: float
    step: float
    entropy_ratio: float
    leak: float
    bias: float
    dispersion: float
    e_score: float


MEASURES = tuple(field.name for field in fields(Fidelity))


def measures(probabilities: ArrayLike, target: ArrayLike, draws: ArrayLike | None = None) -> Fidelity:
    """All measures of a sequence.

    probabilities: [T, k], of the symbols among all tokens: a row may sum to less than 1, the rest being leak. target: [k],
    or [T, k] where what is right depends on the slot, as after a condition; then differences from the target take the place
    of probabilities in step and dispersion. draws: [T'], indices of the symbols that were drawn, negative for what was none.
    a_result is nan without a draw, step with fewer than two slots, everything but it without slots.
    Raises BadInput for shapes that do not fit, a target that does not sum to 1, and a row without any probability.
    """
    raw, q = _checked(probabilities, target)
    each = np.broadcast_to(q, raw.shape)
    a_result = _distance_of_draws(draws, each.mean(axis=0) if len(each) else q) if draws is not None else math.nan
    if not len(raw):
        return Fidelity(*(a_result if name == "a_result" else math.nan for name in MEASURES))
    mass = raw.sum(axis=1)
    p = raw / mass[:, None]
    gap = p - each
    a_token = float(np.abs(gap).sum(axis=1).mean() / 2)
    spread = float(1 - (each**2).sum(axis=1).mean())
    entropy = float(special.entr(each).sum(axis=1).mean())
    return Fidelity(
        a_token=a_token,
        a_mean=float(np.abs(gap.mean(axis=0)).sum() / 2),
        a_result=a_result,
        step=float(np.abs(np.diff(gap, axis=0)).sum(axis=1).mean() / 2) if len(p) > 1 else math.nan,
        entropy_ratio=float(special.entr(p).sum(axis=1).mean() / entropy) if entropy > 0 else math.nan,
        leak=float(max(1 - mass.mean(), 0.0)),
        bias=float((gap.mean(axis=0) ** 2).sum()),
        dispersion=float(gap.var(axis=0).sum()),
        e_score=1 - a_token / spread if spread > 0 else math.nan,
    )


def kind(fidelity: Fidelity) -> Kind:
    """The stated rule: E for an e_score of at least 0.75 and a step of at most 0.15, D for at most 0.6 and at least 0.25.

    Before that a leak above 0.2 or a bias of at least 0.1 does not follow the task. Numbers come first, this word second.
    """
    if fidelity.leak > 0.2 or fidelity.bias >= 0.1:
        return FOLLOWS_NOT
    if any(math.isnan(getattr(fidelity, name)) for name in ("leak", "bias", "e_score", "step")):
        return "undefined"
    if fidelity.e_score >= 0.75 and fidelity.step <= 0.15:
        return "E"
    if fidelity.e_score <= 0.6 and fidelity.step >= 0.25:
        return "D"
    return "mixed"


def averaged(all_fidelities: Sequence[Fidelity]) -> Fidelity:
    """Each measure's mean over sequences, those where it is undefined left out."""
    return Fidelity(*(_mean([getattr(each, name) for each in all_fidelities]) for name in MEASURES))


def tempered(probabilities: ArrayLike, temperature: float) -> Array:
    """Probabilities [T, k] of temperature 1 as they would be at another, above 0; rows sum to 1."""
    if not 0 < temperature < math.inf:
        raise BadInput(f"The temperature is {temperature}: use a number above 0.")
    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(probabilities, dtype=float))
    return special.softmax(logs / temperature, axis=-1)


def best_temperature(probabilities: ArrayLike, target: ArrayLike) -> float:
    """The temperature at which mean_t KL(q || P_t at that temperature) is least, between 0.02 and 50.

    That mean is convex in 1 / temperature, so that its slope has one zero, found by halving; an end of the range where the
    slope has no zero inside. nan without slots, where all symbols are alike at every slot, and where one that is asked for
    has no probability at some slot: no temperature changes either.
    """
    raw, q = _checked(probabilities, target)
    each = np.broadcast_to(q, raw.shape)
    if not len(raw) or bool(((raw == 0) & (each > 0)).any()):
        return math.nan
    with np.errstate(divide="ignore"):
        logs = np.log(raw)
    asked = np.where(each > 0, each * np.where(each > 0, logs, 0.0), 0.0).sum(axis=1)

    def slope(inverse: float) -> float:
        p = special.softmax(inverse * logs, axis=1)
        return float((np.where(p > 0, p * np.where(p > 0, logs, 0.0), 0.0).sum(axis=1) - asked).mean())

    low, high = 1 / HOTTEST, 1 / COLDEST
    if slope(high) - slope(low) <= 1e-12:
        return math.nan
    if slope(low) >= 0:
        return HOTTEST
    if slope(high) <= 0:
        return COLDEST
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


def surplus(probabilities: ArrayLike, target: ArrayLike, draws: ArrayLike) -> Array:
    """What a sequence adds to `history_slope`: for each symbol sums over slots, [5, k].

    Of 1, the surplus, the probability, the surplus squared, and both multiplied. probabilities, target: as of `measures`,
    target [k]; draws: [T], one for each slot. Slots before the first draw of a symbol have no surplus and are left out.
    """
    raw, q = _checked(probabilities, target)
    drawn = np.asarray(draws, dtype=int)
    if len(drawn) != len(raw) or q.ndim != 1:
        raise BadInput(
            f"There are {len(raw)} slots and {len(drawn)} draws: give one draw for each slot, and one target."
        )
    p = raw / raw.sum(axis=1, keepdims=True)
    hits = (drawn[:, None] == np.arange(len(q))).astype(float)
    before = np.cumsum(hits, axis=0) - hits
    seen = before.sum(axis=1)
    p, over = p[seen > 0], before[seen > 0] / seen[seen > 0, None] - q
    return np.stack([np.ones_like(p), over, p, over**2, over * p]).sum(axis=1)


def history_slope(parts: Sequence[Array]) -> float:
    """Slope of P_t(x) on how far x was drawn too often before t, as a share less q(x), with an intercept for each symbol.

    parts: what `surplus` gives of each sequence. Below 0: compensation, as of one who keeps a quota; above 0: copying. nan
    where the surplus does not vary.
    """
    count, over, p, squares, products = np.sum(parts, axis=0) if len(parts) else np.zeros((5, 1))
    some = count > 0
    varied = (squares[some] - over[some] ** 2 / count[some]).sum()
    return float((products[some] - over[some] * p[some] / count[some]).sum() / varied) if varied > 1e-12 else math.nan


class Serial(NamedTuple):
    """Order of the draws against all orders of the same ones.

    autocorrelation: of the symbols' indicators at lag 1, 0 in the mean of all orders, 1 for one symbol throughout. z:
    standardised number of runs, over all sequences; above 0: too many changes. p: two-sided. nan where nothing varies.
    """

    autocorrelation: float
    z: float
    p: float


def serial(sequences: Sequence[ArrayLike]) -> Serial:
    """Lag-1 autocorrelation, mean over sequences, and the runs test of their draws; negative draws are left out."""
    lags: list[float] = []
    gap = variance = 0.0
    for sequence in sequences:
        drawn = np.asarray(sequence, dtype=int)
        drawn = drawn[drawn >= 0]
        n = len(drawn)
        if n < 2:
            continue
        counts = np.unique(drawn, return_counts=True)[1].astype(float)
        squares, cubes = (counts**2).sum(), (counts**3).sum()
        alike, by_chance = float((np.diff(drawn) == 0).mean()), float((counts * (counts - 1)).sum() / (n * (n - 1)))
        if by_chance < 1:
            lags.append((alike - by_chance) / (1 - by_chance))
        gap += 1 + float((np.diff(drawn) != 0).sum()) - (n * (n + 1) - squares) / n
        variance += (squares * (squares + n * (n + 1)) - 2 * n * cubes - n**3) / (n**2 * (n - 1))
    z = float(gap / math.sqrt(variance)) if variance > 1e-12 else math.nan
    return Serial(_mean(lags), z, float(2 * stats.norm.sf(abs(z))))


class Floor(NamedTuple):
    """Mean over sequences of a_result, had the draws been independent: its expectation and the middle 95 % of chance."""

    value: float
    lower: float
    upper: float


def independent_floor(
    target: ArrayLike, lengths: Sequence[int], generator: np.random.Generator, *, repeats: int = 1000
) -> Floor:
    """a_result of sequences of these lengths drawn from the target itself, by simulation."""
    q = checked_target(target)
    values = [np.abs(generator.multinomial(n, q, size=repeats) / n - q).sum(axis=1) / 2 for n in lengths if n]
    return _floor(values)


def own_floor(
    sequences: Sequence[ArrayLike], target: ArrayLike, generator: np.random.Generator, *, repeats: int = 1000
) -> Floor:
    """a_result where slot t of each sequence [T, k] draws from its own P_t, independently of the other slots."""
    q = checked_target(target)
    values = []
    for sequence in sequences:
        raw, _ = _checked(sequence, q)
        if not len(raw):
            continue
        shares = (raw / raw.sum(axis=1, keepdims=True)).cumsum(axis=1)
        drawn = (generator.random((repeats, len(raw), 1)) * shares[:, -1:] >= shares).sum(axis=2)
        frequencies = (drawn[:, :, None] == np.arange(len(q))).mean(axis=1)
        values.append(np.abs(frequencies - q).sum(axis=1) / 2)
    return _floor(values)


def multinomial_test(
    counts: ArrayLike, target: ArrayLike, generator: np.random.Generator, *, repeats: int = 9999
) -> float:
    """p of independent draws having these counts [k] under the target: the G statistic among simulated ones.

    Valid at any count; at least 1 / (repeats + 1); nan without draws. Only for draws that are independent.
    """
    seen, q = np.asarray(counts, dtype=float), checked_target(target)
    if not seen.sum():
        return math.nan
    n = int(seen.sum())

    def statistic(found: Array) -> Array:
        return (special.xlogy(found, found) - special.xlogy(found, n * q)).sum(axis=-1)

    simulated = statistic(generator.multinomial(n, q, size=repeats).astype(float))
    # Counts of one table in two orders of summing differ in the last bits.
    return float((1 + (simulated >= statistic(seen) - 1e-9).sum()) / (repeats + 1))


def position_effect(sequences: Sequence[ArrayLike]) -> float:
    """Variance over slots of the probabilities' mean over sequences, summed over symbols: what the place alone decides.

    sequences: of [T, k]; the slots that all of them have are compared. It holds chance of about dispersion / sequences.
    """
    slots = min((len(np.asarray(sequence)) for sequence in sequences), default=0)
    if not slots:
        return math.nan
    raw = np.stack([np.asarray(sequence, dtype=float)[:slots] for sequence in sequences])
    return float((raw / raw.sum(axis=2, keepdims=True)).mean(axis=0).var(axis=0).sum())


def checked_target(target: ArrayLike, *, name: str = "The target") -> Array:
    """The target as numbers [..., k] that sum to 1. Raises BadInput, with the sum, for what is no distribution."""
    q = np.asarray(target, dtype=float)
    if q.ndim not in (1, 2) or q.shape[-1] < 2 or not np.isfinite(q).all() or (q < 0).any():
        raise BadInput(f"{name} must be at least two numbers from 0 to 1, one for each symbol.")
    sums = q.sum(axis=-1, keepdims=True)
    if np.abs(sums - 1).max(initial=0) > NEAR_ONE:
        raise BadInput(f"{name} sums to {float(sums.flat[np.abs(sums - 1).argmax()]):g}: its shares must sum to 1.")
    return q / sums


def _checked(probabilities: ArrayLike, target: ArrayLike) -> tuple[Array, Array]:
    q = checked_target(target)
    raw = np.asarray(probabilities, dtype=float)
    if raw.size == 0:
        raw = raw.reshape(0, q.shape[-1])
    if raw.ndim != 2 or raw.shape[1] != q.shape[-1] or (q.ndim == 2 and q.shape != raw.shape):
        raise BadInput(f"Probabilities of shape {raw.shape} do not fit a target of shape {q.shape}: [T, k] beside [k].")
    sums = raw.sum(axis=1)
    if not np.isfinite(raw).all() or (raw < 0).any() or (sums > 1 + NEAR_ONE).any():
        raise BadInput("Probabilities must be from 0 to 1, and those of a slot sum to at most 1.")
    if (sums <= 0).any():
        raise BadInput(
            f"Slot {int((sums <= 0).argmax())} gives no symbol any probability: there is nothing to compare."
        )
    return raw, q


def _distance_of_draws(draws: ArrayLike, q: Array) -> float:
    drawn = np.asarray(draws, dtype=int)
    if (drawn >= len(q)).any():
        raise BadInput(f"A draw is {int(drawn.max())}, but there are {len(q)} symbols, counted from 0.")
    drawn = drawn[drawn >= 0]
    if not len(drawn):
        return math.nan
    return float(np.abs(np.bincount(drawn, minlength=len(q)) / len(drawn) - q).sum() / 2)


def _floor(values: Sequence[Array]) -> Floor:
    if not values:
        return Floor(math.nan, math.nan, math.nan)
    means = np.mean(values, axis=0)
    return Floor(float(means.mean()), *(float(each) for each in np.quantile(means, [0.025, 0.975])))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
