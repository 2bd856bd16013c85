"""How well steps are judged: first errors as ProcessBench counts them, PRMBench's classes, AUROC, best of N; and controls.

A threshold says which steps are called wrong: those with r below. It is the one given, or the best of the other half of the
problems: each half is judged at the threshold that was chosen on the other, so that none profits from its own. Of first
errors the best has the highest mean F1 of the splits that have both wrong and right solutions; so has the row of the mean.

    first errors    F1 = 2 a b / (a + b), a of the wrong solutions have just the right step named, b of the right ones none
                    (arXiv:2412.06559)
    PRMBench        F1 of the steps that are right, negative F1 of those that are wrong; PRMScore, the mean of both
                    (arXiv:2501.03124, with equal weights as in its code); of a class without wrong steps F1 alone

Controls. "always right" finds no error. "step position" knows nothing of a step but which of its solution it is: the share
of such steps that are right, from the other half.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from equipoise.core.agreement import UNDEFINED
from equipoise.core.scores import auroc
from equipoise.core.shares import Bounded
from equipoise.core.statistics import FEWEST_CLUSTERS, item_interval, pigeonhole_interval, score_interval
from equipoise.data.steps import WRONG_BELOW, StepwiseSolution
from equipoise.reinforcement import nait
from equipoise.reinforcement.prm_evaluation_result import (
    ALL,
    ALWAYS,
    FIRST,
    MEAN,
    MODEL,
    ORACLE,
    OTHER_HALF,
    POSITION,
    RANDOM,
    UNCHOSEN,
    BestOf,
    Discrimination,
    ErrorClass,
    FirstErrors,
    Misjudged,
)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
ONE_SOLUTION = "multi_solutions"  # PRMBench's class without wrong steps
FARTHEST = 16  # steps behind share a place
DRAWS = 400
TRIED = 513  # thresholds for PRMBench
_NEVER = (np.inf, -np.inf)


@dataclass(frozen=True, eq=False)
class Judged:
    """Solutions of one data set with r of their steps, nan where one was not read. half: of the problem, 0 or 1."""

    solutions: Sequence[StepwiseSolution]
    scores: Sequence[Array]
    half: NDArray[np.intp]
    seed: int

    def __len__(self) -> int:
        return len(self.solutions)

    @property
    def clusters(self) -> NDArray[np.str_]:
        """Of each solution its problem."""
        return np.array([each.group for each in self.solutions])

    @property
    def splits(self) -> list[str]:
        """Their names, in order."""
        return list(dict.fromkeys(each.split for each in self.solutions))

    def of(self, places: NDArray[np.intp]) -> "Judged":
        """Some of the solutions."""
        chosen = places.tolist()
        kept = [self.solutions[i] for i in chosen], [self.scores[i] for i in chosen]
        return replace(self, solutions=kept[0], scores=kept[1], half=self.half[places])

    def where(self, keep: Callable[[StepwiseSolution], bool]) -> "Judged":
        """Those for which this holds."""
        return self.of(np.flatnonzero([keep(each) for each in self.solutions]))

    def judged_by(self, predictor: str) -> "Judged":
        """The same with a control's scores."""
        if predictor == POSITION:
            return replace(self, scores=position_scores(self.solutions, self.half))
        if predictor == ALWAYS:
            return replace(self, scores=[np.ones(len(each.steps)) for each in self.solutions])
        return self

    def steps(self) -> "Steps":
        """Those whose label is known and that were read."""
        sizes = [len(each) for each in self.scores]
        scores = np.concatenate([np.empty(0), *self.scores])
        labels = np.array(
            [np.nan if y is None else y for s in self.solutions for y in s.labels or [None] * len(s.steps)]
        )
        owner = np.repeat(np.arange(len(self)), sizes)
        at = np.concatenate([np.empty(0, int), *map(np.arange, sizes)])
        kept = np.isfinite(labels) & np.isfinite(scores)
        return Steps(scores[kept], labels[kept] >= WRONG_BELOW, owner[kept], at[kept])


@dataclass(frozen=True, eq=False)
class Steps:
    """r of steps, whether they are right, the index of their solutions, and which of its steps each is."""

    scores: Array
    right: Mask
    owner: NDArray[np.intp]
    at: NDArray[np.intp]


def halves(groups: Sequence[str], seed: int) -> NDArray[np.intp]:
    """0 or 1 for each solution: half of the problems (or one more) each, drawn at random."""
    names = sorted(set(groups))
    order = np.random.default_rng(np.random.SeedSequence([seed, 0])).permutation(len(names))
    half = {names[place]: rank % 2 for rank, place in enumerate(order.tolist())}
    return np.array([half[group] for group in groups], dtype=np.intp)


def position_scores(solutions: Sequence[StepwiseSolution], half: NDArray[np.intp]) -> list[Array]:
    """The share of steps at the same place that are right, of the other half's with a label, (right + 1) / (count + 2)."""
    counts = np.zeros((2, FARTHEST, 2))
    for solution, side in zip(solutions, half.tolist(), strict=True):
        for t, label in enumerate(solution.labels or ()):
            if label is not None:
                counts[side, min(t, FARTHEST - 1)] += 1, label >= WRONG_BELOW
    shares = (counts[..., 1] + 1) / (counts[..., 0] + 2)
    return [
        shares[1 - side, np.minimum(np.arange(len(solution.steps)), FARTHEST - 1)]
        for solution, side in zip(solutions, half.tolist(), strict=True)
    ]


# First errors.


def window(scores: Array, first_error: int) -> tuple[float, float]:
    """(low, high]: the thresholds at which just this first error is named (-1: none); where low >= high there is none."""
    before = scores if first_error == -1 else scores[:first_error]
    low = -np.inf if first_error == -1 else scores[first_error]
    if np.isnan(before).any() or np.isnan(low):
        return _NEVER
    return float(low), float(before.min(initial=np.inf))


def first_errors(data: str, judged: Judged, threshold: float) -> list[FirstErrors]:
    """Of each split, and their mean where there are several, by the model and by both controls. data: what they came in."""
    return [
        row
        for predictor, rule in ((MODEL, ""), (MODEL, OTHER_HALF), (POSITION, OTHER_HALF), (ALWAYS, ""))
        for row in _first_errors(data, judged.judged_by(predictor), predictor, rule, threshold)
    ]


def _first_errors(data: str, judged: Judged, predictor: str, rule: str, threshold: float) -> Iterator[FirstErrors]:
    gold = [-1 if each.first_error is None else each.first_error for each in judged.solutions]
    split = np.array([each.split for each in judged.solutions])
    windows = np.array([window(r, e) for r, e in zip(judged.scores, gold, strict=True)])
    erroneous = np.array(gold) != -1

    def defined(places: NDArray[np.intp]) -> list[str]:
        """The splits of which these have both wrong and right solutions: others have no F1."""
        return [name for name in judged.splits if len(set(erroneous[places[split[places] == name]].tolist())) == 2]

    def mean_f1(names: Sequence[str], places: NDArray[np.intp], right: Mask) -> Array:
        """Over splits, [...] of right [..., len(places)]; nan where one of them has no F1."""
        if not names:
            return np.full(right.shape[:-1], np.nan)
        own = [split[places] == name for name in names]
        return np.mean([_f1(right[..., each], erroneous[places[each]])[2] for each in own], axis=0)

    def at_thresholds(places: NDArray[np.intp], tried: Array) -> Array:
        return mean_f1(defined(places), places, _inside(windows[places], tried[:, None]))

    at = _thresholds(judged, rule, threshold, windows.ravel(), at_thresholds)
    right = _inside(windows, _judging(at)[judged.half])
    every = judged.splits
    both = defined(np.arange(len(judged)))

    def row(name: str, names: Sequence[str], left_out: Sequence[str] = ()) -> FirstErrors:
        places = np.flatnonzero(np.isin(split, names))
        wrong, correct, _ = _f1(right[places], erroneous[places])
        return FirstErrors(
            split=name,
            predictor=predictor,
            rule=rule,
            thresholds=tuple(at.tolist()) if rule else (threshold,),
            error_accuracy=float(wrong),
            correct_accuracy=float(correct),
            f1=_resampled(judged.of(places), lambda drawn: mean_f1(names, places[drawn], right[places[drawn]])),
            errors=int(erroneous[places].sum()),
            corrects=int((~erroneous[places]).sum()),
            data=data,
            left_out=tuple(left_out),
        )

    for name in every:
        yield row(name, [name])
    if len(every) > 1:
        yield row(MEAN, both or every, [name for name in every if name not in both])


def _f1(right: Mask, erroneous: Mask) -> tuple[Any, Any, Any]:
    """The two accuracies and their harmonic mean, [...] of right [..., N]; nan where there is nothing to count."""
    with np.errstate(invalid="ignore", divide="ignore"):
        wrong = right[..., erroneous].sum(-1) / erroneous.sum()
        correct = right[..., ~erroneous].sum(-1) / (~erroneous).sum()
        f1 = np.where(wrong + correct == 0, 0.0, 2 * wrong * correct / (wrong + correct))
    return wrong, correct, f1


def _inside(windows: Array, at: Array) -> Mask:
    return (windows[:, 0] < at) & (at <= windows[:, 1])


def _thresholds(
    judged: Judged, rule: str, threshold: float, scores: Array, value: Callable[[NDArray[np.intp], Array], Array]
) -> Array:
    """For each half the threshold that it is judged at: the given one, or the best of the other half.

    scores: between which thresholds differ. value: of some solutions at many thresholds, the higher the better. Of equals
    the one nearest to 0.5; nan where no value is defined, so that none can be chosen: see `_judging`.
    """
    if rule != OTHER_HALF:
        return np.full(2, threshold)
    seen = np.unique(scores[np.isfinite(scores)])
    tried = np.unique(np.concatenate([[0.5], (seen[1:] + seen[:-1]) / 2]))
    tried = tried[np.argsort(np.abs(tried - 0.5), kind="stable")]
    best = np.full(2, np.nan)
    for side in (0, 1):
        values = value(np.flatnonzero(judged.half == 1 - side), tried)
        if np.isfinite(values).any():
            best[side] = tried[int(np.nanargmax(values))]
    return best


def _judging(at: Array) -> Array:
    """The thresholds that are judged at: 0.5 where none could be chosen."""
    return np.where(np.isnan(at), UNCHOSEN, at)


# PRMBench.


def error_classes(judged: Judged, threshold: float) -> list[ErrorClass]:
    """Of each class and all together, by the model and by both controls. A step that was not read counts as misjudged."""
    return [
        row
        for predictor, rule in ((MODEL, ""), (MODEL, OTHER_HALF), (POSITION, OTHER_HALF), (ALWAYS, ""))
        for row in _error_classes(judged.judged_by(predictor), predictor, rule, threshold)
    ]


def _error_classes(judged: Judged, predictor: str, rule: str, threshold: float) -> Iterator[ErrorClass]:
    split = np.array([each.split for each in judged.solutions])
    labels = [np.array(each.labels) >= WRONG_BELOW for each in judged.solutions]

    def value(places: NDArray[np.intp], at: Array) -> Array:
        y = np.concatenate([labels[i] for i in places.tolist()] or [np.empty(0, bool)])
        r = np.concatenate([judged.scores[i] for i in places.tolist()] or [np.empty(0)])
        return np.array([_prm_score(_counts(r, y, each)) for each in at.tolist()])

    every = np.concatenate(judged.scores)
    read = every[np.isfinite(every)]
    spread = np.quantile(read, np.linspace(0, 1, TRIED)) if read.size else read
    at = _thresholds(judged, rule, threshold, spread, value)
    counts = np.array(
        [
            _counts(r, y, float(_judging(at)[side]))
            for r, y, side in zip(judged.scores, labels, judged.half.tolist(), strict=True)
        ]
    )
    for name in (*judged.splits, ALL):
        places = np.flatnonzero((split == name) | (name == ALL))
        one = name == ONE_SOLUTION

        def score(drawn: NDArray[np.intp], own: Array = counts[places], one: bool = one) -> float:
            return _prm_score(own[drawn].sum(0), one=one)

        total = counts[places].sum(0)
        positive, negative = _both_f1(total)
        yield ErrorClass(
            name=name,
            predictor=predictor,
            rule=rule,
            thresholds=tuple(at.tolist()) if rule else (threshold,),
            f1=positive,
            negative_f1=negative,
            score=_resampled(judged.of(places), score),
            right=int(total[0] + total[1]),
            wrong=int(total[2] + total[3]),
        )


def _counts(scores: Array, right: Mask, at: float) -> Array:
    """Right steps called right, right steps called wrong, wrong steps called wrong, wrong steps called right."""
    called_right, called_wrong = scores >= at, scores < at
    hits, finds = (right & called_right).sum(), (~right & called_wrong).sum()
    return np.array([hits, right.sum() - hits, finds, (~right).sum() - finds], dtype=float)


def _both_f1(counts: Array) -> tuple[float, float]:
    hits, misses, finds, passed = counts.tolist()
    positive, negative = 2 * hits + misses + passed, 2 * finds + misses + passed
    return (
        2 * hits / positive if positive else np.nan,
        2 * finds / negative if negative and finds + passed else np.nan,
    )


def _prm_score(counts: Array, *, one: bool = False) -> float:
    positive, negative = _both_f1(counts)
    return positive if one else (positive + negative) / 2


# Discrimination.


def discrimination(data: str, judged: Judged) -> list[Discrimination]:
    """Per-step AUROC of each split and of all, clustered by problem, and how much the model's is above the position's."""
    position = judged.judged_by(POSITION)
    rows = []
    for name in judged.splits if len(judged.splits) > 1 else ():
        places = np.flatnonzero([each.split == name for each in judged.solutions])
        rows.append(_discrimination(data, name, judged.of(places), position.of(places)))
    return [*rows, overall(judged, data)]


def overall(judged: Judged, data: str = "") -> Discrimination:
    """That of all splits together."""
    return _discrimination(data, ALL, judged, judged.judged_by(POSITION))


def _discrimination(data: str, name: str, judged: Judged, position: Judged) -> Discrimination:
    steps = judged.steps()
    prior = np.array([position.scores[place][t] for place, t in zip(steps.owner, steps.at, strict=True)])
    clusters = judged.clusters[steps.owner]

    def gain(scores: Any, labels: Any, counts: Any = None) -> Any:
        return auroc(scores, labels, counts) - auroc(prior, labels, counts)

    def interval(score: Callable[..., Any], scores: Array) -> Bounded:
        if not steps.right.size:
            return UNDEFINED
        generator = np.random.default_rng(np.random.SeedSequence([judged.seed, 1]))
        return Bounded.of(score_interval(score, scores, steps.right, clusters, generator=generator, draws=DRAWS))

    return Discrimination(
        data=data,
        split=name,
        model=interval(auroc, steps.scores),
        position=interval(auroc, prior),
        gain=interval(gain, steps.scores),
        right=int(steps.right.sum()),
        wrong=int((~steps.right).sum()),
        unread=sum(y is not None for each in judged.solutions for y in each.labels or ()) - steps.right.size,
    )


def misjudged(judged: Judged, count: int) -> list[Misjudged]:
    """The steps whose score is furthest from their label: wrong ones, then right ones, half of `count` of each."""
    steps = judged.steps()
    order = np.argsort(steps.scores, kind="stable")
    highest, lowest = order[::-1], order
    chosen = [*highest[~steps.right[highest]][: count // 2], *lowest[steps.right[lowest]][: count // 2]]
    return [_misjudged(judged, steps, index) for index in chosen]


def _misjudged(judged: Judged, steps: Steps, index: int) -> Misjudged:
    solution, at = judged.solutions[steps.owner[index]], int(steps.at[index])
    r, right = float(steps.scores[index]), bool(steps.right[index])
    return Misjudged(solution.id, solution.problem, at, solution.steps[at], right, r)


# Best of N.


def best_of(judged: Judged) -> tuple[list[BestOf], dict[str, int]]:
    """The share of problems whose chosen solution is right, by each aggregate and by controls; and what it is taken over.

    Over the problems of which several solutions come and whose final answers are all known to be right or wrong.
    """
    problems: dict[str, list[int]] = {}
    for place, each in enumerate(judged.solutions):
        problems.setdefault(each.group, []).append(place)
    known = [
        places
        for places in problems.values()
        if len(places) > 1 and all(judged.solutions[place].correct is not None for place in places)
    ]
    if not known:
        return [], {}
    correct = [[bool(judged.solutions[place].correct) for place in places] for places in known]
    scores = [[torch.from_numpy(judged.scores[place]) for place in places] for places in known]
    solved: dict[str, list[float]] = {
        how: [_chosen(own, nait.all_best_of(each, how)) for own, each in zip(correct, scores, strict=True)]
        for how in get_args(nait.StepAggregate)
    }
    solved[RANDOM] = [sum(own) / len(own) for own in correct]
    solved[FIRST] = [float(own[0]) for own in correct]
    solved[ORACLE] = [float(any(own)) for own in correct]
    counts = {
        "problems": len(known),
        "solutions": sum(map(len, known)),
        "decided": sum(0 < sum(own) < len(own) for own in correct),
    }
    return [BestOf(how, Bounded.of(item_interval(values))) for how, values in solved.items()], counts


def _chosen(correct: Sequence[bool], best: Sequence[int]) -> float:
    """Of equals the mean, as if one were drawn: their order in the file must not count."""
    return sum(correct[place] for place in best) / len(best)


def by_format(solutions: Sequence[StepwiseSolution]) -> Mapping[str, NDArray[np.intp]]:
    """The places of the solutions of each data set."""
    names = [each.format for each in solutions]
    return {name: np.flatnonzero([each == name for each in names]) for name in dict.fromkeys(names)}


def _resampled(judged: Judged, statistic: Callable[[NDArray[np.intp]], Any]) -> Bounded:
    """A statistic of solutions with its interval over problems, where there are enough of them."""
    clusters = judged.clusters
    generator = np.random.default_rng(np.random.SeedSequence([judged.seed, 2]))
    draws = DRAWS if len(set(clusters.tolist())) >= FEWEST_CLUSTERS else 0
    return Bounded.of(pigeonhole_interval(statistic, clusters, generator=generator, draws=draws, units=("item",)))
