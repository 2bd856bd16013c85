"""Our episodes of verifiers' environments against verifiers' own rollouts: its run_rollout with a scripted client."""

import asyncio
import gc
import json
import threading
import time

import pytest

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.environment import open_environment
from equipoise.data.verifiers_environment import from_verifiers

pytestmark = pytest.mark.slow
vf = pytest.importorskip("verifiers.legacy", reason="needs verifiers 0.3: pip install 'verifiers>=0.3,<0.4'")
datasets = pytest.importorskip("datasets", reason="verifiers needs it")

ROWS = datasets.Dataset.from_list(
    [
        {"question": f"What is {number} + 1?", "answer": str(number + 1), "info": {"limit": number}}
        for number in (2, 5, 7)
    ]
)
FEW = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]


async def exact(completion, answer):
    return float(str(completion[-1]["content"]).strip().endswith(answer))


def length(completion):
    return float(len(completion))


def rubric():
    return vf.Rubric(funcs=[exact, length], weights=[1.0, 0.25])


class Guess(vf.MultiTurnEnv):
    """Says higher or lower, ends with a final response, or after as many turns as the row says."""

    def __init__(self, **kwargs):
        self.ended = []
        super().__init__(dataset=ROWS, rubric=rubric(), system_prompt="Guess.", **kwargs)

    async def setup_state(self, state):
        state["left"] = state["info"]["limit"]

    async def env_response(self, messages, state, **kwargs):
        state["left"] -= 1
        said = messages[-1]["content"].strip()
        if said == "trouble":
            raise vf.InfraError("the box is gone") from OSError("no box")
        if said == "stray":
            raise KeyError("lost")
        if said == "sleep":
            await asyncio.sleep(60)
        reply = [{"role": "user", "content": f"{said} is wrong, {state['left']} left"}]
        if said == state["answer"]:
            reply = [{"role": "user", "content": "right"}]
            state["final_env_response"] = reply
        return reply

    @vf.stop
    async def none_left(self, state):
        return state["left"] <= 1

    @vf.cleanup
    async def note(self, state):
        self.ended.append(len(state["trajectory"]))


def add(a: int, b: int = 1) -> str:
    """Add two numbers."""
    return f"{a} + {b} = {a + b}"


async def shout(text: str) -> str:
    """Say it louder."""
    if text == "?":
        raise ValueError("nothing to shout")
    return text.upper()


def tools(**kwargs):
    return vf.ToolEnv(tools=[add, shout], dataset=ROWS, rubric=rubric(), **kwargs)


def call(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def peer(environment, row, responses):
    """verifiers' own rollout of a row, whose client gives these (content, calls)."""
    waiting = list(responses)

    class Scripted(vf.Client):
        setup_client = to_native_tool = to_native_prompt = get_native_response = None
        raise_from_native_response = from_native_response = close = None

        async def get_response(self, prompt, model, sampling_args, tools=None, **kwargs):
            content, calls = waiting.pop(0)
            made = [vf.ToolCall(id=f"call_{n}", name=name, arguments=each) for n, (name, each) in enumerate(calls)]
            message = vf.ResponseMessage(
                content=content, tool_calls=made or None, finish_reason="stop", is_truncated=False
            )
            return vf.Response(id="", created=0, model="", message=message)

    return asyncio.run(environment.run_rollout(environment.get_dataset()[row], Scripted(None), "", {}))


def texts(messages):
    return [(each["role"], each["content"]) for each in messages]


def played(make, seed, actions):
    environment = make()
    first = environment.reset(seed)
    return first, [environment.step(action) for action in actions]


def threads():
    return {each for each in threading.enumerate() if each.name == "equipoise-verifiers"}


def in_time(condition):
    """What another thread does comes true within some seconds."""
    for _ in range(500):
        gc.collect()
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it has not come true")


def test_one_turn():
    environment = vf.SingleTurnEnv(dataset=ROWS, rubric=rubric(), system_prompt="Short.", few_shot=FEW)
    first, [(reply, reward, done, info)] = played(from_verifiers(environment), 4, ["It is 6"])
    assert first == "Short.\n\nUser: What is 1 + 1?\n\nAssistant: 2\n\nUser: What is 5 + 1?"
    expected = peer(environment, 1, [("It is 6", [])])
    assert (reply, reward, done) == ("", expected["reward"], True) and reward == 1.25
    assert info["metrics"] == expected["metrics"] == {"exact": 1, "length": 1, "num_turns": 1}
    assert info["success"] and info["stop_condition"] == expected["stop_condition"] == "max_turns_reached"
    assert open_environment(environment).max_turns == 1


@pytest.mark.parametrize(
    ("row", "actions", "stop"),
    [
        (1, ["4", "5", "6"], "has_final_env_response"),
        (0, ["4", "2"], "none_left"),
        (2, ["1", "2", "3", "4"], "max_turns_reached"),
    ],
)
def test_turns(row, actions, stop):
    environment = Guess(max_turns=4)
    expected = peer(environment, row, [(action, []) for action in actions])
    first, steps = played(from_verifiers(environment), row + 3, actions)
    said = [("user", reply) for reply, *_ in steps if reply]
    assert first == f"Guess.\n\n{ROWS[row]['question']}"
    assert (
        said == [each for each in texts(expected["completion"]) if each[0] == "user"] and len(said) >= len(actions) - 1
    )
    assert [done for _, _, done, _ in steps] == [False] * (len(actions) - 1) + [True]
    assert [reward for _, reward, _, _ in steps] == [0] * (len(actions) - 1) + [expected["reward"]]
    assert steps[-1][3]["metrics"] == expected["metrics"] and steps[-1][3]["stop_condition"] == stop
    assert steps[-1][3]["success"] == (expected["reward"] >= 1) and environment.ended == [len(actions)] * 2


def test_tools():
    environment = tools(max_turns=9)
    turns = [
        (
            "Let me see.\n" + call("add", a=2) + call("shout", text="hi"),
            [("add", '{"a": 2}'), ("shout", '{"text": "hi"}')],
        ),
        (json.dumps({"name": "shout", "arguments": {"text": "?"}}), [("shout", '{"text": "?"}')]),
        (call("ad", a=1), [("ad", '{"a": 1}')]),
        ("<tool_call>{add 1}</tool_call>", [("", "")]),
        (call("add", c=1), [("add", '{"c": 1}')]),
        ("So it is 3", []),
    ]
    expected = peer(environment, 0, [(text, calls) for text, calls in turns])
    first, steps = played(from_verifiers(environment), 0, [text for text, _ in turns])
    assert first.startswith("These tools can be called:\n{") and first.endswith("\n\nWhat is 2 + 1?")
    offered = [json.loads(line) for line in first.splitlines() if line.startswith("{")]
    assert [(each["name"], each["description"]) for each in offered] == [
        ("add", "Add two numbers."),
        ("shout", "Say it louder."),
    ]
    assert offered[0]["parameters"]["properties"]["b"]["default"] == 1
    (one, _, _, info), (two, *_), (three, *_), (four, *_), (five, *_), (six, reward, done, end) = steps
    theirs = [content for role, content in texts(expected["completion"]) if role == "tool"]
    assert one == f"add: {theirs[0]}\n\nshout: {theirs[1]}" == "add: 2 + 1 = 3\n\nshout: HI"
    assert two == f"shout: {theirs[2]}" == "shout: nothing to shout"
    assert three == "There is no tool 'ad'. Did you mean 'add'?" and four.startswith("This call is no JSON")
    assert five == f"add: {theirs[5]}" and "unexpected keyword argument" in five
    assert info == {
        "valid": True,
        "owner": "tool",
        "actions": [{"name": "add", "arguments": {"a": 2}}, {"name": "shout", "arguments": {"text": "hi"}}],
    }
    assert [each["valid"] for *_, each in steps] == [True, True, False, False, True, True]
    assert [each["owner"] for *_, each in steps] == ["tool"] * 5 + ["environment"]
    assert (six, done, reward) == ("", True, expected["reward"]) and end["metrics"] == expected["metrics"]
    assert end["metrics"]["total_tool_calls"] == 6 and end["metrics"]["add_calls"] == 2 and end["success"]


def test_what_a_client_is_given_back():
    """The trajectory as verifiers stores it: calls leave the text, and what cannot be read is no call it could make."""
    seen = []

    class Watching(vf.ToolEnv):
        async def add_trajectory_step(self, state, trajectory_step):
            seen.append(trajectory_step["completion"][0])
            await super().add_trajectory_step(state, trajectory_step)

    environment = Watching(tools=[add], dataset=ROWS, rubric=rubric())
    played(from_verifiers(environment), 0, ["Hm.\n" + call("add", a=2) + "<tool_call>{</tool_call> more", "3 {}"])
    assert [each.content for each in seen] == ["Hm.", "3 {}"]
    assert [(each.id, each.name, each.arguments) for each in seen[0].tool_calls] == [
        ("call_0", "add", '{"a": 2}'),
        ("call_1", "", ""),
    ]
    assert seen[1].tool_calls is None


def test_a_group_of_environments():
    def compared(completions):
        return [0.0] * len(completions)

    parts = [Guess(max_turns=3), tools(max_turns=5)]
    group = vf.EnvGroup(parts, env_names=["guess", "tools"])
    opened = open_environment(group)
    assert opened.max_turns == 5 and len(group.get_dataset()) == 6
    first, steps = played(opened.make, 1, ["6"])
    assert first == "Guess.\n\nWhat is 5 + 1?" and steps[-1][0] == "right" and steps[-1][2]
    first, steps = played(opened.make, 3, [call("add", a=2), "3"])
    assert first.endswith("What is 2 + 1?") and steps[0][0] == "add: 2 + 1 = 3"
    assert steps[-1][1] == 1.75 == peer(group, 3, [("", [("add", '{"a": 2}')]), ("3", [])])["reward"]
    assert steps[-1][3]["metrics"]["add_calls"] == 1
    assert open_environment(vf.EnvGroup([Guess(), tools()])).max_turns is None
    odd = vf.SingleTurnEnv(dataset=ROWS, rubric=vf.Rubric(funcs=[compared]))
    for refused in (odd, vf.EnvGroup([parts[0], odd])):
        with pytest.raises(BadInput, match="compare the rollouts of a group"):
            from_verifiers(refused)
    with pytest.raises(BadInput, match="score_rollouts=True"):
        from_verifiers(vf.SingleTurnEnv(dataset=ROWS, rubric=rubric(), score_rollouts=False))


@pytest.mark.parametrize(
    ("action", "sentence"),
    [("trouble", "InfraError.*the box is gone.*OSError.*no box"), ("stray", "KeyError: 'lost'")],
)
def test_what_fails_in_it_is_raised(action, sentence):
    environment = Guess()
    episode = from_verifiers(environment)()
    episode.reset(4)
    with pytest.raises(WorkFailed, match=f"Guess, row 1: {sentence}"):
        episode.step(action)
    with pytest.raises(BadInput, match="call reset"):
        episode.step("6")
    assert episode.reset(5).endswith("What is 7 + 1?") and environment.ended == [1]


def test_an_abandoned_episode_is_cancelled_and_nothing_is_left():
    environment, before = Guess(), threads()
    make = from_verifiers(environment)
    one, two = make(), make()
    one.reset(1), one.step("1"), two.reset(2), two.step("1"), two.step("2")
    assert len(threads() - before) == 1
    two.reset(2)
    in_time(lambda: environment.ended == [2])
    del one
    in_time(lambda: environment.ended == [2, 1])
    two.close()
    in_time(lambda: environment.ended == [2, 1, 0])
    del two, make
    in_time(lambda: threads() <= before)


def test_a_hang_is_named_and_others_go_on():
    environment = Guess()
    make = from_verifiers(environment, timeout=0.5)
    one, two = make(), make()
    one.reset(1), two.reset(1)
    with pytest.raises(WorkFailed, match=r"Guess, row 1: the environment has not answered within 0\.5 s\."):
        one.step("sleep")
    in_time(lambda: environment.ended == [1])
    assert two.step("6")[0] == "right" and one.reset(1) and one.step("6")[2]


def test_a_model_plays():
    torch = pytest.importorskip("torch")
    from chat_models import untaught
    from equipoise.language.episodes import play

    environment, before = Guess(max_turns=3), threads()
    rolled = play(
        untaught(0), open_environment(environment).make, [1, 3], samples=3, max_turns=2, max_new_tokens=4, temperature=1.0,
        seed=0,
    )  # fmt: skip
    assert [episode.outcome for episode in rolled.episodes] == ["turns"] * 3 + ["done"] * 3
    assert [len(episode.turns) for episode in rolled.episodes] == [2] * 6
    assert torch.equal(rolled.mask, rolled.owner == 1)
    in_time(lambda: len(environment.ended) == 6 and threads() <= before)
