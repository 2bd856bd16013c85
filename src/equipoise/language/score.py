"""Log-likelihoods of labelled tokens, multiple choice and perplexity. Natural logarithms, in float32 or float64.

B rows of a batch, T tokens of a row, H width, V vocabulary, n labelled tokens of a batch.
Only the hidden states that predict a labelled token go through the output matrix: [n, V], never [B, T, V].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.core.progress import beat
from equipoise.language.encode import IGNORE, Example, encode, frame, passages
from equipoise.language.model import evaluating, memory_advice

if TYPE_CHECKING:
    from equipoise.data.records import Record
    from equipoise.language.model import LanguageModel

By = Literal["letter", "text"]
_LOGITS_AT_ONCE = 2**26  # values; 256 MB in float32
ROUNDING = 1e-12  # of a score in float64: as far apart are means of equal numbers, of some more and of some fewer


@dataclass(frozen=True)
class Choices:
    """Answers to N multiple-choice questions. scores: per question one score per choice, higher is likelier.

    predicted: the place of the choice that is likelier than every other, -1 where none is.
    """

    ids: tuple[str, ...]
    scores: list[Tensor]
    predicted: Tensor
    correct: Tensor

    @property
    def accuracy(self) -> float:
        """Share of right answers in [0, 1], nan without questions."""
        return self.correct.double().mean().item()


@contextmanager
def head_reads(model: Any, wanted: Tensor) -> Iterator[None]:
    """Inside, the output matrix is applied at `wanted` [B, T] only and logits are [1, n, V], row by row.

    Done where the hidden states enter the output matrix, so whatever the architecture does to its logits afterwards
    (soft-capping, scaling) is still done, and gradients flow as usual.
    """

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = inputs
        return hidden[wanted.to(hidden.device)].unsqueeze(0), *rest

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


def wide(logits: Tensor) -> Tensor:
    """Logits in which sums of exponentials are taken: float32, or float64 where the model has that."""
    return logits if logits.dtype == torch.float64 else logits.float()


def doubled(values: Tensor) -> Tensor:
    """In float64, in which rare tokens keep their share of a sum; on the CPU where their device, mps, has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def labelled_logits(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [n, V] that predict the labelled tokens of a collated batch, their labels [n], their rows [n] in [0, B).

    Differentiable: for losses that need no logits elsewhere. The label of the first token of a row is not predicted by
    anything and must be IGNORE.
    """
    labels = batch["labels"]
    wanted = torch.zeros_like(labels, dtype=torch.bool)
    wanted[:, :-1] = labels[:, 1:] != IGNORE
    with head_reads(model, wanted):
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    rows, columns = wanted.nonzero(as_tuple=True)
    return output.logits.squeeze(0), labels[rows, columns + 1], rows


def token_log_likelihoods(
    language_model: LanguageModel, examples: Sequence[Example], *, batch_size: int = 32
) -> list[Tensor]:
    """Log-probability of each labelled token: tensors on the CPU, one per example, in the order given.

    Examples that read the same tokens (the choices of one question, if each is one token) share one row.
    """
    _check_batch_size(batch_size)
    rows: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}  # tokens read -> (example, places predicted from)
    for index, example in enumerate(examples):
        positions = [position - 1 for position, label in enumerate(example.labels) if label != IGNORE]
        if not positions or positions[0] < 0:
            problem = "labels its first token, which nothing predicts" if positions else "has no label"
            raise BadInput(f"Example {index} {problem}: make examples with encode().")
        rows.setdefault(example.input_ids[: positions[-1] + 1], []).append((index, positions))

    found: list[Tensor] = [torch.empty(0)] * len(examples)
    vocabulary = language_model.vocabulary
    with evaluating(language_model.model), memory_advice(batch_size):
        for batch in _batches(rows, batch_size, _LOGITS_AT_ONCE // vocabulary):
            members = [member for tokens in batch for member in rows[tokens]]
            beat()
            for (index, _), values in zip(members, _score(language_model, batch, rows, examples), strict=True):
                found[index] = values
    return found


def log_likelihoods(
    language_model: LanguageModel, examples: Sequence[Example], *, batch_size: int = 32
) -> tuple[Tensor, Tensor]:
    """Sums of the labelled tokens' log-probabilities, float64 [N], and the numbers of such tokens, int64 [N]."""
    found = token_log_likelihoods(language_model, examples, batch_size=batch_size)
    sums = torch.tensor([values.double().sum().item() for values in found], dtype=torch.float64)
    return sums, torch.tensor([len(values) for values in found], dtype=torch.int64)


@closed
def multiple_choice(
    language_model: LanguageModel,
    records: Sequence[Record],
    *,
    by: By = "text",
    batch_size: int = 32,
    max_length: int = 512,
) -> Choices:
    """Which of its choices the model finds likeliest, for each record with choices and answer.

    by="text": the prompt is followed by each choice; its score is the mean log-probability per token of the choice
    (without that, long answers would lose by their length alone; lm-eval's acc_norm divides by bytes instead).
    by="letter": the prompt shows the choices as "A. ..." and ends with "Answer:" (the form of MMLU and WMDP, without
    their subject line); a score is the log-probability of the letter. The end token is not scored. A choice is the
    answer if its score is finite and above those of all others, of which the same text again is none: a model whose
    scores are equal or no numbers, since it was destroyed, answers nothing. Raises BadInput for a record without choices or
    with an answer that is none of them.
    """
    for record in records:
        if len(record.choices) < 2 or record.answer is None or not 0 <= record.answer < len(record.choices):
            raise BadInput(
                f"Record {record.id!r} is no multiple-choice question: it has {len(record.choices)} choices "
                f"and the answer {record.answer}; at least 2 and an index into them are needed."
            )
        if not record.prompt and not record.messages:
            raise BadInput(f"Record {record.id!r} has choices but no prompt to choose for.")
    asked = [ask for record in records for ask in (_by_letter(record) if by == "letter" else _by_text(record))]
    examples = encode(language_model, asked, max_length=max_length, end=False)
    sums, counts = log_likelihoods(language_model, examples, batch_size=batch_size)
    scores = list((sums / counts).split([len(record.choices) for record in records]))
    predicted = [_likeliest(values, record.choices) for values, record in zip(scores, records, strict=True)]
    correct = [
        place >= 0 and record.choices[place] == record.choices[record.answer or 0]
        for place, record in zip(predicted, records, strict=True)
    ]
    return Choices(
        tuple(record.id for record in records),
        scores,
        torch.tensor(predicted, dtype=torch.int64),
        torch.tensor(correct, dtype=torch.bool),
    )


def likelier(score: Tensor, others: Tensor) -> bool:
    """Whether a score [] is finite and above all of the others [N], by more than rounding."""
    return bool(score.isfinite()) and bool((score - others > ROUNDING * score.abs()).all())


def text_loss(
    language_model: LanguageModel, texts: Sequence[str], *, max_length: int = 512, batch_size: int = 32
) -> float:
    """Mean negative log-probability, nats per token, over all tokens of all texts; nan when there is none to predict.

    A text longer than max_length is read in windows. Each begins with what the tokenizer puts before a text and shares one
    token with the window before it, so that each token of the text is predicted exactly once (the first only where
    something begins the text), from at most max_length - 1 tokens before it.
    """
    begin, _ = frame(language_model)
    stride = min(max_length, language_model.context) - len(begin) - 1
    if stride < 1:
        raise BadInput(
            f"max_length is {max_length}, but predicting a token takes one before it, and this tokenizer puts {len(begin)} "
            f"before every text: use at least {len(begin) + 2}."
        )
    examples = []
    for ids in passages(language_model, texts):
        alone = bool(ids and begin)  # a text of one token has something that predicts it
        for start in range(0, max(len(ids) - 1, int(alone)), stride):
            first, *more = ids[start : start + stride + 1]
            labels = (*[IGNORE] * len(begin), first if begin and not start else IGNORE, *more)
            examples.append(Example((*begin, first, *more), labels))
    sums, counts = log_likelihoods(language_model, examples, batch_size=batch_size)
    tokens = int(counts.sum())
    return -sums.sum().item() / tokens if tokens else math.nan


def perplexity(
    language_model: LanguageModel, texts: Sequence[str], *, max_length: int = 512, batch_size: int = 32
) -> float:
    """exp of `text_loss`; nan when there is no token to predict, inf above 709 nats per token, which a float cannot hold.

    A model that was destroyed gets there: compare such models by `text_loss`.
    """
    loss = text_loss(language_model, texts, max_length=max_length, batch_size=batch_size)
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _likeliest(scores: Tensor, said: Sequence[str]) -> int:
    """The place of the choice that is likelier than all that say something else, the first of those alike; -1 for none."""
    first = int(scores.argmax())  # a score that is no number comes first
    others = torch.tensor([each != said[first] for each in said])
    return first if likelier(scores[first], scores[others]) else -1


def _by_text(record: Record) -> list[Record]:
    return [replace(record, completion=choice) for choice in record.choices]


def _by_letter(record: Record) -> list[Record]:
    if len(record.choices) > len(ascii_uppercase):
        raise BadInput(f"Record {record.id!r} has {len(record.choices)} choices, more than letters: use by='text'.")
    if record.messages:
        raise BadInput(
            f"Record {record.id!r} is a conversation, which has no place for lettered choices: use by='text'."
        )
    letters = ascii_uppercase[: len(record.choices)]
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters, record.choices, strict=True)]
    prompt = "\n".join([record.prompt.strip(), *lines, "Answer:"])
    return [replace(record, prompt=prompt, completion=letter) for letter in letters]


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise BadInput(f"The batch size is {batch_size}: use at least 1.")


def _batches(
    rows: Mapping[tuple[int, ...], list[tuple[int, list[int]]]], batch_size: int, most_places: int
) -> Iterator[list[tuple[int, ...]]]:
    """Rows of like length together, longest first; at most batch_size, and so few that the logits stay bounded."""
    batch: list[tuple[int, ...]] = []
    places = 0
    for tokens in sorted(rows, key=len, reverse=True):
        needed = len({position for _, chosen in rows[tokens] for position in chosen})
        if batch and (len(batch) == batch_size or places + needed > most_places):
            yield batch
            batch, places = [], 0
        batch.append(tokens)
        places += needed
    if batch:
        yield batch


def _score(
    language_model: LanguageModel,
    batch: list[tuple[int, ...]],
    rows: Mapping[tuple[int, ...], list[tuple[int, list[int]]]],
    examples: Sequence[Example],
) -> list[Tensor]:
    """Per member of the batch's rows, in their order, the log-probabilities of its labels."""
    model, device, length = language_model.model, language_model.device, len(batch[0])
    wanted = torch.zeros(len(batch), length, dtype=torch.bool)
    for row, tokens in enumerate(batch):
        for _, places in rows[tokens]:
            wanted[row, places] = True
    padding = [length - len(tokens) for tokens in batch]
    ids = [[*tokens, *[language_model.pad_id] * gap] for tokens, gap in zip(batch, padding, strict=True)]
    mask = [[1] * len(tokens) + [0] * gap for tokens, gap in zip(batch, padding, strict=True)]
    with head_reads(model, wanted):
        output = model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            use_cache=False,
        )
    logits = wide(output.logits.squeeze(0))  # [n, V]
    normalizer = logits.logsumexp(dim=-1)

    number = (wanted.flatten().cumsum(0) - 1).view_as(wanted)  # where (row, place) stands among the n
    which, labels, sizes = [], [], []
    for row, tokens in enumerate(batch):
        for index, places in rows[tokens]:
            which.append(number[row, places])
            labels += [examples[index].labels[position + 1] for position in places]
            sizes.append(len(places))
    chosen = torch.cat(which).to(device)
    values = logits[chosen, torch.tensor(labels, device=device)] - normalizer[chosen]
    return list(values.cpu().split(sizes))
