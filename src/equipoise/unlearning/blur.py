"""BLUR (arXiv:2506.08164), bi-level: forgetting first, what retains may move only where forgetting does not mind.

    r' = r - <r, f> / (||f||^2 + 1e-10) f   over all tensors, in conflict or not,   g = gamma f + alpha r'

This is the whole step of its released trainers (BLUR-NPO on TOFU and MUSE), where alpha = 1 and gamma = 1. There the norm is
clipped before the projection and the 1e-10 is missing; both are as in the code of arXiv:2604.14808 here.
"""

from torch import Tensor

from equipoise.training.gradients import (
    Gradients,
    Observe,
    Reduce,
    apply,
    check_lists,
    check_weights,
    inner_products,
    weighted_sum,
)
from equipoise.unlearning.recipe import COMBINE, METHODS

EPSILON = 1e-10


METHODS.register("blur", {"objective": "npo", "combine": "blur", "retain_weight": 1.0})  # BLUR-NPO, as released


@COMBINE.register("blur")
def combine(
    forget: Gradients,
    retain: Gradients,
    *,
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    out: Gradients | None = None,
    reduce: Reduce | None = None,
    observe: Observe | None = None,
) -> list[Tensor | None]:
    """forget + the part of retain that is orthogonal to it; arguments as in `pcgrad.combine`."""
    check_weights(forget_weight=forget_weight, retain_weight=retain_weight)
    check_lists(forget, retain)
    pairs = [pair for f, r in zip(forget, retain, strict=True) for pair in ((f, r), (f, f))]
    products = inner_products(pairs).view(-1, 2).sum(0)
    dot, square = (products if reduce is None else reduce(products)).tolist()
    rule = weighted_sum(forget_weight - retain_weight * dot / (square + EPSILON), retain_weight)
    return apply(rule, forget, retain, out=out, observe=observe)
