"""What a model holds of a prompt before it says a word: per layer the mean of its states, and the next token's logits.

L layers are the embeddings and each block, the last one behind the final norm, as transformers counts hidden states; d is
their width. `extract` reads many prompts into a folder to fit on, `prefill` one prompt whose answer may follow: its keys and
values are kept, so that the answer does not read the prompt again. Means are over the first POOLED_TOKENS tokens. A causal
model's states there do not depend on what comes after, so that both agree whatever the length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.language import features
from equipoise.language.cache import with_room
from equipoise.language.embed import fingerprint as fingerprint
from equipoise.language.encode import Example, encode_prompts
from equipoise.language.features import FeatureDtype, Features
from equipoise.language.model import evaluating, memory_advice
from equipoise.language.score import head_reads, wide
from equipoise.language.states import blocks, editing
from equipoise.routing.router import Reads

if TYPE_CHECKING:
    from equipoise.data.records import Message
    from equipoise.language.model import LanguageModel

POOLED_TOKENS = 1024


@dataclass(frozen=True, eq=False)
class Prefill:
    """One prompt, read once. states: [L, d], float32, means per layer. logits: [V] of the next token. tokens: how many.

    cache: keys and values of all tokens of the prompt, to go on from; None of a model that keeps none (Mamba, RWKV).
    """

    states: Tensor
    logits: Tensor
    cache: Any
    tokens: int


def layers(model: Any) -> list[str]:
    """The L places (`language.states`) whose means are read: before the first block, behind each, the last states."""
    depth = len(blocks(model))
    return ["block.0.input", *(f"block.{number}" for number in range(depth - 1)), "head.input"]


@closed
def encode(language_model: LanguageModel, prompts: Sequence[str | Sequence[Message]], reads: Reads) -> list[list[int]]:
    """The tokens of each prompt: in the model's chat template as generation begins from it, or of the instruction alone.

    raw: no template and no system text; of a conversation the last turn of a user (as RouterXBench reads prompts).
    Raises BadInput for chat without a chat template, a conversation without a user's turn, and an empty prompt.
    """
    if reads == "chat":
        if not language_model.uses_chat_template:
            raise BadInput(f"{language_model.name} has no chat template in use to read prompts by: use reads='raw'.")
        return encode_prompts(language_model, prompts)[0]
    bare = replace(language_model, chat_template="none")
    return encode_prompts(bare, [_instruction(index, prompt) for index, prompt in enumerate(prompts)])[0]


def check_lengths(language_model: LanguageModel, rows: Sequence[Sequence[int]], names: Sequence[object]) -> None:
    """Raises BadInput for the first prompt that is longer than the model's context, by its name."""
    for name, row in zip(names, rows, strict=True):
        if len(row) > language_model.context:
            raise BadInput(
                f"Prompt {name!r} has {len(row)} tokens, more than the context of {language_model.context}: leave it "
                "out, or shorten it."
            )


@closed
def extract(
    language_model: LanguageModel,
    prompts: Sequence[str | Sequence[Message]],
    reads: Reads,
    *,
    into: str | Path,
    dtype: FeatureDtype = "float32",
    batch_tokens: int | None = None,
) -> Features:
    """The states of prompts, [n, L, d], in the folder `into` (`language.features`, which resumes and refuses as it says)."""
    rows = [tuple(ids[:POOLED_TOKENS]) for ids in encode(language_model, prompts, reads)]
    return features.extract(
        language_model,
        [Example(ids, ids) for ids in rows],
        layers(language_model.model),
        pool="mean",
        into=into,
        dtype=dtype,
        batch_tokens=batch_tokens,
    )


def prefill(language_model: LanguageModel, input_ids: Sequence[int] | Tensor) -> Prefill:
    """Reads one prompt [T] in one forward pass. Raises BadInput for no token, or more than the model's context.

    The cache has room for what comes and belongs to the caller alone.
    """
    model = language_model.model
    ids = torch.as_tensor(input_ids, dtype=torch.long, device=language_model.device).reshape(1, -1)
    if not 0 < ids.shape[1] <= language_model.context:
        raise BadInput(
            f"The prompt has {ids.shape[1]} tokens: it must have one, and at most the context of {language_model.context}."
        )
    means: dict[str, Tensor] = {}

    def keep(place: str) -> Callable[[Tensor], Tensor]:
        def kept(state: Tensor) -> Tensor:
            means[place] = state[0, :POOLED_TOKENS].float().mean(dim=0)
            return state

        return kept

    wanted = layers(model)
    last = torch.zeros_like(ids, dtype=torch.bool)
    last[:, -1] = True
    # The hooks that keep come first: behind them the output matrix gets the last state alone.
    with (
        evaluating(model),
        memory_advice(1),
        editing(model, {place: keep(place) for place in wanted}),
        head_reads(model, last),
    ):
        output = model(input_ids=ids, use_cache=True)
    cache = getattr(output, "past_key_values", None)
    states = torch.stack([means[place] for place in wanted])
    return Prefill(states, wide(output.logits)[0, 0], with_room(cache), ids.shape[1])


def _instruction(index: int, prompt: str | Sequence[Message]) -> str:
    if isinstance(prompt, str):
        return prompt
    asked = [turn.content for turn in prompt if turn.role == "user"]
    if not asked:
        raise BadInput(f"Prompt {index} has no turn of a user, which is what is read of a conversation: add one.")
    return asked[-1]
