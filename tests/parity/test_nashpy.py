"""Equilibria of the matrix games against nashpy's support and vertex enumeration, which work in floating point."""

import importlib.util
import warnings

import numpy as np
import pytest

from equipoise.data.equilibria import equilibria, support_equilibria
from equipoise.data.matrix_games import GAMES, labels

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nashpy") is None, reason="nashpy is not installed: pip install nashpy"
)
CASES = [(name, sign) for name, game in GAMES.items() for sign in ((1, -1) if game.negated else (1,))]


def rounded(pairs):
    return [tuple(tuple(round(float(value), 9) for value in each) for each in pair) for pair in pairs]


@pytest.mark.parametrize("shift", [0, 100, -100])
@pytest.mark.parametrize(("name", "sign"), CASES)
def test_support_enumeration(name, sign, shift):
    """The same equilibria in the same order, and so the same label."""
    import nashpy

    game = nashpy.Game(*(np.array(each, dtype=float) for each in GAMES[name].payoffs(sign, shift)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of an even number of equilibria
        theirs = list(game.support_enumeration())
    assert rounded(theirs) == rounded(support_equilibria(*GAMES[name].payoffs(sign, shift)))
    assert tuple(int(np.argmax(each)) + 1 for each in theirs[-1]) == labels(name, sign)


@pytest.mark.parametrize(("name", "sign"), CASES)
def test_vertex_enumeration(name, sign):
    """Every extreme equilibrium; their polytopes want payoffs above 0, which a shift gives."""
    import nashpy

    payoffs = GAMES[name].payoffs(sign, 20)
    theirs = nashpy.Game(*(np.array(each, dtype=float) for each in payoffs)).vertex_enumeration()
    assert set(rounded(theirs)) == set(rounded(equilibria(*payoffs)))
