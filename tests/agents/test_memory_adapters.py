import importlib.util
import json
import math
import re
import sys
import textwrap
import uuid
from dataclasses import replace
from datetime import UTC

import numpy as np
import pytest

from equipoise.agents.memory import MemoryAnswer, MemoryItem, Unread, words
from equipoise.agents.memory_adapters import Mem0Memory, UserMemory, local_mem0, user_memory
from equipoise.agents.memory_systems import build
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.histories import MemoryQuestion
from memory_worlds import CLINIC, DAY, LATER, WHEN, counts, told

MINE = """
    class Words:
        '''The last turn; it is answered with its words.'''

        def __init__(self, k):
            self.k, self.said = k, []

        def ingest(self, session, time):
            self.said += [turn.text for turn in session.turns]

        def answer(self, question, now):
            return self.said[-1] if question.text != "fail" else 1 / 0

        def snapshot(self):
            return repr(self.said)


    def memory(k):
        return Words(k)


    def fails():
        return 1 / 0


    def strange(k, colour):
        return Words(k)


    def nothing():
        return 3


    def the_class():
        return Words


    constant = 7
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE), encoding="utf-8")
    return lambda name: f"{tmp_path / 'mine.py'}:{name}"


def test_words_alone_are_an_answer(mine):
    system = user_memory(mine("memory"), reader=Unread(), k=7)
    assert system.ingest(CLINIC[0], DAY) == {}
    before = system.snapshot()
    assert system.answer(WHEN, LATER) == MemoryAnswer("what a cold morning")
    assert system.snapshot() == before
    system.ingest(CLINIC[1], CLINIC[1].time)
    assert system.snapshot() != before
    assert system.name.endswith("mine.py:memory")
    assert user_memory(mine("memory"), reader=Unread(), name="mine").name == "mine"


def test_without_until_it_is_refused_as_of_a_moment_by_name(mine):
    system = told(user_memory(mine("memory"), reader=Unread(), name="mine"))
    assert not system.as_of
    with pytest.raises(BadInput, match=r"mine takes no until=: it can be run online and offline"):
        system.answer(WHEN, LATER, until=DAY)
    with pytest.raises(WorkFailed, match="mine: answer failed with ZeroDivisionError: division by zero"):
        system.answer(MemoryQuestion("q", "fail"), LATER)


def test_a_function_gets_what_it_names():
    seen = {}

    def some(embedder, count, budget=None):
        seen.update(embedder=embedder, count=count, budget=budget)
        return build("rag-turns", reader=Unread(), embedder=embedder)

    def every(**given):
        seen.update(given)
        return build("full", reader=given["reader"], budget=given["budget"])

    system = told(user_memory(some, reader=Unread(), embedder=counts, budget=99))
    assert seen == {"embedder": counts, "count": words, "budget": 99}
    assert (system.as_of, system.name) == (True, "some")
    plain = told(build("rag-turns", reader=Unread(), embedder=counts))
    assert system.answer(WHEN, LATER, until=DAY) == plain.answer(WHEN, LATER, until=DAY)
    assert system.snapshot() == plain.snapshot()
    assert system.ingest(replace(CLINIC[2], id="s9"), LATER)["embedding_calls"] == 1.0
    user_memory(every, reader=Unread(), k=3)
    assert seen.keys() == {"reader", "embedder", "k", "budget", "count"} and seen["k"] == 3


class Given:
    """Gives what it was given."""

    def __init__(self, amounts=None, found="", digest="x"):
        self.amounts, self.found, self.digest = amounts, found, digest

    def ingest(self, session, time):
        return self.amounts

    def answer(self, question, now, **how):
        return self.found

    def snapshot(self):
        return self.digest


CHOICE = MemoryQuestion("q", "When?", options=("9", "11"))


def test_of_a_choice_the_letter_counts():
    assert UserMemory(Given(found="Answer: B"), "mine").answer(CHOICE, DAY).choice == 1
    assert UserMemory(Given(found="C"), "mine").answer(CHOICE, DAY).choice is None
    assert UserMemory(Given(found=MemoryAnswer("B", choice=0)), "mine").answer(CHOICE, DAY).choice == 0


ITEM = MemoryItem("1", "words", DAY, ("1",), "s")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"text": 5}, "text is a int"),
        ({"context": 7}, "context is a int"),
        ({"read_tokens": -5}, "read_tokens is -5, expected a whole number from 0 on"),
        ({"read_tokens": math.nan}, "read_tokens is nan"),
        ({"read_tokens": "many"}, "read_tokens is 'many'"),
        ({"choice": "B"}, "choice is 'B', expected the place of an option"),
        ({"items": 3}, "items is a int"),
        ({"items": (1,)}, "items hold a int, expected MemoryItem"),
        ({"items": (replace(ITEM, id=7),)}, "item 7 has an id"),
        ({"items": (replace(ITEM, time=DAY.replace(tzinfo=UTC)),)}, "without a time zone"),
        ({"items": (replace(ITEM, sources="1"),)}, "item '1' has the sources '1', expected a tuple"),
        ({"amounts": {"calls": math.nan}}, "amounts hold 'calls': nan"),
        ({"amounts": 3}, "amounts is a int"),
        ({"trace": (object(),)}, "trace cannot be stored"),
        ({"trace": ("step",)}, "trace holds what is no mapping"),
    ],
)
def test_each_part_of_its_answer_is_checked(wrong, named):
    given = Given(found=replace(MemoryAnswer("B", (ITEM,), "words", 1), **wrong))
    with pytest.raises(WorkFailed, match="mine: answer gave a MemoryAnswer whose .*" + re.escape(named)):
        UserMemory(given, "mine").answer(CHOICE, DAY, until=LATER)


def test_numbers_of_numpy_and_lists_are_taken_as_what_they_are():
    items = [replace(ITEM, sources=["1"])]
    given = MemoryAnswer("", items, "two words", np.int64(2), np.int64(1), {"calls": np.float32(1)})
    found = UserMemory(Given(found=given), "mine").answer(CHOICE, DAY)
    assert found == MemoryAnswer("", (ITEM,), "two words", 2, 1, {"calls": 1.0})
    assert json.dumps([found.read_tokens, found.choice, dict(found.amounts)]) == '[2, 1, {"calls": 1.0}]'


def test_a_system_that_leaves_python_has_failed():
    class Leaves(Given):
        def answer(self, question, now, until=None):
            raise SystemExit(0)

    with pytest.raises(WorkFailed, match="mine: answer failed with SystemExit: 0"):
        UserMemory(Leaves(), "mine").answer(CHOICE, DAY)
    with pytest.raises(BadInput, match="gives no memory system: SystemExit"):
        user_memory(lambda: sys.exit(2), reader=Unread(), name="mine")


@pytest.mark.parametrize(
    ("given", "call", "named"),
    [
        ({"amounts": 3}, lambda m: m.ingest(CLINIC[0], DAY), "ingest gave a int, expected amounts by name"),
        (
            {"amounts": {"calls": "two"}},
            lambda m: m.ingest(CLINIC[0], DAY),
            "'calls': 'two', expected names and numbers",
        ),
        ({"amounts": {"calls": float("nan")}}, lambda m: m.ingest(CLINIC[0], DAY), "'calls': nan"),
        ({"amounts": {"calls": -1}}, lambda m: m.ingest(CLINIC[0], DAY), "'calls': -1"),
        ({"found": None}, lambda m: m.answer(WHEN, DAY), "answer gave a NoneType, expected words or a MemoryAnswer"),
        ({"found": MemoryAnswer("", choice=2)}, lambda m: m.answer(CHOICE, DAY), "chose option 2 of 2"),
        (
            {"found": told(build("full", reader=Unread())).answer(WHEN, LATER)},
            lambda m: m.answer(WHEN, LATER, until=DAY),
            "asked until 2024-05-01 09:00:00, it printed 'c', which changed at 2024-05-02",
        ),
        ({"digest": b"x"}, lambda m: m.snapshot(), "snapshot gave a bytes"),
    ],
)
def test_what_it_gives_is_checked(given, call, named):
    with pytest.raises(WorkFailed, match=f"mine: .*{named}"):
        call(UserMemory(Given(**given), "mine"))


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("fails", r"gives no memory system: ZeroDivisionError"),
        ("strange", "asks for colour; it may ask for reader, embedder, k, budget, count"),
        (
            "nothing",
            r"gave a int, expected an object with ingest\(session, time\).*; ingest, answer, snapshot is missing",
        ),
        ("the_class", "gave the class Words"),
        ("constant", "is a int, expected a function"),
        ("memroy", "has no 'memroy'. Did you mean 'memory'"),
    ],
)
def test_a_function_that_makes_no_memory_is_named(mine, name, named):
    with pytest.raises(BadInput, match=named):
        user_memory(mine(name), reader=Unread())
    with pytest.raises(BadInput, match=r"expected FILE:FUNCTION, for example mine.py:memory"):
        user_memory("mine.py", reader=Unread())


class FakeMem0:
    """What the adapter uses of a mem0.Memory: ids are drawn, and a model's doing is given as events."""

    def __init__(self, *inferred):
        self.held, self.inferred, self.added = {}, list(inferred), []

    def add(self, messages, *, user_id, metadata, infer):
        self.added.append((messages, metadata))
        events = [("ADD", message["content"]) for message in messages] if not infer else self.inferred.pop(0)
        results = []
        for kind, text in events:
            name = str(uuid.uuid4()) if kind == "ADD" else next(iter(self.held))
            self.held.pop(name, None) if kind == "DELETE" else self.held.update({name: (text, metadata)})
            results.append({"id": name, "memory": text, "event": kind})
        return {"results": results}

    def search(self, query, *, top_k, filters, threshold):
        found = sorted(self.held.items(), key=lambda row: -len(set(query.split()) & set(row[1][0].split())))[:top_k]
        return {"results": [{"id": name, "memory": text, "score": 0.5} for name, (text, _) in found]}

    def get_all(self, *, filters, top_k):
        return {"results": [{"id": n, "memory": t, "metadata": m} for n, (t, m) in list(self.held.items())[:top_k]]}


def test_mem0_keeps_turns_as_they_are():
    memory = FakeMem0()
    system = told(Mem0Memory(memory, reader=Unread(), infer=False, k=2))
    assert [item.id for item in system.items] == [f"memory {number}" for number in range(1, 6)]
    assert [item.sources for item in system.items] == [("a",), ("b",), ("c",), ("d",), ("e",)]
    assert memory.added[0][0][0] == {
        "role": "user",
        "name": "Li",
        "content": "[2024-05-01 09:00] Li: the clinic opens at 9",
    }
    before, answer = system.snapshot(), system.answer(WHEN, LATER)
    assert answer.sources == {"a", "c"}
    assert answer.context.splitlines()[0] == "[2024-05-01 09:00] Li: the clinic opens at 9"
    assert (system.snapshot(), told(Mem0Memory(FakeMem0(), reader=Unread(), infer=False)).snapshot()) == (
        before,
        before,
    )
    memory.held.pop(next(iter(memory.held)))
    assert system.snapshot() != before  # its store is looked into, not our list of it
    with pytest.raises(BadInput, match="mem0 takes no until="):
        system.answer(WHEN, LATER, until=DAY)


def test_mem0_adds_updates_and_deletes():
    memory = FakeMem0(
        [("ADD", "opens at 9")], [("UPDATE", "opens at 11"), ("ADD", "cat")], [("DELETE", ""), ("NONE", "")]
    )
    system = Mem0Memory(memory, reader=Unread())
    system.ingest(CLINIC[0], DAY)
    assert system.items[0].sources == ("a", "b")
    second = system.ingest(CLINIC[1], CLINIC[1].time)
    assert (second["update"], second["add"], second["written_tokens"]) == (1, 1, 8)
    assert (system.items[0].text, system.items[0].time) == ("[2024-05-02 09:00] opens at 11", CLINIC[1].time)
    assert system.items[0].sources == ("c", "d")  # of what is no longer said there is no evidence
    system.ingest(CLINIC[2], CLINIC[2].time)
    assert [item.id for item in system.items] == ["memory 2"]
    with pytest.raises(BadInput, match="holds memories of the user 'equipoise' already"):
        Mem0Memory(memory, reader=Unread())
    with pytest.raises(BadInput, match=r"A Unread is no mem0\.Memory: it has no add, search, get_all"):
        Mem0Memory(Unread(), reader=Unread())


def test_mem0_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("MEM0_TELEMETRY", "False")
    monkeypatch.setenv("MEM0_DIR", str(tmp_path / "mem0"))
    for package in ("mem0", "qdrant_client"):
        if importlib.util.find_spec(package) is None:  # not imported here, where telemetry would still be on
            pytest.skip(f"{package} is not installed")
    system = told(Mem0Memory(local_mem0(tmp_path / "store", counts), reader=Unread(), infer=False, k=2))
    plain = told(build("rag-turns", reader=Unread(), embedder=counts, k=2))
    before, answer = system.snapshot(), system.answer(WHEN, LATER)
    assert [item.sources for item in answer.items] == [item.sources for item in plain.answer(WHEN, LATER).items]
    assert answer.context == plain.answer(WHEN, LATER).context
    assert system.snapshot() == before
    assert answer.amounts["embedded_tokens"] == 5
    with pytest.raises(BadInput, match="is not empty"):
        local_mem0(tmp_path / "store", counts)


def test_what_a_system_read_is_counted_by_the_counter_of_all_and_held_to_the_budget():
    said = MemoryAnswer("x", (), "three words here", 0)
    assert user_memory(lambda: Given(found=said), reader=Unread(), budget=3).answer(WHEN, DAY).read_tokens == 3
    assert (
        user_memory(lambda: Given(found=replace(said, context="", read_tokens=9)), reader=Unread())
        .answer(WHEN, DAY)
        .read_tokens
        == 9
    )
    with pytest.raises(WorkFailed, match="printed 3 tokens and the budget is 2"):
        user_memory(lambda: Given(found=said), reader=Unread(), budget=2).answer(WHEN, DAY)


def test_mem0_counts_what_it_did_and_looks_at_all_that_it_holds():
    events = [("ADD", "opens at 9"), ("ADD", "the cat")], [("UPDATE", "opens at 11"), ("DELETE", "")]
    memory = FakeMem0(*events)
    asked, get_all = [], memory.get_all

    def watched(*, filters, top_k):
        asked.append((filters, top_k))
        return get_all(filters=filters, top_k=top_k)

    memory.get_all = watched
    system = Mem0Memory(memory, reader=Unread(), user="me")
    first = system.ingest(CLINIC[0], DAY)
    assert first == {"add": 2, "update": 0, "delete": 0, "written_tokens": 5 + 4, "embedded_tokens": 0}
    assert system.state()[0] == 2 and [row[:2] for row in system.state()[1]] == [(0, "opens at 9"), (1, "the cat")]
    second = system.ingest(CLINIC[1], CLINIC[1].time)
    assert second == {"add": 0, "update": 1, "delete": 1, "written_tokens": 5, "embedded_tokens": 0}
    assert asked[0] == ({"user_id": "me"}, 1) and asked[1] == ({"user_id": "me"}, 3)
    assert [item.id for item in system.items] == ["memory 2"]
    empty = system.ingest(replace(CLINIC[2], turns=()), CLINIC[2].time)
    assert empty == {"add": 0, "update": 0, "delete": 0, "written_tokens": 0, "embedded_tokens": 0}
    assert Mem0Memory(FakeMem0(), reader=Unread(), k=1, budget=1).items == []
