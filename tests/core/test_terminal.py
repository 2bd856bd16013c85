import json

import pytest

from equipoise.core.terminal import say, shown


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
