"""LoCoMo (Maharana et al. 2024, arXiv:2402.17753): ten long conversations of two people, 1,986 questions, and its metrics.

    data = read_locomo("locomo10.json")
    data.histories[0].questions[37]      id "conv-26/37", kind "multi-hop", evidence ("D8:6", "D9:17")
    data.cleaned                         Cleaned(split=4, respelled=2, unknown=3, repeated=1)

Read are the published list of conversations, and the form of one file a conversation. The data are CC BY-NC 4.0: bring your
own copy. Questions are keyed by conversation and place, because 24 of them share 12 texts. Category 5 is to be declined and
has no gold here; scored are mostly the 1,540 of categories 1 to 4.

Metrics, after the released evaluation: `f1` (words in lower case, without punctuation, articles and "and", stemmed by
Porter; by category, see there), `bleu_1`, and `abstains` for category 5.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from types import MappingProxyType

from equipoise.core.errors import BadInput, MissingExtra, did_you_mean
from equipoise.core.files import read_regular
from equipoise.data.histories import History, MemoryQuestion, Session, Turn
from equipoise.data.history_rows import MONTHS, Row, of_calendar, read_objects
from equipoise.data.records import kind_of

# By the ids of the file. The paper lists its types in another order, and several harnesses name them by that one.
CATEGORIES = MappingProxyType({1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"})
SCORED = (1, 2, 3, 4)
# The conversations in the order of the published file, which third-party lists count from 0 in their ids.
SAMPLES = tuple(f"conv-{number}" for number in (26, 30, 41, 42, 43, 44, 47, 48, 49, 50))

_TIME = re.compile(r"(\d{1,2}):(\d{2}) (am|pm) on (\d{1,2}) ([A-Z][a-z]+), (\d{4})", re.ASCII)
_SESSION = re.compile(r"session_(\d+)", re.ASCII)
_EVIDENCE = re.compile(r"D:?(\d+):(\d+)", re.ASCII)
_PUBLISHED_ID = re.compile(r"locomo_(\d+)_qa(\d+)", re.ASCII)
_CALLED = re.compile(r"(?:\bNOT\s+|N['’]T\s+)?\bCORRECT\b|\bINCORRECT\b|\bWRONG\b")
_DROPPED = re.compile(r"\b(?:a|an|the|and)\b")
_DECLINED = ("no information available", "not mentioned")


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was done to evidence that names no turn as it is written: how often.

    split: one text that named several turns. respelled: D:11:26 for D11:26, D30:05 for D30:5. unknown: named no turn of the
    conversation, and was left out. repeated: named twice for one question.
    """

    split: int = 0
    respelled: int = 0
    unknown: int = 0
    repeated: int = 0

    def __add__(self, other: Cleaned) -> Cleaned:
        return Cleaned(
            self.split + other.split,
            self.respelled + other.respelled,
            self.unknown + other.unknown,
            self.repeated + other.repeated,
        )


@dataclass(frozen=True, slots=True)
class Locomo:
    """Conversations, and what had to be cleaned of their evidence."""

    histories: tuple[History, ...]
    cleaned: Cleaned


def read_locomo(path: str | Path) -> Locomo:
    """All conversations of a file, or of a folder with a file for each.

    Sessions stand in the order of their numbers; turns are named by dia_id and hold an image's caption in their text.
    Raises BadInput, with file and record, for what is not of the published form.
    """
    return from_rows(read_objects(path))


def from_rows(rows: Sequence[Row]) -> Locomo:
    """The same of objects that were read."""
    read = [_conversation(row) for row in rows]
    names = Counter(history.name for history, _ in read)
    if twice := [name for name, count in names.items() if count > 1]:
        raise BadInput(f"{rows[0].place}: two conversations are named {twice[0]!r}; give each a sample_id of its own.")
    return Locomo(tuple(history for history, _ in read), sum((cleaned for _, cleaned in read), Cleaned()))


def is_locomo(row: Row) -> bool:
    """Whether an object has the form of a conversation."""
    return isinstance(row.values.get("conversation"), dict) or isinstance(row.values.get("session_1"), list)


def category_of(question: MemoryQuestion) -> int:
    """The category, 1 to 5. Raises BadInput for a question that has another kind."""
    for number, name in CATEGORIES.items():
        if question.kind == name:
            return number
    raise BadInput(f"question {question.id!r} is {question.kind!r}. {did_you_mean(question.kind, CATEGORIES.values())}")


def read_without(path: str | Path) -> frozenset[str]:
    """Ids of questions to leave out, such as those whose gold is known to be wrong.

    Either a text with an id a line (conv-26/23; what follows # is a remark), or a JSON list of objects with question_id
    ("locomo_0_qa23", conversation and question counted from 0) and error_type, as the public audit of the answers has them
    (github.com/dial481/locomo-audit, audit/errors_conv_N.json, CC BY-NC 4.0: 99 of 1,540); WRONG_CITATION there says that
    the answer is right and is not taken. Raises BadInput for a line that is no id.
    """
    path = Path(path)
    try:
        text = read_regular(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read as a list of ids ({error}).") from None
    if text.lstrip().startswith("["):
        return frozenset(_audited(path, text))
    found = set()
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.split("#")[0].strip()
        if name and not re.fullmatch(r"\S+/\d+", name):
            raise BadInput(f"{path}:{number}: {name!r} is no id; write CONVERSATION/PLACE, such as conv-26/23.")
        found |= {name} if name else set()
    return frozenset(found)


def _audited(path: Path, text: str) -> Iterable[str]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({error}).") from None
    for row in Row({}, str(path)).each(rows, "record"):
        name = row.text("question_id")
        known = _PUBLISHED_ID.fullmatch(name)
        if known is None or int(known[1]) >= len(SAMPLES):
            row.refuse("question_id", "locomo_N_qaM with N from 0 to 9", repr(name))
        if row.text("error_type") != "WRONG_CITATION":
            yield f"{SAMPLES[int(known[1])]}/{known[2]}"


# --- reading ---------------------------------------------------------------------------------------------------------


def _conversation(row: Row) -> tuple[History, Cleaned]:
    name = row.text("sample_id") if row.has("sample_id") or not row.stem else row.stem
    values = row.values.get("conversation", row.values)
    if not isinstance(values, dict):
        row.refuse("conversation", "an object with session_1, session_1_date_time, ...", kind_of(values))
    held = Row(values, f"{row.place} ({name})")
    numbers = sorted(int(found[1]) for key in values if (found := _SESSION.fullmatch(key)))
    sessions = tuple(_session(held, number) for number in numbers if held.items(f"session_{number}", "turns"))
    known = {turn.id for session in sessions for turn in session.turns}
    questions, cleaned = [], Cleaned()
    for place, asked in enumerate(row.rows("qa", "question")):
        evidence, done = _evidence(asked, known)
        questions.append(_question(asked, name, place, evidence))
        cleaned += done
    return History(name, sessions, tuple(questions)), cleaned


def _session(row: Row, number: int) -> Session:
    field = f"session_{number}_date_time"
    time = parse_time(row, field)
    turns = tuple(
        Turn(turn.text("dia_id"), turn.text("speaker"), _said(turn))
        for turn in row.rows(f"session_{number}", f"session {number}, turn")
    )
    return Session(f"session_{number}", time, turns)


def _said(turn: Row) -> str:
    text = turn.text("text", empty=turn.has("blip_caption"))
    if not turn.has("blip_caption"):
        return text
    return f"{text} (image description: {turn.text('blip_caption')})".lstrip()


def parse_time(row: Row, field: str) -> datetime:
    """Such as "1:56 pm on 8 May, 2023". Raises BadInput for any other form."""
    text = row.text(field)
    found = _TIME.fullmatch(text)
    if found is None or found[5] not in MONTHS or not 1 <= int(found[1]) <= 12:
        row.refuse(field, 'a time such as "1:56 pm on 8 May, 2023"', repr(text))
    hour = int(found[1]) % 12 + 12 * (found[3] == "pm")
    date = int(found[6]), MONTHS.index(found[5]) + 1, int(found[4])
    return of_calendar(row, field, text, date, hour, int(found[2]))


def _question(row: Row, name: str, place: int, evidence: tuple[str, ...]) -> MemoryQuestion:
    category = row.value("category")
    if isinstance(category, bool) or category not in CATEGORIES:
        row.refuse("category", "a number from 1 to 5", kind_of(category))
    return MemoryQuestion(
        id=f"{name}/{place}",
        text=row.text("question"),
        gold=(row.answer("answer"),) if category in SCORED else (),
        evidence=evidence,
        kind=CATEGORIES[category],
        group=name,
    )


def _evidence(row: Row, known: set[str]) -> tuple[tuple[str, ...], Cleaned]:
    """Turns that are there, each once, in the order that they are named in."""
    ids: list[str] = []
    split = respelled = unknown = repeated = 0
    for text in row.texts("evidence", "ids of turns"):
        if text in known:
            named = [text]
        else:
            found = list(_EVIDENCE.finditer(text))
            named = [f"D{int(each[1])}:{int(each[2])}" for each in found]
            split += len(named) > 1
            respelled += sum(each[0] != name and name in known for each, name in zip(found, named, strict=True))
            unknown += not named or any(name not in known for name in named)
        for name in named:
            repeated += name in ids
            if name in known and name not in ids:
                ids.append(name)
    return tuple(ids), Cleaned(split, respelled, unknown, repeated)


# --- metrics ---------------------------------------------------------------------------------------------------------


@cache
def porter() -> Callable[[str], str]:
    """Porter's stemmer, NLTK's. Raises MissingExtra without it."""
    try:
        from nltk.stem import PorterStemmer
    except ImportError as error:
        raise MissingExtra("LoCoMo's F1 stems by NLTK: pip install 'equipoise[retrieval]'.") from error
    return cache(PorterStemmer().stem)


def tokens(text: str) -> list[str]:
    """Stemmed words as the released evaluation counts them."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return [porter()(word) for word in _DROPPED.sub(" ", text).split()]


def token_f1(answer: str, gold: str) -> float:
    """F1 of the multisets of `tokens`, in [0, 1]; 0 where one of both has none."""
    found, wanted = Counter(tokens(answer)), Counter(tokens(gold))
    shared = (found & wanted).total()
    return 2 * shared / (found.total() + wanted.total()) if shared else 0.0


def f1(answer: str, gold: str, category: int) -> float:
    """F1 as each category has it, in [0, 1]; nan for category 5, which `abstains` scores.

    1: both are split on commas; the mean over the parts of the gold of the best F1 with a part of the answer. 3: of the gold
    what stands before the first semicolon. Raises BadInput for a category that is none.
    """
    match category:
        case 1:
            parts = [part for part in gold.split(",") if part.strip()] or [gold]
            said = answer.split(",")
            return sum(max(token_f1(each, part) for each in said) for part in parts) / len(parts)
        case 2 | 4:
            return token_f1(answer, gold)
        case 3:
            return token_f1(answer, gold.split(";")[0])
        case 5:
            return math.nan
        case _:
            raise BadInput(f"There is no category {category!r} in LoCoMo: use 1 to 5.")


def bleu_1(answer: str, gold: str) -> float:
    """Share of the answer's words that the gold has too (each as often as there), times exp(1 - gold/answer) for one that is
    shorter; in [0, 1], 0 for no words. Words in lower case, without punctuation; not stemmed (Papineni et al. 2002, n = 1).
    """
    found, wanted = (_plain(text) for text in (answer, gold))
    if not found or not wanted:
        return 0.0
    precision = (Counter(found) & Counter(wanted)).total() / len(found)
    return precision * min(1.0, math.exp(1 - len(wanted) / len(found)))


def abstains(answer: str) -> bool:
    """Whether an answer declines as category 5 asks for: it says "no information available" or "not mentioned"."""
    said = " ".join(answer.lower().split())
    return any(phrase in said for phrase in _DECLINED)


def correct(reply: str) -> bool | None:
    """A judge's verdict, the word CORRECT or INCORRECT (also WRONG) in its reply; None for neither and for both."""
    said = {word == "CORRECT" for word in _CALLED.findall(reply.upper())}
    return said.pop() if len(said) == 1 else None


def judge_prompt(question: MemoryQuestion, answer: str) -> str:
    """What a judge is asked about an answer of categories 1 to 4; the reply is read by `correct`."""
    return (
        "A question about a long conversation was answered. Compare the answer with the gold answer. It is right if it "
        "has the gold's key information: wording and length are free, and a date may be written in any form or in words "
        "that mean the same day. It is wrong if that information is missing or contradicted.\n\n"
        f"Question: {question.text}\nGold answer: {', or '.join(question.gold)}\nAnswer: {answer}\n\n"
        "Reply with one word, CORRECT or INCORRECT."
    )


def _plain(text: str) -> list[str]:
    return "".join(character for character in text.lower() if character not in string.punctuation).split()
