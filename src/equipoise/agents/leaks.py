"""What gives the answer of a multiple-choice question away, in made data and in anybody's.

    report = lint(history)
    report.leaks        Leak("Ana/3", "future option", "'at 11' is first said on 2024-05-09, after the question"), ...
    report.longest      how often the longest option is the right one: a guess that reads nothing

Of a question, by what is written: an option, or the evidence, that is known only after the question; a date or a clock time
in its wording, which names the place to look at; an answer that stands in it. Of all questions together: whether length
tells the right option. An option that is worded in another way than it was said is not found here.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable, Sequence
from datetime import datetime

from equipoise.agents.compose_result import Leak, LeakKind, LeakReport
from equipoise.core.agreement import share
from equipoise.core.shares import Share
from equipoise.data.answers import contains, normalize
from equipoise.data.histories import History, MemoryQuestion
from equipoise.data.history_rows import MONTHS

_MONTH = "|".join((*MONTHS, *(name[:3] for name in MONTHS if name != "May")))
_WEEKDAY = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
# "may" and "march" are words; a month counts beside a number.
_DATE = (
    r"\d{4}-\d{2}-\d{2}",
    r"\d{1,2}[./]\d{1,2}[./]\d{2,4}",
    rf"(?:{_WEEKDAY}),?\s+(?=(?:{_MONTH})\b|\d)",
    rf"\d{{1,2}}(?:st|nd|rd|th)?(?:\s+of)?\s+(?:{_MONTH})\.?(?:,?\s+\d{{4}})?",
    rf"(?:{_MONTH})\.?\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s+\d{{4}})?",
    rf"(?:{_MONTH})\.?,?\s+\d{{4}}",
)
_CLOCK = (r"\d{1,2}[:.]\d{2}(?::\d{2})?\s*(?:[ap]\.?m\b\.?)?", r"\d{1,2}\s*[ap]\.?m\b\.?", r"\d{1,2}\s+o['’]clock")
_DATED = re.compile(rf"(?<![\w.:-])(?:{'|'.join((*_DATE, *_CLOCK))})(?![\w:-])", re.IGNORECASE)
_LED = re.compile(rf"\s*\b(?:on|at|in|by|from|since|until|around|about)?\s*(?:{_DATED.pattern})", re.IGNORECASE)


def dated(text: str) -> str:
    """The first date or clock time in a text; "" for none."""
    found = _DATED.search(text)
    return found[0] if found else ""


def without_dates(text: str) -> str:
    """The text without its dates and clock times, and without the words that led to them (on, at, in ...)."""
    bare = _LED.sub("", text)
    return re.sub(r"\s+([?.,!])", r"\1", " ".join(bare.split())).strip(" ,")


def lint(*histories: History) -> LeakReport:
    """Look through all questions that have options; others are asked whether they are dated, or hold their answer."""
    leaks = []
    for history in histories:
        heard = _Heard(history)
        leaks += [leak for question in history.questions for leak in _leaks(heard, question)]
    asked = [
        (history, question) for history in histories for question in history.questions if question.right is not None
    ]
    chance = sum(1 / len(question.options) for _, question in asked) / len(asked) if asked else float("nan")
    return LeakReport(
        questions=sum(len(history.questions) for history in histories),
        leaks=tuple(leaks),
        chance=chance,
        longest=_guessed(asked, max),
        shortest=_guessed(asked, min),
    )


def _guessed(asked: Sequence[tuple[History, MemoryQuestion]], extreme: Callable[[Sequence[int]], int]) -> Share:
    credits, clusters = [], []
    for history, question in asked:
        sizes = [len(option) for option in question.options]
        if sizes.count(extreme(sizes)) == 1:
            credits.append(float(sizes.index(extreme(sizes)) == question.right))
            clusters.append(f"{history.name}/{question.group or question.id}")
    return share(credits, clusters)


class _Heard:
    """What was said of a history, and when it was first said."""

    def __init__(self, history: History) -> None:
        self.times = {session.id: session.time for session in history.sessions}
        self.times |= {turn.id: turn.time or session.time for session in history.sessions for turn in session.turns}
        self._sessions = [session.time for session in history.sessions]
        said = [f" {normalize(' '.join(turn.text for turn in session.turns))} " for session in history.sessions]
        self._ends = list(itertools.accumulate(len(text) + 1 for text in said))
        self._text = "|".join(said)  # which no normalized text has

    def first(self, words: str) -> datetime | None:
        """When these words first stood next to each other in a session; None for never."""
        place = self._text.find(f" {normalize(words)} ")
        return None if place < 0 else self._sessions[bisect.bisect_right(self._ends, place)]


def _leaks(heard: _Heard, question: MemoryQuestion) -> list[Leak]:
    found: list[tuple[LeakKind, str]] = []
    if when := dated(question.text):
        found.append(("dated question", f"its wording names {when!r}"))
    stands = [gold for gold in question.gold if len(normalize(gold)) > 1 and contains(question.text, gold)]
    if stands:
        found.append(("answer in question", f"its wording holds the answer {stands[0]!r}"))
    if question.time is not None:
        found += _from_the_future(heard, question, question.time)
    return [Leak(question.id, kind, text) for kind, text in found]


def _from_the_future(heard: _Heard, question: MemoryQuestion, asked: datetime) -> list[tuple[LeakKind, str]]:
    found: list[tuple[LeakKind, str]] = [
        ("future evidence", f"its evidence {name!r} is of {heard.times[name]}, after the question of {asked}")
        for name in question.evidence
        if heard.times[name] > asked
    ]
    for place, option in enumerate(question.options):
        if place == question.right or not normalize(option):
            continue
        first = heard.first(option)
        if first is not None and first > asked:
            found.append(("future option", f"{option!r} is first said on {first}, after the question of {asked}"))
    return found
