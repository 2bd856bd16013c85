"""The grades that may be given, and how one is read in a reply of words."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from equipoise.chat.grading import Grade
from equipoise.core.errors import BadInput
from equipoise.data.text import after_thinking, unified

_DRESSING = re.compile(r"\\(?:boxed|text[a-z]*)\b|[*_`~#\"'“”‘’«»\[\](){}<>]|(?<=[a-z])-(?=[a-z])", re.IGNORECASE)
_STATED = re.compile(
    r"(?:(?:final|overall|my|the) )*"
    r"(?:(?:grade|verdict|label|score|rating|decision|judge?ment)(?: \d+ ?(?:[-–]|to) ?\d+)?(?: is\b| ?[:=])"
    r"|(?P<said>(?:answer|response) is\b))"
    r"[ :]*(?P<grade>.*)"
)
_NEGATIVE = re.compile(r"\b(?:no|not|nope|false|wrong|incorrect|0)\b")


@dataclass(frozen=True)
class Grades:
    """The grades that may be given. credits: grade -> credit in [0, 1]; meanings: what the grader is told of each.

    accept: the credit from which an answer counts as right where that is asked. ordered: they are scores, neighbours are
    nearly the same.
    """

    credits: Mapping[str, float]
    meanings: Mapping[str, str] = field(default_factory=dict)
    accept: float = 1.0
    ordered: bool = False

    def __post_init__(self) -> None:
        if len(self._by_words) < max(len(self.credits), 2) or "" in self._by_words:
            raise BadInput(f"The grades {', '.join(self.credits) or '(none)'} cannot be told apart: name two or more.")
        if not all(0 <= each <= 1 for each in (*self.credits.values(), self.accept)):
            raise BadInput(f"The credits {dict(self.credits)} and accept={self.accept}: each is from 0 to 1.")
        if unknown := self.meanings.keys() - self.credits.keys():
            raise BadInput(f"There is a meaning of {', '.join(sorted(unknown))}, which is no grade.")

    @classmethod
    def scale(cls, low: int, high: int, *, accept: int) -> "Grades":
        """Whole numbers from low (credit 0) to high (credit 1)."""
        if not low <= accept <= high or low == high:
            raise BadInput(f"A scale from {low} to {high} that accepts from {accept} is none.")
        credits = {str(score): (score - low) / (high - low) for score in range(low, high + 1)}
        return cls(credits, accept=credits[str(accept)], ordered=True)

    @property
    def whole(self) -> bool:
        """Whether they are a scale of which every whole number between the ends is one."""
        low = next(iter(self.credits))
        numbers = range(int(low), int(low) + len(self.credits)) if re.fullmatch(r"-?\d+", low) else ()
        return self.ordered and list(self.credits) == [str(number) for number in numbers]

    @property
    def told(self) -> list[str]:
        """The grades as a prompt lists them."""
        if self.whole:
            low, *_, high = self.credits
            return [f"a whole number from {low}, the worst, to {high}, the best"]
        return [f"{grade}: {self.meanings[grade]}" if grade in self.meanings else grade for grade in self.credits]

    def graded(self, grade: str, text: str) -> Grade:
        """The grade of this name, with its credit and the text that it was read from."""
        return Grade(grade, self.credits[grade], text)

    def accepts(self, grade: Grade) -> bool:
        """Whether the credit suffices."""
        return grade.credit >= self.accept

    @functools.cached_property
    def _by_words(self) -> dict[str, str]:
        return {_words(grade): grade for grade in self.credits}

    def named(self, text: str) -> str | None:
        """The grade that a text is, in whatever emphasis and case; of a scale to 10 also as "7/10"."""
        said = _words(text).rstrip(" .!;,")  # behind "Correct:" stands what decides
        if self.ordered:
            said = re.sub(rf"\s*(?:/|out of)\s*{re.escape(list(self._by_words)[-1])}$", "", said)
        return self._by_words.get(said)

    def leading(self, text: str) -> str | None:
        """The grade that a text is or begins with, before a comma or the like, when behind it no other one is named and this
        one not denied. One before ":" or "?" is none: in "Correct: no" and "Correct: Oslo" it is what is spoken of.
        """
        if (grade := self.named(text)) is not None:
            return grade
        head, _, rest = re.sub(r"[,.;!]\s| [–—-] ", "\n", _words(text), count=1).partition("\n")
        others = [words for words, other in self._by_words.items() if other != self.named(head)]
        counted = self.ordered and all(re.fullmatch(r"-?\d+", grade) for grade in self.credits)
        named = r"\d" if counted else rf"(?<!\w)(?:{'|'.join(map(re.escape, others))})(?!\w)"
        return None if re.search(named, rest) or _denied(head, rest) else self.named(head)


def read_grade(text: str, grades: Grades) -> str | None:
    """The grade that a reply in words ends with, None where it leaves that open.

    After its thinking and without quoted lines ("> ..."): what the last line says that begins with "Grade:" or the like, or
    stands below it; else the last line that is a grade and nothing else; else what the reply as a whole begins with ("Yes,
    it does."). Within sentences nothing is searched for: "not correct", "INCORRECT" and "no, because yes" hold words that
    are not meant. Two statements that follow each other and differ are none, nor is one that the next words deny ("Correct?
    No.", "Correct: no", "Correct, it is not.").
    """
    given = unified(after_thinking(text) or "").splitlines()
    lines = [words for line in given if not line.lstrip().startswith(">") and (words := _words(line))]
    stated: list[tuple[int, str | None]] = []
    for number, line in enumerate(lines):
        below = lines[number + 1] if number + 1 < len(lines) else ""
        if statement := _STATED.fullmatch(line):
            grade = grades.leading(statement["grade"] or below)
            if grade is not None or not statement["said"]:  # "the answer is" may speak of what it says
                stated.append((number, grade))
    alone = [(number, grade) for number, line in enumerate(lines) if (grade := grades.named(line)) is not None]
    if not (last := (stated or alone)[-2:]):
        return grades.leading(" ".join(lines))
    (before, other), (number, grade) = last[0], last[-1]
    if (number - before == 1 and other != grade) or _denied(grade or "", "".join(lines[number + 1 :][:1])):
        return None
    return grade


def _denied(grade: str, rest: str) -> bool:
    """Whether what follows a grade, in `_words`, takes it back: "no, ...", "it is not.". Behind a "no" it would affirm."""
    words = _words(grade)
    denial = rf"(?:no|nope|not|false|wrong|0)(?: ?[.,;:!?–—-]|$)|.*\b(?:not|\w+n t)(?: {re.escape(words)}\b|[.,;:!?]|$)"
    return not _NEGATIVE.search(words) and re.match(denial, rest) is not None


def _words(text: str) -> str:
    """Words in lower case, one blank apart, without emphasis, brackets and quotes."""
    return " ".join(_DRESSING.sub(" ", text).casefold().split())


BINARY = Grades(
    {"correct": 1.0, "incorrect": 0.0},
    {"correct": "it says what a right answer says", "incorrect": "it does not, or it says nothing that answers"},
)
FOUR = Grades(
    {"correct": 1.0, "partially_correct": 0.5, "incorrect": 0.0, "not_attempted": 0.0},
    {
        "correct": "it says all that a right answer says, and nothing that contradicts it",
        "partially_correct": "it says a part of that, and nothing that contradicts it",
        "incorrect": "it says something else, or contradicts itself",
        "not_attempted": "it does not answer: it declines, asks back, or is empty",
    },
)
