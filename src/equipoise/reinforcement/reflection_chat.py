"""A chat model as the judge of reflections (`reflection`): it has to quote the words by which a step is corrected.

    judge = ChatJudge(chat)
    verdicts = reflections(judge, asked, outcomes)
    judge.unquoted                                      how often it said so, and its words stand nowhere

The prompt is ours, since the paper's is not public: it wants correction or negation, not a mere look back. The model answers
at temperature 0 with {"reflects": bool, "at_step": int | null, "quote": str}. A quote that stands in no step of the
continuation, white space aside, is R = 0: what is taken from the labels can be shown.

What problems and solutions say is data. Each of their lines begins with "| " in the prompt, so that none can pose as a line
of the prompt; and what looks like a chat template's mark ("<|im_end|>", "[/INST]") gets a blank, so that none ends the turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from pydantic import BaseModel

from equipoise.chat.calls import Call, Reply
from equipoise.chat.client import answers
from equipoise.chat.templates import Template
from equipoise.core.errors import BadInput
from equipoise.data.text import defused
from equipoise.reinforcement.reflection import NO_REFLECTION, ContinuedSolution, Reflection

if TYPE_CHECKING:
    from equipoise.chat.client import Chat

PROMPT = files("equipoise.reinforcement") / "prompts" / "reflection.md"
PHASE = "judge"
MARK = "| "
_SLOTS = {"tested", "problem", "steps", "continuation"}
_QUOTED = re.compile(rf"^\s*{re.escape(MARK.strip())}\s?", re.MULTILINE)


class ReflectionAnswer(BaseModel):
    """The answer to reflection.md. at_step: as the steps are numbered there, from 1 for the first of the solution."""

    reflects: bool
    at_step: int | None
    quote: str


class ChatJudge:
    """Any chat model. prompt: with slots tested, problem, steps and continuation. max_tokens: of an answer.

    Of all that it was asked (`asked`): unquoted, how often it saw a reflection and quoted no words of the continuation;
    invalid, how often its answer was no such object; unasked, how often the provider did not take the question. All three
    are R = 0.
    """

    def __init__(self, chat: Chat, *, prompt: Template | None = None, max_tokens: int = 512) -> None:
        """Raises BadInput for a prompt with other slots."""
        self.name = chat.name
        self.asked = self.unquoted = self.invalid = self.unasked = 0
        self._chat, self._max_tokens, self._prompt = chat, max_tokens, prompt or Template.read(PROMPT)
        if self._prompt.slots.keys() != _SLOTS:
            raise BadInput(f"{self._prompt.name} needs the slots {', '.join(sorted(_SLOTS))}, and no others.")

    def __call__(self, asked: Sequence[ContinuedSolution], /) -> list[Reflection]:
        """Verdicts in order; where nothing was added nothing is asked. Raises WorkFailed when a call got no answer."""
        chosen = [each for each in asked if each.continuation]
        calls = [self._call(each) for each in chosen]
        replies = answers(self._chat, calls, f"{self.name} looks for reflections") if calls else []
        self.asked += len(calls)
        verdicts = iter([self._verdict(each, reply) for each, reply in zip(chosen, replies, strict=True)])
        return [next(verdicts) if each.continuation else NO_REFLECTION for each in asked]

    def counts(self) -> dict[str, int]:
        """What came of its answers, in words."""
        return {
            "asked": self.asked,
            "with a quote that stands nowhere": self.unquoted,
            "not of the form": self.invalid,
            "not given": self.unasked,
        }

    def _call(self, asked: ContinuedSolution) -> Call:
        tested = len(asked.steps)
        messages = self._prompt.render(
            tested=tested,
            problem=_data(asked.problem),
            steps=_numbered(asked.steps, 1),
            continuation=_numbered(asked.continuation, tested + 1),
        )
        return Call(messages, PHASE, schema=ReflectionAnswer, max_tokens=self._max_tokens, temperature=0.0)

    def _verdict(self, asked: ContinuedSolution, reply: Reply) -> Reflection:
        if reply.status != "answered":
            self.unasked += reply.status in ("refused", "rejected")
            self.invalid += reply.status not in ("refused", "rejected")
            return NO_REFLECTION
        answer: ReflectionAnswer = reply.value
        if not answer.reflects:
            return NO_REFLECTION
        found = _find(answer.quote, asked.continuation, (answer.at_step or 0) - len(asked.steps) - 1)
        if found is None:
            self.unquoted += 1
            return NO_REFLECTION
        return Reflection(True, *found)


def _find(quote: str, continuation: Sequence[str], stated: int) -> tuple[int, str] | None:
    """The step in which a quote stands, the stated one first, and its words as they stand there; but for white space."""
    characters = "".join(_QUOTED.sub("", quote).split())
    if not re.search(r"\w", characters):
        return None
    words = r"\s*".join(map(re.escape, characters))
    # A quote that begins or ends with a word or a number has all of it: 8 does not stand in 18, nor 9 in 9.5.
    pattern = re.compile(rf"(?:(?<!\w)(?<!\d\.)|(?!\w)){words}(?:(?!\w|\.\d)|(?<!\w))")
    places = sorted(range(len(continuation)), key=lambda place: place != stated)
    matches = ((place, pattern.search(continuation[place])) for place in places)
    return next(((place, match[0]) for place, match in matches if match), None)


def _numbered(steps: Sequence[str], first: int) -> str:
    return "\n".join(f"Step {number}\n{_data(step)}" for number, step in enumerate(steps, start=first))


def _data(text: str) -> str:
    """A text as quoted lines, whatever it takes for a line end."""
    return "\n".join(MARK + defused(line) for line in text.splitlines() or [""])
