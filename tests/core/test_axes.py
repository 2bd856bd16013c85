"""Axes as Vega-Lite is given them: titles, ends, steps, in full."""

import math

import pytest

from equipoise.core.axes import LINE, Axis, finite, short

LONG = "a title that is too long to stand in one line"
STANDING = {"titleAngle": 0, "titleAlign": "left", "titleBaseline": "bottom", "titleAnchor": "end", "titleX": -8}


def test_a_position_in_full():
    plain = Axis("loss", better="lower", unit="nats").over([0.5, 2.0])
    assert plain.encoding("x") == {
        "field": "x",
        "type": "quantitative",
        "scale": {"nice": True, "zero": False, "padding": 10},
        "axis": {"title": "loss (nats), lower is better ↓"},
    }
    assert plain.encoding("y", vertical=True, heading="")["axis"] == {
        **STANDING, "title": "", "titleY": -18, "titleLineHeight": 16,
    }  # fmt: skip
    zero = Axis("loss", log=True).over([0.5, 5.0], zero=True).encoding("x")
    assert zero["scale"] == {"nice": True, "type": "log"}
    assert Axis("share", share=True).over([0.25, 0.5]).encoding("x")["scale"] == {
        "domain": [0.25, 0.5],
        "nice": False,
        "zero": False,
    }


def test_a_long_title_has_its_direction_in_a_second_line():
    assert len(LONG) > LINE
    scale = Axis(LONG, better="higher", chance=0.5).over([0.4, 0.9])
    upright = scale.encoding("y", vertical=True)["axis"]
    assert upright == {
        **STANDING, "title": [LONG, "higher is better ↑, chance 0.5 (dotted)"], "titleY": -34, "titleLineHeight": 16,
    }  # fmt: skip
    assert scale.encoding("x")["axis"] == {"title": [LONG, "higher is better ↑, chance 0.5 (dotted)"]}
    assert Axis(LONG).over([1.0]).encoding("x")["axis"] == {"title": LONG}  # nothing for a second line
    title = "t" * (LINE - len(", lower is better ↓"))  # just fits
    for more, lines in (("", title + ", lower is better ↓"), ("t", [title + "t", "lower is better ↓"])):
        axis = Axis(title + more, better="lower").over([1.0]).encoding("x")["axis"]
        assert axis["title"] == lines


def test_a_line_at_the_chance_level_in_full():
    scale = Axis("accuracy", chance=0.25).over([0.3, 0.9])
    assert scale.chance_line("y") == [
        {
            "data": {"values": [{"y": 0.25}]},
            "mark": {"type": "rule", "strokeDash": [2, 4], "stroke": "var(--quiet)", "tooltip": None},
            "encoding": {"y": {"field": "y", "type": "quantitative"}},
        }
    ]
    far = Axis("accuracy", chance=0.25).over([0.8, 0.9])
    assert far.chance_line("y") == [] and far.about == "chance 0.25" and scale.about == "chance 0.25 (dotted)"
    # A third of the values' range away, or a little more, is drawn: 0.35 of it.
    for chance, drawn in ((-0.34, True), (-0.36, False), (1.34, True), (1.36, False)):
        assert Axis("score", chance=chance).over([0.0, 1.0]).drawn is drawn


@pytest.mark.parametrize(
    ("values", "bounds", "ends"),
    [
        ([0.3, 0.96], [], (0.2, 1.0)),
        ([0.41, 0.59], [0.2, 1.3], (0.2, 1.0)),
        ([0.123], [], (0.12, 0.13)),
        ([0.12], [], (0.11, 0.13)),
        ([0.5, 0.51], [], (0.5, 0.51)),
        ([0.0, 1.0], [], (0.0, 1.0)),
        ([0.11, 0.29], [], (0.1, 0.3)),
        ([0.101, 0.199], [], (0.1, 0.2)),
        ([0.07, 0.48], [], (0.0, 0.5)),
        ([0.33, 0.67], [], (0.3, 0.7)),
        ([0.0, 0.004], [], (0.0, 0.01)),
        ([0.999, 1.0], [], (0.99, 1.0)),
    ],
)
def test_an_axis_of_shares_has_round_ends(values, bounds, ends):
    assert Axis("share", share=True).over(values, bounds).ends == ends


def test_a_clock_has_ticks_that_a_clock_divides_into():
    axis = Axis("time", unit="s")
    for high, step, count in ((60.0, 15, 5), (100.0, 20, 6), (3000.0, 600, 6), (3601.0, 900, 6), (86400.0, 21600, 5)):
        ticks = axis.over([high], zero=True).encoding("x")["axis"]["values"]
        assert ticks == [number * step for number in range(count)], high
    thousands = Axis("step").over([0, 10_000]).encoding("x")["axis"]
    assert thousands["labelExpr"] == "datum.value ? format(datum.value, '~s') : '0'"


def test_numbers_of_a_figure():
    assert [finite(value) for value in (1, 0.5, None, math.nan, math.inf)] == [True, True, False, False, False]
    assert [short(value) for value in (1 / 3, 1234567.0, math.nan, None)] == [0.333333, 1234570.0, None, None]


def test_which_axes_are_of_shares_and_which_are_logarithmic():
    share, log = Axis("share", share=True), Axis("rate", log=True)
    for values, fixed in (
        ([0.0, 1.0], True),
        ([-0.01, 1.0], False),
        ([0.0, 1.01], False),
        ([], False),
        ([math.nan], False),
    ):
        assert (share.over(values).ends is not None) is fixed, values
    for values, bounds, wanted in (
        ([1, 10], [], True), ([1, 9.99], [], False), ([2, 3], [0.5, 5], True), ([0, 10], [], False), ([-1, 10], [], False),
        ([0.01, 0.1], [], True),
    ):  # fmt: skip
        assert log.over(values, bounds).log is wanted, values
    assert not Axis("rate").over([1, 100]).log
    assert Axis("x", chance=0.5).over([0.5, 0.5]).drawn and not Axis("x", chance=0.6).over([0.5, 0.5]).drawn
    assert share.over([0.4], [-3.0, 2.0]).ends == (0.0, 1.0) and share.over([0.4], [-3.0, 2.0]).high == 1.0


def test_where_ticks_are_told_otherwise():
    assert "labelExpr" not in Axis("step").over([9_999.0]).encoding("x")["axis"]
    plain, timed = Axis("time", unit="s").over([59.4]), Axis("time", unit="s").over([59.5])
    assert (plain.label, timed.label) == ("time (s)", "time (min:s)") and "values" not in plain.encoding("x")["axis"]
    weeks = Axis("time", unit="s").over([4e6]).encoding("x")["axis"]
    assert weeks["values"] == [604_800 * number for number in range(8)]
    assert weeks["labelExpr"] == "floor(datum.value / 3600) + utcFormat(datum.value * 1000, ':%M:%S')"
    assert Axis("loss").over([1.0], zero=True).encoding("x")["scale"] == {"nice": True, "zero": True}
