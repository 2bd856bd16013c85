"""TicTacToe as an environment: the model against a random, a perfect or a fallible opponent, or one that is given.

A board is nine characters, rows from the top, "X", "O" or "." each; X moves first, and a cell is 0 to 8. An episode plays,
with probability 1/2, one random move for each side first; the model is X or O; as O it finds a random move of X. A win is
worth 1 and is the only success, a draw 0.5, a loss 0; a move that cannot be read or made costs 0.1 and its turn. After five
turns the episode is over (GIFT, arXiv:2601.05633, released code).
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any, Literal, TypeAlias

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.data.environment import ENVIRONMENTS
from equipoise.data.spoken import decided, whole_numbers

Opponent: TypeAlias = Literal["random", "minimax"] | float | Callable[[str], int]
Cells = Literal["coordinates", "numbers", "letters"]
EMPTY = "." * 9
LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
CHARACTERS = "123456789ABCDEFGHIXO:?+=-\n"  # of all compact texts and their moves
WIN, DRAW, INVALID = 1.0, 0.5, -0.1  # rewards
TURNS = 5


# The game.


@cache
def winner(board: str) -> str:
    """ "X" or "O" for who has a line, "." for nobody."""
    return next((board[a] for a, b, c in LINES if board[a] == board[b] == board[c] != "."), ".")


def mover(board: str) -> str:
    """Whose turn it is."""
    return "X" if board.count("X") == board.count("O") else "O"


@cache
def free(board: str) -> tuple[int, ...]:
    """The moves that can be made, none when the game is over."""
    return () if winner(board) != "." else tuple(cell for cell, mark in enumerate(board) if mark == ".")


def placed(board: str, cell: int) -> str:
    """The board after the mover's move. Raises BadInput for one that cannot be made."""
    if cell not in free(board):
        raise BadInput(f"{cell!r} is no move on the board {board}, expected one of {list(free(board))}.")
    return board[:cell] + mover(board) + board[cell + 1 :]


@cache
def value(board: str) -> int:
    """What the board is worth to its mover, when both play perfectly: above 0 won, below 0 lost; the sooner the further."""
    if winner(board) != ".":
        return -1 - board.count(".")
    return max((-value(placed(board, cell)) for cell in free(board)), default=0)


@cache
def best_moves(board: str) -> tuple[int, ...]:
    """The moves of perfect play that win soonest, else draw, else lose latest."""
    best = value(board)
    return tuple(cell for cell in free(board) if -value(placed(board, cell)) == best)


# The environment.


@ENVIRONMENTS.register("tictactoe")
class TicTacToe:
    """A game against an opponent.

    opponent: "random", "minimax" (perfect), a number in [0, 1] (perfect but for random moves with that probability), or a
    function from a board, on which it is to move, to a cell. opening: the probability of random first moves.
    cells: their names in texts and moves, (row, column) from 1, numbers 1 to 9, or letters A to I; not given, coordinates,
    and numbers where compact. Coordinates are read in any usual form: "2,3", "row 2, column 3", "column 3, row 2".
    mirror: columns are drawn from right to left, the names of the cells with them: another picture of the same game.
    compact: a line for a model of characters, "X:12O4X6789": the model's mark, then each cell's name or who has it.
    Raises BadInput for numbers outside [0, 1], and for compact coordinates.
    """

    max_turns = TURNS
    score_range = (TURNS * INVALID, WIN)

    @closed
    def __init__(
        self,
        *,
        opponent: Opponent = "random",
        opening: float = 0.5,
        cells: Cells | None = None,
        mirror: bool = False,
        compact: bool = False,
    ) -> None:
        if not 0 <= opening <= 1 or (isinstance(opponent, int | float) and not 0 <= opponent <= 1):
            raise BadInput(f"opponent is {opponent!r} and opening {opening}: use probabilities from 0 to 1.")
        self._cells: Cells = cells or ("numbers" if compact else "coordinates")
        if compact and self._cells == "coordinates":
            raise BadInput('A compact board has no coordinates: use cells="numbers" or "letters".')
        self._opponent = {"random": 1.0, "minimax": 0.0}[opponent] if isinstance(opponent, str) else opponent
        self._opening = opening
        self._mirror, self._compact = mirror, compact

    def reset(self, seed: int) -> str:
        """The board on which the model is to move."""
        self._random = Random(seed)
        self._board, self._turn = EMPTY, 0
        opened = self._random.random() < self._opening
        self._mark = self._random.choice("XO")
        for _ in range(2 * opened + (self._mark == "O")):
            self._board = placed(self._board, self._random.choice(free(self._board)))
        other = "O" if self._mark == "X" else "X"
        told = f"You play tic-tac-toe as {self._mark} against {other}. Three in a row, a column or a diagonal win; X began."
        return self._view(told, f"{_YOURS} {self._asked()}")

    def step(self, text: str) -> tuple[str, float, bool, dict[str, Any]]:
        """Move, and be answered by the opponent."""
        self._turn += 1
        used_up = self._turn >= TURNS
        further = "Your turns are used up." if used_up else _YOURS
        cell = _read(text, self._cells)
        if cell is None or self._board[cell] != ".":
            why = "That is no cell." if cell is None else "That cell is taken."
            info = {"success": False, "valid": False, "actions": []}
            return self._view(f"{why} {self._asked()}", further, "?"), INVALID, used_up, info
        self._board, told = placed(self._board, cell), ""
        if free(self._board):
            answer = self._answer()
            self._board = placed(self._board, answer)
            told = f"The other player took {_NAMES[self._cells][answer]}."
        won = winner(self._board)
        action = {"name": "place", "arguments": {"cell": _NAMES[self._cells][cell]}}
        info = {"success": won == self._mark, "valid": True, "actions": [action]}
        if free(self._board):
            return self._view(told, further), 0.0, used_up, info
        if won == ".":
            return self._view(told, "Nobody has won.", "="), DRAW, True, info
        if won == self._mark:
            return self._view(told, "You have won.", "+"), WIN, True, info
        return self._view(told, "You have lost.", "-"), 0.0, True, info

    def _answer(self) -> int:
        if callable(self._opponent):
            return self._opponent(self._board)
        return self._random.choices(*opponent_moves(self._board, self._opponent))[0]

    def _asked(self) -> str:
        return f'Answer with {_ASKED[self._cells]}, behind "Answer:" if you write more.'

    def _view(self, before: str, after: str, sign: str = "") -> str:
        """The board between two sentences; compact, behind the sign that says the same."""
        step = -1 if self._mirror else 1
        names = "." * 9 if self._cells == "coordinates" else _NAMES[self._cells]
        shown = [name if mark == "." else mark for name, mark in zip(names, self._board, strict=True)]
        rows = [shown[first : first + 3][::step] for first in (0, 3, 6)]
        if self._compact:
            return f"{sign}{self._mark}:{''.join(map(''.join, rows))}\n"
        if self._cells == "coordinates":
            rows = [[" ", *"123"[::step]], *([str(number), *row] for number, row in enumerate(rows, start=1))]
        return "\n\n".join(filter(None, (before, "\n".join(map(" ".join, rows)), after)))

    def chance_levels(self) -> dict[str, float]:
        """Exactly: what random valid moves win, and score with draws; nothing where the opponent is a function."""
        if callable(self._opponent):
            return {}
        success, drawn = random_play(self._opponent, self._opening)
        return {"success": success, "score": WIN * success + DRAW * drawn}

    @property
    def chance(self) -> dict[str, float]:
        """`chance_levels`, for whoever opens the environment."""
        return self.chance_levels()


_NAMES: dict[Cells, Sequence[str]] = {
    "coordinates": [f"({row}, {column})" for row in (1, 2, 3) for column in (1, 2, 3)],
    "numbers": "123456789",
    "letters": "ABCDEFGHI",
}
_ASKED: dict[Cells, str] = {
    "coordinates": "the cell as (row, column), for example (2, 3)",
    "numbers": "the number of a free cell",
    "letters": "the letter of a free cell",
}
_YOURS = "Your move?"
_LETTER = re.compile(r"(?<![A-Za-z])[A-Ia-i](?![A-Za-z])")
_COLUMN_FIRST = re.compile(r"\bcol(?:umn)?\b.*\brow\b", re.IGNORECASE | re.DOTALL)


def _read(text: str, cells: Cells) -> int | None:
    """The cell that a text decides on, None where it names none or several."""
    said = decided(text)
    if cells == "letters":
        letters = {letter.upper() for letter in _LETTER.findall(said)}
        return _NAMES[cells].index(letters.pop()) if len(letters) == 1 else None
    numbers = whole_numbers(said)
    if cells == "numbers":
        return numbers[0] - 1 if len(set(numbers)) == 1 and 1 <= numbers[0] <= 9 else None
    if len(numbers) != 2 or not all(1 <= number <= 3 for number in numbers):
        return None
    row, column = reversed(numbers) if _COLUMN_FIRST.search(said) else numbers
    return 3 * (row - 1) + column - 1


@cache
def opponent_moves(board: str, epsilon: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The moves of an opponent and their probabilities: random ones with that of epsilon, else the best, each as likely."""
    cells, best = free(board), best_moves(board) if epsilon < 1 else ()
    return cells, tuple(epsilon / len(cells) + (1 - epsilon) * (cell in best) / max(len(best), 1) for cell in cells)


@cache
def random_play(epsilon: float, opening: float) -> tuple[float, float]:
    """The probabilities of a win and of a draw for random valid moves, over openings and sides."""

    @cache
    def outcome(board: str, mark: str) -> tuple[float, float]:
        if not (cells := free(board)):
            return float(winner(board) == mark), float(winner(board) == ".")
        _, chances = opponent_moves(board, 1.0 if mover(board) == mark else epsilon)
        moves = zip(cells, chances, strict=True)
        return _mixed([(chance, outcome(placed(board, cell), mark)) for cell, chance in moves if chance])

    def begun(board: str, moves: int, mark: str) -> tuple[float, float]:
        if not moves:
            return outcome(board, mark)
        cells = free(board)
        return _mixed([(1 / len(cells), begun(placed(board, cell), moves - 1, mark)) for cell in cells])

    sides = [("X", 0), ("O", 1)]
    return _mixed(
        [
            (chance / 2, begun(EMPTY, moves + first, mark))
            for chance, moves in ((opening, 2), (1 - opening, 0))
            for mark, first in sides
        ]
    )


def _mixed(cases: Sequence[tuple[float, tuple[float, float]]]) -> tuple[float, float]:
    first, second = (sum(chance * outcome[place] for chance, outcome in cases) for place in (0, 1))
    return first, second
