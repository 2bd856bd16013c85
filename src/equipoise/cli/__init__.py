"""The command line: every command parses, calls one function and prints; torch is imported inside commands only."""

import errno
import sys
from collections.abc import Sequence

from cyclopts import App

from equipoise import __version__
from equipoise.cli.config import expand
from equipoise.core.errors import EquipoiseError

app = App(
    name="equipoise",
    version=__version__,
    help="Change a model after pre-training, and weigh what the change cost.\n\n"
    "Exit codes: 0 done (a refuted claim is done), 1 the work failed, 2 the request was wrong, "
    "3 stopped at the stated budget, 130 interrupted. --debug before or after any command shows tracebacks.",
    help_format="markdown",
)
app.command("equipoise.cli.unlearn:unlearn", name="unlearn")
app.command("equipoise.cli.certify:app", name="certify")
app.command("equipoise.cli.audit:app", name="audit")
app.command("equipoise.cli.study:app", name="study")
app.command("equipoise.cli.models:app", name="models")
app.command("equipoise.cli.doctor:doctor", name="doctor")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; the message of a known error is one sentence on stderr."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    try:
        tokens = expand(tokens) if tokens[:1] == ["unlearn"] else tokens
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except KeyboardInterrupt:
        print("Interrupted; what was computed is stored, and the same command resumes it.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if debug:
            raise
        return _explain(error)
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> int:
    from cyclopts import CycloptsError

    if isinstance(error, EquipoiseError):
        message, code = str(error), error.exit_code
    elif isinstance(error, CycloptsError):
        message, code = _wrong_option(error), 2
    elif _disk_is_full(error):
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        message, code = f"The disk is full{where}: free some space; the same command goes on from what is stored.", 1
    else:
        message, code = f"{type(error).__name__}: {error} (--debug shows the traceback)", 1
    print(f"equipoise: {message}", file=sys.stderr)
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
