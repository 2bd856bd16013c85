"""Chat against a server that fails in every way it can; the server counts what reached it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from pydantic import BaseModel

from equipoise.chat import client
from equipoise.chat.account import Account
from equipoise.chat.calls import Call, Reply
from equipoise.chat.client import Chat
from equipoise.chat.record import Record
from equipoise.core.budget import Budget
from equipoise.core.errors import BadInput, BudgetReached, WorkFailed
from equipoise.data.records import Message
from faulty_server import FaultyServer

pytest.importorskip("inspect_ai")

KEY = "sk-test-0123456789abcdef"
MODEL = "openai-api/local/m"


@pytest.fixture(autouse=True)
def no_coloured_tracebacks(monkeypatch):
    """Inspect draws one for every failed try, which takes it 20 ms."""
    monkeypatch.setattr("inspect_ai.model._model.format_traceback", lambda *_: ("", ""), raising=False)


def call(text: str, **options: object) -> Call:
    return Call((Message("user", text),), **{"phase": "judge", **options})


def asking(server: FaultyServer, record: Record, account: Account | None = None, **options: object) -> Chat:
    settings = {"model_args": {"api_key": KEY}, "retry_wait": 0.001, "timeout": 30, "max_connections": 4, **options}
    return Chat(MODEL, record=record, account=account or Account(), base_url=server.url, **settings)


def ask(server: FaultyServer, path: Path, calls: list[Call], **options: object) -> tuple[list[Reply], Account]:
    account = options.pop("account", None) or Account()
    with Record(path) as record, asking(server, record, account, **options) as chat:
        return chat.ask(calls), account


def test_every_fault_is_retried_counted_and_never_stored_as_an_answer(tmp_path):
    faults = ["429", "500", "garbage", "invalid", "nothing"]
    mended = [call(f"{fault}*2 q") for fault in faults]
    lost = [call(f"{fault} lost") for fault in ("429", "503", "nothing")]
    path = tmp_path / "calls.jsonl"
    with FaultyServer() as server:
        replies, account = ask(server, path, [*mended, *lost, call("ok q")], max_retries=2)
        assert [reply.text for reply in replies[:5]] == [f"answer to {fault}*2 q" for fault in faults]
        assert [reply.status for reply in replies[5:]] == ["failed"] * 3 + ["answered"]
        assert Counter(server.asked) == Counter({c.messages[0].content: 3 for c in [*mended, *lost]} | {"ok q": 1})
        total = account.total()
        assert (total.calls, total.retries, total.statuses) == (9, 16, {"answered": 6, "failed": 3})
        # 6 answers of 10 + 3 tokens; nothing else told any.
        assert (total.usage.prompt, total.usage.cached, total.usage.generated, total.usage.reasoning) == (60, 24, 18, 6)
        assert "HTTP 429" in replies[5].reason and "HTTP 503" in replies[6].reason
        assert not any(secret in reply.reason for reply in replies for secret in (KEY, "u:pw", "key=abc"))

        again, account = ask(server, path, [*mended, *lost, call("ok q")], max_retries=0)
        assert again[:5] == replies[:5]
        assert Counter(server.asked) == Counter(
            {c.messages[0].content: 3 for c in mended} | {c.messages[0].content: 4 for c in lost} | {"ok q": 1}
        )
        assert (account.total().calls, account.total().from_record) == (12, 6)
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_a_key_that_the_server_echoes_is_neither_stored_nor_returned(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOTHER_API_KEY", "0ther-0ther-0ther")
    calls = [call("echo q"), call("ok 0ther-0ther-0ther"), call("echo none", schema=Verdict)]
    with FaultyServer() as server:
        replies, _ = ask(server, tmp_path / "r.jsonl", calls)
        assert replies[0].text == "you sent Bearer [key] to echo q"
        assert replies[1].text == "answer to ok [key]"
        assert KEY in str(server.bodies) or "0ther-0ther-0ther" in str(server.bodies)  # what is asked stays as it was
        again, _ = ask(server, tmp_path / "r.jsonl", calls)
        assert again == replies
    stored = (tmp_path / "r.jsonl").read_bytes()
    assert b"you sent Bearer [key]" in stored
    assert KEY.encode() not in stored
    assert b"0ther-0ther" not in stored
    assert KEY not in repr(replies)


def test_a_provider_that_names_a_time_is_waited_for(tmp_path):
    with FaultyServer() as server:
        started = time.monotonic()
        replies, account = ask(server, tmp_path / "r.jsonl", [call("after*1 q")])
    assert replies[0].status == "answered" and account.total().retries == 1
    assert time.monotonic() - started >= 0.3  # its Retry-After, where our own wait would be 0.001


def test_answers_that_are_none(tmp_path):
    calls = [call("empty q"), call("empty*1 q"), call("long q"), call("filter q")]
    with FaultyServer() as server:
        replies, account = ask(server, tmp_path / "r.jsonl", calls)
        assert [reply.status for reply in replies] == ["answered", "answered", "cut", "refused"]
        assert replies[2].text == "the beginning"
        assert Counter(server.asked) == {"empty q": 2, "empty*1 q": 2, "long q": 1, "filter q": 1}
        assert account.total().retries == 2 and account.total().usage.prompt == 60  # empty answers are paid for too
        replies, _ = ask(server, tmp_path / "r.jsonl", calls)
        assert [reply.status for reply in replies] == ["answered", "answered", "cut", "refused"]
        assert Counter(server.asked)["filter q"] == 1


def test_a_request_that_the_provider_does_not_take_is_asked_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "PATIENCE", 3)
    calls = [call(f"400 {i}") for i in range(6)] + [call("ok q")]
    with FaultyServer() as server:
        for _ in range(2):
            replies, account = ask(server, tmp_path / "r.jsonl", calls)
            assert [reply.status for reply in replies] == ["rejected"] * 6 + ["answered"]
        assert set(Counter(server.asked).values()) == {1} and account.total().statuses["rejected"] == 6
    assert "HTTP 400" in replies[0].reason


@pytest.mark.parametrize(("status", "check"), [(401, "API key"), (403, "API key"), (404, "name")])
def test_what_no_call_can_mend_stops_at_once(tmp_path, status, check):
    with FaultyServer() as server:
        with pytest.raises(BadInput, match=f"{MODEL} with HTTP {status}; check .*{check}") as error:
            ask(server, tmp_path / "r.jsonl", [call(f"{status} {i}") for i in range(1000)])
        assert len(server.asked) <= 4  # those that were in flight
    assert KEY not in str(error.value)


def test_a_server_that_dies_and_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "PATIENCE", 3)
    calls = [call(f"ok {i}") for i in range(20)]
    path = tmp_path / "r.jsonl"
    with FaultyServer() as server:
        server.die_after = 12
        with pytest.raises(WorkFailed, match=r"3 calls .* in a row failed.* 12 answered calls are stored"):
            ask(server, path, calls, max_retries=1, max_connections=1)
        # one connection: 12 answers, then 3 failed calls of two tries each
        assert len(server.asked) == 18
        server.stop()
        with pytest.raises(WorkFailed, match="12 answered calls"):
            ask(server, path, calls, max_retries=0, max_connections=1)
        server.start()
        server.die_after = None
        replies, account = ask(server, path, calls)
        assert [reply.text for reply in replies] == [f"answer to ok {i}" for i in range(20)]
        assert max(server.answered.values()) == 1 and len(server.answered) == 20
    total = account.total()
    assert (total.calls, total.statuses["answered"], total.from_record) == (20 + 2 * 3, 20, 12)


def test_connections_are_bounded_and_calls_go_out_in_order(tmp_path):
    with FaultyServer(delay=0.01) as server:
        ask(server, tmp_path / "r.jsonl", [call(f"ok {i}") for i in range(24)], max_connections=3)
        assert server.peak == 3
        for place, question in enumerate(server.asked):
            assert abs(int(question.split()[1]) - place) < 3
    with FaultyServer() as server:
        ask(server, tmp_path / "s.jsonl", [call(f"ok {i}") for i in range(9)], max_connections=1)
        assert server.asked == [f"ok {i}" for i in range(9)]


def test_a_later_chat_may_use_more_connections(tmp_path):
    with FaultyServer(delay=0.05) as server:
        ask(server, tmp_path / "r.jsonl", [call("ok 1")], max_connections=1)
        ask(server, tmp_path / "r.jsonl", [call(f"ok {i}") for i in range(8)], max_connections=8)
        assert server.peak > 4


def test_a_budget_of_calls_is_exact_and_goes_on(tmp_path):
    calls = [call(f"ok {i}") for i in range(10)]
    path = tmp_path / "r.jsonl"
    with FaultyServer(delay=0.005) as server:
        with pytest.raises(BudgetReached, match=r"calls=7 is reached.*goes on with a larger calls="):
            ask(server, path, calls, budget=Budget(calls=7))
        assert len(server.asked) == 7 and len(server.answered) == 7
        replies, account = ask(server, path, calls, budget=Budget(calls=10))
        assert len(server.asked) == 10 and all(reply.status == "answered" for reply in replies)
        assert account.total().calls == 10
        ask(server, path, calls, budget=Budget(calls=0))  # the record has all: nothing is asked


def test_a_budget_of_tokens_stops_all_connections_and_what_was_in_flight_is_stored(tmp_path):
    path = tmp_path / "r.jsonl"
    with FaultyServer(delay=0.01) as server:
        with pytest.raises(BudgetReached, match="tokens=26 is reached"):
            ask(server, path, [call(f"ok {i}") for i in range(50)], budget=Budget(tokens=26), max_connections=3)
        assert 2 <= len(server.asked) <= 2 + 3  # 13 tokens each; those in flight are finished
        with Record(path) as record:
            assert len(record) == len(server.asked)


def test_a_budget_that_cannot_be_kept_stops_too(tmp_path):
    with FaultyServer(delay=0.01) as server:
        with pytest.raises(BadInput, match="tells no token counts"):
            ask(server, tmp_path / "r.jsonl", [call(f"untold {i}") for i in range(50)], budget=Budget(tokens=1000))
        assert 1 <= len(server.asked) <= 1 + 4
        with Record(tmp_path / "r.jsonl") as record:
            assert len(record) == len(server.asked)


def test_the_caller_sees_what_is_done_while_it_is_done(tmp_path, monkeypatch):
    """A sign of life comes while calls are out, and each count of what is there."""
    seen = []
    update = client.Bar.update
    monkeypatch.setattr(
        client.Bar, "update", lambda bar, done, **beside: (seen.append((done, beside)), update(bar, done, **beside))
    )
    with FaultyServer(delay=0.25) as server:
        ask(
            server, tmp_path / "r.jsonl", [call("400 q"), call("503 q"), call("ok q")], max_connections=1, max_retries=0
        )
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) >= 2
    assert seen[-1] == (3, {"failed": 1})


def test_a_failed_call_is_sent_again_exactly_so_often(tmp_path):
    for retries in (0, 1, 3):
        with FaultyServer() as server:
            replies, account = ask(server, tmp_path / f"{retries}.jsonl", [call("500 q")], max_retries=retries)
            assert (len(server.asked), replies[0].status, account.total().retries) == (1 + retries, "failed", retries)


class Verdict(BaseModel):
    better: int


def test_structured_answers_are_repaired_once(tmp_path):
    calls = [
        call('say {"better": 1}', schema=Verdict),
        call('say none then {"better": 2}', schema=Verdict),
        call("say none then none again", schema=Verdict),
        call("schema q", schema=Verdict),
    ]
    path = tmp_path / "r.jsonl"
    with FaultyServer() as server:
        replies, account = ask(server, path, calls, max_connections=1)
        assert [reply.value for reply in replies[:3]] == [Verdict(better=1), Verdict(better=2), None]
        assert [reply.status for reply in replies] == ["answered", "answered", "invalid", "invalid"]
        formats = [("response_format" in body) for body in server.bodies]
        # 1 + 2 + 2 calls with the schema; then a refusal of it, after which it is never sent again
        assert formats == [True] * 6 + [False] * 2
        sent = server.bodies[0]["response_format"]["json_schema"]["schema"]
        assert sent["properties"]["better"]["type"] == "integer" and sent["required"] == ["better"]
        repair = server.bodies[2]["messages"]
        assert repair[1] == {"role": "assistant", "content": "none"} and "no whole JSON object" in repair[2]["content"]
        assert (account.total(phase="judge").calls, account.total().retries) == (
            7,
            1,
        )  # the refused format was sent again
        parts = {part["phase"]: part["statuses"] for part in account.rows()}
        assert parts == {"judge": {"answered": 1, "invalid": 3}, "judge/repair": {"answered": 1, "invalid": 2}}
        count = len(server.asked)
        again, _ = ask(server, path, calls)
        assert [(r.status, r.value) for r in again] == [(r.status, r.value) for r in replies]
        assert len(server.asked) == count


def test_a_stop_between_an_answer_and_its_repair_repeats_neither(tmp_path):
    calls = [call('say none then {"better": 2}', schema=Verdict)]
    path = tmp_path / "r.jsonl"
    with FaultyServer() as server:
        with pytest.raises(BudgetReached):
            ask(server, path, calls, budget=Budget(calls=1))
        replies, account = ask(server, path, calls, budget=Budget(calls=2))
        assert replies[0].value == Verdict(better=2) and len(server.asked) == 2
    assert [(row["phase"], row["calls"], row["from_record"]) for row in account.rows()] == [
        ("judge", 1, 1),
        ("judge/repair", 1, 0),
    ]


@pytest.mark.usefixtures("as_in_a_terminal")
def test_an_interrupt_stores_what_is_answered(tmp_path):
    def interrupt(server: FaultyServer) -> None:
        while len(server.answered) < 10:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    with FaultyServer(delay=0.01) as server, Record(tmp_path / "r.jsonl") as record:
        chat = asking(server, record, max_connections=2)
        threading.Thread(target=interrupt, args=(server,), daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            chat.ask([call(f"ok {i}") for i in range(2000)])
        stored = len(record)
        assert 8 <= stored < 1000
        time.sleep(0.05)
        assert len(record) == stored  # nothing goes on in the background
        chat.close()


@pytest.mark.slow
def test_a_hang_is_given_up_after_the_timeout(tmp_path):
    with FaultyServer() as server:
        started = time.monotonic()
        replies, account = ask(
            server, tmp_path / "r.jsonl", [call("hang*1 q"), call("hang q")], timeout=1, max_retries=1
        )
        assert time.monotonic() - started < 8
    assert [reply.status for reply in replies] == ["answered", "failed"] and account.total().retries == 2
    assert "Timeout" in replies[1].reason


@pytest.mark.slow
def test_a_kill_loses_calls_in_flight_only(tmp_path):
    path = tmp_path / "r.jsonl"
    script = (
        "import sys; sys.path.insert(0, sys.argv[3]); from pathlib import Path; import test_faulty_server as t\n"
        "class Far: url = sys.argv[1]\n"
        "t.ask(Far, Path(sys.argv[2]), [t.call(f'ok {i}') for i in range(200)])"
    )
    with FaultyServer(delay=0.02) as server:
        argv = [sys.executable, "-c", script, server.url, str(path), str(Path(__file__).parent)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        for kills in (1, 2):
            child = subprocess.Popen(argv, env=environment)
            while len(server.answered) < 30 * kills and child.poll() is None:
                time.sleep(0.005)
            child.kill()
            child.wait()
        replies, account = ask(server, path, [call(f"ok {i}") for i in range(200)])
        assert [reply.text for reply in replies] == [f"answer to ok {i}" for i in range(200)]
        # Each kill loses at most its four calls in flight.
        assert sum(server.answered.values()) <= 200 + 2 * 4
        assert account.total().calls == 200
