"""The world of LifeDialBench's study: a lifelog of dated events that are told anew, told late, or told once and for all.

A day has four events, each with a person, a topic, a place and a time of the day, and a dozen words that say nothing. What
is told of a person and a topic replaces what was told before. On the evening of that day, or of one some days later, events
that nobody replaced until then are asked about: the place, and the time, in words of one's own and with three wrong options
from the past. A share of the events may be told without place and time, and again with them five days later: then the same
evening cannot know what the future says, and the sign of offline minus online turns.

Names are coined, so that a word is a person, a topic, a place or noise and never two of these, and `parse` reads a text
exactly. It stands where a chat model would: `WorldReader` answers by it, and memories that are built extract by it. No
extraction by a model is as good, so that what the study says of built memories is the most that can be said for them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.agents import lifedialbench, memory_systems
from equipoise.agents.lifedialbench import MemoryAnswers, Protocol, Score
from equipoise.agents.memory import MemoryItem, MemorySystem
from equipoise.agents.memory_facts import Fact, FactDecision, SessionFacts
from equipoise.agents.memory_notes import Note, NoteLinks, SessionNote
from equipoise.core.errors import BadInput
from equipoise.data.histories import History, MemoryQuestion, Session, Turn

FIRST = datetime(2024, 1, 1)
PERSONS, TOPICS, PLACES, FILLERS = 60, 10, 40, 300
CLOCKS = tuple(f"{half // 2:02d}:{half % 2 * 30:02d}" for half in range(48))
SLOTS: Mapping[str, str] = {"event_detail": "place", "time_query": "clock"}  # a kind of question, what it asks for
BUILT = ("facts", "notes", "session-notes")  # of which the first two have rules beside the extractor
LATER = 5  # days after which a hidden place and time are told
WARM = 7  # days without questions, after which there are enough wrong options
_BRACKETED = re.compile(r"\[[^\]]*\]")
_WORD = re.compile(r"\d\d:\d\d|[A-Za-z]+")


@dataclass(frozen=True, slots=True)
class Told:
    """What a text tells; "" for what it does not."""

    person: str = ""
    topic: str = ""
    place: str = ""
    clock: str = ""


@dataclass(frozen=True)
class LifeWorld:
    """changed: share of the asked facts that another fact replaces before the end. restated: share of the asked facts that
    are told again, unchanged.
    """

    history: History
    changed: float
    restated: float


@cache
def _names(ending: str, count: int) -> tuple[str, ...]:
    """Coined words of two syllables and an ending of their own."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    order = np.random.default_rng([23, ord(ending)]).permutation(len(syllables) ** 2)[:count]
    return tuple(syllables[place // len(syllables)] + syllables[place % len(syllables)] + ending for place in order)


PERSON_NAMES = tuple(name.capitalize() for name in _names("n", PERSONS))
TOPIC_NAMES, PLACE_NAMES, FILLER_WORDS = _names("s", TOPICS), _names("k", PLACES), _names("l", FILLERS)
_KINDS: Mapping[str, str] = {
    **dict.fromkeys(PERSON_NAMES, "person"),
    **dict.fromkeys(TOPIC_NAMES, "topic"),
    **dict.fromkeys(PLACE_NAMES, "place"),
    **dict.fromkeys(CLOCKS, "clock"),
}


@lru_cache(maxsize=100_000)
def parse(text: str) -> Told:
    """The person, the topic, the place and the time that a text names, the first of each; what stands in [] is no part."""
    found: dict[str, str] = {}
    for word in _WORD.findall(_BRACKETED.sub(" ", text)):
        if word in _KINDS:
            found.setdefault(_KINDS[word], word)
    return Told(**found)


def count_vectors(texts: Sequence[str]) -> NDArray[np.float64]:
    """Counts of the world's words in each text, [n, 459]; one more number, small, gives a text without any a direction."""
    vectors = np.zeros((len(texts), len(_PLACES) + 1))
    vectors[:, -1] = 1e-3
    for row, text in enumerate(texts):
        for word in _WORD.findall(_BRACKETED.sub(" ", text)):
            if (place := _PLACES.get(word)) is not None:
                vectors[row, place] += 1
    return vectors


_PLACES: Mapping[str, int] = {word: place for place, word in enumerate((*_KINDS, *FILLER_WORDS))}


@dataclass(frozen=True)
class _Event:
    id: str
    time: datetime
    told: Told
    fillers: tuple[str, ...]
    hidden: bool

    @property
    def key(self) -> tuple[str, str]:
        return self.told.person, self.told.topic

    def session(self, *, again: bool = False) -> Session:
        shown = replace(self.told, place="", clock="") if self.hidden and not again else self.told
        words = " ".join(filter(None, (shown.person, shown.topic, shown.place, shown.clock, *self.fillers)))
        name, time = (f"{self.id}r", self.time + timedelta(days=LATER)) if again else (self.id, self.time)
        return Session(name, time, (Turn(f"{name}.0", "Me", words),))


def life_world(
    seed: int,
    *,
    days: int = 120,
    persons: int = 12,
    hidden: float = 0.0,
    events: int = 4,
    asked: float = 0.55,
    delays: Sequence[int] = (0,),
) -> LifeWorld:
    """A lifelog and its questions. persons: few meet again often, so that much is replaced. hidden: share of the events
    that are told without place and time, and with them LATER days later; the other draws are the same whatever it is.
    asked: share of the events that are asked about, in two questions each. delays: days until the evening of the questions,
    of which each event has one; events that are replaced by then, and evenings behind the end, are left out.

    Raises BadInput for days that leave none to ask, more persons than there are names, shares outside [0, 1], and delays
    below 0.
    """
    if not 1 <= persons <= PERSONS or days <= WARM or not 1 <= events <= len(CLOCKS):
        raise BadInput(
            f"A world has 1 to {PERSONS} persons, more than {WARM} days and 1 to {len(CLOCKS)} events a day; got {persons}, "
            f"{days} and {events}."
        )
    if not (0 <= hidden <= 1 and 0 <= asked <= 1):
        raise BadInput(f"The shares of hidden and of asked events are {hidden} and {asked}: both are from 0 to 1.")
    if not delays or min(delays) < 0:
        raise BadInput(f"The delays of questions are {list(delays)}: give one or more, of 0 days or more.")
    draw = np.random.default_rng(np.random.SeedSequence([seed, 23, persons]))
    happened: list[_Event] = []
    evenings: dict[str, datetime] = {}
    for day in range(days):
        halves = np.sort(draw.choice(len(CLOCKS), events, replace=False))
        for number, half in enumerate(halves.tolist()):
            told = Told(
                PERSON_NAMES[draw.integers(persons)],
                TOPIC_NAMES[draw.integers(TOPICS)],
                PLACE_NAMES[draw.integers(PLACES)],
                CLOCKS[draw.integers(len(CLOCKS))],
            )
            fillers = tuple(FILLER_WORDS[place] for place in draw.choice(FILLERS, draw.integers(8, 17), replace=False))
            late, chance, waiting = draw.random(3)
            time = FIRST + timedelta(days=day, minutes=30 * half)
            happened.append(_Event(f"e{day}.{number}", time, told, fillers, late < hidden))
            delay = delays[int(waiting * len(delays))]
            if chance < asked and day >= WARM and day + delay < days:
                evenings[happened[-1].id] = FIRST + timedelta(days=day + delay, hours=23, minutes=59)
    said = [event.session() for event in happened]
    end = FIRST + timedelta(days=days)
    said += [event.session(again=True) for event in happened if event.hidden and event.time + timedelta(LATER) < end]
    sessions = tuple(sorted(said, key=lambda session: (session.time, session.id)))
    told_at: dict[tuple[str, str], list[datetime]] = {}
    for event in happened:
        told_at.setdefault(event.key, []).append(event.time)
    chosen = [
        event
        for event in happened
        if event.id in evenings and not any(event.time < time <= evenings[event.id] for time in told_at[event.key])
    ]
    names = {session.id for session in sessions}
    questions: list[MemoryQuestion] = []
    for event in chosen:
        # of what is told late the evidence is the later telling, which no evening knows
        late = f"{event.id}r"
        questions += _questions(event, happened, evenings[event.id], f"{late if late in names else event.id}.0", seed)
    many = max(len(chosen), 1)
    return LifeWorld(
        History(f"life-{seed}", sessions, tuple(questions)),
        changed=sum(told_at[event.key][-1] > event.time for event in chosen) / many,
        restated=sum(f"{event.id}r" in names for event in chosen) / many,
    )


def _questions(
    event: _Event, happened: Sequence[_Event], evening: datetime, evidence: str, seed: int
) -> list[MemoryQuestion]:
    """The place and the time of an event. One of the wrong options is what was told before of the same person and topic,
    where that was something else.
    """
    made: list[MemoryQuestion] = []
    for kind, slot in SLOTS.items():
        draw = np.random.default_rng(np.random.SeedSequence([seed, *f"{kind} {event.id}".encode()]))
        gold = getattr(event.told, slot)
        past = [other for other in happened if other.time <= evening and getattr(other.told, slot) != gold]
        stale = [getattr(other.told, slot) for other in past if other.key == event.key][-1:]
        others = sorted({getattr(other.told, slot) for other in past} - {*stale})
        wrong = stale + draw.choice(others, 3 - len(stale), replace=False).tolist()
        options = draw.permutation([gold, *wrong]).tolist()
        asked = "Which place" if slot == "place" else "What time"
        made.append(
            MemoryQuestion(
                id=f"{event.id} {slot}",
                text=f"{asked}, for {event.told.topic} with {event.told.person}?",
                time=evening,
                gold=(gold,),
                options=tuple(options),
                right=options.index(gold),
                evidence=(evidence,),
                kind=kind,
                group=f"{evening:%Y-%m-%d}",
            )
        )
    return made


class WorldReader:
    """Of the texts that name the asked person and topic the newest that has what is asked for.

    A text that names another person or topic is none of these; of those that name only one of the two, both before one. An
    open answer is its place or time; where there is no such text, one of the options that some text names, else nothing. A
    choice is of the newest such text whose value is an option; else one of the options that some text names, else any. What
    is guessed depends on the question and the words of the options alone.
    """

    name = "exact reader"

    def read(
        self, question: MemoryQuestion, items: Sequence[MemoryItem], context: str, now: datetime
    ) -> tuple[str, int | None]:
        """The answer in words, and the place of the option. Raises BadInput for a question of another kind."""
        if question.kind not in SLOTS:
            raise BadInput(f"{question.id!r} is of the kind {question.kind!r}: this reader knows {', '.join(SLOTS)}.")
        slot, asked = SLOTS[question.kind], parse(question.text)
        found: list[tuple[int, datetime, int, str]] = []
        named: set[str] = set()
        for place, item in enumerate(items):
            told = parse(item.text)
            value = getattr(told, slot)
            if not value:
                continue
            named.add(value)
            keys = (told.person == asked.person) + (told.topic == asked.topic)
            if keys and told.person in ("", asked.person) and told.topic in ("", asked.topic):
                found.append((keys, item.time, place, value))
        values = [value for *_, value in sorted(found, reverse=True)]
        offered = [option for option in question.options if option in named]
        chosen = next((value for value in values if value in question.options), None)
        if chosen is None and question.options:
            chosen = _guess(question, offered or question.options)
        text = values[0] if values else _guess(question, offered) if offered else ""
        return text, None if chosen is None else question.options.index(chosen)


def _guess(question: MemoryQuestion, among: Sequence[str]) -> str:
    return min(among, key=lambda option: hashlib.sha256(f"{question.id} {option}".encode()).digest())


# --- memories that are built ----------------------------------------------------------------------------------------------


class WorldExtractor:
    """Draws out of a text what `parse` reads in it: as a fact, as a note beside the text, as a note in place of a session.

    missed: the share of places and times that it overlooks, by a hash of the text.
    """

    def __init__(self, missed: float = 0.0) -> None:
        self.name, self._missed = "the world's parser", missed

    def facts(self, session: Session) -> SessionFacts:
        """One line for each turn that tells a place or a time."""
        found = [(self._told(turn.text), turn.id) for turn in session.turns]
        return SessionFacts(tuple(Fact(_line(told), (name,)) for told, name in found if told.place or told.clock))

    def note(self, text: str) -> Note:
        """The text with its person and topic, as keywords and as context."""
        told = self._told(text)
        keywords = tuple(filter(None, (told.person, told.topic)))
        return Note(text, keywords, keywords[1:], " ".join(("about", *keywords)) if keywords else "")

    def session_note(self, session: Session) -> SessionNote:
        """Topic and person as its title, place and time as its summary."""
        told = self._told(" ".join(turn.text for turn in session.turns))
        title = " with ".join(filter(None, (told.topic, told.person)))
        return SessionNote(title, " ".join(filter(None, (told.place, told.clock))), (told.topic,) if told.topic else ())

    def _told(self, text: str) -> Told:
        told = parse(text)
        kept = {slot: "" for slot in SLOTS.values() if memory_systems.uniform(f"{slot} {text}") < self._missed}
        return replace(told, **kept)


class WorldDecider:
    """Merges what is of one person and topic: a newer fact replaces the older one; a newer note is linked to those that were
    shown, and their context then says that there is a newer one.
    """

    name = "the world's rules"

    def decide(self, fact: Fact, held: Sequence[MemoryItem]) -> FactDecision:
        """update of the fact of the same person and topic, none where it says the same, add where there is none."""
        told = parse(fact.text)
        for place, item in enumerate(held):
            known = parse(item.text)
            if (known.person, known.topic) == (told.person, told.topic):
                return FactDecision("none") if known == told else FactDecision("update", place, fact.text)
        return FactDecision("add")

    def link(self, note: Note, held: Sequence[Note]) -> NoteLinks:
        """Links to all of the same person and topic."""
        same = [place for place, each in enumerate(held) if note.keywords and each.keywords == note.keywords]
        told_again = " ".join(("about", *note.keywords, "told again later"))
        return NoteLinks(tuple(same), rewritten={place: (told_again, held[place].tags) for place in same})


def _line(told: Told) -> str:
    return " ".join(filter(None, (told.person, told.topic, told.place, told.clock)))


def world_memory(name: str, *, k: int, budget: int | None = None, missed: float = 0.0, **options: Any) -> MemorySystem:
    """A memory of `memory_systems.build` with this world's reader, vectors, and, where it is built, extractor and rules.

    missed: share of places and times that the extractor overlooks.
    """
    how: dict[str, Any] = {"embedder": count_vectors, "k": k, "budget": budget, **options}
    if name in BUILT:
        how["extractor"] = WorldExtractor(missed)
    if name in BUILT[:2]:
        how["decider"] = WorldDecider()
    return memory_systems.build(name, reader=WorldReader(), **how)  # pyright: ignore[reportArgumentType]


# --- measuring ------------------------------------------------------------------------------------------------------------

UPDATES: Mapping[str, Any] = {"persons": 12, "delays": (0, 2, 7, 30)}
LATE: Mapping[str, Any] = {"persons": 60}
HIDDEN = (0.0, 0.5, 1.0)  # the path of the second world
ITEMS = 5  # that are read where all read as many
TOKENS, OTHERS = 100, (50, 200)  # that are read where all may read as many; with others, online alone
MANY = 50  # items that are found where tokens decide how many are read
PROTOCOLS: tuple[Protocol, ...] = ("online", "asof", "offline")
AGES = (1.0, 5.0, 20.0)  # days
SCORES: Mapping[str, Score] = {"open": "open", "choice": "choice", "recall": "evidence"}


def measure(run: Any, *, memory: str, days: int, late: bool, options: Mapping[str, Any]) -> None:
    """One arm and seed: each world, with equal k and with equal printed tokens, under the three protocols.

    late: also the world whose facts are told late, with equal k. The worlds are the same for all arms of a seed.
    """
    updates = life_world(run.seed, days=days, **UPDATES)
    held = [("k", {"k": ITEMS}), *((f"{tokens} tokens", {"k": MANY, "budget": tokens}) for tokens in (TOKENS, *OTHERS))]
    for equal, how in held:
        where = {"world": "updates", "equal": equal}
        system = world_memory(memory, **how, **options)
        protocols = PROTOCOLS if how.get("budget") not in OTHERS else PROTOCOLS[:1]
        _measure(run, system, updates.history, protocols, {"hidden": 0.0}, where)
    worlds = [("updates", 0.0, updates)]
    for hidden in HIDDEN if late else ():
        world = life_world(run.seed, days=days, hidden=hidden, **LATE)
        where = {"world": "late", "equal": "k"}
        system = world_memory(memory, k=ITEMS, **options)
        _measure(run, system, world.history, PROTOCOLS, {"hidden": hidden}, where)
        worlds.append(("late", hidden, world))
    if memory == "empty":
        for name, hidden, world in worlds:
            run.measure("changed", world.changed, at={"hidden": hidden}, where={"world": name})
            run.measure("restated", world.restated, at={"hidden": hidden}, where={"world": name})


def _measure(
    run: Any,
    system: MemorySystem,
    history: History,
    protocols: Sequence[Protocol],
    at: Mapping[str, float],
    where: Mapping[str, str],
) -> None:
    answers: dict[Protocol, MemoryAnswers] = {}
    for protocol in protocols:
        answers[protocol] = lifedialbench.run(system, history, protocol=protocol, after=answers.get("online"))
        run.beat()
    ids = [f"{run.seed} {question.id}" for question in answers["online"].questions]
    scores = {}
    for protocol, given in answers.items():
        under = {**where, "protocol": protocol}
        for outcome, score in SCORES.items():
            scores[outcome, protocol] = lifedialbench.scored(given, score)
            run.items(outcome, ids, scores[outcome, protocol], at=at, where=under)
        run.items("printed_tokens", ids, [row.read_tokens for row in given.rows], at=at, where=under)
    phase = " ".join([where["world"], where["equal"], *([f"{at['hidden']:g}"] if where["world"] == "late" else [])])
    run.spend(phase=f"build, {phase}", **answers["online"].build)
    for given in answers.values():
        run.spend(phase=f"{given.protocol}, {phase}", **given.read)
    if "offline" not in answers:
        return
    for outcome, more, less in (("modification", "online", "asof"), ("contamination", "asof", "offline")):
        run.items(outcome, ids, scores["open", more] - scores["open", less], at=at, where=where)
    later = lifedialbench.contamination(answers["offline"], "open", generator=np.random.default_rng(run.seed))
    run.measure("later_auroc", later.overall.estimate, at=at, where=where)
    run.measure("later_auroc_within", later.within, at=at, where=where)
    if where["world"] == "updates":
        for band in lifedialbench.by_age(answers["online"], "open", edges=AGES):
            aged = {**where, "age": f"{max(band.low, 0):g} to {band.high:g} days"}
            run.measure("open_by_age", band.share.count, of=band.share.of, at=at, where=aged)
