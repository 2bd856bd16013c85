"""Templates: what is filled in stays text, what is wrong in a file is named with its line."""

import hashlib
import os
import re
from importlib import resources
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.chat.templates import Template
from equipoise.core.errors import BadInput
from equipoise.data.records import Message

PLAIN = """---
question: text
answers: list
count: integer
share: number

mode: brief|thorough
---

# system
You compare. Be {{mode}}.

# user

Which of {{ count }} ({{share}}):
{{answers}}

\\# user
{{question}}? {{question}}! JSON: \\{{"a": {"b": 1}}

"""
VALUES = {"question": "Why", "answers": ["one", "two\nlines"], "count": 2, "share": 0.5, "mode": "brief"}


def read(tmp_path, text: str) -> Template:
    path = tmp_path / "compare.txt"
    path.write_text(text, encoding="utf-8", newline="")
    return Template.read(path)


def test_a_template_by_hand(tmp_path):
    template = read(tmp_path, PLAIN)
    assert dict(template.slots) == {
        "question": "text",
        "answers": "list",
        "count": "integer",
        "share": "number",
        "mode": "brief|thorough",
    }
    assert template.render(**VALUES) == (
        Message("system", "You compare. Be brief."),
        Message("user", 'Which of 2 (0.5):\n1. one\n2. two\nlines\n\n# user\nWhy? Why! JSON: {{"a": {"b": 1}}'),
    )
    assert template.digest == hashlib.sha256(PLAIN.encode()).hexdigest()
    assert read(tmp_path, PLAIN.replace("\n", "\r\n")).render(**VALUES) == template.render(**VALUES)
    assert Template.read(str(tmp_path / "compare.txt")) == Template.read(tmp_path / "compare.txt")


WORDS = ["{{question}}", "{{", "}}", "\\{{", "\n# system\n", "\\# user", "---", "text: a"]
HOSTILE = st.lists(st.sampled_from(WORDS) | st.text()).map("".join)


@given(HOSTILE, st.lists(HOSTILE, max_size=4), st.integers())
def test_values_are_never_interpreted(question, answers, count):
    source = SimpleNamespace(read_bytes=PLAIN.encode)
    system, user = Template.read(source).render(**VALUES | {"question": question, "answers": answers, "count": count})
    assert system.content == "You compare. Be brief."
    listed = "\n".join(f"{place}. {answer}" for place, answer in enumerate(answers, start=1))
    assert (
        user.content
        == f'Which of {count} (0.5):\n{listed}\n\n# user\n{question}? {question}! JSON: {{{{"a": {{"b": 1}}}}'
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"mode": "breif"}, "mode is one of brief, thorough, not str 'breif'. Did you mean 'brief'"),
        ({"count": 2.0}, "count is integer, not float '2.0'"),
        ({"count": True}, "count is integer, not bool"),
        ({"count": "2"}, "count is integer, not str"),
        ({"share": float("nan")}, "share is number, not float 'nan'"),
        ({"answers": "one"}, "answers is a list of texts, not str"),
        ({"answers": [1]}, "answers is a list of texts, not list"),
        ({"question": None}, "question is text, not NoneType"),
        ({"qestion": "Why"}, "no slot 'qestion'. Did you mean 'question'"),
    ],
)
def test_wrong_values_are_named(tmp_path, change, problem):
    with pytest.raises(BadInput, match=re.escape(problem)):
        read(tmp_path, PLAIN).render(**VALUES | change)


def test_missing_values_are_named(tmp_path):
    with pytest.raises(BadInput, match="needs question, answers, share, mode"):
        read(tmp_path, PLAIN).render(count=2)


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("---\nquestion", "question", 1, "begins with a line ---"),
        ("thorough\n---", "thorough", 9, "the header does not end"),
        ("count: integer", "count: int", 4, "no type 'int'"),
        ("brief|thorough", "brief|brief", 7, "no type 'brief|brief'"),
        ("count: integer", "2count: integer", 4, "'2count' is no name"),
        ("count: integer", "question: text", 4, "'question' stands twice"),
        ("count: integer", "count: integer\nspare: text", 5, "'spare' is declared and not used"),
        ("{{share}}", "{{shore}}", 15, "'shore' is not declared. Did you mean 'share'"),
        ("{{share}}", "{{share", 15, "{{ without }}"),
        ("# system\n", "", 10, "text outside of a message"),
        ("You compare. Be {{mode}}.\n", "", 10, "the message of # system is empty"),
        ("# system\nYou compare. Be {{mode}}.\n\n# user\n", "# title\n", 10, "text outside of a message"),
    ],
)
def test_wrong_files_are_named_with_their_line(tmp_path, old, new, line, problem):
    assert PLAIN.count(old) == 1
    with pytest.raises(BadInput, match=re.escape(f"compare.txt:{line}: ") + ".*" + re.escape(problem)):
        read(tmp_path, PLAIN.replace(old, new))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        Template.read(tmp_path / "absent.txt")
    (tmp_path / "latin.txt").write_bytes(b"---\n---\n# user\n\xe9")
    with pytest.raises(BadInput, match="not UTF-8"):
        Template.read(tmp_path / "latin.txt")


def test_a_resource_of_a_package_and_no_slots():
    (folder,) = [resources.files("equipoise.judging")]
    with pytest.raises(BadInput, match="a template begins with"):
        Template.read(folder / "seed_biases.json")
    plain = Template.read(SimpleNamespace(read_bytes=lambda: b"---\n---\n# user\nHello"))
    assert plain.render() == (Message("user", "Hello"),)


def test_a_pipe_is_refused_instead_of_read(tmp_path):
    os.mkfifo(tmp_path / "prompt.md")
    with pytest.raises(BadInput, match="is a pipe; expected a file"):
        Template.read(tmp_path / "prompt.md")


def test_a_template_of_many_slots_and_braces_takes_no_time(tmp_path):
    """The grammar has no loops; what is filled in is text and never searched, so the work is one pass."""
    path = tmp_path / "prompt.md"
    path.write_text("---\na: text\n---\n# user\n" + "{{a}}" * 20_000 + "{% for x in range(9**9) %}" * 20_000)
    (message,) = Template.read(path).render(a="{{a}}{{a}}")
    assert message.content.startswith("{{a}}{{a}}" * 20_000 + "{% for x in range(9**9) %}")


KINDS = {"text": "a", "integer": "b", "number": "c", "list": "d", "bat|cat": "e", "jam|keg|lid": "f", "warm|young": "g"}
ROWS = "".join(f"{name}: {kind}\n" for kind, name in KINDS.items())
EACH = f"---\n{ROWS}---\n# user\n{{{{a}}}}{{{{b}}}} {{{{c}}}}|{{{{d}}}}|{{{{e}}}}{{{{f}}}}{{{{g}}}}"
FINE = {"a": "", "b": 1, "c": 1, "d": [], "e": "cat", "f": "keg", "g": "warm"}


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        ("x", {"a": "x"}), ("cat", {"a": "cat", "e": "cat"}), ("lid", {"a": "lid", "f": "lid"}),
        ("young", {"a": "young", "g": "young"}), (7, {"b": "7", "c": "7"}), (-2.5, {"c": "-2.5"}), (True, {}), (None, {}),
        (float("inf"), {}), (["p", "q"], {"d": "1. p\n2. q"}), (("p",), {"d": "1. p"}), ([1], {}), ({"p": "q"}, {}),
    ],
)  # fmt: skip
def test_each_type_takes_its_values_and_no_others(tmp_path, value, taken):
    template, found = read(tmp_path, EACH), {}
    plain = {"a": "", "b": "1", "c": "1", "d": "", "e": "cat", "f": "keg", "g": "warm"}
    for kind, name in KINDS.items():
        try:
            (message,) = template.render(**FINE | {name: value})
        except BadInput as error:
            what = {"list": "a list of texts"}.get(kind, kind)
            what = f"one of {kind.replace('|', ', ')}" if "|" in kind else what
            said = f"{template.name}: the slot {name} is {what}, not {type(value).__name__} {str(value)[:40]!r}."
            near = "|" in kind and isinstance(value, str)
            assert str(error).startswith(said) and (len(str(error)) > len(said)) == near
        else:
            found[name] = taken.get(name, "none")
            shown = plain | {name: found[name]}
            assert message.content == "{a}{b} {c}|{d}|{e}{f}{g}".format(**shown)
    assert found == taken


def test_a_choice_of_three_words_has_three(tmp_path):
    with pytest.raises(BadInput, match=re.escape("compare.txt:7: no type 'jam|keg|jam'; expected")):
        read(tmp_path, EACH.replace("jam|keg|lid", "jam|keg|jam"))


@pytest.mark.parametrize("blank", [0, 1, 2, 3])
def test_a_slot_that_is_wrong_is_named_with_its_line_wherever_it_stands(tmp_path, blank):
    text = "---\na: text\n---\n" + "\n" * blank + "# system\nOne.\n# user\nTwo\n{{a}}\nthree {{b}}\n"
    with pytest.raises(BadInput, match=f"compare.txt:{9 + blank}: the slot 'b' is not declared"):
        read(tmp_path, text)
    with pytest.raises(BadInput, match=f"compare.txt:{5 + blank}: the slot 'One' is not declared"):
        read(tmp_path, text.replace("One.", "{{One}}"))
