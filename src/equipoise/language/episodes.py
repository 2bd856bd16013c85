"""Episodes: a model and text environments take turns, and what came of it is tokens that a policy gradient can learn from.

    rolled = play(language_model, make, seeds, samples=8, max_turns=6, max_new_tokens=64, temperature=1.0, seed=0)
    rolled.episodes[row].score, rolled.owner, rolled.turn

P seeds with N samples each are R = P N rows, as of `roll_out`; one turn gives what `roll_out` gives. A row holds all that
followed the prompt: the model's tokens as it wrote them, never tokenized anew, and the replies between. `mask` is true at
the model's alone. All rows that are still playing write their turns together; a turn reads its row from the start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import check_fields
from equipoise.core.progress import progress
from equipoise.language.encode import encode_prompts, encode_replies
from equipoise.language.generate import check_room
from equipoise.language.model import evaluating, memory_advice
from equipoise.language.rollouts import Draws, Noted, Rollouts, drawing, fill

if TYPE_CHECKING:
    from equipoise.data.environment import Environment, Maker
    from equipoise.data.records import Message
    from equipoise.language.model import LanguageModel

OWNERS = ("nobody", "model", "environment", "tool")  # of a token, by the numbers in `Rollouts.owner`
MODEL, ENVIRONMENT, TOOL = 1, 2, 3
Outcome = Literal["done", "turns", "room", "failed"]


@dataclass(frozen=True, slots=True)
class Turn:
    """text: what the model wrote. reply: what it was told then; of the last turn nobody read it. info: the environment's.

    begin, end: the places of the model's tokens in the row; stop: where what follows them ends, replies among it.
    """

    text: str
    reply: str
    reward: float
    info: Mapping[str, Any]
    begin: int
    end: int
    stop: int


@dataclass(frozen=True, slots=True)
class Episode:
    """first: the environment's first text. score: the sum of rewards; 0 for one that failed.

    outcome: done, the environment ended it; turns, max_turns came first; room, the context was full; failed, the environment
    raised, or gave what is no reward. reason: of that, one sentence.
    """

    seed: int
    first: str
    turns: tuple[Turn, ...]
    score: float
    outcome: Outcome
    reason: str = ""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def success(self) -> bool:
        """Whether the environment ended it and says that it was solved; of a composed one, each of its tasks."""
        ends = [turn for turn in self.turns if turn.info.get("task_done")] or self.turns[-1:]
        return self.outcome == "done" and all(bool(turn.info.get("success", False)) for turn in ends)

    @property
    def valid(self) -> float:
        """The share of turns whose action the environment understood and allowed."""
        return sum(bool(turn.info.get("valid", True)) for turn in self.turns) / max(len(self.turns), 1)


def play(
    language_model: LanguageModel,
    make: Maker,
    seeds: Sequence[int],
    *,
    samples: int,
    max_turns: int,
    max_new_tokens: int,
    temperature: float,
    seed: int | Sequence[int],
    keys: Sequence[int] | None = None,
    prompts: Sequence[str | Sequence[Message]] | None = None,
    batch_size: int = 64,
) -> Rollouts:
    """`samples` episodes of each seed, each in an environment of its own.

    seeds: of the environments. max_turns: an episode that has not ended by then is cut, and keeps its rewards.
    max_new_tokens: of a turn. seed, keys, temperature, batch_size: as of `roll_out`. prompts: what is shown in place of each
    seed's first text, which must hold it (a hint beside it, say).
    An environment that raises in `step` ends its episode with score 0, and the others go on.
    Raises BadInput for settings out of range, for a `reset` that raises, tells nothing, or not the same to every sample of a
    seed, and for a prompt without room for a turn.
    """
    if min(samples, max_turns, max_new_tokens, batch_size) < 1:
        raise BadInput(
            f"samples is {samples}, max_turns {max_turns}, max_new_tokens {max_new_tokens} and batch_size {batch_size}: at "
            "least 1 each."
        )
    if not 0 <= temperature < math.inf:
        raise BadInput(f"The temperature is {temperature}: use 0 for the likeliest actions, or a number above.")
    if prompts is not None and len(prompts) != len(seeds):
        raise BadInput(f"There are {len(prompts)} prompts for {len(seeds)} seeds: give one for each.")
    beginnings = [[begun(make, number) for _ in range(samples)] for number in seeds]
    for number, group in zip(seeds, beginnings, strict=True):
        if len({text for _, text in group}) > 1:
            raise BadInput(f"reset({number}) told two things: an environment must begin alike for the same seed.")
    firsts = [group[0][1] for group in beginnings]
    encoded, ends = encode_prompts(language_model, firsts if prompts is None else prompts)
    check_room(language_model, encoded, max_new_tokens, [f"of seed {number}" for number in seeds])
    draws = drawing(len(encoded), samples, seed, keys)
    rows = [
        _Row(environment, text, number, ids)
        for number, ids, group in zip(seeds, encoded, beginnings, strict=True)
        for environment, text in group
    ]
    with (
        evaluating(language_model.model),
        memory_advice(batch_size),
        progress(f"Playing {len(rows)} episodes", total=len(rows) * max_turns, unit="turns") as bar,
    ):
        limits = (max_turns, max_new_tokens)
        _play(language_model, rows, ends, draws, samples, limits, temperature, batch_size, bar)
    return _rollouts(language_model, rows, encoded, samples)


def begun(make: Maker, seed: int) -> tuple[Environment, str]:
    """An environment at the beginning of a seed's episode, and what it tells first. Raises BadInput where it fails."""
    environment = make()
    try:
        text = environment.reset(seed)
    except Exception as error:
        raise BadInput(f"reset({seed}) of {_named(environment)} raised {type(error).__name__}: {error}") from error
    if not isinstance(text, str) or not text.strip():
        raise BadInput(
            f"reset({seed}) of {_named(environment)} gave {text!r}: it must give the text that is seen first."
        )
    return environment, text


def _named(environment: Environment) -> str:
    return type(environment).__name__


@dataclass(slots=True)
class _Row:
    """One episode while it is played. prompt: what was read before. Lists: what followed, one entry a token."""

    environment: Environment
    first: str
    seed: int
    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    outcome: Outcome | None = None
    reason: str = ""

    def note(self, noted: Noted, line: int) -> None:
        """Put the turn that the model has written behind the row."""
        mask = noted.mask[line]
        ids = noted.ids[line][mask].tolist()
        self.ids += ids
        self.log_probs += noted.log_probs[line][mask].tolist()
        self.entropies += noted.entropies[line][mask].tolist()
        self.owner += [MODEL] * len(ids)
        self.turn += [len(self.turns)] * len(ids)

    def add(self, ids: Sequence[int], owner: int) -> None:
        """Put tokens that others wrote behind it."""
        self.ids += ids
        self.log_probs += [0.0] * len(ids)
        self.entropies += [0.0] * len(ids)
        self.owner += [owner] * len(ids)
        self.turn += [len(self.turns)] * len(ids)

    def act(self, text: str, begin: int) -> tuple[str, int]:
        """What the environment says to the model's text, and who of it; the episode has ended when `outcome` is set."""
        end, reply, reward, info = len(self.ids), "", 0.0, {}
        owner = ENVIRONMENT
        try:
            reply, reward, done, info = _checked(self.environment.step(text))
            owner = TOOL if info.get("owner", "environment") == "tool" else ENVIRONMENT
            self.outcome = "done" if done else None
        except Exception as error:
            self.outcome, self.reason = (
                "failed",
                f"step of {_named(self.environment)} raised {type(error).__name__}: {error}",
            )
        self.turns.append(Turn(text, reply, reward, info, begin, end, end))
        return reply, owner

    def episode(self) -> Episode:
        assert self.outcome is not None
        score = 0.0 if self.outcome == "failed" else math.fsum(turn.reward for turn in self.turns)
        return Episode(self.seed, self.first, tuple(self.turns), score, self.outcome, self.reason)


def _checked(told: Any) -> tuple[str, float, bool, dict[str, Any]]:
    reply, reward, done, info = told
    if not isinstance(reply, str):
        raise TypeError(f"the reply is a {type(reply).__name__}, expected a text")
    reward = float(reward)
    if not math.isfinite(reward):
        raise ValueError(f"the reward is {reward}")
    return reply, reward, bool(done), dict(info or {})


def _play(
    language_model: LanguageModel,
    rows: list[_Row],
    ends: frozenset[int],
    draws: Draws,
    samples: int,
    limits: tuple[int, int],
    temperature: float,
    batch_size: int,
    bar: Any,
) -> None:
    max_turns, max_new_tokens = limits
    alive = list(range(len(rows)))
    for turn in range(max_turns):
        repeats = samples if turn == 0 else 1  # at first all samples of a seed read the same
        beginning = alive[::repeats]
        contexts = [rows[place].prompt + rows[place].ids for place in beginning]
        allowed = [min(max_new_tokens, language_model.context - len(context)) for context in contexts]
        drawn = draws.next(alive, max_new_tokens) if temperature > 0 else None
        noted = Noted(len(alive), max_new_tokens, language_model, temperature, drawn)
        first = range(0, len(alive), repeats)
        fill(noted, language_model, contexts, ends, allowed, first, repeats, batch_size, lambda row: bar.advance())
        replies: dict[int, tuple[str, int]] = {}
        for line, place in enumerate(alive):
            row = rows[place]
            begin = len(row.ids)
            row.note(noted, line)
            replies[place] = row.act(noted.texts[line], begin)
            if row.outcome is None and turn == max_turns - 1:
                row.outcome = "turns"
        playing = [place for place in alive if rows[place].outcome is None]
        _answer(language_model, rows, playing, replies, ends)
        playing = [place for place in playing if rows[place].outcome is None]
        bar.advance((len(alive) - len(playing)) * (max_turns - turn - 1))  # turns that those who have ended do not take
        if not playing:
            break
        alive = playing


def _answer(
    language_model: LanguageModel,
    rows: list[_Row],
    playing: list[int],
    replies: Mapping[int, tuple[str, int]],
    ends: frozenset[int],
) -> None:
    """Put the replies behind the rows that go on; an episode ends where its reply leaves no room for a turn."""
    end, encoded = encode_replies(language_model, [replies[place][0] for place in playing])
    for place, ids in zip(playing, encoded, strict=True):
        row, owner = rows[place], replies[place][1]
        closing = [] if row.ids[-1] in ends else end
        if len(row.prompt) + len(row.ids) + len(closing) + len(ids) >= language_model.context:
            row.outcome = "room"
            continue
        last = row.turns.pop()
        row.add(closing, ENVIRONMENT)
        row.add(ids, owner)
        row.turns.append(replace(last, stop=len(row.ids)))


def _rollouts(
    language_model: LanguageModel, rows: list[_Row], encoded: Sequence[Sequence[int]], samples: int
) -> Rollouts:
    device, longest = language_model.device, max((len(row.ids) for row in rows), default=1)
    dtype = torch.float64 if language_model.model.dtype == torch.float64 else torch.float32

    def tensor(name: str, fill: float, dtype: torch.dtype) -> Tensor:
        values = [getattr(row, name) for row in rows]
        return torch.tensor(
            [each + [fill] * (longest - len(each)) for each in values], dtype=dtype, device=device
        ).view(len(rows), longest)

    owner = tensor("owner", 0, torch.int8)
    mask = owner == MODEL
    return Rollouts(
        prompts=tuple(tuple(ids) for ids in encoded),
        samples=samples,
        pad_id=language_model.pad_id,
        ids=tensor("ids", language_model.pad_id, torch.int64),
        mask=mask,
        log_probs=tensor("log_probs", 0.0, dtype),
        entropies=tensor("entropies", 0.0, dtype),
        forced=torch.zeros_like(mask),
        ended=torch.tensor([row.outcome == "done" for row in rows], dtype=torch.bool, device=device),
        texts=tuple("\n".join(turn.text for turn in row.turns) for row in rows),
        owner=owner,
        turn=tensor("turn", -1, torch.int64),
        episodes=tuple(row.episode() for row in rows),
    )
