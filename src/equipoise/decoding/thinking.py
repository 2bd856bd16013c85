"""Thinking that is steered while it is written: a state machine for each sequence, and what all methods of steering share.

    control = AlphaOne(tokenizer, moment=1400, temperature=0.6, seed=0)       or another ThinkingControl
    model.generate(**inputs, logits_processor=[control], do_sample=True, temperature=0.6)      in transformers
    roll_out(language_model, prompts, hook=control.hook(samples=8), samples=8, ...)            in rollouts
    write_thoughts(language_model, prompts, control, max_new_tokens=2000)                      in a loop of its own

Before each token a method says what it wants (`Decision`): that a word is written next, with some chance; that certain
tokens, should the model choose one of them, are answered by other ones; that some are barred. The machine draws, from a
generator of its own for each sequence, so that a control that never acts leaves every sample as it was.

"Should the model choose one of them" is decided before the model draws: with the probability p of these tokens what stands
for them is forced, else they are barred. Both together have the law of drawing first and exchanging afterwards. Below a
top_p of 1 the control draws the token itself then, from what is left of the nucleus: who samples would cut that anew to its
own likeliest.

What a sequence yields depends on its own tokens, the seed and its key alone, not on its batch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from equipoise.core.errors import BadInput
from equipoise.core.options import check_fields, closed
from equipoise.core.progress import progress
from equipoise.language.encode import encode_prompts
from equipoise.language.generate import check_room, choose, write
from equipoise.language.model import evaluating, memory_advice
from equipoise.language.rollouts import drawing
from equipoise.language.score import doubled

if TYPE_CHECKING:
    from equipoise.data.records import Message
    from equipoise.decoding.answer_grammar import AnswerGrammar
    from equipoise.language.model import LanguageModel

Preset = Literal["auto", "r1", "qwq", "qwen3"]
What = Literal["word", "end"]

PARAGRAPH = "\n\n"
_TAIL = 12  # tokens that are read again where a text has to be looked at
_CLOSINGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
)


@dataclass(frozen=True, slots=True)
class Tags:
    """How a model marks its thinking, and by which word it begins to think again.

    opening, closing: around the thinking. word: what is inserted. replaced: words of transition that stand for more
    thinking. opened_by: who writes the opening. Where it is the model, nothing is thinking before that.
    """

    opening: str
    closing: str
    word: str = "Wait"
    replaced: tuple[str, ...] = ("Wait",)
    opened_by: Literal["template", "model"] = "template"

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.closing and self.word and all(self.replaced)):
            raise BadInput("Tags need a closing tag, a word to insert, and no empty word among those replaced.")
        if self.opening == self.closing or any(self.closing in word for word in (self.word, *self.replaced)):
            raise BadInput(
                f"The closing tag {self.closing!r} opens, too, or is a part of a word that stands for more thinking: "
                "give tags and words that differ."
            )


PRESETS: dict[Preset, Tags] = {
    "r1": Tags("<think>", "</think>"),
    "qwq": Tags("<think>", "</think>"),
    "qwen3": Tags("<think>", "</think>", opened_by="model"),
}


@closed
def tags_of(tokenizer: Any, preset: Preset = "auto") -> Tags:
    """The tags of a tokenizer's model; auto finds which of the usual ones it has as a token or in its template.

    Raises BadInput, naming the model, where it has no tag that ends the thinking.
    """
    vocabulary, template = tokenizer.get_vocab(), str(getattr(tokenizer, "chat_template", None) or "")
    known = _CLOSINGS if preset == "auto" else ((PRESETS[preset].opening, PRESETS[preset].closing),)
    for opening, closing in known:
        if closing in vocabulary or closing in template:
            return Tags(opening, closing) if preset == "auto" else PRESETS[preset]
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    looked_for = ", ".join(closing for _, closing in known)
    raise BadInput(
        f"{name} has no tag that ends its thinking (looked for: {looked_for}): take a reasoning model, or name the "
        "tags that yours was taught, tags=Tags(opening, closing)."
    )


class Vocabulary:
    """What a tokenizer's ids stand for, decoded one by one.

    delimiters: ids whose text ends a paragraph with an empty line; none where no single token does.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._begun: dict[str, tuple[int, ...]] = {}

    @cached_property
    def pieces(self) -> list[str]:
        """The text of each id alone."""
        return [self.decode([identity]) for identity in range(len(self.tokenizer))]

    @cached_property
    def delimiters(self) -> frozenset[int]:
        return frozenset(identity for identity, piece in enumerate(self.pieces) if piece.endswith(PARAGRAPH))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens and all."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def encode(self, text: str, what: str) -> tuple[int, ...]:
        """The ids of a text. Raises BadInput where they do not read as it."""
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        if self.decode(ids).strip() != text.strip():
            raise BadInput(f"The tokenizer cannot write {what} {text!r}: it reads back as {self.decode(ids)!r}.")
        return ids

    def completing(self, word: str, tail: str) -> tuple[int, ...]:
        """Ids that would complete the word behind a text: those with all of it, and with the rest of what the text begins.

        A longer word is another one ("Waiter"), as is one that goes before without a break.
        """
        found = list(self._containing(word))
        for cut in range(1, len(word)):
            before = tail[: -cut or None]
            if tail.endswith(word[:cut]) and not (word[0].isalpha() and before[-1:].isalpha()):
                found += self._beginning(word[cut:])
        return tuple(dict.fromkeys(found))

    def _containing(self, word: str) -> tuple[int, ...]:
        return self._matching(f"*{word}", lambda piece: _holds(piece, word))

    def _beginning(self, rest: str) -> tuple[int, ...]:
        return self._matching(rest, lambda piece: piece.startswith(rest) and not _goes_on(rest, piece[len(rest) :]))

    def _matching(self, name: str, matches: Any) -> tuple[int, ...]:
        if name not in self._begun:
            self._begun[name] = tuple(identity for identity, piece in enumerate(self.pieces) if matches(piece))
        return self._begun[name]


def _goes_on(word: str, after: str) -> bool:
    """Whether the word is but the beginning of a longer one."""
    return word[-1].isalpha() and after[:1].isalpha()


def _holds(text: str, word: str) -> bool:
    at = text.find(word)
    while at >= 0:
        before, after = text[:at], text[at + len(word) :]
        if not _goes_on(word, after) and not (word[0].isalpha() and before[-1:].isalpha()):
            return True
        at = text.find(word, at + 1)
    return False


@dataclass(frozen=True, slots=True)
class Intervention:
    """A place where something might be written in the model's stead, and what came of it.

    position: of its first token among those generated. what: the word or the end of thinking. p: with what chance; draw:
    the number in [0, 1) that decided, nan where there was nothing to draw. taken: whether it was written.
    """

    position: int
    what: What
    p: float
    draw: float
    taken: bool

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a method wants before a token. insert is written with this chance; where the model would choose one of `of`,
    `instead` is written; `barred` are never chosen."""

    insert: tuple[int, ...] = ()
    chance: float = 0.0
    of: tuple[int, ...] = ()
    instead: tuple[int, ...] = ()
    barred: tuple[int, ...] = ()


NOTHING = Decision()


@dataclass(slots=True)
class ThinkingState:
    """One sequence. written: ids generated so far. thinking: whether they are thoughts. begun, ended: behind how many tokens
    the thinking began (its opening tag included), and ended (its closing tag, too); None before. count: how often a method
    has acted."""

    generator: np.random.Generator
    thinking: bool = True
    begun: int | None = 0
    ended: int | None = None
    finished: bool = False
    written: list[int] = field(default_factory=list)
    trace: list[Intervention] = field(default_factory=list)
    forced: set[int] = field(default_factory=set)
    count: int = 0
    times: tuple[float, ...] | None = None
    matcher: Any = None
    _queue: deque[int] = field(default_factory=deque)

    @property
    def thought(self) -> int:
        """Tokens of thinking so far, with its tags and what was written before them."""
        return 0 if self.begun is None else len(self.written) if self.ended is None else self.ended


class Common(TypedDict, total=False):
    """The settings of every `ThinkingControl`, as its docstring has them."""

    preset: Preset
    tags: Tags | None
    min_thinking: int
    max_thinking: int
    guard: bool
    temperature: float
    top_p: float
    seed: int
    keys: Sequence[int] | None
    ends: Iterable[int]
    grammar: AnswerGrammar | None


class ThinkingControl(LogitsProcessor):
    """A method of steering, over any number of sequences at once. Subclasses say in `decide` what they want.

    tokenizer: the model's. preset, tags: how it marks its thinking; tags go before. min_thinking, max_thinking: tokens of
    thinking, its tags among them; -1 for no most. guard: nothing is done outside the thinking; False does what a method
    would have done there, too. temperature, top_p: those that the model is sampled with (0: the likeliest), which decide
    what the model "would choose". seed, keys: of the draws: a number for each row of a batch, by default its place. ends:
    further ids that end an answer. grammar: what an answer follows, from the end of the thinking on. Raises BadInput for
    a model without a closing tag, by name, and for settings out of range.
    """

    name = ""

    @closed
    def __init__(
        self,
        tokenizer: Any,
        *,
        preset: Preset = "auto",
        tags: Tags | None = None,
        min_thinking: int = 0,
        max_thinking: int = -1,
        guard: bool = True,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        keys: Sequence[int] | None = None,
        ends: Iterable[int] = (),
        grammar: AnswerGrammar | None = None,
    ) -> None:
        if grammar is not None and not guard:
            raise BadInput(
                "A grammar is of the answer, which a control without guard would write into: leave guard on."
            )
        if max_thinking < -1 or min_thinking < 0 or 0 <= max_thinking < min_thinking:
            raise BadInput(
                f"min_thinking is {min_thinking} and max_thinking {max_thinking}: use numbers of tokens, the first "
                "no more than the second, and -1 for no most."
            )
        if not 0 <= temperature < math.inf or not 0 < top_p <= 1 or seed < 0 or min(keys or (0,)) < 0:
            raise BadInput(
                f"temperature is {temperature}, top_p {top_p}, the seed {seed}: use at least 0, a share above 0, and "
                "seeds and keys of at least 0."
            )
        self.tags = tags or tags_of(tokenizer, preset)
        self.vocabulary = Vocabulary(tokenizer)
        self.word = self.vocabulary.encode(self.tags.word, "the word")
        self.closing = self.vocabulary.encode(self.tags.closing, "the closing tag")
        self.min_thinking, self.max_thinking, self.guard = min_thinking, max_thinking, guard
        self.temperature, self.top_p, self.seed, self.keys, self.grammar = temperature, top_p, seed, keys, grammar
        end = tokenizer.eos_token_id
        self.ends = frozenset([*ends, *([] if end is None else [end])])
        self.states: list[ThinkingState] = []
        self._read: Tensor | None = None

    @abstractmethod
    def decide(self, state: ThinkingState) -> Decision:
        """What the method wants before the next token of a sequence."""

    # What a method may ask of a sequence.

    def at_paragraph(self, state: ThinkingState) -> bool:
        """Whether what was written so far ends a paragraph: with a token that does so, or where there is none as a text."""
        if not state.written:
            return False
        if self.vocabulary.delimiters:
            return state.written[-1] in self.vocabulary.delimiters
        return self.tail(state).endswith(PARAGRAPH)

    def tail(self, state: ThinkingState) -> str:
        """The text of the last few tokens."""
        return self.vocabulary.decode(state.written[-_TAIL:])

    def going_on(self, state: ThinkingState) -> tuple[int, ...]:
        """Ids that would complete one of the words of transition."""
        tail = self.tail(state)
        return tuple(identity for word in self.tags.replaced for identity in self.vocabulary.completing(word, tail))

    def closings(self, state: ThinkingState) -> tuple[int, ...]:
        """Ids that would complete the closing tag."""
        if len(self.closing) == 1:
            return self.closing
        return self.vocabulary.completing(self.tags.closing, self.tail(state))

    # The machine.

    def begin(self, key: int, prompt: Sequence[int] | None = None, sample: int = 0) -> ThinkingState:
        """A sequence of which nothing is written. prompt: its ids: they tell whether its thinking has begun, or is over.

        sample: which of those of one key it is; each has draws of its own.
        """
        # A spawned stream: [seed, key] alone is that of the tokens, [seed, key, sample 0], as numpy fills up with zeros.
        named = np.random.SeedSequence([self.seed, key], spawn_key=(1, sample) if sample else (1,))
        state = ThinkingState(np.random.Generator(np.random.PCG64(named)))
        text = "" if prompt is None else self.vocabulary.decode(prompt)
        opened, closed_at = text.rfind(self.tags.opening), text.rfind(self.tags.closing)
        shut = closed_at > opened if self.tags.opening else closed_at >= 0
        # Thoughts of earlier turns, or in examples, are not those of this answer.
        if shut and opened >= 0 and not text[closed_at + len(self.tags.closing) :].strip():
            state.thinking, state.ended = False, 0
        elif self.tags.opened_by == "model" and (shut or opened < 0):
            state.thinking, state.begun = False, None
        return state

    def wrote(self, state: ThinkingState, token: int) -> None:
        """Note a token that was written."""
        if state.finished:
            return
        if state.matcher is not None:
            state.matcher.consume_token(token)
        state.written.append(token)
        if token in self.ends:
            state.finished = True
        elif state.thinking and self._holds(state, self.closing, self.tags.closing):
            state.thinking, state.ended = False, len(state.written)
        elif state.begun is None and self.tags.opening in self.tail(state):
            state.thinking, state.begun = True, len(state.written)

    def _holds(self, state: ThinkingState, ids: Sequence[int], tag: str) -> bool:
        if len(ids) == 1:
            return state.written[-1] == ids[0]
        return tag in self.vocabulary.decode(state.written[state.begun or 0 :][-len(ids) - _TAIL :])

    def steer(self, state: ThinkingState, logits: Tensor) -> tuple[int | None, Tensor]:
        """Before a token: the id that is forced, or None, and the logits [V], a copy where they changed."""
        if state.finished:
            return None, logits
        if not state._queue:
            logits = self._follow(state, logits)
        if state._queue:
            state.forced.add(len(state.written))
            return state._queue.popleft(), logits
        if self.grammar is not None and state.ended is not None:
            state.matcher = state.matcher or self.grammar.begin()
            logits = self.grammar.masked(state.matcher, logits)
        return None, logits

    def _follow(self, state: ThinkingState, logits: Tensor) -> Tensor:
        """The logits that a decision leaves; what it has written instead is in the queue."""
        decision = self._decision(state)
        if decision.insert:
            what: What = "end" if decision.insert == self.closing else "word"
            if self._happens(state, what, decision.chance, noted=True):
                state._queue.extend(decision.insert)
                return logits
        if decision.barred:
            logits = _without(logits, decision.barred)
            if not bool(logits.max() > -torch.inf):  # the model would write nothing else
                state._queue.extend(self.word)
                return logits
        if not decision.of:
            return logits
        chance = chance_of(logits, decision.of, self.temperature, self.top_p)
        if self._happens(state, "end" if decision.instead == self.closing else "word", chance):
            state._queue.extend(decision.instead)
            return logits
        if chance == 0:
            return logits
        left = _without(logits, decision.of)
        if self.top_p == 1:
            return left
        inside = _nucleus((doubled(logits) / self.temperature).softmax(dim=-1), self.top_p)
        total = _without(inside, decision.of, 0.0).cumsum(dim=-1)
        token = int(torch.searchsorted(total, total[-1] * state.generator.random(), right=True))
        return torch.full_like(left, -torch.inf).index_fill(-1, torch.tensor([token], device=left.device), 0.0)

    def _happens(self, state: ThinkingState, what: What, chance: float, *, noted: bool = False) -> bool:
        draw = state.generator.random() if 0 < chance < 1 else math.nan
        taken = chance >= 1 or draw < chance
        if taken or noted:
            state.trace.append(Intervention(len(state.written), what, chance, draw, taken))
        state.count += taken
        return taken

    def _decision(self, state: ThinkingState) -> Decision:
        room = math.inf if self.max_thinking < 0 else self.max_thinking - len(self.closing) - state.thought
        if state.thinking and room <= 0:
            return Decision(insert=self.closing, chance=1.0)
        if not state.thinking and self.guard:
            return NOTHING
        decision = self.decide(state)
        if state.thinking and room < len(self.word):  # a word would leave no room for the end, which stands for it
            insert, instead = (
                self.closing if each == self.word else each for each in (decision.insert, decision.instead)
            )
            decision = replace(decision, insert=insert, instead=instead)
        if not (state.thinking and state.thought < self.min_thinking):
            return decision
        if decision.insert == self.closing:
            decision = NOTHING
        if decision.instead == self.closing:
            decision = replace(decision, of=(), instead=())
        ending = (*self.closings(state), *self.ends)
        return replace(decision, barred=(*decision.barred, *(each for each in ending if each not in decision.of)))

    # In transformers.

    def reset(self) -> None:
        """Forget all sequences, before another call of generate."""
        self.states, self._read = [], None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As generate calls it: ids so far [B, L], scores [B, V]. Raises BadInput for rows of another call."""
        if self._read is None:
            keys = range(len(input_ids)) if self.keys is None else self.keys
            if len(keys) != len(input_ids):
                raise BadInput(f"There are {len(keys)} keys for {len(input_ids)} rows: give one for each.")
            self.states = [self.begin(key, row) for key, row in zip(keys, input_ids.tolist(), strict=True)]
        elif not torch.equal(input_ids[:, :-1], self._read):
            raise BadInput(
                "These are not the rows of the step before, each with one more token: call reset() before another "
                "generate, and sample without beams."
            )
        else:
            for state, token in zip(self.states, input_ids[:, -1].tolist(), strict=True):
                self.wrote(state, token)
        self._read = input_ids
        changed = scores
        for line, state in enumerate(self.states):
            forced, left = self.steer(state, scores[line])
            if forced is None and left.data_ptr() == scores[line].data_ptr():
                continue
            changed = scores.clone() if changed is scores else changed
            if forced is None:
                changed[line] = left
            else:
                changed[line] = -torch.inf
                changed[line, forced] = 0.0
        return changed

    # In rollouts.

    def hook(self, *, samples: int, prompts: Sequence[Sequence[int]] | None = None) -> ThinkingHook:
        """For one call of `roll_out` with so many samples a prompt, at this control's temperature.

        prompts: the ids that each prompt begins with. The control's keys name prompts here, by default by their place: a
        sample of a prompt is the same whatever others there are. Raises BadInput for samples below 1, and for a top_p below
        1: rollouts are of the whole distribution, and what a control draws from a nucleus itself would be noted as certain.
        """
        if self.top_p < 1:
            raise BadInput(
                f"top_p is {self.top_p}, but roll_out samples from all tokens: make the control with top_p=1."
            )
        if samples < 1:
            raise BadInput(f"samples is {samples}: use what roll_out gets, at least 1.")
        return ThinkingHook(self, samples, prompts)


class ThinkingHook:
    """A control as `language.rollouts` takes it, with a state for each row, prompt * samples + sample. states: row -> its
    own."""

    def __init__(self, control: ThinkingControl, samples: int, prompts: Sequence[Sequence[int]] | None = None) -> None:
        self.control, self.samples, self.prompts = control, samples, prompts
        self.states: dict[int, ThinkingState] = {}

    def __call__(self, logits: Tensor, states: Tensor, rows: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        """The logits [A, V] as the control leaves them, and the ids [A] that it forces, -1 for none."""
        forced, left = [], []
        for line, row in enumerate(rows):
            if row not in self.states:
                index, sample = divmod(row, self.samples)
                key = index if self.control.keys is None else self.control.keys[index]
                prompt = None if self.prompts is None else self.prompts[index]
                self.states[row] = self.control.begin(key, prompt, sample)
            token, changed = self.control.steer(self.states[row], logits[line])
            forced.append(-1 if token is None else token)
            left.append(changed)
        same = all(each.data_ptr() == logits[line].data_ptr() for line, each in enumerate(left))
        return logits if same else torch.stack(left), torch.tensor(forced, device=logits.device)

    def wrote(self, rows: Sequence[int], tokens: Tensor) -> None:
        """What was written at this step."""
        for row, token in zip(rows, tokens.tolist(), strict=True):
            self.control.wrote(self.states[row], token)


def chance_of(logits: Tensor, ids: Sequence[int], temperature: float = 1.0, top_p: float = 1.0) -> float:
    """The probability that one of the ids is chosen from logits [V], at a temperature and within the likeliest top_p.

    temperature 0: 1 where the likeliest id is one of them, else 0.
    """
    if temperature == 0:
        return float(int(logits.argmax()) in ids)
    chances = (doubled(logits) / temperature).softmax(dim=-1)
    found = torch.tensor(tuple(ids), device=chances.device)
    if top_p < 1 and float(chances[chances > chances[found].max()].sum()) >= top_p:
        return 0.0  # all of them lie beyond: no need to sort a vocabulary
    if top_p < 1:
        chances = _nucleus(chances, top_p)
    return float(chances[found].sum())


def _nucleus(chances: Tensor, top_p: float) -> Tensor:
    """Probabilities [V] within the fewest likeliest that have top_p together, as `choose` cuts them; 0 beyond."""
    share, order = chances.sort(descending=True, stable=True)
    beyond = share.cumsum(dim=-1) - share >= top_p
    kept = chances.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    return kept / kept.sum()


def _without(values: Tensor, ids: Sequence[int], nothing: float = -math.inf) -> Tensor:
    return values.index_fill(-1, torch.tensor(tuple(ids), device=values.device), nothing)


# The library's own loop.


@dataclass(frozen=True, slots=True)
class Thought:
    """What a model thought and answered. Tokens of the thinking include its tags, those of the answer no end token.

    What a model writes before a tag that opens its thinking is counted and shown with it; where it never opens it, all is
    answer, and thinking_tokens is 0.

    ids: all of them. closed: whether the thinking ended; without that the answer is "". ended: whether the answer did,
    before the tokens were spent. forced: how many ids were written in the model's stead. trace: where that was decided.
    """

    ids: tuple[int, ...]
    thinking: str
    answer: str
    thinking_tokens: int
    answer_tokens: int
    closed: bool
    ended: bool
    forced: int
    trace: tuple[Intervention, ...]

    @property
    def tokens(self) -> int:
        """Of thinking and answer."""
        return self.thinking_tokens + self.answer_tokens


def write_thoughts(
    language_model: LanguageModel,
    prompts: Sequence[str | Sequence[Message]],
    control: ThinkingControl,
    *,
    max_new_tokens: int,
    seed: int | Sequence[int] = 0,
    keys: Sequence[int] | None = None,
    batch_size: int = 32,
) -> list[Thought]:
    """A thought about each prompt, at the control's temperature and top_p, with at most so many tokens of both parts.

    seed, keys: name the draws of tokens, and of the control in place of its own keys; a prompt with the same key and seed
    is thought about alike in any company. Raises BadInput as `encode_prompts` and `check_room` do.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise BadInput(f"max_new_tokens is {max_new_tokens} and batch_size {batch_size}: both must be at least 1.")
    encoded, ends = encode_prompts(language_model, prompts)
    check_room(language_model, encoded, max_new_tokens)
    names = list(range(len(encoded)) if keys is None else keys)
    draws = drawing(len(encoded), 1, seed, names)
    control.ends = control.ends | ends
    found: dict[int, Thought] = {}
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]), reverse=True)
    with (
        evaluating(language_model.model),
        memory_advice(batch_size),
        progress("Thinking", total=len(encoded), unit="prompts") as bar,
    ):
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            states = [control.begin(names[index], encoded[index]) for index in chosen]
            drawn = draws.next(chosen, max_new_tokens) if control.temperature > 0 else None
            following = partial(_next, control, states, drawn)
            limits = [max_new_tokens] * len(chosen)
            for line, written in write(language_model, [encoded[i] for i in chosen], ends, limits, following):
                found[chosen[line]] = thought_of(control, states[line], written.ended)
                bar.advance(1)
    return [found[index] for index in range(len(encoded))]


def _next(
    control: ThinkingControl,
    states: Sequence[ThinkingState],
    drawn: Tensor | None,
    logits: Tensor,
    _: Tensor,
    lines: Sequence[int],
    step: int,
) -> Tensor:
    if bool(logits.isnan().any()):
        raise BadInput(
            "The model's logits are not numbers: its weights are damaged, or too great for its dtype (float32)."
        )
    steered = [control.steer(states[line], row) for line, row in zip(lines, logits, strict=True)]
    uniform = None if drawn is None else drawn[list(lines), step]
    tokens = choose(
        torch.stack([left for _, left in steered]), control.temperature, uniform, top_p=control.top_p
    ).tolist()
    tokens = [token if forced is None else forced for token, (forced, _) in zip(tokens, steered, strict=True)]
    for line, token in zip(lines, tokens, strict=True):
        control.wrote(states[line], token)
    return torch.tensor(tokens, device=logits.device)


def thought_of(control: ThinkingControl, state: ThinkingState, ended: bool) -> Thought:
    """What a state has come to. ended: whether by itself, not for want of tokens."""
    written = state.written[:-1] if state.finished else state.written
    cut = len(written) if state.ended is None else state.ended
    if state.begun is None:  # it answered at once
        cut = 0
    thinking, answer = written[:cut], written[cut:]
    tokenizer, is_closed = control.vocabulary.tokenizer, state.ended is not None or state.begun is None
    text = control.vocabulary.decode(thinking)
    said = tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Thought(
        ids=tuple(written),
        thinking=text.rpartition(control.tags.closing)[0] if state.ended else text,
        answer=said,
        thinking_tokens=len(thinking),
        answer_tokens=len(answer),
        closed=is_closed,
        ended=ended,
        forced=len(state.forced),
        trace=tuple(state.trace),
    )
