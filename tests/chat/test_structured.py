"""Values in texts, and the schema that goes to a provider."""

import contextlib
from enum import Enum
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from equipoise.chat.calls import Call
from equipoise.chat.structured import Unfit, parse, repair, response_schema
from equipoise.data.records import Message


class Verdict(BaseModel):
    better: Literal[1, 2]
    why: str = ""


@pytest.mark.parametrize(
    "text",
    [
        '{"better": 2}',
        ' \n{"better": 2, "why": ""}\n',
        '```json\n{"better": 2}\n```',
        'Here you are: {"better": 2}. I hope it helps {you}.',
        'A set {1, 2} and {braces}; then {"better": 2}',
        'The form is {"better": "1 or 2"}; mine is {"better": 2}',
        'First {"better": 1}. On second thought: {"better": 2}',
        '{"better": 2} {"note": "done"}',
        '{"better": 2}\n{"better": 2, "why": ""}\n{"better": 2',
        '<think>{"better": 1}</think>\n{"better": 2}',
        '{"better": 1}\n</think>\n{"better": 2}',
        '{"better": 2, "better": 2}',
    ],
)
def test_the_last_fitting_object_is_taken(text):
    assert parse(text, Verdict) == Verdict(better=2)


def test_a_value_may_speak_of_thinking():
    assert parse('{"better": 1, "why": "it closes </think> twice"}', Verdict).why == "it closes </think> twice"


def test_half_a_surrogate_pair_that_json_spells_is_replaced():
    assert parse('{"better": 1, "why": "\\ud83d!"}', Verdict).why == "\ufffd!"


def test_line_breaks_within_strings_are_let_by():
    assert parse('{"better": 1, "why": "two\nlines"}', Verdict).why == "two\nlines"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no whole JSON object"),
        ("2", "Input should be an object"),
        ('{"better": NaN}', "no whole JSON object"),
        ("{'better': 2}", "no whole JSON object"),
        ('{"better": 3}', "better: Input should be 1 or 2"),
        ("{}", "better: Field required"),
        # An object that breaks off (cut at max_tokens) hides what is inside it; so does one that is not the answer.
        ('{"draft": {"better": 2}, "final": {"bet', "no whole JSON object"),
        ('{"draft": {"better": 2}}', "better: Field required"),
        ('So: {"draft": {"better": 2}}.', "better: Field required"),
        ('[{"better": 2}]', "Input should be an object"),
        ('{"better": 2} {"better": 1}', "two objects that differ"),
        ('{"better": 1, "better": 2}', "no whole JSON object"),
        ('<think>{"better": 2}', "thinking without an end"),
        ('{"a":' * 50_000, "no whole JSON object"),
        ("[" * 50_000, "no whole JSON object"),
    ],
)
def test_nothing_is_read_into_other_texts(text, problem):
    with pytest.raises(Unfit, match=problem):
        parse(text, Verdict)


@given(st.text())
def test_any_text_is_a_value_or_unfit(text):
    with contextlib.suppress(Unfit):
        assert isinstance(parse(text, Verdict), Verdict)


@given(st.text(alphabet=st.characters(exclude_characters="{}")), st.text(), st.text())
def test_a_value_survives_what_stands_around_it(before, why, after):
    value = Verdict(better=1, why=why)
    assert parse(before + value.model_dump_json() + after, Verdict) == value


class Kind(Enum):
    LONG = "long"
    SHORT = "short"


class Item(BaseModel):
    kind: Kind
    const: Literal["fixed"]
    score: float = Field(ge=0, le=1)


class Tree(BaseModel):
    items: list[Item]
    other: "Tree | None" = None


def test_the_schema_for_a_provider_has_no_references_and_keeps_what_inspect_can_carry():
    pytest.importorskip("inspect_ai")
    sent = response_schema(Tree).json_schema.model_dump(exclude_none=True)
    item = sent["properties"]["items"]["items"]
    assert item["properties"]["kind"]["enum"] == ["long", "short"]
    assert item["properties"]["const"] == {"type": "string", "enum": ["fixed"]}
    assert item["properties"]["score"] == {"type": "number", "minimum": 0, "maximum": 1}
    assert item["required"] == ["kind", "const", "score"] and item["additionalProperties"] is False
    assert sent["properties"]["other"]["anyOf"][1] == {"type": "null"}


def test_the_repair_question_shows_answer_error_and_schema():
    call = Call((Message("user", "Which?"),), phase="judge", schema=Verdict, max_tokens=99, sample=3)
    again = repair(call, "both", "no JSON")
    assert (again.phase, again.max_tokens, again.sample, again.schema) == ("judge/repair", 99, 3, Verdict)
    assert again.messages[:2] == (*call.messages, Message("assistant", "both"))
    assert "no JSON" in again.messages[2].content and '"better"' in again.messages[2].content
