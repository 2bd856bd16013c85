"""The command line: every command parses, calls one function and prints; torch is imported inside commands only.

The parser too is imported inside `main`: an interrupt during its import, which takes longer than everything else before
a command, ends like any other.
"""

import errno
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts import App

HELP = """Change a model after pre-training, and weigh what the change cost.

Exit codes: 0 done (a refuted claim is done), 1 the work failed, 2 the request was wrong, 3 stopped at the stated budget, \
130 interrupted. --debug before or after any command shows tracebacks."""


HELP_FLAGS = ("--help", "-h")
COMMANDS = {  # where each is, and its line in the list of commands: the first of its own help
    "unlearn": (
        "equipoise.cli.unlearn:app",
        "Make a model forget one file while it keeps another; writes a folder that transformers loads as it is.",
    ),
    "detoxify": (
        "equipoise.cli.detoxify:app",
        "Take an unwanted style out of a model, without training; writes a folder that transformers loads as it is.",
    ),
    "reinforce": (
        "equipoise.cli.reinforce:app",
        "Train a model on prompts whose answers can be checked; writes a folder that transformers loads as it is.",
    ),
    "solvable": ("equipoise.cli.solvable:app", "Say which prompts a model will solve, before it answers them."),
    "prm": ("equipoise.cli.prm:app", "Make, use and weigh models that judge each step of a solution."),
    "route": (
        "equipoise.cli.route:app",
        "Keep prompts with a small model where it answers well, and send the others to a large one.",
    ),
    "uncertainty": (
        "equipoise.cli.uncertainty:app",
        "Say how sure a model is of what it says, and make it as sure as it is right.",
    ),
    "memory": (
        "equipoise.cli.memory:app",
        "Ask a memory of conversations, and compare memory systems so that no answer sees the future.",
    ),
    "think": (
        "equipoise.cli.think:app",
        "Answer prompts with a reasoning model whose thinking is steered: longer before a moment, over soon after it.",
    ),
    "rule": (
        "equipoise.cli.rule:app",
        "Learn whom to treat from records of people, and say no more about any one of them than was agreed.",
    ),
    "control": (
        "equipoise.cli.control:app",
        "Train policies from logs, robust against a change of the system, and measure how robust they are.",
    ),
    "certify": ("equipoise.cli.certify:app", "Prove what a network does within a radius, and check such proofs."),
    "audit": ("equipoise.cli.audit:app", "Find out what is wrong with a model that others rely on."),
    "report": (
        "equipoise.cli.report:report",
        "Draw the report of a job's folder again, from what it holds; does no work anew.",
    ),
    "study": (
        "equipoise.cli.study:app",
        "Weigh a method: declared comparisons, run on equal terms, judged by a stated rule.",
    ),
    "models": ("equipoise.cli.models:app", "Models that can be had by name, without a model hub."),
    "doctor": (
        "equipoise.cli.doctor:doctor",
        "Say what this machine has: versions, devices, extras, plug-ins, cache, data, isolation. Nothing is fetched.",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; the message of a known error is one sentence on stderr."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    try:
        app = _app(listing=not tokens or tokens[0] in HELP_FLAGS)
        if tokens and tokens[-1] in HELP_FLAGS and not app.parse_commands(tokens[:-1])[2]:
            app.help_print(tokens[:-1])  # at once: the parser would read all options of the command first
            return 0
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except BrokenPipeError:
        return 1
    except BaseException as error:
        if _is_interrupt(error):
            return _interrupted()
        if debug or not isinstance(error, Exception):
            raise
        return _explain(error)
    return code if isinstance(code, int) else 0


def _app(*, listing: bool = False) -> "App":
    """The parser. listing: for the list of commands, whose lines it would show in place of a command's own help."""
    from cyclopts import App

    # The parser's own answer to an interrupt is to exit without a word.
    app = App(name="equipoise", version=_version, help=HELP, help_format="markdown", suppress_keyboard_interrupt=False)
    for name, (where, line) in COMMANDS.items():
        app.command(where, name=name, help=line if listing else None)
    return app


def _version() -> str:
    from equipoise import __version__

    return __version__


def _is_interrupt(error: BaseException | None) -> bool:
    """Also when a library made another error of it, as pydantic and groups of tasks do."""
    if isinstance(error, BaseExceptionGroup):
        return any(_is_interrupt(each) for each in error.exceptions)
    return error is not None and (
        isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__cause__ or error.__context__)
    )


def _interrupted() -> int:
    print("Interrupted; what was computed is stored, and the same command resumes it.", file=sys.stderr)
    # An interrupt that passed through code made of text (as dataclasses make it) is noted by the interpreter, which then
    # ends by the signal whatever is returned; running any text clears the note.
    exec("")
    return 130


def _explain(error: Exception) -> int:
    from cyclopts import CycloptsError

    from equipoise.core.errors import EquipoiseError, WrongOption
    from equipoise.core.secrets import redact
    from equipoise.core.terminal import say

    if isinstance(error, WrongOption):
        message, code = f"--{error.name.replace('_', '-')} {error.problem}", error.exit_code
    elif isinstance(error, EquipoiseError):
        message, code = str(error), error.exit_code
    elif isinstance(error, CycloptsError):
        message, code = _wrong_option(error), 2
    elif _disk_is_full(error):
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        message, code = f"The disk is full{where}: free some space; the same command goes on from what is stored.", 1
    else:
        message, code = f"{type(error).__name__}: {error} (--debug shows the traceback)", 1
    say(f"equipoise: {redact(message)}")
    return code


def _disk_is_full(error: BaseException) -> bool:
    # safetensors and Arrow raise types of their own, with the system's words in them.
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in str(error)


def _wrong_option(error: Exception) -> str:
    """The sentence of a refused option; pydantic's, which sits inside the parser's, without its reference to the web."""
    from pydantic import ValidationError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ValidationError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return " ".join(str(error).split())
    first = cause.errors()[0]
    expected = first["msg"].removeprefix("Input should be ")
    return f"--{str(first['loc'][-1]).replace('_', '-')} should be {expected}; got {first['input']!r}."
