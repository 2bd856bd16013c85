"""Numbers as printed: exact against fractions, and refused where no count could give them."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.core import numbers
from equipoise.core.errors import WorkFailed


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (math.nan, "undefined"),
        (None, "undefined"),
        (math.inf, "∞"),
        (0.0, "0"),
        (12345, "12,345"),
        (-0.5, "−0.500"),
        (0.00012345, "0.000123"),
        (1.5e-7, "1.50×10^−7"),
        (123456.7, "123,457"),
        (0.9996, "1.000"),
    ],
)
def test_number(value: float | None, printed: str) -> None:
    assert numbers.number(value) == printed


def test_interval_has_two_digits_of_its_half_width() -> None:
    assert numbers.interval(0.0412345, 0.01212, 0.07034, signed=True) == ("+0.041", "+0.012 to +0.070")
    assert numbers.interval(1234.56, 1200.0, 1270.0) == ("1,235", "1,200 to 1,270")
    assert numbers.interval(-0.0001, -0.03, 0.0298, signed=True)[0] == "−0.000"
    assert numbers.interval(0.5, math.nan, math.nan) == ("0.500", "undefined")
    assert numbers.interval(0.5, 0.4, 0.6, places=4) == ("0.5000", "0.4000 to 0.6000")
    assert numbers.interval(0.5, math.nan, math.nan, places=2) == ("0.50", "undefined")
    assert numbers.interval(math.nan, math.nan, math.nan, places=2) == ("undefined", "undefined")


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_printed_rate_is_that_of_its_count(count: tuple[int, int]) -> None:
    numerator, of = count
    printed = Fraction(numbers.rate(numerator, of))
    places = len(numbers.rate(numerator, of).partition(".")[2])
    assert abs(printed - Fraction(numerator, of)) <= Fraction(1, 2 * 10**places)
    if of <= 1000:  # two different counts never read the same
        assert round(printed * of) == numerator


@pytest.mark.parametrize(("numerator", "of"), [(3.5, 10), (11, 10), (-1, 10), (0, 0), (1, 2.5), (math.nan, 10)])
def test_an_impossible_rate_is_refused(numerator: float, of: float) -> None:
    with pytest.raises(WorkFailed, match=r"accuracy cannot be printed: .* of "):
        numbers.rate(numerator, of, what="accuracy")
