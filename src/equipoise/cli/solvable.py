"""`equipoise solvable`: a scorer that says, of a prompt alone, how likely a model is to solve it."""

import inspect
from collections.abc import Callable
from typing import Any

from cyclopts import App

from equipoise.cli.jobs import HELP_FORMAT, command
from equipoise.reinforcement.solvable_job import fit, score

app = App(
    name="solvable", help="Say which prompts a model will solve, before it answers them.", help_format=HELP_FORMAT
)


def leading(run: Callable[..., int], name: str) -> Callable[..., int]:
    """The same command with this option in the first place, so that its name need not be typed."""
    signature = inspect.signature(run)
    first = signature.parameters[name].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
    others = [each for each in signature.parameters.values() if each.name != name]

    def typed(*given: Any, **named: Any) -> int:
        return run(**{**dict(zip((name,), given, strict=False)), **named})

    typed.__signature__ = signature.replace(parameters=[first, *others])  # pyright: ignore[reportFunctionMemberAccess]
    typed.__annotations__, typed.__doc__ = run.__annotations__, run.__doc__
    return typed


app.command(command(fit), name="fit")
app.command(leading(command(score), "scorer"), name="score")
