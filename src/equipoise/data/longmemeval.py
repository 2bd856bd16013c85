"""LongMemEval (Wu et al. 2024, arXiv:2410.10813; MIT): 500 questions, each with its own history, and the judge's prompts.

    items = read_longmemeval("longmemeval_s_cleaned.json")      # also _m and oracle; JSON lines will do
    items[0].history.questions[0]      evidence: the turns with has_answer, else the sessions that the record names
    judge_prompt(items[0].question, items[0].answer, "25:50")
                                       what the judge is asked, by type; `says_yes` reads the reply

A question whose id ends on _abs cannot be answered from its history: its gold is (), and `answer` explains why. The prompts
have the roles of the published ones in words of our own, so that scores compare in kind and not to the digit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from equipoise.core.errors import did_you_mean
from equipoise.core.options import closed
from equipoise.data.histories import History, MemoryQuestion, Session, Turn
from equipoise.data.history_rows import WEEKDAYS, Row, of_calendar, read_objects
from equipoise.data.text import after_thinking

QuestionType = Literal[
    "single-session-user",
    "single-session-assistant",
    "single-session-preference",
    "multi-session",
    "knowledge-update",
    "temporal-reasoning",
]
TYPES: tuple[str, ...] = get_args(QuestionType)
ABSTENTION = "abstention"

_TIME = re.compile(r"(\d{4})/(\d{2})/(\d{2}) \(([A-Z][a-z]{2})\) (\d{2}):(\d{2})", re.ASCII)
_VERDICT = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LongMemEvalItem:
    """A record: a history with one question. answer: as published; for an abstention the explanation, for a preference the
    rubric. abstention: whether the right answer is to say that the history does not tell.
    """

    history: History
    answer: str
    abstention: bool

    @property
    def question(self) -> MemoryQuestion:
        """The only one."""
        return self.history.questions[0]


def read_longmemeval(path: str | Path) -> list[LongMemEvalItem]:
    """All records of a file. Sessions are put in order of time. Raises BadInput, with file and record, for another form."""
    return from_rows(read_objects(path))


def from_rows(rows: Sequence[Row]) -> list[LongMemEvalItem]:
    """The same of objects that were read."""
    return [_item(row) for row in rows]


def is_longmemeval(row: Row) -> bool:
    """Whether an object has the form of a record."""
    return "haystack_sessions" in row.values


def _item(row: Row) -> LongMemEvalItem:
    name = row.text("question_id")
    row = Row(row.values, f"{row.place} ({name})")
    kind = row.text("question_type")
    if kind not in TYPES:
        row.refuse("question_type", "one of LongMemEval's types", f"{kind!r}. {did_you_mean(kind, TYPES)}")
    sessions, told = _sessions(row)
    abstention = name.endswith("_abs")
    answer = row.answer("answer")
    known = {session.id for session in sessions}
    named = [each for each in row.texts("answer_session_ids", "ids of sessions") if each in known]
    question = MemoryQuestion(
        id=name,
        text=row.text("question"),
        time=_time(row, "question_date", row.text("question_date")),
        gold=() if abstention else (answer,),
        evidence=tuple(told or dict.fromkeys(named)),
        kind=kind,
    )
    return LongMemEvalItem(History(name, sessions, (question,)), answer, abstention)


def _sessions(row: Row) -> tuple[tuple[Session, ...], list[str]]:
    """In order of time; and the turns that hold the answer. A session that stands twice gets an id of its own."""
    ids = row.texts("haystack_session_ids", "ids of sessions")
    dates = row.texts("haystack_dates", "dates")
    said = row.items("haystack_sessions", "sessions")
    if not len(ids) == len(dates) == len(said):
        row.refuse(
            "haystack_sessions",
            "as many as haystack_session_ids and haystack_dates",
            f"{len(said)}, {len(ids)} and {len(dates)}",
        )
    sessions, told, seen = [], [], Counter[str]()
    for number, (name, date, turns) in enumerate(zip(ids, dates, said, strict=True), start=1):
        seen[name] += 1
        name = name if seen[name] == 1 else f"{name}~{seen[name]}"
        if not isinstance(turns, list):
            row.refuse("haystack_sessions", "a list of lists of turns", f"session {number}, which is none")
        heard = []
        for place, turn in enumerate(row.each(turns, f"session {number}, turn"), start=1):
            heard.append(Turn(f"{name}:{place}", turn.text("role"), turn.text("content", empty=True)))
            if turn.values.get("has_answer") is True:
                told.append(heard[-1].id)
        sessions.append(Session(name, _time(row, "haystack_dates", date), tuple(heard)))
    return tuple(sorted(sessions, key=lambda session: session.time)), told


def _time(row: Row, field: str, text: str) -> datetime:
    found = _TIME.fullmatch(text)
    if found is None:
        row.refuse(field, 'a time such as "2023/04/10 (Mon) 17:50"', repr(text))
    year, month, day, hour, minute = (int(found[group]) for group in (1, 2, 3, 5, 6))
    time = of_calendar(row, field, text, (year, month, day), hour, minute)
    if found[4] != WEEKDAYS[time.weekday()]:
        row.refuse(field, f"a {WEEKDAYS[time.weekday()]}, which that date was", repr(text))
    return time


# --- the judge -------------------------------------------------------------------------------------------------------

_RIGHT = (
    "Say yes if the response states the correct answer, means the same, or has all the steps that lead to it. Say no if it "
    "has only a part of what the answer needs, or something else."
)
_ROLES = {
    "temporal-reasoning": f"{_RIGHT} A number of days, weeks or months that is off by one still counts as correct.",
    "knowledge-update": (
        "Say yes if the response gives the correct answer as what holds now; it may mention what held earlier beside it. "
        "Say no otherwise."
    ),
    "single-session-preference": (
        "In place of an answer there is a description of what a response that suits this user would be like. Say yes if the "
        "response remembers what the user told about themselves and makes good use of it; it need not meet every point. Say "
        "no otherwise."
    ),
    ABSTENTION: (
        "The question cannot be answered from what was said; the explanation tells why. Say yes if the response recognizes "
        "that: it says that the information is missing or incomplete, or that something else is known but not this. Say no "
        "if it answers as if it were known."
    ),
}
_LABELS = {"single-session-preference": "Description", ABSTENTION: "Explanation"}


def judge_prompt(question: MemoryQuestion, answer: str, response: str, *, abstention: bool = False) -> str:
    """What a judge is asked about a response: by the type of the question, or as an abstention. answer: the item's."""
    kind = ABSTENTION if abstention else question.kind
    return (
        f"You are shown a question about past conversations and a model's response. {_ROLES.get(kind, _RIGHT)}\n\n"
        f"Question: {question.text}\n{_LABELS.get(kind, 'Correct answer')}: {answer}\n"
        f"Response: {response}\n\nReply with yes or no and nothing else."
    )


@closed
def says_yes(reply: str, *, rule: Literal["strict", "official"] = "strict") -> bool | None:
    """A judge's verdict. strict: the reply begins with yes or no, after its thinking; None for another. official: whether
    "yes" occurs anywhere, as the released script has it, which takes "No, because yes ..." for a yes.
    """
    if rule == "official":
        return "yes" in reply.lower()
    found = _VERDICT.match(after_thinking(reply) or "")
    return None if found is None else found[1].lower() == "yes"
