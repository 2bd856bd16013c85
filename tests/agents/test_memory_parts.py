"""Parts of the memory jobs alone: what is judged and how, what a page warns of, answers that wait, mem0's own settings."""

import math
import os
import re
import sys
from dataclasses import asdict
from datetime import datetime, time, timedelta
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from equipoise.agents import asked_systems, asking, judged_answers, kept_answers, memory_adapters
from equipoise.agents.judged_answers import Judgements
from equipoise.agents.kept_answers import KeptAnswers
from equipoise.agents.lifedialbench import AskedQuestion
from equipoise.agents.memory import MemoryAnswer, MemoryItem
from equipoise.agents.memory_result import MemoryComparison
from equipoise.core.errors import BadInput, MissingExtra, WorkFailed
from equipoise.core.rows import Rows
from equipoise.data.histories import History, MemoryQuestion, Session, Turn

NOON = datetime(2024, 5, 7, 12)


def row(question, text="", choice=None, history="Ana"):
    return AskedQuestion(history, question, text, choice, 0, 0, (), 1, 1, math.nan, 0, {}, "state")


# --- judging ---------------------------------------------------------------------------------------------------------


def test_what_is_right_by_rule_and_by_a_grader():
    choice = MemoryQuestion("1", "Q?", options=("a", "b", "c"), right=2, gold=("c",))
    declined, said = MemoryQuestion("2", "Q?"), MemoryQuestion("3", "Q?", gold=("red bowl", "pot"))
    by_rule = Judgements({}, None)
    assert [by_rule.right(choice, row("1", "c", place)) for place in (0, 2, None)] == [0.0, 1.0, 0.0]
    assert [by_rule.right(declined, row("2", text)) for text in ("It is not known.", "A bowl.", "")] == [1.0, 0.0, 0.0]
    assert [by_rule.right(said, row("3", text)) for text in ("a pot!", "red old bowl", " ")] == [1.0, 0.0, 0.0]
    graded = Judgements({("Ana", "3", "a pot!"): 0.25}, SimpleNamespace(reports=(1,), agreement=(2,)))
    assert graded.right(said, row("3", "a pot!")) == 0.25 and graded.right(said, row("3", " ")) == 0.0
    assert graded.right(choice, row("1", "", 2)) == 1.0 and graded.right(declined, row("2", "unknown")) == 1.0
    assert (graded.reports, graded.agreement) == ((1,), (2,)) and by_rule.reports == by_rule.agreement == ()


def test_equal_answers_to_one_question_are_judged_once(monkeypatch):
    calls = []

    def grade(submissions, graders, *, planted, seed):
        calls.append((submissions, graders, planted, seed))
        credit = {each.id: SimpleNamespace(credit=float(len(each.answer))) for each in submissions}
        other = {each.id: SimpleNamespace(credit=-1.0) for each in submissions}
        return SimpleNamespace(
            grades={"first": credit, "second": other, "contains match": other}, reports=(), agreement=()
        )

    monkeypatch.setattr(judged_answers, "grade", grade)
    monkeypatch.setattr(judged_answers, "ChatGrader", lambda chat: SimpleNamespace(name=chat))
    questions = (
        MemoryQuestion("1", "One?", gold=("x",)), MemoryQuestion("2", "Two?", gold=("y", "z")),
        MemoryQuestion("3", "Three?"), MemoryQuestion("4", "Four?", options=("a", "b"), right=0, gold=("a",)),
    )  # fmt: skip
    groups = {("Ana", each.id): f"g{each.id}" for each in questions}

    def answers(*texts):
        rows = [row(each.id, text) for each, text in zip(questions, texts, strict=True)]
        return SimpleNamespace(questions=questions, rows=rows)

    given = [answers("x", "yes", "no", "a"), answers("x", "y", "no", "a"), answers(" ", "yes", "", "")]
    done = judged_answers.judge(given, ["first", "second"], ["planted"], groups, seed=7)
    assert done.credit == {("Ana", "1", "x"): 1.0, ("Ana", "2", "yes"): 3.0, ("Ana", "2", "y"): 1.0}
    ((submissions, graders, planted, seed),) = calls
    assert [(each.question, each.answer, each.gold, each.group) for each in submissions] == [
        ("One?", "x", ("x",), "g1"), ("Two?", "yes", ("y", "z"), "g2"), ("Two?", "y", ("y", "z"), "g2"),
    ]  # fmt: skip
    assert len({each.id for each in submissions}) == 3 and (planted, seed) == (["planted"], 7)
    assert [each.name for each in graders] == ["first", "second", "contains match"]
    for nothing in (([], ["first"]), (given, []), ([answers("", "", "no", "a")], ["first"])):
        none = judged_answers.judge(*nothing, [], groups, seed=7)
        assert (dict(none.credit), none.grading) == ({}, None)
    assert len(calls) == 1


# --- what a page warns of --------------------------------------------------------------------------------------------


def grader(name, invalid=0, accept=0.0, reject=0.0, audited=True):
    audit = SimpleNamespace(false_accept=SimpleNamespace(rate=accept), false_reject=SimpleNamespace(rate=reject))
    return SimpleNamespace(grader=name, invalid=invalid, audit=audit if audited else None)


def test_graders_that_cannot_be_read_or_trusted_are_named():
    def of(*graders):
        return [text.split()[:2] for text in MemoryComparison._grader_warnings(SimpleNamespace(graders=graders))]

    assert of(grader("a", audited=False), grader("b", accept=0.1, reject=0.1)) == []
    assert of(grader("a", 1, audited=False), grader("b", accept=0.11), grader("c", 2, 0.3, 0.2)) == [
        ["a", "gave"], ["b", "accepts"], ["c", "gave"], ["c", "accepts"], ["c", "rejects"],
    ]  # fmt: skip


def test_what_a_reader_must_know_comes_before_the_numbers():
    def system(failed="", unanswered=0, scored=True, **build):
        first = SimpleNamespace(unanswered=unanswered, questions=10) if scored else None
        return SimpleNamespace(failed=failed, build=build, first=first)

    def of(measure="accuracy", clusters=10, **systems):
        told = SimpleNamespace(
            systems=systems, clusters=clusters, clustered="histories", measure=measure, order=list(systems),
            _grader_warnings=lambda: ["graders"],
        )  # fmt: skip
        return MemoryComparison.warnings(told)

    assert of(a=system(unanswered=5), b=system(scored=False)) == ("graders",)
    assert len(of(clusters=9)) == len(of(clusters=1)) == 2 and of(clusters=9)[0] != of(clusters=1)[0]
    found = of(a=system(unanswered=6), b=system("broke", scored=False), c=system(unparsable=2, not_given=3))
    assert [text.split(":")[0] for text in found[:2]] == ["b has no scores", "c"] and "5 replies" in found[1]
    assert found[2] == "graders" and found[3].startswith("a gave no answer to 6 of 10")
    assert of("recall", a=system(unanswered=10)) == ("graders",)


# --- answers that wait -----------------------------------------------------------------------------------------------


class Kept:
    def __init__(self):
        self.rows = []

    def add(self, *given):
        self.rows.append(given)


def waiting(read):
    questions = {
        "1": MemoryQuestion("1", "One?"),
        "2": MemoryQuestion("2", "Two?", time=NOON),
        "3": MemoryQuestion("3", "Q?"),
    }
    system = SimpleNamespace(answered=2.0)
    return kept_answers._Waiting("mine", "online", Kept(), read, questions, NOON + timedelta(days=1), system)


def test_what_is_silent_is_read_and_what_answers_is_not(monkeypatch):
    seen = []

    def read(asked):
        seen.extend((question.id, answer.context, now) for question, answer, now in asked)
        return [(f"read {question.id}", place) for place, (question, *_) in enumerate(asked)]

    held = waiting(read)
    items = tuple(MemoryItem(str(place), "x", NOON) for place in range(3))
    for name, text, choice in (("1", "", None), ("2", "", None), ("3", "says so", None), ("1", "", 2)):
        held.store(row(name, text, choice), MemoryAnswer(text, choice=choice, context=f"of {name}", items=items))
    held.flush()
    assert seen == [("1", "of 1", NOON + timedelta(days=1)), ("2", "of 2", NOON)]
    ((name, protocol, history, rows),) = held.kept.rows
    assert (name, protocol, history) == ("mine", "online", "Ana") and held.some == []
    assert [(each.row.text, each.row.choice) for each in rows] == [
        ("read 1", 0),
        ("read 2", 1),
        ("says so", None),
        ("", 2),
    ]
    assert all(2.0 <= each.seconds < 2.5 for each in rows)
    held.flush()
    assert len(held.kept.rows) == 1  # nothing waits any more


def test_an_error_of_the_reader_is_known_to_be_its_own():
    broken = RuntimeError("the reader's own")

    def read(asked):
        raise broken

    held = waiting(read)
    held.store(row("1"), MemoryAnswer("", context=""))
    with pytest.raises(RuntimeError, match="own"):
        held.flush()
    assert held.raised is broken and held.kept.rows == [] and len(held.some) == 1


@pytest.mark.parametrize("given", [1, 3])
def test_a_reader_answers_each_question_once(given):
    held = waiting(lambda asked: [("said", None)] * given)
    held.store(row("1"), MemoryAnswer("", context=""))
    held.store(row("2"), MemoryAnswer("", context=""))
    with pytest.raises(ValueError, match="zip"):
        held.flush()
    assert held.kept.rows == []


def test_answers_are_read_when_so_many_or_so_long_ones_wait(monkeypatch):
    monkeypatch.setattr(kept_answers, "AT_ONCE", 3)
    monkeypatch.setattr(kept_answers, "LARGEST", 10)
    held = waiting(None)
    for context in ("", "four", "", "sixsix", "four", "a", "ten!!!!!!!", "b", ""):
        held.store(row("3", "said"), MemoryAnswer("said", context=context))
    # Three; then eleven characters, and no flush at the ten before; then eleven again, and one that waits.
    assert [len(rows) for *_, rows in held.kept.rows] == [3, 3, 2] and len(held.some) == 1


# --- mem0 ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mem0(monkeypatch):
    """Stand-ins for mem0 and qdrant; made: the configurations."""
    made = []

    class Memory:
        @classmethod
        def from_config(cls, config):
            made.append(config)
            return SimpleNamespace()

    modules = {name: ModuleType(name) for name in ("mem0", "qdrant_client", "mem0.memory", "mem0.memory.telemetry")}
    modules["mem0"].Memory = Memory
    modules["mem0.memory.telemetry"].MEM0_TELEMETRY = False
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("MEM0_TELEMETRY", "MEM0_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return SimpleNamespace(made=made, telemetry=modules["mem0.memory.telemetry"])


def embedder(texts):
    return np.array([[3.0, 4.0, 0.0]] * len(texts))


def test_a_local_mem0_stays_in_its_folder_and_is_silent(mem0, tmp_path):
    folder = tmp_path / "new"
    memory = memory_adapters.local_mem0(folder, embedder)
    (config,) = mem0.made
    assert config["vector_store"] == {
        "provider": "qdrant",
        "config": {"path": str(folder / "qdrant"), "embedding_model_dims": 3, "on_disk": True},
    }
    assert config["llm"] == config["embedder"] and config["llm"]["provider"] == "openai"
    assert config["history_db_path"] == str(folder / "history.db")
    assert memory.embedding_model.embed("two words") == pytest.approx([0.6, 0.8, 0.0])
    assert memory.embedding_model.embed_batch(["one", "and two more"]) == [pytest.approx([0.6, 0.8, 0.0])] * 2
    assert memory.embedding_model.tokens == 2 + 1 + 3
    memory_adapters.local_mem0(tmp_path / "other", embedder, llm={"provider": "mine"}, count=len)
    assert mem0.made[1]["llm"] == {"provider": "mine"} and mem0.made[1]["embedder"] == config["embedder"]


def test_a_mem0_that_would_tell_or_mix_is_refused(mem0, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(BadInput, match="is not empty"):
        memory_adapters.local_mem0(tmp_path / "full", embedder)
    (tmp_path / "empty").mkdir()
    memory_adapters.local_mem0(tmp_path / "empty", embedder)
    assert os.environ["MEM0_TELEMETRY"] == "False" and os.environ["MEM0_DIR"] == str(tmp_path / "empty" / "mem0")
    mem0.telemetry.MEM0_TELEMETRY = True
    with pytest.raises(BadInput, match="imported before, and sends"):
        memory_adapters.local_mem0(tmp_path / "third", embedder)
    monkeypatch.setenv("MEM0_TELEMETRY", "True")  # whoever asks for it gets it
    assert memory_adapters.local_mem0(tmp_path / "third", embedder)
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(MissingExtra, match="pip install mem0ai"):
        memory_adapters.local_mem0(tmp_path / "fourth", embedder)


# --- asked and kept --------------------------------------------------------------------------------------------------


class Blind:
    """It remembers how much was said, and cannot be asked as of a moment."""

    name, as_of = "blind", False

    def __init__(self, fails=None):
        self.said, self.fails = 0, fails

    def ingest(self, session, time):
        self.said += len(session.turns)
        return {}

    def answer(self, question, now, *, until=None):
        if self.fails is not None:
            raise self.fails
        return MemoryAnswer(f"{self.said} turns")

    def snapshot(self):
        return str(self.said)


def a_day(*questions):
    turns = (Turn("t1", "Ana", "Hello."), Turn("t2", "Bo", "Bye.", time=NOON + timedelta(hours=3)))
    sessions = (Session("s1", NOON, turns), Session("s2", NOON + timedelta(hours=2), (Turn("t3", "Ana", "Oh."),)))
    return History("Ana", sessions, questions or (MemoryQuestion("1", "One?", gold=("x",)),))


@pytest.mark.parametrize("protocol", ["online", "offline"])
def test_what_cannot_look_back_is_asked_under_the_other_protocols(protocol):
    kept = KeptAnswers(Rows(None))
    found = kept_answers.answered("blind", Blind, a_day(), (protocol, "asof"), kept, None)
    assert {name: [row.text for row in each.rows] for name, each in found.items()} == {protocol: ["3 turns"]}
    with pytest.raises(kept_answers.SystemFailed, match="takes no until="):
        kept_answers.answered("blind", Blind, a_day(), ("asof",), kept, None)


def test_a_system_is_blamed_for_its_own_failed_work_and_not_for_the_readers():
    broken = WorkFailed("the reader's line was cut")

    def read(asked):
        raise broken

    with pytest.raises(WorkFailed, match="line was cut"):  # at the last question, and when there are as many as fit
        kept_answers.answered("blind", Silent, a_day(), ("offline",), KeptAnswers(Rows(None)), read)
    asked = [MemoryQuestion(str(number), "Q?", gold=("x",)) for number in range(kept_answers.AT_ONCE)]
    with pytest.raises(WorkFailed, match="line was cut"):
        kept_answers.answered("blind", Silent, a_day(*asked), ("offline",), KeptAnswers(Rows(None)), read)
    own = WorkFailed("it broke")
    with pytest.raises(WorkFailed, match="it broke"):  # of a system that is not the user's: for us to mend
        kept_answers.answered("blind", lambda: Blind(own), a_day(), ("offline",), KeptAnswers(Rows(None)), None)


class Silent(Blind):
    def answer(self, question, now, *, until=None):
        return MemoryAnswer("", context="Hello.", read_tokens=1)


def test_whose_fault_it_is():
    own, other = WorkFailed("own"), WorkFailed("other")
    system = kept_answers._Watched(Blind(own), "blind")
    with pytest.raises(kept_answers.SystemFailed, match="other"), kept_answers._blaming(system):
        raise other
    waits = waiting(None)
    with pytest.raises(kept_answers.SystemFailed, match="other"), kept_answers._blaming(system, waits):
        raise other
    waits.raised = other
    with pytest.raises(WorkFailed, match="other"), kept_answers._blaming(system, waits):
        raise other
    with pytest.raises(BadInput, match="budget"), kept_answers._blaming(system, waits):
        raise BadInput("budget")
    with pytest.raises(WorkFailed, match="own"), kept_answers._blaming(system):
        system.answer(MemoryQuestion("1", "One?"), NOON)
    assert system.raised is own


def test_what_was_kept_is_read_with_its_age_and_its_end():
    held = row("1", "said")
    for age, expected in ((2.5, 2.5), (None, math.nan), (0.0, 0.0)):
        plain = {**asdict(held), "found": ["t1", "t2"], "age": age}
        read = kept_answers._asked(plain)
        assert read.found == ("t1", "t2") and repr(read.age) == repr(expected)
    assert kept_answers._end(a_day()) == NOON + timedelta(hours=3)


def asked_for(**more):
    given = {"reader": None, "extractor": None, "replay": None, "embedder": None, "k": 5, "context_tokens": None}
    return SimpleNamespace(**{**given, **more})


@pytest.mark.parametrize(
    ("names", "embedder", "expected", "by"),
    [
        (("bm25", "thinned"), None, asked_systems.MINILM, {"thinned"}),
        (("bm25",), None, "none", set()),
        (("bm25",), "minilm", "minilm", {"bm25"}),
        (("bm25", "rag-turns"), None, asked_systems.MINILM, {"rag-turns"}),
        (("bm25",), "none", "none", {"bm25"}),
    ],
)
def test_who_is_given_vectors(names, embedder, expected, by):
    asked = asked_systems.AskedSystems.read(names, asked_for(embedder=embedder))
    assert (asked.embedder, asked.by_vectors, asked.inputs) == (expected, frozenset(by), {})


def test_models_that_are_asked_are_named_in_full():
    read = asked_systems.AskedSystems.read
    assert read(("full",), asked_for(reader="smollm2")).inputs == {"the reader": "equipoise/smollm2"}
    both = read(("full",), asked_for(reader="openai/gpt-4o", extractor="smollm2"))
    assert both.inputs == {"the extractor": "equipoise/smollm2"}
    assert (both.reads, both.extracts) == ("openai/gpt-4o", "smollm2")


@pytest.mark.parametrize("name", ["minilm", "zoo/model"])
def test_vectors_are_made_unless_the_embedder_is_none(monkeypatch, tmp_path, name):
    made = []
    monkeypatch.setattr("equipoise.language.embed.Embedder", lambda name, **how: made.append((name, how)))
    opened = asked_systems._Vectors.opened
    assert opened("none", tmp_path) is None and made == []
    assert opened(name, tmp_path) is not None and opened(name, None) is not None
    assert made == [
        (name, {"overflow": "cut", "cache": tmp_path / "vectors"}),
        (name, {"overflow": "cut", "cache": None}),
    ]


def test_rows_of_answers_and_ends_are_read_back(tmp_path):
    kept = KeptAnswers(Rows(tmp_path / "answers.jsonl"))
    two = [MemoryQuestion(name, "Q?", gold=("x",)) for name in ("1", "2")]
    made = kept_answers.answered("blind", Blind, a_day(*two), ("online", "offline"), kept, None)
    again = KeptAnswers(Rows(tmp_path / "answers.jsonl"))
    for protocol, answers in made.items():
        assert (
            again.whole("blind", protocol, a_day(*two)) == answers
            and [row.text for row in answers.rows] == ["3 turns"] * 2
        )
        assert again.whole("other", protocol, a_day(*two)) is None
    assert sorted(again.of("blind", "online", "Ana")) == ["1", "2"] and again.of("blind", "asof", "Ana") == {}


def test_one_of_several_histories_has_to_be_named():
    some = [SimpleNamespace(name=f"h{number}") for number in range(7)]
    for count, shown in (
        (2, "h0, h1"),
        (5, "h0, h1, h2, h3, h4"),
        (6, "h0, h1, h2, h3, h4, ..."),
        (7, "h0, h1, h2, h3, h4, ..."),
    ):
        with pytest.raises(
            BadInput, match=rf"f holds {count} histories \({re.escape(shown)}\): name one, --conversation h0"
        ):
            asking._chosen(tuple(some[:count]), None, "f")
    assert asking._chosen(tuple(some), "h3", "f") is some[3] and asking._chosen((some[2],), None, "f") is some[2]
    assert asking._chosen((some[2],), "h2", "f") is some[2]
    with pytest.raises(BadInput, match="f has no history 'h9'"):
        asking._chosen(tuple(some), "h9", "f")
    assert asking._shown(datetime.combine(NOON, time.max)) == "2024-05-07, at its end"
    assert asking._shown(NOON) == "2024-05-07 12:00"
