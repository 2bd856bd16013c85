"""A share of right answers with what is missing, and a number with its interval, as plain data. What is undefined is nan.

Loads no numpy, so that a stored result can be read and drawn again at once. How they are made: `core.agreement`.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equipoise.core.statistics import Interval


@dataclass(frozen=True, slots=True)
class Share:
    """`count` (a sum of credits) of `of` that have a grade, with a 95 % interval; `missing` more have none.

    size: how many independent ones, right or wrong, would tell as much; fewer than `of` where they come in clusters.
    """

    count: float
    of: int
    missing: int
    size: float
    lower: float
    upper: float

    @property
    def rate(self) -> float:
        """Of those with a grade, in [0, 1]."""
        return self.count / self.of if self.of else math.nan

    @property
    def least(self) -> float:
        """Of all, had none of the missing counted."""
        everything = self.of + self.missing
        return self.count / everything if everything else math.nan

    @property
    def most(self) -> float:
        """Of all, had each of the missing counted in full."""
        everything = self.of + self.missing
        return (self.count + self.missing) / everything if everything else math.nan


@dataclass(frozen=True, slots=True)
class Bounded:
    """A number with its 95 % interval; nan where it is undefined."""

    value: float
    lower: float
    upper: float

    @classmethod
    def of(cls, interval: "Interval", least: float = -math.inf, most: float = math.inf) -> "Bounded":
        """From an interval of `core.statistics`, within the values that its estimate can have."""
        # Comparisons with nan are false: an undefined end stays undefined.
        lower, upper = (min(max(float(end), least), most) for end in (interval.lower, interval.upper))
        return cls(float(interval.estimate), lower, upper)


def shown(value: Bounded, digits: int = 3, *, nothing: str = "undefined") -> str:
    """A number with its interval, where there is one. nothing: what is said where it is undefined."""
    if math.isnan(value.value):
        return nothing
    text = f"{value.value:.{digits}f}"
    return text if math.isnan(value.lower) else f"{text} [{value.lower:.{digits}f}, {value.upper:.{digits}f}]"
