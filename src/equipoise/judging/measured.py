"""What is measured of a judge, as plain data: counts, an effect, a preference for a place, a round of the search.

Loads no numpy, so that a stored result can be read and drawn again at once.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """Verdicts counted: `wrong` chose the worse answer, `no_verdict` could not be read or are ties; the rest were right."""

    wrong: int
    no_verdict: int
    of: int

    @property
    def error(self) -> float:
        """Share of verdicts that were not right, in [0, 1]; nan for none."""
        return (self.wrong + self.no_verdict) / self.of if self.of else math.nan


@dataclass(frozen=True, slots=True)
class BiasEffect:
    """What a bias does to a judge's error on the same pairs. increase = after.error - before.error.

    lower, upper: two-sided interval, clustered by group. standard_error: of the increase, clustered too. p_value: one-sided
    exact, p_adjusted: after `adjusted`, else nan. to_wrong, to_right: verdicts that stopped and that began to be right.
    left_out: pairs that could not be compared, such as those whose rewrite failed.
    """

    bias: str
    pairs: int
    clusters: int
    before: Rate
    after: Rate
    increase: float
    lower: float
    upper: float
    standard_error: float
    p_value: float
    to_wrong: int
    to_right: int
    left_out: int = 0
    p_adjusted: float = math.nan


@dataclass(frozen=True, slots=True)
class PositionBias:
    """How far a judge goes by the place of an answer.

    first: share of readable verdicts for the answer shown first (0.5: no preference) with its clustered interval. turns:
    share that names the same place in both orders, of the pairs with two verdicts. both_right: share right in both
    orders, of all pairs.
    """

    pairs: int
    no_verdict: int
    first: float
    lower: float
    upper: float
    turns: float
    both_right: float


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of discovery came to. Counts; failed_rewrites: those with another final answer too; known: proposals
    that were in the library or measured before; compared, unasked: verdicts, and those that could not be asked for.
    """

    number: int
    rewritten: int
    failed_rewrites: int
    compared: int
    wrong: int
    no_verdict: int
    proposed: int
    none_seen: int
    failed_proposals: int
    known: int
    measured: int
    accepted: tuple[str, ...]
    unasked: int = 0
