"""A process reward model (PRM): a causal model that reads a solution once and says of each step how likely it is right.

    add_tokens(language_model)                          [PRM], [POS] and [NEG], once, in place
    step_loss(language_model)                           a loss for `training.fit`, of what `encode` and `collate` make
    score(language_model, [(problem, steps), ...])      r of every step, a tensor [T] a solution
    attach(language_model, rank, seed=0), merge(...)    LoRA with the three tokens' embeddings, and back to plain weights

The text is NAIT's (arXiv:2601.12748): problem, line end, step, " [PRM]", line end, step, " [PRM]" ... r is the first entry
of the softmax over the logits of [POS] and [NEG] AT the place of [PRM], which sees its step, all before it and nothing
behind. `step_logits` alone reads them: in training, for refreshed labels and for scores. The released scripts for all but
training read one place earlier, from a text in which [PRM] is another token or missing, and take a score of 0 for no step.

B rows of a batch, L tokens of a row, T steps of a solution, n steps of a batch that are read.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.core.progress import beat
from equipoise.language.encode import IGNORE, check_text, frame
from equipoise.language.model import evaluating, memory_advice
from equipoise.language.score import head_reads, wide
from equipoise.reinforcement.nait import LOSSES, ClassWeights, StepLoss, class_weights, probability
from equipoise.training.gradients import sum_dtype
from equipoise.training.loop import LossFunction, random_state_kept

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

PLACEHOLDER, RIGHT, WRONG = "[PRM]", "[POS]", "[NEG]"
Solution = tuple[str, Sequence[str]]  # a problem and the steps of a solution
_LOGITS_AT_ONCE = 2**26  # values; 256 MB in float32


@dataclass(frozen=True, slots=True)
class StepTokens:
    """The numbers of [PRM], [POS] and [NEG]."""

    placeholder: int
    right: int
    wrong: int


def add_tokens(language_model: LanguageModel) -> StepTokens:
    """Give tokenizer and model the three tokens, in place; a model that has them stays as it is.

    Their embeddings are the mean of all before, so nothing is drawn, and every score begins at 0.5. Raises BadInput for a
    model with an adapter, which would hide the new rows.
    """
    model: Any = language_model.model
    tokenizer: Any = language_model.tokenizer
    if has_tokens(language_model):
        return step_tokens(language_model)
    missing = [token for token in (PLACEHOLDER, RIGHT, WRONG) if token not in tokenizer.get_vocab()]
    if hasattr(model, "peft_config"):
        raise BadInput(f"{language_model.name} has an adapter: add the tokens of steps before it is attached.")
    before = language_model.vocabulary
    known = min(before, len(tokenizer))  # some models have rows for tokens that no tokenizer knows
    tokenizer.add_tokens(missing, special_tokens=True)
    if len(tokenizer) > before:
        with random_state_kept(language_model.device):
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    fresh = sorted({*tokenizer.convert_tokens_to_ids(missing), *range(before, language_model.vocabulary)})
    matrices = (model.get_input_embeddings(), model.get_output_embeddings())
    with torch.no_grad():
        for parameter in {id(each): each for matrix in matrices for each in matrix.parameters()}.values():
            parameter[fresh] = parameter[:known].mean(0, dtype=sum_dtype(parameter.device)).to(parameter)
    return step_tokens(language_model)


def has_tokens(language_model: LanguageModel) -> bool:
    """Whether the tokenizer knows the three tokens, and the model has embeddings for them."""
    tokenizer: Any = language_model.tokenizer
    known = tokenizer.get_vocab()
    return all(known.get(token, math.inf) < language_model.vocabulary for token in (PLACEHOLDER, RIGHT, WRONG))


def undecided(language_model: LanguageModel) -> bool:
    """Whether every score is 0.5 whatever is read, as `add_tokens` leaves it: the two logits come from equal rows.

    False with an adapter, which may add to these rows: what it makes of them is not looked up here.
    """
    tokens = step_tokens(language_model)
    if hasattr(language_model.model, "peft_config"):
        return False
    head: Any = language_model.model.get_output_embeddings()
    return all(torch.equal(each[tokens.right], each[tokens.wrong]) for each in head.parameters())


def step_tokens(language_model: LanguageModel) -> StepTokens:
    """The three tokens of a model that has them. Raises BadInput for one that is no PRM."""
    tokenizer: Any = language_model.tokenizer
    known = tokenizer.get_vocab()
    if not has_tokens(language_model):
        raise BadInput(
            f"{language_model.name} is no process reward model, it has no {PLACEHOLDER}, {RIGHT} and {WRONG}: "
            "give one that was trained as such, or call prm.add_tokens and train it."
        )
    return StepTokens(known[PLACEHOLDER], known[RIGHT], known[WRONG])


def attach(language_model: LanguageModel, rank: int = 16, *, seed: int) -> LanguageModel:
    """A PRM whose only trainable parameters are LoRA matrices, at first without effect, and the rows of the three tokens.

    As `adapters.attach` otherwise: use the returned one, and `merge` it in the end. The rows are new, so that an adapter
    alone would fit no base model that others have. Raises BadInput for a model without the tokens, or with an adapter.
    """
    from peft import LoraConfig, get_peft_model

    model: Any = language_model.model
    tokens = step_tokens(language_model)
    if hasattr(model, "peft_config"):
        raise BadInput(f"{language_model.name} has an adapter already: merge or detach it first.")
    if rank < 1:
        raise BadInput(f"The rank of the adapter is {rank}: use at least 1.")
    # Where both matrices are one, PEFT keeps them so by the name of the first alone.
    trained = [model.get_input_embeddings()]
    if model.get_output_embeddings().weight is not trained[0].weight:
        trained.append(model.get_output_embeddings())
    rows = {
        name: [tokens.placeholder, tokens.right, tokens.wrong]
        for name, module in model.named_modules()
        if any(module is each for each in trained)
    }
    options: dict[str, Any] = {"target_modules": "all-linear", "trainable_token_indices": rows, "bias": "none"}
    config = LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM", **options)
    with random_state_kept(language_model.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied embeddings, which `merge` leaves tied
        torch.manual_seed(seed)  # PEFT draws from the global state only
        adapted: Any = get_peft_model(model, config)
    return replace(language_model, model=adapted)


def merge(language_model: LanguageModel) -> LanguageModel:
    """What `attach` gave and training moved, as a plain model: its weights are changed in place, all of them trainable."""
    adapted: Any = language_model.model
    return replace(language_model, model=adapted.merge_and_unload(safe_merge=True).requires_grad_(True))


@dataclass(frozen=True, slots=True)
class StepExample:
    """A solution as tokens. places: of the [PRM] of its steps. labels: of these steps, IGNORE where nothing is learnt.

    cut: how many steps at the end did not fit into max_length; they have neither place nor label.
    """

    input_ids: tuple[int, ...]
    places: tuple[int, ...]
    labels: tuple[float, ...]
    cut: int = 0


def encode(
    language_model: LanguageModel,
    solutions: Sequence[Solution],
    labels: Sequence[Sequence[float | None]] | None = None,
    *,
    max_length: int = 4096,
) -> list[StepExample]:
    """One example a solution, in order. White space around a problem or a step is not read.

    labels: in [0, 1] for each step, None for one that is not to be learnt. max_length is at most the model's context; steps
    beyond it are lost with their labels, which a warning counts. Raises BadInput for a model without the tokens, a solution
    without steps, an empty step, a text that holds the placeholder, and for labels of other values or in another number.
    """
    tokens = step_tokens(language_model)
    tokenizer: Any = language_model.tokenizer
    begin, _ = frame(language_model)
    max_length = min(max_length, language_model.context)
    pieces = [_pieces(index, problem, steps) for index, (problem, steps) in enumerate(solutions)]
    learnt = _labels(labels, [len(each) for each in pieces])
    flat = [piece for each in pieces for piece in each]
    encoded = iter(tokenizer(flat, add_special_tokens=False, verbose=False).input_ids if flat else ())
    examples = []
    for index, each in enumerate(pieces):
        ids, places = list(begin), []
        for _ in each:
            ids += next(encoded)
            places.append(len(ids))
            ids.append(tokens.placeholder)
        if ids.count(tokens.placeholder) > len(places):
            raise BadInput(
                f"Solution {index} holds {PLACEHOLDER} in its text, which marks the end of a step: leave it out."
            )
        kept = sum(place < max_length for place in places)
        examples.append(
            StepExample(tuple(ids[:max_length]), tuple(places[:kept]), learnt[index][:kept], len(places) - kept)
        )
    if cut := [example.cut for example in examples if example.cut]:
        warnings.warn(
            f"{len(cut)} of {len(examples)} solutions are longer than {max_length} tokens: their last {sum(cut)} steps are "
            "neither learnt nor scored; see max_length.",
            stacklevel=2,
        )
    return examples


def collate(
    examples: Sequence[StepExample], pad_id: int, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """input_ids and attention_mask, int64, places, bool, and labels, float32: [B, L] each, padded on the right.

    labels are IGNORE wherever no step is to be learnt; places says where a step ends, learnt or not.
    """
    length = max((len(example.input_ids) for example in examples), default=0)
    shape = len(examples), length
    ids = torch.full(shape, pad_id)
    mask = torch.zeros(shape, dtype=torch.int64)
    places = torch.zeros(shape, dtype=torch.bool)
    labels = torch.full(shape, float(IGNORE))
    for row, example in enumerate(examples):
        ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        mask[row, : len(example.input_ids)] = 1
        at = list(example.places)
        places[row, at] = True
        labels[row, at] = torch.tensor(example.labels)
    found = {"input_ids": ids, "attention_mask": mask, "places": places, "labels": labels}
    return {name: each.to(device) for name, each in found.items()}


def step_logits(model: nn.Module, batch: Mapping[str, Tensor], read: Tensor, tokens: StepTokens) -> Tensor:
    """The logits of right and wrong AT the places `read` [B, L] of a collated batch, row by row: [n, 2], differentiable."""
    with head_reads(model, read):
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return wide(output.logits.squeeze(0)[:, [tokens.right, tokens.wrong]])


@closed
def step_loss(
    language_model: LanguageModel,
    *,
    weights: ClassWeights | Literal["none"] = (1 / 6, 5 / 6),
    loss: StepLoss = "cross-entropy",
) -> LossFunction:
    """The loss of `nait.prm_loss`, or one of `nait.LOSSES`, for `training.fit`: its sum over steps, and their number.

    weights: of right and of wrong steps, the same for every batch (`nait.class_weights` over all labels).
    """
    tokens, weights = step_tokens(language_model), class_weights(weights, torch.empty(0))
    losses = LOSSES[loss]

    def summed(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        learnt = batch["labels"] != IGNORE
        found = losses(step_logits(model, batch, learnt, tokens), batch["labels"][learnt], weights)
        return found.sum(), len(found)

    return summed


def score(language_model: LanguageModel, solutions: Sequence[Solution], *, batch_size: int = 32) -> list[Tensor]:
    """The probability r of each step that it is right: tensors [T] on the CPU, one a solution, in the order given.

    nan for steps beyond the model's context, which a warning counts. Raises BadInput as `encode` does.
    """
    if batch_size < 1:
        raise BadInput(f"The batch size is {batch_size}: use at least 1.")
    tokens = step_tokens(language_model)
    examples = encode(language_model, solutions, max_length=language_model.context)
    found = [torch.empty(0)] * len(examples)
    with evaluating(language_model.model), memory_advice(batch_size):
        for batch in _batches(examples, batch_size, _LOGITS_AT_ONCE // language_model.vocabulary):
            beat()
            chosen = [examples[index] for index in batch]
            collated = collate(chosen, language_model.pad_id, language_model.device)
            values = probability(step_logits(language_model.model, collated, collated["places"], tokens)).cpu()
            for index, read in zip(batch, values.split([len(example.places) for example in chosen]), strict=True):
                found[index] = torch.cat([read, read.new_full((examples[index].cut,), math.nan)])
    return found


def _pieces(index: int, problem: str, steps: Sequence[str]) -> list[str]:
    """What stands before each placeholder."""
    if isinstance(steps, str) or not steps:
        came = "a text in place of a list of steps" if steps else "no steps"
        raise BadInput(f"Solution {index} has {came}: cut it into steps, one string each.")
    for number, step in enumerate(steps):
        if not step.strip():
            raise BadInput(f"Solution {index}: step {number} (from 0) is empty: leave it out, with its label.")
        check_text(f"Solution {index}", step)
    check_text(f"Solution {index}", problem)
    first, *rest = [f"\n{step.strip()} " for step in steps]
    return [problem.strip() + first, *rest]


def _labels(labels: Sequence[Sequence[float | None]] | None, lengths: Sequence[int]) -> list[tuple[float, ...]]:
    """Labels of all steps, IGNORE for None."""
    if labels is None:
        return [(float(IGNORE),) * length for length in lengths]
    if len(labels) != len(lengths):
        raise BadInput(f"{len(lengths)} solutions came with labels of {len(labels)}: give one list each.")
    for index, (its, length) in enumerate(zip(labels, lengths, strict=True)):
        if len(its) != length:
            raise BadInput(
                f"Solution {index} has {length} steps and {len(its)} labels: give one each, None to leave one out."
            )
        for number, label in enumerate(its):
            if label is not None and not (isinstance(label, Real) and 0 <= label <= 1):
                raise BadInput(
                    f"Solution {index}: the label of step {number} (from 0) is {label!r}: give a number in [0, 1] or None."
                )
    return [tuple(float(IGNORE if label is None else label) for label in its) for its in labels]


def _batches(examples: Sequence[StepExample], batch_size: int, most_places: int) -> Iterator[list[int]]:
    """Indices of examples of like length, longest first; at most batch_size, and so few that the logits stay bounded."""
    batch: list[int] = []
    places = 0
    for index in sorted(range(len(examples)), key=lambda index: len(examples[index].input_ids), reverse=True):
        needed = len(examples[index].places)
        if batch and (len(batch) == batch_size or places + needed > most_places):
            yield batch
            batch, places = [], 0
        batch.append(index)
        places += needed
    if batch:
        yield batch
