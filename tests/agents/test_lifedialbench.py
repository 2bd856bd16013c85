"""The clinic of the card, causality, digests, due questions, scores and statistics of LifeDialBench."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from equipoise.agents import lifedialbench as ldb
from equipoise.agents.memory import MemoryAnswer, MemoryItem, session_text, state_digest, words
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.serialize import deserialize, serialize
from equipoise.data.histories import History, MemoryQuestion, Session, Turn

START = datetime(2024, 5, 1, 9)


class Kept:
    """Items "slot value": appended, or one a slot. The newest that has the slot of the question is the answer."""

    def __init__(self, slots, k=None):
        self.name, self.slots, self.k, self.items = "slots" if slots else "appended", slots, k, []

    def ingest(self, session, time):
        for turn in session.turns:
            item = MemoryItem(turn.id, turn.text, time, (turn.id,), session.id)
            if self.slots:
                self.items = [old for old in self.items if old.text.split()[0] != turn.text.split()[0]]
            self.items.append(item)
        return {"written_tokens": words(session_text(session)), "calls": 1}

    def answer(self, question, now, *, until=None):
        kept = [item for item in self.items if until is None or item.time <= until]
        found = [item for item in kept if item.text.split()[0] == question.text][-(self.k or len(kept)) :]
        text = found[-1].text.split()[1] if found else ""
        choice = question.options.index(text) if text in question.options else None
        return MemoryAnswer(text, tuple(found), "", sum(words(item.text) for item in found), choice, {"calls": 2})

    def snapshot(self):
        return state_digest(self.items)


class Empty(Kept):
    def ingest(self, session, time):
        return {}


class Writes(Kept):
    def answer(self, question, now, *, until=None):
        self.items = self.items[::-1]
        return MemoryAnswer("")


def session(day, *texts):
    turns = tuple(Turn(f"t{day}.{place}", "Ann", text) for place, text in enumerate(texts))
    return Session(f"s{day}", START + timedelta(days=day - 1), turns)


def clinic():
    ask = [
        MemoryQuestion("q1", "clinic", START, ("9",), evidence=("t1.0",), kind="time"),
        MemoryQuestion("q2", "clinic", START + timedelta(days=1), ("11",), evidence=("s2",), kind="time"),
        MemoryQuestion("q3", "doctor", None, ("Li",), evidence=("t3.0",), kind="who"),
    ]
    return History("clinic", (session(1, "clinic 9"), session(2, "clinic 11"), session(3, "doctor Li")), tuple(ask))


def three(make, history):
    system = make()
    online = ldb.run(system, history)
    return online, *(ldb.run(system, history, protocol=each, after=online) for each in ("asof", "offline"))


@pytest.mark.parametrize(
    ("slots", "triple", "expected"), [(False, (3, 3, 2), (0, 1 / 3)), (True, (3, 2, 2), (1 / 3, 0))]
)
def test_the_clinic(slots, triple, expected):
    results = three(lambda: Kept(slots), clinic())
    assert tuple(ldb.scored(each, "open").sum() for each in results) == triple
    found = ldb.effects(*results, "open", by="question")
    assert [each.estimate for each in found] == pytest.approx(expected)
    assert ldb.paired(results[0], results[2], "open").estimate == pytest.approx(sum(expected))
    modification, contamination = found
    assert modification is found.modification and contamination.items == 3
    asked_apart = [ldb.run(Kept(slots), clinic(), protocol=each) for each in ("asof", "offline")]
    assert [row.later for row in results[0].rows] == [0, 0, 0]  # what is said at the moment of a question is not later
    assert asked_apart == list(results[1:])  # after= saves the building and changes nothing


def test_effects_refuse_another_order_system_and_questions():
    online, asof, offline = three(lambda: Kept(True), clinic())
    with pytest.raises(BadInput, match="given as asof are offline"):
        ldb.effects(online, offline, asof)
    with pytest.raises(BadInput, match="slots and of appended"):
        ldb.effects(online, replace(asof, system="appended"), offline)
    with pytest.raises(BadInput, match="not asked the same"):
        ldb.paired(online, ldb.run(Kept(True), clinic(), clinic().questions[:2]))


def lifelog(seed, days=12, future=None):
    """Three slots that change at random; a question a day. future: from this day on all is noise."""
    draw = np.random.default_rng(seed)
    sessions, questions = [], []
    for day in range(1, days + 1):
        texts = [f"{draw.choice(['clinic', 'doctor', 'bus'])} {draw.integers(100)}" for _ in range(2)]
        if future is not None and day >= future:
            texts = ["noise noise"]
        sessions.append(session(day, *texts))
        slot = str(draw.choice(["clinic", "doctor", "bus"]))
        questions.append(MemoryQuestion(f"q{day}", slot, sessions[-1].time + timedelta(hours=3), ("5",)))
    return History("log", tuple(sessions), tuple(questions))


@pytest.mark.parametrize("slots", [False, True])
def test_the_future_changes_no_byte_of_an_online_answer(slots):
    def told(history):
        rows = ldb.run(Kept(slots), history).rows
        return [json.dumps(serialize(row)) for row in rows]

    whole = told(lifelog(3))
    for day in (2, 6, 12):
        noisy = told(lifelog(3, future=day))
        assert noisy[: day - 1] == whole[: day - 1]
    assert told(lifelog(3, future=6)) != whole


@pytest.mark.parametrize("seed", range(5))
def test_of_a_store_that_appends_online_is_asof_question_by_question(seed):
    online, asof, offline = three(lambda: Kept(False), lifelog(seed, 30))
    assert [(a.text, a.printed, a.later) for a in online.rows] == [(b.text, b.printed, b.later) for b in asof.rows]
    assert not any(row.later for row in (*online.rows, *asof.rows)) and any(row.later for row in offline.rows)


def test_a_memory_without_content_answers_alike_under_every_protocol():
    results = three(lambda: Empty(False), lifelog(0))
    assert len({tuple((row.text, row.choice, row.printed) for row in each.rows) for each in results}) == 1


def test_who_writes_while_it_reads_is_named():
    with pytest.raises(WorkFailed, match=r"slots writes while it reads.*'q3'"):
        ldb.run(Writes(True), clinic())

    class Restless(Kept):
        reads = 0

        def snapshot(self):
            self.reads += 1
            return str(self.reads)

    with pytest.raises(WorkFailed, match="appended has two digests of one state"):
        ldb.run(Restless(False), clinic())


def test_due():
    sessions = clinic().sessions

    def at(time):
        return ldb.due(sessions, MemoryQuestion("q", "?", time))

    assert at(None) == 2 and at(START) == 0
    # a date without sessions, whose loader says the end of that day: the last one before it
    assert at(datetime(2024, 5, 1, 23, 59, 59)) == 0 and at(datetime(2024, 12, 1)) == 2
    with pytest.raises(BadInput, match="'q' is asked at 2024-05-01 08:59:59, before anything was said"):
        at(START - timedelta(seconds=1))
    twins = (*sessions[:1], Session("s1b", START, ()), *sessions[1:])
    assert ldb.due(twins, MemoryQuestion("q", "?", START)) == 1


def test_a_question_within_a_session_is_named():
    late = Turn("t", "Ann", "clinic 9", START + timedelta(minutes=20))
    history = History(
        "h",
        (Session("s", START, (late,)),),
        (MemoryQuestion("a", "clinic", START), MemoryQuestion("b", "clinic", late.time), MemoryQuestion("c", "clinic")),
    )
    assert ldb.run(Kept(False), history).running == ("a",)
    short = Session("t", START + timedelta(minutes=1), (Turn("t0", "Ann", "clinic 10"),))
    going_on = replace(history, sessions=(*history.sessions, short))
    between = replace(history.questions[0], time=START + timedelta(minutes=2))
    assert ldb.run(Kept(False), going_on, [between]).running == ("a",)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"evidence": ("nobody",)}, "'nobody' as evidence"),
        ({"options": ("a", "b"), "right": 2}, "option 2 as the right one"),
        ({"time": START.replace(tzinfo=UTC)}, "a time with a zone"),
    ],
)
def test_other_questions_about_a_stream_are_checked_before_anything_is_taken_in(changes, named):
    system = Kept(False)
    with pytest.raises(BadInput, match=named):
        ldb.run(system, clinic(), [replace(MemoryQuestion("other", "clinic"), **changes)])
    assert not system.items


def test_costs_are_counted_apart_and_nothing_is_asked_twice():
    told = []
    online = ldb.run(Kept(False), clinic(), store=lambda row, answer: told.append((row, answer.items[-1].text)))
    assert online.build == {"written_tokens": sum(words(session_text(s)) for s in clinic().sessions), "calls": 3}
    assert online.read == {"calls": 6, "read_tokens": 2 + 4 + 2}
    assert [row.found for row in online.rows] == [("t1.0",), ("s2",), ("t3.0",)]
    assert [row.turns for row in online.rows] == [1, 2, 3] and [row.age for row in online.rows] == [0, 0, 0]
    assert [text for _, text in told] == ["clinic 9", "clinic 11", "doctor Li"]

    class Once(Kept):
        def answer(self, question, now, *, until=None):
            assert question.id == "q2"
            return super().answer(question, now, until=until)

    stored = [deserialize(ldb.AskedQuestion, json.loads(json.dumps(serialize(row)))) for row in online.rows]
    assert ldb.run(Once(False), clinic(), known=[stored[2], stored[0]]) == online
    with pytest.raises(WorkFailed, match="not in the state in which it gave the stored answer to 'q1'"):
        ldb.run(Kept(False), clinic(), known=[replace(stored[0], state="other")])
    with pytest.raises(BadInput, match="stored answer to 'q3', which is not asked"):
        ldb.run(Kept(False), clinic(), clinic().questions[:2], known=stored)


def test_a_memory_is_taken_over_only_as_it_was_left():
    system = Kept(True)
    online = ldb.run(system, clinic())
    system.items.pop()
    with pytest.raises(WorkFailed, match="not in the state that the run before left"):
        ldb.run(system, clinic(), protocol="offline", after=online)
    with pytest.raises(BadInput, match="3 sessions of 12"):
        ldb.run(system, lifelog(0), protocol="offline", after=online)
    with pytest.raises(BadInput, match="cannot be asked online"):
        ldb.run(system, clinic(), after=online)


def test_digests_of_streams_hold_all_that_is_heard_and_asked():
    history = clinic()
    first, *rest = history.questions
    changed = [
        replace(history, name="other"),
        replace(history, sessions=history.sessions[:2], questions=(first,)),
        replace(history, questions=(replace(first, gold=("10",)), *rest)),
        replace(history, sessions=(*history.sessions[:2], session(3, "doctor Bo"))),
    ]
    digests = {ldb.stream_digest(each) for each in (history, *changed)}
    assert len(digests) == 5 and ldb.stream_digest(clinic()) in digests


# --- scores ---------------------------------------------------------------------------------------------------------------


def row(number=0, history="h", **more):
    given = {
        "text": "",
        "choice": None,
        "printed": 5,
        "later": 0,
        "found": (),
        "sessions": 1,
        "turns": 1,
        "age": math.nan,
    }
    return ldb.AskedQuestion(history, f"q{number}", **{**given, "read_tokens": 0, "amounts": {}, "state": ""} | more)


def result(pairs, **more):
    """pairs: of (changes of a question, changes of its row)."""
    questions = [MemoryQuestion(f"q{number}", "?", **given) for number, (given, _) in enumerate(pairs)]
    rows = [row(number, **given) for number, (_, given) in enumerate(pairs)]
    return ldb.MemoryAnswers("s", more.pop("protocol", "offline"), tuple(questions), tuple(rows), **more)


@pytest.mark.parametrize(
    ("right", "printed"), [((183, 207, 139, 127), 69.86), ((97, 139, 25, 59), 34.08)], ids=["choice", "open"]
)
def test_all_questions_count_alike(right, printed):
    of = (248, 240, 229, 222)
    pairs = [
        ({"kind": f"QT{kind}", "options": ("a", "b"), "right": 1}, {"choice": int(place < count)})
        for kind, (count, size) in enumerate(zip(right, of, strict=True), start=1)
        for place in range(size)
    ]
    found = ldb.accuracy(result(pairs), by="question")
    assert round(100 * found[""].rate, 2) == printed and found[""].of == 939
    assert {kind: (share.count, share.of) for kind, share in found.items() if kind} == {
        f"QT{kind}": (count, size) for kind, (count, size) in enumerate(zip(right, of, strict=True), start=1)
    }


def test_luck_is_taken_out():
    assert [round(100 * ldb.guess_corrected(x / 100), 1) for x in (69.86, 44.19, 25, 100)] == [59.8, 25.6, 0, 100]
    assert ldb.guess_corrected(0.25, 2) == -0.5
    with pytest.raises(BadInput, match="2 or more"):
        ldb.guess_corrected(1.0, 1)
    pair = {"options": ("a", "b", "c", "d"), "right": 2}
    found = ldb.scored(result([(pair, {"choice": 2}), (pair, {"choice": 0}), (pair, {}), ({}, {})]), "corrected-choice")
    assert found[:3] == pytest.approx([1, -1 / 3, -1 / 3]) and math.isnan(found[3])
    with pytest.raises(BadInput, match="guess_corrected"):
        ldb.accuracy(result([(pair, {})]), "corrected-choice")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("21:05", 1265), ("It was at 9:05 pm.", 1265), ("9:05 p.m.", 1265), ("9:05", 545), ("12 am", 0), ("12:30 pm", 750),
        ("noon", 720), ("midnight", 0), ("9 o'clock", 540), ("09:05:30", 545), ("２１:05", 1265), ("at 9", None),
        ("between 9:00 and 10:00", None), ("9:00, that is 9 am", 540), ("25:00", None), ("13 pm", None), ("", None),
        ("2024-05-07 09:05", 545), ("9:65", None), ("0 pm", None), ("v1:30x", None),
        ("9:30 p.m", 1290), ("9:30  pm", 1290), ("9:30\u202fPM", 1290), ("9:30 p. m.", 1290), ("at 9  p.m", 1260),
        ("9:30 p.m.Then", 1290), ("9:30 pmx", 570), ("9:30 a.m, not p.m.", 570), ("9:30 p.m or 9:30 am", None),
        ("9:30 am.", 570), ("9  o'clock", 540),
    ],
)  # fmt: skip
def test_clock_times(text, minutes):
    assert ldb.clock_time(text) == minutes


def test_times_are_held_against_the_clock():
    answers = ["9:05 pm", "21:15", "20:54", "about nine", "21:05"]
    pairs = [({"gold": ("21:05",)}, {"text": text}) for text in answers]
    pairs += [({"gold": ("00:02",)}, {"text": "23:55"}), ({"gold": ("Li",)}, {"text": "21:05"})]
    strict, near = (ldb.scored(result(pairs), score) for score in ("strict-time", "near-time"))
    assert strict[:6].tolist() == [1, 0, 0, 0, 1, 0] and near[:6].tolist() == [1, 1, 0, 0, 1, 1]
    assert np.isnan([strict[6], near[6]]).all()


def test_the_time_of_a_choice_is_that_of_the_chosen_option():
    four = {"options": ("at 10:00", "9:05 pm", "9:12 pm", "in the morning"), "right": 1, "gold": ("9:05 pm",)}
    pairs = [(four, {"text": f"{letter})", "choice": place}) for place, letter in enumerate("ABCD")]
    pairs += [(four, {"text": "It was at 21:06."}), (four, {"text": ""}), (four, {"text": "21:05", "choice": 0})]
    strict, near = (ldb.scored(result(pairs), score).tolist() for score in ("strict-time", "near-time"))
    assert strict == [0, 1, 0, 0, 0, 0, 0] and near == [0, 1, 1, 0, 1, 0, 0]


def test_scores_of_words_choices_and_evidence():
    four = {"options": ("a", "b", "c", "d"), "right": 3, "gold": ("d",), "evidence": ("t1", "t2")}
    pairs = [
        (four, {"text": "The d.", "choice": 1, "found": ("t2",)}),
        ({"gold": ("Li", "Doctor Li")}, {"text": "doctor li"}),
        ({}, {"text": ""}),
        ({}, {"text": "Li"}),
        ({}, {"text": "Not mentioned."}),
    ]
    answers = result(pairs)
    assert ldb.scored(answers).tolist() == [0, 1, 1, 0, 1]
    assert ldb.scored(answers, "open").tolist() == [1, 1, 1, 0, 1]
    assert ldb.scored(answers, "evidence")[0] == 0.5 and np.isnan(ldb.scored(answers, "evidence")[1:]).all()
    assert ldb.scored(answers, lambda question, row: len(question.gold)).tolist() == [1, 2, 0, 0, 0]
    with pytest.raises(BadInput, match="score is 'opne'"):
        ldb.scored(answers, "opne")


def test_the_order_of_options_changes_no_score():
    draw = np.random.default_rng(0)
    pairs, shuffled = [], []
    for _ in range(40):
        right, choice, order = int(draw.integers(4)), int(draw.integers(4)), draw.permutation(4).tolist()
        options = tuple(f"o{place}" for place in range(4))
        pairs.append(({"options": options, "right": right, "gold": (options[right],)}, {"choice": choice}))
        moved = {
            "options": tuple(options[old] for old in order),
            "right": order.index(right),
            "gold": (options[right],),
        }
        shuffled.append((moved, {"choice": order.index(choice)}))
    for score in ("right", "choice", "corrected-choice", "open"):
        assert (ldb.scored(result(pairs), score) == ldb.scored(result(shuffled), score)).all()


# --- statistics -----------------------------------------------------------------------------------------------------------


def at(day, hour=0):
    return datetime(2024, 1, 1, hour) + timedelta(days=day)


def test_contamination_of_the_worked_example():
    pairs = [
        ({"options": ("a", "b"), "right": 1, "time": at(0, hour)}, {"choice": right, "later": later})
        for hour, (later, right) in enumerate(((0, 1), (1, 1), (1, 0), (3, 0)))
    ]
    pairs.append(({"options": ("a", "b"), "right": 1, "time": at(0, 1)}, {"choice": 0, "printed": 0}))
    found = ldb.contamination(result(pairs), generator=np.random.default_rng(0))
    assert found.overall.estimate == 0.125 and found.later == pytest.approx(0.25)
    assert np.isnan(found.quarters).all() and math.isnan(found.within)


def test_within_quarters_early_questions_are_not_held_against_late_ones():
    """All early answers are wrong and all have later items, as they must; within a quarter there is nothing to see."""
    pairs = []
    for day, (share, rights) in enumerate(((4, (0, 0, 0, 1)), (0, (1, 1, 1, 0)))):
        for hour, right in enumerate(rights):
            given = {"options": ("a", "b"), "right": 1, "time": at(3 * day, hour)}
            pairs.append((given, {"choice": right, "later": share}))
    found = ldb.contamination(result(pairs), generator=np.random.default_rng(0))
    assert found.overall.estimate == 0.25
    assert found.within == 0.5 and found.quarters[0] == 0.5 == found.quarters[3]
    assert np.isnan(found.quarters[1:3]).all()


def test_intervals_are_clustered_by_day_or_conversation():
    values = [[1, 1, 1, 0], [0, 0, 0, 0]]
    first, second = (
        result([
            ({"options": ("a", "b"), "right": 1, "time": at(place // 2, place % 2)}, {"choice": right})
            for place, right in enumerate(own)
        ])
        for own in values
    )  # fmt: skip
    days = ldb.paired(first, second)
    # means of the two days 1 and 0.5: variance of their mean 0.0625, one degree of freedom
    assert days.estimate == 0.75 and days.clusters == 2 and days.item_variance == pytest.approx(0.0625)
    alone = ldb.paired(first, second, by="question")
    assert alone.clusters == 4 and alone.item_variance == pytest.approx(0.0625) and alone.df == 3
    parts = [
        replace(each, rows=tuple(replace(row, history=name) for row in each.rows), streams=(name,))
        for each in (first, second)
        for name in ("x", "y", "z")
    ]
    whole = ldb.paired(ldb.joined(parts[:3]), ldb.joined(parts[3:]))
    assert whole.clusters == 3 and whole.items == 12 and ldb.joined(parts[:3]).streams == ("x", "y", "z")
    with pytest.raises(BadInput, match="one history"):
        ldb.joined([first, first])
    with pytest.raises(BadInput, match="are no one result"):
        ldb.joined([first, replace(second, protocol="online")])


@pytest.mark.parametrize(
    ("groups", "expected", "kind"),
    [
        (("", "", "", ""), 2, "day"),
        (("2024-01-01", "2024-01-01", "2024-01-02", "2024-01-02"), 2, "day"),
        (("2024-01-01", "", "2024-01-02", ""), 2, "day"),
        (("a", "b", "a", "b"), 2, "group"),  # both reach over both days
        (("a", "b", "c", "c"), 3, "group"),
        (("a", "a", "a", ""), 2, "group"),  # one of its own
        (("conv-1",) * 4, 2, "day"),  # a name of the conversation tells nothing
    ],
)
def test_questions_of_one_group_are_one_cluster(groups, expected, kind):
    pairs = [
        ({"options": ("a", "b"), "right": 1, "time": at(place // 2, place), "group": group}, {"choice": place % 2})
        for place, group in enumerate(groups)
    ]
    answers = result(pairs)
    assert ldb.clustered_by(["h"], answers.questions) == kind
    assert ldb.clusters(answers) == ldb.clusters(answers, kind) and len(set(ldb.clusters(answers))) == expected
    assert ldb.paired(answers, answers, "choice").clusters == expected
    assert ldb.clustered_by(["h", "g"], answers.questions) == "conversation"


def test_what_is_recovered_of_the_overwritten():
    def under(protocol, choices):
        return result([({"options": ("a", "b"), "right": 1}, {"choice": each}) for each in choices], protocol=protocol)

    found = ldb.recovered(
        under("online", [1, 1, 1, 0, 1]),
        under("asof", [1, 0, 0, 1, 1]),
        under("offline", [0, 0, 0, 0, 1]),
        by="question",
    )
    assert (found.count, found.of) == (1, 3)


def test_bands_of_age_and_size():
    pairs = [
        ({"options": ("a", "b"), "right": 1}, {"choice": right, "age": age, "turns": turns})
        for right, age, turns in ((1, 0.5, 10), (0, 1.0, 20), (1, 6.9, 39), (1, 100, 40), (0, math.nan, 40))
    ]
    bands = ldb.by_age(result(pairs), by="question")
    assert [(band.low, band.high, band.share.count, band.share.of) for band in bands] == [
        (-math.inf, 1, 1, 1),
        (1, 7, 1, 2),
        (90, math.inf, 1, 1),
    ]
    assert [(band.low, band.share.count, band.share.of) for band in ldb.by_size(result(pairs), by="question")] == [
        (10, 1, 1),
        (20, 0, 1),
        (30, 2, 3),
    ]
    with pytest.raises(BadInput, match="do not rise"):
        ldb.by_age(result(pairs), edges=(7, 1))


def test_only_some_questions():
    online = ldb.run(Kept(False), clinic())
    times = online.only(lambda question, row: question.kind == "time")
    assert [each.id for each in times.questions] == ["q1", "q2"] == [row.question for row in times.rows]
    assert times.build == online.build


def test_a_run_of_another_history_is_not_gone_on_with():
    system = Kept(False)
    online = ldb.run(system, clinic())
    with pytest.raises(BadInput, match="other: the run before was about clinic: give that of this history"):
        ldb.run(system, replace(clinic(), name="other"), protocol="offline", after=online)


def test_sizes_of_a_memory_that_heard_no_turn_are_one_band():
    silent = History("h", (Session("s", START, ()),), (MemoryQuestion("q", "clinic", gold=("9",)),))
    (band,) = ldb.by_size(ldb.run(Kept(False), silent))
    assert band.share.of == 1 and band.share.count == 0
    assert ldb.by_size(ldb.run(Kept(False), silent, [])) == []


def test_times_that_are_none_are_passed_over():
    assert ldb.clock_time("25:00, no, 9:00") == 540 and ldb.clock_time("noon, that is 12:00") == 720
    assert ldb.clock_time("noon or midnight") is None and ldb.clock_time("23:59") == 1439 == ldb.clock_time("11:59 pm")
    assert ldb.clock_time("0:00") == 0 and ldb.clock_time("noon, or 9:00") is None


def test_a_near_time_is_off_by_ten_minutes_at_most():
    pairs = [({"gold": ("00:05",)}, {"text": text}) for text in ("23:55", "23:54", "00:15", "00:16", "12:05")]
    assert ldb.scored(result(pairs), "near-time").tolist() == [1, 0, 1, 0, 0]
    assert ldb.scored(result(pairs), "strict-time").tolist() == [0] * 5


def test_quarters_are_of_the_time_between_the_first_and_the_last_question():
    pairs = [({"time": at(0, hour)}, {}) for hour in (4, 5, 6, 7, 8)] + [({}, {})]
    pairs += [({"time": at(0, 0)}, {"history": "g"})]
    answers = result([(given, {}) for given, _ in pairs])
    names = [more.get("history", "h") for _, more in pairs]
    rows = tuple(replace(row, history=name) for row, name in zip(answers.rows, names, strict=True))
    assert ldb._quarters(replace(answers, rows=rows)).tolist() == [0, 1, 2, 3, 3, 3, 3]


def test_contamination_counts_pairs_within_quarters_by_their_number():
    """Two quarters with both sorts: 1 x 1 pairs at 1, and 1 x 2 pairs of which one is tied, at 0.25."""
    told = ((0, 1, 0), (0, 0, 5), (7, 1, 2), (7, 0, 1), (8, 1, 1), (8, 1, 5))
    pairs = [
        ({"options": ("a", "b"), "right": 1, "time": at(0, hour)}, {"choice": right, "later": later})
        for hour, right, later in told
    ]
    found = ldb.contamination(result(pairs), generator=np.random.default_rng(0))
    last = [(later, right) for hour, right, later in told if hour > 6]
    wins = [(a > b) + (a == b) / 2 for a, one in last if one for b, other in last if not other]
    assert found.quarters[0] == 0 and found.quarters[3] == pytest.approx(sum(wins) / 3)
    assert found.within == pytest.approx((0 * 1 + sum(wins)) / 4) and found.later == pytest.approx(14 / 6 / 5)
    half = ldb.contamination(result(pairs), lambda question, row: 0.5 * row.choice, generator=np.random.default_rng(0))
    assert half.overall.estimate == found.overall.estimate  # half a credit counts as right


def test_bands_of_age_as_they_come():
    ages = (0.0, 0.99, 1.0, 6.99, 7.0, 29.99, 30.0, 89.99, 90.0, 1000.0)
    pairs = [({"options": ("a", "b"), "right": 1}, {"choice": 1, "age": age}) for age in ages]
    found = ldb.by_age(result(pairs), by="question")
    assert [(band.low, band.high, band.share.of) for band in found] == [
        (-math.inf, 1, 2), (1, 7, 2), (7, 30, 2), (30, 90, 2), (90, math.inf, 2),
    ]  # fmt: skip
    sizes = ldb.by_size(result([({}, {"turns": turns, "text": ""}) for turns in (1, 2, 3)]), edges=(2,), by="question")
    assert [(band.low, band.high, band.share.of) for band in sizes] == [(-math.inf, 2, 1), (2, math.inf, 2)]


def test_clusters_are_those_of_the_first():
    """Questions in another order, and each of its own day."""
    given = {"options": ("a", "b"), "right": 1}
    first = result([({"time": at(day), **given}, {"choice": int(day < 2)}) for day in (0, 0, 1, 2)])
    second = replace(first, questions=first.questions[::-1], rows=first.rows[::-1])
    interval = ldb.paired(first, second)
    assert interval.estimate == 0 and interval.clusters == 3
    asof = replace(second, rows=tuple(replace(row, choice=0) for row in second.rows))
    assert ldb.paired(first, asof) == ldb.paired(first, replace(asof, questions=first.questions, rows=asof.rows[::-1]))


def test_what_is_known_of_a_stream():
    turns = (Turn("t0", "a", "x", START + timedelta(hours=2)), Turn("t1", "a", "y"))
    sessions = (
        Session("s0", START, turns),
        Session("s1", START + timedelta(hours=1), (Turn("t2", "a", "z"),)),
        Session("s2", START + timedelta(hours=1), ()),
    )
    facts = ldb._Facts(History("h", sessions, ()))
    two, one = START + timedelta(hours=2), START + timedelta(hours=1)
    assert facts.ends == [two, one, one] and facts.spoken == [two, two, two] and facts.end == two
    question = MemoryQuestion("q", "?", evidence=("s1", "t0", "t1", "t0", "s0"))
    items = (MemoryItem("i", "x", two, ("t0",), "s9"), MemoryItem("j", "x", one, ("t9",), "s1"))
    now = START + timedelta(hours=1, minutes=30)
    row = facts.row(question, now, MemoryAnswer("no", items, "", 7, 2, amounts={"calls": 3}), 2, "state")
    assert (row.printed, row.later, row.found) == (2, 1, ("s1", "t0", "s0"))
    assert (row.sessions, row.turns, row.read_tokens, row.choice) == (2, 3, 7, 2)
    assert row.age == -0.5 / 24 and row.amounts == {"calls": 3} and row.state == "state"


@pytest.mark.parametrize("protocol", ["online", "offline"])
def test_each_session_is_told_with_its_own_amounts(protocol):
    class Counting:
        name, said = "counting", 0

        def ingest(self, session, time):
            self.said += 1
            return {"written_tokens": self.said}

        def answer(self, question, now, *, until=None):
            return MemoryAnswer("")

        def snapshot(self):
            return str(self.said)

    noon, told = datetime(2024, 5, 7, 12), []
    sessions = tuple(Session(f"s{n}", noon + timedelta(hours=n), (Turn(f"t{n}", "Ana", "Hi."),)) for n in range(4))
    history = History("Ana", sessions, (MemoryQuestion("1", "One?", gold=("x",)),))
    taken = lambda session, amounts: told.append((session.id, dict(amounts)))  # noqa: E731
    made = ldb.run(Counting(), history, protocol=protocol, taken=taken)
    assert told == [(f"s{n}", {"written_tokens": n + 1}) for n in range(4)]
    assert made.build == {"written_tokens": 10} and made.state == "4"
