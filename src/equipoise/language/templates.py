"""Chat templates: conversations as one text, the same on every day, and with an end whatever the template does.

The date. Templates that write today's date (Llama 3.1, 3.2, Granite, Mistral) would give a record other tokens tomorrow, and
a measurement after training another prompt than the one before. Here `strftime_now` and `date_string` have the language
model's `date`: what is given when it is loaded, else DATE, which Llama's templates themselves write where there is no clock.

The bounds. A template is a program that came with a model, so it runs in a process of its own (`template_process`), with so
many seconds of work and bytes of memory for each conversation; and not with `random` and `lipsum`.
"""

from __future__ import annotations

import atexit
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.language.template_process import FULL

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

DATE = datetime.date(2024, 7, 26)
SECONDS = 10  # of one core, for one conversation; templates of the wild take less than a millisecond
MEMORY = 2**30
_AT_ONCE = 64  # conversations of a request
_SCRIPT = Path(__file__).with_name("template_process.py")

Turns = Sequence[dict[str, str]]


def check_date(date: str | datetime.date) -> datetime.date:
    """A date, also from its ISO form ("2024-07-26"), as run.json stores it. Raises BadInput for anything else."""
    try:
        return date if isinstance(date, datetime.date) else datetime.date.fromisoformat(date)
    except (ValueError, TypeError) as error:
        raise BadInput(f"The date of chat templates is {date!r}: write it as {DATE.isoformat()}.") from error


def render(
    language_model: LanguageModel,
    conversations: Sequence[Turns],
    places: Sequence[str],
    *,
    add_generation_prompt: bool = False,
) -> list[str]:
    """Each conversation as text, through the model's chat template; places name them in errors ("Record 'a'").

    Raises BadInput for what the template refuses, and for a template that does not end or fills the memory.
    """
    tokenizer: Any = language_model.tokenizer
    text = _template(language_model)
    named = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
    request = {
        "template": text,
        "variables": {**tokenizer.special_tokens_map, **named},
        "date": language_model.date.isoformat(),
        "seconds": SECONDS,
    }
    found: list[str] = []
    for begin in range(0, len(conversations), _AT_ONCE):
        chosen = [list(turns) for turns in conversations[begin : begin + _AT_ONCE]]
        answers = _process.ask({**request, "conversations": chosen}, language_model.name)
        for place, turns, (rendered, problem) in zip(places[begin:], chosen, answers, strict=False):
            if rendered is None:
                roles = ", ".join(turn["role"] for turn in turns)
                raise BadInput(f"{place}: the chat template refuses turns of the roles {roles} ({problem}).")
            found.append(rendered)
    return found


def _template(language_model: LanguageModel) -> str:
    template: Any = language_model.tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise BadInput(
                f"{language_model.name} has several chat templates ({', '.join(sorted(template))}) and none is its default: "
                "write the one that you mean into a Jinja file, and give that as chat_template."
            )
        template = template["default"]
    return template


class _Process:
    """The process that renders, started when it is first needed and again after it was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any], name: str) -> list[tuple[str | None, str | None]]:
        with self._lock:
            running = self._started()
            try:
                assert running.stdin is not None and running.stdout is not None
                running.stdin.write(json.dumps(request, default=str) + "\n")
                running.stdin.flush()
                line = running.stdout.readline()
            except BrokenPipeError:
                line = ""
            except BaseException:  # interrupted: its answer would be taken for that of the next request
                self.end()
                raise
            if not line:
                raise self._ended(running, name)
        return json.loads(line)

    def _started(self) -> subprocess.Popen[str]:
        if self._running is None or self._running.poll() is not None:
            self._running = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT), str(MEMORY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="ascii",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        return self._running

    def _ended(self, running: subprocess.Popen[str], name: str) -> BadInput | WorkFailed:
        code = running.wait()
        self._running = None
        if code == -signal.SIGXCPU:
            problem = f"does not come to an end: {SECONDS} seconds of work were not enough for one conversation"
        elif code in (FULL, -signal.SIGKILL):  # the system kills whom it finds too large
            problem = f"fills the memory: {MEMORY / 2**30:g} GiB were not enough for one conversation"
        else:
            return WorkFailed(f"The process that renders the chat template of {name} ended with code {code}.")
        return BadInput(
            f"The chat template of {name} {problem}. Give another one as chat_template (a Jinja file, or 'none')."
        )

    def end(self) -> None:
        """Ends the process."""
        if self._running is not None:
            self._running.kill()
            self._running.communicate()
        self._running = None


_process = _Process()
atexit.register(_process.end)
# A forked child must neither read its parent's answers nor wait for a lock that one of the parent's threads held.
os.register_at_fork(after_in_child=_process.__init__)
