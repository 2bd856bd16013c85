"""TokUR (arXiv:2505.11737): how unsure a model is of each token of a text, by random low-rank noise on its weights.

    unsure = perturb(language_model, rank=8, sigma=0.1)          # reads the weights once, changes nothing
    scores = score(unsure, prompts, answers, members=4, seed=0)  # TU, AU and EU of every token of the answers
    scores.response("eu", over="mean")                           # of every answer

M members of which the first is the model itself, the others have noise; p_m what member m says of a token, pbar their mean:

    TU = H(pbar)    AU = mean_m H(p_m)    EU = TU - AU >= 0      (total, aleatoric and epistemic, in nats)

The paper's text has M noisy members, its code has the clean one among them, as here. In the code, and here, query and value
maps get noise; the text says query and key. What came before a token is clean (see `clean_history`), so finished text is
scored by one clean pass over all of it and M - 1 noisy ones over the answer alone, without a decoding loop.

Scores of different models, prompt formats or sigmas do not compare. A sum over tokens grows with length: the paper's table
sets sums of these against means of the others, so length, the sum of log-probabilities and that of entropies stand beside
every sum here (`confidences`).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.data.records import Message, Record
from equipoise.language.confidence import entropy, over_answer, self_certainty, tail, top_confidence
from equipoise.language.encode import IGNORE, encode
from equipoise.language.model import LanguageModel, evaluating, memory_advice
from equipoise.language.score import wide
from equipoise.uncertainty.perturbed import Perturbed, perturb, token_noise

Prompt = str | Sequence[Message]
__all__ = ["Perturbed", "TokenUncertainty", "automatic_sigma", "confidences", "perturb", "score", "uncertainties"]

Measure = Literal["tu", "au", "eu"]
Aggregate = Literal["mean", "sum", "max", "last"]
_VOCABULARY_AT_ONCE = 2**15
_LOGITS_AT_ONCE = 2**24  # values; 64 MB in float32
_TOKEN_VALUES = ("tu", "au", "eu", "reward", "agreement", "log_probs", "entropies", "self_certainty", "top_confidence")


class Uncertainties(NamedTuple):
    """Total, aleatoric and epistemic uncertainty, [...] each, in nats."""

    tu: Tensor
    au: Tensor
    eu: Tensor


def uncertainties(logits: Tensor) -> Uncertainties:
    """TU = H(mean_m p_m), AU = mean_m H(p_m), EU = TU - AU of softmax(logits [M, ..., V]).

    In float32, or in float64 where that is given, and in slices over the vocabulary, so that half precision is never summed
    and its copy in float32 never exists as a whole. 0 <= EU <= log M but for rounding, TU <= log V; a logit of -inf adds
    nothing. Raises BadInput without members.
    """
    if logits.dim() < 2 or not logits.shape[0]:
        raise BadInput(
            f"The logits are {list(logits.shape)}: the members come first, the vocabulary last, [M, ..., V]."
        )
    normalizer = _log_normalizer(logits)
    total = normalizer.new_zeros(logits.shape[1:-1])
    own = torch.zeros_like(total)
    for piece in logits.split(_VOCABULARY_AT_ONCE, dim=-1):
        p = (wide(piece) - normalizer).exp()
        total += torch.special.entr(p.mean(dim=0)).sum(dim=-1)
        own += torch.special.entr(p).sum(dim=-1).mean(dim=0)
    return Uncertainties(total, own, total - own)


def _log_normalizer(logits: Tensor) -> Tensor:
    """log sum exp over the vocabulary, slice by slice: [..., V] -> [..., 1]."""
    pieces = [wide(piece).logsumexp(dim=-1) for piece in logits.split(_VOCABULARY_AT_ONCE, dim=-1)]
    return torch.stack(pieces, dim=-1).logsumexp(dim=-1, keepdim=True)


@dataclass(frozen=True)
class TokenUncertainty:
    """Values [R, T] of the tokens of R answers, 0 where mask [R, T] is False. In nats but for agreement, a share.

    tu, au, eu: as of `uncertainties`. reward: log pbar(y) - mean_m log p_m(y) of the token y that stands there, at least 0.
    agreement: the share of noisy members whose likeliest token is the clean model's; nan without noisy members. log_probs,
    entropies, self_certainty, top_confidence: of the clean model. offsets: of each token the characters of its answer,
    begin and end; an end token has none, and tokens that make up one character share it.
    """

    tu: Tensor
    au: Tensor
    eu: Tensor
    offsets: tuple[tuple[tuple[int, int], ...], ...]
    mask: Tensor
    reward: Tensor
    agreement: Tensor
    log_probs: Tensor
    entropies: Tensor
    self_certainty: Tensor
    top_confidence: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of each answer, [R]."""
        return self.mask.sum(dim=-1)

    @closed
    def response(self, of: Measure = "tu", *, over: Aggregate = "sum", last: int = 32) -> Tensor:
        """One uncertainty an answer, [R]: the sum, mean or greatest over its tokens, or the mean of the last `last`."""
        values = getattr(self, of)
        return tail(values, self.mask, tokens=last) if over == "last" else over_answer(values, self.mask, over=over)

    @closed
    def steps(self, answers: Sequence[str], of: Measure = "tu", *, over: Aggregate = "sum") -> list[list[StepValue]]:
        """A value for each step of each answer, a step being what stands between blank lines, or else between line ends.

        A token counts to the step in which it begins; a line end counts to the step before it.
        """
        found = []
        for row, answer in enumerate(answers):
            spans = step_spans(answer)
            begins = torch.tensor([begin for begin, _ in self.offsets[row]], device=self.mask.device)
            values = getattr(self, of)[row, : len(begins)]
            counted = [(begins >= begin) & (begins < end) for begin, end in spans]
            if spans:  # what ends an answer has no characters, and counts to its last step
                counted[-1] |= begins >= spans[-1][1]
            found.append(
                [
                    StepValue(begin, end, float(over_answer(values, chosen, over="mean" if over == "last" else over)))
                    for (begin, end), chosen in zip(spans, counted, strict=True)
                ]
            )
        return found


class StepValue(NamedTuple):
    """Characters begin to end of an answer, and the value of its tokens; nan where no token begins there."""

    begin: int
    end: int
    value: float


def step_spans(text: str) -> list[tuple[int, int]]:
    """Where the steps of a text stand: cut behind blank lines where there are some, else behind line ends."""
    mark = "\n\n" if "\n\n" in text.strip() else "\n"
    spans, begin = [], 0
    while begin < len(text):
        place = text.find(mark, begin)
        end = len(text) if place < 0 else place + len(mark)
        while end < len(text) and text[end] == "\n":
            end += 1
        spans.append((begin, end))
        begin = end
    return spans


def score(
    language_model: LanguageModel | Perturbed,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    *,
    members: int = 4,
    seed: int,
    end: bool = False,
    batch_size: int = 8,
) -> TokenUncertainty:
    """The uncertainty of every token of answers that are there already, whoever wrote them.

    language_model: with the noise of `perturb`, or without, which then gets that function's defaults. prompts: texts, or
    the turns before the answer. members: the clean model and members - 1 noisy ones. end: also score the token that ends an
    answer. What comes of an answer depends on it, its prompt, the seed and the model: not on the batch or its company; and
    of a token not on what follows it.
    Raises BadInput for an architecture without the means (`clean_history.FAMILIES`), an empty answer, one that does not fit
    into the context or that the chat template does not show whole.
    """
    unsure = language_model if isinstance(language_model, Perturbed) else perturb(language_model)
    if len(prompts) != len(answers):
        raise BadInput(f"There are {len(prompts)} prompts for {len(answers)} answers: give one for each.")
    read = [
        encoded(unsure.language_model, prompt, answer, end=end) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return score_tokens(unsure, read, members=members, seed=seed, batch_size=batch_size)


class Encoded(NamedTuple):
    """The tokens before an answer, those of the answer, and the characters of each of these."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


def encoded(
    language_model: LanguageModel, prompt: Prompt, answer: str, *, end: bool = False, name: str = ""
) -> Encoded:
    """An answer as the model reads it behind its prompt. Raises BadInput where it cannot be, calling it by its name."""
    name = name or repr(answer[:40])
    if isinstance(prompt, str):
        record = Record(id=name, prompt=prompt, completion=answer)
    else:
        record = Record(id=name, messages=(*prompt, Message("assistant", answer)), completion=answer)
    with warnings.catch_warnings():  # what they tell is refused below
        warnings.simplefilter("ignore")
        (example,) = encode(language_model, [record], max_length=language_model.context, end=end)
    if example.cut:
        raise BadInput(
            f"Answer {name} and its prompt have {len(example.input_ids) + example.cut} tokens, more than the context of "
            f"{language_model.context}: shorten them."
        )
    if example.hidden:
        raise BadInput(
            f"Answer {name} is not shown whole by the chat template, which leaves a part out (mostly reasoning): "
            "use chat_template none, or a template that shows it."
        )
    places = [place for place, label in enumerate(example.labels) if label != IGNORE]
    prompt_ids, ids = example.input_ids[: places[0]], example.input_ids[places[0] : places[-1] + 1]
    said, spans = _spans(language_model, ids)
    bare = answer.strip()
    shift = said.find(bare) - (len(answer) - len(answer.lstrip()))
    if bare not in said:
        raise BadInput(
            f"Answer {name} is another text once the tokenizer of {language_model.name} has written and read it, so its "
            "tokens have no place in it: leave out what the tokenizer does not know."
        )
    offsets = tuple((_within(begin - shift, answer), _within(stop - shift, answer)) for begin, stop in spans)
    return Encoded(tuple(prompt_ids), tuple(ids), offsets)


def _within(place: int, text: str) -> int:
    return min(max(place, 0), len(text))


def _spans(language_model: LanguageModel, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of tokens and the characters that each stands for; the bytes of one character share it."""
    tokenizer: Any = language_model.tokenizer

    def text_of(some: Sequence[int]) -> str:
        return tokenizer.decode(list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    text, spans = "", []
    begin, known = 0, 0  # tokens from begin to known are the context in which the next are read
    for stop in range(1, len(ids) + 1):
        before, now = text_of(ids[begin:known]), text_of(ids[begin:stop])
        if now.endswith("\ufffd") and stop < len(ids):
            continue
        new = now[len(before) :]
        spans += [(len(text), len(text) + len(new))] * (stop - known)
        text += new
        begin, known = known, stop
    return text, spans


def score_tokens(
    unsure: Perturbed,
    rows: Sequence[Encoded],
    *,
    members: int,
    seed: int,
    batch_size: int = 8,
    done: Callable[[int], object] = lambda rows: None,
) -> TokenUncertainty:
    """`score` of answers that are tokens already. done: called with the number of answers after each batch."""
    from equipoise.uncertainty.clean_history import check_family

    if members < 1 or batch_size < 1 or seed < 0:
        raise BadInput(
            f"members is {members}, batch_size {batch_size} and seed {seed}: at least 1, 1 and 0. The first member is clean."
        )
    check_family(unsure.language_model)
    longest = max((len(row.answer) for row in rows), default=0)
    dtype = torch.promote_types(unsure.language_model.model.dtype, torch.float32)
    found = {name: torch.zeros(len(rows), longest, dtype=dtype) for name in _TOKEN_VALUES}
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row].prompt + rows[row].answer), reverse=True)
    with evaluating(unsure.language_model.model), memory_advice(batch_size):
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            values, real = _score_batch(unsure, [rows[row] for row in chosen], members, seed)
            at, width = torch.tensor(chosen), real.shape[1]
            mask[at, :width] = real
            for name, each in values.items():
                found[name][at, :width] = each
            done(len(chosen))
    return TokenUncertainty(offsets=tuple(row.offsets for row in rows), mask=mask, **found)


def _score_batch(
    unsure: Perturbed, rows: Sequence[Encoded], members: int, seed: int
) -> tuple[Mapping[str, Tensor], Tensor]:
    """The values [R, T] of a batch, on the CPU, and which of them are real."""
    from equipoise.uncertainty.clean_history import logits_of, read, read_noisily

    language_model = unsure.language_model
    reading = read(language_model, [row.prompt for row in rows], [row.answer for row in rows])
    real = reading.real
    states = [reading.states[real]]
    for member in range(1, members):
        z = torch.zeros(*real.shape, len(unsure.projections), unsure.rank, dtype=torch.float64)
        for line, row in enumerate(rows):
            amount = len(row.answer)
            z[line, :amount] = token_noise(amount, *z.shape[2:], seed=seed, member=member, key=_key(row.prompt))
        states.append(read_noisily(unsure, reading, z.to(reading.states))[real])
    stacked = torch.stack(states)  # [M, n, H]
    targets = torch.tensor([token for row in rows for token in row.answer], device=stacked.device)
    size = max(_LOGITS_AT_ONCE // (members * language_model.vocabulary), 1)
    pieces = [
        _values(logits_of(language_model, some), said)
        for some, said in zip(stacked.split(size, dim=1), targets.split(size), strict=True)
    ]
    values = {}
    for name in _TOKEN_VALUES:
        flat = torch.cat([piece[name] for piece in pieces])
        values[name] = flat.new_zeros(real.shape).masked_scatter(real, flat).cpu()
    return values, real.cpu()


def _values(logits: Tensor, said: Tensor) -> dict[str, Tensor]:
    """Of the tokens said [n], from logits [M, n, V]: each [n]."""
    tu, au, eu = uncertainties(logits)
    chosen = wide(logits.gather(-1, said.expand(len(logits), -1).unsqueeze(-1)).squeeze(-1))
    log_probs = chosen - _log_normalizer(logits).squeeze(-1)  # [M, n]
    mixed = log_probs.logsumexp(dim=0) - math.log(len(logits))
    best = logits.argmax(dim=-1)
    clean = logits[0]
    return {
        "tu": tu,
        "au": au,
        "eu": eu,
        "reward": mixed - log_probs.mean(dim=0),
        "agreement": (best[1:] == best[0]).to(tu.dtype).mean(dim=0),
        "log_probs": log_probs[0],
        "entropies": entropy(clean),
        "self_certainty": self_certainty(clean),
        "top_confidence": top_confidence(clean),
    }


def _key(prompt: Sequence[int]) -> tuple[int, ...]:
    """Names the noise of all answers to a prompt, which therefore meet the same noise: their differences are their own."""
    digest = hashlib.sha256(",".join(map(str, prompt)).encode()).digest()
    return tuple(int.from_bytes(digest[place : place + 4], "little") for place in range(0, 16, 4))


def confidences(scores: TokenUncertainty) -> dict[str, Tensor]:
    """Every score of the answers that comes of the same passes, [R] each, turned so that higher is surer.

    TokUR's in sum, mean and greatest; the clean model's log-probability and entropy in sum and mean, self-certainty,
    DeepConf's confidence; and length alone, with which every sum must be compared.
    """
    found = {
        f"{of}_{over}": -scores.response(of, over=over) for of in ("tu", "au", "eu") for over in ("sum", "mean", "max")
    }
    for name, values in (("log_prob", scores.log_probs), ("entropy", -scores.entropies)):
        for over in ("sum", "mean"):
            found[f"{name}_{over}"] = over_answer(values, scores.mask, over=over)
    found["self_certainty"] = over_answer(scores.self_certainty, scores.mask)
    found["deepconf"] = over_answer(scores.top_confidence, scores.mask)
    found["length"] = -scores.lengths.to(scores.tu.dtype)
    return found


@dataclass(frozen=True)
class Sigma:
    """The scale of noise that was chosen. share: mean EU by mean TU; agreement: of likeliest tokens with the clean model's.

    reached: whether the share that was asked for is there; where not, more noise would change too many likeliest tokens.
    """

    sigma: float
    share: float
    agreement: float
    reached: bool


SIGMAS = tuple(round(0.01 * 2 ** (step / 2), 4) for step in range(13))  # 0.01 to 0.64


def automatic_sigma(
    language_model: LanguageModel | Perturbed,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    *,
    share: float = 0.05,
    agreement: float = 0.95,
    members: int = 4,
    seed: int = 0,
    batch_size: int = 8,
) -> Sigma:
    """The least sigma of `SIGMAS` at which EU is this share of TU, before fewer likeliest tokens than `agreement` stay.

    The outputs of a map move by sigma times the size of what it reads, which differs between models, so no one sigma suits
    all. Some 20 prompts of one's own with the model's answers do. Raises BadInput as `score`, and for shares outside (0, 1).
    """
    unsure = language_model if isinstance(language_model, Perturbed) else perturb(language_model)
    rows = [encoded(unsure.language_model, *each) for each in zip(prompts, answers, strict=True)]
    return choose_sigma(
        unsure, rows, share=share, agreement=agreement, members=members, seed=seed, batch_size=batch_size
    )


def choose_sigma(
    unsure: Perturbed,
    rows: Sequence[Encoded],
    *,
    share: float = 0.05,
    agreement: float = 0.95,
    members: int = 4,
    seed: int = 0,
    batch_size: int = 8,
) -> Sigma:
    """`automatic_sigma` on answers that are tokens already."""
    if not (0 < share < 1 and 0 <= agreement < 1):
        raise BadInput(f"share is {share} and agreement {agreement}: use shares from 0 to 1, of EU a positive one.")
    if members < 2:
        raise BadInput(f"members is {members}, but the first one has no noise: use at least 2.")
    if not rows:
        raise BadInput("There is no answer to choose sigma on: give some 20 prompts with the model's answers.")
    best = None
    for sigma in SIGMAS:
        found = score_tokens(unsure.at(sigma), rows, members=members, seed=seed, batch_size=batch_size)
        total, kept = float(found.tu.sum()), float(found.agreement[found.mask].mean())
        here = Sigma(sigma, float(found.eu.sum()) / total if total > 0 else 0.0, kept, False)
        if best is not None and kept < agreement:
            break
        if here.share >= share and kept >= agreement:
            return replace(here, reached=True)
        best = here
    assert best is not None  # the first of the scales always counts
    return best
