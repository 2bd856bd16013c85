"""Chat without a network: keys, batches, replay, names, loops."""

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from pydantic import BaseModel

from equipoise.chat import client
from equipoise.chat.account import Account
from equipoise.chat.calls import Call
from equipoise.chat.client import Chat, resolve
from equipoise.chat.record import Record
from equipoise.core.budget import Budget
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.records import Message

pytest.importorskip("inspect_ai")


class Verdict(BaseModel):
    better: int


def call(text: str = "q", **options: object) -> Call:
    return Call((Message("user", text),), **{"phase": "judge", **options})


class Mock:
    """A model in this process that says what it was asked, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.settings: list[tuple[int, float]] = []
        self.threads: set[int] = set()
        self.peak = self.now = 0

    async def __call__(self, messages, tools, choice, config):
        from inspect_ai.model import ModelOutput, ModelUsage

        self.asked.append(messages[-1].text)
        self.settings.append((config.max_tokens, config.temperature))
        self.threads.add(threading.get_ident())
        self.now += 1
        self.peak = max(self.peak, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        output = ModelOutput.from_content("mockllm", f"said {messages[-1].text}")
        output.usage = ModelUsage(input_tokens=5, output_tokens=2, total_tokens=7)
        return output


def chatting(record: Record, mock: Mock | None = None, account: Account | None = None, **options: object) -> Chat:
    options = {"model_args": {"custom_outputs": mock}, **options} if mock else options
    return Chat("mockllm/model", record=record, account=account or Account(), **options)


def test_replies_come_in_order_and_equal_calls_are_asked_once(tmp_path):
    mock, account = Mock(), Account()
    calls = [call("a"), call("b", max_tokens=7), call("a"), call("a", sample=1, temperature=0.5), call("b")]
    with Record(tmp_path / "r.jsonl") as record, chatting(record, mock, account) as chat:
        replies = chat.ask(calls)
        assert [reply.text for reply in replies] == ["said a", "said b", "said a", "said a", "said b"]
        assert mock.asked == ["a", "b", "a", "b"]
        assert mock.settings == [(1024, 0.0), (7, 0.0), (1024, 0.5), (1024, 0.0)]
        assert chat.ask(calls) == replies and len(mock.asked) == 4
        assert chat.ask([]) == []
    assert (account.total().calls, account.total().from_record) == (4, 1 + 5)
    with Record(tmp_path / "r.jsonl") as record, chatting(record, mock) as chat:
        assert chat.ask(calls) == replies and len(mock.asked) == 4


def test_a_key_is_all_that_an_answer_depends_on_and_nothing_else(tmp_path):
    def key(asked: Call, model: str = "openai/a", **options: object) -> str:
        with Record(tmp_path / "r.jsonl") as record:
            return Chat(model, record=record, account=Account(), **options).key(asked)

    base = Call((Message("user", "q"),), phase="judge")
    same = [
        key(base),
        key(Call((Message("user", "q"),), phase="other")),
        key(base, model_args={"api_key": "sk-1234567890", "http_client": object(), "timeout": 3}),
        key(base, max_connections=3, max_retries=1, timeout=5, retry_wait=1.0),
        key(Call((Message("user", "q"),), phase="judge", temperature=0)),
    ]
    assert len(set(same)) == 1
    assert key(base, base_url="http://one:1/v1") == key(base, base_url="https://me:secret@two/v1/?token=abc")
    different = [
        same[0],
        key(base, model="openai/b"),
        key(base, model_args={"dtype": "float16"}),
        key(base, base_url="http://one:1/v1"),
        key(Call((Message("system", "q"),), phase="judge")),
        key(Call((Message("user", "q"), Message("user", "q")), phase="judge")),
        key(Call((Message("user", "qq"),), phase="judge")),
        key(Call((Message("user", "q"),), phase="judge", schema=Verdict)),
        key(Call((Message("user", "q"),), phase="judge", max_tokens=5)),
        key(Call((Message("user", "q"),), phase="judge", temperature=0.5)),
        key(Call((Message("user", "q"),), phase="judge", sample=1)),
    ]
    assert len(set(different)) == len(different)
    # A change of the form makes every record worthless: it must be a decision, with KEY_VERSION.
    assert same[0] == "d8acaafe1d2f12dbe7179497d4f7149d836de025bbb3f27127fc7aba22297a24"


def test_a_replay_needs_neither_provider_nor_inspect(tmp_path):
    path = tmp_path / "r.jsonl"
    with Record(path) as record, chatting(record, Mock()) as chat:
        chat.ask([call("a"), call("b")])
    script = f"""
import sys
sys.modules["inspect_ai"] = None
from equipoise.chat.account import Account
from equipoise.chat.calls import Call
from equipoise.chat.client import Chat
from equipoise.chat.record import Record
from equipoise.core.errors import BadInput, MissingExtra
from equipoise.data.records import Message
ask = lambda text: Call((Message("user", text),), phase="judge")
with Record({str(path)!r}) as record:
    account = Account()
    with Chat("mockllm/model", record=record, account=account, offline=True) as chat:
        assert [reply.text for reply in chat.ask([ask("b"), ask("a")])] == ["said b", "said a"]
        assert account.total().calls == account.total().from_record == 2
        try:
            chat.ask([ask("b"), ask("c")])
        except BadInput as error:
            assert "no answer of mockllm/model to 1 of 2 calls" in str(error) and "phase 'judge'" in str(error), error
            assert "without offline (--replay) to record them" in str(error), error
        else:
            sys.exit("answered offline")
    try:
        Chat("mockllm/model", record=record, account=account).ask([ask("c")])
    except MissingExtra as error:
        assert "pip install 'equipoise[chat]'" in str(error)
    else:
        sys.exit("answered without inspect")
assert "torch" not in sys.modules and "pydantic" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_batch_of_many_has_few_calls_at_once(tmp_path, monkeypatch):
    mock = Mock()
    tasks = []
    generate = Chat._generate

    async def counted(self, *arguments):
        tasks.append(len(asyncio.all_tasks()))
        return await generate(self, *arguments)

    monkeypatch.setattr(Chat, "_generate", counted)
    with Record(tmp_path / "r.jsonl") as record, chatting(record, mock, max_connections=5) as chat:
        chat.ask([call(str(i)) for i in range(50)])
    assert mock.peak <= 5 and max(tasks) < 20
    assert mock.asked == [str(i) for i in range(50)]


def test_it_works_inside_a_running_loop_and_keeps_one_loop(tmp_path):
    mock = Mock()

    async def notebook() -> str:
        with Record(tmp_path / "r.jsonl") as record, chatting(record, mock) as chat:
            return chat.ask([call("a")])[0].text + chat.ask([call("b")])[0].text

    assert asyncio.run(notebook()) == "said asaid b"
    with Record(tmp_path / "s.jsonl") as record, chatting(record, mock) as chat:
        chat.ask([call("c")])
    assert len(mock.threads) == 1 and threading.get_ident() not in mock.threads


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("openai/gpt-4o") == ("openai/gpt-4o", "openai/gpt-4o")
    assert resolve("smollm2") == resolve("equipoise/smollm2") == ("equipoise/smollm2", "equipoise/smollm2")
    for place in ("one/model", "two/model"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.json").write_text("{}")
        (tmp_path / place / "model.safetensors").write_bytes(b"weights")
    name, address = resolve("one/model")
    assert name.startswith("equipoise/model@") and str(tmp_path) not in name
    assert address == f"equipoise/{tmp_path}/one/model"
    assert resolve("two/model")[0] == resolve(f"equipoise/{tmp_path}/one/model")[0] == name
    assert resolve(name) == (name, name)
    (tmp_path / "two/model/model.safetensors").write_bytes(b"taught")
    assert resolve("two/model")[0] != name
    with pytest.raises(BadInput, match=r"No model 'smollm' is known here. Did you mean 'smollm2'\?.*openai/gpt-4o"):
        resolve("smollm")


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("nobody/model", "nobody/model cannot be used: Model API nobody .* not recognized"),
        ("openai-api/local/m", "LOCAL_API_KEY"),
        ("smollm2@000000000000", "No model"),
    ],
)
def test_models_that_cannot_be_asked(tmp_path, model, problem):
    with Record(tmp_path / "r.jsonl") as record, pytest.raises(BadInput, match=problem):
        Chat(model, record=record, account=Account()).ask([call()])


def test_requests_that_are_wrong_from_the_start(tmp_path):
    with Record(tmp_path / "r.jsonl") as record:
        with pytest.raises(BadInput, match="needs the price of openai/a: Account"):
            Chat("openai/a", record=record, account=Account(), budget=Budget(usd=1))
        with pytest.raises(BadInput, match="max_connections is 0"):
            chatting(record, max_connections=0)
        chatting(record, budget=Budget(usd=1))  # nobody charges for what runs here
        with (
            pytest.raises(BadInput, match=r"message of 'sytem'\. Did you mean 'system'"),
            chatting(record, Mock()) as chat,
        ):
            chat.ask([Call((Message("sytem", "x"),), phase="judge")])


def test_two_chats_share_a_record_and_an_account(tmp_path):
    mock, account = Mock(), Account({"openai/a": (1, 1, 1)})
    with Record(tmp_path / "r.jsonl") as record:
        with (
            chatting(record, mock, account) as judge,
            chatting(record, mock, account, model_args={"custom_outputs": mock, "mood": 1}) as teacher,
        ):
            judge.ask([call("a")])
            teacher.ask([call("a", phase="teach")])
        assert len(mock.asked) == 2
    assert Counter({row["phase"]: row["calls"] for row in account.rows()}) == {"judge": 1, "teach": 1}


def test_the_provider_in_a_shipped_record_is_never_asked(tmp_path):
    import gzip

    path = tmp_path / "r.jsonl"
    with Record(path) as record, chatting(record, Mock()) as chat:
        chat.ask([call("a")])
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    with Record(tmp_path / "r.jsonl.gz") as record, chatting(record) as chat:
        assert chat.ask([call("a")])[0].text == "said a"
        with pytest.raises(BadInput, match=r"with a \.jsonl file as the record"):
            chat.ask([call("b")])


def test_waits_double_from_the_first_to_a_minute_and_the_provider_s_own_go_first(tmp_path):
    from types import SimpleNamespace

    def waited(attempt: int, asked: float | None) -> float:
        error = ConnectionError("gone")
        error.retry_after = asked
        return wait(SimpleNamespace(attempt_number=attempt, outcome=SimpleNamespace(exception=lambda: error)))

    with Record(tmp_path / "r.jsonl") as record, chatting(record, Mock(), retry_wait=3.0) as chat:
        model = chat._open()
        vars(model.api)["should_retry"] = lambda error: error
        client._govern(model, 3.0, local=False)
        wait = model.api.retry_wait()
        for attempt, seconds in ((1, 3), (2, 6), (3, 12), (5, 48), (6, 60), (40, 60)):
            assert seconds <= waited(attempt, None) <= 1.25 * seconds
        for asked, seconds in ((0.5, 0.5), (90, 90), (7200, 600)):
            assert seconds <= waited(4, asked) <= 1.25 * seconds


def test_chats_leave_one_thread_behind_however_many_there_were(tmp_path):
    """Inspect's limits belong to the loop in which they were first used, so the process keeps one, on a daemon thread."""
    with Record(tmp_path / "r.jsonl") as record:
        with chatting(record, Mock()) as chat:
            chat.ask([call("first")])
        before = set(threading.enumerate())
        for number in range(5):
            with chatting(record, Mock()) as chat:
                chat.ask([call(f"{number}-{other}") for other in range(8)])
    assert set(threading.enumerate()) == before
    loops = [thread for thread in before if thread.name == "equipoise-chat"]
    assert len(loops) == 1
    assert loops[0].daemon


def test_a_record_that_cannot_be_written_stops_the_ask(tmp_path):
    from equipoise.core.files import Files

    class Full(Files):
        def append(self, path: Path, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    mock = Mock()
    with (
        Record(tmp_path / "r.jsonl", files=Full()) as record,
        chatting(record, mock, max_connections=2) as chat,
        pytest.raises(WorkFailed, match="No space left"),
    ):
        chat.ask([call(str(i)) for i in range(50)])
    assert len(mock.asked) <= 2
