"""`equipoise detoxify`: take a subspace of unwanted directions out of a model, and put it back."""

import inspect
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from equipoise.cli.jobs import COMMAND, HELP_FORMAT, command
from equipoise.core.errors import BadInput
from equipoise.core.terminal import say
from equipoise.unlearning.detoxify_job import detoxify

work = command(detoxify)


def run(*, undo: Path | None = None, **given: Any) -> int:
    """The job, or with `undo` the way back; the options are the job's, and so is the help."""
    if undo is None:
        return work(**given)
    from equipoise.unlearning.checkpoint_edit import undo as put_back

    others = sorted(name for name in given if name not in ("out", "quiet"))
    if others:
        raise BadInput(f"--undo takes nothing but --out beside it: leave --{others[0].replace('_', '-')} out.")
    folder = put_back(undo, given.get("out"))
    say("The model as it was, byte for byte.", file=sys.stderr)
    print(folder)
    return 0


_undo = inspect.Parameter(
    "undo",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        Parameter(
            help="Write the model as it was before into FOLDER-undone, or --out, byte for byte; a folder that this command "
            "wrote.",
            group=COMMAND,
        ),
    ],
)
_signature = inspect.signature(work)
run.__signature__ = _signature.replace(  # pyright: ignore[reportFunctionMemberAccess]
    parameters=[*_signature.parameters.values(), _undo]
)
run.__annotations__ = {**work.__annotations__, "undo": _undo.annotation}
run.__doc__ = work.__doc__

app = App(name="detoxify", help_format=HELP_FORMAT)
app.default(run)
