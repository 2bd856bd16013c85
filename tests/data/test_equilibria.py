"""Equilibria against brute force: every pair on a grid of strategies, and each pure one cell by cell."""

from fractions import Fraction
from itertools import product
from random import Random

import pytest

from equipoise.core.errors import BadInput
from equipoise.data.equilibria import equilibria, support, support_equilibria
from equipoise.data.matrix_games import GAMES


def is_equilibrium(first, second, row, column):
    """By the definition: no other action of either pays more."""
    of_rows = [sum(a * q for a, q in zip(each, column, strict=True)) for each in first]
    of_columns = [sum(each[j] * p for each, p in zip(second, row, strict=True)) for j in range(len(column))]
    return all(p == 0 or value == max(of_rows) for p, value in zip(row, of_rows, strict=True)) and all(
        q == 0 or value == max(of_columns) for q, value in zip(column, of_columns, strict=True)
    )


def grid(actions, parts):
    """All strategies whose probabilities are multiples of 1/parts, times parts."""
    return [each for each in product(range(parts + 1), repeat=actions) if sum(each) == parts]


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (2, 3), (3, 2)])
def test_no_equilibrium_is_missed(rows, columns):
    """Small payoffs make most of these games degenerate; what a grid finds is a mixture of what was enumerated."""
    random = Random(rows * columns)
    for _ in range(25):
        first, second = ([[random.randint(-1, 1) for _ in range(columns)] for _ in range(rows)] for _ in range(2))
        found = equilibria(first, second)
        assert len(set(found)) == len(found) > 0
        assert all(is_equilibrium(first, second, *pair) and sum(pair[0]) == sum(pair[1]) == 1 for pair in found)
        pure = {
            (i, j)
            for i, j in product(range(rows), range(columns))
            if is_equilibrium(first, second, [k == i for k in range(rows)], [k == j for k in range(columns)])
        }
        assert pure == {(x.index(1), y.index(1)) for x, y in found if max(x) == max(y) == 1}
        on_grid = [pair for pair in product(grid(rows, 4), grid(columns, 4)) if is_equilibrium(first, second, *pair)]
        for player in (0, 1):
            played = set().union(*(support(pair[player]) for pair in found))
            assert set().union(*(support(pair[player]) for pair in on_grid)) <= played


def test_mixed_equilibria_are_exact():
    game = GAMES["chicken"].payoffs()
    assert equilibria(*game)[-1] == ((Fraction(1, 10), Fraction(9, 10)),) * 2
    wheel = [[0, -1, 1], [1, 0, -1], [-1, 1, 0]]
    other = [[-value for value in row] for row in wheel]
    assert equilibria(wheel, other) == support_equilibria(wheel, other) == [((Fraction(1, 3),) * 3,) * 2]


@pytest.mark.parametrize("second", [[[1, 2]], [[1, 2], [3]], [[1, 2], [3, 0.5]], [[], []]])
def test_what_is_no_game_is_refused(second):
    for solve in (equilibria, support_equilibria):
        with pytest.raises(BadInput):
            solve([[1, 2], [3, 4]], second)


def test_equal_supports_miss_what_is_degenerate():
    """In the weakly dominated game the first player may mix with action 2, as long as the second stays at 1."""
    game = GAMES["weakly-dominated"].payoffs()
    assert support_equilibria(*game) == [((0, 0, 1), (1, 0))]
    assert equilibria(*game) == [((0, 0, 1), (1, 0)), ((0, Fraction(3, 4), Fraction(1, 4)), (1, 0))]


def test_supports_are_what_is_played_and_shapes_are_the_same():
    # In row 1 alone both columns pay as much: that mixture over both rows would play but one of them.
    found = support_equilibria(((3, 0), (0, 3)), ((1, 1), (0, 2)))
    assert found == [((1, 0), (1, 0)), ((0, 1), (0, 1))]
    assert support((Fraction(0), Fraction(1, 3), Fraction(2, 3))) == {1, 2}
    for first, second in ((((1,),), ((1,), (1,))), (((1,), (1,)), ((1,),)), (((1, 2),), ((1,),)), (((),), ((),))):
        with pytest.raises(BadInput, match="two matrices of the same shape"):
            support_equilibria(first, second)
