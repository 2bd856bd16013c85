"""Batched generation whose answers depend on neither batch size nor order.

An own loop over transformers' models and caches: `transformers.generate` takes no torch.Generator, so its samples
depend on global state and on who shares the batch. Here each prompt has its own row of random numbers, drawn before
anything else; a row ends by itself, and rows that have ended leave the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.progress import beat
from equipoise.data.text import unjoined
from equipoise.language.encode import encode_prompts
from equipoise.language.model import evaluating, memory_advice
from equipoise.language.score import doubled, head_reads, wide
from equipoise.language.states import recording

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
    """One answer per prompt, in order, without the prompt, special tokens and the blank that joins both (`unjoined`).

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
    check_room(language_model, encoded, max_new_tokens)
    uniform = None
    if generator is not None and temperature > 0:
        shape = (len(prompts), max_new_tokens)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device).cpu()

    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]), reverse=True)
    with evaluating(language_model.model), memory_advice(batch_size):
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            rows = [encoded[index] for index in chosen]
            draws = None if uniform is None else uniform[chosen]
            limits = [max_new_tokens] * len(rows)
            following = partial(_follow, temperature, draws)
            for row, written in write(language_model, rows, ends, limits, following, stop=tuple(stop)):
                answers[chosen[row]] = written.text
    return answers


def check_room(
    language_model: LanguageModel,
    encoded: Sequence[Sequence[int]],
    max_new_tokens: int,
    names: Sequence[object] | None = None,
) -> None:
    """Raises BadInput for the first prompt, as `encode_prompts` gives them, that leaves no room for its answer.

    names: what to call them; not given: their places.
    """
    for name, ids in zip(range(len(encoded)) if names is None else names, encoded, strict=True):
        if len(ids) + max_new_tokens > language_model.context:
            raise BadInput(
                f"Prompt {name} has {len(ids)} tokens; with {max_new_tokens} new ones that is more than the "
                f"context of {language_model.context}: shorten it, or lower max_new_tokens."
            )


def _follow(
    temperature: float, uniform: Tensor | None, logits: Tensor, states: Tensor, rows: Sequence[int], step: int
) -> Tensor:
    return choose(logits, temperature, None if uniform is None else uniform[list(rows), step])


@dataclass(slots=True)
class Written:
    """One row's answer so far. ended: at an end token or a stop string, so not for want of room."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    ended: bool = False


def write(
    language_model: LanguageModel,
    rows: Sequence[Sequence[int]],
    ends: frozenset[int],
    limits: Sequence[int],
    choose: Callable[[Tensor, Tensor, Sequence[int], int], Tensor],
    *,
    repeats: int = 1,
    stop: Sequence[str] = (),
    leaves: Callable[[int], bool] = lambda row: False,
) -> Iterator[tuple[int, Written]]:
    """Continues rows of tokens, one new token each per step, and yields (row, answer) as soon as a row is done.

    repeats: how often each row is continued; what was row r is rows r * repeats to (r + 1) * repeats - 1 from there on, and
    their beginning is read once. A row is done at one of the tokens `ends`, before the first of the `stop` strings, after as
    many tokens as its limit (at least 1), or when leaves(row) is true after a token (which then counts as its end). choose
    gets the next logits [A, V] in float32 or float64, the states [A, H] that entered the output matrix, the rows [A] that
    they belong to and the step, and returns the tokens [A]. The caller sees to evaluation mode and to room in the context.
    """
    reader = _reader(language_model, rows, repeats)
    written = [Written() for _ in range(len(rows) * repeats)]
    alive = list(range(len(written)))  # the row that each line of the batch belongs to
    for step in range(max(limits)):
        tokens = choose(*reader.read(), alive, step).to(language_model.device)
        beat()
        keep = []
        for line, (row, token) in enumerate(zip(alive, tokens.tolist(), strict=True)):
            answer = written[row]
            answer.ended = token in ends
            if not answer.ended:
                answer.tokens.append(token)
                if stop:
                    answer.text, answer.ended = _text(language_model, answer.tokens, stop)
                answer.ended = answer.ended or leaves(row)
            if answer.ended or step + 1 >= limits[row]:
                if not stop:
                    answer.text, _ = _text(language_model, answer.tokens, ())
                yield row, answer
            else:
                keep.append(line)
        if not keep:
            break
        alive = [alive[line] for line in keep]
        reader = reader.go_on(tokens, keep)


class _Reader(Protocol):
    def read(self) -> tuple[Tensor, Tensor]:
        """What comes next on each line that is left: logits [A, V], and the states [A, H] that they were made from."""
        ...

    def go_on(self, tokens: Tensor, keep: list[int]) -> _Reader:
        """What reads on, with a token [A] at the end of each line and then with these lines alone."""
        ...


def _reader(language_model: LanguageModel, rows: Sequence[Sequence[int]], repeats: int) -> _Reader:
    takes = inspect.signature(_bare(language_model.model).forward).parameters
    return (_WithCache if "past_key_values" in takes else _WithoutCache)(language_model, rows, repeats)


class _WithCache:
    """Reads each token once: rows padded on the left, with positions that count from their own first token."""

    def __init__(self, language_model: LanguageModel, rows: Sequence[Sequence[int]], repeats: int = 1) -> None:
        self._language_model, self._rows, self._repeats = language_model, rows, repeats
        self._model, device = language_model.model, language_model.device
        length = max(map(len, rows))
        self._ids = torch.tensor(
            [[language_model.pad_id] * (length - len(row)) + list(row) for row in rows], device=device
        )
        self._mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
        self._positions = "position_ids" in inspect.signature(_bare(self._model).forward).parameters
        self._cache: Any = None
        self._choose_rows: Callable[[Tensor], object] | None = None

    def read(self) -> tuple[Tensor, Tensor]:
        ids, mask = self._ids, self._mask
        positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]} if self._positions else {}
        last = torch.zeros_like(ids, dtype=torch.bool)
        last[:, -1] = True
        first = self._cache is None
        with head_reads(self._model, last), recording(self._model, ["head.input"]) as states:
            output = self._model(
                input_ids=ids, attention_mask=mask, past_key_values=self._cache, use_cache=True, **positions
            )
        self._cache = output.past_key_values
        logits, entering = wide(output.logits.squeeze(0)), states["head.input"].squeeze(0)
        if first:
            from equipoise.language.cache import row_choice, with_room

            self._cache = with_room(self._cache)
            self._choose_rows = row_choice(self._cache)
        if first and self._repeats > 1:
            repeated = torch.arange(len(ids), device=ids.device).repeat_interleave(self._repeats)
            if self._choose_rows is not None:
                self._choose_rows(repeated)
            self._rows = [row for row in self._rows for _ in range(self._repeats)]
            self._mask, logits, entering = mask[repeated], logits[repeated], entering[repeated]
        return logits, entering

    def go_on(self, tokens: Tensor, keep: list[int]) -> _Reader:
        if self._choose_rows is None:  # code of a folder's own: none at all, tuples, or layers that hold more
            return _WithoutCache(self._language_model, self._rows).go_on(tokens, keep)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=-1)
        self._ids = tokens.unsqueeze(-1)
        if len(keep) < len(tokens):
            lines = torch.tensor(keep, device=tokens.device)
            self._choose_rows(lines)
            self._ids, self._mask = self._ids[lines], self._mask[lines]
        return self


class _WithoutCache:
    """Reads each row anew for every token, for architectures whose state is no such cache (Mamba, RWKV): slow, but right.

    Padded on the right, where no causal model looks, so that it does not matter what a model does about padding.
    """

    def __init__(self, language_model: LanguageModel, rows: Sequence[Sequence[int]], repeats: int = 1) -> None:
        self._language_model = language_model
        self._rows = [list(row) for row in rows for _ in range(repeats)]

    def read(self) -> tuple[Tensor, Tensor]:
        language_model, longest = self._language_model, max(map(len, self._rows))
        padded = [[*row, *[language_model.pad_id] * (longest - len(row))] for row in self._rows]
        ids = torch.tensor(padded, device=language_model.device)
        lengths = torch.tensor([len(row) for row in self._rows], device=ids.device).unsqueeze(-1)
        places = torch.arange(longest, device=ids.device)
        with (
            head_reads(language_model.model, places == lengths - 1),
            recording(language_model.model, ["head.input"]) as states,
        ):
            output = language_model.model(input_ids=ids, attention_mask=(places < lengths).long(), use_cache=False)
        return wide(output.logits.squeeze(0)), states["head.input"].squeeze(0)

    def go_on(self, tokens: Tensor, keep: list[int]) -> _Reader:
        grown = [[*row, token] for row, token in zip(self._rows, tokens.tolist(), strict=True)]
        self._rows = [grown[line] for line in keep]
        return self


def choose(logits: Tensor, temperature: float, uniform: Tensor | None, *, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Next tokens [B] from logits [B, V]: the likeliest, or the quantile of the distribution at `uniform` [B].

    The distribution is softmax(logits / temperature), then cut to the top_k likeliest tokens (0: all), then to the
    fewest likeliest that together have at least top_p of what is left: the order of transformers' warpers.
    """
    if uniform is None:
        return logits.argmax(dim=-1)
    scaled = doubled(logits) / temperature
    if 0 < top_k < scaled.shape[-1]:
        scaled = scaled.masked_fill(scaled < scaled.topk(top_k, dim=-1).values[:, -1:], -torch.inf)
    if top_p < 1:
        share, order = scaled.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        beyond = share.cumsum(dim=-1) - share >= top_p  # never the first
        scaled = scaled.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    total = scaled.softmax(dim=-1).cumsum(dim=-1)
    target = uniform.to(total.device).unsqueeze(-1) * total[:, -1:]
    chosen = torch.searchsorted(total, target, right=True).squeeze(-1)
    return chosen.clamp(max=logits.shape[-1] - 1)


def _text(language_model: LanguageModel, tokens: list[int], stop: Sequence[str]) -> tuple[str, bool]:
    """The answer so far, cut before the first stop string; and whether there was one."""
    text = answer_text(language_model.tokenizer, tokens)
    places = [place for mark in stop if (place := text.find(mark)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def answer_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, without special ones and `unjoined`."""
    text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if text.startswith(" "):
        first = str(tokenizer.convert_ids_to_tokens(tokens[0]) or "")
        told: str = tokenizer.decode(tokens[:1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        begun = len(first) - len(first.lstrip("\u2581"))  # SentencePiece drops the first blank that it decodes
        text = " " * (begun > len(told) - len(told.lstrip(" "))) + text
    return unjoined(text)


def _bare(model: Any) -> Any:
    """The model under an adapter's wrapper, whose forward hides what arguments there are."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
