"""Twelve ways to write a game of two players down, and a compact one.

Each takes first[i][j], second[i][j] and which player (0 or 1) reads it, and tells all payoffs of both. Actions are numbers
from 1.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from equipoise.data.equilibria import Payoffs

Layout = Literal[
    "two-tables",
    "own-tables",
    "pair-table",
    "pair-grid",
    "sentences",
    "arrows",
    "arrays",
    "json",
    "replies",
    "firms",
    "farmers",
    "travelers",
]


def _cells(first: Payoffs, second: Payoffs) -> Iterator[tuple[int, int, int, int]]:
    """Both actions, from 1, and what each player gets."""
    for i, (row, other) in enumerate(zip(first, second, strict=True), start=1):
        for j, (mine, yours) in enumerate(zip(row, other, strict=True), start=1):
            yield i, j, mine, yours


def _own(first: Payoffs, second: Payoffs, player: int) -> tuple[Payoffs, Payoffs]:
    """The reader's payoffs and the other's, with the reader's actions as rows."""
    return (tuple(zip(*second, strict=True)), tuple(zip(*first, strict=True))) if player else (first, second)


def _aligned(rows: Sequence[Sequence[object]]) -> str:
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(str(cell).rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _table(payoffs: Payoffs) -> str:
    head = ["", *range(1, len(payoffs[0]) + 1)]
    return _aligned([head, *([i, *row] for i, row in enumerate(payoffs, start=1))])


def _two_tables(first: Payoffs, second: Payoffs, player: int) -> str:
    return (
        "Two players choose at the same time. Rows are the actions of Player 1, columns those of Player 2.\n\n"
        f"Player 1 gets:\n{_table(first)}\n\nPlayer 2 gets:\n{_table(second)}"
    )


def _own_tables(first: Payoffs, second: Payoffs, player: int) -> str:
    mine, yours = _own(first, second, player)
    return (
        f"You and Player {2 - player} choose at the same time. In both tables your actions are the rows, those of the "
        f"other the columns.\n\nWhat you get:\n{_table(mine)}\n\nWhat the other gets:\n{_table(yours)}"
    )


def _pair_table(first: Payoffs, second: Payoffs, player: int) -> str:
    columns = range(1, len(first[0]) + 1)
    lines = [f"| Player 1 \\ Player 2 | {' | '.join(map(str, columns))} |", "|---" * (len(columns) + 1) + "|"]
    for i, (row, other) in enumerate(zip(first, second, strict=True), start=1):
        cells = (f"{mine}, {yours}" for mine, yours in zip(row, other, strict=True))
        lines.append(f"| {i} | {' | '.join(cells)} |")
    return "Each cell holds the payoff of Player 1, then that of Player 2.\n\n" + "\n".join(lines)


def _pair_grid(first: Payoffs, second: Payoffs, player: int) -> str:
    mine, yours = _own(first, second, player)
    rows = [[f"({a}; {b})" for a, b in zip(*pair, strict=True)] for pair in zip(mine, yours, strict=True)]
    return (
        "A game is played once. Going down you change your action, going right the other player changes theirs; every "
        f"pair is (yours; theirs).\n\n{_aligned(rows)}"
    )


def _sentences(first: Payoffs, second: Payoffs, player: int) -> str:
    lines = (
        f"- When Player 1 takes action {i} and Player 2 takes action {j}, Player 1 receives {a} and Player 2 receives {b}."
        for i, j, a, b in _cells(first, second)
    )
    return "Two players act without knowing what the other does.\n" + "\n".join(lines)


def _arrows(first: Payoffs, second: Payoffs, player: int) -> str:
    lines = (f"({i}, {j}) -> {a}, {b}" for i, j, a, b in _cells(first, second))
    return "(action of Player 1, action of Player 2) -> payoff of Player 1, payoff of Player 2\n" + "\n".join(lines)


def _arrays(first: Payoffs, second: Payoffs, player: int) -> str:
    a, b = (json.dumps([list(row) for row in payoffs]) for payoffs in (first, second))
    return (
        "A bimatrix game: with Player 1 in row i and Player 2 in column j, Player 1 gets A[i][j] and Player 2 gets "
        f"B[i][j]. Rows and columns count from 1.\n\nA = {a}\nB = {b}"
    )


def _json(first: Payoffs, second: Payoffs, player: int) -> str:
    outcomes = [{"player_1": i, "player_2": j, "payoff_1": a, "payoff_2": b} for i, j, a, b in _cells(first, second)]
    return "The outcomes of a game by the actions of its players:\n" + "\n".join(map(json.dumps, outcomes))


def _replies(first: Payoffs, second: Payoffs, player: int) -> str:
    mine, yours = _own(first, second, player)
    other = 2 - player
    lines: list[str] = []
    for j in range(len(mine[0])):
        pays = "; ".join(f"your action {i} gives you {row[j]}" for i, row in enumerate(mine, start=1))
        lines.append(f"Should Player {other} choose {j + 1}: {pays}.")
    for i, row in enumerate(yours, start=1):
        pays = "; ".join(f"their action {j} gives them {value}" for j, value in enumerate(row, start=1))
        lines.append(f"Should you choose {i}: {pays}.")
    return f"You meet Player {other} once, and both decide in secret.\n" + "\n".join(lines)


def _firms(first: Payoffs, second: Payoffs, player: int) -> str:
    lines = (f"  plan {i} against plan {j}: {a} and {b}" for i, j, a, b in _cells(first, second))
    return (
        "Two firms enter a market this spring. Each has numbered plans, has to commit to one today, and will learn of the "
        "other's too late. Player 1 runs the first firm, Player 2 the second. Expected profits in millions, first and "
        "second firm:\n" + "\n".join(lines)
    )


def _farmers(first: Payoffs, second: Payoffs, player: int) -> str:
    mine, yours = _own(first, second, player)
    fields = [
        f"If you sow crop {i} and your neighbor sows crop {j}, your harvest is worth {a} and your neighbor's {b}."
        for i, j, a, b in _cells(mine, yours)
    ]
    return (
        f"Two farmers share a river. You are Player {player + 1}, your neighbor is Player {2 - player}, and both sow "
        "before they see the other's field. " + " ".join(fields)
    )


def _travelers(first: Payoffs, second: Payoffs, player: int) -> str:
    parts = []
    for i, (row, other) in enumerate(zip(first, second, strict=True), start=1):
        ends = ", ".join(
            f"{a} and {b} if the other takes road {j}" for j, (a, b) in enumerate(zip(row, other, strict=True), start=1)
        )
        parts.append(f"Should Player 1 take road {i}, the two are rewarded with {ends}.")
    return (
        "Two couriers, Player 1 and Player 2, leave town at the same hour by roads that are numbered, and what they earn "
        "hangs on both roads; the first courier's pay is always named first. " + " ".join(parts)
    )  # fmt: skip


LAYOUTS: Mapping[Layout, Callable[[Payoffs, Payoffs, int], str]] = {
    "two-tables": _two_tables,
    "own-tables": _own_tables,
    "pair-table": _pair_table,
    "pair-grid": _pair_grid,
    "sentences": _sentences,
    "arrows": _arrows,
    "arrays": _arrays,
    "json": _json,
    "replies": _replies,
    "firms": _firms,
    "farmers": _farmers,
    "travelers": _travelers,
}


def compact_layout(first: Payoffs, second: Payoffs, player: int, told: int | None = None) -> str:
    """One line: the player, its payoffs by its own actions, the other's in the same places, what the other will do."""
    tables = ("/".join(" ".join(map(str, row)) for row in each) for each in _own(first, second, player))
    return f"{player + 1}:{';'.join(tables)}{'' if told is None else f'?{told}'}\n"
