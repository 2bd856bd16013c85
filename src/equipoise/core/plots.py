"""Figures as Vega-Lite specifications: plain dictionaries that open offline and can be compared as text.

A `Chart` carries its figure and, for whoever cannot see it, a sentence and a table with the same numbers. Colours are
CSS variables (`var(--arm-0)`): the page that holds the figure says what they are in light and in dark, and nothing is
drawn twice. `to_svg` and `to_png` put the colours of one theme in and draw the same figure without a browser.

An arm has one colour, one shape and one dash in every figure of a page: make its `Marks` once and pass them on.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from equipoise.core.errors import BadInput
from equipoise.core.options import check_fields, closed

Theme = Literal["light", "dark"]
Value = str | float | int

# Found by search: every two are 0.07 apart in Oklab for full vision, protanopia and deuteranopia, and each has a contrast
# of at least 3 on its ground.
ARM_COLOURS: Mapping[Theme, tuple[str, ...]] = {
    "light": ("#0046d6", "#ab4c04", "#00a77d", "#801680", "#b48f17", "#0190d5", "#5f5e6f", "#bb0854"),
    "dark": ("#93bdff", "#da6c34", "#2ecb8c", "#bd6cff", "#ffd237", "#c8fffa", "#708fb0", "#ffc0cd"),
}
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
DASHES: Mapping[str, tuple[int, ...]] = {
    "method": (1, 0),
    "baseline": (7, 3),
    "control": (2, 3),
    "reference": (10, 3, 2, 3),
}
_HEAT: Mapping[Theme, tuple[str, ...]] = {
    "light": ("#a63a10", "#cc6a3c", "#e6a27f", "#f4d3c0", "#f1f1ef", "#c5dbee", "#86b5dc", "#4586bf", "#0b5794"),
    "dark": ("#ff9d6f", "#d9713f", "#a4542e", "#693c28", "#2b3036", "#274a68", "#2f6b9c", "#4a93cf", "#86c4f7"),
}
_GROUND: Mapping[Theme, Mapping[str, str]] = {
    "light": {"paper": "#ffffff", "ink": "#1b2026", "quiet": "#59636e", "rule": "#e6e8eb", "strong-rule": "#b9c0c7"},
    "dark": {"paper": "#15181c", "ink": "#e8eaed", "quiet": "#a2abb5", "rule": "#2c3238", "strong-rule": "#555e68"},
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', sans-serif"


@closed
def colours(theme: Theme) -> dict[str, str]:
    """The CSS variables of a theme, without their leading dashes: ground, arms and the nine steps of a heat map."""
    arms = {f"arm-{i}": colour for i, colour in enumerate(ARM_COLOURS[theme])}
    return {**_GROUND[theme], **arms, **{f"heat-{i}": colour for i, colour in enumerate(_HEAT[theme])}}


@dataclass(frozen=True, slots=True)
class Marks:
    """How one arm is drawn everywhere: colour, shape and, by its kind, dash."""

    name: str
    kind: str
    colour: int
    shape: str
    dash: tuple[int, ...]


def marks(arms: Mapping[str, str] | Iterable[str]) -> tuple[Marks, ...]:
    """Colour, shape and dash for each arm, in the order given; a mapping gives each name its kind.

    Past eight arms the colours repeat with other shapes: no two of the first 64 look alike.
    """
    kinds = dict(arms) if isinstance(arms, Mapping) else dict.fromkeys(arms, "method")
    size = len(SHAPES)
    return tuple(
        Marks(name, kind, i % size, SHAPES[(i + i // size) % size], DASHES.get(kind, DASHES["method"]))
        for i, (name, kind) in enumerate(kinds.items())
    )


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows. `better`: the good direction; `chance`: the value of a guess; `log`: logarithmic if it suits."""

    title: str
    better: Literal["lower", "higher"] | None = None
    chance: float | None = None
    unit: str = ""
    log: bool = False
    aside: str = ""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def label(self) -> str:
        """Title, unit, good direction in words, and what else is to be said."""
        title = f"{self.title} ({self.unit})" if self.unit else self.title
        return ", ".join(filter(None, (title, self.direction, self.aside)))

    @property
    def direction(self) -> str:
        """The good direction in words, empty where there is none."""
        return {"lower": "lower is better ↓", "higher": "higher is better ↑", None: ""}[self.better]

    def over(self, values: Iterable[float]) -> "Axis":
        """The same axis as it suits these values.

        Logarithmic only where they are positive and span a decade. A chance level that would leave much of the figure
        empty is not drawn but said beside the title.
        """
        known = [v for v in values if _finite(v)]
        low, high = min(known, default=math.nan), max(known, default=math.nan)
        fitted = replace(self, log=self.log and low > 0 and high / low >= 10)
        if self.chance is None or max(low - self.chance, self.chance - high) <= 0.35 * (high - low):
            return fitted
        return replace(fitted, chance=None, aside=f"chance {self.chance:g}")


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure with everything that stands beside it.

    spec: Vega-Lite. description: what the figure shows, read aloud in its place. columns, rows: its numbers as a table.
    legend: the arms in it. note: how to read it. runs: the run folders that its numbers come from.
    """

    title: str
    spec: dict[str, Any]
    description: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    legend: tuple[Marks, ...] = ()
    note: str = ""
    runs: tuple[str, ...] = ()

    def with_runs(self, runs: Iterable[str]) -> "Chart":
        """The same chart, naming its run folders."""
        return replace(self, runs=tuple(runs))


@dataclass(frozen=True, slots=True)
class Point:
    """One arm (or one seed of it) in the plane, with intervals where there are any; nan where undefined."""

    arm: str
    x: float
    y: float
    seed: int | None = None
    x_interval: tuple[float, float] = (math.nan, math.nan)
    y_interval: tuple[float, float] = (math.nan, math.nan)
    note: str = ""


@dataclass(frozen=True, slots=True)
class ChartRow:
    """One line of an interval figure: an estimate, its interval, and the values of the seeds behind it."""

    label: str
    estimate: float
    lower: float
    upper: float
    values: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class ChartBar:
    """What an arm spent, in one phase: for its result (`work`) and in all attempts (`spent`)."""

    arm: str
    phase: str
    work: float
    spent: float = math.nan


_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--quiet)",
        "labelFontSize": 12,
        "labelPadding": 6,
        "titleColor": "var(--ink)",
        "titleFontSize": 12.5,
        "titleFontWeight": 500,
        "gridColor": "var(--rule)",
        "domain": False,
        "ticks": False,
        "tickCount": 5,
    },
    "text": {"color": "var(--quiet)", "fontSize": 12},
    "legend": {"disable": True},
}


def _finite(value: float) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _short(value: float) -> float | None:
    """Six digits are more than a pixel shows; nan becomes null, which Vega leaves out."""
    return float(f"{value:.6g}") if _finite(value) else None


def _spec(
    layers: list[dict[str, Any]],
    height: int,
    legend: Sequence[Marks] = (),
    data: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """A layered figure; `data` is that of the layers without their own."""
    focus = [{"name": "focus", "value": ""}] if legend else []
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": _CONFIG,
        "params": focus,
        "data": _data(data),
        "layer": layers,
    }


def _data(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {"values": list(rows)}


def _arm_scales(legend: Sequence[Marks]) -> dict[str, dict[str, Any]]:
    """Encodings for the three channels of an arm, spelled out so that every figure agrees."""
    domain = [m.name for m in legend]

    def channel(values: list[Any]) -> dict[str, Any]:
        return {"field": "arm", "type": "nominal", "scale": {"domain": domain, "range": values}, "title": None}

    return {
        "color": channel([f"var(--arm-{m.colour})" for m in legend]),
        "shape": channel([m.shape for m in legend]),
        "strokeDash": channel([list(m.dash) for m in legend]),
    }


def _opacity(value: float) -> dict[str, Any]:
    """Full strength, or a shadow while the reader has another arm in focus."""
    return {"condition": {"test": "focus === '' || datum.arm === focus", "value": value}, "value": value * 0.12}


def _quantitative(axis: Axis, field_name: str, *, vertical: bool, title: str | None = None) -> dict[str, Any]:
    encoding: dict[str, Any] = {
        "field": field_name,
        "type": "quantitative",
        "scale": {"nice": True, "padding": 10} | ({"type": "log"} if axis.log else {"zero": False}),
        "axis": {"title": axis.label if title is None else title},
    }
    if vertical:  # a turned title is hard to read and too long for a low figure: it stands above the axis
        encoding["axis"] |= {"titleAngle": 0, "titleAlign": "left", "titleBaseline": "bottom", "titleAnchor": "end"}
        encoding["axis"] |= {"titleX": -8, "titleY": -12}
    return encoding


def _chance(axis: Axis, channel: Literal["x", "y"]) -> list[dict[str, Any]]:
    """A dotted line where guessing would be, named."""
    if axis.chance is None:
        return []
    data = _data([{channel: axis.chance, "label": f"chance {axis.chance:g}"}])
    position = {channel: {"field": channel, "type": "quantitative"}}
    line = {"type": "rule", "strokeDash": [2, 4], "stroke": "var(--quiet)", "tooltip": None}
    if channel == "y":
        text = {"type": "text", "align": "right", "baseline": "bottom", "dy": -4, "text": data["values"][0]["label"]}
        at = {"x": {"value": "width"}, **position}
    else:
        text = {"type": "text", "align": "left", "baseline": "bottom", "dx": 5, "text": data["values"][0]["label"]}
        at = {"y": {"value": "height"}, **position}
        text["dy"] = -5
    return [{"data": data, "mark": line, "encoding": position}, {"data": data, "mark": text, "encoding": at}]


def _tooltip(*fields: tuple[str, str]) -> list[dict[str, Any]]:
    return [
        {"field": name, "title": title, "type": "quantitative", "format": ".4~g"}
        if name not in ("arm", "seed", "label", "note", "phase")
        else {"field": name, "title": title, "type": "nominal"}
        for name, title in fields
    ]


_ARROWS = {("lower", "higher"): "↖", ("higher", "higher"): "↗", ("lower", "lower"): "↙", ("higher", "lower"): "↘"}


def frontier(
    title: str,
    arms: Sequence[Marks],
    points: Sequence[Point],
    *,
    x: Axis,
    y: Axis,
    seeds: Sequence[Point] = (),
    paths: Sequence[Point] = (),
    note: str = "",
) -> Chart:
    """One outcome against another: a mark with an interval cross per arm, a dot per seed, the mean path as a thin line.

    points: the arms. seeds: their seeds. paths: mean positions of each arm in the order they were passed. The corner
    that is ideal for both outcomes is named in the figure.
    """
    everything = (*points, *paths, *seeds)
    used = [m for m in arms if any(p.arm == m.name for p in everything)]
    x, y = x.over(p.x for p in everything), y.over(p.y for p in everything)
    scales = _arm_scales(used)
    position = {"x": _quantitative(x, "x", vertical=False), "y": _quantitative(y, "y", vertical=True)}
    layers = [*_chance(x, "x"), *_chance(y, "y")]
    if paths:
        layers.append(
            {
                "data": _data(
                    {"arm": p.arm, "x": _short(p.x), "y": _short(p.y), "order": i}
                    for i, p in enumerate(paths)
                    if _finite(p.x) and _finite(p.y)
                ),
                "mark": {"type": "line", "strokeWidth": 1.5, "tooltip": None},
                "encoding": {
                    **position,
                    "color": scales["color"],
                    "strokeDash": scales["strokeDash"],
                    "order": {"field": "order", "type": "quantitative"},
                    "opacity": _opacity(0.75),
                },
            }
        )
    if seeds:
        layers.append(
            {
                "data": _data(
                    {"arm": p.arm, "x": _short(p.x), "y": _short(p.y), "seed": p.seed}
                    for p in seeds
                    if _finite(p.x) and _finite(p.y)
                ),
                "mark": {"type": "point", "filled": True, "size": 18},
                "encoding": {
                    **position,
                    "color": scales["color"],
                    "shape": scales["shape"],
                    "opacity": _opacity(0.45),
                    "tooltip": _tooltip(("arm", "arm"), ("seed", "seed"), ("x", x.title), ("y", y.title)),
                },
            }
        )
    ends = [
        {
            "arm": p.arm,
            "x": _short(p.x),
            "y": _short(p.y),
            "x1": _short(p.x_interval[0]),
            "x2": _short(p.x_interval[1]),
            "y1": _short(p.y_interval[0]),
            "y2": _short(p.y_interval[1]),
            "note": p.note,
        }
        for p in points
        if _finite(p.x) and _finite(p.y)
    ]
    layers += [
        {
            "transform": [{"filter": f"isValid(datum.{c}1) && isValid(datum.{c}2)"}],
            "mark": {"type": "rule", "strokeWidth": 2, "tooltip": None},
            "encoding": {
                **position,
                c: position[c] | {"field": f"{c}1"},
                f"{c}2": {"field": f"{c}2"},
                "color": scales["color"],
                "opacity": _opacity(0.9),
            },
        }
        for c in ("x", "y")
    ]
    shown = (
        ("arm", "arm"),
        ("x", x.title),
        ("x1", "from"),
        ("x2", "to"),
        ("y", y.title),
        ("y1", "from "),
        ("y2", "to "),
    )
    layers.append(
        {
            "mark": {"type": "point", "filled": True, "size": 130, "stroke": "var(--paper)", "strokeWidth": 1.5},
            "encoding": {
                **position,
                "color": scales["color"],
                "shape": scales["shape"],
                "opacity": _opacity(1.0),
                "tooltip": _tooltip(*shown),
            },
        }
    )
    corner = ""
    if x.better and y.better:
        arrow = _ARROWS[x.better, y.better]
        left, top = x.better == "lower", y.better == "higher"
        corner = f" The ideal corner is the {'upper' if top else 'lower'} {'left' if left else 'right'} one."
        layers.append(
            {
                "data": _data([{}]),
                "mark": {
                    "type": "text",
                    "text": f"{arrow} ideal" if left else f"ideal {arrow}",
                    "align": "left" if left else "right",
                    "baseline": "top" if top else "bottom",
                    "dx": 4 if left else -4,
                    "dy": 4 if top else -22,
                    "fontWeight": "bold",
                    "fontSize": 13,
                    "color": "var(--ink)",
                },
                "encoding": {
                    "x": {"value": 0 if left else "width"},
                    "y": {"value": 0 if top else "height"},
                },
            }
        )
    rows = tuple((p.arm, p.x, *p.x_interval, p.y, *p.y_interval, p.note) for p in points)
    described = "; ".join(f"{p.arm} {p.x:.3g} and {p.y:.3g}" for p in points)
    return Chart(
        title,
        _spec(layers, 420, used, ends),
        f"{title}. {x.label} across, {y.label} upward.{corner} {described}.",
        ("arm", x.title, "from", "to", y.title, "from", "to", "note"),
        rows,
        tuple(used),
        note,
    )


def paths(
    title: str, arms: Sequence[Marks], points: Sequence[Point], *, x: Axis, y: Axis, note: str = "", height: int = 260
) -> Chart:
    """An outcome along its steps or a dial: the mean of each arm as a line, its interval as a band where it has one."""
    used = [m for m in arms if any(p.arm == m.name for p in points)]
    y = y.over(p.y for p in points)
    heading = y.label.removeprefix(title).lstrip(", ") if y.title.startswith(title) else y.label  # said once
    scales = _arm_scales(used)
    position = {"x": _quantitative(x, "x", vertical=False), "y": _quantitative(y, "y", vertical=True, title=heading)}
    position["x"]["scale"] |= {"nice": False}
    values = [
        {
            "arm": p.arm,
            "x": _short(p.x),
            "y": _short(p.y),
            "y1": _short(p.y_interval[0]),
            "y2": _short(p.y_interval[1]),
        }
        for p in points
        if _finite(p.x) and _finite(p.y)
    ]
    layers = [
        *_chance(y, "y"),
        {
            "transform": [{"filter": "isValid(datum.y1) && isValid(datum.y2)"}],
            "mark": {"type": "area", "tooltip": None},
            "encoding": {
                "x": position["x"],
                "y": position["y"] | {"field": "y1"},
                "y2": {"field": "y2"},
                "color": scales["color"],
                "opacity": _opacity(0.13),
            },
        },
        {
            "mark": {"type": "line", "strokeWidth": 2, "tooltip": None},
            "encoding": {
                **position,
                "color": scales["color"],
                "strokeDash": scales["strokeDash"],
                "opacity": _opacity(1.0),
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 38},
            "encoding": {
                **position,
                "color": scales["color"],
                "shape": scales["shape"],
                "opacity": _opacity(1.0),
                "tooltip": _tooltip(("arm", "arm"), ("x", x.title), ("y", y.title), ("y1", "from"), ("y2", "to")),
            },
        },
    ]
    last = {p.arm: p for p in points}
    ends = "; ".join(f"{name} ends at {p.y:.3g}" for name, p in last.items())
    return Chart(
        title,
        _spec(layers, height, used, values),
        f"{title}: {y.label}, over {x.title}. {ends}.",
        ("arm", x.title, y.title, "from", "to"),
        tuple((p.arm, p.x, p.y, *p.y_interval) for p in points),
        tuple(used),
        note,
    )


def lines(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], *, x: Axis, y: Axis, note: str = ""
) -> Chart:
    """Plain lines for a job: a loss over steps, or several."""
    points = [Point(name, a, b) for name, pairs in series.items() for a, b in pairs]
    return paths(title, marks(list(series)), points, x=x, y=y, note=note)


def intervals(
    title: str,
    rows: Sequence[ChartRow],
    *,
    x: Axis,
    arms: Sequence[Marks] = (),
    lines_at: Mapping[str, float] | None = None,
    sides: tuple[str, str] | None = None,
    note: str = "",
) -> Chart:
    """A forest plot: per row an estimate, its interval and a dot per seed, against named upright lines (a margin).

    arms: rows labelled with the name of an arm take its colour and shape. sides: what the left and the right favour.
    """
    used = [m for m in arms if any(r.label == m.name for r in rows)]
    scales = _arm_scales(used)
    colour = scales["color"] if used else {"value": "var(--ink)"}
    shape = scales["shape"] if used else {"value": "diamond"}
    labels = [r.label for r in rows]
    y = {"field": "label", "type": "nominal", "sort": labels, "scale": {"domain": labels}}
    single = len(rows) == 1
    y["axis"] = None if single else {"title": None, "grid": False, "labelLimit": 130, "labelColor": "var(--ink)"}
    position = {"x": _quantitative(x, "x", vertical=False), "y": y}
    estimates = [
        {
            "label": r.label,
            "arm": r.label,
            "x": _short(r.estimate),
            "x1": _short(r.lower),
            "x2": _short(r.upper),
            "note": r.note,
        }
        for r in rows
    ]
    layers: list[dict[str, Any]] = []
    neutral = 1.0 if x.log else 0.0
    for name, at in (lines_at or {}).items():
        data = _data([{"x": at}])
        upright = {"x": {"field": "x", "type": "quantitative"}}
        solid = at == neutral
        mark = {"type": "rule", "stroke": "var(--strong-rule)" if solid else "var(--ink)", "tooltip": None}
        layers.append({"data": data, "mark": mark | ({} if solid else {"strokeDash": [4, 3]}), "encoding": upright})
        label = {"type": "text", "text": name, "baseline": "bottom", "align": "left", "dx": -2, "fontSize": 11}
        label["dy"] = -3 if solid else -17  # two lines, for where the uprights stand close
        layers.append({"data": data, "mark": label, "encoding": upright | {"y": {"value": 0}}})
    dots = [{"label": r.label, "arm": r.label, "x": _short(v), "seed": i} for r in rows for i, v in enumerate(r.values)]
    if dots:
        layers.append(
            {
                "data": _data(dots),
                "mark": {"type": "point", "filled": True, "shape": "circle", "size": 22, "yOffset": 11},
                "encoding": {
                    **position,
                    "color": colour,
                    "opacity": {"value": 0.45},
                    "tooltip": _tooltip(("label", "row"), ("seed", "seed, in order"), ("x", x.title)),
                },
            }
        )
    layers += [
        {
            "mark": {"type": "rule", "strokeWidth": 2.5, "tooltip": None},
            "encoding": {
                "x": position["x"] | {"field": "x1"},
                "x2": {"field": "x2"},
                "y": y,
                "color": colour,
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 130, "stroke": "var(--paper)", "strokeWidth": 1.5},
            "encoding": {
                **position,
                "color": colour,
                "shape": shape,
                "opacity": {"value": 1},
                "tooltip": _tooltip(("label", "row"), ("x", x.title), ("x1", "from"), ("x2", "to")),
            },
        },
    ]
    height = 84 if single else 46 * len(rows)
    if sides:
        for text, left in zip((f"← favours {sides[0]}", f"favours {sides[1]} →"), (True, False), strict=True):
            mark = {"type": "text", "text": text, "align": "left" if left else "right", "baseline": "top", "limit": 150}
            at = {"x": {"value": 0 if left else "width"}, "y": {"value": height + 26}}
            layers.append({"data": _data([{}]), "mark": mark | {"color": "var(--ink)"}, "encoding": at})
        position["x"]["axis"] |= {"titlePadding": 28}
    described = "; ".join(f"{r.label} {r.estimate:.3g}, from {r.lower:.3g} to {r.upper:.3g}" for r in rows)
    against = "".join(f" {name} stands at {at:.3g}." for name, at in (lines_at or {}).items())
    return Chart(
        title,
        _spec(layers, height, data=estimates),
        f"{title}. {described}.{against}",
        ("row", x.title, "from", "to", "values", "note"),
        tuple((r.label, r.estimate, r.lower, r.upper, ", ".join(f"{v:.3g}" for v in r.values), r.note) for r in rows),
        (),
        note,
    )


def costs(title: str, arms: Sequence[Marks], bars: Sequence[ChartBar], *, x: Axis, note: str = "") -> Chart:
    """What each arm spent: a bar per arm, its phases stacked; a tick marks all attempts together where that is more."""
    used = [m for m in arms if any(b.arm == m.name for b in bars)]
    scales = _arm_scales(used)
    names = [m.name for m in used]
    phases = list(dict.fromkeys(b.phase for b in bars))
    strength = [1.0 - 0.65 * i / max(len(phases) - 1, 1) for i in range(len(phases))]
    y = {
        "field": "arm",
        "type": "nominal",
        "sort": names,
        "axis": {"title": None, "grid": False, "labelLimit": 130, "labelColor": "var(--ink)"},
    }
    amount = {"field": "x", "type": "quantitative", "axis": {"title": x.label, "format": "~s"}, "stack": "zero"}
    work = [{"arm": b.arm, "phase": b.phase, "x": _short(b.work), "order": phases.index(b.phase)} for b in bars]
    total = {m.name: math.fsum(b.spent for b in bars if b.arm == m.name) for m in used}
    done = {m.name: math.fsum(b.work for b in bars if b.arm == m.name) for m in used}
    spent = [
        {"arm": name, "x": _short(value)} for name, value in total.items() if _finite(value) and value > done[name]
    ]
    layers: list[dict[str, Any]] = [
        {
            "data": _data(work),
            "mark": {"type": "bar", "height": {"band": 0.62}},
            "encoding": {
                "x": amount,
                "y": y,
                "color": scales["color"],
                "opacity": {
                    "field": "phase",
                    "type": "ordinal",
                    "scale": {"domain": phases, "range": strength},
                },
                "order": {"field": "order", "type": "quantitative"},
                "tooltip": _tooltip(("arm", "arm"), ("phase", "phase"), ("x", x.title)),
            },
        }
    ]
    if spent:
        layers.append(
            {
                "data": _data(spent),
                "mark": {"type": "tick", "thickness": 2, "color": "var(--ink)", "size": 22},
                "encoding": {
                    "x": {"field": "x", "type": "quantitative"},
                    "y": y,
                    "tooltip": _tooltip(("arm", "arm"), ("x", "all attempts")),
                },
            }
        )
    described = "; ".join(f"{name} {value:.3g}" for name, value in done.items())
    return Chart(
        title,
        _spec(layers, 32 * max(len(used), 1)),
        f"{title}: {x.label}. {described}.",
        ("arm", "phase", f"{x.title}, for the result", "in all attempts"),
        tuple((b.arm, b.phase, b.work, b.spent) for b in bars),
        (),
        note,
    )


def heat_map(
    title: str,
    cells: Sequence[tuple[Value, Value, float]],
    *,
    x: Axis,
    y: Axis,
    value: Axis,
    domain: tuple[float, float] = (-1.0, 1.0),
    note: str = "",
) -> Chart:
    """A value per step (across) and layer (down) in nine steps of colour over `domain`, whose middle is neutral."""
    low, high = domain
    if not (_finite(low) and _finite(high) and low < high):
        raise BadInput(f"The domain of a heat map is (low, high) with low < high; got {domain!r}.")
    columns, rows = (list(dict.fromkeys(cell[i] for cell in cells)) for i in (0, 1))
    cuts = [low + (high - low) * i / 9 for i in range(1, 9)]
    scale = {"type": "threshold", "domain": cuts, "range": [f"var(--heat-{i})" for i in range(9)]}
    many = max(1, math.ceil(len(columns) / 10))
    layer = {
        "data": _data({"x": a, "y": b, "v": _short(v)} for a, b, v in cells if _finite(v)),
        "mark": {"type": "rect", "stroke": "var(--paper)", "strokeWidth": 1},
        "encoding": {
            "x": {
                "field": "x",
                "type": "ordinal",
                "sort": columns,
                "axis": {"title": x.label, "grid": False, "labelAngle": 0, "values": columns[::many]},
            },
            "y": {
                "field": "y",
                "type": "ordinal",
                "sort": rows,
                "axis": {"title": None, "grid": False, "labelLimit": 150},
            },
            "color": {"field": "v", "type": "quantitative", "scale": scale},
            "tooltip": [
                {"field": "y", "title": y.title, "type": "nominal"},
                {"field": "x", "title": x.title, "type": "nominal"},
                {"field": "v", "title": value.title, "type": "quantitative", "format": ".3~g"},
            ],
        },
    }
    known = [v for *_, v in cells if _finite(v)]
    described = f" Values from {min(known):.3g} to {max(known):.3g}." if known else " No values."
    key = f"Colour: {value.label}, from {low:g} (orange) through {(low + high) / 2:g} (neutral) to {high:g} (blue)."
    return Chart(
        title,
        _spec([layer], 22 * max(len(rows), 1)),
        f"{title}: {value.label} by {y.title} and {x.title}.{described}",
        (y.title, x.title, value.title),
        tuple((b, a, v) for a, b, v in cells),
        (),
        f"{key} {note}".strip(),
    )


_VARIABLE = re.compile(r"var\(--([a-z0-9-]+)\)")


@closed
def resolved(chart: Chart, theme: Theme = "light", width: int = 760) -> dict[str, Any]:
    """The specification as a picture of its own: the colours of one theme, a fixed width, a title and a legend."""
    known = colours(theme)
    spec = json.loads(_VARIABLE.sub(lambda match: known[match[1]], json.dumps(chart.spec)))
    spec |= {"width": width, "title": {"text": chart.title, "anchor": "start", "color": known["ink"], "fontSize": 15}}
    spec.pop("autosize")
    spec["background"] = known["paper"]
    spec["padding"] = 16
    spec["config"] |= {
        "background": known["paper"],
        "font": "sans-serif",
        "text": spec["config"]["text"] | {"font": "DejaVu Sans, sans-serif"},  # has the diagonal arrows
        "legend": {
            "disable": not chart.legend,
            "orient": "bottom",
            "direction": "horizontal",
            "columns": 4,
            "labelColor": known["ink"],
            "labelFontSize": 12,
            "symbolSize": 110,
            "title": None,
        },
    }
    return spec


@closed
def to_svg(chart: Chart, theme: Theme = "light", width: int = 760) -> str:
    """The figure as SVG, drawn without a browser."""
    import vl_convert

    return vl_convert.vegalite_to_svg(resolved(chart, theme, width))


@closed
def to_png(chart: Chart, path: Path, theme: Theme = "light", width: int = 760, scale: float = 2.0) -> Path:
    """The figure as a PNG at `path`, drawn without a browser."""
    import vl_convert

    path.write_bytes(vl_convert.vegalite_to_png(resolved(chart, theme, width), scale=scale))
    return path
