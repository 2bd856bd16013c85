"""Batched generation whose answers depend on neither batch size nor order.

An own loop over transformers' models and caches: `transformers.generate` takes no torch.Generator, so its samples
depend on global state and on who shares the batch. Here each prompt has its own row of random numbers, drawn before
anything else; a row ends by itself, and rows that have ended leave the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.progress import beat
from equipoise.language.encode import encode_prompts
from equipoise.language.model import evaluating, memory_advice
from equipoise.language.score import head_reads

if TYPE_CHECKING:
    from equipoise.data.records import Message
    from equipoise.language.model import LanguageModel


def generate(
    language_model: LanguageModel,
    prompts: Sequence[str | Sequence[Message]],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
    stop: Sequence[str] = (),
) -> list[str]:
    """One answer per prompt, in order, without the prompt, special tokens and the blank that joins both.

    A prompt is a text (a user's turn, when the model has a chat template in use) or the turns of a conversation.
    temperature 0 takes the likeliest token; above 0 samples from softmax(logits / temperature) with `generator`, which
    is then required. An answer ends at an end token, after max_new_tokens, or before the first of the `stop` strings.
    Raises BadInput for an empty prompt, or one that leaves no room for the answer in the model's context.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise BadInput(f"max_new_tokens is {max_new_tokens} and batch_size {batch_size}: both must be at least 1.")
    if "" in stop:
        raise BadInput("A stop string is empty, which would end every answer before it begins: leave it out.")
    if not 0 <= temperature < float("inf"):
        raise BadInput(f"The temperature is {temperature}: use 0 for the likeliest answer, or a number above.")
    if temperature > 0 and generator is None:
        raise BadInput("Sampling needs a generator: pass generator=torch.Generator().manual_seed(seed).")
    encoded, ends = encode_prompts(language_model, prompts)
    for index, ids in enumerate(encoded):
        if len(ids) + max_new_tokens > language_model.context:
            raise BadInput(
                f"Prompt {index} has {len(ids)} tokens; with {max_new_tokens} new ones that is more than the "
                f"context of {language_model.context}: shorten it, or lower max_new_tokens."
            )
    uniform = None
    if generator is not None and temperature > 0:
        shape = (len(prompts), max_new_tokens)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device).cpu()

    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]), reverse=True)
    with evaluating(language_model.model), memory_advice(batch_size):
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            draws = None if uniform is None else uniform[chosen]
            rows = [encoded[index] for index in chosen]
            texts = _continue(language_model, rows, ends, max_new_tokens, temperature, draws, tuple(stop))
            for index, text in zip(chosen, texts, strict=True):
                answers[index] = text
    return answers


def _continue(
    language_model: LanguageModel,
    rows: list[list[int]],
    ends: frozenset[int],
    max_new_tokens: int,
    temperature: float,
    uniform: Tensor | None,
    stop: tuple[str, ...],
) -> list[str]:
    model, device = language_model.model, language_model.device
    length = max(map(len, rows))
    ids = torch.tensor([[language_model.pad_id] * (length - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    takes_positions = "position_ids" in inspect.signature(_bare(model).forward).parameters
    written: list[list[int]] = [[] for _ in rows]
    texts = [""] * len(rows)
    alive = list(range(len(rows)))  # the row that each line of the batch belongs to
    cache = None
    for step in range(max_new_tokens):
        # A padded row must count its positions from its own first token.
        positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]} if takes_positions else {}
        last = torch.zeros_like(ids, dtype=torch.bool)
        last[:, -1] = True
        with head_reads(model, last):
            output = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **positions)
        cache = output.past_key_values
        beat()
        draws = None if uniform is None else uniform[alive, step]
        tokens = _choose(output.logits.squeeze(0).float(), temperature, draws).to(device)

        keep = []
        for line, (row, token) in enumerate(zip(alive, tokens.tolist(), strict=True)):
            if token not in ends:
                written[row].append(token)
                texts[row], stopped = _text(language_model, written[row], stop) if stop else ("", False)
                if not stopped:
                    keep.append(line)
        if not keep:
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        ids = tokens.unsqueeze(-1)
        if len(keep) < len(alive):
            lines = torch.tensor(keep, device=device)
            cache.batch_select_indices(lines)
            ids, mask, alive = ids[lines], mask[lines], [alive[line] for line in keep]
    return texts if stop else [_text(language_model, tokens, ())[0] for tokens in written]


def _choose(logits: Tensor, temperature: float, uniform: Tensor | None) -> Tensor:
    """Next tokens [B] from logits [B, V]: the likeliest, or the quantile of the distribution at `uniform` [B]."""
    if uniform is None:
        return logits.argmax(dim=-1)
    if logits.device.type == "mps":  # has no float64, in which rare tokens keep their share of the sum
        logits = logits.cpu()
    total = (logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
    target = uniform.to(total.device).unsqueeze(-1) * total[:, -1:]
    chosen = torch.searchsorted(total, target, right=True).squeeze(-1)
    return chosen.clamp(max=logits.shape[-1] - 1)


def _text(language_model: LanguageModel, tokens: list[int], stop: tuple[str, ...]) -> tuple[str, bool]:
    """The answer so far, cut before the first stop string; and whether there was one."""
    tokenizer: Any = language_model.tokenizer
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    text = text.removeprefix(" ")
    places = [place for mark in stop if (place := text.find(mark)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _bare(model: Any) -> Any:
    """The model under an adapter's wrapper, whose forward hides what arguments there are."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
