"""Ctrl-C: one sentence and exit code 130, in real processes."""

import json
import signal
import subprocess
import sys

import pytest

from engine_studies import walk
from equipoise.cli import doctor, main

pytestmark = pytest.mark.usefixtures("as_in_a_terminal")

SENTENCE = "Interrupted; what was computed is stored, and the same command resumes it.\n"


def start(folder, *words):
    return subprocess.Popen([sys.executable, *words], cwd=folder, stderr=subprocess.PIPE, text=True)


def interrupt_at(command, sign):
    """Everything on stderr after the sign, and the exit code."""
    assert command.stderr
    with command:
        while sign not in (line := command.stderr.readline()):
            assert line, "the command ended before the sign came"
        command.send_signal(signal.SIGINT)
        return command.stderr.read(), command.wait(60)


def test_a_running_study_says_so(tmp_path):
    walk(tmp_path)
    words = ["study", "run", "walk_study.py", "--set", "pause=60", "--out", "out"]
    said, code = interrupt_at(start(tmp_path, "-m", "equipoise", *words), "[1/8]")
    assert code == 130 and said.endswith(SENTENCE) and "Traceback" not in said


@pytest.mark.slow
def test_a_running_job_says_so(tmp_path):
    for side, name in (("forget", "Ann"), ("retain", "Bo")):
        rows = [json.dumps({"question": f"Who {side}s {i}?", "answer": name}) for i in range(4)]
        (tmp_path / f"{side}.jsonl").write_text("\n".join(rows))
    words = ["unlearn", "--model", "tiny", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--out", "out"]
    said, code = interrupt_at(start(tmp_path, "-m", "equipoise", *words), "steps")
    assert code == 130 and said.endswith(SENTENCE) and "Traceback" not in said


@pytest.mark.parametrize("module", ["cyclopts", "equipoise.cli.models"])
def test_so_does_a_command_that_is_still_being_imported(tmp_path, module):
    code = f"""
import os, signal, sys
from equipoise.cli import main
class Interrupting:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.exit(main(["models", "list"]))
"""
    command = start(tmp_path, "-c", code)
    assert command.communicate(timeout=60)[1] == SENTENCE and command.returncode == 130


def wrapped():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise RuntimeError("Error calling __set_name__") from error


def grouped():
    raise BaseExceptionGroup("tasks", [ValueError(), BaseExceptionGroup("inner", [KeyboardInterrupt()])])


@pytest.mark.parametrize("end", [wrapped, grouped])
def test_an_interrupt_that_a_library_made_another_error_of(monkeypatch, capsys, end):
    monkeypatch.setattr(doctor, "doctor", lambda: end())
    assert main(["doctor"]) == 130 and capsys.readouterr().err == SENTENCE
    assert main(["--debug", "doctor"]) == 130


def test_the_exit_code_holds_after_code_made_of_text(tmp_path):
    """Where the interpreter would end by the signal: run_eval_code_obj of CPython notes it, Py_RunMain heeds it."""
    (tmp_path / "texts.py").write_text(
        "import sys\nfrom equipoise.cli import doctor, main\n"
        "doctor.doctor = lambda: exec('raise KeyboardInterrupt')\nsys.exit(main(['doctor']))"
    )
    command = start(tmp_path, "-m", "texts")
    assert command.communicate(timeout=60)[1] == SENTENCE and command.returncode == 130
