import math

from equipoise.core.shares import Bounded, shown


def test_a_number_is_shown_with_its_interval_where_there_is_one():
    alone, nothing = Bounded(0.5, math.nan, math.nan), Bounded(math.nan, math.nan, math.nan)
    assert shown(Bounded(0.5, 0.25, 1)) == "0.500 [0.250, 1.000]"
    assert shown(Bounded(12.34, 9.99, 15.06), 1) == "12.3 [10.0, 15.1]"
    assert [shown(alone), shown(alone, 1), shown(nothing)] == ["0.500", "0.5", "undefined"]
    assert shown(nothing, nothing="none") == "none"
