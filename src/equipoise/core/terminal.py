"""Text that others wrote, made safe to print: it can neither steer the terminal, nor hide, nor reorder what is read.

What people read goes through `shown`, what programs read (`--json`) too: an escape is written as JSON writes it.
"""

import re
import sys
from typing import TextIO

# Controls but newline and tab, what reorders or hides text, halves of surrogate pairs (which no stream can encode).
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


def shown(text: object) -> str:
    r"""The text with every unsafe character as JSON escapes it: "\u001b[2J"."""
    return _UNSAFE.sub(_escaped, str(text))


def say(text: object, *, file: TextIO | None = None) -> None:
    """Print a sentence that may hold what others wrote; on stderr unless told otherwise."""
    print(shown(text), file=file or sys.stderr, flush=True)


def one_line(text: str, width: int, *, empty: str = "") -> str:
    """The text on a line of at most `width` characters, white space as single spaces; `empty` where none is left."""
    line = " ".join(text.split()) or empty
    return line if len(line) <= width else f"{line[: width - 3]}..."


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{int.from_bytes(units[i : i + 2]):04x}" for i in range(0, len(units), 2))
