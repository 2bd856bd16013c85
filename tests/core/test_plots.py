"""Figures: what is drawn is what was given, every arm looks the same everywhere, and all of it can be told apart."""

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from equipoise.core import plots
from equipoise.core.errors import BadInput
from equipoise.core.marks import ARM_COLORS

ACCURACY = plots.Axis("accuracy", better="higher", chance=0.25)
LOSS = plots.Axis("loss", better="lower", unit="nats")
ARMS = plots.marks({"sum": "baseline", "sago": "method", "random": "control"})
POINTS = [plots.Point("sum", 0.3, 0.6, None, (0.2, 0.4), (0.5, 0.7)), plots.Point("sago", 0.35, 0.72)]


def charts() -> dict[str, plots.Chart]:
    return {
        "frontier": plots.frontier("f", ARMS, POINTS, x=LOSS, y=ACCURACY, seeds=POINTS, paths=[*POINTS, *POINTS]),
        "paths": plots.paths("p", ARMS, POINTS, x=plots.Axis("step"), y=ACCURACY),
        "lines": plots.lines("l", {"a": [(0, 1.0), (1, math.nan), (2, 0.5)]}, x=plots.Axis("step"), y=LOSS),
        "intervals": plots.intervals(
            "i",
            [plots.ChartRow("sum", 0.1, 0.0, 0.2, (0.05, 0.15)), plots.ChartRow("sago", 0.2, 0.1, 0.3)],
            x=ACCURACY,
            arms=ARMS,
            uprights=[plots.Upright("no difference", 0.0), plots.Upright("margin", 0.05, dashed=True)],
            sides=("sum", "sago"),
        ),
        "effect": plots.intervals("e", [plots.ChartRow("sago - sum", 0.1, 0.0, 0.2)], x=plots.Axis("difference")),
        "costs": plots.costs(
            "c",
            ARMS,
            [
                plots.ChartBar("sum", "build", 3, 5),
                plots.ChartBar("sum", "query", 1, 1),
                plots.ChartBar("sago", "build", 2),
            ],
            x=LOSS,
        ),
        "heat map": plots.heat_map(
            "h",
            [(0, "layer 1", -0.5), (1, "layer 1", 0.7), (0, "layer 2", math.nan)],
            x=plots.Axis("step"),
            y=plots.Axis("layer"),
            value=plots.Axis("cosine"),
        ),
    }


def values(chart: plots.Chart) -> list[dict]:
    return [row for layer in chart.spec["layer"] for row in layer.get("data", chart.spec["data"])["values"]]


@pytest.mark.parametrize("kind", charts())
def test_every_kind_compiles_and_draws(kind: str, tmp_path: Path) -> None:
    chart = charts()[kind]
    json.dumps(chart.spec, allow_nan=False)
    svg = plots.to_svg(chart, "dark")
    assert svg.startswith("<svg") and "var(--" not in svg and svg.count("<path") > 3
    assert chart.description.startswith(chart.title) and chart.description.endswith(".")
    assert all(len(row) == len(chart.columns) == len(chart.units) for row in chart.rows)


def test_an_arm_looks_the_same_in_every_figure() -> None:
    for kind in ("frontier", "paths", "intervals"):
        for layer in charts()[kind].spec["layer"]:
            for channel in ("color", "shape"):
                scale = layer["encoding"].get(channel, {}).get("scale")
                if scale and "sago" in scale["domain"]:
                    drawn = scale["range"][scale["domain"].index("sago")]
                    assert drawn == {"color": "var(--arm-1)", "shape": "square"}[channel]


def test_the_first_64_arms_differ_in_colour_or_shape() -> None:
    made = plots.marks([f"arm {i}" for i in range(64)])
    assert len({(m.color, m.shape) for m in made}) == 64


def _linear(color: str) -> np.ndarray:
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    """Oklab (Ottosson 2020), in which distances are close to perceived ones."""
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return to_lab @ np.cbrt(to_lms @ np.clip(linear, 0, 1))


# Machado, Oliveira & Fernandes 2009, severity 1.0, on linear RGB.
VISION = {
    "full": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colors_can_be_told_apart_and_stand_out(theme: plots.Theme) -> None:
    ground = _linear(plots.colors(theme)["paper"])

    def luminance(linear: np.ndarray) -> float:
        return float(linear @ [0.2126, 0.7152, 0.0722])

    arms = [_linear(color) for color in ARM_COLORS[theme]]
    for linear in arms:
        low, high = sorted((luminance(linear), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 3  # WCAG 2.1, graphical objects
    for name, matrix in VISION.items():
        seen = [_lab(matrix @ linear) for linear in arms]
        nearest = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))
        assert nearest > 0.07, (name, nearest)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_legible(theme: plots.Theme) -> None:
    known = plots.colors(theme)
    weights = [0.2126, 0.7152, 0.0722]
    paper = float(_linear(known["paper"]) @ weights)
    for name in ("ink", "quiet"):
        low, high = sorted((float(_linear(known[name]) @ weights), paper))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_ideal_corner_follows_the_directions() -> None:
    corners = {
        ("lower", "higher"): ("↖ ideal", 0, 0),
        ("higher", "higher"): ("ideal ↗", "width", 0),
        ("lower", "lower"): ("↙ ideal", 0, "height"),
        ("higher", "lower"): ("ideal ↘", "width", "height"),
    }
    for (x, y), (words, across, up) in corners.items():
        chart = plots.frontier("f", ARMS, POINTS, x=plots.Axis("a", better=x), y=plots.Axis("b", better=y))
        _, corner = [layer for layer in chart.spec["layer"] if "ideal" in str(layer["mark"].get("text"))]  # on its halo
        assert corner["mark"]["text"] == words
        assert (corner["encoding"]["x"]["value"], corner["encoding"]["y"]["value"]) == (across, up)


def test_undefined_values_are_not_drawn_and_stay_in_the_table() -> None:
    chart = plots.paths("p", ARMS, [*POINTS, plots.Point("sum", 0.5, math.nan)], x=plots.Axis("step"), y=LOSS)
    assert len(chart.rows) == 3 and math.isnan(chart.rows[2][2])
    assert {row["x"] for row in values(chart)} == {0.3, 0.35}


def test_a_logarithmic_axis_needs_a_positive_decade() -> None:
    axis = plots.Axis("perplexity", log=True)
    assert axis.over([1.0, 10.0]).log
    assert not axis.over([2.0, 10.0]).log and not axis.over([0.0, 10.0]).log and not axis.over([]).log


def test_a_chance_level_far_away_is_said_not_drawn() -> None:
    for near in ([0.2, 0.9], [0.3, 0.9]):  # inside, just outside
        scale = ACCURACY.over(near)
        [line] = scale.chance_line("y")
        assert line["data"]["values"] == [{"y": 0.25}] and "chance 0.25 (dotted)" in scale.label
    far = ACCURACY.over([0.8, 0.9])
    assert far.chance_line("y") == [] and far.label == "accuracy, higher is better ↑, chance 0.25"


def test_an_axis_of_shares_ends_within_the_whole() -> None:
    share = plots.Axis("accuracy", share=True)
    for values, bounds, ends in (
        ([0.3, 0.96], (), [0.2, 1.0]),
        ([0.05, 0.5], (-0.1, 0.6), [0.0, 0.6]),  # an interval reaches below nothing
        ([0.95, 0.99], (0.93, 1.02), [0.92, 1.0]),
        ([0.05, 0.1], (-5.0, 0.18), [0.0, 0.2]),
        ([1.0, 1.0], (), [0.99, 1.0]),
        ([0.0], (), [0.0, 0.01]),
    ):
        assert share.over(values, bounds).encoding("y")["scale"]["domain"] == ends, values
    assert plots.Axis("accuracy", share=True, chance=0.25).over([0.3, 0.9]).ends == (0.2, 1.0)
    for scale in (share.over([-0.2, 0.9]), share.over([0.5, 1.2]), plots.Axis("loss").over([0.2, 0.9]), share.over([])):
        assert "domain" not in scale.encoding("y")["scale"]  # a cosine, a ratio, no share, nothing
        assert scale.encoding("y")["scale"]["padding"] == 10
    assert "padding" not in plots.Axis("loss").over([0.2, 0.9], zero=True).encoding("y")["scale"]
    wide, narrow = (plots.Axis("loss", log=True).over(values).encoding("y")["scale"] for values in ([1, 10], [1, 9]))
    assert wide["type"] == "log" and "zero" not in wide and narrow["zero"] is False and "type" not in narrow


def test_seconds_along_an_axis_are_a_clock_from_a_minute_on() -> None:
    axis = plots.Axis("time", unit="s")
    minutes = axis.over([3.0, 200.0], zero=True)
    assert minutes.label == "time (min:s)"
    drawn = minutes.encoding("x")["axis"]
    assert drawn["values"] == [0, 60, 120, 180, 240] and "%-M:%S" in drawn["labelExpr"]
    assert axis.over([9000.0]).label == "time (h:min:s)"
    days = axis.over([200_000.0]).encoding("x")["axis"]["labelExpr"]
    assert days.startswith("floor(datum.value / 3600)")  # a clock of a day begins anew at 24 hours
    steps = plots.Axis("step")
    for high, short in ((9_999.0, False), (10_000.0, True), (20_000.0, True)):
        assert ("labelExpr" in steps.over([0.0, high]).encoding("x")["axis"]) is short
    week = 7 * 24 * 3600
    assert axis.over([6.5 * week]).encoding("x")["axis"]["values"] == [number * week for number in range(8)]
    assert axis.over([59.0]).label == "time (s)"
    assert "values" not in axis.over([0.2], zero=True).encoding("x")["axis"]


def test_what_has_no_interval_is_drawn_without_a_layer_of_intervals() -> None:
    """A layer without rows makes Vega warn of an infinite extent."""
    bare = [plots.Point("sum", 0.3, 0.6), plots.Point("sago", 0.35, 0.72)]
    for chart in (
        plots.frontier("f", ARMS, bare, x=LOSS, y=ACCURACY),
        plots.paths("p", ARMS, bare, x=plots.Axis("step"), y=ACCURACY),
        plots.intervals("i", [plots.ChartRow("sum", 0.1, math.nan, math.nan)], x=LOSS),
    ):
        assert not any("transform" in layer for layer in chart.spec["layer"])
        assert "nan" not in chart.description


def test_cost_phases_stack_and_lost_attempts_are_marked() -> None:
    chart = charts()["costs"]
    ticks = next(layer for layer in chart.spec["layer"] if layer["mark"]["type"] == "tick")
    assert ticks["data"]["values"] == [{"arm": "sum", "x": 6.0}]  # sago's spending is unknown, so it has no tick


def test_a_margin_is_dashed_and_no_effect_is_solid() -> None:
    layers = charts()["intervals"].spec["layer"]
    rules = [layer["mark"] for layer in layers if layer["mark"]["type"] == "rule" and "data" in layer]
    assert [("strokeDash" in mark, mark["stroke"]) for mark in rules[1:]] == [  # after the chance level
        (False, "var(--strong-rule)"),
        (True, "var(--ink)"),
    ]


def test_a_heat_map_puts_the_middle_of_its_domain_on_the_neutral_step() -> None:
    scale = charts()["heat map"].spec["layer"][0]["encoding"]["color"]["scale"]
    drawn = [
        scale["range"][int(np.searchsorted(scale["domain"], v, side="right"))] for v in (-1.0, -0.2, 0.0, 0.2, 1.0)
    ]
    assert drawn == [f"var(--heat-{i})" for i in (0, 3, 4, 5, 8)]
    with pytest.raises(BadInput, match="low < high"):
        plots.heat_map("h", [], x=LOSS, y=LOSS, value=LOSS, domain=(1.0, 1.0))


def test_a_picture_has_square_cells_and_says_what_its_colours_are() -> None:
    chart = plots.picture("Input 4", [[0.0, 1.0, 0.5]] * 2, value=plots.Axis("value"), domain=(-0.0421596, 0.0421596))
    assert (chart.spec["width"], chart.spec["height"]) == (216, 144)
    assert chart.note.startswith("Input 4. Colour: value, from −0.0422 (orange) through 0 ")
    assert plots.to_svg(chart).count("<path") > 6


def test_names_are_data_never_expressions() -> None:
    name = "a'] || alert(1) || datum['<b>"
    chart = plots.lines("t", {name: [(0, 1.0)], "b": [(0, 2.0)]}, x=plots.Axis("x"), y=plots.Axis("y"))
    expressions = re.findall(r'"(?:test|filter|expr|calculate)": "([^"]*)"', json.dumps(chart.spec))
    assert expressions and not any("alert" in expression for expression in expressions)
