"""Answers from a model in torch: batched, row by row its own random numbers, schema and limit.

A row's numbers come from its seed alone, and rows do not see each other, so an answer is that of the call made alone, up
to the rounding of sums in a batch of another shape. For a JSON schema the tokens that cannot continue the answer are
masked (llguidance), so what is written parses, unless it was cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from equipoise.chat.batching import GenerationAnswer, GenerationRequest, Token
from equipoise.chat.grammar import json_grammar
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.language.encode import encode_prompts
from equipoise.language.generate import Written, choose, write
from equipoise.language.model import evaluating, memory_advice

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel


class TransformersEngine:
    """Engine over what `language.load` gives. context: at most so many tokens of prompt and answer together."""

    def __init__(self, language_model: LanguageModel, *, context: int | None = None) -> None:
        self.name = language_model.name
        self.language_model = language_model
        self._context = min(context or language_model.context, language_model.context)
        self._vocabulary: Any = None

    def run(
        self,
        requests: Sequence[GenerationRequest],
        reply: Callable[[int, GenerationAnswer | Exception], None],
        wanted: Callable[[int], bool],
    ) -> None:
        rows: list[_Row] = []
        for index, request in enumerate(requests):
            try:
                rows.append(self._row(index, request))
            except BadInput as error:
                reply(index, error)
        if not rows:
            return
        settings = rows[0].request.settings

        def following(logits: Tensor, states: Tensor, alive: Sequence[int], step: int) -> Tensor:
            alike = [rows[row] for row in alive]
            allowed = _allowed(alike, logits)
            uniform = None
            if settings.temperature > 0:
                uniform = torch.stack([row.uniform[step] for row in alike])
            tokens = choose(
                logits if allowed is None else logits.masked_fill(~allowed, -torch.inf),
                settings.temperature,
                uniform,
                top_k=settings.top_k,
                top_p=settings.top_p,
            )
            if settings.logprobs is not None:
                self._note(alike, logits, tokens, settings.logprobs)
            for row, token in zip(alike, tokens.tolist(), strict=True):
                row.count += 1
                if row.grammar is not None:
                    row.grammar.consume_token(token)
            return tokens

        def leaves(index: int) -> bool:
            row = rows[index]
            return not wanted(row.index) or (row.grammar is not None and row.grammar.is_stopped())

        ends = frozenset().union(*(row.ends for row in rows))
        with evaluating(self.language_model.model), memory_advice(len(rows)):
            answers = write(
                self.language_model,
                [row.ids for row in rows],
                ends,
                [row.limit for row in rows],
                following,
                stop=settings.stop,
                leaves=leaves,
            )
            for number, written in answers:
                row = rows[number]
                broken = "" if row.grammar is None else row.grammar.get_error()
                reply(row.index, WorkFailed(f"The schema was lost: {broken}") if broken else row.answer(written))

    def close(self) -> None:
        """The model goes with the last reference to this engine; what it held on a GPU is given back."""
        del self.language_model
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _row(self, index: int, request: GenerationRequest) -> _Row:
        ids, ends = self._encode(request)
        room = self._context - len(ids)
        if room < 1:
            raise BadInput(
                f"The prompt has {len(ids)} tokens, and {self.name} reads {self._context} with the answer: shorten it."
            )
        limit = min(request.max_tokens, room)
        uniform = torch.empty(0)
        if request.settings.temperature > 0:
            generator = torch.Generator().manual_seed(request.seed)
            uniform = torch.rand(limit, generator=generator, dtype=torch.float64)
        grammar = None if request.schema is None else self._grammar(request.schema, ends)
        return _Row(index, request, ids, ends, limit, uniform, grammar)

    def _encode(self, request: GenerationRequest) -> tuple[list[int], frozenset[int]]:
        """Tokens of the prompt and of its end; a prompt of one text may be read as it is when there is no template."""
        messages = request.messages
        alone = not self.language_model.uses_chat_template and [message.role for message in messages] == ["user"]
        (ids,), ends = encode_prompts(self.language_model, [messages[0].content if alone else messages])
        return ids, ends

    def _grammar(self, schema: str, ends: frozenset[int]) -> Any:
        """What follows the answer token by token and knows which may come next."""
        grammar = json_grammar(schema)
        from llguidance import LLMatcher, LLTokenizer

        tokenizer: Any = self.language_model.tokenizer
        if not tokenizer.is_fast:
            raise BadInput(
                f"{self.name} has a slow tokenizer, with which no response schema can be followed: use a fast one."
            )
        if self._vocabulary is None:  # takes a second for a large vocabulary
            head: Any = self.language_model.model.get_output_embeddings()
            described = json.loads(tokenizer.backend_tokenizer.to_str(), object_hook=_without_prefix_space)
            self._vocabulary = LLTokenizer(json.dumps(described), n_vocab=head.weight.shape[0], eos_token=sorted(ends))
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise BadInput(f"The response schema cannot be followed: {matcher.get_error().splitlines()[0]}")
        return matcher

    def _note(self, rows: Sequence[_Row], logits: Tensor, tokens: Tensor, count: int) -> None:
        """Adds to each row the token it got, with its log-probability and those of the likeliest."""
        values = logits.log_softmax(dim=1)
        own = values.gather(1, tokens.to(values.device).unsqueeze(1)).squeeze(1).tolist()
        best = values.topk(count, dim=1)
        columns = zip(rows, tokens.tolist(), own, best.indices.tolist(), best.values.tolist(), strict=True)
        for row, token, logprob, likeliest, logprobs in columns:
            top = tuple(self._token(*pair) for pair in zip(likeliest, logprobs, strict=True))
            row.notes.append(replace(self._token(token, logprob), top=top))

    def _token(self, identity: int, logprob: float) -> Token:
        tokenizer: Any = self.language_model.tokenizer
        text = tokenizer.decode([identity], clean_up_tokenization_spaces=False)
        if (tokenizer.convert_ids_to_tokens(identity) or "").startswith("\u2581") and not text.startswith(" "):
            text = f" {text}"  # SentencePiece drops the blank of the first word it decodes
        return Token(text, logprob, None if "\ufffd" in text else text.encode())


def _without_prefix_space(part: dict[str, Any]) -> dict[str, Any]:
    """For llguidance, which else takes the blank that a tokenizer puts before a text for a part of the answer."""
    return {**part, "add_prefix_space": False} if part.get("add_prefix_space") else part


@dataclass(slots=True)
class _Row:
    """One request on its way. count: tokens it was given so far, an end token included."""

    index: int
    request: GenerationRequest
    ids: list[int]
    ends: frozenset[int]
    limit: int
    uniform: Tensor
    grammar: Any
    notes: list[Token] = field(default_factory=list)
    count: int = 0

    def answer(self, written: Written) -> GenerationAnswer:
        short = "max_tokens" if self.limit == self.request.max_tokens else "model_length"
        # Without the note of the end token, which is no part of the answer.
        notes = tuple(self.notes[: len(written.tokens)])
        return GenerationAnswer(written.text, "stop" if written.ended else short, len(self.ids), self.count, notes)


def _allowed(rows: Sequence[_Row], logits: Tensor) -> Tensor | None:
    """The tokens [A, V] that each row's schema allows next; None when no row has one."""
    if all(row.grammar is None for row in rows):
        return None
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    vocabulary = logits.shape[1]
    bits = allocate_token_bitmask(len(rows), vocabulary)  # all set: rows without schema may write anything
    for line, row in enumerate(rows):
        if row.grammar is not None:
            fill_next_token_bitmask(row.grammar, bits, line)
    unpacked = np.unpackbits(bits.view(np.uint8), axis=1, count=vocabulary, bitorder="little")
    return torch.from_numpy(unpacked.view(np.bool_)).to(logits.device)
