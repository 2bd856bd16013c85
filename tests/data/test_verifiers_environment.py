"""The way from a rollout that asks its client to an episode that is stepped, with a stand-in for verifiers' package.

tests/parity plays the same with the package itself.
"""

import asyncio
import gc
import sys
import threading
import time
from abc import ABC, abstractmethod
from types import ModuleType, SimpleNamespace

import pytest

from equipoise.core.errors import BadInput, MissingExtra, WorkFailed
from equipoise.data.environment import open_environment
from equipoise.data.verifiers_environment import from_verifiers

ADD = {"name": "add", "description": "Add.", "parameters": {"type": "object"}, "strict": None}
CALL = '<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>'


class Client(ABC):
    def __init__(self, client_or_config):
        self.config = client_or_config

    @abstractmethod
    async def get_response(self, prompt, model, sampling_args, tools=None, **kwargs): ...

    @abstractmethod
    async def get_native_response(self, prompt): ...


@pytest.fixture(autouse=True)
def package(monkeypatch):
    package, types = ModuleType("verifiers"), ModuleType("verifiers.types")
    package.Client = Client
    types.Response = types.ResponseMessage = types.ToolCall = SimpleNamespace
    monkeypatch.setitem(sys.modules, "verifiers", package)
    monkeypatch.setitem(sys.modules, "verifiers.types", types)


def user(content):
    return {"role": "user", "content": content}


class Rollouts:
    """As verifiers.Environment for its caller. play: what is asked of the client, and at last the output's changes."""

    env_id, max_turns = "shop", 3

    def __init__(self, play, rows=5, tools=None, **attributes):
        self.play, self.tools, self.responses, self.cancelled = play, tools, [], []
        self.rows = [{"prompt": [{"role": "system", "content": "Buy."}, user(f"row {n}")]} for n in range(rows)]
        vars(self).update(attributes)

    def build_dataset(self):
        return self.rows

    def build_eval_dataset(self):
        return None

    async def run_rollout(self, input, client, model, sampling_args):
        messages = list(input["prompt"])

        async def ask(*new):
            messages.extend(new)
            prompt = list(messages)
            given = await client.get_response(
                prompt=prompt, model=model, tools=self.tools, sampling_args=sampling_args, state={}
            )
            self.responses.append(given.message)
            messages.append({"role": "assistant", "content": given.message.content})
            return given.message

        try:
            output = await self.play(ask, messages)
        except asyncio.CancelledError:
            self.cancelled.append(len(self.responses))
            raise
        completion = messages[len(input["prompt"]) :]
        return {"reward": 0.0, "metrics": {}, "error": None, "completion": completion, **(output or {})}


async def two_turns(ask, messages):
    said = await ask()
    await ask(user(f"{said.content}?"), user([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]))
    messages.append(user("bye"))
    return {"reward": 1 - 1e-12, "metrics": {"exact": 1.0}, "stop_condition": "sold"}


def threads():
    return {each for each in threading.enumerate() if each.name == "equipoise-verifiers"}


def in_time(condition):
    """What another thread does comes true within some seconds."""
    for _ in range(1000):
        gc.collect()
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it has not come true")


def test_a_rollout_is_stepped():
    environment = Rollouts(two_turns)
    make = from_verifiers(environment)
    episode, other = make(), make()
    assert (make.__name__, episode.max_turns) == ("shop", 3)
    assert episode.reset(8) == "Buy.\n\nrow 3" and other.reset(4) == "Buy.\n\nrow 4"
    going = {"valid": True, "actions": [], "owner": "environment"}
    assert episode.step("hat \ud800") == ("hat \ufffd?\n\none\ntwo", 0.0, False, going)
    assert other.step("cap")[0] == "cap?\n\none\ntwo"  # each its own rollout
    last = {"success": True, "metrics": {"exact": 1.0}, "stop_condition": "sold"}
    assert episode.step("yes") == ("bye", 1 - 1e-12, True, going | last)
    assert [each.finish_reason for each in environment.responses] == ["stop"] * 3
    with pytest.raises(BadInput, match="call reset"):
        episode.step("more")
    assert episode.reset(5) == "Buy.\n\nrow 0"


def test_a_reward_below_one_is_no_success():
    async def play(ask, messages):
        await ask()
        return {"reward": 1 - 1e-6, "stop_condition": "x"}

    episode = from_verifiers(Rollouts(play))()
    episode.reset(0)
    reply, reward, done, info = episode.step("hat")
    assert (reply, reward, done, info["success"]) == ("", 1 - 1e-6, True, False)


def test_examples_are_told_from_what_is_asked():
    environment = Rollouts(two_turns)
    environment.rows[0]["prompt"][1:1] = [user("1 + 1?"), {"role": "assistant", "content": "2"}]
    assert from_verifiers(environment)().reset(0) == "Buy.\n\nUser: 1 + 1?\n\nAssistant: 2\n\nUser: row 0"


def test_calls_of_tools():
    async def play(ask, messages):
        calls = (await ask()).tool_calls or ()
        await ask(*({"role": "tool", "tool_call_id": call.id, "content": f"<{call.arguments}>"} for call in calls))
        return {"stop_condition": "no_tools_called"}

    environment = Rollouts(play, tools=[ADD])
    episode = from_verifiers(environment)()
    system, tools, question = episode.reset(0).split("\n\n")
    assert (system, question) == ("Buy.", "row 0") and '{"name": "add", "description": "Add.", "parameters"' in tools
    assert "<tool_call>{" in tools and "strict" not in tools
    text = f'So: {CALL}<tool_call>{{"name": "ad", "args": {{}}}}</tool_call><tool_call>{{</tool_call>{CALL}'
    reply, _, done, info = episode.step(text)
    first, second, third, fourth = reply.split("\n\n")
    assert first == fourth == 'add: <{"a": 2}>' and second == "There is no tool 'ad'. Did you mean 'add'?"
    assert third.startswith("This call is no JSON") and not done
    made = [{"name": "add", "arguments": {"a": 2}}, {"name": "ad", "arguments": {}}]
    made.append(made[0])
    assert info == {"valid": False, "owner": "tool", "actions": made}
    response = environment.responses[0]
    assert (response.content, response.finish_reason) == ("So:", "tool_calls")
    assert [(call.id, call.name, call.arguments) for call in response.tool_calls] == [
        ("call_0", "add", '{"a": 2}'),
        ("call_1", "ad", "{}"),
        ("call_2", "", ""),
        ("call_3", "add", '{"a": 2}'),
    ]
    *_, info = episode.step("2 {}")
    assert info["valid"] and info["owner"] == "environment" and environment.responses[1].tool_calls is None
    episode.reset(0)
    assert not episode.step(f"<think>Perhaps {CALL}")[3]["valid"] and environment.responses[2].tool_calls is None


def test_without_tools_a_call_is_a_text():
    environment = Rollouts(two_turns)
    episode = from_verifiers(environment)()
    episode.reset(0)
    assert episode.step(CALL)[0].startswith(f"{CALL}?") and environment.responses[0].tool_calls is None


async def raises(ask, messages):
    await ask()
    raise KeyError("lost")


async def exits(ask, messages):
    await ask()
    raise SystemExit(3)


async def reports(ask, messages):
    await ask()
    return {"error": {"error": "ToolError", "error_chain_repr": "ToolError() -> OSError('gone')"}, "reward": 1.0}


async def asks_anew(ask, messages):
    await ask()
    del messages[1:]
    await ask(user("row 0 in other words"))


async def asks_again(ask, messages):
    await ask()
    messages.pop()
    await ask(user("again"), {"role": "assistant", "content": "hat"})


async def rewrites(ask, messages):
    await ask()
    messages[1] = user("row 9")
    await ask(user("go on"))


async def shows(ask, messages):
    await ask()
    await ask(user([{"type": "image_url", "image_url": {}}]))


@pytest.mark.parametrize(
    ("play", "sentence"),
    [
        (raises, "shop, row 2: KeyError: 'lost'"),
        (exits, "shop, row 2: SystemExit: 3"),
        (reports, r"shop, row 2: ToolError\(\) -> OSError\('gone'\)"),
        (asks_anew, "an episode only grows"),
        (asks_again, "an episode only grows"),
        (rewrites, "an episode only grows"),
        (shows, "a part of type 'image_url'"),
    ],
)
def test_what_goes_wrong_is_said_and_ends_the_rollout(play, sentence):
    environment = Rollouts(play)
    episode = from_verifiers(environment)()
    episode.reset(2)
    with pytest.raises(WorkFailed, match=sentence):
        episode.step("hat")
    with pytest.raises(BadInput, match="call reset"):
        episode.step("hat")
    if play in (asks_anew, asks_again, rewrites, shows):
        in_time(lambda: environment.cancelled == [1])
    assert episode.reset(2) == "Buy.\n\nrow 2"


def test_a_rollout_that_ends_unasked():
    async def play(ask, messages):
        return {"stop_condition": "timeout_reached"}

    with pytest.raises(WorkFailed, match=r"shop ended before it asked for anything \(timeout_reached\)"):
        from_verifiers(Rollouts(play))().reset(0)


def test_a_rollout_that_ends_while_it_is_waited_for(caplog):
    async def play(ask, messages):
        try:
            await asyncio.wait_for(ask(), 0.01)
        except TimeoutError:
            return {"stop_condition": "timeout_reached", "reward": 0.25}

    episode = from_verifiers(Rollouts(play))()
    episode.reset(0)
    time.sleep(0.1)
    _, reward, done, info = episode.step("late")
    assert (reward, done, info["stop_condition"]) == (0.25, True, "timeout_reached")
    episode.reset(1)  # by then the loop has seen that nobody awaits the answer
    assert not caplog.records


def test_a_hang_is_named_and_the_others_go_on():
    async def play(ask, messages):
        said = await ask()
        await asyncio.sleep(60 if said.content == "sleep" else 0)

    environment = Rollouts(play)
    make = from_verifiers(environment, timeout=0.1)
    one, two = make(), make()
    one.reset(1), two.reset(2)
    with pytest.raises(WorkFailed, match=r"shop, row 1: the environment has not answered within 0\.1 s\.$"):
        one.step("sleep")
    in_time(lambda: environment.cancelled == [1])
    assert two.step("hat")[2]


def test_what_blocks_the_loop_is_left_behind():
    released, before = threading.Event(), threads()

    async def play(ask, messages):
        if (await ask()).content == "block":
            released.wait(60)

    make = from_verifiers(Rollouts(play), timeout=0.1)
    one, two = make(), make()
    one.reset(1), two.reset(2)
    with pytest.raises(WorkFailed, match=r"within 0\.1 s, and blocks its event loop"):
        one.step("block")
    with pytest.raises(WorkFailed, match="row 2: another episode of this environment hangs"):
        two.step("hat")
    one.reset(1)
    assert one.step("hat")[2] and len(threads() - before) == 2
    released.set()
    del one, two, make
    in_time(lambda: threads() <= before)


def test_an_abandoned_episode_leaves_nothing():
    environment, before = Rollouts(two_turns), threads()
    make = from_verifiers(environment)
    one, two, three = make(), make(), make()
    one.reset(0), two.reset(1), three.reset(2), one.step("hat")
    assert len(threads() - before) == 1
    one.reset(0)
    in_time(lambda: len(environment.cancelled) == 1)
    del two
    in_time(lambda: len(environment.cancelled) == 2)
    one.close(), three.close()
    in_time(lambda: len(environment.cancelled) == 4)
    del one, three, make
    in_time(lambda: threads() <= before)


def test_what_cannot_be_played_is_refused_before(monkeypatch):
    group = Rollouts(two_turns, requires_group_rollouts=True)
    for environment in (group, Rollouts(two_turns, envs=[Rollouts(two_turns), group])):
        with pytest.raises(BadInput, match="compare the rollouts of a group"):
            from_verifiers(environment)
    with pytest.raises(BadInput, match="score_rollouts=True"):
        from_verifiers(Rollouts(two_turns, score_rollouts=False))
    with pytest.raises(BadInput, match="shop has no rows"):
        from_verifiers(Rollouts(two_turns, rows=0))
    with pytest.raises(BadInput, match="this is a str, expected an environment of verifiers"):
        from_verifiers("wordle")
    with pytest.raises(BadInput, match="timeout is 0"):
        from_verifiers(Rollouts(two_turns), timeout=0)
    monkeypatch.setitem(sys.modules, "verifiers", None)
    with pytest.raises(MissingExtra, match="pip install"):
        from_verifiers(Rollouts(two_turns))


def test_rows_to_evaluate_with_are_played_where_there_are_no_others():
    class Evaluated(Rollouts):
        def build_dataset(self):
            return None

        def build_eval_dataset(self):
            return self.rows[1:]

    assert from_verifiers(Evaluated(two_turns))().reset(4) == "Buy.\n\nrow 1"


@pytest.mark.parametrize(("limits", "expected"), [((3, 5), 5), ((3, -1), None)])
def test_turns_of_a_group(limits, expected):
    parts = [Rollouts(two_turns, max_turns=limit) for limit in limits]
    assert open_environment(Rollouts(two_turns, envs=parts, max_turns=1)).max_turns == expected


def test_it_is_opened_like_any_other(tmp_path, monkeypatch):
    made = []

    def load():
        made.append(Rollouts(two_turns))
        return made[-1]

    for source in (Rollouts(two_turns), load, from_verifiers(Rollouts(two_turns))):
        opened = open_environment(source)
        assert opened.make().reset(1) == opened.make().reset(6) == "Buy.\n\nrow 1" and opened.max_turns == 3
        assert opened.instances == 5
    assert len(made) == 1  # its rows are read once
    file = tmp_path / "shop.py"
    file.write_text("from rollouts_of_a_shop import SHOP, load\n")
    module = ModuleType("rollouts_of_a_shop")
    module.load, module.SHOP = load, Rollouts(two_turns)
    monkeypatch.setitem(sys.modules, "rollouts_of_a_shop", module)
    for name in ("load", "SHOP"):
        opened = open_environment(f"{file}:{name}")
        assert opened.make().reset(2) == "Buy.\n\nrow 2" and opened.name == name and len(opened.digest) == 64
    with pytest.raises(BadInput, match="score_rollouts=True"):
        open_environment(Rollouts(two_turns, score_rollouts=False))


def test_a_response_was_not_cut_and_who_is_dropped_tells_nothing():
    environment = Rollouts(two_turns)
    episode = from_verifiers(environment)()
    episode.reset(0)
    episode.step("yes")
    assert environment.responses[0].is_truncated is False
    rollout = episode._rollout
    rollout.cancel()
    in_time(lambda: environment.cancelled == [1])
    in_time(lambda: not asyncio.all_tasks(rollout._loop.loop) or len(asyncio.all_tasks(rollout._loop.loop)) == 1)
    assert rollout._events.empty()
