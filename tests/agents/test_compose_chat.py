"""A chat model as the writer of a life: what it is shown, what of its answers is kept, and why questions are dropped."""

from datetime import date, time

import pytest

from equipoise.agents import compose_chat
from equipoise.agents.compose import (
    Acquaintance,
    Detail,
    Event,
    Fixed,
    Neighbours,
    Period,
    Persona,
    Problem,
    Spoken,
)
from equipoise.agents.compose_chat import ChatWriter, WrittenEvent, WrittenQuestion, WrittenQuestions
from equipoise.agents.compose_questions import Draft
from equipoise.chat.calls import Reply
from equipoise.core.errors import WorkFailed

MONDAY, TUESDAY = date(2024, 5, 6), date(2024, 5, 7)
PERSONA = Persona("Mara", "She gardens.", (Acquaintance("Bo", "her brother"), Acquaintance("Li")))


class Replies:
    """A chat that answers each call with the next of these, read by the call's schema; None for what cannot be read."""

    def __init__(self, *replies, name="replies"):
        self.name, self.replies, self.calls, self.titles = name, list(replies), [], []

    def ask(self, calls, *, title=""):
        self.calls += calls
        self.titles.append(title)
        return [self.reply(call, self.replies.pop(0)) for call in calls]

    def reply(self, call, found):
        if isinstance(found, Reply):
            return found
        return Reply("", "invalid") if found is None else Reply("", "answered", call.schema.model_validate(found))

    def text(self, place=-1):
        return "\n".join(message.content for message in self.calls[place].messages)


def writer(*replies, critic=(), **options):
    return ChatWriter(PERSONA, Replies(*replies, name="w"), Replies(*critic), **options)  # pyright: ignore[reportArgumentType]


def event(day=MONDAY, at="09:00", until="09:30", place="home", people=("Bo",), what="sowed beans", details=(), **more):
    return Event(day, time.fromisoformat(at), time.fromisoformat(until), place, people, what, details, **more)


def test_plans_are_asked_for_and_handed_on():
    month = Period("month", MONDAY, TUESDAY, " beans ", (Fixed(TUESDAY, "a feast"), Fixed(TUESDAY, "a walk")))
    slots = [[(MONDAY, MONDAY), (TUESDAY, TUESDAY)], [(MONDAY, TUESDAY)]]
    held = writer({"records": [{"start": MONDAY, "end": TUESDAY, "text": "so"}]}, None, max_tokens=77, temperature=0.25)
    wrong = [[Problem("unusable", "it was cut"), Problem("repeated", "said before")], []]
    made = held.allocate([month, Period("week", MONDAY, MONDAY, "")], slots, wrong, 2)
    ((record,), none) = made
    assert none is None and (record.start, record.end, record.text) == (MONDAY, TUESDAY, "so")
    chat = held._writer
    assert chat.titles == ["Dividing periods"] and held.name == "w"
    assert [(call.sample, call.max_tokens, call.temperature) for call in chat.calls] == [(2, 77, 0.25)] * 2
    first, second = chat.text(0), chat.text(1)
    assert "Mara. She gardens.\nPeople: Bo (her brother), Li\n" in first
    assert "month 2024-05-06 to 2024-05-07:\nbeans\n" in first and "2024-05-06 to 2024-05-06" in first
    assert "2024-05-07: a feast\n2024-05-07: a walk" in first
    assert "\nAn earlier answer could not be used: it was cut; said before.\n" in first
    assert "week 2024-05-06:\nnothing\n" in second and "earlier answer" not in second

    held = writer({"text": "so"}, None)
    week = Period("week", MONDAY, TUESDAY, "sow")
    assert held.enrich([Neighbours(week, month, "before", ""), Neighbours(week, month)], [[], []], 0) == ["so", None]
    assert held._writer.titles == ["Expanding periods"]
    assert "before" in held._writer.text(0) and held._writer.calls[1].sample == 0
    assert ChatWriter(Persona("Li"), Replies(), Replies())._told == "Li. \nPeople: nobody is named"  # pyright: ignore
    assert held.allocate([], [], [], 0) == [] and held._writer.titles == ["Expanding periods"]  # nobody is asked


def test_events_and_dialogues_are_taken_as_they_are_meant():
    one = {
        "start": "09:00:00+02:00", "end": "10:00", "place": " home ", "people": ["Mara", " Bo ", "Mara "],
        "what": " sowed ",
        "details": [{"slot": " seed ", "value": " bean "}, {"slot": "!", "value": "x"}, {"slot": "x", "value": "?"}],
    }  # fmt: skip
    held = writer({"events": [one, {**one, "routine": True}, one]}, None, events_per_day=2)
    day = Period("day", MONDAY, MONDAY, "sow")
    found, none = held.events([Neighbours(day, day), Neighbours(day, day)], [[], []], 1)
    expected = event(until="10:00", what="sowed", details=(Detail("seed", "bean"),))
    assert none is None and found == [
        expected,
        event(until="10:00", what="sowed", details=expected.details, routine=True),
    ]
    assert held._event(TUESDAY, WrittenEvent.model_validate(one)).day == TUESDAY
    assert "2024-05-06" in held._writer.text() and held._writer.calls[0].sample == 1

    held = writer({"turns": [{"speaker": " Bo", "text": "Hi. "}]}, None)
    other = event(at="08:00", until="08:20", people=(), what="rose")
    assert held.dialogue([(expected, [other, other]), (other, [])], [[], []], 0) == [[("Bo", "Hi.")], None]
    said = held._writer.text(0)
    assert "Earlier on this day:\n" + "08:00 to 08:20, home: rose\n" * 2 in said
    assert "09:00 to 10:00, home, with Bo: sowed (seed: bean)\n" in said and "words:\nseed: bean\n" in said
    assert "Earlier on this day:\nnothing\n" in held._writer.text(1)


def test_what_contradicts_is_doubted():
    held = writer(
        critic=(
            {"contradicts": True, "what": " it rains "},
            {"contradicts": True},
            {"contradicts": False, "what": "x"},
            None,
        )
    )
    pairs = [("a", "b"), (" ", "b"), ("a", "\n"), ("a", "b"), ("a", "b"), ("a", "b")]
    assert held.doubts(pairs) == ["it rains", "", "", "it contradicts the plan", "", ""]
    assert [call.temperature for call in held._critic.calls] == [0.0] * 4 and held._critic.calls[0].sample == 0


PAST = (
    Spoken(event(what="rose", routine=True), (("Bo", "It rains."),)),
    Spoken(event(what="sowed beans"), (("Bo", "Peas are gone, corn is here."),)),
    Spoken(event(at="11:00", what="ate soup"), (("Bo", "Bread and cheese."),)),
    Spoken(event(TUESDAY, what="sold eggs"), (("Bo", "Milk too."),)),
)
ASKED = {
    "kind": "single_event",
    "question": " What was sown then? ",
    "answer": " beans",
    "wrong": ["peas", "corn", "soup"],
    "events": [2, 1, 2],
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("single_event", "What was sown then?", "beans", ("peas", "corn", "soup"), (1, 2))),
        ({"events": [1]}, ("single_event", "What was sown then?", "beans", ("peas", "corn", "soup"), (1,))),
        (
            {"wrong": ["11:00", "peas", "home"]},
            ("single_event", "What was sown then?", "beans", ("11:00", "peas", "home"), (1, 2)),
        ),
        ({"kind": "riddle"}, "of no kind, or of one that the day has"),
        ({"kind": "time_query"}, "of no kind, or of one that the day has"),
        ({"events": [0, 1]}, "events that are not of the day"),
        ({"events": [1, 3]}, "events that are not of the day"),
        ({"wrong": ["peas", "corn"]}, "not three wrong answers that differ"),
        ({"wrong": ["peas", "corn", "soup", "!"]}, "not three wrong answers that differ"),
        ({"wrong": ["peas", "corn", "Beans!"]}, "not three wrong answers that differ"),
        ({"wrong": ["peas", "corn", "?"]}, "not three wrong answers that differ"),
        ({"wrong": ["peas", "corn", "milk"]}, "a wrong answer that was not said before"),  # tomorrow
        ({"wrong": ["milk", "corn", "peas"]}, "a wrong answer that was not said before"),
    ],
)  # fmt: skip
def test_a_question_of_the_day_or_why_it_is_none(changes, expected):
    asked = WrittenQuestion.model_validate({**ASKED, **changes})
    found = compose_chat._draft(asked, MONDAY, [1, 2], PAST, {"time_query"})
    if isinstance(found, Draft):
        found = (found.kind, found.text, found.gold, found.distractors, found.events)
    assert found == expected
    if changes == {"wrong": ["peas", "corn", "milk"]}:
        assert isinstance(compose_chat._draft(asked, TUESDAY, [1, 2], PAST, set()), Draft)


def test_questions_are_kept_when_they_are_answered_and_the_others_counted(monkeypatch):
    monkeypatch.setattr(compose_chat, "EARLIER", 1)
    kinds = ("single_event", "event_detail", "time_query")
    monday = [{**ASKED, "kind": kind} for kind in kinds]
    monday.insert(1, {**ASKED, "question": "Who?"})  # of a kind that the day has
    held = writer(
        {"questions": monday},
        None,  # of Tuesday there is no list
        {"question": "What was sown there?"},
        critic=({"evidence": "corn is here", "option": 1}, {"evidence": "corn is here", "option": 2}),
    )
    monday[0] = {**ASKED, "question": "What was sown on 2024-05-06?"}
    drafts, dropped = held.questions(PAST, 2)
    assert dropped == {
        "of no kind, or of one that the day has": 1, "no list of questions": 1, "not answered from what was said": 1,
    }  # fmt: skip
    assert [(draft.kind, draft.text, draft.gold, draft.day) for draft in drafts] == [
        ("single_event", "What was sown there?", "beans", MONDAY)
    ]
    assert held._writer.titles == ["Writing questions", "Taking dates out"]
    first, second = held._writer.text(0), held._writer.text(1)
    assert "on 2024-05-06:\n" in first and "rose" not in first and "at most 2 questions" in first
    assert "These happened before:\n" in first and "nothing" in first
    assert "ate soup" in second and "sowed beans" not in second  # one earlier event, the last
    assert "sowed beans" not in first.partition("These happened before:")[2]
    asked = [*held._writer.calls, *held._critic.calls]
    assert [(call.temperature, call.sample) for call in asked] == [(0.7, 0)] * 2 + [(0.0, 0)] * 3
    shown = held._critic.text(0)
    assert "[2024-05-06 09:00] Bo: Peas are gone, corn is here.\n[2024-05-06 11:00] Bo: Bread and cheese." in shown


@pytest.mark.parametrize(
    ("text", "anew", "kept"),
    [
        ("What was sown?", None, "What was sown?"),
        ("Who came?", None, None),
        ("Were the beans sown?", None, None),
        ("What was sown on 2024-05-06?", "What was sown there?", "What was sown there?"),
        ("What was sown on 2024-05-06?", None, "What was sown?"),
        ("What was sown on 2024-05-06?", "Which on 2024-05-06?", None),
    ],
)
def test_a_question_names_no_date_and_not_its_answer(text, anew, kept):
    held = writer(None if anew is None else {"question": anew})
    dropped = []
    draft = Draft("single_event", text, "beans", ("peas", "corn", "soup"), (1,), MONDAY)
    found = held._undated([draft], dropped.append)
    assert [each.text for each in found] == ([] if kept is None else [kept])
    assert dropped == (["a date or the answer in its wording"] if kept is None else [])


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        ({"evidence": "Corn is here!", "option": 1}, True),
        ({"evidence": "corn is here", "option": 0}, False),
        ({"evidence": "corn is here", "option": 2}, False),
        ({"evidence": "milk", "option": 1}, False),
        (None, False),
    ],
)
def test_an_answer_needs_words_that_were_said(reply, kept):
    held, dropped = writer(critic=(reply,)), []
    draft = Draft("single_event", "What was sown?", "beans", ("peas", "corn", "soup"), (1,), MONDAY)
    assert held._answered(PAST, [draft], dropped.append) == ([draft] if kept else [])
    assert dropped == ([] if kept else ["not answered from what was said"])
    assert held._critic.calls[0].temperature == 0.0
    text = held._critic.text()
    assert text.index("beans") < text.index("corn\n") < text.index("peas\n") < text.index("soup")


def test_a_call_without_an_answer_ends_the_writing():
    held = writer(Reply("", "failed", reason="timeout."))
    with pytest.raises(WorkFailed, match=r"1 of 1 calls of w got no answer \(timeout\)"):
        held.questions(PAST[3:], 1)
    assert WrittenQuestions.model_validate({"questions": []}).questions == []
