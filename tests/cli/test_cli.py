"""The command line: a wrong request is one sentence and exit code 2, and leaves nothing behind."""

import json
import os

import pytest

from equipoise.cli import main
from equipoise.cli.config import expand
from equipoise.core.errors import BadInput

GOOD = '{"question": "Who?", "answer": "Ann"}\n'
UNLEARN = ["unlearn", "--model", "tiny", "--forget", "forget.jsonl", "--retain", "retain.jsonl"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retain.jsonl").write_text(GOOD)
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
        ([*UNLEARN, "--objective", "smnpo"], "--objective should be 'ga', 'npo', 'simnpo' or 'rmu'; got 'smnpo'."),
        ([*UNLEARN, "--steps", "0"], "--steps should be greater than or equal to 1; got '0'."),
        ([*UNLEARN, "--steps", "three"], "--steps should be a valid integer"),
        ([*UNLEARN, "--stpes", "3"], "Did you mean --steps?"),
        (
            ["unlearn", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--model", "nomodel"],
            "holds no config.json",
        ),
        (["unlearn", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--model", "smolm2"], "'smollm2'"),
        (
            ["unlearn", "--forget", "forgt.jsonl", "--retain", "retain.jsonl", "--model", "tiny"],
            "Did you mean 'forget.jsonl'",
        ),
        (["study", "run", "sagoo"], "Did you mean 'sago'?"),
        (["study", "run", "sago", "--stps", "3"], "has no option 'stps'. Did you mean 'steps'?"),
        (["study", "run", "sago", "--steps", "3"], "should be greater than or equal to 10"),
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


def test_study_list_is_data(capsys):
    assert main(["study", "list", "--json"]) == 0
    (row,) = [row for row in json.loads(capsys.readouterr().out) if row["name"] == "sago"]
    assert row["trades"] == "forgetting for retention" and row["paper"] == "arXiv:2604.14808"


def test_config_is_the_options_it_holds(here):
    stored = {"model": "tiny", "steps": 5, "general": None, "fields": {"answer": "reply"}, "chat_template": "none"}
    (here / "run.json").write_text(json.dumps(stored))
    assert expand(["unlearn", "--config", "run.json", "--steps", "7"]) == [
        *["unlearn", "--steps", "7", "--model=tiny", "--chat-template=none", "--answer-field=reply"]
    ]
    assert expand(["unlearn", "--steps", "7"]) == ["unlearn", "--steps", "7"]


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (
            {"trust_remote_code": True},
            "runs code that comes with a model; no file decides that.*type it: --trust-remote-code$",
        ),
        (
            {"attn_implementation": "somebody/kernels"},
            "runs code of the hub.*type it: --attn-implementation=somebody/kernels",
        ),
        ({"judge_url": "http://elsewhere/v1"}, "address that gets your texts and keys"),
        ({"judge_args": "batch_size=8,trust_remote_code=true"}, "run code or call another address"),
        ({"teacher_args": "tool_parser_plugin=/tmp/evil.py"}, "run code or call another address"),
        ({"out": "/home/somebody/work", "fresh": True}, "where to write"),
        ({"model": "tiny", "trust_remote_code=true --x": 1}, "is no name of a setting"),
        ({"fields": {"a_field=b --trust-remote-code --x": "y"}}, "is no name of a setting"),
        ([1], "expected the run.json"),
    ],
)
def test_no_config_switches_on_code_addresses_or_places(here, stored, words):
    (here / "run.json").write_text(json.dumps(stored))
    with pytest.raises(BadInput, match=words):
        expand(["unlearn", "--config", "run.json"])


def test_what_is_typed_beside_a_config_is_the_user_s_own_word(here):
    (here / "run.json").write_text(
        json.dumps({"trust_remote_code": True, "steps": 5, "judge_args": "engine=llama.cpp"})
    )
    assert expand(["unlearn", "--config=run.json", "--trust-remote-code"]) == [
        *["unlearn", "--trust-remote-code", "--steps=5", "--judge-args=engine=llama.cpp"]
    ]
    (here / "run.json").write_text(json.dumps({"model": "--trust-remote-code", "limit": "-3", "radius": [1, 2]}))
    assert expand(["certify", "--config", "run.json"]) == [
        *["certify", "--model=--trust-remote-code", "--limit=-3", "--radius=1,2"]
    ]
    os.mkfifo(here / "pipe.json")
    with pytest.raises(BadInput, match="is a pipe"):
        expand(["unlearn", "--config", "pipe.json"])


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device", "big.safetensors"), RuntimeError("I/O error: No space left on device")],
)
def test_a_full_disk_is_one_sentence(monkeypatch, capsys, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("equipoise.unlearning.job.unlearn", full)
    assert main(UNLEARN) == 1
    said = capsys.readouterr().err
    assert said.startswith("equipoise: The disk is full") and said.count("\n") == 1
