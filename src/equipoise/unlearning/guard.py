"""GUARD (arXiv:2506.10946): each record to forget is weighed by how little its removal would hurt what must be kept.

At the starting model, l the cross-entropy of a record's answer as a mean over its tokens, m retain and n forget records:

    g_R = 1/m sum_j grad l(retain_j)     a_i = <grad l(forget_i), g_R>     w_i = n exp(-a_i / tau) / sum_k exp(-a_k / tau)

To first order, ascending by e on record i raises the mean retain loss by e a_i. The weights have mean 1 over the whole
forget set, fall with a_i, and multiply each record's part of the forget loss; a batch is never normalized anew.
Since w falls with a, mean(w a) <= mean(a): the first step hurts no more than with equal weights. Nothing of the kind holds
for later steps, nor for how fast is forgotten.

The published description gives the alignment, weights that fall with it and a temperature. The exponential form, the mean
over tokens, a temperature relative to the scores' standard deviation, the floor and the variants are readings and controls
of ours: no released code was found.

Scores in three ways that agree: "gradient" (a backward pass a record), "forward" (forward-mode differentiation along g_R,
with eager attention, since the fused kernels of sdpa have none) and "difference", for any model:

    a_i = (l_i(theta + e g_R) - l_i(theta - e g_R)) / (2 e),        ||e g_R|| = s ||theta||

s is made so short, on a few records, that half of it gives the same; scores for which no such step is found carry a warning.
Only parameters that require a gradient count: of an adapter, or of some blocks, a score is one over these alone.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.core.progress import beat
from equipoise.language.encode import IGNORE, Example, collate
from equipoise.language.model import LanguageModel, evaluating, memory_advice
from equipoise.language.score import labelled_logits
from equipoise.training.gradients import inner_products, sum_dtype
from equipoise.training.precision import NARROW
from equipoise.unlearning.recipe import METHODS, Recipe, Variant

Way = Literal["gradient", "forward", "difference"]
Direction = list[Tensor | None]  # one gradient a trained parameter

METHODS.register("guard", {"objective": "ga", "combine": "sum", "weigh": "guard"})

RETAINED = 512  # retain records that g_R is taken over, evenly spread, where there are more
# ||e g_R|| / ||theta||: what is tried first, the least, and the error of the scores (of their norm) that is wanted. A
# difference's truncation grows as the square of the step, its rounding falls as the inverse: 1e-3 does where the loss is
# nearly straight, and where facts are known by heart it bends within 1e-4.
STEPS = {torch.float32: (1e-3, 5e-6, 3e-4), torch.float64: (1e-5, 1e-7, 3e-7)}
CHECKED = 16  # records on which steps of two lengths are compared
APART = 0.01  # of the scores' norm: further apart the difference cannot be trusted
ALIKE = 1e-5  # of the largest score: a smaller spread is what rounding makes of equal ones
NORMED: tuple[Variant, ...] = ("cosine", "cosine-clipped", "norm")  # need each record's own gradient


@dataclass(frozen=True)
class Attribution:
    """Scores [n] of the forget records in float64, with what it takes to trust them.

    norms: ||grad l_i|| [n], of the way "gradient" only. retain_norm: ||g_R||. retained: how many retain records g_R is over.
    split_half: correlation of the scores that two halves of these give, where they are a sample; nan where all were used.
    notes: sentences for a report.
    """

    scores: Tensor
    norms: Tensor | None
    retain_norm: float
    retained: int
    split_half: float = math.nan
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weighing:
    """Scores a_i [n], weights [n] of mean 1, the temperature in the unit of the variant's scores, notes for a report."""

    scores: Tensor
    weights: Tensor
    temperature: float
    split_half: float = math.nan
    notes: tuple[str, ...] = ()


# From scores to weights.


def weights(scores: Tensor, *, temperature: float, floor: float = 0.0) -> Tensor:
    """w = floor + (1 - floor) n softmax(-scores / temperature), float64 [n]: positive, mean 1, falling with the score.

    temperature: above 0, in the unit of the scores; infinite gives exactly 1 each. floor: least weight, in [0, 1]. Clipping
    at it and scaling back to mean 1 would end below it, so the rest is shared out instead. Raises BadInput for a score that
    is no number.
    """
    if not temperature > 0 or not 0 <= floor <= 1:
        raise BadInput(f"temperature {temperature}, floor {floor}: need a temperature above 0 and a floor from 0 to 1.")
    if not torch.isfinite(scores).all():
        raise BadInput(
            f"score {int((~torch.isfinite(scores)).nonzero()[0])} is no number: the model's weights may not be."
        )
    scores = scores.double()
    if math.isinf(temperature):
        return torch.ones_like(scores)
    return floor + (1 - floor) * len(scores) * (-scores / temperature).softmax(-1)


def effective_sample_size(weights: Tensor) -> float:
    """(sum w)^2 / sum w^2, from 1 (one record has all the weight) to n (all alike)."""
    weights = weights.double()
    return (weights.sum().square() / weights.square().sum()).item()


def absolute_temperature(scores: Tensor, relative: float) -> float:
    """`relative` standard deviations of the scores; infinite where all are equal but for rounding: nothing to tell apart."""
    scores = scores.double()
    spread = scores.std(correction=0).item()
    return relative * spread if spread > ALIKE * scores.abs().max().item() else math.inf


@closed
def varied(attribution: Attribution, variant: Variant, *, seed: int = 0) -> Tensor:
    """Scores [n] of a variant, all of which keep "smaller is weighed more".

    plain: a_i. cosine: a_i / (||g_i|| ||g_R||). clipped: max(a_i, 0). cosine-clipped: both. Controls: permuted (the same
    scores on other records, drawn from the seed), flipped (-a_i), norm (||g_i||, which knows nothing of what is kept).
    Raises BadInput for a variant that needs the norms of an attribution without them.
    """
    scores, norms = attribution.scores, attribution.norms
    if variant in NORMED:
        if norms is None:
            raise BadInput(f"variant {variant!r} needs each record's own gradient: score with way='gradient'.")
        if variant == "norm":
            return norms
        scores = torch.where(norms > 0, scores / (norms * attribution.retain_norm), torch.zeros_like(scores))
    if variant in ("clipped", "cosine-clipped"):
        return scores.clamp(min=0)
    if variant == "permuted":
        return scores[torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))]
    return -scores if variant == "flipped" else scores


def weigh(
    language_model: LanguageModel, recipe: Recipe, forget: Sequence[Example], retain: Sequence[Example]
) -> Weighing:
    """The recipe's weights of the forget records, from the model as it is now: the starting model, before any step."""
    way: Way = "gradient" if recipe.variant in NORMED else "difference"
    size = recipe.micro_batch_size or recipe.batch_size
    attribution = attribute(language_model, forget, retain, way=way, batch_size=size)
    found = varied(attribution, recipe.variant, seed=recipe.seed)
    temperature = absolute_temperature(found, recipe.temperature)
    given = weights(found, temperature=temperature, floor=recipe.floor)
    notes, effective = list(attribution.notes), effective_sample_size(given)
    if effective < len(given) / 2:
        notes.append(
            f"The weights leave an effective sample of {effective:.1f} of {len(given)} forget records: a few are pushed "
            "hard and most hardly at all. Use a higher temperature, or a floor."
        )
    return Weighing(attribution.scores, given, temperature, attribution.split_half, tuple(notes))


# For a training loop of one's own.


class WeighedLoss:
    """A per-record loss that takes the weights into account: loss(...) -> [B], and the records' ids beside it.

    weights: record id -> weight. Called with the ids of the batch first; returns the mean of w_i l_i over the batch, never
    divided by the batch's own weights. Raises BadInput for an id without a weight.
    """

    def __init__(self, loss: Callable[..., Tensor], weights: Mapping[str, float]) -> None:
        self.loss, self.weights = loss, weights

    def __call__(self, ids: Sequence[str], *arguments: Any, **options: Any) -> Tensor:
        missing = [each for each in ids if each not in self.weights]
        if missing:
            raise BadInput(f"record {missing[0]!r} has no weight: score all of the forget set before the training.")
        losses = self.loss(*arguments, **options)
        if losses.shape != (len(ids),):
            raise BadInput(f"a loss of each record was expected, [{len(ids)}], and came as {list(losses.shape)}.")
        return (losses * losses.new_tensor([self.weights[each] for each in ids])).mean()


# Scores, from a model.


@closed
def scores(
    language_model: LanguageModel,
    forget: Sequence[Example],
    retain: Sequence[Example],
    *,
    way: Way = "difference",
    batch_size: int = 16,
) -> Tensor:
    """a_i of each forget record, float64 [n], as `attribute` finds them; what has to be known of them as warnings."""
    found = attribute(language_model, forget, retain, way=way, batch_size=batch_size)
    for note in found.notes:
        warnings.warn(note, stacklevel=3)  # of who calls what `closed` is written over
    return found.scores


@closed
def attribute(
    language_model: LanguageModel,
    forget: Sequence[Example],
    retain: Sequence[Example],
    *,
    way: Way = "difference",
    retained: int = RETAINED,
    batch_size: int = 16,
) -> Attribution:
    """Scores of the forget records in one of three ways, in evaluation mode; afterwards the model is as it was, bit by bit.

    retained: retain records that g_R is the mean over, evenly spread; where there are more, two halves of the sample score
    apart and their correlation is told. Weights of 16 bits are held in float32 meanwhile, or a difference would be rounded
    away. Raises BadInput when nothing is to be scored, or nothing is trained.
    """
    if not forget or not retain:
        raise BadInput(f"{len(forget)} forget and {len(retain)} retain records: scores need at least one of each.")
    model = language_model.model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise BadInput("the model has no parameter that requires a gradient: scores are over those that are trained.")
    count = min(retained, len(retain))
    kept = [retain[index * len(retain) // count] for index in range(count)]
    sampled = 1 < count < len(retain)
    halves = [kept[::2], kept[1::2]] if sampled else [kept]
    notes = []
    whole = sum(parameter.numel() for parameter in model.parameters())
    if (trained := sum(parameter.numel() for parameter in parameters)) < whole:
        notes.append(f"The scores are over the {trained:,} trained of {whole:,} parameters only.")
    if way == "forward":
        notes.append("Scored in forward mode with eager attention: the fused kernels of sdpa have no such derivative.")
    batches = _Batches(language_model, batch_size)
    with evaluating(model), memory_advice(batch_size), _widened(model):
        directions = [_mean_gradient(batches, half, parameters) for half in halves]
        shares = [len(half) / count for half in halves]
        norm = _length([_mixed(parts, shares) for parts in zip(*directions, strict=True)])
        if way == "gradient":
            found, norms = _by_gradient(batches, forget, parameters, directions)
        else:
            norms, along = None, _by_forward if way == "forward" else _by_difference
            columns = [along(batches, forget, parameters, direction) for direction in directions]
            found = torch.stack([column for column, _ in columns], dim=-1)
            notes += dict.fromkeys(note for _, said in columns for note in said)
    split_half = math.nan
    if sampled:
        split_half = torch.corrcoef(found.T)[0, 1].item() if len(found) > 1 else math.nan
        notes.append(
            f"The retain gradient is over {count} of {len(retain)} records; two halves of them give scores that correlate "
            f"by {split_half:.2f}."
        )
    return Attribution(found @ found.new_tensor(shares), norms, norm, count, split_half, tuple(notes))


def row_losses(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """l_i of each row, [B]: the mean over its labelled tokens of -log p, with graph; 0 without a labelled token.

    The logarithm is taken in float64 where the device has it: of a fact that is known by heart, -log p is a small difference
    of large logits.
    """
    logits, labels, _ = labelled_logits(model, batch)
    tokens = -logits.to(sum_dtype(logits.device)).log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    labelled = batch["labels"][:, 1:] != IGNORE
    counts = labelled.sum(-1)
    return tokens.new_zeros(labelled.shape).masked_scatter(labelled, tokens).sum(-1) / counts.clamp(min=1)


class _Batches:
    """Walks examples in batches of like length and puts what comes back into their order."""

    def __init__(self, language_model: LanguageModel, size: int) -> None:
        self.language_model, self.model, self.size = language_model, language_model.model, size

    def __call__(self, examples: Sequence[Example], size: int | None = None) -> Iterator[tuple[list[int], Any]]:
        order = sorted(range(len(examples)), key=lambda index: -len(examples[index].input_ids))
        size = size or self.size
        for first in range(0, len(order), size):
            beat()
            chosen = order[first : first + size]
            given = [examples[index] for index in chosen]
            yield chosen, collate(given, self.language_model.pad_id, self.language_model.device)

    def values(self, examples: Sequence[Example], function: Callable[[Any], Tensor]) -> Tensor:
        """function(batch) -> [B] of all examples, [N] in float64 on the CPU."""
        found = torch.empty(len(examples), dtype=torch.float64)
        for chosen, batch in self(examples):
            found[chosen] = function(batch).detach().double().cpu()
        return found


def _mean_gradient(batches: _Batches, examples: Sequence[Example], parameters: Sequence[nn.Parameter]) -> Direction:
    """Gradient of the mean of `row_losses` over the examples."""
    total: Direction = [None] * len(parameters)
    for _, batch in batches(examples):
        for index, gradient in enumerate(_gradient(batches.model, batch, parameters)):
            if gradient is not None:
                total[index] = gradient if (held := total[index]) is None else held.add_(gradient)
    return [None if each is None else each.div_(len(examples)) for each in total]


def _gradient(model: Any, batch: Any, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    with torch.enable_grad():
        return torch.autograd.grad(row_losses(model, batch).sum(), list(parameters), allow_unused=True)


def _by_gradient(
    batches: _Batches, examples: Sequence[Example], parameters: Sequence[nn.Parameter], directions: Sequence[Direction]
) -> tuple[Tensor, Tensor]:
    """Scores [n, directions] and norms [n]: a backward pass a record."""
    found = torch.empty(len(examples), len(directions), dtype=torch.float64)
    norms = torch.empty(len(examples), dtype=torch.float64)
    for (index,), batch in batches(examples, 1):
        gradient = list(_gradient(batches.model, batch, parameters))
        for column, direction in enumerate(directions):
            found[index, column] = _product(gradient, direction)
        norms[index] = _length(gradient)
    return found, norms


def _by_forward(
    batches: _Batches, examples: Sequence[Example], parameters: Sequence[nn.Parameter], direction: Direction
) -> tuple[Tensor, list[str]]:
    """Scores [n]: the derivative of the losses along the direction, carried forward through the model."""
    names = {id(parameter): name for name, parameter in batches.model.named_parameters()}
    given = {
        names[id(parameter)]: (parameter.detach(), along)
        for parameter, along in zip(parameters, direction, strict=True)
        if along is not None
    }
    places, tangents = ({name: pair[which] for name, pair in given.items()} for which in (0, 1))

    @torch.enable_grad()
    def derivative(batch: Any) -> Tensor:
        def losses(moved: dict[str, Tensor]) -> Tensor:
            return row_losses(_Elsewhere(batches.model, moved), batch)

        return torch.func.jvp(losses, (places,), (tangents,))[1]

    attention: Any = batches.model.config._attn_implementation
    batches.language_model.use_attention("eager")
    try:
        return batches.values(examples, derivative), []
    finally:
        batches.language_model.use_attention(attention)


class _Elsewhere:
    """The model with other weights."""

    def __init__(self, model: Any, weights: dict[str, Tensor]) -> None:
        self._model, self._weights = model, weights

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        return torch.func.functional_call(self._model, self._weights, kwargs=inputs)


def _by_difference(
    batches: _Batches, examples: Sequence[Example], parameters: Sequence[nn.Parameter], direction: Direction
) -> tuple[Tensor, list[str]]:
    """Scores [n] by central difference along the direction, and a note where a step of half the length gives others."""
    norm = _length(direction)
    if not norm:
        return torch.zeros(len(examples), dtype=torch.float64), []
    unit = _length(parameters) / norm

    def difference(examples: Sequence[Example], step: float) -> Tensor:
        ends = []
        with _moved(parameters, direction) as move:
            for signed in (step * unit, -step * unit):
                move(signed)
                ends.append(batches.values(examples, lambda batch: row_losses(batches.model, batch)))
        return (ends[0] - ends[1]) / (2 * step * unit)

    count = min(CHECKED, len(examples))
    checked = [examples[index * len(examples) // count] for index in range(count)]

    def apart(step: float) -> float:
        long, short = difference(checked, step), difference(checked, step / 2)
        return ((long - short).norm() / short.norm()).item() if short.any() else 0.0

    step, least, wanted = STEPS[parameters[0].dtype]
    gap = apart(step)
    # The error of a step is 4/3 of its distance from half of it and falls with the square, until rounding takes over.
    while 4 / 3 * gap > wanted and step > least:
        shorter = max(step * math.sqrt(wanted / (4 / 3 * gap)), least)
        if (closer := apart(shorter)) >= gap:
            break
        step, gap = shorter, closer
    found = difference(examples, step)
    if gap <= APART:
        return found, []
    return found, [
        f"Two step lengths of the central difference give scores that are {gap:.0%} apart (of their norm, on {count} "
        "records): do not trust them. Score with way='gradient', or in float32 or float64 without TF32."
    ]


@contextlib.contextmanager
def _moved(parameters: Sequence[nn.Parameter], direction: Direction) -> Iterator[Callable[[float], None]]:
    """Yields what sets the parameters to start + step * direction; afterwards they are the start again, bit by bit."""
    start = [parameter.detach().clone() for parameter in parameters]

    def move(step: float) -> None:
        for parameter, origin, along in zip(parameters, start, direction, strict=True):
            if along is not None:
                torch.add(origin, along, alpha=step, out=parameter.data)

    try:
        yield move
    finally:
        for parameter, origin in zip(parameters, start, strict=True):
            parameter.data.copy_(origin)


@contextlib.contextmanager
def _widened(model: nn.Module) -> Iterator[None]:
    """Inside, weights of 16 bits are held in float32, which loses nothing on the way back."""
    narrow = [(parameter, parameter.dtype) for parameter in model.parameters() if parameter.dtype in NARROW]
    for parameter, _ in narrow:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in narrow:
            parameter.data = parameter.data.to(dtype)


def _mixed(parts: Sequence[Tensor | None], shares: Sequence[float]) -> Tensor | None:
    found = [share * part for part, share in zip(parts, shares, strict=True) if part is not None]
    return torch.stack(found).sum(0) if found else None


def _product(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> float:
    return inner_products(list(zip(first, second, strict=True))).sum().item()


def _length(tensors: Sequence[Tensor | None]) -> float:
    tensors = [None if each is None else each.detach() for each in tensors]
    return math.sqrt(_product(tensors, tensors))
