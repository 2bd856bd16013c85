"""Text that cannot be encoded, seen or told apart, and thinking before an answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.data.text import after_thinking, encodable, lone_surrogate, printable, unified, unjoined

anything = st.text(st.characters(codec=None))  # surrogates too


@given(anything)
def test_what_is_encodable_stays_and_the_rest_becomes_so(text):
    mended = encodable(text)
    assert mended.encode().decode() == mended and lone_surrogate(mended) is None
    assert (mended == text) == (lone_surrogate(text) is None)


def test_half_a_pair_is_replaced_and_its_neighbors_stay():
    assert encodable("a\ud83db\ude00") == "a\ufffdb\ufffd" and encodable("\ud83d\ude00!") == "\U0001f600!"
    assert lone_surrogate("ab\ude00") == 2 and lone_surrogate("\U0001f600") is None


@given(anything)
def test_what_is_printable_is_one_line_that_a_terminal_takes(text):
    shown = printable(text)
    shown.encode()
    assert shown.splitlines() in ([], [shown]) and shown == shown.strip() and "\x1b" not in shown
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("text", "start"),
    [("", None), ("a", None), ("é\U0001f600", None), ("\ud800", 0), ("a\udfff", 1), ("é\U0001f600\udbff", 2)],
)
def test_where_half_a_pair_stands(text, start):
    assert lone_surrogate(text) == start


def test_colors_and_zero_width_are_not_printed():
    assert printable("a\x00b\x1f c\x7f\x9fd\u2028e\u2029f") == "a b c d e f"
    assert printable("\x1b[1;31mx\x1b[0m\x1b[?25ly") == "xy" and printable(" \t ") == ""
    assert printable("\x1b[31mred\x1b[0m \u200bhat\u202e\n\ud83d") == "red hat \ufffd"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("２：①", "2:1"),
        ("٢ २ 𝟐", "2 2 2"),
        ("2\ufe0f\u20e3", "2"),
        ("so\u00adft\u200b \ufeffhyphen\u2060", "soft hyphen"),
        ("e\u200b\u0301", "é"),
        ("हिन्दी", "हिन्दी"),
    ],
)
def test_what_reads_the_same_is_the_same(text, same):
    assert unified(text) == same


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>a</think>b", "\nb"),
        ("a\n</think>\nb", "\nb"),  # the template wrote the beginning
        ("<think>a<think>b</think>c</think>d", "d"),
        ("a [THINK]b[/THINK] c", "a \n c"),
        ("<Thinking>a</thinking>b", "\nb"),
        ("◁think▷a◁/think▷b", "\nb"),
        ("a\n<think>b", None),
        ("  <think>", None),
        ("<think>a <think>b", None),
        ("the tag <think> is stray", "the tag <think> is stray"),
        ("it says '</think>' here", "it says '</think>' here"),
        ("a thinking <b>man</b>", "a thinking <b>man</b>"),
        ("<think>a</think>b<think>c</think>d", "\nb\nd"),
        ("a</think>b</think>c", "c"),
        ("<think>a</think>b\n <think>c", None),
        ("<think>a</think>b <think>c", "\nb <think>c"),
        ("x <think>a\n<think>b", "x <think>a\n<think>b"),
        ("<ns:think>a</ns:think>b", "\nb"),
        ("<THINK>a[/think]b", "\nb"),
        ("say `<think>` or “</think>” or ‘<think>", "say `<think>` or “</think>” or ‘<think>"),
        ('"<think>" a', '"<think>" a'),
        ("a </think> b <think>", " b <think>"),
        ("", ""),
    ],
)
def test_after_thinking(text, said):
    assert after_thinking(text) == said


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (" a", "a"),
        ("a", "a"),
        ("  a", "  a"),
        ("    a\n    b", "    a\n    b"),
        (" ", ""),
        ("  ", "  "),
        ("\n  a", "\n  a"),
        ("", ""),
    ],
)
def test_one_blank_joins_and_two_are_indentation(written, told):
    assert unjoined(written) == told
