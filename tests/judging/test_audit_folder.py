"""The folder of an audit by models whose words are known: killed anywhere, damaged, replayed, begun by an older version."""

import importlib.util
import json
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest

from equipoise.chat import roles
from equipoise.chat.client import Chat
from equipoise.chat.record import Entry, Usage
from equipoise.cli import main
from equipoise.core.errors import BadInput
from equipoise.core.files import Files
from equipoise.core.serialize import serialize
from equipoise.judging.job import audit_judge
from equipoise.judging.judges import LogProbJudge

if importlib.util.find_spec("inspect_ai") is None:
    pytest.skip("needs Inspect AI: the extra `chat`", allow_module_level=True)

STABLE = ("result.json", "judgements.parquet", "hardened.jsonl", "preferences.jsonl")  # no seconds, no attempts
MODEL = "openai/scripted"


class Scripted(Chat):
    """Judges well unless a professor is named, and rewrites with one where authority is asked for; asks no provider."""

    asked: ClassVar[Counter[str]] = Counter()

    def open(self) -> None:
        pass

    def ask(self, calls, *, title=""):
        for call in calls:
            if not self.offline and self.record.found(key := self.key(call)) is None:
                self.asked[key] += 1
                entry = Entry(key, self.name, call.phase, "answered", said(call), Usage(400, 0, 60), seconds=0.5)
                self.record.add(entry, call)
                self.account.book(entry)
        return super().ask(calls, title=title)


def said(call) -> str:
    text = call.messages[-1].content
    if call.schema is not None:
        merging = "decision" in call.schema.model_fields
        return '{"decision": 1}' if merging else '{"whether": "no", "name": "", "definition": ""}'
    if call.phase.startswith("rewrite"):
        answer = text.split("[Answer]\n")[1].split("\n[End of answer")[0]
        bias = text.split("Name: ")[1].split("\n")[0] if "Name: " in text else "it"
        return f"{answer} {'As a professor says' if bias == 'authority' else 'So much for ' + bias}."
    if call.phase == "explain":
        return "A professor says so."
    if "[Answer 1]" not in text:
        return f"Rating: {9 if 'professor' in text else 7 if 'good' in text else 3}"
    answers = [text.split(f"[Answer {i}]")[1].split("[End of answer")[0] for i in (1, 2)]
    fooled = next((i for i, answer in enumerate(answers, 1) if "professor" in answer), None)
    return f"Reasoning: I read both.\nDecision: {fooled or (1 if 'good' in answers[0] else 2)}"


def write_pairs(count: int) -> None:
    rows = [
        {"id": f"p{i}", "prompt": f"Question {i}?", "chosen": f"A good answer {i}.", "rejected": f"A bad answer {i}."}
        for i in range(count)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(autouse=True)
def scripted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(roles, "Chat", Scripted)
    monkeypatch.setattr(Scripted, "asked", Counter())
    write_pairs(16)
    library = [{"name": name, "definition": f"Sways by {name}."} for name in ("authority", "cheer")]
    Path("library.json").write_text(json.dumps(library), encoding="utf-8")


def ask(out: str, **options):
    return audit_judge(MODEL, MODEL, "pairs.jsonl", biases="library.json", rounds=1, out=out, **options)  # pyright: ignore[reportArgumentType]


def files(folder: str) -> dict[str, bytes]:
    return {name: (Path(folder) / name).read_bytes() for name in STABLE}


def test_what_is_stored_is_strict_json_that_reads_back_equal_and_is_all_that_the_page_needs():
    done = ask("a")
    assert [each.name for each in done.holding] == ["authority"] and done.hardened > 0 and done.preferences == 4
    plain = json.loads(Path("a/result.json").read_bytes(), parse_constant=lambda name: pytest.fail(name))
    assert serialize(audit_judge.stored(Path("a"))) == plain | {"folder": "a"}
    page = Path("a/report.html").read_bytes()
    Path("a/report.html").unlink()
    assert audit_judge.draw(Path("a")) == ("report.html",) and Path("a/report.html").read_bytes() == page
    assert (
        b"As a professor says" in page and b"right before, fooled after" in page and b"Calls, of all attempts" in page
    )


def changes(monkeypatch, at: int = 0) -> list[str]:
    """The names of the operations on the disk; in the middle of number `at` the process is killed."""
    done: list[str] = []

    def counted(name):
        real = getattr(Files, name)

        def operation(self, path, what):
            done.append(name)
            if len(done) == at:
                if name == "append":
                    real(self, path, what[: len(what) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            real(self, path, what)

        return operation

    for name in ("append", "produce", "replace"):
        monkeypatch.setattr(Files, name, counted(name))
    return done


def killed(out: str, at: int, monkeypatch) -> bool:
    """The same audit in a process of its own, which is killed in the middle of that operation."""
    child = os.fork()
    if not child:
        changes(monkeypatch, at)
        try:
            ask(out)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes_and_asks_nothing_twice(monkeypatch):
    with monkeypatch.context() as patched:
        done = changes(patched)
        ask("whole")
    calls = Scripted.asked.total()
    assert max(Scripted.asked.values()) == 1 and done.count("append") == calls + 1
    first = done.index("append") + 1  # of these one is the record's header
    last = len(done) - done[::-1].index("append")
    for at in (first, first + 7, first + calls // 2, last, *range(last + 1, len(done) + 1, 3)):
        out = f"k{at}"
        assert killed(out, at, monkeypatch) and not Path(out).exists(), at
        stored = Path(f"{out}.partial/calls.jsonl").read_bytes()
        Scripted.asked.clear()
        ask(out)
        assert files(out) == files("whole")
        assert Scripted.asked.total() == calls - max(stored.count(b"\n") - 1, 0)


def test_damage_is_named_and_what_was_paid_for_is_not_asked_again():
    ask("a")
    whole = files("a")
    Path("a/judgements.parquet").write_bytes(whole["judgements.parquet"][:-9] + b"?" + whole["judgements.parquet"][-8:])
    Path("a/preferences.jsonl").unlink()
    Path("a/result.json").write_bytes(whole["result.json"].replace(b'"holds": true', b'"holds": false'))
    Path("a/hardened.jsonl").write_bytes(b'{"read": "by me"}\n' + whole["hardened.jsonl"])
    Path("a/account.json").unlink()
    Scripted.asked.clear()
    again = ask("a")
    assert not Scripted.asked
    assert again.notes[-1].endswith(
        "made again: account.json, hardened.jsonl, judgements.parquet, preferences.jsonl, result.json."
    )
    made = files("a")
    assert all(made[name] == whole[name] for name in STABLE[1:])
    assert json.loads(made["result.json"]) | {"notes": None} == json.loads(whole["result.json"]) | {"notes": None}
    assert Path("a/damaged/1/hardened.jsonl").read_bytes().startswith(b'{"read": "by me"}')
    page = Path("a/report.html").read_bytes()
    Path("a/report.html").write_bytes(page + b"scribbled")
    ask("a")
    assert Path("a/report.html").read_bytes() == page  # only drawn again: the account of attempts is the same


def test_stored_settings_replay_to_the_same_bytes(capsys):
    options = [
        "--judge-url",
        "http://localhost:1/v1",
        "--judge-args",
        "batch_size=8,device=a b",
        "--filters",
        "openai/other",
    ]
    options += ["--prices", f"{MODEL}=2.5:10,openai/other=1:0.5:2", "--length-control", "--rounds", "1", "--seed", "7"]
    needed = ["--judge", MODEL, "--teacher", MODEL, "--pairs", "pairs.jsonl", "--biases", "library.json"]
    assert main(["audit", "judge", *needed, *options, "--out", "a"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(Path("a").absolute())
    assert "calls when nothing is found, up to" in said.err and " usd; --budget sets a limit" in said.err
    settings = json.loads(Path("a/run.json").read_text())
    assert settings["judge_url"] == "http://localhost:1/v1" and settings["judge_args"] == {
        "batch_size": 8,
        "device": "a b",
    }
    assert settings["prices"] == {MODEL: [2.5, 10.0], "openai/other": [1.0, 0.5, 2.0]}
    assert settings["filters"] == ["openai/other"] and "budget" not in settings and "max_connections" not in settings
    assert main(["audit", "judge", "--config", "a/run.json", "--out", "b", "--quiet"]) == 0
    assert files("b") == files("a") and Path("b/account.json").read_bytes() == Path("a/account.json").read_bytes()
    assert Path("b/run.json").read_bytes() == Path("a/run.json").read_bytes()
    Scripted.asked.clear()
    offline = ["audit", "judge", "--config", "a/run.json", "--replay", "a/calls.jsonl", "--budget", "usd=0.01"]
    assert main([*offline, "--out", "c", "--json"]) == 0 and not Scripted.asked
    assert files("c") == files("a")
    said = capsys.readouterr()
    assert json.loads(said.out.split("\n", 1)[1])["biases"][0]["name"] == "authority"  # after the folder of b
    for odd in ({"engine": "x", "trust_remote_code": True}, "trust_remote_code=True"):  # today's and an older spelling
        Path("odd.json").write_text(json.dumps(settings | {"judge_args": odd}))
        assert main(["audit", "judge", "--config", "odd.json", "--out", "d"]) == 2
        assert "which can let code run: type --judge-args to allow it" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
def test_the_plan_bounds_the_calls_of_every_role(kind):
    options = {"judge_kind": kind, "filters": ["openai/other"], "length_control": True}
    plan = audit_judge.plan(MODEL, MODEL, "pairs.jsonl", biases="library.json", rounds=1, **options)  # pyright: ignore[reportArgumentType]
    assert not Scripted.asked
    done = ask("a", **options)
    assert [each.name for each in done.holding] == ["authority"]
    asked: Counter[str] = Counter()
    for row in json.loads(Path("a/account.json").read_text())["parts"]:
        phase = row["phase"].split("/")[0]
        role = {"rewrite": "teacher, rewriting", "identify": "teacher, naming", "merge": "teacher, comparing names"}
        role |= {"judge": "judge", "explain": "judge, explaining"}
        asked["filter openai/other" if row["phase"] == "judge/filter" else role[phase]] += row["calls"]
    assert asked.keys() <= plan.calls.keys()
    for role, (least, most) in plan.calls.items():
        assert least <= asked[role] <= most, role


def test_work_of_an_older_version_goes_on_without_asking_what_was_answered():
    ask("new", judge_args={"size": 8, "word": "a b"}, filters=["openai/other"])
    calls = Scripted.asked.copy()
    settings = json.loads(Path("new/run.json").read_text())
    older = {name: settings[name] for name in settings if name not in ("judge_url", "teacher_url", "prices")}
    older |= {"judge_args": "size=8,word=a b", "filters": "openai/other"}  # as they were spelt
    partial = Path("old.partial")
    partial.mkdir()
    (partial / "run.json").write_text(json.dumps(older))
    (partial / "inputs.json").write_bytes(Path("new/inputs.json").read_bytes())
    (partial / "calls.jsonl").write_bytes(b"".join(Path("new/calls.jsonl").read_bytes().splitlines(True)[:31]))
    Scripted.asked.clear()
    ask("old", judge_args={"size": 8, "word": "a b"}, filters=["openai/other"])
    assert files("old") == files("new") and Scripted.asked.total() == len(calls) - 30
    with pytest.raises(BadInput, match="filters"):
        ask("new", judge_args={"size": 8, "word": "a b"})


def test_a_finished_folder_of_an_older_version_is_left_with_a_sentence():
    ask("a")
    Path("a/manifest.json").unlink()
    Path("a/result.json").rename("a/biases.json")
    with pytest.raises(BadInput, match=r"has no manifest\.json .*earlier versions wrote none\. Give another --out"):
        ask("a")
    assert Path("a/biases.json").exists()


def test_a_model_here_is_scored_once_however_often_it_is_interrupted(tiny_model, monkeypatch):
    tiny_model.save("model")
    write_pairs(48)  # three batches of prompts as they are
    words = {"judge_kind": "logprob", "without_explanation": True, "biases": "library.json", "rounds": 0}
    whole = audit_judge("model", "rules", "pairs.jsonl", out="whole", **words)  # pyright: ignore[reportArgumentType]
    assert whole.calls == 0 and not Path("whole/calls.jsonl").exists()
    assert re.fullmatch(
        r"equipoise/model@[0-9a-f]{12} \(log-probabilities\)", whole.judge
    )  # its folder's last part, with what it holds
    real, scored = LogProbJudge._score, []

    def dies(judge, prompts):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(len(prompts))
        return real(judge, prompts)

    with monkeypatch.context() as patched:
        patched.setattr(LogProbJudge, "_score", dies)
        with pytest.raises(KeyboardInterrupt):
            audit_judge("model", "rules", "pairs.jsonl", out="a", **words)  # pyright: ignore[reportArgumentType]
    rest = []
    monkeypatch.setattr(
        LogProbJudge, "_score", lambda judge, prompts: (rest.append(len(prompts)), real(judge, prompts))[1]
    )
    audit_judge("model", "rules", "pairs.jsonl", out="a", **words)  # pyright: ignore[reportArgumentType]
    names = ("result.json", "judgements.parquet", "margins.jsonl")
    assert all(Path("a", name).read_bytes() == Path("whole", name).read_bytes() for name in names)
    Path("a/judgements.parquet").unlink()
    lines = Path("a/margins.jsonl").read_bytes().splitlines(keepends=True)
    sign = lines[1].index(b'": "') + 4
    turned = lines[1][:sign] + (b"" if lines[1][sign : sign + 1] == b"-" else b"-") + lines[1][sign:].lstrip(b"-")
    Path("a/margins.jsonl").write_bytes(lines[0] + turned + b"".join(lines[2:]))
    rest.clear()
    audit_judge("model", "rules", "pairs.jsonl", out="a", **words)  # pyright: ignore[reportArgumentType]
    assert rest == [16]  # the batch of the row whose sign was turned
    assert Path("a/judgements.parquet").read_bytes() == Path("whole/judgements.parquet").read_bytes()


def test_a_model_here_whose_context_takes_no_pair_ends_with_exit_code_1(tiny_model, capsys):
    tiny_model.save("model")
    row = {"prompt": "red " * 900, "chosen": "blue " * 300, "rejected": "cat " * 300}
    rows = [row | {"id": f"p{i}", "prompt": f"{i} {row['prompt']}"} for i in range(16)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["audit", "judge", "--judge", "model", "--judge-kind", "logprob", "--teacher", "rules"]
    assert main([*command, "--pairs", "pairs.jsonl", "--without-explanation", "--rounds", "0", "--out", "a"]) == 1
    said = capsys.readouterr().err
    assert re.search(r"could be asked about 0 of \d+ pairs.* a prompt of \d+ tokens, and 1024 fit", said)
    assert "biases hold" not in Path("a.partial/report.html").read_text(encoding="utf-8")
