"""What is said of a run of thinking: warnings above their limits and not at them, lines and rows with their numbers."""

import math
from dataclasses import replace

from equipoise.core.shares import Bounded
from equipoise.decoding.result import ThinkPlan, ThinkRun, rows_of

NAN = math.nan
RUN = ThinkRun(
    {}, "m", {"control": "alphaone", "max_thinking": -1, "max_new_tokens": 3000, "alpha": 1.4}, 1010,
    Bounded(1000.0, 900.0, 1100.0), 10, 1400.0, NAN, Bounded(0.5, 0.25, 0.75), 101, Bounded(1200.25, 1.0, 2.0),
    Bounded(30.125, 20.0, 40.0), 2.346, 0.123, 0.1, 0.056, 99, (),
)  # fmt: skip


def test_warnings_come_above_their_limits():
    assert RUN.warnings() == ()
    for change, told in (
        ({"words": 0.0, "ends": 0.0}, "control alphaone never acted"),
        ({"moment": 3000.0}, "moment is 3,000.0 tokens, which no thought reaches with max_new_tokens at 3,000"),
        ({"unopened": 0.25}, "25% of the prompts were answered without any thinking"),
        ({"unclosed": 0.101}, "10% of the thoughts did not end"),
        ({"unread": 102}, "102 of 1010 answers held nothing to compare"),
    ):
        (found,) = replace(RUN, **change).warnings()
        assert told in found and replace(RUN, **change).headline().startswith(found)
        assert replace(RUN, **change).summary()[0] == found
    for change in ({"words": 0.0}, {"ends": 0.0}, {"moment": 2999.9}, {"moment": NAN}, {"prompts": 0, "unread": 0}):
        assert replace(RUN, **change).warnings() == ()
    idle = RUN.settings | {"control": "none"}
    assert replace(RUN, words=0.0, ends=0.0, settings=idle).warnings() == ()
    most = RUN.settings | {"max_thinking": 0}
    (found,) = replace(RUN, settings=most).warnings()
    assert "with max_thinking at 0" in found
    assert len(replace(RUN, words=0.0, ends=0.0, unopened=1.0, unclosed=1.0, unread=500, moment=4000.0).warnings()) == 5


def test_lines_have_the_numbers_of_the_run():
    done = (
        "1,010 prompts under alphaone: 1200.2 [1.0, 2.0] tokens of thinking, 30.1 [20.0, 40.0] of answer, "
        "2.35 words inserted a prompt."
    )
    right = " 0.500 [0.250, 0.750] of the answers are right."
    assert RUN.headline() == done + right
    ends = "the control ended 12.3% of the thoughts; 10.0% did not end, 5.6% ran out of tokens"
    moment = "moment: 1,400.0 tokens, 1.4 times 1000.0 [900.0, 1100.0]"
    assert RUN.summary() == (f"{moment} measured on 10 prompts", ends, done + right)
    given = replace(RUN, measured_on=0, accuracy=Bounded(NAN, NAN, NAN))
    assert given.summary() == (moment, ends, done)
    assert replace(given, moment=NAN).summary() == (ends, done)
    assert rows_of(RUN) == [
        ("right", "0.500 [0.250, 0.750]"),
        ("tokens of thinking", "1200.2 [1.0, 2.0]"),
        ("tokens of the answer", "30.1 [20.0, 40.0]"),
        ("words inserted", "2.35"),
        ("thinking ended by the control", "12.3%"),
        ("thinking did not end", "10.0%"),
        ("out of tokens", "5.6%"),
    ]
    assert rows_of(replace(RUN, expected=1.987))[3] == ("words inserted", "2.35, 1.99 expected of alphaone")
    lines = ThinkPlan("m", "s1", "t", "none", "nobody", 1200, "ab", 34567).summary()
    assert lines[-1] == "1,200 prompts, at most 34,567 tokens" and len(lines) == 6
