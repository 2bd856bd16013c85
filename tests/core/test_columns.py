"""Numbers of a column: one decimal place for all, none printed as 0 that is not, seconds as people read them."""

import math

import pytest

from equipoise.core.columns import clock_unit, column, duration


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1, 20, 3000], ["1", "20", "3,000"]),
        ([4.0, 5.0], ["4", "5"]),
        ([0.5, 0.25], ["0.500", "0.250"]),
        ([0.5, 0.0251], ["0.500", "0.025"]),
        ([1386.2, 0.31], ["1,386.20", "0.31"]),
        ([0.912, 0.000004], ["0.91200", "<0.00001"]),
        ([-0.912, -0.000004], ["−0.91200", ">−0.00001"]),
        ([1.5, -0.0], ["1.50", "0.00"]),
        ([2e-7, 4e-9], ["2.00×10^−7", "4.00×10^−9"]),
        ([0.5, math.nan, None, math.inf], ["0.500", "undefined", "–", "∞"]),
        ([123.4, 1.5], ["123.4", "1.5"]),
        ([1234.5, 99.5], ["1,234", "100"]),  # digits enough without a place, to the even one
        ([0.00021, 0.00005], ["0.000210", "0.000050"]),
        ([0.00009, 0.00005], ["9.00×10^−5", "5.00×10^−5"]),
        ([0.0001, 1e-12], ["0.00010000", "<0.00000001"]),
        ([0.5, 0.01, 0.02], ["0.500", "0.010", "0.020"]),
        ([0.5, 0], ["0.500", "0.000"]),
        ([-0.5, -1.0], ["−0.50", "−1.00"]),
        ([], []),
    ],
)
def test_one_format_a_column(values: list, texts: list[str]) -> None:
    assert column(values) == (texts, "")


def test_seconds_turn_into_a_clock_together() -> None:
    assert column([80.2, 5, None], "s") == (["1:20", "0:05", "–"], "min:s")
    assert column([59.5, 0.2], "s") == (["1:00", "0:00"], "min:s")
    assert column([3723, 60], "s") == (["1:02:03", "1:00"], "h:min:s")
    assert column([-80.0, math.nan], "s") == (["−80", "undefined"], "s")
    assert column([None], "s") == (["–"], "s")
    assert [clock_unit(longest) for longest in (3569.9, 3570, 3600)] == ["min:s", "h:min:s", "h:min:s"]
    assert column([59.4, 0.25], "s") == (["59.40", "0.25"], "s")
    assert column([80.2, 5], "MiB") == (["80.2", "5.0"], "MiB")


def test_a_time_by_itself() -> None:
    assert [duration(t) for t in (0.04, 9.94, 9.95, 10.4, 12.3, 59.4, 59.5, 80, 3723)] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "10 s",
        "12 s",
        "59 s",
        "1:00",
        "1:20",
        "1:02:03",
    ]
