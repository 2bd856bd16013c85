import re
from dataclasses import replace
from datetime import timedelta

import pytest

from equipoise.agents import lifedialbench
from equipoise.agents.comparing_scores import recalled
from equipoise.agents.memory import Unread
from equipoise.agents.memory_facts import Fact, FactDecision, SessionFacts
from equipoise.agents.memory_systems import build
from equipoise.agents.readers import ExactReader
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.histories import History, MemoryQuestion, Session, Turn
from memory_worlds import CLINIC, DAY, LATER, WHEN, Clinic, counts, told


class Slots:
    """A made world's parser: what is said of the clinic; a later value of a slot takes the place of the one before."""

    name = "the clinic's parser"

    def __init__(self):
        self.shown = []

    def facts(self, session):
        found = [Fact(turn.text, (turn.id,)) for turn in session.turns if re.search("clinic|doctor", turn.text)]
        return SessionFacts(tuple(found), {"calls": 1})

    def decide(self, fact, held):
        self.shown.append([item.id for item in held])
        slot = Clinic().said(fact.text).keys()
        for place, item in enumerate(held):
            if Clinic().said(item.text).keys() == slot:
                if "closed" in fact.text:
                    return FactDecision("delete", place)
                same = Clinic().said(item.text) == Clinic().said(fact.text)
                return FactDecision("none") if same else FactDecision("update", place, fact.text)
        return FactDecision("add", amounts={"calls": 1})


def facts(world=None, **options):
    world = world or Slots()
    return build("facts", **{"reader": Unread(), "embedder": counts, "extractor": world, "decider": world, **options})


def test_a_fact_is_added_updated_kept_and_deleted():
    system = facts()
    first = system.ingest(CLINIC[0], DAY)
    (item,) = system.items
    assert (item.id, item.text, item.time) == ("fact 1", "[2024-05-01 09:00] the clinic opens at 9", DAY)
    assert (item.sources, item.session) == (("a",), "s1")
    assert (first["facts"], first["add"], first["written_tokens"], first["calls"]) == (1, 1, 7, 1)
    assert first["embedded_tokens"] == 5
    second = system.ingest(CLINIC[1], CLINIC[1].time)
    (item,) = system.items
    assert (item.id, item.text, item.time) == ("fact 1", "[2024-05-02 09:00] the clinic moved to 11", CLINIC[1].time)
    assert (item.sources, item.session) == (("c",), "s2")
    assert (second["update"], second["add"], second["embedded_tokens"]) == (1, 0, 10)
    third = system.ingest(CLINIC[2], CLINIC[2].time)
    assert [each.id for each in system.items] == ["fact 1", "fact 2"]
    assert (third["add"], third["calls"]) == (1, 2)
    again = Session(
        "s4",
        LATER,
        (
            Turn("f", "Li", "the doctor is Li"),
            Turn("g", "Li", "clinic moved to 9: closed"),
        ),
    )
    last = system.ingest(again, LATER)
    assert (last["none"], last["delete"], last["update"], last["add"]) == (1, 1, 0, 0)
    assert [each.id for each in system.items] == ["fact 2"]
    assert system.items[0].time == CLINIC[2].time
    assert system.answer(MemoryQuestion("q", "doctor"), LATER).sources == {"e"}


def test_the_directions_are_those_of_what_is_held():
    system = facts(k=1)
    for number, text in enumerate(
        ("clinic opens at 9", "doctor is Li", "clinic moved to 11", "clinic moved to 1: closed")
    ):
        time = DAY + timedelta(number)
        system.ingest(Session(f"s{number}", time, (Turn(f"t{number}", "Bo", text),)), time)
        answer = system.answer(MemoryQuestion("q", "clinic moved to 11"), time)
        assert [item.id for item in answer.items] == (["fact 1"] if number < 3 else ["fact 2"])
    assert answer.trace[0]["cosine"] == pytest.approx(0.0, abs=0.01)


def test_the_card_example_of_a_store_that_keeps_one_value_for_each_slot():
    """Online 3 of 3, as of then 2 of 3, offline 2 of 3 (card of LifeDialBench)."""
    asked = [
        MemoryQuestion("1", "When?", CLINIC[0].time, ("9",)),
        MemoryQuestion("2", "When?", CLINIC[1].time, ("11",)),
        MemoryQuestion("3", "Who?", CLINIC[2].time, ("Li",)),
    ]
    append = build("rag-turns", reader=ExactReader(Clinic()), embedder=counts)
    one = facts(reader=ExactReader(Clinic()))
    rows = []
    for system in (append, one):
        online = []
        for session, question in zip(CLINIC, asked, strict=True):
            system.ingest(session, session.time)
            online.append(system.answer(question, question.time).text)
        asof = [system.answer(question, question.time, until=question.time).text for question in asked]
        offline = [system.answer(question, question.time).text for question in asked]
        gold = [question.gold[0] for question in asked]
        rows.append([sum(a == b for a, b in zip(each, gold, strict=True)) for each in (online, asof, offline)])
    assert rows == [[3, 3, 2], [3, 2, 2]]


def test_the_card_has_its_figures_by_evidence_as_well():
    """Modification 1/3 and contamination 0: of what was overwritten the evidence is no longer there."""
    asked = [
        MemoryQuestion(str(day), "When? Who?", session.time, evidence=(turn,))
        for day, (session, turn) in enumerate(zip(CLINIC, ("a", "c", "e"), strict=True))
    ]
    system, history = facts(), History("clinic", tuple(CLINIC), tuple(asked))
    online = lifedialbench.run(system, history)
    asof, offline = (lifedialbench.run(system, history, protocol=each, after=online) for each in ("asof", "offline"))
    held = [lifedialbench.scored(each, recalled).tolist() for each in (online, asof, offline)]
    assert held == [[1, 1, 1], [0, 1, 1], [0, 1, 1]]
    found = lifedialbench.effects(online, asof, offline, recalled, by="question")
    assert [each.estimate for each in found] == pytest.approx([1 / 3, 0])


def test_words_that_stay_in_an_updated_fact_keep_their_turns():
    class Merges(Slots):
        def decide(self, fact, held):
            old = held[0].text.partition("] ")[2]
            return FactDecision("update", 0, f"{old}, {fact.text}" if "doctor" in fact.text else fact.text)

    system = facts(Merges())
    for number, (text, sources) in enumerate([
        ("the clinic opens at 9", "0"), ("the doctor is Li", "01"), ("the clinic moved to 11", "2"),
    ]):  # fmt: skip
        time = DAY + timedelta(number)
        system.ingest(Session(f"s{number}", time, (Turn(str(number), "Bo", text),)), time)
        assert system.items[0].sources == tuple(sources)
    assert len(system.items) == 1


def test_the_nearest_ten_are_shown_best_first():
    class Adds(Slots):
        def facts(self, session):
            return SessionFacts(tuple(Fact(turn.text) for turn in session.turns))

        def decide(self, fact, held):
            self.shown.append([item.id for item in held])
            return FactDecision("add")

    texts = [f"common{' rare' * n}" for n in range(14)]
    session = Session("s", DAY, tuple(Turn(str(n), "Bo", text) for n, text in enumerate(texts)))
    world = Adds()
    system = told(facts(world), [session])
    assert [len(each) for each in world.shown] == [*range(1, 11), 10, 10, 10]  # nothing is held beside the first
    assert world.shown[-1] == [f"fact {n}" for n in range(13, 3, -1)]
    assert system.items[0].sources == tuple(map(str, range(14)))
    few = Adds()
    told(facts(few, neighbours=3), [session])
    assert max(map(len, few.shown)) == 3


def test_every_part_of_the_state_is_in_its_digest():
    system = told(facts())
    seen = [system.snapshot()]
    assert told(facts()).snapshot() == seen[0]
    for part in ("text", "id", "session"):
        kept = system.items[0]
        system.items[0] = replace(kept, **{part: "other"})
        seen.append(system.snapshot())
        system.items[0] = kept
    system.items.reverse()
    seen.append(system.snapshot())
    system.items.reverse()
    system._made += 1
    seen.append(system.snapshot())
    assert len(set(seen)) == 6
    before = system.snapshot()
    first = system.answer(WHEN, LATER)
    assert (system.answer(WHEN, LATER), system.snapshot()) == (first, before)


@pytest.mark.parametrize(
    ("decision", "named"),
    [
        (FactDecision("update", 1, "x"), "would update the fact at 1, and 1 were shown"),
        (FactDecision("delete"), "would delete the fact at None"),
        (FactDecision("update", -1, "x"), "the fact at -1"),
        (FactDecision("update", 0, " "), "update a fact to nothing"),
    ],
)
def test_a_decision_about_a_fact_that_was_not_shown_is_named(decision, named):
    class Wrong(Slots):
        def decide(self, fact, held):
            return decision

    with pytest.raises(WorkFailed, match=named):
        told(facts(Wrong()))


def test_what_cannot_write_facts_is_named():
    with pytest.raises(BadInput, match=r"Unread does not write this memory: an object with a name and facts\(\) does"):
        facts(extractor=Unread())
    with pytest.raises(BadInput, match="facts needs decider="):
        facts(decider=None)
    with pytest.raises(BadInput, match="0 facts are shown"):
        facts(neighbours=0)
    with pytest.raises(BadInput, match="'drop'"):
        FactDecision("drop")
    assert facts().name == "facts by the clinic's parser"


def test_what_comes_behind_a_deletion_is_taken_in_too():
    system = facts()
    turns = [Turn("a", "Bo", "the clinic opens at 9"), Turn("b", "Bo", "the doctor is Li")]
    system.ingest(Session("s0", DAY, tuple(turns)), DAY)
    later = DAY + timedelta(1)
    again = (Turn("c", "Bo", "the clinic opens at 9, it closed"), Turn("d", "Bo", "the doctor is Bo"))
    amounts = system.ingest(Session("s1", later, again), later)
    assert [item.text.partition("] ")[2] for item in system.items] == ["the doctor is Bo"]
    assert (amounts["delete"], amounts["update"], amounts["facts"]) == (1, 1, 2)


def test_one_neighbour_and_one_item_are_enough():
    world = Slots()
    system = facts(world, neighbours=1, k=1, budget=1)
    for number, text in enumerate(("the clinic opens at 9", "the doctor is Li", "the clinic moved to 11")):
        time = DAY + timedelta(number)
        system.ingest(Session(f"s{number}", time, (Turn(str(number), "Bo", text),)), time)
    assert [len(each) for each in world.shown] == [1, 1]
    for setting in ("neighbours", "k", "budget"):
        with pytest.raises(BadInput, match="at least 1"):
            facts(**{setting: 0})
