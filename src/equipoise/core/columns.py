"""Numbers that stand together, in a column or along an axis: all in one format, so that an eye can compare them."""

import math
from collections.abc import Sequence

from equipoise.core.numbers import number

SIGNIFICANT = 3  # digits of the largest number of a column
FURTHER = 2  # places beyond those, at most, for two digits of the smallest
MINUTE = 59.5  # what is printed as 1:00


def column(values: Sequence[float | None], unit: str = "") -> tuple[list[str], str]:
    """The values as text, all to one decimal place, and the unit to print; None is a dash, nan "undefined".

    Whole numbers stay whole. Seconds (unit "s") are written 1:20 in the whole column once one of them is a minute, and the
    unit is "min:s". What is too small for the common place is "<0.001", never 0.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    longest, places = max(known, default=0.0), _places(known)
    timed = unit == "s" and longest >= MINUTE

    def printed(value: float | None) -> str:
        if value is None:
            return "–"
        if not math.isfinite(value):
            return number(value)
        return clock(value) if timed else _fixed(value, places)

    return [printed(value) for value in values], clock_unit(longest) if timed else unit


def duration(seconds: float) -> str:
    """A time by itself: 1:20, 1:02:03 with hours, 12 s under a minute, 0.4 s under ten."""
    if seconds >= MINUTE:
        return clock(seconds)
    return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"


def clock(seconds: float) -> str:
    """Seconds as 0:07, 1:20 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def clock_unit(longest: float) -> str:
    """What `clock` gives for times up to this one."""
    return "h:min:s" if longest >= 60 * MINUTE else "min:s"


def _places(known: Sequence[float]) -> int | None:
    """Decimal places of a column; None where powers of ten serve it better."""
    if all(value == round(value) for value in known):
        return 0
    sizes = [math.floor(math.log10(abs(value))) for value in known if value]
    if max(sizes) < -4:
        return None
    needed = max(SIGNIFICANT - 1 - max(sizes), 0)
    return min(max(needed, 1 - min(sizes)), needed + FURTHER)


def _fixed(value: float, places: int | None) -> str:
    if places is None:
        return number(value)
    text = f"{value:,.{places}f}"
    if value and not float(text.replace(",", "")):
        text = f"{'<' if value > 0 else '>-'}{10.0**-places:.{places}f}"
    return text.replace("-", "−") if value else text.lstrip("-")
