"""Matrix games as an environment: two players choose once and at the same time, and the model is one of them.

Nine games of two players. An episode draws one of them, negates it with probability 1/2 (the first seven), adds 0, 100 or
-100 to every payoff, makes the model player 1 or 2, and writes the game down in one of twelve layouts. The action is the
number of a row or column, from 1. One step ends the episode: 1 for a right action, 0 for a wrong one, -0.1 for none.

Adding a constant leaves every equilibrium as it is. Negation does not preserve equilibria, it turns best responses into
worst ones: a negated game is another game, and is solved anew.

What is right (`Rule`):
last-equilibrium   the likeliest action of the last equilibrium that support enumeration finds, the rule of GIFT's released
                   code (arXiv:2601.05633). Where that one is mixed it teaches to miss each other: both players of the
                   battle of the sexes who follow it get 0
pure-nash          played in a pure equilibrium; a negation without one is not drawn
any-equilibrium    played with a probability above 0 in some equilibrium
best-response      pays most against the action that the first rule gives the opponent, which the text tells
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from itertools import product
from random import Random
from typing import Any, Literal, get_args

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.data.environment import ENVIRONMENTS
from equipoise.data.equilibria import Payoffs, equilibria, support, support_equilibria
from equipoise.data.matrix_layouts import LAYOUTS, Layout, compact_layout
from equipoise.data.spoken import one_number

Rule = Literal["last-equilibrium", "pure-nash", "any-equilibrium", "best-response"]
GameName = Literal[
    "prisoners-dilemma",
    "battle-of-sexes",
    "chicken",
    "stag-hunt",
    "radio-station",
    "iesds",
    "duopoly",
    "three-by-four",
    "weakly-dominated",
]
CHARACTERS = "0123456789- :;/?\n"  # of all compact texts and their actions
SHIFTS = (0, 100, -100)
INVALID = -0.1  # the reward of an action that is none


@dataclass(frozen=True, slots=True)
class MatrixGame:
    """first, second: what each player gets, by the first player's action and the second's. negated: whether it may be."""

    first: tuple[tuple[int, ...], ...]
    second: tuple[tuple[int, ...], ...]
    negated: bool = True

    def payoffs(self, sign: int = 1, shift: int = 0) -> tuple[Payoffs, Payoffs]:
        """What both get, times the sign and plus the shift."""
        first, second = (
            tuple(tuple(sign * value + shift for value in row) for row in payoffs)
            for payoffs in (self.first, self.second)
        )
        return first, second

    def actions(self, player: int) -> int:
        """How many a player (0 or 1) has."""
        return len(self.first[0]) if player else len(self.first)


def _matrix(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, row.split())) for row in text.split("/"))


_RADIO = _matrix("25 50 50/30 15 30/20 20 10")
_DUOPOLY = _matrix(
    "0 0 0 0 0 0/9 7 5 3 1 -1/14 10 6 2 -2 -2/15 9 3 -3 -3 -3/12 4 -4 -4 -4 -4/5 -5 -5 -5 -5 -5",
)
GAMES: Mapping[GameName, MatrixGame] = {
    "prisoners-dilemma": MatrixGame(_matrix("3 0/5 1"), _matrix("3 5/0 1")),
    "battle-of-sexes": MatrixGame(_matrix("2 0/0 1"), _matrix("1 0/0 2")),
    "chicken": MatrixGame(_matrix("-10 1/-1 0"), _matrix("-10 -1/1 0")),
    "stag-hunt": MatrixGame(_matrix("3 0/1 1"), _matrix("3 1/0 1")),
    "radio-station": MatrixGame(_RADIO, tuple(zip(*_RADIO, strict=True))),
    "iesds": MatrixGame(_matrix("13 1 7/4 3 6/-1 2 8"), _matrix("3 4 3/1 3 2/2 3 -1")),
    "duopoly": MatrixGame(_DUOPOLY, tuple(zip(*_DUOPOLY, strict=True))),
    "three-by-four": MatrixGame(_matrix("1 -1 5 1/2 1 3 5/1 0 1 0"), _matrix("1 2 0 1/3 2 0 1/1 5 7 1"), negated=False),
    "weakly-dominated": MatrixGame(_matrix("5 4/6 3/6 4"), _matrix("1 0/0 1/4 1"), negated=False),
}
SMALL: tuple[GameName, ...] = ("prisoners-dilemma", "battle-of-sexes", "chicken", "stag-hunt")  # two actions each


@cache
def labels(name: GameName, sign: int = 1) -> tuple[int, int]:
    """The action of each player, from 1, that the rule last-equilibrium asks for; sign -1: of the negated game."""
    first, second = support_equilibria(*GAMES[name].payoffs(sign))[-1]
    return first.index(max(first)) + 1, second.index(max(second)) + 1


@cache
def _played(name: GameName, sign: int, player: int, *, pure: bool) -> frozenset[int]:
    """What a player plays with a probability above 0 in some equilibrium, or in some pure one."""
    pairs = equilibria(*GAMES[name].payoffs(sign))
    found = [pair for pair in pairs if not pure or max(pair[0]) == max(pair[1]) == 1]
    return frozenset(action + 1 for pair in found for action in support(pair[player]))


@closed
def right_actions(name: GameName, sign: int, player: int, rule: Rule = "last-equilibrium") -> frozenset[int]:
    """The actions of player 0 or 1, from 1, that are right; none by pure-nash where there is no pure equilibrium."""
    if rule == "last-equilibrium":
        return frozenset({labels(name, sign)[player]})
    if rule != "best-response":
        return _played(name, sign, player, pure=rule == "pure-nash")
    (first, second), other = GAMES[name].payoffs(sign), labels(name, sign)[1 - player] - 1
    against = second[other] if player else [row[other] for row in first]
    return frozenset(action for action, value in enumerate(against, start=1) if value == max(against))


@ENVIRONMENTS.register("matrix-games")
class MatrixGames:
    """One of the games, chosen in once.

    games, shifts, layouts: what is drawn from, each as likely as the others. compact: a short layout for a model of
    characters, "1:3 0/5 1;3 5/0 1": the model's player, its own payoffs with its actions as rows, the other's in the same
    places; behind "?" the other's action, where the rule tells it. Raises BadInput for nothing to draw from.
    """

    max_turns = 1
    score_range = (INVALID, 1.0)

    @closed
    def __init__(
        self,
        *,
        games: Sequence[GameName] = get_args(GameName),
        rule: Rule = "last-equilibrium",
        shifts: Sequence[int] = SHIFTS,
        layouts: Sequence[Layout] = get_args(Layout),
        compact: bool = False,
    ) -> None:
        if not games or not shifts or not layouts:
            raise BadInput(f"games are {games}, shifts {shifts}, layouts {layouts}: give at least one of each.")
        self._drawn: tuple[tuple[GameName, tuple[int, ...]], ...] = tuple((name, _signs(name, rule)) for name in games)
        self._rule: Rule = rule
        self._shifts, self._layouts, self._compact = tuple(shifts), tuple(layouts), compact

    def reset(self, seed: int) -> str:
        """The game, who the model is in it, and what is asked."""
        random = Random(seed)
        name, signs = random.choice(self._drawn)
        sign, shift, player = random.choice(signs), random.choice(self._shifts), random.randrange(2)
        layout = random.choice(self._layouts)
        self._count = GAMES[name].actions(player)
        self._right = right_actions(name, sign, player, self._rule)
        told = labels(name, sign)[1 - player] if self._rule == "best-response" else None
        if self._compact:
            return compact_layout(*GAMES[name].payoffs(sign, shift), player, told)
        return "\n\n".join((_written(layout, name, sign, shift, player), self._question(player, told)))

    def _question(self, player: int, told: int | None) -> str:
        if told is not None:
            asked = f"Player {2 - player} will choose action {told}. Choose the action that then pays you most."
        elif self._rule == "pure-nash":
            asked = "Choose an action that you play in an equilibrium in which nobody leaves anything to chance."
        else:
            asked = "Choose the action that you play in a Nash equilibrium of this game."
        return (
            f"You are Player {player + 1}. {asked} "
            f'Answer with its number, from 1 to {self._count}, behind "Answer:" if you write more.'
        )

    def step(self, text: str) -> tuple[str, float, bool, dict[str, Any]]:
        """Choose. An answer without exactly one number, or one that is no action, ends the episode as well."""
        action = one_number(text)
        if action is None or not 1 <= action <= self._count:
            expected = f"one number from 1 to {self._count}"
            reply = f"?1-{self._count}\n" if self._compact else f"That is no action of yours, expected {expected}."
            return reply, INVALID, True, {"success": False, "valid": False, "actions": []}
        success = action in self._right
        said = {"name": "choose", "arguments": {"action": action}}
        reply = f"{int(success)}\n" if self._compact else "That is right." if success else "That is not right."
        return reply, float(success), True, {"success": success, "valid": True, "actions": [said]}

    def chance_levels(self) -> dict[str, float]:
        """Exactly: the successes of a random valid action, and of the number that does best when it is always given."""
        random, always = Fraction(0), Counter[int]()
        for name, signs in self._drawn:
            for sign, player in product(signs, (0, 1)):
                right = right_actions(name, sign, player, self._rule)
                weight = Fraction(1, 2 * len(self._drawn) * len(signs))
                random += weight * Fraction(len(right), GAMES[name].actions(player))
                always.update(dict.fromkeys(sorted(right), weight))
        best, most = max(always.items(), key=lambda pair: pair[1])
        return {"success": float(random), "score": float(random), f"always {best}": float(most)}

    @property
    def chance(self) -> dict[str, float]:
        """`chance_levels`, for whoever opens the environment."""
        return self.chance_levels()


@lru_cache(8192)
def _written(layout: Layout, name: GameName, sign: int, shift: int, player: int) -> str:
    return LAYOUTS[layout](*GAMES[name].payoffs(sign, shift), player)


def _signs(name: GameName, rule: Rule) -> tuple[int, ...]:
    signs = (1, -1) if GAMES[name].negated else (1,)
    return signs if rule != "pure-nash" else tuple(sign for sign in signs if _played(name, sign, 0, pure=True))
