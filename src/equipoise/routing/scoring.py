"""Every score of prompts that a report compares, in one place: from states, from logits, from lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from equipoise.core.statistics import FEWEST_CLUSTERS
from equipoise.routing.baselines import (
    ChainOfEmbedding,
    EmbeddingKNN,
    EmbeddingLogistic,
    EmbeddingMLP,
    Random,
    next_token_scores,
    prompt_likelihood,
)
from equipoise.routing.measured import Card
from equipoise.routing.probe_dirichlet import ProbeDirichlet
from equipoise.routing.probes import Probe, ProbeLayer, ProbeMax, ProbeMean, ProbeSoftmax
from equipoise.routing.result import LENGTH, RANDOM
from equipoise.routing.routerxbench import Bands, measure

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

Array = NDArray[np.float64]
PROBES: Mapping[str, type[Probe]] = {
    "dirichlet": ProbeDirichlet,
    "softmax": ProbeSoftmax,
    "mean": ProbeMean,
    "last": ProbeLayer,
    "max": ProbeMax,
}
CLASSIFIERS: Mapping[str, type[Any]] = {
    "embedding-knn": EmbeddingKNN,
    "embedding-logistic": EmbeddingLogistic,
    "embedding-mlp": EmbeddingMLP,
}
FEATURES = "features"  # the folder of states, while they are needed
DRAWS = 200  # of a bootstrap


def given_scores(
    language_model: LanguageModel, rows: Sequence[Sequence[int]], z: NDArray[Any], seed: int, batch_size: int = 16
) -> dict[str, Array]:
    """Scores that learn nothing, [n] by name. rows: the prompts' tokens; z: their states [n, L, d]."""
    found: dict[str, Array] = {
        LENGTH: -np.array([len(row) for row in rows], float),
        RANDOM: Random(random_state=seed).score_prompts(rows_like(len(rows))),
        "chain-of-embedding": ChainOfEmbedding().score_prompts(z),
        "chain-real": ChainOfEmbedding("real").score_prompts(z),
        "chain-complex": ChainOfEmbedding("complex").score_prompts(z),
    }
    found |= next_token_scores(language_model, rows, batch_size=batch_size)
    likelihood = prompt_likelihood(language_model, rows, batch_size=batch_size)
    if np.isfinite(likelihood).all():
        found["perplexity"] = likelihood
    return found


def rows_like(n: int) -> Array:
    """n rows of nothing, for a score that looks at none."""
    return np.empty((n, 0))


def directions(z: NDArray[Any]) -> NDArray[np.float32]:
    """The mean of the last states of each prompt as a sentence vector of length 1: [n, L, d] -> [n, d]."""
    last = np.asarray(z[:, -1], np.float32)
    size = np.linalg.norm(last, axis=1, keepdims=True)
    return (last / np.where(size > 0, size, 1)).astype(np.float32)


def cards(
    scores: Mapping[str, Array],
    weak: Array,
    strong: Array,
    solved: Array,
    groups: NDArray[Any],
    bands: Bands,
    seed: int,
) -> dict[str, Card]:
    """The card of each score on the same prompts; a score that is not finite everywhere is left out."""
    return {
        name: measure(score, weak, strong, solved=solved, clusters=groups, bands=bands, seed=seed, draws=DRAWS)
        for name, score in scores.items()
        if np.isfinite(score).all()
    }


def large_enough(chosen: NDArray[np.bool_], solved: Array, groups: NDArray[Any]) -> bool:
    """Whether prompts are enough to learn from or to measure on: of both kinds, in enough groups."""
    kinds = np.unique(solved[chosen])
    return len(kinds) == 2 and len(np.unique(groups[chosen])) >= FEWEST_CLUSTERS
