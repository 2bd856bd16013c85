"""What a player's text comes to: the part of it that is the action, and the numbers that stand there.

unwrapped   behind the thinking, in the last <answer>...</answer> or \\boxed{...}
decided     and of that what follows the last "Answer:", "I choose" or the like, to the end of its line
"""

import re

from equipoise.data.final_answer import last_boxed
from equipoise.data.text import after_thinking, unified

_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.IGNORECASE | re.DOTALL)
_DECIDED = re.compile(
    r"\b(?:answer|action|choice|decision|move|vote)\s*(?:\bis\b|:|=)|\bI(?:['’]ll|\s+will|\s+would)?\s+"
    r"(?:choose|go\s+with|pick|place|play|select|take|vote)\b",
    re.IGNORECASE,
)
_WHOLE = re.compile(r"(?<![\d.])((?<!\w)-)?(\d{1,9})(?:st|nd|rd|th)?(?!\w|\.\d)")


def unwrapped(text: str) -> str:
    """Without thinking, tags and boxes around it, in one form of every character; "" where the thinking never ended."""
    text = after_thinking(unified(text)) or ""
    if answers := _ANSWER.findall(text):
        text = answers[-1]
    return (last_boxed(text) or text).strip()


def decided(text: str) -> str:
    """What is decided on; the whole of what was unwrapped where nothing announces it."""
    text = unwrapped(text)
    marks = list(_DECIDED.finditer(text))
    if not marks:
        return text
    return text[marks[-1].end() :].lstrip("*_ \t\r\n").partition("\n")[0].strip()


def whole_numbers(text: str) -> list[int]:
    """The whole numbers of a text in their order, with their signs; none of 2.5, and 2 and 3 of "2-3"."""
    return [-int(digits) if sign else int(digits) for sign, digits in _WHOLE.findall(text)]


def one_number(text: str) -> int | None:
    """The number that a text decides on, None where it names none or two that differ."""
    numbers = set(whole_numbers(decided(text)))
    return numbers.pop() if len(numbers) == 1 else None
