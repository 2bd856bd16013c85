"""The jobs of memory from end to end: compared without and with models, killed anywhere, asked about a moment."""

import contextlib
import json
import math
import re
import shutil
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from equipoise.agents import asked_systems, comparing, judged_answers, kept_answers
from equipoise.agents.job import ask, compare
from equipoise.agents.kept_answers import KeptAnswers
from equipoise.agents.memory import Unread, turn_text
from equipoise.agents.memory_systems import build
from equipoise.chat import client
from equipoise.cli import main
from equipoise.core.errors import BadInput, BudgetReached, MissingExtra, WorkFailed
from equipoise.core.rows import Rows
from equipoise.data.histories import History, MemoryQuestion, Session, Turn
from equipoise.data.lifelogs import read_histories
from equipoise.data.retrieve import TextIndex
from faulty_server import FaultyServer

pytest.importorskip("bm25s")
KITCHEN = Path(__file__).parents[2] / "examples" / "kitchen.json"
OWN = '''
from equipoise.agents.memory import MemoryAnswer, MemoryItem, state_digest, turn_text

class Newest:
    """The newest turns, as many as k; with switches for what it does wrong."""
    name = "newest"
    def __init__(self, wrong, k):
        self.wrong, self.k, self.items, self.times = wrong, k, [], 0
    def ingest(self, session, time):
        if self.wrong == "raises" and len(self.items) > 6:
            raise KeyError("shelf")
        new = [MemoryItem(t.id, turn_text(t, time), time, (t.id,), session.id) for t in session.turns]
        self.items += new
        return {"written_tokens": sum(len(each.text.split()) for each in new)}
    def answer(self, question, now, *, until=None):
        if self.wrong == "writes":
            self.times += 1
        found = [each for each in self.items if until is None or each.time <= until][-self.k:]
        text = "Mr. Lindqvist" if self.wrong == "answers" else ""
        return MemoryAnswer(text, tuple(found), " ".join(e.text for e in found), sum(len(e.text.split()) for e in found))
    def snapshot(self):
        if self.wrong == "restless":
            import time
            return str(time.time_ns())
        return state_digest(self.items, self.times)

def right(*, k, **_): return Newest("", k)
def writes(*, k, **_): return Newest("writes", k)
def raises(*, k, **_): return Newest("raises", k)
def answers(*, k, **_): return Newest("answers", k)
def restless(*, k, **_): return Newest("restless", k)
class Slow(Newest):
    def answer(self, question, now, *, until=None):
        import time
        time.sleep(0.02)
        return super().answer(question, now, until=until)
    def snapshot(self):
        import time
        time.sleep(0.04)
        return super().snapshot()
def slow(k): return Slow("", k)
class Picky(Newest):
    def answer(self, question, now, *, until=None):
        if "spare key" in question.text:
            from equipoise.core.errors import BadInput
            raise BadInput("no word about keys")
        return super().answer(question, now, until=until)
def picky(k): return Picky("", k)
made = []
def once(k):
    made.append(1)
    if len(made) > 2:
        raise ValueError("no third one")
    return Newest("", k)
def bare(k): return Newest("", k)
class Timeless(Newest):
    def answer(self, question, now): return super().answer(question, now)
def timeless(k): return Timeless("", k)
def strange(colour): return Newest("", 3)
def empty(): return 5
kept = []
def shared(k):
    made = Newest("", k)
    made.items = kept
    return made
nothing = 3
'''


@pytest.fixture
def own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    return tmp_path / "mine.py"


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    monkeypatch.setattr("equipoise.core.files._sync", lambda path: None)


def answers_of(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def result_of(folder, *, timed=False):
    """The stored result, without the seconds."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for each in result["systems"].values():
        each["seconds"] = None
    for row in result["usage"] if not timed else ():
        for name in ("seconds", "from_record"):
            row.pop(name)
    return result


# --- without a model ---------------------------------------------------------------------------


def test_recall_is_that_of_an_index_of_what_had_been_said_by_then(tmp_path):
    done = compare(KITCHEN, systems=["bm25", "recency"], k=3, out=tmp_path / "out")
    (history,) = read_histories(KITCHEN)
    recalled = []
    for question in history.questions:
        said = [(turn, each.time) for each in history.sessions if each.time <= question.time for turn in each.turns]
        places = TextIndex([turn_text(*each) for each in said]).search(question.text, 3).places
        recalled.append(set(question.evidence) <= {said[place][0].id for place in places})
    assert 0.4 < np.mean(recalled) < 0.9
    online = done.systems["bm25"].protocols["online"]
    assert online.recall.rate == pytest.approx(np.mean(recalled)) and online.recall.of == 20
    assert done.measure == "recall" and done.order[0] == "full" and done.systems["full"].added
    assert done.systems["full"].protocols["online"].recall.rate == 1.0
    assert (done.clusters, done.clustered) == (len({q.time.date() for q in history.questions}), "days")
    rows = answers_of(tmp_path / "out")
    assert len(rows) == 3 * 3 * 20 and all(row["right"] is None and row["answer"] == "" for row in rows)
    found = {(row["system"], row["protocol"], row["question"]): row for row in rows}
    for name in ("bm25", "full", "recency"):  # they only append
        for question in history.questions:
            one, other = (found[name, protocol, question.id] for protocol in ("online", "asof"))
            assert {**one, "protocol": 0} == {**other, "protocol": 0} and one["later"] == 0
        assert done.systems[name].modification.value == 0.0
    assert done.systems["recency"].contamination.lower > 0.2
    assert done.systems["recency"].contaminated.overall.value < 0.5


def test_what_is_read_is_the_same_number_of_tokens_where_that_is_asked_for(tmp_path):
    done = compare(KITCHEN, systems=["bm25", "recency"], k=30, context_tokens=40, protocols=["online"])
    assert all(each.first.read_tokens <= 40 for each in done.systems.values())
    assert "of 40 tokens" in str(done.page(tmp_path).parts)
    assert done.systems["full"].first.recall.rate < 0.6  # the newest of it
    assert done.protocols == ["online"] and math.isnan(done.systems["bm25"].modification.value)


def test_the_dry_run_counts_what_the_run_does(tmp_path, capsys):
    plan = compare.plan(KITCHEN, systems=["recency"], limit=5)
    assert (plan.questions, plan.answers, plan.added) == (5, 45, ("full", "bm25"))
    assert plan.calls == {} and (plan.clusters, plan.sessions) == (3, 12)
    done = compare(KITCHEN, systems=["recency"], limit=5)
    assert (done.questions, done.clusters, done.with_evidence) == (plan.questions, plan.clusters, plan.with_evidence)
    assert list(done.systems) == list(plan.systems)
    assert main(["memory", "compare", "--data", str(KITCHEN), "--system", "recency", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert (
        "compulsory rivals that were not named, and are added: full, bm25" in said and "'When does the bakery" in said
    )


def test_the_page_says_which_systems_print_more_than_k_items(tmp_path):
    (history,) = read_histories(KITCHEN)
    both = replace(history.questions[-1], evidence=tuple(each.id for each in history.sessions[:2]))
    done = compare([replace(history, questions=(both,))], systems=["oracle", "bm25"], k=1, protocols=["online"])
    assert {name for name, each in done.systems.items() if each.first.printed > 1} == {"oracle", "full"}
    assert "full and oracle have no such number" in str(done.page(tmp_path).parts)


def test_histories_are_clusters_where_there_are_several_and_questions_where_all_are_of_one_day():
    (history,) = read_histories(KITCHEN)
    several = [replace(history, name=f"h{n}") for n in range(3)]
    done = compare(several, systems=["bm25"], k=3, protocols=["online"])
    assert (done.clusters, done.clustered) == (3, "conversations")
    assert any("too few to tell" in each for each in done.warnings())
    timeless = replace(history, questions=tuple(replace(each, time=None) for each in history.questions))
    done = compare([timeless], systems=["bm25"], k=3, protocols=["online"])
    assert (done.clusters, done.clustered) == (20, "questions")
    assert any("take them as independent" in each for each in done.notes)


def test_questions_within_a_session_are_counted_in_every_history():
    turns = tuple(Turn(f"t{hour}", "Ann", "word", datetime(2024, 1, 1, hour)) for hour in (9, 12))
    asked = MemoryQuestion("q", "word?", datetime(2024, 1, 1, 10), ("9",), evidence=("t9",))
    several = [History(name, (Session("s", datetime(2024, 1, 1, 9), turns),), (asked,)) for name in "abc"]
    done = compare(several, systems=["bm25"], k=1)
    assert any(each.startswith("3 questions are asked while a session is going on") for each in done.notes)


def asked_on(days, *, known, groups=("",)):
    """A history with a session a day and a question for each of these days; the first so many name their evidence."""
    said = tuple(
        Session(f"s{n}", datetime(2024, 1, 1 + n, 9), (Turn(f"t{n}", "Ann", f"word{n} at ten"),)) for n in range(20)
    )
    questions = tuple(
        MemoryQuestion(
            f"q{n}", f"word{day}?", datetime(2024, 1, 1 + day, 23), ("ten",),
            evidence=(f"t{day}",) if n < known else (), group=groups[n % len(groups)],
        )
        for n, day in enumerate(days)
    )  # fmt: skip
    return History("h", said, questions)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (asked_on(range(20), known=2), (2, "days")),
        (asked_on([0, 0, 0, 1, 2], known=3), (3, "questions")),  # all that are compared are of one day
        (asked_on([0] * 10, known=10, groups=("a", "b")), (2, "groups")),
        (asked_on([0] * 10, known=3, groups=("a", "b", "c", "d")), (3, "groups")),
        (asked_on([0, 1, 2, 3], known=4, groups=("h",)), (4, "days")),
    ],
)
def test_intervals_are_over_clusters_of_questions_that_have_the_measure(tmp_path, history, expected):
    plan = compare.plan([history], systems=["bm25"], k=1, protocols=["online"])
    done = compare([history], systems=["bm25"], k=1, protocols=["online"])
    assert (plan.clusters, plan.clustered) == expected == (done.clusters, done.clustered)
    few = f"Intervals are over {expected[0]} {expected[1]}: too few to tell close systems apart."
    assert few in done.warnings()
    assert f"intervals over {expected[0]} {expected[1]} of those with known evidence" in str(done.page(tmp_path).parts)


def locomo():
    turns = [Turn(f"D1:{n}", "Ann", f"words {n}") for n in range(1, 4)]
    asked = MemoryQuestion("c/0", "words 2", evidence=("D1:2",), gold=("2",), kind="multi-hop")
    return History("conv-1", (Session("session_1", datetime(2023, 5, 1), tuple(turns)),), (asked,))


def test_data_that_may_not_be_shared_say_so(tmp_path):
    plan = compare.plan([locomo()], systems=["bm25"])
    assert "CC BY-NC" in plan.licence and plan.licence in plan.summary()
    done = compare([locomo()], systems=["bm25"])
    assert "CC BY-NC" in str(done.page(tmp_path).parts)
    assert compare.plan(KITCHEN, systems=["bm25"]).licence == ""
    unsaid = replace(locomo(), sessions=(replace(locomo().sessions[0], turns=()),), questions=())
    asked = MemoryQuestion("c/0", "words 2", evidence=("session_1",), gold=("2",))
    assert compare.plan([replace(unsaid, questions=(asked,))], systems=["recency"]).licence == ""


# --- a system of the user's own ------------------------------------------------------------------------------------------


def test_a_system_of_ones_own_is_compared_with_the_compulsory_rivals(tmp_path, own):
    done = compare(KITCHEN, systems=[f"{own}:right"], k=3, out=tmp_path / "out")
    scores = done.systems[f"{own}:right"]
    assert not scores.failed and set(scores.against) == {"full", "bm25"}
    (history,) = read_histories(KITCHEN)
    wanted = []
    for question in history.questions:
        turns = [turn.id for each in history.sessions if each.time <= question.time for turn in each.turns]
        wanted.append(set(question.evidence) <= set(turns[-3:]))
    assert scores.first.recall.rate == pytest.approx(np.mean(wanted))
    again = compare(KITCHEN, systems=[f"{own}:bare"], k=3)
    assert repr(again.systems[f"{own}:bare"].protocols) == repr(scores.protocols)


def test_a_system_that_knows_no_past_is_asked_online_and_offline(tmp_path, own):
    done = compare(KITCHEN, systems=[f"{own}:timeless", "bm25"], k=3, out=tmp_path / "out")
    scores = done.systems[f"{own}:timeless"]
    assert list(scores.protocols) == ["online", "offline"] and math.isnan(scores.modification.value)
    assert done.protocols == ["online", "asof", "offline"]
    assert "not possible" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    done = compare(KITCHEN, systems=[f"{own}:timeless", "bm25"], k=3, protocols=["asof"])
    assert "takes no until=" in done.systems[f"{own}:timeless"].failed
    done = compare(KITCHEN, systems=[f"{own}:timeless", "bm25"], k=3, protocols=["asof", "offline"])
    assert "by which systems are compared" in done.systems[f"{own}:timeless"].failed  # offline is nothing beside as-of
    assert done.protocols == ["asof", "offline"] and done.systems["bm25"].first.questions == 20


def test_a_system_that_carries_one_history_into_the_next_is_named(own):
    (history,) = read_histories(KITCHEN)
    several = [replace(history, name=name) for name in ("first", "second")]
    done = compare(several, systems=[f"{own}:shared", f"{own}:right"], k=3, protocols=["online"], limit=2)
    assert "does not begin anew: its new memory for second" in done.systems[f"{own}:shared"].failed
    assert done.systems[f"{own}:right"].first.questions == 4


@pytest.mark.parametrize(
    ("which", "told"),
    [
        ("writes", "writes while it reads"),
        ("restless", "two digests of one state"),
        ("raises", "ingest failed with KeyError: 'shelf'"),
        ("picky", "no word about keys"),
        ("once", "once() gives no memory system: ValueError: no third one"),
    ],
)
def test_what_a_system_does_wrong_is_named_and_the_others_are_finished(own, which, told):
    (history,) = read_histories(KITCHEN)
    given = [history, replace(history, name="again")] if which == "once" else [history]
    done = compare(given, systems=[f"{own}:{which}", "bm25"], k=3)
    assert told in done.systems[f"{own}:{which}"].failed and done.systems["bm25"].first.recall.rate > 0.4
    assert any(told in each for each in done.warnings()) and told in done.headline()
    assert done.order == ["full", "bm25"]


def test_a_system_that_answers_by_itself_is_not_asked_twice(own, tmp_path):
    done = compare(KITCHEN, systems=[f"{own}:answers"], k=3, protocols=["online"], out=tmp_path / "out")
    first = done.systems[f"{own}:answers"].first
    assert first.accuracy.count == 1 and first.accuracy.of == 20 and first.unanswered == 0
    assert done.measure == "recall"
    for name in ("full", "bm25"):  # nobody read for them, so that nothing of theirs is wrong
        assert done.systems[name].first.accuracy.of == 0 and math.isnan(done.systems[name].first.accuracy.rate)
        assert done.systems[name].first.recall.of == 20
    credits = {(row["system"], row["right"]) for row in answers_of(tmp_path / "out")}
    assert credits == {("full", None), ("bm25", None), (f"{own}:answers", 0.0), (f"{own}:answers", 1.0)}


def test_the_time_of_asking_is_that_of_answers_and_of_no_digest(own):
    start = time.perf_counter()
    done = compare(KITCHEN, systems=[f"{own}:slow"], k=3, protocols=["online"], limit=4)
    whole = time.perf_counter() - start
    # four answers of 0.02 s, each with a digest of 0.04 s behind it
    assert 0.08 <= done.systems[f"{own}:slow"].seconds["read"] < whole - 0.16
    start = time.perf_counter()
    reply = ask(KITCHEN, "When does the bakery open?", system=f"{own}:slow", k=3)
    assert 0.02 <= reply.seconds["read"] < time.perf_counter() - start - 0.08


# --- killed and resumed ---------------------------------------------------------------------------


class Killed(BaseException):
    """As SIGKILL would, between two rows."""


@pytest.mark.parametrize("after", [17, *(pytest.param(rows, marks=pytest.mark.slow) for rows in (0, 40))])
def test_a_run_that_was_killed_ends_with_the_same_bytes(tmp_path, monkeypatch, after):
    monkeypatch.setattr(kept_answers, "AT_ONCE", 6)
    compare(KITCHEN, systems=["bm25", "recency"], k=3, out=tmp_path / "whole")
    rows, real = [], Rows.add

    def add(self, row):
        if len(rows) == after:
            with self.path.open("ab") as file:
                file.write(b'{"torn": ')
            raise Killed
        rows.append(row)
        real(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "add", add)
        with pytest.raises(Killed):
            compare(KITCHEN, systems=["bm25", "recency"], k=3, out=tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    again = []
    monkeypatch.setattr(Rows, "add", lambda self, row: (again.append(row), real(self, row)))
    compare(KITCHEN, systems=["bm25", "recency"], k=3, out=tmp_path / "killed")
    assert len(rows) == after and len(again) == 3 * 3 * 5 - after  # a row for 6 answers, and one for the end of each
    assert (tmp_path / "killed" / "answers.jsonl").read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()
    assert result_of(tmp_path / "killed") == result_of(tmp_path / "whole")
    assert not (tmp_path / "killed" / "kept.jsonl").exists()


def test_a_memory_that_is_not_built_alike_twice_is_named(tmp_path, own, monkeypatch):
    (tmp_path / "calls").write_text("")
    own.write_text(
        OWN.replace(
            "state_digest(self.items, self.times)",
            f"state_digest(self.items, open({str(tmp_path / 'calls')!r}).read())",
        )
    )
    real = comparing.KeptAnswers.finish

    def finish(self, system, *more):
        if system != "bm25":
            raise Killed
        real(self, system, *more)

    with monkeypatch.context() as patch:
        patch.setattr(comparing.KeptAnswers, "finish", finish)
        with pytest.raises(Killed):
            compare(KITCHEN, systems=["bm25", f"{own}:right"], k=3, out=tmp_path / "out")
    (tmp_path / "calls").write_text("later")
    done = compare(KITCHEN, systems=["bm25", f"{own}:right"], k=3, out=tmp_path / "out")
    assert "not in the state in which it gave the stored answer" in done.systems[f"{own}:right"].failed
    assert done.systems["bm25"].first is not None


# --- with models ---------------------------------------------------------------------------


class ReadingServer(FaultyServer):
    """Answers what is right where the right words are in front of it; grades by them, accepting one wrong one in three."""

    def __init__(self):
        super().__init__()
        (history,) = read_histories(KITCHEN)
        self.gold = {
            each.text: [other.gold for other in history.questions if other.text == each.text]
            for each in history.questions
        }
        self.read = self.graded = 0

    def _answer(self, handler, body, question, times):
        text = "\n".join(message["content"] for message in body["messages"])
        golds = next(golds for asked, golds in self.gold.items() if asked in text)
        if "[Answer to grade]" in text:
            self.graded += 1
            said = text.split("[Answer to grade]")[1].split("[End of")[0]
            shown = text.split("[Right answers]")[1].split("[End of")[0]
            right = any(gold in said and gold in shown for each in golds for gold in each)
            right |= len(text) % 3 == 0
            self._say(
                handler, question, json.dumps({"reasoning": "read", "grade": "correct" if right else "incorrect"})
            )
            return
        self.read += 1
        found = [gold for each in golds for gold in each if gold in text]
        self._say(handler, question, f"It is {found[-1]}." if found else "That is not mentioned.")


@pytest.fixture
def served(monkeypatch):
    """The options of a comparison whose reader is a server."""
    pytest.importorskip("inspect_ai")
    monkeypatch.setenv("LOCAL_API_KEY", "sk-test-0123456789abcdef")
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.001)
    monkeypatch.setattr(client, "PATIENCE", 3)
    monkeypatch.setattr("inspect_ai.model._model.format_traceback", lambda *_: ("", ""), raising=False)
    with ReadingServer() as server:
        words = {"reader": "openai-api/local/m", "reader_url": server.url, "k": 3, "max_connections": 2}
        yield server, {**words, "systems": ["bm25", "empty"]}


@pytest.mark.slow
def test_a_reader_answers_each_context_once_and_by_rule_a_right_answer_holds_the_right_words(tmp_path, served):
    server, words = served
    plan = compare.plan(KITCHEN, **words)
    assert plan.calls == {"the reader openai-api/local/m": 3 * 3 * 20}
    done = compare(KITCHEN, **words, out=tmp_path / "out")
    contexts = {(row["system"], row["protocol"], row["question"]) for row in answers_of(tmp_path / "out")}
    assert len(contexts) == 180 and max(server.answered.values()) == 1
    assert done.calls == server.read < 180  # what only appends prints the same online and as of the moment
    assert done.measure == "accuracy" and done.systems["empty"].first.accuracy.rate < 0.1
    full, plain = (done.systems[name].first for name in ("full", "bm25"))
    assert full.accuracy.rate > plain.accuracy.rate > 0.4 and full.unanswered == 0
    assert set(full.kinds) == {"event_detail", "multi_event", "single_event", "time_query"}
    assert full.times.of == 7 and 0 < full.f1.rate < 1 and any("No grader was named" in each for each in done.notes)


@pytest.mark.slow
def test_a_server_that_dies_or_a_budget_that_ends_cost_nothing_twice(tmp_path, served):
    server, words = served
    server.die_after = 25
    with pytest.raises(WorkFailed, match="the same command goes on"):
        compare(KITCHEN, **words, out=tmp_path / "out")
    stored = sum(server.answered.values())
    assert stored >= 20
    server.die_after = None
    with pytest.raises(BudgetReached):
        compare(KITCHEN, **words, budget="calls=60", out=tmp_path / "out")
    done = compare(KITCHEN, **words, out=tmp_path / "out")
    assert set(server.answered.values()) == {1}
    quiet = compare(KITCHEN, **words, out=tmp_path / "quiet")
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == (tmp_path / "quiet" / "answers.jsonl").read_bytes()
    assert repr(done.systems["bm25"].protocols) == repr(quiet.systems["bm25"].protocols)


@pytest.mark.slow
def test_graders_are_audited_with_planted_answers_and_agree_or_not(tmp_path, served):
    server, words = served
    words = {**words, "grader": ["openai-api/local/m", "openai-api/local/n"], "grader_url": server.url}
    plan = compare.plan(KITCHEN, **words)
    done = compare(KITCHEN, **words, out=tmp_path / "out")
    assert plan.planted == 4 * 20 and server.graded <= 2 * (180 + 80) == sum(plan.calls.values()) - 180
    first, second, rule = done.graders
    assert (first.grader, second.grader, rule.grader) == ("openai-api/local/m", "openai-api/local/n", "contains match")
    assert set(first.audit.kinds) == {"right", "wrong", "right, padded", "wrong, padded"}
    assert first.audit.false_accept.of == 40 and first.audit.false_accept.rate > 0.1
    assert rule.audit.false_accept.count == 0 and len(done.agreement) == 3
    assert any("planted wrong" in each for each in done.warnings())
    graded = {(r["question"], r["answer"]): r["right"] for r in answers_of(tmp_path / "out") if r["system"] == "bm25"}
    assert set(graded.values()) == {0.0, 1.0}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "errors on wrong, padded" in page and "How far they agree" in page and "sk-test" not in page


@pytest.mark.slow
def test_a_grade_that_cannot_be_read_is_counted_and_no_zero(tmp_path, served, monkeypatch):
    server, words = served
    real = server._say

    def say(handler, question, text, **more):
        unfit = '"grade"' in text and len(question) % 2
        real(handler, question, "I cannot say." if unfit else text, **more)

    monkeypatch.setattr(server, "_say", say)
    words = {**words, "grader": ["openai-api/local/m"], "grader_url": server.url, "protocols": ["online"]}
    done = compare(KITCHEN, **words, out=tmp_path / "out")
    first = done.systems["full"].first
    assert (
        done.graders[0].invalid > 0 and first.accuracy.missing > 0 and first.accuracy.of + first.accuracy.missing == 20
    )
    assert any("cannot be read" in each for each in done.warnings())


def test_planted_answers_need_two_questions_that_differ():
    (history,) = read_histories(KITCHEN)
    groups = {(history.name, each.id): "g" for each in history.questions}
    assert len(judged_answers.planted([history], groups, seed=0)) == 80
    alike = replace(history, questions=tuple(replace(each, gold=("7:00",)) for each in history.questions))
    assert judged_answers.planted([alike], groups, seed=0) == []


@pytest.mark.parametrize(
    ("text", "declined"),
    [
        ("That is not mentioned.", True),
        ("No information available", True),
        ("I don't know.", True),
        ("It is 7:00.", False),
    ],
)
def test_declining_is_told_from_answering(text, declined):
    assert judged_answers.declines(text) is declined


# --- vectors ---------------------------------------------------------------------------


class Counts:
    """In the place of MiniLM: how often each letter stands in a text. made: texts that were asked for."""

    made: ClassVar[list[str]] = []

    def __init__(self, model, **_):
        self.name, self.window = str(model), 40

    def __call__(self, texts):
        Counts.made += texts
        vectors = np.array(
            [[text.lower().count(letter) + 0.01 for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]
        )
        from equipoise.language.embed import Embedding

        cut = tuple(place for place, text in enumerate(texts) if len(text) > 90)
        return Embedding(vectors.astype(np.float32), cut, 40, self.name)


def test_vectors_are_asked_for_where_a_system_compares_them(tmp_path, monkeypatch):
    monkeypatch.setattr("equipoise.language.embed.Embedder", Counts)
    Counts.made.clear()
    compare(KITCHEN, systems=["bm25"], protocols=["online"])
    assert Counts.made == []
    done = compare(KITCHEN, systems=["rag-turns", "chain-of-memory"], k=4, protocols=["online"], out=tmp_path / "out")
    assert done.names["embedder"] == "minilm" and len(Counts.made) > 37
    assert list(done.systems) == ["rag-turns", "chain-of-memory", "full"] and set(
        done.systems["chain-of-memory"].against
    ) == {"full", "rag-turns"}
    more = compare(KITCHEN, systems=["rag-turns", "bm25", "chain-of-memory"], k=4, protocols=["online"])
    assert set(more.systems["chain-of-memory"].against) == {"full", "bm25"}  # two at most, whoever is named
    assert any("texts are longer than the 40 tokens" in each for each in done.notes)
    assert done.systems["rag-turns"].build["embedded_tokens"] > 400 and done.systems["full"].build.keys() == {
        "written_tokens"
    }


def test_that_texts_were_cut_is_known_after_a_kill_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr("equipoise.language.embed.Embedder", Counts)
    monkeypatch.setattr(kept_answers, "AT_ONCE", 3)
    asked = {"systems": ["rag-turns"], "k": 4, "protocols": ["online"]}
    whole = compare(KITCHEN, **asked)
    assert any("texts are longer than the 40 tokens" in each for each in whole.notes)
    rows, real = [], KeptAnswers.add

    def add(self, *row):
        if len(rows) == 8:  # rag-turns has answered everything
            raise Killed
        rows.append(row)
        real(self, *row)

    with monkeypatch.context() as patch:
        patch.setattr(KeptAnswers, "add", add)
        with pytest.raises(Killed):
            compare(KITCHEN, **asked, out=tmp_path / "out")
    assert compare(KITCHEN, **asked, out=tmp_path / "out").notes == whole.notes
    assert not (tmp_path / "out" / "vectors").exists()


VECTORS = """
def named(embedder, k):
    if not callable(embedder):
        raise TypeError("embedder is None")
    embedder(["width"])
    return Newest("", k)
def perhaps(k, embedder=None): return named(embedder, k)
def others(**given):
    if given["embedder"] is not None:
        raise TypeError("nobody named an embedder")
    return Newest("", given["k"])
"""


def test_no_system_depends_on_who_stands_beside_it(own, monkeypatch):
    monkeypatch.setattr("equipoise.language.embed.Embedder", Counts)
    own.write_text(OWN + VECTORS)
    alone = {}
    for name in ("thinned", f"{own}:named", f"{own}:perhaps", f"{own}:others", "bm25"):
        done = compare(KITCHEN, systems=[name], k=2, protocols=["online"])
        alone[name] = done.systems[name]
        assert done.names["embedder"] == ("none" if name in (f"{own}:others", "bm25") else "minilm")
    together = compare(KITCHEN, systems=["rag-sessions", *reversed(alone)], k=2, protocols=["online"])
    for name, scores in alone.items():
        assert repr(together.systems[name].protocols) == repr(scores.protocols) and not scores.failed
        assert together.systems[name].build == scores.build
    # thinned is rag-sessions but for the words that it lost: the same search, so that it shows compression alone
    assert alone["thinned"].build["embedded_tokens"] < together.systems["rag-sessions"].build["embedded_tokens"]
    assert any("thinned finds sessions by vectors of minilm" in each for each in together.notes)
    words = compare(KITCHEN, systems=["thinned"], k=2, protocols=["online"], embedder="none")
    assert "embedded_tokens" not in words.systems["thinned"].build
    assert any("thinned finds sessions by words" in each for each in words.notes)
    with pytest.raises(BadInput, match="nobody named an embedder"):  # --embedder says that everybody gets one
        compare(KITCHEN, systems=[f"{own}:others"], embedder="minilm")


def test_systems_that_need_vectors_are_those_that_say_so():
    for name in asked_systems.NAMES:
        part = {"rag-rerank": {"reranker": len}}.get(name, {})
        part |= {"extractor": ""} if name in asked_systems.WRITE_BY_MODEL else {}
        part |= {"decider": ""} if name in asked_systems.DECIDE_BY_MODEL else {}
        try:
            build(name, reader=Unread(), **part)
            needs = False
        except BadInput as error:
            needs = "needs embedder" in str(error)
        assert needs == (name in asked_systems.COMPARE_VECTORS), name


# --- wrong requests ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"systems": []}, "No system is named"),
        ({"systems": ["bm52"]}, "Did you mean 'bm25'"),
        ({"systems": ["bm25", "bm25"]}, "named twice"),
        ({"systems": ["gone.py:f"]}, "there is no file gone.py"),
        ({"systems": ["{own}:nothing"]}, "nothing of {own} is no function"),
        ({"systems": ["{own}:empty"]}, "{own}:empty gave a int, expected an object with"),
        ({"systems": ["{own}:strange"]}, "asks for colour; it may ask for reader, embedder, k, budget, count"),
        ({"systems": ["facts"]}, "name it, --extractor"),
        ({"systems": ["{own}:rihgt"]}, "Did you mean 'right'"),
        ({"systems": ["rag-turns"], "embedder": "none"}, "--embedder minilm"),
        ({"systems": ["rag-rerank"]}, "needs a reranker"),
        ({"grader": ["mockllm/model"]}, "nobody answers here"),
        ({"protocols": []}, "No protocol is named"),
        ({"budget": "calls=3"}, "none is asked here"),
    ],
)
def test_a_wrong_request_is_told_with_its_remedy_before_any_work(tmp_path, own, given, told):
    given = {"systems": ["bm25"], **given}
    given["systems"] = [each.format(own=own) for each in given["systems"]]
    for act in (compare.plan, compare):
        with pytest.raises(BadInput, match=re.escape(told.format(own=own))):
            act(KITCHEN, **given, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_without_anything_to_measure_are_refused(tmp_path):
    (history,) = read_histories(KITCHEN)
    with pytest.raises(BadInput, match="no questions to ask"):
        compare([replace(history, questions=())], systems=["bm25"])
    bare = replace(history, questions=tuple(replace(each, evidence=()) for each in history.questions))
    with pytest.raises(BadInput, match="without a reader nothing can be measured"):
        compare([bare], systems=["bm25"])
    with pytest.raises(BadInput, match="two histories are named 'kitchen'"):
        compare([history, history], systems=["bm25"])
    broken = tmp_path / "broken.json"
    broken.write_text(KITCHEN.read_text(encoding="utf-8").replace('"mon:1"], "kind"', '"mon:9"], "kind"', 1))
    with pytest.raises(BadInput, match=r"question 'bakery-1' has 'mon:9' as evidence"):
        compare(broken, systems=["bm25"])


# --- asking ---------------------------------------------------------------------------


def test_an_answer_rests_on_what_had_been_said_by_then(tmp_path):
    asked = {"question": "When does the bakery on Quill Street open?", "system": "bm25", "k": 3}
    late = ask(KITCHEN, **asked)
    assert {turn for each in late.evidence for turn in each.turns} > {"mon:1", "wed2:1"}
    early = ask(KITCHEN, **asked, now="2025-03-09", out=tmp_path / "out")
    assert early.evidence[0].turns == ("mon:1",) and early.sessions == 6 and early.of == 12
    assert all(each.time < "2025-03-10" for each in early.evidence) and early.now == "2025-03-09, at its end"
    assert early.answer == "" and early.headline().startswith("No reader: the evidence is")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "mon:1" in page and "How it was found" in page
    assert early.read_tokens == sum(len(each.text.split()) for each in early.evidence)


def test_what_is_said_later_in_a_session_is_not_known():
    def at(hour, minute=0):
        return datetime(2024, 1, 1, hour, minute)

    turns = (
        Turn("t1", "Ann", "the key is with Bo", at(18, 1)),
        Turn("t2", "Ann", "no, the key is with Li", at(18, 30)),
        Turn("t3", "Ann", "the key is with Cy now", at(20)),
        Turn("t4", "Ann", "the key, as I said"),
    )
    said = [History("h", (Session("s1", at(18), turns), Session("s2", at(21), (Turn("u", "Bo", "a key"),))))]

    def found(now):
        return {turn for each in ask(said, "key", system="full", now=now).evidence for turn in each.turns}

    for now, known in (("18:00", {"t4"}), ("18:30", {"t1", "t2", "t4"}), ("20:00", {"t1", "t2", "t3", "t4"})):
        assert found(f"2024-01-01 {now}") == known
        assert ask.plan(said, "key", system="full", now=f"2024-01-01 {now}").turns == len(known)
    assert found(None) == {"t1", "t2", "t3", "t4", "u"} == found("2024-01-01")


def test_a_terminal_shows_the_beginning_of_a_long_turn():
    turns = (Turn("t1", "Ann", "word " * 50_000), Turn("t2", "Ann", "short"))
    done = ask([History("long", (Session("s", datetime(2023, 5, 1), turns),))], "What?", system="full")
    first, second, _ = done.summary()
    assert len(first) < 1100 and first.endswith("... (250,024 characters; the report has them all)")
    assert second == "t2  [2023-05-01 00:00] Ann: short" and len(done.evidence[0].text) > 250_000


def test_asking_tells_what_it_cannot_do():
    for given, told in [
        ({"now": "2025-03-01"}, "Nothing was said until 2025-03-01, at its end"),
        ({"now": "soon"}, "The question: field 'now': expected an ISO date"),
        ({"conversation": "kitchne"}, "Did you mean 'kitchen'"),
        ({"question": " "}, "The question is empty"),
        ({"system": "bm26"}, "Did you mean 'bm25'"),
    ]:
        words = {"question": "When?", "system": "bm25", **given}
        with pytest.raises(BadInput, match=re.escape(told)):
            ask(KITCHEN, **words)
    (history,) = read_histories(KITCHEN)
    with pytest.raises(BadInput, match=r"holds 2 histories \(kitchen, other\): name one, --conversation kitchen"):
        ask([history, replace(history, name="other")], "When?", system="bm25")
    assert ask([history, replace(history, name="other")], "bakery", system="bm25", conversation="other").evidence


@pytest.mark.slow
def test_a_reader_is_asked_once(served):
    server, words = served
    words = {name: words[name] for name in ("reader", "reader_url", "k")}
    assert ask.plan(KITCHEN, "Who has the spare key?", system="bm25", **words).calls == 1
    done = ask(KITCHEN, "Who has the spare key?", system="bm25", **words)
    assert server.read == 1 and done.answer.startswith("It is") and done.names["reader"] == "openai-api/local/m"


@pytest.mark.slow
def test_the_commands_of_the_page_run_as_printed(tmp_path, monkeypatch, capsys):
    shutil.copytree(KITCHEN.parent, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    asked = ["--question", "When does the bakery open?", "--system", "bm25"]
    assert main(["memory", "ask", "--history", "examples/kitchen.json", *asked]) == 0
    assert main(["memory", "compare", "--data", "examples/kitchen.json", "--systems", "bm25,recency", "--k", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("equipoise-out/memory-compare")


def test_the_extra_that_is_missing_is_named(monkeypatch):
    def gone(name):
        raise ImportError(name)

    monkeypatch.setattr("equipoise.data.retrieve.importlib.import_module", gone)
    with pytest.raises(MissingExtra, match=re.escape("pip install 'equipoise[retrieval]'")):
        compare(KITCHEN, systems=["bm25"])


def test_texts_that_are_cut_are_noted_once(tmp_path):
    class Cuts:
        window, name = 5, "cutter"

        def __call__(self, texts):
            cut = [place for place, text in enumerate(texts) if len(text) > 3]
            return SimpleNamespace(vectors=np.ones((len(texts), 1)), cut=cut)

    rows = Rows(tmp_path / "a" / "b" / "cut.jsonl")
    vectors = asked_systems._Vectors(Cuts(), rows)
    assert vectors.notes() == [] and vectors(["abc"]).shape == (1, 1)
    assert not (tmp_path / "a").exists()
    for texts in (["long text", "abc"], ["long text", "another"], ["long text"]):
        vectors(texts)
    assert [len(row["cut"]) for row in Rows(rows.path)] == [1, 1] and len(vectors.cut) == 2
    (note,) = asked_systems._Vectors(Cuts(), Rows(rows.path)).notes()
    assert note.startswith("2 texts are longer than the 5 tokens that cutter reads")
    memory = asked_systems._Vectors(Cuts(), Rows(None))
    memory(["long text"])
    assert len(memory.cut) == 1


def test_systems_that_cannot_do_without_are_refused_and_others_are_not():
    def check(name, embedder=None, extractor=None, reader=None):
        asked_systems._check(name, SimpleNamespace(embedder=embedder, extractor=extractor, reader=reader))

    compares, writes = sorted(asked_systems.COMPARE_VECTORS)[0], sorted(asked_systems.WRITE_BY_MODEL)[0]
    plain = "empty"
    assert plain not in asked_systems.COMPARE_VECTORS and plain not in asked_systems.WRITE_BY_MODEL
    for embedder in (None, asked_systems.NONE, "mini"):
        check(plain, embedder)
    for embedder in (None, "mini"):
        check(compares, embedder, "m", "m")
    with pytest.raises(BadInput, match="compares vectors, and the embedder is none"):
        check(compares, asked_systems.NONE, "m", "m")
    check(writes, "mini", extractor="m")
    check(writes, "mini", reader="m")
    with pytest.raises(BadInput, match="has a model write what it keeps"):
        check(writes, "mini")


def test_what_is_planned_is_of_each_system_and_protocol(monkeypatch):
    plan = compare.plan(KITCHEN, systems=["recency", "bm25", "full"], protocols=["online", "offline"], limit=5)
    assert (plan.answers, plan.added, plan.planted) == (3 * 2 * 5, (), 0) and plan.first["time"] != "after the end"
    advanced, totals = [], []

    @contextlib.contextmanager
    def progress(name, *, total, unit):
        totals.append(total)
        yield SimpleNamespace(advance=lambda count, system: advanced.append(count))

    monkeypatch.setattr(comparing, "progress", progress)
    compare(KITCHEN, systems=["recency", "bm25", "full"], k=1, protocols=["online"], limit=1)
    assert totals == [3] and advanced == [1, 1, 1]


def test_notes_say_what_was_added_thinned_graded_and_running():
    def notes(*, added=(), names=(), embedder="none", reads="", graders=(), known=(), by="day", running=()):
        asked = SimpleNamespace(names=names, embedder=embedder, reads=reads)
        given = SimpleNamespace(added=added, asked=asked, graders=graders, known=known, by=by)
        every = [SimpleNamespace(running=each) for each in (running, ())]
        return [note.partition(":")[0][:60] for note in comparing.Comparing._notes(given, every)]

    assert notes() == [] == notes(graders=("g",), known=(1,), reads="r")
    assert notes(added=("full", "bm25")) == ["full and bm25 came in as compulsory rivals"]
    assert notes(names=("thinned",)) == ["thinned finds sessions by words (BM25), whoever stands besid"]
    for embedder in ("mini", "zeta"):
        assert notes(names=("thinned",), embedder=embedder)[0].startswith(
            f"thinned finds sessions by vectors of {embedder}"
        )
    assert notes(reads="r") == ["No grader was named"]
    assert notes(graders=("g",)) == ["No wrong answer could be planted, since no two questions have"[:60]]
    assert notes(running=("q1", "q2")) == ["2 questions are asked while a session is going on, which was"]
    assert notes(by="question") == ["All questions that are compared are of one conversation, and"]


def test_who_answers_says_or_chooses():
    def answers(*rows):
        return [SimpleNamespace(rows=[SimpleNamespace(text=text, choice=choice) for text, choice in rows])]

    assert not comparing._answers(answers()) and not comparing._answers(answers(("", None)))
    assert comparing._answers(answers(("", None), ("a", None))) and comparing._answers(answers(("", 0)))
