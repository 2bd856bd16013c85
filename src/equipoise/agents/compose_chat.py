"""A chat model as the writer of a life and of questions about it: a call for each record, each answer a checked JSON object.

Every call is kept in the folder's calls.jsonl before the next step begins, so that a run that was killed asks only for what
is missing. A record that is written anew is told what was wrong with it. What a model makes up is not trusted: dates, turns
and the words of details are checked by `compose`, and of questions these are dropped, each counted by its reason: without
three wrong answers that were said before, with a date that neither the model nor a rule could take out, and those
that the model cannot answer from the words of the events that the question names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, time
from importlib.resources import files
from typing import Any, TypeVar

from pydantic import BaseModel, Field

from equipoise.agents import leaks
from equipoise.agents.compose import Dated, Detail, Event, Line, Neighbours, Period, Persona, Problems, Slot, Spoken
from equipoise.agents.compose_questions import OPTIONS, Draft
from equipoise.chat.calls import Call
from equipoise.chat.client import Chat, answers
from equipoise.chat.templates import Template
from equipoise.data.answers import contains, normalize
from equipoise.data.lifelogs import KINDS

EARLIER = 30  # earlier events that a question's wrong answers may come from

_PROMPTS = files("equipoise.agents") / "prompts"
_Kind = TypeVar("_Kind", bound=BaseModel)


class WrittenRecord(BaseModel):
    """A dated record."""

    start: date
    end: date
    text: str


class Allocation(BaseModel):
    """The records of a parent."""

    records: list[WrittenRecord]


class Enrichment(BaseModel):
    """The expanded text."""

    text: str


class WrittenDetail(BaseModel):
    """A detail of an event."""

    slot: str
    value: str


class WrittenEvent(BaseModel):
    """An event of a day."""

    start: time
    end: time
    place: str
    people: list[str]
    what: str
    details: list[WrittenDetail] = []
    routine: bool = False


class DayEvents(BaseModel):
    """The events of a day."""

    events: list[WrittenEvent]


class WrittenTurn(BaseModel):
    """What one person says."""

    speaker: str
    text: str


class Dialogue(BaseModel):
    """A conversation."""

    turns: list[WrittenTurn]


class Doubt(BaseModel):
    """What a part says against its plan."""

    contradicts: bool
    what: str = ""


class WrittenQuestion(BaseModel):
    """A question with its answers. events: from 1, of the day."""

    kind: str
    question: str
    answer: str
    wrong: list[str]
    events: list[int] = Field(min_length=1)


class WrittenQuestions(BaseModel):
    """The questions of a day."""

    questions: list[WrittenQuestion]


class Undated(BaseModel):
    """A question without dates."""

    question: str


class Chosen(BaseModel):
    """An answer with what tells it; option from 1, 0 for none."""

    evidence: str
    option: int


class ChatWriter:
    """writer: writes; critic: doubts, and answers the questions, mostly the same model. events_per_day: at most."""

    def __init__(
        self,
        persona: Persona,
        writer: Chat,
        critic: Chat,
        *,
        events_per_day: int = 4,
        temperature: float = 0.7,
        max_tokens: int = 2048,
    ) -> None:
        self.name = writer.name
        self._persona, self._writer, self._critic = persona, writer, critic
        self._events, self._temperature, self._max_tokens = events_per_day, temperature, max_tokens
        network = ", ".join(
            f"{person.name} ({person.relation})" if person.relation else person.name for person in persona.people
        )
        self._told = f"{persona.name}. {persona.about}\nPeople: {network or 'nobody is named'}"

    def allocate(
        self, parents: Sequence[Period], slots: Sequence[Sequence[Slot]], again: Problems, attempt: int
    ) -> list[list[Dated] | None]:
        """One call a parent."""
        calls = [
            self._call(
                "allocate",
                Allocation,
                attempt,
                parent=parent.name,
                text=_given(parent.text),
                parts=[f"{first} to {last}" for first, last in parts],
                fixed=_fixed(parent),
                again=_again(wrong),
            )
            for parent, parts, wrong in zip(parents, slots, again, strict=True)
        ]
        made = self._ask(self._writer, calls, "Dividing periods")
        return [
            None if each is None else [Dated(record.start, record.end, record.text) for record in each.records]
            for each in made
        ]

    def enrich(self, asked: Sequence[Neighbours], again: Problems, attempt: int) -> list[str | None]:
        """One call a record."""
        calls = [
            self._call(
                "enrich",
                Enrichment,
                attempt,
                parent=_given(each.parent.text),
                before=_given(each.before),
                record=each.record.name,
                text=_given(each.record.text),
                behind=_given(each.behind),
                fixed=_fixed(each.record),
                again=_again(wrong),
            )
            for each, wrong in zip(asked, again, strict=True)
        ]
        return [None if each is None else each.text for each in self._ask(self._writer, calls, "Expanding periods")]

    def events(self, asked: Sequence[Neighbours], again: Problems, attempt: int) -> list[list[Event] | None]:
        """One call a day."""
        calls = [
            self._call(
                "events",
                DayEvents,
                attempt,
                day=f"{each.record.start:%Y-%m-%d}",
                text=_given(each.record.text),
                before=_given(each.before),
                behind=_given(each.behind),
                count=self._events,
                fixed=_fixed(each.record),
                again=_again(wrong),
            )
            for each, wrong in zip(asked, again, strict=True)
        ]
        made = self._ask(self._writer, calls, "Writing events")
        return [
            None if day is None else [self._event(each.record.start, event) for event in day.events[: self._events]]
            for each, day in zip(asked, made, strict=True)
        ]

    def _event(self, day: date, event: WrittenEvent) -> Event:
        return Event(
            day,
            event.start.replace(tzinfo=None),
            event.end.replace(tzinfo=None),
            event.place.strip(),
            tuple(person.strip() for person in event.people if person.strip() != self._persona.name),
            event.what.strip(),
            tuple(
                Detail(detail.slot.strip(), detail.value.strip())
                for detail in event.details
                if normalize(detail.slot) and normalize(detail.value)
            ),
            event.routine,
        )

    def dialogue(
        self, asked: Sequence[tuple[Event, Sequence[Event]]], again: Problems, attempt: int
    ) -> list[list[Line] | None]:
        """One call an event."""
        calls = [
            self._call(
                "dialogue",
                Dialogue,
                attempt,
                before=_given("\n".join(_event_line(other) for other in before)),
                event=_event_line(event),
                details=_given("\n".join(f"{detail.slot}: {detail.value}" for detail in event.details)),
                again=_again(wrong),
            )
            for (event, before), wrong in zip(asked, again, strict=True)
        ]
        made = self._ask(self._writer, calls, "Writing dialogues")
        return [
            None if each is None else [(turn.speaker.strip(), turn.text.strip()) for turn in each.turns]
            for each in made
        ]

    def doubts(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """One call a pair that has both; what the critic cannot say counts as no doubt."""
        asked = [place for place, (parent, child) in enumerate(pairs) if parent.strip() and child.strip()]
        calls = [
            _call("doubt", Doubt, 0, 0.0, self._max_tokens, parent=pairs[place][0], child=pairs[place][1])
            for place in asked
        ]
        found = [""] * len(pairs)
        for place, doubt in zip(asked, self._ask(self._critic, calls, "Checking"), strict=True):
            if doubt is not None and doubt.contradicts:
                found[place] = doubt.what.strip() or "it contradicts the plan"
        return found

    def questions(self, spoken: Sequence[Spoken], per_day: int) -> tuple[list[Draft], dict[str, int]]:
        """Questions of each day, and why others were dropped: three calls at most for each."""
        dropped: dict[str, int] = {}

        def drop(reason: str) -> None:
            dropped[reason] = dropped.get(reason, 0) + 1

        days: dict[date, list[int]] = {}
        for place, each in enumerate(spoken):
            if not each.event.routine:
                days.setdefault(each.event.day, []).append(place)
        calls = [self._asking(spoken, day, places, per_day) for day, places in days.items()]
        made = self._ask(self._writer, calls, "Writing questions")
        drafts: list[Draft] = []
        for (day, places), asked in zip(days.items(), made, strict=True):
            kinds: set[str] = set()
            if asked is None:
                drop("no list of questions")
            for each in () if asked is None else asked.questions:
                draft = _draft(each, day, places, spoken, kinds)
                if isinstance(draft, str):
                    drop(draft)
                elif len(kinds) < per_day:
                    kinds.add(draft.kind)
                    drafts.append(draft)
        return self._answered(spoken, self._undated(drafts, drop), drop), dropped

    def _asking(self, spoken: Sequence[Spoken], day: date, places: Sequence[int], per_day: int) -> Call:
        earlier = [each.event for each in spoken[: places[0]] if not each.event.routine][-EARLIER:]
        return _call(
            "questions",
            WrittenQuestions,
            0,
            self._temperature,
            self._max_tokens,
            name=self._persona.name,
            day=f"{day}",
            events=[_event_line(spoken[place].event) for place in places],
            earlier=[_event_line(event) for event in earlier] or ["nothing"],
            count=per_day,
        )

    def _undated(self, drafts: Sequence[Draft], drop: Callable[[str], None]) -> list[Draft]:
        """Without dates in the wording: by the model, then by rule; one of which nothing is left is dropped."""
        wrong = [draft for draft in drafts if leaks.dated(draft.text)]
        calls = [_call("undated", Undated, 0, 0.0, self._max_tokens, question=draft.text) for draft in wrong]
        asked = dict(zip(map(id, wrong), self._ask(self._writer, calls, "Taking dates out"), strict=True))
        kept = []
        for draft in drafts:
            text = draft.text
            if id(draft) in asked:
                anew = asked[id(draft)]
                text = leaks.without_dates(text if anew is None else anew.question)
            if len(text.split()) < 3 or contains(text, draft.gold):
                drop("a date or the answer in its wording")
            else:
                kept.append(Draft(draft.kind, text, draft.gold, draft.distractors, draft.events, draft.day))
        return kept

    def _answered(self, spoken: Sequence[Spoken], drafts: Sequence[Draft], drop: Callable[[str], None]) -> list[Draft]:
        """Those that the critic answers, with words as evidence that were said."""
        said = [
            "\n".join(
                f"[{spoken[place].event.begins:%Y-%m-%d %H:%M}] {who}: {words}"
                for place in draft.events
                for who, words in spoken[place].lines
            )
            for draft in drafts
        ]
        shown = [sorted((draft.gold, *draft.distractors)) for draft in drafts]
        calls = [
            _call("answer", Chosen, 0, 0.0, self._max_tokens, said=text, question=draft.text, options=options)
            for draft, text, options in zip(drafts, said, shown, strict=True)
        ]
        kept = []
        made = self._ask(self._critic, calls, "Answering the questions")
        for draft, text, options, chosen in zip(drafts, said, shown, made, strict=True):
            right = chosen is not None and chosen.option == options.index(draft.gold) + 1
            if chosen is not None and right and contains(text, chosen.evidence):
                kept.append(draft)
            else:
                drop("not answered from what was said")
        return kept

    def _call(self, prompt: str, schema: type[BaseModel], attempt: int, **slots: Any) -> Call:
        return _call(prompt, schema, attempt, self._temperature, self._max_tokens, persona=self._told, **slots)

    def _ask(self, chat: Chat, calls: Sequence[Call], title: str) -> list[Any]:
        """The values; None for a reply that is none."""
        return [reply.value for reply in answers(chat, calls, title)] if calls else []


def _call(
    prompt: str, schema: type[BaseModel], attempt: int, temperature: float, max_tokens: int, **slots: Any
) -> Call:
    messages = Template.read(_PROMPTS / f"compose_{prompt}.md").render(**slots)
    return Call(tuple(messages), prompt, schema, max_tokens=max_tokens, temperature=temperature, sample=attempt)


def _draft(
    asked: WrittenQuestion, day: date, places: Sequence[int], spoken: Sequence[Spoken], kinds: set[str]
) -> Draft | str:
    """The draft, or why it is none."""
    if asked.kind not in KINDS or asked.kind in kinds:
        return "of no kind, or of one that the day has"
    if not all(1 <= number <= len(places) for number in asked.events):
        return "events that are not of the day"
    options = {normalize(text): text.strip() for text in (asked.answer, *asked.wrong)}
    options.pop("", None)
    if len(asked.wrong) != OPTIONS - 1 or len(options) != OPTIONS:
        return "not three wrong answers that differ"
    past = " ".join(
        f"{each.event.text} {each.event.start:%H:%M} " + " ".join(words for _, words in each.lines)
        for each in spoken
        if each.event.day <= day
    )
    if not all(contains(past, text) for text in asked.wrong):
        return "a wrong answer that was not said before"
    events = tuple(places[number - 1] for number in sorted(set(asked.events)))
    return Draft(asked.kind, asked.question.strip(), asked.answer.strip(), tuple(asked.wrong), events, day)


def _event_line(event: Event) -> str:
    people = f", with {', '.join(event.people)}" if event.people else ""
    known = "; ".join(f"{detail.slot}: {detail.value}" for detail in event.details)
    return f"{event.start:%H:%M} to {event.end:%H:%M}, {event.place}{people}: {event.what}" + (
        f" ({known})" if known else ""
    )


def _given(text: str) -> str:
    return text.strip() or "nothing"


def _fixed(period: Period) -> str:
    return _given("\n".join(f"{fixed.day}: {fixed.text}" for fixed in period.fixed))


def _again(problems: Sequence[Any]) -> str:
    """What was wrong with the last writing, for the next."""
    if not problems:
        return ""
    return "\nAn earlier answer could not be used: " + "; ".join(problem.text for problem in problems) + ".\n"
