"""How sure a model is of the first token of its answer, as a score for routing: high keeps the prompt local.

l: next-token logits [n, V] at the last place of n prompts, in float32; p = softmax(l). Every function gives [n].

    max-logit                 max l
    margin                    p1 - p2
    logit-margin              l1 - l2
    entropy                   1 - H(p) / log V
    top10-variance            -var of the ten largest logits (unbiased), as RouterXBench has it
    top10-variance-reversed   the variance itself: logits close together are more often doubt than certainty

RouterXBench puts the first, third and fifth through sigmoid or exp. Those saturate in floating point and the order is the
same, so the arguments are ranked here. Its released code reads these from the embeddings, not from logits.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.language import confidence

TOP = 10


def entropy(logits: Tensor) -> Tensor:
    """1 - H(p) / log V, in [0, 1]: 1 for certainty, 0 for the uniform distribution."""
    return 1 - confidence.entropy(logits) / torch.tensor(float(logits.shape[-1])).log()


def top_variance(logits: Tensor) -> Tensor:
    """The variance (n - 1) of the ten largest logits, of all where there are fewer."""
    return logits.topk(min(TOP, logits.shape[-1]), dim=-1).values.var(dim=-1, unbiased=True)


LOGIT_SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "max-logit": confidence.max_logit,
    "margin": confidence.margin,
    "logit-margin": confidence.logit_margin,
    "entropy": entropy,
    "top10-variance": lambda logits: -top_variance(logits),
    "top10-variance-reversed": top_variance,
}


def logit_scores(logits: Tensor) -> dict[str, Tensor]:
    """Every score of the legend, by name. logits: [n, V] with V of at least 2; raises BadInput for others, and for nan."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise BadInput(f"logits are {list(logits.shape)}: give one row a prompt, [n, V], of at least two tokens.")
    if logits.isnan().any():
        raise BadInput("the logits hold a nan: the model is broken, or was read in too narrow numbers.")
    return {name: score(logits.float()) for name, score in LOGIT_SCORES.items()}
