"""A year of conversations out of one persona, from the top down, as LifeMem was made (LifeDialBench, arXiv:2604.11182).

    year -> months -> weeks -> days -> events -> dialogues

    ALLOCATE    split a parent's text into dated records, one for each part of the calendar: what has a fixed date stays
                there, every part lies inside its parent
    ENRICH      expand one record, given its neighbours, without a plan that reaches beyond it
    GATE        after every step: is a child consistent with its parent, and is a record too much like another (of its five
                most similar ones)? What is flagged is written anew; what stays flagged is mended by a rule, and counted

Who writes is a `Writer`: a chat model (`compose_chat`) or templates (`compose_templates`). Nothing here knows either. Months
and weeks are those of the calendar, cut where a parent ends, so that a year has 12 months and 62 or 63 parts of weeks.

Differs from the paper: persons check there what stays flagged and revise it; here a rule does (see `mend`), and both shares
are reported. The five most similar records are found by cosine of words weighted by rarity. The other way that the paper
has, from the bottom up out of videos (EgoMem), is not here.
"""

from __future__ import annotations

import calendar
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise.agents.compose_result import Gate
from equipoise.core.errors import BadInput
from equipoise.core.options import check_fields, closed
from equipoise.data.answers import contains, normalize
from equipoise.data.history_rows import MONTHS, Row, read_objects

Level = Literal["year", "month", "week", "day"]
LEVELS: tuple[Level, ...] = ("year", "month", "week", "day")
SIMILAR = 5  # records that are looked at for repetition
REPEATED = 0.9  # cosine from which a record repeats another

_ISO = re.compile(r"\b(\d{4})-(\d{2})-(\d{2})\b", re.ASCII)
_NAMES = "|".join(MONTHS)
_DAY_MONTH = re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_NAMES})\b", re.IGNORECASE)
_MONTH_DAY = re.compile(rf"\b({_NAMES}) (\d{{1,2}})(?:st|nd|rd|th)?\b(?!\s*\d)", re.IGNORECASE)
_BEYOND = re.compile(r"\b(?:next (?:week|month|year)|in the coming (?:weeks|months)|later this (?:month|year))\b", re.I)


@dataclass(frozen=True, slots=True)
class Fixed:
    """What happens on a date that no step may move."""

    day: date
    text: str


@dataclass(frozen=True, slots=True)
class Acquaintance:
    """Somebody of the persona's network."""

    name: str
    relation: str = ""


@dataclass(frozen=True, slots=True)
class Persona:
    """Whose life it is. about: a sentence or more. lines: what runs through the year (work, a hobby, a plan)."""

    name: str
    about: str = ""
    people: tuple[Acquaintance, ...] = ()
    lines: tuple[str, ...] = ()
    fixed: tuple[Fixed, ...] = ()


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of the calendar, both ends counted in, with what is said of it. fixed: what has a date in it."""

    level: Level
    start: date
    end: date
    text: str
    fixed: tuple[Fixed, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        """Such as "week 2024-05-06 to 2024-05-12"."""
        span = f"{self.start}" if self.start == self.end else f"{self.start} to {self.end}"
        return f"{self.level} {span}"


@dataclass(frozen=True, slots=True)
class Dated:
    """A record as a writer hands it in: not yet known to lie inside its parent."""

    start: date
    end: date
    text: str


@dataclass(frozen=True, slots=True)
class Detail:
    """A thing that is known of an event. slot: what it is a value of ("colour of the fence"); asked with `ask`."""

    slot: str
    value: str
    ask: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """What happens at one time in one place. what: in the past tense, as said after the person's name ("planted beans").

    people: who is there beside the persona. routine: what happens every day, and is not asked about.
    """

    day: date
    start: time
    end: time
    place: str
    people: tuple[str, ...]
    what: str
    details: tuple[Detail, ...] = ()
    routine: bool = False

    @property
    def begins(self) -> datetime:
        """The moment of its first word."""
        return datetime.combine(self.day, self.start)

    @property
    def text(self) -> str:
        """All of it but the times, for comparisons."""
        known = "; ".join(f"{detail.slot}: {detail.value}" for detail in self.details)
        return f"{self.what} ({self.place}; {', '.join(self.people)}) {known}".strip()


Line = tuple[str, str]  # who speaks, and the words


@dataclass(frozen=True, slots=True)
class Spoken:
    """An event and its dialogue."""

    event: Event
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a record is flagged. kind: inconsistent with its parent, repeated, or unusable as it was handed in."""

    kind: Literal["inconsistent", "repeated", "unusable"]
    text: str

    def __post_init__(self) -> None:
        check_fields(self)


Problems = Sequence[Sequence[Problem]]  # of each record


class Writer(Protocol):
    """Who writes. Every call has all records of a step that are to be written; `again` are the problems of those that are
    written anew, in the same order, and `attempt` counts the writings from 0.
    """

    name: str

    def allocate(
        self, parents: Sequence[Period], slots: Sequence[Sequence[Slot]], again: Problems, attempt: int
    ) -> Any:
        """For each parent a list of `Dated`, or None for what cannot be used."""
        ...

    def enrich(self, asked: Sequence[Neighbours], again: Problems, attempt: int) -> Any:
        """For each record its new text, or None."""
        ...

    def events(self, asked: Sequence[Neighbours], again: Problems, attempt: int) -> Any:
        """For each day a list of `Event`, or None."""
        ...

    def dialogue(self, asked: Sequence[tuple[Event, Sequence[Event]]], again: Problems, attempt: int) -> Any:
        """For each event, given those before it on its day, a list of `Line`, or None."""
        ...

    def doubts(self, pairs: Sequence[tuple[str, str]]) -> Sequence[str]:
        """For each (parent, child) what contradicts in them; "" for nothing."""
        ...


Slot = tuple[date, date]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """A record with its parent and with those before and behind it under this parent; "" where there are none."""

    record: Period
    parent: Period
    before: str = ""
    behind: str = ""


@dataclass(frozen=True)
class Composed:
    """All that was written, level by level, and what the gates came to. dropped: what could not be used, by reason."""

    periods: tuple[Period, ...]
    spoken: tuple[Spoken, ...]
    gates: tuple[Gate, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)


# --- the persona -----------------------------------------------------------------------------------------------------


def read_persona(path: str | Path) -> Persona:
    """From a JSON file with one object: name; about, people ({name, relation}, or names), lines, fixed ({date, text}).

    Raises BadInput, with the field, for anything else.
    """
    rows = read_objects(path)
    if len(rows) != 1:
        raise BadInput(f"{path} has {len(rows)} personas; give one.")
    row = rows[0]
    row.only({"name", "about", "people", "lines", "fixed"})
    people = []
    for person in row.items("people", "people") if row.has("people") else ():
        given = Row({"name": person} if isinstance(person, str) else person, f"{row.place}, people")
        if not isinstance(given.values, dict):
            row.refuse("people", "names, or objects with name and relation", repr(person)[:40])
        given.only({"name", "relation"})
        people.append(Acquaintance(given.text("name"), given.text("relation") if given.has("relation") else ""))
    name = row.text("name")
    names = [name, *(person.name for person in people)]
    if twice := next((each for each in names if names.count(each) > 1), None):
        row.refuse("people", "names that are not the same", repr(twice))
    fixed = []
    for each in row.rows("fixed", "fixed") if row.has("fixed") else ():
        each.only({"date", "text"})
        fixed.append(Fixed(each.moment("date").date(), each.text("text")))
    return Persona(
        name=name,
        about=row.text("about") if row.has("about") else "",
        people=tuple(people),
        lines=tuple(row.texts("lines")) if row.has("lines") else (),
        fixed=tuple(sorted(fixed, key=lambda each: each.day)),
    )


# --- the calendar ----------------------------------------------------------------------------------------------------


@closed
def slots(level: Level, start: date, end: date) -> list[Slot]:
    """The calendar's months, weeks (from Monday) or days between two dates, cut at both; of a year the whole.

    Raises BadInput for an end before the start.
    """
    if end < start:
        raise BadInput(f"A period from {start} to {end} ends before it begins.")
    found: list[Slot] = []
    first = start
    while first <= end:
        match level:
            case "year":
                last = end
            case "month":
                last = first.replace(day=calendar.monthrange(first.year, first.month)[1])
            case "week":
                last = first + timedelta(days=6 - first.weekday())
            case "day":
                last = first
        found.append((first, min(last, end)))
        first = found[-1][1] + timedelta(days=1)
    return found


def dates_in(text: str, years: Sequence[int]) -> list[date]:
    """The days that a text names (2024-05-31, 31 May, May 31st), each in every one of the years where none is written."""
    named = [(int(y), int(m), int(d)) for y, m, d in _ISO.findall(text)]
    months = {name.lower(): number for number, name in enumerate(MONTHS, start=1)}
    spelled = [(months[month.lower()], int(day)) for day, month in _DAY_MONTH.findall(text)]
    spelled += [(months[month.lower()], int(day)) for month, day in _MONTH_DAY.findall(text)]
    named += [(year, month, day) for month, day in spelled for year in years]
    found = []
    for year, month, day in named:
        try:
            found.append(date(year, month, day))
        except ValueError:
            continue
    return found


# --- the checks ------------------------------------------------------------------------------------------------------


def allocation_problems(parent: Period, parts: Sequence[Slot], records: Sequence[Dated] | None) -> list[Problem]:
    """What is wrong with an allocation: a part outside the parent or of other dates than the calendar's, one that is missing
    or stands twice, and something with a fixed date that is not in the part of that date, or also in another.
    """
    if records is None:
        return [Problem("unusable", "there is no list of dated records")]
    problems = []
    by_slot: dict[Slot, str] = {}
    for record in records:
        slot = (record.start, record.end)
        if slot not in parts:
            inside = parent.start <= record.start <= record.end <= parent.end
            where = "is no part of the calendar" if inside else f"lies outside {parent.name}"
            problems.append(Problem("inconsistent", f"{record.start} to {record.end} {where}"))
        elif slot in by_slot:
            problems.append(Problem("inconsistent", f"{record.start} to {record.end} stands twice"))
        else:
            by_slot[slot] = record.text
    problems += [
        Problem("inconsistent", f"{first} to {last} is missing")
        for first, last in parts
        if (first, last) not in by_slot
    ]
    for fixed in parent.fixed:
        for (first, last), text in by_slot.items():
            within, said = first <= fixed.day <= last, contains(text, fixed.text)
            if within and not said:
                problems.append(Problem("inconsistent", f"{fixed.text!r} of {fixed.day} is not in {first} to {last}"))
            elif (
                said
                and not within
                and not any(other.text == fixed.text and first <= other.day <= last for other in parent.fixed)
            ):
                problems.append(
                    Problem("inconsistent", f"{fixed.text!r} of {fixed.day} was moved into {first} to {last}")
                )
    return problems


def enriched_problems(record: Period, text: str | None) -> list[Problem]:
    """What is wrong with an expanded text: nothing in it, a fixed thing lost, a date or a plan beyond the record."""
    if text is None or not text.strip():
        return [Problem("unusable", "there is no text")]
    problems = [
        Problem("inconsistent", f"{fixed.text!r} of {fixed.day} is lost")
        for fixed in record.fixed
        if not contains(text, fixed.text)
    ]
    # A date without a year lies inside where it does in one of the record's years.
    named: dict[tuple[int, int], list[date]] = {}
    for day in dates_in(text, range(record.start.year, record.end.year + 1)):
        named.setdefault((day.month, day.day), []).append(day)
    for days in named.values():
        if not any(record.start <= day <= record.end for day in days):
            problems.append(Problem("inconsistent", f"{days[0]} lies outside {record.name}"))
    if plan := _BEYOND.search(text):
        problems.append(Problem("inconsistent", f"{plan[0]!r} is a plan beyond {record.name}"))
    return problems


def event_problems(day: Period, events: Sequence[Event] | None) -> list[Problem]:
    """What is wrong with the events of a day: none, another day, an end before the start, two at a time, nothing that
    happens, a fixed thing lost.
    """
    if events is None:
        return [Problem("unusable", "there is no list of events")]
    problems = [] if events else [Problem("unusable", "there are no events")]
    for event in events:
        if event.day != day.start:
            problems.append(Problem("inconsistent", f"{event.what!r} is on {event.day}, not on {day.start}"))
        if not event.start < event.end:
            problems.append(Problem("inconsistent", f"{event.what!r} ends at {event.end} and begins at {event.start}"))
        if not normalize(event.what):
            problems.append(Problem("unusable", "an event says nothing of what happens"))
    ordered = sorted(events, key=lambda event: event.start)
    for before, after in itertools.pairwise(ordered):
        if after.start < before.end:
            problems.append(Problem("inconsistent", f"{after.what!r} begins while {before.what!r} goes on"))
    for fixed in day.fixed:
        if not any(contains(event.text, fixed.text) for event in events):
            problems.append(Problem("inconsistent", f"{fixed.text!r} of this day is lost"))
    return problems


def spoken_problems(event: Event, lines: Sequence[Line] | None) -> list[Problem]:
    """What is wrong with a dialogue: nothing said, somebody speaks who is not there, a detail that nobody says."""
    if not lines or any(not who.strip() or not words.strip() for who, words in lines):
        return [Problem("unusable", "there is no dialogue")]
    said = " ".join(words for _, words in lines)
    return [
        Problem("inconsistent", f"nobody says {detail.value!r}, the {detail.slot}")
        for detail in event.details
        if not contains(said, detail.value)
    ]


def similar(texts: Sequence[str], k: int = SIMILAR) -> list[list[tuple[int, float]]]:
    """For each text the k most similar others and the cosines, best first: counts of words, weighted by ln(n / with it) + 1.

    Texts without words are like none. Ties stand in order of place.
    """
    if not texts:
        return []
    vectors = _vectors(texts)
    found: list[list[tuple[int, float]]] = []
    for place in range(len(texts)):
        cosines = vectors @ vectors[place]
        cosines[place] = -1.0
        best = np.argsort(-cosines, kind="stable")[: min(k, len(texts) - 1)]
        found.append([(int(other), float(cosines[other])) for other in best])
    return found


def _vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    words = [normalize(text).split() for text in texts]
    places = {word: place for place, word in enumerate(sorted({word for each in words for word in each}))}
    counts = np.zeros((len(texts), max(len(places), 1)), np.float32)
    for row, each in enumerate(words):
        for word in each:
            counts[row, places[word]] += 1
    held = np.maximum((counts > 0).sum(axis=0), 1)
    counts *= np.log(len(texts) / held) + 1
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-12)


def repetition_problems(texts: Sequence[str], names: Sequence[str], threshold: float = REPEATED) -> list[list[Problem]]:
    """For each text a problem where an earlier one of its five most similar ones is as alike as the threshold: the first of
    two twins stays.
    """
    problems: list[list[Problem]] = []
    for place, near in enumerate(similar(texts)):
        twins = [other for other, cosine in near if cosine >= threshold and other < place]
        problems.append([Problem("repeated", f"it is nearly the same as {names[twins[0]]}")] if twins else [])
    return problems


# --- the steps -------------------------------------------------------------------------------------------------------


@dataclass
class _Step:
    """One step of writing under its gate."""

    name: str
    repairs: int

    def passed(
        self,
        count: int,
        write: Callable[[Sequence[int], Problems, int], Sequence[Any]],
        check: Callable[[Sequence[Any]], Problems],
    ) -> tuple[list[Any], Problems, Gate]:
        """The records, what is still wrong with them, and the gate. write: of these places, with their problems."""
        made: list[Any] = list(write(range(count), [()] * count, 0))
        problems = first = check(made)
        for attempt in range(1, self.repairs + 1):
            wrong = [place for place in range(count) if problems[place]]
            if not wrong:
                break
            anew = write(wrong, [problems[place] for place in wrong], attempt)
            for place, record in zip(wrong, anew, strict=True):
                made[place] = record
            problems = check(made)
        kinds = [{problem.kind for problem in each} for each in first]
        by_kind = {kind: sum(kind in each for each in kinds) for kind in ("inconsistent", "repeated", "unusable")}
        flagged, left = (sum(bool(each) for each in some) for some in (first, problems))
        return made, problems, Gate(self.name, count, flagged, left=left, **by_kind)


def check_span(persona: Persona, start: date, days: int) -> date:
    """The last day. Raises BadInput for no days, for what the calendar has not, and for a fixed date outside."""
    if days < 1:
        raise BadInput(f"A life of {days} days has nothing to tell: use at least 1.")
    try:
        end = start + timedelta(days=days - 1)
    except OverflowError:
        raise BadInput(f"{days} days from {start} on reach beyond the calendar: begin earlier.") from None
    for fixed in persona.fixed:
        if not start <= fixed.day <= end:
            raise BadInput(f"{fixed.text!r} is fixed to {fixed.day}, outside {start} to {end}: move it, or the days.")
    return end


def compose(persona: Persona, start: date, days: int, writer: Writer, *, repairs: int = 1) -> Composed:
    """A life of so many days, from the top down. Raises BadInput as `check_span`."""
    end = check_span(persona, start, days)
    said = "\n".join((*persona.lines, *(f"{fixed.day}: {fixed.text}" for fixed in persona.fixed)))
    level = [Period("year", start, end, said or persona.about, persona.fixed)]
    periods, gates, dropped = list(level), list[Gate](), dict[str, int]()
    for name in LEVELS[1:]:
        level, made = _parts(name, level, writer, repairs, dropped)
        periods += level
        gates += made
    events, gate = _events(level, writer, repairs, dropped)
    gates.append(gate)
    spoken, gate = _dialogues(events, writer, repairs, dropped)
    return Composed(tuple(periods), tuple(spoken), (*gates, gate), dropped)


@closed
def mend(parent: Period, parts: Sequence[Slot], records: Sequence[Dated] | None, level: Level) -> list[Period]:
    """A period for each part of the calendar, of what can be used: the first record of just these dates, without what is
    fixed to a day of another part, with what is fixed to one of its own.
    """
    said: dict[Slot, str] = {}
    for record in records or ():
        said.setdefault((record.start, record.end), record.text)
    periods = []
    for first, last in parts:
        text = said.get((first, last), "").strip()
        own = tuple(fixed for fixed in parent.fixed if first <= fixed.day <= last)
        mine = {fixed.text for fixed in own}
        for fixed in parent.fixed:
            if fixed.text not in mine:
                # whole words, as the gate compares them: "run" is no part of "running"
                text = re.sub(rf"(?<!\w){re.escape(fixed.text)}(?!\w)", "", text, flags=re.IGNORECASE)
        lines = [text, *(f"{fixed.day}: {fixed.text}" for fixed in own if not contains(text, fixed.text))]
        periods.append(Period(level, first, last, "\n".join(line for line in lines if line.strip()), own))
    return periods


def _count(dropped: dict[str, int], reason: str, number: int = 1) -> None:
    if number:
        dropped[reason] = dropped.get(reason, 0) + number


def _parts(
    level: Level, parents: Sequence[Period], writer: Writer, repairs: int, dropped: dict[str, int]
) -> tuple[list[Period], list[Gate]]:
    """ALLOCATE and ENRICH, each with its gate."""
    parts = [slots(level, parent.start, parent.end) for parent in parents]

    def allocate(places: Sequence[int], again: Problems, attempt: int) -> Sequence[Any]:
        return writer.allocate([parents[place] for place in places], [parts[place] for place in places], again, attempt)

    def allocated(made: Sequence[Any]) -> Problems:
        return [allocation_problems(*each) for each in zip(parents, parts, made, strict=True)]

    made, problems, first = _Step(f"allocate {level}s", repairs).passed(len(parents), allocate, allocated)
    _count(dropped, f"allocations of {level}s mended by rule", sum(bool(each) for each in problems))
    families = [mend(parent, its, records, level) for parent, its, records in zip(parents, parts, made, strict=True)]
    asked = [
        Neighbours(
            record,
            parent,
            family[place - 1].text if place else "",
            family[place + 1].text if place + 1 < len(family) else "",
        )
        for parent, family in zip(parents, families, strict=True)
        for place, record in enumerate(family)
    ]

    def enrich(places: Sequence[int], again: Problems, attempt: int) -> Sequence[Any]:
        return writer.enrich([asked[place] for place in places], again, attempt)

    def enriched(made: Sequence[Any]) -> Problems:
        texts = [text or "" for text in made]
        return _joined(
            [enriched_problems(each.record, text) for each, text in zip(asked, made, strict=True)],
            repetition_problems(texts, [each.record.name for each in asked]),
            _doubted(writer, [(each.parent.text, text) for each, text in zip(asked, texts, strict=True)]),
        )

    made, problems, second = _Step(f"enrich {level}s", repairs).passed(len(asked), enrich, enriched)
    kept = []
    for each, text, wrong in zip(asked, made, problems, strict=True):
        # What only repeats another is a poor day, and true; what contradicts falls back to what was allocated.
        usable = text and not any(problem.kind != "repeated" for problem in wrong)
        _count(dropped, f"texts of {level}s left as they were allocated", 0 if usable else 1)
        kept.append(replace(each.record, text=text) if usable else each.record)
    return kept, [first, second]


def _events(days: Sequence[Period], writer: Writer, repairs: int, dropped: dict[str, int]) -> tuple[list[Event], Gate]:
    asked = [
        Neighbours(
            day,
            day,
            days[place - 1].text if place else "",
            days[place + 1].text if place + 1 < len(days) else "",
        )
        for place, day in enumerate(days)
    ]

    def write(places: Sequence[int], again: Problems, attempt: int) -> Sequence[Any]:
        return writer.events([asked[place] for place in places], again, attempt)

    def check(made: Sequence[Any]) -> Problems:
        told = ["\n".join(event.text for event in each or () if not event.routine) for each in made]
        return _joined(
            [event_problems(day, events) for day, events in zip(days, made, strict=True)],
            _repeated_events(made),
            _doubted(writer, [(day.text, text) for day, text in zip(days, told, strict=True)]),
        )

    made, _, gate = _Step("events", repairs).passed(len(days), write, check)
    kept: list[Event] = []
    for day, events in zip(days, made, strict=True):
        until: time | None = None
        _count(dropped, "days without events", 0 if events else 1)
        for event in sorted(events or (), key=lambda event: event.start):
            sound = event.day == day.start and event.start < event.end and normalize(event.what)
            if not sound or (until is not None and event.start < until):
                _count(dropped, "events outside their day, or while another went on")
                continue
            until = event.end
            kept.append(event)
        told = [event.text for event in kept if event.day == day.start]
        lost = sum(not any(contains(text, fixed.text) for text in told) for fixed in day.fixed)
        _count(dropped, "things with a fixed date that no event has", lost)
    return kept, gate


def _repeated_events(made: Sequence[Sequence[Event] | None]) -> Problems:
    """For each day what repeats an earlier event, of any day; routine may."""
    flat = [(day, event) for day, events in enumerate(made) for event in events or () if not event.routine]
    names = [f"{event.what!r} of {event.day}" for _, event in flat]
    problems: list[list[Problem]] = [[] for _ in made]
    for (day, _), found in zip(flat, repetition_problems([event.text for _, event in flat], names), strict=True):
        problems[day] += found
    return problems


def _dialogues(
    events: Sequence[Event], writer: Writer, repairs: int, dropped: dict[str, int]
) -> tuple[list[Spoken], Gate]:
    asked = [
        (event, [other for other in events[max(place - 6, 0) : place] if other.day == event.day])
        for place, event in enumerate(events)
    ]

    def write(places: Sequence[int], again: Problems, attempt: int) -> Sequence[Any]:
        return writer.dialogue([asked[place] for place in places], again, attempt)

    def check(made: Sequence[Any]) -> Problems:
        return [spoken_problems(event, lines) for event, lines in zip(events, made, strict=True)]

    made, _, gate = _Step("dialogues", repairs).passed(len(events), write, check)
    kept = []
    for event, lines in zip(events, made, strict=True):
        if any(problem.kind == "unusable" for problem in spoken_problems(event, lines)):
            _count(dropped, "events without a dialogue")
            continue
        said = " ".join(words for _, words in lines)
        details = tuple(detail for detail in event.details if contains(said, detail.value))
        _count(dropped, "details that nobody said", len(event.details) - len(details))
        kept.append(Spoken(replace(event, details=details), tuple(lines)))
    return kept, gate


def _doubted(writer: Writer, pairs: Sequence[tuple[str, str]]) -> Problems:
    return [[Problem("inconsistent", doubt)] if doubt else [] for doubt in writer.doubts(pairs)]


def _joined(*some: Problems) -> Problems:
    return [[problem for each in parts for problem in each] for parts in zip(*some, strict=True)]


def plain(composed: Composed) -> list[dict[str, Any]]:
    """Periods and events as JSON rows, in order."""
    rows: list[dict[str, Any]] = [
        {"level": period.level, "start": str(period.start), "end": str(period.end), "text": period.text}
        for period in composed.periods
    ]
    for spoken in composed.spoken:
        event = spoken.event
        rows.append(
            {
                "level": "event",
                "start": f"{event.day} {event.start:%H:%M}",
                "end": f"{event.day} {event.end:%H:%M}",
                "place": event.place,
                "people": list(event.people),
                "text": event.what,
                "details": {detail.slot: detail.value for detail in event.details},
                "routine": event.routine,
            }
        )
    return rows


def lines_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
