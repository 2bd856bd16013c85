from dataclasses import replace
from datetime import datetime

import pytest

from equipoise.agents.memory import MemoryAnswer, MemoryItem, session_text, state_digest, within, words
from equipoise.core.errors import BadInput
from equipoise.data.histories import Session, Turn

NINE = datetime(2024, 5, 7, 9, 5)
ITEMS = [
    MemoryItem("a", "one two", NINE, ("t1", "t2")),
    MemoryItem("b", "three", NINE, ("t2",)),
    MemoryItem("c", "x", NINE),
]


def test_a_budget_ends_with_the_first_item_that_does_not_fit():
    long = [ITEMS[1], replace(ITEMS[0], text="a b c"), ITEMS[2]]
    assert [item.id for item in within(long, 3, words)] == ["b"]
    assert [item.id for item in within(long, 4, words)] == ["b", "a"]
    assert within(long, None, words) == long
    with pytest.raises(BadInput, match="budget is 0 tokens"):
        within(long, 0, words)


def test_sources_are_turns_each_once():
    assert MemoryAnswer("", tuple(ITEMS)).sources == {"t1", "t2"}


def test_a_turn_is_printed_with_its_own_moment_where_it_has_one():
    session = Session("s", NINE, (Turn("1", "Li", "Hello"), Turn("2", "Bo", "Hi", datetime(2024, 5, 7, 9, 6))))
    assert session_text(session) == "[2024-05-07 09:05] Li: Hello\n[2024-05-07 09:06] Bo: Hi"


def test_every_part_of_a_state_is_in_its_digest():
    changed = [replace(ITEMS[0], **change) for change in (
        {"id": "z"}, {"text": "z"}, {"time": NINE.replace(hour=10)}, {"sources": ("t1",)}, {"session": "s"}
    )]  # fmt: skip
    digests = [state_digest([item, *ITEMS[1:]]) for item in (ITEMS[0], *changed)]
    digests += [state_digest(ITEMS[::-1]), state_digest(ITEMS, {"heat": 1}), state_digest([])]
    assert len(set(digests)) == len(digests)
    assert state_digest(ITEMS) == digests[0]


def test_a_budget_of_one_token_and_of_none():
    items = [MemoryItem(str(n), "word", datetime(2024, 5, 1)) for n in range(3)]
    assert [item.id for item in within(items, 1, words)] == ["0"] and len(within(items, None, words)) == 3
    assert [item.id for item in within(items, 2, words)] == ["0", "1"]
    with pytest.raises(BadInput, match="The budget is 0 tokens"):
        within(items, 0, words)
