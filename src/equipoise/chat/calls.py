"""What is asked of a chat model and what comes back: plain values that can be stored, compared and replayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from equipoise.core.options import check_fields
from equipoise.data.records import Message

if TYPE_CHECKING:
    from pydantic import BaseModel

Status = Literal["answered", "cut", "invalid", "refused", "rejected", "failed"]


class ToldToken(NamedTuple):
    """A token of an answer with its log-probability as the provider tells it, and the likeliest ones at its place."""

    text: str
    log_prob: float
    likeliest: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One question to one model. phase: where in the pipeline it belongs, for the account.

    schema: a pydantic model that the answer must satisfy as JSON. sample: tells repeated draws of one question apart.
    likeliest: how many of the likeliest tokens to tell with each token of the answer, 0 for no tokens.
    """

    messages: tuple[Message, ...]
    phase: str
    schema: type[BaseModel] | None = None
    max_tokens: int = 1024
    temperature: float = 0.0
    sample: int = 0
    likeliest: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, or why there is none. value: the schema's instance, None without schema or unless status is answered.

    answered, also with nothing when that came twice; cut: ended at max_tokens (the text is what came); invalid: no valid
    JSON even after one repair; refused: the provider's filter; rejected: the provider does not take this request, such as
    a prompt beyond the context, and would not the next time; failed: no answer after all retries. The text of the last
    three is empty, reason says what happened. tokens: where they were asked for and told.
    """

    text: str
    status: Status
    value: Any = None
    reason: str = ""
    tokens: tuple[ToldToken, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
