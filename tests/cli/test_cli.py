"""The command line: a wrong request is one sentence and exit code 2, and leaves nothing behind."""

import json
import os

import pytest

from equipoise.cli import main
from equipoise.core.errors import BadInput

GOOD = '{"question": "Who?", "answer": "Ann"}\n'
UNLEARN = ["unlearn", "--model", "tiny", "--forget", "forget.jsonl", "--retain", "retain.jsonl"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retain.jsonl").write_text(GOOD.replace("Ann", "Bob"))
    (tmp_path / "forget.jsonl").write_text(GOOD)
    (tmp_path / "nomodel").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "forget.jsonl is empty"),
        (GOOD.encode() + b"not json\n", "forget.jsonl:2: not JSON"),
        (b'{"q": "Who?", "answer": "Ann"}\n', "forget.jsonl:1: no field 'question'"),
        (GOOD.encode() + b"\xff\xfe\n", "forget.jsonl:2: not UTF-8"),
    ],
)
def test_bad_files_are_named_with_their_line(here, capsys, content, message):
    (here / "forget.jsonl").write_bytes(content)
    assert main(UNLEARN) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not (here / "equipoise-out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*UNLEARN, "--objective", "smnpo"], 'Invalid value "smnpo" for --objective'),
        ([*UNLEARN, "--steps", "0"], "--steps should be at least 1, but got '0'."),
        ([*UNLEARN, "--steps", "three"], "--steps should be a valid integer"),
        ([*UNLEARN, "--stpes", "3"], "Did you mean --steps?"),
        ([*UNLEARN, "--answer-field", "reply"], "--answer-field NAME is now --fields answer=NAME."),
        ([*UNLEARN, "--delta", "0.1"], "delta is now gamma"),
        ([*UNLEARN, "--method", "gru"], "the preset 'gru' is now 'gru-core'"),
        (
            ["unlearn", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--model", "nomodel"],
            "holds no config.json",
        ),
        (["unlearn", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--model", "smolm2"], "'smollm2'"),
        (
            ["unlearn", "--forget", "forgt.jsonl", "--retain", "retain.jsonl", "--model", "tiny"],
            "Did you mean 'forget.jsonl'",
        ),
        (["study", "run", "sagoo"], "Did you mean 'sago'"),
        (["study", "run", "sago", "--stps", "3"], "there is no option 'stps'. Did you mean 'steps'?"),
        (["study", "run", "sago", "--steps", "3"], "should be at least 10"),
        (["study", "run", "sago", "--arms", "sagoo"], "no arm 'sagoo'. Did you mean 'sago'?"),
        (["studdy", "list"], 'Did you mean "study"?'),
        (["models", "fetch", "smolm"], "Did you mean 'smollm2'?"),
        (["unlearn", "--config", "nothing.json"], "expected the run.json that a job stored"),
    ],
)
def test_wrong_requests(here, capsys, arguments, message):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and said.count("\n") == 1
    assert not list((here / "equipoise-out").glob("unlearn*"))


def test_debug_shows_the_traceback(here):
    (here / "forget.jsonl").write_text("")
    with pytest.raises(BadInput):
        main([*UNLEARN, "--debug"])


def test_a_word_with_verbs_below_it_prints_its_help(capsys):
    assert main(["study"]) == 0
    assert "list" in capsys.readouterr().out
    for words, begins in (
        (["study", "-h"], "study COMMAND"),
        (["unlearn", "--steps", "3", "--help"], "unlearn [OPTIONS]"),
    ):
        assert main(words) == 0 and capsys.readouterr().out.startswith(f"Usage: equipoise {begins}\n")
    assert main(["study", "runn", "--help"]) == 2
    assert 'Unknown command "runn"' in capsys.readouterr().err


def test_the_help_of_a_job_can_be_copied_and_has_a_paragraph_in_a_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["audit", "judge", "--help"]) == 0
    text = capsys.readouterr().out
    assert "`" not in text and "--teacher rules --pairs examples/pairs.jsonl\n" in text
    assert "preference rows for DPO, the record of all calls, and a report." in text


def test_the_list_of_commands_has_the_first_line_of_the_help_of_each(capsys):
    from equipoise.cli import COMMANDS, _app

    assert main(["--help"]) == 0
    listed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    app = _app()
    assert {name for name in app if not name.startswith("-")} == set(COMMANDS)
    for name, (_, line) in COMMANDS.items():
        assert f"{name} {line}" in listed
        assert " ".join(app[name].help.strip().partition("\n\n")[0].split()) == line


def test_groups_of_commands_show_commands_to_begin_with(capsys):
    assert main(["study", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "equipoise study run sago --seeds 2" in shown and "run      Run what a study" in shown


def test_study_list_is_data(capsys):
    assert main(["study", "list", "--json"]) == 0
    (row,) = [row for row in json.loads(capsys.readouterr().out) if row["name"] == "sago"]
    assert row["trades"] == "forgetting for retention" and row["paper"] == "arXiv:2604.14808"


def test_config_is_the_options_it_holds(here, capsys):
    """Lists and objects are taken as they are; what is typed wins; what can let code run has to be typed."""
    (here / "forget.jsonl").write_text('{"question": "Who?", "reply": "Ann"}\n')
    stored = {"model": "tiny", "forget": "forget.jsonl", "retain": "nothing.jsonl", "fields": {"answer": "reply"}}
    (here / "run.json").write_text(json.dumps(stored))
    assert main(["unlearn", "--config", "run.json", "--dry-run"]) == 2
    assert "nothing.jsonl" in capsys.readouterr().err
    assert main(["unlearn", "--config", "run.json", "--retain", "retain.jsonl", "--dry-run"]) == 2
    assert "retain.jsonl:1: no field 'reply'" in capsys.readouterr().err
    (here / "run.json").write_text(json.dumps(stored | {"trust_remote_code": True}))
    assert main(["unlearn", "--config", "run.json", "--dry-run"]) == 2
    assert "can let code run: type --trust-remote-code" in capsys.readouterr().err
    (here / "run.json").write_text(json.dumps(stored | {"stpes": 5}))
    assert main(["unlearn", "--config", "run.json", "--dry-run"]) == 2
    assert "no option 'stpes'" in capsys.readouterr().err


def test_what_must_be_given_is_named(capsys):
    assert main(["unlearn", "--model", "tiny"]) == 2
    assert capsys.readouterr().err.startswith("equipoise: --forget is missing. Help: equipoise unlearn --help")


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"trust_remote_code": True}, "can let code run: type --trust-remote-code"),
        ({"attn_implementation": "somebody/kernels"}, "can let code run: type --attn-implementation"),
        ({"out": "/home/somebody/work", "fresh": True}, "no option 'out'"),
        ({"trust_remote_code=true --x": 1}, "no option"),
        ([1], "expected the run.json"),
    ],
)
def test_no_config_switches_on_code_or_places(here, capsys, stored, words):
    content = {"model": "tiny", "forget": "forget.jsonl", "retain": "retain.jsonl", **stored} if stored != [1] else [1]
    (here / "run.json").write_text(json.dumps(content))
    assert main(["unlearn", "--config", "run.json", "--dry-run"]) == 2
    assert words in capsys.readouterr().err


def test_a_config_that_is_a_pipe_is_refused(here, capsys):
    os.mkfifo(here / "pipe.json")
    assert main(["unlearn", "--config", "pipe.json"]) == 2
    assert "is a pipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device", "big.safetensors"), RuntimeError("I/O error: No space left on device")],
)
def test_a_full_disk_is_one_sentence(monkeypatch, capsys, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("equipoise.unlearning.forgetting.Forgetting.read", full)
    assert main(UNLEARN) == 1
    said = capsys.readouterr().err
    assert said.startswith("equipoise: The disk is full") and said.count("\n") == 1
