"""Where a recipe's adapter begins in a given model, found from both sets; and the penalty that keeps it out of one.

Both are of `unlearning.reglu`, or of its rivals in `unlearning.fila`. Outputs are those of the base model, over up to SAMPLE
records of either side, evenly spread; of the retain records one in five is held out and only tells how much of what must be
kept lies where the adapter begins. Pooled outputs are held in float64 in the processor's memory: 8 bytes for each record and
each output of each map. FILA and VILA hold two numbers for every weight of the adapted maps beside the model, FILA also the
gradient of all of them; `peak_bytes` adds it up.

A fused map (queries, keys and values in one) is one linear map here as it is for its adapter: rank and directions are shared
by its parts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.core.progress import beat
from equipoise.core.serialize import deserialize, serialize
from equipoise.language import adapters
from equipoise.language.encode import IGNORE, Example, collate
from equipoise.language.model import LanguageModel, evaluating, memory_advice
from equipoise.language.score import head_reads
from equipoise.training import subspace
from equipoise.unlearning import fila, map_spectra, reglu
from equipoise.unlearning.guard import row_losses
from equipoise.unlearning.map_spectra import MapSpectrum
from equipoise.unlearning.recipe import Pooling, Recipe
from equipoise.unlearning.sides import subsample

SAMPLE = 256  # records of either side
HELD = 5  # of so many retain records one is held out
READ = 16  # texts read at once


@dataclass(frozen=True)
class Begun:
    """By the names of the adapted maps: A0 and B0, none for the usual start; P, none without a penalty."""

    factors: Mapping[str, tuple[Tensor, Tensor]]
    bases: Mapping[str, Tensor]
    spectra: tuple[MapSpectrum, ...]

    def stored(self) -> dict[str, Any]:
        """For `save_state`."""
        factors = {name: list(pair) for name, pair in self.factors.items()}
        return {"factors": factors, "bases": dict(self.bases), "spectra": [serialize(each) for each in self.spectra]}

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> "Begun":
        """What `stored` gave."""
        factors = {name: (pair[0], pair[1]) for name, pair in stored["factors"].items()}
        return cls(factors, stored["bases"], tuple(deserialize(MapSpectrum, each) for each in stored["spectra"]))


def begin(language_model: LanguageModel, recipe: Recipe, forget: Sequence[Example], retain: Sequence[Example]) -> Begun:
    """Find where the fresh adapter of `prepare` begins, and set it there; what the model computes stays the same."""
    begun = find(language_model, recipe, forget, retain)
    install(language_model, begun)
    return begun


def install(language_model: LanguageModel, begun: Begun) -> None:
    """Set a fresh adapter where one began before."""
    if begun.factors:
        adapters.begin_at(language_model, begun.factors)


def find(language_model: LanguageModel, recipe: Recipe, forget: Sequence[Example], retain: Sequence[Example]) -> Begun:
    """Where the adapter begins, by the recipe, in evaluation mode; changes nothing.

    Raises BadInput as `check` does, for an adapter that is trained already, and where a set does not say where to begin.
    """
    maps = adapters.adapted_maps(language_model)
    if any(bool(adapters.factors(own)[1].any()) for own in maps.values()):
        raise BadInput("the adapter is trained already, and a start is that of a fresh one: attach it anew.")
    check(language_model, recipe, forget, retain)
    forgotten, kept, held = _sampled(forget, retain)
    outputs = [pooled_outputs(language_model, side, recipe.pooling) for side in (forgotten, kept, held)]
    importances = {}
    if recipe.start in ("fila", "vila"):
        sides = [_importances(language_model, recipe, side) for side in (forgotten, kept)]
        importances = {name: (sides[0][name], sides[1][name]) for name in maps}
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    bases: dict[str, Tensor] = {}
    spectra = []
    for name, own in maps.items():
        beat()
        told: dict[str, Any] = {}
        forget_outputs, retain_outputs, held_outputs = (side[name] for side in outputs)
        scale, weight = own.scaling["default"], _weight(own).detach()
        with _named(name):
            if recipe.start == "reglu":
                found = reglu.directions(forget_outputs, retain_outputs, recipe.lora_rank, beta=recipe.guidance)
                q = found.vectors.to(weight.device)
                factors[name] = (_plain(q.T @ weight.to(q)), _plain(q))
                told["positive"] = found.positive
            elif name in importances:
                a, b, _ = fila.initialize(weight, *importances[name], rank=recipe.lora_rank, scale=scale)
                factors[name] = (_plain(a), _plain(b))
            if recipe.orthogonality:
                bases[name] = _plain(reglu.retain_basis(retain_outputs, recipe.retain_directions))
        if name in factors:
            begins = subspace.span(factors[name][1].T).T
            told |= {"forget": reglu.share_in(forget_outputs, begins), "leakage": reglu.share_in(held_outputs, begins)}
        if name in bases:
            told |= {"directions": bases[name].shape[1], "covered": reglu.share_in(held_outputs, bases[name])}
        spectra.append(MapSpectrum(name, len(weight), **told))
    return Begun(factors, bases, tuple(spectra))


def _sampled(forget: Sequence[Any], retain: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Of the forget set, and of the retain set those that are computed with and those that are held out."""
    chosen = subsample(retain, SAMPLE * HELD // (HELD - 1))
    kept = [example for index, example in enumerate(chosen) if index % HELD != HELD - 1]
    return subsample(forget, SAMPLE), kept, chosen[HELD - 1 :: HELD]


def check(language_model: LanguageModel, recipe: Recipe, forget: Sequence[Example], retain: Sequence[Example]) -> None:
    """Raises BadInput for what no outputs of these records could give; the model is not run.

    That is a map narrower than what the recipe asks for, by its name, and more directions than records can tell.
    """
    forgotten, kept = (len({example.input_ids for example in side}) for side in _sampled(forget, retain)[:2])
    beta = recipe.guidance
    # A sum of n outer products has n eigenvalues above 0 at most, and one of the retain set takes some away.
    positive, spanned = forgotten * (beta < 1), forgotten * (beta < 1) + kept * (beta > 0)
    for name, own in adapters.adapted_maps(language_model).items():
        weight = _weight(own)
        if weight.ndim != 2 or not weight.is_floating_point():
            raise BadInput(
                f"{name} has weights {list(weight.shape)} of {weight.dtype}: a start needs a matrix of numbers."
            )
        widest = min(weight.shape) if recipe.start in ("fila", "vila") else len(weight)
        if recipe.start != "default" and recipe.lora_rank > widest:
            raise BadInput(
                f"{name} has {weight.shape[1]} inputs and {len(weight)} outputs, fewer than lora_rank {recipe.lora_rank}: "
                f"use at most {widest}."
            )
        if recipe.start == "reglu" and recipe.lora_rank > positive and spanned < len(weight):
            raise BadInput(
                f"{name} has {len(weight)} outputs, and {forgotten} different forget records beside {kept} retain records "
                f"tell at most {positive} directions in which the forget set shows more at guidance {beta:g}: use a "
                "lora_rank of at most so many, more forget records, or a lower guidance."
            )
        if recipe.orthogonality and (recipe.retain_directions or 0) >= len(weight):
            raise BadInput(
                f"{name} has {len(weight)} outputs, and {recipe.retain_directions} retain directions would forbid all of "
                f"them: use fewer than {len(weight)}, or leave retain_directions out for a quarter of each map."
            )


def penalty(language_model: LanguageModel, begun: Begun) -> Callable[[], Tensor]:
    """The sum over the adapted maps of ||B' P||_F^2, of B as it is whenever this is called."""
    maps = adapters.adapted_maps(language_model)
    pairs = [(adapters.factors(maps[name])[1], basis) for name, basis in begun.bases.items()]
    pairs = [(b, basis.to(b.device)) for b, basis in pairs]

    def summed() -> Tensor:
        return torch.stack([reglu.penalty(b, basis) for b, basis in pairs]).sum()

    return summed


def passes(recipe: Recipe, forget: int, retain: int) -> float:
    """How many records' forward and backward passes finding the start takes, for an estimate."""
    records = sum(map(len, _sampled(range(forget), range(retain))))
    return records * (1 / 3 + (recipe.start in ("fila", "vila"))) if recipe.begins else 0.0


def peak_bytes(language_model: LanguageModel, recipe: Recipe, forget: int, retain: int) -> tuple[int, int]:
    """Bytes beside the model and its adapter: while the start is looked for, and from then on; for an estimate.

    On the model's device; what is in the processor's memory counts where that is the same.
    """
    if not recipe.begins:
        return 0, 0
    sampled = [len(side) for side in _sampled(range(forget), range(retain))]
    rows, here = sampled[0] + sampled[1], language_model.device.type == "cpu"
    looked = at_once = after = 0
    for own in adapters.adapted_maps(language_model).values():
        outputs, inputs = _weight(own).shape
        looked += 8 * sum(sampled) * outputs * here
        if recipe.start in ("fila", "vila"):
            gradient = _weight(own).element_size() if recipe.start == "fila" else 0
            looked += (2 * 4 + gradient) * outputs * inputs
            at_once = max(at_once, 6 * 8 * outputs * inputs)  # float64: the matrix, both importances, its decomposition
        at_once = max(at_once, 8 * (4 * rows * outputs + 3 * min(rows, outputs) ** 2) * here)
        if recipe.start != "default":
            after += (
                4 * recipe.lora_rank * (outputs + inputs) * (1 + here)
            )  # the fixed adapter, and what it was made from
        if recipe.orthogonality:
            kept_out = min(recipe.retain_directions or max(min(reglu.KEPT_OUT, outputs // 4), 1), sampled[1])
            after += 4 * outputs * kept_out
    return looked + at_once, after


@closed
def pooled_outputs(
    language_model: LanguageModel, examples: Sequence[Example], pooling: Pooling = "sum"
) -> dict[str, Tensor]:
    """Of every adapted map the outputs of its base, one vector an example in their order: [n, d_out], float64, on the CPU.

    In evaluation mode, of an adapter without effect. Raises BadInput for a map that does not see whole sequences, or several
    times in a pass.
    """
    maps = adapters.adapted_maps(language_model)
    model: Any = language_model.model
    found = {name: torch.empty(len(examples), len(_weight(own)), dtype=torch.float64) for name, own in maps.items()}
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].input_ids))
    seen: dict[str, Tensor] = {}
    mask = torch.empty(0)

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def read(_: nn.Module, inputs: Any, output: Tensor) -> None:
            if name in seen or output.shape[:-1] != mask.shape:
                sees = "is used several times in a pass" if name in seen else "does not see whole sequences (an expert)"
                raise BadInput(
                    f"{name} {sees}, so its outputs say nothing of a record: use start default and no orthogonality."
                )
            with _named(name):
                seen[name] = reglu.pool(output, mask, pooling)

        return read

    with ExitStack() as hooks, evaluating(model), memory_advice(READ):
        for name, own in maps.items():
            hooks.callback(own.get_base_layer().register_forward_hook(keep(name)).remove)
        for first in range(0, len(order), READ):
            beat()
            chosen = order[first : first + READ]
            batch = collate([examples[index] for index in chosen], language_model.pad_id, language_model.device)
            mask = batch["attention_mask"].bool()
            seen.clear()
            one = torch.zeros_like(mask)
            one[:, 0] = True  # logits are not wanted
            with head_reads(model, one):
                model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
            for name in maps:
                if name not in seen:
                    raise BadInput(f"{name} was not used for a record, so nothing says where its adapter should begin.")
                found[name][chosen] = seen[name].to("cpu", torch.float64)
    return found


def _importances(language_model: LanguageModel, recipe: Recipe, examples: Sequence[Example]) -> dict[str, Tensor]:
    """How much every weight of the adapted maps matters to these records, [d_out, d_in]: FILA's or VILA's."""
    maps = adapters.adapted_maps(language_model)
    if recipe.start == "fila":
        weights = {name: own.get_base_layer().weight for name, own in maps.items()}
        with _requiring(weights.values()):
            moments = dict(
                zip(maps, _moments(language_model, examples, list(weights.values()), centred=False), strict=True)
            )
        found = {name: moments.pop(name).square for name in maps}  # one by one: each is as large as its map
        return {name: each.T if maps[name].fan_in_fan_out else each for name, each in found.items()}
    pairs = [adapters.factors(own) for own in maps.values()]
    parameters = [factor for pair in pairs for factor in pair]
    with _drawn(parameters, recipe.seed):
        moments = _moments(language_model, examples, parameters, centred=True)
    return {
        name: fila.product_importance(a.variance, b.variance)
        for name, a, b in zip(maps, moments[::2], moments[1::2], strict=True)
    }


def _moments(
    language_model: LanguageModel, examples: Sequence[Example], parameters: Sequence[nn.Parameter], *, centred: bool
) -> list[fila.GradientMoments]:
    moments = [fila.GradientMoments(parameter, centred=centred) for parameter in parameters]
    with evaluating(language_model.model), memory_advice(1):
        for example in examples:
            beat()
            batch = collate([example], language_model.pad_id, language_model.device)
            tokens = sum(label != IGNORE for label in example.labels[1:])
            with torch.enable_grad():
                loss = row_losses(language_model.model, batch).sum()
                gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
            for own, gradient in zip(moments, gradients, strict=True):
                own.add(gradient, tokens)
    return moments


@contextmanager
def _requiring(parameters: Any) -> Iterator[None]:
    """Inside, these require gradients."""
    own = [(parameter, parameter.requires_grad) for parameter in parameters]
    try:
        for parameter, _ in own:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required in own:
            parameter.requires_grad_(required)


@contextmanager
def _drawn(parameters: Sequence[nn.Parameter], seed: int) -> Iterator[None]:
    """Inside, these are drawn by the seed as VILA has it; afterwards they are what they were, bit by bit."""
    own = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(seed)
    try:
        for parameter in parameters:
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(fila.SPREAD * drawn)
        yield
    finally:
        for parameter, values in zip(parameters, own, strict=True):
            parameter.data.copy_(values)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Inside, what is refused is refused of this map."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from error


def _weight(own: Any) -> Tensor:
    """[d_out, d_in], whichever way round the map holds it."""
    weight = own.get_base_layer().weight
    return weight.T if own.fan_in_fan_out else weight


def _plain(tensor: Tensor) -> Tensor:
    """As it is stored and installed: float32, as PEFT holds adapters, on the CPU."""
    return tensor.detach().to("cpu", torch.float32).contiguous()


def notes(begun: Begun) -> tuple[str, ...]:
    """Sentences for a report."""
    return map_spectra.notes(begun.spectra)


def plan_notes(language_model: LanguageModel, recipe: Recipe) -> tuple[str, ...]:
    """Sentences for a plan: what is known only when the records have been read, and maps that share a start."""
    late = (
        f"Whether lora_rank {recipe.lora_rank} is within the directions in which the forget set shows more than the retain "
        "set is known when both have been read, before anything is measured or trained.",
    )
    shared = map_spectra.fused(list(adapters.adapted_maps(language_model)))
    return (*(late if recipe.start == "reglu" else ()), *shared)
