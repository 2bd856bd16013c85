"""What a request may be: every wrong one is a 4xx that names the field, what needs the upstream is known."""

import json

import pytest

from equipoise.data.records import Message
from equipoise.routing.serving_checks import RequestRefused, parse

ASKED = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def parsed(**fields):
    return parse(json.dumps({**ASKED, **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages[0].content"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": True}, "max_completion_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"n": 0}, "n"),
        ({"n": "2"}, "n"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"tools": {}}, "tools"),
        ({"response_format": "json"}, "response_format"),
        ({"logprobs": 1}, "logprobs"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"user": {}}, "user"),
    ],
)
def test_a_field_of_a_wrong_type_or_range_is_named(fields, param):
    with pytest.raises(RequestRefused) as caught:
        parsed(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    told = caught.value.plain()["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert param in told["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"7",
        b"\xff\xfe",
        b'{"model": "m", "messages": NaN}',
        b'{"model": "m", "messages": 1e999}',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"model": ' + b"1" * 5000 + b"}",
        b'{"model": "m", "model": "n"}',
        b'{"model": "m", "messages": [{"role": "user", "role": "system", "content": "a"}]}',
        b'{"model": "m", "messages": [{"role": "user", "content": "a"}]} {}',
    ],
)
def test_what_is_no_json_object_is_refused(body):
    with pytest.raises(RequestRefused) as caught:
        parse(body)
    assert caught.value.status == 400
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "text", "strict": True}}, "response_format"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": -100}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"brand_new": 0}, "brand_new"),
        ({"brand\nnew: x": 1}, "unknown_field"),
        ({"n": 1, "x" * 300: 1}, "unknown_field"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options_other"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "images"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "audio"),
        ({"messages": [{"role": "tool", "content": "4", "tool_call_id": "c"}]}, "tools"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "tools"),
        ({"messages": [{"role": "critic", "content": "a"}]}, "role"),
        ({"messages": [{"role": "user", "content": "a", "name": "Ann"}]}, "message_field"),
    ],
)
def test_what_the_local_model_cannot_do_is_known(fields, needs):
    assert parsed(**fields).needs == needs


def test_what_asks_for_nothing_needs_nobody():
    asked = parsed(
        tools=[], tool_choice="auto", response_format={"type": "text"}, n=1, logprobs=False, frequency_penalty=0,
        presence_penalty=0.0, logit_bias={}, user="u", metadata={"a": "b"}, store=False, functions=None,
        parallel_tool_calls=True, modalities=["text"], service_tier="auto",
    )  # fmt: skip
    assert asked.needs == ""


def test_what_is_read_of_a_request():
    asked = parsed(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": None, "annotations": []},
            {"role": "user", "content": "d"},
        ],
        stream=True, stream_options={"include_usage": True}, temperature=0.5, top_p=0, max_tokens=9, max_completion_tokens=7,
        stop="END", seed=-3,
    )  # fmt: skip
    assert asked.messages == (
        Message("system", "be brief"), Message("user", "ab"), Message("assistant", "c"), Message("user", "d"),
    )  # fmt: skip
    assert asked.needs == ""
    assert (asked.model, asked.stream, asked.include_usage) == ("m", True, True)
    sampling = asked.sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.stop, sampling.seed) == (0.5, 7, ("END",), -3)
    assert 0 < sampling.top_p < 1e-6


def test_without_a_seed_each_request_has_its_own():
    assert parsed().sampling.seed != parsed().sampling.seed


@pytest.mark.parametrize(("given", "used"), [(0, 0.0), (1e-320, 0.0), (1e-9, 1e-9), (2, 2.0)])
def test_a_temperature_that_no_logit_can_be_divided_by_is_greedy(given, used):
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}], "temperature": given}
    assert parse(json.dumps(body).encode()).sampling.temperature == used
