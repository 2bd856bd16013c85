"""Chat templates: the same text on every day and in every locale, as transformers renders it, and always an end."""

import datetime
import locale
import os
import resource
import signal
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from transformers.utils import chat_template_utils

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.records import Record
from equipoise.language import template_process, templates
from equipoise.language.encode import encode, encode_prompts
from equipoise.language.template_process import FULL, LONGEST, compiled, formatted, rendered
from equipoise.language.templates import DATE, check_date, render

DATED = (
    "{% if strftime_now is defined %}{% set d = strftime_now('%d %b %Y') %}{% else %}{% set d = '26 Jul 2024' %}{% endif %}"
    "{{ d }}|{{ strftime_now('%A, %-d %B at %H:%M %p, 100%%') }}|{{ date_string }}"
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{{ eos_token }}{% endfor %}"
)
ASK = [{"role": "user", "content": "who?"}]
TURNS = [{"role": "user", "content": "a <b> 'c' é 漢"}, {"role": "assistant", "content": " x\n "}, *ASK]
WILD = {
    "white space": "  {% for m in messages %}\n  {%- if loop.first %} 1\n{% endif %}\n{{ m.content | trim }}\n{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2, sort_keys=true) }}",
    "generation": "{% for m in messages %}{% generation %}{% set x = 1 %}{{ m.role }}{% endgeneration %}{{ x }}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "namespace": "{% set n = namespace(k=0) %}{% for m in messages %}{% set n.k = n.k + 1 %}{% endfor %}{{ n.k }}",
    "macro": "{% macro show(m) %}<{{ m['role'] }}>{% endmacro %}{% for m in messages %}{{ show(m) }}{% endfor %}",
    "variables": "{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ nothing }}{{ bos_token }}{{ pad_token }}",
}


def with_template(language_model, text, **changes):
    changed = replace(language_model, **changes)
    changed.tokenizer = type(changed.tokenizer)(tokenizer_object=changed.tokenizer.backend_tokenizer)
    changed.tokenizer.add_special_tokens(language_model.tokenizer.special_tokens_map)
    changed.tokenizer.chat_template = text
    return changed


@pytest.mark.parametrize("name", WILD)
@pytest.mark.parametrize("prompt", [False, True])
def test_as_transformers_renders(small, name, prompt):
    model = with_template(small, WILD[name])
    expected = model.tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=prompt)
    assert render(model, [TURNS, ASK], ["a", "b"], add_generation_prompt=prompt)[0] == expected


def test_tokens_are_the_same_on_every_day(small, monkeypatch):
    model = with_template(small, DATED)
    record = Record(id="r", prompt="who?", completion="Oslo")
    found = []
    for day in (1, 2):
        now = datetime.datetime(2026, 11, day)
        clock = type("Clock", (datetime.datetime,), {"now": classmethod(lambda cls, tz=None, now=now: now)})
        monkeypatch.setattr(chat_template_utils, "datetime", clock)
        found.append((encode(model, [record]), encode_prompts(model, ["who?"])))
    assert found[0] == found[1]
    (text,) = render(model, [ASK], ["a"])
    assert text.startswith("26 Jul 2024|Friday, 26 July at 00:00 AM, 100%|26 Jul 2024[user]who?")
    (later,) = render(replace(model, date=datetime.date(2026, 11, 2)), [ASK], ["a"])
    assert later.startswith("02 Nov 2026|Monday, 2 November at 00:00 AM, 100%|02 Nov 2026[user]")


def test_a_date_is_written_as_run_json_stores_it():
    assert check_date(DATE.isoformat()) == check_date(DATE) == DATE == datetime.date(2024, 7, 26)
    for wrong in ("26 Jul 2024", "2024-13-01", None, 20240726):
        with pytest.raises(BadInput, match="write it as 2024-07-26"):
            check_date(wrong)


def test_names_of_days_are_english_everywhere(monkeypatch):
    others = {"LC_TIME": [name for name in ("de_DE.UTF-8", "fr_FR.UTF-8") if _known(name)]}
    days = [datetime.date(2026, month, day) for month in range(1, 13) for day in (1, 9, 17, 28)]
    forms = ["%d %b %Y", "%A %a %B %h", "%c", "%x %X", "%r", "%j %U %%b %%"]
    expected = [datetime.datetime.combine(day, datetime.time()).strftime(form) for day in days for form in forms]
    assert [formatted(day, form) for day in days for form in forms] == expected
    for name in others["LC_TIME"]:
        locale.setlocale(locale.LC_TIME, name)
        try:
            assert [formatted(day, form) for day in days for form in forms] == expected
        finally:
            locale.setlocale(locale.LC_TIME, "C")


def _known(name):
    try:
        locale.setlocale(locale.LC_TIME, name)
    except locale.Error:
        return False
    locale.setlocale(locale.LC_TIME, "C")
    return True


HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'x' * 10 ** 10 }}",
    "a wide field": "{{ '%9999999999d' % 1 }}",
    "a list in a list": "".join("{% set a = [a, a] %}" for _ in range(60)) + "{{ a }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_does_not_end_or_fills_the_memory_is_named(small, name, monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 0)  # a second at most: the process has just begun
    templates._process.end()
    problem = (
        "does not come to an end: 0 seconds" if name == "nested loops" else "(does not come to an end|fills the memory)"
    )
    with pytest.raises(BadInput, match=rf"The chat template of tiny {problem}.*Give another one as chat_template"):
        encode_prompts(with_template(small, HOSTILE[name]), ["who?"])
    assert render(small, [ASK], ["a"])  # the next one is rendered


def test_too_much_memory_is_told_as_such(small):
    with pytest.raises(BadInput, match=r"The chat template of tiny fills the memory: 1 GiB were not enough"):
        encode_prompts(with_template(small, HOSTILE["a long text"]), ["who?"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content.nothing }}", "has no element 7|undefined"),
        ("{% for", "unexpected|Expected|expected"),
        ("{{ [1, 2] | random }}", "No filter named 'random'"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ messages.append(1) }}", "safe|not callable|undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|safe"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 'x' * 20000000 }}", "it writes 20,000,000 characters"),
    ],
)
def test_what_a_template_does_wrong_is_told(small, text, reason):
    with pytest.raises(BadInput, match=rf"Prompt 0: the chat template refuses .*({reason})"):
        encode_prompts(with_template(small, text), ["who?"])


def test_many_conversations_keep_their_order_and_their_names(small):
    turns = [[{"role": "user", "content": f"{i}"}] for i in range(150)]
    found = render(small, turns, [f"P{i}" for i in range(150)])
    assert found == [f"<|begin|><|user|>{i}" for i in range(150)]
    picky = with_template(small, "{{ raise_exception('no') if messages[0].content == '147' else 'x' }}")
    with pytest.raises(BadInput, match="P147: "):
        render(picky, turns, [f"P{i}" for i in range(150)])


def test_threads_get_their_own_answers(small):
    found = {}

    def ask(name):
        found[name] = [render(small, [[{"role": "user", "content": f"{name}.{i}"}]], ["a"])[0] for i in range(30)]

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[name] == [f"<|begin|><|user|>{name}.{i}" for i in range(30)] for name in range(4))


def test_a_forked_child_has_a_process_of_its_own(small):
    render(small, [ASK], ["a"])
    running = templates._process._running
    child = os.fork()
    if child == 0:
        own = render(small, [TURNS], ["a"]) != [""] and templates._process._running is not running
        templates._process.end()
        os._exit(0 if own else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert templates._process._running is running and running.poll() is None
    assert render(small, [ASK], ["a"]) == ["<|begin|><|user|>who?"]


def test_an_interrupted_question_is_not_answered_later(small, monkeypatch):
    render(small, [ASK], ["a"])
    running = templates._process._running

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(running.stdout, "readline", interrupted)
    with pytest.raises(KeyboardInterrupt):
        render(small, [TURNS], ["a"])
    assert running.poll() is not None
    assert render(small, [ASK], ["a"]) == ["<|begin|><|user|>who?"]


def test_a_process_that_was_ended_begins_again(small, tmp_path):
    render(small, [ASK], ["a"])
    templates._process._running.kill()
    templates._process._running.wait()
    assert render(small, [ASK], ["a"]) == ["<|begin|><|user|>who?"]
    templates._process.end()
    (tmp_path / "full.py").write_text(f"import sys; sys.stdin.readline(); sys.exit({FULL})")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(templates, "_SCRIPT", tmp_path / "full.py")
        with pytest.raises(BadInput, match="chat template of tiny fills the memory"):
            render(small, [ASK], ["a"])
    assert render(small, [ASK], ["a"]) == ["<|begin|><|user|>who?"]


def test_several_templates_of_one_tokenizer(small):
    model = with_template(small, {"default": "{{ messages[0].content }}", "tool_use": "never"})
    assert render(model, [ASK], ["a"]) == ["who?"]
    none = with_template(small, {"chat": "x", "rag": "y"})
    with pytest.raises(BadInput, match=r"several chat templates \(chat, rag\) and none is its default"):
        encode(none, [Record(id="r", prompt="who?", completion="Oslo")])


def test_the_compiled_template_is_that_of_the_process():
    """Rendered here as there, so that what the process does is also seen by whoever measures what is tested."""
    text = rendered(compiled("{{ strftime_now('%Y') }}{{ messages[0].content }}"), {"messages": ASK}, DATE)
    assert text == "2024who?"


def test_bounds_are_stated():
    assert (10, 1_073_741_824, datetime.date(2024, 7, 26)) == (templates.SECONDS, templates.MEMORY, DATE)
    assert (LONGEST, FULL) == (16_777_216, 77)


def test_what_the_process_is_asked(small, monkeypatch):
    """64 conversations a request, with the date, the tokens and the bounds of the model; answers in their order."""
    asked = []

    def ask(request, name):
        asked.append((request, name))
        return [[turns[0]["content"], None] for turns in request["conversations"]]

    monkeypatch.setattr(templates._process, "ask", ask)
    turns = [[{"role": "user", "content": f"{i}"}] for i in range(65)]
    model = replace(small, name="m", date=datetime.date(2025, 1, 2))
    assert render(model, turns, [f"P{i}" for i in range(65)]) == [f"{i}" for i in range(65)]
    assert [len(request["conversations"]) for request, _ in asked] == [64, 1]
    request, name = asked[1]
    assert name == "m" and request == {
        "template": small.tokenizer.chat_template,
        "variables": {
            **small.tokenizer.special_tokens_map,
            "tools": None,
            "documents": None,
            "add_generation_prompt": False,
        },
        "date": "2025-01-02",
        "seconds": 10,
        "conversations": [turns[64]],
    }
    render(model, turns[:1], ["a"], add_generation_prompt=True)
    assert asked[2][0]["variables"]["add_generation_prompt"] is True
    assert render(model, [], []) == []
    monkeypatch.setattr(templates._process, "ask", lambda request, name: [[None, "no"]])
    with pytest.raises(BadInput) as caught:
        render(model, [TURNS], ["Record 'x'"])
    assert str(caught.value) == "Record 'x': the chat template refuses turns of the roles user, assistant, user (no)."


@pytest.mark.parametrize(
    ("code", "kind", "sentence"),
    [
        (
            -signal.SIGXCPU,
            BadInput,
            "The chat template of m does not come to an end: 10 seconds of work were not enough for one conversation. "
            "Give another one as chat_template (a Jinja file, or 'none').",
        ),
        *(
            (
                code,
                BadInput,
                "The chat template of m fills the memory: 1 GiB were not enough for one conversation. Give another "
                "one as chat_template (a Jinja file, or 'none').",
            )
            for code in (77, -signal.SIGKILL)
        ),
        (1, WorkFailed, "The process that renders the chat template of m ended with code 1."),
        (-signal.SIGTERM, WorkFailed, "The process that renders the chat template of m ended with code -15."),
    ],
)
def test_how_the_process_may_end(code, kind, sentence):
    process = templates._Process()
    process._running = SimpleNamespace(wait=lambda: code)
    error = process._ended(process._running, "m")
    assert (type(error), str(error), process._running) == (kind, sentence, None)
    process.end()  # where none is running nothing is to be done


@pytest.mark.parametrize(("most", "allowed"), [(-1, 12), (100, 12), (12, 12), (5, 5), (0, 0)])
def test_each_conversation_has_its_seconds_and_no_more_than_the_machine_allows(monkeypatch, most, allowed):
    limits = []
    monkeypatch.setattr(template_process.time, "process_time", lambda: 4.9)
    monkeypatch.setattr(template_process.resource, "getrlimit", lambda which: (7, most))
    monkeypatch.setattr(template_process.resource, "setrlimit", lambda which, limit: limits.append((which, limit)))
    request = {
        "template": "{{ bos }}{{ messages[0].x }}",
        "variables": {"bos": "<b>"},
        "date": "2024-07-26",
        "seconds": 7,
    }
    found = template_process.answer({**request, "conversations": [[{"x": 1}], [{"x": 2}]]})
    assert found == [("<b>1", None), ("<b>2", None)]
    assert limits == [(resource.RLIMIT_CPU, (allowed, most))] * 2


def test_what_a_template_raises_is_told_and_memory_is_the_end(monkeypatch):
    class Ended(Exception):
        pass

    def end(code):
        ended.append(code)
        raise Ended

    ended, raised = [], []
    monkeypatch.setattr(template_process.resource, "setrlimit", lambda which, limit: None)
    monkeypatch.setattr(template_process.os, "_exit", end)

    def broken(template, variables, date):
        raise raised[0]

    monkeypatch.setattr(template_process, "rendered", broken)
    request = {"template": "", "variables": {}, "date": "2024-07-26", "seconds": 1, "conversations": [[]]}
    for error, told in ((ValueError("odd"), "odd"), (ValueError(), "ValueError"), (RecursionError("deep"), "deep")):
        raised[:] = [error]
        assert template_process.answer(request) == [(None, told)]
    raised[:] = [MemoryError("x")]
    with pytest.raises(Ended):
        template_process.answer(request)
    assert ended == [77]


def test_a_text_may_be_as_long_as_the_bound(monkeypatch):
    monkeypatch.setattr(template_process, "LONGEST", 5)
    template = compiled("{{ x }}")
    assert rendered(template, {"x": "a" * 5}, DATE) == "aaaaa"
    with pytest.raises(Exception, match="it writes 6 characters"):
        rendered(template, {"x": "a" * 6}, DATE)


def test_json_in_a_template_is_not_escaped_for_html():
    value = {"b": "<é>", "a": [1]}
    assert template_process.as_json(value) == '{"b": "<é>", "a": [1]}'
    assert template_process.as_json(value, ensure_ascii=True) == '{"b": "<\\u00e9>", "a": [1]}'
    assert template_process.as_json(value, sort_keys=True, separators=(",", ":")) == '{"a":[1],"b":"<é>"}'
    assert template_process.as_json([1], indent=1) == "[\n 1\n]"


@pytest.mark.parametrize(("most", "bound"), [(-1, 500), (500, 500), (100, 100), (900, 500)])
def test_the_process_bounds_its_memory_and_answers_line_by_line(monkeypatch, capsys, most, bound):
    limits, signals = [], []
    monkeypatch.setattr(template_process.signal, "signal", lambda *given: signals.append(given))
    monkeypatch.setattr(template_process.resource, "getrlimit", lambda which: (7, most))
    monkeypatch.setattr(template_process.resource, "setrlimit", lambda which, limit: limits.append((which, limit)))
    monkeypatch.setattr(template_process.sys, "argv", ["script", "500"])
    monkeypatch.setattr(template_process.sys, "stdin", ["[1]\n", "[2]\n"])
    monkeypatch.setattr(template_process, "answer", lambda request: [[f"{request[0]}", None]])
    template_process.main()
    assert capsys.readouterr().out == '[["1", null]]\n[["2", null]]\n'
    assert signals == [(signal.SIGINT, signal.SIG_IGN)]
    assert limits == [(resource.RLIMIT_CORE, (0, 0)), (resource.RLIMIT_AS, (bound, most))]


def test_what_an_assistant_said_is_rendered_as_it_stands():
    from jinja2 import Environment

    environment = Environment(extensions=[template_process.Generation])
    template = "{% set x = 1 %}a{% generation %}b{{ x }}{% set x = 2 %}{% endgeneration %}c{{ x }}"
    assert environment.from_string(template).render() == "ab1c1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\n    {% if true %}b{% endif %}", "a\nb"),
        ("{% if true %}\nx{% endif %}", "x"),
        ("{% for i in [1, 2] %}{% break %}{% endfor %}y", "y"),
    ],
)
def test_blocks_take_their_line_with_them(text, said):
    assert compiled(text).render() == said
