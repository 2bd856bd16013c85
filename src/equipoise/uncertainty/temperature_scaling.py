"""Temperature scaling: logits divided by one number, fitted on held-out labels (arXiv:1706.04599)."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from equipoise.uncertainty.bayes_result import RANGE


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The T in [0.01, 100] with the least NLL of softmax(logits / T); nan without labels. logits: [n, C]; labels: [n].

    The NLL is convex in 1 / T, so that the search cannot end beside it; where every label has the highest logit T is 0.01.
    """
    if not len(labels):
        return math.nan
    given = logits.double()

    def loss(inverse: float) -> float:
        return torch.nn.functional.cross_entropy(given * inverse, labels).item()

    found: Any = minimize_scalar(
        loss, bounds=(1 / RANGE[1], 1 / RANGE[0]), method="bounded", options={"xatol": 1e-9, "maxiter": 500}
    )
    return 1 / found.x
