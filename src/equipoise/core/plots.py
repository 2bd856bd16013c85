"""Figures as Vega-Lite specifications: plain dictionaries that open offline and can be compared as text.

A `Chart` carries its figure and, for whoever cannot see it, a sentence and a table with the same numbers. Colours are
CSS variables (`var(--arm-0)`): the page that holds the figure says what they are in light and in dark, and nothing is
drawn twice. `to_svg` puts the colours of one theme in and draws the same figure without a browser.

An arm has one colour, one shape and one dash in every figure of a page: make its `Marks` once and pass them on.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from equipoise.core.axes import Axis, finite, short
from equipoise.core.errors import BadInput
from equipoise.core.marks import Marks, Theme, colors, marks
from equipoise.core.numbers import number
from equipoise.core.options import closed

Value = str | float | int
PICTURE = 216  # pixels of the longer side

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', sans-serif"


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure with everything that stands beside it.

    spec: Vega-Lite. description: what the figure shows, read aloud in its place. columns, units, rows: its numbers as a
    table. legend: the arms in it. note: how to read it. runs: the run folders that its numbers come from.
    """

    title: str
    spec: dict[str, Any]
    description: str
    columns: tuple[str, ...]
    units: tuple[str, ...]
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
class Upright:
    """A named value that an interval figure stands against: solid what means no effect, dashed a margin."""

    label: str
    at: float
    dashed: bool = False


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


def _known(interval: tuple[float, float]) -> bool:
    return all(map(finite, interval))


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
        "color": channel([f"var(--arm-{m.color})" for m in legend]),
        "shape": channel([m.shape for m in legend]),
        "strokeDash": channel([list(m.dash) for m in legend]),
    }


def _opacity(value: float) -> dict[str, Any]:
    """Full strength, or a shadow while the reader has another arm in focus."""
    return {"condition": {"test": "focus === '' || datum.arm === focus", "value": value}, "value": value * 0.12}


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
    across = x.over((p.x for p in everything), (v for p in points for v in p.x_interval))
    up = y.over((p.y for p in everything), (v for p in points for v in p.y_interval))
    scales = _arm_scales(used)
    position = {"x": across.encoding("x"), "y": up.encoding("y", vertical=True)}
    layers = [*across.chance_line("x"), *up.chance_line("y")]
    if paths:
        layers.append(
            {
                "data": _data(
                    {"arm": p.arm, "x": short(p.x), "y": short(p.y), "order": i}
                    for i, p in enumerate(paths)
                    if finite(p.x) and finite(p.y)
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
                    {"arm": p.arm, "x": short(p.x), "y": short(p.y), "seed": p.seed}
                    for p in seeds
                    if finite(p.x) and finite(p.y)
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
            "x": short(p.x),
            "y": short(p.y),
            "x1": short(p.x_interval[0]),
            "x2": short(p.x_interval[1]),
            "y1": short(p.y_interval[0]),
            "y2": short(p.y_interval[1]),
            "note": p.note,
        }
        for p in points
        if finite(p.x) and finite(p.y)
    ]
    layers += [
        {
            "transform": [{"filter": f"isValid(datum.{c}1) && isValid(datum.{c}2)"}],
            "mark": {"type": "rule", "strokeWidth": 2, "clip": True, "tooltip": None},
            "encoding": {
                **position,
                c: position[c] | {"field": f"{c}1"},
                f"{c}2": {"field": f"{c}2"},
                "color": scales["color"],
                "opacity": _opacity(0.9),
            },
        }
        for c in ("x", "y")
        if any(_known(p.x_interval if c == "x" else p.y_interval) for p in points)
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
        mark = {
            "type": "text",
            "text": f"{arrow} ideal" if left else f"ideal {arrow}",
            "align": "left" if left else "right",
            "baseline": "top" if top else "bottom",
            "dx": 6 if left else -6,
            "dy": 6 if top else -8,
            "fontWeight": "bold",
            "fontSize": 13,
            "color": "var(--ink)",
        }
        at = {"x": {"value": 0 if left else "width"}, "y": {"value": 0 if top else "height"}}
        halo = {"stroke": "var(--paper)", "strokeWidth": 5, "strokeJoin": "round"}  # marks may lie below
        layers += [{"data": _data([{}]), "mark": mark | look, "encoding": at} for look in (halo, {})]
    rows = tuple((p.arm, p.x, *p.x_interval, p.y, *p.y_interval, p.note) for p in points)
    described = "; ".join(f"{p.arm} {p.x:.3g} and {p.y:.3g}" for p in points)
    return Chart(
        title,
        _spec(layers, 420, used, ends),
        f"{title}. {across.label} across, {up.label} upward.{corner} {described}.",
        ("arm", x.title, "from", "to", y.title, "from", "to", "note"),
        ("", x.unit, x.unit, x.unit, y.unit, y.unit, y.unit, ""),
        rows,
        tuple(used),
        note,
    )


def paths(
    title: str, arms: Sequence[Marks], points: Sequence[Point], *, x: Axis, y: Axis, note: str = "", height: int = 260
) -> Chart:
    """An outcome along its steps or a dial: the mean of each arm as a line, its interval as a band where it has one."""
    used = [m for m in arms if any(p.arm == m.name for p in points)]
    across, up = x.over(p.x for p in points), y.over((p.y for p in points), (v for p in points for v in p.y_interval))
    heading = up.about if y.title.lower() == title.lower() else up.label  # said once
    scales = _arm_scales(used)
    position = {"x": across.encoding("x"), "y": up.encoding("y", vertical=True, heading=heading)}
    position["x"]["scale"] |= {"nice": False}
    values = [
        {
            "arm": p.arm,
            "x": short(p.x),
            "y": short(p.y),
            "y1": short(p.y_interval[0]),
            "y2": short(p.y_interval[1]),
        }
        for p in points
        if finite(p.x) and finite(p.y)
    ]
    band = {
        "transform": [{"filter": "isValid(datum.y1) && isValid(datum.y2)"}],
        "mark": {"type": "area", "clip": True, "tooltip": None},
        "encoding": {
            "x": position["x"],
            "y": position["y"] | {"field": "y1"},
            "y2": {"field": "y2"},
            "color": scales["color"],
            "opacity": _opacity(0.13),
        },
    }
    layers = [
        *up.chance_line("y"),
        *([band] if any(_known(p.y_interval) for p in points) else []),
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
        f"{title}: {up.label}, over {x.title}. {ends}.",
        ("arm", x.title, y.title, "from", "to"),
        ("", x.unit, y.unit, y.unit, y.unit),
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
    uprights: Sequence[Upright] = (),
    sides: tuple[str, str] | None = None,
    note: str = "",
) -> Chart:
    """A forest plot: per row an estimate, its interval where it has one, and a dot per seed, against named upright lines.

    arms: rows labelled with the name of an arm take its colour and shape. sides: what the left and the right favour.
    """
    used = [m for m in arms if any(r.label == m.name for r in rows)]
    scales = _arm_scales(used)
    color = scales["color"] if used else {"value": "var(--ink)"}
    shape = scales["shape"] if used else {"value": "diamond"}
    labels = [r.label for r in rows]
    y = {"field": "label", "type": "nominal", "sort": labels, "scale": {"domain": labels}}
    single = len(rows) == 1
    y["axis"] = None if single else {"title": None, "grid": False, "labelLimit": 130, "labelColor": "var(--ink)"}
    shown = [v for r in rows for v in (r.estimate, *r.values)]
    scale = x.over([*shown, *(each.at for each in uprights)], (v for r in rows for v in (r.lower, r.upper)))
    position = {"x": scale.encoding("x"), "y": y}
    estimates = [
        {
            "label": r.label,
            "arm": r.label,
            "x": short(r.estimate),
            "x1": short(r.lower),
            "x2": short(r.upper),
            "note": r.note,
        }
        for r in rows
    ]
    layers: list[dict[str, Any]] = scale.chance_line("x")
    for each in uprights:
        data = _data([{"x": each.at}])
        at = {"x": {"field": "x", "type": "quantitative"}}
        mark = {"type": "rule", "stroke": "var(--ink)" if each.dashed else "var(--strong-rule)", "tooltip": None}
        layers.append({"data": data, "mark": mark | ({"strokeDash": [4, 3]} if each.dashed else {}), "encoding": at})
        label = {"type": "text", "text": each.label, "baseline": "bottom", "align": "left", "dx": -2, "fontSize": 11}
        label["dy"] = -17 if each.dashed else -3  # two lines, for where the uprights stand close
        layers.append({"data": data, "mark": label, "encoding": at | {"y": {"value": 0}}})
    dots = [{"label": r.label, "arm": r.label, "x": short(v), "seed": i} for r in rows for i, v in enumerate(r.values)]
    if dots:
        layers.append(
            {
                "data": _data(dots),
                "mark": {"type": "point", "filled": True, "shape": "circle", "size": 22, "yOffset": 11},
                "encoding": {
                    **position,
                    "color": color,
                    "opacity": {"value": 0.45},
                    "tooltip": _tooltip(("label", "row"), ("seed", "seed, in order"), ("x", x.title)),
                },
            }
        )
    if any(_known((r.lower, r.upper)) for r in rows):
        layers.append(
            {
                "transform": [{"filter": "isValid(datum.x1) && isValid(datum.x2)"}],
                "mark": {"type": "rule", "strokeWidth": 2.5, "clip": True, "tooltip": None},
                "encoding": {
                    "x": position["x"] | {"field": "x1"},
                    "x2": {"field": "x2"},
                    "y": y,
                    "color": color,
                },
            }
        )
    layers.append(
        {
            "mark": {"type": "point", "filled": True, "size": 130, "stroke": "var(--paper)", "strokeWidth": 1.5},
            "encoding": {
                **position,
                "color": color,
                "shape": shape,
                "opacity": {"value": 1},
                "tooltip": _tooltip(("label", "row"), ("x", x.title), ("x1", "from"), ("x2", "to")),
            },
        }
    )
    height = 84 if single else 46 * len(rows)
    if sides:
        layers += _favours(*sides, below=height + 26)
        position["x"]["axis"] |= {"titlePadding": 28 if _beside(*sides) else 44}
    described = "; ".join(
        f"{r.label} {r.estimate:.3g}" + (f", from {r.lower:.3g} to {r.upper:.3g}" if _known((r.lower, r.upper)) else "")
        for r in rows
    )
    against = "".join(f" {each.label.capitalize()} stands at {each.at:.3g}." for each in uprights)
    return Chart(
        title,
        _spec(layers, height, data=estimates),
        f"{title}. {described}.{against}",
        ("row", x.title, "from", "to", "values", "note"),
        ("", x.unit, x.unit, x.unit, x.unit, ""),
        tuple((r.label, r.estimate, r.lower, r.upper, ", ".join(f"{v:.3g}" for v in r.values), r.note) for r in rows),
        (),
        note,
    )


def _favours(left: str, right: str, *, below: int) -> list[dict[str, Any]]:
    """Whom the two directions favour, under the ends of the axis; under each other where they are long."""
    layers = []
    for text, is_left in ((f"← favours {left}", True), (f"favours {right} →", False)):
        mark = {"type": "text", "text": text, "align": "left" if is_left else "right", "baseline": "top"}
        mark |= {"color": "var(--ink)", "limit": {"expr": "width"}}
        y = below if is_left or _beside(left, right) else below + 16
        at = {"x": {"value": 0 if is_left else "width"}, "y": {"value": y}}
        layers.append({"data": _data([{}]), "mark": mark, "encoding": at})
    return layers


def _beside(left: str, right: str) -> bool:
    """Whether both fit one line of a narrow screen."""
    return len(left) + len(right) <= 18


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
    work = [{"arm": b.arm, "phase": b.phase, "x": short(b.work), "order": phases.index(b.phase)} for b in bars]
    paid = {m.name: math.fsum(b.spent for b in bars if b.arm == m.name) for m in used}
    done = {m.name: math.fsum(b.work for b in bars if b.arm == m.name) for m in used}
    spent = [{"arm": name, "x": short(value)} for name, value in paid.items() if finite(value) and value > done[name]]
    scale = x.over([*done.values(), *(each["x"] for each in spent)], zero=True)
    amount = scale.encoding("x") | {"stack": "zero"}
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
        f"{title}: {scale.label}. {described}.",
        ("arm", "phase", f"{x.title}, for the result", "in all attempts"),
        ("", "", x.unit, x.unit),
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
    if not (finite(low) and finite(high) and low < high):
        raise BadInput(f"The domain of a heat map is (low, high) with low < high; got {domain!r}.")
    columns, rows = (list(dict.fromkeys(cell[i] for cell in cells)) for i in (0, 1))
    cuts = [low + (high - low) * i / 9 for i in range(1, 9)]
    scale = {"type": "threshold", "domain": cuts, "range": [f"var(--heat-{i})" for i in range(9)]}
    many = max(1, math.ceil(len(columns) / 10))
    layer = {
        "data": _data({"x": a, "y": b, "v": short(v)} for a, b, v in cells if finite(v)),
        "mark": {"type": "rect", "stroke": "var(--paper)", "strokeWidth": 1},
        "encoding": {
            "x": {
                "field": "x",
                "type": "ordinal",
                "sort": columns,
                "axis": {"title": x.title, "grid": False, "labelAngle": 0, "values": columns[::many]},
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
    known = [v for *_, v in cells if finite(v)]
    described = f" Values from {min(known):.3g} to {max(known):.3g}." if known else " No values."
    ends = [number(each) for each in (low, (low + high) / 2, high)]
    key = "Colour: {}, from {} (orange) through {} (neutral) to {} (blue).".format(value.title, *ends)
    return Chart(
        title,
        _spec([layer], 22 * max(len(rows), 1)),
        f"{title}: {value.title} by {y.title} and {x.title}.{described}",
        (y.title, x.title, value.title),
        (y.unit, x.unit, value.unit),
        tuple((b, a, v) for a, b, v in cells),
        (),
        f"{note} {key}".strip(),
    )


def picture(title: str, values: Sequence[Sequence[float]], *, value: Axis, domain: tuple[float, float]) -> Chart:
    """A small picture by its values, row by row, in square cells and the colours of a heat map."""
    cells = [(x, y, each) for y, row in enumerate(values) for x, each in enumerate(row)]
    chart = heat_map(title, cells, x=Axis("column"), y=Axis("row"), value=value, domain=domain, note=f"{title}.")
    across, down = max(map(len, values)), len(values)
    size = max(PICTURE // max(across, down), 1)
    [layer] = chart.spec["layer"]
    for channel in ("x", "y"):
        layer["encoding"][channel]["axis"] = None
    spec = chart.spec | {"width": size * across, "height": size * down, "autosize": {"type": "pad"}}
    return replace(chart, spec=spec)


_VARIABLE = re.compile(r"var\(--([a-z0-9-]+)\)")


@closed
def resolved(chart: Chart, theme: Theme = "light", width: int = 760) -> dict[str, Any]:
    """The specification as a picture of its own: the colours of one theme, a fixed width, a title and a legend."""
    known = colors(theme)
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
