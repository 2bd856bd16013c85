"""The teacher as a chat model: it rewrites answers, names the bias behind a wrong choice, and tells names apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from equipoise.chat.calls import Call, Reply
from equipoise.chat.client import answers
from equipoise.chat.templates import Template
from equipoise.data.text import after_thinking, printable
from equipoise.judging.biases import PLACEBO, Bias
from equipoise.judging.judges import PROMPTS
from equipoise.judging.pairs import Pair
from equipoise.judging.roles import Case, Proposal

if TYPE_CHECKING:
    from equipoise.chat.client import Chat

NAME_WORDS = 6  # a name that is a sentence is cut to this
_PREFACE = re.compile(
    r"^(?:here(?:'s| is)[^\n:]{0,60}:|\**(?:rewritten|revised) (?:answer|response):?\**:?)\s*\n+", re.I
)
_FENCED = re.compile(r"```(?:text|markdown|md)?\n(.*)\n```", re.DOTALL)
_FENCE = re.compile(r"^```(.*)$", re.MULTILINE)


class Identified(BaseModel):
    """The answer to identify.md."""

    whether: Literal["yes", "no"]
    name: str = Field(max_length=80)
    definition: str = Field(max_length=400)


class Merged(BaseModel):
    """The answer to merge.md."""

    decision: Literal[0, 1]


class ChatTeacher:
    """Any chat model as BiasScope's teacher. max_tokens: of a rewrite, at most; a rewrite that was cut is none."""

    def __init__(self, chat: Chat, *, max_tokens: int = 4096) -> None:
        self.name = chat.name
        self._chat, self._max_tokens = chat, max_tokens
        self._perturb, self._placebo, self._identify, self._merge = (
            Template.read(PROMPTS / f"{name}.md") for name in ("perturb", "placebo", "identify", "merge")
        )

    def perturb(self, wanted: Sequence[tuple[Pair, Bias]], *, phase: str) -> list[str | None]:
        calls = [
            Call(
                self._placebo.render(question=pair.question, answer=pair.rejected)
                if bias == PLACEBO
                else self._perturb.render(
                    question=pair.question,
                    answer=pair.rejected,
                    bias_name=bias.name,
                    bias_definition=bias.definition,
                    manifestations=list(bias.manifestations) or [bias.definition],
                ),
                phase,
                # Some four times the answer's length: a weak teacher that repeats itself for ever is stopped there.
                max_tokens=min(self._max_tokens, 256 + len(pair.rejected)),
            )
            for pair, bias in wanted
        ]
        return [_rewrite(reply) for reply in answers(self._chat, calls, f"{self.name} rewrites")]

    def identify(self, cases: Sequence[Case]) -> list[Proposal]:
        calls = [
            Call(
                self._identify.render(
                    question=case.comparison.question,
                    answer_1=case.comparison.first,
                    answer_2=case.comparison.second,
                    choice=str(case.choice),
                    right=str(3 - case.choice),
                    reasoning=case.reasoning or "(none)",
                    explanation=case.explanation or "(none)",
                ),
                "identify",
                schema=Identified,
                max_tokens=256,
            )
            for case in cases
        ]
        return [_proposal(reply) for reply in answers(self._chat, calls, f"{self.name} names biases")]

    def same(self, couples: Sequence[tuple[Bias, Bias]]) -> list[bool | None]:
        calls = [
            Call(
                self._merge.render(
                    new_name=new.name,
                    new_definition=new.definition,
                    known_name=known.name,
                    known_definition=known.definition,
                ),
                "merge",
                schema=Merged,
                max_tokens=32,
            )
            for new, known in couples
        ]
        replies = answers(self._chat, calls, f"{self.name} compares biases")
        return [reply.value.decision == 0 if reply.status == "answered" else None for reply in replies]


def _rewrite(reply: Reply) -> str | None:
    """The rewritten answer without thinking, a preface or a fence around the whole; None unless it is complete."""
    if reply.status != "answered" or (answer := after_thinking(reply.text)) is None:
        return None
    text = _PREFACE.sub("", answer.strip()).strip()
    if whole := _FENCED.fullmatch(text):
        first = _FENCE.search(whole[1])
        if first is None or first[1].strip():  # a bare one closes the block that the text begins with
            text = whole[1]
    return text.strip() or None


def _proposal(reply: Reply) -> Proposal:
    if reply.status != "answered":
        return Proposal(None, failed=True)
    identified: Identified = reply.value
    name, definition = " ".join(printable(identified.name).split()[:NAME_WORDS]), printable(identified.definition)
    if identified.whether == "no":
        return Proposal(None)
    if not name or not definition:  # "yes" without saying to what is no proposal; the released code keeps such
        return Proposal(None, failed=True)
    return Proposal(Bias(name, definition))
