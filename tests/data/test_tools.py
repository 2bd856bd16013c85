"""A tool set as an environment: how calls and answers are read, made, refused, cut and scored."""

import json

import pytest

from equipoise.core.errors import BadInput
from equipoise.data.environment import Environment, open_environment
from equipoise.data.tools import ToolEnvironment, ToolTask, _behind_thinking, _call, described, read_action

SEARCH = {"name": "search", "arguments": {"query": "Ulysses"}}
JSON = json.dumps(SEARCH)


def search(query: str, limit: int = 1) -> str:
    """Find paragraphs
    about the query.

    More that nobody is shown.
    """
    return f"{limit} about {query}"


def table(rows: int):
    return [{"row": row, "größe": row / 2} for row in range(rows)]


def broken(text: str) -> str:
    raise ValueError(f"no {text}")


TASKS = [
    ToolTask("Who wrote {Ulysses}?", ("James Joyce", "Joyce"), kind="exact"),
    ToolTask("How many?", "1,200", kind="number", no_call=0.25),
    ToolTask("Which?", "a spirit"),
    ToolTask("Long?", "", score=lambda answer, task: len(answer) - 2.0),
]
TOOLS = {"search": search, "table": table, "broken": broken, "dict": dict}


def begun(seed=0, **changes):
    environment = ToolEnvironment(TASKS, TOOLS, **changes)
    environment.reset(seed)
    return environment


@pytest.mark.parametrize(
    "said",
    [
        f"I look.\n<tool_call>{JSON}</tool_call>",
        f"<tool_call>\n```json\n{JSON}\n```\n</tool_call>",
        f"<TOOL_CALL>{JSON}",  # cut by a stop word
        f"I look: {JSON} and wait.",
        f"<tool_call>{SEARCH}</tool_call>",  # as Python prints it
        '<tool_call>{"function": {"name": "search", "arguments": "{\\"query\\": \\"Ulysses\\"}"}}</tool_call>',
        '<tool_call>{"name": "search", "parameters": {"query": "Ulysses"}}</tool_call>',
        f"<think>First {json.dumps({'name': 'search', 'arguments': {'query': 'no'}})}? <answer>no</answer></think>{JSON}",
    ],
)
def test_calls_as_models_write_them(said):
    action = read_action(said)
    assert action.calls == (SEARCH,)
    assert action.answer is None
    assert said[action.call_at :].lower().startswith(("<tool_call>", "{"))
    assert "look" not in said[action.call_at :]


def test_several_calls_keep_their_order_and_their_faults():
    more = {"name": "table", "arguments": {"rows": 2}}
    both = (
        f"a <tool_call>{JSON}</tool_call> b <tool_call>{{nonsense}}</tool_call><tool_call>[{JSON}, {json.dumps(more)}]"
    )
    action = read_action(both)
    assert [call if isinstance(call, dict) else "?" for call in action.calls] == [SEARCH, "?", SEARCH, more]
    assert "'{nonsense}'" in action.calls[1] and "<tool_call>" in action.calls[1]
    assert action.call_at == 2
    assert read_action(f"x {JSON}, {json.dumps(more)}").calls == (SEARCH, more)
    no_name = read_action('<tool_call>{"query": "x"}</tool_call>').calls[0]
    assert "no name and arguments" in no_name


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("<answer> James\nJoyce </answer>", "James\nJoyce"),
        ("<answer>no</answer> wait <answer>yes", "yes"),
        ("So:\n**Final answer:** Joyce", "Joyce"),
        ("Answer: a\nAnswer: b\nThat is all.", "b"),
        ("The answer is: 7", "7"),
        ("Its answer may be: 7", None),
        ("<think>Answer: no</think>Answer: yes", "yes"),
        ('<answer>{"name": "x", "arguments": {}}</answer>', '{"name": "x", "arguments": {}}'),
        ("I do not know.", None),
    ],
)
def test_answers(said, answer):
    action = read_action(said)
    assert (action.answer, action.calls, action.call_at) == (answer, (), None)


def test_braces_without_end_are_read_in_time_and_are_no_calls():
    for said in ("{" * 3000, '{"a":' * 1000, "[" * 100_000, "<tool_call>" + "[" * 100_000):
        assert not any(isinstance(call, dict) for call in read_action(said).calls)


def test_what_is_shown_first():
    environment = ToolEnvironment(TASKS, TOOLS)
    assert isinstance(environment, Environment)
    first = environment.reset(4)
    assert first == environment.reset(0)
    assert first.endswith("Question: Who wrote {Ulysses}?")
    assert "search(query: str, limit: int = 1) -> str: Find paragraphs about the query.\n" in first
    assert "Nobody" not in first and described("dict", dict).startswith("dict(")
    own = ToolEnvironment(TASKS, {"t": table}, instructions="{question} / {tools}").reset(1)
    assert own == "How many? / t(rows: int)"
    opened = open_environment(lambda: ToolEnvironment(TASKS, TOOLS, max_turns=3, chance={"success": 0.5}))
    assert opened.max_turns == 3 and opened.chance == {"success": 0.5} and opened.instances == len(TASKS)


def test_a_call_is_told_what_it_gives():
    reply, reward, done, info = begun().step(f"so {JSON}")
    assert (reply, reward, done) == ("1 about Ulysses", 0.0, False)
    assert info["owner"] == "tool" and info["valid"] and info["actions"] == [SEARCH]
    assert info["call_at"] == 3 and info["errors"] == [False] and info["no_call"] == 1.0
    reply = begun().step('{"name": "table", "arguments": {"rows": 2}}')[0]
    assert reply == '[{"row": 0, "größe": 0.0}, {"row": 1, "größe": 0.5}]'


def test_parallel_calls_are_one_step_and_faults_are_their_own():
    said = (
        f"<tool_call>{JSON}</tool_call><tool_call>{{</tool_call>"
        '<tool_call>{"name": "serch", "arguments": {}}</tool_call>'
        '<tool_call>{"name": "search", "arguments": {"q": 1}}</tool_call>'
        '<tool_call>{"name": "broken", "arguments": {"text": "\\ud800"}}</tool_call> <answer>Joyce</answer>'
    )
    reply, reward, done, info = begun().step(said)
    lines = reply.split("\n")
    assert lines[0] == "search: 1 about Ulysses"
    assert "no JSON" in lines[1]
    assert lines[2] == "There is no tool 'serch'. Did you mean 'search'?"
    assert lines[3].startswith("search cannot be called so: ") and "search(query: str" in lines[3]
    assert lines[4] == "broken: Error: ValueError: no \ufffd"  # what cannot be encoded would end the run
    assert lines[5].startswith("The answer was not read")
    assert (reward, done, info["valid"], info["owner"]) == (0.0, False, False, "tool")
    assert [call["name"] for call in info["actions"]] == ["search", "broken"] and info["errors"] == [False, True]


def test_calls_that_cannot_be_made_are_the_environments_reply():
    reply, _, done, info = begun().step("<tool_call>{}</tool_call>")
    assert "no name and arguments" in reply and not done
    assert (info["valid"], info["owner"], info["actions"]) == (False, "environment", [])
    for said in ("I wonder.", "<answer> </answer>", "<think>I wonder"):
        reply, _, done, info = begun().step(said)
        assert "<tool_call>" in reply and "<answer>" in reply and not done and not info["valid"]
    assert reply.startswith("The thinking did not end.")


def test_long_replies_are_cut_with_a_note():
    call = json.dumps({"name": "search", "arguments": {"query": "x" * 50}})
    assert begun(max_reply=20).step(call)[0] == "1 about xxxxxxxxxxxx [38 more characters]"
    assert begun(max_reply=58).step(call)[0] == "1 about " + "x" * 50
    empty = ToolEnvironment(TASKS, {"none": lambda: ""})
    empty.reset(0)
    assert empty.step('{"name": "none", "arguments": {}}')[0] == "(nothing)"


def test_answers_are_scored_as_the_task_says():
    assert begun(0).step("<answer>the Joyce!</answer>")[1:3] == (1.0, True)
    _, reward, done, info = begun(1).step("Answer: 1200.5")
    assert (reward, done, info["success"], info["no_call"]) == (0.0, True, False, 0.25)
    assert info["reason"]
    assert begun(2).step("<answer>evil spirit</answer>")[1] == pytest.approx(2 / 3)
    _, reward, _, info = begun(3).step("<answer>abcd</answer>")
    assert (reward, info["success"]) == (2.0, True)


def test_what_is_refused():
    for tasks, tools, changes, named in (
        ([], TOOLS, {}, "0 tasks"),
        (TASKS, {}, {}, "0 tools"),
        (TASKS, {"a": 3}, {}, "'a' is a int"),
        (TASKS, TOOLS, {"max_reply": 0}, "max_reply 0"),
        (TASKS, TOOLS, {"instructions": "{question}"}, "no {tools}"),
    ):
        with pytest.raises(BadInput, match=named):
            ToolEnvironment(tasks, tools, **changes)
    with pytest.raises(BadInput, match="no number"):
        ToolEnvironment([ToolTask("?", "many", kind="number")], TOOLS).reset(0)
    with pytest.raises(BadInput, match="no_call"):
        ToolTask("?", "a", no_call=2)
    with pytest.raises(BadInput, match="kind"):
        ToolTask("?", "a", kind="em")  # type: ignore[arg-type]


def test_what_cannot_be_read_is_shown_up_to_80_characters():
    for inner in ("a" * 90, '{"x": "' + "b" * 90 + '"}'):
        (said,) = read_action(f"<tool_call>{inner}</tool_call>").calls
        shown = inner if inner[0] == "a" else repr(json.loads(inner))
        assert shown[:80] in said and shown[:81] not in said
    (deep,) = read_action(f"<tool_call>{'[' * 100000}</tool_call>").calls
    assert deep.startswith("This call is no JSON")


@pytest.mark.parametrize(("credit", "success"), [(1.0, True), (0.99, False), (1.5, True), (0.0, False)])
def test_a_full_score_is_a_success(credit, success):
    tools = {"add": lambda a: a}
    environment = ToolEnvironment([ToolTask("Q?", "x", score=lambda answer, task: credit)], tools)
    environment.reset(0)
    assert environment.step("nothing")[1:3] == (0.0, False)
    _, reward, done, info = environment.step("<answer>x</answer>")
    assert (reward, done, info["success"]) == (credit, True, success)


@pytest.mark.parametrize("arguments", ["no JSON", "[" * 200_000, "[1]", "3", None, 3])
def test_arguments_that_are_no_object_make_no_call(arguments):
    assert _call({"name": "add", "arguments": arguments}) is None
    assert _call({"function": {"name": "add", "arguments": '{"a": 1}'}}) == {"name": "add", "arguments": {"a": 1}}
    assert _call({"name": "add"}) == {"name": "add", "arguments": {}}
    assert _call({"name": "add"}, arguments=True) is None


def test_what_two_texts_end_in():
    assert _behind_thinking("<think>ab</think>de", "abde") == len("<think>ab</think>")
    assert _behind_thinking("abXde", "abYde") == 3 and _behind_thinking("ab", "ab") == 0 == _behind_thinking("", "")
