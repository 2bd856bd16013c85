"""Who goes on with solutions in `prm label`: a model rolled out here, or one that is asked by chat.

Both take beginnings and give completions; a solution is a completion of nothing. What a beginning yields does not depend on
what is drawn beside it: here it goes by the seed and its number; of a chat model equal beginnings have the same completions.

A model here, or one whose server can, goes on within its own turn: the beginning stands there as if it had written it. Most
servers start a new turn after a last one of the assistant; they are asked in a user's turn to go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from equipoise.chat.account import OWN
from equipoise.chat.calls import Call
from equipoise.data.records import Message
from equipoise.data.text import encodable
from equipoise.language.encode import encode_prompts
from equipoise.language.generate import check_room
from equipoise.language.rollouts import roll_out

if TYPE_CHECKING:
    from equipoise.chat.client import Chat
    from equipoise.data.problems import Problem
    from equipoise.language.model import LanguageModel
    from equipoise.reinforcement.prm_label_job import LabelSettings

SOLVE, COMPLETE = "solve", "complete"  # phases of an account
PREFILLED = (OWN, "vllm/", "sglang/")  # providers that go on within a last turn of the assistant
CHAT_NAMES = (*PREFILLED, "openai-api/", "mockllm/")  # no hub ids
GO_ON = "Go on with your solution from exactly where it stops. Do not repeat what is there, and do not start anew."
_STREAM = 6  # keeps these draws apart from others of the same seed


@dataclass(frozen=True, slots=True)
class Beginning:
    """A problem and what is written of its solution so far, "" for nothing. number: names its draws, from 0."""

    problem: Problem
    text: str
    number: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was written. ended: by itself, not at max_new_tokens. tokens: 0 where the account has them.

    refused: why there is nothing, where the provider took no such question; else "".
    """

    text: str
    ended: bool
    tokens: int = 0
    refused: str = ""


class Policy(Protocol):
    """Who goes on with solutions. source: for a reader; at_once: how many completions are best drawn together."""

    source: str
    at_once: int

    def check(self, beginnings: Sequence[Beginning], new_tokens: int) -> None:
        """Raises BadInput for the first that cannot be gone on with by so many tokens."""
        ...

    def shown(self, beginning: Beginning) -> str:
        """A beginning as it is read."""
        ...

    def draw(self, beginnings: Sequence[Beginning], samples: int) -> list[list[Drawn]]:
        """So many completions of each."""
        ...


class LocalPolicy:
    """A model of this process."""

    def __init__(self, language_model: LanguageModel, settings: LabelSettings) -> None:
        self.language_model, self._settings = language_model, settings
        self.source, self.at_once = language_model.source, settings.rollout_batch_size

    def check(self, beginnings: Sequence[Beginning], new_tokens: int) -> None:
        """Raises BadInput for the first that leaves no room in the context, or that a chat template refuses."""
        encoded, _ = encode_prompts(self.language_model, self.prompts(beginnings))
        check_room(self.language_model, encoded, new_tokens, [repr(each.problem.id) for each in beginnings])

    def shown(self, beginning: Beginning) -> str:
        """A beginning as it is read, with the marks of the chat template."""
        (ids,), _ = encode_prompts(self.language_model, self.prompts([beginning]))
        tokenizer: Any = self.language_model.tokenizer
        return tokenizer.decode(ids)

    def prompts(self, beginnings: Sequence[Beginning]) -> list[Any]:
        """What the model goes on with: turns, the last its own, or a text."""
        chat = self.language_model.uses_chat_template
        return [_begun(each) if chat or each.problem.messages else _plain(each) for each in beginnings]

    def draw(self, beginnings: Sequence[Beginning], samples: int) -> list[list[Drawn]]:
        """So many completions of each, rolled out together."""
        rolled = roll_out(
            self.language_model,
            self.prompts(beginnings),
            samples=samples,
            max_new_tokens=self._settings.max_new_tokens,
            temperature=self._settings.temperature,
            seed=[self._settings.seed, _STREAM],
            keys=[each.number for each in beginnings],
            batch_size=self._settings.rollout_batch_size,
        )
        rows = zip(rolled.texts, rolled.ended.tolist(), rolled.lengths.tolist(), strict=True)
        return _grouped([Drawn(encodable(text), ended, tokens) for text, ended, tokens in rows], samples)


class ChatPolicy:
    """A chat model. plain: it gets a problem and what is written so far as one text, without turns.

    by_turn: whether a user's turn asks it to go on with its own; None leaves that to who its provider is.
    """

    at_once = 256

    def __init__(self, chat: Chat, settings: LabelSettings, *, by_turn: bool | None, plain: bool) -> None:
        self.chat, self._settings, self._plain = chat, settings, plain
        self.by_turn = not plain and (not chat.name.startswith(PREFILLED) if by_turn is None else by_turn)
        self.source = f"{chat.name}, asked by chat"

    def check(self, beginnings: Sequence[Beginning], new_tokens: int) -> None:
        """What is too long is the provider's to say."""

    def shown(self, beginning: Beginning) -> str:
        """The turns that are sent."""
        return "\n".join(f"{turn.role}: {turn.content}" for turn in self.turns(beginning))

    def turns(self, beginning: Beginning) -> tuple[Message, ...]:
        """What it is asked."""
        if self._plain and not beginning.problem.messages:
            return (Message("user", _plain(beginning)),)
        begun = _begun(beginning)
        return (*begun, Message("user", GO_ON)) if beginning.text and self.by_turn else begun

    def calls(self, beginnings: Sequence[Beginning], samples: int) -> list[Call]:
        """Draws of other seeds are other samples of the same questions."""
        settings = self._settings
        first, limit = settings.seed * samples, settings.max_new_tokens
        return [
            Call(
                self.turns(each),
                COMPLETE if each.text else SOLVE,
                max_tokens=limit,
                temperature=settings.temperature,
                sample=first + number,
            )
            for each in beginnings
            for number in range(samples)
        ]

    def draw(self, beginnings: Sequence[Beginning], samples: int) -> list[list[Drawn]]:
        """So many completions of each. Raises WorkFailed when a call got no answer."""
        from equipoise.chat.client import answers

        replies = answers(self.chat, self.calls(beginnings, samples), f"{self.chat.name} goes on")
        begun = [each.text.strip() for each in beginnings for _ in range(samples)]
        drawn = [
            Drawn(
                encodable(reply.text.removeprefix(text).lstrip("\n") if text and self.by_turn else reply.text),
                reply.status != "cut",
                refused=f"{reply.status}: {reply.reason}" if reply.status in ("refused", "rejected") else "",
            )
            for text, reply in zip(begun, replies, strict=True)
        ]
        return _grouped(drawn, samples)


def _begun(beginning: Beginning) -> tuple[Message, ...]:
    """The turns of a conversation, the last of which is the solution so far."""
    asked = beginning.problem.asked
    turns = (Message("user", asked),) if isinstance(asked, str) else tuple(asked)
    return (*turns, Message("assistant", beginning.text)) if beginning.text else turns


def _plain(beginning: Beginning) -> str:
    """Problem and solution as one text, parted as `language.encode` parts prompt and completion."""
    prompt, text = beginning.problem.prompt.rstrip(" "), beginning.text
    return f"{prompt}{'' if not text or prompt[-1:].isspace() or text[:1].isspace() else ' '}{text}"


def _grouped(drawn: list[Drawn], samples: int) -> list[list[Drawn]]:
    return [drawn[first : first + samples] for first in range(0, len(drawn), samples)]
