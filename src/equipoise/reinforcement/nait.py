"""NAIT (arXiv:2601.12748): a process reward model (PRM) from noisy Monte Carlo labels of steps, cleaned, then refreshed.

K completions are drawn from every prefix of a solution. z = 1 where one reaches the gold answer; y in [0, 1] is the label of
a step, 1 for right; r is the PRM's probability that it is right, the first entry of the softmax over its two logits.

    labels      soft SE = mean_k z_k; hard HE = max_k z_k
    correct     z <- z (1 - R), R = 1 where the completion itself corrects or negates the step (`reflection`)
    train       -(w+ y log r + w- (1 - y) log(1 - r));  d / d logit of right = w- (1 - y) r - w+ y (1 - r)
    refresh     y <- r where |r - anchor| > threshold, else the anchor; then train again

The weights move what is learnt: of steps that are right with probability q the loss is least not at q but at
w+ q / (w+ q + w- (1 - q)). With the authors' (1/6, 5/6) r reaches 0.5 only at q = 0.833, a positive label outlives a
threshold of 0.25 only from 0.9375, a negative one up to 0.625; and each further soft stage moves it again, 0.9 to 0.643,
0.265, 0.067 (`drift_note`).

Where the sources differ. The paper's formula anchors a refresh at the labels of the stage before, the released script at
those of the first stage: `refresh` takes either. Torch's weighted cross entropy divides by the sum of the targets' weights
where these are classes, and by their number where they are probabilities: a hard stage of positive labels would have six
times the scale of the soft one. Here both are means over steps: a hard label is the limit of soft ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.language.score import wide

ClassWeights = tuple[float, float]  # of right and of wrong steps
StepLoss = Literal["cross-entropy", "label-smoothing", "bootstrapping", "generalized-cross-entropy"]
StepAggregate = Literal["mean", "min", "max", "product", "geometric-mean", "sum"]

ROUNDING = 1e-12  # of an aggregate: steps that are all scored alike have equal means, however many they are
POSITIVE = 0.5  # a label or score from here on says that the step is right


# Labels.


def monte_carlo(outcomes: Tensor) -> tuple[Tensor, Tensor]:
    """Soft and hard labels [...] of outcomes [..., K]: the share of completions that succeed, and whether any does (0 or 1).

    Raises BadInput for outcomes that are neither 0 nor 1, naming the index, and for K = 0.
    """
    successes = _binary("outcomes", outcomes)
    if not successes.dim() or not successes.shape[-1]:
        raise BadInput(f"outcomes have the shape {list(outcomes.shape)}: the last axis needs one completion or more.")
    return successes.mean(-1), successes.amax(-1)


def correct(outcomes: Tensor, reflected: Tensor) -> Tensor:
    """Outcomes [..., K] without the successes that were reached by repairing the step: z (1 - R), in their own type.

    reflected: R, 0 or 1 (or bool), of the same shape; where z = 0 it says nothing, and no judge need be asked. Such a
    completion still counts among the K: labels can only go down. Raises BadInput for other shapes and values.
    """
    _same_shape("outcomes", outcomes, "reflected", reflected)
    _binary("outcomes", outcomes)
    return outcomes.masked_fill(_binary("reflected", reflected).bool(), 0)


@dataclass(frozen=True, eq=False)
class Refreshed:
    """labels: of the next stage, [...]. kept: which of them are the anchor's, [...] bool.

    positives_kept, negatives_kept: the share of the anchor's labels from 0.5 on, and below, that is kept; nan of none.
    """

    labels: Tensor
    kept: Tensor
    positives_kept: float
    negatives_kept: float


def refresh(labels: Tensor, scores: Tensor, *, threshold: float = 0.25) -> Refreshed:
    """The score of a step where it is further than `threshold` from its label, and else the label.

    labels: the anchor, [...] in [0, 1]: give those of the first stage at every stage (the released script), or those of the
    stage before (the paper's formula); the first refresh is the same. scores: r of the same shape; steps that the model has
    not read are to be left out. threshold: 1 or more changes nothing, 0 whatever differs. Raises BadInput for other values.
    """
    _same_shape("labels", labels, "scores", scores)
    anchor, scores = _unit("labels", labels), _unit("scores", scores)
    if not threshold >= 0:
        raise BadInput(f"threshold is {threshold}, expected a number from 0 on.")
    kept = (scores - anchor).abs() <= threshold
    positive = anchor >= POSITIVE
    return Refreshed(torch.where(kept, anchor, scores), kept, _share(kept[positive]), _share(kept[~positive]))


# Losses.


@closed
def class_weights(weights: ClassWeights | Literal["none", "inverse_frequency"], targets: Tensor) -> ClassWeights:
    """The weights of right and of wrong steps as two numbers; "none" is (1, 1).

    "inverse_frequency": each class's weight is the other's share of the targets (soft ones count in part), so that 5 right
    steps to 1 wrong one give the authors' (1/6, 5/6). Take it over all labels: of a batch it would change with the batch.
    Raises BadInput for weights that are not above 0, and when one class has no label.
    """
    if weights == "none":
        return 1.0, 1.0
    if isinstance(weights, str):
        positive = _unit("targets", targets).double().mean().item()
        if not 0 < positive < 1:
            raise BadInput("inverse_frequency needs labels of right and of wrong steps: give two weights, or 'none'.")
        weights = (1 - positive, positive)
    if len(weights) != 2 or not all(0 < weight < math.inf for weight in weights):
        raise BadInput(f"weights are {weights}, expected two numbers above 0: of right and of wrong steps.")
    return weights


@closed
def prm_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    weights: ClassWeights | Literal["none", "inverse_frequency"] = (1 / 6, 5 / 6),
) -> Tensor:
    """Mean over all steps of the weighted cross entropy of logits [..., 2], right and wrong, and targets [...] in [0, 1].

    A target is the probability that the step is right, 1 for a hard positive, not the index of a logit. The mean is that of
    torch.nn.functional.cross_entropy(weight=) for probabilities, for hard targets too; its own for class indices is this one
    divided by the mean weight of the targets. Raises BadInput for targets outside [0, 1] and other shapes.
    """
    targets = _unit("targets", targets)
    return cross_entropy(logits, targets, class_weights(weights, targets)).mean()


def cross_entropy(logits: Tensor, targets: Tensor, weights: ClassWeights) -> Tensor:
    """-(w+ y log r + w- (1 - y) log(1 - r)) of each step, [...]."""
    targets = _matching(targets, logits)
    log_right, log_wrong = _log_probabilities(logits)
    return -(weights[0] * targets * log_right + weights[1] * (1 - targets) * log_wrong)


def label_smoothing(logits: Tensor, targets: Tensor, weights: ClassWeights, *, epsilon: float = 0.1) -> Tensor:
    """Cross entropy with (1 - epsilon) y + epsilon / 2 as the label (arXiv:1512.00567, sec. 7), [...]."""
    return cross_entropy(logits, (1 - epsilon) * targets + epsilon / 2, weights)


def bootstrapping(logits: Tensor, targets: Tensor, weights: ClassWeights, *, beta: float = 0.95) -> Tensor:
    """Cross entropy with beta y + (1 - beta) r as the label (arXiv:1412.6596, eq. 6, soft), [...].

    The gradient runs through that r as well: held fixed, it would only scale the unweighted loss's gradient by beta.
    """
    return cross_entropy(logits, beta * _matching(targets, logits) + (1 - beta) * probability(logits), weights)


def generalized_cross_entropy(logits: Tensor, targets: Tensor, weights: ClassWeights, *, q: float = 0.7) -> Tensor:
    """(1 - p^q) / q with p the probability of the label, averaged over a soft one (arXiv:1805.07836, eq. 6), [...].

    q in (0, 1]: towards 0 it is the cross entropy, at 1 the absolute error, which a wrong label pulls least.
    """
    targets = _matching(targets, logits)
    right, wrong = (-torch.expm1(q * log) / q for log in _log_probabilities(logits))
    return weights[0] * targets * right + weights[1] * (1 - targets) * wrong


LOSSES: Mapping[StepLoss, Callable[[Tensor, Tensor, ClassWeights], Tensor]] = {
    "cross-entropy": cross_entropy,
    "label-smoothing": label_smoothing,
    "bootstrapping": bootstrapping,
    "generalized-cross-entropy": generalized_cross_entropy,
}


def probability(logits: Tensor) -> Tensor:
    """r of logits [..., 2]: the first entry of their softmax, [...]."""
    return wide(logits).softmax(-1)[..., 0]


@overload
def fixed_point(target: float, weights: ClassWeights) -> float: ...
@overload
def fixed_point(target: Tensor, weights: ClassWeights) -> Tensor: ...
def fixed_point(target: Any, weights: ClassWeights) -> Any:
    """The r at which the weighted loss of a target in [0, 1] is least: w+ y / (w+ y + w- (1 - y)).

    With the two weights exchanged it is the inverse: the probability of being right that ends at a given r.
    """
    right, wrong = weights
    return right * target / (right * target + wrong * (1 - target))


def drift_note(weights: ClassWeights, *, threshold: float = 0.25) -> str | None:
    """What unequal weights do to scores and refreshed labels, in a sentence; None where they are equal."""
    right, wrong = weights
    if right == wrong:
        return None
    stages = [0.9 if right < wrong else 0.1]
    for _ in range(3):
        stages.append(fixed_point(stages[-1], weights))
    start, *later = [f"{stage:.4g}" for stage in stages]
    needed = [f"{fixed_point(score, (wrong, right)):.4g}" for score in (POSITIVE, 1 - threshold, threshold)]
    return (
        f"The class weights {right:.3g} and {wrong:.3g} pull scores towards {'wrong' if right < wrong else 'right'}: steps "
        f"that are right with probability {start} get {later[0]}, and where such labels are learnt again {later[1]}, then "
        f"{later[2]}. A score reaches {POSITIVE} only at {needed[0]}; a positive label outlives the threshold {threshold:g} "
        f"from {needed[1]} on, a negative one up to {needed[2]}. Keep to few stages, or use no weights."
    )


# What scores are good for.


def first_error(scores: Tensor, threshold: float = 0.5) -> int | None:
    """Index of the first step with r < threshold, -1 when there is none; None where one without a score (nan) comes before.

    scores: [T] in [0, 1]; raises BadInput for others, naming the index.
    """
    _unit("scores", scores.nan_to_num(0.5))
    found = (~(scores >= threshold)).nonzero()
    if not len(found):
        return -1
    index = int(found[0])
    return None if scores[index].isnan() else index


@dataclass(frozen=True)
class FirstErrorScore:
    """How well first errors are found, each in [0, 1], nan where there is nothing to count.

    error_accuracy: of the solutions with an error (`errors` many), how many have just the right step named.
    correct_accuracy: of those without (`corrects` many), how many are said to have none. f1: the harmonic mean of the two,
    0 when both are 0.
    """

    error_accuracy: float
    correct_accuracy: float
    f1: float
    errors: int
    corrects: int


def first_error_f1(predicted: Sequence[int | None], gold: Sequence[int]) -> FirstErrorScore:
    """ProcessBench's scores (arXiv:2412.06559) of the first wrong step's index a solution, -1 for none.

    A prediction of None is a miss. Published numbers are these times 100, averaged over data sets. Raises BadInput for lists
    of different lengths and for what is no index.
    """
    if len(predicted) != len(gold):
        raise BadInput(
            f"{len(predicted)} predictions came for {len(gold)} solutions: give one each, None where there is none."
        )
    for index, label in enumerate(gold):
        if label < -1:
            raise BadInput(f"gold[{index}] is {label}, expected the index of a step from 0, or -1 for none.")
    found = torch.tensor([guess == label for guess, label in zip(predicted, gold, strict=True)], dtype=torch.bool)
    wrong = torch.tensor([label != -1 for label in gold], dtype=torch.bool)
    errors, corrects = _share(found[wrong]), _share(found[~wrong])
    f1 = 0.0 if errors == corrects == 0 else 2 * errors * corrects / (errors + corrects)
    return FirstErrorScore(errors, corrects, f1, int(wrong.sum()), int((~wrong).sum()))


_AGGREGATES: Mapping[StepAggregate, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "min": torch.min,
    "max": torch.max,
    "product": torch.prod,
    "geometric-mean": lambda scores: scores.log().mean().exp(),
    "sum": torch.sum,
}
# Products of long solutions underflow, and would be equal.
_RANKS = {**_AGGREGATES, "product": lambda scores: scores.log().sum()}


@closed
def aggregate(scores: Tensor, how: StepAggregate) -> float:
    """One number for a solution from the scores [T] of its steps; nan where one is. Raises BadInput for T = 0."""
    return _AGGREGATES[how](_scored(scores)).item()


@closed
def best_of(solutions: Sequence[Tensor], how: StepAggregate) -> int:
    """Which of N solutions, by the scores [T] of their steps, has the highest aggregate; of equals the first.

    One with nan only where all have. Raises BadInput for N = 0 and T = 0.
    """
    return all_best_of(solutions, how)[0]


@closed
def all_best_of(solutions: Sequence[Tensor], how: StepAggregate) -> list[int]:
    """All of the N that have the highest aggregate: whoever weighs a choice must not let their order decide it."""
    if not solutions:
        raise BadInput("there is no solution to choose from: give one or more.")
    ranks = [_RANKS[how](_scored(scores)).item() for scores in solutions]
    keys = [(not math.isnan(rank), 0.0 if math.isnan(rank) else rank) for rank in ranks]
    known, best = max(keys)
    return [i for i, key in enumerate(keys) if key[0] == known and math.isclose(key[1], best, rel_tol=ROUNDING)]


# How noisy labels are.


@dataclass(frozen=True)
class LabelNoise:
    """Labels against the truth; "positive" is the label of a right step. Each rate in [0, 1], nan of none.

    precision: right steps among those labelled so. recall: labelled so among the right. false_positive_rate: labelled right
    among the wrong; false_negative_rate: labelled wrong among the right. right, wrong: how many steps truly are.
    """

    precision: float
    recall: float
    f1: float
    false_positive_rate: float
    false_negative_rate: float
    right: int
    wrong: int


def label_noise(labels: Tensor, truth: Tensor) -> LabelNoise:
    """How labels [...] in [0, 1], positive from 0.5 on, differ from the truth [...], 0 or 1 (or bool)."""
    _same_shape("labels", labels, "truth", truth)
    positive, right = _unit("labels", labels) >= POSITIVE, _binary("truth", truth).bool()
    precision, recall = _share(right[positive]), _share(positive[right])
    hits = int((positive & right).sum())
    all_positive = int(positive.sum() + right.sum())
    return LabelNoise(
        precision=precision,
        recall=recall,
        f1=2 * hits / all_positive if all_positive else math.nan,
        false_positive_rate=_share(positive[~right]),
        false_negative_rate=_share(~positive[right]),
        right=int(right.sum()),
        wrong=int((~right).sum()),
    )


def disagreement(labels: Tensor) -> float:
    """The share of steps, in [0, 1], that two policies label differently, averaged over all pairs of them.

    labels: [policies, steps] in [0, 1], positive from 0.5 on. Returns nan without steps. Raises BadInput for fewer than two.
    """
    if labels.dim() != 2 or len(labels) < 2:
        raise BadInput(
            f"labels have the shape {list(labels.shape)}, expected [policies, steps] of two policies or more."
        )
    policies = len(labels)
    positive = (_unit("labels", labels) >= POSITIVE).sum(0).double()
    return (positive * (policies - positive)).mean().item() / math.comb(policies, 2)


def _matching(targets: Tensor, logits: Tensor) -> Tensor:
    """One target for each pair of logits, in their numbers."""
    _same_shape("logits[..., 0]", logits[..., 0], "targets", targets)
    return targets.to(wide(logits))


def _log_probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log r and log(1 - r) of logits [..., 2]."""
    right, wrong = wide(logits).unbind(-1)
    return F.logsigmoid(right - wrong), F.logsigmoid(wrong - right)


def _share(chosen: Tensor) -> float:
    return chosen.double().mean().item()


def _scored(scores: Tensor) -> Tensor:
    if not scores.numel():
        raise BadInput("a solution without steps has no score: leave it out.")
    return scores.double()


def _same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.shape != other.shape:
        raise BadInput(
            f"{name} and {other_name} have the shapes {list(tensor.shape)} and {list(other.shape)}: one for one."
        )


def _unit(name: str, values: Tensor) -> Tensor:
    """The values as floats. Raises BadInput for the first that is not in [0, 1], nan included."""
    return _checked(name, values, (values >= 0) & (values <= 1), "a number in [0, 1]")


def _binary(name: str, values: Tensor) -> Tensor:
    return _checked(name, values, (values == 0) | (values == 1), "0 or 1")


def _checked(name: str, values: Tensor, fits: Tensor, expected: str) -> Tensor:
    outside = (~fits).nonzero()
    if len(outside):
        index = outside[0].tolist()
        raise BadInput(f"{name}{index} is {values[tuple(index)].item():g}, expected {expected}.")
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())
