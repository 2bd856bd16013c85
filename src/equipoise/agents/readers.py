"""Who answers from what a memory printed: a chat model with one prompt for all memories, or the parser of a made world.

    reader = ChatReader(chat)                  the words of an answer, or the letter of an option
    reader = ExactReader(parser)               the newest item that says what is asked for; else a guess among the options

Prompts are ours, in `prompts/`, with the roles that the papers give them: an expert who answers from the context alone,
briefly, gives dates in full, holds to the newest of two notes that contradict, and says so where they do not say it.
"""

from __future__ import annotations

import hashlib
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Protocol

from equipoise.agents.memory import MemoryAnswer, MemoryItem
from equipoise.chat.calls import Call, Reply
from equipoise.chat.client import answers
from equipoise.chat.templates import Template
from equipoise.core.errors import BadInput
from equipoise.data.answers import contains, matches
from equipoise.data.final_answer import choice
from equipoise.data.histories import MemoryQuestion
from equipoise.data.records import Message
from equipoise.data.text import after_thinking, defused

if TYPE_CHECKING:
    from equipoise.chat.client import Chat

PROMPTS = files("equipoise.agents") / "prompts"
PHASE = "read"
UNKNOWN = "Not mentioned."  # what a reader is told to say where the notes do not say it
NOTHING = "(There are no notes.)"
_ABSTAIN = f"If the notes do not say it, reply with: {UNKNOWN}"
_GUESS = "If the notes do not say it, give the likeliest answer."


class ChatReader:
    """A chat model. One call a question, at temperature 0; stored answers of its record are not asked for again.

    abstain: it is told to reply UNKNOWN where the notes do not say what was asked; else to give the likeliest answer, as it
    always is where there are options. prompt: with the slots context, now, question and unknown; choice_prompt: with
    context, now, question and options. `counts` tells what came of its answers.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        abstain: bool = True,
        prompt: Template | None = None,
        choice_prompt: Template | None = None,
        max_tokens: int = 512,
    ) -> None:
        """Raises BadInput for a prompt with other slots."""
        self.name = chat.name
        self._chat, self._unknown, self._max_tokens = chat, _ABSTAIN if abstain else _GUESS, max_tokens
        self._prompt = prompt or Template.read(PROMPTS / "memory_answer.md")
        self._choice_prompt = choice_prompt or Template.read(PROMPTS / "memory_choice.md")
        for template, own in ((self._prompt, "unknown"), (self._choice_prompt, "options")):
            if template.slots.keys() != {"context", "now", "question", own}:
                raise BadInput(f"{template.name} needs the slots context, now, question, {own}, and no others.")
        self._counted = Counter[str]()

    def read(
        self, question: MemoryQuestion, items: Sequence[MemoryItem], context: str, now: datetime
    ) -> tuple[str, int | None]:
        """Its words without its thinking, "" where none came; of a choice the option whose letter it gave.

        Raises WorkFailed when the call got no answer, which is then asked for by the next run; BadInput for more options
        than letters.
        """
        (said,) = self.read_all([(question, MemoryAnswer("", tuple(items), context), now)])
        return said

    def read_all(self, asked: Sequence[tuple[MemoryQuestion, MemoryAnswer, datetime]]) -> list[tuple[str, int | None]]:
        """The same of several questions at once, each from the context of what was found for it. Raises as `read` does."""
        calls = [self._call(question, found.context, now) for question, found, now in asked]
        replies = answers(self._chat, calls, f"{self.name} reads", name=self.name)
        return [self._said(question, reply) for (question, _, _), reply in zip(asked, replies, strict=True)]

    def _call(self, question: MemoryQuestion, context: str, now: datetime) -> Call:
        messages = asking(question, context, now, self._prompt, self._choice_prompt, unknown=self._unknown)
        return Call(messages, PHASE, max_tokens=self._max_tokens)

    def _said(self, question: MemoryQuestion, reply: Reply) -> tuple[str, int | None]:
        text = (after_thinking(reply.text) or "").strip()
        self._counted["asked"] += 1
        if reply.status in ("refused", "rejected"):
            self._counted["not given"] += 1
            return "", None
        self._counted["cut"] += reply.status == "cut"
        chosen = letter(text, len(question.options)) if question.options else None
        self._counted["without a letter"] += bool(question.options) and chosen is None
        self._counted["not mentioned"] += matches(text, UNKNOWN)
        return text, chosen

    def counts(self) -> dict[str, int]:
        """What came of its answers, in words."""
        return {
            name: self._counted[name] for name in ("asked", "not given", "cut", "without a letter", "not mentioned")
        }


def asking(
    question: MemoryQuestion,
    context: str,
    now: datetime,
    prompt: Template | None = None,
    choice_prompt: Template | None = None,
    *,
    unknown: str = _ABSTAIN,
) -> tuple[Message, ...]:
    """What a reader is asked: of a question with options by `choice_prompt`, else by `prompt`; without them, by ours.

    unknown: what to do where the context does not tell. Raises BadInput for more options than letters.
    """
    if len(question.options) > len(string.ascii_uppercase):
        raise BadInput(f"{question.id!r} has {len(question.options)} options, and there are 26 letters for them.")
    told = {
        "context": defused(context) or NOTHING,
        "now": f"{now:%Y-%m-%d %H:%M}",
        "question": defused(question.text),
    }
    if question.options:
        lettered = zip(string.ascii_uppercase, question.options, strict=False)
        told["options"] = "\n".join(f"{letter}) {defused(option)}" for letter, option in lettered)
        return (choice_prompt or Template.read(PROMPTS / "memory_choice.md")).render(**told)
    return (prompt or Template.read(PROMPTS / "memory_answer.md")).render(**told, unknown=unknown)


def letter(text: str, options: int) -> int | None:
    """The place of the option whose letter a text chooses; None for none, for two that contradict, and beyond the last."""
    chosen = choice(text)
    place = None if chosen is None else string.ascii_uppercase.index(chosen)
    return place if place is not None and place < options else None


class WorldParser(Protocol):
    """Whoever reads the texts of a made world exactly. name: of the world."""

    name: str

    def asked(self, question: MemoryQuestion) -> str | None:
        """What a question asks for, such as "time of the clinic"; None where the parser cannot tell."""
        ...

    def said(self, text: str) -> Mapping[str, str]:
        """What a text says of such things; of one that it says twice, the last."""
        ...


class ExactReader:
    """The newest item that says what is asked for; of one moment, the last printed. Without a model, for studies.

    Where no item says it, or what it says is no option: the answer is "" and, where there are options, one of those that are
    named in the context, else of all, drawn by a hash of the question's id.
    """

    def __init__(self, parser: WorldParser) -> None:
        self.name = f"exact reader of {parser.name}"
        self._parser = parser

    def read(
        self, question: MemoryQuestion, items: Sequence[MemoryItem], context: str, now: datetime
    ) -> tuple[str, int | None]:
        """What the newest item says, and the option that says the same."""
        asked, text = self._parser.asked(question), ""
        order = sorted(range(len(items)), key=lambda place: (items[place].time, place), reverse=True)
        if asked is not None:
            said = (self._parser.said(items[place].text) for place in order)
            text = next((each[asked] for each in said if asked in each), "")
        if not question.options:
            return text, None
        places = range(len(question.options))
        if text and (right := [place for place in places if matches(question.options[place], text)]):
            return text, right[0]
        among = [place for place in places if contains(context, question.options[place])] or [*places]
        digest = hashlib.sha256(question.id.encode(errors="surrogatepass")).digest()
        return text, among[int.from_bytes(digest[:8], "big") % len(among)]
