"""Holds a budget of calls online: requests come one at a time, in any order, and no share of calls is ever above the budget.

Two parts. The account decides whether a call may be made, the threshold which prompts are worth one. Neither has a clock.

The account, in calls. b: the budget, calls a request. level_0 = 0, and for request t, with x_t = 1 where a call is made,

    level_t = min(burst, level_{t-1} + b) - x_t .

A call is chosen only where level_t >= 0 behind it. What has to go to the strong model (a forced call) is made and counted
whatever the level, which it may take below 0.

Bound. Take the requests s+1 .. t, m = t - s of them, C calls among them, and F forced ones behind the last chosen one. Let j
be that last chosen call. From level_i <= level_{i-1} + b - x_i, summed over s+1 .. j,

    0 <= level_j <= level_s + b (j - s) - C(s, j)    so    C(s, j) <= level_s + b (j - s),

and behind j there are forced calls alone: C <= level_s + b m + F, with level_s <= burst, and level_s = 0 for s = 0. So

    without forced calls    calls <= b * requests             from the first request on, at every moment
                            calls <= b * m + burst            among any m requests in a row
    with them               calls <= b * requests + forced    and, at a moment when a call was chosen, calls <= b * requests

for every order of prompts and scores, an adversary's too.

Another budget after a restart. Whatever another budget allowed before, or none, `restore` lowers the level to at most
b r - c, with r requests and c calls so far and b the budget of now. From there level_t <= level_{t-1} + b - x_t again gives

    level_t <= b t - calls        so that at a moment when a call was chosen, level_t >= 0,    calls <= b * requests ,

over all requests of the account, those before the restart too. Until the first such moment there are forced calls alone, so
that at every moment

    calls <= max(c, b * requests) + forced since the restart ,

and where c <= b r + forced already, calls <= b * requests + forced from then on at every moment. Under one budget the level
is never above b t - calls, so that a restart without a change lowers nothing. Among m requests in a row that hold a change
of budget, calls <= the sum of the budgets of each + the burst of the first + F; no bound holds for those without a budget.

The account is kept in whole millionths of a call, b rounded down to them, so that no rounding breaks the bound and a stored
account goes on exactly. A failed call stays counted: it may have been paid for.

The threshold is a quantile of the last WINDOW scores, so that it needs no unit and follows a drift. Its share aims at a
level in the middle of the account, target_t = min(burst / 2, max(2, 0.02 b t)), which keeps both ends out of reach:

    q_t = b (1 + d^3),   d = level_t / target_t - 1 in [-1, 1] .

The third power leaves q near b as long as the level is near its target: a quantile that moves costs quality, more than a
level that moves. Among equal scores a share is called, the same for whatever shares their place: the fractions add up, and
a call is made where they pass a whole number.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from equipoise.core.errors import BadInput
from equipoise.core.options import check_fields

WINDOW = 1000  # scores; a quantile of so many is off by 0.015 of rank
WARM = 32  # scores, before which the router's own threshold decides
BURST = 64.0  # calls
UNIT = 1_000_000  # parts of a call that the account counts in
_LEAST_TARGET, _SAVED = 2, 0.02

Route = Literal["local", "upstream"]
Why = Literal["easy", "hard", "spent", "forced"]


@dataclass(frozen=True, slots=True)
class Decision:
    """Where one prompt goes, and why: easy, hard (on which side of the threshold), spent (hard, but no call left), forced.

    score: nan of a prompt that was not scored. threshold: below it prompts go upstream. level: calls left after this one,
    infinite without a budget. share: calls by requests so far, this one included.
    """

    route: Route
    why: Why
    score: float
    threshold: float
    level: float
    share: float

    def __post_init__(self) -> None:
        check_fields(self)


class Controller:
    """See the module. budget: most calls a request, in [0, 1]; None: the given threshold alone decides, all is counted.

    threshold: the router's, in the units of its scores (low: worth a call). burst: how many calls beyond the budget any run
    of requests may hold. requests, calls, forced, spent: the numbers so far, of forced calls, and of hard prompts that no
    call was left for. Raises BadInput for a value outside its range.
    """

    def __init__(self, budget: float | None, threshold: float, *, burst: float = BURST) -> None:
        if budget is not None and not 0 <= budget <= 1:
            raise BadInput(f"The budget is {budget}: use a share of requests from 0 to 1, such as 0.3.")
        if math.isnan(threshold):
            raise BadInput("The threshold is not a number: choose one with routing.threshold.")
        if not 2 * _LEAST_TARGET <= burst <= 1e9:
            raise BadInput(f"The burst is {burst}: use a number of calls from {2 * _LEAST_TARGET} to 1e9.")
        self.budget, self.threshold, self.burst = budget, threshold, burst
        self.requests = self.calls = self.forced = self.spent = 0
        # Decimal, because 0.29 * 1e6 is a little below 290,000 in floating point.
        self._deposit = 0 if budget is None else int(Decimal(repr(float(budget))) * UNIT)
        self._most = int(burst * UNIT)
        self._level = 0
        self._carry = 0.0
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    @property
    def level(self) -> float:
        """Calls that may be made at once; below 0 as far as calls are ahead of the budget, forced ones or those that another
        budget allowed. Infinite without one.
        """
        return math.inf if self.budget is None else self._level / UNIT

    @property
    def share(self) -> float:
        """Calls by requests so far; nan before the first."""
        return self.calls / self.requests if self.requests else math.nan

    def decide(self, score: float) -> Decision:
        """Count one request, and say where its prompt goes. A nan, which says nothing, is taken for a hard prompt."""
        self._arrive()
        threshold, share = self._threshold(score)
        self._carry += share
        hard = self._carry >= 1
        if hard:
            self._carry -= 1
        if not hard:
            return self._decision("local", "easy", score, threshold)
        if self.may_call():
            self.call()
            return self._decision("upstream", "hard", score, threshold)
        self.spent += 1
        return self._decision("local", "spent", score, threshold)

    def force(self) -> Decision:
        """Count one request that has to go upstream, whatever is left."""
        self._arrive()
        self.forced += 1
        self.call()
        return self._decision("upstream", "forced", math.nan, self.threshold_now)

    def may_call(self) -> bool:
        """Whether a call may be chosen now: for the request decided last, or in place of a local answer that failed."""
        return self.budget is None or self._level >= UNIT

    def call(self) -> None:
        """Count one call."""
        self.calls += 1
        if self.budget is not None:
            self._level -= UNIT

    @property
    def threshold_now(self) -> float:
        """Below this score a prompt would now go upstream."""
        if self.budget is None or len(self._sorted) < WARM:
            return self.threshold
        place = int(self._quantile() * len(self._sorted))
        return self._sorted[min(place, len(self._sorted) - 1)]

    @property
    def held_from(self) -> float:
        """The number of requests from which the calls so far are within the budget; infinite where they never are."""
        if self.budget is None:
            return 0
        return -(-UNIT * self.calls // self._deposit) if self._deposit else math.inf if self.calls else 0

    def state(self) -> dict[str, Any]:
        """Everything that the next decision depends on but the settings, as JSON values."""
        return {
            "requests": self.requests,
            "calls": self.calls,
            "forced": self.forced,
            "spent": self.spent,
            "level": self._level,
            "carry": self._carry,
            "recent": list(self._recent),
        }

    def restore(self, state: Mapping[str, Any], *, scores: bool = True) -> None:
        """Go on from what `state` gave, under the budget and burst of now; scores=False: of another router's scores none.

        What another budget allowed, or none, counts against that of now: no call is chosen until it is paid back. Raises
        BadInput where it is no such state.
        """
        counts: dict[str, int] = {}
        for name in ("requests", "calls", "forced", "spent", "level"):
            value = state.get(name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise BadInput("This is no account of calls: give the file that the server wrote, or none.")
            counts[name] = value
        recent, carry = state.get("recent"), state.get("carry")
        if not isinstance(recent, list) or not isinstance(carry, float) or not 0 <= carry < 1:
            raise BadInput("This is no account of calls: give the file that the server wrote, or none.")
        if not all(isinstance(score, int | float) and math.isfinite(score) for score in recent):
            raise BadInput("The account's scores are no numbers: give the file that the server wrote, or none.")
        self.requests, self.calls = counts["requests"], counts["calls"]
        self.forced, self.spent = counts["forced"], counts["spent"]
        self._level = min(counts["level"], self._most)
        if self.budget is not None:
            self._level = min(self._level, self._deposit * self.requests - UNIT * self.calls)
        self._carry = carry
        self._recent = deque(float(score) for score in (recent[-WINDOW:] if scores else []))
        self._sorted = sorted(self._recent)

    def _arrive(self) -> None:
        self.requests += 1
        self._level = min(self._most, self._level + self._deposit)

    def _quantile(self) -> float:
        """The share of prompts that is worth a call now."""
        budget = self._deposit / UNIT
        if budget >= 1:
            return 1.0
        target = min(self.burst / 2, max(_LEAST_TARGET, _SAVED * budget * self.requests))
        return min(1.0, budget * (1 + max(-1.0, min(1.0, self._level / UNIT / target - 1)) ** 3))

    def _threshold(self, score: float) -> tuple[float, float]:
        """(the threshold, the share of prompts at this score that is worth a call), with the score among the recent ones."""
        if not math.isfinite(score):
            return self.threshold_now, 1.0
        if self.budget is None:
            return self.threshold, float(score < self.threshold)
        ready = len(self._sorted) >= WARM
        insort(self._sorted, score)
        self._recent.append(score)
        if len(self._recent) > WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        if not ready:
            return self.threshold, float(score < self.threshold)
        count = len(self._sorted)
        below, upto = bisect_left(self._sorted, score) / count, bisect_right(self._sorted, score) / count
        return self.threshold_now, max(0.0, min(1.0, (self._quantile() - below) / (upto - below)))

    def _decision(self, route: Route, why: Why, score: float, threshold: float) -> Decision:
        return Decision(route, why, score, threshold, self.level, self.share)
