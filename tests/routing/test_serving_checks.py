"""What a request may be: every wrong one is a 4xx that names the field, what needs the upstream is known."""

import asyncio
import json
import secrets
from types import SimpleNamespace

import pytest

from equipoise.data.records import Message
from equipoise.routing.serving_checks import RequestRefused, parse, read_body

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


def refused(**fields):
    """Whether the fields alone are wrong."""
    try:
        parsed(**fields)
    except RequestRefused as error:
        assert error.status == 400 and error.param in fields
        return True
    return False


@pytest.mark.parametrize(
    ("name", "least", "most", "step"),
    [
        ("temperature", 0, 2, 0.01),
        ("top_p", 0, 1, 0.01),
        ("frequency_penalty", -2, 2, 0.01),
        ("presence_penalty", -2, 2, 0.01),
        ("max_tokens", 1, 2**31, 1),
        ("max_completion_tokens", 1, 2**31, 1),
        ("seed", -(2**63), 2**63 - 1, 1),
        ("n", 1, 128, 1),
    ],
)
def test_numbers_may_be_what_the_interface_allows_ends_included(name, least, most, step):
    assert not refused(**{name: least}) and not refused(**{name: most}) and not refused(**{name: None})
    assert refused(**{name: least - step}) and refused(**{name: most + step}) and refused(**{name: True})


def test_what_is_sampled_where_nothing_is_said(monkeypatch):
    asked_bits = []
    monkeypatch.setattr(secrets, "randbits", lambda bits: asked_bits.append(bits) or 11)
    plain = parse(json.dumps(ASKED).encode(), temperature=0.7)
    assert (plain.stream, plain.include_usage, plain.needs, plain.model) == (False, False, "", "m")
    assert plain.body == json.dumps(ASKED).encode() and asked_bits == [62]
    sampling = plain.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.stop) == (0.7, 1.0, None, ())
    assert sampling.seed == 11
    given = parsed(seed=0, top_p=0, stop=["a", "b", "c", "d"], max_tokens=5, stream=True).sampling
    assert (given.seed, given.top_p, given.stop, given.max_tokens) == (0, 1e-9, ("a", "b", "c", "d"), 5)
    assert parse(json.dumps({**ASKED, "temperature": 0}).encode(), temperature=0.7).sampling.temperature == 0.0
    assert parse(json.dumps({**ASKED, "temperature": 1e-30}).encode()).sampling.temperature == 1e-30
    streamed = parsed(stream=True, stream_options={"include_usage": False, "include_obfuscation": True})
    assert streamed.stream is True and streamed.include_usage is False and streamed.needs == ""
    assert not refused(stream_options={}) and not refused(stream=None, stream_options=None) and refused(model="")


def of(*messages):
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        (of(("user", [{"type": "file"}])), "files"),
        (of(("user", [{"type": "video"}])), "content_part"),
        (of(("user", [{"type": "image_url"}, {"type": "file"}])), "images"),
        (of(("assistant", None)), "message_without_text"),
        (of(("user", [{"type": "file"}]), ("critic", "a")), "files"),
        (of(("critic", "a"), ("user", [{"type": "file"}])), "role"),
        (of(("critic", [{"type": "file"}])), "files"),
        (of(("critic", "a"), ("function", "4")), "tools"),
        (of(("user", "a"), ("assistant", "b"), ("system", "c"), ("developer", "d")), ""),
        ({"messages": [{"role": "assistant", "content": "a", "function_call": {}}]}, "tools"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": []}]}, ""),
        ({"tool_choice": "none", "function_call": "none", "top_logprobs": 0, "parallel_tool_calls": False}, ""),
        ({"top_logprobs": False}, "top_logprobs"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"logprobs": None, "tools": None, "n": None}, ""),
        ({"x" * 40: 1}, "x" * 40),
        ({"x" * 41: 1}, "unknown_field"),
        ({"n": 2, "stream": True, "stream_options": {"other": 1}}, "n"),
        ({**of(("critic", "a")), "n": 2}, "role"),
    ],
)
def test_the_first_need_is_told(fields, needs):
    assert parsed(**fields).needs == needs


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"[]", "The request is a JSON array; send an object."),
        (b'"a"', "The request is a JSON text; send an object."),
        (b"null", "The request is a JSON null; send an object."),
        (b"7", "The request is a JSON number; send an object."),
        (b"true", "The request is a JSON value; send an object."),
        (b"\xff", "The request is no UTF-8."),
        (b'{"a": }', "The request is no JSON (Expecting value, at character 6)."),
        (b'{"a": 1, "a": 2}', "The request is no JSON that can be read: it has a name twice in one object."),
        (b'{"a": 1e999}', "The request is no JSON that can be read: it has a number beyond 64 bits."),
        (b'{"a": NaN}', "The request is no JSON that can be read: it has NaN, which JSON does not know."),
        (b"1" * 5000, "The request is no JSON that can be read: it has a number of thousands of digits."),
    ],
)
def test_why_it_is_no_object_is_told(body, told):
    with pytest.raises(RequestRefused) as caught:
        parse(body)
    assert caught.value.message == told
    assert caught.value.plain() == {
        "error": {"message": told, "type": "invalid_request_error", "param": None, "code": None}
    }


def body_of(parts, *, most=10, seconds=5.0, wait=0.0, **headers):
    """What is read of a request of these parts; the status where it is refused."""

    async def stream():
        for part in parts:
            await asyncio.sleep(wait)
            yield part

    named = {name.replace("_", "-"): value for name, value in {"content_type": "application/json", **headers}.items()}
    request = SimpleNamespace(headers=named, stream=stream)
    try:
        return asyncio.run(read_body(request, most=most, seconds=seconds))  # pyright: ignore[reportArgumentType]
    except RequestRefused as error:
        return error.status


def test_a_body_is_read_up_to_its_limit():
    assert body_of([b"12345", b"67890"]) == b"1234567890" and body_of([]) == b""
    assert body_of([b"12345", b"678901"]) == 413
    assert body_of([b"1"], content_length="10") == b"1" and body_of([b"1"], content_length="11") == 413
    assert body_of([b"1"], content_length="0" * 17 + "5") == b"1"
    assert body_of([b"1"], content_length="0" * 18 + "5") == 413  # more digits than a length has
    assert body_of([b"1"], content_length="many") == b"1"
    assert body_of([b"1"], content_encoding="identity") == b"1" == body_of([b"1"], content_encoding="Identity")
    assert body_of([b"1"], content_encoding="gzip") == 415
    assert body_of([b"1"], content_type="Application/JSON ; charset=utf-8") == b"1"
    assert body_of([b"1"], content_type="text/plain") == 415 == body_of([b"1"], content_type="")
    assert body_of([b"1", b"2"], wait=0.2, seconds=0.1) == 408


def test_an_error_is_told_as_the_interface_tells_it():
    error = RequestRefused(413, "too large", param="messages", code="request_too_large", headers={"a": "b"})
    assert (error.status, error.headers, RequestRefused(400, "x").headers) == (413, {"a": "b"}, {})
    told = {"message": "too large", "type": "invalid_request_error", "param": "messages", "code": "request_too_large"}
    assert error.plain() == {"error": told}
