"""Questions out of dated events, of LifeDialBench's four kinds, with distractors from the past alone.

    questions, dropped = make_questions("Mara", spoken, per_day=4, seed=0)

    single_event   what was done, the last time with somebody in some place
    event_detail   the newest value of a thing; its older values are the distractors
    multi_event    the last two things that were done with somebody, in their order
    time_query     when something last began

A question is asked at the end of a day on which something of it happened. What happens every day is not asked about, and of
an event only what its dialogue says. Where there are too few earlier things for three distractors, no question is made, and
that is counted: the first days have few.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time

import numpy as np

from equipoise.agents.compose import Event, Spoken
from equipoise.core.errors import BadInput
from equipoise.data import answers
from equipoise.data.histories import History, MemoryQuestion, Session, Turn
from equipoise.data.lifelogs import KINDS

OPTIONS = 4

normalize = functools.lru_cache(maxsize=1 << 16)(answers.normalize)  # every event is compared on every later day


@dataclass(frozen=True, slots=True)
class Draft:
    """A question before its options are shuffled. events: places of those that answer it."""

    kind: str
    text: str
    gold: str
    distractors: tuple[str, ...]
    events: tuple[int, ...]
    day: date


def history_of(name: str, spoken: Sequence[Spoken], drafts: Sequence[Draft], *, seed: int) -> History:
    """Sessions s1, s2, ... of the events in order, and the questions of the drafts, in order of day.

    The place of the right option is drawn from the seed and the question's own place among the drafts of its day.
    """
    sessions = tuple(
        Session(
            f"s{number}",
            each.event.begins,
            tuple(Turn(f"s{number}:{place}", who, words) for place, (who, words) in enumerate(each.lines, start=1)),
        )
        for number, each in enumerate(spoken, start=1)
    )
    questions, within = [], dict[date, int]()
    for place, draft in enumerate(sorted(drafts, key=lambda draft: draft.day)):
        number = within[draft.day] = within.get(draft.day, -1) + 1
        generator = _generator(seed, draft.day, len(KINDS) + number)
        order = generator.permutation(OPTIONS)
        options = [(draft.gold, *draft.distractors)[at] for at in order]
        questions.append(
            MemoryQuestion(
                id=f"{name}/{place}",
                text=draft.text,
                time=datetime.combine(draft.day, time.max),
                gold=(draft.gold,),
                options=tuple(options),
                right=int(np.flatnonzero(order == 0)[0]),
                evidence=tuple(f"s{event + 1}" for event in draft.events),
                kind=draft.kind,
                group=f"{draft.day}",
            )
        )
    return History(name, sessions, tuple(questions))


def make_questions(
    name: str, spoken: Sequence[Spoken], *, per_day: int = 4, seed: int = 0
) -> tuple[list[Draft], dict[str, int]]:
    """At most so many questions a day, each of another kind, and how many of a kind lacked earlier distractors.

    spoken: in order of time. A day's questions depend on the seed, the day, and what was said until its end. Raises BadInput
    for more questions a day than there are kinds.
    """
    if not 0 <= per_day <= len(KINDS):
        raise BadInput(f"{per_day} questions a day: use 0 to {len(KINDS)}, one of each kind.")
    events = [each.event for each in spoken]
    drafts: list[Draft] = []
    dropped: dict[str, int] = {}
    for day in dict.fromkeys(event.day for event in events):
        past = _Past(name, [event for event in events if event.day <= day])
        today = [place for place, event in enumerate(past.events) if event.day == day and not event.routine]
        if not today:
            continue
        shift = day.toordinal() % len(KINDS)  # days with fewer questions than kinds begin with another kind each
        for kind in (*KINDS[shift:], *KINDS[:shift])[:per_day]:
            generator = _generator(seed, day, KINDS.index(kind))
            draft = _first(past.drafts(kind, [int(at) for at in generator.permutation(today)], generator))
            if draft is None:
                dropped[f"{kind}: too little before for three distractors"] = (
                    dropped.get(f"{kind}: too little before for three distractors", 0) + 1
                )
            else:
                drafts.append(draft)
    return drafts, dropped


def _generator(seed: int, day: date, stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, day.toordinal(), stream]))


def _first(drafts: Iterator[Draft | None]) -> Draft | None:
    return next((draft for draft in drafts if draft is not None), None)


class _Past:
    """All events until the end of a day."""

    def __init__(self, name: str, events: Sequence[Event]) -> None:
        self.name, self.events = name, events
        self.told = [place for place, event in enumerate(events) if not event.routine]

    def drafts(self, kind: str, today: Sequence[int], generator: np.random.Generator) -> Iterator[Draft | None]:
        """A draft for each of today's events, or None where it has none."""
        make: Callable[[int, np.random.Generator], Draft | None] = {
            "single_event": self._single,
            "event_detail": self._detail,
            "multi_event": self._several,
            "time_query": self._time,
        }[kind]
        return (make(place, generator) for place in today)

    def _last(self, known: Callable[[Event], bool], place: int) -> bool:
        """Whether no later event until the end of the day is known by the same."""
        return not any(known(self.events[other]) for other in self.told if other > place)

    def _draft(
        self,
        kind: str,
        text: str,
        gold: str,
        tiers: Sequence[Iterable[str]],
        place: int,
        generator: np.random.Generator,
    ) -> Draft | None:
        """With three that differ from the gold and from one another, of the first tiers that have them."""
        wrong: dict[str, str] = {normalize(gold): gold}
        for tier in tiers:
            distinct = {normalize(other): other for other in tier if normalize(other) not in wrong}
            missing = min(OPTIONS - len(wrong), len(distinct))
            drawn = generator.choice(sorted(distinct), missing, replace=False) if missing else ()
            wrong |= {str(each): distinct[str(each)] for each in drawn}
        _, *distractors = wrong.values()
        if len(distractors) < OPTIONS - 1:
            return None
        return Draft(kind, text, gold, tuple(distractors), (place,), self.events[place].day)

    def _single(self, place: int, generator: np.random.Generator) -> Draft | None:
        event = self.events[place]

        def alike(other: Event) -> bool:
            return other.place == event.place and other.people[:1] == event.people[:1]

        if not event.people or not event.place or not self._last(alike, place):
            return None
        text = f"What did {self.name} do the last time with {event.people[0]} at {event.place}?"
        # Of the same place before any other: a place alone would tell the likely answer to who remembers nothing.
        here = [self.events[other].what for other in self.told if self.events[other].place == event.place]
        anywhere = [self.events[other].what for other in self.told]
        return self._draft("single_event", text, event.what, (here, anywhere), place, generator)

    def _detail(self, place: int, generator: np.random.Generator) -> Draft | None:
        for detail in self.events[place].details:
            slot = detail.slot

            def alike(other: Event, slot: str = slot) -> bool:
                return any(each.slot == slot for each in other.details)

            if not self._last(alike, place):
                continue
            older = [d.value for other in self.told for d in self.events[other].details if d.slot == slot]
            text = detail.ask or f"What was the {slot}, as {self.name} spoke of it last?"
            if draft := self._draft("event_detail", text, detail.value, (older,), place, generator):
                return draft
        return None

    def _several(self, place: int, generator: np.random.Generator) -> Draft | None:
        event = self.events[place]
        if not event.people:
            return None
        person = event.people[0]
        with_them = [other for other in self.told if person in self.events[other].people and other <= place]
        if len(with_them) < 2 or not self._last(lambda other: person in other.people, place):
            return None
        first, last = with_them[-2:]
        before, after = self.events[first].what, self.events[last].what
        if normalize(before) == normalize(after):
            return None
        known = {normalize(before), normalize(after)}
        third = sorted(
            {self.events[other].what for other in self.told if normalize(self.events[other].what) not in known}
        )
        if len(third) < 2:
            return None
        # Each of four things stands in two options: what most options share would tell the right one.
        other_first, other_last = (str(each) for each in generator.choice(third, 2, replace=False))
        wrong = _pair(before, other_last), _pair(other_first, after), _pair(other_first, other_last)
        text = f"Which two things did {self.name} last do with {person}, in this order?"
        return Draft("multi_event", text, _pair(before, after), wrong, (first, last), event.day)

    def _time(self, place: int, generator: np.random.Generator) -> Draft | None:
        event = self.events[place]
        what = normalize(event.what)
        if not self._last(lambda other: normalize(other.what) == what, place):
            return None
        others = [f"{self.events[other].start:%H:%M}" for other in self.told]
        text = f"When {self.name} last {event.what}, at what time did that begin?"
        return self._draft("time_query", text, f"{event.start:%H:%M}", (others,), place, generator)


def _pair(first: str, second: str) -> str:
    return f"{first}, then {second}"
