"""What unlearning is measured by: how likely, how well said and how well told apart an answer still is.

Pure functions of log-probabilities first, then the functions that ask a model for them. What is undefined (no items, a
reference without words) is nan. Log-probabilities are natural; "per token" is the mean over the answer's tokens.

Truth ratio of an item with paraphrased answers p_j and wrong answers w_k, P(x) = exp(mean log-probability per token):

    R = mean_k P(w_k) / mean_j P(p_j)         1 where right and wrong are equally likely, below where the truth is known

The mean is a choice. "geometric" (exp of the mean logarithm) is what TOFU's forget quality and open-unlearning use;
"arithmetic" is the formula of the TOFU paper (arXiv:2401.06121, sec. 2.2.2) and what its model utility uses. They give
different numbers from the same logs, so a report must name the one it used. A record without paraphrases is compared by
its completion (TOFU's real-fact sets).

Membership attacks score how much a text looks seen in training, higher is more; AUROC 0.5 is chance.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.data.answers import rouge_l_recall
from equipoise.data.records import Record

if TYPE_CHECKING:
    from equipoise.language import LanguageModel

Mean = Literal["geometric", "arithmetic"]
Attack = Literal["loss", "min-k", "min-k++", "zlib"]
ATTACKS: tuple[Attack, ...] = ("loss", "min-k", "min-k++", "zlib")
_LOGITS_AT_ONCE = 2**25  # values; vocabulary_moments holds a few copies of 128 MB in float32


# Truth ratio.


@closed
def truth_ratio(right: Tensor, wrong: Tensor, mean: Mean = "geometric") -> Tensor:
    """Truth ratio R of each item, in (0, inf); the module states the formula.

    right: [..., J], wrong: [..., K] log-probabilities per token of the right wordings and of the wrong answers; returns
    [...], nan where J or K is 0. Computed from logarithms, so it does not underflow.
    """
    return (_log_mean(wrong, mean) - _log_mean(right, mean)).exp()


def _log_mean(values: Tensor, mean: Mean) -> Tensor:
    if mean == "geometric" or not values.shape[-1]:
        return values.mean(dim=-1)
    return values.logsumexp(dim=-1) - math.log(values.shape[-1])


def truth_utility(ratios: Tensor) -> float:
    """Mean of max(0, 1 - R), in [0, 1]: how far the truth is preferred, for sets to keep (TOFU); nan for none."""
    return (1 - ratios).clamp(min=0).mean().item()


def truth_closeness(ratios: Tensor) -> float:
    """Mean of min(R, 1/R), in [0, 1]: 1 where right and wrong are alike, for the forget set (TOFU); nan for none."""
    return torch.minimum(ratios, 1 / ratios).mean().item()


@dataclass(frozen=True, slots=True)
class ForgetQuality:
    """Two-sample Kolmogorov-Smirnov test; p-value near 1: not told apart from a model that never saw the forget set."""

    statistic: float
    p_value: float

    @property
    def log10(self) -> float:
        """log10 of the p-value, as some publish it; -inf when it underflowed."""
        return -math.inf if self.p_value == 0 else math.log10(self.p_value)


def forget_quality(unlearned: Tensor, retained: Tensor) -> ForgetQuality:
    """Whether the truth ratios [N], [M] of the forget set come from one distribution (TOFU's forget quality).

    unlearned: of the model that forgot; retained: of one trained without the forget set. Only their order counts, so R
    and 1/R give the same. nan when either is empty. Raises BadInput for ratios that are nan.
    """
    from scipy.stats import ks_2samp

    if unlearned.isnan().any() or retained.isnan().any():
        raise BadInput("forget quality of truth ratios that are nan: every item needs a right and a wrong answer.")
    if not unlearned.numel() or not retained.numel():
        return ForgetQuality(math.nan, math.nan)
    result: Any = ks_2samp(unlearned.double().numpy(), retained.double().numpy())
    return ForgetQuality(float(result.statistic), float(result.pvalue))


# Membership inference. Each takes the log-probabilities [T] of one text's tokens and returns one score.


def loss_attack(log_probabilities: Tensor) -> float:
    """Mean log-probability per token (Yeom et al. 2018)."""
    return log_probabilities.double().mean().item()


def min_k(log_probabilities: Tensor, k: float = 0.2) -> float:
    """Mean over the share k of least likely tokens, at least one (Shi et al. 2024, arXiv:2310.16789, eq. 1)."""
    count = _lowest(log_probabilities, k)
    return log_probabilities.double().topk(count, largest=False).values.mean().item() if count else math.nan


def min_k_plus_plus(log_probabilities: Tensor, mean: Tensor, deviation: Tensor, k: float = 0.2) -> float:
    """min_k of (log p - mean) / deviation (Zhang et al. 2024, arXiv:2404.02936, eq. 3).

    mean, deviation: [T], of the log-probability under the model's own distribution at each place; `vocabulary_moments`.
    A place without deviation (a certain or a uniform prediction) says nothing and counts as 0.
    """
    gap = (log_probabilities - mean).double()
    return min_k(torch.where(deviation > 0, gap / deviation.double(), torch.zeros_like(gap)), k)


def zlib_attack(log_probabilities: Tensor, text: str) -> float:
    """Mean log-probability per token over the bytes of the zlib-compressed text (Carlini et al. 2021, arXiv:2012.07805).

    Their sec. 5.2: the ratio of the log-perplexity, which is a mean, and the zlib entropy; here with the sign of a
    log-probability, so that higher is more seen. Of two texts with the same mean the longer one scores nearer to 0.
    """
    if not log_probabilities.numel():
        return math.nan
    return loss_attack(log_probabilities) / len(zlib.compress(text.encode()))


def vocabulary_moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of log p(v) over v ~ p = softmax(logits). logits: [..., V] -> two [...]."""
    log_p = logits.log_softmax(dim=-1)
    p = log_p.exp()
    # A token of probability 0 (a masked logit) adds nothing, although its logarithm is -inf.
    log_p = log_p.masked_fill(p == 0, 0)
    mean = (p * log_p).sum(dim=-1)
    variance = (p * (log_p - mean.unsqueeze(-1)).square()).sum(dim=-1)
    return mean, variance.sqrt()


def auroc(members: Sequence[float] | Tensor, others: Sequence[float] | Tensor) -> float:
    """Probability that a member scores above a non-member, ties counting half; chance 0.5; nan without both."""
    from scipy.stats import rankdata

    first, second = torch.as_tensor(members).double(), torch.as_tensor(others).double()
    if not first.numel() or not second.numel() or first.isnan().any() or second.isnan().any():
        return math.nan
    ranks = rankdata(torch.cat([first, second]).numpy())[: len(first)]
    return float((ranks.sum() - len(first) * (len(first) + 1) / 2) / (len(first) * len(second)))


def _lowest(values: Tensor, k: float) -> int:
    if not 0 < k <= 1:
        raise BadInput(f"k is {k}, expected a share above 0 and at most 1.")
    return min(len(values), max(1, int(len(values) * k)))


# The part that asks a model.


@dataclass(frozen=True, slots=True)
class Answers:
    """Log-probability of each record's completion after its prompt: [N] float64 sums, and the tokens they are over."""

    ids: tuple[str, ...]
    log_probability: Tensor
    tokens: Tensor

    @property
    def per_token(self) -> Tensor:
        """[N], nats per token."""
        return self.log_probability / self.tokens

    @property
    def probability(self) -> Tensor:
        """[N] in [0, 1]: exp of the log-probability per token, the "probability" that TOFU reports."""
        return self.per_token.exp()


def answer_log_probability(
    language_model: LanguageModel, records: Sequence[Record], *, max_length: int = 512, batch_size: int = 32
) -> Answers:
    """How likely the completions are; with the end token, which belongs to knowing where the answer stops."""
    from equipoise.language.encode import encode
    from equipoise.language.score import log_likelihoods

    examples = encode(language_model, records, max_length=max_length)
    sums, tokens = log_likelihoods(language_model, examples, batch_size=batch_size)
    return Answers(tuple(record.id for record in records), sums, tokens)


def check_prompts(records: Sequence[Record]) -> None:
    """Raises BadInput for a record without a prompt to answer."""
    for record in records:
        if not record.prompt:
            raise BadInput(f"record {record.id!r} has no prompt to answer: ROUGE needs questions, not plain text.")


def rouge_recall(
    language_model: LanguageModel, records: Sequence[Record], *, max_new_tokens: int = 64, batch_size: int = 32
) -> Tensor:
    """ROUGE-L recall of each greedy answer against the completion, float64 [N] in [0, 1], nan for one without words.

    Raises BadInput for a record without a prompt to answer.
    """
    from equipoise.language.generate import generate

    check_prompts(records)
    prompts = [record.messages[:-1] or record.prompt for record in records]
    answers = generate(language_model, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    scores = [rouge_l_recall(record.completion, answer) for record, answer in zip(records, answers, strict=True)]
    return torch.tensor(scores, dtype=torch.float64)


@closed
def truth_ratios(
    language_model: LanguageModel,
    records: Sequence[Record],
    *,
    mean: Mean = "geometric",
    max_length: int = 512,
    batch_size: int = 32,
) -> Tensor:
    """Truth ratio [N] of each record, from its paraphrases (its completion where it has none) and its wrong answers.

    nan for a record without wrong answers.
    """
    asked = [
        reworded(record, wording)
        for record in records
        for wording in (*(record.paraphrases or (record.completion,)), *record.wrong)
    ]
    answers = answer_log_probability(language_model, asked, max_length=max_length, batch_size=batch_size)
    ratios, start = [], 0
    for record in records:
        middle = start + (len(record.paraphrases) or 1)
        stop = middle + len(record.wrong)
        ratios.append(truth_ratio(answers.per_token[start:middle], answers.per_token[middle:stop], mean))
        start = stop
    return torch.stack(ratios) if ratios else torch.empty(0, dtype=torch.float64)


@closed
def multiple_choice_accuracy(
    language_model: LanguageModel,
    records: Sequence[Record],
    *,
    by: Literal["letter", "text"] = "text",
    batch_size: int = 32,
) -> float:
    """Share of questions answered right, in [0, 1], nan for none; by item: language.multiple_choice."""
    from equipoise.language.score import multiple_choice

    return multiple_choice(language_model, records, by=by, batch_size=batch_size).accuracy


def general_loss(
    language_model: LanguageModel, texts: Sequence[str], *, max_length: int = 512, batch_size: int = 32
) -> float:
    """Nats per token over all tokens of texts neither forgotten nor rehearsed; exp of it is the perplexity."""
    from equipoise.language.score import text_loss

    return text_loss(language_model, texts, max_length=max_length, batch_size=batch_size)


def membership_scores(
    language_model: LanguageModel,
    records: Sequence[Record],
    *,
    k: float = 0.2,
    max_length: int = 512,
    batch_size: int = 32,
) -> dict[Attack, Tensor]:
    """Scores [N] of every attack on every record's completion, higher for what looks seen in training."""
    from equipoise.language.encode import IGNORE, collate, encode
    from equipoise.language.model import evaluating, memory_advice
    from equipoise.language.score import labelled_logits

    examples = encode(language_model, records, max_length=max_length)
    scores: dict[Attack, Tensor] = {
        name: torch.full((len(records),), math.nan, dtype=torch.float64) for name in ATTACKS
    }
    vocabulary = len(language_model.tokenizer)
    labelled = [sum(label != IGNORE for label in example.labels) for example in examples]
    waiting = sorted(range(len(examples)), key=lambda index: len(examples[index].input_ids))
    with evaluating(language_model.model), memory_advice(batch_size):
        while waiting:
            chosen = [waiting.pop()]
            tokens = labelled[chosen[0]]
            while (
                waiting and len(chosen) < batch_size and (tokens + labelled[waiting[-1]]) * vocabulary < _LOGITS_AT_ONCE
            ):
                tokens += labelled[waiting[-1]]
                chosen.append(waiting.pop())
            batch = collate([examples[index] for index in chosen], language_model.pad_id, language_model.device)
            logits, labels, _ = labelled_logits(language_model.model, batch)
            logits = logits.float()
            of_labels = logits.log_softmax(dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
            sizes = [labelled[index] for index in chosen]
            columns = (values.cpu().split(sizes) for values in (of_labels, *vocabulary_moments(logits)))
            for index, log_probabilities, mean, deviation in zip(chosen, *columns, strict=True):
                scores["loss"][index] = loss_attack(log_probabilities)
                scores["min-k"][index] = min_k(log_probabilities, k)
                scores["min-k++"][index] = min_k_plus_plus(log_probabilities, mean, deviation, k)
                scores["zlib"][index] = zlib_attack(log_probabilities, records[index].completion)
    return scores


def membership(
    language_model: LanguageModel,
    members: Sequence[Record],
    others: Sequence[Record],
    *,
    k: float = 0.2,
    max_length: int = 512,
    batch_size: int = 32,
) -> dict[Attack, float]:
    """AUROC of every attack at telling members (the forget set) from others of the same kind; chance is 0.5.

    Far below 0.5 tells as much as far above: the forget set then stands out by being unlikely.
    """
    options = {"k": k, "max_length": max_length, "batch_size": batch_size}
    scores = membership_scores(language_model, [*members, *others], **options)
    return {name: auroc(values[: len(members)], values[len(members) :]) for name, values in scores.items()}


@dataclass(frozen=True, slots=True)
class Membership:
    """An attack's scores on members [N] and others [M], and how well they tell them apart; chance is 0.5.

    lower, upper: 95 % interval of the AUROC by redrawing records, nan under 50 of them.
    """

    member_ids: tuple[str, ...]
    other_ids: tuple[str, ...]
    members: Tensor
    others: Tensor
    auroc: float
    lower: float
    upper: float


def membership_by_record(
    language_model: LanguageModel,
    members: Sequence[Record],
    others: Sequence[Record],
    *,
    k: float = 0.2,
    seed: int = 0,
    max_length: int = 512,
    batch_size: int = 32,
) -> dict[Attack, Membership]:
    """`membership` with every record's score and an interval. seed: of the records redrawn."""
    from equipoise.core import statistics

    options = {"k": k, "max_length": max_length, "batch_size": batch_size}
    scores = membership_scores(language_model, [*members, *others], **options)
    labels = [1] * len(members) + [0] * len(others)
    found: dict[Attack, Membership] = {}
    for name, values in scores.items():
        generator = np.random.default_rng(np.random.SeedSequence([seed, ATTACKS.index(name)]))
        interval = statistics.score_interval(statistics.auroc, values.numpy(), labels, generator=generator)
        found[name] = Membership(
            tuple(record.id for record in members),
            tuple(record.id for record in others),
            values[: len(members)],
            values[len(members) :],
            float(interval.estimate),
            float(interval.lower),
            float(interval.upper),
        )
    return found


def reworded(record: Record, completion: str) -> Record:
    """The record with another completion; of a conversation its last turn."""
    messages = record.messages and (*record.messages[:-1], replace(record.messages[-1], content=completion))
    return replace(record, completion=completion, messages=messages)
