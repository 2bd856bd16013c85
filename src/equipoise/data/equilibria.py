"""Nash equilibria of games of two players, in exact fractions.

A game is two matrices, first[i][j] and second[i][j]: what each player gets when the first plays i and the second j. An
equilibrium is a pair of strategies, probabilities of actions, each a best response to the other. Payoffs are whole numbers:
multiply others by a number that makes them so, which changes no equilibrium.

equilibria           every extreme one, by the vertices of both best-response polytopes (Mangasarian 1964; Avis, Rosenberg,
                     Savani and von Stengel 2010): all others, of degenerate games alone, are mixtures of these
support_equilibria   those that the enumeration of equal supports finds (Nisan and others 2007, algorithm 3.4), in its order,
                     which is nashpy's; of degenerate games it misses some
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, combinations

from equipoise.core.errors import BadInput

Payoffs = Sequence[Sequence[int]]
Strategy = tuple[Fraction, ...]
Equilibrium = tuple[Strategy, Strategy]


def equilibria(first: Payoffs, second: Payoffs) -> list[Equilibrium]:
    """All extreme equilibria, small supports first. An action is played in some equilibrium when it is in one of these.

    Raises BadInput for matrices of two shapes, and for payoffs that are not whole.
    """
    _check(first, second)
    rows, columns = _vertices(_transposed(second)), _vertices(first)
    found = [
        (row, column)
        for row, best_columns in rows.items()
        for column, best_rows in columns.items()
        if support(row) <= best_rows and support(column) <= best_columns
    ]
    return sorted(found, key=lambda pair: [(len(support(each)), sorted(support(each))) for each in pair])


def support_equilibria(first: Payoffs, second: Payoffs) -> list[Equilibrium]:
    """Equilibria whose supports have the same size and leave nothing open, in the order of the first player's supports.

    Raises BadInput as `equilibria` does.
    """
    _check(first, second)
    other = _transposed(second)
    found: list[Equilibrium] = []
    for rows in _supports(len(first)):
        for columns in combinations(range(len(other)), len(rows)):
            column = _indifferent(first, rows, columns)
            if column is None or support(column) != set(columns) or not set(rows) <= best_responses(first, column):
                continue
            row = _indifferent(other, columns, rows)
            if row is not None and support(row) == set(rows) and set(columns) <= best_responses(other, row):
                found.append((row, column))
    return found


def support(strategy: Strategy) -> set[int]:
    """The actions that are played with a probability above 0."""
    return {action for action, probability in enumerate(strategy) if probability > 0}


def best_responses(payoffs: Payoffs, strategy: Strategy) -> set[int]:
    """The rows of `payoffs` that give most against a strategy over its columns."""
    expected = [sum(a * b for a, b in zip(row, strategy, strict=True)) for row in payoffs]
    most = max(expected)
    return {row for row, value in enumerate(expected) if value == most}


def _check(first: Payoffs, second: Payoffs) -> None:
    widths = {len(row) for payoffs in (first, second) for row in payoffs}
    if len(first) != len(second) or len(widths) != 1 or not min(widths):
        raise BadInput(
            "The payoffs of a game are two matrices of the same shape, a row for each action of the first player."
        )
    if wrong := [value for row in (*first, *second) for value in row if not isinstance(value, int)]:
        raise BadInput(
            f"The payoff {wrong[0]!r} is no whole number: multiply all of a player by what makes them whole."
        )


def _transposed(payoffs: Payoffs) -> Payoffs:
    return list(zip(*payoffs, strict=True))


def _supports(count: int) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(range(count), size) for size in range(1, count + 1))


def _vertices(payoffs: Payoffs) -> dict[Strategy, set[int]]:
    """The vertices of the polytope of strategies over the columns, with the rows that are best against each."""
    found: dict[Strategy, set[int]] = {}
    for rows in _supports(len(payoffs)):
        for columns in combinations(range(len(payoffs[0])), len(rows)):
            strategy = _indifferent(payoffs, rows, columns)
            if strategy is None or strategy in found:
                continue
            best = best_responses(payoffs, strategy)
            if set(rows) <= best:
                found[strategy] = best
    return found


def _indifferent(payoffs: Payoffs, rows: Sequence[int], columns: Sequence[int]) -> Strategy | None:
    """What is played over these columns, in sum 1, so that these rows give the same; None without exactly one."""
    system = [[*(payoffs[row][column] for column in columns), -1, 0] for row in rows]
    system.append([*(1 for _ in columns), 0, 1])
    determinant = _diagonalize(system)
    numerators = [values[-1] for values in system[:-1]]  # the last of all is what the rows give
    if determinant == 0 or any(value * determinant < 0 for value in numerators):
        return None
    strategy = [Fraction(0)] * len(payoffs[0])
    for column, numerator in zip(columns, numerators, strict=True):
        strategy[column] = Fraction(numerator, determinant)
    return tuple(strategy)


def _diagonalize(system: list[list[int]]) -> int:
    """Gauss-Jordan in whole numbers (Bareiss 1968), in place: what every diagonal entry is then, 0 for a singular system."""
    before = 1
    for place in range(len(system)):
        pivot = next((row for row in range(place, len(system)) if system[row][place]), None)
        if pivot is None:
            return 0
        system[place], system[pivot] = system[pivot], system[place]
        own, scale = system[place], system[place][place]
        for row, values in enumerate(system):
            if row != place:
                factor = values[place]
                system[row] = [
                    (scale * value - factor * other) // before for value, other in zip(values, own, strict=True)
                ]
        before = scale
    return before
