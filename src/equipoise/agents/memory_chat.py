"""Chat models that write memories: facts and what becomes of them, notes and their links, notes of sessions.

    build("facts", reader=reader, embedder=vectors, extractor=ChatExtractor(chat), decider=ChatDecider(chat))
    build(name, reader=reader, embedder=vectors, **written_by(name, chat))        the same, whatever is built

Every answer is a JSON object of a stated form, asked for once more where it is none. One that still is none counts as
`unparsable`, and one that the provider did not give as `not_given`: no fact is drawn out, nothing is merged or linked, and a
session has no note. Amounts are calls, prompt_tokens and generated_tokens by the counter of the memories.

Prompts are ours, in `prompts/`, with the published roles.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from equipoise.agents.memory import MemoryItem, TokenCount, turn_text, words
from equipoise.agents.memory_facts import Fact, FactDecision, SessionFacts
from equipoise.agents.memory_notes import Note, NoteLinks, SessionNote
from equipoise.chat.calls import Call
from equipoise.chat.client import answers
from equipoise.chat.templates import Template
from equipoise.data.histories import Session
from equipoise.data.text import defused

if TYPE_CHECKING:
    from equipoise.chat.client import Chat

PROMPTS = files("equipoise.agents") / "prompts"
_LINES = re.compile(r"\s*\n\s*")


class FactAnswer(BaseModel):
    """A fact, and the numbers of the turns it was said in."""

    fact: str
    turns: list[int]


class FactsAnswer(BaseModel):
    """The answer to memory_facts.md."""

    facts: list[FactAnswer]


class DecisionAnswer(BaseModel):
    """The answer to memory_decide.md. number: of a fact that is held, from 1. text: an updated one from now on."""

    action: Literal["add", "update", "delete", "none"]
    number: int | None
    text: str


class NoteAnswer(BaseModel):
    """The answer to memory_note.md."""

    keywords: list[str]
    tags: list[str]
    context: str


class RewrittenAnswer(BaseModel):
    """A note that is written anew, by its number from 1."""

    number: int
    context: str
    tags: list[str]


class LinksAnswer(BaseModel):
    """The answer to memory_links.md. linked: numbers from 1. tags: of the new note; [] as they are."""

    linked: list[int]
    tags: list[str]
    rewritten: list[RewrittenAnswer]


class SessionAnswer(BaseModel):
    """The answer to memory_session.md."""

    title: str
    summary: str
    tags: list[str]


class _Asking:
    """A chat with prompts whose answers are objects."""

    def __init__(self, chat: Chat, *, count: TokenCount = words, max_tokens: int = 2048) -> None:
        """count: of amounts; that of the memory. max_tokens: of an answer."""
        self.name = chat.name
        self._chat, self._count, self._max_tokens = chat, count, max_tokens

    def ask(self, prompt: str, phase: str, schema: type[BaseModel], **slots: Any) -> tuple[Any, dict[str, float]]:
        """The object, None where none came, and amounts. Raises WorkFailed when the call got no answer."""
        messages = Template.read(PROMPTS / prompt).render(**slots)
        call = Call(messages, phase, schema=schema, max_tokens=self._max_tokens)
        (reply,) = answers(self._chat, [call], f"{self.name} writes", name=self.name)
        amounts: dict[str, float] = {
            "calls": 1,
            "prompt_tokens": sum(self._count(message.content) for message in messages),
            "generated_tokens": self._count(reply.text),
            "unparsable": reply.status in ("cut", "invalid"),
            "not_given": reply.status in ("refused", "rejected"),
        }
        return (reply.value if reply.status == "answered" else None), amounts


class ChatExtractor(_Asking):
    """Draws out facts, writes notes, sums up sessions."""

    def facts(self, session: Session) -> SessionFacts:
        """Short statements that stand by themselves, with the turns they were said in."""
        turns = [defused(_line(turn_text(turn, session.time))) for turn in session.turns]
        if not turns:
            return SessionFacts(())
        found, amounts = self.ask("memory_facts.md", "extract", FactsAnswer, turns=turns)
        facts = [] if found is None else [(_line(each.fact), each.turns) for each in found.facts]
        ids = [turn.id for turn in session.turns]
        return SessionFacts(
            tuple(Fact(text, tuple(ids[n - 1] for n in _known(numbers, len(ids)))) for text, numbers in facts if text),
            amounts,
        )

    def note(self, text: str) -> Note:
        """Keywords, tags and a line of context."""
        found, amounts = self.ask("memory_note.md", "extract", NoteAnswer, text=defused(text))
        if found is None:
            return Note(text, amounts=amounts)
        return Note(text, _names(found.keywords), _names(found.tags), _line(found.context), amounts)

    def session_note(self, session: Session) -> SessionNote:
        """A title, a summary, tags."""
        text = "\n".join(defused(turn_text(turn, session.time)) for turn in session.turns)
        if not text:
            return SessionNote("", "")
        found, amounts = self.ask("memory_session.md", "extract", SessionAnswer, text=text)
        if found is None:
            return SessionNote("", "", amounts=amounts)
        return SessionNote(_line(found.title), found.summary.strip(), _names(found.tags), amounts)


class ChatDecider(_Asking):
    """Merges a fact with those that are held, and links a note to the nearest."""

    def decide(self, fact: Fact, held: Sequence[MemoryItem]) -> FactDecision:
        """A decision that names no fact that was shown, or updates one to nothing, counts as unparsable."""
        shown = [defused(_line(item.text)) for item in held]
        found, amounts = self.ask("memory_decide.md", "decide", DecisionAnswer, fact=defused(fact.text), held=shown)
        if found is None or found.action in ("add", "none"):
            return FactDecision("none" if found is None else found.action, amounts=amounts)
        text = _line(found.text)
        if not _known([found.number], len(held)) or (found.action == "update" and not text):
            return FactDecision("none", amounts=amounts | {"unparsable": 1})
        return FactDecision(found.action, found.number - 1, text, amounts)

    def link(self, note: Note, held: Sequence[Note]) -> NoteLinks:
        """Numbers of notes that were not shown are passed over."""
        shown = [defused(_line(each.printed())) for each in held]
        found, amounts = self.ask("memory_links.md", "decide", LinksAnswer, note=defused(note.printed()), held=shown)
        if found is None:
            return NoteLinks(amounts=amounts)
        linked = tuple(number - 1 for number in _known(found.linked, len(held)))
        rewritten = {
            each.number - 1: (_line(each.context), _names(each.tags))
            for each in found.rewritten
            if _known([each.number], len(held))
        }
        return NoteLinks(linked, _names(found.tags), rewritten, amounts)


def written_by(name: str, chat: Chat, *, count: TokenCount = words) -> dict[str, Any]:
    """The extractor and the decider that `memory_systems.build` wants for a memory; those that it wants, {} for raw text."""
    wanted = {"facts": ("extractor", "decider"), "notes": ("extractor", "decider"), "session-notes": ("extractor",)}
    made = {"extractor": ChatExtractor(chat, count=count), "decider": ChatDecider(chat, count=count)}
    return {part: made[part] for part in wanted.get(name, ())}


def _line(text: str) -> str:
    return _LINES.sub(" ", text).strip()


def _names(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for text in texts if (name := _line(text))))


def _known(numbers: Sequence[int | None], most: int) -> list[int]:
    """Those of the numbers that are from 1 to the most, each once."""
    return list(dict.fromkeys(number for number in numbers if number is not None and 1 <= number <= most))
