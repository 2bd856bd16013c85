"""A writer without a model: a life of small, dated things out of a few lines, the same for the same seed.

What it writes is plain and repeats itself in form, not in what is asked: it shows what a memory can find, not how people
talk. Its texts are lists, a line of life each ("garden, at the allotment, with Tom: sowed the beans"), so that every step
can be checked against its parent.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, time
from types import MappingProxyType

import numpy as np

from equipoise.agents.compose import Dated, Detail, Event, Line, Neighbours, Period, Persona, Problems, Slot
from equipoise.core.errors import BadInput, did_you_mean

QUIET = "a quiet time"
_FIRST, _LAST = 9, 21  # hours between which things happen


@dataclass(frozen=True, slots=True)
class Theme:
    """A line of life. done: in the past tense. things: (slot, question, what is said, values)."""

    done: tuple[str, ...]
    places: tuple[str, ...]
    things: tuple[tuple[str, str, str, tuple[str, ...]], ...]


THEMES = MappingProxyType(
    {
        "garden": Theme(
            (
                "sowed the beans",
                "cut back the roses",
                "mended the greenhouse",
                "turned the compost",
                "picked the apples",
            ),
            ("the allotment", "the back yard", "the nursery"),
            (
                (
                    "colour of the fence",
                    "Which colour is the fence to have by now?",
                    "The fence will be {value}.",
                    ("green", "white", "ochre", "grey", "red", "black", "blue"),
                ),
                (
                    "bed for the pumpkins",
                    "Where are the pumpkins to grow by now?",
                    "The pumpkins go {value}.",
                    ("by the wall", "under the plum tree", "next to the shed", "behind the hedge", "by the gate"),
                ),
            ),
        ),
        "choir": Theme(
            ("rehearsed the spring songs", "sorted the sheet music", "tried the new hall", "learned the second voice"),
            ("the parish hall", "the school", "the town theatre"),
            (
                (
                    "opening piece",
                    "Which piece is to open the concert by now?",
                    "We open with {value}.",
                    ("the barcarole", "the old lullaby", "the harvest song", "the canon", "the river tune"),
                ),
                (
                    "soloist",
                    "Who is to sing the solo by now?",
                    "The solo goes to {value}.",
                    ("Irene", "Oskar", "Pilar", "Viktor", "Noor", "Sanne"),
                ),
            ),
        ),
        "running": Theme(
            ("ran the lake loop", "trained on the hill", "tested the new shoes", "stretched after a long run"),
            ("the lake", "the stadium", "the forest track"),
            (
                (
                    "goal of the race",
                    "Which time is the goal of the race by now?",
                    "The goal is {value}.",
                    ("fifty minutes", "under an hour", "forty-eight minutes", "an hour and ten", "fifty-five minutes"),
                ),
                (
                    "shirt of the team",
                    "Which shirt did the team agree on last?",
                    "The team takes the {value} shirt.",
                    ("striped", "yellow", "plain white", "dotted", "dark green"),
                ),
            ),
        ),
        "kitchen": Theme(
            (
                "measured the cupboards",
                "chose the tiles",
                "called the electrician",
                "painted the ceiling",
                "moved the stove",
            ),
            ("the flat", "the hardware store", "the showroom"),
            (
                (
                    "worktop",
                    "What is the worktop to be made of by now?",
                    "The worktop will be {value}.",
                    ("oak", "slate", "steel", "marble", "bamboo", "concrete"),
                ),
                (
                    "plumber",
                    "Which plumber was chosen last?",
                    "The plumber is {value}.",
                    ("Brandt", "Kowal", "Duarte", "Lind", "Okafor"),
                ),
            ),
        ),
        "book group": Theme(
            ("discussed the last chapter", "voted on the next book", "swapped novels", "read the first pages aloud"),
            ("the library", "the corner cafe", "the book shop"),
            (
                (
                    "next book",
                    "Which book did the group choose last?",
                    "The next book is {value}.",
                    ("The Salt Road", "Winter Keys", "A House of Maps", "The Ninth Bell", "Paper Harbour"),
                ),
                (
                    "host",
                    "Who is to host the group by now?",
                    "The host will be {value}.",
                    ("Mirela", "Jonas", "Adaeze", "Tove", "Rui"),
                ),
            ),
        ),
        "language class": Theme(
            ("practised the past tense", "wrote a postcard", "learned the numbers", "acted out a market"),
            ("the evening school", "the community centre", "the museum"),
            (
                (
                    "room of the class",
                    "Which room is the class in by now?",
                    "The class is in {value} now.",
                    ("the attic room", "room four", "the blue room", "the hall", "room nine"),
                ),
                (
                    "topic of the talk",
                    "What is the talk in class to be about by now?",
                    "The talk is about {value}.",
                    ("bridges", "bread", "lighthouses", "old trains", "bees", "kites"),
                ),
            ),
        ),
        "bicycles": Theme(
            ("trued the wheel", "changed the chain", "cleaned the brakes", "planned the tour", "patched two tubes"),
            ("the workshop", "the station", "the cellar"),
            (
                (
                    "stop of the tour",
                    "Where does the tour stop first, as agreed last?",
                    "The tour stops first at {value}.",
                    ("the mill", "the ferry", "the old bridge", "the abbey", "the quarry"),
                ),
                (
                    "price of the frame",
                    "What does the frame cost, as said last?",
                    "The frame costs {value}.",
                    ("two hundred", "three hundred and ten", "ninety", "four hundred", "a hundred and fifty"),
                ),
            ),
        ),
        "work": Theme(
            (
                "drafted the report",
                "met the new client",
                "cleared the archive",
                "prepared the audit",
                "trained a trainee",
            ),
            ("the office", "the branch in town", "the meeting room"),
            (
                (
                    "deadline keeper",
                    "Who keeps the deadline by now?",
                    "{value} keeps the deadline.",
                    ("Marek", "Selma", "Hugo", "Dalia", "Petra"),
                ),
                (
                    "name of the project",
                    "What is the project called by now?",
                    "The project is called {value} now.",
                    ("Compass", "Lantern", "Orchard", "Tidewater", "Granite"),
                ),
            ),
        ),
    }
)
_GREETINGS = (
    "Good to see you, {person}.",
    "There you are, {person}.",
    "Thanks for coming, {person}.",
    "Right, {person}.",
)
_ANSWERS = ("Fine by me.", "Good, I will remember.", "Are you sure? All right.", "That is new to me.", "Understood.")
_MORNING = ("Coffee is ready.", "Did you sleep well?", "It looks like rain.", "The bread is nearly gone.")


class TemplateWriter:
    """persona: its lines are names of `THEMES`, all of them where it has none. events_per_day: at most.

    Raises BadInput for a line that has no theme, and for nobody to talk to.
    """

    name = "templates"

    def __init__(self, persona: Persona, *, events_per_day: int = 4, seed: int = 0) -> None:
        if strange := [line for line in persona.lines if line not in THEMES]:
            raise BadInput(
                f"The templates know no line {strange[0]!r}. {did_you_mean(strange[0], THEMES)} A model writes any."
            )
        if not persona.people:
            raise BadInput(f"{persona.name} has nobody to talk to: give the persona people.")
        self._persona, self._events, self._seed = persona, events_per_day, seed
        self._lines = persona.lines or tuple(THEMES)

    def allocate(
        self, parents: Sequence[Period], slots: Sequence[Sequence[Slot]], again: Problems, attempt: int
    ) -> list[list[Dated]]:
        """Each part gets some of its parent's lines, at least one, and what is fixed in it."""
        return [
            [self._part(parent, first, last, attempt) for first, last in parts]
            for parent, parts in zip(parents, slots, strict=True)
        ]

    def _part(self, parent: Period, first: date, last: date, attempt: int) -> Dated:
        lines = [line for line in parent.text.splitlines() if self._theme(line)] or list(self._lines)
        generator = self._generator(f"allocate {parent.level}", first, attempt)
        most = min(self._events, len(lines)) if parent.level == "week" else len(lines)
        few = 1 if parent.level == "week" else max(1, round(0.6 * len(lines)))
        drawn = generator.choice(len(lines), int(generator.integers(few, max(most, few) + 1)), replace=False)
        fixed = [f"{each.day}: {each.text}" for each in parent.fixed if first <= each.day <= last]
        return Dated(first, last, "\n".join([lines[place] for place in sorted(drawn)] + fixed))

    def enrich(self, asked: Sequence[Neighbours], again: Problems, attempt: int) -> list[str]:
        """A month names where, a week with whom, a day what."""
        return [self._enriched(each.record, attempt) for each in asked]

    def _enriched(self, record: Period, attempt: int) -> str:
        generator = self._generator(f"enrich {record.level}", record.start, attempt)
        lines = []
        for line in record.text.splitlines():
            name = self._theme(line)
            if name:
                theme = THEMES[name]
                line += {
                    "month": lambda t=theme: f", at {generator.choice(t.places)}",
                    "week": lambda: f", with {generator.choice([person.name for person in self._persona.people])}",
                    "day": lambda t=theme: f": {generator.choice(t.done)}",
                }[record.level]()
            lines.append(line)
        return "\n".join(lines) or QUIET

    def events(self, asked: Sequence[Neighbours], again: Problems, attempt: int) -> list[list[Event]]:
        """The morning, as every day, and an event for each line and each fixed thing of the day."""
        return [self._day(each.record, attempt) for each in asked]

    def _day(self, record: Period, attempt: int) -> list[Event]:
        generator = self._generator("events", record.start, attempt)
        people = [person.name for person in self._persona.people]
        fixed = [each.text for each in record.fixed]
        planned = [line for line in record.text.splitlines() if self._theme(line)]
        told = [*fixed, *planned][: max(self._events, len(fixed))]
        order = generator.permutation(len(told))
        starts = self._starts(len(told), generator)
        events = [Event(record.start, time(7, 0), time(7, 20), "home", (people[0],), "had breakfast", routine=True)]
        for place, start in zip(order, starts, strict=True):
            end = time(start.hour, start.minute + 25)
            line = told[place]
            if place < len(fixed):
                person = (str(generator.choice(people)),)
                events.append(Event(record.start, start, end, "the celebration", person, f"took part in {line}"))
                continue
            theme = THEMES[self._theme(line)]
            slot, ask, _, values = theme.things[int(generator.integers(len(theme.things)))]
            where = next((each for each in theme.places if f", at {each}" in line), theme.places[0])
            person = next((each for each in people if f", with {each}" in line), people[0])
            what = next((each for each in theme.done if line.endswith(f": {each}")), theme.done[0])
            detail = Detail(slot, str(generator.choice(values)), ask)
            events.append(Event(record.start, start, end, where, (person,), what, (detail,)))
        return events

    def _starts(self, count: int, generator: np.random.Generator) -> list[time]:
        """Half hours that do not meet, in order."""
        grid = 2 * (_LAST - _FIRST)
        drawn = sorted(int(place) for place in generator.choice(grid, min(count, grid), replace=False))
        return [time(_FIRST + place // 2, 30 * (place % 2)) for place in drawn]

    def dialogue(
        self, asked: Sequence[tuple[Event, Sequence[Event]]], again: Problems, attempt: int
    ) -> list[list[Line]]:
        """Where they are, each detail, what was done."""
        return [self._talk(event, attempt) for event, _ in asked]

    def _talk(self, event: Event, attempt: int) -> list[Line]:
        generator = self._generator(f"talk {event.start:%H:%M}", event.day, attempt)
        name, person = self._persona.name, event.people[0]
        if event.routine:
            return [(person, str(generator.choice(_MORNING))), (name, str(generator.choice(_ANSWERS)))]
        greeting = str(generator.choice(_GREETINGS)).format(person=person)
        lines = [(name, f"{greeting} So this is {event.place}.")]
        said = {slot: words for theme in THEMES.values() for slot, _, words, _ in theme.things}
        for detail in event.details:
            lines.append((name, said[detail.slot].format(value=detail.value)))
            lines.append((person, str(generator.choice(_ANSWERS))))
        lines.append((person, f"So you {event.what}. That was good."))
        return lines

    def doubts(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """A line of life that the parent has not."""
        found = []
        for parent, child in pairs:
            known = {self._theme(line) for line in parent.splitlines()}
            lines = [self._theme(line) for line in child.splitlines()]
            strange = [name for name in lines if name and known - {""} and name not in known]
            found.append(f"{strange[0]} is not in the parent" if strange else "")
        return found

    def _theme(self, line: str) -> str:
        """The theme that a line of a text is of; "" for none."""
        name = line.split(":")[0].split(",")[0].strip()
        return name if name in THEMES else ""

    def _generator(self, step: str, first: date, attempt: int) -> np.random.Generator:
        return np.random.default_rng(
            np.random.SeedSequence([self._seed, zlib.crc32(step.encode()), first.toordinal(), attempt])
        )
