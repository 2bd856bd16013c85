"""Numbers for a reader: as many digits as they deserve, undefined said in words, no proportion that its n cannot produce."""

import math

from equipoise.core.errors import WorkFailed


def number(value: float | int | None, digits: int = 3, *, signed: bool = False) -> str:
    """A number for a reader: `digits` significant ones, thousands apart, a true minus; "undefined" for nan and None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "undefined"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    sign = "+" if signed else ""
    if isinstance(value, int) or (value == round(value) and abs(value) < 1e9):
        text = f"{int(value):{sign},d}"
    else:
        size = math.floor(math.log10(abs(value)))
        if -4 <= size < 7:
            text = f"{value:{sign},.{max(digits - 1 - size, 0)}f}"
        else:
            mantissa, exponent = f"{value:{sign}.{digits - 1}e}".split("e")
            text = f"{mantissa}×10^{int(exponent)}"
    return text.replace("-", "−")


def interval(
    estimate: float, lower: float, upper: float, *, signed: bool = False, places: int | None = None
) -> tuple[str, str]:
    """Estimate and "lower to upper", to the decimal place where the half-width has two digits, or to `places`.

    An estimate other than 0 that would be zeros alone there, its bounds, too, has digits of its own.
    """
    if places is None:
        places = decimals(lower, upper)
    if places is None or not math.isfinite(estimate) or _vanish((estimate, lower, upper), places):
        known = math.isfinite(lower) and math.isfinite(upper)
        between = f"{number(lower, signed=signed)} to {number(upper, signed=signed)}" if known else "undefined"
        return number(estimate, signed=signed), between
    sign = "+" if signed else ""
    mid, low, high = (
        f"{v + 0.0:{sign},.{places}f}".replace("-", "−") if math.isfinite(v) else "undefined"
        for v in (estimate, lower, upper)
    )
    return mid, f"{low} to {high}" if math.isfinite(lower) and math.isfinite(upper) else "undefined"


def decimals(lower: float, upper: float) -> int | None:
    """Decimal places at which half the width of an interval has two digits, at most six; None without a width."""
    half = (upper - lower) / 2
    return min(max(1 - math.floor(math.log10(half)), 0), 6) if math.isfinite(half) and half > 0 else None


def _vanish(values: tuple[float, ...], places: int) -> bool:
    """Whether all these numbers are printed as 0, though the first is not 0."""
    return values[0] != 0 and all(float(f"{v:.{places}f}") == 0 for v in values if math.isfinite(v))


def rate(numerator: float, of: float, *, what: str = "a rate") -> str:
    """The proportion numerator / of with as many places as tell its neighbours apart, at least two and at most four.

    Raises WorkFailed when no `of` things could give it: a count that is no whole number, negative, or above `of`.
    """
    whole = all(math.isfinite(v) and v == round(v) for v in (numerator, of))
    if not whole or of < 1 or not 0 <= numerator <= of:
        raise WorkFailed(
            f"{what} cannot be printed: {numerator:g} of {of:g} is no count out of that many. "
            "A proportion needs a whole numerator from 0 to its denominator; record a mean of scores without of=."
        )
    return f"{numerator / of:.{min(max(math.ceil(math.log10(of)), 2), 4)}f}"
