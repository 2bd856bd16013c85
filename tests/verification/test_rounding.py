"""The checker's arithmetic against exact fractions: what it allows holds every result, and is what the theory asks for."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from equipoise.verification.check import prove_norm
from equipoise.verification.rounding import ROOM, TINY, Near, U, down, length, near, off, up

ETA = Fraction(2) ** -1022
RNG = np.random.default_rng(0)


def exact(x):
    """An array of fractions."""
    return np.vectorize(Fraction, otypes=[object])(x)


def random(*shape, exponents=(-2, 2)):
    return RNG.normal(size=shape) * 10.0 ** RNG.uniform(*exponents, size=shape)


def some(*shape):
    return Near(random(*shape), abs(random(*shape)) * 2.0**-40)


def within(found, least, asked, terms=1):
    """`found.error` is at least what the theory asks for, and at most a hair and some underflows more."""
    error, least, asked = exact(found.error), exact(least), exact(asked)
    assert (error >= least).all()
    assert (error <= asked * (1 + Fraction(2) ** -40) + 4 * terms * Fraction(TINY)).all()


def test_up_and_down_pay_for_sixty_roundings_and_underflows():
    x = np.concatenate([random(200), [0.0, 1.0, -1.0, 5e-324, 1e-310, -1e-310]])
    room = exact(abs(x)) * 60 * Fraction(U) + 1000 * ETA
    assert (exact(up(x)) - exact(x) >= room).all() and (exact(x) - exact(down(x)) >= room).all()
    assert (exact(up(x)) - exact(x) <= 2 * room + 2 * Fraction(TINY)).all()
    assert np.isnan([up(np.nan), down(np.nan)]).all() and up(np.inf) == np.inf and down(-np.inf) == -np.inf
    assert ROOM == 64 * U


@pytest.mark.parametrize("terms", [1, 7, 784, 10**6])
@pytest.mark.parametrize("size", [0.0, 1e-300, 0.3, 1e200])
def test_a_sum_of_products_is_off_by_what_the_theory_says(terms, size):
    share = terms * Fraction(U)
    asked = share / (1 - 2 * share) * Fraction(size) + 3 * terms * ETA
    found = Fraction(float(off(terms, size)))
    assert asked <= found <= asked * (1 + 8 * share + Fraction(2) ** -40) + 2 * terms * Fraction(TINY)


def test_a_length_is_never_short():
    for n in (1, 2, 3, 50, 1000):
        for scale in (1.0, 1e-170, 1e-250, 1e170, 5e-324):
            x = np.round(random(n)) * scale if scale == 5e-324 else random(n) * scale
            square = sum(exact(x) ** 2)
            found = Fraction(float(length(x)))
            # Its sum may be added up in any order, so half of n u has to be in hand.
            assert found**2 >= square * (1 + n * Fraction(U))
            assert found**2 <= square * (1 + Fraction(n, 10**12)) + 4 * found * Fraction(TINY)
    assert Fraction(float(length(np.full(2, 5e-324)))) ** 2 > 2 * Fraction(5e-324) ** 2
    rows = random(4, 3)
    assert (length(rows) == [length(row) for row in rows]).all() and length(rows, axis=0).shape == (3,)
    assert length(np.zeros(3)) <= TINY and np.isnan(length(np.array([1.0, np.nan])))


def ends(a):
    """Of numbers that are near: both ends of each, in fractions."""
    value, error = exact(a.value), exact(a.error)
    return value - error, value + error


@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_an_operation_holds_every_result(name):
    op = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b}[name]
    for a, b in [(some(100), some(100)), (near(random(100)), near(random(100))), (some(100), random(100))]:
        found, low, high = op(a, b), *ends(op(a, b))
        b = near(b)
        for x in ends(a):
            for y in ends(b):
                assert (low <= op(x, y)).all() and (op(x, y) <= high).all()
        sizes = [exact(abs(each)) for each in (a.value, a.error, b.value, b.error)]
        spread = sizes[1] + sizes[3] if name != "mul" else sizes[0] * sizes[3] + sizes[1] * (sizes[2] + sizes[3])
        asked = spread + Fraction(U) * exact(abs(found.value))
        within(found, asked, asked)


@pytest.mark.parametrize("name", ["add", "mul"])
def test_a_result_that_underflows_is_held(name):
    a, b = near(np.array([1e-200, 5e-324, 2.3e-308])), near(np.array([1e-200, 0.6, -2.2e-308]))
    found = a + b if name == "add" else a * b
    asked = Fraction(U) * exact(abs(found.value)) + ETA  # to 0, too, where a library switches subnormals off
    within(found, asked, asked)


def test_worst_sums_are_held():
    """1 and then numbers of half a unit in its last place: added one by one they are all lost."""
    x = np.full(128, U)
    x[0] = 1
    for found in (near(x).sum(), near(x[None]) @ np.ones(128), near(np.ones(128)) @ x):
        truth = 1 + 127 * Fraction(U)
        assert found.value == 1 or abs(Fraction(float(np.squeeze(found.value))) - truth) > 0
        low, high = ends(Near(np.atleast_1d(found.value), np.atleast_1d(found.error)))
        assert low[0] <= truth <= high[0]


def summed(found, spread, sizes, terms, more):
    """What the errors of the terms come to, as computed, and what rounding may add to it and to the value.

    more: roundings beside those of the terms, in the sum of the errors.
    """
    asked = exact(spread) + (terms + more) * Fraction(U) * (exact(spread) + exact(sizes))
    within(found, asked * (1 - 2 * Fraction(U)), asked, terms)


@pytest.mark.parametrize("known", [0.0, 2.0**-40, 0.5, 1e4])
def test_sums_hold_every_result_in_any_order(known):
    """Errors from none to much larger than the values, where what matters is the rounding of their own sum."""
    a = Near(random(3, 100), abs(random(3, 100)) * known)
    b = Near(random(100, 2), abs(random(100, 2)) * known)
    weight, bias = random(4, 100), random(4) * 1e4
    product, total = a @ b, a.sum()
    mapped = a.through(lambda x, change=lambda w: w: x @ change(weight).T, 101, bias)
    assert (a.sum(0).value == a.value.sum(0)).all() and a.sum(0).error.shape == (100,)
    spread = abs(a.value) @ b.error + a.error @ (abs(b.value) + b.error)
    summed(product, spread, abs(a.value) @ abs(b.value), 100, 4)
    summed(total, a.error.sum(1), abs(a.value).sum(1), 100, 2)
    summed(mapped, a.error @ abs(weight).T, abs(a.value) @ abs(weight).T + abs(bias), 101, 2)
    for x in ends(a):
        assert (abs(x.sum(1) - exact(total.value)) <= exact(total.error)).all()
        assert (abs(x @ exact(weight).T + exact(bias) - exact(mapped.value)) <= exact(mapped.error)).all()
        for y in ends(b):
            assert (abs(x @ y - exact(product.value)) <= exact(product.error)).all()


def test_what_a_sum_of_underflows_loses_is_in_its_error():
    tiny = np.full((1, 4), 1e-200)
    for found in (
        near(tiny) @ tiny.T,
        near(tiny).through(lambda x, change=abs: x @ tiny.T, 4),
        near(tiny * tiny).sum(),
    ):
        assert 0 == found.value.max() < found.error.min() and found.error.max() < 1e-290


def test_choices_keep_the_larger_error():
    a, b = Near(np.array([1.0, 5.0]), np.array([0.1, 0.2])), Near(np.array([2.0, 4.0]), np.array([0.3, 0.1]))
    least = a.least_of(b)
    assert least.value.tolist() == [1.0, 4.0] and least.error.tolist() == [0.3, 0.2]
    where = a.where(np.array([True, False]), b)
    assert where.value.tolist() == [1.0, 4.0] and where.error.tolist() == [0.1, 0.1]
    assert (-a).value.tolist() == [-1.0, -5.0] and (-a).error is a.error
    assert a.size.tolist() == [1.1, 5.2] and a[1].value == 5 and a[1].error == 0.2
    assert (a.least < a.value - a.error).all() and (a.most > a.value + a.error).all()
    assert (a.least > a.value - a.error - 1e-12).all() and (a.most < a.value + a.error + 1e-12).all()
    assert (a == replace(a)) is False
    assert a.T.value.shape == (2,) and some(2, 3).T.error.shape == (3, 2)
    with pytest.raises(TypeError):
        np.ones(2) + a


def test_a_proved_norm_is_above_the_claim_by_what_its_roundings_may_be():
    """Of the unit matrix: the Gram matrix's sums, with two terms more, and Rump's share of the trace, with two to spare."""
    n, claimed = 40, 1.1
    layer = {"kind": "linear", "weight": np.eye(n), "bias": np.zeros(n)}
    found = Fraction(prove_norm(layer, np.ones(1), claimed)) ** 2
    square = Fraction(claimed) ** 2
    gram, factor = (n + 2) * n, (n + 3) * n * (square - 1)
    asked, upwards = square + Fraction(U) * (gram + factor), 2 * Fraction(ROOM) * square
    assert asked + upwards * Fraction(97, 100) <= found <= asked + upwards * Fraction(103, 100)


def test_of_very_many_products_rounding_counts_more_than_once():
    """With n u = 2^-13 the share is n u / (1 - 8 n u), to the last places."""
    assert off(2.0**40, 3.0) == pytest.approx(3 * 2.0**-13 / (1 - 2.0**-10), rel=1e-14)
