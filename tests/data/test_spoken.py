"""Which action a text comes to: as people and models write it, after thinking, among what they did not choose."""

import pytest

from equipoise.data.spoken import decided, one_number, unwrapped, whole_numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", 2),
        (" 2.\n", 2),
        ("I choose action 3!", 3),
        ("I'll pick the 2nd.", 2),
        ("3 beats 1, so I play 2", 2),
        ("<think>1 or 2? 1.</think>2", 2),
        ("<think>\nMaybe 1", None),
        ("<answer>1</answer> was wrong: <answer>2</answer>", 2),
        ("<answer>2", 2),
        (r"Both pay 3. \boxed{1}", 1),
        ("Action 1 pays 3 or 0, action 2 pays 5 or 1.\n\n**Answer:** 2", 2),
        ("Answer: 1\nNo. Answer: 2", 2),
        ("My choice is 4 because it is best", 4),
        ("１", 1),
        ("1 or 2", None),
        ("1 || 2", None),
        ("2.5", None),
        ("-2", -2),
        ("the second", None),
        ("", None),
        ("2 2", 2),
    ],
)
def test_one_number(text, expected):
    assert one_number(text) == expected


def test_parts():
    assert unwrapped("<think>a</think> <answer> Clue: hot </answer> ") == "Clue: hot"
    assert decided("I would play (1, 2)\nbecause of (3, 3)") == "(1, 2)"
    assert decided("Answer:\n b2") == "b2" and decided("no decision here") == "no decision here"
    assert whole_numbers("2-3, row 4; -5, x6 and 7.5 or 8.") == [2, 3, 4, -5, 6, 8]
