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
        (-math.inf, "−∞"),
        (-0.0, "0"),
        (-3, "−3"),
        (-2.0, "−2"),
        (10**12, "1,000,000,000,000"),
        (999_999_999.0, "999,999,999"),
        (1e9, "1.00×10^9"),
        (-2e9, "−2.00×10^9"),
        (0.0001, "0.000100"),
        (0.00009999, "1.00×10^−4"),
        (9999999.4, "9,999,999"),
        (12345678.5, "1.23×10^7"),
        (1.5, "1.50"),
        (12.34, "12.3"),
        (123.4, "123"),
    ],
)
def test_number(value: float | None, printed: str) -> None:
    assert numbers.number(value) == printed


@pytest.mark.parametrize(
    ("value", "digits", "printed"),
    [
        (0.5, 1, "+0.5"),
        (12.346, 4, "+12.35"),
        (123456.7, 1, "+123,457"),
        (-1.5e-7, 2, "−1.5×10^−7"),
        (2.5e8 + 0.5, 1, "+3×10^8"),
        (3, 3, "+3"),
        (0, 3, "+0"),
        (-4.0, 3, "−4"),
        (math.inf, 3, "∞"),
        (None, 3, "undefined"),
    ],
)
def test_a_number_with_its_sign_and_other_digits(value, digits, printed) -> None:
    assert numbers.number(value, digits, signed=True) == printed


@pytest.mark.parametrize(
    ("lower", "upper", "places"),
    [
        (0, 200, 0),
        (0, 20, 0),
        (0, 19.9, 1),
        (0, 2, 1),
        (0, 0.2, 2),
        (0, 0.02, 3),
        (0.4, 0.40004, 6),
        (0, 2e-9, 6),
        (0, 0, None),
        (1, 0, None),
        (0, math.inf, None),
        (math.nan, 1, None),
    ],
)
def test_the_place_where_half_a_width_has_two_digits(lower, upper, places) -> None:
    assert numbers.decimals(lower, upper) == places


@pytest.mark.parametrize(
    ("given", "options", "printed"),
    [
        ((0.5, 0.5, 0.5), {}, ("0.500", "0.500 to 0.500")),
        ((0.5, 0.5, 0.5), {"signed": True}, ("+0.500", "+0.500 to +0.500")),
        ((1.0, -math.inf, 2.0), {}, ("1", "undefined")),
        ((math.inf, 1.0, 2.0), {}, ("∞", "1 to 2")),
        ((math.nan, 1.0, 2.0), {"signed": True}, ("undefined", "+1 to +2")),
        ((0.25, -0.125, 0.625), {"places": 2}, ("0.25", "−0.12 to 0.62")),
        ((0.25, 0.125, math.nan), {"places": 2, "signed": True}, ("+0.25", "undefined")),
        ((-0.0, -0.001, 0.001), {"places": 1}, ("0.0", "−0.0 to 0.0")),
        ((1234.0, 0.0, 2e4), {"places": 0}, ("1,234", "0 to 20,000")),
        ((1e-9, -2e-9, 4e-9), {}, ("1.00×10^−9", "−2.00×10^−9 to 4.00×10^−9")),  # never zeros alone
        ((-2e-7, -2.1e-7, -1.9e-7), {"signed": True}, ("−2.00×10^−7", "−2.10×10^−7 to −1.90×10^−7")),
        ((0.004, 0.003, math.nan), {"places": 1}, ("0.00400", "undefined")),
        ((0.004, 0.003, 0.06), {"places": 1}, ("0.0", "0.0 to 0.1")),
        ((0.0, -3e-9, 3e-9), {}, ("0.000000", "−0.000000 to 0.000000")),
    ],
)
def test_intervals_in_full(given, options, printed) -> None:
    assert numbers.interval(*given, **options) == printed


@pytest.mark.parametrize(
    ("numerator", "of", "printed"),
    [
        *((1, 1, "1.00"), (0, 1, "0.00"), (1, 100, "0.01"), (1, 101, "0.010"), (1, 1000, "0.001")),
        *((1, 1001, "0.0010"), (1, 10_001, "0.0001"), (5.0, 10.0, "0.50"), (99999, 100_000, "1.0000")),
    ],
)
def test_places_of_a_rate(numerator, of, printed) -> None:
    assert numbers.rate(numerator, of) == printed


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


def test_why_a_rate_cannot_be_printed() -> None:
    with pytest.raises(WorkFailed) as caught:
        numbers.rate(2.5, 4)
    assert str(caught.value) == (
        "a rate cannot be printed: 2.5 of 4 is no count out of that many. "
        "A proportion needs a whole numerator from 0 to its denominator; record a mean of scores without of=."
    )
