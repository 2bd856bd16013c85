"""What a judge decided, read from what it said: its last decision, after its thinking, and not what it quotes.

A statement is the keyword at a word boundary, a colon and a number: "Decision: 2". Emphasis, code, LaTeX, HTML, brackets,
quotes, line ends and "Answer #" may stand between them, and digits be of any script. Of several the last counts, since
judges weigh and correct themselves. It is no verdict, and no earlier one takes its place, where it

    leaves the choice open        "Decision: 1 or 2", "Decision: neither", "Rating: 7 to 8"
    has another number            "Decision: 3", "Rating: 11", "Rating: 4/5"
    contradicts its neighbor      "Decision: 1 and Decision: 2", nothing but blanks and such a word between

Passed over are quotations within a line (judges quote the answers they read, and these may hold appeals to them), struck
text, numbers of a list, and what is only supposed ("Rating: 10 would need a proof").
"""

import re
from typing import Literal

from equipoise.core.options import closed
from equipoise.data.text import after_thinking, unified

Reading = Literal["last", "first"]

_RELEASED = re.compile(r"Decision:\s*(\d+)")  # utils.py of BiasScope
# Lengths are bounded so that a model which repeats one mark to its limit costs no time to speak of.
_STRUCK = re.compile(r"~~[^~\n]{1,500}~~|<(s|del|strike)>[^\n]{1,500}?</\1>", re.IGNORECASE)
# Emphasis, LaTeX, HTML tags, and signs such as emoji.
_DRESSING = re.compile(
    r"\\(?:boxed|fbox|text[a-z]*|math[a-z]*|emph|[a-z]*quad|displaystyle|left|right)(?![A-Za-z])|\\[()\[\],;!]"
    r"|</?[A-Za-z][^<>\n]{0,60}>|[^\w\s.,:;!?()\[\]<>=+/&%\"'`“”‘’«»「」–—−-]|_"
)
_QUOTED = re.compile(
    r"(?<!\w)([\"'`])(?=\S)[^\n]{1,500}?(?<=\S)\1(?!\w)"
    r"|“[^”\n]{1,500}”|‘[^’\n]{1,500}’|«[^»\n]{1,500}»|「[^」\n]{1,500}」"
)
_TOGETHER = re.compile(r"[\s.,;:!?)\]]*(?:(?:(?:and|or|also)\b|[/&])[\s.,;:]*)*", re.IGNORECASE)


def _statement(keyword: str) -> re.Pattern[str]:
    letter = r"[0-9A-Za-z\u00c0-\u04ff]"  # Chinese, which has no blanks, may stand right before the keyword
    closing, marks = r"[ \t)\]\"'`“”‘’«»「」]*+", r"(?:[\s:=()\[\]<>\"'`“”‘’«»「」]|[–—-](?=\s))*+"
    named = rf"(?:\b(?:the|final|answer|response|option|number|no\.?)(?![^\W\d])-?{marks})*+"
    return re.compile(
        rf"""
        (?<!{letter})(?<!{letter}-) {keyword}
        (?: \s* [(\[] [^()\[\]\n]{{0,40}} [)\]] )?  # "Rating (1-10):"
        {closing} (?: : | (?P<heading>\n) ) {marks} {named}
        (?: (?:neither|none|both|either|not|tied?|draw|equal|undecided|unclear)\b
          | (?P<number> [−-]?\d++(?:[.,]\d++)?+ ) (?:st|nd|rd|th)?+ (?!\w)
            (?P<of> \s*(?:/|out\ of)\s*\d++ )?+
            (?P<open> {closing} (?: (?:(?:or|and|to|vs\.?)\b|[/&<=]) {marks} {named} \d
                                  | [–—-][ \t]*\d | ,[ \t]*\d[ \t.]*$ | (?<=[ \t])\d ) )?+
            (?! {closing} (?:would|could|might|may|should|cannot|is\ wrong|is\ not)\b )
            (?= (?P<rest>[^\n]*) ) )
        """,
        re.IGNORECASE | re.VERBOSE | re.MULTILINE,
    )


_DECISION, _RATING = _statement("decision"), _statement("rating")


@closed
def parse_decision(text: str, reading: Reading = "last") -> Literal[1, 2] | None:
    """The answer that a judge decided for, None where it did not; see the module.

    reading: "first" searches as the released code does, for its own rule: the first "Decision:" that digits follow.
    """
    if reading == "first":
        match = _RELEASED.search(text)
        number = float(match[1]) if match else 0.0
    else:
        number = _last(text, _DECISION, scale=None)
    return 1 if number == 1 else 2 if number == 2 else None


def parse_rating(text: str) -> float | None:
    """The rating from 1 to 10 that a judge gave, None where it did not; see the module."""
    number = _last(text, _RATING, scale=10)
    return number if 1 <= number <= 10 else None


def _last(text: str, statement: re.Pattern[str], *, scale: int | None) -> float:
    """The number of the last statement, 0 where there is none that counts. scale: what a rating may be out of."""
    said = after_thinking(unified(text))
    lines = _DRESSING.sub(" ", _STRUCK.sub(" ", said or "")).splitlines()
    said = "\n".join(_unquoted(line, statement) for line in lines)
    matches = [match for match in statement.finditer(said) if not _passed_over(match)]
    if not matches:
        return 0.0
    number = _number(matches[-1], scale)
    for before, after in zip(matches[-2::-1], matches[::-1], strict=False):
        between = said[before.end() : after.start()]
        if not _TOGETHER.fullmatch(between) or ("\n" in between and not _opens(before)):
            break
        if _number(before, scale) not in (0.0, number):
            return 0.0
    return number


def _unquoted(line: str, statement: re.Pattern[str]) -> str:
    """The line without quoted statements; a line that is all in quotes is only dressed so."""

    def kept(quoted: re.Match[str]) -> str:
        if not statement.search(quoted[0]):
            return quoted[0]
        return " " if re.search(r"\w", line[: quoted.start()] + line[quoted.end() :]) else quoted[0]

    return _QUOTED.sub(kept, line)


def _opens(match: re.Match[str]) -> bool:
    """Whether neither words nor marks of a quotation stand before a statement on its line."""
    return not re.search(r"[\w>\"'`“‘«「]", match.string[: match.start()].rpartition("\n")[2])


def _passed_over(match: re.Match[str]) -> bool:
    """A heading that no number alone on its line follows, and the first number of a list below the keyword."""
    if match["number"] is None or "\n" not in match.string[match.start() : match.start("number")]:
        return False
    if match["heading"]:
        return not _opens(match) or bool(re.search(r"\w", match["rest"]))
    return bool(re.match(r"[.)]\s*\w", match["rest"]))


def _number(match: re.Match[str], scale: int | None) -> float:
    of = match["of"] and float(re.sub(r"\D", "", match["of"]))
    if match["number"] is None or match["open"] is not None or of not in (None, scale):
        return 0.0
    return float(match["number"].replace(",", ".").replace("−", "-"))
