"""The README, as somebody reads it who types what it says."""

import re
import shlex
from pathlib import Path

import pytest

from equipoise.cli import _app
from equipoise.study import registry
from equipoise.study.execute import run_study
from equipoise.study.judging import judge
from equipoise.study.results import load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line for kind, text in BLOCKS if not kind for line in text.replace("\\\n", " ").splitlines()]
COMMANDS = [shlex.split(line, comments=True)[1:] for line in LINES if line.startswith("equipoise ")]
INLINE = [shlex.split(found) for found in re.findall(r"`equipoise ([^`]*)`", README)]


@pytest.mark.parametrize("words", [*COMMANDS, *INLINE], ids=" ".join)
def test_every_command_has_these_options(words):
    command, bound, _ = _app().parse_args(words, exit_on_error=False, print_error=False)
    assert callable(command) and bound is not None


def test_what_it_names_is_there():
    named = {*re.findall(r"\]\(((?!https?:)[^)]+)\)", README), *re.findall(r"\bexamples/[\w.]+", README)}
    assert {"examples/mine.py", "examples/forget.jsonl", "docs/data.md"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_study_that_it_shows_is_the_one_that_is_shipped_and_reaches_a_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr("equipoise.core.files._sync", lambda path: None)
    file = ROOT / "examples" / "mine.py"
    assert ("python", file.read_text(encoding="utf-8")) in BLOCKS
    done = run_study(registry.load(str(file)), out=tmp_path / "out", engine="inline")
    (verdict,) = judge(done.study, load([done.out], done.study)).verdicts
    assert (verdict.state, done.complete) == ("supported", 30)
