import json
import sys

import pytest

from equipoise.core.terminal import one_line, say, shown


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\u001b[2J\u001b]0;title\u0007"),
        ("\x9b31m", r"\u009b31m"),
        ("ok\rFAILED", r"ok\u000dFAILED"),
        ("a\x08\x7f", r"a\u0008\u007f"),
        ("user\u202egnp.exe\u2066", r"user\u202egnp.exe\u2066"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("half \ud800 pair", r"half \ud800 pair"),
        ("tag \U000e0041", r"tag \udb40\udc41"),
    ],
)
def test_what_steers_hides_or_reorders_is_written_as_an_escape(text, safe, capsys):
    assert shown(text) == safe
    say(text)
    assert capsys.readouterr().err == safe + "\n"
    assert json.loads(shown(json.dumps({"name": text}, ensure_ascii=False))) == {"name": text}


def test_honest_text_stays_as_it_is():
    text = "zwölf\tcolumns\nשלום, 👩‍👩‍👧, naïve – “quoted” \\u202e"
    assert shown(text) == text
    assert shown(3.5) == "3.5"


def test_all_that_is_written_as_an_escape():
    """Controls but tab and newline, direction, zero width, halves of pairs, tags; their neighbours stay."""
    unsafe = [
        *(set(range(0x20)) - {9, 10}), *range(0x7F, 0xA0), 0x200B, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF,
        0xFFF9, 0xFFFA, 0xFFFB, *range(0xD800, 0xE000), *range(0xE0000, 0xE1000),
    ]  # fmt: skip
    looked_at = {*range(0x3000), *range(0xD700, 0x10000), *range(0xDFF00, 0xE1100)}
    honest = "".join(chr(number) for number in looked_at - set(unsafe))
    assert shown(honest) == honest and all(shown(chr(number)).isascii() for number in unsafe)
    assert all(chr(number) not in shown(chr(number)) for number in unsafe)
    assert shown("\U000e0fff\x07") == r"\udb43\udfff\u0007"


def test_a_sentence_goes_where_it_is_told(capsys):
    say("a\x07", file=sys.stdout)
    say(None)
    said = capsys.readouterr()
    assert said.out == "a\\u0007\n" and said.err == "None\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("  a\n b\t\u00a0c ", "a b c"),
        ("a" * 12, "a" * 12),
        ("a" * 13, "a" * 9 + "..."),
        (" \n ", "(nothing)"),
    ],
)
def test_one_line_keeps_to_its_width_and_says_where_nothing_is(text, line):
    assert one_line(text, 12, empty="(nothing)") == line
