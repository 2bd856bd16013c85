"""What models and people write, as it can be stored, shown and read.

encodable      half of a surrogate pair, which JSON can spell and no encoding can hold
printable      one line for a terminal or a table, without escapes
unified        one form of what reads the same: compatibility forms, digits of every script, nothing invisible
after_thinking what a reasoning model says when it has done thinking
defused        without marks of chat templates, which could end the turn in which a text is quoted
unjoined       an answer without the blank that joins it to its prompt
"""

import re
import unicodedata

# Unicode's default-ignorable characters (zero width, soft hyphen, byte order mark, direction, variation selectors, tags),
# the frame of a keycap, and the colours of a terminal.
_INVISIBLE = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20e3\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]|\x1b\[[0-9;?]*[A-Za-z]"
)
_DIGIT = re.compile(r"[^\D0-9]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# As templates write them: <|im_end|>, <｜User｜>, </s>, <start_of_turn>, <<SYS>>, [/INST], [TOOL_CALLS].
_MARK = re.compile(r"<(?=[|｜/<]?[\w|｜▁ /-]{1,40}[|｜]?>)|\[(?=/?[A-Z_]{2,40}\])")
_THINKING = re.compile(r"(?<![\"'`“‘])[<\[◁](/?)(?:[\w.-]+:)?think(?:ing)?[>\]▷]", re.IGNORECASE)


def lone_surrogate(text: str) -> int | None:
    """Where half of a surrogate pair stands without the other; None where the text can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def encodable(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair that stands alone; two halves that meet are one character."""
    if lone_surrogate(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def printable(text: str) -> str:
    """One line without invisible and control characters, blanks at its ends, and halves of surrogate pairs."""
    return " ".join(_CONTROL.sub(" ", _INVISIBLE.sub("", encodable(text))).split())


def unified(text: str) -> str:
    """The text in Unicode's compatibility form (NFKC) with ASCII digits, without what cannot be seen."""
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    return _DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)


def after_thinking(text: str) -> str | None:
    """The text without its blocks of thinking (<think>, [THINK], <thinking>); None where one has begun and not ended.

    An end without a beginning, which the chat template may have written, ends the thinking before it. Tags in quotes, and a
    beginning within a line that nothing ends, are talk about thinking.
    """
    said, start, begun = [], 0, None
    for tag in _THINKING.finditer(text):
        if not tag[1]:
            begun = begun or tag
            continue
        said = [*said, text[start : begun.start()]] if begun else []
        start, begun = tag.end(), None
    if begun and not text[: begun.start()].rpartition("\n")[2].strip():
        return None
    return "\n".join([*said, text[start:]])


def defused(text: str) -> str:
    """The text with a blank in whatever looks like a mark of a chat template, so that it is none when it is quoted."""
    return _MARK.sub(r"\g<0> ", text)


def unjoined(text: str) -> str:
    """An answer without the one blank before its first word, which joins it to the prompt; two and more are indentation.

    So `language.encode` joins: it puts a blank before a completion that begins with none.
    """
    return text if text.startswith("  ") else text.removeprefix(" ")
