"""The parts of Chat one by one, before a model that is a list of outputs and errors: every field of what is stored."""

import asyncio
import hashlib
import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from pydantic import BaseModel

from equipoise.chat import client
from equipoise.chat.account import Account
from equipoise.chat.calls import Call, Reply, ToldToken
from equipoise.chat.client import Chat, inspect_messages, resolve
from equipoise.chat.record import Entry, Record, Usage
from equipoise.core.errors import BadInput, MissingExtra, WorkFailed
from equipoise.data.records import Message

pytest.importorskip("inspect_ai")
from inspect_ai.model import ModelOutput, ModelUsage


class Verdict(BaseModel):
    better: int


def call(text="q", **options):
    return Call((Message("user", text),), **{"phase": "judge", **options})


def said(text, *, stop="stop", usage=(5, 2), seconds=None, **more):
    output = ModelOutput.from_content("m", text, stop_reason=stop, **more)
    output.usage = None if usage is None else ModelUsage(input_tokens=usage[0], output_tokens=usage[1])
    output.time = seconds
    return output


def refused(status, text="no"):
    error = RuntimeError(text)
    error.status_code = status
    return error


class Listed:
    """A model that gives these outcomes, one a call."""

    def __init__(self, *outcomes, key=None):
        self.outcomes, self.configs = list(outcomes), []
        self.api = SimpleNamespace(api_key=key, max_connections=lambda: 3, aclose=self.aclose)
        self.closed = 0

    async def generate(self, messages, config):
        self.configs.append((messages, config))
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def aclose(self):
        self.closed += 1


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("equipoise.core.files._sync", lambda path: None)


@pytest.fixture
def asked(tmp_path):
    """asked(call, *outcomes): (reply or error, the stored entries without keys, the model)."""
    number = iter(range(100))

    def ask(question, *outcomes, name="openai/m", key=None, **options):
        model = Listed(*outcomes, key=key)
        with Record(tmp_path / f"{next(number)}.jsonl") as record:
            with Chat(name, record=record, account=Account(), **options) as chat:
                chat._model = model
                try:
                    outcome = chat.ask([question])[0]
                except (BadInput, WorkFailed, MissingExtra) as error:
                    outcome = error
            assert not model.outcomes
            assert all(entry.key == chat.key(question) or entry.phase.endswith("/repair") for entry in record.entries)
            return outcome, [replace(entry, key="") for entry in record.entries], model

    return ask


def stored(status, text="", usage=(5, 2), **values):
    entry = Entry("", "openai/m", "judge", status, text, None if usage is None else Usage(usage[0], 0, usage[1], 0))
    return replace(entry, **values)


def test_an_answer_is_stored_with_all_that_is_known(asked):
    reply, entries, model = asked(call(max_tokens=7, temperature=0.5), said("yes", seconds=1.23456))
    assert reply == Reply("yes", "answered")
    assert entries == [stored("answered", "yes", stop="stop", seconds=1.2346)]
    ((messages, config),) = model.configs
    assert [(message.role, message.content) for message in messages] == [("user", "q")]
    told = {name: value for name, value in config.model_dump().items() if value is not None}
    assert told == {
        "max_retries": 4, "attempt_timeout": 600, "max_connections": 100_000, "max_tokens": 7, "temperature": 0.5,
    }  # fmt: skip
    assert model.closed == 1


def test_settings_reach_the_model(asked):
    _, _, model = asked(call(), said("yes"), max_retries=9, timeout=11)
    ((_, config),) = model.configs
    assert (config.max_retries, config.attempt_timeout, config.seed, config.response_schema) == (9, 11, None, None)
    question = call(schema=Verdict)
    _, _, model = asked(question, said('{"better": 1}'), name="equipoise/smollm2")
    ((_, config),) = model.configs
    assert config.response_schema.name == "Verdict" and 0 < config.seed < 2**28


def test_the_seed_of_a_model_in_this_process_is_the_beginning_of_the_key(asked, monkeypatch):
    monkeypatch.setattr(Chat, "key", lambda self, asked: "00000ff" + "9" * 57)
    _, _, model = asked(call(), said("yes"), name="equipoise/smollm2")
    assert model.configs[0][1].seed == 255


def test_likeliest_tokens_come_with_values_too():
    tokens = (ToldToken("1", -0.5, (("1", -0.5), ("2", -1.5))),)
    call = Call((Message("user", "?"),), "judge", schema=Verdict, likeliest=2)
    for text, status in (('{"better": 1}', "answered"), ("no", "invalid")):
        reply, again = client._reading(call, stored(status, text, tokens=tokens))
        assert (reply.status, reply.tokens) == (status, tokens) and (again is None) == (status == "answered")


def test_an_empty_answer_is_asked_for_once_more_and_all_is_paid(asked):
    reply, entries, _ = asked(call(), said(" \n", seconds=0.25), said("yes", usage=(5, 3), seconds=0.5))
    assert reply == Reply("yes", "answered")
    assert entries == [stored("answered", "yes", (10, 5), stop="stop", seconds=0.75, retries=1)]
    reply, entries, _ = asked(call(), said("", usage=None), said("", seconds=0.5))
    assert reply == Reply("", "answered", reason="an empty answer, twice")
    assert entries == [stored("answered", reason="an empty answer, twice", seconds=0.5, retries=1)]
    nothing = ModelOutput(model="m", choices=[])
    reply, entries, _ = asked(call(), nothing, nothing)
    assert entries == [stored("answered", usage=None, reason="an empty answer, twice", retries=1)]


@pytest.mark.parametrize(
    ("output", "status", "text", "reason"),
    [
        (said("half", stop="max_tokens"), "cut", "half", ""),
        (said("half", stop="model_length"), "cut", "half", ""),
        (said("", stop="max_tokens"), "cut", "", ""),
        (said("", stop="max_tokens", usage=(5, 0)), "cut", "", ""),
        (said("", stop="max_tokens", usage=None), "cut", "", ""),
        (said("too much", stop="model_length", usage=(5, 0)), "rejected", "", "too much"),
        (said("", stop="model_length", usage=None), "rejected", "", "too long for the model"),
        (said("I will not", stop="content_filter"), "refused", "", "I will not"),
        (said("", stop="content_filter"), "refused", "", "the provider's filter"),
        (said("text", error="moderation"), "failed", "", "moderation"),
        (said("yes", stop="unknown"), "answered", "yes", ""),
    ],
)
def test_what_an_output_means(asked, output, status, text, reason):
    reply, (entry,), _ = asked(call(), output)
    assert reply == Reply(text, status, reason=reason)
    assert (entry.status, entry.text, entry.reason) == (status, text, reason)
    assert entry.stop == ("" if output.error else output.stop_reason)


def test_usage_counts_what_was_cached_as_read():
    told = ModelUsage(
        input_tokens=10, output_tokens=4, input_tokens_cache_read=6, input_tokens_cache_write=3, reasoning_tokens=2
    )
    assert client._usage(SimpleNamespace(usage=told)) == Usage(prompt=19, cached=6, generated=4, reasoning=2)
    assert client._usage(SimpleNamespace(usage=ModelUsage(input_tokens=1, output_tokens=2))) == Usage(1, 0, 2, 0)
    assert client._usage(SimpleNamespace(usage=None)) is None


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (refused(400, "bad request"), "rejected", "HTTP 400: bad request"),
        (refused(413), "rejected", "HTTP 413: no"),
        (refused(422), "rejected", "HTTP 422: no"),
        (refused(402), "failed", "HTTP 402: no"),
        (refused(500), "failed", "HTTP 500: no"),
        (ConnectionError("gone"), "failed", "ConnectionError: gone"),
        (BadInput("too long"), "rejected", "BadInput: too long"),
    ],
)
def test_errors_that_last_and_errors_that_pass(asked, error, status, reason):
    reply, entries, _ = asked(call(), error)
    assert reply == Reply("", status, reason=reason)
    assert entries == [stored(status, usage=None, reason=reason)]


@pytest.mark.parametrize(
    ("status", "check"),
    [(401, "the API key"), (403, "the API key and its rights"), (404, "the model's name and the address")],
)
def test_errors_that_no_call_can_mend(asked, status, check):
    error, entries, _ = asked(call(), refused(status, "not for sk-12345678"))
    assert isinstance(error, BadInput) and entries == []
    assert str(error) == f"The provider refuses openai/m with HTTP {status}; check {check} (not for [key])."
    missing, entries, _ = asked(call(), MissingExtra("install it"))
    assert str(missing) == "install it" and entries == []


def test_a_403_after_an_answer_is_of_its_call_alone(tmp_path):
    model = Listed(said("yes"), refused(403))
    with Record(tmp_path / "r.jsonl") as record, Chat("openai/m", record=record, account=Account()) as chat:
        chat._model = model
        replies = [chat.ask([call(text)])[0] for text in "ab"]
    assert replies == [Reply("yes", "answered"), Reply("", "failed", reason="HTTP 403: no")]


@pytest.mark.parametrize("status", [400, 422])
def test_a_provider_without_schemas_is_asked_without(asked, status):
    question = call(schema=Verdict)
    reply, entries, model = asked(question, refused(status, "unknown field response_format"), said('{"better": 2}'))
    assert reply == Reply('{"better": 2}', "answered", value=Verdict(better=2))
    assert entries == [stored("answered", '{"better": 2}', stop="stop", retries=1)]
    assert [config.response_schema is None for _, config in model.configs] == [False, True]
    for other, text in ((status, "another reason"), (500, "response_format")):
        reply, (entry,), _ = asked(question, refused(other, text))
        assert reply.status == entry.status == ("failed" if other == 500 else "rejected") and entry.retries == 0


def test_a_cut_answer_that_fits_its_schema_is_an_answer(asked):
    question = call(schema=Verdict)
    reply, (entry,), _ = asked(question, said('{"better": 2}', stop="max_tokens"))
    assert (reply.status, reply.value, entry.status, entry.stop) == (
        "answered",
        Verdict(better=2),
        "answered",
        "max_tokens",
    )
    reply, entries, model = asked(question, said('{"better"', stop="max_tokens"), said("none"))
    assert [entry.status for entry in entries] == ["invalid", "invalid"]
    assert [entry.reason for entry in entries] == ["there is no whole JSON object in it"] * 2
    assert [entry.phase for entry in entries] == ["judge", "judge/repair"]
    assert reply == Reply(
        "none", "invalid", reason="no valid answer, not repaired either: there is no whole JSON object in it"
    )
    assert [message.role for message in model.configs[1][0]] == ["user", "assistant", "user"]


def test_a_repair_that_is_refused_leaves_the_call_invalid(asked):
    question = call(schema=Verdict)
    reply, entries, _ = asked(question, said("none"), said("never", stop="content_filter"))
    assert reply == Reply("", "invalid", reason="the repair was refused: never")
    assert [entry.status for entry in entries] == ["invalid", "refused"]
    reply, _, _ = asked(question, said("none"), refused(400))
    assert reply == Reply("", "invalid", reason="the repair was rejected: HTTP 400: no")
    reply, _, _ = asked(question, said("none"), refused(500))
    assert reply == Reply("", "failed", reason="HTTP 500: no")


def test_secrets_in_answers_reasons_and_stops(asked):
    reply, (entry,), _ = asked(call(), said("it is s3cret-s3cret"), key="s3cret-s3cret")
    assert reply.text == entry.text == "it is [key]"
    reply, (entry,), _ = asked(call(), ConnectionError("with s3cret-s3cret"), key="s3cret-s3cret")
    assert entry.reason == reply.reason == "ConnectionError: with [key]"
    reply, _, _ = asked(call(), said("the password is pa55w0rd-1"), base_url="https://me:pa55w0rd-1@h/v1")
    assert reply.text == "the password is [key]"


def test_twenty_failures_in_a_row_are_the_end(tmp_path):
    calls = [call(f"{number}") for number in range(30)]
    with Record(tmp_path / "r.jsonl") as record:
        chat = Chat("openai/m", record=record, account=Account(), max_connections=1)
        chat._model = Listed(*[refused(500)] * 19, said("yes"), *[refused(503, "down")] * 10)
        assert [reply.status for reply in chat.ask(calls)] == ["failed"] * 19 + ["answered"] + ["failed"] * 10
        chat._model = Listed(*[refused(503, "down")] * 20)  # each time it is asked the count begins anew
        with pytest.raises(WorkFailed) as caught:
            chat.ask(calls)
    assert str(caught.value) == (
        "20 calls of openai/m in a row failed, the last with: HTTP 503: down. 1 answered calls are stored; the same command "
        "goes on."
    )


def test_as_many_at_once_as_the_provider_takes(tmp_path):
    for most, expected in ((None, 3), (2, 2), (9, 5)):
        now = peak = 0

        async def generate(messages, config):
            nonlocal now, peak
            now += 1
            peak = max(peak, now)
            await asyncio.sleep(0.002)
            now -= 1
            return said("yes")

        with (
            Record(tmp_path / f"{most}.jsonl") as record,
            Chat("openai/m", record=record, account=Account(), max_connections=most) as chat,
        ):
            chat._model = Listed()
            chat._model.generate = generate
            chat.ask([call(f"{number}") for number in range(5)])
        assert peak == expected


def test_of_several_reasons_to_stop_the_first_is_said(tmp_path):
    class Refusing(Listed):
        async def generate(self, messages, config):
            if messages[-1].text == "late":
                await asyncio.sleep(0.05)
                raise refused(404)
            raise refused(401)

    with Record(tmp_path / "r.jsonl") as record, Chat("openai/m", record=record, account=Account()) as chat:
        chat._model = Refusing()
        with pytest.raises(BadInput, match="HTTP 401"):
            chat.ask([call("late"), call("early")])


def test_where_an_answer_cannot_be_written_no_further_call_goes_out(tmp_path, monkeypatch):
    asked, add = [], Record.add

    async def generate(messages, config):
        asked.append(messages)
        await asyncio.sleep(0.01 * len(asked))
        return said("yes")

    def full(self, entry, call, **more):
        if call.messages[0].content == "0":
            raise WorkFailed("no space left")
        add(self, entry, call, **more)

    with Record(tmp_path / "r.jsonl") as record, Chat("openai/m", record=record, account=Account()) as chat:
        chat._model = Listed()
        chat._model.generate = generate
        monkeypatch.setattr(Record, "add", full)
        with pytest.raises(WorkFailed, match="no space left"):
            chat.ask([call(f"{number}") for number in range(9)])
    assert len(asked) == 3


def test_the_cause_beneath_wrappers():
    deep = refused(429)
    coded = RuntimeError("coded")
    coded.status_code, coded.code = "429", 418
    wrapper = type("ModelGenerateError", (Exception,), {})("wrapped")
    bare = type("ModelGenerateError", (Exception,), {})("bare")
    wrapper.__cause__ = deep
    retried, empty = RuntimeError("retried"), RuntimeError("empty")
    retried.last_attempt = SimpleNamespace(exception=lambda: wrapper)
    empty.last_attempt = SimpleNamespace(exception=lambda: None)
    other = ValueError("other")
    other.__cause__ = deep
    for error, cause, status in (
        (deep, deep, 429), (coded, coded, 418), (wrapper, deep, 429), (bare, bare, None), (retried, deep, 429),
        (empty, empty, None), (other, other, None),
    ):  # fmt: skip
        assert client._cause(error) == (cause, status)
    assert client._reason(retried) == "HTTP 429: no" and client._reason(other) == "ValueError: other"


def test_retries_are_ours_alone_and_counted():
    class Own:
        client = SimpleNamespace(max_retries=5)

        def should_retry(self, error):
            return isinstance(error, ConnectionError)

    api, before = Own(), []

    async def before_retry(error):
        before.append(error)

    model = SimpleNamespace(api=api, before_retry=before_retry)
    client._govern(model, 3.0, local=False)
    assert api.client.max_retries == 0
    unreadable = [json.JSONDecodeError("x", "y", 0), TypeError(), KeyError(), IndexError(), AttributeError()]
    assert all(api.should_retry(error) for error in [*unreadable, ConnectionError()])
    assert not any(api.should_retry(error) for error in (ValueError(), RuntimeError()))
    retried = []
    client._retried.set(retried)
    error = ConnectionError("gone")
    asyncio.run(model.before_retry(error))
    assert retried == before == [error]
    wait = api.retry_wait()
    for outcome in (None, SimpleNamespace(exception=lambda: None), SimpleNamespace(exception=lambda: error)):
        assert 3.0 <= wait(SimpleNamespace(attempt_number=1, outcome=outcome)) <= 3.75
    local = Own()
    local.client = None
    client._govern(SimpleNamespace(api=local, before_retry=before_retry), 3.0, local=True)
    assert not any(local.should_retry(error) for error in unreadable) and local.should_retry(ConnectionError())


def test_waits_double_up_to_a_minute_and_what_the_provider_names_goes_first(monkeypatch):
    monkeypatch.setattr(
        client.random, "Random", lambda: SimpleNamespace(uniform=lambda low, high: low + 100 * (high - low))
    )
    asked = SimpleNamespace(retry_after=None)
    api = SimpleNamespace(should_retry=lambda error: asked)
    client._govern(SimpleNamespace(api=api, before_retry=None), 3.0, local=False)
    wait, outcome = api.retry_wait(), SimpleNamespace(exception=lambda: ConnectionError())
    factor = 1.0 + 100 * 0.25
    for attempt, seconds in ((1, 3), (2, 6), (3, 12), (4, 24), (5, 48), (6, 60), (30, 60)):
        assert wait(SimpleNamespace(attempt_number=attempt, outcome=outcome)) == seconds * factor
    for told, seconds in ((0.5, 0.5), (90.0, 90), (600, 600), (601, 600), (0, 6), (None, 6)):
        asked.retry_after = told
        assert wait(SimpleNamespace(attempt_number=2, outcome=outcome)) == seconds * factor
        assert wait(SimpleNamespace(attempt_number=2, outcome=None)) == 6 * factor


def test_waits_are_stated():
    assert (client.PATIENCE, client.LONGEST_WAIT, client.LONGEST_ASKED, client.NO_LIMIT) == (20, 60.0, 600.0, 100_000)


@pytest.mark.parametrize("name", [*client.TRANSPORT, "api_key", "token", "default_headers"])
def test_what_only_changes_the_transport_is_no_part_of_a_key(name):
    assert client.identity("openai/m", {name: 1, "tools": object(), "dtype": "float16"}, None) == {
        "model": "openai/m", "model_args": {"dtype": "float16"}, "base_url": "",
    }  # fmt: skip


def test_an_address_is_its_path():
    paths = {"http://one/v1": "/v1", "https://me:pw@two:8/v1/": "/v1", "http://one": "", "http://one/a/b//?q=1": "/a/b"}
    for url, path in paths.items():
        assert client.identity("m/m", {"mood": (1, 2)}, url) == {
            "model": "m/m",
            "model_args": {"mood": [1, 2]},
            "base_url": path,
        }


def test_names_are_digests_of_all_that_answers_depend_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "small.gguf"
    file.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    name = f"equipoise/small.gguf@{digest[:12]}"
    for given in ("small.gguf", "~/small.gguf", "equipoise/small.gguf"):
        assert resolve(given) == (name, f"equipoise/{file}")
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(BadInput):
        resolve("model")
    contents = {
        "adapter_config.json": b"{}",
        "b.safetensors": b"B",
        "chat.jinja": b"C",
        "tokenizer.model": b"D",
        "merges.txt": b"E",
    }
    for part, content in contents.items():
        (folder / part).write_bytes(content)
    told = "\n".join(f"{part} {hashlib.sha256(contents[part]).hexdigest()}" for part in sorted(contents))
    expected = f"equipoise/model@{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    assert resolve("model") == (expected, f"equipoise/{folder}")
    (folder / "README.md").write_bytes(b"nothing depends on it")
    assert resolve("model")[0] == expected
    (folder / "merges.txt").write_bytes(b"other")
    assert resolve("model")[0] != expected
    with pytest.raises(BadInput) as caught:
        resolve("smollm3")
    assert str(caught.value) == (
        "No model 'smollm3' is known here. Did you mean 'smollm2'? A provider's model is named with the provider, such as "
        "openai/gpt-4o."
    )


def test_messages_as_inspect_has_them():
    turns = [Message("system", "a"), Message("user", "b"), Message("assistant", "c")]
    assert [(m.role, m.content) for m in inspect_messages(turns)] == [
        ("system", "a"),
        ("user", "b"),
        ("assistant", "c"),
    ]


def test_providers_that_cannot_be_made(monkeypatch):
    import inspect_ai.model

    raised, asked = [None], []

    def get_model(address, **options):
        asked.append((address, options))
        if raised[0] is not None:
            raise raised[0]
        return SimpleNamespace(api=SimpleNamespace(should_retry=lambda error: False), before_retry=None)

    monkeypatch.setattr(inspect_ai.model, "get_model", get_model)
    for error, kind, sentence in (
        (ValueError("[bold]ERROR: no\n such[/bold] thing."), BadInput, "openai/m cannot be used: no such thing."),
        (ValueError("ERROR: no key."), BadInput, "openai/m cannot be used: no key."),
        (ValueError("run pip install openai"), MissingExtra, "openai/m cannot be used: run pip install openai."),
        (ValueError("with s3cret-s3cret"), BadInput, "openai/m cannot be used: with [key]."),
        (BadInput("as it is"), BadInput, "as it is"),
    ):
        raised[0] = error
        with pytest.raises(kind) as caught:
            client._open("openai/m", None, {"api_key": "s3cret-s3cret"}, 7, 1.0)
        assert str(caught.value) == sentence
    address, options = asked[-1]
    assert (address, options.pop("config").max_connections) == ("openai/m", 7)
    assert options == {"base_url": None, "memoize": False, "api_key": "s3cret-s3cret"}
    raised[0] = None
    assert client._open("openai/m", "http://h/v1", {}, None, 1.0).api.should_retry(TypeError())
    assert not client._open("mockllm/m", None, {}, None, 1.0).api.should_retry(TypeError())
    assert not client._open("equipoise/m", None, {}, None, 1.0).api.should_retry(TypeError())


def test_what_offline_and_a_shipped_record_say(tmp_path):
    with Record(tmp_path / "r.jsonl") as record:
        chat = Chat("openai/m", record=record, account=Account(), offline=True)
        chat.open()
        assert chat._model is None
        with pytest.raises(BadInput) as caught:
            chat.ask([call("a", phase="first"), call("b"), call("a", phase="first")])
    assert str(caught.value) == (
        f"{tmp_path / 'r.jsonl'} has no answer of openai/m to 2 of 3 calls, the first in phase 'first'; run the same "
        "command without offline (--replay) to record them."
    )
    chat.close()
    assert client._loop(os.getpid()) is client._loop(os.getpid())


def test_titles_of_the_progress(tmp_path, monkeypatch):
    seen, progress = [], client.progress
    monkeypatch.setattr(
        client, "progress", lambda title, **told: (seen.append((title, told)), progress(title, **told))[1]
    )
    with Record(tmp_path / "r.jsonl") as record, Chat("openai/m", record=record, account=Account()) as chat:
        chat._model = Listed(said("a"), said("b"), said("c"))
        chat.ask([call("1"), call("2"), call("1")])
        chat.ask([call("1"), call("3")], title="Judging")
    assert seen == [("Asking openai/m", {"total": 2, "unit": "calls"}), ("Judging", {"total": 1, "unit": "calls"})]


def test_failures_are_counted_beside_the_bar_and_nothing_else_is(tmp_path, monkeypatch):
    seen, update = [], client.Bar.update
    monkeypatch.setattr(
        client.Bar, "update", lambda bar, done, **beside: (seen.append((done, beside)), update(bar, done, **beside))
    )

    class Slow(Listed):
        async def generate(self, messages, config):
            await asyncio.sleep(0.05)  # until the caller looks
            return await super().generate(messages, config)

    with Record(tmp_path / "r.jsonl") as record, Chat("openai/m", record=record, account=Account()) as chat:
        for outcomes, beside in (
            ([refused(500), refused(400), refused(500), said("a")], {"failed": 2}), ([said("b"), refused(400)], {}),
        ):  # fmt: skip
            seen.clear()
            chat._model = Slow(*outcomes)
            chat._max_connections = len(outcomes)
            chat.ask([call(f"{beside} {number}") for number in range(len(outcomes))])
            assert seen[-1] == (len(outcomes), beside)


def test_the_bar_counts_what_is_asked_and_not_what_was_stored(tmp_path, monkeypatch):
    seen, update, looks, wait = [], client.Bar.update, [], client.concurrent.futures.wait
    monkeypatch.setattr(client.Bar, "update", lambda bar, done: (seen.append(done), update(bar, done)))
    monkeypatch.setattr(
        client.concurrent.futures, "wait", lambda futures, timeout: (looks.append(timeout), wait(futures, timeout))
    )

    class Slow(Listed):
        async def generate(self, messages, config):
            await asyncio.sleep(0.3)
            return await super().generate(messages, config)

    with Record(tmp_path / "r.jsonl") as record, Chat("openai/m", record=record, account=Account()) as chat:
        chat._model = Listed(said("a"), said("b"))
        chat.ask([call("1"), call("2")])
        chat._model, chat._max_connections = Slow(*[said(text) for text in "cde"]), 3
        seen.clear()
        looks.clear()
        chat.ask([call(f"{number}") for number in range(1, 6)])
    assert seen == [3] and len(looks) <= 3  # it waits, and does not spin


def test_of_equal_calls_the_second_is_answered_by_the_record_unless_both_failed(tmp_path):
    outcomes = {
        "answered": said("yes"), "cut": said("half", stop="max_tokens"), "refused": said("no", stop="content_filter"),
        "rejected": refused(400), "failed": refused(500),
    }  # fmt: skip
    for status, outcome in outcomes.items():
        account = Account()
        with Record(tmp_path / f"{status}.jsonl") as record, Chat("openai/m", record=record, account=account) as chat:
            chat._model = Listed(outcome)
            assert [reply.status for reply in chat.ask([call("a", phase="one"), call("a", phase="two")])] == [
                status
            ] * 2
        assert (account.total().calls, account.total(phase="two").from_record) == (1, int(status != "failed"))


def told_tokens(*tokens):
    from inspect_ai.model import Logprob, Logprobs, TopLogprob

    return Logprobs(content=[
        Logprob(token=text, logprob=p, top_logprobs=[TopLogprob(token=other, logprob=q) for other, q in rest] or None)
        for text, p, rest in tokens
    ])  # fmt: skip


def test_tokens_are_asked_for_told_and_left_out_where_the_text_was_altered(asked):
    output = said("yes")
    output.choices[0].logprobs = told_tokens(("y", -0.5, [("y", -0.5), ("n", -1.5)]), ("es", -0.25, []))
    tokens = (ToldToken("y", -0.5, (("y", -0.5), ("n", -1.5))), ToldToken("es", -0.25, ()))
    reply, (entry,), model = asked(call(likeliest=2), output)
    assert reply.tokens == entry.tokens == tokens
    assert (model.configs[0][1].logprobs, model.configs[0][1].top_logprobs) == (True, 2)
    for text, question, key, kept in (
        ("yes", call(), None, ()), ("yes", call(likeliest=1), None, tokens),
        ("yes a-s3cret-word", call(likeliest=2), "a-s3cret-word", ()), ("half", call(likeliest=2), "h-s3cret-word", tokens),
    ):  # fmt: skip
        output = said(text, stop="max_tokens" if text == "half" else "stop")
        output.choices[0].logprobs = told_tokens(*tokens)
        assert asked(question, output, key=key)[0].tokens == kept
    assert client._tokens(ModelOutput(model="m", choices=[])) == client._tokens(said("yes")) == ()


def test_a_file_is_read_once_while_it_stays_and_a_schema_written_once(tmp_path, monkeypatch):
    path, read = tmp_path / "m.gguf", []
    monkeypatch.setattr(client, "sha256_file", lambda path: read.append(path) or f"{len(read):064x}")
    path.write_bytes(b"weights")
    assert resolve(str(path)) == resolve(str(path)) and read == [path]
    path.write_bytes(b"more weights")
    assert resolve(str(path))[0] == f"equipoise/m.gguf@{'0' * 12}" and read == [path] * 2
    assert client._schema_text(Verdict) is client._schema_text(Verdict)


def test_a_call_that_failed_is_no_answer_and_the_first_reason_is_told(tmp_path):
    with Record(tmp_path / "r.jsonl") as record:
        chat = Chat("openai/m", record=record, account=Account(), max_connections=1)
        chat._model = Listed(refused(500, "first."), said("yes"), refused(503, "last"))
        with pytest.raises(WorkFailed) as caught:
            client.answers(chat, [call(text) for text in "abc"], "Asking")
        assert client.answers(chat, [call("b")], "Asking") == [Reply("yes", "answered")]
    assert str(caught.value) == (
        "2 of 3 calls of openai/m got no answer (HTTP 500: first); the others are stored, and the same command asks for "
        "what is missing."
    )
