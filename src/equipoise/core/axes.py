"""Axes: what they are called, where they end, how their numbers are written.

An `Axis` is declared; `over` its values it becomes a `Scale`, which knows how Vega-Lite draws it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from equipoise.core.columns import MINUTE, clock_unit
from equipoise.core.options import check_fields, closed

LINE = 44  # characters of an axis title that fit a narrow screen
LINE_HEIGHT = 16
TICKS = 5  # about as many
# Seconds between two ticks of a time axis: what a clock divides into.
_TIMES = (10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800)
# Vega's own "~s" writes a tick of 0 beside thousands as 0k, and beside thousandths as 0m.
_THOUSANDS = "datum.value ? format(datum.value, '~s') : '0'"
_CLOCK = {
    "min:s": "utcFormat(datum.value * 1000, '%-M:%S')",
    "h:min:s": "floor(datum.value / 3600) + utcFormat(datum.value * 1000, ':%M:%S')",
}


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows. `better`: the good direction; `chance`: the value of a guess; `log`: logarithmic if it suits.

    `share`: its values are shares of a whole, so that the axis ends at 0 and 1. Unit "s": written 1:20 from a minute on.
    """

    title: str
    better: Literal["lower", "higher"] | None = None
    chance: float | None = None
    unit: str = ""
    log: bool = False
    share: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def direction(self) -> str:
        """The good direction in words, empty where there is none."""
        return {"lower": "lower is better ↓", "higher": "higher is better ↑", None: ""}[self.better]

    def over(self, values: Iterable[float], bounds: Iterable[float] = (), *, zero: bool = False) -> "Scale":
        """The scale that suits these values and the bounds of their intervals, from 0 where `zero`.

        Logarithmic only where they are positive and span a decade. A share whose interval reaches beyond the whole is cut
        there. A chance level that would leave much of the figure empty is said beside the title and not drawn.
        """
        known, around = [v for v in values if finite(v)], [v for v in bounds if finite(v)]
        if share := self.share and bool(known) and min(known) >= 0 and max(known) <= 1:
            around = [min(max(v, 0.0), 1.0) for v in around]
        low, high = min([*known, *around], default=math.nan), max([*known, *around], default=math.nan)
        log = self.log and low > 0 and high / low >= 10
        drawn = [self.chance] if self.chance is not None else []
        drawn = [each for each in drawn if max(low - each, each - high) <= 0.35 * (high - low)]
        ends = _within_the_whole(min([low, *drawn]), max([high, *drawn])) if share else None
        return Scale(self, log, ends, bool(drawn), high, zero)


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis with its ends: `ends` where they are fixed, else Vega's round ones; `drawn`: the line at the chance level."""

    axis: Axis
    log: bool
    ends: tuple[float, float] | None
    drawn: bool
    high: float
    zero: bool = False

    @property
    def unit(self) -> str:
        return clock_unit(self.high) if self._timed else self.axis.unit

    @property
    def about(self) -> str:
        """Unit, good direction and chance level, for where the title stands elsewhere."""
        return ", ".join(filter(None, (self.unit, *self._aside)))

    @property
    def label(self) -> str:
        """Title, unit, good direction and chance level."""
        title = f"{self.axis.title} ({self.unit})" if self.unit else self.axis.title
        return ", ".join(filter(None, (title, *self._aside)))

    def encoding(self, field: str, *, vertical: bool = False, heading: str | None = None) -> dict[str, Any]:
        """The position channel of Vega-Lite for this field."""
        title = _lines(self.label if heading is None else heading)
        axis: dict[str, Any] = {"title": title if len(title) > 1 else title[0]}
        if self.ends:
            scale: dict[str, Any] = {"domain": list(self.ends), "nice": False, "zero": False}
        else:
            scale = {"nice": True} | ({"type": "log"} if self.log else {"zero": self.zero})
            scale |= {} if self.zero else {"padding": 10}
        if self._timed:
            step = next((each for each in _TIMES if self.high <= TICKS * each), _TIMES[-1])
            axis |= {"values": [i * step for i in range(math.ceil(self.high / step) + 1)]}
            axis |= {"labelExpr": _CLOCK[self.unit]}
        elif self.high >= 10_000:
            axis |= {"labelExpr": _THOUSANDS}
        if vertical:  # a turned title is hard to read and too long for a low figure: it stands above the axis
            axis |= {"titleAngle": 0, "titleAlign": "left", "titleBaseline": "bottom", "titleAnchor": "end"}
            axis |= {"titleX": -8, "titleY": -2 - LINE_HEIGHT * len(title), "titleLineHeight": LINE_HEIGHT}
        return {"field": field, "type": "quantitative", "scale": scale, "axis": axis}

    @closed
    def chance_line(self, channel: Literal["x", "y"]) -> list[dict[str, Any]]:
        """A dotted line where guessing would be; the title says what it is."""
        if not self.drawn:
            return []
        mark = {"type": "rule", "strokeDash": [2, 4], "stroke": "var(--quiet)", "tooltip": None}
        position = {channel: {"field": channel, "type": "quantitative"}}
        return [{"data": {"values": [{channel: self.axis.chance}]}, "mark": mark, "encoding": position}]

    @property
    def _aside(self) -> tuple[str, str]:
        chance = "" if self.axis.chance is None else f"chance {self.axis.chance:g}"
        return self.axis.direction, f"{chance} (dotted)" if self.drawn else chance

    @property
    def _timed(self) -> bool:
        return self.axis.unit == "s" and self.high >= MINUTE


def finite(value: float | None) -> bool:
    """Whether it is a number, and neither nan nor infinite."""
    return isinstance(value, int | float) and math.isfinite(value)


def short(value: float) -> float | None:
    """Six digits are more than a pixel shows; nan becomes null, which Vega leaves out."""
    return float(f"{value:.6g}") if finite(value) else None


def _within_the_whole(low: float, high: float) -> tuple[float, float]:
    """Round ends around these values, never beyond 0 and 1."""
    width = max(high - low, 0.05)
    size = 10.0 ** math.floor(math.log10(width / TICKS))
    step = next(size * each for each in (1, 2, 5, 10) if width <= TICKS * size * each)
    ends = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    if ends[0] == ends[1]:
        ends = ends[0] - step, ends[1] + step
    return round(max(ends[0], 0.0), 9), round(min(ends[1], 1.0), 9)


def _lines(label: str) -> list[str]:
    """A long title in two lines, the good direction and the chance level in the second."""
    first, _, rest = label.partition(", ")
    return [first, rest] if len(label) > LINE and rest else [label]
