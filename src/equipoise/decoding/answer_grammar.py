"""An answer by a JSON schema behind thinking that is free: the grammar begins where the thinking has ended."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipoise.chat.grammar import json_grammar
from equipoise.core.errors import BadInput


class AnswerGrammar:
    """Give it to a control, grammar=AnswerGrammar(...): its sequences then answer by the schema, and think as they like.

    schema: JSON, as text. vocabulary: the width of the model's logits. ends: ids that end an answer.
    Raises BadInput for a schema that cannot be followed or a slow tokenizer, MissingExtra without llguidance.
    """

    def __init__(self, tokenizer: Any, schema: str, *, vocabulary: int, ends: Iterable[int]) -> None:
        self._grammar = json_grammar(schema)
        from llguidance import LLMatcher, LLTokenizer

        if not getattr(tokenizer, "is_fast", False):
            raise BadInput("With a slow tokenizer no response schema can be followed: use a fast one.")
        self.ends = tuple(sorted(ends))
        # Else llguidance takes the blank that a tokenizer puts before a text for a part of the answer.
        described = json.loads(
            tokenizer.backend_tokenizer.to_str(),
            object_hook=lambda part: {**part, "add_prefix_space": False} if part.get("add_prefix_space") else part,
        )
        self._vocabulary = LLTokenizer(json.dumps(described), n_vocab=vocabulary, eos_token=list(self.ends))
        self._made = LLMatcher

    def begin(self) -> Any:
        """What follows one answer, token by token."""
        return self._made(self._vocabulary, self._grammar, log_level=0)

    def masked(self, matcher: Any, logits: Tensor) -> Tensor:
        """The logits [V] of the tokens that may come next, the others at minus infinity; behind a whole answer its ends."""
        if matcher.is_stopped():
            allowed = torch.zeros_like(logits, dtype=torch.bool)
            allowed[list(self.ends)] = True
        else:
            from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

            bits = allocate_token_bitmask(1, len(logits))
            fill_next_token_bitmask(matcher, bits, 0)
            unpacked = np.unpackbits(bits.view(np.uint8), axis=1, count=len(logits), bitorder="little")
            allowed = torch.from_numpy(unpacked[0].view(np.bool_)).to(logits.device)
        return logits.masked_fill(~allowed, -torch.inf)
