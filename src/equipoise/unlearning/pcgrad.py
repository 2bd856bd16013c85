"""PCGrad (arXiv:2001.06782) for unlearning, one-directional as in arXiv:2604.14808: only the forget gradient is projected.

    d = <f, r>,   f' = f - d / (||r||^2 + 1e-10) r  if d < 0,  else f,   g = gamma f' + alpha r

`combine` takes the inner products of each parameter tensor (weight, bias and norm scale apart: the "module" of the paper),
`combine_global` those of all tensors together. That is the core of GRU (arXiv:2503.09117), which takes a moving average of
retain gradients, may clip the cosine, and adds no retain gradient. The 1e-10 is the authors': a tensor whose ||r||^2 lies
below it is hardly projected. `combine_symmetric` is the original PCGrad, over all tensors, which projects both:

    r' = r - d / (||f||^2 + 1e-10) f  if d < 0,  else r,   g = gamma f' + alpha r'
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


METHODS.register("pcgrad", {"objective": "simnpo", "combine": "pcgrad"})
METHODS.register("gru-core", {"objective": "npo", "combine": "pcgrad-global"})


@COMBINE.register("pcgrad")
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
    """PCGrad per parameter tensor; arguments as in `sago.combine`.

    reduce: sums a float64 tensor of inner products over the shards, so that products are those of whole tensors.
    """
    products = _products(forget, retain, forget_weight, retain_weight)
    products = products if reduce is None else reduce(products)
    combined: list[Tensor | None] = []
    for index, (dot, square) in enumerate(products.tolist()):
        part = slice(index, index + 1)
        rule = weighted_sum(forget_weight, retain_weight - forget_weight * _coefficient(dot, square))
        seen = None if observe is None else _renumbered(observe, index)
        combined += apply(rule, forget[part], retain[part], out=None if out is None else out[part], observe=seen)
    return combined


@COMBINE.register("pcgrad-global")
def combine_global(
    forget: Gradients,
    retain: Gradients,
    *,
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    out: Gradients | None = None,
    reduce: Reduce | None = None,
    observe: Observe | None = None,
) -> list[Tensor | None]:
    """PCGrad over all tensors at once; arguments as in `combine`."""
    products = _products(forget, retain, forget_weight, retain_weight).sum(0)
    dot, square = (products if reduce is None else reduce(products)).tolist()
    rule = weighted_sum(forget_weight, retain_weight - forget_weight * _coefficient(dot, square))
    return apply(rule, forget, retain, out=out, observe=observe)


@COMBINE.register("pcgrad-symmetric")
def combine_symmetric(
    forget: Gradients,
    retain: Gradients,
    *,
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    out: Gradients | None = None,
    reduce: Reduce | None = None,
    observe: Observe | None = None,
) -> list[Tensor | None]:
    """The original PCGrad of two tasks: each gradient without what opposes the other; arguments as in `combine`."""
    check_weights(forget_weight=forget_weight, retain_weight=retain_weight)
    check_lists(forget, retain)
    pairs = [pair for f, r in zip(forget, retain, strict=True) for pair in ((f, r), (r, r), (f, f))]
    products = inner_products(pairs).view(-1, 3).sum(0)
    dot, retained, forgotten = (products if reduce is None else reduce(products)).tolist()
    rule = weighted_sum(
        forget_weight - retain_weight * _coefficient(dot, forgotten),
        retain_weight - forget_weight * _coefficient(dot, retained),
    )
    return apply(rule, forget, retain, out=out, observe=observe)


def _products(forget: Gradients, retain: Gradients, forget_weight: float, retain_weight: float) -> Tensor:
    """[tensors, 2]: <f, r> and ||r||^2."""
    check_weights(forget_weight=forget_weight, retain_weight=retain_weight)
    check_lists(forget, retain)
    pairs = [pair for f, r in zip(forget, retain, strict=True) for pair in ((f, r), (r, r))]
    return inner_products(pairs).view(-1, 2)


def _coefficient(dot: float, square: float) -> float:
    """What times r is taken from f. Written so that nan stays nan."""
    return 0.0 if dot >= 0 else dot / (square + EPSILON)


def _renumbered(observe: Observe, index: int) -> Observe:
    def seen(_: int, forget: Tensor, retain: Tensor, combined: Tensor) -> None:
        observe(index, forget, retain, combined)

    return seen
