"""Rollouts: sampled responses with what a policy gradient needs of them, and the trainer's own view of the same tokens.

    rolled = roll_out(language_model, prompts, samples=8, max_new_tokens=64, temperature=1.0, seed=0)
    scores = score_responses(model, rolled.batch(range(4)), temperature=1.0)      # differentiable; log_probs [4, T]

P prompts with N samples each are R = P * N rows, row = prompt * N + sample. T tokens of a response, its end token among
them, H width, V vocabulary, A rows that are still being written, n response tokens of a batch, K ids asked for beside the
sampled one. Log-probabilities are natural and those of softmax(logits / temperature): what is sampled at a temperature is
scored at the same one.

What a row yields depends on the model, its prompt, the seed and its place (prompt, sample) alone: not on the batch, nor on
how many others there are. Samples of one prompt share the reading of it.

What came of several turns with an environment (`episodes.play`) is a `Rollouts`, too: there a row is all that followed its
prompt, and the mask is true at the model's own tokens alone, so that nothing which reads the mask learns from, penalizes or
measures what others wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from equipoise.core.errors import BadInput
from equipoise.core.progress import progress
from equipoise.language.encode import encode_prompts
from equipoise.language.generate import check_room, choose, write
from equipoise.language.model import evaluating, memory_advice
from equipoise.language.score import head_reads, wide

if TYPE_CHECKING:
    from equipoise.data.records import Message
    from equipoise.language.episodes import Episode
    from equipoise.language.model import LanguageModel

# (logits [A, V], states [A, H], rows [A], step) -> None for no change, other logits, or (logits, tokens [A]) where tokens of
# at least 0 are forced. Logits are before the division by the temperature, states are what enters the output matrix. A
# hook with a method wrote(rows, tokens [A]) is told what was written at that step.
Hook = Callable[[Tensor, Tensor, Sequence[int], int], "Tensor | tuple[Tensor, Tensor] | None"]
_LOGITS_AT_ONCE = 2**24  # values; 64 MB in float32


@dataclass(frozen=True)
class Rollouts:
    """What was written. A response's tokens include its end token; what follows them is padding, where mask is False.

    prompts: token ids, [P] rows. ids, mask, forced, log_probs, entropies: [R, T]. log_probs and entropies (nats) are of the
    distribution that was sampled from, after the hook; 0 where mask is False. ended: [R], False when max_new_tokens came
    first. top_ids, top_probs: [R, T, K], the likeliest tokens of that distribution, None when not asked for.

    Of episodes alone: owner [R, T], int8, who wrote each token (an index of `episodes.OWNERS`, 0 for padding); turn [R, T],
    in which turn, from 0, a reply being of the turn that it answers, -1 for padding; episodes: the R of them. ended: the
    environment ended it.
    """

    prompts: tuple[tuple[int, ...], ...]
    samples: int
    pad_id: int
    ids: Tensor
    mask: Tensor
    log_probs: Tensor
    entropies: Tensor
    forced: Tensor
    ended: Tensor
    texts: tuple[str, ...]
    top_ids: Tensor | None = None
    top_probs: Tensor | None = None
    owner: Tensor | None = None
    turn: Tensor | None = None
    episodes: tuple[Episode, ...] = ()

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, [R]; of an episode the model's own."""
        return self.mask.sum(dim=-1)

    @property
    def present(self) -> Tensor:
        """[R, T] bool: where there is a token, whoever wrote it."""
        return self.mask if self.owner is None else self.owner > 0

    @property
    def token_ids(self) -> list[list[int]]:
        """The ids of each response's tokens, R rows."""
        return [ids[real].tolist() for ids, real in zip(self.ids, self.mask, strict=True)]

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Prompt and response of these rows as a model reads them, padded on the right: a batch for `score_responses`.

        input_ids, attention_mask: [B, L]. predicts: [B, L] bool, where the next token is one of the model's. response, mask,
        present: [B, T], the responses themselves, cut to the longest of these rows. prompt_ids, prompt_mask: [G, L'], the
        different prompts among them; prompt: [B], which of these a row's is.
        """
        numbers = [row // self.samples for row in rows]
        places_of = {number: place for place, number in enumerate(dict.fromkeys(numbers))}
        device, prompts = self.ids.device, [self.prompts[number] for number in numbers]
        response, mask, present = (each[list(rows)] for each in (self.ids, self.mask, self.present))
        lengths = present.sum(dim=-1).tolist()
        width = max(lengths)
        begins = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
        ends = begins + torch.tensor(lengths, device=device).unsqueeze(-1)
        places = torch.arange(max(map(sum, zip(map(len, prompts), lengths, strict=True))), device=device)
        ids = torch.full((len(prompts), len(places)), self.pad_id, device=device)
        ids[places < begins] = torch.tensor([token for prompt in prompts for token in prompt], device=device)
        ids[(places >= begins) & (places < ends)] = response[present]
        before = (places >= begins - 1) & (places < ends - 1)
        predicts = torch.zeros_like(before)
        predicts[before] = mask[present]
        prompt_ids, prompt_mask = padded([self.prompts[number] for number in places_of], self.pad_id, device)
        return {
            "input_ids": ids,
            "attention_mask": (places < ends).long(),
            "predicts": predicts,
            "response": response[:, :width],
            "mask": mask[:, :width],
            "present": present[:, :width],
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "prompt": torch.tensor([places_of[number] for number in numbers], device=device),
        }

    def to(self, device: torch.device | str) -> Rollouts:
        """The same on another device."""
        return replace(self, **{name: each.to(device) for name, each in self._tensors().items()})

    def take(self, prompts: Sequence[int]) -> Rollouts:
        """The responses to these prompts, in this order."""
        rows = [prompt * self.samples + sample for prompt in prompts for sample in range(self.samples)]
        return replace(
            self,
            prompts=tuple(self.prompts[prompt] for prompt in prompts),
            texts=tuple(self.texts[row] for row in rows),
            episodes=tuple(self.episodes[row] for row in rows) if self.episodes else (),
            **{name: each[rows] for name, each in self._tensors().items()},
        )

    @staticmethod
    def joined(parts: Sequence[Rollouts]) -> Rollouts:
        """Rollouts of several calls as those of one, in this order; all with as many samples."""
        longest = max(part.ids.shape[1] for part in parts)

        def widened(part: Rollouts, name: str) -> Tensor:
            each = getattr(part, name)
            if each.dim() == 1:
                return each
            fill = {"ids": part.pad_id, "turn": -1}.get(name, 0)
            whole = each.new_full((len(each), longest, *each.shape[2:]), fill)
            whole[:, : each.shape[1]] = each
            return whole

        return replace(
            parts[0],
            prompts=tuple(prompt for part in parts for prompt in part.prompts),
            texts=tuple(text for part in parts for text in part.texts),
            episodes=tuple(episode for part in parts for episode in part.episodes),
            **{name: torch.cat([widened(part, name) for part in parts]) for name in parts[0]._tensors()},
        )

    def _tensors(self) -> dict[str, Tensor]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: each for name, each in found.items() if isinstance(each, Tensor)}


def roll_out(
    language_model: LanguageModel,
    prompts: Sequence[str | Sequence[Message]],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int | Sequence[int],
    hook: Hook | None = None,
    top: int = 0,
    keys: Sequence[int] | None = None,
    batch_size: int = 64,
) -> Rollouts:
    """`samples` responses to each prompt, with the log-probability and the entropy of every token.

    A prompt is a text or the turns of a conversation, as of `generate`. temperature 0 takes the likeliest tokens, whose
    log-probabilities are then those at temperature 1. seed: a number, or several that name one draw. hook: may change the
    logits or force tokens, see `Hook`; its rows are those of the result, so that it can keep a state for each. top: how many
    of the likeliest ids to return beside each token. keys: a number for each prompt that names its draws, in place of its
    place among the prompts; equal keys draw alike. batch_size: rows at once.
    Raises BadInput for settings out of range, an empty prompt, or one that leaves no room for its answer.
    """
    if min(samples, max_new_tokens, batch_size) < 1:
        raise BadInput(
            f"samples is {samples}, max_new_tokens {max_new_tokens} and batch_size {batch_size}: at least 1 each."
        )
    if not 0 <= temperature < float("inf"):
        raise BadInput(f"The temperature is {temperature}: use 0 for the likeliest answer, or a number above.")
    if not 0 <= top <= language_model.vocabulary:
        raise BadInput(f"top is {top}: use 0 to {language_model.vocabulary}, the tokens that this model knows.")
    encoded, ends = encode_prompts(language_model, prompts)
    check_room(language_model, encoded, max_new_tokens)
    draws = drawing(len(encoded), samples, seed, keys)
    drawn = draws.next(range(len(encoded) * samples), max_new_tokens) if temperature > 0 else None
    noted = Noted(len(encoded) * samples, max_new_tokens, language_model, temperature, drawn, top=top, hook=hook)
    with (
        evaluating(language_model.model),
        memory_advice(batch_size),
        progress("Rolling out", total=len(encoded) * samples, unit="responses") as bar,
    ):
        first = [index * samples for index in range(len(encoded))]
        limits = [max_new_tokens] * len(encoded)
        fill(noted, language_model, encoded, ends, limits, first, samples, batch_size, lambda row: bar.advance(1))
    longest = max(int(noted.mask.sum(dim=-1).max()) if len(noted.mask) else 0, 1)
    tensors: dict[str, Any] = {name: each[:, :longest] for name, each in noted.tensors().items()}
    return Rollouts(
        prompts=tuple(tuple(ids) for ids in encoded),
        samples=samples,
        pad_id=language_model.pad_id,
        ended=torch.tensor(noted.ended, dtype=torch.bool, device=noted.ids.device),
        texts=tuple(noted.texts),
        **tensors,
    )


def fill(
    noted: Noted,
    language_model: LanguageModel,
    contexts: Sequence[Sequence[int]],
    ends: frozenset[int],
    limits: Sequence[int],
    first: Sequence[int],
    repeats: int,
    batch_size: int,
    done: Callable[[int], object] = lambda row: None,
) -> None:
    """Continue each context `repeats` times, by at most its limit of tokens, and note it; what was long is read first.

    first: the row of each context's first continuation, the others follow it. done: called with each row that has ended.
    """
    order = sorted(range(len(contexts)), key=lambda index: len(contexts[index]), reverse=True)
    for begin in range(0, repeats, batch_size):
        beside = min(batch_size, repeats - begin)
        together = max(batch_size // beside, 1)
        for start in range(0, len(order), together):
            chosen = order[start : start + together]
            noted.rows = [first[index] + begin + each for index in chosen for each in range(beside)]
            allowed = [limits[index] for index in chosen for _ in range(beside)]
            read = [contexts[index] for index in chosen]
            for line, written in write(language_model, read, ends, allowed, noted.choose, repeats=beside):
                row = noted.rows[line]
                noted.texts[row], noted.ended[row] = written.text, written.ended
                done(row)


class Noted:
    """What is noted of each row while it is written: ids, mask, forced, log_probs, entropies [R, T], texts, ended."""

    def __init__(
        self,
        rows: int,
        length: int,
        language_model: LanguageModel,
        temperature: float,
        drawn: Tensor | None,
        *,
        top: int = 0,
        hook: Hook | None = None,
    ) -> None:
        device = language_model.device
        self._temperature, self._drawn, self._hook, self._top = temperature, drawn, hook, top
        self.rows: list[int] = []  # of the batch that is being written
        self.texts = [""] * rows
        self.ended = [False] * rows
        dtype = torch.float64 if language_model.model.dtype == torch.float64 else torch.float32
        self.ids = torch.full((rows, length), language_model.pad_id, device=device)
        self.mask = torch.zeros(rows, length, dtype=torch.bool, device=device)
        self.forced = torch.zeros_like(self.mask)
        self.log_probs = torch.zeros(rows, length, dtype=dtype, device=device)
        self.entropies = torch.zeros_like(self.log_probs)
        self.top_ids = torch.zeros(rows, length, top, dtype=torch.long, device=device) if top else None
        self.top_probs = torch.zeros(rows, length, top, dtype=dtype, device=device) if top else None

    def tensors(self) -> dict[str, Tensor]:
        """By their names, those that were not asked for left out."""
        return {name: each for name, each in vars(self).items() if isinstance(each, Tensor) and name[0] != "_"}

    def choose(self, logits: Tensor, states: Tensor, lines: Sequence[int], step: int) -> Tensor:
        """The next tokens [A], as `generate.write` asks for them."""
        rows = [self.rows[line] for line in lines]
        forced = None
        if self._hook is not None and (changed := self._hook(logits, states, rows, step)) is not None:
            logits, forced = changed if isinstance(changed, tuple) else (changed, None)
            logits = logits.to(self.log_probs.dtype)
        log_probs = (logits / (self._temperature or 1.0)).log_softmax(dim=-1)
        tokens = choose(logits, self._temperature, None if self._drawn is None else self._drawn[rows, step])
        tokens = tokens.to(logits.device)
        at = torch.tensor(rows, device=logits.device)
        if forced is not None:
            forced = forced.to(logits.device)
            tokens = torch.where(forced >= 0, forced, tokens)
            self.forced[at, step] = forced >= 0
        self.ids[at, step] = tokens
        self.mask[at, step] = True
        self.log_probs[at, step] = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        self.entropies[at, step] = torch.special.entr(log_probs.exp()).sum(dim=-1)
        if self.top_ids is not None and self.top_probs is not None:
            values, ids = log_probs.topk(self._top, dim=-1)
            self.top_ids[at, step], self.top_probs[at, step] = ids, values.exp()
        if (wrote := getattr(self._hook, "wrote", None)) is not None:
            wrote(rows, tokens)
        return tokens


def padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one tensor, padded on the right, and which of it is not padding: [B, L] int64 each."""
    longest = max(map(len, rows), default=1)
    ids = torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows], device=device)
    lengths = torch.tensor([[len(row)] for row in rows], device=device)
    return ids, (torch.arange(longest, device=device) < lengths).long()


class Draws:
    """A stream of numbers in [0, 1) for each row, from the seeds, the key of its prompt and its sample alone."""

    def __init__(self, keys: Sequence[int], samples: int, seeds: Sequence[int]) -> None:
        self._names = [[*seeds, key, sample] for key in keys for sample in range(samples)]
        self._streams: dict[int, np.random.Generator] = {}

    def next(self, rows: Sequence[int], length: int) -> Tensor:
        """The next `length` numbers of these rows, [len(rows), length] in float64."""
        drawn = [self._stream(row).random(length) for row in rows]
        return torch.from_numpy(np.stack(drawn)) if drawn else torch.zeros(0, length, dtype=torch.float64)

    def _stream(self, row: int) -> np.random.Generator:
        if row not in self._streams:
            self._streams[row] = np.random.Generator(np.random.PCG64(np.random.SeedSequence(self._names[row])))
        return self._streams[row]


def drawing(prompts: int, samples: int, seed: int | Sequence[int], keys: Sequence[int] | None) -> Draws:
    """The draws of so many prompts. Raises BadInput for keys that are not one a prompt, and for numbers below 0."""
    names = range(prompts) if keys is None else keys
    if len(names) != prompts:
        raise BadInput(f"There are {len(names)} keys for {prompts} prompts: give one for each.")
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if min([*seeds, *names], default=0) < 0:
        raise BadInput(f"The seed is {seed}, the smallest key {min(names, default=0)}: use numbers of at least 0.")
    return Draws(names, samples, seeds)


@dataclass(frozen=True)
class ResponseScores:
    """A model's view of responses that are there already; 0 where the mask is False.

    log_probs, entropies: [B, T], in nats. gathered: [B, T, K], the log-probabilities of other ids. top_ids, top_probs:
    [B, T, K], the likeliest. What was not asked for is None. Only log_probs, entropies and gathered carry gradients.
    """

    log_probs: Tensor
    entropies: Tensor | None = None
    gathered: Tensor | None = None
    top_ids: Tensor | None = None
    top_probs: Tensor | None = None


def score_responses(
    model: Any,
    batch: dict[str, Tensor],
    *,
    temperature: float = 1.0,
    gather: Tensor | None = None,
    top: int = 0,
    entropies: bool = False,
) -> ResponseScores:
    """Log-probabilities of a batch's response tokens (`Rollouts.batch`) under softmax(logits / temperature), differentiable.

    temperature: 0, where the likeliest token was taken, is scored as 1, as `roll_out` notes it. Raises BadInput below 0.
    gather: ids [B, T, K] whose log-probabilities are wanted, too. Logits are made for the response tokens alone, and where
    they are many by pieces that the backward pass makes again: a tensor [B, L, V] never exists.
    """
    if not 0 <= temperature < float("inf"):
        raise BadInput(f"The temperature is {temperature}: use 0 for the likeliest answer, or a number above.")
    mask = batch["mask"]
    targets = batch["response"][mask]
    others = None if gather is None else gather[mask]
    states, head = _entering(model, batch)

    def piece(states: Tensor, targets: Tensor, others: Tensor | None) -> tuple[Tensor | None, ...]:
        logits = wide(head(states)) / (temperature or 1.0)
        normalizer = logits.logsumexp(dim=-1, keepdim=True)
        chosen = (logits.gather(-1, targets.unsqueeze(-1)) - normalizer).squeeze(-1)
        entropy = _entropy(logits - normalizer) if entropies else None
        beside = None if others is None else logits.gather(-1, others) - normalizer
        values, ids = (logits - normalizer).detach().topk(min(top, logits.shape[-1]), dim=-1) if top else (None, None)
        return chosen, entropy, beside, ids, None if values is None else values.exp()

    rows = max(_LOGITS_AT_ONCE // model.get_input_embeddings().weight.shape[0], 1)
    if len(targets) <= rows:
        parts = [piece(states, targets, others)]
    else:
        cut = [each if each is None else each.split(rows) for each in (states, targets, others)]
        pieces = zip(cut[0], cut[1], cut[2] or [None] * len(cut[0]), strict=True)  # type: ignore[arg-type]
        again = torch.is_grad_enabled()
        parts = [checkpoint(piece, *each, use_reentrant=False) if again else piece(*each) for each in pieces]

    def put(index: int) -> Tensor | None:
        found = [part[index] for part in parts]
        if found[0] is None:
            return None
        flat = torch.cat(found)  # type: ignore[arg-type]
        return flat.new_zeros(*mask.shape, *flat.shape[1:]).index_put((*mask.nonzero(as_tuple=True),), flat)

    return ResponseScores(*map(put, range(5)))  # type: ignore[arg-type]


def _entropy(log_probs: Tensor) -> Tensor:
    """Of distributions [n, V], in nats. Not by `torch.special.entr`, whose gradient is nan where a probability is 0."""
    return -(log_probs.exp() * log_probs.where(log_probs > -torch.inf, 0)).sum(dim=-1)


def _entering(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The states [n, H] that predict the response tokens, and what makes logits of them.

    That is the output matrix, if it gives what the model says of the first state. A model that does more (soft-capping,
    scaling) is run whole, and its logits take the place of the states.
    """
    head = model.get_output_embeddings()
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    if (cache := _shared_reading(model, batch)) is not None:
        states, first, said = _after_prompts(model, batch, cache)
    else:
        states, said = _states(model, batch["predicts"], **given)
        first = states[:1]
    with torch.no_grad():
        if not len(states) or torch.equal(said, head(first.unsqueeze(0))):
            return states, head
    with head_reads(model, batch["predicts"]):
        return model(**given).logits.squeeze(0), lambda logits: logits


def _shared_reading(model: Any, batch: dict[str, Tensor]) -> Any:
    """A cache to read each prompt into, where that is worth two passes through the model instead of one; else None."""
    from equipoise.language.cache import differentiable

    repeated = "prompt_ids" in batch and 2 * len(batch["prompt_ids"]) <= len(batch["mask"])
    return differentiable(model) if repeated else None


def _after_prompts(model: Any, batch: dict[str, Tensor], cache: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Reads each prompt once, and the responses with its keys and values.

    The states [n, H] that predict response tokens; one [1, H] of them, and what the model says of it.
    """
    prompt_ids, prompt_mask, prompt, mask = (batch[name] for name in ("prompt_ids", "prompt_mask", "prompt", "mask"))
    lengths, kept = prompt_mask.sum(dim=-1, keepdim=True), {"past_key_values": cache, "use_cache": True}
    last = torch.arange(prompt_ids.shape[1], device=mask.device) == lengths - 1
    ends, said = _states(model, last, input_ids=prompt_ids, attention_mask=prompt_mask, **kept)
    begin = ends[prompt].unsqueeze(1)
    behind = batch.get("present", mask)[:, :-1]  # nothing is predicted from the last place
    if not behind.shape[1]:
        return begin[mask], ends[:1], said
    cache.reorder_cache(prompt)
    following, _ = _states(
        model,
        torch.ones_like(behind),
        input_ids=batch["response"][:, :-1],
        attention_mask=torch.cat([prompt_mask[prompt], behind.long()], dim=-1),
        position_ids=lengths[prompt] + torch.arange(behind.shape[1], device=mask.device),
        **kept,
    )
    return torch.cat([begin, following.view(*behind.shape, -1)], dim=1)[mask], ends[:1], said


def _states(model: Any, wanted: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    """The states [n, H] at `wanted` before they enter the output matrix, and the logits of the first alone."""
    caught: list[Tensor] = []

    def select(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = inputs
        caught.append(hidden[wanted.to(hidden.device)])
        return caught[0][:1].unsqueeze(0), *rest

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        said = model(**given).logits
    finally:
        hook.remove()
    return caught[0], said
