import math

from equipoise.core.shares import Bounded, Share, shown
from equipoise.core.statistics import interval_of


def test_a_number_is_shown_with_its_interval_where_there_is_one():
    alone, nothing = Bounded(0.5, math.nan, math.nan), Bounded(math.nan, math.nan, math.nan)
    assert shown(Bounded(0.5, 0.25, 1)) == "0.500 [0.250, 1.000]"
    assert shown(Bounded(12.34, 9.99, 15.06), 1) == "12.3 [10.0, 15.1]"
    assert [shown(alone), shown(alone, 1), shown(nothing)] == ["0.500", "0.5", "undefined"]
    assert shown(nothing, nothing="none") == "none"


def test_a_share_that_misses_some_has_a_least_and_a_most():
    some = Share(1.5, 3, 2, 3.0, 0.1, 0.9)
    assert (some.rate, some.least, some.most) == (0.5, 0.3, 0.7)
    lost = Share(0.0, 0, 4, 0.0, math.nan, math.nan)
    assert math.isnan(lost.rate) and (lost.least, lost.most) == (0.0, 1.0)
    nothing = Share(0.0, 0, 0, 0.0, math.nan, math.nan)
    assert all(math.isnan(each) for each in (nothing.rate, nothing.least, nothing.most))


def test_bounds_lie_within_what_an_estimate_can_be():
    wide = interval_of(0.5, 0.25, 3.0, 0.0, math.inf, 0.95, (4, 1, 0))
    assert wide.lower < -1 and wide.upper > 2
    assert Bounded.of(wide) == Bounded(0.5, wide.lower, wide.upper)
    assert Bounded.of(wide, 0.0, 1.0) == Bounded(0.5, 0.0, 1.0)
    assert Bounded.of(wide, -9.0, 9.0) == Bounded(0.5, wide.lower, wide.upper)
    unknown = Bounded.of(interval_of(0.5, math.nan, 3.0, 0.0, math.inf, 0.95, (1, 1, 0)), 0.0, 1.0)
    assert unknown.value == 0.5 and math.isnan(unknown.lower) and math.isnan(unknown.upper)
