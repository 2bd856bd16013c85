"""Who plays what in a job: read from its options, refused before anything is opened, one record and one budget for all."""

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from equipoise.chat.account import Account, Budget
from equipoise.chat.calls import Call
from equipoise.chat.options import (
    HARMLESS,
    CallBudget,
    Connections,
    ModelArguments,
    ModelPrices,
    Replay,
    can_run_code,
)
from equipoise.chat.record import HEADER
from equipoise.chat.roles import Role, Roles
from equipoise.core.errors import BadInput, BudgetReached, MissingExtra
from equipoise.core.files import seal
from equipoise.core.job import Request
from equipoise.core.options import Options
from equipoise.data.records import Message

needs_inspect = pytest.mark.skipif(
    importlib.util.find_spec("inspect_ai") is None, reason="needs Inspect AI: the extra `chat`"
)
MODEL = "mockllm/model"


class Ranker:
    def rank(self):
        return []


def call(text: str) -> Call:
    return Call((Message("user", text),), phase="read")


def say(word: str) -> dict:
    """Arguments of a model in this process that always says a word."""
    from inspect_ai.model import ModelOutput, ModelUsage

    async def answer(*_):
        output = ModelOutput.from_content("mockllm", word)
        output.usage = ModelUsage(input_tokens=5, output_tokens=2, total_tokens=7)
        return output

    return {"custom_outputs": answer}


@needs_inspect
def test_all_roles_share_a_record_an_account_and_a_budget(tmp_path):
    cast = [Role("reader", MODEL, say("yes")), Role("grader", "mockllm/other", say("no"))]
    with Roles(cast, budget="calls=3").open(tmp_path) as players:
        assert [reply.text for reply in players.chat("reader").ask([call("a"), call("b")])] == ["yes", "yes"]
        assert [reply.text for reply in players.chat("grader").ask([call("a")])] == ["no"]
        assert players.account.total().calls == 3 and players.account.total(model="mockllm/other").calls == 1
        with pytest.raises(BudgetReached, match="calls=3"):
            players.chat("reader").ask([call("c")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls.jsonl"]
    # The record answers alone: a model that would say something else is not asked, one without a provider not missed.
    again = Roles(
        [Role("reader", MODEL, say("other")), Role("grader", "mockllm/other"), Role("third", "opnai/m")],
        replay=tmp_path / "calls.jsonl",
    )
    with again.open(None) as players:
        assert players.chat("reader").ask([call("b")])[0].text == "yes" and not list(tmp_path.glob("*.lock"))
        with pytest.raises(BadInput, match="has no answer of mockllm/other"):
            players.chat("grader").ask([call("b")])


@needs_inspect
def test_whoever_is_like_another_role_is_asked_as_that_one_is(tmp_path):
    cast = [Role("grader", like="checker"), Role("checker", like="reader"), Role("reader", MODEL, say("yes"))]
    with Roles([*cast, Role("ranker", Ranker(), methods=("rank",), like="reader")]).open(tmp_path) as players:
        assert players["grader"].ask([call("a")])[0].text == "yes"
        assert isinstance(players["ranker"], Ranker) and players.chats("ranker") == ()


@needs_inspect
def test_several_models_may_play_one_role(tmp_path):
    asked = SimpleNamespace(filters=[MODEL, "mockllm/other"], reader="rules", reader_args=None, spare=None)
    roles = Roles.read(asked, Role("reader", own=("rules",)), Role("filters"), Role("spare", optional=True))
    assert roles.models == [MODEL, "mockllm/other"]
    with roles.open(tmp_path) as players:
        assert [chat.name for chat in players.chats("filters")] == [MODEL, "mockllm/other"]
        assert players["reader"] == "rules" and players["spare"] is None


def test_an_empty_list_plays_no_role_that_must_be_played():
    asked = SimpleNamespace(reader=[], spare=[], prices=None, budget=None, replay=None, max_connections=None)
    assert Roles.read(asked, Role("spare", optional=True)).models == []
    with pytest.raises(BadInput, match=r"The reader is \[\]"):
        Roles.read(asked, Role("reader"))


def test_whoever_is_like_a_local_model_is_that_one():
    roles = Roles([Role("grader", like="reader"), Role("reader", "owner/name", local=True, asked=False)])
    assert roles.models == ["equipoise/owner/name"] * 2


def test_only_who_is_asked_is_opened(tmp_path):
    scored = Role("reader", "owner/name", local=True, asked=False)
    roles = Roles([scored], prices={"equipoise/owner/name": (1, 2)})
    assert roles.models == ["equipoise/owner/name"]
    with roles.open(tmp_path) as players:
        assert players["reader"] == "owner/name"
    assert not list(tmp_path.iterdir())


def test_prices_are_found_under_the_name_that_was_typed(tmp_path):
    reader = Role("reader", "smollm2")  # whose full name is equipoise/smollm2
    for typed in ("smollm2", "equipoise/smollm2"):
        assert Roles([reader], prices={typed: (1, 0.5, 4)}).prices == {"equipoise/smollm2": (1, 0.5, 4)}
    assert Roles([Role("reader", "openai/m")], prices={"openai/m": (1, 4)}).prices == {"openai/m": (1, 1, 4)}
    path = tmp_path / "m.gguf"
    path.write_bytes(b"weights")
    priced = Roles([Role("reader", str(path))], prices={str(path): (1, 4)}, budget="usd=1").prices
    assert priced == {f"equipoise/m.gguf@{hashlib.sha256(b'weights').hexdigest()[:12]}": (1, 1, 4)}


@pytest.mark.parametrize(
    ("role", "message"),
    [
        (Role("reader"), "The reader is None: expected the name of a model"),
        (Role("reader", 42), "The reader is 42: expected the name of a model"),
        (Role("reader", Ranker()), "expected the name of a model"),
        (Role("reader", Ranker(), methods=("rank", "name")), "expected a name, or an object with rank, name"),
        (Role("reader", Ranker(), {"a": 1}, methods=("rank",)), "reader_args and reader_url are for a named model"),
        (Role("reader", optional=True, url="http://h"), "reader_args and reader_url are for a named model"),
        (Role("reader", like="writer", arguments={"a": 1}), "reader_args and reader_url are for a named model"),
        (Role("reader", like="ranker"), "The reader is <.*Ranker.*: expected the name of a model"),
        (Role("reader", "rules", {"a": 1}, own=("rules",)), "this reader is none"),
        (Role("reader", "openai/m", {"api_key": "sk-abcdefgh"}), "The argument 'api_key' holds a secret"),
        (Role("reader", "openai/m", {"default_query": {"api_key": "x"}}), "The argument 'api_key' holds a secret"),
        (Role("reader", "openai/m", {"tries": [{"X-Api-Key": "x"}]}), "The argument 'X-Api-Key' holds a secret"),
        (
            Role("reader", "openai/m", {"extra": {"Authorization": ["x"]}}),
            "The argument 'Authorization' holds a secret",
        ),
        (Role("reader", "openai/m", url="https://me:hunter2@host/v1"), "The address holds a secret"),
        (Role("reader", "openai/m", url="https://host/v1?api_key=hunter2"), "The address holds a secret"),
        (
            Role("reader", "openai/m", {"api_key": "sk-abcdefgh", "password": "x"}),
            "The argument 'api_key' holds a secret",
        ),
        (Role("reader", "openai/m", url="https://host/v1?api_key="), "The address holds a secret"),
        (Role("reader", "openai/m", url="http://[host"), "is no address"),
        (Role("reader", "smolm2"), "No model 'smolm2' is known here. Did you mean 'smollm2'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_opened(role, message):
    writer, ranker = Role("writer", "openai/w"), Role("ranker", Ranker(), methods=("rank",))
    with pytest.raises(BadInput, match=message):
        Roles([role, writer, ranker], prices={"openai/w": (1, 1)})


def test_two_servers_of_one_name_are_not_told_apart_and_refused():
    def roles(reader, grader, arguments=(None, None)):
        played = zip(("reader", "grader"), arguments, (reader, grader), strict=True)
        return Roles([Role(name, "openai-api/mine/m", given, url) for name, given, url in played])

    for urls in (
        ("http://localhost:8000/v1", "http://localhost:8001/v1"),
        ("http://one/v1/", "http://two/v1"),
        ("http://one", None),
    ):
        with pytest.raises(
            BadInput, match=r"The reader and the grader are openai-api/mine/m at two addresses.*different"
        ):
            roles(*urls)
    with pytest.raises(BadInput, match="at two addresses"):  # in whatever order the arguments were typed
        roles("http://one/v1", "http://two/v1", arguments=({"top_k": 1, "date": "d"}, {"date": "d", "top_k": 1}))
    roles("http://one/v1/", "http://one/v1")
    roles("http://one/v1", "http://one/v2")  # the path is part of the keys
    roles("http://one/v1", "http://two/v1", arguments=({"top_k": 1}, {"top_k": 2}))
    Roles([Role("reader", "openai/m", url="http://one"), Role("grader", like="reader")])
    Roles([Role("reader", "openai/m", url="http://one"), Role("scorer", "openai/m", asked=False)])


def test_numbers_of_tokens_are_no_secrets():
    Role("reader", "openai/m", {"extra_body": {"stop_token_ids": [1, 2], "top_k": 3, "eos_token": ""}}).check()


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ({"budget": "cals=3"}, "A budget has no 'cals'"),
        ({"budget": "usd=3"}, "needs the price of openai/m: --prices openai/m=READ:WRITTEN"),
        ({"budget": Budget(usd=3), "prices": {"openai/m": (1, 1)}}, "needs the price of openai/n"),
        ({"prices": {"openai/k": (1, 1)}}, "a price for 'openai/k', which takes no part. Did you mean 'openai/n'"),
        ({"replay": "none.jsonl"}, "none.jsonl: no such record"),
    ],
)
def test_what_all_share_is_refused_too(tmp_path, monkeypatch, shared, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=message):
        Roles([Role("reader", "openai/m"), Role("grader", "openai/n")], **shared)


@pytest.mark.parametrize("shared", [{"budget": "minutes=1"}, {"max_connections": 2}])
def test_a_limit_that_nothing_would_keep_is_refused(shared):
    nobody = [Role("ranker", Ranker(), methods=("rank",)), Role("reader", "smollm2", local=True, asked=False)]
    with pytest.raises(BadInput, match=f"{next(iter(shared))} is for chat models, and none is asked here"):
        Roles(nobody, **shared)


@needs_inspect
def test_a_provider_that_is_not_there_is_found_when_the_roles_are_opened(tmp_path, monkeypatch):
    roles = Roles([Role("reader", MODEL), Role("grader", "opnai/m")])
    with pytest.raises(BadInput, match="opnai/m cannot be used"), roles.open(tmp_path):
        pytest.fail("opened")
    monkeypatch.setitem(sys.modules, "inspect_ai", None)  # as if it were not installed
    with pytest.raises(MissingExtra, match=r"pip install 'equipoise\[chat\]'"), roles.open(tmp_path):
        pytest.fail("opened")


@dataclass
class Asking(Request):
    roles: Roles


def ask(
    reader: str,
    *,
    reader_args: ModelArguments = None,
    reader_url: str | None = None,
    grader: str | None = None,
    prices: ModelPrices = None,
    budget: CallBudget = None,
    replay: Replay = None,
    max_connections: Connections = None,
) -> Asking:
    asked = SimpleNamespace(**locals())
    return Asking(Roles.read(asked, Role("reader"), Role("grader", like="reader")))


def test_a_job_has_its_roles_from_its_options_as_they_are_typed():
    options = Options(ask)
    typed = {"reader": "openai/m", "reader_args": "a=1,b=x", "reader_url": "http://h/v1"}
    typed |= {"prices": "openai/m=2.5:10", "budget": "usd=4,calls=9", "max_connections": "3"}
    found = ask(**options.read(typed, text=True)).roles
    grader = found.roles[1]
    assert (grader.player, grader.arguments, grader.url) == ("openai/m", {"a": 1, "b": "x"}, "http://h/v1")
    assert found.prices == {"openai/m": (2.5, 2.5, 10)} and found.budget == Budget(usd=4, calls=9)
    assert found.max_connections == 3 and Account(found.prices).has_price("openai/m")
    # What says how the work is done is not stored, and arguments that can name code have to be typed again.
    assert [name for name in options.hints if not options.setting(name).stored] == ["budget", "max_connections"]
    guarded = options.setting("reader_args").typed
    assert guarded({"trust_remote_code": True}) and not guarded({"batch_size": 4})


def test_two_roles_with_the_same_words_are_two():
    """They hold players, which nobody compares, and arguments, which have no hash."""
    both = [Role("filters", "zoo/f", arguments={"seed": 1}) for _ in range(2)]
    assert both[0] != both[1] and len({*both}) == 2


def test_a_budget_needs_prices_only_where_dollars_are_paid(tmp_path):
    (tmp_path / "calls.jsonl").write_bytes(seal(HEADER))
    reader = [Role("reader", "openai/m")]
    assert Roles(reader, budget="calls=3,minutes=2").budget == Budget(calls=3, minutes=2)
    assert Roles(reader, budget="usd=1", replay=tmp_path / "calls.jsonl").budget == Budget(usd=1)


def test_what_a_price_a_connection_and_an_argument_may_be():
    options = Options(ask)

    def read(**typed):
        return options.read({"reader": "openai/m", **typed}, text=True)

    assert read(prices="openai/m=0:0.5:1e9")["prices"] == {"openai/m": (0, 0.5, 1e9)}
    assert read(prices="openai/m=0:0")["prices"] == {"openai/m": (0, 0)}
    assert read(max_connections="1")["max_connections"] == 1
    for wrong in (
        {"prices": "openai/m=-0.5:1"}, {"prices": "openai/m=inf:1"}, {"prices": "openai/m=nan:1"}, {"prices": "openai/m=1"},
        {"prices": "openai/m=1:1:1:1"}, {"max_connections": "0"}, {"max_connections": "1.5"},
    ):  # fmt: skip
        with pytest.raises(BadInput):
            read(**wrong)
    assert not can_run_code(None) and not can_run_code({}) and not can_run_code(dict.fromkeys(HARMLESS))
    assert can_run_code(dict.fromkeys([*HARMLESS, "tokenizer"])) and can_run_code({"tokenizer": "mine"})
    assert options.setting("budget").objects and not options.setting("prices").objects
