"""The world of the study of nested games: a tiny decoder of characters that half knows a few games, and how it goes on.

    teach(preparation)                                       the seed's model, at its warm start; stored once a seed
    world = NestedWorld.open(run.seed, run.prepared)
    world.reinforce(run, recipe(...), "nested-mean", look, evaluations=2)     on a budget of games played; resumable
    world.evaluate(GAMES, episodes=400)                      each game alone, on seeds that nobody trains on

The games are sums to a modulus, matrix games of two actions, tic-tac-toe and a spy among four. All are written in few
characters. The warm start teaches forms: half of its lessons are single games and half are nested ones, so that no arm meets
a context that it has not seen, and some of the moves in them are right, the others any that is allowed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor, nn

from equipoise.core.options import closed
from equipoise.data import matrix_games, spy, tictactoe
from equipoise.data.environment import Environment, Maker, open_environment
from equipoise.data.matrix_games import MatrixGames
from equipoise.data.spoken import one_number
from equipoise.data.spy import SEATS, Bits, ScriptedPlayer, spy_bits
from equipoise.data.tictactoe import TicTacToe
from equipoise.language import tiny
from equipoise.language.encode import IGNORE, Example, collate, encode_prompts, encode_replies
from equipoise.language.episodes import Episode, play
from equipoise.language.model import LanguageModel, load
from equipoise.language.score import labelled_logits
from equipoise.reinforcement.nested_games import Combination, Even, Rotating, mixed, nested
from equipoise.reinforcement.playing import TURNS, Playing, no_reward
from equipoise.reinforcement.recipe import Recipe
from equipoise.reinforcement.training import ReinforceState, prepare, train
from equipoise.training.loop import OneLoss, TrainerSettings, fit

if TYPE_CHECKING:
    from equipoise.data.problems import Problem
    from equipoise.reinforcement.stages import Step

WIDTH, LAYERS, HEADS, CONTEXT = 64, 3, 4, 256
MAX_NEW_TOKENS = 4  # of a turn: the longest move, and its end
BATCH_SIZE, LEARNING_RATE = 32, 2e-3  # of the warm start
CHECKPOINT = 100  # steps
EPSILON = 0.5  # of the opponent at tic-tac-toe: half of its moves are perfect
SEEDS = 512  # of episodes to learn from
UNSEEN = 1_000_000  # from here on are the seeds of what is evaluated
TEMPERATURE = 1.0  # of evaluations; at the paper's 0.5 the warm start has all but solved the matrix games
AT_ONCE = 200  # episodes of an evaluation
_LESSONS = 31  # a stream of a seed
_LOGGED = ("reward", "entropy", "gradient_norm", "success", "valid", "zero_advantage")
Arm = Literal[
    "nested-mean",
    "nested-min",
    "nested-product",
    "nested-all",
    "nested-segments",
    "mixed",
    "rotation",
    "only-sums",
    "only-matrix",
    "only-tictactoe",
    "only-spy",
]


class ModularSums:
    """A sum of two numbers below a modulus of two digits, to that modulus: "%11 07+10=", for which "06" is right."""

    max_turns = 1

    def __init__(self, moduli: Sequence[int] = (10, 11)) -> None:
        self.moduli = tuple(moduli)

    @property
    def chance(self) -> dict[str, float]:
        """Of any number below the modulus."""
        level = float(np.mean([1 / modulus for modulus in self.moduli]))
        return {"success": level, "score": level}

    def reset(self, seed: int) -> str:
        """The sum."""
        random = Random(seed)
        modulus = random.choice(self.moduli)
        one, other = random.randrange(modulus), random.randrange(modulus)
        self._right = (one + other) % modulus
        return f"%{modulus} {one:02}+{other:02}="

    def step(self, text: str) -> tuple[str, float, bool, dict[str, Any]]:
        """Answer it with a number."""
        number = one_number(text)
        if number is None:
            return "?a number", matrix_games.INVALID, True, {"success": False, "valid": False}
        right = number == self._right
        return f"{self._right:02}", float(right), True, {"success": right}


# Who plays in lessons: what makes the game, its seed, what was told so far, whether to play well, chance -> a move.
Player = Callable[[Maker, int, Sequence[str], bool, Random], str]


def _sum(make: Maker, seed: int, told: Sequence[str], right: bool, random: Random) -> str:
    modulus, one, other = map(int, re.findall(r"\d+", told[-1]))
    return f"{(one + other) % modulus if right else random.randrange(modulus):02}"


def _choice(make: Maker, seed: int, told: Sequence[str], right: bool, random: Random) -> str:
    return next(action for action in "12" if _succeeds(make(), seed, action)) if right else random.choice("12")


def _succeeds(environment: Environment, seed: int, action: str) -> bool:
    environment.reset(seed)
    return bool(environment.step(action)[3].get("success"))


def _move(make: Maker, seed: int, told: Sequence[str], right: bool, random: Random) -> str:
    board = "".join("." if cell.isdigit() else cell for cell in told[-1].strip()[-9:])
    return str(1 + random.choice(tictactoe.best_moves(board) if right else tictactoe.free(board)))


def _clue_or_vote(make: Maker, seed: int, told: Sequence[str], right: bool, random: Random) -> str:
    deck, everything = Bits(), "".join(told[:-1]).replace("?\n", "") + told[-1]
    seen = deck.read(everything)
    if right:
        return ScriptedPlayer(deck, random.getrandbits(32))(everything)
    others = [str(seat) for seat in range(1, SEATS + 1) if seat != seen.seat]
    return random.choice(others) if seen.voting else deck.noise(random)


@dataclass(frozen=True)
class Game:
    """A game of the world: what makes it, and who plays it in lessons.

    right: how likely a move is to be a right one there. alone: the share of the lessons in one game that are in this one.
    """

    make: Maker
    player: Player
    right: float
    alone: float


GAMES: Mapping[str, Game] = {
    "sums": Game(ModularSums, _sum, right=0.85, alone=0.55),  # a table of 221 sums takes the longest
    "matrix": Game(
        partial(MatrixGames, games=matrix_games.SMALL, shifts=(0,), compact=True), _choice, right=0.6, alone=0.15
    ),
    "tictactoe": Game(partial(TicTacToe, opponent=EPSILON, compact=True), _move, right=0.6, alone=0.15),
    "spy": Game(spy_bits, _clue_or_vote, right=0.6, alone=0.15),
}
TRANSFER: Mapping[str, Maker] = {
    "larger-sums": partial(ModularSums, (12, 13)),
    "mirrored-tictactoe": partial(TicTacToe, opponent=EPSILON, compact=True, mirror=True),
}
CHARACTERS = "%+= " + matrix_games.CHARACTERS + tictactoe.CHARACTERS + spy.CHARACTERS


def chance_levels() -> dict[str, float]:
    """What a player without skill has, by the names of games and of those that are held out."""
    makers = {name: game.make for name, game in GAMES.items()} | dict(TRANSFER)
    return {name: open_environment(make).chance["success"] for name, make in makers.items()}


# the warm start


def untaught(seed: int) -> LanguageModel:
    """The decoder before its warm start."""
    sizes = {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "context": CONTEXT}
    return replace(tiny.tiny([CHARACTERS], seed=seed, tokens="characters", **sizes), chat_template="none")


def lesson(number: int) -> list[tuple[str, str]]:
    """What is said and done in an episode, as (text, move): every second one is of one game, the others of all."""
    random = Random(number)
    said = []
    every = list(GAMES.values())
    for game in every if number % 2 else random.choices(every, [game.alone for game in every]):
        seed, done = random.getrandbits(32), False
        environment = game.make()
        texts = [environment.reset(seed)]
        while not done:
            move = game.player(game.make, seed, texts, random.random() < game.right, random)
            said.append((texts[-1], move))
            text, _, done, _ = environment.step(move)
            texts.append(text)
    return said


def encoded(language_model: LanguageModel, lessons: Sequence[Sequence[tuple[str, str]]]) -> list[Example]:
    """Episodes as `play` has them in tokens; labelled are the moves and their ends."""
    tokenizer: Any = language_model.tokenizer
    firsts, _ = encode_prompts(language_model, [told[0][0] for told in lessons])
    end, replies = encode_replies(language_model, [text for told in lessons for text, _ in told[1:]])
    moves = tokenizer([move for told in lessons for _, move in told], add_special_tokens=False).input_ids
    following, said = iter(replies), iter(moves)
    examples = []
    for first, told in zip(firsts, lessons, strict=True):
        ids, labels = [], []
        for turn in range(len(told)):
            given, move = next(following) if turn else first, [*next(said), *end]
            ids += [*given, *move]
            labels += [IGNORE] * len(given) + move
        examples.append(Example(tuple(ids), tuple(labels)))
    return examples


def teach(preparation: Any, *, steps: int) -> None:
    """Teach the seed's model from lessons, and store it in the preparation's folder; goes on where it was cut off.

    preparation: seed, folder, resume(), checkpoint(), spend() as the study engine gives them.
    """
    language_model = untaught(preparation.seed)
    words = np.random.SeedSequence([preparation.seed, _LESSONS]).generate_state(steps * BATCH_SIZE)
    examples = encoded(language_model, [lesson(int(word)) for word in words])

    def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        logits, labels, _ = labelled_logits(model, batch)
        return nn.functional.cross_entropy(logits.float(), labels, reduction="sum"), len(labels)

    fit(
        language_model.model,
        OneLoss(loss),
        lambda step: examples[step * BATCH_SIZE : (step + 1) * BATCH_SIZE],
        TrainerSettings(
            steps=steps, learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE, betas=(0.9, 0.95), seed=preparation.seed
        ),
        collate=lambda chosen: collate(chosen, language_model.pad_id, language_model.device),
        save=preparation.checkpoint,
        save_every=CHECKPOINT,
        state=preparation.resume(),
        title="Teaching",
    )
    language_model.save(preparation.folder / "model")
    preparation.spend(phase="build", trained_tokens=sum(len(example.input_ids) for example in examples))


# reinforcement

COMPOSED: Mapping[Arm, Combination] = {
    "nested-mean": "mean",
    "nested-min": "min",
    "nested-product": "product",
    "nested-all": "all",
    "nested-segments": "mean",
}


@dataclass(frozen=True)
class Look:
    """A place on the path of a run. done: steps. tokens: generated. games: played to learn from.

    logged: what was logged of each step so far.
    """

    done: int
    tokens: int
    games: int
    logged: Sequence[Mapping[str, float]]

    @property
    def at(self) -> dict[str, int]:
        """As measurements name it."""
        return {"step": self.done, "games": self.games, "generated_tokens": self.tokens}

    def recent(self, name: str) -> float:
        """The mean of what was logged under a name, over the last quarter of the steps; nan where it never was."""
        found = [each[name] for each in self.logged[3 * len(self.logged) // 4 :] if name in each]
        return float(np.mean(found)) if found else math.nan

    @property
    def gradient_variation(self) -> float:
        """Standard deviation of the gradient norm over the second half of the steps, in means: arms differ in scale."""
        norms = [each["gradient_norm"] for each in self.logged[len(self.logged) // 2 :]]
        return float(np.std(norms) / np.mean(norms)) if norms else math.nan


@dataclass(frozen=True)
class NestedWorld:
    """A model at its warm start, which `reinforce` trains in place, and the games."""

    language_model: LanguageModel
    seed: int

    @classmethod
    def open(cls, seed: int, folder: Path) -> NestedWorld:
        """Of the seed whose model `teach` stored in the folder."""
        return cls(load(folder / "model", chat_template="none"), seed)

    @closed
    def reinforce(self, run: Any, recipe: Recipe, arm: Arm, look: Callable[[Look], None], *, evaluations: int) -> None:
        """Train as the recipe says, on the run's books; goes on from its last checkpoint, which every look leaves.

        The recipe's prompts are those of nested episodes: where an episode is one game, as many more of them are played.
        look: called `evaluations` times along the way, the end among them.
        """
        stored = run.resume() or {"training": None, "tokens": 0, "games": 0, "logged": []}
        tokens, games, logged = stored["tokens"], stored["games"], stored["logged"]
        every = max(recipe.steps // evaluations, 1)
        recipe, problems, sample = self._composed(recipe, arm)

        def noted(state: ReinforceState) -> None:
            nonlocal tokens, games
            metrics, episodes = state.metrics, state.step.rollouts.episodes
            played = sum(bool(turn.info.get("task_done")) for episode in episodes for turn in episode.turns)
            spent = int(metrics["generated_tokens"])
            tokens, games = tokens + spent, games + played
            run.spend(phase="build", generated_tokens=spent, games=played, optimizer_steps=recipe.updates)
            logged.append({name: value for name, value in metrics.items() if name.startswith(_LOGGED)})
            if state.done % every == 0 or state.done == recipe.steps:
                look(Look(state.done, tokens, games, logged))

        train(
            prepare(self.language_model, recipe),
            recipe,
            problems,
            no_reward,
            sample=sample,
            callbacks=[noted],
            save=lambda state: run.checkpoint({"training": state, "tokens": tokens, "games": games, "logged": logged}),
            save_every=every,
            state=stored["training"],
        )

    def _composed(self, recipe: Recipe, arm: Arm) -> tuple[Recipe, list[Problem], Callable[..., Step]]:
        makers = {name: game.make for name, game in GAMES.items()}
        count, prompts = len(makers), recipe.prompts_per_step
        if arm in COMPOSED:
            playing = Playing(nested(makers, COMPOSED[arm]))
            advantage = "segments" if arm == "nested-segments" else recipe.advantage
            return recipe.model_copy(update={"advantage": advantage}), playing.problems(range(SEEDS)), playing
        playing = Playing(mixed(makers))
        place = list(GAMES).index(arm.removeprefix("only-")) if arm.startswith("only-") else 0
        problems = playing.problems(range(place, SEEDS * count, count))
        if arm.startswith("only-"):
            return recipe, problems, playing
        sample = Rotating(playing) if arm == "rotation" else Even(playing)
        return recipe.model_copy(update={"prompts_per_step": prompts * count}), problems, sample

    def evaluate(self, makers: Mapping[str, Maker], *, episodes: int) -> dict[str, list[Episode]]:
        """So many episodes of each game alone, on seeds that nobody learns from; the same draws at every look."""
        return {
            name: list(
                play(
                    self.language_model,
                    make,
                    range(UNSEEN, UNSEEN + episodes),
                    samples=1,
                    max_turns=open_environment(make).max_turns or TURNS,
                    max_new_tokens=MAX_NEW_TOKENS,
                    temperature=TEMPERATURE,
                    seed=[self.seed, 6],
                    batch_size=AT_ONCE,
                ).episodes
            )
            for name, make in makers.items()
        }
