"""The plain weighted sum of the two gradients, g = gamma f + alpha r: what training on the summed losses does."""

from torch import Tensor

from equipoise.training.gradients import Gradients, Observe, Reduce, apply, check_weights, weighted_sum
from equipoise.unlearning.recipe import COMBINE


@COMBINE.register("sum")
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
    """forget_weight * forget + retain_weight * retain; arguments as in `sago.combine`."""
    check_weights(forget_weight=forget_weight, retain_weight=retain_weight)
    return apply(weighted_sum(forget_weight, retain_weight), forget, retain, out=out, observe=observe)
