"""How sure a model is of a token, of an answer, and of what several answers say together.

Of a token, from its logits [..., V] or from the log-probabilities of its K likeliest tokens [..., K], the likeliest first:
what these do not tell comes as bounds. Of an answer, from values [..., T] of its tokens and a mask [..., T] of which count.
Of a question, from several answers. By asking the model: P(True) and verbalized confidence.

Natural logarithms. Computed in float32, or in float64 where that is given. What is undefined (an answer without a counted
token, a confidence that cannot be read) is nan. entropy, perplexity, semantic entropy: lower is surer. All others: higher.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.data.answers import matches
from equipoise.data.records import Record
from equipoise.language.encode import encode
from equipoise.language.score import doubled, log_likelihoods, wide

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

Over = Literal["mean", "sum", "min", "max"]
Alike = Literal["answer", "text"]
Estimate = Literal["discrete", "monte-carlo", "normalized"]


class Bounds(NamedTuple):
    """The least and the greatest value that agree with what is known; both can be reached."""

    lower: Tensor
    upper: Tensor


# A token, from all of its logits.


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits [..., V]), in [0, log V]; a logit of -inf adds nothing."""
    return torch.special.entr(wide(logits).softmax(dim=-1)).sum(dim=-1)


def max_logit(logits: Tensor) -> Tensor:
    """The largest logit: unlike all others here it changes when a constant is added to the logits."""
    return wide(logits).amax(dim=-1)


def max_probability(logits: Tensor) -> Tensor:
    """The probability of the likeliest token."""
    return wide(logits).log_softmax(dim=-1).amax(dim=-1).exp()


def margin(logits: Tensor) -> Tensor:
    """The probability of the likeliest token minus that of the second, in [0, 1]."""
    return top_margin(wide(logits).log_softmax(dim=-1))


def logit_margin(logits: Tensor) -> Tensor:
    """The largest logit minus the second: the logarithm of how many times likelier the first token is."""
    first, second = wide(logits).topk(2, dim=-1).values.unbind(dim=-1)
    return first - second


def self_certainty(logits: Tensor) -> Tensor:
    """KL divergence of the uniform distribution from softmax(logits): -(1/V) sum log(V p) (arXiv:2502.18581, eq. 4).

    Tokens with a logit of -inf are left out of the vocabulary, as lm-polygraph leaves them out (the divergence is infinite
    otherwise). In [0, inf).
    """
    log_probs = wide(logits).log_softmax(dim=-1)
    possible = ~log_probs.isneginf()
    count = possible.sum(dim=-1)
    return -log_probs.where(possible, 0.0).sum(dim=-1) / count - count.to(log_probs.dtype).log()


def top_confidence(logits: Tensor, *, top: int = 20) -> Tensor:
    """DeepConf's confidence of a token: -(1/K) sum of log p over the K likeliest (arXiv:2508.15260, eq. 2)."""
    log_probs = wide(logits).log_softmax(dim=-1)
    return -log_probs.topk(min(top, log_probs.shape[-1]), dim=-1).values.mean(dim=-1)


# A token, from its likeliest alternatives.


def top_margin(top_log_probs: Tensor) -> Tensor:
    """`margin`, exactly, from the log-probabilities of at least the two likeliest tokens."""
    first, second = wide(top_log_probs).exp().topk(2, dim=-1).values.unbind(dim=-1)
    return first - second


def entropy_bounds(top_log_probs: Tensor, vocabulary: int) -> Bounds:
    """What `entropy` can be when [..., K] are the log-probabilities of the K likeliest of `vocabulary` tokens.

    Least when the rest of the probability sits on as few tokens as may have it (none is likelier than the K-th), greatest
    when all others share it equally. Equal bounds where K is the whole vocabulary.
    """
    known, rest, others = _known_and_rest(top_log_probs, vocabulary)
    head = torch.special.entr(known.exp()).sum(dim=-1)
    most = known.amin(dim=-1).exp()
    full = torch.where(most > 0, (rest / most.clamp(min=torch.finfo(most.dtype).tiny)).floor(), 0.0)
    last = (rest - full * most).clamp(min=0)
    lower = head + full * torch.special.entr(most) + torch.special.entr(last)
    upper = head + (others * torch.special.entr(rest / others) if others else torch.zeros_like(head))
    return Bounds(torch.minimum(lower, upper), upper)  # they meet where rounding decides


def self_certainty_bounds(top_log_probs: Tensor, vocabulary: int) -> Bounds:
    """What `self_certainty` can be: without upper bound where tokens are unknown, as each may be all but impossible."""
    known, rest, others = _known_and_rest(top_log_probs, vocabulary)
    sums, unit = known.sum(dim=-1), math.log(others) if others else 0.0
    # The rest is known up to the rounding of 1 - sum, below which it may be 0; no other token is likelier than the K-th.
    rounding = known.shape[-1] * torch.finfo(known.dtype).eps
    most = torch.minimum((rest + rounding).log(), known.amin(dim=-1) + unit)
    least = (rest - rounding).clamp(min=0).log()
    lower, upper = (
        -(sums + others * (each - unit) if others else sums) / vocabulary - math.log(vocabulary)
        for each in (most, least)
    )
    return Bounds(lower, upper if others <= 1 else torch.full_like(lower, math.inf))


def _known_and_rest(top_log_probs: Tensor, vocabulary: int) -> tuple[Tensor, Tensor, int]:
    """Log-probabilities, the probability of all other tokens, and how many these are."""
    known = wide(top_log_probs)
    others = vocabulary - known.shape[-1]
    if others < 0 or not known.shape[-1]:
        raise BadInput(
            f"{known.shape[-1]} likeliest tokens of a vocabulary of {vocabulary}: give at least 1 and at most all."
        )
    return known, (1 - known.exp().sum(dim=-1)).clamp(min=0), others


# An answer, from its tokens.


@closed
def over_answer(values: Tensor, mask: Tensor, *, over: Over = "mean") -> Tensor:
    """The mean, sum, least or greatest of the values [..., T] that the mask counts: [...].

    Sums grow with length and means do not: a score that sums is also a score of length.
    """
    values, counted = wide(values), mask.bool()
    if over in ("min", "max"):
        filled = values.where(counted, math.inf if over == "min" else -math.inf)
        found = filled.amin(dim=-1) if over == "min" else filled.amax(dim=-1)
    else:
        found = values.where(counted, 0.0).sum(dim=-1)
        found = found / counted.sum(dim=-1) if over == "mean" else found
    return found.where(counted.any(dim=-1), math.nan)


def perplexity(log_probs: Tensor, mask: Tensor) -> Tensor:
    """exp of minus the mean log-probability of the tokens that were said: [..., T] -> [...], at least 1."""
    return (-over_answer(log_probs, mask)).exp()


def groups(values: Tensor, mask: Tensor, *, window: int) -> Tensor:
    """Means over each `window` counted tokens in a row (arXiv:2508.15260, sec. 3.1): [..., T] -> [..., T], nan elsewhere.

    A mean stands at its last token. An answer shorter than the window is one group. What the mask leaves out is jumped over.
    """
    if window < 1:
        raise BadInput(f"The window is {window} tokens: use at least 1.")
    counted = mask.bool()
    position = counted.cumsum(dim=-1)  # 1 for the first that counts
    length = position[..., -1:]
    # Compacted, so that a window is a range: what does not count goes behind all that does.
    order = (~counted).to(torch.uint8).argsort(dim=-1, stable=True)
    packed = wide(values).where(counted, 0.0).gather(-1, order)
    sums = torch.nn.functional.pad(doubled(packed).cumsum(dim=-1), (1, 0))
    size = length.clamp(max=window)
    first = (position - size).clamp(min=0)
    means = sums.gather(-1, position.to(sums.device)) - sums.gather(-1, first.to(sums.device))
    means = (means / size.to(sums.device)).to(packed.dtype).to(packed)
    return means.where(counted & (position >= size), math.nan)


def lowest_group(values: Tensor, mask: Tensor, *, window: int) -> Tensor:
    """The least of the `groups`: DeepConf's lowest group confidence."""
    means = groups(values, mask, window=window)
    return over_answer(means, ~means.isnan(), over="min")


def bottom_groups(values: Tensor, mask: Tensor, *, window: int, share: float = 0.1) -> Tensor:
    """The mean of the lowest tenth of the `groups`, of one at least: DeepConf's bottom-10 % confidence."""
    if not 0 < share <= 1:
        raise BadInput(f"The share is {share}: use a number above 0, at most 1.")
    means = groups(values, mask, window=window)
    there = ~means.isnan()
    count = (doubled(there.sum(dim=-1, keepdim=True)) * share).floor().clamp(min=1).long().to(there.device)
    ranked = means.nan_to_num(nan=math.inf).sort(dim=-1).values
    place = torch.arange(1, means.shape[-1] + 1, device=means.device)
    return over_answer(ranked.where(ranked.isfinite(), 0.0), (place <= count) & there.any(dim=-1, keepdim=True))


def tail(values: Tensor, mask: Tensor, *, tokens: int) -> Tensor:
    """The mean of the last `tokens` counted values: DeepConf's tail confidence."""
    if tokens < 1:
        raise BadInput(f"The tail has {tokens} tokens: use at least 1.")
    counted = mask.bool()
    from_the_end = counted.flip(-1).cumsum(dim=-1).flip(-1)
    return over_answer(values, counted & (from_the_end <= tokens))


# A question, from several answers.


@closed
def clusters(answers: Sequence[str], *, by: Alike = "answer", threshold: float = 0.7) -> list[int]:
    """The group that each answer belongs to, numbered from 0 in the order in which they come.

    by="answer": groups of equal answers (`data.answers.matches`; what is empty after its normalization is alone). by="text":
    an answer joins the group whose first member is most like it in its letters (difflib's ratio of the texts in lower case),
    where that is above the threshold, as RouterXBench does. No model judges what entails what.
    """
    first: list[str] = []
    labels: list[int] = []
    for answer in answers:
        if by == "answer":
            alike = [float(matches(answer, other)) for other in first]
        else:
            alike = [SequenceMatcher(None, other.lower(), answer.lower()).ratio() for other in first]
        best = max(range(len(first)), key=alike.__getitem__, default=-1)
        if best < 0 or alike[best] <= (0.5 if by == "answer" else threshold):
            first.append(answer)
            best = len(first) - 1
        labels.append(best)
    return labels


@closed
def semantic_entropy(
    labels: Tensor | Sequence[int], log_probs: Tensor | None = None, *, estimate: Estimate = "discrete"
) -> Tensor:
    """Entropy in nats of what N answers to a question say; labels [N]: the group of each, as from `clusters`.

    discrete: of the shares of answers. The others need the answers' log-probabilities [N]; the probabilities within a group
    add up to the group's. monte-carlo: minus the mean, over answers, of the logarithm for their group (arXiv:2302.09664 as
    lm-polygraph computes it; what was sampled twice counts twice). normalized: of the groups' probabilities made to sum to 1
    (Farquhar et al. 2024). nan without answers.
    """
    labels = torch.as_tensor(labels, dtype=torch.int64)
    if estimate == "discrete":
        log_probs = torch.zeros(len(labels), dtype=torch.float64)
    if log_probs is None or log_probs.shape != labels.shape:
        found = "none" if log_probs is None else list(log_probs.shape)
        raise BadInput(f"{estimate!r} needs the log-probability of each of the {len(labels)} answers, and got {found}.")
    log_probs = wide(log_probs)
    if not len(labels):
        return torch.tensor(math.nan, dtype=log_probs.dtype)
    member = labels.unsqueeze(-1) == labels.unique()  # [N, groups]
    group = log_probs.unsqueeze(-1).where(member, -math.inf).logsumexp(dim=0)
    if estimate == "monte-carlo":
        return -group.expand(member.shape)[member].mean()
    return entropy(group)


# Asking the model.

P_TRUE = (
    "Question: {question}\nPossible answer: {answer}\n"
    "Is the possible answer:\n (A) True\n (B) False\nThe possible answer is:"
)
VERBALIZED = (
    "Question: {question}\nPossible answer: {answer}\nHow likely is it that the possible answer is right? "
    'Reply with "Confidence:" and a number from 0 to 100, and nothing else.'
)
_NUMBER = re.compile(
    r"(?<![\w.,])([-+]?)(\d+(?:\.\d+)?|\.\d+)(?:\s*(%|percent\b)|\s*(?:/|out of)\s*(\d+(?:\.\d+)?))?(?![\w]|[.,]\d)",
    re.I,
)
_MARKER = re.compile(r"\b(?:confidence|probability|likelihood)\b", re.I)


def p_true(
    language_model: LanguageModel,
    questions: Sequence[str],
    answers: Sequence[str],
    *,
    prompt: str = P_TRUE,
    batch_size: int = 32,
    max_length: int = 512,
) -> Tensor:
    """P(True) of each answer (arXiv:2207.05221): the share of "True" in what the model gives to "True" and "False".

    prompt: with {question} and {answer}. float64 [N] in [0, 1]. (lm-polygraph takes the probability of "True" alone, which
    is also low when the model would say something else.)
    """
    asked = [
        Record(id=f"{index}/{word}", prompt=prompt.format(question=question, answer=answer), completion=word)
        for index, (question, answer) in enumerate(zip(questions, answers, strict=True))
        for word in ("True", "False")
    ]
    if not asked:
        return torch.empty(0, dtype=torch.float64)
    examples = encode(language_model, asked, max_length=max_length, end=False)
    sums, _ = log_likelihoods(language_model, examples, batch_size=batch_size)
    return sums.view(-1, 2).softmax(dim=-1)[:, 0]


def verbalized(text: str, *, scale: float = 100) -> float:
    """The confidence in [0, 1] that a reply states (to `VERBALIZED`, say); nan where it states none, or two that differ.

    Read behind the last "confidence", "probability" or "likelihood", else from the whole. "85%", "0.85", "85/100" and
    "17 out of 20" mean what they say; a number with a point up to 1 is a probability; any other is one of 0 to `scale`.
    """
    markers = list(_MARKER.finditer(text))
    after = text[markers[-1].end() :] if markers else text
    found = {_share(match, scale) for match in (list(_NUMBER.finditer(after)) or list(_NUMBER.finditer(text)))}
    if len(found) != 1:
        return math.nan
    (value,) = found
    return value if 0 <= value <= 1 else math.nan


def _share(match: re.Match[str], scale: float) -> float:
    sign, number, percent, whole = match.groups()
    value = float(sign + number)
    if percent:
        return value / 100
    if whole:
        return value / float(whole) if float(whole) else math.nan
    return value if "." in number and abs(value) <= 1 else value / scale
