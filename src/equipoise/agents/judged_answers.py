"""Which answers are right: by rule where a rule can tell, by chat models where they are named, with planted answers beside.

A chosen option is right or wrong. Words count as right when they hold those of a right answer next to each other
(`data.answers.contains`), or by the first of the graders, where there are some; what has no right answer, by declining. No
answer at all is wrong, and no grader is asked about it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from equipoise.chat.grade import ChatGrader, Planted, RuleGrader, Submission, grade, plant
from equipoise.core.errors import BadInput
from equipoise.data.answers import contains

if TYPE_CHECKING:
    from collections.abc import Iterable

    from equipoise.agents.lifedialbench import AskedQuestion, MemoryAnswers
    from equipoise.chat.client import Chat
    from equipoise.chat.grading import Agreement, GraderReport, Grading
    from equipoise.data.histories import History, MemoryQuestion

PLANTED = 25  # right answers, and as many wrong ones, and both again at more length
_DECLINES = re.compile(
    r"(?i)\b(?:not (?:mentioned|known|stated|said|specified|available)|no (?:information|mention|answer)|unknown|"
    r"(?:do(?:es)? not|don['’]t|doesn['’]t) (?:know|say|tell|mention)|can(?:not|['’]t) be (?:answered|known|determined))\b"
)


def declines(text: str) -> bool:
    """Whether an answer says that it is not known."""
    return _DECLINES.search(text) is not None


def is_open(question: MemoryQuestion) -> bool:
    """Whether words are asked for of which a right form is known: what a grader can be asked about."""
    return question.right is None and bool(question.gold)


@dataclass(frozen=True, eq=False)
class Judgements:
    """Credits of answers. grading: what graders came to; None where none were asked."""

    credit: Mapping[tuple[str, str, str], float]
    grading: Grading | None

    def right(self, question: MemoryQuestion, row: AskedQuestion) -> float:
        """In [0, 1]; nan where the grader gave no grade that can be read."""
        if question.right is not None:
            return float(row.choice == question.right)
        if not question.gold:
            return float(declines(row.text))
        if not row.text.strip():
            return 0.0
        if self.grading is None:
            return float(contains(row.text, question.gold))
        return self.credit[row.history, row.question, row.text]

    @property
    def reports(self) -> tuple[GraderReport, ...]:
        """Of each grader, that of the rule last; () where none were asked."""
        return () if self.grading is None else self.grading.reports

    @property
    def agreement(self) -> tuple[Agreement, ...]:
        """Of each two graders."""
        return () if self.grading is None else self.grading.agreement


def planted(histories: Sequence[History], groups: Mapping[tuple[str, str], str], *, seed: int) -> list[Planted]:
    """Answers that are known to be right or wrong, short and at more length; none where no two questions differ."""
    items = [
        Submission(f"{history.name}/{question.id}", question.text, "", question.gold, groups[history.name, question.id])
        for history in histories
        for question in history.questions
        if is_open(question)
    ]
    try:
        return plant(items, min(PLANTED, len(items)), seed=seed, padded=True)
    except BadInput:  # too few, or all have one right answer
        return []


def judge(
    answers: Iterable[MemoryAnswers],
    chats: Sequence[Chat],
    known: Sequence[Planted],
    groups: Mapping[tuple[str, str], str],
    *,
    seed: int,
) -> Judgements:
    """Judge all answers; equal answers to one question are judged once. groups: the cluster of (history, question).

    Raises WorkFailed for a grader that cannot be reached, or gives no grade at all.
    """
    asked: dict[tuple[str, str, str], Submission] = {}
    for each in answers if chats else ():
        for question, row in zip(each.questions, each.rows, strict=True):
            if is_open(question) and row.text.strip():
                key = (row.history, row.question, row.text)
                name = f"{row.history}/{row.question}/{hashlib.sha256(row.text.encode()).hexdigest()[:16]}"
                asked[key] = Submission(name, question.text, row.text, question.gold, groups[key[:2]])
    if not asked:
        return Judgements({}, None)
    graders = [ChatGrader(chat) for chat in chats]
    grading = grade(list(asked.values()), [*graders, RuleGrader("contains")], planted=known, seed=seed)
    first = grading.grades[graders[0].name]
    return Judgements({key: first[each.id].credit for key, each in asked.items()}, grading)
