"""What AlphaOne is weighed against, on the same machine: plain sampling, s1's budget forcing, a hard cap, waits at random.

Plain            nothing, but for least and most tokens of thinking
BudgetForcing    s1 without its fine-tuning: the end of thinking becomes "Wait", so many times (arXiv:2501.19393)
HardCap          the end of thinking is written at the moment
RandomWaits      as many waits as expected of AlphaOne, at times drawn uniformly before the moment, and its end after it
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Unpack

from equipoise.core.errors import BadInput
from equipoise.decoding.alphaone import AlphaOne
from equipoise.decoding.thinking import NOTHING, Common, Decision, ThinkingControl, ThinkingState


class Plain(ThinkingControl):
    """The model as it is, between min_thinking and max_thinking."""

    name = "none"

    def decide(self, state: ThinkingState) -> Decision:
        """Nothing."""
        return NOTHING


class BudgetForcing(ThinkingControl):
    """s1: where the model would end its thinking, "Wait" is written, `times` times; afterwards it is free.

    Raises BadInput for times below 1.
    """

    name = "s1"

    def __init__(self, tokenizer: Any, *, times: int = 2, **common: Unpack[Common]) -> None:
        super().__init__(tokenizer, **common)
        if times < 1:
            raise BadInput(f"times is {times}: use at least 1, or the control none.")
        self.times = times

    def decide(self, state: ThinkingState) -> Decision:
        """The end becomes the word until that has happened often enough."""
        if state.count >= self.times or not state.thinking:
            return NOTHING
        return Decision(of=self.closings(state), instead=self.word)


class HardCap(ThinkingControl):
    """The end of thinking is written behind `moment` tokens of it, unless the model has done so before.

    Raises BadInput for a moment below 1.
    """

    name = "cap"

    def __init__(self, tokenizer: Any, *, moment: float, **common: Unpack[Common]) -> None:
        super().__init__(tokenizer, **common)
        if not moment >= 1:
            raise BadInput(f"The moment is {moment}: give a number of tokens of at least 1.")
        self.moment = moment

    def decide(self, state: ThinkingState) -> Decision:
        """The end once the thinking is as long."""
        if not state.thinking or state.thought < self.moment:
            return NOTHING
        return Decision(insert=self.closing, chance=1.0)


class RandomWaits(ThinkingControl):
    """Waits, `expected` of them on average, at times uniform in (0, moment), each at the next end of a paragraph.

    After the moment as AlphaOne. What differs from it is when the waits come, not how many. Raises BadInput for a moment
    that is not above 0 and finite, and for a negative number.
    """

    name = "random"

    def __init__(self, tokenizer: Any, *, moment: float, expected: float, **common: Unpack[Common]) -> None:
        super().__init__(tokenizer, **common)
        if not 0 < moment < math.inf or not 0 <= expected < math.inf:
            raise BadInput(
                f"The moment is {moment} and {expected} waits are expected: use a number above 0, and at least 0."
            )
        self.moment, self.expected = moment, expected

    def decide(self, state: ThinkingState) -> Decision:
        """A wait for each time that has passed, one at an end of a paragraph."""
        t = len(state.written)
        if state.times is None:
            whole, part = divmod(self.expected, 1)
            count = int(whole) + int(state.generator.random() < part)
            state.times = tuple(sorted(state.generator.random(count) * self.moment))
        if t >= math.floor(self.moment):
            return Decision(of=self.going_on(state), instead=self.closing)
        if not self.at_paragraph(state) or state.count >= sum(time <= t for time in state.times):
            return NOTHING
        return Decision(insert=self.word, chance=1.0)


def expected_waits(control: AlphaOne, written: Iterable[tuple[int, ...]]) -> float:
    """How many waits AlphaOne would insert on average into plain thoughts, given by their ids: their mean summed S(t).

    The thoughts are taken as they are: what a wait adds to them is not foreseen.
    """
    sums = []
    for ids in written:
        state = control.begin(0)
        state.thinking, state.begun = True, 0
        total = 0.0
        for token in ids:
            control.wrote(state, token)
            if not state.thinking or not control.slow(len(state.written)):
                break
            decision = control.decide(state)
            total += decision.chance if decision.insert == control.word else 0.0
        sums.append(total)
    return sum(sums) / len(sums) if sums else 0.0
