"""TOFU's measures of a set of questions (arXiv:2401.06121, sec. 2.2), item by item, in the two conventions of the field.

P(x) = exp(mean log-probability per token of x, end token included). Of each of the three sets that a model should keep:

    probability   retain: mean P(answer)      real authors, world facts: mean P(answer) / (P(answer) + sum_k P(wrong_k))
    rouge         mean ROUGE-L recall of the greedy answer; TOFU stems the words
    truth         mean max(0, 1 - R), R the truth ratio of `unlearning.measures`
    utility       the harmonic mean of these nine numbers, 0 as soon as one is 0

Convention "tofu", the paper's and its released code's, takes the arithmetic mean over wrong answers in R. "open-unlearning"
takes the geometric one. Both take the geometric one in forget quality. From TOFU's own logs of Llama-2-7B the utilities are
0.5859 and 0.6227: name the one that you report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.options import closed
from equipoise.data.answers import rouge_l_recall
from equipoise.data.records import Record
from equipoise.unlearning import measures

if TYPE_CHECKING:
    from equipoise.language import LanguageModel

Convention = Literal["tofu", "open-unlearning"]
KEPT = ("retain", "real_authors", "world_facts")
_MEANS: Mapping[str, measures.Mean] = {"tofu": "arithmetic", "open-unlearning": "geometric"}


@dataclass(frozen=True)
class Scored:
    """A model's scores on N questions. Log-probabilities are per token, float64.

    answer: [N], of the completions. right: of each record's paraphrases, of its completion where it has none; wrong: of its
    wrong answers, [0] where it has none. generated: the greedy answers, none where they were not asked for.
    """

    records: tuple[Record, ...]
    answer: Tensor
    right: tuple[Tensor, ...]
    wrong: tuple[Tensor, ...]
    generated: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(record.id for record in self.records)

    @property
    def probability(self) -> Tensor:
        """P(answer), [N] in [0, 1]."""
        return self.answer.exp()

    @property
    def probability_among_options(self) -> Tensor:
        """P(answer) over that of all options, [N] in [0, 1]; chance is 1 / (1 + K), nan without wrong answers."""
        options = zip(self.answer, self.wrong, strict=True)
        shares = [torch.cat([right[None], wrong]).softmax(0)[0] if len(wrong) else _nan() for right, wrong in options]
        return torch.stack(shares) if shares else self.answer

    @closed
    def truth_ratios(self, mean: measures.Mean = "geometric") -> Tensor:
        """Truth ratio [N]; nan without wrong answers."""
        ratios = [measures.truth_ratio(r, w, mean) for r, w in zip(self.right, self.wrong, strict=True)]
        return torch.stack(ratios) if ratios else self.answer

    def rouge_recall(self, stem: Callable[[str], str] | None = None) -> Tensor:
        """ROUGE-L recall [N] of the greedy answers. stem: TOFU's is nltk's PorterStemmer().stem; off unless given."""
        pairs = zip(self.records, self.generated, strict=True)
        scores = [rouge_l_recall(record.completion, answer, stem=stem) for record, answer in pairs]
        return torch.tensor(scores, dtype=torch.float64)


def score(
    language_model: LanguageModel,
    records: Sequence[Record],
    *,
    generated: bool = True,
    max_new_tokens: int = 200,
    max_length: int = 512,
    batch_size: int = 32,
) -> Scored:
    """Ask a model all that TOFU's measures need of a set. generated: whether it also answers, the dear part.

    Raises BadInput for a record without prompt that should be answered.
    """
    from equipoise.language.generate import generate

    wordings = [(record.completion, *record.paraphrases, *record.wrong) for record in records]
    asked = [measures.reworded(record, each) for record, own in zip(records, wordings, strict=True) for each in own]
    found = measures.answer_log_probability(language_model, asked, max_length=max_length, batch_size=batch_size)
    rows = found.per_token.split([len(own) for own in wordings])
    cuts = [1 + len(record.paraphrases) for record in records]
    answers: list[str] = []
    if generated:
        measures.check_prompts(records)
        prompts = [record.messages[:-1] or record.prompt for record in records]
        answers = generate(language_model, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return Scored(
        tuple(records),
        torch.stack([row[0] for row in rows]) if rows else found.per_token,
        tuple(row[1:cut] if cut > 1 else row[:1] for row, cut in zip(rows, cuts, strict=True)),
        tuple(row[cut:] for row, cut in zip(rows, cuts, strict=True)),
        tuple(answers),
    )


def room(language_model: LanguageModel, records: Sequence[Record], most: int = 200) -> int:
    """Tokens that the context leaves for an answer to each record, at most TOFU's 200; 0 where one has no prompt."""
    from equipoise.language.encode import encode_prompts

    if not records or not all(record.prompt for record in records):
        return 0
    encoded, _ = encode_prompts(language_model, [record.messages[:-1] or record.prompt for record in records])
    return max(min(most, language_model.context - max(map(len, encoded))), 0)


@closed
def utility_numbers(
    kept: Mapping[str, Scored], convention: Convention = "tofu", *, stem: Callable[[str], str] | None = None
) -> dict[str, float]:
    """The nine numbers of model utility, by "SET_probability", "SET_rouge" and "SET_truth".

    kept: by "retain", "real_authors" and "world_facts". Raises BadInput for other sets.
    """
    if set(kept) != set(KEPT):
        odd = min(set(kept) ^ set(KEPT))
        raise BadInput(
            f"model utility is of {', '.join(KEPT)}; {odd!r} is missing or too much. {did_you_mean(odd, KEPT)}"
        )
    numbers = {}
    for name in KEPT:
        scored = kept[name]
        probability = scored.probability if name == "retain" else scored.probability_among_options
        numbers[f"{name}_probability"] = probability.mean().item()
        numbers[f"{name}_rouge"] = scored.rouge_recall(stem).mean().item()
        numbers[f"{name}_truth"] = measures.truth_utility(scored.truth_ratios(_MEANS[convention]))
    return numbers


def model_utility(numbers: Mapping[str, float]) -> float:
    """Harmonic mean, 0 as soon as one is 0; nan for none, or where one is undefined."""
    values = list(numbers.values())
    if not values or any(math.isnan(value) for value in values):
        return math.nan
    return 0.0 if 0 in values else len(values) / sum(1 / value for value in values)


def forget_quality(unlearned: Scored, retained: Scored) -> measures.ForgetQuality:
    """TOFU's forget quality of the forget set, from a model that forgot it and one trained without it."""
    return measures.forget_quality(unlearned.truth_ratios(), retained.truth_ratios())


def _nan() -> Any:
    return torch.tensor(math.nan, dtype=torch.float64)
