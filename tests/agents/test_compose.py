"""A life from the top down: the calendar, the checks of each step, the gates, the questions and what gives answers away."""

import json
import math
from collections import Counter
from dataclasses import replace
from datetime import date, datetime, time

import pytest

from equipoise.agents import compose as top_down
from equipoise.agents.compose import (
    Acquaintance,
    Dated,
    Detail,
    Event,
    Fixed,
    Period,
    Persona,
    Problem,
    Spoken,
    allocation_problems,
    compose,
    dates_in,
    enriched_problems,
    event_problems,
    mend,
    read_persona,
    repetition_problems,
    similar,
    slots,
    spoken_problems,
)
from equipoise.agents.compose_questions import history_of, make_questions
from equipoise.agents.compose_templates import THEMES, TemplateWriter
from equipoise.agents.leaks import _Heard, dated, lint, without_dates
from equipoise.agents.lifedialbench import stream_digest
from equipoise.core.errors import BadInput
from equipoise.data.answers import contains
from equipoise.data.histories import History, MemoryQuestion, Session, Turn
from equipoise.data.lifelogs import KINDS, lifedial_record, read_histories

NEW_YEAR, MONDAY = date(2024, 1, 1), date(2024, 5, 6)
WEDDING = Fixed(date(2024, 1, 10), "Ida's wedding")
MARA = Persona(
    "Mara", "a nurse", (Acquaintance("Tom", "brother"), Acquaintance("Ida")), ("garden", "choir"), (WEDDING,)
)


def a_life(days=20, persona=MARA, seed=0, repairs=1):
    return compose(persona, NEW_YEAR, days, TemplateWriter(persona, seed=seed), repairs=repairs)


# --- calendar and checks ---------------------------------------------------------------------------------------------


def test_a_year_has_12_months_62_parts_of_weeks_and_366_days():
    months = slots("month", NEW_YEAR, date(2024, 12, 31))
    weeks = [week for first, last in months for week in slots("week", first, last)]
    days = [day for first, last in weeks for day in slots("day", first, last)]
    assert (len(months), len(weeks), len(days)) == (12, 62, 366)
    assert weeks[4:6] == [(date(2024, 1, 29), date(2024, 1, 31)), (date(2024, 2, 1), date(2024, 2, 4))]
    assert days == [(day, day) for day, _ in days] and len(set(days)) == 366
    assert slots("year", NEW_YEAR, date(2024, 3, 1)) == [(NEW_YEAR, date(2024, 3, 1))]
    with pytest.raises(BadInput, match="ends before it begins"):
        slots("day", MONDAY, NEW_YEAR)


def test_days_are_read_out_of_a_text():
    text = "On 2024-05-06, 7 May and June 8th; May I? It may rain in March 2024, on 31 June or 1st of August."
    assert dates_in(text, [2024]) == [MONDAY, date(2024, 5, 7), date(2024, 8, 1), date(2024, 6, 8)]
    assert dates_in("2 May", [2023, 2024]) == [date(2023, 5, 2), date(2024, 5, 2)]


def test_what_is_fixed_may_not_move_and_parts_lie_inside():
    week = Period("week", date(2024, 1, 8), date(2024, 1, 14), "choir", (WEDDING,))
    parts = [(date(2024, 1, 8), date(2024, 1, 10)), (date(2024, 1, 11), date(2024, 1, 14))]
    right = [Dated(*parts[0], "choir; Ida's wedding"), Dated(*parts[1], "rest")]
    assert allocation_problems(week, parts, right) == []

    def texts(records):
        return [problem.text for problem in allocation_problems(week, parts, records)]

    moved = [Dated(*parts[0], "choir"), Dated(*parts[1], "Ida's wedding")]
    assert texts(moved) == [
        '"Ida\'s wedding" of 2024-01-10 is not in 2024-01-08 to 2024-01-10',
        '"Ida\'s wedding" of 2024-01-10 was moved into 2024-01-11 to 2024-01-14',
    ]
    outside = Dated(date(2024, 1, 11), date(2024, 1, 15), "rest")
    assert texts([right[0], outside]) == [
        "2024-01-11 to 2024-01-15 lies outside week 2024-01-08 to 2024-01-14",
        "2024-01-11 to 2024-01-14 is missing",
    ]
    assert texts([*right, right[1]]) == ["2024-01-11 to 2024-01-14 stands twice"]
    assert texts([Dated(date(2024, 1, 9), date(2024, 1, 9), "x"), *right]) == [
        "2024-01-09 to 2024-01-09 is no part of the calendar"
    ]
    assert [problem.kind for problem in allocation_problems(week, parts, None)] == ["unusable"]
    mended = mend(week, parts, [*moved, outside], "day")
    assert [period.text for period in mended] == ["choir\n2024-01-10: Ida's wedding", ""]
    assert [period.fixed for period in mended] == [(WEDDING,), ()]


def test_mending_takes_out_words_and_no_letters_of_them():
    fixed = (Fixed(date(2024, 1, 10), "run"), Fixed(date(2024, 1, 11), "exam (two)"))
    year = Period("year", NEW_YEAR, date(2024, 1, 14), "x", fixed)
    first, second = slots("week", year.start, year.end)
    told = "Running late, overrun by guests; a Run!\nexam (twofold) and exam (two), examined"
    mended = mend(year, (first, second), [Dated(*first, told), Dated(*second, "run, exam two")], "week")
    assert mended[0].text == "Running late, overrun by guests; a !\nexam (twofold) and , examined"
    assert mended[1].text == "run, exam two"  # its own, and there already
    assert not contains(mended[0].text, "run")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Choir, and Ida's wedding on 10 January.", ""),
        ("Choir.", '"Ida\'s wedding" of 2024-01-10 is lost'),
        ("Ida's wedding; on 15 January the choir sings", "2024-01-15 lies outside"),
        ("Ida's wedding, and next week the choir sings", "'next week' is a plan beyond"),
        (" ", "there is no text"),
        (None, "there is no text"),
    ],
)
def test_an_expanded_text_stays_within_its_record(text, problem):
    week = Period("week", date(2024, 1, 8), date(2024, 1, 14), "choir", (WEDDING,))
    found = enriched_problems(week, text)
    assert [problem in each.text for each in found] == ([True] if problem else [])


def an_event(at="09:00", until="10:00", what="sowed beans", day=MONDAY, **more):
    begin, end = (time.fromisoformat(each) for each in (at, until))
    return Event(day, begin, end, "the yard", ("Tom",), what, **more)


def test_events_of_a_day_follow_each_other():
    day = Period("day", MONDAY, MONDAY, "garden", (Fixed(MONDAY, "the fair"),))
    fair = an_event("10:00", "11:00", "went to the fair")
    assert event_problems(day, [fair, an_event()]) == []
    for events, problem in (
        ([fair, an_event(until="10:01")], "begins while 'sowed beans' goes on"),
        ([fair, an_event(until="09:00")], "ends at 09:00:00 and begins at 09:00:00"),
        ([fair, an_event(day=NEW_YEAR)], "is on 2024-01-01, not on 2024-05-06"),
        ([fair, an_event(what="?")], "says nothing of what happens"),
        ([an_event()], "'the fair' of this day is lost"),
        (None, "no list of events"),
    ):
        assert problem in event_problems(day, events)[0].text
    assert [each.kind for each in event_problems(replace(day, fixed=()), [])] == ["unusable"]


def test_every_detail_has_to_be_said():
    event = an_event(details=(Detail("colour of the fence", "dark green"),))
    assert spoken_problems(event, [("Mara", "It will be dark green!")]) == []
    assert "nobody says 'dark green'" in spoken_problems(event, [("Mara", "It will be green, dark as it is.")])[0].text
    assert spoken_problems(event, [("Mara", " ")])[0].kind == spoken_problems(event, [])[0].kind == "unusable"


def test_similarity_is_the_cosine_of_weighted_counts():
    texts = ["red fence", "red fence red", "blue boat", ""]
    # weights ln(4 / 2) + 1 for red and fence, ln(4) + 1 for blue and boat: (1, 1) and (2, 1) of equal weights
    (first, *rest), *_ = similar(texts, k=2)
    assert first == (1, pytest.approx(3 / (2**0.5 * 5**0.5))) and rest[0][1] == 0.0
    assert similar(["one"], k=5) == [[]]
    assert similar([]) == [] == repetition_problems([], [])
    found = repetition_problems(["red fence", "red fence red", "Red fence!", "blue boat"], ["a", "b", "c", "d"])
    assert [[problem.text for problem in each] for each in found] == [
        [],
        ["it is nearly the same as a"],
        ["it is nearly the same as a"],
        [],
    ]


# --- the gates -------------------------------------------------------------------------------------------------------


class Faulty(TemplateWriter):
    """Moves the wedding at first, loses it when asked again, and says nothing of one detail, ever."""

    def __init__(self, mends=True):
        super().__init__(MARA)
        self.mends, self.told = mends, []

    def allocate(self, parents, slots, again, attempt):
        made = super().allocate(parents, slots, again, attempt)
        self.told += [problem.text for each in again for problem in each]
        if parents[0].level == "year" and (attempt == 0 or not self.mends):
            made[0] = [
                replace(record, text=f"garden\n{'' if n else WEDDING.text}") for n, record in enumerate(made[0])
            ][::-1]
            made[0][0] = replace(made[0][0], text=f"garden {WEDDING.text}")
        return made

    def dialogue(self, asked, again, attempt):
        made = super().dialogue(asked, again, attempt)
        return [
            [(who, words.replace("green", "gr-n")) for who, words in each] if event.details else each
            for (event, _), each in zip(asked, made, strict=True)
        ]


def test_what_is_flagged_is_written_anew_and_told_why():
    writer = Faulty()
    made = compose(MARA, NEW_YEAR, 40, writer, repairs=1)
    assert (made.gates[0].step, made.gates[0].flagged, made.gates[0].inconsistent, made.gates[0].left) == (
        "allocate months", 1, 1, 0,
    )  # fmt: skip
    assert any("was moved into 2024-02-01 to 2024-02-09" in text for text in writer.told)
    assert "allocations of months mended by rule" not in made.dropped


def test_what_stays_flagged_is_mended_by_rule_and_counted():
    made = compose(MARA, NEW_YEAR, 40, Faulty(mends=False), repairs=2)
    assert (made.gates[0].flagged, made.gates[0].left) == (1, 1)
    assert made.dropped["allocations of months mended by rule"] == 1
    january, february = (period for period in made.periods if period.level == "month")
    assert contains(january.text, WEDDING.text) and not contains(february.text, WEDDING.text)
    weddings = [each for each in made.spoken if contains(each.event.what, WEDDING.text)]
    assert [each.event.day for each in weddings] == [WEDDING.day]
    assert made.dropped["details that nobody said"] == made.gates[-1].left > 0
    assert not any("green" in detail.value for each in made.spoken for detail in each.event.details)


def test_unusable_records_fall_back_and_end_nothing():
    class Silent(TemplateWriter):
        def enrich(self, asked, again, attempt):
            return [None] * len(asked)

        def events(self, asked, again, attempt):
            return [None, *super().events(asked, again, attempt)[1:]]

        def dialogue(self, asked, again, attempt):
            return [None, *super().dialogue(asked, again, attempt)[1:]]

    made = compose(MARA, NEW_YEAR, 12, Silent(MARA), repairs=0)
    assert made.dropped["texts of days left as they were allocated"] == 12
    assert (made.dropped["days without events"], made.dropped["events without a dialogue"]) == (1, 1)
    assert made.gates[-2].unusable == 1 and made.spoken


# --- templates -------------------------------------------------------------------------------------------------------


def test_a_life_is_the_same_for_its_seed_and_each_day_for_itself():
    life = a_life()
    assert a_life() == life
    assert a_life(seed=1).spoken != life.spoken
    # Days that lie in whole months and weeks of the shorter life too are the same in the longer one.
    month = compose(MARA, NEW_YEAR, 31, TemplateWriter(MARA), repairs=0)
    longer = compose(MARA, NEW_YEAR, 60, TemplateWriter(MARA), repairs=0)
    assert [each for each in longer.spoken if each.event.day <= date(2024, 1, 31)] == list(month.spoken)


@pytest.mark.parametrize(
    ("seed", "lines", "per_day", "kinds", "digest", "said", "lacking"),
    [
        (0, ("garden", "choir"), 4, 4, "4e2f5e9611592c6225317d24fc13ad29dc3220141d2c6ff87f6dccd38bb2e41a",
         ("01-01 10:30", "So you picked the apples. That was good."), (4, 14, 4, 3)),
        (3, (), 2, 3, "13820915d60e7a6d04e33529bb336683c312fc57f030dbbd4bc5f86bf24f79de",
         ("01-01 14:00", "So you tried the new hall. That was good."), (2, 12, 2, 2)),
    ],
)  # fmt: skip
def test_a_seed_is_the_same_life_in_every_version(seed, lines, per_day, kinds, digest, said, lacking):
    """Recorded results name seeds: what is told, and what is asked about it, stays to the letter."""
    persona = replace(MARA, lines=lines)
    life = compose(persona, NEW_YEAR, 20, TemplateWriter(persona, seed=seed, events_per_day=per_day))
    drafts, missed = make_questions("Mara", life.spoken, per_day=kinds, seed=seed)
    history = history_of("Mara", life.spoken, drafts, seed=seed)
    second = history.sessions[1]
    assert (f"{second.time:%m-%d %H:%M}", second.turns[-1].text) == said
    assert [missed[f"{kind}: too little before for three distractors"] for kind in KINDS] == list(lacking)
    assert stream_digest(history) == digest
    flagged = [(gate.flagged, gate.repeated, gate.left) for gate in life.gates[5:7]]
    assert flagged == ([(8, 8, 6), (3, 3, 1)] if seed == 0 else [(1, 1, 0), (1, 1, 0)]) and life.dropped == {}


def test_a_life_keeps_its_rules():
    life = a_life(60)
    by_day = Counter(each.event.day for each in life.spoken)
    assert sorted(by_day) == [day for day, _ in slots("day", NEW_YEAR, date(2024, 2, 29))]
    assert max(by_day.values()) <= 5  # four and the morning
    begins = [each.event.begins for each in life.spoken]
    assert begins == sorted(begins)
    for period in life.periods:
        assert enriched_problems(period, period.text) == []
    for each in life.spoken:
        assert spoken_problems(each.event, each.lines) == []
    assert all(gate.inconsistent == gate.unusable == 0 for gate in life.gates)
    assert [each.event.day for each in life.spoken if contains(each.event.what, "Ida's wedding")] == [WEDDING.day]
    themes = {each.event.place for each in life.spoken}
    assert not themes & {"the office", "the lake"}  # the persona has neither work nor running


@pytest.mark.parametrize(
    ("persona", "named"),
    [
        (replace(MARA, lines=("gardens",)), "know no line 'gardens'. Did you mean 'garden'"),
        (replace(MARA, people=()), "nobody to talk to"),
        (replace(MARA, fixed=(Fixed(date(2024, 3, 1), "x"),)), "fixed to 2024-03-01, outside 2024-01-01 to 2024-01-20"),
    ],
)
def test_a_persona_that_cannot_be_told_is_refused(persona, named):
    with pytest.raises(BadInput, match=named):
        a_life(persona=persona)
    for days in (0, 10**7):
        with pytest.raises(BadInput, match=r"use at least 1|beyond the calendar"):
            a_life(days)


def test_a_persona_is_read_strictly(tmp_path):
    path = tmp_path / "p.json"
    told = {
        "name": "Mara",
        "about": "a nurse",
        "people": [{"name": "Tom", "relation": "brother"}, "Ida"],
        "lines": ["garden", "choir"],
        "fixed": [{"date": "2024-01-10", "text": "Ida's wedding"}],
    }
    path.write_text(json.dumps(told))
    assert read_persona(path) == MARA
    for change, named in (
        ({"nam": 1}, "no field 'nam' here"),
        ({"people": [3]}, "field 'people': expected names"),
        ({"people": ["Mara"]}, "names that are not the same"),
        ({"fixed": [{"date": "soon", "text": "x"}]}, "fixed 1: field 'date': expected an ISO date"),
    ):
        path.write_text(json.dumps(told | change))
        with pytest.raises(BadInput, match=named):
            read_persona(path)
    path.write_text(json.dumps([told, told]))
    with pytest.raises(BadInput, match="has 2 personas"):
        read_persona(path)


# --- questions -------------------------------------------------------------------------------------------------------


def test_questions_are_of_four_kinds_and_know_nothing_of_the_future():
    life = a_life(40)
    drafts, _ = make_questions("Mara", life.spoken)
    assert {draft.kind for draft in drafts} == {"single_event", "event_detail", "multi_event", "time_query"}
    for draft in drafts:
        past = [each.event for each in life.spoken if each.event.day <= draft.day]
        known = {event.what for event in past} | {f"{event.start:%H:%M}" for event in past}
        known |= {detail.value for event in past for detail in event.details}
        for option in (draft.gold, *draft.distractors):
            assert set(option.split(", then ")) <= known, draft
        assert len({draft.gold, *draft.distractors}) == 4
        assert all(not life.spoken[place].event.routine for place in draft.events)
        assert life.spoken[draft.events[-1]].event.day == draft.day


def test_a_question_is_the_same_whatever_comes_after_its_day():
    life = a_life(40)
    early = [each for each in life.spoken if each.event.day <= date(2024, 1, 20)]
    drafts, _ = make_questions("Mara", life.spoken, seed=3)
    assert make_questions("Mara", early, seed=3)[0] == [draft for draft in drafts if draft.day <= date(2024, 1, 20)]


def test_the_newest_value_is_right_and_the_older_ones_distract():
    values = ["green", "white", "ochre", "grey"]
    spoken = [
        Spoken(an_event(day=date(2024, 5, n), details=(Detail("fence", value, "Which fence?"),)), (("Mara", value),))
        for n, value in enumerate(values, start=1)
    ]
    drafts, missed = make_questions("Mara", spoken)
    (detail,) = [draft for draft in drafts if draft.kind == "event_detail"]
    assert (detail.day, detail.text, detail.gold) == (date(2024, 5, 4), "Which fence?", "grey")
    assert sorted(detail.distractors) == ["green", "ochre", "white"]
    assert missed["event_detail: too little before for three distractors"] == 3
    assert make_questions("Mara", spoken, per_day=0) == ([], {})
    with pytest.raises(BadInput, match="5 questions a day: use 0 to 4"):
        make_questions("Mara", spoken, per_day=5)


def told(*events):
    """(day of May, hour, place, people, what), each as an event of an hour."""
    return [
        Spoken(Event(date(2024, 5, day), time(hour), time(hour + 1), place, people, what), (("Mara", what),))
        for day, hour, place, people, what in events
    ]


def of_kind(kind, spoken, **more):
    return [draft for draft in make_questions("Mara", spoken, **more)[0] if draft.kind == kind]


def test_a_single_thing_is_asked_of_the_last_time_there_with_somebody():
    before = (
        (1, 8, "yard", ("Tom",), "sowed"), (1, 10, "yard", ("Ida",), "weeded"), (2, 9, "lake", ("Tom",), "swam"),
        (2, 11, "lake", ("Ida",), "fished"), (2, 13, "lake", ("Ida",), "rowed"),
    )  # fmt: skip
    draft = of_kind("single_event", told(*before, (3, 9, "yard", ("Tom", "Ida"), "raked")))[-1]
    assert (draft.text, draft.gold) == ("What did Mara do the last time with Tom at yard?", "raked")
    assert set(draft.distractors[:2]) == {"sowed", "weeded"} and draft.distractors[2] in ("swam", "fished", "rowed")
    assert draft.events == (5,) and draft.day == date(2024, 5, 3)
    # With another, elsewhere, or earlier, it is still the last time; later on the same day with the same it is not.
    for after, golds in (
        ((3, 12, "yard", ("Ida",), "dug"), {"raked", "dug"}),
        ((3, 12, "yard", ("Ida", "Tom"), "dug"), {"raked", "dug"}),
        ((3, 12, "pier", ("Tom",), "dug"), {"raked", "dug"}),
        ((3, 12, "yard", ("Tom",), "dug"), {"dug"}),
        ((3, 12, "", ("Tom",), "dug"), {"raked"}),
        ((3, 12, "pier", (), "dug"), {"raked"}),
    ):
        asked_for = {
            of_kind("single_event", told(*before, (3, 9, "yard", ("Tom",), "raked"), after), seed=seed)[-1].gold
            for seed in range(12)
        }
        assert asked_for == golds, after


def test_three_earlier_things_are_enough_and_two_are_not():
    before = ((1, 8, "yard", ("Tom",), "sowed"), (1, 10, "yard", ("Ida",), "weeded"), (2, 9, "lake", ("Ida",), "swam"))
    asked_of = (3, 9, "yard", ("Tom",), "raked")
    (draft,) = [each for each in of_kind("single_event", told(*before, asked_of)) if each.gold == "raked"]
    assert sorted(draft.distractors) == ["sowed", "swam", "weeded"]
    assert not [each for each in of_kind("single_event", told(*before[1:], asked_of)) if each.gold == "raked"]


def test_two_things_with_somebody_are_asked_in_their_order():
    events = (
        (1, 8, "yard", ("Tom",), "sowed"), (1, 10, "yard", ("Tom",), "weeded"), (2, 9, "lake", ("Ida",), "swam"),
        (3, 9, "yard", ("Tom",), "raked"),
    )  # fmt: skip
    (draft,) = of_kind("multi_event", told(*events))
    assert (draft.text, draft.gold) == (
        "Which two things did Mara last do with Tom, in this order?", "weeded, then raked",
    )  # fmt: skip
    assert draft.events == (1, 3) and draft.day == date(2024, 5, 3)
    assert set(draft.distractors) in (
        {"weeded, then swam", "sowed, then raked", "sowed, then swam"},
        {"weeded, then sowed", "swam, then raked", "swam, then sowed"},
    )
    # One other thing is too few; the same thing twice is no order; one time alone with somebody is none.
    assert not of_kind("multi_event", told(*events[1:2], events[2], events[3]))
    assert not of_kind("multi_event", told(*events[:3], (3, 9, "yard", ("Tom",), "weeded")))
    assert not of_kind("multi_event", told(*events[:2], (3, 9, "lake", ("Ida",), "swam"), events[2])[:3])


def test_times_are_those_at_which_something_last_began():
    events = ((1, 8, "a", (), "sowed"), (1, 10, "b", (), "weeded"), (2, 9, "c", (), "swam"), (3, 7, "d", (), "sowed"))
    (draft,) = of_kind("time_query", told(*events))
    assert (draft.text, draft.gold) == ("When Mara last sowed, at what time did that begin?", "07:00")
    assert sorted(draft.distractors) == ["08:00", "09:00", "10:00"] and draft.events == (3,)


def test_questions_are_numbered_by_day_and_asked_at_its_end():
    drafts = of_kind("time_query", told(*((n, 6 + n, "a", (), f"sowed {n}") for n in range(1, 9))))
    assert [draft.day.day for draft in drafts] == [4, 5, 6, 7, 8]
    spoken = told(*((n, 6 + n, "a", (), f"sowed {n}") for n in range(1, 9)))
    history = history_of("Mara", spoken, drafts[::-1], seed=0)
    assert [question.id for question in history.questions] == [f"Mara/{n}" for n in range(5)]
    assert [question.group for question in history.questions] == [f"2024-05-0{n}" for n in range(4, 9)]
    for n, question in enumerate(history.questions, start=4):
        assert question.time == datetime(2024, 5, n, 23, 59, 59, 999999) and question.evidence == (f"s{n}",)
        assert question.options[question.right] == f"{6 + n:02d}:00" == question.gold[0]
    assert [session.id for session in history.sessions][::7] == ["s1", "s8"]
    assert history.sessions[1].turns == (Turn("s2:1", "Mara", "sowed 2"),)


def test_days_with_fewer_questions_than_kinds_begin_with_another_kind_each():
    spoken = told(*((n, n + h, f"place {n % 2}", ("Tom",), f"sowed {n} {h}") for n in range(1, 13) for h in (6, 8)))
    drafts, missed = make_questions("Mara", spoken, per_day=1)
    kinds = {draft.day: draft.kind for draft in drafts}
    for n in range(4, 13):
        kind = KINDS[date(2024, 5, n).toordinal() % 4]
        assert kinds.get(date(2024, 5, n)) == (None if kind == "event_detail" else kind)
    assert sum(missed.values()) + len(drafts) == 12


def test_what_options_share_does_not_tell_the_right_one():
    drafts, _ = make_questions("Mara", a_life(40).spoken)
    for draft in drafts:
        if draft.kind == "multi_event":
            parts = Counter(part for option in (draft.gold, *draft.distractors) for part in option.split(", then "))
            assert set(parts.values()) == {2}
    right = Counter(question.right for question in history_of("Mara", a_life(40).spoken, drafts, seed=0).questions)
    assert all(count > 0.15 * len(drafts) for count in (right[place] for place in range(4)))


def test_a_made_history_has_no_leak_and_is_read_back_as_it_was_written(tmp_path):
    life = a_life(40)
    drafts, _ = make_questions("Mara", life.spoken)
    history = history_of("Mara", life.spoken, drafts, seed=0)
    report = lint(history)
    assert (report.questions, report.leaks, report.guessable, report.chance) == (len(drafts), (), False, 0.25)
    assert len(drafts) > 100
    path = tmp_path / "life.json"
    path.write_text(json.dumps([lifedial_record(history)]), encoding="utf-8")
    assert read_histories(path) == [history]


# --- leaks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found", "bare"),
    [
        ("What did Ana do on 5 May 2024?", "5 May 2024", "What did Ana do?"),
        ("Who called at 14:30?", "14:30", "Who called?"),
        ("Who called around 3 pm on May 5th, 2024?", "3 pm", "Who called?"),
        ("What happened on 2024-05-06 in the yard?", "2024-05-06", "What happened in the yard?"),
        ("What was planned in October 2023?", "October 2023", "What was planned?"),
        ("What may Ana march for in the may garden?", "", "What may Ana march for in the may garden?"),
        ("Which 3 of the 12 rooms has version 1.2.3?", "", "Which 3 of the 12 rooms has version 1.2.3?"),
        ("Who won 3:1?", "", "Who won 3:1?"),
    ],
)
def test_dates_and_clock_times_are_found_and_taken_out(text, found, bare):
    assert dated(text) == found
    assert without_dates(text) == bare


def a_history(*questions):
    said = ["The clinic opens at nine.", "It moved to eleven.", "The doctor is Li."]
    sessions = tuple(
        Session(f"s{n}", datetime(2024, 5, n, 9), (Turn(f"s{n}:1", "Ana", text),))
        for n, text in enumerate(said, start=1)
    )
    return History("Ana", sessions, questions)


def asked(text="Who is it?", at=2, options=("nine", "eleven", "ten", "noon"), right=0, **more):
    return MemoryQuestion(
        more.pop("id", "q"), text, datetime(2024, 5, at, 20), (options[right],), options, right, **more
    )


@pytest.mark.parametrize(
    ("question", "leak"),
    [
        (asked(), None),
        (asked(options=("nine", "Li", "ten", "noon")), "'Li' is first said on 2024-05-03 09:00:00"),
        (asked(at=3, options=("nine", "Li", "ten", "noon")), None),
        (asked(options=("Li", "nine", "ten", "noon")), None),  # the right option is judged by its evidence
        (asked(evidence=("s3:1",)), "its evidence 's3:1' is of 2024-05-03"),
        (asked(evidence=("s1",)), None),
        (asked("What was on 1 May?"), "its wording names '1 May'"),
        (asked("Is it Nine, or later?"), "its wording holds the answer 'nine'"),
        (asked("Was it at ninety?"), None),
    ],
)
def test_each_leak_is_named(question, leak):
    leaks = lint(a_history(question)).leaks
    assert [leak in each.text for each in leaks] == ([True] if leak else [])


def test_length_that_tells_the_right_option_is_found():
    long = ("a very long right answer", "no", "yes", "if")
    many = [asked(id=str(n), options=long[-n % 4 :] + long[: -n % 4], right=n % 4) for n in range(24)]
    report = lint(a_history(*many))
    assert (report.longest.count, report.longest.of, report.guessable) == (24.0, 24, True)
    assert report.shortest.of == 0
    even = [asked(id=str(n), options=long, right=n % 4) for n in range(24)]
    assert lint(a_history(*even)).longest.rate == 0.25 and not lint(a_history(*even)).guessable


def test_problems_and_periods_have_closed_words():
    with pytest.raises(BadInput, match="kind"):
        Problem("odd", "x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="level"):
        Period("hour", MONDAY, MONDAY, "")  # pyright: ignore[reportArgumentType]
    assert top_down.LEVELS == ("year", "month", "week", "day")


def test_what_is_said_first_of_all_is_found_and_one_letter_gives_nothing_away():
    heard = _Heard(a_history())
    assert [heard.first(each) for each in ("The clinic", "nine", "is Li", "nine it")] == [
        datetime(2024, 5, 1, 9), datetime(2024, 5, 1, 9), datetime(2024, 5, 3, 9), None,
    ]  # fmt: skip
    for gold, leaks in (("b", 0), ("bo", 1), ("?", 0)):
        question = asked("Is it b, or bo?", options=("x", "y", "z", "w"))
        assert len(lint(a_history(replace(question, gold=(gold,)))).leaks) == leaks
    open_ = MemoryQuestion("o", "Who?", datetime(2024, 5, 2), ("Li",))
    report = lint(a_history(asked(options=("nine", "ten")), replace(asked(), id="r"), open_))
    assert report.chance == (1 / 2 + 1 / 4) / 2 and report.questions == 3
    assert math.isnan(lint(a_history(open_)).chance)


def test_a_step_is_written_anew_as_often_as_it_may_and_no_oftener():
    asked_for = []

    def write(places, again, attempt):
        asked_for.append((list(places), [len(each) for each in again], attempt))
        return [(place, attempt) for place in places]

    def check(made):
        wrong = {1: "inconsistent", 2: "repeated"}
        return [[Problem(wrong[place], "x")] if attempt < place else [] for place, attempt in made]

    made, problems, gate = top_down._Step("s", 3).passed(3, write, check)
    assert made == [(0, 0), (1, 1), (2, 2)] and problems == [[], [], []]
    assert asked_for == [([0, 1, 2], [0, 0, 0], 0), ([1, 2], [1, 1], 1), ([2], [1], 2)]
    assert (gate.step, gate.records, gate.flagged, gate.inconsistent, gate.repeated, gate.unusable, gate.left) == (
        "s", 3, 2, 1, 1, 0, 0,
    )  # fmt: skip
    for repairs, left in ((0, 2), (1, 1), (2, 0)):
        assert top_down._Step("s", repairs).passed(3, write, check)[2].left == left


class Given(TemplateWriter):
    """Says of each step what it was shown, and gives days the events it was made with."""

    def __init__(self, events, **more):
        super().__init__(MARA, **more)
        self.given, self.around, self.talks = events, [], []

    def enrich(self, asked, again, attempt):
        self.around += [(each.record.level, each.before, each.record.text, each.behind) for each in asked]
        return [f"{each.record.text}\n{each.record.start} {each.record.level}" for each in asked]

    def events(self, asked, again, attempt):
        self.around += [("event", each.before, each.record.text, each.behind) for each in asked]
        return [self.given.get(each.record.start.day, []) for each in asked]

    def dialogue(self, asked, again, attempt):
        self.talks += [(event.what, [each.what for each in earlier]) for event, earlier in asked]
        return [[("Mara", f"{event.what} {' '.join(d.value for d in event.details)}")] for event, _ in asked]

    def doubts(self, pairs):
        return [""] * len(pairs)


def of_day(day, *events):
    return [
        Event(date(2024, 1, day), time(a), time(b), "the yard", ("Tom",), what, **more) for a, b, what, more in events
    ]


def test_what_stands_before_and_after_is_shown_and_what_overlaps_is_left_out():
    persona = replace(MARA, fixed=(Fixed(date(2024, 1, 2), "the fair"),))
    days = {
        1: of_day(1, (9, 10, "sowed beans", {}), (9, 11, "mended fences", {}), (11, 12, "baked bread", {})),
        2: [
            *of_day(2, (8, 8, "slept", {}), (10, 11, "?", {}), (13, 14, "went home", {})),
            *of_day(1, (7, 8, "dug", {})),
        ],
        3: of_day(3, *((n, n + 1, f"task {n} of {n * 'x'}", {}) for n in range(8, 17))),
    }
    writer = Given(days)
    made = compose(persona, NEW_YEAR, 3, writer, repairs=0)
    kept = [each.event.what for each in made.spoken]
    assert kept == ["sowed beans", "baked bread", "went home", *(f"task {n} of {n * 'x'}" for n in range(8, 17))]
    assert made.dropped["events outside their day, or while another went on"] == 4
    assert made.dropped["things with a fixed date that no event has"] == 1 and "days without events" not in made.dropped
    shown = {level: [] for level in ("month", "week", "day", "event")}
    for level, before, text, after in writer.around:
        shown[level].append((before, text, after))
    assert [len(each) for each in shown.values()] == [1, 1, 3, 3] and shown["month"][0][::2] == ("", "")
    for level in ("day", "event"):
        (one, first, two), (three, second, four), (five, third, six) = shown[level]
        assert (one, two, three, four, five, six) == ("", second, first, third, second, "")
    assert dict(writer.talks)["baked bread"] == ["sowed beans"] and dict(writer.talks)["went home"] == []
    last = [f"task {n} of {n * 'x'}" for n in range(8, 17)]
    assert dict(writer.talks)[last[8]] == last[2:8] and dict(writer.talks)[last[6]] == last[:6]


def test_a_life_ends_with_its_last_day():
    assert top_down.check_span(MARA, NEW_YEAR, 10) == date(2024, 1, 10)
    assert top_down.check_span(replace(MARA, fixed=()), NEW_YEAR, 1) == NEW_YEAR
    with pytest.raises(BadInput, match="outside 2024-01-01 to 2024-01-09"):
        top_down.check_span(MARA, NEW_YEAR, 9)


def test_weights_of_words_by_hand():
    # of three texts: x in one, y in two; ln(3) + 1 and ln(1.5) + 1
    one, two = math.log(3) + 1, math.log(1.5) + 1
    (near, *_), *_ = similar(["x y", "y y", "z"], k=2)
    assert near == (1, pytest.approx(two / math.hypot(one, two), rel=1e-6))
    assert similar(["x", "x", "x"], k=1) == [[(1, pytest.approx(1))], [(0, pytest.approx(1))], [(0, pytest.approx(1))]]
    assert similar(["", ""]) == [[(1, 0.0)], [(0, 0.0)]]
    twins = repetition_problems(["x y", "y y", "z"], ["a", "b", "c"], threshold=two / math.hypot(one, two) - 1e-6)
    assert [len(each) for each in twins] == [0, 1, 0]


def test_blank_texts_fall_back_and_repeated_ones_are_kept():
    class Blank(TemplateWriter):
        def enrich(self, asked, again, attempt):
            return [" "] * len(asked)

    class Same(TemplateWriter):
        def enrich(self, asked, again, attempt):
            return ["They practised."] * len(asked)

    calm = replace(MARA, fixed=())
    made = compose(calm, NEW_YEAR, 3, Blank(calm), repairs=0)
    assert made.dropped["texts of days left as they were allocated"] == 3
    assert all(period.text.strip() for period in made.periods)
    made = compose(calm, NEW_YEAR, 3, Same(calm), repairs=0)
    assert [period.text for period in made.periods if period.level == "day"] == ["They practised."] * 3
    assert not any(reason.startswith("texts of") for reason in made.dropped)
    (gate,) = [gate for gate in made.gates if gate.step == "enrich days"]
    assert (gate.records, gate.flagged, gate.repeated, gate.inconsistent, gate.left) == (3, 2, 2, 0, 2)


@pytest.mark.parametrize(("fixed", "planned", "most", "told"), [(1, 3, 4, 4), (2, 3, 4, 4), (0, 3, 2, 2), (5, 1, 2, 5)])
def test_every_line_and_fixed_thing_of_a_day_is_an_event(fixed, planned, most, told):
    lines = "\n".join([*list(THEMES)[:planned], "nothing of this"])
    day = Period("day", NEW_YEAR, NEW_YEAR, lines, tuple(Fixed(NEW_YEAR, f"feast {n}") for n in range(fixed)))
    orders = set()
    for attempt in range(8):
        first, *events = TemplateWriter(MARA, events_per_day=most)._day(day, attempt)
        assert first.routine and first.start == time(7, 0) and first.end == time(7, 20) and first.place == "home"
        feasts = [event.place == "the celebration" for event in events]
        assert (len(events), sum(feasts)) == (told, fixed) and not any(event.routine for event in events)
        assert sorted(event.what for event in events if event.place == "the celebration") == [
            f"took part in feast {n}" for n in range(fixed)
        ]
        starts = [event.start for event in events]
        assert starts == sorted(set(starts)) and {each.minute for each in starts} <= {0, 30}
        assert all(event.end == time(event.start.hour, event.start.minute + 25) for event in events)
        assert all(
            len(event.people) == 1 and len(event.details) == (event.place != "the celebration") for event in events
        )
        orders.add(tuple(feasts))
    assert len(orders) > 1 or fixed in (0, told)
