"""What AlphaOne is weighed against, on the same machine: plain sampling, s1's budget forcing, a hard cap, waits at random.

Plain            nothing, but for least and most tokens of thinking
BudgetForcing    s1 without its fine-tuning: the end of thinking becomes "Wait", so many times (arXiv:2501.19393)
HardCap          the end of thinking is written at the moment
RandomWaits      waits at times drawn uniformly before the moment, and AlphaOne's end after it

As many waits as AlphaOne writes come at random where `waits_to_draw` says how many times are drawn.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Unpack

import numpy as np

from equipoise.core.errors import BadInput
from equipoise.decoding.alphaone import AlphaOne
from equipoise.decoding.thinking import NOTHING, Common, Decision, ThinkingControl, ThinkingState

_REPEATS = 400  # sets of times, over which what is written of them is averaged


class Plain(ThinkingControl):
    """The model as it is, between min_thinking and max_thinking."""

    name = "none"

    def decide(self, state: ThinkingState) -> Decision:
        """Nothing."""
        return NOTHING


class BudgetForcing(ThinkingControl):
    """s1: where the model would end its thinking, "Wait" is written, `times` times; afterwards it is free.

    Raises BadInput for times below 1, and for a closing tag of several tokens: that it comes is known with the last of them,
    when the others stand in the thinking and cannot be taken back.
    """

    name = "s1"

    def __init__(self, tokenizer: Any, *, times: int = 2, **common: Unpack[Common]) -> None:
        super().__init__(tokenizer, **common)
        if times < 1:
            raise BadInput(f"times is {times}: use at least 1, or the control none.")
        if len(self.closing) > 1:
            raise BadInput(
                f"s1 replaces the closing tag, {self.tags.closing!r}, of which this tokenizer makes {len(self.closing)} "
                "tokens: the first ones would stay in the thinking. Take a model with a token for it, or another control."
            )
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
    """Waits at times uniform in (0, moment), `expected` on average, each written at the next end of a paragraph.

    A thought may end before a time has come: fewer are written than are drawn (`waits_to_draw`). After the moment as
    AlphaOne. What differs from it is then when the waits come, not how many. Raises BadInput for a moment that is not above
    0 and finite, and for a negative number.
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
        decisions = [control.decide(state) for state in _slow(control, ids)]
        sums.append(sum(each.chance for each in decisions if each.insert == control.word))
    return sum(sums) / len(sums) if sums else 0.0


def waits_to_draw(control: AlphaOne, written: Iterable[tuple[int, ...]], wanted: float) -> float:
    """How many times `RandomWaits` has to draw so that `wanted` waits are written on average into plain thoughts.

    control: AlphaOne with the moment of both. A time behind the last paragraph of a thought is of no use to it, and each
    paragraph takes one. Where even four times as many as there are paragraphs bring fewer, that is the answer.
    """
    places = [
        np.array([len(state.written) for state in _slow(control, ids) if control.at_paragraph(state)])
        for ids in written
    ]
    most = 4 * max(map(len, places), default=0)
    if not most:
        return 0.0
    uniform = np.random.default_rng(0).random((_REPEATS, most)) * control.moment

    def come(count: int) -> float:
        times = np.sort(uniform[:, :count], axis=1)
        return sum(float(np.mean([_written(row, at) for row in times])) for at in places) / len(places)

    count = bisect_left(range(most + 1), wanted, key=come)
    if not 0 < count <= most:
        return float(min(count, most))
    before, after = come(count - 1), come(count)
    return count - 1 + (wanted - before) / (after - before)


def _written(times: np.ndarray[Any, Any], places: np.ndarray[Any, Any]) -> int:
    """How many of sorted times find a paragraph of their own, of those that end at `places`."""
    # At most one a paragraph from any place on, and before it no more than have come.
    left = np.arange(len(places))[::-1]
    return int(min((np.searchsorted(times, places, side="right") + left).min(initial=len(places)), len(places)))


def _slow(control: AlphaOne, ids: Sequence[int]) -> Iterator[ThinkingState]:
    """The state behind each token of a plain thought, while it thinks and the moment has not come."""
    state = control.begin(0)
    if control.tags.opening not in control.vocabulary.decode(ids):  # it stands in the prompt
        state.thinking, state.begun = True, 0
    for token in ids:
        control.wrote(state, token)
        if state.ended is not None or not control.slow(len(state.written)):
            return
        if state.thinking:
            yield state
