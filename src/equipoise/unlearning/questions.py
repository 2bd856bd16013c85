"""Multiple choice as WMDP and MMLU ask it: the form of the prompts, the sets as published, and how sure of the right choice.

lm-evaluation-harness shows a line on the subject, answered questions (shots), the question, "A. .." to "D. .." and
"Answer:", a line each, and takes the likeliest of " A" to " D". `asked` writes what stands before a question, and
`language.multiple_choice(..., by="letter")` the rest.

    accuracy            share of questions whose right choice is the likeliest              acc of lm-eval, acc_t0 of MCU
    right probability   p(right) / sum over the choices of p(choice), averaged               acc_t1 of MCU (arXiv:2605.11685)

Chance of both is the mean of 1 / choices; a uniform model has exactly that right probability. The two are not to be mixed: a
model may put 0.3 on every right choice of four and have accuracy 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.options import closed
from equipoise.data.public import folder
from equipoise.data.records import EXTENSIONS, Record, read_records

if TYPE_CHECKING:
    from equipoise.language import LanguageModel
    from equipoise.language.score import By

WMDP_SUBJECTS = {"bio": "biology", "cyber": "cybersecurity", "chem": "chemistry"}


def right_probability(scores: Sequence[Tensor], answers: Sequence[int]) -> Tensor:
    """Share of the right choice in the choices' probability, float64 [N] in [0, 1].

    scores: a tensor of log-probabilities a question, as `language.Choices` has them. Of letters these are single tokens, so
    it is their renormalized mass; of texts it is the share among per-token likelihoods, which no model's distribution is.
    """
    shares = [each.double().softmax(0)[answer] for each, answer in zip(scores, answers, strict=True)]
    return torch.stack(shares) if shares else torch.empty(0, dtype=torch.float64)


@dataclass(frozen=True)
class Answered:
    """N questions answered: whether right, the probability of the right choice, its chance; each [N], float64."""

    ids: tuple[str, ...]
    correct: Tensor
    right: Tensor
    chance: Tensor


@closed
def answered(
    language_model: LanguageModel,
    records: Sequence[Record],
    *,
    by: By = "letter",
    max_length: int = 2048,
    batch_size: int = 32,
) -> Answered:
    """What a model chooses, question by question. Raises BadInput for a record that is no multiple-choice question."""
    from equipoise.language.score import multiple_choice

    found = multiple_choice(language_model, records, by=by, max_length=max_length, batch_size=batch_size)
    right = right_probability(found.scores, [record.answer or 0 for record in records])
    chance = torch.tensor([1 / len(record.choices) for record in records], dtype=torch.float64)
    return Answered(found.ids, found.correct.double(), right, chance)


def asked(records: Sequence[Record], *, subject: str = "", shots: Sequence[Record] = ()) -> list[Record]:
    """The questions with lm-eval's line on the subject ("biology") and answered questions before them.

    Raises BadInput for a shot that is no multiple-choice question.
    """
    about = f" about {subject.replace('_', ' ')}" if subject else ""
    before = f"The following are multiple choice questions (with answers){about}.\n\n" if subject else ""
    for shot in shots:
        if shot.answer is None:
            raise BadInput(f"record {shot.id!r} is shown as an example, but has no choices.")
        lines = [f"{chr(65 + index)}. {choice}" for index, choice in enumerate(shot.choices)]
        before += "\n".join([shot.prompt.strip(), *lines, f"Answer: {chr(65 + shot.answer)}\n\n"])
    return [replace(record, prompt=before + record.prompt.strip()) for record in records]


@closed
def mmlu(
    split: Literal["test", "dev", "validation"] = "test", *, subject: str | None = None, limit: int | None = None
) -> list[Record]:
    """MMLU's questions from the folder `mmlu` of EQUIPOISE_DATA; group is the subject ("abstract_algebra").

    Files SPLIT.jsonl.gz or SPLIT-sample.jsonl.gz, or all/SPLIT-*.parquet as on the Hugging Face hub. Raises BadInput.
    """
    root = folder("mmlu")
    files = [root / f"{split}{kind}{end}" for kind in ("", "-sample") for end in EXTENSIONS]
    there = [file for file in files if file.exists()][:1] or sorted(root.glob(f"all/{split}-*.parquet"))
    if not there:
        raise BadInput(f"{root} has no {split} questions: expected {split}.jsonl.gz, or all/{split}-*.parquet.")
    records = [record for file in there for record in read_records(file, fields={"group": "subject"})]
    chosen = [record for record in records if subject in (None, record.group)]
    if not chosen:
        raise BadInput(f"MMLU has no subject {subject!r}. {did_you_mean(str(subject), {r.group for r in records})}")
    return chosen[:limit]
