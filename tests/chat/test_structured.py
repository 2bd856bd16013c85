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
        # What another notation holds is no less inside.
        ('{reasoning: "x", best: {"better": 2}, better: 1}', "no whole JSON object"),
        ('{reasoning: "a } b", best: {"better": 2}, better: 1}', "no whole JSON object"),
        ('{why: {"better": 2}, bet', "no whole JSON object"),
        ("{'draft': {\"better\": 2}, 'better': 1}", "no whole JSON object"),
        ('{ // the draft\n "draft": {"better": 2}, "better": 1}', "no whole JSON object"),
        ('{/* as asked */ "draft": {"better": 2}}', "no whole JSON object"),
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


def test_the_repair_question_word_by_word():
    call = Call((Message("user", "Which?"),), phase="judge", schema=Verdict)
    schema = (
        '{"properties": {"better": {"enum": [1, 2], "title": "Better", "type": "integer"}, "why": {"default": "", "title": '
        '"Why", "type": "string"}}, "required": ["better"], "title": "Verdict", "type": "object"}'
    )
    assert repair(call, "é", "no JSON").messages[-1].content == (
        "That answer cannot be used: no JSON.\nGive the same answer again as one JSON object and nothing else: no code "
        f"fence, no words around it. It must satisfy this JSON schema:\n{schema}"
    )


class Deep(BaseModel):
    rows: list[Verdict]
    first: int
    second: int
    third: int


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '{"rows": [{"better": 1}, {"better": 3}], "first": 1, "second": 1, "third": 1}',
            "rows.1.better: Input should be 1 or 2",
        ),
        (
            '{"rows": []}',
            "first: Field required; second: Field required; third: Field required",
        ),
        ("{}", "rows: Field required; first: Field required; second: Field required"),  # three at most
        ("[]", "Input should be an object"),
        (
            '{"better": 1} and {"a": 1, "a": 1, "a": 2}',
            "rows: Field required; first: Field required; second: Field required",
        ),
        ("nothing", "there is no whole JSON object in it"),
        ("<think>nothing", "there is thinking without an end, and nothing after it"),
    ],
)
def test_what_is_wrong_with_a_text(text, problem):
    with pytest.raises(Unfit) as caught:
        parse(text, Deep)
    assert str(caught.value).startswith(problem) and str(caught.value).count(";") == problem.count(";")


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ('{"better": 1}{"better": 2}', None),
        ('{"better": 1} , {"better": 2}', 2),
        ('{"better": 1}\n\n{"better": 1}', 1),
        ('{"better": 1} {"note": 1} {"better": 2}', None),
        ('{"better": 2} {"better": 1}. No: {"better": 2}', 2),
        ('{"note": 1} {"better": 2}', 2),
        ('{no} {"better": 2}', 2),
        ('\\frac{1}{2}, f^{\'}(x), \\{x : x > "0"\\} and {a: {b}} {"better": 2}', 2),
        ('{"better": 2} {no}', 2),
        ('{ "better": 2} { \n"broken', 2),
    ],
)
def test_which_of_several_objects_counts(text, better):
    if better is None:
        with pytest.raises(Unfit) as caught:
            parse(text, Verdict)
        assert str(caught.value) == "two objects that differ follow each other, and nothing says which one counts"
    else:
        assert parse(text, Verdict).better == better


class Odd(BaseModel):
    """What Inspect cannot carry, and what only looks like it."""

    default: int = Field(default=3, description="a field of that name", examples=[1])
    examples: Literal[7, 8] = 7
    one: Literal["a"]
    kind: Kind = Field(description="of two")


def test_a_schema_in_the_form_of_a_provider():
    pytest.importorskip("inspect_ai")
    odd = type("An odd näme" + "x" * 70, (Odd,), {"__doc__": Odd.__doc__, "__module__": __name__})
    sent = response_schema(odd)
    assert sent.name == "An_odd_n_me" + "x" * 53
    assert sent.json_schema.model_dump(exclude_none=True) == {
        "type": "object",
        "description": "What Inspect cannot carry, and what only looks like it.",
        "properties": {
            "default": {"type": "integer", "description": "a field of that name"},
            "examples": {"type": "integer", "enum": [7, 8]},
            "one": {"type": "string", "enum": ["a"]},
            "kind": {"type": "string", "enum": ["long", "short"], "description": "of two"},
        },
        "required": ["one", "kind"],
        "additionalProperties": False,
    }
    item = {
        "kind": {"type": "string", "enum": ["long", "short"]},
        "const": {"type": "string", "enum": ["fixed"]},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
    }
    closed = {"type": "object", "additionalProperties": False}
    listed = {"type": "array", "items": {**closed, "properties": item, "required": ["kind", "const", "score"]}}
    assert response_schema(Tree).json_schema.model_dump(exclude_none=True) == {
        **closed,
        "properties": {"items": listed, "other": {"anyOf": [{}, {"type": "null"}]}},  # within itself it is anything
        "required": ["items"],
    }
    assert response_schema(Verdict).name == "Verdict"


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ('{{"better": 2}}', 2),
        ('{a: "x"} {"better": 2}', 2),
        ('{a: {b}, c: {"better": 1}}', None),
        ('{a: {b}, c: {"better": 1}} {"better": 2}', 2),
        ('{"better": 2, "better": 1}', None),
        ('{"better": 2, "why": "a long one", "why": "a long one"}', 2),
        ('{"better": 2, "why": "b", "why": "a"}', None),
    ],
)
def test_braces_within_braces_and_fields_that_stand_twice(text, better):
    if better is None:
        with pytest.raises(Unfit, match="there is no whole JSON object in it"):
            parse(text, Verdict)
    else:
        assert parse(text, Verdict).better == better


class Lengths(BaseModel):
    metres: int = Field(description="Länge")


def test_a_schema_is_shown_in_the_letters_it_is_written_in():
    call = Call((Message("user", "?"),), "judge", schema=Lengths)
    assert '"description": "Länge"' in repair(call, "none", "no JSON").messages[-1].content
