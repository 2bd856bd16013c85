"""The lifelog that LifeDialBench's study is asked about: what is told, what is asked, and a reader that makes no mistake."""

from datetime import time, timedelta

import numpy as np
import pytest

from equipoise.agents import lifedial_world as world
from equipoise.agents import lifedialbench as ldb
from equipoise.agents.memory import MemoryAnswer, MemoryItem, session_text
from equipoise.agents.memory_facts import Fact
from equipoise.core.errors import BadInput
from equipoise.data.histories import MemoryQuestion


class Overlap:
    """By brute force: the items that share most words with the question, the newest first; or none at all."""

    def __init__(self, k=5):
        self.name, self.k, self.items = "overlap", k, []

    def ingest(self, session, time):
        self.items.append(MemoryItem(session.id, session_text(session), time, (session.turns[0].id,), session.id))
        return {}

    def answer(self, question, now, *, until=None):
        asked = {question.text.split()[3], question.text.split()[5].strip("?")}
        kept = [item for item in self.items if until is None or item.time <= until]
        kept.sort(key=lambda item: (sum(word in item.text for word in asked), item.time), reverse=True)
        text, choice = world.WorldReader().read(question, kept[: self.k], "", now)
        return MemoryAnswer(text, tuple(kept[: self.k]), "", 0, choice)

    def snapshot(self):
        return f"{len(self.items)} {self.items[-1].text}"


def rates(made, k=5):
    """Open and choice online, as-of and offline."""
    system = Overlap(k)
    online = ldb.run(system, made.history)
    results = [online, *(ldb.run(system, made.history, protocol=each, after=online) for each in ("asof", "offline"))]
    return np.array([[ldb.scored(each, score).mean() for score in ("open", "choice")] for each in results])


def told(history, question, slot):
    """By brute force: (time, value) of all that is told of the asked person and topic, from the printed words."""
    asked = world.parse(question.text)
    found = []
    for session in history.sessions:
        said = world.parse(session_text(session))
        if (said.person, said.topic) == (asked.person, asked.topic) and getattr(said, slot):
            found.append((session.time, getattr(said, slot)))
    return found


@pytest.mark.parametrize("delays", [(0,), (0, 2, 7, 30)])
def test_the_newest_fact_is_asked_and_no_option_is_from_the_future(delays):
    made = world.life_world(3, days=60, delays=delays)
    assert len(made.history.questions) > 90
    replaced = 0
    for question in made.history.questions:
        slot = world.SLOTS[question.kind]
        assert question.time.time() == time(23, 59)  # the end of a day, so that all of the day is known
        facts = told(made.history, question, slot)
        past = [value for when, value in facts if when <= question.time]
        assert past[-1] == question.gold[0] == question.options[question.right]
        replaced += facts[-1][0] > question.time
        heard = {
            getattr(world.parse(session_text(session)), slot)
            for session in made.history.sessions
            if session.time <= question.time
        }
        assert set(question.options) <= heard and len(set(question.options)) == 4
        if len(past) > 1 and past[-2] != past[-1]:
            assert past[-2] in question.options
        (evidence,) = question.evidence
        assert any(turn.id == evidence for session in made.history.sessions for turn in session.turns)
    assert made.changed == pytest.approx(replaced / len(made.history.questions)) and made.restated == 0


def test_what_is_hidden_is_told_late_and_nothing_else_changes():
    open_, half, late = (world.life_world(1, days=40, persons=60, hidden=share) for share in (0.0, 0.5, 1.0))
    golds = [
        [(each.id, each.gold, each.options, each.time) for each in made.history.questions]
        for made in (open_, half, late)
    ]
    assert golds[0] == golds[1] == golds[2]
    by_id = {session.id: session for session in late.history.sessions}
    for session in open_.history.sessions:
        first = world.parse(session_text(by_id[session.id]))
        assert (first.place, first.clock) == ("", "") and first.topic == world.parse(session_text(session)).topic
        if (again := by_id.get(f"{session.id}r")) is not None:
            assert again.time - session.time == timedelta(world.LATER)
            assert again.turns[0].text == session.turns[0].text
    restated = [each for each in late.history.questions if each.evidence[0].endswith("r.0")]
    assert late.restated == len(restated) / len(late.history.questions) > 0.8
    assert 0.3 < half.restated < 0.7 and open_.restated == 0


def test_the_sign_of_offline_less_online_turns():
    """The small experiment of the card: 100 / 24.5 with few persons; with many 100 / 70, late 1 / 71."""
    online, asof, offline = rates(world.life_world(0, asked=0.25))
    assert (online == asof).all() and online.min() > 0.99
    assert 0.2 < offline[0] < 0.35 and 0.75 < offline[1] < 0.9
    early, _, end = rates(world.life_world(0, days=40, persons=60, hidden=0.0))
    assert early[0] > 0.99 and 0.6 < end[0] < 0.95
    early, _, end = rates(world.life_world(0, days=40, persons=60, hidden=1.0))
    assert early[0] < 0.1 and end[0] > 0.6


def test_options_tell_nothing_to_a_memory_without_content():
    made = [rates(world.life_world(seed, days=30, asked=1.0), k=0)[:, 1] for seed in range(3)]
    assert (np.array(made) == np.array(made)[:, :1]).all() and 0.18 < np.mean(made) < 0.32


def test_a_seed_is_a_world():
    first, again, other = (world.life_world(seed, days=20).history for seed in (5, 5, 6))
    assert ldb.stream_digest(first) == ldb.stream_digest(again) != ldb.stream_digest(other)


@pytest.mark.parametrize(
    ("seed", "settings", "digest", "counts", "shares"),
    [
        (3, {"days": 30, "persons": 5, "hidden": 0.5, "asked": 0.4, "delays": (0, 2, 7)},
         "563f7e14423f10f37063b2acb9979a20c7c549775d2869dd3f7d06ae6d3b3614", (173, 38), (8 / 19, 8 / 19)),
        (4, {"days": 15, "events": 2},
         "503d3a459fac27560e5207f12b8f158a00bae76fb495a7158bc946253dc629ac", (30, 12), (1 / 3, 0)),
    ],
)  # fmt: skip
def test_a_seed_is_the_same_world_in_every_version(seed, settings, digest, counts, shares):
    """Recorded results name seeds: what is told and asked stays to the letter."""
    made = world.life_world(seed, **settings)
    assert (len(made.history.sessions), len(made.history.questions)) == counts
    assert (made.changed, made.restated) == pytest.approx(shares)
    assert ldb.stream_digest(made.history) == digest


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"persons": 0}, "1 to 60 persons"),
        ({"events": 0}, "1 to 48 events"),
        ({"events": 49}, "1 to 48 events"),
        ({"hidden": -0.1}, "from 0 to 1"),
        ({"asked": -0.1}, "from 0 to 1"),
        ({"asked": 1.1}, "from 0 to 1"),
        ({"delays": ()}, "one or more"),
        ({"persons": 61}, "1 to 60 persons"),
        ({"days": 7}, "more than 7 days"),
        ({"hidden": 1.1}, "from 0 to 1"),
        ({"delays": (0, -1)}, "0 days or more"),
    ],
)
def test_worlds_that_are_none(more, match):
    with pytest.raises(BadInput, match=match):
        world.life_world(0, **more)


def test_words_are_of_one_kind():
    kinds = [world.PERSON_NAMES, world.TOPIC_NAMES, world.PLACE_NAMES, world.CLOCKS, world.FILLER_WORDS]
    assert len({word.casefold() for kind in kinds for word in kind}) == sum(map(len, kinds)) == 458
    person, topic, place, clock, filler = (kind[3] for kind in kinds)
    text = f"[2024-05-07 09:30] Me: {filler} {place}, {clock}. {topic} {person}"
    assert world.parse(text) == world.Told(person, topic, place, clock)
    vectors = world.count_vectors([text, "", f"{topic} {topic}"])
    assert vectors.shape == (3, 459) and vectors[0].sum() == pytest.approx(5.001)
    assert vectors[1].sum() == pytest.approx(0.001) and vectors[2].max() == 2


def test_what_is_extracted_is_what_is_told():
    history = world.life_world(2, days=30, persons=3).history
    exact, missing = world.WorldExtractor(), world.WorldExtractor(0.3)
    lost = 0
    for session in history.sessions:
        told = world.parse(session.turns[0].text)
        (fact,) = exact.facts(session).facts
        assert world.parse(fact.text) == told and fact.turns == (session.turns[0].id,)
        note, summed = exact.note(session_text(session)), exact.session_note(session)
        assert note.keywords == (told.person, told.topic) and note.text == session_text(session)
        assert world.parse(f"{summed.title} {summed.summary}") == told
        for each in missing.facts(session).facts or (Fact(f"{told.person} {told.topic}"),):
            part = world.parse(each.text)
            assert (part.person, part.topic) == (told.person, told.topic)
            assert part.place in ("", told.place) and part.clock in ("", told.clock)
            lost += (part.place == "") + (part.clock == "")
    assert 0.2 < lost / (2 * len(history.sessions)) < 0.4
    hidden = world.life_world(2, days=10, persons=3, hidden=1.0).history.sessions[0]
    assert not exact.facts(hidden).facts and exact.session_note(hidden).summary == ""


def test_rules_merge_what_is_of_one_person_and_topic():
    person, other = world.PERSON_NAMES[:2]
    topic, (a, b) = world.TOPIC_NAMES[0], world.PLACE_NAMES[:2]
    held = [item(1, other, topic, a), item(2, person, topic, a)]
    rules = world.WorldDecider()
    decided = rules.decide(Fact(f"{person} {topic} {b}"), held)
    assert (decided.action, decided.place, decided.text) == ("update", 1, f"{person} {topic} {b}")
    assert rules.decide(Fact(f"{person} {topic} {a}"), held).action == "none"
    assert rules.decide(Fact(f"{world.PERSON_NAMES[2]} {topic} {a}"), held).action == "add"
    notes = [world.WorldExtractor().note(f"{name} {topic} {a}") for name in (person, other, person)]
    links = rules.link(notes[0], notes)
    assert links.linked == (0, 2) and set(links.rewritten) == {0, 2} and "later" in links.rewritten[2][0]
    assert rules.link(world.WorldExtractor().note("nothing"), notes).linked == ()


def test_facts_lose_what_they_overwrite_and_text_what_comes_later():
    """Of one value a slot as-of is near offline, of appended text it is online: the card's 100, 23, 25 and 100, 100, 25."""
    history = world.life_world(0, asked=0.3, days=50, persons=6).history
    found = {}
    for name in ("facts", "rag-sessions"):
        system = world.world_memory(name, k=5)
        online = ldb.run(system, history)
        rest = [ldb.run(system, history, protocol=each, after=online) for each in ("asof", "offline")]
        assert ldb.accuracy(online, "open")[""].rate > 0.9
        found[name] = [each.estimate for each in ldb.effects(online, *rest, "open")]
    assert found["facts"][0] > 0.4 and abs(found["facts"][1]) < 0.15
    assert found["rag-sessions"][0] == 0 and found["rag-sessions"][1] > 0.4


def item(number, *words):
    return MemoryItem(str(number), " ".join(words), world.FIRST + timedelta(days=number))


def test_the_reader():
    person, other = world.PERSON_NAMES[:2]
    topic, (a, b, c, d, e) = world.TOPIC_NAMES[0], world.PLACE_NAMES[:5]
    question = MemoryQuestion(
        "q", f"Which place, for {topic} with {person}?", options=(a, b, c, d), kind="event_detail"
    )

    def read(*items, **more):
        return world.WorldReader().read(world.replace(question, **more), items, "", world.FIRST)

    assert read(item(2, person, topic, b), item(1, person, topic, a)) == (b, 1)
    assert read(item(1, person, topic, a), item(3, other, topic, b)) == (a, 0)  # of another person
    assert read(item(1, person, topic, a), item(3, person, b)) == (a, 0)  # names less of what is asked
    assert read(item(1, topic, a), item(3, other, topic, b)) == (a, 0)
    assert read(item(1, person, topic, a), item(3, person, topic)) == (a, 0)  # has no place
    assert read(item(1, person, topic, a), item(3, person, topic, e)) == (e, 0)  # e is no option
    assert read(item(1, person, topic, e), options=()) == (e, None)
    assert read(item(1, other, topic, c), item(2, world.FILLER_WORDS[0], e)) == (c, 2)  # the only option that is named
    text, chosen = read()
    assert text == "" and chosen in range(4)
    shuffled = world.WorldReader().read(world.replace(question, options=(d, c, b, a)), (), "", world.FIRST)
    assert (d, c, b, a)[shuffled[1]] == (a, b, c, d)[chosen]
    with pytest.raises(BadInput, match="knows event_detail, time_query"):
        read(kind="multi_event")


def test_the_smallest_worlds():
    assert len(world.life_world(0, days=8, persons=1, events=1, asked=1.0).history.sessions) == 8
    assert world.life_world(0, days=9, persons=60, events=48, asked=0.0).history.questions == ()
    nobody = world.life_world(0, days=9, asked=0.0)
    assert (nobody.changed, nobody.restated) == (0, 0)


class Noted:
    """A run that notes what it is told."""

    seed = 2

    def __init__(self):
        self.scores, self.measured, self.spent = {}, {}, {}

    def items(self, outcome, ids, values, *, at, where):
        assert len(ids) == len(values) and all(each.startswith("2 ") for each in ids)
        self.scores[(outcome, at["hidden"], *where.values())] = np.asarray(values, float)

    def measure(self, outcome, value, *, at, where, of=None):
        self.measured[(outcome, at["hidden"], *where.values())] = value if of is None else (value, of)

    def spend(self, *, phase, **amounts):
        self.spent[phase] = amounts

    def beat(self):
        pass


@pytest.mark.parametrize(("memory", "late"), [("empty", True), ("rag-sessions", False)])
def test_an_arm_is_measured_in_every_world_it_is_given(memory, late):
    run = Noted()
    world.measure(run, memory=memory, days=14, late=late, options={})
    worlds = [("updates", 0.0, how) for how in ("k", "100 tokens", "50 tokens", "200 tokens")]
    worlds += [("late", hidden, "k") for hidden in (0.0, 0.5, 1.0)] if late else []
    protocols = {
        each: ["online"] if each[2] in ("50 tokens", "200 tokens") else ["online", "asof", "offline"] for each in worlds
    }
    expected = {
        (outcome, hidden, name, how, protocol)
        for (name, hidden, how), asked in protocols.items()
        for protocol in asked
        for outcome in ("open", "choice", "recall", "printed_tokens")
    }
    expected |= {
        (outcome, hidden, name, how)
        for (name, hidden, how), asked in protocols.items()
        for outcome in ("modification", "contamination")
        if len(asked) > 1
    }
    assert set(run.scores) == expected
    for (outcome, hidden, *where), values in run.scores.items():
        if outcome in ("modification", "contamination"):
            more, less = ("online", "asof") if outcome == "modification" else ("asof", "offline")
            gap = run.scores["open", hidden, *where, more] - run.scores["open", hidden, *where, less]
            assert values.tolist() == gap.tolist()
    phases = set()
    for (name, hidden, how), asked in protocols.items():
        where = f"{name}, {how}"[: len(name)] + f" {how}" + (f" {hidden:g}" if name == "late" else "")
        phases |= {f"{each}, {where}" for each in ("build", *asked)}
    assert set(run.spent) == phases
    several = [each for each, asked in protocols.items() if len(asked) > 1]
    areas = ("later_auroc", "later_auroc_within")
    named = {(outcome, hidden, name, how) for name, hidden, how in several for outcome in areas}
    aged = {key for key in run.measured if key[0] == "open_by_age"}
    assert {key[3] for key in aged} == {"k", "100 tokens"} and {key[2] for key in aged} == {"updates"}
    assert {key[4] for key in aged} <= {"0 to 1 days", "1 to 5 days", "5 to 20 days", "20 to inf days"}
    for how in ("k", "100 tokens"):
        online = run.scores["open", 0.0, "updates", how, "online"]
        found = [value for key, value in run.measured.items() if key[0] == "open_by_age" and key[3] == how]
        assert (sum(count for count, _ in found), sum(of for _, of in found)) == (online.sum(), len(online))
    known = ("changed", "restated")
    shares = {(outcome, hidden, name) for name, hidden, how in worlds if how == "k" for outcome in known}
    assert set(run.measured) - aged == named | (shares if memory == "empty" else set())
    if memory == "empty":
        made = world.life_world(2, days=14, persons=60, hidden=0.5)
        assert run.measured["restated", 0.5, "late"] == made.restated
        assert run.measured["changed", 0.0, "updates"] == world.life_world(2, days=14, delays=(0, 2, 7, 30)).changed


def test_what_a_note_is_about_and_the_last_number_of_a_vector():
    person, topic = world.PERSON_NAMES[0], world.TOPIC_NAMES[0]
    exact = world.WorldExtractor()
    notes = [exact.note(text) for text in (f"{person} {topic}", topic, "nothing")]
    assert [note.context for note in notes] == [f"about {person} {topic}", f"about {topic}", ""]
    assert [note.tags for note in notes] == [(topic,), (), ()]
    vectors = world.count_vectors(["", world.FILLER_WORDS[-1]])
    assert vectors[:, -1].tolist() == [1e-3, 1e-3] and vectors[:, -2].tolist() == [0, 1]


def test_what_is_read_is_five_items_or_so_many_tokens(monkeypatch):
    asked = []

    def memory(name, **how):
        asked.append((name, how))
        return name

    def measured(run, system, history, protocols, at, where):
        asked[-1] += (protocols, at, where)

    monkeypatch.setattr(world, "world_memory", memory)
    monkeypatch.setattr(world, "_measure", measured)
    run = Noted()
    world.measure(run, memory="rag-sessions", days=9, late=True, options={"order": "rank"})
    every, online, more = ("online", "asof", "offline"), ("online",), {"order": "rank"}
    expected = [({"k": 5, **more}, every, {"hidden": 0.0}, {"world": "updates", "equal": "k"})]
    expected += [
        (
            {"k": 50, "budget": tokens, **more},
            protocols,
            {"hidden": 0.0},
            {"world": "updates", "equal": f"{tokens} tokens"},
        )
        for tokens, protocols in ((100, every), (50, online), (200, online))
    ]
    expected += [
        ({"k": 5, **more}, every, {"hidden": hidden}, {"world": "late", "equal": "k"}) for hidden in (0.0, 0.5, 1.0)
    ]
    assert asked == [("rag-sessions", *each) for each in expected]
