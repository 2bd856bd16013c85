"""How many waits come at random, against a loop that hands out times to paragraphs one by one."""

import math

import numpy as np
import pytest

from equipoise.core.errors import BadInput
from equipoise.decoding.alphaone import AlphaOne
from equipoise.decoding.thinking import Decision, Tags
from equipoise.decoding.thinking_rivals import (
    BudgetForcing,
    HardCap,
    RandomWaits,
    _written,
    expected_waits,
    waits_to_draw,
)
from thinking_models import tokenizer_of


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of()


def ids_of(tokenizer, *tokens):
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]


def come(times, places):
    """A wait at each paragraph by which more times have passed than waits were written."""
    count = 0
    for place in places:
        count += count < sum(time <= place for time in times)
    return count


def test_as_many_waits_are_written_as_times_find_a_paragraph():
    generator = np.random.default_rng(0)
    for _ in range(200):
        times = np.sort(generator.integers(0, 12, size=generator.integers(0, 6))).astype(float)
        places = np.sort(generator.choice(12, size=generator.integers(0, 6), replace=False))
        assert _written(times, places) == come(times, places)


@pytest.mark.parametrize("wanted", [0.7, 1.2])
def test_times_are_drawn_until_as_many_waits_come_and_a_part_of_one_more(tokenizer, wanted):
    control = AlphaOne(tokenizer, moment=11.5)
    a, end = ids_of(tokenizer, "a", "\n\n")
    written = [(a, a, end, a, a, end, a), (a, end, a, a, a, a, a, end, a, a, end), (a, a)]
    places = [[3, 6], [2, 8], []]  # the third end of the second comes with the moment
    uniform = np.random.default_rng(0).random((400, 8)) * 11.5

    def mean(count):
        return sum(np.mean([come(row[:count], at) for row in uniform]) for at in places) / 3

    assert wanted < mean(8)
    least = next(count for count in range(9) if mean(count) >= wanted)
    due = least - 1 + (wanted - mean(least - 1)) / (mean(least) - mean(least - 1))
    assert waits_to_draw(control, written, wanted) == pytest.approx(due)
    assert waits_to_draw(control, written, 4 / 3) == 8  # all that there could be, which no draw is sure of
    assert waits_to_draw(control, written, 0.0) == 0 and waits_to_draw(control, [(a, a)], 1.0) == 0
    chances = [1 - t / 11.5 for t in (3, 6, 2, 8)]
    assert expected_waits(control, written) == pytest.approx(sum(chances) / 3) and expected_waits(control, []) == 0


@pytest.mark.parametrize("expected", [0.0, 0.4, 2.0, 2.7])
def test_times_are_of_the_sequences_own_draws_before_the_moment(tokenizer, expected):
    control = RandomWaits(tokenizer, moment=9.5, expected=expected, seed=2)
    a, end = ids_of(tokenizer, "a", "\n\n")
    counts = set()
    for key in range(30):
        state, draws = control.begin(key), control.begin(key).generator
        count = int(expected) + (draws.random() < expected - int(expected))
        times, waits, due = draws.random(count) * 9.5, [], []
        for t in range(1, 13):
            control.wrote(state, end if t % 2 == 0 else a)
            decision = control.decide(state)
            if t >= 9:
                assert decision == Decision(of=control.going_on(state), instead=control.closing)
                continue
            if decision.insert:
                assert decision == Decision(insert=control.word, chance=1.0)
                state.count += 1
                waits.append(t)
            if t % 2 == 0 and len(due) < sum(time <= t for time in times):
                due.append(t)
        assert waits == due and state.times == tuple(sorted(times))
        counts.add(count)
    assert counts == {math.floor(expected), math.ceil(expected)}


def test_a_cap_and_a_forced_budget_act_so_often_and_no_more(tokenizer):
    a, close = ids_of(tokenizer, "a", "</think>")
    cap = HardCap(tokenizer, moment=2.5)
    state = cap.begin(0)
    for count in range(1, 5):
        cap.wrote(state, a)
        assert cap.decide(state) == (Decision(insert=(close,), chance=1.0) if count >= 3 else Decision())
    forcing = BudgetForcing(tokenizer, times=2)
    state = forcing.begin(0)
    for count, due in ((0, True), (1, True), (2, False), (3, False)):
        state.count = count
        assert forcing.decide(state) == (Decision(of=(close,), instead=forcing.word) if due else Decision())
    state.count = 0
    forcing.wrote(state, close)
    assert forcing.decide(state) == Decision()
    HardCap(tokenizer, moment=1)
    BudgetForcing(tokenizer, times=1)
    RandomWaits(tokenizer, moment=0.1, expected=0)
    for wrong in (
        lambda: HardCap(tokenizer, moment=0.99),
        lambda: HardCap(tokenizer, moment=math.nan),
        lambda: RandomWaits(tokenizer, moment=0, expected=1),
        lambda: RandomWaits(tokenizer, moment=1, expected=-0.1),
        lambda: RandomWaits(tokenizer, moment=1, expected=math.inf),
        lambda: BudgetForcing(tokenizer, times=0),
    ):
        with pytest.raises(BadInput):
            wrong()


def test_a_plain_thought_is_over_with_the_last_token_of_its_tag():
    """A tag of eight tokens, also where it is all that was thought."""
    tokenizer = tokenizer_of(pieces=("Wait", "\n\n"), characters="abcW<>/think ")
    control = AlphaOne(tokenizer, moment=40, tags=Tags("<think>", "</think>"))
    for text, places in (
        ("ab\n\nab</think>a\n\nb\n\n", [3]),
        ("</think>ab\n\n", []),
        ("a\n\n</think>", [2]),
        ("ab\n\n<think>ab\n\n</think>a\n\n", [3, 13]),
    ):
        ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        assert expected_waits(control, [ids]) == pytest.approx(sum(1 - t / 40 for t in places)), text
