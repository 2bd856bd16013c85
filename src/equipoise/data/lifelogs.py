"""Histories of conversations with questions, from files: LifeDialBench's schema, our own, and two more by `read_histories`.

LifeDialBench (arXiv:2604.11182): a history is

    {"history_name": ..., "chat_time": [...], "chat_history": [[{"speaker", "content"}, ...], ...], "qa": [{"question",
     "options": ["A. ..", .., "D. .."], "golden_option", "answer", "question_time", "question_type", "evidence_date",
     "timescale"}, ...]}

What its description leaves open is read so: times are ISO dates, or dates and times, without a zone. A chunk with a date
alone begins that day. A question with a date alone comes after the last chunk of that date, so it may use all of them.
evidence_date is one value, a list, or a range ("2024-05-01/2024-05-07", "2024-05-01 to 2024-05-07", {"start", "end"}); a
value with a time means the chunk that begins then, a date all chunks of that day. question_time is a date or date and time.
Anything else is a named error.

Our own form is for what people write themselves:

    {"name": "kitchen",
     "sessions": [{"id": "monday", "time": "2024-05-06 18:30", "turns": [{"speaker": "Ana", "text": ".."}]}],
     "questions": [{"text": "Who ...?", "time": "2024-05-07", "gold": ["Ana"], "evidence": ["monday"]}]}

Of sessions and turns the id may be left out (s1, s1:1), turns may be pairs [speaker, text]; of a question, all but the text.
A question may have options, of which `right` is the place of the right one, from 0; left out, it is the one option that is a
gold answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime, time
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.data import locomo, longmemeval
from equipoise.data.answers import matches, normalize
from equipoise.data.histories import History, MemoryQuestion, Session, Turn
from equipoise.data.history_rows import Row, is_date, read_objects
from equipoise.data.records import kind_of

QuestionKind = Literal["single_event", "event_detail", "multi_event", "time_query"]
KINDS: tuple[str, ...] = get_args(QuestionKind)
LETTERS = "ABCD"

_OPTION = re.compile(r"\s*([A-D])[.):]\s*(.*)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-D])[.)]?", re.ASCII)
_RANGE = re.compile(r"\s*(\S+(?: \d\S*)?)\s*(?:/|~| to )\s*(\S+(?: \d\S*)?)\s*")
_QUESTION_FIELDS = frozenset(
    (
        "question",
        "options",
        "golden_option",
        "answer",
        "question_time",
        "question_type",
        "evidence_date",
        "timescale",
        "id",
        "question_id",
    )
)


def read_histories(path: str | Path) -> list[History]:
    """All histories of a file or folder: LifeDialBench's, LoCoMo's or LongMemEval's, or our own form; one form a file.

    Raises BadInput, with file, record and remedy, for anything else.
    """
    rows = read_objects(path)
    form = _form(rows[0])
    for row in rows:
        if _form(row) != form:
            raise BadInput(f"{row.place} has the form of {_form(row)} and the first that of {form}; split the file.")
    return _READERS[form](rows)


def _form(row: Row) -> str:
    for form, has in _FORMS.items():
        if has(row):
            return form
    found = ", ".join(map(str, row.values)) or "no fields"
    raise BadInput(
        f"{row.place} is no history that is known (found: {found[:120]}). Give it name and sessions (a list of objects with "
        "time and turns), or LifeDialBench's chat_history, LoCoMo's conversation or LongMemEval's haystack_sessions."
    )


# --- LifeDialBench ---------------------------------------------------------------------------------------------------


def _lifedial(row: Row) -> History:
    name = row.text("history_name")
    row = Row(row.values, f"{row.place} ({name})")
    times, chunks = row.items("chat_time", "times"), row.items("chat_history", "chunks")
    if len(times) != len(chunks):
        row.refuse("chat_time", f"a time for each of the {len(chunks)} chunks", f"{len(times)}")
    sessions = tuple(
        Session(f"s{number}", Row({"chat_time": at}, f"{row.place}, chunk {number}").moment("chat_time"), turns)
        for number, (at, turns) in enumerate(zip(times, _chunks(row, chunks), strict=True), start=1)
    )
    asked = row.rows("qa", "question") if row.has("qa") else ()
    questions = tuple(_lifedial_question(each, f"{name}/{place}", sessions) for place, each in enumerate(asked))
    return History(name, sessions, questions)


def _chunks(row: Row, chunks: list[Any]) -> list[tuple[Turn, ...]]:
    found = []
    for number, chunk in enumerate(chunks, start=1):
        if not isinstance(chunk, list):
            row.refuse("chat_history", "a list of lists of turns", f"chunk {number}, which is {kind_of(chunk)}")
        turns = row.each(chunk, f"chunk {number}, turn")
        found.append(
            tuple(
                Turn(f"s{number}:{place}", turn.text("speaker"), turn.text("content"))
                for place, turn in enumerate(turns, start=1)
            )
        )
    return found


def _lifedial_question(row: Row, name: str, sessions: Sequence[Session]) -> MemoryQuestion:
    row.only(_QUESTION_FIELDS)
    kind = row.text("question_type")
    if kind not in KINDS:
        row.refuse("question_type", f"one of {', '.join(KINDS)}", f"{kind!r}. {did_you_mean(kind, KINDS)}")
    options = _options(row)
    letter = _LETTER.fullmatch(row.text("golden_option").strip())
    if letter is None:
        row.refuse("golden_option", "a letter from A to D", kind_of(row.value("golden_option")))
    right = LETTERS.index(letter[1])
    at = row.moment("question_time", whole=time.max)
    return MemoryQuestion(
        id=name,
        text=row.text("question"),
        time=at,
        gold=_golds(row, options, right),
        options=options,
        right=right,
        evidence=_dated(row, sessions) if row.has("evidence_date") else (),
        kind=kind,
        group=f"{at:%Y-%m-%d}",
    )


def _options(row: Row) -> tuple[str, ...]:
    """The four texts without their letters, where they have them; letters that are wrong, or only on some, are refused."""
    given = row.texts("options", "four texts")
    if len(given) != len(LETTERS):
        row.refuse("options", "four texts", f"{len(given)}")
    found = [_OPTION.fullmatch(option) for option in given]
    placed = [each is not None and each[1] == letter for each, letter in zip(found, LETTERS, strict=True)]
    if not any(placed):
        return tuple(given)
    if not all(placed):
        row.refuse("options", "A, B, C, D before the four, or no letters", repr(given[placed.index(False)]))
    options = tuple(each[2].strip() for each in found if each)
    if not all(options):
        row.refuse("options", "a text behind each letter", repr(given[options.index("")]))
    return options


def _golds(row: Row, options: Sequence[str], right: int) -> tuple[str, ...]:
    """The right option's text, and the answer where it is worded in another way."""
    gold = options[right]
    if not row.has("answer"):
        return (gold,)
    answer = row.answer("answer").strip()
    letter = _OPTION.fullmatch(answer)
    text = letter[2].strip() if letter and letter[2].strip() else answer
    # an option's own text may begin as a letter does ("B. Jones"): the whole answer is looked for before its letter counts
    meant = {place for place, option in enumerate(options) if normalize(option) == normalize(answer)}
    if not meant and letter:
        meant = {place for place, option in enumerate(options) if normalize(option) == normalize(text)}
        meant |= {LETTERS.index(letter[1])}
    if alone := _LETTER.fullmatch(answer):
        meant |= {LETTERS.index(alone[1])}
    if meant and right not in meant:
        row.refuse("answer", f"the text of option {LETTERS[right]}, which golden_option names", repr(answer))
    return (gold,) if meant else (gold, text)


def _dated(row: Row, sessions: Sequence[Session]) -> tuple[str, ...]:
    value = row.value("evidence_date")
    values = value if isinstance(value, list) else [value]
    found: dict[str, None] = {}
    for each in values:
        first, last = _span(row, each)
        inside = [session.id for session in sessions if first <= session.time <= last]
        if not inside:
            row.refuse("evidence_date", "a day, or a time, of a chunk of this history", repr(each))
        found |= dict.fromkeys(inside)
    return tuple(found)


def _span(row: Row, value: Any) -> tuple[datetime, datetime]:
    """The first and the last moment that a value covers."""
    if isinstance(value, dict) and value.keys() == {"start", "end"}:
        ends = value["start"], value["end"]
    elif isinstance(value, str) and (found := _RANGE.fullmatch(value)) and not is_date(value):
        ends = found[1], found[2]
    else:
        ends = value, value
    for end in ends:
        if not isinstance(end, str):
            row.refuse("evidence_date", "ISO dates: one, a list, or a range as {start, end}", kind_of(end))
    first, last = row.moment("evidence_date", ends[0]), row.moment("evidence_date", ends[1], whole=time.max)
    if last < first:
        row.refuse("evidence_date", "a range that ends after it begins", repr(value))
    return first, last


def lifedial_record(history: History, timescale: str = "day") -> dict[str, Any]:
    """A history in LifeDialBench's schema. What is read back is equal, but for ids and times of turns, which it has not.

    Evidence becomes the times of its sessions. Raises BadInput for a question without four options, time or known kind.
    """
    times = {session.id: session.time for session in history.sessions}
    times |= {turn.id: session.time for session in history.sessions for turn in session.turns}
    return {
        "history_name": history.name,
        "chat_time": [_iso(session.time) for session in history.sessions],
        "chat_history": [
            [{"speaker": turn.speaker, "content": turn.text} for turn in session.turns] for session in history.sessions
        ],
        "qa": [_lifedial_row(question, times, timescale) for question in history.questions],
    }


def _lifedial_row(question: MemoryQuestion, times: dict[str, datetime], timescale: str) -> dict[str, Any]:
    if len(question.options) != len(LETTERS) or question.right is None or question.time is None:
        raise BadInput(f"question {question.id!r} has not four options, a right one and a time, as LifeDialBench asks.")
    if question.kind not in KINDS:
        raise BadInput(f"question {question.id!r} is of kind {question.kind!r}. {did_you_mean(question.kind, KINDS)}")
    dated = [_iso(at) for at in sorted({times[name] for name in question.evidence})]
    return {
        "question": question.text,
        "options": [f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=True)],
        "golden_option": LETTERS[question.right],
        "answer": question.options[question.right],
        "question_time": _iso(question.time),
        "question_type": question.kind,
        "evidence_date": dated[0] if len(dated) == 1 else dated,
        "timescale": timescale,
    }


def _iso(at: datetime) -> str:
    return f"{at:%Y-%m-%d}" if at.time() == time.max else at.isoformat(" ")


# --- our own form ----------------------------------------------------------------------------------------------------


def _own(row: Row) -> History:
    row.only({"name", "sessions", "questions"})
    name = row.text("name")
    row = Row(row.values, f"{row.place} ({name})")
    sessions = tuple(_own_session(each, number) for number, each in enumerate(row.rows("sessions", "session"), start=1))
    asked = row.rows("questions", "question") if row.has("questions") else ()
    return History(name, sessions, tuple(_own_question(each, f"{name}/{n}") for n, each in enumerate(asked)))


def _own_session(row: Row, number: int) -> Session:
    row.only({"id", "time", "turns"})
    name = row.text("id") if row.has("id") else f"s{number}"
    turns = []
    for place, value in enumerate(row.items("turns", "turns"), start=1):
        pair = isinstance(value, list) and len(value) == 2
        fields = dict(zip(("speaker", "text"), value, strict=True)) if pair else value
        (turn,) = row.each([fields], "turn")
        turn = Row(turn.values, f"{row.place}, turn {place}")
        turn.only({"id", "speaker", "text", "time"})
        turns.append(
            Turn(
                turn.text("id") if turn.has("id") else f"{name}:{place}",
                turn.text("speaker"),
                turn.text("text"),
                turn.moment("time") if turn.has("time") else None,
            )
        )
    return Session(name, row.moment("time"), tuple(turns))


def _own_question(row: Row, name: str) -> MemoryQuestion:
    row.only({"id", "text", "time", "gold", "options", "right", "evidence", "kind", "group"})
    right = row.values.get("right")
    if right is not None and (isinstance(right, bool) or not isinstance(right, int)):
        row.refuse("right", "the place of the right option, from 0", kind_of(right))
    gold = row.values.get("gold")
    options = tuple(row.texts("options")) if row.has("options") else ()
    golds = (row.answer("gold"),) if row.has("gold") and not isinstance(gold, list) else ()
    golds = tuple(row.texts("gold")) if isinstance(gold, list) else golds
    if right is None and options:
        right = _gold_option(row, options, golds)
    if not golds and right is not None and 0 <= right < len(options):
        golds = (options[right],)
    return MemoryQuestion(
        id=row.text("id") if row.has("id") else name,
        text=row.text("text"),
        time=row.moment("time", whole=time.max) if row.has("time") else None,
        gold=golds,
        options=options,
        right=right,
        evidence=tuple(row.texts("evidence", "ids of turns or sessions")) if row.has("evidence") else (),
        kind=row.text("kind") if row.has("kind") else "",
        group=row.text("group") if row.has("group") else "",
    )


def _gold_option(row: Row, options: Sequence[str], golds: Sequence[str]) -> int:
    """The place of the one option that is a gold answer."""
    found = [place for place, option in enumerate(options) if matches(option, golds)]
    if len(found) != 1:
        row.refuse(
            "right", "the place of the right option, from 0", f"none, and {len(found)} options that are a gold answer"
        )
    return found[0]


_FORMS: MappingProxyType[str, Callable[[Row], bool]] = MappingProxyType(
    {
        "LifeDialBench": lambda row: "chat_history" in row.values,
        "LongMemEval": longmemeval.is_longmemeval,
        "LoCoMo": locomo.is_locomo,
        "our own": lambda row: "sessions" in row.values,
    }
)
_READERS: MappingProxyType[str, Callable[[Sequence[Row]], list[History]]] = MappingProxyType(
    {
        "LifeDialBench": lambda rows: [_lifedial(row) for row in rows],
        "LongMemEval": lambda rows: [item.history for item in longmemeval.from_rows(rows)],
        "LoCoMo": lambda rows: list(locomo.from_rows(rows).histories),
        "our own": lambda rows: [_own(row) for row in rows],
    }
)
