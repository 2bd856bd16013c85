"""Choosing among several answers to a question by how sure each is, and steering while they are written.

`select` keeps the surest answers and lets them vote. `particle_filter` writes several answers step by step and, after every
step, continues the surer ones more often (arXiv:2502.01618, with the reward of arXiv:2505.11737, alg. 2).

The paper leaves open how particles are weighted: here the reward of a particle is minus the mean uncertainty of all that it
has written, divided by its standard deviation over the particles, so that the weights do not depend on the model's scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.data import final_answer
from equipoise.data.answers import normalize
from equipoise.language.confidence import over_answer
from equipoise.language.encode import encode_prompts
from equipoise.language.generate import answer_text, check_room, choose, write
from equipoise.language.model import LanguageModel, evaluating, memory_advice
from equipoise.language.rollouts import drawing
from equipoise.uncertainty.perturbed import Perturbed, perturb
from equipoise.uncertainty.tokur import Encoded, Measure, Prompt, score_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

Vote = Literal["majority", "weighted"]
# (tokens of the prompt, those of each particle) -> a reward for each, higher is better
Reward = Callable[[Sequence[int], Sequence[Sequence[int]]], "Sequence[float] | Tensor"]


@dataclass(frozen=True)
class Selected:
    """answer: the place of the chosen answer, the surest of those that agree. votes: of each that was kept, by its text."""

    answer: int
    kept: tuple[int, ...]
    votes: Mapping[str, float]


@closed
def select(
    answers: Sequence[str],
    scores: Sequence[float],
    *,
    keep: float = 0.1,
    vote: Vote = "majority",
    read: Callable[[str], str] | None = None,
) -> Selected:
    """Of N answers the max(1, floor(keep N)) surest vote; the answer with most votes is chosen, the surest at a tie.

    scores: [N], higher is surer, none nan. vote: each kept answer counts 1, or its share of the softmax of the kept scores.
    read: what an answer comes to, by default `canonical`; an answer that comes to nothing agrees with no other.
    keep = 1 with majority is plain self-consistency. Raises BadInput without answers, for nan, and for keep outside (0, 1].
    """
    if not answers or len(answers) != len(scores):
        raise BadInput(f"There are {len(answers)} answers and {len(scores)} scores: give one score each, at least one.")
    if not 0 < keep <= 1:
        raise BadInput(f"keep is {keep}: use a share of the answers above 0, at most 1.")
    sure = np.asarray(scores, float)
    if np.isnan(sure).any():
        raise BadInput(f"The score of answer {int(np.isnan(sure).argmax())} is nan: leave that answer out.")
    kept = np.argsort(-sure, kind="stable")[: max(1, math.floor(keep * len(answers) + 1e-9))]
    weights = np.ones(len(kept))
    if vote == "weighted":
        best = sure[kept][0]
        weights = np.exp(sure[kept] - best) if np.isfinite(best) else (sure[kept] == best).astype(float)
        weights /= weights.sum()
    texts = meanings(answers, read or canonical)
    votes: dict[str, float] = {}
    first: dict[str, int] = {}
    for place, weight in zip(kept.tolist(), weights.tolist(), strict=True):
        text = texts[place]
        votes[text] = votes.get(text, 0.0) + weight
        first.setdefault(text, place)
    most = max(votes.values())
    chosen = next(text for text, amount in votes.items() if amount >= most - 1e-12)
    return Selected(first[chosen], tuple(kept.tolist()), votes)


def meanings(answers: Sequence[str], read: Callable[[str], str]) -> list[str]:
    """What each answer comes to; one that comes to nothing agrees with no other."""
    return [read(answer) or f"(answer {place})" for place, answer in enumerate(answers)]


def canonical(answer: str) -> str:
    """What an answer comes to: its number (marked, or the last), else its words in lower case; "" for nothing."""
    found = final_answer.number(answer)
    return normalize(answer) if found is None else str(found)


@dataclass(frozen=True)
class Particles:
    """N answers to one prompt. weights: [N], of the last resampling, sum 1. steps: how many were made.

    surest: the place of the answer whose canonical form has most weight, the heaviest among equals.
    """

    texts: tuple[str, ...]
    weights: Tensor
    steps: int
    surest: int


@closed
def particle_filter(
    language_model: LanguageModel | Perturbed,
    prompt: Prompt,
    *,
    seed: int,
    particles: int = 16,
    steps: int = 40,
    step_tokens: int = 256,
    temperature: float = 0.8,
    reward: Reward | None = None,
    reward_temperature: float = 1.0,
    members: int = 4,
    of: Measure = "tu",
    separator: str = "\n\n",
    batch_size: int = 16,
) -> Particles:
    """Write `particles` answers in steps, each up to a separator; after each step draw anew which are continued.

    Drawn are N places from softmax(reward / reward_temperature), independently; what has ended stays in the draw. reward: by
    default minus the mean TU, AU or EU of a particle's tokens over its standard deviation across particles. An answer ends
    at an end token or after steps x step_tokens at most. Raises BadInput for settings out of range, and without room.
    """
    if min(particles, steps, step_tokens) < 1 or not separator:
        raise BadInput(
            f"particles is {particles}, steps {steps}, step_tokens {step_tokens}: at least 1 each, and a separator."
        )
    if not (0 < temperature < math.inf and 0 < reward_temperature < math.inf):
        raise BadInput(f"temperature is {temperature}, reward_temperature {reward_temperature}: use numbers above 0.")
    unsure = language_model if isinstance(language_model, Perturbed) else perturb(language_model)
    model = unsure.language_model
    (context,), ends = encode_prompts(model, [prompt])
    check_room(model, [context], step_tokens)
    judge = reward or _unsureness(unsure, of, members, seed, batch_size)
    draws = drawing(1, particles, seed, None)
    generator = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    written: list[list[int]] = [[] for _ in range(particles)]
    ended = [False] * particles
    weights = np.full(particles, 1 / particles)
    made = 0
    while made < steps and not all(ended):
        active = [row for row in range(particles) if not ended[row]]
        for start in range(0, len(active), batch_size):
            rows = active[start : start + batch_size]
            for row, (tokens, end) in zip(
                rows, _step(model, [[*context, *written[row]] for row in rows], ends, step_tokens, temperature, separator,
                            draws.next(rows, step_tokens)), strict=True,
            ):  # fmt: skip
                written[row] = [*written[row], *tokens]
                ended[row] = end or len(context) + len(written[row]) + step_tokens > model.context
        made += 1
        worth = np.asarray(judge(context, written), float)
        weights = np.exp((worth - worth.max()) / reward_temperature)
        weights /= weights.sum()
        if made < steps and not all(ended):
            places = generator.choice(particles, size=particles, p=weights)
            written, ended = [written[place] for place in places], [ended[place] for place in places]
            weights = np.full(particles, 1 / particles)
    texts = tuple(answer_text(model.tokenizer, tokens) for tokens in written)
    surest = select(texts, np.log(np.maximum(weights, 1e-300)).tolist(), keep=1.0, vote="weighted").answer
    return Particles(texts, torch.from_numpy(weights), made, surest)


def _step(
    language_model: LanguageModel,
    rows: Sequence[Sequence[int]],
    ends: frozenset[int],
    limit: int,
    temperature: float,
    separator: str,
    drawn: Tensor,
) -> list[tuple[list[int], bool]]:
    """The next step of each row: its tokens, the separator among them, and whether the answer has ended with it."""
    tokens: list[list[int]] = [[] for _ in rows]
    over = [False] * len(rows)
    tokenizer = language_model.tokenizer

    def following(logits: Tensor, _: Tensor, lines: Sequence[int], step: int) -> Tensor:
        chosen = choose(logits, temperature, drawn[list(lines), step])
        for line, token in zip(lines, chosen.tolist(), strict=True):
            over[line] = token in ends
            if not over[line]:
                tokens[line].append(token)
        return chosen

    def leaves(line: int) -> bool:
        text = str(tokenizer.decode(tokens[line], skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return separator in text.lstrip()

    with evaluating(language_model.model), memory_advice(len(rows)):
        for _ in write(language_model, rows, ends, [limit] * len(rows), following, leaves=leaves):
            pass
    return list(zip(tokens, over, strict=True))


def _unsureness(unsure: Perturbed, of: Measure, members: int, seed: int, batch_size: int) -> Reward:
    def reward(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> Tensor:
        some = [place for place, answer in enumerate(answers) if answer]
        found = torch.zeros(len(answers), dtype=torch.float64)
        if some:
            rows = [Encoded(tuple(prompt), tuple(answers[place]), ()) for place in some]
            scores = score_tokens(unsure, rows, members=members, seed=seed, batch_size=batch_size)
            sure = -over_answer(getattr(scores, of), scores.mask).double()
            spread = sure.std(correction=0)
            sure = (sure - sure.mean()) / spread if spread > 0 else torch.zeros_like(sure)
            # What has no token has no uncertainty either: no reason to continue it.
            found[:] = sure.min()
            found[some] = sure
        return found

    return reward
