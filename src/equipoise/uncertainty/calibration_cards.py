"""How well probabilities fit labels: accuracy, NLL, Brier, ECE with intervals, and the bins of a reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.scores import ece
from equipoise.core.shares import Bounded
from equipoise.core.statistics import item_interval, score_interval
from equipoise.uncertainty.bayes_result import MLE, TEACHER, Bin, CalibrationCard

BINS = 15
DRAWS = 400


def negative_log_likelihoods(probabilities: Tensor, labels: Tensor) -> Tensor:
    """-log p of each label, [n], at most 708: a probability below what float64 holds counts as its least number."""
    least = torch.finfo(probabilities.dtype).tiny
    return -probabilities.gather(-1, labels[:, None]).squeeze(-1).clamp(min=least).log()


def brier_scores(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The sum over classes of (p_c - y_c)^2 of each input, [n], from 0 to 2."""
    return (probabilities - torch.nn.functional.one_hot(labels, probabilities.shape[-1])).square().sum(-1)


def reliability(confidence: Tensor, correct: Tensor, bins: int = BINS) -> tuple[Bin, ...]:
    """Equal bins ((m - 1) / M, m / M], as `core.scores.ece` has them; an empty one has nan."""
    place = np.searchsorted(np.arange(1, bins) / bins, confidence.numpy(), side="left")
    found = []
    for number in range(bins):
        inside = torch.from_numpy(place == number)
        found.append(Bin(int(inside.sum()), confidence[inside].mean().item(), correct[inside].double().mean().item()))
    return tuple(found)


def cards(
    predictions: Mapping[str, Tensor], passes: Mapping[str, int], labels: Tensor, *, seed: int = 0
) -> dict[str, CalibrationCard]:
    """A card for each way to predict, [n, C] probabilities of the same inputs.

    Those named adapter and teacher are what the others are compared with. Raises BadInput for no inputs.
    """
    if not len(labels):
        raise BadInput("There is no labelled input to test on.")
    each = {name: _scores(p, labels) for name, p in predictions.items()}
    generator = np.random.default_rng(np.random.SeedSequence([seed, 41]))
    found = {}
    for name, p in predictions.items():
        scores, confidence = each[name], p.max(-1).values
        teacher = predictions.get(TEACHER)
        gains = {
            measure: Bounded.of(item_interval(sign * (scores[measure] - each[MLE][measure])))
            for measure, sign in (("accuracy", 1), ("nll", -1), ("brier", -1))
        }
        found[name] = CalibrationCard(
            n=len(labels),
            passes=passes[name],
            confidence=confidence.mean().item(),
            **{measure: Bounded.of(item_interval(values), *_LIMITS[measure]) for measure, values in scores.items()},
            ece=Bounded.of(
                score_interval(
                    ece,
                    confidence.clamp(max=1).numpy(),
                    scores["accuracy"],
                    generator=generator,
                    draws=DRAWS,
                    bins=BINS,
                ),
                0.0,
                1.0,
            ),
            gains=gains,
            to_teacher=float("nan") if teacher is None else _divergence(teacher, p),
            bins=reliability(confidence, torch.from_numpy(scores["accuracy"])),
        )
    return found


_LIMITS = {"accuracy": (0.0, 1.0), "nll": (0.0, float("inf")), "brier": (0.0, 2.0)}


def _scores(p: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    return {
        "accuracy": (p.argmax(-1) == labels).double().numpy(),
        "nll": negative_log_likelihoods(p, labels).numpy(),
        "brier": brier_scores(p, labels).numpy(),
    }


def _divergence(teacher: Tensor, p: Tensor) -> float:
    return (teacher * (teacher.clamp(min=1e-300).log() - p.clamp(min=1e-300).log())).sum(-1).mean().item()
