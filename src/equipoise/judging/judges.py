"""Judges: a chat model that compares two answers or rates each by itself, and the log-probabilities of a local model."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING

from equipoise.chat.calls import Call, Message, Reply
from equipoise.chat.client import answers
from equipoise.chat.templates import Template
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.options import closed
from equipoise.core.rows import Rows
from equipoise.judging.biases import Bias
from equipoise.judging.pairs import shortened
from equipoise.judging.roles import Case, JudgeComparison, JudgeVerdict
from equipoise.judging.verdicts import Reading, parse_decision, parse_rating

if TYPE_CHECKING:
    from pathlib import Path

    from equipoise.chat.client import Chat
    from equipoise.language.encode import Example
    from equipoise.language.model import LanguageModel

UNASKED = ("refused", "rejected")  # the provider's doing, not a verdict
PROMPTS = files("equipoise.judging") / "prompts"


def pairwise_template(path: Path | None = None) -> Template:
    """The judge's prompt, or a user's own, which must have the slots question, answer_1 and answer_2. Raises BadInput."""
    template = Template.read(path or PROMPTS / "judge_pairwise.md")
    if set(template.slots) != {"question", "answer_1", "answer_2"}:
        raise BadInput(
            f"{path} has the slots {', '.join(template.slots) or 'none'}: a rubric has question, answer_1 and answer_2."
        )
    return template


class PairwiseJudge:
    """A chat model that sees both answers, reasons, and ends with "Decision: 1" or "Decision: 2".

    rubric: the prompt; debias: biases to warn of before it (the debias prompt of the card). An answer that was cut is read
    as far as it came. reading: of the decision, see `verdicts`.
    """

    @closed
    def __init__(
        self,
        chat: Chat,
        *,
        rubric: Template | None = None,
        debias: Sequence[Bias] = (),
        max_tokens: int = 1024,
        reading: Reading = "last",
    ) -> None:
        self.name = chat.name
        self._chat, self._max_tokens = chat, max_tokens
        self._reading: Reading = reading
        self._rubric = rubric or pairwise_template()
        self._warning = _warning(debias)
        self._explain = Template.read(PROMPTS / "explain.md")

    def compare(self, comparisons: Sequence[JudgeComparison], *, phase: str) -> list[JudgeVerdict]:
        calls = [Call(self._messages(each), phase, max_tokens=self._max_tokens) for each in comparisons]
        replies = answers(self._chat, calls, f"{self.name} judges")
        return [
            _unasked(each)
            if each.status in UNASKED
            else JudgeVerdict(parse_decision(each.text, self._reading), each.text)
            for each in replies
        ]

    def explain(self, cases: Sequence[Case]) -> list[str]:
        return explanations(self._chat, self._explain, cases, self._max_tokens)

    def _messages(self, comparison: JudgeComparison) -> tuple[Message, ...]:
        messages = self._rubric.render(
            question=comparison.question, answer_1=comparison.first, answer_2=comparison.second
        )
        if not self._warning:
            return messages
        *before, last = messages
        return (*before, Message(last.role, f"{self._warning}\n\n{last.content}"))


class PointwiseJudge:
    """A chat model that rates each answer by itself from 1 to 10; equal ratings are no verdict.

    It cannot prefer a place: both orders of a pair rest on the same two ratings.
    """

    def __init__(self, chat: Chat, *, max_tokens: int = 1024) -> None:
        self.name = chat.name
        self._chat, self._max_tokens = chat, max_tokens
        self._rubric = Template.read(PROMPTS / "judge_pointwise.md")
        self._explain = Template.read(PROMPTS / "explain.md")

    def compare(self, comparisons: Sequence[JudgeComparison], *, phase: str) -> list[JudgeVerdict]:
        calls = [
            Call(self._rubric.render(question=each.question, answer=answer), phase, max_tokens=self._max_tokens)
            for each in comparisons
            for answer in (each.first, each.second)
        ]
        replies = answers(self._chat, calls, f"{self.name} rates")
        return [_rated(first, second) for first, second in zip(replies[::2], replies[1::2], strict=True)]

    def explain(self, cases: Sequence[Case]) -> list[str]:
        return explanations(self._chat, self._explain, cases, self._max_tokens)


class LogProbJudge:
    """A local model's log-probability of "1" against "2" after the question which answer is better; no words are generated.

    margin is the difference in nats; a difference of exactly 0 is no verdict. A prompt longer than the model's context
    counts as not asked, and is not scored. Questions and answers are cut to `cut` words where given. chat: the same model
    for explanations; without one there are none. memory: a file that keeps every margin as soon as it is known, so that no
    prompt is scored twice. balanced: half the difference of the margins in both orders, which cannot prefer a place; small
    models often see little else. name: of the model in reports and in the memory, where it should not be the model's own.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        chat: Chat | None = None,
        cut: int | None = None,
        batch_size: int = 16,
        memory: Path | None = None,
        balanced: bool = False,
        name: str | None = None,
    ) -> None:
        self._scored, self._balanced = name or model.name, balanced
        self.name = f"{self._scored} (log-probabilities{', both orders' if balanced else ''})"
        self._model, self._chat, self._cut, self._batch_size = model, chat, cut, batch_size
        self._rubric = Template.read(PROMPTS / "judge_logprob.md")
        self._explain = Template.read(PROMPTS / "explain.md")
        self._margins = Margins(memory)

    def compare(self, comparisons: Sequence[JudgeComparison], *, phase: str) -> list[JudgeVerdict]:
        prompts = [self._prompt(each) for each in comparisons]
        margins = self._measured(prompts)
        if self._balanced:
            turned = [replace(each, first=each.second, second=each.first) for each in comparisons]
            others = self._measured([self._prompt(each) for each in turned])
            margins = [(one - other) / 2 for one, other in zip(margins, others, strict=True)]
        return [
            JudgeVerdict(None, asked=False, why=self._too_long(prompt)) if math.isnan(margin) else _by_margin(margin)
            for prompt, margin in zip(prompts, margins, strict=True)
        ]

    def _too_long(self, prompt: tuple[Message, ...]) -> str:
        given = self._encoded([prompt])[0]
        return (
            f"a prompt of {len(given.input_ids) + given.cut - 1} tokens, and {self._model.context} fit with the verdict"
        )

    def _measured(self, prompts: Sequence[tuple[Message, ...]]) -> list[float]:
        """Margins of prompts, scored where they are not known yet; each is kept as soon as its batch is done."""
        from equipoise.core.progress import progress

        keys = [f"{self._scored}/{_digest(prompt)}" for prompt in prompts]
        new = list({k: p for k, p in zip(keys, prompts, strict=True) if k not in self._margins.known}.items())
        # Longest first: memory fails early, and prompts of one batch are of about one length.
        new.sort(key=lambda each: -sum(len(message.content) for message in each[1]))
        with progress(f"{self.name} judges", total=len(new), unit="prompts") as bar:
            for first in range(0, len(new), self._batch_size):
                batch = new[first : first + self._batch_size]
                self._margins.add({k: m for (k, _), m in zip(batch, self._score([p for _, p in batch]), strict=True)})
                bar.advance(len(batch))
        return [self._margins.known[key] for key in keys]

    def explain(self, cases: Sequence[Case]) -> list[str]:
        if self._chat is None:
            return [""] * len(cases)
        return explanations(self._chat, self._explain, cases, 256)

    def _prompt(self, comparison: JudgeComparison) -> tuple[Message, ...]:
        texts = (comparison.question, comparison.first, comparison.second)
        question, first, second = (text if self._cut is None else shortened(text, self._cut) for text in texts)
        return self._rubric.render(question=question, answer_1=first, answer_2=second)

    def _score(self, prompts: Sequence[tuple[Message, ...]]) -> list[float]:
        """Nats of "1" over "2"; nan where the prompt does not fit. Raises WorkFailed for a model without numbers."""
        from equipoise.language.score import log_likelihoods

        examples = self._encoded(prompts)
        fitting = [example for example in examples if not example.cut]
        sums = iter(log_likelihoods(self._model, fitting, batch_size=len(fitting))[0].tolist()) if fitting else iter(())
        scored = [math.nan if example.cut else next(sums) for example in examples]
        if any(not math.isfinite(nats) and not example.cut for nats, example in zip(scored, examples, strict=True)):
            raise WorkFailed(
                f"{self.name}: a log-probability is not finite; the model is damaged, or overflows its dtype."
            )
        return [one - two for one, two in zip(scored[::2], scored[1::2], strict=True)]

    def _encoded(self, prompts: Sequence[tuple[Message, ...]]) -> list[Example]:
        """Two examples a prompt, which the word "1" and the word "2" end."""
        from equipoise.data.records import Record
        from equipoise.language.encode import encode

        chat = self._model.uses_chat_template
        records = [
            Record(
                id=f"prompt {i}",
                prompt=prompt[-1].content,
                completion=word,
                messages=(*prompt, Message("assistant", word)) if chat else (),
            )
            for i, prompt in enumerate(prompts)
            for word in ("1", "2")
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that prompts were cut: those get no verdict
            return encode(self._model, records, max_length=self._model.context, end=False)


class Margins:
    """Margins by key, in the rows of a file if one is named; those of a damaged row are not known."""

    def __init__(self, path: Path | None) -> None:
        self._rows = Rows(path)
        self.known = {key: float(value) for row in self._rows for key, value in row["margins"].items()}

    def add(self, margins: Mapping[str, float]) -> None:
        self._rows.add({"margins": {key: str(value) for key, value in margins.items()}})
        self.known.update(margins)


def explanations(chat: Chat, template: Template, cases: Sequence[Case], max_tokens: int) -> list[str]:
    """What a chat model says when asked why it chose as it did (DeeperExplain); "" where no answer came."""
    calls = [
        Call(
            template.render(
                question=case.comparison.question,
                answer_1=case.comparison.first,
                answer_2=case.comparison.second,
                choice=str(case.choice),
                reasoning=case.reasoning or "(nothing)",
            ),
            "explain",
            max_tokens=max_tokens,
        )
        for case in cases
    ]
    return [reply.text for reply in answers(chat, calls, f"{chat.name} explains its errors")]


def _digest(messages: tuple[Message, ...]) -> str:
    serialized = json.dumps([(message.role, message.content) for message in messages])
    return hashlib.sha256(serialized.encode()).hexdigest()


def _by_margin(margin: float, reasoning: str = "") -> JudgeVerdict:
    return JudgeVerdict(1 if margin > 0 else 2 if margin < 0 else None, reasoning, margin)


def _unasked(reply: Reply) -> JudgeVerdict:
    return JudgeVerdict(None, asked=False, why=reply.reason or reply.status)


def _rated(first: Reply, second: Reply) -> JudgeVerdict:
    for reply in (first, second):
        if reply.status in UNASKED:
            return _unasked(reply)
    ratings = parse_rating(first.text), parse_rating(second.text)
    reasoning = f"Answer 1:\n{first.text}\n\nAnswer 2:\n{second.text}"
    if ratings[0] is None or ratings[1] is None:
        return JudgeVerdict(None, reasoning)
    return _by_margin(ratings[0] - ratings[1], reasoning)


def _warning(biases: Sequence[Bias]) -> str:
    if not biases:
        return ""
    template = Template.read(PROMPTS / "debias.md")
    return template.render(biases=[f"{bias.name}: {bias.definition}" for bias in biases])[-1].content.strip()
