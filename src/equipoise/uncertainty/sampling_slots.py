"""Value slots of what a model writes, and the symbols' probabilities at each.

A slot is the place of the token in which a value's first visible character stands; blanks before it belong to what stands
between values, whether the tokenizer makes them a token or not. A symbol has a path of tokens, mostly one, or a few paths
(with and without a blank before it, which many tokenizers write into the symbol's first token). Its probability at a slot is
the sum over its paths of the product of conditional probabilities along them; where a path goes on to another symbol ("1"
and "10"), less what goes on. Where the blank is a token of its own before some symbols and a part of others, as where digits
stand beside words, whether it comes decides the value: then the slot begins with the blank. Probabilities are the model's
own, of softmax(logits) among all tokens, whatever temperature the draws have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.language.encode import encode_prompts
from equipoise.language.generate import check_room, choose, write
from equipoise.language.model import evaluating, memory_advice
from equipoise.language.rollouts import Draws
from equipoise.language.score import doubled, head_reads, wide
from equipoise.uncertainty.sampling_task import SamplingTask, bared

if TYPE_CHECKING:
    from equipoise.data.records import Message
    from equipoise.language.model import LanguageModel

Array = NDArray[np.float64]
Slots = Literal["read", "set"]
Path = tuple[int, ...]
LEAST = 1e-300  # a probability that float64 cannot hold counts as this
READ_AT_ONCE = 2**13  # tokens, where symbols of several tokens are read anew


@dataclass(frozen=True)
class ValueSequence:
    """One context's values.

    probabilities: [T, k], at each slot, of the symbols among all tokens; draws: [T], which symbol was written there, -1 for
    what is none; places: [T], of the slots among the tokens. unread: values whose first character shares a token with the
    separator before it, so that they have no slot; they are left out. tokens, text: what was written.
    """

    probabilities: Array
    draws: NDArray[np.intp]
    places: NDArray[np.intp]
    unread: int
    tokens: tuple[int, ...]
    text: str


class SymbolPaths:
    """The token paths of a task's symbols for one tokenizer.

    first: the tokens that begin any of them. leading: the blanks among these, where slots begin with the blank.
    """

    def __init__(self, language_model: LanguageModel, task: SamplingTask) -> None:
        """Raises BadInput for a symbol without tokens of its own, and for two that share a path."""
        self._tokenizer: Any = language_model.tokenizer
        self.owner: dict[Path, int] = {}
        mark, unknown = task.separator.strip(), self._tokenizer.unk_token_id
        contexts = ("", "\n", mark, task.separator.rstrip(" "), task.separator)
        marked: list[Path] = [self._behind(mark, " " + symbol) if mark else () for symbol in task.symbols]
        apart = [bool(path) and self.blank(path[0]) for path in marked]
        mixed = any(apart) and not all(apart)
        self.leading = frozenset(path[0] for path, alone in zip(marked, apart, strict=True) if mixed and alone)
        for index, symbol in enumerate(task.symbols):
            plain = self._bare(self._ids(symbol))
            if unknown in plain:
                raise BadInput(f"This tokenizer has no token for a part of {symbol!r}: rename the symbol.")
            if not mark and len(plain) > 1:
                raise BadInput(
                    f"{symbol!r} is {len(plain)} tokens of this model, which cannot be told apart without a separator: "
                    "give one, or rename the symbol."
                )
            paths = {self._bare(self._behind(each, blank + symbol)) for each in contexts for blank in ("", " ")}
            if self.leading.intersection(marked[index][:1]):
                paths.add(marked[index])
            for path in sorted(paths - {()}):
                if unknown in path or (not mark and len(path) > 1):  # the blank or line end cannot be written so
                    continue
                if self.owner.setdefault(path, index) != index:
                    other = task.symbols[self.owner[path]]
                    raise BadInput(f"This tokenizer writes {symbol!r} and {other!r} alike: rename one of them.")
        nodes = {path[:length] for path in self.owner for length in range(len(path))}
        self.children = {node: sorted({p[len(node)] for p in self.owner if self._below(p, node)}) for node in nodes}
        self.first = self.children[()]
        self.inner = sorted(node for node in nodes if node)
        self.longest = max(map(len, self.owner))

    def between(self, task: SamplingTask) -> Path:
        """The tokens that stand between two values. Raises BadInput for a tokenizer that writes them into the values'."""
        if not task.separator:
            return ()
        found = {self._stands_between(task, index) for index in range(len(task.symbols))}
        if len(found) != 1 or () in found:
            raise BadInput(
                f"This tokenizer joins {task.separator!r} with the values beside it: use another separator, or slots='read'."
            )
        return found.pop()

    def begins(self, tokens: Sequence[int], place: int) -> int:
        """Where the slot of a value begins whose first visible character stands in the token at this place."""
        return place - 1 if place and tokens[place - 1] in self.leading else place

    def blank(self, token: int) -> bool:
        """Whether a token is white space alone."""
        return not self.piece(token).strip()

    def piece(self, token: int) -> str:
        """The text of a token by itself."""
        return self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def path_probabilities(self, log_probs: dict[Path, Array]) -> tuple[list[Path], Array]:
        """All paths, and the probability [S, paths] of each at S slots.

        log_probs: node -> [S, its children] natural logarithms, of the root () and of every inner node.
        """
        reached: dict[Path, Array] = {(): np.zeros(len(log_probs[()]))}
        for node in sorted(self.children, key=len):
            for place, token in enumerate(self.children[node]):
                reached[(*node, token)] = reached[node] + log_probs[node][:, place]
        paths, columns = sorted(self.owner), []
        for path in paths:
            stays = np.ones(len(reached[path]))
            if path in self.children:
                stays = np.maximum(1 - np.exp(log_probs[path]).sum(axis=1), 0)
            columns.append(np.exp(reached[path]) * stays)
        return paths, np.stack(columns, axis=1)

    def symbol_probabilities(self, log_probs: dict[Path, Array], count: int) -> Array:
        """[S, k], of the symbols: sums over their paths."""
        paths, probabilities = self.path_probabilities(log_probs)
        found = np.zeros((len(probabilities), count))
        for path, column in zip(paths, probabilities.T, strict=True):
            found[:, self.owner[path]] += column
        return np.maximum(found, LEAST)

    def _ids(self, text: str) -> Path:
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _behind(self, context: str, text: str) -> Path:
        """The text's tokens behind this context; () where a token holds both."""
        before, ids = self._ids(context) if context else (), self._ids(context + text)
        return ids[len(before) :] if ids[: len(before)] == before else ()

    def _bare(self, path: Path) -> Path:
        """Without the blank tokens before it."""
        while path and self.blank(path[0]):
            path = path[1:]
        return path

    def _stands_between(self, task: SamplingTask, index: int) -> Path:
        """The tokens between a symbol and itself; () where one of them holds a part of either."""
        symbol = task.symbols[index]
        ids = self._behind(symbol, task.separator + symbol)
        lengths = [n for n in range(1, len(ids)) if self.owner.get(ids[-n:]) == index]
        return ids[: len(ids) - lengths[-1]] if lengths else ()

    @staticmethod
    def _below(path: Path, node: Path) -> bool:
        return len(path) > len(node) and path[: len(node)] == node


class Values:
    """The values of one sequence, read token by token. done: (place of the slot or None, text without blanks)."""

    def __init__(self, task: SamplingTask) -> None:
        self.done: list[tuple[int | None, str]] = []
        self._mark, self._start, self._text = task.separator.strip(), None, ""
        self._known = {bared(symbol): index for index, symbol in enumerate(task.symbols)}

    def add(self, place: int, piece: str) -> None:
        """The next token. A line end separates values, too."""
        if not self._mark:
            self.done.append((place, piece))
            return
        passed = False
        for character in piece:
            if character in (self._mark, "\n"):
                passed = True
                self.end()
            elif not character.isspace():
                if not self._text:
                    self._start = None if passed else place
                self._text += character

    def end(self) -> None:
        """Nothing more comes, or not to this value."""
        if self._text:
            self.done.append((self._start, self._text))
        self._start, self._text = None, ""

    def symbol(self, text: str) -> int:
        """Which symbol a value is, -1 for none; a full stop behind the last one is none of it."""
        text = bared(text)
        return self._known.get(text, self._known.get(text.removesuffix("."), -1))


@closed
def sample(
    language_model: LanguageModel,
    request: str | Sequence[Message],
    task: SamplingTask,
    *,
    values: int,
    sequences: int,
    seed: Sequence[int],
    temperature: float = 1.0,
    slots: Slots = "read",
    first: int = 0,
    batch_size: int = 16,
) -> list[ValueSequence]:
    """So many sequences of values that the model writes at a request, each from a fresh context.

    slots: "read" samples from the whole vocabulary and reads the values in what comes; "set" draws each value from the
    symbols alone and puts in what stands between them, so that every sequence has all its slots. temperature: of the draws,
    0 for the likeliest. seed, and the sequence's number from `first` on, alone decide a sequence. Symbols of several tokens
    cost a reading of the context for each inner node and slot.
    Raises BadInput for symbols that cannot be told apart in this model's tokens, and a request without room for its answer.
    """
    paths = SymbolPaths(language_model, task)
    (prompt,), ends = encode_prompts(language_model, [request])
    limit = token_limit(paths, task, values, slots)
    check_room(language_model, [prompt], limit)
    found: list[ValueSequence] = []
    with evaluating(language_model.model), memory_advice(batch_size):
        for begin in range(first, first + sequences, batch_size):
            rows = range(begin, min(begin + batch_size, first + sequences))
            draws = [Draws([row], 1, seed) for row in rows]
            writer = _Writer(language_model, task, paths, prompt, ends, values, slots, temperature, draws)
            limits, repeats = [limit] * len(rows), len(rows)
            for line, written in write(
                language_model, [prompt], ends, limits, writer.choose, repeats=repeats, leaves=writer.leaves
            ):
                writer.texts[line] = written.text
            found += writer.sequences()
    return found


@closed
def token_limit(paths: SymbolPaths, task: SamplingTask, values: int, slots: Slots) -> int:
    """Tokens that a sequence may take: room for two blanks beside each value, and for a few words before."""
    if not task.separator:
        return values
    between = len(paths.between(task)) if slots == "set" else 3
    return values * (paths.longest + between) + (16 if slots == "read" else between)


class _Writer:
    """Chooses the tokens of one batch of sequences, and notes the symbols' probabilities."""

    def __init__(
        self,
        language_model: LanguageModel,
        task: SamplingTask,
        paths: SymbolPaths,
        prompt: Sequence[int],
        ends: frozenset[int],
        values: int,
        slots: Slots,
        temperature: float,
        draws: Sequence[Draws],
    ) -> None:
        self._language_model, self._task, self._paths = language_model, task, paths
        self._prompt, self._ends, self._values, self._temperature, self._draws = (
            prompt,
            ends,
            values,
            temperature,
            draws,
        )
        self.texts = [""] * len(draws)
        self._tokens: list[list[int]] = [[] for _ in draws]
        self._read = [Values(task) for _ in draws]
        self._roots: list[list[Array]] = [[] for _ in draws]  # of each token written
        self._set: list[tuple[list[Array], list[int], list[int]]] | None = None
        self._queued: list[list[int]] = [[] for _ in draws]
        self._between: Path = ()
        if slots == "set":
            self._set, self._between = [([], [], []) for _ in draws], paths.between(task)
            if not language_model.uses_chat_template:  # there the blank before a first value is the model's to write
                blanks = [token for token in self._between if paths.blank(token)]
                self._queued = [list(blanks) for _ in draws]

    def choose(self, logits: Tensor, states: Tensor, rows: Sequence[int], step: int) -> Tensor:
        """The next tokens [A], as `generate.write` asks for them."""
        roots = doubled(logits).log_softmax(dim=-1)[:, self._paths.first].cpu().numpy()
        chosen = self._in_slots(roots, rows) if self._set is not None else self._freely(logits, rows)
        for row, token, root in zip(rows, chosen, roots, strict=True):
            self._roots[row].append(root)
            self._tokens[row].append(token)
            if token in self._ends:
                self._read[row].end()
            else:
                self._read[row].add(len(self._tokens[row]) - 1, self._paths.piece(token))
        return torch.tensor(chosen)

    def leaves(self, row: int) -> bool:
        """Whether a sequence has all its values."""
        if self._set is not None:
            return len(self._set[row][1]) >= self._values and not self._queued[row]
        return len(self._read[row].done) >= self._values

    def sequences(self) -> list[ValueSequence]:
        """What was written and noted, in order."""
        count = len(self._task.symbols)
        if self._set is not None:
            return [
                self._sequence(row, np.array(noted).reshape(-1, count), drawn, places, 0)
                for row, (noted, drawn, places) in enumerate(self._set)
            ]
        made = []
        for row, read in enumerate(self._read):
            read.end()
            done = read.done[: self._values]
            places = [self._paths.begins(self._tokens[row], place) for place, _ in done if place is not None]
            contexts = [[*self._prompt, *self._tokens[row][:place]] for place in places]
            roots = np.array([self._roots[row][place] for place in places]).reshape(-1, len(self._paths.first))
            noted = self._paths.symbol_probabilities({(): roots, **self._inner(contexts)}, count)
            drawn = [read.symbol(text) for place, text in done if place is not None]
            made.append(self._sequence(row, noted, drawn, places, len(done) - len(places)))
        return made

    def _sequence(
        self, row: int, noted: Array, drawn: Sequence[int], places: Sequence[int], unread: int
    ) -> ValueSequence:
        draws, at = np.array(drawn, dtype=np.intp), np.array(places, dtype=np.intp)
        return ValueSequence(noted, draws, at, unread, tuple(self._tokens[row]), self.texts[row])

    def _freely(self, logits: Tensor, rows: Sequence[int]) -> list[int]:
        uniform = None
        if self._temperature:
            uniform = torch.cat([self._draws[row].next([0], 1)[0] for row in rows])
        return choose(logits, self._temperature, uniform).tolist()

    def _in_slots(self, roots: Array, rows: Sequence[int]) -> list[int]:
        assert self._set is not None
        due = [line for line, row in enumerate(rows) if not self._queued[row]]
        if due:
            contexts = [[*self._prompt, *self._tokens[rows[line]]] for line in due]
            log_probs = {(): roots[due], **self._inner(contexts)}
            noted = self._paths.symbol_probabilities(log_probs, len(self._task.symbols))
            paths, shares = self._paths.path_probabilities(log_probs)
            for line, symbols, share in zip(due, noted, np.maximum(shares, LEAST), strict=True):
                path = paths[self._drawn(paths, share, symbols, rows[line])]
                row = rows[line]
                self._set[row][0].append(symbols)
                self._set[row][1].append(self._paths.owner[path])
                self._set[row][2].append(len(self._tokens[row]))
                last = len(self._set[row][1]) >= self._values
                self._queued[row] = [*path, *(() if last else self._between)]
        return [self._queued[row].pop(0) for row in rows]

    def _drawn(self, paths: Sequence[Path], share: Array, symbols: Array, row: int) -> int:
        """A path: its symbol at the temperature, and of the symbol's paths one by their own shares."""
        owners = np.array([self._paths.owner[path] for path in paths])
        if not self._temperature:
            return int(np.where(owners == symbols.argmax(), share, 0).argmax())
        logs = np.log(share) + (1 / self._temperature - 1) * np.log(symbols)[owners]
        return int(choose(torch.from_numpy(logs).unsqueeze(0), 1.0, self._draws[row].next([0], 1)[0]))

    def _inner(self, contexts: Sequence[Sequence[int]]) -> dict[Path, Array]:
        return {
            node: next_log_probs(
                self._language_model, [[*each, *node] for each in contexts], self._paths.children[node]
            )
            for node in self._paths.inner
        }


def next_log_probs(language_model: LanguageModel, rows: Sequence[Sequence[int]], tokens: Sequence[int]) -> Array:
    """[n, tokens]: log-probabilities of these tokens to come next after each row of ids, from readings of the whole rows."""
    found = np.zeros((len(rows), len(tokens)))
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    while order:
        longest = len(rows[order[0]])
        together = max(READ_AT_ONCE // longest, 1)
        chosen, order = order[:together], order[together:]
        padded = [[*rows[index], *[language_model.pad_id] * (longest - len(rows[index]))] for index in chosen]
        ids = torch.tensor(padded, device=language_model.device)
        lengths = torch.tensor([[len(rows[index])] for index in chosen], device=ids.device)
        places = torch.arange(longest, device=ids.device)
        with evaluating(language_model.model), head_reads(language_model.model, places == lengths - 1):
            output: Any = language_model.model(input_ids=ids, attention_mask=(places < lengths).long(), use_cache=False)
        logits = wide(output.logits.squeeze(0)).cpu().double()
        found[chosen] = logits.log_softmax(dim=-1)[:, list(tokens)].numpy()
    return found
