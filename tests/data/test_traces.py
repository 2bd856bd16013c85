"""Traces as they are logged: whose reply is whose, which tokens are the text's, which rows are one trace, refusals."""

import gc
import gzip
import json
import math
import re

import numpy as np
import pytest

from equipoise.core.errors import BadInput
from equipoise.data.tools import ToolEnvironment, ToolTask
from equipoise.data.traces import read_traces

NAN = math.nan


def call(identifier, tool="search", **arguments):
    return {"id": identifier, "type": "function", "function": {"name": tool, "arguments": json.dumps(arguments)}}


def logged(text, *others):
    """Log-probabilities in OpenAI's form: each token with p = 0.5 and others behind it."""
    tokens = re.findall(r"\s*\S+", text)
    listed = [{"token": f"x{k}", "logprob": value} for k, value in enumerate(others)]
    own = [{"token": token, "logprob": math.log(0.5)} for token in tokens]
    return {"content": [{**each, "top_logprobs": [each, *listed]} for each in own]}


def says(text, *calls, **more):
    return {"role": "assistant", "content": text, **({"tool_calls": list(calls)} if calls else {}), **more}


def told(identifier, text, **more):
    return {"role": "tool", "tool_call_id": identifier, "content": text, **more}


ASKED = {"role": "user", "content": "Where is Oslo?"}


def trace_of(*messages, **row):
    (trace,) = read_traces([{"messages": [ASKED, *messages], **row}])
    return trace


def test_replies_go_to_their_calls_whatever_their_order():
    trace = trace_of(
        says("I look.", call("a", q=1), call("b", "open", q=2), call("c", q=3)),
        told("b", "second"),
        told("nobody", "stray"),
        told("a", "first"),
        told("b", "again"),
        says("So."),
        told(None, "stray"),
    )
    assert [(c.tool, c.arguments, c.reply) for c in trace.turns[0].calls] == [
        ("search", '{"q": 1}', "first"),
        ("open", '{"q": 2}', "second"),
        ("search", '{"q": 3}', None),
    ]
    assert trace.strays == 3
    assert trace.calls == 3
    assert (trace.answer, len(trace.turns)) == ("So.", 2)


def test_an_identifier_that_comes_again_is_that_of_the_last_call():
    trace = trace_of(says("", call("0", q=1)), told("0", "one"), says("", call("0", q=2)), told("0", "two"), says("x"))
    assert [turn.calls[0].reply for turn in trace.turns[:2]] == ["one", "two"]


def test_replies_without_identifiers_come_in_order():
    legacy = {"role": "assistant", "content": None, "function_call": {"name": "old", "arguments": "{}"}}
    trace = trace_of(legacy, {"role": "function", "name": "old", "content": "it"}, says("x"))
    assert (trace.turns[0].calls[0].tool, trace.turns[0].calls[0].reply) == ("old", "it")
    both = says("", {"function": {"name": "a", "arguments": {"k": [1]}}}, {"function": {"name": "b"}})
    trace = trace_of(both, {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"})
    assert [(c.tool, c.arguments, c.reply) for c in trace.turns[0].calls] == [("a", '{"k": [1]}', "1"), ("b", "", "2")]


def test_calls_in_the_text_and_replies_of_the_user():
    text = 'I look. <tool_call>\n{"name": "s", "arguments": {"q": 1}}\n</tool_call><tool_call>nonsense</tool_call>'
    reply = "<tool_response>\none\n</tool_response>\n<tool_response>two</tool_response>"
    trace = trace_of(says(text, logprobs=logged(text)), {"role": "user", "content": reply}, says("Done."))
    assert trace.turns[0].text == "I look."
    assert [(c.tool, c.arguments, c.reply) for c in trace.turns[0].calls] == [
        ("s", '{"q": 1}', "one"),
        ("", "nonsense", "two"),
    ]
    assert len(trace.turns[0].log_probs) == 2  # the call's own tokens are left out
    assert trace.turns[1].before == ()
    later = trace_of(
        says(text), {"role": "tool", "content": "it"}, says("Done."), {"role": "user", "content": "More"}, says("y")
    )
    assert [c.reply for c in later.turns[0].calls] == ["it", None]
    assert later.turns[2].before == (("user", "More"),)


def test_only_tokens_of_the_text_are_kept_where_the_call_is_logged_too():
    said = 'I look it up. {"name": "search", "arguments": {"q": 1}}'
    trace = trace_of(says("I look it up.", call("a", q=1), logprobs=logged(said)))
    assert len(trace.turns[0].log_probs) == 4
    # Other syntax: the text ends where it ends, also behind a thought that holds its words.
    said = "I look it up? Yes. I look it up. search[q=1]"
    trace = trace_of(
        says("I look it up.", call("a", q=1), reasoning_content="I look it up? Yes.", logprobs=logged(said))
    )
    assert len(trace.turns[0].log_probs) == 9
    assert trace.turns[0].text == "I look it up? Yes.\nI look it up."
    # What these tokens spell is not what was said: nothing is known of the text.
    assert trace_of(says("I look.", call("a", q=1), logprobs=logged("search[q=1]"))).turns[0].log_probs is None
    # Without a text there is nothing to know.
    assert trace_of(says(None, call("a", q=1), logprobs=logged("search[q=1]"))).turns[0].log_probs.shape == (0, 0)
    assert trace_of(says("I look.")).turns[0].log_probs is None
    assert trace_of(says("I look.", logprobs={"content": None})).turns[0].log_probs is None
    chosen = {"content": [{"token": "I look.", "logprob": -0.5}]}  # alternatives were not asked for
    assert trace_of(says("I look.", logprobs=chosen)).turns[0].log_probs is None


def test_alternatives_are_those_known_to_be_the_likeliest():
    content = [
        {"token": "a", "logprob": -3.0, "top_logprobs": [{"logprob": -0.5}, {"logprob": -1.5}, {"logprob": -3.0}]},
        {"token": "b", "logprob": -0.25, "top_logprobs": [{"logprob": -0.25}]},
        {"token": "c", "logprob": -9999.0, "top_logprobs": [{"logprob": -0.1}, {"logprob": -2.5}]},
        {"token": "d", "logprob": -0.1, "top_logprobs": []},
    ]
    (turn,) = trace_of(says("abcd", logprobs={"content": content})).turns
    # -3.0 was chosen and is the least: a token that is not listed may be likelier.
    expected = [[-0.5, -1.5, NAN], [-0.25, NAN, NAN], [-0.1, -2.5, NAN], [NAN, NAN, NAN]]
    np.testing.assert_array_equal(turn.log_probs, expected)


def test_two_messages_of_the_assistant_in_a_row_are_one_turn():
    one = says("I think.", logprobs=logged("I think."), usage={"completion_tokens": 3}, latency=1.5)
    two = says(
        "Now.", call("a"), logprobs=logged("Now.", -1.0), usage={"completion_tokens": 9}, latency_ms=500, price=0.25
    )
    (turn,) = trace_of(one, two).turns
    assert (turn.text, len(turn.calls), turn.tokens, turn.seconds, turn.price) == ("I think.\nNow.", 1, 12, 2.0, 0.25)
    np.testing.assert_array_equal(turn.log_probs, [[math.log(0.5), NAN]] * 2 + [[math.log(0.5), -1.0]])
    apart = trace_of(says("I think.", call("b")), two)
    assert len(apart.turns) == 2


def test_costs_are_those_of_messages_of_either_side():
    trace = trace_of(
        says("x", call("a"), usage={"cost": 0.5, "completion_tokens": None}), told("a", "y", latency=3, cost=2)
    )
    (turn,) = trace.turns
    assert (turn.price, turn.tokens, turn.calls[0].seconds, turn.calls[0].price) == (0.5, None, 3.0, 2.0)
    assert math.isnan(turn.seconds)


def request(messages, said, **more):
    return {
        "request": {"messages": messages},
        "response": {"choices": [{"message": said, "logprobs": logged("a b")}]},
        **more,
    }


def test_a_request_that_begins_with_an_earlier_one_and_its_response_goes_on_with_it():
    first = says("a b", call("k", q=1), refusal=None)
    again = [ASKED, {name: first[name] for name in ("role", "content", "tool_calls")}, told("k", "it")]
    rows = [
        request([ASKED], first, id="one"),
        request([ASKED], first, id="two"),  # another sample that began alike
        request(again, says("c d", logprobs=None), success=True),
        {
            "messages": again,
            "choices": [{"message": says("other")}],
            "success": False,
            "usage": {"completion_tokens": 7},
        },
        request([{"role": "user", "content": "Else?"}], says("a b"), id="three"),
    ]
    one, two, three = read_traces(rows)
    assert [each.id for each in (one, two, three)] == ["one", "two", "three"]
    assert [(t.text, [c.reply for c in t.calls]) for t in one.turns] == [("a b", ["it"]), ("c d", [])]
    assert [t.text for t in two.turns] == ["a b", "other"]
    assert (one.score, two.score, three.score) == (1.0, 0.0, None)
    assert (len(one.turns[0].log_probs), two.turns[1].tokens, len(three.turns)) == (2, 7, 1)


def test_several_choices_are_several_traces():
    batch = {"response": {"body": {"choices": [{"message": says("a")}, {"message": says("b")}]}}, "custom_id": 5}
    traces = read_traces([{"request": {"body": {"messages": [ASKED]}}, **batch}])
    assert [(each.id, each.answer) for each in traces] == [("5/0", "a"), ("5/1", "b")]


def test_episodes_of_ours():
    action = {"name": "find", "arguments": {"key": "a"}}
    turns = [
        {"text": f"<tool_call>{json.dumps(action)}</tool_call>", "reply": "b", "info": {"actions": [action]}},
        {"text": "Answer: b", "reply": "", "info": {"success": True}},
    ]
    (trace,) = read_traces([{"seed": 3, "first": "Find it.", "turns": turns, "score": 0.25}])
    assert trace.turns[0].before == (("user", "Find it."),)
    assert [(c.tool, c.arguments, c.reply) for c in trace.turns[0].calls] == [("find", '{"key": "a"}', "b")]
    assert (trace.turns[0].text, trace.answer, trace.score) == ("", "Answer: b", 0.25)


@pytest.mark.parametrize(
    ("row", "gold", "answer", "score"),
    [
        ({"answer": "Norway"}, ("Norway",), "It is.", None),
        ({"answer": "said", "gold": ["a", "b"]}, ("a", "b"), "said", None),
        ({"gold": 12}, ("12",), "It is.", None),
        ({"reward": 0.5, "score": 0.75}, (), "It is.", 0.75),
        ({"reward": 0.5, "success": False}, (), "It is.", 0.0),
        ({}, (), "It is.", None),
    ],
)
def test_how_it_ended(row, gold, answer, score):
    trace = trace_of(says("It is."), **row)
    assert (trace.gold, trace.answer, trace.score) == (gold, answer, score)


def test_files_are_read_in_order_with_unique_ids(tmp_path):
    rows = [{"messages": [ASKED, says("x")], "group": "g"}, {"messages": [ASKED], "trace_id": 7, "vocabulary": 50}]
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    first, second = read_traces(path)
    assert (first.id, first.group, first.place) == ("t-1", "g", f"{path}:1")
    assert (second.id, second.group, second.vocabulary, second.answer) == ("7", "7", 50, "")
    assert [each.id for each in read_traces(path, limit=1)] == ["t-1"]


ONE = [ASKED, says("x")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x"}, "no trace (found: prompt), expected messages"),
        ({"messages": "x"}, "field 'messages': expected a list of messages"),
        ({"messages": ["x"]}, "one that is text 'x'"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "the role 'bot'"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "type tool_result; convert"),
        ({"messages": ONE, "choices": []}, "at least one choice"),
        ({"messages": ONE, "choices": [{"text": "x"}]}, "choices with a message"),
        ({"messages": [says("x", logprobs=[0.1])]}, "logprob and top_logprobs"),
        ({"messages": [says("x", logprobs={"tokens": ["x"]})]}, "field 'logprobs'"),
        ({"messages": [says("x", logprobs={"content": [{"token": "x"}]})]}, "KeyError: 'logprob'"),
        ({"messages": [says("x", logprobs=logged("x", 0.3))]}, "natural logarithms of probabilities, at most 0"),
        ({"messages": [says("x", logprobs=logged("x", -0.1))]}, "sum to at most 1"),
        ({"messages": ONE, "success": "yes"}, "expected true, false or a number"),
        ({"messages": ONE, "vocabulary": 0}, "how many tokens the model knows"),
        ({"messages": ONE, "id": ["a"]}, "text or a number"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(row, said):
    good = {"messages": ONE}
    with pytest.raises(BadInput) as caught:
        read_traces([good, row])
    assert str(caught.value).startswith("row 2: ") and said in str(caught.value)


def test_what_is_no_set_of_traces(tmp_path):
    assert gc.isenabled()
    with pytest.raises(BadInput, match="row 2: id 'a' was used before at row 1; make ids unique"):
        read_traces([{"id": "a", "messages": ONE}, {"id": "a", "messages": ONE}])
    (tmp_path / "empty.jsonl").write_text("")
    assert gc.isenabled()  # also behind a refusal
    with pytest.raises(BadInput, match=r"empty.jsonl is empty: expected at least one trace"):
        read_traces(tmp_path / "empty.jsonl")
    with pytest.raises(BadInput, match="limit is 0"):
        read_traces([], limit=0)


def episode_replies(reply, *names):
    turns = [
        {"text": "think", "reply": reply, "info": {"actions": [{"name": name, "arguments": {}} for name in names]}}
    ]
    (trace,) = read_traces([{"first": "q", "turns": [*turns, {"text": "done"}]}])
    return [call.reply for call in trace.turns[0].calls]


@pytest.mark.parametrize(
    ("reply", "names", "replies"),
    [
        ("search: A\nlookup: B", ("search", "lookup"), ["A", "B"]),
        ("search: A\nmore\n\nsearch: B", ("search", "search"), ["A\nmore\n", "B"]),
        ("No tool 'x'.\nget: A\nget_all: B", ("get", "get_all"), ["No tool 'x'.\nA", "B"]),
        ("search: A", ("search",), ["search: A"]),
        ("search: A\nlookup: in it\nlookup: B", ("search", "lookup"), ["search: A\nlookup: in it\nlookup: B", None]),
        ("lookup: B\nsearch: A", ("search", "lookup"), ["lookup: B\nsearch: A", None]),
        ("both", ("search", "lookup"), ["both", None]),
    ],
)
def test_a_reply_to_several_calls_of_an_episode_is_cut_at_their_names(reply, names, replies):
    assert episode_replies(reply, *names) == replies


def test_what_the_environment_of_tools_replies_is_found_again():
    tools = {"add": lambda a, b: a + b, "tell": lambda: "two\nlines"}
    environment = ToolEnvironment([ToolTask("?", "7", kind="number")], tools)
    environment.reset(0)
    calls = [{"name": "add", "arguments": {"a": 3, "b": 4}}, {"name": "tell", "arguments": {}}]
    text = "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls)
    reply, _, _, info = environment.step(text)
    (trace,) = read_traces([{"first": "?", "turns": [{"text": text, "reply": reply, "info": info}, {"text": "7"}]}])
    assert [call.reply for call in trace.turns[0].calls] == ["7", "two\nlines"]


def test_a_reply_in_parts_is_its_text():
    parts = [{"type": "text", "text": "one "}, {"type": "image_url"}, {"type": "text", "text": None}, {"text": "two"}]
    trace = trace_of(says("I look.", call("a", q=1)), told("a", parts), says([{"type": "text", "text": "So."}]))
    assert (trace.turns[0].calls[0].reply, trace.answer) == ("one two", "So.")
    for kind in ("tool_use", "tool_result"):
        with pytest.raises(BadInput, match=f"a part of the type {kind}"):
            trace_of(says([{"type": "text", "text": "a"}, {"type": kind}]))


def test_a_call_that_cannot_be_read_is_kept_as_it_is():
    calls = [
        {"function": {"name": ""}},
        {"function": "é"},
        {"function": {"name": 3}},
        {"custom": {"name": "c", "input": "x"}},
    ]
    trace = trace_of(says("", *calls), says("x"))
    assert [(c.tool, c.arguments) for c in trace.turns[0].calls] == [
        ("", '{"name": ""}'),
        ("", '"é"'),
        ("", '{"name": 3}'),
        ("c", "x"),
    ]


def test_only_messages_in_a_row_are_one_turn_and_calls_of_the_last_are_answered():
    trace = trace_of(says("One.", call("a", q=1)), told("a", "first"), says("Two."), says("Three."))
    assert [(turn.text, len(turn.calls)) for turn in trace.turns] == [("One.", 1), ("Two.\nThree.", 0)]
    several = trace_of(says("One."), ASKED, says("Two.", call("a", q=1)), says("Three."))
    assert [turn.text for turn in several.turns] == ["One.", "Two.", "Three."]
    loose = {"role": "tool", "content": "no id"}
    second = trace_of(says("One.", call("a", q=1)), says("Two.", call("b", q=2)), loose)
    assert [[each.reply for each in turn.calls] for turn in second.turns] == [[None], ["no id"]]
